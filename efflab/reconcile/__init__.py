"""Prediction against measurement. Here, and nowhere else, the two meet.

One module per topic, which offers what `Topic` lists. The lab, the lab book, the plots, the site and the command
line use nothing else of a topic. What every topic needs is here.
"""

from __future__ import annotations

import dataclasses
import importlib
import math
import pkgutil
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from efflab import catalog, records
from efflab.catalog.energy import LOADS
from efflab.errors import EfflabError, unknown
from efflab.formulas import energy as formulas
from efflab.records import DOUBTS as DOUBTS
from efflab.records import Prediction, Record, Sample, iqr, median
from efflab.units import JOULE, SECOND, WATT, Unit, show

NOTHING = "The record does not explain it."
NEAR = 1.25  # measured and predicted within this factor count as agreeing
UNSTEADY = 0.25  # a middle half that spans more of the median than this is said
LARGEST = 2**62  # no size, no count of bytes
OPEN = 0.5  # a call's energy that the counter's period leaves open by a larger share is not shown
SHARES = ("gain", "share")  # metrics that are shares of one, read and shown in percent
PERCENT = (*SHARES, "efficiency")  # shown in percent; an efficiency may be one and more
CALIBRATED = "calibration-"  # begins the name of a prediction's output that is about no case but the calibration

Point = dict[str, Any]


class Row(Protocol):
    """One case, predicted and measured: one number."""

    @property
    def case(self) -> str:
        """Its name."""

    @property
    def metric(self) -> str:
        """What the number is, as the sample calls it: "time", "loss", "memory"."""

    @property
    def unit(self) -> Unit:
        """The unit of `predicted` and `measured`, which are in base units."""

    @property
    def predicted(self) -> float:
        """What the formulas give."""

    @property
    def measured(self) -> float:
        """The median of the repeats."""

    @property
    def ratio(self) -> float:
        """Measured over predicted."""

    @property
    def error(self) -> float:
        """(predicted - measured) / measured."""

    @property
    def regime(self) -> str:
        """Which of the topic's LIMITS holds, "" where the topic has none."""

    @property
    def explanation(self) -> str:
        """Why the two part: what the record holds, and what it is consistent with."""


