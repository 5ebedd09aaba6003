"""Checkers of code and measurements, one module per topic, and what they share (records: in checks/records.py).

A checker takes the learner's function (or the name of a record), raises `NotYet` with a message that teaches,
and returns nothing or a sentence to add to the feedback. It checks properties on many inputs, and says which
call went wrong, what came back and what was expected.
"""

from __future__ import annotations

import dis
import importlib
import inspect
import math
import traceback
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from efflab.errors import EfflabError

if TYPE_CHECKING:
    from efflab.exercises.questions import Question


FLOAT32 = 1e-6  # relative: a right answer that was divided or averaged in float32 is as near as this


class NotYet(Exception):
    """The answer is wrong. `name` names a recognised mistake."""

    def __init__(self, message: str, name: str | None = None) -> None:
        super().__init__(message)
        self.name = name


class NotCounted(Exception):
    """This is no answer: nothing to check, or not readable."""


class NotWritten(Exception):
    """The function is empty or raises NotImplementedError: the learner has not begun."""


def find(topic: str, name: str) -> Callable[[Any], str | None]:
    """The checker `name` of a topic.

    Raises:
        EfflabError: there is none.
    """
    try:
        module = importlib.import_module(f"efflab.exercises.checks.{topic}")
    except ModuleNotFoundError as error:
        if error.name != f"efflab.exercises.checks.{topic}":
            raise  # the module is there, and imports what is not
        raise EfflabError(f"there is no module checks/{topic}.py.") from None
    if name not in module.CHECKERS:
        raise EfflabError(f"checks/{topic}.py: no checker {name!r}. It has: {', '.join(module.CHECKERS)}.")
    return module.CHECKERS[name]


def verify(questions: Iterable[Question]) -> None:
    """Every checker that these questions name exists.

    Raises:
        EfflabError: names the question and the checker.
    """
    for item in questions:
        if item.kind in ("code", "measurement"):
            try:
                find(item.topic, item.checker)
            except EfflabError as error:
                raise EfflabError(f"{item.topic}.yml: question {item.id}: checker: {error}") from None


def written(call: str, value: Any) -> str:
    """`call` and what it gave, as one clause."""
    return f"{call} gives {short(value)}"


def short(value: Any) -> str:
    """A repr of at most 60 characters; numbers with six significant digits."""
    if isinstance(value, float):
        return f"{value:.6g}"
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else text[:57] + "..."


def _empty() -> None: ...


def blank(function: Any) -> bool:
    """Whether a function's body does nothing: `...`, `pass`, a docstring, or a bare return."""

    def does(code: Any) -> list[tuple[str, Any]]:
        return [(i.opname, i.argval) for i in dis.get_instructions(code) if i.opname not in ("RESUME", "NOP", "CACHE")]

    code = getattr(function, "__code__", None)
    return code is not None and does(code) == does(_empty.__code__)


