"""Precision against a recorded run: time, error and memory.

- Time of a product: its operations at the rate of the largest product of the same dtype, with the overhead that a
  tiny product of that dtype shows. Where the catalog knows the device, also at the data sheet's rate.
- Error of a product: the rounding of both inputs, of the sums and of the result. In what blocks a library adds up is
  read off the error of the largest fp32 product; it matters for fp32 only.
- Memory of a training step: parameters times bytes, and the activations by the formulas of Korthikanti et al.

What calibrates is not predicted. Where prediction and measurement part, the explanation says what the record holds;
a cause that it does not hold stands behind "consistent with".
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

from efflab import catalog
from efflab.errors import EfflabError, unknown
from efflab.formulas import memory as bytes_of
from efflab.formulas import precision as formulas
from efflab.formulas import roofline, transformer
from efflab.reconcile import (
    LARGEST,
    NEAR,
    NOTHING,
    Compared,
    agrees,
    columns,
    damaged,
    doubted,
    error,
    joined,
    median_of,
    no_result,
    of_topic,
    place,
    positive,
    signed,
    unsigned,
    unsteady,
    with_energy,
)
from efflab.reconcile import answers as answers
from efflab.reconcile import asked as asked  # none: the calculators are about other decoders than the lab measures
from efflab.reconcile import banner as banner
from efflab.reconcile import calibrates as calibrates
from efflab.reconcile import datasheet as datasheet
from efflab.reconcile import scatters as scatters
from efflab.records import Record, Sample, iqr, median
from efflab.units import BYTE, FLOP_PER_SECOND, NUMBER, SECOND, UNITS, Unit, show

DTYPES = ("fp64", "fp32", "tf32", "bf16", "fp16", "fp8", "int8")
PARTS = ("weights", "gradients", "optimizer")
MEMORY = (*PARTS, "activations", "step")
ROLES = ("product", "error", *MEMORY)
METRIC = {"product": "time", "error": "error"} | dict.fromkeys(MEMORY, "memory")

LIMITS: tuple[str, ...] = ()
CALIBRATION: dict[str, tuple[str, Unit]] = {f"peak-{d}": ("performance", FLOP_PER_SECOND) for d in DTYPES}
CALIBRATION |= {f"speedup-{d}": ("speedup", NUMBER) for d in DTYPES if d != "fp32"}
CALIBRATION |= {"block": ("terms", NUMBER)}
BASE: tuple[str, ...] = ()  # what every prediction rests on
PICTURES = ("precision", "memory", "errors")
DRAWN = ("product", "error")

# The formats of the catalog. An fp8 or 16-bit product adds up in fp32, and an fp8 product returns bf16.
FORMATS = {"fp64": "FP64", "fp32": "FP32", "tf32": "TF32", "bf16": "BF16", "fp16": "FP16", "fp8": "FP8 E4M3FN"}
RESULT = {"bf16": "bf16", "fp16": "fp16", "fp8": "bf16"}
LEVELS = 127  # of symmetric int8
# Bytes a parameter takes as weight, gradient and in AdamW's two moments; torch keeps them in the parameter's dtype.
STATE = {"fp32": (4, 4, 8), "bf16": (2, 2, 4), "autocast": (4, 4, 8)}
ACTIVATION = {"fp32": 4, "bf16": 2, "autocast": 2}  # B per element
# The instruction sets that multiply a dtype on a CPU, as Linux names them.
MULTIPLIES = {
    "bf16": ("avx512_bf16", "amx_bf16", "bf16"), "fp16": ("avx512_fp16", "amx_fp16", "asimdhp"), "fp8": (),
    "int8": ("avx512_vnni", "avx_vnni", "amx_int8", "i8mm"),
}  # fmt: skip
LARGE = 1024  # rows from which several threads are worth their cost
HINDERED = 3  # how many times faster one thread is only where something else runs on the others' cores
# A tiny product that takes longer than another one, times this, waited. A GPU may only launch either of them.
WAITED = {"cpu": 1.0, "cuda": 1.5, "rocm": 1.5}


@dataclass(frozen=True, kw_only=True)
class Row(Compared):
    """One case, predicted and measured.

    Attributes:
        dtype: of a product; of a step how its weights are kept: "fp32", "bf16" or "autocast".
        datasheet: the time at the data sheet's rate, s; None where there is none.
    """

    dtype: str
    datasheet: float | None


# Reading a record: a point is the topic's own, so what is read from it is checked here

_SIZES = ("m", "n", "k")
DECODER = (  # what defines its decoder and the batch
    "layers", "sequence_length", "microbatch", "hidden_size", "intermediate_size", "query_heads", "head_dim",
    "vocabulary",
)  # fmt: skip
_WORDS: dict[str, Sequence[str]] = {
    "weights": tuple(STATE), "attention": ("math", "sdpa"), "recomputation": ("none", "full"),
    "method": ("counted", "allocator"),
}  # fmt: skip


def _check(record: Record) -> None:
    """Raise `EfflabError`, naming record, sample and field, for a point that cannot be reconciled."""
    of_topic(record, "precision")
    for index, sample in enumerate(record.samples):
        point, role = sample.point, sample.point.get("role")
        wrong = functools.partial(damaged, record, index)
        if role not in (*ROLES, "calibration"):
            continue
        if not isinstance(point.get("case"), str) or not point["case"]:
            raise wrong("case", "a text")
        expected = METRIC.get(role)  # type: ignore[arg-type]
        if expected == sample.metric and sample.unit != {"time": "s", "error": "", "memory": "B"}[expected]:
            raise EfflabError(f"{place(record, index)}: a {expected} in {sample.unit!r}. Measure it again.")
        if role in MEMORY:
            for field, words in _WORDS.items():
                if point.get(field) not in words:
                    raise wrong(field, f"one of {', '.join(words)}")
            if not isinstance(point.get("dropout"), bool):
                raise wrong("dropout", "true or false")
        elif point.get("dtype") not in DTYPES:
            raise wrong("dtype", f"one of {', '.join(DTYPES)}")
        for field in DECODER if role in MEMORY else _SIZES:
            value = point.get(field)
            if not positive(value, LARGEST):
                raise wrong(field, "a number greater than zero")


def _samples(record: Record) -> list[Sample]:
    """The samples that are a case's result, calibration left out."""
    _check(record)
    return [s for s in record.samples if s.metric == METRIC.get(str(s.point.get("role")))]


