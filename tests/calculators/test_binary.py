"""Numbers of binary formats, in Python and in V8, against torch, ml_dtypes and exact arithmetic."""

from __future__ import annotations

import math
import random
import re
import struct
from decimal import Decimal, localcontext
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
import torch

from efflab import calculators
from efflab.calculators import binary, bundle
from efflab.catalog import formats

from .conftest import random_number

# plain formats that ml_dtypes has, and those that torch and numpy have
ML_DTYPES = {n: np.dtype(getattr(ml_dtypes, f.ml_dtypes)) for n, f in formats().items() if f.ml_dtypes and not f.block}
TORCH = {"FP32": torch.float32, "BF16": torch.bfloat16, "FP16": torch.float16, "FP8 E5M2": torch.float8_e5m2,
         "FP8 E4M3FNUZ": torch.float8_e4m3fnuz, "FP8 E5M2FNUZ": torch.float8_e5m2fnuz}  # fmt: skip
SMALL = [n for n, f in formats().items() if f.bits <= 8 and not f.block]


def bits_of(array):
    """Each number's bit pattern."""
    return array.view({1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}[array.dtype.itemsize])


def hard_floats(entry, count, seed):
    """float32 numbers around everything that happens in a format: its numbers, ties, the smallest and the largest."""
    draw = random.Random(f"{entry.name}{seed}")
    bias = 2 ** (entry.exponent_bits - 1)
    found = [0.0, -0.0, math.inf, -math.inf, math.nan]
    for _ in range(count):
        exponent = draw.choice((draw.randint(-bias - entry.mantissa_bits - 2, bias + 2), draw.randint(-149, 127)))
        whole = draw.randint(2**entry.mantissa_bits, 2 ** (entry.mantissa_bits + 1))
        # a number of the format, halfway to the next, and a little beside these
        step = draw.choice((0, 0.5, 0.25, 0.5 + 2.0**-20, 0.5 - 2.0**-20, draw.random()))
        scaled = (whole + step) * 2.0 ** (exponent - entry.mantissa_bits)
        found.append(draw.choice((-1, 1)) * scaled)
    with np.errstate(over="ignore"):
        return np.array(found, dtype=np.float32)


def stored(js, entry, values):
    """The numbers as the page stores them: the traced formula in V8."""
    return js.call(
        "texts.map((t) => FORMULAS['precision.round_to_format'][1]({ value: real(t, 'x'), ...format }))",
        texts=[repr(float(v)) for v in values],
        format=entry.arguments(),
    )


def patterns(js, entry, values):
    """Their bits as whole numbers, as the page draws them; None where the format has no such number."""
    found = js.call(
        "texts.map((t) => BINARY.fields(real(t, 'x'), format.exponent_bits, format.mantissa_bits, format.flavour))",
        texts=[repr(float(v)) for v in values],
        format=entry.arguments(),
    )
    return [f and int(f["sign"] + f["exponent"] + f["mantissa"], 2) for f in found]


def neighbour(js, formula, entry, value):
    return js.call(f"FORMULAS['precision.{formula}'][1](given)", given={"value": value} | entry.arguments())


def same(a, b):
    return repr(float(a)) == repr(float(b))


@pytest.mark.parametrize("name", ML_DTYPES)
def test_the_page_rounds_and_writes_bits_as_ml_dtypes_does(js, name):
    """FP8 and smaller, and BF16: thousands of numbers, ties and thresholds, from float32."""
    entry, dtype = formats()[name], ML_DTYPES[name]
    values = hard_floats(entry, 3000, "ml")
    if entry.flavour == "finite":
        values = values[np.isfinite(values)]  # ml_dtypes makes −0 of NaN; the note of the catalog leaves it open
    if entry.flavour == "scale":  # see the catalog's doubts: what is no scale, and what rounds to one, differs
        values = np.array([2.0**e for e in range(-126, 128)] + [math.nan], dtype=np.float32)
    with np.errstate(all="ignore"):
        wanted = values.astype(dtype)
    here = stored(js, entry, values)
    for value, mine, theirs in zip(values, here, wanted.astype(np.float64), strict=True):
        assert same(mine, theirs), (name, float(value))
    for value, mine, theirs in zip(here, patterns(js, entry, here), bits_of(wanted), strict=True):
        if not math.isnan(value):  # a format may have several NaNs
            assert mine == int(theirs), (name, value)


@pytest.mark.parametrize("name", TORCH)
def test_the_page_rounds_and_writes_bits_as_torch_does(js, name):
    """From float32: torch rounds float64 twice on its way to 16 bits."""
    entry, dtype = formats()[name], TORCH[name]
    values = hard_floats(entry, 3000, "torch")
    wanted = torch.tensor(values, dtype=torch.float32).to(dtype)
    here = stored(js, entry, values)
    for value, mine, theirs in zip(values, here, wanted.to(torch.float64).tolist(), strict=True):
        assert same(mine, theirs), (name, float(value))
    integers = {1: torch.uint8, 2: torch.int16, 4: torch.int32}[wanted.element_size()]
    raw = [n % 2**entry.bits for n in wanted.view(integers).tolist()]
    for value, mine, theirs in zip(here, patterns(js, entry, here), raw, strict=True):
        if not math.isnan(value):
            assert mine == theirs, (name, value)


