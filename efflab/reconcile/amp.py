"""Mixed precision against a recorded run: time, memory, gradients and the loss scale.

- Time of a step: the step in FP32, the share of its matrix products by a profile, and by how much products and
  everything else, replayed alone, are faster in fewer bits. Where the catalog knows the device, also with the speedup
  that its roofline gives the products and nothing else.
- Time of recomputation and of accumulation: the step and one more pass through the layers; so many microbatches and
  one update.
- Memory: what the layers keep, by the formulas, and the 16-bit copies of their weights.
- Gradients of microbatches against those of one batch: the rounding of both, or the mistake.
- The loss scale: the rule of torch.amp.GradScaler, given which steps overflowed.

What calibrates is not predicted, and loss curves are not: they are compared with the one in FP32. Where prediction and
measurement part, the explanation says what the record holds; a cause that it does not hold stands behind
"consistent with".
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from efflab import catalog
from efflab.errors import EfflabError, unknown
from efflab.formulas import amp as formulas
from efflab.formulas import memory as bytes_of
from efflab.formulas import precision as rounding
from efflab.formulas import roofline, transformer
from efflab.formulas.namespace import FormulaError
from efflab.reconcile import (
    LARGEST,
    NEAR,
    NOTHING,
    Compared,
    agrees,
    answered,
    check_values,
    columns,
    damaged,
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
from efflab.reconcile import banner as banner
from efflab.reconcile import calibrates as calibrates
from efflab.reconcile import datasheet as datasheet
from efflab.reconcile import scatters as scatters
from efflab.reconcile.precision import DECODER, MULTIPLIES, parameter_count
from efflab.records import Prediction, Record, Sample, iqr, median
from efflab.units import BYTE, NAT, NUMBER, SECOND, UNITS, Unit, show

PRECISIONS = ("fp32", "tf32", "bf16", "fp16")
NARROW = ("bf16", "fp16")  # what torch.amp.autocast computes in
TIMES = ("step", "recomputation", "accumulated")
ROLES = (*TIMES, "memory", "equivalence", "scale")
METRIC = dict.fromkeys(TIMES, ("time", "s")) | {
    "memory": ("memory", "B"), "equivalence": ("error", ""), "curve": ("loss", "nats"), "scale": ("scale", ""),
}  # fmt: skip
WEIGHT = "token_weight"  # what a case of role "equivalence" measures that is not an error

LIMITS: tuple[str, ...] = ()
CALIBRATION: dict[str, tuple[str, Unit]] = {"matmul-share": ("share", NUMBER)}
CALIBRATION |= {f"speedup-{p}": ("speedup", NUMBER) for p in ("bf16", "fp16", "tf32")}
BASE: tuple[str, ...] = ("step-fp32", "share-fp32")  # what every prediction rests on
PICTURES = ("amp", "curves", "scale", "memory", "errors")
DRAWN = (*TIMES, "memory")

PARTS = ("weights", "gradients", "optimizer", "activations", "copies", "outside")
FORMATS = {"fp32": "FP32", "bf16": "BF16", "fp16": "FP16"}  # of the catalog
SHORT = 10e-6  # s; operations that take less each are mostly overhead
ENDING = 0.1  # the share of a run over whose last losses the mean is taken
BEHIND = 0.1  # a run that has lost more than this share of what FP32 gained falls behind it


@dataclass(frozen=True, kw_only=True)
class Row(Compared):
    """One case, predicted and measured.

    Attributes:
        precision: as in the sample.
        datasheet: the time with the products' speedup by the data sheet, s; None where there is none.
    """

    precision: str
    datasheet: float | None


@dataclass(frozen=True)
class Curve:
    """A training run.

    Attributes:
        point: as in the sample.
        losses: of each step, nats per token, up to the last one that was finite.
        diverged_at: the step, from 0, whose loss was not finite; None where there was none.
        zero: at the checked steps, the share of the gradient that is zero, of what is not zero in FP32.
        cast: what the share would be if the gradient in FP32 were scaled and rounded to FP16; empty for other formats.
        overflows: for each step whether a gradient was not finite; empty without a scaler.
        scales: the loss scale before the first step and after each; empty without a scaler.
        largest: at the checked steps, the largest FP16 number of the backward pass, as without loss scale.
    """

    point: dict[str, Any]
    losses: list[float]
    diverged_at: int | None
    zero: list[float]
    cast: list[float]
    overflows: list[bool]
    scales: list[float]
    largest: list[float]

    @property
    def case(self) -> str:
        """Its name."""
        return str(self.point["case"])

    @property
    def last(self) -> float:
        """The mean loss of its last steps, nats."""
        count = max(1, round(ENDING * len(self.losses)))
        return sum(self.losses[-count:]) / count


# Reading a record: a point is the topic's own, so what is read from it is checked here

_SCALER = ("initial_scale", "growth_interval", "growth_factor", "backoff_factor")
_WORDS: dict[str, dict[str, tuple[str, ...]]] = {
    "recomputation": {"recomputation": ("none", "full")},
    "memory": {"recomputation": ("none", "full"), "method": ("counted", "allocator")},
    "equivalence": {"counted": ("all", "uneven")},
    "curve": {"weights": ("fp32", "fp16")},
}
_TRUTHS = {"equivalence": ("divided",), "curve": ("scaler",)}
_NUMBERS = {
    "calibration": DECODER, "step": DECODER, "recomputation": DECODER, "accumulated": (*DECODER, "microbatches"),
    "memory": DECODER, "equivalence": (*DECODER, "microbatches"), "curve": ("steps", "loss_weight", "epsilon"),
    "scale": _SCALER,
}  # fmt: skip
_BOUNDS = {"initial_scale": (1e-30, 1e38), "growth_interval": (1, 1e9), "growth_factor": (1, 1e6),
           "backoff_factor": (1e-6, 1)}  # fmt: skip
# The units of what explains a case, and whether zero is a value.
_DETAILS = {
    "matmul_time": ("s", True), "other_time": ("s", True), "step_time": ("s", False), "layers_time": ("s", False),
    "operations": ("", True), "casts": ("", True), "tokens": ("tokens", False), WEIGHT: ("", False),
    "rounding": ("", True), "overflow": ("", True), "scale": ("", False), "largest_gradient": ("", False),
    "zero_gradients": ("", True), "cast_zero_gradients": ("", True), "diverged_at": ("", True),
}  # fmt: skip
_SHARES = ("overflow", "zero_gradients", "cast_zero_gradients")


def _check(record: Record) -> None:
    """Raise `EfflabError`, naming record, sample and field, for a point or a value that cannot be reconciled."""
    of_topic(record, "amp")
    for index, sample in enumerate(record.samples):
        point, role = sample.point, sample.point.get("role")
        if role not in (*ROLES, "calibration", "curve"):
            continue
        wrong = functools.partial(damaged, record, index)
        role = str(role)
        if not isinstance(point.get("case"), str) or not point["case"]:
            raise wrong("case", "a text")
        if point.get("precision") not in PRECISIONS:
            raise wrong("precision", f"one of {', '.join(PRECISIONS)}")
        for field, words in _WORDS.get(role, {}).items():
            if point.get(field) not in words:
                raise wrong(field, f"one of {', '.join(words)}")
        for field in _TRUTHS.get(role, ()):
            if not isinstance(point.get(field), bool):
                raise wrong(field, "true or false")
        more = _SCALER if role == "curve" and point["scaler"] else ()
        more = ("tokens", "total_tokens") if _weighs(point) else more
        for field in (*_NUMBERS[role], *more):
            value = point.get(field)
            if not positive(value, LARGEST):
                raise wrong(field, "a number greater than zero")
            low, high = _BOUNDS.get(field, (0, LARGEST))
            if not low <= value <= high:
                raise wrong(field, f"{low:g} to {high:g}")
        _check_values(sample, place(record, index))


def _check_values(sample: Sample, where: str) -> None:
    """Raise `EfflabError` for a unit or a value that a metric cannot have."""
    name, unit = METRIC.get(str(sample.point["role"]), ("time", "s"))
    if sample.metric == name:
        allowed, zero = unit, False
    elif sample.metric in _DETAILS:
        allowed, zero = _DETAILS[sample.metric]
    else:
        return
    if sample.unit != allowed:
        raise EfflabError(f"{where}: a {sample.metric} in {sample.unit!r}. Measure it again.")
    check_values(sample, where, zero, 1.0 if sample.metric in _SHARES else math.inf)
    for value in sample.values:
        if sample.metric == "overflow" and value not in (0, 1):
            raise EfflabError(f"{where}: an overflow must be 0 or 1, got {value!r}. Measure it again.")


def _samples(record: Record) -> list[Sample]:
    """The samples that are a predicted case's result; what calibrates and what has no prediction is left out."""
    _check(record)
    return [s for s in record.samples if _predicted(s.point) and s.metric == _result(s.point)]


def _result(point: Mapping[str, Any]) -> str:
    """The metric of a case's result."""
    return WEIGHT if _weighs(point) else METRIC[str(point["role"])][0]


def _weighs(point: Mapping[str, Any]) -> bool:
    """A case of role "equivalence" whose result is the weight of a token."""
    return point.get("role") == "equivalence" and "tokens" in point


