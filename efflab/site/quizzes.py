"""The `{quiz}` directive: a question of the bank in a page.

    ```{quiz} roofline-1
    ```

The page is complete without a script: it reads as text, with a sentence that checking needs JavaScript. The
question's text is parsed as the page's own Markdown, so mathematics and code render as they do around it.
Answers and feedback are sealed (efflab/exercises/sealing.py).
"""

from __future__ import annotations

import json
from html import escape
from typing import Any

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

from efflab.errors import EfflabError
from efflab.exercises import questions
from efflab.exercises.questions import Choice, Measurement, Numeric, Question
from efflab.exercises.sealing import seal

logger = logging.getLogger(__name__)
NO_SCRIPT = "Checking an answer needs JavaScript."


class QuizDirective(SphinxDirective):
    """`{quiz} id`."""

    required_arguments = 1
    has_content = False

    def run(self) -> list[nodes.Node]:
        name = self.arguments[0].strip()
        try:
            item = questions.question(name)
        except EfflabError as error:
            raise self.error(f"quiz: {error}") from None
        self.env.note_dependency(str(questions.FOLDER / f"{item.topic}.yml"))
        seen = self.env.temp_data.setdefault("efflab_quizzes", [])
        if name in seen:
            raise self.error(f"quiz: {name} is on this page twice. Show each question once.")
        seen.append(name)
        return self.rendered(item, len(seen))

    def rendered(self, item: Question, number: int) -> list[nodes.Node]:
        """`number` is the question's place on its page. Its id, which has gaps there, is for `check`."""
        ident = f"quiz-{item.id}"
        wrong = f' data-wrong="{escape(item.wrong)}"' if isinstance(item, Numeric) else ""
        points = f"{item.points} point{'' if item.points == 1 else 's'}"
        legend = (
            f'<span class="efflab-quiz-title" id="{ident}-title">'
            f'<span class="efflab-quiz-number">Question {number}.</span> {escape(item.title)}</span> '
            f'<span class="efflab-quiz-meta"><span>{points}</span> <code class="efflab-quiz-id">{item.id}</code> '
            '<span class="efflab-quiz-badge"></span></span>'
        )
        start = f'<div class="efflab-quiz" id="{ident}" data-question="{item.id}"{wrong}>\n'
        if not isinstance(item, Choice | Numeric):
            argument = "" if isinstance(item, Measurement) else ", your_function"
            return [
                html(f'{start}<div class="efflab-quiz-body"><p class="efflab-quiz-legend">{legend}</p>\n'),
                *self.parsed(item.text),
                html(
                    '<p class="efflab-quiz-elsewhere">Answer this one in the exercise notebook: '
                    f"<code>check(&quot;{item.id}&quot;{argument})</code></p></div></div>\n"
                ),
            ]
        parts = [
            html(
                f'{start}<form autocomplete="off"><fieldset class="efflab-quiz-body" disabled>'
                f'<legend class="efflab-quiz-legend">{legend}</legend>\n'
            ),
            *self.parsed(item.text),
        ]
        parts += self.listed(item, ident) if isinstance(item, Choice) else [html(field(item, ident))]
        parts += [
            html(
                '<div class="efflab-quiz-actions" data-needs-script hidden>'
                '<button type="submit" class="efflab-quiz-button">Check</button> '
                '<button type="button" class="efflab-quiz-button efflab-quiz-hint is-quiet">Hint</button></div>\n'
                '<div aria-live="polite"><ol class="efflab-quiz-hints" hidden>\n'
            )
        ]
        for hint in item.hints:
            parts += [html("<li hidden>"), self.phrase(hint), html("</li>\n")]
        data = json.dumps(seal(item), separators=(",", ":")).replace("</", "<\\/")
        parts += [
            html(
                f'</ol></div>\n<p class="efflab-quiz-feedback" role="status" id="{ident}-feedback"></p>\n'
                f'<p class="efflab-quiz-nojs">{NO_SCRIPT}</p></fieldset></form>\n'
                f'<script type="application/json">{data}</script></div>\n'
            )
        ]
        return parts

    def listed(self, item: Choice, ident: str) -> list[nodes.Node]:
        parts: list[nodes.Node] = [html('<div class="efflab-quiz-options">\n')]
        for letter, option in item.ordered.items():
            parts += [
                html(
                    f'<label class="efflab-quiz-option"><input type="radio" name="{ident}" value="{letter}"> '
                    f'<span class="efflab-quiz-letter">{letter}</span> '
                ),
                self.phrase(option.text),
                html("</label>\n"),
            ]
        return [*parts, html("</div>\n")]

    def parsed(self, text: str) -> list[nodes.Node]:
        """Blocks of Markdown."""
        holder = nodes.container()
        self.state.nested_parse(StringList(text.splitlines(), self.get_source_info()[0]), self.content_offset, holder)
        return holder.children

    def phrase(self, text: str) -> nodes.Node:
        """One paragraph of Markdown as a phrase, which may stand inside a label."""
        blocks = self.parsed(text)
        if len(blocks) != 1 or not isinstance(blocks[0], nodes.paragraph):
            raise self.error(f"quiz: an option or a hint must be one paragraph: {text!r}")
        return nodes.inline("", "", *blocks[0].children, classes=["efflab-quiz-phrase"])


def field(item: Numeric, ident: str) -> str:
    """The text field of a numeric question."""
    return (
        f'<p class="efflab-quiz-field"><label for="{ident}-input">Your answer</label> '
        f'<input class="efflab-quiz-input" id="{ident}-input" type="text" maxlength="200" spellcheck="false" '
        f'autocapitalize="off" autocomplete="off" aria-describedby="{ident}-unit {ident}-feedback"> '
        f'<span class="efflab-quiz-unit" id="{ident}-unit">{escape(item.wanted)}</span></p>\n'
    )


def html(text: str) -> nodes.raw:
    """HTML that other builders leave out."""
    return nodes.raw("", text, format="html")


def setup(app: Sphinx) -> dict[str, Any]:
    """Add the directive. The site's extension writes the script and the style."""
    app.add_directive("quiz", QuizDirective)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
