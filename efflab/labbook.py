"""The lab book as one page: predictions, records, how the error shrank, progress. It loads nothing from elsewhere."""

from __future__ import annotations

import html
import math
from dataclasses import dataclass

from efflab import records
from efflab.errors import EfflabError
from efflab.exercises import progress_file
from efflab.experiments import ablation
from efflab.reconcile import CALIBRATED, Topic, error, percent
from efflab.reconcile import topic as reconcile_topic
from efflab.reconcile import topics as reconcile_topics
from efflab.records import LabBook, Prediction, Record
from efflab.units import UNITS, Unit, show


@dataclass(frozen=True)
class Pair:
    """One predicted value and the measured one, both in base units of `unit`.

    `prediction` is the prediction's id and `output` the name of its output: "<case>.<metric>" of a lab's, a
    calculator's own name of it.
    """

    created: str
    topic: str
    prediction: str
    output: str
    case: str
    predicted: float
    measured: float
    unit: Unit
    record: str

    @property
    def factor(self) -> float:
        """By which factor the prediction was off, at least 1."""
        return max(self.predicted / self.measured, self.measured / self.predicted)


def pairs(predictions: list[Prediction], found: list[Record]) -> tuple[list[Pair], list[str]]:
    """Each predicted value with its measurement, in the order predicted; and one sentence for each unusable record.

    A prediction belongs to the record that it names (a replay), else to the record that names it (a lab's), else to
    the first record of its topic that was begun after it and holds an answer. A calculator's is answered by a case
    of the same kernel, sizes and dtype. Predictions without a measurement are left out.
    """
    problems: list[str] = []
    shipped = {t: records.recorded(t) for t in {p.topic for p in predictions} if t in reconcile_topics()}
    usable: dict[str, list[Record]] = {}
    for topic, others in shipped.items():
        usable[topic] = []
        for record in [*(r for r in found if r.topic == topic), *others]:
            try:
                reconcile_topic(topic).points(record)
                usable[topic].append(record)
            except EfflabError as error_:
                problems.append(str(error_))
    result = []
    for prediction in predictions:
        for record in _candidates(prediction, found, usable.get(prediction.topic, [])):
            rows = _rows(prediction, record)
            for name, (case, measured, unit) in rows.items():
                result.append(
                    Pair(
                        prediction.created, prediction.topic, prediction.id, name, case,
                        prediction.outputs[name].value, measured, unit, record.id,
                    )
                )  # fmt: skip
            if rows:
                break
    return result, problems


def _candidates(prediction: Prediction, own: list[Record], usable: list[Record]) -> list[Record]:
    """The records that may hold a prediction's answer, the likeliest first."""
    if named := prediction.inputs.get("record"):
        return [r for r in usable if r.id == named]
    if linked := [r for r in usable if prediction.id in r.predictions]:
        return linked
    if any(prediction.id in r.predictions for r in own):
        return []  # its own record is not usable; another one would be a false answer
    ids = {r.id for r in own}
    return [r for r in usable if r.id in ids and r.created >= prediction.created]


def _rows(prediction: Prediction, record: Record) -> dict[str, tuple[str, float, Unit]]:
    """What a record says of a prediction's values, by the name of the output: the case, the value and its unit."""
    module: Topic = reconcile_topic(prediction.topic)
    by_case = {(row.case, row.metric): row for row in module.points(record)}
    calibrated = module.calibration(record) if any(n.startswith(CALIBRATED) for n in prediction.outputs) else {}
    answered = module.answers(record, prediction) if prediction.calculator else {}
    found = {}
    for name, quantity in prediction.outputs.items():
        case, _, what = name.rpartition(".")
        row = answered.get(name) or by_case.get((case, what))
        if row:
            answer = row.case, row.measured, row.unit
        elif (of := case.removeprefix(CALIBRATED)) != case and of in calibrated:
            answer = case, calibrated[of], module.CALIBRATION[of][1]
        else:
            continue
        if quantity.unit == answer[2].symbol and quantity.value > 0 and answer[1] > 0:
            found[name] = answer
    return found


