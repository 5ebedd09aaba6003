"""Fits: a scaling law to training runs, by Hoffmann's third approach, and latency and bandwidth to messages.

The law is L = E + A / N^alpha + B / D^beta. The objective is the one of Hoffmann et al. 2022, arXiv:2203.15556,
equation 11: the Huber loss of the difference of the logarithms of measured and predicted loss, summed over the runs.
Summed, not averaged: an average makes every gradient small, and an optimizer with a fixed tolerance then stops
before the optimum (Besiroglu et al. 2024, arXiv:2404.10102).

The time of a message is a + S / b (Hockney 1994, doi:10.1016/S0167-8191(06)80021-9). Sizes span five orders of
magnitude, so that the squares are of relative errors: else the largest message alone would decide.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from efflab.errors import EfflabError
from efflab.formulas.scaling_laws import EXPONENT, parametric_loss

CONSTANTS = ("irreducible_loss", "parameter_coefficient", "parameter_exponent", "token_coefficient", "token_exponent")
DELTA = 1e-3  # Hoffmann et al. 2022, appendix D.2

Array = np.ndarray[Any, np.dtype[np.float64]]

_TERM_FLOOR = 7.0  # a term e^7 times below the smallest loss, 0.1% of it, is no term any more
_SCAN = np.geomspace(EXPONENT.low, 2.0, 18)  # exponents at which the linear constants are solved for


@dataclass(frozen=True, eq=False)
class Fit:
    """A fitted law.

    Attributes:
        irreducible_loss, parameter_coefficient, parameter_exponent, token_coefficient, token_exponent: the
            constants, also as E, A, alpha, B, beta; losses in nats per token.
        objective: the summed Huber loss at the optimum.
        residuals: log of measured over predicted loss, one per run.
        samples: constants of the bootstrap's refits, one row each, columns as CONSTANTS; empty without bootstrap.
        warnings: what the data could not determine, for people.
    """

    irreducible_loss: float
    parameter_coefficient: float
    parameter_exponent: float
    token_coefficient: float
    token_exponent: float
    objective: float
    residuals: Array = field(repr=False)
    samples: Array = field(repr=False)
    warnings: tuple[str, ...] = ()

    @property
    def E(self) -> float:
        """The irreducible loss."""
        return self.irreducible_loss

    @property
    def A(self) -> float:
        """The coefficient of size."""
        return self.parameter_coefficient

    @property
    def alpha(self) -> float:
        """The exponent of size."""
        return self.parameter_exponent

    @property
    def B(self) -> float:
        """The coefficient of data."""
        return self.token_coefficient

    @property
    def beta(self) -> float:
        """The exponent of data."""
        return self.token_exponent

    def constants(self) -> dict[str, float]:
        """The five constants, by the names that `formulas.scaling_laws.parametric_loss` gives them."""
        return {name: getattr(self, name) for name in CONSTANTS}

    def loss(self, parameters: float | Array, tokens: float | Array) -> Any:
        """Loss that the fit predicts, nats per token; a number or an array, as the arguments."""
        return parametric_loss(parameters=parameters, tokens=tokens, **self.constants())

    def interval(
        self, parameters: float, tokens: float, level: float = 0.95, one_run: bool = False
    ) -> tuple[float, float]:
        """Bootstrap interval of a predicted loss, nats per token.

        Args:
            parameters: size of the model.
            tokens: its training tokens.
            level: share of the refits inside.
            one_run: the interval for one further run, which scatters about the law as the fitted runs do;
                otherwise the interval for the law itself. Few runs make either too narrow.

        Raises:
            EfflabError: the fit has no bootstrap samples, or the level is not between 0 and 1.
        """
        low, high = self._tails(level)
        columns = dict(zip(CONSTANTS, self.samples.T, strict=True))
        losses = parametric_loss(parameters=parameters, tokens=tokens, **columns)
        if one_run:
            # Five constants took up some of the scatter.
            scale = np.sqrt(len(self.residuals) / max(len(self.residuals) - len(CONSTANTS), 1))
            losses = np.outer(losses, np.exp(scale * self.residuals))
        return float(np.quantile(losses, low)), float(np.quantile(losses, high))

    def spread(self, level: float = 0.95) -> dict[str, tuple[float, float]]:
        """Bootstrap interval of each constant.

        Raises:
            EfflabError: the fit has no bootstrap samples, or the level is not between 0 and 1.
        """
        tails = self._tails(level)
        low, high = np.quantile(self.samples, tails, axis=0)
        return {name: (float(a), float(b)) for name, a, b in zip(CONSTANTS, low, high, strict=True)}

    def _tails(self, level: float) -> tuple[float, float]:
        if not 0 < level < 1:
            raise EfflabError(f"level: must be between 0 and 1, such as 0.95, got {level!r}.")
        if not len(self.samples):
            raise EfflabError("This fit has no interval: fit again with bootstrap=200 or more.")
        return (1 - level) / 2, (1 + level) / 2


def huber_objective(
    parameters: Sequence[float] | Array,
    tokens: Sequence[float] | Array,
    losses: Sequence[float] | Array,
    *,
    delta: float = DELTA,
    **constants: float,
) -> float:
    """Hoffmann's objective for given constants: to compare a published law with a fit on the same runs.

    Args:
        parameters: size of each run's model.
        tokens: training tokens of each run.
        losses: final loss of each run, nats per token.
        delta: where the Huber loss turns from a square into a line.
        constants: as `formulas.scaling_laws.parametric_loss` names them.

    Raises:
        EfflabError: see `fit_parametric_loss`.
    """
    n, d, measured = _checked(parameters, tokens, losses)
    _positive("delta", delta)
    residuals = np.log(measured) - np.log(parametric_loss(parameters=n, tokens=d, **constants))
    return float(np.sum(_huber(residuals, delta)))


def fit_parametric_loss(
    parameters: Sequence[float] | Array,
    tokens: Sequence[float] | Array,
    losses: Sequence[float] | Array,
    *,
    delta: float = DELTA,
    bootstrap: int = 0,
    seed: int = 0,
) -> Fit:
    """Fit L = E + A / N^alpha + B / D^beta to training runs.

    Hoffmann et al. start L-BFGS from 4500 points. Here the starts are the minima of a profile: at given exponents
    the law is linear in E, A and B, so a scan over both exponents finds every basin at little cost.

    Args:
        parameters: size of each run's model.
        tokens: training tokens of each run.
        losses: final loss of each run, nats per token.
        delta: where the Huber loss turns from a square into a line; far below the scatter it acts as an absolute
            value, so that single bad runs count little.
        bootstrap: number of refits to resampled runs, for intervals; 0 for none, 200 for a plot, 1000 for a table.
        seed: of the resampling; the same seed gives the same result.

    Returns:
        The fit. Its `warnings` name each constant that the runs do not determine.

    Raises:
        EfflabError: lists of different lengths, a value that is not a positive finite number, fewer runs than
            constants, one size or one number of tokens only, or losses that do not fall.
    """
    n, d, measured = _checked(parameters, tokens, losses)
    _positive("delta", delta)
    for name, value in (("bootstrap", bootstrap), ("seed", seed)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise EfflabError(f"{name}: must be a whole number, 0 or more, got {value!r}.")
    _enough(n, d, measured)
    runs = _Runs(n, d, measured, delta)
    best = runs.fit(np.ones(len(n)), runs.scan(np.ones(len(n)), keep=6))
    rng = np.random.default_rng(seed)
    samples = [runs.constants(runs.refit(_resample(rng, n, d), best, rng)) for _ in range(bootstrap)]
    table = np.array(samples).reshape(-1, len(CONSTANTS))
    return Fit(
        **dict(zip(CONSTANTS, runs.constants(best).tolist(), strict=True)),
        objective=float(runs.objective(best, np.ones(len(n)))[0] * delta**2),
        residuals=runs.residuals(best),
        samples=table,
        warnings=_warnings(runs, best, table),
    )


class _Runs:
    """The runs in the coordinates of the optimizer.

    theta = (p, alpha, q, beta, e): p and q are the logarithms of the two terms at the runs' mean log size and mean
    log tokens. With log A and log B themselves, coefficient and exponent would be almost collinear. Objective and
    gradient are in units of delta², so that the optimizer's tolerances do not depend on delta.
    """

    def __init__(self, n: Array, d: Array, losses: Array, delta: float) -> None:
        self.log_n, self.log_d, self.log_loss = np.log(n), np.log(d), np.log(losses)
        self.x, self.y = self.log_n - self.log_n.mean(), self.log_d - self.log_d.mean()
        self.delta = delta
        low, high = self.log_loss.min() - _TERM_FLOOR, self.log_loss.max() + 3
        exponent = (EXPONENT.low, EXPONENT.high)
        self.bounds = [(low, high), exponent, (low, high), exponent, (low, self.log_loss.min())]
        # Exponents that two values cannot determine, as indices into theta.
        self.flat = [i for i, t in ((1, self.x), (3, self.y)) if len(set(np.round(t, 9))) < 3]
        powers = -np.outer(_SCAN, self.x), -np.outer(_SCAN, self.y)
        # Relative to the loss, so that least squares sees nearly the residuals of the logarithms.
        self.u, self.v, self.one = (np.exp(t - self.log_loss) for t in (*powers, np.zeros(len(n))))

    def predicted(self, theta: Array) -> tuple[Array, Array]:
        """Log of the predicted loss, and the share of each of the three terms in it."""
        p, alpha, q, beta, e = theta
        terms = np.empty((3, len(self.x)))
        terms[0], terms[1], terms[2] = p - alpha * self.x, q - beta * self.y, e
        top = terms.max(axis=0)
        shares = np.exp(terms - top)
        total = shares.sum(axis=0)
        return top + np.log(total), shares / total

    def residuals(self, theta: Array) -> Array:
        return self.log_loss - self.predicted(theta)[0]

    def objective(self, theta: Array, weights: Array) -> tuple[float, Array]:
        """Weighted sum of Huber losses, and its gradient, both over delta²."""
        predicted, (by_size, by_data, rest) = self.predicted(theta)
        r = (self.log_loss - predicted) / self.delta
        clipped = np.minimum(np.maximum(r, -1.0), 1.0)
        slope = -weights * clipped / self.delta
        size, data = slope * by_size, slope * by_data
        gradient = np.array([size.sum(), -(size @ self.x), data.sum(), -(data @ self.y), slope @ rest])
        return float(weights @ (clipped * (r - 0.5 * clipped))), gradient

    def second_order(self, theta: Array, weights: Array, delta: float) -> tuple[float, Array, Array, Array]:
        """Objective at another delta, its gradient, its Hessian, and the Hessian's part that is never negative."""
        predicted, (by_size, by_data, rest) = self.predicted(theta)
        r = (self.log_loss - predicted) / delta
        clipped = np.minimum(np.maximum(r, -1.0), 1.0)
        # The three terms are linear in theta, and the logarithm of their sum has the curvature diag(s) - s s'.
        terms = np.zeros((3, 5, len(r)))
        terms[0, 0], terms[0, 1], terms[1, 2], terms[1, 3], terms[2, 4] = 1, -self.x, 1, -self.y, 1
        scaled = terms * np.array([by_size, by_data, rest])[:, None, :]
        jacobian = scaled.sum(axis=0)
        inside = np.abs(r) < 1
        gauss = (jacobian * (weights * (inside / delta**2 + clipped / delta))) @ jacobian.T
        bend = np.einsum("kir,kjr->ij", scaled * (weights * clipped / delta), terms)
        everywhere = (jacobian * (weights / delta**2)) @ jacobian.T
        value = float(weights @ (clipped * (r - 0.5 * clipped)))
        return value, -(jacobian @ (weights * clipped)) / delta, gauss - bend, everywhere

    def constants(self, theta: Array) -> Array:
        """(E, A, alpha, B, beta)."""
        p, alpha, q, beta, e = theta
        a, b = p + alpha * self.log_n.mean(), q + beta * self.log_d.mean()
        return np.array([np.exp(e), np.exp(a), alpha, np.exp(b), beta])

    def scan(self, weights: Array, keep: int, rounds: int = 3) -> list[Array]:
        """Starts: the lowest minima over both exponents of a robust linear fit of E, A and B."""
        starts: list[Array] = []
        for _ in range(rounds):
            found = self._scan_once(weights, keep)
            if not found:
                break
            starts += found
            distance = np.abs(self.residuals(found[0]))
            weights = weights * np.minimum(1.0, self.delta / np.maximum(distance, 1e-12))
        if rounds > 1 or not starts:
            middle = self.log_loss.mean() - np.log(3)
            starts.append(np.array([middle, 0.5, middle, 0.5, min(middle, self.bounds[4][1])]))
        return starts

    def _scan_once(self, weights: Array, keep: int) -> list[Array]:
        grid = len(_SCAN)
        gram, right = np.empty((grid, grid, 3, 3)), np.empty((grid, grid, 3))
        wu, wv = self.u * weights, self.v * weights
        for i, j, value in (
            (0, 0, np.sum(wu * self.u, axis=1)[:, None]),
            (1, 1, np.sum(wv * self.v, axis=1)[None, :]),
            (2, 2, weights @ self.one**2),
            (0, 1, wu @ self.v.T),
            (0, 2, (wu @ self.one)[:, None]),
            (1, 2, (wv @ self.one)[None, :]),
        ):
            gram[:, :, i, j] = gram[:, :, j, i] = value
        right[..., 0], right[..., 1], right[..., 2] = (
            wu.sum(axis=1)[:, None],
            wv.sum(axis=1)[None, :],
            weights @ self.one,
        )
        cost = np.full((grid, grid), np.inf)
        solved = np.zeros((grid, grid, 3))
        # A term that comes out negative is left out: the best fit without it lies on that face.
        for terms in ([0, 1, 2], [0, 1], [0, 2], [1, 2]):
            part, target = gram[..., terms, :][..., terms], right[..., terms]
            ridge = 1e-12 * np.trace(part, axis1=2, axis2=3)[..., None, None] * np.eye(len(terms))
            x = np.linalg.solve(part + ridge, target[..., None])[..., 0]
            value = weights.sum() - np.sum(x * target, axis=-1)
            better = np.all(x > 0, axis=-1) & (value < cost)
            cost[better] = value[better]
            full = np.zeros((grid, grid, 3))
            full[..., terms] = x
            solved[better] = full[better]
        padded = np.pad(cost, 1, constant_values=np.inf)
        around = [padded[1 + i : grid + 1 + i, 1 + j : grid + 1 + j] for i in (-1, 0, 1) for j in (-1, 0, 1) if i or j]
        minima = np.argwhere((cost <= np.min(around, axis=0)) & np.isfinite(cost))
        minima = sorted(minima.tolist(), key=lambda ij: cost[ij[0], ij[1]])[:keep]
        starts = []
        for i, j in minima:
            a, b, e = np.log(np.maximum(solved[i, j], 1e-300))
            starts.append(np.array([a, _SCAN[i], b, _SCAN[j], e]))
        return starts

    def fit(self, weights: Array, starts: list[Array]) -> Array:
        """The best of Newton runs from all starts, gone over by L-BFGS and Newton until neither finds lower."""
        from scipy.optimize import minimize

        def height(theta: Array) -> float:
            return self.objective(theta, weights)[0]

        best = min((self.descend(start, weights) for start in starts), key=height)
        for _ in range(5):
            run = minimize(
                self.objective,
                best,
                args=(weights,),
                jac=True,
                method="L-BFGS-B",
                bounds=self.bounds,
                options={"maxiter": 200, "ftol": 1e-13, "gtol": 1e-8},
            )
            # The Huber loss has no second derivative at delta, which can end a line search early: Newton goes on.
            again = min(run.x, self.descend(run.x, weights, (1.0,)), key=height)
            if not height(again) < height(best) * (1 - 1e-9):
                break
            best = again
        return best

    def refit(self, weights: Array, optimum: Array, rng: np.random.Generator) -> Array:
        """A fit of a resample: from the optimum of all runs, and from the resample's own best start.

        Two sizes fit any exponent equally well; then the exponent is drawn, so that the samples show it.
        """
        starts = [optimum, *self.scan(weights, keep=1, rounds=1)[:1]]
        if len(self.flat):
            starts = [optimum.copy()]
            starts[0][self.flat] = np.exp(rng.uniform(np.log(EXPONENT.low), np.log(EXPONENT.high), len(self.flat)))
        ends = [self.descend(start, weights) for start in starts]
        return min(ends, key=lambda theta: self.objective(theta, weights)[0])

    def descend(self, theta: Array, weights: Array, widths: tuple[float, ...] = (30.0, 10.0, 3.0, 1.0)) -> Array:
        """Newton's method with damping inside the bounds, for a Huber loss that narrows to delta.

        Few residuals lie within delta, so at delta alone most of the Hessian is missing far from the optimum.
        """
        low, high = np.array(self.bounds).T
        theta = np.clip(theta, low, high)
        for width in widths:
            delta, damping = width * self.delta, 1e-3
            value, gradient, hessian, scale = self.second_order(theta, weights, delta)
            for _ in range(60):
                free = ~(((theta <= low) & (gradient > 0)) | ((theta >= high) & (gradient < 0)))
                if not free.any() or value < 1e-18:
                    break
                diagonal = np.diag(np.diag(scale) + 1e-12)
                matrix = (hessian + damping * diagonal)[np.ix_(free, free)]
                step = np.zeros(5)
                try:
                    np.linalg.cholesky(matrix)  # damped until it is a descent direction
                    step[free] = -np.linalg.solve(matrix, gradient[free])
                except np.linalg.LinAlgError:
                    damping = max(4 * damping, 1e-6)
                    continue
                target = np.clip(theta + step, low, high)
                trial = self.second_order(target, weights, delta)
                gain = value - trial[0]
                if gain > 0:
                    theta, (value, gradient, hessian, scale) = target, trial
                    damping = damping / 5 if damping > 1e-12 else damping
                    if gain < 1e-13 * value:
                        break
                else:
                    damping = max(4 * damping, 1e-9)
                    if damping > 1e9:
                        break
        return theta


