"""Formulas of energy against what they describe.

Oracles: rows of published tables with the rounding of their inputs; power over time, integrated; a device that switches
between idle and busy; a counter that changes every 100 ms, read at any moment; rounds of federated learning one device
at a time; a clock that is lowered, with the cube of it integrated over a longer time; scipy's minimum; pint; torch's
count of operations; the measured power limits of the catalog.
"""

from __future__ import annotations

import math
from decimal import Decimal

import numpy as np
import pint
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.optimize import minimize_scalar
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from efflab.catalog.energy import power_curves
from efflab.formulas import energy as e
from efflab.formulas import scaling_laws
from efflab.formulas.namespace import FormulaError

HOUR, DAY, KWH, MWH, TONNE, LB = 3600.0, 86400.0, 3.6e6, 3.6e9, 1e6, 453.59237
G_PER_KWH, L_PER_KWH = 1 / KWH, 1 / KWH
powers, times = st.floats(1, 1e5), st.floats(1, 1e6)
shares, pues = st.floats(0, 1), st.floats(1, 3)
intensities = st.floats(0, 1500).map(lambda g: g * G_PER_KWH)
same = dict(rel=1e-9, abs=1e-12)


# Published tables. A row agrees when what its rounded inputs allow overlaps what its rounded result allows


def interval(text, unit=1.0):
    """What a printed decimal stands for: half a unit of its last digit either way."""
    value, half = Decimal(text), Decimal(1).scaleb(Decimal(text).as_tuple().exponent) / 2
    return float(value - half) * unit, float(value + half) * unit


def allows(printed, unit, formula, exact, **rounded):
    """Whether a formula that rises with each rounded input can give the printed value."""
    low = formula(**exact, **{name: r[0] for name, r in rounded.items()})
    high = formula(**exact, **{name: r[1] for name, r in rounded.items()})
    bottom, top = interval(printed, unit)
    return low <= top and bottom <= high


PATTERSON = [  # model, W per chip, TFLOP/s, chips, days, PUE, kg/kWh, FLOP, MWh, gross t, net t
    ("Evolved Transformer NAS", "208", "24.8", 200, "6.8", "1.10", "0.431", "2.91e21", "7.5", "3.2", "3.2"),
    ("T5", "310", "45.6", 512, "20", "1.12", "0.545", "4.05e22", "85.7", "46.7", "46.7"),
    ("GPT-3", "330", "24.6", 10000, "14.8", "1.10", "0.429", "3.14e23", "1287", "552.1", "552.1"),
]


@pytest.mark.parametrize("row", PATTERSON, ids=[r[0] for r in PATTERSON])
def test_patterson_table_4(row):
    _, watts, rate, chips, days, pue, kg, flops, mwh, gross, net = row
    time = tuple(e.device_hours(devices=chips, duration=d * DAY) for d in interval(days))
    run = dict(device_power=interval(watts), device_time=time, pue=interval(pue))
    grid = interval(kg, 1e3 * G_PER_KWH)
    assert allows(mwh, MWH, e.training_energy, {}, **run)
    assert allows(gross, TONNE, e.training_carbon, {}, **run, carbon_intensity=grid)
    assert allows(net, TONNE, e.operational_carbon, {}, energy=interval(mwh, MWH), carbon_intensity=grid)
    done = scaling_laws.flops_in_device_time
    assert allows(flops, 1, done, {"mfu": 1.0}, device_time=time, peak_performance=interval(rate, 1e12))
    # the rounding does not hide a missing factor: without PUE the run cannot give its energy
    assert not allows(mwh, MWH, e.device_energy, {}, device_power=run["device_power"], device_time=time)


STRUBELL = [  # model, W of the node, hours, kWh with PUE, lb
    ("Transformer base", "1415.78", "12", "27", "26"),
    ("Transformer big", "1515.43", "84", None, "192"),
    ("ELMo", "517.66", "336", None, "262"),
    ("BERT base", "12041.51", "79", "1507", "1438"),
    ("NAS", "1515.43", "274120", None, "626155"),
]


