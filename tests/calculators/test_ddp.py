"""The calculators of the chapter on several GPUs against published layouts, searches and numbers by hand."""

from __future__ import annotations

import itertools
import math
from types import SimpleNamespace

import pytest
import torch

from efflab import calculators, catalog
from efflab.calculators import ddp
from efflab.calculators.picks import CUSTOM
from efflab.formulas import parallelism
from efflab.records import recorded

SCALING, LAYOUT, PIPELINE = "ddp-scaling", "parallel-layout", "pipeline-bubble"
BATCH, SAVING = "critical-batch", "checkpoint-interval"


# Scaling


def buckets_of(name: str, cap: int) -> list[int]:
    """Bytes of the buckets in which torch's own rule packs a Llama model's BF16 gradients, the last layer's first."""
    shape = catalog.model(name).architecture()
    h, kv = shape["hidden_size"], shape["kv_heads"] * shape["head_dim"]
    mlp, words = shape["intermediate_size"], shape["vocabulary"]
    block = [(h, h), (kv, h), (kv, h), (h, h), (mlp, h), (mlp, h), (h, mlp), (h,), (h,)]  # q, k, v, o, the MLP, norms
    shapes = [(words, h), *block * int(shape["layers"]), (h,), (words, h)]
    tensors = [torch.empty(tuple(map(int, s)), dtype=torch.bfloat16, device="meta") for s in reversed(shapes)]
    assert sum(t.numel() for t in tensors) == catalog.model(name).parameters
    packed, _ = torch.distributed._compute_bucket_assignment_by_size(tensors, [2**20, cap])
    return [sum(tensors[i].nbytes for i in bucket) for bucket in packed]


def test_the_opening_counts_the_buckets_of_its_model():
    """613 buckets would be full ones of 25 MiB; most tensors of this model are larger and never cut."""
    buckets = buckets_of("Llama 3.1 8B", parallelism.BUCKET_BYTES)
    here = calculators.get(SCALING).evaluate()
    assert here["gradient_bytes"] == sum(buckets) == 2 * 8030261248
    assert here["buckets"] == len(buckets) == 162


def test_eight_billion_parameters_on_64_ranks_by_hand():
    """16.06 GB of BF16 gradients in 162 buckets, rings of 64 through eight adapters of 50 GB/s, 4 µs a step."""
    here = calculators.get(SCALING).evaluate()
    gradient = 2 * 8030261248
    assert here["bandwidth"] == 8 * 50e9
    reduced = 2 * 63 / 64 * gradient / 400e9 + 162 * 126 * 4e-6
    assert here["communication_time"] == pytest.approx(reduced)
    assert reduced < 161 / 162 * 0.66, "all but the last bucket is hidden"
    assert here["exposed"] == pytest.approx(reduced / 162)
    assert here["share"] == pytest.approx(1.02 / (1.02 + reduced / 162)) == pytest.approx(here["speedup"] / 64)
    assert "Hidden" in here.verdict


def test_one_rank_in_each_node_has_one_adapter():
    """The same 64 ranks in 64 nodes: an eighth of the bandwidth."""
    here = calculators.get(SCALING).evaluate(link="none")
    assert here["bandwidth"] == 50e9
    reduced = 2 * 63 / 64 * 2 * 8030261248 / 50e9 + 162 * 126 * 4e-6
    exposed = reduced - 161 / 162 * 0.66
    assert here["exposed"] == pytest.approx(exposed) and here["share"] == pytest.approx(1.02 / (1.02 + exposed))


@pytest.mark.parametrize(
    ("state", "says"),
    [
        ({"ranks": 1}, "One rank alone"),
        ({}, "Hidden"),
        ({"latency": "1 ms"}, "Limited by latency"),
        ({"overlap": 0}, "Too little overlaps"),
        ({"bucket_bytes": "17 GB"}, "All in one message"),
        ({"scaling": "strong", "model": "GPT-2 124M"}, "Hidden, and still"),
        ({"network": "10 Gbit/s"}, "Limited by the bandwidth"),
        ({"network": "10 Gbit/s", "overlap": 0}, "nothing hides"),
        ({"ranks": 60}, "fewer adapters"),
        ({"ranks": 8, "model": "GPT-2 124M"}, "Hidden: "),
        ({"ranks": 8, "model": "GPT-2 124M", "overlap": 0}, "Little to hide: the all-reduces take 1.13 ms"),
        ({"ranks": 8, "model": "GPT-2 124M", "bucket_bytes": "100 GB"}, "Little to hide: the all-reduces take 1.02 ms"),
        ({"scaling": "strong", "model": "GPT-2 124M", "overlap": 0, "update_time": 0.3}, "Little to hide, and still"),
    ],
)
def test_the_verdict_names_what_limits(state, says):
    assert says in calculators.get(SCALING).evaluate(**state).verdict


