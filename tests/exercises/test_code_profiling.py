"""The profiling chapter's code checkers: other right solutions pass, usual mistakes are named, nothing escapes."""

from __future__ import annotations

import gzip
import heapq
import json
import math
import random
import re
import statistics
import time
from datetime import timedelta
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, RandomSampler, get_worker_info

from efflab.exercises import check, questions
from efflab.exercises.checks import profiling as checks
from tests.exercises import judging

NAMES = {
    1: "shares, speedups",
    2: "kernels, start, end",
    3: "events",
    4: "path, loop",
    5: "model, batches, optimizer",
    6: "load, compute, workers, prefetch",
    7: "dataset, batch_size, workers, seed",
    8: "row",
    9: "baseline, mended",
}

verdict, wrong = judging.code("profiling", NAMES)
STRANGE = [
    *judging.STRANGE, 0.1, {1: 2}, {"loader": "x"}, {"loader": None}, [("loader", None)], [("loader", 1.0)], [(1, 2)],
    [None, 3], ["x"] * 4, (judging.Stubborn(), 1.0), [[1]], {"a": math.nan},
]  # fmt: skip


@pytest.mark.parametrize("number", NAMES)
@pytest.mark.parametrize("value", STRANGE, ids=lambda v: type(v).__name__)
def test_whatever_comes_back_is_answered_in_words(number, value):
    result = verdict(number, lambda *_: value)
    assert result.outcome == "wrong" and result.feedback


@pytest.mark.parametrize("number", NAMES)
def test_an_exit_an_error_and_a_blank_are_answered_in_words(number):
    judging.led_astray("profiling", number, verdict)
    empty = eval(f"lambda {NAMES[number]}: None", {})
    for blank in (empty, check):
        assert check(f"profiling-code-{number}", blank).outcome in ("not counted", "wrong")
    assert "not written yet" in check(f"profiling-code-{number}", empty).feedback
    assert check(f"profiling-code-{number}", 3).outcome == "not counted"


# The notebook's own solutions, and what becomes of them when something is changed


@pytest.fixture(scope="module")
def solutions() -> dict[int, str]:
    """The source of each solution by the exercise's number, with the notebook's imports."""
    found = judging.sources("profiling")
    assert len(found) == len(NAMES)
    return dict(enumerate(found, 1))


@pytest.mark.parametrize("number", NAMES)
def test_the_notebooks_solution_is_right(number, solutions):
    result = check(f"profiling-code-{number}", judging.made(solutions[number]))
    assert result.right and result.points == 2, result.feedback


