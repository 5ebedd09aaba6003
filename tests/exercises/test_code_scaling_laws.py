"""The scaling laws' code checkers: other right solutions pass, usual mistakes are named, nothing escapes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from scipy.special import huber

from tests.exercises import judging

NAMES = {
    1: "parameters, tokens, devices, peak_performance, mfu",
    2: "layers, hidden_size, intermediate_size, query_heads, kv_heads, head_dim, vocabulary, tied",
    3: "flops, A, alpha, B, beta",
    4: "sizes, losses, irreducible_loss",
    5: "a, b, e, alpha, beta, parameters, tokens, losses, delta",
    6: "runs, estimate, level, resamples, generator",
    7: "tokens_per_second, parameters, devices, peak_performance, recomputed",
}

verdict, wrong = judging.code("scaling_laws", NAMES)
STRANGE = [
    *judging.STRANGE, 0, {1: 2, 3: 4}, (math.inf, math.inf), (math.nan, 1.0), (0, 0), ("a", "b"), (True, False),
    (1j, 2), [[1, 2], [3, 4]], (-1.0, -1.0), {3, 4}, (10**400, 1), (1e-300, 1e300),
]  # fmt: skip


@pytest.mark.parametrize("number", NAMES)
@pytest.mark.parametrize("value", STRANGE, ids=lambda v: type(v).__name__)
def test_whatever_comes_back_is_answered_in_words(number, value):
    result = verdict(number, lambda *_: value)
    assert result.outcome == "wrong" and result.feedback


@pytest.mark.parametrize("number", NAMES)
def test_an_exit_an_error_and_a_blank_are_answered_in_words(number):
    judging.led_astray("scaling_laws", number, verdict)


# 1. Days


def days(n, d, devices, peak, mfu, factor=6.0):
    return factor * n * d / devices / peak / mfu / 3600 / 24


def test_days():
    assert verdict(1, days)


@pytest.mark.parametrize(
    ("mistake", "function"),
    [
        ("seconds", lambda *x: days(*x) * 86400),
        ("hours", lambda *x: days(*x) * 24),
        ("counted a multiply-add as one", lambda *x: days(*x, factor=3)),
        ("forgot the backward pass", lambda *x: days(*x, factor=2)),
        ("one product in the backward pass", lambda *x: days(*x, factor=4)),
        ("counted recomputation", lambda *x: days(*x, factor=8)),
        ("forgot the MFU", lambda n, d, devices, peak, mfu: days(n, d, devices, peak, 1)),
        ("multiplied by the MFU", lambda n, d, devices, peak, mfu: days(n, d, devices, peak, 1 / mfu)),
        ("forgot the devices", lambda n, d, devices, peak, mfu: days(n, d, 1, peak, mfu)),
        ("multiplied by the devices", lambda n, d, devices, peak, mfu: days(n, d, 1 / devices, peak, mfu)),
        ("took the MFU for percent", lambda n, d, devices, peak, mfu: days(n, d, devices, peak, mfu / 100)),
        (None, lambda *x: round(days(*x))),
        (None, lambda *x: 38.0),
    ],
)
def test_days_mistakes(mistake, function):
    assert "training_days(" in wrong(1, function, mistake)


# 2. Parameters


def decoder(layers, h, f, q, kv, d, v, tied, *, biases=0, norms=1, last=1):
    """By counting the numbers of each matrix."""
    attention = sum(rows * columns for rows, columns in ((h, q * d), (h, kv * d), (h, kv * d), (q * d, h)))
    block = attention + sum([h * f] * 3) + norms * 2 * h
    return layers * block + last * h + v * h + (0 if tied else v * h)


def test_decoder():
    assert verdict(2, decoder)
    assert verdict(2, lambda *x: float(decoder(*x)))


@pytest.mark.parametrize(
    ("mistake", "function"),
    [
        ("query heads for keys and values", lambda n, h, f, q, kv, d, v, t: decoder(n, h, f, q, q, d, v, t)),
        (
            "took the heads to be as wide as the model",
            lambda n, h, f, q, kv, d, v, t: decoder(n, h, f, q, kv, h / q, v, t),
        ),
        ("two matrices in the MLP", lambda n, h, f, *x: decoder(n, h, f, *x) - n * h * f),
        ("forgot the output projection", lambda n, h, f, q, kv, d, *x: decoder(n, h, f, q, kv, d, *x) - n * h * q * d),
        ("forgot keys or values", lambda n, h, f, q, kv, d, *x: decoder(n, h, f, q, kv, d, *x) - n * h * kv * d),
        ("forgot the norms", lambda *x: decoder(*x, norms=0, last=0)),
        ("forgot the last norm", lambda *x: decoder(*x, last=0)),
        ("one norm per block", lambda *x: decoder(*x, norms=0.5)),
        ("layer norms", lambda *x: decoder(*x, norms=2, last=2)),
        ("tied and untied swapped", lambda *x: decoder(*x[:-1], not x[-1])),
        ("tied and untied swapped", lambda *x: decoder(*x[:-1], True)),
        ("forgot the embedding", lambda n, h, f, q, kv, d, v, t: decoder(n, h, f, q, kv, d, 0, t)),
        (None, lambda *x: 12 * x[0] * x[1] ** 2),
        (None, lambda *x: decoder(*x) + 1),
    ],
)
def test_decoder_mistakes(mistake, function):
    said = wrong(2, function, mistake)
    assert "decoder_parameters(layers=" in said


# 3. The optimum


def optimum(flops, a, alpha, b, beta):
    """By search, so that it does not share the checker's algebra."""

    def loss(log_n):
        n = math.exp(log_n)
        return a / n**alpha + b / (flops / 6 / n) ** beta

    n = math.exp(minimize_scalar(loss, bracket=(math.log(flops) / 2 - 3, math.log(flops) / 2), tol=1e-10).x)
    return n, flops / (6 * n)


