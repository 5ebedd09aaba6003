"""A calculator as HTML: what a page holds before its script runs, and all that it shows without one."""

from __future__ import annotations

from html import escape
from typing import Any

from efflab.calculators import bundle
from efflab.calculators.calculator import Calculator, Result
from efflab.calculators.parts import Choice
from efflab.units import show


def html(calculator: Calculator, element_id: str | None = None, **state: Any) -> str:
    """The calculator as it stands in a page, with its declaration as inert JSON.

    Args:
        calculator: the calculator.
        element_id: id in the page, the calculator's name unless it is there twice. Links name it.
        **state: inputs in place of the defaults.

    Raises:
        EfflabError: see `Calculator.state`.
    """
    result = calculator.evaluate(**state)
    name = element_id or calculator.name
    declared = bundle.declaration(calculator) | {"state": result.state}
    parts = [
        f'<div class="efflab-calculator" id="{escape(name)}" role="group" aria-labelledby="{escape(name)}-title">',
        f'<p class="calc-title" id="{escape(name)}-title">{escape(calculator.title)}</p>',
        f'<p class="calc-intro">{escape(calculator.intro)}</p>' if calculator.intro else "",
        f'<div class="calc-body{" calc-wide" if calculator.curve else ""}"><div class="calc-inputs">',
        *(_row(result, n) for n in result.relevant),
        '</div><div class="calc-figure"><div class="calc-plot"></div></div>' if calculator.curve else "</div>",
        "</div>" if calculator.curve else "",
        '<dl class="calc-outputs">',
        *(
            f"<div><dt>{escape(o.label)}</dt><dd>{escape(result.text(o.name))}</dd></div>"
            for o in calculator.outputs
            if o.shown
        ),
        f'</dl><p class="calc-verdict">{escape(result.verdict)}</p><div class="calc-actions"></div>',
        f'<p class="calc-note">{escape(calculator.note)}</p>' if calculator.note else "",
        f'<script type="application/json">{bundle.as_json(declared)}</script></div>',
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
    chosen = ' class="calc-chosen"' if isinstance(given, Choice) else ""
    return (
        f'<div class="calc-row"><span class="calc-label">{escape(given.label)}{small}</span> '
        f"<span{chosen}>{escape(_value(result, name))}</span></div>"
    )


def _value(result: Result, name: str) -> str:
    value = result.state[name]
    if isinstance(value, str):
        return result.text(name)
    return f"{value:,}" if isinstance(value, int) else show(value, result.calculator.units[name])
