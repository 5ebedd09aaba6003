"""Number formats: their range, their resolution, and what rounding to them costs.

A format has a sign, `exponent_bits` and `mantissa_bits` (the stored fraction). Its flavour says what the bit
patterns at the edge mean:

- "ieee": the top exponent is kept for infinity and NaN, as in IEEE 754 (FP64, FP32, BF16, FP16, FP8 E5M2).
- "fn": finite numbers only, and one NaN pattern per sign, all ones (FP8 E4M3FN).
- "fnuz": finite numbers only, no −0 whose pattern is the one NaN, and a bias larger by one (FP8 of AMD's MI300).
- "finite": every pattern is a number, no infinity and no NaN (FP6, FP4).
- "scale": no sign, no zero, no subnormal numbers, one NaN (the E8M0 scale of a block format).

Values are computed in FP64: a format must have no value that FP64 lacks, so 11 exponent bits are for "ieee".
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

from efflab.formulas.namespace import (
    as_bytes,
    capped,
    copy_sign,
    exponent_of,
    floor,
    formula,
    if_above,
    log,
    magnitude,
    maximum,
    minimum,
    nearest_multiple,
    power_of_two,
    size_class,
    sqrt,
    unsigned_zero,
)
from efflab.units import Byte, Count, Number, Range, Real

ExponentBits = Annotated[Count, Range(2, 11)]
MantissaBits = Annotated[Number, Range(0, 52)]
Flavour = Literal["ieee", "fn", "fnuz", "finite", "scale"]


# Range


@formula
def format_bits(*, exponent_bits: ExponentBits, mantissa_bits: MantissaBits, flavour: Flavour) -> Number:
    r"""Bits of one number: sign, exponent and mantissa.

    Equation: 1 + e + m
    Where: e = exponent_bits; m = mantissa_bits; \mathrm{flavour} = flavour
    Source: IEEE 754-2019, section 3.4
    Assumes: a scale has no sign bit. TF32 computes with 19 bits and is stored in 32.
    """
    return exponent_bits + mantissa_bits + (0 if flavour == "scale" else 1)


@formula
def exponent_bias(*, exponent_bits: ExponentBits, flavour: Flavour) -> Number:
    r"""What is subtracted from the stored exponent.

    Equation: B = 2^{e-1} - 1 \quad (2^{e-1} \text{ for fnuz})
    Where: e = exponent_bits; \mathrm{flavour} = flavour
    Source: IEEE 754-2019, section 3.4; OCP 8-bit Floating Point Specification 1.0; Noune et al. 2022,
        arXiv:2206.02915 (fnuz)
    Assumes: the usual bias; float8_e4m3b11fnuz is an exception.
    """
    half = power_of_two(exponent_bits - 1)
    return half if flavour == "fnuz" else half - 1


@formula
def smallest_exponent(*, exponent_bits: ExponentBits, flavour: Flavour) -> Real:
    r"""Exponent of the smallest normal number.

    Equation: E_{\min} = 1 - B \quad (-B \text{ for a scale})
    Where: e = exponent_bits; \mathrm{flavour} = flavour
    Source: IEEE 754-2019, section 3.3
    Assumes: exponent zero is kept for zero and the subnormal numbers; a scale has neither.
    """
    bias = exponent_bias(exponent_bits=exponent_bits, flavour=flavour)
    return -bias if flavour == "scale" else 1 - bias


@formula
def largest_exponent(*, exponent_bits: ExponentBits, mantissa_bits: MantissaBits, flavour: Flavour) -> Number:
    r"""Exponent of the largest finite number.

    Equation: E_{\max} = 2^e - 1 - B \quad (\text{less 1 for ieee and for a scale})
    Where: e = exponent_bits; m = mantissa_bits; \mathrm{flavour} = flavour
    Source: IEEE 754-2019, section 3.3; OCP 8-bit Floating Point Specification 1.0; OCP Microscaling Formats (MX) 1.0
    Assumes: without mantissa bits the pattern of all ones leaves fn no number of the top exponent.
    """
    top = power_of_two(exponent_bits) - 1 - exponent_bias(exponent_bits=exponent_bits, flavour=flavour)
    if flavour == "fn":
        return top - if_above(mantissa_bits, 0, 0, 1)
    return top - 1 if flavour in ("ieee", "scale") else top


@formula
def largest_finite(*, exponent_bits: ExponentBits, mantissa_bits: MantissaBits, flavour: Flavour) -> Number:
    r"""Largest finite number of a format.

    Equation: 2^{E_{\max}} \left(2 - 2^{-m}\right)
        \quad \left(2^{E_{\max}} \left(2 - 2^{1-m}\right) \text{ for fn}\right)
    Where: e = exponent_bits; m = mantissa_bits; \mathrm{flavour} = flavour
    Source: IEEE 754-2019, section 3.3; OCP 8-bit Floating Point Specification 1.0; OCP Microscaling Formats (MX) 1.0
    Assumes: the exponent of the largest number is 2^(e-1) - 1 for ieee, and one more for fn and finite, which use
        the top exponent for numbers; in fn its mantissa of all ones is NaN.
    """
    top = power_of_two(largest_exponent(exponent_bits=exponent_bits, mantissa_bits=mantissa_bits, flavour=flavour))
    if flavour == "fn":
        return top * maximum(2 - power_of_two(1 - mantissa_bits), 1)
    return top * (2 - power_of_two(-mantissa_bits))


@formula
def smallest_normal(*, exponent_bits: ExponentBits, flavour: Flavour) -> Number:
    r"""Smallest positive number with all bits of precision.

    Equation: 2^{E_{\min}}
    Where: e = exponent_bits; \mathrm{flavour} = flavour
    Source: IEEE 754-2019, section 3.3
    Assumes: gradual underflow below it, except for a scale.
    """
    return power_of_two(smallest_exponent(exponent_bits=exponent_bits, flavour=flavour))


@formula
def smallest_subnormal(*, exponent_bits: ExponentBits, mantissa_bits: MantissaBits, flavour: Flavour) -> Number:
    r"""Smallest positive number of a format, and the spacing of the subnormal numbers.

    Equation: 2^{E_{\min} - m}
    Where: e = exponent_bits; m = mantissa_bits; \mathrm{flavour} = flavour
    Source: IEEE 754-2019, section 3.3
    Assumes: subnormal numbers are not flushed to zero; a scale has none, so this is its smallest number.
    """
    lowest = smallest_exponent(exponent_bits=exponent_bits, flavour=flavour)
    return power_of_two(lowest if flavour == "scale" else lowest - mantissa_bits)


@formula
def dynamic_range(*, exponent_bits: ExponentBits, mantissa_bits: MantissaBits, flavour: Flavour) -> Number:
    r"""Decades between the smallest positive and the largest finite number.

    Equation: \log_{10} \frac{x_{\max}}{x_{\min}}
    Where: e = exponent_bits; m = mantissa_bits; \mathrm{flavour} = flavour
    Source: Definition
    Assumes: subnormal numbers count.
    """
    largest = largest_finite(exponent_bits=exponent_bits, mantissa_bits=mantissa_bits, flavour=flavour)
    smallest = smallest_subnormal(exponent_bits=exponent_bits, mantissa_bits=mantissa_bits, flavour=flavour)
    return (log(largest) - log(smallest)) / math.log(10)


@formula
def binades(*, exponent_bits: ExponentBits, mantissa_bits: MantissaBits, flavour: Flavour) -> Number:
    r"""Powers of two between the smallest positive and the largest finite number, both counted.

    Equation: E_{\max} - (E_{\min} - m) + 1
    Where: e = exponent_bits; m = mantissa_bits; \mathrm{flavour} = flavour
    Source: OCP 8-bit Floating Point Specification 1.0, table 2 (dynamic range)
    Assumes: subnormal numbers count.
    """
    top = largest_exponent(exponent_bits=exponent_bits, mantissa_bits=mantissa_bits, flavour=flavour)
    smallest = smallest_subnormal(exponent_bits=exponent_bits, mantissa_bits=mantissa_bits, flavour=flavour)
    return top - exponent_of(smallest) + 1


@formula
def distinct_values(*, exponent_bits: ExponentBits, mantissa_bits: MantissaBits, flavour: Flavour) -> Number:
    r"""How many finite numbers a format has; +0 and −0 are one.

    Equation: 2^{m+1} \left(2^e - 1\right) - 1 \quad \text{(ieee)}
    Where: e = exponent_bits; m = mantissa_bits; \mathrm{flavour} = flavour
    Source: Definition
    Assumes: fn has 2^{1+e+m} - 3, fnuz and finite have 2^{1+e+m} - 1, a scale has 2^{e+m} - 1 finite numbers.
    """
    patterns = power_of_two(exponent_bits + mantissa_bits)
    if flavour == "ieee":
        return 2 * (patterns - power_of_two(mantissa_bits)) - 1
    return {"fn": 2 * patterns - 3, "fnuz": 2 * patterns - 1, "finite": 2 * patterns - 1, "scale": patterns - 1}[
        flavour
    ]


# Resolution


@formula
def machine_epsilon(*, mantissa_bits: MantissaBits) -> Number:
    r"""Distance from 1 to the next larger number.

    Equation: \varepsilon = 2^{-m}
    Where: m = mantissa_bits
    Source: Higham 2002, Accuracy and Stability of Numerical Algorithms, 2nd ed., section 2.1
    Assumes: 1 is a normal number of the format.
    """
    return power_of_two(-mantissa_bits)


@formula
def unit_roundoff(*, mantissa_bits: MantissaBits) -> Number:
    r"""Largest relative error of rounding a number in the normal range to the nearest.

    Equation: u = 2^{-m-1}
    Where: m = mantissa_bits
    Source: Higham 2002, Accuracy and Stability of Numerical Algorithms, 2nd ed., section 2.2
    Assumes: no overflow and no underflow.
    """
    return power_of_two(-mantissa_bits - 1)


@formula
def decimal_digits(*, mantissa_bits: MantissaBits) -> Number:
    r"""Decimal digits that the significand is worth.

    Equation: (m + 1) \log_{10} 2
    Where: m = mantissa_bits
    Source: IEEE 754-2019, section 3.1.1
    Assumes: a normal number: its leading one is not stored.
    """
    return (mantissa_bits + 1) * math.log10(2)


def _quantum(exponent, exponent_bits, mantissa_bits, flavour):
    """Spacing of the format's numbers whose exponent is `exponent`; NaN stays NaN."""
    lowest = smallest_exponent(exponent_bits=exponent_bits, flavour=flavour)
    highest = largest_exponent(exponent_bits=exponent_bits, mantissa_bits=mantissa_bits, flavour=flavour)
    within = maximum(minimum(exponent, highest), lowest)
    return power_of_two(maximum(within - mantissa_bits, -1074))  # FP64 has no finer step