def _predicted(point: Mapping[str, Any]) -> bool:
    """All but the error of a mean of means: it depends on how much the tokens' gradients have in common."""
    return point.get("role") in ROLES and not (point.get("counted") == "uneven" and not _weighs(point))


def _calibrating(record: Record, case: str, metric: str = "time") -> float | None:
    """The median of what calibrates; None where it could not be measured.

    Raises:
        EfflabError: the record has no such sample.
    """
    found = [s for s in record.samples if s.point.get("case") == case and s.point.get("role") == "calibration"]
    sample = next((s for s in found if s.metric == metric), None)
    if sample is None and not any(s.status != "ok" for s in found):
        raise EfflabError(f"record {record.id}: it has no {metric} of {case}. Measure it again.")
    return median(sample.values) if sample and sample.status == "ok" else None


def _has(record: Record, case: str) -> bool:
    return any(s.point.get("case") == case for s in record.samples)


# Calibration


def matmul_share(record: Record) -> float | None:
    """The share of matrix products in the time of a step in FP32, by its profile; None without one."""
    _check(record)
    if not _has(record, "share-fp32"):
        return None
    inside, whole = (_calibrating(record, "share-fp32", m) for m in ("matmul_time", "step_time"))
    if inside is None or whole is None:
        return None
    if inside > whole:
        raise EfflabError(
            f"record {record.id}: share-fp32 has a matmul_time of {inside!r} s in a step_time of {whole!r} s. Measure "
            "it again."
        )
    return inside / whole


def speedups(record: Record) -> dict[str, tuple[float, float]]:
    """By how much the products of a step and its other operations are faster than in FP32, by precision.

    TF32 is a mode of products alone: the rest is what it was.
    """
    _check(record)
    found = {}
    for precision in PRECISIONS[1:]:
        cases = [f"matmul-{precision}", f"other-{'fp32' if precision == 'tf32' else precision}"]
        if not all(_has(record, c) for c in ("matmul-fp32", "other-fp32", *cases)):
            continue
        before = [_calibrating(record, c) for c in ("matmul-fp32", "other-fp32")]
        after = [_calibrating(record, c) for c in cases]
        if all(before) and all(after):
            found[precision] = before[0] / after[0], before[1] / after[1]  # type: ignore[operator]
    return found


def calibration(record: Record) -> dict[str, float]:
    """The measured value of each of `CALIBRATION`, where there is one."""
    share = matmul_share(record)
    found = {} if share is None else {"matmul-share": share}
    return found | {f"speedup-{p}": products for p, (products, _) in speedups(record).items()}


def products(point: Mapping[str, Any]) -> Iterator[tuple[float, float, float, float]]:
    """The matrix products of a training step of the lab's decoder: how many there are of (m, n, k).

    Forward and backward pass: the gradient of each operand is a product of the same three sizes in another order.
    """
    tokens = point["sequence_length"] * point["microbatch"]
    s, h, f, d = (point[n] for n in ("sequence_length", "hidden_size", "intermediate_size", "head_dim"))
    layers, each = point["layers"], point["layers"] * point["microbatch"] * point["query_heads"]
    inner = point["query_heads"] * d
    for count, m, n, k in (
        (layers, tokens, 3 * inner, h), (layers, tokens, h, inner), (layers, tokens, f, h), (layers, tokens, h, f),
        (each, s, s, d), (each, s, d, s), (1, tokens, point["vocabulary"], h),
    ):  # fmt: skip
        yield 3 * count, m, n, k


def datasheet_speedup(record: Record, precision: str, point: Mapping[str, Any]) -> float | None:
    """By how much a step's products are faster than in FP32 by the roofline of the data sheet; None without one."""
    entry = datasheet(record)
    if not entry or not {"fp32", precision} <= set(entry.peak_dense):
        return None

    def seconds(dtype: str) -> float:
        return sum(
            float(
                count
                * roofline.roofline_time(
                    flops=roofline.matmul_flops(m=m, n=n, k=k),
                    bytes_moved=roofline.matmul_bytes(
                        m=m, n=n, k=k, bytes_per_element=catalog.BYTES_PER_ELEMENT[dtype]
                    ),
                    peak_performance=entry.peak_dense[dtype], memory_bandwidth=entry.memory_bandwidth, overhead=0.0,
                )
            )
            for count, m, n, k in products(point)
        )  # fmt: skip

    return seconds("fp32") / seconds(precision)


def calibration_text(record: Record) -> str:
    """The step in FP32, the share of its products, what they and the rest gain, and why where they lose."""
    share, gains, entry = matmul_share(record), speedups(record), datasheet(record)
    step = _calibrating(record, "step-fp32") if _has(record, "step-fp32") else None
    if step is None or share is None:
        return "The step in fp32 was not measured."
    point = _first(record, "step-fp32").point
    lines = [
        f"A training step in fp32 takes {show(step, SECOND)}. By its profile matrix products take {share:.1%} of it."
    ]
    whole = _calibrating(record, "share-fp32", "step_time")
    if whole and (slow := _profiled(whole, step)):
        lines.append(slow)
    table = []
    for precision in PRECISIONS:
        parts = [
            _calibrating(record, f"{part}-{precision}") if _has(record, f"{part}-{precision}") else None
            for part in ("matmul", "other")
        ]
        if parts[0] is None:
            continue
        gain = gains.get(precision)
        row = [precision, show(parts[0], SECOND), f"{gain[0]:.3g}×" if gain else ""]
        if entry:
            sheet = datasheet_speedup(record, precision, point) if precision != "fp32" else None
            row.append(f"{sheet:.3g}×" if sheet else "")
        row += [show(parts[1], SECOND) if parts[1] else "", f"{gain[1]:.3g}×" if gain and parts[1] else ""]
        row += [_count(record, f"other-{precision}", "operations"), _count(record, f"other-{precision}", "casts")]
        table.append(row)
    if table:
        head = ["replayed", "products", "speedup", *(["data sheet"] if entry else [])]
        head += ["other", "speedup", "operations", "casts"]
        lines.append(columns(head, table, range(1, len(head))))
    alone = [(name, _optional(record, name)) for name in
             ("forward-fp32", "forward-bf16", "microbatch-fp32", "update-fp32")]  # fmt: skip
    layers = {n: _optional(record, n, "layers_time") for n in ("forward-fp32", "forward-bf16")}
    said = [
        f"{name} {show(seconds, SECOND)}"
        + (f" (its layers {show(inside, SECOND)})" if (inside := layers.get(name)) else "")
        for name, seconds in alone
        if seconds
    ]
    if said:
        lines.append(f"Alone: {', '.join(said)}.")
    lines += [why for p, (gain, _) in gains.items() if (why := _hardware(record, p, gain))]
    lines += _overheads(record)
    if named := [c for c in doubted_cases(record) if _first(record, c).point.get("role") == "calibration"]:
        lines.append(f"Disturbed while measured, as the record warns: {', '.join(named)}.")
    if not entry:
        lines.append("Data sheet: the catalog has no entry for this device.")
    return "\n".join(lines)


def _first(record: Record, case: str) -> Sample:
    return next(s for s in record.samples if s.point.get("case") == case)


def _optional(record: Record, case: str, metric: str = "time") -> float | None:
    return _calibrating(record, case, metric) if _has(record, case) else None


def _count(record: Record, case: str, metric: str) -> str:
    """A number of operations as text, empty where the record has none."""
    found = median_of(record, _first(record, case).point, metric) if _has(record, case) else None
    return "" if found is None else f"{found:,.0f}"


def _hardware(record: Record, precision: str, gain: float) -> str:
    """Why products in 16 bits are slower than in fp32 on a CPU, by what the processor and its library offer."""
    listed, library = record.spec.get("instructions"), record.spec.get("onednn")
    if record.environment.kind != "cpu" or precision not in MULTIPLIES or gain >= 1:
        return ""
    factor = f"{1 / gain:.2g} times" if gain < 1 / 1.1 else f"{1 / gain - 1:.1%}"
    said = f"{precision} products are {factor} slower than fp32 here."
    x86 = "x86" in (record.environment.platform or "")
    needed = [i for i in MULTIPLIES[precision] if not x86 or i.startswith(("amx", "avx"))]
    if isinstance(listed, list) and listed and not any(i in listed for i in needed):
        said += f" The processor lists no instruction that multiplies {precision} ({', '.join(needed)})"
        if isinstance(library, dict) and library.get(precision) is False:
            said += ", and oneDNN, the library of torch's 16-bit products, does not multiply it here"
        return f"{said}. Consistent with {precision} that is emulated: converted to fp32, multiplied, rounded back."
    if isinstance(library, dict) and library.get(precision) is False:
        return (
            f"{said} oneDNN, the library of torch's 16-bit products, does not multiply {precision} here. Consistent "
            f"with {precision} that is emulated: converted to fp32, multiplied, rounded back."
        )
    return f"{said} {NOTHING}"


def _short(record: Record) -> float | None:
    """Seconds of one of the other operations in fp32 on average, where that is so short that overhead shows."""
    taken = _optional(record, "other-fp32")
    count = median_of(record, _first(record, "other-fp32").point, "operations") if taken else None
    return taken / count if taken and count and taken / count < SHORT else None


