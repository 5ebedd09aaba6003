"""Checkers of the precision chapter's code and measurement exercises."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any

from efflab.exercises.checks import NotYet, Subject, a_number, close, recognise, short, written
from efflab.exercises.checks.records import (
    FEWEST_REPEATS,
    at_scale,
    command,
    measured,
    own,
    plausible,
    steady,
    text,
    timed_well,
    whole,
    within_datasheet,
)
from efflab.records import Record, Sample, median
from efflab.units import BYTE, FLOP_PER_SECOND, show


def _value(bits: int, exponent_bits: int, mantissa_bits: int) -> float:
    """The value of a bit pattern of an IEEE-like format."""
    sign = -1.0 if bits >> (exponent_bits + mantissa_bits) else 1.0
    field, mantissa = (bits >> mantissa_bits) & (2**exponent_bits - 1), bits & (2**mantissa_bits - 1)
    bias = 2 ** (exponent_bits - 1) - 1
    if field == 2**exponent_bits - 1:
        return math.nan if mantissa else sign * math.inf
    if field == 0:
        return sign * math.ldexp(mantissa, 1 - bias - mantissa_bits)
    return sign * math.ldexp(mantissa + 2**mantissa_bits, field - bias - mantissa_bits)


def decode(answer: Any) -> None:
    """The value of a bit pattern, of every kind that a format has."""
    function = Subject(answer, "decode", "bits", "exponent_bits", "mantissa_bits")
    draw = random.Random(21)
    formats = {"FP16": (5, 10), "BF16": (8, 7), "E5M2": (5, 2), "a format of 6 bits": (3, 2), "FP32": (8, 23)}
    kinds: dict[str, list[tuple[str, int, int, int]]] = {k: [] for k in ("normal", "negative", "zero", "small", "top")}
    for name, (e, m) in formats.items():
        one, top = (2 ** (e - 1) - 1) << m, (2**e - 1) << m
        sign = 1 << (e + m)
        inside = [draw.randrange(1 << m, top) for _ in range(12)]
        kinds["normal"] += [(name, bits, e, m) for bits in (one, one + 2 ** (m - 1), one + 1, top - 1, 1 << m, *inside)]
        kinds["negative"] += [(name, sign | bits, e, m) for bits in (one, *inside[:4])]
        kinds["zero"] += [(name, bits, e, m) for bits in (0, sign)]
        kinds["small"] += [(name, bits, e, m) for bits in (1, 2**m - 1, 2 ** (m - 1), sign | 1)]
        kinds["top"] += [(name, bits, e, m) for bits in (top, sign | top, top + 1, sign | (top + 2 ** (m - 1)))]
    for name, bits, e, m in itertools.chain(*kinds.values()):
        arguments = {"bits": bits, "exponent_bits": e, "mantissa_bits": m}
        right = _value(bits, e, m)
        value = function(**arguments)
        call = f"decode({bits:#0{(e + m + 1 + 7) // 4}x}, {e}, {m})"
        if value is None:
            raise NotYet(f"{call} returns nothing. Is the `return` missing?")
        got = a_number(written(call, value), value, nan=True)
        if got == right or (math.isnan(got) and math.isnan(right)):
            continue
        pattern = f"{bits:0{e + m + 1}b}"
        fields = f"{pattern[0]} {pattern[1 : e + 1]} {pattern[e + 1 :]}"
        said = f"{call} gives {got:.9g}. The bits are {fields} ({name})"
        field, mantissa, bias = (bits >> m) & (2**e - 1), bits & (2**m - 1), 2 ** (e - 1) - 1
        if math.isnan(right):
            raise NotYet(f"{said}: an exponent of all ones with a mantissa that is not zero is NaN.", "NaN")
        if math.isinf(right):
            raise NotYet(f"{said}: an exponent of all ones with a mantissa of zero is infinity, {right}.", "infinity")
        if field == 0:
            for mistake, other, why in (
                (
                    "leading one in a subnormal number",
                    math.ldexp(mantissa + 2**m, -bias - m),
                    "there is no leading one where the exponent's bits are all zero",
                ),
                (
                    "leading one in a subnormal number",
                    math.ldexp(mantissa + 2**m, 1 - bias - m),
                    "there is no leading one where the exponent's bits are all zero",
                ),
                (
                    "exponent of a subnormal number",
                    math.ldexp(mantissa, -bias - m),
                    "subnormal numbers have the exponent of the smallest normal ones, 1 − bias, so that no gap is left",
                ),
                (
                    "no subnormal numbers",
                    0.0,
                    "where the exponent's bits are all zero the number is 0.mantissa × 2^(1 − bias)",
                ),
            ):
                if abs(got) == other and other != abs(right):
                    raise NotYet(f"{said}: {why}.", mistake)
            raise NotYet(f"{said}: a subnormal number or zero, {right:.9g}.")
        if got == -right:
            raise NotYet(f"{said}: the first bit is the sign. 1 means minus.", "sign")
        leading = math.ldexp(mantissa + 2**m, -m)
        for mistake, other, why in (
            (
                "no leading one",
                right - math.copysign(2.0 ** (field - bias), right),
                "a normal number has a leading one that is not stored",
            ),
            (
                "forgot the bias",
                math.copysign(leading * 2.0**field, right) if field < 1000 else math.inf,
                f"subtract the bias, {bias}, from the exponent",
            ),
            ("bias", right / 2, f"the bias is 2^({e} − 1) − 1 = {bias}, not one more"),
            ("bias", right * 2, f"the bias is 2^({e} − 1) − 1 = {bias}, not one less"),
            (
                "mantissa as a whole number",
                math.copysign((1 + mantissa) * 2.0 ** (field - bias), right),
                f"the mantissa counts steps of 2^-{m}",
            ),
        ):
            if abs(got) == abs(other):
                raise NotYet(f"{said}: {why}.", mistake)
        raise NotYet(f"{said}: {'−' if right < 0 else ''}{leading:.9g} × 2^{field - bias} = {right:.9g}.")


def _neighbours(x: float, mantissa_bits: int) -> tuple[Fraction, Fraction, Fraction]:
    """The step of the format at x, the last number of it at or below x, and where in the step x lies, from 0 to 1."""
    step = Fraction(2) ** (math.frexp(x)[1] - 1 - mantissa_bits)
    below = math.floor(Fraction(x) / step) * step
    return step, below, (Fraction(x) - below) / step


def _nearest(x: float, mantissa_bits: int) -> float:
    """Round to nearest, ties to even, any exponent."""
    if x == 0:
        return 0.0
    step, below, share = _neighbours(x, mantissa_bits)
    even = (below / step) % 2 == 0
    up = share > Fraction(1, 2) or (share == Fraction(1, 2) and not even)
    return float(below + step * up)


def round_to_mantissa(answer: Any) -> None:
    """Nearest number of so many mantissa bits, ties to even."""
    function = Subject(answer, "round_to_mantissa", "x", "mantissa_bits")
    draw = random.Random(22)
    cases: list[tuple[float, int]] = [(1.1, 7), (math.pi, 10), (0.1, 7), (1000.3, 3), (3e-5, 7), (6.02e23, 10)]
    cases += [(-math.pi, 7), (-0.1, 10), (1.0, 7), (-2.5, 3), (448.0, 3), (0.0, 7)]
    cases += [(1 + 1 / 256, 7), (1 + 3 / 256, 7), (257.0, 7), (259.0, 7), (-257.0, 7), (-259.0, 7), (2.5, 1)]
    cases += [(1.999, 7), (255.9, 7), (0.99999, 3), (-15.99, 3)]
    for _ in range(60):
        bits = draw.choice([1, 2, 3, 7, 10])
        cases.append((draw.choice([-1, 1]) * draw.random() * 10.0 ** draw.randint(-6, 6), bits))
        tie = (2 * draw.randrange(2**bits, 2 ** (bits + 1)) + 1) * 2.0 ** draw.randint(-12, 12)
        cases.append((draw.choice([-1, 1]) * tie, bits))
    got = [function.number(x=x, mantissa_bits=bits) for x, bits in cases]
    wrong = next((i for i, (x, bits) in enumerate(cases) if got[i] != _nearest(x, bits)), None)
    if wrong is None:
        return
    x, bits = cases[wrong]
    said = f"round_to_mantissa({x!r}, {bits}) gives {got[wrong]!r}"
    if x == 0:
        raise NotYet(f"{said}. Zero stays zero.")
    right = _nearest(x, bits)
    step, below, share = _neighbours(x, bits)
    low, high = float(below), float(below + step)
    where = f"Between the neighbours {low!r} and {high!r} it lies {float(share):.4g} of the way"
    # One number may be explained by several rules; all of them together are explained by one.
    for name, rule, why in ROUNDING_MISTAKES:
        if got == [rule(x, bits) for x, bits in cases]:
            raise NotYet(f"{said}: {why} {where}, so {right!r} is right.", name)
    if got[wrong] in (low, high):
        raise NotYet(f"{said}. {where}, so {right!r} is right.")
    raise NotYet(f"{said}, which is no number with {bits} mantissa bits next to it. {where}.")


def _rounding(choose: Callable[[Fraction, int], int]) -> Callable[[float, int], float]:
    """A rule: `choose` takes a number in steps, and its sign, to a whole number of steps."""

    def rule(x: float, bits: int) -> float:
        if x == 0:
            return 0.0
        step, _, _ = _neighbours(x, bits)
        return float(choose(Fraction(x) / step, 1 if x > 0 else -1) * step)

    return rule


HALF = Fraction(1, 2)
ROUNDING_MISTAKES: tuple[tuple[str, Callable[[float, int], float], str], ...] = (
    ("not rounded", lambda x, bits: x, "it is as it was."),
    (
        "truncated",
        _rounding(lambda v, sign: sign * math.floor(abs(v))),
        "the digits after the last were cut off. Round to the nearest.",
    ),
    ("rounded down", _rounding(lambda v, sign: math.floor(v)), "it was rounded down. Round to the nearest."),
    ("rounded up", _rounding(lambda v, sign: math.ceil(v)), "it was rounded up. Round to the nearest."),
    (
        "ties away from zero",
        _rounding(lambda v, sign: sign * math.floor(abs(v) + HALF)),
        "ties go away from zero; they go to the number whose last bit is 0.",
    ),
    (
        "ties up",
        _rounding(lambda v, sign: math.floor(v + HALF)),
        "ties go up; they go to the number whose last bit is 0.",
    ),
    (
        "ties towards zero",
        _rounding(lambda v, sign: sign * math.ceil(abs(v) - HALF)),
        "ties go towards zero; they go to the number whose last bit is 0.",
    ),
    (
        "one bit too few",
        lambda x, bits: _nearest(x, bits - 1),
        "one bit too few. The leading one is not among the mantissa bits.",
    ),
    (
        "one bit too many",
        lambda x, bits: _nearest(x, bits + 1),
        "one bit too many. frexp gives a number below 1, whose first digit is the leading one.",
    ),
    (
        "fixed point",
        lambda x, bits: round(x * 2**bits) / 2**bits,
        "the step was that of numbers near 1. It grows with the number: scale by its power of two first.",
    ),
    ("decimal digits", round, "decimal digits were rounded. A mantissa bit is a binary digit."),
)


DRAWS = 3000
# Below 1, and few enough digits that a number of any format here plus this one is exact: floor(x + uniform()) is right.
LARGEST_DRAW = 1 - 2**-24


def stochastic_round(answer: Any) -> None:
    """Neighbours only, and right on average."""
    function = Subject(answer, "stochastic_round", "x", "mantissa_bits", "uniform")

    class Source:
        """Random numbers that are counted."""

        def __init__(self, draw: Callable[[], float]) -> None:
            self.draw, self.calls = draw, 0

        def __call__(self) -> float:
            self.calls += 1
            return self.draw()

    def call(x: float, bits: int, source: Source) -> float:
        function.describe = lambda **_: f"stochastic_round({x!r}, {bits}, uniform)"  # type: ignore[method-assign]
        return function.number(x=x, mantissa_bits=bits, uniform=source)

    for x, bits in ((1.0, 7), (-2.5, 3), (448.0, 3), (0.0, 7), (1 + 1 / 128, 7), (-0.375, 2)):
        for u in (0.0, 0.5, LARGEST_DRAW):
            got = call(x, bits, Source(lambda: u))  # noqa: B023
            if got != x:
                raise NotYet(
                    f"stochastic_round({x!r}, {bits}, uniform) gives {got!r} where uniform() gives {u:.9g}. {x!r} "
                    "has no more "
                    f"than {bits} mantissa bits, so it stays.",
                    "moved a number of the format",
                )
    generator = random.Random(23)
    for x, bits in ((1 + 1 / 512, 7), (1000.3, 7), (0.1, 3), (3e-5, 7), (-1 - 1 / 512, 7), (-1000.3, 7), (-0.7, 3)):
        step, below, share = _neighbours(x, bits)
        low, high, p = float(below), float(below + step), float(share)
        source = Source(generator.random)
        values = [call(x, bits, source) for _ in range(DRAWS)]
        name = f"stochastic_round({x!r}, {bits}, uniform)"
        strange = next((v for v in values if v not in (low, high)), None)
        if strange is not None:
            raise NotYet(
                f"{name} gives {strange!r}. The neighbours with {bits} mantissa bits are {low!r} and {high!r}.",
                "no neighbour",
            )
        up = values.count(high) / DRAWS
        if not source.calls:
            constant = up in (0.0, 1.0)
            raise NotYet(
                f"{name} never calls uniform()"
                + (f" and always gives {values[0]!r}." if constant else ". Take the randomness from it.")
                + (" The average must be the value itself." if constant else ""),
                "not random" if constant else "own randomness",
            )
        margin = 5 * math.sqrt(p * (1 - p) / DRAWS)
        if abs(up - p) <= margin:
            continue
        said = (
            f"Of {DRAWS:,} calls {name} went up to {high!r} in {up:.1%}; {x!r} lies {p:.1%} of the way up from {low!r}."
        )
        if x < 0 and abs(up - (1 - p)) <= margin:
            raise NotYet(
                f"{said} For negative numbers the shares are exchanged. int() cuts towards zero; take math.floor, "
                "or round the "
                "magnitude and give it the sign back.",
                "negative numbers",
            )
        if abs(up - (1 - p)) <= margin:
            raise NotYet(f"{said} The shares are exchanged: the nearer neighbour is the likelier one.", "exchanged")
        if abs(up - 0.5) <= 5 * 0.5 / math.sqrt(DRAWS):
            raise NotYet(f"{said} That is a fair coin. The nearer neighbour must be likelier.", "a fair coin")
        if up in (0.0, 1.0):
            raise NotYet(f"{said} It goes the same way each time.", "not random")
        raise NotYet(f"{said} The two shares must agree.")


class Narrow:
    """A number that rounds every sum and difference to BF16's 8 digits and becomes nothing wider."""

    __slots__ = ("_value",)
    DIGITS = 7

    def __init__(self, value: float) -> None:
        try:
            self._value = _nearest(value, self.DIGITS) if math.isfinite(value) else value
        except OverflowError:  # BF16 ends where floats do not, but here they end together
            self._value = math.copysign(math.inf, value)

    def _other(self, other: Any) -> float:
        if isinstance(other, Narrow):
            return other._value
        if isinstance(other, int | float) and other == 0:
            return 0.0
        raise NotYet(
            f"A narrow number met {short(other)}, a {type(other).__name__}. Stay with the numbers that are given, "
            "and begin "
            "with zero.",
            "left the format",
        )

    def __add__(self, other: Any) -> Narrow:
        return Narrow(self._value + self._other(other))

    __radd__ = __add__

    def __sub__(self, other: Any) -> Narrow:
        return Narrow(self._value - self._other(other))

    def __rsub__(self, other: Any) -> Narrow:
        return Narrow(self._other(other) - self._value)

    def __neg__(self) -> Narrow:
        return Narrow(-self._value)

    def __abs__(self) -> Narrow:
        return Narrow(abs(self._value))

    def __eq__(self, other: object) -> bool:
        return self._value == self._other(other)

    def __lt__(self, other: Any) -> bool:
        return self._value < self._other(other)

    def __le__(self, other: Any) -> bool:
        return self._value <= self._other(other)

    def __gt__(self, other: Any) -> bool:
        return self._value > self._other(other)

    def __ge__(self, other: Any) -> bool:
        return self._value >= self._other(other)

    __hash__ = None  # type: ignore[assignment]

    def _refuse(self, *_: Any) -> Any:
        raise NotYet(
            "compensated_sum turned a narrow number into a wider one. The point is to need none: keep what was lost "
            "in a "
            "second narrow number.",
            "left the format",
        )

    __float__ = __int__ = __index__ = __complex__ = __round__ = __mul__ = __rmul__ = __truediv__ = _refuse

    def __repr__(self) -> str:
        return f"{self._value:g}"