def _in_range(size, exponent_bits, mantissa_bits, flavour):
    """A rounded magnitude, or what the flavour makes of one beyond the largest finite number."""
    largest = largest_finite(exponent_bits=exponent_bits, mantissa_bits=mantissa_bits, flavour=flavour)
    if flavour == "finite":
        return minimum(size, largest)
    return capped(size, largest, math.inf if flavour == "ieee" else math.nan)


def _signed(size, value, flavour):
    """`size` with the sign of `value`; fnuz has no −0, a scale no sign and no zero."""
    if flavour == "scale":
        return if_above(value, 0, size, math.nan)
    signed = copy_sign(size, value)
    return unsigned_zero(signed) if flavour == "fnuz" else signed


def _rounded(value, exponent_bits, mantissa_bits, flavour):
    """The magnitude of `value` rounded as if the exponent had no upper limit.

    Exact but for the one rounding: value / quantum is a scaled copy of the value, whole where it is representable.
    """
    quantum = _quantum(exponent_of(value), exponent_bits, mantissa_bits, flavour)
    rounded = nearest_multiple(magnitude(value), quantum)
    return (
        maximum(rounded, smallest_normal(exponent_bits=exponent_bits, flavour=flavour))
        if flavour == "scale"
        else rounded
    )


@formula
def spacing(*, value: Real, exponent_bits: ExponentBits, mantissa_bits: MantissaBits, flavour: Flavour) -> Number:
    r"""Distance between neighbouring numbers of the format at a value.

    Equation: 2^{\max(\lfloor \log_2 |x| \rfloor,\ E_{\min}) - m}
    Where: x = value; e = exponent_bits; m = mantissa_bits; \mathrm{flavour} = flavour
    Source: Definition
    Assumes: at a power of two, the distance to the next larger magnitude; beyond the largest number, its spacing.
    """
    return _quantum(exponent_of(value), exponent_bits, mantissa_bits, flavour)


