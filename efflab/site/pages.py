"""Directives for the parts of a chapter that are data: its facts, formulas, claims, published numbers, runs."""

from __future__ import annotations

import html
import io
import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.parsers.rst import directives
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from efflab import catalog, chapters, records, validation
from efflab.errors import EfflabError
from efflab.formulas import reading, transformer
from efflab.reconcile import energy_text
from efflab.reconcile import topic as reconcile_topic
from efflab.site.tables import table
from efflab.units import BYTE_PER_SECOND, FLOP_PER_BYTE, FLOP_PER_SECOND, NUMBER, Unit, show

VERDICTS = {"right", "wrong", "dated", "incomplete", "needs its condition"}


def setup(app: Sphinx) -> None:
    """Add the directives."""
    app.add_directive("chapter", Chapter)
    app.add_directive("formula", Formula)
    app.add_directive("claim", Claim)
    app.add_directive("published-numbers", PublishedNumbers)
    app.add_directive("recorded-runs", RecordedRuns)
    app.add_directive("recorded-plot", RecordedPlot)
    app.add_directive("accelerators", Accelerators)
    app.add_directive("models", Models)


class _Directive(SphinxDirective):
    def markdown(self, text: str, parent: nodes.Element) -> None:
        """Parse MyST text into `parent`."""
        source, _ = self.get_source_info()
        self.state.nested_parse(StringList(text.splitlines(), source=source), self.content_offset, parent)

    def fail(self, error: EfflabError) -> Exception:
        return self.error(str(error))


