"""Calculators of the chapter on profiling: what a mend gains, how well devices are used, who waits for data."""

from __future__ import annotations

import itertools

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
    Sum,
    Table,
    grouped,
    whole,
)
from efflab.calculators.picks import custom_accelerator, custom_model, pick_accelerator, pick_dtype, pick_model
from efflab.formulas import profiling, transformer
from efflab.units import SECOND

# Shares as Ivanov et al. 2021 measured them in a BERT encoder layer; the speedups are examples.
_PARTS = {"a": ("A", 0.61, 1.4), "b": ("B", 0.255, 3.0), "c": ("C", 0.135, 10.0)}


def _part(key: str) -> list[Slider]:
    name, share, speedup = _PARTS[key]
    return [
        Slider(
            f"share_{key}",
            0,
            0.99,
            default=share,
            steps=99,
            label=f"Share of {name}",
            help="1 is the whole step",
            group=f"Part {name}",
        ),
        Slider(
            f"speedup_{key}",
            1,
            1000,
            default=speedup,
            scale="log",
            label=f"Speedup of {name}",
            help="of this part alone",
            group=f"Part {name}",
        ),
    ]


def _of_each(formula: object, name: str) -> list[Output]:
    return [
        Output(formula, f"{name}_{k}", given={"share": f"share_{k}", "speedup": f"speedup_{k}"}, shown=False)  # type: ignore[arg-type]
        for k in _PARTS
    ]


def _first(key: str) -> list[tuple[str, str, str | float]]:
    """Mending this part saves most."""
    return [(f"saved_{key}", ">=", f"saved_{other}") for other in _PARTS if other != key]


amdahl = Calculator(
    name="amdahl",
    topic="profiling",
    title="Which part should be mended first?",
    intro="Take the shares of three parts from a profile, and say how much faster each could become. What a part saves "
    "is the order of the to-do list; what it gains at most is the curve's limit.",
    inputs=[
        Slider("time", 1e-6, 1e4, default=0.1, scale="log", label="Time of a step", help="or of the whole run"),
        *(slider for key in _PARTS for slider in _part(key)),
        Choice(
            "part",
            [
                Option(name, f"Part {name}", takes={"share": f"share_{key}", "speedup": f"speedup_{key}"})
                for key, (name, *_) in _PARTS.items()
            ],
            default="A",
            label="Part",
            group="Drawn",
        ),
    ],
    outputs=[
        Output(profiling.amdahl_speedup, "gain", "The step gains"),
        Output(profiling.amdahl_limit, "limit", "At most, with the part gone"),
        Output(profiling.time_saved, "saved", "Saved"),
        Output(profiling.time_after_mend, "time_after", "Time after this mend"),
        Sum("time_left", ["time"], minus=[f"saved_{k}" for k in _PARTS], label="Time after all three"),
        Ratio("gain_of_all", "time", "time_left", label="All three gain"),
        *_of_each(profiling.time_saved, "saved"),
        *_of_each(profiling.amdahl_speedup, "gain"),
        Sum("saved_by_all", [f"saved_{k}" for k in _PARTS], shown=False),
        Sum("shares", [f"share_{k}" for k in _PARTS], shown=False),
    ],
    curve=Curve(
        x="speedup",
        low=1,
        high=100,
        scale="log-linear",
        from_zero=False,
        lines=[Line("gain", "{part}"), Line("limit", "limit", faint=True)],
        vary="part",
        at=[("speedup", "gain")],
        at_label="this mend",
        x_label="Speedup of the part",
        y_label="Speedup of the step",
        describe="Speedup of the step against the speedup of {part}, on a logarithmic axis. It rises from 1 and levels "
        "off at {limit}. At a speedup of {speedup} of the part the step gains {gain}.",
    ),
    compare=Table("part", ["share", "speedup", "saved", "gain", "limit"], label="The to-do list"),
    verdict=[
        Case(
            "Impossible as set: the three shares add up to {shares}, more than the whole. No gain or time below holds.",
            [("shares", ">", 1.000001)],
        ),
        Case("Nothing is saved: no part becomes faster.", [("saved_by_all", "<=", 0)]),
        *(
            Case(
                f"Mend {_PARTS[key][0]} first: it saves {{saved_{key}}} of {{time}} and makes the step "
                f"{{gain_{key}}} times faster. All three leave {{time_left}}, {{gain_of_all}} times faster.",
                _first(key),
            )
            for key in ("a", "b")
        ),
        Case(
            "Mend C first: it saves {saved_c} of {time} and makes the step {gain_c} times faster. All three leave "
            "{time_left}, {gain_of_all} times faster."
        ),
    ],
    cautions=[
        *(
            Case(
                f"{_PARTS[other][0]} saves as much.",
                [
                    ("shares", "<=", 1.000001),
                    (f"saved_{key}", ">", 0),
                    *_first(key),
                    *((f"saved_{key}", ">", f"saved_{before}") for before in _PARTS if before < key),
                    (f"saved_{other}", "==", f"saved_{key}"),
                ],
            )
            for key, other in itertools.combinations(_PARTS, 2)
        ),
        *(
            Case(
                f"{_PARTS[other][0]} would become {{speedup_{other}}} times faster and saves less.",
                [
                    ("shares", "<=", 1.000001),
                    *_first(key),
                    (f"saved_{other}", "<", f"saved_{key}"),
                    (f"speedup_{other}", ">", f"speedup_{key}"),
                ],
            )
            for key in _PARTS
            for other in _PARTS
            if other != key
        ),
    ],
    note="The parts run one after another. On a GPU, host and device work at once: what hides behind something else "
    "saves nothing, so take the shares of what the step waits for.",
)


