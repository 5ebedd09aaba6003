"""The roofline against a recorded run.

For every kernel: the time that the roofline gives with the ceilings measured around it, the time with the
data-sheet ceilings where the catalog knows the device, the measured median, and what explains the rest.

No sample predicts itself: ceilings come from the record's own "ceiling" samples, a copy, a matrix product of
another size than any kernel's, and the negation of one element.

The regime is found three ways that share no step: from the intensity, from how time follows size, and from
the profiler.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

from efflab import catalog
from efflab.errors import EfflabError, unknown
from efflab.formulas import roofline as formulas
from efflab.reconcile import (
    LARGEST,
    NEAR,
    NOTHING,
    answered,
    damaged,
    error,
    median_of,
    no_result,
    of_topic,
    percent,
    positive,
    unsteady,
    with_energy,
)
from efflab.reconcile import banner as banner
from efflab.reconcile import calibrates as calibrates
from efflab.reconcile import columns as _columns
from efflab.reconcile import datasheet as datasheet
from efflab.reconcile import scatters as scatters
from efflab.records import Prediction, Record, Sample, iqr, median
from efflab.units import BYTE, BYTE_PER_SECOND, FLOP, FLOP_PER_BYTE, FLOP_PER_SECOND, SECOND, Unit, show, show_binary

LIMITS = ("overhead", "memory", "compute")  # as `formulas.limiting_factor` numbers them
CALIBRATION = {
    "copy": ("bandwidth", BYTE_PER_SECOND),
    "peak": ("performance", FLOP_PER_SECOND),
    "overhead": ("time", SECOND),
}
BASE: tuple[str, ...] = ()  # what every prediction rests on
PICTURES = ("roofline", "errors")
DRAWN = ("kernel", "lesson")
ROLES = ("kernel", "series", "lesson")
AGREES = f"As predicted, within {NEAR - 1:.0%}."
READERS = ("matmul", "gemv", "attention_decode")  # where memory bounds these, they read a matrix and write little
PAGE = 4096  # B; the size of the pages that a fault brings in, without huge pages


@dataclass(frozen=True)
class Ceilings:
    """What bounds a kernel. `peak` is of the kernel's dtype, FLOP/s; `bandwidth` B/s; `overhead` s per call."""

    peak: float
    bandwidth: float
    overhead: float

    @property
    def ridge_point(self) -> float:
        """FLOP/B at which the two ceilings meet."""
        return formulas.ridge_point(peak_performance=self.peak, memory_bandwidth=self.bandwidth)


@dataclass(frozen=True)
class Row:
    """One kernel, predicted and measured. Reads as an object and as a mapping.

    Attributes:
        case, kernel, dtype, role: as in the sample's point.
        flops, bytes_moved: of one call, by the formulas.
        arithmetic_intensity: FLOP/B.
        performance: FLOP/s, from the median.
        predicted: s, with the ceilings measured around this kernel.
        datasheet_time: s, with the catalog's ceilings; None where the device has no entry.
        measured: s per call, the median.
        iqr: s, interquartile range of the repeats.
        ratio: measured over predicted.
        error: (predicted - measured) / measured.
        ceilings: the ones that `predicted` used.
        by_intensity: regime by comparing the three times of the roofline.
        by_size: regimes that agree with how time follows size; empty where no series was measured.
        by_profile: regime by operator time against wall time and ceilings; "" where not profiled.
        explanation: why prediction and measurement part, from what the record holds.
    """

    case: str
    kernel: str
    dtype: str
    role: str
    flops: float
    bytes_moved: float
    arithmetic_intensity: float
    performance: float
    predicted: float
    datasheet_time: float | None
    measured: float
    iqr: float
    ratio: float
    error: float
    ceilings: Ceilings
    by_intensity: str
    by_size: tuple[str, ...]
    by_profile: str
    explanation: str

    def __getitem__(self, name: str) -> Any:
        if name not in self.keys():
            raise KeyError(name)
        return getattr(self, name)

    def keys(self) -> list[str]:
        """The names of the entries."""
        return [f.name for f in fields(self)]

    @property
    def metric(self) -> str:
        """What was measured."""
        return "time"

    @property
    def unit(self) -> Unit:
        """The unit of `predicted` and `measured`."""
        return SECOND

    @property
    def regime(self) -> str:
        """What limits the kernel by its intensity, in words."""
        return self.by_intensity


# Prediction


def counts(point: dict[str, Any]) -> tuple[float, float]:
    """FLOP and bytes of one call of a recorded point.

    Raises:
        EfflabError: an unknown kernel, or the point lacks an argument of its formula.
    """
    if point.get("kernel") not in formulas.KERNELS:
        raise EfflabError(f"case {point.get('case')!r}: kernel {point.get('kernel')!r} has no formula.")
    found = []
    for function in formulas.KERNELS[point["kernel"]]:
        arguments = {}
        for name in inspect.signature(function).parameters:
            if name not in point:
                raise EfflabError(f"case {point.get('case')!r}: the point lacks {name!r}, which its formula takes.")
            arguments[name] = point[name]
        found.append(float(function(**arguments)))
    return found[0], found[1]


