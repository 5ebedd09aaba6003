"""Energy against a recorded run: time and energy of a batch and of a step, the counter, and its windows.

- Time of a batch: a line through the two batches that the run names (`spec.line`), which so calibrate and are not
  predicted.
- Time of a training step: three times the forward pass of the same batch and dtype, as measured.
- Energy of a batch or a step, where there is a counter: its operations, its traffic and the idle power over the time
  that it took (Choi et al. 2013). The constants come from an idle window, the stream and the product of the dtype.
- The counter against power readings that are added up, and each length of window against the bound that the counter's
  period sets.

Without a counter no energy is predicted or compared. Each time then carries a modelled band: the rated power, times
the shares in `efflab.catalog.energy.LOADS`, times the time. Where prediction and measurement part, the explanation
says what the record holds; a cause that it does not hold stands behind "consistent with".
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from efflab import catalog
from efflab.catalog.energy import LOADS
from efflab.errors import EfflabError, unknown
from efflab.formulas import energy as formulas
from efflab.formulas import roofline
from efflab.formulas.namespace import FormulaError
from efflab.reconcile import (
    LARGEST,
    NEAR,
    NOTHING,
    Compared,
    agrees,
    check_values,
    columns,
    damaged,
    disturbed,
    doubted_cases,
    error,
    joined,
    median_of,
    modelled_energy,
    no_result,
    of_topic,
    place,
    plural,
    positive,
    signed,
    span,
    table_of,
    unsigned,
    unsteady,
    values_of,
    with_energy,
)
from efflab.reconcile import answers as answers
from efflab.reconcile import asked as asked  # none: the calculators are about data centres and large models
from efflab.reconcile import banner as banner
from efflab.reconcile import calibrates as shared_calibrates
from efflab.reconcile import datasheet as datasheet
from efflab.records import Record, Sample, iqr, median
from efflab.units import (
    BYTE,
    BYTE_PER_SECOND,
    FLOP_PER_SECOND,
    JOULE,
    JOULE_PER_BYTE,
    JOULE_PER_FLOP,
    NUMBER,
    SECOND,
    WATT,
    Unit,
    show,
)

DTYPES = ("fp32", "tf32", "bf16", "fp16")
WORK = ("inference", "training")  # what is predicted of a batch
ROLES = (*WORK, "counter", "window")
METRIC = dict.fromkeys((*WORK, "calibration"), "time") | {
    "idle": "power", "counter": "energy", "window": "gain", "limit": "limit",
}  # fmt: skip
COUNTERS = {"nvml-counter": "NVML", "rapl": "RAPL"}

LIMITS: tuple[str, ...] = ()
CALIBRATION: dict[str, tuple[str, Unit]] = {
    "idle-power": ("power", WATT),
    "busy-power": ("power", WATT),
    "energy-per-flop": ("energy", JOULE_PER_FLOP),
    "energy-per-byte": ("energy", JOULE_PER_BYTE),
    "energy-per-sample-smallest": ("energy", JOULE),
    "energy-per-sample-largest": ("energy", JOULE),
    "saving-largest-batch": ("ratio", NUMBER),
    "saving-bf16": ("ratio", NUMBER),
}
BASE: tuple[str, ...] = ()  # no case is in every prediction
PICTURES = ("energy", "power", "windows", "errors")
ENDS = "ends"  # in place of "inference": of each dtype the smallest and the largest batch with a prediction
DRAWN = (ENDS, "training", "counter")
SHOWN = 12  # repeats of a window that are listed
CLEAR = 1.1  # a batch takes more than another where it takes as many times as long
KERNEL = "Consistent with another kernel."
TOLERANCE = 0.1  # a window whose deviation stays below this can be trusted


@dataclass(frozen=True, kw_only=True)
class Row(Compared):
    """One number of a case, predicted and measured. A case with a time and an energy has a row for each.

    Its metric is "time" of a call, "energy" of a call (of the whole window for the counter), or a window's "deviation":
    the furthest that a repeat lies from the mean power of the longest window, relative. Of a deviation `predicted` is a
    bound.

    Attributes:
        dtype: as in the sample; "" where it plays no part.
        batch: samples of a call; 1 where it has none.
    """

    dtype: str
    batch: int


@dataclass(frozen=True)
class Constants:
    """What the energies of a device are built from.

    Attributes:
        idle: W.
        per_byte: J/B, above idle.
        per_flop: J/FLOP by dtype, above idle and without the traffic.
    """

    idle: float
    per_byte: float
    per_flop: dict[str, float]


@dataclass(frozen=True)
class Windows:
    """All windows of one length.

    Attributes:
        length: as wanted, s.
        seconds: as it was, the median, s.
        gains: of the counter, J, each repeat.
        deviation: the largest distance of a repeat's power from the mean of the longest windows, relative to it.
        bound: the counter's period over `seconds`.
    """

    case: str
    length: float
    seconds: float
    gains: list[float]
    deviation: float
    bound: float

    @property
    def still(self) -> int:
        """In how many repeats the counter did not move."""
        return sum(gain == 0 for gain in self.gains)


# Reading a record: a point is the topic's own, so what is read from it is checked here

_UNITS = {
    "time": "s", "energy": "J", "integrated": "J", "gain": "J", "power": "W", "limit": "W", "limit_default": "W",
    "limit_least": "W", "limit_most": "W",
}  # fmt: skip


def _check(record: Record) -> None:
    """Raise `EfflabError`, naming record, sample and field, for a point or a value that cannot be reconciled."""
    of_topic(record, "energy")
    for name in ("width", "layers"):
        if not positive(record.spec.get(name), LARGEST):
            raise EfflabError(f"record {record.id}: spec.{name} must be a number greater than zero. Measure it again.")
    sizes, ends = record.spec.get("batches"), record.spec.get("line")
    two = isinstance(sizes, list) and isinstance(ends, list) and len(ends) == 2
    if not (two and all(positive(b, LARGEST) and b in sizes for b in ends) and ends[0] < ends[1]):
        raise EfflabError(
            f"record {record.id}: spec.line must be two of spec.batches, the smaller one first. Measure it again."
        )
    for index, sample in enumerate(record.samples):
        point, role = sample.point, sample.point.get("role")
        wrong = functools.partial(damaged, record, index)
        if role not in METRIC:
            continue
        if not isinstance(point.get("case"), str) or not point["case"]:
            raise wrong("case", "a text")
        product = role == "calibration" and "m" in point
        if (role in WORK or product) and point.get("dtype") not in DTYPES:
            raise wrong("dtype", f"one of {', '.join(DTYPES)}")
        needed = {"inference": "batch", "training": "batch", "window": "length"}.get(str(role))
        if role == "calibration":
            needed = "m" if product else "bytes"
        if needed and not positive(point.get(needed), LARGEST):
            raise wrong(needed, "a number greater than zero")
        if role == "inference" and point.get("calibrates") is not (point["batch"] in ends):
            raise wrong("calibrates", "true for the two batches of spec.line and false for the others")
        where = place(record, index)
        if sample.unit != _UNITS.get(sample.metric, sample.unit):
            raise EfflabError(f"{where}: a {sample.metric} in {sample.unit!r}. Measure it again.")
        if sample.metric in _UNITS:
            check_values(sample, where, zero=sample.metric in ("gain", "limit_least"))
    reads = counted(record) or any(s.point.get("role") in ("counter", "window") for s in record.samples)
    if reads and not positive(record.spec.get("period")):
        raise EfflabError(f"record {record.id}: spec.period must be a number greater than zero. Measure it again.")


def counted(record: Record) -> bool:
    """The run had an energy counter that it could read."""
    return record.spec.get("counter") in COUNTERS


def _period(record: Record) -> float:
    """How often the counter changes, s."""
    return float(record.spec["period"])  # type: ignore[arg-type]


def _all(record: Record, *roles: str) -> list[Sample]:
    """The main results of the cases of some roles that were measured."""
    return [
        s for s in record.samples
        if s.point.get("role") in roles and s.status == "ok" and s.metric == METRIC[str(s.point["role"])]
    ]  # fmt: skip


def _energy(record: Record, point: Mapping[str, Any]) -> float | None:
    """Energy of a call as counted, J; None where it was not."""
    return median_of(record, point, "energy")


def _product(record: Record, dtype: str) -> Sample | None:
    """The calibrating product of a dtype."""
    return next((s for s in _all(record, "calibration") if "m" in s.point and s.point["dtype"] == dtype), None)


def _stream(record: Record) -> Sample | None:
    """The calibrating copy."""
    return next((s for s in _all(record, "calibration") if "bytes" in s.point), None)


def batches_of(record: Record, dtype: str) -> list[Sample]:
    """The times of inference of a dtype, from the smallest batch."""
    found = [s for s in _all(record, "inference") if s.point["dtype"] == dtype]
    return sorted(found, key=lambda s: s.point["batch"])


def _dtypes(record: Record) -> list[str]:
    """Those of which a batch was timed."""
    return [d for d in DTYPES if batches_of(record, d)]


def scatters(record: Record, case: str) -> bool:
    """The windows of the counter scatter: how far is what they measure."""
    return any(s.point.get("case") == case and s.point.get("role") == "window" for s in record.samples)


def calibrates(record: Record, case: str) -> bool:
    """The batches of the line; where a counter was read also product and stream, of which energies are built."""
    roles = {s.point.get("role") for s in record.samples if s.point.get("case") == case}
    return shared_calibrates(record, case) and (counted(record) or "calibration" not in roles)


# Work: operations and bytes


def work(record: Record, point: Mapping[str, Any]) -> tuple[float, float]:
    """Operations and bytes of a batch's forward pass, or of a training step.

    A layer is one product. Between two layers the ReLU reads and writes what it is given. The backward pass has two
    products for each layer, but for the first one, whose input needs no gradient; through each ReLU it reads the
    gradient and the output, and writes. The update reads weights and gradients and writes weights.

    Returns:
        FLOP and B. Every operand counts once for each operation that reads or writes it, as if none stayed in a cache.
    """
    products, elements = _kernels(record, point)
    flops, traffic = _one_product(record, point)
    size = catalog.BYTES_PER_ELEMENT[str(point["dtype"])]
    return products * flops, products * traffic + elements * size


def _one_product(record: Record, point: Mapping[str, Any]) -> tuple[float, float]:
    """FLOP and B of a layer's product."""
    width = record.spec["width"]
    sizes: dict[str, Any] = {"m": point["batch"], "n": width, "k": width}
    size = catalog.BYTES_PER_ELEMENT[str(point["dtype"])]
    return (
        float(roofline.matmul_flops(**sizes)),
        float(roofline.matmul_bytes(**sizes, bytes_per_element=size)),
    )


