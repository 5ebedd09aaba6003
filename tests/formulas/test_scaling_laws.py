"""The scaling laws' formulas against what they did not come from.

Oracles: brute-force search over sizes at one budget, scipy's root finder and optimizer, counting the operations of a
real backward pass, exact fractions, simulated training, and what published runs took and cost. The published
tables stand in efflab/catalog/published/scaling_laws.yaml.
"""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import optimize
from torch.utils.flop_counter import FlopCounterMode

from efflab import catalog
from efflab.errors import EfflabError
from efflab.formulas import scaling_laws as s

LAWS = list(catalog.laws().values())
laws = st.sampled_from(LAWS)
budgets = st.floats(18, 27).map(lambda power: 10**power)
single_exponents = st.floats(0.05, 1.5)


def split(law):
    """The constants with and without the irreducible loss, which does not move the optimum."""
    constants = law.constants()
    return constants, {name: value for name, value in constants.items() if name != "irreducible_loss"}


def by_hand(law, n, d):
    """The law in plain Python, from its definition."""
    return (
        law.irreducible_loss
        + law.parameter_coefficient / n**law.parameter_exponent
        + (law.token_coefficient / d**law.token_exponent)
    )


# Operations


@pytest.mark.parametrize(("width", "layers", "tokens"), [(16, 2, 8), (32, 3, 20)])
def test_six_operations_per_parameter_and_token_by_counting(width, layers, tokens):
    """A stack of matrices has no attention and no embedding, so 6ND (2ND forward) is exact but for one detail:

    the input of the first layer needs no gradient, which saves that layer's 2ND once.
    """
    net = torch.nn.Sequential(*(torch.nn.Linear(width, width, bias=False) for _ in range(layers)))
    x = torch.randn(tokens, width)
    with FlopCounterMode(display=False) as forward, torch.no_grad():
        net(x)
    with FlopCounterMode(display=False) as both:
        net(x).sum().backward()
    parameters = sum(p.numel() for p in net.parameters())
    assert s.inference_flops(parameters=parameters, tokens=tokens) == forward.get_total_flops()
    first = 2 * width * width * tokens
    assert s.training_flops(parameters=parameters, tokens=tokens) == both.get_total_flops() + first


@pytest.mark.parametrize(("width", "layers", "tokens"), [(32, 2, 12), (16, 3, 5)])
@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
def test_an_encoder_decoder_by_counting(width, layers, tokens):
    """A real one, with as many tokens in as out; attention's scores are left out, they are no product of parameters.

    A layer of the encoder has 12 w² parameters, one of the decoder 16 w². Two of these meet the encoder's tokens, of
    which cross-attention makes its keys and values: every token meets 14 of 28.
    """
    net = torch.nn.Transformer(width, 4, layers, layers, 4 * width, dropout=0.0, bias=False, batch_first=True)
    source, target = (torch.randn(3, tokens, width, requires_grad=True) for _ in range(2))
    with FlopCounterMode(display=False) as counter:
        net(source, target).sum().backward()
    parameters = sum(p.numel() for p in net.parameters() if p.dim() == 2)
    counted = counter.get_flop_counts()["Global"][torch.ops.aten.mm]
    assert s.encoder_decoder_training_flops(parameters=parameters, tokens=2 * 3 * tokens) == counted


@given(st.integers(1, 10**12), st.integers(1, 10**13), st.integers(1, 10**15))
def test_a_life_is_training_and_use(parameters, training, inference):
    life = s.lifetime_flops(parameters=parameters, training_tokens=training, inference_tokens=inference)
    assert math.isclose(life, float(Fraction(parameters) * (6 * training + 2 * inference)), rel_tol=1e-14)


def test_a_petaflop_day_by_its_name():
    assert s.petaflop_days(flops=sum(10**15 for _ in range(86400))) == 1


@given(budgets, st.floats(1e6, 1e13), st.floats(0.1, 1e4))
def test_budgets_are_spent_exactly(flops, parameters, ratio):
    tokens = s.tokens_in_budget(flops=flops, parameters=parameters)
    assert math.isclose(s.training_flops(parameters=parameters, tokens=tokens), flops, rel_tol=1e-12)
    assert math.isclose(s.parameters_in_budget(flops=flops, tokens=tokens), parameters, rel_tol=1e-12)
    n = s.parameters_at_ratio(flops=flops, tokens_per_parameter=ratio)
    d = s.tokens_in_budget(flops=flops, parameters=n)
    assert math.isclose(s.tokens_per_parameter(parameters=n, tokens=d), ratio, rel_tol=1e-9)