def predict(point: dict[str, Any], ceilings: Ceilings, kind: str = "cpu") -> float:
    """Seconds of one call under the roofline.

    On a CPU the overhead of a call comes on top of its work. On a GPU calls that follow each other are launched
    while earlier ones run, so the larger of the two is what one call costs. A chain that is not fused pays
    both for each of its operations.

    Raises:
        EfflabError: as `counts`.
    """
    flops, moved = counts(point)
    calls = point["operations"] if point["kernel"] == "unfused_chain" else 1
    time = formulas.roofline_time if kind == "cpu" else formulas.queued_time
    return calls * float(
        time(
            flops=flops / calls,
            bytes_moved=moved / calls,
            peak_performance=ceilings.peak,
            memory_bandwidth=ceilings.bandwidth,
            overhead=ceilings.overhead,
        )
    )


def limits(point: dict[str, Any], ceilings: Ceilings) -> str:
    """The regime by intensity: which of overhead, memory and compute takes the longest."""
    flops, moved = counts(point)
    calls = point["operations"] if point["kernel"] == "unfused_chain" else 1
    index = formulas.limiting_factor(
        flops=flops,
        bytes_moved=moved,
        peak_performance=ceilings.peak,
        memory_bandwidth=ceilings.bandwidth,
        overhead=calls * ceilings.overhead,
    )
    return LIMITS[int(index)]


def peak_dtype(record: Record, index: int) -> str:
    """The dtype of the matrix product that bounds the kernel of a sample.

    The point states it as "peak_dtype". Where it does not, as in the first records, it is the product that was
    measured next after the kernel.

    Raises:
        EfflabError: neither is there.
    """
    point = record.samples[index].point
    if "peak_dtype" in point:
        return str(point["peak_dtype"])
    for sample in record.samples[index:]:
        case = str(sample.point.get("case"))
        if sample.point.get("role") == "ceiling" and case.startswith("ceiling-matmul-"):
            return case.removeprefix("ceiling-matmul-")
    raise EfflabError(
        f"record {record.id}: case {point.get('case')!r} has no peak_dtype, and no sample ceiling-matmul-… follows it. "
        "Measure it again."
    )


# Points are a topic's own: what is read from them is checked here, so that a damaged one is named.

_FLAGS = ("causal",)


def _check(record: Record) -> None:
    """Raise `EfflabError`, naming record, sample and field, for a point that cannot be reconciled."""
    of_topic(record, "roofline")
    for index, sample in enumerate(record.samples):
        role, point = sample.point.get("role"), sample.point
        if sample.metric != "time" or role not in (*ROLES, "ceiling", "bandwidth"):
            continue
        wrong = functools.partial(damaged, record, index)
        for field in ("case", "kernel", *(("dtype",) if role in ROLES else ())):
            if not isinstance(point.get(field), str) or not point[field]:
                raise wrong(field, "a text")
        for field in ("series", "peak_dtype", "inputs", "output"):
            if not isinstance(point.get(field, ""), str):
                raise wrong(field, "a text")
        if role in ROLES:
            if point["kernel"] not in formulas.KERNELS:
                raise unknown(f"record {record.id}: samples[{index}]: kernel", str(point["kernel"]), formulas.KERNELS)
            needed = _arguments(str(point["kernel"]))
        else:
            needed = ("m", "n", "k") if point["kernel"] == "matmul" else ()
            needed = ("bytes_moved",) if role == "bandwidth" or point["kernel"] == "copy" else needed
        for field in needed:
            value = point.get(field)
            if field in _FLAGS:
                if not isinstance(value, bool):
                    raise wrong(field, "true or false")
            elif not positive(value, LARGEST):
                raise wrong(field, "a number greater than zero")


@functools.cache
def _arguments(kernel: str) -> tuple[str, ...]:
    """The arguments that a kernel's two formulas take."""
    names = (n for function in formulas.KERNELS[kernel] for n in inspect.signature(function).parameters)
    return tuple(dict.fromkeys(names))


def _rate(sample: Sample) -> float:
    """What a ceiling sample says: B/s of a copy, FLOP/s of a product, s of an overhead."""
    seconds, point = median(sample.values), sample.point
    if point["kernel"] == "matmul":
        return formulas.matmul_flops(m=point["m"], n=point["n"], k=point["k"]) / seconds
    return point["bytes_moved"] / seconds if "bytes_moved" in point else seconds  # type: ignore[operator]


def measured_ceilings(record: Record) -> dict[str, float]:
    """The record's ceilings over the whole run, each the median of its measurements.

    Keys: "copy" (B/s), "overhead" and, on a GPU, "overhead-waited" (s), "matmul-<dtype>" (FLOP/s); and where
    measured "bandwidth-read", "bandwidth-write", "bandwidth-in-place" (B/s).
    """
    _check(record)
    found: dict[str, list[float]] = {}
    for sample in record.samples:
        if sample.metric == "time" and sample.status == "ok" and sample.point.get("role") in ("ceiling", "bandwidth"):
            found.setdefault(str(sample.point["case"]).removeprefix("ceiling-"), []).append(_rate(sample))
    return {name: median(values) for name, values in found.items()}


def _around(record: Record, index: int, name: str) -> list[float]:
    """The ceiling's measurements next before and next after a sample."""
    case, found = f"ceiling-{name}", []
    for side in (reversed(record.samples[:index]), iter(record.samples[index + 1 :])):
        nearest = next((s for s in side if s.point.get("case") == case and s.status == "ok"), None)
        if nearest:
            found.append(_rate(nearest))
    return found


