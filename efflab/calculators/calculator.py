"""How a calculator is declared, and how it computes in Python.

A calculator is data: inputs, outputs, a curve and a verdict. Wiring is by name. Each output is a formula; each
of its parameters is found, in this order, as

1. another output of that name (or a formula that the chosen option of a `Choice` provides under that name),
2. a value that the chosen option of a `Choice` sets, or takes from a slider,
3. a `Slider` or a `Choice` of that name.

The front end does the same in JavaScript, from the declaration as JSON and the traced formulas. Everything is
checked when the declaration is made, so a mistake shows at import and not in a reader's browser.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from efflab.calculators import binary
from efflab.calculators.checks import Declaration, words
from efflab.calculators.parts import (
    PLACEHOLDER,
    Bits,
    Case,
    Choice,
    Curve,
    Formula,
    Input,
    NumberField,
    Option,
    Output,
    Ratio,
    Slider,
    Stack,
    Sum,
    Table,
    Value,
    read,
)
from efflab.errors import EfflabError, unknown
from efflab.formulas.reading import Reading
from efflab.units import REAL, Unit, parse, show

if TYPE_CHECKING:
    from efflab.records import Prediction

State = dict[str, float | str]
_COMPARE = {
    "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge, "==": operator.eq,
    "no multiple of": lambda a, b: a % b != 0,
}  # fmt: skip
# How a refusal of `parse` ends: with an example, in place of which an input has one of its own.
_HINT = re.compile(r" (?:Add one, such as|Write it like|Write it in|Write a plain number, such as) [^\n]*$")
# "128k" and "16Ki" where a size is a plain number; k is a thousand here too.
_SIZE = re.compile(r"(.*[0-9])\s*(k|K|M|Ki|Mi)")
_SIZES = {"k": 1e3, "K": 1e3, "M": 1e6, "Ki": 1024.0, "Mi": 1048576.0}


@dataclass(frozen=True)
class Result:
    """What a calculator computed.

    Attributes:
        calculator: the calculator.
        state: every input's value.
        values: every computed value in base units; None where the inputs allow none.
        relevant: the inputs on which anything depended, in declared order.
        verdict: one sentence.
        problem: why some values are None, in words; else None.
    """

    calculator: Calculator
    state: State
    values: dict[str, float | None]
    relevant: tuple[str, ...]
    verdict: str
    problem: str | None

    def __getitem__(self, name: str) -> float | None:
        if name not in self.values:
            raise unknown(f"{self.calculator.name}: value", name, self.values)
        return self.values[name]

    def text(self, name: str) -> str:
        """A value, input or output, as the reader sees it: "139 µs"."""
        return self.calculator._text(name, self.state, self.values.get(name))

    def __str__(self) -> str:
        shown = [o for o in self.calculator.outputs if o.shown]
        width = max((len(o.label) for o in shown), default=0)
        return "\n".join([f"{o.label:<{width}}  {self.text(o.name)}" for o in shown] + [self.verdict])

    __repr__ = __str__

    def prediction(self, *, source: Literal["calculator", "lab", "site"] = "calculator", note: str = "") -> Prediction:
        """These inputs and outputs as a prediction for the lab book."""
        from efflab.records import Prediction

        return Prediction.new(
            self.calculator.topic,
            {n: (q["value"], q["unit"]) for n, q in self.outputs().items()},
            inputs={n: self.state[n] for n in self.relevant},
            source=source,
            calculator=self.calculator.name,
            note=note,
        )

    def outputs(self) -> dict[str, dict[str, Any]]:
        """The shown outputs that have a finite value: {name: {"value": number, "unit": symbol}}."""
        return {
            o.name: {"value": value, "unit": self.calculator.units[o.name].symbol}
            for o in self.calculator.outputs
            if o.shown and (value := self.values[o.name]) is not None and math.isfinite(value)
        }

    def bars(self) -> dict[str, dict[str, float | None]]:
        """The parts of the stack and its capacity, for each option of the choice that varies; else under ""."""
        stack = self.calculator.stack
        assert stack is not None
        return self._each(stack.vary, [*stack.parts, *([stack.capacity] if stack.capacity else [])])

    def listed(self) -> list[tuple[str, str, str, str]]:
        """What stands under the stack, row by row: its kind, what it is called, the amount, the share of the whole."""
        calculator, stack = self.calculator, self.calculator.stack
        assert stack is not None
        bar = self.bars()[str(self.state[stack.vary]) if stack.vary else ""]
        unit = calculator.units[stack.parts[0]]
        there = [v for n in stack.parts if (v := bar[n]) is not None]
        total, capacity = (sum(there[1:], there[0]) if there else None), bar.get(stack.capacity)
        whole = total if capacity is None else capacity

        def amount(value: float | None) -> str:
            return "—" if value is None else show(value, unit)

        def share(value: float | None) -> str:
            return "" if value is None or not whole else show(100 * value / whole) + "%"

        rows = [("part", calculator.label(n), amount(bar[n]), share(bar[n])) for n in stack.parts]
        rows.append(("total", "Together", amount(total), "" if capacity is None else share(total)))
        if not stack.capacity:
            return rows
        rows.append(("capacity", stack.capacity_label or calculator.label(stack.capacity), amount(capacity), ""))
        if total is not None and capacity is not None:
            kind, label = ("over", "Too much by") if total > capacity else ("free", "Free")
            rows.append((kind, label, amount(abs(capacity - total)), share(abs(capacity - total))))
        return rows

    def rows(self) -> dict[str, dict[str, float | None]]:
        """The table's values by column, for each option of its choice that can be chosen."""
        table = self.calculator.compare
        assert table is not None
        refused = self.refused(table.vary)
        return {o: values for o, values in self._each(table.vary, table.columns).items() if o not in refused}

    def refused(self, name: str) -> set[str]:
        """The options of a choice that cannot be chosen now: see `Choice.only_found`."""
        choice = self.calculator.table[name]
        if not isinstance(choice, Choice) or not choice.only_found:
            return set()
        looked_up = [
            option.sets[value]
            for other in self.calculator.inputs
            if isinstance(other, Choice)
            for option in [other.table[str(self.state[other.name])]]
            for value, by in other.by.items()
            if by == name and value in option.sets
        ]
        return {o for o in choice.table if any(o not in found for found in looked_up)}

    def bits(self) -> binary.Fields | None:
        """The bits of the number; None where it has no value."""
        bits = self.calculator.bits
        assert bits is not None
        scope = _Scope(self.calculator, self.state)
        given = [scope.value(n) for n in (bits.value, bits.exponent_bits, bits.mantissa_bits, bits.flavour)]
        return None if None in given else binary.fields(*given)

    def _each(self, vary: str, names: Sequence[str]) -> dict[str, dict[str, float | None]]:
        choice = self.calculator.table.get(vary)
        found = {}
        for option in choice.table if isinstance(choice, Choice) else [""]:
            scope = _Scope(self.calculator, self.state | ({vary: option} if vary else {}))
            found[option] = {name: scope.value(name) for name in names}
        return found