class Topic(Protocol):
    """What efflab/reconcile/<topic>.py offers at its top level.

    A function that reads a record's samples raises `EfflabError` for a record of another topic and for a damaged one;
    the message names the record, the sample and the field.
    """

    LIMITS: tuple[str, ...]
    """What can limit a case, in the order in which a prediction's "<case>.limiting_factor" numbers them. May be ()."""

    CALIBRATION: dict[str, tuple[str, Unit]]
    """What the formulas take from the measurement (a device's ceilings, a fitted constant), which a learner may predict
    before measuring: name to (quantity, unit). May be {}."""

    BASE: tuple[str, ...]
    """Calibration cases on which every prediction rests: where one was disturbed, the run says little. May be ()."""

    PICTURES: tuple[str, ...]
    """Functions of efflab.plots.<topic>, or of efflab.plots, that draw its records; the first has the topic's name."""

    DRAWN: tuple[str, ...]
    """The roles of `points` that the picture `errors` draws."""

    def scatters(self, record: Record, case: str) -> bool:
        """The times of a case scatter on a quiet machine too: their spread does not speak against this run.
        `efflab.reconcile.scatters` suits most."""

    def calibrates(self, record: Record, case: str) -> bool:
        """Predictions of this record are built from what was measured of a case. `efflab.reconcile.calibrates` suits
        most."""

    def banner(self, record: Record) -> str:
        """Where and when it was recorded, and whether that was here. `efflab.reconcile.banner` suits most."""

    def cases(self, points: Iterable[Point]) -> dict[str, Point]:
        """Of these points, the ones that a learner can predict, by case name."""

    def describe(self, cases: Mapping[str, Point], names: Sequence[str] = ()) -> str:
        """A table of what the named cases are; of the topic's choice of them if none is named."""

    def points(self, record: Record, roles: tuple[str, ...] = ...) -> Sequence[Row]:
        """Every measured case with its prediction, in the order measured. `roles` narrows them as the topic says."""

    def missing(self, record: Record) -> list[str]:
        """One sentence for every case without a result; it begins with the case's name."""

    def summary(self, record: Record) -> str:
        """Median and worst error in words, and why."""

    def table(self, record: Record) -> tuple[list[str], list[list[str]], tuple[int, ...]]:
        """Head, rows of text (the last column explains) and the indices of numeric columns.

        `with_energy` adds the column of what a call took.
        """

    def text(self, record: Record) -> str:
        """Everything in plain text, the same for the same record, but `energy_text`, which follows it everywhere."""

    def calibration_text(self, record: Record) -> str:
        """What of the record the predictions are built from, in words. It gives away no case's result."""

    def calibration(self, record: Record) -> dict[str, float]:
        """The measured value of each of CALIBRATION, where there is one."""

    def evidence(self, record: Record, case: str) -> str:
        """What limits a case, by several methods, with their numbers. Raises `EfflabError` for an unknown case."""

    def sweep(self, record: Record, name: str) -> str:
        """A table of the cases of a series. Raises `EfflabError` for an unknown one; names those there are."""

    def compare(self, record: Record, slow: str, fast: str) -> str:
        """How much faster one case is than another. Raises `EfflabError` for an unknown case."""

    def asked(self, prediction: Prediction) -> dict[str, Point]:
        """The outputs of a calculator's prediction that a measurement could answer, each with what it is about.
        `efflab.reconcile.asked`, which names none, suits calculators about what the lab does not measure."""

    def answers(self, record: Record, prediction: Prediction) -> Mapping[str, Row]:
        """Of those outputs, the ones that this record answers: rows in which `predicted` is the learner's number.
        `efflab.reconcile.answers` goes with `efflab.reconcile.asked`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compared:
    """What the rows of most topics hold: one case, predicted and measured.

    Attributes:
        case, role, metric: as in the sample.
        unit: of the numbers, which are in base units.
        predicted, measured: what the formulas give, and the median of the repeats.
        iqr: interquartile range of the repeats.
        ratio: measured over predicted.
        error: (predicted - measured) / measured.
        regime: what limits the case, one of the topic's LIMITS; "" where it has none.
        explanation: why the two part.
    """

    case: str
    role: str
    metric: str
    unit: Unit
    predicted: float
    measured: float
    iqr: float
    ratio: float
    error: float
    regime: str = ""
    explanation: str


def topics() -> list[str]:
    """The topics that can be reconciled."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__))


def topic(name: str) -> Any:
    """The module that reconciles a topic, a `Topic` (and what more the module has).

    Raises:
        EfflabError: no topic has that name; names the nearest.
    """
    if name not in topics():
        raise unknown("topic", name, topics())
    return importlib.import_module(f"efflab.reconcile.{name}")


def error(predicted: float, measured: float) -> float:
    """The prediction's error relative to the measurement: (predicted - measured) / measured.

    Raises:
        EfflabError: a number that is not greater than zero.
    """
    for name, value in (("predicted", predicted), ("measured", measured)):
        if not value > 0:
            raise EfflabError(f"error: {name} must be greater than zero, got {value!r}.")
    return (predicted - measured) / measured


def percent(value: float) -> str:
    """A ratio as a signed percentage with a true minus sign, below one percent with a decimal: "+12%", "−0.4%"."""
    text = f"{value:+.1%}" if abs(value) < 0.00995 else f"{value:+,.0%}"
    return "0%" if text in ("+0.0%", "-0.0%") else text.replace("-", "−")


def signed(value: float) -> str:
    """An error as a percentage, with a decimal where it is below 10%."""
    if abs(value) >= 0.1:
        return percent(value)
    text = f"{value:+.1%}"
    return "0%" if text in ("+0.0%", "-0.0%") else text.replace("-", "−")


def unsigned(value: float) -> str:
    """A share without a sign as a percentage, with a decimal where it is below 10%."""
    return "under 0.1%" if value < 0.001 else f"{value:.1%}" if value < 0.1 else f"{value:.0%}"


def agrees(ratio: float, near: float = NEAR, what: str = "As") -> str:
    """Such as "As predicted, within 5%.", with the narrowest usual bound; empty where the factor exceeds `near`."""
    for bound in (b for b in (0.01, 0.02, 0.05, 0.1, NEAR - 1) if b <= near - 1 + 1e-9):
        if 1 / (1 + bound) <= ratio <= 1 + bound:
            return f"{what} predicted, within {bound:.0%}."
    return ""


