"""Where the time of a training step goes: shares, what each mend takes off, and what a monitor sees of it."""

from __future__ import annotations

import itertools
from typing import Any

from efflab.errors import EfflabError
from efflab.plots import pyplot, title
from efflab.reconcile import profiling as reconcile
from efflab.records import Record
from efflab.units import SECOND, show

PREDICTED, MEASURED = "#E69F00", "#0072B2"
FAULTY, CLEAN = "#D55E00", "#0072B2"
SLOWER = "#CC79A7"
COUNTERS = {"utilization": ("share", 1.0), "memory": ("MB", 1e6), "power": ("W", 1.0)}


def profiling(record: Record) -> Any:
    """Draw of each fault the share of the step that its mend takes off: predicted from the profile, and measured.

    The thin line is what the middle halves of the repeats with and without the mend allow.

    Returns:
        A matplotlib figure.

    Raises:
        EfflabError: matplotlib is missing, or no mend was measured alone.
    """
    plt = pyplot()
    rows = [r for r in reconcile.points(record, ("ablation",)) if r.share_saved is not None]
    if not rows:
        raise EfflabError(f"record {record.id}: no mend was measured alone. Measure it again.")
    figure, axes = plt.subplots(figsize=(5.4, 0.62 * len(rows) + 1.7), layout="constrained")
    pairs = [(100 * (r.share_predicted or 0.0), 100 * (r.share_saved or 0.0)) for r in rows]
    spans = [reconcile.saved_between(record, r.case) for r in rows]
    drawn = [*itertools.chain(*pairs), *(100 * x for span in spans if span for x in span)]
    low, high = min(0.0, *drawn), max(drawn)
    for y, ((predicted, measured), span) in enumerate(zip(pairs, spans, strict=True)):
        for offset, value, colour, label in (
            (-0.2, predicted, PREDICTED, "predicted"), (0.2, measured, MEASURED, "measured")
        ):  # fmt: skip
            axes.barh(y + offset, value, 0.38, color=colour, label=label if y == 0 else None)
            beside = value
            if label == "measured" and span:
                least, most = 100 * span[0], 100 * span[1]
                axes.plot([least, most], [y + offset] * 2, color="#000000", lw=1.2,
                          label="middle halves of the repeats" if y == 0 else None)  # fmt: skip
                beside = max(most, value) if value >= 0 else min(least, value)
            axes.annotate(
                f"{value:.1f}%".replace("-", "−"), (beside, y + offset), xytext=(4 if value >= 0 else -4, 0),
                textcoords="offset points", va="center", ha="left" if value >= 0 else "right", fontsize=9,
            )  # fmt: skip
    axes.axvline(0, color="#000000", lw=0.8)
    axes.set_yticks(range(len(rows)), [r.case.removeprefix("without-") for r in rows], fontsize=10)
    axes.invert_yaxis()
    axes.set_xlim(low - (0.18 * (high - low) if low < 0 else 0.0), high + 0.18 * (high - low))
    axes.set_xlabel("taken off the step with all faults (%)")
    axes.set_title(title(record, "one mend at a time"), fontsize=10)
    axes.grid(True, axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    figure.legend(loc="outside lower center", ncols=3, fontsize=9)
    return figure


def waterfall(record: Record) -> Any:
    """Draw the step from all faults to none: what each further mend takes off, and what was predicted to be left.

    Each level is the time of a step over that of the loop with all faults that was timed in turns with it. Mends
    between two measured levels share a bar.

    Returns:
        A matplotlib figure.

    Raises:
        EfflabError: matplotlib is missing, or no mend of the ladder was measured.
    """
    plt = pyplot()
    levels = reconcile.levels(record)
    if len(levels) < 2:
        raise EfflabError(f"record {record.id}: no mend of the ladder was measured. Measure it again.")
    last = levels[-1]
    assert last.row is not None  # only the first level has none
    figure, axes = plt.subplots(figsize=(5.4, 0.48 * (len(levels) + 1) + 1.5), layout="constrained")
    names = ["all faults"]
    _bar(axes, 0, 0.0, 100.0, FAULTY, show(last.row.measured / last.measured, SECOND))
    for y, (before, level) in enumerate(itertools.pairwise(levels), 1):
        names.append("− " + ", ".join(n for n in level.mended if n not in before.mended))
        low, high, predicted = 100 * level.measured, 100 * before.measured, 100 * level.predicted
        change = f"{low - high:+.1f}%".replace("-", "−")
        # The text stands clear of the line that marks the prediction.
        beside = max(low, high, predicted if predicted < max(low, high) + 15 else 0.0)
        _bar(axes, y, low, high, MEASURED if low <= high else SLOWER, change, beside)
        axes.plot([high] * 2, [y - 0.7, y - 0.3], color="#999999", lw=0.8)
        axes.plot([predicted] * 2, [y - 0.36, y + 0.36], color="#000000", lw=2.5, zorder=4,
                  label="left, predicted" if y == 1 else None)  # fmt: skip
    names.append("no fault" if set(last.mended) == set(reconcile.FAULTS) else "left")
    text = f"{100 * last.measured:.1f}%, {show(last.row.measured, SECOND)}"
    _bar(axes, len(levels), 0.0, 100 * last.measured, FAULTY, text)
    axes.set_yticks(range(len(levels) + 1), names, fontsize=10)
    axes.invert_yaxis()
    axes.set_xlim(0, max(118.0, 118 * max(level.measured for level in levels)))
    axes.set_xlabel("time of a step (% of the one with all faults)")
    axes.set_title(title(record, "one mend after another"), fontsize=10)
    axes.grid(True, axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    figure.legend(loc="outside lower center", fontsize=9)
    return figure


def _bar(axes: Any, y: float, low: float, high: float, colour: str, text: str, beside: float | None = None) -> None:
    """A bar between two levels with its text at the right of it, or of `beside`."""
    axes.barh(y, high - low, 0.6, left=low, color=colour)
    at = max(low, high) if beside is None else beside
    axes.annotate(text, (at, y), xytext=(5, 0), textcoords="offset points", va="center", ha="left", fontsize=9)


def monitor(record: Record) -> Any:
    """Draw what the monitor read while each loop ran; in the panel of the utilisation also the MFU, dashed.

    Returns:
        A matplotlib figure.

    Raises:
        EfflabError: matplotlib is missing, or no counter was read.
    """
    plt = pyplot()
    found, used = reconcile.monitored(record), reconcile.utilizations(record)
    counters = [n for n in COUNTERS if any(n in series for series in found.values())]
    if not counters:
        raise EfflabError(f"record {record.id}: no counter was read. Its warnings say why.")
    figure, panels = plt.subplots(
        len(counters), 1, figsize=(5.4, 1.75 * len(counters) + 1.3), sharex=True, squeeze=False, layout="constrained"
    )
    # The first is wide, so that it shows beside the second where they lie on each other.
    looks = {"monitor-all-faults": ("all faults", FAULTY, "o", 5.0), "monitor-clean": ("no fault", CLEAN, "s", 1.6)}
    for axes, name in zip(panels[:, 0], counters, strict=True):
        unit, factor = COUNTERS[name]
        most = 0.0
        for case, (label, colour, marker, wide) in looks.items():
            series = found.get(case, {})
            if name not in series:
                continue
            values = [v / factor for v in series[name]]
            most = max(most, *values)
            axes.plot(series["elapsed"], values, color=colour, marker=marker, ms=3 + wide, lw=wide, label=label)
            if name == "utilization" and case in used:
                axes.axhline(used[case], color=colour, ls="--", lw=1.4, label=f"MFU, {label}: {used[case]:.1%}")
        if name == "utilization":
            axes.set_ylim(0, max(1.05, 1.05 * most))
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        else:
            axes.set_ylim(0, 1.25 * most if most else 1)
        axes.set_ylabel(name if name == "utilization" else f"{name} ({unit})", fontsize=9)
        axes.grid(True, alpha=0.3)
    panels[-1, 0].set_xlabel("time since the window began (s)")
    panels[0, 0].set_title(title(record, "the device's counters"), fontsize=10)
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=9)
    return figure
