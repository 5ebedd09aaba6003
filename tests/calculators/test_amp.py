"""The calculators of the chapter on mixed precision against published numbers, torch's scaler and numbers by hand."""

from __future__ import annotations

import itertools
import math
import re

import numpy as np
import pytest
import torch

from efflab import calculators
from efflab.calculators import bundle, markup
from efflab.calculators.picks import CUSTOM

GPT2 = dict(layers=48, hidden=1600, wide=6400, vocabulary=50257)  # Radford et al. 2019, the largest model
SPEED, SCALE, BATCH = "amp-speedup", "loss-scale", "amp-memory"


# Speed


def test_products_sixteen_times_as_fast_make_the_step_four_times_as_fast():
    """An A100, FP32 to BF16: 312 over 19.5 TFLOP/s. 0.8/16 + 0.2 = 0.25."""
    here = calculators.get(SPEED).evaluate()
    assert here["matmul_speedup"] == pytest.approx(16)
    assert here["gain"] == pytest.approx(4) and here["limit"] == pytest.approx(5)
    assert here["time_after"] == pytest.approx(0.2 / 4)
    assert here.text("rest_share") == "80%" and "limited by the rest" in here.verdict


@pytest.mark.parametrize(
    ("accelerator", "before", "after", "ratio"),
    [
        ("V100 SXM2 32GB", "fp32", "fp16", 125 / 15.7),
        ("A100 SXM 80GB", "tf32", "bf16", 2),
        ("H100 SXM", "tf32", "bf16", 2),
        ("A100 SXM 40GB", "fp32", "tf32", 8),
    ],
)
def test_large_products_gain_what_the_data_sheets_say(accelerator, before, after, ratio):
    here = calculators.get(SPEED).evaluate(accelerator=accelerator, before=before, after=after, size=32768)
    assert here["matmul_speedup"] == pytest.approx(ratio, rel=1e-6)


def test_small_products_gain_their_bytes():
    speed = calculators.get(SPEED)
    assert speed.evaluate(size=16)["matmul_speedup"] == pytest.approx(2)
    # TF32 is stored in four bytes
    assert speed.evaluate(size=16, after="tf32")["matmul_speedup"] == pytest.approx(1)


def test_measured_speedups_take_the_place_of_the_data_sheet():
    """NVIDIA's BERT-large on a V100: 3.76 times. With products 8 times as fast that is a share of 83.9%."""
    speed = calculators.get(SPEED)
    here = speed.evaluate(products="custom", own_matmul_speedup=8, matmul_share=0.839)
    assert here["gain"] == pytest.approx(3.76, abs=0.01)
    assert not {"accelerator", "before", "after", "size"} & set(here.relevant)
    assert "own_matmul_speedup" in here.relevant and "own_matmul_speedup" not in speed.evaluate().relevant
    own = speed.evaluate(accelerator=CUSTOM, own_peak_before="10 TFLOP/s", own_peak_after="30 TFLOP/s", size=65536)
    assert own["matmul_speedup"] == pytest.approx(3)


def test_a_peak_that_is_missing_is_named():
    here = calculators.get(SPEED).evaluate(accelerator="V100 SXM2 32GB")
    assert here.problem == "V100 SXM2 32GB has no dense bf16 peak. It has: fp16. The nearest is fp16."
    assert here["gain"] is None


def test_every_accelerator_has_a_peak_to_start_from_and_one_to_go_to():
    speed = calculators.get(SPEED)
    offered = [name for name in speed.table["accelerator"].table if name != "custom"]
    assert "T4" in offered and "TPU v5e" not in offered  # of a TPU v5e only bf16 and int8 are published
    for name in offered:
        for before, after in itertools.product(("fp32", "tf32"), ("bf16", "fp16", "tf32")):
            problem = speed.evaluate(accelerator=name, before=before, after=after).problem
            assert not problem or "It has: ." not in problem


def test_the_verdict_says_what_limits():
    speed = calculators.get(SPEED)
    seen = set()
    for share in (0, 0.1, 0.5, 0.8, 0.95):
        for products in (0.2, 1, 2, 16, 100):
            for rest in (0.5, 1, 2):
                here = speed.evaluate(
                    products="custom", own_matmul_speedup=products, matmul_share=share, other_speedup=rest
                )
                parts = share / products, (1 - share) / rest
                assert here["gain"] == pytest.approx(1 / sum(parts))
                said = here.verdict.partition(":")[0].partition(",")[0]
                if sum(parts) > 1 / 0.98:
                    assert said == "Slower"
                elif sum(parts) > 1 / 1.02:
                    assert said == "Nothing gained"
                elif parts[1] > parts[0]:
                    assert "limited by the rest" in here.verdict
                else:
                    assert "limited by the products" in here.verdict
                    assert here["gain_of_twice"] == pytest.approx(1 / (parts[0] / 2 + parts[1]))
                seen.add(here.verdict[:6] + here.verdict[20:50])
    assert len(seen) > 4


