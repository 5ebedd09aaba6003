"""Reading a record of the throughput sprint: what each mend gains, alone and with the others.

Needs no torch, so that a lab book can be shown without it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from efflab.errors import EfflabError
from efflab.records import Record, median
from efflab.units import SECOND, show

TOPIC = "sprint"
ALONE = ("data", "compute", "memory")  # the mends
CASES: dict[str, tuple[str, ...]] = {"baseline": (), **{name: (name,) for name in ALONE}, "all": ALONE}
FEWEST_ROUNDS = 6  # fewer cannot give an interval of 95%


@dataclass(frozen=True)
class Gain:
    """How much faster a case is than the baseline.

    Attributes:
        time: median time of a step, s.
        speedup: median over the rounds of the baseline's time over the case's in the same round.
        low, high: interval of 95% for that median, from order statistics; the extremes where the rounds are too few.
        loss: of the last step, None where the record has none.
    """

    time: float
    speedup: float
    low: float
    high: float
    loss: float | None

    @property
    def saved(self) -> float:
        """Share of the baseline's time that the case saves."""
        return 1 - 1 / self.speedup


def ablation(record: Record) -> dict[str, Gain]:
    """What each case of a record gains, in the order of `CASES`; cases that are missing or without partners left out.

    Raises:
        EfflabError: a record of another topic.
    """
    if record.topic != TOPIC:
        raise EfflabError(f"record {record.id}: its topic is {record.topic!r}; one of {TOPIC!r} is needed.")
    times = {s.point.get("case"): s.values for s in record.find("time") if s.status == "ok"}
    losses = {s.point.get("case"): s.values[-1] for s in record.find("loss") if s.status == "ok"}
    found: dict[str, Gain] = {}
    base = times.get("baseline", [])
    for case in CASES:
        values = times.get(case, [])
        if not values or len(values) != len(base):
            continue
        low, middle, high = interval(base, values)
        found[case] = Gain(median(values), middle, low, high, losses.get(case))
    return found


def interval(base: list[float], values: list[float]) -> tuple[float, float, float]:
    """Median of the speedups round by round, between the ends of its interval: low, median, high."""
    ratios = sorted(b / v for b, v in zip(base, values, strict=True))
    rank = interval_rank(len(ratios))
    return ratios[rank - 1], median(ratios), ratios[-rank]


def interval_rank(repeats: int) -> int:
    """The r for which the r-th smallest and the r-th largest of so many values enclose the median in 95% of all cases.

    1 where even the extremes cannot promise that (fewer than 6 values). Each end misses with
    P(Binomial(repeats, 1/2) < r).
    """
    rank, missed = 1, 2 / 2**repeats
    while True:
        missed += 2 * math.comb(repeats, rank) / 2**repeats
        if missed > 0.05 or rank >= (repeats + 1) // 2:
            return rank
        rank += 1


HEAD = ("case", "step", "tokens per second", "faster", "95% interval", "loss at the end")


def rows(record: Record) -> list[list[str]]:
    """The ablation as a table, one row for each case; `HEAD` names the columns."""
    found = []
    size = record.spec.get("size")
    counts = [size.get(n) if isinstance(size, dict) else None for n in ("batch", "context")]
    tokens = math.prod(n if isinstance(n, int) else 0 for n in counts)
    for case, gain in ablation(record).items():
        found.append(
            [
                case,
                show(gain.time, SECOND),
                f"{tokens / gain.time:,.0f}" if tokens else "",
                f"{gain.speedup:.2f}×" if case != "baseline" else "",
                f"{gain.low:.2f} to {gain.high:.2f}" if case != "baseline" else "",
                f"{gain.loss:.5f}" if gain.loss is not None else "",
            ]
        )
    return found


def summary(record: Record) -> str:
    """One sentence: what the mends save alone and together."""
    found = ablation(record)
    if not {*CASES} <= {*found}:
        missing = [c for c in CASES if c not in found]
        return f"The ablation is not complete: {', '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing."
    alone = [found[n] for n in ALONE]
    return (
        f"Together the mends make a step {found['all'].speedup:.2f} times faster; the product of what they gain alone "
        f"is {math.prod(g.speedup for g in alone):.2f}. They save {found['all'].saved:.0%} of its time together, and "
        f"{' + '.join(f'{g.saved:.0%}'.replace('-0%', '0%') for g in alone)} alone."
    )


def table(record: Record) -> str:
    """The ablation and its summary as plain text."""
    lines = [list(HEAD), *rows(record)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(HEAD))]
    made = ["  ".join([line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))])
            for line in lines]  # fmt: skip
    return "\n".join([*(line.rstrip() for line in made), "", summary(record)])
