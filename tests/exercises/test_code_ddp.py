"""The code checkers on several devices: other right solutions pass, usual mistakes are named, mutations of the
notebook's solutions are refused, nothing escapes and nothing hangs."""

from __future__ import annotations

import io
import json
import math
import os
import pickle
import random
import threading
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from efflab.exercises import check
from efflab.exercises.checks.ddp import (
    SAMPLER_MISTAKES,
    STEP_MISTAKES,
    _Group,
    _indices,
    _pipeline,
    _step,
    _torchs_indices,
)
from efflab.formulas import parallelism as formulas
from tests.exercises import judging

NAMES = {
    1: "buffers, exchange",
    2: "samples, ranks, rank, seed, epoch",
    3: "sizes, times, ranks",
    4: "forward, layers, update, bucket_bytes, communicate, overlap",
    5: "model, optimizer, loss_fn, batches, dist",
    6: "stages, microbatches, stage",
    7: "model, optimizer, batch_of, steps, path, every",
}
verdict, wrong = judging.code("ddp", NAMES)
solution = judging.solutions("ddp")
STRANGE = [
    *judging.STRANGE, 0.1, [judging.Stubborn()], [None] * 8, [[]], [[1.0, "x"], [2.0, 3.0]], [("F", 0.5)], [("X", 0)],
    [("F", None)], (math.nan, 1.0), (math.inf, 0.0), (0, 0), [judging.Stubborn(), judging.Stubborn()],
]  # fmt: skip


@pytest.mark.parametrize("number", NAMES)
@pytest.mark.parametrize("value", STRANGE, ids=lambda v: type(v).__name__)
def test_whatever_comes_back_is_answered_in_words(number, value):
    result = verdict(number, lambda *_: value)
    assert result.outcome == "wrong" and result.feedback


def test_the_entry_of_a_wrong_sum_is_named():
    """Chunks of length // n leave out the last two of ten numbers of four ranks."""
    right = solution(1)

    def forgets_the_rest(buffers, exchange):
        done = right(buffers, exchange)
        whole = len(buffers[0]) // len(buffers) * len(buffers)
        return [one[:whole] + own[whole:] for one, own in zip(done, buffers, strict=True)]

    said = verdict(1, forgets_the_rest).feedback
    assert "ring_all_reduce of 4 ranks with 10 numbers each: entry 8 of rank 0 is " in said and "; the sum is " in said
    assert "10 numbers make no 4 equal chunks: the last 2 must be in one too." in said


@pytest.mark.parametrize("number", NAMES)
def test_an_exit_an_error_and_a_blank_are_answered_in_words(number):
    judging.led_astray("ddp", number, verdict)


@pytest.mark.parametrize("number", NAMES)
def test_the_learners_random_state_and_threads_stay(number):
    torch.manual_seed(5)
    before, python, save = torch.get_rng_state(), random.getstate(), torch.save
    threads = set(threading.enumerate())
    check(f"ddp-code-{number}", solution(number))
    verdict(number, lambda *_: 0.5)
    assert torch.equal(torch.get_rng_state(), before) and random.getstate() == python and torch.save is save
    assert set(threading.enumerate()) <= threads


# The notebook's solutions and what becomes of them when a line is changed


@pytest.mark.parametrize("number", NAMES)
def test_the_notebooks_solution_is_right(number):
    result = check(f"ddp-code-{number}", solution(number))
    assert result.right, result.feedback


