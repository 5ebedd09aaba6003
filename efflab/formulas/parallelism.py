"""More than one device: collectives, data, tensor and pipeline parallelism, ZeRO, batch size, checkpoints.

A bandwidth is that of one direction, per device, everywhere: data sheets of NVLink add up both. Every formula raises
`FormulaError` for an argument that is not a finite number in its unit's range.
"""

from __future__ import annotations

from typing import Annotated, Literal

from efflab.formulas.memory import Convention, ZeroStage, training_state_bytes
from efflab.formulas.namespace import ceil, floor, formula, log, maximum, minimum, sqrt, where
from efflab.formulas.profiling import Share
from efflab.units import Byte, BytePerSecond, Count, Flop, FlopPerSecond, Nat, Number, Parameters, Range, Second, Tokens

Ranks = Annotated[Count, Range(1, 1e7)]
Buckets = Annotated[Count, Range(1, 1e12)]
Time = Annotated[Second, Range(1e-12, 1e12)]
Collective = Literal["all-reduce", "all-gather", "reduce-scatter", "broadcast", "all-to-all"]
Schedule = Literal["GPipe", "1F1B", "interleaved"]
Scaling = Literal["weak", "strong"]
Norm = Annotated[Count, Range(1e-30, 1e30)]  # squared

# torch.nn.parallel.DistributedDataParallel's, in bytes: bucket_cap_mb counts in MiB.
BUCKET_BYTES = 25 * 2**20
FIRST_BUCKET_BYTES = 2**20


# Collectives


@formula
def bandwidth_per_direction(*, bidirectional_bandwidth: BytePerSecond) -> BytePerSecond:
    r"""Bandwidth of a link in one direction, from the sum of both that data sheets print.

    Equation: B = \frac{B_{\leftrightarrow}}{2}
    Where: B_{\leftrightarrow} = bidirectional_bandwidth
    Source: Definition
    Assumes: both directions are equal. In a ring, a rank sends to one neighbour while it receives from the other.
    """
    return bidirectional_bandwidth / 2


@formula
def all_reduce_traffic(*, message_bytes: Byte, ranks: Ranks) -> Byte:
    r"""What each rank sends, and receives, in a ring all-reduce.

    Equation: 2 \, \frac{n - 1}{n} \, S
    Where: S = message_bytes; n = ranks
    Source: Patarasuk & Yuan 2009, J. Parallel Distrib. Comput. 69(2), doi:10.1016/j.jpdc.2008.09.002
    Assumes: a reduce-scatter, then an all-gather, each in n − 1 steps of S/n. No algorithm among equals sends less.
    """
    return 2 * (ranks - 1) / ranks * message_bytes


@formula
def ring_all_reduce_time(*, message_bytes: Byte, ranks: Ranks, bandwidth: BytePerSecond, latency: Second) -> Second:
    r"""Time of a ring all-reduce.

    Equation: t = 2 (n - 1) \alpha + 2 \, \frac{n - 1}{n} \, \frac{S}{B}
    Where: S = message_bytes; n = ranks; B = bandwidth; \alpha = latency
    Source: Patarasuk & Yuan 2009, J. Parallel Distrib. Comput. 69(2), doi:10.1016/j.jpdc.2008.09.002; latency per step
        as in Thakur et al. 2005, doi:10.1177/1094342005051521
    Assumes: the bandwidth is that of one direction, per rank; every step takes the latency and a chunk's transfer; the
        additions take no time. Reduction in the switch needs about half the traffic.
    """
    return 2 * (ranks - 1) * latency + 2 * (ranks - 1) / ranks * message_bytes / bandwidth


@formula
def ring_gather_time(*, message_bytes: Byte, ranks: Ranks, bandwidth: BytePerSecond, latency: Second) -> Second:
    r"""Time of an all-gather or a reduce-scatter on a ring: half an all-reduce.

    Equation: t = (n - 1) \alpha + \frac{n - 1}{n} \, \frac{S}{B}
    Where: S = message_bytes; n = ranks; B = bandwidth; \alpha = latency
    Source: Thakur et al. 2005, Int. J. High Perform. Comput. Appl. 19(1), doi:10.1177/1094342005051521
    Assumes: S is the whole message, of which each rank ends (or begins) with one nth; one direction's bandwidth.
    """
    return (ranks - 1) * latency + (ranks - 1) / ranks * message_bytes / bandwidth


