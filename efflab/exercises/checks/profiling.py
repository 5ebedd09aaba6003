"""Checkers of the profiling chapter's code and measurement exercises."""

from __future__ import annotations

import copy
import gzip
import heapq
import json
import math
import multiprocessing
import random
import statistics
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from efflab.exercises.checks import (
    FLOAT32,
    NotCounted,
    NotWritten,
    NotYet,
    Subject,
    a_number,
    close,
    recognise,
    short,
    written,
)
from efflab.exercises.checks.records import (
    FEWEST_REPEATS,
    at_scale,
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
    within_datasheet,
)
from efflab.reconcile import profiling as reconcile
from efflab.records import Record, iqr, median
from efflab.units import FLOP_PER_SECOND, SECOND, show


def amdahl(answer: Any) -> None:
    """Speedup of a step of which several parts become faster."""
    function = Subject(answer, "amdahl", "shares", "speedups")
    cases: list[tuple[list[float], list[float]]] = [
        ([0.4], [10.0]), ([0.3], [math.inf]), ([0.5], [0.5]), ([], []), ([1.0], [4.0]), ([0.25], [1.0]),
        ([0.35, 0.25], [math.inf, 5.0]), ([0.2, 0.2, 0.2, 0.2, 0.2], [2.0, 3.0, 4.0, 5.0, 6.0]),
    ]  # fmt: skip
    draw = random.Random(31)
    for parts in (2, 2, 3, 3, 4, 5, 8):
        cuts = sorted(draw.random() for _ in range(parts))
        shares = [b - a for a, b in zip([0.0, *cuts], cuts, strict=False)]
        cases.append((shares, [draw.choice([0.8, 1.0, 1.5, 4.0, 20.0, math.inf]) for _ in shares]))
    for shares, speedups in cases:
        arguments = {"shares": list(shares), "speedups": list(speedups)}
        got = function.number(**arguments)
        pairs = list(zip(shares, speedups, strict=True))
        parts_left = sum(s / x for s, x in pairs)
        left = 1 - sum(shares) + parts_left
        right = 1 / left
        if close(got, right):
            continue
        said = written(function.describe(shares=shares, speedups=speedups), got)
        alone = [1 / (1 - s + s / x) for s, x in pairs]
        finite = [x for x in speedups if math.isfinite(x)]
        mistakes = [
            ("time left", left, "the time that is left. How many times faster is 1 over it."),
            ("multiplied the speedups", math.prod(alone), "the product of what each mend gives alone. After one mend "
             "the other parts have larger shares: add up the times that are left."),
            ("forgot the rest", 1 / parts_left if parts_left else math.inf, "the speedup of the mended parts alone. "
             "The rest of the step, 1 − sum(shares), takes as long as before."),
            ("averaged the speedups", 1 - sum(shares) + sum(s * x for s, x in pairs), "the mean of the speedups, "
             "weighted by the shares. Times add up, speedups do not: add share / speedup."),
            ("added the savings", 1 + sum(s * (1 - 1 / x) for s, x in pairs), "1 and the saved share of the time. "
             "With half of the time saved a step is twice as fast, not 1.5 times."),
            ("gave the saving", 1 - left, "the share of the time that is saved. How many times faster is 1 over the "
             "time that is left."),
            ("added the gains", 1 + sum(a - 1 for a in alone), "the sum of the gains that each mend gives alone."),
            ("kept a part that goes away", 1 / (left + sum(s for s, x in pairs if math.isinf(x))), "where a part with "
             "an infinite speedup is kept. It takes no time: share / math.inf is 0."),
            ("multiplied the parts' speedups", math.prod(finite) if finite else math.inf, "the product of the "
             "parts' own speedups."),
            ("all go away", 1 / (1 - sum(shares)) if sum(shares) < 1 else math.inf, "the limit, with all parts gone. "
             "share / speedup is left of each."),
            *(("one part alone", a, "the speedup from one of the parts alone. Mend all of them.") for a in alone),
        ]  # fmt: skip
        recognise(said, got, ((n, v, w) for n, v, w in mistakes if not close(v, right)))
        raise NotYet(f"{said}. By hand: {left:.6g} of the time is left, so {right:.6g}.")


def _cut(kernels: Iterable[tuple[float, float]], start: float, end: float) -> list[tuple[float, float]]:
    """Each kernel's part inside a window, those outside left out."""
    inside = ((max(a, start), min(b, end)) for a, b in kernels)
    return [(a, b) for a, b in inside if b > a]


def _covered(kernels: Iterable[tuple[float, float]], *, ordered: bool = True, latest: bool = True) -> float:
    """The length of the union of intervals, with a mistake for each switch."""
    total, until = 0.0, -math.inf
    for a, b in sorted(kernels) if ordered else kernels:
        total += max(0.0, b - max(a, until))
        until = max(until, b) if latest else b  # if not: the last interval's end, which may be an earlier one
    return total


def busy_share(answer: Any) -> None:
    """Share of a window in which at least one interval lies."""
    function = Subject(answer, "busy_share", "kernels", "start", "end")
    cases: dict[str, tuple[list[tuple[float, float]], float, float]] = {
        "two kernels apart": ([(1, 3), (5, 6)], 0, 10),
        "no kernel": ([], 0, 10),
        "one kernel that fills the window": ([(0, 10)], 0, 10),
        "a window that does not begin at 0": ([(102, 104), (106, 109)], 100, 110),
        "kernels in another order": ([(7, 9), (1, 2), (4, 5)], 0, 10),
        "kernels that touch": ([(1, 3), (3, 5)], 0, 10),
        "two streams that overlap": ([(1, 5), (3, 7)], 0, 10),
        "a kernel within another": ([(1, 8), (2, 3), (4, 5)], 0, 10),
        "kernels that stick out of the window": ([(-3, 2), (8, 14)], 0, 10),
        "kernels before and after the window": ([(-5, -2), (4, 6), (12, 15)], 0, 10),
        "the same kernel on two streams": ([(2, 6), (2, 6)], 0, 10),
    }
    draw = random.Random(32)
    for i in range(12):
        start = draw.choice([0, 1000.5, -20])
        begins = [start + draw.uniform(-20, 120) for _ in range(draw.randint(3, 25))]
        cases[f"kernels drawn at random, {i + 1}"] = (
            [(a, a + draw.expovariate(0.15)) for a in begins],
            start,
            start + 100,
        )
    for what, (kernels, start, end) in cases.items():
        call = f"busy_share({short(kernels)}, {short(start)}, {short(end)})"
        function.describe = lambda **_: call  # type: ignore[method-assign]  # noqa: B023
        got = function.number(kernels=list(kernels), start=start, end=end)
        window, inside = end - start, _cut(kernels, start, end)
        right = _covered(inside) / window
        if math.isclose(got, right, rel_tol=1e-9, abs_tol=1e-9):
            continue
        said = f"{written(call, got)} ({what})"
        if got < 0 or (got > 1 and not kernels):
            raise NotYet(f"{said}. A share lies between 0 and 1.")
        span = max((b for _, b in inside), default=0.0) - min((a for a, _ in inside), default=0.0)
        whole = max((b for _, b in kernels), default=0.0) - min((a for a, _ in kernels), default=0.0)
        mistakes = [
            ("counted overlaps twice", sum(b - a for a, b in inside) / window, "the sum of all kernels. While two "
             "run at once the device is busy once."),
            *(("not cut to the window", _covered(_cut(kernels, a, b)) / window, "where time outside the window counts. "
               "Cut each kernel to it, at both ends.")
              for a, b in ((-math.inf, math.inf), (start, math.inf), (-math.inf, end))),
            ("added the kernels", sum(b - a for a, b in kernels) / window, "the sum of all kernels over the window. "
             "Cut each one to the window, and count what overlaps once."),
            *(("within another", _covered(some, latest=False) / window, "where a short kernel within a long one ends "
               "the long one. Remember the latest end so far, not the end of the last kernel.")
              for some in (inside, kernels)),
            *(("not sorted", _covered(inside, ordered=False, latest=latest) / window, "which depends on the order of "
               "the list. Sort the kernels by their beginning first.") for latest in (True, False)),
            ("from first to last", span / window, "the time from the first kernel's beginning to the last one's end. "
             "The gaps between are idle."),
            ("from first to last", whole / window, "the time from the first kernel's beginning to the last one's end. "
             "The gaps between are idle."),
            ("idle share", 1 - right, "the idle share. Take the busy one."),
            ("not divided", right * window, "a time. Divide it by end − start."),
            ("divided by the end", right * window / end if end else -1.0, "where the time is divided by end. The "
             "window is end − start long."),
            ("divided by the kernels' span", _covered(inside) / span if span else -1.0, "the share of the time from "
             "the first kernel to the last. The window begins at start and ends at end."),
            ("percent", 100 * right, "a percentage. Return a share from 0 to 1."),
            ("number of kernels", len(kernels), "the number of kernels."),
        ]  # fmt: skip
        recognise(said, got, ((n, v, w) for n, v, w in mistakes if v >= 0 and not close(v, right)), 1e-9)
        raise NotYet(
            f"{said}. By hand: a kernel runs in {_covered(inside):.6g} of {window:.6g}, a share of {right:.6g}."
        )


