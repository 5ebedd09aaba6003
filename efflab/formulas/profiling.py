"""Where the time of a training step goes, and what a mend can gain.

Amdahl's law, the condition under which the data loader is the bottleneck, and what a device's utilisation says. Every
formula raises `FormulaError` for an argument that is not a finite number in its unit's range.
"""

from __future__ import annotations

from typing import Annotated, Literal

from efflab.formulas.namespace import as_flop, ceil, formula, maximum, minimum, where
from efflab.formulas.transformer import mfu_from_tokens, palm_flops_per_token
from efflab.units import Count, Flop, FlopPerSecond, Number, Parameters, Range, Second, TokenPerSecond

Share = Annotated[Number, Range(0, 1)]
Speedup = Annotated[Count, Range(1e-6, 1e12)]  # below 1 where a change makes a part slower
Gain = Annotated[Count, Range(1, 1e12)]


# Amdahl's law


@formula
def amdahl_speedup(*, share: Share, speedup: Speedup) -> Number:
    r"""Speedup of the whole where one part of it becomes faster.

    Equation: S = \frac{1}{(1 - f) + f / s}
    Where: f = share; s = speedup
    Source: Amdahl 1967, AFIPS Spring Joint Computer Conference, doi:10.1145/1465482.1465560; as an equation Hill &
        Marty 2008, Computer 41(7), doi:10.1109/MC.2008.209
    Assumes: the parts run one after another, and the rest takes as long as before. The share is of the time before.
    """
    return 1 / (1 - share + share / speedup)


@formula
def amdahl_limit(*, share: Annotated[Number, Range(0, 0.999999)]) -> Number:
    r"""The most that the whole can gain where one part's time goes to zero.

    Equation: S_{\max} = \frac{1}{1 - f}
    Where: f = share
    Source: Amdahl 1967, AFIPS Spring Joint Computer Conference, doi:10.1145/1465482.1465560
    Assumes: the parts run one after another, and the rest takes as long as before.
    """
    return 1 / (1 - share)


@formula
def time_after_mend(*, time: Second, share: Share, speedup: Speedup) -> Second:
    r"""Time of the whole after one part of it becomes faster.

    Equation: t' = t \left(1 - f + \frac{f}{s}\right)
    Where: t = time; f = share; s = speedup
    Source: Amdahl 1967, AFIPS Spring Joint Computer Conference, doi:10.1145/1465482.1465560
    Assumes: the parts run one after another, and the rest takes as long as before.
    """
    return time * (1 - share + share / speedup)


@formula
def time_saved(*, time: Second, share: Share, speedup: Speedup) -> Second:
    r"""Time that a faster part takes off the whole.

    Equation: \Delta t = t f \left(1 - \frac{1}{s}\right)
    Where: t = time; f = share; s = speedup
    Source: Amdahl 1967, AFIPS Spring Joint Computer Conference, doi:10.1145/1465482.1465560
    Assumes: the parts run one after another, and the rest takes as long as before. What several parts save adds up;
        what they gain does not multiply. Negative where the part became slower.
    """
    return time * share * (1 - 1 / speedup)


@formula
def share_needed(*, gain: Gain, speedup: Gain) -> Number:
    r"""The share that a part must have for the whole to gain a factor, where the part gains another.

    Equation: f = \frac{1 - 1/S}{1 - 1/s}
    Where: S = gain; s = speedup
    Source: Amdahl 1967, solved for the share
    Assumes: the parts run one after another, and the rest takes as long as before. Above 1 no part is
        large enough. A part that gains nothing needs more than any share: the result is then very large.
    """
    return (1 - 1 / gain) / maximum(1 - 1 / speedup, 1e-12)


@formula
def serial_share(*, processors: Annotated[Count, Range(1.001, 1e9)], speedup: Speedup) -> Number:
    r"""The share of the work that does not scale, from a measured speedup.

    Equation: e = \frac{1/S - 1/p}{1 - 1/p}
    Where: S = speedup; p = processors
    Source: Karp & Flatt 1990, Communications of the ACM 33(5), doi:10.1145/78607.78614
    Assumes: overheads count as serial work; more than p-fold speedup gives a negative share.
    """
    return (1 / speedup - 1 / processors) / (1 - 1 / processors)


# The data loader


@formula
def batch_load_time(*, sample_time: Second, batch: Count) -> Second:
    r"""Time that one process needs to load a batch.

    Equation: t_l = B t_1
    Where: t_1 = sample_time; B = batch
    Source: Definition
    Assumes: samples are loaded one after another; putting them together into a batch counts into their time.
    """
    return batch * sample_time


@formula
def effective_workers(*, workers: Number, cores: Count) -> Number:
    r"""Workers that load at full speed.

    Equation: w_e = \min(w, c)
    Where: w = workers; c = cores
    Source: Definition
    Assumes: loading keeps a core busy. The cores are those that workers have to themselves: of a job's cores, all but
        one for the training process. Workers that wait for a disk or a network need less than a core each.
    """
    return minimum(workers, cores)