def _products(record: Record, dtype: str) -> list[Sample]:
    """The timed products of a dtype, from the smallest; the tiny one, which stands for the overhead, left out."""
    found = [
        s
        for s in record.samples
        if s.metric == "time" and s.status == "ok" and s.point.get("dtype") == dtype
        and not str(s.point.get("case")).startswith("overhead-")
    ]  # fmt: skip
    return sorted(found, key=lambda s: s.point["m"])


def _flops(point: Mapping[str, Any]) -> float:
    return float(roofline.matmul_flops(m=point["m"], n=point["n"], k=point["k"]))


# Calibration


def largest(record: Record, dtype: str) -> Sample | None:
    """The product whose rate stands for a dtype's peak: the largest that was measured."""
    found = _products(record, dtype)
    return found[-1] if found else None


def peaks(record: Record) -> dict[str, float]:
    """The rate of the largest product of each dtype, FLOP/s (for int8 integer operations per second)."""
    _check(record)
    found = {d: largest(record, d) for d in DTYPES}
    return {d: _flops(s.point) / median(s.values) for d, s in found.items() if s}


def overheads(record: Record) -> dict[str, float]:
    """The time of a tiny product of each dtype, s."""
    _check(record)
    return {
        str(s.point["dtype"]): median(s.values)
        for s in record.samples
        if s.metric == "time" and s.status == "ok" and str(s.point.get("case")).startswith("overhead-")
    }


def block_size(record: Record) -> tuple[int, float, float] | None:
    """In blocks of how many terms sums run, by the error of the largest fp32 product.

    Returns:
        The terms of that product, its error, and the block size with which the formula gives that error: at least
        the square root of the terms, at most the terms. None where the record has no such error.
    """
    _check(record)
    found = [
        s
        for s in record.samples
        if s.metric == "error" and s.status == "ok" and s.point.get("dtype") == "fp32"
        and s.point.get("role") == "calibration"
    ]  # fmt: skip
    if not found:
        return None
    terms, measured = int(found[-1].point["k"]), median(found[-1].values)
    low, high = math.sqrt(terms), float(terms)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if expected_error("fp32", terms, terms, middle) < measured else (low, middle)
    return terms, measured, high


def calibration(record: Record) -> dict[str, float]:
    """The measured value of each of `CALIBRATION`, where there is one."""
    rates, block = peaks(record), block_size(record)
    found = {f"peak-{d}": rate for d, rate in rates.items()}
    if "fp32" in rates:
        found |= {f"speedup-{d}": rate / rates["fp32"] for d, rate in rates.items() if d != "fp32"}
    return found | ({"block": block[2]} if block else {})


def calibration_text(record: Record) -> str:
    """Peaks and overheads by dtype, what multiplies them, and how sums are blocked."""
    rates, waits, entry = peaks(record), overheads(record), datasheet(record)
    table = []
    for dtype, rate in rates.items():
        sample = largest(record, dtype)
        assert sample is not None
        row = [dtype, f"{sample.point['m']:,}", show(rate, FLOP_PER_SECOND)]
        row.append(f"{rate / rates['fp32']:.3g}×" if "fp32" in rates else "")
        row.append(show(waits[dtype], SECOND) if dtype in waits else "")
        if entry:
            sheet = entry.peak_dense.get(dtype)
            row.append(f"{show(sheet, FLOP_PER_SECOND)} ({rate / sheet:.0%})" if sheet else "none")
        table.append(row)
    head = ["dtype", "size", "rate", "to fp32", "overhead", *(["data sheet, dense"] if entry else [])]
    lines = [columns(head, table, (1, 2, 3, 4))] if table else ["No product was measured."]
    lines += [said for dtype in rates if (said := _hardware(record, dtype, rates))]
    lines += [
        f"The overhead of {dtype} was disturbed: its tiny product took longer than a product that is predicted from it."
        for dtype in rates
        if _waited(record, dtype)
    ]
    if block := block_size(record):
        terms, measured, k = block
        single = expected_error("fp32", terms, terms, terms)
        how = "one running sum" if k > 0.9 * terms else f"sums in blocks of about {show(k, digits=2)} terms"
        lines.append(
            f"Sums: the fp32 product of size {terms:,} has an error of {show(measured)}; one running sum of {terms:,} "
            f"terms would give {show(single)}. Consistent with {how}."
        )
    if not entry:
        lines.append("Data sheet: the catalog has no entry for this device.")
    return "\n".join(lines)


def _a(dtype: str) -> str:
    """The dtype behind its article: "an fp16", "a bf16"."""
    return f"{'a' if dtype[0] in 'bt' else 'an'} {dtype}"


