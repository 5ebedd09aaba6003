"""The precision chapter's code checkers: other right solutions pass, usual mistakes are named, nothing escapes."""

from __future__ import annotations

import math
import random
import re
import struct
import sys
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
import torch

from efflab.exercises import check
from efflab.exercises.checks.precision import Narrow, _nearest, _value
from tests.exercises import judging

NAMES = {
    1: "bits, exponent_bits, mantissa_bits",
    2: "x, mantissa_bits",
    3: "x, mantissa_bits, uniform",
    4: "values, zero",
    5: "parameters, ranks, zero_stage",
    6: "memory, weights, layers, query_heads, kv_heads, head_dim, context_length, bytes_per_element",
    7: "model, x",
}

verdict, wrong = judging.code("precision", NAMES)
STRANGE = [*judging.STRANGE, 0.1]


@pytest.mark.parametrize("number", NAMES)
@pytest.mark.parametrize("value", STRANGE, ids=lambda v: type(v).__name__)
def test_whatever_comes_back_is_answered_in_words(number, value):
    result = verdict(number, lambda *_: value)
    assert result.outcome == "wrong" and result.feedback


@pytest.mark.parametrize("number", NAMES)
def test_an_exit_an_error_and_a_blank_are_answered_in_words(number):
    judging.led_astray("precision", number, verdict)


# 1. Decoding


@pytest.mark.parametrize(
    ("dtype", "exponent_bits", "mantissa_bits"),
    [(np.float16, 5, 10), (ml_dtypes.bfloat16, 8, 7), (ml_dtypes.float8_e5m2, 5, 2), (ml_dtypes.float8_e4m3, 4, 3)],
)
def test_the_checkers_own_values_are_the_dtypes(dtype, exponent_bits, mantissa_bits):
    """Every bit pattern against NumPy or ml_dtypes."""
    size = np.dtype(dtype).itemsize
    patterns = np.arange(2 ** (8 * size), dtype=f"u{size}")
    with np.errstate(invalid="ignore"):  # signalling NaN
        theirs = patterns.view(dtype).astype(np.float64)
    ours = np.array([_value(int(b), exponent_bits, mantissa_bits) for b in patterns])
    np.testing.assert_array_equal(ours, theirs)


def decode(bits, e, m, *, bias=None, lead=1.0, small=1, special=True):
    fields = f"{bits:0{e + m + 1}b}"
    sign, exponent, mantissa = -1.0 if fields[0] == "1" else 1.0, int(fields[1 : e + 1], 2), int(fields[e + 1 :], 2)
    bias = 2 ** (e - 1) - 1 if bias is None else bias(e)
    if special and exponent == 2**e - 1:
        return float("nan") if mantissa else sign * float("inf")
    if exponent == 0 and small is not None:
        return sign * mantissa / 2**m * 2.0 ** (small - bias)
    return sign * (lead + mantissa / 2**m) * 2.0 ** (exponent - bias)


def test_decode():
    assert verdict(1, decode)
    assert verdict(1, lambda *x: np.float64(decode(*x)))


@pytest.mark.parametrize(
    ("mistake", "function"),
    [
        ("no leading one", lambda *x: decode(*x, lead=0.0)),
        ("forgot the bias", lambda *x: decode(*x, bias=lambda e: 0) if x[1] == 5 else 0),
        ("bias", lambda *x: decode(*x, bias=lambda e: 2 ** (e - 1))),
        ("bias", lambda *x: decode(*x, bias=lambda e: 2 ** (e - 1) - 2)),
        ("sign", lambda *x: abs(decode(*x))),
        ("leading one in a subnormal number", lambda *x: decode(*x, small=None)),
        ("exponent of a subnormal number", lambda *x: decode(*x, small=0)),
        ("no subnormal numbers", lambda *x: decode(*x) if x[0] >> x[2] & (2 ** x[1] - 1) else 0.0),
        ("infinity", lambda *x: decode(*x, special=False)),
        ("NaN", lambda *x: math.inf if math.isnan(decode(*x)) else decode(*x)),
        ("infinity", lambda *x: math.nan if math.isinf(decode(*x)) else decode(*x)),
        (None, lambda *x: 1.0),
    ],
)
def test_decode_mistakes(mistake, function):
    said = wrong(1, function, mistake)
    assert "decode(0x" in said and "The bits are" in said


# 2. Rounding