_SHAPE = ("parameters", "layers", "query_heads", "head_dim")
_LENGTH = whole("sequence_length", 2**20, 8192, "Sequence length", "tokens")
_RECOMPUTATION = Choice(
    "recomputation",
    [
        Option("none", "None"),
        Option("selective", "Selective: attention scores"),
        Option("full", "Full: the whole forward pass"),
    ],
    default="full",
    label="Recomputation",
)

mfu = Calculator(
    name="mfu",
    topic="profiling",
    title="How well are these devices used?",
    intro="Tokens per second are easy to measure. Times the operations that the model needs for a token, over what the "
    "devices could do, they are the MFU.",
    inputs=[
        pick_model("Llama 3.1 70B", sets={n: n for n in _SHAPE}),
        *custom_model(*_SHAPE),
        _LENGTH,
        _RECOMPUTATION,
        *grouped(
            "Measured",
            pick_accelerator("A100 SXM 80GB", sets={}),
            *custom_accelerator("peak_performance"),
            pick_dtype(sets=()),
            whole("devices", 2**20, 64, "Devices"),
            Slider(
                "tokens_per_second",
                1,
                1e10,
                default=21184,
                scale="log",
                label="Tokens per second",
                help="of all devices together",
            ),
        ),
    ],
    outputs=[
        Ratio("mfu", "performance", "peak_performance", label="MFU", percent=True),
        Ratio("hfu", "hardware_performance", "peak_performance", label="HFU", percent=True),
        Output(
            profiling.performance_per_device,
            "performance",
            "Needed by the model, per device",
            given={"flops_per_token": "model_flops"},
        ),
        Output(transformer.palm_flops_per_token, "model_flops", "Operations of a token"),
        Output(
            transformer.tokens_per_second,
            "tokens_at_peak",
            "Tokens per second at the peak",
            given={"mfu": 1, "flops_per_token": "model_flops"},
        ),
        Output(profiling.hardware_flops_per_token, "hardware_flops", shown=False),
        Output(
            profiling.performance_per_device,
            "hardware_performance",
            given={"flops_per_token": "hardware_flops"},
            shown=False,
        ),
        Output(
            transformer.tokens_per_second,
            "tokens_at_40",
            given={"mfu": 0.4, "flops_per_token": "model_flops"},
            shown=False,
        ),
        Output(
            transformer.tokens_per_second,
            "most_tokens",
            given={"mfu": 1, "flops_per_token": "hardware_flops"},
            shown=False,
        ),
    ],
    curve=Curve(
        x="tokens_per_second",
        low=0,
        high="most_tokens",
        scale="linear-linear",
        lines=[Line("mfu", "MFU"), Line("hfu", "HFU", faint=True)],
        marks=[
            Mark("tokens_at_40", "MFU 40%"),
        ],
        at=[("tokens_per_second", "mfu"), ("tokens_per_second", "hfu")],
        at_label="this run",
        y_label="Share of the peak",
        describe="MFU and HFU against tokens per second: two straight lines through zero, the HFU the steeper one "
        "where operations are computed again, and 100% at {most_tokens}. At {tokens_per_second}: MFU {mfu}, HFU {hfu}. "
        "An MFU of 40% takes {tokens_at_40}.",
    ),
    verdict=[
        Case(
            "Impossible: {hfu} of the peak. Are the tokens those of one second, is the count of devices right "
            "({devices}), and is the data type the one that the matrix products use?",
            [("hfu", ">", 1)],
        ),
        Case(
            "More than any published run that we know: 72%, of a 2.7-billion GPT with FlashAttention-2 on 8 A100s. "
            "Check the count of tokens, the data type and the peak before believing it.",
            [("mfu", ">", 0.725)],
        ),
        Case(
            "Among the best published runs, which reach 72%: Megatron 530B reports 54% on 2,240 A100s, MPT-7B 64% on 8 "
            "and a 2.7-billion GPT with FlashAttention-2 72% on 8.",
            [("mfu", ">=", 0.5)],
        ),
        Case(
            "In the range of published runs of large models: PaLM 46% on TPU v4, Llama 3 405B 38 to 43% on H100s. "
            "The best on A100s reach 54 to 72%.",
            [("mfu", ">=", 0.38)],
        ),
        Case(
            "Below recent runs of large models, which report 38% and more. GPT-3 had 21% and Gopher 32.5%. An MFU of "
            "40% would be {tokens_at_40}.",
            [("mfu", ">=", 0.2)],
        ),
        Case(
            "Low: the model needs {performance} of each device, {mfu} of its peak. Profile before buying devices: an "
            "MFU of 40% would be {tokens_at_40}.",
        ),
    ],
    note="Operations of a token are 6N and those of attention, every pair of positions counted, as PaLM counts them. "
    "Peaks are dense data-sheet peaks. Two MFUs compare only if they count alike and divide by the same peak.",
)


