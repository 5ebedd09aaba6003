"""The code checkers on energy: other right solutions pass, usual mistakes are named, mutations of the notebook's
solutions are refused, nothing escapes."""

from __future__ import annotations

import copy
import itertools
import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from efflab.catalog.energy import power_curves, region
from efflab.exercises import check, questions
from efflab.exercises.checks.energy import (
    COUNTER_MISTAKES,
    INTEGRAL_MISTAKES,
    LIMIT_MISTAKES,
    START_MISTAKES,
    _best,
    _gained,
    _integral,
    _per_sample,
    _start,
)
from tests.exercises import judging

NAMES = {
    1: "times, watts, begin, end",
    2: "readings, wraps_at, max_power",
    3: "curve, energy_weight, slowest",
    4: "windows, batch, idle_power",
    5: "intensity, kilowatts, deadline",
}
FUNCTIONS = {1: "integrate_power", 2: "joules_gained", 3: "best_limit", 4: "joules_per_sample", 5: "best_start"}
verdict, wrong = judging.code("energy", NAMES)
solution = judging.solutions("energy")
STRANGE = [
    *judging.STRANGE, 0.1, [judging.Stubborn()], [], (None, None), (1.5, 100.0), (math.nan, 1.0), (math.inf, 0.0),
    (0, 0), [judging.Stubborn(), judging.Stubborn()], ("1", "2"), (3, None), {1: 2}, (1, 2, 3),
]  # fmt: skip


@pytest.mark.parametrize("number", NAMES)
@pytest.mark.parametrize("value", STRANGE, ids=lambda v: type(v).__name__)
def test_whatever_comes_back_is_answered_in_words(number, value):
    result = verdict(number, lambda *_: value)
    assert result.outcome == "wrong" and result.feedback


@pytest.mark.parametrize("number", NAMES)
def test_an_exit_an_error_and_a_blank_are_answered_in_words(number):
    judging.led_astray("energy", number, verdict)


@pytest.mark.parametrize("number", NAMES)
def test_the_learners_random_state_stays_and_arguments_may_be_changed(number):
    random.seed(5)
    before = random.getstate()
    right = solution(number)

    def untidy(*arguments):
        result = right(*arguments)
        for one in arguments:
            if isinstance(one, list):
                one.clear()
        return result

    assert verdict(number, untidy)
    assert random.getstate() == before


def pasted(feedback, number):
    """The arguments of the call that a message shows to be pasted, in order."""
    lines = [line for line in feedback.splitlines() if line.startswith("  ")]
    assert lines and max(map(len, lines)) <= 100
    return eval("\n".join(lines).strip(), {FUNCTIONS[number]: lambda **arguments: tuple(arguments.values())})


@pytest.mark.parametrize("nth", [1, 8, 16])
@pytest.mark.parametrize("fails", [True, False])
@pytest.mark.parametrize("number", NAMES)
def test_the_call_that_went_wrong_can_be_pasted(number, fails, nth):
    """Of an error and of a wrong value, of the first example and of a drawn one, every digit and also once cleared."""
    right, calls = solution(number), []

    def spoils(*arguments):
        calls.append(copy.deepcopy(arguments))
        result = right(*arguments)
        if len(calls) != nth:
            return result
        next(a for a in arguments if isinstance(a, list)).clear()
        if fails:
            raise KeyError("spoilt")
        return (77.0, 1e9) if number in (4, 5) else 1e9

    said = wrong(number, spoils, None)
    assert pasted(said, number) == calls[nth - 1]
    assert f"example {nth} of " in said and "with seed 6" in said
    first = NAMES[number].split(", ")[0]
    assert f"Your function changed `{first}` in place" in said
    # The short form of the call shows what was given too.
    assert f"({first}=[])" not in said and f"({first}=[]," not in said


@pytest.mark.parametrize("number", NAMES)
def test_a_function_that_changes_nothing_is_not_said_to(number):
    assert "in place" not in verdict(number, lambda *_: 1 / 0).feedback
    assert "in place" not in verdict(number, lambda *_: "x").feedback


