"""A lab book of its own for each test, and nothing strict unless a test asks for it."""

from __future__ import annotations

from pathlib import Path

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
