"""Fixtures that find the programs a test needs.

A missing program skips the test with its reason. With EFFLAB_REQUIRE_ALL=1, as in CI, it fails instead:
a skipped browser test is no evidence.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from hypothesis import settings

# No deadline: a loaded machine is no failure. In CI every run draws the same examples.
settings.register_profile("efflab", deadline=None, derandomize=bool(os.environ.get("CI")))
settings.load_profile("efflab")

ROOT = Path(__file__).parent.parent


def require(*names: str, mend: str) -> str:
    """The path of the first of these programs that exists; else skip, or fail where everything is required."""
    for name in names:
        if path := shutil.which(name):
            return path
    reason = f"needs {' or '.join(names)}: {mend}"
    if os.environ.get("EFFLAB_REQUIRE_ALL") == "1":
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository's root."""
    return ROOT


@pytest.fixture(scope="session")
def chromium() -> str:
    """The path of a Chromium-like browser."""
    return require("chromium", "chromium-browser", "google-chrome", mend="install Debian's package chromium")