def test_what_a_function_leaves_in_its_input_may_be_anything():
    def leaves(readings, wraps_at, max_power):
        readings[0] = judging.Stubborn()
        return 0.0

    assert "changed `readings` in place" in verdict(2, leaves).feedback


# The notebook's solutions and what becomes of them when a line is changed


@pytest.mark.parametrize("number", NAMES)
def test_the_notebooks_solution_is_right(number):
    result = check(f"energy-code-{number}", solution(number))
    assert result.right, result.feedback


MUTATIONS = [
    (1, "if begin < times[0] or end > times[-1]:", "if begin < times[0]:"),
    (1, "if begin < times[0] or end > times[-1]:", "if end > times[-1]:"),
    (1, "if begin < times[0] or end > times[-1]:", "if False:"),
    (1, "begin < times[0]", "begin <= times[0]"),
    (1, "end > times[-1]", "end >= times[-1]"),
    (1, "return None", "return 0.0"),
    (1, "if begin < t < end", ""),
    (1, "[begin, *inner, end]", "inner"),
    (1, "[begin, *inner, end]", "[begin, end]"),
    (1, "[begin, *inner, end]", "[*inner, end]"),
    (1, "(powers[1:] + powers[:-1]) / 2", "powers[1:]"),
    (1, "(powers[1:] + powers[:-1]) / 2", "powers[:-1]"),
    (1, "(powers[1:] + powers[:-1]) / 2", "(powers[1:] + powers[:-1])"),
    (1, " * np.diff(moments)", ""),
    (1, "return float(", "float("),
    (2, "if wraps_at is not None and possible >= wraps_at:", "if False:"),
    (2, "if gain < 0 and wraps_at is None:", "if gain < 0:"),
    (2, "gain += wraps_at", "gain = after"),
    (2, "gain += wraps_at", "gain = -gain"),
    (2, "gain += wraps_at", "gain = 0"),
    (2, "if gain > possible:", "if False:"),
    (2, "if gain > possible:", "if gain > max_power:"),
    (2, "max_power * (later - earlier)", "max_power"),
    (2, "total += gain", "total = gain"),
    (2, "total if total > 0 else None", "total"),
    (2, "total if total > 0 else None", "total if total > 0 else 0"),
    (2, "        total += gain", "        if gain == 0:\n            return None\n        total += gain"),
    (3, "max(curve)", "curve[-1]"),
    (3, "max(curve)", "curve[0]"),
    (3, "max(curve)", "min(curve)"),
    (3, "max(curve)", "min(curve, key=lambda row: row[2])"),
    (3, "(1 - energy_weight) * largest * time", "(1 - energy_weight) * row[0] * time"),
    (3, "(1 - energy_weight) * largest * time", "(1 - energy_weight) * time"),
    (3, "(1 - energy_weight) * largest * time", "largest * time"),
    (3, "energy_weight * energy + (1 - energy_weight)", "(1 - energy_weight) * energy + energy_weight"),
    (3, " if row[2] <= slowest * reference", ""),
    (3, "row[2] <= slowest * reference", "row[2] <= slowest"),
    (3, "key=cost)[0]", "key=cost)"),
    (3, "key=cost)[0]", "key=cost)[1]"),
    (4, "max(0.0, joules - idle_power * seconds)", "joules - idle_power * seconds"),
    (4, "idle_power * seconds", "idle_power"),
    (4, "joules - idle_power * seconds", "joules"),
    (4, "joules / (calls * batch), above", "joules / calls, above"),
    (4, "above / (calls * batch)", "above / calls"),
    (4, "above / (calls * batch)", "above"),
    (4, "joules / (calls * batch), above / (calls * batch)", "above / (calls * batch), joules / (calls * batch)"),
    (4, "joules / (calls * batch), above", "joules / len(windows) / batch, above"),
    (5, "min(deadline, len(intensity))", "len(intensity)"),
    (5, "min(deadline, len(intensity))", "deadline"),
    (5, "min(deadline, len(intensity)) - len(kilowatts)", "min(deadline, len(intensity) - 1) - len(kilowatts)"),
    (5, "- len(kilowatts)", "- len(kilowatts) - 1"),
    (5, "range(last + 1)", "range(last + 2)"),
    (5, "intensity[s + i]", "intensity[s]"),
    (5, "intensity[s + i]", "intensity[i]"),
    (5, "enumerate(kilowatts)), s)", "enumerate(reversed(kilowatts))), s)"),
    (5, "kw * intensity", "intensity"),
    (5, "min(starts)", "max(starts)"),
    (5, "min(starts)", "min(starts, key=lambda p: (p[0], -p[1]))"),
    (5, "return hour, grams", "return grams, hour"),
    (5, "return hour, grams", "return hour, grams / 1000"),
    (5, "return hour, grams", "return hour"),
    (5, "return None", "return 0, 0"),
]