@pytest.mark.parametrize(("dtype", "bits"), [(np.float16, 10), (ml_dtypes.bfloat16, 7), (np.float32, 23)])
def test_the_checkers_own_rounding_is_the_dtypes(dtype, bits):
    draw = random.Random(1)
    for _ in range(2000):
        x = draw.choice([-1, 1]) * 2.0 ** draw.uniform(-10, 10)
        assert _nearest(x, bits) == float(np.array(x).astype(dtype)), x
        tie = (2 * draw.randrange(2**bits, 2 ** (bits + 1)) + 1) * 2.0 ** (-bits)
        assert _nearest(tie, bits) == float(np.array(tie).astype(dtype)), tie


def rounded(x, bits, *, to=round, digits=1):
    m, e = math.frexp(x)
    return math.ldexp(to(m * 2.0 ** (bits + digits)), e - bits - digits)


def with_decimals(x, bits):
    from decimal import Decimal

    if x == 0:
        return 0.0
    step = Decimal(2) ** (math.floor(math.log2(abs(x))) - bits)
    return float((Decimal(x) / step).to_integral_value() * step)  # decimal rounds half even by default


def test_round():
    assert verdict(2, rounded)
    assert verdict(2, lambda x, bits: np.float64(rounded(x, bits)))


def test_round_by_adding_and_subtracting():
    """The trick with a large number: the hardware's own rounding."""

    def trick(x, bits):
        large = x * (2.0 ** (52 - bits) + 1)
        return large - (large - x)

    assert verdict(2, trick)


@pytest.mark.parametrize(
    ("mistake", "function"),
    [
        ("not rounded", lambda x, b: x),
        ("truncated", lambda x, b: rounded(x, b, to=int)),
        ("rounded down", lambda x, b: rounded(x, b, to=math.floor)),
        ("rounded up", lambda x, b: rounded(x, b, to=math.ceil)),
        ("ties up", lambda x, b: rounded(x, b, to=lambda v: math.floor(v + 0.5))),
        ("ties away from zero", lambda x, b: rounded(x, b, to=lambda v: math.copysign(math.floor(abs(v) + 0.5), v))),
        ("ties towards zero", lambda x, b: rounded(x, b, to=lambda v: math.copysign(math.ceil(abs(v) - 0.5), v))),
        ("one bit too few", lambda x, b: rounded(x, b, digits=0)),
        ("one bit too many", lambda x, b: rounded(x, b, digits=2)),
        ("fixed point", lambda x, b: round(x * 2**b) / 2**b),
        ("decimal digits", lambda x, b: round(x, b)),
        (None, lambda x, b: 1.1),
        (None, lambda x, b: rounded(x, b, to=int) if x > 0 else rounded(x, b)),
    ],
)
def test_round_mistakes(mistake, function):
    wrong(2, function, mistake)


def test_round_with_decimals_is_right():
    assert verdict(2, with_decimals)


# 3. Stochastic rounding


def stochastic(x, bits, uniform, *, up=lambda u, p: u < p, floor=math.floor):
    m, e = math.frexp(x)
    scaled = m * 2.0 ** (bits + 1)
    low = floor(scaled)
    return math.ldexp(low + (scaled != low and up(uniform(), abs(scaled - low))), e - bits - 1)


def test_stochastic():
    assert verdict(3, stochastic)
    assert verdict(3, lambda x, b, u: stochastic(x, b, u, up=lambda u, p: u >= 1 - p))


def test_stochastic_by_adding_noise():
    """Noise of one step added, then cut off: the same thing without a comparison."""

    def noisy(x, bits, uniform):
        m, e = math.frexp(x)
        scaled = m * 2.0 ** (bits + 1)
        return math.ldexp(math.floor(scaled + uniform() * (1 - 2**-20)), e - bits - 1)

    assert verdict(3, noisy)


def test_stochastic_by_adding_and_cutting_off():
    """As in the textbooks."""
    assert verdict(3, lambda x, b, u: rounded(x, b, to=lambda v: math.floor(v + u())))


def test_a_draw_below_one_is_not_printed_as_one():
    said = wrong(3, lambda x, b, u: rounded(x, b, to=lambda v: v + (u() > 0.9)), "moved a number of the format")
    assert "uniform() gives 0.99999994." in said


def on_the_magnitude(x, bits, uniform):
    return math.copysign(stochastic(abs(x), bits, uniform), x)


