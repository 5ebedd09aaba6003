"""Calculators of the chapter on compute, bandwidth and overhead."""

from __future__ import annotations

from typing import Any

from efflab.calculators.calculator import Calculator
from efflab.calculators.parts import Case, Choice, Curve, Line, Mark, Option, Output, Ratio, Run, Slider, Value, whole
from efflab.calculators.picks import MATRIX, VECTOR, custom_accelerator, pick_accelerator, pick_dtype
from efflab.formulas import roofline
from efflab.reconcile.roofline import datasheet, points
from efflab.records import recorded
from efflab.units import FLOP_PER_SECOND


def recorded_runs() -> list[Run]:
    """The newest recorded run of the roofline lab on each device."""
    newest = {r.environment.device: r for r in recorded("roofline") if r.scale != "smoke"}
    runs = []
    for device, record in newest.items():
        entry = datasheet(record)
        runs.append(
            Run(
                label=f"{device}, {record.created[:10]}",
                option=("accelerator", entry.name) if entry else None,
                points=[(r.arithmetic_intensity, r.performance, r.case) for r in points(record, roles=("kernel",))],
            )
        )
    return runs


_COUNTS = ("flops", "bytes_moved")


def _kernel(group: str, name: str, label: str) -> Option:
    """A kernel: its counts, the units that run it, and how many calls it is."""
    unit = "vector_peak" if group in ("Elementwise", "Row by row") else "matrix_peak"
    chained = name == "unfused_chain"
    return Option(
        name,
        label,
        group=group,
        formulas=dict(zip(_COUNTS, roofline.KERNELS[name], strict=True)),
        sets={} if chained else {"kernel_calls": 1},
        takes={"peak_performance": unit} | ({"kernel_calls": "operations"} if chained else {}),
    )


_KERNELS = Choice(
    "kernel",
    [
        _kernel("Matrix products", "matmul", "Matrix times matrix"),
        _kernel("Matrix products", "gemv", "Matrix times vector"),
        _kernel("Elementwise", "unfused_chain", "Elementwise chain, unfused"),
        _kernel("Elementwise", "fused_chain", "Elementwise chain, fused"),
        _kernel("Row by row", "softmax", "Softmax"),
        _kernel("Row by row", "layer_norm", "Layer norm"),
        _kernel("Attention", "attention_prefill", "Attention, prefill"),
        _kernel("Attention", "attention_decode", "Attention, decode"),
        Option(
            "custom",
            "Custom: your own FLOP and bytes",
            sets={"kernel_calls": 1},
            takes={n: f"own_{n}" for n in _COUNTS} | {"peak_performance": "matrix_peak"},
        ),
    ],
    default="matmul",
)

_MASK = Choice(
    "mask",
    [Option("causal", "Causal", sets={"causal": True}), Option("full", "Full", sets={"causal": False})],
    default="causal",
)

_SIZES = [
    whole("m", 131072, 4096, "m", "rows"),
    whole("n", 131072, 4096, "n", "columns"),
    whole("k", 131072, 4096, "k", "the inner dimension"),
    whole("elements", 2**34, 2**26, "Elements"),
    whole("operations", 1024, 8, "Operations", "in the chain"),
    whole("rows", 2**24, 8192, "Rows"),
    whole("columns", 2**20, 4096, "Columns"),
    _MASK,
    whole("batch", 4096, 8, "Batch", "sequences"),
    whole("query_heads", 256, 32, "Query heads"),
    whole("kv_heads", 256, 8, "KV heads"),
    whole("sequence_length", 2**21, 4096, "Sequence length", "tokens"),
    whole("context_length", 2**21, 4096, "Context length", "tokens in the KV cache"),
    whole("head_dim", 512, 128, "Head dimension"),
    Slider("own_flops", 1, 1e21, default=1e12, scale="log", label="Operations"),
    Slider("own_bytes_moved", 1, 1e18, default=1e10, scale="log", label="Bytes moved"),
]


def _calls(**ways: tuple[Any, Any]) -> Choice:
    """Whether calls are waited for. `ways`: value name to what gives it when queued and when waited for.

    Each way is a formula, or the name of an output.
    """

    def option(name: str, label: str, index: int) -> Option:
        chosen = {n: pair[index] for n, pair in ways.items()}
        return Option(
            name,
            label,
            takes={n: w for n, w in chosen.items() if isinstance(w, str)},
            formulas={n: w for n, w in chosen.items() if not isinstance(w, str)},
        )

    options = [option("queued", "Queued ahead", 0), option("waited", "Each waited for", 1)]
    return Choice("calls", options, default="queued", label="Calls")


def _overhead(default: float, help: str = "") -> Slider:
    return Slider("overhead", 1e-7, 1e-2, default=default, scale="log", zero=True, label="Overhead per call", help=help)