# Loss scaling


def trained(scale, gradient, interval, steps, dtype=np.float16):
    """The scale before each step as torch.amp.GradScaler chooses it, where scaled gradients are cast to FP16."""
    weight = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.SGD([weight], lr=0.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=interval)
    scaler.scale(torch.ones(1))
    scales, skipped = [], []
    for _ in range(steps):
        scales.append(scaler.get_scale())
        with np.errstate(over="ignore"):
            weight.grad = torch.tensor([float(dtype(gradient * scales[-1]))])
        skipped.append(not np.isfinite(weight.grad.item()))
        scaler.step(optimizer)
        scaler.update()
    return scales, skipped


@pytest.mark.parametrize(
    ("scale", "gradient", "interval"), [(2.0**16, 20.0, 25), (2.0**32, 3e-3, 7), (4.0, 0.5, 3), (2.0**16, 700.0, 1)]
)
def test_the_curve_is_what_torchs_scaler_does(scale, gradient, interval):
    loss_scale, steps = calculators.get(SCALE), 240
    scales, skipped = trained(scale, gradient, interval, steps)
    state = dict(scale=scale, largest_gradient=gradient, growth_interval=interval)
    here = loss_scale.evaluate(**state)
    assert loss_scale.sweep("scale_now", "step", range(steps), **state) == scales
    assert here["overflows"] == next(i for i, s in enumerate(skipped) if not s)
    end = 2 * (interval + 1)
    assert here["settled"] == min(scales[-end:])
    assert here["skipped_share"] == pytest.approx(sum(skipped[-end:]) / end)
    assert here["largest_scale"] == pytest.approx(65504 / gradient)


def test_pytorchs_defaults():
    """A largest gradient of 20 lets the scale fall from 65,536 to 2,048; one step in 2,001 is skipped from then on."""
    here = calculators.get(SCALE).evaluate(growth_interval=2000)
    assert here["overflows"] == 5 and here["settled"] == 2048
    assert here.text("skipped") == "0.05%" and "one step in 2,001 is skipped" in here.verdict
    assert here.verdict.startswith("Falls to 2,048 in 5 skipped steps.")


@pytest.mark.parametrize(("format", "smallest"), [("fp16", 2.0**-24), ("e5m2", 2.0**-16)])
def test_what_is_said_to_survive_survives(format, smallest):
    """Rounding to a multiple of the smallest number, ties to even."""
    loss_scale = calculators.get(SCALE)
    for small in (1e-13, 1e-11, 1e-9, 1e-7, 1e-5, 1e-3):
        here = loss_scale.evaluate(format=format, small_gradient=small)
        stays = {s: round(small * s / smallest) > 0 for s in (1.0, here["settled"])}
        assert here.verdict.startswith("No scaler needed") == stays[1.0]
        assert here.verdict.startswith("Lost") == (not stays[here["settled"]])


def test_a_scale_below_one_is_a_sign():
    loss_scale = calculators.get(SCALE)
    assert "below 1 is a sign" in loss_scale.evaluate(largest_gradient=1e5).verdict
    assert "is a sign" not in loss_scale.evaluate().verdict


def drawn(js, name, width=640, **state):
    calculator = calculators.get(name)
    return js.call(
        "(() => { const c = compile(spec); return draw(c, evaluate(c, state), width, [], 'id').svg; })()",
        spec=bundle.declaration(calculator),
        state=calculator.state(**state),
        width=width,
    )


def heights(svg):
    """Of the points of the first line."""
    line = re.search(r'<path d="M([^"]+)" class="line line-0"', svg)[1]
    return [float(point.split(",")[1]) for point in line.split("L")]


