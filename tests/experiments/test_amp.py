"""The lab of mixed precision: torch.amp's documented behaviour, numpy's FP16, counts by hand and an own loss scaler."""

from __future__ import annotations

import contextlib
import math
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from efflab.experiments import amp, runner
from efflab.experiments.decoder import Decoder, Variant
from efflab.measure import device as devices
from efflab.measure import timer
from efflab.records import Record, load_record
from tests.experiments.machine import environment

CPU = torch.device("cpu")
CUDA = torch.device("cuda", 0)
SIZE = amp.STEPS["smoke"]
# Why a case may be missing; any other failure is one of this program.
KNOWN = re.compile(r"TF32 is a mode of |tf32 products need |TF32 is not known of |torch \S+ (has no autocast|refuses) ")
NARROW = {"bf16": torch.bfloat16, "fp16": torch.float16}


def plan(scale: str, device: torch.device = CPU, resumed: Record | None = None) -> runner.Plan:
    return amp.EXPERIMENT.plan(scale, device, environment(kind=device.type), resumed)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> Record:
    """A smoke run on this CPU, without a warning from torch or Python."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*Profiler clears events")  # torch 2.11 says so of every profile
        found, path = runner.run(
            amp.EXPERIMENT, scale="smoke", device="cpu", out=tmp_path_factory.mktemp("run"), report=lambda _: None
        )
    assert load_record(path) == found  # every number is finite: the schema takes no other
    return found


@pytest.fixture
def session() -> amp.Session:
    return amp.Session("smoke", CPU, [])


def values(record: Record, case: str, metric: str) -> list[float]:
    (sample,) = record.find(metric, case=case)
    assert sample.status == "ok"
    return sample.values


# The plan


@pytest.mark.parametrize(("scale", "device"), [("smoke", CPU), ("smoke", CUDA), ("cpu", CPU), ("gpu", CUDA)])
def test_every_case_has_a_name_and_a_result_of_its_own(scale: str, device: torch.device) -> None:
    made = plan(scale, device)
    assert len({c.name for c in made.cases}) == len(made.cases)
    assert made.spec["cases"] == [c.name for c in made.cases]
    results = {
        "memory": ("memory", "B"),
        "equivalence": ("error", ""),
        "curve": ("loss", "nats"),
        "scale": ("scale", ""),
    }
    for case in made.cases:
        expected = ("matmul_time", "s") if case.name == "share-fp32" else ("time", "s")
        expected = ("token_weight", "") if case.name == "token-weight" else results.get(case.point["role"], expected)
        assert (case.metric, case.unit) == expected
    roles = [c.point["role"] for c in made.cases]
    assert roles.index("step") > max(i for i, role in enumerate(roles) if role == "calibration")
    assert {c.point["method"] for c in made.cases if c.point["role"] == "memory"} == {
        "counted" if device is CPU else "allocator"
    }


def test_a_plan_is_the_same_every_time() -> None:
    first, second = plan("cpu"), plan("cpu")
    assert first.spec == second.spec
    assert [c.point for c in first.cases] == [c.point for c in second.cases]
    assert set(first.spec["autocast"]) == set(first.spec["onednn"]) == {"bf16", "fp16"}
    on_gpu = plan("gpu", CUDA).spec
    assert on_gpu["threads"] is on_gpu["instructions"] is on_gpu["autocast"] is on_gpu["onednn"] is None


@pytest.mark.parametrize("scale", ["smoke", "cpu", "gpu"])
def test_a_loss_weight_is_a_power_of_two_and_heads_fill_the_width(scale: str) -> None:
    made = plan(scale, CUDA if scale == "gpu" else CPU)
    assert math.frexp(made.spec["loss_weight"])[0] == 0.5
    for size in (made.spec["decoder"], made.spec["trained"]):
        assert size["query_heads"] * size["head_dim"] == size["hidden_size"]
    steps = made.spec["checked_steps"]
    assert steps[0] == 0
    assert steps[-1] == made.spec["steps"] - 1
    assert len(steps) == amp.CHECKS == len(set(steps))


# What is not there


def test_tf32_is_not_a_cpus() -> None:
    with pytest.raises(runner.Unavailable, match=KNOWN):
        amp.available("tf32", CPU)


@pytest.mark.parametrize(("capability", "refused"), [((7, 5), True), ((8, 0), False)])
def test_tf32_needs_a_gpu_that_has_it(
    capability: tuple[int, int], refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(torch.version, "hip", None)
    with pytest.raises(runner.Unavailable, match=KNOWN) if refused else contextlib.nullcontext():
        amp.available("tf32", CUDA)


def test_a_precision_that_autocast_switches_off_or_refuses_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    def off(*_: Any, **__: Any) -> Any:
        warnings.warn("the target dtype is not supported. Disabling autocast.", stacklevel=1)
        return contextlib.nullcontext()

    monkeypatch.setattr(torch.amp, "autocast", off)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for precision in ("bf16", "fp16"):
            with pytest.raises(runner.Unavailable, match=f"has no autocast to {precision} on this device"):
                amp.available(precision, CPU)
    amp.available("fp32", CPU)
    assert plan("smoke").spec["autocast"] == {"bf16": False, "fp16": False}

    def refuse(*_: Any, **__: Any) -> Any:
        raise RuntimeError("not for 'this'")

    monkeypatch.setattr(torch.amp, "autocast", refuse)
    with pytest.raises(runner.Unavailable, match="refuses fp16 here: not for 'this'"):
        amp.available("fp16", CPU)

    def full(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(torch.amp, "autocast", full)
    with pytest.raises(torch.OutOfMemoryError):
        amp.available("fp16", CPU)


def test_without_an_end_there_is_no_last_scale(session: amp.Session) -> None:
    with pytest.raises(runner.Unavailable, match="gave no loss scale"):
        list(session.last_scale({"case": "scale-fp16"}))


def test_a_text_that_is_too_short_is_unavailable(session: amp.Session, monkeypatch: pytest.MonkeyPatch) -> None:
    short = SimpleNamespace(training=tuple(range(90)) * 10, vocabulary=90)
    monkeypatch.setattr(amp.Session, "text", short)
    with pytest.raises(runner.Unavailable, match=r"a run needs 128 sequences and the text of this Python has 28"):
        _ = session.batches


# Autocast


@pytest.mark.parametrize("narrow", [torch.bfloat16, torch.float16])
def test_autocast_on_a_cpu_gives_the_dtypes_that_pytorch_documents(narrow: torch.dtype) -> None:
    """Its lists for the CPU: products in 16 bits, some losses in FP32, everything else as its inputs are."""
    f, x, y = torch.nn.functional, torch.randn(4, 4), torch.randn(2, 4, 4)
    with torch.amp.autocast("cpu", narrow):
        for made in (x @ x, torch.mm(x, x), torch.addmm(x, x, x), torch.bmm(y, y), f.linear(x, x),
                     f.scaled_dot_product_attention(y, y, y)):  # fmt: skip
            assert made.dtype == narrow
        low = x.to(narrow)
        assert f.mse_loss(low, low).dtype == torch.float32
        for made in (torch.softmax(low, -1), f.gelu(low), f.layer_norm(low, (4,)), low + low):
            assert made.dtype == narrow
        for made in (torch.softmax(x, -1), f.layer_norm(x, (4,)), x + low):  # the widest input's
            assert made.dtype == torch.float32


@pytest.mark.gpu
@pytest.mark.parametrize("narrow", [torch.bfloat16, torch.float16])
def test_autocast_on_a_gpu_gives_the_dtypes_that_pytorch_documents(narrow: torch.dtype) -> None:
    f, x = torch.nn.functional, torch.randn(4, 4, device="cuda")
    low = x.to(narrow)
    with torch.amp.autocast("cuda", narrow):
        for made in (x @ x, f.linear(x, x), torch.addmm(x, x, x)):
            assert made.dtype == narrow
        for made in (torch.softmax(low, -1), f.layer_norm(low, (4,)), f.mse_loss(low, low), torch.exp(low)):
            assert made.dtype == torch.float32
        assert f.gelu(low).dtype == narrow
        assert (x + low).dtype == torch.float32


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_weights_gradients_and_optimizer_stay_in_fp32(precision: str, session: amp.Session) -> None:
    training = session.training(precision)
    loss = training.forward()
    assert loss.dtype == torch.float32  # the logits were made wide before the cross-entropy
    training.backward(loss)
    assert all(p.dtype == p.grad.dtype == torch.float32 for p in training.model.parameters)
    training.update()
    states = [v for s in training.optimizer.state.values() for v in s.values()]
    assert states
    assert all(v.dtype == torch.float32 for v in states)
    assert training.scaler.is_enabled() == (precision == "fp16")


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_every_product_of_a_step_is_in_16_bits_and_no_layer_norm_is(precision: str, session: amp.Session) -> None:
    found = session.operations(precision)
    for operation in found:
        dtypes = {like.dtype for like in operation.tensors}
        if operation.product:
            assert dtypes == {NARROW[precision]}, operation
        if "layer_norm" in operation.name:  # the residual stream is wide: the embedding's sum is
            assert dtypes == {torch.float32}, operation
    assert sum(o.casts for o in found) > 0
    assert not any(o.casts for o in session.operations("fp32"))


# What a step consists of


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_products_are_those_that_a_hand_counts(precision: str, session: amp.Session) -> None:
    products = [o for o in session.operations(precision) if o.product]
    layers, h, f = SIZE["layers"], SIZE["hidden_size"], SIZE["intermediate_size"]
    rows = SIZE["sequence_length"] * SIZE["microbatch"]
    # Four linear layers and two products of attention a layer, the logits; each once forwards and twice backwards.
    assert len(products) == 3 * (6 * layers + 1)
    linear = layers * (3 * h * h + h * h + 2 * h * f) + SIZE["vocabulary"] * h
    scores = layers * 2 * rows * SIZE["sequence_length"] * h
    assert sum(o.flops for o in products) == 3 * 2 * (linear * rows + scores)
    assert {o.name for o in products} == {"aten::mm", "aten::addmm", "aten::bmm"}
    for operation in products:
        *batch, m, k = operation.tensors[-2].shape
        n = operation.tensors[-1].shape[-1]
        assert operation.flops == 2 * math.prod(batch) * m * n * k


def test_a_step_runs_the_operators_that_its_profile_shows(session: amp.Session) -> None:
    """The dispatcher's list against the profiler's own: as many calls of each product."""
    training = session.training("bf16")
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiled:
        training.backward(training.forward())
    seen = {e.key: e.count for e in profiled.key_averages()}
    for name in ("aten::mm", "aten::addmm", "aten::bmm", "aten::native_layer_norm", "aten::_softmax", "aten::gelu"):
        assert seen[name] == sum(o.name == name for o in session.operations("bf16")), name


def test_a_replay_calls_the_same_on_numbers_of_the_same_shapes(session: amp.Session) -> None:
    found = session.operations("fp16")
    again = amp.replay(found, CPU)
    repeated = [o for o in amp.operations(again) if o.name != "aten::detach"]  # autograd's own, around some
    expected = [o for o in found if o.name != "aten::detach"]
    assert [(o.name, o.flops, o.tensors) for o in repeated] == [(o.name, o.flops, o.tensors) for o in expected]
    assert torch.is_grad_enabled()


def test_operands_are_random_and_keep_their_strides() -> None:
    a, b = torch.randn(3, 5).t(), torch.randn(3, 1).expand(3, 4)
    (operation,) = [o for o in amp.operations(lambda: a @ b) if o.product]
    seen: list[torch.Tensor] = []

    def function(*args: Any) -> None:
        seen.extend(args)

    amp.replay([amp.Operation(function, operation.args, operation.kwargs, operation.flops)], CPU)()
    assert [(t.shape, t.stride()) for t in seen] == [(t.shape, t.stride()) for t in (a, b)]
    assert all(bool((t != 0).all()) for t in seen)
    assert not torch.equal(seen[0], a)


def test_indices_are_kept_as_they_were() -> None:
    index = torch.tensor([2, 0, 1])
    table = torch.randn(3, 4, requires_grad=True)

    def run() -> None:
        torch.nn.functional.embedding(index, table).sum().backward()

    amp.replay(amp.operations(run), CPU)()  # random indices would be out of range
    found = [x for o in amp.operations(run) for x in o.args if isinstance(x, torch.Tensor)]
    assert found
    assert all(torch.equal(x, index) for x in found)


def test_a_profile_tells_products_from_the_rest() -> None:
    a, wide = torch.randn(256, 256), torch.randn(2**20)

    def step() -> None:
        torch.mm(a, a)
        torch.nn.functional.gelu(wide)

    found = amp.profile(step, {"aten::mm"}, timer.CPUClock(), CPU)
    assert 0 < found["matmul_time"] < found["step_time"]
    assert 0 < found["other_time"] < found["step_time"]
    nothing = amp.profile(step, set(), timer.CPUClock(), CPU)
    assert nothing["matmul_time"] == 0
    products = amp.profile(lambda: torch.mm(a, a), {"aten::mm"}, timer.CPUClock(), CPU)
    assert products["other_time"] <= 0.5 * products["step_time"]


def test_on_a_gpu_kernels_count_once_and_annotations_not_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = torch.autograd.DeviceType

    def event(key: str, kind: Any, own: float, total: float, annotation: bool = False) -> SimpleNamespace:
        return SimpleNamespace(
            key=key,
            device_type=kind,
            self_device_time_total=own,
            device_time_total=total,
            is_user_annotation=annotation,
        )

    events = [
        event("aten::linear", kinds.CPU, 0, 30), event("aten::addmm", kinds.CPU, 30, 30),
        event("aten::gelu", kinds.CPU, 12, 12), event("sgemm", kinds.CUDA, 30, 30), event("gelu", kinds.CUDA, 12, 12),
        event("Optimizer.step#AdamW.step", kinds.CUDA, 99, 99, True),
    ]  # fmt: skip

    class Fake:
        def __init__(self, activities: list[Any]) -> None:
            assert torch.profiler.ProfilerActivity.CUDA in activities

        def __enter__(self) -> Fake:
            return self

        def __exit__(self, *_: Any) -> None:
            pass

        def key_averages(self) -> list[Any]:
            return events

    monkeypatch.setattr(torch.profiler, "profile", Fake)
    found = amp.profile(lambda: None, {"aten::mm", "aten::addmm"}, timer.CPUClock(), CUDA)
    assert found["matmul_time"] == pytest.approx(30e-6)
    assert found["other_time"] == pytest.approx(12e-6)


# A training step


def weights_after(steps: int, **options: Any) -> list[torch.Tensor]:
    training = amp.Training(SIZE, Variant("fp32", "math"), CPU, rate=1e-3, **options)
    for _ in range(steps):
        training.backward(training.forward(), options.get("loss_weight", 1.0))
        training.update()
    return training.model.parameters


@pytest.mark.parametrize("fused", [True, False])
def test_gradients_are_unscaled_before_they_are_clipped(fused: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A power of two changes no bit of an FP32 gradient, so a scaler may not change the weights either."""
    training = amp.Training(SIZE, Variant("fp32", "math"), CPU)
    training.backward(training.forward())
    norm = float(torch.nn.utils.clip_grad_norm_(training.model.parameters, math.inf))
    monkeypatch.setattr(amp, "CLIP", norm / 3)  # so that clipping does something
    plain = weights_after(3, fused=fused)
    scaled = weights_after(3, fused=fused, scale=2.0**16)
    assert all(torch.equal(a, b) for a, b in zip(plain, scaled, strict=True))
    monkeypatch.setattr(amp, "CLIP", math.inf)
    unclipped = weights_after(3, fused=fused)
    assert not all(torch.equal(a, b) for a, b in zip(plain, unclipped, strict=True))