def test_links_are_those_of_one_direction():
    table = calculators.get(SCALING).table
    links, networks = table["link"].table, table["network"].table
    assert links["NVLink 4"].sets["link_bandwidth"] == 450e9  # not the 900 of the data sheet
    for a in catalog.accelerators().values():
        if a.link:
            assert links[a.link.name].sets["link_bandwidth"] == a.link_bandwidth
    assert links["NVLink 5, 72 devices"].sets["ranks_per_node"] == 72
    assert "8 devices" in links["NVLink 5"].label and "72 devices" in links["NVLink 5, 72 devices"].label
    assert networks["400 Gbit/s"].sets["network_bandwidth"] == 50e9
    same = {"own_link": "450 GB/s", "own_ranks_per_node": 8, "own_network": "50 GB/s"}
    own = calculators.get(SCALING).evaluate(link=CUSTOM, network=CUSTOM, **same)
    assert own["share"] == calculators.get(SCALING).evaluate()["share"]


@pytest.mark.parametrize(
    ("state", "bandwidth"),
    [
        ({"ranks": 8}, 450e9),  # the link alone
        ({"ranks": 16}, 400e9),  # eight adapters of 50 GB/s
        ({"ranks": 16, "network": "800 Gbit/s"}, 450e9),  # no faster than the link
        ({"ranks": 64, "link": "NVLink 5, 72 devices"}, 900e9),
        ({"ranks": 16, "link": "ICI (4 ports)", "network": "10 Gbit/s"}, 200e9),  # a Pod joins 256
        ({"ranks": 512, "link": "ICI (4 ports)", "network": "25 Gbit/s"}, 200e9),  # no faster than 256 adapters
        ({"ranks": 512, "link": "ICI (4 ports)", "own_network": "0.5 GB/s", "network": CUSTOM}, 128e9),
    ],
)
def test_rings_leave_a_node_through_the_adapters_of_all_its_ranks(state, bandwidth):
    assert calculators.get(SCALING).evaluate(**state)["bandwidth"] == bandwidth


def test_weak_and_strong_scaling_agree_on_one_rank_and_part_on_many():
    scaling = calculators.get(SCALING)
    for kind in ("weak", "strong"):
        assert scaling.evaluate(scaling=kind, ranks=1)["share"] == pytest.approx(1)
    weak, strong = (scaling.evaluate(scaling=kind, ranks=64, link="NVLink 5") for kind in ("weak", "strong"))
    assert strong["share"] < weak["share"] and strong["step_time"] < weak["step_time"]


def run_of(created: str, status: str = "ok", scale: str = "cpu", value: float = 0.8) -> SimpleNamespace:
    """What a recorded run on a machine shows the calculator: both efficiencies on two and four ranks."""
    samples = [
        SimpleNamespace(
            metric="efficiency",
            status=status,
            values=[value - 0.1, value, value + 0.1],
            point={"scaling": s, "ranks": n, "case": f"efficiency-{s}-{n}"},
        )
        for s in ("weak", "strong")
        for n in (2, 4)
    ]
    return SimpleNamespace(
        environment=SimpleNamespace(device="A machine"), scale=scale, created=created, samples=samples
    )


def test_recorded_efficiencies_lie_over_the_curve(monkeypatch):
    monkeypatch.setattr(ddp, "recorded", lambda topic: [run_of("2026-11-21T")])
    weak, strong = ddp.recorded_runs()
    assert weak.option is strong.option is None  # no state of the calculator is this machine
    assert weak.label.endswith("weak scaling") and strong.label.endswith("strong scaling")
    assert weak.points == [(2.0, 0.8, "efficiency-weak-2"), (4.0, 0.8, "efficiency-weak-4")]


