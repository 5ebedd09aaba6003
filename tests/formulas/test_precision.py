"""Number formats and rounding against counts they did not come from.

Oracles: every value of a format decoded from its bit patterns with exact fractions; torch.finfo; numpy's, torch's and
ml_dtypes' conversions; V8 running the traced JavaScript; simulated sums and products.
"""

from __future__ import annotations

import json
import math
import struct
from bisect import bisect_left, bisect_right
from fractions import Fraction
from functools import cache

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from py_mini_racer import MiniRacer

from efflab import catalog
from efflab.formulas import namespace, reading
from efflab.formulas import precision as p

# numpy warns when it widens a signalling NaN, which random bit patterns are sometimes
pytestmark = pytest.mark.filterwarnings("ignore:invalid value encountered in cast")

PLAIN = {name: f for name, f in catalog.formats().items() if not f.block}
SMALL = [name for name, f in PLAIN.items() if f.bits <= 8]
ENUMERATED = [name for name, f in PLAIN.items() if f.bits <= 16]
SIGNED = [name for name in PLAIN if name != "E8M0 scale"]


def decode(pattern, exponent_bits, mantissa_bits, flavour):
    """The number of a bit pattern, exactly, by the definition of its flavour; a float for infinity, NaN and −0."""
    exponent = (pattern >> mantissa_bits) & (2**exponent_bits - 1)
    mantissa = pattern & (2**mantissa_bits - 1)
    if flavour == "scale":
        return math.nan if exponent == 2**exponent_bits - 1 else Fraction(2) ** (exponent - 127)
    negative = pattern >> (exponent_bits + mantissa_bits)
    top, ones = exponent == 2**exponent_bits - 1, mantissa == 2**mantissa_bits - 1
    if flavour == "ieee" and top:
        return math.nan if mantissa else (-math.inf if negative else math.inf)
    if flavour == "fn" and top and ones:
        return math.nan
    if negative and not exponent and not mantissa:
        return math.nan if flavour == "fnuz" else -0.0
    bias = 2 ** (exponent_bits - 1) - (0 if flavour == "fnuz" else 1)
    significand = Fraction(mantissa, 2**mantissa_bits) + (1 if exponent else 0)
    return (-1 if negative else 1) * significand * Fraction(2) ** (max(exponent, 1) - bias)


@cache
def patterns(name):
    """The number of every bit pattern of a format."""
    one = PLAIN[name]
    return [decode(i, **one.arguments()) for i in range(2**one.bits)]


@cache
def finite_values(name):
    """Every finite number of a format, rising."""
    return sorted({v + 0.0 for v in map(float, patterns(name)) if math.isfinite(v)})


@cache
def magnitudes(name):
    """Every finite magnitude of a format, rising, with its pattern, and one further number that it would have next."""
    found = sorted((v, i) for i, v in enumerate(patterns(name)) if isinstance(v, Fraction) and v >= 0)
    values = [v for v, _ in found]
    return values, [i for _, i in found], 2 * values[-1] - values[-2]


def nearest(name, x):
    """x rounded by searching the format's numbers: the oracle of round_to_format for formats of up to 16 bits."""
    flavour = PLAIN[name].flavour
    if math.isnan(x) or (flavour == "scale" and x <= 0):
        return math.nan
    values, codes, further = magnitudes(name)
    beyond = {"ieee": math.inf, "finite": float(values[-1])}.get(flavour, math.nan)
    if math.isinf(x):
        return math.copysign(beyond, x)
    size = abs(Fraction(x))
    if flavour == "scale":
        further = 2 * values[-1]  # powers of two only
        size = max(size, values[0])
    if size >= further:
        size_rounded = beyond
    else:
        above = bisect_left(values, size)
        if above == len(values):
            candidates = [(values[-1], codes[-1]), (further, codes[-1] + 1)]
        else:
            candidates = [(values[max(above - 1, 0)], codes[max(above - 1, 0)]), (values[above], codes[above])]
        low, high = candidates
        if flavour == "scale":
            chosen = low if size - low[0] < high[0] - size else high  # no last bit to be even
        else:
            chosen = min(candidates, key=lambda c: (abs(c[0] - size), c[1] % 2))
        size_rounded = beyond if chosen[0] == further else float(chosen[0])
    if flavour == "fnuz" and size_rounded == 0:
        return 0.0
    return math.copysign(size_rounded, x) if flavour != "scale" else size_rounded


def same(a, b):
    """Equal, with NaN equal to NaN and −0 different from +0."""
    return (math.isnan(a) and math.isnan(b)) or (a == b and math.copysign(1, a) == math.copysign(1, b))