def test_a_loss_weight_changes_no_weight_where_nothing_underflows() -> None:
    whole, weighted = weights_after(5), weights_after(5, loss_weight=2.0**-12)
    start = Decoder(SIZE, Variant("fp32", "math"), CPU).parameters
    moved = max(float((a - s).detach().abs().max()) for a, s in zip(whole, start, strict=True))
    # torch adds 1e-6 to the norm by which it clips, which a small norm feels.
    assert all(float((a - b).detach().abs().max()) < 0.02 * moved for a, b in zip(whole, weighted, strict=True))


def test_an_overflow_skips_the_step_and_halves_the_scale() -> None:
    training = amp.Training(SIZE, Variant("fp32", "math"), CPU, rate=1e-3, scale=2.0**10, growth_interval=2)
    before = [p.detach().clone() for p in training.model.parameters]
    training.backward(training.forward())
    training.model.parameters[3].grad[0] = math.inf
    training.update()
    assert training.scaler.get_scale() == 2.0**9
    assert all(torch.equal(a, b) for a, b in zip(training.model.parameters, before, strict=True))
    assert all(p.grad is None for p in training.model.parameters)
    for _ in range(2):
        training.step()
    assert training.scaler.get_scale() == 2.0**10
    assert not all(torch.equal(a, b) for a, b in zip(training.model.parameters, before, strict=True))