def test_twenty_tokens_per_parameter_at_gophers_budget_is_chinchilla():
    n = s.parameters_at_ratio(flops=5.76e23, tokens_per_parameter=20)
    assert n == pytest.approx(70e9, rel=0.02)  # 69.3B


# The parametric law


@given(laws, st.floats(1e7, 1e13), st.floats(1e8, 1e14))
def test_loss_is_the_sum_of_its_terms(law, n, d):
    constants, _ = split(law)
    loss = s.parametric_loss(parameters=n, tokens=d, **constants)
    assert math.isclose(loss, by_hand(law, n, d), rel_tol=1e-12)
    size = s.model_term(
        parameters=n, parameter_coefficient=law.parameter_coefficient, parameter_exponent=law.parameter_exponent
    )
    data = s.data_term(tokens=d, token_coefficient=law.token_coefficient, token_exponent=law.token_exponent)
    assert math.isclose(law.irreducible_loss + size + data, loss, rel_tol=1e-12)
    limit = s.limiting_loss(
        parameters=n,
        irreducible_loss=law.irreducible_loss,
        parameter_coefficient=law.parameter_coefficient,
        parameter_exponent=law.parameter_exponent,
    )
    # what is left at a number of tokens that nobody has
    assert math.isclose(limit, s.parametric_loss(parameters=n, tokens=1e60, **constants), rel_tol=1e-9)


@pytest.mark.parametrize("law", LAWS, ids=[law.name for law in LAWS])
@pytest.mark.parametrize("flops", [1e19, 5.76e23, 1e26])
def test_the_optimum_by_trying_every_size(law, flops):
    """A dense grid of sizes at one budget: no size does better, and the best is the formula's."""
    constants, exponents = split(law)
    sizes = np.geomspace(1e6, 1e14, 400_001)  # steps of 0.005%
    losses = by_hand(law, sizes, flops / (6 * sizes))
    best = sizes[losses.argmin()]
    n = s.compute_optimal_parameters(flops=flops, **exponents)
    d = s.compute_optimal_tokens(flops=flops, **exponents)
    assert n == pytest.approx(best, rel=1e-3)  # the valley is flat: the grid's minimum is known no better
    assert s.training_flops(parameters=n, tokens=d) == pytest.approx(flops, rel=1e-12)
    loss = s.compute_optimal_loss(flops=flops, **constants)
    assert loss == pytest.approx(losses.min(), rel=1e-9)
    assert loss == pytest.approx(by_hand(law, n, d), rel=1e-12)


@given(st.floats(0.1, 0.9), st.floats(0.1, 0.9), st.floats(10, 1e4), st.floats(10, 1e4), st.floats(18, 26))
def test_the_optimum_by_scipy(alpha, beta, a, b, power):
    """Minimised over log N; also for laws that nobody published."""
    flops = 10**power

    def reducible(log_n):
        n = math.exp(log_n)
        return a * n**-alpha + b * (flops / (6 * n)) ** -beta

    constants = dict(parameter_coefficient=a, parameter_exponent=alpha, token_coefficient=b, token_exponent=beta)
    n = s.compute_optimal_parameters(flops=flops, **constants)
    found = optimize.minimize_scalar(reducible, bracket=(math.log(n) - 3, math.log(n) + 2), tol=1e-12)
    assert math.log(n) == pytest.approx(found.x, abs=1e-3)
    assert s.compute_optimal_loss(flops=flops, irreducible_loss=1, **constants) == pytest.approx(
        1 + found.fun, rel=1e-9
    )


@given(laws, budgets)
def test_exponents_by_slopes(law, flops):
    """The exponents of size and of reducible loss, by differences of logarithms."""
    constants, exponents = split(law)
    pair = dict(parameter_exponent=law.parameter_exponent, token_exponent=law.token_exponent)

    def slope(f):
        return (math.log(f(flops * 1.01)) - math.log(f(flops))) / math.log(1.01)

    a = slope(lambda c: s.compute_optimal_parameters(flops=c, **exponents))
    b = slope(lambda c: s.compute_optimal_tokens(flops=c, **exponents))
    assert a == pytest.approx(s.compute_optimal_exponent(**pair), rel=1e-9)
    assert a + b == pytest.approx(1, rel=1e-9)
    gamma = slope(lambda c: s.compute_optimal_loss(flops=c, **constants) - law.irreducible_loss)
    assert -gamma == pytest.approx(s.compute_exponent(**pair), rel=1e-6)