@pytest.mark.parametrize("row", STRUBELL, ids=[r[0] for r in STRUBELL])
def test_strubell_table_3(row):
    _, watts, hours, kwh, pounds = row
    run = dict(device_power=interval(watts), device_time=interval(hours, HOUR))
    assert kwh is None or allows(kwh, KWH, e.training_energy, {"pue": 1.58}, **run)
    grid = dict(carbon_intensity=0.954 * LB * G_PER_KWH)
    assert allows(pounds, LB, e.training_carbon, {"pue": 1.58} | grid, **run)
    assert not allows(pounds, 1000, e.training_carbon, {"pue": 1.58} | grid, **run), "these are pounds, not kilograms"


META = [  # model, GPU-hours, W, MWh, t: at a PUE of 1.1 and 0.385 kg/kWh
    ("OPT-175B", "809472", 400, "356", "137"),
    ("LLaMA-7B", "82432", 400, "36", "14"),
    ("LLaMA-13B", "135168", 400, "59", "23"),
    ("LLaMA-33B", "530432", 400, "233", "90"),
    ("Llama 2 7B", "184320", 400, None, "31.22"),
    ("Llama 2 13B", "368640", 400, None, "62.44"),
    ("Llama 2 34B", "1038336", 350, None, "153.9"),
    ("Llama 2 70B", "1720320", 400, None, "291.42"),
]


@pytest.mark.parametrize("row", META, ids=[r[0] for r in META])
def test_llama_and_llama_2(row):
    _, hours, watts, mwh, tonnes = row
    run = {"device_power": watts, "pue": 1.1, "device_time": float(hours) * HOUR}
    assert mwh is None or allows(mwh, MWH, e.training_energy, run)
    assert allows(tonnes, TONNE, e.training_carbon, run, carbon_intensity=interval("0.385", 1e3 * G_PER_KWH))


def test_llama_2_as_a_whole():
    gpus = [e.training_energy(device_power=r[2], device_time=float(r[1]) * HOUR, pue=1.1) for r in META[4:]]
    assert sum(float(r[1]) for r in META[4:]) == 3_311_616
    total = e.operational_carbon(energy=sum(gpus), carbon_intensity=385 * G_PER_KWH)
    assert interval("539.00", TONNE)[0] <= total <= interval("539.00", TONNE)[1]


CARDS = [  # model, GPU-hours, t, kg/kWh that they imply at 700 W
    ("Llama 3 8B", 1.3e6, 390, 0.4286),
    ("Llama 3 70B", 6.4e6, 1900, 0.4241),
    ("Llama 3.1 8B", 1.46e6, 420, 0.4110),
    ("Llama 3.1 70B", 7.0e6, 2040, 0.4163),
    ("Llama 3.2 1B", 370e3, 107, 0.4131),
    ("Llama 3.3 70B", 7.0e6, 12.9, 0.0026),
    ("Llama 4 Scout", 5.0e6, 1354, 0.3869),
    ("Llama 4 Maverick", 2.38e6, 645, 0.3872),
]


@pytest.mark.parametrize("row", CARDS, ids=[r[0] for r in CARDS])
def test_cards_that_print_no_intensity_imply_one(row):
    name, hours, tonnes, kg = row
    used = e.device_energy(device_power=700, device_time=hours * HOUR)
    implied = e.implied_intensity(carbon=tonnes * TONNE, energy=used)
    assert round(implied / (1e3 * G_PER_KWH), 4) == kg
    # every card but one lies near the mean of the United States in its years, 0.37 to 0.43
    assert (0.36e3 < implied / G_PER_KWH < 0.44e3) == (name != "Llama 3.3 70B")


def test_llama_3_1_is_nothing_by_its_contracts():
    used = e.device_energy(device_power=700, device_time=39.3e6 * HOUR)
    grid = e.implied_intensity(carbon=11_390 * TONNE, energy=used)
    contracts = dict(energy=used, contracted_intensity=0, residual_intensity=grid)
    assert e.market_based_carbon(contracted=1, **contracts) == 0
    assert e.market_based_carbon(contracted=0, **contracts) == pytest.approx(11_390 * TONNE)


