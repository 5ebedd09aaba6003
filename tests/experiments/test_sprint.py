"""The throughput sprint: what its script computes, what it accepts as a mend, and what its record holds."""

from __future__ import annotations

import copy
import itertools
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from efflab import notebooks, records
from efflab.errors import EfflabError
from efflab.experiments import ablation, sprint
from efflab.measure import timer
from efflab.records import LabBook, Record

SIZE = sprint.SIZES["smoke"]
CPU = torch.device("cpu")


# Mends, as the exercise notebook's solution has them.


def mended_batches(text, batch, context, steps, seed):
    draw = random.Random(seed)
    number = {c: i for i, c in enumerate(sorted(set(text)))}
    tokens = torch.tensor([number[c] for c in text])
    for _ in range(steps):
        starts = torch.tensor([draw.randrange(len(text) - context) for _ in range(batch)])
        window = tokens[starts[:, None] + torch.arange(context + 1)]
        yield window[:, :-1], window[:, 1:]


def mended_layer(x, w, heads, *, causal=True, approximate="none", eps=1e-5, shift=True):
    b, s, h = x.shape
    y = F.layer_norm(x, (h,), w["scale1"], w["shift1"] if shift else None, eps) @ w["qkv"]
    q, k, v = y.view(b, s, 3, heads, h // heads).permute(2, 0, 3, 1, 4)
    mixed = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
    x = x + mixed.transpose(1, 2).reshape(b, s, h) @ w["out"]
    inner = F.layer_norm(x, (h,), w["scale2"], w["shift2"], eps) @ w["up"]
    return x + F.gelu(inner, approximate=approximate) @ w["down"]


def mended_gradients(loss_of, tokens, targets):
    loss = loss_of(tokens, targets)
    loss.backward()
    return loss.item()


MENDS = {"data": mended_batches, "compute": mended_layer, "memory": mended_gradients}


def measure(mends, tmp_path: Path, **options) -> tuple[Record, list[str]]:
    said: list[str] = []
    record = sprint.measure(
        mends, scale="smoke", device="cpu", labbook=LabBook(tmp_path / "book"), report=said.append, **options
    )
    return record, said


# The script


def test_batches_are_windows_of_the_text_with_the_next_character_as_target():
    text = sprint.text("smoke")
    letters = sorted(set(text))
    found = list(sprint.batches(text, 3, 8, 5, seed=1))
    assert len(found) == 5
    for tokens, targets in found:
        assert tokens.shape == targets.shape == (3, 8)
        for row, following in zip(tokens.tolist(), targets.tolist(), strict=True):
            window = "".join(letters[i] for i in row) + letters[following[-1]]
            assert window in text and row[1:] == following[:-1]
    again = list(sprint.batches(text, 3, 8, 5, seed=2))
    assert any(not torch.equal(a, b) for (a, _), (b, _) in zip(found, again, strict=True))


def test_the_layer_is_that_of_torchs_transformer():
    """The hand-written layer against torch's own module with the same weights."""
    torch.manual_seed(0)
    h, heads, length = 16, 4, 10
    theirs = torch.nn.TransformerEncoderLayer(
        h, heads, 4 * h, dropout=0.0, activation="gelu", batch_first=True, norm_first=True, bias=True
    ).double()
    with torch.no_grad():
        for p in (theirs.self_attn.in_proj_bias, theirs.self_attn.out_proj.bias, theirs.linear1.bias,
                  theirs.linear2.bias):  # fmt: skip
            p.zero_()
        for norm in (theirs.norm1, theirs.norm2):
            norm.weight.normal_()
            norm.bias.normal_()
    w = {
        "scale1": theirs.norm1.weight, "shift1": theirs.norm1.bias, "qkv": theirs.self_attn.in_proj_weight.t(),
        "out": theirs.self_attn.out_proj.weight.t(), "scale2": theirs.norm2.weight, "shift2": theirs.norm2.bias,
        "up": theirs.linear1.weight.t(), "down": theirs.linear2.weight.t(),
    }  # fmt: skip
    x = torch.randn(2, length, h, dtype=torch.float64)
    mask = torch.nn.Transformer.generate_square_subsequent_mask(length, dtype=torch.float64)
    with torch.no_grad():
        expected = theirs(x, src_mask=mask, is_causal=True)
        torch.testing.assert_close(sprint.layer(x, w, heads), expected, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(mended_layer(x, w, heads), expected, rtol=1e-9, atol=1e-9)


def test_gradients_are_those_of_the_whole_batch():
    text = sprint.text("smoke")
    tokens, targets = next(sprint.batches(text, 4, 16, 1, seed=1))
    found = []
    for gradients in (sprint.gradients, mended_gradients):
        parameters, loss_of = sprint.model(SIZE, len(set(text)), CPU, sprint.layer)
        loss = gradients(loss_of, tokens, targets)
        found.append((loss, torch.cat([p.grad.flatten() for p in parameters])))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-4, atol=1e-7)


def test_the_script_learns():
    size = SIZE | {"steps": 60}
    losses = sprint.train(sprint.text("smoke"), size, CPU, mended_batches, mended_layer, mended_gradients)
    assert len(losses) == 60 and losses[-1] < losses[0] - 0.5


def test_the_notebook_shows_the_script_that_is_measured(root: Path):
    notebook = notebooks.read(root / "notebooks/source/amp.md")
    assert sprint.source() in [c.source.strip() for c in notebook.cells if c.cell_type == "code"]


def test_the_fingerprint_is_of_the_script(monkeypatch: pytest.MonkeyPatch):
    before = sprint.fingerprint()
    assert before == sprint.fingerprint()
    monkeypatch.setattr(sprint, "FUNCTIONS", (mended_batches, *sprint.FUNCTIONS[1:]))
    assert sprint.fingerprint() != before


# The measurement


def test_a_record_holds_a_whole_ablation(tmp_path: Path):
    threads = torch.get_num_threads()
    record, said = measure(MENDS, tmp_path)
    assert torch.get_num_threads() == threads
    assert record.topic == "sprint" and record.scale == "smoke" and record.finished
    assert LabBook(tmp_path / "book").records() == [record]
    assert records.load_record(tmp_path / "book/records" / f"{record.id}.json") == record
    for case, parts in ablation.CASES.items():
        by_metric = {s.metric: s for s in record.samples if s.point["case"] == case}
        assert set(by_metric) == {"time", "begun", "loss", "gradient_error"}
        assert by_metric["time"].point["mends"] == ",".join(parts)
        assert len(by_metric["time"].values) == len(by_metric["begun"].values) == SIZE["rounds"]
        assert by_metric["time"].timing.warmup == SIZE["steps"]
        assert len(by_metric["loss"].values) == SIZE["steps"]
        assert by_metric["gradient_error"].values[0] < 1e-5
        assert by_metric["loss"].values == pytest.approx(record.find("loss", case="baseline")[0].values, rel=1e-5)
    assert record.find("gradient_error", case="baseline")[0].values == [0.0]
    assert list(ablation.ablation(record)) == list(ablation.CASES)
    assert said[-1] == ablation.table(record) and "Together the mends make a step" in said[-1]


def test_the_cases_take_turns(tmp_path: Path):
    record, _ = measure(MENDS, tmp_path)
    begun = {s.point["case"]: s.values for s in record.find("begun")}
    for turn in range(SIZE["rounds"] - 1):
        assert max(v[turn] for v in begun.values()) < min(v[turn + 1] for v in begun.values())
    order = [sorted(begun, key=lambda c, t=turn: begun[c][t]) for turn in range(SIZE["rounds"])]
    assert order[0][0] != order[1][0], "no case is always the first of its round"
    steps = {s.point["case"]: s.values for s in record.find("time")}
    runs = sorted((b, b + SIZE["steps"] * t) for c in begun for b, t in zip(begun[c], steps[c], strict=True))
    for (_, end), (start, _) in itertools.pairwise(runs):
        assert end <= start + 1e-6


def test_the_device_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """On a GPU a run ends when the device is done. A clock that advances while one waits stands for it."""

    class Clock(timer.CPUClock):
        def __init__(self) -> None:
            self.time, self.waited = 0.0, 0

        def synchronize(self) -> None:
            self.waited += 1
            self.time += 1.0

        def now(self) -> float:
            return self.time

    clock = Clock()
    monkeypatch.setattr(timer, "clock_for", lambda device: clock)
    record, _ = measure(MENDS, tmp_path)
    assert clock.waited == 2 * len(ablation.CASES) * (SIZE["rounds"] + 1)
    assert {v for s in record.find("time") for v in s.values} == {1.0 / SIZE["steps"]}


def unwritten(*_: Any, **__: Any) -> Any:
    raise NotImplementedError("Write it.")


def test_mends_that_are_not_written_are_left_out(tmp_path: Path):
    record, said = measure({"data": mended_batches, "compute": unwritten, "memory": unwritten}, tmp_path)
    assert said[:2] == ["compute: not written yet", "memory: not written yet"]
    assert list(ablation.ablation(record)) == ["baseline", "data"]
    assert "compute, memory, all are missing" in said[-1]
    record, _ = measure({"memory": mended_gradients}, tmp_path)
    assert list(ablation.ablation(record)) == ["baseline", "memory"]


def test_without_any_mend_nothing_is_measured(tmp_path: Path):
    for mends in ({}, dict.fromkeys(MENDS, unwritten)):
        with pytest.raises(NotImplementedError, match="No mend is written yet"):
            measure(mends, tmp_path)
    assert not (tmp_path / "book").exists()


def test_bf16_under_autocast_is_within_the_tolerance(tmp_path: Path):
    def narrow(x, w, heads):
        with torch.autocast(x.device.type, torch.bfloat16):
            return mended_layer(x, w, heads)

    record, _ = measure({"compute": narrow}, tmp_path)
    off = record.find("gradient_error", case="compute")[0].values[0]
    assert 1e-4 < off < sprint.GRADIENT_TOLERANCE / 2


# What is no mend


def shifted(*arguments, **named):
    for tokens, targets in mended_batches(*arguments, **named):
        yield targets, tokens


def other_seed(text, batch, context, steps, seed):
    yield from mended_batches(text, batch, context, steps, seed + 1)


def same_each_time(text, batch, context, steps, seed):
    yield from mended_batches(text, batch, context, steps, 1)


def too_few(*arguments, **named):
    yield from list(mended_batches(*arguments, **named))[:-1]


def endless(text, batch, context, steps, seed):
    yield from mended_batches(text, batch, context, 10**9, seed)


def as_lists(*arguments, **named):
    for tokens, targets in mended_batches(*arguments, **named):
        yield tokens.tolist(), targets.tolist()


def as_floats(*arguments, **named):
    for tokens, targets in mended_batches(*arguments, **named):
        yield tokens.float(), targets


def windows_alone(*arguments, **named):
    for tokens, _ in mended_batches(*arguments, **named):
        yield tokens


def by_first_appearance(text, batch, context, steps, seed):
    number = {c: i for i, c in enumerate(dict.fromkeys(text))}
    order = sorted(set(text))
    for tokens, targets in mended_batches(text, batch, context, steps, seed):
        yield tuple(torch.tensor([[number[order[i]] for i in row] for row in t.tolist()]) for t in (tokens, targets))


def half_the_batch(loss_of, tokens, targets):
    return mended_gradients(loss_of, tokens[::2], targets[::2])


def undivided(loss_of, tokens, targets):
    total = 0.0
    for row in range(len(tokens)):
        total += mended_gradients(loss_of, tokens[row : row + 1], targets[row : row + 1])
    return total / len(tokens)


def no_backward(loss_of, tokens, targets):
    return loss_of(tokens, targets).item()


def no_return(loss_of, tokens, targets):
    mended_gradients(loss_of, tokens, targets)


def other_loss(loss_of, tokens, targets):
    return 2 * mended_gradients(loss_of, tokens, targets)


@pytest.mark.parametrize(
    ("mends", "said"),
    [
        ({"date": mended_batches}, r"mends: 'date' is not known\. Did you mean 'data'"),
        ([mended_batches], "a dictionary from data, compute, memory"),
        ({"data": 3}, "mend 'data': pass the function itself"),
        (
            {"data": lambda text: text},
            r"must take the parameters \(text, batch, context, steps, seed\) as batches does",
        ),
        ({"data": shifted}, r"gives other tokens than the script: in step 0, row 0"),
        ({"data": other_seed}, "Draw the places in the same order"),
        ({"data": same_each_time}, "gives other tokens than the script"),
        ({"data": too_few}, "gives 1 batches in 2 steps"),
        ({"data": endless}, "gives more batches in 2 steps"),
        ({"data": as_lists}, "its tokens are no tensor but list"),
        ({"data": as_floats}, r"its tokens are \(4, 16\) of torch.float32, the script's \(4, 16\) of torch.int64"),
        ({"data": windows_alone}, "each batch is a pair"),
        ({"data": by_first_appearance}, "number the characters as the script does"),
        ({"data": lambda text, batch, context, steps, seed: None}, "Is a `yield` missing"),
        ({"compute": lambda x, w, heads: mended_layer(x, w, heads, causal=False)}, "Is the attention causal"),
        ({"compute": lambda x, w, heads: mended_layer(x, w, heads, shift=False)}, "have their scale and shift"),
        ({"compute": lambda x, w, heads: mended_layer(x, w, heads) - x}, "are both sums with x there"),
        ({"compute": lambda x, w, heads: x}, "gives another gradient"),
        ({"compute": lambda x, w, heads: x[0]}, "raised"),
        ({"compute": lambda x, w, heads: mended_layer(x.detach(), w, heads)}, "gives another gradient"),
        ({"memory": half_the_batch}, "mean over all sequences"),
        ({"memory": undivided}, "gives another gradient than the script: the relative difference is 3"),
        ({"memory": no_backward}, "does backward"),
        ({"memory": no_return}, "returns None; the mean loss is expected"),
        ({"memory": other_loss}, "the loss is .* the script's is"),
    ],
    ids=lambda x: None if isinstance(x, str) else "-".join(x) if isinstance(x, dict) else "list",
)
def test_what_does_something_else_is_refused_before_anything_is_timed(mends, said, tmp_path: Path):
    with pytest.raises(EfflabError, match=said):
        measure(mends, tmp_path)
    assert not (tmp_path / "book").exists()


def test_an_error_of_a_mend_is_told_with_its_line(tmp_path: Path):
    def broken(x, w, heads):
        return x @ w["missing"]

    with pytest.raises(
        EfflabError, match=r'mend \'compute\' raised KeyError: .*in line \d+: return x @ w\["missing"\]'
    ):
        measure({"compute": broken}, tmp_path)


def test_a_gelu_by_tanh_is_near_enough(tmp_path: Path):
    """An approximation far below the tolerance changes nothing that a training would notice."""
    measure({"compute": lambda x, w, heads: mended_layer(x, w, heads, approximate="tanh")}, tmp_path)


def test_a_layer_that_is_off_by_a_thousandth_is_another_one(tmp_path: Path):
    """BF16 may be further away; what was computed in FP32 may not."""
    with pytest.raises(EfflabError, match=r"gives another gradient .* for rounding in FP32"):
        measure({"compute": lambda x, w, heads: 1.002 * mended_layer(x, w, heads)}, tmp_path)


def test_batches_kept_from_another_text_are_noticed(tmp_path: Path):
    kept = {}

    def cached(text, batch, context, steps, seed):
        if seed not in kept:
            kept[seed] = list(sprint.batches(text, batch, context, steps, seed))
        yield from kept[seed]

    with pytest.raises(EfflabError, match="mend 'data' gives other tokens"):
        measure({"data": cached}, tmp_path)


def test_what_a_mend_leaves_behind_is_noticed(tmp_path: Path):
    """A mend that is right when it is checked, and trains otherwise in a later run."""
    calls = itertools.count()

    def later(loss_of, tokens, targets):
        # One call to check it, then those of the two cases' first runs.
        if next(calls) > 2 * SIZE["steps"] + 1:
            return 0.5 * mended_gradients(loss_of, tokens, targets)
        return mended_gradients(loss_of, tokens, targets)

    with pytest.raises(EfflabError, match="a later run has other losses than the script"):
        measure({"memory": later}, tmp_path)


def test_a_scale_that_does_not_exist_is_named(tmp_path: Path):
    with pytest.raises(EfflabError, match="scale: 'huge' is not known"):
        sprint.measure(MENDS, scale="huge", device="cpu", labbook=LabBook(tmp_path))


# Reading


def test_a_record_of_another_topic_is_refused(tmp_path: Path):
    record, _ = measure({"memory": mended_gradients}, tmp_path)
    other = record.model_copy(update={"topic": "amp"})
    with pytest.raises(EfflabError, match="its topic is 'amp'; one of 'sprint'"):
        ablation.ablation(other)


@pytest.mark.parametrize("size", [None, {}, [], {"batch": "8", "context": None}])
def test_a_record_without_its_size_still_shows_its_times(size, tmp_path: Path):
    record, _ = measure(MENDS, tmp_path)
    data = copy.deepcopy(record.model_dump(by_alias=True))
    data["spec"]["size"] = size
    rows = ablation.rows(Record.model_validate(data))
    assert [r[0] for r in rows] == list(ablation.CASES) and all(r[1] and not r[2] for r in rows)


def test_the_mends_of_the_notebook_are_right(root: Path, tmp_path: Path):
    """The notebook's solution, as its cell has it."""
    cells = [c.source for c in notebooks.read(root / "notebooks/source/amp.md").cells]
    space: dict[str, Any] = {"torch": torch, "F": F, "random": random, "checkpoint": checkpoint}
    exec(next(c for c in cells if "def mended_batches" in c), space)
    record, _ = measure(
        {"data": space["mended_batches"], "compute": space["mended_layer"], "memory": space["mended_gradients"]},
        tmp_path,
    )
    assert list(ablation.ablation(record)) == list(ablation.CASES)


@pytest.mark.parametrize(
    ("wide", "longest", "rounds", "stop"),
    [(True, 60.0, 4, "repeat limit"), (True, 0.0, 2, "time limit"), (False, 60.0, 2, "stable")],
)
def test_rounds_that_scatter_are_followed_by_more(
    wide, longest, rounds, stop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(sprint, "LONGEST", longest)
    monkeypatch.setitem(sprint.SIZES, "smoke", SIZE | {"most_rounds": 4})
    monkeypatch.setattr(sprint, "_wide", lambda found: wide)
    record, _ = measure({"memory": mended_gradients}, tmp_path)
    for sample in record.find("time"):
        assert len(sample.values) == rounds and sample.timing.stop == stop


def test_what_is_wide():
    """By the intervals' ends, which for six rounds are the extremes."""

    def found(values):
        return {"baseline": [(0.0, 1.0)] * 6, "data": [(0.0, 1 / v) for v in values]}

    assert not sprint._wide(found([2.0] * 6))
    assert not sprint._wide(found([1.75, 1.9, 2.0, 2.0, 2.1, 2.3]))
    assert sprint._wide(found([1.65, 1.9, 2.0, 2.0, 2.1, 2.35]))