MUTATIONS = [
    (1, "1 - sum(shares) + sum", "sum", "forgot the rest"),
    (1, "return 1 / left", "return left", "time left"),
    (1, "share / speedup for", "share * speedup for", None),
    (1, "share / speedup for", "share for", None),
    (2, "sorted(kernels)", "kernels", "not sorted"),
    (2, "max(begin, covered), min(finish, end)", "max(begin, start), min(finish, end)", "counted overlaps twice"),
    (2, "max(begin, covered), min(finish, end)", "max(begin, covered), finish", "not cut to the window"),
    (2, "busy / (end - start)", "busy / end", "divided by the end"),
    (2, "busy / (end - start)", "busy", "not divided"),
    (2, "covered = finish", "covered = start", "counted overlaps twice"),
    (3, "(event[1], -event[2])", "(event[1], event[2])", "ranges that begin together"),
    (3, "(event[1], -event[2])", "event[1]", "ranges that begin together"),
    (3, "sorted(events, key=lambda event: (event[1], -event[2]))", "events", "not sorted"),
    (3, "<= begin", "< begin", "ranges that touch"),
    (3, "times.get(name, 0) + duration", "duration", None),
    (3, "times[stack[-1][0]] -= duration", "pass", "total times"),
    (3, "while stack and", "if stack and", None),
    (4, '== "user_annotation"', 'in ("user_annotation", "gpu_user_annotation")', "counted the device's ranges"),
    (4, " and inside(event, around)", "", "took both loops"),
    (4, "shares.get(name, 0) + event", "event", "last range alone"),
    (4, '.removeprefix("efflab:")', "", "prefix"),
    (4, "event is not outer and ", "", "steps"),
    (4, " / whole", "", "not divided"),
    (4, "any(inside(event, step) for step in steps)", "inside(event, around)", "steps"),
    (5, "        optimizer.zero_grad()\n", "", "kept the gradients"),
    (5, "        optimizer.step()\n", "", "no step"),
    (5, "loss.detach() * len(y)", "loss.item() * len(y)", None),
    (5, "loss_sum = loss_sum +", "print(loss)\n        loss_sum = loss_sum +", "reads in the loop"),
    (5, "loss.detach() * len(y)", "loss.detach()", "divided twice"),
    (5, "(logits.argmax(1) == y).sum()", "int((logits.argmax(1) == y).sum())", None),
    (5, "loss_sum.item() / samples, hits.item() / samples", "loss_sum.item(), hits.item()", "not divided"),
    (5, "loss_sum.item() / samples, hits.item() / samples", "loss_sum / samples, hits / samples", "tensors"),
    (5, "hits.item() / samples", "100 * hits.item() / samples", "percent"),
    (5, "cross_entropy(logits, y)", 'cross_entropy(logits, y, reduction="sum")', "gradients of the sum"),
    (6, "max(worker_free, room)", "worker_free", "no limit"),
    (6, "max(worker_free, room)", "room", "worker never busy"),
    (6, "max(ready[i], before)", "ready[i]", "does not wait for the step before"),
    (6, "prefetch * workers", "prefetch", "one queue"),
    (6, "return starts", "return ready or starts", "batches"),
    (6, "starts.append(before + seconds)", "starts.append(max(before, seconds))", "hidden without workers"),
    (6, "return starts", "return [s + compute for s in starts]", "ends"),
    (7, "shuffle=True", "shuffle=False", "not shuffled"),
    (7, "        generator=torch.Generator().manual_seed(seed),\n", "", "process's generators"),
    (7, ".manual_seed(seed)", ".manual_seed(0)", "seed without effect"),
    (7, "        worker_init_fn=seed_worker,\n", "", "one noise for all workers"),
    (7, "default_rng(torch.initial_seed())", "default_rng(seed)", "one noise for all workers"),
    (7, "default_rng(torch.initial_seed())", "default_rng([seed, worker_id])", "one noise for all epochs"),
    (7, "default_rng(torch.initial_seed())", "default_rng()", "noise without a seed"),
    (7, "num_workers=workers", "num_workers=1", "arguments"),
    (8, "86400 * int(days or 0)", "0", "forgot the days"),
    (8, " * int(cores)", "", "forgot the cores"),
    (8, "int(cores))", "int(cores)) * 100", "percent"),
    (8, "float(part)", "int(float(part))", "fraction dropped"),
    (8, "        return None\n", "        return 0\n", "job that has not run"),
    (9, "statistics.median(repeats)", "statistics.mean(repeats)", None),
    (9, "median", "mean", "mean"),
    (9, "min(baseline)", "old", "kept the noise"),
    (9, "new < min(baseline)", "True", "kept the noise"),
    (9, "reverse=True", "reverse=False", "least first"),
    (9, "1 - new / old", "old / new - 1", "share of the new step"),
    (9, "1 - new / old", "old / new", "speedup"),
    (9, "1 - new / old", "old - new", "seconds"),
]


@pytest.mark.parametrize(("number", "old", "new", "mistake"), MUTATIONS)
def test_a_changed_solution_is_refused(number, old, new, mistake, solutions):
    assert old in solutions[number]
    result = check(f"profiling-code-{number}", judging.made(solutions[number].replace(old, new)))
    assert result.outcome == "wrong", result
    assert mistake is None or result.misconception == mistake, result.feedback
    assert max(map(len, str(result).splitlines())) <= 130


# 1. Amdahl


def by_times(shares, speedups):
    """With exact fractions, and a rest that is a part as any other."""
    parts = [(Fraction(s), x) for s, x in zip(shares, speedups, strict=True)]
    parts.append((1 - sum(s for s, _ in parts), 1))
    return float(1 / sum(s / Fraction(x) if math.isfinite(x) else 0 for s, x in parts))


def test_amdahl():
    assert verdict(1, by_times)
    assert verdict(1, lambda s, x: 1 / (1 - np.sum(np.array(s) * (1 - 1 / np.array(x)))))


