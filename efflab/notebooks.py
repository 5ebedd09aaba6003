"""Notebooks from their text sources: labs executed in replay, exercises as the learner's copy.

    labs/source/<topic>.md       -> labs/<topic>.ipynb, executed with EFFLAB_MODE=replay
    notebooks/source/<topic>.md  -> notebooks/<topic>.ipynb, not executed, solutions cut

The text is the source; an .ipynb is never edited by hand. What is written depends on nothing but the sources and
the library: cell ids come from their content, execution counts are sequential, images and widget views are
dropped, and no version of Python is named. Made twice, a notebook has the same bytes.

In a source a solution stands between the lines `### BEGIN SOLUTION` and `### END SOLUTION`; the learner's copy has
`raise NotImplementedError(...)` instead. Text after `BEGIN SOLUTION:` becomes its message. A cell with the tag
`solution` is left out.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from efflab import records
from efflab.errors import EfflabError

BEGIN = re.compile(r"^(?P<indent>[ \t]*)### BEGIN SOLUTION(?:: *(?P<message>.+?))?[ \t]*$")
END = re.compile(r"^[ \t]*### END SOLUTION[ \t]*$")
MARKER = re.compile(r"###\s*(BEGIN|END)\s+SOLUTION", re.IGNORECASE)
MESSAGE = "Write your solution in place of this line."
TIMEOUT = 600  # s, of one cell
KEPT = ("text/plain", "text/markdown", "text/html", "text/latex", "application/json")
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


@dataclass(frozen=True)
class Target:
    """One notebook to make."""

    source: Path
    path: Path
    executed: bool


def root() -> Path:
    """The repository's root: this folder if it has notebooks, else the checkout that efflab is installed from.

    Raises:
        EfflabError: neither has sources.
    """
    for folder in (Path.cwd(), Path(__file__).resolve().parent.parent):
        if any((folder / kind / "source").is_dir() for kind in ("labs", "notebooks")):
            return folder
    raise EfflabError("notebooks: no labs/source or notebooks/source here. Run it in the root of efflab's checkout.")


def targets(folder: Path) -> list[Target]:
    """Every notebook that has a source; the labs last, since they take longer and may fail."""
    found = []
    for kind in ("notebooks", "labs"):
        for source in sorted((folder / kind / "source").glob("*.md")):
            found.append(Target(source, folder / kind / f"{source.stem}.ipynb", executed=kind == "labs"))
    return found


def read(source: Path) -> Any:
    """A text source as a notebook.

    Raises:
        EfflabError: missing, or not a source that jupytext reads.
    """
    import jupytext

    try:
        text = source.read_text(encoding="utf-8")
    except OSError as error:
        raise EfflabError(f"{source}: cannot be read: {error.strerror}.") from None
    if not re.match(r"---\n(.*\n)*?jupytext:", text):
        raise EfflabError(f"{source}: the header names no jupytext format. Begin it as the other sources do.")
    myst = re.search(r"^ *format_name: *myst *$", text, re.MULTILINE) is not None
    if not myst and re.search(r"^```{code-cell}", text, re.MULTILINE):
        raise EfflabError(f"{source}: it has MyST code cells, but the header does not say 'format_name: myst'.")
    try:
        notebook = jupytext.reads(text, fmt="md:myst" if myst else "md")
    except Exception as error:  # jupytext raises what its parsers raise
        raise EfflabError(f"{source}: not a notebook that jupytext reads: {error}") from None
    if not any(cell.cell_type == "code" for cell in notebook.cells):
        raise EfflabError(f"{source}: it has no code cell. Is its format the one that the header names?")
    return notebook


def learners_copy(notebook: Any, name: str) -> Any:
    """The notebook without its solutions, outputs and execution counts.

    Raises:
        EfflabError: BEGIN and END do not pair; names the notebook and the cell.
    """
    from nbformat import v4

    cells = []
    for number, cell in enumerate(notebook.cells, 1):
        if "solution" in cell.metadata.get("tags", []):
            continue
        source = cut(cell.source, f"{name}, cell {number}") if cell.cell_type == "code" else cell.source
        make = {"code": v4.new_code_cell, "markdown": v4.new_markdown_cell, "raw": v4.new_raw_cell}[cell.cell_type]
        cells.append(make(source, metadata=dict(cell.metadata)))
    return v4.new_notebook(cells=cells, metadata=dict(notebook.metadata))


def cut(source: str, name: str) -> str:
    """Replace each solution of a code cell by `raise NotImplementedError(...)`, indented as the solution was.

    Raises:
        EfflabError: a BEGIN without END, an END without BEGIN, one inside another, or a marker that is misspelled.
    """
    lines, open_at = [], None
    for number, line in enumerate(source.split("\n"), 1):
        begin, end = BEGIN.match(line), END.match(line)
        if begin:
            if open_at is not None:
                raise EfflabError(f"{name}, line {number}: a solution begins inside the one that begins at {open_at}.")
            open_at = number
            message = begin["message"] or MESSAGE
            literal = repr(message) if '"' in message else json.dumps(message, ensure_ascii=False)
            lines.append(f"{begin['indent']}raise NotImplementedError({literal})")
        elif end:
            if open_at is None:
                raise EfflabError(f"{name}, line {number}: '### END SOLUTION' without its '### BEGIN SOLUTION'.")
            open_at = None
        elif MARKER.search(line):
            raise EfflabError(f"{name}, line {number}: write '### BEGIN SOLUTION' or '### END SOLUTION', got {line!r}.")
        elif open_at is None:
            lines.append(line)
    if open_at is not None:
        raise EfflabError(f"{name}, line {open_at}: '### BEGIN SOLUTION' without its '### END SOLUTION'.")
    return "\n".join(lines)


def execute(notebook: Any, folder: Path, name: str, **environment: str) -> Any:
    """Run every cell in a fresh kernel of this Python, in `folder`, with an empty lab book of its own.

    Args:
        notebook: changed in place and returned.
        folder: the kernel's working folder.
        name: for errors.
        environment: variables for the kernel.

    Raises:
        EfflabError: a cell failed or took too long; names it and shows what it raised.
    """
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

    with tempfile.TemporaryDirectory(prefix="efflab-notebooks-") as scratch:
        variables = {
            **os.environ,
            "EFFLAB_LABBOOK": str(Path(scratch) / "labbook"),
            "EFFLAB_STRICT": "1",
            "PYTHONHASHSEED": "0",
            "COLUMNS": "100",
            "NO_COLOR": "1",
            **environment,
        }
        client = NotebookClient(
            notebook,
            timeout=TIMEOUT,
            kernel_name="python3",
            resources={"metadata": {"path": str(folder)}},
            coalesce_streams=True,
            record_timing=False,
        )
        try:
            client.execute(env=variables, cwd=str(folder))
        except CellExecutionError as error:
            raise EfflabError(f"{name}: a cell failed.\n{_plain(str(error)).strip()}") from None
        except (CellTimeoutError, DeadKernelError) as error:
            raise EfflabError(f"{name}: {_plain(str(error)).strip()}") from None
    return notebook


def normalise(notebook: Any) -> Any:
    """Drop what differs from run to run or machine to machine. Changes the notebook in place and returns it."""
    notebook.metadata.clear()
    notebook.metadata.update({k: dict(v) for k, v in METADATA.items()})
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    seen: dict[str, int] = {}
    count = 0
    for cell in notebook.cells:
        tags = cell.metadata.get("tags")
        cell.metadata.clear()
        if tags:
            cell.metadata["tags"] = sorted(tags)
        key = f"{cell.cell_type}\0{cell.source}"
        seen[key] = seen.get(key, 0) + 1  # the same cell twice gets two ids
        cell["id"] = hashlib.sha256(f"{key}\0{seen[key]}".encode()).hexdigest()[:12]
        cell.pop("attachments", None)
        if cell.cell_type != "code":
            continue
        if cell.execution_count is not None:
            count += 1
            cell.execution_count = count
        cell.outputs = list(_outputs(cell.outputs, cell.execution_count))
    return notebook


def _outputs(outputs: list[Any], count: int | None) -> Iterator[Any]:
    for output in outputs:
        if "data" in output:
            kept = {kind: output["data"][kind] for kind in KEPT if kind in output["data"]}
            if any(kind.startswith("application/vnd.jupyter.widget") for kind in output["data"]):
                # The view is an id in this kernel; its fallback text may be all that remains.
                kept = {kind: text for kind, text in kept.items() if kind == "text/plain"}
            if not kept:
                continue
            output["data"] = kept
            output["metadata"] = {}
        if output.output_type == "execute_result":
            output["execution_count"] = count
        yield output


def _plain(text: str) -> str:
    """Without the escape sequences that colour a traceback."""
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def dumps(notebook: Any) -> str:
    """The notebook's file as text."""
    import nbformat

    nbformat.validate(notebook)
    return nbformat.writes(notebook, version=4).rstrip("\n") + "\n"


