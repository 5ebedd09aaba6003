"""What the browser gets: declarations as JSON, traced formulas, one script, one style sheet.

The same front end runs in two places. In JupyterLab it is the widget's ES module and carries the formulas of its
own calculator. On the website it is part of one classic script with the formulas of all calculators, since a
browser refuses modules from a file and, under a strict Content-Security-Policy, inline scripts.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from efflab import units
from efflab.calculators.calculator import Calculator
from efflab.calculators.parts import Choice, Curve, Formula, Output, Ratio, Slider, Value, read
from efflab.formulas import reading

FOLDER = Path(__file__).parent


def script() -> str:
    """The site's script: the front end, its host and every calculator's traced formulas. A classic script."""
    from efflab.calculators import every

    used = {name: f for c in every().values() for name, (f, _) in c.readings.items()}
    return f'(() => {{\n"use strict";\n{core(used)}\n{_source("site.js")}\n}})();\n'


def module(calculator: Calculator) -> str:
    """The widget's ES module: the front end, its host and this calculator's traced formulas."""
    used = {name: f for name, (f, _) in calculator.readings.items()}
    return f"{core(used)}\n{_source('jupyter.js')}\nexport default {{ render }};\n"


def core(used: Mapping[str, Formula]) -> str:
    """The front end with these formulas. It touches the document only when a calculator is mounted."""
    lines = ",\n".join(f"  {json.dumps(n)}: [{json.dumps(list(read(f).where))}, {_traced(f)}]" for n, f in used.items())
    table = json.dumps(_units(), ensure_ascii=False)
    return f"const FORMULAS = {{\n{lines}\n}};\nconst UNITS = {table};\n{_source('frontend.js')}"


def style() -> str:
    """The style sheet, for the site and for the widget."""
    return _source("frontend.css")


def declaration(calculator: Calculator, *, runs: bool = True) -> dict[str, Any]:
    """The calculator as JSON values, in the shape that the front end reads. `runs`: with its recorded runs."""
    return {
        "name": calculator.name,
        "title": calculator.title,
        "topic": calculator.topic,
        "intro": calculator.intro,
        "note": calculator.note,
        "inputs": [_choice(i) if isinstance(i, Choice) else _slider(i, calculator) for i in calculator.inputs],
        "outputs": [_output(o) for o in calculator.outputs],
        "drawn": calculator._drawn(),
        "names": calculator._names(),
        "units": {n: u.symbol for n, u in calculator.units.items()},
        "verdict": [{"text": c.text, "when": [list(w) for w in c.when]} for c in calculator.verdict],
        "curve": _curve(calculator.curve, runs) if calculator.curve else None,
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
            "accepted": {k: v for k, v in u.accepted().items()},
            "example": u.example(),
            "kind": units._kind(u),
        }
        for u in units.UNITS.values()
    }


def _slider(slider: Slider, calculator: Calculator) -> dict[str, Any]:
    return {
        "kind": "slider", "name": slider.name, "label": slider.label, "help": slider.help,
        "unit": calculator.units[slider.name].symbol, "low": slider.low, "high": slider.high,
        "zero": slider.zero, "integer": slider.integer, "default": slider.default, "stops": _whole(slider.stops()),
    }  # fmt: skip


def _choice(choice: Choice) -> dict[str, Any]:
    return {
        "kind": "choice", "name": choice.name, "label": choice.label, "help": choice.help, "by": dict(choice.by),
        "missing": choice.missing, "shared": choice.shared, "default": choice.default,
        "options": [
            {
                "name": o.name, "label": o.label or o.name, "group": o.group, "sets": dict(o.sets),
                "formulas": {n: read(f).name for n, f in o.formulas.items()},
            }
            for o in choice.table.values()
        ],
    }  # fmt: skip


def _output(output: Output | Ratio | Value) -> dict[str, Any]:
    common = {"name": output.name, "label": output.label, "shown": output.shown}
    if isinstance(output, Value):
        return common
    if isinstance(output, Ratio):
        return common | {"over": output.over, "under": output.under, "percent": output.percent}
    return common | {"formula": read(output.formula).name, "given": dict(output.given)}


def _curve(curve: Curve, runs: bool) -> dict[str, Any]:
    return {
        "x": curve.x, "low": curve.low, "high": curve.high, "scale": curve.scale.split("-"),
        "lines": [{"y": line.y, "label": line.label, "faint": line.faint} for line in curve.lines],
        "at": [list(pair) for pair in curve.at], "at_label": curve.at_label,
        "marks": [{"x": m.x, "y": m.y, "label": m.label} for m in curve.marks],
        "vary": curve.vary, "slope_label": curve.slope_label, "x_label": curve.x_label, "y_label": curve.y_label,
        "describe": curve.describe,
        "runs": [
            {"label": r.label, "option": r.option and list(r.option), "points": [list(p) for p in r.points]}
            for r in (curve.runs() if runs and curve.runs else ())
        ],
    }  # fmt: skip


def _whole(values: Iterable[float]) -> list[float]:
    return [int(v) if v == int(v) and v < 1e15 else v for v in values]
