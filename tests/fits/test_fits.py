"""The fit of the parametric law, judged by what it was not made of.

Oracles: planted constants; an objective written anew with scipy's huber and logsumexp; finite differences;
Nelder-Mead and L-BFGS from Hoffmann's grid of starts, neither of which may find a lower objective; and the rate at
which intervals cover the truth.
"""

from __future__ import annotations

import itertools
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, special

from efflab import catalog, fits
from efflab.errors import EfflabError

ROOT = Path(__file__).parents[2]
REFIT = catalog.law("Besiroglu 2024").constants()


def grid(sizes=6, data=5, noise=0.0, seed=0, constants=REFIT, low=(5e7, 3e8), high=(1.6e10, 3e11)):
    """A full table of runs, with losses that scatter by a factor exp(noise * normal)."""
    n, d = (a.ravel() for a in np.meshgrid(np.geomspace(low[0], high[0], sizes), np.geomspace(low[1], high[1], data)))
    loss = (
        constants["irreducible_loss"]
        + constants["parameter_coefficient"] / n ** constants["parameter_exponent"]
        + constants["token_coefficient"] / d ** constants["token_exponent"]
    )
    return n, d, loss * np.exp(noise * np.random.default_rng(seed).standard_normal(len(n)))


def independent_objective(theta, n, d, losses, delta=1e-3):
    """Equation 11 of Hoffmann et al. 2022, with theta = (log A, alpha, log B, beta, log E)."""
    a, alpha, b, beta, e = theta
    terms = np.stack([a - alpha * np.log(n), b - beta * np.log(d), np.full(len(n), e)])
    return special.huber(delta, special.logsumexp(terms, axis=0) - np.log(losses)).sum()


def theta_of(fit):
    return np.array([math.log(fit.A), fit.alpha, math.log(fit.B), fit.beta, math.log(fit.E)])


@settings(max_examples=25)
@given(
    alpha=st.floats(0.2, 0.8),
    beta=st.floats(0.2, 0.8),
    e=st.floats(0.7, 2.5),
    by_size=st.floats(0.3, 2),
    by_data=st.floats(0.3, 2),
)
def test_planted_constants_come_back_from_exact_losses(alpha, beta, e, by_size, by_data):
    """by_size and by_data: what the smallest model and the shortest run add to the loss."""
    constants = dict(
        irreducible_loss=e,
        parameter_coefficient=by_size * 1e5**alpha,
        parameter_exponent=alpha,
        token_coefficient=by_data * 1e6**beta,
        token_exponent=beta,
    )
    fit = fits.fit_parametric_loss(*grid(constants=constants, low=(1e5, 1e6), high=(1e8, 1e9)))
    assert fit.constants() == pytest.approx(constants, rel=1e-5)
    assert fit.warnings == () and fit.objective < 1e-20


@pytest.mark.parametrize("seed", range(5))
def test_planted_constants_come_back_from_noisy_losses(seed):
    """The refit's own law at its own scatter: 240 runs determine it to about its published standard errors."""
    errors = catalog.law("Besiroglu 2024").standard_errors
    fit = fits.fit_parametric_loss(*grid(16, 15, noise=0.01, seed=seed))
    for name, value in fit.constants().items():
        assert abs(value - REFIT[name]) < 4 * errors[name], name
    assert abs(fit.loss(70e9, 1.4e12) - 1.9737) < 0.04
    assert np.std(fit.residuals) == pytest.approx(0.01, rel=0.25)


@pytest.mark.parametrize("seed", range(3))
def test_the_objective_is_hoffmanns(seed):
    runs = grid(noise=0.005, seed=seed)
    fit = fits.fit_parametric_loss(*runs)
    assert fit.objective == pytest.approx(independent_objective(theta_of(fit), *runs), rel=1e-9)
    assert fits.huber_objective(*runs, **fit.constants()) == pytest.approx(fit.objective, rel=1e-9)
    published = catalog.law("Hoffmann 2022, rounded").constants()
    theta = [math.log(406.4), 0.34, math.log(410.7), 0.28, math.log(1.69)]
    assert fits.huber_objective(*runs, **published) == pytest.approx(independent_objective(theta, *runs), rel=1e-9)
    # summed, not averaged: all runs twice give twice the objective
    twice = [np.tile(values, 2) for values in runs]
    assert fits.huber_objective(*twice, **published) == pytest.approx(2 * independent_objective(theta, *runs))