@pytest.mark.parametrize(
    ("mistake", "function"),
    [
        ("multiplied the speedups", lambda s, x: math.prod(by_times([a], [b]) for a, b in zip(s, x, strict=True))),
        ("averaged the speedups", lambda s, x: sum(a * b for a, b in zip(s, x, strict=True)) + 1 - sum(s)),
        ("added the savings", lambda s, x: 1 + sum(a * (1 - 1 / b) for a, b in zip(s, x, strict=True))),
        ("gave the saving", lambda s, x: sum(a * (1 - 1 / b) for a, b in zip(s, x, strict=True))),
        ("one part alone", lambda s, x: by_times(s[:1], x[:1])),
        ("kept a part that goes away", lambda s, x: by_times(s, [1 if math.isinf(b) else b for b in x])),
        ("all go away", lambda s, x: by_times(s, [math.inf for b in x]) if sum(s) < 1 else by_times(s, x)),
        ("added the gains", lambda s, x: 1 + sum(by_times([a], [b]) - 1 for a, b in zip(s, x, strict=True))),
        (None, lambda s, x: 1.3),
    ],
)
def test_amdahl_mistakes(mistake, function):
    said = wrong(1, function, mistake)
    assert "amdahl(shares=" in said


# 2. The busy share


def by_counting(kernels, start, end):
    """Up by one where a kernel begins, down by one where it ends; busy where the count is above zero."""
    changes = sorted([(b, 1) for b, _ in kernels] + [(f, -1) for _, f in kernels])
    running, busy, before = 0, 0.0, start
    for at, change in changes:
        clipped = min(max(at, start), end)
        if running > 0:
            busy += clipped - before
        before, running = clipped, running + change
    return busy / (end - start)


def on_a_grid(kernels, start, end):
    """Whole numbers only: unit by unit."""
    return sum(any(b <= t < f for b, f in kernels) for t in range(start, end)) / (end - start)


def test_busy_share():
    assert verdict(2, by_counting)
    draw = random.Random(1)
    for _ in range(200):
        kernels = [(b, b + draw.randint(1, 20)) for b in (draw.randint(-20, 60) for _ in range(draw.randint(0, 12)))]
        expected = on_a_grid(kernels, 0, 50)
        assert checks._covered(checks._cut(kernels, 0, 50)) / 50 == pytest.approx(expected)
        assert by_counting(kernels, 0, 50) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("mistake", "function"),
    [
        ("added the kernels", lambda k, s, e: sum(b - a for a, b in k) / (e - s)),
        ("idle share", lambda k, s, e: 1 - by_counting(k, s, e)),
        ("percent", lambda k, s, e: 100 * by_counting(k, s, e)),
        ("from first to last", lambda k, s, e: (max(b for _, b in k) - min(a for a, _ in k)) / (e - s) if k else 0),
        ("divided by the kernels' span", lambda k, s, e: by_counting(k, k[0][0], k[-1][1]) if k else 0),
        ("number of kernels", lambda k, s, e: len(k)),
        (None, lambda k, s, e: 0.123),
        (None, lambda k, s, e: -1.0),
    ],
)
def test_busy_share_mistakes(mistake, function):
    said = verdict(2, function)
    names = {mistake, "counted overlaps twice"} if mistake == "added the kernels" else {mistake}
    assert said.outcome == "wrong" and said.misconception in names, said.feedback


def test_a_kernel_within_another():
    def careless(kernels, start, end):
        busy, until = 0, start
        for a, b in sorted(kernels):
            a, b = max(a, start), min(b, end)
            busy += max(0, b - max(a, until)) if b > a else 0
            until = b if b > a else until
        return busy / (end - start)

    wrong(2, careless, "within another")


# 3. Self times


def innermost(events):
    """Unit by unit: the shortest range that holds it has it. For whole numbers."""
    found = {name: 0 for name, _, _ in events}
    end = max((b + d for _, b, d in events), default=0)
    for t in range(int(min((b for _, b, _ in events), default=0)), int(end)):
        holding = [(d, name) for name, b, d in events if b <= t < b + d]
        if holding:
            found[min(holding)[1]] += 1
    return found


def test_self_times():
    assert verdict(3, innermost)
    draw = random.Random(2)
    for i in range(60):
        events = checks._nested(draw, "abcd")
        assert checks._same(checks._self_times(events), innermost(events)), (i, events)
        outermost = sum(innermost(events).values())
        assert sum(checks._self_times(events).values()) == outermost
    assert max(len(checks._nested(random.Random(k), "ab")) for k in range(10)) > 10