def _kernels(record: Record, point: Mapping[str, Any]) -> tuple[float, float]:
    """How many products, and how many elements everything else reads and writes."""
    width, layers = float(record.spec["width"]), float(record.spec["layers"])  # type: ignore[arg-type]
    activations = (layers - 1) * float(point["batch"]) * width
    if point["role"] == "inference":
        return layers, 2 * activations
    return 3 * layers - 1, (2 + 3) * activations + _updated(record)


def _updated(record: Record) -> float:
    """How many elements the update reads and writes: every weight and its gradient, and the weight again."""
    return 3 * float(record.spec["layers"]) * float(record.spec["width"]) ** 2  # type: ignore[arg-type]


def rates(record: Record, dtype: str) -> tuple[float, float] | None:
    """FLOP/s of the calibrating product of a dtype and B/s of the stream; None where one was not measured."""
    product, stream = _product(record, dtype), _stream(record)
    if product is None or stream is None:
        return None
    n = product.point["m"]
    flops = float(roofline.matmul_flops(m=n, n=n, k=n))  # type: ignore[arg-type]
    return flops / median(product.values), float(stream.point["bytes"]) / median(stream.values)


def roofline_of(record: Record, point: Mapping[str, Any]) -> float | None:
    """Time of a batch or a step by the roofline of each of its operations, s; None without calibration."""
    found = rates(record, str(point["dtype"]))
    if found is None:
        return None
    products, elements = _kernels(record, point)
    flops, traffic = _one_product(record, point)
    each = roofline.roofline_time(
        flops=flops, bytes_moved=traffic, peak_performance=found[0], memory_bandwidth=found[1], overhead=0.0
    )
    size = catalog.BYTES_PER_ELEMENT[str(point["dtype"])]
    return float(products * each + roofline.memory_time(bytes_moved=elements * size, memory_bandwidth=found[1]))


# Calibration


def line(record: Record, dtype: str) -> tuple[float, float] | None:
    """The time of a batch that does not depend on its size, and that of one sample, s, of a dtype.

    From the two batches that calibrate; None where one was not measured. Neither part is less than zero.
    """
    found = _ends_of_line(record, dtype)
    if len(found) < 2:
        return None
    (b0, t0), (b1, t1) = ((float(s.point["batch"]), median(s.values)) for s in found)  # type: ignore[arg-type]
    each = max(0.0, (t1 - t0) / (b1 - b0))
    fixed = t0 - each * b0
    return (fixed, each) if fixed >= 0 else (0.0, t1 / b1)


def _ends_of_line(record: Record, dtype: str) -> list[Sample]:
    """The batches of a dtype that calibrate, the smaller one first."""
    return [s for s in batches_of(record, dtype) if s.point["calibrates"]]