def test_optimum_by_search():
    assert verdict(3, optimum)
    assert verdict(3, lambda *x: np.array(optimum(*x)))
    assert verdict(3, lambda *x: list(optimum(*x)))


def formula(flops, a, alpha, b, beta, *, six=6.0, swap=False, upside=False, plain=False):
    ratio = (a / b) if plain else (alpha * a) / (beta * b)
    g = ratio ** ((-1 if upside else 1) / (alpha + beta))
    n = g * (flops / six) ** ((alpha if swap else beta) / (alpha + beta))
    return n, flops / 6 / n


@pytest.mark.parametrize(
    ("mistake", "function"),
    [
        ("wrong order", lambda *x: optimum(*x)[::-1]),
        ("forgot the 6", lambda *x: (optimum(*x)[0], 6 * optimum(*x)[1])),
        ("forgot the 6", lambda *x: formula(*x, six=1)),
        ("swapped the exponents", lambda *x: formula(*x, swap=True)),
        ("G upside down", lambda *x: formula(*x, upside=True)),
        ("G without the exponents", lambda *x: formula(*x, plain=True)),
        (
            "twenty tokens per parameter",
            lambda flops, *_: (math.sqrt(flops / 120), 20 * math.sqrt(flops / 120)),
        ),
        ("equal numbers", lambda flops, *_: (math.sqrt(flops / 6), math.sqrt(flops / 6))),
        ("budget", lambda *x: (optimum(*x)[0], 1e12)),
        (None, lambda *x: (1.2 * optimum(*x)[0], optimum(*x)[1] / 1.2)),
    ],
)
def test_optimum_mistakes(mistake, function):
    wrong(3, function, mistake)


# 4. A power law


def fit(sizes, losses, e):
    """By the normal equations."""
    x, y = np.log10(np.array(sizes)), np.log10(np.array(losses) - e)
    slope = ((x - x.mean()) * (y - y.mean())).sum() / ((x - x.mean()) ** 2).sum()
    return 10 ** (y.mean() - slope * x.mean()), -slope


def on_the_losses(sizes, losses, e):
    from scipy.optimize import curve_fit

    start = fit(sizes, losses, e)
    return tuple(curve_fit(lambda n, a, alpha: e + a * n**-alpha, np.array(sizes), np.array(losses), p0=start)[0])


def test_fit():
    assert verdict(4, fit)


def test_the_learner_may_change_the_lists():
    def fit_in_place(sizes, losses, e):
        result = fit(sizes, losses, e)
        sizes.clear()
        losses.clear()
        return result

    assert verdict(4, fit_in_place)


@pytest.mark.parametrize(
    ("mistake", "function"),
    [
        ("wrong order", lambda *x: fit(*x)[::-1]),
        ("sign", lambda *x: (fit(*x)[0], -fit(*x)[1])),
        ("kept the irreducible loss", lambda sizes, losses, e: fit(sizes, losses, 0.0)),
        ("gave log A", lambda *x: (math.log(fit(*x)[0]), fit(*x)[1])),
        ("gave log A", lambda *x: (math.log10(fit(*x)[0]), fit(*x)[1])),
        ("mixed logarithms", lambda *x: (10 ** math.log(fit(*x)[0]), fit(*x)[1])),
        ("mixed logarithms", lambda *x: (math.exp(math.log10(fit(*x)[0])), fit(*x)[1])),
        ("mixed logarithms", lambda *x: (fit(*x)[0], fit(*x)[1] * math.log(10))),
        ("mixed logarithms", lambda *x: (fit(*x)[0], fit(*x)[1] / math.log(10))),
        ("another fit", on_the_losses),
        (None, lambda *x: (1.0, 2.0)),
    ],
)
def test_fit_mistakes(mistake, function):
    wrong(4, function, mistake)


