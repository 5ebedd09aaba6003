"""The calculators of the chapter on scaling laws against published numbers and numbers worked by hand."""

from __future__ import annotations

import math
import re

import pytest

from efflab import calculators
from efflab.calculators import bundle, markup
from efflab.calculators.picks import CUSTOM
from efflab.catalog import laws, models

GOPHER = 5.76e23
ROUNDED, UNROUNDED, REFIT = "Hoffmann 2022, rounded", "Hoffmann 2022, unrounded", "Besiroglu 2024"
# L = E + A / N^alpha + B / D^beta as printed: E, A, alpha, B, beta
PRINTED = {ROUNDED: (1.69, 406.4, 0.34, 410.7, 0.28), REFIT: (1.8172, 482.01, 0.3478, 2085.43, 0.3658)}


def least(law, flops):
    """The best size by trying many, with the loss as it is printed."""
    e, a, alpha, b, beta = PRINTED[law]

    def loss(n):
        return e + a / n**alpha + b / (flops / 6 / n) ** beta

    sizes = [10 ** (6 + i / 2000) for i in range(14001)]
    best = min(sizes, key=loss)
    return best, loss(best)


def test_the_rounding_trap_at_gophers_budget():
    """The paper says 40B and 67B for its own fits; Besiroglu et al. find Chinchilla's 70B."""
    planner = calculators.get("compute-optimal")
    assert planner.evaluate()["flops"] == GOPHER
    for law, billions, ratio in ((ROUNDED, 32.2, 93), (UNROUNDED, 40.4, 59), (REFIT, 72.3, 18.4)):
        here = planner.evaluate(law=law)
        assert here["optimal_parameters"] / 1e9 == pytest.approx(billions, abs=0.1)
        assert here["optimal_ratio"] == pytest.approx(ratio, abs=0.5)
        assert ("rounded to two digits" in here.verdict) == (law == ROUNDED)
    assert "all its digits gives 40.4B parameters on 2.38T tokens" in planner.evaluate(law=ROUNDED).verdict


@pytest.mark.parametrize("law", PRINTED)
@pytest.mark.parametrize("flops", [1e18, GOPHER, 1e27])
def test_the_optimum_is_where_a_search_finds_it(law, flops):
    size, loss = least(law, flops)
    here = calculators.get("compute-optimal").evaluate(law=law, budget_flops=flops)
    assert here["optimal_parameters"] == pytest.approx(size, rel=0.01)
    assert here["optimal_loss"] == pytest.approx(loss, abs=1e-5)
    assert here["optimal_parameters"] * here["optimal_tokens"] * 6 == pytest.approx(flops)


def test_the_fits_stand_side_by_side():
    rows = calculators.get("compute-optimal").evaluate().rows()
    assert list(rows) == list(laws())
    assert [row["optimal_parameters"] / 1e9 for row in rows.values()] == pytest.approx([32.2, 40.4, 72.3], abs=0.1)


def test_a_budget_is_the_same_in_operations_hours_and_money():
    """On H100s, 989.4 TFLOP/s dense in bf16, at 40%: a GPU-hour is 1.4247e18 FLOP."""
    planner = calculators.get("compute-optimal")
    hours = planner.evaluate(budget="gpu_hours", device_time="1M GPU-h")
    money = planner.evaluate(budget="money", cost="3M USD", price="3 USD/h")
    assert hours["flops"] == pytest.approx(1e6 * 3600 * 989.4e12 * 0.4)
    assert money["flops"] == pytest.approx(hours["flops"])
    assert money["run_cost"] == pytest.approx(3e6) and hours["run_device_time"] == pytest.approx(1e6 * 3600)
    assert hours["time"] == pytest.approx(1e6 * 3600 / 1024)
    assert "budget_flops" not in hours.relevant and "device_time" in hours.relevant and "cost" in money.relevant


def test_a_smaller_model_reads_more_and_pays_for_it():
    planner = calculators.get("compute-optimal")
    e, a, alpha, b, beta = PRINTED[REFIT]
    here = planner.evaluate(smaller=4)
    n = here["optimal_parameters"] / 4
    assert here["smaller_tokens"] == pytest.approx(4 * here["optimal_tokens"])
    assert here["smaller_loss"] == pytest.approx(e + a / n**alpha + b / here["smaller_tokens"] ** beta)
    # the same loss by bisection over the tokens
    low, high = here["smaller_tokens"], 1e20
    for _ in range(200):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if e + a / n**alpha + b / middle**beta > here["optimal_loss"] else (low, middle)
    assert here["extra_compute"] == pytest.approx(6 * n * low / GOPHER, rel=1e-6)
    assert f"needs {here.text('extra_compute')} times the training operations" in here.verdict
    tiny = planner.evaluate(smaller=50)
    assert tiny["smaller_limit"] > tiny["optimal_loss"] and "cannot reach that loss" in tiny.verdict
    assert "times smaller" not in planner.evaluate(smaller=1).verdict