def _overheads(record: Record) -> Iterator[str]:
    """What the other operations say of casts and of overhead."""
    if short := _short(record):
        yield (
            f"The other operations of the step in fp32 take {show(short, SECOND)} each. Consistent with calls that "
            "cost more than the bytes that they move, which fewer bits do not make faster."
        )
    for precision, (_, gain) in speedups(record).items():
        case = f"other-{precision}"
        casts = median_of(record, _first(record, case).point, "casts") if _has(record, case) else None
        if casts and gain < 1:
            yield (
                f"Under {precision} autocast the other operations take {1 / gain - 1:.0%} longer; {casts:,.0f} of them "
                "are casts from one dtype to another, which fp32 does not need."
            )


# Prediction


def expected_step(record: Record, precision: str) -> float | None:
    """Seconds of a step in a precision by the calibration; None where a part of it could not be measured."""
    step, share = _calibrating(record, "step-fp32"), matmul_share(record)
    if precision == "fp32" or step is None:
        return step
    if share is None and not _has(record, "share-fp32"):
        raise EfflabError(f"record {record.id}: it has no matmul_time of share-fp32. Measure it again.")
    for case in ("matmul-fp32", f"matmul-{precision}", "other-fp32", f"other-{precision}"):
        if case != "other-tf32":
            _calibrating(record, case)  # names what is missing
    gain = speedups(record).get(precision)
    if share is None or gain is None:
        return None
    return float(formulas.amp_step_time(time=step, matmul_share=share, matmul_speedup=gain[0], other_speedup=gain[1]))


def expected_time(record: Record, point: Mapping[str, Any]) -> float | None:
    """Seconds of a case by the calibration; None where a part of it could not be measured."""
    role, precision = point["role"], str(point["precision"])
    if role == "accumulated":
        alone, update = (_calibrating(record, f"{n}-{precision}") for n in ("microbatch", "update"))
        if alone is None or update is None:
            return None
        return float(
            formulas.accumulated_step_time(
                microbatch_time=alone, accumulation_steps=point["microbatches"], update_time=update
            )
        )
    step = expected_step(record, precision)
    if role == "step" or step is None:
        return step
    forward, layers = (_calibrating(record, f"forward-{precision}", m) for m in ("time", "layers_time"))
    if forward is None or layers is None:
        return None
    return float(
        formulas.recomputation_step_time(step_time=step, forward_time=forward, recomputed=min(1.0, layers / forward))
    )


def expected_bytes(point: Mapping[str, Any], kind: str) -> dict[str, float]:
    """Bytes of each part of a training step by the formulas.

    Returns:
        "weights", "gradients" and "optimizer", which autocast leaves in FP32; "activations", which the layers keep;
        "copies", the 16-bit copies of the layers' matrices that autocast keeps until the backward pass; "outside",
        what embedding, final norm, output layer and loss keep; "memory", the activations and the copies.
    """
    parameters, narrow = parameter_count(point), point["precision"] in NARROW
    sizes = {n: point[n] for n in ("sequence_length", "microbatch", "hidden_size")}
    heads = {"query_heads": point["query_heads"], "kv_heads": point["query_heads"]}
    inner = {"intermediate_size": point["intermediate_size"], "mlp_matrices": 2}
    found = {
        "weights": bytes_of.weight_bytes(parameters=parameters, bytes_per_parameter=4.0),
        "gradients": bytes_of.gradient_bytes(parameters=parameters, bytes_per_parameter=4.0),
        "optimizer": bytes_of.optimizer_bytes(parameters=parameters, bytes_per_parameter=8.0),
    }
    recomputed = point["recomputation"] == "full"
    if narrow and not recomputed:
        found["activations"] = formulas.autocast_layer_bytes(
            **sizes, **heads, **inner, layers=point["layers"], attention="standard",
            softmax="16 bits" if kind == "cpu" else "fp32",
        )  # fmt: skip
        none: dict[str, Any] = {"biases": "none"}
        matrices = transformer.attention_parameters(
            hidden_size=point["hidden_size"], head_dim=point["head_dim"], position_projections=0, **heads, **none
        ) + transformer.mlp_parameters(hidden_size=point["hidden_size"], **inner, **none)
        found["copies"] = bytes_of.weight_bytes(parameters=point["layers"] * matrices, bytes_per_parameter=2.0)
    else:
        # What a layer gets from the one before is in FP32 under autocast too.
        found["activations"] = bytes_of.layer_activation_bytes(
            **sizes, **heads, **inner, layers=point["layers"], attention="standard", dropout=False,
            recomputation="full" if recomputed else "none", bytes_per_element=4.0, mask_bytes=4.0,
        )  # fmt: skip
        found["copies"] = 0.0
    # Under autocast the final norm keeps its input in FP32 and the output layer in 16 bits, with a copy of its matrix.
    found["outside"] = bytes_of.output_activation_bytes(
        **sizes, vocabulary=point["vocabulary"], bytes_per_element=3.0 if narrow else 4.0
    )
    if narrow:
        embedding = point["vocabulary"] * point["hidden_size"]
        found["outside"] += bytes_of.weight_bytes(parameters=embedding, bytes_per_parameter=2.0)
    found["memory"] = found["activations"] + found["copies"]
    return {name: float(size) for name, size in found.items()}


def expected_difference(point: Mapping[str, Any]) -> float:
    """What a case of role "equivalence" measures, by the formulas.

    The relative difference, in the Frobenius norm, between the gradient of k microbatches and that of one batch. In
    FP32 each is a sum over all tokens with the error of a sum in a tree, which the other does not share. In 16 bits
    the gradient of each weight leaves its product rounded once: that of the batch with a relative error r, and that of
    k microbatches that agree with an error of r over the root of k. Without the division by k the gradient is k times
    as large. Or the weight of a token in the mean of means.
    """
    k, precision = float(point["microbatches"]), str(point["precision"])
    if _weighs(point):
        return float(
            formulas.token_weight_in_mean_of_means(
                tokens=point["tokens"], total_tokens=point["total_tokens"], accumulation_steps=k
            )
        )
    if not point["divided"]:
        return k - 1
    if precision in NARROW:
        return _rounding(precision) * math.sqrt(1 + 1 / k)
    return math.sqrt(2) * float(rounding.pairwise_accumulation_error(terms=_terms(point), epsilon=_epsilon("fp32")))


def _terms(point: Mapping[str, Any]) -> float:
    """The tokens of all microbatches: how many terms the gradient of a weight is a sum of."""
    return float(point["microbatches"] * point["microbatch"] * point["sequence_length"])


def _epsilon(precision: str) -> float:
    bits = catalog.number_format(FORMATS[precision]).mantissa_bits
    return float(rounding.machine_epsilon(mantissa_bits=bits))


def _rounding(precision: str) -> float:
    return float(rounding.rms_rounding_error(epsilon=_epsilon(precision)))


def expected_scales(record: Record, point: Mapping[str, Any]) -> list[float]:
    """The loss scale before the first step of the run with a scaler and after each, by the rule, from its overflows.

    Raises:
        EfflabError: the record does not hold which steps overflowed.
    """
    run = next((c for c in curves(record) if c.overflows), None)
    if run is None:
        raise EfflabError(f"record {record.id}: no run holds which steps overflowed. Measure it again.")
    return formulas.loss_scales(
        run.overflows, scale=float(point["initial_scale"]), growth_factor=float(point["growth_factor"]),
        backoff_factor=float(point["backoff_factor"]), growth_interval=int(point["growth_interval"]),
    )  # fmt: skip


# Reconciliation


def points(record: Record, roles: tuple[str, ...] = ROLES) -> list[Row]:
    """Every measured case of a record with its prediction, in the order measured; what calibrates has no row.

    Samples that ran out of memory or failed have no row, nor have cases whose calibration did: `missing` names them.

    Raises:
        EfflabError: the record is of another topic, a sample is damaged, or the calibration of a case is missing.
    """
    samples = [s for s in _samples(record) if s.status == "ok" and s.point["role"] in roles]
    return [row for s in samples if (row := _row(record, s))]


def _row(record: Record, sample: Sample) -> Row | None:
    """The row of a sample; None where what calibrates it could not be measured."""
    try:
        return _predict(record, sample)
    except FormulaError as problem:
        raise EfflabError(f"record {record.id}: {sample.point['case']}: {problem} Measure it again.") from None


def _predict(record: Record, sample: Sample) -> Row | None:
    point, role, precision = sample.point, str(sample.point["role"]), str(sample.point["precision"])
    measured, sheet = median(sample.values), None
    causes: Callable[[Record, Sample, float, float], str]
    if role in TIMES:
        found = expected_time(record, point)
        if found is None:
            return None
        predicted, causes = found, _why_time
        if role == "step" and (gain := datasheet_speedup(record, precision, point)):
            step, share = _calibrating(record, "step-fp32"), matmul_share(record)
            sheet = float(formulas.amp_step_time(time=step, matmul_share=share, matmul_speedup=gain, other_speedup=1.0))
    elif role == "memory":
        predicted, causes = expected_bytes(point, record.environment.kind)["memory"], _why_memory
    elif role == "equivalence":
        predicted, causes = expected_difference(point), _why_difference
    else:
        predicted, causes = expected_scales(record, point)[-1], _why_scale
    return Row(
        case=str(point["case"]), role=role, metric=sample.metric, precision=precision, unit=UNITS[sample.unit],
        predicted=predicted, measured=measured, datasheet=sheet, iqr=iqr(sample.values), ratio=measured / predicted,
        error=error(predicted, measured), explanation=causes(record, sample, predicted, measured),
    )  # fmt: skip