@formula
def round_to_format(*, value: Real, exponent_bits: ExponentBits, mantissa_bits: MantissaBits, flavour: Flavour) -> Real:
    r"""The number of a format that is nearest to a value; of two, the one whose last bit is 0.

    Equation: \operatorname{rd}(x) = q \left\lfloor \frac{x}{q} \right\rceil, \quad
        q = 2^{\max(\lfloor \log_2 |x| \rfloor,\ E_{\min}) - m}
    Where: x = value; e = exponent_bits; m = mantissa_bits; \mathrm{flavour} = flavour
    Source: IEEE 754-2019, section 4.3.1; OCP 8-bit Floating Point Specification 1.0 (fn); OCP Microscaling Formats
        (MX) 1.0 (finite, scale)
    Assumes: the value is rounded once, from FP64, and subnormal numbers are kept. A result beyond the largest number
        overflows: to infinity (ieee), to NaN (fn and fnuz, as OCP's conversion without saturation, and a scale), to
        the largest number (finite). NaN stays NaN, where a finite format leaves the result open; a scale of zero or
        less is NaN. Without mantissa bits a tie goes to the larger magnitude.
    """
    rounded = _rounded(value, exponent_bits, mantissa_bits, flavour)
    return _signed(_in_range(rounded, exponent_bits, mantissa_bits, flavour), value, flavour)


