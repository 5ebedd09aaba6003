"""Calculators of the chapter on several GPUs: scaling, layouts, pipelines, batch size, checkpoints."""

from __future__ import annotations

import itertools
from dataclasses import replace

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
    Run,
    Slider,
    Stack,
    Sum,
    Table,
    Value,
    grouped,
    whole,
)
from efflab.calculators.picks import custom_accelerator, custom_model, pick, pick_model
from efflab.catalog import accelerators
from efflab.formulas import memory, parallelism, transformer
from efflab.records import median, recorded
from efflab.units import BYTE, COUNT, FLOP, FLOP_PER_SECOND, PARAMETER, SECOND, TOKEN

GBIT = 1e9 / 8  # B/s


# Data parallelism


def recorded_runs() -> list[Run]:
    """Measured efficiencies of the newest recorded run of the lab on each device, weak and strong scaling apart."""
    newest: dict[tuple[str, str], Run] = {}
    for record in recorded("ddp"):
        if record.scale == "smoke":
            continue
        device = record.environment.device
        for scaling in ("weak", "strong"):
            points = [
                (float(s.point["ranks"]), median(s.values), str(s.point["case"]))
                for s in record.samples
                if s.metric == "efficiency" and s.status == "ok" and s.point.get("scaling") == scaling
            ]
            if points:  # a run on one rank has none, and takes no older run's place
                label = f"{device}, {record.created[:10]}, {scaling} scaling"
                # of its own step and its own network
                newest[device, scaling] = Run(label=label, option=None, points=points)
    return list(newest.values())


def _links() -> Choice:
    """A choice of what joins the ranks of a node: it sets the bandwidth of one direction and how many a node has."""
    seen: dict[str, Option] = {}
    first: dict[str, int] = {}  # what a link's plain name stands for: the devices of the first system that has it
    for a in accelerators().values():
        if a.link:
            said = f"{a.link.name}, {a.link.joins} devices"
            name = a.link.name if first.setdefault(a.link.name, a.link.joins) == a.link.joins else said
            sets = {"link_bandwidth": a.link_bandwidth, "ranks_per_node": a.link.joins}
            seen.setdefault(name, Option(name, f"{said}: {a.name}", sets=sets))
    # Nothing inside a node limits one rank: its own network does.
    alone = Option("none", "None: one rank in each node", sets={"link_bandwidth": 1e15, "ranks_per_node": 1})
    return pick(
        "link",
        [*seen.values(), alone],
        default="NVLink 4",
        own={"link_bandwidth": "own_link", "ranks_per_node": "own_ranks_per_node"},
        label="Within a node",
        shared=False,
    )


def _networks() -> Choice:
    """A choice of what joins the nodes: it sets the bandwidth of one direction of each rank's adapter."""
    return pick(
        "network",
        [Option(f"{rate} Gbit/s", sets={"network_bandwidth": rate * GBIT}) for rate in (800, 400, 200, 100, 25, 10)],
        default="400 Gbit/s",
        own={"network_bandwidth": "own_network"},
        label="Between nodes, for each rank",
        shared=False,
    )


_SCALING = Choice(
    "scaling",
    [
        Option("weak", "Weak: a batch for each", sets={"one": 1}, takes={"backward_here": "backward_time"}),
        Option("strong", "Strong: one batch for all", sets={"one": 1}, takes={"backward_here": "backward_shared"}),
    ],
    default="weak",
    label="Scaling",
)
_GRADIENTS = Choice(
    "gradients",
    [
        Option("fp32", "FP32", sets={"bytes_per_parameter": 4}),
        Option("bf16", "BF16 or FP16", sets={"bytes_per_parameter": 2}),
    ],
    default="bf16",
    label="Gradients sent in",
)

_SHOWS = ("unhidden", ">", 0.5)  # most of the communication is not hidden, as without overlap or in one bucket