def test_the_loss_of_chinchilla_and_of_gopher():
    """1.937, 1.921 and 1.974 nats for Chinchilla, 1.993, 1.967 and 2.000 for Gopher, computed from the printed laws."""
    surface = calculators.get("loss-surface")
    for law, chinchilla, gopher in ((ROUNDED, 1.937, 1.993), (UNROUNDED, 1.921, 1.967), (REFIT, 1.974, 2.000)):
        assert surface.evaluate(law=law)["loss"] == pytest.approx(chinchilla, abs=1e-3)
        here = surface.evaluate(law=law, parameters="280B", tokens="300B")
        assert here["loss"] == pytest.approx(gopher, abs=1e-3)
        assert here["irreducible_loss"] + here["model_term"] + here["data_term"] == pytest.approx(here["loss"])
        assert here["training_flops"] == pytest.approx(6 * 280e9 * 300e9)
        assert here.verdict.startswith("More tokens buy more")
    assert surface.evaluate().verdict.startswith("Balanced")
    assert surface.evaluate(parameters="1B", tokens="10T").verdict.startswith("More parameters buy more")


def test_twice_as_much_gains_what_the_verdict_says():
    surface = calculators.get("loss-surface")
    here = surface.evaluate(parameters="10B", tokens="10T")
    wider = surface.evaluate(parameters="20B", tokens="10T")["loss"]
    longer = surface.evaluate(parameters="10B", tokens="20T")["loss"]
    assert here["size_gain"] == pytest.approx(here["loss"] - wider)
    assert here["data_gain"] == pytest.approx(here["loss"] - longer)


def test_the_curve_at_fixed_operations_has_its_minimum_at_the_mark():
    surface = calculators.get("loss-surface")
    state = {"parameters": "280B", "tokens": "300B"}
    best = surface.evaluate(**state)["optimal_parameters"]
    left, middle, right = surface.sweep("loss_at_compute", "size", [best / 1.2, best, best * 1.2], **state)
    assert middle < left and middle < right
    assert surface.evaluate(**state)["optimal_loss"] == pytest.approx(middle)
    falling = surface.sweep("loss_at_tokens", "size", [1e9, 1e10, 1e11, 1e12], **state)
    assert falling == sorted(falling, reverse=True)


def test_gpt3_on_one_h200_takes_ten_years_at_its_peak():
    """3.15e23 FLOP over 989.4e12 FLOP/s are 10.1 years; at 40% MFU 25."""
    plan = calculators.get("training-time")
    claim = plan.evaluate(model="GPT-3 175B", accelerator="H200 SXM", devices=1, mfu=1)
    assert claim["flops"] == pytest.approx(6 * 175e9 * 300e9)
    assert claim["time"] / (365.25 * 86400) == pytest.approx(10.1, abs=0.05)
    assert plan.evaluate(model="GPT-3 175B", accelerator="H200 SXM", devices=1, mfu=0.4).text("time") == "25.2 years"
    # 16 × 175e9 bytes over 141e9: 19.9 accelerators, so 20
    assert (
        claim.verdict.startswith("Not on 1 of these")
        and "2.8 TB" in claim.verdict
        and "at least 20 of them" in claim.verdict
    )
    assert plan.evaluate(model="GPT-3 175B", accelerator="H200 SXM", devices=20).verdict.startswith("Too late")
    own = plan.evaluate(model="GPT-3 175B", accelerator=CUSTOM, own_memory="3 TB", devices=1)
    assert own.verdict.startswith("Too late")


def test_llama_405b_on_16384_h100():
    """3.8e25 FLOP (the paper's figure) at 400 TFLOP/s per GPU (its table 4): 67 days, 26.4 million GPU-hours."""
    here = calculators.get("training-time").evaluate()
    assert here["flops"] == pytest.approx(3.8e25, rel=0.01)
    assert here["time"] / 86400 == pytest.approx(3.8e25 / (16384 * 400e12) / 86400, rel=0.005)
    assert here["run_device_time"] / 3600 == pytest.approx(26.4e6, rel=0.005)
    assert here["cost"] == pytest.approx(2.5 * here["run_device_time"] / 3600)