MUTATIONS = [
    (1, "cut = [length * i // n for i in range(n + 1)]", "cut = [0] * n + [length]"),
    (1, "(r - s) % n", "(r + s) % n"),
    (1, "held[r][cut[k] + i] += value", "held[r][cut[k] + i] = value"),
    (1, "(r + 1 - s) % n", "(r - s) % n"),
    (1, "held[r][cut[k] : cut[k + 1]] = received[r]", "pass"),
    (1, "    return held\n", ""),
    (1, "held = [list(buffer) for buffer in buffers]", "held = [list(buffers[0]) for buffer in buffers]"),
    (2, "seed + epoch", "seed"),
    (2, "seed + epoch", "epoch"),
    (2, "seed + epoch", "seed + epoch + rank"),
    (2, "seed + epoch", "seed * epoch"),
    (2, "torch.randperm(samples, generator=generator)", "torch.arange(samples)"),
    (2, "ranks * math.ceil(samples / ranks)", "ranks * (samples // ranks)"),
    (2, "ranks * math.ceil(samples / ranks)", "samples"),
    (2, "(order * math.ceil(total / samples))[:total]", "(order + order)[:total]"),
    (2, "(order * math.ceil(total / samples))[:total]", "(order + [0] * total)[:total]"),
    (2, "order[rank::ranks]", "order[rank * total // ranks : (rank + 1) * total // ranks]"),
    (2, "torch.Generator().manual_seed(", "torch.manual_seed("),
    (3, "1 / times, sizes / scale / times", "times / times, sizes / scale"),
    (3, "a / (2 * (ranks - 1))", "a"),
    (3, "a / (2 * (ranks - 1))", "a / (ranks - 1)"),
    (3, "a / (2 * (ranks - 1))", "a / ranks"),
    (3, "2 * (ranks - 1) / ranks * scale / c", "scale / c"),
    (3, "2 * (ranks - 1) / ranks * scale / c", "2 * scale / c"),
    (3, "2 * (ranks - 1) / ranks * scale / c", "(ranks - 1) / ranks * scale / c"),
    (3, "scale / c\n", "c / scale\n"),
    (3, "return latency, bandwidth", "return bandwidth, latency"),
    (4, "reversed(layers)", "layers"),
    (4, "held >= bucket_bytes", "held > bucket_bytes"),
    (4, "held >= bucket_bytes", "True"),
    (4, "held >= bucket_bytes", "False"),
    (4, "            held = 0.0\n", "            held -= bucket_bytes\n"),
    (4, "    if held:\n        ready.append((now, held))\n", ""),
    (4, "0.0 if overlap else now", "0.0"),
    (4, "0.0 if overlap else now", "now"),
    (4, "max(network, moment) + communicate(size)", "max(network, moment + communicate(size))"),
    (4, "max(network, moment) + communicate(size)", "network + communicate(size)"),
    (4, "forward + max(now, network) + update", "max(now, network) + update"),
    (4, "forward + max(now, network) + update", "forward + max(now, network)"),
    (4, "forward + max(now, network) + update", "forward + network + max(now, update)"),
    (5, "dist.broadcast(p.data, 0)", "pass"),
    (5, "dist.broadcast(p.data, 0)", "dist.all_reduce(p.data)"),
    (5, "        optimizer.zero_grad()\n", ""),
    (5, "        dist.all_reduce(message)\n", ""),
    (5, "message /= dist.get_world_size()", "pass"),
    (5, "message /= dist.get_world_size()", "message /= 2"),
    (5, "            start += p.numel()\n", ""),
    (5, "        optimizer.step()\n", ""),
    (5, "losses.append(message[-1].item())", "losses.append(loss.item())"),
    (5, "losses.append(message[-1].item())", "losses.append(message[-1].item() * dist.get_world_size())"),
    (5, "dist.all_reduce(message)", "dist.all_reduce(message) if dist.get_rank() else None"),
    (5, "    return losses\n", ""),
    (6, "stages - stage - 1, microbatches", "stages, microbatches"),
    (6, "stages - stage - 1, microbatches", "stages - stage, microbatches"),
    (6, "stages - stage - 1, microbatches", "stage, microbatches"),
    (6, "stages - stage - 1, microbatches", "0, microbatches"),
    (6, "min(stages - stage - 1, microbatches)", "stages - stage - 1"),
    (6, "min(stages - stage - 1, microbatches)", "microbatches"),
    (6, '[("F", warmup + i), ("B", i)]', '[("B", i), ("F", warmup + i)]'),
    (6, '[("F", warmup + i), ("B", i)]', '[("F", warmup + i), ("B", warmup + i)]'),
    (6, '[("B", i) for i in range(microbatches - warmup, microbatches)]', "[]"),
    (6, "range(microbatches - warmup, microbatches)]", "reversed(range(microbatches - warmup, microbatches))]"),
    (7, "os.path.exists(path)", "False"),
    (7, '        model.load_state_dict(state["model"])\n', ""),
    (7, '        optimizer.load_state_dict(state["optimizer"])\n', ""),
    (7, '        torch.set_rng_state(state["random"])\n', ""),
    (7, '        losses = state["losses"]\n', ""),
    (7, "range(len(losses), steps)", "range(len(losses) + 1, steps)"),
    (7, "range(len(losses), steps)", "range(steps)"),
    (7, "len(losses) % every == 0", "step % every == 0"),
    (7, "len(losses) % every == 0", "len(losses) == steps"),
    (7, "        optimizer.zero_grad()\n", ""),
    (7, 'torch.save(state, f"{path}.new")', "torch.save(state, path)"),
    (7, '            os.replace(f"{path}.new", path)\n', ""),
    (
        7, 'torch.save(state, f"{path}.new")',
        'os.path.exists(path) and os.remove(path); torch.save(state, path + ".new")',
    ),
    (7, "    return losses\n", ""),
]  # fmt: skip


