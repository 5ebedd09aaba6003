"""Formulas of mixed precision against what they describe.

Oracles: torch.amp.GradScaler over random histories and over gradients that are cast to FP16; NumPy's float16; gradients
and kept tensors of real modules under torch.autocast; PyTorch's count of operations under checkpointing; timelines,
deals and checkpoints played through one by one.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop
from torch.utils.flop_counter import FlopCounterMode

from efflab.errors import EfflabError
from efflab.formulas import amp, memory

FP16_LARGEST, FP16_SMALLEST = float(np.finfo(np.float16).max), float(np.finfo(np.float16).smallest_subnormal)
speedups = st.floats(0.01, 100)
durations = st.lists(st.tuples(st.booleans(), st.floats(1e-6, 10)), min_size=1, max_size=20)


# Speed


@given(durations, speedups, speedups)
def test_step_by_replaying_a_timeline(operations, matmul_speedup, other_speedup):
    """A step of operations one after another; every product becomes so much faster, everything else so much."""
    clock = faster_clock = others = 0.0
    for product, duration in operations:
        clock += duration
        faster_clock += duration / (matmul_speedup if product else other_speedup)
        others += 0 if product else duration / other_speedup
    share = sum(d for product, d in operations if product) / clock
    parts = dict(matmul_share=min(share, 1.0), matmul_speedup=matmul_speedup, other_speedup=other_speedup)
    assert math.isclose(amp.amp_step_time(time=clock, **parts), faster_clock, rel_tol=1e-9)
    assert math.isclose(amp.amp_speedup(**parts), clock / faster_clock, rel_tol=1e-9)
    assert math.isclose(
        amp.throughput_speedup(throughput=64 / faster_clock, baseline=64 / clock), clock / faster_clock, rel_tol=1e-9
    )
    if others > 1e-5 * clock:
        limit = amp.amp_limit(matmul_share=share, other_speedup=other_speedup)
        assert math.isclose(limit, clock / others, rel_tol=1e-9)


@given(st.integers(1, 20_000), st.floats(0.1, 100), st.floats(0.1, 1000), st.sampled_from([4, 2]), st.floats(0.01, 10))
def test_the_speedup_of_a_product_by_adding_up_its_operations(size, before, after, size_after, bandwidth):
    """Rows times columns, one multiply-add at a time; three matrices over the bus. The longer of the two wins."""
    times = []
    for peak, width in ((before * 1e12, 4), (after * 1e12, size_after)):
        one_result = 2 * size  # a multiplication and an addition for each term
        times.append(max(one_result * size * size / peak, 3 * size * size * width / (bandwidth * 1e12)))
    ours = amp.roofline_matmul_speedup(
        size=size,
        peak_before=before * 1e12,
        peak_after=after * 1e12,
        bytes_before=4,
        bytes_after=size_after,
        memory_bandwidth=bandwidth * 1e12,
    )
    assert math.isclose(ours, times[0] / times[1], rel_tol=1e-9)


# Memory


def kept(run, copied):
    """Tensors that autograd keeps, one of each storage, apart from the parameters: activations, copies of weights.

    `copied` are the weights that autocast copies; a copy is told by its values. Row statistics are left out.
    """
    saved: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (saved.append(t), t)[1], lambda t: t):
        result = run()
    assert result is not None  # alive until its tensors are counted
    own = {p.untyped_storage().data_ptr() for p in copied}
    found = {t.untyped_storage().data_ptr(): t for t in saved if t.untyped_storage().data_ptr() not in own}
    activations, copies = [], []
    for t in found.values():
        same = [p for p in copied if p.numel() == t.numel() and t.dtype != p.dtype]
        is_copy = any(torch.equal(p.to(t.dtype).flatten().sort()[0], t.flatten().sort()[0]) for p in same)
        (copies if is_copy else activations).append(t)
    return result, activations, copies


def size_of(tensors):
    return sum(t.untyped_storage().nbytes() for t in tensors)


class Mixer(nn.Module):
    """Products, an activation function and a norm: some operations that autocast runs in 16 bits, some in FP32."""

    def __init__(self, width):
        super().__init__()
        self.up, self.down = nn.Linear(width, 3 * width, bias=False), nn.Linear(3 * width, width, bias=False)

    def forward(self, x):
        return x + self.down(F.gelu(self.up(F.layer_norm(x, x.shape[-1:]))))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_training_state_under_autocast_by_counting_every_tensor(dtype):
    """Weights, gradients, moments, 16-bit copies and activations of two steps, in FP32 and under autocast."""
    torch.manual_seed(0)
    net = nn.Sequential(*(Mixer(48) for _ in range(3)))
    parameters = list(net.parameters())
    count = sum(p.numel() for p in parameters)
    x = torch.randn(50, 48, requires_grad=True)
    totals = {}
    for enabled in (False, True):
        optimizer = torch.optim.AdamW(parameters)

        def run(enabled=enabled):
            with torch.amp.autocast("cpu", dtype=dtype, enabled=enabled):
                return net(x)

        result, activations, copies = kept(run, parameters)
        activations = [t for t in activations if t.numel() > 50]  # without the norms' row statistics
        result.float().square().sum().backward()
        optimizer.step()
        moments = [t for s in optimizer.state.values() for t in s.values() if torch.is_tensor(t) and t.dim()]
        gradients = [p.grad for p in parameters]
        assert {t.dtype for t in (*parameters, *gradients, *moments)} == {torch.float32}
        totals[enabled] = size_of([*parameters, *gradients, *moments, *copies, *activations]), activations, copies
    in_fp32, activations, copies = totals[False]
    assert not copies
    assert amp.fp32_training_bytes(parameters=count, activation_bytes=size_of(activations)) == in_fp32
    under_autocast, mixed, copies = totals[True]
    assert sum(t.numel() for t in copies) == count
    wide = size_of([t for t in mixed if t.dtype == torch.float32])
    ours = amp.autocast_training_bytes(
        parameters=count, activation_bytes=size_of(activations), narrow_share=1 - wide / size_of(activations)
    )
    assert 0 < wide < size_of(mixed)
    assert ours == under_autocast


class Layer(nn.Module):
    """A decoder layer in plain PyTorch, one operation per line. One product makes queries, keys and values, and one
    the gate and what it gates, unless they are `apart`."""

    def __init__(self, width, wide, heads, kv_heads, gated, attention, softmax, apart=False):
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = heads, kv_heads, width // heads
        self.attention, self.softmax, self.gated = attention, softmax, gated
        self.widths = [width, kv_heads * self.head_dim, kv_heads * self.head_dim], [wide] * (1 + gated)
        self.qkv, self.up = (
            nn.ModuleList(nn.Linear(width, n) for n in (widths if apart else [sum(widths)])) for widths in self.widths
        )
        self.out, self.down = nn.Linear(width, width), nn.Linear(wide, width)

    def split(self, x, heads):
        batch, length, _ = x.shape
        return x.view(batch, length, heads, self.head_dim).transpose(1, 2)

    def project(self, y, products, widths):
        results = [product(y) for product in products]
        return results if len(results) > 1 else results[0].split(widths, dim=-1)

    def forward(self, x):
        batch, length, width = x.shape
        y = F.layer_norm(x, (width,))
        q, k, v = self.project(y, self.qkv, self.widths[0])
        q, k, v = self.split(q, self.heads), self.split(k, self.kv_heads), self.split(v, self.kv_heads)
        if self.attention == "flash":
            z = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=self.kv_heads != self.heads)
        else:
            scores = (q @ k.transpose(-2, -1)) * self.head_dim**-0.5
            z = torch.softmax(scores, -1, dtype=torch.float32 if self.softmax == "fp32" else None) @ v
        x = x + self.out(z.transpose(1, 2).reshape(batch, length, width))
        y = F.layer_norm(x, (width,))
        wide = self.project(y, self.up, self.widths[1])
        return x + self.down(F.silu(wide[0]) * wide[1] if self.gated else F.gelu(wide[0]))


def layers_under_autocast(gated, attention, softmax, kv_heads, dtype, apart=False):
    """Bytes that two layers keep under autocast, and what the formula says."""
    layers, batch, length, width, wide, heads = 2, 2, 40, 64, 160, 4
    torch.manual_seed(0)
    made = [Layer(width, wide, heads, kv_heads, gated, attention, softmax, apart) for _ in range(layers)]
    net = nn.Sequential(*made)
    x = torch.randn(batch, length, width, requires_grad=True)

    def run():
        with torch.amp.autocast("cpu", dtype=dtype):
            return net(x)

    _, activations, copies = kept(run, list(net.parameters()))
    assert sum(t.numel() for t in copies) == sum(p.numel() for p in net.parameters() if p.dim() == 2)
    ours = amp.autocast_layer_bytes(
        layers=layers,
        sequence_length=length,
        microbatch=batch,
        hidden_size=width,
        intermediate_size=wide,
        mlp_matrices=3 if gated else 2,
        query_heads=heads,
        kv_heads=kv_heads,
        attention=attention,
        softmax=softmax,
    )
    one_copy = 2 * layers * batch * length * width
    return size_of([t for t in activations if t.numel() > batch * length * heads]), ours, one_copy


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize(
    ("attention", "softmax", "kv_heads"),
    [("flash", "fp32", 4), ("flash", "16 bits", 2), ("standard", "fp32", 4), ("standard", "16 bits", 4)],
)
def test_layers_under_autocast_by_counting_saved_tensors(attention, softmax, kv_heads, gated, dtype):
    """A softmax in FP32, which a GPU's autocast chooses, is asked for here: a CPU's runs it in 16 bits."""
    counted, ours, _ = layers_under_autocast(gated, attention, softmax, kv_heads, dtype)
    assert counted == ours


def test_every_product_keeps_a_copy_of_its_own():
    """Autocast keeps copies of weights only: three products that read one norm's result keep three 16-bit copies."""
    for gated in (False, True):
        counted, ours, one_copy = layers_under_autocast(gated, "flash", "16 bits", 4, torch.bfloat16, apart=True)
        assert counted == ours + (2 + gated) * one_copy