@dataclass(frozen=True, eq=False)
class Calculator:
    """A calculator, declared.

    Attributes:
        name: how pages and links call it: lower case, words joined by hyphens.
        title: the question that it answers.
        topic: the chapter's topic word.
        inputs: sliders, choices and number fields, in the order shown. Only those that matter in a state are shown.
        outputs: `Output`, `Ratio`, `Sum`, `Value`, in the order shown. A bare formula stands for `Output(formula)`.
        verdict: cases; the first that holds is the verdict. The last must hold always.
        curve, stack, bits, compare: the drawings, each or None, shown in this order: bits, stack, curve, table.
        intro: one or two sentences under the title.
        note: what the numbers leave out, under the drawing.
        cautions: cases; the verdict is followed by every one that holds.

    Raises:
        EfflabError: the declaration is wrong; names the calculator, the field and the mend.
    """

    name: str
    title: str
    topic: str
    inputs: Sequence[Input]
    outputs: Sequence[Any]
    verdict: Sequence[Case]
    curve: Curve | None = None
    stack: Stack | None = None
    bits: Bits | None = None
    compare: Table | None = None
    intro: str = ""
    note: str = ""
    cautions: Sequence[Case] = ()
    units: dict[str, Unit] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        Declaration(self).check()

    def __repr__(self) -> str:
        return f"<calculator {self.name}: {self.title}>"

    @cached_property
    def table(self) -> dict[str, Input]:
        """The inputs by name."""
        return {i.name: i for i in self.inputs}

    @cached_property
    def computed(self) -> dict[str, Output | Ratio | Sum]:
        """The outputs that are computed here, by name."""
        return {o.name: o for o in self.outputs if not isinstance(o, Value)}

    @cached_property
    def exact(self) -> set[str]:
        """The outputs that are written exactly."""
        return {o.name for o in self.outputs if getattr(o, "exact", False)}

    @cached_property
    def readings(self) -> dict[str, tuple[Formula, Reading]]:
        """Every formula that any state can use, by its full name such as "roofline.ridge_point"."""
        used = [o.formula for o in self.outputs if isinstance(o, Output)]
        used += [f for c in self.inputs if isinstance(c, Choice) for o in c.table.values() for f in o.formulas.values()]
        return {(r := read(f)).name: (f, r) for f in used}

    def defaults(self) -> State:
        """The state at first."""
        return {i.name: i.default for i in self.inputs}

    def state(self, **state: Any) -> State:
        """The defaults with these inputs in place of theirs, checked.

        A number may be text with its unit ("4.8 TB/s").

        Raises:
            EfflabError: an unknown input, an unknown option, a number out of range, of a wrong type or unit.
        """
        full = self.defaults()
        for name, value in state.items():
            if name not in self.table:
                raise unknown(f"{self.name}: input", name, self.table)
            full[name] = self.accept(name, value)
        return full

    def accept(self, name: str, value: Any) -> float | str:
        """`value` as the input `name` keeps it.

        Raises:
            EfflabError: see `state`.
        """
        given = self.table[name]
        if isinstance(given, Choice):
            if not isinstance(value, str) or value not in given.table:
                raise unknown(name, value, given.table)
            return value
        if isinstance(given, NumberField):
            text = value if isinstance(value, str) else _written(value, name)
            parse(text, REAL, name)
            return text.strip()
        unit = self.units[name]
        typed = value.strip() if isinstance(value, str) else None
        if typed is None:
            number = _number(value, name)
            typed = f"{number:.12g} {unit.symbol}".strip()
        elif given.zero and typed == "0":
            number = 0.0
        else:
            # 10 × 1e-6 is 9.999999999999999e-6: keep the digits that were typed
            number = float(f"{self._read(value, given, unit, name):.15g}")
        if not math.isfinite(number):
            raise EfflabError(f"{name} must be a finite number, got {value!r}.")
        if not (given.low <= number <= given.high or (given.zero and number == 0)):
            raise EfflabError(
                f"{name} must be {'0 or ' if given.zero else ''}between {show(given.low, unit)} and "
                f"{show(given.high, unit)}, got {typed}."
            )
        if given.integer and number != round(number):
            raise EfflabError(f"{name} must be a whole number, got {typed}.")
        return int(number) if given.integer else number

    def _read(self, text: str, given: Slider, unit: Unit, name: str) -> float:
        """A quantity as typed. A refusal ends with an example that this input takes."""
        size = _SIZE.fullmatch(text.strip()) if given.integer and not unit.symbol else None
        try:
            return parse(size[1], unit, name) * _SIZES[size[2]] if size else parse(text, unit, name)
        except EfflabError as error:
            message, first = str(error), f"{given.default:,}" if given.integer else show(given.default, unit)
            end = f" Write it like '{first}'."
            hint = _HINT.search(message)
            if hint and "plain number" in hint[0]:
                end = f" Write a plain number, such as {first}."
            if hint and hint[0].startswith(" Add"):
                better = f"{text.strip()} {first.rpartition(' ')[2]}"
                fits = given.low <= float(f"{parse(better, unit):.15g}") <= given.high
                end = f" Add one, such as '{better}'." if fits else f" Add one, as in '{first}'."
            raise EfflabError(_HINT.sub(lambda _: end, message)) from None

    def evaluate(self, **state: Any) -> Result:
        """Compute every output.

        Args:
            **state: inputs in place of the defaults; see `state`.

        Raises:
            EfflabError: see `state`.
        """
        full = self.state(**state)
        scope = _Scope(self, full)
        values = {name: scope.value(name) for name in self._drawn()}
        relevant = tuple(n for n in self.table if n in scope.touched)
        for name in self._names():
            value = scope.value(name)
            # A verdict may speak of a slider that does not matter now, such as the size of another kernel.
            idle = name in self.table and name in scope.touched and name not in relevant
            values[name] = None if idle else value
        if scope.problem:
            verdict = scope.problem
        else:
            case, *_ = (c for c in self.verdict if all(_holds(w, values) for w in c.when))
            cautions = (c for c in self.cautions if all(_holds(w, values) for w in c.when))
            said = " ".join(c.text for c in (case, *cautions))
            verdict = PLACEHOLDER.sub(lambda m: self._text(m[1], full, values.get(m[1])), said)
        return Result(self, full, values, relevant, verdict, scope.problem)

    def sweep(self, y: str, x: str, points: Iterable[float], **state: Any) -> list[float | None]:
        """The value `y` for each value of `x`, an input or any value on which `y` depends."""
        full = self.state(**state)
        return [_Scope(self, full, {x: p}).value(y) for p in points]

    def widget(self, **state: Any) -> Any:
        """The calculator as a Jupyter widget: one trait for each input, linkable and observable.

        Raises:
            EfflabError: see `state`.
        """
        from efflab.calculators.widget import widget

        return widget(self, **state)

    def _drawn(self) -> list[str]:
        """Every value that the outputs and the curve need. The inputs behind them are the relevant ones."""
        names = [o.name for o in self.outputs]
        if bits := self.bits:
            names += [bits.value]
        if stack := self.stack:
            names += [*stack.parts, *([stack.capacity] if stack.capacity else [])]
        if curve := self.curve:
            names += [curve.x, *(line.y for line in curve.lines), *(n for pair in curve.at for n in pair)]
            names += [n for m in curve.marks for n in (m.x, m.y) if n]
            names += [n for n in (curve.low, curve.high) if isinstance(n, str)]
        if self.compare:
            names += self.compare.columns
        return list(dict.fromkeys(names))

    def _names(self) -> list[str]:
        """Every value that is shown or spoken of."""
        names = self._drawn()
        cases = [*self.verdict, *self.cautions]
        names += [n for c in cases for left, _, right in c.when for n in (left, right) if isinstance(n, str)]
        texts = [c.text for c in cases]
        if curve := self.curve:
            texts += [curve.describe, curve.slope_label, *(m.label for m in curve.marks)]
        if self.stack:
            texts += [self.stack.describe]
        names += [n for t in texts for n in PLACEHOLDER.findall(t)]
        return list(dict.fromkeys(n for n in names if not isinstance(self.table.get(n), Choice)))

    def _text(self, name: str, state: State, value: float | None, brief: bool = False) -> str:
        """A value as the reader sees it; `brief` where there is little room."""
        given = self.table.get(name)
        if isinstance(given, Choice):
            option = given.table[str(state[name])]
            return option.label or option.name
        if isinstance(given, NumberField):
            return str(state[name])
        computed = self.computed.get(name)
        if value is None:
            return getattr(computed, "absent", "") or "—"
        if isinstance(computed, Ratio) and computed.percent:
            return show(100 * value) + ("%" if math.isfinite(value) else "")
        if isinstance(computed, Output) and computed.words:
            return computed.words[int(value)]
        if getattr(computed, "whole", False) and value < 1e15:
            return f"{math.ceil(value):,}"
        if name in self.exact:
            return binary.exact(value, brief)
        unit = self.units[name]
        text = show(value, unit)
        said = (unit.shown or (unit.symbol,))[0]
        if brief and unit.counted and said in self.label(name).lower():  # "70B" beside "Parameters"
            return text.replace(f" {said}", "")
        return text

    def written(self, name: str, state: State, value: float | None) -> tuple[str, str]:
        """A value among the outputs, and what stands small under it: all digits of one that is given rounded."""
        text, output = self._text(name, state, value), self.computed.get(name)
        if not getattr(output, "rounded", False) or value is None or len(text) <= binary.BRIEF:
            return text, ""
        return f"≈ {show(value)}", f"exactly {text}"

    def head(self, name: str) -> str:
        """What stands over a column of a value: its label, and a unit that all its cells have."""
        unit = self._alone(name)
        return self.label(name) + (f" ({unit})" if unit else "")

    def cell(self, name: str, state: State, value: float | None) -> str:
        """A value in a column, without the unit that its head gives."""
        unit = self._alone(name)
        return self._text(name, state, value, brief=True).replace(f" {unit}" if unit else "", "")

    def _alone(self, name: str) -> str:
        """The unit of a value that is always written with this unit and no prefix; else ""."""
        unit, computed = self.units[name], self.computed.get(name)
        if name in self.exact or getattr(computed, "words", ()) or getattr(computed, "percent", False):
            return ""
        shown = unit.shown[0] if unit.shown else unit.symbol
        return shown if len(unit.prefixes) == 1 and shown != "s" else ""

    def label(self, name: str) -> str:
        """What a value is called: its output's label, else its input's, else its name in words."""
        outputs = {o.name: o.label for o in self.outputs}
        return outputs.get(name) or (self.table[name].label if name in self.table else words(name))