def test_the_rounding_trap():
    """Gopher's budget by the same paper's constants, rounded and not, and by the refit of its runs."""
    optima = {}
    for law in LAWS:
        n = optimize.minimize_scalar(
            lambda log_n, law=law: by_hand(law, math.exp(log_n), 5.76e23 / (6 * math.exp(log_n))),
            bracket=(23, 27),
            tol=1e-12,
        ).x
        optima[law.name] = math.exp(n)
        assert s.compute_optimal_parameters(flops=5.76e23, **split(law)[1]) == pytest.approx(math.exp(n), rel=1e-3)
    assert optima["Hoffmann 2022, rounded"] == pytest.approx(32.2e9, rel=0.002)
    assert optima["Hoffmann 2022, unrounded"] == pytest.approx(40.4e9, rel=0.002)
    assert optima["Besiroglu 2024"] == pytest.approx(72.2e9, rel=0.002)
    ratios = [5.76e23 / (6 * n**2) for n in optima.values()]
    assert [round(ratio) for ratio in ratios] == [93, 59, 18]


# Over-training


@given(laws, st.floats(1e8, 1e12), st.floats(0.02, 2))
def test_tokens_for_a_loss_by_a_root_finder(law, parameters, gap):
    constants, _ = split(law)
    loss = by_hand(law, parameters, math.inf) + gap
    root = optimize.brentq(lambda log_d: by_hand(law, parameters, math.exp(log_d)) - loss, 0, 120, xtol=1e-13)
    assert math.log(s.tokens_for_loss(parameters=parameters, loss=loss, **constants)) == pytest.approx(root, rel=1e-9)


def test_a_loss_out_of_reach_takes_more_tokens_than_there_are():
    constants, _ = split(LAWS[2])
    limit = by_hand(LAWS[2], 1e9, math.inf)
    for loss in (limit - 0.5, limit, limit + 1e-9):
        assert s.tokens_for_loss(parameters=1e9, loss=loss, **constants) > 1e20


def test_sardanas_example():
    """Figure 1 of arXiv:2401.00448: 2T tokens of use, 13B compute-optimal against 7B of the same loss.

    It saves 1.7e22 FLOP, 17%. The paper's constants (its appendix) lie between the rounded and unrounded ones.
    """
    constants = dict(
        irreducible_loss=1.69,
        parameter_coefficient=406.4,
        parameter_exponent=0.336,
        token_coefficient=410.7,
        token_exponent=0.283,
    )
    optimum = {name: value for name, value in constants.items() if name != "irreducible_loss"}
    budget = optimize.brentq(lambda c: s.compute_optimal_parameters(flops=c, **optimum) - 13e9, 1e20, 1e26)
    tokens = s.compute_optimal_tokens(flops=budget, **optimum)
    loss = s.parametric_loss(parameters=13e9, tokens=tokens, **constants)
    large = s.lifetime_flops(parameters=13e9, training_tokens=tokens, inference_tokens=2e12)
    small = s.lifetime_flops_for_loss(parameters=7e9, inference_tokens=2e12, loss=loss, **constants)
    assert round((large - small) / 1e22, 1) == 1.7
    assert round(1 - small / large, 2) == 0.17


@given(laws, st.floats(1.0, 1e4), st.floats(2.05, 2.6))
def test_the_more_a_model_serves_the_smaller_it_should_be(law, factor, loss):
    """By search over sizes: with almost no use the best size is the compute-optimal one, with more use smaller."""
    constants, exponents = split(law)
    sizes = np.geomspace(1e7, 1e13, 20_001)
    sizes = sizes[by_hand(law, sizes, np.inf) < loss - 1e-3]

    def best(inference_tokens):
        return sizes[
            np.argmin(
                s.lifetime_flops_for_loss(parameters=sizes, inference_tokens=inference_tokens, loss=loss, **constants)
            )
        ]

    idle = best(1.0)
    budget = 6 * idle * s.tokens_for_loss(parameters=idle, loss=loss, **constants)
    assert idle == pytest.approx(s.compute_optimal_parameters(flops=budget, **exponents), rel=0.01)
    tokens = s.tokens_for_loss(parameters=idle, loss=loss, **constants)
    assert best(tokens * factor) < idle


# Diminishing returns


