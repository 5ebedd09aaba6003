"""What bits buy: error against throughput by dtype, and the memory of a training step."""

from __future__ import annotations

from typing import Any

from efflab.errors import EfflabError
from efflab.plots import COLOURS, pyplot, title
from efflab.reconcile import precision as reconcile
from efflab.records import Record, Sample, median
from efflab.units import FLOP_PER_SECOND, show

MARKERS = ("o", "s", "D", "^", "v", "P", "X")
PARTS = {
    "weights": "#0072B2", "gradients": "#56B4E9", "optimizer": "#009E73", "activations": "#E69F00", "outside": "#999999"
}  # fmt: skip


def precision(record: Record) -> Any:
    """Draw each dtype's error against the rate of its largest product, both axes logarithmic.

    float64 is the reference and has no error; its rate is a vertical line.

    Returns:
        A matplotlib figure.

    Raises:
        EfflabError: matplotlib is missing, or the record has no dtype with both a rate and an error.
    """
    plt = pyplot()
    rates, errors = reconcile.peaks(record), reconcile.dtype_errors(record)
    both = [d for d in rates if d in errors]
    if not both:
        raise EfflabError(f"record {record.id}: no dtype has a rate and an error to draw. Measure it again.")
    figure, axes = plt.subplots(figsize=(6.4, 4.6), layout="constrained")
    for colour, marker, dtype in zip(COLOURS[1:], MARKERS, both, strict=False):
        axes.scatter(rates[dtype], errors[dtype], s=90, color=colour, marker=marker, edgecolor="white", zorder=3)
    if "fp64" in rates:
        label = f"fp64, the reference: {show(rates['fp64'], FLOP_PER_SECOND)}"
        axes.axvline(rates["fp64"], color=COLOURS[0], lw=1.2, ls="--", zorder=1, label=label)
        figure.legend(loc="outside lower right", fontsize=9)
    shown = [rates[d] for d in rates if d in both or d == "fp64"]
    axes.set(xscale="log", yscale="log", xlim=(min(shown) / 2, max(shown) * 3))
    axes.set_ylim(min(errors[d] for d in both) / 5, max(errors[d] for d in both) * 10)
    axes.set_xlabel("rate of the largest product (FLOP/s; int8: operations/s)")
    axes.set_ylabel("relative error (Frobenius norm)")
    axes.set_title(title(record, "error against rate"), fontsize=10)
    axes.grid(True, which="major", alpha=0.3)
    texts = {d: f"{d}: {show(rates[d], FLOP_PER_SECOND)}\nerror {show(errors[d], digits=2)}" for d in both}
    _label(figure, axes, {texts[d]: (rates[d], errors[d]) for d in both}, rates.get("fp64"))
    return figure


# Where a label may stand, from its point, in points: the offset and which of its own sides lies there.
PLACES = tuple(
    ((x * far, y * far), ("left" if x > 0 else "right" if x < 0 else "center"),
     ("bottom" if y > 0 else "top" if y < 0 else "center"))
    for far in (8, 16, 28, 44)
    for x, y in ((0, 1), (0, -1), (1, 0), (-1, 0), (1, 1), (-1, 1), (1, -1), (-1, -1))
)  # fmt: skip


def _label(figure: Any, axes: Any, points: dict[str, tuple[float, float]], line: float | None) -> None:
    """Set each label beside its point where it stays inside the frame and covers nothing.

    Nothing is another label, a marker or the vertical line at `line`, and no other marker is near. Where there is no
    such place, the one that covers fewest of them is taken.
    """
    from matplotlib.text import Text
    from matplotlib.transforms import Bbox

    figure.draw_without_rendering()  # from here on the frame lies where it will be drawn
    figure.set_layout_engine("none")
    frame, half = axes.get_window_extent(), 7 * figure.dpi / 72
    markers = {}
    for text, place in points.items():
        x, y = axes.transData.transform(place)
        markers[text] = Bbox.from_extents(x - half, y - half, x + half, y + half)
    taken = []
    if line is not None:
        x = axes.transData.transform((line, next(iter(points.values()))[1]))[0]
        taken.append(Bbox.from_extents(x - 2, frame.y0, x + 2, frame.y1))
    for text, point in points.items():
        beside = [box.padded(half) for other, box in markers.items() if other != text]  # a label belongs to one marker
        best: tuple[int, Any, Any] | None = None
        for offset, across, up in PLACES:
            far = max(map(abs, offset)) > 16
            note = axes.annotate(
                text, point, xytext=offset, textcoords="offset points", fontsize=9, ha=across, va=up, zorder=4,
                arrowprops={"arrowstyle": "-", "lw": 0.8, "color": "#999999"} if far else None,
            )  # fmt: skip
            note.get_window_extent()  # sets it beside its point
            box = Text.get_window_extent(note)  # without the line that leads to it
            outside = box.x0 < frame.x0 + 2 or box.x1 > frame.x1 - 2 or box.y0 < frame.y0 + 2 or box.y1 > frame.y1 - 2
            covered = 100 * outside + 10 * sum(box.overlaps(other) for other in (*markers.values(), *taken))
            covered += sum(box.overlaps(other) for other in beside)
            if best is None or covered < best[0]:
                if best is not None:
                    best[1].remove()
                best = covered, note, box
            else:
                note.remove()
            if covered == 0:
                break
        assert best is not None
        taken.append(best[2])


def memory(record: Record) -> Any:
    """Draw the bytes of each training step by part, predicted above measured.

    Where the step was measured as the allocator's peak, a line marks it: it may exceed the sum of the parts.

    Returns:
        A matplotlib figure.

    Raises:
        EfflabError: matplotlib is missing, or the record has no training step.
    """
    plt = pyplot()
    rows = reconcile.points(record, ("step",))
    if not rows:
        raise EfflabError(f"record {record.id}: it has no training step to draw. Measure it again.")
    samples = {str(s.point["case"]): s for s in record.samples if s.metric == "memory"}
    figure, axes = plt.subplots(figsize=(6.6, 0.5 * len(rows) + 1.6), layout="constrained")
    ticks, names = [], []
    for n, row in enumerate(rows):
        sample = samples[row.case]
        expected = reconcile.expected_bytes(sample.point, record.environment.kind)
        for offset, values, alpha in ((-0.2, expected, 0.55), (0.2, _measured(record, sample), 1.0)):
            left = 0.0
            for part, colour in PARTS.items():
                size = values.get(part, 0.0)
                label = part if n == 0 and alpha == 1.0 else None
                axes.barh(n + offset, size, 0.36, left=left, color=colour, alpha=alpha, label=label)
                left += size
        axes.plot([row.measured] * 2, [n + 0.02, n + 0.38], color="#000000", lw=2)
        ticks.append(n)
        names.append(row.case.removeprefix("step-"))
    axes.set_yticks(ticks, names, fontsize=9)
    axes.invert_yaxis()
    top = axes.get_xlim()[1]
    unit, factor = ("GB", 1e9) if top >= 1e9 else ("MB", 1e6) if top >= 1e6 else ("kB", 1e3)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value / factor:g}")
    axes.set_xlabel(f"{unit}; pale: predicted, full: measured,\nblack line: the whole step as measured")
    axes.set_title(title(record, "a training step"), fontsize=10)
    axes.grid(True, axis="x", alpha=0.3)
    axes.legend(loc="lower right", fontsize=8)
    return figure


def _measured(record: Record, step: Sample) -> dict[str, float]:
    return {
        s.metric: median(s.values)
        for s in record.samples
        if s.metric in PARTS and s.point == step.point and s.status == "ok"
    }