def _huber(residuals: Array, delta: float) -> Array:
    size = np.abs(residuals)
    return np.where(size <= delta, 0.5 * residuals**2, delta * (size - 0.5 * delta))


def _resample(rng: np.random.Generator, n: Array, d: Array) -> Array:
    """How often each run is drawn. Draws that could not be fitted at all are drawn again."""
    while True:
        drawn = rng.integers(0, len(n), len(n))
        distinct = len(set(zip(n[drawn], d[drawn], strict=True)))
        if distinct >= len(CONSTANTS) and len(set(n[drawn])) > 1 and len(set(d[drawn])) > 1:
            return np.bincount(drawn, minlength=len(n)).astype(float)


def _positive(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float | np.number) or not 0 < value < np.inf:
        raise EfflabError(f"{name}: must be a number greater than zero, got {value!r}.")


def _checked(parameters: Any, tokens: Any, losses: Any) -> tuple[Array, Array, Array]:
    """The three lists as arrays of positive finite numbers of one length."""
    n, d, measured = _same_length(parameters=parameters, tokens=tokens, losses=losses)
    return n, d, measured


def _same_length(**lists: Any) -> list[Array]:
    """The named lists as arrays of positive finite numbers of one length."""
    arrays = []
    one = "message" if "times" in lists else "run"
    mend = "Measure it again." if one == "message" else "Leave out runs that diverged or failed."
    for name, values in lists.items():
        try:
            array = np.asarray(values, dtype=float)
        except (TypeError, ValueError):
            raise EfflabError(f"{name}: must be a list of numbers, one per {one}, got {values!r}.") from None
        if array.ndim != 1:
            raise EfflabError(f"{name}: must be a list of numbers, one per {one}, got an array of shape {array.shape}.")
        bad = np.flatnonzero(~(np.isfinite(array) & (array > 0)))
        if len(bad):
            raise EfflabError(
                f"{name}: {one} {bad[0]} has {array[bad[0]]:g}; every value must be a finite number greater than "
                f"zero. {mend}"
            )
        arrays.append(array)
    lengths = [len(a) for a in arrays]
    if len(set(lengths)) > 1:
        *names, last = lists
        *counts, end = map(str, lengths)
        raise EfflabError(
            f"{', '.join(names)} and {last} have {', '.join(counts)} and {end} values. Give one of each per {one}."
        )
    return arrays