@formula
def halving_doubling_all_reduce_time(
    *, message_bytes: Byte, ranks: Ranks, bandwidth: BytePerSecond, latency: Second
) -> Second:
    r"""Time of an all-reduce by recursive halving and doubling: as much traffic as a ring, fewer steps.

    Equation: t = 2 \log_2(n) \, \alpha + 2 \, \frac{n - 1}{n} \, \frac{S}{B}
    Where: S = message_bytes; n = ranks; B = bandwidth; \alpha = latency
    Source: Thakur et al. 2005, Int. J. High Perform. Comput. Appl. 19(1), doi:10.1177/1094342005051521
    Assumes: a power of two of ranks, any two of which reach each other at full bandwidth.
    """
    return 2 * log(ranks) / log(2) * latency + 2 * (ranks - 1) / ranks * message_bytes / bandwidth


@formula
def hierarchical_all_reduce_time(
    *,
    message_bytes: Byte,
    ranks_per_node: Ranks,
    nodes: Ranks,
    bandwidth: BytePerSecond,
    network_bandwidth: BytePerSecond,
    overlap: Share,
) -> Second:
    r"""Time of an all-reduce over several nodes: reduce-scatter in each node, all-reduce between, all-gather in each.

    Equation: t = t_i + t_n - o \min(t_i, t_n), \quad t_i = 2 \, \frac{g - 1}{g} \, \frac{S}{B}, \quad
        t_n = 2 \, \frac{k - 1}{k} \, \frac{S}{g B_n}
    Where: S = message_bytes; g = ranks_per_node; k = nodes; B = bandwidth; B_n = network_bandwidth; o = overlap
    Source: Definition: rings, Patarasuk & Yuan 2009, doi:10.1016/j.jpdc.2008.09.002, for each of the three parts
    Assumes: one direction's bandwidth per rank, within a node and between nodes, where every rank has an adapter of its
        own; no latency. o is 0 where the parts follow one another, 1 where the message goes through them in many small
        chunks, as in NCCL's trees. A tree over two nodes sends as much between them, the message once.
    """
    inside = 2 * (ranks_per_node - 1) / ranks_per_node * message_bytes / bandwidth
    between = 2 * (nodes - 1) / nodes * message_bytes / (ranks_per_node * network_bandwidth)
    return inside + between - overlap * minimum(inside, between)


@formula
def group_bandwidth(
    *, group: Ranks, stride: Ranks, ranks_per_node: Ranks, bandwidth: BytePerSecond, network_bandwidth: BytePerSecond
) -> BytePerSecond:
    r"""Bandwidth that a group's rings get: of the link inside a node, of the group's adapters between nodes.

    Equation: B_g = \begin{cases} B & g \le j \\ \min(B,\ j B_n) & g > j \end{cases} \qquad
        j = \max\left( 1, \left\lfloor \frac{k}{s} \right\rfloor \right)
    Where: g = group; s = stride; k = ranks_per_node; B = bandwidth; B_n = network_bandwidth
    Source: Definition: rings over shared links; Austin et al. 2025, How to Scale Your Model, How to Think About GPUs,
        Cross-node collectives
    Assumes: one direction's bandwidth per rank; the group takes every sth rank, so that j of it are in a node, all its
        nodes alike. Each rank has an adapter of its own, and the message is split over j rings, each of which leaves a
        node through another adapter. One ring alone would run at the speed of one adapter; so does a group
        that has only one rank in each node.
    """
    in_node = maximum(1, floor(ranks_per_node / stride))
    return where(group, "<=", in_node, bandwidth, minimum(bandwidth, in_node * network_bandwidth))


@formula
def algorithm_bandwidth(*, message_bytes: Byte, time: Time) -> BytePerSecond:
    r"""Bytes of a collective's message per second: what the caller sees.

    Equation: \frac{S}{t}
    Where: S = message_bytes; t = time
    Source: NVIDIA, nccl-tests, doc/PERFORMANCE.md
    Assumes: of an all-gather or a reduce-scatter the whole message counts, not one rank's part.
    """
    return message_bytes / time


@formula
def bus_bandwidth(*, message_bytes: Byte, time: Time, ranks: Ranks, collective: Collective) -> BytePerSecond:
    r"""Bytes per second that a collective moves over each rank's link: to be held against the hardware's peak.

    Equation: \frac{S}{t} \cdot \begin{cases} 2 \, \frac{n - 1}{n} & \text{all-reduce} \\
        \frac{n - 1}{n} & \text{all-gather, reduce-scatter, all-to-all} \\ 1 & \text{broadcast} \end{cases}
    Where: S = message_bytes; t = time; n = ranks; \text{collective} = collective
    Source: NVIDIA, nccl-tests, doc/PERFORMANCE.md
    Assumes: of an all-gather or a reduce-scatter the whole message counts. The same number for every n where the links
        are the limit; latency lowers it. Reduction in the switch, or a tree over two nodes, sends less than a ring and
        raises it above the link.
    """
    factor = {"all-reduce": 2 * (ranks - 1) / ranks, "broadcast": 1}.get(collective, (ranks - 1) / ranks)
    return factor * message_bytes / time


