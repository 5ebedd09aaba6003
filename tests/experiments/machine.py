"""The machine that a plan is made for where a test measures nothing."""

from __future__ import annotations

from typing import Any

from efflab.records import Environment


def environment(**changes: Any) -> Environment:
    """A CPU of two cores, with what a test says differently."""
    base: dict[str, Any] = {
        "device": "d", "kind": "cpu", "count": 1, "memory": 2**34, "threads": 2, "cores": 2, "caches": {"L3": 2**25},
        "torch": "2", "python": "3", "efflab": "0",
    }  # fmt: skip
    return Environment(**base | changes)
