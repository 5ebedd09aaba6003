"""Calculators of the chapter on compute, bandwidth and overhead."""

from __future__ import annotations

from efflab.calculators.calculator import Calculator
from efflab.calculators.parts import Case, Choice, Curve, Line, Mark, Option, Output, Ratio, Run, Slider, Value
from efflab.calculators.picks import custom_accelerator, pick_accelerator, pick_dtype
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


def _size(name: str, high: float, default: float, label: str, help: str = "") -> Slider:
    return Slider(name, 1, high, default=default, scale="log2", integer=True, label=label, help=help)


_COUNTS = ("flops", "bytes_moved")
_KERNELS = Choice(
    "kernel",
    [
        Option(name, label, group=group, formulas=dict(zip(_COUNTS, roofline.KERNELS[name], strict=True)))
        for group, name, label in (
            ("Matrix products", "matmul", "Matrix times matrix"),
            ("Matrix products", "gemv", "Matrix times vector"),
            ("Elementwise", "unfused_chain", "Elementwise chain, unfused"),
            ("Elementwise", "fused_chain", "Elementwise chain, fused"),
            ("Row by row", "softmax", "Softmax"),
            ("Row by row", "layer_norm", "Layer norm"),
            ("Attention", "attention_prefill", "Attention, prefill"),
            ("Attention", "attention_decode", "Attention, decode"),
        )
    ]
    + [Option("custom", "Custom: your own FLOP and bytes", takes={n: f"own_{n}" for n in _COUNTS})],
    default="matmul",
)

_MASK = Choice(
    "mask",
    [Option("causal", "Causal", sets={"causal": True}), Option("full", "Full", sets={"causal": False})],
    default="causal",
)

_SIZES = [
    _size("m", 131072, 4096, "m", "rows"),
    _size("n", 131072, 4096, "n", "columns"),
    _size("k", 131072, 4096, "k", "the inner dimension"),
    _size("elements", 2**34, 2**26, "Elements"),
    _size("operations", 1024, 8, "Operations in the chain"),
    _size("rows", 2**24, 8192, "Rows"),
    _size("columns", 2**20, 4096, "Columns"),
    _MASK,
    _size("batch", 4096, 8, "Batch", "sequences"),
    _size("query_heads", 256, 32, "Query heads"),
    _size("kv_heads", 256, 8, "KV heads"),
    _size("sequence_length", 2**21, 4096, "Sequence length", "tokens"),
    _size("context_length", 2**21, 4096, "Context length", "tokens in the KV cache"),
    _size("head_dim", 512, 128, "Head dimension"),
    Slider("own_flops", 1, 1e21, default=1e12, scale="log", label="Operations"),
    Slider("own_bytes_moved", 1, 1e18, default=1e10, scale="log", label="Bytes moved"),
]


_CALLS = Choice(
    "calls",
    [
        Option("queued", "Queued ahead, not waited for", formulas={"time": roofline.queued_time}),
        Option("waited", "Each waited for", formulas={"time": roofline.roofline_time}),
    ],
    default="queued",
    label="Calls",
)


def _overhead(default: float, help: str = "") -> Slider:
    return Slider("overhead", 1e-7, 1e-2, default=default, scale="log", zero=True, label="Overhead per call", help=help)