def _kahan(values: list[Narrow], zero: Narrow, how: str) -> float:
    """Kahan's summation with a mistake in it, or none ("right")."""
    total = lost = zero
    for value in values:
        y = value + lost if how == "wrong sign" else value - lost
        t = total + y
        lost = (t - total) - (value if how == "lost against the value" else y)
        if how == "parentheses":
            lost = t - (total - y)
        if how == "one by one":
            lost = zero
        total = t
    return total._value


def _same(a: float, b: float) -> bool:
    """Equal, or both NaN."""
    return a == b or (math.isnan(a) and math.isnan(b))


def compensated_sum(answer: Any) -> None:
    """A sum of narrow numbers in narrow numbers, right to the last digit."""
    function = Subject(answer, "compensated_sum", "values", "zero")
    draw = random.Random(24)
    cases = {
        "1,000 ones": [1.0] * 1000,
        "one 256 and 256 ones": [256.0] + [1.0] * 256,
        "2,000 times 0.001": [0.001] * 2000,
        "800 random numbers from 0 to 1": [draw.random() for _ in range(800)],
        "the numbers 1, −1, 2, −2, …, 100, −100, 5": [s * float(i) for i in range(1, 101) for s in (1, -1)] + [5.0],
        "no numbers": [],
    }
    results: dict[str, tuple[float, float, list[Narrow]]] = {}
    for what, numbers in cases.items():
        narrow = [Narrow(x) for x in numbers]
        zero = Narrow(0.0)
        function.describe = lambda **_: f"compensated_sum of {what}"  # type: ignore[method-assign]  # noqa: B023
        value = function(values=list(narrow), zero=zero)
        if value is None:
            raise NotYet(f"compensated_sum of {what} returns nothing. Is the `return` missing?")
        if isinstance(value, int | float) and not isinstance(value, bool) and value == 0 and not numbers:
            value = zero
        if not isinstance(value, Narrow):
            raise NotYet(
                f"compensated_sum of {what} gives {short(value)}; a number of the values' own kind is expected. "
                "Begin with "
                "zero."
            )
        results[what] = value._value, float(sum(Fraction(n._value) for n in narrow)), narrow
    for what, (got, exact, _) in results.items():
        step = 2.0 ** (math.frexp(exact)[1] - 1 - Narrow.DIGITS) if exact else 0.0
        if abs(got - exact) <= step:
            continue
        said = f"compensated_sum of {what} gives {got:g}; exactly it is {exact:g}"
        for name, why in (
            ("one by one", "The values are added one by one, and what each addition rounds away is lost."),
            (
                "wrong sign",
                "The correction has the wrong sign: it loses twice as much. y = value − lost, lost = (t − total) − y.",
            ),
            (
                "lost against the value",
                "What is lost is measured against value. Measure it against y, which holds the earlier correction.",
            ),
            (
                "parentheses",
                "The parentheses are misplaced: t − (total − y) is about twice y, and it grows with each addition. "
                "What was lost is (t − total) − y.",
            ),
        ):
            if all(_same(r, _kahan(numbers, Narrow(0.0), name)) for r, _, numbers in results.values()):
                raise NotYet(f"{said}. {why}", name)
        raise NotYet(f"{said}, more than a step of {step:g} away.")


