"""Mixed precision drawn: times of a step, loss curves, the loss scale, and what a step holds in memory."""

from __future__ import annotations

import math
from typing import Any

from efflab.errors import EfflabError
from efflab.plots import pyplot, seconds, title
from efflab.reconcile import amp as reconcile
from efflab.records import Record, Sample, median
from efflab.units import SECOND, show

# By run: colour, line and marker of the loss; what lies on another curve is thinner and drawn later.
LOOKS = {
    "curve-fp32": ("#000000", "-", 3.2),
    "curve-bf16": ("#56B4E9", "-", 1.6),
    "curve-fp16-scaled": ("#009E73", "--", 1.6),
    "curve-fp16-unscaled": ("#D55E00", "-", 1.6),
    "curve-fp16-weights": ("#CC79A7", "-", 1.6),
}
OTHER = ("#999999", "-", 1.6)
PARTS = {
    "weights": "#0072B2", "gradients": "#CC79A7", "optimizer": "#009E73", "activations": "#E69F00",
    "copies": "#D55E00", "outside": "#999999",
}  # fmt: skip
NAMES = {"copies": "16-bit copies of weights", "activations": "activations of the layers"}
SMOOTH = 0.05  # losses are drawn as means over this share of the steps
MEASURED, PREDICTED = "#D55E00", "#0072B2"


def amp(record: Record) -> Any:
    """Draw each step's time, predicted and measured, on a logarithmic axis; the step in FP32 is a line.

    Returns:
        A matplotlib figure.

    Raises:
        EfflabError: matplotlib is missing, or the record has no times to draw.
    """
    plt = pyplot()
    rows = reconcile.points(record, reconcile.TIMES)
    step = next((s for s in record.samples if s.point.get("case") == "step-fp32" and s.metric == "time"), None)
    if not rows or step is None or step.status != "ok":
        raise EfflabError(f"record {record.id}: it has no times of steps to draw. Measure it again.")
    base = median(step.values)
    figure, axes = plt.subplots(figsize=(6.4, 0.62 * len(rows) + 1.7), layout="constrained")
    axes.axvline(base, color="#000000", lw=1.4, ls="--", zorder=1, label=f"step-fp32: {show(base, SECOND)}")
    for y, r in enumerate(rows):
        first = y == 0
        axes.plot([r.predicted, r.measured], [y, y], color="#999999", lw=1.6, zorder=2)
        axes.plot(
            r.predicted, y, marker="D", ms=8, color="none", markeredgecolor=PREDICTED, mew=1.8, ls="none", zorder=3,
            label="predicted" if first else None,
        )  # fmt: skip
        if r.datasheet:
            axes.plot(
                r.datasheet, y, marker="|", ms=15, mew=2.4, color="#009E73", ls="none", zorder=3,
                label="by the data sheet" if not any(other.datasheet for other in rows[:y]) else None,
            )  # fmt: skip
        axes.plot(
            r.measured, y, marker="o", ms=8, color=MEASURED, ls="none", zorder=4, label="measured" if first else None
        )
        said = f"{show(r.measured, r.unit)}, {_against(base, r)}"
        axes.annotate(
            said, (r.measured, y), xytext=(0, 9), textcoords="offset points", fontsize=8.5, ha="center",
            bbox={"boxstyle": "round,pad=0.15", "fc": "white", "ec": "none"}, zorder=2,
        )  # fmt: skip
    axes.set_yticks(range(len(rows)), [r.case for r in rows], fontsize=9)
    axes.set_ylim(len(rows) - 0.5, -0.75)
    axes.set_xscale("log")
    shown = [
        base,
        *(r.predicted for r in rows),
        *(r.measured for r in rows),
        *(r.datasheet for r in rows if r.datasheet),
    ]
    room = max(1.6, (max(shown) / min(shown)) ** 0.22)  # for the texts at both ends
    axes.set_xlim(min(shown) / room, max(shown) * room)
    seconds(axes.xaxis)
    axes.set_xlabel("time of a step (against the step in fp32)")
    axes.set_title(title(record, "steps"), fontsize=10)
    axes.grid(True, axis="x", alpha=0.3)
    figure.legend(loc="outside lower center", ncols=2, fontsize=8.5)
    return figure


def _against(base: float, row: reconcile.Row) -> str:
    """How much faster or slower a row is than the step in FP32; the times of a step that does more work too."""
    factor = base / row.measured
    return f"{factor:.2g}× as fast" if factor >= 1 else f"{1 / factor:.2g}× as long"


def curves(record: Record) -> Any:
    """Draw the losses of the training runs, and below them the share of their gradients that vanished.

    Losses are means over a few steps. A cross marks the step whose loss is not a number.

    Returns:
        A matplotlib figure.

    Raises:
        EfflabError: matplotlib is missing, or the record has no training run.
    """
    plt = pyplot()
    runs = reconcile.curves(record)
    if not runs:
        raise EfflabError(f"record {record.id}: it has no training run to draw. Measure it again.")
    figure, (axes, below) = plt.subplots(
        2, 1, figsize=(6.4, 6.2), height_ratios=[3, 2], sharex=True, layout="constrained"
    )
    for run in runs:
        colour, line, width = LOOKS.get(run.case, OTHER)
        name = run.case.removeprefix("curve-")
        means = _means(run.losses, max(1, round(SMOOTH * max(len(r.losses) for r in runs))))
        if len(means) > 1:
            axes.plot(range(1, len(means) + 1), means, color=colour, ls=line, lw=width, label=name)
        if run.diverged_at is not None:
            axes.plot(
                run.diverged_at + 1, run.losses[-1], marker="X", ms=11, color=colour, markeredgecolor="white",
                ls="none", label=f"{name}: not a number at step {run.diverged_at + 1}", zorder=4,
            )  # fmt: skip
        if run.zero:
            steps = [s + 1 for s in reconcile.checked_steps(record, run)[: len(run.zero)]]
            below.plot(steps, [100 * share for share in run.zero], color=colour, ls=line, lw=width, marker="o", ms=4)
    axes.set_ylabel("loss (nats per character)")
    axes.grid(True, alpha=0.3)
    axes.set_title(title(record, "the same model, the same text"), fontsize=10)
    below.set_xlabel("step")
    below.set_ylabel("gradients lost to zero")
    below.yaxis.set_major_formatter("{x:g}%")
    below.set_ylim(-4, 104)
    below.grid(True, alpha=0.3)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=8.5)
    return figure


