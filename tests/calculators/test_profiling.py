"""The calculators of profiling against published runs, a benchmark that others printed and numbers worked by hand."""

from __future__ import annotations

import itertools
import math
import random
import re

import pytest

from efflab import calculators
from efflab.calculators import bundle
from efflab.calculators.picks import CUSTOM

from .conftest import random_state

# Hennessy & Patterson: a square root with 20% of the time, ten times faster, against half of the time, 1.6 times faster
HENNESSY = dict(time="1 s", share_a=0.2, speedup_a=10, share_b=0.5, speedup_b=1.6, share_c=0, speedup_c=1)


def test_hennessys_two_designs():
    todo = calculators.get("amdahl")
    root, all_fp = todo.evaluate(**HENNESSY, part="A"), todo.evaluate(**HENNESSY, part="B")
    assert root["gain"] == pytest.approx(1.22, abs=0.005) and all_fp["gain"] == pytest.approx(1.23, abs=0.005)
    assert root.verdict.startswith("Mend B first") and "A would become 10 times faster and saves less" in root.verdict
    assert root["limit"] == pytest.approx(1.25) and all_fp["limit"] == pytest.approx(2)


def test_what_is_opened_first_is_worked_by_hand():
    """100 ms: 61% 1.4 times faster save 17.43 ms, 25.5% three times 17 ms, 13.5% ten times 12.15 ms."""
    here = calculators.get("amdahl").evaluate()
    assert [here[f"saved_{k}"] * 1e3 for k in "abc"] == pytest.approx([17.43, 17, 12.15], abs=0.01)
    assert here["time_left"] * 1e3 == pytest.approx(100 - 17.43 - 17 - 12.15, abs=0.01)
    assert here["gain_of_all"] == pytest.approx(100 / 53.42, rel=1e-3)
    # the gains do not multiply: 1.21 × 1.20 × 1.14 would be less
    assert here["gain_of_all"] > here["gain_a"] * here["gain_b"] * here["gain_c"]
    assert here.verdict.startswith("Mend A first: it saves 17.4 ms of 100 ms")
    rows = calculators.get("amdahl").evaluate().rows()
    assert [row["gain"] for row in rows.values()] == pytest.approx([1.211, 1.205, 1.138], abs=0.001)


def test_the_part_to_mend_first_is_the_one_whose_mend_leaves_least():
    """Every part is mended in turn, by taking its new time in place of the old."""
    todo, advised = calculators.get("amdahl"), set()
    for seed in range(200):
        state = random_state(todo, seed)
        parts = {k: (state[f"share_{k}"], state[f"speedup_{k}"]) for k in "abc"}
        here = todo.evaluate(**state)
        if sum(share for share, _ in parts.values()) > 1:
            assert here.verdict.startswith("Impossible as set")
            continue
        left = {k: state["time"] * (1 - share) + state["time"] * share / speed for k, (share, speed) in parts.items()}
        best = min(left, key=left.get)
        told = re.match(r"Mend ([ABC]) first", here.verdict)[1]
        assert left[told.lower()] == pytest.approx(left[best])
        advised.add(told)
        worse = [k for k in "abc" if parts[k][1] > parts[best][1] and left[k] > left[best]]
        assert here.verdict.count("saves less") == len(worse)
    assert advised == {"A", "B", "C"}


def test_parts_that_save_as_much_are_both_named():
    todo = calculators.get("amdahl")
    alike = dict(share_a=0.25, speedup_a=2, share_b=0.25, speedup_b=2)
    here = todo.evaluate(**alike, share_c=0.1, speedup_c=2)
    assert here.verdict.startswith("Mend A first") and here.verdict.count("B saves as much.") == 1
    every = todo.evaluate(**alike, share_c=0.25, speedup_c=2).verdict
    assert [every.count(f"{part} saves as much.") for part in "ABC"] == [0, 1, 1]
    assert "as much" not in todo.evaluate().verdict
    nothing = todo.evaluate(speedup_a=1, speedup_b=1, speedup_c=1)
    assert "as much" not in nothing.verdict


def test_where_nothing_becomes_faster_nothing_is_advised():
    here = calculators.get("amdahl").evaluate(speedup_a=1, speedup_b=1, speedup_c=1)
    assert here.verdict == "Nothing is saved: no part becomes faster."


def test_the_curve_of_the_gain_levels_off_at_the_limit():
    todo = calculators.get("amdahl")
    gains = todo.sweep("gain", "speedup", [1, 2, 10, 1e9], part="B")
    assert gains[0] == 1 and gains == sorted(gains)
    assert gains[-1] == pytest.approx(todo.evaluate(part="B")["limit"])