def training_state(answer: Any) -> None:
    """Bytes per rank of weights, gradients and optimiser state at each ZeRO stage."""
    function = Subject(answer, "training_state", "parameters", "ranks", "zero_stage")
    draw = random.Random(25)
    cases = [(7.5e9, 64, stage) for stage in range(4)]
    cases += [
        (float(draw.randrange(10**8, 10**12)), draw.choice([2, 8, 16, 1024]), draw.randrange(4)) for _ in range(20)
    ]
    cases += [(1e9, 1, stage) for stage in range(4)]

    def parts(p: float, n: int, stage: int, sizes: tuple[int, int, int] = (2, 2, 12)) -> float:
        """Optimiser state is divided from stage 1 on, gradients from 2, weights from 3."""
        weights, gradients, optimizer = sizes
        return p * (
            weights / (n if stage > 2 else 1)
            + gradients / (n if stage > 1 else 1)
            + optimizer / (n if stage > 0 else 1)
        )

    for p, n, stage in cases:
        arguments = {"parameters": p, "ranks": n, "zero_stage": stage}
        got, right = function.number(**arguments), parts(p, n, stage)
        if close(got, right, 1e-9):
            continue
        said = written(function.describe(**arguments), got)
        # Each of the three parts may have been rounded down.
        if right - 3 < got < right and got == math.floor(got):
            raise NotYet(
                f"{function.describe(**arguments)} gives {got:,.0f}; {right:,.3f} is right. It was rounded down by //. "
                "Divide by /.",
                "rounded down",
            )
        for other in range(4):
            if other != stage and close(got, parts(p, n, other), 1e-9):
                raise NotYet(
                    f"{said}. That is stage {other}. Stage 0 divides nothing, 1 the optimiser state, 2 the "
                    "gradients too, 3 the "
                    "weights too.",
                    "another stage",
                )
        only = {1: (2 + 2 / n + 12, 2 / n + 2 + 12), 2: (2 / n + 2 / n + 12, 2 + 2 / n + 12)}.get(stage, ())
        recognise(
            said,
            got,
            (
                (
                    "no master copy",
                    parts(p, n, stage, (2, 2, 8)),
                    "with 8 bytes of optimiser state. The FP32 master copy is in it: 12.",
                ),
                ("FP32 gradients", parts(p, n, stage, (2, 4, 12)), "with 4 bytes per gradient. Here a gradient has 2."),
                ("FP32", parts(p, n, stage, (4, 4, 8)), "the bytes of plain FP32 training. Here: 2, 2 and 12."),
                *(
                    (
                        "forgot weights or gradients",
                        parts(p, n, stage, sizes),
                        "without the weights or without the gradients. Both have 2 bytes per parameter.",
                    )
                    for sizes in ((2, 0, 12), (0, 2, 12))
                ),
                (
                    "forgot the optimiser state",
                    parts(p, n, stage, (2, 2, 0)),
                    "without the optimiser state, the largest part. (12 // ranks is 0 for many ranks: divide by /.)",
                ),
                ("all ranks together", right * n, "which is that of all ranks together. One rank holds a part."),
                ("gigabytes", right / 1e9, "in GB. Return bytes."),
                ("gigabytes", right / 2**30, "in GiB. Return bytes."),
                *(("divided another part", p * x, "with another part divided than the stage says.") for x in only),
            ),
            1e-9,
        )
        raise NotYet(f"{said}. By hand: {right / p:.6g} bytes per parameter, {right:.6g} B.")


