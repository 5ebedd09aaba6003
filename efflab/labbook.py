"""The lab book as one page: predictions, records, how the error shrank, progress. It loads nothing from elsewhere.

Topic by topic, each folded. The first prediction of a case of a record is the one that counts; whoever predicts it
again knows more, and that is marked.
"""

from __future__ import annotations

import html
import math
from dataclasses import dataclass

from efflab import records
from efflab.errors import EfflabError
from efflab.exercises import progress_file
from efflab.experiments import ablation
from efflab.reconcile import CALIBRATED, PERCENT, Topic, energy_text, error, percent
from efflab.reconcile import topic as reconcile_topic
from efflab.reconcile import topics as reconcile_topics
from efflab.records import LabBook, Prediction, Record
from efflab.units import UNITS, Unit, show

# Outputs of calculators that are shares of one and are not called so.
CALLED_OTHERWISE = (
    "extra",
    "hfu",
    "idle_of_twice",
    "least",
    "lost",
    "mfu",
    "of_gemini",
    "of_popular",
    "part",
    "restarting",
    "skipped",
    "useful",
    "wanted",
    "written",
)


@dataclass(frozen=True)
class Pair:
    """One predicted value and the measured one, both in base units of `unit`.

    Attributes:
        prediction, output: the prediction's id and the name of its output: "<case>.<metric>" of a lab's, a calculator's
            own name of it.
        case, metric: what was measured.
        record, device: the record's id, and what it was measured on.
        mode: "live", "submit" or "replay".
        later: the same of the same record was predicted before; this one does not count.
    """

    created: str
    topic: str
    prediction: str
    output: str
    case: str
    metric: str
    predicted: float
    measured: float
    unit: Unit
    record: str
    device: str
    mode: str
    later: bool

    @property
    def factor(self) -> float:
        """By which factor the prediction was off, at least 1."""
        return max(self.predicted / self.measured, self.measured / self.predicted)


def pairs(predictions: list[Prediction], found: list[Record]) -> tuple[list[Pair], list[str]]:
    """Each predicted value with its measurement, in the order predicted; and one sentence for each unusable record.

    A prediction belongs to the record that it names (a replay), else to the record that names it (a lab's), else to
    the first record of its topic that was begun after it and holds an answer. A calculator's is answered by a case
    of the same kernel, sizes and dtype. Predictions without a measurement are left out. Of two predictions of one case
    the first counts; the other is `later`.
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
    result: list[Pair] = []
    own, known = {r.id for r in found}, set()
    for prediction in predictions:
        for record in _candidates(prediction, found, usable.get(prediction.topic, [])):
            rows = _rows(prediction, record)
            mode = str(prediction.inputs.get("mode") or ("live" if record.id in own else "replay"))
            for name, (case, metric, measured, unit) in rows.items():
                about = record.id, case, metric
                result.append(
                    Pair(
                        prediction.created, prediction.topic, prediction.id, name, case, metric,
                        prediction.outputs[name].value, measured, unit, record.id, record.environment.device, mode,
                        about in known,
                    )
                )  # fmt: skip
                known.add(about)
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


def _rows(prediction: Prediction, record: Record) -> dict[str, tuple[str, str, float, Unit]]:
    """What a record says of a prediction's values, by the name of the output: case, metric, value and its unit."""
    module: Topic = reconcile_topic(prediction.topic)
    by_case = {(row.case, row.metric): row for row in module.points(record)}
    calibrated = module.calibration(record) if any(n.startswith(CALIBRATED) for n in prediction.outputs) else {}
    answered = module.answers(record, prediction) if prediction.calculator else {}
    found = {}
    for name, quantity in prediction.outputs.items():
        case, _, what = name.rpartition(".")
        row = answered.get(name) or by_case.get((case, what))
        if row:
            answer = row.case, row.metric, row.measured, row.unit
        elif (of := case.removeprefix(CALIBRATED)) != case and of in calibrated:
            answer = case, what, calibrated[of], module.CALIBRATION[of][1]
        else:
            continue
        if quantity.unit == answer[3].symbol and quantity.value > 0 and answer[2] > 0:
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
    topics = sorted({d.topic for d in [*predictions, *found]})
    for topic in topics:
        asked = [p for p in predictions if p.topic == topic]
        answered = [p for p in matched if p.topic == topic]
        of_topic = [r for r in found if r.topic == topic]
        said = [f"{len(some)} {what}{'s' if len(some) > 1 else ''}" for some, what in
                ((asked, "prediction"), (of_topic, "record")) if some]  # fmt: skip
        summary = f"<h2>{html.escape(topic.replace('_', ' '))}</h2> <span>{', '.join(said)}</span>"
        inside = [_errors(answered) if asked else "", _predictions(asked, answered), _records(of_topic, problems)]
        parts.append(_folded(summary, inside, unfolded=len(topics) == 1))
    if problems:
        items = "".join(f"<li>{html.escape(p)}</li>" for p in problems)
        parts.append(f"<h2>Could not be read</h2><ul>{items}</ul>")
    return _page(parts), problems


