"""The calculators of memory against published tables and numbers worked by hand."""

from __future__ import annotations

import re

import pytest

from efflab import calculators
from efflab.calculators import markup
from efflab.calculators.picks import CUSTOM

from .conftest import random_state

GIB = 2**30
# No activations to speak of: what is left is the state.
BARE = dict(
    model=CUSTOM, own_layers=1, own_hidden_size=1, own_query_heads=1, own_vocabulary=1, sequence_length=1, microbatch=1
)


@pytest.mark.parametrize(("zero", "printed"), [("0", 120), ("1", 31.4), ("2", 16.6), ("3", 1.88)])
def test_zeros_figure_1(zero, printed):
    """Rajbhandari et al. 2020: 7.5B parameters on 64 ranks."""
    here = calculators.get("training-memory").evaluate(**BARE, own_parameters="7.5B", zero=zero, ranks=64)
    assert here["total"] / 1e9 == pytest.approx(printed, abs=0.05)
    assert here["whole_state"] == pytest.approx(120e9)


def test_every_zero_stage_is_a_bar():
    bars = calculators.get("training-memory").evaluate(**BARE, own_parameters="7.5B", ranks=64).bars()
    held = [sum(v for n, v in bar.items() if n != "capacity") / 1e9 for bar in bars.values()]
    assert held == pytest.approx([120, 31.4, 16.6, 1.88], abs=0.05)


@pytest.mark.parametrize(
    ("convention", "parts"),
    [("16 bytes", (2, 2, 12)), ("18 bytes", (2, 4, 12)), ("fp32", (4, 4, 8))],
)
def test_the_parts_of_gpt3(convention, parts):
    """In FP32 GPT-3's weights alone are 700 GB, the number that is often told as its memory."""
    here = calculators.get("training-memory").evaluate(model="GPT-3 175B", convention=convention)
    for name, size in zip(("weights", "gradients", "optimizer"), parts, strict=True):
        assert here[name] == pytest.approx(175e9 * size)
    assert (here.text("weights") == "700 GB") == (convention == "fp32")


@pytest.mark.parametrize(
    ("recomputation", "kept"),
    # Korthikanti et al. 2022, 22B (s 2048, b 4, h 6144, a 64, L 48, t 8): sbhL/t (34 + 5as/h), 34sbhL/t, 2sbhL/t
    [("none", 48 * 2048 * 4 * (34 * 6144 + 5 * 64 * 2048) / 8), ("selective", 48 * 34 * 2048 * 4 * 6144 / 8),
     ("full", 48 * 2 * 2048 * 4 * 6144 / 8)],
)  # fmt: skip
def test_korthikantis_activations(recomputation, kept):
    here = calculators.get("training-memory").evaluate(
        model=CUSTOM, own_parameters="22B", own_layers=48, own_hidden_size=6144, own_query_heads=64,
        own_vocabulary=51200, sequence_length=2048, microbatch=4, tensor="8", attention="standard",
        recomputation=recomputation,
    )  # fmt: skip
    assert here["layers_kept"] == pytest.approx(kept)
    assert here["weights"] == pytest.approx(2 * 22e9 / 8)
    # the layer that is computed again is a whole one, with its scores
    layer = 2048 * 4 * (34 * 6144 + 5 * 64 * 2048) / 8
    assert here["again"] == (pytest.approx(layer) if recomputation == "full" else 0)
    assert here["output_kept"] == pytest.approx(2048 * 4 * (2 * 6144 * 2 + 4 * 51200) / 8)


@pytest.mark.parametrize("recomputation", ["none", "full"])
def test_a_part_of_nothing_is_not_listed(recomputation):
    page = markup.html(calculators.get("training-memory"), recomputation=recomputation)
    row = re.search(r'<tr class="calc-part"( hidden)?><th scope="row"><span[^>]*></span>Layer in recomputation', page)
    assert bool(row[1]) == (recomputation == "none")
    assert len(re.findall('<tr class="calc-part" hidden>', page)) == (recomputation == "none")


def test_activations_in_fp32_take_twice_the_bytes():
    fits = calculators.get("training-memory")
    narrow, wide = fits.evaluate(microbatch=3), fits.evaluate(microbatch=3, convention="fp32")
    assert wide["layers_kept"] == pytest.approx(2 * narrow["layers_kept"])
    # two inputs of the width of the model, in 4 bytes, and FP32 log-probabilities: Llama 3.1 8B at 4096
    assert wide["output_kept"] == pytest.approx(3 * 4096 * (2 * 4096 * 4 + 4 * 128256))


def test_what_one_choice_makes_irrelevant_is_hidden():
    fits = calculators.get("training-memory")
    assert "sequence" not in fits.evaluate().relevant and "sequence" in fits.evaluate(tensor="2").relevant
    assert not [n for n in fits.evaluate().relevant if n.startswith("own_")]
    assert "own_memory" in fits.evaluate(accelerator=CUSTOM).relevant


CHANGES = {
    "FlashAttention": {"attention": "flash"},
    "ZeRO stage 3": {"zero": "3"},
    "microbatch of 1": {"microbatch": 1},
    "ull recomputation": {"recomputation": "full"},
}


