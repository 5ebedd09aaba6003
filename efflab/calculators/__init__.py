"""Calculators: predictions to play with, on the website and in JupyterLab.

Each module named after a topic declares that topic's calculators; the other modules are the machinery.
"""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache

from efflab.calculators.calculator import Calculator
from efflab.errors import EfflabError, unknown

__all__ = ["Calculator", "every", "get"]

# modules that are no topic's
SHARED = {"binary", "bundle", "calculator", "checks", "markup", "number_format", "parts", "picks", "widget"}


@cache
def _found() -> dict[str, Calculator]:
    found: dict[str, Calculator] = {}
    for module_info in pkgutil.iter_modules(__path__):
        if module_info.name in SHARED:
            continue
        module = importlib.import_module(f"{__name__}.{module_info.name}")
        for value in vars(module).values():
            if isinstance(value, Calculator) and value not in found.values():
                if value.name in found:
                    raise EfflabError(f"two calculators are called {value.name!r}. Rename one.")
                found[value.name] = value
    return found


def every() -> dict[str, Calculator]:
    """Every calculator by name, topic by topic in the order declared."""
    return dict(_found())


def get(name: str) -> Calculator:
    """The calculator of that name.

    Raises:
        EfflabError: unknown; names the nearest known ones.
    """
    if name not in _found():
        raise unknown("calculator", name, _found())
    return _found()[name]
