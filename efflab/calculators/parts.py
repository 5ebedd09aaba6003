"""What a calculator is declared with: inputs, outputs, a verdict, a curve."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from typing import Any, Literal

from efflab.formulas import reading
from efflab.units import NUMBER, Unit

Formula = Callable[..., Any]
read = cache(reading.read)

RELATIONS = ("<", "<=", ">", ">=", "==", "no multiple of")
PLACEHOLDER = re.compile(r"\{(\w+)\}")
_DECADE = ("1", "1.2", "1.5", "2", "2.5", "3", "4", "5", "6", "8")


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
        per: base units in the unit that the stops are round in, where that is another: 86400 for days.
        unit: checked against the formulas where given; taken from them otherwise.
        group: heading over the inputs of that group, shown above the first of them that is shown.
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
    per: float = 1.0
    unit: Unit | None = None
    group: str = ""

    def stops(self) -> list[float]:
        """The values at which the slider stops, rising, with `low`, `high` and the default among them."""
        low, high = self.low / self.per, self.high / self.per
        if self.scale == "linear":
            found = [low + (high - low) * i / self.steps for i in range(self.steps + 1)]
        elif self.scale == "log":
            decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
            ladder = _DECADE if len(decades) < 12 else ("1", "2", "5")
            found = [float(f"{m}e{e}") for e in decades for m in ladder]
        else:
            octaves = range(math.floor(math.log2(low)), math.ceil(math.log2(high)) + 1)
            found = [m * 2.0**e for e in octaves for m in (1.0, 1.5)]
        if self.integer:
            found = [float(math.floor(v + 0.5)) for v in found if self.scale == "linear" or v == round(v)]
        ends = {float(self.low), float(self.high), float(self.default)} | ({0.0} if self.zero else set())
        within = (v * self.per for v in found if low < v < high)
        return sorted(ends | {v for v in within if not any(math.isclose(v, e) for e in ends)})


@dataclass(frozen=True)
class NumberField:
    """A number that is typed: any real number, an infinity or NaN, as "0.1", "2^-24", "1/3", "-inf" or "nan".

    Its state is the text as typed, so that links, predictions and the field itself show what was meant. Its value is
    the nearest float64; see `efflab.calculators.binary.real`.

    Attributes:
        name: the formula parameter that it feeds, of unit Real.
        default: the text at first.
        label, help, group: as a slider's.
    """

    name: str
    default: str
    label: str = ""
    help: str = ""
    group: str = ""


@dataclass(frozen=True)
class Option:
    """One option of a `Choice`.

    Attributes:
        name: how state, links and Python call it.
        label: what the reader sees; the name if empty.
        sets: value names that it sets. A mapping in place of a value is looked up by the option of another
            choice: see `Choice.by`.
        formulas: value names that it computes, each with a formula.
        takes: value names that it takes from another value, each with that value's name, such as a slider's.
        group: the heading under which the option is listed.
    """

    name: str
    label: str = ""
    sets: Mapping[str, Any] = field(default_factory=dict)
    formulas: Mapping[str, Formula] = field(default_factory=dict)
    takes: Mapping[str, str] = field(default_factory=dict)
    group: str = ""

    def gives(self) -> list[str]:
        """Every value name that it gives a value, one way or another."""
        return [*self.sets, *self.formulas, *self.takes]


@dataclass(frozen=True)
class Choice:
    """An input with named options.

    Attributes:
        name: a formula parameter with a Literal of these options, or any other name.
        options: texts, or `Option` where an option sets values or provides formulas.
        default: the name of the option chosen at first.
        by: value name to the name of the choice that the values set under that name are looked up by.
        missing: for each such name the sentence for a look-up that finds nothing. `{has}` lists what there is and
            `{nearest}` is the nearest of it in the other choice's order.
        shared: calculators on one page can be linked by this input.
        only_found: an option for which a look-up by this choice finds nothing cannot be chosen and has no row in a
            table. A link may still hold one, or another choice leave it behind: `missing` then says so.
        group: as a slider's.
    """

    name: str
    options: Sequence[str | Option]
    default: str
    label: str = ""
    help: str = ""
    by: Mapping[str, str] = field(default_factory=dict)
    missing: Mapping[str, str] = field(default_factory=dict)
    shared: bool = False
    only_found: bool = False
    group: str = ""

    @cached_property
    def table(self) -> dict[str, Option]:
        """The options by name."""
        options = [o if isinstance(o, Option) else Option(o) for o in self.options]
        return {o.name: o for o in options}


Input = Slider | NumberField | Choice


def whole(name: str, high: float, default: float, label: str, help: str = "") -> Slider:
    """A whole number from 1 to `high`, stopping where sizes and counts are chosen: at 2^k and 1.5 × 2^k."""
    return Slider(name, 1, high, default=default, scale="log2", integer=True, label=label, help=help)


def grouped(group: str, *inputs: Input) -> list[Input]:
    """These inputs under one heading."""
    return [replace(i, group=group) for i in inputs]


@dataclass(frozen=True)
class Output:
    """A value computed by a formula.

    Attributes:
        formula: the formula.
        name: the value's name; the formula's own if empty.
        label: what the reader sees; the name in words if empty.
        given: formula parameter to the name it takes its value from, where that is another name, or to a number.
        shown: listed among the outputs. Other values serve the verdict and the drawings only.
        exact: written exactly, for a number of a binary format: all its decimals, or m × 2^e where they are many.
        words: what the value is called, where it is an index into these.
        whole: written as the next whole number, with all its digits: how many devices are needed.
        absent: what is written where it has no value, and why; a dash if empty.
    """

    formula: Formula
    name: str = ""
    label: str = ""
    given: Mapping[str, str | float] = field(default_factory=dict)
    shown: bool = True
    exact: bool = False
    words: Sequence[str] = ()
    whole: bool = False
    absent: str = ""


@dataclass(frozen=True)
class Ratio:
    """A value divided by another: a share, a factor, a rate.

    Attributes:
        name: the value's name.
        over, under: names of the two values.
        unit: unit of the result.
        percent: written as a percentage.
        whole: as an output's.
    """

    name: str
    over: str
    under: str
    label: str = ""
    unit: Unit = NUMBER
    percent: bool = False
    shown: bool = True
    whole: bool = False


@dataclass(frozen=True)
class Sum:
    """What some values add up to, less others: a total, what is left of a capacity.

    Attributes:
        name: the value's name.
        of: names of what is added; all of one unit, which is the sum's.
        minus: names of what is taken away.
        exact: as an output's.
        rounded: with `exact`: what is exact stands small under its first digits.
    """

    name: str
    of: Sequence[str]
    minus: Sequence[str] = ()
    label: str = ""
    shown: bool = True
    exact: bool = False
    rounded: bool = False


@dataclass(frozen=True)
class Value:
    """A value listed among the outputs that an option of a choice provides. `exact`: as an output's."""

    name: str
    label: str = ""
    shown: bool = True
    exact: bool = False


