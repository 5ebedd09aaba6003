"""A training loop with planted faults against a recorded run: what each mend gains.

- The profiler writes down events, and each costs time that lies inside the ranges. The cost of one is what the profiled
  step takes longer than the same without a profiler, over the events of a step. A fault's share is its range without
  this cost, over the step without a profiler. Where the record does not tell the cost, it is the range over the
  profiled step.
- Of the range "tiny" the mend leaves the larger one of two ratios, after the mend to before: of the operators, as if
  each took as long as before, and of the bytes that they move. What is left of the other ranges counts as nothing.
- The time after a mend is what Amdahl's law makes of the share and of the step with all faults. The shares of several
  mends add up.
- A step with a data loader takes its computing and its loading one after another, or, with workers, the longer one.
  With workers the computing includes taking a batch over from one.

What calibrates is not predicted: the step with all faults, its profile, the time to make a batch, the time to be handed
one, the step with batches ready, the rate of a large product. How much a mend saved is measured against the loop with
all faults that was timed in turns with it, so that a drift of the machine falls on both. The profile of the loop
without faults explains and does not predict. A cause that the record does not hold stands behind "consistent with".
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from efflab.errors import EfflabError, unknown
from efflab.formulas import profiling as formulas
from efflab.formulas import roofline, transformer
from efflab.reconcile import (
    LARGEST,
    NOTHING,
    Compared,
    agrees,
    answered,
    columns,
    damaged,
    doubted,
    error,
    joined,
    no_result,
    of_topic,
    place,
    signed,
    unsteady,
    with_energy,
)
from efflab.reconcile import banner as banner
from efflab.reconcile import calibrates as calibrates
from efflab.reconcile import scatters as scatters
from efflab.records import Prediction, Record, Sample, iqr, median, quantile
from efflab.units import BYTE, FLOP, FLOP_PER_SECOND, NUMBER, SECOND, UNITS, WATT, Unit, show

FAULTS = ("loader", "copies", "sync", "tiny", "python")  # in the order in which the ladder mends them
PARTS = (*FAULTS, "forward", "backward", "optimizer")
MENDS = ("ablation", "ladder")
ROLES = (*MENDS, "loader")
BESIDE = ("calibration", "evidence", "seed", "monitor")  # of no case that is predicted
ALL, PROFILE, CLEAN, PEAK = "all-faults", "profile", "profile-clean", "peak"
LOAD, HAND, COMPUTE = "batch-load", "hand-over", "compute"
MONITORED = ("monitor-all-faults", "monitor-clean")
COUNTERS = {"utilization": NUMBER, "memory": BYTE, "power": WATT}

LIMITS: tuple[str, ...] = ()
CALIBRATION: dict[str, tuple[str, Unit]] = {f"share-{name}": ("share", NUMBER) for name in FAULTS}
BASE: tuple[str, ...] = (ALL, PROFILE)  # what every prediction rests on
PICTURES = ("profiling", "waterfall", "monitor", "errors")
DRAWN = ROLES
GONE = 1e12  # speedup of a part that a mend leaves nothing of: the most that the formulas take
AGREES = 0.1  # a time within this share of the predicted one is as predicted
DRIFT = 0.05  # the loop with all faults, timed again, counts as changed beyond this
POINTS = 0.02  # of the step: shares that part by less are not explained
PART = 0.25  # a cause is named if it makes up this share of the gap
TYPED = 0.01  # a number that was typed with three digits differs by less than this
SAME, BARE = "nothing", "without faults"  # in what a run differs from another one

_UNIT = {"loss": "nats", "elapsed": "s", "time": "s", "baseline": "s", "memory": "B", "power": "W", "utilization": ""}


@dataclass(frozen=True, kw_only=True)
class Row(Compared):
    """One case, predicted and measured in s per step.

    Attributes:
        share_predicted, share_saved: of the step with all faults, what its mends are predicted to take off, and did;
            None of a loader case.
    """

    share_predicted: float | None
    share_saved: float | None


# Reading a record: a point is the topic's own, so what is read from it is checked here


def _check(record: Record) -> None:
    """Raise `EfflabError`, naming record, sample and field, for a sample that cannot be reconciled."""
    of_topic(record, "profiling")
    for index, sample in enumerate(record.samples):
        point, role = sample.point, sample.point.get("role")
        if role not in (*ROLES, *BESIDE):
            continue
        wrong = functools.partial(damaged, record, index)

        def count(field: str, least: int, point: dict[str, Any] = point) -> bool:
            value = point.get(field)
            return not isinstance(value, bool) and isinstance(value, int | float) and least <= value <= LARGEST

        if not isinstance(point.get("case"), str) or not point["case"]:
            raise wrong("case", "a text")
        metric = sample.metric
        unit = _UNIT.get(metric)
        if metric.startswith(("range_", "kernel_")):
            unit = "s"
        elif metric.startswith(("events_", "operators")):
            unit = ""
        elif metric.startswith("bytes_"):
            unit = "B"
        if unit is not None and sample.unit != unit:
            named = UNITS[unit].symbol or "a number without a unit"
            raise EfflabError(
                f"{place(record, index)}: its {metric} is in {sample.unit!r}, not in {named}. Measure it again."
            )
        counted = ("m", "n", "k") if point["case"] == PEAK else ("tokens", "flops") if metric == "time" else ()
        for field in counted:
            if not count(field, 1):
                raise wrong(field, "a number greater than zero")
        if point["case"] != PEAK and not _names(point.get("faults"), empty=True):
            raise wrong("faults", f"some of {', '.join(FAULTS)}, with commas between")
        if role in MENDS and not _names(point.get("mended")):
            raise wrong("mended", f"one or more of {', '.join(FAULTS)}, with commas between")
        if role == "ablation" and point["mended"] not in FAULTS:
            raise wrong("mended", f"one of {', '.join(FAULTS)}")
        if role == "loader":
            if not count("workers", 0) or int(point["workers"]) != point["workers"]:  # type: ignore[arg-type]
                raise wrong("workers", "a whole number of at least zero")
            if not isinstance(point.get("pinned"), bool):
                raise wrong("pinned", "true or false")
        if role == "seed":
            for field in ("seed", "threads"):
                if not count(field, 0):
                    raise wrong(field, "a number of at least zero")


def _names(value: object, empty: bool = False) -> bool:
    """Whether this is a list of different faults as the points have it."""
    if not isinstance(value, str):
        return False
    names = value.split(",") if value else []
    return set(names) <= set(FAULTS) and len(set(names)) == len(names) and (empty or bool(names))


def _mended(sample: Sample) -> list[str]:
    return str(sample.point["mended"]).split(",")


def _sample(record: Record, case: str, metric: str = "time") -> Sample | None:
    """What was measured of a case, None where it was not."""
    return next(
        (s for s in record.samples if s.metric == metric and s.point.get("case") == case and s.status == "ok"), None
    )


def _value(record: Record, case: str, metric: str = "time") -> float | None:
    found = _sample(record, case, metric)
    return median(found.values) if found else None


def _needed(record: Record, case: str, metric: str = "time", least: float = 0.0) -> float:
    """The median of a metric that predictions need.

    Raises:
        EfflabError: the record has no such sample, or it is not above `least`; names it.
    """
    value = _value(record, case, metric)
    if value is None:
        raise EfflabError(f"record {record.id}: {case} has no {metric}, which predictions need. Measure it again.")
    if not value > least:
        raise EfflabError(
            f"record {record.id}: the {metric} of {case} is {value:g}; above {least:g} is needed. Measure it again."
        )
    return value


# Calibration


def ranges(record: Record, case: str = PROFILE) -> dict[str, float]:
    """Seconds of each part in a profiled step, by part.

    Args:
        record: of this topic.
        case: "profile" of the loop with all faults, or "profile-clean" of the one with none.

    Raises:
        EfflabError: the profile is missing, or a part of it; or the parts exceed the step.
    """
    _check(record)
    step = _needed(record, case)
    found = {part: _needed(record, case, f"range_{part}", least=-1.0) for part in PARTS}
    if (wait := _value(record, case, "range_wait")) is not None:
        found["wait"] = wait
    held = sum(found[name] for name in FAULTS)
    if not held < step:
        raise EfflabError(
            f"record {record.id}: the ranges of the faults in {case} add up to {show(held, SECOND)} where the step "
            f"takes {show(step, SECOND)}. Measure it again."
        )
    return found


def speedups(record: Record) -> dict[str, float]:
    """How much faster each part becomes by its mend, by what the prediction knows.

    Of "tiny" the operators before over those after, or the bytes before over those after, whichever is less: it is
    bound by the number of its operators or by what they move. Of the others nothing is left, which counts as `GONE`.
    """
    before, after = (_needed(record, PROFILE, f"operators_tiny{of}") for of in ("", "_mended"))
    faster = before / after
    if moved := _moved(record):
        faster = min(faster, moved[0] / moved[1])
    return {name: faster if name == "tiny" else GONE for name in FAULTS}


def _moved(record: Record) -> tuple[float, float] | None:
    """Bytes that the operators of "tiny" read and write in a step, before and after its mend."""
    before, after = (_value(record, PROFILE, f"bytes_tiny{of}") for of in ("", "_mended"))
    return (before, after) if before and after else None


def shares(record: Record) -> dict[str, float]:
    """Of the step with all faults, the share that each mend is predicted to take off.

    Raises:
        EfflabError: as `ranges`.
    """
    held, faster = held_shares(record), speedups(record)
    return {name: float(formulas.time_saved(time=1.0, share=held[name], speedup=faster[name])) for name in FAULTS}


def held_shares(record: Record) -> dict[str, float]:
    """Of the step with all faults, the share of each part's range.

    Without the profiler's own cost and of the step without a profiler where `event_time` is known, else of the
    profiled one.

    Raises:
        EfflabError: as `ranges`.
    """
    step = _step(record)
    return {part: seconds / step for part, seconds in _own(record, PROFILE).items()}


def _step(record: Record) -> float:
    """Seconds of the step that shares are of."""
    plain = _unprofiled(record) if event_time(record) is not None else None
    return plain or _needed(record, PROFILE)


def _own(record: Record, case: str) -> dict[str, float]:
    """Seconds of each part in a profile, without the profiler's own cost where that is known."""
    each, counts = event_time(record) or 0.0, _events(record, case)
    return {part: max(0.0, held - each * counts.get(part, 0.0)) for part, held in ranges(record, case).items()}