def test_bloom():
    used = 1_082_990 * HOUR
    assert e.device_energy(device_power=400, device_time=used) == pytest.approx(433_196 * KWH)
    grid = 57 * G_PER_KWH
    work = e.training_carbon(device_power=400, device_time=used, pue=1, carbon_intensity=grid)
    idle = e.operational_carbon(energy=256_646 * KWH, carbon_intensity=grid)
    life = dict(used=used, lifetime=6 * 365 * DAY, busy=0.85)
    servers = e.embodied_carbon(manufacturing_carbon=2500e3 / 8, **life)
    gpus = e.embodied_carbon(manufacturing_carbon=150e3, **life)
    assert [round(x / TONNE, 1) for x in (work, idle, servers + gpus)] == [24.7, 14.6, 11.2]
    assert round((work + idle + servers + gpus) / TONNE, 1) == 50.5
    assert round(e.embodied_share(embodied=servers + gpus, operational=work + idle), 3) == 0.222
    # the same run in the table of LLaMA's paper, where every model runs in one place
    american = e.training_carbon(device_power=400, device_time=used, pue=1.1, carbon_intensity=385 * G_PER_KWH)
    assert round(american / TONNE) == 183


def test_a_prompt():
    accelerators, hosts, ready = 0.14, 0.06, 0.02  # Wh
    overhead = (accelerators + hosts + ready) / accelerators
    query = dict(energy_per_token=accelerators * HOUR / 100, tokens=100, overhead=overhead)
    assert round(e.energy_of_query(**query, pue=1.09) / HOUR, 2) == 0.24
    it = e.energy_of_query(**query, pue=1)
    assert round(e.on_site_water(it_energy=it, wue=1.15 * L_PER_KWH) * 1e3, 2) == 0.25  # 0.26 mL, of rounded inputs
    assert round(e.operational_carbon(energy=0.24 * HOUR, carbon_intensity=94 * G_PER_KWH), 3) == 0.023


# Power over time


def trace(seed, n=400):
    """Times, s, and powers, W, of a meter that samples a run unevenly."""
    rng = np.random.default_rng(seed)
    return np.cumsum(rng.uniform(0.1, 2.0, n)), rng.uniform(50, 700, n)


@pytest.mark.parametrize("seed", range(5))
def test_energy_is_the_integral_of_power(seed):
    when, watts = trace(seed)
    duration = when[-1] - when[0]
    joules = np.trapezoid(watts, when)
    mean = e.mean_power(energy=joules, duration=duration)
    assert watts.min() < mean < watts.max()
    assert e.device_energy(device_power=mean, device_time=duration) == pytest.approx(joules)
    idle = 0.9 * watts.min()
    above = np.trapezoid(watts - idle, when)
    assert e.energy_above_idle(energy=joules, idle_power=idle, duration=duration) == pytest.approx(above)
    assert e.energy_above_idle(energy=joules, idle_power=1.01 * mean, duration=duration) == 0


@pytest.mark.parametrize("seed", range(5))
def test_a_node_is_the_sum_of_the_means_of_its_parts(seed):
    rng = np.random.default_rng(seed)
    gpus = int(rng.integers(1, 9))
    parts = rng.uniform(10, 400, (2 + gpus, 1000))  # processors, memory, each GPU, second by second
    processor, memory, *devices = parts.mean(axis=1)
    got = e.node_power(
        processor_power=processor, memory_power=memory, device_power=float(np.mean(devices)), devices=gpus
    )
    assert got == pytest.approx(parts.sum(axis=0).mean())


@given(st.lists(st.booleans(), min_size=1, max_size=200), st.floats(1, 100), st.floats(100, 1000))
def test_a_device_that_is_partly_busy(busy, idle_power, busy_power):
    """It switches; its mean power is that of the share of seconds that it works."""
    seconds = [busy_power if b else idle_power for b in busy]
    got = e.power_at_load(idle_power=idle_power, busy_power=busy_power, load=sum(busy) / len(busy))
    assert got == pytest.approx(sum(seconds) / len(seconds))


def test_many_devices_held_for_a_while():
    held = sum(90.0 for _ in range(8) for _ in range(40))  # eight devices, forty slices of 90 s
    assert e.device_hours(devices=8, duration=HOUR) == held == 8 * HOUR


def test_a_rating_gives_a_band():
    band = [e.energy_from_rating(rated_power=700, load=load, device_time=1000 * HOUR) / KWH for load in (0.3, 0.5, 1.0)]
    assert band == pytest.approx([210, 350, 700])
    with pytest.raises(FormulaError, match="load"):
        e.energy_from_rating(rated_power=700, load=1.2, device_time=HOUR)