def test_microbatches_on_the_same_data_make_the_same_step() -> None:
    found = []
    for count in (1, 4):
        training = amp.Training(SIZE, Variant("fp32", "math"), CPU, rate=1e-3)
        training.step(count)
        found.append(training.model.parameters)
    for one, four in zip(*found, strict=True):
        torch.testing.assert_close(one, four, rtol=1e-4, atol=1e-5)


def test_the_scaler_is_made_for_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[Any, ...]] = []

    def scaler(device: str, **options: Any) -> SimpleNamespace:
        made.append((device, options["enabled"], options["init_scale"]))
        return SimpleNamespace()

    parameters = [torch.zeros(2, requires_grad=True)]
    monkeypatch.setattr(amp, "Decoder", lambda *_: SimpleNamespace(parameters=parameters))
    monkeypatch.setattr(torch.amp, "GradScaler", scaler)
    for device in (CPU, CUDA):
        amp.Training(SIZE, Variant("autocast-fp16", "math"), device, scale=8.0)
    amp.Training(SIZE, Variant("autocast", "math"), CUDA)
    assert made == [("cpu", True, 8.0), ("cuda", True, 8.0), ("cuda", False, 1.0)]


# Zeros and overflows


@given(st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=40), st.integers(-30, 10))
def test_the_share_of_zeros_is_numpys(numbers: list[float], exponent: int) -> None:
    reference = (np.array(numbers, dtype=np.float32) * np.float32(2.0**exponent)).astype(np.float32)
    if not reference.any():
        reference[0] = 1
    rounded = reference.astype(np.float16)
    expected = np.count_nonzero(reference[rounded == 0]) / np.count_nonzero(reference)
    half = len(numbers) // 2
    found = amp.zero_share(
        [torch.from_numpy(rounded[:half]), torch.from_numpy(rounded[half:])],
        [torch.from_numpy(reference[:half]), torch.from_numpy(reference[half:])],
    )
    assert found == pytest.approx(expected)