def ceilings_of(record: Record, index: int) -> Ceilings:
    """The ceilings measured around the sample at an index: the mean of the ones next before and next after.

    Raises:
        EfflabError: the record lacks a ceiling that this kernel needs.
    """
    point = record.samples[index].point
    found = {}
    product = f"matmul-{peak_dtype(record, index)}"
    for what, name in (("peak", product), ("bandwidth", "copy"), ("overhead", "overhead")):
        values = _around(record, index, name)
        if not values:
            raise EfflabError(f"case {point['case']!r}: the record has no sample ceiling-{name}. Measure it again.")
        found[what] = sum(values) / len(values)
    return Ceilings(**found)


def _datasheet_ceilings(record: Record, index: int, overhead: float) -> Ceilings | None:
    entry = datasheet(record)
    peak = entry.peak_dense.get(peak_dtype(record, index)) if entry else None
    return Ceilings(peak, entry.memory_bandwidth, overhead) if entry and peak else None


# Reconciliation


def points(record: Record, roles: tuple[str, ...] = ROLES) -> list[Row]:
    """Every measured kernel of a record with its prediction, in the order measured.

    Samples that ran out of memory or failed have no row: `missing` names them.

    Raises:
        EfflabError: the record is of another topic, or a point is damaged; names record, sample and field.
    """
    rows = []
    for index, sample in _kernels(record):
        if sample.status != "ok" or sample.point["role"] not in roles:
            continue
        point, ceilings = sample.point, ceilings_of(record, index)
        flops, moved = counts(point)
        predicted = predict(point, ceilings, record.environment.kind)
        sheet = _datasheet_ceilings(record, index, ceilings.overhead)
        seconds = median(sample.values)
        facts = _Facts(record, index, sample, ceilings, predicted, seconds)
        rows.append(
            Row(
                case=str(point["case"]),
                kernel=str(point["kernel"]),
                dtype=str(point["dtype"]),
                role=str(point["role"]),
                flops=flops,
                bytes_moved=moved,
                arithmetic_intensity=formulas.arithmetic_intensity(flops=flops, bytes_moved=moved),
                performance=flops / seconds,
                predicted=predicted,
                datasheet_time=predict(point, sheet, record.environment.kind) if sheet else None,
                measured=seconds,
                iqr=iqr(sample.values),
                ratio=seconds / predicted,
                error=error(predicted, seconds),
                ceilings=ceilings,
                by_intensity=limits(point, ceilings),
                by_size=_by_size(record, sample),
                by_profile=_by_profile(facts),
                explanation=_explain(facts),
            )
        )
    return rows


def missing(record: Record) -> list[str]:
    """One sentence for every kernel of a record without a time: what happened to it."""
    found = []
    for _, sample in _kernels(record):
        if sample.status != "ok":
            found.append(no_result(sample))
    return found


def _kernels(record: Record) -> list[tuple[int, Sample]]:
    _check(record)
    return [(i, s) for i, s in enumerate(record.samples) if s.metric == "time" and s.point.get("role") in ROLES]


def _series(record: Record, sample: Sample) -> list[Sample]:
    """The samples that differ from this one in one size, from the least work to the most."""
    name = sample.point.get("series")
    if not name:
        return []
    found = [s for _, s in _kernels(record) if s.point.get("series") == name and s.status == "ok"]
    return sorted(found, key=lambda s: counts(s.point))


def _by_size(record: Record, sample: Sample) -> tuple[str, ...]:
    """The regimes whose scaling the measured times follow between this size and its neighbours.

    Between two sizes time grows as the FLOP in the compute regime, as the bytes in the memory regime and not
    at all in the overhead regime. Every regime whose growth, in logarithms, lies within a quarter of the whole
    range from the measured one is kept, so more than one is named where the sizes cannot tell them apart.
    """
    series = _series(record, sample)
    if len(series) < 2:
        return ()
    at = series.index(sample)
    low, high = series[max(0, at - 1)], series[min(len(series) - 1, at + 1)]
    (w0, q0), (w1, q1) = counts(low.point), counts(high.point)
    grown = {"overhead": 0.0, "memory": math.log(q1 / q0), "compute": math.log(w1 / w0)}
    span = max(grown.values()) - min(grown.values())
    if span < math.log(1.5):
        return ()
    measured = math.log(median(high.values) / median(low.values))
    distance = {r: abs(measured - g) / span for r, g in grown.items()}
    near = [r for r in LIMITS if distance[r] <= 0.25]
    return tuple(near or sorted(sorted(LIMITS, key=distance.__getitem__)[:2], key=LIMITS.index))


@dataclass(frozen=True)
class _Facts:
    record: Record
    index: int
    sample: Sample
    ceilings: Ceilings
    predicted: float
    seconds: float

    def value(self, metric: str) -> float | None:
        return median_of(self.record, self.sample.point, metric)

    @property
    def point(self) -> dict[str, Any]:
        return self.sample.point

    @property
    def product(self) -> str:
        """The name of the ceiling that bounds its arithmetic."""
        return f"matmul-{peak_dtype(self.record, self.index)}"


