"""The timer on a clock that the test drives: no real time passes, so every value is known."""

from __future__ import annotations

import gc
import itertools
import math
import random
import statistics
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from efflab.errors import EfflabError
from efflab.measure import timer


class FakeClock:
    """A device on which a call takes `cost(i)` seconds for the i-th call; waiting takes `wait` seconds."""

    name = "cuda-events"

    def __init__(self, cost: Callable[[int], float], wait: float = 0.0) -> None:
        self.time, self.pending, self.calls = 0.0, 0.0, 0
        self.cost, self.wait = cost, wait
        self.inputs: list[int] = []

    def call(self, which: int = 0) -> None:
        self.pending += self.cost(self.calls)
        self.calls += 1
        self.inputs.append(which)

    def synchronize(self) -> None:
        self.time += self.pending + self.wait
        self.pending = 0.0

    def now(self) -> float:
        return self.time

    def elapsed(self, run: Callable[[], None]) -> float:
        self.synchronize()
        run()
        took = self.pending
        self.synchronize()
        return took


def test_a_constant_call_is_timed_exactly() -> None:
    clock = FakeClock(lambda i: 1e-3)
    timed = timer.back_to_back([clock.call], clock)
    assert timed.values == pytest.approx([1e-3] * len(timed.values))
    assert timed.timing.stop == "stable"
    assert len(timed.values) == 6, "with fewer, no interval reaches 95%"
    assert timed.timing.loops * 1e-3 >= timer.SHORTEST
    assert timed.warnings == []


def test_a_short_call_is_repeated_until_the_clock_can_see_it() -> None:
    clock = FakeClock(lambda i: 2e-7)
    timed = timer.back_to_back([clock.call], clock)
    assert timed.timing.loops * 2e-7 >= timer.SHORTEST
    assert timed.timing.loops * 2e-7 < 4 * timer.SHORTEST
    assert timed.values[0] == pytest.approx(2e-7)


def test_the_first_call_is_not_in_any_value() -> None:
    clock = FakeClock(lambda i: 10.0 if i == 0 else 1e-2)
    timed = timer.back_to_back([clock.call], clock, time_limit=60)
    assert max(timed.values) == pytest.approx(1e-2)
    assert timed.timing.warmup >= 1


def test_waiting_costs_every_call() -> None:
    clock = FakeClock(lambda i: 1e-5, wait=4e-5)
    assert statistics.median(timer.waited([clock.call], clock).values) == pytest.approx(5e-5)
    assert timer.waited([clock.call], clock).timing.clock == "perf_counter+synchronize"
    clock = FakeClock(lambda i: 1e-5, wait=4e-5)
    assert statistics.median(timer.back_to_back([clock.call], clock).values) == pytest.approx(1e-5)


def test_every_set_of_inputs_is_used_equally() -> None:
    clock = FakeClock(lambda i: 1e-4)
    calls = [lambda k=k: clock.call(k) for k in range(3)]
    timed = timer.back_to_back(calls, clock, cold=True)
    assert timed.timing.inputs == 3
    assert timed.timing.cold
    assert timed.timing.loops % 3 == 0
    counts = [clock.inputs.count(k) for k in range(3)]
    assert counts[0] == counts[1] == counts[2]
    assert clock.inputs[:6] == [0, 1, 2, 0, 1, 2]


def test_a_noisy_call_stops_at_the_time_limit_and_warns() -> None:
    noise = itertools.cycle([1e-2, 5e-2, 2e-2, 9e-2, 3e-2])
    clock = FakeClock(lambda i: next(noise))
    timed = timer.back_to_back([clock.call], clock, time_limit=0.5)
    assert timed.timing.stop == "time limit"
    assert any("wide" in w for w in timed.warnings)


def test_a_noisy_call_stops_at_the_repeat_limit() -> None:
    noise = itertools.cycle([1e-2, 5e-2, 2e-2, 9e-2, 3e-2])
    clock = FakeClock(lambda i: next(noise))
    timed = timer.back_to_back([clock.call], clock, time_limit=1e9, most=17)
    assert timed.timing.stop == "repeat limit"
    assert len(timed.values) == 17


def test_a_slow_call_is_still_repeated_three_times() -> None:
    clock = FakeClock(lambda i: 100.0)
    assert len(timer.back_to_back([clock.call], clock, time_limit=0.1).values) == 3


def test_the_collector_is_off_inside_and_on_after() -> None:
    seen = []
    clock = FakeClock(lambda i: 1e-3)

    def call() -> None:
        seen.append(gc.isenabled())
        clock.call()

    timer.back_to_back([call], clock)
    assert not any(seen)
    assert gc.isenabled()

    def broken() -> None:
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        timer.back_to_back([broken], clock)
    assert gc.isenabled()


@pytest.mark.parametrize(
    "options",
    [{"time_limit": 0}, {"time_limit": float("nan")}, {"time_limit": float("inf")}, {"shortest": -1}, {"stable": 0},
     {"fewest": 0}, {"fewest": 9, "most": 3}],
)  # fmt: skip
def test_options_out_of_range_are_named(options: dict[str, float]) -> None:
    clock = FakeClock(lambda i: 1e-3)
    with pytest.raises(EfflabError, match=next(iter(options))):
        timer.back_to_back([clock.call], clock, **options)