@pytest.mark.parametrize(("number", "old", "new"), MUTATIONS, ids=lambda v: str(v)[:50])
def test_a_solution_with_a_changed_line_is_refused(number, old, new):
    result = check(f"energy-code-{number}", solution(number, old, new))
    assert result.outcome == "wrong" and result.feedback, f"{old} -> {new}: {result.feedback}"


# 1. Watts


def by_intervals(times, watts, begin, end):
    """Interval by interval, cut to the window."""
    if not (times[0] <= begin and end <= times[-1]):
        return
    joules = 0
    for (a, p), (b, q) in itertools.pairwise(zip(times, watts, strict=True)):
        left, right = max(a, begin), min(b, end)
        if right > left:
            middle = p + (q - p) * ((left + right) / 2 - a) / (b - a)  # the mean of a straight line
            joules += middle * (right - left)
    return joules


def by_numpy(times, watts, begin, end):
    if begin < times[0] or end > times[-1]:
        return None
    at = np.unique([begin, end, *(t for t in times if begin < t < end)])
    return np.trapezoid(np.interp(at, times, watts), at)


def test_integrals():
    assert verdict(1, by_intervals) and verdict(1, by_numpy)


@settings(max_examples=100, deadline=None)
@given(
    steps=st.lists(st.floats(0.01, 5), min_size=1, max_size=12),
    watts=st.lists(st.floats(0, 1000), min_size=13, max_size=13), ends=st.tuples(st.floats(-0.2, 1.2), st.floats(0, 1)),
)  # fmt: skip
def test_the_checkers_integral_is_the_area_below_the_line(steps, watts, ends):
    times = [0.0, *itertools.accumulate(steps)]
    begin, end = sorted(share * times[-1] for share in ends)
    found, area = (
        _integral(times, watts[: len(times)], begin, end),
        by_intervals(times, watts[: len(times)], begin, end),
    )
    assert (found is None) == (area is None)
    assert found is None or found == pytest.approx(area, rel=1e-6, abs=1e-6)


def named(mistakes):
    return pytest.mark.parametrize(("mistake", "rule"), [(name, rule) for name, rule, _ in mistakes])


def as_function(number, rule):
    names = NAMES[number].split(", ")
    return lambda *values: rule(**dict(zip(names, values, strict=True)))


@named(INTEGRAL_MISTAKES)
def test_integral_mistakes(mistake, rule):
    assert " is right: " in wrong(1, as_function(1, rule), mistake)


@pytest.mark.parametrize(
    ("mistake", "function"),
    [
        ("mean power times time", lambda t, w, a, b: None if by_intervals(t, w, a, b) is None else
         (np.mean(x) if (x := [p for s, p in zip(t, w, strict=True) if a <= s <= b]) else 0.0) * (b - a)),
        ("the whole series", lambda t, w, a, b: None if a < t[0] or b > t[-1] else np.trapezoid(w, t)),
        ("made up outside", lambda t, w, a, b: np.trapezoid(
            np.interp(at := [a, *(s for s in t if a < s < b), b], t, w), at)),
        ("mean power", lambda t, w, a, b: None if (e := by_intervals(t, w, a, b)) is None else e / (b - a)),
        ("zero in place of none", lambda *a: by_intervals(*a) or 0),
        ("none in place of a number", lambda *a: None),
        (None, lambda *a: 1.0),
        (None, lambda *a: None if (e := by_intervals(*a)) is None else e * 1.001),
    ],
)  # fmt: skip
def test_integral_mistakes_as_people_write_them(mistake, function):
    wrong(1, function, mistake)


