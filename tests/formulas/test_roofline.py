"""The roofline's formulas against counts they did not come from.

Oracles: a number type that counts its own operations, PyTorch's FlopCounterMode, bytes of real tensors, and a
brute-force search for the ridge.
"""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from efflab.formulas import roofline as r

sizes = st.integers(1, 64)
positive = st.floats(1e-3, 1e15)


class Counted:
    """A float that counts every operation done on it."""

    count = 0

    def __init__(self, value: float) -> None:
        self.value = value

    def _do(self, value: float) -> Counted:
        Counted.count += 1
        return Counted(value)

    def __add__(self, other):
        return self._do(self.value + other.value)

    def __sub__(self, other):
        return self._do(self.value - other.value)

    def __mul__(self, other):
        return self._do(self.value * other.value)

    def __truediv__(self, other):
        return self._do(self.value / other.value)

    def __gt__(self, other):
        Counted.count += 1
        return self.value > other.value

    def exp(self):
        return self._do(math.exp(self.value))


def counted(values):
    Counted.count = 0
    return [Counted(float(v)) for v in values]


def total(values):
    result = values[0]
    for value in values[1:]:
        result = result + value
    return result


def softmax(row):
    largest = row[0]
    for value in row[1:]:
        if value > largest:
            largest = value
    shifted = [(value - largest).exp() for value in row]
    denominator = total(shifted)
    return [value / denominator for value in shifted]


def layer_norm(row, scale, shift):
    n = Counted(float(len(row)))
    mean = total(row) / n
    centred = [value - mean for value in row]
    variance = total([value * value for value in centred]) / n
    inverse = Counted((variance.value + 1e-5) ** -0.5)
    return [value * inverse * s + t for value, s, t in zip(centred, scale, shift, strict=True)]


@pytest.mark.parametrize("columns", [64, 1000])
def test_softmax_flops_by_counting(columns):
    row = counted(torch.randn(columns).tolist())
    result = softmax(row)
    assert math.isclose(sum(v.value for v in result), 1, rel_tol=1e-9)
    # 'per element' leaves out two operations per row: n values need n − 1 comparisons and additions
    assert r.softmax_flops(rows=1, columns=columns) - Counted.count == 2


@pytest.mark.parametrize("columns", [64, 1000])
def test_layer_norm_flops_by_counting(columns):
    values = torch.randn(columns)
    row, scale, shift = counted(values.tolist()), counted([1.0] * columns), counted([0.0] * columns)
    result = layer_norm(row, scale, shift)
    expected = torch.nn.functional.layer_norm(values, (columns,)).tolist()
    assert math.isclose(result[3].value, expected[3], rel_tol=1e-4, abs_tol=1e-5)
    # two sums of n values need n − 1 additions each, two divisions by n come back
    assert r.layer_norm_flops(rows=1, columns=columns) - Counted.count == 0


def flops_of(function):
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


@given(sizes, sizes, sizes)
def test_matmul_flops_and_bytes_by_pytorch(m, n, k):
    a, b = torch.empty(m, k), torch.empty(k, n)
    assert r.matmul_flops(m=m, n=n, k=k) == flops_of(lambda: a @ b)
    moved = sum(t.untyped_storage().nbytes() for t in (a, b, a @ b))
    assert r.matmul_bytes(m=m, n=n, k=k, bytes_per_element=4) == moved


@given(sizes, sizes)
def test_gemv_by_pytorch(m, n):
    a, x = torch.empty(m, n, dtype=torch.bfloat16), torch.empty(n, 1, dtype=torch.bfloat16)
    assert r.gemv_flops(m=m, n=n) == flops_of(lambda: a @ x)
    assert r.gemv_bytes(m=m, n=n, bytes_per_element=2) == sum(t.untyped_storage().nbytes() for t in (a, x, a @ x))