scaling = Calculator(
    name="ddp-scaling",
    topic="ddp",
    title="How well does data parallelism use these ranks?",
    intro="Every step ends when the gradients of all ranks have been added up. The curve says how much of each rank is "
    "left for training, from one rank to thousands.",
    inputs=[
        *grouped(
            "Step on one rank",
            pick_model("Llama 3.1 8B", sets={"parameters": "parameters"}),
            *custom_model("parameters"),
            _GRADIENTS,
            Slider("forward_time", 1e-6, 1e4, default=0.33, scale="log", label="Forward pass"),
            Slider("backward_time", 1e-6, 1e4, default=0.66, scale="log", label="Backward pass"),
            Slider("update_time", 1e-6, 1e4, default=0.03, scale="log", zero=True, label="Update of the weights"),
        ),
        *grouped(
            "Ranks",
            whole("ranks", 65536, 64, "Ranks"),
            _SCALING,
        ),
        *grouped(
            "Network",
            _links(),
            Slider("own_link", 1e6, 1e13, default=1e11, scale="log", label="Link", help="one direction, per rank"),
            whole("own_ranks_per_node", 576, 8, "Ranks in a node"),
            _networks(),
            Slider(
                "own_network", 1e6, 1e13, default=1e9, scale="log", label="Adapter", help="one direction, for each rank"
            ),
            Slider(
                "latency", 1e-7, 1, default=4e-6, scale="log", zero=True, label="Latency", help="of one step of a ring"
            ),
            Slider(
                "bucket_bytes",
                2**10,
                2**40,
                default=99.14e6,
                scale="log2",
                label="Bucket, on average",
                help="in DDP whole tensors of 25 MiB or more; 99.1 MB for Llama 3.1 8B",
            ),
            Slider(
                "overlap",
                0,
                1,
                default=1,
                label="Overlap",
                help="1: beside the backward pass; 0: after it",
            ),
        ),
    ],
    outputs=[
        Ratio("share", "efficiency", "one", label="Scaling efficiency", percent=True),
        Ratio("speedup", "ranks", "slowdown", label="Ranks alone that do as much"),
        Output(parallelism.scaled_step_time, "step_time", "Time of a step"),
        Output(parallelism.bucketed_all_reduce_time, "communication_time", "All-reduces take"),
        Output(
            parallelism.exposed_communication_time,
            "exposed",
            "Of them not hidden",
            given={"backward_time": "backward_here"},
        ),
        Output(parallelism.gradient_buckets, "buckets", "Buckets in a step"),
        Output(memory.gradient_bytes, "gradient_bytes", "Gradients"),
        Output(
            parallelism.group_bandwidth,
            "bandwidth",
            "Bandwidth of the rings",
            given={"group": "ranks", "stride": 1, "bandwidth": "link_bandwidth"},
        ),
        Value("ranks_per_node", shown=False),
        Output(parallelism.scaled_efficiency, "efficiency", shown=False),
        Output(parallelism.all_reduce_traffic, "traffic", given={"message_bytes": "gradient_bytes"}, shown=False),
        Ratio("transfer_time", "traffic", "bandwidth", unit=SECOND, shown=False),
        Ratio("transfer_share", "transfer_time", "communication_time", percent=True, shown=False),
        Ratio("backward_shared", "backward_time", "ranks", unit=SECOND, shown=False),
        Value("backward_here", shown=False),
        Ratio("slowdown", "one", "efficiency", shown=False),
        Ratio("exposed_share", "exposed", "step_time", percent=True, shown=False),
        Ratio("unhidden", "exposed", "communication_time", shown=False),
        Ratio("update_share", "update_time", "step_time", percent=True, shown=False),
        Output(
            parallelism.exposed_communication_time,
            "exposed_beside",
            given={"backward_time": "backward_here", "overlap": 1},
            shown=False,
        ),
        Ratio("beside_share", "exposed_beside", "step_time", shown=False),
    ],
    curve=Curve(
        x="ranks",
        low=1,
        scale="log-linear",
        lines=[Line("share", "{scaling}")],
        vary="scaling",
        at=[("ranks", "share")],
        at_label="these ranks",
        x_label="Ranks",
        y_label="Scaling efficiency",
        describe="Scaling efficiency against the number of ranks, on a logarithmic axis: 100% with one rank, {share} "
        "with {ranks}, and falling further.",
        runs=recorded_runs,
    ),
    verdict=[
        Case("One rank alone: nothing is sent.", [("ranks", "<", 2)]),
        # Little shows, so what does not shrink with the ranks is the update.
        *(
            Case(
                f"{said}, and still {{share}}: the update takes {{update_time}} on every rank, however many share the "
                "batch, and {update_share} of a step. That is Amdahl's law. Split the update over the ranks (ZeRO 1), "
                "or give each rank a larger batch.",
                [("exposed_share", "<=", 0.05), ("share", "<", 0.9), *when],
            )
            for said, when in (("Little to hide", [_SHOWS]), ("Hidden", []))
        ),
        Case(
            "Little to hide: the all-reduces take {communication_time}, and {exposed_share} of a step is waiting for "
            "them. {ranks} ranks do the work of {speedup}.",
            [("exposed_share", "<=", 0.05), _SHOWS],
        ),
        Case(
            "Hidden: the all-reduces take {communication_time}, and all but {exposed} runs beside the backward pass. "
            "{ranks} ranks do the work of {speedup}.",
            [("exposed_share", "<=", 0.05)],
        ),
        Case(
            "Too little overlaps: {exposed} of {step_time} is waiting. Beside the backward pass of {backward_here} all "
            "but {exposed_beside} would be hidden.",
            [("overlap", "<", 1), ("beside_share", "<=", 0.05)],
        ),
        Case(
            "All in one message: it can start only when the backward pass ends, and {exposed} of {step_time} is "
            "waiting. Smaller buckets start earlier.",
            [("buckets", "<", 2), ("overlap", ">", 0.5)],
        ),
        Case(
            "Limited by latency: the transfer is only {transfer_share} of {communication_time}, the rest is {buckets} "
            "messages that go round a ring of {ranks}. Larger buckets make fewer messages; a tree takes fewer steps "
            "than a ring.",
            [("transfer_share", "<", 0.5)],
        ),
        Case(
            "Limited by the bandwidth: {exposed} of {step_time} is waiting: a backward pass of {backward_here} cannot "
            "hide {communication_time} of communication. More work between two all-reduces, a larger batch or "
            "accumulation, helps first; then fewer bytes, and a faster network.",
            [("overlap", ">", 0.5)],
        ),
        Case(
            "Limited by communication that nothing hides: {exposed} of {step_time}. Let it run beside the backward "
            "pass where the device can, or communicate less often.",
        ),
    ],
    cautions=[
        Case(
            "Counted too fast: the last node has fewer ranks than the {ranks_per_node} of a full one, and so fewer "
            "adapters for the rings.",
            [("ranks", ">", "ranks_per_node"), ("ranks", "no multiple of", "ranks_per_node")],
        ),
        Case(
            "The transfer is {transfer_share} of the communication, the rest is latency: try larger buckets.",
            [("transfer_share", ">=", 0.5), ("transfer_share", "<", 0.8), ("exposed_share", ">", 0.05)],
        ),
    ],
    note="Modelled: rings through the adapters of all ranks of a node, every rank equally fast, buckets of equal size, "
    "computation in proportion to the batch. Links and adapters reach 70 to 90% of these bandwidths with large "
    "messages. The lab measures bandwidth, latency and both efficiencies.",
)