def equal(ours, theirs):
    """`same` over arrays."""
    ours, theirs = np.asarray(ours, dtype=float), np.asarray(theirs, dtype=float)
    both_nan = np.isnan(ours) & np.isnan(theirs)
    return bool(np.all(both_nan | ((ours == theirs) & (np.signbit(ours) == np.signbit(theirs)))))


def bits(name):
    """What a formula needs to know of a format."""
    return PLAIN[name].arguments()


def rounded(name, values):
    return p.round_to_format(value=values, **bits(name))


# The decoder itself, bit pattern by bit pattern


@pytest.mark.parametrize("name", [n for n in ENUMERATED if PLAIN[n].ml_dtypes or n == "FP16"])
def test_the_decoder_agrees_with_ml_dtypes(name):
    one = PLAIN[name]
    dtype = np.dtype(getattr(ml_dtypes, one.ml_dtypes) if one.ml_dtypes else np.float16)
    stored = np.arange(2**one.bits, dtype=np.uint16 if one.bits > 8 else np.uint8).view(dtype)
    assert equal([float(v) for v in patterns(name)], stored.astype(np.float64))


@pytest.mark.parametrize("name", [n for n in ENUMERATED if PLAIN[n].torch and n != "FP4 E2M1"])
def test_the_decoder_agrees_with_torch(name):
    one = PLAIN[name]
    integers = torch.arange(2**one.bits, dtype=torch.int32).to(torch.uint16 if one.bits > 8 else torch.uint8)
    stored = integers.view(getattr(torch, one.torch)).to(torch.float32)
    assert equal([float(v) for v in patterns(name)], stored.numpy())


# Range


@pytest.mark.parametrize("name", ENUMERATED)
def test_range_by_looking_at_every_pattern(name):
    one = PLAIN[name]
    values, codes, _ = magnitudes(name)
    without_mantissa = dict(exponent_bits=one.exponent_bits, flavour=one.flavour)
    positive = [v for v in values if v > 0]
    first_normal = next(v for v, c in zip(values, codes, strict=True) if c >> one.mantissa_bits or "scale" in name)
    assert p.largest_finite(**one.arguments()) == values[-1]
    assert p.smallest_subnormal(**one.arguments()) == positive[0]
    assert p.smallest_normal(**without_mantissa) == first_normal
    assert p.smallest_exponent(**without_mantissa) == math.log2(first_normal)
    assert p.largest_exponent(**one.arguments()) == math.frexp(float(values[-1]))[1] - 1
    assert p.distinct_values(**one.arguments()) == len(finite_values(name))
    assert p.format_bits(**one.arguments()) == one.bits
    decades = p.dynamic_range(**one.arguments())
    assert math.isclose(decades, math.log10(values[-1]) - math.log10(positive[0]), rel_tol=1e-12)
    assert p.binades(**one.arguments()) == len({math.frexp(float(v))[1] for v in positive})
    bias = p.exponent_bias(**without_mantissa)
    one_is = next(c for v, c in zip(values, codes, strict=True) if v == 1)
    assert one_is >> one.mantissa_bits == bias  # 1 = 2^0 is stored with the bias as its exponent
    assert p.machine_epsilon(mantissa_bits=one.mantissa_bits) == min(v for v in values if v > 1) - 1
    assert p.unit_roundoff(mantissa_bits=one.mantissa_bits) == p.machine_epsilon(mantissa_bits=one.mantissa_bits) / 2


@pytest.mark.parametrize("name", [n for n, f in PLAIN.items() if f.torch and n != "FP4 E2M1"])
def test_range_is_torchs_finfo(name):
    one = PLAIN[name]
    info = torch.finfo(getattr(torch, one.torch))
    assert p.largest_finite(**one.arguments()) == info.max
    assert p.smallest_normal(exponent_bits=one.exponent_bits, flavour=one.flavour) == info.smallest_normal
    assert p.format_bits(**one.arguments()) == info.bits
    if name == "FP8 E5M2FNUZ":  # torch 2.13 gives E4M3's
        assert (
            p.machine_epsilon(mantissa_bits=2)
            == 0.25
            == float(np.nextafter(ml_dtypes.float8_e5m2fnuz(1), ml_dtypes.float8_e5m2fnuz(2))) - 1
        )
    else:
        assert p.machine_epsilon(mantissa_bits=one.mantissa_bits) == info.eps