def largest_batch(answer: Any) -> None:
    """Sequences whose KV cache fits beside the weights."""
    names = (
        "memory",
        "weights",
        "layers",
        "query_heads",
        "kv_heads",
        "head_dim",
        "context_length",
        "bytes_per_element",
    )
    function = Subject(answer, "largest_batch", *names)
    # At one byte per element, elements and bytes are the same: a factor of two there is keys or values.
    cases = [
        (141e9, 8.03e9, 32, 32, 8, 128, 8192, 1),
        (141e9, 16.06e9, 32, 32, 8, 128, 8192, 2),
        (2 * 141e9, 141.2e9, 80, 64, 8, 128, 4096, 2),
        (24e9, 16.06e9, 32, 32, 8, 128, 8192, 2),
        (80e9, 141.2e9, 80, 64, 8, 128, 4096, 2),  # the weights alone do not fit
        (141e9, 140.9e9, 80, 64, 8, 128, 131072, 2),  # the weights fit, no sequence does
        (80e9, 70.6e9, 80, 64, 8, 128, 2048, 1),
    ]
    draw = random.Random(26)
    for _ in range(15):
        kv = draw.choice([1, 2, 4, 8])
        cases.append(
            (
                draw.uniform(16e9, 1e12),
                draw.uniform(1e9, 15e9),
                draw.randint(12, 100),
                kv * draw.choice([4, 8]),
                kv,
                draw.choice([64, 128]),
                draw.choice([1024, 8192, 32768]),
                draw.choice([1, 2]),
            )
        )
    for case in cases:
        arguments = dict(zip(names, case, strict=True))
        memory, weights, layers, query_heads, kv_heads, head_dim, length, size = case
        got = function.number(**arguments)
        sequence = 2 * layers * kv_heads * head_dim * length * size
        exact = (memory - weights) / sequence
        right = max(0, math.floor(exact))
        if got == right:
            continue
        said = written(function.describe(**arguments), got)
        if not math.isfinite(got):
            raise NotYet(f"{said}. A batch is a whole number.")
        if got < 0:
            raise NotYet(f"{said}. The weights leave no room: return 0.", "negative")
        if right == 0 and got == math.ceil(exact):
            raise NotYet(f"{said}. The weights leave room for {exact:.3g} of a sequence, which is none.", "rounded up")
        if exact > 0 and close(got, exact, 1e-9):
            raise NotYet(f"{said}. Only whole sequences are served: round down.", "not whole")
        for name, value, why in (
            ("elements", exact * size, "which counts elements. Multiply by bytes_per_element."),
            ("forgot keys or values", 2 * exact, "which gives a token one vector per head. It has a key and a value."),
            (
                "query heads",
                exact * kv_heads / query_heads,
                "which stores keys and values for the query heads. KV heads count.",
            ),
            (
                "left out the weights",
                memory / sequence,
                "which gives all memory to the caches. The weights need theirs.",
            ),
            ("forgot the layers", exact * layers, "which counts one layer. Each has its own cache."),
            ("forgot the context", exact * length, "which is for one token. A sequence has context_length of them."),
        ):
            if value > 0 and got in (math.floor(value), round(value), math.ceil(value)) and math.floor(value) != right:
                raise NotYet(f"{said}, {why}", name)
        if got in (round(exact), math.ceil(exact)):
            raise NotYet(f"{said}. There is room for {exact:.4g}: the last one does not fit. Round down.", "rounded up")
        raise NotYet(
            f"{said}. By hand: {memory - weights:.5g} B are left and a sequence takes {sequence:,} B, so {right} fit."
        )