# Layouts

_FIXED = {"as_flash": "flash", "as_none": "none", "split": True, "one": 1, "two": 2}


def _placed() -> Choice:
    """A choice of accelerator with a link and a BF16 peak: it sets peak, memory, link and size of a node."""
    options = [
        Option(
            a.name,
            sets={
                "peak_performance": a.peak("bf16"),
                "capacity": a.memory,
                "link_bandwidth": a.link_bandwidth,
                "ranks_per_node": a.link.joins,
            },
            group=a.vendor,
        )
        for a in accelerators().values()
        if a.link and "bf16" in a.peak_dense
    ]
    own = {
        "peak_performance": "own_peak_performance",
        "capacity": "own_memory",
        "link_bandwidth": "own_link",
        "ranks_per_node": "own_ranks_per_node",
    }
    return pick("accelerator", options, default="H100 SXM", own=own)


_ZERO = Choice(
    "zero",
    [
        # From stage 1 on the updated weights are gathered as well, and there is a forward pass to hide that.
        Option("0", "0: nothing split", sets=_FIXED | {"zero_stage": 0}, takes={"exposed_time": "exposed_all"}),
        Option("1", "1: optimizer split", sets=_FIXED | {"zero_stage": 1}, takes={"exposed_time": "exposed_both"}),
        Option("2", "2: and gradients", sets=_FIXED | {"zero_stage": 2}, takes={"exposed_time": "exposed_both"}),
        Option("3", "3: and weights (FSDP)", sets=_FIXED | {"zero_stage": 3}, takes={"exposed_time": "exposed_both"}),
    ],
    default="2",
    label="ZeRO stage",
)
_CONVENTION = Choice(
    "convention",
    [
        Option("16 bytes", "16 B: mixed precision", sets={"bytes_per_gradient": 2}),
        Option("18 bytes", "18 B: FP32 gradients too", sets={"bytes_per_gradient": 4}),
    ],
    default="18 bytes",
    label="Bytes per parameter, Adam",
)
_RECOMPUTATION = Choice(
    "recomputation",
    [
        # Without the forward pass again, and with it: a third more work and two more all-reduces to the four. The
        # backward pass, which does it again, then takes three quarters of the computing in place of two thirds.
        Option("none", "None", sets={"work": 1, "sent_once": 1, "all_per_backward": 3 / 2}),
        Option("full", "Full: layers", sets={"work": 4 / 3, "sent_once": 2 / 3, "all_per_backward": 4 / 3}),
    ],
    default="none",
    label="Recomputation",
)


def _schedule(default: str) -> Choice:
    """A schedule of the pipeline. Only the interleaved one has chunks."""
    return Choice(
        "schedule",
        [
            Option("GPipe", "GPipe", sets={"chunks": 1, "kind": 0}),
            Option("1F1B", "1F1B", sets={"chunks": 1, "kind": 1}),
            Option("interleaved", "Interleaved 1F1B", sets={"kind": 2}, takes={"chunks": "own_chunks"}),
        ],
        default=default,
        label="Schedule",
    )


_CHUNKS = whole("own_chunks", 32, 8, "Chunks per stage", "of the interleaved schedule")
_HELD = ["weights", "gradients", "optimizer", "activations"]
_HERE = {"parameters": "parameters_here", "ranks": "data_parallel"}
_LOST = {"bubble": "bubble_time", "tensor": "tensor_time", "network": "exposed_time"}


def _most(lost: str) -> list[tuple[str, str, str | float]]:
    """This takes more time than the other two, and more than a twentieth of the step."""
    return [(f"{lost}_share", ">", 0.05), *((_LOST[lost], ">=", time) for k, time in _LOST.items() if k != lost)]


def _over() -> list[Case]:
    """Activations that do not fit: one case for each set of mends that are still open."""
    cases = []
    fewer = ("take 1F1B in place of GPipe", "", "take plain 1F1B (it holds fewer microbatches)")
    held = [("one microbatch", "", [("in_flight", "<=", 1)])]  # which no schedule makes fewer
    held += [("{in_flight} microbatches", said, [("order", "==", i)]) for i, said in enumerate(fewer)]
    for (what, schedule, when), full, small in itertools.product(held, (True, False), (True, False)):
        mends = ["" if full else "recompute layers", "" if small else "take a smaller microbatch", schedule]
        mends = [*filter(None, mends), "split each layer over more devices"]
        said = ", ".join(mends[:-1]) + " or " * (len(mends) > 1) + mends[-1]
        cases.append(
            Case(
                f"Does not fit: over by {{over}}. The first stage holds the activations of {what}, {{activations}}. "
                f"{said[0].upper()}{said[1:]}.",
                [
                    ("memory_share", ">", 1),
                    ("recomputed", ">" if full else "<=", 1),
                    ("microbatch", "<=" if small else ">", 1),
                    *when,
                ],
            )
        )
    return cases