@pytest.mark.parametrize("name", [n for n, f in PLAIN.items() if f.ml_dtypes and n != "E8M0 scale"])
def test_range_is_ml_dtypes_finfo(name):
    one = PLAIN[name]
    info = ml_dtypes.finfo(getattr(ml_dtypes, one.ml_dtypes))
    assert p.largest_finite(**one.arguments()) == float(info.max)
    assert p.smallest_normal(exponent_bits=one.exponent_bits, flavour=one.flavour) == float(info.smallest_normal)
    assert p.smallest_subnormal(**one.arguments()) == float(info.smallest_subnormal)
    assert p.machine_epsilon(mantissa_bits=one.mantissa_bits) == float(info.eps)


@pytest.mark.parametrize(("name", "dtype"), [("FP64", np.float64), ("FP32", np.float32), ("FP16", np.float16)])
def test_range_is_numpys_finfo(name, dtype):
    one, info = PLAIN[name], np.finfo(dtype)
    assert p.largest_finite(**one.arguments()) == info.max
    assert p.smallest_subnormal(**one.arguments()) == info.smallest_subnormal
    assert p.exponent_bias(exponent_bits=one.exponent_bits, flavour="ieee") == info.maxexp - 1
    assert math.floor(p.decimal_digits(mantissa_bits=info.nmant)) - 1 <= info.precision
    assert p.decimal_digits(mantissa_bits=info.nmant) == math.log10(2) * (info.nmant + 1)


# Rounding

doubles = st.floats(allow_nan=True, allow_infinity=True, allow_subnormal=True)


@st.composite
def near_ties(draw):
    """A format and a double at, or a last bit beside, a number of it or a midpoint of two, or its overflow limit."""
    name = draw(st.sampled_from(ENUMERATED))
    values, _, further = magnitudes(name)
    at = draw(st.integers(0, len(values) - 1))
    upper = values[at + 1] if at + 1 < len(values) else further
    x = float(draw(st.sampled_from([values[at], (values[at] + upper) / 2])))
    assume(math.isfinite(x))
    x = draw(st.sampled_from([x, math.nextafter(x, math.inf), math.nextafter(x, -math.inf)]))
    return name, draw(st.sampled_from([x, -x]))


@settings(max_examples=1500)
@given(near_ties())
@example(("FP8 E4M3FN", 464.0))
@example(("FP8 E4M3FN", math.nextafter(464.0, 500)))
@example(("E8M0 scale", 2.0**-128))
@example(("E8M0 scale", 1.5 * 2.0**127))
def test_rounding_near_ties_by_search(case):
    name, x = case
    assert same(rounded(name, x), nearest(name, x)), (name, x)


@settings(max_examples=500)
@given(st.sampled_from(ENUMERATED), doubles | st.floats(-1000, 1000) | st.floats(-1e-4, 1e-4))
def test_rounding_any_double_by_search(name, x):
    assert same(rounded(name, x), nearest(name, x)), (name, x)


@pytest.mark.parametrize("name", ENUMERATED)
def test_numbers_of_the_format_stay_as_they_are(name):
    values = np.array([float(v) for v in patterns(name)])
    assert equal(rounded(name, values), values)


@settings(max_examples=1000)
@given(doubles)
def test_fp64_is_the_identity(x):
    assert same(rounded("FP64", x), x)


def test_fp64_keeps_its_subnormal_numbers():
    for x in (5e-324, 3 * 5e-324, 2.0**-1022, math.nextafter(2.0**-1022, 0), 1.7976931348623157e308, -0.0):
        assert same(rounded("FP64", x), x)


@settings(max_examples=1000)
@given(doubles | st.floats(width=32) | st.floats(-7e-5, 7e-5) | st.floats(1e-46, 1e-37))
def test_fp32_and_fp16_are_numpys_casts(x):
    with np.errstate(over="ignore", under="ignore"):
        assert same(rounded("FP32", x), float(np.float32(x)))
        assert same(rounded("FP16", x), float(np.float16(x)))


def float32_samples(name):
    """Random bit patterns of float32, and every number and midpoint of the format with its neighbours."""
    rng = np.random.default_rng(7)
    random_bits = rng.integers(0, 2**32, 60_000, dtype=np.uint64).astype(np.uint32).view(np.float32)
    moderate = (rng.standard_normal(60_000) * 10.0 ** rng.uniform(-6, 6, 60_000)).astype(np.float32)
    values, _, further = magnitudes(name)
    exact = np.array([float(v) for v in [*values, further]])
    with np.errstate(over="ignore"):
        edges = np.concatenate([exact, (exact[1:] + exact[:-1]) / 2]).astype(np.float32)
        edges = np.concatenate([edges, np.nextafter(edges, np.float32(np.inf)), np.nextafter(edges, np.float32(0))])
    special = np.array([0.0, -0.0, np.inf, -np.inf, np.nan], dtype=np.float32)
    return np.concatenate([random_bits, moderate, edges, -edges, special])


