"""Reading and writing quantities. Oracle: pint, an independent unit library, and hand-written cases."""

from __future__ import annotations

import json
import math
import random
import re

import pint
import pytest
from hypothesis import given
from hypothesis import strategies as st
from py_mini_racer import MiniRacer

from efflab import units
from efflab.errors import EfflabError
from efflab.units import (
    BYTE,
    BYTE_PER_SECOND,
    DEVICE_SECOND,
    DOLLAR,
    DOLLAR_PER_SECOND,
    FLOP,
    FLOP_PER_BYTE,
    FLOP_PER_SECOND,
    GRAM,
    JOULE,
    JOULE_PER_BYTE,
    NAT,
    NUMBER,
    PARAMETER,
    SECOND,
    TOKEN,
    TOKEN_PER_SECOND,
    UNITS,
    WATT,
)  # fmt: skip

UREG = pint.UnitRegistry()
UREG.define("flop = [operation]")
UREG.define("usd = [currency]")


@pytest.mark.parametrize(
    ("text", "unit", "value"),
    [
        ("4.8 TB/s", BYTE_PER_SECOND, 4.8e12),
        ("4.8TB/s", BYTE_PER_SECOND, 4.8e12),
        ("512 MiB", BYTE, 512 * 1024**2),
        ("512 MB", BYTE, 512e6),
        ("989.4 TFLOP/s", FLOP_PER_SECOND, 989.4e12),
        ("989.4 TFLOPS", FLOP_PER_SECOND, 989.4e12),
        ("3.14e23 FLOP", FLOP, 3.14e23),
        ("3.14×10^23 FLOP", FLOP, 3.14e23),
        ("3.14 * 10**23 FLOPs", FLOP, 3.14e23),
        ("3.14 × 10²³ FLOP", FLOP, 3.14e23),
        ("1,024 B", BYTE, 1024),
        ("29.2 ms", SECOND, 0.0292),
        ("5 us", SECOND, 5e-6),
        ("5 µs", SECOND, 5e-6),
        ("5 μs", SECOND, 5e-6),
        ("2 h", SECOND, 7200),
        ("10 years", SECOND, 10 * 365.25 * 86400),
        ("4.95 gflop", FLOP, 4.95e9),
        ("4.95 Gflop", FLOP, 4.95e9),
        ("4.95 GFlops", FLOP, 4.95e9),
        ("2 kflop", FLOP, 2e3),
        ("2 Mflop", FLOP, 2e6),
        ("2 tflops", FLOP_PER_SECOND, 2e12),
        ("2 gflop/s", FLOP_PER_SECOND, 2e9),
        ("2 GFlop/s", FLOP_PER_SECOND, 2e9),
        ("2 mflop", FLOP, 2e-3),  # milli, as everywhere: never taken for mega
        ("29.2 milliseconds", SECOND, 0.0292),
        ("5 microseconds", SECOND, 5e-6),
        ("1 microsecond", SECOND, 1e-6),
        ("5 nanoseconds", SECOND, 5e-9),
        ("206 flops/B", FLOP_PER_BYTE, 206),
        ("206 FLOP/B", FLOP_PER_BYTE, 206),
        ("206 FLOPs/byte", FLOP_PER_BYTE, 206),
        ("1 kWh", JOULE, 3.6e6),
        ("700 W", WATT, 700),
        ("61%", NUMBER, 0.61),
        ("2x", NUMBER, 2),
        ("1.5", NUMBER, 1.5),
        ("2^12", NUMBER, 4096),
        ("2**30 B", BYTE, 1024**3),
        ("10^-5 s", SECOND, 1e-5),
        ("70B", PARAMETER, 70e9),
        ("70 billion parameters", PARAMETER, 70e9),
        ("124M params", PARAMETER, 124e6),
        ("70e9", PARAMETER, 70e9),
        (70e9, PARAMETER, 70e9),
        ("1.4T tokens", TOKEN, 1.4e12),
        ("300 billion", TOKEN, 300e9),
        ("12k tokens/s", TOKEN_PER_SECOND, 12e3),
        ("1.974 nats", NAT, 1.974),
        ("2.50 USD/h", DOLLAR_PER_SECOND, 2.5 / 3600),
        ("4.6 million USD", DOLLAR, 4.6e6),
        ("30.84M GPU-h", DEVICE_SECOND, 30.84e6 * 3600),
        ("2 GPU-hours", DEVICE_SECOND, 7200),
        ("79", DEVICE_SECOND, 79 * 3600),
        (79, DEVICE_SECOND, 79 * 3600),
        ("79 h", DEVICE_SECOND, 79 * 3600),
        ("1.3 million hours", DEVICE_SECOND, 1.3e6 * 3600),
        ("0.06 kWh/GB", JOULE_PER_BYTE, 216e-6),
        ("1/4", NUMBER, 0.25),
        (" 1 / 128 ", NUMBER, 1 / 128),
        ("−1.5/.5", NUMBER, -3.0),
    ],
)
def test_reads(text, unit, value):
    assert math.isclose(units.parse(text, unit), value, rel_tol=1e-15)


