"""What the tests of checkers share: calling a checker, values that are no answer, and changes of a made-up record."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from efflab.exercises import check
from efflab.exercises.grading import Result
from efflab.records import Record

# Code


def code(topic: str, names: Mapping[int, str]) -> tuple[Callable[..., Result], Callable[..., str]]:
    """Two functions for a topic's code exercises, whose parameters are named by the exercise's number.

    The first takes a number and a function with positional parameters in the exercise's order, and gives the result.
    The second takes also the mistake that must be named, and gives the feedback.
    """

    def verdict(number: int, function: Callable[..., Any]) -> Result:
        named = eval(f"lambda {names[number]}: f({names[number]})", {"f": function})
        result = check(f"{topic}-code-{number}", named)
        assert max(map(len, str(result).splitlines())) <= 130
        return result

    def wrong(number: int, function: Callable[..., Any], mistake: str | None) -> str:
        result = verdict(number, function)
        assert result.outcome == "wrong" and result.misconception == mistake, result.feedback
        return result.feedback

    return verdict, wrong


class Stubborn:
    """An object that refuses to be a number in its own way."""

    def __float__(self) -> float:
        raise KeyError("no")

    def __iter__(self) -> Any:
        raise RuntimeError("no")

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("no")

    __hash__ = None  # type: ignore[assignment]


# What is no answer to any exercise.
STRANGE = (
    None, True, "x", b"xy", [], {}, (), np.array([1.0, 2.0]), np.array("compute"), np.nan, -math.inf, math.inf, -1,
    10**400, 1e308, 1j, torch.zeros(3), torch.tensor(math.nan), Stubborn(), object(), print, (1, 2),
)  # fmt: skip


# A learner's own record, made up as the document of its file

ENVIRONMENT = {
    "device": "Made-up CPU", "kind": "cpu", "count": 1, "memory": 8 * 2**30, "threads": 2, "torch": "2.13.0",
    "python": "3.11", "efflab": "0.1.0",
}  # fmt: skip


def record(question: str) -> Callable[[Mapping[str, Any]], Result]:
    """What checks a document as the record that a question asks for."""
    return lambda document: check(question, Record.model_validate(document))


def find(document: Mapping[str, Any], case: str, metric: str = "time") -> dict[str, Any]:
    """The first sample of a case and metric."""
    return next(s for s in document["samples"] if s["point"]["case"] == case and s["metric"] == metric)


def times(document: Mapping[str, Any], case: str, factor: float, metric: str = "time") -> None:
    """Multiply the values of a sample."""
    found = find(document, case, metric)
    found["values"] = [v * factor for v in found["values"]]


def unfinished(document: dict[str, Any]) -> None:
    """As a run leaves it that was stopped."""
    document["finished"] = None


def smoke(document: dict[str, Any]) -> None:
    """As if measured at the scale of the tests."""
    document["spec"]["scale"] = "smoke"