def test_the_change_that_is_advised_is_the_one_that_helps_most():
    """Every change is made in turn, in many states; FlashAttention goes first where it is enough, as it is free."""
    fits, advised = calculators.get("training-memory"), set()
    for seed in range(300):
        state = random_state(fits, seed) | {"model": "Llama 3.1 8B", "accelerator": "H200 SXM"}
        here = fits.evaluate(**state)
        after = {name: fits.evaluate(**state | change) for name, change in CHANGES.items()}
        left = {name: one["total"] for name, one in after.items()}
        sharded = fits.evaluate(**state | {"zero": "3"})["state_here"]
        if here["total"] <= here["capacity"]:
            assert here.verdict.startswith("Fits") and here.text("free") in here.verdict
            continue
        assert here.verdict.startswith(f"Over by {here.text('over')}")
        told = [name for name in CHANGES if name in here.verdict]
        if left["FlashAttention"] <= here["capacity"]:
            assert told == ["FlashAttention"] and "makes it fit" in here.verdict
        elif sharded > here["capacity"]:
            assert "Even ZeRO stage 3" in here.verdict
            continue
        elif min(left.values()) > 0.999 * here["total"]:
            assert "would not help" in here.verdict
            continue
        else:
            assert left[told[0]] == pytest.approx(min(left.values())) and "helps most" in here.verdict
            assert ("which fits" in here.verdict) == (left[told[0]] <= here["capacity"])
        assert after[told[0]].text("total") in here.verdict
        advised |= set(told)
    assert advised == set(CHANGES)


def test_where_nothing_helps_the_verdict_says_so():
    here = calculators.get("training-memory").evaluate(
        model="Llama 3.1 8B", zero="3", ranks=2, recomputation="full", sequence_length=131072
    )
    assert "would not help" in here.verdict


def test_the_largest_microbatch_fits_and_one_more_does_not():
    fits = calculators.get("training-memory")
    state = {"zero": "3", "ranks": 64, "recomputation": "full"}
    largest = int(fits.evaluate(**state)["largest_microbatch"])
    assert largest > 1
    assert fits.evaluate(**state, microbatch=largest).verdict.startswith("Fits")
    assert fits.evaluate(**state, microbatch=largest + 1).verdict.startswith("Over")


def test_the_cache_of_llama_2_7b_is_2_gib_at_4096():
    here = calculators.get("kv-cache").evaluate(model="Llama 2 7B", context_length=4096, batch=1)
    assert here["token_bytes"] == 512 * 1024
    assert here["whole_cache"] == 2 * GIB
    assert calculators.get("kv-cache").evaluate(model="Llama 2 7B", batch=1, cache_bits="8")["whole_cache"] == GIB


def test_the_cache_of_llama_405b_is_half_of_what_a_blog_printed():
    """123.05 GiB at 128,000 tokens was computed with 16 KV heads; the paper has 8."""
    here = calculators.get("kv-cache").evaluate(model="Llama 3.1 405B", context_length=128000, batch=1)
    assert here["whole_cache"] / GIB == pytest.approx(123.05 / 2, abs=0.01)
    assert here.verdict.startswith("No sequence fits: the weights alone are 5.76 times the memory")


def test_what_is_said_to_fit_fits():
    room = calculators.get("kv-cache")
    here = room.evaluate()
    most, longest = int(here["largest_batch"]), int(here["largest_context"])
    assert room.evaluate(batch=most)["over"] <= 0 < room.evaluate(batch=most + 1)["over"]
    assert room.evaluate(context_length=longest)["over"] <= 0 < room.evaluate(context_length=longest + 1)["over"]
    # (141e9 − 2 × 6,738,415,616) / (4096 × 524,288)
    assert most == 59


def test_heads_are_not_split_below_one():
    """Llama 2 70B has 8 KV heads: on 16 accelerators each head is held twice, so the cache per accelerator stays."""
    room, state = calculators.get("kv-cache"), {"model": "Llama 2 70B"}
    on = {t: room.evaluate(**state, tensor=t)["cache"] for t in ("1", "8", "16")}
    assert on["1"] == pytest.approx(8 * on["8"]) and on["16"] == on["8"]


def test_the_cache_outgrows_the_weights():
    room = calculators.get("kv-cache")
    assert "times the bytes of the weights" in room.evaluate(batch=32).verdict
    assert room.evaluate(batch=1).verdict.startswith("Fits with") and "weights" not in room.evaluate(batch=1).verdict
    assert room.evaluate(batch=4096).verdict.startswith("Over by")
    assert "not even one sequence" in room.evaluate(accelerator="L4", context_length=2**21, batch=1).verdict


def test_what_no_model_can_be_is_said():
    """12 heads on 64 accelerators, and texts beyond learned positions; rotary positions have no such end."""
    for name, length in (("training-memory", "sequence_length"), ("kv-cache", "context_length")):
        fits = calculators.get(name)
        assert "Impossible" not in fits.evaluate().verdict
        small = {"model": "GPT-2 124M", length: 1024}
        assert "Impossible" not in fits.evaluate(**small, tensor="4").verdict
        assert fits.evaluate(**small, tensor="64").verdict.endswith("Impossible as set: 12 heads do not divide by 64.")
        longer = fits.evaluate(**small | {length: 131072}).verdict
        assert longer.endswith("Impossible as set: GPT-2 124M has learned 1,024 positions, not 131,072.")
        assert "Impossible" not in fits.evaluate(**{length: 131072}).verdict
        own = fits.evaluate(model="custom", own_query_heads=12, tensor="8", **{length: 131072}).verdict
        assert own.count("Impossible") == 1 and "12 heads do not divide by 8" in own


def test_a_count_of_accelerators_is_whole():
    here = calculators.get("training-memory").evaluate(model="Llama 3.1 405B")
    assert "take at least 82 of them" in here.verdict and here["needed"] == pytest.approx(81.17, abs=0.01)