def _forward(record: Record, point: Mapping[str, Any]) -> Sample | None:
    """The forward pass of a training step's batch and dtype."""
    return next((s for s in batches_of(record, str(point["dtype"])) if s.point["batch"] == point["batch"]), None)


def idle_power(record: Record) -> float | None:
    """W; None where it was not measured."""
    found = _all(record, "idle")
    return median(found[0].values) if found else None


def constants(record: Record) -> Constants | None:
    """What the energies are built from; None where idle power or the stream's energy was not measured or says nothing.

    A dtype is left out whose product took no more than the idle power and its traffic.
    """
    _check(record)
    idle, stream = idle_power(record), _stream(record)
    taken = _energy(record, stream.point) if stream else None
    if idle is None or stream is None or taken is None:
        return None
    above = float(formulas.energy_above_idle(energy=taken, idle_power=idle, duration=median(stream.values)))
    if not above:
        return None
    per_byte, per_flop = above / float(stream.point["bytes"]), {}
    for dtype in DTYPES:
        product = _product(record, dtype)
        joules = _energy(record, product.point) if product else None
        if product is None or joules is None:
            continue
        sizes: dict[str, Any] = dict.fromkeys(("m", "n", "k"), product.point["m"])
        traffic = roofline.matmul_bytes(**sizes, bytes_per_element=catalog.BYTES_PER_ELEMENT[dtype])
        above = float(formulas.energy_above_idle(energy=joules, idle_power=idle, duration=median(product.values)))
        if (rest := above - per_byte * float(traffic)) > 0:
            per_flop[dtype] = rest / float(roofline.matmul_flops(**sizes))
    return Constants(idle, per_byte, per_flop)


def calibration(record: Record) -> dict[str, float]:
    """The measured value of each of `CALIBRATION`, where there is one.

    "busy-power" is the mean power of the product in fp32; the energies of a sample are those of the smallest and the
    largest batch in fp32; "saving-largest-batch" is the time of a sample in the first over that in the second, and
    "saving-bf16" that in fp32 over that in bf16, both at the largest batch.
    """
    _check(record)
    found: dict[str, float] = {}
    if (idle := idle_power(record)) is not None:
        found["idle-power"] = idle
    product = _product(record, "fp32")
    if product and (joules := _energy(record, product.point)):
        found["busy-power"] = float(formulas.mean_power(energy=joules, duration=median(product.values)))
    if known := constants(record):
        found["energy-per-byte"] = known.per_byte
        if "fp32" in known.per_flop:
            found["energy-per-flop"] = known.per_flop["fp32"]
    batches = batches_of(record, "fp32")
    if len(batches) > 1:
        for name, sample in (("smallest", batches[0]), ("largest", batches[-1])):
            if joules := _energy(record, sample.point):
                found[f"energy-per-sample-{name}"] = joules / float(sample.point["batch"])
        found["saving-largest-batch"] = _each(batches[0]) / _each(batches[-1])
    narrow = batches_of(record, "bf16")
    if batches and narrow and batches[-1].point["batch"] == narrow[-1].point["batch"]:
        found["saving-bf16"] = _each(batches[-1]) / _each(narrow[-1])
    return {name: found[name] for name in CALIBRATION if name in found}


def _each(sample: Sample) -> float:
    """The time of one sample of a batch, s."""
    return median(sample.values) / float(sample.point["batch"])


def band(record: Record, sample: Sample) -> str:
    """Modelled energy of one sample of a batch or a step, low to high, as text; "" where it was counted or none is."""
    found = None if counted(record) else modelled_energy(record, _each(sample))
    return f"{span(found, JOULE)}, modelled" if found else ""


def without(record: Record) -> str:
    """What takes the place of measured energy in this run, why, and how to get it; "" where it was measured."""
    if counted(record):
        return ""
    lines = [_unmeasured(record)]
    if second := modelled_energy(record, 1.0):
        of = f" of {record.energy.of}" if record.energy.of else ""
        lines.append(
            f"Modelled: {span(second, WATT)} while it works, {LOADS[0]:g} to {LOADS[1]:g} times the rated power{of}."
        )
        lines.append("The band is the same multiple of every time, so it says of no two cases which takes more power.")
    else:
        lines.append("No energy is modelled either: the rated power of this device is not known.")
    return "\n".join([*lines, _mend(record)])


def _unmeasured(record: Record) -> str:
    """That this run has no counter, and why."""
    why = str(record.spec.get("why") or record.energy.why or "the record does not say why").rstrip(".")
    return f"Energy was not measured: {why}."


def _mend(record: Record) -> str:
    """How to get a measured number."""
    accounting = "or ask Slurm, where it accounts for energy (sacct -o ConsumedEnergyRaw)"
    if record.environment.kind == "cpu":
        return (
            "To measure it: have the administrator open energy_uj in /sys/class/powercap, where there is one; run the "
            f"lab on a GPU; {accounting}."
        )
    return f"To measure it: ask for a whole GPU, V100 or later; {accounting}."


def calibration_text(record: Record) -> str:
    """Rates of the device, the two batches of each dtype that calibrate, and the power where it was measured."""
    _check(record)
    lines, table = [], []
    known = constants(record)
    for sample in _all(record, "calibration"):
        point, seconds = sample.point, median(sample.values)
        if "m" in point:
            n: Any = point["m"]
            rate = show(float(roofline.matmul_flops(m=n, n=n, k=n)) / seconds, FLOP_PER_SECOND)
            each = known.per_flop.get(str(point["dtype"])) if known else None
            constant = show(each, JOULE_PER_FLOP) if each else ""
        else:
            rate = show(float(point["bytes"]) / seconds, BYTE_PER_SECOND)
            constant = show(known.per_byte, JOULE_PER_BYTE) if known else ""
        joules = _energy(record, point)
        power = show(float(formulas.mean_power(energy=joules, duration=seconds)), WATT) if joules else ""
        table.append([str(point["case"]), show(seconds, SECOND), rate, power, constant])
    if table:
        lines.append(_columns(["calibration", "time", "rate", "power", "above idle"], table))
    table = []
    for dtype in _dtypes(record):
        for sample in _ends_of_line(record, dtype):
            table.append([str(sample.point["case"]), show(median(sample.values), SECOND), show(_each(sample), SECOND)])
    if table:
        lines.append(_columns(["batches of the line", "time", "a sample"], table))
    found = calibration(record)
    if "saving-largest-batch" in found:
        first, last = (batches_of(record, "fp32")[i].point["batch"] for i in (0, -1))
        said = (
            f"A sample in fp32 takes {found['saving-largest-batch']:.3g} times as long in a batch of {first:,} as in "
            f"one of {last:,}"
        )
        if {"energy-per-sample-smallest", "energy-per-sample-largest"} <= set(found):
            small, large = (show(found[f"energy-per-sample-{n}"], JOULE) for n in ("smallest", "largest"))
            said += f". Its energy is {small} against {large}"
        lines.append(f"{said}.")
    if "saving-bf16" in found:
        last = batches_of(record, "fp32")[-1].point["batch"]
        lines.append(f"In a batch of {last:,} it takes {found['saving-bf16']:.3g} times as long in fp32 as in bf16.")
    if counted(record):
        lines += _counter_text(record, known)
    else:
        lines.append(without(record))
        lines.append(f"Not answered by this run: {', '.join(n for n in CALIBRATION if n not in found)}.")
    if named := [c for c in doubted_cases(record) if _role(record, c) == "calibration"]:
        lines.append(f"Disturbed while measured, as the record warns: {', '.join(named)}.")
    return "\n".join(lines)


