"""Prediction against measurement. Here, and nowhere else, the two meet.

One module per topic, which offers what `Topic` lists. The lab, the lab book, the plots, the site and the command
line use nothing else of a topic. What every topic needs is here.
"""

from __future__ import annotations

import dataclasses
import importlib
import math
import pkgutil
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

from efflab import catalog, records
from efflab.errors import EfflabError, unknown
from efflab.records import DOUBTS as DOUBTS
from efflab.records import Prediction, Record
from efflab.units import Unit

NOTHING = "The record does not explain it."
NEAR = 1.25  # measured and predicted within this factor count as agreeing
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

    Every function of a record raises `EfflabError` for a record of another topic and for a damaged one; the message
    names the record, the sample and the field.
    """

    LIMITS: tuple[str, ...]
    """What can limit a case, in the order in which a prediction's "<case>.limiting_factor" numbers them. May be ()."""

    CALIBRATION: dict[str, tuple[str, Unit]]
    """What the formulas take from the measurement (a device's ceilings, a fitted constant), which a learner may predict
    before measuring: name to (quantity, unit). May be {}."""

    BASE: tuple[str, ...]
    """Calibration cases on which every prediction rests: where one was disturbed, the run says little. May be ()."""

    SCATTER: tuple[str, ...]
    """Roles whose times scatter on a quiet machine too: their spread does not speak against a run. May be ()."""

    PICTURES: tuple[str, ...]
    """Functions of efflab.plots.<topic>, or of efflab.plots, that draw its records; the first has the topic's name."""

    DRAWN: tuple[str, ...]
    """The roles of `points` that the picture `errors` draws."""

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
        """Head, rows of text (the last column explains) and the indices of numeric columns."""

    def text(self, record: Record) -> str:
        """Everything in plain text, the same for the same record."""

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
        """The outputs of a calculator's prediction that a measurement could answer, each with what it is about."""

    def answers(self, record: Record, prediction: Prediction) -> Mapping[str, Row]:
        """Of those outputs, the ones that this record answers: rows in which `predicted` is the learner's number."""


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