@formula
def half_bandwidth_message(*, ranks: Ranks, bandwidth: BytePerSecond, latency: Time) -> Byte:
    r"""The message at which an all-reduce on a ring reaches half of its bandwidth: latency takes as long as transfer.

    Equation: S_{1/2} = n B \alpha
    Where: n = ranks; B = bandwidth; \alpha = latency
    Source: Hockney 1994, Parallel Computing 20(3), doi:10.1016/S0167-8191(06)80021-9, for a ring's steps
    Assumes: as `ring_all_reduce_time`, of which it is the ratio of the two parts.
    """
    return ranks * bandwidth * latency


# Data parallelism


@formula
def gradient_buckets(*, gradient_bytes: Byte, bucket_bytes: Byte) -> Number:
    r"""All-reduces that a step of data-parallel training makes.

    Equation: k = \left\lceil \frac{G}{b} \right\rceil
    Where: G = gradient_bytes; b = bucket_bytes
    Source: Li et al. 2020, PyTorch Distributed, arXiv:2006.15704, section 3.2.2
    Assumes: b is a bucket's size on average. PyTorch's hold whole tensors and close at 25 MiB or more (the first at
        1 MiB): with tensors of that size or larger they hold more, and are fewer; at most one per tensor.
    """
    return ceil(gradient_bytes / bucket_bytes)


@formula
def bucketed_all_reduce_time(
    *, gradient_bytes: Byte, bucket_bytes: Byte, ranks: Ranks, bandwidth: BytePerSecond, latency: Second
) -> Second:
    r"""Time that the all-reduces of a step take together.

    Equation: t_c = 2 (n - 1) k \alpha + 2 \, \frac{n - 1}{n} \, \frac{G}{B}, \quad
        k = \left\lceil \frac{G}{b} \right\rceil
    Where: G = gradient_bytes; b = bucket_bytes; n = ranks; B = bandwidth; \alpha = latency
    Source: Li et al. 2020, arXiv:2006.15704, section 3.2.2, with the ring of `ring_all_reduce_time`
    Assumes: one bucket after the other; b is a bucket's size on average, as in `gradient_buckets`. The sum
        of the transfers does not depend on the buckets, the latency does.
    """
    buckets = gradient_buckets(gradient_bytes=gradient_bytes, bucket_bytes=bucket_bytes)
    return 2 * (ranks - 1) * buckets * latency + 2 * (ranks - 1) / ranks * gradient_bytes / bandwidth


@formula
def exposed_communication_time(
    *, communication_time: Second, backward_time: Second, buckets: Buckets, overlap: Share
) -> Second:
    r"""Communication that the backward pass does not hide.

    Equation: t_e = (1 - o) \, t_c + o \max\left( t_c - \frac{k - 1}{k} \, t_b,\ \frac{t_c}{k} \right)
    Where: t_c = communication_time; t_b = backward_time; k = buckets; o = overlap
    Source: Definition: k equal buckets, ready one after another in the backward pass, reduced one after another; Li et
        al. 2020, arXiv:2006.15704, section 3.2.3
    Assumes: o is 1 where communication runs beside computation and does not slow it, 0 where it takes the same cores:
        then nothing is hidden. The last bucket is ready at the end of the backward pass and always shows.
    """
    hidden = maximum(communication_time - (buckets - 1) / buckets * backward_time, communication_time / buckets)
    return (1 - overlap) * communication_time + overlap * hidden


@formula
def data_parallel_step_time(
    *,
    forward_time: Second,
    backward_time: Second,
    update_time: Second,
    communication_time: Second,
    buckets: Buckets,
    overlap: Share,
    microbatches: Ranks,
) -> Second:
    r"""Time of a step of data-parallel training.

    Equation: t = m (t_f + t_b) + t_u + t_e, \quad
        t_e = (1 - o) \, t_c + o \max\left( t_c - \frac{k - 1}{k} \, t_b,\ \frac{t_c}{k} \right)
    Where: t_f = forward_time; t_b = backward_time; t_u = update_time; t_c = communication_time; k = buckets;
        o = overlap; m = microbatches
    Source: Li et al. 2020, arXiv:2006.15704, section 3.2.3; `exposed_communication_time`
    Assumes: times of one rank while all ranks compute. Gradients of m microbatches are added up before they are
        reduced once (`no_sync`), so that only the last backward pass can hide communication.
    """
    exposed = exposed_communication_time(
        communication_time=communication_time, backward_time=backward_time, buckets=buckets, overlap=overlap
    )
    return microbatches * (forward_time + backward_time) + update_time + exposed


