"""The precision lab's measurements: products against float64 by another route, bytes against a simulated allocator."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from efflab.experiments import decoder, precision, runner
from efflab.measure import device as devices
from efflab.measure import memory, timer
from efflab.records import Record, Sample, Timing, load_record
from tests.experiments.machine import environment

CPU = torch.device("cpu")
CUDA = torch.device("cuda", 0)
# Why a product may be missing; any other failure is one of this program.
KNOWN = re.compile(r"(fp8|tf32) products need compute capability |TF32 is not known of |torch \S+ has no ")


def plan(scale: str, device: torch.device = CPU, resumed: Record | None = None) -> runner.Plan:
    return precision.EXPERIMENT.plan(scale, device, environment(kind=device.type), resumed)


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> Record:
    """A smoke run on this CPU."""
    found, path = runner.run(
        precision.EXPERIMENT, scale="smoke", device="cpu", out=tmp_path_factory.mktemp("run"), report=lambda _: None
    )
    assert load_record(path) == found
    return found


# The plan


@pytest.mark.parametrize(("scale", "device"), [("smoke", CPU), ("smoke", CUDA), ("cpu", CPU), ("gpu", CUDA)])
def test_every_case_is_one_number_with_a_name_of_its_own(scale: str, device: torch.device) -> None:
    cases = plan(scale, device).cases
    assert len({c.name for c in cases}) == len(cases)
    for case in cases:
        role = case.point["role"]
        if role == "calibration":
            assert case.metric == ("error" if case.name.startswith("error-") else "time")
        else:
            assert (case.metric, case.unit) == {"product": ("time", "s"), "error": ("error", "")}.get(
                role, ("memory", "B")
            )


@pytest.mark.parametrize("device", [CPU, CUDA])
def test_each_dtype_has_three_sizes_to_predict_and_a_larger_one_that_calibrates(device: torch.device) -> None:
    points = [c.point for c in plan("gpu" if device is CUDA else "cpu", device).cases]
    dtypes = {p["dtype"] for p in points if "dtype" in p}
    assert dtypes == {"fp64", "fp32", "bf16", "fp16", "fp8", "int8"} | ({"tf32"} if device is CUDA else set())
    for dtype in dtypes:
        products = [p["m"] for p in points if p["role"] == "product" and p["dtype"] == dtype]
        assert len(products) >= 3
        larger = [p["m"] for p in points if p["role"] == "calibration" and p["case"] == f"matmul-{dtype}-{p['m']}"]
        assert len(larger) == 1
        assert larger[0] > max(products)
        assert any(p["case"] == f"overhead-{dtype}" for p in points)
        errors = [p["m"] for p in points if p["case"].startswith(f"error-{dtype}-")]
        assert len(errors) == (0 if dtype == "fp64" else 3)


def test_a_plan_covers_the_steps_that_the_chapter_speaks_of() -> None:
    points = [c.point for c in plan("cpu").cases]
    steps = [p for p in points if p["role"] == "step"]
    for name, values in {
        "weights": {"fp32", "bf16", "autocast"}, "attention": {"math", "sdpa"}, "dropout": {True, False},
        "recomputation": {"none", "full"}, "method": {"counted"},
    }.items():  # fmt: skip
        assert {p[name] for p in steps} == values
    # Without dropout's masks and with GPT-3's ratio of heads times length to width: 5 a s / h is 80.
    assert all(5 * p["query_heads"] * p["sequence_length"] / p["hidden_size"] == 80 for p in steps)
    assert all(p["query_heads"] * p["head_dim"] == p["hidden_size"] for p in steps)
    assert {c.point["method"] for c in plan("gpu", CUDA).cases if c.point["role"] == "step"} == {"allocator"}
    assert not [p for p in steps if p["dropout"] and p["attention"] == "sdpa"], "a CPU has no fused one"


def test_a_plan_is_the_same_every_time_and_says_what_the_processor_multiplies() -> None:
    first, second = plan("cpu"), plan("cpu")
    assert first.spec == second.spec
    assert set(first.spec["instructions"]) <= set(devices.INSTRUCTIONS)
    assert "reduced_precision_reduction" in plan("gpu", CUDA).spec
    assert plan("gpu", CUDA).spec["instructions"] is None


# Products


@pytest.fixture
def matrices() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    a, b = (torch.randn(64, 64, dtype=torch.float64, generator=generator) for _ in range(2))
    return a, b


@pytest.mark.parametrize("dtype", ["fp64", "fp32", "bf16", "fp16"])
def test_a_product_is_of_the_rounded_inputs(dtype: str, matrices: tuple[torch.Tensor, torch.Tensor]) -> None:
    a, b = matrices
    made = precision.product(dtype, a, b)
    narrow = getattr(torch, precision.DTYPES[dtype])
    x, w = (m.to(narrow).double().numpy() for m in (a, b))
    exact = np.einsum("ik,jk->ij", x, w)  # second operand by rows
    out = made.exact(made.call()).numpy()
    epsilon = torch.finfo(narrow).eps
    assert np.abs(out - exact).max() <= 70 * max(epsilon, 2e-16) * np.abs(exact).max()
    assert made.call().dtype == narrow


def test_an_int8_product_is_exact_but_for_the_step(matrices: tuple[torch.Tensor, torch.Tensor]) -> None:
    a, b = (m.numpy() for m in matrices)
    made = precision.product("int8", *matrices)
    scales = [np.abs(m).max() / 127 for m in (a, b)]
    integers = [np.rint(m / s) for m, s in zip((a, b), scales, strict=True)]
    assert max(np.abs(i).max() for i in integers) == 127
    out = made.exact(made.call()).numpy()
    np.testing.assert_allclose(out, integers[0] @ integers[1].T * scales[0] * scales[1], rtol=1e-12)


def test_an_fp8_product_rounds_its_inputs_to_e4m3(matrices: tuple[torch.Tensor, torch.Tensor]) -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    try:
        made = precision.product("fp8", *matrices)
    except runner.Unavailable as error:
        pytest.skip(str(error))
    x, w = (m.numpy().astype(np.float32).astype(ml_dtypes.float8_e4m3fn).astype(float) for m in matrices)
    out = made.exact(made.call()).numpy()
    assert np.abs(out - x @ w.T).max() <= 2**-8 * np.abs(x @ w.T).max()  # bf16's half spacing of the result


def test_what_torch_lacks_or_refuses_is_unavailable_with_its_reason(
    monkeypatch: pytest.MonkeyPatch, matrices: tuple[torch.Tensor, torch.Tensor]
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise RuntimeError("not implemented for 'this'")

    monkeypatch.setattr(torch, "_int_mm", refuse)
    with pytest.raises(runner.Unavailable, match="refuses a int8 product here: not implemented"):
        precision.product("int8", *matrices)
    monkeypatch.delattr(torch, "_scaled_mm")
    with pytest.raises(runner.Unavailable, match="has no fp8 matrix product"):
        precision.product("fp8", *matrices)

    def full(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(torch, "_int_mm", full)
    with pytest.raises(torch.OutOfMemoryError):
        precision.product("int8", *matrices)


@pytest.mark.parametrize(
    ("dtype", "capability", "refused"),
    [("fp8", (8, 0), True), ("fp8", (8, 9), False), ("tf32", (7, 5), True), ("tf32", (8, 0), False)],
)
def test_what_a_gpu_does_not_multiply_is_unavailable(
    dtype: str, capability: tuple[int, int], refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    said = devices.missing_for(dtype, CUDA)
    assert bool(said) == refused
    if refused:
        assert KNOWN.match(said)
        assert said.endswith(f"this GPU has {capability[0]}.{capability[1]}")
    assert devices.missing_for(dtype, CPU) == ""


def test_the_recorded_error_is_the_frobenius_norm_by_another_route(record: Record) -> None:
    size = precision.EXPERIMENT._sizes("smoke", environment())[0]
    session = precision.Session("smoke", CPU, [])
    a, b = (m.numpy() for m in session.inputs(size))
    assert abs(a.std() - 1) < 0.1
    exact = a @ b.T
    for dtype, narrow in (("fp16", np.float16), ("fp32", np.float32)):
        (sample,) = record.find("error", case=f"error-{dtype}-{size}")
        x, w = (m.astype(narrow).astype(float) for m in (a, b))
        rounded = (x @ w.T).astype(narrow).astype(float)  # sums in float64: a little less than the real error
        expected = math.sqrt(((rounded - exact) ** 2).sum() / (exact**2).sum())
        assert expected * 0.99 <= sample.values[0] <= expected * (1.05 if dtype == "fp16" else 4)


def test_a_size_that_would_take_too_long_is_left_out() -> None:
    session = precision.Session("smoke", CPU, [])
    session.last["fp16"] = 1024, 1.0
    point = next(c.point for c in plan("cpu").cases if c.name == "matmul-fp16-2048")
    with pytest.raises(runner.Unavailable, match="would take about 8 s"):
        list(session.time(point))
    session.not_too_long("fp16", 1024, precision.LONGEST)
    session.not_too_long("bf16", 10**6, precision.LONGEST)


def test_a_disturbed_product_is_measured_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first repeats are wide, the next ones are not."""
    takes = iter([[1.0, 2.0, 3.0], [1.0, 1.0, 1.01], [5.0, 5.0, 5.0]])
    timing = Timing(clock="perf_counter", mode="back-to-back", loops=1, warmup=1)
    monkeypatch.setattr(timer, "back_to_back", lambda *_, **__: timer.Timed(next(takes), timing, []))
    point = next(c.point for c in plan("cpu").cases if c.name == "matmul-fp32-256")
    session = precision.Session("cpu", CPU, [])
    samples = {s.metric: s for s in session.time(point)}
    assert samples["time"].values == [1.0, 1.0, 1.01]
    assert [w.partition(",")[0] for w in session.warnings] == ["matmul-fp32-256: measured again"]


