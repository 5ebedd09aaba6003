"""What the browser gets: declarations as JSON, traced formulas, one script, one style sheet.

The same front end runs in two places. In JupyterLab it is the widget's ES module and carries the formulas of its
own calculator. On the website it is part of one classic script with the formulas and declarations of all calculators,
since a browser refuses modules from a file and, under a strict Content-Security-Policy, inline scripts. A page holds
no more than which calculator starts with which inputs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Any

from efflab import units
from efflab.calculators.calculator import Calculator
from efflab.calculators.parts import Choice, Curve, Formula, Output, Ratio, Slider, Value, read
from efflab.formulas import reading

FOLDER = Path(__file__).parent
OTHER_DEVICE = " (another device, with a roof of its own)"  # after a run's label, as the front end writes it


def units_script() -> str:
    """What `script()` and the quizzes need before them: one global, `efflabUnits`. A classic script."""
    return f"globalThis.efflabUnits = {units.javascript()};\n"


def script() -> str:
    """The site's script: the front end, its host, every calculator's declaration and traced formulas.

    A classic script that runs after `units_script()`.
    """
    from efflab.calculators import every

    used = {name: f for c in every().values() for name, (f, _) in c.readings.items()}
    inputs: list[Any] = []
    declared = {c.name: declaration(c) for c in every().values()}
    for one in declared.values():
        inputs += [i for i in one["inputs"] if i not in inputs]
        one["inputs"] = [inputs.index(i) for i in one["inputs"]]
    declarations = f"const DECLARATIONS = {literal(declared)};"
    return f'(() => {{\n"use strict";\n{core(used, inputs)}\n{declarations}\n{_source("site.js")}\n}})();\n'


def module(calculator: Calculator) -> str:
    """The widget's ES module: the front end, its host and this calculator's traced formulas."""
    used = {name: f for name, (f, _) in calculator.readings.items()}
    return (
        f"const efflabUnits = {units.javascript()};\n{core(used)}\n{_source('jupyter.js')}\n"
        "export default { render };\n"
    )


def core(used: Mapping[str, Formula], inputs: Sequence[Any] = ()) -> str:
    """The front end with these formulas. It touches the document only when a calculator is mounted.

    It needs `efflabUnits` before it. `inputs`: what declarations give by their index in it.
    """
    lines = ",\n".join(f"  {json.dumps(n)}: [{json.dumps(list(read(f).where))}, {_traced(f)}]" for n, f in used.items())
    constants = {"INPUTS": literal(inputs), "OTHER_DEVICE": as_json(OTHER_DEVICE)}
    known = "\n".join(f"const {n} = {v};" for n, v in constants.items())
    return f"const FORMULAS = {{\n{lines}\n}};\n{known}\n{_source('frontend.js')}"


def style() -> str:
    """The style sheet, for the site and for the widget."""
    return _source("frontend.css")


def declaration(calculator: Calculator) -> dict[str, Any]:
    """The calculator as JSON values, in the shape that the front end reads."""
    return {
        "name": calculator.name,
        "title": calculator.title,
        "topic": calculator.topic,
        "intro": calculator.intro,
        "note": calculator.note,
        "inputs": [(_choice if isinstance(i, Choice) else _slider)(i, calculator) for i in calculator.inputs],
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


def literal(value: Any) -> str:
    """A JSON value as JavaScript, with numbers as short as they can be: 989400000000000 is 9894e11."""
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{as_json(n)}:{literal(v)}" for n, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return f"[{','.join(map(literal, value))}]"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return as_json(value)
    sign, digits, power = Decimal(repr(value)).normalize().as_tuple()
    short = f"{'-' * sign}{''.join(map(str, digits))}e{power}"
    return min(short, as_json(_plain(value)), key=len)


@cache
def _source(name: str) -> str:
    """A file's text, without what only its readers need: indentation and lines of comment."""
    lines = (line.strip() for line in (FOLDER / name).read_text(encoding="utf-8").splitlines())
    return "\n".join(line for line in lines if line and not line.startswith("//"))


@cache
def _traced(formula: Formula) -> str:
    return reading.javascript(formula)


def _slider(slider: Slider, calculator: Calculator) -> dict[str, Any]:
    return {
        "kind": "slider", "name": slider.name, "label": slider.label, "help": slider.help,
        "unit": calculator.units[slider.name].symbol, "low": slider.low, "high": slider.high,
        "zero": slider.zero, "integer": slider.integer, "default": slider.default, "stops": _plain(slider.stops()),
    }  # fmt: skip


def _options(choice: Choice, calculator: Calculator) -> list[dict[str, Any]]:
    """The options, without what is empty."""
    found = []
    for option in choice.table.values():
        given = {
            "label": option.label,
            "group": option.group,
            "sets": {n: _table(v, calculator.table.get(choice.by.get(n, ""))) for n, v in option.sets.items()},
            "takes": dict(option.takes),
            "formulas": {n: read(f).name for n, f in option.formulas.items()},
        }
        found.append({"name": option.name} | {n: v for n, v in given.items() if v})
    return found


def _table(value: Any, by: Any) -> Any:
    """What an option sets. A look-up that is complete is written with its most frequent value under ""."""
    if isinstance(value, Mapping) and isinstance(by, Choice) and value.keys() >= by.table.keys():
        values = list(value.values())
        most = max(values, key=values.count)
        return {"": most} | {n: v for n, v in value.items() if v != most}
    return dict(value) if isinstance(value, Mapping) else value


def _choice(choice: Choice, calculator: Calculator) -> dict[str, Any]:
    return {
        "kind": "choice", "name": choice.name, "label": choice.label, "help": choice.help, "by": dict(choice.by),
        "missing": dict(choice.missing), "shared": choice.shared, "default": choice.default,
        "options": _options(choice, calculator),
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