@formula
def straggler_step_time(*, step_time: Second, delay: Second) -> Second:
    r"""Time of a step of which one rank comes late.

    Equation: t' = t + d
    Where: t = step_time; d = delay
    Source: Definition: an all-reduce ends after the last rank has begun it
    Assumes: the same rank or another, one at a time; nothing hides the delay. All ranks wait for it.
    """
    return step_time + delay


@formula
def scaling_efficiency(*, time_one: Time, time_many: Time, ranks: Ranks, scaling: Scaling) -> Number:
    r"""Scaling efficiency: what each of n ranks achieves, relative to one alone.

    Equation: \frac{t_1}{t_n} \text{ (weak)}, \quad \frac{t_1}{n \, t_n} \text{ (strong)}
    Where: t_1 = time_one; t_n = time_many; n = ranks; \text{scaling} = scaling
    Source: Definition; Gustafson 1988, doi:10.1145/42411.42415 (weak); Amdahl 1967, doi:10.1145/1465482.1465560
        (strong)
    Assumes: weak scaling keeps the work of a rank, so that the whole grows with n; strong scaling keeps the whole.
    """
    return time_one / time_many / (ranks if scaling == "strong" else 1)


@formula
def throughput_efficiency(
    *, throughput_one: Count, throughput_many: Count, ranks_one: Ranks, ranks_many: Ranks
) -> Number:
    r"""Scaling efficiency from two throughputs.

    Equation: \frac{v_n / n}{v_1 / n_1}
    Where: v_1 = throughput_one; v_n = throughput_many; n_1 = ranks_one; n = ranks_many
    Source: Definition
    Assumes: both in the same unit, such as images per second of all ranks together.
    """
    return throughput_many / ranks_many / (throughput_one / ranks_one)


@formula
def scaled_step_time(
    *,
    ranks: Ranks,
    forward_time: Time,
    backward_time: Time,
    update_time: Second,
    gradient_bytes: Byte,
    bucket_bytes: Byte,
    bandwidth: BytePerSecond,
    latency: Second,
    overlap: Share,
    scaling: Scaling,
) -> Second:
    r"""Time of a step of data-parallel training on n ranks, from the times on one.

    Equation: t(n) = \frac{t_f + t_b}{q} + t_u + t_e(n), \quad q = 1 \text{ (weak)},\ n \text{ (strong)}
    Where: n = ranks; t_f = forward_time; t_b = backward_time; t_u = update_time; G = gradient_bytes; b = bucket_bytes;
        B = bandwidth; \alpha = latency; o = overlap; \text{scaling} = scaling
    Source: Li et al. 2020, arXiv:2006.15704, section 3.2.3; `bucketed_all_reduce_time` and
        `exposed_communication_time`
    Assumes: computation takes time in proportion to the batch, which small batches do not. The update does not shrink.
    """
    split = ranks if scaling == "strong" else 1
    communication = bucketed_all_reduce_time(
        gradient_bytes=gradient_bytes, bucket_bytes=bucket_bytes, ranks=ranks, bandwidth=bandwidth, latency=latency
    )
    return data_parallel_step_time(
        forward_time=forward_time / split,
        backward_time=backward_time / split,
        update_time=update_time,
        communication_time=communication,
        buckets=gradient_buckets(gradient_bytes=gradient_bytes, bucket_bytes=bucket_bytes),
        overlap=overlap,
        microbatches=1,
    )