@formula
def loader_step_time(*, compute_time: Second, load_time: Second, workers: Number) -> Second:
    r"""Time of a training step with a data loader.

    Equation: t = t_c + t_l \text{ if } w = 0, \quad \max\left(t_c,\ \frac{t_l}{w}\right) \text{ otherwise}
    Where: t_c = compute_time; t_l = load_time; w = workers
    Source: Definition; PyTorch documentation, torch.utils.data, single- and multi-process data loading
    Assumes: without workers the training process loads each batch itself and waits for each step's result before it
        loads again: a CPU always, a GPU where a step ends in a read such as loss.item(). A GPU without one computes
        what is queued meanwhile, and the longer of the two counts. Workers prefetch and have a core each; the queue is
        long enough to even out what varies. Handing over a batch takes no time: what it does take of the training
        process belongs to its computing.
    """
    return where(workers, "<", 1, compute_time + load_time, maximum(compute_time, load_time / maximum(workers, 1)))


@formula
def workers_needed(*, compute_time: Annotated[Second, Range(1e-9, 1e9)], load_time: Second) -> Number:
    r"""The fewest workers with which the device does not wait for data.

    Equation: w^{*} = \left\lceil \frac{t_l}{t_c} \right\rceil
    Where: t_l = load_time; t_c = compute_time
    Source: Definition: the least w with t_l / w \le t_c
    Assumes: workers prefetch and have a core each; handing over a batch takes no time.
    """
    return ceil(load_time / compute_time * (1 - 1e-9))  # 0.9 s / 0.3 s is three, though not in binary numbers


@formula
def loader_stall_share(
    *, compute_time: Annotated[Second, Range(1e-9, 1e9)], load_time: Second, workers: Number
) -> Number:
    r"""Share of a training step in which the device waits for data.

    Equation: f = \frac{t - t_c}{t}, \quad t = t_c + t_l \text{ if } w = 0, \quad t = \max(t_c,\ t_l / w)
        \text{ otherwise}
    Where: t_c = compute_time; t_l = load_time; w = workers
    Source: Definition
    Assumes: workers prefetch, have a core each and hand over batches in no time. Without workers each step ends in a
        read or runs on a CPU, so that loading and computing take turns.
    """
    step_time = loader_step_time(compute_time=compute_time, load_time=load_time, workers=workers)
    return (step_time - compute_time) / step_time


@formula
def sample_time_hidden(*, compute_time: Second, workers: Count, batch: Count) -> Second:
    r"""The longest that loading a sample may take so that the device does not wait.

    Equation: t_1 = \frac{w t_c}{B}
    Where: t_c = compute_time; w = workers; B = batch
    Source: Definition: w / B samples in the time of a step, solved for the time of one
    Assumes: one worker or more; they prefetch, have a core each and hand over batches in no time.
    """
    return workers * compute_time / batch


@formula
def stall_share(*, step_time: Annotated[Second, Range(1e-9, 1e9)], compute_time: Second) -> Number:
    r"""Share of a measured step in which the device waits for data, from the step with and without loading.

    Equation: f = \frac{t - t_c}{t}
    Where: t = step_time; t_c = compute_time
    Source: Mohan et al. 2021, Analyzing and Mitigating Data Stalls in DNN Training, doi:10.14778/3446095.3446100
    Assumes: both steps were measured alike; the second one on a batch that is on the device already. Noise can make a
        share without a stall negative.
    """
    return (step_time - compute_time) / step_time


# Utilisation


@formula
def cpu_efficiency(*, cpu_time: Second, elapsed: Annotated[Second, Range(1e-9, 1e12)], cores: Count) -> Number:
    r"""Share of the allocated cores' time in which they computed: what `seff` prints.

    Equation: e = \frac{t_{\text{CPU}}}{t \, c}
    Where: t_{\text{CPU}} = cpu_time; t = elapsed; c = cores
    Source: Slurm, contribs/seff and sacct(1): TotalCPU, Elapsed, AllocCPUS
    Assumes: the CPU time of all processes is counted. It says nothing of a GPU.
    """
    return cpu_time / (elapsed * cores)


@formula
def busy_share(*, kernel_time: Annotated[Second, Range(1e-12, 1e9)], launch_time: Second) -> Number:
    r"""Share of the time in which a device runs a kernel: what `nvidia-smi` reports as utilisation.

    Equation: u = \min\left(1,\ \frac{t_k}{t_0}\right)
    Where: t_k = kernel_time; t_0 = launch_time
    Source: NVIDIA, NVML API Reference, nvmlUtilization_t: percent of time over the past sample period during which one
        or more kernels was executing
    Assumes: one kernel after another; the host needs `launch_time` for each and is not waited for.
    """
    return kernel_time / maximum(kernel_time, launch_time)


