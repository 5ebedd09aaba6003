"""Numbers of binary formats, written exactly and as bits. binary.js does the same in the browser."""

from __future__ import annotations

import math
from decimal import Decimal
from typing import NamedTuple

LONGEST = 60  # significant digits that are written out
BRIEF = 12  # the same, where there is little room
PLACES = (-7, 20)  # decimal exponents that are written without a power of ten
_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_NAMES = {"nan": "NaN", "inf": "∞", "-inf": "−∞", "0.0": "0", "-0.0": "−0"}


def exact(value: float, brief: bool = False) -> str:
    """A float64 in decimal, with all its digits: 2**-4 is "0.0625".

    Where they are many, the value as an integer times a power of two, and 17 digits of it: "71,362 × 2⁻¹⁴⁹ ≈ …".
    With `brief`, nine digits and an ellipsis where there are more than twelve; six before a power of ten.
    """
    if name := _NAMES.get(str(float(value))):
        return name
    sign = "−" if value < 0 else ""
    number = Decimal(abs(value))
    digits = "".join(map(str, number.as_tuple().digits)).strip("0")
    if len(digits) <= (BRIEF if brief else LONGEST):
        return sign + _decimal(digits, number.adjusted())
    if brief:
        count = 9 if PLACES[0] <= number.adjusted() <= PLACES[1] else 6
        return sign + _decimal(*_rounded(number, count), "…")
    whole, under = abs(value).as_integer_ratio()
    power = (whole & -whole).bit_length() - under.bit_length()  # of two, with an odd whole number before it
    whole //= whole & -whole
    product = (f"{whole:,} × " if whole > 1 else "") + f"2{_raised(power)}"
    return f"{sign}{product} ≈ {sign}{_decimal(*_rounded(number, 17))}"


def _rounded(number: Decimal, count: int) -> tuple[str, int]:
    """`count` significant digits and the decimal exponent."""
    mantissa, _, exponent = f"{number:.{count - 1}e}".partition("e")
    return mantissa.replace(".", ""), int(exponent)


def _decimal(digits: str, exponent: int, more: str = "") -> str:
    """Digits with their point, grouped before it; beyond `PLACES` with a power of ten."""
    if not PLACES[0] <= exponent <= PLACES[1]:
        return digits[0] + (f".{digits[1:]}" if digits[1:] else "") + f"{more} × 10{_raised(exponent)}"
    if exponent < 0:
        return f"0.{'0' * (-exponent - 1)}{digits}{more}"
    digits = digits.ljust(exponent + 1, "0")
    whole, rest = digits[: exponent + 1], digits[exponent + 1 :]
    return f"{int(whole):,}" + (f".{rest}" if rest else "") + more


def _raised(power: int) -> str:
    return str(power).translate(_RAISED)


class Fields(NamedTuple):
    """The bits of a number, each field as text of 0 and 1, and what they mean.

    Attributes:
        sign, exponent, mantissa: the bits.
        meaning: the value that they stand for, in words and powers of two.
    """

    sign: str
    exponent: str
    mantissa: str
    meaning: str


def fields(value: float, exponent_bits: int, mantissa_bits: int, flavour: str) -> Fields | None:
    """The bits of `value` in a format; None where the format has no such number.

    Args:
        value: the number.
        exponent_bits, mantissa_bits: of the format.
        flavour: "ieee" (infinities and NaNs), "fn" (one NaN of each sign, all ones), "fnuz" (one NaN, in the place of
            −0), "finite" (neither) or "scale" (powers of two without a sign, and one NaN, all ones).
    """
    exponent_bits, mantissa_bits = int(exponent_bits), int(mantissa_bits)
    bias = 2 ** (exponent_bits - 1) - (0 if flavour == "fnuz" else 1)
    ones = 2**exponent_bits - 1
    full = 2**mantissa_bits

    scale = flavour == "scale"

    def made(sign: int, exponent: int, mantissa: int, meaning: str) -> Fields:
        low = f"{mantissa:0{mantissa_bits}b}" if mantissa_bits else ""
        return Fields("" if scale else str(sign), f"{exponent:0{exponent_bits}b}", low, meaning)

    if math.isnan(value):
        if flavour == "ieee":
            return made(0, ones, full // 2, "exponent all ones, mantissa not zero: NaN")
        if flavour in ("fn", "scale"):
            return made(0, ones, full - 1, "all ones: NaN")
        return made(1, 0, 0, "the place of −0: NaN") if flavour == "fnuz" else None
    sign = int(math.copysign(1.0, value) < 0)
    minus = "−" if sign else ""
    if math.isinf(value):
        return made(sign, ones, 0, f"exponent all ones, mantissa zero: {minus}∞") if flavour == "ieee" else None
    lowest = 1 - bias  # the exponent of the smallest normal number
    if scale:
        exponent = math.frexp(value)[1] - 1
        fits = value > 0 and value == math.ldexp(1.0, exponent) and -bias <= exponent < ones - bias
        return made(0, exponent + bias, 0, f"2{_raised(exponent)}") if fits else None
    if value == 0:
        return made(0 if flavour == "fnuz" else sign, 0, 0, f"{'' if flavour == 'fnuz' else minus}0")
    exponent = math.frexp(value)[1] - 1
    subnormal = exponent < lowest
    scaled = math.ldexp(abs(value), mantissa_bits - max(exponent, lowest))  # the mantissa as a whole number
    if scaled != int(scaled) or not scaled:
        return None
    field = 0 if subnormal else exponent + bias
    mantissa = int(scaled) - (0 if subnormal else full)
    top = ones - 1 if flavour == "ieee" else ones
    if field > top or (flavour == "fn" and field == ones and mantissa == full - 1):
        return None
    power = f"2{_raised(max(exponent, lowest))}"
    parts = f"{full:,}" if mantissa_bits <= 10 else f"2{_raised(mantissa_bits)}"
    fraction = f"{mantissa:,}/{parts}" if mantissa else ""
    if subnormal:
        return made(sign, 0, mantissa, f"{minus}{power} × {fraction}, subnormal")
    return made(sign, field, mantissa, f"{minus}{power}" + (f" × (1 + {fraction})" if fraction else ""))
