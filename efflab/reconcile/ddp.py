"""Data-parallel training against a recorded run: messages, steps, efficiency, stragglers, samplers, memory, restarts.

- An all-reduce: latency and bandwidth, fitted to messages of other sizes between the same ranks.
- A step: forward pass, backward pass and update while every rank computes and none communicates, and the messages that
  were sent, by the fit. What the backward pass hides of them: nothing where communication finds no core of its own.
- Efficiency: one rank alone over that prediction. A straggler's step: the measured step and the delay.
- Orders of the sampler, the bytes of weights, gradients and optimizer, the steps that are done again after a restart:
  by counting. The gradient of all ranks against that of one process: the rounding of a sum in another order.
- The gradient's squared norm at one more batch size, from the noise that two others show.

What calibrates is not predicted: the fitted messages, a rank alone, all ranks without communication, and DDP's reducer
that sends nothing. Where prediction and measurement part, the explanation says what the record holds; a cause that it
does not hold stands behind "consistent with".
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from efflab.errors import EfflabError, unknown
from efflab.fits import MessageFit, fit_latency_bandwidth
from efflab.formulas import memory as bytes_of
from efflab.formulas import parallelism as formulas
from efflab.formulas.namespace import FormulaError
from efflab.reconcile import (
    LARGEST,
    NOTHING,
    Compared,
    agrees,
    answered,
    check_values,
    columns,
    damaged,
    datasheet,
    disturbed,
    doubted_cases,
    error,
    joined,
    median_of,
    no_result,
    of_topic,
    outputs_in,
    place,
    plural,
    positive,
    signed,
    table_of,
    unsigned,
    unsteady,
    values_of,
    with_energy,
)
from efflab.reconcile import banner as shared_banner
from efflab.reconcile import calibrates as calibrates
from efflab.records import Prediction, Record, Sample, iqr, median
from efflab.units import BYTE, BYTE_PER_SECOND, SECOND, UNITS, Unit, show, show_binary

TIMES = ("all-reduce", "step", "straggler")
ROLES = (*TIMES, "efficiency", "sampler", "gradient", "noise", "memory", "resume")
BESIDE = ("fit", "calibration", "noise-fit", "curve")  # what is measured and not predicted
METRIC = dict.fromkeys((*TIMES, "fit", "calibration"), ("time", "s")) | {
    "efficiency": ("efficiency", ""), "sampler": ("orders", ""), "gradient": ("difference", ""),
    "noise": ("norm_squared", ""), "noise-fit": ("norm_squared", ""), "memory": ("state_bytes", "B"),
    "resume": ("repeated", ""), "curve": ("loss", "nats"),
}  # fmt: skip
METHODS = ("ddp", "flat", "per-tensor")
SCALINGS = ("weak", "strong")

LIMITS: tuple[str, ...] = ("latency", "bandwidth")  # of an all-reduce: the larger part of its predicted time
CALIBRATION: dict[str, tuple[str, Unit]] = {
    "latency": ("latency", SECOND), "bandwidth": ("bandwidth", BYTE_PER_SECOND), "step": ("time", SECOND),
}  # fmt: skip
BASE: tuple[str, ...] = tuple(f"{case}-{ranks}" for case in ("alone", "together") for ranks in range(1, 1025))
PICTURES = ("ddp", "messages", "bandwidth", "efficiency", "restart", "errors")
DRAWN = (*TIMES, "efficiency")

PARTS = ("alone", "interference", "reducer", "communication")  # of a measured step
SHOWN = 0.02  # a part of a step below this share is not worth a sentence
OFF = 0.1  # a fitted message at which the line's error is larger than this is said to lie off it
ROUNDING = 4.0  # gradients that differ by up to so many times the rounding of another order of summation are equal


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row(Compared):
    """One case, predicted and measured; of a norm the mean of the draws. An all-reduce has a regime.

    Attributes:
        ranks: as in the sample.
    """

    ranks: int


@dataclasses.dataclass(frozen=True)
class Parts:
    """What the prediction of a step consists of, s.

    Attributes:
        computing: forward and backward passes and update while every rank computes and none communicates.
        messages: how many all-reduces there are.
        latency, transfer: of all of them.
        overlap: the share of communication that runs beside the backward pass, 0 to 1.
        exposed: communication that the backward pass does not hide.
        total: the step.
    """

    computing: float
    messages: float
    latency: float
    transfer: float
    overlap: float
    exposed: float
    total: float


@dataclasses.dataclass(frozen=True)
class Run:
    """A training run of all ranks with checkpoints.

    Attributes:
        case: "curve" without a stop, "resumed" with one.
        losses: of each step, nats.
        checkpoint_time: s of one checkpoint, the median; None where it was not measured.
        resumed_at: steps that were done when it went on; empty where nothing stopped it.
    """

    case: str
    losses: list[float]
    checkpoint_time: float | None
    resumed_at: list[float]


# Reading a record: a point is the topic's own, so what is read from it is checked here

_NUMBERS = {
    "fit": ("message_bytes",), "all-reduce": ("message_bytes",), "calibration": ("microbatch",),
    "step": ("gradient_bytes", "microbatch", "microbatches"), "sampler": ("samples", "epochs"),
    "noise": ("batch",), "noise-fit": ("batch",), "memory": ("parameters",),
}  # fmt: skip
_WORDS: dict[str, dict[str, tuple[Any, ...]]] = {
    "step": {"method": METHODS}, "efficiency": {"scaling": SCALINGS}, "memory": {"zero_stage": (0, 1, 2, 3)},
}  # fmt: skip
_RANKED = (*TIMES, "fit", "calibration", "efficiency", "sampler", "gradient", "memory")
# The units of what explains a case, and whether zero is a value.
_DETAILS = {
    "forward_time": ("s", False), "backward_time": ("s", False), "update_time": ("s", True), "buckets": ("", False),
    "delay": ("s", False), "repeated": ("", True), "rounding": ("", True), "difference": ("", True),
    "peak_bytes": ("B", False), "checkpoint_time": ("s", False), "resumed_at": ("", True), "restart_time": ("s", True),
    "loss": ("nats", False),
}  # fmt: skip


def _check(record: Record) -> None:
    """Raise `EfflabError`, naming record, sample and field, for a point or a value that cannot be reconciled."""
    of_topic(record, "ddp")
    for index, sample in enumerate(record.samples):
        point, role = sample.point, sample.point.get("role")
        if role not in (*ROLES, *BESIDE):
            continue
        role = str(role)
        if not isinstance(point.get("case"), str) or not point["case"]:
            raise damaged(record, index, "case", "a text")
        ranks: Any = point.get("ranks")
        if (role in _RANKED or "ranks" in point) and not (positive(ranks, LARGEST) and ranks == int(ranks)):
            raise damaged(record, index, "ranks", "a whole number of at least one")
        for field, words in _WORDS.get(role, {}).items():
            if point.get(field) not in words or isinstance(point[field], bool):
                raise damaged(record, index, field, f"one of {', '.join(map(str, words))}")
        if role == "sampler" and not isinstance(point.get("set_epoch"), bool):
            raise damaged(record, index, "set_epoch", "true or false")
        optional = (f for f in ("buckets", "delay", "killed_at", "checkpoint_steps") if f in point)
        for field in (*_NUMBERS.get(role, ()), *optional):
            if not positive(point.get(field), LARGEST):
                raise damaged(record, index, field, "a number greater than zero")
        _check_values(sample, place(record, index))


def _check_values(sample: Sample, where: str) -> None:
    """Raise `EfflabError` for a unit or a value that a metric cannot have."""
    role = str(sample.point["role"])
    name, unit = METRIC[role]
    if sample.metric == name and role not in ("gradient", "resume"):
        allowed, zero = unit, False
    elif sample.metric in _DETAILS:
        allowed, zero = _DETAILS[sample.metric]
        if role == "resume" and sample.metric == "difference":
            allowed = "nats"
    else:
        return
    if sample.unit != allowed:
        raise EfflabError(f"{where}: its {sample.metric} is in {sample.unit!r}. Measure it again.")
    check_values(sample, where, zero)


def _samples(record: Record) -> list[Sample]:
    """The samples that are a predicted case's result."""
    _check(record)
    return [s for s in record.samples if s.point.get("role") in ROLES and s.metric == METRIC[s.point["role"]][0]]


def _entry(record: Record, point: Mapping[str, Any], name: str) -> float:
    """What a point states, or what was counted there.

    Raises:
        EfflabError: neither is there.
    """
    if name in point:
        return float(point[name])
    found = median_of(record, point, name)
    if found is None:
        raise EfflabError(f"record {record.id}: {point['case']} has no {name}. Measure it again.")
    return found


def _case(record: Record, case: str, metric: str | None = None) -> Sample | None:
    """The sample of a case's result, or of another metric; None where the record has none."""
    return next(
        (s for s in record.samples if s.point.get("case") == case
         and s.metric == (metric or METRIC.get(str(s.point.get("role")), ("",))[0])),
        None,
    )  # fmt: skip


def _calibrating(record: Record, case: str, metric: str = "time") -> float | None:
    """The median of what calibrates; None where it could not be measured.

    Raises:
        EfflabError: the record has no such sample.
    """
    sample = _case(record, case, metric)
    if sample is None and ((main := _case(record, case)) is None or main.status == "ok"):
        raise EfflabError(f"record {record.id}: it has no {metric} of {case}. Measure it again.")
    return median(sample.values) if sample and sample.status == "ok" else None


def _optional(record: Record, case: str, metric: str = "time") -> float | None:
    """The median of a case; None where the record has none."""
    sample = _case(record, case, metric)
    return median(sample.values) if sample and sample.status == "ok" else None


def counts(record: Record) -> list[int]:
    """The numbers of ranks between which something was measured, in rising order.

    Raises:
        EfflabError: the record is of another topic, or a sample is damaged.
    """
    _check(record)
    return _counts(record)


def _counts(record: Record) -> list[int]:
    return sorted(
        {int(s.point["ranks"]) for s in record.samples if s.point.get("role") in _RANKED and s.status == "ok"}
    )