@pytest.mark.parametrize("name", [n for n in ENUMERATED if PLAIN[n].ml_dtypes])
def test_rounding_is_ml_dtypes_conversion_of_float32(name):
    values = float32_samples(name)
    with np.errstate(all="ignore"):
        theirs = values.astype(getattr(ml_dtypes, PLAIN[name].ml_dtypes)).astype(np.float64)
    ours = rounded(name, values.astype(np.float64))
    if name == "E8M0 scale":  # of float32's subnormal numbers it rounds some up that are nearer to 2^-127
        subnormal = np.abs(values) < 2.0**-126
        assert np.all(ours[subnormal & (values > 0)] >= 2.0**-127)
        ours, theirs = ours[~subnormal], theirs[~subnormal]
    if PLAIN[name].flavour == "finite":  # NaN has no pattern there: ml_dtypes stores −0
        assert np.all(np.isnan(ours) == np.isnan(values)) and np.all(theirs[np.isnan(values)] == 0)
        ours = np.where(np.isnan(values), theirs, ours)
    assert equal(ours, theirs)


@pytest.mark.parametrize("name", ["BF16", "FP16", "FP8 E5M2", "FP8 E4M3FNUZ", "FP8 E5M2FNUZ"])
def test_rounding_is_torchs_conversion_of_float32(name):
    values = float32_samples(name)
    theirs = torch.from_numpy(values).to(getattr(torch, PLAIN[name].torch)).to(torch.float64).numpy()
    assert equal(rounded(name, values.astype(np.float64)), theirs)


def test_saturation_is_torchs_conversion_to_e4m3fn():
    """Older versions of torch gave NaN beyond 464; 2.13 saturates."""
    values = float32_samples("FP8 E4M3FN")
    theirs = torch.from_numpy(values).to(torch.float8_e4m3fn).to(torch.float64).numpy()
    if np.isnan(theirs[np.isfinite(values)]).any():
        pytest.skip("this version of torch does not saturate")
    assert equal(p.saturate_to_format(value=values.astype(np.float64), **bits("FP8 E4M3FN")), theirs)


@settings(max_examples=500)
@given(st.sampled_from(ENUMERATED), doubles)
def test_saturation_is_rounding_of_the_clipped_value(name, x):
    largest = float(magnitudes(name)[0][-1])
    clipped = x if math.isnan(x) else max(min(x, largest), -largest)
    assert same(p.saturate_to_format(value=x, **bits(name)), nearest(name, clipped))


def test_a_double_is_rounded_once():
    """A little above a tie: through float32 it becomes the tie and then goes to the even side."""
    x = 1 + 2.0**-8 + 2.0**-40
    assert rounded("BF16", x) == nearest("BF16", x) == 1.0078125
    assert float(torch.tensor(x, dtype=torch.float64).to(torch.bfloat16)) == 1.0


@pytest.mark.parametrize("exponent_bits", range(2, 7))
@pytest.mark.parametrize("mantissa_bits", range(1, 6))
@pytest.mark.parametrize("flavour", ["ieee", "fn", "fnuz", "finite"])
def test_any_small_format_by_search(exponent_bits, mantissa_bits, flavour):
    """Formats that nobody made: the formulas know no list."""
    form = dict(exponent_bits=exponent_bits, mantissa_bits=mantissa_bits, flavour=flavour)
    values = [decode(i, **form) for i in range(2 ** (exponent_bits + mantissa_bits))]
    finite = np.array([float(v) for v in values if isinstance(v, Fraction)])  # the pattern of finite[i] is i
    assert p.largest_finite(**form) == finite[-1] and p.smallest_subnormal(**form) == finite[1]
    low, high = finite[:-1], finite[1:]
    middles = (low + high) / 2
    even = np.where(np.arange(len(low)) % 2 == 0, low, high)
    assert np.array_equal(p.round_to_format(value=middles, **form), even)
    assert np.array_equal(p.round_to_format(value=np.nextafter(middles, np.inf), **form), high)
    assert np.array_equal(p.round_to_format(value=np.nextafter(middles, -np.inf), **form), low)


# Neighbours and classes


