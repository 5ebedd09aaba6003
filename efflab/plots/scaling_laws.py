"""Measured losses with the law fitted to the small runs, and the runs that it did not see."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from efflab.errors import EfflabError
from efflab.plots import COLOURS, pyplot, title
from efflab.reconcile import scaling_laws as reconcile
from efflab.records import Record
from efflab.units import TOKEN, show

MARKERS = "osD^vP"


def scaling_laws(record: Record) -> Any:
    """Draw loss against size, a curve and a colour for each number of tokens, held-out runs with their interval.

    Returns:
        A matplotlib figure.

    Raises:
        EfflabError: matplotlib is missing, or the record has no law to draw.
    """
    plt = pyplot()
    fit, rows = reconcile.law(record), reconcile.points(record)
    fitted = [r for r in rows if r.role == "fit"]
    held = [r for r in rows if r.role == "held-out"]
    if not fitted:
        raise EfflabError(f"record {record.id}: it has no fitted runs to draw. Measure it again.")
    figure, axes = plt.subplots(figsize=(6.4, 5.0), layout="constrained")
    low = min(r.parameters for r in rows) / 1.5
    high = max(r.parameters for r in rows) * 1.5
    sizes = np.geomspace(low, high, 200)
    looks = zip(itertools.cycle(COLOURS), itertools.cycle(MARKERS), sorted({r.tokens for r in rows}), strict=False)
    for colour, marker, tokens in looks:
        axes.plot(sizes, fit.loss(sizes, tokens), color=colour, lw=1.4, label=show(tokens, TOKEN), zorder=1)
        of = [r for r in fitted if r.tokens == tokens]
        axes.scatter(
            [r.parameters for r in of], [r.measured for r in of], s=45, color=colour, marker=marker,
            edgecolor="white", linewidth=0.8, zorder=3,
        )  # fmt: skip
        for r in (r for r in held if r.tokens == tokens):
            assert r.low is not None and r.high is not None
            spread = [[max(0.0, r.predicted - r.low)], [max(0.0, r.high - r.predicted)]]
            axes.errorbar(
                [r.parameters], [r.predicted], yerr=spread, fmt="none", color=colour, capsize=5, lw=1.6, zorder=2,
            )  # fmt: skip
            axes.scatter(
                [r.parameters], [r.measured], s=150, color=colour, marker="*", edgecolor="white", linewidth=0.8,
                zorder=4, label=r.case,
            )  # fmt: skip
    axes.set(xscale="log", xlim=(low, high))
    axes.set_xlabel("parameters")
    axes.set_ylabel("validation loss (nats per token)")
    axes.set_title(title(record, f"law fitted to {len(fitted)} small runs"), fontsize=10)
    axes.grid(True, which="major", alpha=0.3)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8)
    return figure