# name, accelerator, sequence length, devices, tokens/s, recomputation, MFU, HFU as printed
RUNS = [
    ("Llama 3.1 8B", "A100 SXM 80GB", 8192, 64, 64 * 2904, "none", 56.8, 56.8),
    ("Llama 3.1 70B", "A100 SXM 80GB", 8192, 64, 64 * 331, "full", 51.7, None),
    ("Llama 2 70B", "A100 SXM 80GB", 4096, 1, 353, "full", 50.5, None),
]


@pytest.mark.parametrize(("model", "accelerator", "length", "devices", "tokens", "again", "mfu", "hfu"), RUNS)
def test_mfu_of_published_llama_runs(model, accelerator, length, devices, tokens, again, mfu, hfu):
    """torchtitan, docs/performance.md."""
    here = calculators.get("mfu").evaluate(
        model=model, accelerator=accelerator, sequence_length=length, devices=devices, tokens_per_second=tokens,
        recomputation=again,
    )  # fmt: skip
    assert 100 * here["mfu"] == pytest.approx(mfu, abs=0.06 + 50 * mfu / tokens * devices / 100)
    if hfu:
        assert 100 * here["hfu"] == pytest.approx(hfu, abs=0.06)


def test_mfu_and_hfu_of_mpt_70b():
    """MosaicML's benchmark: 66,523 tokens/s on 64 H100s are 42.57% and, with the forward pass twice, 56.76%."""
    here = calculators.get("mfu").evaluate(
        model=CUSTOM, own_parameters=64862437376, own_layers=80, own_query_heads=64, own_head_dim=128,
        sequence_length=2048, accelerator=CUSTOM, own_peak_performance="989.5 TFLOP/s", devices=64,
        tokens_per_second=66523, recomputation="full",
    )  # fmt: skip
    assert 100 * here["mfu"] == pytest.approx(42.57, abs=0.005)
    assert 100 * here["hfu"] == pytest.approx(56.76, abs=0.006)
    assert here["performance"] == pytest.approx(4.212583e14, rel=1e-5)
    assert here.verdict.startswith("In the range of published runs")


def test_the_peak_is_where_the_mfu_is_one():
    run = calculators.get("mfu")
    here = run.evaluate(recomputation="none")
    again = run.evaluate(recomputation="none", tokens_per_second=here["tokens_at_peak"])
    assert again["mfu"] == pytest.approx(1) == again["hfu"]
    lower = run.evaluate(tokens_per_second=here["tokens_at_40"])
    assert lower["mfu"] == pytest.approx(0.4) and lower.verdict.startswith("In the range")


@pytest.mark.parametrize(
    ("mfu", "says"),
    [(0.05, "Low"), (0.25, "Below recent"), (0.4, "In the range"), (0.55, "Among the best"), (0.72, "Among the best"),
     (0.8, "More than any"), (1.3, "Impossible")],
)  # fmt: skip
def test_a_verdict_for_every_mfu(mfu, says):
    run = calculators.get("mfu")
    peak = run.evaluate()["tokens_at_peak"]
    assert run.evaluate(recomputation="none", tokens_per_second=mfu * peak).verdict.startswith(says)


def test_an_hfu_above_one_is_impossible_though_its_mfu_is_not():
    run = calculators.get("mfu")
    here = run.evaluate(tokens_per_second=0.8 * run.evaluate()["tokens_at_peak"])
    assert here["mfu"] == pytest.approx(0.8) and here.verdict.startswith("Impossible: 107% of the peak")


def test_a_dtype_without_a_peak_is_said():
    here = calculators.get("mfu").evaluate(accelerator="V100 SXM2 32GB", dtype="bf16")
    assert here["mfu"] is None and "has no dense bf16 peak" in here.verdict


# Bekman's benchmark: 10 batches of 100 samples of 5 ms, 0.2 s of computing each; printed are the seconds of an epoch
# without the computing, for 0 to 4 workers.
BEKMAN = {0: 5.388, 1: 3.900, 2: 1.333, 3: 0.839, 4: 0.875}


def test_the_number_of_workers_at_which_a_published_benchmark_stops_gaining():
    wait = calculators.get("loader")
    assert wait.evaluate()["needed"] == 3
    waited = {w: 10 * wait.evaluate(workers=w)["waiting"] for w in BEKMAN}
    # what is left once the loading is hidden: processes that start, and a first batch that nobody can prefetch
    once = BEKMAN[3] - waited[3]
    assert waited[0] == pytest.approx(BEKMAN[0], rel=0.1)  # no workers to start
    for workers in (1, 2):
        assert waited[workers] < BEKMAN[workers] < waited[workers] + 2 * once
    assert wait.evaluate(workers=3).verdict.startswith("The device does not wait")
    assert "waits for 20% of the step, 50 ms. 3 workers would hide" in wait.evaluate(workers=2).verdict