@settings(max_examples=800)
@given(near_ties() | st.tuples(st.sampled_from(ENUMERATED), doubles))
def test_neighbours_by_search(case):
    name, x = case
    assume(not math.isnan(x))
    flavour = PLAIN[name].flavour
    finite = finite_values(name)
    above = next(iter(finite[bisect_right(finite, x) :][:1]), None)
    below = next(iter(finite[: bisect_left(finite, x)][-1:]), None)
    ours_above, ours_below = p.next_above(value=x, **bits(name)), p.next_below(value=x, **bits(name))
    ends = {"ieee": (math.inf, -math.inf), "finite": (finite[-1], finite[0])}.get(flavour, (math.nan, math.nan))
    ends_below = math.nan if flavour == "scale" else ends[1]
    if above is not None:
        assert ours_above == above, (name, x)
    else:
        assert same(ours_above, ends[0])
    if below is not None:
        assert ours_below == below, (name, x)
    else:
        assert same(ours_below, ends_below)


@settings(max_examples=500)
@given(doubles)
def test_neighbours_of_a_double_are_pythons(x):
    assume(not math.isnan(x))
    assert p.next_above(value=x, **bits("FP64")) == math.nextafter(x, math.inf)
    assert p.next_below(value=x, **bits("FP64")) == math.nextafter(x, -math.inf)


@pytest.mark.parametrize("name", ENUMERATED)
def test_classes_by_pattern(name):
    one = PLAIN[name]
    values = patterns(name)
    exponents = [(i >> one.mantissa_bits) & (2**one.exponent_bits - 1) for i in range(len(values))]
    expected = [
        4 if v != v else 3 if v in (math.inf, -math.inf) else 0 if v == 0 else 2 if e or "scale" in name else 1
        for v, e in zip(values, exponents, strict=True)
    ]
    ours = p.number_class(value=np.array([float(v) for v in values]), **bits(name))
    assert ours.tolist() == expected


@pytest.mark.parametrize("name", ENUMERATED)
def test_spacing_by_subtraction(name):
    values, _, further = magnitudes(name)
    lower = np.array([float(v) for v in values])
    upper = np.array([float(v) for v in [*values[1:], further]])
    if name == "E8M0 scale":
        upper[-1] = 2.0**128
    assert np.array_equal(p.spacing(value=lower, **bits(name)), upper - lower)
    assert np.array_equal(p.spacing(value=-lower, **bits(name)), upper - lower)


@settings(max_examples=300)
@given(st.sampled_from(["BF16", "FP16", "FP8 E4M3FN", "FP4 E2M1"]), st.floats(-1e3, 1e3))
def test_relative_error_by_fractions(name, x):
    assume(abs(x) > 1e-200)
    theirs = nearest(name, x)
    ours = p.relative_error(value=x, **bits(name))
    if math.isfinite(theirs):
        assert math.isclose(ours, abs((Fraction(theirs) - Fraction(x)) / Fraction(x)), rel_tol=1e-12)
        assert p.deviation(value=x, stored=theirs) == ours
    else:
        assert not math.isfinite(ours)
    assert p.relative_error(value=0.0, **bits(name)) == 0


@settings(max_examples=300)
@given(st.sampled_from(["BF16", "FP16", "FP8 E5M2"]), st.floats(-5e4, 5e4))
def test_unit_roundoff_bounds_the_error_and_is_reached(name, x):
    one = PLAIN[name]
    unit = p.unit_roundoff(mantissa_bits=one.mantissa_bits)
    if abs(x) >= p.smallest_normal(exponent_bits=one.exponent_bits, flavour=one.flavour):
        assert p.relative_error(value=x, **bits(name)) <= unit
    assert math.isclose(p.relative_error(value=1 + unit, **bits(name)), unit / (1 + unit))


# Stochastic rounding


@settings(max_examples=300)
@given(st.sampled_from(["BF16", "FP16", "FP8 E4M3FN", "FP8 E5M2", "FP6 E2M3", "FP4 E2M1"]), st.floats(-5.9, 5.9))
def test_stochastic_rounding_by_its_two_neighbours(name, x):
    values, _, _ = magnitudes(name)
    size = abs(Fraction(x))
    above = bisect_left(values, size)
    high, low = values[above], values[above] if values[above] == size else values[above - 1]
    share = (size - low) / (high - low) if high != low else Fraction(0)
    assert math.isclose(p.stochastic_rounding_probability(value=x, **bits(name)), share, rel_tol=1e-12, abs_tol=1e-15)
    mean = (1 - share) * low + share * high
    assert mean == size
    assert math.isclose(p.stochastic_rounding_expectation(value=x, **bits(name)), math.copysign(mean, x), rel_tol=1e-12)
    deviation = math.sqrt((1 - share) * (low - mean) ** 2 + share * (high - mean) ** 2)
    ours = p.stochastic_rounding_deviation(value=x, **bits(name))
    assert math.isclose(ours, deviation, rel_tol=1e-6, abs_tol=1e-12)