@formula
def scaled_efficiency(
    *,
    ranks: Ranks,
    forward_time: Time,
    backward_time: Time,
    update_time: Second,
    gradient_bytes: Byte,
    bucket_bytes: Byte,
    bandwidth: BytePerSecond,
    latency: Second,
    overlap: Share,
    scaling: Scaling,
) -> Number:
    r"""Scaling efficiency that data-parallel training on n ranks can reach.

    Equation: \frac{t(1)}{t(n)} \text{ (weak)}, \quad \frac{t(1)}{n \, t(n)} \text{ (strong)}
    Where: n = ranks; t_f = forward_time; t_b = backward_time; t_u = update_time; G = gradient_bytes; b = bucket_bytes;
        B = bandwidth; \alpha = latency; o = overlap; \text{scaling} = scaling
    Source: Definition, with `scaled_step_time`
    Assumes: as `scaled_step_time`; every rank is as fast as the others.
    """
    many = scaled_step_time(
        ranks=ranks, forward_time=forward_time, backward_time=backward_time, update_time=update_time,
        gradient_bytes=gradient_bytes, bucket_bytes=bucket_bytes, bandwidth=bandwidth, latency=latency,
        overlap=overlap, scaling=scaling,
    )  # fmt: skip
    alone = forward_time + backward_time + update_time
    return alone / many / (ranks if scaling == "strong" else 1)


@formula
def samples_per_rank(*, samples: Annotated[Count, Range(1, 1e15)], ranks: Ranks) -> Number:
    r"""Samples that each rank sees in an epoch.

    Equation: \left\lceil \frac{N}{n} \right\rceil
    Where: N = samples; n = ranks
    Source: PyTorch documentation, torch.utils.data.distributed.DistributedSampler
    Assumes: drop_last is false; then n times this, less N, samples come twice.
    """
    return ceil(samples / ranks)


# ZeRO and FSDP; the memory of each stage is `memory.training_state_bytes`


@formula
def zero_traffic(
    *,
    parameters: Parameters,
    bytes_per_parameter: Byte,
    bytes_per_gradient: Byte,
    ranks: Ranks,
    zero_stage: ZeroStage,
) -> Byte:
    r"""What each rank sends in a step of training with ZeRO, or with FSDP at stage 3.

    Equation: \frac{n - 1}{n} \, P \cdot \begin{cases} 2 b_g & \text{stage 0} \\ b_w + b_g & \text{stages 1 and 2} \\
        2 b_w + b_g & \text{stage 3} \end{cases}
    Where: P = parameters; b_w = bytes_per_parameter; b_g = bytes_per_gradient; n = ranks; \text{stage} = zero_stage
    Source: Rajbhandari et al. 2020, arXiv:1910.02054, section 7, with a format for each
    Assumes: gradients are reduced once a step. Stage 0 all-reduces them; stages 1 and 2 scatter them and gather the
        updated weights once; stage 3 gathers the weights twice, for the forward and the backward pass.
    """
    each = {0: 2 * bytes_per_gradient, 3: 2 * bytes_per_parameter + bytes_per_gradient}.get(
        zero_stage, bytes_per_parameter + bytes_per_gradient
    )
    return (ranks - 1) / ranks * parameters * each


# Tensor and pipeline parallelism


@formula
def tensor_parallel_traffic(
    *,
    layers: Count,
    sequence_length: Count,
    microbatch: Count,
    hidden_size: Count,
    bytes_per_element: Byte,
    tensor_parallel: Ranks,
) -> Byte:
    r"""What each rank sends for its layers under tensor parallelism, forward and backward, per microbatch.

    Equation: 8 \, L \, \frac{t - 1}{t} \, s b h B
    Where: L = layers; s = sequence_length; b = microbatch; h = hidden_size; B = bytes_per_element; t = tensor_parallel
    Source: Narayanan et al. 2021, arXiv:2104.04473, section 3.2
    Assumes: two all-reduces of sbh elements per layer forward, two backward. Sequence parallelism splits each into a
        reduce-scatter and an all-gather and sends as much. Recomputation of whole layers adds two more all-reduces.
    """
    message = sequence_length * microbatch * hidden_size * bytes_per_element
    return 8 * layers * (tensor_parallel - 1) / tensor_parallel * message


@formula
def pipeline_bubble_fraction(*, stages: Ranks, microbatches: Ranks, chunks: Ranks, schedule: Schedule) -> Number:
    r"""Time in which a pipeline's stages are idle, relative to the time in which they compute.

    Equation: \frac{p - 1}{m} \text{ (GPipe, 1F1B)}, \quad \frac{p - 1}{v \, m} \text{ (interleaved)}
    Where: p = stages; m = microbatches; v = chunks; \text{schedule} = schedule
    Source: Narayanan et al. 2021, arXiv:2104.04473, section 2.2; Huang et al. 2019, GPipe, arXiv:1811.06965
    Assumes: equal stages, no time for communication, and a pipeline that is emptied after each batch. The interleaved
        schedule cuts each stage into v chunks of layers, and needs m to be a multiple of p.
    """
    return (stages - 1) / (microbatches * (chunks if schedule == "interleaved" else 1))