def _holds(condition: tuple[str, str, str | float], values: Mapping[str, float | None]) -> bool:
    left, relation, right = condition
    a, b = values[left], values[right] if isinstance(right, str) else right
    return a is not None and b is not None and _COMPARE[relation](a, b)


def _number(value: Any, name: str) -> float:
    """A number, a numpy scalar among them."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        try:
            value = value.item()
        except (AttributeError, ValueError):
            raise EfflabError(f"{name} must be a number, got {type(value).__name__} {value!r}.") from None
    return float(value)


def _written(value: Any, name: str) -> str:
    """A number as a person would type it; read back, it is the same float64."""
    return repr(_number(value, name)).removesuffix(".0")


def _divided(over: float, under: float) -> float:
    """A quotient as IEEE 754 and JavaScript define it."""
    if under:
        return over / under
    return math.nan if over == 0 or math.isnan(over) else math.copysign(math.inf, over) * math.copysign(1.0, under)


class _Scope:
    """The values of one state, computed when asked for and kept."""

    def __init__(self, calculator: Calculator, state: State, overrides: Mapping[str, float] | None = None) -> None:
        self.calculator, self.state = calculator, state
        self.known: dict[str, Any] = dict(overrides or {})
        self.touched: set[str] = set()
        self.problem: str | None = None

    def value(self, name: str) -> Any:
        if name not in self.known:
            self.known[name] = self._find(name)
        return self.known[name]

    def _find(self, name: str) -> Any:
        calculator = self.calculator
        output = calculator.computed.get(name)
        if isinstance(output, Ratio):
            over, under = self.value(output.over), self.value(output.under)
            return None if over is None or under is None else _divided(over, under)
        if isinstance(output, Sum):
            parts = [self.value(n) for n in (*output.of, *output.minus)]
            if None in parts:
                return None
            total = parts[0]
            for at, part in enumerate(parts[1:], 1):
                total = total + part if at < len(output.of) else total - part
            return total
        if output:
            return self._call(output.formula, output.given)
        for choice in calculator.inputs:
            if not isinstance(choice, Choice):
                continue
            if any(name in o.gives() for o in choice.table.values()):
                self.touched.add(choice.name)
            option = choice.table[str(self.state[choice.name])]
            if name in option.formulas:
                return self._call(option.formulas[name], {})
            if name in option.takes:
                return self.value(option.takes[name])
            if name in option.sets:
                return self._set(choice, option, name)
        self.touched.add(name)
        value = self.state[name]
        return parse(value, REAL, name) if isinstance(calculator.table.get(name), NumberField) else value

    def _call(self, formula: Formula, given: Mapping[str, str | float]) -> Any:
        values = {}
        for parameter in read(formula).where:
            source = given.get(parameter, parameter)
            values[parameter] = self.value(source) if isinstance(source, str) else source
        return None if None in values.values() else formula(**values)

    def _set(self, choice: Choice, option: Option, name: str) -> Any:
        value = option.sets[name]
        if name not in choice.by:
            return value
        by = choice.by[name]
        self.touched.add(by)
        key = str(self.state[by])
        if key not in value:
            other = self.calculator.table[by]
            assert isinstance(other, Choice)
            has = [o for o in other.table.values() if o.name in value]
            order = list(other.table)
            nearest = min(has, key=lambda o: abs(order.index(o.name) - order.index(key)), default=None)
            texts = {
                choice.name: option.label or option.name,
                by: other.table[key].label or key,
                "has": ", ".join(o.label or o.name for o in has),
                "nearest": (nearest.label or nearest.name) if nearest else "none",
            }
            self.problem = self.problem or PLACEHOLDER.sub(lambda m: texts[m[1]], choice.missing[name])
            return None
        return value[key]
