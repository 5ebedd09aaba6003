"""The calculators of the chapter on several GPUs against published layouts, searches and numbers by hand."""

from __future__ import annotations

import itertools
import math

import pytest

from efflab import calculators, catalog
from efflab.calculators import ddp
from efflab.calculators.picks import CUSTOM
from efflab.records import recorded

SCALING, LAYOUT, PIPELINE = "ddp-scaling", "parallel-layout", "pipeline-bubble"
BATCH, SAVING = "critical-batch", "checkpoint-interval"


# Scaling


def test_eight_billion_parameters_on_64_ranks_by_hand():
    """16.06 GB of BF16 gradients, 613 buckets of 25 MiB, a ring of 64 at 50 GB/s with 4 µs a step."""
    here = calculators.get(SCALING).evaluate()
    gradient = 2 * 8030261248
    assert here["gradient_bytes"] == gradient and here["buckets"] == math.ceil(gradient / (25 * 2**20)) == 613
    reduced = 2 * 63 / 64 * gradient / 50e9 + 613 * 126 * 4e-6
    assert here["communication_time"] == pytest.approx(reduced)
    exposed = reduced - 612 / 613 * 0.66
    assert here["exposed"] == pytest.approx(exposed)
    assert here["share"] == pytest.approx(1.02 / (1.02 + exposed)) == pytest.approx(here["speedup"] / 64)
    assert "larger buckets" in here.verdict


@pytest.mark.parametrize(
    ("state", "says"),
    [
        ({"ranks": 1}, "One rank alone"),
        ({"bucket_bytes": "256 MiB"}, "Hidden"),
        ({"latency": "1 ms"}, "Limited by latency"),
        ({"link": "25 Gbit/s"}, "Limited by the bandwidth"),
        ({"link": "25 Gbit/s", "overlap": 0}, "nothing hides"),
        ({"link": "NVLink 4"}, "joins 8 devices"),
    ],
)
def test_the_verdict_names_what_limits(state, says):
    assert says in calculators.get(SCALING).evaluate(**state).verdict


def test_links_are_those_of_one_direction():
    links = calculators.get(SCALING).table["link"].table
    assert links["NVLink 4"].sets["bandwidth"] == 450e9  # not the 900 of the data sheet
    for a in catalog.accelerators().values():
        if a.link:
            assert links[a.link.name].sets["bandwidth"] == a.link_bandwidth
    assert links["400 Gbit/s"].sets["bandwidth"] == 50e9
    own = calculators.get(SCALING).evaluate(link=CUSTOM, own_bandwidth="50 GB/s", own_reach=10**7)
    assert own["share"] == calculators.get(SCALING).evaluate()["share"]


def test_weak_and_strong_scaling_agree_on_one_rank_and_part_on_many():
    scaling = calculators.get(SCALING)
    for kind in ("weak", "strong"):
        assert scaling.evaluate(scaling=kind, ranks=1)["share"] == pytest.approx(1)
    weak, strong = (scaling.evaluate(scaling=kind, ranks=64, link="NVLink 5") for kind in ("weak", "strong"))
    assert strong["share"] < weak["share"] and strong["step_time"] < weak["step_time"]


def test_recorded_efficiencies_lie_over_the_curve(monkeypatch):
    sample = type("Sample", (), {"metric": "efficiency", "status": "ok", "values": [0.7, 0.8, 0.9]})
    points = [{"scaling": s, "ranks": n, "case": f"efficiency-{s}-{n}"} for s in ("weak", "strong") for n in (2, 4)]
    samples = [type("S", (sample,), {"point": p})() for p in points]
    environment = type("Environment", (), {"device": "A machine"})()
    run = type("Run", (), {"environment": environment, "scale": "cpu", "created": "2026-11-21T", "samples": samples})()
    monkeypatch.setattr(ddp, "recorded", lambda topic: [run])
    weak, strong = ddp.recorded_runs()
    assert weak.option is strong.option is None  # no state of the calculator is this machine
    assert weak.label.endswith("weak scaling") and strong.label.endswith("strong scaling")
    assert weak.points == [(2.0, 0.8, "efficiency-weak-2"), (4.0, 0.8, "efficiency-weak-4")]