def _why_time(record: Record, sample: Sample, predicted: float, seconds: float) -> str:
    scattered = unsteady(sample.values, seconds)
    if said := agrees(seconds / predicted):
        return joined([said, scattered])
    causes = {"step": _step_parts, "recomputation": _recomputed_parts, "accumulated": _accumulated_parts}
    texts = [
        *disturbed(record, sample.point["case"], _rests_on(sample.point)),
        *causes[str(sample.point["role"])](record, sample, predicted, seconds),
    ]
    return f"{joined(texts)} {scattered}".rstrip()


def _rests_on(point: Mapping[str, Any]) -> list[str]:
    """The cases that a predicted time is built from."""
    precision = point["precision"]
    if point["role"] == "accumulated":
        return [f"microbatch-{precision}", f"update-{precision}"]
    narrower = [f"{part}-{p}" for p in ("fp32", precision) for part in ("matmul", "other")]
    step = ["step-fp32", *(["share-fp32", *narrower] if precision != "fp32" else [])]
    return [*step, f"forward-{precision}"] if point["role"] == "recomputation" else step


def _step_parts(record: Record, sample: Sample, predicted: float, seconds: float) -> Iterator[str]:
    """Which part of a step took another time than predicted, by its own profile."""
    point, precision = sample.point, str(sample.point["precision"])
    step, share, gain = _calibrating(record, "step-fp32"), matmul_share(record), speedups(record)[precision]
    assert step is not None and share is not None
    expected = step * share / gain[0], step * (1 - share) / gain[1]
    replays = [_calibrating(record, f"{part}-fp32") for part in ("matmul", "other")]
    assert replays[0] is not None and replays[1] is not None
    by_replay = replays[0] / sum(replays)  # type: ignore[arg-type]
    other = float(
        formulas.amp_step_time(time=step, matmul_share=by_replay, matmul_speedup=gain[0], other_speedup=gain[1])
    )
    if 1 / NEAR <= seconds / other <= NEAR and abs(math.log(seconds / other)) < abs(math.log(seconds / predicted)) / 2:
        yield (
            f"Replayed alone, the products take {by_replay:.0%} of the two parts in fp32, by the profile {share:.0%}. "
            f"With the first share {show(other, SECOND)} are predicted. Consistent with a profile that lengthens short "
            "operations, or one that was disturbed."
        )
    inside, others, whole = (median_of(record, point, m) for m in ("matmul_time", "other_time", "step_time"))
    if inside is None or others is None or whole is None:
        return
    if slow := _profiled(whole, seconds):
        yield (
            f"{slow} By its shares products are {inside / whole:.0%} of the step, predicted "
            f"{expected[0] / sum(expected):.0%}."
        )
        return
    yield (
        f"By the profile of this step products take {show(inside, SECOND)} where {show(expected[0], SECOND)} were "
        f"predicted, everything else {show(max(0.0, whole - inside), SECOND)} where {show(expected[1], SECOND)} were."
    )
    idle = whole - inside - others
    if record.environment.kind != "cpu" and idle > 0.1 * whole:
        yield (
            f"For {idle / whole:.0%} of the step no kernel runs. Consistent with a GPU that waits for launches: "
            "fewer bits do not make them faster."
        )


def _profiled(whole: float, seconds: float) -> str:
    """That a step took longer, or less, under its profile than timed; empty where the two are near."""
    if 1 / NEAR <= whole / seconds <= NEAR:
        return ""
    why = (
        "a profile that slows the step, or that was disturbed"
        if whole > seconds
        else "a step that was disturbed while it was timed"
    )
    return f"Profiled, the step took {show(whole, SECOND)}, timed {show(seconds, SECOND)}. Consistent with {why}."


def _recomputed_parts(record: Record, sample: Sample, predicted: float, seconds: float) -> Iterator[str]:
    """What recomputation added to the step that was measured, beside the pass that it repeats."""
    precision = str(sample.point["precision"])
    layers = _calibrating(record, f"forward-{precision}", "layers_time")
    plain = _plain(record, precision)
    if plain is None or layers is None:
        return
    added = seconds - plain
    said = (
        f"It takes {show(abs(added), SECOND)} {'longer' if added >= 0 else 'less'} than step-{precision} as measured; "
        f"a forward pass of the layers takes {show(layers, SECOND)}."
    )
    if added > 0 and 1 / NEAR <= added / layers <= NEAR:
        yield f"{said} So recomputation costs what was predicted, and the step itself takes another time."
    elif added > layers and _short(record):
        yield f"{said} Consistent with what checkpointing does beside the pass, which short calls do not hide."
    elif added > layers and precision in NARROW:
        yield f"{said} Consistent with casts of the weights that the second pass repeats."
    else:
        yield said


def _accumulated_parts(record: Record, sample: Sample, predicted: float, seconds: float) -> Iterator[str]:
    """What a microbatch takes among others and alone."""
    precision, k = str(sample.point["precision"]), float(sample.point["microbatches"])
    alone, update = (_calibrating(record, f"{n}-{precision}") for n in ("microbatch", "update"))
    assert alone is not None and update is not None
    yield (
        f"Less the update, each of the {k:.0f} microbatches takes {show((seconds - update) / k, SECOND)} here and "
        f"{show(alone, SECOND)} alone."
    )


def _lacking(record: Record, point: Mapping[str, Any]) -> list[tuple[str, float]]:
    """What the layers keep and the formulas leave out, in words and B."""
    if point["recomputation"] == "full":
        return []
    rows = point["sequence_length"] * point["microbatch"]
    return [("mean and deviation of each row in the layer norms, in fp32", 2.0 * 2 * 4 * rows * point["layers"])]


def _why_memory(record: Record, sample: Sample, predicted: float, measured: float) -> str:
    point = sample.point
    texts = ["As predicted, to the byte."] if measured == predicted else []
    if not texts and (head := agrees(measured / predicted, 1.1)):
        texts.append(head)
    if measured != predicted:
        lacking = _lacking(record, point)
        if lacking:
            texts.append(f"Not in the formula: {'; '.join(f'{what}: {show(size, BYTE)}' for what, size in lacking)}.")
        if point["method"] == "counted" and lacking:
            rest = measured - predicted - sum(size for _, size in lacking)
            texts.append(
                "Nothing is left over." if abs(rest) < 1 else f"Left over: {'−' * (rest < 0)}{show(abs(rest), BYTE)}."
            )
        elif point["method"] == "allocator" and (counted := median_of(record, point, "counted")):
            rest = measured - counted
            texts.append(
                f"The kept tensors are {show(counted, BYTE)} by count; the allocator differs by "
                f"{'−' * (rest < 0)}{show(abs(rest), BYTE)}."
            )
    if point["precision"] in NARROW:
        texts += _kept(record, point)
    return joined(texts)


def _kept(record: Record, point: Mapping[str, Any]) -> Iterator[str]:
    """What autocast left in fp32, and what it added."""
    wide, copies = median_of(record, point, "kept_float32"), median_of(record, point, "weight_copies")
    counted = median_of(record, point, "counted")
    if wide and counted:
        what = (
            "the layers' inputs" if point["recomputation"] == "full" else "the inputs of the norms and their statistics"
        )
        if record.environment.kind != "cpu" and point["recomputation"] == "none":
            what = "the inputs of the norms, their statistics and the results of the softmax"
        yield f"{show(wide, BYTE)} of {show(counted, BYTE)} stay in fp32: {what}."
    if copies:
        yield f"{show(copies, BYTE)} are 16-bit copies of the weights, which fp32 does not need."


def _why_difference(record: Record, sample: Sample, predicted: float, measured: float) -> str:
    point, precision = sample.point, str(sample.point["precision"])
    said = agrees(measured / predicted)
    k = float(point["microbatches"])
    if _weighs(point):
        return said or NOTHING
    if not point["divided"]:
        return f"{said or NOTHING} The gradient of {k:.0f} sums is {k:.0f} times that of their mean."
    texts = [said] if said else []
    if precision in NARROW:
        apart = _rounding(precision) * math.sqrt(2)
        if not said and predicted < measured <= apart * NEAR:
            texts.append(
                f"Microbatches whose gradients have nothing in common would give {show(apart)}. Consistent with "
                "gradients that agree in part only."
            )
        if own := median_of(record, point, "rounding"):
            texts.append(
                f"{precision} moves the batch's own gradient by {show(own)} from fp32's, so accumulation adds "
                f"{'less' if measured < own else 'more'} than {precision} itself."
            )
        return joined(texts)
    terms = _terms(point)
    single = math.sqrt(2) * float(rounding.accumulation_error(terms=terms, block_size=terms, epsilon=_epsilon("fp32")))
    if said:
        pass
    elif predicted < measured <= single:
        texts.append(
            f"Sums in a tree give {show(predicted)}, one running sum of {terms:,.0f} terms {show(single)}. Consistent "
            "with sums in blocks."
        )
    elif measured < predicted:
        texts.append(
            "Consistent with two gradients that are added up in the same blocks and so share a part of their rounding."
        )
    else:
        texts.append(
            f"Even one running sum of {terms:,.0f} terms in fp32 would give {show(single)}. Consistent with products "
            "that keep fewer bits than fp32, or with two gradients that are not of the same tokens."
        )
        return " ".join(texts)
    texts.append("It is rounding: no order of summation is the right one.")
    return " ".join(texts)