class Chapter(_Directive):
    """What a reader can predict after the chapter, and what it takes. Reads the page's front matter.

    The same facts feed the workshop schedules, so a chapter states its times once.
    """

    has_content = True

    def run(self) -> list[nodes.Node]:
        try:
            chapter = chapters.read(Path(self.env.doc2path(self.env.docname)))
        except EfflabError as error:
            raise self.fail(error) from None
        if chapter is None:
            raise self.error("{chapter}: the page's front matter has no 'efflab' with topic, minutes and needs.")
        box = nodes.container(classes=["efflab-chapter"])
        title = nodes.paragraph(classes=["efflab-chapter-title"])
        title += nodes.Text("What you will be able to predict")
        box += title
        self.markdown("\n".join(self.content), box)
        topic = chapter.topic
        facts_line = nodes.raw(
            "",
            '<ul class="efflab-chapter-facts">'
            f"<li><b>Read</b> {chapter.reading_minutes} min</li>"
            f"<li><b>Lab</b> {chapter.lab_minutes} min</li>"
            f"<li><b>Needs</b> {html.escape(chapter.needs)}</li>"
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
                unit = read.units[parameter].base or "number"
            else:
                unit = " or ".join(json.dumps(o) for o in read.options[parameter])
            rows.append(f"* ${symbol}$ `{parameter}` ({unit})")
        text = [
            f"**{read.summary.removesuffix('.')}**",
            "",
            "$$",
            read.equation,
            "$$",
            "",
            *rows,
            "",
            f"Result in {read.unit.base}. Assumes: {read.assumes}" if read.unit.base else f"Assumes: {read.assumes}",
            "",
            f"Source: {linked(read.source)}. Code: `efflab.formulas.{read.name}`",
        ]
        self.markdown("\n".join(text), box)
        return [box]


def linked(source: str) -> str:
    """A source's text as Markdown, with its DOI and arXiv number as links."""
    source = re.sub(r"doi:(10\.\S+?)(?=[;,.]?(?:\s|$))", r"[doi:\1](https://doi.org/\1)", source)
    return re.sub(r"arXiv:(\d{4}\.\d{5})", r"[arXiv:\1](https://arxiv.org/abs/\1)", source)


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


def by_chapter(directive: _Directive, make: Callable[[str], list[nodes.Node]]) -> list[nodes.Node]:
    """A section per chapter where the directive has no argument, else the one topic's nodes."""
    if directive.arguments:
        return make(directive.arguments[0])
    found: list[nodes.Node] = []
    for chapter in chapters.every():
        section = nodes.section(ids=[nodes.make_id(chapter.topic)])
        section += nodes.title("", chapter.title)
        section.extend(make(chapter.topic))
        found.append(section)
    return found


class PublishedNumbers(_Directive):
    """The validation table of one topic, or a section for every chapter."""

    optional_arguments = 1

    def run(self) -> list[nodes.Node]:
        return by_chapter(self, self.topic)

    def topic(self, topic: str) -> list[nodes.Node]:
        try:
            rows = validation.rows(topic)
        except EfflabError as error:
            raise self.fail(error) from None
        if not rows:
            raise self.error(f"{{published-numbers}}: no rows for topic {topic!r}.")
        if differing := [r.published.id for r in rows if not r.agrees]:
            raise self.error(f"{{published-numbers}}: our formula differs from {', '.join(differing)}.")
        kinds = Counter(r.published.differs.kind for r in rows if r.published.differs)
        used = {r.published.formula for r in rows}
        formulas = {reading.read(f).name for f in reading.every()}
        anywhere = Counter((r.formula.partition(".")[0], r.topic) for r in catalog.published())
        # A module that several topics use is named where most of its rows stand.
        modules = {
            m
            for m, t in anywhere
            if t == topic and anywhere[m, t] == max(anywhere[n, s] for n, s in anywhere if n == m)
        }
        known = {r.formula for r in catalog.published()}
        others = sorted(f for f in formulas - known if f.partition(".")[0] in modules)
        box = nodes.container()
        self.markdown(
            f"{len(rows)} published numbers, {len(used)} formulas. {len(rows) - kinds.total()} agree with the formula "
            "within the stated tolerance. The others do not follow from their source's own inputs: "
            + ", ".join(
                f"{kinds[k]} {k}{'s' * (k == 'misprint' and kinds[k] > 1)}"
                for k in ("misprint", "rounded", "counted otherwise")
                if kinds[k]
            )
            + ".\n\n"
            + "We know no published number with its inputs for " * bool(others)
            + ", ".join(f"`{o.partition('.')[2]}`" for o in others)
            + ". Their tests take another way to the same number, such as counting one by one." * bool(others),
            box,
        )
        head = ["What and where", "Printed", "Ours", "Difference", "Verdict"]
        notes = [
            f"{html.escape(d.why)} Correct: {html.escape(str(d.correct))}." if (d := r.published.differs) else ""
            for r in rows
        ]
        cells = [self._cells(r) for r in rows]
        markup = table(head, cells, f"Published numbers: {topic}", "efflab-published efflab-stack", {1, 2, 3}, notes)
        return [*box.children, nodes.raw("", markup, format="html")]

    def _cells(self, row: validation.Row) -> list[str]:
        published, unit = row.published, row.unit
        source = html.escape(published.source.title)
        if published.source.url:
            source = f'<a href="{html.escape(published.source.url)}">{source}</a>'
        where = f", {html.escape(published.source.where)}" if published.source.where else ""
        inputs = ", ".join(
            f"{k} = {v:,g}" if isinstance(v, float) else f"{k} = {v}" for k, v in published.inputs.items()
        )
        note = f"{html.escape(published.note)} " if published.note else ""
        formula = html.escape(published.formula)
        what = f"{source}{where}<br><small>{note}<code>{formula}</code> {html.escape(inputs)}</small>"
        badge = f'<span class="efflab-verdict efflab-verdict-{row.verdict.split()[0]}">{row.verdict}</span>'
        if not published.differs:
            badge += f"<br><small>within {show(published.tolerance * 100)}%</small>"
        printed = published.printed if isinstance(published.printed, str) else show(float(published.printed), NUMBER)
        digits = len(re.sub(r"e[+-]?\d+|\D", "", str(published.printed).partition(" ")[0].lower()).strip("0")) or 1
        return [
            what,
            # A number of many digits, as a specification prints it, may go on in a second line.
            re.sub(r"(\d{10})(\d{4,})", r"\1<wbr>\2", html.escape(str(printed))),
            html.escape(show(row.ours, unit, max(3, min(digits, 6)))),
            f"{row.difference * 100:+.2f}%".replace("-", "−"),
            badge,
        ]


class Accelerators(_Directive):
    """The catalog of accelerators with its sources and doubts."""

    def run(self) -> list[nodes.Node]:
        found: list[nodes.Node] = []
        for entry in catalog.accelerators().values():
            section = nodes.section(ids=[nodes.make_id(f"accelerator {entry.name}")])
            section += nodes.title("", entry.name)
            section += nodes.raw("", self._entry(entry), format="html")
            found.append(section)
        return found

    def _entry(self, entry: catalog.Accelerator) -> str:
        def rate(value: float | None, unit: Unit) -> str:
            return show(value, unit, 5) if value else "none"

        dense, sparse = entry.peak_dense, entry.peak_sparse
        rows = [
            [cell.replace("FLOP", "OP") if d.startswith("int") else cell
             for cell in (d, rate(dense[d], FLOP_PER_SECOND), rate(sparse.get(d), FLOP_PER_SECOND),
                          show(dense[d] / entry.memory_bandwidth, FLOP_PER_BYTE))]
            for d in dense
        ]  # fmt: skip
        peaks = table(
            ["Data type", "Dense peak", "Sparse peak (2:4)", "Ridge point, dense"], rows, entry.name, "", {1, 2, 3}
        )
        link = "PCIe only"
        if entry.link:
            each = show(entry.link_bandwidth, BYTE_PER_SECOND)
            link = f"{each} each way ({entry.link.name}, joins {entry.link.joins} devices)"
        facts = [
            f"{html.escape(entry.vendor)}, {entry.year}",
            f"memory {entry.memory_gb:g} GB {html.escape(entry.memory_type)}",
            f"bandwidth {show(entry.memory_bandwidth, BYTE_PER_SECOND)}",
            f"link {html.escape(link)}",
            f"L2 {entry.l2_cache_mb:g} MB" if entry.l2_cache_mb else "",
            f"TDP {entry.tdp:g} W" if entry.tdp else "",
        ]
        sources = "".join(
            f"<li>{f'<a href={chr(34)}{html.escape(s.url)}{chr(34)}>' if s.url else ''}{html.escape(s.title)}"
            f"{'</a>' if s.url else ''}{f': {html.escape(s.covers)}' if s.covers else ''}</li>"
            for s in entry.sources
        )
        doubts = "".join(f"<li>{html.escape(d)}</li>" for d in entry.doubts)
        return (
            f"<p>{'; '.join(f for f in facts if f)}.</p>{peaks}"
            f"<p>Sources, verified {entry.verified}:</p><ul>{sources}</ul>"
            + (f"<p>Doubts:</p><ul>{doubts}</ul>" if doubts else "")
        )


class Models(_Directive):
    """The catalog of models: shape, printed and counted size, tokens, sources and doubts."""

    def run(self) -> list[nodes.Node]:
        head = ["Model", "Layers × width", "Query, KV heads", "Printed", "Counted", "Differs"]
        cells, notes = [], []
        for entry in catalog.models().values():
            shape, counted = entry.shape, transformer.parameter_count(**entry.architecture())
            difference = counted / entry.parameters - 1
            cells.append(
                [
                    f"{html.escape(entry.name)}<br><small>{html.escape(entry.maker)}, {entry.year}</small>",
                    f"{shape.layers} × {shape.hidden_size:,}",
                    f"{shape.query_heads}, {shape.kv_heads}",
                    html.escape(entry.parameters_printed),
                    f"{counted:,.0f}",
                    "0%" if abs(difference) < 5e-6 else f"{difference * 100:+.2f}%".replace("-", "−"),
                ]
            )
            sources = "; ".join(
                (f'<a href="{html.escape(s.url)}">{html.escape(s.title)}</a>' if s.url else html.escape(s.title))
                + (f", {html.escape(s.where)}" if s.where else "")
                for s in entry.sources
            )
            why = f"{html.escape(entry.differs.why)} " if entry.differs else ""
            doubts = " ".join(html.escape(d) for d in entry.doubts)
            tokens = f"Trained on {entry.tokens_printed}." if entry.tokens_printed else "Training tokens not published."
            notes.append(
                f"Vocabulary {shape.vocabulary:,}. {html.escape(tokens)} {why}{doubts} "
                f"<small>{sources}. Verified {entry.verified}.</small>"
            )
        markup = table(head, cells, "Catalog of models", "efflab-stack", {3, 4, 5}, notes)
        return [nodes.raw("", markup, format="html")]


class RecordedRuns(_Directive):
    """The recorded runs of one topic, or of every chapter: predicted against measured, with the error explained."""

    optional_arguments = 1

    def run(self) -> list[nodes.Node]:
        if self.arguments:
            return self.topic(self.arguments[0])
        return by_chapter(self, lambda topic: [*drawn(self, topic), *self.topic(topic)])

    def topic(self, topic: str) -> list[nodes.Node]:
        try:
            runs = records.recorded(topic)
            module = reconcile_topic(topic)
        except EfflabError as error:
            raise self.fail(error) from None
        if not runs:
            raise self.error(f"{{recorded-runs}}: no recorded run of {topic!r}.")
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
        lines = [html.escape(line) for line in module.summary(record).splitlines()]
        said = f"<p>{lines[0]}</p>" if len(lines) == 1 else f"<ul>{''.join(f'<li>{x}</li>' for x in lines)}</ul>"
        said += f"<p>{html.escape(energy_text(record))}</p>"
        return f'<p class="efflab-run-banner">{banner}</p>{said}' + table(
            [html.escape(h) for h in head[:-1]], cells, banner, "efflab-run-table efflab-stack", numeric, notes
        )


class RecordedPlot(_Directive):
    """A picture of a topic's newest run on each device, its own unless another is named: `precision memory`.

    `alt` says what it shows; the device and the day follow by themselves.
    """

    required_arguments = 1
    optional_arguments = 1
    option_spec = {"alt": directives.unchanged_required}  # noqa: RUF012

    def run(self) -> list[nodes.Node]:
        return drawn(self, *self.arguments, alt=self.options.get("alt"))


def drawn(directive: _Directive, topic: str, kind: str | None = None, alt: str | None = None) -> list[nodes.Node]:
    """The figures of a topic's newest recorded run on each device; `alt` says what they show."""
    newest = {r.environment.device: r for r in records.recorded(topic)}
    if not newest:
        raise directive.error(f"no recorded run of {topic!r}.")
    up = "../" * directive.env.docname.count("/")
    figures = []
    for record in reversed(newest.values()):
        try:
            drawings = _drawings(record, kind)
        except EfflabError as error:
            raise directive.fail(error) from None
        name = f"{record.id}-{kind}" if kind else record.id
        for theme, drawing in drawings.items():
            target = Path(directive.env.app.outdir) / "_images" / f"{name}-{theme}.svg"
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(drawing, encoding="utf-8")
        device, day = html.escape(record.environment.device), record.created[:10]
        caption = f"Recorded on {device}, {day}. <code>efflab replay {topic}</code> prints the numbers."
        shown = html.escape(alt or "A run, drawn.")
        text = f"{shown} Recorded on {device}, {day}. The table below and efflab replay {topic} give the numbers."
        # The page keeps the place of a picture that is not loaded yet.
        width, height = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', drawings["light"]).groups()
        size = f'width="{float(width):.0f}" height="{float(height):.0f}"'
        images = "".join(
            f'<img class="only-{theme}" src="{up}_images/{name}-{theme}.svg" alt="{text}" {size} loading="lazy">'
            for theme in ("light", "dark")
        )
        figures.append(
            f'<figure class="efflab-figure"><a href="{up}_images/{name}-light.svg" title="Open the picture alone">'
            f"{images}</a><figcaption>{caption}</figcaption></figure>"
        )
    return [nodes.raw("", "".join(figures), format="html")]


def _drawings(record: records.Record, kind: str | None) -> dict[str, str]:
    """The topic's plot as SVG for a light and for a dark page. Text stays text, so the files are small."""
    import matplotlib

    matplotlib.use("agg")  # a picture may measure its texts, which the backend for SVG does not
    from efflab import plots

    # A fixed salt keeps the ids inside the drawing, and so the built page, the same from build to build.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": record.id, "font.family": "sans-serif"}):
        figure = plots.draw(record, kind)
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
