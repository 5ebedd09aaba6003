"""Checking an answer, giving hints, showing a question.

`check` returns a `Result` that prints as plain text, the same text each time. Under CI (the environment has CI,
or EFFLAB_STRICT=1) anything but a right answer raises instead, so that a notebook's test fails.
"""

from __future__ import annotations

import math
import os
import re
import textwrap
from dataclasses import dataclass, field
from typing import Any, Literal

from efflab.errors import EfflabError
from efflab.exercises import checks
from efflab.exercises.progress_file import progress
from efflab.exercises.questions import CLOSE, Choice, Code, Measurement, Numeric, Question
from efflab.exercises.questions import question as find
from efflab.units import parse

Outcome = Literal["right", "wrong", "not counted"]
WIDTH = 100
_PLAIN = re.compile(r"[0-9][0-9,]*\.?[0-9]*")  # a number without exponent and sign; quiz.js has the same
_shown_hints: dict[str, int] = {}


class ExerciseError(EfflabError):
    """Bad input to `check`, `hint` or `show`. A notebook shows its message without the traceback."""

    def _render_traceback_(self) -> list[str]:
        return [f"{type(self).__name__}: {self}"]


class CheckFailed(ExerciseError):
    """Under CI: the answer is not right."""

    def __init__(self, result: Result) -> None:
        super().__init__(str(result))
        self.result = result


class NotWritten(NotImplementedError):
    """Under CI: the function to check still raises NotImplementedError."""

    def _render_traceback_(self) -> list[str]:
        return [f"NotImplementedError: {self}"]


@dataclass(frozen=True)
class Result:
    """The outcome of one check.

    Attributes:
        question: its id.
        outcome: "right", "wrong", or "not counted" where the answer could not be read as one.
        feedback: what to tell the learner.
        points: points earned by this answer; `of` is how many there are.
        misconception: the name of the recognised mistake, or None.
        unsaved: why the progress is not on disk, or None.
        kept: points of an earlier right answer, which a later wrong one does not take away.
    """

    question: str
    outcome: Outcome
    feedback: str
    points: int
    of: int
    misconception: str | None = None
    unsaved: str | None = field(default=None, compare=False)
    kept: int = 0

    @property
    def right(self) -> bool:
        """Whether the answer is right."""
        return self.outcome == "right"

    def __bool__(self) -> bool:
        return self.right

    def __str__(self) -> str:
        plural = "" if self.of == 1 else "s"
        score = f"{self.points} of {self.of} point{plural}."
        if self.kept:
            score = "You keep your point." if self.kept == 1 else f"You keep your {self.kept} points."
        head = {
            "right": f"{self.question}: right. {score}",
            "wrong": f"{self.question}: not right yet. {score}",
            "not counted": f"{self.question}: not counted as an attempt.",
        }[self.outcome]
        more = f'A hint: hint("{self.question}")' if self.outcome == "wrong" else None
        return "\n".join(wrap(part) for part in (head, self.feedback, more, self.unsaved) if part)

    __repr__ = __str__


class Shown(str):
    """A text that prints as itself, and as Markdown in a notebook."""

    def __repr__(self) -> str:
        return str(self)


class ShownQuestion(Shown):
    """A question's text."""

    def _repr_markdown_(self) -> str:
        return str(self)


def wrap(text: str) -> str:
    """Each line of `text` folded at WIDTH columns; indented lines (code) stay as they are."""
    lines = []
    for line in text.strip().splitlines():
        lines += (
            [line]
            if line.startswith("  ")
            else (textwrap.wrap(line, WIDTH, break_long_words=False, break_on_hyphens=False) or [""])
        )
    return "\n".join(lines)


def strict() -> bool:
    """Whether a check that is not right raises."""
    chosen = os.environ.get("EFFLAB_STRICT")
    if chosen in ("0", "1"):
        return chosen == "1"
    return os.environ.get("CI", "").lower() not in ("", "0", "false")


def _find(question_id: str) -> Question:
    try:
        return find(question_id)
    except EfflabError as error:
        raise ExerciseError(str(error)) from None


_NONE = object()


def check(question_id: str, answer: Any = _NONE) -> Result:
    """Check an answer and keep the progress in the lab book.

    Args:
        question_id: such as "roofline-3".
        answer: for a choice the option's letter or its text; for a number the quantity as text, "206 FLOP/B";
            for code the function itself; for a measurement a record's id or path, or nothing for the newest.

    Returns:
        A `Result`, true if the answer is right.

    Raises:
        EfflabError: unknown question.
        CheckFailed: under CI, if the answer is not right.
        NotImplementedError: under CI, if the function to check raises it.
    """
    item = _find(question_id)
    try:
        if answer is _NONE and not isinstance(item, Measurement):
            raise checks.NotCounted(f"No answer was given. Write check({item.id!r}, {_example(item)}).")
        feedback, misconception = _judge(item, None if answer is _NONE else answer)
        outcome: Outcome = "wrong" if isinstance(feedback, _Wrong) else "right"
    except checks.NotWritten as error:
        if strict():
            raise NotWritten(f"{item.id}: {error}") from None
        return Result(item.id, "not counted", str(error), 0, item.points)
    except checks.NotCounted as error:
        result = Result(item.id, "not counted", str(error), 0, item.points)
        if strict():
            raise CheckFailed(result) from None
        return result
    right = outcome == "right"
    # Of a measurement only the points are kept: a path may hold a name.
    kept = answer if isinstance(item, Choice | Numeric) and isinstance(answer, str) else None
    solved_before, unsaved = progress.note(item, right=right, answer=kept)
    result = Result(
        item.id, outcome, str(feedback), item.points if right else 0, item.points, misconception, unsaved,
        kept=item.points if solved_before and not right else 0,
    )  # fmt: skip
    if not right and strict():
        raise CheckFailed(result)
    return result