def test_stochastic_rounding_by_drawing():
    """100,000 draws: the mean is the value, though the nearest number is not."""
    x, low, high = 0.7, 0.5, 1.0  # FP4 has nothing between
    share = p.stochastic_rounding_probability(value=x, **bits("FP4 E2M1"))
    drawn = np.where(np.random.default_rng(0).random(100_000) < share, high, low)
    assert math.isclose(drawn.mean(), p.stochastic_rounding_expectation(value=x, **bits("FP4 E2M1")), rel_tol=5e-3)
    assert math.isclose(drawn.std(), p.stochastic_rounding_deviation(value=x, **bits("FP4 E2M1")), rel_tol=5e-3)
    assert rounded("FP4 E2M1", x) == 0.5


# Sums and products


@pytest.mark.parametrize("addend", [1.0, 3.0, 0.75, 5.0])
@pytest.mark.parametrize(("dtype", "name"), [(np.float16, "FP16"), (ml_dtypes.bfloat16, "BF16")])
def test_stalled_sum_by_adding(addend, dtype, name):
    total, step = dtype(0), dtype(addend)
    while total + step != total:
        total = total + step
    ours = p.stalled_sum(addend=addend, mantissa_bits=PLAIN[name].mantissa_bits)
    assert float(total) == ours


def test_stalled_sum_of_fp8_by_rounding_each_step():
    total = 0.0
    while (grown := nearest("FP8 E5M2", total + 1)) != total:
        total = grown
    assert total == p.stalled_sum(addend=1, mantissa_bits=2) == 8


def cast(values, name):
    """Rounding by numpy and ml_dtypes; None leaves the values as they are."""
    dtype = {"FP16": np.float16, "FP32": np.float32, None: np.float64}.get(name)
    return values.astype(dtype or getattr(ml_dtypes, PLAIN[name].ml_dtypes)).astype(np.float64)


def epsilon(name):
    return 0.0 if name is None else float(p.machine_epsilon(mantissa_bits=PLAIN[name].mantissa_bits))


@pytest.mark.parametrize("name", ["BF16", "FP16", "FP8 E5M2", "FP8 E4M3FN"])
def test_rms_rounding_error_by_drawing(name):
    rng = np.random.default_rng(3)
    low, high = (-3, 3) if "FP8" in name else (-10, 10)
    log_uniform = 2.0 ** rng.uniform(low, high, 400_000)
    errors = (cast(log_uniform, name) - log_uniform) / log_uniform
    ours = p.rms_rounding_error(epsilon=epsilon(name))
    assert math.isclose(math.sqrt(np.mean(errors**2)), ours, rel_tol=0.02 if "FP8" in name else 0.005)
    if "FP8" not in name:  # normal numbers reach FP8's subnormal ones
        for scale in (1.0, 1.25, 1.7):
            normal = scale * rng.standard_normal(400_000)
            norm = np.linalg.norm(cast(normal, name) - normal) / np.linalg.norm(normal)
            assert math.isclose(norm, ours, rel_tol=0.01)


def product_error(rows, terms, input_name, accumulator, output_name, block, seed):
    """Norm of the error of a simulated product over the norm of the exact one; sums in blocks, then over them."""
    rng = np.random.default_rng(seed)
    a, b = rng.standard_normal((rows, terms)), rng.standard_normal((terms, rows))
    exact = a @ b
    low_a, low_b = cast(a, input_name), cast(b, input_name)
    total = np.zeros((rows, rows))
    for start in range(0, terms, block):
        partial = np.zeros((rows, rows))
        for k in range(start, start + block):
            partial = cast(partial + np.outer(low_a[:, k], low_b[k]), accumulator)
        total = cast(total + partial, accumulator)
    return np.linalg.norm(cast(total, output_name) - exact) / np.linalg.norm(exact)