def event_time(record: Record) -> float | None:
    """What one event costs that the profiler writes down, s: the profiled step beyond the unprofiled one.

    None where the profiled step was not slower, or where the events' cost would exceed the range of a fault or what
    is left of the step: then events do not all cost alike, or one of the two was disturbed.
    """
    counts = _events(record, PROFILE)
    step, plain = _value(record, PROFILE), _unprofiled(record)
    if not counts or not sum(counts.values()) > 0 or step is None or plain is None or step <= plain:
        return None
    found, whole = ranges(record), sum(counts.values())
    each = (step - plain) / whole
    rest, others = step - sum(found[name] for name in FAULTS), whole - sum(counts[name] for name in FAULTS)
    return None if rest <= each * others or any(found[name] < each * counts[name] for name in FAULTS) else each


def _unprofiled(record: Record) -> float | None:
    """Seconds of a step with all faults, timed around the profile, else at the calibration."""
    return _value(record, PROFILE, "baseline") or _value(record, ALL)


def _events(record: Record, case: str) -> dict[str, float]:
    """How many events the profiler wrote down in each part of a step; empty where the record does not say."""
    found = {part: _value(record, case, f"events_{part}") for part in (*PARTS, "wait")}
    known = {part: n for part, n in found.items() if n is not None}
    return known if set(PARTS) <= set(known) and min(known.values()) >= 0 else {}


def remaining(record: Record) -> dict[str, float]:
    """Seconds of each fault's range that are left in the profile of the loop without faults; empty without one.

    Without the profiler's own cost, where that is known.
    """
    if _sample(record, CLEAN) is None:
        return {}
    found = _own(record, CLEAN)
    return {name: found[name] for name in FAULTS}


def by_both(record: Record) -> dict[str, float] | None:
    """The share that each mend takes off by the profiles with and without faults.

    This is seen after the mends, so it explains and does not predict. None without the second profile.
    """
    held, left = _own(record, PROFILE), remaining(record)
    return {name: (held[name] - left[name]) / _step(record) for name in FAULTS} if left else None


def saved(record: Record) -> dict[str, float]:
    """Of the step with all faults, the share that each mend took off alone, where that was measured."""
    _check(record)
    return {
        _mended(s)[0]: share
        for s in record.samples
        if s.point.get("role") == "ablation" and s.metric == "time" and (share := _saved(record, s)) is not None
    }


def _saved(record: Record, sample: Sample) -> float | None:
    """Of the step with all faults, the share that the mends of a case took off; None where it was not measured.

    The loop with all faults that was timed in turns with it, else the calibration's.
    """
    if sample.status != "ok":
        return None
    case = str(sample.point["case"])
    baseline = _value(record, case, "baseline") or _value(record, ALL)
    return 1 - median(sample.values) / baseline if baseline else None


def calibration(record: Record) -> dict[str, float]:
    """The predicted share of each fault, by the names of `CALIBRATION`."""
    _check(record)
    if _sample(record, PROFILE) is None:
        return {}
    return {f"share-{name}": share for name, share in shares(record).items()}


def peak(record: Record) -> float | None:
    """The rate of the large product that stands for the peak, FLOP/s; None where it was not measured."""
    _check(record)
    found = _sample(record, PEAK)
    if found is None:
        return None
    p = found.point
    return float(roofline.matmul_flops(m=p["m"], n=p["n"], k=p["k"])) / median(found.values)


def utilizations(record: Record) -> dict[str, float]:
    """Model FLOPs utilisation of each timed loop, by case, in the order measured; empty where there is no peak.

    The operations are those that were counted of one step; the peak is the rate of the large product.
    """
    most = peak(record)
    if most is None:
        return {}
    return {
        str(s.point["case"]): _mfu(float(s.point["flops"]), median(s.values), most)  # type: ignore[arg-type]
        for s in record.samples
        if s.metric == "time" and s.status == "ok" and s.point.get("case") not in (PEAK, LOAD, HAND, PROFILE, CLEAN)
        and s.point.get("role") in (*ROLES, *BESIDE)
    }  # fmt: skip


def _mfu(flops: float, seconds: float, most: float) -> float:
    return float(transformer.mfu(model_flops=flops, time=seconds, devices=1, peak_performance=most))


