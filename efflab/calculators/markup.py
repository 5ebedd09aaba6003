"""A calculator as HTML: what a page holds before its script runs, and all that it shows without one."""

from __future__ import annotations

from html import escape
from typing import Any

from efflab.calculators import bundle
from efflab.calculators.calculator import Calculator, Result
from efflab.calculators.parts import Choice, Curve, Run
from efflab.units import show

# The script's own buttons take the place of these, so that nothing moves when it starts.
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
    parts = [
        f'<div class="efflab-calculator" id="{escape(name)}" role="group" aria-labelledby="{escape(name)}-title">',
        f'<p class="calc-title" id="{escape(name)}-title">{escape(calculator.title)}</p>',
        f'<p class="calc-intro">{escape(calculator.intro)}</p>' if calculator.intro else "",
        f'<div class="calc-body{" calc-wide" if calculator.curve else ""}"><div class="calc-inputs">',
        *(_row(result, n) for n in result.relevant),
        "</div>",
        '<div class="calc-main">',
        _figure(result, calculator.curve) if calculator.curve else "",
        '<div class="calc-results"><dl>',
        *(
            f"<div><dt>{escape(o.label)}</dt><dd>{escape(result.text(o.name))}</dd></div>"
            for o in calculator.outputs
            if o.shown
        ),
        f'</dl><p class="calc-verdict">{escape(result.verdict)}</p></div></div></div><div class="calc-actions">',
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


def _row(result: Result, name: str) -> str:
    given = result.calculator.table[name]
    small = f" <small>{escape(given.help)}</small>" if given.help else ""
    chosen = isinstance(given, Choice)
    track = "" if chosen else '<span class="calc-track"></span>'
    return (
        f'<div class="calc-row"><span class="calc-label">{escape(given.label)}{small}</span> '
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


def _own(result: Result, run: Run) -> bool:
    return run.option is not None and result.state[run.option[0]] == run.option[1]


def _value(result: Result, name: str) -> str:
    value = result.state[name]
    if isinstance(value, str):
        return result.text(name)
    return f"{value:,}" if isinstance(value, int) else show(value, result.calculator.units[name])