def _columns(head: list[str], rows: list[list[str]]) -> str:
    """A table without the columns that hold nothing."""
    kept = [i for i in range(len(head)) if i == 0 or any(r[i] for r in rows)]
    return columns([head[i] for i in kept], [[r[i] for i in kept] for r in rows], range(1, len(kept)))


def _role(record: Record, case: str) -> object:
    return next((s.point.get("role") for s in record.samples if s.point.get("case") == case), None)


def _counter_text(record: Record, known: Constants | None) -> Iterator[str]:
    """Idle power, the constants, and how far the counter is right."""
    idle, window = idle_power(record), record.spec.get("window")
    source = COUNTERS[str(record.spec["counter"])]
    if idle is not None:
        yield f"Idle power: {show(idle, WATT)}, measured by {source}'s counter."
    if known is None:
        yield (
            "No energy is predicted: idle power or the stream's energy is missing, or the stream took no more than the "
            "idle power."
        )
    elif lacking := [d for d in _dtypes(record) if d not in known.per_flop]:
        yield (
            f"No energy per operation in {', '.join(lacking)}: "
            + ("that of fp32 takes its place." if "fp32" in known.per_flop else "no energy is predicted there.")
        )
    if positive(window):
        bound = float(formulas.counter_error(update_period=_period(record), window=float(window)))  # type: ignore[arg-type]
        yield (
            f"The counter changes every {show(_period(record), SECOND)}: in windows of {show(float(window), SECOND)} "  # type: ignore[arg-type]
            f"an energy is right within {unsigned(bound)}."
        )
    if record.energy.shared:
        yield f"Shared: {record.energy.shared}."


# Prediction of energy


def expected_energy(record: Record, point: Mapping[str, Any], seconds: float) -> tuple[float, float, float] | None:
    """Energy of a batch or a step that takes so long: of its operations, of its traffic, and constant, J.

    None where the constants are not known. A dtype without its own energy per operation is given that of fp32.
    """
    known = constants(record)
    per_flop = known.per_flop.get(str(point["dtype"]), known.per_flop.get("fp32")) if known else None
    if known is None or per_flop is None:
        return None
    flops, traffic = work(record, point)
    costs = {"energy_per_flop": per_flop, "energy_per_byte": known.per_byte, "constant_power": known.idle}
    operations, moving, constant = (
        float(
            formulas.energy_of_work(
                flops=flops, bytes_moved=traffic, duration=seconds, **(dict.fromkeys(costs, 0.0) | {only: costs[only]})
            )
        )
        for only in costs
    )
    return operations, moving, constant


def windows(record: Record) -> list[Windows]:
    """The windows by their length, from the shortest, against the mean power of the longest; empty without a counter.

    Raises:
        EfflabError: times are missing, or the counter did not move in the longest ones.
    """
    _check(record)
    found = sorted(_all(record, "window"), key=lambda s: s.point["length"])
    if not found:
        return []
    took = {str(s.point["case"]): values_of(record, s.point, "time") for s in found}
    for sample in found:
        case = str(sample.point["case"])
        if len(took[case]) != len(sample.values):
            raise EfflabError(f"record {record.id}: {case} needs a time for each gain. Measure it again.")
    longest = found[-1]
    power = sum(longest.values) / sum(took[str(longest.point["case"])])
    if not power > 0:
        raise EfflabError(f"record {record.id}: the counter did not move in {longest.point['case']}. Measure it again.")
    result = []
    for sample in found:
        case, seconds = str(sample.point["case"]), took[str(sample.point["case"])]
        furthest = max(abs(gain / t / power - 1) for gain, t in zip(sample.values, seconds, strict=True))
        middle = median(seconds)
        bound = float(formulas.counter_error(update_period=_period(record), window=middle))
        result.append(Windows(case, float(sample.point["length"]), middle, list(sample.values), furthest, bound))
    return result


def period_seen(record: Record) -> float | None:
    """How often the counter changes by the windows themselves, s; None where none is shorter than its period.

    A window in which the counter moved once gained what the load takes in a period. That it moved once is sure where
    it did not move in other windows of the length.
    """
    found = windows(record)
    if not found or not found[0].still or found[0].still == len(found[0].gains):
        return None
    longest = _all(record, "window")
    sample = max(longest, key=lambda s: s.point["length"])
    power = sum(sample.values) / sum(values_of(record, sample.point, "time"))
    return median([gain for gain in found[0].gains if gain]) / power


def trusted(record: Record) -> float | None:
    """The shortest length of window, s, from which on no repeat was off by more than `TOLERANCE`; None without one."""
    found = None
    for one in reversed(windows(record)):
        if one.deviation > TOLERANCE:
            break
        found = one.length
    return found


# Reconciliation


def points(record: Record, roles: tuple[str, ...] = ROLES) -> list[Row]:
    """Every measured number of a record with its prediction, in the order measured; what calibrates has no row.

    A case with a time and an energy has two rows. `ENDS` among the roles stands for a part of "inference". Samples that
    failed have no row, nor have those whose calibration did.

    Raises:
        EfflabError: the record is of another topic, or a point or a value is damaged.
    """
    _check(record)
    found: list[Row] = []
    try:
        spans = {w.case: w for w in windows(record)} if "window" in roles else {}
        wanted = [r for r in ROLES if r in roles or (r == "inference" and ENDS in roles)]
        for sample in _all(record, *wanted):
            role = sample.point["role"]
            if role == "window":
                made: Iterable[Row | None] = [_window_row(record, spans[str(sample.point["case"])])]
            elif role == "counter":
                made = [_counter_row(record, sample)]
            else:
                made = [_time_row(record, sample), _energy_row(record, sample)]
            found += [row for row in made if row]
    except FormulaError as problem:
        raise EfflabError(f"record {record.id}: {problem} Measure it again.") from None
    return found if "inference" in roles else _ends(found)