@given(laws, st.floats(1e8, 1e12), st.floats(1e9, 1e13), st.floats(1, 1e4), st.floats(1, 1e4))
def test_a_loss_reduction_is_a_difference_of_losses(law, n, d, more_n, more_d):
    _, exponents = split(law)
    gain = s.loss_reduction(parameters=n, tokens=d, parameter_factor=more_n, token_factor=more_d, **exponents)
    assert gain == pytest.approx(by_hand(law, n, d) - by_hand(law, n * more_n, d * more_d), rel=1e-6, abs=1e-12)
    one_doubling = s.loss_reduction(parameters=n, tokens=d, parameter_factor=2, token_factor=1, **exponents)
    term = by_hand(law, n, math.inf) - law.irreducible_loss
    assert s.doubling_gain(term=term, exponent=law.parameter_exponent) == pytest.approx(one_doubling, rel=1e-9)


@given(st.floats(1, 1e3), single_exponents, st.floats(1, 1e6))
def test_ratio_and_factor_undo_each_other(scale, exponent, factor):
    before = s.power_law_loss(scale=scale, critical_scale=1e13, exponent=exponent)
    after = s.power_law_loss(scale=scale * factor, critical_scale=1e13, exponent=exponent)
    ratio = s.loss_ratio(factor=factor, exponent=exponent)
    assert math.isclose(after / before, ratio, rel_tol=1e-9)
    assume(ratio >= 0.01)
    assert math.isclose(s.factor_for_loss_ratio(loss_ratio=ratio, exponent=exponent), factor, rel_tol=1e-9)


def test_kaplan_says_that_halving_the_loss_takes_nine_thousand_times_the_parameters():
    """Counted in thousandths of a doubling, each of which leaves 2^-0.000076 of the loss."""
    doublings, left = 0.0, 1.0
    while left > 0.5:
        left *= 2 ** (-0.076 / 1000)
        doublings += 0.001
    factor = s.factor_for_loss_ratio(loss_ratio=0.5, exponent=0.076)
    assert math.log2(factor) == pytest.approx(doublings, abs=0.002)
    assert factor == pytest.approx(9_100, rel=0.02)


@given(st.floats(6, 12), st.floats(8, 13))
def test_kaplans_joint_law_has_both_single_laws_as_limits(log_n, log_d):
    n, d = 10**log_n, 10**log_d
    joint = dict(
        critical_parameters=6.4e13, parameter_exponent=0.076, critical_tokens=1.8e13, token_exponent=0.103
    )  # Table 2
    endless_data = s.kaplan_loss(parameters=n, tokens=1e40, **joint)
    endless_size = s.kaplan_loss(parameters=1e60, tokens=d, **joint)
    assert endless_data == pytest.approx(s.power_law_loss(scale=n, critical_scale=6.4e13, exponent=0.076), rel=1e-6)
    assert endless_size == pytest.approx(s.power_law_loss(scale=d, critical_scale=1.8e13, exponent=0.103), rel=1e-6)
    assert s.kaplan_loss(parameters=n, tokens=d, **joint) > max(endless_data, endless_size)


def test_kaplans_overfitting_rule():
    """Section 4.2: with 5e3 N^0.74 tokens, a limited data set costs less than 2% of the loss. Of 1e9 parameters."""
    joint = dict(critical_parameters=6.4e13, parameter_exponent=0.076, critical_tokens=1.8e13, token_exponent=0.103)
    n = 1e9
    enough, endless = (s.kaplan_loss(parameters=n, tokens=d, **joint) for d in (5e3 * n**0.74, 1e40))
    assert 0.01 < enough / endless - 1 < 0.025


def test_the_power_law_optimum_passes_through_its_reference_and_grows_by_its_exponent():
    known = dict(reference_flops=5.76e23, reference_optimum=67e9, exponent=0.5)
    assert s.power_law_optimum(flops=5.76e23, **known) == pytest.approx(67e9)
    # Table 3 of Hoffmann et al.: 221.3 Gopher budgets for 1T parameters, by their own rounded exponent
    assert s.power_law_optimum(flops=221.3 * 5.76e23, **known) == pytest.approx(1e12, rel=0.01)


def test_perplexity_of_a_fair_choice():
    """Guessing evenly among k tokens has cross-entropy log k, as PyTorch computes it, and perplexity k."""
    for k in (2, 50257):
        loss = torch.nn.functional.cross_entropy(torch.zeros(1, k, dtype=torch.float64), torch.tensor([0])).item()
        assert s.perplexity(loss=loss) == pytest.approx(k, rel=1e-9)


# Time and money


def test_training_time_by_simulating_the_days():
    """Every device does peak × MFU × 86400 operations a day until all are done."""
    flops, devices, peak, mfu = 6.3e24, 8960, 459e12, 0.4
    done, days = 0.0, 0
    while done < flops:
        done += devices * peak * mfu * 86400
        days += 1
    seconds = s.training_time(flops=flops, devices=devices, peak_performance=peak, mfu=mfu)
    assert days - 1 < seconds / 86400 <= days
    assert math.ceil(seconds / 86400) == 45