def test_a_window_between_two_readings_is_explained():
    def needs_a_reading(times, watts, begin, end):
        inside = sum(begin < t < end for t in times)
        return by_intervals(times, watts, begin, end) if inside or end == times[1] else 0.0

    assert "the whole window lies between two readings" in wrong(1, needs_a_reading, None)


# 2. Counters


def unwrapped(readings, wraps_at, max_power):
    """First unwrap, then look at the whole."""
    seconds, joules = np.array(readings, dtype=float).T
    rounds = np.cumsum(np.concatenate([[0], np.diff(joules) < 0]))
    if rounds[-1] and wraps_at is None:
        return None
    total = joules + rounds * (wraps_at or 0)
    possible = max_power * np.diff(seconds)
    if (np.diff(total) > possible).any() or (possible >= (wraps_at or np.inf)).any():
        return None
    return float(total[-1] - total[0]) or None


def test_counters():
    assert verdict(2, unwrapped)
    assert verdict(2, lambda *a: None if (e := unwrapped(*a)) is None else np.float64(e))


@settings(max_examples=100, deadline=None)
@given(
    powers=st.lists(st.floats(10, 240), min_size=1, max_size=10), step=st.floats(1, 200), start=st.floats(0, 65535),
)  # fmt: skip
def test_a_wrapping_counter_gives_what_the_device_took(powers, step, start):
    """Simulated: the energy is known before it goes into a counter of 65,536 J."""
    true = start
    readings = [(0.0, start)]
    for k, power in enumerate(powers, 1):
        true += power * step
        readings.append((k * step, true % 65536))
    assert _gained(readings, 65536.0, 250.0) == pytest.approx(true - start, rel=1e-6)


@named(COUNTER_MISTAKES)
def test_counter_mistakes(mistake, rule):
    assert " is right: " in wrong(2, as_function(2, rule), mistake)


def sums(readings, gain):
    return sum(gain(a, b) for (_, a), (_, b) in itertools.pairwise(readings))


@pytest.mark.parametrize(
    ("mistake", "function"),
    [
        ("last less first", lambda r, w, p: r[-1][1] - r[0][1]),
        ("never none", lambda r, w, p: None if w is None and sums(r, lambda a, b: b < a) else
         sums(r, lambda a, b: b - a + (w if b < a else 0))),
        ("zero in place of none", lambda *a: unwrapped(*a) or 0.0),
        ("none in place of a number", lambda *a: None),
        (None, lambda r, w, p: sums(r, lambda a, b: abs(b - a))),
        (None, lambda *a: 1.0),
    ],
)  # fmt: skip
def test_counter_mistakes_as_people_write_them(mistake, function):
    wrong(2, function, mistake)


# 3. Limits


def by_sorting(curve, energy_weight, slowest):
    rows = sorted(curve, reverse=True)
    top, _, reference = rows[0]
    costs = {
        e * energy_weight + (1 - energy_weight) * top * t: limit for limit, e, t in rows if t <= slowest * reference
    }
    return costs[min(costs)]


def test_limits():
    assert verdict(3, by_sorting)
    assert verdict(3, lambda *a: int(by_sorting(*a)))


