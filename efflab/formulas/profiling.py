"""Where the time of a training step goes, and what a mend can gain.

Amdahl's law, the condition under which the data loader is the bottleneck, and what a device's utilisation says. Every
formula raises `FormulaError` for an argument that is not a finite number in its unit's range.
"""

from __future__ import annotations

from typing import Annotated

from efflab.formulas.namespace import ceil, formula, maximum, where
from efflab.units import Count, Number, Range, Second

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
    Assumes: as `amdahl_speedup`.
    """
    return 1 / (1 - share)


@formula
def time_after_mend(*, time: Second, share: Share, speedup: Speedup) -> Second:
    r"""Time of the whole after one part of it becomes faster.

    Equation: t' = t \left(1 - f + \frac{f}{s}\right)
    Where: t = time; f = share; s = speedup
    Source: Amdahl 1967, AFIPS Spring Joint Computer Conference, doi:10.1145/1465482.1465560
    Assumes: as `amdahl_speedup`.
    """
    return time * (1 - share + share / speedup)


@formula
def share_needed(*, gain: Gain, speedup: Gain) -> Number:
    r"""The share that a part must have for the whole to gain a factor, where the part gains another.

    Equation: f = \frac{1 - 1/S}{1 - 1/s}
    Where: S = gain; s = speedup
    Source: Amdahl 1967, solved for the share
    Assumes: as `amdahl_speedup`. Above 1 no part is large enough. A part that gains nothing needs more than any share:
        the result is then very large.
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
def loader_step_time(*, compute_time: Second, load_time: Second, workers: Number) -> Second:
    r"""Time of a training step with a data loader.

    Equation: t = t_c + t_l \text{ if } w = 0, \quad \max\left(t_c,\ \frac{t_l}{w}\right) \text{ otherwise}
    Where: t_c = compute_time; t_l = load_time; w = workers
    Source: Definition; PyTorch documentation, torch.utils.data, single- and multi-process data loading
    Assumes: without workers the training process loads each batch itself, before the step. Workers prefetch, have a
        core each, and hand over a batch at no cost; the queue is long enough to even out what varies.
    """
    return where(workers, "<", 1, compute_time + load_time, maximum(compute_time, load_time / maximum(workers, 1)))


@formula
def workers_needed(*, compute_time: Annotated[Second, Range(1e-9, 1e9)], load_time: Second) -> Number:
    r"""The fewest workers with which the device does not wait for data.

    Equation: w^{*} = \left\lceil \frac{t_l}{t_c} \right\rceil
    Where: t_l = load_time; t_c = compute_time
    Source: Definition: the least w with t_l / w \le t_c
    Assumes: as `loader_step_time`.
    """
    return ceil(load_time / compute_time)


@formula
def loader_stall_share(
    *, compute_time: Annotated[Second, Range(1e-9, 1e9)], load_time: Second, workers: Number
) -> Number:
    r"""Share of a training step in which the device waits for data.

    Equation: f = \frac{t - t_c}{t}, \quad t = t_c + t_l \text{ if } w = 0, \quad t = \max(t_c,\ t_l / w)
        \text{ otherwise}
    Where: t_c = compute_time; t_l = load_time; w = workers
    Source: Definition
    Assumes: as `loader_step_time`.
    """
    step_time = loader_step_time(compute_time=compute_time, load_time=load_time, workers=workers)
    return (step_time - compute_time) / step_time


# Utilisation


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
