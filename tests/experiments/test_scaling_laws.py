"""What the scaling-laws lab trains: its text, its models' size and cost, its schedule, and real training."""

from __future__ import annotations

import dataclasses
import math

import pytest

from efflab import reconcile
from efflab.experiments import runner, scaling_laws

torch = pytest.importorskip("torch")
CPU = torch.device("cpu")
TINY = dataclasses.replace(
    scaling_laws.SCALES["smoke"], widths=(8, 16, 24), tokens=(512, 1024), held_out=((32, 2048),), repeats=((8, 512),)
)


def plan(scale: str):
    return scaling_laws.EXPERIMENT.plan(scale, CPU, None, None)


@pytest.mark.parametrize("name", ["pydoc topics", "standard library"])
def test_nothing_that_validates_was_trained_on(name):
    words = scaling_laws.text(name)
    assert 0.05 < len(words.validation) / len(words.training) < 0.2
    assert max(words.training) < words.vocabulary and max(words.validation) < words.vocabulary
    length = 200  # a stretch this long does not recur by chance
    seen = {
        tuple(words.training[i : i + length]) for i in range(0, min(len(words.training), 3_000_000) - length)
    } if name == "pydoc topics" else set()  # fmt: skip
    stretches = [tuple(words.validation[i : i + length]) for i in range(0, len(words.validation) - length, length)]
    if seen:
        shared = sum(s in seen for s in stretches)
        assert shared <= len(stretches) * 0.02, f"{shared} of {len(stretches)} validation stretches stand in training"


def test_a_topics_paragraph_is_in_one_part_only():
    parts = scaling_laws._topics()
    keys = [" ".join(p.split()) for part in parts for p in part.split("\n\n") if p.strip()]
    assert len(keys) == len(set(keys))


@pytest.mark.parametrize(("width", "layers"), [(12, 1), (16, 2), (24, 2), (64, 3)])
def test_parameters_and_operations_by_hand(width, layers):
    scale = dataclasses.replace(scaling_laws.SCALES["cpu"], layers=layers)
    vocabulary, counted = 103, scaling_laws.size(width, dataclasses.replace(scale), 103)
    matrices = 4 * width * width + layers * 12 * width * width  # the mix; qkv 3, out 1, up 4, down 4
    norms = layers * 2 * width + width
    assert counted.parameters == vocabulary * width + matrices + norms
    assert counted.non_embedding == matrices + norms
    tokens = scale.batch * scale.context
    products = 2 * tokens * (matrices + vocabulary * width)  # the embedding is looked up; as output it is a product
    attention = layers * 2 * 2 * tokens * scale.context * width  # scores and values, all of them
    assert counted.step_flops == 3 * (products + attention)


def test_every_run_ends_its_schedule_with_its_data():
    for scale in scaling_laws.SCALES:
        for case in plan(scale).cases:
            p = case.point
            assert p["steps"] * p["batch"] * p["context_length"] == p["tokens"]
    for steps in (8, 40, 1000):
        rates = [scaling_laws.rate(i, steps, 0.1) for i in range(steps)]
        assert max(rates) == pytest.approx(0.1, rel=0.15) and max(rates) <= 0.1
        assert rates[-1] <= 0.1 * 1.2 / (0.9 * steps) + 1e-12  # the next would be zero
        peak = rates.index(max(rates))
        assert rates[: peak + 1] == sorted(rates[: peak + 1]) and rates[peak:] == sorted(rates[peak:], reverse=True)
        assert scaling_laws.rate(steps, steps, 0.1) == 0


@pytest.mark.parametrize("scale", scaling_laws.SCALES)
def test_held_out_runs_are_larger_than_everything_fitted(scale):
    cases = [c.point for c in plan(scale).cases]
    fitted = [p for p in cases if p["role"] == "fit"]
    assert len({p["parameters"] for p in fitted}) >= (3 if scale == "smoke" else 6)
    assert len({p["tokens"] for p in fitted}) >= 3
    held = [p for p in cases if p["role"] == "held-out"]
    assert held and cases[-1] in held
    for p in held:
        assert p["parameters"] > max(q["parameters"] for q in fitted) and p["tokens"] > max(q["tokens"] for q in fitted)
        assert p["flops"] >= 3 * max(q["flops"] for q in fitted)
    for p in cases:
        same = [q for q in fitted if (q["parameters"], q["tokens"]) == (p["parameters"], p["tokens"])]
        assert p["role"] != "repeat" or (same and same[0]["seed"] != p["seed"])
    assert len({p["case"] for p in cases}) == len(cases)


