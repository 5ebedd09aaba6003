"""Fit the runs of Besiroglu et al. 2024 and compare with the known optimum: `python -m bench.besiroglu FILE.csv`.

The file is data/svg_extracted_data.csv of https://github.com/epoch-research/analyzing-chinchilla (columns "Model
Size", "Training FLOP" and "loss"; 245 runs). It has no licence, so it is not part of this repository. As in the paper,
tokens are FLOP / (6 × size), and the five runs with the highest losses are left out. The exit status is 1 where the
fit misses the optimum.
"""

from __future__ import annotations

import csv
import sys
import time
from pathlib import Path

import numpy as np

from efflab import catalog, fits

OBJECTIVE, LIMIT, EXPONENT = 1.0230e-3, (1.817, 0.002), (0.367, 0.002)


def main(path: str) -> int:
    """Print the fit; 0 where it reaches the optimum."""
    with Path(path).open(newline="") as file:
        rows = [(float(r["Model Size"]), float(r["Training FLOP"]), float(r["loss"])) for r in csv.DictReader(file)]
    size, flops, losses = np.array(sorted(rows, key=lambda row: row[2])[:-5]).T
    tokens = flops / (6 * size)
    start = time.perf_counter()
    fit = fits.fit_parametric_loss(size, tokens, losses, bootstrap=200)
    seconds = time.perf_counter() - start
    print(f"{len(losses)} runs, 200 bootstraps, {seconds:.1f} s")
    print(f"fit                       objective {fit.objective:.7e}")
    for law in catalog.laws().values():
        objective = fits.huber_objective(size, tokens, losses, **law.constants())
        print(f"{law.name:<25} objective {objective:.7e}")
    for name, (low, high) in fit.spread().items():
        print(f"{name:<25} {getattr(fit, name):10.4f}   95% interval {low:.4f} to {high:.4f}")
    reached = (
        fit.objective <= OBJECTIVE
        and abs(fit.irreducible_loss - LIMIT[0]) <= LIMIT[1]
        and abs(fit.token_exponent - EXPONENT[0]) <= EXPONENT[1]
    )
    print("the known optimum is reached" if reached else "the known optimum is NOT reached")
    return 0 if reached else 1


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    sys.exit(main(sys.argv[1]))
