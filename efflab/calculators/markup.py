"""A calculator as HTML: what a page holds before its script runs, and all that it shows without one."""

from __future__ import annotations

from html import escape
from typing import Any

from efflab.calculators import bundle
from efflab.calculators.calculator import Calculator, Result
from efflab.calculators.parts import Choice, Curve, Run, Slider
from efflab.units import show

# The script's own buttons take the place of these, so that nothing moves when it starts.
# The height of a stack's drawing, as frontend.js makes it: room above, each bar, and its text where there are several.
_TOP, _BAR, _TEXT = 20, 35, 17
NO_SUCH_NUMBER = "The format has no such number."
BUTTONS = ("Reset", "Share", "Copy as Python", "Save as prediction")


def html(calculator: Calculator, element_id: str | None = None, **state: Any) -> str:
    """The calculator as it stands in a page, with its name and its inputs as inert JSON.

    Args:
        calculator: the calculator.
        element_id: id in the page, the calculator's name unless it is there twice. Links name it.
        **state: inputs in place of the defaults.

    Raises:
        EfflabError: see `Calculator.state`.
    """
    result = calculator.evaluate(**state)
    name = element_id or calculator.name
    changed = {n: v for n, v in result.state.items() if v != calculator.table[n].default}
    wide = " calc-wide" if calculator.curve or calculator.stack else ""
    parts = [
        f'<div class="efflab-calculator" id="{escape(name)}" role="group" aria-labelledby="{escape(name)}-title">',
        f'<p class="calc-title" id="{escape(name)}-title">{escape(calculator.title)}</p>',
        f'<p class="calc-intro">{escape(calculator.intro)}</p>' if calculator.intro else "",
        f'<div class="calc-body{wide}"><div class="calc-inputs">',
        *_rows(result),
        '</div><div class="calc-main">',
        _bits(result) if calculator.bits else "",
        _stack(result) if calculator.stack else "",
        _figure(result, calculator.curve) if calculator.curve else "",
        '<div class="calc-results"><dl>',
        *(_output(result, o.name, o.label) for o in calculator.outputs if o.shown),
        f'</dl><p class="calc-verdict">{escape(result.verdict)}</p></div>',
        _compare(result) if calculator.compare else "",
        '</div></div><div class="calc-actions">',
        *(f'<button type="button" disabled>{b}</button>' for b in BUTTONS),
        "</div>",
        f'<p class="calc-note">{escape(calculator.note)}</p>' if calculator.note else "",
        f'<script type="application/json">{bundle.as_json({"name": calculator.name, "state": changed})}</script></div>',
    ]
    return "".join(parts)


def text(calculator: Calculator, **state: Any) -> str:
    """The calculator in plain text, for a page that is not HTML."""
    result = calculator.evaluate(**state)
    inputs = [f"{calculator.table[n].label}: {_value(result, n)}" for n in result.relevant]
    return "\n".join([calculator.title, *inputs, str(result)])


def _rows(result: Result) -> list[str]:
    """The inputs that matter, each group under its heading."""
    found, headed = [], set()
    for name in result.relevant:
        group = result.calculator.table[name].group
        if group and group not in headed:
            headed.add(group)
            found.append(f'<p class="calc-group">{escape(group)}</p>')
        found.append(_row(result, name))
    return found


def _row(result: Result, name: str) -> str:
    given = result.calculator.table[name]
    small = f" <small>{escape(given.help)}</small>" if given.help else ""
    chosen = not isinstance(given, Slider)
    track = "" if chosen else '<span class="calc-track"></span>'
    shown = [] if chosen else [given.high, given.default]
    long = any(len(result.calculator._text(name, result.state, value, brief=True)) > 10 for value in shown)
    long = long or (not chosen and len(given.help) > 30)
    return (
        f'<div class="calc-row{" calc-long" if long else ""}">'
        f'<span class="calc-label">{escape(given.label)}{small}</span> '
        f'<span class="calc-{"chosen" if chosen else "number"}">{escape(_value(result, name))}</span>'
        f"{track}</div>"
    )