def steps(load: float, compute: float, workers: int, count: int = 400) -> float:
    """Time of a step by walking through the batches: a worker takes the next batch when it has handed one over."""
    if not workers:
        return load + compute
    free, device, started = [0.0] * workers, 0.0, 0.0
    for batch in range(count):
        ready = free[batch % workers] + load
        device = max(device, ready) + compute
        free[batch % workers] = ready  # the queue is long enough
        if batch == count // 2:
            started = device
    return (device - started) / (count - count // 2 - 1)


def test_the_step_time_by_walking_through_the_batches():
    draw = random.Random(0)
    wait = calculators.get("loader")
    for _ in range(60):
        state = dict(
            sample_time=10 ** draw.uniform(-4, -1),
            batch=draw.choice([1, 8, 100]),
            compute_time=10 ** draw.uniform(-3, 0),
            workers=draw.randint(0, 12),
            cores=16,
        )
        expected = steps(state["sample_time"] * state["batch"], state["compute_time"], state["workers"])
        assert wait.evaluate(**state)["step_time"] == pytest.approx(expected, rel=0.05)


def test_the_workers_that_are_needed_suffice_and_one_less_does_not():
    wait = calculators.get("loader")
    for sample_time, batch, compute in itertools.product((0.001, 0.003, 0.1), (1, 16, 100), (0.05, 0.1, 0.3)):
        state = dict(sample_time=sample_time, batch=batch, compute_time=compute, cores=256)
        needed = wait.evaluate(**state)["needed"]
        if not 1 < needed <= 64:
            continue
        assert wait.evaluate(**state, workers=int(needed))["waiting_share"] <= 1e-6
        assert wait.evaluate(**state, workers=int(needed) - 1)["waiting_share"] > 1e-3


def test_cores_are_not_multiplied_by_workers():
    wait = calculators.get("loader")
    few, many = wait.evaluate(workers=2, cores=2), wait.evaluate(workers=16, cores=2)
    assert many["step_time"] == few["step_time"]
    assert "16 workers share 2 cores" in many.verdict and "share" not in few.verdict.partition("step")[2]
    assert "2 cores for workers cannot hide the loading: it takes 3" in many.verdict
    # 2 cores × 0.2 s over 100 samples
    assert many["sample_limit"] == pytest.approx(0.004)
    assert wait.evaluate(workers=2, cores=2, sample_time="4 ms").verdict.startswith("The device does not wait")


def test_without_workers_nothing_is_loaded_in_advance():
    here = calculators.get("loader").evaluate(workers=0)
    assert here["step_time"] == pytest.approx(0.7) and here["waiting_share"] == pytest.approx(5 / 7)
    assert here.verdict.startswith(
        "Nothing is loaded in advance: the device waits 500 ms of 700 ms where each step ends"
    )
    assert here.verdict.endswith("3 workers would hide the loading.")


def drawn(js, name, **state):
    calculator = calculators.get(name)
    return js.call(
        "(() => { const c = compile(spec); return draw(c, evaluate(c, state), 640, [], 'id').svg; })()",
        spec=bundle.declaration(calculator),
        state=calculator.state(**state),
    )


@pytest.mark.parametrize(
    ("name", "state", "shown"),
    [
        ("amdahl", {}, "Speedup of the step"),
        ("amdahl", {"part": "C", "share_c": 0.99, "speedup_c": 1000}, "limit"),
        ("mfu", {}, "HFU"),
        ("mfu", {"recomputation": "none", "tokens_per_second": 1}, "MFU 40%"),
        ("loader", {}, "hidden from 3"),
        ("loader", {"workers": 0, "sample_time": "1 s"}, "hidden from 500"),
        ("loader", {"sample_time": "1 µs"}, "computing alone"),
    ],
)
def test_every_drawing_is_of_numbers(js, name, state, shown):
    svg = drawn(js, name, **state)
    assert shown in svg and "NaN" not in svg and "Infinity" not in svg and 'class="line line-0"' in svg


def test_the_first_part_is_drawn_with_the_others_behind_it(js):
    assert drawn(js, "amdahl").count('class="faint"') >= 2


def test_times_are_written_alike_in_sums(js):
    """A sum of seconds was once written in minutes by one half and in seconds by the other."""
    calculator = calculators.get("loader")
    state = calculator.state(sample_time="10 s", compute_time="1 s", workers=0)
    here = calculator.evaluate(**state)
    there = js.call(
        "(() => { const c = compile(spec); return evaluate(c, state).text('waiting'); })()",
        spec=bundle.declaration(calculator),
        state=state,
    )
    assert here.text("waiting") == there == "16.7 min"
    assert math.isclose(here["waiting"], 1000)