@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 32), st.integers(1, 16))
def test_attention_prefill_by_pytorch(batch, heads, sequence, head_dim):
    q = torch.empty(batch, heads, sequence, head_dim, device="meta")
    count = flops_of(lambda: torch.nn.functional.scaled_dot_product_attention(q, q, q))
    assert count == r.attention_prefill_flops(
        batch=batch, query_heads=heads, sequence_length=sequence, head_dim=head_dim, causal=False
    )


@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 32), st.integers(1, 16))
def test_causal_attention_by_counting_the_pairs_of_the_mask(batch, heads, sequence, head_dim):
    pairs = int(torch.ones(sequence, sequence).tril().sum())
    assert 4 * batch * heads * head_dim * pairs == r.attention_prefill_flops(
        batch=batch, query_heads=heads, sequence_length=sequence, head_dim=head_dim, causal=True
    )


@given(st.integers(1, 3), st.sampled_from([(8, 8), (8, 2), (4, 1)]), st.integers(1, 64), st.integers(1, 16))
def test_attention_bytes_are_those_of_its_tensors(batch, heads, length, head_dim):
    query_heads, kv_heads = heads

    def storage(*shapes):
        return sum(torch.empty(s, dtype=torch.bfloat16).untyped_storage().nbytes() for s in shapes)

    q, kv = (batch, query_heads, length, head_dim), (batch, kv_heads, length, head_dim)
    common = dict(batch=batch, query_heads=query_heads, kv_heads=kv_heads, head_dim=head_dim, bytes_per_element=2)
    assert r.attention_prefill_bytes(sequence_length=length, **common) == storage(q, kv, kv, q)
    one = (batch, query_heads, 1, head_dim)
    assert r.attention_decode_bytes(context_length=length, **common) == storage(one, kv, kv, one)


@given(st.integers(1, 4), st.integers(1, 64), st.integers(1, 16))
def test_decode_is_the_last_row_of_prefill(batch, length, head_dim):
    """One more token of a causal sequence adds exactly one decode step's operations."""
    common = dict(batch=batch, query_heads=3, head_dim=head_dim)
    longer = r.attention_prefill_flops(sequence_length=length + 1, causal=True, **common)
    shorter = r.attention_prefill_flops(sequence_length=length, causal=True, **common)
    assert longer - shorter == r.attention_decode_flops(context_length=length + 1, **common)


@given(st.integers(1, 1000), st.integers(1, 50), st.sampled_from([2.0, 4.0]))
def test_chain_traffic_by_walking_the_chain(elements, operations, size):
    """Count reads and writes of main memory while walking the chain operation by operation."""
    unfused = fused = 0.0
    for step in range(operations):
        unfused += elements * size + elements * size
        fused += elements * size * ((step == 0) + (step == operations - 1))
    common = dict(elements=elements, bytes_per_element=size)
    assert r.unfused_chain_bytes(operations=operations, **common) == unfused
    assert r.fused_chain_bytes(**common) == fused
    kwargs = dict(operations=operations, **common)
    assert math.isclose(
        r.fused_chain_intensity(**kwargs), operations * r.unfused_chain_intensity(**kwargs), rel_tol=1e-12
    )


@given(positive, positive)
def test_ridge_is_where_the_roof_bends(peak, bandwidth):
    """Below the ridge a little more intensity helps; above it, none does."""

    def roof(i):
        return r.attainable_performance(arithmetic_intensity=i, peak_performance=peak, memory_bandwidth=bandwidth)

    ridge = r.ridge_point(peak_performance=peak, memory_bandwidth=bandwidth)
    assert roof(ridge * 0.5) < roof(ridge * 0.9) < peak * (1 + 1e-9)
    assert roof(ridge * 2) == roof(ridge * 3) == peak


