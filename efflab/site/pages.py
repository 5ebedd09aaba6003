"""Directives for the parts of a chapter that are data: its facts, formulas, claims, published numbers, runs."""

from __future__ import annotations

import html
import io
import json
from collections import Counter
from pathlib import Path
from typing import Any

import yaml
from docutils import nodes
from docutils.parsers.rst import directives
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from efflab import records, validation
from efflab.errors import EfflabError
from efflab.formulas import reading
from efflab.reconcile import topic as reconcile_topic
from efflab.site.tables import table
from efflab.units import NUMBER, show

VERDICTS = {"right", "wrong", "dated", "incomplete", "needs its condition"}


def setup(app: Sphinx) -> None:
    """Add the directives."""
    app.add_directive("chapter", Chapter)
    app.add_directive("formula", Formula)
    app.add_directive("claim", Claim)
    app.add_directive("published-numbers", PublishedNumbers)
    app.add_directive("recorded-runs", RecordedRuns)
    app.add_directive("recorded-plot", RecordedPlot)


class _Directive(SphinxDirective):
    def markdown(self, text: str, parent: nodes.Element) -> None:
        """Parse MyST text into `parent`."""
        source, _ = self.get_source_info()
        self.state.nested_parse(StringList(text.splitlines(), source=source), self.content_offset, parent)

    def fail(self, error: EfflabError) -> Exception:
        return self.error(str(error))


def front_matter(page: Path) -> dict[str, Any]:
    """The YAML between the first two lines "---" of a page."""
    _, _, rest = page.read_text(encoding="utf-8").partition("---\n")
    return yaml.safe_load(rest.partition("\n---\n")[0]) or {}


class Chapter(_Directive):
    """What a reader can predict after the chapter, and what it takes. Reads the page's front matter.

    The same facts feed the workshop schedules, so a chapter states its times once.
    """

    has_content = True

    def run(self) -> list[nodes.Node]:
        facts = front_matter(Path(self.env.doc2path(self.env.docname))).get("efflab")
        wanted = ("topic", "reading_minutes", "lab_minutes", "needs")
        if not facts or any(key not in facts for key in wanted):
            raise self.error(f"{{chapter}}: the page's front matter needs efflab: {{{', '.join(wanted)}}}.")
        box = nodes.container(classes=["efflab-chapter"])
        title = nodes.paragraph(classes=["efflab-chapter-title"])
        title += nodes.Text("What you will be able to predict")
        box += title
        self.markdown("\n".join(self.content), box)
        topic = facts["topic"]
        facts_line = nodes.raw(
            "",
            '<ul class="efflab-chapter-facts">'
            f"<li><b>Read</b> {int(facts['reading_minutes'])} min</li>"
            f"<li><b>Lab</b> {int(facts['lab_minutes'])} min</li>"
            f"<li><b>Needs</b> {html.escape(facts['needs'])}</li>"
            f"<li><b>Files</b> <code>notebooks/{topic}.ipynb</code> <code>labs/{topic}.ipynb</code></li>"
            "</ul>",
            format="html",
        )
        box += facts_line
        return [box]


class Formula(_Directive):
    """A formula as its docstring gives it: equation, symbols with units, source, assumptions."""

    required_arguments = 1
    final_argument_whitespace = False

    def run(self) -> list[nodes.Node]:
        try:
            read = reading.read(reading.find(self.arguments[0]))
        except EfflabError as error:
            raise self.fail(error) from None
        box = nodes.container(classes=["efflab-formula"])
        rows = []
        for parameter, symbol in read.where.items():
            if parameter in read.units:
                unit = read.units[parameter].symbol or "number"
            else:
                unit = " or ".join(json.dumps(o) for o in read.options[parameter])
            rows.append(f"* ${symbol}$ `{parameter}` ({unit})")
        text = [
            f"**{read.summary}**",
            "",
            "$$",
            read.equation,
            "$$",
            "",
            *rows,
            "",
            f"Result in {read.unit.symbol}. Assumes: {read.assumes}"
            if read.unit.symbol
            else f"Assumes: {read.assumes}",
            "",
            f"Source: {read.source}. Code: `efflab.formulas.{read.name}`",
        ]
        self.markdown("\n".join(text), box)
        return [box]


class Claim(_Directive):
    """A sentence people repeat, the verdict, and the right number."""

    required_arguments = 1
    final_argument_whitespace = True
    has_content = True
    option_spec = {"verdict": directives.unchanged_required}  # noqa: RUF012

    def run(self) -> list[nodes.Node]:
        verdict = self.options.get("verdict", "")
        if verdict not in VERDICTS:
            raise self.error(f"{{claim}}: :verdict: must be one of {', '.join(sorted(VERDICTS))}, got {verdict!r}.")
        box = nodes.container(classes=["efflab-claim", f"efflab-claim-{verdict.split()[0]}"])
        head = nodes.container(classes=["efflab-claim-head"])
        badge = nodes.inline(classes=["efflab-claim-verdict"])
        badge += nodes.Text(verdict[0].upper() + verdict[1:])
        paragraph = nodes.paragraph()
        paragraph += badge
        head += paragraph
        self.markdown(self.arguments[0], head)
        box += head
        self.markdown("\n".join(self.content), box)
        return [box]