# Calibration


def fitted(record: Record, ranks: int) -> list[tuple[float, float]]:
    """The bytes and the median time of each message that the fit of so many ranks rests on, from the smallest.

    Raises:
        EfflabError: the record is of another topic, or a sample is damaged.
    """
    _check(record)
    return _fitted(record, ranks)


def _fitted(record: Record, ranks: int) -> list[tuple[float, float]]:
    return sorted(
        (float(s.point["message_bytes"]), median(s.values))
        for s in record.samples
        if s.point.get("role") == "fit" and s.point["ranks"] == ranks and s.metric == "time" and s.status == "ok"
    )


def line(record: Record, ranks: int) -> MessageFit | None:
    """Latency and bandwidth of an all-reduce between so many ranks; None where no line could be fitted.

    Raises:
        EfflabError: the record has no message between so many ranks.
    """
    _check(record)
    return _line(record, ranks)


def _line(record: Record, ranks: int) -> MessageFit | None:
    if not any(s.point.get("role") == "fit" and s.point["ranks"] == ranks for s in record.samples):
        raise EfflabError(f"record {record.id}: it has no fitted all-reduce of {ranks} ranks. Measure it again.")
    found = _fit(record, ranks)
    return None if isinstance(found, str) else found


def _fit(record: Record, ranks: int) -> MessageFit | str:
    """The fit, or why there is none."""
    return _fit_to(tuple(_fitted(record, ranks)))


@functools.lru_cache(maxsize=128)
def _fit_to(messages: tuple[tuple[float, float], ...]) -> MessageFit | str:
    try:
        return fit_latency_bandwidth([s for s, _ in messages], [t for _, t in messages])
    except EfflabError as problem:
        return str(problem)


def ring(record: Record, ranks: int) -> tuple[float, float] | None:
    """Latency of one step of a ring, s, and bandwidth of one direction per rank, B/s, as the fit has them.

    A ring of n ranks takes 2(n − 1) steps, and each rank sends 2(n − 1)/n of the message. None where no line could be
    fitted.

    Raises:
        EfflabError: as `line`.
    """
    _check(record)
    return _ring(record, ranks)


def _ring(record: Record, ranks: int) -> tuple[float, float] | None:
    found = _line(record, ranks) if ranks > 1 else None
    if found is None:
        return None
    sent = float(formulas.all_reduce_traffic(message_bytes=1.0, ranks=ranks))
    return found.latency / (2 * (ranks - 1)), sent * found.bandwidth


def calibration(record: Record) -> dict[str, float]:
    """The measured value of each of `CALIBRATION`, where there is one; of the largest number of ranks."""
    _check(record)
    found: dict[str, float] = {}
    measured = _counts(record)
    with_messages = [n for n in measured if _fitted(record, n)]
    if with_messages and (both := _ring(record, with_messages[-1])):
        found |= {"latency": both[0], "bandwidth": both[1]}
        if not both[0]:
            del found["latency"]  # nothing that a prediction could be compared with
    step = next((s for n in reversed(measured) if (s := _optional(record, f"alone-{n}"))), None)
    return found | ({"step": step} if step else {})


def spare_cores(record: Record, ranks: int) -> float:
    """Cores of a node on which no rank computes while so many ranks do.

    Raises:
        EfflabError: the record does not say how its ranks were placed.
    """
    placed: dict[str, float] = {}
    for name, least in (("spare_cores", 0), ("ranks_per_node", 1), ("threads_per_rank", 1)):
        value = record.spec.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= LARGEST:
            raise EfflabError(
                f"record {record.id}: spec.{name} must be a number of at least {least}, got {value!r}. Measure it "
                "again."
            )
        placed[name] = value
    bound = record.spec.get("cores_per_rank")
    if isinstance(bound, int) and placed["threads_per_rank"] <= bound <= LARGEST:  # other ranks' cores are not for it
        return (bound - placed["threads_per_rank"]) * min(ranks, placed["ranks_per_node"])
    idle = max(0.0, placed["ranks_per_node"] - ranks) * placed["threads_per_rank"]
    return min(placed["spare_cores"] + idle, float(record.environment.cores or LARGEST))


def overlap(record: Record, point: Mapping[str, Any]) -> float:
    """The share of a step's communication that runs beside the backward pass.

    Gradients that are reduced after it have none. On a GPU communication has streams of its own. On a CPU each rank's
    communication is a thread, which needs a core on which nothing is computed.
    """
    if point["method"] != "ddp":
        return 0.0
    if record.environment.kind != "cpu":
        return 1.0
    ranks = int(point["ranks"])
    here = min(ranks, int(record.spec.get("ranks_per_node") or ranks))
    return min(1.0, spare_cores(record, ranks) / here)


def banner(record: Record) -> str:
    """Where and when it was recorded, between how many ranks, and that it was not measured here."""
    e = record.environment
    said = shared_banner(record)
    ranks = _ranks(e.ranks) if e.ranks else ""
    nodes = record.spec.get("nodes")
    where = f" on {nodes} nodes" if isinstance(nodes, int) and nodes > 1 else ""
    link = f" over {e.interconnect}" if e.interconnect else ""
    return f"{said} {ranks}{where}, {e.backend}{link}." if ranks else said


def _ranks(count: int) -> str:
    return f"{count} rank{'' if count == 1 else 's'}"


def calibration_text(record: Record) -> str:
    """The fit with its residuals, and the steps without communication. It gives away no predicted case."""
    _check(record)
    lines: list[str] = []
    for ranks in (n for n in _counts(record) if _fitted(record, n)):
        lines += _fit_text(record, ranks)
    lines += _step_table(record)
    if said := _model_text(record):
        lines.append(said)
    lines += _warned(record, [c for c in doubted_cases(record) if _role(record, c) in BESIDE])
    return "\n".join(lines) or "Neither messages nor steps were measured."


def _fit_text(record: Record, ranks: int) -> Iterator[str]:
    """The fit in words, and a table of the messages that it rests on."""
    found = _fit(record, ranks)
    messages = _fitted(record, ranks)
    if isinstance(found, str):
        yield f"All-reduce of {ranks} ranks: no line fits. {found}"
        return
    both = _ring(record, ranks)
    assert both is not None
    steps = 2 * (ranks - 1)
    yield (
        f"All-reduce of {ranks} ranks, fitted to {len(messages)} messages: {show(found.latency, SECOND)} + bytes ÷ "
        f"{show(found.bandwidth, BYTE_PER_SECOND)}."
    )
    yield (
        f"As a ring: {steps} steps of {show(both[0], SECOND)}, and {show(both[1], BYTE_PER_SECOND)} in one direction. "
        f"Latency and transfer are equal at {_half(both, ranks)}."
    )
    (low, high), (slow, fast) = found.latency_range, found.bandwidth_range
    entry = datasheet(record)
    between = record.environment.interconnect
    linked = between is None or between.startswith("NV")  # else the messages take another way than the entry's link
    if linked and entry and entry.link and entry.link_bandwidth and record.spec.get("nodes") == 1:
        yield (
            f"By the data sheet one direction of {entry.link.name} has {show(entry.link_bandwidth, BYTE_PER_SECOND)}; "
            f"the fit reaches {both[1] / entry.link_bandwidth:.0%} of it."
        )
    yield (
        f"Without one of the messages, whichever: {show(low, SECOND)} to {show(high, SECOND)}, and "
        f"{show(slow, BYTE_PER_SECOND)} to {show(fast, BYTE_PER_SECOND)}. {_line_errors(found, messages)}"
    )
    body = [
        [_size(size), show(seconds, SECOND), show(found.time(size), SECOND), signed(error(found.time(size), seconds)),
         *(show(b, BYTE_PER_SECOND) for b in bandwidths(size, seconds, ranks))]
        for size, seconds in messages
    ]  # fmt: skip
    yield columns(
        ["message", "measured", "by the line", "error", "algorithm bandwidth", "bus bandwidth"], body, range(6)
    )


def _half(both: tuple[float, float], ranks: int) -> str:
    latency, bandwidth = both
    if not latency >= 1e-12:
        return "no size: there is no latency"
    return _size(float(formulas.half_bandwidth_message(ranks=ranks, bandwidth=bandwidth, latency=latency)))


def _line_errors(found: MessageFit, messages: Sequence[tuple[float, float]]) -> str:
    errors = [error(found.time(size), seconds) for size, seconds in messages]
    worst = max(range(len(messages)), key=lambda i: abs(errors[i]))
    return (
        f"Error of the line: {unsigned(median([abs(e) for e in errors]))} (median), "
        f"{signed(errors[worst])} at worst ({_size(messages[worst][0])})."
    )


def _size(message_bytes: float) -> str:
    """A message's size as the cases name it, in KiB, MiB or GiB; below 1 KiB in B."""
    return show_binary(message_bytes) if message_bytes >= 1024 else show(message_bytes, BYTE)


def bandwidths(message_bytes: float, seconds: float, ranks: int) -> tuple[float, float]:
    """Algorithm bandwidth and bus bandwidth of an all-reduce, B/s."""
    return (
        float(formulas.algorithm_bandwidth(message_bytes=message_bytes, time=seconds)),
        float(
            formulas.bus_bandwidth(message_bytes=message_bytes, time=seconds, ranks=ranks, collective="all-reduce")
        ),
    )  # fmt: skip


_COMPUTING = ("alone", "together", "alone-part", "together-part", "reducer")


def _step_table(record: Record) -> Iterator[str]:
    """The steps without communication: forward pass, backward pass, update."""
    body = []
    for ranks, name in itertools.product(_counts(record), _COMPUTING):
        sample = _case(record, f"{name}-{ranks}", "time")
        if sample is None or sample.status != "ok":
            continue
        parts = [median_of(record, sample.point, m) for m in ("forward_time", "backward_time", "update_time")]
        body.append(
            [f"{name}-{ranks}", f"{sample.point['microbatch']:,}", show(median(sample.values), SECOND),
             *("" if p is None else show(p, SECOND) for p in parts)]
        )  # fmt: skip
    if body:
        yield (
            "Steps in which nobody communicates (alone: one rank, while the others wait; together: all at once; part: "
            "the batch divided by the ranks; reducer: DDP without its messages):"
        )
        yield columns(["case", "sequences per rank", "step", "forward", "backward", "update"], body, range(1, 6))