def test_the_devices_for_a_deadline_meet_it():
    plan = calculators.get("training-time")
    needed = plan.evaluate()["devices_needed"]
    assert plan.evaluate(devices=math.ceil(needed)).verdict.startswith("In time")
    assert plan.evaluate(devices=math.floor(needed)).verdict.startswith("Too late")
    told = f"{math.ceil(needed):,}"  # typed as it is told, it meets the deadline
    assert plan.evaluate().text("devices_needed") == told == "12,222"
    assert f" {told} devices" in plan.evaluate().verdict
    assert plan.evaluate(devices=told).verdict.startswith("In time")
    assert f" takes {told} devices" in plan.evaluate(devices=math.floor(needed)).verdict
    assert plan.evaluate(devices=math.ceil(needed))["time"] == pytest.approx(90 * 86400, rel=1e-3)
    small = plan.evaluate(model=CUSTOM, data="own", own_parameters="124M", own_tokens="1B")
    assert small.verdict.endswith("One device would do.")


def test_only_models_whose_tokens_are_known_are_offered():
    offered = set(calculators.get("training-time").table["model"].table) - {CUSTOM}
    assert offered == {m.name for m in models().values() if m.tokens}
    assert "Mistral 7B" not in offered


def test_a_custom_model_asks_for_what_it_needs():
    plan = calculators.get("training-time")
    assert not {"own_parameters", "own_tokens"} & set(plan.evaluate().relevant)
    own = plan.evaluate(model=CUSTOM)
    assert {"own_parameters", "own_tokens"} <= set(own.relevant) and "data" not in own.relevant
    assert "own_tokens" in plan.evaluate(data="own").relevant


def drawn(js, name, width=640, **state):
    calculator = calculators.get(name)
    return js.call(
        "(() => { const c = compile(spec); return draw(c, evaluate(c, state), width, [], 'id').svg; })()",
        spec=bundle.declaration(calculator),
        state=calculator.state(**state),
        width=width,
    )


def ticks(svg):
    """Of the y axis: what is written, and where."""
    found = re.findall(r'<text x="[\d.]+" y="([\d.]+)" text-anchor="end" class="tick">(10[⁰¹²³⁴⁵⁶]|[\d.,]+)<', svg)
    powers = {f"10{'⁰¹²³⁴⁵⁶'[e]}": 10.0**e for e in range(7)}
    return {powers.get(text) or float(text.replace(",", "")): float(y) - 4 for y, text in found}


def test_a_long_time_is_drawn_in_days(js):
    """The dot of 67.1 days lies where the marks of 10 and 100 days say."""
    svg, here = drawn(js, "training-time"), calculators.get("training-time").evaluate()
    assert ">Time (d)<" in svg
    marks = ticks(svg)
    y = float(re.search(r'cy="([\d.]+)" r="6" class="here"', svg)[1])
    share = math.log10(here["time"] / 86400 / 10)
    assert y == pytest.approx(marks[10] + share * (marks[100] - marks[10]), abs=0.3)


def test_an_axis_does_not_name_its_unit_twice(js):
    svg = drawn(js, "loss-surface")
    assert ">Parameters<" in svg and ">Loss (nats)<" in svg


@pytest.mark.parametrize("law", list(laws()))
def test_the_minimum_of_every_fit_is_in_the_drawing(js, law):
    svg = drawn(js, "compute-optimal", law=law)
    bottom = float(re.search(r'<clipPath[^>]*><rect x="[\d.]+" y="([\d.]+)" width="[\d.]+" height="([\d.]+)"', svg)[1])
    bottom += float(re.search(r'<clipPath[^>]*><rect [^>]*height="([\d.]+)"', svg)[1])
    lines = re.findall(r'<path d="M([^"]+)" class="(?:faint|line line-0)"', svg)
    assert len(lines) == len(laws())
    for line in lines:
        assert max(float(p.split(",")[1]) for p in line.split("L")) < bottom


def test_a_number_is_written_without_the_unit_that_its_label_names():
    text = re.sub(r"<[^>]+>", " ", markup.html(calculators.get("loss-surface")))
    assert re.search(r"Parameters\s+70B\s+Training tokens\s+1\.4T\s", text)
    table = markup.html(calculators.get("compute-optimal")).partition("<thead>")[2]
    assert "<td>40.4B</td><td>2.38T</td><td>58.9</td><td>1.918</td>" in table and ">Loss (nats)</th>" in table