@pytest.mark.parametrize(
    ("input_name", "accumulator", "output_name", "terms", "block"),
    [
        ("BF16", "FP32", "BF16", 256, 256),
        ("FP16", "FP32", "FP16", 256, 256),
        ("BF16", "FP32", "FP32", 256, 256),
        (None, "FP32", "FP32", 512, 512),
        (None, "FP32", "FP32", 512, 32),
        (None, "FP16", "FP16", 256, 256),
        (None, "BF16", "BF16", 256, 16),
        ("FP8 E4M3FN", "FP16", "FP16", 256, 256),
        ("BF16", "BF16", "BF16", 128, 128),
        (None, "FP16", "FP16", 128, 1),
        (None, "FP16", "FP16", 2, 2),
        (None, "FP16", "FP16", 4, 4),
    ],
)
def test_dot_product_error_by_simulation(input_name, accumulator, output_name, terms, block):
    measured = product_error(
        96 if terms > 8 else 256, terms, input_name, accumulator, output_name, block, seed=terms + block
    )
    # the last addition already gave a number of the accumulator's format
    output = 0.0 if accumulator == output_name else epsilon(output_name)
    ours = p.dot_product_error(
        terms=terms,
        input_epsilon=epsilon(input_name),
        accumulator_epsilon=epsilon(accumulator),
        output_epsilon=output,
        block_size=block,
    )
    assert math.isclose(measured, ours, rel_tol=0.04), (measured, ours)
    alone = p.accumulation_error(terms=terms, block_size=block, epsilon=epsilon(accumulator))
    assert alone <= ours
    if input_name is None:
        assert math.isclose(alone, ours)


@pytest.mark.parametrize("terms", [64, 1024])
@pytest.mark.parametrize("name", ["FP16", "FP32"])
def test_pairwise_accumulation_error_by_simulation(terms, name):
    values = np.random.default_rng(5).standard_normal((20_000, terms))
    level = cast(values, name)
    while level.shape[1] > 1:
        level = cast(level[:, ::2] + level[:, 1::2], name)
    exact = values.sum(axis=1)
    measured = np.linalg.norm(level[:, 0] - exact) / np.linalg.norm(exact)
    assert math.isclose(measured, p.pairwise_accumulation_error(terms=terms, epsilon=epsilon(name)), rel_tol=0.09)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.floats(-10, 10), st.floats(-10, 10)), min_size=1, max_size=60))
def test_no_dot_product_exceeds_the_bound(pairs):
    total = np.float16(0)
    a, b = ([np.float16(pair[i]) for pair in pairs] for i in (0, 1))
    assume(all(x == 0 or abs(float(x)) > 0.01 for x in [*a, *b]))  # no underflow
    for x, y in zip(a, b, strict=True):
        total = np.float16(total + np.float16(x * y))
    exact = sum(Fraction(float(x)) * Fraction(float(y)) for x, y in zip(a, b, strict=True))
    scale = sum(abs(Fraction(float(x)) * Fraction(float(y))) for x, y in zip(a, b, strict=True))
    bound = p.dot_product_error_bound(terms=len(pairs), roundoff=2.0**-11)
    assert abs(Fraction(float(total)) - exact) <= Fraction(bound) * scale


def test_the_bound_ends_where_it_says_nothing():
    assert p.dot_product_error_bound(terms=2048, roundoff=2.0**-11) == math.inf
    assert p.dot_product_error_bound(terms=1024, roundoff=2.0**-11) == 1.0


@pytest.mark.parametrize("levels", [7, 127])
def test_integer_rounding_error_by_quantising(levels):
    values = np.random.default_rng(1).standard_normal(1_000_000)
    step = np.abs(values).max() / levels
    measured = np.linalg.norm(np.rint(values / step) * step - values) / np.linalg.norm(values)
    rms = math.sqrt(np.mean(values**2))
    ours = p.integer_rounding_error(largest_magnitude=np.abs(values).max(), rms=rms, levels=levels)
    assert math.isclose(measured, ours, rel_tol=0.01)


# Block formats


@pytest.mark.parametrize("name", [n for n, f in catalog.formats().items() if f.block])
def test_bytes_of_a_block_by_packing_its_bits(name):
    one = catalog.number_format(name)
    scale = catalog.number_format(one.block.scale)
    text = "0" * scale.bits + "0" * one.bits * one.block.size
    packed = int(text or "0", 2).to_bytes(math.ceil(len(text) / 8), "big")
    sizes = dict(element_bits=one.bits, scale_bits=scale.bits, block_size=one.block.size)
    assert p.block_bytes(**sizes) == len(packed)
    assert p.bits_per_element(**sizes) == len(text) / one.block.size
    assert p.bytes_per_element(**sizes) == len(packed) / one.block.size == one.bytes_per_element