def test_self_times_without_a_name_that_has_nothing():
    assert verdict(3, lambda events: {n: t for n, t in innermost(events).items() if t})
    assert verdict(3, lambda events: {n: np.float64(t) for n, t in innermost(events).items()})


@pytest.mark.parametrize(
    ("mistake", "function"),
    [
        ("total times", lambda e: checks._total_times(e)),
        ("took off more than once", lambda e: checks._self_times(e, descendants=True)),
        ("last range alone", lambda e: checks._self_times(e, last=True)),
        ("last range alone", lambda e: {n: d for n, _, d in e}),
        (None, lambda e: {n: 1.0 for n, _, _ in e}),
        (None, lambda e: innermost(e) | {"more": 3.0}),
        (None, lambda e: {}),
    ],
)
def test_self_times_mistakes(mistake, function):
    said = verdict(3, function)
    # Of ranges apart both are total times.
    names = {mistake, "total times"} if mistake == "last range alone" else {mistake}
    assert said.outcome == "wrong" and said.misconception in names, said.feedback


# 4. A trace


def by_steps(path, loop):
    """Step by step, with lists."""
    with gzip.open(path) as file:
        events = [e for e in json.loads(file.read())["traceEvents"] if e.get("cat") == "user_annotation"]
    by_name = {}
    for e in events:
        by_name.setdefault(e["name"], []).append((e["ts"], e["ts"] + e["dur"]))
    ((begin, end),) = by_name[f"efflab:{loop}"]
    steps = [(a, b) for a, b in by_name["efflab:step"] if begin <= a < end]
    whole = sum(b - a for a, b in steps)
    found = {}
    for name, times in by_name.items():
        short = name.partition(":")[2]
        if name.startswith("efflab:") and short not in ("step", "all-faults", "clean"):
            taken = sum(b - a for a, b in times if any(x <= a < y for x, y in steps))
            found[short] = taken / whole
    return found


def test_shares():
    assert verdict(4, by_steps)


@pytest.mark.parametrize(
    ("mistake", "how"),
    [
        ("counted the device's ranges", {"ranges": checks.BOTH, "steps_of": checks.BOTH}),
        ("counted the device's ranges", {"steps_of": checks.BOTH}),
        ("took both loops", {"loops": checks.LOOPS}),
        ("counted ranges outside the steps", {"outside": True}),
        ("shares of the ranges", {"over": "ranges"}),
        ("shares of the loop", {"over": "loop"}),
        ("time per step", {"over": "number"}),
        ("not divided", {"over": "nothing"}),
        ("mean of shares", {"over": "each step"}),
        ("last range alone", {"longest": True}),
    ],
)
def test_shares_mistakes(mistake, how):
    def careless(path, loop):
        with gzip.open(path) as file:
            return checks._shares(json.loads(file.read())["traceEvents"], loop, **how)

    wrong(4, careless, mistake)


def test_shares_of_a_trace_that_torch_wrote(tmp_path, solutions):
    """The exercise describes what torch.profiler writes: sleeps of known length, found again."""
    from torch.profiler import ProfilerActivity, profile, record_function

    with profile(activities=[ProfilerActivity.CPU]) as found, record_function("efflab:clean"):
        for _ in range(3):
            with record_function("efflab:step"):
                with record_function("efflab:loader"):
                    time.sleep(0.03)
                with record_function("efflab:forward"):
                    torch.ones(4) @ torch.ones(4)
    path = tmp_path / "trace.json.gz"
    found.export_chrome_trace(str(path))
    shares = judging.made(solutions[4])(str(path), "clean")
    assert set(shares) == {"loader", "forward"}
    assert 0.5 < shares["loader"] <= 1 and sum(shares.values()) <= 1
    assert shares == pytest.approx(by_steps(path, "clean"), rel=1e-5)


def test_shares_of_the_labs_own_trace(tmp_path, solutions):
    from efflab.experiments import profiling

    path = profiling.trace(tmp_path / "trace.json.gz", scale="smoke", device="cpu", steps=2)
    for loop in checks.LOOPS:
        shares = judging.made(solutions[4])(str(path), loop)
        assert {"loader", "forward", "backward", "tiny"} <= set(shares)
        assert all(0 < share < 1 for share in shares.values())
        assert shares == pytest.approx(by_steps(path, loop), rel=1e-3)


# 5. An epoch


