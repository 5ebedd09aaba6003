"""The lab notebooks under nbval: replay strictly against the committed outputs, live laxly on this machine."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parents[2]
LABS = sorted((ROOT / "labs").glob("*.ipynb"))


def nbval(notebook: Path, folder: Path, mode: str, *options: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run nbval on a notebook with an empty lab book."""
    environment = {
        **os.environ,
        "EFFLAB_MODE": mode,
        "EFFLAB_LABBOOK": str(folder / "labbook"),
        "EFFLAB_STRICT": "1",
        **variables,
    }
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", os.devnull, "--rootdir", str(ROOT)]
    command += [*options, "--nbval-cell-timeout=400", str(notebook)]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=800)


def passed(done: subprocess.CompletedProcess[str]) -> int:
    """How many cells passed."""
    found = re.search(r"(\d+) passed", done.stdout)
    return int(found[1]) if found else 0


def code_cells(notebook: Path) -> int:
    return sum(c.cell_type == "code" for c in nbformat.read(notebook, 4).cells)


@pytest.mark.parametrize("notebook", LABS, ids=[p.stem for p in LABS])
def test_replay_gives_the_committed_outputs(notebook, tmp_path):
    done = nbval(notebook, tmp_path, "replay", "--nbval")
    assert done.returncode == 0, done.stdout[-4000:]
    assert passed(done) == code_cells(notebook)


@pytest.mark.parametrize("notebook", LABS, ids=[p.stem for p in LABS])
def test_a_changed_number_fails_the_replay(notebook, tmp_path):
    """The comparison is of numbers: one digit of one committed output is enough."""
    content = nbformat.read(notebook, 4)
    outputs = [
        o for c in content.cells if c.cell_type == "code" for o in c.outputs if re.search(r"\d\.\d", o.get("text", ""))
    ]
    digit = re.search(r"\d\.(\d)", outputs[-1]["text"])
    at = digit.start(1)
    outputs[-1]["text"] = outputs[-1]["text"][:at] + str((int(digit[1]) + 1) % 10) + outputs[-1]["text"][at + 1 :]
    changed = tmp_path / notebook.name
    nbformat.write(content, changed)
    done = nbval(changed, tmp_path, "replay", "--nbval")
    assert done.returncode == 1 and passed(done) == code_cells(notebook) - 1, done.stdout[-3000:]


@pytest.mark.parametrize("notebook", LABS, ids=[p.stem for p in LABS])
def test_live_runs_every_cell_on_this_machine(notebook, tmp_path):
    done = nbval(notebook, tmp_path, "live", "--nbval-lax")
    assert done.returncode == 0, done.stdout[-4000:]
    assert passed(done) == code_cells(notebook)
    (record,) = (tmp_path / "labbook/records").glob("*.json")
    written = json.loads(record.read_text())
    assert written["topic"] == notebook.stem and written["finished"]
    assert {s["status"] for s in written["samples"]} == {"ok"}, [s for s in written["samples"] if s["status"] != "ok"]
    assert list((tmp_path / "labbook/predictions").glob("*.json")), "the lab saved no prediction"