@pytest.mark.parametrize(("number", "old", "new"), MUTATIONS, ids=lambda x: str(x).strip()[:60])
def test_a_mutated_solution_is_refused(number, old, new):
    function = solution(number, old, new)
    if old == 'torch.save(state, f"{path}.new")' and new == "torch.save(state, path)":
        function = solution(7, 'torch.save(state, f"{path}.new")\n            os.replace(f"{path}.new", path)', new)
    result = check(f"ddp-code-{number}", function)
    assert result.outcome == "wrong" and len(result.feedback) > 30, result


# 1. The ring


def two_rings(buffers, exchange):
    """Another cut, and the chunks the other way about: rank r begins with chunk r + 1's place."""
    n, length = len(buffers), len(buffers[0])
    parts = [[list(a) for a in np.array_split(np.array(b), n)] for b in buffers]
    for s in range(n - 1):
        arrived = exchange([parts[r][(r - s - 1) % n] for r in range(n)])
        for r in range(n):
            k = (r - s - 2) % n
            parts[r][k] = [a + b for a, b in zip(parts[r][k], arrived[r], strict=True)]
    for s in range(n - 1):
        arrived = exchange([tuple(parts[r][(r - s) % n]) for r in range(n)])
        for r in range(n):
            parts[r][(r - s - 1) % n] = arrived[r]
    made = [np.concatenate([np.array(p, dtype=float) for p in part]) for part in parts]
    assert all(len(m) == length for m in made)
    return made


def test_ring_with_another_cut_and_with_arrays():
    assert verdict(1, two_rings)


def around(buffers, exchange, *, mean=False):
    """Every rank's whole buffer goes round."""
    held, total = [list(b) for b in buffers], [list(b) for b in buffers]
    for _ in range(len(buffers) - 1):
        held = exchange(held)
        total = [[a + b for a, b in zip(t, h, strict=True)] for t, h in zip(total, held, strict=True)]
    return total


def cheating(buffers, exchange):
    n = len(buffers)
    for _ in range(2 * (n - 1)):
        exchange([[0.0]] * n)
    return [[sum(c) for c in zip(*buffers, strict=True)]] * n


RING = solution(1)


@pytest.mark.parametrize(
    ("mistake", "function"),
    [
        ("whole messages", around),
        ("added up outside the ring", cheating),
        ("steps", lambda b, e: [[sum(c) for c in zip(*b, strict=True)] for _ in b]),
        ("nothing sent", lambda b, e: [list(x) for x in b]),
        ("mean", lambda b, e: [[v / len(b) for v in x] for x in RING(b, e)]),
        (
            "no all-gather",
            solution(1, "held[r][cut[k] : cut[k + 1]] = received[r]", "pass"),
        ),
        (
            "added in the all-gather",
            solution(
                1, "held[r][cut[k] : cut[k + 1]] = received[r]",
                "held[r][cut[k] : cut[k + 1]] = [a + b for a, b in zip(held[r][cut[k] : cut[k + 1]], received[r])]",
            ),
        ),
        ("messages", lambda b, e: e([[1.0]])),
        ("steps", lambda b, e: [e([[1.0]] * len(b)) for _ in range(1000)]),
        ("unequal chunks", solution(1, "[length * i // n for i in range(n + 1)]",
                                    "[0] + [max(0, length - n + i + 1) for i in range(n)]")),
    ],
)  # fmt: skip
def test_ring_mistakes(mistake, function):
    wrong(1, function, mistake)


# 2. The sampler


@settings(max_examples=100, deadline=None)
@given(
    samples=st.integers(1, 80), ranks=st.integers(1, 12), seed=st.integers(0, 2**31), epoch=st.integers(0, 99),
    draw=st.data(),
)  # fmt: skip
def test_the_checkers_rule_is_the_samplers(samples, ranks, seed, epoch, draw):
    rank = draw.draw(st.integers(0, ranks - 1))
    assert _indices(samples, ranks, rank, seed, epoch) == _torchs_indices(samples, ranks, rank, seed, epoch)
    assert len(_torchs_indices(samples, ranks, rank, seed, epoch)) == formulas.samples_per_rank(
        samples=samples, ranks=ranks
    )


def test_sampler_with_torchs_own_and_with_arrays():
    assert verdict(2, _torchs_indices)
    assert verdict(2, lambda *a: np.array(_torchs_indices(*a)))
    assert verdict(2, lambda *a: torch.tensor(_torchs_indices(*a)))