def _row(
    sample: Sample, metric: str, unit: Unit, predicted: float, values: list[float], why: Callable[[float], str]
) -> Row:
    point, measured = sample.point, median(values)
    return Row(
        case=str(point["case"]), role=str(point["role"]), metric=metric, dtype=str(point.get("dtype", "")), unit=unit,
        batch=int(point.get("batch", 1)), predicted=predicted, measured=measured, iqr=iqr(values),  # type: ignore[arg-type]
        ratio=measured / predicted, error=error(predicted, measured), explanation=why(measured),
    )  # fmt: skip


def _time_row(record: Record, sample: Sample) -> Row | None:
    """Of a batch that does not calibrate, or of a training step."""
    point, dtype = sample.point, str(sample.point["dtype"])
    if point["role"] == "inference":
        found = line(record, dtype)
        if found is None or point["calibrates"]:
            return None
        batch: Any = point["batch"]
        predicted = batch * float(formulas.time_per_sample(fixed_time=found[0], time_of_one=found[1], batch=batch))
        causes = _why_batch
    else:
        forward = _forward(record, point)
        if forward is None:
            return None
        predicted = float(formulas.step_from_forward(forward_time=median(forward.values)))
        causes = _why_step

    def why(measured: float) -> str:
        scattered = unsteady(sample.values, measured)
        if said := agrees(measured / predicted):
            return joined([said, scattered])
        texts = [*disturbed(record, point["case"], _rests_on(record, point)), *causes(record, point, measured)]
        return joined([*texts, scattered])

    return _row(sample, "time", SECOND, predicted, sample.values, why)


def _rests_on(record: Record, point: Mapping[str, Any]) -> list[str]:
    """The cases that a predicted time is built from."""
    if point["role"] == "inference":
        return [str(s.point["case"]) for s in _ends_of_line(record, str(point["dtype"]))]
    forward = _forward(record, point)
    return [str(forward.point["case"])] if forward else []


def _why_batch(record: Record, point: Mapping[str, Any], measured: float) -> Iterator[str]:
    """Why a batch does not lie on the line, by the batches beside it and by its roofline."""
    found, batch = line(record, str(point["dtype"])), point["batch"]
    assert found is not None
    others = [(s.point["batch"], median(s.values)) for s in batches_of(record, str(point["dtype"]))]
    quicker = [(b, t) for b, t in others if b > batch and t < measured / CLEAR]  # type: ignore[operator]
    slower = [(b, t) for b, t in others if b < batch and t > measured * CLEAR]  # type: ignore[operator]
    above = measured > found[0] + found[1] * batch
    if above and quicker:
        yield f"A batch of {quicker[0][0]:,} takes less, {show(quicker[0][1], SECOND)}. {KERNEL}"
        return
    if not above and slower:
        yield f"A batch of {slower[-1][0]:,} takes longer, {show(slower[-1][1], SECOND)}. {KERNEL}"
        return
    if measured < found[0] / NEAR:
        yield f"It takes less than the {show(found[0], SECOND)} that the fitted line gives to every batch. {KERNEL}"
        return
    by_roofline = roofline_of(record, point)
    if by_roofline and 1 / NEAR <= measured / by_roofline <= NEAR:
        yield (
            f"The roofline, with the rates of the product and of the stream, gives {show(by_roofline, SECOND)}."
            + ("" if above else " Consistent with traffic and operations that overlap, where the line adds them.")
        )
        return
    flops, traffic = work(record, point)
    yield (
        f"It reaches {show(flops / measured, FLOP_PER_SECOND)} and {show(traffic / measured, BYTE_PER_SECOND)}"
        + (f"; the roofline gives {show(by_roofline, SECOND)}" if by_roofline else "")
        + f". {NOTHING}"
    )


def _why_step(record: Record, point: Mapping[str, Any], measured: float) -> Iterator[str]:
    """Why a step takes another time than three forward passes: what the update moves, at the stream's rate."""
    forward, stream = _forward(record, point), _stream(record)
    assert forward is not None
    seconds = median(forward.values)
    if (rest := measured - seconds) > 0:
        yield f"Backward pass and update take {rest / seconds:.2g} times as long as the forward pass, not twice."
    if stream and measured > formulas.step_from_forward(forward_time=seconds):
        moved = _updated(record) * catalog.BYTES_PER_ELEMENT[str(point["dtype"])]
        bandwidth = float(stream.point["bytes"]) / median(stream.values)  # type: ignore[arg-type]
        update = float(roofline.memory_time(bytes_moved=moved, memory_bandwidth=bandwidth))
        whole = float(formulas.step_from_forward(forward_time=seconds)) + update
        yield f"The update moves {show(moved, BYTE)}, {show(update, SECOND)} at the stream's rate."
        if agrees(measured / whole):
            yield f"With it the prediction is {show(whole, SECOND)}."
            return
    yield NOTHING


def _energy_row(record: Record, sample: Sample) -> Row | None:
    """Of a batch or a step, where there is a counter; with the time that it took."""
    values, seconds = values_of(record, sample.point, "energy"), median(sample.values)
    parts = expected_energy(record, sample.point, seconds) if values else None
    if parts is None:
        return None
    predicted = sum(parts)
    return _row(sample, "energy", JOULE, predicted, values, functools.partial(_why_energy, record, sample, parts))


def _why_energy(record: Record, sample: Sample, parts: Sequence[float], measured: float) -> str:
    point, predicted = sample.point, sum(parts)
    dtype, known = str(point["dtype"]), constants(record)
    assert known is not None
    borrowed = "" if dtype in known.per_flop else (
        f"Its operations are charged as in fp32: {dtype} has no product of its own in this record."
    )  # fmt: skip
    if said := agrees(measured / predicted):
        return joined([said, borrowed])
    bound = _bound(record)
    texts = [*disturbed(record, point["case"], [])]
    if bound and abs(measured / predicted - 1) <= bound:
        texts.append(f"Within the {unsigned(bound)} that the counter's period allows.")
        return joined([*texts, borrowed])
    texts.append(
        f"Predicted: operations {show(parts[0], JOULE)}, traffic {show(parts[1], JOULE)}, idle power "
        f"{show(parts[2], JOULE)}."
    )
    busy, seconds = measured - parts[2], median(sample.values)
    if measured > predicted:
        texts.append(
            f"{show(measured / seconds, WATT)} were drawn, {show(known.idle, WATT)} of them idle. Consistent with "
            "power that a busy device takes beside its operations and its traffic."
        )
    elif busy < parts[1] and parts[1] > parts[0]:
        texts.append("Consistent with operands that stay in a cache, and are counted as traffic.")
    return joined([*texts, borrowed])


