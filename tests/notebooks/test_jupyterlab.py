"""A calculator in a real JupyterLab with a real kernel: slider to Python and back."""

from __future__ import annotations

import json
import os
import secrets
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

CELLS = [
    "from efflab import calculators\nw = calculators.get('roofline-explorer').widget()\nw",
    "print('m is', w.m)",
    "w.m = 512\nprint('set')",
]


@pytest.fixture(scope="module")
def jupyterlab(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lab")
    cells = [
        {"cell_type": "code", "id": f"cell{i}", "metadata": {}, "source": s, "outputs": [], "execution_count": None}
        for i, s in enumerate(CELLS)
    ]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    notebook = {"cells": cells, "metadata": kernel, "nbformat": 4, "nbformat_minor": 5}
    (folder / "widget.ipynb").write_text(json.dumps(notebook))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    token = secrets.token_hex(16)
    log = (folder / "server.log").open("w")
    environment = os.environ | {
        "JUPYTER_CONFIG_DIR": str(folder / "config"),
        "JUPYTER_RUNTIME_DIR": str(folder / "runtime"),
        "EFFLAB_LABBOOK": str(folder / "labbook"),
    }
    server = subprocess.Popen(
        [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1", f"--port={port}",
         f"--IdentityProvider.token={token}", f"--ServerApp.root_dir={folder}"],
        cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT,
    )  # fmt: skip
    address = f"http://127.0.0.1:{port}"
    for _ in range(240):
        try:
            urllib.request.urlopen(f"{address}/api?token={token}", timeout=1).read()
            break
        except OSError:
            time.sleep(0.25)
    else:
        server.kill()
        pytest.fail("JupyterLab did not start: " + Path(folder / "server.log").read_text()[-2000:])
    yield address, token, folder
    server.terminate()
    server.wait(20)


def test_slider_to_python_and_back(watched, jupyterlab):
    address, token, folder = jupyterlab
    page = watched.page
    page.goto(f"{address}/lab/tree/widget.ipynb?token={token}")
    notebook = page.locator(".jp-Notebook")
    notebook.wait_for(timeout=60_000)

    def asked(dialog):
        """JupyterLab's own question, as on a machine that is slow to start a kernel. A user takes what it proposes."""
        said = dialog.inner_text()
        assert said.startswith(("Select Kernel", "Server Connection Error")), f"JupyterLab asks: {said}"
        dialog.locator(".jp-mod-accept").click()

    page.add_locator_handler(page.locator(".jp-Dialog"), asked, times=3)

    def run(cell):
        """Run a cell until it has a number: JupyterLab drops a request made before the kernel listens."""
        prompt = page.locator(".jp-CodeCell").nth(cell).locator(".jp-InputPrompt")
        for _ in range(30):
            page.locator(".jp-CodeCell").nth(cell).locator(".cm-content").click()
            page.keyboard.press("Shift+Enter")
            page.wait_for_timeout(2000)
            if "[ ]" not in prompt.inner_text():
                return
        pytest.fail(f"cell {cell} does not run")

    run(0)
    widget = page.locator(".jp-OutputArea .efflab-calculator").first
    widget.wait_for(timeout=60_000)
    slider = widget.locator("input[type=range]:visible").first
    verdict = widget.locator("[aria-live]").first.inner_text()
    slider.focus()
    for _ in range(12):
        page.keyboard.press("ArrowLeft")  # JupyterLab itself must not take the key
    assert widget.locator("[aria-live]").first.inner_text() != verdict
    # the slider's value reached Python
    run(1)
    output = page.locator(".jp-CodeCell").nth(1).locator(".jp-OutputArea-output")
    output.wait_for(timeout=30_000)
    moved = float(output.inner_text().removeprefix("m is ").strip())
    assert moved < 4096
    # and a value set in Python reaches the slider
    run(2)
    page.locator(".jp-CodeCell").nth(2).locator(".jp-OutputArea-output").wait_for(timeout=30_000)
    page.wait_for_function(
        """[...document.querySelectorAll('.efflab-calculator input:not([type=range])')]
            .some(i => i.value.startsWith('512'))""",
        timeout=30_000,
    )
    assert not watched.remote
    # a prediction saved from the widget lands in the kernel's lab book
    widget.get_by_role("button", name="Save as prediction").click()
    deadline = time.time() + 30
    while not list((folder / "labbook").glob("predictions/*.json")) and time.time() < deadline:
        page.wait_for_timeout(200)
    saved = list((folder / "labbook").glob("predictions/*.json"))
    assert len(saved) == 1
    assert json.loads(saved[0].read_text())["inputs"]["m"] == 512
