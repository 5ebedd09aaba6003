"""Read a formula: its documentation, its signature, its JavaScript.

The website's calculators run the JavaScript, the page prints the documentation; both come from the one
Python function, so they cannot drift from it.
"""

from __future__ import annotations

import importlib
import inspect
import itertools
import json
import pkgutil
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, get_args, get_origin

from efflab import formulas
from efflab.errors import EfflabError, unknown
from efflab.formulas import namespace
from efflab.units import Range, Unit, range_of, unit_of

# Functions of the namespace that JavaScript has no word for: name to the source of a function declaration.
JAVASCRIPT: dict[str, str] = getattr(namespace, "JAVASCRIPT", {})
FIELDS = ("Equation", "Where", "Source", "Assumes")


@dataclass(frozen=True)
class Reading:
    """What a formula's signature and docstring say.

    Attributes:
        name: "roofline.ridge_point".
        summary: the docstring's first line.
        equation: LaTeX.
        where: parameter name to its LaTeX symbol.
        source: the publication, or "Definition".
        assumes: what must hold.
        units: parameter name to unit, numeric parameters only.
        options: parameter name to its options, choices only.
        ranges: parameter name to the values it may have, where its annotation has a `Range`.
        unit: unit of the result.
    """

    name: str
    summary: str
    equation: str
    where: dict[str, str]
    source: str
    assumes: str
    units: dict[str, Unit]
    options: dict[str, tuple[Any, ...]]
    ranges: dict[str, Range]
    unit: Unit


def find(name: str) -> Callable[..., Any]:
    """Return the formula called "roofline.ridge_point".

    Raises:
        EfflabError: no such formula; names the nearest known ones.
    """
    known = {read(f).name: f for f in every()}
    if name not in known:
        raise unknown("formula", name, known)
    return known[name]


def every() -> list[Callable[..., Any]]:
    """Every formula of every module of `efflab.formulas`, in source order."""
    found = []
    for module_info in pkgutil.iter_modules(formulas.__path__):
        module = importlib.import_module(f"efflab.formulas.{module_info.name}")
        found += [
            f for f in vars(module).values() if getattr(f, "is_formula", False) and f.__module__ == module.__name__
        ]
    return found


def read(function: Callable[..., Any]) -> Reading:
    """Read a formula's signature and docstring.

    Raises:
        EfflabError: the docstring has no equation, source, assumption or symbol for a parameter.
    """
    name = f"{function.__module__.rpartition('.')[2]}.{function.__name__}"
    text = inspect.getdoc(function) or ""
    summary, _, body = text.partition("\n")
    fields: dict[str, str] = {}
    current = None
    for line in body.splitlines():
        label, colon, rest = line.partition(":")
        if colon and label in FIELDS:
            current = label
            fields[current] = rest.strip()
        elif current and line.strip():
            fields[current] += " " + line.strip()
    missing = [f for f in FIELDS if f not in fields and f != "Where"]
    if missing or not summary:
        raise EfflabError(f"formula {name}: its docstring lacks {', '.join(missing) or 'a summary'}.")
    where = {}
    for item in filter(None, re.split(r";\s*", fields.get("Where", ""))):
        symbol, _, parameter = item.rpartition(" = ")
        where[parameter.strip()] = symbol.strip()
    hints = function.hints  # type: ignore[attr-defined]
    parameters = [p for p in hints if p != "return"]
    for parameter in parameters:
        if parameter not in where:
            raise EfflabError(f"formula {name}: 'Where' gives no symbol for {parameter!r}.")
    for parameter in where:
        if parameter not in parameters:
            raise unknown(f"formula {name}: 'Where' parameter", parameter, parameters)
    unit = unit_of(hints["return"])
    assert unit is not None
    return Reading(
        name=name,
        summary=summary,
        equation=fields["Equation"],
        where=where,
        source=fields["Source"],
        assumes=fields["Assumes"],
        units={p: u for p in parameters if (u := unit_of(hints[p]))},
        options={p: get_args(hints[p]) for p in parameters if get_origin(hints[p]) is Literal},
        ranges={p: r for p in parameters if (r := range_of(hints[p]))},
        unit=unit,
    )


def expression(function: Callable[..., Any], **choices: Any) -> Any:
    """The formula as a sympy expression; `choices` fixes its options, every number is a symbol of its name."""
    import sympy

    reading = read(function)
    symbols = {
        p: sympy.Symbol(p, extended_real=True) if u.signed else sympy.Symbol(p, positive=True)
        for p, u in reading.units.items()
    }
    return sympy.sympify(function(**symbols, **choices))


@cache
def javascript(function: Callable[..., Any]) -> str:
    """The formula as one JavaScript function of an object of arguments.

    A formula with options is a switch over them: each combination is traced on its own, and those that come to the
    same expression share one case. What occurs twice in an expression is computed once. What it calls by name is in
    `helpers`.

    Raises:
        EfflabError: two combinations of options read alike as text.
    """
    reading = read(function)
    names = ", ".join([*reading.units, *reading.options])
    if not reading.options:
        return f"({{{names}}}) => {{ {_printed(expression(function))} }}"
    cases: dict[str, list[str]] = {}
    for combination in itertools.product(*reading.options.values()):
        code = _printed(expression(function, **dict(zip(reading.options, combination, strict=True))))
        # as JavaScript joins an array: true, "none" is "true,none"
        key = ",".join(o if isinstance(o, str) else json.dumps(o) for o in combination)
        cases.setdefault(code, []).append(json.dumps(key))
    keys = [key for found in cases.values() for key in found]
    if len(set(keys)) != len(keys):
        raise EfflabError(f"formula {reading.name}: two of its options read alike. Rename one, without commas.")
    switch = " ".join(f"{' '.join(f'case {k}:' for k in found)} {{ {code} }}" for code, found in cases.items())
    return f"({{{names}}}) => {{ switch (String([{', '.join(reading.options)}])) {{ {switch} }} }}"


def helpers(functions: Iterable[Callable[..., Any]]) -> str:
    """The JavaScript functions that the code of these formulas calls, each once, and what those call in turn."""
    code = "\n".join(javascript(f) for f in functions)
    used: dict[str, str] = {}
    while found := [n for n in JAVASCRIPT if n not in used and re.search(rf"(?<![.\w]){n}\(", code)]:
        used |= {n: JAVASCRIPT[n] for n in found}
        code = "\n".join(used.values())
    return "\n".join(used.values())


def _printed(expression: Any) -> str:
    """Statements that return the expression's value. Only identical parts are shared: no sum is regrouped."""
    import sympy
    from sympy.simplify.cse_main import tree_cse

    def code(part: Any) -> str:
        text = sympy.jscode(part, user_functions={name: name for name in JAVASCRIPT})
        return " ".join(line.strip() for line in text.splitlines())

    shared, (result,) = tree_cse([expression], sympy.numbered_symbols("_"))
    constants = ", ".join(f"{name} = {code(part)}" for name, part in shared)
    return (f"const {constants}; " if shared else "") + f"return {code(result)};"
