"""Inputs that come from the catalog."""

from __future__ import annotations

from collections.abc import Sequence

from efflab.calculators.parts import Choice, Option, Slider
from efflab.catalog import BYTES_PER_ELEMENT, accelerators

CUSTOM = "custom"
_OWN = ("peak_performance", "memory_bandwidth")


def pick_accelerator(default: str = "H200 SXM", *, dtype: str = "dtype") -> Choice:
    """A choice of accelerator that sets `memory_bandwidth` and, by the choice `dtype`, the dense `peak_performance`.

    The last option, "custom", takes them from the sliders of `custom_accelerator()`.
    """
    options = [
        Option(
            a.name,
            sets={"memory_bandwidth": a.memory_bandwidth, "peak_performance": a.peak_dense},
            group=a.vendor,
        )
        for a in accelerators().values()
    ]
    return Choice(
        "accelerator",
        [*options, Option(CUSTOM, "Custom: your own numbers", takes={n: f"own_{n}" for n in _OWN})],
        default=default,
        by={"peak_performance": dtype},
        missing="{accelerator} has no dense {dtype} peak. It has: {has}.",
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
    known = {d for a in accelerators().values() for d in a.peak_dense}
    options = [Option(d, sets=dict.fromkeys(sets, b)) for d, b in BYTES_PER_ELEMENT.items() if d in known]
    return Choice("dtype", options, default=default, label="Data type")
