"""What a formula may use: the `formula` decorator and functions that floats, arrays and symbols share.

A formula is read four ways (numbers, sympy symbols, pint quantities, its docstring), so it calls these
functions instead of `math` or `numpy`, and has no `if` on a numeric argument.
"""

from __future__ import annotations

import functools
import inspect
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import numpy as np

from efflab.errors import EfflabError, unknown
from efflab.units import range_of, unit_of

__all__ = [
    "as_bytes", "as_count", "as_flop", "capped", "ceil", "copy_sign", "exp", "exponent_of", "floor", "formula",
    "if_above", "log", "magnitude", "maximum", "minimum", "nearest_multiple", "power_of_two", "round_half_even",
    "size_class", "sqrt", "unsigned_zero", "where",
]  # fmt: skip

# What the browser needs to call these functions by their names: name -> a JavaScript function declaration.
JAVASCRIPT: dict[str, str] = {
    code.partition("(")[0].removeprefix("function "): code.strip()
    for code in re.findall(
        r"^function .*?^}$", Path(__file__).with_suffix(".js").read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )
}


class FormulaError(EfflabError):
    """A formula was called with an argument that its units do not allow."""


def _library(*values: Any) -> str:
    """Which library the arguments belong to: sympy, pint, numpy, or "" for plain numbers."""
    kinds = {(type(v).__module__ or "sympy").partition(".")[0] for v in values}  # a sympy call has no module
    return next((kind for kind in ("sympy", "pint", "numpy") if kind in kinds), "")


def minimum(a: Any, b: Any) -> Any:
    """The smaller of two values."""
    match _library(a, b):
        case "sympy":
            import sympy

            return sympy.Min(a, b)
        case "":
            return min(a, b)
    return np.minimum(a, b)


def maximum(a: Any, b: Any) -> Any:
    """The larger of two values."""
    match _library(a, b):
        case "sympy":
            import sympy

            return sympy.Max(a, b)
        case "":
            return max(a, b)
    return np.maximum(a, b)


def where(left: Any, relation: Literal["<", "<=", ">", ">="], right: Any, then: Any, otherwise: Any) -> Any:
    """`then` where `left relation right` holds, else `otherwise`."""
    import operator

    compare = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}[relation]
    condition = compare(left, right)
    match _library(left, right, then, otherwise):
        case "sympy":
            import sympy

            return sympy.Piecewise((then, condition), (otherwise, True))
        case "":
            return then if condition else otherwise
    return np.where(condition, then, otherwise)[()]


def _elementary(name: str) -> Callable[[Any], Any]:
    def function(x: Any) -> Any:
        if _library(x) == "sympy":
            import sympy

            return getattr(sympy, {"ceil": "ceiling"}.get(name, name))(x)
        return getattr(np, name)(x) if _library(x) else getattr(math, name)(x)

    function.__name__ = name
    function.__doc__ = f"{name} of a pure number."
    return function


log, exp, sqrt, ceil = (_elementary(n) for n in ("log", "exp", "sqrt", "ceil"))


def _exact(function: Callable[..., Any]) -> Callable[..., Any]:
    """Let a function of pure numbers, written with numpy, take numbers, arrays, quantities and symbols.

    It has no rounding of its own. The trace keeps a call of it: namespace.js holds its JavaScript.
    """

    @functools.wraps(function)
    def called(*values: Any) -> Any:
        match _library(*values):
            case "sympy":
                import sympy

                # sympy's own NaN has no JavaScript and swallows what it is combined with; a symbol does neither.
                symbols = (sympy.Symbol("NaN") if v != v else v for v in values)
                return sympy.Function(function.__name__, real=True)(*symbols)
            case "pint":
                return called(*(v.m_as("") if _library(v) == "pint" else v for v in values))
        with np.errstate(all="ignore"):  # inf and NaN are results here
            result = function(*(np.asarray(v, dtype=float) for v in values))
        return np.asarray(result)[()] if _library(*values) else float(result)

    return called


@_exact
def exponent_of(x: Any) -> Any:
    """floor(log2 |x|), exact for subnormal numbers too; −inf of 0, inf of ±inf, NaN of NaN."""
    size = np.abs(x)
    finite = np.isfinite(size) & (size > 0)
    exponent = np.frexp(np.where(finite, size, 1.0))[1] - 1.0
    return np.where(finite, exponent, np.where(size == 0, -np.inf, size))


@_exact
def power_of_two(exponent: Any) -> Any:
    """2**exponent, exact for a whole exponent down to 2**-1074; 0 below that, inf from 2**1024."""
    within = np.clip(np.nan_to_num(exponent, nan=0.0), -1100.0, 1100.0)
    whole = np.floor(within)
    value = np.ldexp(np.exp2(within - whole), whole.astype(int))
    return np.where(np.isnan(exponent), np.nan, value)


@_exact
def round_half_even(x: Any) -> Any:
    """The nearest whole number, of two the even one. Keeps −0, ±inf and NaN."""
    return np.rint(x)


@_exact
def copy_sign(size: Any, sign: Any) -> Any:
    """|size| with the sign of `sign`, that of −0 too."""
    return np.copysign(size, sign)


@_exact
def magnitude(x: Any) -> Any:
    """|x| of a pure number."""
    return np.abs(x)


@_exact
def floor(x: Any) -> Any:
    """The largest whole number that is not above x. Keeps ±inf and NaN."""
    return np.floor(x)