def _hardware(record: Record, dtype: str, rates: Mapping[str, float]) -> str:
    """Why a dtype of fewer bits is slower than fp32 on a CPU, by the instructions that the processor lists."""
    listed = record.spec.get("instructions")
    if record.environment.kind != "cpu" or dtype not in MULTIPLIES or not isinstance(listed, list) or not listed:
        return ""
    if "fp32" not in rates or rates[dtype] >= rates["fp32"]:
        return ""
    x86 = "x86" in (record.environment.platform or "")
    needed = [i for i in MULTIPLIES[dtype] if not x86 or i.startswith(("amx", "avx"))]
    factor = rates["fp32"] / rates[dtype]
    slower = f"{dtype} is {f'{factor:.2g} times' if factor >= 1.1 else f'{factor - 1:.1%}'} slower than fp32 here."
    if not needed:
        return f"{slower} No CPU instruction multiplies it. Consistent with converting every element to a wider type."
    if not set(needed) & set(listed):
        return (
            f"{slower} The processor lists no instruction that multiplies it ({', '.join(needed)}). Consistent with "
            "converting to fp32 and back."
        )
    return (
        f"{slower} The processor lists {', '.join(i for i in needed if i in listed)}: the record does not explain it."
    )


# Prediction


def expected_time(flops: float, peak: float, overhead: float, kind: str) -> float:
    """Seconds of one product. On a CPU the overhead comes on top; on a GPU launching overlaps with running."""
    work = float(roofline.compute_time(flops=flops, peak_performance=peak))
    return overhead + work if kind == "cpu" else max(overhead, work)


def expected_error(dtype: str, terms: int, rows: int, block: float) -> float:
    """Relative error, in the Frobenius norm, of a product of random normal matrices.

    Args:
        dtype: of the inputs. 16-bit floats, tf32 and fp8 are added up in fp32; fp8 returns bf16. int8 takes each
            matrix's largest magnitude as 127, and its sums are exact.
        terms: inner dimension.
        rows: of each input; rows times terms is how many numbers the largest magnitude is taken of.
        block: terms that are added up in a row.
    """
    if dtype == "int8":
        step = formulas.integer_rounding_error(largest_magnitude=normal_largest(rows * terms), rms=1, levels=LEVELS)
        return math.sqrt(2) * float(step)

    return float(
        formulas.dot_product_error(
            terms=terms,
            input_epsilon=_epsilon(dtype),
            accumulator_epsilon=_epsilon("fp64" if dtype == "fp64" else "fp32"),
            output_epsilon=_epsilon(RESULT[dtype]) if dtype in RESULT else 0.0,
            block_size=min(block, terms),
        )
    )


def _epsilon(dtype: str) -> float:
    bits = catalog.number_format(FORMATS[dtype]).mantissa_bits
    return float(formulas.machine_epsilon(mantissa_bits=bits))


def normal_largest(count: float) -> float:
    """The median of the largest magnitude among `count` standard normal numbers."""
    # Each exceeds it with probability 1 - 0.5^(1/count), in both tails together; expm1 keeps what is left of it.
    return -NormalDist().inv_cdf(-0.5 * math.expm1(math.log(0.5) / count))


def truncated_inputs_error(epsilon: float) -> float:
    """Relative error of a product of normal random matrices whose inputs lose their last bits, not rounded to nearest.

    What is lost lies between 0 and the spacing, with the sign of the number. So its mean square is four times that of
    rounding, and its mean does not vanish: sums of products shrink too.

    Args:
        epsilon: spacing of the format at 1.
    """
    normal = NormalDist()
    # Mean of |x| times the spacing at x, over all powers of two; half of the spacing is lost on average.
    spacing = epsilon * sum(2.0 ** (e + 1) * (normal.pdf(2.0**e) - normal.pdf(2.0 ** (e + 1))) for e in range(-60, 6))
    square = 4 * float(formulas.rms_rounding_error(epsilon=epsilon)) ** 2
    return math.sqrt(2 * square + 2 * (spacing / 2) ** 2)


def parameter_count(point: Mapping[str, Any]) -> float:
    """Parameters of the lab's decoder."""
    shape = {n: point[n] for n in DECODER if n not in ("sequence_length", "microbatch")}
    return float(
        transformer.parameter_count(
            **shape, kv_heads=point["query_heads"], positions=point["sequence_length"], mlp_matrices=2,
            position_projections=0, tied_embeddings=True, biases="all", norm="layer", norms_per_block=2, outer_norms=1,
        )
    )  # fmt: skip


def expected_bytes(point: Mapping[str, Any], kind: str) -> dict[str, float]:
    """Bytes of each part of a training step by the formulas: weights, gradients, optimizer, activations, outside, step.

    Dropout's masks take one byte an element on a GPU; on a CPU torch keeps them in the tensor's own dtype. The step is
    the sum of the parts. Where the allocator's peak is what is measured and the layers are recomputed, one whole layer
    takes the place of what lies outside of the layers, if it is larger.
    """
    weights, element = str(point["weights"]), float(ACTIVATION[str(point["weights"])])
    parameters = parameter_count(point)
    functions = (bytes_of.weight_bytes, bytes_of.gradient_bytes, bytes_of.optimizer_bytes)
    found = {
        part: float(function(parameters=parameters, bytes_per_parameter=float(size)))
        for part, function, size in zip(PARTS, functions, STATE[weights], strict=True)
    }
    sizes = {n: point[n] for n in ("sequence_length", "microbatch", "hidden_size")}
    layer = functools.partial(
        bytes_of.layer_activation_bytes, **sizes, intermediate_size=point["intermediate_size"], mlp_matrices=2,
        query_heads=point["query_heads"], kv_heads=point["query_heads"], bytes_per_element=element,
        mask_bytes=element if kind == "cpu" else 1.0,
        attention="standard" if point["attention"] == "math" else "flash", dropout=point["dropout"],
    )  # fmt: skip
    found["activations"] = float(layer(layers=point["layers"], recomputation=point["recomputation"]))
    found["outside"] = float(
        bytes_of.output_activation_bytes(**sizes, vocabulary=point["vocabulary"], bytes_per_element=element)
    )
    beside = found["outside"]
    if point["recomputation"] == "full" and point["method"] == "allocator":
        beside = max(beside, float(layer(layers=1, recomputation="none")))
    found["step"] = sum(found[p] for p in (*PARTS, "activations")) + beside
    return found


