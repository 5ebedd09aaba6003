"""Calculators of the chapter on precision: what the bits buy, and what fits into memory."""

from __future__ import annotations

from dataclasses import replace

from efflab.calculators.calculator import Calculator
from efflab.calculators.number_format import explorer
from efflab.calculators.parts import (
    Case,
    Choice,
    Curve,
    Line,
    Mark,
    Option,
    Output,
    Ratio,
    Stack,
    Sum,
    Value,
    grouped,
    whole,
)
from efflab.calculators.picks import custom_accelerator, custom_model, pick_accelerator, pick_model
from efflab.formulas import memory
from efflab.units import BYTE, PARAMETER


def _pick_model(default: str, length: str, *names: str) -> Choice:
    """A model that sets these values, and the positions that it has learned: none where none limit the length."""
    own = {n: f"own_{n}" for n in names} | {"positions": length}  # a model of one's own is as long as it is asked to be
    return pick_model(default, sets={n: n for n in (*names, "positions")}, own=own)


def _cautions(length: str) -> list[Case]:
    """What no model can be: heads in parts, and texts longer than its positions."""
    return [
        Case(
            "Impossible as set: {query_heads} heads do not divide by {tensor_parallel}.",
            [("query_heads", "no multiple of", "tensor_parallel")],
        ),
        Case(
            f"Impossible as set: {{model}} has learned {{positions}} positions, not {{{length}}}.",
            [("positions", ">", 0), (length, ">", "positions")],
        ),
    ]


def _split(label: str, alone: dict[str, object]) -> Choice:
    """Over how many accelerators the layers are split: powers of two, as heads are. `alone`: what 1 also sets."""
    options = [Option("1", "1: not split", sets={"tensor_parallel": 1} | alone)]
    options += [Option(str(t), sets={"tensor_parallel": t}) for t in (2, 4, 8, 16, 32, 64)]
    return Choice("tensor", options, default="1", label=label)


_ZERO = Choice(
    "zero",
    [
        Option("0", "0: nothing split", sets={"zero_stage": 0}),
        Option("1", "1: optimizer split", sets={"zero_stage": 1}),
        Option("2", "2: and gradients", sets={"zero_stage": 2}),
        Option("3", "3: and weights (FSDP)", sets={"zero_stage": 3}),
    ],
    default="0",
    label="ZeRO stage",
)
# The formula of activations is for 16 bits. In FP32 they are counted as those of twice the microbatch: all but the
# dropout masks take twice the bytes, so this is up to 11% too much.
_NARROW = {"sets": {"element": 2, "kept_of_one": 1}, "takes": {"kept_of": "microbatch"}}
_CONVENTION = Choice(
    "convention",
    [
        Option("16 bytes", "16 B: mixed precision", **_NARROW),
        Option("18 bytes", "18 B: FP32 gradients too", **_NARROW),
        Option("fp32", "16 B: all in FP32", sets={"element": 4, "kept_of_one": 2}, takes={"kept_of": "twice"}),
    ],
    default="16 bytes",
    label="Bytes per parameter, Adam",
)
# The verdict weighs changes: "_flash" with FlashAttention, "_full" with full recomputation, "_one" with a microbatch of
# one, "_zero" with ZeRO's last stage. A text that a formula is given is a value's name, so options set these texts.
_TEXTS = {"as_flash": "flash", "as_full": "full", "as_none": "none"}
_AGAIN = ("again", "again_flash", "again_one")  # the layer in recomputation, where layers are recomputed
_RECOMPUTATION = Choice(
    "recomputation",
    [
        Option("none", "None", sets=_TEXTS | dict.fromkeys(_AGAIN, 0)),
        Option("selective", "Selective: attention scores", sets=_TEXTS | dict.fromkeys(_AGAIN, 0)),
        Option("full", "Full: whole layers", sets=_TEXTS, takes={n: n.replace("again", "layer") for n in _AGAIN}),
    ],
    default="none",
    label="Recomputation",
)
_ATTENTION = Choice(
    "attention",
    [Option("standard", "Standard: keeps scores"), Option("flash", "FlashAttention")],
    default="flash",
    label="Attention",
)
_SEQUENCE = Choice(
    "sequence",
    [
        Option("whole", "No", sets={"sequence_parallel": False}),
        Option("split", "Yes", sets={"sequence_parallel": True}),
    ],
    default="split",
    label="Sequence parallel",
)