@given(seed=st.integers(0, 10_000))
def test_gradient_and_hessian_against_finite_differences(seed):
    rng = np.random.default_rng(seed)
    n, d, losses = grid(noise=0.02, seed=seed)
    runs = fits._Runs(n, d, losses, delta=0.05)  # wide, so that no residual passes delta within a difference's step
    theta = np.array(
        [rng.uniform(-3, 0), rng.uniform(0.1, 1), rng.uniform(-3, 0), rng.uniform(0.1, 1), rng.uniform(-2, 0.5)]
    )
    weights = rng.integers(0, 3, len(n)).astype(float)
    value, gradient = runs.objective(theta, weights)
    assert gradient == pytest.approx(
        optimize.approx_fprime(theta, lambda t: runs.objective(t, weights)[0], 1e-7), rel=1e-3, abs=1e-4 * abs(value)
    )
    again, slope, hessian, _ = runs.second_order(theta, weights, 0.05)
    assert again == pytest.approx(value) and slope == pytest.approx(gradient)
    step = 1e-6
    numeric = np.array(
        [
            (runs.objective(theta + step * unit, weights)[1] - runs.objective(theta - step * unit, weights)[1])
            / (2 * step)
            for unit in np.eye(5)
        ]
    )
    assert hessian == pytest.approx(numeric, rel=1e-3, abs=1e-3 * np.abs(numeric).max())


@pytest.mark.parametrize(("noise", "seed"), [(0.003, 1), (0.01, 2), (0.03, 3)])
def test_no_other_method_finds_a_lower_objective(noise, seed):
    runs = grid(6, 4, noise=noise, seed=seed)
    fit = fits.fit_parametric_loss(*runs)
    best = theta_of(fit)
    polished = optimize.minimize(
        independent_objective,
        best,
        args=runs,
        method="Nelder-Mead",
        options={"xatol": 1e-10, "fatol": 1e-16, "maxfev": 4000},
    )
    assert polished.fun > fit.objective * (1 - 1e-6)
    # every 311th of the 4500 starts of Hoffmann et al. 2022, appendix D.2
    exponents, coefficients, limits = np.arange(0, 2.5, 0.5), np.arange(0, 30, 5), np.arange(-1, 1.5, 0.5)
    starts = list(itertools.product(coefficients, exponents, coefficients, exponents, limits))
    assert len(starts) == 4500
    # in units of delta²: at its own tiny scale the optimizer's tolerances would end it early
    ends = [
        1e-6 * optimize.minimize(lambda t: 1e6 * independent_objective(t, *runs), s, method="L-BFGS-B", tol=1e-12).fun
        for s in starts[::311]
    ]
    assert min(ends) > fit.objective * (1 - 1e-6)
    assert min(ends) < 1.5 * fit.objective, "the grid is no test where none of its starts comes near"


def test_intervals_cover_the_truth_at_about_their_rate():
    truth, covered = 1.9737, 0
    for seed in range(20):
        fit = fits.fit_parametric_loss(*grid(8, 5, noise=0.01, seed=seed), bootstrap=40, seed=seed)
        low, high = fit.interval(70e9, 1.4e12, level=0.8)
        covered += low <= truth <= high
    assert 10 <= covered <= 19, "16 of 20 expected; a binomial of rate 0.8 lies outside once in 80 draws"