def page(book: LabBook) -> tuple[str, list[str]]:
    """The page, and one sentence for every file that cannot be read (the page lists them too)."""
    predictions, found, problems = book.readable()
    parts = [
        "<h1>Lab book</h1>",
        '<p class="lead">What you predicted, what you measured, and how far apart they were.</p>',
    ]
    if not predictions and not found and not problems and not book.progress_path.exists():
        parts.append(_START)
        return _page(parts), []
    matched, damaged = pairs(predictions, found)
    problems += damaged
    parts.append(_progress(book, problems))
    parts.append(_errors(matched))
    parts.append(_predictions(predictions, matched))
    parts.append(_records(found, problems))
    if problems:
        items = "".join(f"<li>{html.escape(p)}</li>" for p in problems)
        parts.append(f"<h2>Could not be read</h2><ul>{items}</ul>")
    return _page(parts), problems


def _table(head: list[str], rows: list[list[str]], numeric: tuple[int, ...] = ()) -> str:
    def cells(tag: str, row: list[str]) -> str:
        return "".join(
            f"<{tag}{' class=n' if i in numeric else ''}{' scope=col' if tag == 'th' else ''}>{html.escape(c)}</{tag}>"
            for i, c in enumerate(row)
        )

    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    return (
        f'<div class="wide" tabindex="0"><table><thead><tr>{cells("th", head)}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _progress(book: LabBook, problems: list[str]) -> str:
    if not book.progress_path.exists():
        return ""
    try:
        entries = progress_file.read(book.progress_path)
    except EfflabError as error_:
        problems.append(str(error_))
        return ""
    by_topic: dict[str, list[bool]] = {}
    for name, entry in entries.items():
        by_topic.setdefault(name.partition("-")[0], []).append(entry.solved)
    rows = [[t.replace("_", " "), str(sum(s)), str(len(s))] for t, s in sorted(by_topic.items())]
    return "<h2>Progress</h2>" + _table(["topic", "questions solved", "questions tried"], rows, (1, 2)) if rows else ""


def _errors(matched: list[Pair]) -> str:
    if not matched:
        return (
            "<h2>Error over time</h2><p>No prediction has a measurement yet. Commit to one with "
            "<code>lab.predict(...)</code>, then call <code>lab.measure()</code>.</p>"
        )
    width, height, left, top = 640, 200, 56, 14
    logs = [math.log10(p.factor) for p in matched]
    highest = max(0.31, *logs) * 1.1

    def place(i: int) -> tuple[float, float]:
        x = left + (width - left - 16) * (i / max(1, len(logs) - 1) if len(logs) > 1 else 0.5)
        return x, top + (height - top - 34) * (1 - logs[i] / highest)

    dots = [place(i) for i in range(len(logs))]
    ticks = [t for t in (1, 2, 5, 10, 20, 50, 100, 1000, 10_000, 1e6) if math.log10(t) <= highest]
    lines = []
    for t in ticks:
        y = top + (height - top - 34) * (1 - math.log10(t) / highest)
        lines.append(
            f'<line x1="{left}" x2="{width - 8}" y1="{y:.1f}" y2="{y:.1f}" class="grid"/>'
            f'<text x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">{t:g}×</text>'
        )
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in dots)
    marks = "".join(
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4">'
        f"<title>{html.escape(p.case)}: off by {show(p.factor, digits=2)}×</title></circle>"
        for (x, y), p in zip(dots, matched, strict=True)
    )
    # Run by run: within one run the cases differ more than a learner learns.
    by_run: dict[str, list[float]] = {}
    for p in matched:
        by_run.setdefault(p.record, []).append(p.factor)
    medians = [f"{records.median(factors):.2g} (median of {len(factors)})" for factors in by_run.values()]
    said = f"Your predictions were off by a factor of {medians[0]}."
    if len(matched) == 1:
        said = f"Your first prediction was off by a factor of {matched[0].factor:.2g}."
    elif len(medians) > 1:
        said = f"Your predictions of the first run were off by a factor of {medians[0]}, of the last by {medians[-1]}."
    return (
        f"<h2>Error over time</h2><p>{said}</p>"
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{html.escape(said)}">{"".join(lines)}'
        f'<polyline points="{path}" class="curve"/>{marks}'
        f'<text x="{(width + left) / 2:.0f}" y="{height - 6}" text-anchor="middle">prediction, in order</text></svg>'
    )