class _Wrong(str):
    """Feedback for a wrong answer."""


def _example(item: Question) -> str:
    match item:
        case Choice():
            return repr(next(iter(item.ordered)))
        case Numeric():
            return repr(item.wanted.partition("such as ")[2].partition(" or ")[0] or "3")
        case Code():
            return "your_function"
    return "'path/of/record.json'"


def _judge(item: Question, answer: Any) -> tuple[str, str | None]:
    match item:
        case Choice():
            return _judge_choice(item, answer)
        case Numeric():
            return _judge_numeric(item, answer)
    try:
        checker = checks.find(item.topic, item.checker)
        said = checker(answer)
    except checks.NotYet as error:
        return _Wrong(error), error.name
    return (f"{item.right}\n{said}" if said else item.right), None


def _judge_choice(item: Choice, answer: Any) -> tuple[str, str | None]:
    options = item.ordered
    if not isinstance(answer, str):
        raise checks.NotCounted(f"Give the option's letter as text, such as {_example(item)}; got {answer!r}.")
    wanted = " ".join(answer.split()).casefold().rstrip(".")
    for letter, option in options.items():
        if wanted in (letter, f"({letter})", f"{letter})", " ".join(option.text.split()).casefold().rstrip(".")):
            return (option.feedback if option.right else _Wrong(option.feedback)), None
    letters = ", ".join(options)
    raise checks.NotCounted(
        f"{answer!r} is not an option. Give one of the letters {letters}; show({item.id!r}) lists them."
    )


def _judge_numeric(item: Numeric, answer: Any) -> tuple[str, str | None]:
    if hasattr(answer, "item") and not isinstance(answer, str):
        try:
            answer = answer.item()  # a number of numpy or torch
        except (TypeError, ValueError, RuntimeError):
            raise checks.NotCounted(f"Give one value, not {type(answer).__name__} of several.") from None
    try:
        finite = not isinstance(answer, int | float) or math.isfinite(answer)
    except OverflowError:
        raise checks.NotCounted(f"The answer is too large for a float. Give {item.wanted}.") from None
    if not finite:  # said before a unit is asked for
        raise checks.NotCounted(f"{answer!r} is not a finite number. Give {item.wanted}.")
    try:
        value = parse(answer, item.unit_type, "answer", item.example)
    except EfflabError as error:
        said = str(error).removeprefix("answer: ")
        raise checks.NotCounted(said[:1].upper() + said[1:]) from None
    if not math.isfinite(value):
        raise checks.NotCounted(f"{answer!r} is not a finite number.")
    low, high = item.bounds
    if low <= value <= high:
        return item.right, None
    for i, misconception in enumerate(item.misconceptions):
        low, high = item.misconception_bounds(i)
        if low <= value <= high:
            return _Wrong(misconception.feedback), misconception.name
    if (near := item.near_bounds) and near[0] <= value <= near[1]:
        return _Wrong(CLOSE), None
    if item.example == "%" and value > 1 and _PLAIN.fullmatch(written := str(answer).strip()):
        raise checks.NotCounted(f"Did you mean {written}%? Without the percent sign {written} is more than the whole.")
    return _Wrong(item.wrong), None


def hint(question_id: str) -> Shown:
    """The next hint to a question. After the last one it begins again.

    Raises:
        EfflabError: unknown question.
    """
    item = _find(question_id)
    i = _shown_hints.get(item.id, 0) % len(item.hints)
    _shown_hints[item.id] = i + 1
    return Shown(wrap(f"Hint {i + 1} of {len(item.hints)}: {item.hints[i]}"))


def show(question_id: str) -> ShownQuestion:
    """A question with its options.

    Raises:
        EfflabError: unknown question.
    """
    item = _find(question_id)
    points = f"{item.points} point{'' if item.points == 1 else 's'}"
    parts = [f"**{item.id}: {item.title}** ({points})", item.text]
    match item:
        case Choice():
            parts.append("\n".join(f"- ({letter}) {option.text}" for letter, option in item.ordered.items()))
        case Numeric():
            parts.append(f"Answer: {item.wanted}.")
    return ShownQuestion("\n\n".join(parts))
