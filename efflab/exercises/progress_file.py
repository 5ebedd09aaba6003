"""The learner's progress: what was tried, what was solved, kept in the lab book.

The file has the schema that the site exports, so either imports the other's. A merge keeps the best of both.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from efflab import records
from efflab.errors import EfflabError
from efflab.exercises import questions

SCHEMA = records.PROGRESS_SCHEMA
LONGEST_ANSWER = 200


class Entry(BaseModel):
    """One question's progress. `answer` is the text that solved it, or the last one tried."""

    model_config = ConfigDict(extra="forbid", strict=True)
    solved: bool = False
    attempts: int = Field(default=0, ge=0, le=10**9)
    points: int = Field(default=0, ge=0, le=10)
    answer: str | None = Field(default=None, max_length=LONGEST_ANSWER)

    def merged(self, other: Entry) -> Entry:
        """The best of two: solved if either is, the answer of the solved one."""
        if self.solved == other.solved:
            answer = self.answer if self.answer is not None else other.answer
        else:
            answer = self.answer if self.solved else other.answer
        return Entry(
            solved=self.solved or other.solved,
            attempts=max(self.attempts, other.attempts),
            points=max(self.points, other.points),
            answer=answer,
        )


class Document(BaseModel):
    """The file: entries by question id."""

    model_config = ConfigDict(extra="forbid", strict=True)
    schema_: str = Field(alias="schema")
    questions: dict[str, Entry]


def read(path: str | os.PathLike[str]) -> dict[str, Entry]:
    """Read a progress file, the lab book's or one that the site exported.

    Raises:
        EfflabError: missing, truncated, of another kind, of a newer schema, or damaged.
    """
    path = Path(path)
    try:
        if path.stat().st_size > records.LARGEST_FILE:
            raise EfflabError(f"{path}: too large to be a progress file.")
        raw = path.read_bytes()
    except FileNotFoundError:
        raise EfflabError(f"{path}: no such file. Check the path.") from None
    except OSError as error:
        raise EfflabError(f"{path}: cannot be read: {error.strerror}. Check the path and its permissions.") from None
    data, kind = records.parse_json(raw, str(path))
    if kind != "efflab-progress":
        raise EfflabError(f"{path}: its schema is {data['schema']!r}; a progress file has {SCHEMA!r}.")
    try:
        return Document.model_validate(data).questions
    except ValidationError as error:
        raise EfflabError(f"{path}: {records.explain(error)}") from None


def dumps(entries: dict[str, Entry]) -> str:
    """The file's text."""
    rows = {name: entry.model_dump() for name, entry in sorted(entries.items())}
    document = Document(schema=SCHEMA, questions=rows)  # type: ignore[arg-type]
    return document.model_dump_json(by_alias=True, indent=1) + "\n"


def merged(*several: dict[str, Entry]) -> dict[str, Entry]:
    """The best of several sets of entries, question by question."""
    result: dict[str, Entry] = {}
    for entries in several:
        for name, entry in entries.items():
            result[name] = result[name].merged(entry) if name in result else entry
    return result