def _model_text(record: Record) -> str:
    """What is reduced, in which buckets, and what hides it."""
    model = record.spec.get("model")
    if not isinstance(model, dict) or not all(positive(model.get(n)) for n in ("gradient_bytes", "tensors")):
        return ""
    said = f"Gradients: {show(float(model['gradient_bytes']), BYTE)} in {model['tensors']:,} tensors."
    first, bucket = record.spec.get("first_bucket_bytes"), record.spec.get("bucket_bytes")
    if positive(first) and positive(bucket):
        said += f" DDP's first bucket holds {_size(float(first))}, each other {_size(float(bucket))}."  # type: ignore[arg-type]
    ranks = max(_counts(record), default=1)
    if ranks == 1:
        return said
    if record.environment.kind != "cpu":
        return f"{said} On a GPU communication has streams of its own: the backward pass can hide it."
    if idle := spare_cores(record, ranks):
        spare = "1 core of a node is" if idle == 1 else f"{idle:g} cores of a node are"
        return f"{said} While {ranks} ranks compute, {spare} spare: communication can run beside the backward pass."
    return (
        f"{said} While {ranks} ranks compute, no core is spare: the formula takes an overlap of 0, as if the backward "
        "pass hid no communication."
    )


def _role(record: Record, case: str) -> str:
    return next(str(s.point.get("role")) for s in record.samples if s.point.get("case") == case)


def _polls(record: Record, ranks: int) -> bool:
    """gloo's threads, which poll, and so many ranks take turns on the cores: the record says that none is spare."""
    said = record.environment.kind == "cpu" and "spare_cores" in record.spec
    return said and spare_cores(record, ranks) == 0


def scatters(record: Record, case: str) -> bool:
    """A message's time where gloo's threads and the ranks share cores: it takes one time or ten."""
    point = _point(record, case)
    return point.get("role") in ("fit", "all-reduce") and _polls(record, int(point["ranks"]))


def _warned(record: Record, named: list[str]) -> list[str]:
    """Of cases that the record warns of, which were disturbed and which scatter by nature."""
    scattered = [c for c in named if scatters(record, c)]
    kinds = (
        ("Disturbed while measured, as the record warns", [c for c in named if c not in scattered]),
        ("Times that scatter, as those of messages do where no core is spare", scattered),
    )
    return [f"{said}: {', '.join(cases)}." for said, cases in kinds if cases]


# Prediction


def expected_message(record: Record, point: Mapping[str, Any]) -> float | None:
    """Seconds of an all-reduce by the fit; None where no line could be fitted."""
    return _reduced(record, int(point["ranks"]), 1.0, float(point["message_bytes"]))


def _reduced(record: Record, ranks: int, messages: float, message_bytes: float) -> float | None:
    """Seconds of so many all-reduces of so many bytes each; none for one rank alone."""
    if ranks == 1:
        return 0.0
    both = _ring(record, ranks)
    if both is None:
        return None
    latency, bandwidth = both
    one = formulas.ring_all_reduce_time(
        message_bytes=message_bytes, ranks=ranks, bandwidth=bandwidth, latency=latency
    )  # fmt: skip
    return messages * float(one)


def _beside(record: Record, point: Mapping[str, Any], word: str) -> str:
    """The case "alone" or "together" with as many sequences per rank as this point.

    Raises:
        EfflabError: the record has none.
    """
    ranks, batch = point["ranks"], point["microbatch"]
    names = [f"{word}-{ranks}", f"{word}-part-{ranks}"]
    for name in names:
        sample = _case(record, name, "time")
        if sample is not None and sample.point.get("microbatch") == batch:
            return name
    if ranks == 1 and word == "together":
        return _beside(record, point, "alone")
    raise EfflabError(
        f"record {record.id}: it has no time of {' or '.join(names)} with {batch} sequences per rank, as "
        f"{point['case']} needs. Measure it again."
    )


def _computed(record: Record, point: Mapping[str, Any], word: str) -> tuple[float, float, float] | None:
    """Seconds of forward pass, backward pass and update, "alone" or "together"; None where they failed.

    Medians of the parts need not add up to the median of the step: they are scaled so that they do.
    """
    case = _beside(record, point, word)
    whole = _calibrating(record, case)
    found = [_calibrating(record, case, m) for m in ("forward_time", "backward_time", "update_time")]
    forward, backward, update = found
    if whole is None or forward is None or backward is None or update is None:
        return None
    scale = whole / (forward + backward + update)
    return scale * forward, scale * backward, scale * update


def expected_step(record: Record, point: Mapping[str, Any]) -> Parts | None:
    """What a step is predicted to take, part by part; None where its calibration could not be measured.

    Raises:
        EfflabError: the calibration is missing.
    """
    times, ranks = _computed(record, point, "together"), int(point["ranks"])
    messages = _entry(record, point, "buckets")
    gradient = float(point["gradient_bytes"])
    communication = _reduced(record, ranks, messages, gradient / messages)
    if times is None or communication is None:
        return None
    forward, backward, update = times
    beside = overlap(record, point)
    inputs: dict[str, float] = {"communication_time": communication, "backward_time": backward, "buckets": messages}
    total = formulas.data_parallel_step_time(
        forward_time=forward, update_time=update, overlap=beside, microbatches=float(point["microbatches"]), **inputs
    )  # fmt: skip
    exposed = float(formulas.exposed_communication_time(overlap=beside, **inputs))
    both = _ring(record, ranks)
    latency = messages * 2 * (ranks - 1) * both[0] if both else 0.0
    return Parts(
        computing=float(total) - exposed, messages=messages, latency=latency, transfer=communication - latency,
        overlap=beside, exposed=exposed, total=float(total),
    )  # fmt: skip


def reducer_time(record: Record, ranks: int) -> float | None:
    """Seconds that DDP's reducer adds to a step when it sends nothing; None where it was not measured."""
    sample, together = _case(record, f"reducer-{ranks}", "time"), _optional(record, f"together-{ranks}")
    if together is None and ranks == 1:
        together = _optional(record, f"alone-{ranks}")
    if sample is None or sample.status != "ok" or together is None:
        return None
    return median(sample.values) - together


def measured_parts(record: Record, case: str) -> dict[str, float] | None:
    """The parts of a measured step, s: `PARTS`, which add up to it; None where its calibration failed.

    "alone" is what one rank takes while the others wait, "interference" what all ranks computing at once add,
    "reducer" what DDP adds that sends nothing (0 for other methods), "communication" the rest: messages that nothing
    hides, and whatever else there is. Each but the first may be negative within the noise.

    Raises:
        EfflabError: no such step, or its calibration is missing.
    """
    sample = _case(record, case, "time")
    if sample is None or sample.point.get("role") != "step" or sample.status != "ok":
        known = [r.case for r in points(record, ("step",))]
        raise unknown("case", case, known)
    point, microbatches = sample.point, float(sample.point["microbatches"])
    sums = []
    for word in ("alone", "together"):
        times = _computed(record, point, word)
        if times is None:
            return None
        sums.append(microbatches * (times[0] + times[1]) + times[2])
    alone, together = sums
    reducer = (reducer_time(record, int(point["ranks"])) or 0.0) if point["method"] == "ddp" else 0.0
    whole = median(sample.values)
    return dict(zip(PARTS, (alone, together - alone, reducer, whole - together - reducer), strict=True))


def noise(record: Record) -> tuple[float, float] | None:
    """The gradient's squared norm without noise and the simple noise scale, in sequences; None where noise hides it.

    Raises:
        EfflabError: the record has not the squared norms of two batch sizes.
    """
    _check(record)
    return _noise(record)


def _noise(record: Record) -> tuple[float, float] | None:
    one, other = _noise_fits(record)
    if one.status != "ok" or other.status != "ok":
        return None
    small, large = float(one.point["batch"]), float(other.point["batch"])
    first, second = _mean(one.values), _mean(other.values)
    try:
        scale = float(
            formulas.gradient_noise_scale(
                small_batch=small, batch_ratio=large / small, small_norm_squared=first, large_norm_squared=second
            )
        )
    except (FormulaError, ZeroDivisionError):
        return None
    return (first / (1 + scale / small), scale) if 0 < scale < math.inf else None


def _noise_fits(record: Record) -> tuple[Sample, Sample]:
    """The squared norms of the smallest and the largest batch that the noise is fitted to."""
    found = sorted(record.find("norm_squared", role="noise-fit"), key=lambda s: float(s.point["batch"]))
    if len({s.point["batch"] for s in found}) < 2:
        raise EfflabError(f"record {record.id}: it has no squared norms of two batch sizes. Measure it again.")
    return found[0], found[-1]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def _expected(record: Record, point: Mapping[str, Any]) -> float | None:
    """What a case measures by the formulas; None where a part of the calibration could not be measured."""
    role = point["role"]
    if role == "all-reduce":
        return expected_message(record, point)
    if role == "step":
        parts = expected_step(record, point)
        return parts.total if parts else None
    if role == "straggler":
        step = _calibrating(record, f"ddp-{point['ranks']}")
        if step is None:
            return None
        return float(formulas.straggler_step_time(step_time=step, delay=_entry(record, point, "delay")))
    if role == "efficiency":
        return _expected_efficiency(record, point)
    if role == "sampler":
        return 1.0 if _unset(point) else float(point["epochs"])
    if role == "gradient":
        return _entry(record, point, "rounding")
    if role == "noise":
        found = _noise(record)
        return found and found[0] * (1 + found[1] / float(point["batch"]))
    if role == "memory":
        return float(
            bytes_of.training_state_bytes(
                parameters=point["parameters"], ranks=point["ranks"], zero_stage=point["zero_stage"], convention="fp32"
            )
        )
    return float(
        formulas.steps_repeated(
            failed_step=_entry(record, point, "killed_at"), checkpoint_steps=_entry(record, point, "checkpoint_steps")
        )
    )