def test_the_newest_run_that_has_efficiencies_is_shown(monkeypatch):
    """A later run on one rank has none, one that failed or was small has none to show: none hides the older curves."""
    one_rank = run_of("2026-11-23T")
    one_rank.samples.clear()
    older, newer = run_of("2026-11-21T", value=0.5), run_of("2026-11-22T")
    runs = [older, newer, one_rank, run_of("2026-11-24T", status="failed"), run_of("2026-11-25T", scale="smoke")]
    monkeypatch.setattr(ddp, "recorded", lambda topic: runs)
    shown = ddp.recorded_runs()
    assert [r.label for r in shown] == [f"A machine, 2026-11-22, {s} scaling" for s in ("weak", "strong")]
    assert all(y == 0.8 for r in shown for _, y, _ in r.points)


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
    reduced, gathered = (127 / 128 * parameters / 128 * size / 50e9 for size in (4, 2))  # FP32 and BF16
    assert here["data_time"] == pytest.approx(reduced + gathered)
    # Gradients run beside the backward pass of the last microbatch, weights beside the next forward pass of the first.
    k = math.ceil(parameters / 128 * 4 / (25 * 2**20))  # of FP32 gradients
    shown = [max(t - (k - 1) / k * share * compute / 16, t / k) for t, share in ((reduced, 2 / 3), (gathered, 1 / 3))]
    assert here["exposed_time"] == pytest.approx(sum(shown))
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
        ({"tensor_parallel": 16, "pipeline_parallel": 8}, "with 16 devices of nodes of 8"),
        ({"tensor_parallel": 16, "pipeline_parallel": 8, "accelerator": "GB200 NVL72 (per GPU)"}, "nodes of 72"),
        ({}, "bubble of the pipeline costs most"),
        ({"microbatches": 64, "recomputation": "full"}, "Tensor parallelism costs most"),
        ({"microbatches": 64, "recomputation": "full", "network_bandwidth": "1 GB/s"}, "Data parallelism costs most"),
        ({"own_chunks": 12}, "are 192 pieces, and the model has 126 layers"),
        ({"schedule": "1F1B", "model": "Llama 3.1 8B", "pipeline_parallel": 64}, "32 layers for 64 stages"),
        ({"schedule": "1F1B"}, "or the interleaved schedule"),
        ({"data_parallel": 64, "microbatches": 32}, "take plain 1F1B (it holds fewer"),
        ({"schedule": "1F1B", "sequence_length": 65536}, "Recompute layers or split each layer"),
        ({"schedule": "1F1B", "sequence_length": 2**20, "recomputation": "full"}, ". Split each layer over more"),
        ({"tensor_parallel": 1, "pipeline_parallel": 1, "data_parallel": 16, "zero": "3"}, "over more replicas"),
        ({"tensor_parallel": 1, "pipeline_parallel": 1, "data_parallel": 1}, "no other replica"),
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


def test_tensor_parallelism_across_nodes_runs_at_the_speed_of_its_adapters():
    layout = calculators.get(LAYOUT)
    own = dict(
        accelerator=CUSTOM, own_peak_performance="989.4 TFLOP/s", own_memory="80 GB", own_link="450 GB/s",
        tensor_parallel=16, pipeline_parallel=8,
    )  # fmt: skip
    inside, across, alone = (layout.evaluate(**own, own_ranks_per_node=n) for n in (16, 8, 1))
    assert across["tensor_time"] / inside["tensor_time"] == pytest.approx(450 / (8 * 50))
    assert alone["tensor_time"] / inside["tensor_time"] == pytest.approx(450 / 50)
    assert alone["mfu_share"] < 0.6 * inside["mfu_share"]
    assert "fewer adapters" in layout.evaluate(**own, own_ranks_per_node=3).verdict


def test_an_accelerator_brings_the_size_of_its_node():
    """16 devices of an NVL72 share a layer within its rack, at the link's 900 GB/s; groups of eight fill the rack."""
    rack = dict(accelerator="GB200 NVL72 (per GPU)", tensor_parallel=16, pipeline_parallel=8)
    here = calculators.get(LAYOUT).evaluate(**rack)
    assert here["tensor_bandwidth"] == 900e9 and "leaves the node" not in here.verdict
    assert "own_ranks_per_node" not in here.relevant
    assert "do not fill" not in calculators.get(LAYOUT).evaluate(**rack | {"tensor_parallel": 8}).verdict
    for a in catalog.accelerators().values():
        if a.link and "bf16" in a.peak_dense:
            assert calculators.get(LAYOUT).evaluate(accelerator=a.name)["ranks_per_node"] == a.link.joins