layout = Calculator(
    name="parallel-layout",
    topic="ddp",
    title="Which parallelism for this model on this cluster?",
    intro="Say how a model is cut: each layer over tensor-parallel devices, the layers over pipeline stages, the batch "
    "over data-parallel replicas. It opens at Llama 3 405B on 16,384 H100s, as published.",
    inputs=[
        *grouped(
            "Model and cluster",
            pick_model(
                "Llama 3.1 405B",
                sets={n: n for n in ("parameters", "layers", "hidden_size", "query_heads", "head_dim")},
            ),
            *custom_model("parameters", "layers", "hidden_size", "query_heads", "head_dim"),
            _placed(),
            *custom_accelerator("peak_performance", "memory"),
            Slider("own_link", 1e8, 1e13, default=1e11, scale="log", label="Link", help="one direction, per device"),
            whole("own_ranks_per_node", 576, 8, "Devices per node", "joined by the link"),
            Slider(
                "network_bandwidth",
                1e8,
                1e12,
                default=50e9,
                scale="log",
                label="Network",
                help="one direction, adapter of each device; 400 Gbit/s are 50 GB/s",
            ),
            Slider(
                "utilization",
                0.05,
                1,
                default=0.5,
                steps=95,
                label="Share of the peak, alone",
                unit=COUNT,
                help="what one device reaches with nothing to wait for",
            ),
        ),
        *grouped(
            "Layout",
            whole("tensor_parallel", 64, 8, "Tensor parallel", "devices that share each layer"),
            whole("pipeline_parallel", 64, 16, "Pipeline stages"),
            whole("data_parallel", 2048, 128, "Data parallel", "replicas"),
            _ZERO,
            _CONVENTION,
        ),
        *grouped(
            "Batch",
            whole("sequence_length", 2**20, 8192, "Sequence length", "tokens"),
            whole("microbatch", 64, 1, "Microbatch", "sequences at once"),
            whole("microbatches", 4096, 16, "Microbatches", "of each pipeline in a step"),
            _schedule("interleaved"),
            _CHUNKS,
            _RECOMPUTATION,
            Slider("overlap", 0, 1, default=1, label="Overlap", help="of gradients and weights with passes"),
        ),
    ],
    outputs=[
        Ratio("mfu_share", "mfu", "one", label="MFU", percent=True),
        Ratio(
            "per_device",
            "flops_of_device",
            "step_time",
            label="Per device, without recomputation",
            unit=FLOP_PER_SECOND,
        ),
        Output(
            parallelism.layout_step_time,
            "step_time",
            "Time of a step",
            given={"tensor_parallel_time": "tensor_time", "utilization": "used"},
        ),
        Sum("total", _HELD, label="On one device"),
        Output(parallelism.layout_devices, "devices", "Devices", given={"context_parallel": "one"}),
        Ratio("tokens", "batch", "one_of_length", label="Tokens in a step", unit=TOKEN),
        Ratio("bubble_share", "bubble_time", "step_time", label="Pipeline bubble, of the step", percent=True),
        Ratio("tensor_share", "tensor_time", "step_time", label="Tensor-parallel all-reduces", percent=True),
        Ratio("network_share", "exposed_time", "step_time", label="Gradients and weights, not hidden", percent=True),
        Value("capacity", "Memory of the device", shown=False),
        Value("link_bandwidth", "Link", shown=False),
        Value("ranks_per_node", "Devices per node", shown=False),
        # memory
        Ratio("parameters_of_rank", "parameters", "tensor_parallel", unit=PARAMETER, shown=False),
        Ratio("parameters_here", "parameters_of_rank", "pipeline_parallel", unit=PARAMETER, shown=False),
        Output(memory.weight_bytes_per_rank, "weights", "Weights", given=_HERE, shown=False),
        Output(memory.gradient_bytes_per_rank, "gradients", "Gradients", given=_HERE, shown=False),
        Output(memory.optimizer_bytes_per_rank, "optimizer", "Optimizer", given=_HERE, shown=False),
        Sum("kept_state", ["weights", "gradients", "optimizer"], shown=False),
        Ratio("layers_here", "layers", "pipeline_parallel", shown=False),
        Ratio("layers_of_chunk", "layers_here", "chunks", shown=False),
        Ratio("pieces", "layers", "layers_of_chunk", shown=False),
        Output(
            memory.activation_bytes,
            "activations_of_one",
            given={"layers": "layers_here", "sequence_parallel": "split", "attention": "as_flash"},
            shown=False,
        ),
        Output(
            parallelism.pipeline_microbatches_in_flight,
            "in_flight",
            given={"stages": "pipeline_parallel"},
            shown=False,
        ),
        Output(
            parallelism.stage_activation_bytes,
            "activations",
            "Activations",
            given={"microbatch_bytes": "activations_of_one", "microbatches_in_flight": "in_flight"},
            shown=False,
        ),
        Ratio("memory_share", "total", "capacity", shown=False),
        Sum("over", ["total"], minus=["capacity"], shown=False),
        Sum("free", ["capacity"], minus=["total"], shown=False),
        # what the verdict asks
        Ratio("stage_of_zero", "zero_stage", "one", shown=False),
        Ratio("recomputed", "work", "one", shown=False),
        Ratio("order", "kind", "one", shown=False),
        # work
        Output(parallelism.layout_batch, "batch", "Batch", shown=False),
        Ratio("one_of_length", "one", "sequence_length", shown=False),
        Ratio("one_of_tokens", "one_of_length", "batch", shown=False),
        Output(transformer.palm_flops_per_token, "flops_of_token", shown=False),
        Ratio("model_flops", "flops_of_token", "one_of_tokens", unit=FLOP, shown=False),
        Ratio("flops_of_device", "model_flops", "devices", unit=FLOP, shown=False),
        Output(transformer.mfu, "mfu", given={"time": "step_time"}, shown=False),
        # time
        Ratio("used", "utilization", "work", shown=False),
        Output(
            parallelism.layout_step_time,
            "compute_time",
            "Computing",
            given={"utilization": "used", "bubble_fraction": 0, "tensor_parallel_time": 0, "exposed_time": 0},
            shown=False,
        ),
        Output(
            parallelism.pipeline_bubble_fraction, "bubble_fraction", given={"stages": "pipeline_parallel"}, shown=False
        ),
        Ratio("layers_sent", "layers_here", "sent_once", shown=False),
        Ratio("sequences_here", "batch", "data_parallel", shown=False),
        Output(
            parallelism.tensor_parallel_traffic,
            "tensor_bytes",
            given={"layers": "layers_sent", "microbatch": "sequences_here", "bytes_per_element": 2},
            shown=False,
        ),
        Output(
            parallelism.group_bandwidth,
            "tensor_bandwidth",
            given={"group": "tensor_parallel", "stride": 1, "bandwidth": "link_bandwidth"},
            shown=False,
        ),
        Ratio("tensor_time", "tensor_bytes", "tensor_bandwidth", unit=SECOND, shown=False),
        Sum("busy", ["compute_time", "tensor_time"], shown=False),
        Output(parallelism.pipeline_bubble_time, "bubble_time", given={"busy_time": "busy"}, shown=False),
        Output(parallelism.zero_traffic, "data_bytes", given=_HERE | {"bytes_per_parameter": 2}, shown=False),
        Output(
            memory.weight_bytes,
            "sent_here",
            given={"parameters": "parameters_here", "bytes_per_parameter": 2},
            shown=False,
        ),
        Output(
            parallelism.all_reduce_traffic,
            "gathered_twice",
            given={"message_bytes": "sent_here", "ranks": "data_parallel"},
            shown=False,
        ),
        Ratio("weights_gathered", "gathered_twice", "two", unit=BYTE, shown=False),
        Sum("gradients_reduced", ["data_bytes"], minus=["weights_gathered"], shown=False),
        Output(
            parallelism.layout_devices,
            "stride",
            given={"context_parallel": "one", "data_parallel": "one"},
            shown=False,
        ),
        Output(
            parallelism.group_bandwidth,
            "data_bandwidth",
            given={"group": "data_parallel", "bandwidth": "link_bandwidth"},
            shown=False,
        ),
        Ratio(
            "data_time", "data_bytes", "data_bandwidth", label="Gradients and weights take", unit=SECOND, shown=False
        ),
        Ratio("gather_time", "weights_gathered", "data_bandwidth", unit=SECOND, shown=False),
        Ratio("reduce_time", "gradients_reduced", "data_bandwidth", unit=SECOND, shown=False),
        Ratio("backward_all", "compute_time", "all_per_backward", unit=SECOND, shown=False),
        Ratio("backward_last", "backward_all", "microbatches", unit=SECOND, shown=False),
        Sum("forward_all", ["compute_time"], minus=["backward_all"], shown=False),
        Ratio("forward_first", "forward_all", "microbatches", unit=SECOND, shown=False),
        Output(
            memory.gradient_bytes,
            "reduced_here",
            given={"parameters": "parameters_here", "bytes_per_parameter": "bytes_per_gradient"},
            shown=False,
        ),
        Output(
            parallelism.gradient_buckets,
            "buckets",
            given={"gradient_bytes": "reduced_here", "bucket_bytes": parallelism.BUCKET_BYTES},
            shown=False,
        ),
        Output(
            parallelism.exposed_communication_time,
            "exposed_gradients",
            given={"communication_time": "reduce_time", "backward_time": "backward_last"},
            shown=False,
        ),
        # The first layers' weights must be there before the next step's first forward pass begins.
        Output(
            parallelism.exposed_communication_time,
            "exposed_weights",
            given={"communication_time": "gather_time", "backward_time": "forward_first"},
            shown=False,
        ),
        Sum("exposed_both", ["exposed_gradients", "exposed_weights"], shown=False),
        Output(
            parallelism.exposed_communication_time,
            "exposed_all",
            given={"communication_time": "data_time", "backward_time": "backward_last"},
            shown=False,
        ),
        Value("exposed_time", shown=False),
    ],
    stack=Stack(
        parts=_HELD,
        capacity="capacity",
        label="On one device",
        vary="zero",
        describe="Memory of one device, modelled: weights {weights}, gradients {gradients}, optimizer {optimizer}, "
        "activations {activations}; together {total} of {capacity}.",
    ),
    curve=Curve(
        x="microbatches",
        scale="log-linear",
        lines=[Line("mfu_share", "{schedule}")],
        vary="schedule",
        at=[("microbatches", "mfu_share")],
        at_label="this layout",
        x_label="Microbatches of each pipeline",
        y_label="MFU",
        describe="MFU against the microbatches of each pipeline, on a logarithmic axis: it rises as the bubble "
        "shrinks, and the batch grows with it. With {microbatches}: {mfu_share}.",
    ),
    compare=Table("zero", ["total", "data_time"], label="What each stage holds and sends"),
    verdict=[
        Case(
            "Impossible as set: {query_heads} heads cannot be shared by {tensor_parallel} devices evenly.",
            [("query_heads", "no multiple of", "tensor_parallel")],
        ),
        Case(
            "Impossible as set: the model has {layers} layers for {pipeline_parallel} stages.",
            [("chunks", "<", 2), ("layers_here", "<", 0.95)],
        ),
        # A few empty chunks may pass: the embedding and the logits are often given a place of their own.
        Case(
            "Impossible as set: {pipeline_parallel} stages of {chunks} chunks are {pieces} pieces, and the model has "
            "{layers} layers.",
            [("layers_of_chunk", "<", 0.95)],
        ),
        Case(
            "Impossible as set: the interleaved schedule needs microbatches in multiples of the {pipeline_parallel} "
            "stages.",
            [("chunks", ">", 1), ("microbatches", "no multiple of", "pipeline_parallel")],
        ),
        Case(
            "Does not fit: weights, gradients and optimizer alone take {kept_state} of {capacity}, and ZeRO has no "
            "other replica to split them with. More replicas first, then more tensor parallelism within the node, then "
            "more stages.",
            [("kept_state", ">=", "capacity"), ("data_parallel", "<", 2)],
        ),
        Case(
            "Does not fit: weights, gradients and optimizer alone take {kept_state} of {capacity}. Split them "
            "further: a higher ZeRO stage first, then more tensor parallelism within the node, then more stages.",
            [("kept_state", ">=", "capacity"), ("stage_of_zero", "<", 3)],
        ),
        Case(
            "Does not fit: weights, gradients and optimizer alone take {kept_state} of {capacity}. Split them "
            "further: over more replicas, then more tensor parallelism within the node, then more stages.",
            [("kept_state", ">=", "capacity")],
        ),
        *_over(),
        Case(
            "Fits, and tensor parallelism leaves the node: with {tensor_parallel} devices of nodes of {ranks_per_node} "
            "its all-reduces run over the adapters, at {tensor_bandwidth} at best, and take {tensor_share} of the "
            "step. Keep it within a node and add pipeline stages.",
            [("tensor_parallel", ">", "ranks_per_node"), *_most("tensor")],
        ),
        Case(
            "Fits. The bubble of the pipeline costs most, {bubble_share} of {step_time}: more microbatches make it "
            "smaller, and a larger batch with them; so do fewer stages, or more chunks per stage.",
            [("order", "==", 2), *_most("bubble")],
        ),
        Case(
            "Fits. The bubble of the pipeline costs most, {bubble_share} of {step_time}: more microbatches make it "
            "smaller, and a larger batch with them; so do fewer stages, or the interleaved schedule.",
            _most("bubble"),
        ),
        Case(
            "Fits. Tensor parallelism costs most, {tensor_share} of {step_time}: little can hide its all-reduces, and "
            "nothing is counted as hidden. Split each layer over fewer devices, if the memory allows.",
            _most("tensor"),
        ),
        Case(
            "Fits. Data parallelism costs most, {network_share} of {step_time}: gradients and weights take {data_time} "
            "on the network, once a step. More microbatches between two updates, or a faster network.",
            _most("network"),
        ),
        Case(
            "Fits, and waits little: computing takes {compute_time} of {step_time}. What is left to gain is the share "
            "of the peak that one device reaches alone."
        ),
    ],
    cautions=[
        Case(
            "Less than a tenth of the memory is free: {free} for the framework, workspaces and fragmentation.",
            [("memory_share", ">", 0.9), ("memory_share", "<=", 1)],
        ),
        Case(
            "{layers} layers over {pipeline_parallel} stages: some stages hold one more than others.",
            [("layers", "no multiple of", "pipeline_parallel")],
        ),
        Case(
            "Counted too fast: {tensor_parallel} devices do not fill nodes of {ranks_per_node}, so that a group has "
            "fewer adapters in one of them.",
            [("tensor_parallel", ">", "ranks_per_node"), ("tensor_parallel", "no multiple of", "ranks_per_node")],
        ),
        Case(
            "Groups of {tensor_parallel} do not fill nodes of {ranks_per_node}: counted as if each stayed within a "
            "node. Leave the rest of each node idle.",
            [("tensor_parallel", "<=", "ranks_per_node"), ("ranks_per_node", "no multiple of", "tensor_parallel")],
        ),
    ],
    note="Modelled: sequence parallelism, FlashAttention, activations as Korthikanti et al. count them, equal stages. "
    "Embedding, logits, context parallelism and the messages of the pipeline are left out. Each device has an adapter; "
    "a group that spans nodes uses those of all its devices, at their full rate. Weights are BF16, gradients as set. "
    "At stage 3 weights are gathered once per pass, not per microbatch. The share of the peak is yours.",
)