def _models() -> Iterator[tuple[str, Any, Any]]:
    """Small models with their inputs. PyTorch's random state, which is the learner's, stays as it was."""
    import torch
    from torch import nn

    class Square(nn.Module):
        def forward(self, x: Any) -> Any:
            return (x * x).sum()

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.project, self.out = nn.Linear(32, 96), nn.Linear(32, 32)

        def forward(self, x: Any) -> Any:
            q, k, v = self.project(x).chunk(3, dim=-1)
            return self.out(torch.softmax(q @ k.transpose(-1, -2) / 6.0, -1) @ v)

    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(27)  # torch.manual_seed would seed a GPU too
        models = (
            ("a linear layer", nn.Linear(64, 16), torch.randn(8, 64)),
            (
                "an MLP with a ReLU",
                nn.Sequential(nn.Linear(32, 128), nn.ReLU(), nn.Linear(128, 8)),
                torch.randn(4, 32),
            ),
            ("a square", Square(), torch.randn(50, 20, requires_grad=True)),
            (
                "an MLP with a GELU, in BF16",
                nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32)).to(torch.bfloat16),
                torch.randn(6, 32, dtype=torch.bfloat16),
            ),
            ("attention", Attention(), torch.randn(2, 10, 32)),
            ("a linear layer in FP64", nn.Linear(16, 16).double(), torch.randn(3, 16, dtype=torch.float64)),
        )
    yield from models


