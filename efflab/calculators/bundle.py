"""What the browser gets: declarations as JSON, traced formulas, scripts, one style sheet.

The same front end runs in two places. In JupyterLab it is the widget's ES module and carries the formulas of its
own calculator. On the website it is a classic script, since a browser refuses modules from a file and, under a strict
Content-Security-Policy, inline scripts; a second one for each topic carries the topic's formulas and declarations, and
only pages that show a calculator of the topic load it. A page holds no more than which calculator starts with which
inputs.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Any

from efflab import units
from efflab.calculators.calculator import Calculator
from efflab.calculators.parts import (
    Choice,
    Curve,
    Formula,
    Input,
    NumberField,
    Output,
    Ratio,
    Sum,
    Value,
    read,
)
from efflab.errors import unknown
from efflab.formulas import reading

FOLDER = Path(__file__).parent
OTHER_DEVICE = " (another device)"  # after a run's label, as the front end writes it


def units_script() -> str:
    """What `script()` and the quizzes need before them: one global, `efflabUnits`. A classic script."""
    return f"globalThis.efflabUnits = {units.javascript()};\n"


def script() -> str:
    """The site's script: the front end and its host. A classic script that runs after `units_script()`."""
    return f'(() => {{\n"use strict";\n{_front()}\n{_source("site.js")}\n}})();\n'


def topic_script(topic: str) -> str:
    """The declarations and traced formulas of a topic's calculators. A classic script that runs after `script()`.

    Raises:
        EfflabError: no calculator is of this topic; names the nearest.
    """
    from efflab.calculators import every

    found = [c for c in every().values() if c.topic == topic]
    if not found:
        raise unknown("calculators of topic", topic, topics())
    inputs: list[Any] = []
    declared = {c.name: declaration(c) for c in found}
    for one in declared.values():
        inputs += [i for i in one["inputs"] if i not in inputs]
        one["inputs"] = [inputs.index(i) for i in one["inputs"]]
    used = _formulas(found)
    given = f"{_given(used, _binary(found))}, inputs: {literal(inputs)}, declarations: {literal(declared)}"
    helpers = reading.helpers(used.values())
    return f'(() => {{\n"use strict";\n{helpers}\nefflabCalculators.add({{{given}}});\n}})();\n'


def topics() -> list[str]:
    """The topics that have calculators."""
    from efflab.calculators import every

    return list(dict.fromkeys(c.topic for c in every().values()))


def module(calculator: Calculator) -> str:
    """The widget's ES module: the front end, its host and this calculator's traced formulas."""
    return (
        f"const efflabUnits = {units.javascript()};\n{core(_formulas([calculator]), _binary([calculator]))}\n"
        f"{_source('jupyter.js')}\nexport default {{ render }};\n"
    )


def core(used: Mapping[str, Formula], binary: bool = True) -> str:
    """The front end with these formulas. It touches the document only when a calculator is mounted.

    It needs `efflabUnits` before it. `binary`: with what writes numbers of binary formats.
    """
    return f"{reading.helpers(used.values())}\n{_front()}\nadd({{{_given(used, binary)}}});"


def _front() -> str:
    return f"const OTHER_DEVICE = {as_json(OTHER_DEVICE)};\n{_source('frontend.js')}"


def _formulas(calculators: Iterable[Calculator]) -> dict[str, Formula]:
    return {name: f for c in calculators for name, (f, _) in c.readings.items()}


def _binary(calculators: Iterable[Calculator]) -> bool:
    """Whether any of them writes numbers of binary formats."""
    return any(c.bits or c.exact for c in calculators)


def _given(used: Mapping[str, Formula], binary: bool) -> str:
    """What the front end is given: formulas, and code that only some calculators need."""
    lines = [f"{json.dumps(n)}: [{json.dumps(list(read(f).where))}, {reading.javascript(f)}]" for n, f in used.items()]
    given = "formulas: {\n" + ",\n".join(lines) + "\n}"
    return given + (
        f",\nbinary: (() => {{\n{_source('binary.js')}\nreturn {{ exact, fields, BRIEF }};\n}})()" if binary else ""
    )


def style() -> str:
    """The style sheet, for the site and for the widget."""
    return _source("frontend.css")


def declaration(calculator: Calculator) -> dict[str, Any]:
    """The calculator as JSON values, in the shape that the front end reads. What is empty or false is left out."""
    found = {
        "name": calculator.name,
        "title": calculator.title,
        "topic": calculator.topic,
        "intro": calculator.intro,
        "note": calculator.note,
        "inputs": [_input(i, calculator) for i in calculator.inputs],
        "outputs": [_output(o, calculator.exact) for o in calculator.outputs],
        "drawn": calculator._drawn(),
        "names": calculator._names(),
        "units": {n: u.symbol for n, u in calculator.units.items()},
        "verdict": [{"text": c.text, "when": [list(w) for w in c.when]} for c in calculator.verdict],
        "cautions": [{"text": c.text, "when": [list(w) for w in c.when]} for c in calculator.cautions],
        "curve": _curve(calculator.curve) if calculator.curve else None,
        "stack": _stack(calculator) if calculator.stack else None,
        "bits": vars(calculator.bits) if calculator.bits else None,
        "compare": _compare(calculator) if calculator.compare else None,
    }
    return {n: v for n, v in found.items() if n in ("inputs", "outputs") or not _empty(v)}


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


