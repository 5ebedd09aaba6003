"""Data-parallel training drawn: what a step consists of, messages over size, efficiency over ranks, a restart."""

from __future__ import annotations

import math
import textwrap
from typing import Any

from efflab.errors import EfflabError
from efflab.plots import pyplot, seconds, title
from efflab.reconcile import ddp as reconcile
from efflab.records import Record, median, quantile
from efflab.units import BYTE_PER_SECOND, SECOND, show, show_binary

# By part of a step: colour and words.
PARTS = {
    "alone": ("#56B4E9", "computing, a rank alone"),
    "interference": ("#999999", "all ranks computing at once"),
    "reducer": ("#E69F00", "DDP's reducer"),
    "communication": ("#D55E00", "messages that show, and the rest"),
}
WHOLE = ("#F0E442", "a step whose parts were not measured")
# By number of ranks, in rising order: colour and marker.
LOOKS = [("#0072B2", "o"), ("#D55E00", "s"), ("#009E73", "^"), ("#CC79A7", "D"), ("#E69F00", "v"), ("#999999", "P")]
SCALINGS = {"weak": ("#0072B2", "o"), "strong": ("#D55E00", "s")}


def ddp(record: Record) -> Any:
    """Draw each measured step as a stack of its parts, with the predicted step as a line across the bar.

    A step of which a part was not measured is drawn in one piece.

    Returns:
        A matplotlib figure.

    Raises:
        EfflabError: matplotlib is missing, or there is no step to draw and nothing says why.
    """
    plt = pyplot()
    rows = [(r, reconcile.measured_parts(record, r.case)) for r in reconcile.points(record, ("step",))]
    if not rows:
        return _absent(record, "steps", "step")
    figure, axes = plt.subplots(figsize=(6.4, 0.55 * len(rows) + 2.2), layout="constrained")
    scale, unit = _scaled(max(r.measured for r, _ in rows))
    named: set[str] = set()
    for y, (row, held) in enumerate(rows):
        left = 0.0
        parts = [(row.measured, *WHOLE)] if held is None else [(held[p], *look) for p, look in PARTS.items()]
        for lasted, colour, words in parts:
            # Within the noise a part may be negative, and the others then more than the step: the bar ends with it.
            width = max(0.0, min(lasted, row.measured - left)) * scale
            axes.barh(y, width, 0.6, left=left * scale, color=colour, label=None if words in named else words)
            named.add(words)
            left += max(0.0, lasted)
        axes.plot([row.predicted * scale] * 2, [y - 0.42, y + 0.42], color="#000000", lw=2.4, zorder=4,
                  label="predicted" if y == 0 else None)  # fmt: skip
        beside = max(row.measured, row.predicted) * scale
        axes.annotate(
            f"{show(row.measured, SECOND)} ({reconcile.signed(row.error)})", (beside, y), xytext=(6, 0),
            textcoords="offset points", va="center", fontsize=8.5,
        )  # fmt: skip
    axes.set_yticks(range(len(rows)), [r.case for r, _ in rows], fontsize=9)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.32 * max(max(r.measured, r.predicted) for r, _ in rows) * scale)
    axes.set_xlabel(f"time of a step ({unit}); in brackets the error of the prediction")
    axes.set_title(title(record, "what a step consists of"), fontsize=10)
    axes.grid(True, axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=8.5)
    return figure


def messages(record: Record) -> Any:
    """Draw the time of an all-reduce over its size, both logarithmic: the fitted line and messages beside it.

    Returns:
        A matplotlib figure.

    Raises:
        EfflabError: matplotlib is missing, or there is no message to draw and nothing says why.
    """
    plt = pyplot()
    found = _messages(record)
    if not found:
        return _absent(record, "messages", "all-reduce")
    figure, axes = plt.subplots(figsize=(6.4, 4.6), layout="constrained")
    for (ranks, (fitted, held_out)), (colour, marker) in zip(found.items(), _looks(found), strict=True):
        line = reconcile.line(record, ranks) if fitted else None
        every = sorted({s for s, _ in (*fitted, *held_out)})
        if line is not None:
            sizes = _between(every[0], every[-1])
            axes.plot(sizes, [line.time(s) for s in sizes], color=colour, lw=1.6, label=f"{ranks} ranks: fitted line")
        if fitted:
            axes.plot(*_xy(fitted), marker=marker, ms=7, color=colour, ls="none", label=f"{ranks} ranks: fitted")
        if held_out:
            axes.plot(
                *_xy(held_out), marker="X", ms=10, color=colour, markeredgecolor="white", ls="none", zorder=4,
                label=f"{ranks} ranks: held out",
            )  # fmt: skip
    axes.set_yscale("log")
    seconds(axes.yaxis)
    _sizes(axes, [s for pair in found.values() for s, _ in (*pair[0], *pair[1])])
    axes.set_ylabel("time of an all-reduce")
    axes.set_title(title(record, "latency, then bandwidth"), fontsize=10)
    axes.grid(True, alpha=0.3)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=8.5)
    return figure


