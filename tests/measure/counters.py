"""Energy counters that a test plays, and a board whose counter is simulated."""

from __future__ import annotations

import csv
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from efflab.measure import energy

DATA = Path(__file__).parent / "data"
UPDATE = 0.1  # s between two changes of the simulated counter
DUTY = 0.25  # share of that time in which its sensor looks


def play(
    monkeypatch: pytest.MonkeyPatch,
    read: Callable[[], float],
    *,
    period: float = 1e-3,
    limit: float | None = None,
    shared: str = "",
) -> None:
    """Let every meter of a CPU read this function, J, in place of RAPL's counter."""
    monkeypatch.setattr(energy, "_of_cpu", lambda: energy.Counter("the test's counter", read, limit, shared))
    monkeypatch.setitem(energy.PERIODS, "rapl", period)


class Clock:
    """A clock that moves when a test says so, or sleeps. Other threads sleep as ever."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)
        test, sleep = threading.get_ident(), time.sleep
        monkeypatch.setattr(time, "sleep", lambda s: self.advance(s) if threading.get_ident() == test else sleep(s))

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self.now += seconds


# Boards of the traces in data/: true power, W, at a time, s, for so long. Written down again in each file's head.
POWERS: dict[str, Callable[[float], float]] = {
    "steady": lambda t: 100.0 if t < 2 or t >= 14 else 500.0,
    "steps": lambda t: 600.0 if (t % 0.37) < 0.25 else 250.0,
    "in-step": lambda t: 600.0 if (t % 0.1) >= 0.07 else 100.0,
}
LASTS = 16.0  # s


def true_energy(name: str, begin: float, end: float) -> float:
    """What a board of `POWERS` takes, J, by the midpoint rule on a grid of 10 µs or less."""
    count = max(1000, int((end - begin) / 1e-5))
    middles = begin + (np.arange(count) + 0.5) * (end - begin) / count
    return float(np.mean([POWERS[name](float(t)) for t in middles]) * (end - begin))


def simulate(name: str) -> list[tuple[float, int]]:
    """What the counter of a board shows from a time on: (s, mJ).

    It changes every `UPDATE` by the mean power that its sensor saw in the last `DUTY` of that time.
    """
    shown, rows = 0.0, [(0.0, 0)]
    for k in range(1, round(LASTS / UPDATE) + 1):
        end = k * UPDATE
        samples = end - DUTY * UPDATE * (np.arange(50) + 0.5) / 50
        shown += 1e3 * UPDATE * float(np.mean([POWERS[name](float(t)) for t in samples]))
        rows.append((round(end, 6), round(shown)))
    return rows


def trace(name: str) -> list[tuple[float, int]]:
    """The rows of a file in data/."""
    lines = [line for line in (DATA / f"{name}.csv").read_text().splitlines() if not line.startswith("#")]
    return [(float(row["t_s"]), int(row["counter_mJ"])) for row in csv.DictReader(lines)]


def refuse(monkeypatch: pytest.MonkeyPatch, counter: Path) -> None:
    """Let nobody read a counter's file. As the tests may be root's, the refusal is played."""
    read = Path.read_text

    def refuses(path: Path, *arguments: Any, **options: Any) -> str:
        if path == counter:
            raise PermissionError(13, "Permission denied")
        return read(path, *arguments, **options)

    monkeypatch.setattr(Path, "read_text", refuses)