@pytest.mark.parametrize(("mistake", "rule"), [(name, rule) for name, rule, _ in SAMPLER_MISTAKES])
def test_sampler_mistakes(mistake, rule):
    assert "DistributedSampler gives" in wrong(2, lambda *a: _indices(*a, **rule), mistake)


@pytest.mark.parametrize(
    ("mistake", "function"),
    [
        ("global random state", solution(2, "torch.Generator().manual_seed(", "torch.manual_seed(")),
        (None, lambda *a: [0]),
        (None, lambda *a: [i + 0.5 for i in _torchs_indices(*a)]),
        (None, lambda *a: sorted(_torchs_indices(*a))),
    ],
)
def test_other_sampler_mistakes(mistake, function):
    wrong(2, function, mistake)


# 3. The fit


def by_normal_equations(sizes, times, ranks):
    x, y = [s / t for s, t in zip(sizes, times, strict=True)], [1 / t for t in times]
    xx, xy, yy = sum(a * a for a in x), sum(a * b for a, b in zip(x, y, strict=True)), sum(b * b for b in y)
    det = xx * yy - xy * xy
    start, slope = (xx * sum(y) - xy * sum(x)) / det, (yy * sum(x) - xy * sum(y)) / det
    return start / (2 * ranks - 2), (2 * ranks - 2) / ranks / slope


def in_seconds(sizes, times, ranks):
    slope, start = np.polyfit(sizes, times, 1)
    return start / (2 * ranks - 2), (2 * ranks - 2) / ranks / slope


def with_scipy(sizes, times, ranks):
    from scipy.optimize import curve_fit

    scale = max(sizes)
    (a, c), _ = curve_fit(
        lambda s, a, c: a * 1e-6 + c * 1e-3 * s, np.array(sizes) / scale, times, p0=(1, 1), sigma=times, xtol=1e-14,
        ftol=1e-14, gtol=1e-14, maxfev=10000,
    )  # fmt: skip
    return a * 1e-6 / (2 * ranks - 2), (2 * ranks - 2) / ranks * scale / (c * 1e-3)


def test_fit():
    assert verdict(3, by_normal_equations)
    assert verdict(3, with_scipy)
    assert verdict(3, lambda *a: torch.tensor(by_normal_equations(*a), dtype=torch.float64))


@pytest.mark.parametrize(
    ("mistake", "function"),
    [
        ("absolute errors", in_seconds),
        ("exchanged", lambda *a: by_normal_equations(*a)[::-1]),
        ("latency of the whole ring", lambda s, t, n: (by_normal_equations(s, t, n)[0] * (2 * n - 2),
                                                       by_normal_equations(s, t, n)[1])),
        ("algorithm bandwidth", lambda s, t, n: (by_normal_equations(s, t, 2)[0] / (n - 1),
                                                 by_normal_equations(s, t, 2)[1])),
        ("gave the slope", lambda s, t, n: (by_normal_equations(s, t, n)[0],
                                            (2 * n - 2) / n / by_normal_equations(s, t, n)[1])),
        (None, lambda s, t, n: (t[0] / (2 * n - 2), s[-1] / t[-1])),
        (None, lambda s, t, n: (0, 0)),
    ],
)  # fmt: skip
def test_fit_mistakes(mistake, function):
    said = verdict(3, function)
    assert said.outcome == "wrong" and said.misconception in {mistake, "algorithm bandwidth"}, said.feedback
    if mistake:
        assert said.misconception == mistake, said.feedback


# 4. Buckets


def by_events(forward, layers, update, bucket_bytes, communicate, overlap):
    """Message by message from a queue, with the time shifted by the forward pass."""
    clock, queue, filling = forward, [], 0
    for seconds, size in layers[::-1]:
        clock, filling = clock + seconds, filling + size
        if filling >= bucket_bytes:
            queue, filling = [*queue, (clock, filling)], 0
    queue += [(clock, filling)] if filling else []
    end = forward if overlap else clock
    for ready, size in queue:
        end = max(end, ready) + communicate(size)
    return max(end, clock) + update


def test_step_time():
    assert verdict(4, by_events)
    assert verdict(4, lambda *a: np.float64(by_events(*a)))


@settings(max_examples=100, deadline=None)
@given(
    buckets=st.integers(1, 30), backward=st.floats(0.01, 10), communication=st.floats(0.01, 10),
    overlap=st.booleans(),
)  # fmt: skip
def test_equal_buckets_are_the_formulas(buckets, backward, communication, overlap):
    """The event simulation of the check and the closed formula of `formulas.parallelism`."""
    layers = [(backward / buckets, 8.0)] * buckets
    simulated = _step(0.5, layers, 0.25, 8.0, lambda size: communication / buckets * size / 8, overlap)
    formula = formulas.data_parallel_step_time(
        forward_time=0.5, backward_time=backward, update_time=0.25, communication_time=communication,
        buckets=buckets, overlap=float(overlap), microbatches=1,
    )  # fmt: skip
    assert simulated == pytest.approx(formula, rel=1e-9)


