"""Fixtures that find the programs a test needs.

A missing program skips the test with its reason. With EFFLAB_REQUIRE_ALL=1, as in CI, it fails instead:
a skipped browser test is no evidence.
"""

from __future__ import annotations

import functools
import http.server
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from playwright.sync_api import Browser, Page, Route, sync_playwright

# No deadline: a loaded machine is no failure. In CI every run draws the same examples.
settings.register_profile("efflab", deadline=None, derandomize=bool(os.environ.get("CI")))
settings.load_profile("efflab")

ROOT = Path(__file__).parent.parent


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what this machine's devices rule out. Missing programs are another matter: see `require`."""
    import torch

    other = "no_gpu" if torch.cuda.is_available() else "gpu"
    out = [i for i in items if i.get_closest_marker(other)]
    if out:
        config.hook.pytest_deselected(items=out)
        items[:] = [i for i in items if not i.get_closest_marker(other)]


@pytest.fixture(autouse=True)
def no_figure_stays_open() -> Iterator[None]:
    """Close what a test drew: matplotlib keeps every figure until then, and warns from the twentieth on."""
    yield
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")


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


@pytest.fixture(scope="session")
def book(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The book, built fresh with every cell executed and every warning an error; the folder of its pages.

    EFFLAB_BOOK names an already built folder, to save the build while writing tests.
    """
    if built := os.environ.get("EFFLAB_BOOK"):
        return Path(built).resolve()
    if not (ROOT / "node_modules/katex").exists():
        require("this-never-exists", mend="run 'make assets' to install KaTeX and TweetNaCl into node_modules")
    out = tmp_path_factory.mktemp("book")
    tool = Path(sys.executable).parent / "jupyter-book"
    command = [str(tool), "build", ".", "-W", "-n", "--keep-going", "--config", "_config.yml", "--toc", "_toc.yml"]
    done = subprocess.run([*command, "--path-output", str(out)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, f"the book does not build:\n{done.stdout[-6000:]}\n{done.stderr[-6000:]}"
    return out / "_build/html"


@pytest.fixture(scope="session")
def browser(chromium: str) -> Iterator[Browser]:
    """One headless Chromium for the whole session."""
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(
            executable_path=chromium,
            args=["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
                  "--disable-background-networking", "--disable-component-update"],
        )  # fmt: skip
        yield running
        running.close()


@pytest.fixture(scope="session")
def served(book: Path) -> Iterator[str]:
    """The built book on a local port; its address."""
    handler = functools.partial(_Quiet, directory=str(book))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


class Watched:
    """A page that lets nothing out and remembers what went wrong."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.remote: list[str] = []
        self.errors: list[str] = []
        page.on("console", lambda m: self.errors.append(m.text) if m.type == "error" else None)
        page.on("pageerror", lambda e: self.errors.append(str(e)))
        page.route("**/*", self._gate)

    def _gate(self, route: Route) -> None:
        url = route.request.url
        if url.startswith(("http://127.0.0.1", "http://localhost", "file:", "data:", "blob:", "about:")):
            route.continue_()
        else:
            self.remote.append(url)
            route.abort()

    def assert_clean(self) -> None:
        """Nothing was asked of another host and the console holds no error."""
        assert not self.remote, f"asked other hosts: {self.remote}"
        assert not self.errors, f"console errors: {self.errors}"


@pytest.fixture
def watched(browser: Browser) -> Iterator[Watched]:
    """A page in a fresh profile, cut off from every other host."""
    context = browser.new_context(viewport={"width": 1280, "height": 900}, accept_downloads=True)
    yield Watched(context.new_page())
    context.close()