def timed(monkeypatch: pytest.MonkeyPatch, session: precision.Session, times: dict[str, list[float]]) -> list[str]:
    """The warnings of a session whose cases take these times, of each the one on all threads and the one on one."""
    timing = Timing(clock="perf_counter", mode="back-to-back", loops=1, warmup=1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    points = {c.name: c.point for c in plan("cpu").cases}
    for case, seconds in times.items():
        takes = iter([[s] * 3 for s in seconds])
        monkeypatch.setattr(timer, "back_to_back", lambda *_, takes=takes, **__: timer.Timed(next(takes), timing, []))
        list(session.time(points[case]))
    return session.warnings


@pytest.mark.parametrize(
    ("case", "seconds", "warned"),
    [
        ("matmul-fp32-256", [5e-3, 1e-3], True), ("matmul-fp32-256", [2e-3, 1e-3], False),
        ("matmul-fp32-512", [3e-3, 1e-3], True), ("matmul-fp32-1024", [2e-3, 1e-3], True),
        ("matmul-fp32-1024", [1e-3, 2e-3], False),
    ],
)  # fmt: skip
def test_one_thread_that_is_much_faster_is_warned_of_at_every_size(
    case: str, seconds: list[float], warned: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = timed(monkeypatch, precision.Session("cpu", CPU, []), {case: seconds})
    assert [w.partition(":")[0] for w in said if ": disturbed: one thread is faster than 2" in w] == [case] * warned


def test_an_overhead_longer_than_the_smallest_product_is_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    times = {
        "overhead-fp16": [8e-3], "matmul-fp16-256": [1e-3, 2e-3], "matmul-fp16-512": [7e-3, 14e-3],
        "overhead-fp32": [1e-5], "matmul-fp32-256": [2e-4, 4e-4],
    }  # fmt: skip
    (said,) = timed(monkeypatch, precision.Session("cpu", CPU, []), times)
    assert said.startswith("overhead-fp16: disturbed: ")
    assert "0.008 s and the one of size 256 0.001 s" in said
    times = {"overhead-fp16": [8e-3], "matmul-fp16-256": [9e-3, 2e-3]}
    said = timed(monkeypatch, precision.Session("cpu", CPU, []), times)
    assert any("0.008 s and the one of size 256 0.002 s" in w for w in said), "one thread did not wait"


def test_a_resumed_run_remembers_the_overhead(record: Record, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = [
        Sample(point=c.point, metric="time", unit="s", values=[1.0], status="ok")
        for c in plan("cpu").cases if c.name == "overhead-fp16"
    ]  # fmt: skip
    resumed = plan("cpu", resumed=record.model_copy(update={"samples": tiny}))
    case = next(c for c in resumed.cases if c.name == "matmul-fp16-256")
    timing = Timing(clock="perf_counter", mode="back-to-back", loops=1, warmup=1)
    monkeypatch.setattr(timer, "back_to_back", lambda *_, **__: timer.Timed([1e-3] * 3, timing, []))
    list(case.samples())
    assert any(w.startswith("overhead-fp16: disturbed: ") for w in resumed.warnings)


def test_a_resumed_run_remembers_how_long_products_took(record: Record) -> None:
    slow = [
        Sample(point=c.point, metric="time", unit="s", values=[1.0], status="ok")
        for c in plan("cpu").cases if c.name in ("matmul-fp16-1024", "overhead-fp16")
    ]  # fmt: skip
    resumed = record.model_copy(update={"samples": slow})
    case = next(c for c in plan("cpu", resumed=resumed).cases if c.name == "matmul-fp16-2048")
    with pytest.raises(runner.Unavailable, match="at size 1024 a fp16 product took 1 s"):
        next(case.samples())


# A training step


class Simulated(TorchDispatchMode):
    """A caching allocator's books, kept for tensors on a CPU: which storages are alive, and the most at a time.

    It sees every operation's results as they are made, and nothing of autograd: an oracle for both methods.
    """

    def __init__(self) -> None:
        super().__init__()
        self.alive: dict[int, tuple[StorageWeakRef, int]] = {}
        self.most = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                reference = StorageWeakRef(storage)
                self.alive[reference.cdata] = reference, storage.nbytes()
        self.most = max(self.most, self.now())
        return out

    def now(self) -> int:
        self.alive = {k: v for k, v in self.alive.items() if not v[0].expired()}
        return sum(size for _, size in self.alive.values())

    def requested(self) -> int:
        return self.now() - 100

    def reset_peak(self) -> None:
        self.most = self.now()

    def peak(self) -> int:
        return self.most


@pytest.fixture
def simulated(monkeypatch: pytest.MonkeyPatch) -> Iterator[Simulated]:
    with Simulated() as books:
        monkeypatch.setattr(memory, "Allocator", lambda _: books)
        yield books


SIZE = precision.DECODERS["smoke"]


@pytest.mark.parametrize("variant", precision.VARIANTS, ids=lambda v: v.name)
def test_counted_tensors_are_what_an_allocator_would_hold(variant: precision.Variant, simulated: Simulated) -> None:
    counted = decoder.step_bytes(SIZE, variant, CPU)
    allocated = decoder._allocated(SIZE, variant, CPU)
    # Autocast's cache holds copies of the biases too, 9 h a layer, until its context ends; no backward pass needs them.
    cache = 2 * 9 * SIZE["hidden_size"] * SIZE["layers"] if variant.weights == "autocast" else 0
    for part in ("weights", "gradients", "optimizer"):
        assert allocated[part] == counted[part], part
    assert allocated["activations"] == counted["activations"] + cache
    # The loss itself is alive, and where the layers are recomputed the generator's state may be.
    assert counted["outside"] <= allocated["outside"] + cache <= counted["outside"] + 64
    assert allocated["after_forward"] == sum(allocated[p] for p in (*decoder.PARTS, "activations", "outside"))
    assert allocated["rounding"] == 100
    assert allocated["step"] >= allocated["after_forward"]
    if variant.recomputation == "none":
        assert allocated["step"] <= 1.6 * counted["step"]


def test_a_model_is_the_one_that_the_formulas_speak_of() -> None:
    """Against torch's own modules: the same parameters, the same outputs."""
    model = decoder.Decoder(SIZE, precision.Variant("fp32", "math"), CPU)
    h, layers = SIZE["hidden_size"], SIZE["layers"]
    module = torch.nn.TransformerEncoder(
        torch.nn.TransformerEncoderLayer(
            h, SIZE["query_heads"], SIZE["intermediate_size"], dropout=0.0, activation="gelu", batch_first=True,
            norm_first=True,
        ),
        layers, norm=torch.nn.LayerNorm(h), enable_nested_tensor=False,
    )  # fmt: skip
    inside = sum(p.numel() for p in module.parameters())
    outside = (SIZE["vocabulary"] + SIZE["sequence_length"]) * h
    assert sum(p.numel() for p in model.parameters) == inside + outside
    with torch.no_grad():
        for theirs, ours in zip(module.layers, model.layers, strict=True):
            for target, source in zip(
                (theirs.norm1.weight, theirs.norm1.bias, theirs.self_attn.in_proj_weight, theirs.self_attn.in_proj_bias,
                 theirs.self_attn.out_proj.weight, theirs.self_attn.out_proj.bias, theirs.norm2.weight,
                 theirs.norm2.bias, theirs.linear1.weight, theirs.linear1.bias, theirs.linear2.weight,
                 theirs.linear2.bias), ours, strict=True,
            ):  # fmt: skip
                target.copy_(source)
        x = model.embed()
        mask = torch.nn.Transformer.generate_square_subsequent_mask(SIZE["sequence_length"])
        expected = torch.nn.functional.cross_entropy(
            (module(x, mask=mask) @ model.embedding.T).flatten(0, 1), model.targets.flatten()
        )
        for attention in ("math", "sdpa"):
            other = decoder.Decoder(SIZE, precision.Variant("fp32", attention), CPU)
            torch.testing.assert_close(other.loss(other.run_layers(x)), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("attention", ["math", "sdpa"])
def test_recomputing_changes_no_gradient(attention: str) -> None:
    gradients = []
    for recomputation in ("none", "full"):
        model = decoder.Decoder(SIZE, precision.Variant("fp32", attention, recomputation=recomputation), CPU)
        model.loss(model.run_layers(model.embed())).backward()
        gradients.append([p.grad for p in model.parameters])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)


def test_every_parameter_gets_a_gradient_and_dropout_drops() -> None:
    for variant in precision.VARIANTS:
        model = decoder.Decoder(SIZE, variant, CPU)
        with model.autocast:
            x = model.run_layers(model.embed())
            again = model.run_layers(model.embed())
            model.loss(x).backward()
        assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in model.parameters), variant.name
        assert torch.equal(x, again) == (not variant.dropout), variant.name


@pytest.mark.parametrize(("scale", "gigabytes"), [("cpu", 2), ("gpu", 22)])
def test_the_largest_step_fits_where_the_lab_says_it_runs(scale: str, gigabytes: float) -> None:
    """Without memory: tensors on the device "meta" have shapes and storages only."""
    size = precision.DECODERS[scale]
    most = 0.0
    for variant in (v for v in precision.VARIANTS if v.weights != "autocast"):
        model = MetaDecoder(size, variant)
        saved = memory.SavedTensors([*model.parameters, model.mask])
        with saved.region("all"):
            loss = model.loss(model.run_layers(model.embed()))
        states = 4 * memory.tensor_bytes(model.parameters)
        most = max(most, states + saved.bytes())
        del loss
    assert most <= gigabytes * 1e9


class MetaDecoder(decoder.Decoder):
    def __init__(self, size: dict[str, int], variant: precision.Variant) -> None:
        self.torch, self.size, self.variant, self.device = torch, size, variant, torch.device("meta")
        self.dropout = precision.DROPOUT if variant.dropout else 0.0
        self.layer_norm, self.gelu = torch.nn.functional.layer_norm, torch.nn.functional.gelu
        small = decoder.Decoder(SIZE, variant, CPU)
        dtype = torch.bfloat16 if variant.weights == "bf16" else torch.float32
        h, f, v, s = (size[n] for n in ("hidden_size", "intermediate_size", "vocabulary", "sequence_length"))
        old = [SIZE[n] for n in ("hidden_size", "intermediate_size", "vocabulary", "sequence_length")]
        names = dict(zip(old, (h, f, v, s), strict=True)) | {3 * old[0]: 3 * h}

        def grown(p: torch.Tensor) -> torch.Tensor:
            return torch.empty([names[n] for n in p.shape], device="meta", dtype=dtype, requires_grad=True)

        self.embedding, self.positions, self.norm = (
            grown(small.embedding),
            grown(small.positions),
            [*map(grown, small.norm)],
        )
        self.layers = [[grown(p) for p in small.layers[0]] for _ in range(size["layers"])]
        self.mask = torch.empty(s, s, device="meta", dtype=dtype)
        self.tokens = self.targets = torch.zeros(size["microbatch"], s, device="meta", dtype=torch.int64)


# A run


def test_a_smoke_run_measures_every_case(record: Record) -> None:
    for case in record.spec["cases"]:
        found = [s for s in record.samples if s.point["case"] == case]
        assert found, case
        assert all(s.status == "ok" or KNOWN.match(s.message) for s in found), (case, found)
    steps = [s for s in record.samples if s.metric == "memory" and s.point["role"] == "step"]
    for step in steps:
        parts = [
            s.values[0]
            for s in record.samples
            if s.point == step.point and s.metric in (*decoder.PARTS, "activations", "outside")
        ]
        assert step.values[0] == sum(parts)
        assert len(parts) == 5


def test_bytes_by_dtype_add_up_to_the_activations(record: Record) -> None:
    for sample in record.samples:
        if sample.metric == "memory" and sample.point["role"] == "activations":
            kept = [s.values[0] for s in record.samples if s.point == sample.point and s.metric.startswith("kept_")]
            assert sum(kept) == sample.values[0]
            copies = next(
                s.values[0] for s in record.samples if s.point == sample.point and s.metric == "weight_copies"
            )
            # Autocast's copies: two bytes for each of the layers' matrices, 12 h² a layer.
            expected = 2 * 12 * 64**2 * 2 if sample.point["weights"] == "autocast" else 0
            assert copies == expected, sample.point["case"]


def test_timings_say_how_they_were_taken(record: Record) -> None:
    for sample in record.samples:
        if sample.metric == "time" and sample.status == "ok":
            assert sample.timing is not None
            assert sample.timing.warmup >= 1
            if sample.point["role"] == "calibration":
                assert len(sample.values) >= 6


def test_threads_are_as_before() -> None:
    threads = torch.get_num_threads()
    session = precision.Session("smoke", CPU, [])
    list(session.time(precision._point("x", "product", "fp32", 48)))
    assert torch.get_num_threads() == threads


@pytest.mark.gpu
def test_a_smoke_run_on_a_gpu(tmp_path: Path) -> None:
    record, _ = runner.run(precision.EXPERIMENT, scale="smoke", device="cuda", out=tmp_path, report=lambda _: None)
    newest = torch.version.hip is None and torch.cuda.get_device_capability() >= (9, 0)
    for sample in record.samples:
        assert sample.status == "ok" or (not newest and KNOWN.match(sample.message)), sample
    errors = {s.point["case"]: s.values[0] for s in record.samples if s.metric == "error" and s.status == "ok"}
    for case, value in errors.items():
        if case.startswith("error-tf32-"):
            assert value > 100 * errors[case.replace("tf32", "fp32")], "these were true float32 products"
    for sample in record.samples:
        if sample.metric == "counted":
            measured = next(s for s in record.samples if s.point == sample.point and s.metric == "memory")
            tensors = 40 * sample.point["layers"]
            assert 0 <= measured.values[0] - sample.values[0] <= 512 * tensors + 2**20