def _bound(record: Record) -> float | None:
    """How far an energy of this run may be off by the counter's period, relative; None without a counter."""
    window = record.spec.get("window")
    if not counted(record) or not positive(window):
        return None
    return float(formulas.counter_error(update_period=_period(record), window=float(window)))  # type: ignore[arg-type]


def _counter_row(record: Record, sample: Sample) -> Row | None:
    """The counter against power readings, added up over the same window."""
    added = values_of(record, sample.point, "integrated")
    if not added:
        return None
    predicted, seconds = median(added), median_of(record, sample.point, "time")

    def why(measured: float) -> str:
        off = abs(measured / predicted - 1)
        said = agrees(measured / predicted, 1.1, "The readings give what the counter gained:")
        said = said.replace(": predicted", "") if said else ""
        if seconds is None:
            return joined([said])
        bound = float(formulas.counter_error(update_period=_period(record), window=seconds))
        window = f"In a window of {show(seconds, SECOND)} the counter's period allows {unsigned(bound)}"
        if off <= bound:
            return joined([said, f"{window}, and the two are {unsigned(off)} apart."])
        return joined(
            [said, f"{window}; the two are {unsigned(off)} apart. Consistent with power readings that are means over "
             "another interval, or that a sensor takes a part of the time."]
        )  # fmt: skip

    return _row(sample, "energy", JOULE, predicted, sample.values, why)


def _window_row(record: Record, one: Windows) -> Row | None:
    """The deviation of a length of window against its bound; None where no repeat deviates."""
    if not one.deviation:
        return None
    repeats = len(one.gains)
    still = f"In {one.still} of {repeats} repeats the counter did not move. " if one.still else ""
    if one.deviation <= one.bound:
        said = (
            f"{still}Within the bound: one window of {show(one.seconds, SECOND)} may be off by {unsigned(one.bound)}."
        )
    else:
        needed = one.deviation * one.seconds
        said = (
            f"{still}Beyond the bound: a period of {show(needed, SECOND)} would allow it, "
            f"{show(_period(record), SECOND)} is assumed. Consistent with a counter that changes less often, or with "
            "a load that was not steady."
        )
    return Row(
        case=one.case, role="window", metric="deviation", dtype="", unit=NUMBER, batch=1, predicted=one.bound,
        measured=one.deviation, iqr=0.0, ratio=one.deviation / one.bound, error=error(one.bound, one.deviation),
        explanation=said,
    )  # fmt: skip


def missing(record: Record) -> list[str]:
    """One sentence for every case without a result, calibration included, and for every energy that is not there."""
    _check(record)
    found = []
    for sample in record.samples:
        role = str(sample.point.get("role"))
        if sample.status == "ok" or role not in METRIC:
            continue
        if sample.metric == METRIC[role]:
            found.append(no_result(sample))
        elif sample.metric in _UNITS:
            found.append(f"{sample.point['case']} has no {sample.metric.replace('_', ' ')}: {sample.message}")
    return found


# In words and tables

KINDS = (
    (WORK, "time", "times of batches and steps. Median error of the prediction"),
    (WORK, "energy", "energies of batches and steps. Median error of the prediction"),
    (("counter",), "energy", "case, counted and added up. Difference"),
)


def summary(record: Record) -> str:
    """Median and worst error of times and energies, the windows that can be trusted, and which cases are missing."""
    rows, parts = points(record), []
    for roles, metric, words in KINDS:
        some = [r for r in rows if r.role in roles and r.metric == metric]
        if not some:
            continue
        worst = max(some, key=lambda r: abs(math.log(r.ratio)))
        said = f"{len(some)} {words} {unsigned(median([abs(r.error) for r in some]))}."
        if len(some) > 1:
            said += (
                f" Worst: {worst.case}, predicted {show(worst.predicted, worst.unit)}, measured "
                f"{show(worst.measured, worst.unit)} ({signed(worst.error)})."
            )
        parts.append(f"{said} {worst.explanation}")
    if not parts:
        parts.append("No case of this record could be predicted.")
    if found := windows(record):
        parts.append(_trust_text(record, found))
    if record.scale == "smoke":
        parts.insert(0, "Smoke scale: its sizes are too small to say anything about the device.")
    if absent := missing(record):
        parts.append(f"Not in it: {'; '.join(absent)}.")
    return " ".join(parts)


def _trust_text(record: Record, found: Sequence[Windows]) -> str:
    """From which length on a window can be trusted, by the bound and as measured."""
    shortest = float(formulas.shortest_window(update_period=_period(record), tolerance=TOLERANCE))
    seen, least = period_seen(record), trusted(record)
    within = sum(w.deviation <= w.bound for w in found)
    said = (
        f"Windows: {within} of {plural(len(found), 'length')} stay within the bound. For {TOLERANCE:.0%} it asks for "
        f"{show(shortest, SECOND)}; "
        + (
            f"as measured no repeat from {show(least, SECOND)} on was further off."
            if least
            else "as measured no length was that near in every repeat."
        )
    )
    return said + (f" The counter changed every {show(seen, SECOND, 2)}, by its own steps." if seen else "")


def _ends(rows: Sequence[Row]) -> list[Row]:
    """Of the batches of a dtype the smallest and the largest, of the rest all."""
    found: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if row.role == "inference":
            found.setdefault((row.metric, row.dtype), []).append(row)
    kept = {id(r) for some in found.values() for r in (some[0], some[-1])}
    return [r for r in rows if r.role != "inference" or id(r) in kept]


def table(record: Record) -> tuple[list[str], list[list[str]], tuple[int, ...]]:
    """Head, rows of text and the indices of numeric columns. Of each dtype the smallest and the largest batch."""
    return _table(record, points(record, (ENDS, *ROLES[1:])))


def _table(record: Record, rows: Sequence[Row]) -> tuple[list[str], list[list[str]], tuple[int, ...]]:
    cells: dict[str, list[str]] = {
        name: [] for name in ("case", "predicted", "measured", "IQR", "error", "a sample takes", "why")
    }
    for row in rows:
        bound = row.metric == "deviation"
        found = (
            row.case,
            f"at most {unsigned(row.predicted)}" if bound else show(row.predicted, row.unit),
            unsigned(row.measured) if bound else show(row.measured, row.unit),
            "" if bound else f"{row.iqr / row.measured:.0%}",
            "" if bound else signed(row.error),
            _of_a_sample(row),
            row.explanation,
        )
        for name, cell in zip(cells, found, strict=True):
            cells[name].append(cell)
    return with_energy(record, rows, table_of(cells, ("a sample takes",)))


def _of_a_sample(row: Row) -> str:
    """The energy of one sample, where the row is about energies as counted."""
    return show(row.measured / row.batch, JOULE) if row.role in WORK and row.metric == "energy" else ""