def _by_profile(facts: _Facts) -> str:
    """The regime by the profiler.

    Overhead where operators (on a GPU: kernels) fill less than half of the wall time. Else the ceiling of which
    the operators reach the larger part. Overhead again where they reach less than a tenth of both and the call
    takes less than ten times the overhead: then even the operator's own time is dispatch.
    """
    inside, wall = facts.value("operator_time"), facts.value("profiled_time")
    if not inside or not wall:
        return ""
    if inside < 0.5 * wall:
        return "overhead"
    flops, moved = counts(facts.point)
    of_peak, of_bandwidth = flops / inside / facts.ceilings.peak, moved / inside / facts.ceilings.bandwidth
    if max(of_peak, of_bandwidth) < 0.1 and facts.seconds < 10 * facts.ceilings.overhead:
        return "overhead"
    return "compute" if of_peak > of_bandwidth else "memory"


def _explain(facts: _Facts) -> str:
    """Where prediction and measurement part: the first observation whose condition the record's own numbers meet.

    Each says what was measured. A cause that the record does not hold stands behind "Consistent with".
    """
    ratio = facts.seconds / facts.predicted
    scattered = _unsteady(facts)
    if 1 / NEAR <= ratio <= NEAR:
        return AGREES + scattered
    causes = _faster if ratio < 1 else _slower
    return next(causes(facts), NOTHING) + scattered


def _unsteady(facts: _Facts) -> str:
    if said := unsteady(facts.sample.values, facts.seconds):
        return f" {said}"
    usual = measured_ceilings(facts.record)
    for name, what in (("copy", "the copy"), (facts.product, "the matrix product")):
        around = _around(facts.record, facts.index, name)
        part = sum(around) / len(around) / usual[name]
        if part < 0.7:
            return f" Disturbed: around it {what} ran at {part:.0%} of its usual speed in this run."
        if len(around) == 2 and not 0.8 <= around[1] / around[0] <= 1.25:
            return f" Unsteady: around it the speed of {what} changed by {percent(around[1] / around[0] - 1)}."
    return ""


def _faster(facts: _Facts) -> Iterator[str]:
    point, ceilings, record = facts.point, facts.ceilings, facts.record
    regime = limits(point, ceilings)
    flops, _ = counts(point)
    cache = max(record.environment.caches.values(), default=0)
    working_set = facts.value("working_set")
    if regime == "memory" and point.get("inputs") == "warm" and working_set and 0 < working_set <= cache:
        yield (
            f"Every call uses the same {show_binary(working_set)}, and the last-level cache holds "
            f"{show_binary(cache)}. Consistent with data that stays in the cache, so main memory does not bound it."
        )
    if regime == "overhead":
        yield (
            f"Its call costs {show(facts.seconds, SECOND)}, less than the "
            f"{show(ceilings.overhead, SECOND)} of the negation that stands for the overhead."
        )
    found = measured_ceilings(record)
    read, copy, in_place = found.get("bandwidth-read"), found["copy"], found.get("bandwidth-in-place", 0.0)
    if regime == "memory" and point["kernel"] in READERS and read and read > 1.1 * copy:
        text = (
            f"It only reads. Reading alone runs at {show(read, BYTE_PER_SECOND)}, the copy at "
            f"{show(copy, BYTE_PER_SECOND)}."
        )
        # In place, each line that is written was just read; the copy's target was not.
        if record.environment.kind == "cpu" and in_place > 1.2 * copy:
            text += (
                f" In place, read and write run at {show(in_place, BYTE_PER_SECOND)}: consistent with a copy in which "
                "a written line is first read into the cache, traffic that the formula does not count."
            )
        yield text
    if regime == "compute":
        yield (
            f"It reaches {show(flops / facts.seconds, FLOP_PER_SECOND)}, the product that stands for the peak "
            f"{show(ceilings.peak, FLOP_PER_SECOND)}: that product is not the fastest on this device."
        )