Event = tuple[str, float, float]


def _self_times(
    events: Iterable[Event],
    *,
    ties: bool = True,
    ordered: bool = True,
    touching: bool = True,
    descendants: bool = False,
    last: bool = False,
) -> dict[str, float]:
    """Self times of nested ranges, with a mistake for each switch."""
    events = list(events)
    if ordered:
        events.sort(key=lambda e: (e[1], -e[2]) if ties else e[1])
    ranges: list[list[Any]] = []
    stack: list[list[Any]] = []
    for name, begin, duration in events:
        while stack and (stack[-1][1] <= begin if touching else stack[-1][1] < begin):
            stack.pop()
        for outer in stack if descendants else stack[-1:]:
            outer[2] -= duration
        stack.append([name, begin + duration, duration])
        ranges.append(stack[-1])
    found: dict[str, float] = {}
    for name, _, self_time in ranges:
        found[name] = self_time if last else found.get(name, 0.0) + self_time
    return found


def _total_times(events: Iterable[Event]) -> dict[str, float]:
    found: dict[str, float] = {}
    for name, _, duration in events:
        found[name] = found.get(name, 0.0) + duration
    return found


def _nested(draw: random.Random, names: str) -> list[Event]:
    """Ranges as calls make them, in any order: whole microseconds, siblings that touch, calls of the same name."""
    events: list[Event] = []

    def grow(begin: int, end: int, depth: int) -> None:
        if end - begin < 2 or depth > 4:
            return
        at = begin
        while at < end and draw.random() < 0.8:
            at = draw.choice([at, draw.randint(at, end)])
            until = draw.randint(at, end)
            if until - at < 1:
                break
            if (at, until) != (begin, end):  # two ranges are never the same
                events.append((draw.choice(names), at, until - at))
                grow(at, until, depth + 1)
            at = until

    grow(0, 400, 0)
    draw.shuffle(events)
    return events


def self_times(answer: Any) -> None:
    """Time that each name of nested ranges has for itself."""
    function = Subject(answer, "self_times", "events")
    cases: dict[str, list[Event]] = {
        "two ranges apart": [("a", 0, 5), ("b", 10, 3)],
        "a call": [("linear", 0, 50), ("addmm", 5, 42)],
        "two calls": [("linear", 0, 50), ("t", 1, 5), ("addmm", 7, 42)],
        "three levels": [("step", 0, 100), ("forward", 10, 60), ("linear", 20, 30), ("backward", 75, 20)],
        "repeated names": [("a", 0, 10), ("b", 2, 3), ("a", 20, 10), ("b", 25, 5), ("b", 40, 1)],
        "an inner range before its outer one": [("inner", 5, 10), ("outer", 0, 30)],
        "ranges that touch": [("outer", 0, 30), ("a", 5, 10), ("b", 15, 10)],
        "ranges that begin together": [("inner", 0, 10), ("outer", 0, 30)],
        "a range that calls itself": [("f", 0, 20), ("f", 5, 10), ("f", 7, 3)],
        "a range filled by another": [("outer", 0, 10), ("a", 0, 4), ("b", 4, 6)],
        "no range": [],
    }
    draw = random.Random(33)
    for i in range(12):
        cases[f"calls drawn at random, {i + 1}"] = _nested(draw, "abcdef"[: draw.randint(2, 6)])
    for what, events in cases.items():
        listed = short(events)
        function.describe = lambda **_: f"self_times({listed})"  # type: ignore[method-assign]  # noqa: B023
        got = _numbers_by_name(function, events=list(events))
        right = _self_times(events)
        if _same(got, right):
            continue
        said = f"self_times({listed}) ({what})"
        for name, other, why in (
            ("total times", _total_times(events), "These are total times. Take off what lies directly inside a range."),
            (
                "took off more than once",
                _self_times(events, descendants=True),
                "A range within a range within a range was taken off twice. Only those directly inside count: the "
                "others are in these already.",
            ),
            (
                "last range alone",
                _self_times(events, last=True),
                "A name that comes again overwrote what was there. Sum over all ranges of a name.",
            ),
            (
                "last range alone",
                {n: d for n, _, d in events},
                "A name that comes again overwrote what was there, and these are total times.",
            ),
            (
                "ranges that begin together",
                _self_times(events, ties=False),
                "Of two ranges that begin together the longer one is the outer one: sort it first.",
            ),
            ("not sorted", _self_times(events, ordered=False), "The ranges come in any order: sort them by beginning."),
            (
                "ranges that touch",
                _self_times(events, touching=False),
                "A range that begins where another one ends does not lie inside it.",
            ),
        ):
            if _same(got, other) and not _same(other, right):
                raise NotYet(f"{said}: {_difference(got, right)} {why}", name)
        raise NotYet(f"{said}: {_difference(got, right)}")


def _numbers_by_name(function: Subject, **arguments: Any) -> dict[str, float]:
    """Call the learner's function and insist on a dictionary from text to number."""
    value = function(**arguments)
    call = function.describe(**arguments)
    if value is None:
        raise NotYet(f"{call} returns nothing. Is the `return` missing?")
    if not isinstance(value, dict):
        raise NotYet(f"{written(call, value)}; a dictionary is expected.")
    found = {}
    for name, item in value.items():
        if not isinstance(name, str):
            raise NotYet(f"{call} has the key {short(name)}; names are texts.")
        found[name] = a_number(f"{call} has {short(item)} for {short(name)}", item)
    return found


# A trace's times are microseconds since the machine started: a difference of two has an error of a nanosecond.
SAME = 1e-6


def _same(a: dict[str, float], b: dict[str, float]) -> bool:
    """Equal by name; a name that is missing is 0."""
    return all(math.isclose(a.get(n, 0.0), b.get(n, 0.0), rel_tol=SAME, abs_tol=SAME) for n in {*a, *b})


def _difference(got: dict[str, float], right: dict[str, float]) -> str:
    """The first name that is wrong, in words."""
    unknown = [n for n in got if n not in right and got[n]]
    if unknown:
        return (
            f"{short(unknown[0])} is no name that belongs into the result ({', '.join(map(repr, right)) or 'empty'})."
        )
    name = next(n for n in right if not math.isclose(got.get(n, 0.0), right[n], rel_tol=SAME, abs_tol=SAME))
    if name not in got:
        return f"{name!r} is missing; it has {right[name]:.6g}."
    return f"{name!r} has {got[name]:.6g}, and {right[name]:.6g} is right."


PREFIX = "efflab:"
LOOPS = ("all-faults", "clean")


def _trace(draw: random.Random, *, device: bool, outside: bool, others: bool, steps: int = 3) -> list[dict[str, Any]]:
    """Events as the lab's trace has them: times in microseconds, two loops, steps of unequal length."""
    events: list[dict[str, Any]] = []

    def add(name: str, ts: float, dur: float, category: str = "user_annotation", tid: int = 7) -> None:
        events.append({"ph": "X", "cat": category, "name": name, "pid": 7, "tid": tid, "ts": ts, "dur": dur})

    at = 4.2e12 + draw.randint(0, 10**6)
    whole = at
    for loop in LOOPS:
        if outside:
            add(f"{PREFIX}loader", at, 9000.0)
            at += 9100
        around = at
        if outside:
            add(f"{PREFIX}forward", at + 20, 7000.0)
            at += 7100
        for _ in range(steps):
            at += 4
            begin = at
            for part in ("loader", "copies", "forward", "copies", "backward", "tiny"):
                duration = float(draw.randint(100, 5000))
                add(f"{PREFIX}{part}", at + 5, duration)
                if part == "forward":
                    add(f"{PREFIX}tiny", at + 40, duration / 8)
                if device:
                    add(f"{PREFIX}{part}", at + 300, float(draw.randint(100, 6000)), "gpu_user_annotation", 20)
                if others:
                    add("aten::mm", at + 8, duration / 2, "cpu_op")
                at += duration + draw.randint(10, 400)
            if others:
                add("Optimizer.step#AdamW.step", begin + 20, 50.0)
            add(f"{PREFIX}step", begin, at - begin)
            if device:
                add(f"{PREFIX}step", begin + 200, at - begin - 500, "gpu_user_annotation", 20)
        add(f"{PREFIX}{loop}", around, at - around)
        if device:
            add(f"{PREFIX}{loop}", around + 200, at - around - 300, "gpu_user_annotation", 20)
        at += draw.randint(50, 900)
    if others:
        add("ProfilerStep#1", whole - 50, at - whole + 60)
        events += [
            {"ph": "M", "name": "process_name", "pid": 7, "tid": 0, "ts": 0, "args": {"name": "python"}},
            {"ph": "i", "s": "g", "name": "Iteration Start: PyTorch Profiler", "pid": "Traces", "tid": "x", "ts": at},
            {"ph": "f", "id": 3, "pid": 7, "tid": 7, "cat": "fwdbwd", "name": "fwdbwd", "bp": "e"},
            {"ph": "X", "cat": "Trace", "name": "PyTorch Profiler (0)", "pid": "Spans", "tid": "x", "ts": whole,
             "dur": 1e6},
        ]  # fmt: skip
        draw.shuffle(events)
    return events


