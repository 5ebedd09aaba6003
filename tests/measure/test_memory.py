"""Bytes that a training step holds, on graphs small enough to count by hand."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from efflab.errors import EfflabError
from efflab.measure import memory

F32, F64, I64 = 4, 8, 8  # B an element


def count(forward: Callable[[], Any], *own: torch.Tensor) -> tuple[Any, list[memory.Kept]]:
    saved = memory.SavedTensors(own)
    with saved.region("all"):
        out = forward()
    return out, saved.kept()


@pytest.fixture
def x() -> torch.Tensor:
    torch.manual_seed(0)
    return torch.randn(6, 10, requires_grad=True)


def test_a_linear_layer_keeps_its_input_and_its_own_weight_does_not_count(x: torch.Tensor) -> None:
    weight, bias = torch.randn(4, 10, requires_grad=True), torch.randn(4, requires_grad=True)
    hidden = x * 1  # an intermediate; scaling by a number keeps nothing
    out, kept = count(lambda: F.linear(hidden, weight, bias), weight, bias)
    assert [(k.nbytes, k.shape, k.dtype) for k in kept] == [(6 * 10 * F32, (6, 10), "float32")]
    _, with_weight = count(lambda: F.linear(hidden, weight, bias))
    assert sum(k.nbytes for k in with_weight) == (6 * 10 + 4 * 10) * F32
    out.sum().backward()


@pytest.mark.parametrize(
    ("operation", "elements"),
    [
        (lambda x: x + 1, 0),
        (lambda x: x.relu(), 60),  # its output
        (lambda x: x.exp(), 60),  # its output
        (F.gelu, 60),  # its input
        (lambda x: x.softmax(-1), 60),  # its output
        (lambda x: x * x, 60),  # both factors are one storage
        (lambda x: x * x.exp(), 120),  # the input, and the exponential once although two operations keep it
        (lambda x: x[:, :2] * x[:, 5:7], 60),  # two views keep the whole storage, once
    ],
)
def test_operations_keep_what_their_derivative_needs(
    operation: Callable[[torch.Tensor], torch.Tensor], elements: int, x: torch.Tensor
) -> None:
    _out, kept = count(lambda: operation(x))
    assert sum(k.nbytes for k in kept) == elements * F32


def test_layer_norm_keeps_mean_and_deviation_of_each_row(x: torch.Tensor) -> None:
    weight, bias = torch.ones(10, requires_grad=True), torch.zeros(10, requires_grad=True)
    _out, kept = count(lambda: F.layer_norm(x, (10,), weight, bias), weight, bias)
    assert sum(k.nbytes for k in kept) == (60 + 2 * 6) * F32


def test_cross_entropy_keeps_the_log_softmax_the_targets_and_one_sum() -> None:
    logits = torch.randn(6, 10, dtype=torch.float64, requires_grad=True)
    targets = torch.arange(6)
    _out, kept = count(lambda: F.cross_entropy(logits, targets))
    assert sum(k.nbytes for k in kept) == 60 * F64 + 6 * I64 + F64


def test_dropout_on_a_cpu_keeps_its_noise_in_the_tensors_own_dtype() -> None:
    for dtype, size in ((torch.float32, 4), (torch.bfloat16, 2)):
        x = torch.randn(6, 10, dtype=dtype, requires_grad=True)
        _out, kept = count(lambda x=x: F.dropout(x, 0.5))
        assert [(k.nbytes, k.dtype) for k in kept] == [(60 * size, str(dtype)[6:])]


def test_a_checkpoint_keeps_its_input_only(x: torch.Tensor) -> None:
    def block(x: torch.Tensor) -> torch.Tensor:
        return x.exp().sigmoid().softmax(-1)

    out, kept = count(lambda: checkpoint(block, x, use_reentrant=False))
    assert sum(k.nbytes for k in kept) == 60 * F32
    _, plain = count(lambda: block(x))
    assert sum(k.nbytes for k in plain) == 3 * 60 * F32
    out.sum().backward()
    recomputed = x.grad.clone()
    x.grad = None
    block(x).sum().backward()
    assert torch.equal(x.grad, recomputed)


def test_what_is_released_counts_no_more(x: torch.Tensor) -> None:
    saved = memory.SavedTensors()
    with saved.region("first"):
        out = x.exp().sin()  # both keep the exponential
        x.exp()  # the graph of this one is gone at once
    assert saved.bytes() == 60 * F32
    out.sum().backward()
    assert saved.bytes() == 0
    with saved.region("second"):
        out = x.exp()
    gc.disable()
    try:
        del out
        assert saved.bytes() == 0, "the graph is held in a cycle"
    finally:
        gc.enable()


def test_regions_are_told_apart_and_a_storage_belongs_to_the_first(x: torch.Tensor) -> None:
    saved = memory.SavedTensors()
    with saved.region("a"):
        y = x.exp()
    with saved.region("b"):
        z = y.sin().exp()  # sin keeps y, which exp kept before
    assert (saved.bytes("a"), saved.bytes("b"), saved.bytes()) == (240, 240, 480)
    assert [k.region for k in saved.kept()] == ["a", "b"]
    z.sum().backward()
    assert torch.allclose(x.grad, (x.exp().sin().exp() * x.exp().cos() * x.exp()).detach())


def test_autocast_keeps_a_narrow_copy_of_each_weight_and_it_is_told_apart() -> None:
    torch.manual_seed(0)
    x = torch.randn(10, 4)
    weights = [torch.randn(10, 4, requires_grad=True), torch.randn(4, 10, requires_grad=True)]

    def forward() -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return F.linear(F.linear(x, weights[0]).relu(), weights[1])

    out, kept = count(forward, *weights, x)
    # Of the second weight for its input's gradient; of the first none is needed, since x needs no gradient.
    assert [(k.nbytes, k.dtype) for k in kept if k.copy] == [(2 * 40, "bfloat16")]
    assert sum(k.nbytes for k in kept) == 2 * 40 + 2 * 10 * 4 + 2 * 100  # its copy, x in bf16, the relu's output
    out.float().sum().backward()
    assert weights[0].grad is not None


def test_tensors_without_memory_are_told_apart() -> None:
    x = torch.randn(2**20, 2**10, device="meta", requires_grad=True)
    _out, kept = count(lambda: x.exp().sin().relu())
    assert sum(k.nbytes for k in kept) == 2 * 2**30 * F32, "the exponential and what relu returns"


def test_bytes_of_tensors_count_each_storage_once() -> None:
    a = torch.zeros(10)
    assert memory.tensor_bytes([a, a[2:4], a.view(2, 5), None, 3]) == 40
    assert memory.tensor_bytes([a, a.clone(), a.double()]) == 40 + 40 + 80
    assert memory.tensor_bytes([]) == 0


@pytest.mark.parametrize(("dtype", "moments"), [(torch.float32, 8), (torch.bfloat16, 4)])
def test_adamw_keeps_two_moments_in_the_parameters_dtype_and_a_step(dtype: torch.dtype, moments: int) -> None:
    parameters = [torch.randn(30, dtype=dtype, requires_grad=True), torch.randn(5, 4, dtype=dtype, requires_grad=True)]
    optimizer = torch.optim.AdamW(parameters)
    assert memory.optimizer_tensors(optimizer) == []
    sum(p.sum() for p in parameters).backward()
    optimizer.step()
    assert memory.tensor_bytes(memory.optimizer_tensors(optimizer)) == 50 * moments + 2 * F32


def test_the_method_follows_the_device_and_a_cpu_has_no_allocator() -> None:
    assert memory.method_for(torch.device("cpu")) == "counted"
    assert memory.method_for(torch.device("cuda:1")) == "allocator"
    with pytest.raises(EfflabError, match="Count tensors"):
        memory.Allocator(torch.device("cpu"))


def test_the_allocator_is_read_after_the_gpu_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against a stand-in for torch.cuda that says which of its functions were called on which device."""
    calls: list[tuple[str, Any]] = []

    class CUDA:
        def __getattr__(self, name: str) -> Callable[[Any], Any]:
            def function(device: Any) -> Any:
                calls.append((name, device))
                return {"requested_bytes.all.current": 700} if name == "memory_stats" else 1024

            return function

    monkeypatch.setattr(torch, "cuda", CUDA())
    device = torch.device("cuda:3")
    allocator = memory.Allocator(device)
    assert (allocator.now(), allocator.peak(), allocator.requested()) == (1024, 1024, 700)
    allocator.reset_peak()
    names = [n for n, _ in calls]
    assert names == ["synchronize", "memory_allocated", "synchronize", "max_memory_allocated", "memory_stats",
                     "synchronize", "reset_peak_memory_stats"]  # fmt: skip
    assert {d for _, d in calls} == {device}


@pytest.mark.gpu
def test_the_allocator_sees_a_tensor_come_and_go_in_whole_blocks() -> None:
    allocator = memory.Allocator(torch.device("cuda", 0))
    before = allocator.now()
    allocator.reset_peak()
    x = torch.empty(1000, device="cuda")
    assert allocator.now() - before == 4096
    del x
    assert allocator.now() == before
    assert allocator.peak() - before == 4096


@pytest.mark.gpu
def test_dropout_on_a_gpu_keeps_one_byte_an_element() -> None:
    x = torch.randn(64, 10, device="cuda", requires_grad=True)
    _out, kept = count(lambda: F.dropout(x, 0.5))
    assert [(k.nbytes, k.dtype) for k in kept] == [(640, "bool")]
