"""Automatic mixed precision: its speedup, its memory, loss scaling, gradient accumulation, activation checkpointing.

Every formula raises `FormulaError` for an argument that is not a finite number in its unit's range.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Literal

from efflab.errors import EfflabError
from efflab.formulas.memory import Attention
from efflab.formulas.namespace import (
    as_bytes,
    ceil,
    exponent_of,
    floor,
    formula,
    if_above,
    maximum,
    minimum,
    power_of_two,
    sqrt,
)
from efflab.formulas.profiling import Share, Speedup
from efflab.formulas.roofline import matmul_bytes, matmul_flops
from efflab.units import (
    Byte,
    BytePerSecond,
    Count,
    FlopPerSecond,
    Number,
    Parameters,
    Range,
    Second,
    Tokens,
)

Scale = Annotated[Count, Range(1e-50, 1e50)]
Bytes = Annotated[Byte, Range(0, 1e18)]

# torch.amp.GradScaler's defaults
INITIAL_SCALE = 2.0**16
GROWTH_FACTOR = 2.0
BACKOFF_FACTOR = 0.5
GROWTH_INTERVAL = 2000


# Speed


@formula
def amp_speedup(*, matmul_share: Share, matmul_speedup: Speedup, other_speedup: Speedup) -> Number:
    r"""Speedup of a training step under mixed precision.

    Equation: S = \frac{1}{f / s_m + (1 - f) / s_o}
    Where: f = matmul_share; s_m = matmul_speedup; s_o = other_speedup
    Source: Amdahl 1967, doi:10.1145/1465482.1465560, with a speedup for each of two parts
    Assumes: the share is of the time of the step in FP32. What autocast keeps in FP32, and casts that it adds, belong
        to the other part.
    """
    return 1 / (matmul_share / matmul_speedup + (1 - matmul_share) / other_speedup)


@formula
def amp_step_time(*, time: Second, matmul_share: Share, matmul_speedup: Speedup, other_speedup: Speedup) -> Second:
    r"""Time of a training step under mixed precision.

    Equation: t' = t \left( \frac{f}{s_m} + \frac{1 - f}{s_o} \right)
    Where: t = time; f = matmul_share; s_m = matmul_speedup; s_o = other_speedup
    Source: Amdahl 1967, doi:10.1145/1465482.1465560, with a speedup for each of two parts
    Assumes: time and share are of the step in FP32. What autocast keeps in FP32, and casts that it adds, belong to the
        other part.
    """
    return time * (matmul_share / matmul_speedup + (1 - matmul_share) / other_speedup)


@formula
def amp_limit(*, matmul_share: Annotated[Number, Range(0, 0.999999)], other_speedup: Speedup) -> Number:
    r"""Speedup of a training step if its matrix products took no time.

    Equation: S_{\max} = \frac{s_o}{1 - f}
    Where: f = matmul_share; s_o = other_speedup
    Source: Amdahl 1967, doi:10.1145/1465482.1465560
    Assumes: the share is of the time of the step in FP32.
    """
    return other_speedup / (1 - matmul_share)


@formula
def roofline_matmul_speedup(
    *,
    size: Annotated[Count, Range(1, 1e9)],
    peak_before: FlopPerSecond,
    peak_after: FlopPerSecond,
    bytes_before: Byte,
    bytes_after: Byte,
    memory_bandwidth: BytePerSecond,
) -> Number:
    r"""Speedup of a square matrix product from one data type to another, under the roofline.

    Equation: s_m = \frac{\max\left(2 n^3 / \pi,\ 3 n^2 B / \beta\right)}
        {\max\left(2 n^3 / \pi',\ 3 n^2 B' / \beta\right)}
    Where: n = size; \pi = peak_before; \pi' = peak_after; B = bytes_before; B' = bytes_after; \beta = memory_bandwidth
    Source: Williams, Waterman & Patterson 2009, CACM 52(4), doi:10.1145/1498765.1498785, for each of the two
    Assumes: n rows, columns and inner dimension; operands and result in one data type, each moved once; no overhead.
        Large products gain the ratio of the peaks, small ones that of the bytes.
    """
    flops = matmul_flops(m=size, n=size, k=size)
    before = matmul_bytes(m=size, n=size, k=size, bytes_per_element=bytes_before) / memory_bandwidth
    after = matmul_bytes(m=size, n=size, k=size, bytes_per_element=bytes_after) / memory_bandwidth
    return maximum(flops / peak_before, before) / maximum(flops / peak_after, after)


@formula
def throughput_speedup(*, throughput: Count, baseline: Count) -> Number:
    r"""Speedup of a change, from the throughput with it and without it.

    Equation: S = \frac{r'}{r}
    Where: r' = throughput; r = baseline
    Source: Definition
    Assumes: both in the same unit, such as sequences per second, for the same work per sequence.
    """
    return throughput / baseline


# Memory


@formula
def fp32_training_bytes(*, parameters: Parameters, activation_bytes: Bytes) -> Byte:
    r"""Memory of a training step in FP32 with Adam.

    Equation: M = 16 P + A
    Where: P = parameters; A = activation_bytes
    Source: Rajbhandari et al. 2020, arXiv:1910.02054, section 3.1, with FP32 throughout
    Assumes: weight, gradient and two moments of 4 bytes each; activations as kept in FP32.
    """
    return as_bytes(16 * parameters) + activation_bytes


@formula
def autocast_training_bytes(*, parameters: Parameters, activation_bytes: Bytes, narrow_share: Share) -> Byte:
    r"""Memory of a training step under autocast with Adam.

    Equation: M = (16 + 2) P + A \left(1 - \frac{n}{2}\right)
    Where: P = parameters; A = activation_bytes; n = narrow_share
    Source: PyTorch documentation, torch.amp: autocast keeps weights as they are and caches their 16-bit copies
    Assumes: weights, gradients and Adam's two moments stay in FP32; every weight is cast, and its copy is kept until
        the backward pass has used it. The share n of the activations' FP32 bytes is kept in 16 bits.
    """
    return as_bytes(18 * parameters) + activation_bytes * (1 - narrow_share / 2)


@formula
def autocast_layer_bytes(
    *,
    layers: Count,
    sequence_length: Count,
    microbatch: Count,
    hidden_size: Count,
    intermediate_size: Count,
    mlp_matrices: Annotated[Count, Range(2, 3)],
    query_heads: Count,
    kv_heads: Count,
    attention: Attention,
    softmax: Literal["fp32", "16 bits"],
) -> Byte:
    r"""Activations that the layers of a decoder keep for the backward pass under autocast.

    Equation: L s b \left( 2 \left( \left(4 + 2 \tfrac{a_k}{a}\right) h + (2 n - 2) f \right) + 4 \cdot 2 h
        + a s B_s \right)
    Where: L = layers; s = sequence_length; b = microbatch; h = hidden_size; f = intermediate_size; n = mlp_matrices;
        a = query_heads; a_k = kv_heads; \text{attention} = attention; \text{softmax} = softmax
    Source: Korthikanti et al. 2022, arXiv:2205.05198, section 4.1, with the formats of PyTorch's lists of operations
        under autocast
    Assumes: as `memory.layer_activation_bytes` without dropout. Matrix products, the activation function and
        FlashAttention keep their inputs in 16 bits, 2 B each. The stream from layer to layer stays in FP32, and so do
        the inputs of the two norms, 4 B each. B_s is 0 with FlashAttention; 6 B where the softmax runs in FP32, as on
        a GPU: its result, and the copy in 16 bits that the next product keeps; 2 B where it runs in 16 bits, as on a
        CPU. One product reads what a norm gives; where three do (Q, K and V apart), each keeps a 16-bit copy of its
        own. The 16-bit copies of the weights are not counted: see `autocast_training_bytes`.
    """
    narrow = (4 + 2 * kv_heads / query_heads) * hidden_size + (2 * mlp_matrices - 2) * intermediate_size
    total = 2 * narrow + 4 * 2 * hidden_size
    if attention == "standard":
        total = total + query_heads * sequence_length * (6 if softmax == "fp32" else 2)
    return as_bytes(layers * sequence_length * microbatch * total)


# Loss scaling


@formula
def largest_loss_scale(
    *, largest_finite: Annotated[Count, Range(1e-30, 1e308)], largest_gradient: Annotated[Count, Range(1e-30, 1e30)]
) -> Number:
    r"""The largest loss scale under which no gradient overflows.

    Equation: S_{\max} = \frac{x_{\max}}{g_{\max}}
    Where: x_{\max} = largest_finite; g_{\max} = largest_gradient
    Source: Micikevicius et al. 2018, Mixed Precision Training, arXiv:1710.03740, section 3.2
    Assumes: the largest magnitude of any gradient in the backward pass, those of activations included.
    """
    return largest_finite / largest_gradient


@formula
def smallest_kept_gradient(*, smallest_subnormal: Annotated[Count, Range(1e-320, 1)], scale: Scale) -> Number:
    r"""The gradient below which rounding to nearest gives zero.

    Equation: g_{\min} = \frac{x_{\min}}{2 S}
    Where: x_{\min} = smallest_subnormal; S = scale
    Source: IEEE 754-2019, section 4.3.1; Micikevicius et al. 2018, arXiv:1710.03740, section 3.2
    Assumes: half of the smallest number is a tie, which goes to zero.
    """
    return smallest_subnormal / (2 * scale)


@formula
def next_loss_scale(
    *,
    scale: Scale,
    clean_steps: Number,
    overflow: Annotated[Number, Range(0, 1)],
    growth_factor: Annotated[Count, Range(1, 1e6)],
    backoff_factor: Annotated[Count, Range(1e-6, 1)],
    growth_interval: Annotated[Count, Range(1, 1e9)],
) -> Number:
    r"""The loss scale after a step.

    Equation: S' = b S \text{ if the step overflowed}, \quad g S \text{ if } c + 1 = N, \quad S \text{ otherwise}
    Where: S = scale; c = clean_steps; g = growth_factor; b = backoff_factor; N = growth_interval;
        \text{overflow} = overflow
    Source: Micikevicius et al. 2018, arXiv:1710.03740, section 3.2; PyTorch documentation, torch.amp.GradScaler
    Assumes: `clean_steps` is how many steps without overflow went before, since the last change; 1 is an overflow.
    """
    grown = if_above(clean_steps + 1.5, growth_interval, scale * growth_factor, scale)
    return if_above(overflow, 0.5, scale * backoff_factor, grown)


@formula
def next_clean_steps(
    *,
    clean_steps: Number,
    overflow: Annotated[Number, Range(0, 1)],
    growth_interval: Annotated[Count, Range(1, 1e9)],
) -> Number:
    r"""Steps without overflow since the loss scale last changed, after a step.

    Equation: c' = 0 \text{ if the step overflowed or } c + 1 = N, \quad c + 1 \text{ otherwise}
    Where: c = clean_steps; N = growth_interval; \text{overflow} = overflow
    Source: PyTorch documentation, torch.amp.GradScaler
    Assumes: 1 is an overflow.
    """
    counted = if_above(clean_steps + 1.5, growth_interval, 0, clean_steps + 1)
    return if_above(overflow, 0.5, 0, counted)


@formula
def first_overflows(*, scale: Scale, largest_scale: Scale) -> Number:
    r"""Steps that are skipped at the start of training, until the loss scale has fallen far enough.

    Equation: k = \max\left(0,\ \left\lceil \log_2 \frac{S_0}{S_{\max}} \right\rceil\right)
    Where: S_0 = scale; S_{\max} = largest_scale
    Source: PyTorch documentation, torch.amp.GradScaler, with its backoff factor of 1/2
    Assumes: the largest gradient stays the same; a scale of exactly the largest does not overflow.
    """
    return maximum(0, -exponent_of(largest_scale / scale))


@formula
def settled_loss_scale(*, scale: Scale, largest_scale: Scale) -> Number:
    r"""The loss scale that training comes back to: the initial one times a power of two, the largest without overflow.

    Equation: S^{*} = S_0 \, 2^{-\lceil \log_2 (S_0 / S_{\max}) \rceil}
    Where: S_0 = scale; S_{\max} = largest_scale
    Source: PyTorch documentation, torch.amp.GradScaler, with its factors of 2 and 1/2
    Assumes: the largest gradient stays the same.
    """
    return scale * power_of_two(exponent_of(largest_scale / scale))


@formula
def skipped_share(*, growth_interval: Annotated[Count, Range(1, 1e9)]) -> Number:
    r"""Share of the steps that overflow and are skipped, once the loss scale has settled.

    Equation: \frac{1}{N + 1}
    Where: N = growth_interval
    Source: Definition: N clean steps, then one that tries twice the scale
    Assumes: the largest gradient stays the same.
    """
    return 1 / (growth_interval + 1)


@formula
def loss_scale_at(
    *,
    step: Annotated[Number, Range(0, 1e9)],
    scale: Scale,
    largest_scale: Scale,
    growth_interval: Annotated[Count, Range(1, 1e9)],
) -> Number:
    r"""The loss scale before a step, where the largest gradient stays the same.

    Equation: S_t = S_0 \, 2^{\min(\lfloor t / N \rfloor,\ \max(k,\ 0)) - \min(t,\ \max(-k,\ 0)) + p}, \quad
        k = \left\lfloor \log_2 \frac{S_{\max}}{S_0} \right\rfloor
    Where: t = step; S_0 = scale; S_{\max} = largest_scale; N = growth_interval
    Source: PyTorch documentation, torch.amp.GradScaler, with its factors of 2 and 1/2; `next_loss_scale` in closed form
    Assumes: steps are counted from 0. The scale falls by half with each step, or doubles after every N, until it has
        settled after |k| steps or k N. From then on p is 1 in every (N + 1)th step, which tries twice the scale and
        overflows, and else 0.
    """
    steps = floor(step)
    above = exponent_of(largest_scale / scale)
    rises, falls = maximum(above, 0), maximum(-above, 0)
    exponent = minimum(floor(steps / growth_interval), rises) - minimum(steps, falls)
    settled = maximum(steps - falls - rises * growth_interval, 0)
    period = growth_interval + 1
    position = settled - floor(settled / period) * period
    return scale * power_of_two(exponent + if_above(position, growth_interval - 0.5, 1, 0))


def loss_scales(
    overflows: Iterable[bool],
    *,
    scale: float = INITIAL_SCALE,
    growth_factor: float = GROWTH_FACTOR,
    backoff_factor: float = BACKOFF_FACTOR,
    growth_interval: int = GROWTH_INTERVAL,
) -> list[float]:
    """The loss scale before the first step and after each of a history of steps.

    Args:
        overflows: for each step whether a gradient was infinite or NaN.
        scale, growth_factor, backoff_factor, growth_interval: as torch.amp.GradScaler's, with its defaults.

    Raises:
        EfflabError: an entry that is neither true nor false.
        FormulaError: an argument out of its range.
    """
    found, clean = [float(scale)], 0.0
    for step, overflow in enumerate(overflows):
        if overflow not in (True, False):
            raise EfflabError(f"loss_scales: overflows[{step}] must be true or false, got {overflow!r}.")
        given = {"clean_steps": clean, "overflow": float(overflow), "growth_interval": growth_interval}
        found.append(
            float(next_loss_scale(scale=found[-1], growth_factor=growth_factor, backoff_factor=backoff_factor, **given))
        )
        clean = float(next_clean_steps(**given))
    return found


# Gradient accumulation


@formula
def accumulation_steps_needed(*, batch: Count, microbatch: Count, ranks: Count) -> Number:
    r"""Microbatches that each rank accumulates for a batch.

    Equation: k = \left\lceil \frac{B}{b \, n} \right\rceil
    Where: B = batch; b = microbatch; n = ranks
    Source: Definition; Ott et al. 2018, Scaling Neural Machine Translation, arXiv:1806.00187
    Assumes: where the batch is no multiple, the last microbatch is smaller or the batch larger.
    """
    return ceil(batch / (microbatch * ranks))


@formula
def accumulated_step_time(*, microbatch_time: Second, accumulation_steps: Count, update_time: Second) -> Second:
    r"""Time of a training step that accumulates gradients.

    Equation: t = k \, t_b + t_u
    Where: k = accumulation_steps; t_b = microbatch_time; t_u = update_time
    Source: Definition
    Assumes: forward and backward pass take the same time for each microbatch; the optimizer runs once.
    """
    return accumulation_steps * microbatch_time + update_time


@formula
def token_weight_in_mean_of_means(*, tokens: Tokens, total_tokens: Tokens, accumulation_steps: Count) -> Number:
    r"""How much a token of one microbatch counts, where each microbatch's mean loss counts the same.

    Equation: w_i = \frac{T}{k \, T_i}
    Where: T_i = tokens; T = total_tokens; k = accumulation_steps
    Source: Definition: 1/(k T_i) over 1/T, the weight of every token in the mean of the whole batch
    Assumes: the loss is a mean over the tokens that count (padding left out).
    """
    return total_tokens / (accumulation_steps * tokens)


# Activation checkpointing


@formula
def recomputation_step_time(*, step_time: Second, forward_time: Second, recomputed: Share) -> Second:
    r"""Time of a training step that runs a part of the forward pass twice.

    Equation: t' = t + r \, t_f
    Where: t = step_time; t_f = forward_time; r = recomputed
    Source: Chen et al. 2016, Training Deep Nets with Sublinear Memory Cost, arXiv:1604.06174, section 4
    Assumes: the second run takes as long as the first.
    """
    return step_time + recomputed * forward_time


@formula
def recomputation_overhead(*, forward_share: Share, recomputed: Share) -> Number:
    r"""By how much full or partial recomputation lengthens a training step.

    Equation: \frac{t'}{t} - 1 = r \, \phi
    Where: r = recomputed; \phi = forward_share
    Source: Chen et al. 2016, arXiv:1604.06174, section 4
    Assumes: the second run takes as long as the first; the share of the forward pass is of the step without
        recomputation, a third where the backward pass takes twice as long as the forward pass.
    """
    return recomputed * forward_share


@formula
def checkpointed_bytes(*, layers: Count, segments: Count, layer_bytes: Byte, boundary_bytes: Byte) -> Byte:
    r"""Activations with checkpointing by segments.

    Equation: M = k \, m_b + \frac{L}{k} \, m_l
    Where: L = layers; k = segments; m_l = layer_bytes; m_b = boundary_bytes
    Source: Chen et al. 2016, arXiv:1604.06174, section 4.1
    Assumes: every segment keeps its input; in the backward pass one segment at a time keeps all of its layers'
        activations. Segments of equal length.
    """
    return segments * boundary_bytes + layers / segments * layer_bytes


@formula
def best_segments(*, layers: Count, layer_bytes: Byte, boundary_bytes: Byte) -> Number:
    r"""The number of segments that leaves the least activations.

    Equation: k^{*} = \sqrt{\frac{L \, m_l}{m_b}}
    Where: L = layers; m_l = layer_bytes; m_b = boundary_bytes
    Source: Chen et al. 2016, arXiv:1604.06174, section 4.1: the square root of n for a chain of n equal layers
    Assumes: every segment keeps its input, and one at a time keeps all of its layers' activations; a segment may hold a
        fraction of a layer. Among whole layers, try the numbers of segments near it, with the longest segment's layers.
    """
    return sqrt(layers * layer_bytes / boundary_bytes)