def _expected_efficiency(record: Record, point: Mapping[str, Any]) -> float | None:
    """Efficiency from a rank alone and the predicted step of all."""
    ranks, scaling = int(point["ranks"]), str(point["scaling"])
    step = _stepped(record, point)
    alone = _calibrating(record, f"alone-{ranks}")
    parts = expected_step(record, step.point)
    if alone is None or parts is None:
        return None
    return float(formulas.scaling_efficiency(time_one=alone, time_many=parts.total, ranks=ranks, scaling=scaling))


def _stepped(record: Record, point: Mapping[str, Any]) -> Sample:
    """The step that an efficiency is about.

    Raises:
        EfflabError: the record has none.
    """
    case = f"{'strong' if point['scaling'] == 'strong' else 'ddp'}-{point['ranks']}"
    sample = _case(record, case, "time")
    if sample is None:
        raise EfflabError(f"record {record.id}: it has no time of {case}, as {point['case']} needs. Measure it again.")
    return sample


def _unset(point: Mapping[str, Any]) -> bool:
    """A sampler without set_epoch."""
    return not point["set_epoch"]


# Reconciliation


def points(record: Record, roles: tuple[str, ...] = ROLES) -> list[Row]:
    """Every measured case of a record with its prediction, in the order measured; what calibrates has no row.

    Samples that ran out of memory or failed have no row, nor have cases whose calibration did (`missing` names them),
    nor where zero was measured or predicted: a gradient without any difference, a restart that repeats no step.

    Raises:
        EfflabError: the record is of another topic, a sample is damaged, or the calibration of a case is missing.
    """
    samples = [s for s in _samples(record) if s.status == "ok" and s.point["role"] in roles]
    return [row for s in samples if (row := _row(record, s))]


def _row(record: Record, sample: Sample) -> Row | None:
    """The row of a sample; None where what calibrates it could not be measured, or where there is no ratio."""
    point, role = sample.point, str(sample.point["role"])
    measured = _mean(sample.values) if role == "noise" else median(sample.values)
    try:
        predicted = _expected(record, point)
        if predicted is None or not (predicted > 0 and measured > 0):
            return None
        explanation = _WHY[role](record, sample, predicted, measured)
        regime = _limit(record, point) if role == "all-reduce" else ""
    except FormulaError as problem:
        raise EfflabError(f"record {record.id}: {point['case']}: {problem} Measure it again.") from None
    return Row(
        case=str(point["case"]), role=role, metric=sample.metric, ranks=int(point.get("ranks") or _all_ranks(record)),
        unit=UNITS[sample.unit], predicted=predicted, measured=measured, iqr=iqr(sample.values),
        ratio=measured / predicted, error=error(predicted, measured), regime=regime, explanation=explanation,
    )  # fmt: skip


def _all_ranks(record: Record) -> int:
    return record.environment.ranks or 1


def _limit(record: Record, point: Mapping[str, Any]) -> str:
    found = _line(record, int(point["ranks"]))
    assert found is not None
    return "latency" if found.latency > float(point["message_bytes"]) / found.bandwidth else "bandwidth"


def _why_message(record: Record, sample: Sample, predicted: float, seconds: float) -> str:
    point, ranks = sample.point, int(sample.point["ranks"])
    found = _line(record, ranks)
    assert found is not None
    limit = _limit(record, point)
    part = found.latency if limit == "latency" else float(point["message_bytes"]) / found.bandwidth
    texts = [agrees(seconds / predicted)]
    if not texts[0]:
        texts += _neighbours(record, point, found, error(predicted, seconds))
        if found.latency < 0.75 * predicted:  # else its transfer says little
            texts += _cached(record, point, seconds / predicted)
    share = part / found.time(float(point["message_bytes"]))
    said = f"By the fit {'latency' if limit == 'latency' else 'transfer'} is {_share(share)} of it."
    scattered = unsteady(sample.values, seconds)
    if scattered and _polls(record, ranks):
        scattered += " Consistent with gloo's threads, which poll, and the ranks taking turns on the cores."
    return f"{joined(texts)} {said} {scattered}".rstrip()


def _share(value: float) -> str:
    return "over 99.9%" if 0.999 < value < 1 else f"{value:.3g}" if value > 1 else f"{100 * value:.3g}%"


def _neighbours(record: Record, point: Mapping[str, Any], found: MessageFit, off: float) -> Iterator[str]:
    """That the line's error at the fitted messages next to this one has the sign of its own, `off`."""
    size = float(point["message_bytes"])
    messages = [(s, error(found.time(s), t)) for s, t in _fitted(record, int(point["ranks"]))]
    below = [m for m in messages if m[0] < size][-1:]
    above = [m for m in messages if m[0] > size][:1]
    near = [(s, e) for s, e in (*below, *above) if e * off > 0 and abs(e) > OFF]
    if near:
        words = " and ".join(f"{_size(s)} ({signed(e)})" for s, e in near)
        yield f"At the fitted messages beside it the line errs in the same direction: {words}. One line does not hold."


def _cached(record: Record, point: Mapping[str, Any], ratio: float) -> Iterator[str]:
    """That a message that is faster than the line fits into the last cache with those of the other ranks."""
    caches = record.environment.caches
    if record.environment.kind != "cpu" or not caches or ratio > 1:
        return
    name, cache = max(caches.items(), key=lambda item: item[1])
    ranks = min(int(point["ranks"]), int(record.spec.get("ranks_per_node") or point["ranks"]))
    held = ranks * float(point["message_bytes"])
    if held <= cache:
        yield (
            f"The messages of {ranks} ranks, {show(held, BYTE)}, fit into {name} of {show(float(cache), BYTE)}. "
            "Consistent with copies that do not go through memory."
        )


def _rests_on(record: Record, point: Mapping[str, Any]) -> list[str]:
    """The cases that a predicted step is built from, without messages whose times scatter in any case."""
    ranks = int(point["ranks"])
    messages = [
        str(s.point["case"]) for s in record.samples
        if s.point.get("role") == "fit" and s.point["ranks"] == ranks and not _polls(record, ranks)
    ]  # fmt: skip
    return [_beside(record, point, "together"), *messages]


def _why_step(record: Record, sample: Sample, predicted: float, seconds: float) -> str:
    point = sample.point
    texts = [agrees(seconds / predicted)]
    if not texts[0]:
        texts += disturbed(record, sample.point["case"], _rests_on(record, point))
    texts += _left_over(record, sample, predicted, seconds)
    texts.append(unsteady(sample.values, seconds))
    return joined(texts)


def _left_over(record: Record, sample: Sample, predicted: float, seconds: float) -> Iterator[str]:
    """Which parts of a step the formula leaves out, and what remains."""
    point, parts = sample.point, expected_step(record, sample.point)
    held = measured_parts(record, str(point["case"]))
    assert parts is not None
    if held is None:
        return
    reducer = held["reducer"]
    if reducer > SHOWN * seconds:
        yield (
            f"DDP's reducer, which fills the buckets and empties them, takes {show(reducer, SECOND)}; the formula "
            "leaves it out."
        )
    rest = held["communication"] - parts.exposed
    if abs(rest) <= SHOWN * seconds:
        return
    computing, beyond = f"computing{' and reducer' if reducer else ''}", show(abs(held["communication"]), SECOND)
    if held["communication"] <= 0:
        longer = f"{computing.capitalize()} by themselves take {beyond} longer than this step"
        yield (
            f"{longer}; one rank sends nothing. Consistent with steps that were disturbed while they were timed."
            if point["ranks"] == 1
            else f"{longer}, so that nothing is left for its messages. Consistent with steps that were disturbed while "
            "they were timed, or with messages that are hidden."
        )
        return
    if point["ranks"] == 1:
        yield f"Beyond {computing} {beyond} is left; one rank sends nothing."
        return
    said = (
        f"Beyond {computing} the step takes {beyond}; for {plural(parts.messages, 'message')} "
        f"{show(parts.exposed, SECOND)} were predicted."
    )
    if rest > 0 and point["method"] == "flat":
        said += (
            " The formula leaves out the copies of the gradients into one message and back. Consistent with these, and "
            "with ranks that wait for each other."
        )
    elif rest > 0 and point["method"] == "per-tensor":
        said += " Consistent with ranks that wait for each other, and with what a call costs beside its message."
    elif rest > 0 and parts.overlap > 0:
        said += " Consistent with communication that is not hidden in full, or that slows the computation beside it."
    elif rest > 0:
        said += " Consistent with ranks that wait for each other, and with communication on cores that compute."
    elif parts.exposed and point["method"] == "ddp" and parts.overlap == 0:
        said += (
            " Consistent with more that is hidden, or with messages that are faster, than the formula assumes: its "
            "overlap of 0 is a simplification."
        )
    elif parts.exposed:
        hidden = "more communication that is hidden, or " if point["method"] == "ddp" else ""
        said += f" Consistent with {hidden}messages that are faster inside a step than the fit has them."
    yield said
    remains = seconds - predicted
    if reducer > SHOWN * seconds and rest < 0 and abs(remains) < min(reducer, -rest):
        yield (
            f"Two errors cancel: the reducer adds {show(reducer, SECOND)} and the messages take {show(-rest, SECOND)} "
            f"less than predicted. Of both, {show(abs(remains), SECOND)} are left."
        )


def _why_efficiency(record: Record, sample: Sample, predicted: float, measured: float) -> str:
    point, ranks = sample.point, int(sample.point["ranks"])
    step = _stepped(record, point)
    texts = [f"{_points(measured - predicted)} than predicted."] if abs(measured - predicted) >= 5e-4 else [
        "As predicted, within 0.1 points."
    ]  # fmt: skip
    texts += disturbed(record, sample.point["case"], [f"alone-{ranks}", str(step.point["case"])])
    held = measured_parts(record, str(step.point["case"])) if step.status == "ok" else None
    if held is not None:
        added = [
            f"{'−' * (held[name] < 0)}{show(abs(held[name]), SECOND)} {words}"
            for name, words in (
                ("interference", "since all ranks compute at once"), ("reducer", "in DDP's reducer"),
                ("communication", "for messages and the rest"),
            )
            if held[name]
        ]  # fmt: skip
        if added:
            texts.append(
                f"To {show(held['alone'], SECOND)} of a rank alone {step.point['case']} adds {_listed(added)}: "
                f"{show(sum(held.values()), SECOND)} in all."
            )
        if point["scaling"] == "strong":
            texts += _unshrunk(record, step.point)
    texts.append(unsteady(sample.values, measured))
    return joined(texts)