# Reconciliation


def points(record: Record, roles: tuple[str, ...] = ROLES) -> list[Row]:
    """Every measured case of a record with its prediction, in the order measured; what calibrates has no row.

    Samples that ran out of memory or failed have no row: `missing` names them.

    Raises:
        EfflabError: the record is of another topic, a point is damaged, or the calibration of a case is missing.
    """
    samples = [s for s in _samples(record) if s.status == "ok" and s.point["role"] in roles]
    return [row for s in samples if (row := _row(record, s))]


def _row(record: Record, sample: Sample) -> Row | None:
    point, role, kind = sample.point, str(sample.point["role"]), record.environment.kind
    measured, sheet = median(sample.values), None
    if role == "product":
        dtype = str(point["dtype"])
        if sample is largest(record, dtype):
            return None  # a larger one failed, so this one calibrates
        if dtype not in overheads(record):
            raise EfflabError(f"record {record.id}: it has no sample overhead-{dtype}. Measure it again.")
        overhead, flops = overheads(record)[dtype], _flops(point)
        predicted = expected_time(flops, peaks(record)[dtype], overhead, kind)
        entry = datasheet(record)
        if entry and dtype in entry.peak_dense:
            sheet = expected_time(flops, entry.peak_dense[dtype], overhead, kind)
        causes: Callable[[Record, Sample, float, float], str] = _why_time
    elif role == "error":
        block = block_size(record)
        if block is None:
            raise EfflabError(f"record {record.id}: it has no error of a calibrating fp32 product. Measure it again.")
        predicted = expected_error(str(point["dtype"]), int(point["k"]), int(point["m"]), block[2])  # type: ignore[arg-type]
        causes = _why_error
    else:
        predicted, causes = expected_bytes(point, kind)[role], _why_memory
    if not measured > 0:
        raise EfflabError(f"record {record.id}: {point['case']} is {measured!r}; a number greater than zero is needed.")
    return Row(
        case=str(point["case"]), role=role, metric=sample.metric, dtype=str(point.get("dtype", point.get("weights"))),
        unit=UNITS[sample.unit], predicted=predicted, measured=measured, datasheet=sheet, iqr=iqr(sample.values),
        ratio=measured / predicted, error=error(predicted, measured),
        explanation=causes(record, sample, predicted, measured),
    )  # fmt: skip


def _why_time(record: Record, sample: Sample, predicted: float, seconds: float) -> str:
    scattered = unsteady(sample.values, seconds)
    if said := agrees(seconds / predicted):
        return joined([said, scattered])
    causes = _slower if seconds > predicted else _faster
    return f"{next(causes(record, sample, predicted, seconds), NOTHING)} {scattered}".rstrip()


def _slower(record: Record, sample: Sample, predicted: float, seconds: float) -> Iterator[str]:
    dtype, n = str(sample.point["dtype"]), sample.point["m"]
    alone = median_of(record, sample.point, "time_one_thread")
    threads = record.environment.threads
    if alone and threads > 1 and alone < 0.9 * seconds:
        times = f"it takes {show(alone, SECOND)}, {threads} take {show(seconds, SECOND)}"
        pair = f"One thread is faster than {threads}: {times}."
        other = "something else that used the cores while this was measured"
        if n >= LARGE or seconds >= HINDERED * alone:  # type: ignore[operator]
            yield f"{pair} Consistent with {other}."
        yield f"{pair} Consistent with {other}, or with threads that cost more than they bring at this size."
    if alone and threads > 1 and alone < 1.1 * seconds:
        yield (
            f"One thread takes {show(alone, SECOND)}, no longer than {threads}. Consistent with a library that runs "
            "this size on one thread."
        )
    peak, waits = peaks(record)[dtype], overheads(record)[dtype]
    sizes = [s for s in _products(record, dtype)[:-1] if s.point["m"] != n]
    extras = {
        int(s.point["m"]): median(s.values) - expected_time(_flops(s.point), peak, waits, record.environment.kind)
        for s in sizes
    }
    extra = seconds - predicted
    for m, other in extras.items():
        if other > 0 and extra > 0 and m != n:
            growth = math.log(other / extra) / math.log(m / n)
            pair = f"Size {n:,} takes {show(extra, SECOND)} longer than predicted, size {m:,} {show(other, SECOND)}."
            if -0.7 <= growth <= 0.7:
                yield f"{pair} Consistent with a cost of every call that the tiny product does not show."
            elif 1.3 <= growth <= 2.7:
                yield (
                    f"{pair} It grows as the matrices do. Consistent with converting or repacking them, which the "
                    "formula does not count."
                )
    rates = [(int(s.point["m"]), _flops(s.point) / median(s.values)) for s in _products(record, dtype)]
    if all(a <= b for (_, a), (_, b) in itertools.pairwise(rates)):
        ladder = ", ".join(f"{show(rate, FLOP_PER_SECOND)} at {m:,}" for m, rate in rates)
        yield f"The rate rises with the size: {ladder}. Consistent with too small a product to fill the units."