def _input(given: Input, calculator: Calculator) -> dict[str, Any]:
    common = {"name": given.name, "label": given.label, "help": given.help, "group": given.group}
    if isinstance(given, Choice):
        found = {
            "kind": "choice", "by": dict(given.by), "missing": dict(given.missing), "shared": given.shared,
            "only_found": given.only_found, "default": given.default, "options": _options(given, calculator),
        }  # fmt: skip
    elif isinstance(given, NumberField):
        found = {"kind": "number", "default": given.default}
    else:
        found = {
            "kind": "slider", "low": given.low, "high": given.high, "zero": given.zero, "integer": given.integer,
            "scale": given.scale, "steps": given.steps if given.scale == "linear" else None,
            "per": given.per if given.per != 1 else None,
        }  # fmt: skip
        kept = {"unit": calculator.units[given.name].symbol, "default": given.default}
        return _full(common | found) | kept
    return _full(common | found)


def _full(found: dict[str, Any]) -> dict[str, Any]:
    """Without what is empty or false, which the front end supposes."""
    return {n: v for n, v in found.items() if not _empty(v)}


def _empty(value: Any) -> bool:
    return value is None or value is False or (not isinstance(value, int | float) and not value)


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


def _output(output: Output | Ratio | Sum | Value, exact: set[str]) -> dict[str, Any]:
    found: dict[str, Any] = {"name": output.name, "label": output.label, "shown": output.shown}
    found["exact"] = output.name in exact
    if isinstance(output, Ratio):
        found |= {"over": output.over, "under": output.under, "percent": output.percent, "whole": output.whole}
    elif isinstance(output, Sum):
        found |= {"of": list(output.of), "minus": list(output.minus), "rounded": output.rounded}
    elif isinstance(output, Output):
        found |= {"formula": read(output.formula).name, "given": dict(output.given)}
        found |= {"words": list(output.words), "whole": output.whole, "absent": output.absent}
    return _full(found)


def _curve(curve: Curve) -> dict[str, Any]:
    marks = [{"x": m.x, "y": m.y, "label": m.label, "dot": m.dot} for m in curve.marks]
    runs = [
        {
            "label": r.label, "option": r.option and list(r.option),
            "points": [[_short(x), _short(y), title] for x, y, title in r.points],
        }
        for r in (curve.runs() if curve.runs else ())
    ]  # fmt: skip
    return _full({
        "x": curve.x, "low": curve.low, "high": curve.high, "scale": curve.scale.split("-"),
        "lines": [_full({"y": line.y, "label": line.label, "faint": line.faint}) for line in curve.lines],
        "at": [list(pair) for pair in curve.at], "at_label": curve.at_label, "marks": [_full(m) for m in marks],
        "vary": curve.vary, "beside": curve.beside, "slope_label": curve.slope_label,
        "x_label": curve.x_label, "y_label": curve.y_label, "describe": curve.describe,
        "above_zero": not curve.from_zero, "y_high": curve.y_high,
        "runs": [_full(r) for r in runs],
    })  # fmt: skip


def _stack(calculator: Calculator) -> dict[str, Any]:
    stack = calculator.stack
    assert stack is not None
    capacity = {"name": stack.capacity, "label": stack.capacity_label or calculator.label(stack.capacity)}
    return _full({
        "parts": [{"name": n, "label": calculator.label(n)} for n in stack.parts], "label": stack.label,
        "describe": stack.describe, "vary": stack.vary, "capacity": capacity if stack.capacity else None,
    })  # fmt: skip


def _compare(calculator: Calculator) -> dict[str, Any]:
    table = calculator.compare
    assert table is not None
    columns = [{"name": n, "label": calculator.label(n)} for n in table.columns]
    return {"vary": table.vary, "label": table.label, "columns": columns}


def _short(value: float) -> float:
    return float(f"{value:.4g}")  # a dot is placed to a tenth of a pixel


def _plain(value: Any) -> Any:
    """The same JSON value without the '.0' of whole numbers."""
    if isinstance(value, Mapping):
        return {n: _plain(v) for n, v in value.items()}
    if isinstance(value, list):
        return [_plain(v) for v in value]
    return int(value) if isinstance(value, float) and value == int(value) and abs(value) < 1e15 else value