def _means(losses: list[float], count: int) -> list[float]:
    """The mean of each loss and those before it, `count` at most."""
    return [sum(part) / len(part) for i in range(len(losses)) if (part := losses[max(0, i + 1 - count) : i + 1])]


def scale(record: Record) -> Any:
    """Draw the loss scale over the steps, with the overflows and, where it was measured, the largest that has none.

    Returns:
        A matplotlib figure.

    Raises:
        EfflabError: matplotlib is missing, or the record has no run with a scaler.
    """
    plt = pyplot()
    run = next((r for r in reconcile.curves(record) if r.overflows), None)
    if run is None:
        raise EfflabError(f"record {record.id}: it has no run with a scaler to draw. Measure it again.")
    exponents = [math.log2(s) for s in run.scales]
    figure, axes = plt.subplots(figsize=(6.4, 4.2), layout="constrained")
    # The scale before a step is the one that it uses.
    axes.step(
        range(1, len(exponents) + 1), exponents, where="post", color="#0072B2", lw=2, label="loss scale", zorder=2
    )
    at = [step for step, overflow in enumerate(run.overflows) if overflow]
    axes.plot(
        [s + 1 for s in at], [exponents[s] for s in at], marker="X", ms=9, color="#D55E00", markeredgecolor="white",
        ls="none", label=f"overflow: the step is skipped ({len(at)} of {len(run.overflows)})", zorder=4,
    )  # fmt: skip
    bounds = [math.log2(b) for b in reconcile.largest_scales(run)]
    if bounds:
        steps = [s + 1 for s in reconcile.checked_steps(record, run)[: len(bounds)]]
        axes.plot(
            steps, bounds, marker="v", ms=8, color="none", markeredgecolor="#000000", mew=1.4, ls="none",
            label="65,504 over the largest gradient, at some steps", zorder=3,
        )  # fmt: skip
    low, high = math.floor(min([*exponents, *bounds])), math.ceil(max([*exponents, *bounds]))
    every = max(1, (high - low) // 8)
    axes.set_yticks(range(low, high + 1, every), [f"$2^{{{e}}}$" for e in range(low, high + 1, every)])
    axes.set_ylim(low - 0.5, high + 0.5)
    axes.set_xlabel("step")
    axes.set_ylabel("loss scale")
    axes.set_title(title(record, "the loss scale"), fontsize=10)
    axes.grid(True, alpha=0.3)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=1, fontsize=8.5)
    return figure


def memory(record: Record) -> Any:
    """Draw the bytes of each training step by part, predicted above measured.

    Returns:
        A matplotlib figure.

    Raises:
        EfflabError: matplotlib is missing, or the record has no bytes of a step.
    """
    plt = pyplot()
    rows = reconcile.points(record, ("memory",))
    if not rows:
        raise EfflabError(f"record {record.id}: it has no bytes of a step to draw. Measure it again.")
    samples = {str(s.point["case"]): s for s in record.samples if s.metric == "memory"}
    figure, axes = plt.subplots(figsize=(6.4, 0.6 * len(rows) + 2.1), layout="constrained")
    for n, row in enumerate(rows):
        expected = reconcile.expected_bytes(samples[row.case].point, record.environment.kind)
        for offset, values, alpha in ((-0.2, expected, 0.55), (0.2, _measured(record, samples[row.case]), 1.0)):
            left = 0.0
            for part, colour in PARTS.items():
                size = values.get(part, 0.0)
                label = NAMES.get(part, part) if n == 0 and alpha == 1.0 else None
                axes.barh(n + offset, size, 0.36, left=left, color=colour, alpha=alpha, label=label)
                left += size
    axes.set_yticks(range(len(rows)), [r.case.removeprefix("memory-") for r in rows], fontsize=9)
    axes.invert_yaxis()
    top = axes.get_xlim()[1]
    unit, factor = ("GB", 1e9) if top >= 1e9 else ("MB", 1e6) if top >= 1e6 else ("kB", 1e3)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value / factor:g}")
    axes.set_xlabel(f"{unit}; pale: predicted, full: measured")
    axes.set_title(title(record, "a training step"), fontsize=10)
    axes.grid(True, axis="x", alpha=0.3)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=8.5)
    return figure


def _measured(record: Record, kept: Sample) -> dict[str, float]:
    """What was measured of each part; the copies are counted, and the rest of what layers keep is activations."""
    found = {
        s.metric: median(s.values)
        for s in record.samples
        if s.point == kept.point and s.status == "ok" and s.metric in (*PARTS, "weight_copies")
    }
    found["copies"] = found.pop("weight_copies", 0.0)
    return found | {"activations": median(kept.values) - found["copies"]}