def test_an_interval_for_one_run_is_wider_than_that_of_the_law():
    runs = grid(8, 6, noise=0.02, seed=4)
    fit = fits.fit_parametric_loss(*runs, bootstrap=80)
    law, run = fit.interval(1e9, 2e10), fit.interval(1e9, 2e10, one_run=True)
    assert run[0] < law[0] < fit.loss(1e9, 2e10) < law[1] < run[1]
    # inside the fitted range the scatter of one run rules: 95% of a normal distribution of 2%
    assert (run[1] - run[0]) / fit.loss(1e9, 2e10) == pytest.approx(2 * 1.96 * 0.02, rel=0.35)
    inner = fit.interval(1e9, 2e10, level=0.5)
    assert law[0] < inner[0] < inner[1] < law[1]
    spread = fit.spread()
    assert all(spread[name][0] <= value <= spread[name][1] for name, value in fit.constants().items())


def test_the_same_seed_gives_the_same_samples_and_the_order_of_runs_does_not_matter():
    n, d, losses = grid(5, 4, noise=0.01)
    first, second, other = (fits.fit_parametric_loss(n, d, losses, bootstrap=20, seed=s) for s in (7, 7, 8))
    assert np.array_equal(first.samples, second.samples) and first.samples.shape == (20, 5)
    assert not np.array_equal(first.samples, other.samples)
    order = np.random.default_rng(0).permutation(len(n))
    assert fits.fit_parametric_loss(n[order], d[order], losses[order]).constants() == pytest.approx(
        first.constants(), rel=1e-5
    )
    assert (first.E, first.A, first.alpha, first.B, first.beta) == tuple(first.constants().values())


def test_one_bad_run_hardly_moves_the_fit():
    n, d, losses = grid(8, 6, noise=0.005)
    clean = fits.fit_parametric_loss(n, d, losses)
    losses[-1] *= 1.3  # the largest model diverged
    assert fits.fit_parametric_loss(n, d, losses).loss(70e9, 1.4e12) == pytest.approx(
        clean.loss(70e9, 1.4e12), rel=0.005
    )
    least_squares = fits.fit_parametric_loss(n, d, losses, delta=10.0).loss(70e9, 1.4e12)
    assert abs(least_squares / clean.loss(70e9, 1.4e12) - 1) > 0.01


N, D, LOSS = (list(values) for values in grid(3, 3))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (dict(parameters=N[:-1]), "have 8, 9 and 9 values"),
        (dict(parameters=N[:4], tokens=D[:4], losses=LOSS[:4]), "4 different runs cannot determine 5 constants"),
        (dict(parameters=N[:2] * 4, tokens=D[2:4] * 4, losses=LOSS[:2] * 4), "different runs cannot determine"),
        (dict(parameters=[1e8] * 9), "parameters: every run has 1e\\+08"),
        (dict(tokens=[1e9] * 9), "tokens: every run has 1e\\+09"),
        (dict(losses=[*LOSS[:-1], math.nan]), "losses: run 8 has nan"),
        (dict(losses=[*LOSS[:-1], math.inf]), "losses: run 8 has inf"),
        (dict(losses=[-1.0, *LOSS[1:]]), "losses: run 0 has -1"),
        (dict(tokens=[0, *D[1:]]), "tokens: run 0 has 0"),
        (dict(losses=LOSS[::-1]), "losses: they do not fall"),
        (dict(losses=[2.0] * 9), "losses: they do not fall"),
        (dict(losses=["a"] * 9), "losses: must be a list of numbers"),
        (dict(losses=2.0), "losses: must be a list of numbers"),
        (dict(parameters=[], tokens=[], losses=[]), "no runs"),
        (dict(delta=0), "delta: must be a number greater than zero"),
        (dict(delta=True), "delta"),
        (dict(bootstrap=-1), "bootstrap: must be a whole number"),
        (dict(bootstrap=1.5), "bootstrap: must be a whole number"),
        (dict(seed=-1), "seed"),
    ],
)
def test_bad_input_is_named(change, says):
    with pytest.raises(EfflabError, match=says):
        fits.fit_parametric_loss(**dict(parameters=N, tokens=D, losses=LOSS) | change)


def test_no_interval_without_bootstrap_and_no_level_beyond_one():
    fit = fits.fit_parametric_loss(N, D, LOSS)
    with pytest.raises(EfflabError, match="bootstrap=200"):
        fit.interval(1e9, 1e10)
    with pytest.raises(EfflabError, match="level: must be between 0 and 1"):
        fits.fit_parametric_loss(N, D, LOSS, bootstrap=5).interval(1e9, 1e10, level=95)


