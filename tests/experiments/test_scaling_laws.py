"""What the scaling-law lab trains: its text, its models' size and cost, its schedule, and real training."""

from __future__ import annotations

import dataclasses
import itertools
import math
import random
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from efflab import reconcile
from efflab.errors import EfflabError
from efflab.experiments import runner, scaling_laws
from efflab.experiments import text as texts
from efflab.records import Record, load_record

CPU = torch.device("cpu")
SCALES = tuple(scaling_laws.SCALES)
TINY = dataclasses.replace(
    scaling_laws.SCALES["smoke"], widths=(8, 16, 24), tokens=(512, 1024, 2048), repeats=((8, 512),),
    held_out=(("held-out-near", (32, 4096)), ("held-out-far", (40, 4096))), validation=2000,
)  # fmt: skip


def plan(scale: str) -> runner.Plan:
    return scaling_laws.EXPERIMENT.plan(scale, CPU, None, None)


@pytest.fixture
def session() -> scaling_laws.Session:
    return scaling_laws.Session(TINY, CPU)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(scaling_laws.SCALES, "smoke", TINY)
    yield


# Text


@pytest.mark.parametrize("text", ["topics", "library"])
def test_no_paragraph_is_in_both_parts_or_twice_in_one(text: str) -> None:
    kept = texts.paragraphs(texts.TEXTS[text][1]())
    every = next(s.every for s in scaling_laws.SCALES.values() if s.text == text)
    training, validation = texts.split(kept, every)
    keys = [re.sub(r"\s+", "", p) for p in training + validation]  # another notion of "same" than the module's
    assert len(keys) == len(kept)
    twice = len(keys) - len(set(keys))
    assert twice <= 0.001 * len(keys), "only paragraphs that differ where they have white space may look alike"
    share = sum(map(len, validation)) / sum(map(len, training + validation))
    assert share == pytest.approx(1 / every, rel=0.5)


def test_long_stretches_of_the_validation_text_are_not_in_the_training_text() -> None:
    """Against the text itself: the module's own paragraphs take no part in it."""
    of = scaling_laws.SCALES["cpu"]
    text = scaling_laws.corpus(of.text, of.every, of.validation)
    characters = {name: "".join(map(chr, getattr(text, name))) for name in ("training", "validation")}
    held, length = characters["validation"], 60
    starts = range(0, len(held) - length, 20)
    shared = sum(held[i : i + length] in characters["training"] for i in starts)
    assert len(starts) > 1000
    assert shared < 0.02 * len(starts), f"{shared} of {len(starts)}"


def test_the_text_without_its_paragraphs_kept_once_would_leak() -> None:
    """Why paragraphs are kept once; if Python's topics stop repeating themselves, this may go."""
    whole = "\n\n".join(texts.topics())
    kept = "\n\n".join(texts.paragraphs(texts.topics()))
    assert len(kept) < 0.9 * len(whole)


def test_tokens_are_the_texts_characters_and_rare_ones_share_one() -> None:
    of = scaling_laws.SCALES["cpu"]
    text = scaling_laws.corpus(of.text, of.every, of.validation)
    assert set(text.training) | set(text.validation) == set(range(text.vocabulary))
    assert len(text.sha256) == 64 and int(text.sha256, 16) > 0
    counts = torch.bincount(torch.tensor(text.training), minlength=text.vocabulary)
    assert int(counts[1:].min()) >= texts.RARE
    assert counts[0] < 0.001 * len(text.training)
    # The topics name every statement: the most frequent token is the blank, by far.
    assert counts.max() > 0.1 * len(text.training)


def test_sequences_cover_the_text_once_and_targets_are_the_next_tokens() -> None:
    inputs, targets = texts.windows(torch.arange(100), 8)
    assert inputs.shape == targets.shape == (12, 8)
    assert torch.equal(targets, inputs + 1)
    assert targets.flatten().tolist() == list(range(1, 97))