@formula
def saturate_to_format(
    *, value: Real, exponent_bits: ExponentBits, mantissa_bits: MantissaBits, flavour: Flavour
) -> Real:
    r"""The nearest number of a format, where whatever is too large becomes the largest finite number.

    Equation: \operatorname{sat}(x) = \min\left(\operatorname{rd}(x),\ x_{\max}\right)
    Where: x = value; e = exponent_bits; m = mantissa_bits; \mathrm{flavour} = flavour
    Source: OCP 8-bit Floating Point Specification 1.0 (conversion with saturation)
    Assumes: infinity saturates too; NaN stays NaN.
    """
    largest = largest_finite(exponent_bits=exponent_bits, mantissa_bits=mantissa_bits, flavour=flavour)
    return _signed(minimum(_rounded(value, exponent_bits, mantissa_bits, flavour), largest), value, flavour)


@formula
def relative_error(
    *, value: Real, exponent_bits: ExponentBits, mantissa_bits: MantissaBits, flavour: Flavour
) -> Number:
    r"""Relative error of rounding a value to a format.

    Equation: \frac{|\operatorname{rd}(x) - x|}{|x|}
    Where: x = value; e = exponent_bits; m = mantissa_bits; \mathrm{flavour} = flavour
    Source: Definition
    Assumes: zero is exact. An overflow to infinity has an infinite error, one to NaN has none to compute: NaN.
    """
    rounded = round_to_format(value=value, exponent_bits=exponent_bits, mantissa_bits=mantissa_bits, flavour=flavour)
    return deviation(value=value, stored=rounded)


@formula
def deviation(*, value: Real, stored: Real) -> Number:
    r"""Relative error of what was stored in place of a value.

    Equation: \frac{|y - x|}{|x|}
    Where: x = value; y = stored
    Source: Definition
    Assumes: as for the relative error: zero stored as zero is exact.
    """
    size = magnitude(value)
    return magnitude(stored - value) / if_above(size, 0, size, 1)


