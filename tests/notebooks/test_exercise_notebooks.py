"""The exercise notebooks: the source earns every point, the learner's copy none, the copy with solutions every one."""

from __future__ import annotations

import os
import random
import re
import statistics
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbformat import v4

from efflab import notebooks, records
from efflab.exercises import progress, questions
from efflab.exercises.checks.records import command

ROOT = Path(__file__).parent.parent.parent
SOURCES = sorted((ROOT / "notebooks" / "source").glob("*.md"))


@pytest.fixture
def record(source: Path, tmp_path: Path) -> Path:
    """A record of the source's topic as another run would give it: the recorded medians, repeats that scatter anew."""
    shipped = records.recorded(source.stem)
    assert shipped, f"labs/results/{source.stem} holds no recorded run to make a learner's record from"
    draw = random.Random(source.stem)
    document = shipped[-1].model_dump(mode="json", by_alias=True) | {"id": f"{source.stem}-learner"}
    for sample in document["samples"]:
        if sample["metric"] == "time" and sample["status"] == "ok":
            middle = statistics.median(sample["values"]) * draw.gauss(1, 0.01)
            sample["values"] = [middle * draw.gauss(1, 0.01) for _ in sample["values"]]
    return records.save(records.Record.model_validate(document), tmp_path / "made")


@pytest.fixture
def labbook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty lab book, and checks that raise."""
    monkeypatch.setenv("EFFLAB_LABBOOK", str(tmp_path / "labbook"))
    monkeypatch.setenv("EFFLAB_STRICT", "1")
    progress._unsaved.clear()
    return tmp_path / "labbook"


def with_record(labbook: Path, record: Path) -> None:
    (labbook / "records").mkdir(parents=True)
    (labbook / "records" / record.name).write_bytes(record.read_bytes())


def run(notebook, folder: Path, **options):
    """Execute in a fresh kernel; return the names of the errors by cell."""
    client = NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(folder)}}, **options
    )
    client.execute(env=dict(os.environ))
    return [
        (cell.source, output.ename)
        for cell in notebook.cells
        if cell.cell_type == "code"
        for output in cell.outputs
        if output.output_type == "error"
    ]


def of_notebook(topic: str) -> list[questions.Question]:
    """The questions that are answered in the notebook: code and measurements."""
    return [q for q in questions.bank(topic).values() if q.kind in ("code", "measurement")]


def solved(topic: str) -> set[str]:
    return {name for name, entry in progress.entries().items() if entry.solved}


@pytest.mark.parametrize("source", SOURCES, ids=lambda p: p.stem)
def test_the_source_asks_every_question_of_the_bank(source: Path):
    notebook = notebooks.read(source)
    code = "\n".join(c.source for c in notebook.cells if c.cell_type == "code")
    for question in of_notebook(source.stem):
        assert f'show("{question.id}")' in code and f'check("{question.id}", ' in code
    cells = [c for c in notebook.cells if "### BEGIN SOLUTION" in c.source]  # one cell may hold several functions
    assert len(cells) == len(of_notebook(source.stem))
    words = "\n".join(c.source for c in notebook.cells if c.cell_type == "markdown")
    for heading in ("**What you'll do.**", "**What you need.**"):
        assert heading in words


@pytest.mark.parametrize("source", SOURCES, ids=lambda p: p.stem)
def test_the_learners_copy_raises_nothing_but_not_implemented_and_earns_nothing(source: Path, labbook, record):
    with_record(labbook, record)  # a record alone earns nothing: one has to say that it is checked
    notebook = notebooks.learners_copy(notebooks.read(source), source.name)
    errors = run(notebook, labbook.parent, allow_errors=True)
    expected = {"NotImplementedError", "NotWritten"}
    assert {name for _, name in errors} <= expected, errors
    assert len(errors) == len(of_notebook(source.stem))
    assert progress.points(source.stem)[0] == 0 and not progress.entries()


@pytest.mark.parametrize("source", SOURCES, ids=lambda p: p.stem)
def test_without_ci_the_unsolved_checks_speak_and_do_not_raise(source: Path, labbook, monkeypatch):
    monkeypatch.setenv("EFFLAB_STRICT", "0")
    notebook = notebooks.learners_copy(notebooks.read(source), source.name)
    errors = run(notebook, labbook.parent, allow_errors=True)
    measured = sum(q.kind == "measurement" for q in of_notebook(source.stem))
    assert [name for _, name in errors] == ["NotImplementedError"] * measured  # the cells that name a record
    said = [o.data["text/plain"] for c in notebook.cells if c.cell_type == "code" for o in c.outputs if "data" in o]
    assert sum("not counted as an attempt" in text for text in said) == len(of_notebook(source.stem)) - measured


@pytest.mark.parametrize("source", SOURCES, ids=lambda p: p.stem)
def test_the_copy_filled_with_the_solutions_earns_every_point(source: Path, labbook, record):
    """The solutions go where the copy raises, as a learner would write them."""
    with_record(labbook, record)
    full = notebooks.read(source)
    copy = notebooks.learners_copy(full, source.name)
    solutions = [c.source for c in full.cells if "### BEGIN SOLUTION" in c.source]
    places = [c for c in copy.cells if c.cell_type == "code" and "raise NotImplementedError" in c.source]
    assert len(places) == len(solutions)
    for place, solution in zip(places, solutions, strict=True):
        place.source = solution.replace("### BEGIN SOLUTION", "# mine").replace("### END SOLUTION", "# end")
    assert run(copy, labbook.parent) == []
    assert solved(source.stem) == {q.id for q in of_notebook(source.stem)}
    assert progress.points(source.stem)[0] == sum(q.points for q in of_notebook(source.stem))


@pytest.mark.parametrize("source", SOURCES, ids=lambda p: p.stem)
def test_without_a_record_the_measurement_says_how_to_make_one(source: Path, labbook):
    notebook = notebooks.read(source)
    errors = run(notebook, labbook.parent, allow_errors=True)
    assert {name for _, name in errors} == {"CheckFailed"} and all("-own-" in cell for cell, _ in errors)
    for said in (o for c in notebook.cells if "-own-" in c.source for o in c.get("outputs", []) if "ename" in o):
        assert command(source.stem) in " ".join(said.evalue.split())
        assert said.traceback == [f"CheckFailed: {said.evalue}"]


@pytest.mark.parametrize("source", SOURCES, ids=lambda p: p.stem)
def test_the_command_that_the_notebook_gives_runs_with_a_bare_path(source: Path, labbook, monkeypatch):
    """Jupyter is often started where the environment's folder of programs is not on PATH."""
    notebook = notebooks.read(source)
    words = "\n".join(c.source for c in notebook.cells if c.cell_type == "markdown")
    commands = set(re.findall(r"`(!.*?)`", words))
    assert commands == {command(source.stem)}, "the notebook names other commands than the checks do"
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    first = next(c for c in notebook.cells if c.cell_type == "code")  # its imports are all that the command may need
    asked = v4.new_code_cell(f"{command(source.stem)} --help")
    notebook.cells = [first, asked]
    assert run(notebook, labbook.parent) == []
    said = "".join(o.get("text", "") for o in asked.outputs)
    assert "usage: " in said and "--scale" in said, said