def _activations(change: str = "", **given: str | float) -> list[Output]:
    """What the layers keep, and what one layer that is recomputed holds, after a change."""
    given = {"microbatch": "kept_of"} | given
    layer = given | {"layers": 1, "recomputation": "as_none"}
    return [
        Output(memory.activation_bytes, f"layers_kept{change}", "Activations", given=given, shown=False),
        Output(memory.activation_bytes, f"layer{change}", given=layer, shown=False),
    ]


def _output_layer(change: str = "", **given: float) -> list[Output | Ratio]:
    given_all: dict[str, str | float] = {"bytes_per_element": "element"} | given
    whole = f"whole_output{change}"
    return [
        Output(memory.output_activation_bytes, whole, given=given_all, shown=False),
        Ratio(f"output_kept{change}", whole, "tensor_parallel", "Logits and loss", unit=BYTE, shown=False),
    ]


def _state(formula: object, name: str, label: str) -> Output:
    return Output(formula, name, label, given={"parameters": "parameters_per_rank"}, shown=False)  # type: ignore[arg-type]


_HELD = ["weights", "gradients", "optimizer", "layers_kept", "again", "output_kept"]
_CHANGES = {
    "_flash": "FlashAttention",
    "_zero": "ZeRO stage 3 over {ranks} ranks",
    "_one": "a microbatch of 1",
    "_full": "full recomputation, for about a third more operations,",
}


def _advice() -> list[Case]:
    """The change that leaves least, where it fits and where it does not."""
    over = "Over by {over}: {total} against {capacity}. "
    cases = [
        Case(
            over + "FlashAttention alone makes it fit: {total_flash}, with the same result.",
            [("total_flash", "<=", "capacity")],
        ),
        Case(
            "Over by {over}. Even ZeRO stage 3 with a data-parallel degree of {ranks} leaves {state_zero} of state on "
            "each accelerator: the {whole_state} of the model take at least {needed} of them, before activations.",
            [("state_zero", ">", "capacity")],
        ),
        Case(
            over + "ZeRO, recomputation, FlashAttention or a smaller microbatch would not help: split the layers over "
            "more accelerators, or add data-parallel ranks.",
            [(f"left{change}", ">=", 0.999) for change in _CHANGES],
        ),
    ]
    for change, words in _CHANGES.items():
        least = [(f"total{change}", "<=", f"total{other}") for other in _CHANGES if other != change]
        said = over + words[0].upper() + words[1:]
        cases.append(
            Case(said + f" helps most: {{total{change}}}, which fits.", [*least, (f"total{change}", "<=", "capacity")])
        )
        cases.append(
            Case(
                said + f" helps most, and {{total{change}}} is still too much: combine it with others, or split the "
                "layers over more accelerators.",
                least,
            )
        )
    return [*cases[:-1], replace(cases[-1], when=())]