def test_no_run_reads_a_part_of_the_text_twice_and_shorter_runs_read_the_first_of_the_longer() -> None:
    for scale in ("smoke", "cpu"):
        session = scaling_laws.Session(scaling_laws.SCALES[scale], CPU)
        orders = {}
        for case in plan(scale).cases:
            point = case.point
            order = session.order(point["steps"], point["seed"]).flatten().tolist()
            assert len(set(order)) == len(order) == point["steps"] * point["batch"]
            orders[point["seed"], point["tokens"]] = order
        same = sorted((o for (seed, _), o in orders.items() if seed == 0), key=len)
        assert all(b[: len(a)] == a for a, b in itertools.pairwise(same))
        assert any(o != same[-1][: len(o)] for (seed, _), o in orders.items() if seed != 0)


def test_a_text_that_is_too_short_is_said(session: scaling_laws.Session) -> None:
    sequences = len(session.data["training"][0])
    assert session.order(sequences // TINY.batch, 0).numel() <= sequences
    with pytest.raises(runner.Unavailable, match="training text of this Python has"):
        session.order(sequences // TINY.batch + 1, 0)


@pytest.mark.parametrize("scale", SCALES)
def test_the_text_suffices_for_every_run(scale: str) -> None:
    text = scaling_laws.corpus(*(getattr(scaling_laws.SCALES[scale], n) for n in ("text", "every", "validation")))
    assert all(c.point["tokens"] < len(text.training) for c in plan(scale).cases)


# Size and cost


@pytest.mark.parametrize(("width", "layers"), [(8, 1), (20, 2), (64, 2), (96, 3)])
def test_parameters_and_operations_by_hand(width: int, layers: int) -> None:
    vocabulary, context, batch = 90, 16, 3
    shape = scaling_laws.Shape(width, layers, vocabulary, context)
    matrices = 4 * width**2 + layers * 12 * width**2  # mix; queries, keys and values 3, out 1, up 4, down 4
    norms = layers * 2 * width + width
    products = 2 * batch * context * (matrices + vocabulary * width)  # looked up as input, a product as output
    scores = layers * 2 * (2 * batch * context * context * width)  # queries by keys, and scores by values
    assert scaling_laws.counted(shape, batch) == (
        vocabulary * width + matrices + norms, matrices + norms, 3 * (products + scores),
    )  # fmt: skip
    real = scaling_laws.build(shape, CPU, 0)
    assert sum(p.numel() for p in real.parameters()) == vocabulary * width + matrices + norms


@pytest.mark.parametrize("scale", SCALES)
def test_points_say_what_is_trained(scale: str) -> None:
    points = [c.point for c in plan(scale).cases]
    assert len({p["case"] for p in points}) == len(points)
    for p in points:
        assert p["steps"] * p["batch"] * p["context_length"] == p["tokens"]
        assert p["hidden_size"] % p["heads"] == 0
        assert (p["hidden_size"] // p["heads"]) % 2 == 0, "rotary positions turn pairs"
        assert 0.5 < p["flops"] / (6 * p["parameters"] * p["tokens"]) < 2
    fitted = [p for p in points if p["role"] == "fit"]
    assert len({p["parameters"] for p in fitted}) >= (3 if scale == "smoke" else 6)
    assert len({p["tokens"] for p in fitted}) >= 3
    held = [p for p in points if p["role"] == "held-out"]
    assert points[-1] in held and len(held) >= 1
    for p in held:
        assert p["parameters"] > max(q["parameters"] for q in fitted)
        assert p["tokens"] > max(q["tokens"] for q in fitted)
        assert p["flops"] > 3 * max(q["flops"] for q in fitted)
    for p in (p for p in points if p["role"] == "repeat"):
        assert [q["seed"] for q in fitted if (q["parameters"], q["tokens"]) == (p["parameters"], p["tokens"])] == [0]
        assert p["seed"] != 0


def test_a_gpu_trains_with_two_more_decades_of_operations() -> None:
    most = {scale: max(c.point["flops"] for c in plan(scale).cases) for scale in ("cpu", "gpu")}
    assert most["gpu"] > 100 * most["cpu"]


@pytest.mark.parametrize("scale", SCALES)
def test_the_largest_model_of_every_scale_takes_its_inputs(scale: str) -> None:
    """Without memory or time: on the meta device."""
    session = scaling_laws.Session(scaling_laws.SCALES[scale], torch.device("meta"))
    width = max(c.point["hidden_size"] for c in plan(scale).cases)
    model = scaling_laws.build(session.shape(width), "meta", 0)
    tokens = torch.zeros(2, session.scale.context, dtype=torch.long, device="meta")
    assert model(tokens).shape == (2, session.scale.context, session.text.vocabulary)


# Model


def test_a_model_sees_no_token_before_its_turn() -> None:
    shape = scaling_laws.Shape(40, 2, 50, 24)
    model = scaling_laws.build(shape, CPU, 0)
    tokens = torch.randint(0, 50, (1, 24), generator=torch.Generator().manual_seed(0))
    changed = tokens.clone()
    changed[0, 15] = (changed[0, 15] + 1) % 50
    with torch.no_grad():
        before, after = model(tokens), model(changed)
    torch.testing.assert_close(before[:, :15], after[:, :15])
    assert not torch.allclose(before[:, 15], after[:, 15])
    assert not torch.allclose(before[:, 23], after[:, 23]), "attention reaches eight tokens back"


def test_positions_matter_beyond_the_mixed_characters() -> None:
    """Rotary positions: the same characters in another order, all further back than the mix reaches."""
    model = scaling_laws.build(scaling_laws.Shape(32, 2, 50, 24), CPU, 0)
    tokens = torch.arange(20)[None]
    swapped = tokens.clone()
    swapped[0, :4] = torch.tensor([3, 2, 1, 0])
    with torch.no_grad():
        assert not torch.allclose(model(tokens)[:, -1], model(swapped)[:, -1], atol=1e-5)


def written_out(model: Any, tokens: Any) -> Any:
    """The logits of a model's weights, in numpy: rotary positions as complex numbers, attention row by row.

    RoFormer (Su et al. 2021), equations 12 to 15: position m turns pair j by the angle m θ_j. Here the pairs are
    (j, j + half of the head) and θ_j is 1000^(-j / half).
    """
    w = {name: weight.detach().numpy() for name, weight in model.named_parameters()}
    length, d = tokens.shape[1], w["embedding.weight"].shape[1]
    heads = max(1, d // 32)
    half = d // heads // 2
    turn = np.exp(1j * np.outer(np.arange(length), 1000.0 ** -(np.arange(half) / half)))

    def norm(x: Any, weight: Any) -> Any:
        return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5) * weight

    def attend(q: Any, k: Any, v: Any) -> Any:
        q, k = ((x[:, :half] + 1j * x[:, half:]) * turn for x in (q, k))
        rows = []
        for i in range(length):
            scores = np.exp((q[i].conj() * k[: i + 1]).sum(-1).real / math.sqrt(2 * half))
            rows.append(scores @ v[: i + 1] / scores.sum())
        return np.stack(rows)

    def block(x: Any, n: int) -> Any:
        of = {name.removeprefix(f"blocks.{n}."): weight for name, weight in w.items()}
        q, k, v = np.split(norm(x, of["before_attention.weight"]) @ of["query_key_value.weight"].T, 3, -1)
        parts = (slice(h * 2 * half, (h + 1) * 2 * half) for h in range(heads))
        x = x + np.concatenate([attend(q[:, p], k[:, p], v[:, p]) for p in parts], -1) @ of["out.weight"].T
        y = norm(x, of["before_mlp.weight"]) @ of["up.weight"].T
        y = y / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (y + 0.044715 * y**3)))
        return x + y @ of["down.weight"].T

    found = []
    for sequence in tokens.numpy():
        each = [w["embedding.weight"][t] * math.sqrt(d) for t in sequence]
        none = np.zeros(d)
        x = np.stack(
            [np.concatenate([each[i - b] if i >= b else none for b in range(4)]) @ w["mix.weight"].T
             for i in range(length)]
        )  # fmt: skip
        for n in range(len(model.blocks)):
            x = block(x, n)
        found.append(norm(x, w["norm.weight"]) @ w["embedding.weight"].T)
    return torch.from_numpy(np.stack(found))


@pytest.mark.parametrize(("width", "layers"), [(20, 1), (64, 2), (96, 1)])
def test_a_model_computes_what_its_text_says(width: int, layers: int) -> None:
    model = scaling_laws.build(scaling_laws.Shape(width, layers, 30, 24), CPU, 0).double()
    random_ = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():  # norms begin at one, where leaving one out would change little
            weight.mul_(1 + torch.rand(weight.shape, generator=random_))
        tokens = torch.randint(0, 30, (3, 24), generator=random_)
        # The model's cosines were float32 before it was double.
        torch.testing.assert_close(model(tokens), written_out(model, tokens), rtol=0, atol=3e-5)


def test_attention_depends_on_the_distance_of_two_positions_and_on_nothing_else_of_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One character over and over: past the mix's reach all positions hold the same, so only positions can differ."""
    seen = []
    attention = torch.nn.functional.scaled_dot_product_attention

    def listens(q: Any, k: Any, v: Any, **options: Any) -> Any:
        seen.append((q @ k.transpose(-2, -1), v))
        return attention(q, k, v, **options)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", listens)
    model = scaling_laws.build(scaling_laws.Shape(64, 1, 50, 32), CPU, 0)
    with torch.no_grad():
        model(torch.full((1, 32), 7))
    ((scores, values),) = seen
    scores, values = scores[0, :, 3:, 3:], values[0, :, 3:]
    torch.testing.assert_close(values, values[:, :1].expand_as(values))
    by_distance = [scores.diagonal(-back, -2, -1) for back in range(29)]
    for same in by_distance:
        torch.testing.assert_close(same, same[:, :1].expand_as(same), rtol=0, atol=1e-4)
    firsts = torch.stack([same[:, 0] for same in by_distance], -1)
    assert (firsts.diff(dim=-1).abs() > 1e-3).all(), "another distance, another score"


def test_weights_depend_on_the_seed_and_the_callers_random_state_stays() -> None:
    shape = scaling_laws.Shape(16, 1, 50, 8)
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    a, b, c = (scaling_laws.build(shape, CPU, seed).embedding.weight for seed in (0, 0, 1))
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(a, b) and not torch.equal(a, c)


# Training


@pytest.mark.parametrize("steps", [8, 40, 160, 1280])
def test_the_schedule_ends_with_the_runs_own_data(steps: int) -> None:
    width = 50
    rates = [scaling_laws.learning_rate(step, steps, width) for step in range(steps)]
    peak = rates.index(max(rates))
    assert max(rates) == pytest.approx(scaling_laws.RATE / width)
    assert peak == pytest.approx(0.1 * steps, abs=1)
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert 0 < rates[-1] < 1.3 * max(rates) / (0.9 * steps)
    assert scaling_laws.learning_rate(steps, steps, width) == 0
    assert scaling_laws.learning_rate(3, steps, 2 * width) == pytest.approx(rates[3] / 2)


def test_training_gives_the_same_to_the_last_bit_and_learns(session: scaling_laws.Session) -> None:
    point = session.point(16, 2048, "fit")
    threads = torch.get_num_threads()
    first, seconds, _ = session.train(point)
    again, _, _ = session.train(point)
    other, _, _ = session.train(session.point(16, 2048, "repeat", seed=1))
    longer, _, _ = session.train(session.point(16, 16_384, "fit"))
    assert first == again != other
    assert seconds > 0
    assert longer < first < math.log(session.text.vocabulary)
    assert torch.get_num_threads() == threads


def test_one_step_is_the_textbooks(session: scaling_laws.Session) -> None:
    """AdamW's first step moves every weight by the learning rate, against the sign of its gradient."""
    inputs, targets = (t[:4] for t in session.data["training"])
    shape = session.shape(16)
    model = scaling_laws.build(shape, CPU, 0)
    before = [p.detach().clone() for p in model.parameters()]
    torch.nn.functional.cross_entropy(model(inputs).flatten(0, 1), targets.flatten()).backward()
    signs = [p.grad.sign() * (p.grad.abs() > 1e-4) for p in model.parameters()]
    model.zero_grad()
    scaling_laws.Trainer(model, CPU).step(inputs, targets, 0.01)
    for old, sign, new in zip(before, signs, model.parameters(), strict=True):
        moved = (new.detach() - old)[sign != 0]
        torch.testing.assert_close(moved, -0.01 * sign[sign != 0], atol=1e-4, rtol=0)


def adam(model: Any, batches: list[tuple[Any, Any]], rates: list[float]) -> list[float]:
    """Train a model in place with Adam written out (Kingma and Ba 2015, algorithm 1), without weight decay.

    Betas 0.9 and 0.98, as the records say; a gradient whose norm over all weights exceeds 1 is scaled to 1.

    Returns:
        The norms of the gradients before they are clipped.
    """
    weights = list(model.parameters())
    first, second = ([torch.zeros_like(w) for w in weights] for _ in range(2))
    norms = []
    for t, ((inputs, targets), rate) in enumerate(zip(batches, rates, strict=True), 1):
        loss = torch.nn.functional.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())
        gradients = torch.autograd.grad(loss, weights)
        norms.append(math.sqrt(sum(float(g.double().square().sum()) for g in gradients)))
        with torch.no_grad():
            for w, g, m, v in zip(weights, gradients, first, second, strict=True):
                g = g * min(1.0, 1.0 / norms[-1])
                m.copy_(0.9 * m + 0.1 * g)
                v.copy_(0.98 * v + 0.02 * g * g)
                w -= rate * (m / (1 - 0.9**t)) / ((v / (1 - 0.98**t)).sqrt() + 1e-8)
    return norms


