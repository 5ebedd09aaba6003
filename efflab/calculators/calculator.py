"""How a calculator is declared, and how it computes in Python.

A calculator is data: inputs, outputs, a curve and a verdict. Wiring is by name. Each output is a formula; each
of its parameters is found, in this order, as

1. another output of that name (or a formula that the chosen option of a `Choice` provides under that name),
2. a value that the chosen option of a `Choice` sets,
3. a `Slider` or a `Choice` of that name.

The front end does the same in JavaScript, from the declaration as JSON and the traced formulas. Everything is
checked when the declaration is made, so a mistake shows at import and not in a reader's browser.
"""

from __future__ import annotations

import itertools
import math
import operator
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any, Literal

from efflab.errors import EfflabError, unknown
from efflab.formulas import reading
from efflab.units import NUMBER, Unit, parse, show

if TYPE_CHECKING:
    from efflab.records import Prediction

Formula = Callable[..., Any]
read = cache(reading.read)
State = dict[str, float | str]

RELATIONS: dict[str, Callable[[float, float], bool]] = {
    "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge, "==": operator.eq,
}  # fmt: skip
_DECADE = ("1", "1.2", "1.5", "2", "2.5", "3", "4", "5", "6", "8")
_NAME = re.compile(r"[a-z][a-z0-9_]*")
_PLACEHOLDER = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True)
class Slider:
    """A numeric input.

    Attributes:
        name: the formula parameter that it feeds.
        low, high: the range, in the parameter's base unit.
        default: its value at first.
        scale: how the stops of the slider are spread. "log2" has 2^k and 1.5 × 2^k, as sizes are chosen.
            The number field beside the slider takes any value in the range.
        label: what the reader sees; the name in words if empty.
        help: one short phrase under the label.
        integer: only whole numbers.
        zero: zero is allowed too, below `low` (a logarithmic scale has no zero).
        steps: how many steps a linear scale has.
        unit: checked against the formulas where given; taken from them otherwise.
    """

    name: str
    low: float
    high: float
    default: float
    scale: Literal["linear", "log", "log2"] = "linear"
    label: str = ""
    help: str = ""
    integer: bool = False
    zero: bool = False
    steps: int = 50
    unit: Unit | None = None

    def stops(self) -> list[float]:
        """The values at which the slider stops, rising, with `low`, `high` and the default among them."""
        if self.scale == "linear":
            found = [self.low + (self.high - self.low) * i / self.steps for i in range(self.steps + 1)]
        elif self.scale == "log":
            decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            found = [float(f"{m}e{e}") for e in decades for m in _DECADE]
        else:
            octaves = range(math.floor(math.log2(self.low)), math.ceil(math.log2(self.high)) + 1)
            found = [m * 2.0**e for e in octaves for m in (1.0, 1.5)]
        if self.integer:
            found = [float(round(v)) for v in found if self.scale == "linear" or v == round(v)]
        kept = {v for v in found if self.low <= v <= self.high} | {float(self.low), float(self.high)}
        return sorted(kept | {float(self.default)} | ({0.0} if self.zero else set()))


@dataclass(frozen=True)
class Option:
    """One option of a `Choice`.

    Attributes:
        name: how state, links and Python call it.
        label: what the reader sees; the name if empty.
        sets: value names that it sets. A mapping in place of a value is looked up by the option of another
            choice: see `Choice.by`.
        formulas: value names that it computes, each with a formula.
        group: the heading under which the option is listed.
    """

    name: str
    label: str = ""
    sets: Mapping[str, Any] = field(default_factory=dict)
    formulas: Mapping[str, Formula] = field(default_factory=dict)
    group: str = ""


@dataclass(frozen=True)
class Choice:
    """An input with named options.

    Attributes:
        name: a formula parameter with a Literal of these options, or any other name.
        options: texts, or `Option` where an option sets values or provides formulas.
        default: the name of the option chosen at first.
        by: value name to the name of the choice that the values set under that name are looked up by.
        missing: the sentence for a look-up that finds nothing. `{has}` lists what there is.
        shared: calculators on one page can be linked by this input.
    """

    name: str
    options: Sequence[str | Option]
    default: str
    label: str = ""
    help: str = ""
    by: Mapping[str, str] = field(default_factory=dict)
    missing: str = ""
    shared: bool = False

    @cached_property
    def table(self) -> dict[str, Option]:
        """The options by name."""
        options = [o if isinstance(o, Option) else Option(o) for o in self.options]
        return {o.name: o for o in options}