@settings(max_examples=100, deadline=None)
@given(
    rows=st.lists(
        st.tuples(st.integers(50, 700).map(float), st.floats(1, 1e6), st.floats(1, 1e4)), min_size=1, max_size=9,
        unique_by=lambda row: row[0],
    ),
    weight=st.floats(0, 1), slowest=st.floats(1, 5),
)  # fmt: skip
def test_no_allowed_limit_costs_less_than_the_checkers(rows, weight, slowest):
    top, _, reference = max(rows)
    cost = {limit: weight * e + (1 - weight) * top * t for limit, e, t in rows if t <= slowest * reference}
    chosen = _best(rows, weight, slowest)
    assert chosen in cost and cost[chosen] == pytest.approx(min(cost.values()), rel=1e-9)


@named(LIMIT_MISTAKES)
def test_limit_mistakes(mistake, rule):
    assert " is right: " in wrong(3, as_function(3, rule), mistake)


@pytest.mark.parametrize(
    ("mistake", "function"),
    [
        ("lowest limit", lambda c, w, s: min(c)[0]),
        ("largest limit", lambda c, w, s: max(c)[0]),
        ("bound left out", lambda c, w, s: min(c, key=lambda r: w * r[1] + (1 - w) * max(c)[0] * r[2])[0]),
        (None, lambda c, w, s: min(c, key=lambda r: r[1] * r[2])[0]),
        (None, lambda *a: 1.0),
    ],
)
def test_limit_mistakes_as_people_write_them(mistake, function):
    wrong(3, function, mistake)


# 4. Samples


def by_arrays(windows, batch, idle_power):
    e, t, n = np.array(windows, dtype=float).T
    samples = n.sum() * batch
    return np.array([e.sum(), np.maximum(e.sum() - t.sum() * idle_power, 0)]) / samples


def test_samples():
    assert verdict(4, by_arrays)
    assert verdict(4, lambda *a: by_arrays(*a).tolist())


@settings(max_examples=100, deadline=None)
@given(
    calls=st.lists(st.integers(1, 1000), min_size=1, max_size=6), batch=st.integers(1, 4096),
    each=st.floats(0.01, 100), idle=st.floats(0, 100), pace=st.floats(1e-3, 1),
)  # fmt: skip
def test_steady_work_has_one_cost_however_it_is_cut(calls, batch, each, idle, pace):
    """A device that takes `each` J above idle for a sample, cut into windows of any number of calls."""
    seconds = [n * pace for n in calls]
    windows = [(n * batch * each + idle * t, t, n) for n, t in zip(calls, seconds, strict=True)]
    whole, above = _per_sample(windows, batch, idle)
    assert above == pytest.approx(each, rel=1e-6) and whole == pytest.approx(each + idle * pace / batch, rel=1e-6)


def samples(*, whole=None, above=None):
    """The right function with one number replaced: a function of joules, seconds, calls, batch, idle power, windows."""

    def function(windows, batch, idle_power):
        right = by_arrays(windows, batch, idle_power)
        e, t, n = (sum(c) for c in zip(*windows, strict=True))
        arguments = (e, t, n, batch, idle_power, windows)
        return (whole(*arguments) if whole else right[0], above(*arguments) if above else right[1])

    return function


@pytest.mark.parametrize(
    ("mistake", "function"),
    [
        ("exchanged", lambda *a: by_arrays(*a)[::-1]),
        ("batch left out", samples(whole=lambda e, t, n, b, p, w: e / n)),
        ("mean of the windows", samples(whole=lambda e, t, n, b, p, w: np.mean([x / (c * b) for x, _, c in w]))),
        ("mean power", samples(whole=lambda e, t, n, b, p, w: e / t)),
        ("windows in place of calls", samples(whole=lambda e, t, n, b, p, w: e / (len(w) * b))),
        ("turned over", samples(whole=lambda e, t, n, b, p, w: n * b / e)),
        ("below zero", samples(above=lambda e, t, n, b, p, w: (e - p * t) / (n * b))),
        ("idle power without time", samples(above=lambda e, t, n, b, p, w: (e - p) / (n * b))),
        ("each window above zero", samples(above=lambda e, t, n, b, p, w: sum(max(0, x - p * s) for x, s, _ in w)
                                           / (n * b))),
        ("idle left in", samples(above=lambda e, t, n, b, p, w: e / (n * b))),
        ("idle for each sample", samples(above=lambda e, t, n, b, p, w: e / (n * b) - p * t)),
        ("batch left out", samples(above=lambda e, t, n, b, p, w: max(0, e - p * t) / n)),
        (None, samples(whole=lambda e, t, n, b, p, w: 1.0)),
        (None, samples(above=lambda e, t, n, b, p, w: 1.0)),
        (None, lambda *a: by_arrays(*a) * 1.001),
    ],
)  # fmt: skip
def test_sample_mistakes(mistake, function):
    wrong(4, function, mistake)