def bandwidth(record: Record) -> Any:
    """Draw the bus bandwidth of an all-reduce over its size, with the line's own and the bandwidth that it approaches.

    Returns:
        A matplotlib figure.

    Raises:
        EfflabError: matplotlib is missing, or there is no message to draw and nothing says why.
    """
    plt = pyplot()
    found = _messages(record)
    if not found:
        return _absent(record, "messages", "all-reduce")
    figure, axes = plt.subplots(figsize=(6.4, 4.4), layout="constrained")
    most = 0.0
    for (ranks, (fitted, held_out)), (colour, marker) in zip(found.items(), _looks(found), strict=True):
        measured = sorted((*fitted, *held_out))
        bus = [reconcile.bandwidths(s, t, ranks)[1] for s, t in measured]
        most = max(most, *bus)
        line, both = (reconcile.line(record, ranks), reconcile.ring(record, ranks)) if fitted else (None, None)
        if line is not None and both is not None:
            sizes = _between(measured[0][0], measured[-1][0])
            axes.plot(sizes, [reconcile.bandwidths(s, line.time(s), ranks)[1] for s in sizes], color=colour, lw=1.4,
                      ls="--", label=f"{ranks} ranks: by the line")  # fmt: skip
            axes.axhline(both[1], color=colour, lw=1, ls=":",
                         label=f"{ranks} ranks: it approaches {show(both[1], BYTE_PER_SECOND)}")  # fmt: skip
            most = max(most, both[1])
        axes.plot([s for s, _ in measured], bus, color=colour, marker=marker, ms=6, lw=1.6, label=f"{ranks} ranks")
    _sizes(axes, [s for pair in found.values() for s, _ in (*pair[0], *pair[1])])
    axes.set_ylim(0, 1.1 * most)
    axes.yaxis.set_major_formatter(lambda value, _: show(value, BYTE_PER_SECOND) if value else "0")
    axes.set_ylabel("bus bandwidth")
    axes.set_title(title(record, "bus bandwidth of an all-reduce"), fontsize=10)
    axes.grid(True, alpha=0.3)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=8.5)
    return figure


def efficiency(record: Record) -> Any:
    """Draw weak and strong scaling efficiency over the ranks, predicted and measured, with the middle half of turns.

    Returns:
        A matplotlib figure.

    Raises:
        EfflabError: matplotlib is missing, or there is no efficiency to draw and nothing says why.
    """
    plt = pyplot()
    rows = reconcile.points(record, ("efficiency",))
    if not rows:
        return _absent(record, "efficiency", "efficiency")
    values = {s.point["case"]: s.values for s in record.find("efficiency", role="efficiency")}
    figure, axes = plt.subplots(figsize=(6.4, 4.2), layout="constrained")
    axes.axhline(100, color="#000000", lw=1)
    for scaling, (colour, marker) in SCALINGS.items():
        of = [r for r in rows if f"-{scaling}-" in r.case]
        if not of:
            continue
        ranks = [1, *(r.ranks for r in of)]
        axes.plot(ranks, [100, *(100 * r.predicted for r in of)], color=colour, ls="--", lw=1.4, marker=marker, ms=13,
                  markerfacecolor="none", label=f"{scaling}, predicted")  # fmt: skip
        below = [0.0, *(100 * (r.measured - quantile(values[r.case], 0.25)) for r in of)]
        above = [0.0, *(100 * (quantile(values[r.case], 0.75) - r.measured) for r in of)]
        axes.errorbar(ranks, [100, *(100 * r.measured for r in of)], [below, above], color=colour, lw=1.8,
                       marker=marker, ms=7, capsize=4, label=f"{scaling}, measured")  # fmt: skip
        last = of[-1]
        axes.annotate(
            f"{100 * last.measured:.0f}%", (last.ranks, 100 * last.measured), xytext=(9, 0), va="center",
            textcoords="offset points", fontsize=9, color=colour,
        )  # fmt: skip
    every = sorted({1, *(r.ranks for r in rows)})
    axes.set_xscale("log", base=2)
    axes.set_xticks(every, [str(n) for n in every])
    axes.minorticks_off()
    axes.set_xlim(0.9, 1.18 * every[-1])
    axes.set_ylim(0, max(108.0, 108 * max(r.measured for r in rows)))
    axes.yaxis.set_major_formatter("{x:g}%")
    axes.set_xlabel("ranks")
    axes.set_ylabel("scaling efficiency")
    axes.set_title(title(record, "what each rank achieves"), fontsize=10)
    axes.grid(True, alpha=0.3)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=8.5)
    return figure