def _begins_inside(event: dict[str, Any], outer: dict[str, Any]) -> bool:
    return event is not outer and outer["ts"] <= event["ts"] < outer["ts"] + outer["dur"]


HOST, BOTH = ("user_annotation",), ("user_annotation", "gpu_user_annotation")


def _shares(
    events: list[dict[str, Any]],
    loop: str,
    *,
    ranges: tuple[str, ...] = HOST,
    steps_of: tuple[str, ...] = HOST,
    outside: bool = False,
    loops: tuple[str, ...] = (),
    over: str = "steps",
    longest: bool = False,
) -> dict[str, float]:
    """Shares of a loop's named ranges, with a mistake for each argument."""
    around = [e for e in events if e["name"] in [PREFIX + name for name in loops or (loop,)] and e.get("cat") in HOST]
    steps = [
        e
        for e in events
        if e["name"] == f"{PREFIX}step" and e.get("cat") in steps_of and any(_begins_inside(e, a) for a in around)
    ]
    known = {PREFIX + name for name in ("step", *LOOPS)}
    inside: dict[str, list[float]] = {}
    by_step: dict[str, float] = {}
    for event in events:
        if not event["name"].startswith(PREFIX) or event["name"] in known or event.get("cat") not in ranges:
            continue
        step = next((s for s in steps if _begins_inside(event, s)), None)
        if step is None and not (outside and any(_begins_inside(event, a) for a in around)):
            continue
        name = event["name"].removeprefix(PREFIX)
        inside.setdefault(name, []).append(event["dur"])
        by_step[name] = by_step.get(name, 0.0) + (event["dur"] / step["dur"] if step else 0.0)
    whole = {
        "steps": sum(s["dur"] for s in steps),
        "ranges": sum(sum(durations) for durations in inside.values()),
        "loop": sum(a["dur"] for a in around),
        "number": float(len(steps)),
        "one step": steps[-1]["dur"] if steps else 1.0,
        "nothing": 1.0,
    }
    if over == "each step":
        return {name: share / len(steps) for name, share in by_step.items()}
    taken = {name: durations[-1] if longest else sum(durations) for name, durations in inside.items()}
    return {name: duration / whole[over] for name, duration in taken.items()}


TRACE_MISTAKES: tuple[tuple[str, tuple[dict[str, Any], ...], str], ...] = (
    (
        "took both loops",
        ({"loops": LOOPS}, {"loops": LOOPS, "outside": True}),
        "Steps of both loops count here. Take those that begin inside the range named after `loop`.",
    ),
    (
        "counted ranges outside the steps",
        ({"outside": True},),
        "Ranges that begin in no step count here. They are in no step's time.",
    ),
    (
        "shares of the ranges",
        ({"over": "ranges"},),
        "These are shares of the ranges' own sum. What no range covers is part of the step too, and some ranges lie "
        "inside others.",
    ),
    (
        "shares of the loop",
        ({"over": "loop"}, {"over": "loop", "outside": True}),
        "These are shares of the whole loop. Divide by the sum of its steps.",
    ),
    (
        "not divided",
        ({"over": "nothing"}, {"over": "nothing", "outside": True}),
        "These are microseconds. Divide by the sum of the steps' durations.",
    ),
    (
        "time per step",
        ({"over": "number"}, {"over": "number", "outside": True}),
        "These are microseconds per step. Divide by the steps' durations, not by their number.",
    ),
    ("over one step", ({"over": "one step"},), "The time of all steps is divided by that of one."),
    (
        "mean of shares",
        ({"over": "each step"},),
        "This is the mean of the shares in each step. Steps differ in length: divide the sums.",
    ),
    ("last range alone", ({"longest": True},), "Only the last range of each name counts here. Add them up."),
    (
        "counted the device's ranges",
        (
            {"ranges": BOTH},
            {"ranges": BOTH, "steps_of": BOTH},
            {"ranges": BOTH, "outside": True},
            {"steps_of": BOTH},
            {"ranges": BOTH, "loops": LOOPS},
            {"ranges": BOTH, "steps_of": BOTH, "loops": LOOPS},
        ),
        'The same names come twice, as "user_annotation" of the host and as "gpu_user_annotation" of the device. Take '
        "the host's, for ranges and for steps.",
    ),
)


def range_shares(answer: Any) -> None:
    """Shares of named ranges in a Chrome trace."""
    function = Subject(answer, "range_shares", "path", "loop")
    draw = random.Random(34)
    plain = {"device": False, "outside": False, "others": False}
    kinds: dict[str, dict[str, Any]] = {
        "three steps": plain,
        "one step": plain | {"steps": 1},
        "events of other kinds": plain | {"others": True},
        "ranges outside the steps": plain | {"outside": True},
        "ranges of a GPU": plain | {"device": True},
        "all of that": {"device": True, "outside": True, "others": True, "steps": 4},
    }
    with tempfile.TemporaryDirectory(prefix="efflab-") as folder:
        for number, (what, options) in enumerate(kinds.items()):
            events = _trace(draw, **options)
            path = Path(folder) / f"trace-{number}.json.gz"
            with gzip.open(path, "wt", encoding="utf-8") as file:
                json.dump({"schemaVersion": 1, "traceEvents": events}, file)
            for loop in LOOPS:
                said = f"range_shares of a trace with {what}, loop={loop!r}"
                function.describe = lambda **_: said  # type: ignore[method-assign]  # noqa: B023
                got = _numbers_by_name(function, path=str(path), loop=loop)
                if not _same(got, _shares(events, loop)):
                    _refuse_shares(said, got, events, loop)


def _refuse_shares(said: str, got: dict[str, float], events: list[dict[str, Any]], loop: str) -> None:
    """Say what is wrong with shares.

    Raises:
        NotYet: always.
    """
    right = _shares(events, loop)
    prefixed = {n.removeprefix(PREFIX): v for n, v in got.items()}
    if prefixed != got and _same(prefixed, right):
        raise NotYet(f"{said}: the names still begin with {PREFIX!r}. Leave it out.", "prefix")
    extra = {"step", *LOOPS} & {*prefixed}
    if extra and any(event.get("cat") not in HOST for event in events if event["name"].startswith(PREFIX)):
        name, _, why = next(mistake for mistake in TRACE_MISTAKES if mistake[0] == "counted the device's ranges")
        raise NotYet(f"{said}: {sorted(extra)[0]!r} is among the ranges. {why}", name)
    if extra:
        raise NotYet(f"{said}: {sorted(extra)[0]!r} is among the ranges. It holds them, or what holds them.", "steps")
    if not got:
        raise NotYet(f"{said} gives nothing. Names of ranges begin with {PREFIX!r}.", "nothing found")
    wrong = _difference(got, right)
    for name, variants, why in TRACE_MISTAKES:
        rivals = (_shares(events, loop, **how) for how in variants)
        if any(_same(got, rival) and not _same(rival, right) for rival in rivals):
            raise NotYet(f"{said}: {wrong} {why}", name)
    raise NotYet(f"{said}: {wrong}")


MOST_READS = 2
# What brings a number to the host, so that a GPU would be waited for; `to` and `cpu` are counted apart, since a number
# that they brought is read without another wait.
READS = {"item", "tolist", "numpy", "__float__", "__int__", "__bool__", "__index__", "__complex__", "__array__",
         "__repr__", "__format__", "nonzero", "equal", "allclose", "is_nonzero"}  # fmt: skip


@contextmanager
def _host_reads() -> Iterator[dict[str, int]]:
    """Counts by name what would make the host wait for a device, inside a `with`."""
    import torch
    from torch.overrides import TorchFunctionMode

    counts: dict[str, int] = {}

    class Watch(TorchFunctionMode):
        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            name = getattr(function, "__name__", "")
            where = [*args[1:], *(kwargs or {}).values()] if name == "to" else []
            to_host = name == "cpu" or any(
                (isinstance(w, torch.device) and w.type == "cpu") or (isinstance(w, str) and w.startswith("cpu"))
                for w in where
            )
            if name in READS or to_host:
                counts[name] = counts.get(name, 0) + 1
            return function(*args, **(kwargs or {}))

    with Watch():
        yield counts


