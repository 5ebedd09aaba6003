"""Energy drawn: what a sample costs by batch and dtype, the power of each case, and the windows of the counter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from efflab.errors import EfflabError
from efflab.formulas.energy import counter_error
from efflab.plots import pyplot, seconds, ticks, title
from efflab.reconcile import energy as reconcile
from efflab.reconcile import modelled_energy, unsigned
from efflab.records import PERIODS, Record, Sample, median
from efflab.units import JOULE, SECOND, WATT, show

LOOKS = {"fp32": ("#D55E00", "o"), "tf32": ("#E69F00", "D"), "bf16": ("#0072B2", "s"), "fp16": ("#009E73", "^")}
MEASURED, BOUND, BAND = "#D55E00", "#0072B2", "#56B4E9"
KINDS = {"idle": "#999999", "calibration": "#0072B2", "inference": "#009E73", "training": "#D55E00"}
SHORTEST, LONGEST = 1e-3, 10.0  # s; windows of the bound where none was measured
WIDE = 5.4  # inches of a figure; on a page 350 px wide its smallest text, 7.5 points, is 7 px high


def energy(record: Record) -> Any:
    """Draw what a sample takes over the batch, by dtype: its time, and below it its energy.

    Lines of the time are those through the two batches that calibrate. The energy is as counted; where there is no
    counter it is the modelled band of the first dtype.

    Returns:
        A matplotlib figure.

    Raises:
        EfflabError: matplotlib is missing, or the record has no times to draw.
    """
    plt = pyplot()
    found = {d: reconcile.batches_of(record, d) for d in reconcile.DTYPES}
    found = {d: samples for d, samples in found.items() if samples}
    if not found:
        raise EfflabError(f"record {record.id}: it has no times of batches to draw. Measure it again.")
    costs = {d: _joules(record, samples) for d, samples in found.items()}
    first = next(iter(found))
    modelled = not any(costs.values()) and modelled_energy(record, 1.0) is not None
    two = modelled or any(costs.values())
    figure, drawn = plt.subplots(
        1 + two, 1, figsize=(WIDE, 7.2 if two else 4.2), sharex=True, squeeze=False, layout="constrained"
    )
    axes = drawn[0][0]
    for dtype, samples in found.items():
        colour, marker = LOOKS[dtype]
        at = [float(s.point["batch"]) for s in samples]  # type: ignore[arg-type]
        axes.plot(
            at, [median(s.values) / b for s, b in zip(samples, at, strict=True)], color=colour, marker=marker, ms=7,
            ls="none", label=f"{dtype}, measured",
        )  # fmt: skip
        if line := reconcile.line(record, dtype):
            steps = [at[0] * (at[-1] / at[0]) ** (i / 60) for i in range(61)]
            axes.plot(
                steps,
                [line[0] / b + line[1] for b in steps],
                color=colour,
                lw=1.3,
                ls="--",
                label=f"{dtype}, predicted",
            )
    _both_logarithmic(axes, found[first])
    seconds(axes.yaxis)
    axes.set_ylabel("time of a sample")
    axes.set_title(title(record, "a sample in a batch"), fontsize=10)
    below = drawn[-1][0]
    if two:
        for dtype, points in costs.items():
            colour, marker = LOOKS[dtype]
            below.plot([b for b, _ in points], [e for _, e in points], color=colour, marker=marker, ms=7, lw=1.3)
        if modelled:
            _band(record, below, found[first], first)
        _both_logarithmic(below, found[first])
        _written(below.yaxis, lambda value: show(value, JOULE))
        below.set_ylabel("energy of a sample: " + ("modelled" if modelled else "counted"))
        if modelled:
            below.legend(loc="upper right", fontsize=8.5)
    below.set_xlabel("batch")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=8.5)
    return figure


def _joules(record: Record, samples: list[Sample]) -> list[tuple[float, float]]:
    """Batch and energy of a sample as counted, J."""
    rows = [(float(s.point["batch"]), reconcile.per_sample(record, s)) for s in samples]  # type: ignore[arg-type]
    return [(batch, joules) for batch, joules in rows if joules is not None]


def _band(record: Record, axes: Any, samples: list[Sample], dtype: str) -> None:
    """The modelled energy of a sample between its two ends."""
    at = [float(s.point["batch"]) for s in samples]  # type: ignore[arg-type]
    ends = [modelled_energy(record, median(s.values) / b) for s, b in zip(samples, at, strict=True)]
    low, high = ([e[i] for e in ends if e] for i in (0, 1))
    axes.fill_between(at, low, high, color=BAND, alpha=0.4, lw=0, label=f"{dtype}: not measured; it lies in the band")


def _both_logarithmic(axes: Any, samples: list[Sample]) -> None:
    axes.set(xscale="log", yscale="log")
    at = [s.point["batch"] for s in samples]
    axes.set_xticks(at, [f"{b:,}" for b in at], fontsize=8.5)
    axes.set_xticks([], minor=True)
    axes.grid(True, alpha=0.3)


def _written(axis: Any, text: Callable[[float], str]) -> None:
    """Ticks of a logarithmic axis, as a number is written."""
    at = ticks(*axis.get_view_interval())
    axis.set_ticks(at, [text(t) for t in at], fontsize=8.5)
    axis.set_ticks([], minor=True)


def power(record: Record) -> Any:
    """Draw the mean power of each case against the power limit; without a counter the band that the rating allows.

    Of the batches of a dtype the smallest and the largest are drawn.
    Where there is no rating either, the picture says so and shows no power.

    Returns:
        A matplotlib figure.

    Raises:
        EfflabError: matplotlib is missing.
    """
    plt = pyplot()
    found, modelled = reconcile.powers(record), modelled_energy(record, 1.0)
    roles = {str(s.point.get("case")): str(s.point.get("role")) for s in record.samples}
    batches = [[str(s.point["case"]) for s in reconcile.batches_of(record, d)] for d in reconcile.DTYPES]
    middle = {case for some in batches for case in some[1:-1]}
    found = {case: watts for case, watts in found.items() if case not in middle}
    figure, axes = plt.subplots(figsize=(WIDE, 0.24 * max(3, len(found)) + 2.0), layout="constrained")
    for y, (case, watts) in enumerate(found.items()):
        axes.barh(y, watts, 0.7, color=KINDS[roles[case]])
        axes.annotate(
            show(watts, WATT), (watts, y), xytext=(4, 0), textcoords="offset points", fontsize=7.5, va="center"
        )
    if found:
        axes.set_yticks(range(len(found)), list(found), fontsize=8)
        axes.set_ylim(len(found) - 0.4, -0.6)
        limits = reconcile.power_limits(record)
        if "limit" in limits:
            axes.axvline(
                limits["limit"], color="#000000", lw=1.4, ls="--", label=f"power limit: {show(limits['limit'], WATT)}"
            )
        axes.set_xlim(0, 1.18 * max([*found.values(), limits.get("limit", 0.0)]))
        axes.set_title(title(record, "mean power, as counted"), fontsize=10)
    elif modelled is not None and record.energy.rating is not None:
        low, high = modelled
        axes.barh(0, high - low, 0.5, left=low, color=BAND, alpha=0.6, label="modelled: it lies somewhere in here")
        rating = record.energy.rating
        for watts in dict.fromkeys(rating):
            axes.axvline(watts, color="#000000", lw=1.4, ls="--")
        axes.plot(
            [], [], color="#000000", lw=1.4, ls="--", label="rated power" + (", its ends" * (rating[0] < rating[1]))
        )
        axes.set_yticks([0], ["every case"], fontsize=9)
        axes.set_ylim(-1, 1)
        axes.set_xlim(0, 1.1 * high)
        axes.set_title(title(record, "mean power, not measured"), fontsize=10)
    else:
        axes.text(0.5, 0.5, "Power was neither measured nor is it rated.", ha="center", transform=axes.transAxes)
        axes.set_yticks([])
        axes.set_title(title(record, "mean power, not known"), fontsize=10)
    axes.set_xlabel("mean power while a case runs")
    axes.xaxis.set_major_formatter(lambda value, _: show(value, WATT))
    axes.tick_params(axis="x", labelsize=8.5)
    axes.grid(True, axis="x", alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
        figure.legend(loc="outside lower center", ncols=1, fontsize=8.5)
    return figure


def windows(record: Record) -> Any:
    """Draw how far a window's energy is off over the window's length, with the bound: the counter's period over it.

    Of a run without a counter there are the bounds alone, for the periods of the counters that are read elsewhere.

    Returns:
        A matplotlib figure.

    Raises:
        EfflabError: matplotlib is missing.
    """
    plt = pyplot()
    found = reconcile.windows(record)
    figure, axes = plt.subplots(figsize=(WIDE, 4.6), layout="constrained")
    lengths = [w.seconds for w in found]
    low, high = (lengths[0] / 1.5, lengths[-1] * 1.5) if found else (SHORTEST, LONGEST)
    steps = [low * (high / low) ** (i / 60) for i in range(61)]
    periods = {"": float(record.spec["period"])} if found else PERIODS  # type: ignore[arg-type]
    for style, (name, period) in zip(("-", "--"), periods.items(), strict=False):
        bound = [float(counter_error(update_period=period, window=s)) for s in steps]
        of = f" of {reconcile.COUNTERS[name]}" if name else ""
        axes.plot(steps, bound, color=BOUND, lw=1.8, ls=style, label=f"bound: a period{of} of {show(period, SECOND)}")
    if found:
        off = [(w.seconds, w.deviation) for w in found if w.deviation]
        axes.plot(
            [s for s, _ in off], [d for _, d in off], color=MEASURED, marker="o", ms=8, ls="none",
            label="furthest of the repeats, measured",
        )  # fmt: skip
        for w in found:
            axes.annotate(
                f"{len(w.gains) - w.still}/{len(w.gains)}", (w.seconds, w.deviation or w.bound), xytext=(0, -14),
                textcoords="offset points", fontsize=7.5, ha="center",
            )  # fmt: skip
    axes.axhline(reconcile.TOLERANCE, color="#999999", lw=1.2, ls=":", label=f"{unsigned(reconcile.TOLERANCE)} off")
    axes.set(xscale="log", yscale="log", xlim=(low, high))
    lowest, highest = axes.get_ylim()
    axes.set_ylim(lowest / 1.6, highest)
    axes.set_xlabel(
        "length of the window" + ("\n(below each point: repeats in which the counter moved)" if found else "")
    )
    seconds(axes.xaxis)
    _written(axes.yaxis, lambda value: f"{100 * value:,.3g}%" if value < 1 else f"{100 * value:,.0f}%")
    axes.set_ylabel("error of its energy, relative")
    axes.set_title(
        title(record, "windows of the counter" if found else "bounds; no counter was read here"), fontsize=10
    )
    axes.grid(True, alpha=0.3)
    figure.legend(loc="outside lower center", ncols=1, fontsize=8.5)
    return figure
