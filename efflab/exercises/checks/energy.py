"""Checkers of the code and measurement exercises on energy."""

from __future__ import annotations

import bisect
import copy
import itertools
import math
import random
import textwrap
from collections.abc import Callable, Sequence
from typing import Any

from efflab.catalog.energy import PowerCurve, power_curves
from efflab.exercises.checks import NotYet, Subject, a_number, close, recognise, short, written
from efflab.exercises.checks.records import (
    at_scale,
    command,
    measured,
    middle,
    own,
    plausible,
    reconciled,
    steady,
    text,
    timed_well,
    whole,
    whole_of_spec,
    with_function,
    within_datasheet,
)
from efflab.formulas import energy as formulas
from efflab.reconcile import datasheet, modelled_energy
from efflab.records import TRUSTED, Record, Sample, median
from efflab.units import JOULE, SECOND, WATT, Unit, show

NEAR = 1e-6  # relative

Case = tuple[dict[str, Any], str]  # arguments by name, and what is special about them
Rule = Callable[..., Any]  # a right or a mistaken solution


class _Tried(Subject):
    """A learner's function that gets copies of its arguments, so that a message shows what was given.

    `changed` names the arguments that the last call changed in place.
    """

    changed: tuple[str, ...] = ()

    def __call__(self, **arguments: Any) -> Any:
        """Call it with copies."""
        given = copy.deepcopy(arguments)
        try:
            return super().__call__(**given)
        except NotYet as error:  # it shows what the function left of the copies
            said = str(error).replace(self.describe(**given), self.describe(**arguments), 1)
            raise NotYet(said, error.name) from None
        finally:
            self.changed = tuple(name for name, value in arguments.items() if _differs(given[name], value))


def _differs(left: Any, given: Any) -> bool:
    try:
        return bool(left != given)
    except Exception:  # what the learner left there may refuse to be compared
        return True


def _in_full(name: str, arguments: dict[str, Any], place: str, changed: Sequence[str]) -> str:
    """Lines with a call that can be pasted, and with what the function changed of its input."""
    call = f"{name}({', '.join(f'{k}={v!r}' for k, v in arguments.items())})"
    lines = textwrap.wrap(
        call, 96, initial_indent="  ", subsequent_indent="      ", break_long_words=False, break_on_hyphens=False
    )
    said = "\n".join([f"To repeat it ({place}):", *lines])
    if changed:
        names = " and ".join(f"`{n}`" for n in changed)
        said += f"\nYour function changed {names} in place. The call shows what was given: change a copy instead."
    return said


def _place(number: int, of: int, seed: int) -> str:
    return f"example {number} of {of}, drawn with seed {seed}, the same at every check"


def _number_or_none(call: str, value: Any) -> float | None:
    """What a learner's function gave, where None is an answer too."""
    return None if value is None else a_number(written(call, value), value, "a number or None")


def _same(a: Any, b: Any) -> bool:
    """Whether two answers are equal: None, numbers, or tuples of numbers."""
    if a is None or b is None:
        return a is b
    if isinstance(a, tuple):
        return len(a) == len(b) and all(map(_same, a, b))
    return close(a, b, NEAR)


def _judge(
    function: _Tried,
    cases: Sequence[Case],
    seed: int,
    read: Callable[[str, Any], Any],
    right: Rule,
    mistakes: Sequence[tuple[str, Rule, str]],
    advice: str = "",
) -> None:
    """Call a learner's function on all cases; name the mistake that explains all of its answers.

    Args:
        seed: what the cases were drawn with.
        read: turns the call as text and what it gave into an answer, or raises `NotYet`.
        right: the right answer for a case's arguments.
        mistakes: for each its name, its answers, and what to say.
        advice: what to say where no mistake is recognised.

    Raises:
        NotYet: an answer is wrong.
    """
    told = []
    for number, (arguments, _) in enumerate(cases, 1):
        place = _place(number, len(cases), seed)
        try:
            value = function(**arguments)
            answer = read(function.describe(**arguments), value)
        except NotYet as error:
            full = _in_full(function.name, arguments, place, function.changed)
            raise NotYet(f"{error}\n{full}", error.name) from None
        told.append((answer, _in_full(function.name, arguments, place, function.changed)))
    answers = [answer for answer, _ in told]
    wrong = next((i for i, (given, _) in enumerate(cases) if not _same(answers[i], right(**given))), None)
    if wrong is None:
        return
    (arguments, note), (got, full) = cases[wrong], told[wrong]
    said = f"{function.describe(**arguments)} gives {_shown(got)}; {_shown(right(**arguments))} is right"
    for name, rule, why in mistakes:
        if all(_same(answer, rule(**given)) for answer, (given, _) in zip(answers, cases, strict=True)):
            raise NotYet(f"{said}: {why}\n{full}", name)
    if all(answer is None for answer in answers):
        raise NotYet(f"{said}. There is an answer here. Is a `return` missing?\n{full}", "none in place of a number")
    raise NotYet(f"{said}{': ' + note if note else ''}.{' ' + advice if advice else ''}\n{full}")


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return f"({', '.join(map(_shown, value))})"
    return short(float(value)) if isinstance(value, int) else short(value)


# 1. From watts to joules


def _integral(
    times: list[float],
    watts: list[float],
    begin: float,
    end: float,
    *,
    weigh: Callable[[float, float], float] = lambda before, after: (before + after) / 2,
    ends: bool = True,
    outside: bool = False,
) -> float | None:
    """Energy in a window; `weigh` makes one power of two, and the switches are mistakes."""
    if not outside and not times[0] <= begin <= end <= times[-1]:
        return None

    def power(at: float) -> float:
        i = bisect.bisect_right(times, at)
        if i == 0 or i == len(times):
            return watts[0] if i == 0 else watts[-1]
        share = (at - times[i - 1]) / (times[i] - times[i - 1])
        return watts[i - 1] + share * (watts[i] - watts[i - 1])

    inner = [t for t in times if begin < t < end] if ends else [t for t in times if begin <= t <= end]
    moments = [begin, *inner, end] if ends else inner
    powers = [power(t) for t in moments]
    return math.fsum(
        weigh(p, q) * (b - a)
        for (a, b), (p, q) in zip(itertools.pairwise(moments), itertools.pairwise(powers), strict=True)
    )