training_memory = Calculator(
    name="training-memory",
    topic="precision",
    title="Does this training fit on this accelerator?",
    intro="Weights, gradients and optimizer state follow from the number of parameters; activations follow from the "
    "shape of the model and of the batch. One bar for each ZeRO stage.",
    inputs=[
        *grouped(
            "",
            _pick_model(
                "Llama 3.1 8B", "sequence_length", "parameters", "layers", "hidden_size", "query_heads", "vocabulary"
            ),
            *custom_model("parameters", "layers", "hidden_size", "query_heads", "vocabulary"),
            _CONVENTION,
        ),
        *grouped(
            "Hardware",
            pick_accelerator("H100 SXM", peaks={}, sets={"capacity": "memory"}),
            *custom_accelerator("memory"),
            _ZERO,
            whole("ranks", 65536, 8, "Data-parallel ranks"),
            _split("Tensor parallel", alone={"sequence_parallel": False}),
            _SEQUENCE,
        ),
        *grouped(
            "Batch of one rank",
            whole("microbatch", 1024, 1, "Microbatch", "sequences at once"),
            whole("sequence_length", 2**20, 4096, "Sequence length", "tokens"),
            _RECOMPUTATION,
            _ATTENTION,
        ),
    ],
    outputs=[
        Sum("total", _HELD, label="On one accelerator"),
        Value("capacity", "Memory of the accelerator", shown=False),
        Ratio("share", "total", "capacity", shown=False),
        Output(
            memory.training_state_bytes,
            "whole_state",
            "State of the model, not split",
            given={"ranks": 1, "zero_stage": 0},
        ),
        Output(
            memory.largest_batch,
            "largest_microbatch",
            "Largest microbatch that fits",
            given={"memory": "capacity", "weights": "state_here", "bytes_per_sequence": "kept_one"},
        ),
        Sum("state_here", _HELD[:3], shown=False),
        Ratio("parameters_per_rank", "parameters", "tensor_parallel", unit=PARAMETER, shown=False),
        _state(memory.weight_bytes_per_rank, "weights", "Weights"),
        _state(memory.gradient_bytes_per_rank, "gradients", "Gradients"),
        _state(memory.optimizer_bytes_per_rank, "optimizer", "Optimizer"),
        Sum("twice", ["microbatch", "microbatch"], shown=False),
        *_activations(),
        Value("again", "Layer in recomputation", shown=False),
        Value("again_flash", shown=False),
        Value("again_one", shown=False),
        *_output_layer(),
        Sum("free", ["capacity"], minus=["total"], shown=False),
        Sum("over", ["total"], minus=["capacity"], shown=False),
        Ratio("needed", "whole_state", "capacity", shown=False, whole=True),
        Output(
            memory.training_state_bytes,
            "state_zero",
            given={"parameters": "parameters_per_rank", "zero_stage": 3},
            shown=False,
        ),
        *_activations("_flash", attention="as_flash"),
        *_activations("_full", recomputation="as_full"),
        *_activations("_one", microbatch="kept_of_one"),
        *_output_layer("_one", microbatch=1),
        Sum("kept_one", ["layers_kept_one", "again_one", "output_kept_one"], shown=False),
        Sum("total_zero", ["state_zero", "layers_kept", "again", "output_kept"], shown=False),
        Sum("total_flash", ["state_here", "layers_kept_flash", "again_flash", "output_kept"], shown=False),
        Sum("total_full", ["state_here", "layers_kept_full", "layer", "output_kept"], shown=False),
        Sum("total_one", ["state_here", "kept_one"], shown=False),
        *(Ratio(f"left{change}", f"total{change}", "total", shown=False) for change in _CHANGES),
    ],
    stack=Stack(
        parts=_HELD,
        capacity="capacity",
        label="On one accelerator",
        vary="zero",
        describe="Memory of one accelerator, modelled: weights {weights}, gradients {gradients}, optimizer "
        "{optimizer}, activations {layers_kept}, logits and loss {output_kept}; together {total} of {capacity}.",
    ),
    verdict=[
        Case(
            "Fits: {total} of {capacity}, {free} free.",
            [("share", "<=", 0.9)],
        ),
        Case(
            "Fits on paper: {total} of {capacity}. {free} are left for what is not modelled: framework, "
            "workspaces, communication buffers, fragmentation.",
            [("share", "<=", 1)],
        ),
        *_advice(),
    ],
    cautions=_cautions("sequence_length"),
    note="Modelled, not measured. Activations are those of Korthikanti et al. 2022 for a GPT layer: dropout, a plain "
    "MLP four times as wide as the model, no pipeline; a gated MLP differs. In FP32 they are doubled, up to 11% "
    "too much. Tensor parallelism splits the vocabulary too. Framework, workspaces, communication buffers and "
    "fragmentation come on top.",
)


def _bits(name: str, value: str, label: str, *more: Option) -> Choice:
    options = [*more, Option("16", "16 bits", sets={value: 2}), Option("8", "8 bits", sets={value: 1})]
    return Choice(name, [*options, Option("4", "4 bits", sets={value: 0.5})], default="16", label=label)