def _reference(model: Any, batches: list[Any], optimizer: Any, how: str = "right") -> tuple[float, float]:
    """One epoch, with a mistake in it or none ("right"): the mean loss and accuracy over the samples."""
    from torch.nn.functional import cross_entropy

    losses, hits, sizes = [], [], []
    for x, y in batches:
        if how not in ("kept the gradients", "zeroed before the step"):
            optimizer.zero_grad()
        logits = model(x)
        loss = cross_entropy(logits, y, reduction="sum" if how == "gradients of the sum" else "mean")
        loss.backward()
        if how == "zeroed before the step":
            optimizer.zero_grad()
        if how != "no step":
            optimizer.step()
        if how == "after the update":
            logits = model(x)
            loss = cross_entropy(logits, y)
        losses.append(float(cross_entropy(logits, y).detach()))
        hits.append(int((logits.argmax(1) == y).sum()))
        sizes.append(len(y))
    n = sum(sizes)
    if how == "mean of the batches":
        rates = [h / s for h, s in zip(hits, sizes, strict=True)]
        return sum(losses) / len(losses), sum(rates) / len(rates)
    if how == "last batch":
        return losses[-1], hits[-1] / sizes[-1]
    return sum(a * s for a, s in zip(losses, sizes, strict=True)) / n, sum(hits) / n


def train_epoch(answer: Any) -> None:
    """An epoch that reads nothing back in its loop, with the weights, the loss and the accuracy of one that does."""
    import torch

    function = Subject(answer, "train_epoch", "model", "batches", "optimizer")
    function.describe = lambda **_: "train_epoch"  # type: ignore[method-assign]
    for seed, sizes in ((1, [10] * 6 + [3]), (2, [8] * 20 + [1]), (3, [5])):
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed a GPU too
            model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 3)).double()
            data = [(torch.randn(n, 8, dtype=torch.float64), torch.randint(3, (n,))) for n in sizes]

        def ready(base: Any = model) -> tuple[Any, Any]:
            trained = copy.deepcopy(base)
            return trained, torch.optim.SGD(trained.parameters(), lr=0.2, momentum=0.9)

        trained, optimizer = ready()
        what = f"an epoch of {len(sizes)} batches" if len(sizes) > 1 else "an epoch of one batch"
        steps: list[None] = []
        optimizer.register_step_post_hook(lambda *_: steps.append(None))  # noqa: B023
        with _host_reads() as counts:
            value = function(model=trained, batches=[(x.clone(), y.clone()) for x, y in data], optimizer=optimizer)
        _read_rarely(counts, len(sizes))
        loss, accuracy = _two_floats(value)
        expected, model_right = _outcome(*ready(), data, "right")
        weights = [p.detach() for p in trained.parameters()]
        for name, why in (
            ("no step", "the weights are as before. optimizer.step() changes them."),
            (
                "zeroed before the step",
                "the weights are as before. optimizer.zero_grad() stands between backward() and step(), and takes the "
                "gradients away.",
            ),
            (
                "kept the gradients",
                "the weights are those of gradients that pile up. Call optimizer.zero_grad() in every step.",
            ),
            (
                "gradients of the sum",
                "the weights are those of the summed loss, whose gradients are larger by the batch's size. Train with "
                "the mean.",
            ),
        ):
            _, model_wrong = _outcome(*ready(), data, name)
            if name == "no step" and steps:
                continue
            if _equal(weights, model_wrong) and not _equal(model_wrong, model_right):
                raise NotYet(f"After {what} {why}", name)
        if not _equal(weights, model_right):
            raise NotYet(
                f"After {what} the weights differ from those of zero_grad, forward, cross_entropy, backward and step, "
                "batch by batch."
            )
        if close(loss, expected[0], FLOAT32) and math.isclose(accuracy, expected[1], abs_tol=FLOAT32):
            continue
        said = f"{what[0].upper()}{what[1:]} gives the loss {loss:.6g} and the accuracy {accuracy:.6g}"
        n = sum(sizes)
        for name, pair, why in (
            ("swapped", expected[::-1], "Return (loss, accuracy)."),
            (
                "mean of the batches",
                _outcome(*ready(), data, "mean of the batches")[0],
                f"That is the mean over the batches. The last one has {sizes[-1]} samples and weighs as much as the "
                "others here: weigh by the number of samples.",
            ),
            (
                "after the update",
                _outcome(*ready(), data, "after the update")[0],
                "That is after each update. Take the logits that the update was made from.",
            ),
            ("last batch", _outcome(*ready(), data, "last batch")[0], "That is the last batch alone."),
        ):
            either = (close(loss, pair[0], FLOAT32), math.isclose(accuracy, pair[1], abs_tol=FLOAT32))
            others = (close(loss, expected[0], FLOAT32), math.isclose(accuracy, expected[1], abs_tol=FLOAT32))
            if all(a or b for a, b in zip(either, others, strict=True)):
                raise NotYet(f"{said}. {why}", name)
        factors = (
            (n, "not divided", "the number of samples"),
            (n / len(sizes), "not divided", "the samples per batch"),
        )
        for factor, name, by in factors:
            if close(loss, expected[0] * factor, FLOAT32) or close(accuracy, expected[1] * factor, FLOAT32):
                raise NotYet(f"{said}: too large by {by}, {factor:g}. Divide by the number of samples.", name)
        if close(loss, _outcome(*ready(), data, "mean of the batches")[0][0] * len(sizes) / n, FLOAT32):
            raise NotYet(
                f"{said}. The loss of a batch is its mean already: multiply it by the batch's size before you add, or "
                "sum in the first place.",
                "divided twice",
            )
        if close(accuracy, 100 * expected[1], FLOAT32):
            raise NotYet(f"{said}. Return the accuracy as a share from 0 to 1.", "percent")
        raise NotYet(f"{said}; {expected[0]:.6g} and {expected[1]:.6g} are right.")


def _outcome(model: Any, optimizer: Any, batches: list[Any], how: str) -> tuple[tuple[float, float], list[Any]]:
    """What an epoch returns, and the weights after it."""
    found = _reference(model, batches, optimizer, how)
    return found, [p.detach() for p in model.parameters()]


def _equal(a: list[Any], b: list[Any]) -> bool:
    import torch

    return all(torch.allclose(x, y, rtol=1e-9, atol=1e-12) for x, y in zip(a, b, strict=True))


def _read_rarely(counts: dict[str, int], batches: int) -> None:
    """At most two reads, and at most two transfers to the host."""
    reads = {name: n for name, n in counts.items() if name in READS}
    moves = {name: n for name, n in counts.items() if name not in READS}
    for found, word in ((reads, "read a number from the device"), (moves, "copied a tensor to the host")):
        if sum(found.values()) <= MOST_READS:
            continue
        times = sum(found.values())
        by = ", ".join(f"{_call(name)} {n} times" for name, n in sorted(found.items(), key=lambda i: -i[1]))
        raise NotYet(
            f"In an epoch of {batches} batches the function {word} {times} times ({by}); {MOST_READS} are "
            "enough. Each one waits until the device has done all that was queued. Keep sums in tensors and read them "
            "after the loop.",
            "reads in the loop",
        )


def _call(name: str) -> str:
    """How a read is written: "float(...)" for __float__."""
    if name in ("__repr__", "__format__"):
        return "printing a tensor"
    return f"{name.strip('_')}(...)" if name.startswith("__") else f".{name}()"


def _two_floats(value: Any) -> tuple[float, float]:
    """The pair that an epoch returns, as Python's floats."""
    import torch

    if value is None:
        raise NotYet("train_epoch returns nothing. Is the `return` missing?")
    try:
        pair = () if isinstance(value, str | bytes | dict | set | torch.Tensor) else tuple(value)
    except Exception:  # the object is the learner's and may raise anything
        pair = ()
    if len(pair) != 2:
        raise NotYet(f"{written('train_epoch', value)}; two numbers are expected, (loss, accuracy).")
    if any(isinstance(item, torch.Tensor) for item in pair):
        raise NotYet(
            "train_epoch returns tensors. Read each with .item() once, after the loop: then whoever calls it need not "
            "wait at a place that does not look like waiting.",
            "tensors",
        )
    loss, accuracy = (a_number(written("train_epoch", value), item) for item in pair)
    return loss, accuracy


def _starts(load: list[float], compute: float, workers: int, prefetch: int, how: str = "right") -> list[float]:
    """When each step begins; `how` is "right" or the name of a mistake."""
    starts: list[float] = []
    ready: list[float] = []
    free = [0.0] * max(workers, 1)
    queue = prefetch if how == "one queue" else prefetch * workers
    for i, seconds in enumerate(load):
        before = starts[i - 1] + compute if i else 0.0
        if workers == 0 or how == "no overlap":
            begin = (
                max(before, seconds)
                if how == "hidden without workers"
                else before
                if how == "first batch for nothing" and not i
                else before + seconds
            )
            starts.append(begin)
            continue
        allowed = starts[i - queue] if i >= queue else 0.0
        if how == "after the step's end" and i >= queue:
            allowed += compute
        if how == "no limit":
            allowed = 0.0
        if how == "first free worker":
            ready.append(max(heapq.heappop(free), allowed) + seconds)
            heapq.heappush(free, ready[-1])
        else:
            busy = ready[i - workers] if i >= workers and how != "worker never busy" else 0.0
            ready.append(max(busy, allowed) + seconds)
        starts.append(ready[i] if how == "does not wait for the step before" else max(ready[i], before))
    if how == "ends":
        return [s + compute for s in starts]
    if how == "batches":
        return ready or starts
    return starts