class PublishedNumbers(_Directive):
    """The validation table of one topic, or of every topic."""

    optional_arguments = 1

    def run(self) -> list[nodes.Node]:
        try:
            rows = validation.rows(self.arguments[0] if self.arguments else None)
        except EfflabError as error:
            raise self.fail(error) from None
        if not rows:
            raise self.error(f"{{published-numbers}}: no rows for topic {self.arguments[0]!r}.")
        if differing := [r.published.id for r in rows if not r.agrees]:
            raise self.error(f"{{published-numbers}}: our formula differs from {', '.join(differing)}.")
        lines = [self._cells(r) for r in rows]
        kinds = Counter(r.published.differs.kind for r in rows if r.published.differs)
        summary = nodes.paragraph()
        summary += nodes.Text(
            f"{len(rows)} published numbers: {len(rows) - kinds.total()} agree with the formula within the stated "
            f"tolerance. The others do not follow from their source's own inputs: "
            + ", ".join(f"{kinds[k]} {k}" for k in ("misprint", "rounded", "counted otherwise") if kinds[k])
            + "."
        )
        head = ["Source", "What", "Formula", "Printed", "Ours", "Difference", "Verdict"]
        markup = table(head, lines, "Published numbers against our formulas", "efflab-published", numeric={3, 4, 5})
        return [summary, nodes.raw("", markup, format="html")]

    def _cells(self, row: validation.Row) -> list[str]:
        published, unit = row.published, row.unit
        source = html.escape(published.source.title)
        if published.source.url:
            source = f'<a href="{html.escape(published.source.url)}">{source}</a>'
        where = f"<br><small>{html.escape(published.source.where)}</small>" if published.source.where else ""
        inputs = ", ".join(f"{k} = {v}" for k, v in published.inputs.items())
        what = f"{html.escape(published.note)}<br>" if published.note else ""
        ours = show(row.ours, unit)
        badge = f'<span class="efflab-verdict efflab-verdict-{row.verdict.split()[0]}">{row.verdict}</span>'
        if published.differs:
            correct = html.escape(str(published.differs.correct))
            badge += f"<br><small>{html.escape(published.differs.why)} Correct: {correct}.</small>"
        else:
            badge += f"<br><small>within {show(published.tolerance * 100)}%</small>"
        printed = published.printed if isinstance(published.printed, str) else show(float(published.printed), NUMBER)
        return [
            source + where,
            f"{what}<small>{html.escape(inputs)}</small>",
            f"<code>{html.escape(published.formula)}</code>",
            html.escape(str(printed)),
            html.escape(ours),
            f"{row.difference * 100:+.2f}%".replace("-", "−"),
            badge,
        ]


class RecordedRuns(_Directive):
    """The recorded runs of one topic: device, date, predicted against measured, error and its explanation."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        try:
            runs = records.recorded(self.arguments[0])
            module = reconcile_topic(self.arguments[0])
        except EfflabError as error:
            raise self.fail(error) from None
        if not runs:
            raise self.error(f"{{recorded-runs}}: no recorded run of {self.arguments[0]!r}.")
        found: list[nodes.Node] = []
        for record in reversed(runs):
            section = nodes.container(classes=["efflab-run"])
            section += nodes.raw("", self._run(module, record), format="html")
            found.append(section)
        return found

    def _run(self, module: Any, record: records.Record) -> str:
        head, rows, numeric = module.table(record)
        # The last column explains; it gets the width of the table under its row.
        cells = [[html.escape(c) for c in row[:-1]] for row in rows]
        notes = [html.escape(row[-1]) for row in rows]
        banner = html.escape(module.banner(record))
        summary = html.escape(module.summary(record))
        return f'<p class="efflab-run-banner">{banner}</p><p>{summary}</p>' + table(
            [html.escape(h) for h in head[:-1]], cells, banner, "efflab-run-table", numeric, notes
        )


class RecordedPlot(_Directive):
    """The picture of a topic's newest recorded run on each device, in a light and a dark version."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        topic = self.arguments[0]
        newest = {r.environment.device: r for r in records.recorded(topic)}
        if not newest:
            raise self.error(f"{{recorded-plot}}: no recorded run of {topic!r}.")
        up = "../" * self.env.docname.count("/")
        figures = []
        for record in reversed(newest.values()):
            for theme, drawing in _drawings(topic, record).items():
                target = Path(self.env.app.outdir) / "_images" / f"{record.id}-{theme}.svg"
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_text(drawing, encoding="utf-8")
            device, day = html.escape(record.environment.device), record.created[:10]
            caption = f"Recorded on {device}, {day}. The table below holds the same numbers."
            images = "".join(
                f'<img class="only-{theme}" src="{up}_images/{record.id}-{theme}.svg" alt="{caption}" loading="lazy">'
                for theme in ("light", "dark")
            )
            figures.append(
                f'<figure class="efflab-figure"><div role="region" tabindex="0" aria-label="Plot, {device}, {day}">'
                f"{images}</div><figcaption>{caption}</figcaption></figure>"
            )
        return [nodes.raw("", "".join(figures), format="html")]


def _drawings(topic: str, record: records.Record) -> dict[str, str]:
    """The topic's plot as SVG for a light and for a dark page. Text stays text, so the files are small."""
    import matplotlib

    matplotlib.use("svg")
    from efflab import plots

    # A fixed salt keeps the ids inside the drawing, and so the built page, the same from build to build.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": record.id, "font.family": "sans-serif"}):
        figure = getattr(plots, topic)(record)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
        matplotlib.pyplot.close(figure)
    light = buffer.getvalue()
    dark = light
    for ink, paler in (("#000000", "#e6e9ee"), ("#0072b2", "#6cb6f0"), ("#b0b0b0", "#5a6270"), ("#cccccc", "#5a6270")):
        dark = dark.replace(ink, paler)
    dark = dark.replace("fill: #ffffff", "fill: #14181e")  # the grounds of the legend and the labels
    dark = dark.replace("</defs>", "<style>text { fill: #e6e9ee }</style></defs>", 1)  # text without a colour is black
    return {"light": light, "dark": dark}
