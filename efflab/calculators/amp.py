"""Calculators of the chapter on mixed precision: how much faster, at what loss scale, and with what batch."""

from __future__ import annotations

from efflab.calculators.calculator import Calculator
from efflab.calculators.parts import (
    Case,
    Choice,
    Curve,
    Line,
    Mark,
    Option,
    Output,
    Ratio,
    Slider,
    Stack,
    Sum,
    Table,
    Value,
    grouped,
    whole,
)
from efflab.calculators.picks import custom_accelerator, custom_model, missing_peak, pick, pick_accelerator, pick_model
from efflab.catalog import BYTES_PER_ELEMENT, accelerators
from efflab.formulas import amp, memory
from efflab.formulas.precision import largest_finite, smallest_subnormal
from efflab.units import BYTE, COUNT

# Speed

_BEFORE, _AFTER = ("fp32", "tf32"), ("bf16", "fp16", "tf32")


def _dtype(name: str, label: str, default: str, *dtypes: str) -> Choice:
    """A data type of the products. It sets the bytes of an element; TF32 is stored in four."""
    options = [Option(d, sets={f"bytes_{name}": BYTES_PER_ELEMENT[d]}) for d in dtypes]
    return Choice(name, options, default=default, label=label)


def _peaks() -> Choice:
    """A choice of accelerator that sets a peak for each of the two data types.

    Those without a peak to start from, such as a TPU of BF16 alone, are left out.
    """
    options = [
        Option(
            a.name,
            sets={"memory_bandwidth": a.memory_bandwidth, "peak_before": a.peak_dense, "peak_after": a.peak_dense},
            group=a.vendor,
        )
        for a in accelerators().values()
        if all(any(d in a.peak_dense for d in dtypes) for dtypes in (_BEFORE, _AFTER))
    ]
    return pick(
        "accelerator",
        options,
        default="A100 SXM 40GB",
        own={
            "memory_bandwidth": "own_memory_bandwidth",
            "peak_before": "own_peak_before",
            "peak_after": "own_peak_after",
        },
        by={"peak_before": "before", "peak_after": "after"},
        missing={"peak_before": missing_peak("before"), "peak_after": missing_peak("after")},
    )


def _own_peak(name: str, default: float, label: str) -> Slider:
    return Slider(f"own_{name}", 1e9, 1e16, default=default, scale="log", label=label, help="dense")