TIMELINE_MISTAKES = (
    ("ends", "These are the ends of the steps. Return their beginnings."),
    ("batches", "These are the times at which the batches are there. A step also waits for the one before."),
    ("no overlap", "Loading and computing follow each other. Workers load while the device computes."),
    ("hidden without workers", "Without workers the training process loads a batch itself, after the step before."),
    ("first batch for nothing", "The first batch has to be loaded as well, before step 0."),
    ("no limit", "The workers run ahead without end. Batch i may be begun only once step i − prefetch × workers has."),
    ("one queue", "The queue holds prefetch batches for each worker: prefetch × workers in all."),
    (
        "after the step's end",
        "The queue has room again when step i − prefetch × workers begins, since its batch is taken then.",
    ),
    ("first free worker", "The batches go to the workers in turn: worker i % workers loads batch i, even if another is "
     "free."),
    ("worker never busy", "A worker loads one batch at a time: batch i waits for batch i − workers."),
    ("does not wait for the step before", "Step i begins when step i − 1 has ended, even if its batch is there."),
)  # fmt: skip


def step_starts(answer: Any) -> None:
    """The timeline of a loader whose workers run ahead."""
    function = Subject(answer, "step_starts", "load", "compute", "workers", "prefetch")
    cases: list[tuple[list[float], float, int, int]] = [
        ([3.0] * 4, 2.0, 0, 2), ([3.0] * 6, 2.0, 1, 2), ([4.0] * 8, 3.0, 2, 2), ([1.0] * 8, 3.0, 2, 2),
        ([5.0, 1.0, 1.0, 1.0, 5.0, 1.0], 2.0, 2, 1), ([1.0, 1.0, 1.0, 9.0, 1.0, 9.0], 1.0, 3, 2), ([2.0], 1.0, 4, 2),
        ([], 1.0, 2, 2), ([6.0] * 10, 1.0, 8, 2),
    ]  # fmt: skip
    draw = random.Random(35)
    for _ in range(20):
        load = [round(draw.expovariate(0.5), 3) for _ in range(draw.randint(3, 24))]
        cases.append((load, round(draw.uniform(0.2, 4), 3), draw.choice([0, 1, 2, 3, 4]), draw.choice([1, 2, 4])))
    results: list[list[float]] = []
    for load, compute, workers, prefetch in cases:
        arguments = {"load": list(load), "compute": compute, "workers": workers, "prefetch": prefetch}
        results.append(_list_of_numbers(function, len(load), arguments))
    wrong = next((i for i, case in enumerate(cases) if not _alike(results[i], _starts(*case))), None)
    if wrong is None:
        return
    load, compute, workers, prefetch = cases[wrong]
    got, right = results[wrong], _starts(*cases[wrong])
    step = next(i for i, (a, b) in enumerate(zip(got, right, strict=True)) if not _alike([a], [b]))
    said = (
        f"step_starts({short(load)}, {short(compute)}, {workers}, {prefetch}) lets step {step} begin at "
        f"{got[step]:.6g}; {right[step]:.6g} is right."
    )
    # A mistake shows in some cases only: all results must be those of one.
    for name, why in TIMELINE_MISTAKES:
        if all(_alike(r, _starts(*case, name)) for r, case in zip(results, cases, strict=True)):
            raise NotYet(f"{said} {why}", name)
    # Several at once: the case that failed tells of the first.
    for name, why in TIMELINE_MISTAKES:
        if _alike(got, _starts(*cases[wrong], name)):
            raise NotYet(f"{said} {why}", name)
    raise NotYet(said)


def _alike(a: list[float], b: list[float]) -> bool:
    return all(math.isclose(x, y, rel_tol=1e-9, abs_tol=1e-9) for x, y in zip(a, b, strict=True))


def _list_of_numbers(function: Subject, length: int, arguments: dict[str, Any]) -> list[float]:
    """Call the learner's function and insist on so many numbers."""
    value = function(**arguments)
    call = function.describe(**arguments)
    if value is None:
        raise NotYet(f"{call} returns nothing. Is the `return` missing?")
    try:
        several = None if isinstance(value, str | bytes | dict | set) else list(value)
    except Exception:  # the object is the learner's and may raise anything
        several = None
    if several is None:
        raise NotYet(f"{written(call, value)}; a list with the beginning of each step is expected.")
    if len(several) != length:
        raise NotYet(f"{call} gives {len(several)} numbers for {length} steps.")
    return [a_number(f"{call} has {short(item)} for step {i}", item) for i, item in enumerate(several)]


NOISES = ("random", "numpy.random", "torch", "dataset.rng")


class Noisy:
    """A dataset of whose samples each is its index, noise from four generators, and the worker that made it.

    Attributes:
        rng: its own generator. Every worker gets a copy of it.
    """

    def __init__(self, size: int) -> None:
        import numpy as np

        self.size = size
        self.rng = np.random.default_rng(0)

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Any:
        import numpy as np
        import torch
        from torch.utils.data import get_worker_info

        worker = get_worker_info()
        noise = [random.random(), np.random.random(), torch.rand((), dtype=torch.float64).item(), self.rng.random()]
        return torch.tensor([index, *noise, -1 if worker is None else worker.id], dtype=torch.float64)


SAMPLES, BATCH, WORKERS = 24, 3, 2
WAIT = 120  # s until a worker that does not answer is given up


def _states() -> tuple[Any, Any, Any]:
    """The states of the training process's generators."""
    import numpy as np
    import torch

    return random.getstate(), np.random.get_state(), torch.get_rng_state()


def _same_states(a: tuple[Any, Any, Any], b: tuple[Any, Any, Any]) -> list[str]:
    """The generators whose state differs."""
    import numpy as np

    equal = (
        a[0] == b[0],
        all(np.array_equal(x, y) for x, y in zip(a[1], b[1], strict=True)),
        bool((a[2] == b[2]).all()),
    )
    return [name for name, same in zip(NOISES, equal, strict=False) if not same]


@contextmanager
def _own_generators() -> Iterator[None]:
    """The learner's random states, put back afterwards."""
    import numpy as np
    import torch

    python, numbers, tensors = _states()
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numbers)
        torch.set_rng_state(tensors)


def _seed_process(seed: int) -> None:
    """Put the training process's generators anywhere."""
    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)


def _epochs(function: Subject, seed: int, process: int, epochs: int) -> list[Any]:
    """Epochs of the learner's loader, each one tensor [samples, columns]; `process` seeds the training process."""
    import torch
    from torch.utils.data import DataLoader

    function.describe = lambda **_: f"seeded_loader(dataset, {BATCH}, {WORKERS}, {seed})"  # type: ignore[method-assign]
    _seed_process(process)
    before = _states()
    dataset = Noisy(SAMPLES)
    loader = function(dataset=dataset, batch_size=BATCH, workers=WORKERS, seed=seed)
    call = function.describe()
    if loader is None:
        raise NotYet(f"{call} returns nothing. Is the `return` missing?")
    if not isinstance(loader, DataLoader):
        raise NotYet(f"{written(call, loader)}; a torch.utils.data.DataLoader is expected.")
    if loader.num_workers != WORKERS or loader.batch_size != BATCH or loader.dataset is not dataset:
        raise NotYet(
            f"{call} gives a loader with {loader.num_workers} workers and batches of {loader.batch_size}, of "
            f"{'this' if loader.dataset is dataset else 'another'} dataset. Pass on what you are given: dataset, "
            "batch_size=batch_size, num_workers=workers.",
            "arguments",
        )
    _unchanged(before, call)
    # Where processes are spawned, a function of a notebook cannot reach them.
    if loader.multiprocessing_context is None and "fork" in multiprocessing.get_all_start_methods():
        loader.multiprocessing_context = "fork"
    loader.timeout = WAIT
    found = []
    for _ in range(epochs):
        before = _states()
        try:
            batches = list(loader)
        except (NotYet, NotCounted):
            raise
        except NotImplementedError as error:
            raise NotWritten(f"seeded_loader is not written yet. {error}".strip()) from None
        except Exception as error:
            last = [line for line in str(error).strip().splitlines() if line.strip()]
            said = f"{type(error).__name__}: {last[-1].strip() if last else ''}"
            raise NotYet(f"A pass over {call} fails: {said}") from None
        _unchanged(before, f"a pass over {call}")
        found.append(torch.cat(batches) if batches else torch.zeros(0, 6))
    return found


def _unchanged(before: tuple[Any, Any, Any], what: str) -> None:
    changed = _same_states(before, _states())
    if changed:
        verb = "seeds or draws from" if not what.startswith("a pass") else "draws from"
        raise NotYet(
            f"{what[:1].upper() + what[1:]} {verb} the training process's own generator of {' and '.join(changed)}. "
            "Give the loader a generator of its own: generator=torch.Generator().manual_seed(seed).",
            "process's generators",
        )