def test_the_line_turned_over():
    def turned(sizes, losses, e):
        x, y = np.log(np.array(sizes)), np.log(np.array(losses) - e)
        slope = 1 / np.polyfit(y, x, 1)[0]
        return math.exp(y.mean() - slope * x.mean()), -slope

    wrong(4, turned, "turned the line over")


# 5. The objective


def residuals(a, b, e, alpha, beta, n, d, losses):
    """log-sum-exp, as the paper writes it."""
    return np.logaddexp(np.logaddexp(a - alpha * np.log(n), b - beta * np.log(d)), e) - np.log(losses)


def objective(*x):
    return huber(x[-1], residuals(*x[:-1])).sum()


def test_objective():
    assert verdict(5, objective)
    assert verdict(5, lambda *x: torch.tensor(objective(*x)))


def plainly(a, b, e, alpha, beta, n, d, losses, delta):
    return huber(delta, np.log(np.abs(e + a / n**alpha + b / d**beta)) - np.log(losses)).sum()


def one_sided(r, delta, size):
    return np.where(r <= delta, r**2 / 2, delta * (size(r) - delta / 2)).sum()


def jump(r, delta, beyond):
    return np.where(np.abs(r) <= delta, r**2 / 2, beyond).sum()


@pytest.mark.parametrize(
    ("mistake", "function"),
    [
        ("averaged", lambda *x: objective(*x) / len(x[7])),
        ("not summed", lambda *x: huber(x[-1], residuals(*x[:-1]))),
        ("not summed", lambda *x: list(huber(x[-1], residuals(*x[:-1])))),
        ("forgot the half", lambda *x: 2 * objective(*x)),
        (
            "residuals of the losses",
            lambda *x: huber(x[-1], np.exp(residuals(*x[:-1]) + np.log(x[7])) - x[7]).sum(),
        ),
        ("took the constants for their logarithms", plainly),
        ("base 10", lambda *x: huber(x[-1], residuals(*x[:-1]) / math.log(10)).sum()),
        ("squared everywhere", lambda *x: (residuals(*x[:-1]) ** 2 / 2).sum()),
        ("linear everywhere", lambda *x: x[-1] * np.abs(residuals(*x[:-1])).sum()),
        ("linear everywhere", lambda *x: (x[-1] * (np.abs(residuals(*x[:-1])) - x[-1] / 2)).sum()),
        (
            "jump at delta",
            lambda *x: jump(residuals(*x[:-1]), x[-1], x[-1] * np.abs(residuals(*x[:-1]))),
        ),
        (
            "jump at delta",
            lambda *x: jump(residuals(*x[:-1]), x[-1], x[-1] * (np.abs(residuals(*x[:-1])) - x[-1])),
        ),
        *(
            (
                "no absolute value",
                lambda *x, s=s, f=f: one_sided(s * residuals(*x[:-1]), x[-1], f),
            )
            for s in (1, -1)
            for f in (np.abs, lambda r: r)
        ),
        (None, lambda *x: 0.5),
    ],
)
def test_objective_mistakes(mistake, function):
    wrong(5, function, mistake)


# 6. The bootstrap


def bootstrap(runs, estimate, level, resamples, generator, *, size=None, replace=True, take=None):
    values = []
    for _ in range(resamples):
        places = generator.choice(len(runs), size=size or len(runs), replace=replace)
        values.append(estimate([runs[i] for i in places]))
    low, high = (1 - level) / 2, (1 + level) / 2
    return take(values, level) if take else (np.quantile(values, low), np.quantile(values, high))


def test_bootstrap():
    assert verdict(6, bootstrap)


@pytest.mark.parametrize("method", ["lower", "higher", "nearest", "midpoint", "weibull", "median_unbiased"])
def test_other_definitions_of_a_quantile_are_right(method):
    def take(values, level):
        return np.quantile(values, [(1 - level) / 2, (1 + level) / 2], method=method)

    assert verdict(6, lambda *x: bootstrap(*x, take=take))


def test_bootstrap_of_arrays_at_once_and_with_the_point_estimate_first():
    def arrays(runs, estimate, level, resamples, generator):
        table = np.array(runs)
        estimate(runs)
        places = generator.integers(len(runs), size=(resamples, len(runs)))
        values = sorted(estimate(table[p]) for p in places)
        return values[int((1 - level) / 2 * resamples)], values[int((1 + level) / 2 * resamples)]

    assert verdict(6, arrays)


def normal(factor):
    def take(values, level):
        mean, spread = np.mean(values), np.std(values)
        return mean - factor * spread, mean + factor * spread

    return take