def _faster(record: Record, sample: Sample, predicted: float, seconds: float) -> Iterator[str]:
    dtype, point = str(sample.point["dtype"]), sample.point
    top = largest(record, dtype)
    assert top is not None
    wait = overheads(record)[dtype]
    if (found := _waited(record, dtype)) and wait > 0.1 * predicted:
        size, shortest = found
        yield (
            f"The overhead was disturbed: the tiny product took {show(wait, SECOND)}, the one of size {size:,} "
            f"{show(shortest, SECOND)}. Without it {show(_flops(point) / peaks(record)[dtype], SECOND)} are predicted."
        )
    if record.environment.kind == "cpu" and (wait > seconds / 2 or 1 / NEAR <= seconds / (predicted - wait) <= NEAR):
        yield (
            f"{show(wait, SECOND)} of the prediction is the time of the tiny product; without it "
            f"{show(predicted - wait, SECOND)} are left. Consistent with an overhead that was disturbed, or with a "
            "tiny product that the library treats in another way."
        )
    rates = [_flops(s.point) / median(s.values) for s in (sample, top)]
    text = (
        f"It reaches {show(rates[0], FLOP_PER_SECOND)}, the product of size {top.point['m']:,} that stands for the "
        f"peak {show(rates[1], FLOP_PER_SECOND)}."
    )
    cache = max(record.environment.caches.values(), default=0)

    def footprint(p: Mapping[str, Any]) -> float:
        return float(
            roofline.matmul_bytes(m=p["m"], n=p["n"], k=p["k"], bytes_per_element=catalog.BYTES_PER_ELEMENT[dtype])
        )

    if footprint(point) <= cache < footprint(top.point):
        text += (
            f" Its matrices take {show(footprint(point), BYTE)} and the last-level cache holds {show(cache, BYTE)}; "
            f"those of the larger one take {show(footprint(top.point), BYTE)}. Consistent with operands that stay in "
            "the cache."
        )
    yield text


def _waited(record: Record, dtype: str) -> tuple[int, float] | None:
    """Size and time, s, of a dtype's shortest product, where the tiny one that stands for the overhead took longer.

    The shortest may be one on one thread, where the others waited.
    """
    times = [(median(s.values), int(s.point["m"])) for s in _products(record, dtype)]
    alone = [median_of(record, s.point, "time_one_thread") for s in _products(record, dtype)]
    times += [(a, m) for a, (_, m) in zip(alone, list(times), strict=True) if a]
    shortest, size = min(times, default=(math.inf, 0))
    wait = overheads(record).get(dtype, 0.0)
    return (size, shortest) if wait > WAITED[record.environment.kind] * shortest else None


def _why_error(record: Record, sample: Sample, predicted: float, measured: float) -> str:
    if said := agrees(measured / predicted):
        return said
    dtype, terms = str(sample.point["dtype"]), int(sample.point["k"])
    if dtype == "int8":
        found = next((s for s in record.samples if s.metric == "absmax" and s.point == sample.point), None)
        if found and found.status == "ok":
            seen = " and ".join(f"{v:.3g}" for v in found.values)
            return (
                f"The largest magnitudes are {seen}; {normal_largest(terms * float(sample.point['m'])):.3g} was "
                "expected of so many normal numbers. The step is proportional to it."
            )
        return NOTHING
    single, none = (expected_error(dtype, terms, terms, k) for k in (terms, math.sqrt(terms)))
    if dtype == "tf32":
        # Cut off with the sign of the number it is this; cut off downwards the mean vanishes, and it is twice rounding.
        cut = truncated_inputs_error(_epsilon(dtype))
        if 2 * math.sqrt(2) * _rounding(dtype) / NEAR <= measured <= cut * NEAR:
            return (
                f"Inputs whose last bits are cut off, not rounded to nearest, would give {show(cut)}. Consistent with "
                "truncation of the inputs."
            )
    if measured > single:
        return (
            f"Even one running sum of {terms:,} terms in fp32 would give {show(single)}. Consistent with sums that "
            "keep fewer bits than fp32."
        )
    if measured < none:
        return (
            f"The best blocks for {terms:,} terms would give {show(none)}. Consistent with sums that keep more bits "
            "than fp32, or that are added pairwise."
        )
    return (
        f"It lies between blocks of {math.sqrt(terms):.0f} terms, {show(none)}, and one running sum, {show(single)}. "
        "Consistent with another blocking at this size than at the one that calibrates."
    )