def test_every_recorded_run_has_both_efficiencies():
    runs = ddp.recorded_runs()
    devices = {r.environment.device for r in recorded("ddp") if r.scale != "smoke" and r.environment.count > 1}
    assert len(runs) >= 2 * len(devices)
    assert all(n >= 2 and 0 < efficiency < 2 for r in runs for n, efficiency, _ in r.points)


# Layouts


def test_llama_3_on_16384_gpus_as_published():
    """Grattafiori et al. 2024, table 4. One number, the share of the peak, is fitted to the 43% on 8,192 GPUs."""
    here = calculators.get(LAYOUT).evaluate()
    assert here["devices"] == 16384 and here["tokens"] == pytest.approx(2**24)
    assert here["mfu_share"] == pytest.approx(0.41, rel=0.02)
    assert here["per_device"] == pytest.approx(400e12, rel=0.02)
    assert here["memory_share"] < 1 and "bubble" in here.verdict
    half = calculators.get(LAYOUT).evaluate(data_parallel=64, microbatches=32)
    assert half["devices"] == 8192 and half["tokens"] == pytest.approx(2**24)
    assert half["mfu_share"] == pytest.approx(0.43, rel=0.01)
    assert half["per_device"] == pytest.approx(430e12, rel=0.02)


def test_the_step_by_hand():
    """Llama 3 405B again: operations, all-reduces of 126 / 16 layers, bubble of 15 / (8 · 16), gradients."""
    here = calculators.get(LAYOUT).evaluate()
    parameters = 405853388800
    token = 6 * parameters + 12 * 126 * 128 * 128 * 8192
    compute = token * 2**24 / (16384 * 989.4e12 * 0.5)
    assert here["compute_time"] == pytest.approx(compute)
    tensor = 16 * 8 * 126 / 16 * 7 / 8 * 8192 * 16384 * 2 / 450e9
    assert here["tensor_time"] == pytest.approx(tensor)
    bubble = 15 / (8 * 16)
    assert here["bubble_time"] == pytest.approx(bubble * (compute + tensor))
    assert here["data_time"] == pytest.approx(2 * 127 / 128 * parameters / 128 * 2 / 50e9)
    assert here["step_time"] == pytest.approx((compute + tensor) * (1 + bubble) + here["exposed_time"])
    parts = [here[n] for n in ("compute_time", "tensor_time", "bubble_time", "exposed_time")]
    assert sum(parts) == pytest.approx(here["step_time"])
    assert here["total"] == pytest.approx(
        parameters / 128 * (2 + 4 / 128 + 12 / 128) + 16 * 34 * 8192 * 16384 / 8 * 126 / 16
    )


@pytest.mark.parametrize(
    ("state", "says"),
    [
        ({"tensor_parallel": 1, "pipeline_parallel": 1}, "weights, gradients and optimizer alone"),
        ({"schedule": "GPipe", "microbatches": 64}, "holds the activations of 64 microbatches"),
        ({"tensor_parallel": 16, "pipeline_parallel": 8, "ranks_per_node": 8}, "leaves the node"),
        ({}, "bubble of the pipeline costs most"),
        ({"own_chunks": 32}, "Tensor parallelism costs most"),
        ({"own_chunks": 32, "network_bandwidth": "2 GB/s"}, "gradients cost most"),
        (
            {"model": "GPT-3 125M", "tensor_parallel": 1, "pipeline_parallel": 1, "sequence_length": 2048,
             "microbatches": 64, "data_parallel": 8},
            "waits little",
        ),
        ({"tensor_parallel": 24}, "cannot be shared by 24"),
        ({"microbatches": 24}, "multiples of the 16"),
    ],
)  # fmt: skip
def test_the_layout_verdict_names_what_limits(state, says):
    assert says in calculators.get(LAYOUT).evaluate(**state).verdict


def test_tensor_parallelism_across_nodes_runs_at_the_speed_of_the_network():
    layout = calculators.get(LAYOUT)
    inside = layout.evaluate(tensor_parallel=16, pipeline_parallel=8, ranks_per_node=16)
    across = layout.evaluate(tensor_parallel=16, pipeline_parallel=8, ranks_per_node=8)
    assert across["tensor_time"] / inside["tensor_time"] == pytest.approx(450 / 50)
    assert across["mfu_share"] < 0.6 * inside["mfu_share"]


