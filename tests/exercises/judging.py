"""What the tests of checkers share: calling a checker, values that are no answer, and changes of a made-up record."""

from __future__ import annotations

import functools
import math
import re
import statistics
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import strategies as st

from efflab import experiments, notebooks, records
from efflab.exercises import check
from efflab.exercises.grading import Result
from efflab.experiments import runner
from efflab.records import Record

NOTEBOOKS = Path(__file__).parents[2] / "notebooks" / "source"

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


def led_astray(topic: str, number: int, verdict: Callable[..., Result]) -> None:
    """An exit, an error, an exercise not written yet and a function without parameters are answered in words."""
    assert "calls exit()" in verdict(number, lambda *_: sys.exit()).feedback
    assert "ZeroDivisionError" in verdict(number, lambda *_: 1 / 0).feedback

    def blank(*_: Any) -> None:
        raise NotImplementedError("Write it.")

    assert verdict(number, blank).outcome == "not counted"
    assert "must take the parameters" in check(f"{topic}-code-{number}", lambda: 0).feedback


@functools.cache
def sources(topic: str) -> tuple[str, ...]:
    """The functions of a notebook's solutions in its order, each below the notebook's imports."""
    cells = [c.source for c in notebooks.read(NOTEBOOKS / f"{topic}.md").cells if c.cell_type == "code"]
    imports = next(c for c in cells if c.startswith("import "))
    return tuple(f"{imports}\n\n{c}" for c in cells if c.startswith("def ") and "### BEGIN SOLUTION" in c)


def made(source: str) -> Callable[..., Any]:
    """The function that a cell defines."""
    names: dict[str, Any] = {}
    exec(source, names)
    found = re.search(r"^def (\w+)", source, re.MULTILINE)
    assert found is not None, source
    return names[found[1]]


def solutions(topic: str) -> Callable[..., Callable[..., Any]]:
    """What gives a topic's solution by the exercise's number, with one piece of it replaced where that is asked for."""

    def solution(number: int, old: str | None = None, new: str = "") -> Callable[..., Any]:
        source = sources(topic)[number - 1]
        if old is not None:
            assert source.count(old) == 1, f"{old!r} occurs {source.count(old)} times"
            source = source.replace(old, new)
        return made(source)

    return solution


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


def in_words(document: Mapping[str, Any], *questions: str) -> None:
    """Where a document is a record at all, each check answers it with a sentence, never with a raw error."""
    try:
        found = Record.model_validate(document)
    except ValueError:
        return
    for question in questions:
        result = check(question, found)
        assert result.outcome in ("right", "wrong") and result.feedback


def alter(document: dict[str, Any], index: int, value: Any, draw: st.DataObject, *others: str) -> None:
    """Give one entry of a sample's point, or one of `others`, another value; None leaves it out."""
    point = document["samples"][index]["point"]
    name = draw.draw(st.sampled_from([*sorted(point), *others]))
    if value is None:
        point.pop(name, None)
    else:
        point[name] = value


def smoke_run(topic: str, folder: Path) -> Path:
    """The record that a topic's lab writes at the scale of the tests."""
    lab = experiments.get(topic)
    return runner.run(lab, scale="smoke", device="cpu", out=folder / "out", report=lambda line: None)[1]


def as_if_quiet(path: Path, *metrics: str) -> dict[str, Any]:
    """A record of smoke scale as a document of another scale, without warnings, its times and `metrics` without noise.

    What is then wrong of it is about the numbers of a busy machine, not about what is missing.
    """
    document = Record.model_validate_json(path.read_bytes()).model_dump(by_alias=True)
    document["spec"]["scale"] = "cpu"
    document["warnings"] = []
    for s in document["samples"]:
        if s["metric"] in ("time", *metrics) and s["status"] == "ok":
            s["values"] = [statistics.median(s["values"]) * (1 + k / 1e6) for k in range(len(s["values"]))]
    return document


def shipped(topic: str, monkeypatch: pytest.MonkeyPatch) -> list[Record]:
    """The recorded runs of a topic, which from now on count as the learner's own."""
    found = records.recorded(topic)
    monkeypatch.setattr("efflab.records.recorded", lambda topic: [])
    return found


def nearly_copied(document: dict[str, Any], step: float) -> None:
    """Multiply the times of each sample by a factor of its own, which grows by `step` from one to the next."""
    for i, s in enumerate(document["samples"]):
        if s["metric"] == "time":
            s["values"] = [v * (1 + i * step) for v in s["values"]]


def find(document: Mapping[str, Any], case: str, metric: str = "time") -> dict[str, Any]:
    """The first sample of a case and metric."""
    return next(s for s in document["samples"] if s["point"]["case"] == case and s["metric"] == metric)


def times(document: Mapping[str, Any], case: str, factor: float, metric: str = "time") -> None:
    """Multiply the values of a sample."""
    found = find(document, case, metric)
    found["values"] = [v * factor for v in found["values"]]


def drop(case: str, metric: str = "time") -> Callable[[dict[str, Any]], None]:
    """A change that takes a sample away."""

    def changed(document: dict[str, Any]) -> None:
        document["samples"].remove(find(document, case, metric))

    changed.__name__ = f"without_{metric}_of_{case}"
    return changed


def change(case: str, factor: float, metric: str = "time") -> Callable[[dict[str, Any]], None]:
    """A change that multiplies the values of a sample."""

    def changed(document: dict[str, Any]) -> None:
        times(document, case, factor, metric)

    changed.__name__ = f"{case}_{metric}_times_{factor}"
    return changed


def unfinished(document: dict[str, Any]) -> None:
    """As a run leaves it that was stopped."""
    document["finished"] = None


def smoke(document: dict[str, Any]) -> None:
    """As if measured at the scale of the tests."""
    document["spec"]["scale"] = "smoke"