def _slower(facts: _Facts) -> Iterator[str]:
    point, ceilings, record = facts.point, facts.ceilings, facts.record
    environment = record.environment
    regime = limits(point, ceilings)
    flops, moved = counts(point)
    extra = facts.seconds - facts.predicted
    usual = measured_ceilings(record)
    read = usual.get("bandwidth-read", 0.0)

    faults = facts.value("page_faults") or 0.0
    each = extra / faults if faults else 0.0
    paid = (
        f"{faults:,.0f} page faults in every call, {show(each, SECOND)} of the extra time for each. "
        "Consistent with an output in fresh memory."
    )
    if faults and faults * PAGE >= 0.25 * moved / 2 and 0.05e-6 <= each <= 20e-6:
        yield paid
    if regime == "overhead" or facts.seconds < 20 * ceilings.overhead:
        at_peak = max(flops / ceilings.peak, moved / ceilings.bandwidth)
        if extra < 20 * ceilings.overhead and at_peak < 3 * ceilings.overhead:
            yield (
                f"It takes {show(facts.seconds, SECOND)} a call, its work at the ceilings {show(at_peak, SECOND)}, the "
                f"one-element negation that stands for the overhead {show(ceilings.overhead, SECOND)}. Consistent "
                "with a dispatch that costs more than the negation's."
            )
    alone = facts.value("time_one_thread")
    if alone and environment.threads > 1:
        yield from _threads(facts, alone, read)
    if point["kernel"] == "fused_chain" and point["operations"] >= 16 and regime != "overhead":
        yield (
            f"Its {point['operations']} operations an element run at {show(flops / facts.seconds, FLOP_PER_SECOND)}, "
            f"{flops / facts.seconds / ceilings.peak:.0%} of the peak. Consistent with operations that each wait for "
            "the one before; the peak is of independent fused multiply-adds."
        )
    units = environment.multiprocessors
    if environment.kind != "cpu" and point["kernel"] == "matmul" and units:
        elements = point["m"] * point["n"]
        if elements < 128 * 128 * units:
            yield (
                f"Its result has {elements:,} elements for {units} multiprocessors, {elements / units:,.0f} for each. "
                "Consistent with too few tiles to fill them; the record does not hold the library's tile size."
            )
    if point["kernel"] == "attention_prefill":
        yield from _attention(facts, extra)
    inside = _in_cache(facts)
    if inside and regime == "memory":
        here, there = moved / facts.seconds, counts(inside.point)[1] / median(inside.values)
        if there < 1.5 * here:
            likely = (
                "exponentials and divisions, which the formula counts as one operation each"
                if point["kernel"] == "softmax"
                else "work in the cores that the formula does not count"
            )
            yield (
                f"With its data in the cache ({inside.point['case']}) it moves {show(there, BYTE_PER_SECOND)}, from "
                f"main memory {show(here, BYTE_PER_SECOND)}: memory does not bound it. It runs at "
                f"{show(flops / facts.seconds, FLOP_PER_SECOND)}, {flops / facts.seconds / ceilings.peak:.0%} of the "
                f"peak. Consistent with {likely}."
            )
        elif alone and environment.threads > 1 and alone / facts.seconds > 0.75 * environment.threads:
            yield (
                f"From the cache ({inside.point['case']}) it moves {show(there, BYTE_PER_SECOND)}, from main memory "
                f"{show(here, BYTE_PER_SECOND)}, and {environment.threads} threads move {alone / facts.seconds:.1f} "
                "times as much as one. Consistent with cores that wait for their own reads while bandwidth is left."
            )
    larger = [s for s in _series(record, facts.sample) if counts(s.point)[0] > flops]
    best = max(larger, key=lambda s: counts(s.point)[0] / median(s.values), default=None)
    rate = counts(best.point)[0] / median(best.values) if best else 0.0
    if best and point["kernel"] == "matmul" and rate > 1.5 * flops / facts.seconds:
        small = "too few rows" if point["m"] < point["n"] else "too small a product"
        yield (
            f"It runs at {show(flops / facts.seconds, FLOP_PER_SECOND)}, a larger size of the same series "
            f"({best.point['case']}) at {show(rate, FLOP_PER_SECOND)}. Consistent with {small} to fill the units."
        )
    if faults and faults * PAGE >= 0.02 * moved and 0.05e-6 <= each <= 20e-6:
        yield paid
    if regime == "memory" and point["kernel"] in READERS and read and moved / facts.seconds > 0.75 * read:
        yield (
            f"It only reads, at {show(moved / facts.seconds, BYTE_PER_SECOND)}. A sum, which only reads too, reaches "
            f"{show(read, BYTE_PER_SECOND)} on this device, the copy {show(ceilings.bandwidth, BYTE_PER_SECOND)}."
        )
    if regime == "memory" and point.get("inputs") == "cold":
        yield (
            f"It moves {show(moved / facts.seconds, BYTE_PER_SECOND)} where the copy moves "
            f"{show(ceilings.bandwidth, BYTE_PER_SECOND)}"
            + (f" and a sum reads {show(read, BYTE_PER_SECOND)}" if read else "")
            + ", and no number in the record says why."
        )


def _threads(facts: _Facts, alone: float, read: float) -> Iterator[str]:
    """What one thread against all of them says."""
    point, ceilings, threads = facts.point, facts.ceilings, facts.record.environment.threads
    gain, regime = alone / facts.seconds, limits(point, ceilings)
    times = f"one thread takes {show(alone, SECOND)}, {threads} threads {show(facts.seconds, SECOND)}"
    if gain < 0.9:
        yield (
            f"One thread is faster than {threads}: {times}. Consistent with too little work to share, or with another "
            "program on a core."
        )
    if not 0.9 <= gain < 1.1 or regime == "overhead":
        return
    rate = counts(point)[1] / facts.seconds
    rates = f"It moves {show(rate, BYTE_PER_SECOND)}, the copy {show(ceilings.bandwidth, BYTE_PER_SECOND)}"
    rates += f", a sum {show(read, BYTE_PER_SECOND)}." if read else "."
    if regime == "memory" and rate >= 0.6 * min(r for r in (ceilings.bandwidth, read) if r):
        yield f"One core moves as much as {threads}: {times}. {rates}"
        return
    said = f"{times}. {rates}" if regime == "memory" else f"{times}."
    yield f"More threads do not help: {said} Consistent with a library that runs it on one thread."


