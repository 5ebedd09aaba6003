"""What the checks of a learner's own record share: whose it is, how it was timed, how steady, how plausible.

A topic's checker calls these in this order and adds the bounds of its own physics:

    record = own("roofline", answer)
    timed_well(record)
    at_scale(record)
    steady(record, kernels)
    plausible("matmul-2048", performance, peak, unit=FLOP_PER_SECOND, noise=1.3, than="the measured ceiling", why="...")
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from efflab import records
from efflab.errors import EfflabError
from efflab.exercises.checks import NotCounted, NotYet, short
from efflab.exercises.nearest import nearest
from efflab.measure.timer import WIDE
from efflab.reconcile import datasheet, doubted
from efflab.records import Record, Sample, iqr, median
from efflab.units import FLOP_PER_SECOND, Unit, show

FEWEST_REPEATS = 3
UNSTEADY = 0.25  # share of the kernels that may be wide or disturbed
DATA_SHEET_NOISE = 1.05  # how many times a data sheet's rate is believed
FP32_EQUAL = 1e-4  # relative difference of two gradients in FP32 that rounding explains
# A copy has the repeats of the run it was copied from, up to a factor. Repeats measured anew scatter on their own:
# of them about 8% agree this well by chance.
COPY_AGREES, COPY_SHARE, COPY_FEWEST = 0.1, 0.5, 20
# Where each sample has one value, such as the time of a whole training run: that many samples or more whose ratios to
# the other's agree this well. Of two runs they vary by the noise of the machine, a hundred times as much.
SINGLE_AGREES, SINGLE_FEWEST = 2e-4, 6


# What measures a record that no lab writes, by its topic.
MEASURED_BY = {"sprint": "record = sprint.measure(mends)"}


def command(topic: str) -> str:
    """How to measure a topic from a notebook's cell, also where the folder of `efflab` is not on PATH."""
    return MEASURED_BY.get(topic, f"!{{sys.executable}} -m efflab.cli run {topic}")


def own(topic: str, answer: Any) -> Record:
    """The learner's own finished record of a topic.

    Args:
        topic: such as "roofline".
        answer: a record, its id, its path, or None or "newest" for the newest finished one in the lab book.

    Raises:
        NotCounted: there is none, or it cannot be read.
        NotYet: it is partial, of another topic, or one that comes with the course.
    """
    record = _read(topic, answer)
    if record.topic != topic:
        raise NotYet(f"Record {record.id} is of {record.topic}, not of {topic}. Run '{command(topic)}'.")
    for shipped in records.recorded(topic):
        if record.id == shipped.id:
            raise NotYet(
                f"Record {record.id} is the recorded run that comes with the course. "
                f"Run '{command(topic)}' on your own device and check that record.",
                "not own",
            )
        if copied(record, shipped):
            raise NotYet(
                f"Record {record.id} holds the repeats of {shipped.id}, which comes with the course. "
                f"Run '{command(topic)}' on your own device and check that record.",
                "not own",
            )
    if record.finished is None:
        raise NotYet(
            f"Record {record.id} is partial: the run did not finish. Run '{command(topic)}' again to continue it."
        )
    return record


def _read(topic: str, answer: Any) -> Record:
    if isinstance(answer, Record):
        return answer
    try:
        if answer is None or answer == "newest":
            book = records.LabBook()
            _, kept, problems = book.readable()
            kept = [r for r in kept if r.topic == topic]
            if kept:
                return kept[-1]
            said = f" {problems[0]}" if problems else ""
            imported = "" if topic in MEASURED_BY else " (after 'import sys')"
            raise NotCounted(
                f"Your lab book, {book.path.resolve()}, has no record of {topic} yet.{said} Run '{command(topic)}' in "
                f"a cell of this notebook{imported}, then check again. A record that lies elsewhere can be checked by "
                "its path."
            )
        if isinstance(answer, str | os.PathLike):
            return _named(topic, answer)
    except EfflabError as error:
        raise NotCounted(str(error)) from None
    raise NotCounted(f"Give a record's id or path as text, or nothing for the newest; got {short(answer)}.")


def _named(topic: str, answer: str | os.PathLike[str]) -> Record:
    if os.path.exists(answer):
        return records.load_record(answer)
    known = {r.id: r for r in reversed(records.LabBook().readable()[1]) if r.topic == topic}
    if str(answer) in known:
        return known[str(answer)]
    if not known:
        raise EfflabError(
            f"{str(answer)!r} is neither a file nor a record in your lab book, which has none of {topic}."
        )
    raise nearest(f"record of {topic}", str(answer), known, "'efflab labbook' lists all of them.")