def _neighbour(value, direction, exponent_bits, mantissa_bits, flavour):
    """The next number of the format above (direction 1) or below (−1) a value."""
    sign = 1 if flavour == "scale" else copy_sign(1, value)
    outward = sign * direction  # 1 away from zero, −1 towards it
    size = maximum(value, 0) if flavour == "scale" else magnitude(value)
    exponent = exponent_of(size)
    # Towards zero, the step below a power of two is the finer one.
    finer = if_above(0, outward, if_above(size, power_of_two(exponent), 0, 1), 0)
    quantum = _quantum(exponent - finer, exponent_bits, mantissa_bits, flavour)
    next_size = (outward * floor(outward * size / quantum) + outward) * quantum
    largest = largest_finite(exponent_bits=exponent_bits, mantissa_bits=mantissa_bits, flavour=flavour)
    beyond = {"ieee": math.inf, "finite": largest}.get(flavour, math.nan)
    result = sign * capped(next_size, largest, if_above(0, outward, largest, beyond))
    if flavour == "scale":
        lowest = smallest_normal(exponent_bits=exponent_bits, flavour=flavour)
        return if_above(lowest, result, math.nan, result) if direction < 0 else maximum(result, lowest)
    return unsigned_zero(result) if flavour == "fnuz" else result


@formula
def next_above(*, value: Real, exponent_bits: ExponentBits, mantissa_bits: MantissaBits, flavour: Flavour) -> Real:
    r"""The smallest number of the format that is larger than a value.

    Equation: \min \{ y > x \}
    Where: x = value; e = exponent_bits; m = mantissa_bits; \mathrm{flavour} = flavour
    Source: IEEE 754-2019, section 5.3.1 (nextUp)
    Assumes: beyond the largest finite number comes infinity (ieee), itself (finite) or NaN.
    """
    return _neighbour(value, 1, exponent_bits, mantissa_bits, flavour)


@formula
def next_below(*, value: Real, exponent_bits: ExponentBits, mantissa_bits: MantissaBits, flavour: Flavour) -> Real:
    r"""The largest number of the format that is smaller than a value.

    Equation: \max \{ y < x \}
    Where: x = value; e = exponent_bits; m = mantissa_bits; \mathrm{flavour} = flavour
    Source: IEEE 754-2019, section 5.3.1 (nextDown)
    Assumes: beyond the largest negative number comes minus infinity (ieee), itself (finite) or NaN.
    """
    return _neighbour(value, -1, exponent_bits, mantissa_bits, flavour)


@formula
def number_class(*, value: Real, exponent_bits: ExponentBits, mantissa_bits: MantissaBits, flavour: Flavour) -> Number:
    r"""What a value becomes when it is stored: 0 zero, 1 subnormal, 2 normal, 3 infinite, 4 NaN.

    Equation: \operatorname{class}(\operatorname{rd}(x))
    Where: x = value; e = exponent_bits; m = mantissa_bits; \mathrm{flavour} = flavour
    Source: IEEE 754-2019, section 5.7.2 (class)
    Assumes: the value is rounded to the nearest.
    """
    size = magnitude(
        round_to_format(value=value, exponent_bits=exponent_bits, mantissa_bits=mantissa_bits, flavour=flavour)
    )
    lowest = smallest_normal(exponent_bits=exponent_bits, flavour=flavour)
    largest = largest_finite(exponent_bits=exponent_bits, mantissa_bits=mantissa_bits, flavour=flavour)
    return size_class(size, lowest, largest)


# Stochastic rounding


@formula
def stochastic_rounding_probability(
    *, value: Real, exponent_bits: ExponentBits, mantissa_bits: MantissaBits, flavour: Flavour
) -> Number:
    r"""Probability that stochastic rounding takes the neighbour of larger magnitude.

    Equation: p = \frac{|x|}{q} - \left\lfloor \frac{|x|}{q} \right\rfloor
    Where: x = value; e = exponent_bits; m = mantissa_bits; \mathrm{flavour} = flavour
    Source: Croci et al. 2022, Stochastic rounding: implementation, error analysis and applications,
        doi:10.1098/rsos.211631
    Assumes: the value is within the format's range; q is the spacing at it.
    """
    steps = magnitude(value) / _quantum(exponent_of(value), exponent_bits, mantissa_bits, flavour)
    return steps - floor(steps)