@pytest.mark.parametrize("source", SOURCES, ids=lambda p: p.stem)
def test_the_source_passes_nbval_strictly(source: Path, labbook, record, tmp_path):
    with_record(labbook, record)
    notebook = notebooks.read(source)
    assert run(notebook, tmp_path) == []
    path = tmp_path / f"{source.stem}.ipynb"
    # Progress is part of the output: start nbval from where the first run started.
    (labbook / "progress.json").unlink()
    nbformat.write(notebooks.normalise(notebook), path)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", os.devnull, "--nbval", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env={**os.environ, "CI": "1"})
    assert done.returncode == 0, done.stdout[-3000:]
    cells = sum(c.cell_type == "code" for c in notebook.cells)
    assert f"{cells} passed" in done.stdout
    assert progress.points(source.stem)[0] == sum(q.points for q in of_notebook(source.stem))


def test_nbval_fails_on_a_wrong_solution(labbook, tmp_path):
    """The strict test can fail: half of the intensity is a CheckFailed, not a printed remark."""
    notebook = notebooks.read(ROOT / "notebooks" / "source" / "roofline.md")
    last = next(i for i, c in enumerate(notebook.cells) if 'check("roofline-code-1"' in c.source)
    notebook.cells = notebook.cells[: last + 1]
    run(notebook, tmp_path)
    for c in notebook.cells:
        c.source = c.source.replace("flops = 2 * m * n * k", "flops = m * n * k")
    path = tmp_path / "wrong.ipynb"
    nbformat.write(notebooks.normalise(notebook), path)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-c",
        os.devnull,
        "--nbval-lax",
        str(path),
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env={**os.environ})
    assert done.returncode == 1 and "CheckFailed" in done.stdout