@pytest.mark.parametrize(("mistake", "rule"), [(name, rule) for name, rule, _ in STEP_MISTAKES])
def test_step_time_mistakes(mistake, rule):
    wrong(4, lambda *a: _step(*a, **rule), mistake)


@pytest.mark.parametrize(
    ("mistake", "function"),
    [
        ("never overlaps", lambda f, la, u, b, c, o: by_events(f, la, u, b, c, False)),
        ("always overlaps", lambda f, la, u, b, c, o: by_events(f, la, u, b, c, True)),
        (
            "one message for all",
            lambda f, la, u, b, c, o: f + sum(s for s, _ in la) + c(sum(z for _, z in la)) + u,
        ),
        ("no communication", lambda f, la, u, b, c, o: f + sum(s for s, _ in la) + u),
        (
            "longer of the two",
            lambda f, la, u, b, c, o: (
                f + u + max(t := sum(s for s, _ in la), by_events(0, la, 0, b, c, False) - t)
                if o
                else by_events(f, la, u, b, c, o)
            ),
        ),
        (None, lambda *a: 1.0),
        (None, lambda *a: by_events(*a) * 1.01),
    ],
)
def test_other_step_time_mistakes(mistake, function):
    wrong(4, function, mistake)


# 5. DDP by hand


def ddp(
    model, optimizer, loss_fn, batches, dist, *, broadcast=True, average=True, divide=True, clear=True, flat=True,
    weights=False, loss="mean", late=None,
):  # fmt: skip
    n = dist.get_world_size()
    if broadcast:
        for p in model.parameters():
            dist.broadcast(p, src=0)
    losses = []
    for inputs, targets in batches:
        if clear:
            optimizer.zero_grad(set_to_none=False)
        value = loss_fn(model(inputs), targets)
        value.backward()
        parameters = list(model.parameters())
        tensors = [p.data for p in parameters] if weights else [p.grad for p in parameters]
        if weights:
            optimizer.step()
        if average and flat:
            message = torch.nn.utils.parameters_to_vector(tensors)
            dist.all_reduce(message)
            message = message / n if divide else message
            torch.nn.utils.vector_to_parameters(message, tensors)
            if weights:
                for p, t in zip(parameters, tensors, strict=True):
                    p.data.copy_(t)
            else:
                for p, t in zip(parameters, tensors, strict=True):
                    p.grad.copy_(t)
        elif average:
            for t in tensors:
                dist.all_reduce(t)
                t /= n
        if not weights:
            optimizer.step()
        total = value.detach().clone()
        if loss != "own":
            dist.all_reduce(total)
        losses.append(float(total) / (n if loss == "mean" else 1))
    return losses


def test_ddp():
    assert verdict(5, ddp)


def test_ddp_with_weighted_losses_in_place_of_gradients():
    """The loss divided by the number of ranks, so that the sum is the mean."""

    def other(model, optimizer, loss_fn, batches, dist):
        weights = torch.nn.utils.parameters_to_vector(model.parameters()).detach()
        dist.broadcast(weights, 0)
        torch.nn.utils.vector_to_parameters(weights, model.parameters())
        losses = []
        for inputs, targets in batches:
            optimizer.zero_grad()
            loss = loss_fn(model(inputs), targets) / dist.get_world_size()
            loss.backward()
            flat = torch.cat([p.grad.reshape(-1) for p in model.parameters()])
            dist.all_reduce(flat, op=dist.ReduceOp.SUM)
            for p, g in zip(model.parameters(), flat.split([p.numel() for p in model.parameters()]), strict=True):
                p.grad = g.view(p.shape).clone()
            optimizer.step()
            mean = loss.detach().clone()
            dist.all_reduce(mean)
            losses.append(mean)
        dist.barrier()
        return losses

    assert verdict(5, other)


class Gloo:
    """What a rank sees of torch.distributed, over a real gloo group of its thread."""

    def __init__(self, store, rank, ranks):
        self.rank, self.ranks = rank, ranks
        self.group = torch.distributed.ProcessGroupGloo(store, rank, ranks, timedelta(seconds=60))

    def get_rank(self):
        return self.rank

    def get_world_size(self):
        return self.ranks

    def broadcast(self, tensor, src):
        self.group.broadcast(tensor, src).wait()

    def all_reduce(self, tensor):
        self.group.allreduce([tensor]).wait()