@formula
def pipeline_bubble_time(*, bubble_fraction: Number, busy_time: Second) -> Second:
    r"""Time in which a pipeline's stages are idle.

    Equation: t_i = f \, t
    Where: f = bubble_fraction; t = busy_time
    Source: Narayanan et al. 2021, arXiv:2104.04473, section 2.2
    Assumes: as `pipeline_bubble_fraction`; t is the time in which a stage is busy.
    """
    return bubble_fraction * busy_time


@formula
def pipeline_idle_share(*, bubble_fraction: Number) -> Number:
    r"""Share of the whole time in which a pipeline's stages are idle.

    Equation: \frac{f}{1 + f}
    Where: f = bubble_fraction
    Source: Huang et al. 2019, GPipe, arXiv:1811.06965, section 2.3: (p − 1)/(m + p − 1)
    Assumes: as `pipeline_bubble_fraction`, which is relative to the time of computation alone.
    """
    return bubble_fraction / (1 + bubble_fraction)


@formula
def pipeline_microbatches_in_flight(*, stages: Ranks, microbatches: Ranks, chunks: Ranks, schedule: Schedule) -> Number:
    r"""Microbatches whose activations the first stage of a pipeline holds at the peak.

    Equation: \begin{cases} m & \text{GPipe} \\ \min(p, m) & \text{1F1B} \\
        \min\left(p + \frac{p - 1}{v},\ m\right) & \text{interleaved} \end{cases}
    Where: p = stages; m = microbatches; v = chunks; \text{schedule} = schedule
    Source: Narayanan et al. 2021, arXiv:2104.04473, section 2.2; Korthikanti et al. 2022, arXiv:2205.05198, section
        4.2.3 (interleaved)
    Assumes: each holds the activations of all of the stage's layers, without recomputation.
    """
    if schedule == "GPipe":
        return microbatches
    flight = stages + (stages - 1) / chunks if schedule == "interleaved" else stages
    return minimum(flight, microbatches)


@formula
def stage_activation_bytes(*, microbatch_bytes: Byte, microbatches_in_flight: Ranks) -> Byte:
    r"""Activations that a pipeline stage holds at its peak.

    Equation: A = f \, a
    Where: a = microbatch_bytes; f = microbatches_in_flight
    Source: Korthikanti et al. 2022, arXiv:2205.05198, section 4.2.3
    Assumes: a is what the stage's layers keep of one microbatch; `pipeline_microbatches_in_flight` for the first stage,
        which holds the most.
    """
    return microbatches_in_flight * microbatch_bytes


@formula
def pipeline_traffic(
    *,
    microbatches: Ranks,
    sequence_length: Count,
    microbatch: Count,
    hidden_size: Count,
    bytes_per_element: Byte,
    chunks: Ranks,
) -> Byte:
    r"""What a stage in the middle of a pipeline sends per batch: activations on, their gradients back.

    Equation: 2 \, m v \, s b h B
    Where: m = microbatches; s = sequence_length; b = microbatch; h = hidden_size; B = bytes_per_element; v = chunks
    Source: Narayanan et al. 2021, arXiv:2104.04473, sections 2.2 and 3.2
    Assumes: one chunk per stage unless the schedule is interleaved. Point to point, between neighbours only.
    """
    message = sequence_length * microbatch * hidden_size * bytes_per_element
    return 2 * microbatches * chunks * message


@formula
def data_parallel_ranks(
    *, devices: Ranks, tensor_parallel: Ranks, pipeline_parallel: Ranks, context_parallel: Ranks
) -> Number:
    r"""Replicas of the model that a layout leaves room for.

    Equation: d = \frac{n}{t \, p \, c}
    Where: n = devices; t = tensor_parallel; p = pipeline_parallel; c = context_parallel
    Source: Narayanan et al. 2021, arXiv:2104.04473, section 3.1; with context parallelism Grattafiori et al. 2024,
        Llama 3, arXiv:2407.21783, section 3.3.2
    Assumes: a whole number, or the layout does not fill the devices.
    """
    return devices / (tensor_parallel * pipeline_parallel * context_parallel)


@formula
def layout_devices(
    *, tensor_parallel: Ranks, pipeline_parallel: Ranks, context_parallel: Ranks, data_parallel: Ranks
) -> Number:
    r"""Devices that a layout takes.

    Equation: n = t \, p \, c \, d
    Where: t = tensor_parallel; p = pipeline_parallel; c = context_parallel; d = data_parallel
    Source: Narayanan et al. 2021, arXiv:2104.04473, section 3.1; with context parallelism Grattafiori et al. 2024,
        Llama 3, arXiv:2407.21783, section 3.3.2
    Assumes: each device has one place in each of the four.
    """
    return tensor_parallel * pipeline_parallel * context_parallel * data_parallel


