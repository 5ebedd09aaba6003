"""Unit types, reading and writing quantities.

Inside efflab every number is in SI base units: s, B, FLOP, FLOP/s, B/s, FLOP/B, J, W; masses are in g. A unit type
such as `BytePerSecond` is `Annotated[float, Unit(...)]`, so a formula's signature states its units. `parse` turns what
a person writes ("4.8 TB/s", "512 GiB") into base units and `show` turns a number into text.

GB is 10^9 bytes and GiB is 2^30 bytes, everywhere. Neither is ever guessed: a text without a unit is refused.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, field
from decimal import ROUND_HALF_UP, Context, Decimal
from functools import cache
from pathlib import Path
from typing import Annotated, Any, get_args

from efflab.errors import EfflabError

SI_PREFIXES = {
    "f": 1e-15, "p": 1e-12, "n": 1e-9, "µ": 1e-6, "m": 1e-3, "": 1.0,
    "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18, "Z": 1e21,
}  # fmt: skip
# Things that are counted are written as the field writes them: 124M, 70B, 1.4T.
COUNT_PREFIXES = {"": 1.0, "k": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}
_COUNT_WORDS = COUNT_PREFIXES | {"K": 1e3, "G": 1e9, "thousand": 1e3, "million": 1e6, "billion": 1e9, "trillion": 1e12}
BINARY_PREFIXES = {"Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40, "Pi": 2.0**50}
DIGITS = 3  # significant digits that `show` prints

# Durations beyond two minutes read better in the units people plan in.
_LONG_TIMES = (("s", 1.0, 120.0), ("min", 60.0, 7200.0), ("h", 3600.0, 172800.0), ("d", 86400.0, 2 * 365.25 * 86400))
_YEAR = 365.25 * 86400.0


@dataclass(frozen=True)
class Unit:
    """A unit in which efflab keeps a number.

    Attributes:
        symbol: how it is printed, "" for a pure number.
        pint: the unit expression that the dimension check uses.
        prefixes: the SI prefixes that `show` may put before the symbol, in rising order.
        positive: zero is refused (a bandwidth, a size); otherwise only negative numbers are.
        spellings: accepted ways to write the symbol, without prefix.
        binary: KiB, MiB, ... are accepted too.
        extra: further accepted units with their factors.
        counted: it counts things: shown as "70B parameters", written with k, M, B, T or in words; a bare number is
            accepted, and counts in the unit that is shown.
        shown: the unit that people read instead, and its size in this one: ("USD/h", 1 / 3600) for USD/s.
        beyond: a larger unit, its size in the unit that is shown, and from how many of it on it is read: ("t", 1e6, 1)
            for g.
        digits: how many significant digits `show` prints.
        signed: a formula takes any number: negative, infinite or NaN too.
    """

    symbol: str
    pint: str
    positive: bool = False
    prefixes: tuple[str, ...] = ("",)
    spellings: tuple[str, ...] = ()
    binary: bool = False
    extra: tuple[tuple[str, float], ...] = field(default=())
    counted: bool = False
    shown: tuple[str, float] | None = None
    beyond: tuple[str, float, float] | None = None
    digits: int = 3
    signed: bool = False

    @property
    def base(self) -> str:
        """What formulas compute in: of an energy that is read in Wh that is J."""
        return "J" if self.symbol == "W·s" else self.symbol

    @cache  # noqa: B019  (units are a handful of module constants)
    def accepted(self) -> dict[str, float]:
        """Every accepted spelling with its factor to the base unit. The website reads the same table."""
        table: dict[str, float] = dict(self.extra)
        if not self.symbol:
            return {"": 1.0, "%": 0.01, "x": 1.0, "×": 1.0, "times": 1.0} | table
        if self.counted:
            return self._counts() | table
        prefixes = dict(SI_PREFIXES if len(self.prefixes) > 1 else {"": 1.0})
        if "µ" in prefixes:
            prefixes |= {"u": 1e-6, "μ": 1e-6}
        if "k" in prefixes:
            prefixes["K"] = 1e3
        if self.binary:
            prefixes |= BINARY_PREFIXES
        for spelling in (self.symbol, *self.spellings):
            for prefix, factor in prefixes.items():
                table.setdefault(prefix + spelling, factor)
            if spelling.startswith("flop") and len(self.prefixes) > 1:
                # Small g and t are no prefixes, so "gflop" has one meaning. Small m stays milli, and p pico.
                table |= {"g" + spelling: 1e9, "t" + spelling: 1e12}
        return table

    def _counts(self) -> dict[str, float]:
        """Spellings of a count: "", "B", "B tokens", "billion", "billion tokens"."""
        names, size = self._names()
        table: dict[str, float] = {}
        for name in names:
            for prefix, factor in _COUNT_WORDS.items():
                for gap in ("", " ") if prefix and name else ("",):
                    table[prefix + gap + name] = factor * size
        return table

    def _names(self) -> tuple[list[str], float]:
        """What may follow the prefix of a count, and the size of one; the website composes the same table."""
        symbol, size = self.shown or (self.symbol, 1.0)
        return [*dict.fromkeys((symbol, *self.spellings)), ""], size

    def example(self) -> str:
        """A unit that a person could have written, for error messages."""
        if self.shown:
            return self.shown[0]
        if self.counted:
            return f"B {self.symbol}"
        return {"B": "MB or MiB", "FLOP": "GFLOP", "s": "ms", "FLOP/s": "TFLOP/s", "B/s": "GB/s"}.get(
            self.symbol, self.symbol
        )


_RATE = ("", "k", "M", "G", "T", "P", "E")
_TIME = tuple((n, f) for names, f in (
    (("min", "minute", "minutes"), 60.0), (("h", "hour", "hours"), 3600.0), (("d", "day", "days"), 86400.0),
    (("week", "weeks"), 604800.0), (("yr", "year", "years"), _YEAR), (("seconds", "second", "sec"), 1.0),
    (("milliseconds", "millisecond"), 1e-3), (("microseconds", "microsecond"), 1e-6),
    (("nanoseconds", "nanosecond"), 1e-9),
) for n in names)  # fmt: skip

SECOND = Unit("s", "second", prefixes=("p", "n", "µ", "m", ""), extra=_TIME)
BYTE = Unit("B", "byte", True, ("", "k", "M", "G", "T", "P"), ("byte", "bytes"), binary=True)
FLOP = Unit(
    "FLOP", "flop", prefixes=("", "k", "M", "G", "T", "P", "E"), spellings=("FLOPs", "Flop", "Flops", "flop", "flops")
)
FLOP_PER_SECOND = Unit(
    "FLOP/s",
    "flop/second",
    True,
    _RATE,
    ("FLOPS", "FLOPs/s", "Flop/s", "Flops/s", "flop/s", "flops/s", "FLOPs", "Flops", "flops"),
)
BYTE_PER_SECOND = Unit("B/s", "byte/second", True, _RATE, ("byte/s", "bytes/s", "Bps"), binary=True)
FLOP_PER_BYTE = Unit(
    "FLOP/B",
    "flop/byte",
    spellings=(
        "FLOP/byte",
        "FLOPs/byte",
        "FLOPs/B",
        "Flop/B",
        "Flop/byte",
        "flop/byte",
        "flops/byte",
        "flop/B",
        "flops/B",
    ),
)
JOULE = Unit(
    "J",
    "joule",
    prefixes=("n", "µ", "m", "", "k", "M", "G", "T"),
    extra=(("Wh", 3600.0), ("kWh", 3.6e6), ("MWh", 3.6e9)),
)
WATT = Unit("W", "watt", prefixes=("m", "", "k", "M", "G"))
# Energy that is billed, and what follows from it. Kept in J and read in Wh: 1 kWh is 3.6 MJ.
_PER_KWH = 1 / 3.6e6
_WATT_HOURS = tuple((prefix + "Wh", 3600 * factor) for prefix, factor in SI_PREFIXES.items() if factor >= 1e-6)
_GRAMS = (
    ("g", 1.0), ("kg", 1e3), ("t", 1e6), ("kt", 1e9), ("Mt", 1e12), ("lb", 453.59237),
)  # fmt: skip
_EQUIVALENT = (
    "",
    "CO2e",
    "CO₂e",
    " CO2e",
    " CO₂e",
    "CO2",
    " CO2",
)  # all greenhouse gases as the CO2 that warms as much
WATT_HOUR = Unit(
    "W·s",
    "joule",
    prefixes=("", "k", "M", "G", "T"),
    spellings=("J",),
    extra=_WATT_HOURS,
    shown=("Wh", 3600.0),
)
GRAM = Unit(
    "g", "gram", prefixes=("µ", "m", "", "k"), beyond=("t", 1e6, 1),
    extra=(
        *((name + what, size) for name, size in _GRAMS for what in _EQUIVALENT),
        *((name, 1e6) for name in ("tonne", "tonnes", "metric tons")),
        *((name, 453.59237) for name in ("lbs", "pounds")),
    ),
)  # fmt: skip
GRAM_PER_JOULE = Unit(
    "g/J", "gram/joule", shown=("g/kWh", _PER_KWH),
    extra=tuple(
        (f"{name}{what}/{per}", size * factor)
        for name, size in (("g", 1.0), ("kg", 1e3), ("t", 1e6), ("lb", 453.59237))
        for what in _EQUIVALENT for per, factor in (("kWh", _PER_KWH), ("MWh", _PER_KWH / 1e3))
    ),
)  # fmt: skip
LITRE = Unit(
    "L",
    "liter",
    prefixes=("m", ""),
    spellings=("l", "litres", "litre"),
    beyond=("m³", 1e3, 1),
    extra=(("m³", 1e3), ("m3", 1e3)),
)
LITRE_PER_JOULE = Unit(
    "L/J", "liter/joule", shown=("L/kWh", _PER_KWH),
    extra=(("L/kWh", _PER_KWH), ("l/kWh", _PER_KWH), ("mL/Wh", _PER_KWH), ("m³/MWh", _PER_KWH), ("m3/MWh", _PER_KWH)),
)  # fmt: skip
DOLLAR_PER_JOULE = Unit(
    "USD/J", "usd/joule", shown=("USD/kWh", _PER_KWH),
    extra=(("USD/kWh", _PER_KWH), ("$/kWh", _PER_KWH), ("USD/MWh", _PER_KWH / 1e3), ("$/MWh", _PER_KWH / 1e3)),
)  # fmt: skip
FLOP_PER_JOULE = Unit(
    "FLOP/J", "flop/joule", prefixes=_RATE,
    spellings=("FLOPs/J", "FLOP/s/W", "FLOPS/W", "FLOPs/W", "Flops/W", "flops/W", "flop/J"),
)  # fmt: skip
JOULE_PER_FLOP = Unit("J/FLOP", "joule/flop", prefixes=("f", "p", "n", "µ", "m", ""), spellings=("J/flop", "J/FLOPs"))
# A chip's memory takes pJ/B. Networks take a million times that, and studies of them count in kWh/GB.
JOULE_PER_BYTE = Unit(
    "J/B",
    "joule/byte",
    prefixes=("p", "n", "µ", "m", ""),
    spellings=("J/byte",),
    beyond=("kWh/GB", 3.6e6 / 1e9, 1e-3),
    extra=(("kWh/GB", 3.6e6 / 1e9), ("Wh/GB", 3600 / 1e9)),
)
NUMBER = Unit("", "dimensionless")
COUNT = Unit("", "dimensionless", positive=True)
REAL = Unit("", "dimensionless", signed=True)
NAT = Unit("nats", "dimensionless", spellings=("nat", "nats/token", "nat/token"), digits=4)

_COUNTED = tuple(COUNT_PREFIXES)
PARAMETER = Unit("parameters", "dimensionless", True, _COUNTED, ("parameter", "params"), counted=True)
TOKEN = Unit("tokens", "dimensionless", True, _COUNTED, ("token",), counted=True)
TOKEN_PER_SECOND = Unit("tokens/s", "1/second", True, _COUNTED, ("token/s", "tok/s"), counted=True)
DOLLAR = Unit("USD", "usd", False, _COUNTED, ("dollars", "dollar", "$"), counted=True)
# Rented accelerators are counted and paid by the hour; formulas keep seconds.
DOLLAR_PER_SECOND = Unit(
    "USD/s", "usd/second", True, shown=("USD/h", 1 / 3600),
    extra=(("USD/h", 1 / 3600), ("$/h", 1 / 3600), ("USD/GPU-h", 1 / 3600)),
)  # fmt: skip
TOKEN_PER_JOULE = Unit("tokens/J", "1/joule", False, _COUNTED, ("token/J", "tok/J"), counted=True)
JOULE_PER_TOKEN = Unit(
    "J/token",
    "joule",
    prefixes=("µ", "m", "", "k", "M"),
    spellings=("J/tok", "J/tokens"),
    extra=(("Wh/token", 3600.0),),
)
DEVICE_SECOND = Unit(
    "GPU·s", "second", False, _COUNTED,
    (
        "GPU-hours", "GPU-hour", "GPU h", "GPU hours", "GPUh", "device-hours", "chip-hours", "node-hours", "TPU-hours",
        "h", "hours", "hour",
    ),
    counted=True, shown=("GPU-h", 3600.0),
)  # fmt: skip

Second = Annotated[float, SECOND]
Byte = Annotated[float, BYTE]
Flop = Annotated[float, FLOP]
FlopPerSecond = Annotated[float, FLOP_PER_SECOND]
BytePerSecond = Annotated[float, BYTE_PER_SECOND]
FlopPerByte = Annotated[float, FLOP_PER_BYTE]
Joule = Annotated[float, JOULE]
Watt = Annotated[float, WATT]
WattHour = Annotated[float, WATT_HOUR]  # in J, read in Wh
Gram = Annotated[float, GRAM]
GramPerJoule = Annotated[float, GRAM_PER_JOULE]
Litre = Annotated[float, LITRE]
LitrePerJoule = Annotated[float, LITRE_PER_JOULE]
DollarPerJoule = Annotated[float, DOLLAR_PER_JOULE]
FlopPerJoule = Annotated[float, FLOP_PER_JOULE]
JoulePerFlop = Annotated[float, JOULE_PER_FLOP]
JoulePerByte = Annotated[float, JOULE_PER_BYTE]
TokenPerJoule = Annotated[float, TOKEN_PER_JOULE]
JoulePerToken = Annotated[float, JOULE_PER_TOKEN]
Number = Annotated[float, NUMBER]
Count = Annotated[float, COUNT]
Real = Annotated[float, REAL]
Nat = Annotated[float, NAT]
Parameters = Annotated[float, PARAMETER]
Tokens = Annotated[float, TOKEN]
TokenPerSecond = Annotated[float, TOKEN_PER_SECOND]
Dollar = Annotated[float, DOLLAR]
DollarPerSecond = Annotated[float, DOLLAR_PER_SECOND]
DeviceSecond = Annotated[float, DEVICE_SECOND]

UNITS = {
    u.symbol: u
    for u in (
        SECOND, BYTE, FLOP, FLOP_PER_SECOND, BYTE_PER_SECOND, FLOP_PER_BYTE, JOULE, WATT, NUMBER,
        NAT, PARAMETER, TOKEN, TOKEN_PER_SECOND, DOLLAR, DOLLAR_PER_SECOND, DEVICE_SECOND, WATT_HOUR, GRAM,
        GRAM_PER_JOULE, LITRE, LITRE_PER_JOULE, DOLLAR_PER_JOULE, FLOP_PER_JOULE, JOULE_PER_FLOP, JOULE_PER_BYTE,
        TOKEN_PER_JOULE, JOULE_PER_TOKEN,
    )
}  # fmt: skip


@dataclass(frozen=True)
class Range:
    """The values that a formula's parameter may have, where its unit alone does not say so.

    Written beside the unit: `Annotated[Count, Range(1, 11)]` for the exponent bits of a number format.
    """

    low: float
    high: float


def range_of(annotation: Any) -> Range | None:
    """The `Range` inside an annotation; None where there is none."""
    return next((a for a in get_args(annotation)[1:] if isinstance(a, Range)), None)


def unit_of(annotation: Any) -> Unit | None:
    """The `Unit` inside an annotation such as `FlopPerByte`; None for anything else."""
    return next((a for a in get_args(annotation)[1:] if isinstance(a, Unit)), None)


_QUANTITY = re.compile(
    r"""^\s*(?P<number>[+\-−]?(?:\d[\d,_]*\.?\d*|\.\d+)(?:[eE][+\-−]?\d+)?)
        (?:\s*(?:[×x*·]|\\times)\s*10\s*(?:\^|\*\*)?\s*\{?(?P<power>[+\-−]?\d+|[⁺⁻]?[⁰¹²³⁴⁵⁶⁷⁸⁹]+)\}?)?
        \s*(?P<unit>.*?)\s*$""",
    re.VERBOSE,
)
_POWER = re.compile(r"^\s*(?P<base>2|10)\s*(?:\^|\*\*)\s*(?P<power>[+\-−]?[0-9]{1,3})(?![0-9.])\s*(?P<unit>.*?)\s*$")
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻−", "0123456789+--")


_FRACTION = re.compile(r"^\s*([+\-−]?(?:[0-9]+\.?[0-9]*|\.[0-9]+))\s*/\s*([0-9]+\.?[0-9]*|\.[0-9]+)\s*$")


def parse(text: str | float, unit: Unit, name: str = "value", example: str | None = None) -> float:
    """Read a quantity such as "4.8 TB/s", "2^30 B" or, where a pure number is expected, "1/128" into base units.

    Args:
        text: number and unit. A bare number is accepted only where the unit is a pure number.
        unit: what is expected.
        name: what to call the input in an error.
        example: the unit to name in an error; None for a usual one.

    Raises:
        EfflabError: no number, no unit, or a unit of another kind.
    """
    named = example or unit.example()
    # A number without a unit may be meant in another prefix than the example's.
    guess = example is None or len(unit.prefixes) == 1
    if isinstance(text, bool) or not isinstance(text, str | int | float):
        raise EfflabError(f"{name}: expected a number with a unit such as '3 {named}', got {text!r}.")
    if unit.signed:
        return _real(str(text), name)
    if isinstance(text, int | float):
        if unit.symbol and "" not in unit.accepted():
            sample = f"{text if guess else 3} {named}"
            raise EfflabError(f"{name}: {text!r} has no unit. Write it as text with its unit, such as '{sample}'.")
        return float(text) * unit.accepted()[""]
    if not unit.symbol and (fraction := _FRACTION.match(text)):
        over, under = (float(part.replace("−", "-")) for part in fraction.groups())
        if under == 0:
            raise EfflabError(f"{name}: {text!r} divides by zero.")
        return over / under
    if match := _POWER.match(text):
        power = match["power"].translate(_SUPERSCRIPTS)
        number = 2.0 ** int(power) if match["base"] == "2" else float(f"1e{power}")
        written = match["unit"]
    else:
        number, written = _number(text, unit, name, named)
    accepted = unit.accepted()
    if written in accepted:
        return number * accepted[written]
    if not written:
        add = f"Add one, such as '{text.strip()} {named}'." if guess else f"Add the one that you mean, such as {named}."
        raise EfflabError(f"{name}: {text!r} has no unit. {add}")
    if unit is BYTE or unit is BYTE_PER_SECOND:
        if re.match(r"^[kKMGTP]?i?b(it)?s?(/s|ps)?$", written):
            raise EfflabError(
                f"{name}: {written!r} means bits. Write bytes with a capital B: eight bits are one, so that 10 Gbit/s "
                "are 1.25 GB/s."
            )
        if re.match(r"^[kmgtp]i?b(/s|ps)?$", written, re.IGNORECASE):
            raise EfflabError(
                f"{name}: unit {written!r} is not spelled as SI does. Write kB, MB, GB, TB or KiB, MiB, GiB, TiB."
            )
    wanted = f"Write it in {named}." if unit.symbol else "Write a plain number, such as 4096."
    raise EfflabError(f"{name}: unit {written!r} is not a unit of {quantity(unit)}. {wanted}")


_REAL = re.compile(
    r"^\s*(?P<sign>[+\-−]?)\s*(?:(?P<special>inf|infinity|∞|nan)"
    r"|(?:(?P<times>\d[\d,_]*\.?\d*|\.\d+)\s*[×x*·]\s*)?2\s*(?:\^|\*\*)\s*(?P<power>[+\-−]?\d{1,4}))\s*$",
    re.IGNORECASE,
)


def _real(text: str, name: str) -> float:
    """Any number: "-0", "0.1", "2^-24", "1.5 × 2^-24", "-inf", "nan". Too large for a double is infinite."""
    match = _REAL.match(text)
    if not match:
        number, written = _number(text, REAL, name, "")
        if written:
            raise EfflabError(f"{name}: {text!r} is not a number. Write it like 0.1, 3e-8, 2^-24, -0, inf or nan.")
        return number
    if match["special"]:
        value = math.nan if match["special"].lower() == "nan" else math.inf
    else:
        times = float((match["times"] or "1").replace("_", "").replace(",", ""))
        power = int(match["power"].replace("−", "-"))
        value = times * 2.0**power if -1000 < power < 1000 else _scaled(times, power)
    return -value if match["sign"] in ("-", "−") else value


def _scaled(value: float, power: int) -> float:
    try:
        return math.ldexp(value, power)
    except OverflowError:
        return math.inf


def _number(text: str, unit: Unit, name: str, example: str) -> tuple[float, str]:
    """The number of a quantity, and its unit as written. `example` is the unit to name in an error."""
    match = _QUANTITY.match(text)
    if not match:
        wanted = f"3.2 {example}" if unit.symbol else "3.2"
        raise EfflabError(f"{name}: no number found in {text!r}. Write it like '{wanted}'.")
    digits = match["number"].replace("_", "").translate(_SUPERSCRIPTS)
    if "," in digits and not re.fullmatch(r"[+-]?[1-9]\d{0,2}(,\d{3})+(\.\d*)?(e[+-]?\d+)?", digits, re.IGNORECASE):
        raise EfflabError(f"{name}: the comma in {text!r} is ambiguous. Write decimals with a point: '3.2', not '3,2'.")
    digits = digits.replace(",", "")
    if match["power"]:
        if "e" in digits.lower():
            raise EfflabError(f"{name}: {text!r} has two exponents. Write 3.14e23 or 3.14×10^23.")
        digits += f"e{match['power'].translate(_SUPERSCRIPTS)}"
    return float(digits), match["unit"]


def quantity(unit: Unit) -> str:
    """What a unit measures, in words, for error messages."""
    return {
        "s": "time", "B": "bytes", "FLOP": "operations (FLOP)", "FLOP/s": "performance (FLOP/s)",
        "B/s": "bandwidth (B/s)", "FLOP/B": "arithmetic intensity (FLOP/B)", "J": "energy", "W": "power",
        "nats": "loss (nats)", "parameters": "parameters", "tokens": "tokens", "tokens/s": "throughput (tokens/s)",
        "USD": "money (USD)", "USD/s": "a price per hour (USD/h)", "GPU·s": "accelerator time (GPU-h)",
        "W·s": "energy (Wh)", "g": "mass (g, kg, t)", "g/J": "carbon intensity (g/kWh)", "L": "a volume (L)",
        "L/J": "water per energy (L/kWh)", "USD/J": "a price of energy (USD/kWh)",
        "FLOP/J": "operations per energy (FLOP/J)", "J/FLOP": "energy per operation (J/FLOP)",
        "J/B": "energy per byte (J/B)", "tokens/J": "tokens per energy (tokens/J)",
        "J/token": "energy per token (J/token)",
    }.get(unit.symbol, "a pure number")  # fmt: skip


def significant(value: float, digits: int = DIGITS) -> str:
    """`value` rounded half away from zero to `digits` significant digits, without trailing zeros: "4.8", "206"."""
    if value == 0:
        return "0"
    rounded = Context(prec=digits, rounding=ROUND_HALF_UP).create_decimal(Decimal(value))
    text = f"{rounded:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


_POWERS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def show(value: float, unit: Unit = NUMBER, digits: int | None = None) -> str:
    """Write a number in base units with an SI prefix and sensible digits: 4.8e12 B/s becomes "4.8 TB/s".

    Bytes are shown with decimal prefixes (GB = 10^9 B); `show_binary` gives GiB. NaN shows as "not a number".
    """
    if math.isnan(value):
        return "not a number"
    if math.isinf(value):
        return ("−" if value < 0 else "") + "infinite"
    digits = digits or unit.digits
    sign, value = ("−", -value) if value < 0 else ("", value)
    symbol, size = unit.shown or (unit.symbol, 1.0)
    value /= size
    tail = f" {symbol}" if symbol else ""
    if value == 0:
        return f"0{tail}"
    if unit.beyond:
        larger, size, least = unit.beyond
        if value >= least * size * (1 - 1e-9):
            return f"{sign}{_plain(value / size, digits)} {larger}"
    if unit is SECOND and value >= 120:
        for name, size, limit in _LONG_TIMES[1:]:
            if value < limit:
                return f"{sign}{_group(significant(value / size, digits))} {name}"
        return f"{sign}{_plain(value / _YEAR, digits)} years"
    if len(unit.prefixes) == 1:
        return f"{sign}{_plain(value, digits)}{tail}"
    rounded = float(significant(value, digits))
    factors = COUNT_PREFIXES if unit.counted else SI_PREFIXES
    best = unit.prefixes[0]
    for prefix in unit.prefixes:
        # The tolerance keeps 1e-6 (which is slightly below 1 × 1e-6 in binary) in its own prefix.
        if rounded >= factors[prefix] * (1 - 1e-9):
            best = prefix
    scaled = value / factors[best]
    if scaled >= (999.5 if best and best == unit.prefixes[-1] else 99999.5) or scaled < 0.001:
        return f"{sign}{_scientific(value, digits)}{tail}"
    if unit.counted:
        return f"{sign}{_plain(scaled, digits) if not best else _group(significant(scaled, digits))}{best}{tail}"
    return f"{sign}{_group(significant(scaled, digits))} {best}{symbol}"


def show_binary(value: float, digits: int = DIGITS) -> str:
    """Write a number of bytes with a binary prefix: 2**30 becomes "1 GiB"."""
    best, factor = "", 1.0
    for prefix, size in BINARY_PREFIXES.items():
        if value >= size:
            best, factor = prefix, size
    return f"{_group(significant(value / factor, digits))} {best}B"


def _plain(value: float, digits: int) -> str:
    if value == int(value) < 1_000_000:
        return f"{int(value):,}"  # a size such as 4,096 is exact
    if 0.001 <= value < 999999.5:
        return _group(significant(value, digits))
    return _scientific(value, digits)


def _scientific(value: float, digits: int) -> str:
    rounded = Decimal(significant(value, digits))
    exponent = rounded.adjusted()
    mantissa = significant(float(rounded.scaleb(-exponent)), digits)
    return f"{mantissa} × 10{str(exponent).translate(_POWERS)}"


def _group(text: str) -> str:
    whole, _, rest = text.partition(".")
    return f"{int(whole):,}" + (f".{rest}" if rest else "")


@cache
def javascript() -> str:
    """A JavaScript expression whose value writes and reads quantities as this module does; see units.js."""

    def spellings(unit: Unit) -> list[tuple[float, str]]:
        """Each factor with all its spellings, which is shorter than each spelling with its factor."""
        accepted = unit.accepted()
        return [(f, ";".join(n for n, g in accepted.items() if g == f)) for f in dict.fromkeys(accepted.values())]

    table = {
        u.symbol: {
            "prefixes": u.prefixes,
            "accepted": [] if u.counted else spellings(u),
            "names": u._names() if u.counted else [[], 1],
            "example": u.example(),
            "kind": quantity(u),
            "bytes": u in (BYTE, BYTE_PER_SECOND),
            "counted": u.counted,
            "shown": u.shown or (u.symbol, 1),
            **({"beyond": u.beyond} if u.beyond else {}),
            "digits": u.digits,
        }
        for u in UNITS.values()
    }

    def compact(value: Any) -> str:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"))

    lines = (line.strip() for line in Path(__file__).with_suffix(".js").read_text(encoding="utf-8").splitlines())
    source = "\n".join(line for line in lines if line and not line.startswith("//"))
    return (
        f"(() => {{\nconst COUNT_WORDS = {compact(_COUNT_WORDS)};\nconst UNITS = {compact(table)};\n{source}\n"
        "return { UNITS, FACTORS, show, parse, real, significant, group, raised, quoted };\n})()"
    )