@pytest.mark.parametrize(
    ("mistake", "function"),
    [
        ("not random", lambda x, b, u: rounded(x, b)),
        ("not random", lambda x, b, u: (u(), rounded(x, b, to=math.floor))[1]),
        ("own randomness", lambda x, b, u: stochastic(x, b, random.Random(7 + int(random.random() * 1e9)).random)),
        ("a fair coin", lambda x, b, u: stochastic(x, b, u, up=lambda u, p: u < 0.5)),
        ("exchanged", lambda x, b, u: stochastic(x, b, u, up=lambda u, p: u >= p)),
        ("exchanged", lambda x, b, u: stochastic(x, b, u, up=lambda u, p: u < 1 - p)),
        ("no neighbour", lambda x, b, u: stochastic(x, b + 2, u)),
        ("no neighbour", lambda x, b, u: x),
        (
            "moved a number of the format",
            lambda x, b, u: math.ldexp(
                math.floor(math.frexp(x)[0] * 2 ** (b + 1)) + (u() < 0.5), math.frexp(x)[1] - b - 1
            ),
        ),
        (None, lambda x, b, u: stochastic(x, b, u, up=lambda u, p: u < p**2)),
    ],
)
def test_stochastic_mistakes(mistake, function):
    wrong(3, function, mistake)


def test_stochastic_on_the_magnitude_is_right():
    assert verdict(3, on_the_magnitude)


def test_stochastic_of_negative_numbers():
    """With floor, but with the fraction of the magnitude: right above zero, exchanged below."""

    def mixed(x, bits, uniform):
        m, e = math.frexp(x)
        scaled = m * 2.0 ** (bits + 1)
        p = abs(scaled) - math.floor(abs(scaled))
        return math.ldexp(math.floor(scaled) + (uniform() < p), e - bits - 1)

    wrong(3, mixed, "negative numbers")


# 4. Summation


def test_the_narrow_numbers_are_bf16():
    generator = torch.Generator().manual_seed(3)
    a, b = (torch.randn(500, generator=generator).to(torch.bfloat16) * 50 for _ in range(2))
    for x, y in zip(a, b, strict=True):
        ours = Narrow(float(x)) + Narrow(float(y)), Narrow(float(x)) - Narrow(float(y))
        assert [n._value for n in ours] == [float(x + y), float(x - y)]


def kahan(values, zero, *, sign=1, against="y"):
    total, lost = zero, zero
    for value in values:
        y = value - lost if sign > 0 else value + lost
        t = total + y
        lost = (t - total) - (y if against == "y" else value)
        total = t
    return total


def test_kahan():
    assert verdict(4, kahan)


def test_kahan_with_the_other_sign_kept():
    def other(values, zero):
        total = carry = zero
        for value in values:
            y = value + carry
            t = total + y
            carry = y - (t - total)
            total = t
        return total

    assert verdict(4, other)


def test_misplaced_parentheses():
    """What was lost grows without end, so the numbers leave the range of floats."""

    def doubling(values, zero, *, sign=1):
        total = lost = zero
        for value in values:
            y = value - lost
            t = total + y
            lost = t - (total - y)
            total = t
        return total

    said = wrong(4, doubling, "parentheses")
    assert "(t − total) − y" in said


def test_a_narrow_number_may_be_infinite():
    large = Narrow(1e308)
    assert (large + large)._value == math.inf and (-large - large)._value == -math.inf
    assert Narrow(sys.float_info.max)._value == math.inf
    assert math.isnan((Narrow(math.inf) - Narrow(math.inf))._value)
    assert wrong(4, lambda v, z: Narrow(math.inf), None) and wrong(4, lambda v, z: Narrow(math.nan), None)


def test_kahan_works_on_torch_scalars():
    """What the exercise's text promises."""
    ones = torch.ones(1000, dtype=torch.bfloat16)
    assert float(sum(ones)) == 256
    assert float(kahan(list(ones), torch.zeros((), dtype=torch.bfloat16))) == 1000


@pytest.mark.parametrize(
    ("mistake", "function"),
    [
        ("one by one", lambda v, z: sum(v, z)),
        ("one by one", lambda v, z: sum(v)),
        ("wrong sign", lambda v, z: kahan(v, z, sign=-1)),
        ("lost against the value", lambda v, z: kahan(v, z, against="value")),
        ("left the format", lambda v, z: math.fsum(v)),
        ("left the format", lambda v, z: sum(float(x) for x in v)),
        ("left the format", lambda v, z: np.array(v, dtype=np.float64).sum()),
        ("left the format", lambda v, z: kahan(v, 1.0)),
        ("left the format", lambda v, z: sum(x * 1 for x in v)),
        (None, lambda v, z: z),
        (None, lambda v, z: 1000.0),
        (None, lambda v, z: None),
    ],
)
def test_kahan_mistakes(mistake, function):
    wrong(4, function, mistake)