@dataclass(frozen=True)
class Output:
    """A value computed by a formula.

    Attributes:
        formula: the formula.
        name: the value's name; the formula's own if empty.
        label: what the reader sees; the name in words if empty.
        given: formula parameter to the name it takes its value from, where that is another name, or to a number.
        shown: listed among the outputs. Other values serve the verdict and the curve only.
    """

    formula: Formula
    name: str = ""
    label: str = ""
    given: Mapping[str, str | float] = field(default_factory=dict)
    shown: bool = True


@dataclass(frozen=True)
class Ratio:
    """A value divided by another: a share, a factor, a rate.

    Attributes:
        name: the value's name.
        over, under: names of the two values.
        unit: unit of the result.
        percent: written as a percentage.
    """

    name: str
    over: str
    under: str
    label: str = ""
    unit: Unit = NUMBER
    percent: bool = False
    shown: bool = True


@dataclass(frozen=True)
class Case:
    """One case of a verdict: a sentence, and when it holds.

    Attributes:
        text: the sentence; `{name}` is replaced by that value with its unit.
        when: conditions that must all hold, each (name, relation, name or number). None: always.
    """

    text: str
    when: Sequence[tuple[str, str, str | float]] = ()


@dataclass(frozen=True)
class Line:
    """One line of a curve: the value `y` over the swept input. A faint line is context, drawn thin."""

    y: str
    label: str = ""
    faint: bool = False


@dataclass(frozen=True)
class Mark:
    """A labelled vertical line where the x axis has the value `x`; `y` also marks the point on it."""

    x: str
    label: str
    y: str = ""


@dataclass(frozen=True)
class Run:
    """The points of one recorded run, laid over a curve.

    Attributes:
        label: device and date.
        option: (choice, option) for which the points belong on the drawing from the start, such as
            ("accelerator", "H200 SXM"); None if there is none.
        points: (x, y, title) in base units.
    """

    label: str
    option: tuple[str, str] | None
    points: Sequence[tuple[float, float, str]]


@dataclass(frozen=True)
class Curve:
    """A drawing: one value swept, others over it.

    Attributes:
        x: the name swept, an input or any value that the lines depend on.
        lines: what is drawn over it.
        low, high: the swept range; the slider's where `x` is a slider. It grows to hold the current point.
        scale: of the x axis and the y axis.
        at: the current points, (x name, y name).
        at_label: what the legend calls them.
        marks: labelled verticals.
        vary: name of a choice: the first line is drawn faintly for its other options too.
        slope_label: text along the first line's rising part.
        x_label, y_label: axis titles, without unit.
        describe: text alternative; `{name}` is replaced.
        runs: returns the recorded runs. Called when the calculator is shown, not when it is declared.
    """

    x: str
    lines: Sequence[Line]
    describe: str
    low: float | None = None
    high: float | None = None
    scale: Literal["log-log", "linear-linear", "log-linear", "linear-log"] = "log-log"
    at: Sequence[tuple[str, str]] = ()
    at_label: str = "this case"
    marks: Sequence[Mark] = ()
    vary: str = ""
    slope_label: str = ""
    x_label: str = ""
    y_label: str = ""
    runs: Callable[[], Sequence[Run]] | None = None


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
        """The shown outputs that have a value: {name: {"value": number, "unit": symbol}}."""
        return {
            o.name: {"value": self.values[o.name], "unit": self.calculator.units[o.name].symbol}
            for o in self.calculator.outputs
            if o.shown and self.values[o.name] is not None
        }


def words(name: str) -> str:
    """A name as a label: "memory_bandwidth" becomes "Memory bandwidth"."""
    text = name.replace("_", " ")
    return text[:1].upper() + text[1:]