def _enough(n: Array, d: Array, losses: Array) -> None:
    distinct = len(set(zip(n, d, strict=True)))
    if not distinct:
        raise EfflabError(f"parameters, tokens, losses: no runs. Give at least {len(CONSTANTS)} different ones.")
    for name, values, mend in (
        ("parameters", n, "models of other sizes"),
        ("tokens", d, "runs on more or fewer tokens"),
    ):
        if len(set(values)) < 2:
            raise EfflabError(
                f"{name}: every run has {values[0]:g}, so nothing shows how the loss depends on it. Add {mend}."
            )
    if distinct < len(CONSTANTS):
        raise EfflabError(
            f"parameters, tokens: {distinct} different runs cannot determine {len(CONSTANTS)} constants. "
            "Add runs of other sizes or tokens; a repeat with another seed does not count."
        )
    scale = np.log(n) + np.log(d)
    slope = np.polyfit(scale, np.log(losses), 1)[0] if np.ptp(scale) > 0 else -1.0
    if not slope < 0 or np.ptp(losses) == 0:
        raise EfflabError(
            "losses: they do not fall as models and tokens grow, so there is no law to fit. Check the order of the "
            "three lists, leave out runs that diverged, and train with a learning rate that suits each size."
        )


def _warnings(runs: _Runs, theta: Array, samples: Array) -> tuple[str, ...]:
    """What the runs leave open: constants at their bounds, terms that two values cannot determine, wide intervals."""
    said = []
    names = ("parameter_coefficient", "parameter_exponent", "token_coefficient", "token_exponent", "irreducible_loss")
    mends = {
        "irreducible_loss": "the runs are too small and short to show the limit of the loss",
        "parameter_coefficient": "the runs do not show how size matters; spread the sizes further",
        "token_coefficient": "the runs do not show how data matters; spread the tokens further",
        "parameter_exponent": "add more sizes, further apart",
        "token_exponent": "add runs on more numbers of tokens, further apart",
    }
    open_ones = set()
    for name, value, (low, high) in zip(names, theta, runs.bounds, strict=True):
        if min(value - low, high - value) < 1e-6 * (high - low):
            open_ones.add(name)
            said.append(f"{name} stands at the end of the range that is searched: {mends[name]}.")
    for i in runs.flat:
        open_ones |= {names[i], "irreducible_loss"}
        what = "sizes" if i == 1 else "numbers of tokens"
        said.append(f"{names[i]} cannot be determined from two {what}, nor can irreducible_loss: {mends[names[i]]}.")
    for name, (low, high) in _uncertainty(runs, theta, samples).items():
        if high > 3 * low and name not in open_ones:
            said.append(f"{name} is hardly determined (95% interval {max(low, 0):.2g} to {high:.2g}): {mends[name]}.")
    return tuple(said)