def restart(record: Record) -> Any:
    """Draw the loss of the run without a stop and of the one that was killed, with its last checkpoint and the kill.

    Returns:
        A matplotlib figure.

    Raises:
        EfflabError: matplotlib is missing, or there is no training run to draw and nothing says why.
    """
    plt = pyplot()
    runs = reconcile.runs(record)
    if not runs:
        return _absent(record, "restart", "training run")
    looks = {"curve": ("without a stop", "#000000", "-", 4.0), "resumed": ("killed and resumed", "#E69F00", "-", 1.6)}
    figure, axes = plt.subplots(figsize=(6.4, 4.2), layout="constrained")
    for run in runs:
        name, colour, style, width = looks.get(run.case, (run.case, "#999999", "-", 1.6))
        axes.plot(range(1, len(run.losses) + 1), run.losses, color=colour, ls=style, lw=width, label=name)
    stopped = reconcile.stop(record)
    if stopped is not None:
        kept, killed = stopped
        axes.axvline(killed, color="#D55E00", lw=1.4, ls="--", label=f"killed after step {killed:g}")
        axes.axvline(kept, color="#0072B2", lw=1.4, ls=":", label=f"went on after step {kept:g}")
        axes.axvspan(kept, killed, color="#999999", alpha=0.25, lw=0, label=f"done again: {killed - kept:g} steps")
    axes.set_xlabel("step")
    axes.set_ylabel("loss (nats per character)")
    axes.set_title(title(record, "a restart from a checkpoint"), fontsize=10)
    axes.grid(True, alpha=0.3)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=8.5)
    return figure


Points = list[tuple[float, float]]


def _messages(record: Record) -> dict[int, tuple[Points, Points]]:
    """By number of ranks the fitted messages and the held-out ones, each as bytes and seconds."""
    found = {}
    for ranks in reconcile.counts(record):
        fitted = reconcile.fitted(record, ranks)
        held_out = sorted(
            (float(s.point["message_bytes"]), median(s.values))
            for s in record.find(role="all-reduce", ranks=ranks)
            if s.status == "ok"
        )
        if fitted or held_out:
            found[ranks] = (fitted, held_out)
    return found


def _absent(record: Record, table: str, what: str) -> Any:
    """A picture that says why there is nothing to draw.

    Raises:
        EfflabError: the record does not say it.
    """
    gone = reconcile.absent(record, reconcile.ROLES_OF[table])
    if not gone:
        raise EfflabError(f"record {record.id}: it has no {what} to draw. Measure it again.")
    lines = [line for said in dict.fromkeys(gone) for line in textwrap.wrap(said, 80)]
    figure, axes = pyplot().subplots(figsize=(6.4, 0.22 * len(lines) + 0.8), layout="constrained")
    axes.axis("off")
    axes.text(0, 1, "\n".join(lines), va="top", fontsize=9, transform=axes.transAxes)
    axes.set_title(title(record, f"no {what} to draw"), fontsize=10)
    return figure


def _looks(found: dict[int, Any]) -> list[tuple[str, str]]:
    return [LOOKS[i % len(LOOKS)] for i in range(len(found))]


def _xy(points: Points) -> tuple[list[float], list[float]]:
    return [s for s, _ in points], [t for _, t in points]


def _between(low: float, high: float, count: int = 60) -> list[float]:
    """So many sizes from `low` to `high`, each larger than the last by the same factor."""
    return [low * (high / low) ** (i / (count - 1)) for i in range(count)]


def _sizes(axes: Any, sizes: list[float]) -> None:
    """A logarithmic axis of sizes, with ticks at powers of two as sizes are named."""
    low, high = math.log2(min(sizes)), math.log2(max(sizes))
    every = max(1, math.ceil((high - low) / 6))
    at = [2.0**e for e in range(math.ceil(low), math.floor(high) + 1, every)]
    axes.set_xscale("log", base=2)
    axes.set_xticks(at, [show_binary(t) for t in at], fontsize=8.5)
    axes.minorticks_off()
    axes.set_xlabel("message")


def _scaled(seconds: float) -> tuple[float, str]:
    """The factor and the unit in which times up to so many seconds are drawn."""
    return (1.0, "s") if seconds >= 1 else (1e3, "ms") if seconds >= 1e-3 else (1e6, "µs")