def _why_scale(record: Record, sample: Sample, predicted: float, measured: float) -> str:
    run = next(c for c in curves(record) if c.overflows)
    expected = expected_scales(record, sample.point)
    backed = sum(run.overflows)
    # A run of clean steps that reaches the interval doubles the scale.
    raised = sum(b > a for a, b in itertools.pairwise(expected))
    history = (
        f"{plural(backed, 'step')} of {len(run.overflows)} overflowed and took it down; "
        f"{'once' if raised == 1 else f'{raised} times'} "
        f"{sample.point['growth_interval']:g} clean steps in a row took it up."
    )
    if run.scales == expected and measured == predicted:
        return (
            f"Which steps overflowed is the run's own; from these halving and doubling is replayed, from "
            f"{power(expected[0])} on, and gives the scale of every step. {history}"
        )
    parted = next((i for i, (a, b) in enumerate(zip(run.scales, expected, strict=False)) if a != b), None)
    if parted is None:
        return f"{history} The run's own scales end at {power(run.scales[-1])}."
    return (
        f"{history} The two part after step {parted}: {power(run.scales[parted])} was measured, "
        f"{power(expected[parted])} follows from the rule."
    )


def power(value: float) -> str:
    """A power of two as such: "2^16"; another number as usual."""
    fraction, exponent = math.frexp(value)
    return f"2^{exponent - 1}" if fraction == 0.5 and abs(exponent - 1) > 3 else show(value)


def missing(record: Record) -> list[str]:
    """One sentence for every case without a result, or without what its prediction needs."""
    _check(record)
    found = []
    for sample in record.samples:
        role, case = sample.point.get("role"), sample.point.get("case")
        if role not in (*ROLES, "calibration", "curve") or sample.metric != _main(sample.point):
            continue
        if sample.status != "ok":
            found.append(no_result(sample))
        elif role in TIMES and expected_time(record, sample.point) is None:
            needed = dict.fromkeys(_rests_on(sample.point))
            gone = [c for c in needed if _has(record, c) and _calibrating(record, c, _main({"case": c})) is None]
            found.append(f"{case} has no prediction: {', '.join(gone) or 'its calibration'} could not be measured.")
    return found


def _main(point: Mapping[str, Any]) -> str:
    """The metric of a case's result, of what calibrates too."""
    if point.get("role", "calibration") == "calibration":
        return "matmul_time" if str(point.get("case")).startswith("share-") else "time"
    return _result(point)


# Training runs


def curves(record: Record) -> list[Curve]:
    """The training runs of a record that gave a loss, in the order trained.

    Raises:
        EfflabError: the record is of another topic, or a sample is damaged.
    """
    _check(record)
    found = []
    for sample in record.samples:
        point = sample.point
        if point.get("role") != "curve" or sample.metric != "loss" or sample.status != "ok":
            continue
        diverged = median_of(record, point, "diverged_at")
        overflows = [v == 1 for v in values_of(record, point, "overflow")]
        scales = values_of(record, point, "scale")
        if len(scales) != len(overflows) + bool(overflows):
            raise EfflabError(
                f"record {record.id}: {point['case']} has {len(overflows)} overflows and {len(scales)} scales; one "
                "scale more is needed, the one before the first step. Measure it again."
            )
        found.append(
            Curve(
                point, list(sample.values), None if diverged is None else int(diverged),
                values_of(record, point, "zero_gradients"), values_of(record, point, "cast_zero_gradients"), overflows,
                scales, values_of(record, point, "largest_gradient"),
            )
        )  # fmt: skip
    return found


def reference(record: Record) -> Curve | None:
    """The run that the others are compared with: everything in FP32; None where there is none."""
    return next((c for c in curves(record) if c.point["precision"] == "fp32"), None)


def behind(record: Record, run: Curve) -> float | None:
    """How much higher a run's last losses are than the reference's, nats; None where one of the two has no end."""
    to = reference(record)
    return None if to is None or run.diverged_at is not None or to.diverged_at is not None else run.last - to.last


def verdict(record: Record, run: Curve) -> str:
    """What became of a run, in a few words."""
    to = reference(record)
    if run.diverged_at is not None:
        return f"not a number at step {run.diverged_at + 1}"
    apart = behind(record, run)
    if apart is None or to is None:
        return ""
    if run.case == to.case:
        return "the reference"
    return "falls behind fp32" if apart > BEHIND * max(0.0, to.losses[0] - to.last) else "follows fp32"


def _why_curve(record: Record, run: Curve) -> str:
    """What the record holds about a run's end."""
    point, precision, apart = run.point, str(run.point["precision"]), behind(record, run)
    steps = len(run.losses)
    texts = []
    if run.diverged_at is not None:
        texts.append(f"The loss of step {run.diverged_at + 1} is not a number.")
        if point["weights"] == "fp16":
            smallest, epsilon = _smallest("fp16"), float(point["epsilon"])
            if epsilon <= smallest / 2:
                texts.append(
                    f"Weights and AdamW are in fp16, whose smallest number is {show(smallest)}: epsilon, "
                    f"{show(epsilon)}, rounds to zero, and so do the squares of small gradients. Consistent with an "
                    "update that divides by zero."
                )
        return " ".join(texts)
    if apart is not None and verdict(record, run) != "the reference":
        texts.append(
            f"Over its last steps its loss is {show(abs(apart), NAT, 2)} {'above' if apart >= 0 else 'below'} fp32's."
        )
    if run.zero and max(run.zero) > 0.005:
        texts.append(
            f"At its last checked step {run.zero[-1]:.0%} of the gradient are zero that are not zero in fp32, at its "
            f"first {run.zero[0]:.0%}."
        )
        if run.cast and run.cast[-1] < run.zero[-1]:
            texts.append(
                f"Rounding fp32's gradients to fp16 would lose {run.cast[-1]:.0%}; the rest was lost on the way. "
                "Consistent with gradients of activations that are smaller still."
            )
    elif run.zero and precision in NARROW:
        lost = f"At most {show(100 * max(run.zero), digits=2)}%" if max(run.zero) else "No element"
        texts.append(f"{lost} of its gradient was lost to zero.")
        if precision == "bf16":
            texts.append("bf16 has fp32's exponents.")
    if run.overflows:
        first = next((i for i, o in enumerate(run.overflows) if not o), steps)
        begun = f", the first {first if first > 1 else ''}".rstrip() + " among them" if first else ""
        texts.append(f"{plural(sum(run.overflows), 'step')} of {steps} overflowed and were skipped{begun}.")
    return " ".join(texts)


def _smallest(precision: str) -> float:
    found = catalog.number_format(FORMATS[precision])
    return float(
        rounding.smallest_subnormal(
            exponent_bits=found.exponent_bits, mantissa_bits=found.mantissa_bits, flavour=found.flavour
        )
    )


def largest_scales(run: Curve) -> list[float]:
    """At each checked step of a run with a scaler, the largest loss scale under which nothing overflows."""
    found = catalog.number_format(FORMATS["fp16"])
    largest = rounding.largest_finite(
        exponent_bits=found.exponent_bits, mantissa_bits=found.mantissa_bits, flavour=found.flavour
    )
    return [float(formulas.largest_loss_scale(largest_finite=largest, largest_gradient=g)) for g in run.largest]


def checked_steps(record: Record, run: Curve) -> list[int]:
    """The steps, from 0, at which a run's gradient was compared with FP32's: as many as it has values."""
    listed = record.spec.get("checked_steps")
    count = max(len(run.zero), len(run.largest))
    if (
        not isinstance(listed, list)
        or len(listed) < count
        or not all(isinstance(s, int) and not isinstance(s, bool) and s >= 0 for s in listed)
    ):
        raise EfflabError(f"record {record.id}: spec.checked_steps must list {count} steps or more. Measure it again.")
    return listed[:count]


def _curves_text(record: Record) -> str:
    """A table of the runs, and what became of each."""
    found = curves(record)
    rows = [
        [
            run.case, f"{len(run.losses)}", f"{run.losses[0]:.3f}", f"{run.last:.3f}",
            f"{run.zero[-1]:.1%}" if run.zero else "",
            f"{sum(run.overflows)}" if run.overflows else "", verdict(record, run),
        ]
        for run in found
    ]  # fmt: skip
    head = ["run", "steps", "first loss", "last losses", "zero gradients", "skipped", ""]
    parts = [columns(head, rows, (1, 2, 3, 4, 5))]
    parts += [f"{run.case}: {why}" for run in found if (why := _why_curve(record, run))]
    return "\n".join(parts)