def test_work_and_traffic_and_time_add_up():
    """A dot product of n words from DRAM at 45 nm: a product, a sum and two reads per element, and 10 W."""
    n, picojoule = 10**9, 1e-12
    by_hand = n * (3.7 + 0.9 + 2 * 640) * picojoule + 10 * 0.5
    got = e.energy_of_work(
        flops=2 * n,
        energy_per_flop=(3.7 + 0.9) / 2 * picojoule,
        bytes_moved=8 * n,
        energy_per_byte=640 / 4 * picojoule,
        constant_power=10,
        duration=0.5,
    )
    assert got == pytest.approx(by_hand)


# The facility, carbon, money and water


def test_units_by_pint():
    u = pint.UnitRegistry()
    u.define("dollar = [currency]")
    energy = (64 * 700 * u.watt * 3 * u.day * 1.2).to("kWh")
    run = dict(device_power=700, device_time=64 * 3 * DAY, pue=1.2)
    assert e.training_energy(**run) == pytest.approx(energy.to("J").m)
    assert e.electricity_cost(energy=energy.to("J").m, price=0.12 / KWH) == pytest.approx(energy.m * 0.12)
    carbon = (energy * 380 * u("g/kWh")).to("g").m
    assert e.training_carbon(**run, carbon_intensity=380 * G_PER_KWH) == pytest.approx(carbon)
    water = (100 * u.MWh * (0.55 + 1.17 * 3.14) * u("l/kWh")).to("l").m
    rates = dict(wue=0.55 * L_PER_KWH, pue=1.17, generation_water=3.14 * L_PER_KWH)
    assert e.water_consumption(it_energy=100 * MWH, **rates) == pytest.approx(water)
    network = (3 * u.GB * 0.06 * u("kWh/GB")).to("J").m
    assert e.transfer_energy(bytes_sent=3e9, energy_per_byte=0.06 * KWH / 1e9) == pytest.approx(network)


@given(powers, times, pues)
def test_a_facility_and_its_pue(power, duration, pue):
    it = e.device_energy(device_power=power, device_time=duration)
    whole = e.facility_energy(it_energy=it, pue=pue)
    assert whole >= it
    assert e.power_usage_effectiveness(facility_energy=whole, it_energy=it) == pytest.approx(pue)
    water = dict(it_energy=it, wue=1.8 * L_PER_KWH)
    everywhere = e.water_consumption(**water, pue=pue, generation_water=0)
    assert everywhere == pytest.approx(e.on_site_water(**water)), "electricity that takes no water leaves the site's"


@given(powers, times, times, pues, intensities)
def test_two_runs_are_the_sum_of_each(power, first, second, pue, grid):
    def carbon(time):
        return e.training_carbon(device_power=power, device_time=time, pue=pue, carbon_intensity=grid)

    assert carbon(first + second) == pytest.approx(carbon(first) + carbon(second), **same)


@given(times, intensities, intensities, shares)
def test_contracts_lie_between_what_they_say_and_the_rest(joules, contracted, residual, share):
    got = e.market_based_carbon(
        energy=joules, contracted=share, contracted_intensity=contracted, residual_intensity=residual
    )
    ends = sorted(joules * i for i in (contracted, residual))
    assert ends[0] * (1 - 1e-12) <= got <= ends[1] * (1 + 1e-12)
    rng = np.random.default_rng(0)
    hours = rng.random(20_000) < share  # hour by hour, covered by a contract or not
    played = joules * np.where(hours, contracted, residual).mean()
    assert got == pytest.approx(played, abs=0.02 * (ends[1] - ends[0]) + 1e-12)


@given(times, st.floats(1e-3, 1e3))
def test_the_implied_intensity_gives_the_carbon_back(joules, grams):
    implied = e.implied_intensity(carbon=grams, energy=joules)
    assert e.operational_carbon(energy=joules, carbon_intensity=implied) == pytest.approx(grams)


@given(st.lists(st.floats(1, 1000), min_size=1, max_size=30), st.floats(1e4, 1e7), st.floats(0.1, 1))
def test_all_jobs_of_a_life_share_what_making_the_device_gave_off(hours, made, busy):
    life = sum(hours) * HOUR / busy  # the jobs fill the busy part of it
    shared = [e.embodied_carbon(manufacturing_carbon=made, used=h * HOUR, lifetime=life, busy=busy) for h in hours]
    assert sum(shared) == pytest.approx(made)