@_exact
def nearest_multiple(x: Any, step: Any) -> Any:
    """The multiple of a power of two that is nearest to x, of two the even one."""
    return np.rint(x / step) * step


@_exact
def if_above(left: Any, right: Any, then: Any, otherwise: Any) -> Any:
    """`then` where left > right, else `otherwise`: also where one of them is NaN, which sympy's conditions forget."""
    return np.where(left > right, then, otherwise)


@_exact
def capped(x: Any, limit: Any, beyond: Any) -> Any:
    """x, or `beyond` where x is above the limit. Keeps NaN."""
    return np.where(x > limit, beyond, x)


@_exact
def unsigned_zero(x: Any) -> Any:
    """x with −0 made +0."""
    return x + 0.0


@_exact
def size_class(size: Any, lowest: Any, largest: Any) -> Any:
    """0 for zero, 1 below the lowest, 2 up to the largest, 3 above it, 4 for NaN."""
    return np.select([np.isnan(size), size > largest, size >= lowest, size > 0], [4.0, 3.0, 2.0, 1.0], 0.0)


def as_bytes(count: Any) -> Any:
    """Declare a number to count bytes: the bytes of one parameter, say, or a memory rounded down to a whole one."""
    return count * count._REGISTRY.byte if _library(count) == "pint" else count


def as_flop(count: Any) -> Any:
    """Declare a count of operations to be FLOP, so that the dimension check can tell FLOP/s from 1/s."""
    if _library(count) == "pint":
        return count * count._REGISTRY.flop
    return count


def as_count(flops: Any) -> Any:
    """The inverse of `as_flop`: a number of operations read as a pure number."""
    if _library(flops) == "pint":
        return flops / flops._REGISTRY.flop
    return flops


def formula(function: Callable[..., Any]) -> Callable[..., Any]:
    """Make a keyword-only function a formula: its numeric arguments are checked before it computes.

    Raises (when the formula is called):
        FormulaError: a missing or unknown argument, text in place of a number, NaN, infinity, a negative
            value, zero where the unit needs a positive one, or a value outside the parameter's `Range`.
    """
    signature = inspect.signature(function)
    hints = get_type_hints(function, include_extras=True)
    name = function.__name__
    for parameter in signature.parameters.values():
        if parameter.kind is not parameter.KEYWORD_ONLY:
            raise TypeError(f"{name}: parameter {parameter.name!r} must be keyword-only.")
        if unit_of(hints.get(parameter.name)) is None and get_origin(hints.get(parameter.name)) is not Literal:
            raise TypeError(f"{name}: parameter {parameter.name!r} needs a unit type or a Literal of its options.")
    if unit_of(hints.get("return")) is None:
        raise TypeError(f"{name}: the return annotation needs a unit type.")

    @functools.wraps(function)
    def checked(*args: Any, **values: Any) -> Any:
        if args:
            raise FormulaError(
                f"{name}: name every argument: {name}({', '.join(p + '=…' for p in signature.parameters)})."
            )
        for given in values:
            if given not in signature.parameters:
                raise FormulaError(str(unknown(f"{name}: argument", given, signature.parameters)))
        for parameter in signature.parameters:
            if parameter not in values:
                raise FormulaError(f"{name}: argument {parameter!r} is missing.")
        for parameter, value in values.items():
            _check(name, parameter, value, hints[parameter])
        return function(**values)

    checked.__signature__ = signature  # type: ignore[attr-defined]
    checked.hints = hints  # type: ignore[attr-defined]
    checked.is_formula = True  # type: ignore[attr-defined]
    return checked


def _check(name: str, parameter: str, value: Any, annotation: Any) -> None:
    if get_origin(annotation) is Literal:
        options = get_args(annotation)
        if value not in options or type(value) not in {type(o) for o in options}:
            raise FormulaError(f"{name}: {parameter} must be one of {', '.join(map(repr, options))}, got {value!r}.")
        return
    unit = unit_of(annotation)
    assert unit is not None
    if _library(value) in ("sympy", "pint"):
        return
    label = f"{name}: {parameter}"
    if isinstance(value, str):
        raise FormulaError(
            f"{label} must be a number in {unit.symbol or 'no unit'}, got the text {value!r}. "
            "Read text with efflab.units.parse first."
        )
    if isinstance(value, bool | np.bool_ | None):
        raise FormulaError(f"{label} must be a number in {unit.symbol or 'no unit'}, got {value!r}.")
    try:
        array = np.asarray(value, dtype=float)
    except (TypeError, ValueError):
        raise FormulaError(f"{label} must be a number or an array of numbers, got {type(value).__name__}.") from None
    if unit.signed:
        return
    if not np.all(np.isfinite(array)):
        raise FormulaError(f"{label} must be finite, got {value!r}.")
    if np.any(array < 0):
        raise FormulaError(f"{label} cannot be negative, got {value!r} {unit.symbol}.".replace(" .", "."))
    limits = range_of(annotation)
    if limits and np.any((array < limits.low) | (array > limits.high)):
        raise FormulaError(f"{label} must be from {limits.low:g} to {limits.high:g}, got {value!r}.")
    if unit.positive and np.any(array == 0):
        raise FormulaError(f"{label} must be greater than zero, got {value!r} {unit.symbol}.".replace(" .", "."))