def gradient_at_the_start(session: amp.Session) -> list[np.ndarray]:
    """The FP32 gradient of the first batch's weighted loss, made with torch's own modules' functions."""
    model = Decoder(session.trained, Variant("fp32", "math"), CPU)
    model.tokens, model.targets = session.batches[0]
    loss = model.loss(model.run_layers(model.embed())) * session.loss_weight
    return [g.numpy() for g in torch.autograd.grad(loss, model.parameters)]


@pytest.mark.parametrize(("case", "scaled"), [("curve-fp16-unscaled", False), ("curve-fp16-scaled", True)])
def test_what_a_cast_flushes_is_what_numpys_fp16_flushes(
    case: str, scaled: bool, record: Record, session: amp.Session
) -> None:
    factor = np.float32(values(record, case, "scale")[0] if scaled else 1)
    gradient = np.concatenate([g.ravel() for g in gradient_at_the_start(session)])
    with np.errstate(over="ignore"):
        flushed = np.count_nonzero(gradient[(gradient * factor).astype(np.float16) == 0]) / np.count_nonzero(gradient)
    assert values(record, case, "cast_zero_gradients")[0] == pytest.approx(flushed, abs=1e-3)
    # What vanishes on the way comes on top.
    if not scaled:
        assert values(record, case, "zero_gradients")[0] >= flushed - 1e-3
        assert flushed > 0.01


