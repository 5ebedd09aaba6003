"""The calculators of the chapter on energy against published footprints, measured curves and numbers by hand."""

from __future__ import annotations

import math

import pytest

from efflab import calculators
from efflab.calculators import bundle
from efflab.calculators.picks import CUSTOM
from efflab.catalog import accelerators
from efflab.catalog import energy as catalog
from efflab.units import show

FOOTPRINT, WHERE, LIMIT = "training-footprint", "where-and-when", "power-limit"
TOKEN, FEDERATED, WINDOW = "energy-per-token", "federated-energy", "measuring-window"
POUND = 453.59237


# A run: every published footprint whose inputs are printed. Energies in MWh, carbon in t.

# model: W of a chip, chips, days, PUE, g/kWh gross, net; printed MWh, t gross, t net. Patterson et al. 2021, table 4.
# Their days and intensities are rounded, so that the products are right within half a percent, or a unit of the last
# printed digit where that is more.
PATTERSON = {
    "Evolved Transformer": (208, 200, 6.8, 1.10, 431, 431, 7.5, 3.2, 3.2),
    "T5": (310, 512, 20, 1.12, 545, 545, 85.7, 46.7, 46.7),
    "GPT-3": (330, 10000, 14.8, 1.10, 429, 429, 1287, 552.1, 552.1),
}
# model: W of a node, hours, printed kWh, printed pounds. Strubell, Ganesh & McCallum 2019, table 3.
STRUBELL = {
    "Transformer base": (1415.78, 12, 27, 26),
    "BERT base": (12041.51, 79, 1507, 1438),
}
# model: GPU-hours, W, PUE, g/kWh, printed MWh, printed t. LLaMA 2023, table 15; Llama 2, table 2 and card.
LLAMA = {
    "OPT-175B": (809472, 400, 1.1, 385, 356, 137),
    "LLaMA-7B": (82432, 400, 1.1, 385, 36, 14),
    "LLaMA-13B": (135168, 400, 1.1, 385, 59, 23),
    "LLaMA-33B": (530432, 400, 1.1, 385, 233, 90),
    "Llama 2 7B": (184320, 400, 1.1, 385, None, 31.22),
    "Llama 2 13B": (368640, 400, 1.1, 385, None, 62.44),
    "Llama 2 34B": (1038336, 350, 1.1, 385, None, 153.90),
}
# model: GPU-hours, printed t, the intensity that they imply, g/kWh. Llama 3 to 4, model cards; 700 W, no PUE printed.
CARDS = {
    "Llama 3 8B": (1.3e6, 390, 428.6),
    "Llama 3 70B": (6.4e6, 1900, 424.1),
    "Llama 3.1 8B": (1.46e6, 420, 411.0),
    "Llama 3.1 70B": (7.0e6, 2040, 416.3),
    "Llama 3.2 1B": (370e3, 107, 413.1),
    "Llama 4 Scout": (5.0e6, 1354, 386.9),
    "Llama 4 Maverick": (2.38e6, 645, 387.2),
}


def run(
    *, watts: float, hours: float, pue: float, intensity: float, measured: bool, **more: object
) -> dict[str, object]:
    """The state of a published run, typed as its source prints it."""
    power = (
        {"power_known": "measured", "mean_power": f"{watts} W"}
        if measured
        else {"power_known": "rating", "accelerator": CUSTOM, "own_rated_power": f"{watts} W", "own_load": 1}
    )
    return {
        **power,
        "device_time": f"{hours!r} GPU-h",
        "facility": CUSTOM,
        "own_pue": pue,
        "region": CUSTOM,
        "own_intensity": f"{intensity!r} g/kWh",
        **more,
    }