# 5. When to start


def by_convolution(intensity, kilowatts, deadline):
    hours = intensity[:deadline]
    if len(hours) < len(kilowatts):
        return None
    grams = np.correlate(np.array(hours, dtype=float), np.array(kilowatts, dtype=float), mode="valid")
    return int(np.argmin(grams)), float(grams.min())


def test_starts():
    assert verdict(5, by_convolution)
    assert verdict(5, lambda *a: None if (s := by_convolution(*a)) is None else list(s))


@settings(max_examples=100, deadline=None)
@given(
    intensity=st.lists(st.integers(0, 900), min_size=1, max_size=30),
    kilowatts=st.lists(st.integers(1, 40), min_size=1, max_size=8), deadline=st.integers(0, 40),
)  # fmt: skip
def test_no_start_gives_off_less_than_the_checkers(intensity, kilowatts, deadline):
    tried = {}
    for start in range(len(intensity)):
        end = start + len(kilowatts)
        if end <= deadline and end <= len(intensity):
            hours = [intensity[h] for h in range(start, end)]
            tried[start] = sum(map(math.prod, zip(hours, kilowatts, strict=True)))
    found = _start(intensity, kilowatts, deadline)
    if not tried:
        assert found is None
    else:
        least = min(tried.values())
        assert found == (min(s for s, g in tried.items() if g == least), least)


@named(START_MISTAKES)
def test_start_mistakes(mistake, rule):
    assert " is right: " in wrong(5, as_function(5, rule), mistake)


@pytest.mark.parametrize(
    ("mistake", "function"),
    [
        ("deadline left out", lambda i, k, d: by_convolution(i, k, len(i))),
        ("kilograms", lambda *a: None if (s := by_convolution(*a)) is None else (s[0], s[1] / 1000)),
        ("none in place of a number", lambda *a: None),
        (None, lambda *a: (0, 0.0)),
        (None, lambda *a: None if (s := by_convolution(*a)) is None else s[::-1]),
        (None, lambda *a: by_convolution(*a) or (None, None)),
    ],
)
def test_start_mistakes_as_people_write_them(mistake, function):
    wrong(5, function, mistake)


def test_a_forecast_that_ends_too_soon_is_an_error_in_words():
    def beyond(intensity, kilowatts, deadline):
        starts = range(deadline - len(kilowatts) + 1)
        return min((sum(k * intensity[s + i] for i, k in enumerate(kilowatts)), s) for s in starts)[::-1]

    assert "IndexError" in wrong(5, beyond, None)


# The bank


NUMERIC = [q for q in questions.bank("energy").values() if q.kind == "numeric"]


@pytest.mark.parametrize("question", NUMERIC, ids=lambda q: q.id)
@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("", "No number found"),
        ("many", "No number found"),
        ("nan", "No number found"),
        ("inf kWh", "No number found"),
        (math.nan, "nan is not a finite number. Give a"),
        (-math.inf, "-inf is not a finite number. Give a"),
        (np.float64(math.inf), "inf is not a finite number. Give a"),
        (10**400, "too large for a float. Give a"),
        ("3 FLOP/B", "'FLOP/B' is not a unit of"),
        ("3 MW", "'MW' is not a unit of"),
        (None, "got None"),
        ([3], "got [3]"),
    ],
    ids=lambda v: str(v)[:20],
)
def test_what_is_no_answer_to_a_numeric_question_is_said(question, answer, said):
    result = check(question.id, answer)
    assert result.outcome == "not counted" and said in result.feedback, result.feedback