def _predictions(predictions: list[Prediction], matched: list[Pair]) -> str:
    if not predictions:
        return ""
    measured = {(p.prediction, p.output): p for p in matched}
    rows = []
    for prediction in predictions:
        module: Topic | None = reconcile_topic(prediction.topic) if prediction.topic in reconcile_topics() else None
        asked = module.asked(prediction) if module and prediction.calculator else {}
        for name, quantity in prediction.outputs.items():
            case, _, what = name.rpartition(".")
            pair = measured.get((prediction.id, name))
            value = show(quantity.value, UNITS[quantity.unit])
            if module and what == "limiting_factor" and quantity.value in range(len(module.LIMITS)):
                value = module.LIMITS[int(quantity.value)]
            waits = name in asked or (case and what != "limiting_factor")
            rows.append(
                [
                    prediction.created[:10], prediction.topic, prediction.calculator or prediction.source, name, value,
                    show(pair.measured, pair.unit) if pair else "not measured yet" if waits else "",
                    percent(error(pair.predicted, pair.measured)) if pair else "",
                    pair.case if pair and pair.case != case else "",
                ]
            )  # fmt: skip
    head = ["date", "topic", "from", "what", "predicted", "measured", "error", "measured as"]
    return "<h2>Predictions</h2>" + _table(head, rows, (4, 5, 6))


def _records(found: list[Record], problems: list[str]) -> str:
    parts = []
    for record in reversed(found):
        e = record.environment
        title = f"{record.topic}, {e.device}, {record.created[:10]}, {record.scale} scale"
        parts.append(f"<h3>{html.escape(title)}</h3>")
        if not record.finished:
            parts.append("<p>This run did not finish.</p>")
        if record.topic == ablation.TOPIC:  # no lab's: nothing is predicted of it
            parts.append(f"<p>{html.escape(ablation.summary(record))}</p>")
            parts.append(_table([*ablation.HEAD], ablation.rows(record), tuple(range(1, len(ablation.HEAD)))))
            continue
        if record.topic not in reconcile_topics():
            parts.append(f"<p>{len(record.samples)} samples.</p>")
            continue
        module = reconcile_topic(record.topic)
        try:
            head, rows, numeric = module.table(record)
            parts.append(f"<p>{html.escape(module.summary(record))}</p>")
            parts.append(_table(head, rows, tuple(numeric)))
        except EfflabError as error_:
            parts.append("<p>This record cannot be reconciled.</p>")
            if str(error_) not in problems:
                problems.append(str(error_))
    return ("<h2>Records</h2>" + "".join(parts)) if parts else ""


_START = """<h2>It is empty. How to start</h2>
<ol>
<li>Predict and measure in a lab: open <code>labs/roofline.ipynb</code>, or in Python
<pre>from efflab.lab import Lab
lab = Lab("roofline")
lab.predict({"matmul-2048": "80 ms"}, {"matmul-2048": "compute"})
lab.measure()
lab.reconcile()</pre></li>
<li>Or measure from the command line: <code>efflab run roofline</code>.</li>
<li>Add what you saved on the course's site: <code>efflab labbook add FILE</code>.</li>
<li>Then make this page again: <code>efflab labbook</code>.</li>
</ol>"""

_STYLE = """
:root{color-scheme:light dark;--ink:#1b1f24;--soft:#57606a;--line:#d0d7de;--paper:#fff;--mark:#0072b2}
@media (prefers-color-scheme:dark){:root{--ink:#e6edf3;--soft:#9aa5b1;--line:#3d444d;--paper:#0d1117;--mark:#56b4e9}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:64rem;padding:1.5rem 1rem 4rem;background:var(--paper);color:var(--ink);
font:1rem/1.5 system-ui,sans-serif}
h1,h2,h3{line-height:1.25}h2{margin-top:2.2rem}.lead{color:var(--soft)}
.wide{overflow-x:auto}.wide:focus-visible{outline:2px solid var(--mark)}
table{border-collapse:collapse;font-size:.9rem}
th,td{padding:.3rem .6rem;border-bottom:1px solid var(--line);text-align:left;vertical-align:top}
.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
code,pre{font-family:ui-monospace,monospace;font-size:.9em}pre{overflow-x:auto}
svg{max-width:100%;height:auto;display:block}svg text{fill:var(--soft);font-size:12px}
.grid{stroke:var(--line)}.curve{fill:none;stroke:var(--mark);stroke-width:2}circle{fill:var(--mark)}
@media print{body{max-width:none}.wide{overflow:visible}}
"""


def _page(parts: list[str]) -> str:
    body = "\n".join(p for p in parts if p)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>Lab book</title>\n'
        '<link rel="icon" href="data:,">\n'
        f"<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )
