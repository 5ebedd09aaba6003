"""Notebooks from text: cut, executed, normalised, the same bytes each time, and stale copies found."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import nbformat
import pytest
from nbformat import v4

from efflab import notebooks
from efflab.errors import EfflabError

HEADER = """---
jupytext:
  text_representation:
    extension: .md
    format_name: myst
kernelspec:
  display_name: Python 3
  language: python
  name: python3
---

"""


def cell(code: str, *options: str) -> str:
    return "\n".join(["```{code-cell} ipython3", *options, code, "```", ""])


EXERCISE = HEADER + "# Title\n\n" + cell(
    "def f(x):\n    ### BEGIN SOLUTION: Double it.\n    return 2 * x\n    ### END SOLUTION"
) + "\n" + cell("print('the solution cell')", ":tags: [solution]") + "\n" + cell("f(3)")  # fmt: skip
LAB = HEADER + "# Lab\n\n" + cell("import os\nprint(os.environ['EFFLAB_MODE'])") + "\n" + cell(
    "from IPython.display import display, Image\n"
    "png = bytes.fromhex('89504e470d0a1a0a0000000d49484452000000010000000108060000001f15c489')\n"
    "display(Image(png, format='png', width=1))\n"
    "display({'application/vnd.jupyter.widget-view+json': {'model_id': 'abc', 'version_major': 2, 'version_minor': 0},"
    " 'text/plain': 'a widget'}, raw=True)\n"
    "40 + 2"
) + "\n" + cell("for i in range(3):\n    print(i)")  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with one lab and one exercise."""
    for kind, text in (("labs", LAB), ("notebooks", EXERCISE)):
        (tmp_path / kind / "source").mkdir(parents=True)
        (tmp_path / kind / "source" / "t.md").write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def outputs(path: Path):
    return [o for c in nbformat.read(path, 4).cells if c.cell_type == "code" for o in c.outputs]


def test_make_check_and_make_again(folder, capsys):
    assert notebooks.main(check=True) == 1
    assert "labs/t.ipynb is missing" in capsys.readouterr().err
    assert notebooks.main() == 0
    first = {p: p.read_bytes() for p in folder.glob("*/*.ipynb")}
    assert len(first) == 2
    for path in first:
        path.unlink()
    assert notebooks.main() == 0
    assert {p: p.read_bytes() for p in folder.glob("*/*.ipynb")} == first
    assert notebooks.main(check=True) == 0
    capsys.readouterr()
    assert notebooks.main() == 0
    assert capsys.readouterr().out.count("unchanged") == 2


def test_a_lab_is_executed_in_replay_and_normalised(folder):
    notebooks.main()
    path = folder / "labs" / "t.ipynb"
    text = path.read_text(encoding="utf-8")
    notebook = nbformat.read(path, 4)
    code = [c for c in notebook.cells if c.cell_type == "code"]
    assert [c.execution_count for c in code] == [1, 2, 3]
    assert [o.get("text") or o.data["text/plain"] for o in outputs(path)] == [
        "replay\n", "<IPython.core.display.Image object>", "a widget", "42", "0\n1\n2\n",
    ]  # fmt: skip
    assert {kind for o in outputs(path) for kind in o.get("data", {})} == {"text/plain"}
    assert str(folder) not in text
    assert notebook.metadata == notebooks.METADATA
    assert all(set(c.metadata) <= {"tags"} for c in notebook.cells)
    assert len({c.id for c in notebook.cells}) == len(notebook.cells)


def test_the_learners_copy_has_no_solution(folder):
    notebooks.main()
    path = folder / "notebooks" / "t.ipynb"
    text = path.read_text(encoding="utf-8")
    assert "return 2 * x" not in text and "the solution cell" not in text and "SOLUTION" not in text
    assert 'raise NotImplementedError(\\"Double it.\\")' in text
    code = [c for c in nbformat.read(path, 4).cells if c.cell_type == "code"]
    assert [c.execution_count for c in code] == [None, None] and not outputs(path)


def change_the_source(folder: Path) -> None:
    source = folder / "notebooks/source/t.md"
    source.write_text(source.read_text() + "\nMore.\n", encoding="utf-8")


def change_an_output(folder: Path) -> None:
    lab = folder / "labs/t.ipynb"
    lab.write_text(lab.read_text().replace("42", "43"), encoding="utf-8")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (change_the_source, "notebooks/t.ipynb is not what notebooks/source/t.md gives"),
        (change_an_output, "labs/t.ipynb is not what labs/source/t.md gives"),
        (lambda f: (f / "labs/t.ipynb").unlink(), "labs/t.ipynb is missing"),
        (lambda f: shutil.copy(f / "labs/t.ipynb", f / "labs/old.ipynb"), "labs/old.ipynb has no source"),
    ],
)
def test_a_stale_copy_is_found_and_named(folder, capsys, spoil, said):
    notebooks.main()
    spoil(folder)
    assert notebooks.main(check=True) == 1
    err = capsys.readouterr().err
    assert said in err and "make notebooks" in err and len(err.splitlines()) == 1


def test_a_failing_lab_names_its_cell_and_writes_nothing(folder):
    source = folder / "labs/source/t.md"
    source.write_text(source.read_text() + "\n" + cell("1 / 0"), encoding="utf-8")
    with pytest.raises(
        EfflabError, match=r"(?s)labs.source.t\.md: a cell failed\..*1 / 0.*ZeroDivisionError"
    ) as caught:
        notebooks.main()
    assert "\x1b" not in str(caught.value)
    assert not (folder / "labs/t.ipynb").exists()