def _mean_power(times: list[float], watts: list[float], begin: float, end: float) -> float | None:
    if _integral(times, watts, begin, end) is None:
        return None
    inside = [w for t, w in zip(times, watts, strict=True) if begin <= t <= end]
    return math.fsum(inside) / len(inside) * (end - begin) if inside else 0.0


def _zero_for_none(rule: Rule) -> Rule:
    return lambda **arguments: 0.0 if (found := rule(**arguments)) is None else found


def _scaled(rule: Rule, factor: Callable[..., float]) -> Rule:
    return lambda **arguments: None if (found := rule(**arguments)) is None else found * factor(**arguments)


INTEGRAL_MISTAKES: tuple[tuple[str, Rule, str], ...] = (
    (
        "mean power times time",
        _mean_power,
        "that is the mean of the readings times the length of the window. Readings that lie close together would then "
        "count for more than those far apart: weigh each interval with its own length.",
    ),
    (
        "earlier reading",
        lambda **a: _integral(**a, weigh=lambda before, after: before),
        "you let the power stay at the earlier reading until the next. The trapezoid rule takes the mean of both.",
    ),
    (
        "later reading",
        lambda **a: _integral(**a, weigh=lambda before, after: after),
        "you took the later reading of each interval. The trapezoid rule takes the mean of both.",
    ),
    (
        "the whole series",
        lambda times, watts, begin, end: (
            None if _integral(times, watts, begin, end) is None else _integral(times, watts, times[0], times[-1])
        ),
        "that is the energy of all readings. Only what lies between `begin` and `end` counts.",
    ),
    (
        "the parts at the ends left out",
        lambda **a: None if _integral(**a) is None else _integral(**a, ends=False),
        "the parts between `begin` and the first reading after it, and between the last one and `end`, are missing.",
    ),
    (
        "made up outside",
        lambda **a: _integral(**a, outside=True),
        "the window reaches beyond the readings, where numpy.interp and the like go on with the first or last power. "
        "Nothing was measured there: return None.",
    ),
    (
        "cut to the readings",
        lambda times, watts, begin, end: _integral(
            times, watts, first := min(max(begin, times[0]), times[-1]), max(first, min(end, times[-1]))
        ),
        "you cut the window to what was read, and the energy of a shorter window comes back unnoticed. Return None.",
    ),
    ("zero in place of none", _zero_for_none(_integral), "0 J would say that nothing was taken. Return None."),
    (
        "mean power",
        _scaled(_integral, lambda times, watts, begin, end: 1 / (end - begin)),
        "that is the mean power in watts. Energy is asked for.",
    ),
    (
        "watt-hours",
        _scaled(_integral, lambda **a: 1 / 3600),
        "those are watt-hours. Watts times seconds are joules.",
    ),
)


def integrate_power(answer: Any) -> None:
    """Windows that begin and end anywhere, of readings at uneven distances, and such that reach beyond them."""
    function = _Tried(answer, "integrate_power", "times", "watts", "begin", "end")
    seed = 61
    draw = random.Random(seed)
    cases: list[Case] = [
        ({"times": [0.0, 1.0, 3.0], "watts": [100.0, 200.0, 400.0], "begin": 0.0, "end": 3.0}, ""),
        ({"times": [0.0, 1.0, 3.0], "watts": [100.0, 200.0, 400.0], "begin": 0.0, "end": 1.0}, "the first second"),
        (
            {"times": [0.0, 1.0, 3.0], "watts": [100.0, 200.0, 400.0], "begin": 0.5, "end": 2.0},
            "at 0.5 s the power is 150 W, at 2 s 300 W",
        ),
        (
            {"times": [0.0, 4.0], "watts": [60.0, 100.0], "begin": 1.0, "end": 2.0},
            "the whole window lies between two readings, and from 1 s to 2 s the power runs from 70 W to 80 W",
        ),
    ]
    for _ in range(12):
        times = [round(draw.uniform(0, 5), 3)]
        for _ in range(draw.randint(2, 12)):
            times.append(round(times[-1] + draw.choice((0.01, 0.1, 0.5, 3.0)) * draw.uniform(0.5, 1.5), 3))
        watts = [round(draw.uniform(60, 700), 1) for _ in times]
        begin, end = sorted(round(draw.uniform(times[0], times[-1]), 3) for _ in range(2))
        cases.append(({"times": times, "watts": watts, "begin": begin, "end": end}, ""))
    for begin, end, note in (
        (1.5, 3.0, "`begin` lies before the first reading"),
        (3.0, 9.5, "`end` lies behind the last reading"),
        (1.0, 9.5, "both ends lie outside of the readings"),
    ):
        cases.append(({"times": [2.0, 3.0, 5.0, 9.0], "watts": [300.0, 310.0, 90.0, 95.0], "begin": begin, "end": end},
                      note))  # fmt: skip
    _judge(function, cases, seed, _number_or_none, _integral, INTEGRAL_MISTAKES)


# 2. A counter that wraps


def _gained(
    readings: list[tuple[float, float]],
    wraps_at: float | None,
    max_power: float,
    *,
    back: Callable[[float, float, float], float] | None = lambda before, after, wraps_at: wraps_at - before + after,
    bounded: bool = True,
    unseen: bool = True,
    moved: bool = True,
) -> float | None:
    """What a counter gained. `back` is the gain where it went back; the switches are checks that may be left out."""
    gains = []
    for (begin, before), (end, after) in itertools.pairwise(readings):
        possible, gain = max_power * (end - begin), after - before
        if unseen and wraps_at is not None and possible >= wraps_at:
            return None
        if gain < 0:
            if wraps_at is None or back is None:
                return None
            gain = back(before, after, wraps_at)
        if bounded and gain > possible:
            return None
        gains.append(gain)
    total = math.fsum(gains)
    return None if moved and total == 0 else total


def _last_less_first(readings: list[tuple[float, float]], wraps_at: float | None, max_power: float) -> float:
    return readings[-1][1] - readings[0][1]