def _unshrunk(record: Record, point: Mapping[str, Any]) -> Iterator[str]:
    """What of a rank's step does not shrink with its part of the batch."""
    ranks = int(point["ranks"])
    whole = [_optional(record, f"alone-{ranks}", m) for m in ("forward_time", "backward_time")]
    part = _computed(record, point, "alone")
    if part is None or whole[0] is None or whole[1] is None:
        return
    passes, ideal = part[0] + part[1], (whole[0] + whole[1]) / ranks
    yield f"With 1/{ranks} of the batch the update still takes {show(part[2], SECOND)}" + (
        f", and the two passes {show(passes, SECOND)} where 1/{ranks} of the whole batch's is {show(ideal, SECOND)}."
        if passes > (1 + SHOWN) * ideal
        else "."
    )


def _listed(words: Sequence[str]) -> str:
    return ", ".join(words) if len(words) < 2 else f"{', '.join(words[:-1])} and {words[-1]}"


def _points(difference: float) -> str:
    """A difference of two efficiencies in percentage points: "4.2 points lower"."""
    return f"{abs(100 * difference):.1f} points {'higher' if difference > 0 else 'lower'}"


def _why_straggler(record: Record, sample: Sample, predicted: float, seconds: float) -> str:
    ranks, delay = int(sample.point["ranks"]), _entry(record, sample.point, "delay")
    step = _calibrating(record, f"ddp-{ranks}")
    assert step is not None
    texts = [agrees(seconds / predicted)]
    if not texts[0]:
        texts += disturbed(record, sample.point["case"], [f"ddp-{ranks}"])
    added = seconds - step
    said = f"lengthens the step by {show(added, SECOND)}" if added > 0 else "does not lengthen the step"
    if not texts[0] or abs(added - delay) > SHOWN * seconds:
        texts.append(f"A delay of {show(delay, SECOND)} {said}.")
    if abs(added - delay) > SHOWN * seconds:
        if 0 < added < delay and record.environment.kind == "cpu":
            held = measured_parts(record, f"ddp-{ranks}")
            shared = held["interference"] if held else 0.0
            if shared > SHOWN * seconds:
                texts.append(
                    f"All ranks computing at once takes {show(shared, SECOND)} longer than one alone. Consistent with "
                    "ranks that compute faster while another sleeps or waits."
                )
        elif 0 < added < delay:
            texts.append("Consistent with a delay of which the step hides a part.")
    return joined([*texts, unsteady(sample.values, seconds)])


def _why_sampler(record: Record, sample: Sample, predicted: float, measured: float) -> str:
    point, ranks = sample.point, int(sample.point["ranks"])
    orders, epochs = plural(measured, "order"), float(point["epochs"])
    if _unset(point) and measured == predicted:
        said = f"One order in all of {epochs:,.0f} epochs: without set_epoch the sampler shuffles with the same seed."
    elif measured == predicted:
        said = f"{orders}, one for each epoch."
    else:
        said = f"{orders} in {epochs:,.0f} epochs; {predicted:,.0f} were to be expected."
    return joined([said, _twice(record, point, ranks)])


def _twice(record: Record, point: Mapping[str, Any], ranks: int) -> str:
    """How many samples come twice in an epoch, counted and by the formula."""
    repeated = median_of(record, point, "repeated")
    if repeated is None:
        return ""
    each = float(formulas.samples_per_rank(samples=float(point["samples"]), ranks=ranks))
    expected = ranks * each - float(point["samples"])
    said = (
        f"{_ranks(ranks)} × {each:,.0f} samples for {point['samples']:,}: {repeated:,.0f} "
        f"come{'s' if repeated == 1 else ''} twice in an epoch"
    )
    return f"{said}, as predicted." if repeated == expected else f"{said}, {expected:,.0f} predicted."


def _why_gradient(record: Record, sample: Sample, predicted: float, measured: float) -> str:
    ranks = int(sample.point["ranks"])
    order = f"Two orders of summation in one process differ by {show(predicted)}"
    if measured == predicted:
        return (
            "Equal within rounding. The parts of the batch, added up in one process, differ from the whole by as much "
            "to the last bit: the all-reduce adds nothing to it."
        )
    if measured <= ROUNDING * predicted:
        return f"Equal within rounding. {order}, so that no smaller difference means anything."
    return (
        f"More than rounding: {order[0].lower()}{order[1:]}. Consistent with products that sum in another order for "
        f"1/{ranks} of the batch, or with a gradient that is not the mean over all ranks."
    )


def _why_noise(record: Record, sample: Sample, predicted: float, measured: float) -> str:
    found = _noise(record)
    assert found is not None
    texts = [
        agrees(measured / predicted),
        f"By the norms at two smaller batches |G|² is {show(found[0])}, and noise adds as much at a batch of "
        f"{show(found[1])} sequences.",
    ]
    spreads = _extrapolated(record, float(sample.point["batch"])), _standard_error(sample.values)
    if all(spreads):
        texts.append(
            f"By the spread of the draws the prediction is known to {unsigned(spreads[0] / predicted)} or "
            f"better, the measurement to {unsigned(spreads[1] / measured)} (standard errors)."
        )
        if not texts[0] and abs(measured - predicted) < 2 * math.hypot(*spreads):
            texts.append("They agree within two of these together.")
    return joined(texts)


def _extrapolated(record: Record, batch: float) -> float:
    """The standard error of a squared norm that two others predict: it is linear in both.

    As of draws that have nothing in common. The same samples in both, which then vary together, make it smaller.
    """
    small, large = _noise_fits(record)
    near, far = 1 / float(large.point["batch"]), 1 / float(small.point["batch"])
    beyond = (near - 1 / batch) / (far - near)
    return math.hypot(beyond * _standard_error(small.values), (1 + beyond) * _standard_error(large.values))


def _standard_error(values: Sequence[float]) -> float:
    if len(values) < 2:
        return 0.0
    middle = _mean(values)
    return math.sqrt(sum((v - middle) ** 2 for v in values) / (len(values) - 1) / len(values))


def _why_memory(record: Record, sample: Sample, predicted: float, measured: float) -> str:
    point, stage = sample.point, int(sample.point["zero_stage"])
    if measured == predicted:
        return "As predicted, to the byte."
    texts = [agrees(measured / predicted, 1.1)]
    rest = measured - predicted
    model = record.spec.get("model")
    tensors = model.get("tensors") if isinstance(model, dict) else None
    if stage in (0, 3) and positive(tensors):
        # AdamW keeps a number of steps of 4 B beside each tensor, and FSDP does on every rank.
        steps = 4.0 * float(tensors)  # type: ignore[arg-type]
        texts.append(f"Not in the formula: AdamW's counts of steps, {show(steps, BYTE)} for {tensors:,} tensors.")
        rest -= steps
        texts.append(
            "Nothing is left over." if abs(rest) < 1 else f"Left over: {'−' * (rest < 0)}{show(abs(rest), BYTE)}."
        )
    if stage == 1 and point["ranks"] > 1:
        texts.append("The optimizer's state is split by whole tensors, so that no two ranks hold quite the same.")
    elif stage == 3 and point["ranks"] > 1 and abs(rest) >= 1:
        texts.append("Consistent with tensors whose first dimension the ranks do not divide evenly.")
    return joined(texts)


def _why_resume(record: Record, sample: Sample, predicted: float, measured: float) -> str:
    return joined(_resumed(record, sample.point, measured))


def _resumed(record: Record, point: Mapping[str, Any], measured: float) -> Iterator[str]:
    """Where it stopped and went on, what was repeated, and whether the losses are the same."""
    (kept, killed), every = _stop(record, point, measured), _entry(record, point, "checkpoint_steps")
    yield (
        f"Killed after step {killed:,.0f}, with a checkpoint every {every:,.0f} steps: it went on after step "
        f"{kept:,.0f} and did {plural(measured, 'step')} again."
    )
    apart = median_of(record, point, "difference")
    if apart == 0:
        yield "Every loss is that of the run without a stop, to the last bit."
    elif apart is not None:
        yield (
            f"Its losses differ from those of the run without a stop by up to {show(apart, UNITS['nats'])}. Consistent "
            "with something that the checkpoint does not hold, or with sums in another order."
        )
    if restart := median_of(record, point, "restart_time"):
        yield f"From the kill to the first new step {show(restart, SECOND)} passed."


_WHY: dict[str, Callable[[Record, Sample, float, float], str]] = {
    "all-reduce": _why_message, "step": _why_step, "efficiency": _why_efficiency, "straggler": _why_straggler,
    "sampler": _why_sampler, "gradient": _why_gradient, "noise": _why_noise, "memory": _why_memory,
    "resume": _why_resume,
}  # fmt: skip


def missing(record: Record) -> list[str]:
    """One sentence for every case without a result, or without what its prediction needs."""
    _check(record)
    found = []
    for sample in record.samples:
        role, case, point = sample.point.get("role"), sample.point.get("case"), sample.point
        if role not in (*ROLES, *BESIDE) or sample.metric != METRIC[role][0]:
            continue
        if sample.status != "ok":
            found.append(no_result(sample))
        elif role in ROLES and _expected(record, point) is None:
            found.append(f"{case} has no prediction: {_lacks(record, point)}")
    return found


def absent(record: Record, roles: tuple[str, ...]) -> list[str]:
    """What `missing` says of the cases of these roles."""
    names = {str(s.point["case"]) for s in record.samples if s.point.get("role") in roles}
    return [m for m in missing(record) if m.partition(" ")[0] in names]


_UNMEASURED = "its calibration could not be measured"