def published() -> list[object]:
    """Every row: its state, printed MWh or None, printed grams, and the relative tolerance of both."""
    rows = []
    for name, (watts, chips, days, pue, gross, net, mwh, tonnes, net_tonnes) in PATTERSON.items():
        state = run(watts=watts, hours=chips * days * 24, pue=pue, intensity=gross, measured=True)
        state |= {"contracted": 1, "contracted_intensity": f"{net} g/kWh"}
        rows.append(pytest.param(state, mwh, tonnes * 1e6, net_tonnes * 1e6, 0.012 if tonnes < 10 else 0.005, id=name))
    for name, (watts, hours, kwh, pounds) in STRUBELL.items():
        state = run(watts=watts, hours=hours, pue=1.58, intensity=0.954 * POUND, measured=True)
        rows.append(pytest.param(state, kwh / 1e3, pounds * POUND, None, 0.5 / 26 if kwh < 100 else 0.005, id=name))
    for name, (hours, watts, pue, intensity, mwh, tonnes) in LLAMA.items():
        state = run(watts=watts, hours=hours, pue=pue, intensity=intensity, measured=False)
        digits = 0.5 / tonnes if mwh else 0.005 / tonnes + 1e-4
        rows.append(pytest.param(state, mwh, tonnes * 1e6, None, max(digits, 0.5 / mwh if mwh else 0), id=name))
    for name, (hours, tonnes, intensity) in CARDS.items():
        state = run(watts=700, hours=hours, pue=1, intensity=intensity, measured=False)
        rows.append(pytest.param(state, hours * 700 / 1e6, tonnes * 1e6, None, 2e-4, id=name))
    # Luccioni, Viguier & Ligozat 2022: PUE is not in their dynamic consumption
    bloom = run(watts=400, hours=1082990, pue=1, intensity=57, measured=False)
    rows.append(pytest.param(bloom, 433.196, 24.69e6, None, 2e-4, id="BLOOM"))
    return rows


@pytest.mark.parametrize(("state", "mwh", "grams", "net", "tolerance"), published())
def test_published_footprints_come_out_in_python_and_in_the_browser(js, state, mwh, grams, net, tolerance):
    calculator = calculators.get(FOOTPRINT)
    here = calculator.evaluate(**state)
    there = js.call("evaluate(compile(spec), state).values", spec=bundle.declaration(calculator), state=here.state)
    for values in (here.values, there):
        if mwh is not None:
            assert values["meter_energy"] / 3.6e9 == pytest.approx(mwh, rel=tolerance)
        assert values["carbon"] == pytest.approx(grams, rel=tolerance)
        if net is not None:
            assert values["market_carbon"] == pytest.approx(net, rel=tolerance)


def test_what_is_typed_as_printed_is_read_alike_in_the_browser(js):
    """A node's power with a thousands separator, pounds a kWh, hours with commas, a PUE of one."""
    calculator = calculators.get(FOOTPRINT)
    declared = bundle.declaration(calculator)
    for name, text, value in (
        ("mean_power", "12,041.51 W", 12041.51),
        ("mean_power", "12.04151 kW", 12041.51),
        ("own_intensity", "0.954 lb/kWh", 0.954 * POUND / 3.6e6),
        ("own_intensity", "0.385 kg CO2e/kWh", 385 / 3.6e6),
        ("own_intensity", "0.545 kgCO2e/kWh", 545 / 3.6e6),
        ("own_intensity", "0 g/kWh", 0),
        ("device_time", "1,082,990 GPU-h", 1082990 * 3600),
        ("device_time", "39.3M GPU-h", 39.3e6 * 3600),
        ("device_time", "79 GPU-hours", 79 * 3600),
        ("device_time", "79 h", 79 * 3600),
        ("device_time", "79", 79 * 3600),
        ("own_pue", "1.0", 1),
        ("own_pue", "1", 1),
        ("manufacturing_carbon", "2,500 kg", 2.5e6),
        ("own_wue", "0.26 mL/Wh", 0.26 / 3.6e6),
    ):
        there = js.call("(() => { const c = compile(spec); return accept(c, c.table.get(name), text, name); })()",
                        spec=declared, name=name, text=text)  # fmt: skip
        assert calculator.accept(name, text) == there == pytest.approx(value, rel=1e-12), text


def test_llama_3_1_has_two_carbons():
    """Model card: 39.3 million hours at 700 W, 11,390 t location based and 0 t market based."""
    state = run(watts=700, hours=39.3e6, pue=1, intensity=414, measured=False, contracted=1)
    here = calculators.get(FOOTPRINT).evaluate(**state)
    assert here["carbon"] == pytest.approx(11390e6, rel=0.001) and here["market_carbon"] == 0
    assert "By its contracts it is 0 g" in here.verdict


def test_llama_3_3_is_off_by_a_factor_of_158():
    """7.0 million hours gave off 2,040 t in one card and 12.9 t in the next."""
    same = run(watts=700, hours=7.0e6, pue=1, intensity=416.3, measured=False)
    assert calculators.get(FOOTPRINT).evaluate(**same)["carbon"] / 12.9e6 == pytest.approx(158, rel=0.01)


