"""Checkers of code and measurements, one module per topic, and what they share.

A checker takes the learner's function (or the name of a record), raises `NotYet` with a message that teaches,
and returns nothing or a sentence to add to the feedback. It checks properties on many inputs, and says which
call went wrong, what came back and what was expected.
"""

from __future__ import annotations

import importlib
import inspect
import math
import os
import traceback
from collections.abc import Callable
from typing import Any

from efflab import records
from efflab.errors import EfflabError, unknown


class NotYet(Exception):
    """The answer is wrong. `name` names a recognised mistake."""

    def __init__(self, message: str, name: str | None = None) -> None:
        super().__init__(message)
        self.name = name


class NotCounted(Exception):
    """This is no answer: nothing to check, or not readable."""


class NotWritten(Exception):
    """The function raises NotImplementedError: the learner has not begun."""


def find(topic: str, name: str) -> Callable[[Any], str | None]:
    """The checker `name` of a topic.

    Raises:
        EfflabError: there is none.
    """
    try:
        module = importlib.import_module(f"efflab.exercises.checks.{topic}")
    except ModuleNotFoundError:
        raise EfflabError(f"checks: there is no module checks/{topic}.py.") from None
    if name not in module.CHECKERS:
        raise EfflabError(f"checks/{topic}.py: no checker {name!r}. It has: {', '.join(module.CHECKERS)}.")
    return module.CHECKERS[name]


def written(call: str, value: Any) -> str:
    """`call` and what it gave, as one clause."""
    return f"{call} gives {short(value)}"


def short(value: Any) -> str:
    """A repr of at most 60 characters; numbers with six significant digits."""
    if isinstance(value, float):
        return f"{value:.6g}"
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


class Subject:
    """The learner's function, called with care.

    Args:
        function: what was passed to `check`.
        name: what the exercise calls it.
        parameters: the parameters that it must take, by these names.

    Raises:
        NotCounted: not a function.
        NotYet: it cannot take these parameters.
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
            raise NotWritten(str(error) or f"{self.name} is not written yet.") from None
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
        except (TypeError, ValueError, RuntimeError):
            raise NotYet(f"{written(call, value)}; one number is expected.") from None
        if math.isnan(number):
            raise NotYet(f"{call} gives NaN, not a number.")
        return number


def own(topic: str, answer: Any) -> records.Record:
    """The learner's own finished record of a topic.

    Args:
        topic: such as "roofline".
        answer: a record, its id, its path, or None or "newest" for the newest finished one in the lab book.

    Raises:
        NotCounted: there is none, or it cannot be read.
        NotYet: it is partial, of another topic, or one that comes with the course.
    """
    command = f"'efflab run {topic}'"
    if isinstance(answer, records.Record):
        record = answer
    elif answer is None or answer == "newest":
        try:
            book = records.LabBook()
            _, kept, problems = book.readable()
        except EfflabError as error:
            raise NotCounted(str(error)) from None
        kept = [r for r in kept if r.topic == topic]
        if not kept:
            said = f" {problems[0]}" if problems else ""
            raise NotCounted(
                f"Your lab book, {book.path.resolve()}, has no record of {topic} yet.{said} Run '!efflab run {topic}' "
                "in a cell of this notebook, then check again. A record that lies elsewhere can be checked by its path."
            )
        record = kept[-1]
    elif isinstance(answer, str | os.PathLike):
        try:
            record = _named(topic, answer)
        except EfflabError as error:
            raise NotCounted(str(error)) from None
    else:
        raise NotCounted(f"Give a record's id or path as text, or nothing for the newest; got {short(answer)}.")
    if record.topic != topic:
        raise NotYet(f"Record {record.id} is of {record.topic}, not of {topic}. Run {command}.")
    shipped = records.recorded(topic)
    if any(record.id == s.id or record.samples == s.samples for s in shipped):
        raise NotYet(
            f"Record {record.id} comes with the course. Run {command} on your own device and check that record.",
            "not own",
        )
    if record.finished is None:
        raise NotYet(f"Record {record.id} is partial: the run did not finish. Run {command} again to continue it.")
    return record


def _named(topic: str, answer: str | os.PathLike[str]) -> records.Record:
    if os.path.exists(answer):
        return records.load_record(answer)
    known = {r.id: r for r in records.LabBook().readable()[1] if r.topic == topic}
    if str(answer) not in known:
        raise (
            unknown(f"record of {topic}", str(answer), known)
            if known
            else EfflabError(
                f"{str(answer)!r} is neither a file nor a record in your lab book, which has none of {topic}."
            )
        )
    return known[str(answer)]


def close(a: float, b: float, relative: float = 1e-6) -> bool:
    """Equal within a relative difference; infinities are equal to themselves."""
    return math.isclose(a, b, rel_tol=relative)