def made(target: Target) -> str:
    """What the target's file should hold.

    Raises:
        EfflabError: the source is wrong, or a cell of a lab fails.
    """
    notebook = read(target.source)
    if target.executed:
        execute(notebook, target.path.parent, str(target.source), EFFLAB_MODE="replay")
    else:
        notebook = learners_copy(notebook, str(target.source))
    return dumps(normalise(notebook))


def stale(folder: Path) -> list[str]:
    """One sentence for each notebook that is missing, differs from its source, or has none."""
    found, known = [], set()
    for target in targets(folder):
        known.add(target.path)
        name = target.path.relative_to(folder).as_posix()
        if not target.path.exists():
            found.append(f"{name} is missing.")
        elif target.path.read_bytes() != made(target).encode():
            found.append(f"{name} is not what {target.source.relative_to(folder).as_posix()} gives.")
    for kind in ("labs", "notebooks"):
        for path in sorted((folder / kind).glob("*.ipynb")):
            if path not in known:
                found.append(f"{path.relative_to(folder).as_posix()} has no source in {kind}/source.")
    return found


def main(check: bool = False) -> int:
    """Make every notebook, or with `check` only compare. Returns the exit status: 1 if a notebook is stale.

    Raises:
        EfflabError: a source is wrong, a cell fails, or a file cannot be written.
    """
    folder = root()
    if check:
        problems = stale(folder)
        for problem in problems:
            print(f"{problem} Run 'make notebooks' and commit the result.", file=sys.stderr)
        if not problems:
            print(f"{len(targets(folder))} notebooks agree with their sources.")
        return 1 if problems else 0
    for target in targets(folder):
        text = made(target)
        name = target.path.relative_to(folder).as_posix()
        if target.path.exists() and target.path.read_bytes() == text.encode():
            print(f"{name}: unchanged")
        else:
            records.write(target.path, text, replace=True)
            print(f"{name}: written")
    return 0