@given(st.floats(1e-3, 1e6), st.floats(1e-3, 1e6))
def test_the_embodied_share(embodied, operational):
    share = e.embodied_share(embodied=embodied, operational=operational)
    assert 0 < share < 1
    assert share / (1 - share) == pytest.approx(embodied / operational, rel=1e-6)
    cleaner = e.embodied_share(embodied=embodied, operational=operational / 2)
    assert cleaner > share, "a cleaner grid raises the share of the hardware"


# Useful work


def test_an_h200_at_its_peak_and_its_rated_power():
    peak = e.performance_per_watt(performance=989.4e12, power=700)
    assert round(peak / 1e9) == 1413
    assert e.hardware_efficiency(flops=989.4e12 * 60, energy=700 * 60) == pytest.approx(peak)


def test_a_server_token_by_token():
    """It takes 350 W and finishes 25 tokens each second; at the end someone reads the meter."""
    joules = tokens = 0.0
    for _ in range(600):
        joules, tokens = joules + 350.0, tokens + 25
    per_token = e.energy_per_token(power=350, throughput=25)
    assert per_token * tokens == pytest.approx(joules)
    assert e.tokens_per_joule(tokens=tokens, energy=joules) == pytest.approx(1 / per_token)


@given(st.integers(1, 512), st.floats(0.1, 1e3), st.floats(1e-3, 10))
def test_a_batch_shares_what_every_batch_costs(batch, fixed, one):
    whole = fixed + sum(one for _ in range(batch))
    assert e.energy_per_sample(fixed_energy=fixed, energy_of_one=one, batch=batch) == pytest.approx(whole / batch)
    assert e.time_per_sample(fixed_time=fixed, time_of_one=one, batch=batch) == pytest.approx(whole / batch)


@pytest.mark.parametrize(
    "network",
    [
        nn.Sequential(nn.Linear(24, 40), nn.ReLU(), nn.Linear(40, 16)),
        nn.Sequential(nn.Unflatten(1, (2, 12)), nn.Conv1d(2, 5, 3), nn.Flatten(), nn.Linear(50, 7)),
    ],
    ids=["perceptron", "convolution"],
)
def test_a_step_takes_three_forward_passes_where_operations_take_the_time(network):
    """torch counts the operations of both passes, in layers inside a network: their input needs its gradient too."""
    x, rate = torch.randn(8, 24, requires_grad=True), 1e9
    with FlopCounterMode(display=False) as forward:
        out = network(x)
    with FlopCounterMode(display=False) as backward:
        out.sum().backward()
    forward, backward = forward.get_total_flops(), backward.get_total_flops()
    assert forward > 0
    assert e.step_from_forward(forward_time=forward / rate) == pytest.approx((forward + backward) / rate)


# Power limits and clocks


@pytest.mark.parametrize("curve", power_curves().values(), ids=power_curves())
def test_the_limit_that_a_cost_prefers(curve):
    """Energy alone prefers the least energy, time alone the fastest; the more energy counts, the less is taken."""
    largest = curve.limits[-1].limit_w

    def best(weight):
        return min(
            curve.limits,
            key=lambda r: e.zeus_cost(
                energy=r.energy * largest * 1000, duration=r.time * 1000, largest_power=largest, energy_weight=weight
            ),
        )

    assert best(1.0).energy == min(r.energy for r in curve.limits)
    assert best(0.0).time == min(r.time for r in curve.limits)
    preferred = [best(w).energy for w in np.linspace(0, 1, 11)]
    assert preferred == sorted(preferred, reverse=True)


def test_the_measured_optimum_of_zeus():
    half = {"largest_power": 250, "energy_weight": 0.5}
    joules, seconds = 144.59474877795884 * 4148.66, 4148.66  # V100, ResNet-50, batch 256, one epoch at 150 W
    assert e.zeus_cost(energy=joules, duration=seconds, **half) == pytest.approx((joules + 250 * seconds) / 2)


def played(dynamic_energy, static_power, duration, slowdown):
    """Energy of the same cycles at a lower clock, integrated: switching power falls with the cube of the clock."""
    full = dynamic_energy / duration
    watts = lambda t: full * (1 / slowdown) ** 3 + static_power  # noqa: E731
    return quad(watts, 0, duration * slowdown)[0]