def doubted(record: Record) -> set[str]:
    """The cases whose times the record's own warnings doubt."""
    return {c for w in record.warnings for c, _, said in [w.partition(": ")] if said.startswith(DOUBTS)}


def doubted_cases(record: Record) -> list[str]:
    """The cases of the record that its warnings doubt, in the order measured."""
    named = doubted(record)
    return list(dict.fromkeys(str(s.point["case"]) for s in record.samples if s.point.get("case") in named))


def disturbed(record: Record, case: object, rests: Iterable[str]) -> Iterator[str]:
    """What the record warns of, of a case and of those that its prediction rests on, in a sentence each."""
    named = doubted_cases(record)
    if case in named:
        yield "It was disturbed while measured, as the record warns."
    if found := [c for c in dict.fromkeys(rests) if c in named]:
        were = "were" if len(found) > 1 else "was"
        yield f"The prediction rests on {', '.join(found)}, which the record says {were} disturbed."


def unsteady(values: list[float], middle: float) -> str:
    """That repeats spread widely about their median `middle`; empty where they do not."""
    spread = iqr(values) / middle
    return f"Unsteady: the middle half of the repeats spans {spread:.0%} of the median." if spread > UNSTEADY else ""


def joined(texts: Iterable[str]) -> str:
    """The sentences that are not empty, one after another, or `NOTHING`."""
    return " ".join(t for t in texts if t) or NOTHING


def plural(count: float, noun: str) -> str:
    """Such as "1 step" and "1,200 steps"."""
    return f"{count:,.0f} {noun}{'' if count == 1 else 's'}"


def values_of(record: Record, point: Mapping[str, Any], metric: str) -> list[float]:
    """All values of a metric at a point; empty where it was not measured."""
    found = next((s for s in record.samples if s.metric == metric and s.point == point), None)
    return list(found.values) if found and found.status == "ok" else []


def median_of(record: Record, point: Mapping[str, Any], metric: str) -> float | None:
    """The median of a metric at a point; None where it was not measured."""
    found = values_of(record, point, metric)
    return median(found) if found else None


def of_topic(record: Record, topic: str) -> None:
    """Raise `EfflabError` for a record of another topic."""
    if record.topic != topic:
        raise EfflabError(f"record {record.id}: its topic is {record.topic!r}; {topic!r} is needed.")


def place(record: Record, index: int) -> str:
    """Such as "record mine: samples[3] ('matmul-2048')", with which the message about a damaged sample begins."""
    return f"record {record.id}: samples[{index}] ({record.samples[index].point.get('case')!r})"


def damaged(record: Record, index: int, field: str, expected: str) -> EfflabError:
    """The error, to be raised, for an entry of a sample's point that is not what it must be, such as "a text"."""
    point = record.samples[index].point
    found = f"got {point[field]!r}" if field in point else "it is missing"
    return EfflabError(f"{place(record, index)}: point.{field} must be {expected}, {found}. Measure it again.")


def check_values(sample: Sample, where: str, zero: bool, most: float = math.inf) -> None:
    """Raise `EfflabError` for a value below zero or above `most`, and for zero unless it may be one."""
    for value in sample.values:
        if not 0 <= value <= most or (value == 0 and not zero):
            raise EfflabError(f"{where}: {sample.metric} cannot be {value!r}. Measure it again.")


def positive(value: object, most: float = math.inf) -> bool:
    """Whether an entry of a point is a number greater than zero, finite and at most `most`."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= most and value < math.inf


def answered(row: Any, predicted: float) -> Any:
    """A topic's row against a learner's number in place of the formulas', without what explains the formulas'."""
    ratio = row.measured / predicted if predicted else math.inf
    off = (predicted - row.measured) / row.measured
    return dataclasses.replace(row, predicted=predicted, ratio=ratio, error=off, explanation="")


def datasheet(record: Record) -> catalog.Accelerator | None:
    """The catalog's entry of the record's device, None where it has none (as for every CPU)."""
    environment = record.environment
    return catalog.match_device(environment.device, environment.memory or 0)


def scatters(record: Record, case: str) -> bool:
    """Whether a case's times scatter on a quiet machine too: of most topics none does."""
    return False


def calibrates(record: Record, case: str) -> bool:
    """Whether a case's role is to calibrate, or its point says that it does."""
    return any(
        s.point.get("role") == "calibration" or bool(s.point.get("calibrates"))
        for s in record.samples
        if s.point.get("case") == case
    )