def calibration_text(record: Record) -> str:
    """The profile of the loop with all faults, and what else predictions take: no case's result."""
    _check(record)
    lines, plain = [], _value(record, ALL)
    if plain is not None:
        lines.append(f"A step with all faults takes {show(plain, SECOND)}, without a profiler.")
    if _sample(record, PROFILE) is not None:
        lines += _profile_lines(record)
    load, compute = _value(record, LOAD), _value(record, COMPUTE)
    if load and compute:
        lines.append(
            f"One batch of the faulty data set takes {show(load, SECOND)} to make. With batches ready and no other "
            f"fault, a step takes {show(compute, SECOND)}."
        )
    if hand := _value(record, HAND):
        lines.append(f"Being handed a batch of the mended data set by a worker takes {show(hand, SECOND)}.")
    if most := peak(record):
        found = _sample(record, PEAK)
        assert found is not None
        lines.append(f"Peak: a product of size {found.point['m']:,} runs at {show(most, FLOP_PER_SECOND)}.")
        if plain is not None:
            whole = _sample(record, ALL)
            assert whole is not None
            flops = float(whole.point["flops"])  # type: ignore[arg-type]
            lines.append(
                f"A step needs {show(flops, FLOP)}, counted. With all faults the MFU is "
                f"{_percent(_mfu(flops, plain, most))}."
            )
    return "\n".join(lines) if lines else "Nothing that predictions need was measured."


def _profile_lines(record: Record) -> Iterator[str]:
    step, found, held, taken = _needed(record, PROFILE), ranges(record), held_shares(record), shares(record)
    counts, each = _events(record, PROFILE), event_time(record)
    kernels = {part: _value(record, PROFILE, f"kernel_{part}") for part in found}
    on_gpu = any(k is not None for k in kernels.values())
    head = ["part", "time in a profiled step", "share", *(["kernels"] if on_gpu else []), "events"]
    head += [*(["without their cost"] if each else []), "a mend takes off"]
    rows = []
    for part, seconds in found.items():
        row = [part, show(seconds, SECOND), _percent(seconds / step)]
        row += [show(kernels[part] or 0.0, SECOND)] if on_gpu else []
        row += [f"{counts[part]:,.0f}" if part in counts else "", *([_percent(held[part])] if each else [])]
        rows.append([*row, _percent(taken[part]) if part in taken else ""])
    rows.append(["between them", show(max(0.0, step - sum(found.values())), SECOND)] + [""] * (len(head) - 2))
    rows[-1][2] = _percent(max(0.0, 1 - sum(found.values()) / step))
    yield columns(head, rows, range(1, len(head)))
    if plain := _unprofiled(record):
        slower = f"The profiled step takes {show(step, SECOND)}, the same without a profiler {show(plain, SECOND)}"
        if each is not None:
            yield (
                f"{slower}: {show(each, SECOND)} for each of the {sum(counts.values()):,.0f} events written down. "
                "The predictions take this cost off the ranges and divide by the step without a profiler."
            )
        else:
            yield (
                f"{slower}. What an event costs cannot be told from this run: the predictions take shares of the "
                "profiled step."
            )
    before, after = (_needed(record, PROFILE, f"operators_tiny{of}") for of in ("", "_mended"))
    moved, faster = _moved(record), speedups(record)["tiny"]
    yield (
        f"Of {before:,.0f} operators in what 'tiny' writes out, torch's own functions leave {after:,.0f}, "
        f"{_percent(after / before)}."
        + (
            f" The former read and write {show(moved[0], BYTE)}, torch's own {show(moved[1], BYTE)}, "
            f"{_percent(moved[1] / moved[0])}: the larger one counts."
            if moved else ""
        )
        + f" The mend is predicted to take off {_percent(1 - 1 / faster)} of this range, and the whole of the others."
    )  # fmt: skip
    busy = _value(record, PROFILE, "kernel_time")
    if busy is not None:
        yield (
            f"The device runs kernels in {show(busy, SECOND)} of a profiled step, {_percent(busy / step)} of it. A "
            "range holds what the host does and waits for; its kernels may run later."
        )


# Reconciliation


def points(record: Record, roles: tuple[str, ...] = ROLES) -> list[Row]:
    """Every measured case of a record with its prediction, in the order measured; what calibrates has no row.

    Samples that failed have no row: `missing` names them.

    Raises:
        EfflabError: the record is of another topic, a sample is damaged, or what calibrates a case is missing.
    """
    _check(record)
    return [
        _row(record, s)
        for s in record.samples
        if s.metric == "time" and s.status == "ok" and s.point.get("role") in roles and s.point["role"] in ROLES
    ]


def _row(record: Record, sample: Sample) -> Row:
    role, measured = str(sample.point["role"]), median(sample.values)
    share = gained = None
    if role == "loader":
        predicted = expected_step(record, sample.point)
        explanation = _why_loader(record, sample, predicted)
    else:
        share, gained = sum(shares(record)[name] for name in _mended(sample)), _saved(record, sample)
        predicted = expected_time(record, _mended(sample))
        explanation = _why_mend(record, sample, predicted)
    return Row(
        case=str(sample.point["case"]), role=role, metric=sample.metric, unit=UNITS[sample.unit], predicted=predicted,
        measured=measured, share_predicted=share, share_saved=gained, iqr=iqr(sample.values),
        ratio=measured / predicted, error=error(predicted, measured), explanation=explanation,
    )  # fmt: skip


def expected_time(record: Record, mended: Iterable[str]) -> float:
    """Seconds of a step after some mends: Amdahl's law with their shares, which add up."""
    plain, taken = _needed(record, ALL), shares(record)
    return float(formulas.time_after_mend(time=plain, share=sum(taken[name] for name in mended), speedup=GONE))


def expected_step(record: Record, point: Mapping[str, Any]) -> float:
    """Seconds of a step with a data loader. Page-locked memory changes nothing in the formula."""
    workers = float(point["workers"])
    load, compute = _needed(record, LOAD), _needed(record, COMPUTE) + (_handed(record) if workers else 0.0)
    return float(formulas.loader_step_time(compute_time=compute, load_time=load, workers=workers))


def _handed(record: Record) -> float:
    """Seconds in which a worker hands a batch over; 0 where the record does not have it."""
    return _value(record, HAND) or 0.0


def _doubted(record: Record, cases: Iterable[str]) -> list[str]:
    """Of these cases, the ones whose times the record's own warnings doubt."""
    return [case for case in cases if case in doubted(record)]


def _why_mend(record: Record, sample: Sample, predicted: float) -> str:
    case, measured = str(sample.point["case"]), median(sample.values)
    said = agrees(measured / predicted, 1 + AGREES, "The step's time is as")
    plain = _needed(record, ALL)
    # The saving first: a mend that saves little leaves the step as predicted, whatever was predicted of the saving.
    if _resolved(record, sample):
        texts = _why_share(record, sample, agrees=bool(said))
    else:
        gained, expected = _saved(record, sample), sum(shares(record)[name] for name in _mended(sample))
        texts = [
            "The saving is not resolved: the middle halves of the repeats with and without the mend overlap. The "
            f"medians lie {_percent(gained or 0.0)} apart, {_percent(expected)} were predicted."
        ]
    texts += [said] if said else []
    if now := _drifted(record, case):
        texts.append(
            f"Timed in turns with it, the loop with all faults took {show(now, SECOND)}, at the calibration "
            f"{show(plain, SECOND)}: the machine changed. With this time {show(predicted * now / plain, SECOND)} are "
            "predicted."
        )
    if not said and (named := _doubted(record, (ALL, PROFILE, case))):
        texts.append(f"The record warns of {', '.join(named)}.")
    return " ".join(texts)


def _drifted(record: Record, case: str) -> float | None:
    """The time of the loop with all faults beside a case, s, where it is not that of the calibration; else None."""
    now = _value(record, case, "baseline")
    return now if now and abs(now / _needed(record, ALL) - 1) > DRIFT else None


def _resolved(record: Record, sample: Sample) -> bool:
    """Whether the middle halves of the repeats with and without a mend lie apart; yes where only one was timed."""
    baseline = _sample(record, str(sample.point["case"]), "baseline")
    return baseline is None or not _overlap(sample.values, baseline.values)