def test_bloom_with_its_hardware():
    """24.69 t at a PUE of 1 and about 30 t at 1.2; 11.2 t of making 384 GPUs and their servers."""
    here = calculators.get(FOOTPRINT).evaluate()
    assert here["carbon"] == pytest.approx(1.2 * 24.69e6, rel=2e-4)
    assert here["embodied"] == pytest.approx((7.57 + 3.64) * 1e6, rel=0.002)
    assert here["hardware_share"] == pytest.approx(11.2 / (11.2 + 29.63), rel=0.005)
    assert "27.4%" in here.verdict


def test_a_rating_has_a_band_and_a_measured_power_has_none():
    calculator = calculators.get(FOOTPRINT)
    rated, measured = calculator.evaluate(), calculator.evaluate(power_known="measured", mean_power="400 W")
    assert rated["carbon"] == measured["carbon"]
    assert rated["least_carbon"] == pytest.approx(0.3 * rated["carbon"])
    assert rated["most_meter_energy"] == pytest.approx(rated["meter_energy"]) == pytest.approx(1.2 * 433.196 * 3.6e9)
    for name in ("least_carbon", "most_carbon", "least_meter_energy", "most_meter_energy"):
        assert measured[name] is None and measured.text(name) == "measured: no band" in str(measured)
        assert "measured" not in rated.text(name)
    assert "—" not in str(measured)
    assert "Modelled from a rating" in rated.verdict and "measured power" in measured.verdict
    half = calculator.evaluate(own_load=0.5)  # a share moves the estimate and not the band
    assert half["carbon"] == pytest.approx(rated["carbon"] / 2) and half["most_carbon"] == rated["most_carbon"]
    assert "accelerator" in rated.relevant and "accelerator" not in measured.relevant


def test_water_and_money_by_hand():
    """433 MWh at 0.27 L/kWh, with 2 L/kWh at the plants for 1.2 times as much, and 0.10 USD/kWh."""
    here = calculators.get(FOOTPRINT).evaluate(
        water=CUSTOM, own_wue="0.27 L/kWh", generation_water="2 L/kWh", price="0.1 USD/kWh"
    )
    assert here["site_water"] == pytest.approx(433196 * 0.27)
    assert here["all_water"] == pytest.approx(433196 * (0.27 + 1.2 * 2))
    assert here["cost"] == pytest.approx(433196 * 1.2 * 0.1)
    assert "left out" not in here.verdict and "left out" in calculators.get(FOOTPRINT).evaluate().verdict


def test_the_pickers_hold_the_catalog():
    table = calculators.get(FOOTPRINT).table
    assert set(table["region"].table) == {*catalog.regions(), CUSTOM}
    poland = table["region"].table["Poland, 2023"]
    assert poland.sets["carbon_intensity"] * 3.6e6 == pytest.approx(661.926)
    assert set(table["facility"].table) == {CUSTOM, *(n for n, f in catalog.facilities().items() if f.pue)}
    assert table["facility"].table["Uptime survey, 2019"].sets["pue"] == 1.67
    with_water = {n for n, f in catalog.facilities().items() if f.wue_l_per_kwh is not None}
    assert set(table["water"].table) == {CUSTOM, *with_water}
    rated = {a.name for a in accelerators().values() if a.tdp}
    assert set(table["accelerator"].table) == {CUSTOM, *rated}
    headings = [o.group for o in table["region"].table.values() if o.group]
    assert headings == sorted(headings, key=headings.index), "each heading stands once"


# Place and hour


def test_bloom_moved_from_poland_to_france():
    here = calculators.get(WHERE).evaluate()
    assert here["carbon"] == pytest.approx(433.196e3 * 1.2 * 661.926)
    assert here["other_carbon"] == pytest.approx(433.196e3 * 1.2 * 57)
    assert here["times_less"] == pytest.approx(661.926 / 57)
    assert here["carbon_share"] == pytest.approx(57 / 661.926)


def test_an_hour_a_price_and_a_facility_by_hand():
    here = calculators.get(WHERE).evaluate(
        it_energy="100 MWh", hour_factor=0.5, other_facility="Google, 2024", other_price="0.2 USD/kWh",
        other_water=CUSTOM, own_other_wue="1.15 L/kWh", water=CUSTOM, own_wue="0.15 L/kWh",
        region=CUSTOM, own_intensity="400 g/kWh", other_region=CUSTOM, own_other_intensity="500 g/kWh",
    )  # fmt: skip
    assert here["carbon"] == pytest.approx(100e3 * 1.2 * 400)
    assert here["other_carbon"] == pytest.approx(100e3 * 1.09 * 500 * 0.5)
    assert here["water_saved"] == pytest.approx(100e3 * (0.15 - 1.15))
    assert here["cost_saved"] == pytest.approx(100e3 * (1.2 * 0.1 - 1.09 * 0.2))