@formula
def mfu_while_busy(*, mfu: Share, busy: Annotated[Number, Range(1e-6, 1)]) -> Number:
    r"""Model FLOPs utilisation of the time in which a device runs kernels.

    Equation: \text{MFU}_{\text{busy}} = \frac{\text{MFU}}{u}
    Where: \text{MFU} = mfu; u = busy
    Source: Definition
    Assumes: both over the same time.
    """
    return mfu / busy


@formula
def performance_per_device(
    *, tokens_per_second: TokenPerSecond, flops_per_token: Flop, devices: Count
) -> FlopPerSecond:
    r"""Operations that the model needs from each device in a second.

    Equation: P = \frac{v w}{n}
    Where: v = tokens_per_second; w = flops_per_token; n = devices
    Source: Chowdhery et al. 2022, PaLM, arXiv:2204.02311, appendix B
    Assumes: the throughput of all devices together; operations per token of training.
    """
    return tokens_per_second * flops_per_token / devices


@formula
def hardware_flops_per_token(
    *,
    parameters: Parameters,
    layers: Count,
    query_heads: Count,
    head_dim: Count,
    sequence_length: Count,
    recomputation: Literal["none", "selective", "full"],
) -> Flop:
    r"""Operations that the devices do in training on one token, recomputation included.

    Equation: W = 6 N + 12 L n_q d s + \begin{cases} 0 & \text{none} \\ 4 L n_q d s & \text{selective} \\
        2 N + 4 L n_q d s & \text{full} \end{cases}
    Where: N = parameters; L = layers; n_q = query_heads; d = head_dim; s = sequence_length; \text{recomputation} =
        recomputation
    Source: Chowdhery et al. 2022, PaLM, arXiv:2204.02311, appendix B, with a second forward pass; Korthikanti et al.
        2022, arXiv:2205.05198, section 5
    Assumes: full computes the whole forward pass twice, selective the attention scores and values. A fused attention
        that computes its scores again in the backward pass is not counted.
    """
    scores = 4 * layers * query_heads * head_dim * sequence_length
    again = {"none": 0, "selective": scores, "full": 2 * parameters + scores}[recomputation]
    return as_flop(6 * parameters + 3 * scores + again)


@formula
def training_mfu(
    *,
    parameters: Parameters,
    layers: Count,
    query_heads: Count,
    head_dim: Count,
    sequence_length: Count,
    tokens_per_second: TokenPerSecond,
    devices: Count,
    peak_performance: FlopPerSecond,
) -> Number:
    r"""Model FLOPs utilisation of a training run, from the shape of its model and its throughput.

    Equation: \text{MFU} = \frac{v \, (6 N + 12 L n_q d s)}{n \, \pi}
    Where: N = parameters; L = layers; n_q = query_heads; d = head_dim; s = sequence_length; v = tokens_per_second;
        n = devices; \pi = peak_performance
    Source: Chowdhery et al. 2022, PaLM, arXiv:2204.02311, appendix B
    Assumes: training, forward and backward pass once. Every parameter takes part in one matrix product, which an
        untied input embedding does not, and attention counts every pair of positions, masked or not.
        The throughput is that of all devices, and the peak that of one for dense matrix products in the data type used.
    """
    flops = palm_flops_per_token(
        parameters=parameters,
        layers=layers,
        query_heads=query_heads,
        head_dim=head_dim,
        sequence_length=sequence_length,
    )
    return mfu_from_tokens(
        tokens_per_second=tokens_per_second, flops_per_token=flops, devices=devices, peak_performance=peak_performance
    )


@formula
def training_hfu(
    *,
    parameters: Parameters,
    layers: Count,
    query_heads: Count,
    head_dim: Count,
    sequence_length: Count,
    tokens_per_second: TokenPerSecond,
    devices: Count,
    peak_performance: FlopPerSecond,
    recomputation: Literal["none", "selective", "full"],
) -> Number:
    r"""Hardware FLOPs utilisation of a training run, from the shape of its model and its throughput.

    Equation: \text{HFU} = \frac{v \, W}{n \, \pi}
    Where: N = parameters; L = layers; n_q = query_heads; d = head_dim; s = sequence_length; v = tokens_per_second;
        n = devices; \pi = peak_performance; \text{recomputation} = recomputation
    Source: Chowdhery et al. 2022, PaLM, arXiv:2204.02311, section 4.1; Korthikanti et al. 2022, arXiv:2205.05198
    Assumes: W counts training on one token with what is computed again: full the whole forward pass, selective the
        attention scores and values. Without recomputation it is the MFU. The throughput is that of all devices, and
        the peak that of one for dense matrix products in the data type used.
    """
    flops = hardware_flops_per_token(
        parameters=parameters,
        layers=layers,
        query_heads=query_heads,
        head_dim=head_dim,
        sequence_length=sequence_length,
        recomputation=recomputation,
    )
    return mfu_from_tokens(
        tokens_per_second=tokens_per_second, flops_per_token=flops, devices=devices, peak_performance=peak_performance
    )