def saved_bytes(answer: Any) -> None:
    """Bytes that a forward pass keeps for the backward pass."""
    import torch

    function = Subject(answer, "saved_bytes", "model", "x")
    for what, model, x in _models():
        own = {p.untyped_storage().data_ptr() for p in model.parameters()}
        packed: list[Any] = []

        def pack(t: Any) -> Any:
            packed.append(t)  # noqa: B023
            return t

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            kept_alive = model(x)
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in packed}
        right = sum(size for address, size in storages.items() if address not in own)
        before = [(p.clone(), p.grad) for p in model.parameters()]
        function.describe = lambda **_: f"saved_bytes of {what}"  # type: ignore[method-assign]  # noqa: B023
        got = function.number(model=model, x=x)
        if any(not torch.equal(p, b) for p, (b, _) in zip(model.parameters(), before, strict=True)):
            raise NotYet(f"saved_bytes changed the parameters of {what}. One forward pass is all that is needed.")
        foreign = [t for t in packed if t.untyped_storage().data_ptr() not in own]
        del kept_alive
        if got == right:
            continue
        dtype = str(x.dtype).removeprefix("torch.")
        said = f"saved_bytes of {what}, input {tuple(x.shape)} in {dtype}, gives {got:,.10g} B"
        every = sum(storages.values())
        first: dict[int, int] = {}
        for t in foreign:
            first.setdefault(t.untyped_storage().data_ptr(), t.nbytes)
        last = {t.untyped_storage().data_ptr(): t.nbytes for t in foreign}
        for name, value, why in (
            (
                "nothing kept",
                0,
                "nothing. Is the model called inside the context of the hooks, and not under torch.no_grad()?",
            ),
            (
                "counted the parameters",
                every,
                "the model's own parameters are among it. They exist anyway: leave them out.",
            ),
            (
                "counted everything packed",
                sum(t.untyped_storage().nbytes() for t in packed),
                "the parameters and each repetition are among it.",
            ),
            (
                "counted twice",
                sum(t.untyped_storage().nbytes() for t in foreign),
                "a tensor that is kept for two operations was counted twice. It lies in memory once: compare data_ptr.",
            ),
            (
                "counted elements",
                sum({t.untyped_storage().data_ptr(): t.numel() for t in foreign}.values()),
                "that is the number of elements. Take untyped_storage().nbytes(), which counts bytes.",
            ),
            (
                "counted elements",
                right / x.element_size(),
                "that is the number of elements. Multiply by element_size().",
            ),
            (
                "four bytes each",
                right / x.element_size() * 4,
                "that is 4 bytes per element. Ask each tensor for its element_size().",
            ),
            (
                "counted the output",
                right + x.element_size() * model(x).numel(),
                "the output is among it, which is not kept.",
            ),
            ("counted the input alone", x.nbytes, "that is the input alone."),
            *(
                (
                    "counted a part of a storage",
                    sum(sizes.values()),
                    "q, k and v are views of one storage, and the nbytes of a view are its own part of it. All of the "
                    "storage stays in memory: take untyped_storage().nbytes().",
                )
                for sizes in (first, last)
            ),
        ):
            if got == value and value != right:
                raise NotYet(f"{said}: {why} Right is {right:,} B.", name)
        shapes: dict[int, list[str]] = {}
        for t in foreign:
            held = shapes.setdefault(t.untyped_storage().data_ptr(), [])
            if (shape := f"{tuple(t.shape)}") not in held:
                held.append(shape)
        kept = "; ".join(f"{storages[address]:,} B for {' and '.join(held)}" for address, held in shapes.items())
        raise NotYet(f"{said}; it keeps {right:,} B: {kept}.")