@given(st.floats(1, 1e4), st.floats(1, 500), st.floats(0.1, 100), st.floats(1, 5))
def test_a_lower_clock(dynamic, static, duration, slowdown):
    work = dict(dynamic_energy=dynamic, static_power=static, duration=duration)
    assert e.slowed_energy(**work, slowdown=slowdown) == pytest.approx(played(**work, slowdown=slowdown), rel=1e-6)
    assert e.slowed_energy(**work, slowdown=1) == pytest.approx(dynamic + static * duration)


@given(st.floats(1, 1e4), st.floats(1, 500), st.floats(0.1, 100))
def test_the_best_slowdown_is_scipys(dynamic, static, duration):
    work = dict(dynamic_energy=dynamic, static_power=static, duration=duration)
    best = e.best_slowdown(**work)
    found = minimize_scalar(lambda s: played(**work, slowdown=s), bounds=(1, 100), method="bounded").x
    least = played(**work, slowdown=float(best))
    assert least <= played(**work, slowdown=float(found)) * (1 + 1e-6)
    assert best == pytest.approx(found, rel=1e-2)


@given(st.floats(1, 1e4), st.floats(1, 500), st.floats(0.1, 10), st.floats(0.1, 10))
def test_a_stage_that_waits_for_the_slowest(dynamic, static, duration, critical):
    """It may run and wait, on but idle, or run slower and be done in time."""
    wait = max(critical - duration, 0)
    hurried = dynamic + static * (duration + wait)
    in_time = played(dynamic, static, duration, max(critical / duration, 1))
    bloat = e.intrinsic_bloat(dynamic_energy=dynamic, duration=duration, critical_duration=critical)
    assert bloat == pytest.approx(hurried - in_time, rel=1e-6, abs=1e-6 * hurried)


# Many small devices


@given(st.integers(1, 20), st.integers(1, 20), st.integers(0, 2**31))
def test_federated_learning_device_by_device(rounds, devices, seed):
    """Each of a round's devices computes and exchanges; the formula takes the means over all of them."""
    rng = np.random.default_rng(seed)
    watts = rng.uniform(2, 10)
    seconds = rng.uniform(10, 600, (rounds, devices))
    sent = rng.uniform(1e6, 1e9, (rounds, devices))
    per_byte = 0.06 * KWH / 1e9
    total = 0.0
    for r in range(rounds):
        for d in range(devices):
            total += watts * seconds[r, d] + sent[r, d] * per_byte
    got = e.federated_energy(
        rounds=rounds,
        devices_per_round=devices,
        device_power=watts,
        local_time=float(seconds.mean()),
        bytes_sent=float(sent.mean()),
        energy_per_byte=per_byte,
    )
    assert got == pytest.approx(total)


# Measuring


class Counter:
    """Energy since it was switched on, of a device at a steady power; it changes every period only."""

    def __init__(self, power, period):
        self.power, self.period = power, period

    def read(self, when):
        return self.power * self.period * math.floor(when / self.period + 1e-9)


def worst(window, period=0.1, power=300.0):
    """The largest relative error of the energy of a window, over the moments at which it may start."""
    counter = Counter(power, period)
    starts = np.linspace(0, period, 401)[:-1]
    return max(abs((counter.read(s + window) - counter.read(s)) / (power * window) - 1) for s in starts)


@given(st.floats(0.15, 20))
def test_a_counter_that_changes_every_100_ms_is_never_worse(window):
    assert worst(window) <= e.counter_error(update_period=0.1, window=window) * (1 + 1e-6)


@pytest.mark.parametrize("periods", [1, 3, 10, 50])
def test_a_counter_may_be_as_bad(periods):
    window = 0.1 * periods + 5e-4  # a little more than whole periods: either it catches one more update or it does not
    assert worst(window) == pytest.approx(e.counter_error(update_period=0.1, window=window), rel=0.01)


@pytest.mark.parametrize("tolerance", [0.3, 0.07, 0.03, 0.011])
def test_the_shortest_window_is_enough_and_no_shorter_one_is(tolerance):
    shortest = e.shortest_window(update_period=0.1, tolerance=tolerance)
    assert all(worst(w) <= tolerance * (1 + 1e-6) for w in np.linspace(shortest, 2 * shortest, 23))
    shorter = 0.1 * math.floor(shortest / 0.1 - 1e-9) + 5e-4
    assert shorter < shortest and worst(shorter) > tolerance
    assert e.counter_error(update_period=0.1, window=shortest) == pytest.approx(tolerance)