def test_nothing_to_call_and_a_clock_that_stands_still() -> None:
    with pytest.raises(EfflabError, match="nothing to call"):
        timer.back_to_back([], FakeClock(lambda i: 1e-3))
    clock = FakeClock(lambda i: 0.0)
    with pytest.raises(EfflabError, match="does not advance"):
        timer.back_to_back([clock.call], clock)


def test_the_interval_of_the_median_matches_published_ranks() -> None:
    # Ranks of the 95% interval of a median, from tables of the sign test (e.g. Conover 1999, table A3).
    ranks = {6: 1, 8: 1, 9: 2, 12: 3, 15: 4, 20: 6, 25: 8, 30: 10, 40: 14}
    for n, r in ranks.items():
        values = [float(2**i) for i in range(n)]
        assert timer.half_width(values, r) == (values[n - r] - values[r - 1]) / 2, n
    # Looking several times must use ranks no wider than the table's for one look.
    assert all(r <= ranks[n] for n, r in timer.CHECKS.items() if n in ranks)
    for rank in (0, 4):
        with pytest.raises(EfflabError, match="rank"):
            timer.half_width([1.0, 2.0, 3.0, 4.0, 5.0], rank)


@given(st.lists(st.floats(min_value=0.1, max_value=10), min_size=1, max_size=40), st.data())
def test_the_interval_is_never_wider_than_the_range(values: list[float], data: st.DataObject) -> None:
    rank = data.draw(st.integers(1, (len(values) + 1) // 2))
    assert 0 <= timer.half_width(values, rank) <= (max(values) - min(values)) / 2


@pytest.mark.parametrize("spread", [0.01, 0.02, 0.03, 0.04])
def test_what_is_called_stable_is_known_to_two_percent(spread: float) -> None:
    """Of many simulated measurements, at most 5% are called stable with an interval that misses the true median.

    The true median is 10 ms by construction. Lognormal noise; some is wide enough for several looks.
    """
    drawn = random.Random(17)
    stable = missed = 0
    for _ in range(1500):
        clock = FakeClock(lambda i: 1e-2 * math.exp(drawn.gauss(0, spread)))
        timed = timer.back_to_back([clock.call], clock, time_limit=1e9)
        if timed.timing.stop == "stable":
            stable += 1
            n = len(timed.values)
            low, high = (sorted(timed.values)[k] for k in (timer.CHECKS[n] - 1, n - timer.CHECKS[n]))
            missed += not low <= 1e-2 <= high
    assert stable > 100
    assert missed <= 0.05 * 1500 + 3 * math.sqrt(0.05 * 0.95 * 1500)


def test_the_chances_to_miss_add_up_to_less_than_five_percent() -> None:
    """Counted by brute force over all ways in which n values can lie below or above the median."""
    total = 0.0
    for n, rank in timer.CHECKS.items():
        if n <= 12:
            ways = [sum(bits) for bits in itertools.product((0, 1), repeat=n)]
            total += sum(w < rank or n - w < rank for w in ways) / len(ways)
        else:
            total += 2 * statistics.NormalDist(n / 2, math.sqrt(n) / 2).cdf(rank - 0.5)  # continuity-corrected
    assert total < 0.05
    assert min(timer.CHECKS) >= 6


@pytest.mark.parametrize("most", [3, 5])
def test_fewer_than_six_values_are_never_called_stable(most: int) -> None:
    clock = FakeClock(lambda i: 1e-2)
    timed = timer.back_to_back([clock.call], clock, most=most)
    assert len(timed.values) == most
    assert timed.timing.stop == "repeat limit"


def test_the_interval_is_looked_at_after_fixed_numbers_of_values_only() -> None:
    for spread in (0.005, 0.015, 0.02, 0.03, 0.05):
        drawn = random.Random(5)
        for _ in range(40):
            clock = FakeClock(lambda i, s=spread, d=drawn: 1e-2 * math.exp(d.gauss(0, s)))
            timed = timer.back_to_back([clock.call], clock, time_limit=1e9)
            if timed.timing.stop == "stable":
                assert len(timed.values) in (6, 12, 20, 30, 40, 60)


@pytest.mark.parametrize("slow_calls", [1, 2, 3])
def test_one_time_costs_do_not_end_the_search_for_the_loop(slow_calls: int) -> None:
    """The first calls take longer than the time limit, as when a module is loaded or a graph compiled."""
    clock = FakeClock(lambda i: 3.0 if i < slow_calls else 1e-6)
    timed = timer.back_to_back([clock.call], clock, time_limit=0.1 if slow_calls < 3 else 100)
    if slow_calls < 3:  # one in the warm-up, one in the first loop
        assert timed.timing.loops * 1e-6 >= timer.SHORTEST
        assert max(timed.values) == pytest.approx(1e-6)
        assert timed.timing.stop == "stable"
        assert timed.warnings == []
    else:
        assert timed.timing.stop != "stable"
        assert any("short" in w for w in timed.warnings)


def test_values_that_stay_short_are_said_and_not_called_stable() -> None:
    clock = FakeClock(lambda i: 3.0 if i < 5 else 1e-6)
    timed = timer.back_to_back([clock.call], clock, time_limit=100)
    assert timed.timing.loops * 1e-6 < timer.SHORTEST / 2
    assert timed.timing.stop != "stable"
    assert any(w.startswith("short") for w in timed.warnings)


def test_the_real_cpu_clock_advances_and_counts_faults() -> None:
    clock = timer.CPUClock()
    timed = timer.back_to_back([lambda: sum(range(1000))], clock, time_limit=0.02, shortest=1e-4)
    assert min(timed.values) > 0
    assert timed.page_faults is None or timed.page_faults >= 0


# Again where disturbed


def scattering(attempts: int) -> tuple[FakeClock, Callable[[], timer.Timed], list[float]]:
    """A clock on which every second call takes five times as long in so many attempts; measures; medians so far."""
    medians: list[float] = []
    clock = FakeClock(lambda i: 1e-3 if i % 2 or len(medians) >= attempts else 5e-3)

    def measure() -> timer.Timed:
        timed = timer.back_to_back([clock.call], clock, shortest=1e-4, most=20)
        medians.append(statistics.median(timed.values))
        return timed

    return clock, measure, medians


@pytest.mark.parametrize(
    ("disturbed", "allowed", "measured"), [(0, 3, 1), (1, 3, 2), (2, 3, 3), (9, 3, 3), (9, 1, 1), (1, 2, 2)]
)
def test_a_disturbed_measurement_is_repeated_and_the_last_one_counts(
    disturbed: int, allowed: int, measured: int
) -> None:
    _, measure, medians = scattering(disturbed)
    said: list[str] = []
    timed = timer.undisturbed(measure, said.append, attempts=allowed)
    assert len(medians) == measured and statistics.median(timed.values) == medians[-1]
    assert bool(timed.warnings) == (disturbed >= measured)
    assert len(said) == measured - 1
    for sentence in said:  # quartiles at 1 and 5 ms around a median of 1, 3 or 5 ms
        assert sentence.startswith("measured again, since the middle half of the repeats spanned ")
        assert sentence.endswith(("400% of the median", "133% of the median", "80% of the median"))


def test_what_counts_as_a_disturbance_can_be_said() -> None:
    reasons = iter(["the lights went out", "", "never asked"])
    said: list[str] = []
    _, measure, medians = scattering(9)
    timer.undisturbed(measure, said.append, disturbed=lambda _: next(reasons))
    assert said == ["measured again, since the lights went out"] and len(medians) == 2
    assert next(reasons) == "never asked"


@pytest.mark.parametrize("attempts", [0, -1, math.nan])
def test_no_attempt_is_refused(attempts: float) -> None:
    with pytest.raises(EfflabError, match="attempts must be at least 1"):
        timer.undisturbed(lambda: pytest.fail("measured"), print, attempts=attempts)  # type: ignore[arg-type]


# Turns


class Drifting:
    """A clock of a machine that becomes slower: the same call takes longer the later it comes."""

    name = "perf_counter"

    def __init__(self) -> None:
        self.time, self.order = 0.0, ""

    def call(self, name: str, seconds: float) -> None:
        self.order += name
        self.time += seconds * (1 + self.time)

    def synchronize(self) -> None:
        pass

    def now(self) -> float:
        return self.time

    def elapsed(self, run: Callable[[], None]) -> float:
        begin = self.time
        run()
        return self.time - begin


def test_a_drift_of_the_machine_falls_on_both_of_two_calls() -> None:
    clock = Drifting()
    a, b = timer.in_turns(
        [lambda: clock.call("a", 2e-3), lambda: clock.call("b", 1e-3)], clock, 6,
        {"time_limit": 0.02, "shortest": 1e-4, "stable": 1e-9},
    )  # fmt: skip
    runs = "".join(name for name, _ in itertools.groupby(clock.order))
    assert runs == "ab" * 6
    assert max(a.values) > 1.2 * min(a.values), "it drifted"
    assert statistics.median(a.values) / statistics.median(b.values) == pytest.approx(2, rel=0.05)
    assert len(a.values) + a.timing.warmup == clock.order.count("a")
    assert a.timing.stop == "time limit"


def test_turns_that_differ_are_a_warning() -> None:
    now = [0.0]
    ticks = itertools.cycle([1e-3] * 12 + [2e-3] * 12)
    clock = Drifting()
    clock.now = lambda: now[0]  # type: ignore[method-assign]

    def elapsed(run: Callable[[], None]) -> float:
        run()
        now[0] += (took := next(ticks))
        return took

    clock.elapsed = elapsed  # type: ignore[method-assign]
    (found,) = timer.in_turns([lambda: None], clock, 4, {"time_limit": 0.01, "shortest": 1e-4})
    assert any(w.startswith("wide: ") for w in found.warnings)
