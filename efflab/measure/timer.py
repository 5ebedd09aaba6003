"""How long does one call take?

Two different questions, each with its own answer:

- `back_to_back`: calls follow each other without waiting. One value is the time of `loops` calls divided by
  `loops`. On a GPU the calls queue up, so launching overlaps with running; CUDA events on the stream give the
  time. On a CPU every call returns when it is done.
- `waited`: each call is waited for before the next one is made, as when a program reads a result at once. On a
  GPU this adds the launch and the wait to every call; `perf_counter` around call and synchronisation gives it.

The number of calls in one value is chosen so that a value lasts about `SHORTEST`, and the clock's resolution
does not matter. One-time costs (loading a module, compiling) do not count against that choice. Where values come
out shorter than half of it all the same, a warning says so.

Values are taken until the median is known well enough or a limit is reached, and the reason is recorded. All
values are kept. The median counts as known ("stable") where a confidence interval from order statistics lies
within ±2% of it. The interval is looked at only after the numbers of values in `CHECKS`, never before six: fewer
cannot give 95%. The chances that the intervals miss the true median add up to less than 5% over all checks, so
that looking several times does not spend the 95%. This supposes repeats that are independent and alike.

Two helpers guard against a machine that does something else on the side: `undisturbed` measures again where repeats
scatter, and `in_turns` lets a drift fall on all calls that are compared.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from efflab.errors import EfflabError
from efflab.measure import energy
from efflab.records import Timing, Window, iqr, median
from efflab.units import SECOND, show

SHORTEST = 5e-3  # s; 10^4 times the resolution of perf_counter and of CUDA events (0.5 µs)
STABLE = 0.02  # the interval of the median is at most ±2% of it
WIDE = 0.10  # warn where the interquartile range exceeds 10% of the median
SCATTERED = 0.25  # measure again where it exceeds 25%, as the caller asks
ATTEMPTS = 3
FEWEST = 3  # values that are taken however long they last
MOST = 60
CALIBRATION = 5.0  # s; after its first calls, a function has this long to show a value of the wanted length
# After how many values the interval of the median is looked at, and which order statistics bound it: the r-th
# smallest and the r-th largest. Each misses with 2 P(Binomial(n, 1/2) < r); together with at most 4.7%.
CHECKS = {6: 1, 12: 2, 20: 4, 30: 7, 40: 11, 60: 19}


class Clock(Protocol):
    """What the timer reads: `synchronize` waits for the device, `elapsed` times a function."""

    name: str

    def synchronize(self) -> None: ...

    def now(self) -> float: ...

    def elapsed(self, run: Callable[[], None]) -> float: ...


class CPUClock:
    """`time.perf_counter`; nothing to synchronise."""

    name = "perf_counter"

    def synchronize(self) -> None:
        """Return at once: CPU calls are done when they return."""

    def now(self) -> float:
        """Seconds on a monotonic clock."""
        return time.perf_counter()

    def elapsed(self, run: Callable[[], None]) -> float:
        """Seconds that `run` takes."""
        begin = time.perf_counter()
        run()
        return time.perf_counter() - begin


class CUDAClock:
    """CUDA events on the current stream: time between two points of the GPU's own queue."""

    name = "cuda-events"

    def __init__(self, device: Any) -> None:
        import torch

        self._cuda = torch.cuda
        self._device = device

    def synchronize(self) -> None:
        """Wait until the GPU has done everything it was given."""
        self._cuda.synchronize(self._device)

    def now(self) -> float:
        """Seconds on the host's monotonic clock."""
        return time.perf_counter()

    def elapsed(self, run: Callable[[], None]) -> float:
        """Seconds between an event before and an event after what `run` puts on the stream."""
        begin, end = (self._cuda.Event(enable_timing=True) for _ in range(2))
        self._cuda.synchronize(self._device)
        stream = self._cuda.current_stream(self._device)  # of this device, not of the current one
        begin.record(stream)
        run()
        end.record(stream)
        end.synchronize()
        return begin.elapsed_time(end) * 1e-3


def clock_for(device: Any) -> Clock:
    """The clock of a torch device."""
    return CUDAClock(device) if device.type == "cuda" else CPUClock()


@dataclass(frozen=True)
class Timed:
    """Raw seconds per call, how they were taken, and what to know about them.

    `page_faults` is the number of minor page faults of this process per timed call, None where the system does
    not count them.
    """

    values: list[float]
    timing: Timing
    warnings: list[str]
    page_faults: float | None = None