def _attention(facts: _Facts, extra: float) -> Iterator[str]:
    """What the rate of the full kernel, and of the softmax in the same record, say about attention."""
    point, record = facts.point, facts.record
    flops, _ = counts(point)
    if point["causal"]:
        whole = [
            s for _, s in _kernels(record)
            if s.status == "ok" and s.point | {"causal": True, "case": ""} == point | {"case": ""}
            and not s.point["causal"]
        ]  # fmt: skip
        if whole:
            rate, full = flops / facts.seconds, counts(whole[0].point)[0] / median(whole[0].values)
            if rate < 0.9 * full:
                yield (
                    f"The causal kernel reaches {show(rate, FLOP_PER_SECOND)}, the full one "
                    f"{show(full, FLOP_PER_SECOND)}. Consistent with blocks on the diagonal that are computed whole."
                )
    pairs = point["batch"] * point["query_heads"] * point["sequence_length"] ** 2 / (2 if point["causal"] else 1)
    alike = [
        s for _, s in _kernels(record)
        if s.status == "ok" and s.point["kernel"] == "softmax" and s.point["dtype"] == point["dtype"]
    ]  # fmt: skip
    if alike:
        each, name = min((median(s.values) / (s.point["rows"] * s.point["columns"]), s.point["case"]) for s in alike)
        if 0.5 <= pairs * each / extra <= 2:
            yield (
                f"It takes {show(extra, SECOND)} longer than its two products. At the rate of {name} a softmax over "
                f"its {pairs:,.0f} scores takes {show(pairs * each, SECOND)}. Consistent with the softmax between the "
                "products, which the formula does not count."
            )


def _in_cache(facts: _Facts) -> Sample | None:
    """The largest sample of the same series whose data stays in half the last-level cache, beyond the overhead."""
    half = max(facts.record.environment.caches.values(), default=0) / 2
    found = [
        s
        for s in _series(facts.record, facts.sample)
        if s.point.get("inputs") == "warm"
        and s is not facts.sample
        and (median_of(facts.record, s.point, "working_set") or math.inf) <= half
        and median(s.values) > 10 * facts.ceilings.overhead
    ]
    return found[-1] if found else None


# In words and tables


def summary(record: Record) -> str:
    """The median and the worst error over a record's kernels, and why the worst is what it is."""
    rows = points(record, roles=("kernel",))
    if not rows:
        return "No kernel of this record was measured."
    sizes = sorted(abs(r.error) for r in rows)
    middle = median(sizes)
    worst = max(rows, key=lambda r: abs(math.log(r.ratio)))
    near = sum(1 / NEAR <= r.ratio <= NEAR for r in rows)
    text = (
        f"{len(rows)} kernels. Median error of the predicted time {middle:.0%}; {near} within a factor of {NEAR}. "
        f"Worst: {worst.case}, predicted {show(worst.predicted, SECOND)}, measured "
        f"{show(worst.measured, SECOND)} ({percent(worst.error)}). {worst.explanation}"
    )
    if record.scale == "smoke":
        text = "Smoke scale: its sizes are too small to say anything about the device. " + text
    absent = missing(record)
    return text + (f" Not in it: {'; '.join(absent)}." if absent else "")


HEAD = ["case", "limit", "FLOP/B", "predicted", "measured", "IQR", "error", "why"]
NUMERIC = (2, 3, 4, 5, 6)


def table(record: Record) -> tuple[list[str], list[list[str]], tuple[int, ...]]:
    """Head, rows of text and the indices of numeric columns: every kernel and lesson, predicted and measured."""
    entry = datasheet(record)
    head = [*HEAD[:4], *(["data sheet"] if entry else []), *HEAD[4:]]
    found, rows = points(record, roles=("kernel", "lesson")), []
    for r in found:
        sheet = [show(r.datasheet_time, SECOND) if r.datasheet_time else "none"] if entry else []
        rows.append(
            [
                r.case + (" (lesson)" if r.role == "lesson" else ""),
                r.by_intensity,
                show(r.arithmetic_intensity, FLOP_PER_BYTE).removesuffix(" FLOP/B"),
                show(r.predicted, SECOND),
                *sheet,
                show(r.measured, SECOND),
                f"{r.iqr / r.measured:.0%}",
                percent(r.error),
                r.explanation,
            ]
        )
    return with_energy(record, found, (head, rows, tuple(range(2, 7 + bool(entry)))))


def calibration_text(record: Record) -> str:
    """The record's ceilings in words, with the data sheet's beside them where the catalog has the device."""
    found, entry = measured_ceilings(record), datasheet(record)
    lines = []
    for name, value in found.items():
        if name.startswith("matmul-"):
            dtype = name.removeprefix("matmul-")
            text = f"matrix product, {dtype}: {show(value, FLOP_PER_SECOND)}"
            if entry and dtype in entry.peak_dense:
                text += f", {value / entry.peak_dense[dtype]:.0%} of the data sheet's dense "
                text += show(entry.peak_dense[dtype], FLOP_PER_SECOND)
        elif name == "copy":
            text = f"copy: {show(value, BYTE_PER_SECOND)}, bytes read and bytes written"
            if entry:
                text += f", {value / entry.memory_bandwidth:.0%} of the data sheet's "
                text += show(entry.memory_bandwidth, BYTE_PER_SECOND)
        elif name.startswith("bandwidth-"):
            text = f"{name.removeprefix('bandwidth-')} only: {show(value, BYTE_PER_SECOND)}"
            text = text.replace("in-place only", "in place")
        else:
            text = f"{name.replace('overhead-waited', 'overhead, waited for')}: {show(value, SECOND)} a call"
        lines.append(text)
    if "copy" in found:
        for name in found:
            if name.startswith("matmul-"):
                ridge = formulas.ridge_point(peak_performance=found[name], memory_bandwidth=found["copy"])
                lines.append(f"ridge point, {name.removeprefix('matmul-')}: {show(ridge, FLOP_PER_BYTE)}")
    if not entry:
        lines.append("data sheet: the catalog has no entry for this device; its ceilings are the measured ones")
    return "\n".join(lines)