def overflows(model: Decoder, factor: float) -> bool:
    with model.autocast:
        loss = model.loss(model.run_layers(model.embed()))
    gradients = torch.autograd.grad(loss * factor, model.parameters)
    return not all(bool(g.isfinite().all()) for g in gradients)


@pytest.mark.parametrize("start", [2.0**4, 2.0**40])
def test_the_largest_gradient_says_at_which_scale_a_step_overflows(start: float, session: amp.Session) -> None:
    model = Decoder(session.trained, Variant("autocast-fp16", "math"), CPU)
    model.tokens, model.targets = session.batches[0]
    weight = session.loss_weight
    largest = amp.largest_gradient(model, weight, start)
    limit = 65504 / largest
    # At another scale the numbers round otherwise; at half of the limit nothing overflows, at twice of it something.
    assert not overflows(model, weight * limit / 2)
    assert overflows(model, weight * limit * 2)
    assert all(p.grad is None for p in model.parameters)


def simulated(overflow: list[float], scale: float, interval: int) -> list[float]:
    """A loss scaler as PyTorch's documentation describes it."""
    history, since = [scale], 0
    for bad in overflow:
        if bad:
            scale, since = scale / 2, 0
        else:
            since += 1
            if since == interval:
                scale, since = scale * 2, 0
        history.append(scale)
    return history


