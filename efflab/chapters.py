"""The chapters of the book: the table of contents with each page's front matter.

Pages, tests, `make bench`, schedules and exams read the chapters from here, so a new chapter is one line in
`_toc.yml` and one block of front matter.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from efflab import yamlfile
from efflab.errors import EfflabError

ROOT = Path(__file__).parents[1]


class Chapter(BaseModel):
    """One chapter.

    Attributes:
        topic: the topic word that names its files everywhere.
        part: caption of its part in the table of contents.
        title: its heading.
        page: the page's file.
        reading_minutes, lab_minutes: what a learner needs.
        needs: what the lab needs, in words.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    topic: str = Field(pattern=r"^[a-z][a-z_]*$")
    part: str
    title: str
    page: Path
    reading_minutes: int = Field(gt=0, le=240)
    lab_minutes: int = Field(gt=0, le=240)
    needs: str = Field(min_length=3)


def front_matter(page: Path) -> dict[str, object]:
    """The YAML between the first two lines "---" of a page; empty where there is none."""
    import yaml

    text = page.read_text(encoding="utf-8")
    if not text.startswith("---\n"):
        return {}
    return yaml.safe_load(text[4:].partition("\n---\n")[0]) or {}


def read(page: Path, part: str = "") -> Chapter | None:
    """The chapter that a page is, None where its front matter has no `efflab`.

    Raises:
        EfflabError: the front matter lacks a field, or names another topic than the file does.
    """
    facts = front_matter(page).get("efflab")
    if facts is None:
        return None
    if not isinstance(facts, dict):
        raise EfflabError(
            f"{page.name}: front matter 'efflab' must hold topic, reading_minutes, lab_minutes and needs."
        )
    heading = re.search(r"^# (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    try:
        chapter = Chapter(part=part, title=heading[1] if heading else page.stem, page=page, **facts)
    except ValidationError as error:
        first = error.errors()[0]
        raise EfflabError(
            f"{page.name}: front matter: efflab.{'.'.join(map(str, first['loc']))}: {first['msg']}."
        ) from None
    if chapter.topic != page.stem:
        raise EfflabError(
            f"{page.name}: front matter: efflab.topic is {chapter.topic!r}; it must be the file's name, {page.stem!r}."
        )
    return chapter


@cache
def every() -> tuple[Chapter, ...]:
    """The chapters in the order of the table of contents."""
    toc = yamlfile.read(ROOT / "_toc.yml")
    found = [read(ROOT / f"{entry['file']}.md", part["caption"]) for part in toc["parts"] for entry in part["chapters"]]
    return tuple(c for c in found if c)


def pages() -> list[str]:
    """Every page of the book without its suffix, such as "book/roofline", the first one first."""
    toc = yamlfile.read(ROOT / "_toc.yml")
    return [toc["root"], *(entry["file"] for part in toc["parts"] for entry in part["chapters"])]