def columns(runs, estimate, level, resamples, generator):
    """Each column drawn on its own, which makes runs that nobody made."""
    table, n = np.array(runs), len(runs)
    values = [estimate(np.stack([c[generator.integers(n, size=n)] for c in table.T], axis=1)) for _ in range(resamples)]
    return np.quantile(values, [(1 - level) / 2, (1 + level) / 2])


def one_list(runs, estimate, level, resamples, generator):
    drawn = [runs[i] for i in generator.integers(len(runs), size=len(runs))]
    values = [estimate(drawn) for _ in range(resamples)]
    return min(values), max(values)


def never_the_last(runs, estimate, level, resamples, generator):
    n = len(runs)
    values = [estimate([runs[i] for i in generator.integers(n - 1, size=n)]) for _ in range(resamples)]
    return np.quantile(values, [(1 - level) / 2, (1 + level) / 2])


@pytest.mark.parametrize(
    ("mistake", "function"),
    [
        ("resamples", lambda r, s, level, n, g: bootstrap(r, s, level, 2 * n, g)),
        ("resamples", lambda r, s, level, n, g: (s(r), s(r))),
        ("resamples", lambda r, s, level, n, g: (0.0, 1.0)),
        ("another size", lambda *x: bootstrap(*x, size=3)),
        ("without replacement", lambda *x: bootstrap(*x, replace=False)),
        ("not whole runs", columns),
        (
            "not whole runs",
            lambda r, s, level, n, g: [s([run[-1] for run in r]) for _ in range(n)],
        ),
        ("own randomness", lambda r, s, level, n, g: bootstrap(r, s, level, n, np.random.default_rng(7))),
        ("the same list", one_list),
        ("uneven", never_the_last),
        (
            "wrong order",
            lambda *x: bootstrap(*x, take=lambda v, p: np.quantile(v, [(1 + p) / 2, (1 - p) / 2])),
        ),
        ("left out twice as much", lambda *x: bootstrap(*x, take=lambda v, p: np.quantile(v, [1 - p, p]))),
        ("one side", lambda *x: bootstrap(*x, take=lambda v, p: np.quantile(v, [0, p]))),
        ("the whole range", lambda *x: bootstrap(*x, take=lambda v, p: (min(v), max(v)))),
        ("a normal interval", lambda *x: bootstrap(*x, take=normal(1.0))),
        ("a normal interval", lambda *x: bootstrap(*x, take=normal(1.959964))),
        ("the error of the mean", lambda *x: bootstrap(*x, take=normal(1.96 / math.sqrt(x[3])))),
        (None, lambda *x: bootstrap(*x, take=lambda v, p: (0.0, 99.0))),
    ],
)
def test_bootstrap_mistakes(mistake, function):
    wrong(6, function, mistake)


def test_a_bootstrap_that_never_ends_is_stopped():
    def forever(runs, estimate, level, resamples, generator):
        while True:
            estimate(runs)

    assert "more than 20000 times" in verdict(6, forever).feedback


# 7. Utilisation


def both(speed, n, devices, peak, recomputed, *, needs=6.0, again=2.0):
    mfu = needs * n * speed / (devices * peak)
    return mfu, mfu * (needs + (again if recomputed else 0)) / needs


def test_utilisation():
    assert verdict(7, both)


@pytest.mark.parametrize(
    ("mistake", "function"),
    [
        ("swapped", lambda *x: both(*x)[::-1]),
        ("recomputation in the MFU", lambda *x: (both(*x)[1], both(*x)[1])),
        ("counted a multiply-add as one", lambda *x: both(*x, needs=3, again=1)),
        ("forgot the backward pass", lambda *x: both(*x, needs=2)),
        ("forgot the devices", lambda s, n, k, p, r: both(s, n, 1, p, r)),
        ("percent", lambda *x: tuple(100 * v for v in both(*x))),
        ("turned over", lambda *x: tuple(1 / v for v in both(*x))),
        ("reduced by recomputation", lambda *x: (both(*x)[0] ** 2 / both(*x)[1], both(*x)[0])),
        ("forgot the recomputation", lambda *x: (both(*x)[0], both(*x)[0])),
        ("recomputed the backward pass", lambda *x: both(*x, again=4)),
        ("recomputed everything", lambda *x: both(*x, again=6)),
        ("half a pass", lambda *x: both(*x, again=3)),
        ("ignored recomputed", lambda s, n, k, p, r: both(s, n, k, p, True)),
        (None, lambda *x: (0.5, 0.5)),
        (None, lambda *x: (both(*x)[0], 0.9)),
    ],
)
def test_utilisation_mistakes(mistake, function):
    wrong(7, function, mistake)