@pytest.mark.parametrize(
    ("state", "says"),
    [
        ({}, "There: 29.6 t in place of 344 t"),
        ({"region": "France (Jean Zay), 2022"}, "The same carbon in both places"),
        ({"other_region": "India, 2023"}, "Here: there it would be"),
        ({"other_price": "0.05 USD/kWh"}, "It costs 26k USD less there"),
        ({"other_price": "0.2 USD/kWh"}, "It costs more there"),
        ({"other_water": "AWS, 2024"}, "less water on site there"),
        ({"other_water": "Google, 2024"}, "more water on site there"),
    ],
)
def test_the_verdict_of_two_places(state, says):
    state = {"water": "Microsoft, 2025", "other_water": "Microsoft, 2025"} | state
    assert says in calculators.get(WHERE).evaluate(**state).verdict


# Power limits


def cheapest(curve: str, weight: float, power: float) -> float:
    """The limit of least η E + (1 − η) P_max t, W, found by trying every row; E and t of a run of a second."""
    rows = catalog.power_curves()[curve].limits
    most = rows[-1].limit_w
    return min(rows, key=lambda r: weight * r.energy * power + (1 - weight) * most * r.time).limit_w


@pytest.mark.parametrize("curve", list(catalog.power_curves()))
@pytest.mark.parametrize("weight", [0, 0.1, 0.25, 0.5, 0.75, 0.9, 1])
def test_the_verdict_names_the_cheapest_limit(curve, weight):
    here = calculators.get(LIMIT).evaluate(curve=curve, energy_weight=weight, limit="150 W", full_power="200 W")
    best = cheapest(curve, weight, 200)
    rows = catalog.power_curves()[curve].limits
    full = best == rows[-1].limit_w
    assert (f"no limit is best: full power, {best:g} W," if full else f"limits is {best:g} W:") in here.verdict
    assert ("lowest" in here.verdict) == (best > rows[0].limit_w)


def test_resnet_on_a_v100_at_150_watts():
    """Zeus's trace: 22.5% less energy in 18% more time; at 100 W 13.8% less in 93% more."""
    limit = calculators.get(LIMIT)
    here = limit.evaluate(curve="V100, ResNet-50", limit="150 W", energy_weight=1, full_power="200 W", full_time="1 h")
    assert here["energy_share"] == pytest.approx(1 - 0.225, abs=1e-3)
    assert here["time_share"] == pytest.approx(1.180, abs=1e-3)
    assert here["used"] == pytest.approx(0.7749 * 200 * 3600) == here["zeus"] == here["billed"]
    assert "150 W" in here.verdict and "The lowest, 100 W, is not" in here.verdict
    time = limit.evaluate(curve="V100, ResNet-50", limit="150 W", energy_weight=0, full_power="200 W", full_time="1 h")
    assert time["zeus"] == pytest.approx(250 * 1.1803 * 3600) and "full power" in time.verdict


def test_a_limit_that_was_not_measured_has_no_number():
    here = calculators.get(LIMIT).evaluate(curve="V100, BERT", limit="300 W")
    assert here["used"] is None and here["takes"] is None
    assert here.verdict.startswith("V100, BERT: not at 300 W.") and "The nearest is 250 W" in here.verdict


def test_every_curve_and_limit_computes_or_says_why_not():
    limit = calculators.get(LIMIT)
    for name, curve in catalog.power_curves().items():
        has = {f"{r.limit_w:g} W": r for r in curve.limits}
        for watts in limit.table["limit"].table:
            here = limit.evaluate(curve=name, limit=watts)
            assert (here["used"] is None) == (watts not in has) == (here.problem is not None)
            if watts in has:
                assert here["energy_share"] == pytest.approx(has[watts].energy)
                assert here["time_share"] == pytest.approx(has[watts].time)


# Tokens