explorer = Calculator(
    name="roofline-explorer",
    topic="roofline",
    title="Where does this kernel sit on the roofline?",
    intro="Choose an accelerator and a kernel. The roof is the most that the accelerator can do at each "
    "arithmetic intensity; the dot is the most that this kernel can reach.",
    inputs=[
        pick_accelerator(peaks={"matrix_peak": MATRIX, "vector_peak": VECTOR}),
        *custom_accelerator(),
        pick_dtype(),
        _KERNELS,
        *_SIZES,
        _overhead(0.0, "unfused: per operation"),
        _calls(time=("queued_time", "waited_time")),
    ],
    outputs=[
        Value("flops", "Operations"),
        Value("bytes_moved", "Bytes moved"),
        Output(roofline.arithmetic_intensity),
        Output(roofline.ridge_point),
        Output(roofline.attainable_performance, label="Roof at this intensity"),
        Ratio("performance", "flops", "time", label="Performance, at most", unit=FLOP_PER_SECOND),
        Ratio("share_of_peak", "compute_time", "time", label="Share of peak, at most", percent=True),
        Value("time", "Time, at least"),
        Output(roofline.compute_time, label="Arithmetic alone"),
        Output(roofline.memory_time, label="Memory traffic alone"),
        Output(roofline.overhead_of_calls, given={"calls": "kernel_calls"}, shown=False),
        Output(roofline.queued_time, given={"overhead": "overhead_of_calls"}, shown=False),
        Output(roofline.roofline_time, "waited_time", given={"overhead": "overhead_of_calls"}, shown=False),
        Output(roofline.limiting_factor, given={"overhead": "overhead_of_calls"}, shown=False),
        Ratio("below_ridge", "ridge_point", "arithmetic_intensity", shown=False),
        Ratio("above_ridge", "arithmetic_intensity", "ridge_point", shown=False),
    ],
    curve=Curve(
        x="arithmetic_intensity",
        low=0.1,
        high=1e4,
        lines=[Line("attainable_performance", "{dtype}")],
        vary="dtype",
        marks=[Mark("ridge_point", "ridge point {ridge_point}", y="peak_performance")],
        at=[("arithmetic_intensity", "performance")],
        at_label="this kernel, at most",
        slope_label="{memory_bandwidth}",
        y_label="Performance",
        describe="Roofline, both axes logarithmic. Performance rises with arithmetic intensity at {memory_bandwidth} "
        "up to the ridge point at {ridge_point}, and stays at {peak_performance} beyond. "
        "The dot: {arithmetic_intensity}, at most {performance}.",
        runs=recorded_runs,
    ),
    verdict=[
        Case("No such attention: it has more KV heads than query heads.", [("kv_heads", ">", "query_heads")]),
        Case(
            "Overhead-bound: the kernel takes {time}, its overhead alone {overhead_of_calls}. Larger or fewer calls "
            "would help, a faster accelerator would hardly.",
            [("limiting_factor", "==", 0)],
        ),
        Case(
            "Balanced: within 10% of the ridge point, so arithmetic and memory traffic take about the same time.",
            [("below_ridge", "<", 1.1), ("above_ridge", "<", 1.1)],
        ),
        Case(
            "Memory-bound: {below_ridge} times below the ridge point. Halving the bytes would help, "
            "a faster arithmetic unit would not.",
            [("limiting_factor", "==", 1)],
        ),
        Case(
            "Compute-bound: {above_ridge} times above the ridge point. Fewer operations or a faster arithmetic unit "
            "would help, more bandwidth would not."
        ),
    ],
    note="Peaks are dense data-sheet peaks: of the matrix units for matrix products and attention; of the vector "
    "units, FP32 unless the data is FP64, for elementwise kernels, softmax and layer norm.",
)