def copied(record: Record, other: Record) -> bool:
    """Whether one record's repeats are another's, each sample times a factor of its own or none.

    Repeat by repeat, the ratio of the two is constant within a sample of a copy. Of two runs it varies as the
    repeats do. Samples of one value are compared with each other in the same way.
    """
    theirs = {_key(s): s.values for s in other.samples if s.status == "ok"}
    compared = same = 0
    ratios = []
    for sample in record.samples:
        pairs = list(zip(sample.values, theirs.get(_key(sample), ()), strict=False))
        if sample.metric == "time" and len(pairs) == len(sample.values) == 1:
            ratios.append(pairs[0][0] / pairs[0][1])
        if sample.metric != "time" or len(pairs) < FEWEST_REPEATS:
            continue
        a, b = ([p[i] for p in pairs] for i in (0, 1))
        room = COPY_AGREES * iqr(b) / median(b)
        if room == 0:
            continue
        compared += len(pairs)
        same += sum(abs(x / median(a) - y / median(b)) <= room for x, y in pairs)
    alike = sum(abs(r / median(ratios) - 1) <= SINGLE_AGREES for r in ratios)
    if len(ratios) >= SINGLE_FEWEST and alike > COPY_SHARE * len(ratios):
        return True
    return compared >= COPY_FEWEST and same > COPY_SHARE * compared


def _key(sample: Sample) -> tuple[Any, ...]:
    return (sample.metric, *sorted((k, str(v)) for k, v in sample.point.items()))


def with_function(answer: Any, name: str, written: str) -> tuple[Any, Any]:
    """The record and the learner's function of an answer that may give both; None for a function that it leaves out.

    Args:
        answer: a record, or a dictionary with "record" and `name`.
        name: the function's entry, such as "fit".
        written: what the exercise calls it, for the message.

    Raises:
        NotCounted: a dictionary without a record, or with other entries.
    """
    if not isinstance(answer, dict):
        return answer, None
    if "record" not in answer or any(k not in ("record", name) for k in answer):
        raise NotCounted(f'Give {{"record": "newest", "{name}": {written}}}, or the record alone; got {short(answer)}.')
    return answer["record"], answer.get(name)


def measured(record: Record, metric: str, **point: Any) -> list[Sample]:
    """The samples of a metric that were measured, of points with these entries."""
    return [s for s in record.find(metric, **point) if s.status == "ok"]


def sample_of(record: Record, case: str, metric: str = "time") -> Sample:
    """The first measured sample of a case and metric.

    Raises:
        NotYet: there is none.
    """
    found = measured(record, metric, case=case)
    if not found:
        raise NotYet(
            f"Record {record.id} holds no {metric.replace('_', ' ')} of {case}. Run '{command(record.topic)}'.",
            "incomplete",
        )
    return found[0]


def middle(sample: Sample) -> float:
    """The median of a sample.

    Raises:
        NotYet: it is no positive number.
    """
    value = median(sample.values)
    if not 0 < value < math.inf:
        said = f"{short(value)} {sample.unit}".rstrip()
        raise NotYet(f"{sample.point.get('case')}: a {sample.metric.replace('_', ' ')} of {said}.", "damaged")
    return value


def middle_of(record: Record, case: str, metric: str = "time") -> float:
    """The median of the first measured sample of a case and metric.

    Raises:
        NotYet: there is none, or it is no positive number.
    """
    return middle(sample_of(record, case, metric))


def _entry(
    entries: Mapping[str, Any], name: str, where: str, fits: Callable[[Any], bool], expected: str, topic: str
) -> Any:
    """One of the entries, which must fit."""
    value = entries.get(name)
    if fits(value):
        return value
    problem = f"{name!r} is {short(value)}" if name in entries else f"it lacks {name!r}"
    raise NotYet(f"{where}: {problem}; {expected} is expected. Run '{command(topic)}'.", "damaged")


def _is_whole(least: int) -> Callable[[Any], bool]:
    return lambda v: isinstance(v, int) and not isinstance(v, bool) and least <= v < 10**9


def _named_case(sample: Sample) -> str:
    return str(sample.point.get("case", "a sample without a name"))


def text(sample: Sample, name: str, topic: str) -> str:
    """An entry of a sample's point that must be a text, such as its dtype.

    Raises:
        NotYet: it is missing, or no text; names the sample and the entry.
    """
    return _entry(sample.point, name, _named_case(sample), lambda v: isinstance(v, str) and v != "", "a text", topic)


def whole(sample: Sample, name: str, topic: str, least: int = 1) -> int:
    """An entry of a sample's point that must be a whole number.

    Raises:
        NotYet: it is missing, no whole number, below `least` or a thousand million and more.
    """
    return _entry(sample.point, name, _named_case(sample), _is_whole(least), f"a whole number from {least} on", topic)


def whole_of_spec(record: Record, name: str) -> int:
    """An entry of a record's spec that must be a whole number above zero.

    Raises:
        NotYet: it is not.
    """
    return _entry(record.spec, name, "spec", _is_whole(1), "a whole number from 1 on", record.topic)


def count(sample: Sample, name: str, topic: str) -> float:
    """An entry of a sample's point that counts something, such as operations.

    Raises:
        NotYet: it is missing, no number, below one or 1e30 and more.
    """
    return float(
        _entry(
            sample.point,
            name,
            _named_case(sample),
            lambda v: isinstance(v, int | float) and not isinstance(v, bool) and 1 <= v < 1e30,
            "a number from 1 on",
            topic,
        )
    )