def test_llama_2_on_an_h200_by_hand():
    """700 W over 3,014 tokens/s; 300 tokens, 1.6 times the accelerator's, at a PUE of 1.09."""
    here = calculators.get(TOKEN).evaluate()
    assert here["token_energy"] == pytest.approx(700 / 3014)
    assert here["query"] == pytest.approx(700 / 3014 * 300 * 1.6 * 1.09)
    assert here["least_query"] == pytest.approx(0.3 * here["query"])
    assert here["queries"] == pytest.approx(3.6e6 / here["query"])
    assert here["of_gemini"] == pytest.approx(here["query"] / 864) and "0.24 Wh" in here.verdict


@pytest.mark.parametrize(
    ("state", "says"),
    [
        ({}, "14.1% of the 0.24 Wh"),
        ({"tokens": 4000}, "between the 0.24 Wh"),
        ({"tokens": 30000}, "more than the popular 2.9 Wh"),
    ],
)
def test_a_query_is_compared_with_what_was_published(state, says):
    assert says in calculators.get(TOKEN).evaluate(**state).verdict


def test_geminis_shares_give_its_overhead():
    """58% accelerators, 25% hosts, 10% idle: hosts and idle capacity come to 93 / 58 of the accelerators."""
    calculator = calculators.get(TOKEN)
    assert calculator.table["overhead"].default == pytest.approx(93 / 58, rel=0.005)
    # 0.24 Wh of which 58% are accelerators': the rest follows from the overhead and the PUE, within the rounding
    own = calculator.evaluate(
        power_known="measured", mean_power="1 W", throughput=1, tokens=round(0.58 * 0.24 * 3600), overhead=93 / 58
    )
    assert own["query"] / 3600 == pytest.approx(0.24, rel=0.02) and own["least_query"] is None
    assert own.text("least_query") == own.text("most_query") == "measured: no band"


def test_eight_devices_take_eight_times_the_power():
    one, eight = (calculators.get(TOKEN).evaluate(devices=n)["token_energy"] for n in (1, 8))
    assert eight == pytest.approx(8 * one)


# Federated


def test_federated_by_hand():
    """500 rounds of 100 devices: 5 W for 60 s, and 100 MB at 0.06 kWh/GB; against 400 W for 3 h at 1.09."""
    here = calculators.get(FEDERATED).evaluate()
    devices, network = 500 * 100 * 5 * 60, 500 * 100 * 0.1 * 0.06 * 3.6e6
    assert here["federated"] == pytest.approx(devices + network)
    assert here["network_share"] == pytest.approx(network / (devices + network))
    assert here["central"] == pytest.approx(400 * 3 * 3600 * 1.09)
    assert here["times"] == pytest.approx((devices + network) / (400 * 3 * 3600 * 1.09))


def test_the_network_is_read_and_written_in_the_unit_of_its_source(js):
    """Aslan et al. 2018 print 0.06 kWh/GB: 216 J for a megabyte."""
    calculator = calculators.get(FEDERATED)
    opened = calculator.defaults()["energy_per_byte"]
    assert opened == pytest.approx(216e-6) and show(opened, calculator.units["energy_per_byte"]) == "0.06 kWh/GB"
    for text in ("0.2 kWh/GB", "200 Wh/GB", "720 µJ/B"):
        assert calculator.accept("energy_per_byte", text) == pytest.approx(720e-6)
    assert js.call("show(216e-6, 'J/B')") == "0.06 kWh/GB"


@pytest.mark.parametrize(
    ("state", "says"),
    [({}, "is the network"), ({"energy_per_byte": 0}, "most of it in the devices"), ({"rounds": 1}, "takes more")],
)
def test_the_verdict_of_federated(state, says):
    assert says in calculators.get(FEDERATED).evaluate(**state).verdict


# Windows


@pytest.mark.parametrize(
    ("state", "error", "shortest", "says"),
    [
        ({}, 1 / 3, 10, "may be off by 33.3%"),
        ({"window": "50 ms"}, 2, 10, "hardly moved"),
        ({"window": "20 s"}, 0.005, 10, "Long enough"),
        ({"counter": "RAPL", "window": "1 s"}, 1e-3, 0.1, "Long enough"),
        ({"counter": CUSTOM, "own_period": "1 s", "tolerance": 0.1, "window": "5 s"}, 0.2, 10, "may be off by 20%"),
    ],
)
def test_windows_by_hand(state, error, shortest, says):
    here = calculators.get(WINDOW).evaluate(**state)
    assert here["error_share"] == pytest.approx(error) and here["shortest"] == pytest.approx(shortest)
    assert here["periods"] == pytest.approx(shortest / (error * calculators.get(WINDOW).state(**state)["window"]))
    assert says in here.verdict and math.isfinite(here["error_share"])