@formula
def layout_batch(*, microbatch: Ranks, microbatches: Ranks, data_parallel: Ranks) -> Number:
    r"""Batch of a step, from what each pipeline works through.

    Equation: B = b \, m \, d
    Where: b = microbatch; m = microbatches; d = data_parallel
    Source: Narayanan et al. 2021, arXiv:2104.04473, section 3.3
    Assumes: batch and microbatch in the same unit, such as sequences.
    """
    return microbatch * microbatches * data_parallel


@formula
def pipeline_microbatches(*, batch: Ranks, microbatch: Ranks, data_parallel: Ranks) -> Number:
    r"""Microbatches that each pipeline works through per step.

    Equation: m = \frac{B}{b \, d}
    Where: B = batch; b = microbatch; d = data_parallel
    Source: Narayanan et al. 2021, arXiv:2104.04473, section 3.3
    Assumes: batch and microbatch in sequences; a whole number, or the batch does not fit the layout.
    """
    return batch / (microbatch * data_parallel)


@formula
def layout_state_bytes(
    *,
    parameters: Parameters,
    tensor_parallel: Ranks,
    pipeline_parallel: Ranks,
    data_parallel: Ranks,
    zero_stage: ZeroStage,
    convention: Convention,
) -> Byte:
    r"""Weights, gradients and Adam's state on one device under tensor, pipeline and data parallelism.

    Equation: M = \frac{P}{t \, p} \left( \frac{b_w}{N_w} + \frac{b_g}{N_g} + \frac{K}{N_o} \right)
    Where: P = parameters; t = tensor_parallel; p = pipeline_parallel; d = data_parallel; \text{stage} = zero_stage;
        \text{convention} = convention
    Source: Rajbhandari et al. 2020, arXiv:1910.02054, section 5; Narayanan et al. 2021, arXiv:2104.04473, section 3.1
    Assumes: as `memory.training_state_bytes` with P/(tp) parameters over d ranks; stages hold equal shares, the
        embedding's included.
    """
    return training_state_bytes(
        parameters=parameters / (tensor_parallel * pipeline_parallel),
        ranks=data_parallel,
        zero_stage=zero_stage,
        convention=convention,
    )


@formula
def layout_step_time(
    *,
    model_flops: Flop,
    devices: Ranks,
    peak_performance: FlopPerSecond,
    utilization: Annotated[Number, Range(0.001, 1)],
    bubble_fraction: Number,
    tensor_parallel_time: Second,
    exposed_time: Second,
) -> Second:
    r"""Time of a step under tensor, pipeline and data parallelism.

    Equation: t = \left( \frac{W}{n \, \pi \, u} + t_t \right) (1 + f) + t_e
    Where: W = model_flops; n = devices; \pi = peak_performance; u = utilization; f = bubble_fraction;
        t_t = tensor_parallel_time; t_e = exposed_time
    Source: Definition: parts one after another; Narayanan et al. 2021, arXiv:2104.04473, sections 2.2 and 3
    Assumes: u is what one device alone reaches of its peak; recomputation counts into it. Nothing of
        the tensor-parallel all-reduces counts as hidden, though the backward ones can run beside the weights'
        gradients; t_e is what data parallelism does not hide of gradients and updated weights.
    """
    computation = model_flops / (devices * peak_performance * utilization)
    return (computation + tensor_parallel_time) * (1 + bubble_fraction) + exposed_time


# How large a batch


@formula
def gradient_noise_scale(
    *,
    small_batch: Annotated[Count, Range(1, 1e12)],
    batch_ratio: Annotated[Count, Range(1.001, 1e9)],
    small_norm_squared: Norm,
    large_norm_squared: Norm,
) -> Number:
    r"""The simple noise scale, from the gradients' squared norms at two batch sizes: ranks alone, and averaged.

    Equation: \mathcal{B} = \frac{S}{|G|^2}, \quad
        S = \frac{g_b - g_B}{1/b - 1/(r b)}, \quad |G|^2 = \frac{r \, g_B - g_b}{r - 1}
    Where: b = small_batch; r = batch_ratio; g_b = small_norm_squared; g_B = large_norm_squared
    Source: McCandlish et al. 2018, arXiv:1812.06162, appendix A.1
    Assumes: mean squared norms over many steps: of single ones S and |G|² are unbiased and their ratio is not. Negative
        where noise hides the gradient; then more steps are needed. In data-parallel training b is a rank's batch and r
        the number of ranks.
    """
    noise = batch_ratio * small_batch * (small_norm_squared - large_norm_squared)
    return noise / (batch_ratio * large_norm_squared - small_norm_squared)