def _overlap(a: Sequence[float], b: Sequence[float]) -> bool:
    """Whether the middle halves of two lists of repeats have a value in common."""
    a, b = list(a), list(b)
    return quantile(a, 0.25) <= quantile(b, 0.75) and quantile(b, 0.25) <= quantile(a, 0.75)


def _why_share(record: Record, sample: Sample, agrees: bool) -> list[str]:
    """What a mend, or several, saved of the step beside what their shares say, and why the two part if they do.

    Args:
        record: of this topic.
        sample: of the case.
        agrees: the time is as predicted; then shares have to be further apart to be explained.
    """
    mended = _mended(sample)
    gained, expected = _saved(record, sample), sum(shares(record)[name] for name in mended)
    assert gained is not None  # the sample was measured
    gap = gained - expected
    if abs(gap) <= max(POINTS, PART * abs(expected) if agrees else 0.0):
        return [f"It saves {_percent(gained)} of the step, as predicted, {_percent(expected)}."]
    if spread := saved_between(record, str(sample.point["case"])):
        (low, high), (least, most) = spread, _expected_between(record, mended)
        if low <= most and least <= high:
            return [
                f"It saves {_percent(gained)} of the step where {_percent(expected)} were predicted. By the middle "
                f"halves of the repeats {_percent(low)} to {_percent(high)} are saved, by those of the profiled steps "
                f"{_percent(least)} to {_percent(most)} predicted: the record does not tell the two apart."
            ]
    causes = list(_causes(record, sample, mended, expected, gap))
    said = f"It saves {_percent(gained)} of the step where {_percent(expected)} were predicted."
    return [said, *(causes or [NOTHING])]


def saved_between(record: Record, case: str) -> tuple[float, float] | None:
    """The least and the most that a case saves of the step by the quartiles of both loops; None without both."""
    sample, baseline = _sample(record, case), _sample(record, case, "baseline")
    if sample is None or baseline is None:
        return None
    with_mend, without = ([quantile(list(s.values), q) for q in (0.25, 0.75)] for s in (sample, baseline))
    return 1 - with_mend[1] / without[0], 1 - with_mend[0] / without[1]


def _expected_between(record: Record, mended: Sequence[str]) -> tuple[float, float]:
    """The least and the most of the step that mends are predicted to take off by the quartiles of their ranges."""
    taken, faster, low, high = shares(record), speedups(record), 0.0, 0.0
    for name in mended:
        found = _sample(record, PROFILE, f"range_{name}")
        assert found is not None  # else there were no shares
        held, each = list(found.values), (1 - 1 / faster[name]) / _step(record)
        low += taken[name] + (quantile(held, 0.25) - median(held)) * each
        high += taken[name] + (quantile(held, 0.75) - median(held)) * each
    return low, high


def _causes(record: Record, sample: Sample, mended: Sequence[str], expected: float, gap: float) -> Iterator[str]:
    found, step, left, both = _own(record, PROFILE), _step(record), remaining(record), by_both(record)
    held = sum(found[name] for name in mended)
    it = "its range" if len(mended) == 1 else "their ranges"
    why = 0
    if both is not None and gap < 0:
        kept = sum(left[name] for name in mended)
        counted = found["tiny"] / speedups(record)["tiny"] if "tiny" in mended else 0.0
        if (kept - counted) / step > PART * -gap:
            why += 1
            yield (
                f"In the profile of the loop without faults {show(kept, SECOND)} of {it}, {show(held, SECOND)}, are "
                f"left; the prediction leaves {show(counted, SECOND) if counted else 'nothing'}. By both profiles the "
                f"share is {_percent(sum(both[name] for name in mended))}."
            )
    if sample.point["role"] == "ladder":
        alone = saved(record)
        if len(mended) > 1 and all(name in alone for name in mended):
            one = sum(alone[name] for name in mended)
            why += 1
            each = [s for name in mended if (s := _sample(record, f"without-{name}"))]
            unclear = [str(s.point["case"]) for s in (*each, sample) if not _resolved(record, s)]
            unclear += [case for case in _doubted(record, [str(s.point["case"]) for s in each]) if case not in unclear]
            if unclear:
                some = f"{', '.join(unclear)} {'is' if len(unclear) == 1 else 'are'}"
                yield (
                    f"One by one the same mends save {_percent(one)}, together {_percent(expected + gap)}. This run "
                    f"does not tell whether what they save adds up: {some} not resolved or disturbed."
                )
            elif abs(one - (expected + gap)) <= max(POINTS, PART / 2 * abs(expected + gap)):
                yield f"One by one the same mends save {_percent(one)}: what they save adds up."
            else:
                yield (
                    f"One by one the same mends save {_percent(one)}, together {_percent(expected + gap)}: what they "
                    "save does not add up."
                )
    on_gpu = _value(record, PROFILE, "kernel_time") is not None
    if on_gpu and gap < 0:
        started = sum(_value(record, PROFILE, f"kernel_{name}") or 0.0 for name in mended)
        if started < held / 2:
            why += 1
            yield (
                f"The host spends {show(held, SECOND)} in {it} and starts {show(started, SECOND)} of kernels there. "
                "Consistent with waiting for kernels that were started before, which the mend moves elsewhere."
            )
    if gap > 0 and not why and not _drifted(record, str(sample.point["case"])):
        seconds = (expected + gap) * _needed(record, ALL)
        if seconds > held:
            yield (
                f"It saves {show(seconds, SECOND)} where {it} {'lasts' if len(mended) == 1 else 'last'} "
                f"{show(held, SECOND)}. Consistent with a cost outside of {it}."
            )


def _why_loader(record: Record, sample: Sample, predicted: float) -> str:
    case, seconds = str(sample.point["case"]), median(sample.values)
    texts = (
        [said] if (said := agrees(seconds / predicted, 1 + AGREES)) else list(_loader_causes(record, sample, predicted))
    )
    texts.append(unsteady(sample.values, seconds))
    named = _doubted(record, (LOAD, *((HAND,) if sample.point["workers"] else ()), COMPUTE, case))
    if not said and named:
        texts.append(f"The record warns of {', '.join(named)}.")
    return joined(texts)


def _loader_causes(record: Record, sample: Sample, predicted: float) -> Iterator[str]:
    seconds, workers = median(sample.values), int(sample.point["workers"])  # type: ignore[arg-type]
    load, compute, hand = _needed(record, LOAD), _needed(record, COMPUTE), _handed(record)
    if not workers:
        return
    cores, threads = record.environment.cores, int(sample.point.get("threads") or 1)  # type: ignore[arg-type]
    if seconds > predicted:
        if cores and workers + threads > cores:
            yield (
                f"{workers} worker{'s' if workers > 1 else ''} and the training process's "
                f"{f'{threads} threads' if threads > 1 else 'thread'} share {cores} cores, and the formula gives each "
                "a core of its own."
            )
        loading = compute + hand < load / workers
        limit = f"loading, {show(load / workers, SECOND)} a batch" if loading else f"computing, {show(compute, SECOND)}"
        if hand and not loading:
            limit += f", and being handed a batch, {show(hand, SECOND)}"
        yield (
            f"A step takes {show(seconds - predicted, SECOND)} longer than {limit}. "
            + (
                "Consistent with handing over that costs more between steps than in a loop that only asks for batches."
                if hand and not loading
                else "Consistent with what handing over a batch costs, which the formula leaves out."
            )
        )
    elif seconds < compute:
        yield (
            f"It takes less than the step with batches ready, {show(compute, SECOND)}, which did not load anything: "
            "one of the two was disturbed."
        )
    elif seconds < compute + hand:
        yield (
            f"A step takes {show(predicted - seconds, SECOND)} less than computing, {show(compute, SECOND)}, and being "
            f"handed a batch, {show(hand, SECOND)}. Consistent with waiting for the worker in a loop that only asks "
            "for batches."
        )