def back_to_back(calls: Sequence[Callable[[], Any]], clock: Clock, **options: Any) -> Timed:
    """Time calls that follow each other without waiting; one value is the mean of `loops` calls.

    Args:
        calls: the same call, once for each distinct set of inputs; the loop cycles through them.
        clock: the device's clock.
        options: as `_measure` takes: time_limit (s), cold, fewest, most, stable, shortest.

    Raises:
        EfflabError: no calls, a limit that is not positive, or a clock that does not advance.
        Exception: what a call raises.
    """
    return _measure(calls, clock, "back-to-back", **options)


def waited(calls: Sequence[Callable[[], Any]], clock: Clock, **options: Any) -> Timed:
    """Time calls each of which is waited for before the next is made. Arguments and errors as `back_to_back`."""
    return _measure(calls, clock, "waited", **options)


def _measure(
    calls: Sequence[Callable[[], Any]],
    clock: Clock,
    mode: Literal["back-to-back", "waited"],
    *,
    time_limit: float = 1.0,
    cold: bool = False,
    fewest: int = FEWEST,
    most: int = MOST,
    stable: float = STABLE,
    shortest: float = SHORTEST,
) -> Timed:
    if not calls:
        raise EfflabError("timer: there is nothing to call. Give at least one call.")
    for name, value in (("time_limit", time_limit), ("shortest", shortest), ("stable", stable)):
        if not (isinstance(value, int | float) and value > 0 and math.isfinite(value)):
            raise EfflabError(f"timer: {name} must be greater than zero, got {value!r}.")
    if not 1 <= fewest <= most:
        raise EfflabError(f"timer: fewest must lie between 1 and most, got fewest={fewest!r} and most={most!r}.")

    collecting = gc.isenabled()
    gc.disable()  # a collection inside one value would be charged to the kernel
    try:
        return _repeat(calls, clock, mode, time_limit, cold, fewest, most, stable, shortest)
    finally:
        if collecting:
            gc.enable()


def _repeat(
    calls: Sequence[Callable[[], Any]],
    clock: Clock,
    mode: Literal["back-to-back", "waited"],
    time_limit: float,
    cold: bool,
    fewest: int,
    most: int,
    stable: float,
    shortest: float,
) -> Timed:
    def once(sequence: Sequence[Callable[[], Any]]) -> float:
        if mode == "back-to-back":
            return clock.elapsed(lambda: _run(sequence))
        begin = clock.now()
        for call in sequence:
            call()
            clock.synchronize()
        return clock.now() - begin

    # Warm up: every input once (first touches, lazy initialisation), then until the loop is long enough. The
    # limit of that search starts after the first calls: loading a module can take longer than all repeats.
    _run(calls)
    clock.synchronize()
    warmup = len(calls)
    cycles = 1
    began = clock.now()
    while True:
        sequence = list(calls) * cycles
        loops = len(sequence)
        took = once(sequence)
        warmup += loops
        late = clock.now() - began > max(CALIBRATION, time_limit)
        if took >= shortest or late:
            mark = energy.begin()
            faults, begin = _faults(), clock.now()
            took = once(sequence)  # the first value, unless the loop before it still held one-time costs
            if took >= shortest / 2 or late:
                break
            warmup += loops
        if cycles > 10**7 // len(calls):
            raise EfflabError("timer: the clock does not advance while the call runs. Is the call empty?")
        # Aim a fifth above the target; grow at most 10-fold, since the first loop still holds one-time costs.
        cycles = max(
            cycles + 1, min(10 * cycles, math.ceil(1.2 * cycles * shortest / took) if took > 0 else 10 * cycles)
        )

    values = [took / loops]
    while True:
        n = len(values)
        long_enough = median(values) * loops >= shortest / 2
        if n in CHECKS and long_enough and half_width(values, CHECKS[n]) <= stable * median(values):
            stop: Literal["stable", "repeat limit", "time limit"] = "stable"
            break
        if n >= most:
            stop = "repeat limit"
            break
        if n >= fewest and clock.now() - begin >= time_limit:
            stop = "time limit"
            break
        values.append(once(sequence) / loops)
    end = _faults()
    used = energy.window(mark, loops * len(values))
    per_call = (end - faults) / (loops * len(values)) if faults is not None and end is not None else None
    if min(values) <= 0:
        raise EfflabError("timer: the clock did not advance while the call ran. Use a longer call.")
    name = clock.name if mode == "back-to-back" or clock.name == "perf_counter" else "perf_counter+synchronize"
    timing = Timing(
        clock=name,
        mode=mode, loops=loops, warmup=warmup, inputs=len(calls), cold=cold, stop=stop, energy=used,
    )  # fmt: skip
    return Timed(
        values, timing, short(values, loops, shortest, "the first calls were much slower") + _wide(values), per_call
    )