def _scale_text(record: Record) -> str:
    """Every change of the loss scale, with the step that made it."""
    run = next((c for c in curves(record) if c.overflows), None)
    if run is None:
        raise EfflabError(f"record {record.id}: no run has a loss scale. Measure it again.")
    rows = [["", power(run.scales[0]), "to begin with"]]
    for step, (before, after) in enumerate(itertools.pairwise(run.scales), 1):
        if before != after:
            rows.append([str(step), power(after), "overflow" if run.overflows[step - 1] else "clean steps"])
    return columns(["after step", "loss scale", "why"], rows, (0, 1))


def _zero_text(record: Record) -> str:
    """The share of zero gradients at the checked steps, run by run."""
    found = [run for run in curves(record) if run.zero]
    rows = []
    for run in found:
        for name, values in (("", run.zero), (", fp32's rounded to fp16", run.cast)):
            if values:
                shares = [f"{v:.1%}" for v in values]
                rows.append([run.case + name, *shares, *[""] * (max(len(r.zero) for r in found) - len(shares))])
    if not rows:
        raise EfflabError(f"record {record.id}: no run holds a share of zero gradients. Measure it again.")
    steps = [str(s + 1) for s in checked_steps(record, max(found, key=lambda r: len(r.zero)))]
    return columns(["run, at step", *steps], rows, range(1, len(steps) + 1))


def _weights_text(record: Record) -> str:
    """How much a token of each microbatch counts, predicted and measured."""
    sample = next(
        (s for s in record.samples if s.point.get("role") == "equivalence" and s.metric == "tokens" and s.values), None
    )
    if sample is None:
        raise EfflabError(f"record {record.id}: it holds no microbatches of different length. Measure it again.")
    tokens, weights = list(sample.values), values_of(record, sample.point, WEIGHT)
    k = float(sample.point["microbatches"])
    if not len(tokens) == len(weights) == k:
        raise EfflabError(
            f"record {record.id}: {sample.point['case']} has {len(tokens)} numbers of tokens and {len(weights)} "
            f"weights of {k:.0f} microbatches. Measure it again."
        )
    rows = []
    for i, (count, weight) in enumerate(zip(tokens, weights, strict=True), 1):
        expected = float(
            formulas.token_weight_in_mean_of_means(tokens=count, total_tokens=sum(tokens), accumulation_steps=k)
        )
        rows.append([str(i), f"{count:,.0f}", show(expected), show(weight), signed(error(expected, weight))])
    return columns(["microbatch", "tokens that count", "weight by formula", "measured", "error"], rows, range(5))


# In words and tables

KINDS = (
    (TIMES, "times"),
    (("memory",), "sizes in memory"),
    (("equivalence",), "gradients of microbatches"),
)


def summary(record: Record) -> str:
    """Speedups, median and worst errors of times, bytes and gradients, and the runs: one line each."""
    rows = points(record)
    parts = []
    if said := _gains(record, rows):
        parts.append(said)
    for roles, words in KINDS:
        of = [r for r in rows if r.role in roles]
        if of:
            worst = max(of, key=lambda r: abs(math.log(r.ratio)))
            parts.append(
                f"{len(of)} {words}: median error of the prediction {unsigned(median([abs(r.error) for r in of]))}. "
                f"Worst: {worst.case}, predicted {show(worst.predicted, worst.unit)}, measured "
                f"{show(worst.measured, worst.unit)} ({signed(worst.error)})."
            )
    for row in (r for r in rows if r.role == "scale"):
        parts.append(
            f"Loss scale after the run: {power(row.predicted)} by the rule, from the steps that overflowed; "
            f"{power(row.measured)} measured."
        )
    found = curves(record)
    ended = [
        f"{run.case.removeprefix('curve-')} {said}"
        for run in found
        if (said := verdict(record, run)) not in ("", "the reference")
    ]
    if ended:
        parts.append(f"Training runs: {', '.join(ended)}.")
    if not parts:
        return "No case of this record was measured."
    if record.scale == "smoke":
        parts.insert(0, "Smoke scale: its sizes are too small to say anything about the device.")
    if absent := missing(record):
        parts.append(f"Not in it: {'; '.join(absent)}.")
    return "\n".join(parts)


def _gains(record: Record, rows: Iterable[Row]) -> str:
    """How much faster a step is in each precision than in fp32."""
    step = _optional(record, "step-fp32")
    found = [
        f"{row.precision} {step / row.measured:.3g}× (predicted {step / row.predicted:.3g}×)"
        for row in rows
        if row.role == "step" and step
    ]
    return f"Speed of a step against fp32: {', '.join(found)}." if found else ""


def _shown(row: Row, value: float) -> str:
    return power(value) if row.metric == "scale" else show(value, row.unit)


def table(record: Record) -> tuple[list[str], list[list[str]], tuple[int, ...]]:
    """Head, rows of text (the last column explains) and the indices of numeric columns."""
    return _table(record, points(record))


def _table(record: Record, rows: Sequence[Row]) -> tuple[list[str], list[list[str]], tuple[int, ...]]:
    """Columns that no row has anything for are left out."""
    found = {
        "case": [r.case for r in rows],
        "predicted": [_shown(r, r.predicted) for r in rows],
        "data sheet": [show(r.datasheet, r.unit) if r.datasheet else "" for r in rows],
        "measured": [_shown(r, r.measured) for r in rows],
        "IQR": [f"{r.iqr / r.measured:.0%}" if r.metric == "time" else "" for r in rows],
        "error": [signed(r.error) for r in rows],
        "why": [r.explanation for r in rows],
    }
    return with_energy(record, rows, table_of(found, ("data sheet", "IQR")))


def text(record: Record) -> str:
    """Everything in plain text, the same for the same record: calibration, all rows, reasons, runs, summary."""
    parts = [calibration_text(record)]
    for roles in (*(roles for roles, _ in KINDS), ("scale",)):
        rows = points(record, roles)
        if rows:
            head, body, numeric = _table(record, rows)
            parts.append(columns(head[:-1], [r[:-1] for r in body], numeric))
            parts.append("\n".join(f"{r[0]}: {r[-1]}" for r in body))
    if curves(record):
        parts.append(_curves_text(record))
    if any(run.overflows for run in curves(record)):
        parts.append(_scale_text(record))
    if named := doubted_cases(record):
        parts.append(f"Disturbed while measured, as the record warns: {', '.join(named)}.")
    parts.append(
        "Times rest on the step in fp32, on its profile, and on its parts replayed alone; none of them is predicted."
    )
    parts.append(summary(record))
    return "\n\n".join(p for p in parts if p)


# What the lab prints


