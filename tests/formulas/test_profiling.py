"""The formulas of profiling against what they did not come from.

Oracles: timelines counted segment by segment with exact fractions; simulated processors that share out equal pieces of
work; a data loader simulated event by event, with workers, a queue of limited length and a device; a simulated launch
queue; the counted operations of real modules, forward, backward and checkpointed. The published numbers stand in
efflab/catalog/published/profiling.yaml.
"""

from __future__ import annotations

import heapq
import math
import random
from fractions import Fraction

import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from efflab.errors import EfflabError
from efflab.formulas import profiling as p

times = st.floats(1e-4, 10)
speedups = st.floats(0.5, 1000)
milliseconds = st.integers(1, 500)


# Amdahl's law, on timelines


def timeline(segments: list[int]) -> int:
    """The length of a timeline by walking along it tick by tick."""
    clock = 0
    for segment in segments:
        for _ in range(segment):
            clock += 1
    return clock


@given(st.lists(st.integers(1, 60), min_size=2, max_size=8), st.data())
def test_a_faster_part_on_a_timeline(segments, data):
    """A step of several segments, in ticks; the ticks of one of them are cut into whole parts."""
    at = data.draw(st.integers(0, len(segments) - 1))
    factor = data.draw(st.sampled_from([f for f in range(1, 61) if segments[at] % f == 0]))
    faster = [*segments[:at], segments[at] // factor, *segments[at + 1 :]]
    before, after = timeline(segments), timeline(faster)
    share = segments[at] / before
    assert math.isclose(p.amdahl_speedup(share=share, speedup=factor), Fraction(before, after), rel_tol=1e-12)
    assert math.isclose(p.time_after_mend(time=before, share=share, speedup=factor), after, rel_tol=1e-12)
    saved = p.time_saved(time=before, share=share, speedup=factor)
    assert math.isclose(saved, before - after, rel_tol=1e-9, abs_tol=1e-9)
    gone = timeline([*segments[:at], *segments[at + 1 :]])
    assert math.isclose(p.amdahl_limit(share=share), Fraction(before, gone), rel_tol=1e-9)


@given(st.lists(st.tuples(st.integers(1, 40), st.integers(1, 20)), min_size=1, max_size=6), st.integers(0, 40))
def test_savings_add_up_and_gains_do_not_multiply(parts, rest):
    """Every part is mended at once on the timeline; each saves what it saves alone."""
    before = sum(length for length, _ in parts) + rest
    after = sum(Fraction(length, factor) for length, factor in parts) + rest
    saved = [p.time_saved(time=before, share=length / before, speedup=factor) for length, factor in parts]
    assert math.isclose(before - math.fsum(saved), after, rel_tol=1e-9)
    product = math.prod(p.amdahl_speedup(share=length / before, speedup=factor) for length, factor in parts)
    assert product <= before / after * (1 + 1e-9)


@given(st.floats(0, 0.99), speedups, st.floats(1e-6, 1e4))
def test_what_amdahl_may_not_do(share, speedup, time):
    gain = p.amdahl_speedup(share=share, speedup=speedup)
    limit = p.amdahl_limit(share=share)
    assert gain <= limit * (1 + 1e-12)
    assert min(1, speedup) <= gain * (1 + 1e-12) and gain <= max(1, speedup) * (1 + 1e-12)
    assert gain <= p.amdahl_speedup(share=share, speedup=2 * speedup) * (1 + 1e-12)
    left = p.time_after_mend(time=time, share=share, speedup=speedup)
    assert math.isclose(left + p.time_saved(time=time, share=share, speedup=speedup), time, rel_tol=1e-9)
    assert math.isclose(time / left, gain, rel_tol=1e-9)


@given(st.floats(1.01, 50), st.floats(1.05, 1000))
def test_the_share_needed_by_bisection(gain, speedup):
    """The share is searched at which the timeline's gain is the one that is asked for."""
    ours = p.share_needed(gain=gain, speedup=speedup)
    if gain >= speedup:
        assert ours >= 1 - 1e-9  # no part can give the whole more than itself
        return
    low, high = 0.0, 1.0
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if 1 / ((1 - middle) + middle / speedup) < gain else (low, middle)
    assert math.isclose(ours, low, rel_tol=1e-6, abs_tol=1e-9)


def test_a_part_that_gains_nothing_needs_more_than_any_share():
    assert p.share_needed(gain=2, speedup=1) > 1e9
    assert p.share_needed(gain=1, speedup=2) == 0


@given(st.integers(2, 40), st.integers(0, 30), st.integers(1, 12))
def test_the_serial_share_by_sharing_out_pieces(processors, serial, rounds):
    """Equal pieces of work on processors, after pieces that only one can do: the share is counted from the pieces."""
    parallel = processors * rounds
    busy = [serial] * processors  # all wait for the serial pieces
    for piece in range(parallel):
        busy[piece % processors] += 1
    measured = (serial + parallel) / max(busy)
    share = p.serial_share(processors=processors, speedup=measured)
    assert math.isclose(share, serial / (serial + parallel), rel_tol=1e-9, abs_tol=1e-12)


def test_more_than_ideal_scaling_is_a_negative_share():
    assert p.serial_share(processors=8, speedup=8) == pytest.approx(0)
    assert p.serial_share(processors=8, speedup=9) < 0
    assert p.serial_share(processors=8, speedup=1) == pytest.approx(1)


# The data loader, event by event


def simulate(
    load: float, compute: float, workers: int, steps: int = 600, prefetch: int = 2, spread: float = 0.0
) -> float:
    """Time of a step in the long run: a simulation of workers, a queue of workers × prefetch batches, and a device.

    A worker begins the next of its batches when the queue has room for it: `prefetch` batches of each worker are
    asked for in advance, as PyTorch's DataLoader does; batches are handed over in order.
    """
    draw = random.Random(1)

    def one() -> float:
        return load * draw.uniform(1 - spread, 1 + spread)

    if not workers:
        return math.fsum(one() + compute for _ in range(steps)) / steps
    asked, idle, ready = 0, [0.0] * workers, {}
    heapq.heapify(idle)

    def ask(now: float) -> None:
        nonlocal asked
        begin = max(heapq.heappop(idle), now)
        end = begin + one()
        ready[asked] = end
        heapq.heappush(idle, end)
        asked += 1

    for _ in range(workers * prefetch):
        ask(0.0)
    clock, begun = 0.0, 0.0
    for step in range(steps):
        clock = max(clock, ready.pop(step))
        ask(clock)  # a batch was taken, so another is asked for
        clock += compute
        if step == steps // 3:
            begun = clock
    return (clock - begun) / (steps - 1 - steps // 3)


@settings(max_examples=150, deadline=None)
@given(times, times, st.integers(0, 16))
@example(0.5, 0.2, 2)  # Bekman's benchmark
@example(0.5, 0.2, 3)
def test_the_step_time_by_simulation(load, compute, workers):
    ours = p.loader_step_time(compute_time=compute, load_time=load, workers=workers)
    assert math.isclose(ours, simulate(load, compute, workers), rel_tol=0.03)
    stalled = p.loader_stall_share(compute_time=compute, load_time=load, workers=workers)
    assert math.isclose(stalled, 1 - compute / ours, rel_tol=1e-9, abs_tol=1e-9)


@settings(max_examples=60, deadline=None)
@given(times, times, st.integers(1, 8))
def test_times_that_vary_cost_more_than_their_mean(load, compute, workers):
    """The formula is a lower bound: a long queue evens out what varies, a short one less."""
    bound = p.loader_step_time(compute_time=compute, load_time=load, workers=workers)
    short = simulate(load, compute, workers, prefetch=1, spread=0.8, steps=1500)
    long = simulate(load, compute, workers, prefetch=20, spread=0.8, steps=1500)
    assert short >= bound * 0.97 and long >= bound * 0.97
    assert long <= short * 1.03


@settings(max_examples=100, deadline=None)
@given(times, times)
def test_the_workers_needed_by_adding_one_at_a_time(load, compute):
    assume(load / compute < 30)
    # a ratio of almost a whole number is decided by less than the simulation resolves
    assume(abs(load / compute - round(load / compute)) > 0.1)
    workers = 1
    while simulate(load, compute, workers) > compute * 1.001:
        workers += 1
    assert max(1, p.workers_needed(compute_time=compute, load_time=load)) == workers


@given(st.integers(1, 60), milliseconds)
def test_a_whole_number_of_workers_is_not_rounded_up(workers, compute):
    """0.9 s over 0.3 s is more than three in binary numbers."""
    needed = p.workers_needed(compute_time=compute / 1000, load_time=workers * compute / 1000)
    assert needed == math.ceil(Fraction(workers * compute, compute)) == workers
    assert p.workers_needed(compute_time=0.3, load_time=0.9) == 3


@given(st.integers(1, 512), milliseconds, st.integers(0, 64), st.integers(1, 64), milliseconds)
def test_batches_samples_and_cores(batch, sample, workers, cores, compute):
    load = p.batch_load_time(sample_time=sample / 1000, batch=batch)
    assert math.isclose(load, math.fsum([sample / 1000] * batch), rel_tol=1e-12)
    running = [worker for worker in range(workers) if worker < cores]
    assert p.effective_workers(workers=workers, cores=cores) == len(running)
    limit = p.sample_time_hidden(compute_time=compute / 1000, workers=cores, batch=batch)
    at_limit = p.batch_load_time(sample_time=limit, batch=batch)
    step = p.loader_step_time(compute_time=compute / 1000, load_time=at_limit, workers=cores)
    assert math.isclose(step, compute / 1000, rel_tol=1e-12)
    longer = p.loader_step_time(compute_time=compute / 1000, load_time=1.01 * at_limit, workers=cores)
    assert longer > compute / 1000 * 1.005


@settings(max_examples=60, deadline=None)
@given(times, times, st.integers(0, 8))
def test_the_stall_from_two_simulated_measurements(load, compute, workers):
    """With the loader, and with a loader that takes no time."""
    with_loader, without = simulate(load, compute, workers), simulate(0.0, compute, workers)
    ours = p.stall_share(step_time=with_loader, compute_time=without)
    assert math.isclose(ours, max(0.0, 1 - compute / with_loader), rel_tol=1e-3, abs_tol=1e-6)


# Utilisation


def launched(kernel: float, launch: float, kernels: int = 3000) -> float:
    """Share of the time in which a device is busy: a host that launches without waiting, and a queue."""
    host, free, busy = 0.0, 0.0, 0.0
    begun = 0.0
    for index in range(kernels):
        host += launch
        start = max(host, free)
        free = start + kernel
        if index == 0:
            begun = start
        busy += kernel
    return busy / (free - begun)


@given(st.floats(1e-7, 1e-3), st.floats(1e-7, 1e-3))
def test_the_busy_share_by_simulating_launches(kernel, launch):
    ours = p.busy_share(kernel_time=kernel, launch_time=launch)
    assert math.isclose(ours, launched(kernel, launch), rel_tol=2e-3)


@given(st.lists(st.tuples(st.integers(1, 30), st.booleans(), st.integers(0, 100)), min_size=1, max_size=20))
def test_mfu_while_busy_on_a_timeline(spans):
    """Spans of time, in some of which a kernel runs and does a share of what the device could do."""
    assume(any(running and share for _, running, share in spans))
    length = sum(span for span, _, _ in spans)
    busy = sum(span for span, running, _ in spans if running)
    done = sum(Fraction(span * share, 100) for span, running, share in spans if running)
    ours = p.mfu_while_busy(mfu=float(done / length), busy=busy / length)
    assert math.isclose(ours, done / busy, rel_tol=1e-9)


@given(st.lists(st.lists(st.booleans(), min_size=5, max_size=5), min_size=1, max_size=30))
def test_cpu_efficiency_by_counting_ticks(ticks):
    """Five cores, looked at once a second: how many of the looks find one computing?"""
    computing = sum(sum(second) for second in ticks)
    ours = p.cpu_efficiency(cpu_time=computing, elapsed=len(ticks), cores=5)
    assert math.isclose(ours, Fraction(computing, 5 * len(ticks)), rel_tol=1e-12)


# MFU and HFU, by counting the operations of a module


class Block(nn.Module):
    """A layer of 12 h² parameters, all in matrices, with attention over heads of h / heads."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.up, self.down = nn.Linear(width, 4 * width, bias=False), nn.Linear(4 * width, width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, width = x.shape
        q, k, v = (t.view(batch, length, self.heads, -1).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
        x = x + self.out(self.attention(q, k, v).transpose(1, 2).reshape(batch, length, width))
        return x + self.down(torch.relu(self.up(x)))

    def attention(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return torch.softmax(q @ k.transpose(-1, -2), -1) @ v


class Selective(Block):
    """Attention scores and values are computed again in the backward pass."""

    def attention(self, q, k, v):
        return checkpoint(super().attention, q, k, v, use_reentrant=False, early_stop=False)


def counted(layers: int, width: int, heads: int, length: int, recomputation: str) -> tuple[int, int]:
    """Operations of a training step on two sequences, and the parameters."""
    kind = Selective if recomputation == "selective" else Block
    net = nn.ModuleList(kind(width, heads) for _ in range(layers))
    x = torch.randn(2, length, width, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        y = x
        for block in net:
            full = recomputation == "full"
            y = checkpoint(block, y, use_reentrant=False, early_stop=False) if full else block(y)
        y.sum().backward()
    return counter.get_total_flops(), sum(q.numel() for q in net.parameters())


@pytest.mark.parametrize("recomputation", ["none", "selective", "full"])
@pytest.mark.parametrize(("layers", "width", "heads", "length"), [(2, 32, 4, 16), (3, 16, 2, 40)])
def test_the_operations_of_a_token_by_counting(layers, width, heads, length, recomputation):
    flops, parameters = counted(layers, width, heads, length, recomputation)
    shape = dict(
        parameters=parameters, layers=layers, query_heads=heads, head_dim=width // heads, sequence_length=length
    )
    ours = p.hardware_flops_per_token(**shape, recomputation=recomputation)
    assert ours * 2 * length == flops
    # a run of this model: its operations, in a time, over what the devices could do
    devices, peak, tokens = 3, 1e9, 2 * length
    rate, seconds = 1e4, tokens / 1e4
    measured = dict(tokens_per_second=rate, devices=devices, peak_performance=peak)
    hfu = p.training_hfu(**shape, **measured, recomputation=recomputation)
    assert math.isclose(hfu, flops / seconds / (devices * peak), rel_tol=1e-12)
    needed, _ = counted(layers, width, heads, length, "none")
    mfu = p.training_mfu(**shape, **measured)
    assert math.isclose(mfu, needed / seconds / (devices * peak), rel_tol=1e-12)
    each = p.performance_per_device(tokens_per_second=rate, flops_per_token=needed / tokens, devices=devices)
    assert math.isclose(each, mfu * peak, rel_tol=1e-12)


@given(st.floats(1e6, 1e12), st.integers(1, 128), st.integers(1, 128), st.integers(1, 256), st.integers(1, 2**17))
def test_hfu_is_between_mfu_and_four_thirds_of_it(parameters, layers, heads, head_dim, length):
    shape = dict(
        parameters=parameters, layers=layers, query_heads=heads, head_dim=head_dim, sequence_length=length,
        tokens_per_second=1e3, devices=8, peak_performance=1e15,
    )  # fmt: skip
    mfu = p.training_mfu(**shape)
    none, selective, full = (p.training_hfu(**shape, recomputation=r) for r in ("none", "selective", "full"))
    assert math.isclose(none, mfu, rel_tol=1e-12) and math.isclose(full, mfu * 4 / 3, rel_tol=1e-12)
    assert none <= selective <= full


# What is refused


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: p.amdahl_speedup(share=40, speedup=2), "share must be from 0 to 1, got 40"),
        (lambda: p.amdahl_limit(share=1), "share"),
        (lambda: p.serial_share(processors=1, speedup=1), "processors"),
        (lambda: p.loader_step_time(compute_time=-1, load_time=1, workers=2), "compute_time"),
        (lambda: p.workers_needed(compute_time=0, load_time=1), "compute_time"),
        (lambda: p.cpu_efficiency(cpu_time=1, elapsed=0, cores=1), "elapsed"),
        (lambda: p.mfu_while_busy(mfu=0.4, busy=0), "busy"),
    ],
)
def test_what_cannot_be_is_refused_by_name(call, says):
    with pytest.raises(EfflabError, match=says):
        call()