def missing(record: Record) -> list[str]:
    """One sentence for every case without a result: what happened to it."""
    _check(record)
    found = []
    for sample in record.samples:
        role = sample.point.get("role")
        result = "loss" if role == "seed" else "time"
        if sample.status == "ok" or role not in (*ROLES, *BESIDE) or sample.metric != result:
            continue
        found.append(no_result(sample))
    return found


# Seeds


@dataclass(frozen=True)
class Curve:
    """A loss curve beside another one.

    Attributes:
        case, what: its name, and in what its run differs from the other.
        against: the other's name: the first run with the same faults, or of all; "" for the first of all.
        losses: nats, of every step.
        differs: the first step, from 1, whose loss differs; 0 where none does.
        largest: the largest difference of any step, nats.
        last: the difference at the last step, nats.
    """

    case: str
    what: str
    against: str
    losses: list[float]
    differs: int
    largest: float
    last: float

    @property
    def identical(self) -> bool:
        """Every loss is the same to the last bit."""
        return self.differs == 0


def curves(record: Record) -> list[Curve]:
    """The loss curves of a record in the order measured, each beside another. Empty where there is none.

    Raises:
        EfflabError: as `points`; also curves of different lengths, or a loss that is not above zero.
    """
    _check(record)
    measured = [s for s in record.samples if s.metric == "loss" and s.status == "ok" and s.point.get("role") == "seed"]
    found: list[Curve] = []
    for sample in measured:
        # Beside the first run of the same settings, else of the same faults, else of all.
        case, same = str(sample.point["case"]), ("faults", "seed", "threads", "deterministic")
        alike = [[s for s in measured if all(s.point.get(n) == sample.point.get(n) for n in some)]
                 for some in (same, same[:1], ())]  # fmt: skip
        other = next((found[0] for found in alike if found[0] is not sample), sample)
        if len(sample.values) != len(other.values):
            raise EfflabError(
                f"record {record.id}: {case} has {len(sample.values)} losses and {other.point['case']} has "
                f"{len(other.values)}. Measure it again."
            )
        if not min(sample.values) > 0:
            raise EfflabError(f"record {record.id}: a loss of {case} is not greater than zero. Measure it again.")
        apart = [a - b for a, b in zip(sample.values, other.values, strict=True)]
        differs = next((i for i, x in enumerate(apart, 1) if x != 0), 0)
        against = "" if other is sample else str(other.point["case"])
        what = _differs(sample.point, other.point) if against else "the first run"
        found.append(Curve(case, what, against, sample.values, differs, max(map(abs, apart)), apart[-1]))
    return found


def _differs(a: Mapping[str, Any], b: Mapping[str, Any]) -> str:
    """In what a loss curve's point differs from another's."""
    found = []
    if a["seed"] != b["seed"]:
        found.append(f"seed {a['seed']}")
    if a["threads"] != b["threads"]:
        found.append(f"{a['threads']} thread{'s' if a['threads'] != 1 else ''}")
    if a.get("deterministic") != b.get("deterministic"):
        found.append("deterministic algorithms" if a.get("deterministic") else "any algorithms")
    if a["faults"] != b["faults"]:
        found.append(BARE if not a["faults"] else f"faults {a['faults']}")
    return ", ".join(found) or SAME


def seeds_text(record: Record) -> str:
    """Which loss curves are identical, and by how much the others differ."""
    found = curves(record)
    if not found:
        return "No loss curve was measured."
    rows = []
    for c in found:
        apart = ["", "", ""]
        if c.against:
            apart = ["identical", "0", "0"] if c.identical else [f"step {c.differs}", _tiny(c.largest), _tiny(c.last)]
        rows.append([c.case, f"{c.losses[-1]:.4f}", c.against, c.what if c.against else "", *apart])
    head = ["run", "last loss", "beside", "what differs", "losses differ from", "at most (nats)", "at the end (nats)"]
    lines = [columns(head, rows, (1, 5, 6))]
    steps = len(found[0].losses)
    for c in found:
        if c.against and c.identical:
            lines.append(f"{c.case} and {c.against} are identical: all {steps} losses to the last bit.")
        elif c.against:
            lines.append(f"{c.case} parts from {c.against} at step {c.differs}, by {_tiny(c.largest)} nats at most.")
    return "\n".join(lines)


def _tiny(value: float) -> str:
    """The size of a difference with two digits: "9.5 × 10⁻⁷" or "0.15"."""
    return show(abs(value), NUMBER, 2)


# The monitor


def monitored(record: Record) -> dict[str, dict[str, list[float]]]:
    """What the monitor read while each loop ran: case to counter to its readings, with "elapsed", s.

    Counters that the machine lacks are left out.

    Raises:
        EfflabError: as `points`; also a counter without a reading for each time, or readings without times.
    """
    _check(record)
    found: dict[str, dict[str, list[float]]] = {}
    for case in MONITORED:
        series = {s.metric: s.values for s in record.samples if s.point.get("case") == case and s.status == "ok"}
        read = {name: series[name] for name in COUNTERS if name in series}
        if not read:
            continue
        for name, values in read.items():
            if len(values) != len(series.get("elapsed", ())):
                raise EfflabError(
                    f"record {record.id}: {case} has {len(values)} values of {name} and "
                    f"{len(series.get('elapsed', ()))} of elapsed. Measure it again."
                )
        found[case] = read | {"elapsed": series["elapsed"]}
    return found


def monitor_text(record: Record) -> str:
    """What the counters said of the loop with all faults and of the one without, beside the MFU of each."""
    found, used = monitored(record), utilizations(record)
    if not found:
        return "\n".join(["No counter was read.", *_absent(record)])
    names = [n for n in COUNTERS if any(n in series for series in found.values())]
    rows = []
    for case, series in found.items():
        seconds = _value(record, case)
        row = [case.removeprefix("monitor-"), show(seconds, SECOND) if seconds else ""]
        for name in names:
            middle = median(series[name]) if name in series else None
            row.append("" if middle is None else _percent(middle) if name == "utilization" else
                       show(middle, COUNTERS[name]))  # fmt: skip
        rows.append([*row, _percent(used[case]) if case in used else ""])
    lines = [columns(["loop", "step", *names, "MFU"], rows, range(1, len(names) + 3))]
    sources = {
        s.metric: str(s.point["source"]) for s in record.samples
        if s.point.get("role") == "monitor" and s.metric in names and "source" in s.point
    }  # fmt: skip
    lines += [f"{name}: {sources[name]}; the median of the readings." for name in names if name in sources]
    return "\n".join([*lines, *_absent(record)])


def _absent(record: Record) -> list[str]:
    """One line for each counter that the machine lacks, as the record's warnings say it."""
    found = {}
    for warning in record.warnings:
        case, _, said = warning.partition(": no ")
        name, _, reason = said.partition(": ")
        if case in MONITORED and name in COUNTERS:
            found[name] = f"No {name}: {reason.rstrip('.')}."
    return list(found.values())


# In words and tables


def _percent(value: float) -> str:
    """A share in percent with a decimal: "12.3%"."""
    return f"{value:.1%}".replace("-", "−") if round(value, 3) else "0.0%"


def whole(record: Record) -> Row | None:
    """The row of the case with every fault mended, None where it was not measured."""
    return next((r for r in points(record, ("ladder",)) if set(_mended_of(record, r.case)) == set(FAULTS)), None)