# The learner's own record

PRODUCTS_NEEDED, DTYPES_NEEDED = 6, 2
# How many times the rate of the largest product of its dtype a smaller one is believed to have. On a CPU it may lie in
# a cache that the largest one does not fit.
SMALL_NOISE = {"cpu": 2.0, "cuda": 1.5, "rocm": 1.5}
# Mantissa bits of what a product's inputs are rounded to. int8 has no mantissa.
MANTISSA_BITS = {"fp32": 23, "tf32": 10, "bf16": 7, "fp16": 10, "fp8": 3}
MEMORY_ROLES = ("weights", "gradients", "optimizer", "activations", "step")


def own_record(answer: Any) -> str:
    """A record of the learner's own device: timed well, no faster than its peak, with errors that rounding explains."""
    record = own("precision", answer)
    products = [s for s in measured(record, "time") if text(s, "role", "precision") == "product"]
    dtypes = {text(s, "dtype", "precision") for s in products}
    if len(products) < PRODUCTS_NEEDED or len(dtypes) < DTYPES_NEEDED:
        raise NotYet(
            f"Record {record.id} has {len(products)} timed products in {len(dtypes)} dtypes; {PRODUCTS_NEEDED} in "
            f"{DTYPES_NEEDED} are needed. Run '{command('precision')}'."
        )
    timed_well(record)
    at_scale(record)
    said = steady(record, products)
    _bounded(record, products)
    errors = _errors(record)
    variants = _memory(record)
    return (
        f"{len(products)} products in {len(dtypes)} dtypes, {said}, each warmed up and repeated at least "
        f"{FEWEST_REPEATS} times; {errors} errors and the memory of {variants} training steps, all within their bounds."
    )


def _flops(sample: Sample) -> int:
    return 2 * whole(sample, "m", "precision") * whole(sample, "n", "precision") * whole(sample, "k", "precision")