# Pipelines

bubble = Calculator(
    name="pipeline-bubble",
    topic="ddp",
    title="How long does a pipeline stand idle?",
    intro="Stages wait for the first microbatch to come and for the last one to go. How long depends on the number of "
    "microbatches; how much memory they take depends on the schedule.",
    inputs=[
        replace(whole("stages", 64, 8, "Stages"), low=2),
        whole("microbatches", 4096, 32, "Microbatches", "of each pipeline in a step"),
        replace(
            _schedule("1F1B"),
            options=[replace(o, sets={**o.sets, "one": 1, "two": 2}) for o in _schedule("1F1B").options],
        ),
        replace(_CHUNKS, default=4),
        Slider(
            "microbatch_bytes",
            1e6,
            1e12,
            default=4e9,
            scale="log",
            label="Activations of a microbatch",
            help="what one stage keeps of it",
        ),
    ],
    outputs=[
        Ratio("idle_share", "idle", "one", label="Idle, of the whole time", percent=True),
        Ratio("bubble_share", "bubble_fraction", "one", label="Bubble, of the time computing", percent=True),
        Output(parallelism.pipeline_microbatches_in_flight, "in_flight", "Microbatches held at the peak"),
        Output(
            parallelism.stage_activation_bytes,
            "activations",
            "Activations on the first stage",
            given={"microbatches_in_flight": "in_flight"},
        ),
        Ratio("passed_on", "chunks", "one", label="Times each microbatch visits a stage"),
        Output(parallelism.pipeline_bubble_fraction, "bubble_fraction", shown=False),
        Output(parallelism.pipeline_idle_share, "idle", shown=False),
        Ratio("half_bubble", "bubble_fraction", "two", shown=False),
        Output(parallelism.pipeline_idle_share, "idle_of_half", given={"bubble_fraction": "half_bubble"}, shown=False),
        Ratio("idle_of_twice", "idle_of_half", "one", percent=True, shown=False),
        Sum("four_times", ["stages", "stages", "stages", "stages"], shown=False),
        Ratio("useful", "one", "stages", percent=True, shown=False),
    ],
    curve=Curve(
        x="microbatches",
        scale="log-linear",
        lines=[Line("idle_share", "{schedule}")],
        vary="schedule",
        marks=[Mark("four_times", "4 × stages", y="idle_share")],
        at=[("microbatches", "idle_share")],
        at_label="this batch",
        x_label="Microbatches",
        y_label="Idle share of the time",
        describe="Idle share of the time against the number of microbatches, on a logarithmic axis, falling towards "
        "zero: {idle_share} with {microbatches}.",
    ),
    compare=Table("schedule", ["idle_share", "in_flight", "passed_on"], label="The three schedules"),
    verdict=[
        Case(
            "Impossible as set: the interleaved schedule needs microbatches in multiples of the {stages} stages.",
            [("chunks", ">", 1), ("microbatches", "no multiple of", "stages")],
        ),
        Case(
            "Useless: one microbatch at a time keeps one stage of {stages} busy, {useful} of them.",
            [("microbatches", "<", 2), ("chunks", "<", 2)],
        ),
        Case(
            "{idle_share} idle. Little is left to gain from more microbatches.",
            [("idle_share", "<=", 0.05)],
        ),
        Case(
            "{idle_share} idle with {microbatches} microbatches for {stages} stages: take at least {four_times}, four "
            "per stage.",
            [("microbatches", "<", "four_times"), ("idle_share", ">", 0.2)],
        ),
        Case(
            "{idle_share} idle, and {in_flight} microbatches held: {activations} on the first stage. Twice the "
            "microbatches: {idle_of_twice} idle."
        ),
    ],
    cautions=[
        Case(
            "GPipe and 1F1B are equally idle. They differ in what they hold.",
            [("in_flight", ">", "stages"), ("chunks", "<", 2)],
        ),
    ],
    note="Modelled: equal stages and no time for messages between them. Schedules that split the backward pass in two "
    "fill more of the bubble.",
)