def _mended_of(record: Record, case: str) -> list[str]:
    found = _sample(record, case)
    assert found is not None
    return _mended(found)


def summary(record: Record) -> str:
    """In a line each: what the mends took off, the gain of all with the MFU, errors of the times, seeds, monitor."""
    rows = points(record)
    if not rows:
        return "No case of this record was measured."
    parts = []
    if record.scale == "smoke":
        parts.append("Smoke scale: its loops are too small to say anything about the device.")
    if single := [r for r in rows if r.role == "ablation" and r.share_saved is not None]:
        parts.append(f"One by one, the mends save of the step (predicted): {', '.join(_single(record, single))}.")
    if done := whole(record):
        parts.append(_gain(record, done))
    for roles, words in ((MENDS, "steps after mends"), (("loader",), "steps with a data loader")):
        some = [r for r in rows if r.role in roles]
        if some:
            worst = max(some, key=lambda r: abs(math.log(r.ratio)))
            parts.append(
                f"{len(some)} {words}. Median error of the predicted time: "
                f"{_percent(median([abs(r.error) for r in some]))}. Worst: {worst.case}, predicted "
                f"{show(worst.predicted, SECOND)}, measured {show(worst.measured, SECOND)} ({signed(worst.error)})."
            )
    parts += _beside(record)
    if absent := missing(record):
        parts.append(f"Not in it: {'; '.join(absent)}.")
    return "\n".join(parts)


def _single(record: Record, rows: Iterable[Row]) -> Iterator[str]:
    """Of each mend alone what it saved of the step and was predicted to save, and whether the repeats resolve it."""
    for row in rows:
        sample = _sample(record, row.case)
        assert sample is not None
        unclear = "" if _resolved(record, sample) else ", not resolved"
        yield (
            f"{_mended(sample)[0]} {_percent(row.share_saved or 0.0)} ({_percent(row.share_predicted or 0.0)}{unclear})"
        )


def _beside(record: Record) -> Iterator[str]:
    """What the seeds and the monitor said, in a sentence each."""
    compared = {c.what: c for c in curves(record)}
    if again := compared.get(SAME):
        how = (
            "the same losses, to the last bit" if again.identical else f"losses up to {_tiny(again.largest)} nats apart"
        )
        bare = compared.get(BARE)
        apart = f"; without faults they are {_tiny(bare.largest)} nats apart at most" if bare else ""
        yield f"The same seed again gives {how}{apart}."
    found, used = monitored(record), utilizations(record)
    busy = [median(found[case]["utilization"]) for case in MONITORED if "utilization" in found.get(case, ())]
    if len(busy) == len(MONITORED) and all(case in used for case in MONITORED):
        faulty, clean = MONITORED
        cores = record.environment.cores if record.environment.kind == "cpu" else None
        one = f" (one busy thread of {cores} cores reads {_percent(1 / cores)})" if cores and cores > 1 else ""
        yield (
            f"The monitor reads a utilisation of {_percent(busy[0])} with all faults and {_percent(busy[1])} without"
            f"{one}, at an MFU of {_percent(used[faulty])} and {_percent(used[clean])} of the peak that a large "
            "product reaches."
        )


def _gain(record: Record, done: Row) -> str:
    """All mends together: how many times faster, predicted and measured, and the MFU before and after."""
    plain = _value(record, done.case, "baseline") or _needed(record, ALL)
    said = (
        f"All mends together make the step {plain / done.measured:.2f} times faster, {show(plain, SECOND)} to "
        f"{show(done.measured, SECOND)}; predicted {_needed(record, ALL) / done.predicted:.2f}."
    )
    used, most = utilizations(record), peak(record)
    if done.case in used and most:
        sample = _sample(record, done.case)
        assert sample is not None
        flops = float(sample.point["flops"])  # type: ignore[arg-type]
        said += (
            f" The MFU goes from {_percent(_mfu(flops, plain, most))} to {_percent(used[done.case])}; predicted "
            f"{_percent(_mfu(flops, done.predicted, most))}."
        )
        if used[done.case] > 1:
            said += " More than the peak: the large product that stands for it was disturbed."
    return said


def table(record: Record) -> tuple[list[str], list[list[str]], tuple[int, ...]]:
    """Head, rows of text and the indices of numeric columns: times, and the share of the step that mends take off."""
    return _table(record, points(record))


def _table(record: Record, rows: Sequence[Row]) -> tuple[list[str], list[list[str]], tuple[int, ...]]:
    head = ["case", "share predicted", "share saved", "predicted", "measured", "IQR", "error", "why"]
    body = [
        [
            r.case, *("" if s is None else _percent(s) for s in (r.share_predicted, r.share_saved)),
            show(r.predicted, r.unit), show(r.measured, r.unit), f"{r.iqr / r.measured:.0%}", signed(r.error),
            r.explanation,
        ]
        for r in rows
    ]  # fmt: skip
    return with_energy(record, rows, (head, body, tuple(range(1, len(head) - 1))))


def text(record: Record) -> str:
    """Everything in plain text, the same for the same record: calibration, all rows, reasons, seeds, monitor."""
    parts = [calibration_text(record)]
    rows = points(record)
    if rows:
        head, body, numeric = _table(record, rows)
        parts.append(columns(head[:-1], [r[:-1] for r in body], numeric))
        parts.append("\n".join(f"{r.case}: {r.explanation}" for r in rows))
    timed = dict.fromkeys(str(s.point["case"]) for s in record.samples if s.metric == "time" and s.point.get("case"))
    if named := _doubted(record, timed):
        parts.append(f"Disturbed while measured, as the record warns: {', '.join(named)}.")
    if used := utilizations(record):
        parts.append(_mfu_table(record, used))
    parts += [seeds_text(record), monitor_text(record), summary(record)]
    return "\n\n".join(p for p in parts if p)


# What the lab prints


