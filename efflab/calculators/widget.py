"""A calculator as a Jupyter widget."""

from __future__ import annotations

from functools import cache
from typing import Any

import anywidget
import traitlets

from efflab.calculators import bundle
from efflab.calculators.calculator import Calculator
from efflab.errors import EfflabError


class InputTrait(traitlets.TraitType):
    """The value of one input: a number in base units, a text with a unit, or the name of an option."""

    def __init__(self, calculator: Calculator, name: str) -> None:
        super().__init__(default_value=calculator.table[name].default)
        self.calculator, self.input = calculator, name

    def validate(self, obj: Any, value: Any) -> float | str:
        try:
            return self.calculator.accept(self.input, value)
        except EfflabError as error:
            raise traitlets.TraitError(str(error)) from None


class CalculatorWidget(anywidget.AnyWidget):
    """Base of every calculator's widget.

    Each input is a trait of its name, synchronised with the browser: link it, observe it, set it to a number or to
    text with a unit. Each computed value is a trait of its name, set here when an input changes, as is `verdict`.
    """

    calculator: Calculator
    _declaration = traitlets.Dict().tag(sync=True)
    verdict = traitlets.Unicode(help="One sentence: what limits it, and by how much.")

    def __init__(self, **state: Any) -> None:
        full = self.calculator.state(**state)
        super().__init__(_declaration=bundle.declaration(self.calculator), **full)
        self._compute()
        self.observe(lambda change: self._compute(), names=list(self.calculator.table))
        self.on_msg(self._answer)

    def __repr__(self) -> str:
        state = ", ".join(f"{n}={getattr(self, n)!r}" for n in self.calculator.evaluate(**self.state()).relevant)
        return f"<calculator {self.calculator.name}: {state}>"

    def state(self) -> dict[str, float | str]:
        """Every input's value."""
        return {name: getattr(self, name) for name in self.calculator.table}

    def result(self) -> Any:
        """The `Result` for the inputs as they stand."""
        return self.calculator.evaluate(**self.state())

    def _compute(self) -> None:
        result = self.result()
        with self.hold_trait_notifications():
            for output in self.calculator.outputs:
                self.set_trait(output.name, result.values[output.name])
            self.verdict = result.verdict

    def _answer(self, _widget: Any, content: Any, _buffers: Any) -> None:
        """Save a prediction when the browser asks; say where, or why not."""
        if not isinstance(content, dict) or content.get("kind") != "save":
            return
        from efflab.records import LabBook

        try:
            path = LabBook().save_prediction(self.result().prediction(source="calculator"))
        except (EfflabError, OSError) as error:
            self.send({"error": f"Not saved. {error}"})
        else:
            self.send({"saved": f"Saved in your lab book as {path.name}."})


@cache
def _class(calculator: Calculator) -> type[CalculatorWidget]:
    outputs = [o.name for o in calculator.outputs]
    names = [*calculator.table, *outputs]
    for name in names:
        if hasattr(CalculatorWidget, name):
            raise EfflabError(f"calculator {calculator.name}: {name!r} is taken by the widget itself. Rename it.")
    body: dict[str, Any] = {name: InputTrait(calculator, name).tag(sync=True) for name in calculator.table}
    body |= {name: traitlets.Any(None, allow_none=True, read_only=True) for name in outputs}
    body |= {"calculator": calculator, "_esm": bundle.module(calculator), "_css": bundle.style()}
    return type("CalculatorWidget", (CalculatorWidget,), body)


def widget(calculator: Calculator, **state: Any) -> CalculatorWidget:
    """A widget of this calculator; see `Calculator.widget`."""
    return _class(calculator)(**state)