fusion = Calculator(
    name="fusion",
    topic="roofline",
    title="What does fusing a chain of elementwise operations save?",
    intro="Unfused, each operation reads the array from memory and writes it back. Fused, the array is read once and "
    "written once.",
    inputs=[
        pick_accelerator(peaks={"peak_performance": VECTOR}),
        *custom_accelerator(),
        pick_dtype(),
        whole("elements", 2**34, 2**26, "Elements"),
        whole("operations", 1024, 8, "Operations", "in the chain"),
        _overhead(1e-5),
        _calls(
            unfused_chain_time=(roofline.queued_unfused_chain_time, roofline.unfused_chain_time),
            fused_chain_time=(roofline.queued_fused_chain_time, roofline.fused_chain_time),
        ),
    ],
    outputs=[
        Value("unfused_chain_time", "Unfused, at least"),
        Value("fused_chain_time", "Fused, at least"),
        Ratio("fusion_speedup", "unfused_chain_time", "fused_chain_time", label="Speedup"),
        Output(roofline.unfused_chain_intensity, label="Intensity unfused"),
        Output(roofline.fused_chain_intensity, label="Intensity fused"),
        Output(roofline.ridge_point, label="Ridge point, vector units"),
        Output(roofline.unfused_chain_bytes, shown=False),
        Output(roofline.fused_chain_bytes, shown=False),
        Output(roofline.chain_flops, shown=False),
        Output(
            roofline.limiting_factor,
            "fused_limit",
            given={"flops": "chain_flops", "bytes_moved": "fused_chain_bytes"},
            shown=False,
        ),
    ],
    curve=Curve(
        x="operations",
        lines=[Line("unfused_chain_time", "unfused"), Line("fused_chain_time", "fused")],
        at=[("operations", "unfused_chain_time"), ("operations", "fused_chain_time")],
        x_label="Operations in the chain",
        at_label="this chain",
        y_label="Time of the chain",
        describe="Time of the chain against its number of operations, both axes logarithmic. With {operations} "
        "operations it takes {unfused_chain_time} unfused and {fused_chain_time} fused.",
    ),
    verdict=[
        Case("Nothing to fuse: the chain has one operation.", [("operations", "==", 1)]),
        Case(
            "Fusing makes the chain {fusion_speedup} times faster: it launches one kernel in place of {operations}. "
            "It is overhead-bound, so one more fused operation costs nothing.",
            [("fused_limit", "==", 0)],
        ),
        Case(
            "Fusing makes the chain {fusion_speedup} times faster: it moves {fused_chain_bytes} in place of "
            "{unfused_chain_bytes}. It is still memory-bound, so one more fused operation costs nothing.",
            [("fused_limit", "==", 1)],
        ),
        Case(
            "Fusing makes the chain {fusion_speedup} times faster: it moves {fused_chain_bytes} in place of "
            "{unfused_chain_bytes}. It is now compute-bound, so each further operation costs time again."
        ),
    ],
    note="Elementwise operations run on the vector units: the peak is theirs, FP32 unless the data is FP64, and "
    "supposes that they are busy with multiply-adds.",
)

overhead = Calculator(
    name="overhead",
    topic="roofline",
    title="How much work hides one overhead?",
    intro="A call from Python or a kernel launch costs the same however little it does. While it lasts, the "
    "accelerator could have worked.",
    inputs=[
        pick_accelerator(),
        *custom_accelerator(),
        pick_dtype(),
        _overhead(1e-5),
        _calls(time=(roofline.queued_time, roofline.roofline_time)),
        whole("size", 131072, 512, "Matrix size", "a square matrix product: m = n = k"),
    ],
    outputs=[
        Output(roofline.operations_to_hide_overhead, label="Operations that hide it"),
        Output(roofline.bytes_to_hide_overhead, label="Bytes that hide it"),
        Output(roofline.square_matmul_to_hide_overhead, label="Smallest product that hides it, n"),
        Output(roofline.matmul_flops, "flops", "Operations of this product", given=dict.fromkeys("mnk", "size")),
        Output(roofline.matmul_bytes, "bytes_moved", "Bytes of this product", given=dict.fromkeys("mnk", "size")),
        Value("time", "Time of a call, at least"),
        Output(roofline.roofline_time, "work_time", "Work alone", given={"overhead": 0.0}),
        Ratio("busy_share", "work_time", "time", label="Share at work, at most", percent=True),
        Output(roofline.limiting_factor, shown=False),
    ],
    curve=Curve(
        x="size",
        low=16,
        high=32768,
        lines=[
            Line("time", "time of a call"),
            Line("work_time", "work alone", faint=True),
            Line("overhead", "overhead", faint=True),
        ],
        marks=[Mark("square_matmul_to_hide_overhead", "hidden from n = {square_matmul_to_hide_overhead}")],
        at=[("size", "time")],
        at_label="this product",
        x_label="Matrix size",
        y_label="Time",
        describe="Time of a square matrix product against its size, both axes logarithmic: flat at the overhead of "
        "{overhead} for small sizes, rising with the work for large ones. Size {size}: {time}.",
    ),
    verdict=[
        Case("No overhead to hide: the call takes as long as its work, {time}.", [("overhead", "==", 0)]),
        Case(
            "Overhead-bound: the call takes {time} for {work_time} of work, so the accelerator works for {busy_share} "
            "of the time.",
            [("limiting_factor", "==", 0)],
        ),
        Case(
            "Hidden: the work takes {work_time}, and the accelerator works for {busy_share} of the time.",
            [("busy_share", ">=", 0.9)],
        ),
        Case("The work is the larger part, and yet the accelerator works for only {busy_share} of the {time}."),
    ],
)

ridge_point = Calculator(
    name="ridge-point",
    topic="roofline",
    title="How much arithmetic does a byte have to be worth?",
    inputs=[pick_accelerator(), *custom_accelerator(), pick_dtype()],
    outputs=[
        Output(roofline.ridge_point),
        Output(
            roofline.operations_to_hide_memory,
            label="To hide one read and one write of an element",
            given={"accesses_per_element": 2},
        ),
        Output(
            roofline.batch_at_ridge_point,
            label="Batch that makes a large weight matrix compute-bound",
            given={"bytes_per_weight": "bytes_per_element"},
        ),
    ],
    verdict=[
        Case(
            "A {dtype} kernel on this accelerator waits for memory unless it does at least {ridge_point}; "
            "in the time of reading and writing one number it could do {operations_to_hide_memory} on it."
        )
    ],
)