# How large a batch

_LAW = {"batch_scale": 2.1e8, "batch_exponent": 0.21}  # Kaplan et al. 2020, table 5

critical_batch = Calculator(
    name="critical-batch",
    topic="ddp",
    title="How large a batch still helps?",
    intro="Up to the critical batch size, twice the batch means half the steps. Beyond it, steps hardly become fewer, "
    "and the additional samples are wasted.",
    inputs=[
        Choice(
            "known",
            [
                Option(
                    "law",
                    "From the loss (Kaplan)",
                    sets={"one": 1} | _LAW,
                    formulas={"critical": parallelism.critical_batch_size},
                ),
                Option("measured", "Measured: noise scale", sets={"one": 1}, takes={"critical": "own_critical"}),
            ],
            default="law",
            label="Critical batch size",
        ),
        Slider("loss", 1, 12, default=2.6, steps=110, label="Loss", help="nats per token, on WebText2"),
        Slider("own_critical", 1e2, 1e10, default=1e6, scale="log", label="Critical batch", unit=TOKEN),
        Slider("batch", 1e2, 1e10, default=4e6, scale="log", label="Batch", help="tokens of a step", unit=TOKEN),
    ],
    outputs=[
        Ratio("steps", "steps_here", "one", label="Steps, as a multiple of the fewest"),
        Ratio("samples", "samples_here", "one", label="Tokens, as a multiple of the least"),
        Value("critical", "Critical batch size"),
        Ratio("useful", "one", "samples_here", label="Share of the tokens that a small batch needs", percent=True),
        Ratio("relative", "batch", "critical", shown=False),
        Output(
            parallelism.training_steps,
            "steps_here",
            given={"batch": "relative", "critical_batch": "one", "minimum_steps": "one"},
            shown=False,
        ),
        Output(
            parallelism.training_samples,
            "samples_here",
            given={"batch": "relative", "critical_batch": "one", "minimum_samples": "one"},
            shown=False,
        ),
    ],
    curve=Curve(
        x="batch",
        lines=[Line("steps", "steps"), Line("samples", "tokens", faint=True)],
        y_high=100,
        marks=[Mark("critical", "critical", y="steps")],
        at=[("batch", "steps"), ("batch", "samples")],
        at_label="this batch",
        x_label="Batch",
        y_label="Multiple of the least",
        describe="Steps and tokens to a loss against the batch, both axes logarithmic: steps fall towards their least, "
        "tokens rise from theirs, and the lines cross at {critical}, where both are twice the least. At {batch}: "
        "{steps} times the steps, {samples} times the tokens.",
    ),
    verdict=[
        Case(
            "Below the critical batch: twice the batch on twice the ranks takes nearly half the time, for few more "
            "tokens. {useful} of the tokens are needed.",
            [("relative", "<", 0.5)],
        ),
        Case(
            "Near the critical batch: {steps} times the fewest steps, {samples} times the least tokens. A fair trade "
            "of time for work.",
            [("relative", "<=", 2)],
        ),
        Case(
            "Beyond the critical batch: {samples} times the tokens, for at most {steps} times the fewest steps. More "
            "ranks with more batch buy almost nothing now; use them to compute each step faster."
        ),
    ],
    cautions=[
        Case(
            "Early in training the loss is higher and the critical batch smaller: start small and grow.",
            [("relative", ">", 2), ("critical", "<", 1e6)],
        ),
    ],
    note="A model of steps with a tuned learning rate. The constants of Kaplan et al. are for transformers on "
    "WebText2 with its tokenizer; on other data measure the noise scale.",
)


