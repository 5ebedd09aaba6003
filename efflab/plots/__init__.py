"""Pictures of records: one module per topic, and what several topics draw.

matplotlib is imported when a picture is drawn, not with this module. Colours are Okabe and Ito's, which people
with any colour vision can tell apart; markers differ too, and points carry numbers that a list explains, so
that labels never cover each other.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from typing import Any

from efflab.errors import EfflabError, unknown
from efflab.reconcile import NEAR, topic
from efflab.records import Record
from efflab.units import SECOND, show

# By what limits a case, as the topics name it.
STYLE = {"overhead": ("#CC79A7", "D"), "memory": ("#0072B2", "o"), "compute": ("#D55E00", "s")}
PLAIN = ("#000000", "o")
COLOURS = ["#000000", "#009E73", "#E69F00", "#56B4E9", "#999999", "#CC79A7", "#0072B2", "#D55E00"]


def draw(record: Record, kind: str | None = None) -> Any:
    """Draw one of the pictures that the record's topic declares; its own if none is named.

    Returns:
        A matplotlib figure.

    Raises:
        EfflabError: an unknown picture, matplotlib is missing, or the record has nothing to draw.
    """
    known = topic(record.topic).PICTURES
    if kind is not None and kind not in known:
        raise unknown("picture", kind, known)
    return picture(record.topic, kind or known[0])(record)


def picture(of: str, kind: str) -> Callable[..., Any]:
    """The function that draws a topic's picture: its own, else the one that all topics share."""
    own = importlib.import_module(f"efflab.plots.{of}")
    return getattr(own, kind, None) or globals()[kind]


def errors(record: Record) -> Any:
    """Draw how far each case's predicted and measured value are apart, sorted.

    The axis is of measured over predicted, logarithmic, with the ±25% band. Where every case lies in that band, it is
    of the error in percent, as the tables have it.

    Raises:
        EfflabError: matplotlib is missing, or the record has no cases.
    """
    plt, of = pyplot(), topic(record.topic)
    rows = sorted(of.points(record, of.DRAWN), key=lambda r: r.ratio)
    if not rows:
        raise EfflabError(f"record {record.id}: it has no cases to draw. Measure it again.")
    furthest = max(max(r.ratio, 1 / r.ratio) for r in rows)
    near = furthest < NEAR
    origin = 0.0 if near else 1.0
    figure, axes = plt.subplots(figsize=(8, 0.3 * len(rows) + 1.4), layout="constrained")
    axes.axvline(origin, color="#000000", lw=1)
    for y, r in enumerate(rows):
        colour, marker = STYLE.get(r.regime, PLAIN)
        x = 100 * r.error if near else r.ratio
        axes.plot([origin, x], [y, y], color=colour, lw=1.5)
        axes.plot(x, y, marker=marker, color=colour, ms=7)
    axes.set_yticks(range(len(rows)), [f"{r.case}, {show(r.measured, r.unit)}" for r in rows], fontsize=8)
    what = " or ".join(dict.fromkeys(r.metric for r in rows))
    if near:
        widest = 120 * max(1e-3, *(abs(r.error) for r in rows))
        axes.set_xlim(-widest, widest)
        axes.xaxis.set_major_formatter("{x:+g}%")
        axes.grid(True, axis="x", alpha=0.3)
        axes.set_xlabel(f"error of the predicted {what}: predicted against measured")
        return figure
    axes.axvspan(1 / NEAR, NEAR, color="#999999", alpha=0.25, lw=0, label=f"within a factor of {NEAR}")
    axes.set_xscale("log")
    widest = 1.2 * max(2.0, furthest)
    ticks = [t for t in (2.0**k for k in range(-8, 9)) if 1 / widest <= t <= widest]
    axes.set_xlim(1 / widest, widest)
    axes.set_xticks(ticks, [f"{t:g}×" if t >= 1 else f"1/{1 / t:g}×" for t in ticks])
    axes.minorticks_off()
    axes.set_xlabel(f"measured ÷ predicted {what}")
    axes.legend(loc="lower right", fontsize=8)
    return figure


def title(record: Record, what: str) -> str:
    """A picture's title: device and date, and below them what it shows."""
    return f"{record.environment.device}, {record.created[:10]}:\n{what}"


def ticks(low: float, high: float) -> list[float]:
    """Ticks of a logarithmic axis: powers of ten between two bounds, and multiples of them where these are few."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = (1, 2, 5) if math.log10(high / low) < 2 else (1, 3) if math.log10(high / low) < 3 else (1,)
    return [t for d in decades for m in steps if low <= (t := m * 10.0**d) <= high]


def seconds(axis: Any) -> None:
    """Ticks of a logarithmic axis of times in seconds, such as `axes.xaxis`, as times are written."""
    at = ticks(*axis.get_view_interval())
    axis.set_ticks(at, [show(t, SECOND) for t in at], fontsize=8.5)
    axis.set_ticks([], minor=True)


def pyplot() -> Any:
    """matplotlib's pyplot, or an `EfflabError` that says how to get it."""
    try:
        import matplotlib.pyplot as plt
    except ImportError:
        raise EfflabError("plots need matplotlib, which is not installed: run 'pip install matplotlib'.") from None
    return plt