@pytest.mark.parametrize("bootstrap", [0, 30])
def test_what_the_runs_do_not_determine_is_said(bootstrap):
    def warned(**where):
        return " ".join(fits.fit_parametric_loss(*grid(noise=0.005, **where), bootstrap=bootstrap).warnings)

    assert warned() == ""
    assert "parameter_exponent cannot be determined from two sizes" in warned(sizes=2)
    assert "token_exponent cannot be determined from two numbers of tokens" in warned(data=2)
    assert "parameter_exponent" in warned(low=(5e7, 3e8), high=(7e7, 3e11))  # sizes within a factor of 1.4
    assert "token_exponent" in warned(low=(5e7, 3e9), high=(1.6e10, 4e9))


def test_a_law_without_a_limit_says_that_none_is_seen():
    constants = REFIT | dict(irreducible_loss=1e-6)
    fit = fits.fit_parametric_loss(*grid(constants=constants))
    assert any("irreducible_loss stands at the end" in text for text in fit.warnings)


def test_two_sizes_give_a_wide_interval_elsewhere():
    """Any exponent fits two sizes, so the samples must differ in it."""
    two = fits.fit_parametric_loss(*grid(sizes=2, noise=0.003), bootstrap=60)
    many = fits.fit_parametric_loss(*grid(sizes=6, noise=0.003), bootstrap=60)
    low, high = two.spread()["parameter_exponent"]
    assert high > 5 * low
    widths = [np.subtract(*fit.interval(1e12, 3e11)[::-1]) for fit in (two, many)]
    assert widths[0] > 4 * widths[1]


@pytest.mark.parametrize("accepted", [True, False])
def test_the_bench_judges_a_file_of_runs(tmp_path, accepted):
    """`python -m bench.besiroglu FILE` drops the five highest losses and exits with 1 where the fit misses."""
    n, d, losses = grid(49, 5, noise=0.0005 if accepted else 0.03)
    path = tmp_path / "runs.csv"
    rows = [f"{a},{6 * a * b},{c}" for a, b, c in zip(n, d, losses, strict=True)]
    path.write_text("\n".join(["Model Size,Training FLOP,loss", *rows]))
    done = subprocess.run([sys.executable, "-m", "bench.besiroglu", path], cwd=ROOT, capture_output=True, text=True)
    assert "240 runs" in done.stdout, done.stderr
    assert "Besiroglu 2024" in done.stdout
    assert done.returncode == (0 if accepted else 1)


# Latency and bandwidth


SIZES = [1024.0 * 4**k for k in range(9)]  # 1 KiB to 64 MiB
FACTOR = st.floats(0.7, 1.4)


@settings(max_examples=50)
@given(latency=st.floats(1e-7, 1e-2), bandwidth=st.floats(1e7, 1e12))
def test_planted_latency_and_bandwidth_come_back(latency, bandwidth):
    fit = fits.fit_latency_bandwidth(SIZES, [latency + s / bandwidth for s in SIZES])
    # Where one of the two is below the last digits of every time, it cannot come back.
    if latency / (latency + SIZES[0] / bandwidth) > 1e-3:
        assert fit.latency == pytest.approx(latency, rel=1e-6)
    if SIZES[-1] / bandwidth / (latency + SIZES[-1] / bandwidth) > 1e-3:
        assert fit.bandwidth == pytest.approx(bandwidth, rel=1e-6)
    assert max(map(abs, fit.residuals)) < 1e-6
    assert fit.time(SIZES[3]) == pytest.approx(latency + SIZES[3] / bandwidth, rel=1e-6)