def _uncertainty(runs: _Runs, theta: Array, samples: Array) -> dict[str, tuple[float, float]]:
    """95% intervals of both exponents and the irreducible loss: the bootstrap's, else by the curvature."""
    wanted = {"parameter_exponent": 1, "token_exponent": 3, "irreducible_loss": 4}
    if len(samples):
        low, high = np.quantile(samples, (0.025, 0.975), axis=0)
        return {name: (low[CONSTANTS.index(name)], high[CONSTANTS.index(name)]) for name in wanted}
    residuals = runs.residuals(theta)
    count = len(residuals)
    if count <= len(CONSTANTS):
        return {name: (0.0, np.inf) for name in wanted}
    scatter = 1.4826 * np.median(np.abs(residuals)) * np.sqrt(count / (count - len(CONSTANTS)))
    everywhere = runs.second_order(theta, np.ones(count), runs.delta)[3] * runs.delta**2
    size = np.sqrt(np.diag(everywhere)) + 1e-12
    errors = scatter / size * np.sqrt(np.diag(np.linalg.inv(everywhere / np.outer(size, size) + 1e-12 * np.eye(5))))
    middle = {name: float(np.exp(theta[i]) if i == 4 else theta[i]) for name, i in wanted.items()}
    half = {name: 2 * errors[i] * (middle[name] if i == 4 else 1) for name, i in wanted.items()}
    return {name: (middle[name] - half[name], middle[name] + half[name]) for name in wanted}