@pytest.mark.parametrize(("step", "interval", "peaks"), [(0, 25, 2), (1990, 2000, 1), (123_456, 2000, 0), (999, 1, 40)])
def test_no_overflow_falls_between_two_points_of_the_drawing(js, step, interval, peaks):
    """80 steps are drawn with a point for each: as many peaks as the scaler has in them."""
    ys = heights(drawn(js, SCALE, step=step, growth_interval=interval))
    assert len(ys) == 81
    scales = calculators.get(SCALE).sweep("scale_now", "step", range(step, step + 81), growth_interval=interval)
    rises = [b < a for a, b in itertools.pairwise(ys)]  # upwards is towards zero
    assert rises == [b > a for a, b in itertools.pairwise(scales)] and sum(rises) == peaks


# Memory


def sequence_bytes(precision, length=1024):
    """Activations of one sequence of GPT-2 1.5B: operation by operation, in bytes per token."""
    h, f = GPT2["hidden"], GPT2["wide"]
    norm, product = (4, 4) if precision == "fp32" else (4, 2)  # bytes of what a norm and what a product keeps
    layer = 2 * norm * h  # inputs of the norms
    layer += product * h  # input of the product for Q, K and V
    layer += product * 3 * h + product * h  # Q, K and V for attention; its result, into the next product
    layer += product * h + 2 * product * f  # into the MLP; into GELU and into the second product
    output = norm * h + product * h + 4 * GPT2["vocabulary"]  # final norm, output layer, log-probabilities
    return length * (GPT2["layers"] * layer + output)


@pytest.mark.parametrize(("precision", "each"), [("fp32", 16), ("autocast", 18)])
def test_gpt2_by_hand(precision, each):
    here = calculators.get(BATCH).evaluate(precision=precision)
    parameters = 1_557_611_200
    assert here["fixed"] == pytest.approx(each * parameters, rel=1e-3)
    assert here["one_sequence"] == pytest.approx(sequence_bytes(precision))
    assert here["total"] == pytest.approx(here["fixed"] + 2 * sequence_bytes(precision))
    assert here["steps"] == 512 / 8 / 2


def test_autocast_does_not_halve_the_memory():
    """GPT-2 1.5B, two sequences: 4% less, though the activations are 42% smaller."""
    fits = calculators.get(BATCH)
    wide, narrow = fits.evaluate(precision="fp32"), fits.evaluate()
    assert narrow["total"] / wide["total"] == pytest.approx(0.964, abs=0.001)
    assert narrow["activations"] / wide["activations"] == pytest.approx(0.58, abs=0.01)
    assert (wide["largest_microbatch"], narrow["largest_microbatch"]) == (2, 3)


def test_full_recomputation_keeps_the_layers_inputs_in_fp32():
    here = calculators.get(BATCH).evaluate(recomputation="full", microbatch=16)
    assert here["layers_kept"] == 16 * 1024 * 48 * 4 * 1600
    assert here["extra"] == pytest.approx(1 / 3) and here.text("extra") == "33.3%"
    assert here["steps"] == 4 and "Recomputation adds 33.3% to the time" in here.verdict
    layer = 1024 * (8 * 1600 + 2 * 6 * 1600 + 4 * 6400)  # two norms at 4 B; six of the width and two of the MLP at 2 B
    assert here["again"] == 16 * layer


def test_selective_recomputation_drops_the_scores():
    """Under autocast a score takes 6 B: the softmax's result in FP32 and its copy in 16 bits. In FP32 it takes 4 B."""
    fits = calculators.get(BATCH)
    for precision, each in (("autocast", 6), ("fp32", 4)):
        kept, dropped, flash = (
            fits.evaluate(precision=precision, attention=attention, recomputation=recomputation)
            for attention, recomputation in (("standard", "none"), ("standard", "selective"), ("flash", "none"))
        )
        assert kept["layers_kept"] - dropped["layers_kept"] == 2 * 48 * 25 * 1024 * 1024 * each
        assert dropped["layers_kept"] == flash["layers_kept"]
        # s/18h over 1 + s/6h for s = 1024 and h = 1600
        assert dropped["overhead"] == pytest.approx((1024 / 28800) / (1 + 1024 / 9600))
    nothing = fits.evaluate(recomputation="selective")
    assert nothing["overhead"] == 0 and "saves nothing here" in nothing.verdict
    assert "saves nothing" not in fits.evaluate(attention="standard", recomputation="selective").verdict