def test_many_steps_are_adam_written_out(session: scaling_laws.Session) -> None:
    """Of gradients that are clipped, some by much more than others, and of gradients that are not."""
    inputs, targets = session.data["training"]
    batches = [(inputs[at], targets[at]) for at in session.order(12, 0)]
    rates = [0.03 * (1 - step / 24) for step in range(12)]
    expected, model = (scaling_laws.build(session.shape(16), CPU, 0) for _ in range(2))
    start = [w.detach().clone() for w in model.parameters()]
    norms = adam(expected, batches, rates)
    clipped = [n for n in norms if n > 1]
    assert 2 <= len(clipped) <= 10 and max(clipped) > 1.3 * min(clipped)
    trainer = scaling_laws.Trainer(model, CPU)
    for (some, wanted), rate in zip(batches, rates, strict=True):
        trainer.step(some, wanted, rate)
    for old, found, right in zip(start, model.parameters(), expected.parameters(), strict=True):
        assert float((right.detach() - old).abs().mean()) > 0.02
        torch.testing.assert_close(found, right, rtol=0, atol=5e-5)


def test_a_whole_run_is_that_training_of_those_sequences_at_those_rates(session: scaling_laws.Session) -> None:
    point = session.point(16, 2048, "fit")
    inputs, targets = session.data["training"]
    batches = [(inputs[at], targets[at]) for at in session.order(point["steps"], point["seed"])]
    rates = [scaling_laws.learning_rate(step, point["steps"], 16) for step in range(point["steps"])]
    model = scaling_laws.build(session.shape(16), CPU, point["seed"])
    adam(model, batches, rates)
    found, _, _ = session.train(point)
    assert found == pytest.approx(session.validate(model), rel=1e-4)


