"""Inputs that come from the catalog."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from efflab.calculators.parts import Choice, Option, Slider
from efflab.catalog import BYTES_PER_ELEMENT, Accelerator, accelerators

CUSTOM = "custom"
MATRIX, VECTOR = "matrix", "vector"
_MISSING = {
    MATRIX: "{accelerator} has no dense {dtype} peak. It has: {has}. The nearest is {nearest}.",
    VECTOR: "The catalog has no {dtype} rate of {accelerator}'s vector units.",
}


def pick_accelerator(
    default: str = "H200 SXM", *, dtype: str = "dtype", peaks: Mapping[str, str] | None = None
) -> Choice:
    """A choice of accelerator that sets `memory_bandwidth` and, by the choice `dtype`, dense peak performance.

    `peaks` names the peaks: value name to the units that reach it, `MATRIX` (the highest dense peak of the data
    type) or `VECTOR` (the units that run elementwise kernels: FP64 for fp64, FP32 for all else). The last option,
    "custom", takes them from the sliders of `custom_accelerator()`.
    """
    peaks = peaks or {"peak_performance": MATRIX}
    options = [
        Option(
            a.name,
            sets={"memory_bandwidth": a.memory_bandwidth}
            | {n: _vector_peaks(a) if units == VECTOR else a.peak_dense for n, units in peaks.items()},
            group=a.vendor,
        )
        for a in accelerators().values()
    ]
    own = {"memory_bandwidth": "own_memory_bandwidth"} | dict.fromkeys(peaks, "own_peak_performance")
    return Choice(
        "accelerator",
        [*options, Option(CUSTOM, "Custom: your own numbers", takes=own)],
        default=default,
        by=dict.fromkeys(peaks, dtype),
        missing={n: _MISSING[units] for n, units in peaks.items()},
        shared=True,
    )


def custom_accelerator() -> list[Slider]:
    """The sliders for an accelerator of one's own."""
    return [
        Slider("own_peak_performance", 1e9, 1e16, default=1e14, scale="log", label="Peak performance", help="dense"),
        Slider("own_memory_bandwidth", 1e9, 1e14, default=2e12, scale="log", label="Memory bandwidth"),
    ]


def pick_dtype(default: str = "bf16", *, sets: Sequence[str] = ("bytes_per_element",)) -> Choice:
    """A choice of dtype, among those that any accelerator has a dense peak for; it sets the bytes of an element."""
    options = [Option(d, sets=dict.fromkeys(sets, BYTES_PER_ELEMENT[d])) for d in _dtypes()]
    return Choice("dtype", options, default=default, label="Data type", shared=True)


def _dtypes() -> list[str]:
    """Floating point from wide to narrow, then integers: the nearest in this order is the next best."""
    known = {d for a in accelerators().values() for d in a.peak_dense}
    return sorted((d for d in BYTES_PER_ELEMENT if d in known), key=lambda d: d.startswith("int"))


def _vector_peaks(accelerator: Accelerator) -> dict[str, float]:
    """What the vector units reach on operands of each dtype, FLOP/s; narrow ones are widened to FP32."""
    peaks = accelerator.peak_dense
    widened = {d: "fp64" if d == "fp64" else "fp32" for d in _dtypes()}
    return {d: peaks[wide] for d, wide in widened.items() if wide in peaks}
