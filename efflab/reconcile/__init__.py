"""Prediction against measurement. Here, and nowhere else, the two meet.

One module per topic, each with `banner(record)`, `points(record)`, `summary(record)` and `table(record)`;
what every topic needs is here.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable, Sequence
from typing import Any

from efflab.errors import EfflabError, unknown
from efflab.records import Record

NEAR = 1.25  # measured and predicted within this factor count as agreeing


def topics() -> list[str]:
    """The topics that can be reconciled."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__))


def topic(name: str) -> Any:
    """The module that reconciles a topic.

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
    """A ratio as a signed percentage without decimals, with a true minus sign: "+12%", "−40%"."""
    text = f"{value:+,.0%}"
    return "0%" if text in ("+0%", "-0%") else text.replace("-", "−")


def banner(record: Record) -> str:
    """One sentence: on which device and when a record was measured, and that it was not measured here."""
    e = record.environment
    what = e.device
    if e.kind == "cpu":
        what += f" ({e.cores or '?'} cores, {e.threads} threads{', virtual machine' if e.virtual else ''})"
    software = f"torch {e.torch}" + (f", CUDA {e.cuda}" if e.kind == "cuda" and e.cuda else "")
    state = "" if record.finished else " The run is not complete."
    return (
        f"Replay of a recorded run: {what}, {record.created[:10]}, {record.scale} scale, {software}. "
        f"Not measured here.{state}"
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