@settings(max_examples=40)
@given(st.lists(FACTOR, min_size=len(SIZES), max_size=len(SIZES)))
def test_relative_least_squares_as_scipys_curve_fit_finds_them(factors):
    """The same minimum by another method: a trust region on both parameters, with times as standard deviations."""
    sizes, times = np.array(SIZES), np.array([(3e-4 + s / 1.5e9) * f for s, f in zip(SIZES, factors, strict=True)])
    fit = fits.fit_latency_bandwidth(sizes, times)
    (latency, per_gigabyte), _ = optimize.curve_fit(
        lambda s, a, g: a + g * s / 1e9, sizes, times, p0=(1e-4, 1.0), sigma=times, bounds=(0, np.inf),
        xtol=1e-14, ftol=1e-14, gtol=1e-14,
    )  # fmt: skip
    assert fit.latency == pytest.approx(latency, rel=1e-4)
    assert fit.bandwidth == pytest.approx(1e9 / per_gigabyte, rel=1e-4)
    assert fit.residuals == pytest.approx(times / (fit.latency + sizes / fit.bandwidth) - 1)


def test_the_spread_is_what_leaving_one_message_out_changes():
    times = [(3e-4 + s / 1.5e9) * f for s, f in zip(SIZES, (1.1, 0.9, 1, 1, 0.8, 1.3, 1, 1.05, 0.95), strict=True)]
    fit = fits.fit_latency_bandwidth(SIZES, times)
    found = [
        fits.fit_latency_bandwidth(
            [s for j, s in enumerate(SIZES) if j != i], [t for j, t in enumerate(times) if j != i]
        )
        for i in range(len(SIZES))
    ]
    assert fit.latency_range == (min(f.latency for f in found), max(f.latency for f in found))
    assert fit.bandwidth_range == (min(f.bandwidth for f in found), max(f.bandwidth for f in found))
    assert fit.latency_range[0] < fit.latency < fit.latency_range[1]


def test_neither_part_is_negative():
    """A line through these times by ordinary least squares begins below zero."""
    times = [s / 2e9 * (1 + s / SIZES[-1]) for s in SIZES]
    assert np.polyfit(SIZES, times, 1)[1] < 0
    fit = fits.fit_latency_bandwidth(SIZES, times)
    assert fit.latency >= 0
    assert fit.bandwidth > 0
    # Three messages of which only the last takes longer: without it there is no bandwidth.
    assert math.isinf(fits.fit_latency_bandwidth([1e3, 1e4, 1e9], [1e-3, 1e-3, 2.0]).bandwidth_range[1])


@settings(max_examples=100)
@given(st.lists(st.tuples(st.floats(1, 1e15), st.floats(0, 1e20)), min_size=3, max_size=6))
def test_any_messages_are_fitted_or_refused_in_words(messages):
    try:
        fit = fits.fit_latency_bandwidth([s for s, _ in messages], [t for _, t in messages])
    except EfflabError:
        return
    assert fit.latency >= 0
    assert 0 < fit.bandwidth < math.inf
    assert all(math.isfinite(r) for r in fit.residuals)


@pytest.mark.parametrize(
    ("sizes", "times", "says"),
    [
        ([1e3, 1e4], [1e-3, 2e-3], "2 different sizes"), ([1e3, 1e3, 1e3], [1e-3] * 3, "1 different sizes"),
        ([1e3, 1e4, 1e5], [1e-3, 2e-3], "message_bytes and times have 3 and 2 values"),
        ([1e3, 0.0, 1e5], [1e-3] * 3, "message_bytes: message 1 has 0"),
        ([1e3, 1e4, 1e5], [1e-3, math.nan, 2e-3], "times: message 1 has nan"),
        ([1e3, 1e4, "much"], [1e-3] * 3, "message_bytes: must be a list of numbers, one per message"),
        ([1e3, 1e4, 1e5], [3e-3, 2e-3, 1e-3], "do not grow"),
        ([1e3, 1e4, 1e5], [1.0, 2.2e-311, 1.0], "message 1 has 2.2e-311 s, which is no time"),
        ([1e3, 1e4, 1e5], [1.0, 1.0, 1e300], "message 2 has 1e\\+300 s"),
    ],
)  # fmt: skip
def test_bad_messages_are_named(sizes, times, says):
    with pytest.raises(EfflabError, match=says):
        fits.fit_latency_bandwidth(sizes, times)
