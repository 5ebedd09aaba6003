"""What a formula may use: the `formula` decorator and functions that floats, arrays and symbols share.

A formula is read four ways (numbers, sympy symbols, pint quantities, its docstring), so it calls these
functions instead of `math` or `numpy`, and has no `if` on a numeric argument.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable
from typing import Any, Literal, get_args, get_origin, get_type_hints

import numpy as np

from efflab.errors import EfflabError, unknown
from efflab.units import range_of, unit_of

__all__ = ["as_count", "as_flop", "ceil", "exp", "formula", "log", "maximum", "minimum", "sqrt", "where"]


class FormulaError(EfflabError):
    """A formula was called with an argument that its units do not allow."""


def _library(*values: Any) -> str:
    """Which library the arguments belong to: sympy, pint, numpy, or "" for plain numbers."""
    kinds = {type(v).__module__.partition(".")[0] for v in values}
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
    if isinstance(value, bool | np.bool_):
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