class Subject:
    """The learner's function, called with care.

    Args:
        function: what was passed to `check`.
        name: what the exercise calls it.
        parameters: the parameters that it must take, by these names.

    Raises:
        NotCounted: not a function.
        NotYet: it cannot take these parameters.
        NotWritten: its body does nothing.
    """

    def __init__(self, function: Any, name: str, *parameters: str) -> None:
        self.name = name
        self.function = function
        if not callable(function):
            raise NotCounted(
                f"Pass the function itself, without calling it: check(..., {name}); got {short(function)}."
            )
        try:
            signature = inspect.signature(function)
        except (TypeError, ValueError):
            return
        try:
            signature.bind(**dict.fromkeys(parameters))
        except TypeError:
            raise NotYet(
                f"{name} must take the parameters ({', '.join(parameters)}); yours takes {signature}."
            ) from None
        if blank(function):
            raise NotWritten(f"{name} is not written yet: its body is empty.")

    def describe(self, **arguments: Any) -> str:
        """The call as it would be written."""
        return f"{self.name}({', '.join(f'{k}={short(v)}' for k, v in arguments.items())})"

    def __call__(self, **arguments: Any) -> Any:
        """Call it. What it raises becomes a message with the line it came from."""
        try:
            return self.function(**arguments)
        except (NotYet, NotCounted):
            raise  # a fake device's objection
        except NotImplementedError as error:
            raise NotWritten(f"{self.name} is not written yet. {error}".strip()) from None
        except SystemExit:
            raise NotYet(f"{self.describe(**arguments)} calls exit(). Return the result instead.") from None
        except Exception as error:
            frames = traceback.extract_tb(error.__traceback__)
            inner = [f for f in frames if f.filename != __file__]
            place = f", in line {inner[0].lineno}: {inner[0].line}" if inner and inner[0].line else ""
            raise NotYet(f"{self.describe(**arguments)} raised {type(error).__name__}: {error}{place}") from None

    def number(self, **arguments: Any) -> float:
        """Call it and insist on one number."""
        value = self(**arguments)
        call = self.describe(**arguments)
        if value is None:
            raise NotYet(f"{call} returns nothing. Is the `return` missing?")
        if isinstance(value, bool | str):
            raise NotYet(f"{written(call, value)}; a number is expected.")
        try:
            number = float(value)
        except OverflowError:
            raise NotYet(f"{call} gives a number too large for a float.") from None
        except Exception:  # the object is the learner's and may raise anything
            raise NotYet(f"{written(call, value)}; one number is expected.") from None
        if math.isnan(number):
            raise NotYet(f"{call} gives NaN, not a number.")
        return number

    def numbers(self, *names: str, **arguments: Any) -> tuple[float, ...]:
        """Call it and insist on one number for each of `names`, as a tuple, a list or an array."""
        value = self(**arguments)
        call, wanted = self.describe(**arguments), f"({', '.join(names)})"
        if value is None:
            raise NotYet(f"{call} returns nothing. Is the `return` missing?")
        try:
            several = () if isinstance(value, str | bytes | dict | set) else tuple(value)
        except Exception:  # the object is the learner's and may raise anything
            several = ()
        if len(several) != len(names):
            raise NotYet(f"{written(call, value)}; {len(names)} numbers are expected, {wanted}.")
        found = []
        for name, item in zip(names, several, strict=True):
            try:
                if isinstance(item, bool | str | bytes):
                    raise TypeError
                number = float(item)
            except Exception:
                raise NotYet(f"{written(call, value)}; {name} is no number.") from None
            if math.isnan(number):
                raise NotYet(f"{written(call, value)}; {name} is NaN.")
            found.append(number)
        return tuple(found)


def a_number(said: str, item: Any, expected: str = "a number", *, nan: bool = False) -> float:
    """A float from something of the learner's, or `NotYet` with `said` and what is expected. NaN counts if `nan`."""
    try:
        if isinstance(item, bool | str | bytes):
            raise TypeError
        number = float(item)
    except Exception:  # the object is the learner's and may raise anything
        raise NotYet(f"{said}; {expected} is expected.") from None
    if math.isnan(number) and not nan:
        raise NotYet(f"{said}; {expected} is expected.")
    return number


def close(a: float, b: float, relative: float = 1e-6) -> bool:
    """Equal within a relative difference; infinities are equal to themselves."""
    return math.isclose(a, b, rel_tol=relative)


def recognise(said: str, got: float, mistakes: Iterable[tuple[str, float, str]], relative: float = 1e-6) -> None:
    """Name the mistake that a wrong value comes from.

    Args:
        said: the call and what it gave, from `written`.
        got: the value.
        mistakes: for each its name, the value that it leads to, and what to say, which follows "..., ".
        relative: how near the value must be.

    Raises:
        NotYet: the first mistake whose value it is.
    """
    for name, value, why in mistakes:
        if close(got, value, relative):
            raise NotYet(f"{said}, {why}", name)