def _lacks(record: Record, point: Mapping[str, Any]) -> str:
    """Why a case has no prediction."""
    if point["role"] == "noise":
        return f"{_no_noise(record)}."
    ranks = int(point["ranks"])
    if point["role"] != "straggler" and ranks > 1 and isinstance(why := _fit(record, ranks), str):
        return why
    return f"{_UNMEASURED}."


def _no_noise(record: Record) -> str:
    """Why the two batches show no noise scale."""
    small, large = _noise_fits(record)
    if small.status != "ok" or large.status != "ok":
        return _UNMEASURED
    if _mean(large.values) >= _mean(small.values):
        return "no noise shows between the two batches"
    return "the noise of the gradients hides their mean"


# Training runs


def runs(record: Record) -> list[Run]:
    """The training runs of a record that gave losses: without a stop, and with one.

    Raises:
        EfflabError: the record is of another topic, or a sample is damaged.
    """
    _check(record)
    return [
        Run(
            str(s.point["case"]), list(s.values), median_of(record, s.point, "checkpoint_time"),
            values_of(record, s.point, "resumed_at"),
        )
        for s in record.samples
        if s.point.get("role") in ("curve", "resume") and s.metric == "loss" and s.status == "ok"
    ]  # fmt: skip


def stop(record: Record) -> tuple[float, float] | None:
    """After which step the killed run went on, and after which it was killed; None where none was.

    Raises:
        EfflabError: the record is of another topic, a sample is damaged, or it does not say where the run was killed.
    """
    sample = next((s for s in _samples(record) if s.point["role"] == "resume" and s.status == "ok"), None)
    return _stop(record, sample.point, median(sample.values)) if sample else None


def _stop(record: Record, point: Mapping[str, Any], repeated: float) -> tuple[float, float]:
    """As measured: it went on after the last step that it did not do again."""
    killed = _entry(record, point, "killed_at")
    return killed - repeated, killed


# In words and tables


def _shown(row: Row, value: float) -> str:
    return f"{100 * value:.1f}%" if row.role == "efficiency" else show(value, row.unit)


KINDS = (
    (("all-reduce",), ("all-reduce of another size", "all-reduces of other sizes")),
    (("step", "straggler"), ("step", "steps")),
    (("memory",), ("size in memory", "sizes in memory")),
    (("noise",), ("norm of gradients", "norms of gradients")),
)


def summary(record: Record) -> str:
    """Efficiencies, median and worst errors of messages, steps and bytes, and what became of the rest: one line each.

    Raises:
        EfflabError: as `points`.
    """
    rows = points(record)
    parts = []
    efficient = [r for r in rows if r.role == "efficiency"]
    if efficient:
        words = ", ".join(
            f"{'strong' if 'strong' in r.case else 'weak'} on {r.ranks} ranks {_shown(r, r.measured)} (predicted "
            f"{_shown(r, r.predicted)})" for r in efficient
        )  # fmt: skip
        parts.append(f"Scaling efficiency: {words}.")
    for roles, words in KINDS:
        of = [r for r in rows if r.role in roles]
        if of:
            worst = max(of, key=lambda r: abs(math.log(r.ratio)))
            if signed(worst.error) == "0%":
                parts.append(f"{len(of)} {words[len(of) > 1]}: as predicted.")
                continue
            middle = unsigned(median([abs(r.error) for r in of]))
            parts.append(
                f"{len(of)} {words[len(of) > 1]}: median error of the prediction {middle}. "
                f"Worst: {worst.case}, predicted {show(worst.predicted, worst.unit)}, measured "
                f"{show(worst.measured, worst.unit)} ({signed(worst.error)})."
            )
    parts += _counted(record)
    if not parts:
        return "No case of this record was measured."
    if record.scale == "smoke":
        parts.insert(0, "Smoke scale: its sizes are too small to say anything about the device.")
    if absent := missing(record):
        parts.append(f"Not in it: {'; '.join(a.rstrip('.') for a in absent)}.")
    return "\n".join(parts)


def _counted(record: Record) -> Iterator[str]:
    """Samplers, gradients and the restart, in a sentence each."""
    orders = [s for s in _samples(record) if s.point["role"] == "sampler" and s.status == "ok"]
    if orders:
        words = ", ".join(f"{s.point['case']} {median(s.values):,.0f}" for s in orders)
        yield f"Orders of the samples in {orders[0].point['epochs']:,} epochs: {words}."
    for sample in (s for s in _samples(record) if s.point["role"] == "gradient" and s.status == "ok"):
        yield _gradients(record, sample)
    for sample in (s for s in _samples(record) if s.point["role"] == "resume" and s.status == "ok"):
        yield f"Restart: {' '.join(_resumed(record, sample.point, median(sample.values)))}"


def _gradients(record: Record, sample: Sample) -> str:
    """Whether the gradient of all ranks is that of one process."""
    apart, order = median(sample.values), _entry(record, sample.point, "rounding")
    said = (
        "equal to the last bit" if not apart
        else f"equal within rounding (relative difference {show(apart)}, of two orders of summation {show(order)})"
        if apart <= ROUNDING * order
        else f"relative difference {show(apart)}, more than rounding ({show(order)})"
    )  # fmt: skip
    return f"Gradient of {_ranks(int(sample.point['ranks']))} against one process: {said}."


def table(record: Record) -> tuple[list[str], list[list[str]], tuple[int, ...]]:
    """Head, rows of text (the last column explains) and the indices of numeric columns."""
    return _table(record, points(record))


def _table(record: Record, rows: Sequence[Row]) -> tuple[list[str], list[list[str]], tuple[int, ...]]:
    found = {
        "case": [r.case for r in rows],
        "predicted": [_shown(r, r.predicted) for r in rows],
        "measured": [_shown(r, r.measured) for r in rows],
        "IQR": [f"{r.iqr / r.measured:.0%}" if r.metric in ("time", "efficiency") else "" for r in rows],
        "error": [signed(r.error) for r in rows],
        "why": [r.explanation for r in rows],
    }
    return with_energy(record, rows, table_of(found, ("IQR",)))


def text(record: Record) -> str:
    """Everything in plain text, the same for the same record: calibration, all rows, reasons, summary."""
    parts = [calibration_text(record)]
    for role in ROLES:
        rows = points(record, (role,))
        if rows:
            head, body, numeric = _table(record, rows)
            if role in ("step", "noise"):  # the other names say what they are
                parts.append(describe({r.case: _point(record, r.case) for r in rows}))
            parts.append(columns(head[:-1], [r[:-1] for r in body], numeric))
            parts.append("\n".join(f"{r[0]}: {r[-1]}" for r in body))
    if any(s.point["role"] == "step" for s in _samples(record)):
        parts.append(_steps_text(record))
    if runs(record):
        parts.append(_restart_text(record))
    if warned := _warned(record, doubted_cases(record)):
        parts.append("\n".join(warned))
    if any(_fitted(record, n) for n in _counts(record)):
        parts.append(
            "Times rest on the fitted messages and on steps of one rank alone and of all without communication; none "
            "of them is predicted."
        )
    elif any(s.point.get("role") == "calibration" and s.status == "ok" for s in record.samples):
        parts.append("Times rest on steps without communication, which are not predicted.")
    parts.append(summary(record))
    return "\n\n".join(p for p in parts if p)


# What the lab prints


