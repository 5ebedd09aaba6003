"""Inputs that come from the catalog."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from efflab.calculators.parts import Choice, Option, Slider, whole
from efflab.catalog import BYTES_PER_ELEMENT, Accelerator, accelerators, models
from efflab.units import BYTE

CUSTOM = "custom"
MATRIX, VECTOR = "matrix", "vector"


def missing_peak(dtype: str, units: str = MATRIX) -> str:
    """What to say where the accelerator chosen has no peak of the data type that the choice `dtype` names."""
    if units == VECTOR:
        return f"The catalog has no {{{dtype}}} rate of {{accelerator}}'s vector units."
    return f"{{accelerator}} has no dense {{{dtype}}} peak. It has: {{has}}. The nearest is {{nearest}}."


def pick(
    name: str,
    options: Iterable[Option],
    *,
    default: str,
    own: Mapping[str, str],
    label: str = "",
    by: Mapping[str, str] | None = None,
    missing: Mapping[str, str] | None = None,
    shared: bool = True,
) -> Choice:
    """A choice among catalog entries, each of which sets several values at once.

    The last option, "custom", takes them from the reader: `own` is value name to the name of the input (or computed
    value) that it is taken from. An entry that lacks some of them does not belong among `options`.
    """
    custom = Option(CUSTOM, "Custom: own numbers", takes=own)
    return Choice(
        name, [*options, custom], default=default, label=label, by=by or {}, missing=missing or {}, shared=shared
    )


def pick_accelerator(
    default: str = "H200 SXM",
    *,
    dtype: str = "dtype",
    peaks: Mapping[str, str] | None = None,
    sets: Mapping[str, str] | None = None,
) -> Choice:
    """A choice of accelerator that sets what `sets` names and, by the choice `dtype`, dense peak performance.

    `sets`: value name to the property of `Accelerator`; `memory_bandwidth` if None. `peaks` names the peaks: value
    name to the units that reach it, `MATRIX` (the highest dense peak of the data type) or `VECTOR` (the units that
    run elementwise kernels: FP64 for fp64, FP32 for all else); with {} there is none and no dtype is needed. The
    last option, "custom", takes them all from the sliders of `custom_accelerator()`.
    """
    peaks = {"peak_performance": MATRIX} if peaks is None else peaks
    sets = {"memory_bandwidth": "memory_bandwidth"} if sets is None else sets
    options = [
        Option(
            a.name,
            sets={n: getattr(a, source) for n, source in sets.items()}
            | {n: _vector_peaks(a) if units == VECTOR else a.peak_dense for n, units in peaks.items()},
            group=a.vendor,
        )
        for a in accelerators().values()
    ]
    return pick(
        "accelerator",
        options,
        default=default,
        own={n: f"own_{source}" for n, source in sets.items()} | dict.fromkeys(peaks, "own_peak_performance"),
        by=dict.fromkeys(peaks, dtype),
        missing={n: missing_peak(dtype, units) for n, units in peaks.items()},
    )


_OWN_ACCELERATOR = {
    "peak_performance": Slider(
        "own_peak_performance", 1e9, 1e16, default=1e14, scale="log", label="Peak performance", help="dense"
    ),
    "memory_bandwidth": Slider("own_memory_bandwidth", 1e9, 1e14, default=2e12, scale="log", label="Memory bandwidth"),
    "memory": Slider("own_memory", 1e9, 1e13, default=24e9, scale="log", label="Memory", unit=BYTE),
}


def custom_accelerator(*names: str) -> list[Slider]:
    """The sliders for an accelerator of one's own: "peak_performance" and "memory_bandwidth" unless named."""
    return [_OWN_ACCELERATOR[n] for n in names or ("peak_performance", "memory_bandwidth")]


def pick_model(default: str, *, sets: Mapping[str, str], own: Mapping[str, str] | None = None) -> Choice:
    """A choice of published model. `sets`: value name to the property of `Model` or of its architecture.

    Models of which the catalog does not know all of them are left out. The last option, "custom", takes them from
    the sliders of `custom_model()`, unless `own` says otherwise.
    """
    options = []
    for m in models().values():
        known = m.architecture() | {"parameters": m.parameters, "tokens": m.tokens}
        values = {name: known[source] for name, source in sets.items()}
        if None not in values.values():
            options.append(Option(m.name, sets=values, group=m.maker))
    own = own or {name: f"own_{source}" for name, source in sets.items()}
    return pick("model", options, default=default, own=own)


# A small model with the shape of GPT-2 124M.
_OWN_MODEL = {
    "parameters": Slider("own_parameters", 1e6, 1e13, default=124e6, scale="log", label="Parameters"),
    "tokens": Slider("own_tokens", 1e6, 1e15, default=2.5e9, scale="log", label="Training tokens"),
    "layers": whole("own_layers", 256, 12, "Layers"),
    "hidden_size": whole("own_hidden_size", 65536, 768, "Hidden size"),
    "intermediate_size": whole("own_intermediate_size", 262144, 3072, "Width of the MLP"),
    "query_heads": whole("own_query_heads", 512, 12, "Query heads"),
    "kv_heads": whole("own_kv_heads", 512, 12, "KV heads"),
    "head_dim": whole("own_head_dim", 512, 64, "Head dimension"),
    "vocabulary": whole("own_vocabulary", 524288, 50257, "Vocabulary"),
}


def custom_model(*names: str) -> list[Slider]:
    """The sliders for a model of one's own, by the properties that `pick_model` sets."""
    return [_OWN_MODEL[n] for n in names]


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