def test_the_checks_ranks_do_what_gloo_does():
    """The notebook's solution on the check's own ranks and over gloo: the same losses and the same weights."""
    ranks, train = 3, solution(5)

    def run(launch):
        torch.manual_seed(3)
        models = [torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Tanh(), torch.nn.Linear(3, 1)) for _ in range(3)]
        batches = [[(torch.randn(5, 4), torch.randn(5, 1)) for _ in range(3)] for _ in range(ranks)]
        losses: list[Any] = [None] * ranks

        def work(rank, dist):
            optimizer = torch.optim.Adam(models[rank].parameters(), lr=0.05)
            losses[rank] = train(models[rank], optimizer, F.mse_loss, batches[rank], dist)

        launch(work)
        return losses, [torch.nn.utils.parameters_to_vector(m.parameters()).detach() for m in models]

    def over_gloo(work):
        store = torch.distributed.HashStore()
        threads = [threading.Thread(target=lambda r=r: work(r, Gloo(store, r, ranks))) for r in range(ranks)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    ours, theirs = run(_Group(ranks, "train").run), run(over_gloo)
    for a, b in zip(ours[0], theirs[0], strict=True):
        assert len(a) == 3 and a == pytest.approx(b, rel=1e-5)
    for a, b in zip(ours[1], theirs[1], strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-6) and torch.equal(a, ours[1][0])


def only_rank_0(model, optimizer, loss_fn, batches, dist):
    if dist.get_rank():
        return [0.0] * len(batches)
    return ddp(model, optimizer, loss_fn, batches, dist)


def in_another_order(model, optimizer, loss_fn, batches, dist):
    if dist.get_rank():
        dist.barrier()
    return ddp(model, optimizer, loss_fn, batches, dist)


def one_batch_less(model, optimizer, loss_fn, batches, dist):
    return ddp(model, optimizer, loss_fn, batches[: len(batches) - (dist.get_rank() == 1)], dist)


def other_shapes(model, optimizer, loss_fn, batches, dist):
    dist.all_reduce(torch.zeros(2 + dist.get_rank()))
    return ddp(model, optimizer, loss_fn, batches, dist)


def a_number(model, optimizer, loss_fn, batches, dist):
    dist.all_reduce(1.0)
    return ddp(model, optimizer, loss_fn, batches, dist)


def not_contiguous(model, optimizer, loss_fn, batches, dist):
    dist.all_reduce(torch.zeros(2, 3).t())
    return ddp(model, optimizer, loss_fn, batches, dist)


def failing_rank(model, optimizer, loss_fn, batches, dist):
    if dist.get_rank() == dist.get_world_size() - 1:
        raise ValueError("a rank's own trouble")
    return ddp(model, optimizer, loss_fn, batches, dist)


def unknown_function(model, optimizer, loss_fn, batches, dist):
    return dist.all_gather([])


def swallowing(model, optimizer, loss_fn, batches, dist):
    try:
        return one_batch_less(model, optimizer, loss_fn, batches, dist)
    except Exception:
        return [0.0]


@pytest.mark.parametrize(
    ("mistake", "function"),
    [
        ("no broadcast", lambda *a: ddp(*a, broadcast=False)),
        ("nothing exchanged", lambda *a: ddp(*a, broadcast=False, average=False)),
        ("gradients not exchanged", lambda *a: ddp(*a, average=False)),
        ("not divided", lambda *a: ddp(*a, divide=False)),
        ("not cleared", lambda *a: ddp(*a, clear=False)),
        ("a message for each tensor", lambda *a: ddp(*a, flat=False)),
        ("averaged the weights", lambda *a: ddp(*a, weights=True)),
        ("loss of one rank", lambda *a: ddp(*a, loss="own")),
        ("loss is a sum", lambda *a: ddp(*a, loss="sum")),
        ("hangs", only_rank_0),
        ("hangs", one_batch_less),
        ("hangs", swallowing),
        ("another order", in_another_order),
        ("other shapes", other_shapes),
        ("no tensor", a_number),
        ("not contiguous", not_contiguous),
        ("no step", lambda m, o, f, b, d: [0.0] * len(b)),
        (None, unknown_function),
        (None, lambda *a: ddp(*a)[:-1]),
        (None, failing_rank),
    ],
)
def test_ddp_mistakes(mistake, function):
    threads = set(threading.enumerate())
    said = wrong(5, function, mistake)
    if function is failing_rank:
        assert "a rank's own trouble" in said
    assert set(threading.enumerate()) <= threads


# 6. The schedule


def by_slots(stages, microbatches, stage):
    """Another way: one slot of time after another, a backward pass first where one is ready."""
    ready = {("F", 0, i): 0 for i in range(microbatches)}
    orders: list[list] = [[] for _ in range(stages)]
    flight, now = [0] * stages, 0
    while sum(map(len, orders)) < 2 * stages * microbatches:
        done = []
        for s in range(stages):
            backward = sorted(i for (k, t, i), at in ready.items() if (k, t) == ("B", s) and at <= now)
            forward = sorted(i for (k, t, i), at in ready.items() if (k, t) == ("F", s) and at <= now)
            if backward:
                done.append(("B", s, backward[0]))
                flight[s] -= 1
            elif forward and flight[s] < stages - s:
                done.append(("F", s, forward[0]))
                flight[s] += 1
        for kind, s, i in done:
            del ready[kind, s, i]
            orders[s].append((kind, i))
            if kind == "F":
                ready["F" if s + 1 < stages else "B", min(s + 1, stages - 1), i] = now + 1
            elif s:
                ready["B", s - 1, i] = now + 1
        now += 1
    return orders[stage]


def test_schedule_by_slots():
    assert verdict(6, by_slots)
    assert verdict(6, lambda *a: tuple(list(x) for x in by_slots(*a)))
    assert verdict(6, lambda *a: [(k, np.int64(i)) for k, i in by_slots(*a)])


@settings(max_examples=60, deadline=None)
@given(stages=st.integers(1, 8), microbatches=st.integers(1, 24))
def test_the_simulation_shows_the_bubble_of_the_formula(stages, microbatches):
    """Of GPipe and of 1F1B: idle time over computing time."""
    solved = solution(6)
    bubble = formulas.pipeline_bubble_fraction(stages=stages, microbatches=microbatches, chunks=1, schedule="1F1B")
    gpipe = [("F", i) for i in range(microbatches)] + [("B", i) for i in range(microbatches)]
    for orders in ([solved(stages, microbatches, s) for s in range(stages)], [gpipe] * stages):
        took, _ = _pipeline(orders)
        assert took / (3 * microbatches) - 1 == pytest.approx(bubble)


def warmup(count):
    def schedule(stages, microbatches, stage):
        first = min(count(stages, stage), microbatches)
        order = [("F", i) for i in range(first)]
        for i in range(microbatches - first):
            order += [("F", first + i), ("B", i)]
        return order + [("B", i) for i in range(microbatches - first, microbatches)]

    return schedule


RIGHT = warmup(lambda p, s: p - s - 1)


@pytest.mark.parametrize(
    ("mistake", "function"),
    [
        ("GPipe", lambda p, m, s: [("F", i) for i in range(m)] + [("B", i) for i in range(m)]),
        ("turned the stages around", warmup(lambda p, s: s)),
        ("hangs", warmup(lambda p, s: p - 1 if s == p - 1 else 0)),
        ("larger bubble", warmup(lambda p, s: 0)),
        ("larger bubble", warmup(lambda p, s: max(0, p - s - 2))),
        ("holds too many", warmup(lambda p, s: p - s)),
        ("holds too many", warmup(lambda p, s: p - 1)),
        ("another order", lambda p, m, s: [("F", i) for i in range(m)] + [("B", i) for i in reversed(range(m))]),
        ("incomplete", lambda p, m, s: RIGHT(p, m, s)[:-1]),
        ("incomplete", lambda p, m, s: [*RIGHT(p, m, s), ("B", 0)]),
        ("incomplete", lambda p, m, s: [(k, i + 1) for k, i in RIGHT(p, m, s)]),
        ("backward first", lambda p, m, s: [x for i in range(m) for x in (("B", i), ("F", i))]),
        (None, lambda p, m, s: [("f", 0)]),
        (None, lambda p, m, s: ["F0", "B0"]),
    ],
)
def test_schedule_mistakes(mistake, function):
    wrong(6, function, mistake)


def test_a_schedule_that_is_complete_and_slow():
    """One microbatch after the other through the whole pipeline: right, and without any overlap."""

    def slow(stages, microbatches, stage):
        return [(kind, i) for i in range(microbatches) for kind in "FB"]

    assert verdict(6, slow).outcome == "wrong"


# 7. Checkpoints


def trainer(
    *, model=True, optimizer=True, rng=True, losses=True, atomic=True, remove=False, offset=0, when=0, write=None,
    read=torch.load, resume=True, seed=False,
):  # fmt: skip
    def train_on(m, o, batch_of, steps, path, every):
        done, first = [], 0
        if resume and Path(path).exists():
            state = read(path)
            if model:
                m.load_state_dict(state["m"])
            if optimizer:
                o.load_state_dict(state["o"])
            if rng:
                torch.set_rng_state(state["r"])
            done = list(state["l"]) if losses else []
            first = state["k"] + offset
        for k in range(first, steps):
            if seed:
                torch.manual_seed(k)
            x, y = batch_of(k)
            loss = F.mse_loss(m(x), y)
            o.zero_grad()
            loss.backward()
            o.step()
            done.append(float(loss.detach()))
            if (k + 1 + when) % every == 0:
                state = {"m": m.state_dict(), "o": o.state_dict(), "r": torch.get_rng_state(), "l": done, "k": k + 1}
                target = Path(path).with_suffix(".part") if atomic else Path(path)
                if remove:
                    Path(path).unlink(missing_ok=True)
                (write or torch.save)(state, target)
                if atomic:
                    target.replace(path)
        return done

    return train_on


def pickled(state, target):
    with open(target, "wb") as file:
        pickle.dump(state, file)


def unpickled(path):
    with open(path, "rb") as file:
        return pickle.load(file)


def through_a_file(state, target):
    with open(target, "wb") as file:
        torch.save(state, file)


def test_checkpoints():
    assert verdict(7, trainer())
    assert verdict(7, trainer(write=through_a_file))
    assert verdict(7, trainer(write=pickled, read=unpickled))


def test_a_checkpoint_beside_the_last_one():
    """Two files in turns, and a small one that says which is whole."""

    def train_on(model, optimizer, batch_of, steps, path, every):
        losses = []
        if os.path.exists(path):
            with open(path) as file:
                state = torch.load(json.load(file))
            model.load_state_dict(state[0])
            optimizer.load_state_dict(state[1])
            losses = state[2]
            torch.set_rng_state(state[3])
        while len(losses) < steps:
            x, y = batch_of(len(losses))
            optimizer.zero_grad()
            loss = F.mse_loss(model(x), y)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            if len(losses) % every == 0:
                kept = f"{path}.{len(losses)}"
                torch.save([model.state_dict(), optimizer.state_dict(), losses, torch.get_rng_state()], kept)
                with open(f"{path}.new", "w") as file:
                    json.dump(kept, file)
                os.replace(f"{path}.new", path)
        return losses

    assert verdict(7, train_on)


@pytest.mark.parametrize(
    ("mistake", "function"),
    [
        ("began anew", trainer(resume=False)),
        ("optimizer not kept", trainer(optimizer=False)),
        ("random state not kept", trainer(rng=False)),
        ("weights not kept", trainer(model=False)),
        ("weights alone", trainer(optimizer=False, rng=False)),
        ("nothing loaded", trainer(model=False, optimizer=False, rng=False)),
        ("losses not kept", trainer(losses=False)),
        ("not atomic", trainer(atomic=False)),
        ("not atomic", trainer(atomic=False, write=pickled, read=unpickled)),
        ("not atomic", trainer(atomic=False, write=through_a_file)),
        ("removed the old one first", trainer(remove=True)),
        ("another step", trainer(offset=1)),
        ("another training", trainer(seed=True)),
        ("no checkpoint", trainer(atomic=False, write=lambda state, target: None)),
        ("steps", trainer(when=1)),
        ("steps", lambda m, o, batch_of, steps, path, every: [0.0] * steps),
        ("steps", lambda m, o, batch_of, steps, path, every: [batch_of(0)[0].sum().item()] * steps),
        (None, lambda m, o, batch_of, steps, path, every: batch_of(steps)),
    ],
)
def test_checkpoint_mistakes(mistake, function):
    wrong(7, function, mistake)


def test_whatever_is_cut_is_never_read_as_whole(tmp_path):
    """The check's own premise: half of what torch.save writes cannot be loaded."""
    buffer = io.BytesIO()
    torch.save({"a": torch.zeros(100)}, buffer)
    for share in (0.1, 0.5, 0.9):
        path = tmp_path / "half.pt"
        path.write_bytes(buffer.getvalue()[: int(share * len(buffer.getvalue()))])
        with pytest.raises((RuntimeError, EOFError, pickle.UnpicklingError)):
            torch.load(path)


def test_the_texts_name_the_functions_and_their_parameters():
    """What a question asks for is what its checker calls."""
    from efflab.exercises import questions

    for number, names in NAMES.items():
        said = " ".join(questions.question(f"ddp-code-{number}").text.split())
        assert f"`{solution(number).__name__}({names})`" in said, number
    assert len(judging.sources("ddp")) == len(NAMES)