def cases(points: Iterable[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The points of the cases that a learner can predict, by name."""
    return {str(p["case"]): p for p in points if p.get("role") in ROLES}


def describe(cases: Mapping[str, dict[str, Any]], names: Sequence[str] = ()) -> str:
    """A table of what the named cases are; of all if none is named."""
    rows = []
    for name in names or list(cases):
        p = cases[name]
        rows.append([name, _WHAT[str(p["role"])](p)])
    return columns(["case", "what"], rows)


def _what_step(p: Mapping[str, Any]) -> str:
    how = {
        "ddp": "under DDP", "flat": "with all gradients in one message after the backward pass",
        "per-tensor": "with a message for each gradient after the backward pass",
    }[p["method"]]  # fmt: skip
    batch = f"{p['microbatch']:,} sequences"
    if p["microbatches"] > 1:
        batch = f"{p['microbatches']:,} × {batch}, reduced once"
    return f"time of a step {how} on {_ranks(p['ranks'])}, each with {batch}"


def _what_memory(p: Mapping[str, Any]) -> str:
    how = {0: "DDP", 1: "ZeRO stage 1", 2: "ZeRO stage 2", 3: "FSDP, ZeRO stage 3"}[int(p["zero_stage"])]
    where = "the only rank" if p["ranks"] == 1 else f"one of {p['ranks']} ranks"
    return f"weights, gradients and AdamW's state on {where}: {p['parameters']:,} parameters, {how}"


_WHAT: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "all-reduce": lambda p: f"time of an all-reduce of {_size(float(p['message_bytes']))} between {p['ranks']} ranks",
    "step": _what_step,
    "efficiency": lambda p: f"efficiency of {p['scaling']} scaling on {p['ranks']} ranks",
    "straggler": lambda p: f"time of a step of {p['ranks']} ranks of which the last begins late"
    + (f", by {show(float(p['sleep']), SECOND)}" if positive(p.get("sleep")) else ""),
    "sampler": lambda p: f"different orders of {p['samples']:,} samples in {p['epochs']:,} epochs, "
    f"{'without' if _unset(p) else 'with'} set_epoch",
    "gradient": lambda p: f"relative difference of the gradient of {p['ranks']} ranks from that of one process",
    "noise": lambda p: f"squared norm of the gradient of a batch of {p['batch']:,} sequences, the mean of draws",
    "memory": _what_memory,
    "resume": lambda p: "steps that are done again after a kill"
    + (f" after step {p['killed_at']:,}, with a checkpoint every {p['checkpoint_steps']:,}"
       if "killed_at" in p and "checkpoint_steps" in p else ""),
}  # fmt: skip


def _messages_text(record: Record) -> str:
    """All-reduces by size, fitted and held out, with both bandwidths."""
    body = []
    for ranks in _counts(record):
        found = _line(record, ranks) if _fitted(record, ranks) else None
        for sample in sorted(
            (s for s in record.samples if s.point.get("role") in ("fit", "all-reduce") and s.point["ranks"] == ranks
             and s.metric == "time" and s.status == "ok"),
            key=lambda s: float(s.point["message_bytes"]),
        ):  # fmt: skip
            size, seconds = float(sample.point["message_bytes"]), median(sample.values)
            by_fit = [show(found.time(size), SECOND), signed(error(found.time(size), seconds))] if found else ["", ""]
            body.append(
                [f"{ranks}", _size(size), "held out" if sample.point["role"] == "all-reduce" else "fitted",
                 show(seconds, SECOND), *by_fit, *(show(b, BYTE_PER_SECOND) for b in bandwidths(size, seconds, ranks))]
            )  # fmt: skip
    head = ["ranks", "message", "", "measured", "by the line", "error", "algorithm bandwidth", "bus bandwidth"]
    return columns(head, body, (0, 1, 3, 4, 5, 6, 7))


def _steps_text(record: Record) -> str:
    """What each measured step consists of."""
    body = []
    for row in points(record, ("step",)):
        held, point = measured_parts(record, row.case), _point(record, row.case)
        cells = [show(held[part], SECOND) if held and abs(held[part]) > 0.002 * row.measured else "" for part in PARTS]
        sent = "" if row.ranks == 1 else f"{_entry(record, point, 'buckets'):,.0f}"
        body.append(
            [row.case, sent, *cells, show(row.measured, SECOND),
             show(row.predicted, SECOND), signed(row.error)]
        )  # fmt: skip
    head = ["case", "messages", "alone", "interference", "reducer", "messages and rest", "step", "predicted", "error"]
    return columns(head, body, range(1, 9)) if body else ""


def _point(record: Record, case: str) -> dict[str, Any]:
    return next(s.point for s in record.samples if s.point.get("case") == case)


def _efficiency_text(record: Record) -> str:
    """Efficiency over the number of ranks, predicted and measured."""
    body = [
        [f"{r.ranks}", str(_point(record, r.case)["scaling"]), _shown(r, r.predicted), _shown(r, r.measured),
         f"{100 * (r.measured - r.predicted):+.1f}".replace("-", "−"), f"{r.iqr * 100:.1f}"]
        for r in points(record, ("efficiency",))
    ]  # fmt: skip
    head = ["ranks", "scaling", "predicted", "measured", "points apart", "IQR (points)"]
    return columns(head, body, (0, 2, 3, 4, 5))


def _sampler_text(record: Record) -> str:
    """Orders and repeated samples, counted and by the formula."""
    body = []
    for sample in (s for s in _samples(record) if s.point["role"] == "sampler" and s.status == "ok"):
        point, ranks = sample.point, int(sample.point["ranks"])
        twice = median_of(record, point, "repeated")
        each = float(formulas.samples_per_rank(samples=float(point["samples"]), ranks=ranks))
        body.append(
            [str(point["case"]), f"{point['epochs']:,}", f"{_expected(record, point):,.0f}",
             f"{median(sample.values):,.0f}", f"{point['samples']:,}", f"{each:,.0f}",
             f"{ranks * each - point['samples']:,.0f}", "" if twice is None else f"{twice:,.0f}"]
        )  # fmt: skip
    head = ["case", "epochs", "orders, predicted", "orders", "samples", "per rank", "twice, predicted", "twice"]
    return columns(head, body, range(1, 8))


def _noise_text(record: Record) -> str:
    """Squared norms over the batch size, and the noise scale that they show."""
    found = _noise(record)
    body = []
    for sample in record.samples:
        if sample.metric != "norm_squared" or sample.status != "ok":
            continue
        batch, mean = float(sample.point["batch"]), _mean(sample.values)
        by = f"{show(found[0] * (1 + found[1] / batch))}" if found else ""
        body.append(
            [f"{batch:,.0f}", "held out" if sample.point["role"] == "noise" else "fitted", f"{len(sample.values)}",
             by, show(mean), f"±{_standard_error(sample.values) / mean:.0%}"]
        )  # fmt: skip
    if not body:
        return ""
    said = columns(["batch", "", "draws", "|G|² + S/b", "measured", "standard error"], body, (0, 2, 3, 4, 5))
    if found is None:
        why = _no_noise(record)
        more = "" if why == _UNMEASURED else "; more draws are needed"
        return f"{said}\nThere is no noise scale: {why}{more}."
    return (
        f"{said}\n|G|² is {show(found[0])}. Noise scale S/|G|²: {show(found[1])} sequences, at which noise and "
        "gradient are equal."
    )


def _memory_text(record: Record) -> str:
    body = []
    for row in points(record, ("memory",)):
        point = _point(record, row.case)
        peak = median_of(record, point, "peak_bytes")
        per = row.measured / float(point["parameters"])
        body.append(
            [row.case, f"{point['zero_stage']}", show(row.predicted, BYTE), show(row.measured, BYTE),
             signed(row.error), f"{per:.3g}", "" if peak is None else show(peak, BYTE)]
        )  # fmt: skip
    head = ["case", "stage", "predicted", "measured", "error", "B per parameter", "peak of the step"]
    if not any(r[-1] for r in body):
        head, body = head[:-1], [r[:-1] for r in body]
    return columns(head, body, range(1, len(head)))


def _restart_text(record: Record) -> str:
    """The training runs with their checkpoints, and the restart."""
    body = []
    for run in runs(record):
        body.append(
            [run.case, f"{len(run.losses):,}", f"{run.losses[0]:.4f}", f"{run.losses[-1]:.4f}",
             "" if run.checkpoint_time is None else show(run.checkpoint_time, SECOND),
             ", ".join(f"{at:,.0f}" for at in run.resumed_at)]
        )  # fmt: skip
    parts = [columns(["run", "steps", "first loss", "last loss", "checkpoint", "went on after"], body, (1, 2, 3, 4, 5))]
    if not any(r[-1] for r in body):
        parts = [
            columns(["run", "steps", "first loss", "last loss", "checkpoint"], [r[:-1] for r in body], (1, 2, 3, 4))
        ]
    for sample in (s for s in _samples(record) if s.point["role"] == "resume"):
        if sample.status == "ok":
            parts += _resumed(record, sample.point, median(sample.values))
        else:
            parts.append(f"{sample.point['case']} was not measured: {sample.message}")
    return "\n".join(parts)


# The roles that a table or a picture is of.
ROLES_OF: dict[str, tuple[str, ...]] = {
    "messages": ("all-reduce", "fit"), "steps": ("step",), "efficiency": ("efficiency",), "sampler": ("sampler",),
    "noise": ("noise", "noise-fit"), "memory": ("memory",), "restart": ("curve", "resume"),
}  # fmt: skip
TABLES: dict[str, Callable[[Record], str]] = {
    "messages": _messages_text, "steps": _steps_text, "efficiency": _efficiency_text, "sampler": _sampler_text,
    "noise": _noise_text, "memory": _memory_text, "restart": _restart_text,
}  # fmt: skip


def sweep(record: Record, name: str) -> str:
    """A table of a kind of cases.

    "messages" has every all-reduce by size with both bandwidths, "steps" what each step consists of, "efficiency" the
    scaling over the ranks, "sampler" the orders of the samples, "noise" the gradient's norm over the batch size,
    "memory" the bytes by ZeRO stage, "restart" the run that was killed and went on.

    Raises:
        EfflabError: an unknown name; names those there are. Or the record has none of them.
    """
    _check(record)
    if name not in TABLES:
        raise unknown("series", name, TABLES)
    said = TABLES[name](record)
    if len(said.splitlines()) > 2:
        return said
    if gone := absent(record, ROLES_OF[name]):
        return "\n".join(gone)
    raise EfflabError(f"record {record.id}: it has nothing of {name!r}. Measure it again.")


def compare(record: Record, slow: str, fast: str) -> str:
    """By which factor one case is larger than another, predicted and measured; or why there is nothing to compare.

    Steps that calibrate, such as "alone-2", may be among them.

    Raises:
        EfflabError: a case that is unknown, or two that measure different things.
    """
    rows: dict[str, tuple[str, float | None, float, Callable[[float], str]]] = {
        r.case: (r.metric, r.predicted, r.measured, functools.partial(_shown, r)) for r in points(record)
    }
    for sample in record.samples:
        if sample.point.get("role") == "calibration" and sample.metric == "time" and sample.status == "ok":
            show_time = functools.partial(show, unit=SECOND)
            rows[str(sample.point["case"])] = ("time", None, median(sample.values), show_time)
    for name in (slow, fast):
        if name not in rows:
            if said := _without_row(record, name):
                return f"{said.rstrip('.')}. So there is nothing to compare."
            raise unknown("compare: case", name, rows)
    one, other = rows[slow], rows[fast]
    if one[0] != other[0]:
        raise EfflabError(f"compare: {slow} is a {one[0]} and {fast} is a {other[0]}. Name two of one kind.")
    lines = [
        f"{name}: {'' if row[1] is None else f'predicted {row[3](row[1])}, '}measured {row[3](row[2])}"
        for name, row in ((slow, one), (fast, other))
    ]
    # What calibrates is known, and so stands for its own prediction.
    ahead = [row[2] if row[1] is None else row[1] for row in (one, other)]
    word = "faster" if one[0] == "time" else "smaller"
    lines.append(f"{word} by: predicted {ahead[0] / ahead[1]:.3g}×, measured {one[2] / other[2]:.3g}×")
    return "\n".join(lines)


def evidence(record: Record, case: str) -> str:
    """What a case's prediction consists of, beside what was measured of each part.

    Raises:
        EfflabError: the record has no such case, or it was not measured.
    """
    rows = {r.case: r for r in points(record)}
    if case not in rows:
        if said := _without_row(record, case):
            return said
        raise unknown("case", case, rows)
    row, point = rows[case], _point(record, case)
    lines = [f"{case}: predicted {_shown(row, row.predicted)}, measured {_shown(row, row.measured)}"]
    if row.role == "all-reduce":
        lines += _message_evidence(record, row, point)
    elif row.role == "step":
        lines += _step_evidence(record, row, point)
    elif row.role == "straggler":
        step, delay = _calibrating(record, f"ddp-{row.ranks}"), _entry(record, point, "delay")
        assert step is not None
        lines.append(f"  {show(step, SECOND)} of ddp-{row.ranks} as measured, and a delay of {show(delay, SECOND)}.")
    elif row.role == "efficiency":
        step_row = rows.get(str(_stepped(record, point).point["case"]))
        alone = _calibrating(record, f"alone-{row.ranks}")
        assert alone is not None
        times = f" × {row.ranks}" if point["scaling"] == "strong" else ""
        if step_row:
            lines.append(
                f"  predicted: {show(alone, SECOND)} alone over {show(step_row.predicted, SECOND)}{times}; measured in "
                f"turns, with a median step of {show(step_row.measured, SECOND)}"
            )
    elif row.role == "memory":
        parts = _state_parts(point)
        lines.append(f"  predicted: {', '.join(f'{name} {show(v, BYTE)}' for name, v in parts.items())}")
        if peak := median_of(record, point, "peak_bytes"):
            lines.append(f"  at the peak of the step {show(peak, BYTE)}, activations and buffers included")
    lines.append(f"  {row.explanation}")
    return "\n".join(lines)


def _without_row(record: Record, case: str) -> str:
    """What there is to say of a case that has no ratio of two numbers above zero; empty where nothing is."""
    if gone := [m for m in missing(record) if m.startswith(f"{case} ")]:
        return "\n".join(gone)
    sample = next((s for s in _samples(record) if s.point["case"] == case and s.status == "ok"), None)
    if sample is None:
        return ""
    value = median(sample.values)
    if sample.point["role"] == "resume":
        return f"{case}: {' '.join(_resumed(record, sample.point, value))}"
    if sample.point["role"] != "gradient":
        return f"{case}: {NOTHING}"
    if value > 0:
        return f"{case}: {_gradients(record, sample)}"
    rounding = _entry(record, sample.point, "rounding")
    return f"{case}: the two gradients are the same to the last bit (rounding: {show(rounding)})."


def _message_evidence(record: Record, row: Row, point: Mapping[str, Any]) -> Iterator[str]:
    found, both = _line(record, row.ranks), _ring(record, row.ranks)
    assert found is not None and both is not None
    size = float(point["message_bytes"])
    sent = float(formulas.all_reduce_traffic(message_bytes=size, ranks=row.ranks))
    steps = 2 * (row.ranks - 1)
    yield (
        f"  {steps} steps of {show(both[0], SECOND)} are {show(found.latency, SECOND)} of latency; {show(sent, BYTE)} "
        f"sent per rank at {show(both[1], BYTE_PER_SECOND)} are {show(size / found.bandwidth, SECOND)} of transfer"
    )
    yield f"  latency and transfer are equal at {_half(both, row.ranks)}; so {row.regime} limits it"
    algorithm, bus = bandwidths(size, row.measured, row.ranks)
    yield (
        f"  measured: {show(algorithm, BYTE_PER_SECOND)} algorithm bandwidth, {show(bus, BYTE_PER_SECOND)} bus "
        "bandwidth"
    )


def _step_evidence(record: Record, row: Row, point: Mapping[str, Any]) -> Iterator[str]:
    parts, held = expected_step(record, point), measured_parts(record, row.case)
    assert parts is not None
    if held is None:
        return
    alone, together = held["alone"], held["alone"] + held["interference"]
    body = [
        ["computing, a rank alone", "", show(alone, SECOND)],
        ["computing, all ranks at once", show(parts.computing, SECOND), show(together, SECOND)],
    ]
    if point["method"] == "ddp":
        known = reducer_time(record, row.ranks) is not None
        body.append(["DDP's reducer", "not in the formula", show(held["reducer"], SECOND) if known else "not measured"])
    if row.ranks == 1:
        body.append(["the rest", "", show(held["communication"], SECOND)])
    else:
        body += [
            [f"latency of {plural(parts.messages, 'message')}", show(parts.latency, SECOND), ""],
            [f"transfer of {show(float(point['gradient_bytes']), BYTE)}", show(parts.transfer, SECOND), ""],
            ["hidden by the backward pass", show(parts.latency + parts.transfer - parts.exposed, SECOND), ""],
            ["messages that show, and the rest", show(parts.exposed, SECOND), show(held["communication"], SECOND)],
        ]
    body.append(["step", show(parts.total, SECOND), show(row.measured, SECOND)])
    for text in columns(["part of a step", "predicted", "measured"], body, (1, 2)).splitlines():
        yield f"  {text}"
    if row.ranks == 1:
        yield "  One rank sends nothing."
    elif point["method"] != "ddp":
        yield "  Its messages are sent after the backward pass, which therefore hides none."
    elif parts.overlap == 0:
        yield "  No core is spare: the formula takes an overlap of 0, as if the backward pass hid no communication."
    elif parts.overlap < 1:
        yield f"  Cores are spare for {parts.overlap:.0%} of the ranks: so much communication runs beside computation."


def _state_parts(point: Mapping[str, Any]) -> dict[str, float]:
    inputs = {"parameters": point["parameters"], "ranks": point["ranks"], "zero_stage": point["zero_stage"]}
    return {
        "weights": float(bytes_of.weight_bytes_per_rank(**inputs, convention="fp32")),
        "gradients": float(bytes_of.gradient_bytes_per_rank(**inputs, convention="fp32")),
        "AdamW": float(bytes_of.optimizer_bytes_per_rank(**inputs, convention="fp32")),
    }


# Predictions that were saved from a calculator

# What a record can answer of each calculator: the output and its unit.
ANSWERED: dict[str, dict[str, str]] = {"ddp-scaling": {"share": "", "speedup": "", "step_time": "s"}}
_CLOSE = 0.05  # relative; as well as a person copies a time or a bandwidth


def asked(prediction: Prediction) -> dict[str, dict[str, Any]]:
    """The outputs of a calculator's prediction that a run of the lab could answer, each with its inputs.

    Only of a model and a link of one's own: the lab's are none of the catalog's.
    """
    wanted = ANSWERED.get(prediction.calculator or "", {})
    if any(prediction.inputs.get(name) != "custom" for name in ("model", "link")):
        return {}
    return outputs_in(prediction, wanted)


def answers(record: Record, prediction: Prediction) -> dict[str, Row]:
    """Of those outputs, the ones that this record answers: where the inputs are the run's own.

    Of "ddp-scaling" the times of a step are those of a rank alone, latency and bandwidth those of the fit, and there
    are as many ranks, parameters, bytes and buckets. The time of a step is answered for the times of all ranks at once
    too.

    Raises:
        EfflabError: as `points`.
    """
    _check(record)
    wanted = asked(prediction)
    if not wanted:
        return {}
    inputs, found = dict(prediction.inputs), {}
    rows = {r.case: r for r in points(record, ("step", "efficiency"))}
    for ranks, scaling in itertools.product(_counts(record), SCALINGS):
        case = f"{'strong' if scaling == 'strong' else 'ddp'}-{ranks}"
        row, whole = rows.get(case), rows.get(f"efficiency-{scaling}-{ranks}")
        if row is None or (inputs.get("ranks"), inputs.get("scaling")) != (ranks, scaling):
            continue
        point = _point(record, case)
        if not _sends(record, point, inputs):
            continue
        words = [w for w in ("alone", "together") if _takes(record, f"{w}-{ranks}", inputs)]
        if words:
            found["step_time"] = row
        if "alone" in words and whole is not None:
            found["share"] = whole
            found["speedup"] = dataclasses.replace(
                whole, metric="speedup", predicted=ranks * whole.predicted, measured=ranks * whole.measured,
                iqr=ranks * whole.iqr,
            )  # fmt: skip
    return {name: answered(row, prediction.outputs[name].value) for name, row in found.items() if name in wanted}


def _close(a: Any, b: float | None) -> bool:
    """Two numbers that agree within 5%; False for what is no number."""
    return b is not None and positive(a) and abs(a - b) <= _CLOSE * max(a, b)


def _sends(record: Record, point: Mapping[str, Any], inputs: Mapping[str, Any]) -> bool:
    """The gradients, their buckets and the link of a prediction are those of this step."""
    both = _ring(record, int(point["ranks"]))
    if both is None or inputs.get("gradients") != "fp32" or inputs.get("overlap") != overlap(record, point):
        return False
    if _buckets(point, inputs) != _entry(record, point, "buckets"):
        return False
    own = {"own_parameters": point["gradient_bytes"] / 4, "latency": both[0]}
    return _close(_carried(inputs), both[1]) and all(_close(inputs.get(name), value) for name, value in own.items())


def _buckets(point: Mapping[str, Any], inputs: Mapping[str, Any]) -> float | None:
    """The messages that a prediction makes of a step's gradients."""
    bucket = inputs.get("bucket_bytes")
    if not positive(bucket, LARGEST) or bucket < 1:
        return None
    return float(formulas.gradient_buckets(gradient_bytes=float(point["gradient_bytes"]), bucket_bytes=bucket))


def _carried(inputs: Mapping[str, Any]) -> Any:
    """The bandwidth of a calculator's ranks together: the link's within a node, else what its adapters leave of it."""
    ranks, each, link, network = (inputs.get(n) for n in ("ranks", "own_ranks_per_node", "own_link", "own_network"))
    if not (positive(ranks) and positive(each) and positive(link)):
        return None
    if ranks <= each:
        return link
    if inputs.get("network") != "custom" or not positive(network):
        return None
    try:
        return formulas.group_bandwidth(
            group=ranks, stride=1, ranks_per_node=each, bandwidth=link, network_bandwidth=network
        )
    except FormulaError:
        return None


def _takes(record: Record, case: str, inputs: Mapping[str, Any]) -> bool:
    """Forward pass, backward pass and update of a prediction are those of this case."""
    names = ("forward_time", "backward_time", "update_time")
    return all(_close(inputs.get(n), _optional(record, case, n)) for n in names)