def epoch(model, batches, optimizer, *, read=lambda t: t.detach(), weigh=True, last=lambda t: t.item()):
    losses, hits, sizes = [], [], []
    for x, y in batches:
        logits = model(x)
        loss = cross_entropy(logits, y)
        optimizer.zero_grad(set_to_none=False)
        loss.backward()
        optimizer.step()
        losses.append(read(loss) * (y.shape[0] if weigh else 1))
        hits.append((logits.detach().argmax(dim=-1) == y).double().sum())
        sizes.append(y.numel())
    return last(sum(losses)) / (sum(sizes) if weigh else len(sizes)), last(torch.stack(hits).sum()) / sum(sizes)


def test_epoch():
    assert verdict(5, epoch)
    assert verdict(5, lambda *a: epoch(*a, last=float))
    assert verdict(5, lambda *a: epoch(*a, last=lambda t: t.cpu().item()))
    assert verdict(5, lambda *a: epoch(*a, last=lambda t: t.tolist()))


def test_epoch_with_one_read():
    def once(model, batches, optimizer):
        n, total = 0, torch.zeros(2, dtype=torch.float64)
        for x, y in batches:
            optimizer.zero_grad()
            logits = model(x)
            loss = cross_entropy(logits, y, reduction="sum")
            (loss / len(y)).backward()
            optimizer.step()
            total += torch.stack([loss.detach(), (logits.argmax(1) == y).sum().double()])
            n += len(y)
        return tuple((total / n).tolist())

    assert verdict(5, once)


@pytest.mark.parametrize(
    ("read", "said"),
    [
        (lambda t: t.item(), ".item()"),
        (lambda t: float(t.detach()), "float(...)"),
        (lambda t: t.detach().tolist(), ".tolist()"),
        (lambda t: t.detach().numpy(), ".numpy()"),
        (lambda t: t.detach() if t.detach() > 0 else t, "bool(...)"),
        (lambda t: (f"{t.detach():.3f}", t.detach())[1], "printing a tensor"),
        (lambda t: (repr(t), t.detach())[1], "printing a tensor"),
        (lambda t: t.detach().cpu(), ".cpu()"),
        (lambda t: t.detach().to("cpu"), ".to()"),
        (lambda t: t.detach().to(torch.device("cpu")), ".to()"),
    ],
    ids=lambda x: x if isinstance(x, str) else None,
)
def test_every_read_in_the_loop_is_seen(read, said):
    feedback = wrong(5, lambda *a: epoch(*a, read=read, last=float), "reads in the loop")
    assert said in feedback and "7 batches" in feedback


@pytest.mark.parametrize(
    ("mistake", "how"),
    [
        ("mean of the batches", "mean of the batches"),
        ("after the update", "after the update"),
        ("last batch", "last batch"),
        ("kept the gradients", "kept the gradients"),
        ("zeroed before the step", "zeroed before the step"),
        ("no step", "no step"),
        ("gradients of the sum", "gradients of the sum"),
    ],
)
def test_epoch_mistakes(mistake, how, monkeypatch):
    """The reference with a mistake reads in every step; here only the mistake is looked at."""
    monkeypatch.setattr(checks, "MOST_READS", 10**6)
    wrong(5, lambda m, b, o: checks._reference(m, b, o, how), mistake)


def test_epoch_with_swapped_results():
    wrong(5, lambda *a: epoch(*a)[::-1], "swapped")


def test_the_learners_random_state_stays():
    torch.manual_seed(5)
    random.seed(5)
    np.random.seed(5)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()
    check("profiling-code-5", lambda model, batches, optimizer: epoch(model, batches, optimizer))
    check("profiling-code-7", lambda dataset, batch_size, workers, seed: DataLoader(dataset, batch_size, shuffle=True))
    verdict(7, seeded)
    assert torch.equal(torch.get_rng_state(), before[0]) and random.getstate() == before[1]
    assert all(np.array_equal(a, b) for a, b in zip(np.random.get_state(), before[2], strict=True))


# 6. A timeline