def reconciled(read: Callable[..., Any], *arguments: Any) -> Any:
    """What a function of `efflab.reconcile` reads from a record, which must not be damaged.

    Raises:
        NotYet: it is; says where.
    """
    try:
        return read(*arguments)
    except EfflabError as error:
        raise NotYet(str(error), "damaged") from None


def timed_well(record: Record, fewest: int = FEWEST_REPEATS) -> None:
    """Every time in a record has a warm-up, repeats and, on a GPU, synchronisation.

    Args:
        record: the learner's.
        fewest: repeats that each sample needs.

    Raises:
        NotYet: names the first sample that lacks one, or says that the repeats were copied.
    """
    times = [s for s in record.samples if s.metric == "time" and s.status == "ok"]
    for sample in times:
        case, timing = sample.point.get("case", "a sample without a name"), sample.timing
        if timing is None:
            raise NotYet(
                f"{case}: the record does not say how it was timed. Measure with '{command(record.topic)}'.",
                "no timing",
            )
        if timing.warmup < 1:
            raise NotYet(
                f"{case}: no warm-up. The first calls pay for compilation, lazy initialisation and cold caches.",
                "no warm-up",
            )
        if len(sample.values) < fewest:
            raise NotYet(
                f"{case}: {len(sample.values)} repeats. From fewer than {fewest} no spread can be seen.", "no repeats"
            )
        if record.environment.kind != "cpu" and not ("events" in timing.clock or "synchronize" in timing.clock):
            raise NotYet(
                f"{case}: timed with {timing.clock} on a GPU, without synchronisation. That is the launch's time.",
                "no synchronisation",
            )
    if sum(len(set(s.values)) == 1 for s in times) > len(times) / 2:
        raise NotYet(
            "The repeats of most samples are equal to the last digit. Real repeats differ: were they copied?", "copied"
        )


def at_scale(record: Record) -> None:
    """The record was taken at a scale that says something about its device.

    Raises:
        NotYet: at smoke scale.
    """
    if record.scale == "smoke":
        raise NotYet(
            f"Record {record.id} is of smoke scale. Its sizes are for a test of the program and say nothing about a "
            f"device. Run '{command(record.topic)}' without '--scale smoke'.",
            "smoke scale",
        )


def steady(record: Record, samples: Iterable[Sample], what: str = "kernels") -> str:
    """Few of these samples are wide or disturbed. Returns a clause that says how many are.

    Wide is an interquartile range above 10% of the median, where the timer warns too. Disturbed is what the
    record's own warnings say.

    Args:
        record: the learner's.
        samples: those that must be steady.
        what: they are, for the message.

    Raises:
        NotYet: more than a quarter of them are; names the worst.
    """
    samples = list(samples)
    warned = doubted(record)
    spread = {str(s.point.get("case")): iqr(s.values) / median(s.values) for s in samples}
    shaky = {case for case, share in spread.items() if share > WIDE or case in warned}
    if len(shaky) > UNSTEADY * len(spread):
        worst = max(spread, key=spread.__getitem__)
        raise NotYet(
            f"The machine was disturbed: {len(shaky)} of {len(spread)} {what} have repeats that spread by more than "
            f"{WIDE:.0%} of their median or carry a warning in the record; at most a quarter may. The widest is "
            f"{worst}, by {spread[worst]:.0%}. Close other programs, plug in a laptop, and run "
            f"'{command(record.topic)}' again.",
            "disturbed",
        )
    return f"{len(shaky)} of {len(spread)} wide or disturbed" if shaky else "none wide or disturbed"


def plausible(
    case: str,
    value: float,
    limit: float,
    *,
    unit: Unit,
    noise: float,
    than: str,
    why: str,
    name: str = "efficiency above one",
) -> None:
    """A kernel does not beat a limit by more than the noise of the two measurements.

    Args:
        case: the kernel, for the message.
        value: what it reached, base units.
        limit: what it can reach, base units.
        unit: of both.
        noise: how many times the limit is still believed; a data sheet needs little room, a measured ceiling more.
        than: what the limit is, "the measured ceiling".
        why: what follows, and what to do.
        name: of the mistake.

    Raises:
        NotYet: it does.
    """
    if value > noise * limit:
        raise NotYet(
            f"{case}: {show(value, unit)} is {value / limit:.2f} times {than}, {show(limit, unit)}. {why}", name
        )


def within_datasheet(
    record: Record,
    case: str,
    performance: float,
    dtype: str,
    *,
    noise: float = DATA_SHEET_NOISE,
    why: str = "The time is too short to be true.",
) -> None:
    """A kernel does not beat its device's data sheet, where the catalog has one with this dtype.

    Args:
        record: the learner's.
        case: the kernel, for the message.
        performance: what it reached, FLOP/s.
        dtype: of its operations.
        noise, why: as in `plausible`.

    Raises:
        NotYet: it does.
    """
    device = datasheet(record)
    if device and dtype in device.peak_dense:
        plausible(
            case, performance, device.peak(dtype), unit=FLOP_PER_SECOND, noise=noise,
            than=f"what {device.name} can do in {dtype}", why=why, name="faster than the device",
        )  # fmt: skip