def short(values: Sequence[float], loops: int, shortest: float, why: str = "") -> list[str]:
    """The warning that values are shorter than half of what was wanted, where they are.

    Args:
        values: seconds per call.
        loops: calls in one value.
        shortest: what was wanted, s.
        why: in words.
    """
    lasted = median(values) * loops
    if lasted >= shortest / 2:
        return []
    return [
        f"short: {loops} calls last {show(lasted, SECOND)} where {show(shortest, SECOND)} was wanted, so the clock's "
        f"resolution may show{'; ' * bool(why)}{why}"
    ]


def _wide(values: Sequence[float]) -> list[str]:
    """The warning that values scatter, where they do."""
    spread = iqr(values) / median(values)
    if spread <= WIDE:
        return []
    return [
        f"wide: the middle half of {len(values)} values spans {spread:.0%} of the median; something else ran, or the "
        "clock speed changed"
    ]


def scattered(timed: Timed) -> str:
    """How far the repeats scatter, in words, where that is too far to keep them; else ""."""
    spread = iqr(timed.values) / median(timed.values)
    return f"the middle half of the repeats spanned {spread:.0%} of the median" if spread > SCATTERED else ""


def undisturbed(
    measure: Callable[[], Timed],
    warn: Callable[[str], None],
    *,
    attempts: int = ATTEMPTS,
    disturbed: Callable[[Timed], str] = scattered,
) -> Timed:
    """Measure, and again where something disturbed it. The last attempt counts, disturbed or not.

    Args:
        measure: times once.
        warn: receives a sentence for each attempt that is thrown away.
        attempts: how often to measure at most.
        disturbed: says what disturbed an attempt, "" where nothing did.

    Raises:
        EfflabError: attempts below one.
        Exception: what `measure` raises.
    """
    if not attempts >= 1:
        raise EfflabError(f"timer: attempts must be at least 1, got {attempts!r}.")
    for left in reversed(range(attempts)):
        timed = measure()
        said = disturbed(timed) if left else ""
        if not said:
            break
        warn(f"measured again, since {said}")
    return timed


def in_turns(calls: Sequence[Callable[[], Any]], clock: Clock, turns: int, options: Mapping[str, Any]) -> list[Timed]:
    """Time several calls back to back, each for a while and then again, so that a drift falls on all of them.

    Args:
        calls: one for each thing that is timed.
        clock: the device's.
        turns: of each call.
        options: of `back_to_back`, for one turn.

    Returns:
        For each call its turns as one; see `together`.
    """
    taken: list[list[Timed]] = [[] for _ in calls]
    for _ in range(turns):
        for found, call in zip(taken, calls, strict=True):
            found.append(back_to_back([call], clock, **options))
    return [together(found) for found in taken]


def together(found: Sequence[Timed]) -> Timed:
    """The values of several measurements of one call as one. `loops` is the least of any, `warmup` the sum."""
    values = [value for timed in found for value in timed.values]
    timings = [timed.timing for timed in found]
    timing = timings[0].model_copy(
        update={
            "loops": min(t.loops for t in timings),
            "warmup": sum(t.warmup for t in timings),
            "stop": next((t.stop for t in timings if t.stop != "stable"), "stable"),
            "energy": _summed([t.energy for t in timings]),
        }
    )
    short = [w for timed in found for w in timed.warnings if w.startswith("short")][:1]
    return Timed(values, timing, short + _wide(values))


def _summed(windows: Sequence[Window | None]) -> Window | None:
    """Several windows as one; None where one of them is missing."""
    known = [w for w in windows if w]
    if not known or len(known) < len(windows):
        return None
    return Window(
        joules=sum(w.joules for w in known), seconds=sum(w.seconds for w in known),
        calls=sum(w.calls for w in known), windows=sum(w.windows for w in known),
    )  # fmt: skip


def _faults() -> int | None:
    try:
        import resource
    except ImportError:  # not a Unix
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def _run(sequence: Sequence[Callable[[], Any]]) -> None:
    for call in sequence:
        call()


def half_width(values: Sequence[float], rank: int) -> float:
    """Half the width of a confidence interval of the median: from the rank-th smallest to the rank-th largest value.

    No distribution is assumed. The interval misses the true median with probability
    2 P(Binomial(len(values), 1/2) < rank).

    Raises:
        EfflabError: a rank below 1 or beyond the middle.
    """
    if not 1 <= rank <= (len(values) + 1) // 2:
        raise EfflabError(f"half_width: rank must lie between 1 and half of {len(values)} values, got {rank!r}.")
    ordered = sorted(values)
    return (ordered[-rank] - ordered[rank - 1]) / 2