def seeded_loader(answer: Any) -> None:
    """A DataLoader whose order and noise depend on its seed alone."""
    import torch

    function = Subject(answer, "seeded_loader", "dataset", "batch_size", "workers", "seed")
    with _own_generators(), warnings.catch_warnings():
        # A machine of one core.
        warnings.filterwarnings("ignore", message="This DataLoader will create", category=UserWarning)
        first = _epochs(function, 11, 1001, 2)
        _drawn_apart(first)
        again = _epochs(function, 11, 2002, 2)
        for epoch, (a, b) in enumerate(zip(first, again, strict=True)):
            where = "" if epoch == 0 else " in the second epoch"
            if not torch.equal(a[:, 0], b[:, 0]):
                raise NotYet(
                    f"Two loaders with seed=11 give another order{where}: it begins with "
                    f"{_listed(a)} and with {_listed(b)}. The order must come from a generator that the seed sets.",
                    "order without a seed",
                )
            for column, name in enumerate(NOISES, 1):
                if not torch.equal(a[:, column], b[:, column]):
                    hint = (
                        "Seed it in each worker from torch.initial_seed()."
                        if name == "dataset.rng"
                        else "PyTorch seeds it in each worker from the loader's generator: give the loader one."
                    )
                    raise NotYet(
                        f"Two loaders with seed=11 give other noise from {name}{where}, where the training process had "
                        f"drawn other numbers before. {hint}",
                        "noise without a seed",
                    )
        other = _epochs(function, 12, 1001, 1)[0]
        same = [n for c, n in enumerate(("order", *NOISES)) if torch.equal(first[0][:, c], other[:, c])]
        if same:
            raise NotYet(
                f"Loaders with seed=11 and seed=12 give the same {_noise(same[0])}. It must depend on the seed.",
                "seed without effect",
            )


def _listed(samples: Any) -> str:
    return ", ".join(f"{int(i)}" for i in samples[:4, 0])


def _noise(name: str) -> str:
    return "order" if name == "order" else f"noise from {name}"


def _drawn_apart(epochs: list[Any]) -> None:
    """One loader: all samples once, shuffled; each worker and each epoch draws its own noise."""
    for samples in epochs:
        order = [int(i) for i in samples[:, 0]]
        if sorted(order) != list(range(SAMPLES)):
            raise NotYet(
                f"A pass over the loader gives {len(order)} samples, {len(set(order))} of them different; the dataset "
                f"has {SAMPLES}. Each comes once in an epoch.",
                "samples",
            )
        if order == sorted(order):
            raise NotYet("The samples come in the dataset's order. Shuffle them: shuffle=True.", "not shuffled")
        for column, name in enumerate(NOISES, 1):
            workers = [{float(row[column]) for row in samples if int(row[5]) == w} for w in range(WORKERS)]
            if not all(workers):
                raise NotYet("Not every worker loads batches. Let the loader share them out.")
            if workers[0] & workers[1]:
                why = (
                    "Every worker has a copy of the generator. Give the copy another seed in each: "
                    "worker_init_fn is called there."
                    if name == "dataset.rng"
                    else "worker_init_fn seeds it with one number in all workers. torch.initial_seed() differs from "
                    "worker to worker, and PyTorch has seeded the global generators from it already."
                )
                raise NotYet(f"Both workers draw the same noise from {name}. {why}", "one noise for all workers")
    for column, name in enumerate(("order", *NOISES)):
        if column and {float(v) for v in epochs[0][:, column]} & {float(v) for v in epochs[1][:, column]}:
            raise NotYet(
                f"The second epoch draws the same noise from {name} as the first. A seed made of `seed` and the "
                "worker's number is the same in every epoch; torch.initial_seed() in a worker is not.",
                "one noise for all epochs",
            )
        if not column and bool((epochs[0][:, 0] == epochs[1][:, 0]).all()):
            raise NotYet(
                "The second epoch has the order of the first. Shuffle anew in each: a generator that is seeded once "
                "goes on where it stopped.",
                "one order for all epochs",
            )


def _seconds(text: str, how: str = "right") -> float:
    """A time as sacct writes it, [days-][hours:]minutes:seconds[.fraction]; or with a mistake."""
    days, _, clock = text.rpartition("-")
    parts = [float(p) for p in clock.split(":")]
    if how == "fraction dropped":
        parts[-1] = math.floor(parts[-1])
    if how == "hours first" and len(parts) == 2:
        parts.append(0.0)
    seconds = 0.0
    for part in parts:
        seconds = seconds * 60 + part
    if days and how == "days as a digit of the clock":
        return seconds + int(days) * 60.0 ** len(parts)
    return seconds + (86400.0 * int(days) if days and how != "forgot the days" else 0.0)


def _as_slurm(seconds: float, *, hours: bool = True, digits: int = 0) -> str:
    """A time as sacct writes it; short ones without hours unless asked."""
    whole, fraction = divmod(round(seconds * 1000), 1000)
    minutes, s = divmod(whole, 60)
    h, m = divmod(minutes, 60)
    d, h = divmod(h, 24)
    clock = f"{m:02}:{s:02}" + (f".{fraction:03}" if digits else "")
    if d or h or hours:
        clock = f"{h:02}:{clock}"
    return f"{d}-{clock}" if d else clock


def cpu_efficiency(answer: Any) -> None:
    """CPU time over allocated core time, from a row of sacct."""
    function = Subject(answer, "cpu_efficiency", "row")
    rows = [
        "4711|02:00:00|04:48:00|16", "4712|00:10:00|00:35:00|4", "4713|1-02:03:04|2-05:10:00|16",
        "4714.batch|00:05:00|02:41.503|1", "4715|00:00:02|00:00.503|1", "4716_3|10-00:00:00|19-23:59:59|2",
        "4717|00:00:00|00:00:00|8", "4718|00:00:00|00:00.012|1", "4719+0|12-01:00:00|1-00:00:30|64",
        "4720.extern|00:59:59|00:00.001|2", "4721|00:02:00|01:59.250|1", "4722|3-00:00:00|00:00:00|4",
    ]  # fmt: skip
    draw = random.Random(36)
    for i in range(20):
        elapsed = round(10 ** draw.uniform(0.3, 6))
        cores = draw.choice([1, 2, 8, 48])
        used = elapsed * cores * draw.uniform(0.01, 1)
        short_one = used < 3600
        rows.append(
            f"{4800 + i}|{_as_slurm(elapsed)}|{_as_slurm(used, hours=not short_one, digits=3 * short_one)}|{cores}"
        )
    for row in rows:
        value = function(row=row)
        _, elapsed_text, used_text, cores_text = row.split("|")
        call = f"cpu_efficiency({row!r})"
        elapsed, used, n = _seconds(elapsed_text), _seconds(used_text), int(cores_text)
        if elapsed == 0:
            if value is None:
                continue
            raise NotYet(f"{written(call, value)}. This job has not run: return None.", "job that has not run")
        if value is None:
            raise NotYet(f"{call} returns nothing. None is for a job that has not run. Is the `return` missing?")
        got = a_number(written(call, value), value)
        right = used / (elapsed * n)
        if math.isclose(got, right, rel_tol=1e-9, abs_tol=1e-12):
            continue
        said = written(call, got)
        for name, how, why in (
            ("forgot the days", "forgot the days", "without the days. 1-02:03:04 is a day and two hours."),
            (
                "days as a digit of the clock",
                "days as a digit of the clock",
                "where a day counts as 60 hours. It has 24.",
            ),
            (
                "hours first",
                "hours first",
                "where a time without hours is read from the front. 02:41.503 is two minutes and 41.503 seconds: read "
                "from the end.",
            ),
            ("fraction dropped", "fraction dropped", "without the fraction of a second."),
        ):
            times = _seconds(elapsed_text, how), _seconds(used_text, how)
            variants = {(times[0], times[1]), (elapsed, times[1]), (times[0], used)}
            for other_elapsed, other_used in variants:
                other = other_used / (other_elapsed * n) if other_elapsed else math.inf
                if math.isclose(got, other, rel_tol=1e-9, abs_tol=1e-12) and not close(other, right, 1e-9):
                    raise NotYet(f"{said}, {why}", name)
        recognise(
            said,
            got,
            (
                (name, v, why)
                for name, v, why in (
                    (
                        "forgot the cores",
                        used / elapsed,
                        "the number of cores that worked on average. Divide by AllocCPUS.",
                    ),
                    ("forgot the elapsed time", used / n, "CPU time over cores. Divide by the elapsed time as well."),
                    ("turned over", elapsed * n / used if used else math.inf, "what was allocated over what was used."),
                    ("percent", 100 * right, "a percentage. Return a share."),
                    ("idle share", 1 - right, "the share in which the cores were idle."),
                    (
                        "elapsed over CPU time",
                        elapsed / used if used else math.inf,
                        "the elapsed time over the CPU time.",
                    ),
                    ("not divided", used, "the CPU time in seconds. Divide by elapsed time × cores."),
                )
                if not close(v, right)
            ),
            1e-9,
        )
        raise NotYet(f"{said}. By hand: {used:.6g} s over {elapsed:.6g} s × {n} cores is {right:.6g}.")