@pytest.mark.parametrize("question", NUMERIC, ids=lambda q: q.id)
def test_a_negative_and_a_huge_answer_are_answered_with_a_first_step(question):
    general = type(question).model_fields["wrong"].default
    for number in ("-3", "1e200"):
        result = check(question.id, f"{number} {question.example}")
        assert result.outcome == "wrong" and result.feedback == question.wrong != general


def test_what_the_first_steps_say():
    """Numbers in the feedback of what is not recognised, each computed again."""
    said = {q.id: q.wrong for q in NUMERIC}
    assert "13.2 kWh" in said["energy-2"] and pytest.approx(13.2) == 0.55 * 24
    assert "0.069 Wh" in said["energy-10"] and pytest.approx(0.069, abs=5e-4) == 0.5 * 500 / 3600
    assert "s = 1 takes 30 kJ, s = 2 takes 25 kJ" in said["energy-15"]
    assert [20 / s**2 + 10 * s for s in (1, 2)] == [30, 25]
    assert "0.5 Wh" in said["energy-16"] and pytest.approx(0.5) == 5 * 6 / 60


def test_what_the_texts_say_beside_the_answers():
    """Numbers in texts and feedback that no answer holds, each computed again or looked up in the catalog."""
    bank = questions.bank("energy")
    value = {name: q.value for name, q in bank.items() if q.kind == "numeric"}
    assert value["energy-2"] / 1.15 / 3.6e9 == pytest.approx(203, abs=0.5) and 512 * 720 == 368_640
    # 3: the grids, and their ratio. 4: what the computers took.
    assert region("Poland, 2023").g_per_kwh == pytest.approx(662, abs=0.5)
    assert (
        value["energy-3"] / 433e3 / 57 == pytest.approx(11.6, abs=0.05) and pytest.approx(24_700, rel=2e-3) == 433 * 57
    )
    assert pytest.approx(250) == 310 / 1.24
    # 6: pounds, and grams for a kWh.
    assert pytest.approx(1438, abs=0.5) == 1507 * 0.954 and pytest.approx(433, abs=0.5) == 954 * 0.45359237
    # 8: grams for an hour, kilograms, and the share on a grid of 400 g/kWh.
    made = 400 * 50_000 / 24_500
    assert pytest.approx(16.3, abs=0.05) == 400e3 / 24_500 and made == pytest.approx(816, abs=0.5)
    assert pytest.approx(1100) == 50_000 * 0.5 * 1.1 * 0.04 and made / (made + 11_000) == pytest.approx(0.07, abs=5e-3)
    assert value["energy-10"] == pytest.approx(468, abs=0.6)
    # 13: Zeus's curve, as the catalog holds it, and the power under 100 W.
    rows = {row.limit_w: row for row in power_curves()["V100, ResNet-50"].limits}
    for limit, less, more in ((200, 0.116, 0.053), (150, 0.225, 0.18), (125, 0.202, 0.44), (100, 0.138, 0.93)):
        assert 1 - rows[limit].energy == pytest.approx(less, abs=5e-4), limit
        assert rows[limit].time - 1 == pytest.approx(more, abs=5e-3), limit
    assert rows[100].energy / rows[100].time == pytest.approx(0.45, abs=5e-3)
    # 14: 250 W, and the other weight.
    for weight, better in ((0.6, True), (0.4, False)):
        low, high = (weight * e + (1 - weight) * 0.25 * hours for e, hours in ((1.55, 11.8), (2.0, 10.0)))
        assert (low < high) is better
    assert pytest.approx(2.2) == 0.6 * 2 + 0.4 * 2.5
    # 15: joules at the best clock. 16: what a phone takes in a round.
    s = value["energy-15"]
    assert 20 / s**2 + 10 * s == pytest.approx(23.8, abs=0.05)
    assert pytest.approx(value["energy-16"] / 3600 / 1e5) == 5 * 6 / 60 + 0.1 * 20
