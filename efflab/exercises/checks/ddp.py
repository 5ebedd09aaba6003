"""Checkers of the code and measurement exercises on training with several devices."""

from __future__ import annotations

import copy
import io
import itertools
import math
import os
import random
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from efflab.exercises.checks import FLOAT32, NotYet, Subject, close, recognise, short, written
from efflab.exercises.checks.records import (
    DATA_SHEET_NOISE,
    FP32_EQUAL,
    at_scale,
    command,
    count,
    measured,
    middle_of,
    own,
    plausible,
    reconciled,
    sample_of,
    steady,
    text,
    timed_well,
    with_function,
)
from efflab.fits import fit_latency_bandwidth
from efflab.reconcile import datasheet
from efflab.reconcile import ddp as reconcile
from efflab.records import Record, Sample, median
from efflab.units import BYTE, BYTE_PER_SECOND, SECOND, show


def _items(call: str, value: Any, of: str) -> list[Any]:
    """What a learner's function gave, as a list."""
    if value is None:
        raise NotYet(f"{call} returns nothing. Is the `return` missing?")
    try:
        if isinstance(value, str | bytes | dict | set):
            raise TypeError
        return list(value)
    except Exception:  # the object is the learner's and may raise anything
        raise NotYet(f"{written(call, value)}; a list of {of} is expected.") from None


def _floats(call: str, value: Any) -> list[float]:
    """A learner's list of numbers as floats."""
    found = []
    for i, item in enumerate(_items(call, value, "numbers")):
        try:
            if isinstance(item, bool | str | bytes):
                raise TypeError
            found.append(float(item))
        except Exception:  # the object is the learner's and may raise anything
            raise NotYet(f"{call}: entry {i} is {short(item)}; a number is expected.") from None
    return found


def _whole(call: str, value: Any) -> list[int]:
    """A learner's list of whole numbers."""
    found = _floats(call, value)
    for i, item in enumerate(found):
        if not item.is_integer():
            raise NotYet(f"{call}: entry {i} is {short(item)}; a whole number is expected.")
    return [int(x) for x in found]


# 1. An all-reduce on a ring


class _Ring:
    """A ring's network: counts steps, keeps messages, delivers copies, or zeros in their place."""

    def __init__(self, ranks: int, call: str, *, silent: bool = False) -> None:
        self.ranks, self.call, self.silent = ranks, call, silent
        self.steps: list[list[list[float]]] = []

    def __call__(self, messages: Any) -> list[list[float]]:
        if len(self.steps) > 4 * self.ranks + 8:
            raise NotYet(f"{self.call} takes more than {len(self.steps)} steps; 2 (n − 1) are enough.", "steps")
        sent = _items(f"{self.call}: exchange", messages, "messages")
        if len(sent) != self.ranks:
            raise NotYet(
                f"{self.call}: exchange gets {len(sent)} messages; there are {self.ranks} ranks, and each sends one in "
                "a step, be it empty.",
                "messages",
            )
        self.steps.append([_floats(f"{self.call}: the message of rank {r}", m) for r, m in enumerate(sent)])
        arrived = [list(self.steps[-1][r - 1]) for r in range(self.ranks)]
        return [[0.0] * len(m) for m in arrived] if self.silent else arrived


