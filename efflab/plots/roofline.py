"""The roofline with a record's measured points."""

from __future__ import annotations

import math
from typing import Any

from efflab.errors import EfflabError
from efflab.plots import COLOURS, STYLE, pyplot, title
from efflab.reconcile import roofline as reconcile
from efflab.records import Record
from efflab.units import FLOP_PER_SECOND, show


def roofline(record: Record, *, roles: tuple[str, ...] = ("kernel", "lesson")) -> Any:
    """Draw a record's kernels under its measured ceilings, both axes logarithmic.

    Args:
        record: a record of the topic roofline.
        roles: which points to draw.

    Returns:
        A matplotlib figure.

    Raises:
        EfflabError: matplotlib is missing, or the record has no ceilings or no kernels.
    """
    plt = pyplot()
    rows = reconcile.points(record, roles)
    ceilings = reconcile.measured_ceilings(record)
    peaks = {n.removeprefix("matmul-"): v for n, v in ceilings.items() if n.startswith("matmul-")}
    if not rows or not peaks or "copy" not in ceilings:
        raise EfflabError(f"record {record.id}: it has no ceilings or no kernels to draw. Measure it again.")
    bandwidth = ceilings["copy"]

    figure, (axes, side) = plt.subplots(1, 2, figsize=(10, 5.4), width_ratios=[7, 3], layout="constrained")
    low = min(0.05, *(r.arithmetic_intensity for r in rows)) / 1.5
    high = max(1e3, *(r.arithmetic_intensity for r in rows)) * 1.5
    for colour, (dtype, peak) in zip(COLOURS, sorted(peaks.items(), key=lambda item: item[1]), strict=False):
        ridge = peak / bandwidth
        label = f"{dtype} product: {show(peak, FLOP_PER_SECOND)}"
        axes.plot([low, ridge, high], [low * bandwidth, peak, peak], color=colour, lw=1.6, label=label, zorder=1)
    for regime, (colour, marker) in STYLE.items():
        of = [(n, r) for n, r in enumerate(rows, 1) if r.by_intensity == regime]
        if of:
            axes.scatter(
                [r.arithmetic_intensity for _, r in of], [r.performance for _, r in of], s=55, color=colour,
                marker=marker, edgecolor="white", linewidth=0.8, label=f"limit: {regime}", zorder=3,
            )  # fmt: skip
    for (x, y), numbers in _clusters([(r.arithmetic_intensity, r.performance) for r in rows]):
        axes.annotate(
            ",".join(map(str, numbers)), (x, y), xytext=(8, 0), textcoords="offset points", fontsize=8, va="center",
            weight="bold", zorder=4, bbox={"boxstyle": "round,pad=0.15", "fc": "white", "ec": "none", "alpha": 0.7},
        )  # fmt: skip
    axes.set(xscale="log", yscale="log", xlim=(low, high))
    axes.set_xlabel("arithmetic intensity (FLOP/B)")
    axes.set_ylabel("performance (FLOP/s)")
    axes.set_title(title(record, "measured ceilings and kernels"), fontsize=10)
    axes.grid(True, which="major", alpha=0.3)
    axes.legend(loc="lower right", fontsize=8)
    side.axis("off")
    step = min(0.045, 1.0 / (len(rows) + 1))
    for n, r in enumerate(rows, 1):
        side.text(
            0, 1 - n * step, f"{n:>2}  {r.case}: {r.ratio:.2g}×", fontsize=8, family="monospace",
            transform=side.transAxes, color=STYLE[r.by_intensity][0],
        )  # fmt: skip
    side.set_title("measured ÷ predicted time", fontsize=9, loc="left")
    return figure


def _clusters(points: list[tuple[float, float]]) -> list[tuple[tuple[float, float], list[int]]]:
    """Points that lie so close that their labels would cover each other share one label."""
    found: list[tuple[tuple[float, float], list[int]]] = []
    for number, (x, y) in enumerate(points, 1):
        for (cx, cy), numbers in found:
            if abs(math.log10(x / cx)) < 0.2 and abs(math.log10(y / cy)) < 0.1:
                numbers.append(number)
                break
        else:
            found.append(((x, y), [number]))
    return found