@given(positive, positive, positive, positive, st.floats(0, 1e3))
def test_time_is_never_below_any_of_its_parts(flops, moved, peak, bandwidth, overhead):
    kwargs = dict(flops=flops, bytes_moved=moved, peak_performance=peak, memory_bandwidth=bandwidth, overhead=overhead)
    time = r.roofline_time(**kwargs)
    parts = [overhead, moved / bandwidth, flops / peak]
    assert time >= max(parts) * (1 - 1e-12) and time <= sum(parts) * (1 + 1e-12)
    named = int(r.limiting_factor(**kwargs))
    assert math.isclose(parts[named], max(parts), rel_tol=1e-12)
    # time and performance are two views of one roof where nothing is overhead
    free = r.roofline_time(**kwargs | {"overhead": 0.0})
    performance = r.attainable_performance(
        arithmetic_intensity=flops / moved, peak_performance=peak, memory_bandwidth=bandwidth
    )
    assert math.isclose(flops / free, performance, rel_tol=1e-9)


@given(st.floats(1e9, 1e15), st.floats(1e9, 1e13), st.sampled_from([1.0, 2.0, 4.0]))
def test_batch_at_ridge_point_by_search(peak, bandwidth, size):
    """Binary search over batches of a very wide layer for the change from memory to arithmetic."""
    wide = 1e12

    def memory_bound(batch):
        flops, moved = 2 * batch * wide * wide, wide * wide * size
        return moved / bandwidth > flops / peak

    low, high = 1e-9, 1e9
    for _ in range(200):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if memory_bound(middle) else (low, middle)
    ours = r.batch_at_ridge_point(peak_performance=peak, memory_bandwidth=bandwidth, bytes_per_weight=size)
    assert math.isclose(ours, low, rel_tol=1e-6)


@given(st.integers(1, 10**9), st.integers(1, 100), positive, positive, st.floats(0, 1))
def test_fusion_by_adding_up_the_kernels(elements, operations, peak, bandwidth, overhead):
    kernels = [max(elements / peak, 8 * elements / bandwidth) + overhead for _ in range(operations)]
    one = max(operations * elements / peak, 8 * elements / bandwidth) + overhead
    kwargs = dict(
        elements=elements,
        operations=operations,
        bytes_per_element=4,
        peak_performance=peak,
        memory_bandwidth=bandwidth,
        overhead=overhead,
    )
    assert math.isclose(r.unfused_chain_time(**kwargs), math.fsum(kernels), rel_tol=1e-9)
    assert math.isclose(r.fused_chain_time(**kwargs), one, rel_tol=1e-9)
    assert r.fusion_speedup(**kwargs) >= 1 - 1e-12


@given(st.integers(1, 10**9), st.integers(1, 50), positive, positive, st.floats(0, 1))
def test_queued_chains_by_adding_up_the_kernels(elements, operations, peak, bandwidth, overhead):
    kernels = [max(elements / peak, 8 * elements / bandwidth, overhead) for _ in range(operations)]
    one = max(operations * elements / peak, 8 * elements / bandwidth, overhead)
    kwargs = dict(
        elements=elements,
        operations=operations,
        bytes_per_element=4,
        peak_performance=peak,
        memory_bandwidth=bandwidth,
        overhead=overhead,
    )
    assert math.isclose(r.queued_unfused_chain_time(**kwargs), math.fsum(kernels), rel_tol=1e-9)
    assert math.isclose(r.queued_fused_chain_time(**kwargs), one, rel_tol=1e-9)
    assert math.isclose(r.overhead_of_calls(calls=operations, overhead=overhead), math.fsum([overhead] * operations))


