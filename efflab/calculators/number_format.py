"""The number format explorer, a calculator of the chapter on precision."""

from __future__ import annotations

from efflab.calculators.calculator import Calculator
from efflab.calculators.parts import Bits, Case, Choice, NumberField, Option, Output, Sum, Table, Value
from efflab.catalog import Format, formats
from efflab.formulas import precision

_GROUPS = {64: "64 and 32 bits", 32: "64 and 32 bits", 19: "64 and 32 bits", 16: "16 bits", 8: "8 bits"}
_LARGEST = 1.7976931348623157e308  # of FP64: beyond it only infinity is typed

_INFINITE = (
    "Infinity stays infinity. A number larger than the largest FP64 number, 1.8 × 10³⁰⁸, is read as infinity as well."
)


def _format(entry: Format) -> Option:
    scale = entry.flavour == "scale"
    return Option(
        entry.name,
        sets=entry.arguments(),
        group="Scales of blocks" if scale else _GROUPS.get(entry.bits, "6 and 4 bits"),
    )


explorer = Calculator(
    name="number-format",
    topic="precision",
    title="What does a format make of a number?",
    intro="Type a number, such as 0.1, -3e-5, 2^-24, 65520, inf or nan, and see its bits, what is stored, and how far "
    "off that is.",
    inputs=[
        NumberField("value", "0.1", label="Number"),
        Choice(
            "format",
            [_format(f) for f in formats().values() if f.block is None],
            default="BF16",
            label="Format",
        ),
        Choice(
            "conversion",
            [
                Option(
                    "as-defined",
                    "Overflows as the format says",
                    formulas={"stored": precision.round_to_format},
                ),
                Option("saturating", "Becomes the largest number", formulas={"stored": precision.saturate_to_format}),
            ],
            default="as-defined",
            label="What is too large",
        ),
    ],
    outputs=[
        Output(precision.next_above, label="Next above", given={"value": "stored"}, exact=True),
        Value("stored", "Stored", exact=True),
        Output(precision.next_below, label="Next below", given={"value": "stored"}, exact=True),
        Sum("error", of=["stored"], minus=["value"], label="Error: stored less typed", exact=True, rounded=True),
        Output(precision.deviation, "relative_error", "Relative error"),
        Output(
            precision.number_class,
            "kind",
            "Kind",
            given={"value": "stored"},
            words=("zero", "subnormal", "normal", "infinite", "NaN"),
        ),
        Output(precision.largest_finite, label="Largest number"),
        Output(precision.smallest_normal, label="Smallest normal number"),
        Output(precision.smallest_subnormal, label="Smallest number"),
        Output(precision.unit_roundoff, shown=False),
        Sum("above_lowest", of=["stored", "largest_finite"], shown=False),
    ],
    bits=Bits("stored", label="Bits of what is stored"),
    compare=Table("format", ["stored", "relative_error", "kind"], label="The same number in every format"),
    verdict=[
        Case(
            "Not a number: {format} holds powers of two for the scales of blocks, neither zero nor negative numbers.",
            [("kind", "==", 4), ("mantissa_bits", "==", 0), ("value", "<=", 0)],
        ),
        Case(
            "Overflow: the largest number of {format} is {largest_finite}, and without an infinity what is beyond "
            "becomes NaN.",
            [("kind", "==", 4), ("value", ">", 0)],
        ),
        Case(
            "Overflow: the largest number of {format} is {largest_finite}, and without an infinity what is beyond "
            "becomes NaN.",
            [("kind", "==", 4), ("value", "<", 0)],
        ),
        Case("NaN stays NaN. Its bits here are one of the patterns that mean it.", [("kind", "==", 4)]),
        Case(_INFINITE, [("kind", "==", 3), ("value", ">", _LARGEST)]),
        Case(_INFINITE, [("kind", "==", 3), ("value", "<", -_LARGEST)]),
        Case(
            "Overflow: the largest number of {format} is {largest_finite}, and what is beyond becomes infinite.",
            [("kind", "==", 3)],
        ),
        Case(
            "Underflow: the smallest number of {format} is {smallest_subnormal}; half of it and less becomes zero.",
            [("kind", "==", 0), ("relative_error", ">", 0)],
        ),
        Case("Exact: {format} holds zero.", [("kind", "==", 0)]),
        Case(
            "Saturated: infinity becomes the largest number of {format}.",
            [("stored", "==", "largest_finite"), ("value", ">", _LARGEST)],
        ),
        Case(
            "Saturated: infinity becomes the largest number of {format}, with its sign.",
            [("above_lowest", "==", 0), ("value", "<", -_LARGEST)],
        ),
        Case(
            "Saturated: it is beyond the largest number of {format} and becomes that number, off by {relative_error} "
            "of the value.",
            [("stored", "==", "largest_finite"), ("value", ">", "stored"), ("relative_error", ">", "unit_roundoff")],
        ),
        Case(
            "Saturated: it is beyond the largest number of {format} and becomes that number with its sign, off by "
            "{relative_error} of the value.",
            [("above_lowest", "==", 0), ("value", "<", "stored"), ("relative_error", ">", "unit_roundoff")],
        ),
        Case("Exact: {format} holds it, as a subnormal number.", [("kind", "==", 1), ("relative_error", "==", 0)]),
        Case(
            "Rounded to a subnormal number: below {smallest_normal} the spacing stays {smallest_subnormal}, so the "
            "smaller the number, the larger its relative error, here {relative_error}.",
            [("kind", "==", 1)],
        ),
        Case("Exact: {format} holds it.", [("relative_error", "==", 0)]),
        Case(
            "Too small: it becomes the smallest number of {format}, {smallest_normal}.",
            [("mantissa_bits", "==", 0), ("value", "<", "smallest_normal")],
        ),
        Case(
            "Rounded to the smallest normal number. Below it the spacing is {smallest_subnormal}, so the relative "
            "error, here {relative_error}, can be larger than for normal numbers.",
            [("relative_error", ">", "unit_roundoff")],
        ),
        Case(
            "Rounded: {format} does not hold it. The nearest number that it holds is off by {relative_error} of the "
            "value; for normal numbers this is at most {unit_roundoff}.",
        ),
    ],
    note="What is typed is read as the nearest FP64 number, then rounded once, to nearest, ties to even. The TF32 of "
    "tensor cores keeps 10 mantissa bits of FP32 operands. Conversion to FP8 differs between libraries: from "
    "version 2.12 on PyTorch saturates FP8 E4M3FN, before it made NaN of what is too large, as ml_dtypes does.",
)