def _folded(summary: str, parts: list[str], unfolded: bool) -> str:
    inside = "\n".join(p for p in parts if p)
    return f"<details{' open' if unfolded else ''}><summary>{summary}</summary>\n{inside}\n</details>"


def in_percent(name: str) -> bool:
    """Whether an output is a share of one: "<case>.share" of a lab's prediction, "busy_share" of a calculator's."""
    case, _, what = name.rpartition(".")
    return what in PERCENT if case else "share" in what.split("_") or what in CALLED_OTHERWISE


def _written(value: float, unit: Unit, name: str) -> str:
    return f"{value:.1%}" if in_percent(name) else show(value, unit)


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
    """How far the predictions of one topic were off, in the order predicted. Later ones of a case do not count."""
    later = sum(p.later for p in matched)
    matched = [p for p in matched if not p.later]
    if not matched:
        return (
            "<h3>Error over time</h3><p>No prediction has a measurement yet. Commit to one with "
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
    left_out = f" Predictions of what was predicted before are left out: {later}." if later else ""
    return (
        f"<h3>Error over time</h3><p>{said}{left_out}</p>"
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
            value = _written(quantity.value, UNITS[quantity.unit], name)
            if module and what == "limiting_factor" and quantity.value in range(len(module.LIMITS)):
                value = module.LIMITS[int(quantity.value)]
            waits = name in asked or (case and what != "limiting_factor")
            rows.append(
                [
                    prediction.created[:10], prediction.calculator or prediction.source, name, value,
                    _written(pair.measured, pair.unit, name) if pair else "not measured yet" if waits else "",
                    percent(error(pair.predicted, pair.measured)) if pair else "",
                    "later: predicted before" if pair and pair.later else "",
                    pair.case if pair and pair.case != case else "",
                    pair.mode if pair else str(prediction.inputs.get("mode") or ""), pair.device if pair else "",
                ]
            )  # fmt: skip
    head = ["date", "from", "what", "predicted", "measured", "error", "note", "measured as", "mode", "device"]
    return "<h3>Predictions</h3>" + _table(head, rows, (3, 4, 5))


def _records(found: list[Record], problems: list[str]) -> str:
    """The records of one topic, the newest first, each folded where there are several."""
    parts = []
    for record in reversed(found):
        title = f"{record.environment.device}, {record.created[:10]}, {record.scale} scale"
        parts.append(_folded(f"<h4>{html.escape(title)}</h4>", _of_record(record, problems), unfolded=len(found) == 1))
    return ("<h3>Records</h3>" + "\n".join(parts)) if parts else ""


def _of_record(record: Record, problems: list[str]) -> list[str]:
    unfinished = [] if record.finished else ["<p>This run did not finish.</p>"]
    try:
        energy = f"<p>{html.escape(energy_text(record))}</p>"
        if record.topic == ablation.TOPIC:  # no lab's: nothing is predicted of it
            said = ablation.summary(record)
            table = ([*ablation.HEAD], ablation.rows(record), range(1, len(ablation.HEAD)))
        elif record.topic not in reconcile_topics():
            return [*unfinished, f"<p>{len(record.samples)} samples.</p>", energy]
        else:
            module: Topic = reconcile_topic(record.topic)
            said, table = module.summary(record), module.table(record)
    except EfflabError as error_:
        if str(error_) not in problems:
            problems.append(str(error_))
        return [*unfinished, "<p>This record cannot be reconciled.</p>"]
    head, rows, numeric = table
    return [*unfinished, f"<p>{html.escape(said)}</p>", energy, _table(head, rows, tuple(numeric))]


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
h1,h2,h3,h4{line-height:1.25}h2{margin-top:2.2rem}.lead,summary span{color:var(--soft)}
summary{cursor:pointer;padding:.5rem 0}summary h2,summary h4{display:inline;margin:0 .4rem 0 0}
summary:focus-visible{outline:2px solid var(--mark)}
main>details{border-top:1px solid var(--line)}main>details>:not(summary){margin-left:.2rem}
.wide{overflow-x:auto}.wide:focus-visible{outline:2px solid var(--mark)}
table{border-collapse:collapse;font-size:.9rem}
td:first-child{min-width:6rem}td:last-child:not(.n){min-width:8rem}
@media (max-width:40rem){td:last-child:not(.n):not(:first-child){min-width:16rem}}
th,td{padding:.3rem .6rem;border-bottom:1px solid var(--line);text-align:left;vertical-align:top}
.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
code,pre{font-family:ui-monospace,monospace;font-size:.9em}pre{overflow-x:auto}
svg{max-width:100%;height:auto;display:block}svg text{fill:var(--soft);font-size:12px}
.grid{stroke:var(--line)}.curve{fill:none;stroke:var(--mark);stroke-width:2}circle{fill:var(--mark)}
@media print{body{max-width:none}.wide{overflow:visible}details::details-content{content-visibility:visible}}
"""


def _page(parts: list[str]) -> str:
    body = "\n".join(p for p in parts if p)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>Lab book</title>\n'
        '<link rel="icon" href="data:,">\n'
        f"<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )
