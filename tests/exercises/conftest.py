"""A lab book and a made-up record of its own for each test, and nothing strict unless a test asks for it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from efflab.exercises import grading, progress


@pytest.fixture(autouse=True)
def labbook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of an empty lab book."""
    folder = tmp_path / "labbook"
    monkeypatch.setenv("EFFLAB_LABBOOK", str(folder))
    monkeypatch.setenv("EFFLAB_STRICT", "0")
    progress._unsaved.clear()
    progress._kept = None
    grading._shown_hints.clear()
    return folder


@pytest.fixture
def data(request: pytest.FixtureRequest) -> dict[str, Any]:
    """A copy of the made-up record that the test's module describes in `document`."""
    return copy.deepcopy(request.module.document())