# Loss scaling


class Training:
    """One weight that torch.amp.GradScaler trains."""

    def __init__(self, **settings):
        self.weight = torch.zeros(1, requires_grad=True)
        self.optimizer = torch.optim.SGD([self.weight], lr=1.0)
        self.scaler = torch.amp.GradScaler("cpu", **settings)
        self.scaler.scale(torch.ones(1))  # makes the scale
        self.updates = 0
        self.optimizer.register_step_post_hook(self.count)

    def count(self, *_):
        self.updates += 1

    @property
    def scale(self):
        return self.scaler.get_scale()

    @property
    def clean_steps(self):
        return self.scaler._get_growth_tracker()

    def step(self, scaled_gradient):
        """Whether the step was skipped."""
        before = self.updates
        self.weight.grad = torch.tensor([scaled_gradient])
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return self.updates == before


histories = st.lists(st.booleans(), max_size=60)


@given(histories, st.sampled_from([2.0**16, 2.0**10, 1000.0, 1.0]), st.integers(1, 7), st.sampled_from([2.0, 1.5, 4.0]),
       st.sampled_from([0.5, 0.25, 0.7]), st.sampled_from([math.inf, -math.inf, math.nan]))  # fmt: skip
def test_histories_of_overflows_with_torchs_own_scaler(overflows, scale, interval, growth, backoff, infinity):
    settings = dict(growth_factor=growth, backoff_factor=backoff, growth_interval=interval)
    training = Training(init_scale=scale, **settings)
    ours = amp.loss_scales(overflows, scale=scale, **settings)
    clean = 0.0
    assert ours[0] == training.scale
    for overflow, ours_before, ours_after in zip(overflows, ours, ours[1:], strict=False):
        clean = amp.next_clean_steps(clean_steps=clean, overflow=float(overflow), growth_interval=interval)
        assert training.step(infinity if overflow else training.scale) == overflow
        assert math.isclose(ours_after, training.scale, rel_tol=1e-5), (ours_before, overflow)  # torch keeps float32
        assert clean == training.clean_steps