speedup = Calculator(
    name="amp-speedup",
    topic="amp",
    title="How much faster does mixed precision make a training step?",
    intro="Products of matrices become much faster, everything else a little or not at all. What the step gains "
    "depends on the share that the products have of it in full precision.",
    inputs=[
        *grouped(
            "",
            Slider(
                "matmul_share",
                0,
                0.99,
                default=0.8,
                steps=99,
                label="Share of the products",
                help="of the step before: 0.8 is 80%",
            ),
            Slider(
                "other_speedup",
                0.25,
                4,
                default=1,
                steps=75,
                label="Speedup of the rest",
                help="2: all bytes halved; 1: stays in FP32",
            ),
            Slider("time", 1e-6, 1e4, default=0.2, scale="log", label="Time of a step before"),
        ),
        *grouped(
            "Products",
            Choice(
                "products",
                [
                    Option(
                        "datasheet",
                        "From the data sheet",
                        formulas={"matmul_speedup": amp.roofline_matmul_speedup},
                    ),
                    Option("custom", "Your own, measured", takes={"matmul_speedup": "own_matmul_speedup"}),
                ],
                default="datasheet",
                label="Their speedup",
            ),
            Slider("own_matmul_speedup", 0.01, 100, default=3, scale="log", label="Speedup of the products"),
            _peaks(),
            *custom_accelerator("memory_bandwidth"),
            _dtype("before", "From", "fp32", *_BEFORE),
            _dtype("after", "To", "bf16", *_AFTER),
            _own_peak("peak_before", 2e13, "Peak before"),
            _own_peak("peak_after", 1e14, "Peak after"),
            Slider("size", 16, 65536, default=4096, scale="log2", integer=True, label="Size n", help="m = n = k"),
        ),
    ],
    outputs=[
        Output(amp.amp_speedup, "gain", "Speedup of the step"),
        Output(amp.amp_limit, "limit", "At most, with the products gone"),
        Value("matmul_speedup", "Speedup of the products"),
        Output(amp.amp_step_time, "time_after", "Time of a step after"),
        Ratio("rest_share", "gain", "limit", "Share of the rest after", percent=True),
        Sum("twice", ["matmul_speedup", "matmul_speedup"], shown=False),
        Output(amp.amp_speedup, "gain_of_twice", given={"matmul_speedup": "twice"}, shown=False),
        Ratio("slowdown", "time_after", "time", shown=False),
    ],
    curve=Curve(
        x="matmul_share",
        scale="linear-linear",
        lines=[Line("gain", "these products"), Line("limit", "products in no time", faint=True)],
        y_high=16,
        at=[("matmul_share", "gain")],
        at_label="this step",
        x_label="Share of the products",
        y_label="Speedup of the step",
        describe="Speedup of the step against the share of the products: {other_speedup} where they have none, rising "
        "ever more steeply to {matmul_speedup} where they are everything. At a share of {matmul_share}: {gain}, and "
        "with products that took no time {limit}.",
    ),
    verdict=[
        Case(
            "Slower: the step takes {slowdown} times as long as before. Where the processor has no units for these "
            "products, or casts cost more than the products save, stay in full precision.",
            [("gain", "<", 0.98)],
        ),
        Case("Nothing gained: the step takes as long as before.", [("gain", "<", 1.02)]),
        Case(
            "{gain} times faster, and limited by the rest, which takes {rest_share} of the new step. Products in no "
            "time would give {limit}: now fuse and shrink what is not a product.",
            [("rest_share", ">", 0.5)],
        ),
        Case(
            "{gain} times faster, and still limited by the products: the rest takes {rest_share} of the new step. "
            "Products twice as fast again would give {gain_of_twice}."
        ),
    ],
    note="Modelled: operations run one after another; products are square and reach the same share of the roofline "
    "before and after, which small ones do not. The lab measures share and speedups on your machine.",
)


# Loss scaling


def _format(name: str, label: str, exponent_bits: int, mantissa_bits: int) -> Option:
    bits = {"exponent_bits": exponent_bits, "mantissa_bits": mantissa_bits, "flavour": "ieee"}
    return Option(
        name,
        label,
        sets={
            "largest_finite": largest_finite(**bits),
            "smallest_subnormal": smallest_subnormal(**bits),
            "drawn": 80,  # steps, one for each point of the curve, so that no overflow falls between two
            "one": 1,
        },
    )


_KEPT = "gradients down to {kept} survive in place of {kept_unscaled}, and one step in {period} is skipped."