@dataclass(frozen=True, eq=False)
class Calculator:
    """A calculator, declared.

    Attributes:
        name: how pages and links call it: lower case, words joined by hyphens.
        title: the question that it answers.
        topic: the chapter's topic word.
        inputs: sliders and choices, in the order shown. Only those that matter in a state are shown in it.
        outputs: formulas and ratios, in the order shown. A bare formula stands for `Output(formula)`.
        verdict: cases; the first that holds is the verdict. The last must hold always.
        curve: the drawing, or None.
        intro: one or two sentences under the title.
        note: what the numbers leave out, under the drawing.

    Raises:
        EfflabError: the declaration is wrong; names the calculator, the field and the mend.
    """

    name: str
    title: str
    topic: str
    inputs: Sequence[Slider | Choice]
    outputs: Sequence[Any]
    verdict: Sequence[Case]
    curve: Curve | None = None
    intro: str = ""
    note: str = ""
    units: dict[str, Unit] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        _Declaration(self).check()

    def __repr__(self) -> str:
        return f"<calculator {self.name}: {self.title}>"

    @cached_property
    def table(self) -> dict[str, Slider | Choice]:
        """The inputs by name."""
        return {i.name: i for i in self.inputs}

    @cached_property
    def computed(self) -> dict[str, Output | Ratio]:
        """The outputs by name."""
        return {o.name: o for o in self.outputs}

    @cached_property
    def readings(self) -> dict[str, tuple[Formula, reading.Reading]]:
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
        unit = self.units[name]
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            try:  # a numpy scalar
                value = value.item()
            except (AttributeError, ValueError):
                raise EfflabError(f"{name} must be a number, got {type(value).__name__} {value!r}.") from None
        number = parse(value, unit, name) if isinstance(value, str) else float(value)
        if not math.isfinite(number):
            raise EfflabError(f"{name} must be a finite number, got {value!r}.")
        if not (given.low <= number <= given.high or (given.zero and number == 0)):
            raise EfflabError(
                f"{name} must be {'0 or ' if given.zero else ''}between {show(given.low, unit)} and "
                f"{show(given.high, unit)}, got {show(number, unit)}."
            )
        if given.integer and number != round(number):
            raise EfflabError(f"{name} must be a whole number, got {show(number, unit)}.")
        return int(number) if given.integer else number

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
            # A verdict may speak of an input that does not matter now, such as the size of another kernel.
            matters = name in values or name not in self.table or name in relevant
            values[name] = scope.value(name) if matters else None
        if scope.problem:
            verdict = scope.problem
        else:
            case = next(c for c in self.verdict if all(_holds(w, values) for w in c.when))
            verdict = _PLACEHOLDER.sub(lambda m: self._text(m[1], full, values.get(m[1])), case.text)
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
        if curve := self.curve:
            names += [curve.x, *(line.y for line in curve.lines), *(n for pair in curve.at for n in pair)]
            names += [n for m in curve.marks for n in (m.x, m.y) if n]
        return list(dict.fromkeys(names))

    def _names(self) -> list[str]:
        """Every value that is shown or spoken of."""
        names = self._drawn()
        names += [n for c in self.verdict for left, _, right in c.when for n in (left, right) if isinstance(n, str)]
        texts = [c.text for c in self.verdict]
        if curve := self.curve:
            texts += [curve.describe, curve.slope_label, *(m.label for m in curve.marks)]
        names += [n for t in texts for n in _PLACEHOLDER.findall(t)]
        return list(dict.fromkeys(n for n in names if not isinstance(self.table.get(n), Choice)))

    def _text(self, name: str, state: State, value: float | None) -> str:
        given = self.table.get(name)
        if isinstance(given, Choice):
            option = given.table[str(state[name])]
            return option.label or option.name
        if value is None:
            return "—"
        computed = self.computed.get(name)
        if isinstance(computed, Ratio) and computed.percent:
            return show(100 * value) + "%"
        return show(value, self.units[name])


