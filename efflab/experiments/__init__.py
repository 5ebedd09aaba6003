"""What each lab measures: one module per topic, and the runner that they share."""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any

from efflab.errors import unknown

SHARED = ("ablation", "decoder", "faults", "ranks", "runner", "sprint", "text")  # modules that are no topic's


def topics() -> list[str]:
    """The topics that have an experiment."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if m.name not in SHARED)


def get(topic: str) -> Any:
    """The experiment of a topic, a `runner.Experiment`.

    Raises:
        EfflabError: no experiment has that name; names the nearest.
    """
    if topic not in topics():
        raise unknown("topic", topic, topics())
    return importlib.import_module(f"efflab.experiments.{topic}").EXPERIMENT