def by_events(load, compute, workers, prefetch):
    """As a program would do it: processes that act whenever they can, in the order of time."""
    if workers == 0:
        return list(np.cumsum([seconds + (compute if i else 0) for i, seconds in enumerate(load)]))
    sent = min(len(load), prefetch * workers)
    waiting = {w: [i for i in range(sent) if i % workers == w] for w in range(workers)}
    there, starts, idle, agenda = set(), [], set(range(workers)), []
    now, device_free = 0.0, True
    heapq.heappush(agenda, (0.0, "begin", -1))
    while agenda:
        now, what, which = heapq.heappop(agenda)
        if what == "loaded":
            there.add(which)
            idle.add(which % workers)
        elif what == "step":
            device_free = True
        acted = True
        while acted:
            acted = False
            for w in sorted(idle):
                if waiting[w]:
                    i = waiting[w].pop(0)
                    idle.discard(w)
                    heapq.heappush(agenda, (now + load[i], "loaded", i))
                    acted = True
            if device_free and len(starts) in there:
                heapq.heappush(agenda, (now + compute, "step", len(starts)))
                starts.append(now)
                device_free = False
                if sent < len(load):
                    waiting[sent % workers].append(sent)
                    sent += 1
                acted = True
    return starts


def test_timeline():
    assert verdict(6, by_events)
    assert verdict(6, lambda *a: np.array(by_events(*a)))
    draw = random.Random(4)
    for _ in range(100):
        load = [draw.choice([0.5, 1.0, 3.0, 10.0]) for _ in range(draw.randint(0, 40))]
        case = (load, draw.choice([0.1, 1.0, 4.0]), draw.randint(0, 5), draw.randint(1, 4))
        assert checks._alike(checks._starts(*case), by_events(*case)), case


def test_a_timeline_in_the_long_run_is_the_formulas():
    """Even batches: a step then takes what profiling.loader_step_time says."""
    from efflab.formulas import profiling

    for load, compute, workers in ((3.0, 2.0, 0), (3.0, 2.0, 1), (3.0, 2.0, 2), (9.0, 2.0, 3), (9.0, 2.0, 5)):
        starts = by_events([load] * 400, compute, workers, 2)
        rate = (starts[-1] - starts[199]) / 200
        expected = profiling.loader_step_time(compute_time=compute, load_time=load, workers=workers)
        assert rate == pytest.approx(expected, rel=0.02), (load, compute, workers)


@pytest.mark.parametrize("mistake", [name for name, _ in checks.TIMELINE_MISTAKES])
def test_timeline_mistakes(mistake):
    wrong(6, lambda *a: checks._starts(*a, mistake), mistake)


def test_timeline_shapes():
    assert "gives 1 numbers for" in verdict(6, lambda *a: [0.0]).feedback
    assert "a list" in verdict(6, lambda *a: 3.0).feedback


# 7. A seeded loader


def seed_own(worker):
    get_worker_info().dataset.rng = np.random.default_rng(np.random.SeedSequence(torch.initial_seed()))


def seeded(dataset, batch_size, workers, seed, *, init=seed_own, own=True, **options):
    generator = torch.Generator().manual_seed(seed) if own else None
    return DataLoader(
        dataset,
        batch_size,
        num_workers=workers,
        generator=generator,
        worker_init_fn=init,
        **{"shuffle": True} | options,
    )


def with_a_sampler(dataset, batch_size, workers, seed):
    order = RandomSampler(dataset, generator=torch.Generator().manual_seed(seed))
    return seeded(dataset, batch_size, workers, seed + 1, shuffle=False, sampler=order)


def test_loader():
    assert verdict(7, seeded)
    assert verdict(7, with_a_sampler)
    assert verdict(7, lambda *a: seeded(*a, persistent_workers=True))


def same_in_all(worker):
    random.seed(3)
    np.random.seed(3)
    torch.manual_seed(3)
    seed_own(worker)


def globally(dataset, batch_size, workers, seed):
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)
    return seeded(dataset, batch_size, workers, seed, own=False)


def of_the_order_alone(dataset, batch_size, workers, seed):
    order = RandomSampler(dataset, generator=torch.Generator().manual_seed(seed))
    return seeded(dataset, batch_size, workers, seed, own=False, shuffle=False, sampler=order)


def of_the_noise_alone(dataset, batch_size, workers, seed):
    order = np.random.default_rng().permutation(len(dataset)).tolist()
    return seeded(dataset, batch_size, workers, seed, shuffle=False, sampler=order)


