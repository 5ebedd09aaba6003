"""The front end in a JavaScript engine without a document, and random states to feed it."""

from __future__ import annotations

import json
import math
import random

import pytest
from py_mini_racer import MiniRacer

from efflab import calculators
from efflab.calculators import bundle
from efflab.calculators.parts import Choice, NumberField
from efflab.formulas import reading

# JSON has no such numbers
KEPT = """(_, v) => typeof v !== "number" || (Number.isFinite(v) && !Object.is(v, -0)) ? v
  : { float: Object.is(v, -0) ? "-0" : String(v).replace("Infinity", "inf") }"""


class JavaScript:
    """The front end's functions, called with JSON values."""

    def __init__(self) -> None:
        self.engine = MiniRacer()
        self.engine.eval(bundle.units_script())
        self.engine.eval(bundle.core({reading.read(f).name: f for f in reading.every()}))

    def call(self, expression: str, **values: object) -> object:
        """The value of an expression in which `values` are constants. −0, infinities and NaN come and go as such."""
        constants = "".join(f"const {name} = {json.dumps(value)};" for name, value in values.items())
        found = self.engine.eval(f"(() => {{ {constants} return JSON.stringify({expression}, {KEPT}); }})()")
        return json.loads(
            found, object_hook=lambda d: float(d["float"]) if set(d) == {"float"} else d, parse_int=_whole
        )


def _whole(text: str) -> float:
    """JavaScript writes 2**60 with the digits that tell it from other numbers, which as an integer is another."""
    return int(text) if abs(int(text)) <= 2**53 else float(text)


@pytest.fixture(scope="session")
def js() -> JavaScript:
    return JavaScript()


def random_number(draw: random.Random) -> str:
    """A number as typed, of any size, special ones among them."""
    special = ["0", "-0", "inf", "-inf", "nan", "1", "448", "65520", "2^-24", "-2^-149", "1.5 × 2^-14", "1e400"]
    if draw.random() < 0.3:
        return draw.choice(special)
    exponent = draw.choice((draw.randint(-30, 20), draw.randint(-1070, 1020)))
    return repr(draw.choice((-1, 1)) * draw.uniform(1, 2) * 2.0**exponent)


def random_state(calculator: calculators.Calculator, seed: int) -> dict[str, float | str]:
    """A state with every input drawn from its whole range, on a log scale where the slider has one."""
    draw = random.Random(f"{calculator.name}-{seed}")
    state: dict[str, float | str] = {}
    for given in calculator.inputs:
        if isinstance(given, Choice):
            state[given.name] = draw.choice(list(given.table))
        elif isinstance(given, NumberField):
            state[given.name] = random_number(draw)
        elif given.zero and draw.random() < 0.2:
            state[given.name] = 0.0
        elif given.scale == "linear":
            state[given.name] = draw.uniform(given.low, given.high)
        else:
            state[given.name] = math.exp(draw.uniform(math.log(given.low), math.log(given.high)))
        if isinstance(given, NumberField):
            continue
        if getattr(given, "integer", False):
            state[given.name] = min(max(round(state[given.name]), int(given.low)), int(given.high))
        elif not isinstance(given, Choice):
            state[given.name] = min(max(state[given.name], 0.0 if given.zero else given.low), given.high)
    return state
