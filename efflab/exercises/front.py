"""The quizzes' script and style, as the site writes them into its own files."""

from __future__ import annotations

import json
from pathlib import Path

from efflab.errors import EfflabError
from efflab.exercises import questions

HERE = Path(__file__).parent
NACL = "tweetnacl/nacl-fast.min.js"


def nacl_script(path: Path | None = None) -> Path:
    """The path of TweetNaCl's script, which 'make assets' installs in the version that package.json pins.

    Raises:
        EfflabError: not installed.
    """
    places = [path] if path else [root / "node_modules" / NACL for root in (Path.cwd(), HERE.parent.parent)]
    for place in places:
        if place.is_file():
            return place
    raise EfflabError(f"{places[0]}: no such file. Run 'make assets', which installs what package.json lists.")


def script(path: Path | None = None) -> str:
    """One classic script: TweetNaCl, the reader of quantities, the points and the quiz. Adds one global, `efflabQuiz`.

    Args:
        path: TweetNaCl's nacl-fast.min.js; None looks in node_modules.

    Raises:
        EfflabError: TweetNaCl is not installed, or a bank does not validate.
    """
    nacl = nacl_script(path).read_text(encoding="utf-8")
    tables = {
        # Points only: a chapter's total needs to know which questions there are.
        "topics": {topic: {q.id: q.points for q in questions.bank(topic).values()} for topic in questions.topics()},
    }
    quiz = (HERE / "quiz.js").read_text(encoding="utf-8")
    # It runs after `efflab.calculators.bundle.units_script()`, which defines `efflabUnits` for the whole page.
    # TweetNaCl takes `module` where there is one, so it stays inside this function.
    return (
        "globalThis.efflabQuiz = (function () {\n"
        "const module = { exports: {} };\n"
        f"{nacl}\n"
        "const nacl = module.exports;\n"
        "const QUANTITIES = globalThis.efflabUnits;\n"
        f"const TABLES = {json.dumps(tables, ensure_ascii=False, separators=(',', ':'))};\n"
        f"{quiz}\n"
        "})();\n"
    )


def style() -> str:
    """The quizzes' style sheet."""
    return (HERE / "quiz.css").read_text(encoding="utf-8")