@formula
def stochastic_rounding_expectation(
    *, value: Real, exponent_bits: ExponentBits, mantissa_bits: MantissaBits, flavour: Flavour
) -> Real:
    r"""Mean of many stochastic roundings of a value: the value itself.

    Equation: (1 - p) \, q \left\lfloor \frac{x}{q} \right\rfloor
        + p \, q \left( \left\lfloor \frac{x}{q} \right\rfloor + 1 \right) = x
    Where: x = value; e = exponent_bits; m = mantissa_bits; \mathrm{flavour} = flavour
    Source: Croci et al. 2022, Stochastic rounding: implementation, error analysis and applications,
        doi:10.1098/rsos.211631
    Assumes: the value is within the format's range; q is the spacing at it.
    """
    quantum = _quantum(exponent_of(value), exponent_bits, mantissa_bits, flavour)
    probability = stochastic_rounding_probability(
        value=value, exponent_bits=exponent_bits, mantissa_bits=mantissa_bits, flavour=flavour
    )
    return copy_sign((floor(magnitude(value) / quantum) + probability) * quantum, value)


@formula
def stochastic_rounding_deviation(
    *, value: Real, exponent_bits: ExponentBits, mantissa_bits: MantissaBits, flavour: Flavour
) -> Number:
    r"""Standard deviation of the stochastic rounding of a value.

    Equation: q \sqrt{p (1 - p)}
    Where: x = value; e = exponent_bits; m = mantissa_bits; \mathrm{flavour} = flavour
    Source: Definition: one of two neighbours q apart, with probabilities p and 1 - p
    Assumes: the value is within the format's range.
    """
    probability = stochastic_rounding_probability(
        value=value, exponent_bits=exponent_bits, mantissa_bits=mantissa_bits, flavour=flavour
    )
    quantum = _quantum(exponent_of(value), exponent_bits, mantissa_bits, flavour)
    return quantum * sqrt(probability * (1 - probability))


# Errors of sums and products


@formula
def stalled_sum(*, addend: Count, mantissa_bits: MantissaBits) -> Number:
    r"""Where a running sum stops growing when one number is added to it over and over.

    Equation: 2^{\lceil \log_2 a \rceil + m + 1}
    Where: a = addend; m = mantissa_bits
    Source: Definition: from there on the addend is at most half the spacing of the sum
    Assumes: the sum starts at 0, each addition is rounded to the nearest, ties to even, the addend is a number of
        the format, and nothing overflows.
    """
    exponent = exponent_of(addend)
    rounded_up = exponent + if_above(addend, power_of_two(exponent), 1, 0)
    return power_of_two(rounded_up + mantissa_bits + 1)


@formula
def rms_rounding_error(*, epsilon: Number) -> Number:
    r"""Root mean square of the relative error of rounding many different numbers to the nearest.

    Equation: r = \varepsilon \sqrt{\frac{1}{12} \cdot \frac{1}{\ln 2} \int_1^2 \frac{ds}{s^3}}
        = \frac{\varepsilon}{\sqrt{32 \ln 2}} \approx 0.212 \, \varepsilon
    Where: \varepsilon = epsilon
    Source: Definition: the variance of an error spread evenly over one spacing is a twelfth of its square, and the
        density of significands s of numbers that span several binades falls as 1/s (Hamming 1970, On the Distribution
        of Numbers)
    Assumes: the numbers are in the normal range and have many more bits than the format keeps. The same factor holds
        for the norm of the error over the norm of a vector of normal random numbers, within 0.3%.
    """
    return epsilon / math.sqrt(32 * math.log(2))