def text(record: Record) -> str:
    """Everything in plain text, the same for the same record: ceilings, table, reasons, regimes, summary."""
    head, rows, numeric = table(record)
    parts = [calibration_text(record), _columns(head[:-1], [r[:-1] for r in rows], numeric)]
    parts.append("\n".join(f"{r[0]}: {r[-1]}" for r in rows if r[-1] != AGREES))
    parts.append("Regime by three methods:\n" + regimes_text(record))
    parts.append(
        "The prediction uses the ceilings measured next before and next after each kernel. They come from other "
        "samples than the kernel's own."
    )
    parts.append(summary(record))
    return "\n\n".join(p for p in parts if p)


def regimes_text(record: Record, roles: tuple[str, ...] = ("kernel", "lesson")) -> str:
    """A table of the regime of each kernel by intensity, by size and by profiler."""
    rows = [
        [r.case, r.by_intensity, " or ".join(r.by_size) or "not swept", r.by_profile or "not profiled"]
        for r in points(record, roles)
    ]
    return _columns(["case", "by intensity", "by size", "by profiler"], rows)


def series(record: Record, name: str) -> list[Row]:
    """The rows of the cases that differ in one size only, from the least work to the most.

    Raises:
        EfflabError: the record has no series of that name; names the ones it has.
    """
    names = {str(s.point["case"]): str(s.point.get("series", "")) for _, s in _kernels(record)}
    known = dict.fromkeys(n for n in names.values() if n)
    if name not in known:
        raise unknown("series", name, known)
    return sorted((r for r in points(record) if names[r.case] == name), key=lambda r: (r.flops, r.bytes_moved))


def evidence(record: Record, case: str) -> str:
    """The regime of one case by three methods, each with the numbers that it rests on.

    Raises:
        EfflabError: the record has no such case, or it was not measured.
    """
    found = {r.case: r for r in points(record)}
    if case not in found:
        raise unknown("case", case, found)
    row = found[case]
    index, sample = next((i, s) for i, s in _kernels(record) if s.point["case"] == case)
    facts = _Facts(record, index, sample, row.ceilings, row.predicted, row.measured)
    work = row.flops / row.ceilings.peak
    traffic = row.bytes_moved / row.ceilings.bandwidth
    lines = [
        f"{case}",
        f"  by intensity: {row.by_intensity}. {show(row.arithmetic_intensity, FLOP_PER_BYTE)}, ridge point "
        f"{show(row.ceilings.ridge_point, FLOP_PER_BYTE)}; overhead {show(row.ceilings.overhead, SECOND)}, "
        f"traffic {show(traffic, SECOND)}, arithmetic {show(work, SECOND)}.",
    ]
    series = _series(record, sample)
    if row.by_size:
        at = series.index(sample)
        low, high = series[max(0, at - 1)], series[min(len(series) - 1, at + 1)]
        (w0, q0), (w1, q1) = counts(low.point), counts(high.point)
        grown = median(high.values) / median(low.values)
        lines.append(
            f"  by size: {' or '.join(row.by_size)}. From {low.point['case']} to {high.point['case']} the FLOP grow "
            f"{w1 / w0:.3g}-fold, the bytes {q1 / q0:.3g}-fold, the time {grown:.3g}-fold."
        )
    else:
        lines.append("  by size: not swept.")
    inside, wall = facts.value("operator_time"), facts.value("profiled_time")
    if row.by_profile and inside and wall:
        where = "operators" if record.environment.kind == "cpu" else "kernels on the device"
        lines.append(
            f"  by profiler: {row.by_profile}. {where[0].upper()}{where[1:]} fill {min(1, inside / wall):.0%} of the "
            f"time, at {row.flops / inside / row.ceilings.peak:.0%} of the peak and "
            f"{row.bytes_moved / inside / row.ceilings.bandwidth:.0%} of the bandwidth."
        )
    else:
        lines.append("  by profiler: not profiled.")
    return "\n".join(lines)


# What the lab prints

_NO_SIZE = ("case", "role", "kernel", "dtype", "peak_dtype", "inputs", "output", "series", "bytes_per_element", "index")