explorer = Calculator(
    name="roofline-explorer",
    topic="roofline",
    title="Where does this kernel sit on the roofline?",
    intro="Choose an accelerator and a kernel. The roof is the most that the accelerator can do at each "
    "arithmetic intensity; the dot is what this call reaches.",
    inputs=[
        pick_accelerator(),
        *custom_accelerator(),
        pick_dtype(),
        _KERNELS,
        *_SIZES,
        _overhead(0.0, "an unfused chain counts as one call"),
        _CALLS,
    ],
    outputs=[
        Value("flops", "Operations"),
        Value("bytes_moved", "Bytes moved"),
        Output(roofline.arithmetic_intensity),
        Output(roofline.ridge_point),
        Output(roofline.attainable_performance),
        Ratio("performance", "flops", "time", label="Performance reached", unit=FLOP_PER_SECOND),
        Ratio("share_of_peak", "compute_time", "time", label="Share of peak", percent=True),
        Value("time", "Time of a call"),
        Output(roofline.compute_time, label="Arithmetic alone"),
        Output(roofline.memory_time, label="Memory traffic alone"),
        Output(roofline.limiting_factor, shown=False),
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
        at_label="this call",
        slope_label="{memory_bandwidth}",
        y_label="Performance",
        describe="Roofline, both axes logarithmic. Performance rises with arithmetic intensity at {memory_bandwidth} "
        "up to the ridge point at {ridge_point}, and stays at {peak_performance} beyond. "
        "This call: {arithmetic_intensity}, {performance}.",
        runs=recorded_runs,
    ),
    verdict=[
        Case("No such attention: it has more KV heads than query heads.", [("kv_heads", ">", "query_heads")]),
        Case(
            "Overhead-bound: the call takes {time}, its overhead alone {overhead}. Larger or fewer calls would help, "
            "a faster accelerator would hardly.",
            [("limiting_factor", "==", 0)],
        ),
        Case(
            "Balanced: within 10% of the ridge point, so arithmetic and memory traffic take about the same time.",
            [("below_ridge", "<", 1.1), ("above_ridge", "<", 1.1)],
        ),
        Case(
            "Memory-bound: {below_ridge} times below the ridge point. Halving the bytes would help, "
            "a faster tensor core would not.",
            [("limiting_factor", "==", 1)],
        ),
        Case(
            "Compute-bound: {above_ridge} times above the ridge point. Fewer operations or a faster data type would "
            "help, more bandwidth would not."
        ),
    ],
    note="Peaks are dense data-sheet peaks, those of the matrix units where there are any. Elementwise kernels run on "
    "slower units, which matters only right of the ridge point.",
)

fusion = Calculator(
    name="fusion",
    topic="roofline",
    title="What does fusing a chain of elementwise operations save?",
    intro="Unfused, each operation reads the array from memory and writes it back. Fused, the array is read once and "
    "written once.",
    inputs=[
        pick_accelerator(),
        *custom_accelerator(),
        pick_dtype(),
        _size("elements", 2**34, 2**26, "Elements"),
        Slider("operations", 1, 64, default=8, steps=63, integer=True, label="Operations in the chain"),
        _overhead(1e-5),
    ],
    outputs=[
        Output(roofline.unfused_chain_time, label="Time unfused"),
        Output(roofline.fused_chain_time, label="Time fused"),
        Output(roofline.fusion_speedup, label="Speedup"),
        Output(roofline.unfused_chain_intensity, label="Intensity unfused"),
        Output(roofline.fused_chain_intensity, label="Intensity fused"),
        Output(roofline.ridge_point),
        Output(roofline.unfused_chain_bytes, shown=False),
        Output(roofline.fused_chain_bytes, shown=False),
    ],
    curve=Curve(
        x="operations",
        lines=[Line("unfused_chain_time", "unfused"), Line("fused_chain_time", "fused")],
        scale="linear-linear",
        at=[("operations", "unfused_chain_time"), ("operations", "fused_chain_time")],
        at_label="this chain",
        y_label="Time of the chain",
        describe="Time of the chain against its number of operations. With {operations} operations it takes "
        "{unfused_chain_time} unfused and {fused_chain_time} fused.",
    ),
    verdict=[
        Case("Nothing to fuse: the chain has one operation.", [("operations", "==", 1)]),
        Case(
            "Fusing makes the chain {fusion_speedup} times faster: it moves {fused_chain_bytes} in place of "
            "{unfused_chain_bytes}. It is still memory-bound, so one more fused operation costs nothing.",
            [("fused_chain_intensity", "<", "ridge_point")],
        ),
        Case(
            "Fusing makes the chain {fusion_speedup} times faster: it moves {fused_chain_bytes} in place of "
            "{unfused_chain_bytes}. It is now compute-bound, so each further operation costs time again."
        ),
    ],
    note="The peak is that of the matrix units where there are any; elementwise operations run on slower units, so a "
    "long chain turns compute-bound sooner than this says.",
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
        _CALLS,
        _size("size", 131072, 512, "Matrix size", "a square matrix product: m = n = k"),
    ],
    outputs=[
        Output(roofline.operations_to_hide_overhead, label="Operations that hide it"),
        Output(roofline.bytes_to_hide_overhead, label="Bytes that hide it"),
        Output(roofline.matmul_flops, "flops", "Operations of this product", given=dict.fromkeys("mnk", "size")),
        Output(roofline.matmul_bytes, "bytes_moved", "Bytes of this product", given=dict.fromkeys("mnk", "size")),
        Value("time", "Time of a call"),
        Output(roofline.roofline_time, "work_time", "Work alone", given={"overhead": 0.0}),
        Ratio("busy_share", "work_time", "time", label="Share of the time at work", percent=True),
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