# Failures

checkpoints = Calculator(
    name="checkpoint-interval",
    topic="ddp",
    title="How often should a run save a checkpoint?",
    intro="Each checkpoint takes time, and each failure takes what came after the last one. The curve is the sum of "
    "both; its lowest point is what Young found. It opens at the failures of Llama 3.",
    inputs=[
        whole("devices", 2**20, 16384, "Devices"),
        Slider(
            "device_interval",
            3600,
            1e10,
            default=float(round(54 * 86400 / 419 * 16384)),
            scale="log",
            label="Between failures of one device",
            help="its share of host, network and software included",
        ),
        Slider(
            "checkpoint_time",
            0.01,
            36000,
            default=10,
            scale="log",
            label="Writing a checkpoint",
            help="while training waits",
        ),
        Slider("restart_time", 1, 86400, default=600.0, scale="log", zero=True, label="Restart after a failure"),
        Slider("interval", 1, 1e7, default=3600.0, scale="log", label="Between checkpoints", help="as planned"),
    ],
    outputs=[
        Output(parallelism.checkpoint_interval, "best", "Best interval"),
        Ratio("least", "least_loss", "one", label="Lost at best", percent=True),
        Ratio("lost", "loss", "one", label="Lost as planned", percent=True),
        Output(parallelism.cluster_failure_interval, "failure_interval", "Between failures of the job"),
        Output(parallelism.checkpoint_loss, "loss", shown=False),
        Output(parallelism.checkpoint_loss, "least_loss", given={"interval": "best"}, shown=False),
        Ratio("one", "devices", "devices", shown=False),
        Ratio("from_best", "interval", "best", shown=False),
        Ratio("written", "checkpoint_time", "interval", percent=True, shown=False),
        Ratio("ratio", "checkpoint_time", "failure_interval", shown=False),
        Ratio("restarting", "restart_time", "failure_interval", percent=True, shown=False),
        Sum("saving", ["least_loss"], minus=["restarting"], shown=False),
    ],
    curve=Curve(
        x="interval",
        lines=[Line("lost", "lost"), Line("written", "writing alone", faint=True)],
        y_high=1,
        marks=[Mark("best", "best: {best}", y="least", dot=True)],
        at=[("interval", "lost")],
        at_label="this plan",
        x_label="Between checkpoints",
        y_label="Lost, of the time of training",
        describe="Share of time lost against the time between checkpoints, both axes logarithmic: a valley with its "
        "lowest point, {least}, at {best}. Every {interval}: {lost}.",
    ),
    verdict=[
        Case(
            "Too many failures for this way of starting again: a restart takes {restart_time}, and the job fails every "
            "{failure_interval}. No interval between checkpoints helps: keep spare nodes, and restart without the "
            "failed one.",
            [("least_loss", ">=", 0.5), ("restarting", ">=", "saving")],
        ),
        *(
            Case(
                "Too many failures for this way of saving: a checkpoint takes {checkpoint_time}, and the job fails "
                "every {failure_interval}. Write in the background or to local disks, and restart without the failed "
                "node.",
                [many],
            )
            for many in (("ratio", ">", 0.1), ("least_loss", ">=", 0.5))
        ),
        Case(
            "Hopeless as planned: by this formula more than all of the time is lost. Every {best} it would be {least}.",
            [("loss", ">=", 1)],
        ),
        Case(
            "Too rarely: {lost} of the time is lost. Every {best} it would be {least}.",
            [("from_best", ">", 2)],
        ),
        Case(
            "Too often: {written} of the time goes into writing. Every {best} the loss would be {least}.",
            [("from_best", "<", 0.5)],
        ),
        Case(
            "About right: {lost} of the time is lost, and {least} at best. The valley is flat: twice the interval or "
            "half of it costs little."
        ),
    ],
    note="Failures at a constant rate, each costing half an interval and a restart. To first order: where more than a "
    "tenth is lost, the true loss is larger. A checkpoint that is written while training goes on costs only the time "
    "for which training waits.",
)