@pytest.mark.parametrize("stops", [(), (512,), (512, 1024, 1536)])
def test_the_clock_counts_all_of_the_training_and_nothing_else(
    stops: tuple[int, ...], session: scaling_laws.Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a clock that one step moves by 1, a model's making by 1,000 and a validation by 1,000,000."""
    now = [0]

    def slow(target: Any, name: str, takes: int) -> None:
        does = getattr(target, name)

        def instead(*arguments: Any) -> Any:
            now[0] += takes
            return does(*arguments)

        monkeypatch.setattr(target, name, instead)

    slow(scaling_laws.Trainer, "step", 1)
    slow(scaling_laws, "build", 1000)
    slow(scaling_laws.Session, "validate", 1_000_000)
    monkeypatch.setattr(scaling_laws.Session, "_now", lambda _: float(now[0]))
    point = session.point(16, 2048, "fit")
    _, seconds, found = session.train(point, stops)
    assert seconds == point["steps"]
    assert set(found) == set(stops)
    assert now[0] // 1_000_000 == len(stops) + 1, "the clock moved while it was not read"


@pytest.mark.parametrize("narrow", [False, True])
def test_training_is_autocast_where_it_is_said_to_be_and_the_validation_never(
    narrow: bool, session: scaling_laws.Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a CPU, told that it is a GPU with bf16 or one without."""
    seen: dict[bool, set[torch.dtype]] = {True: set(), False: set()}
    attention = torch.nn.functional.scaled_dot_product_attention

    def listens(q: Any, k: Any, v: Any, **options: Any) -> Any:
        seen[torch.is_grad_enabled()] |= {q.dtype, k.dtype, v.dtype}
        return attention(q, k, v, **options)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", listens)
    monkeypatch.setattr(scaling_laws, "narrow", lambda _: narrow)
    model = scaling_laws.build(session.shape(16), CPU, 0)
    inputs, targets = (t[:4] for t in session.data["training"])
    scaling_laws.Trainer(model, CPU).step(inputs, targets, 0.01)
    session.validate(model)
    assert seen == {True: {torch.bfloat16 if narrow else torch.float32}, False: {torch.float32}}
    assert {w.dtype for w in model.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("capability", "precision"),
    [((7, 0), "fp32"), ((7, 5), "fp32"), ((8, 0), "bf16 autocast"), ((9, 0), "bf16 autocast")],
)
def test_the_plan_says_the_precision_of_the_gpu_at_hand(
    capability: tuple[int, int], precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A plan builds nothing on the device, so that a GPU can be played here."""
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)
    found = scaling_laws.EXPERIMENT.plan("smoke", torch.device("cuda"), None, None)
    assert found.spec["precision"] == precision
    assert plan("smoke").spec["precision"] == "fp32", "on a CPU"


def test_losses_on_the_way_change_nothing(session: scaling_laws.Session) -> None:
    point = session.point(16, 2048, "fit")
    plainly, _, nothing = session.train(point)
    watched, _, found = session.train(point, (512, 1024))
    assert plainly == watched and nothing == {}
    assert set(found) == {512, 1024}
    assert found[512] > found[1024] > watched


def test_the_loss_is_of_the_whole_validation_text(session: scaling_laws.Session) -> None:
    """Against float64, one sequence after the other, in plain Python."""
    model = scaling_laws.build(session.shape(16), CPU, 0)
    found = session.validate(model)
    tokens, context = session.text.validation, TINY.context
    total, count = 0.0, 0
    with torch.no_grad():
        for start in range(0, len(tokens) - context, context):
            logits = model(torch.tensor([tokens[start : start + context]]))[0].double()
            right = tokens[start + 1 : start + context + 1]
            total += sum(float(row.logsumexp(0) - row[t]) for row, t in zip(logits, right, strict=True))
            count += context
    assert count > 1800
    assert found == pytest.approx(total / count, rel=1e-5)


def test_an_untrained_model_predicts_no_better_than_chance_and_a_planted_rule_is_learnt(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On random tokens nothing can be learnt; on tokens that count up, everything."""
    rng = random.Random(0)
    noise = tuple(rng.randrange(8) for _ in range(20_000))
    counting = tuple(i % 8 for i in range(20_000))
    losses = {}
    for name, tokens in (("noise", noise), ("counting", counting)):
        text = scaling_laws.Corpus(name, "0" * 64, len(tokens), tokens[:18_000], tokens[18_000:], 8)
        monkeypatch.setattr(scaling_laws, "corpus", lambda *_, text=text: text)
        session = scaling_laws.Session(TINY, CPU)
        losses[name], _, _ = session.train(session.point(16, 16_384, "fit"))
    assert losses["noise"] == pytest.approx(math.log(8), abs=0.03)
    assert losses["counting"] < 0.05


def test_divergence_is_a_failed_case(tiny: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scaling_laws, "RATE", 1e30)
    samples, _ = runner._attempt(plan("smoke").cases[0], CPU)
    (sample,) = samples
    assert sample.status == "failed" and "diverged" in sample.message


# A run


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> Record:
    """A run on this CPU, smaller than smoke."""
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(scaling_laws.SCALES, "smoke", TINY)
        found, path = runner.run(
            scaling_laws.EXPERIMENT, scale="smoke", device="cpu", out=folder, report=lambda _: None
        )
    assert load_record(path) == found
    assert str(folder) not in path.read_text()
    return found


def test_a_run_gives_a_record_that_can_be_reconciled(record: Record) -> None:
    roles = [r.role for r in reconcile.topic("scaling_laws").runs(record)]
    assert (roles.count("fit"), roles.count("repeat"), roles.count("held-out")) == (9, 1, 2)
    assert all(s.status == "ok" for s in record.samples)
    spec = record.spec
    assert spec["sha256"] == scaling_laws.corpus(TINY.text, TINY.every, TINY.validation).sha256
    assert spec["precision"] == "fp32"
    assert spec["passes"] == 1 and spec["validation_tokens"] <= 2000 < spec["training_tokens"]


def test_every_longest_run_is_also_read_where_a_shorter_one_ends(record: Record) -> None:
    stopped = [s.point for s in record.samples if s.point["role"] == "checkpoint"]
    ends = {(p["parameters"], p["tokens"], p["flops"], p["steps"]) for p in stopped}
    shorter = [s.point for s in record.find("loss", role="fit") if s.point["tokens"] < max(TINY.tokens)]
    assert ends == {(p["parameters"], p["tokens"], p["flops"], p["steps"]) for p in shorter}
    assert len(stopped) == 6 and {p["schedule_tokens"] for p in stopped} == {2048}


def test_an_interrupted_run_goes_on_where_it_stopped(
    tiny: None, record: Record, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, calls = scaling_laws.Session.train, []

    def stops(self: scaling_laws.Session, point: dict[str, Any], *more: Any) -> Any:
        calls.append(point["case"])
        if len(calls) == 4:
            raise KeyboardInterrupt
        return train(self, point, *more)

    monkeypatch.setattr(scaling_laws.Session, "train", stops)

    def run() -> Record:
        return runner.run(scaling_laws.EXPERIMENT, scale="smoke", device="cpu", out=tmp_path, report=lambda _: None)[0]

    with pytest.raises(EfflabError, match="stopped after 3"):
        run()
    resumed = run()
    assert len(calls) == len(record.spec["cases"]) + 1
    losses = {s.point["case"]: s.values for s in record.find("loss")}
    assert {s.point["case"]: s.values for s in resumed.find("loss")} == losses


def test_names_are_short_and_exact_enough() -> None:
    assert [scaling_laws.brief(x) for x in (12, 999, 1000, 5328, 40_960, 99_499, 163_840, 999_600, 4_194_304)] == [
        "12", "999", "1k", "5.3k", "41k", "99.5k", "164k", "1M", "4.2M",
    ]  # fmt: skip


@pytest.mark.gpu
def test_a_smoke_run_on_a_gpu(tmp_path: Any) -> None:
    found, _ = runner.run(scaling_laws.EXPERIMENT, scale="smoke", device="cuda", out=tmp_path, report=lambda _: None)
    assert all(s.status == "ok" for s in found.samples)
    ampere = torch.version.hip is not None or torch.cuda.get_device_capability() >= (8, 0)
    assert found.spec["precision"] == ("bf16 autocast" if ampere else "fp32")