# 5. Training state


def state(p, n, stage, w=2, g=2, o=12):
    held = {"o": o, "g": g, "w": w}
    for part in ("o", "g", "w")[:stage]:
        held[part] /= n
    return p * sum(held.values())


def test_state():
    assert verdict(5, state)


@pytest.mark.parametrize(
    ("mistake", "function"),
    [
        ("another stage", lambda p, n, s: state(p, n, max(0, s - 1))),
        ("another stage", lambda p, n, s: state(p, n, 3 if s else 0)),
        ("another stage", lambda p, n, s: 16 * p / n),
        ("no master copy", lambda p, n, s: state(p, n, s, o=8)),
        ("FP32 gradients", lambda p, n, s: state(p, n, s, g=4)),
        ("FP32", lambda p, n, s: state(p, n, s, 4, 4, 8) if s else state(p, n, s)),
        ("forgot weights or gradients", lambda p, n, s: state(p, n, s, g=0)),
        ("forgot weights or gradients", lambda p, n, s: state(p, n, s, w=0) if s > 1 else state(p, n, s)),
        ("forgot the optimiser state", lambda p, n, s: state(p, n, s, o=0)),
        ("all ranks together", lambda p, n, s: n * state(p, n, s)),
        ("gigabytes", lambda p, n, s: state(p, n, s) / 1e9),
        ("gigabytes", lambda p, n, s: state(p, n, s) / 2**30),
        ("divided another part", lambda p, n, s: p * (14 + 2 / n) if s == 1 else state(p, n, s)),
        ("forgot the optimiser state", lambda p, n, s: p * (12 // n + 4) if s == 1 else state(p, n, s)),
        (None, lambda p, n, s: 1.0),
    ],
)
def test_state_mistakes(mistake, function):
    wrong(5, function, mistake)


def test_rounding_down_is_said_with_digits_that_differ():
    def floors(p, n, s):
        parts = [p * 2 // (n if s > 2 else 1), p * 2 // (n if s > 1 else 1), p * 12 // (n if s > 0 else 1)]
        return sum(parts)

    said = wrong(5, floors, "rounded down")
    got, right = re.search(r"gives ([\d,]+); ([\d,.]+) is right", said).groups()
    assert 0 < float(right.replace(",", "")) - float(got.replace(",", "")) < 3 and "rounded down by //" in said


# 6. The largest batch


def batch(memory, weights, layers, query_heads, kv_heads, head_dim, length, size, *, two=2, least=0, to=math.floor):
    """By trying, so that it does not share the checker's algebra."""
    token = sum(two * kv_heads * head_dim * size for _ in range(layers))
    free = memory - weights
    return max(least, to(free / (token * length)))


def test_batch():
    assert verdict(6, batch)
    assert verdict(6, lambda *x: int(max(0, (x[0] - x[1]) // (2 * x[2] * x[4] * x[5] * x[6] * x[7]))))


@pytest.mark.parametrize(
    ("mistake", "function"),
    [
        ("forgot keys or values", lambda *x: batch(*x, two=1)),
        ("query heads", lambda *x: batch(*x[:4], x[3], *x[5:])),
        ("left out the weights", lambda *x: batch(x[0], 0, *x[2:])),
        ("forgot the layers", lambda *x: batch(*x[:2], 1, *x[3:])),
        ("elements", lambda *x: batch(*x[:7], 1)),
        ("forgot the context", lambda *x: batch(*x[:6], 1, x[7])),
        ("not whole", lambda *x: batch(*x, to=float)),
        ("rounded up", lambda *x: batch(*x, to=math.ceil)),
        ("rounded up", lambda *x: batch(*x, to=round)),
        ("negative", lambda *x: batch(*x, least=-(10**9))),
        (None, lambda *x: 3),
    ],
)
def test_batch_mistakes(mistake, function):
    wrong(6, function, mistake)


# 7. Saved tensors


def saved(
    model, x, *, parameters=False, twice=False, first=False, size=lambda t: t.untyped_storage().nbytes(), output=False
):
    kept = {}

    def pack(t):
        key = (t.untyped_storage().data_ptr(), len(kept) if twice else 0)
        if parameters or all(
            t.untyped_storage().data_ptr() != p.untyped_storage().data_ptr() for p in model.parameters()
        ):
            kept[key] = kept[key] if first and key in kept else size(t)
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        y = model(x)
    return sum(kept.values()) + (y.nbytes if output else 0)


def test_saved():
    assert verdict(7, saved)
    assert verdict(7, lambda m, x: saved(m, x) * 1.0)


def test_saved_by_the_graph_of_what_is_saved():
    """By data_ptr and nbytes of the tensor itself, which is the same where a tensor fills its storage."""

    def plainly(model, x):
        own = {p.data_ptr() for p in model.parameters()}
        kept = {}

        def pack(t):
            kept[t.data_ptr()] = t.numel() * t.element_size()
            return t

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            y = model(x)
        del y
        return sum(n for address, n in kept.items() if address not in own)

    assert verdict(7, plainly)


def test_what_a_linear_layer_keeps_by_hand():
    x = torch.randn(8, 64)
    assert saved(torch.nn.Linear(64, 16), x) == 8 * 64 * 4  # its input; the weight is a parameter


@pytest.mark.parametrize(
    ("mistake", "function"),
    [
        ("nothing kept", lambda m, x: 0),
        ("counted the parameters", lambda m, x: saved(m, x, parameters=True)),
        ("counted everything packed", lambda m, x: saved(m, x, parameters=True, twice=True)),
        ("counted twice", lambda m, x: saved(m, x, twice=True)),
        ("counted elements", lambda m, x: saved(m, x, size=lambda t: t.numel())),
        ("four bytes each", lambda m, x: saved(m, x, size=lambda t: 4 * t.numel())),
        ("counted the output", lambda m, x: saved(m, x, output=True)),
        ("counted the input alone", lambda m, x: x.nbytes),
        ("counted a part of a storage", lambda m, x: saved(m, x, size=lambda t: t.nbytes)),
        ("counted a part of a storage", lambda m, x: saved(m, x, size=lambda t: t.nbytes, first=True)),
        (None, lambda m, x: 17),
    ],
)
def test_saved_mistakes(mistake, function):
    said = verdict(7, function)
    assert said.outcome == "wrong", said
    names = {mistake}
    if mistake == "counted everything packed":
        names.add("counted the parameters")  # of a linear layer both are the same
    assert said.misconception in names, said.feedback


def test_views_are_told_from_their_storage():
    said = verdict(7, lambda m, x: saved(m, x, size=lambda t: t.nbytes)).feedback
    assert "gives 8,480 B" in said and "Right is 13,600 B" in said
    assert "views of one storage" in said and "take untyped_storage().nbytes()" in said
    elements = verdict(7, lambda m, x: saved(m, x, size=lambda t: t.numel())).feedback
    assert "or take nbytes" not in elements and "untyped_storage().nbytes()" in elements


def test_what_is_listed_adds_up():
    said = verdict(7, lambda m, x: saved(m, x) + (17 if "Attention" in type(m).__name__ else 0)).feedback
    right, listed = re.search(r"it keeps ([\d,]+) B: (.*)", said).groups()
    sizes = [int(n.replace(",", "")) for n in re.findall(r"([\d,]+) B for", listed)]
    assert sum(sizes) == int(right.replace(",", "")) == 13_600 and len(sizes) > 1


@pytest.mark.parametrize("answer", [saved, lambda model, x: 17], ids=["right", "wrong"])
def test_the_learners_random_state_stays(answer):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    check("precision-code-7", answer)
    assert torch.equal(torch.get_rng_state(), before)


def test_no_grad_keeps_nothing():
    def without(model, x):
        with torch.no_grad():
            return saved(model, x)

    wrong(7, without, "nothing kept")


def test_a_training_step_inside_is_noticed():
    def step(model, x):
        found = saved(model, x)
        with torch.no_grad():
            for p in model.parameters():
                p.add_(1.0)
        return found

    assert "changed the parameters" in verdict(7, step).feedback


def test_float_helpers():
    """Fractions against the machine's own bits."""
    assert _value(0x3FF8000000000000, 11, 52) == 1.5 == struct.unpack(">d", bytes.fromhex("3FF8000000000000"))[0]
    assert _nearest(float(Fraction(257)), 7) == 256
