"""Reconciliation on records whose every number the test chose, so that each result is known by hand."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from efflab import records
from efflab.errors import EfflabError
from efflab.experiments import amp as experiment
from efflab.experiments import runner
from efflab.reconcile import CALIBRATED, amp
from efflab.records import Environment, Prediction, Record, Sample

R = 1 / math.sqrt(32 * math.log(2))  # rms rounding error of a format with spacing 1 at one
SHAPE = {
    "layers": 2, "sequence_length": 100, "microbatch": 3, "hidden_size": 40, "intermediate_size": 160,
    "query_heads": 5, "head_dim": 8, "vocabulary": 70,
}  # fmt: skip
H, F, S, B, A, L, V = 40, 160, 100, 3, 5, 2, 70
PARAMETERS = V * H + S * H + L * (4 * H * H + 4 * H + 2 * H * F + F + H + 4 * H) + 2 * H


def sample(
    point: dict[str, Any], value: Any, metric: str = "time", unit: str = "s", spread: float = 0.0, **changes: Any
) -> Sample:
    values = value if isinstance(value, list) else [value * f for f in (1 - spread, 1.0, 1 + spread)]
    data = {"point": point, "metric": metric, "unit": unit, "values": values, "status": "ok"}
    return Sample(**data | changes)


def timed(case: str, role: str = "step", precision: str = "bf16", **extra: Any) -> dict[str, Any]:
    return {"case": case, "role": role, "precision": precision, "scaler": precision == "fp16", "attention": "math",
            "recomputation": "none", "microbatches": 1, **SHAPE, "series": role} | extra  # fmt: skip


def calibrating(case: str, value: float, metric: str = "time", unit: str = "s", **extra: Any) -> Sample:
    precision = case.rpartition("-")[2]
    return sample(timed(case, "calibration", precision), value, metric, unit, **extra)


STEP = timed("step-bf16")
STEP_FP16 = timed("step-fp16", precision="fp16")
AGAIN = timed("recomputed-fp32", "recomputation", "fp32", recomputation="full")
AGAIN_BF16 = timed("recomputed-bf16", "recomputation", "bf16", recomputation="full")
SUMMED = timed("accumulated-fp32-4", "accumulated", "fp32", microbatches=4)

# The step takes 100 ms, of which products take three quarters. They are 3 times faster in BF16 and 10 times slower in
# FP16, the rest 1.25 times faster and 1.25 times slower.
CALIBRATION = [
    calibrating("step-fp32", 0.100),
    *[calibrating("share-fp32", v, m)
      for m, v in (("matmul_time", 0.0675), ("other_time", 0.0175), ("step_time", 0.090))],
    calibrating("matmul-fp32", 0.075), calibrating("matmul-bf16", 0.025), calibrating("matmul-fp16", 0.750),
    calibrating("other-fp32", 0.025), calibrating("other-bf16", 0.020), calibrating("other-fp16", 0.03125),
    calibrating("other-fp32", 500.0, "operations", ""), calibrating("other-bf16", 600.0, "operations", ""),
    calibrating("other-bf16", 100.0, "casts", ""), calibrating("other-fp16", 100.0, "casts", ""),
    calibrating("forward-fp32", 0.030), calibrating("forward-fp32", 0.024, "layers_time"),
    calibrating("forward-bf16", 0.012), calibrating("forward-bf16", 0.009, "layers_time"),
    calibrating("microbatch-fp32", 0.090), calibrating("update-fp32", 0.006),
]  # fmt: skip


def record(*middle: Sample, kind: str = "cpu", device: str = "Some CPU", **changes: Any) -> Record:
    environment = Environment(
        device=device, kind=kind, count=1, memory=changes.pop("memory", 2**34), threads=2, cores=2,
        caches={"L3": 2**25}, torch="2.13", python="3.11", efflab="0.1", platform="Linux x86_64",
    )  # fmt: skip
    spec = {
        "scale": "cpu", "instructions": ["avx2", "avx512_bf16", "avx512f"], "onednn": {"bf16": True, "fp16": False},
        "checked_steps": [0, 3, 5],
    }  # fmt: skip
    data: dict[str, Any] = {
        "id": "r", "topic": "amp", "created": "2026-11-21T08:00:00Z", "finished": "2026-11-21T08:01:00Z",
        "environment": environment, "spec": spec | changes.pop("spec", {}), "samples": [*CALIBRATION, *middle],
    }  # fmt: skip
    return Record(**data | changes)


def only(found: Record) -> amp.Row:
    (row,) = amp.points(found)
    return row


def without(*cases: str) -> list[Sample]:
    return [s for s in CALIBRATION if s.point["case"] not in cases]


def failed(
    point: dict[str, Any], metric: str = "time", unit: str = "s", message: str = "no room", **changes: Any
) -> Sample:
    return sample(point, [], metric, unit, **{"status": "oom", "message": message} | changes)


# Times


@pytest.mark.parametrize(
    ("point", "seconds"),
    [
        (STEP, 0.100 * (0.75 / 3 + 0.25 / 1.25)),
        (STEP_FP16, 0.100 * (0.75 * 10 + 0.25 * 1.25)),
        (AGAIN, 0.100 + 0.024),
        (AGAIN_BF16, 0.045 + 0.009),
        (SUMMED, 4 * 0.090 + 0.006),
    ],
    ids=lambda p: p["case"] if isinstance(p, dict) else "",
)
def test_times_follow_from_the_calibration(point: dict[str, Any], seconds: float) -> None:
    row = only(record(sample(point, 2 * seconds)))
    assert row.predicted == pytest.approx(seconds, rel=1e-12)
    assert row.measured == pytest.approx(2 * seconds)
    assert (row.ratio, row.error) == pytest.approx((2, -0.5))
    assert (row.metric, row.unit.symbol, row.regime, row.datasheet) == ("time", "s", "", None)


def test_tf32_changes_the_products_alone() -> None:
    tf32 = [calibrating("matmul-tf32", 0.015), sample(timed("step-tf32", precision="tf32"), 0.04)]
    found = record(*tf32, kind="cuda", device="Unknown GPU")
    assert only(found).predicted == pytest.approx(0.100 * (0.75 / 5 + 0.25))
    assert amp.calibration(found)["speedup-tf32"] == pytest.approx(5)


def test_no_step_predicts_itself() -> None:
    fast, slow = (only(record(sample(STEP, t))) for t in (0.01, 1.0))
    assert fast.predicted == slow.predicted
    assert amp.points(record()) == []


def test_the_calibration_is_what_a_learner_predicts() -> None:
    found = amp.calibration(record())
    assert found == pytest.approx({"matmul-share": 0.75, "speedup-bf16": 3, "speedup-fp16": 0.1})
    assert set(found) <= set(amp.CALIBRATION)
    assert amp.calibration(record(samples=[])) == {}
    assert amp.calibration(record(samples=without("share-fp32"))) == pytest.approx(
        {"speedup-bf16": 3, "speedup-fp16": 0.1}
    )


@pytest.mark.parametrize(
    ("gone", "point"),
    [
        ("step-fp32", STEP), ("share-fp32", STEP), ("matmul-fp32", STEP), ("matmul-bf16", STEP), ("other-bf16", STEP),
        ("forward-bf16", AGAIN_BF16), ("microbatch-fp32", SUMMED), ("update-fp32", SUMMED), ("step-fp32", AGAIN),
    ],
    ids=str,
)  # fmt: skip
def test_a_missing_calibration_is_named(gone: str, point: dict[str, Any]) -> None:
    with pytest.raises(EfflabError, match=rf"record r: it has no \w+ of {gone}\."):
        amp.points(record(samples=[*without(gone), sample(point, 0.1)]))


def test_what_has_no_calibration_is_left_out_and_named() -> None:
    """A part that ran out of memory is a result; only the steps that need it go without a prediction."""
    oom = failed(timed("matmul-fp16", "calibration", "fp16"))
    found = record(samples=[*without("matmul-fp16"), oom, sample(STEP, 0.05), sample(STEP_FP16, 0.9)])
    assert [r.case for r in amp.points(found)] == ["step-bf16"]
    said = amp.missing(found)
    assert said[0] == "matmul-fp16 ran out of memory: no room"
    assert said[1] == "step-fp16 has no prediction: matmul-fp16 could not be measured."
    assert "step-fp16 has no prediction" in amp.text(found)
    share = failed(timed("share-fp32", "calibration", "fp32"), "matmul_time")
    found = record(samples=[*without("share-fp32"), share, sample(STEP, 0.05), sample(AGAIN, 0.13)])
    assert [r.case for r in amp.points(found)] == ["recomputed-fp32"]
    assert "step-bf16 has no prediction: share-fp32 could not be measured." in amp.missing(found)


def test_missing_names_what_failed() -> None:
    gone = failed(timed("step-tf32", precision="tf32"), message="TF32 is a mode of a GPU", status="failed")
    lost = failed({"case": "curve-bf16", "role": "curve", "precision": "bf16", "weights": "fp32", "scaler": False,
                   "steps": 6, "loss_weight": 1.0, "epsilon": 1e-8}, "loss", "nats")  # fmt: skip
    found = record(gone, lost)
    assert amp.missing(found) == [
        "step-tf32 was not measured: TF32 is a mode of a GPU", "curve-bf16 ran out of memory: no room",
    ]  # fmt: skip
    assert amp.missing(record()) == []


# The data sheet


def test_products_are_those_of_the_decoder() -> None:
    """The count of a step's operations by torch's own counter, forward and backward."""
    from torch.utils.flop_counter import FlopCounterMode

    from efflab.experiments.decoder import Decoder, Variant

    model = Decoder(SHAPE, Variant("fp32", "math"), torch.device("cpu"))
    with FlopCounterMode(display=False) as counter:
        model.loss(model.run_layers(model.embed())).backward()
    found = list(amp.products(SHAPE))
    assert sum(2 * count * m * n * k for count, m, n, k in found) == counter.get_total_flops()


def test_a_data_sheet_gives_a_second_time() -> None:
    """An H200 SXM: 66.9 TFLOP/s in FP32, 989.4 in BF16, 4.8 TB/s. Products this small are bound by bandwidth."""
    memory = 150_000_000_000 * 94 // 100
    found = record(sample(STEP, 0.05), kind="cuda", device="NVIDIA H200", memory=memory)
    assert amp.datasheet_speedup(found, "bf16", SHAPE) == pytest.approx(2, rel=0.35)
    large = SHAPE | {"hidden_size": 16384, "intermediate_size": 65536, "query_heads": 128, "head_dim": 128,
                     "sequence_length": 4096}  # fmt: skip
    gain = amp.datasheet_speedup(found, "bf16", large)
    # Scores have an inner dimension of 128 only: 128 FLOP/B in FP32 are enough and 256 in BF16 nearly.
    assert gain is not None and 10 < gain < 989.4 / 66.9
    row = only(found)
    sheet = amp.datasheet_speedup(found, "bf16", SHAPE)
    assert sheet is not None
    assert row.datasheet == pytest.approx(0.100 * (0.75 / sheet + 0.25))
    assert "data sheet" in amp.table(found)[0]
    assert "data sheet" in amp.calibration_text(found)
    assert f"products are {sheet:.3g}× as fast" in amp.evidence(found, "step-bf16")
    assert amp.datasheet_speedup(record(), "bf16", SHAPE) is None
    assert "the catalog has no entry" in amp.calibration_text(record())


def test_the_speedup_by_the_data_sheet_is_that_of_every_product_by_hand() -> None:
    memory = 150_000_000_000 * 94 // 100
    found = record(kind="cuda", device="NVIDIA H200", memory=memory)
    rows, each = S * B, B * A
    sizes = [*[(rows, 3 * H, H), (rows, H, H), (rows, F, H), (rows, H, F)] * L,
             *[(S, S, 8), (S, 8, S)] * (each * L), (rows, V, H)]  # fmt: skip

    def seconds(peak: float, size: int) -> float:
        return sum(max(2 * m * n * k / peak, size * (m * n + m * k + n * k) / 4.8e12) for m, n, k in sizes)

    assert amp.datasheet_speedup(found, "bf16", SHAPE) == pytest.approx(seconds(66.9e12, 4) / seconds(989.4e12, 2))


# Why times part


def test_explanations_of_times_follow_the_records_own_numbers() -> None:
    assert only(record(sample(STEP, 0.0451))).explanation == "As predicted, within 1%."
    assert only(record(sample(STEP, 0.048))).explanation == "As predicted, within 10%."
    assert (
        "Unsteady: the middle half of the repeats spans 40%"
        in only(record(sample(STEP, 0.045, spread=0.4))).explanation
    )
    assert only(record(sample(STEP, 0.09))).explanation == amp.NOTHING, "no profile, no warning"

    profiled = [sample(STEP, v, m) for m, v in (("matmul_time", 0.065), ("other_time", 0.03), ("step_time", 0.11))]
    said = only(record(sample(STEP, 0.1), *profiled)).explanation
    assert said == (
        "By the profile of this step products take 65 ms where 25 ms were predicted, everything else 45 ms where 20 ms "
        "were."
    )
    said = only(record(sample(STEP, 0.1), *profiled, kind="cuda", device="Unknown GPU")).explanation
    assert said.endswith(
        "For 14% of the step no kernel runs. Consistent with a GPU that waits for launches: fewer bits do not make "
        "them faster."
    )


def test_a_profile_that_is_not_the_steps_time_is_named() -> None:
    """Its parts are no times of the step then, and its shares may still be."""
    profiled = [sample(STEP, v, m) for m, v in (("matmul_time", 0.12), ("other_time", 0.03), ("step_time", 0.2))]
    said = only(record(sample(STEP, 0.1), *profiled)).explanation
    assert said == (
        "Profiled, the step took 200 ms, timed 100 ms. Consistent with a profile that slows the step, or that was "
        "disturbed. By its shares products are 60% of the step, predicted 56%."
    )
    evidence = amp.evidence(record(sample(STEP, 0.1), *profiled), "step-bf16")
    assert "Profiled, the step took 200 ms, timed 100 ms." in evidence
    fast = [s for s in CALIBRATION if s.metric != "step_time"] + [calibrating("share-fp32", 0.070, "step_time")]
    assert "Profiled, the step took 70 ms, timed 100 ms. Consistent with a step that was disturbed while it was" in (
        amp.calibration_text(record(samples=fast))
    )
    assert "Profiled" not in amp.calibration_text(record())


def test_a_share_that_the_replay_contradicts_is_named() -> None:
    """By the profile products take 30%, replayed they take 75% of both parts; the second one predicts the step."""
    samples = [s for s in CALIBRATION if (s.point["case"], s.metric) != ("share-fp32", "matmul_time")]
    samples.append(calibrating("share-fp32", 0.027, "matmul_time"))
    row = only(record(samples=[*samples, sample(STEP, 0.045)]))
    assert row.predicted == pytest.approx(0.100 * (0.3 / 3 + 0.7 / 1.25))
    assert row.explanation == (
        "Replayed alone, the products take 75% of the two parts in fp32, by the profile 30%. With the first share 45 "
        "ms are predicted. Consistent with a profile that lengthens short operations, or one that was disturbed."
    )
    other = only(record(samples=[*samples, sample(STEP, 0.2)])).explanation
    assert "Replayed" not in other, "it would be no better"


def test_a_disturbed_calibration_is_named() -> None:
    warnings = ["other-bf16: wide: it spans 40%", "step-bf16: disturbed: x", "forward-fp32: wide: y", "a: b"]
    found = record(sample(STEP, 0.09), sample(AGAIN, 0.2), sample(SUMMED, 0.9), warnings=warnings)
    said = {r.case: r.explanation for r in amp.points(found)}
    assert said["step-bf16"] == (
        "It was disturbed while measured, as the record warns. The prediction rests on other-bf16, which the record "
        "says was disturbed."
    )
    assert "rests on forward-fp32" in said["recomputed-fp32"]
    assert "rests" not in said["accumulated-fp32-4"]
    assert "Disturbed while measured, as the record warns: other-bf16, forward-fp32." in amp.calibration_text(found)
    assert "Disturbed while measured, as the record warns: other-bf16, forward-fp32, step-bf16." in amp.text(found)
    both = record(sample(STEP, 0.09), warnings=["other-bf16: wide: 1", "matmul-bf16: short: 1"])
    assert "rests on matmul-bf16, other-bf16, which the record says were disturbed" in only(both).explanation


def test_recomputation_is_explained_by_what_it_adds() -> None:
    def said(point: dict[str, Any], seconds: float, *more: Sample, **changes: Any) -> str:
        rows = {r.case: r for r in amp.points(record(sample(point, seconds), *more, **changes))}
        return rows[point["case"]].explanation

    # From a step that is slower than predicted, the second pass takes what it should.
    assert said(AGAIN_BF16, 0.090, sample(STEP, 0.080)) == (
        "It takes 10 ms longer than step-bf16 as measured; a forward pass of the layers takes 9 ms. So recomputation "
        "costs what was predicted, and the step itself takes another time."
    )
    assert said(AGAIN_BF16, 0.090, sample(STEP, 0.045)).endswith(
        "It takes 45 ms longer than step-bf16 as measured; a forward pass of the layers takes 9 ms. Consistent with "
        "casts of the weights that the second pass repeats."
    )
    assert said(AGAIN, 0.200) == (
        "It takes 100 ms longer than step-fp32 as measured; a forward pass of the layers takes 24 ms."
    )
    assert said(AGAIN, 0.080) == (
        "It takes 20 ms less than step-fp32 as measured; a forward pass of the layers takes 24 ms."
    )
    short = [s for s in CALIBRATION if s.metric != "operations"] + [calibrating("other-fp32", 5000.0, "operations", "")]
    assert "Consistent with what checkpointing does beside the pass" in said(
        AGAIN, 0.2, samples=[*short, sample(AGAIN, 0.2)]
    )
    assert said(AGAIN_BF16, 0.2) == amp.NOTHING, "the plain step was not measured"


def test_an_accumulated_step_is_explained_by_its_microbatches() -> None:
    assert only(record(sample(SUMMED, 0.606))).explanation == (
        "Less the update, each of the 4 microbatches takes 150 ms here and 90 ms alone."
    )
    assert only(record(sample(SUMMED, 0.366))).explanation == "As predicted, within 1%."


# The calibration in words


@pytest.mark.parametrize(
    ("seconds", "spec", "said", "unsaid"),
    [
        (0.750, {}, "fp16 products are 10 times slower than fp32 here. The processor lists no instruction that "
         "multiplies fp16 (avx512_fp16, amx_fp16), and oneDNN, the library of torch's 16-bit products, does not "
         "multiply it here. Consistent with fp16 that is emulated", "does not explain"),
        (0.750, {"onednn": {"fp16": None}}, "multiplies fp16 (avx512_fp16, amx_fp16). Consistent with", "oneDNN"),
        (0.750, {"onednn": "damaged"}, "multiplies fp16 (avx512_fp16, amx_fp16). Consistent with", "oneDNN"),
        (0.750, {"instructions": ["avx512_fp16"]}, "slower than fp32 here. oneDNN, the library", "lists no"),
        (0.750, {"instructions": [{}]}, "lists no instruction", "does not explain"),
        (0.750, {"instructions": ["amx_fp16"], "onednn": None}, "The record does not explain it.", "emulated"),
        (0.0765, {}, "fp16 products are 2.0% slower", "times slower"),
        (0.025, {}, "3×", "slower than fp32"),
    ],
)  # fmt: skip
def test_slow_products_are_explained_by_what_the_processor_offers(
    seconds: float, spec: dict[str, Any], said: str, unsaid: str
) -> None:
    samples = [*without("matmul-fp16"), calibrating("matmul-fp16", seconds)]
    text = amp.calibration_text(record(samples=samples, spec=spec))
    assert said in text
    assert unsaid not in text
    gpu = amp.calibration_text(record(samples=samples, spec=spec, kind="cuda", device="Unknown GPU"))
    assert "slower than fp32" not in gpu


def test_the_calibration_says_what_the_rest_of_a_step_is() -> None:
    text = amp.calibration_text(record())
    assert text.startswith("A training step in fp32 takes 100 ms. By its profile matrix products take 75.0% of it.")
    assert "Under fp16 autocast the other operations take 25% longer; 100 of them are casts" in text
    assert "Under bf16" not in text, "they are faster there"
    assert "forward-fp32 30 ms (its layers 24 ms)" in text
    assert "50 µs each" not in text, "long enough to move bytes"
    short = [s for s in CALIBRATION if s.metric != "operations"] + [calibrating("other-fp32", 5000.0, "operations", "")]
    assert "The other operations of the step in fp32 take 5 µs each. Consistent with calls that cost more" in (
        amp.calibration_text(record(samples=short))
    )
    assert amp.calibration_text(record(samples=[])) == "The step in fp32 was not measured."


def test_the_calibration_gives_away_no_result() -> None:
    curve, scale = runs()
    found = record(sample(STEP, 0.04567), *curve, scale, sample(kept("memory-bf16"), 1.2345e6, "memory", "B"))
    text = amp.calibration_text(found)
    for secret in ("45.7", "1.23 MB", "2^13"):
        assert secret in amp.text(found)
        assert secret not in text


def test_the_banner_says_on_how_many_threads() -> None:
    assert amp.banner(record(spec={"threads": 1})).endswith("Nothing is measured now. What is timed ran on one thread.")
    assert amp.banner(record()).endswith("Nothing is measured now.")


# Memory: s b h = 12,000 elements, a s² b = 150,000


def kept(case: str, precision: str = "bf16", **extra: Any) -> dict[str, Any]:
    weights = {"fp32": "fp32", "bf16": "autocast", "fp16": "autocast-fp16"}[precision]
    return {
        "case": case, "role": "memory", "precision": precision, "weights": weights, "attention": "math",
        "dropout": False, "recomputation": "none", "method": "counted", **SHAPE, "series": "memory", **extra,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "precision", "recomputation", "per_layer", "copies"),
    [
        ("cpu", "fp32", "none", 64 * 12_000 + 4 * 150_000, 0),
        # the inputs of two norms in FP32, the rest in two bytes, and the matrices once more
        ("cpu", "bf16", "none", 2 * 4 * 12_000 + 2 * 14 * 12_000 + 2 * 150_000, 2 * (4 * H * H + 2 * H * F)),
        ("cpu", "fp16", "none", 2 * 4 * 12_000 + 2 * 14 * 12_000 + 2 * 150_000, 2 * (4 * H * H + 2 * H * F)),
        # on a GPU the softmax gives FP32, and the next product reads a copy in two bytes
        ("cuda", "bf16", "none", 2 * 4 * 12_000 + 2 * 14 * 12_000 + 6 * 150_000, 2 * (4 * H * H + 2 * H * F)),
        ("cpu", "fp32", "full", 4 * 12_000, 0),
        ("cpu", "bf16", "full", 4 * 12_000, 0),
    ],
)
def test_bytes_by_hand(kind: str, precision: str, recomputation: str, per_layer: int, copies: int) -> None:
    expected = amp.expected_bytes(kept("m", precision, recomputation=recomputation), kind)
    assert expected["activations"] == L * per_layer
    assert expected["copies"] == L * copies
    assert expected["memory"] == L * (per_layer + copies)
    assert [expected[p] for p in ("weights", "gradients", "optimizer")] == [
        4 * PARAMETERS,
        4 * PARAMETERS,
        8 * PARAMETERS,
    ]
    if precision == "fp32":
        assert expected["outside"] == 2 * 4 * 12_000 + 4 * S * B * V
    else:
        assert expected["outside"] == (4 + 2) * 12_000 + 4 * S * B * V + 2 * V * H


def test_what_the_formula_lacks_is_named_to_the_byte() -> None:
    norms = 2 * 2 * 2 * S * B * 4  # two layers, two norms, mean and deviation of each row

    def said(extra: float, precision: str = "fp32", *more: Sample, **options: Any) -> str:
        point = kept("m", precision, **options)
        predicted = amp.expected_bytes(point, "cpu")["memory"]
        return only(record(sample(point, [predicted + extra], "memory", "B"), *more)).explanation

    assert said(0) == "As predicted, to the byte."
    assert said(0, recomputation="full") == "As predicted, to the byte."
    assert said(norms) == (
        "As predicted, within 1%. Not in the formula: mean and deviation of each row in the layer norms, in fp32: 9.6 "
        "kB. Nothing is left over."
    )
    assert said(norms + 5000).endswith("Left over: 5 kB.")
    assert said(norms - 5000).endswith("Left over: −5 kB.")
    assert not said(2e6).startswith("As predicted")
    assert said(norms + 5000, recomputation="full") == amp.NOTHING

    point = kept("m")
    details = [sample(point, [v], m, "B") for m, v in
               (("kept_float32", 3e5), ("counted", 1e6), ("weight_copies", 2e5))]  # fmt: skip
    assert said(norms, "bf16", *details).endswith(
        "Nothing is left over. 300 kB of 1 MB stay in fp32: the inputs of the norms and their statistics. 200 kB are "
        "16-bit copies of the weights, which fp32 does not need."
    )
    again = kept("m", recomputation="full")
    details = [sample(again, [v], m, "B") for m, v in (("kept_float32", 96e3), ("counted", 96e3))]
    assert said(0, "bf16", *details, recomputation="full").endswith("96 kB of 96 kB stay in fp32: the layers' inputs.")


def test_a_gpus_bytes_are_explained_by_the_allocator() -> None:
    point = kept("m", method="allocator")
    details = [sample(point, [v], m, "B") for m, v in (("kept_float32", 3e5), ("counted", 2.9e6))]
    found = record(sample(point, [3.0e6], "memory", "B"), *details, kind="cuda", device="Unknown GPU")
    said = only(found).explanation
    assert "2.9 MB by count; the allocator differs by 100 kB." in said
    assert (
        "300 kB of 2.9 MB stay in fp32: the inputs of the norms, their statistics and the results of the softmax."
        in said
    )


# Gradients


TRAINED = SHAPE | {"sequence_length": 16, "microbatch": 4}  # 4 microbatches of 64 tokens


def same(case: str, precision: str = "fp32", **extra: Any) -> dict[str, Any]:
    return {"case": case, "role": "equivalence", "precision": precision, "microbatches": 4, "divided": True,
            "counted": "all", "attention": "math", **TRAINED, "series": "equivalence"} | extra  # fmt: skip


UNDIVIDED = same("undivided", divided=False)
UNEVEN = same("uneven", counted="uneven")
WEIGHT = same("token-weight", counted="uneven", tokens=8, total_tokens=120)


@pytest.mark.parametrize(
    ("point", "metric", "expected"),
    [
        # sums of 256 terms in a tree: eight levels, and the terms themselves
        (same("equal-fp32"), "error", math.sqrt(2) * R * 2**-23 * 3),
        (same("equal-bf16", "bf16"), "error", R * 2**-7 * math.sqrt(1.25)),
        (same("equal-fp16", "fp16"), "error", R * 2**-10 * math.sqrt(1.25)),
        (UNDIVIDED, "error", 3),
        (same("undivided", microbatches=7, divided=False), "error", 6),
        (WEIGHT, "token_weight", 120 / (4 * 8)),
    ],
)
def test_gradients_by_hand(point: dict[str, Any], metric: str, expected: float) -> None:
    row = only(record(sample(point, [2 * expected], metric, "")))
    assert row.predicted == pytest.approx(expected, rel=1e-9)
    assert (row.metric, row.unit.symbol) == (metric, "")


@pytest.mark.parametrize(("dtype", "precision"), [("bfloat16", "bf16"), ("float16", "fp16")])
def test_rounded_gradients_differ_as_predicted(dtype: str, precision: str) -> None:
    """By another library: the gradient of a batch rounded once, and those of four microbatches that nearly agree."""
    ml_dtypes = pytest.importorskip("ml_dtypes")
    narrow = np.dtype(getattr(ml_dtypes, dtype, dtype))
    rng = np.random.default_rng(0)
    parts = rng.standard_normal(100_000) + 0.1 * rng.standard_normal((4, 100_000))
    whole = parts.mean(0)
    found = parts.astype(narrow).astype(float).mean(0) - whole.astype(narrow).astype(float)
    seen = np.linalg.norm(found) / np.linalg.norm(whole)
    assert amp.expected_difference(same("equal", precision)) == pytest.approx(seen, rel=0.03)


def test_sums_in_a_tree_differ_as_predicted() -> None:
    """numpy adds in a tree of blocks; the same terms in another order give another rounding."""
    rng = np.random.default_rng(0)
    terms = rng.standard_normal((4, 64, 4000))

    def tree(x: np.ndarray) -> np.ndarray:
        x = x.astype(np.float32)
        while len(x) > 1:
            x = x[::2] + x[1::2]
        return x[0].astype(float)

    one, other = tree(terms.reshape(256, -1)), tree(rng.permutation(terms.reshape(256, -1)))
    seen = np.linalg.norm(one - other) / np.linalg.norm(one)
    assert amp.expected_difference(same("equal-fp32")) == pytest.approx(seen, rel=0.1)


def test_explanations_of_gradients() -> None:
    def said(point: dict[str, Any], factor: float, *more: Sample) -> str:
        predicted = amp.expected_difference(point)
        metric = "token_weight" if "tokens" in point else "error"
        return only(record(sample(point, [factor * predicted], metric, ""), *more)).explanation

    equal, narrow = same("equal-fp32"), same("equal-bf16", "bf16")
    assert said(equal, 1.005) == "As predicted, within 1%. It is rounding: no order of summation is the right one."
    assert "one running sum of 256 terms 4.06 × 10⁻⁷. Consistent with sums in blocks." in said(equal, 2)
    assert "the same blocks and so share a part of their rounding" in said(equal, 0.3)
    assert "Even one running sum of 256 terms in fp32" in said(equal, 100)
    own = sample(narrow, [0.003], "rounding", "")
    assert said(narrow, 1.005, own) == (
        "As predicted, within 1%. bf16 moves the batch's own gradient by 0.003 from fp32's, so accumulation adds less "
        "than bf16 itself."
    )
    assert "accumulation adds more than bf16" in said(narrow, 2, own)
    assert said(narrow, 1.3).startswith("Microbatches whose gradients have nothing in common would give 0.00235.")
    assert said(narrow, 5) == amp.NOTHING
    assert said(UNDIVIDED, 1) == "As predicted, within 1%. The gradient of 4 sums is 4 times that of their mean."
    assert said(UNDIVIDED, 2) == f"{amp.NOTHING} The gradient of 4 sums is 4 times that of their mean."
    assert said(WEIGHT, 1) == "As predicted, within 1%."
    assert said(WEIGHT, 2) == amp.NOTHING


def test_a_mean_of_means_is_not_predicted_but_shown() -> None:
    """128, 64, 32 and 16 tokens count: 240/(4·128), and twice as much each time."""
    weights = [0.46875, 0.9375, 1.875, 3.75]
    found = record(
        sample(UNEVEN, [0.25], "error", ""), sample(UNEVEN, [128.0, 64.0, 32.0, 16.0], "tokens", "tokens"),
        sample(UNEVEN, weights, "token_weight", ""),
    )  # fmt: skip
    assert amp.points(found) == []
    assert amp.cases([UNEVEN, WEIGHT, UNDIVIDED]).keys() == {"token-weight", "undivided"}
    lines = amp.sweep(found, "token weights").splitlines()
    assert [line.split() for line in lines[2:]] == [
        ["1", "128", "0.469", "0.469", "0%"], ["2", "64", "0.938", "0.938", "0%"],
        ["3", "32", "1.88", "1.88", "0%"], ["4", "16", "3.75", "3.75", "0%"],
    ]  # fmt: skip
    said = amp.evidence(found, "uneven")
    assert "differs from the batch's by 0.25 of its norm" in said
    assert "3.75" in said
    assert "not predicted" in said
    with pytest.raises(EfflabError, match="different length"):
        amp.sweep(record(), "token weights")
    short = record(sample(UNEVEN, [128.0], "tokens", "tokens"), sample(UNEVEN, weights, "token_weight", ""))
    with pytest.raises(EfflabError, match="1 numbers of tokens and 4 weights of 4 microbatches"):
        amp.sweep(short, "token weights")


# Training runs and the loss scale


SCALER = {"initial_scale": 2.0**14, "growth_interval": 2, "growth_factor": 2.0, "backoff_factor": 0.5}
OVERFLOWS = [1, 1, 0, 0, 0, 1]
SCALES = [2.0**e for e in (14, 13, 12, 12, 13, 13, 12)]


def run(case: str, precision: str = "fp32", **extra: Any) -> dict[str, Any]:
    return {
        "case": case, "role": "curve", "precision": precision, "weights": "fp32", "scaler": False, **TRAINED,
        "steps": 6, "loss_weight": 2.0**-12, "epsilon": 1e-8, "fused": False, "series": "curve", **extra,
    }  # fmt: skip


REFERENCE, BF16 = run("curve-fp32"), run("curve-bf16", "bf16")
SCALED = run("curve-fp16-scaled", "fp16", scaler=True, **SCALER)
UNSCALED = run("curve-fp16-unscaled", "fp16")
HALF = run("curve-fp16-weights", "fp16", weights="fp16", loss_weight=1.0)
LAST = {"case": "scale-fp16", "role": "scale", "precision": "fp16", "scaler": True, "steps": 6, **SCALER}


def runs(scales: list[float] = SCALES, last: float | None = None) -> tuple[list[Sample], Sample]:
    """Five runs of six steps, and the last scale of the one with a scaler."""

    def of(point: dict[str, Any], losses: list[float], **more: list[float]) -> list[Sample]:
        return [sample(point, losses, "loss", "nats"), *[sample(point, v, m, "") for m, v in more.items()]]

    found = [
        *of(REFERENCE, [4.0, 3.8, 3.6, 3.4, 3.2, 3.0], zero_gradients=[0.0, 0.0, 0.0]),
        *of(BF16, [4.0, 3.8, 3.6, 3.4, 3.2, 2.99], zero_gradients=[0.0, 0.0, 0.0]),
        *of(SCALED, [4.0, 4.0, 4.0, 3.6, 3.3, 3.04], zero_gradients=[0.0, 0.001, 0.0], cast_zero_gradients=[0.0] * 3,
            overflow=[float(o) for o in OVERFLOWS], scale=scales, largest_gradient=[8.0, 10.0, 5.0]),
        *of(UNSCALED, [4.0, 3.9, 3.85, 3.8, 3.8, 3.7], zero_gradients=[0.2, 0.5, 0.9],
            cast_zero_gradients=[0.1, 0.3, 0.6]),
        *of(HALF, [4.0], diverged_at=[1.0], zero_gradients=[0.001], cast_zero_gradients=[0.001]),
    ]  # fmt: skip
    return found, sample(LAST, [scales[-1] if last is None else last], "scale", "")


def trained(**changes: Any) -> Record:
    curves, scale = runs(**changes)
    return record(*curves, scale)


def test_what_became_of_each_run() -> None:
    found = trained()
    said = {c.case: amp.verdict(found, c) for c in amp.curves(found)}
    assert said == {
        "curve-fp32": "the reference", "curve-bf16": "follows fp32", "curve-fp16-scaled": "follows fp32",
        "curve-fp16-unscaled": "falls behind fp32", "curve-fp16-weights": "not a number at step 2",
    }  # fmt: skip
    text = amp.sweep(found, "curves")
    for line in (
        "curve-bf16: Over its last steps its loss is 0.01 nats below fp32's. No element of its gradient was lost to "
        "zero. bf16 has fp32's exponents.",
        "curve-fp16-scaled: Over its last steps its loss is 0.04 nats above fp32's. At most 0.1% of its gradient was "
        "lost to zero. 3 steps of 6 overflowed and were skipped, the first 2 among them.",
        "curve-fp16-unscaled: Over its last steps its loss is 0.7 nats above fp32's. At its last checked step 90% of "
        "the gradient are zero that are not zero in fp32, at its first 20%. Rounding fp32's gradients to fp16 would "
        "lose 60%; the rest was lost on the way. Consistent with gradients of activations that are smaller still.",
        "curve-fp16-weights: The loss of step 2 is not a number. Weights and AdamW are in fp16, whose smallest number "
        "is 5.96 × 10⁻⁸: epsilon, 1 × 10⁻⁸, rounds to zero, and so do the squares of small gradients. Consistent with "
        "an update that divides by zero.",
    ):
        assert line in text.splitlines()
    assert "fp16-unscaled falls behind fp32" in amp.summary(found)


def test_runs_without_a_reference_are_not_judged() -> None:
    curves, scale = runs()
    alone = record(*[s for s in curves if s.point["case"] != "curve-fp32"], scale)
    said = {c.case: amp.verdict(alone, c) for c in amp.curves(alone)}
    assert said["curve-bf16"] == ""
    assert said["curve-fp16-weights"] == "not a number at step 2"
    assert "fp32's." not in amp.sweep(alone, "curves").splitlines()[2]
    assert amp.curves(record()) == []


def test_an_epsilon_that_fp16_holds_is_not_blamed() -> None:
    point = HALF | {"epsilon": 1e-4}
    found = record(sample(point, [4.0], "loss", "nats"), sample(point, [1.0], "diverged_at", ""))
    assert amp.sweep(found, "curves").endswith("curve-fp16-weights: The loss of step 2 is not a number.")
    wide = UNSCALED | {"case": "x"}
    found = record(sample(wide, [4.0], "loss", "nats"), sample(wide, [1.0], "diverged_at", ""))
    assert "epsilon" not in amp.sweep(found, "curves")


def test_one_first_overflow_is_written_as_one() -> None:
    curves, scale = runs()
    first = [1.0, 0.0, 0.0, 0.0, 0.0, 0.0]
    scales = [2.0**e for e in (14, 13, 13, 14, 14, 15, 15)]
    changed = []
    for s in curves:
        if s.point["case"] == "curve-fp16-scaled" and s.metric in ("overflow", "scale"):
            s = sample(s.point, first if s.metric == "overflow" else scales, s.metric, "")
        changed.append(s)
    text = amp.sweep(record(*changed, scale), "curves")
    assert "1 step of 6 overflowed and were skipped, the first among them." in text


def test_the_last_scale_follows_from_the_overflows() -> None:
    row = only(trained())
    assert (row.case, row.metric, row.predicted, row.measured, row.error) == ("scale-fp16", "scale", 4096, 4096, 0)
    assert row.explanation == (
        "Which steps overflowed is the run's own; from these halving and doubling is replayed, from 2^14 on, and gives "
        "the scale of every step. 3 steps of 6 overflowed and took it down; once 2 clean steps in a row took it up."
    )
    said = amp.sweep(trained(), "scale")
    assert [line.split()[:2] for line in said.splitlines()[2:]] == [
        ["2^14", "to"], ["1", "2^13"], ["2", "2^12"], ["4", "2^13"], ["6", "2^12"],
    ]  # fmt: skip
    other = only(trained(scales=[*SCALES[:4], 2.0**12, 2.0**12, 2.0**11]))
    assert other.predicted == 4096
    assert other.explanation.endswith("The two part after step 4: 2^12 was measured, 2^13 follows from the rule.")
    wrong = only(trained(last=2.0**9))
    assert wrong.explanation.endswith("The run's own scales end at 2^12.")


def test_torchs_own_scaler_reconciles() -> None:
    """A history of overflows through torch.amp.GradScaler, whose scales the record then holds."""
    rng = np.random.default_rng(1)
    overflows = [bool(o) for o in rng.random(60) < 0.15]
    weight = torch.nn.Parameter(torch.ones(()))
    optimizer = torch.optim.SGD([weight], lr=0.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**14, growth_interval=5)
    scales = [2.0**14]
    for overflow in overflows:
        scaler.scale(weight * (math.inf if overflow else 1.0)).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        scales.append(scaler.get_scale())
    point = SCALED | {"growth_interval": 5, "steps": 60}
    found = record(
        sample(point, [4.0] * 60, "loss", "nats"), sample(point, [float(o) for o in overflows], "overflow", ""),
        sample(point, scales, "scale", ""), sample(LAST | {"growth_interval": 5}, [scales[-1]], "scale", ""),
    )  # fmt: skip
    assert only(found).explanation.startswith("Which steps overflowed is the run's own; from these")


def test_the_scale_is_shown_beside_the_largest_gradient() -> None:
    """65,504/8 is 2^12.999: from 2^14 two steps overflow, and two did. At step 4 the limit is 2^12.7."""
    said = amp.evidence(trained(), "scale-fp16")
    assert (
        "a scale of up to 2^13.0 overflows nothing: 2 steps skipped at the start were to be expected from 2^14" in said
    )
    # step 1: 2^14 is above and overflowed; step 4: 2^12 is below and did not; step 6: 2^13 is below 2^13.7 and did
    assert "At 2 of 3 checked steps" in said
    assert "After the start 25.0% of the steps were skipped" in said
    assert "33.3% would be" in said
    assert amp.largest_scales(next(c for c in amp.curves(trained()) if c.overflows)) == [65504 / g for g in (8, 10, 5)]


def test_evidence_of_a_run() -> None:
    said = amp.evidence(trained(), "curve-fp16-unscaled")
    assert said.startswith("curve-fp16-unscaled: falls behind fp32")
    assert "20.0% at 1, 50.0% at 4, 90.0% at 6" in said
    assert "the loss weighted by 2^-12" in said
    assert "in fp16 a number below 2.98 × 10⁻⁸ is rounded to zero" in said
    assert "zero gradients by step" in amp.evidence(trained(), "curve-fp32")


def test_zero_gradients_by_step() -> None:
    lines = amp.sweep(trained(), "zero gradients").splitlines()
    assert lines[0].split() == ["run,", "at", "step", "1", "4", "6"]
    assert any(line.split() == ["curve-fp16-unscaled", "20.0%", "50.0%", "90.0%"] for line in lines)
    assert any(line.startswith("curve-fp16-weights ") and line.split()[1:] == ["0.1%"] for line in lines)
    with pytest.raises(EfflabError, match="share of zero gradients"):
        amp.sweep(record(), "zero gradients")


# The protocol


def full() -> Record:
    curves, scale = runs()
    memory = [sample(kept(f"memory-{p}{'-recomputed' * (r == 'full')}", p, recomputation=r), [v], "memory", "B")
              for p, r, v in (("fp32", "none", 2.75e6), ("bf16", "none", 1.55e6), ("fp32", "full", 96e3),
                              ("bf16", "full", 96e3))]  # fmt: skip
    steps = [sample(memory[0].point, [3.5e6], "step", "B"), sample(memory[2].point, [1.0e6], "step", "B")]
    return record(
        sample(STEP, 0.048), sample(STEP_FP16, 0.8), sample(AGAIN, 0.130), sample(AGAIN_BF16, 0.060),
        sample(SUMMED, 0.4), *memory, *steps, sample(same("equal-fp32"), [1.1e-7], "error", ""),
        sample(same("equal-bf16", "bf16"), [0.0019], "error", ""), sample(UNDIVIDED, [3.0], "error", ""),
        sample(UNEVEN, [0.25], "error", ""), sample(UNEVEN, [128.0, 64.0, 32.0, 16.0], "tokens", "tokens"),
        sample(UNEVEN, [0.46875, 0.9375, 1.875, 3.75], "token_weight", ""), *curves, scale,
    )  # fmt: skip


def test_the_text_names_every_case_and_is_the_same_every_time() -> None:
    found = full()
    said = amp.text(found)
    assert said == amp.text(Record.model_validate(found.model_dump(by_alias=True)))
    for row in amp.points(found):
        assert row.case in said
    for name in ("curve-fp32", "curve-fp16-weights", "2^14", "75.0%"):
        assert name in said
    summary = amp.summary(found)
    assert summary in said
    assert "Speed of a step against fp32: bf16 2.08× (predicted 2.22×), fp16 0.125× (predicted 0.128×)." in summary
    assert "5 times: median error" in summary
    assert "4 sizes in memory: median" in summary
    assert "3 gradients of microbatches: median" in summary
    assert "scale after the run: 2^12 by the rule, from the steps that overflowed; 2^12 measured." in summary
    assert len(summary.splitlines()) == 6, "a line for each thing"
    head, rows, numeric = amp.table(found)
    assert all(len(r) == len(head) for r in rows)
    assert max(numeric) < len(head) - 1
    assert [r.case for r in amp.points(found)][:2] == ["step-bf16", "step-fp16"]
    assert len(amp.points(found, ("memory",))) == 4


def test_summaries_of_little() -> None:
    assert amp.summary(record(samples=[])) == "No case of this record was measured."
    found = record(failed(STEP), sample(AGAIN, 0.130), spec={"scale": "smoke"})
    said = amp.summary(found)
    assert said.startswith("Smoke scale")
    assert "Not in it: step-bf16 ran out of memory: no room." in said
    assert "Worst: recomputed-fp32, predicted 124 ms, measured 130 ms (−4.6%)." in said
    assert amp.text(record(samples=[]))


def test_sweeps() -> None:
    found = full()
    said = amp.sweep(found, "step")
    assert "step-bf16" in said
    assert "calibrates" in amp.sweep(found, "calibration")
    for name in amp.TABLES:
        assert amp.sweep(found, name)
    trade = amp.sweep(found, "recomputation").splitlines()
    assert trade[2].split() == ["fp32", "100", "ms", "130", "ms", "+30%", "2.75", "MB", "96", "kB", "1/28.6"]
    assert trade[3].split() == ["bf16", "48", "ms", "60", "ms", "+25%", "1.55", "MB", "96", "kB", "1/16.1"]
    with pytest.raises(EfflabError, match="token weights"):
        amp.sweep(found, "nothing")
    with pytest.raises(EfflabError, match="with and without recomputation"):
        amp.sweep(record(), "recomputation")
    with pytest.raises(EfflabError, match="no run has a loss scale"):
        amp.sweep(record(), "scale")


def test_comparisons() -> None:
    found = full()
    said = amp.compare(found, "step-fp32", "step-bf16")
    assert said.splitlines() == [
        "step-fp32: measured 100 ms", "step-bf16: predicted 45 ms, measured 48 ms",
        "faster by: predicted 2.22×, measured 2.08×",
    ]  # fmt: skip
    assert "smaller by" in amp.compare(found, "memory-fp32", "memory-bf16")
    assert "closer by" in amp.compare(found, "equal-bf16", "equal-fp32")
    with pytest.raises(EfflabError, match="Did you mean"):
        amp.compare(found, "step-fp3", "step-bf16")
    with pytest.raises(EfflabError, match="one kind"):
        amp.compare(found, "step-fp32", "memory-bf16")
    gone = failed(timed("step-tf32", precision="tf32"), message="no tf32 here", status="failed")
    assert amp.compare(record(gone), "step-fp32", "step-tf32").endswith("no tf32 here. So there is nothing to compare.")


def test_evidence_shows_the_parts() -> None:
    found = full()
    said = amp.evidence(found, "step-bf16")
    assert "75 ms" in said
    assert "25 ms" in said
    assert "Products that took no time would give 5×; the step reaches 2.08×." in said
    assert "100 ms of the step, and 24 ms of the layers, which are 80% of a forward pass" in (
        amp.evidence(found, "recomputed-fp32")
    )
    assert "45 ms of the step as predicted, and 9 ms" in amp.evidence(found, "recomputed-bf16")
    assert "4 microbatches of 90 ms and one update of 6 ms" in amp.evidence(found, "accumulated-fp32-4")
    assert "16-bit copies of their weights" in amp.evidence(found, "memory-bf16")
    assert "16-bit copies" not in amp.evidence(found, "memory-fp32")
    assert "It is rounding" in amp.evidence(found, "equal-fp32")
    with pytest.raises(EfflabError, match="case"):
        amp.evidence(found, "nothing")


def test_cases_are_what_can_be_predicted_and_describe_says_what_they_are() -> None:
    found = full()
    cases = amp.cases([s.point for s in found.samples])
    assert set(cases) == {r.case for r in amp.points(found)}
    said = amp.describe(cases | {"token-weight": WEIGHT})
    for line in (
        "step-fp16           time of a training step under fp16 autocast, with a scaler",
        "time of a step of 4 microbatches in fp32",
        "bytes that the layers keep for the backward pass under bf16 autocast, every layer recomputed",
        "relative difference of the gradient of 4 microbatches in fp32, not divided by their number",
        "loss scale after 6 steps, from 2^14",
        "weight of a token of the microbatch with 8 of 120 tokens, in the mean of 4 means",
    ):
        assert " ".join(line.split()) in " ".join(said.split())
    assert "memory" not in amp.describe(cases, ["step-bf16"])
    assert amp.describe({})


# Predictions of the calculators


def predicted(calculator: str, outputs: dict[str, tuple[float, str]], **inputs: Any) -> Prediction:
    return Prediction.new("amp", outputs, inputs=inputs, source="calculator", calculator=calculator)


def test_a_speedup_is_answered_where_the_shares_are_the_runs_own() -> None:
    found = full()
    outputs = {"gain": (2.2, ""), "time_after": (0.045, "s"), "limit": (5.0, "")}
    inputs = {"matmul_share": 0.76, "other_speedup": 1.25, "products": "custom", "own_matmul_speedup": 3.0}
    prediction = predicted("amp-speedup", outputs, **inputs, time=0.1)
    assert set(amp.asked(prediction)) == {"gain", "time_after"}
    rows = amp.answers(found, prediction)
    assert rows["gain"].case == "step-bf16"
    assert rows["gain"].measured == pytest.approx(100 / 48)
    assert rows["gain"].unit.symbol == ""
    assert rows["time_after"].measured == 0.048
    assert set(amp.answers(found, predicted("amp-speedup", outputs, **inputs, time=0.2))) == {"gain"}
    for other in ({"matmul_share": 0.5}, {"own_matmul_speedup": 2.0}, {"other_speedup": 1.0}, {"matmul_share": "a"}):
        assert amp.answers(found, predicted("amp-speedup", outputs, **inputs | other, time=0.1)) == {}

    sheet = {
        "matmul_share": 0.75,
        "products": "datasheet",
        "accelerator": "H200 SXM",
        "before": "fp32",
        "after": "bf16",
    }
    prediction = predicted("amp-speedup", outputs, **sheet, time=0.1)
    assert amp.answers(found, prediction) == {}
    gpu = record(sample(STEP, 0.048), kind="cuda", device="NVIDIA H200", memory=150_000_000_000 * 94 // 100)
    assert amp.answers(gpu, prediction)["gain"].measured == pytest.approx(100 / 48)
    assert amp.answers(gpu, predicted("amp-speedup", outputs, **sheet | {"after": "fp16"})) == {}
    assert amp.answers(record(samples=[]), prediction) == {}


def test_a_loss_scale_is_answered_by_a_run_with_its_settings() -> None:
    outputs = {"overflows": (2.0, ""), "scale_now": (2.0**12, ""), "skipped": (1 / 3, ""), "settled": (4096.0, "")}
    inputs = {"format": "fp16", "largest_gradient": 8, "scale": 2.0**14, "growth_interval": 2, "step": 4}
    rows = amp.answers(full(), predicted("loss-scale", outputs, **inputs))
    assert {n: r.measured for n, r in rows.items()} == {"overflows": 2, "scale_now": 2.0**13, "skipped": 0.25}
    for other in ({"format": "bf16"}, {"largest_gradient": 100}, {"scale": 2.0**16}, {"growth_interval": 2000}):
        assert amp.answers(full(), predicted("loss-scale", outputs, **inputs | other)) == {}
    assert "scale_now" not in amp.answers(full(), predicted("loss-scale", outputs, **inputs | {"step": 100}))
    assert amp.answers(record(), predicted("loss-scale", outputs, **inputs)) == {}


def test_memory_is_answered_for_the_labs_own_model() -> None:
    outputs = {"total": (3.4e6, "B"), "extra": (0.3, ""), "steps": (4.0, "")}
    own = {f"own_{n}": SHAPE[n] for n in ("layers", "hidden_size", "intermediate_size", "query_heads", "vocabulary")}
    inputs = {"model": "custom", "own_parameters": PARAMETERS, **own, "sequence_length": S, "microbatch": B,
              "attention": "standard", "precision": "fp32", "recomputation": "none"}  # fmt: skip
    rows = amp.answers(full(), predicted("amp-memory", outputs, **inputs))
    assert {n: r.measured for n, r in rows.items()} == {"total": 3.5e6}
    rows = amp.answers(full(), predicted("amp-memory", outputs, **inputs | {"recomputation": "full"}))
    assert rows["extra"].measured == pytest.approx(0.3)
    assert rows["total"].measured == 1.0e6
    for other in ({"attention": "flash"}, {"microbatch": 6}, {"own_parameters": 1e9}, {"precision": "autocast"}):
        assert amp.answers(full(), predicted("amp-memory", outputs, **inputs | other)) == {}
    catalogued = predicted("amp-memory", outputs, **inputs | {"model": "GPT-2 1.5B"})
    assert amp.asked(catalogued) == {}
    assert amp.answers(full(), catalogued) == {}


def test_what_answers_a_calculator_is_held_against_the_learners_number() -> None:
    own = {f"own_{n}": SHAPE[n] for n in ("layers", "hidden_size", "intermediate_size", "query_heads", "vocabulary")}
    for calculator, outputs, inputs in (
        ("amp-speedup", {"gain": (2.5, ""), "time_after": (0.04, "s")},
         {"matmul_share": 0.76, "other_speedup": 1.25, "products": "custom", "own_matmul_speedup": 3.0, "time": 0.1}),
        ("loss-scale", {"overflows": (3.0, ""), "scale_now": (2.0**11, ""), "skipped": (0.5, "")},
         {"format": "fp16", "largest_gradient": 8, "scale": 2.0**14, "growth_interval": 2, "step": 4}),
        ("amp-memory", {"total": (3.1e6, "B"), "extra": (0.37, "")},
         {"model": "custom", "own_parameters": PARAMETERS, **own, "sequence_length": S, "microbatch": B,
          "attention": "standard", "precision": "fp32", "recomputation": "full"}),
    ):  # fmt: skip
        rows = amp.answers(full(), predicted(calculator, outputs, **inputs))
        assert set(rows) == set(outputs)
        for name, (value, _) in outputs.items():
            row = rows[name]
            assert row.predicted == value and row.ratio == pytest.approx(row.measured / value)
            assert row.error == pytest.approx(value / row.measured - 1)


def test_what_the_calculators_offer_is_what_is_asked() -> None:
    """The names of outputs and inputs are those of the calculators themselves."""
    calculators = pytest.importorskip("efflab.calculators.amp")
    for calculator in (calculators.speedup, calculators.loss_scale, calculators.batch):
        prediction = calculator.evaluate().prediction()
        wanted = amp.ANSWERED[calculator.name]
        assert set(wanted) <= set(prediction.outputs), calculator.name
        assert {n: prediction.outputs[n].unit for n in wanted} == wanted
        assert amp.answers(full(), prediction) == {}, "the defaults are not this run's"
    own = calculators.speedup.evaluate(
        products="custom", matmul_share=0.75, other_speedup=1.25, own_matmul_speedup=3, time=0.1
    )
    rows = amp.answers(full(), own.prediction())
    assert set(rows) == {"gain", "time_after"}
    (row,) = (r for r in amp.points(full(), ("step",)) if r.case == rows["gain"].case)
    assert own["time_after"] == pytest.approx(row.predicted), "the calculator and the lab use the same formulas"
    assert own["gain"] == pytest.approx(0.1 / row.predicted)


def test_other_predictions_are_not_asked() -> None:
    assert amp.asked(predicted("training-memory", {"total": (1.0, "B")})) == {}
    assert amp.answers(full(), predicted("training-memory", {"total": (1.0, "B")})) == {}
    assert amp.asked(Prediction.new("amp", {f"{CALIBRATED}matmul-share.share": (0.5, "")})) == {}


# Damage


READERS = (
    amp.points, amp.table, amp.summary, amp.text, amp.missing, amp.calibration_text, amp.calibration, amp.matmul_share,
    amp.speedups, amp.curves,
)  # fmt: skip


def _damaged(damaged: Sample, said: str) -> None:
    found = Record.model_validate(record(damaged).model_dump(by_alias=True))
    for read in READERS:
        with pytest.raises(EfflabError, match="record r: samples") as caught:
            read(found)
        assert said in str(caught.value)


@pytest.mark.parametrize(
    ("base", "change", "said"),
    [
        (STEP, {"case": None}, "point.case"), (STEP, {"precision": "fp8"}, "point.precision"),
        (STEP, {"layers": 0}, "point.layers must be a number"), (STEP, {"head_dim": "8"}, "point.head_dim"),
        (STEP, {"vocabulary": True}, "point.vocabulary"), (STEP, {"hidden_size": None}, "it is missing"),
        (STEP, {"sequence_length": 10**400}, "point.sequence_length"),
        (AGAIN, {"recomputation": "some"}, "one of none, full"), (SUMMED, {"microbatches": -4}, "point.microbatches"),
    ],
)  # fmt: skip
def test_a_damaged_time_is_named_by_every_reader(base: dict[str, Any], change: dict[str, Any], said: str) -> None:
    _damaged(sample({k: v for k, v in (base | change).items() if v is not None}, 0.1), said)


@pytest.mark.parametrize(
    ("base", "metric", "unit", "change", "said"),
    [
        (kept("m"), "memory", "B", {"method": "guessed"}, "one of counted, allocator"),
        (kept("m"), "memory", "B", {"recomputation": 1}, "point.recomputation"),
        (kept("m"), "memory", "B", {"layers": None}, "point.layers"),
        (UNDIVIDED, "error", "", {"divided": "yes"}, "true or false"),
        (UNDIVIDED, "error", "", {"counted": "some"}, "one of all, uneven"),
        (UNDIVIDED, "error", "", {"microbatches": None}, "point.microbatches"),
        (WEIGHT, "token_weight", "", {"total_tokens": 0}, "point.total_tokens"),
        (WEIGHT, "token_weight", "", {"tokens": "few"}, "point.tokens"),
        (UNSCALED, "loss", "nats", {"scaler": 1}, "true or false"),
        (UNSCALED, "loss", "nats", {"weights": "int8"}, "one of fp32, fp16"),
        (UNSCALED, "loss", "nats", {"loss_weight": 0}, "point.loss_weight"),
        (SCALED, "loss", "nats", {"growth_interval": None}, "point.growth_interval"),
        (SCALED, "loss", "nats", {"backoff_factor": 2.0}, "1e-06 to 1"),
        (LAST, "scale", "", {"initial_scale": "big"}, "point.initial_scale"),
        (LAST, "scale", "", {"growth_interval": 0.5}, "1 to 1e+09"),
    ],
)  # fmt: skip
def test_a_damaged_point_is_named_by_every_reader(
    base: dict[str, Any], metric: str, unit: str, change: dict[str, Any], said: str
) -> None:
    _damaged(sample({k: v for k, v in (base | change).items() if v is not None}, [1.0], metric, unit), said)


@pytest.mark.parametrize(
    ("damaged", "said"),
    [
        (sample(STEP, [5.0], "time", "B"), "a time in 'B'"),
        (sample(kept("m"), [1e6], "memory", "s"), "a memory in 's'"),
        (sample(UNDIVIDED, [0.0], "error", ""), "error cannot be 0.0"),
        (sample(UNSCALED, [-1.0], "loss", "nats"), "loss cannot be -1.0"),
        (sample(UNSCALED, [1.5], "zero_gradients", ""), "zero_gradients cannot be 1.5"),
        (sample(SCALED, [0.5], "overflow", ""), "an overflow must be 0 or 1"),
        (sample(SCALED, [0.0], "scale", ""), "scale cannot be 0.0"),
        (sample(SCALED, [-8.0], "largest_gradient", ""), "largest_gradient cannot be -8.0"),
        (sample(UNEVEN, [16.0], "tokens", "B"), "a tokens in 'B'"),
        (sample(STEP, [0.0], "step_time", "s"), "step_time cannot be 0.0"),
    ],
)  # fmt: skip
def test_units_and_values_are_checked(damaged: Sample, said: str) -> None:
    _damaged(damaged, said)


def test_records_that_contradict_themselves_are_refused() -> None:
    with pytest.raises(EfflabError, match="'roofline'; 'amp' is needed"):
        amp.points(record(topic="roofline"))
    samples = [s for s in CALIBRATION if (s.point["case"], s.metric) != ("share-fp32", "matmul_time")]
    with pytest.raises(EfflabError, match=r"matmul_time of 0\.1 s in a step_time of 0\.09 s"):
        amp.calibration(record(samples=[*samples, calibrating("share-fp32", 0.1, "matmul_time")]))
    with pytest.raises(EfflabError, match="6 overflows and 3 scales"):
        amp.points(trained(scales=SCALES[:3]))
    with pytest.raises(EfflabError, match="which steps overflowed"):
        amp.points(record(runs()[1]))
    for listed in (None, [0], [0, "3", 5], [0, -1, 5]):
        with pytest.raises(EfflabError, match=r"spec\.checked_steps must list 3"):
            curves, scale = runs()
            amp.evidence(record(*curves, scale, spec={"checked_steps": listed}), "curve-fp32")
    with pytest.raises(EfflabError, match="record r: step-bf16: amp_step_time"):
        absurd = [*without("matmul-bf16"), calibrating("matmul-bf16", 1e-30)]
        amp.points(record(samples=[*absurd, sample(STEP, 0.05)]))


# Pictures


@pytest.fixture
def plots() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    return pytest.importorskip("efflab.plots.amp")


def test_pictures_are_drawn_of_what_there_is(plots: Any) -> None:
    import matplotlib.pyplot as plt

    from efflab.plots import draw

    found = full()
    for kind in amp.PICTURES:
        plt.close(draw(found, kind))
    for name in ("amp", "curves", "scale", "memory"):
        with pytest.raises(EfflabError, match="to draw"):
            getattr(plots, name)(record(samples=[]))


def test_the_picture_of_times_shows_both(plots: Any) -> None:
    axes = plots.amp(full()).axes[0]
    assert [t.get_text() for t in axes.get_yticklabels()] == [
        "step-bf16", "step-fp16", "recomputed-fp32", "recomputed-bf16", "accumulated-fp32-4",
    ]  # fmt: skip
    texts = [t.get_text() for t in axes.texts]
    assert texts[0] == "48 ms, 2.1× as fast"
    assert texts[1] == "800 ms, 8× as long"
    drawn = {round(x, 9) for line in axes.lines for x in line.get_xdata()}
    assert {0.1, 0.045, 0.048, 0.8} <= drawn


def test_the_picture_of_runs_marks_what_is_no_number(plots: Any) -> None:
    figure = plots.curves(full())
    labels = [t.get_text() for t in figure.legends[0].get_texts()]
    assert labels == ["fp32", "bf16", "fp16-scaled", "fp16-unscaled", "fp16-weights: not a number at step 2"]
    below = {tuple(line.get_ydata()) for line in figure.axes[1].lines}
    assert (20.0, 50.0, 90.0) in below


def test_the_picture_of_the_scale_marks_overflows_where_they_were(plots: Any) -> None:
    stairs, crosses, bounds = plots.scale(full()).axes[0].lines
    assert list(stairs.get_ydata()) == [14, 13, 12, 12, 13, 13, 12]
    assert (list(crosses.get_xdata()), list(crosses.get_ydata())) == ([1, 2, 6], [14, 13, 13])
    assert list(bounds.get_xdata()) == [1, 4, 6]
    assert list(bounds.get_ydata()) == pytest.approx([math.log2(65504 / g) for g in (8, 10, 5)])


def test_the_picture_of_memory_stacks_the_parts(plots: Any) -> None:
    bars = plots.memory(full()).axes[0].patches
    expected = amp.expected_bytes(kept("memory-fp32", "fp32"), "cpu")
    assert [b.get_width() for b in bars[: len(plots.PARTS)]] == [expected[p] for p in plots.PARTS]


# The real experiment


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[Record, Path]:
    out = tmp_path_factory.mktemp("amp")
    return runner.run(experiment.EXPERIMENT, scale="smoke", device="cpu", out=out, report=lambda _: None)


def test_a_run_that_was_recorded_reconciles(measured: tuple[Record, Path]) -> None:
    found, path = measured
    assert amp.text(records.load_record(path)) == amp.text(found)
    for kind in ("curves", "zero gradients", "scale", "token weights", "recomputation"):
        assert amp.sweep(found, kind)


def test_every_byte_of_a_real_step_is_accounted_for(measured: tuple[Record, Path]) -> None:
    rows = amp.points(measured[0], ("memory",))
    assert len(rows) == 5
    for row in rows:
        assert "Nothing is left over." in row.explanation or "to the byte" in row.explanation, row
    for sample_ in (s for s in measured[0].samples if s.metric == "outside"):
        expected = amp.expected_bytes(sample_.point, "cpu")["outside"]
        norm = 4 + 2 * 4 * sample_.point["sequence_length"] * sample_.point["microbatch"]  # and the loss
        assert sample_.values == [expected + norm]


def test_a_real_runs_gradients_and_scale_are_as_predicted(measured: tuple[Record, Path]) -> None:
    rows = {r.case: r for r in amp.points(measured[0])}
    assert rows["scale-fp16"].explanation.startswith("Which steps overflowed is the run's own; from these")
    assert rows["undivided"].ratio == pytest.approx(1, abs=1e-3)
    assert 0.2 < rows["equal-fp32"].ratio < 5, "rounding"
    assert rows["equal-bf16"].ratio == pytest.approx(1, rel=0.3)
    said = {c.case: amp.verdict(measured[0], c) for c in amp.curves(measured[0])}
    assert said["curve-bf16"] == "follows fp32"
    assert said["curve-fp16-weights"].startswith("not a number")


def test_a_real_steps_products_are_those_that_were_replayed(measured: tuple[Record, Path]) -> None:
    (flops,) = [s for s in measured[0].samples if s.metric == "flops" and s.point["case"] == "matmul-fp32"]
    assert flops.values == [sum(2 * count * m * n * k for count, m, n, k in amp.products(flops.point))]