def test_the_history_of_the_scale_is_that_of_the_overflows(record: Record) -> None:
    (sample,) = record.find("scale", case="curve-fp16-scaled")
    point = sample.point
    overflow = values(record, "curve-fp16-scaled", "overflow")
    assert len(overflow) == point["steps"]
    assert sample.values == simulated(overflow, point["initial_scale"], point["growth_interval"])
    assert (point["growth_factor"], point["backoff_factor"]) == (2, 0.5)
    assert values(record, "scale-fp16", "scale") == sample.values[-1:]
    grown = sum(b > a for a, b in zip(sample.values, sample.values[1:], strict=False))
    assert sum(overflow) >= 2
    assert grown >= 1
    assert overflow[0] == 1  # it begins too high


# Training runs


def test_runs_see_the_same_batches_from_the_same_start(record: Record, session: amp.Session) -> None:
    losses = {c: values(record, c, "loss") for c in record.spec["cases"] if c.startswith("curve-")}
    exact = losses["curve-fp32"]
    assert len(exact) == record.spec["steps"]
    for case, found in losses.items():
        assert found[0] == pytest.approx(exact[0], rel=5e-3), case
    assert exact[0] == pytest.approx(math.log(session.text.vocabulary), rel=0.05)  # nothing is known yet
    assert exact[-1] < 0.9 * exact[0]
    assert np.abs(np.array(losses["curve-bf16"]) - exact).max() < 0.1
    tokens = torch.cat([b[0] for b in session.batches])
    assert len(torch.unique(tokens, dim=0)) > 0.98 * len(tokens)  # no sequence is used twice


def test_without_a_scaler_gradients_vanish_and_with_one_they_do_not(record: Record) -> None:
    shares = {
        c: values(record, f"curve-{c}", "zero_gradients") for c in ("fp32", "bf16", "fp16-scaled", "fp16-unscaled")
    }
    assert all(len(s) == amp.CHECKS for s in shares.values())
    assert max(shares["fp32"]) == 0
    assert max(shares["bf16"]) < 0.01
    assert max(shares["fp16-scaled"]) < 0.01
    assert min(shares["fp16-unscaled"]) > 0.1
    tail = slice(-8, None)
    means = {c: np.mean(values(record, f"curve-{c}", "loss")[tail]) for c in shares}
    assert means["fp16-unscaled"] > means["fp16-scaled"]


def test_weights_in_fp16_diverge_with_adam(record: Record) -> None:
    losses = values(record, "curve-fp16-weights", "loss")
    (step,) = values(record, "curve-fp16-weights", "diverged_at")
    assert len(losses) == step < record.spec["steps"]
    # Why: the epsilon is zero in FP16, and so is the square of a small gradient.
    assert np.float16(amp.EPSILON) == 0
    assert np.float16(1e-4) ** 2 == 0
    assert not record.find("diverged_at", case="curve-fp32")