def test_the_defaults_are_torchs():
    scaler = torch.amp.GradScaler("cpu")
    assert scaler.get_scale() == amp.INITIAL_SCALE and scaler.get_growth_factor() == amp.GROWTH_FACTOR
    assert scaler.get_backoff_factor() == amp.BACKOFF_FACTOR and scaler.get_growth_interval() == amp.GROWTH_INTERVAL


@pytest.mark.parametrize("bad", [2, "no", None, 0.5])
def test_a_history_of_anything_else_is_refused(bad):
    with pytest.raises(EfflabError, match=r"overflows\[1\] must be true or false"):
        amp.loss_scales([True, bad])


@given(
    st.integers(-4, 24).map(lambda e: 2.0**e), st.floats(-7, 3).map(lambda e: 10.0**e), st.integers(1, 6),
)  # fmt: skip
def test_a_constant_gradient_with_torchs_own_scaler(scale, gradient, interval):
    """The gradient is scaled and cast to FP16; where that is infinite, torch skips the step."""
    largest = amp.largest_loss_scale(largest_finite=FP16_LARGEST, largest_gradient=gradient)
    # Between 65504 and 65520 rounding takes back what would overflow.
    assume(not any(FP16_LARGEST < gradient * scale * 2.0**k < 65520 for k in range(-40, 40)))
    training = Training(init_scale=scale, growth_interval=interval)
    given_all = dict(scale=scale, largest_scale=largest)
    falls = int(amp.first_overflows(**given_all))
    seen, skipped = [], []
    with np.errstate(over="ignore"):
        for step in range(falls + 30 * (interval + 1)):
            assert training.scale == amp.loss_scale_at(step=step, growth_interval=interval, **given_all), step
            seen.append(training.scale)
            skipped.append(training.step(float(np.float16(gradient * training.scale))))
    assert skipped[:falls] == [True] * falls and not skipped[falls]
    settled = amp.settled_loss_scale(**given_all)
    end = -2 * (interval + 1)  # two whole periods
    if settled <= scale * 2.0 ** (len(seen) // interval - 4):  # it has risen as far as it will
        assert min(seen[end:]) == settled
        assert sum(skipped[end:]) / len(skipped[end:]) == amp.skipped_share(growth_interval=interval)


@pytest.mark.parametrize("interval", [1, 3, 2000])
@pytest.mark.parametrize("scale", [2.0**20, 2.0**16, 1.0])
@pytest.mark.parametrize("largest", [3.7e4, 2.0**16, 11.0])
def test_the_closed_form_is_the_rule_followed_step_by_step(interval, scale, largest):
    steps, followed, now, clean = 25 * (interval + 1), [], scale, 0
    for _ in range(steps):
        followed.append(now)
        clean, now = (0, now / 2) if now > largest else (clean + 1, now)
        if clean == interval:
            clean, now = 0, now * 2
    ours = amp.loss_scale_at(step=np.arange(float(steps)), scale=scale, largest_scale=largest, growth_interval=interval)
    np.testing.assert_array_equal(ours, followed)


@given(st.floats(-8, 4).map(lambda e: 10.0**e))
def test_the_largest_scale_is_the_last_that_float16_holds(gradient):
    scale = amp.largest_loss_scale(largest_finite=FP16_LARGEST, largest_gradient=gradient)
    with np.errstate(over="ignore"):
        assert np.isfinite(np.float16(gradient * scale))
        assert np.isinf(np.float16(gradient * scale * (1 + 2**-11)))


@given(st.integers(0, 24))
def test_gradients_that_float16_keeps(exponent):
    """Half of the smallest number is a tie, which rounds to zero; the least above it does not."""
    scale = 2.0**exponent
    least = amp.smallest_kept_gradient(smallest_subnormal=FP16_SMALLEST, scale=scale)
    assert np.float16(least * scale) == 0
    assert np.float16(least * (1 + 2**-20) * scale) == FP16_SMALLEST
    assert np.float16(least * (1 - 2**-20) * scale) == 0


# Gradient accumulation


@given(st.integers(1, 500), st.integers(1, 20), st.integers(1, 16))
def test_microbatches_by_dealing_sequences_out(batch, microbatch, ranks):
    left, rounds = batch, 0
    while left > 0:
        for _ in range(ranks):
            left -= min(microbatch, max(left, 0))
        rounds += 1
    assert amp.accumulation_steps_needed(batch=batch, microbatch=microbatch, ranks=ranks) == rounds


@given(st.integers(1, 64), st.floats(1e-3, 10), st.floats(1e-3, 10))
def test_an_accumulated_step_by_its_timeline(steps, microbatch_time, update_time):
    clock = 0.0
    for _ in range(steps):
        clock += microbatch_time
    clock += update_time
    ours = amp.accumulated_step_time(accumulation_steps=steps, microbatch_time=microbatch_time, update_time=update_time)
    assert math.isclose(ours, clock, rel_tol=1e-9)


def gradient_of(loss_of, logits):
    logits = logits.clone().requires_grad_()
    loss_of(logits).backward()
    return logits.grad


@given(st.lists(st.integers(1, 30), min_size=1, max_size=6))
def test_the_weight_of_a_token_by_torchs_gradients(counts):
    """Every token's gradient with the mean of the microbatches' means, over the one with the mean of all tokens."""
    torch.manual_seed(sum(counts))
    logits, targets = torch.randn(sum(counts), 5, dtype=torch.float64), torch.randint(5, (sum(counts),))

    def means(x):
        parts = zip(x.split(counts), targets.split(counts), strict=True)
        return sum(F.cross_entropy(part, target) / len(counts) for part, target in parts)

    whole = gradient_of(lambda x: F.cross_entropy(x, targets), logits)
    accumulated = gradient_of(means, logits)
    for count, ours, right in zip(counts, accumulated.split(counts), whole.split(counts), strict=True):
        weight = amp.token_weight_in_mean_of_means(
            tokens=count, total_tokens=sum(counts), accumulation_steps=len(counts)
        )
        assert torch.allclose(ours, weight * right, rtol=1e-9, atol=0)


def test_the_weights_that_were_reported():
    """huggingface/transformers#24725: microbatches of 10 and 100 tokens; a token of the first counts ten times one of
    the second."""
    short, long = (
        amp.token_weight_in_mean_of_means(tokens=n, total_tokens=110, accumulation_steps=2) for n in (10, 100)
    )
    assert (short, long) == (5.5, 0.55)


# Activation checkpointing


def operations(layers, recomputed, width=16, rows=8):
    """Floating-point operations of a forward and a backward pass, by layers of which the first few are recomputed."""
    nets = [nn.Linear(width, width, bias=False) for _ in range(layers)]
    x = torch.randn(rows, width, requires_grad=True)
    with FlopCounterMode(display=False) as counter, set_checkpoint_early_stop(False):
        for i, net in enumerate(nets):
            x = checkpoint(net, x, use_reentrant=False) if i < recomputed else net(x)
        forward = counter.get_total_flops()
        x.sum().backward()
    return counter.get_total_flops(), forward


@pytest.mark.parametrize(("layers", "recomputed"), [(4, 0), (4, 1), (4, 4), (7, 3)])
def test_recomputation_by_counting_operations(layers, recomputed):
    """At a fixed rate times are operations: the backward pass is twice the forward pass, so full recomputation is a
    third of the step."""
    plain, forward = operations(layers, 0)
    again, _ = operations(layers, recomputed)
    assert plain == 3 * forward
    share = recomputed / layers
    overhead = amp.recomputation_overhead(forward_share=forward / plain, recomputed=share)
    assert math.isclose(again / plain - 1, overhead, rel_tol=1e-12, abs_tol=1e-15)
    time = amp.recomputation_step_time(step_time=plain, forward_time=forward, recomputed=share)
    assert math.isclose(time, again, rel_tol=1e-12)


def peak(layers, segments, layer_bytes, boundary_bytes):
    """The most that is held at any time: forward keeps the segments' inputs, backward one segment after another."""
    length = layers // segments
    held = [boundary_bytes] * segments
    most = sum(held)
    while held:
        most = max(most, sum(held) + length * layer_bytes)
        held.pop()
    return most


@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 1000), st.integers(1, 1000))
def test_checkpoints_by_playing_them_through(length, segments, layer_bytes, boundary_bytes):
    layers = length * segments
    ours = amp.checkpointed_bytes(
        layers=layers, segments=segments, layer_bytes=layer_bytes, boundary_bytes=boundary_bytes
    )
    assert ours == peak(layers, segments, layer_bytes, boundary_bytes)