@dataclass(frozen=True)
class Case:
    """One case of a verdict, or one caution: a sentence, and when it holds.

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
    """A labelled vertical line where the x axis has the value `x`.

    The line ends at the value `y`, where there is one; `dot` draws a ring there, such as at a minimum.
    """

    x: str
    label: str
    y: str = ""
    dot: bool = False


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
        low, high: the swept range, numbers or names of values; the slider's where `x` is a slider. It grows to hold
            the current point.
        scale: of the x axis and the y axis.
        at: the current points, (x name, y name).
        at_label: what the legend calls them.
        marks: labelled verticals.
        vary: name of a choice: the first line is drawn faintly for its other options too.
        beside: the lines' labels stand right of the plot, each at its line's end, for lines that cross or lie close.
        slope_label: text along the first line's rising part.
        x_label, y_label: axis titles, without unit.
        from_zero: a linear y axis starts at zero; False lets it start near the lowest value.
        y_high: where the y axis ends if lines go beyond, so that a steep part does not flatten the rest. It grows to
            hold the current points, the marked ones and the recorded runs.
        describe: text alternative; `{name}` is replaced.
        runs: returns the recorded runs. Called when the calculator is shown, not when it is declared.
    """

    x: str
    lines: Sequence[Line]
    describe: str
    low: float | str | None = None
    high: float | str | None = None
    scale: Literal["log-log", "linear-linear", "log-linear", "linear-log"] = "log-log"
    at: Sequence[tuple[str, str]] = ()
    at_label: str = "this case"
    marks: Sequence[Mark] = ()
    vary: str = ""
    beside: bool = False
    slope_label: str = ""
    x_label: str = ""
    y_label: str = ""
    from_zero: bool = True
    y_high: float | None = None
    runs: Callable[[], Sequence[Run]] | None = None


@dataclass(frozen=True)
class Stack:
    """Values that add up, drawn as one horizontal bar against what they must fit into, and listed with their shares.

    Attributes:
        parts: names of the values, in the order drawn; all of one unit. Each is called what its output's label says.
            One that is zero or has no value is left out of the bar.
        capacity: name of the value that they must fit into; "" if there is none.
        label: what the parts make up together.
        describe: text alternative; `{name}` is replaced.
        capacity_label: what the capacity is called; its output's or input's label if empty.
        vary: name of a choice: one bar for each of its options, the chosen one marked.
    """

    parts: Sequence[str]
    describe: str
    capacity: str = ""
    label: str = ""
    capacity_label: str = ""
    vary: str = ""


@dataclass(frozen=True)
class Table:
    """A value for each option of a choice, one row each. The chosen one is marked; another can be chosen in its row.

    Attributes:
        vary: name of the choice.
        columns: names of the values, headed by their labels.
        label: what the table shows, for a screen reader and as its caption.
    """

    vary: str
    columns: Sequence[str]
    label: str


@dataclass(frozen=True)
class Bits:
    """A number of a binary format as its bits: sign, exponent, mantissa.

    Attributes:
        value: name of the number, which the format can hold.
        exponent_bits, mantissa_bits, flavour: names of what defines the format; see `efflab.formulas.precision`.
        label: what is shown.
    """

    value: str
    label: str
    exponent_bits: str = "exponent_bits"
    mantissa_bits: str = "mantissa_bits"
    flavour: str = "flavour"
