"""A text that every Python has, as tokens: one per character.

No part of it is downloaded. Paragraphs that occur twice are kept once, before the text is split: the topics of Python's
help repeat whole sections, and a fifth of them would otherwise stand in the training and in the validation text.
"""

from __future__ import annotations

import functools
import hashlib
import re
import sysconfig
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CHUNK = 2000  # characters; the text is split into training and validation text by chunks of about this many
RARE = 10  # characters that occur less often than this in the training text share one token
SKIPPED = (
    "site-packages", "dist-packages", "test", "tests", "idlelib", "tkinter", "turtledemo", "lib2to3", "distutils",
    "ensurepip", "encodings", "pydoc_data", "__pycache__",
)  # fmt: skip  # of the standard library's folders: not part of it, not installed everywhere, or tables


@dataclass(frozen=True)
class Corpus:
    """A text as tokens, one per character; token 0 stands for every rare character.

    Attributes:
        name: what text it is.
        sha256: of the text before it is split, without its repeated paragraphs.
        characters: its length.
        training, validation: its tokens.
        vocabulary: number of different tokens.
    """

    name: str
    sha256: str
    characters: int
    training: tuple[int, ...]
    validation: tuple[int, ...]
    vocabulary: int


def topics() -> list[str]:
    """The topics of Python's interactive help, sorted by name."""
    from pydoc_data.topics import topics as found

    return [found[name] for name in sorted(found)]


def library() -> list[str]:
    """The sources of the standard library's modules, sorted by path."""
    root = Path(sysconfig.get_path("stdlib"))
    kept = (p.relative_to(root) for p in root.rglob("*.py"))
    # Files with "_sysconfigdata" in their names and folders "config-…" hold what one machine's build found.
    kept = (p for p in kept if not {*p.parts} & {*SKIPPED} and not p.as_posix().startswith(("_sysconfig", "config-")))
    return [(root / p).read_text(encoding="utf-8", errors="replace") for p in sorted(kept, key=lambda p: p.as_posix())]


TEXTS: dict[str, tuple[str, Callable[[], list[str]]]] = {
    "topics": ("pydoc_data.topics", topics),
    "library": ("sources of the standard library", library),
}


def paragraphs(documents: list[str]) -> list[str]:
    """The paragraphs of some documents, each once: those that differ in white space only count as the same."""
    seen: set[str] = set()
    kept = []
    for document in documents:
        for paragraph in re.split(r"\n\s*\n", document):
            words = " ".join(paragraph.split())
            if words and words not in seen:
                seen.add(words)
                kept.append(paragraph)
    return kept


def split(kept: list[str], every: int) -> tuple[list[str], list[str]]:
    """Training and validation paragraphs: the last of every so many chunks of successive ones is for validation."""
    training: list[str] = []
    validation: list[str] = []
    size = 0
    for paragraph in kept:
        (validation if size // CHUNK % every == every - 1 else training).append(paragraph)
        size += len(paragraph) + 2
    return training, validation


def tokens_of(text: str) -> dict[str, int]:
    """The token of each character of a text, from 1 in the characters' order; rare ones have none."""
    return {c: i for i, c in enumerate(sorted(c for c, n in Counter(text).items() if n >= RARE), 1)}


@functools.lru_cache(maxsize=2)
def corpus(text: str, every: int, validation: int) -> Corpus:
    """A text that ships with Python, without its repeated paragraphs, split and as tokens."""
    name, read = TEXTS[text]
    kept = paragraphs(read())
    trained, held = ("\n\n".join(part) for part in split(kept, every))
    whole = "\n\n".join(kept)
    token = tokens_of(trained)
    return Corpus(
        name=name,
        sha256=hashlib.sha256(whole.encode()).hexdigest(),
        characters=len(whole),
        training=tuple(token.get(c, 0) for c in trained),
        validation=tuple(token.get(c, 0) for c in held[:validation]),
        vocabulary=len(token) + 1,
    )


def windows(tokens: Any, context: int) -> tuple[Any, Any]:
    """Inputs and targets of the sequences that a text is cut into; every token is the target of one sequence."""
    count = (len(tokens) - 1) // context
    return tokens[: count * context].view(count, context), tokens[1 : count * context + 1].view(count, context)