@pytest.mark.parametrize(
    ("tensor", "pipeline", "data", "adapters"), [(8, 16, 128, 1), (4, 1, 64, 2), (1, 1, 64, 8), (2, 2, 16, 2)]
)
def test_replicas_share_the_adapters_of_a_node(tensor, pipeline, data, adapters):
    here = calculators.get(LAYOUT).evaluate(tensor_parallel=tensor, pipeline_parallel=pipeline, data_parallel=data)
    assert here["data_bandwidth"] == adapters * 50e9
    one_node = calculators.get(LAYOUT).evaluate(tensor_parallel=2, pipeline_parallel=1, data_parallel=4)
    assert one_node["data_bandwidth"] == 450e9


@pytest.mark.parametrize("convention, gradient", [("16 bytes", 2), ("18 bytes", 4)])
def test_what_data_parallelism_sends(convention, gradient):
    """Gradients in their format, weights in BF16: reduced and gathered, at stage 3 gathered once more."""
    buckets = calculators.get(LAYOUT).evaluate(convention=convention)["buckets"]
    assert buckets == math.ceil(gradient * 405853388800 / 128 / (25 * 2**20))
    for stage, (gathers, reduces) in {"0": (0, 2), "1": (1, 1), "2": (1, 1), "3": (2, 1)}.items():
        here = calculators.get(LAYOUT).evaluate(zero=stage, convention=convention)
        each = 127 / 128 * 405853388800 / 128
        assert here["data_bytes"] == pytest.approx(each * (2 * gathers + gradient * reduces))
        parts = ["exposed_gradients", "exposed_weights"] if gathers else ["exposed_all"]
        assert here["exposed_time"] == pytest.approx(sum(here[n] for n in parts))


def test_recomputation_adds_a_third_of_the_work_and_half_of_the_messages():
    layout = calculators.get(LAYOUT)
    plain, full = layout.evaluate(), layout.evaluate(recomputation="full")
    assert full["compute_time"] == pytest.approx(4 / 3 * plain["compute_time"])
    assert full["tensor_time"] == pytest.approx(1.5 * plain["tensor_time"])
    assert full["activations"] == pytest.approx(plain["activations"] * 2 / 34)
    assert full["flops_of_device"] == plain["flops_of_device"]  # the model's own
    # One forward pass and a backward pass of twice its work; recomputed, the backward pass has three parts of four.
    for here, backward in ((plain, 2 / 3), (full, 3 / 4)):
        assert here["backward_last"] == pytest.approx(backward * here["compute_time"] / 16)
        assert here["forward_first"] == pytest.approx((1 - backward) * here["compute_time"] / 16)
    assert full["forward_first"] == pytest.approx(plain["forward_first"])  # which recomputation does not change


def test_each_stage_of_zero_holds_less():
    held = [calculators.get(LAYOUT).evaluate(zero=z)["kept_state"] for z in "0123"]
    assert held == sorted(held, reverse=True) and held[0] > 10 * held[3]


# Pipelines


def test_the_tutorials_case():
    """p = 8, m = 32: 18% idle, printed in a tutorial; 7 / 39."""
    here = calculators.get(PIPELINE).evaluate()
    assert here["idle_share"] == pytest.approx(7 / 39) and here["in_flight"] == 8
    everything = calculators.get(PIPELINE).evaluate(schedule="GPipe")
    assert everything["in_flight"] == 32 and everything["activations"] == 32 * 4e9
    rows = here.rows()
    assert rows["GPipe"]["idle_share"] == rows["1F1B"]["idle_share"]
    assert rows["interleaved"]["idle_share"] < 0.06
    assert rows["interleaved"]["in_flight"] == pytest.approx(8 + 7 / 4)


@pytest.mark.parametrize(
    ("state", "says"),
    [
        ({"microbatches": 1}, "Useless"),
        ({"microbatches": 8}, "take at least 32"),
        ({"microbatches": 4096}, "Little is left"),
        ({}, "Twice the microbatches: 9.86% idle"),  # 7 / 71
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
        ({"checkpoint_time": 3600}, "this way of saving"),
        ({"devices": 2**20}, "Too many failures"),
        ({"restart_time": "1 day"}, "this way of starting again"),
        ({"interval": 1}, "Hopeless as planned"),
    ],
)
def test_the_checkpoint_verdict(state, says):
    assert says in calculators.get(SAVING).evaluate(**state).verdict