def cases(points: Iterable[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The points of the cases that a learner can predict, by name."""
    return {str(p["case"]): p for p in points if p.get("role") in ROLES and _predicted(p)}


def describe(cases: Mapping[str, dict[str, Any]], names: Sequence[str] = ()) -> str:
    """A table of what the named cases are; of all if none is named."""
    words = {"fp32": "in fp32", "tf32": "in fp32 with tf32 products", "bf16": "under bf16 autocast",
             "fp16": "under fp16 autocast, with a scaler"}  # fmt: skip
    rows = []
    for name in names or list(cases):
        p = cases[name]
        role, how = str(p["role"]), words[str(p["precision"])]
        recomputed = ", every layer recomputed" if p.get("recomputation") == "full" else ""
        if role == "accumulated":
            what = f"time of a step of {p['microbatches']} microbatches {how}"
        elif role in TIMES:
            what = f"time of a training step {how}{recomputed}"
        elif role == "memory":
            what = f"bytes that the layers keep for the backward pass {how.partition(',')[0]}{recomputed}"
        elif role == "scale":
            what = f"loss scale after {p.get('steps', 'all')} steps, from {power(float(p['initial_scale']))}"
        elif _weighs(p):
            what = (
                f"weight of a token of the microbatch with {p['tokens']:,.0f} of {p['total_tokens']:,.0f} tokens, in "
                f"the mean of {p['microbatches']} means"
            )
        else:
            wrong = "" if p["divided"] else ", not divided by their number"
            what = f"relative difference of the gradient of {p['microbatches']} microbatches {how}{wrong}"
        rows.append([name, what])
    return columns(["case", "what"], rows)


def _known(record: Record) -> dict[str, list[Sample]]:
    """The measured results by the series of their points, calibration included."""
    found: dict[str, list[Sample]] = {}
    for sample in record.samples:
        role, series = sample.point.get("role"), sample.point.get("series")
        if role not in (*ROLES, "calibration") or sample.status != "ok" or not isinstance(series, str):
            continue
        if sample.metric == _main(sample.point) != "matmul_time":
            found.setdefault(series, []).append(sample)
    return found


TABLES: dict[str, Callable[[Record], str]] = {
    "curves": _curves_text, "zero gradients": _zero_text, "scale": _scale_text, "token weights": _weights_text,
}  # fmt: skip


def sweep(record: Record, name: str) -> str:
    """A table of the cases of a series, such as "step" or "memory"; or one of the training runs.

    "curves" says what became of each run, "zero gradients" what share of their gradients vanished, "scale" what made
    the loss scale change, "token weights" how much tokens count in a mean of means, "recomputation" what time and what
    bytes a second forward pass is traded for.

    Raises:
        EfflabError: the record has no series of that name; names the ones it has.
    """
    _check(record)
    known = _known(record)
    if name in TABLES:
        return TABLES[name](record)
    if name == "recomputation":
        return _trade(record)
    if name not in known:
        raise unknown("series", name, [*TABLES, "recomputation", *known])
    rows = {r.case: r for r in points(record)}
    table = []
    for sample in known[name]:
        case, unit, value = str(sample.point["case"]), UNITS[sample.unit], median(sample.values)
        row = rows.get(case)
        sides = [show(row.predicted, unit), signed(row.error)] if row else ["", ""]
        if sample.point["role"] == "calibration":
            sides = ["calibrates", ""]
        table.append([case, sides[0], show(value, unit), sides[1]])
    return columns(["case", "predicted", "measured", "error"], table, (1, 2, 3))


def _trade(record: Record) -> str:
    """Time and bytes of a step that keeps its activations, and of one that computes them again."""
    rows = {r.case: r for r in points(record)}
    table = []
    for precision in ("fp32", "bf16"):
        kept, again = f"memory-{precision}", f"recomputed-{precision}"
        left = f"{kept}-recomputed"
        time = _plain(record, precision)
        if time is None or not {kept, again, left} <= set(rows):
            continue
        longer = rows[again].measured / time - 1
        table.append(
            [precision, show(time, SECOND), show(rows[again].measured, SECOND), signed(longer),
             show(rows[kept].measured, BYTE), show(rows[left].measured, BYTE),
             f"1/{rows[kept].measured / rows[left].measured:.3g}"]
        )  # fmt: skip
    if not table:
        raise EfflabError(f"record {record.id}: no step was measured with and without recomputation.")
    head = ["", "step", "recomputed", "time", "layers keep", "recomputed", "bytes"]
    return columns(head, table, range(1, 7))


def compare(record: Record, slow: str, fast: str) -> str:
    """By which factor one case is larger than another, predicted and measured; or why there is nothing to compare.

    The step in fp32, which calibrates, may be one of them.

    Raises:
        EfflabError: a case that is unknown, or two that measure different things.
    """
    rows = {r.case: (r.metric, r.predicted, r.measured, r.unit) for r in points(record)}
    if (step := _optional(record, "step-fp32")) is not None:
        rows["step-fp32"] = ("time", step, step, SECOND)
    for name in (slow, fast):
        if name not in rows:
            gone = [m for m in missing(record) if m.startswith(f"{name} ")]
            if gone:
                return f"{gone[0].rstrip('.')}. So there is nothing to compare."
            raise unknown("compare: case", name, rows)
    (metric, *a, unit), (other, *b, _) = rows[slow], rows[fast]
    if metric != other:
        raise EfflabError(f"compare: {slow} is a {metric} and {fast} is a {other}. Name two of one kind.")
    word = {"time": "faster", "error": "closer", "memory": "smaller"}.get(metric, "smaller")
    lines = [
        f"{name}: {'' if name == 'step-fp32' else f'predicted {show(predicted, unit)}, '}measured "
        f"{show(measured, unit)}"
        for name, (predicted, measured) in ((slow, a), (fast, b))
    ]
    lines.append(f"{word} by: predicted {a[0] / b[0]:.3g}×, measured {a[1] / b[1]:.3g}×")
    return "\n".join(lines)


def evidence(record: Record, case: str) -> str:
    """What a case's prediction consists of, beside what was measured of each part; or what became of a training run.

    Raises:
        EfflabError: the record has no such case, or it was not measured.
    """
    rows = {r.case: r for r in points(record)}
    runs = {run.case: run for run in curves(record)}
    uneven = {
        str(s.point["case"]): s for s in record.samples
        if s.point.get("role") == "equivalence" and s.metric == "error" and s.status == "ok"
        and not _predicted(s.point)
    }  # fmt: skip
    if case in runs:
        return _run_evidence(record, runs[case])
    if case in uneven:
        return _uneven_evidence(record, uneven[case])
    if case not in rows:
        raise unknown("case", case, [*rows, *uneven, *runs])
    row = rows[case]
    point = next(s for s in _samples(record) if s.point["case"] == case).point
    lines = [f"{case}: predicted {_shown(row, row.predicted)}, measured {_shown(row, row.measured)}"]
    if row.role == "step":
        lines += _step_evidence(record, row, point)
    elif row.role == "recomputation":
        forward, layers = (_calibrating(record, f"forward-{row.precision}", m) for m in ("time", "layers_time"))
        step = expected_step(record, row.precision)
        assert forward and layers and step
        layers = min(layers, forward)
        known = "" if row.precision == "fp32" else " as predicted"
        lines.append(
            f"  {show(step, SECOND)} of the step{known}, and {show(layers, SECOND)} of the layers, which are "
            f"{layers / forward:.0%} of a forward pass of {show(forward, SECOND)}."
        )
    elif row.role == "accumulated":
        alone, update = (_calibrating(record, f"{n}-{row.precision}") for n in ("microbatch", "update"))
        assert alone and update
        lines.append(
            f"  {point['microbatches']} microbatches of {show(alone, SECOND)} and one update of {show(update, SECOND)}."
        )
    elif row.role == "memory":
        lines += _memory_evidence(record, point)
    elif row.role == "scale":
        lines += _scale_evidence(record, point)
    lines.append(f"  {row.explanation}")
    return "\n".join(lines)


def _step_evidence(record: Record, row: Row, point: Mapping[str, Any]) -> Iterator[str]:
    step, share, gain = _calibrating(record, "step-fp32"), matmul_share(record), speedups(record)[row.precision]
    assert step is not None and share is not None
    inside, whole = (median_of(record, point, m) for m in ("matmul_time", "step_time"))
    seen = [show(v, SECOND) if v is not None else "" for v in
            (inside, whole - inside if whole and inside is not None else None, row.measured)]  # fmt: skip
    parts = (("products", share), ("everything else", 1 - share))
    body = [
        [name, show(step * part, SECOND), f"{g:.3g}×", show(step * part / g, SECOND), profiled]
        for (name, part), g, profiled in zip(parts, gain, seen[:2], strict=True)
    ]
    body.append(["step", show(step, SECOND), f"{step / row.predicted:.3g}×", show(row.predicted, SECOND), seen[2]])
    for line in columns(["part", "in fp32", "speedup", "predicted", "measured"], body, (1, 2, 3, 4)).splitlines():
        yield f"  {line}"
    yield "  The parts are measured by a profile of this step, the step without one."
    if whole and (slow := _profiled(whole, row.measured)):
        yield f"  {slow}"
    if share < 1:
        limit = formulas.amp_limit(matmul_share=min(share, 0.999999), other_speedup=gain[1])
        yield (
            f"  Products that took no time would give {float(limit):.3g}×; the step reaches {step / row.measured:.3g}×."
        )
    if row.datasheet:
        sheet = datasheet_speedup(record, row.precision, point)
        yield (
            f"  By the data sheet's roofline products are {sheet:.3g}× as fast as in fp32; with the rest unchanged "
            f"the step would take {show(row.datasheet, SECOND)}."
        )


def _memory_evidence(record: Record, point: Mapping[str, Any]) -> Iterator[str]:
    expected = expected_bytes(point, record.environment.kind)
    seen = {part: median_of(record, point, part) for part in ("weights", "gradients", "optimizer", "outside")}
    copies, counted = median_of(record, point, "weight_copies"), median_of(record, point, "counted")
    seen["copies"] = copies
    seen["activations"] = counted - copies if counted is not None and copies is not None else None
    names = {"activations": "activations of the layers", "copies": "16-bit copies of their weights",
             "outside": "outside of the layers"}  # fmt: skip
    body = [
        [names.get(part, part), show(expected[part], BYTE), "" if (s := seen[part]) is None else show(s, BYTE)]
        for part in PARTS
        if expected[part] or seen[part]
    ]
    for line in columns(["part of a step", "predicted", "measured"], body, (1, 2)).splitlines():
        yield f"  {line}"
    kept = [
        (s.metric.removeprefix("kept_"), median(s.values)) for s in record.samples
        if s.metric.startswith("kept_") and s.point == point and s.status == "ok"
    ]  # fmt: skip
    if kept:
        yield "  layers keep by dtype: " + ", ".join(f"{d} {show(v, BYTE)}" for d, v in kept)


def _scale_evidence(record: Record, point: Mapping[str, Any]) -> Iterator[str]:
    run = next(c for c in curves(record) if c.overflows)
    bounds = largest_scales(run)
    if not bounds:
        return
    first = next((i for i, o in enumerate(run.overflows) if not o), len(run.overflows))
    expected = formulas.first_overflows(scale=run.scales[0], largest_scale=bounds[0])
    yield (
        f"  At step 1 the largest fp16 number of the backward pass is {show(run.largest[0])}, so a scale of up to "
        f"2^{math.log2(bounds[0]):.1f} overflows nothing: {plural(float(expected), 'step')} skipped at the start were "
        f"to be expected from {power(run.scales[0])}, {plural(first, 'step')} were."
    )
    at = checked_steps(record, run)
    agreed = [(run.scales[s] > bound) == run.overflows[s] for s, bound in zip(at, bounds, strict=False)
              if s < len(run.overflows)]  # fmt: skip
    yield (
        f"  At {sum(agreed)} of {len(agreed)} checked steps a scale above the largest one, "
        f"2^{math.log2(min(bounds)):.1f} to 2^{math.log2(max(bounds)):.1f}, and an overflow go together."
    )
    rate = formulas.skipped_share(growth_interval=float(point["growth_interval"]))
    later = run.overflows[first:]
    if later:
        yield (
            f"  After the start {sum(later) / len(later):.1%} of the steps were skipped; with a largest gradient that "
            f"stays the same {float(rate):.1%} would be."
        )


def _uneven_evidence(record: Record, sample: Sample) -> str:
    """What the mean of means of microbatches of different length does to the gradient."""
    lines = [
        f"{sample.point['case']}: the gradient of the mean of means differs from the batch's by "
        f"{show(median(sample.values))} of its norm"
    ]
    lines += [f"  {line}" for line in _weights_text(record).splitlines()]
    lines.append(
        "  The error itself is not predicted: it depends on how much the gradients of the microbatches have in common."
    )
    return "\n".join(lines)


def _run_evidence(record: Record, run: Curve) -> str:
    """The numbers behind a training run."""
    point = run.point
    lines = [
        f"{run.case}: {verdict(record, run)}" if verdict(record, run) else run.case,
        f"  loss {run.losses[0]:.3f} at step 1, {run.last:.3f} over the last of its {plural(len(run.losses), 'step')}; "
        f"weights in {point['weights']}, {'with' if point['scaler'] else 'without'} a scaler, the loss weighted by "
        f"{power(float(point['loss_weight']))}",
    ]
    if run.zero:
        steps = ", ".join(
            f"{share:.1%} at {step + 1}" for step, share in zip(checked_steps(record, run), run.zero, strict=False)
        )
        lines.append(f"  zero gradients by step: {steps}")
    if run.point["precision"] in NARROW and not point["scaler"] and point["weights"] == "fp32":
        kept = formulas.smallest_kept_gradient(smallest_subnormal=_smallest(str(point["precision"])), scale=1.0)
        lines.append(f"  in {point['precision']} a number below {show(float(kept))} is rounded to zero")
    if why := _why_curve(record, run):
        lines.append(f"  {why}")
    return "\n".join(lines)


# Predictions that were saved from a calculator


# What a record can answer of each calculator: the output and its unit.
ANSWERED = {
    "amp-speedup": {"gain": "", "time_after": "s"},
    "loss-scale": {"overflows": "", "scale_now": "", "skipped": ""},
    "amp-memory": {"total": "B", "extra": ""},
}  # fmt: skip
_CLOSE = 0.05  # relative; as well as a person copies a share or a speedup
_OWN = ("layers", "hidden_size", "intermediate_size", "query_heads", "vocabulary")


def asked(prediction: Prediction) -> dict[str, dict[str, Any]]:
    """The outputs of a calculator's prediction that a run of the lab could answer, each with the prediction's inputs.

    Memory is asked of a model of one's own only: the lab's decoder is none of the catalog's models.
    """
    wanted = ANSWERED.get(prediction.calculator or "", {})
    if prediction.calculator == "amp-memory" and prediction.inputs.get("model") != "custom":
        return {}
    return outputs_in(prediction, wanted)


def answers(record: Record, prediction: Prediction) -> dict[str, Row]:
    """Of those outputs, the ones that this record answers: where the inputs are the run's own.

    - "amp-speedup": the share of the products is the one that was measured, and so are the speedups; or the
      accelerator is the record's.
    - "loss-scale": the scaler's settings are the run's, and the largest gradient is one that it had.
    - "amp-memory": the model is the lab's decoder.

    Raises:
        EfflabError: as `points`.
    """
    _check(record)
    wanted = asked(prediction)
    if not wanted:
        return {}
    answer = {"amp-speedup": _answer_speedup, "loss-scale": _answer_scale, "amp-memory": _answer_memory}
    found = answer[str(prediction.calculator)](record, dict(prediction.inputs))
    return {name: answered(row, prediction.outputs[name].value) for name, row in found.items() if name in wanted}


def _close(a: Any, b: Any) -> bool:
    """Two numbers that agree within 5%; False for what is no number."""
    numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in (a, b))
    return numbers and abs(a - b) <= _CLOSE * max(abs(a), abs(b))


def _as_row(case: str, role: str, metric: str, precision: str, unit: Unit, measured: float) -> Row:
    """A measured number of a case, such as its speedup; what is predicted is the learner's."""
    return Row(
        case=case, role=role, metric=metric, precision=precision, unit=unit, predicted=measured, measured=measured,
        datasheet=None, iqr=0.0, ratio=1.0, error=0.0, explanation="",
    )  # fmt: skip


def _answer_speedup(record: Record, inputs: Mapping[str, Any]) -> dict[str, Row]:
    share, gains, step = matmul_share(record), speedups(record), _optional(record, "step-fp32")
    if share is None or step is None or not _close(inputs.get("matmul_share"), share):
        return {}
    rows = {r.precision: r for r in points(record, ("step",))}
    entry = datasheet(record)
    for precision, row in rows.items():
        products, other = gains[precision]
        if inputs.get("products") == "custom":
            same = _close(inputs.get("own_matmul_speedup"), products) and _close(inputs.get("other_speedup"), other)
        else:
            same = entry is not None and (entry.name, "fp32", precision) == tuple(
                inputs.get(n) for n in ("accelerator", "before", "after")
            )
        if same:
            gain = _as_row(row.case, row.role, "speedup", precision, NUMBER, step / row.measured)
            return {"gain": gain} | ({"time_after": row} if _close(inputs.get("time"), step) else {})
    return {}


def _answer_scale(record: Record, inputs: Mapping[str, Any]) -> dict[str, Row]:
    run = next((c for c in curves(record) if c.overflows), None)
    if run is None or not run.largest or inputs.get("format") != "fp16":
        return {}
    point, gradient = run.point, inputs.get("largest_gradient")
    same = all(_close(inputs.get(a), point[b]) for a, b in (("scale", "initial_scale"), 2 * ("growth_interval",)))
    if not same or not isinstance(gradient, int | float) or not min(run.largest) <= gradient <= max(run.largest):
        return {}
    first = next((i for i, o in enumerate(run.overflows) if not o), len(run.overflows))
    later = run.overflows[first:]
    found = {}
    if first:  # an error in percent needs two numbers above zero
        found["overflows"] = ("overflows", float(first))
    if any(later):
        found["skipped"] = ("skipped", sum(later) / len(later))
    step = inputs.get("step")
    if isinstance(step, int | float) and 0 <= step < len(run.scales) and step == int(step):
        found["scale_now"] = ("scale", run.scales[int(step)])
    return {
        name: _as_row(run.case, "curve", metric, "fp16", NUMBER, measured) for name, (metric, measured) in found.items()
    }


def _answer_memory(record: Record, inputs: Mapping[str, Any]) -> dict[str, Row]:
    rows = {r.case: r for r in points(record, ("memory", "recomputation"))}
    found: dict[str, Row] = {}
    for sample in _samples(record):
        point, case = sample.point, str(sample.point["case"])
        if case not in rows or point["role"] != "memory" or inputs.get("attention") != "standard":
            continue
        own = all(_close(inputs.get(f"own_{n}"), point[n]) for n in _OWN) and all(
            _close(inputs.get(n), point[n]) for n in ("sequence_length", "microbatch")
        )
        narrow = point["precision"] in NARROW
        same = (inputs.get("precision"), inputs.get("recomputation")) == (
            "autocast" if narrow else "fp32", point["recomputation"],
        )  # fmt: skip
        if not own or not same or not _close(inputs.get("own_parameters"), parameter_count(point)):
            continue
        if whole := median_of(record, point, "step"):
            found.setdefault("total", _as_row(case, "memory", "step", str(point["precision"]), BYTE, whole))
        again = rows.get(f"recomputed-{point['precision']}")
        step = _plain(record, str(point["precision"]))
        if again and step and point["recomputation"] == "full" and again.measured > step:
            more = again.measured / step - 1
            found.setdefault("extra", _as_row(again.case, again.role, "overhead", again.precision, NUMBER, more))
    return found


def _plain(record: Record, precision: str) -> float | None:
    """The measured time of a step in a precision without recomputation, s."""
    return next(
        (median(s.values) for s in record.samples if s.point.get("case") == f"step-{precision}"
         and s.metric == "time" and s.status == "ok"),
        None,
    )  # fmt: skip


__all__ = [
    "BASE",
    "CALIBRATION",
    "DRAWN",
    "LIMITS",
    "PICTURES",
    "Curve",
    "Row",
    "answers",
    "asked",
    "banner",
    "behind",
    "calibrates",
    "calibration",
    "calibration_text",
    "cases",
    "checked_steps",
    "compare",
    "curves",
    "datasheet",
    "datasheet_speedup",
    "describe",
    "evidence",
    "expected_bytes",
    "expected_difference",
    "expected_scales",
    "expected_step",
    "expected_time",
    "largest_scales",
    "matmul_share",
    "missing",
    "parameter_count",
    "points",
    "power",
    "products",
    "reference",
    "scatters",
    "speedups",
    "summary",
    "sweep",
    "table",
    "text",
    "verdict",
]  # fmt: skip
