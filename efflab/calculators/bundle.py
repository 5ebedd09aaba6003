"""What the browser gets: declarations as JSON, traced formulas, one script, one style sheet.

The same front end runs in two places. In JupyterLab it is the widget's ES module and carries the formulas of its
own calculator. On the website it is part of one classic script with the formulas of all calculators, since a
browser refuses modules from a file and, under a strict Content-Security-Policy, inline scripts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from efflab import units
from efflab.calculators.calculator import Calculator
from efflab.calculators.parts import Choice, Curve, Formula, Output, Ratio, Slider, Value, read
from efflab.errors import EfflabError
from efflab.formulas import reading

FOLDER = Path(__file__).parent


def script() -> str:
    """The site's script: the front end, its host and every calculator's traced formulas. A classic script."""
    from efflab.calculators import every

    used = {name: f for c in every().values() for name, (f, _) in c.readings.items()}
    return f'(() => {{\n"use strict";\n{core(used, _shared())}\n{_source("site.js")}\n}})();\n'


def module(calculator: Calculator) -> str:
    """The widget's ES module: the front end, its host and this calculator's traced formulas."""
    used = {name: f for name, (f, _) in calculator.readings.items()}
    return f"{core(used)}\n{_source('jupyter.js')}\nexport default {{ render }};\n"


def core(used: Mapping[str, Formula], options: Mapping[str, Any] | None = None) -> str:
    """The front end with these formulas. It touches the document only when a calculator is mounted.

    `options`: the options of choices whose declarations leave them out, by the choice's name.
    """
    lines = ",\n".join(f"  {json.dumps(n)}: [{json.dumps(list(read(f).where))}, {_traced(f)}]" for n, f in used.items())
    constants = f"const FORMULAS = {{\n{lines}\n}};\nconst UNITS = {as_json(_units())};"
    return f"{constants}\nconst OPTIONS = {as_json(options or {})};\n{_source('frontend.js')}"


def style() -> str:
    """The style sheet, for the site and for the widget."""
    return _source("frontend.css")


def declaration(calculator: Calculator, *, whole: bool = True) -> dict[str, Any]:
    """The calculator as JSON values, in the shape that the front end reads.

    `whole`: with the options of shared choices, which a page leaves to the site's script.
    """
    return {
        "name": calculator.name,
        "title": calculator.title,
        "topic": calculator.topic,
        "intro": calculator.intro,
        "note": calculator.note,
        "inputs": [_choice(i, whole) if isinstance(i, Choice) else _slider(i, calculator) for i in calculator.inputs],
        "outputs": [_output(o) for o in calculator.outputs],
        "drawn": calculator._drawn(),
        "names": calculator._names(),
        "units": {n: u.symbol for n, u in calculator.units.items()},
        "verdict": [{"text": c.text, "when": [list(w) for w in c.when]} for c in calculator.verdict],
        "curve": _curve(calculator.curve) if calculator.curve else None,
    }


def as_json(value: Any) -> str:
    """JSON that may stand inside a script element."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c")


@cache
def _source(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8").rstrip()


@cache
def _traced(formula: Formula) -> str:
    return reading.javascript(formula)


def _units() -> dict[str, Any]:
    """What the front end needs to write and read each unit."""
    return {
        u.symbol: {
            "prefixes": u.prefixes,
            "spellings": (u.symbol, *u.spellings),
            "binary": u.binary,
            "extra": _plain(dict(u.extra)),
            "example": u.example(),
            "kind": units.quantity(u),
        }
        for u in units.UNITS.values()
    }


def _slider(slider: Slider, calculator: Calculator) -> dict[str, Any]:
    return {
        "kind": "slider", "name": slider.name, "label": slider.label, "help": slider.help,
        "unit": calculator.units[slider.name].symbol, "low": slider.low, "high": slider.high,
        "zero": slider.zero, "integer": slider.integer, "default": slider.default, "stops": _plain(slider.stops()),
    }  # fmt: skip


def _shared() -> dict[str, Any]:
    """The options of the choices that calculators share, by name."""
    from efflab.calculators import every

    found: dict[str, Any] = {}
    for calculator in every().values():
        for choice in calculator.inputs:
            if isinstance(choice, Choice) and choice.shared:
                options = _options(choice)
                if found.setdefault(choice.name, options) != options:
                    raise EfflabError(
                        f"calculator {calculator.name}: choice {choice.name!r} is shared, and another calculator "
                        "gives it other options. Rename one."
                    )
    return found


def _options(choice: Choice) -> list[dict[str, Any]]:
    return [
        {
            "name": o.name, "label": o.label or o.name, "group": o.group, "sets": _plain(o.sets),
            "takes": dict(o.takes), "formulas": {n: read(f).name for n, f in o.formulas.items()},
        }
        for o in choice.table.values()
    ]  # fmt: skip


def _choice(choice: Choice, whole: bool) -> dict[str, Any]:
    return {
        "kind": "choice", "name": choice.name, "label": choice.label, "help": choice.help, "by": dict(choice.by),
        "missing": choice.missing, "shared": choice.shared, "default": choice.default,
        "options": _options(choice) if whole or not choice.shared else None,
    }  # fmt: skip


def _output(output: Output | Ratio | Value) -> dict[str, Any]:
    common = {"name": output.name, "label": output.label, "shown": output.shown}
    if isinstance(output, Value):
        return common
    if isinstance(output, Ratio):
        return common | {"over": output.over, "under": output.under, "percent": output.percent}
    return common | {"formula": read(output.formula).name, "given": dict(output.given)}


def _curve(curve: Curve) -> dict[str, Any]:
    return {
        "x": curve.x, "low": curve.low, "high": curve.high, "scale": curve.scale.split("-"),
        "lines": [{"y": line.y, "label": line.label, "faint": line.faint} for line in curve.lines],
        "at": [list(pair) for pair in curve.at], "at_label": curve.at_label,
        "marks": [{"x": m.x, "y": m.y, "label": m.label} for m in curve.marks],
        "vary": curve.vary, "slope_label": curve.slope_label, "x_label": curve.x_label, "y_label": curve.y_label,
        "describe": curve.describe,
        "runs": [
            {
                "label": r.label, "option": r.option and list(r.option),
                "points": [[_short(x), _short(y), title] for x, y, title in r.points],
            }
            for r in (curve.runs() if curve.runs else ())
        ],
    }  # fmt: skip


def _short(value: float) -> float:
    return float(f"{value:.4g}")  # a dot is placed to a tenth of a pixel


def _plain(value: Any) -> Any:
    """The same JSON value without the '.0' of whole numbers."""
    if isinstance(value, Mapping):
        return {n: _plain(v) for n, v in value.items()}
    if isinstance(value, list):
        return [_plain(v) for v in value]
    return int(value) if isinstance(value, float) and value == int(value) and abs(value) < 1e15 else value