@formula
def critical_batch_size(
    *,
    loss: Annotated[Nat, Range(0.01, 100)],
    batch_scale: Tokens,
    batch_exponent: Annotated[Count, Range(0.01, 10)],
) -> Tokens:
    r"""The critical batch size of a language model, from its loss.

    Equation: B_{\text{crit}} = \frac{B_*}{L^{1 / \alpha_B}}
    Where: L = loss; B_* = batch_scale; \alpha_B = batch_exponent
    Source: Kaplan et al. 2020, arXiv:2001.08361, eq. 1.4 and table 5
    Assumes: B_* of 2.1e8 tokens and α_B of 0.21, for transformers on WebText2; it grows as the loss falls.
    """
    return batch_scale / loss ** (1 / batch_exponent)


@formula
def training_steps(*, batch: Count, critical_batch: Count, minimum_steps: Count) -> Number:
    r"""Steps to reach a loss with a batch size.

    Equation: S = S_{\min} \left( 1 + \frac{B_{\text{crit}}}{B} \right)
    Where: B = batch; B_{\text{crit}} = critical_batch; S_{\min} = minimum_steps
    Source: McCandlish et al. 2018, arXiv:1812.06162, eq. 2.11; Kaplan et al. 2020, arXiv:2001.08361, eq. 5.4
    Assumes: batch and critical batch in the same unit; a learning rate that is tuned for each.
    """
    return minimum_steps * (1 + critical_batch / batch)


@formula
def training_samples(*, batch: Count, critical_batch: Count, minimum_samples: Count) -> Number:
    r"""Samples to reach a loss with a batch size.

    Equation: E = E_{\min} \left( 1 + \frac{B}{B_{\text{crit}}} \right)
    Where: B = batch; B_{\text{crit}} = critical_batch; E_{\min} = minimum_samples
    Source: McCandlish et al. 2018, arXiv:1812.06162, eq. 2.11
    Assumes: batch and critical batch in the same unit, samples too. At the critical batch twice the least.
    """
    return minimum_samples * (1 + batch / critical_batch)


# Failures


@formula
def cluster_failure_interval(*, device_interval: Time, devices: Ranks) -> Second:
    r"""Mean time between failures of a job that any of its devices ends.

    Equation: M = \frac{M_1}{n}
    Where: M_1 = device_interval; n = devices
    Source: Definition: failures that are independent and have a constant rate
    Assumes: a device's share of all that fails with it, host, network and software included.
    """
    return device_interval / devices


@formula
def checkpoint_interval(*, checkpoint_time: Time, failure_interval: Time) -> Second:
    r"""Time between checkpoints that loses the least.

    Equation: \tau = \sqrt{2 \, \delta M}
    Where: \delta = checkpoint_time; M = failure_interval
    Source: Young 1974, Communications of the ACM 17(9), doi:10.1145/361147.361115
    Assumes: training waits for the checkpoint, which takes far less than M; failures at a constant rate.
    """
    return sqrt(2) * sqrt(checkpoint_time / failure_interval) * failure_interval


@formula
def checkpoint_loss(*, interval: Time, checkpoint_time: Second, failure_interval: Time, restart_time: Second) -> Number:
    r"""Time lost to checkpoints and failures, relative to the time of training.

    Equation: \frac{\delta}{\tau} + \frac{\tau / 2 + R}{M}
    Where: \tau = interval; \delta = checkpoint_time; M = failure_interval; R = restart_time
    Source: Young 1974, Communications of the ACM 17(9), doi:10.1145/361147.361115; with the time of a restart
    Assumes: a failure costs half an interval on average; all of it together far below 1.
    """
    return checkpoint_time / interval + (interval / 2 + restart_time) / failure_interval


@formula
def steps_repeated(
    *, failed_step: Annotated[Number, Range(0, 1e12)], checkpoint_steps: Annotated[Count, Range(1, 1e12)]
) -> Number:
    r"""Steps that are done again after a failure.

    Equation: k - c \left\lfloor \frac{k}{c} \right\rfloor
    Where: k = failed_step; c = checkpoint_steps
    Source: Definition
    Assumes: k steps were done when it failed, and a checkpoint was written after every c of them.
    """
    return failed_step - checkpoint_steps * floor(failed_step / checkpoint_steps)