def test_a_lab_book_of_the_reader_is_not_touched(folder, monkeypatch, tmp_path):
    book = tmp_path / "mine"
    monkeypatch.setenv("EFFLAB_LABBOOK", str(book))
    source = folder / "labs/source/t.md"
    code = (
        "from efflab.records import LabBook\nbook = LabBook()\nbook.path.mkdir()\nprint(len(list(book.path.iterdir())))"
    )
    source.write_text(HEADER + cell(code), encoding="utf-8")
    notebooks.main()
    assert not book.exists()


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("### BEGIN SOLUTION\nx = 1", "line 1: '### BEGIN SOLUTION' without"),
        ("x = 1\n### END SOLUTION", "line 2: '### END SOLUTION' without"),
        ("### BEGIN SOLUTION\n### BEGIN SOLUTION\n### END SOLUTION", "line 2: a solution begins inside"),
        ("### begin solution\nx = 1\n### END SOLUTION", "line 1: write '### BEGIN SOLUTION'"),
        ("x = 1  ### BEGIN SOLUTION\n### END SOLUTION", "line 1: write"),
        ("###BEGIN SOLUTION\n### END SOLUTION", "line 1: write"),
    ],
)
def test_a_solution_that_would_leak_is_refused(source, said):
    with pytest.raises(EfflabError) as caught:
        notebooks.cut(source, "x.md, cell 3")
    assert str(caught.value).startswith("x.md, cell 3, ") and said in str(caught.value)


@pytest.mark.parametrize("message", ["Write it.", 'Write: record = "newest"', "Don't stop.", r"C:\new", "a" * 80])
def test_the_copy_runs_and_raises_the_message(message):
    code = notebooks.cut(f"def f():\n    ### BEGIN SOLUTION: {message}\n    return 1\n    ### END SOLUTION", "x")
    scope: dict = {}
    exec(code, scope)
    with pytest.raises(NotImplementedError) as caught:
        scope["f"]()
    assert str(caught.value) == message


def test_several_solutions_in_one_cell():
    source = "a = 1\n### BEGIN SOLUTION\nb = 2\n### END SOLUTION\nc = 3\nif c:\n"
    source += "\t### BEGIN SOLUTION\n\td = 4\n\t### END SOLUTION"
    cut = notebooks.cut(source, "x").splitlines()
    assert [line for line in cut if "raise" not in line] == ["a = 1", "c = 3", "if c:"]
    assert cut[-1].startswith("\traise NotImplementedError(")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("# No header\n", "names no jupytext format"),
        (HEADER + "# Only words\n", "no code cell"),
        (HEADER.replace("myst", "markdown") + cell("1"), "the header does not say 'format_name: myst'"),
    ],
)
def test_a_source_of_another_format_is_refused(tmp_path, text, said):
    (tmp_path / "t.md").write_text(text, encoding="utf-8")
    with pytest.raises(EfflabError, match=said):
        notebooks.read(tmp_path / "t.md")
    with pytest.raises(EfflabError, match="cannot be read"):
        notebooks.read(tmp_path / "none.md")


def test_jupytext_markdown_is_read_too(tmp_path):
    text = HEADER.replace("myst", "markdown") + '```python tags=["solution"]\nx = 1\n```\n\n```python\ny = 2\n```\n'
    (tmp_path / "t.md").write_text(text, encoding="utf-8")
    copy = notebooks.learners_copy(notebooks.read(tmp_path / "t.md"), "t")
    assert [c.source for c in copy.cells if c.cell_type == "code"] == ["y = 2"]


def test_cells_with_one_content_get_two_ids():
    cells = [v4.new_code_cell("1"), v4.new_code_cell("1"), v4.new_markdown_cell("1")]
    made = notebooks.normalise(v4.new_notebook(cells=cells))
    assert len({c.id for c in made.cells}) == 3
    # An id depends on the content and not on the place, so that a new cell changes no other.
    more = notebooks.normalise(v4.new_notebook(cells=[v4.new_markdown_cell("new"), v4.new_markdown_cell("1")]))
    assert more.cells[1].id == made.cells[2].id


def test_without_sources_it_says_where_to_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(notebooks, "__file__", str(tmp_path / "efflab" / "notebooks.py"))
    with pytest.raises(EfflabError, match="root of efflab's checkout"):
        notebooks.main()


def test_the_committed_notebooks_are_not_stale(root: Path):
    """As `efflab notebooks --check`, for the learner's copies; the labs take longer and have their own test."""
    for target in notebooks.targets(root):
        if not target.executed:
            assert target.path.read_text(encoding="utf-8") == notebooks.made(target), target.path.name


def test_every_code_cell_of_the_labs_was_executed(root: Path):
    """nbval passes a notebook that was never run."""
    for path in sorted((root / "labs").glob("*.ipynb")):
        code = [c for c in json.loads(path.read_text(encoding="utf-8"))["cells"] if c["cell_type"] == "code"]
        assert [c["execution_count"] for c in code] == list(range(1, len(code) + 1)), path.name
        assert not any(o["output_type"] == "error" for c in code for o in c["outputs"]), path.name
    sources = {p.stem for p in (root / "labs" / "source").glob("*.md")}
    assert {p.stem for p in (root / "labs").glob("*.ipynb")} == sources