def test_saturating_is_what_torch_does_for_e4m3(js):
    entry = formats()["FP8 E4M3FN"]
    values = hard_floats(entry, 3000, "saturating")
    wanted = torch.tensor(values, dtype=torch.float32).to(torch.float8_e4m3fn).to(torch.float64).tolist()
    here = js.call(
        "texts.map((t) => FORMULAS['precision.saturate_to_format'][1]({ value: real(t, 'x'), ...format }))",
        texts=[repr(float(v)) for v in values],
        format=entry.arguments(),
    )
    for value, mine, theirs in zip(values, here, wanted, strict=True):
        assert same(mine, theirs), float(value)


@pytest.mark.parametrize("name", SMALL)
def test_every_pattern_of_a_small_format_is_its_own(js, name):
    """Every bit pattern, decoded by ml_dtypes: the number is stored as itself, its bits are the pattern, and its
    neighbours are the next numbers that there are."""
    entry, dtype = formats()[name], ML_DTYPES[name]
    raw = np.arange(2**entry.bits, dtype=np.uint8)
    numbers = [float(v) for v in raw.view(dtype).astype(np.float64)]
    assert all(same(a, b) for a, b in zip(stored(js, entry, numbers), numbers, strict=True))
    for pattern, number, mine in zip(raw, numbers, patterns(js, entry, numbers), strict=True):
        assert mine == int(pattern) or (math.isnan(number) and math.isnan(numbers[mine])), (name, int(pattern))
    there = sorted({n for n in numbers if not math.isnan(n)})
    for below, number, above in zip(there, there[1:], there[2:], strict=False):
        if not math.isfinite(number):
            continue
        for formula, wanted in (("next_below", below), ("next_above", above)):
            assert neighbour(js, formula, entry, number) == wanted, (name, number, formula)


def test_fp64_is_kept_as_it_is(js):
    """Of the widest format the page has to be exact down to the last subnormal number."""
    draw, entry = random.Random(64), formats()["FP64"]
    values = [struct.unpack("<d", draw.randbytes(8))[0] for _ in range(3000)]
    values += [5e-324, -5e-324, 2.2250738585072014e-308, 2.225073858507201e-308, 1.7976931348623157e308, math.inf, -0.0]
    assert all(same(a, b) for a, b in zip(stored(js, entry, values), values, strict=True))
    for value, pattern in zip(values, patterns(js, entry, values), strict=True):
        if not math.isnan(value):
            assert pattern == struct.unpack("<Q", struct.pack("<d", value))[0]
        if math.isfinite(value):
            for formula, towards in (("next_above", math.inf), ("next_below", -math.inf)):
                mine = neighbour(js, formula, entry, value)
                assert mine == math.nextafter(value, towards), (value, formula)


@pytest.mark.parametrize("name", [n for n, f in formats().items() if not f.block])
def test_bits_and_their_meaning_are_alike_in_both_languages(js, name):
    entry = formats()[name]
    values = [*map(float, hard_floats(entry, 400, "alike"))]
    values += [v for v in stored(js, entry, values)]
    there = js.call(
        "texts.map((t) => BINARY.fields(real(t, 'x'), format.exponent_bits, format.mantissa_bits, format.flavour))",
        texts=[repr(v) for v in values],
        format=entry.arguments(),
    )
    for value, fields in zip(values, there, strict=True):
        here = binary.fields(value, **entry.arguments())
        assert fields == (here and here._asdict()), (name, value)


def test_exact_text_is_exact_and_alike_in_both_languages(js):
    draw = random.Random("exact")
    values = [struct.unpack("<d", draw.randbytes(8))[0] for _ in range(2000)]
    values += [draw.choice((-1, 1)) * draw.randint(1, 2**24) * 2.0 ** draw.randint(-60, 60) for _ in range(2000)]
    values += [0.0, -0.0, math.inf, -math.inf, math.nan, 0.1, 65504.0, 1e21, 1e20, 2.0**-24, 5e-324, 1.5, 1e-7, 1e-8]
    for brief in (False, True):
        texts = list(map(repr, values))
        there = js.call("texts.map((t) => BINARY.exact(real(t, 'x'), brief))", texts=texts, brief=brief)
        assert there == [binary.exact(v, brief) for v in values]
    for value in values:
        if math.isfinite(value):
            assert written(binary.exact(value).partition(" ≈ ")[0]) == Fraction(value), value
            assert not math.copysign(1, value) < 0 or binary.exact(value).startswith("−")