def _holds(condition: tuple[str, str, str | float], values: Mapping[str, float | None]) -> bool:
    left, relation, right = condition
    a, b = values[left], values[right] if isinstance(right, str) else right
    return a is not None and b is not None and RELATIONS[relation](a, b)


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
            return None if over is None or under is None else over / under
        if output:
            return self._call(output.formula, output.given)
        for choice in calculator.inputs:
            if not isinstance(choice, Choice):
                continue
            if any(name in o.sets or name in o.formulas for o in choice.table.values()):
                self.touched.add(choice.name)
            option = choice.table[str(self.state[choice.name])]
            if name in option.formulas:
                return self._call(option.formulas[name], {})
            if name in option.sets:
                return self._set(choice, option, name)
        self.touched.add(name)
        return self.state[name]

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
            texts = {
                choice.name: option.label or option.name,
                by: other.table[key].label or key,
                "has": ", ".join(o.label or o.name for o in other.table.values() if o.name in value),
            }
            self.problem = self.problem or _PLACEHOLDER.sub(lambda m: texts[m[1]], choice.missing)
            return None
        return value[key]


class _Declaration:
    """The checks of a declaration, and the units that follow from it."""

    def __init__(self, calculator: Calculator) -> None:
        self.calculator = calculator

    def fail(self, message: str) -> EfflabError:
        return EfflabError(f"calculator {self.calculator.name}: {message}")

    def check(self) -> None:
        calculator = self.calculator
        if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", calculator.name):
            raise EfflabError(f"calculator {calculator.name!r}: write its name in lower case, with hyphens.")
        self._name_outputs()
        self._check_names()
        for given in calculator.inputs:
            (self._check_choice if isinstance(given, Choice) else self._check_slider)(given)
        self._collect_units()
        for given in calculator.inputs:
            if isinstance(given, Slider):
                self._check_slider_unit(given)
        self._check_verdict()
        self._check_curve()
        self._check_wiring()

    def _name_outputs(self) -> None:
        outputs = []
        for output in self.calculator.outputs:
            if getattr(output, "is_formula", False):
                output = Output(output)
            if not isinstance(output, Output | Ratio):
                raise self.fail(f"outputs: {output!r} is neither a formula nor an Output nor a Ratio.")
            if isinstance(output, Output) and not getattr(output.formula, "is_formula", False):
                raise self.fail(f"outputs: {output.formula!r} is not a formula. Decorate it with @formula.")
            name = output.name or output.formula.__name__  # type: ignore[union-attr]
            outputs.append(_replaced(output, name=name, label=output.label or words(name)))
        inputs = [_replaced(i, label=i.label or words(i.name)) for i in self.calculator.inputs]
        object.__setattr__(self.calculator, "outputs", tuple(outputs))
        object.__setattr__(self.calculator, "inputs", tuple(inputs))

    def _check_names(self) -> None:
        for what, items in (("inputs", self.calculator.inputs), ("outputs", self.calculator.outputs)):
            names = [i.name for i in items]
            for name in names:
                if not _NAME.fullmatch(name):
                    raise self.fail(f"{what}: {name!r} is not a lower-case Python name.")
                if names.count(name) > 1:
                    raise self.fail(f"{what}: {name!r} is declared twice.")
        for name in self.calculator.computed:
            if name in self.calculator.table:
                raise self.fail(f"{name!r} is both an input and an output. Rename one.")

    def _check_slider(self, slider: Slider) -> None:
        label = f"slider {slider.name}"
        numbers = {"low": slider.low, "high": slider.high, "default": slider.default}
        for name, value in numbers.items():
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                raise self.fail(f"{label}: {name} must be a finite number, got {value!r}.")
            if slider.integer and value != round(value):
                raise self.fail(f"{label}: {name} must be a whole number, got {value!r}.")
        if not slider.low < slider.high:
            raise self.fail(f"{label}: low ({slider.low}) must be less than high ({slider.high}).")
        if slider.scale not in ("linear", "log", "log2"):
            raise self.fail(f"{label}: scale must be 'linear', 'log' or 'log2', got {slider.scale!r}.")
        if slider.scale != "linear" and slider.low <= 0:
            raise self.fail(f"{label}: a {slider.scale} scale needs low > 0. Use zero=True to allow zero as well.")
        if not (slider.low <= slider.default <= slider.high or (slider.zero and slider.default == 0)):
            raise self.fail(
                f"{label}: the default {slider.default} is outside {slider.low} to {slider.high}. "
                "Change the default or the range."
            )

    def _check_choice(self, choice: Choice) -> None:
        label = f"choice {choice.name}"
        if len(choice.table) != len(choice.options) or not choice.options:
            raise self.fail(f"{label}: it needs options, each with a name of its own.")
        if choice.default not in choice.table:
            raise self.fail(str(unknown(f"{label}: default", choice.default, choice.table)))
        for option in choice.table.values():
            for name, formula in option.formulas.items():
                if not getattr(formula, "is_formula", False):
                    raise self.fail(f"{label}: option {option.name!r}: {name} is not a formula.")
                if name in self.calculator.computed:
                    raise self.fail(f"{label}: option {option.name!r} computes {name!r}, which is also an output.")
            for name in option.sets:
                if name in self.calculator.computed:
                    raise self.fail(f"{label}: option {option.name!r} sets {name!r}, which is also an output.")
        for name, by in choice.by.items():
            other = self.calculator.table.get(by)
            if not isinstance(other, Choice):
                raise self.fail(f"{label}: by[{name!r}] is {by!r}, which is not a choice of this calculator.")
            if not choice.missing:
                raise self.fail(f"{label}: with by it needs missing, the sentence for a look-up that finds nothing.")
            allowed = (choice.name, by, "has")
            for used in _PLACEHOLDER.findall(choice.missing):
                if used not in allowed:
                    raise self.fail(str(unknown(f"{label}: missing: placeholder", used, allowed)))

    def _collect_units(self) -> None:
        """A name has the unit of the formulas that make it and take it, and they must agree."""
        calculator, units = self.calculator, self.calculator.units

        def note(name: str, unit: Unit, where: str) -> None:
            before = units.setdefault(name, unit)
            if before.symbol != unit.symbol:
                raise self.fail(f"{name!r} is {before.symbol or 'a number'} and, in {where}, {unit.symbol or 'a number'}.")
            if unit.positive:
                units[name] = unit

        for choice in calculator.inputs:
            for option in choice.table.values() if isinstance(choice, Choice) else ():
                for name, formula in option.formulas.items():
                    says = read(formula)
                    note(name, says.unit, says.name)
                    for parameter, unit in says.units.items():
                        note(parameter, unit, says.name)
        for output in calculator.outputs:
            if isinstance(output, Ratio):
                units[output.name] = output.unit
                continue
            says = read(output.formula)
            note(output.name, says.unit, says.name)
            for parameter in output.given:
                if parameter not in says.where:
                    raise self.fail(str(unknown(f"output {output.name}: given: parameter", parameter, says.where)))
            for parameter, unit in says.units.items():
                source = output.given.get(parameter, parameter)
                if isinstance(source, str):
                    note(source, unit, says.name)

    def _check_slider_unit(self, slider: Slider) -> None:
        unit = self.calculator.units.get(slider.name)
        if unit is None:
            raise self.fail(f"slider {slider.name}: no formula takes a number of this name.")
        if slider.unit is not None and slider.unit.symbol != unit.symbol:
            raise self.fail(f"slider {slider.name}: its unit is {slider.unit.symbol!r}, the formula's {unit.symbol!r}.")
        if unit.positive and (slider.low <= 0 or slider.zero):
            raise self.fail(f"slider {slider.name}: the formula needs more than zero. Raise low.")
        if slider.low < 0:
            raise self.fail(f"slider {slider.name}: the formula takes no negative number. Raise low.")

    def _known(self) -> set[str]:
        """Every name that some state gives a value."""
        calculator = self.calculator
        names = set(calculator.computed) | set(calculator.table)
        for choice in calculator.inputs:
            for option in choice.table.values() if isinstance(choice, Choice) else ():
                names |= set(option.sets) | set(option.formulas)
        return names

    def _check_text(self, where: str, text: str) -> None:
        known = self._known()
        for name in _PLACEHOLDER.findall(text):
            if name not in known:
                raise self.fail(str(unknown(f"{where}: placeholder", name, sorted(known))))

    def _check_verdict(self) -> None:
        cases = self.calculator.verdict
        if not cases or cases[-1].when:
            raise self.fail("verdict: the last case must hold always. Add a Case without conditions.")
        known = self._known()
        for case in cases:
            self._check_text("verdict", case.text)
            for left, relation, right in case.when:
                if relation not in RELATIONS:
                    raise self.fail(str(unknown("verdict: relation", relation, RELATIONS)))
                for name in (left, right):
                    if isinstance(name, str) and name not in known:
                        raise self.fail(str(unknown("verdict: name", name, sorted(known))))

    def _check_curve(self) -> None:
        curve = self.calculator.curve
        if curve is None:
            return
        known = self._known()
        if not curve.lines:
            raise self.fail("curve: it needs at least one line.")
        names = [curve.x, *(line.y for line in curve.lines), *(n for pair in curve.at for n in pair)]
        names += [n for m in curve.marks for n in (m.x, m.y) if n]
        for name in names:
            if name not in known:
                raise self.fail(str(unknown("curve: name", name, sorted(known))))
        for text in (curve.describe, curve.slope_label, *(m.label for m in curve.marks)):
            self._check_text("curve", text)
        if curve.vary and not isinstance(self.calculator.table.get(curve.vary), Choice):
            raise self.fail(f"curve: vary is {curve.vary!r}, which is not a choice of this calculator.")
        swept = self.calculator.table.get(curve.x)
        if (curve.low is None or curve.high is None) and not isinstance(swept, Slider):
            raise self.fail(f"curve: {curve.x!r} is not a slider, so low and high must be given.")
        low = curve.low if curve.low is not None else swept.low  # type: ignore[union-attr]
        if curve.scale.startswith("log") and low <= 0:
            raise self.fail("curve: a log scale needs low > 0.")

    def _check_wiring(self) -> None:
        """Walk from every shown value to the inputs, for each way in which the options can wire it."""
        choices = [c for c in self.calculator.inputs if isinstance(c, Choice)]
        ways = []
        for choice in choices:
            different = {}
            for option in choice.table.values():
                different.setdefault((tuple(option.sets), tuple(option.formulas.items())), option)
            ways.append(list(different.values()))
        for combination in itertools.product(*ways):
            self._walk(dict(zip((c.name for c in choices), combination, strict=True)))

    def _walk(self, chosen: Mapping[str, Option]) -> None:
        calculator = self.calculator
        done: set[str] = set()

        def visit(name: str, path: tuple[str, ...]) -> None:
            if name in path:
                raise self.fail(f"{' needs '.join((*path[path.index(name) :], name))}: a cycle. Break it.")
            if name in done:
                return
            path = (*path, name)
            output = calculator.computed.get(name)
            given: Mapping[str, str | float] = {}
            if isinstance(output, Ratio):
                for part in (output.over, output.under):
                    visit(part, path)
                return
            formula = output.formula if output else None
            if output:
                given = output.given
            else:
                formula = next((o.formulas[name] for o in chosen.values() if name in o.formulas), None)
            if formula:
                for parameter in read(formula).where:
                    source = given.get(parameter, parameter)
                    if isinstance(source, str):
                        visit(source, path)
            elif not any(name in o.sets for o in chosen.values()) and name not in calculator.table:
                wanted = f" (needed by {path[-2]})" if len(path) > 1 else ""
                state = ", ".join(f"{c} {o.name!r}" for c, o in chosen.items())
                where = f" with {state}" if state else ""
                raise self.fail(
                    f"nothing gives {name!r} a value{wanted}{where}. "
                    f"{unknown('name', name, sorted(self._known()))} Add an input or an output of this name."
                )
            done.add(name)

        for name in calculator._names():
            visit(name, ())


def _replaced(item: Any, **changes: Any) -> Any:
    import dataclasses

    return dataclasses.replace(item, **changes)