@pytest.mark.parametrize(
    ("mistake", "function"),
    [
        ("process's generators", globally),
        ("process's generators", of_the_order_alone),
        ("process's generators", lambda d, b, w, s: DataLoader(d, b, num_workers=w, shuffle=True)),
        ("one noise for all workers", lambda *a: seeded(*a, init=None)),
        ("one noise for all workers", lambda *a: seeded(*a, init=same_in_all)),
        ("not shuffled", lambda *a: seeded(*a, shuffle=False)),
        ("one order for all epochs", of_the_noise_alone),
        ("seed without effect", lambda d, b, w, s: seeded(d, b, w, 0)),
        ("arguments", lambda d, b, w, s: seeded(d, b + 1, w, s)),
        ("arguments", lambda d, b, w, s: seeded(checks.Noisy(24), b, w, s)),
        ("samples", lambda *a: seeded(*a, drop_last=True, sampler=range(20), shuffle=None)),
        (None, lambda *a: list(range(3))),
    ],
)
def test_loader_mistakes(mistake, function):
    wrong(7, function, mistake)


def test_an_order_without_a_seed():
    class Anyhow:
        """Another order each time, from the clock of the machine."""

        def __iter__(self):
            return iter(np.random.default_rng().permutation(24).tolist())

        def __len__(self):
            return 24

    wrong(7, lambda *a: seeded(*a, shuffle=False, sampler=Anyhow()), "order without a seed")


def test_a_worker_that_fails_is_answered_in_words():
    def bad(worker):
        raise ValueError("no such worker")

    said = wrong(7, lambda *a: seeded(*a, init=bad), None)
    assert "fails" in said and "ValueError" in said


@pytest.mark.filterwarnings("ignore:This DataLoader will create 4 worker processes")
def test_what_the_question_on_a_datasets_generator_says():
    """profiling-23: with four workers each draw of the dataset's own generator comes four times."""
    for epoch_number in range(2):
        loader = DataLoader(checks.Noisy(40), 5, num_workers=4, multiprocessing_context="fork")
        samples = torch.cat(list(loader))
        draws = [float(v) for v in samples[:, 4]]
        assert len(set(draws)) == 10 and all(draws.count(v) == 4 for v in draws), epoch_number
        assert len({float(v) for v in samples[:, 2]}) == 40  # numpy.random itself is seeded in each worker


# 8. sacct


def with_timedelta(row):
    pattern = r"(?:(?:(\d+)-)?(\d+):)?(\d+):(\d+(?:\.\d+)?)"

    def seconds(text):
        d, h, m, s = (float(g or 0) for g in re.fullmatch(pattern, text).groups())
        return timedelta(days=d, hours=h, minutes=m, seconds=s).total_seconds()

    elapsed, used = (seconds(text) for text in row.split("|")[1:3])
    return used / elapsed / int(row.rsplit("|")[-1]) if elapsed else None


def test_sacct():
    assert verdict(8, with_timedelta)
    assert verdict(8, lambda row: None if with_timedelta(row) is None else np.float64(with_timedelta(row)))
    for text, seconds in (("1-02:03:04", 93784), ("02:41.503", 161.503), ("00:00:00", 0), ("10-00:00:00", 864000)):
        assert checks._seconds(text) == pytest.approx(seconds)
        assert timedelta(seconds=checks._seconds(text)).total_seconds() == pytest.approx(seconds)


@pytest.mark.parametrize("seconds", [0.012, 59.999, 61, 3599, 3600, 86399, 86400, 1234567])
@pytest.mark.parametrize("hours", [True, False])
def test_times_are_written_and_read(seconds, hours):
    assert checks._seconds(checks._as_slurm(seconds, hours=hours, digits=3)) == pytest.approx(seconds)


def read_as(how):
    def read(row):
        _, elapsed, used, cores = row.split("|")
        if checks._seconds(elapsed) == 0:
            return None
        return checks._seconds(used, how) / (checks._seconds(elapsed, how) * int(cores))

    return read


@pytest.mark.parametrize(
    ("mistake", "function"),
    [
        ("forgot the days", read_as("forgot the days")),
        ("days as a digit of the clock", read_as("days as a digit of the clock")),
        ("hours first", read_as("hours first")),
        ("fraction dropped", read_as("fraction dropped")),
        ("forgot the elapsed time", lambda r: None if "|00:00:00|0" in r else read_as("right")(r) * elapsed_of(r)),
        ("turned over", lambda r: None if with_timedelta(r) is None else 1 / (with_timedelta(r) or 1)),
        ("idle share", lambda r: None if with_timedelta(r) is None else 1 - with_timedelta(r)),
        ("job that has not run", lambda r: with_timedelta(r) or 0.0),
        (None, lambda r: None),
        (None, lambda r: 0.5),
    ],
)
def test_sacct_mistakes(mistake, function):
    wrong(8, function, mistake)