def _lacking(record: Record, sample: Sample) -> list[tuple[str, float]]:
    """What a step keeps and the formulas leave out, in words and B, for the part that the sample measures."""
    point, role = sample.point, str(sample.point["role"])
    rows = point["sequence_length"] * point["microbatch"]  # type: ignore[operator]
    layers, hidden = point["layers"], point["hidden_size"]
    found: list[tuple[str, float]] = []
    if role in ("optimizer", "step") and record.environment.kind == "cpu":
        tensors = 12 * layers + 4  # type: ignore[operator]
        found.append((f"AdamW's step counters, 4 B for each of {tensors} tensors", 4.0 * tensors))
    if role not in ("activations", "step"):
        return found
    narrow = point["weights"] == "bf16" and record.environment.kind == "cpu"  # there the statistics are bf16 too
    norms = (0 if point["recomputation"] == "full" else 2 * layers) + (1 if role == "step" else 0)  # type: ignore[operator]
    if norms:
        statistics = 2 * rows * (2 if narrow else 4)
        found.append(("mean and deviation of each row in the layer norms", float(norms * statistics)))
    if role == "step":
        found.append(("one number that the loss keeps", 4.0))
    if point["recomputation"] == "full":
        return found
    if point["attention"] == "sdpa":
        found.append(
            ("one fp32 number for each row of scores, which sdpa keeps",
             4.0 * rows * point["query_heads"] * layers)  # type: ignore[operator]
        )  # fmt: skip
    if point["weights"] == "autocast":
        kept = norms if role == "step" else 2 * layers  # type: ignore[operator]
        found.append(("the norms' inputs, in fp32 and not in two bytes", 2.0 * rows * hidden * kept))  # type: ignore[operator]
        activations = next(
            (s for s in record.samples if s.metric == "weight_copies"
             and {**s.point, "case": "", "role": "", "series": ""} == {**point, "case": "", "role": "", "series": ""}),
            None,
        )  # fmt: skip
        if activations and activations.status == "ok":
            copies = median(activations.values)
            if role == "step":
                copies += 2.0 * point["vocabulary"] * hidden  # type: ignore[operator]
            found.append(("bf16 copies of the weights, which autocast makes and the backward pass needs", copies))
    return found


def _why_memory(record: Record, sample: Sample, predicted: float, measured: float) -> str:
    if measured == predicted:
        return "As predicted, to the byte."
    texts = [head] if (head := agrees(measured / predicted, 1.1)) else []
    lacking = sorted(((what, size) for what, size in _lacking(record, sample) if size > 0), key=lambda item: -item[1])
    if lacking:
        # The largest one, and whatever else shows in the third digit.
        named = [(what, size) for i, (what, size) in enumerate(lacking) if i == 0 or size > 1e-3 * measured]
        if small := sum(size for _, size in lacking[len(named) :]):
            named.append(("smaller ones", small))
        texts.append(f"Not in the formula: {'; '.join(f'{what}: {show(size, BYTE)}' for what, size in named)}.")
    if sample.point["method"] == "allocator":
        texts += _allocated(record, sample, measured)
    elif lacking:
        rest = measured - predicted - sum(size for _, size in lacking)
        texts.append(
            "Nothing is left over." if abs(rest) < 1 else f"Left over: {'−' * (rest < 0)}{show(abs(rest), BYTE)}."
        )
    return joined(texts)


def _allocated(record: Record, sample: Sample, measured: float) -> Iterator[str]:
    """What the allocator holds beyond the tensors that autograd keeps."""
    if counted := median_of(record, sample.point, "counted"):
        difference = measured - counted
        sign = "−" if difference < 0 else ""
        yield (
            f"The kept tensors are {show(counted, BYTE)} by count; the allocator differs by "
            f"{sign}{show(abs(difference), BYTE)}."
        )
    forward, rounding = median_of(record, sample.point, "after_forward"), median_of(record, sample.point, "rounding")
    if forward:
        yield (
            f"At the end of the forward pass {show(forward, BYTE)} are allocated; the peak lies "
            f"{show(max(0.0, measured - forward), BYTE)} higher. Consistent with gradients of activations and "
            "temporaries of the backward pass."
        )
    if rounding:
        yield f"{show(rounding, BYTE)} of the blocks handed out were not asked for."


def missing(record: Record) -> list[str]:
    """One sentence for every case without a result, calibration included: what happened to it."""
    _check(record)
    found = []
    for sample in record.samples:
        role = sample.point.get("role")
        if sample.status == "ok" or role not in (*ROLES, "calibration"):
            continue
        if role != "calibration" and sample.metric != METRIC[str(role)]:
            continue
        found.append(no_result(sample))
    return found


# In words and tables

KINDS = (
    (("product",), "products. Median error of the predicted time"),
    (("error",), "errors of products. Median error of the prediction"),
    (MEMORY, "sizes in memory. Median error of the prediction"),
)


def summary(record: Record) -> str:
    """Median and worst error for times, errors and bytes, and why the worst is what it is."""
    parts = []
    for roles, words in KINDS:
        rows = points(record, roles)
        if rows:
            worst = max(rows, key=lambda r: abs(math.log(r.ratio)))
            parts.append(
                f"{len(rows)} {words} {unsigned(median([abs(r.error) for r in rows]))}. Worst: {worst.case}, predicted "
                f"{show(worst.predicted, worst.unit)}, measured {show(worst.measured, worst.unit)} "
                f"({signed(worst.error)}). {worst.explanation}"
            )
    if not parts:
        return "No case of this record was measured."
    if record.scale == "smoke":
        parts.insert(0, "Smoke scale: its sizes are too small to say anything about the device.")
    if absent := missing(record):
        parts.append(f"Not in it: {'; '.join(absent)}.")
    return " ".join(parts)


def _headline(record: Record) -> list[Row]:
    """The rows of the table: of the products and errors of a dtype the smallest and the largest, of the rest all."""
    rows = points(record)
    ends: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if row.role in ("product", "error"):
            ends.setdefault((row.role, row.dtype), []).append(row)
    kept = {id(r) for found in ends.values() for r in (found[0], found[-1])}
    return [r for r in rows if r.role in MEMORY or id(r) in kept]