@pytest.mark.parametrize(
    ("text", "unit", "says"),
    [
        ("512", BYTE, "has no unit"),
        (512, BYTE, "has no unit"),
        ("512 mb", BYTE, "not spelled as SI"),
        ("512 Mb", BYTE, "means bits"),
        ("4.8 Tb/s", BYTE_PER_SECOND, "means bits"),
        ("3,2 ms", SECOND, "comma"),
        ("fast", SECOND, "no number"),
        ("", SECOND, "no number"),
        ("5 GB", SECOND, "not a unit of time"),
        ("5 s", BYTE, "not a unit of bytes"),
        ("1e3×10^2 FLOP", FLOP, "two exponents"),
        (True, BYTE, "expected a number"),
        (None, BYTE, "expected a number"),
        ("5 GB", NUMBER, "a pure number. Write a plain number, such as 4096"),
        ("2^12.5", NUMBER, "a pure number"),
        ("3^2", NUMBER, "a pure number"),
        ("1/0", NUMBER, "divides by zero"),
        ("1/4/2", NUMBER, "a pure number"),
        ("1/4", SECOND, "not a unit of time"),
        ("70 GB", PARAMETER, "Write it in B parameters"),
        ("3 s", DEVICE_SECOND, "not a unit of accelerator time"),
        ("3 W", DEVICE_SECOND, "GPU-h"),
        ("3", DOLLAR_PER_SECOND, "has no unit.*3 USD/h"),
        ("1.97", NAT, "has no unit"),
    ],
)
def test_refuses_and_says_why(text, unit, says):
    with pytest.raises(EfflabError, match=says) as caught:
        units.parse(text, unit, "answer")
    assert str(caught.value).startswith("answer:")


@pytest.mark.parametrize(
    ("text", "unit", "example", "says"),
    [
        ("810", BYTE, "GB", "Add the one that you mean, such as GB."),
        (810, BYTE, "GB", "such as '3 GB'."),
        ("x", BYTE, "GB", "Write it like '3.2 GB'."),
        ("3 s", BYTE, "GB", "Write it in GB."),
        (None, BYTE, "GB", "such as '3 GB', got"),
        ("295", FLOP_PER_BYTE, "FLOP/B", "Add one, such as '295 FLOP/B'."),
    ],
)
def test_an_error_names_the_example_that_is_given(text, unit, example, says):
    with pytest.raises(EfflabError, match=re.escape(says)):
        units.parse(text, unit, "answer", example)


@pytest.mark.parametrize("unit", [SECOND, BYTE, FLOP, FLOP_PER_SECOND, BYTE_PER_SECOND, JOULE, WATT])
def test_accepted_spellings_agree_with_pint(unit):
    """Every spelling that pint knows too has the factor pint gives it."""
    compared = 0
    for spelling, factor in unit.accepted().items():
        expression = spelling.replace("FLOP", "flop").replace("flopS", "flop/s").replace("Bps", "B/s")
        expression = (
            expression.replace("flops", "flop").replace("bytes", "byte").replace("KB", "kB").replace("K", "k", 1)
        )
        expression = expression.replace("ki", "Ki")
        try:
            quantity = UREG.Quantity(1, expression).to(unit.pint)
        except (pint.UndefinedUnitError, pint.DimensionalityError):
            continue  # pint reads 'flops' as rate or count by its own rules
        compared += 1
        assert math.isclose(quantity.magnitude, factor, rel_tol=1e-3 if "y" in spelling else 1e-12), spelling
    assert compared >= 5