def _only_rises(readings: list[tuple[float, float]], wraps_at: float | None, max_power: float) -> float | None:
    """A counter that goes back gains nothing in that interval."""
    gains = [max(0.0, b - a) for (_, a), (_, b) in itertools.pairwise(readings)]
    possible = [max_power * (t - s) for (s, _), (t, _) in itertools.pairwise(readings)]
    doubtful = any(g > p for g, p in zip(gains, possible, strict=True)) or not any(gains)
    return None if doubtful or (wraps_at is not None and max(possible) >= wraps_at) else math.fsum(gains)


COUNTER_MISTAKES: tuple[tuple[str, Rule, str], ...] = (
    (
        "last less first",
        _last_less_first,
        "that is the last reading less the first. It is wrong where the counter began at 0 again in between, and says "
        "nothing of what happened there: take the readings two by two.",
    ),
    (
        "wraps left out",
        lambda **a: _gained(**a, back=None),
        "the counter begins at 0 again at `wraps_at`, and what it gained is known all the same: "
        "wraps_at − before + after.",
    ),
    (
        "after the wrap alone",
        lambda **a: _gained(**a, back=lambda before, after, wraps_at: after),
        "you counted what came after the wrap. What was left up to it, wraps_at − before, belongs to it as well.",
    ),
    (
        "nothing gained where it went back",
        _only_rises,
        "you left out the interval in which the counter went back. Where it wrapped, the energy is known; where it was "
        "set to zero, there is no number.",
    ),
    (
        "no bound by the power",
        lambda **a: _gained(**a, bounded=False),
        "the counter rose by more than `max_power` allows in that time. So does one that was set to zero, if it is "
        "taken for a wrap.",
    ),
    (
        "wraps unseen",
        lambda **a: _gained(**a, unseen=False),
        "between two readings a device at `max_power` may have taken `wraps_at` joules: the counter may have gone "
        "round once more, and no reading shows it.",
    ),
    (
        "zero without a change",
        lambda **a: _gained(**a, moved=False),
        "a counter that does not move measures nothing. A device that is on takes energy.",
    ),
    (
        "never none",
        lambda **a: _gained(**a, bounded=False, unseen=False, moved=False),
        "not every difference is an energy. Of the four conditions for None you check one.",
    ),
    ("zero in place of none", _zero_for_none(_gained), "0 J would say that nothing was taken. Return None."),
)


