"""Scaling laws against a recorded run.

The law is fitted to the runs of role "fit" and predicts those of role "held-out", which are larger than any of them.
Runs of role "repeat" train a fitted size again with another seed; they say how much a single loss scatters. Those of
role "checkpoint" are fitted runs read before their end, while their learning rate was still high.

Sizes are counts of all parameters. Losses are nats per token of the record's own text, so the constants mean nothing
for another text, tokenizer or recipe.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.optimize import nnls

from efflab.errors import EfflabError, unknown
from efflab.fits import Fit, fit_parametric_loss
from efflab.formulas import scaling_laws as formulas
from efflab.reconcile import answers as answers
from efflab.reconcile import asked as asked  # none: the calculators predict losses of other texts
from efflab.reconcile import banner as banner
from efflab.reconcile import calibrates as calibrates
from efflab.reconcile import columns, damaged, error, of_topic, percent, place, positive
from efflab.reconcile import scatters as scatters
from efflab.records import Record, median, quantile
from efflab.units import FLOP, FLOP_PER_SECOND, NAT, NUMBER, PARAMETER, SECOND, TOKEN, Unit, show

LIMITS: tuple[str, ...] = ()
CALIBRATION = {
    "doubling-size": ("gain", NUMBER),
    "doubling-data": ("gain", NUMBER),
    "size-exponent": ("exponent", NUMBER),
    "data-exponent": ("exponent", NUMBER),
    "floor": ("loss", NAT),
}
BASE: tuple[str, ...] = ()  # what every prediction rests on
PICTURES = ("scaling_laws", "errors")
ROLES = ("fit", "repeat", "held-out")
DRAWN = ("repeat", "held-out")  # what the law has not seen
CHECKPOINT = "checkpoint"
BOOTSTRAP = 400  # refits; enough for two digits of a 95% interval
LEVEL = 0.95
NEEDED = ("parameters", "tokens", "flops")


@dataclass(frozen=True)
class Run:
    """One training run of a record: its point, final loss in nats and time in s (None where it was not measured)."""

    point: dict[str, Any]
    loss: float
    time: float | None

    @property
    def case(self) -> str:
        """Its name."""
        return str(self.point["case"])

    @property
    def role(self) -> str:
        """ "fit", "repeat", "held-out" or "checkpoint"."""
        return str(self.point["role"])

    @property
    def size(self) -> float:
        """All parameters."""
        return float(self.point["parameters"])

    @property
    def tokens(self) -> float:
        """Training tokens."""
        return float(self.point["tokens"])

    @property
    def flops(self) -> float:
        """Counted operations of the whole run."""
        return float(self.point["flops"])


@dataclass(frozen=True)
class Row:
    """One run, its loss predicted by the fitted law and measured.

    Attributes:
        case, role: as in the sample's point.
        parameters, tokens: of the run.
        flops_over_6nd: counted operations over six per parameter and token.
        predicted, measured: nats per token.
        low, high: 95% bootstrap interval of one further run; only of a held-out run.
        ratio: measured over predicted.
        error: (predicted - measured) / measured.
        explanation: what the record holds about it.
    """

    case: str
    role: str
    parameters: float
    tokens: float
    flops_over_6nd: float
    predicted: float
    measured: float
    low: float | None
    high: float | None
    ratio: float
    error: float
    explanation: str

    @property
    def metric(self) -> str:
        """What was measured."""
        return "loss"

    @property
    def unit(self) -> Unit:
        """The unit of `predicted` and `measured`."""
        return NAT

    @property
    def regime(self) -> str:
        """This topic has no limits."""
        return ""

    @property
    def inside(self) -> bool | None:
        """Whether the measured loss lies in the interval; None where there is none."""
        return None if self.low is None or self.high is None else self.low <= self.measured <= self.high


# Reading a record: a point is the topic's own, so what is read from it is checked here


def _check(record: Record) -> None:
    """Raise `EfflabError`, naming record, sample and field, for a point that cannot be reconciled."""
    of_topic(record, "scaling_laws")
    for index, sample in enumerate(record.samples):
        point = sample.point
        if point.get("role") not in (*ROLES, CHECKPOINT):
            continue
        if not isinstance(point.get("case"), str) or not point["case"]:
            raise damaged(record, index, "case", "a text")
        if (sample.metric, sample.unit) not in (("loss", "nats"), ("time", "s")):
            continue
        for field in NEEDED:
            if not positive(point.get(field)):
                raise damaged(record, index, field, "a number greater than zero")
        if sample.metric == "loss" and any(not v > 0 for v in sample.values):
            raise EfflabError(f"{place(record, index)}: a loss must be greater than zero. Measure it again.")


def runs(record: Record, roles: Sequence[str] = ROLES) -> list[Run]:
    """The measured runs of a record in the order trained.

    Raises:
        EfflabError: the record is of another topic, or a point is damaged; names record, sample and field.
    """
    _check(record)
    times = {s.point["case"]: median(s.values) for s in record.samples if s.metric == "time" and s.status == "ok"}
    return [
        Run(s.point, median(s.values), times.get(s.point["case"]))
        for s in record.samples
        if s.metric == "loss" and s.status == "ok" and s.point.get("role") in roles
    ]


@functools.lru_cache(maxsize=32)
def _fit(sizes: tuple[float, ...], tokens: tuple[float, ...], losses: tuple[float, ...], bootstrap: int) -> Fit:
    return fit_parametric_loss(list(sizes), list(tokens), list(losses), bootstrap=bootstrap, seed=0)


def law(record: Record) -> Fit:
    """The law fitted to the record's runs of role "fit".

    Args:
        record: of this topic.

    Raises:
        EfflabError: as `runs`, or too few runs for the five constants.
    """
    used = runs(record, ("fit",))
    try:
        return _fit(tuple(r.size for r in used), tuple(r.tokens for r in used), tuple(r.loss for r in used), BOOTSTRAP)
    except EfflabError as problem:
        raise EfflabError(f"record {record.id}: no law can be fitted: {problem}") from None


def scatter(record: Record) -> float | None:
    """How much one run's loss scatters with its seed: the relative standard deviation over repeated runs.

    None where no run was repeated.
    """
    groups: dict[tuple[float, float], list[float]] = {}
    for run in runs(record, ("fit", "repeat")):
        groups.setdefault((run.size, run.tokens), []).append(math.log(run.loss))
    repeated = [g for g in groups.values() if len(g) > 1]
    if not repeated:
        return None
    squares = sum(sum((x - sum(g) / len(g)) ** 2 for x in g) for g in repeated)
    return math.sqrt(squares / sum(len(g) - 1 for g in repeated))


# Predictions


def points(record: Record, roles: tuple[str, ...] = ROLES) -> list[Row]:
    """Every measured run of a record with the loss that the fitted law gives it, in the order trained.

    Raises:
        EfflabError: as `law`.
    """
    fit, rows = law(record), []
    for run in runs(record, roles):
        predicted = float(fit.loss(run.size, run.tokens))
        low, high = fit.interval(run.size, run.tokens, LEVEL, one_run=True) if run.role == "held-out" else (None, None)
        rows.append(
            Row(
                case=run.case,
                role=run.role,
                parameters=run.size,
                tokens=run.tokens,
                flops_over_6nd=run.flops / formulas.training_flops(parameters=run.size, tokens=run.tokens),
                predicted=predicted,
                measured=run.loss,
                low=low,
                high=high,
                ratio=run.loss / predicted,
                error=error(predicted, run.loss),
                explanation=_explain(record, run, predicted, low, high),
            )
        )
    return rows


def _explain(record: Record, run: Run, predicted: float, low: float | None, high: float | None) -> str:
    off = abs(error(predicted, run.loss))
    noise = scatter(record)
    seeds = f" Runs that differ in the seed alone scatter by {_share(noise)}." if noise else ""
    if run.role == "repeat":
        return f"A fitted run with another seed, not in the fit.{seeds}"
    if run.role == "fit":
        return (
            f"The law is more than twice the scatter of the seed, {_share(noise)}, off."
            if noise and off > 2 * noise
            else ""
        )
    fitted = runs(record, ("fit",))
    more = run.flops / max(r.flops for r in fitted)
    said = (
        f"Not in the fit: {show(run.size / max(r.size for r in fitted), digits=2)} times the largest fitted size, "
        f"{show(run.tokens / max(r.tokens for r in fitted), digits=2)} times the most data, "
        f"{show(more, digits=2)} times the operations."
    )
    if low is not None and high is not None:
        inside = low <= run.loss <= high
        said += (
            f" The 95% interval for one more run is {low:.3f} to {high:.3f} nats; the measured loss lies "
            f"{'inside' if inside else 'outside'}."
        )
        if not inside and noise and off > 2 * noise:
            said += (
                f" Runs that differ in the seed alone scatter by {_share(noise)}, so it is consistent with a form or a "
                "recipe that changes with size."
            )
    return said


def alternatives(record: Record, run: Run) -> dict[str, float]:
    """What simpler rules predict for a run, nats: a power law of the operations without a floor, and no change."""
    fitted = runs(record, ("fit",))
    best: list[Run] = []  # runs that nothing cheaper beats: the line along which a ruler would be laid
    for other in sorted(fitted, key=lambda r: r.flops):
        if not best or other.loss < best[-1].loss:
            best.append(other)
    found = {"the best fitted run": best[-1].loss}
    if len(best) >= 3:
        x = [math.log(r.flops) for r in best]
        y = [math.log(r.loss) for r in best]
        mx, my = sum(x) / len(x), sum(y) / len(y)
        slope = sum((a - mx) * (b - my) for a, b in zip(x, y, strict=True)) / sum((a - mx) ** 2 for a in x)
        found["a straight line through the best runs, without a floor"] = math.exp(
            my + slope * (math.log(run.flops) - mx)
        )
    return found


@dataclass(frozen=True)
class StepTime:
    """The time of a training step as an overhead and operations at a rate, fitted to the timed runs of role "fit".

    Attributes:
        overhead: s in each step, whatever the size of the model.
        rate: FLOP/s of what a larger model adds; infinite where steps take the same time at all sizes.
    """

    overhead: float
    rate: float

    def of(self, run: Run) -> float:
        """Seconds of a run."""
        return float(run.point["steps"]) * self.overhead + run.flops / self.rate


def step_time(record: Record) -> StepTime | None:
    """The step time of a record's fitted runs, relative errors least squares; None with fewer than two sizes."""
    timed = [r for r in runs(record, ("fit",)) if r.time and r.point.get("steps")]
    x = np.array([r.flops / float(r.point["steps"]) for r in timed])
    y = np.array([float(r.time or 0) / float(r.point["steps"]) for r in timed])
    if len(set(x.tolist())) < 2:
        return None
    design = np.stack([np.ones_like(x), x / x.max()], axis=1) / y[:, None]
    overhead, most = nnls(design, np.ones_like(y))[0]  # neither is negative
    return StepTime(float(overhead), float(x.max() / most) if most > 0 else math.inf)