def _middle(repeats: list[float], how: str) -> float:
    if how == "mean":
        return statistics.fmean(repeats)
    if how == "fastest":
        return min(repeats)
    if how == "upper of two":
        return sorted(repeats)[len(repeats) // 2]
    return statistics.median(repeats)


def _table(
    baseline: list[float],
    mended: dict[str, list[float]],
    *,
    middle: str = "median",
    saving: str = "share",
    order: str = "greatest first",
    kept: str = "above the noise",
) -> list[tuple[str, float]]:
    """The ablation table, with a mistake for each argument."""
    old = _middle(baseline, middle)
    rows = []
    for name, repeats in mended.items():
        new = _middle(repeats, middle)
        if kept == "above the noise" and not new < min(baseline):
            continue
        if kept == "faster" and not new < old:
            continue
        if kept == "no overlap" and not max(repeats) < min(baseline):
            continue
        value = {
            "share": 1 - new / old, "speedup": old / new, "gain": old / new - 1, "seconds": old - new,
            "left": new / old, "percent": 100 * (1 - new / old),
        }[saving]  # fmt: skip
        rows.append((name, value))
    if order != "as given":
        rows.sort(key=lambda row: row[1], reverse=order == "greatest first")
    return rows


ABLATION_MISTAKES: tuple[tuple[str, dict[str, str], str], ...] = (
    ("least first", {"order": "least first"}, "The greatest saving comes first."),
    ("not sorted", {"order": "as given"}, "The rows stand in the order given. The greatest saving comes first."),
    ("mean", {"middle": "mean"}, "These are savings from means, which one disturbed repeat moves. Take medians."),
    ("fastest", {"middle": "fastest"}, "These are savings from the fastest repeats. Take medians."),
    (
        "upper of two",
        {"middle": "upper of two"},
        "Of an even number of repeats the median is the mean of the two in the middle.",
    ),
    (
        "share of the new step",
        {"saving": "gain"},
        "These are savings as shares of the new step. Divide by the baseline's median.",
    ),
    ("speedup", {"saving": "speedup"}, "These are speedups. A saving is 1 − new / old."),
    ("seconds", {"saving": "seconds"}, "These are seconds. Divide by the baseline's median."),
    (
        "time left",
        {"saving": "left", "order": "least first"},
        "These are shares that are left. A saving is 1 − new / old.",
    ),
    ("time left", {"saving": "left"}, "These are shares that are left. A saving is 1 − new / old."),
    ("percent", {"saving": "percent"}, "These are percentages. Return shares."),
    (
        "kept the noise",
        {"kept": "all"},
        "A mend whose median is not below every repeat of the baseline stays out: its gain may be noise.",
    ),
    (
        "kept the noise",
        {"kept": "faster"},
        "A mend whose median is below the baseline's median, but not below every repeat of it, stays out: its gain may "
        "be noise.",
    ),
    (
        "left out too much",
        {"kept": "no overlap"},
        "One slow repeat of a mend does not take it out: compare its median with the baseline's fastest repeat.",
    ),
)


def ablation(answer: Any) -> None:
    """Savings of single mends, from medians, the greatest first, above the noise."""
    function = Subject(answer, "ablation", "baseline", "mended")
    cases: list[tuple[list[float], dict[str, list[float]]]] = [
        ([0.100, 0.101, 0.099], {"loader": [0.060, 0.061, 0.059]}),
        ([0.100, 0.101, 0.099], {"sync": [0.090, 0.091, 0.089], "loader": [0.060, 0.061, 0.059], "tiny": [0.08] * 3}),
        ([0.100, 0.101, 0.099, 0.180, 0.1], {"loader": [0.06, 0.061, 0.2, 0.059, 0.06], "copies": [0.07] * 5}),
        ([0.104, 0.097, 0.100], {"python": [0.098, 0.096, 0.103], "loader": [0.05, 0.051, 0.052]}),
        ([0.104, 0.097, 0.100], {"python": [0.103, 0.102, 0.108]}),
        ([0.1, 0.102, 0.108, 0.11], {"tiny": [0.06, 0.08, 0.061, 0.2], "sync": [0.09, 0.092, 0.097, 0.093]}),
        ([0.2, 0.21, 0.22], {}),
        ([0.2, 0.2, 0.2], {"sync": [0.2, 0.2, 0.2]}),
    ]
    draw = random.Random(37)
    for _ in range(20):
        step, repeats = 10 ** draw.uniform(-3, 0), draw.randint(3, 9)

        def times(middle: float, n: int = repeats) -> list[float]:
            return [middle * math.exp(draw.gauss(0, 0.02)) * (1.6 if draw.random() < 0.1 else 1) for _ in range(n)]

        names = draw.sample(["loader", "copies", "sync", "tiny", "python", "logging"], draw.randint(1, 6))
        cases.append((times(step), {name: times(step * draw.uniform(0.5, 1.02)) for name in names}))
    results = []
    for baseline, mended in cases:
        results.append(_pairs(function, baseline, mended))
    wrong = next((i for i, case in enumerate(cases) if not _same_rows(results[i], _table(*case))), None)
    if wrong is None:
        return
    baseline, mended = cases[wrong]
    got, right = results[wrong], _table(*cases[wrong])
    said = (
        f"ablation({_rounded(baseline)}, {{{', '.join(f'{n!r}: {_rounded(v)}' for n, v in mended.items())}}}) gives "
        f"{_rows(got)}; {_rows(right)} is right."
    )
    for name, how, why in ABLATION_MISTAKES:
        if all(_same_rows(r, _table(*case, **how)) for r, case in zip(results, cases, strict=True)):
            raise NotYet(f"{said} {why}", name)
    for name, how, why in ABLATION_MISTAKES:
        if _same_rows(got, _table(*cases[wrong], **how)):
            raise NotYet(f"{said} {why}", name)
    raise NotYet(said)


def _rounded(values: list[float]) -> str:
    return f"[{', '.join(f'{v:.4g}' for v in values)}]"


def _rows(pairs: list[tuple[str, float]]) -> str:
    return f"[{', '.join(f'({name!r}, {value:.4g})' for name, value in pairs)}]"


def _same_rows(a: list[tuple[str, float]], b: list[tuple[str, float]]) -> bool:
    return [n for n, _ in a] == [n for n, _ in b] and _alike([v for _, v in a], [v for _, v in b])


def _pairs(function: Subject, baseline: list[float], mended: dict[str, list[float]]) -> list[tuple[str, float]]:
    """Call the learner's function and insist on a list of (name, saving)."""
    call = f"ablation({short(baseline)}, {short(mended)})"
    function.describe = lambda **_: call  # type: ignore[method-assign]
    value = function(baseline=list(baseline), mended={n: list(v) for n, v in mended.items()})
    if value is None:
        raise NotYet(f"{call} returns nothing. Is the `return` missing?")
    if isinstance(value, dict):
        raise NotYet(f"{written(call, value)}. Return a list of pairs (name, saving).", "a dictionary")
    rows: list[tuple[str, float]] = []
    try:
        for row in value:
            name, number = row
            rows.append((name, number))
    except Exception:  # the object is the learner's and may raise anything
        raise NotYet(f"{written(call, value)}; a list of pairs (name, saving) is expected.") from None
    for name, _ in rows:
        if not isinstance(name, str) or name not in mended:
            raise NotYet(f"{written(call, value)}; {short(name)} is no name of a mend. Return pairs (name, saving).")
    return [(name, a_number(written(call, value), number)) for name, number in rows]


# The learner's own record

TIMED = ("ablation", "ladder")  # roles whose steps must be steady; one that waits for workers varies by nature
FAULTS, PARTS = reconcile.FAULTS, reconcile.PARTS
# How far a gain may lie above what a share allows: this much, and twice the standard error of the two medians.
ROOM = 0.03
# A standard error of a median, over the interquartile range and the root of the number of repeats, for normal noise.
MEDIAN_ERROR = 1.2533 / 1.349
# The least part of what a profile says of a mend that is believed: its events do not all cost alike, and where their
# cost is not known, it inflates shares of many small operations.
LEAST = 1 / 3
BUSY = "Was the machine busy while one of them was measured? Close other programs and run it again."
COVERED = 1.05  # ranges over the step: they do not overlap, but medians of parts need not add up to the whole's
PEAK_NOISE = 1.3
LOADER_NOISE = 1.3  # how much faster than the computation alone a step with a loader may look
SAME_CURVE = 0.05  # relative: what roundings, which training amplifies, may change in a loss


def own_record(answer: Any) -> str:
    """A record of the learner's own loop: timed well, gains that the shares allow, and equal runs of one seed."""
    record = own("profiling", answer)
    steps = [s for s in measured(record, "time") if text(s, "role", "profiling") in TIMED]
    steps.append(sample_of(record, "all-faults", "time"))
    timed_well(record)
    at_scale(record)
    said = steady(record, steps, "steps")
    shares = _shares_of_the_profile(record)
    gains = {fault: _gain(record, f"without-{fault}") for fault in FAULTS}
    _gains_that_the_shares_allow(record, shares, gains)
    whole = _ladder(record, gains["loader"])
    _curves(record)
    before, after = _efficiency(record)
    _loaders(record)
    return (
        f"{len(steps)} kinds of steps, {said}. Shares of the faults: {_percentages(shares)}; what their mends save: "
        f"{_percentages({fault: gain for fault, (gain, _) in gains.items()})}. All mends together save {whole:.0%} of "
        f"the step; its operations per second rise from {before:.1%} to {after:.1%} of a large product's."
    )


def _percentages(shares: dict[str, float]) -> str:
    """Shares in whole per cents, a negative one with a minus sign and none with the sign of a zero."""
    return ", ".join(f"{name} {round(100 * share) + 0:d}%".replace("-", "−") for name, share in shares.items())


def _shares_of_the_profile(record: Record) -> dict[str, float]:
    """Each fault's share of the step: without what the profiler's events cost where the record tells it."""
    whole = middle_of(record, "profile", "time")
    ranges = {part: median(sample_of(record, "profile", f"range_{part}").values) for part in PARTS}
    covered = sum(ranges.values())
    if covered > COVERED * whole:
        raise NotYet(
            f"profile: the ranges take {show(covered, SECOND)} together, and the step {show(whole, SECOND)}. Shares of "
            "a step add up to at most 1.",
            "shares above one",
        )
    for fault in FAULTS:
        if not ranges[fault] > 0:
            raise NotYet(
                f"profile: the fault {fault!r} takes no time. Was it in the loop that was profiled?", "no share"
            )
    held = reconciled(reconcile.held_shares, record)
    return {fault: held[fault] for fault in FAULTS}


def _left(record: Record, shares: dict[str, float]) -> dict[str, float]:
    """Of the step with all faults, the share that each fault's part has left after its mend, by the second profile."""
    for metric in ("time", *(f"range_{part}" for part in PARTS)):
        sample_of(record, "profile-clean", metric)
    saved = reconciled(reconcile.by_both, record) or {}
    return {fault: shares[fault] - saved[fault] for fault in FAULTS}


def _error(values: list[float]) -> float:
    """The relative standard error of a median."""
    return MEDIAN_ERROR * iqr(values) / median(values) / math.sqrt(len(values))


def _gain(record: Record, case: str) -> tuple[float, float]:
    """The share of the step that a mend saves, and the noise of it."""
    old, new = sample_of(record, case, "baseline"), sample_of(record, case, "time")
    before, after = middle_of(record, case, "baseline"), middle_of(record, case, "time")
    return 1 - after / before, ROOM + 2 * math.hypot(_error(old.values), _error(new.values))


def _gains_that_the_shares_allow(
    record: Record, shares: dict[str, float], gains: dict[str, tuple[float, float]]
) -> None:
    """No mend saves more than its share, and none much less than the profile says."""
    whole = middle_of(record, "profile", "time")
    for fault, (gain, room) in gains.items():
        # Events do not all cost alike: a share lies between the one with their cost and the one without it.
        raw = middle_of(record, "profile", f"range_{fault}") / whole
        share, beside = max(shares[fault], raw), ""
        if record.environment.kind != "cpu":
            # Kernels that a part launches run while the host is elsewhere: their time belongs to the part as well.
            kernels = measured(record, f"kernel_{fault}", case="profile")
            if kernels:
                share += median(kernels[0].values) / whole
                beside = ", its kernels included,"
        if gain > share + room:
            raise NotYet(
                f"without-{fault}: the mend saves {gain:.1%} of the step, and the part has a share of "
                f"{share:.1%}{beside} by the profile. A part cannot save more than it takes; the noise of the two is "
                f"{room:.1%}. {BUSY}",
                "gain above the share",
            )
        if record.environment.kind != "cpu":
            continue  # waiting that a part loses there turns up in another part
        left = _left(record, shares)[fault]
        least = min(shares[fault], raw)
        if gain < LEAST * (least - left) - room:
            raise NotYet(
                f"without-{fault}: the mend saves {gain:.1%} of the step. By the profile the part has {least:.1%} and "
                f"keeps {left:.1%} after its mend; the noise is {room:.1%}. {BUSY}",
                "gain below the share",
            )


def _ladder(record: Record, first: tuple[float, float]) -> float:
    """One mend more never makes the step slower. Returns what all of them save."""
    gain, room = first
    for mends in range(2, len(FAULTS) + 1):
        case = f"mended-{mends}"
        more, noise = _gain(record, case)
        if more < gain - math.hypot(room, noise):
            raise NotYet(
                f"{case}: with {mends} mends the step saves {more:.1%}, with one mend less {gain:.1%}. {BUSY}",
                "slower with a mend",
            )
        gain, room = more, noise
    if gain <= 0:
        raise NotYet("mended-5: the loop without faults is no faster than the one with all five.", "slower with a mend")
    return gain


def _curves(record: Record) -> None:
    """One seed gives one curve, another seed another one, and the faults change nothing of what is learned."""
    names = ("seed-0", "seed-0-again", "seed-1", "seed-0-clean")
    curves = {name: sample_of(record, name, "loss").values for name in names}
    first = curves["seed-0"]
    if len({len(values) for values in curves.values()}) > 1 or len(first) < FEWEST_REPEATS:
        raise NotYet("The loss curves differ in length, or have hardly any steps.", "damaged")
    if any(not value > 0 for values in curves.values() for value in values):
        raise NotYet("A loss is not positive. A cross-entropy is.", "damaged")

    def apart(case: str) -> float:
        return max(abs(a / b - 1) for a, b in zip(curves[case], first, strict=True))

    if record.environment.kind == "cpu":
        if curves["seed-0-again"] != first:
            step = next(k for k, (a, b) in enumerate(zip(curves["seed-0-again"], first, strict=True)) if a != b)
            raise NotYet(
                f"seed-0-again: in step {step} the loss is {curves['seed-0-again'][step]!r}, and {first[step]!r} in "
                "seed-0. The same seed on the same CPU with the same number of threads gives the same bits.",
                "not reproducible",
            )
    elif apart("seed-0-again") > SAME_CURVE:
        raise NotYet(
            f"seed-0-again: a loss is {apart('seed-0-again'):.1%} away from that of seed-0. Kernels that add in "
            "another order change the last digits, not the first ones.",
            "not reproducible",
        )
    if curves["seed-1"] == first:
        raise NotYet("seed-1: the curve is that of seed-0. Another seed must give another one.", "seed without effect")
    if apart("seed-0-clean") > SAME_CURVE:
        raise NotYet(
            f"seed-0-clean: a loss is {apart('seed-0-clean'):.1%} away from that of seed-0. The faults cost time; they "
            "must not change what is learned.",
            "another training",
        )
    if not first[-1] < first[0]:
        raise NotYet("seed-0: the loss does not fall. Does the loop train?", "no training")


def _efficiency(record: Record) -> tuple[float, float]:
    """The step's operations per second over those of a large product, with all faults and with none."""
    product = sample_of(record, "peak", "time")
    flops = 2 * count(product, "m", "profiling") * count(product, "n", "profiling") * count(product, "k", "profiling")
    peak = flops / middle_of(record, "peak", "time")
    within_datasheet(record, "peak", peak, "fp32")
    found = []
    for case in ("all-faults", "mended-5"):
        rate = count(sample_of(record, case, "time"), "flops", "profiling") / middle_of(record, case, "time")
        plausible(
            case, rate, peak, unit=FLOP_PER_SECOND, noise=PEAK_NOISE, than="the rate of a large product",
            why=f"A training step does not multiply faster than a large product of its dtype. {BUSY}",
        )  # fmt: skip
        found.append(rate / peak)
    return found[0], found[1]


def _loaders(record: Record) -> None:
    """With workers or without, a step takes at least as long as its computation."""
    compute = middle_of(record, "compute", "time")
    for sample in measured(record, "time"):
        if text(sample, "role", "profiling") != "loader":
            continue
        case, seconds = text(sample, "case", "profiling"), median(sample.values)
        if seconds * LOADER_NOISE < compute:
            raise NotYet(
                f"{case}: a step takes {show(seconds, SECOND)}, and its computation alone {show(compute, SECOND)} "
                f"where the batches lie ready. A loader cannot make it faster than that. {BUSY}",
                "faster than the computation",
            )


CHECKERS: dict[str, Callable[[Any], str | None]] = {
    f.__name__: f
    for f in (
        amdahl,
        busy_share,
        self_times,
        range_shares,
        train_epoch,
        step_starts,
        seeded_loader,
        cpu_efficiency,
        ablation,
        own_record,
    )
}