def text(record: Record) -> str:
    """Everything in plain text, the same for the same record: calibration, all rows, reasons, summary."""
    parts, rows = [calibration_text(record), _method(record)], points(record)
    groups = [[r for r in rows if r.role in roles and r.metric == metric] for roles, metric, _ in KINDS]
    for some in (*groups, [r for r in rows if r.role == "window"]):
        if not some:
            continue
        head, body, numeric = _table(record, some)
        numeric = tuple(i for i in numeric if i < len(head) - 1)
        parts.append(columns(head[:-1], [r[:-1] for r in body], numeric))
        parts.append("\n".join(f"{r[0]}: {r[-1]}" for r in body if not r[-1].startswith("As predicted")))
    if limits := _limit_text(record):
        parts.append(limits)
    if named := [c for c in doubted_cases(record) if _role(record, c) in ROLES]:
        parts.append(f"Disturbed while measured, as the record warns: {', '.join(named)}.")
    parts.append(summary(record))
    return "\n\n".join(p for p in parts if p)


def _method(record: Record) -> str:
    """What the predictions are made of."""
    ends = " and ".join(f"{b:,}" for b in record.spec["line"])  # type: ignore[union-attr]
    said = (
        f"Times of batches are predicted by the line through those of {ends}; that of a training step is three times "
        "its forward pass."
    )
    if counted(record):
        said += " Energies are predicted for the time that was measured, from idle power, stream and product."
    return said


def power_limits(record: Record) -> dict[str, float]:
    """The power limits that the driver names, W: "limit" in force, "limit_default", "limit_least", "limit_most"."""
    _check(record)
    return {
        s.metric: median(s.values) for s in record.samples
        if s.point.get("role") == "limit" and s.status == "ok" and s.metric in _UNITS
    }  # fmt: skip


def _limits(record: Record) -> str:
    """The limit in force and those beside it; "" where none was read."""
    found = power_limits(record)
    if "limit" not in found:
        return ""
    names = (("limit_default", "by default"), ("limit_least", "the least"), ("limit_most", "the most"))
    others = [f"{show(found[n], WATT)} {words}" for n, words in names if n in found]
    return ", ".join([f"{show(found['limit'], WATT)} in force", *others]) + "."


def _limit_text(record: Record) -> str:
    return f"Power limit: {said}" if (said := _limits(record)) else ""


# What the lab prints