def optimum(record: Record, flops: float) -> dict[str, tuple[float, float, float]]:
    """The size and the data with the least loss at a budget, by the fitted law, each with its 95% interval.

    Args:
        record: of this topic.
        flops: the budget as 6ND.

    Returns:
        (value, low, high) of "parameters", "tokens" and "loss".
    """
    fit = law(record)
    rows = [[fit.E, fit.A, fit.alpha, fit.B, fit.beta], *fit.samples.tolist()]
    found: dict[str, list[float]] = {"parameters": [], "tokens": [], "loss": []}
    for e, a, alpha, b, beta in rows:
        powers = {
            "parameter_coefficient": a, "parameter_exponent": alpha, "token_coefficient": b, "token_exponent": beta
        }  # fmt: skip
        found["parameters"].append(float(formulas.compute_optimal_parameters(flops=flops, **powers)))
        found["tokens"].append(float(formulas.compute_optimal_tokens(flops=flops, **powers)))
        found["loss"].append(float(formulas.compute_optimal_loss(flops=flops, irreducible_loss=e, **powers)))
    tail = (1 - LEVEL) / 2
    return {n: (v[0], quantile(v[1:], tail), quantile(v[1:], 1 - tail)) for n, v in found.items()}


def without_embedding(record: Record) -> Fit | None:
    """The law with sizes counted without the embedding, as Kaplan et al. did; None where a point lacks that count."""
    fitted = runs(record, ("fit",))
    sizes = [r.point.get("non_embedding_parameters") for r in fitted]
    if not all(isinstance(n, int | float) and not isinstance(n, bool) and n > 0 for n in sizes):
        return None
    return _law_or_none([replace(r, point=r.point | {"parameters": n}) for r, n in zip(fitted, sizes, strict=True)])


