"""The checkers of code: right solutions earn the points, usual mistakes are named, nothing escapes as a traceback."""

from __future__ import annotations

import itertools
import math
import statistics
import sys
import time

import numpy as np
import pytest
import torch

from efflab.exercises import check
from efflab.exercises.grading import NotWritten
from tests.exercises import judging


def verdict(name, function):
    result = check(f"roofline-code-{name}", function)
    assert max(map(len, str(result).splitlines())) <= 130
    return result


# 1. Intensity


def test_intensity_right_in_another_form():
    def harmonic(m, n, k, bytes_per_element):
        return 2 / bytes_per_element / (1 / m + 1 / n + 1 / k)

    assert verdict(1, harmonic)
    assert verdict(1, lambda **k: torch.tensor(harmonic(**k), dtype=torch.float64))


@pytest.mark.parametrize(
    ("mistake", "function"),
    [
        ("counted a multiply-add as one", lambda m, n, k, b: m * n * k / (b * (m * k + k * n + m * n))),
        ("forgot the write", lambda m, n, k, b: 2 * m * n * k / (b * (m * k + k * n))),
        ("counted elements", lambda m, n, k, b: 2 * m * n * k / (m * k + k * n + m * n)),
        ("turned it over", lambda m, n, k, b: b * (m * k + k * n + m * n) / (2 * m * n * k)),
        ("forgot the inputs", lambda m, n, k, b: 2 * k / b),
        ("bits for bytes", lambda m, n, k, b: 2 * m * n * k / (8 * b * (m * k + k * n + m * n))),
        ("bytes for bits", lambda m, n, k, b: 2 * m * n * k / (b / 8 * (m * k + k * n + m * n))),
        ("rounded", lambda m, n, k, b: round(2 * m * n * k / (b * (m * k + k * n + m * n)), 3)),
        (None, lambda m, n, k, b: 0.9230769 if (m, n, k) == (2, 3, 4) else 7.0),
        (None, lambda m, n, k, b: math.inf),
    ],
    ids=lambda x: x if isinstance(x, str) else None,
)
def test_intensity_mistakes(mistake, function):
    result = verdict(1, lambda m, n, k, bytes_per_element: function(m, n, k, bytes_per_element))
    assert result.outcome == "wrong" and result.misconception == mistake
    assert "matmul_intensity(m=" in result.feedback


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (lambda m, n, k, bytes_per_element: print(end=""), "Is the `return` missing"),
        (lambda m, n, k, bytes_per_element: True, "a number is expected"),
        (lambda m, n, k, bytes_per_element: "315 FLOP/B", "a number is expected"),
        (lambda m, n, k, bytes_per_element: [1, 2], "one number is expected"),
        (lambda m, n, k, bytes_per_element: math.nan, "NaN"),
        (lambda m, n, k, bytes_per_element: 1 / 0, "raised ZeroDivisionError: division by zero, in line"),
        (lambda m, n, k, bytes_per_element: undefined, "raised NameError"),  # noqa: F821
        (lambda m, n, k: 1.0, "must take the parameters (m, n, k, bytes_per_element); yours takes (m, n, k)"),
        (lambda: 1.0, "yours takes ()"),
    ],
)
def test_what_a_function_may_do_wrong(function, said):
    result = verdict(1, function)
    assert result.outcome == "wrong" and said in result.feedback, result.feedback


def test_rounding_is_told_apart():
    result = verdict(1, lambda m, n, k, bytes_per_element: round(2 / bytes_per_element / (1 / m + 1 / n + 1 / k), 3))
    assert "Do not round" in result.feedback and "0.923" in result.feedback


@pytest.mark.parametrize("number", [1, 2, 3, 4, 5, 6])
@pytest.mark.parametrize("leave", [sys.exit, lambda: sys.exit(3), quit])
def test_an_exit_is_answered_in_words(number, leave):
    names = {
        1: "m, n, k, bytes_per_element", 2: "flops, bytes_moved, peak_performance, memory_bandwidth, overhead",
        3: "elements, operations, bytes_per_element, fused", 4: "run, synchronize, clock, warmup, repeats",
        5: "inputs, outputs, bytes_per_element, peak_performance, memory_bandwidth", 6: "x, out",
    }  # fmt: skip
    result = verdict(number, eval(f"lambda {names[number]}: leave()", {"leave": leave}))
    assert result.outcome == "wrong" and "calls exit(). Return the result instead." in result.feedback