def test_recomputation_adds_a_third_of_the_work_and_half_of_the_messages():
    layout = calculators.get(LAYOUT)
    plain, full = layout.evaluate(), layout.evaluate(recomputation="full")
    assert full["compute_time"] == pytest.approx(4 / 3 * plain["compute_time"])
    assert full["tensor_time"] == pytest.approx(1.5 * plain["tensor_time"])
    assert full["activations"] == pytest.approx(plain["activations"] * 2 / 34)
    assert full["flops_of_device"] == plain["flops_of_device"]  # the model's own


def test_each_stage_of_zero_holds_less():
    held = [calculators.get(LAYOUT).evaluate(zero=z)["kept_state"] for z in "0123"]
    assert held == sorted(held, reverse=True) and held[0] > 10 * held[3]


# Pipelines


def test_the_tutorials_case():
    """p = 8, m = 32: 18% idle, printed in a tutorial; 7 / 39."""
    here = calculators.get(PIPELINE).evaluate()
    assert here["idle_share"] == pytest.approx(7 / 39) and here["in_flight"] == 8
    assert calculators.get(PIPELINE).evaluate(schedule="GPipe")["in_flight"] == 32
    rows = here.rows()
    assert rows["GPipe"]["idle_share"] == rows["1F1B"]["idle_share"]
    assert rows["interleaved"]["idle_share"] < 0.06
    assert rows["interleaved"]["in_flight"] == pytest.approx(8 + 7 / 4)
    assert rows["GPipe"]["activations"] == 32 * 4e9


@pytest.mark.parametrize(
    ("state", "says"),
    [
        ({"microbatches": 1}, "Useless"),
        ({"microbatches": 8}, "take at least 32"),
        ({"microbatches": 4096}, "Little is left"),
        ({}, "Twice the microbatches"),
        ({"schedule": "interleaved", "microbatches": 12}, "multiples of the 8"),
        ({"schedule": "GPipe"}, "equally idle"),
    ],
)
def test_the_pipeline_verdict(state, says):
    assert says in calculators.get(PIPELINE).evaluate(**state).verdict


# Batch size


def test_the_critical_batch_of_a_loss():
    """Kaplan et al. 2020, tables 5 and 6: 2.0e6 tokens at the loss of 1 PF-day, 2.658."""
    batch = calculators.get(BATCH)
    here = batch.evaluate(loss=2.658, batch="2M")
    assert here["critical"] == pytest.approx(2e6, rel=0.025)
    assert here["steps"] == pytest.approx(2, rel=0.02) and here["samples"] == pytest.approx(2, rel=0.02)
    assert "Near" in here.verdict
    assert "Below" in batch.evaluate(batch="100k").verdict
    assert "Beyond" in batch.evaluate(batch="100M").verdict
    measured = batch.evaluate(known="measured", own_critical="4M", batch="1M")
    assert measured["steps"] == pytest.approx(5) and measured["samples"] == pytest.approx(1.25)
    assert "loss" not in measured.relevant


# Checkpoints


def test_llama_3s_failures():
    """419 unexpected interruptions in 54 days: one in 3.1 hours."""
    here = calculators.get(SAVING).evaluate()
    assert here["failure_interval"] == pytest.approx(54 * 86400 / 419, rel=1e-6)
    assert here["best"] == pytest.approx(math.sqrt(2 * 10 * 54 * 86400 / 419), rel=1e-6)


@pytest.mark.parametrize(("devices", "write", "restart"), [*itertools.product((8, 1024, 16384), (1, 60), (0, 600))])
def test_no_other_interval_loses_less(devices, write, restart):
    saving = calculators.get(SAVING)
    state = {"devices": devices, "checkpoint_time": write, "restart_time": restart}
    here = saving.evaluate(**state)
    tried = [saving.evaluate(**state, interval=here["best"] * f)["lost"] for f in (0.5, 0.9, 0.99, 1.01, 1.1, 2)]
    assert here["least"] < min(tried)


@pytest.mark.parametrize(
    ("state", "says"),
    [
        ({}, "Too rarely"),
        ({"interval": 60}, "Too often"),
        ({"interval": 500}, "About right"),
        ({"checkpoint_time": 3600}, "Too many failures"),
    ],
)
def test_the_checkpoint_verdict(state, says):
    assert says in calculators.get(SAVING).evaluate(**state).verdict