@formula
def accumulation_error(*, terms: Count, block_size: Count, epsilon: Number) -> Number:
    r"""Root mean square error that rounding each addition brings to a sum of random terms, relative to the sum's.

    Equation: r \sqrt{\frac{k + 1}{2} + \frac{n/k + 1}{2} - \frac{k}{n}}
    Where: n = terms; k = block_size; \varepsilon = epsilon
    Source: Definition: the partial sums of independent terms with mean zero have variances 1, 2, 3, …, and each
        addition rounds one of them; probabilistic analysis as in Higham & Mary 2019, doi:10.1137/18M1226312
    Assumes: blocks of k terms are each summed in order and their sums added in order; k = n is one running sum,
        error r \sqrt{(n + 1)/2}. Terms are exact until they are added (fused multiply-add), independent and of mean
        zero; sums of one sign have other errors and, at low precision, stall. Where few short blocks are added the real
        error is up to 8% larger, as in pairwise_accumulation_error.
    """
    block = minimum(block_size, terms)
    blocks = terms / block
    return rms_rounding_error(epsilon=epsilon) * sqrt((block + 1) / 2 + (blocks + 1) / 2 - 1 / blocks)


@formula
def pairwise_accumulation_error(*, terms: Count, epsilon: Number) -> Number:
    r"""Root mean square error that rounding brings to a sum of random terms added in a tree, relative to the sum's.

    Equation: r \sqrt{1 + \log_2 n}
    Where: n = terms; \varepsilon = epsilon
    Source: Definition: each of the \log_2 n levels rounds sums whose variances add up to n; Higham 2002, Accuracy and
        Stability of Numerical Algorithms, 2nd ed., section 4.2 (pairwise summation)
    Assumes: n is a power of two, the terms are rounded once before they are added, independent and of mean zero. The
        real error is up to 8% larger: a sum of two rounded numbers drops few bits, whose error is not spread evenly.
    """
    return rms_rounding_error(epsilon=epsilon) * sqrt(1 + log(terms) / math.log(2))


@formula
def dot_product_error(
    *, terms: Count, input_epsilon: Number, accumulator_epsilon: Number, output_epsilon: Number, block_size: Count
) -> Number:
    r"""Expected error of a matrix product in low precision, norm of the error over norm of the result.

    Equation: \sqrt{2 r_i^2 + r_a^2 \left(\frac{k + 1}{2} + \frac{n/k + 1}{2} - \frac{k}{n}\right) + r_o^2},
        \quad r = \frac{\varepsilon}{\sqrt{32 \ln 2}}
    Where: n = terms; \varepsilon_i = input_epsilon; \varepsilon_a = accumulator_epsilon;
        \varepsilon_o = output_epsilon; k = block_size
    Source: Definition: independent relative errors of both inputs, of the accumulation and of the result add up as
        squares; see rms_rounding_error and accumulation_error
    Assumes: both matrices hold independent random numbers of mean zero that span the format's binades, no overflow
        or underflow; n is the inner dimension; each input is rounded to the nearest. An epsilon of 0 stands for a
        step without rounding. Sums run in order within blocks of k, then over the blocks; k = n is one running sum.
    """
    inputs = rms_rounding_error(epsilon=input_epsilon)
    accumulated = accumulation_error(terms=terms, block_size=block_size, epsilon=accumulator_epsilon)
    output = rms_rounding_error(epsilon=output_epsilon)
    return sqrt(2 * inputs**2 + accumulated**2 + output**2)


@formula
def dot_product_error_bound(*, terms: Count, roundoff: Number) -> Number:
    r"""Largest possible error of a dot product, relative to the sum of the terms' magnitudes.

    Equation: \gamma_n = \frac{n u}{1 - n u}
    Where: n = terms; u = roundoff
    Source: Higham 2002, Accuracy and Stability of Numerical Algorithms, 2nd ed., section 3.1
    Assumes: every multiplication and addition is rounded to the nearest in one format, in any order; infinite, that
        is no bound, where n u reaches 1.
    """
    product = terms * roundoff
    return product / if_above(1, product, 1 - product, 1) + if_above(1, product, 0, math.inf)