@pytest.mark.parametrize("recomputation", ["none", "selective", "full"])
@pytest.mark.parametrize("precision", ["fp32", "autocast"])
def test_the_largest_microbatch_fits_and_one_more_does_not(precision, recomputation):
    fits = calculators.get(BATCH)
    state = dict(precision=precision, recomputation=recomputation, attention="standard", accelerator="H100 SXM")
    largest = int(fits.evaluate(**state)["largest_microbatch"])
    assert largest >= 1
    assert fits.evaluate(**state, microbatch=largest)["over"] <= 0
    more = fits.evaluate(**state, microbatch=largest + 1)
    assert more["over"] > 0 and f"fits is {largest}, not {largest + 1}" in more.verdict


def test_what_is_not_needed_and_what_does_not_help_is_said():
    fits = calculators.get(BATCH)
    assert "needs no recomputation" in fits.evaluate(recomputation="full").verdict
    assert fits.evaluate(model="Llama 3.1 8B").verdict.startswith("Not here: weights, gradients")
    assert "in one microbatch" in fits.evaluate(batch=16).verdict
    room = dict(accelerator="V100 SXM2 32GB", attention="standard")
    assert "not one sequence fits. Recomputing whole layers leaves" in fits.evaluate(**room).verdict
    assert "would not make room" in fits.evaluate(**room, microbatch=64).verdict
    assert fits.evaluate(microbatch=3).verdict.endswith("weigh its loss by its tokens.")
    assert "weigh its loss" not in fits.evaluate().verdict
    assert fits.evaluate(microbatch=3).verdict.startswith("Fits, but with less than a tenth free: 2.82 GB for the")
    assert "less than a tenth" not in fits.evaluate().verdict
    tight = fits.evaluate(recomputation="full", microbatch=16).verdict
    assert tight.startswith("Fits, but with") and tight.endswith("Recomputation adds 33.3% to the time.")


def test_ranks_that_get_no_data_are_named():
    fits = calculators.get(BATCH)
    one = fits.evaluate(batch=1).verdict
    assert one.endswith("Too many ranks: a batch of 1 has no sequence for 7 of 8.") and "last microbatch" not in one
    many = fits.evaluate(ranks=1024).verdict
    assert many.endswith("Too many ranks: a batch of 512 has no sequence for 512 of 1,024.")
    few = fits.evaluate(batch=8).verdict
    assert "on 8 ranks fills no microbatch of 2" in few and "Too many" not in few
    assert "Too many" not in fits.evaluate(batch=16).verdict and "fills no" not in fits.evaluate(batch=16).verdict


def test_positions_and_length_are_compared():
    fits = calculators.get(BATCH)
    assert "has learned 1,024 positions, not 2,048" in fits.evaluate(sequence_length=2048).verdict


@pytest.mark.parametrize(
    ("batch", "microbatch", "ranks", "steps"),
    # fairseq's RoBERTa, nanoGPT, NVIDIA's BERT: see the published numbers
    [(2048, 16, 8, 16), (480, 12, 8, 5), (65536, 64, 1024, 1), (65536, 32, 1024, 2)],
)
def test_published_recipes_accumulate_as_often(batch, microbatch, ranks, steps):
    here = calculators.get(BATCH).evaluate(batch=batch, microbatch=microbatch, ranks=ranks)
    assert here["steps"] == steps


def test_a_model_of_ones_own_has_a_plain_mlp():
    fits = calculators.get(BATCH)
    own = fits.evaluate(
        model=CUSTOM, own_parameters=1_557_611_200, own_layers=48, own_hidden_size=1600, own_intermediate_size=6400,
        own_query_heads=25, own_kv_heads=25, own_vocabulary=50257, sequence_length=1024,
    )  # fmt: skip
    assert own["one_sequence"] == pytest.approx(sequence_bytes("autocast"))
    assert "Impossible" not in own.verdict and "own_layers" in own.relevant
    assert not [n for n in fits.evaluate().relevant if n.startswith("own_")]


def test_each_kind_of_recomputation_has_its_row():
    table = markup.html(calculators.get(BATCH), attention="standard").partition("<thead>")[2]
    text = re.sub(r"<[^>]+>", " ", table)
    assert re.search(r"None .* 0%", text) and re.search(r"Full: layers .* 33.3%", text)
    rows = calculators.get(BATCH).evaluate(attention="standard").rows()
    assert rows["none"]["one_sequence"] > rows["selective"]["one_sequence"] > rows["full"]["one_sequence"]
    assert rows["none"]["largest_microbatch"] <= rows["selective"]["largest_microbatch"]
    assert all(math.isfinite(v) for row in rows.values() for v in row.values())