@given(st.floats(1e9, 1e16), st.floats(1e9, 1e13), st.sampled_from([0.5, 1.0, 2.0, 4.0]), st.floats(1e-7, 1e-3))
def test_square_matmul_to_hide_overhead_by_search(peak, bandwidth, size, overhead):
    """Search the whole numbers for the least n whose product works for as long as the overhead lasts."""

    def hides(n):
        return max(2 * n * n * n / peak, 3 * n * n * size / bandwidth) >= overhead

    low, high = 0, 1
    while not hides(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if hides(middle) else (middle, high)
    ours = r.square_matmul_to_hide_overhead(
        peak_performance=peak, memory_bandwidth=bandwidth, bytes_per_element=size, overhead=overhead
    )
    assert high - 1 - 1e-6 < ours <= high + 1e-6


def test_operations_to_hide_by_balance():
    """At the number of operations returned, arithmetic and traffic (or overhead) take equally long."""
    for peak, bandwidth, size, accesses in itertools.product((1e12, 1e15), (1e11, 5e12), (2, 4), (1, 2)):
        n = r.operations_to_hide_memory(
            peak_performance=peak, memory_bandwidth=bandwidth, bytes_per_element=size, accesses_per_element=accesses
        )
        assert math.isclose(n / peak, size * accesses / bandwidth, rel_tol=1e-12)
        assert math.isclose(r.operations_to_hide_overhead(peak_performance=peak, overhead=1e-5) / peak, 1e-5)
        assert math.isclose(r.bytes_to_hide_overhead(memory_bandwidth=bandwidth, overhead=1e-5) / bandwidth, 1e-5)


def test_every_kernel_of_the_table_has_matching_arguments():
    for name, (flops, moved) in r.KERNELS.items():
        assert flops.__name__ in (f"{name}_flops", "chain_flops") and moved.__name__ == f"{name}_bytes"


@given(st.integers(1, 10**12), st.integers(1, 10**12))
def test_each_time_alone_by_exact_division(amount, rate):
    """Rational arithmetic has no rounding: the formulas may be off by the last bit only."""
    exact = float(Fraction(amount, rate))
    assert math.isclose(r.compute_time(flops=amount, peak_performance=rate), exact, rel_tol=1e-15)
    assert math.isclose(r.memory_time(bytes_moved=amount, memory_bandwidth=rate), exact, rel_tol=1e-15)


@given(st.floats(1e-7, 1e-3), st.floats(1e-7, 1e-3), st.floats(1e-7, 1e-3))
def test_queued_time_by_simulating_the_queue(overhead, compute, memory):
    """A host launches a call every `overhead`; the device runs them in order, one at a time."""
    calls, device_free = 2000, 0.0
    for call in range(calls):
        launched = (call + 1) * overhead
        device_free = max(device_free, launched) + max(compute, memory)
    ours = r.queued_time(
        flops=compute * 1e12, bytes_moved=memory * 1e12, peak_performance=1e12, memory_bandwidth=1e12, overhead=overhead
    )
    start = min(overhead, max(compute, memory))  # the first launch is waited for, the last call drains
    assert math.isclose(device_free / calls, ours, rel_tol=2e-3, abs_tol=2 * start / calls)


@pytest.mark.parametrize(("rows", "columns"), [(3, 7), (16, 64)])
def test_row_kernels_move_their_tensors_once(rows, columns):
    x = torch.randn(rows, columns)
    weight, bias = torch.ones(columns), torch.zeros(columns)
    normed = torch.nn.functional.layer_norm(x, (columns,), weight, bias)
    storage = sum(t.untyped_storage().nbytes() for t in (x, weight, bias, normed))
    common = dict(rows=rows, columns=columns, bytes_per_element=4)
    assert r.layer_norm_bytes(**common) == storage
    probabilities = torch.softmax(x, -1)
    assert r.softmax_bytes(**common) == x.untyped_storage().nbytes() + probabilities.untyped_storage().nbytes()
    counting = [counted(row.tolist()) for row in x]
    Counted.count = 0
    for row in counting:
        layer_norm(row, [Counted(1.0)] * columns, [Counted(0.0)] * columns)
    assert math.isclose(r.layer_norm_intensity(**common), Counted.count / storage, rel_tol=1e-12)


def test_a_chain_does_one_operation_per_element_and_step():
    values = counted([1.0] * 13)
    for _ in range(5):
        values = [v * v for v in values]
    assert r.chain_flops(elements=13, operations=5) == Counted.count