def law_of_checkpoints(record: Record) -> Fit | None:
    """The law fitted to the longest runs and to the same runs read before their end; None where none was."""
    early = runs(record, (CHECKPOINT,))
    fitted = runs(record, ("fit",))
    used = [r for r in fitted if r.tokens == max(f.tokens for f in fitted)] + early
    return _law_or_none(used) if early else None


def _law_or_none(used: Sequence[Run]) -> Fit | None:
    """The law of some runs without intervals; None where they are too few."""
    try:
        return _fit(tuple(r.size for r in used), tuple(r.tokens for r in used), tuple(r.loss for r in used), 0)
    except EfflabError:
        return None


def _loss(value: float) -> str:
    """A loss with three decimals, so that a column of them lines up: "2.000 nats"."""
    return f"{value:.3f} nats"


def _brief(value: float, unit: Unit, digits: int = 3) -> str:
    """A count without its unit, which stands beside it: "275k"."""
    return show(value, unit, digits).partition(" ")[0]


def _share(value: float) -> str:
    """A small relative difference as a percentage: "0.31%"."""
    return f"{show(100 * value, digits=2)}%"


# What the lab, the lab book and the site ask


def cases(points: Iterable[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The held-out runs, by case name: what a learner predicts."""
    return {str(p["case"]): p for p in points if p.get("role") == "held-out"}


def describe(cases: Mapping[str, dict[str, Any]], names: Sequence[str] = ()) -> str:
    """A table of the named runs: size, data, operations."""
    chosen = [cases[n] for n in names] if names else list(cases.values())
    rows = [
        [str(p["case"]), show(float(p["parameters"]), PARAMETER), show(float(p["tokens"]), TOKEN),
         show(float(p["flops"]), FLOP) if p.get("flops") else ""]
        for p in chosen
    ]  # fmt: skip
    return columns(["run", "parameters", "training tokens", "operations"], rows, (1, 2, 3))


def missing(record: Record) -> list[str]:
    """One sentence for every run without a loss; it begins with the case's name."""
    _check(record)
    return [
        f"{s.point['case']}: {'out of memory' if s.status == 'oom' else 'failed'}: {s.message}"
        for s in record.samples
        if s.metric == "loss" and s.status != "ok" and s.point.get("role") in ROLES
    ]


def summary(record: Record) -> str:
    """How well the law describes its own runs, and how well it predicted the larger ones."""
    fit, rows = law(record), points(record)
    inside = [abs(r.error) for r in rows if r.role == "fit"]
    said = ["Smoke scale: its runs are too short to say anything about a law."] if record.scale == "smoke" else []
    said += [
        f"The law fits its {len(inside)} runs to {_share(median(inside))} (median; worst {_share(max(inside))}).",
        f"Its constants: {_constants(fit)}.",
    ]
    for r in rows:
        if r.role == "held-out":
            said.append(
                f"Held out: {r.case}, {show(r.parameters, PARAMETER)} on {show(r.tokens, TOKEN)}: predicted "
                f"{_loss(r.predicted)}, measured {_loss(r.measured)} ({_percent(r.error)}). {r.explanation}"
            )
    return " ".join(said)


def _percent(value: float) -> str:
    """A signed percentage with two decimals; losses differ by less than a whole one."""
    return f"{value:+.2%}".replace("-", "−")


def _constants(fit: Fit) -> str:
    """Exponents and floor with their 95% intervals."""
    spread = fit.spread(LEVEL)

    def of(label: str, name: str, value: float) -> str:
        low, high = spread[name]
        return f"{label} {value:.2f} ({low:.2f} to {high:.2f})"

    return ", ".join(
        (
            of("size exponent", "parameter_exponent", fit.alpha),
            of("data exponent", "token_exponent", fit.beta),
            of("floor", "irreducible_loss", fit.E) + " nats",
        )
    )


def table(record: Record) -> tuple[list[str], list[list[str]], tuple[int, ...]]:
    """Head, rows of text (the last column explains) and the indices of numeric columns.

    What the law has not seen comes first.
    """
    head = ["run", "parameters", "tokens", "FLOP ÷ 6ND", "predicted (nats)", "measured (nats)", "error", "why"]
    rows = [
        [
            r.case, _brief(r.parameters, PARAMETER), _brief(r.tokens, TOKEN), f"{r.flops_over_6nd:.2f}",
            f"{r.predicted:.3f}", f"{r.measured:.3f}", _percent(r.error), r.explanation,
        ]
        for r in sorted(points(record), key=lambda r: ("held-out", "repeat", "fit").index(r.role))
    ]  # fmt: skip
    return head, rows, (1, 2, 3, 4, 5, 6)


def grid(record: Record) -> str:
    """The losses of the fitted runs, a row for each size and a column for each number of tokens."""
    fitted = runs(record, ("fit",))
    sizes, tokens = sorted({r.size for r in fitted}), sorted({r.tokens for r in fitted})
    loss = {(r.size, r.tokens): r.loss for r in fitted}
    rows = [[show(n), *(f"{loss[n, d]:.3f}" if (n, d) in loss else "" for d in tokens)] for n in sizes]
    return columns(["parameters", *(f"{show(d)} tokens" for d in tokens)], rows, range(len(tokens) + 1))


def calibration(record: Record) -> dict[str, float]:
    """What a doubling of size or of data takes off the largest fitted run's loss, the exponents and the floor."""
    fit = law(record)
    largest = max(runs(record, ("fit",)), key=lambda r: (r.size, r.tokens))
    here = float(fit.loss(largest.size, largest.tokens))
    return {
        "doubling-size": 1 - float(fit.loss(2 * largest.size, largest.tokens)) / here,
        "doubling-data": 1 - float(fit.loss(largest.size, 2 * largest.tokens)) / here,
        "size-exponent": fit.alpha,
        "data-exponent": fit.beta,
        "floor": fit.E,
    }


def calibration_text(record: Record) -> str:
    """The small runs' losses and the law fitted to them."""
    fit, noise = law(record), scatter(record)
    gains = calibration(record)
    constants = ", ".join(
        f"{n} {show(v, digits=4)}"
        for n, v in (("E", fit.E), ("A", fit.A), ("alpha", fit.alpha), ("B", fit.B), ("beta", fit.beta))
    )
    parts = [
        "Validation loss of the small runs, nats per token:",
        grid(record),
        "",
        f"The law fitted to them: {constants}.",
        f"With 95% intervals: {_constants(fit)}.",
        f"By the law, at the largest of these runs: twice the parameters lower the loss by "
        f"{_share(gains['doubling-size'])}, twice the data by {_share(gains['doubling-data'])}.",
    ]
    if noise:
        parts.append(f"Runs that differ in the seed alone scatter by {_share(noise)} (standard deviation).")
    other = without_embedding(record)
    if other:
        parts.append(
            f"Counted without the embedding, the size exponent is {other.alpha:.2f} and the floor {other.E:.2f} nats."
        )
    parts += [f"Mind: {w}" for w in fit.warnings]
    return "\n".join(parts)


def text(record: Record) -> str:
    """Everything in plain text, the same for the same record."""
    head, rows, numeric = table(record)
    parts = [calibration_text(record), "", columns(head[:-1], [r[:-1] for r in rows], numeric), ""]
    for run in runs(record, ("held-out",)):
        parts += [evidence(record, run.case), ""]
    parts += [summary(record), *missing(record)]
    return "\n".join(parts)


def _run(record: Record, case: str) -> Run:
    found = {r.case: r for r in runs(record)}
    if case not in found:
        raise unknown("case", case, found)
    return found[case]


def evidence(record: Record, case: str) -> str:
    """What the record says of one run, by several methods, with their numbers.

    Raises:
        EfflabError: an unknown case.
    """
    run = _run(record, case)
    row = next(r for r in points(record) if r.case == case)
    lines = [
        f"{case}: measured {_loss(run.loss)}",
        f"  by the fitted law: {_loss(row.predicted)} ({_percent(row.error)})"
        + (f", 95% interval {row.low:.3f} to {row.high:.3f}" if row.low is not None else ""),
    ]
    lines += [
        f"  by {name}: {_loss(value)} ({_percent(error(value, run.loss))})"
        for name, value in alternatives(record, run).items()
    ]
    if run.role == "held-out":
        fitted = runs(record, ("fit",))
        sizes = sorted({r.size for r in fitted})
        others = {
            "without the largest size": _law_or_none([r for r in fitted if r.size < sizes[-1]]),
            "to the three smallest sizes": _law_or_none([r for r in fitted if r.size in sizes[:3]]),
            "to the longest runs, read on their way": law_of_checkpoints(record),
        }
        for what, other in others.items():
            if other:
                value = float(other.loss(run.size, run.tokens))
                lines.append(f"  by a law fitted {what}: {_loss(value)} ({_percent(error(value, run.loss))})")
    lines.append(f"  operations: {show(run.flops, FLOP)} counted, {show(row.flops_over_6nd)} times 6ND")
    if run.role == "held-out":
        best = optimum(record, formulas.training_flops(parameters=run.size, tokens=run.tokens))
        n, d, loss = best["parameters"], best["tokens"], best["loss"]
        lines.append(
            f"  the best use of its 6ND, by the law: {show(n[0], PARAMETER, 2)} ({_brief(n[1], PARAMETER, 2)} to "
            f"{_brief(n[2], PARAMETER, 2)}) on {show(d[0], TOKEN, 2)} ({_brief(d[1], TOKEN, 2)} to "
            f"{_brief(d[2], TOKEN, 2)}), {_loss(loss[0])}"
        )
    model = step_time(record)
    if run.time and model and run.role == "held-out":
        at = f" and {show(model.rate, FLOP_PER_SECOND)}" if math.isfinite(model.rate) else ""
        steps = float(run.point["steps"])
        lines.append(
            f"  time: {show(model.of(run), SECOND)} by the steps of the small models, {show(run.time, SECOND)} "
            f"measured ({_percent(error(model.of(run), run.time))})"
        )
        lines.append(
            f"  a step: {show(model.overhead, SECOND)} whatever the size{at}; overhead takes "
            f"{percent(steps * model.overhead / model.of(run)).removeprefix('+')} of this run"
        )
    return "\n".join(lines)


def sweep(record: Record, name: str) -> str:
    """A table of runs that differ in size only, or in data only.

    Raises:
        EfflabError: an unknown series; names those there are.
    """
    rows = points(record, ("fit",))
    most = max(r.tokens for r in rows)
    largest = max(r.parameters for r in rows)
    series = {
        "loss by size": [r for r in rows if r.tokens == most],
        "loss by data": [r for r in rows if r.parameters == largest],
    }
    known = [*series, *(["loss by schedule"] if runs(record, (CHECKPOINT,)) else [])]
    if name not in known:
        raise unknown("series", name, known)
    if name not in series:
        return schedules(record)
    chosen = sorted(series[name], key=lambda r: (r.parameters, r.tokens))
    head = ["run", "parameters", "tokens", "FLOP ÷ 6ND", "predicted", "measured", "error"]
    return columns(
        head,
        [
            [r.case, show(r.parameters), show(r.tokens), show(r.flops_over_6nd), _loss(r.predicted),
             _loss(r.measured), _percent(r.error)] for r in chosen
        ],
        range(1, 7),
    )  # fmt: skip


def schedules(record: Record) -> str:
    """A table of the runs that were read before their end, beside the runs whose schedule ended there."""
    own = {(r.size, r.tokens): r.loss for r in runs(record, ("fit",))}
    pairs = [(r, own[r.size, r.tokens]) for r in runs(record, (CHECKPOINT,)) if (r.size, r.tokens) in own]
    pairs.sort(key=lambda pair: (pair[0].tokens, pair[0].size))
    rows = [
        [show(r.size), show(r.tokens), _loss(loss), _loss(r.loss), _percent(r.loss / loss - 1)] for r, loss in pairs
    ]
    head = ["parameters", "tokens", "schedule ends there", "schedule goes on", "difference"]
    said = [columns(head, rows, range(5))]
    noise = scatter(record)
    if noise:
        # Both runs scatter.
        clear = [r.loss / loss - 1 for r, loss in pairs if abs(math.log(r.loss / loss)) > 2 * math.sqrt(2) * noise]
        said.append(
            f"Beyond {_share(2 * math.sqrt(2) * noise)}, twice the scatter of a difference of two runs: "
            f"{len(clear)} of {len(pairs)}, of them "
            f"{sum(x > 0 for x in clear)} higher and {sum(x < 0 for x in clear)} lower."
        )
    return "\n".join(said)


def compare(record: Record, slow: str, fast: str) -> str:
    """How much lower the loss of one run is than another's, predicted and measured.

    Raises:
        EfflabError: an unknown case.
    """
    rows = {r.case: r for r in points(record)}
    for name in (slow, fast):
        if name not in rows:
            raise unknown("compare: case", name, rows)
    a, b = rows[slow], rows[fast]
    lines = [
        f"{r.case}: {show(r.parameters, PARAMETER)} on {show(r.tokens, TOKEN)}: predicted {_loss(r.predicted)}, "
        f"measured {_loss(r.measured)}"
        for r in (a, b)
    ]
    lines.append(
        f"lower by: predicted {_percent(1 - b.predicted / a.predicted)}, "
        f"measured {_percent(1 - b.measured / a.measured)}"
    )
    return "\n".join(lines)


__all__ = [
    "BASE",
    "CALIBRATION",
    "CHECKPOINT",
    "DRAWN",
    "LIMITS",
    "PICTURES",
    "Row",
    "Run",
    "StepTime",
    "alternatives",
    "answers",
    "asked",
    "banner",
    "calibrates",
    "calibration",
    "calibration_text",
    "cases",
    "compare",
    "describe",
    "evidence",
    "grid",
    "law",
    "law_of_checkpoints",
    "missing",
    "optimum",
    "points",
    "runs",
    "scatter",
    "scatters",
    "schedules",
    "step_time",
    "summary",
    "sweep",
    "table",
    "text",
    "without_embedding",
]  # fmt: skip