@given(
    st.floats(min_value=1e-11, max_value=1e17, allow_nan=False),
    st.sampled_from(list(UNITS.values())),
)
def test_what_show_writes_parse_reads_back(value, unit):
    text = units.show(value, unit)
    assert math.isclose(units.parse(text, unit), value, rel_tol=5.1e-3), text


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (4.8e12, BYTE_PER_SECOND, "4.8 TB/s"),
        (989.4e12, FLOP_PER_SECOND, "989 TFLOP/s"),
        (999.6e9, BYTE, "1 TB"),
        (1e-6, SECOND, "1 µs"),
        (0, SECOND, "0 s"),
        (119.0, SECOND, "119 s"),
        (150.0, SECOND, "2.5 min"),
        (3.1736e8, SECOND, "10.1 years"),
        (206.125, FLOP_PER_BYTE, "206 FLOP/B"),
        (3.14e23, FLOP, "3.14 × 10²³ FLOP"),
        (4096, NUMBER, "4,096"),
        (1.125, NUMBER, "1.13"),
        (-0.5, NUMBER, "−0.5"),
        (70e9, PARAMETER, "70B parameters"),
        (1.4e12, TOKEN, "1.4T tokens"),
        (512, PARAMETER, "512 parameters"),
        (1.97384, NAT, "1.974 nats"),
        (30.84e6 * 3600, DEVICE_SECOND, "30.8M GPU-h"),
        (2.5 / 3600, DOLLAR_PER_SECOND, "2.5 USD/h"),
        (40e-12, JOULE_PER_BYTE, "40 pJ/B"),
        (3.59e-6, JOULE_PER_BYTE, "3.59 µJ/B"),
        (216e-6, JOULE_PER_BYTE, "0.06 kWh/GB"),
        (0, JOULE_PER_BYTE, "0 J/B"),
        (999e3, GRAM, "999 kg"),
        (1e6, GRAM, "1 t"),
        (math.nan, NUMBER, "not a number"),
        (math.inf, SECOND, "infinite"),
    ],
)
def test_shows(value, unit, text):
    assert units.show(value, unit) == text


def test_gib_is_not_gb():
    assert units.show(2**30, BYTE) == "1.07 GB"
    assert units.show_binary(2**30) == "1 GiB"
    assert units.parse("1 GiB", BYTE) / units.parse("1 GB", BYTE) == 1.073741824


@pytest.mark.parametrize("symbol", UNITS)
def test_the_browser_reads_and_writes_the_same(symbol):
    """V8 runs what the site gets."""
    engine, unit, rng = MiniRacer(), UNITS[symbol], random.Random(symbol)
    engine.eval(f"globalThis.U = {units.javascript()}")
    assert json.loads(engine.eval(f"JSON.stringify(U.UNITS[{json.dumps(symbol)}].accepted)")) == unit.accepted()
    for value in [0, 1, 2.0**30, 999.6e9, *(10 ** rng.uniform(-8, 20) for _ in range(200))]:
        assert engine.eval(f"U.show({value!r}, {json.dumps(symbol)})") == units.show(value, unit)


ANY = {
    "-0": -0.0, "0.1": 0.1, "2^-24": 2.0**-24, "-2^-24": -(2.0**-24), "1.5 × 2^-24": 1.5 * 2.0**-24, "inf": math.inf,
    "-Infinity": -math.inf, "2^-1074": 5e-324, "3 * 2^-1074": 1.5e-323, "2^1023": 2.0**1023, "2^1024": math.inf,
    "1e400": math.inf, "3,000": 3000.0, "−3": -3.0, "1e-310": 1e-310,
}  # fmt: skip


@pytest.mark.parametrize("text", [*ANY, "nan", "-nan"])
def test_any_number_is_read_where_one_is_asked_for(text):
    engine = MiniRacer()
    engine.eval(f"globalThis.U = {units.javascript()}")
    value = units.parse(text, units.REAL)
    if text in ANY:
        assert (value, math.copysign(1, value)) == (ANY[text], math.copysign(1, ANY[text]))
        assert engine.eval(f"Object.is(U.real({json.dumps(text)}).value, {json.dumps(value)})")
    else:
        assert math.isnan(value)
        assert engine.eval(f"Number.isNaN(U.real({json.dumps(text)}).value)")


@pytest.mark.parametrize("text", ["abc", "", "3 GB", "1/3", "2^x"])
def test_what_is_no_number_is_refused_alike(text):
    engine = MiniRacer()
    engine.eval(f"globalThis.U = {units.javascript()}")
    with pytest.raises(EfflabError) as caught:
        units.parse(text, units.REAL)
    assert engine.eval(f"U.real({json.dumps(text)}).problem") == str(caught.value).removeprefix("value: ")