def written(text):
    """The number that a text stands for, exactly: "−71,362 × 2⁻¹⁴⁹", "1.5 × 10⁻⁸"."""
    match = re.fullmatch(r"[−]?(?:([\d.,]+)(?: × |$))?(?:(2|10)([⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+))?", text)
    assert match, text
    with localcontext() as context:
        context.prec = 1200
        size = Fraction(Decimal((match[1] or "1").replace(",", "")))
    power = match[3].translate(str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789")) if match[3] else "0"
    return (-1 if text.startswith("−") else 1) * size * Fraction(int(match[2] or 1)) ** int(power)


def test_what_is_typed_is_read_alike(js):
    draw = random.Random("typed")
    texts = [
        "",
        "x",
        "1,5",
        "2^",
        "- 3",
        "∞",
        "1 GB",
        "0x10",
        "--1",
        "2^-1080",
        *(random_number(draw) for _ in range(500)),
    ]
    explorer = calculators.get("number-format")
    spec = bundle.declaration(explorer)
    for text in texts:
        try:
            here = explorer.evaluate(value=text)
            here = [here.text("stored"), here.text("error")]
        except ValueError as error:
            here = str(error)
        there = js.call(
            "(() => { const c = compile(spec); try { const value = accept(c, c.table.get('value'), text, 'value');"
            " const r = evaluate(c, {...state, value}); return [r.text('stored'), r.text('error')]; }"
            " catch (e) { return e.message; } })()",
            spec=spec, state=explorer.defaults(), text=text,
        )  # fmt: skip
        assert there == here, text


# Cases worked by hand


@pytest.mark.parametrize(
    ("number", "format", "stored", "kind", "told"),
    [
        ("0.1", "FP16", "0.0999755859375", "normal", "Rounded: FP16"),  # 1638 / 2^14
        ("1", "FP4 E2M1", "1", "normal", "Exact"),
        ("2^-24", "FP16", "5.9604644775390625 × 10⁻⁸", "subnormal", "Exact: FP16 holds it, as a subnormal"),
        ("2^-25", "FP16", "0", "zero", "Underflow"),  # halfway to the smallest: to even
        ("-2^-25", "FP16", "−0", "zero", "Underflow"),
        ("65519", "FP16", "65,504", "normal", "Rounded"),  # below half a step beyond the largest
        ("65520", "FP16", "∞", "infinite", "Overflow: the largest number of FP16 is 65,504"),
        ("464", "FP8 E4M3FN", "448", "normal", "Rounded"),  # 448 + 16, the tie, to even
        ("465", "FP8 E4M3FN", "NaN", "NaN", "Overflow"),
        ("-465", "FP8 E4M3FN", "NaN", "NaN", "Overflow"),
        ("1e9", "FP4 E2M1", "6", "normal", "Saturated"),
        ("-inf", "FP4 E2M1", "−6", "normal", "Saturated: infinity"),
        ("inf", "FP16", "∞", "infinite", "Infinity stays"),
        ("1e400", "FP16", "∞", "infinite", "Infinity stays infinity. A number larger than the largest FP64 number"),
        ("nan", "BF16", "NaN", "NaN", "NaN stays NaN"),
        ("-0", "BF16", "−0", "zero", "Exact"),
        ("-0", "FP8 E4M3FNUZ", "0", "zero", "Exact"),
        ("-3", "E8M0 scale", "NaN", "NaN", "Not a number"),
        ("2049", "FP16", "2,048", "normal", "Rounded"),  # a tie: to even
        ("2051", "FP16", "2,052", "normal", "Rounded"),
        ("16777217", "FP32", "16,777,216", "normal", "Rounded"),
    ],
)
def test_the_explorer_says_what_happens(number, format, stored, kind, told):
    here = calculators.get("number-format").evaluate(value=number, format=format)
    assert (here.text("stored"), here.text("kind")) == (stored, kind)
    assert here.verdict.startswith(told), here.verdict


def test_saturating_replaces_overflow():
    here = calculators.get("number-format").evaluate(value="1e30", format="FP8 E4M3FN", conversion="saturating")
    assert here.text("stored") == "448" and here.verdict.startswith("Saturated")
    rows = here.rows()
    assert rows["FP16"]["stored"] == 65504 and rows["FP64"]["stored"] == 1e30


def test_the_bits_of_a_number_by_hand():
    here = calculators.get("number-format").evaluate(value="-0.15625", format="FP32").bits()
    assert here == ("1", "01111100", "01" + "0" * 21, "−2⁻³ × (1 + 2,097,152/2²³)")  # −5/32
    assert calculators.get("number-format").evaluate(value="nan", format="FP4 E2M1").bits() is None


def test_the_table_has_every_plain_format():
    assert set(calculators.get("number-format").evaluate().rows()) == {n for n, f in formats().items() if not f.block}


def test_an_error_of_many_digits_is_given_rounded_first():
    explorer = calculators.get("number-format")

    def written(value, format="BF16", name="error"):
        here = explorer.evaluate(value=value, format=format)
        return explorer.written(name, here.state, here[name])

    first, exactly = written("0.1")
    assert first == "≈ 9.77 × 10⁻⁵" and exactly.startswith("exactly 0.0000976562") and len(exactly) > 50
    assert written("0.5") == ("0", "") and written("257") == ("−1", "") and written("inf") == ("NaN", "")
    assert written("0.1", "FP32", "stored") == ("0.100000001490116119384765625", "")