loss_scale = Calculator(
    name="loss-scale",
    topic="amp",
    title="Where does the loss scale settle, and what does it save?",
    intro="The scaler halves its scale after every step that overflows and doubles it after an interval without. The "
    "curve follows it through 80 steps, if the largest gradient stays the same.",
    inputs=[
        *grouped(
            "Gradients",
            Choice(
                "format",
                [
                    _format("fp16", "FP16", 5, 10),
                    _format("e5m2", "FP8 E5M2", 5, 2),
                ],
                default="fp16",
                label="Computed in",
            ),
            Slider(
                "largest_gradient",
                1e-8,
                1e6,
                default=20,
                scale="log",
                label="Largest gradient",
                help="anywhere in the backward pass",
            ),
            Slider(
                "small_gradient",
                1e-14,
                1,
                default=1e-9,
                scale="log",
                label="Small gradient",
                help="should it survive?",
                unit=COUNT,
            ),
        ),
        *grouped(
            "Scaler",
            Slider("scale", 1, 2**32, default=amp.INITIAL_SCALE, scale="log2", label="Initial scale"),
            Slider(
                "growth_interval",
                1,
                100_000,
                default=25,
                scale="log",
                integer=True,
                label="Growth interval",
                help="steps; PyTorch: 2000",
            ),
            Slider(
                "step",
                1,
                10**6,
                default=0,
                scale="log",
                integer=True,
                zero=True,
                label="Look from step",
                help="counted from 0",
            ),
        ),
    ],
    outputs=[
        Output(amp.settled_loss_scale, "settled", "Scale that it comes back to"),
        Output(amp.largest_loss_scale, "largest_scale", "Largest without an overflow, about"),
        Output(amp.first_overflows, "overflows", "Steps skipped at the start"),
        Ratio("skipped", "skipped_share", "one", "Share skipped from then on", percent=True),
        Output(amp.smallest_kept_gradient, "kept", "Kept above", given={"scale": "settled"}),
        Output(amp.smallest_kept_gradient, "kept_unscaled", "Kept above, unscaled", given={"scale": "one"}),
        Output(amp.loss_scale_at, "scale_now", "Scale before this step"),
        Output(amp.skipped_share, "skipped_share", shown=False),
        Sum("period", ["growth_interval", "one"], shown=False),
        Sum("last_drawn", ["step", "drawn"], shown=False),
        Ratio("span", "largest_gradient", "small_gradient", shown=False),
    ],
    curve=Curve(
        x="step",
        low="step",
        high="last_drawn",
        scale="linear-log",
        lines=[Line("scale_now", "loss scale"), Line("largest_scale", "largest without an overflow", faint=True)],
        at=[("step", "scale_now")],
        at_label="this step",
        x_label="Step",
        y_label="Loss scale",
        describe="Loss scale over 80 steps from step {step} on, on a logarithmic axis, starting at {scale_now}. It "
        "comes back to {settled} and tries twice as much after every {growth_interval} steps; above {largest_scale} "
        "the step overflows and is skipped.",
    ),
    verdict=[
        Case(
            "No scaler needed: unscaled, {format} keeps gradients above {kept_unscaled} and overflows only beyond "
            "{largest_finite}.",
            [("small_gradient", ">", "kept_unscaled"), ("largest_gradient", "<=", "largest_finite")],
        ),
        Case(
            "Lost: {small_gradient} becomes zero even at {settled}. The largest gradient is {span} times as large: "
            "{format} does not hold both. Compute in BF16, or find out what makes the largest gradient.",
            [("small_gradient", "<=", "kept")],
        ),
        Case(
            "Falls to {settled} in {overflows} skipped steps. Then " + _KEPT,
            [("overflows", ">", 0)],
        ),
        Case("Nothing is skipped at the start. From {settled} on " + _KEPT),
    ],
    cautions=[
        Case(
            "A scale below 1 is a sign: something in this backward pass overflows without any scaling.",
            [("settled", "<", 1)],
        ),
    ],
    note="A real largest gradient varies from step to step, and so does the scale. Growth and backoff factors are "
    "PyTorch's, 2 and 1/2. BF16 is not among the formats: it has the range of FP32 and needs no scaler. With "
    "hysteresis, as in DeepSpeed and Megatron-LM, a scaler halves later.",
)


# Memory