def asked(prediction: Prediction) -> dict[str, Point]:
    """The outputs of a calculator's prediction that a measurement could answer: none."""
    return {}


def answers(record: Record, prediction: Prediction) -> dict[str, Row]:
    """Of those outputs, the ones that this record answers: none."""
    return {}


def outputs_in(prediction: Prediction, wanted: Mapping[str, str]) -> dict[str, Point]:
    """The outputs of a prediction that have a name and the unit of `wanted`, each with the prediction's inputs."""
    return {
        name: dict(prediction.inputs)
        for name, quantity in prediction.outputs.items()
        if name in wanted and quantity.unit == wanted[name]
    }


def no_result(sample: Sample) -> str:
    """Of a sample without values: its case, and whether it ran out of memory or was not measured, and why."""
    what = "ran out of memory" if sample.status == "oom" else "was not measured"
    return f"{sample.point.get('case')} {what}: {sample.message}"


def banner(record: Record) -> str:
    """On which device and when a record was measured, and on one thread if so.

    Of a run that comes with the course it says that it was not measured here. Another one may well have been.
    """
    e = record.environment
    what = e.device
    if e.kind == "cpu":
        what += f" ({e.cores or '?'} cores, {e.threads} thread{'' if e.threads == 1 else 's'}"
        what += f"{', virtual machine' if e.virtual else ''})"
    software = f"torch {e.torch}" + (f", CUDA {e.cuda}" if e.kind == "cuda" and e.cuda else "")
    state = "" if record.finished else " The run is not complete."
    if e.kind == "cpu" and record.spec.get("threads") == 1 and e.threads > 1:
        state += " What is timed ran on one thread."
    shipped = any(r.id == record.id for r in records.recorded(record.topic))
    return (
        f"Replay of a recorded run: {what}, {record.created[:10]}, {record.scale} scale, {software}. "
        f"{'Not measured here' if shipped else 'Nothing is measured now'}.{state}"
    )


def columns(head: Sequence[str], rows: Iterable[Sequence[str]], numeric: Iterable[int] = ()) -> str:
    """A table as plain text: columns two spaces apart, numeric ones (by index) set to the right."""
    rows = [list(r) for r in rows]
    right = set(numeric)
    widths = [max(len(str(r[i])) for r in [list(head), *rows]) for i in range(len(head))]

    def line(cells: Sequence[str]) -> str:
        set_ = (c.rjust(w) if i in right else c.ljust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True)))
        return "  ".join(set_).rstrip()

    return "\n".join([line(head), line(["─" * w for w in widths]), *map(line, rows)])


def table_of(
    found: Mapping[str, list[str]], optional: Collection[str]
) -> tuple[list[str], list[list[str]], tuple[int, ...]]:
    """Head, rows and the indices of numeric columns, all but the first and the last, of cells by column.

    Of the `optional` columns those without any text are left out.
    """
    kept = {name: cells for name, cells in found.items() if any(cells) or name not in optional}
    return list(kept), [list(row) for row in zip(*kept.values(), strict=True)], tuple(range(1, len(kept) - 1))


# Energy beside time


def energy_text(record: Record) -> str:
    """What the whole run took: measured, modelled as a band, or why neither; and of how many calls it is known.

    Raises:
        FormulaError: a period or a length of time that no run has.
    """
    found = record.energy
    not_measured = f"Energy of the run: not measured ({found.why.rstrip('.')})."
    if found.source == "none":
        return not_measured if found.why else "Energy was not recorded."
    assert found.window_s is not None  # the record's own check
    lasted = show(found.window_s, SECOND)
    parts = []
    if found.joules is not None:
        power = formulas.mean_power(energy=found.joules, duration=found.window_s)
        by = f" by {found.of}" if found.of else ""
        mean = f"{show(power, WATT)} on average"
        parts.append(f"Energy of the run: {show(found.joules, JOULE)} in {lasted}, {mean}, measured{by}.")
        if found.period_s:
            share = formulas.counter_error(update_period=found.period_s * found.windows, window=found.window_s)
            parts.append(
                f"The counter changes every {show(found.period_s, SECOND)}, which leaves {unsigned(share)} open; the "
                "sensor's own error comes on top."
            )
        if re.search(r"\bG[HB]\d", record.environment.device):
            parts.append("It is the whole superchip's, with its processor and memory.")
        elif found.source == "nvml-counter":
            parts.append("The host's processors and memory are not in it.")
        parts.append(_calls_text(record))
    elif found.band is not None:
        low, high = found.band
        said = f"Modelled: between {show(low, JOULE)} and {show(high, JOULE)} in {lasted}"
        if watts := modelled_energy(record, 1.0):
            said += f", {span(watts, WATT)} on average"
        parts += [not_measured if found.why else "Energy of the run: not measured.", f"{said}."]
        if found.rating:
            of = f": {found.of}" if found.of else ""
            parts.append(f"That is {LOADS[0]:g} to {LOADS[1]:g} of the rated power, {span(found.rating, WATT)}{of}.")
    if found.windows > 1:
        parts.append("The run was continued: what was lost in between is not in it.")
    if found.shared:
        parts.append(f"{found.shared[0].upper()}{found.shared[1:].rstrip('.')}.")
    return " ".join(parts)