def _bounded(record: Record, products: list[Sample]) -> None:
    """No product does more operations per second than the data sheet, or much more than the largest of its dtype."""
    largest: dict[str, tuple[int, float]] = {}
    for sample in measured(record, "time"):
        if text(sample, "role", "precision") == "calibration" and whole(sample, "m", "precision") > 64:
            dtype = text(sample, "dtype", "precision")
            rate = _flops(sample) / median(sample.values)
            largest[dtype] = max(largest.get(dtype, (0, 0.0)), (whole(sample, "m", "precision"), rate))
    if not largest:
        raise NotYet(
            f"Record {record.id} holds no product of the largest size, from which the others are predicted. "
            f"Run '{command('precision')}'."
        )
    for sample in products:
        case, dtype = text(sample, "case", "precision"), text(sample, "dtype", "precision")
        rate = _flops(sample) / median(sample.values)
        within_datasheet(record, case, rate, dtype)
        if dtype in largest:
            plausible(
                case,
                rate,
                largest[dtype][1],
                unit=FLOP_PER_SECOND,
                noise=SMALL_NOISE[record.environment.kind],
                than=f"what the largest {dtype} product reached",
                why="A smaller product is rarely faster. Was the machine busy while one of them was measured? Close "
                "other programs and run it again.",
            )


def _errors(record: Record) -> int:
    """Errors lie between what rounding the inputs makes and what rounding at every step could."""
    from efflab.formulas import precision

    found = measured(record, "error")
    if not found:
        raise NotYet(f"Record {record.id} holds no errors of products. Run '{command('precision')}'.")
    checked = 0
    for sample in found:
        case, dtype, value = (
            text(sample, "case", "precision"),
            text(sample, "dtype", "precision"),
            median(sample.values),
        )
        if dtype not in MANTISSA_BITS:
            continue
        terms = whole(sample, "k", "precision")
        epsilon = precision.machine_epsilon(mantissa_bits=MANTISSA_BITS[dtype])
        # Both inputs are rounded at random, so the squares of their errors add up.
        low = math.sqrt(2) * precision.rms_rounding_error(epsilon=epsilon)
        high = epsilon * (3 + math.sqrt(terms)) / 2
        if not 0.5 * low <= value <= high:
            which = "smaller" if value < low else "larger"
            raise NotYet(
                f"{case}: a relative error of {value:.3g} is {which} than rounding to {dtype} explains: between "
                f"{low:.2g}, for rounded inputs and an exact sum, and {high:.2g}, for a rounding at every step. Was "
                "the "
                "reference in float64, and the product in the dtype that the record says?",
                "error out of bounds",
            )
        checked += 1
    if not checked:
        raise NotYet(f"Record {record.id} holds no error of a product in {', '.join(MANTISSA_BITS)}.")
    return checked


def _memory(record: Record) -> int:
    """A step holds at least its parts, and a part of fewer bits is smaller."""
    parts: dict[tuple[str, str], float] = {}
    steps: list[tuple[str, str, float, float | None]] = []
    activations: dict[tuple[Any, ...], float] = {}
    for sample in measured(record, "memory"):
        case, role = text(sample, "case", "precision"), text(sample, "role", "precision")
        if role not in MEMORY_ROLES:
            raise NotYet(f"{case}: its role is {role!r}; one of {', '.join(MEMORY_ROLES)} is expected.", "damaged")
        weights, value = text(sample, "weights", "precision"), median(sample.values)
        if value <= 0:
            raise NotYet(f"{case}: {show(value, BYTE)}. A training step keeps something of each kind.", "no memory")
        variant = tuple(sample.point.get(k) for k in ("weights", "attention", "dropout", "recomputation"))
        if role == "activations":
            activations[variant] = value
        elif role == "step":
            steps.append((case, weights, value, activations.get(variant)))
        else:
            parts[weights, role] = value
    if not steps or not any((w, "weights") in parts for _, w, _, _ in steps):
        raise NotYet(
            f"Record {record.id} holds no memory of a training step and its weights. Run '{command('precision')}'."
        )
    for case, weights, value, kept in steps:
        # Under autocast the weights are those of fp32.
        kind = weights if (weights, "weights") in parts else "fp32"
        known = [parts[kind, r] for r in ("weights", "gradients", "optimizer") if (kind, r) in parts]
        least = sum(known) + (kept or 0.0)
        if value < 0.99 * least:
            raise NotYet(
                f"{case}: {show(value, BYTE)}, and weights, gradients, optimiser state and activations are "
                f"{show(least, BYTE)} "
                "together. A step holds all of them at the end of its forward pass.",
                "less than its parts",
            )
    for role in ("weights", "gradients"):
        wide, narrow = parts.get(("fp32", role)), parts.get(("bf16", role))
        if wide and narrow and not 0.45 <= narrow / wide <= 0.75:
            raise NotYet(
                f"{role}: {show(narrow, BYTE)} in BF16 and {show(wide, BYTE)} in FP32. The same model has half the "
                "bytes in BF16.",
                "bytes per parameter",
            )
    return len(steps)


CHECKERS: dict[str, Callable[[Any], str | None]] = {
    f.__name__: f
    for f in (
        decode,
        round_to_mantissa,
        stochastic_round,
        compensated_sum,
        training_state,
        largest_batch,
        saved_bytes,
        own_record,
    )
}