def _figure(result: Result, curve: Curve) -> str:
    runs = "".join(
        f"<li>measured: {escape(r.label)}{'' if _own(result, r) else bundle.OTHER_DEVICE}</li>"
        for r in (curve.runs() if curve.runs else ())
    )
    here = f'<li><span class="calc-key here"></span>{escape(curve.at_label)}</li>' if curve.at else ""
    return f'<div class="calc-figure"><div class="calc-plot"></div><ul class="calc-legend">{here}{runs}</ul></div>'


def _output(result: Result, name: str, label: str) -> str:
    calculator = result.calculator
    wide = ' class="calc-exact"' if name in calculator.exact else ""
    first, exactly = calculator.written(name, result.state, result.values[name])
    small = f" <small>{escape(exactly)}</small>" if exactly else ""
    return f"<div{wide}><dt>{escape(label)}</dt><dd>{escape(first)}{small}</dd></div>"


def _bits(result: Result) -> str:
    bits, found = result.calculator.bits, result.bits()
    assert bits is not None
    groups = []
    for name in ("sign", "exponent", "mantissa"):
        if digits := getattr(found, name, ""):
            cells = "".join(f"<b>{d}</b>" for d in digits)
            groups.append(
                f'<span class="calc-field {name}"><span class="calc-cells">{cells}</span><small>{name}</small></span>'
            )
    return (
        f'<div class="calc-bits"><p class="calc-bits-title">{escape(bits.label)}</p>{"".join(groups)}'
        f'<p class="calc-meaning">{escape(found.meaning if found else NO_SUCH_NUMBER)}</p></div>'
    )


def _stack(result: Result) -> str:
    stack = result.calculator.stack
    assert stack is not None
    bars = len(result.bars())
    height = _TOP + bars * (_BAR + (_TEXT if bars > 1 else 0))
    rows, nothing = [], show(0.0, result.calculator.units[stack.parts[0]])
    for at, (kind, label, amount, share) in enumerate(result.listed()):
        key = f"calc-key part-{at % 6}" if kind == "part" else "calc-key none"
        empty = " hidden" if kind == "part" and amount == nothing else ""
        rows.append(
            f'<tr class="calc-{kind}"{empty}><th scope="row"><span class="{key}"></span>{escape(label)}</th>'
            f"<td>{escape(amount)}</td><td>{escape(share)}</td></tr>"
        )
    caption = f"<caption>{escape(stack.label)}</caption>" if stack.label else ""
    return (
        f'<div class="calc-stack"><div class="calc-plot"><svg width="1" height="{height}"></svg></div>'
        f"<table>{caption}<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _compare(result: Result) -> str:
    calculator, table = result.calculator, result.calculator.compare
    assert table is not None
    choice = calculator.table[table.vary]
    assert isinstance(choice, Choice)
    heads = "".join(f'<th scope="col">{escape(t)}</th>' for t in (choice.label, *map(calculator.head, table.columns)))
    rows = []
    for option, values in result.rows().items():
        state = result.state | {table.vary: option}
        cells = "".join(f"<td>{escape(calculator.cell(n, state, v))}</td>" for n, v in values.items())
        label = escape(choice.table[option].label or option)
        chosen = ' class="calc-chosen-row"' if option == result.state[table.vary] else ""
        rows.append(f'<tr{chosen}><th scope="row"><span class="calc-pick">{label}</span></th>{cells}</tr>')
    return (
        f'<div class="calc-compare"><table><caption>{escape(table.label)}</caption>'
        f"<thead><tr>{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _own(result: Result, run: Run) -> bool:
    return run.option is not None and result.state[run.option[0]] == run.option[1]


def _value(result: Result, name: str) -> str:
    value = result.state[name]
    if isinstance(value, str):
        return result.text(name)
    if isinstance(value, int):
        return f"{value:,}"
    return result.calculator._text(name, result.state, value, brief=True)