@given(st.integers(1, 400), st.integers(1, 1000), st.integers(1, 1000))
def test_the_best_segments_by_trying_all(layers, layer_bytes, boundary_bytes):
    sizes = dict(layer_bytes=layer_bytes, boundary_bytes=boundary_bytes)
    held = {k: amp.checkpointed_bytes(layers=layers, segments=k, **sizes) for k in range(1, layers + 1)}
    best = amp.best_segments(layers=layers, **sizes)
    beside = {min(max(k, 1), layers) for k in (math.floor(best), math.ceil(best))}
    assert min(held[k] for k in beside) == min(held.values())


@given(st.integers(2, 200))
def test_a_chain_of_equal_layers_has_its_square_root(root):
    assert amp.best_segments(layers=root**2, layer_bytes=7, boundary_bytes=7) == root


def test_full_recomputation_is_a_checkpoint_at_every_layer():
    """The precision chapter's formula, which leaves the layer in recomputation out, and this one, which counts it."""
    shape = dict(
        sequence_length=128, microbatch=2, hidden_size=64, intermediate_size=256, mlp_matrices=2, query_heads=4,
        kv_heads=4, bytes_per_element=4, mask_bytes=1, attention="flash", dropout=False,
    )  # fmt: skip
    layer = memory.layer_activation_bytes(layers=1, recomputation="none", **shape)
    inputs = memory.layer_activation_bytes(layers=6, recomputation="full", **shape)
    ours = amp.checkpointed_bytes(layers=6, segments=6, layer_bytes=layer, boundary_bytes=inputs / 6)
    assert ours == inputs + layer