def cases(points: Iterable[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The points of the cases that a learner can predict, by name."""
    return {str(p["case"]): p for p in points if p.get("role") in ROLES}


def describe(cases: Mapping[str, dict[str, Any]], names: Sequence[str] = ()) -> str:
    """A table of what the named cases are; of all if none is named."""
    rows = []
    for name in names or cases:
        p = cases[name]
        if p["role"] == "loader":
            workers = int(p["workers"])
            what = "the loader's fault alone, batches made " + (
                f"by {workers} worker{'s' if workers > 1 else ''}" if workers else "in the training process"
            )
            what += ", in page-locked memory" if p["pinned"] else ""
        else:
            left = [f for f in FAULTS if f in str(p["faults"]).split(",")]
            what = f"mended: {str(p['mended']).replace(',', ', ')}; left: {', '.join(left) or 'none'}"
        rows.append([name, what])
    return columns(["case", "what"], rows)


SERIES = ("shares", "ladder", "workers", "mfu", "seeds", "monitor")


def sweep(record: Record, name: str) -> str:
    """One of the lab's tables: "shares", "ladder", "workers", "mfu", "seeds" or "monitor".

    Raises:
        EfflabError: an unknown name; names those there are.
    """
    _check(record)
    if name not in SERIES:
        raise unknown("series", name, SERIES)
    if name == "seeds":
        return seeds_text(record)
    if name == "monitor":
        return monitor_text(record)
    if name == "mfu":
        used = utilizations(record)
        return _mfu_table(record, used) if used else "No peak was measured, so there is no MFU."
    if name == "shares":
        return _shares_table(record)
    if name == "ladder":
        return _ladder_table(record)
    return _workers_table(record)


def _shares_table(record: Record) -> str:
    """The ablation: each mend alone, predicted, by the profile as it is, by both profiles, and measured."""
    step, found, taken, both = _needed(record, PROFILE), ranges(record), shares(record), by_both(record)
    rows = []
    for row in points(record, ("ablation",)):
        (name,) = _mended_of(record, row.case)
        rows.append(
            [
                name, _percent(found[name] / step), _percent(taken[name]), *([_percent(both[name])] if both else []),
                _percent(row.share_saved or 0.0), f"{formulas.amdahl_limit(share=taken[name]):.2f}×",
                f"{1 / (1 - (row.share_saved or 0.0)):.2f}×",
            ]
        )  # fmt: skip
    head = ["fault", "by the profile", "predicted", *(["by both profiles"] if both else [])]
    head += ["saved", "gain predicted", "measured"]
    return columns(head, rows, range(1, len(head)))


@dataclass(frozen=True)
class Level:
    """A step of the waterfall.

    Attributes:
        mended: the faults that are mended, in the ladder's order.
        predicted, measured: of the step with all faults, the share that is left.
        row: of the case; None of the first level, where nothing is mended.
    """

    mended: tuple[str, ...]
    predicted: float
    measured: float
    row: Row | None


def levels(record: Record) -> list[Level]:
    """The waterfall: none mended, then every measured case with the first faults mended.

    The first mend alone stands in the ablation.
    """
    found = [Level((), 1.0, 1.0, None)]
    rows = {frozenset(_mended_of(record, r.case)): r for r in points(record, MENDS)}
    for count in range(1, len(FAULTS) + 1):
        row = rows.get(frozenset(FAULTS[:count]))
        if row is not None and row.share_saved is not None and row.share_predicted is not None:
            found.append(Level(FAULTS[:count], 1 - row.share_predicted, 1 - row.share_saved, row))
    return found


def _ladder_table(record: Record) -> str:
    taken, alone = shares(record), saved(record)
    rows = []
    for before, level in itertools.pairwise(levels(record)):
        assert level.row is not None  # only the first one has none
        names = [n for n in level.mended if n not in before.mended]
        one = [alone[n] for n in names if n in alone]
        rows.append(
            [
                level.row.case, ", ".join(names), _percent(sum(taken[n] for n in names)),
                _percent(sum(one)) if len(one) == len(names) else "", _percent(before.measured - level.measured),
                _percent(level.predicted), _percent(level.measured), show(level.row.measured, SECOND),
            ]
        )  # fmt: skip
    head = ["case", "mended last", "predicted", "alone", "here", "left, predicted", "left", "time"]
    return columns(head, rows, range(2, len(head)))


def _workers_table(record: Record) -> str:
    compute, load, hand = _needed(record, COMPUTE), _needed(record, LOAD), _handed(record)
    rows = []
    for row in points(record, ("loader",)):
        beyond = (formulas.stall_share(step_time=t, compute_time=compute) for t in (row.predicted, row.measured))
        rows.append(
            [row.case, show(row.predicted, SECOND), show(row.measured, SECOND), signed(row.error),
             *(_percent(float(share)) for share in beyond)]
        )  # fmt: skip
    head = ["case", "predicted", "measured", "error", "beyond computing, predicted", "beyond computing"]
    said = columns(head, rows, range(1, len(head)))
    needed = formulas.workers_needed(compute_time=compute + hand, load_time=load)
    handed = f" and being handed one by a worker {show(hand, SECOND)}" if hand else ""
    lines = [
        said,
        f"Making a batch takes {show(load, SECOND)}, a step without loading {show(compute, SECOND)}{handed}. By the "
        f"formula {needed:g} worker{'s' if needed > 1 else ''} would hide the making.",
    ]
    if hand > load:
        lines.append("Being handed a batch takes longer than making it: by the formula workers lose.")
    return "\n".join(lines)


def _mfu_table(record: Record, used: Mapping[str, float]) -> str:
    rows = []
    predicted = {r.case: r.predicted for r in points(record)}
    most = peak(record)
    assert most is not None  # else there is no MFU
    for case, value in used.items():
        sample = _sample(record, case)
        assert sample is not None
        if sample.point["role"] in ("monitor", "evidence"):
            continue
        seconds = median(sample.values)
        expected = _mfu(float(sample.point["flops"]), predicted[case], most) if case in predicted else None  # type: ignore[arg-type]
        rows.append(
            [case, show(seconds, SECOND), f"{float(sample.point['tokens']) / seconds:,.0f}",  # type: ignore[arg-type]
             _percent(expected) if expected else "", _percent(value)]
        )  # fmt: skip
    return columns(["case", "step", "tokens/s", "MFU predicted", "MFU"], rows, range(1, 5))


def compare(record: Record, slow: str, fast: str) -> str:
    """How much faster one case is than another, predicted and measured; the step with all faults may be one of them.

    Raises:
        EfflabError: an unknown case.
    """
    rows: dict[str, tuple[float, float]] = {ALL: (plain, plain)} if (plain := _value(record, ALL)) else {}
    rows |= {r.case: (r.predicted, r.measured) for r in points(record)}
    for name in (slow, fast):
        if name not in rows:
            gone = [m for m in missing(record) if m.startswith(f"{name} ")]
            if gone:
                return f"{gone[0].removesuffix('.')}. So there is nothing to compare."
            raise unknown("compare: case", name, rows)
    lines = []
    for name in (slow, fast):
        before = "calibrates" if name == ALL else f"predicted {show(rows[name][0], SECOND)}"
        lines.append(f"{name}: {before}, measured {show(rows[name][1], SECOND)}")
    (a, b), (c, d) = rows[slow], rows[fast]
    turns = ""
    if slow == ALL and (beside := _value(record, fast, "baseline")):
        b, turns = beside, f", against {show(beside, SECOND)}, timed in turns with it"
    lines.append(f"faster by: predicted {a / c:.3g}×, measured {b / d:.3g}×{turns}")
    return "\n".join(lines)


def evidence(record: Record, case: str) -> str:
    """What a case's prediction consists of, other estimates of it, and what was measured.

    Raises:
        EfflabError: the record has no such case, or it was not measured.
    """
    rows = {r.case: r for r in points(record)}
    if case not in rows:
        raise unknown("case", case, rows)
    row, sample = rows[case], _sample(record, case)
    assert sample is not None
    lines = [f"{case}: predicted {show(row.predicted, SECOND)}, measured {show(row.measured, SECOND)}"]
    if row.role == "loader":
        load, compute, workers = _needed(record, LOAD), _needed(record, COMPUTE), sample.point["workers"]
        how = f"÷ {workers} workers" if workers not in (0, 1) else "by one worker" if workers else "in the same process"
        lines.append(f"  making a batch: {show(load, SECOND)}, {how}; computing: {show(compute, SECOND)}")
        if workers and (hand := _handed(record)):
            lines.append(f"  being handed a batch: {show(hand, SECOND)}, added to computing")
        lines.append(
            f"  waiting for data: {_percent(max(0.0, 1 - compute / row.predicted))} predicted, "
            f"{_percent(1 - compute / row.measured)} measured"
        )
    else:
        lines += _mend_lines(record, sample, row)
    lines.append(f"  {row.explanation}")
    return "\n".join(lines)


def _mend_lines(record: Record, sample: Sample, row: Row) -> Iterator[str]:
    mended, found, step = _mended(sample), ranges(record), _needed(record, PROFILE)
    own, both, left, alone = held_shares(record), by_both(record), remaining(record), saved(record)
    held, counts = sum(found[name] for name in mended), _events(record, PROFILE)
    yield f"  range in the profile: {show(held, SECOND)} of {show(step, SECOND)}, {_percent(held / step)}"
    if event_time(record) is not None:
        seconds = sum(own[name] for name in mended) * _step(record)
        yield (
            f"  without the profiler's own cost, {sum(counts[n] for n in mended):,.0f} of {sum(counts.values()):,.0f} "
            f"events: {show(seconds, SECOND)} of {show(_step(record), SECOND)}, {_percent(seconds / _step(record))}"
        )
    yield f"  predicted to be taken off: {_percent(row.share_predicted or 0.0)}"
    if both:
        kept = sum(left[name] for name in mended)
        yield (
            f"  by the profiles with and without faults: {_percent(sum(both[n] for n in mended))} "
            f"({show(kept, SECOND)} of the range are left)"
        )
    if len(mended) > 1 and all(name in alone for name in mended):
        listed = " + ".join(_percent(alone[name]) for name in mended)
        yield f"  measured one by one: {listed} = {_percent(sum(alone[name] for name in mended))}"
    baseline = _value(record, row.case, "baseline")
    against = f" of {show(baseline, SECOND)}, timed in turns" if baseline else ""
    yield f"  measured: {_percent(row.share_saved or 0.0)}{against}"


# Predictions that were saved from a calculator


def asked(prediction: Prediction) -> dict[str, dict[str, Any]]:
    """The outputs of a calculator's prediction that a record could answer, each with what it is about.

    Of `amdahl` the time, the gain and the saving of the mend that is looked at, and of all three; of `loader` the time
    of a step and the share of it that is waiting; of `mfu` the MFU of a model and a device of one's own.
    """
    inputs, kind = dict(prediction.inputs), prediction.calculator
    about: dict[str, dict[str, Any]] = {}
    if kind == "amdahl":
        key = str(inputs.get("part", "")).lower()
        one = {"time": inputs.get("time"), "shares": (inputs.get(f"share_{key}"),)}
        every = {"time": inputs.get("time"), "shares": tuple(inputs.get(f"share_{k}") for k in "abc")}
        about = dict.fromkeys(("gain", "saved", "time_after"), one) | dict.fromkeys(("gain_of_all", "time_left"), every)
    elif kind == "loader":
        wanted = {n: inputs.get(n) for n in ("sample_time", "batch", "compute_time", "workers")}
        about = dict.fromkeys(("step_time", "waiting_share"), wanted)
    elif kind == "mfu" and inputs.get("model") == "custom" and inputs.get("accelerator") == "custom":
        wanted = {n: inputs.get(n) for n in ("own_parameters", "own_peak_performance", "tokens_per_second", "devices",
                                             "sequence_length")}  # fmt: skip
        about = {"mfu": wanted}
    return {
        name: point for name, point in about.items()
        if name in prediction.outputs and all(_number(v) for value in point.values()
                                              for v in (value if isinstance(value, tuple) else (value,)))
    }  # fmt: skip


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def answers(record: Record, prediction: Prediction) -> dict[str, Row]:
    """Of those outputs, the ones that this record answers.

    The numbers that were put in must be this record's own, as its calibration prints them: times within 1%, shares
    within half a percentage point, without the profiler's own cost where that is known, and of one fault only.

    Raises:
        EfflabError: as `points`.
    """
    rows = {r.case: r for r in points(record)}
    found = {}
    for name, about in asked(prediction).items():
        row = {"amdahl": _answer_amdahl, "loader": _answer_loader, "mfu": _answer_mfu}[str(prediction.calculator)](
            record, rows, name, about
        )
        if row is not None:
            found[name] = answered(row, prediction.outputs[name].value)
    return found


def _near(typed: float, measured: float | None) -> bool:
    return measured is not None and abs(typed - measured) <= TYPED * abs(measured)


def _answer_amdahl(record: Record, rows: Mapping[str, Row], name: str, about: Mapping[str, Any]) -> Row | None:
    plain = _value(record, ALL)
    if not _near(about["time"], plain) or _sample(record, PROFILE) is None:
        return None
    held, taken = held_shares(record), shares(record)
    named = []
    for share in about["shares"]:
        # The profile's table has both. Shares with the profiler's cost are left out: one may be another fault's.
        close = [f for f in FAULTS if min(abs(share - held[f]), abs(share - taken[f])) <= 0.005]
        if len(close) != 1:
            return None
        named += close
    row = next((r for r in rows.values() if r.role in MENDS and set(_mended_of(record, r.case)) == set(named)), None)
    if row is None or row.share_saved is None or not row.share_saved > 0 or len(set(named)) != len(named):
        return None
    baseline = row.measured / (1 - row.share_saved)
    if name in ("time_after", "time_left"):
        return row
    if name == "saved":
        return _derived(row, "saved", SECOND, baseline - row.measured)
    return _derived(row, "gain", NUMBER, baseline / row.measured)


def _answer_loader(record: Record, rows: Mapping[str, Row], name: str, about: Mapping[str, Any]) -> Row | None:
    load, compute, whole = _value(record, LOAD), _value(record, COMPUTE), _sample(record, LOAD)
    if load is None or whole is None or about["batch"] != whole.point.get("batch"):
        return None
    if not _near(about["sample_time"] * about["batch"], load) or not _near(about["compute_time"], compute):
        return None
    for row in rows.values():
        sample = _sample(record, row.case)
        assert sample is not None
        if row.role == "loader" and sample.point["workers"] == about["workers"] and not sample.point["pinned"]:
            if name == "step_time":
                return row
            waits = 1 - (compute or 0.0) / row.measured
            return _derived(row, "waiting_share", NUMBER, waits) if waits > 0 else None
    return None


def _answer_mfu(record: Record, rows: Mapping[str, Row], name: str, about: Mapping[str, Any]) -> Row | None:
    if about["devices"] != 1 or not _near(about["own_peak_performance"], peak(record)):
        return None
    for case, used in utilizations(record).items():
        sample = _sample(record, case)
        assert sample is not None
        p, seconds = sample.point, median(sample.values)
        if not _near(about["own_parameters"], _float(p.get("parameters"))) or about["sequence_length"] != p.get(
            "context"
        ):
            continue
        if _near(about["tokens_per_second"], float(p["tokens"]) / seconds):  # type: ignore[arg-type]
            return Row(
                case=case, role=str(p["role"]), metric="mfu", unit=NUMBER, predicted=used, measured=used,
                share_predicted=None, share_saved=None, iqr=0.0, ratio=1.0, error=0.0, explanation="",
            )  # fmt: skip
    return None


def _float(value: object) -> float | None:
    return float(value) if _number(value) else None  # type: ignore[arg-type]


def _derived(row: Row, metric: str, unit: Unit, measured: float) -> Row:
    """Another number of a case, such as its gain, as a row of its own; what is predicted is the learner's."""
    return dataclasses.replace(
        row, metric=metric, unit=unit, predicted=measured, measured=measured, iqr=0.0, ratio=1.0, error=0.0
    )


__all__ = [
    "BASE",
    "CALIBRATION",
    "DRAWN",
    "FAULTS",
    "LIMITS",
    "MONITORED",
    "PARTS",
    "PICTURES",
    "SERIES",
    "Curve",
    "Level",
    "Row",
    "answers",
    "asked",
    "banner",
    "by_both",
    "calibrates",
    "calibration",
    "calibration_text",
    "cases",
    "compare",
    "curves",
    "describe",
    "event_time",
    "evidence",
    "expected_step",
    "expected_time",
    "held_shares",
    "levels",
    "missing",
    "monitor_text",
    "monitored",
    "peak",
    "points",
    "ranges",
    "remaining",
    "saved",
    "saved_between",
    "scatters",
    "seeds_text",
    "shares",
    "speedups",
    "summary",
    "sweep",
    "table",
    "text",
    "utilizations",
    "whole",
]  # fmt: skip