def elapsed_of(row):
    return checks._seconds(row.split("|")[1])


def test_a_division_by_zero_is_answered_in_words():
    def careless(row):
        _, elapsed, used, cores = row.split("|")
        return checks._seconds(used) / (checks._seconds(elapsed) * int(cores))

    said = wrong(8, careless, None)
    assert "ZeroDivisionError" in said and "00:00:00" in said


# 9. An ablation


def with_numpy(baseline, mended):
    old, least = np.median(baseline), np.min(baseline)
    kept = {name: np.median(repeats) for name, repeats in mended.items() if np.median(repeats) < least}
    return [(name, (old - kept[name]) / old) for name in sorted(kept, key=kept.get)]


def test_ablation():
    assert verdict(9, with_numpy)
    assert verdict(9, lambda *a: tuple([name, float(saving)] for name, saving in with_numpy(*a)))


@pytest.mark.parametrize(("mistake", "how"), [(name, how) for name, how, _ in checks.ABLATION_MISTAKES], ids=str)
def test_ablation_mistakes(mistake, how):
    wrong(9, lambda b, m: checks._table(b, m, **how), mistake)


def test_ablation_shapes():
    wrong(9, lambda b, m: dict(with_numpy(b, m)), "a dictionary")
    assert "no name of a mend" in verdict(9, lambda b, m: [(v, n) for n, v in with_numpy(b, m)]).feedback
    assert statistics.median([1, 2, 3, 10]) == 2.5  # what "upper of two" is told from


# The questions


def test_what_the_texts_say_beside_the_answers():
    """Numbers in texts and feedback of the bank that no answer holds, each computed again."""
    from efflab.catalog import accelerator

    bank = questions.bank("profiling")

    def said(name):
        q = bank[name]
        parts = [q.text, getattr(q, "right", ""), *(o.text + " " + o.feedback for o in getattr(q, "options", ()))]
        return " ".join(" ".join(parts).split())

    assert pytest.approx(1.66, abs=0.005) == 1 / (0.6 + 0.4 / 100) and "1.66" in said("profiling-1")
    savings = {"forward": 0.45 * (1 - 1 / 1.25), "loader": 0.3 * 0.75, "logging": 0.15, "optimizer": 0.1 * 0.95}
    assert max(savings, key=savings.get) == "loader"
    assert [round(100 * v, 1) for v in savings.values()] == [9.0, 22.5, 15.0, 9.5]
    assert by_times([0.35, 0.25], [math.inf, 5]) == pytest.approx(1 / 0.45)
    alone = by_times([0.35], [math.inf]), by_times([0.25], [5])
    assert [round(a, 2) for a in alone] == [1.54, 1.25] and round(math.prod(alone), 2) == 1.92
    repeats = [4100, 82, 81, 82, 95, 81]
    assert round(statistics.mean(repeats)) == 754 and round(statistics.mean(repeats[1:])) == 84
    assert statistics.median(repeats[1:]) == 82 and min(repeats) == 81
    assert 26 / 130 == 0.2 and pytest.approx(0.3) == 39 / 130
    assert 180 / 4 == 45 and 180 / 3 == 60 > 50 and math.ceil(100 / 30) == 4
    a100 = accelerator("A100 SXM 40GB")
    assert a100.peak("bf16") == pytest.approx(312e12) and a100.peak_sparse["bf16"] == pytest.approx(624e12)
    assert a100.peak("fp32") == pytest.approx(19.5e12)
    assert pytest.approx(135_600, rel=5e-4) == 100 * 1024 / 0.755
    assert pytest.approx(116e12, rel=0.006) == 135_600 * 0.859e9
    assert 1 / bank["profiling-26"].value == pytest.approx(10.5, abs=0.05)
    assert pytest.approx(1, abs=0.01) == 16 * 0.063 and pytest.approx(2.4) == 0.15 * 16


def test_the_operations_per_token_are_the_published_ones():
    """profiling-19: the row of nanoGPT's notebook."""
    from efflab import catalog

    row = next(p for p in catalog.published() if p.id == "nanogpt-palm-flops")
    assert float(row.printed.split()[0].replace(",", "")) == pytest.approx(0.859e9, rel=1e-3)