def table(record: Record) -> tuple[list[str], list[list[str]], tuple[int, ...]]:
    """Head, rows of text and the indices of numeric columns. Of each dtype the smallest and the largest product."""
    return _table(record, _headline(record))


def _table(record: Record, rows: Sequence[Row]) -> tuple[list[str], list[list[str]], tuple[int, ...]]:
    entry = datasheet(record)
    head = ["case", "predicted", *(["data sheet"] if entry else []), "measured", "IQR", "error", "why"]
    body = []
    for r in rows:
        sheet = [show(r.datasheet, r.unit) if r.datasheet else ""] if entry else []
        spread = f"{r.iqr / r.measured:.0%}" if r.metric == "time" else ""
        body.append(
            [r.case, show(r.predicted, r.unit), *sheet, show(r.measured, r.unit), spread, signed(r.error),
             r.explanation]
        )  # fmt: skip
    return with_energy(record, rows, (head, body, tuple(range(1, len(head) - 1))))


def text(record: Record) -> str:
    """Everything in plain text, the same for the same record: calibration, all rows, reasons, summary."""
    parts = [calibration_text(record)]
    for roles, _ in KINDS:
        rows = points(record, roles)
        if rows:
            head, body, numeric = _table(record, rows)
            parts.append(columns(head[:-1], [r[:-1] for r in body], numeric))
            parts.append("\n".join(f"{r[0]}: {r[-1]}" for r in body if not r[-1].startswith("As predicted")))
    doubtful = doubted(record)
    if named := [
        str(s.point["case"]) for s in record.samples if s.metric == "time" and s.point.get("case") in doubtful
    ]:
        parts.append(f"Disturbed while measured, as the record warns: {', '.join(dict.fromkeys(named))}.")
    parts.append(
        "Times use the rate of each dtype's largest product and the overhead of its tiny one; neither predicts itself."
    )
    parts.append(summary(record))
    return "\n\n".join(p for p in parts if p)


# What the lab prints