def _counted(
    draw: random.Random, wraps_at: float | None, max_power: float, step: float, start: float
) -> list[tuple[float, float]]:
    """A counter's readings, of a device at 20% to 90% of its power."""
    at, joules, readings = draw.uniform(0, 9), start, []
    for _ in range(draw.randint(3, 9)):
        readings.append((round(at, 3), round(joules, 1)))
        seconds = step * draw.uniform(0.6, 1.4)
        joules += draw.uniform(0.2, 0.9) * max_power * seconds
        joules -= wraps_at * (joules // wraps_at) if wraps_at else 0.0
        at += seconds
    return readings


def joules_gained(answer: Any) -> None:
    """Counters that rise, wrap, are set to zero, jump, stand still, or may have gone round unseen."""
    function = _Tried(answer, "joules_gained", "readings", "wraps_at", "max_power")
    seed = 62
    draw = random.Random(seed)
    cases: list[Case] = []

    def add(readings: list[tuple[float, float]], wraps_at: float | None, max_power: float, note: str) -> None:
        cases.append(({"readings": readings, "wraps_at": wraps_at, "max_power": max_power}, note))

    add([(0.0, 5000.0), (10.0, 7000.0)], None, 300.0, "")
    add(
        [(0.0, 900.0), (2.0, 1000.0), (4.0, 100.0)],
        1050.0,
        100.0,
        "from 1,000 J to the wrap at 1,050 J and on to 100 J",
    )
    for _ in range(4):
        add(_counted(draw, None, 700.0, 5.0, 1e6), None, 700.0, "")
        add(_counted(draw, 65536.0, 250.0, 60.0, 60000.0), 65536.0, 250.0, "the counter wraps at 65,536 J")
    add([(0.0, 9e5), (5.0, 9.02e5), (10.0, 1500.0), (15.0, 3200.0)], None, 700.0, "the counter was set to zero")
    add([(0.0, 30000.0), (10.0, 31000.0), (20.0, 800.0)], 65536.0, 250.0,
        "it went back, and as a wrap it would be 35,336 J in 10 s, at 2,500 J at most: it was set to zero")  # fmt: skip
    add([(0.0, 100.0), (1.0, 90100.0), (2.0, 90500.0)], None, 700.0, "90,000 J in a second, at 700 W at most")
    add([(0.0, 60000.0), (300.0, 20000.0)], 65536.0, 250.0,
        "in 300 s a device at 250 W may take 75,000 J, more than one round of the counter")  # fmt: skip
    add([(0.0, 20000.0), (400.0, 30000.0), (410.0, 31000.0)], 65536.0, 250.0,
        "in 400 s a device at 250 W may take 100,000 J, more than one round of the counter")  # fmt: skip
    add([(0.0, 5000.0), (0.04, 5000.0)], None, 700.0, "the counter did not move")
    add([(0.0, 5000.0), (0.04, 5000.0), (0.2, 5060.0)], None, 700.0, "it did not move at first, and then it did")
    add([(0.0, 5000.0), (0.04, 5000.0), (0.09, 5000.0)], 65536.0, 700.0, "the counter did not move")
    _judge(function, cases, seed, _number_or_none, _gained, COUNTER_MISTAKES)


# 3. The best power limit

Curve = list[tuple[float, float, float]]


def _best(
    curve: Curve,
    energy_weight: float,
    slowest: float,
    *,
    cost: Callable[[float, float, float, float, float], float] | None = None,
    bound: Callable[[Curve], float] | None = lambda curve: max(curve)[2],
    top: Callable[[Curve], float] = lambda curve: max(curve)[0],
) -> float:
    """The limit of least cost; cost(limit, joules, seconds, P, eta) and the bound's reference may be mistaken."""
    largest = top(curve)
    allowed = [row for row in curve if bound is None or row[2] <= slowest * bound(curve)] or list(curve)
    if cost is None:
        return min(allowed, key=lambda row: _zeus(row, largest, energy_weight))[0]
    return min(allowed, key=lambda row: cost(*row, largest, energy_weight))[0]


def _zeus(row: tuple[float, float, float], largest: float, weight: float) -> float:
    return formulas.zeus_cost(energy=row[1], duration=row[2], largest_power=largest, energy_weight=weight)


LIMIT_MISTAKES: tuple[tuple[str, Rule, str], ...] = (
    (
        "lowest limit",
        lambda **a: _best(**a, bound=None, cost=lambda limit, e, t, top, w: limit),
        "the lowest limit is not the one of least energy: what flows whatever the device does flows for longer.",
    ),
    (
        "lowest limit allowed",
        lambda **a: _best(**a, cost=lambda limit, e, t, top, w: limit),
        "that is the lowest limit that is fast enough. Compare the costs.",
    ),
    (
        "largest limit",
        lambda **a: _best(**a, cost=lambda limit, e, t, top, w: -limit),
        "you always take the largest limit. Compare the costs.",
    ),
    (
        "energy alone",
        lambda **a: _best(**a, cost=lambda limit, e, t, top, w: e),
        "that is the least energy, whatever η says. Time has its cost too.",
    ),
    (
        "time alone",
        lambda **a: _best(**a, cost=lambda limit, e, t, top, w: t),
        "that is the least time, whatever η says.",
    ),
    (
        "weights exchanged",
        lambda **a: _best(**a, cost=lambda limit, e, t, top, w: (1 - w) * e + w * top * t),
        "η belongs to the energy, and 1 − η to the time.",
    ),
    (
        "its own limit as the power",
        lambda **a: _best(**a, cost=lambda limit, e, t, top, w: w * e + (1 - w) * limit * t),
        "a second costs the same under every limit: P is the largest limit of the curve.",
    ),
    (
        "time without the power",
        lambda **a: _best(**a, cost=lambda limit, e, t, top, w: w * e + (1 - w) * t),
        "you added joules and seconds. P turns the seconds into joules.",
    ),
    (
        "bound left out",
        lambda **a: _best(**a, bound=None),
        "its time is more than `slowest` times that of the largest limit.",
    ),
    (
        "bound by the fastest",
        lambda **a: _best(**a, bound=lambda curve: min(row[2] for row in curve)),
        "the bound is `slowest` times the time of the largest limit. In measurements that need not be the fastest row.",
    ),
    (
        "last row as the largest",
        lambda **a: _best(**a, bound=lambda curve: curve[-1][2], top=lambda curve: curve[-1][0]),
        "you took the last row for that of the largest limit. The rows come in any order.",
    ),
    (
        "first row as the largest",
        lambda **a: _best(**a, bound=lambda curve: curve[0][2], top=lambda curve: curve[0][0]),
        "you took the first row for that of the largest limit. The rows come in any order.",
    ),
)


def _absolute(measured: PowerCurve) -> Curve:
    """A curve of the catalog, which is relative, for a run of 100 s at four fifths of the largest limit."""
    seconds = 100.0
    joules = 0.8 * measured.limits[-1].limit_w * seconds
    return [(row.limit_w, round(row.energy * joules, 1), round(row.time * seconds, 3)) for row in measured.limits]


def _curve(draw: random.Random) -> Curve:
    """Energy and time under seven limits, of a device whose voltage falls with its clock."""
    top = draw.choice((250.0, 300.0, 400.0, 700.0))
    static, seconds = top * draw.uniform(0.15, 0.35), draw.uniform(50, 5000)
    dynamic = (top * draw.uniform(0.7, 0.95) - static) * seconds
    rows = []
    for share in (0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0):
        slowdown = (1 / share) ** draw.uniform(0.6, 1.1)
        joules = formulas.slowed_energy(
            dynamic_energy=dynamic, static_power=static, duration=seconds, slowdown=slowdown
        )
        rows.append((round(share * top), round(joules), round(slowdown * seconds * draw.uniform(0.98, 1.02), 1)))
    draw.shuffle(rows)
    return [(float(limit), float(joules), seconds) for limit, joules, seconds in rows]


def best_limit(answer: Any) -> None:
    """Curves in any order, weights from 0 to 1, bounds that bind and bounds that do not."""
    function = _Tried(answer, "best_limit", "curve", "energy_weight", "slowest")
    seed = 63
    draw = random.Random(seed)
    cases: list[Case] = [
        ({"curve": _absolute(measured), "energy_weight": weight, "slowest": slowest}, f"the curve is of {name}")
        for name, measured in power_curves().items()
        for weight, slowest in ((1.0, 10.0), (0.5, 10.0), (0.0, 10.0), (1.0, 1.1), (0.9, 3.0))
    ]
    # The largest limit is not the fastest row, so that 10.6 s is allowed and 1.05 × 9.8 s would not be.
    odd = [(200.0, 700.0, 10.6), (250.0, 950.0, 9.8), (300.0, 1000.0, 10.2)]
    cases.append(({"curve": odd, "energy_weight": 1.0, "slowest": 1.05}, "10.6 s are within 1.05 × 10.2 s"))
    for _ in range(24):
        weight, slowest = draw.choice((0.0, 0.2, 0.5, 0.7, 0.9, 1.0)), draw.choice((1.05, 1.2, 1.5, 2.0, 10.0))
        cases.append(({"curve": _curve(draw), "energy_weight": weight, "slowest": slowest}, ""))

    def read(call: str, value: Any) -> float:
        found = _number_or_none(call, value)
        if found is None:
            raise NotYet(f"{call} returns nothing. Is the `return` missing?")
        return found

    def known(**arguments: Any) -> float:
        return _best(**arguments)

    advice = "Write down the cost of each row, η E + (1 − η) P t, and leave out those that are too slow."
    _judge(function, cases, seed, read, known, LIMIT_MISTAKES, advice)


# 4. Joules for a sample

Windows = list[tuple[float, float, int]]


def _per_sample(windows: Windows, batch: int, idle_power: float) -> tuple[float, float]:
    """Joules of a sample, all and above idle, of all windows together."""
    joules, seconds, calls = (math.fsum(column) for column in zip(*windows, strict=True))
    above = formulas.energy_above_idle(energy=joules, idle_power=idle_power, duration=seconds)
    return joules / (calls * batch), above / (calls * batch)


def joules_per_sample(answer: Any) -> None:
    """Windows of unequal length, with and without idle power, and such that lie below it."""
    function = _Tried(answer, "joules_per_sample", "windows", "batch", "idle_power")
    seed = 64
    draw = random.Random(seed)
    cases: list[tuple[Windows, int, float]] = [
        ([(600.0, 3.0, 100)], 1, 0.0),
        ([(600.0, 3.0, 100)], 8, 70.0),
        ([(600.0, 3.0, 100), (100.0, 1.0, 10)], 8, 70.0),
        ([(190.0, 3.0, 40), (260.0, 3.0, 41)], 4, 70.0),  # one window below idle
        ([(190.0, 3.0, 40), (200.0, 3.0, 41)], 4, 70.0),  # all of them
    ]
    for _ in range(12):
        idle, batch = round(draw.uniform(20, 120), 1), draw.choice((1, 4, 32, 256, 4096))
        windows = []
        for _ in range(draw.randint(2, 6)):
            seconds = round(draw.uniform(0.5, 9), 3)
            windows.append((round(draw.uniform(1.2, 8) * idle * seconds, 1), seconds, draw.randint(2, 4000)))
        cases.append((windows, batch, idle))
    for number, case in enumerate(cases, 1):
        arguments = dict(zip(("windows", "batch", "idle_power"), case, strict=True))
        try:
            _judge_samples(function, arguments)
        except NotYet as error:
            full = _in_full(function.name, arguments, _place(number, len(cases), seed), function.changed)
            raise NotYet(f"{error}\n{full}", error.name) from None


def _judge_samples(function: _Tried, arguments: dict[str, Any]) -> None:
    """Call a learner's function on one set of windows; name its mistake."""
    whole, above = function.numbers("joules", "above_idle", **arguments)
    right = _per_sample(**arguments)
    if close(whole, right[0], NEAR) and (close(above, right[1], NEAR) or abs(above - right[1]) < NEAR * right[0]):
        return
    said = f"{function.describe(**arguments)} gives ({whole:.6g}, {above:.6g})"
    _name_sample_mistake(said, whole, above, *arguments.values(), right)
    raise NotYet(f"{said}; ({right[0]:.6g}, {right[1]:.6g}) is right.")


def _name_sample_mistake(
    said: str, whole: float, above: float, windows: Windows, batch: int, idle: float, right: tuple[float, float]
) -> None:
    joules, seconds, calls = (math.fsum(column) for column in zip(*windows, strict=True))
    samples = calls * batch
    if not close(*right, NEAR) and close(whole, right[1], NEAR) and close(above, right[0], NEAR):
        raise NotYet(f"{said}: the other way round. All of it first, then what lies above idle.", "exchanged")
    each = [e / (n * batch) for e, _, n in windows]
    wrong = not close(whole, right[0], NEAR)
    recognise(f"{said}: not the joules of a sample", whole, (
        ("batch left out", joules / calls, "those of a call, and each call has `batch` samples."),
        ("mean of the windows", math.fsum(each) / len(each), "the mean of the windows' own ratios. A short window "
         "counts as much as a long one then: add up joules and samples first."),
        ("mean power", joules / seconds, "the mean power in watts."),
        ("windows in place of calls", joules / (len(windows) * batch), "divided by the number of windows. Each has "
         "many calls."),
        ("turned over", samples / joules if joules else 0.0, "samples per joule. Joules per sample are asked for."),
        ("calls left out", joules / batch, "not divided by the calls."),
        ("not divided", joules, "those of all samples."),
    ) if wrong else (), NEAR)  # fmt: skip
    clipped = math.fsum(max(0.0, e - idle * t) for e, t, _ in windows)
    recognise(f"{said}: not the joules above idle", above, (
        ("below zero", (joules - idle * seconds) / samples, "less than zero. The device took less than it does idle, "
         "by the noise of a counter; more than that cannot be said: 0."),
        ("idle power without time", (joules - idle) / samples, "less the idle power in watts. Times the seconds of the "
         "windows it is energy."),
        ("each window above zero", clipped / samples, "with each window cut at zero on its own. So noise upwards stays "
         "and noise downwards goes: add up all windows first."),
        ("idle left in", joules / samples, "the same as all of it: idle power was not taken off."),
        ("idle for each sample", right[0] - idle * seconds, "with the idle energy of all windows taken off one "
         "sample."),
        ("batch left out", right[1] * batch, "that of a call, and each call has `batch` samples."),
    ) if not wrong else (), NEAR)  # fmt: skip


# 5. When to start


def _start(
    intensity: list[float],
    kilowatts: list[float],
    deadline: int,
    *,
    key: Callable[[list[float], list[float], int], float] | None = None,
    last: Callable[[int, int, int], int] = lambda hours, deadline, length: min(hours, deadline) - length,
    grams: Callable[[list[float], list[float], int], float] | None = None,
    latest: bool = False,
) -> tuple[float, float] | None:
    """The best start and its carbon; `key` is what is least there, `last` the last start, `grams` what is returned."""
    starts = range(last(len(intensity), deadline, len(kilowatts)) + 1)
    # A mistaken last start may reach beyond the forecast, where there is nothing to compare.
    starts = [s for s in starts if s + len(kilowatts) <= len(intensity)]
    if not starts:
        return None
    chosen = min(starts[::-1] if latest else starts, key=lambda s: (key or _grams)(intensity, kilowatts, s))
    return float(chosen), float((grams or _grams)(intensity, kilowatts, chosen))


def _grams(intensity: list[float], kilowatts: list[float], start: int) -> float:
    return math.fsum(kw * intensity[start + i] for i, kw in enumerate(kilowatts))


def _evenly(intensity: list[float], kilowatts: list[float], start: int) -> float:
    length = len(kilowatts)
    return math.fsum(kilowatts) / length * math.fsum(intensity[start : start + length])


START_MISTAKES: tuple[tuple[str, Rule, str], ...] = (
    (
        "cleanest first hour",
        lambda **a: _start(**a, key=lambda i, k, s: i[s]),
        "you start in the cleanest hour. The job runs on: add up all of its hours.",
    ),
    (
        "mean power",
        lambda **a: _start(**a, key=_evenly, grams=_evenly),
        "you spread the energy evenly over the hours. Each hour's power meets that hour's grid.",
    ),
    (
        "power left out",
        lambda **a: _start(**a, key=lambda i, k, s: math.fsum(i[s : s + len(k)])),
        "you look for the hours of the cleanest grid. The hours in which the job takes most count most.",
    ),
    (
        "hours turned round",
        lambda **a: _start(**a, key=lambda i, k, s: _grams(i, k[::-1], s), grams=lambda i, k, s: _grams(i, k[::-1], s)),
        "the job's first hour meets the last hour's grid. kilowatts[i] goes with intensity[start + i].",
    ),
    (
        "deadline left out",
        lambda **a: _start(**a, last=lambda hours, deadline, length: hours - length),
        "the job ends after the deadline.",
    ),
    (
        "one hour too late",
        lambda **a: _start(**a, last=lambda hours, deadline, length: min(hours, deadline + 1) - length),
        "the job ends one hour too late. It must have ended before hour `deadline` begins.",
    ),
    (
        "last start left out",
        lambda **a: _start(**a, last=lambda hours, deadline, length: min(hours, deadline) - length - 1),
        "the last possible start is min(deadline, len(intensity)) − len(kilowatts), and it counts too.",
    ),
    (
        "latest of several",
        lambda **a: _start(**a, latest=True),
        "several starts give the same carbon. The earliest one is asked for.",
    ),
    (
        "starts at once",
        lambda **a: _start(**a, key=lambda i, k, s: s),
        "you start at once, whatever the forecast says.",
    ),
    ("most carbon", lambda **a: _start(**a, key=lambda i, k, s: -_grams(i, k, s)), "that is the start of most carbon."),
    (
        "kilograms",
        lambda **a: _start(**a, grams=lambda i, k, s: _grams(i, k, s) / 1000),
        "those are kilograms. Grams are asked for.",
    ),
    (
        "kilowatt-hours",
        lambda **a: _start(**a, grams=lambda i, k, s: math.fsum(k)),
        "that is the energy in kWh. Carbon is asked for.",
    ),
)


def best_start(answer: Any) -> None:
    """Forecasts with nights, noons and equal hours; jobs that are uneven, that barely fit, and that do not."""
    function = _Tried(answer, "best_start", "intensity", "kilowatts", "deadline")
    seed = 65
    draw = random.Random(seed)
    cases: list[Case] = []

    def add(intensity: list[int], kilowatts: list[int], deadline: int, note: str) -> None:
        cases.append(({"intensity": intensity, "kilowatts": kilowatts, "deadline": deadline}, note))

    add([400, 300, 100, 200, 500], [10], 5, "hour 2 is the cleanest")
    add([400, 300, 100, 450, 200, 210], [10, 10], 6, "hours 4 and 5 together are cleaner than hours 2 and 3")
    add([100, 500, 300, 300], [1, 9], 4, "the second hour takes nine times as much")
    add([500, 400, 300, 200, 100], [10, 10], 4, "the job must have ended before hour 4 begins")
    add([500, 400, 300, 200, 100], [10, 10], 5, "a start in hour 3 ends with the forecast")
    add([300, 100, 200, 100, 200], [5, 5], 5, "hours 1 and 3 give the same carbon")
    add([300, 100, 200], [5, 5, 5], 3, "the job fits once")
    add([300, 100, 200], [5, 5, 5], 9, "the forecast ends before the deadline")
    add([300, 100, 200], [5, 5, 5], 2, "three hours do not fit before hour 2")
    add([300, 100], [5, 5, 5], 9, "the forecast is shorter than the job")
    for _ in range(20):
        hours = draw.randint(6, 48)
        intensity = [round(400 + 250 * math.sin(math.tau * h / 24) + draw.uniform(-60, 60)) for h in range(hours)]
        length = draw.randint(1, 6)
        add(intensity, [draw.randint(1, 40) for _ in range(length)], draw.randint(length, hours + 3), "")

    def read(call: str, value: Any) -> tuple[float, float] | None:
        if value is None:
            return None
        try:
            pair = () if isinstance(value, str | bytes | dict | set) else tuple(value)
        except Exception:  # the object is the learner's and may raise anything
            pair = ()
        if len(pair) != 2:
            raise NotYet(f"{written(call, value)}; an hour and its grams, or None, are expected.")
        found = [_number_or_none(call, item) for item in pair]
        hour, grams = found
        if hour is None or grams is None:
            raise NotYet(f"{written(call, value)}. Where the job does not fit, return None alone.")
        if not hour.is_integer():
            raise NotYet(f"{written(call, value)}; the hour first, a whole number, then the grams.")
        return hour, grams

    _judge(function, cases, seed, read, _start, START_MISTAKES)


# The learner's own record

TOPIC = "energy"
TIMED = ("calibration", "inference", "training")  # the other roles measure the counter itself
JOULES = ("energy", "power", "gain", "integrated")  # metrics that only a counter or a sensor gives
MISSING = 0.25  # share of the cases whose energy may be missing, of a window in which the counter was set to zero
POWER_NOISE = 1.25  # how many times a bound on a power is believed
WINDOW_NEAR = 0.8  # of ten periods; a call's time varies
PART_NOISE = 1.1  # how many times the whole run's energy its windows may hold
ENERGY_NEAR = 1.3  # between the windows' sum and the median of the windows
READINGS_NEAR = 2.0  # between counter and power readings; a sensor looks a part of the time
FORWARD_NOISE = 1.1  # how many times a data sheet's rate is believed of a forward pass
FEWEST_BATCHES = 4
BUMP = 1.5  # how many times a sample may cost more than in a smaller batch
SAVING = 1.2  # how many times less a sample of the largest batch must cost


def own_record(answer: Any) -> str:
    """A record of the learner's own device whose energy is measured in trusted windows, or modelled and said to be."""
    record = own(TOPIC, answer)
    timed = _timed(record)
    if not timed:
        raise NotYet(f"Record {record.id} holds no timed cases. Run '{command(TOPIC)}'.", "incomplete")
    timed_well(record.model_copy(update={"samples": timed}))
    at_scale(record)
    said = steady(record, timed, "cases")
    return f"{len(timed)} cases, {said}. " + (
        _measured(record, timed) if record.energy.measured else _unmeasured(record)
    )


def _timed(record: Record) -> list[Sample]:
    return [s for s in measured(record, "time") if text(s, "role", TOPIC) in TIMED]


def _middle(record: Record, metric: str, **point: Any) -> float | None:
    """The median of the first sample of a metric at a point; None where there is none.

    Raises:
        NotYet: it is not a positive number.
    """
    found = measured(record, metric, **point)
    return middle(found[0]) if found else None


def _unmeasured(record: Record) -> str:
    """No counter: the record holds no joules, says why, and gives a band or nothing."""
    energy = record.energy
    for sample in record.samples:
        if sample.status == "ok" and (sample.metric in JOULES or (sample.timing and sample.timing.energy)):
            what = sample.metric if sample.metric in JOULES else "energy"
            raise NotYet(
                f"{sample.point.get('case')}: the record says that no energy was measured over the whole run, and "
                f"holds {what} of this case. Did the counter stop answering? Run '{command(TOPIC)}' again.",
                "joules without a counter",
            )
    if not energy.why:
        raise NotYet(
            f"Record {record.id} has no measured energy and does not say why. Run '{command(TOPIC)}'.", "no reason"
        )
    if energy.source == "none":
        return f"No energy: {energy.why.rstrip('.')}. Times of the same device can still be compared."
    assert energy.band is not None and energy.window_s is not None
    low, high = energy.band
    if energy.windows > 1:  # of several sessions, of which one may have been measured
        return (
            f"Modelled over {energy.windows} sessions: between {show(low, JOULE)} and {show(high, JOULE)}. Not "
            f"measured: {energy.why.rstrip('.')}."
        )
    follows = reconciled(modelled_energy, record, energy.window_s)
    if energy.rating is None or follows is None or not energy.of:
        raise NotYet(
            f"Record {record.id} gives a band of energy and not the rated power that it comes from. "
            f"Run '{command(TOPIC)}'.",
            "no rating",
        )
    least, most = follows
    if not (close(low, least, 1e-6) and close(high, most, 1e-6)):
        raise NotYet(
            f"A band from {show(low, JOULE)} to {show(high, JOULE)} over {show(energy.window_s, SECOND)}: by its "
            f"rating, {show(energy.rating[0], WATT)} to {show(energy.rating[1], WATT)}, it is {show(least, JOULE)} to "
            f"{show(most, JOULE)}. Run '{command(TOPIC)}' again.",
            "another band",
        )
    return (
        f"Modelled: between {show(low, JOULE)} and {show(high, JOULE)} over {show(energy.window_s, SECOND)}, from "
        f"{energy.of}. Not measured: {energy.why.rstrip('.')}."
    )


def _limit(record: Record) -> float | None:
    """The most power that the device may take, W; None where the record does not say."""
    return _middle(record, "limit") or record.environment.power_limit


def _measured(record: Record, timed: list[Sample]) -> str:
    """A counter: windows long enough, powers between idle and the limit, parts within the whole."""
    energy = record.energy
    assert energy.joules is not None and energy.window_s is not None
    if not energy.of or energy.period_s is None:
        raise NotYet(
            f"Record {record.id} does not say which counter was read, or how often it changes. Run '{command(TOPIC)}'.",
            "no counter named",
        )
    idle = _middle(record, "power", role="idle")
    if idle is None:
        raise NotYet(f"Record {record.id} holds no power of the idle device. Run '{command(TOPIC)}'.", "incomplete")
    limit = _limit(record)
    _within(record, "the whole run", energy.joules / energy.window_s, None, limit)
    shortest, powers, parts, missing = math.inf, [], 0.0, []
    for sample in timed:
        case, seconds = text(sample, "case", TOPIC), median(sample.values)
        assert sample.timing is not None  # timed_well has looked
        window = seconds * sample.timing.loops
        if window < WINDOW_NEAR * TRUSTED * energy.period_s:
            raise NotYet(
                f"{case}: windows of {show(window, SECOND)}, and the counter changes every "
                f"{show(energy.period_s, SECOND)}. In fewer than {TRUSTED} periods its joules may be off by more than "
                "a tenth.",
                "short window",
            )
        shortest = min(shortest, window)
        joules = _middle(record, "energy", case=case)
        if joules is None:
            missing.append(sample)
            continue
        powers.append(joules / seconds)
        _within(record, case, powers[-1], idle, limit)
        if sample.timing.energy is not None:
            taken = sample.timing.energy
            parts += taken.joules
            if not 1 / ENERGY_NEAR < taken.joules / taken.calls / joules < ENERGY_NEAR:
                raise NotYet(
                    f"{case}: {show(joules, JOULE)} for a call, and its windows together give "
                    f"{show(taken.joules / taken.calls, JOULE)}. Run '{command(TOPIC)}' again.",
                    "two energies",
                )
    if len(missing) > MISSING * len(timed):
        case = text(missing[0], "case", TOPIC)
        said = next((s.message for s in record.find("energy", case=case)), "it was not read")
        raise NotYet(
            f"{len(missing)} of {len(timed)} cases have no energy, though a counter was read; at most a quarter may. "
            f"{case}: {said.rstrip('.')}. Run '{command(TOPIC)}' again.",
            "incomplete",
        )
    if parts > PART_NOISE * energy.joules:
        raise NotYet(
            f"The windows of the cases hold {show(parts, JOULE)}, and the whole run {show(energy.joules, JOULE)}. A "
            "part takes no more than the whole.",
            "parts above the whole",
        )
    compared = _readings(record)
    error = formulas.counter_error(update_period=energy.period_s, window=shortest)
    shared = f" Others may be in it: {energy.shared.rstrip('.')}." if energy.shared else ""
    return (
        f"Measured by {energy.of}, in windows of {show(shortest, SECOND)} or more: {error:.2g} of it uncertain at most "
        f"by the counter's period. {show(idle, WATT)} idle, up to {show(max(powers), WATT)} at work, "
        f"{show(energy.joules, JOULE)} in all.{compared}{shared}"
    )


def _within(record: Record, case: str, watts: float, idle: float | None, limit: float | None) -> None:
    """A power lies between that of the idle device and its limit."""
    if idle is not None and watts * POWER_NOISE < idle:
        raise NotYet(
            f"{case}: {show(watts, WATT)}, and the idle device took {show(idle, WATT)}. Was something else running "
            f"while it was to be idle? Run '{command(TOPIC)}' again.",
            "idle above work",
        )
    if limit is not None:
        plausible(
            case, watts, limit, unit=WATT, noise=POWER_NOISE, than="the device's power limit",
            why="No counter that is right shows that.", name="above the limit",
        )  # fmt: skip


def _readings(record: Record) -> str:
    """The counter against integrated power readings, where both were had."""
    counted, integrated = (_middle(record, m, role="counter") for m in ("energy", "integrated"))
    if counted is None or integrated is None:
        return ""
    if not 1 / READINGS_NEAR < integrated / counted < READINGS_NEAR:
        raise NotYet(
            f"counter: {show(counted, JOULE)}, and the power readings of the same window give "
            f"{show(integrated, JOULE)}. Run '{command(TOPIC)}' again.",
            "counter against readings",
        )
    return f" Integrated power readings differ by {integrated / counted - 1:+.0%}."


def own_samples(answer: Any) -> str:
    """A sample of a larger batch costs less: joules where a counter was read, seconds everywhere."""
    answer, cost = with_function(answer, "cost", "joules_per_sample")
    record = own(TOPIC, answer)
    at_scale(record)
    samples = _batches(record)
    timed_well(record.model_copy(update={"samples": list(samples.values())}))
    said = steady(record, samples.values(), "batches")
    _possible(record, samples)
    seconds = {b: median(s.values) / b for b, s in samples.items()}
    saved = _falls(seconds, SECOND)
    batches = f"{min(samples)} to {max(samples)}"
    line = (
        f"Batches of {batches} in FP32, {said}. A sample of the largest takes {1 / saved:.1%} of the smallest's time. "
    )
    joules = {
        b: found / b
        for b, s in samples.items()
        if (found := _middle(record, "energy", case=text(s, "case", TOPIC))) is not None
    }
    if record.energy.measured:
        if len(joules) < FEWEST_BATCHES:
            raise NotYet(
                f"Record {record.id} says that a counter was read, and holds joules of {len(joules)} batches; "
                f"{FEWEST_BATCHES} are needed. Run '{command(TOPIC)}'.",
                "incomplete",
            )
        fell = _falls(joules, JOULE)
        line += f"It takes {show(joules[max(joules)], JOULE)}, {1 / fell:.1%} of the smallest's."
    elif band := modelled_energy(record, seconds[max(seconds)]):
        low, high = band
        line += f"Modelled from the rated power, it takes between {show(low, JOULE)} and {show(high, JOULE)}."
    else:
        line += "Its joules are not known: nothing was measured, and no rated power is known."
    return line + (_learners_cost(record, samples, cost) if cost is not None else "")


def _batches(record: Record) -> dict[int, Sample]:
    """The timed forward passes in FP32 by batch, rising."""
    found = {}
    for sample in measured(record, "time", role="inference"):
        if text(sample, "dtype", TOPIC) == "fp32":
            found[whole(sample, "batch", TOPIC)] = sample
    if len(found) < FEWEST_BATCHES:
        raise NotYet(
            f"Record {record.id} holds forward passes in FP32 of {len(found)} batches; {FEWEST_BATCHES} are needed. "
            f"Run '{command(TOPIC)}'.",
            "incomplete",
        )
    return dict(sorted(found.items()))


def _possible(record: Record, samples: dict[int, Sample]) -> None:
    """No batch is faster than the data sheet."""
    if datasheet(record) is None:
        return
    width, layers = (whole_of_spec(record, name) for name in ("width", "layers"))
    for batch, sample in samples.items():
        performance = 2 * layers * width**2 * batch / median(sample.values)
        within_datasheet(
            record, f"the batch of {batch}", performance, "fp32", noise=FORWARD_NOISE,
            why="The time is too short to be true. Was TF32 on?",
        )  # fmt: skip


def _falls(costs: dict[int, float], unit: Unit) -> float:
    """How many times more a sample of the smallest batch costs than one of the largest."""
    least = math.inf
    for batch, value in costs.items():
        if value > BUMP * least:
            raise NotYet(
                f"A sample costs {show(value, unit)} in a batch of {batch}, and {show(least, unit)} in a smaller one. "
                f"Did something else run meanwhile? Run '{command(TOPIC)}' again.",
                "bump",
            )
        least = min(least, value)
    first, last = costs[min(costs)], costs[max(costs)]
    if not last > 0:
        raise NotYet(f"A sample of the largest batch costs {short(last)} {unit.symbol}.", "damaged")
    if first < SAVING * last:
        raise NotYet(
            f"A sample costs {show(first, unit)} in the smallest batch and {show(last, unit)} in the largest. Weights "
            "are read once for each batch, and idle power flows once: a sample of a large batch costs less. Did all "
            f"batches run the same model? Run '{command(TOPIC)}' again.",
            "no saving",
        )
    return first / last


def _learners_cost(record: Record, samples: dict[int, Sample], cost: Any) -> str:
    """The learner's own function gives the joules of the record's windows."""
    function = _Tried(cost, "joules_per_sample", "windows", "batch", "idle_power")
    idle = _middle(record, "power", role="idle") or 0.0
    tried = 0
    for batch, sample in samples.items():
        taken = sample.timing.energy if sample.timing else None
        if taken is None:
            continue
        tried += 1
        windows = [(taken.joules, taken.seconds, taken.calls)]
        got = function.numbers("joules", "above_idle", windows=windows, batch=batch, idle_power=idle)
        right = _per_sample(windows, batch, idle)
        if any(abs(g - r) > NEAR * right[0] for g, r in zip(got, right, strict=True)):
            raise NotYet(
                f"joules_per_sample of your record's batch of {batch} gives ({got[0]:.6g}, {got[1]:.6g}); "
                f"({right[0]:.6g}, {right[1]:.6g}) is right. Does it pass energy-code-4?",
                "another cost",
            )
    return " Your own function agrees." if tried else " There are no windows to try your function on."


CHECKERS: dict[str, Callable[[Any], str | None]] = {
    f.__name__: f
    for f in (
        integrate_power,
        joules_gained,
        best_limit,
        joules_per_sample,
        best_start,
        own_record,
        own_samples,
    )
}