class Progress:
    """The learner's points. It prints as a table; the lab book's file is read anew each time.

    What could not be saved is kept in memory and tried again at the next check.
    """

    def __init__(self) -> None:
        self._unsaved: dict[str, Entry] = {}
        self._kept: Path | None = None  # where the last progress that could not be saved lies instead

    def _file(self) -> dict[str, Entry]:
        path = records.LabBook().progress_path
        return read(path) if path.exists() else {}

    def entries(self) -> dict[str, Entry]:
        """Entries by question id: the file's and what could not be saved yet.

        Raises:
            EfflabError: the file in the lab book is damaged.
        """
        return merged(self._file(), self._unsaved)

    def note(self, item: questions.Question, *, right: bool, answer: str | None) -> tuple[bool, str | None]:
        """Count one attempt.

        Returns:
            Whether the question was solved before; and None, or a sentence that says why this is not on disk.
        """
        name = item.id
        try:
            before = self.entries().get(name, Entry())
        except EfflabError:
            before = self._unsaved.get(name, Entry())
        keep = before.answer if before.solved and not right else answer
        self._unsaved[name] = Entry(
            solved=before.solved or right,
            attempts=before.attempts + 1,
            points=item.points if before.solved or right else 0,
            answer=None if keep is None else keep[:LONGEST_ANSWER],
        )
        return before.solved, self._save()

    def _save(self) -> str | None:
        # Read again just before writing, so that a second notebook's points are kept too.
        try:
            path = records.LabBook().progress_path
            entries = dict(self._file())
            for name, entry in self._unsaved.items():
                entries[name] = entries[name].merged(entry) if name in entries else entry
                if not entries[name].solved:
                    entries[name] = entries[name].model_copy(update={"answer": entry.answer})
            records.write(path, dumps(entries), replace=True)
        except EfflabError as error:
            return (
                f"Progress was not saved: {self._keep_once(error)} It stays in this session's memory; "
                "progress.export('progress.json') writes it elsewhere."
            )
        self._unsaved.clear()
        self._drop_kept()
        return None

    def _keep_once(self, error: EfflabError) -> str:
        """The error's message. What it kept replaces what an earlier one kept, so that no folders pile up."""
        said, kept = str(error), getattr(error, "kept", None)
        if kept is not None:
            self._drop_kept()
            self._kept = kept
        return said

    def _drop_kept(self) -> None:
        if self._kept is not None:
            with contextlib.suppress(OSError):
                self._kept.unlink(missing_ok=True)
                self._kept.parent.rmdir()
            self._kept = None

    def export(self, path: str | os.PathLike[str]) -> str:
        """Write everything to a file that `merge` and the site's import read. Never overwrites a file.

        Raises:
            EfflabError: the file exists or cannot be written.
        """
        try:
            entries = self.entries()
        except EfflabError:
            entries = dict(self._unsaved)
            if not entries:
                raise
        target = records.write(path, dumps(entries))
        return f"{len(entries)} questions written to {target}."

    def merge(self, path: str | os.PathLike[str]) -> str:
        """Take in a file that `export` or the site wrote, keeping the best of both.

        Raises:
            EfflabError: the file is damaged, foreign or newer, or the lab book's file is damaged.
        """
        incoming = read(path)
        before = self.entries()
        self._unsaved = merged(self._unsaved, incoming)
        after = merged(before, incoming)
        gained = sum(e.solved for e in after.values()) - sum(e.solved for e in before.values())
        failed = self._save()
        said = f"{len(incoming)} questions read from {path}; {gained} newly solved."
        return f"{said} {failed}" if failed else said

    def points(self, topic: str) -> tuple[int, int]:
        """Points earned and points there are in a topic.

        Raises:
            EfflabError: unknown topic.
        """
        bank, entries = questions.bank(topic), self.entries()
        earned = sum(q.points for name, q in bank.items() if name in entries and entries[name].solved)
        return earned, sum(q.points for q in bank.values())

    def table(self, topic: str) -> str:
        """The topic's points and one line for each question."""
        bank, entries = questions.bank(topic), self.entries()
        earned, there_are = self.points(topic)
        solved = sum(name in entries and entries[name].solved for name in bank)
        lines = [f"{topic}: {earned} of {there_are} points, {solved} of {len(bank)} questions solved"]
        width = max(map(len, bank))
        for name, item in bank.items():
            entry = entries.get(name, Entry())
            state = "solved" if entry.solved else ("tried" if entry.attempts else "-")
            tries = f"{entry.attempts} attempt{'s' if entry.attempts != 1 else ''}" if entry.attempts else ""
            lines.append(f"  {name:<{width}}  {state:<6}  {item.points} pt  {item.title}  {tries}".rstrip())
        return "\n".join(lines)

    def __call__(self, topic: str | None = None) -> Progress | TopicProgress:
        """`progress("roofline")` shows that topic alone."""
        return self if topic is None else TopicProgress(self.table(topic))

    def __repr__(self) -> str:
        try:
            self.entries()
        except EfflabError as error:
            return f"Progress cannot be shown: {error}"
        tables = []
        for topic in questions.topics():
            try:
                tables.append(self.table(topic))
            except EfflabError as error:  # one broken bank leaves the others readable
                tables.append(f"{topic}: cannot be shown: {error}")
        return "\n".join(tables) or "There are no questions."


class TopicProgress(str):
    """A table that prints as itself."""

    def __repr__(self) -> str:
        return str(self)


progress = Progress()