def cases(points: Iterable[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The points of the cases that a learner can predict, by name: times of batches and of training steps.

    The two batches of a dtype that calibrate are left out.
    """
    return {str(p["case"]): p for p in points if p.get("role") in WORK and not p.get("calibrates")}


def describe(cases: Mapping[str, dict[str, Any]], names: Sequence[str] = ()) -> str:
    """A table of what the named cases are; of the middle batches and the training steps if none is named."""
    if not names:
        sizes = sorted({p["batch"] for p in cases.values() if p["role"] == "inference"})
        middle = sizes[len(sizes) // 2] if sizes else None
        names = [n for n, p in cases.items() if p["role"] == "training" or p["batch"] == middle]
    rows = []
    for name in names:
        p = cases[name]
        what = "a forward pass" if p["role"] == "inference" else "a training step: forward, backward, update"
        rows.append([name, f"time of {what}, a batch of {p['batch']:,} in {p['dtype']}"])
    return columns(["case", "what"], rows)


def sweep(record: Record, name: str) -> str:
    """A table of a series: "fp32 by batch" and so on, "by dtype" at the largest batch, "power" or "windows".

    "power" and "windows" need a counter; without one they say what holds instead.

    Raises:
        EfflabError: the record has no series of that name; names the ones it has.
    """
    _check(record)
    series: dict[str, Callable[[Record], str]] = {
        f"{d} by batch": functools.partial(_by_batch, dtype=d) for d in _dtypes(record)
    }
    series |= {"by dtype": _by_dtype, "power": _power_text, "windows": _windows_text}
    if name not in series:
        raise unknown("series", name, series)
    return series[name](record)


def _cost(record: Record, sample: Sample) -> list[str]:
    """Power of a case, energy of a sample as counted, and modelled."""
    seconds, batch = median(sample.values), float(sample.point["batch"])
    joules = _energy(record, sample.point)
    if joules is not None:
        return [
            show(float(formulas.mean_power(energy=joules, duration=seconds)), WATT),
            show(joules / batch, JOULE),
            "",
        ]
    return ["", "", band(record, sample).removesuffix(", modelled")]


def _by_batch(record: Record, dtype: str) -> str:
    rows = {r.case: r for r in points(record, ("inference",)) if r.metric == "time"}
    body = []
    for sample in batches_of(record, dtype):
        row = rows.get(str(sample.point["case"]))
        body.append(
            [f"{sample.point['batch']:,}", show(row.predicted, SECOND) if row else "calibrates",
             show(median(sample.values), SECOND), signed(row.error) if row else "", show(_each(sample), SECOND),
             *_cost(record, sample)]
        )  # fmt: skip
    return _columns(["batch", "predicted", "measured", "error", "a sample", "power", "energy", "modelled"], body)


def _by_dtype(record: Record) -> str:
    body, first = [], None
    for dtype in _dtypes(record):
        sample = batches_of(record, dtype)[-1]
        first = first or (_each(sample), per_sample(record, sample))
        joules = per_sample(record, sample)
        body.append(
            [dtype, f"{sample.point['batch']:,}", show(_each(sample), SECOND), f"{_each(sample) / first[0]:.0%}",
             *_cost(record, sample), f"{joules / first[1]:.0%}" if joules and first[1] else ""]
        )  # fmt: skip
    head = ["dtype", "batch", "a sample", "of the first", "power", "energy", "modelled", "of the first's energy"]
    return _columns(head, body)


def per_sample(record: Record, sample: Sample) -> float | None:
    """The energy of one sample of a batch or a step as counted, J; None where it was not."""
    joules = _energy(record, sample.point)
    return joules / float(sample.point["batch"]) if joules is not None else None


def powers(record: Record) -> dict[str, float]:
    """Mean power of every case that was counted, W, idle included, by name."""
    _check(record)
    found = {}
    for sample in _all(record, "idle", "calibration", *WORK):
        case = str(sample.point["case"])
        if sample.point["role"] == "idle":
            found[case] = median(sample.values)
        elif (joules := _energy(record, sample.point)) is not None:
            found[case] = float(formulas.mean_power(energy=joules, duration=median(sample.values)))
    return found


def _power_text(record: Record) -> str:
    found, idle = powers(record), idle_power(record)
    if not found:
        return "\n".join(without(record).splitlines()[:2]) or "No power was measured."
    limit = power_limits(record).get("limit")
    body = [
        [case, show(watts, WATT), show(watts - idle, WATT) if idle is not None and watts > idle else "",
         f"{watts / limit:.0%}" if limit else ""]
        for case, watts in found.items()
    ]  # fmt: skip
    lines = [_columns(["case", "power", "above idle", "of the limit"], body)]
    lines += [_limit_text(record)] if limit else []
    lines += [f"Shared: {record.energy.shared}."] if record.energy.shared else []
    return "\n".join(lines)


def _windows_text(record: Record) -> str:
    found = windows(record)
    if not found:
        why = "" if counted(record) else f" {_unmeasured(record)}"
        return f"No window was measured.{why} The bound is any counter's: its period over the window's length."
    body = [
        [show(w.length, SECOND), f"{len(w.gains)}", f"{w.still}", unsigned(w.bound), unsigned(w.deviation)]
        for w in found
    ]
    head = ["window", "repeats", "did not move", "bound", "furthest off"]
    return "\n".join([columns(head, body, range(5)), _trust_text(record, found)])


def compare(record: Record, slow: str, fast: str) -> str:
    """What a sample costs in two cases, in time and, where it was counted, in energy; or why that cannot be said.

    Raises:
        EfflabError: a case that is unknown or has no samples.
    """
    _check(record)
    found = {str(s.point["case"]): s for s in _all(record, *WORK)}
    for name in (slow, fast):
        if name not in found:
            gone = [m for m in missing(record) if m.startswith(f"{name} ")]
            if gone:
                return f"{gone[0].rstrip('.')}. So there is nothing to compare."
            raise unknown("compare: case", name, found)
    a, b = found[slow], found[fast]
    joules = [per_sample(record, s) for s in (a, b)]
    lines = [
        f"{name}: {show(_each(s), SECOND)} a sample" + (f", {show(e, JOULE)}" if e is not None else "")
        for name, s, e in ((slow, a, joules[0]), (fast, b, joules[1]))
    ]
    ratio = _each(a) / _each(b)
    lines.append(f"time of a sample: measured {ratio:.3g}×")
    if joules[0] is not None and joules[1] is not None:
        lines.append(f"energy of a sample: measured {joules[0] / joules[1]:.3g}×")
    else:
        lines.append(f"energy of a sample: not measured; {ratio:.3g}× if the power is the same in both")
    return "\n".join(lines)


def evidence(record: Record, case: str) -> str:
    """What a case's prediction consists of, beside what was measured.

    "idle", "counter" and "limit" are cases of a run with a counter; without one they say why there is none.

    Raises:
        EfflabError: the record has no such case, or it was not measured.
    """
    _check(record)
    samples = {str(s.point["case"]): s for s in _all(record, *METRIC)}
    if case not in samples:
        if case in ("idle", "counter", "limit"):
            gone = [m for m in missing(record) if m.startswith(f"{case} ")]
            return gone[0] if gone else f"{case}: {'it was not measured.' if counted(record) else _unmeasured(record)}"
        raise unknown("case", case, samples)
    sample = samples[case]
    rows, role = {r.metric: r for r in points(record) if r.case == case}, sample.point["role"]
    if role in WORK:
        return "\n".join([case, *(f"  {said}" for said in _work_evidence(record, sample, rows))])
    if role == "idle":
        watts = median(sample.values)
        return (
            f"{case}: {show(watts, WATT)} over {plural(len(sample.values), 'window')}, "
            f"{show(watts * 3600, JOULE)} in an hour in which nothing is computed"
        )
    if role == "limit":
        return f"{case}: {_limits(record)}"
    if role == "counter":
        added = median_of(record, sample.point, "integrated")
        lines = [f"{case}: the counter gained {show(median(sample.values), JOULE)}"]
        lines[0] += f", power readings add up to {show(added, JOULE)}" if added is not None else ""
        return "\n".join([*lines, *(f"  {r.explanation}" for r in rows.values())])
    if role == "window":
        one = next(w for w in windows(record) if w.case == case)
        lines = [f"{case}: furthest off {unsigned(one.deviation)}, bound {unsigned(one.bound)}"]
        more = ", …" if len(one.gains) > SHOWN else ""
        lines.append("  gains: " + ", ".join(show(g, JOULE) for g in one.gains[:SHOWN]) + more)
        return "\n".join([*lines, *(f"  {r.explanation}" for r in rows.values())])
    return f"{case}: {show(median(sample.values), SECOND)}; it calibrates"


def _work_evidence(record: Record, sample: Sample, rows: Mapping[str, Row]) -> Iterator[str]:
    point, seconds = sample.point, median(sample.values)
    flops, traffic = work(record, point)
    if row := rows.get("time"):
        yield f"time: predicted {show(row.predicted, SECOND)}, measured {show(seconds, SECOND)}. {row.explanation}"
    else:
        yield f"time: measured {show(seconds, SECOND)}; it calibrates"
    found = line(record, str(point["dtype"]))
    if found and point["role"] == "inference":
        yield f"line: {show(found[0], SECOND)} whatever the batch, {show(found[1], SECOND)} for each sample"
    if by_roofline := roofline_of(record, point):
        yield (
            f"roofline: {show(by_roofline, SECOND)} for {flops:.3g} FLOP and {show(traffic, BYTE)} at the rates of "
            "the product and of the stream"
        )
    if row := rows.get("energy"):
        parts = expected_energy(record, point, seconds)
        assert parts is not None
        yield f"energy: predicted {show(row.predicted, JOULE)}, measured {show(row.measured, JOULE)}. {row.explanation}"
        yield (
            f"of it predicted: operations {show(parts[0], JOULE)}, traffic {show(parts[1], JOULE)}, idle power "
            f"{show(parts[2], JOULE)}"
        )
        yield f"a sample: {show(row.measured / row.batch, JOULE)}; mean power {show(row.measured / seconds, WATT)}"
    elif modelled := band(record, sample):
        yield f"a sample: {modelled}, not measured"
    elif (joules := per_sample(record, sample)) is not None:
        yield f"a sample: {show(joules, JOULE)}; it is not predicted"
    else:
        yield "energy: neither measured nor modelled"


__all__ = [
    "BASE",
    "CALIBRATION",
    "DRAWN",
    "LIMITS",
    "PICTURES",
    "Constants",
    "Row",
    "Windows",
    "answers",
    "asked",
    "band",
    "banner",
    "batches_of",
    "calibrates",
    "calibration",
    "calibration_text",
    "cases",
    "compare",
    "constants",
    "counted",
    "datasheet",
    "describe",
    "evidence",
    "expected_energy",
    "idle_power",
    "line",
    "missing",
    "per_sample",
    "period_seen",
    "points",
    "power_limits",
    "powers",
    "rates",
    "roofline_of",
    "scatters",
    "summary",
    "sweep",
    "table",
    "text",
    "trusted",
    "windows",
    "without",
    "work",
]  # fmt: skip