@settings(max_examples=200)
@given(
    st.sampled_from(["FP4 E2M1", "FP6 E2M3", "FP6 E3M2", "FP8 E4M3FN", "FP8 E5M2"]),
    st.lists(st.floats(-1e4, 1e4, width=32), min_size=32, max_size=32),
    st.integers(-60, 60),
)
def test_mx_blocks_by_ml_dtypes(name, block, shift):
    values = np.ldexp(np.array(block), shift)
    largest = float(np.abs(values).max())
    assume(largest > 1e-30)
    top = magnitudes(name)[0][-1]
    # the power of two that brings the largest magnitude into the binade of the format's largest number
    scale = Fraction(1)
    binade = Fraction(2) ** (math.frexp(float(top))[1] - 1)
    while Fraction(largest) / scale >= 2 * binade:
        scale *= 2
    while Fraction(largest) / scale < binade:
        scale /= 2
    assert p.mx_scale(largest_magnitude=largest, **PLAIN[name].arguments()) == scale
    clipped = np.clip(values / float(scale), -float(top), float(top)).astype(np.float32)
    stored = clipped.astype(getattr(ml_dtypes, PLAIN[name].ml_dtypes)).astype(np.float64) * float(scale)
    ours = p.round_in_block(value=values, largest_magnitude=largest, **PLAIN[name].arguments())
    assert np.array_equal(ours, stored)


def test_mx_scale_stays_within_e8m0():
    assert p.mx_scale(largest_magnitude=0.0, **bits("FP4 E2M1")) == 2.0**-127
    assert p.mx_scale(largest_magnitude=1e300, **bits("FP4 E2M1")) == 2.0**127


# JavaScript


@pytest.fixture(scope="module")
def v8():
    engine = MiniRacer()
    engine.eval("\n".join(namespace.JAVASCRIPT.values()))
    return engine


def bits_of(value):
    return struct.pack(">d", math.nan if math.isnan(value) else value).hex()


AS_BITS = """(function (values) {
  const view = new DataView(new ArrayBuffer(8));
  return JSON.stringify(values.map(v => {
    view.setFloat64(0, v !== v ? NaN : v);
    return view.getUint32(0).toString(16).padStart(8, "0") + view.getUint32(4).toString(16).padStart(8, "0");
  }));
})"""


def edge_cases():
    rng = np.random.default_rng(11)
    random_bits = rng.integers(0, 2**63, 300, dtype=np.uint64).view(np.float64).tolist()
    halves = [k + 0.5 for k in range(-6, 6)] + [0.49999999999999994, -0.49999999999999994, 2.0**52 + 1, 2.0**53]
    subnormal = [5e-324, -5e-324, 2.0**-1022, math.nextafter(2.0**-1022, 0), 2.0**-1074 * 3, 2.0**-1060]
    powers = [s * 2.0**k for k in range(-1074, 1024, 37) for s in (1, -1)]
    return [*halves, *subnormal, *powers, *random_bits, 0.0, -0.0, math.inf, -math.inf, math.nan, 464.0, 465.0]


@pytest.mark.parametrize(
    "name", ["exponent_of", "power_of_two", "round_half_even", "magnitude", "floor", "unsigned_zero"]
)
def test_each_helper_is_the_same_function_in_javascript(name, v8):
    values = [*edge_cases(), *range(-1100, 1101)]
    if name == "power_of_two":
        values = [v for v in values if not math.isfinite(v) or v == math.floor(v)]
    ours = [bits_of(getattr(namespace, name)(float(v))) for v in values]
    theirs = json.loads(v8.eval(f"{AS_BITS}({json.dumps(values)}.map(x => {name}(x)))"))
    assert ours == theirs


def test_helpers_of_numbers_that_the_library_knows():
    for x in [v for v in edge_cases() if math.isfinite(v) and v != 0]:
        assert 2 ** Fraction(namespace.exponent_of(x)) <= abs(Fraction(x)) < 2 ** Fraction(namespace.exponent_of(x) + 1)
        assert namespace.round_half_even(x) == round(x)
        assert namespace.floor(x) == math.floor(x)
    for k in range(-1074, 1024):
        assert Fraction(namespace.power_of_two(k)) == Fraction(2) ** k
    assert namespace.power_of_two(-1075) == 0 and namespace.power_of_two(1024) == math.inf


@pytest.mark.parametrize(
    "function",
    [p.round_to_format, p.saturate_to_format, p.next_above, p.next_below, p.number_class, p.spacing],
    ids=lambda f: f.__name__,
)
def test_rounding_in_javascript_bit_by_bit(function, v8):
    code = reading.javascript(function)
    values = edge_cases()
    for name, one in PLAIN.items():
        ours = [bits_of(v) for v in function(value=np.array(values), **one.arguments())]
        call = f"{json.dumps(values)}.map(value => ({code})({{value, ...{json.dumps(one.arguments())}}}))"
        assert ours == json.loads(v8.eval(f"{AS_BITS}({call})")), name