# Latency and bandwidth

SHORTEST = 1e-12  # s; what is called a time below it, or above its inverse, is damage


@dataclass(frozen=True)
class MessageFit:
    """The time of a message: a latency, and its bytes over a bandwidth.

    Attributes:
        latency: s that a message of no bytes would take.
        bandwidth: B/s that a message of any size approaches.
        residuals: measured over fitted time, less one; one per message.
        latency_range: the least and the greatest latency of the fits that leave one message out, s.
        bandwidth_range: the same of the bandwidth, B/s.
    """

    latency: float
    bandwidth: float
    residuals: tuple[float, ...]
    latency_range: tuple[float, float]
    bandwidth_range: tuple[float, float]

    def time(self, message_bytes: float) -> float:
        """Seconds that a message takes by the fit."""
        return self.latency + message_bytes / self.bandwidth


def fit_latency_bandwidth(message_bytes: Sequence[float] | Array, times: Sequence[float] | Array) -> MessageFit:
    """Fit t = a + S / b to messages by least squares of the relative error, with neither part negative.

    Args:
        message_bytes: size of each message, B.
        times: of each message, s.

    Returns:
        The fit, with its residuals and its spread: what it would be without one of the messages, whichever.

    Raises:
        EfflabError: lists of different lengths, a value that is not a positive finite number, messages of fewer than
            three sizes, times that nothing can take, or that do not grow with the size.
    """
    sizes, seconds = _same_length(message_bytes=message_bytes, times=times)
    if len(set(sizes)) < 3:
        raise EfflabError(
            f"message_bytes: {len(set(sizes))} different sizes cannot show whether a line fits. Measure three or more."
        )
    for index in np.flatnonzero((seconds < SHORTEST) | (seconds > 1 / SHORTEST)):
        raise EfflabError(
            f"times: message {index} has {seconds[index]:g} s, which is no time of a message. Measure it again."
        )
    latency, slope = _relative_line(sizes, seconds)
    if not slope > 0:
        raise EfflabError(
            "times: they do not grow with the messages, so there is no bandwidth to fit. Measure larger messages, on "
            "a machine that does nothing else."
        )
    # Where one message alone holds the bandwidth, the fit without it has none: then the range has no end.
    others = [_relative_line(np.delete(sizes, i), np.delete(seconds, i)) for i in range(len(sizes))]
    rates = [1 / s if s > 0 else np.inf for _, s in others]
    return MessageFit(
        latency=latency,
        bandwidth=1 / slope,
        residuals=tuple((seconds / (latency + slope * sizes) - 1).tolist()),
        latency_range=(min(a for a, _ in others), max(a for a, _ in others)),
        bandwidth_range=(float(min(rates)), float(max(rates))),
    )


def _relative_line(sizes: Array, seconds: Array) -> tuple[float, float]:
    """Intercept and slope, neither negative, with the least sum of squares of relative errors."""
    from scipy.optimize import nnls

    scale = sizes.max()  # so that both columns are of one order
    (intercept, slope), _ = nnls(np.stack([1 / seconds, sizes / scale / seconds], axis=1), np.ones(len(sizes)))
    # What is far below every time is the solver's rounding.
    latency = float(intercept) if intercept > 1e-9 * seconds.min() else 0.0
    return latency, float(slope / scale) if slope > 1e-9 * seconds.max() else 0.0