def cases(points: Iterable[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The points of the cases that a learner can predict, by name."""
    return {str(p["case"]): p for p in points if p.get("role") in ROLES}


def describe(cases: Mapping[str, dict[str, Any]], names: Sequence[str] = ()) -> str:
    """A table of what the named cases are; of the whole steps and the middle products if none is named."""
    if not names:
        sizes = sorted({p["m"] for p in cases.values() if p["role"] == "product"})
        middle = sizes[len(sizes) // 2] if sizes else None
        names = [n for n, p in cases.items() if p["role"] == "step" or (p["role"] == "product" and p["m"] == middle)]
    rows = []
    for name in names:
        p = cases[name]
        if p["role"] == "product":
            what = f"time of {_a(p['dtype'])} product of two {p['m']:,} × {p['k']:,} matrices"
        elif p["role"] == "error":
            what = f"relative error of {_a(p['dtype'])} product of size {p['m']:,}"
        elif p["role"] in PARTS:
            what = f"bytes of the {p['role']} of a model in {p['weights']}"
        else:
            what = {"step": "bytes of the whole step", "activations": "bytes of the layers' activations"}[p["role"]]
            options = [f"{p['weights']} weights" if p["weights"] != "autocast" else "fp32 weights under bf16 autocast"]
            options += [f"{p['attention']} attention", *(["dropout"] if p["dropout"] else [])]
            options += ["layers recomputed"] if p["recomputation"] == "full" else []
            what += f": {', '.join(options)}"
        rows.append([name, what])
    return columns(["case", "what"], rows)


def _known(record: Record) -> dict[str, list[Sample]]:
    """The measured results by the series of their points, calibration included."""
    found: dict[str, list[Sample]] = {}
    for sample in record.samples:
        case, series = str(sample.point.get("case")), sample.point.get("series")
        result = sample.metric in ("time", "error", "memory") and sample.status == "ok"
        if result and isinstance(series, str) and not case.startswith("overhead-"):
            found.setdefault(series, []).append(sample)
    return found


def sweep(record: Record, name: str) -> str:
    """A table of the cases of a series, such as "bf16 by size" or "activations"; or "by dtype", what the bits bought.

    Raises:
        EfflabError: the record has no series of that name; names the ones it has.
    """
    _check(record)
    if name == "by dtype":
        return _by_dtype(record)
    known = _known(record)
    if name not in known:
        raise unknown("series", name, ["by dtype", *known])
    rows = {r.case: r for r in points(record)}
    table = []
    for sample in known[name]:
        case, unit, value = str(sample.point["case"]), UNITS[sample.unit], median(sample.values)
        row = rows.get(case)
        rate = [show(_flops(sample.point) / value, FLOP_PER_SECOND)] if sample.metric == "time" else []
        predicted = [show(row.predicted, unit), signed(row.error)] if row else ["calibrates", ""]
        table.append([case, predicted[0], show(value, unit), *rate, predicted[1]])
    rated = known[name][0].metric == "time"
    head = ["case", "predicted", "measured", *(["rate"] if rated else []), "error"]
    return columns(head, table, range(1, len(head)))


def _by_dtype(record: Record) -> str:
    """Rate and error of each dtype's largest product."""
    rates = peaks(record)
    errors = dtype_errors(record)
    table = []
    for dtype, rate in rates.items():
        made = errors.get(dtype)
        table.append(
            [dtype, show(catalog.BYTES_PER_ELEMENT[dtype], BYTE), show(rate, FLOP_PER_SECOND),
             f"{rate / rates['fp32']:.3g}×" if "fp32" in rates else "",
             show(made) if made else "reference" if dtype == "fp64" else ""]
        )  # fmt: skip
    return columns(["dtype", "element", "rate", "to fp32", "relative error"], table, (1, 2, 3, 4))


def dtype_errors(record: Record) -> dict[str, float]:
    """The measured error of each dtype's largest product."""
    found: dict[str, tuple[float, float]] = {}
    for sample in record.samples:
        if sample.metric == "error" and sample.status == "ok":
            size, dtype = float(sample.point["m"]), str(sample.point["dtype"])
            if size >= found.get(dtype, (0.0, 0.0))[0]:
                found[dtype] = size, median(sample.values)
    return {dtype: value for dtype, (_, value) in found.items()}


def compare(record: Record, slow: str, fast: str) -> str:
    """By which factor one case is larger than another, predicted and measured; or why there is nothing to compare.

    Raises:
        EfflabError: a case that is unknown, or two that measure different things.
    """
    rows = {r.case: r for r in points(record)}
    for name in (slow, fast):
        if name not in rows:
            gone = [m for m in missing(record) if m.startswith(f"{name} ")]
            if gone:
                return f"{gone[0]} So there is nothing to compare."
            raise unknown("compare: case", name, rows)
    a, b = rows[slow], rows[fast]
    if a.metric != b.metric:
        raise EfflabError(f"compare: {slow} is a {a.metric} and {fast} is a {b.metric}. Name two of one kind.")
    word = {"time": "faster", "error": "more exact", "memory": "smaller"}[a.metric]
    lines = [f"{r.case}: predicted {show(r.predicted, r.unit)}, measured {show(r.measured, r.unit)}" for r in (a, b)]
    lines.append(f"{word} by: predicted {a.predicted / b.predicted:.3g}×, measured {a.measured / b.measured:.3g}×")
    return "\n".join(lines)


def evidence(record: Record, case: str) -> str:
    """What a case's prediction consists of, beside what was measured of each part.

    Raises:
        EfflabError: the record has no such case, or it was not measured.
    """
    rows = {r.case: r for r in points(record)}
    if case not in rows:
        raise unknown("case", case, rows)
    row = rows[case]
    sample = next(s for s in _samples(record) if s.point["case"] == case)
    point = sample.point
    lines = [f"{case}: predicted {show(row.predicted, row.unit)}, measured {show(row.measured, row.unit)}"]
    if row.role == "product":
        peak, wait = peaks(record)[row.dtype], overheads(record)[row.dtype]
        lines.append(
            f"  {show(_flops(point) / peak, SECOND)} of arithmetic at {show(peak, FLOP_PER_SECOND)}, "
            f"{show(wait, SECOND)} of overhead; it reaches {show(_flops(point) / row.measured, FLOP_PER_SECOND)}."
        )
        if alone := median_of(record, sample.point, "time_one_thread"):
            lines.append(f"  On one thread: {show(alone, SECOND)}.")
    elif row.role == "error":
        lines += _error_parts(record, row.dtype, int(point["k"]), float(point["m"]))
    else:
        expected = expected_bytes(point, record.environment.kind)
        names = (*PARTS, "activations", "outside") if row.role == "step" else ()
        seen = {name: median_of(record, sample.point, name) for name in names}
        body = [[name, show(expected[name], BYTE), show(size, BYTE) if size else ""] for name, size in seen.items()]
        if body:
            parts = columns(["part", "predicted", "measured"], body, (1, 2))
            lines += [f"  {line}" for line in parts.splitlines()]
        kept = [
            (s.metric.removeprefix("kept_"), median(s.values))
            for s in record.samples
            if s.metric.startswith("kept_") and s.point == point and s.status == "ok"
        ]
        if kept:
            lines.append("  kept by dtype: " + ", ".join(f"{d} {show(v, BYTE)}" for d, v in kept))
    lines.append(f"  {row.explanation}")
    return "\n".join(lines)


def _error_parts(record: Record, dtype: str, terms: int, rows: float) -> list[str]:
    if dtype == "int8":
        step = normal_largest(rows * terms) / LEVELS
        return [f"  Step of the integers: {show(step)} standard deviations; the sums are exact."]
    block = block_size(record)
    assert block is not None
    parts = {
        "inputs": math.sqrt(2) * _rounding(dtype),
        "sums": float(
            formulas.accumulation_error(
                terms=terms, block_size=min(block[2], terms),
                epsilon=_epsilon("fp32"),
            )
        ),
        "result": _rounding(RESULT[dtype]) if dtype in RESULT else 0.0,
    }  # fmt: skip
    return ["  " + ", ".join(f"{name} {show(value)}" for name, value in parts.items()) + "; they add up as squares."]


def _rounding(dtype: str) -> float:
    return float(formulas.rms_rounding_error(epsilon=_epsilon(dtype)))


__all__ = [
    "BASE",
    "CALIBRATION",
    "DRAWN",
    "LIMITS",
    "PICTURES",
    "Row",
    "answers",
    "asked",
    "banner",
    "block_size",
    "calibrates",
    "calibration",
    "calibration_text",
    "cases",
    "compare",
    "datasheet",
    "describe",
    "dtype_errors",
    "evidence",
    "expected_bytes",
    "expected_error",
    "expected_time",
    "largest",
    "missing",
    "normal_largest",
    "overheads",
    "parameter_count",
    "peaks",
    "points",
    "scatters",
    "summary",
    "sweep",
    "table",
    "text",
    "truncated_inputs_error",
]  # fmt: skip