def span(pair: Sequence[float], unit: Unit) -> str:
    """Two numbers, the smaller first, such as "1.05 W to 20 W", or "400 W" where both are one."""
    low, high = pair
    return show(low, unit) if low == high else f"{show(low, unit)} to {show(high, unit)}"


def _calls_text(record: Record) -> str:
    """Of how many timed samples the energy of one call is known."""
    timed = [s for s in record.samples if s.metric == "time" and s.status == "ok"]
    if not any(s.timing and s.timing.energy for s in timed):
        return "No call was counted alone."
    known = sum(call_energy(record, s) is not None for s in timed)
    return (
        f"The energy of a call is given where the counter's period leaves at most {OPEN:.0%} of it open: in {known} of "
        f"{plural(len(timed), 'timed sample')}."
    )


def call_energy(record: Record, sample: Sample) -> tuple[float, float] | None:
    """What one call of a timed sample took, J, and the share of it that the counter's period leaves open.

    None where no counter was read, where its period is not known and where that share exceeds `OPEN`.
    """
    window, period = sample.timing.energy if sample.timing else None, record.energy.period_s
    if window is None or period is None:
        return None
    left = formulas.counter_error(update_period=period * window.windows, window=window.seconds)
    return None if left > OPEN else (window.joules / window.calls, left)


def modelled_energy(record: Record, seconds: float) -> tuple[float, float] | None:
    """The band of what so many seconds take by the record's rated power, J; None where it has none."""
    if record.energy.rating is None:
        return None
    low, high = (
        formulas.energy_from_rating(rated_power=watts, load=load, device_time=seconds)
        for watts, load in zip(record.energy.rating, LOADS, strict=True)
    )
    return low, high


def energy_cell(record: Record, row: Row) -> str:
    """The energy of a call whose time a row shows, such as "1.84 J ±5.0%"; empty where no counter gives it."""
    # The row's time may come of several samples; then no window is of it.
    samples = record.find("time", case=row.case) if row.metric == "time" else []
    its = [s for s in samples if s.status == "ok" and median(s.values) == row.measured]
    if len(its) != 1 or (found := call_energy(record, its[0])) is None:
        return ""
    return f"{show(found[0], JOULE)} ±{unsigned(max(found[1], 0.001))}"


def energy_evidence(record: Record, row: Row) -> str:
    """A line on the energy of the call whose time a row shows, measured or modelled; empty where neither is known."""
    if said := energy_cell(record, row):
        return f"  energy of a call: {said}, measured"
    band = modelled_energy(record, row.measured) if row.metric == "time" else None
    return f"  energy of a call: {span(band, JOULE)}, modelled from the rated power" if band else ""


def with_energy(
    record: Record, rows: Sequence[Row], table: tuple[list[str], list[list[str]], tuple[int, ...]]
) -> tuple[list[str], list[list[str]], tuple[int, ...]]:
    """A topic's table with a column "energy" before the one that explains, where a counter gives any of it.

    What is modelled gets no column: it would repeat the times, multiplied by one wide band. `energy_text` gives that.

    Args:
        rows: what the table's rows show, in their order.
        table: head, rows of text and the indices of numeric columns.
    """
    head, body, numeric = table
    cells = [energy_cell(record, r) for r in rows]
    if not any(cells):
        return table
    wider = [[*texts[:-1], cell, texts[-1]] for texts, cell in zip(body, cells, strict=True)]
    return [*head[:-1], "energy", head[-1]], wider, (*numeric, len(head) - 1)