def test_a_gpu_trains_with_two_more_decades_of_operations():
    largest = {s: max(c.point["flops"] for c in plan(s).cases) for s in ("cpu", "gpu")}
    assert largest["gpu"] >= 100 * largest["cpu"]


def test_no_run_reads_a_text_twice():
    for name, scale in scaling_laws.SCALES.items():
        words = scaling_laws.text(scale.text)
        assert all(c.point["tokens"] < len(words.training) for c in plan(name).cases)


@pytest.fixture
def point():
    monkey = pytest.MonkeyPatch()
    monkey.setitem(scaling_laws.SCALES, "smoke", TINY)
    yield plan("smoke").cases[3].point
    monkey.undo()


def test_training_learns_and_repeats_to_the_last_bit(point):
    first, _ = scaling_laws.train(point, TINY, CPU)
    again, _ = scaling_laws.train(point, TINY, CPU)
    other, _ = scaling_laws.train({**point, "seed": 1}, TINY, CPU)
    assert first == again and first != other
    longer, _ = scaling_laws.train({**point, "steps": 4 * point["steps"]}, TINY, CPU)
    words = scaling_laws.text(TINY.text)
    assert 1.0 < longer < first < math.log(words.vocabulary) + 1.0


def test_training_leaves_the_random_state_alone(point):
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    scaling_laws.train({**point, "steps": 1}, TINY, CPU)
    assert torch.equal(torch.rand(3), expected)


def test_the_loss_is_of_the_whole_validation_text(point):
    """Against one pass without batches, in double precision."""
    model = scaling_laws.build(16, TINY, 103)
    words = scaling_laws.text(TINY.text)
    found = scaling_laws._validate(torch, model, words, TINY, CPU)
    windows = (len(words.validation) - 1) // TINY.context
    ids = torch.tensor(words.validation[: windows * TINY.context + 1])
    with torch.no_grad():
        logits = model(ids[:-1].view(windows, TINY.context)).double().flatten(0, 1)
    expected = -logits.log_softmax(-1)[torch.arange(len(logits)), ids[1:]].mean()
    assert found == pytest.approx(float(expected), rel=1e-5)


def test_a_model_sees_no_character_before_its_turn():
    torch.manual_seed(0)
    model = scaling_laws.build(16, TINY, 103)
    ids = torch.randint(0, 103, (1, TINY.context))
    changed = ids.clone()
    changed[0, 20] = (changed[0, 20] + 1) % 103
    with torch.no_grad():
        a, b = model(ids), model(changed)
    assert torch.allclose(a[0, :20], b[0, :20], atol=1e-6) and not torch.allclose(a[0, 20], b[0, 20], atol=1e-4)


def test_a_run_gives_a_record_that_can_be_reconciled(tmp_path, monkeypatch):
    monkeypatch.setitem(scaling_laws.SCALES, "smoke", TINY)
    record, path = runner.run(scaling_laws.EXPERIMENT, scale="smoke", device="cpu", out=tmp_path, report=print)
    assert path.exists() and record.spec["sha256"] == scaling_laws.text(TINY.text).sha256
    rows = reconcile.topic("scaling_laws").points(record)
    assert [r.role for r in rows].count("fit") == 6 and rows[-1].role == "held-out"
    assert all(r.measured > 0 for r in rows)
    text = path.read_text()
    assert str(tmp_path) not in text and "pydoc_data" not in text.replace("pydoc topics", "")


def test_divergence_is_a_failed_case(monkeypatch, point):
    case = plan("smoke").cases[0]
    monkeypatch.setattr(scaling_laws, "train", lambda *_: (math.nan, 1.0))
    samples, _ = runner._attempt(case, CPU)
    assert samples[0].status == "failed" and "diverged" in samples[0].message