# Patterson et al. 2021, arXiv:2104.10350, table 4, as printed: operations, chips, what each reached and its peak in
# FLOP/s, days; and half a digit of each.
PATTERSON_TABLE_4 = {
    "GPT-3": (3.14e23, 10_000, 24.6e12, 125e12, 14.8, 0.007),
    "T5": (4.05e22, 512, 45.6e12, 123e12, 20, 0.027),
    "Evolved Transformer's search": (2.91e21, 200, 24.8e12, 46e12, 6.8, 0.011),
}


@pytest.mark.parametrize("run", PATTERSON_TABLE_4)
def test_device_time_by_the_days_of_real_runs(run):
    flops, chips, reached, peak, days, tolerance = PATTERSON_TABLE_4[run]
    hardware, spent = dict(peak_performance=peak, mfu=reached / peak), chips * days * 86400
    assert s.device_time(flops=flops, **hardware) == pytest.approx(spent, rel=tolerance)
    assert s.flops_in_device_time(device_time=spent, **hardware) == pytest.approx(flops, rel=tolerance)
    time = s.device_time(flops=flops, **hardware)
    assert s.devices_for_time(device_time=time, time=days * 86400) == pytest.approx(chips, rel=tolerance)


def test_operations_in_device_time_and_in_its_price():
    """Narayanan et al. 2021, arXiv:2104.04473, section 5.1: GPT-3 in 34 days on 1024 A100 at 140 TFLOP/s each.

    The work is 8 x 175B x 300B, with the forward pass that is computed again. Half a day of 34 is 1.5%.
    """
    hours = 1024 * 34 * 24
    work = 8 * 175e9 * 300e9
    found = s.flops_in_device_time(device_time=hours * 3600, peak_performance=312e12, mfu=140 / 312)
    assert found == pytest.approx(work, rel=0.015)
    cost = s.training_cost(device_time=hours * 3600, price=2.5 / 3600)
    assert cost == pytest.approx(2_088_960)  # 835,584 GPU-hours at 2.50 USD
    found = s.flops_in_cost(cost=2_088_960, price=2.5 / 3600, peak_performance=312e12, mfu=140 / 312)
    assert found == pytest.approx(work, rel=0.015)


@given(st.floats(1e9, 1e13), st.floats(1, 1e6), st.integers(1, 10**5), st.floats(1e8, 1e12))
def test_throughput_and_mfu_tell_the_same_time(tokens, rate, devices, parameters):
    by_rate = s.training_time_at_throughput(tokens=tokens, tokens_per_second=rate, devices=devices)
    flops = s.training_flops(parameters=parameters, tokens=tokens)
    peak = 2 * 6 * parameters * rate  # so that this rate is an MFU of one half
    assert math.isclose(
        by_rate, s.training_time(flops=flops, devices=devices, peak_performance=peak, mfu=0.5), rel_tol=1e-12
    )


def test_gpt3_on_one_h200_takes_ten_years_only_at_the_full_dense_peak():
    peak = catalog.accelerator("H200 SXM").peak("bf16")
    year = 365.25 * 86400

    def years(mfu):
        return s.training_time(flops=3.14e23, devices=1, peak_performance=peak, mfu=mfu) / year

    assert years(1) == pytest.approx(10.06, abs=0.01)
    assert years(0.4) == pytest.approx(25.1, abs=0.1)


@pytest.mark.parametrize(
    ("function", "change", "says"),
    [
        (s.training_time, dict(mfu=1.2), "mfu must be from 0 to 1, got 1.2"),
        (s.training_time, dict(mfu=40), "mfu must be from 0 to 1, got 40"),
        (s.training_time, dict(mfu=0), "mfu must be greater than zero"),
        (s.training_time, dict(devices=0), "devices must be greater than zero"),
    ],
)
def test_a_percentage_in_place_of_a_fraction_is_refused(function, change, says):
    good = dict(flops=1e20, devices=8, peak_performance=1e15, mfu=0.4)
    with pytest.raises(EfflabError, match=says):
        function(**good | change)


def test_an_exponent_beyond_its_range_is_refused():
    with pytest.raises(EfflabError, match=r"parameter_exponent must be from 0\.05 to 3, got 34"):
        s.compute_optimal_exponent(parameter_exponent=34, token_exponent=0.28)