kv_cache = Calculator(
    name="kv-cache",
    topic="precision",
    title="How many sequences fit beside the weights?",
    intro="Decoding keeps a key and a value of every token in every layer. That cache grows with context and batch; "
    "the weights do not.",
    inputs=[
        *grouped(
            "",
            _pick_model("Llama 2 7B", "context_length", "parameters", "layers", "query_heads", "kv_heads", "head_dim"),
            *custom_model("parameters", "layers", "query_heads", "kv_heads", "head_dim"),
            _bits(
                "weight_bits",
                "bytes_per_parameter",
                "Weights in",
                Option("32", "32 bits", sets={"bytes_per_parameter": 4}),
            ),
            _bits("cache_bits", "bytes_per_element", "Cache in"),
        ),
        *grouped(
            "Hardware",
            pick_accelerator("H200 SXM", peaks={}, sets={"capacity": "memory"}),
            *custom_accelerator("memory"),
            _split("Model split over", alone={}),
        ),
        *grouped(
            "Requests",
            whole("context_length", 2**21, 4096, "Context", "tokens of a sequence"),
            whole("batch", 65536, 8, "Batch", "sequences"),
        ),
    ],
    outputs=[
        Output(memory.kv_bytes_per_token, "token_bytes", "Cache of one token"),
        Output(memory.kv_cache_bytes, "whole_cache", "Cache of the batch"),
        Output(memory.weight_bytes, "whole_weights", "Weights"),
        Sum("total", ["weights", "cache"], label="On one accelerator"),
        Value("capacity", "Memory of the accelerator", shown=False),
        Output(
            memory.largest_batch,
            label="Largest batch at this context",
            given={"memory": "capacity", "bytes_per_sequence": "sequence_bytes"},
        ),
        Output(
            memory.largest_context,
            label="Longest context at this batch",
            given={"memory": "capacity", "bytes_per_token": "token_bytes_here"},
        ),
        Ratio("weights", "whole_weights", "tensor_parallel", "Weights", unit=BYTE, shown=False),
        Output(memory.kv_heads_per_device, "heads_here", shown=False),
        Output(memory.kv_heads_per_device, "query_heads_here", given={"kv_heads": "query_heads"}, shown=False),
        Output(memory.kv_bytes_per_token, "token_bytes_here", given={"kv_heads": "heads_here"}, shown=False),
        Output(memory.kv_cache_bytes, "sequence_bytes", given={"kv_heads": "heads_here", "batch": 1}, shown=False),
        Output(memory.kv_cache_bytes, "cache", "KV cache", given={"kv_heads": "heads_here"}, shown=False),
        Ratio("share", "total", "capacity", shown=False),
        Sum("free", ["capacity"], minus=["total"], shown=False),
        Sum("over", ["total"], minus=["capacity"], shown=False),
        Ratio("cards", "weights", "capacity", shown=False),
        Ratio("cache_over_weights", "cache", "weights", shown=False),
    ],
    stack=Stack(
        parts=["weights", "cache"],
        capacity="capacity",
        label="On one accelerator",
        describe="Memory of one accelerator, modelled: weights {weights}, KV cache {cache}, together {total} of "
        "{capacity}.",
    ),
    curve=Curve(
        x="context_length",
        low=128,
        lines=[
            Line("total", "weights and cache"),
            Line("capacity", "memory", faint=True),
            Line("weights", "weights", faint=True),
        ],
        marks=[Mark("largest_context", "up to {largest_context}", y="capacity")],
        at=[("context_length", "total")],
        at_label="this batch",
        x_label="Context (tokens)",
        y_label="Memory",
        describe="Weights and cache on one accelerator against the context, both axes logarithmic: flat at "
        "{weights} for short contexts, rising with the cache for long ones. Context {context_length}: {total} "
        "of {capacity}.",
    ),
    verdict=[
        Case(
            "No sequence fits: the weights alone are {cards} times the memory. Split the model over more accelerators "
            "or store the weights in fewer bits.",
            [("cards", ">=", 1)],
        ),
        Case(
            "Over by {over}, and not even one sequence of this context fits: beside the weights there is room for "
            "{largest_context} tokens of each of {batch}.",
            [("share", ">", 1), ("largest_batch", "<", 1)],
        ),
        Case(
            "Over by {over}: beside the weights fit {largest_batch} sequences of this context, or {batch} of "
            "{largest_context} tokens.",
            [("share", ">", 1)],
        ),
        Case(
            "Fits with {free} free. The cache takes {cache_over_weights} times the bytes of the weights: fewer KV "
            "heads or bits in the cache help more than smaller weights.",
            [("cache_over_weights", ">", 1)],
        ),
        Case(
            "Fits with {free} free: up to {largest_batch} sequences of this context, or {batch} of {largest_context} "
            "tokens.",
        ),
    ],
    cautions=_cautions("context_length"),
    note="Modelled: keys and values of every layer, no sliding window, no padding to blocks; activations, the "
    "framework and fragmentation come on top. Scales of 8-bit and 4-bit formats are left out. Split over more "
    "accelerators than KV heads, each head is held several times. 1 GiB is 1.074 GB.",
)

number_format = explorer