loader = Calculator(
    name="loader",
    topic="profiling",
    title="Does the device wait for data?",
    intro="Workers load batches while the device computes. Measure two times, each without the other: to load a "
    "sample, and to compute a step on a batch that is there already.",
    inputs=[
        Slider("sample_time", 1e-7, 100, default=0.005, scale="log", label="Loading a sample", help="by one process"),
        Slider("batch", 1, 2**20, default=100, scale="log2", integer=True, label="Batch", help="samples in a step"),
        Slider("compute_time", 1e-5, 1000, default=0.2, scale="log", label="Computing a step", help="without loading"),
        Slider("workers", 0, 64, default=2, steps=64, integer=True, label="Workers", help="0: the training process"),
        Slider(
            "cores",
            1,
            256,
            default=3,
            scale="log2",
            integer=True,
            label="Cores for workers",
            help="the job's, per device, less one for the training process",
        ),
    ],
    outputs=[
        Output(profiling.loader_step_time, "step_time", "Time of a step", given={"workers": "loading"}),
        Ratio("waiting_share", "waiting", "step_time", label="Of this the device waits", percent=True),
        Output(profiling.workers_needed, "needed", "Workers that hide the loading", whole=True),
        Output(
            profiling.sample_time_hidden,
            "sample_limit",
            "Slowest sample that these cores hide",
            given={"workers": "cores"},
        ),
        Ratio("samples_per_second", "batch", "step_time", label="Samples per second"),
        Output(profiling.batch_load_time, "load_time", "Loading a batch, by one process"),
        Output(profiling.effective_workers, "loading", shown=False),
        Sum("waiting", ["step_time"], minus=["compute_time"], shown=False),
        Ratio("interval", "load_time", "loading", unit=SECOND, shown=False),
        Sum("drawn", ["needed", "needed", "workers"], shown=False),
    ],
    curve=Curve(
        x="workers",
        low=0,
        high="drawn",
        scale="linear-linear",
        lines=[Line("step_time", "time of a step"), Line("compute_time", "computing alone", faint=True)],
        marks=[Mark("needed", "hidden from {needed}", y="compute_time")],
        at=[("workers", "step_time")],
        at_label="these workers",
        x_label="Workers",
        y_label="Time of a step",
        describe="Time of a step against the number of workers. It falls from the sum of loading and computing without "
        "workers to {compute_time} from {needed} workers on, if there are cores for them. With {workers}: {step_time}.",
    ),
    verdict=[
        Case(
            "The device does not wait: a batch is ready every {interval}, and a step takes {compute_time}.",
            [("workers", ">", 0), ("waiting_share", "<=", 1e-6)],
        ),
        Case(
            "Nothing is loaded in advance: the device waits {waiting} of {step_time} where each step ends in a "
            "read such as loss.item(), and on a CPU. {needed} workers would hide the loading.",
            [("workers", "==", 0), ("needed", "<=", "cores")],
        ),
        Case(
            "The device waits for {waiting_share} of the step, {waiting}. {needed} workers would hide the loading.",
            [("needed", "<=", "cores")],
        ),
        Case(
            "The device waits for {waiting_share} of the step, {waiting}, and {cores} cores for workers cannot hide "
            "the loading: it takes {needed}. Load a sample in {sample_limit} or less, or prepare the data beforehand.",
        ),
    ],
    cautions=[
        Case(
            "{workers} workers share {cores} cores and load no faster than {cores} would, if loading keeps "
            "a core busy.",
            [("workers", ">", "cores")],
        ),
    ],
    note="Steady state, each worker computing on a core of its own, batches handed over at no cost. Workers that wait "
    "for a disk or a network need less than a core. The first batch of an epoch and the start of the workers come on "
    "top, and so does a queue too short for times that vary. Without workers, a GPU whose steps end without a read "
    "computes while the next batch is loaded: then the longer of the two counts, and not their sum.",
)