def cases(points: Iterable[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The points of the cases that a learner can predict, by name."""
    return {str(p["case"]): p for p in points if p.get("role") in ROLES}


def describe(cases: dict[str, dict[str, Any]], names: Sequence[str] = ()) -> str:
    """A table of kernel, dtype and sizes of the named cases; of all but the size sweeps if none is named."""
    rows = []
    for name in names or [n for n, p in cases.items() if p["role"] != "series"]:
        point = cases[name]
        sizes = ", ".join(f"{k} {v:,}" if type(v) is int else f"{k} {v}" for k, v in point.items() if k not in _NO_SIZE)
        rows.append([name, str(point["kernel"]), str(point["dtype"]), sizes])
    return _columns(["case", "kernel", "dtype", "sizes"], rows)


def calibration(record: Record) -> dict[str, float]:
    """The measured value of each of `CALIBRATION`, where there is one. The peak is of the dtype of "matmul-large"."""
    found = measured_ceilings(record)
    large = next((s.point for _, s in _kernels(record) if s.point["case"] == "matmul-large"), {})
    peak = f"matmul-{large.get('dtype')}"
    named = {"copy": "copy", "peak": peak, "overhead": "overhead"}
    return {name: found[key] for name, key in named.items() if key in found}


def sweep(record: Record, name: str) -> str:
    """A table of the cases of a series, from the least work to the most.

    Raises:
        EfflabError: as `series`.
    """
    head = ["case", "FLOP", "bytes", "limit", "predicted", "measured", "error"]
    table = [
        [r.case, show(r.flops, FLOP), show(r.bytes_moved, BYTE), r.by_intensity, show(r.predicted, SECOND),
         show(r.measured, SECOND), percent(r.error)] for r in series(record, name)
    ]  # fmt: skip
    return _columns(head, table, (1, 2, 4, 5, 6))


def compare(record: Record, slow: str, fast: str) -> str:
    """How much faster one case is than another, predicted and measured; or why there is nothing to compare.

    Raises:
        EfflabError: a case that is unknown.
    """
    rows = {r.case: r for r in points(record)}
    for name in (slow, fast):
        if name not in rows:
            gone = [m for m in missing(record) if m.startswith(f"{name} ")]
            if not gone and name == "relu-fresh" and record.environment.kind != "cpu":
                gone = ["relu-fresh is a case for CPUs: on a GPU torch's caching allocator hands the same block back."]
            if gone:
                return f"{gone[0]} So there is nothing to compare."
            raise unknown("compare: case", name, rows)
    a, b = rows[slow], rows[fast]
    lines = [f"{r.case}: predicted {show(r.predicted, SECOND)}, measured {show(r.measured, SECOND)}" for r in (a, b)]
    lines.append(f"faster by: predicted {a.predicted / b.predicted:.3g}×, measured {a.measured / b.measured:.3g}×")
    return "\n".join(lines)


# Predictions that were saved from a calculator


def asked(prediction: Prediction) -> dict[str, dict[str, Any]]:
    """The outputs of a calculator's prediction that are times of one kernel, each with the point that it is about.

    The point holds the kernel, the arguments of its formulas and the dtype; empty where the inputs do not give
    them all.
    """
    inputs: dict[str, Any] = dict(prediction.inputs)
    if "mask" in inputs:
        inputs["causal"] = inputs["mask"] == "causal"
    named = {"time": inputs.get("kernel"), "roofline_time": inputs.get("kernel"), "queued_time": inputs.get("kernel")}
    named |= {"unfused_chain_time": "unfused_chain", "fused_chain_time": "fused_chain"}
    if "kernel" not in inputs and "size" in inputs:  # a square product
        named["time"] = "matmul"
        inputs |= dict.fromkeys("mnk", inputs["size"])
    found: dict[str, dict[str, Any]] = {}
    for name, quantity in prediction.outputs.items():
        kernel = named.get(name)
        if quantity.unit != "s" or not isinstance(kernel, str) or kernel not in formulas.KERNELS:
            continue
        wanted = ("dtype", *(a for a in _arguments(kernel) if a != "bytes_per_element"))
        found[name] = {"kernel": kernel} | {a: inputs[a] for a in wanted} if all(a in inputs for a in wanted) else {}
    return found


def answers(record: Record, prediction: Prediction) -> dict[str, Row]:
    """The rows of a record that measured what a calculator's prediction is about, by the prediction's output.

    Kernel, dtype and every size must be equal. A prediction for an accelerator of the catalog is answered only by a
    record of that accelerator.

    Raises:
        EfflabError: as `points`.
    """
    accelerator = prediction.inputs.get("accelerator")
    entry = datasheet(record)
    if accelerator is not None and accelerator in catalog.accelerators() and (not entry or entry.name != accelerator):
        return {}
    rows = {r.case: r for r in points(record)}
    found = {}
    for name, point in asked(prediction).items():
        for _, sample in _kernels(record) if point else ():
            case = str(sample.point["case"])
            if case in rows and all(sample.point.get(k) == v for k, v in point.items()):
                found[name] = answered(rows[case], prediction.outputs[name].value)
                break
    return found


__all__ = [
    "BASE",
    "CALIBRATION",
    "LIMITS",
    "PICTURES",
    "Ceilings",
    "Row",
    "answers",
    "asked",
    "banner",
    "calibrates",
    "calibration",
    "calibration_text",
    "cases",
    "ceilings_of",
    "compare",
    "counts",
    "datasheet",
    "describe",
    "evidence",
    "limits",
    "measured_ceilings",
    "missing",
    "points",
    "predict",
    "regimes_text",
    "scatters",
    "series",
    "summary",
    "sweep",
    "table",
    "text",
]  # fmt: skip