def _reduced(
    buffers: Sequence[Sequence[float]], *, gather: bool = True, adds: bool = False, mean: bool = False
) -> list[list[float]]:
    """What a ring leaves on each rank, with a mistake for each switch."""
    n, length = len(buffers), len(buffers[0])
    cut = [length * i // n for i in range(n + 1)]
    held = [list(b) for b in buffers]

    def step(first: int, s: int, replace: bool) -> None:
        sent = [(k := (r + first - s) % n, held[r][cut[k] : cut[k + 1]]) for r in range(n)]
        for r in range(n):
            k, values = sent[r - 1]
            held[r][cut[k] : cut[k + 1]] = [
                v if replace else o + v for o, v in zip(held[r][cut[k] : cut[k + 1]], values, strict=True)
            ]

    for s in range(n - 1):
        step(0, s, False)
    for s in range(n - 1 if gather else 0):
        step(1, s, not adds)
    return [[v / n for v in h] for h in held] if mean else held


def ring_all_reduce(answer: Any) -> None:
    """Sums on all ranks, by 2 (n − 1) steps of a chunk each."""
    function = Subject(answer, "ring_all_reduce", "buffers", "exchange")
    draw = random.Random(51)
    for n, length in ((2, 4), (3, 6), (4, 8), (1, 3), (4, 10), (5, 3), (8, 64), (3, 1), (6, 23), (7, 50)):
        buffers = [[float(draw.randint(-99, 99)) for _ in range(length)] for _ in range(n)]
        call = f"ring_all_reduce of {n} ranks with {length} numbers each"
        function.describe = lambda c=call, **_: c  # type: ignore[method-assign]

        def run(ring: _Ring, own: list[list[float]] = buffers, call: str = call) -> list[list[float]]:
            value = function(buffers=[list(b) for b in own], exchange=ring)
            found = _items(call, value, "lists")
            return [_floats(f"{call}: rank {r}", f) for r, f in enumerate(found)]

        ring = _Ring(n, call)
        got, right = run(ring), [sum(column) for column in zip(*buffers, strict=True)]
        if len(got) != n:
            raise NotYet(f"{call} gives {len(got)} lists; one for each rank is expected.")
        _judge_ring(call, got, right, buffers, ring)
        if n > 1 and any(right) and run(_Ring(n, call, silent=True)) == got:
            raise NotYet(
                f"{call}: the sums are right even where every message arrives as zeros. A rank knows its own "
                "buffer and what it receives: add up what `exchange` returns.",
                "added up outside the ring",
            )


def _judge_ring(call: str, got: list[list[float]], right: list[float], buffers: list[list[float]], ring: _Ring) -> None:
    n, length, steps = len(buffers), len(right), len(ring.steps)
    needed, chunk = 2 * (n - 1), math.ceil(length / n)
    wrong = next((r for r in range(n) if got[r] != right), None)
    if wrong is not None:
        at = next((i for i, (one, other) in enumerate(zip(got[wrong], right, strict=False)) if one != other), None)
        if at is None:
            said = f"{call}: rank {wrong} ends with {len(got[wrong])} numbers; {length} are expected."
        else:
            said = f"{call}: entry {at} of rank {wrong} is {short(got[wrong][at])}; the sum is {short(right[at])}."
        if at is not None and length % n and at >= length - length % n:
            said += f" {length} numbers make no {n} equal chunks: the last {length % n} must be in one too."
        for name, variant, why in (
            ("nothing sent", [list(b) for b in buffers], "These are the ranks' own buffers."),
            (
                "no all-gather",
                _reduced(buffers, gather=False),
                "That is the reduce-scatter: each rank has one chunk of the sum. Pass the chunks on, n − 1 steps more.",
            ),
            (
                "added in the all-gather",
                _reduced(buffers, adds=True),
                "In the all-gather what arrives is the whole sum of a chunk: put it in the place, do not add it.",
            ),
            ("mean", _reduced(buffers, mean=True), "That is the mean. Return the sum."),
        ):
            if got == variant:
                raise NotYet(f"{said} {why}", name)
        raise NotYet(f"{said} It took {steps} steps.")
    longest = max((len(m) for step in ring.steps for m in step), default=0)
    if n > 1 and longest > chunk:
        raise NotYet(
            f"{call}: a message holds {longest} numbers. Cut the buffers into {n} chunks of at most {chunk}: then each "
            "rank sends 2 (n − 1)/n of its buffer in all, and not n − 1 times.",
            "whole messages" if longest == length else "unequal chunks",
        )
    if steps != needed:
        raise NotYet(f"{call}: the sums are right after {steps} steps; {needed} are enough and needed.", "steps")


# 2. The sampler's indices


def _indices(
    samples: int,
    ranks: int,
    rank: int,
    seed: int,
    epoch: int,
    *,
    draw: Callable[[int, int, int], int] | None = None,
    shuffled: bool = True,
    pad: Callable[[list[int], int], list[int]] | None = None,
    take: Callable[[list[int], int, int], list[int]] | None = None,
    drop: bool = False,
) -> list[int]:
    """DistributedSampler's indices, with a mistake for each argument."""
    import torch

    generator = torch.Generator().manual_seed((draw or (lambda s, e, r: s + e))(seed, epoch, rank))
    order = torch.randperm(samples, generator=generator).tolist() if shuffled else list(range(samples))
    total = (samples // ranks if drop else math.ceil(samples / ranks)) * ranks
    order = (pad or (lambda o, t: list(itertools.islice(itertools.cycle(o), t))))(order, total)
    return (take or (lambda o, n, r: o[r::n]))(order, ranks, rank)


def _torchs_indices(samples: int, ranks: int, rank: int, seed: int, epoch: int) -> list[int]:
    """The indices of torch's own sampler."""
    from torch.utils.data import DistributedSampler

    sampler = DistributedSampler(range(samples), num_replicas=ranks, rank=rank, seed=seed, shuffle=True)  # type: ignore[arg-type]
    sampler.set_epoch(epoch)
    return list(sampler)


SAMPLER_MISTAKES: tuple[tuple[str, dict[str, Any], str], ...] = (
    (
        "epoch ignored",
        {"draw": lambda s, e, r: s},
        "the order does not depend on the epoch. This is what a loop without set_epoch does: every epoch is the same.",
    ),
    ("seed ignored", {"draw": lambda s, e, r: e}, "the order does not depend on the seed."),
    (
        "another order on each rank",
        {"draw": lambda s, e, r: s + e + r},
        "each rank draws an order of its own. Then some samples come on several ranks and others on none: all ranks "
        "draw the same one.",
    ),
    ("seed times epoch", {"draw": lambda s, e, r: s * e}, "the generator's seed is seed + epoch."),
    ("not shuffled", {"shuffled": False}, "these are in order. Permute them first."),
    (
        "blocks",
        {"take": lambda o, n, r: o[r * (len(o) // n) : (r + 1) * (len(o) // n)]},
        "rank r got a block. It takes every nth index, from r on: indices[r::ranks].",
    ),
    (
        "not filled up",
        {"pad": lambda o, t: o},
        "the ranks get different numbers of samples. The one with a batch more would wait for ever for the others' "
        "gradients: fill the order up from its own beginning.",
    ),
    (
        "dropped the rest",
        {"drop": True},
        "the rest was left out. So drop_last=True does; here the order is filled up.",
    ),
    (
        "filled up once",
        {"pad": lambda o, t: o + o[: t - len(o)]},
        "there are more than twice as many ranks as samples there, and the order is needed more than twice.",
    ),
    (
        "filled up from the end",
        {"pad": lambda o, t: (o * (t // len(o) + 1))[: len(o)] + (o * (t // len(o) + 1))[len(o) - t :] if t > len(o)
         else o},
        "the order is filled up from its end. It is filled up from its beginning.",
    ),
)  # fmt: skip


def sampler_indices(answer: Any) -> None:
    """The indices of DistributedSampler, and no change of the global random state."""
    import torch

    names = ("samples", "ranks", "rank", "seed", "epoch")
    function = Subject(answer, "sampler_indices", *names)
    draw = random.Random(52)
    cases = [(10, 2, 0, 0, 0), (10, 2, 1, 0, 1), (12, 4, 3, 7, 2), (10, 4, 3, 1, 5), (5, 1, 0, 3, 3), (2, 7, 6, 4, 1)]
    for _ in range(24):
        ranks = draw.randint(1, 9)
        cases.append(
            (draw.randint(1, 60), ranks, draw.randrange(ranks), draw.randint(0, 10**6), draw.randint(0, 40))
        )  # fmt: skip
    got = []
    for case in cases:
        arguments = dict(zip(names, case, strict=True))
        before = torch.get_rng_state()
        try:
            value = function(**arguments)
            drew = not torch.equal(torch.get_rng_state(), before)
        finally:
            torch.set_rng_state(before)
        call = function.describe(**arguments)
        got.append((call, _whole(call, value), drew))
    rights = [_torchs_indices(*case) for case in cases]
    wrong = next((i for i, right in enumerate(rights) if got[i][1] != right), None)
    if wrong is None:
        if any(drew for *_, drew in got):
            raise NotYet(
                "The indices are right, and the global random state is another one afterwards: dropout and everything "
                "else that draws would go on elsewhere. Give randperm a generator of its own.",
                "global random state",
            )
        return
    call, values, _ = got[wrong]
    said = f"{call} gives {short(values)}; DistributedSampler gives {short(rights[wrong])}"
    for name, rule, why in SAMPLER_MISTAKES:
        if all(v == _indices(*case, **rule) for (_, v, _), case in zip(got, cases, strict=True)):
            raise NotYet(f"{said}: {why}", name)
    raise NotYet(f"{said}.")


# 3. Latency and bandwidth


def _fit(sizes: Sequence[float], times: Sequence[float], ranks: int, *, relative: bool = True) -> tuple[float, float]:
    """Latency per step and bandwidth by least squares of relative or of absolute errors."""
    import numpy as np

    if relative:
        found = fit_latency_bandwidth(sizes, times)
        start, rate = found.latency, found.bandwidth
    else:
        slope, start = np.polynomial.Polynomial.fit(sizes, times, 1).convert().coef[::-1]
        rate = 1 / float(slope)
    return float(start) / (2 * (ranks - 1)), 2 * (ranks - 1) / ranks * rate


def _ring_time(size: float, ranks: int, latency: float, bandwidth: float) -> float:
    return 2 * (ranks - 1) * latency + 2 * (ranks - 1) / ranks * size / bandwidth


def fit_all_reduce(answer: Any) -> None:
    """Latency per step and one direction's bandwidth, from exact and from noisy times."""
    function = Subject(answer, "fit_all_reduce", "sizes", "times", "ranks")
    draw = random.Random(53)
    cases = []
    for ranks, latency, bandwidth, noise in (
        (2, 2e-4, 1.5e9, 0.0), (8, 5e-6, 4.5e11, 0.0), (4, 2e-5, 1.2e10, 0.0), (64, 1e-5, 2.5e10, 0.0),
        (2, 2e-4, 1.5e9, 0.2), (8, 5e-6, 4.5e11, 0.1), (16, 3e-5, 5e10, 0.3), (3, 1e-4, 1e10, 0.05),
    ):  # fmt: skip
        sizes = [2.0**k for k in range(10, 31, 2)]
        times = [_ring_time(s, ranks, latency, bandwidth) * math.exp(draw.gauss(0, noise)) for s in sizes]
        cases.append((sizes, times, ranks, bool(noise)))
    for sizes, times, ranks, noisy in cases:
        what = "with noise" if noisy else "exact"
        call = f"fit_all_reduce({short(sizes)}, {short(times)}, {ranks})"
        function.describe = lambda c=call, **_: c  # type: ignore[method-assign]
        latency, bandwidth = function.numbers("latency", "bandwidth", sizes=list(sizes), times=list(times), ranks=ranks)
        right_latency, right_bandwidth = _fit(sizes, times, ranks)
        if close(latency, right_latency, 1e-4) and close(bandwidth, right_bandwidth, 1e-4):
            continue
        said = f"{call} gives ({latency:.6g}, {bandwidth:.6g}) ({what})"
        if close(bandwidth, right_latency, 1e-3) and close(latency, right_bandwidth, 1e-3):
            raise NotYet(f"{said}. These are the right numbers the other way round: latency first.", "exchanged")
        start, slope = 2 * (ranks - 1) * right_latency, 2 * (ranks - 1) / ranks / right_bandwidth
        recognise(f"{said}: the latency is", latency, (
            ("latency of the whole ring", start, "that of all steps together. A ring has 2 (n − 1) of them."),
            ("half the steps", start / (ranks - 1), "that over n − 1 steps. An all-reduce goes round twice."),
            ("latency per rank", start / ranks, "that over n. A ring has 2 (n − 1) steps."),
        ) if not close(latency, right_latency, 1e-3) else (), 1e-3)  # fmt: skip
        recognise(f"{said}: the bandwidth is", bandwidth, (
            ("algorithm bandwidth", 1 / slope, "the algorithm bandwidth, message over time. A rank sends 2 (n − 1)/n "
             "of the message."),
            ("half the ring", (ranks - 1) / ranks / slope, "that of one round. An all-reduce goes round twice."),
            ("forgot the last chunk", 2 / slope, "that with a factor of 2. It is 2 (n − 1)/n."),
            ("gave the slope", slope, "the slope, in seconds per byte. A bandwidth is bytes per second."),
        ) if not close(bandwidth, right_bandwidth, 1e-3) else (), 1e-3)  # fmt: skip
        if noisy:
            other = _fit(sizes, times, ranks, relative=False)
            if close(latency, other[0], 1e-3) and close(bandwidth, other[1], 1e-3):
                raise NotYet(
                    f"{said}. That is the least sum of the squared errors in seconds. There a gigabyte counts for "
                    "everything and a kilobyte, which shows the latency, for nothing: divide each error by its time.",
                    "absolute errors",
                )
        raise NotYet(
            f"{said}; the least squared relative errors are at ({right_latency:.6g}, {right_bandwidth:.6g}), "
            f"{show(right_latency, SECOND)} and {show(right_bandwidth, BYTE_PER_SECOND)}."
        )


# 4. Buckets, one after another

Layers = list[tuple[float, float]]
Time = Callable[[float], float]


def _step(
    forward: float,
    layers: Layers,
    update: float,
    bucket: float,
    communicate: Time,
    overlap: bool,
    *,
    reverse: bool = True,
    rest: bool = True,
    before: bool = False,
    queue: bool = True,
    per_layer: bool = False,
    last_only: bool = False,
    parts: tuple[bool, bool] = (True, True),
) -> float:
    """The step by events, with a mistake for each switch."""
    now, held = 0.0, 0.0
    ready: list[tuple[float, float]] = []
    for seconds, size in reversed(layers) if reverse else layers:
        if before and held and held + size > bucket:  # a bucket that would overflow is sent without this layer
            ready.append((now, held))
            held = 0.0
        now += seconds
        held += size
        if per_layer or held >= bucket:
            ready.append((now, held))
            held = 0.0
    if held and rest:
        ready.append((now, held))
    free = ends = 0.0 if overlap else now
    for at, size in ready:
        start = max(at, free) if overlap and queue else max(at if overlap else now, free if not overlap else 0.0)
        free = start + communicate(size)
        ends = max(ends, free)
    if last_only and ready:
        ends = max(now, free) if not overlap else now + communicate(ready[-1][1])
    return forward * parts[0] + max(now, ends) + update * parts[1]


STEP_MISTAKES: tuple[tuple[str, dict[str, Any], str], ...] = (
    ("from the first layer", {"reverse": False}, "the backward pass began with the first layer. It begins with the "
     "last: its gradients are ready first."),
    ("rest never sent", {"rest": False}, "what is left in the bucket at the end was never sent."),
    ("all at once", {"queue": False}, "the messages went beside each other. Each waits until the network is free."),
    ("a message for each layer", {"per_layer": True}, "every layer was sent by itself. Wait until the bucket holds "
     "bucket_bytes."),
    ("the last bucket alone", {"last_only": True}, "only the last message shows. Where the network falls behind, "
     "messages pile up before it."),
    ("sent before it overflows", {"before": True}, "a bucket was sent before a layer that would not fit. Here the "
     "layer goes in first; then the bucket is sent if it holds bucket_bytes or more."),
    ("forgot the forward pass", {"parts": (False, True)}, "the forward pass is missing."),
    ("forgot the update", {"parts": (True, False)}, "the update is missing."),
)  # fmt: skip


def step_time(answer: Any) -> None:
    """Time of a step by events: buckets are filled in the backward pass and sent one after another."""
    names = ("forward", "layers", "update", "bucket_bytes", "communicate", "overlap")
    function = Subject(answer, "step_time", *names)
    draw = random.Random(54)
    cases: list[tuple[float, Layers, float, float, tuple[float, float], bool]] = [
        (0.5, [(1.0, 10.0)], 0.25, 10.0, (0.0, 10.0), True),
        (0.5, [(1.0, 10.0)] * 4, 0.25, 10.0, (0.0, 20.0), True),  # the network keeps up
        (0.5, [(1.0, 10.0)] * 4, 0.25, 10.0, (0.5, 5.0), True),  # it falls behind
        (0.5, [(1.0, 10.0)] * 4, 0.25, 10.0, (0.5, 5.0), False),
        (0.5, [(1.0, 10.0)] * 5, 0.25, 20.0, (0.5, 20.0), True),  # a rest
        (0.5, [(3.0, 40.0), (1.0, 5.0), (0.5, 5.0)], 0.25, 10.0, (0.25, 10.0), True),
        (0.5, [(0.5, 5.0), (1.0, 5.0), (3.0, 40.0)], 0.25, 10.0, (0.25, 10.0), True),
        (0.5, [(1.0, 6.0)] * 6, 0.25, 10.0, (0.25, 10.0), True),
        (0.5, [(1.0, 1.0)] * 3, 0.25, 1000.0, (1.0, 10.0), True),  # one bucket for all
    ]
    for _ in range(25):
        layers = [(draw.uniform(0.1, 2), float(draw.randint(1, 40))) for _ in range(draw.randint(1, 12))]
        network = (draw.choice([0.0, 0.1, 1.0]), draw.choice([4.0, 20.0, 100.0]))
        cases.append((draw.uniform(0.1, 3), layers, draw.uniform(0.01, 1), float(draw.randint(5, 60)), network,
                      draw.random() < 0.75))  # fmt: skip

    def line(network: tuple[float, float]) -> Time:
        return lambda size: network[0] + size / network[1]

    got = []
    for forward, layers, update, bucket, network, overlap in cases:
        said = (
            f"step_time({short(forward)}, {short(layers)}, {short(update)}, {short(bucket)}, "
            f"size -> {network[0]:g} + size/{network[1]:g}, {overlap})"
        )
        function.describe = lambda c=said, **_: c  # type: ignore[method-assign]
        got.append((said, function.number(forward=forward, layers=list(layers), update=update, bucket_bytes=bucket,
                                          communicate=line(network), overlap=overlap)))  # fmt: skip
    plain = [(f, la, u, b, line(n), o) for f, la, u, b, n, o in cases]
    wrong = next((i for i, case in enumerate(plain) if not close(got[i][1], _step(*case), FLOAT32)), None)
    if wrong is None:
        return
    said = written(*got[wrong])

    def explained(rule: Callable[..., float]) -> bool:
        return all(close(g, rule(*case), FLOAT32) for (_, g), case in zip(got, plain, strict=True))

    def total(layers: Layers) -> float:
        return sum(s for s, _ in layers)

    rules: list[tuple[str, Callable[..., float], str]] = [
        (name, lambda *case, how=how: _step(*case, **how), why) for name, how, why in STEP_MISTAKES
    ]
    rules += [
        ("never overlaps", lambda f, la, u, b, c, o: _step(f, la, u, b, c, False), "nothing overlaps in yours."),
        ("always overlaps", lambda f, la, u, b, c, o: _step(f, la, u, b, c, True), "it overlaps in yours also where "
         "`overlap` is false."),
        ("one message for all", lambda f, la, u, b, c, o: f + total(la) + c(sum(s for _, s in la)) + u, "all gradients "
         "went in one message after the backward pass."),
        ("longer of the two", lambda f, la, u, b, c, o: (
            _step(f, la, u, b, c, False) if not o else
            f + max(total(la), _step(0, la, 0, b, c, False) - total(la)) + u
        ), "you took the longer of backward pass and communication. The first bucket has to be filled before anything "
         "is sent, and the last one is sent after the backward pass."),
        ("no communication", lambda f, la, u, b, c, o: f + total(la) + u, "the communication is missing."),
    ]  # fmt: skip
    for name, rule, why in rules:
        if explained(rule):
            raise NotYet(f"{said}: {why}", name)
    for name, rule, why in rules:
        if close(got[wrong][1], rule(*plain[wrong]), FLOAT32):
            raise NotYet(f"{said}: {why}", name)
    raise NotYet(f"{said}. By hand: {_step(*plain[wrong]):.6g}.")


# 5. DDP by hand


class _Stopped(BaseException):
    """Ends a rank's thread when another one has failed. No `except Exception` of the learner's catches it."""


class _Group:
    """Ranks as threads of one process, and the collectives between them.

    Nobody waits for a clock: a rank that returns while others wait ends all of them.
    """

    def __init__(self, ranks: int, call: str) -> None:
        self.ranks, self.call = ranks, call
        self.lock = threading.Condition()
        self.waiting: dict[int, tuple[str, Any, int]] = {}
        self.done: set[int] = set()
        self.turn = 0
        self.failure: BaseException | None = None
        self.calls = {"all_reduce": 0, "broadcast": 0, "barrier": 0}

    def run(self, work: Callable[[int, Any], Any]) -> list[Any]:
        """What work(rank, dist) returns on each rank.

        Raises:
            NotYet: the first failure on any rank, or ranks that wait for one which has returned.
        """
        results: list[Any] = [None] * self.ranks

        def rank(r: int) -> None:
            try:
                results[r] = work(r, _Dist(self, r))
            except _Stopped:
                return
            except BaseException as error:  # handed to the caller's thread
                self.fail(error)
                return
            with self.lock:
                self.done.add(r)
                self.stuck()

        threads = [threading.Thread(target=rank, args=(r,), daemon=True) for r in range(self.ranks)]
        for thread in threads:
            thread.start()
        try:
            for thread in threads:
                thread.join()
        except BaseException:  # interrupted: nobody stays behind in a collective
            self.fail(_Stopped())
            raise
        if self.failure is not None:
            raise self.failure
        return results

    def fail(self, error: BaseException) -> None:
        with self.lock:
            self.failure = self.failure or error
            self.lock.notify_all()

    def stuck(self) -> None:
        """Fail where some ranks wait and the others have all returned. The lock is held."""
        if self.waiting and self.done and len(self.waiting) + len(self.done) == self.ranks and not self.failure:
            r, (kind, *_) = next(iter(sorted(self.waiting.items())))
            self.fail(
                NotYet(
                    f"{self.call}: rank {r} waits in {kind}, and rank {min(self.done)} has returned without calling "
                    "it. A collective ends when every rank has called it: this program would hang.",
                    "hangs",
                )
            )

    def collective(self, rank: int, kind: str, tensor: Any, src: int) -> None:
        """Wait for all ranks, then combine their tensors in place."""
        with self.lock:
            if self.failure:
                raise _Stopped
            turn = self.turn
            self.waiting[rank] = (kind, tensor, src)
            if len(self.waiting) == self.ranks:
                try:
                    self.combine(kind)
                except NotYet as error:
                    self.fail(error)
                    raise _Stopped from None
                self.waiting.clear()
                self.turn += 1
                self.lock.notify_all()
                return
            self.stuck()
            self.lock.wait_for(lambda: self.turn > turn or self.failure is not None)
            if self.failure is not None:
                raise _Stopped

    def combine(self, kind: str) -> None:
        kinds = {r: k for r, (k, *_) in self.waiting.items()}
        if len(set(kinds.values())) > 1:
            raise NotYet(
                f"{self.call}: at the same time {', '.join(f'rank {r} calls {k}' for r, k in sorted(kinds.items()))}. "
                "All ranks call the same collectives in the same order.",
                "another order",
            )
        self.calls[kind] += 1
        if kind == "barrier":
            return
        tensors = [self.waiting[r][1] for r in range(self.ranks)]
        sources = {self.waiting[r][2] for r in range(self.ranks)}
        shapes = {(tuple(t.shape), t.dtype) for t in tensors}
        if len(shapes) > 1 or len(sources) > 1:
            what = ", ".join(f"{list(shape)} in {str(dtype).removeprefix('torch.')}" for shape, dtype in sorted(
                shapes, key=str))  # fmt: skip
            raise NotYet(f"{self.call}: the ranks' tensors of one {kind} differ: {what}.", "other shapes")
        value = tensors[next(iter(sources))].detach().clone() if kind == "broadcast" else sum(
            t.detach() for t in tensors)  # fmt: skip
        for tensor in tensors:
            tensor.detach().copy_(value)


class _Dist:
    """What a rank sees of `torch.distributed`."""

    class ReduceOp:
        SUM = "SUM"

    def __init__(self, group: _Group, rank: int) -> None:
        self._group, self._rank = group, rank

    def get_rank(self) -> int:
        return self._rank

    def get_world_size(self) -> int:
        return self._group.ranks

    def all_reduce(self, tensor: Any, op: Any = "SUM") -> None:
        if op != "SUM":
            raise NotYet(f"{self._group.call}: all_reduce adds up here, as it does with gloo; got op={short(op)}.")
        self._send("all_reduce", tensor, 0)

    def broadcast(self, tensor: Any, src: int = 0) -> None:
        if src not in range(self._group.ranks):
            raise NotYet(f"{self._group.call}: broadcast from rank {short(src)}; ranks begin with 0.")
        self._send("broadcast", tensor, src)

    def barrier(self) -> None:
        self._group.collective(self._rank, "barrier", None, 0)

    def _send(self, kind: str, tensor: Any, src: int) -> None:
        import torch

        if not isinstance(tensor, torch.Tensor):
            raise NotYet(
                f"{self._group.call}: {kind} takes a tensor, and changes it in place; got {short(tensor)}. A number "
                "goes as torch.tensor(number).",
                "no tensor",
            )
        if not tensor.is_contiguous():
            raise NotYet(f"{self._group.call}: {kind} takes a contiguous tensor. Call contiguous().", "not contiguous")
        self._group.collective(self._rank, kind, tensor, src)

    def __getattr__(self, name: str) -> Any:
        raise NotYet(
            f"{self._group.call}: this `dist` has no {name}. It has broadcast, all_reduce, barrier, get_rank and "
            "get_world_size."
        )


OPTIMIZERS = ("SGD with momentum", "Adam")


def _optimizer(kind: str, model: Any) -> Any:
    import torch

    if kind == "Adam":
        return torch.optim.Adam(model.parameters(), lr=0.05)
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def _weights(model: Any) -> Any:
    """All weights as one vector."""
    import torch

    return torch.cat([p.detach().flatten() for p in model.parameters()])


def _replicas(
    kind: str,
    models: Sequence[Any],
    parts: Sequence[list[tuple[Any, Any]]],
    loss_fn: Any,
    *,
    start: bool = True,
    gradients: float | None = None,
    weights: bool = False,
    clear: bool = True,
) -> list[Any]:
    """Train copies of the models in turns as DDP does, with a mistake for each switch; the trained copies.

    `gradients` is the factor of the gradients' sum, by default 1 over the ranks; 0 leaves them alone. `weights`
    averages the weights after the step.
    """
    import torch

    n = len(models)
    copies = [copy.deepcopy(models[0] if start else m) for m in models]
    optimizers = [_optimizer(kind, m) for m in copies]
    for step in range(len(parts[0])):
        for model, optimizer, part in zip(copies, optimizers, parts, strict=True):
            if clear:
                optimizer.zero_grad()
            loss_fn(model(part[step][0]), part[step][1]).backward()
        with torch.no_grad():
            for together in zip(*(m.parameters() for m in copies), strict=True):
                if gradients != 0 and not weights:
                    total = sum(p.grad for p in together) * (1 / n if gradients is None else gradients)
                    for p in together:
                        p.grad.copy_(total)
            for optimizer in optimizers:
                optimizer.step()
            if weights:
                for together in zip(*(m.parameters() for m in copies), strict=True):
                    mean = sum(together) / n
                    for p in together:
                        p.copy_(mean)
    return copies


def train(answer: Any) -> None:
    """DDP by hand: equal weights on all ranks, those of one process, and few messages."""
    import torch
    from torch import nn
    from torch.nn import functional

    function = Subject(answer, "train", "model", "optimizer", "loss_fn", "batches", "dist")
    for seed, (n, kind, steps) in enumerate(((2, OPTIMIZERS[0], 3), (3, "Adam", 4), (1, "Adam", 2), (4, "Adam", 1))):
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(60 + seed)
            models = [
                nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 2)).double()
                for _ in range(n)
            ]
            parts = [
                [(torch.randn(4, 3, dtype=torch.float64), torch.randn(4, 2, dtype=torch.float64)) for _ in range(steps)]
                for _ in range(n)
            ]
        call = f"train on {n} rank{'s' * (n > 1)} with {kind}, {steps} step{'s' * (steps > 1)}"
        function.describe = lambda c=call, **_: c  # type: ignore[method-assign]
        made = [copy.deepcopy(m) for m in models]
        group = _Group(n, call)

        def rank(r: int, dist: Any, made: list[Any] = made, parts: Any = parts, kind: str = kind) -> Any:
            return function(
                model=made[r], optimizer=_optimizer(kind, made[r]), loss_fn=functional.mse_loss,
                batches=list(parts[r]), dist=dist,
            )  # fmt: skip

        _judge_replicas(call, kind, group.run(rank), made, models, parts, functional.mse_loss, group)


def _judge_replicas(
    call: str,
    kind: str,
    values: list[Any],
    made: list[Any],
    models: list[Any],
    parts: list[list[tuple[Any, Any]]],
    loss_fn: Any,
    group: _Group,
) -> None:
    import torch

    n, steps = len(models), len(parts[0])
    # One process with the whole batches.
    alone = copy.deepcopy(models[0])
    optimizer, right = _optimizer(kind, alone), []
    for step in range(steps):
        inputs, targets = (torch.cat([part[step][i] for part in parts]) for i in (0, 1))
        optimizer.zero_grad()
        loss = loss_fn(alone(inputs), targets)
        loss.backward()
        optimizer.step()
        right.append(float(loss.detach()))

    def same(a: Any, b: Any) -> bool:
        return bool(torch.allclose(_weights(a), _weights(b), rtol=1e-7, atol=1e-9))

    def equal(variant: list[Any]) -> bool:
        return all(same(a, b) for a, b in zip(made, variant, strict=True))

    if not all(same(m, alone) for m in made):
        if all(torch.equal(_weights(m), _weights(b)) for m, b in zip(made, models, strict=True)):
            raise NotYet(f"{call}: the weights are those from the start. Is optimizer.step() called?", "no step")
        parted = next((r for r in range(1, n) if not same(made[r], made[0])), None)
        said = (
            f"{call}: the weights of rank {parted} are not those of rank 0."
            if parted is not None
            else f"{call}: all ranks have the same weights, and not those of one process with the whole batches."
        )
        for name, options, why in (
            ("nothing exchanged", {"start": False, "gradients": 0}, "Each rank trains a model of its own."),
            ("gradients not exchanged", {"gradients": 0}, "They begin alike, and each goes on with its own gradients."),
            ("no broadcast", {"start": False}, "The gradients are averaged, and the models begin with different "
             "weights: broadcast rank 0's before the first step."),
            ("not divided", {"gradients": 1.0}, "The gradients are summed over the ranks and not divided by their "
             "number."),
            ("averaged the weights", {"weights": True}, "The weights are averaged after the step. With Adam, which "
             "divides by the gradients' size, that is another training: average the gradients before it."),
            ("not cleared", {"clear": False}, "The gradients of the step before are still in .grad."),
            ("divided twice", {"gradients": 1 / n**2}, "The gradients are divided by the number of ranks twice."),
        ):  # fmt: skip
            variant = _replicas(kind, models, parts, loss_fn, **options)  # type: ignore[arg-type]
            if equal(variant) and not all(same(m, alone) for m in variant):
                raise NotYet(f"{said} {why}", name)
        raise NotYet(
            f"{said} The order: broadcast once; then in each step forward, loss, backward, average the gradients, step."
        )
    if group.calls["all_reduce"] > 2 * steps:
        raise NotYet(
            f"{call}: the weights are right, with {group.calls['all_reduce']} all-reduces; {2 * steps} are allowed. "
            "Each message pays the latency of the ring: put all gradients into one tensor.",
            "a message for each tensor",
        )
    for r, value in enumerate(values):
        losses = _floats(f"{call}: rank {r}", value)
        if len(losses) != steps:
            raise NotYet(f"{call}: rank {r} returns {len(losses)} losses for {steps} steps.")
        if all(close(a, b, FLOAT32) for a, b in zip(losses, right, strict=True)):
            continue
        k = next(k for k in range(steps) if not close(losses[k], right[k], FLOAT32))
        raise NotYet(
            f"{call}: the weights are right. Rank {r} says that the loss of step {k} is {losses[k]:.6g}; over all "
            f"ranks it is {right[k]:.6g}."
            + (" That is their sum." if n > 1 and close(losses[k], n * right[k], FLOAT32) else
               " A rank knows only its own: let it go along in an all-reduce."),
            "loss is a sum" if n > 1 and close(losses[k], n * right[k], FLOAT32) else "loss of one rank",
        )  # fmt: skip


# 6. One forward, one backward

Order = list[tuple[str, int]]
FORWARD_TIME, BACKWARD_TIME = 1, 2


def _order(call: str, value: Any) -> Order:
    """A learner's order of work."""
    found: Order = []
    for i, item in enumerate(_items(call, value, "pairs")):
        try:
            kind, number = item
            if kind not in ("F", "B") or isinstance(number, bool) or int(number) != number:
                raise ValueError
            found.append((str(kind), int(number)))
        except Exception:  # the object is the learner's and may raise anything
            raise NotYet(f'{call}: entry {i} is {short(item)}; ("F", 0) or ("B", 0) is expected.') from None
    return found


def _pipeline(orders: Sequence[Order]) -> tuple[int | None, list[int]]:
    """Run the stages' orders by events. When all is done, or None where they wait for ever; each stage's next entry."""
    stages = len(orders)
    ended: dict[tuple[str, int, int], int] = {}
    at, free = [0] * stages, [0] * stages
    moved = True
    while moved:
        moved = False
        for s, order in enumerate(orders):
            while at[s] < len(order):
                kind, i = order[at[s]]
                if kind == "F":
                    needs = [("F", s - 1, i)] if s else []
                else:
                    needs = [("F", s, i)] + ([("B", s + 1, i)] if s + 1 < stages else [])
                if any(n not in ended for n in needs):
                    break
                begin = max([free[s], *(ended[n] for n in needs)])
                free[s] = ended[kind, s, i] = begin + (FORWARD_TIME if kind == "F" else BACKWARD_TIME)
                at[s] += 1
                moved = True
    done = all(a == len(o) for a, o in zip(at, orders, strict=True))
    return (max(free) if done else None), at


def _order_of(stages: int, microbatches: int, stage: int) -> Order:
    """The schedule 1F1B of a stage."""
    first = min(stages - stage - 1, microbatches)
    pairs = [pair for i in range(microbatches - first) for pair in (("F", first + i), ("B", i))]
    return [("F", i) for i in range(first)] + pairs + [("B", i) for i in range(microbatches - first, microbatches)]


def _held(order: Order) -> int:
    """The most microbatches that are forward and not yet backward."""
    now = most = 0
    for kind, _ in order:
        now += 1 if kind == "F" else -1
        most = max(most, now)
    return most


def one_f_one_b(answer: Any) -> None:
    """Schedules that are complete, do not hang, take no longer and hold no more than 1F1B."""
    function = Subject(answer, "one_f_one_b", "stages", "microbatches", "stage")
    for stages, microbatches in ((4, 8), (2, 4), (1, 3), (4, 4), (4, 2), (3, 1), (8, 32), (5, 7)):
        call = f"one_f_one_b({stages}, {microbatches}, …)"
        orders = []
        for stage in range(stages):
            arguments = {"stages": stages, "microbatches": microbatches, "stage": stage}
            said = f"one_f_one_b({stages}, {microbatches}, {stage})"
            function.describe = lambda c=said, **_: c  # type: ignore[method-assign]
            order = _order(said, function(**arguments))
            _complete(said, order, microbatches)
            orders.append(order)
        if stages > 1 and microbatches > stages and all(
            [k for k, _ in o] == ["F"] * microbatches + ["B"] * microbatches for o in orders
        ):  # fmt: skip
            raise NotYet(
                f"{call}: all forward passes come first. That is GPipe: stage 0 holds the activations of all "
                f"{microbatches} microbatches, with 1F1B those of {stages}.",
                "GPipe",
            )
        took, at = _pipeline(orders)
        if took is None:
            s = next(s for s in range(stages) if at[s] < len(orders[s]))
            kind, i = orders[s][at[s]]
            turned = all(o == _order_of(stages, microbatches, stages - 1 - t) for t, o in enumerate(orders))
            raise NotYet(
                f"{call}: the pipeline hangs. Stage {s} waits with ({kind!r}, {i}) for its neighbour, which waits for "
                "another."
                + (" The last stage begins with the fewest forward passes, stage 0 with the most." if turned else
                   " How many forward passes must stage s do before the first gradient can come back to it?"),
                "turned the stages around" if turned else "hangs",
            )  # fmt: skip
        for stage, order in enumerate(orders):
            most = min(stages - stage, microbatches)
            if _held(order) > most:
                raise NotYet(
                    f"one_f_one_b({stages}, {microbatches}, {stage}) holds the activations of {_held(order)} "
                    f"microbatches; {most} are enough: {_shown(order)}",
                    "holds too many",
                )
        least = (microbatches + stages - 1) * (FORWARD_TIME + BACKWARD_TIME)
        if took > least:
            raise NotYet(
                f"{call} takes {took} units of time, with {FORWARD_TIME} for a forward and {BACKWARD_TIME} for a "
                f"backward pass; {least} are enough. Stage 0 is {_shown(orders[0])}: with too few forward passes "
                "at the start a stage waits for each gradient.",
                "larger bubble",
            )


def _shown(order: Order) -> str:
    """An order as "F0 F1 B0 ..."."""
    return " ".join(f"{k}{i}" for k, i in order[:12]) + (" …" if len(order) > 12 else "")


def _complete(said: str, order: Order, microbatches: int) -> None:
    """Each microbatch once forward and once backward, in order."""
    for kind, name in (("F", "forward"), ("B", "backward")):
        numbers = [i for k, i in order if k == kind]
        if sorted(numbers) != list(range(microbatches)):
            missing = sorted(set(range(microbatches)) - set(numbers))
            what = (
                f"the {name} pass of microbatch {missing[0]} is missing"
                if missing
                else f"there are {len(numbers)} {name} passes for {microbatches} microbatches"
            )
            raise NotYet(f"{said}: {what}: {_shown(order)}", "incomplete")
        if numbers != sorted(numbers):
            raise NotYet(
                f"{said}: the {name} passes come as {short(numbers)}. Microbatches come in order, forward and "
                "backward: the stage behind sends them so.",
                "another order",
            )
    seen = set()
    for kind, i in order:
        if kind == "F":
            seen.add(i)
        elif i not in seen:
            raise NotYet(
                f"{said}: the backward pass of microbatch {i} comes before its forward pass.", "backward first"
            )


# 7. Go on where it stopped


class _Killed(BaseException):
    """Stands for SIGKILL: no `except Exception` of the learner's catches it."""


class _Run:
    """A training from fresh weights, as a new process would begin it."""

    def __init__(self, function: Subject, call: str, path: Path, steps: int, every: int) -> None:
        self.function, self.call, self.path, self.steps, self.every = function, call, path, steps, every
        self.asked: list[int] = []

    def start(self, process: int, kill_at: int | None = None) -> tuple[list[float], Any]:
        """Losses and model of a run in its nth process, which is killed when it asks for step `kill_at`."""
        model, optimizer = _fresh(process)
        self.asked = []

        def batch_of(k: Any) -> tuple[Any, Any]:
            if isinstance(k, bool) or not isinstance(k, int) or not 0 <= k < self.steps:
                raise NotYet(f"{self.call}: batch_of({short(k)}); steps are 0 to {self.steps - 1}.")
            self.asked.append(k)
            if k == kill_at:
                raise _Killed
            return _batch(k)

        self.function.describe = lambda **_: self.call  # type: ignore[method-assign]
        value = self.function(model=model, optimizer=optimizer, batch_of=batch_of, steps=self.steps,
                              path=str(self.path), every=self.every)  # fmt: skip
        return _floats(self.call, value), model

    def killed(self, process: int, kill_at: int | None = None) -> bool:
        """Run until it is killed; whether it was."""
        try:
            self.start(process, kill_at)
        except _Killed:
            return True
        return False


def _fresh(process: int) -> tuple[Any, Any]:
    """Model, optimizer and random state of a new process: of each its own."""
    import torch
    from torch import nn

    torch.default_generator.manual_seed(70 + process)
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Dropout(0.4), nn.Linear(16, 3))
    return model, torch.optim.Adam(model.parameters(), lr=0.01)


def _batch(k: int) -> tuple[Any, Any]:
    """Inputs [8, 6] and targets [8, 3] of a step, always the same."""
    import torch

    generator = torch.Generator().manual_seed(1000 + k)
    return torch.randn(8, 6, generator=generator), torch.randn(8, 3, generator=generator)


def _trained(
    steps: int, stop: int | None = None, *, weights: bool = True, optimizer: bool = True, rng: bool = True
) -> tuple[list[float], Any]:
    """Train without a file; at `stop` into a new process, which takes over what is named. Losses and model."""
    import torch
    from torch.nn import functional

    model, adam = _fresh(0)
    losses = []
    for k in range(steps):
        if k == stop:
            old, old_adam, state = model, adam, torch.get_rng_state()
            model, adam = _fresh(1)
            if weights:
                model.load_state_dict(old.state_dict())
            if optimizer:
                adam.load_state_dict(copy.deepcopy(old_adam.state_dict()))
            if rng:
                torch.set_rng_state(state)
        inputs, targets = _batch(k)
        adam.zero_grad()
        loss = functional.mse_loss(model(inputs), targets)
        loss.backward()
        adam.step()
        losses.append(loss.item())
    return losses, model


@contextmanager
def _cut_writes(after: int) -> Iterator[None]:
    """torch.save writes half of its bytes and is killed, from the given call on."""
    import torch

    whole, calls = torch.save, itertools.count()

    def cut(obj: Any, f: Any, *args: Any, **options: Any) -> None:
        # Pickling a tensor saves its storage to memory in this way. That is no file yet.
        if isinstance(f, io.BytesIO) or next(calls) < after:
            whole(obj, f, *args, **options)
            return
        buffer = io.BytesIO()
        whole(obj, buffer, *args, **options)
        half = buffer.getvalue()[: len(buffer.getvalue()) // 2]
        if hasattr(f, "write"):
            f.write(half)
            f.flush()
        else:
            Path(f).write_bytes(half)
        raise _Killed

    torch.save = cut
    try:
        yield
    finally:
        torch.save = whole


def train_on(answer: Any) -> None:
    """Goes on to the last bit, killed in a step and killed while writing."""
    import torch

    function = Subject(answer, "train_on", "model", "optimizer", "batch_of", "steps", "path", "every")
    with torch.random.fork_rng(devices=[]), tempfile.TemporaryDirectory(prefix="efflab-") as folder:
        _whole_run(function, Path(folder) / "whole" / "state.pt")
        for steps, every, kill_at in ((10, 4, 6), (7, 3, 3), (9, 2, 1), (6, 3, 5)):
            path = Path(folder) / f"killed-{kill_at}" / "state.pt"
            call = f"train_on over {steps} steps with a checkpoint after each {every}, killed in step {kill_at}"
            _goes_on(function, call, path, steps, every, kill_at)
        _killed_while_writing(function, Path(folder) / "cut" / "state.pt")


def _whole_run(function: Subject, path: Path) -> None:
    """A run that nobody stops, and another one after its end."""
    import torch

    path.parent.mkdir()
    run = _Run(function, "train_on over 5 steps with a checkpoint after each 5", path, 5, 5)
    losses, model = run.start(0)
    right, reference = _trained(5)
    if run.asked != list(range(5)):
        raise NotYet(
            f"{run.call}: it asks for the batches {short(run.asked)}; 0 to 4 are expected, each once.", "steps"
        )
    if len(losses) != 5:
        raise NotYet(f"{run.call} returns {len(losses)} losses; one for each of the 5 steps is expected.")
    if losses != right or not torch.equal(_weights(model), _weights(reference)):
        k = next((k for k in range(5) if losses[k] != right[k]), None)
        where = (
            f"the loss of step {k} is {losses[k]:.8g}; {right[k]:.8g} is right"
            if k is not None
            else "the losses are right and the weights at the end are not"
        )
        raise NotYet(
            f"{run.call}, nobody stops it: {where}. In each step: zero_grad, forward, loss, backward, step; the model "
            "stays in training mode and nothing else draws random numbers.",
            "another training",
        )
    if not path.is_file():
        raise NotYet(f"{run.call}: no file at `path` afterwards.", "no checkpoint")
    again = _Run(function, f"{run.call}, called again after its end", path, 5, 5)
    losses, model = again.start(1)
    if again.asked:
        raise NotYet(
            f"{again.call}: it trains again, from step {again.asked[0]}. The checkpoint says that all 5 are done.",
            "began anew" if again.asked[0] == 0 else "steps",
        )
    if losses != right:
        _missing_losses(again.call, losses, right)


def _goes_on(function: Subject, call: str, path: Path, steps: int, every: int, kill_at: int) -> None:
    """Killed in a step: the next process goes on at the checkpoint."""
    import torch

    path.parent.mkdir()
    run = _Run(function, call, path, steps, every)
    if not run.killed(0, kill_at):
        raise NotYet(f"{call}: it never asks for step {kill_at}, or goes on after it was killed.", "steps")
    _nothing_swallowed(call, run.asked, kill_at)
    _compare(call, *run.start(1), run.asked, steps, every * (kill_at // every), torch)


def _nothing_swallowed(call: str, asked: list[int], kill_at: int) -> None:
    if asked != list(range(kill_at + 1)):
        raise NotYet(f"{call}: it asks for the batches {short(asked)}.", "steps")


def _compare(call: str, losses: list[float], model: Any, asked: list[int], steps: int, stop: int, torch: Any) -> None:
    """A run that went on at step `stop` equals the one that nobody stopped."""
    right, reference = _trained(steps)
    if asked != list(range(stop, steps)):
        begun = asked[0] if asked else None
        if begun == 0:
            raise NotYet(
                f"{call}: the next run begins with step 0. The checkpoint holds {stop} steps: look for it first.",
                "began anew",
            )
        raise NotYet(
            f"{call}: the next run does the steps {short(asked)}; after a checkpoint of {stop} steps the next one is "
            f"step {stop}. (Steps are counted from 0.)",
            "another step",
        )
    if torch.equal(_weights(model), _weights(reference)):
        if losses != right:
            _missing_losses(call, losses, right)
        return
    for name, options, why in (
        ("nothing loaded", {"weights": False, "optimizer": False, "rng": False}, "nothing was loaded but the step."),
        ("optimizer not kept", {"optimizer": False}, "the optimizer began anew. Adam's moments belong into the "
         "checkpoint: optimizer.state_dict()."),
        ("random state not kept", {"rng": False}, "dropout draws other numbers. torch.get_rng_state() belongs into the "
         "checkpoint."),
        ("weights alone", {"optimizer": False, "rng": False}, "only the weights were kept. The optimizer's state and "
         "torch.get_rng_state() belong into the checkpoint too."),
        ("weights not kept", {"weights": False}, "the weights began anew: model.load_state_dict(...)."),
    ):  # fmt: skip
        if stop and torch.equal(_weights(model), _weights(_trained(steps, stop, **options)[1])):
            raise NotYet(f"{call}: the run that goes on ends with other weights: {why}", name)
    if not stop:
        _, begun = _trained(steps, 0, weights=False, optimizer=False, rng=False)
        if torch.equal(_weights(model), _weights(begun)):
            # No checkpoint yet: a new process begins anew with its own weights, and that is right.
            return
    raise NotYet(
        f"{call}: the run that goes on ends with other weights than the one that nobody stopped. Weights, optimizer, "
        "step and torch.get_rng_state() of one and the same moment belong into the checkpoint: of the end of a step.",
        "other weights",
    )


def _missing_losses(call: str, losses: list[float], right: list[float]) -> None:
    if len(losses) < len(right):
        raise NotYet(
            f"{call}: {len(losses)} losses are returned; the run has {len(right)} steps. Those before the checkpoint "
            "belong into it.",
            "losses not kept",
        )
    raise NotYet(f"{call}: the weights are right, and the losses are {short(losses)}; {short(right)} is right.")


def _killed_while_writing(function: Subject, path: Path) -> None:
    """Killed in the middle of the second checkpoint: the first one counts."""
    import torch

    path.parent.mkdir()
    steps, every = 8, 3
    call = f"train_on over {steps} steps with a checkpoint after each {every}, killed while it writes the second one"
    run = _Run(function, call, path, steps, every)
    broken = "The file at `path` is cut then. Write to another name in its folder, and os.replace it when it is whole."
    with _cut_writes(after=1):
        cut = run.killed(0)
    if not cut:  # it does not write with torch.save: a file that is written anew in place keeps its number
        path.unlink(missing_ok=True)
        if not run.killed(0, kill_at=4) or not path.is_file():
            return
        number = os.stat(path).st_ino
        run.killed(1, kill_at=7)
        if not path.is_file() or os.stat(path).st_ino == number:
            raise NotYet(f"{call}: it writes into the old checkpoint's file, or removes that. {broken}", "not atomic")
        return
    if not path.is_file():
        raise NotYet(
            f"{call}: there is no checkpoint at all then. Do not remove the old one first: os.replace does it in one "
            "step, when the new one is whole.",
            "removed the old one first",
        )
    try:
        losses, model = run.start(1)
    except NotYet as error:
        raise NotYet(f"{call}: the next run fails. {broken} It said: {error}", "not atomic") from None
    if run.asked and run.asked[0] == 0:
        raise NotYet(f"{call}: the next run begins with step 0, and not with step {every}. {broken}", "not atomic")
    _compare(call, losses, model, run.asked, steps, every, torch)


# The learner's own record

TOPIC = "ddp"
TIMED = ("calibration", "step", "straggler")  # single messages vary by their nature; a fit goes through many
TIME_NOISE = 1.15  # how many times a bound is believed, of times that were measured in turns
SUPERLINEAR = 1.3  # strong scaling: a smaller batch may fit a cache
SWITCH_REDUCES = 2.0  # reduction in the switch halves the traffic, so that bus bandwidth passes the link's
FEWEST_SIZES = 3
SHORTEST = 1e-9  # s
HELD_OUT_NEAR = 2.0  # relative: a line through caches and network is off by so much at most
CURVE_NEAR = 1e-3  # nats; on a GPU sums come in any order
STATE_NEAR = 0.2  # shards are padded, and what is small is not sharded


def own_record(answer: Any) -> str:
    """A record of the learner's own ranks: bounds of communication, steps, samplers, gradients, memory, resumption."""
    answer, fit = with_function(answer, "fit", "fit_all_reduce")
    record = own(TOPIC, answer)
    timed = [s for s in measured(record, "time") if text(s, "role", TOPIC) in TIMED]
    timed_well(record)
    at_scale(record)
    ranks = _ranks(record)
    said = steady(record, timed, "steps")
    latency, bandwidth, error = _network(record, ranks)
    _steps(record, ranks)
    weak = _efficiencies(record, ranks)
    _samplers(record, ranks)
    _gradient_and_memory(record, ranks)
    _resumption(record)
    line = (
        f"{len(timed)} kinds of steps, {said}. On {ranks} ranks a step of the ring has a latency of "
        f"{show(latency, SECOND)} and {show(bandwidth, BYTE_PER_SECOND)}; the all-reduces that were held out are "
        f"{error:.0%} off in the middle. Weak scaling efficiency {weak:.0%}."
    )
    return line + (_learners_fit(record, ranks, fit) if fit is not None else "")


def _there(record: Record, case: str, metric: str) -> Sample | None:
    return next(iter(measured(record, metric, case=case)), None)


def _ranks(record: Record) -> int:
    """The largest number of ranks between which messages were sent."""
    known = reconciled(reconcile.counts, record)
    ranks = max((n for n in known if n > 1 and reconcile.fitted(record, n)), default=1)
    if ranks < 2:
        raise NotYet(
            f"Record {record.id} is of one rank: nothing was sent anywhere. With one GPU, measure two ranks on the "
            f"CPU: '{command(TOPIC)} --device cpu'.",
            "one rank",
        )
    return ranks


def _network(record: Record, ranks: int) -> tuple[float, float, float]:
    """Latency and bandwidth that explain the all-reduces, and the median relative error of those held out."""
    points = reconciled(reconcile.fitted, record, ranks)
    if len({s for s, _ in points}) < FEWEST_SIZES:
        raise NotYet(
            f"Record {record.id} holds all-reduces of {len(points)} sizes on {ranks} ranks; latency and bandwidth need "
            f"{FEWEST_SIZES}. Run '{command(TOPIC)}'.",
            "incomplete",
        )
    size, least = min(points, key=lambda point: point[1])
    if least < SHORTEST:
        raise NotYet(
            f"An all-reduce of {show(size, BYTE)} took {least:.3g} s. No message is as fast as that.", "damaged"
        )
    (small, fast), (large, slow) = points[0], points[-1]
    both = reconciled(reconcile.ring, record, ranks)
    if slow <= fast or both is None:
        raise NotYet(
            f"An all-reduce of {show(large, BYTE)} takes {show(slow, SECOND)}, one of {show(small, BYTE)} "
            f"{show(fast, SECOND)}. More bytes take more time: were they sent? Run '{command(TOPIC)}' again.",
            "size without effect",
        )
    device = datasheet(record)
    if device is not None and device.link_bandwidth:
        plausible(
            f"the all-reduce of {show(large, BYTE)}", reconcile.bandwidths(large, slow, ranks)[1],
            device.link_bandwidth, unit=BYTE_PER_SECOND, noise=SWITCH_REDUCES * DATA_SHEET_NOISE,
            than="one direction of the link", why="Not even reduction in the switch gives that. Was it waited for?",
            name="faster than the link",
        )  # fmt: skip
    rows = [row for row in reconciled(reconcile.points, record, ("all-reduce",)) if row.ranks == ranks]
    if not rows:
        raise NotYet(f"Record {record.id} holds no all-reduce that was held out. Run '{command(TOPIC)}'.", "incomplete")
    error = median([abs(row.error) for row in rows])
    if error > HELD_OUT_NEAR:
        raise NotYet(
            f"Latency and bandwidth of the fitted all-reduces miss those held out by {error:.0%} in the middle. Were "
            f"they measured in the same run? Run '{command(TOPIC)}' again.",
            "not explained",
        )
    return *both, error


def _steps(record: Record, ranks: int) -> None:
    """No step with communication is faster than the same one alone, and all wait for a straggler."""
    alone, together, ddp = (middle_of(record, f"{name}-{ranks}") for name in ("alone", "together", "ddp"))
    for case, seconds, least, than in (
        (f"together-{ranks}", together, alone, "one rank alone"),
        (f"ddp-{ranks}", ddp, alone, "one rank alone, which sends nothing"),
    ):
        if seconds * TIME_NOISE < least:
            raise NotYet(
                f"{case}: a step of {show(seconds, SECOND)}, and that of {than} takes {show(least, SECOND)}. It does "
                f"the same and more. Was the machine busy meanwhile? Run '{command(TOPIC)}' again.",
                "faster than alone",
            )
    once = ddp
    accumulated = _there(record, f"accumulate-{ranks}", "time")
    if accumulated is not None and median(accumulated.values) * TIME_NOISE < once:
        raise NotYet(
            f"accumulate-{ranks}: {show(median(accumulated.values), SECOND)}, and a step with one microbatch takes "
            f"{show(once, SECOND)}.",
            "faster than its part",
        )
    late = median(sample_of(record, f"straggler-{ranks}").values)
    delay = middle_of(record, f"straggler-{ranks}", "delay")
    # The late rank's own step begins after the delay. While it sleeps it leaves its share of the machine to the others.
    if late * TIME_NOISE < alone + delay:
        raise NotYet(
            f"straggler-{ranks}: one rank comes {show(delay, SECOND)} late, its own step takes {show(alone, SECOND)}, "
            f"and that of all ranks {show(late, SECOND)}. All wait for the last one: was its gradient in the sum?",
            "nobody waits",
        )
    if late > 2 * (ddp + delay):
        raise NotYet(
            f"straggler-{ranks}: {show(late, SECOND)}; step and delay are {show(ddp + delay, SECOND)}. Close other "
            f"programs and run '{command(TOPIC)}' again.",
            "slower than explained",
        )


def _efficiencies(record: Record, ranks: int) -> float:
    """Efficiencies lie between 0 and 1, and follow from the times. Returns that of weak scaling."""
    found = {}
    for scaling, noise, many in (("weak", TIME_NOISE, f"ddp-{ranks}"), ("strong", SUPERLINEAR, f"strong-{ranks}")):
        case = f"efficiency-{scaling}-{ranks}"
        value = found[scaling] = middle_of(record, case, "efficiency")
        if value > noise:
            raise NotYet(
                f"{case}: {value:.0%}. {ranks} ranks do at most {ranks} times the work of one. Was the rank alone "
                "disturbed, or on fewer threads?",
                "efficiency above one",
            )
        follows = middle_of(record, f"alone-{ranks}") / middle_of(record, many) / (1 if scaling == "weak" else ranks)
        if not close(value, follows, 0.25):
            raise NotYet(
                f"{case}: {value:.0%}, and the times of alone-{ranks} and {many} give {follows:.0%}. "
                f"Run '{command(TOPIC)}' again.",
                "efficiency of other times",
            )
    return found["weak"]


def _samplers(record: Record, ranks: int) -> None:
    """As many orders as epochs with set_epoch, one without, and the samples that fill up the ranks."""
    for case in (f"set-epoch-{ranks}", f"no-set-epoch-{ranks}"):
        sample = sample_of(record, case, "orders")
        epochs, orders = count(sample, "epochs", TOPIC), sample.values[-1]
        wanted = epochs if case.startswith("set") else 1
        if orders != wanted:
            why = (
                "With set_epoch each epoch has an order of its own."
                if case.startswith("set")
                else "Without set_epoch every epoch repeats the first one."
            )
            raise NotYet(f"{case}: {orders:g} orders in {epochs:g} epochs; {wanted:g} is right. {why}", "orders")
        repeated, samples = _there(record, case, "repeated"), count(sample, "samples", TOPIC)
        wanted = ranks * math.ceil(samples / ranks) - samples
        if repeated is not None and repeated.values[-1] != wanted:
            raise NotYet(
                f"{case}: {repeated.values[-1]:g} samples come twice in an epoch; {samples:g} on {ranks} ranks leave "
                f"{wanted:g} to fill up.",
                "repeated samples",
            )


def _gradient_and_memory(record: Record, ranks: int) -> None:
    """DDP's gradient is the whole batch's, and each ZeRO stage holds what it should."""
    from efflab.formulas import memory

    case = f"gradient-{ranks}"
    difference = max(sample_of(record, case, "difference").values)
    if not 0 <= difference <= FP32_EQUAL:
        raise NotYet(
            f"{case}: DDP's gradient differs from the whole batch's by {difference:.2g} of it. Rounding explains "
            f"{FP32_EQUAL:g} at most.",
            "another gradient",
        )
    for name, stage in (("ddp", 0), ("zero1", 1), ("fsdp", 3)):
        sample = _there(record, f"memory-{name}-{ranks}", "state_bytes")
        if sample is None:
            if stage == 0:
                sample_of(record, f"memory-{name}-{ranks}", "state_bytes")
            continue
        right = memory.training_state_bytes(
            parameters=count(sample, "parameters", TOPIC), ranks=ranks, zero_stage=stage, convention="fp32"
        )
        if not close(median(sample.values), right, STATE_NEAR):
            raise NotYet(
                f"memory-{name}-{ranks}: {show(median(sample.values), BYTE)} of weights, gradients and Adam's state on "
                f"rank 0; of this model it is {show(right, BYTE)}.",
                "memory out of bounds",
            )


def _resumption(record: Record) -> None:
    """The training that was killed went on at its checkpoint to the same losses."""
    losses = sample_of(record, "curve", "loss").values
    if len(losses) < 4 or not median(losses[-(len(losses) // 4) :]) < losses[0]:
        raise NotYet(f"curve: {len(losses)} losses that do not fall. Was a model trained?", "no training")
    difference = max(abs(v) for v in sample_of(record, "resumed", "difference").values)
    most = 0.0 if record.environment.kind == "cpu" else CURVE_NEAR
    if not difference <= most:
        raise NotYet(
            f"resumed: after the stop the losses differ by up to {difference:.3g} nats from those of the training that "
            f"nobody stopped{'' if most else ', and on a CPU they are equal to the last bit'}. Something that the next "
            "step depends on is not in the checkpoint.",
            "not the same training",
        )
    spec = record.spec.get("resume")
    repeated = _there(record, "resumed", "repeated")
    if isinstance(spec, dict) and repeated is not None:
        killed, every = (spec.get(name) for name in ("killed_at", "checkpoint_steps"))
        if all(isinstance(v, int) and not isinstance(v, bool) and 0 < v < 10**9 for v in (killed, every)):
            wanted = killed - every * (killed // every)
            if repeated.values[-1] != wanted:
                raise NotYet(
                    f"resumed: {repeated.values[-1]:g} steps were done again. Killed after {killed} steps, with a "
                    f"checkpoint after each {every}, it is {wanted}.",
                    "repeated steps",
                )


def _learners_fit(record: Record, ranks: int, fit: Any) -> str:
    """The learner's own fit explains the record's all-reduces as well as the record's."""
    function = Subject(fit, "fit_all_reduce", "sizes", "times", "ranks")
    call = f"fit_all_reduce of your record's all-reduces on {ranks} ranks"
    function.describe = lambda **_: call  # type: ignore[method-assign]
    points = reconcile.fitted(record, ranks)
    sizes, times = (list(column) for column in zip(*points, strict=True))
    theirs = function.numbers("latency", "bandwidth", sizes=sizes, times=times, ranks=ranks)

    def missed(latency: float, bandwidth: float) -> float:
        return (
            sum((_ring_time(s, ranks, latency, bandwidth) / t - 1) ** 2 for s, t in points) if bandwidth else math.inf
        )

    right = reconcile.ring(record, ranks)
    assert right is not None
    # This one keeps both numbers from being negative, so another one may miss less.
    if not missed(*theirs) <= 1.001 * missed(*right) + 1e-9:
        raise NotYet(
            f"{call} gives {theirs[0]:.4g} s and {theirs[1]:.4g} B/s. With {right[0]:.4g} s and {right[1]:.4g} B/s the "
            "squared relative errors are less. Does it pass ddp-code-3?",
            "another fit",
        )
    return " Your own fit agrees."


CHECKERS: dict[str, Callable[[Any], str | None]] = {
    f.__name__: f
    for f in (
        ring_all_reduce,
        sampler_indices,
        fit_all_reduce,
        step_time,
        train,
        one_f_one_b,
        train_on,
        own_record,
    )
}