def test_a_loss_that_is_never_finite_fails(session: amp.Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(amp.Training, "forward", lambda _: torch.tensor(math.nan))
    (case,) = [c for c in plan("smoke").cases if c.name == "curve-fp32"]
    with pytest.raises(ValueError, match="not finite at the first step"):
        list(case.samples())


# Equivalence


def test_equal_microbatches_give_the_gradient_of_the_large_batch(record: Record) -> None:
    assert 0 < values(record, "equal-fp32", "error")[0] < 1e-5
    narrow, rounding = (values(record, "equal-bf16", m)[0] for m in ("error", "rounding"))
    assert 1e-4 < narrow < 2**-7
    assert 1e-4 < rounding < 2**-5


def test_losses_that_are_not_divided_make_a_gradient_k_times_too_large(record: Record) -> None:
    assert values(record, "undivided", "error")[0] == pytest.approx(amp.MICROBATCHES - 1, rel=1e-5)


def test_a_mean_of_means_weighs_tokens_by_their_microbatch(record: Record, session: amp.Session) -> None:
    tokens = values(record, "uneven", "tokens")
    size = session.trained
    assert tokens == [size["microbatch"] * size["sequence_length"] / 2**i for i in range(amp.MICROBATCHES)]
    expected = [sum(tokens) / (len(tokens) * t) for t in tokens]
    assert values(record, "uneven", "token_weight") == pytest.approx(expected, rel=1e-5)
    assert sum(w * t for w, t in zip(expected, tokens, strict=True)) == pytest.approx(sum(tokens))
    (least,) = record.find("token_weight", case="token-weight")
    assert least.values == values(record, "uneven", "token_weight")[-1:]
    assert (least.point["tokens"], least.point["total_tokens"]) == (min(tokens), sum(tokens))
    # The error follows from the gradients' inner products: a difference of two weighted sums of four vectors.
    k = len(tokens)
    gram = np.array(values(record, "uneven", "inner_product")).reshape(k, k)
    right = np.array(tokens) / sum(tokens)
    wrong = np.full(k, 1 / k) - right
    error = math.sqrt(wrong @ gram @ wrong) / math.sqrt(right @ gram @ right)
    assert values(record, "uneven", "error")[0] == pytest.approx(error, rel=1e-4)
    assert np.array_equal(gram, gram.T)


def test_a_gradient_is_that_of_the_mean_over_the_tokens_that_count(session: amp.Session) -> None:
    """By another route: log-probabilities picked one by one, summed, and divided by their number."""
    tokens, targets = session.batches[0]
    targets = session.padded(targets, 2)
    assert int((targets >= 0).sum()) == targets.numel() // 4
    found = session.gradient("fp32", [(tokens, targets)], 1)
    model = Decoder(session.trained, Variant("fp32", "math"), CPU)
    model.tokens = tokens
    logs = torch.log_softmax(model.logits(model.run_layers(model.embed())), -1)
    rows, columns = (targets >= 0).nonzero(as_tuple=True)
    loss = -logs[rows, columns, targets[rows, columns]].sum() / len(rows)
    expected = torch.autograd.grad(loss, model.parameters)
    assert amp.difference(found, list(expected)) < 1e-5


def test_a_difference_is_numpys_norm_of_all_parameters_together() -> None:
    generator = torch.Generator().manual_seed(3)
    a, b = ([torch.randn(*s, generator=generator) for s in ((3, 4), (5,))] for _ in range(2))
    flat = [np.concatenate([t.numpy().ravel() for t in ts]).astype(float) for ts in (a, b)]
    expected = np.linalg.norm(flat[0] - flat[1]) / np.linalg.norm(flat[1])
    assert amp.difference(a, b) == pytest.approx(expected)
    assert amp.inner_products([a, b])[1] == pytest.approx(flat[0] @ flat[1])


# Memory


def test_memory_is_what_a_hand_counts(record: Record) -> None:
    layers, h, f = SIZE["layers"], SIZE["hidden_size"], SIZE["intermediate_size"]
    rows, length, heads = SIZE["sequence_length"] * SIZE["microbatch"], SIZE["sequence_length"], SIZE["query_heads"]
    # Recomputed: each layer keeps its input, which is in FP32 in every precision.
    for case in ("memory-fp32-recomputed", "memory-bf16-recomputed"):
        assert values(record, case, "memory") == [4 * layers * rows * h]
    # Per row: the norms' two inputs, statistics, and outputs, q, k, v, attention's output, the MLP's inner two.
    numbers = 2 * h + 2 * 2 + 2 * h + 3 * h + h + 2 * f
    scores = heads * length  # the softmax's output
    assert values(record, "memory-fp32", "memory") == [4 * layers * rows * (numbers + scores)]
    for precision in ("bf16", "fp16"):
        copies = values(record, f"memory-{precision}", "weight_copies")
        assert copies == [2 * layers * (4 * h * h + 2 * h * f)]
        # In FP32 stay the norms' inputs and statistics.
        wide = 4 * layers * rows * (2 * h + 2 * 2)
        narrow = 2 * layers * rows * (numbers + scores - 2 * h - 2 * 2)
        assert values(record, f"memory-{precision}", "memory") == [wide + narrow + copies[0]]
        assert values(record, f"memory-{precision}", "weights") == values(record, "memory-fp32", "weights")


# A run


def test_a_smoke_run_measures_every_case(record: Record) -> None:
    for case in record.spec["cases"]:
        found = [s for s in record.samples if s.point["case"] == case]
        assert found, case
        assert all(s.status == "ok" or KNOWN.match(s.message) for s in found), (case, found)
    assert not [s.point["case"] for s in record.samples if s.status != "ok"]
    assert not any("tf32" in c for c in record.spec["cases"]), "TF32 is not a CPU's"
    for sample in record.samples:
        assert all(math.isfinite(v) for v in sample.values)
        if sample.metric in ("time", "layers_time") and sample.status == "ok":
            assert sample.timing is not None
            assert sample.timing.warmup >= 1


def test_a_profile_fits_into_its_step(record: Record) -> None:
    cases = {s.point["case"] for s in record.samples if s.metric == "matmul_time"}
    assert cases == {"share-fp32", "step-bf16", "step-fp16"}
    for case in cases:
        for matmul, other, step in zip(
            *(values(record, case, m) for m in ("matmul_time", "other_time", "step_time")), strict=True
        ):
            assert 0 < matmul < step
            assert 0 < other < step
            assert matmul + other <= 1.01 * step
    assert values(record, "matmul-bf16", "flops") == values(record, "matmul-fp32", "flops")


def test_threads_are_as_before_also_after_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(2)
    (case,) = [c for c in plan("smoke").cases if c.name == "matmul-bf16"]
    seen: list[int] = []

    def refuse(*_: Any) -> None:
        seen.append(torch.get_num_threads())
        raise runner.Unavailable("not here")

    monkeypatch.setattr(amp, "available", refuse)
    with pytest.raises(runner.Unavailable):
        list(case.samples())
    assert seen == [amp.THREADS]
    assert torch.get_num_threads() == 2


class Short(amp.Amp):
    """A few cases of the experiment."""

    def plan(self, *args: Any) -> runner.Plan:
        made = super().plan(*args)
        wanted = ("equal-fp32", "curve-fp16-scaled", "undivided", "scale-fp16")
        made.cases = sorted((c for c in made.cases if c.name in wanted), key=lambda c: wanted.index(c.name))
        return made


def test_an_interrupted_run_continues_with_the_scale_that_it_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record: Record
) -> None:
    lines: list[str] = []

    def go() -> tuple[Record, Path]:
        return runner.run(Short(), scale="smoke", device="cpu", out=tmp_path, report=lines.append)

    held = amp.Session.equivalence

    def stopped(self: amp.Session, point: dict[str, Any]) -> Any:
        if point["case"] == "undivided":
            raise KeyboardInterrupt
        return held(self, point)

    monkeypatch.setattr(amp.Session, "equivalence", stopped)
    with pytest.raises(runner.Interrupted, match="stopped after 2 of 4 cases"):
        go()
    monkeypatch.setattr(amp.Session, "equivalence", held)
    found, _ = go()
    assert sum("kept from the earlier run" in line for line in lines) == 2
    (history,) = found.find("scale", case="curve-fp16-scaled")
    assert values(found, "scale-fp16", "scale") == history.values[-1:]
    assert history.values == values(record, "curve-fp16-scaled", "scale")  # and a run repeats itself


def test_running_out_of_memory_is_a_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(amp.Session, "gradient", full)
    found, _ = runner.run(Short(), scale="smoke", device="cpu", out=tmp_path, report=lambda _: None)
    assert {s.point["case"]: s.status for s in found.samples if s.metric == "error"} == {
        "equal-fp32": "oom", "undivided": "oom",
    }  # fmt: skip
    assert values(found, "scale-fp16", "scale")


@pytest.mark.gpu
def test_a_smoke_run_on_a_gpu(tmp_path: Path) -> None:
    record, _ = runner.run(amp.EXPERIMENT, scale="smoke", device="cuda", out=tmp_path, report=lambda _: None)
    for sample in record.samples:
        assert sample.status == "ok" or KNOWN.match(sample.message), sample
    history = values(record, "curve-fp16-scaled", "scale")
    (sample,) = record.find("scale", case="curve-fp16-scaled")
    overflow = values(record, "curve-fp16-scaled", "overflow")
    assert history == simulated(overflow, sample.point["initial_scale"], sample.point["growth_interval"])
    assert values(record, "undivided", "error")[0] == pytest.approx(3, rel=1e-3)
    assert not devices.missing_for("bf16", CUDA) or record.find("time", case="step-bf16")
