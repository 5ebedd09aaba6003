"""What holds for every formula: its units, its documentation, its JavaScript, its refusals.

Oracles: pint's dimensional analysis; V8 (through mini-racer) running the traced JavaScript.
"""

from __future__ import annotations

import itertools
import json
import math
import random
from typing import Annotated

import numpy as np
import pint
import pytest
from py_mini_racer import MiniRacer

from efflab import catalog
from efflab.errors import EfflabError
from efflab.formulas import reading
from efflab.formulas.namespace import formula
from efflab.units import Count, Number, Range, unit_of

FORMULAS = {reading.read(f).name: f for f in reading.every()}
UREG = pint.UnitRegistry()
UREG.define("flop = [operation]")
UREG.define("usd = [currency]")


def choices(function):
    options = reading.read(function).options
    return [dict(zip(options, c, strict=True)) for c in itertools.product(*options.values())]


def draw(function, rng):
    """Numbers that the formula accepts: from its ranges, else over six decades, of either sign if that is allowed."""
    read = reading.read(function)
    drawn = {
        p: rng.uniform(read.ranges[p].low, read.ranges[p].high)
        if p in read.ranges
        else 10 ** rng.uniform(0, 6) * (rng.choice((-1, 1)) if unit.signed else 1)
        for p, unit in read.units.items()
    }
    return {p: round(v) if p.endswith("_bits") else v for p, v in drawn.items()}  # there is no half bit


def same(ours, theirs):
    """Equal to the last digits. NaN, which a number format may give, equals NaN."""
    return math.isclose(ours, theirs, rel_tol=1e-12, abs_tol=0) or (math.isnan(ours) and math.isnan(theirs))


@pytest.fixture(scope="module")
def v8():
    """V8 with the functions that traced formulas call."""
    engine = MiniRacer()
    engine.eval(reading.helpers(FORMULAS.values()))
    return engine


@pytest.mark.parametrize("name", FORMULAS)
def test_units_are_what_the_signature_says(name):
    function = FORMULAS[name]
    read = reading.read(function)
    for choice in choices(function):
        values = {p: UREG.Quantity(v, read.units[p].pint) for p, v in draw(function, random.Random(name)).items()}
        result = function(**values, **choice)
        if not isinstance(result, UREG.Quantity):  # limiting_factor returns an index
            result = UREG.Quantity(result)
        assert result.check(UREG.Quantity(1, read.unit.pint).dimensionality), f"{name}: {result.dimensionality}"
        plain = function(**{p: v.magnitude for p, v in values.items()}, **choice)
        assert same(result.to_base_units().magnitude, plain * _base(read.unit))


def _base(unit):
    return UREG.Quantity(1, unit.pint).to_base_units().magnitude


def test_a_wrong_unit_would_be_caught():
    """The dimension check can fail: bandwidth in place of performance."""
    function = FORMULAS["roofline.compute_time"]
    result = function(flops=UREG.Quantity(1, "flop"), peak_performance=UREG.Quantity(1, "byte/second"))
    assert not result.check("[time]")


@pytest.mark.parametrize("name", FORMULAS)
def test_python_and_javascript_agree(name, v8):
    function = FORMULAS[name]
    code = reading.javascript(function)
    rng = random.Random(name)
    for choice in choices(function):
        for _ in range(50):
            values = draw(function, rng)
            ours = function(**values, **choice)
            theirs = v8.eval(f"({code})({json.dumps(values | choice)})")
            assert same(ours, theirs), (name, values, choice)


@pytest.mark.parametrize("name", FORMULAS)
def test_arrays_compute_as_numbers_do(name):
    function = FORMULAS[name]
    rng = random.Random(name)
    for choice in choices(function):
        rows = [draw(function, rng) for _ in range(7)]
        columns = {p: np.array([row[p] for row in rows]) for p in rows[0]}
        one_by_one = [function(**row, **choice) for row in rows]
        np.testing.assert_allclose(function(**columns, **choice) * np.ones(7), one_by_one, rtol=1e-14)


@pytest.mark.parametrize("name", FORMULAS)
def test_documentation_is_complete(name):
    read = reading.read(FORMULAS[name])
    assert set(read.where) == set(read.units) | set(read.options)
    assert read.source and read.assumes.endswith(".") and read.summary.endswith(".")


@pytest.mark.parametrize("name", FORMULAS)
@pytest.mark.parametrize("bad", ["512", None, True, math.nan, math.inf, -1.0, [1.0, -2.0], "zero"])
def test_bad_input_names_the_argument(name, bad):
    function = FORMULAS[name]
    read = reading.read(function)
    good = draw(function, random.Random(0)) | choices(function)[0]
    for parameter, unit in read.units.items():
        value = 0.0 if bad == "zero" else bad
        if bad == "zero" and not unit.positive:
            continue
        if unit.signed and isinstance(bad, float | list):
            continue  # any number is a number
        with pytest.raises(EfflabError) as caught:
            function(**good | {parameter: value})
        assert parameter in str(caught.value) and read.name.split(".")[1] in str(caught.value)


@pytest.mark.parametrize("name", FORMULAS)
def test_missing_unknown_and_positional_arguments_are_named(name):
    function = FORMULAS[name]
    good = draw(function, random.Random(0)) | choices(function)[0]
    first = next(iter(good))
    with pytest.raises(EfflabError, match=f"{first}.* missing"):
        function(**{p: v for p, v in good.items() if p != first})
    with pytest.raises(EfflabError, match="nonsense"):
        function(**good, nonsense=1)
    with pytest.raises(EfflabError, match="name every argument"):
        function(1.0)


def test_an_unknown_option_is_named():
    with pytest.raises(EfflabError, match="causal must be one of True, False"):
        FORMULAS["roofline.attention_prefill_flops"](
            batch=1, query_heads=1, sequence_length=1, head_dim=1, causal="yes"
        )


def test_an_unknown_formula_is_answered_with_the_nearest():
    with pytest.raises(EfflabError, match=r"roofline\.ridge_point"):
        reading.find("roofline.ridgepoint")


def test_every_formula_returns_a_unit_type():
    for function in FORMULAS.values():
        assert unit_of(function.hints["return"]) is not None


def test_a_range_is_kept_and_drawn_from():
    """A parameter such as the exponent bits of a format has a range that its unit does not give."""

    @formula
    def largest_exponent(*, exponent_bits: Annotated[Count, Range(2, 11)]) -> Number:
        r"""Largest exponent of a binary format.

        Equation: 2^{e-1} - 1
        Where: e = exponent_bits
        Source: IEEE 754
        Assumes: a biased exponent.
        """
        return 2 ** (exponent_bits - 1) - 1

    assert largest_exponent(exponent_bits=8) == 127
    with pytest.raises(EfflabError, match="exponent_bits must be from 2 to 11, got 300"):
        largest_exponent(exponent_bits=300)
    assert all(2 <= draw(largest_exponent, random.Random(i))["exponent_bits"] <= 11 for i in range(20))


def test_every_module_of_formulas_has_a_test_that_calls_each_of_them():
    """The oracle of a formula is written by hand; this finds the one that has none."""
    from pathlib import Path

    missing = []
    for name in FORMULAS:
        module, _, function = name.partition(".")
        oracle = Path(__file__).parent / f"test_{module}.py"
        published = name in {p.formula for p in catalog.published()}
        if not published and (not oracle.exists() or f"{function}(" not in oracle.read_text()):
            missing.append(name)
    assert not missing, "formulas without an oracle: " + ", ".join(missing)