@formula
def integer_rounding_error(*, largest_magnitude: Count, rms: Count, levels: Count) -> Number:
    r"""Root mean square error of symmetric integer quantisation, relative to the numbers' root mean square.

    Equation: \frac{\Delta}{\sqrt{12} \, \sigma}, \quad \Delta = \frac{x_{\max}}{L}
    Where: x_{\max} = largest_magnitude; \sigma = rms; L = levels
    Source: Widrow & Kollár 2008, Quantization Noise, ch. 1: an error spread evenly over a step \Delta
    Assumes: one scale for all numbers, set by the largest; L is the largest integer used, 127 for INT8, 7 for INT4;
        the step is small against \sigma.
    """
    return largest_magnitude / (levels * rms * math.sqrt(12))


# Block formats


@formula
def bits_per_element(*, element_bits: Count, scale_bits: Number, block_size: Count) -> Number:
    r"""Bits per number of a block format, its share of the scale included.

    Equation: b + \frac{s}{k}
    Where: b = element_bits; s = scale_bits; k = block_size
    Source: OCP Microscaling Formats (MX) 1.0
    Assumes: blocks are full; a scale of the whole tensor is not counted.
    """
    return element_bits + scale_bits / block_size


@formula
def block_bytes(*, element_bits: Count, scale_bits: Number, block_size: Count) -> Byte:
    r"""Bytes of one block and its scale.

    Equation: \frac{1}{8} \left(b k + s\right)
    Where: b = element_bits; s = scale_bits; k = block_size
    Source: OCP Microscaling Formats (MX) 1.0
    Assumes: elements are packed without gaps.
    """
    return as_bytes((element_bits * block_size + scale_bits) / 8)


@formula
def bytes_per_element(*, element_bits: Count, scale_bits: Number, block_size: Count) -> Byte:
    r"""Bytes per number of a block format, its share of the scale included.

    Equation: \frac{1}{8} \left(b + \frac{s}{k}\right)
    Where: b = element_bits; s = scale_bits; k = block_size
    Source: OCP Microscaling Formats (MX) 1.0
    Assumes: elements are packed without gaps and blocks are full.
    """
    return as_bytes(bits_per_element(element_bits=element_bits, scale_bits=scale_bits, block_size=block_size) / 8)


@formula
def mx_scale(
    *, largest_magnitude: Number, exponent_bits: ExponentBits, mantissa_bits: MantissaBits, flavour: Flavour
) -> Number:
    r"""Scale of an MX block: the power of two that brings its largest magnitude to the element format's top binade.

    Equation: X = 2^{\lfloor \log_2 x_{\max} \rfloor - E_{\max}}
    Where: x_{\max} = largest_magnitude; e = exponent_bits; m = mantissa_bits; \mathrm{flavour} = flavour
    Source: OCP Microscaling Formats (MX) 1.0
    Assumes: an E8M0 scale, so from 2^{-127} to 2^{127}.
    """
    top = largest_exponent(exponent_bits=exponent_bits, mantissa_bits=mantissa_bits, flavour=flavour)
    return power_of_two(minimum(maximum(exponent_of(largest_magnitude) - top, -127), 127))


@formula
def round_in_block(
    *,
    value: Real,
    largest_magnitude: Number,
    exponent_bits: ExponentBits,
    mantissa_bits: MantissaBits,
    flavour: Flavour,
) -> Real:
    r"""What an MX block stores for a value: the scale times the nearest element, saturated.

    Equation: X \cdot \operatorname{sat}\left(\frac{x}{X}\right)
    Where: x = value; x_{\max} = largest_magnitude; e = exponent_bits; m = mantissa_bits; \mathrm{flavour} = flavour
    Source: OCP Microscaling Formats (MX) 1.0
    Assumes: no value of the block is larger than the largest magnitude; elements beyond the format's range saturate.
    """
    scale = mx_scale(
        largest_magnitude=largest_magnitude,
        exponent_bits=exponent_bits,
        mantissa_bits=mantissa_bits,
        flavour=flavour,
    )
    element = saturate_to_format(
        value=value / scale, exponent_bits=exponent_bits, mantissa_bits=mantissa_bits, flavour=flavour
    )
    return scale * element