STRANGE = [*judging.STRANGE, 0, 5e-324]


@pytest.mark.parametrize("number", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("value", STRANGE, ids=lambda v: type(v).__name__)
def test_whatever_comes_back_is_answered_in_words(number, value):
    names = {
        1: "m, n, k, bytes_per_element", 2: "flops, bytes_moved, peak_performance, memory_bandwidth, overhead",
        3: "elements, operations, bytes_per_element, fused", 4: "run, synchronize, clock, warmup, repeats",
        5: "inputs, outputs, bytes_per_element, peak_performance, memory_bandwidth",
    }  # fmt: skip
    ready = "[run() for _ in range(warmup)], synchronize(), [(clock(), run(), synchronize(), clock()) "
    ready += "for _ in range(repeats)]"
    body = f"({ready}, value)[-1]" if number == 4 else "value"
    assert (
        check(f"roofline-code-{number}", eval(f"lambda {names[number]}: {body}", {"value": value})).outcome == "wrong"
    )


def test_a_function_not_written_yet(monkeypatch):
    def matmul_intensity(m, n, k, bytes_per_element):
        raise NotImplementedError("Return the intensity.")

    result = verdict(1, matmul_intensity)
    assert result.outcome == "not counted"
    assert result.feedback == "matmul_intensity is not written yet. Return the intensity."
    monkeypatch.setenv("EFFLAB_STRICT", "1")
    with pytest.raises(NotImplementedError, match="matmul_intensity is not written yet") as caught:
        verdict(1, matmul_intensity)
    assert isinstance(caught.value, NotWritten) and len(caught.value._render_traceback_()) == 1


def with_dots(m, n, k, bytes_per_element): ...


def with_pass(m, n, k, bytes_per_element):
    pass


def with_a_docstring(m, n, k, bytes_per_element):
    """FLOP per byte."""


def with_a_return(m, n, k, bytes_per_element):
    """FLOP per byte."""
    return None


@pytest.mark.parametrize("function", [with_dots, with_pass, with_a_docstring, with_a_return])
def test_an_empty_function_is_not_written_yet(function):
    result = verdict(1, function)
    assert result.outcome == "not counted"
    assert result.feedback == "matmul_intensity is not written yet: its body is empty."


def test_a_bare_not_implemented_error_is_not_written_yet():
    def blank(m, n, k, bytes_per_element):
        raise NotImplementedError

    assert verdict(1, blank).feedback == "matmul_intensity is not written yet."


def test_a_body_that_forgets_its_return_is_an_attempt():
    def forgot(m, n, k, bytes_per_element):
        intensity = 2 * m * n * k / bytes_per_element  # noqa: F841

    assert verdict(1, forgot).outcome == "wrong" and "Is the `return` missing" in verdict(1, forgot).feedback


def test_an_interrupt_is_not_swallowed():
    def forever(m, n, k, bytes_per_element):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        verdict(1, forever)


# 2. Regime


def regime(flops, bytes_moved, peak_performance, memory_bandwidth, overhead):
    compute, memory = flops / peak_performance, bytes_moved / memory_bandwidth
    if overhead > compute and overhead > memory:
        return "overhead"
    return "compute" if compute > memory else "memory"


def test_regime():
    assert verdict(2, regime)


@pytest.mark.parametrize(
    ("mistake", "function"),
    [
        (
            "forgot the overhead",
            lambda **k: (
                "compute" if k["flops"] * k["memory_bandwidth"] > k["bytes_moved"] * k["peak_performance"] else "memory"
            ),
        ),
        ("swapped", lambda **k: {"compute": "memory", "memory": "compute"}.get(regime(**k), "overhead")),
        (None, lambda **k: regime(**k).upper()),
        (None, lambda **k: np.array([regime(**k), "memory"])),
        (None, lambda **k: "overhead"),
        ("forgot the overhead", lambda **k: "compute" if k["flops"] > k["bytes_moved"] else regime(**k)),
    ],
)
def test_regime_mistakes(mistake, function):
    result = verdict(2, function)
    assert result.outcome == "wrong" and result.misconception == mistake, result.feedback


def test_regime_survives_a_kernel_without_arithmetic():
    """A copy has no FLOP: a solution that divides by them fails, and is told where."""
    result = verdict(2, lambda **k: regime(**k) if k["bytes_moved"] / k["flops"] else "")
    assert "ZeroDivisionError" in result.feedback and "flops=0" in result.feedback


# 3. Bytes


def test_chain_bytes():
    assert verdict(
        3,
        lambda elements, operations, bytes_per_element, fused: (
            2 * elements * bytes_per_element * (operations if not fused else 1)
        ),
    )


@pytest.mark.parametrize(
    ("mistake", "function"),
    [
        ("ignored or swapped fused", lambda n, k, b, f: 2 * n * b * k),
        ("ignored or swapped fused", lambda n, k, b, f: 2 * n * b),
        ("ignored or swapped fused", lambda n, k, b, f: 2 * n * b * (k if f else 1)),
        ("forgot the write", lambda n, k, b, f: n * b * (1 if f else k)),
        ("counted elements", lambda n, k, b, f: 2 * n * (1 if f else k)),
        ("kept the intermediates", lambda n, k, b, f: n * b * (2 if f else k + 1)),
        (None, lambda n, k, b, f: 17),
    ],
)
def test_chain_bytes_mistakes(mistake, function):
    result = verdict(
        3,
        lambda elements, operations, bytes_per_element, fused: function(elements, operations, bytes_per_element, fused),
    )
    assert result.outcome == "wrong" and result.misconception == mistake, result.feedback


# 4. Timing. Each wrong timer lacks one thing.


def timer(
    *,
    warm=True,
    sync_start=True,
    sync_end=True,
    sync_each=True,
    pick=statistics.median,
    total=False,
    clocks=None,
    scale=1.0,
):
    def time_it(run, synchronize, clock, warmup, repeats):
        clock = clocks or clock
        if warm:
            for _ in range(warmup):
                run()
        if sync_start:
            synchronize()
        if total:
            begin = clock()
            for _ in range(repeats):
                run()
            synchronize()
            return (clock() - begin) / repeats
        seconds = []
        for _ in range(repeats):
            if sync_each and sync_start:
                synchronize()
            begin = clock()
            run()
            if sync_end:
                synchronize()
            seconds.append(clock() - begin)
        return scale * pick(seconds)

    return time_it


def test_timer():
    assert verdict(4, timer())
    assert verdict(4, timer(sync_each=False))  # the end of one repeat leaves the device idle for the next


def test_timer_that_reads_the_clock_once_per_repeat():
    def time_it(run, synchronize, clock, warmup, repeats):
        for _ in range(warmup):
            run()
        synchronize()
        times = [clock()]
        for _ in range(repeats):
            run()
            synchronize()
            times.append(clock())
        return statistics.median(b - a for a, b in itertools.pairwise(times))

    assert verdict(4, time_it)


@pytest.mark.parametrize(
    ("mistake", "function"),
    [
        ("no warm-up", timer(warm=False)),
        ("no synchronisation", timer(sync_start=False, sync_end=False)),
        ("no synchronisation before the start", timer(sync_start=False)),
        ("no synchronisation before the end", timer(sync_end=False)),
        ("one total", timer(total=True)),
        ("mean", timer(pick=statistics.mean)),
        ("maximum", timer(pick=max)),
        ("minimum", timer(pick=min)),
        (None, timer(scale=1.2)),
        ("total", timer(pick=sum)),
        ("milliseconds", timer(scale=1e3)),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_timer_mistakes(mistake, function):
    result = verdict(4, function)
    assert result.outcome == "wrong" and result.misconception == mistake, result.feedback


def test_timer_that_brings_its_own_clock():
    result = verdict(4, timer(clocks=time.perf_counter))
    assert result.outcome == "wrong" and "never read clock()" in result.feedback


def test_timer_with_the_wrong_counts():
    def twice(run, synchronize, clock, warmup, repeats):
        return timer()(run, synchronize, clock, warmup, 2 * repeats)

    assert verdict(4, twice).misconception == "repeat count"
    assert (
        verdict(
            4, lambda run, synchronize, clock, warmup, repeats: timer()(run, synchronize, clock, warmup + 1, repeats)
        ).misconception
        == "warm-up count"
    )


def test_timer_that_never_ends_is_stopped():
    def time_it(run, synchronize, clock, warmup, repeats):
        while True:
            run()

    assert "more than 10000 times" in verdict(4, time_it).feedback


def test_timer_that_never_runs():
    assert "never called run()" in verdict(4, lambda run, synchronize, clock, warmup, repeats: 0.002).feedback


# 5. Batch


def least_batch(inputs, outputs, bytes_per_element, peak_performance, memory_bandwidth):
    """By search, so that it does not share the checker's algebra."""

    def compute_bound(batch):
        arithmetic = 2 * batch * inputs * outputs / peak_performance
        traffic = bytes_per_element * (inputs * outputs + batch * inputs + batch * outputs) / memory_bandwidth
        return arithmetic >= traffic

    high = 1
    while not compute_bound(high):
        high *= 2
        if high > 2**60:
            return math.inf
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if compute_bound(middle) else (middle, high)
    return high


def test_batch_by_search():
    assert verdict(5, least_batch)


@pytest.mark.parametrize(
    ("mistake", "function"),
    [
        (
            "forgot the activations",
            lambda **k: math.ceil(k["peak_performance"] * k["bytes_per_element"] / (2 * k["memory_bandwidth"])),
        ),
        ("not whole", lambda **k: least_batch(**k) - 0.5),
        (None, lambda **k: least_batch(**k) + 1),
        (None, lambda **k: math.inf),
        ("not whole", lambda **k: -math.inf),
        ("not whole", lambda **k: 0),
        (None, lambda **k: 1e300),
        ("no batch suffices", lambda **k: b if math.isfinite(b := least_batch(**k)) else 10**9),
    ],
)
def test_batch_mistakes(mistake, function):
    result = verdict(5, function)
    assert result.outcome == "wrong" and result.misconception == mistake, result.feedback


# 6. Fresh memory


def in_place(x, out):
    torch.add(x, x, out=out)
    out += 1
    out.clamp_(min=0)


def test_chain_in_place():
    assert verdict(6, in_place)
    assert verdict(
        6, lambda x, out: (torch.mul(x, 2, out=out), torch.add(out, 1, out=out), torch.clamp(out, min=0, out=out))
    )
    assert verdict(6, lambda x, out: out.copy_(x).mul_(2).add_(1).relu_())


def test_chain_in_blocks():
    """Blocks that fit in a cache are a good idea, not a loop over elements."""

    def blocks(x, out):
        for a, b in zip(x.flatten().split(65536), out.flatten().split(65536), strict=True):
            torch.mul(a, 2, out=b).add_(1).relu_()

    assert verdict(6, blocks)


def loop(x, out):
    a, b = x.flatten(), out.flatten()
    for i in range(len(a)):
        b[i] = max(2 * float(a[i]) + 1, 0.0)


def through_numpy(x, out):
    np.maximum(2 * x.numpy() + 1, 0, out=out.numpy())


def numpy_in_place(x, out):
    a = out.numpy()
    np.multiply(x.numpy(), 2, out=a)
    np.add(a, 1, out=a)
    np.maximum(a, 0, out=a)


def numpy_then_copy(x, out):
    out.copy_(torch.from_numpy(np.maximum(2 * x.numpy() + 1, 0)))


def list_then_copy(x, out):
    out.copy_(torch.frombuffer(bytearray(np.maximum(2 * x.numpy() + 1, 0).tobytes()), dtype=x.dtype).reshape(x.shape))


@pytest.mark.parametrize(
    ("mistake", "function"),
    [
        ("fresh memory", lambda x, out: out.copy_(torch.relu(2 * x + 1))),
        ("fresh memory", lambda x, out: torch.relu_(torch.add(x * 2, 1, out=out))),
        ("fresh memory", numpy_then_copy),
        ("fresh memory", list_then_copy),
        ("not PyTorch", through_numpy),
        ("not PyTorch", numpy_in_place),
        ("a loop over elements", loop),
        ("changed the input", lambda x, out: out.copy_(x.mul_(2).add_(1).relu_())),
        ("bound a name", lambda x, out: torch.relu(2 * x + 1)),
        ("no relu", lambda x, out: torch.mul(x, 2, out=out).add_(1)),
        (None, lambda x, out: torch.mul(x, 3, out=out).add_(1).relu_()),
    ],
)
def test_chain_mistakes(mistake, function):
    result = verdict(6, function)
    assert result.outcome == "wrong" and result.misconception == mistake, result.feedback