# What formulas are given in every state, as names of values; an MLP of one's own is plain, of two matrices.
_FIXED = {"as_none": "none", "as_full": "full", "as_flash": "flash", "as_fp32": "fp32", "without": False, "plain": 2}
# In FP32 all is kept in 4 B. Under autocast the input of the final norm is in FP32 and that of the output layer in 16
# bits: 3 B on average.
_PRECISION = Choice(
    "precision",
    [
        Option(
            "fp32",
            "FP32",
            sets=_FIXED | {"copies": 0, "output_element": 4},
            takes={"kept_chosen": "kept_fp32", "kept_flash": "flash_fp32", "layer": "layer_fp32"},
        ),
        Option(
            "autocast",
            "Autocast: BF16 or FP16",
            sets=_FIXED | {"output_element": 3},
            takes={
                "copies": "weight_copies",
                "kept_chosen": "kept_autocast",
                "kept_flash": "flash_autocast",
                "layer": "layer_autocast",
            },
        ),
    ],
    default="autocast",
    label="Precision",
)
_RECOMPUTATION = Choice(
    "recomputation",
    [
        Option(
            "none",
            "None",
            sets={"again": 0, "repeated_share": 1 / 3, "repeated": {"standard": 0, "flash": 0}, "one": 1},
            takes={"layers_kept": "kept_chosen"},
        ),
        Option(
            "selective",
            "Selective: scores",
            sets={"again": 0, "repeated": {"standard": 1, "flash": 0}, "one": 1},
            takes={"layers_kept": "kept_flash", "repeated_share": "scores_share"},
        ),
        # The forward pass is a third of the operations of a step.
        Option(
            "full",
            "Full: layers",
            sets={"repeated_share": 1 / 3, "repeated": {"standard": 1, "flash": 1}, "one": 1},
            takes={"layers_kept": "kept_inputs", "again": "layer"},
        ),
    ],
    default="none",
    label="Recomputation",
    by={"repeated": "attention"},
    missing={"repeated": "Choose an attention."},
)
_ATTENTION = Choice(
    "attention",
    [Option("standard", "Written out: keeps scores"), Option("flash", "FlashAttention")],
    default="flash",
    label="Attention",
)
_SHAPE = (
    "parameters",
    "layers",
    "hidden_size",
    "intermediate_size",
    "mlp_matrices",
    "query_heads",
    "kv_heads",
    "vocabulary",
)


def _kept(name: str, **given: str | float) -> list[Output]:
    """What layers keep in FP32 and under autocast, as named there."""
    wide: dict[str, str | float] = {
        "recomputation": "as_none",
        "bytes_per_element": 4,
        "mask_bytes": 1,
        "dropout": "without",
    }
    return [
        Output(memory.layer_activation_bytes, f"{name}_fp32", given=wide | given, shown=False),
        Output(
            amp.autocast_layer_bytes,
            f"{name}_autocast",
            given={"softmax": "as_fp32"} | given,
            shown=False,
        ),
    ]


_ACCUMULATED = (
    "Fits with {free} free: each accelerator accumulates {steps} microbatches of {microbatch} for the batch of "
    "{batch}. Without any reserve up to {largest_microbatch} would fit at once."
)
_TIGHT = "Fits, but with less than a tenth free: {free} for the framework, workspaces and fragmentation. "
_TIGHT_STEPS = _TIGHT + "Each accelerator accumulates {steps} microbatches of {microbatch} for the batch of {batch}."
_RESERVED = 0.9  # of the memory; the rest is left to what the model does not count
_HELD = ["model_state", "copies", "layers_kept", "again", "output_kept"]

batch = Calculator(
    name="amp-memory",
    topic="amp",
    title="Which batch fits, and what does it cost in time?",
    intro="Say what batch you want. The memory of one accelerator decides how many sequences it takes at once; the "
    "rest is accumulated. Recomputation makes room and takes time.",
    inputs=[
        *grouped(
            "",
            pick_model(
                "GPT-2 1.5B",
                sets={n: n for n in (*_SHAPE, "positions")},
                own={n: f"own_{n}" for n in _SHAPE} | {"positions": "sequence_length", "mlp_matrices": "plain"},
            ),
            *custom_model("parameters", "layers", "hidden_size", "intermediate_size"),
            *custom_model("query_heads", "kv_heads", "vocabulary"),
            pick_accelerator("A100 SXM 40GB", peaks={}, sets={"capacity": "memory"}),
            *custom_accelerator("memory"),
        ),
        *grouped(
            "What is kept",
            _PRECISION,
            _RECOMPUTATION,
            _ATTENTION,
        ),
        *grouped(
            "Batch",
            whole("sequence_length", 2**20, 1024, "Sequence length", "tokens"),
            whole("microbatch", 4096, 2, "Microbatch", "sequences at once"),
            whole("batch", 2**20, 512, "Batch wanted", "sequences of one update"),
            whole("ranks", 65536, 8, "Ranks", "data-parallel"),
        ),
    ],
    outputs=[
        Sum("total", _HELD, label="On one accelerator"),
        Output(
            memory.largest_batch,
            "largest_microbatch",
            "Largest microbatch",
            given={"memory": "capacity", "weights": "fixed", "bytes_per_sequence": "one_sequence"},
        ),
        Output(amp.accumulation_steps_needed, "steps", "Microbatches for each update"),
        Ratio("extra", "overhead", "one", "Time added", percent=True),
        Ratio("one_sequence", "activations", "microbatch", "One sequence keeps", unit=BYTE),
        Value("capacity", "Memory of the accelerator", shown=False),
        Output(
            memory.weight_bytes,
            "model_state",
            "Weights, gradients, Adam",
            given={"bytes_per_parameter": 16},
            shown=False,
        ),
        Output(memory.weight_bytes, "weight_copies", given={"bytes_per_parameter": 2}, shown=False),
        Value("copies", "16-bit copies of weights", shown=False),
        Value("layers_kept", "Activations", shown=False),
        Value("again", "Layer in recomputation", shown=False),
        Output(
            memory.output_activation_bytes,
            "output_kept",
            "Logits and loss",
            given={"bytes_per_element": "output_element"},
            shown=False,
        ),
        *_kept("kept"),
        *_kept("flash", attention="as_flash"),
        *_kept("layer", layers=1),
        Output(
            memory.layer_activation_bytes,
            "kept_inputs",
            # the stream from layer to layer is in FP32 under autocast, too
            given={"recomputation": "as_full", "bytes_per_element": 4, "mask_bytes": 1, "dropout": "without"},
            shown=False,
        ),
        Output(memory.selective_recomputation_overhead, "scores_share", shown=False),
        Output(
            amp.recomputation_overhead,
            "overhead",
            given={"forward_share": "repeated_share", "recomputed": "repeated"},
            shown=False,
        ),
        Sum("fixed", ["model_state", "copies"], shown=False),
        Sum("activations", ["layers_kept", "again", "output_kept"], shown=False),
        Sum("total_none", ["model_state", "copies", "kept_chosen", "output_kept"], shown=False),
        Sum("total_full", ["model_state", "copies", "kept_inputs", "layer", "output_kept"], shown=False),
        Sum("free", ["capacity"], minus=["total"], shown=False),
        Sum("over", ["total"], minus=["capacity"], shown=False),
        Ratio("share", "total", "capacity", shown=False),
        Ratio("share_none", "total_none", "capacity", shown=False),
        Sum("idle", ["ranks"], minus=["batch"], shown=False),
        Ratio("batch_of_rank", "batch", "ranks", shown=False),
        Ratio("exact_steps", "batch_of_rank", "microbatch", shown=False),
    ],
    stack=Stack(
        parts=_HELD,
        capacity="capacity",
        label="On one accelerator",
        vary="recomputation",
        describe="Memory of one accelerator, modelled: weights, gradients and Adam's moments {model_state}, 16-bit "
        "copies {copies}, activations {layers_kept}, logits and loss {output_kept}; together {total} of {capacity}.",
    ),
    curve=Curve(
        x="microbatch",
        low=1,
        high=1024,
        lines=[
            Line("total", "{precision}"),
            Line("capacity", "memory", faint=True),
            Line("fixed", "no batch", faint=True),
        ],
        vary="precision",
        marks=[Mark("largest_microbatch", "up to {largest_microbatch}", y="capacity")],
        at=[("microbatch", "total")],
        at_label="this microbatch",
        x_label="Microbatch (sequences)",
        y_label="Memory",
        describe="Memory of one accelerator against the microbatch, both axes logarithmic: {fixed} without any batch, "
        "{total} with {microbatch} sequences, of {capacity}. Up to {largest_microbatch} fit.",
    ),
    compare=Table(
        "recomputation",
        ["one_sequence", "largest_microbatch", "extra"],
        label="What each kind of recomputation gives and takes",
    ),
    verdict=[
        Case(
            "Not here: weights, gradients and Adam's moments alone take {fixed}, more than {capacity}. Split them over "
            "the accelerators: the precision chapter's calculator shows how.",
            [("fixed", ">=", "capacity")],
        ),
        Case(
            "Not one sequence of {sequence_length} tokens fits beside {fixed}, and recomputing whole layers would not "
            "make room for {microbatch} either: it leaves {total_full}. Shorten the sequence or split the model.",
            [("largest_microbatch", "<", 1), ("total_full", ">", "capacity")],
        ),
        Case(
            "Over by {over}, and not one sequence fits. Recomputing whole layers leaves {total_full}, and adds about a "
            "third to the operations.",
            [("largest_microbatch", "<", 1)],
        ),
        Case(
            "Over by {over}: the largest microbatch that fits is {largest_microbatch}, not {microbatch}. More of them, "
            "accumulated, take no more memory.",
            [("share", ">", 1)],
        ),
        Case(
            "Fits, and needs no recomputation, which adds {extra} to the time: without it {total_none} of {capacity}.",
            [("overhead", ">", 0.0005), ("share_none", "<=", _RESERVED)],
        ),
        Case(_TIGHT + "It is one microbatch: nothing is accumulated.", [("share", ">", _RESERVED), ("steps", "<=", 1)]),
        Case(_TIGHT_STEPS, [("share", ">", _RESERVED), ("overhead", "<=", 0)]),
        Case(_TIGHT_STEPS + " Recomputation adds {extra} to the time.", [("share", ">", _RESERVED)]),
        Case(
            "Fits with {free} free, in one microbatch: nothing is accumulated.",
            [("steps", "<=", 1)],
        ),
        Case(
            _ACCUMULATED,
            [("overhead", "<=", 0)],
        ),
        Case(_ACCUMULATED + " Recomputation adds {extra} to the time."),
    ],
    cautions=[
        Case(
            "Selective recomputation saves nothing here: FlashAttention keeps no scores.",
            [("repeated", "<", 0.5), ("repeated_share", "<", 0.3333)],
        ),
        Case(
            "The last microbatch is smaller than the others: weigh its loss by its tokens.",
            [("exact_steps", "<", "steps"), ("steps", ">", 1)],
        ),
        Case(
            "Too many ranks: a batch of {batch} has no sequence for {idle} of {ranks}.",
            [("idle", ">", 0)],
        ),
        Case(
            "A batch of {batch} on {ranks} ranks fills no microbatch of {microbatch} on each of them.",
            [("idle", "<=", 0), ("exact_steps", "<", 1)],
        ),
        Case(
            "Impossible as set: {model} has learned {positions} positions, not {sequence_length}.",
            [("positions", ">", 0), ("sequence_length", ">", "positions")],
        ),
    ],
    note="Modelled, not measured: Adam in FP32, no dropout, one product for Q, K and V, every operation a tensor of "
    "its own. With Q, K and V apart autocast keeps up to two more copies of the layer's input. Framework, "
    "workspaces and fragmentation come on top: leave a tenth of the memory free. A GB is 10⁹ bytes. Time of "
    "recomputation in operations.",
)
