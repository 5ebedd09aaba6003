"""Compute, bandwidth or overhead: the roofline model and the traffic of common kernels.

Every count is of one call of the kernel. A multiply and an add are two FLOP. Bytes are compulsory traffic:
each input is read once from main memory and each output written once. Every formula raises `FormulaError`
for an argument that is not a finite number in its unit's range.
"""

from __future__ import annotations

from typing import Literal

from efflab.formulas.namespace import as_count, as_flop, formula, maximum, minimum, sqrt, where
from efflab.units import Byte, BytePerSecond, Count, Flop, FlopPerByte, FlopPerSecond, Number, Second


@formula
def arithmetic_intensity(*, flops: Flop, bytes_moved: Byte) -> FlopPerByte:
    r"""Operations per byte of main-memory traffic.

    Equation: I = \frac{W}{Q}
    Where: W = flops; Q = bytes_moved
    Source: Williams, Waterman & Patterson 2009, CACM 52(4), doi:10.1145/1498765.1498785
    Assumes: the traffic is what crosses the main-memory bus, after the caches.
    """
    return flops / bytes_moved


@formula
def ridge_point(*, peak_performance: FlopPerSecond, memory_bandwidth: BytePerSecond) -> FlopPerByte:
    r"""The least arithmetic intensity at which peak performance can be reached.

    Equation: I^{*} = \frac{\pi}{\beta}
    Where: \pi = peak_performance; \beta = memory_bandwidth
    Source: Williams, Waterman & Patterson 2009, CACM 52(4), doi:10.1145/1498765.1498785
    Assumes: the same dtype for the peak as for the kernel; a dense peak for dense operands.
    """
    return peak_performance / memory_bandwidth


@formula
def attainable_performance(
    *, arithmetic_intensity: FlopPerByte, peak_performance: FlopPerSecond, memory_bandwidth: BytePerSecond
) -> FlopPerSecond:
    r"""Performance that a kernel can reach under the roofline.

    Equation: P = \min(\pi,\ \beta I)
    Where: I = arithmetic_intensity; \pi = peak_performance; \beta = memory_bandwidth
    Source: Williams, Waterman & Patterson 2009, CACM 52(4), doi:10.1145/1498765.1498785
    Assumes: memory traffic and arithmetic overlap perfectly.
    """
    return minimum(peak_performance, arithmetic_intensity * memory_bandwidth)


@formula
def compute_time(*, flops: Flop, peak_performance: FlopPerSecond) -> Second:
    r"""Time that the arithmetic alone takes at peak performance.

    Equation: t_c = \frac{W}{\pi}
    Where: W = flops; \pi = peak_performance
    Source: Williams, Waterman & Patterson 2009, CACM 52(4), doi:10.1145/1498765.1498785
    Assumes: every operation runs at the peak rate of its dtype.
    """
    return flops / peak_performance


@formula
def memory_time(*, bytes_moved: Byte, memory_bandwidth: BytePerSecond) -> Second:
    r"""Time that the memory traffic alone takes at full bandwidth.

    Equation: t_m = \frac{Q}{\beta}
    Where: Q = bytes_moved; \beta = memory_bandwidth
    Source: Williams, Waterman & Patterson 2009, CACM 52(4), doi:10.1145/1498765.1498785
    Assumes: the traffic is compulsory: each input read once, each output written once.
    """
    return bytes_moved / memory_bandwidth


@formula
def roofline_time(
    *,
    flops: Flop,
    bytes_moved: Byte,
    peak_performance: FlopPerSecond,
    memory_bandwidth: BytePerSecond,
    overhead: Second,
) -> Second:
    r"""Least time for one call of a kernel, with a fixed overhead.

    Equation: t = t_0 + \max\left(\frac{W}{\pi},\ \frac{Q}{\beta}\right)
    Where: W = flops; Q = bytes_moved; \pi = peak_performance; \beta = memory_bandwidth; t_0 = overhead
    Source: Williams, Waterman & Patterson 2009, CACM 52(4), doi:10.1145/1498765.1498785; the overhead term
        follows Hockney & Jesshope 1988, Parallel Computers 2 (start-up time)
    Assumes: arithmetic and traffic overlap perfectly; the overhead overlaps with neither, as on a CPU or for a
        launch that is waited for.
    """
    return overhead + maximum(
        compute_time(flops=flops, peak_performance=peak_performance),
        memory_time(bytes_moved=bytes_moved, memory_bandwidth=memory_bandwidth),
    )


@formula
def queued_time(
    *,
    flops: Flop,
    bytes_moved: Byte,
    peak_performance: FlopPerSecond,
    memory_bandwidth: BytePerSecond,
    overhead: Second,
) -> Second:
    r"""Least time per call of a kernel in a queue of many calls.

    Equation: t = \max\left(t_0,\ \frac{W}{\pi},\ \frac{Q}{\beta}\right)
    Where: W = flops; Q = bytes_moved; \pi = peak_performance; \beta = memory_bandwidth; t_0 = overhead
    Source: Definition; He 2022, Making Deep Learning Go Brrrr From First Principles
    Assumes: arithmetic, traffic and the launch of the next call overlap perfectly, as on a GPU whose results are
        not waited for.
    """
    return maximum(
        overhead,
        roofline_time(
            flops=flops,
            bytes_moved=bytes_moved,
            peak_performance=peak_performance,
            memory_bandwidth=memory_bandwidth,
            overhead=0.0 * overhead,
        ),
    )


@formula
def limiting_factor(
    *,
    flops: Flop,
    bytes_moved: Byte,
    peak_performance: FlopPerSecond,
    memory_bandwidth: BytePerSecond,
    overhead: Second,
) -> Number:
    r"""Which term is largest: 0 the overhead, 1 the memory traffic, 2 the arithmetic.

    Equation: \arg\max\left(t_0,\ \frac{Q}{\beta},\ \frac{W}{\pi}\right)
    Where: W = flops; Q = bytes_moved; \pi = peak_performance; \beta = memory_bandwidth; t_0 = overhead
    Source: Definition
    Assumes: a tie goes to the arithmetic, then to the memory.
    """
    arithmetic = compute_time(flops=flops, peak_performance=peak_performance)
    traffic = memory_time(bytes_moved=bytes_moved, memory_bandwidth=memory_bandwidth)
    return where(overhead, ">", maximum(arithmetic, traffic), 0, where(traffic, ">", arithmetic, 1, 2))


@formula
def operations_to_hide_memory(
    *,
    peak_performance: FlopPerSecond,
    memory_bandwidth: BytePerSecond,
    bytes_per_element: Byte,
    accesses_per_element: Count,
) -> Flop:
    r"""Operations per element that take as long as moving the element.

    Equation: W_e = \frac{\pi}{\beta} \, a b
    Where: \pi = peak_performance; \beta = memory_bandwidth; b = bytes_per_element; a = accesses_per_element
    Source: Definition; He 2022, Making Deep Learning Go Brrrr From First Principles
    Assumes: a = 2 counts one read and one write; the peak counts a fused multiply-add as two operations.
    """
    return peak_performance * accesses_per_element * bytes_per_element / memory_bandwidth


@formula
def operations_to_hide_overhead(*, peak_performance: FlopPerSecond, overhead: Second) -> Flop:
    r"""Operations that the device could have done during a fixed overhead.

    Equation: W_0 = \pi \, t_0
    Where: \pi = peak_performance; t_0 = overhead
    Source: Definition; He 2022, Making Deep Learning Go Brrrr From First Principles
    Assumes: nothing else runs meanwhile.
    """
    return peak_performance * overhead


@formula
def bytes_to_hide_overhead(*, memory_bandwidth: BytePerSecond, overhead: Second) -> Byte:
    r"""Bytes that memory could have moved during a fixed overhead.

    Equation: Q_0 = \beta \, t_0
    Where: \beta = memory_bandwidth; t_0 = overhead
    Source: Definition
    Assumes: nothing else runs meanwhile.
    """
    return memory_bandwidth * overhead


@formula
def overhead_of_calls(*, calls: Count, overhead: Second) -> Second:
    r"""Overhead of several calls together.

    Equation: t = k \, t_0
    Where: k = calls; t_0 = overhead
    Source: Definition
    Assumes: no call is launched while another is: one thread launches them all.
    """
    return calls * overhead


@formula
def square_matmul_to_hide_overhead(
    *,
    peak_performance: FlopPerSecond,
    memory_bandwidth: BytePerSecond,
    bytes_per_element: Byte,
    overhead: Second,
) -> Number:
    r"""Smallest square matrix product whose work takes as long as a fixed overhead.

    Equation: n = \min\left(\sqrt[3]{\frac{\pi t_0}{2}},\ \sqrt{\frac{\beta t_0}{3b}}\right)
    Where: \pi = peak_performance; \beta = memory_bandwidth; b = bytes_per_element; t_0 = overhead
    Source: Definition: the least n with \max(2n^3/\pi,\ 3n^2b/\beta) \ge t_0
    Assumes: an (n, n) by (n, n) product under the roofline, with compulsory traffic; n is rounded up in use.
    """
    work = as_count(operations_to_hide_overhead(peak_performance=peak_performance, overhead=overhead))
    traffic = bytes_to_hide_overhead(memory_bandwidth=memory_bandwidth, overhead=overhead)
    return minimum((work / 2) ** (1 / 3), sqrt(traffic / (3 * bytes_per_element)))


@formula
def batch_at_ridge_point(
    *, peak_performance: FlopPerSecond, memory_bandwidth: BytePerSecond, bytes_per_weight: Byte
) -> Number:
    r"""Rows of activations at which a large weight matrix stops being memory-bound.

    Equation: B^{*} = \frac{\pi \, b}{2 \beta}
    Where: \pi = peak_performance; \beta = memory_bandwidth; b = bytes_per_weight
    Source: Definition; Austin et al. 2025, How to Scale Your Model, ch. 1 (B_crit)
    Assumes: reading the weights dominates the traffic: the matrix is much wider than the batch.
    """
    return as_count(peak_performance * bytes_per_weight / (2 * memory_bandwidth))  # 2 FLOP per weight and row


@formula
def matmul_flops(*, m: Count, n: Count, k: Count) -> Flop:
    r"""Operations of an (m, k) by (k, n) matrix product.

    Equation: W = 2mnk
    Where: m = m; n = n; k = k
    Source: Golub & Van Loan 2013, Matrix Computations, 4th ed., table 1.1.2
    Assumes: the ordinary algorithm, not Strassen's.
    """
    return as_flop(2 * m * n * k)


@formula
def matmul_bytes(*, m: Count, n: Count, k: Count, bytes_per_element: Byte) -> Byte:
    r"""Compulsory traffic of an (m, k) by (k, n) matrix product.

    Equation: Q = (mk + kn + mn) \, b
    Where: m = m; n = n; k = k; b = bytes_per_element
    Source: Definition
    Assumes: both operands are read once and the result is written once: caches hold what is reused.
    """
    return (m * k + k * n + m * n) * bytes_per_element


@formula
def matmul_intensity(*, m: Count, n: Count, k: Count, bytes_per_element: Byte) -> FlopPerByte:
    r"""Arithmetic intensity of an (m, k) by (k, n) matrix product.

    Equation: I = \frac{2mnk}{(mk + kn + mn) \, b}
    Where: m = m; n = n; k = k; b = bytes_per_element
    Source: NVIDIA, Matrix Multiplication Background User's Guide
    Assumes: compulsory traffic only.
    """
    return arithmetic_intensity(
        flops=matmul_flops(m=m, n=n, k=k), bytes_moved=matmul_bytes(m=m, n=n, k=k, bytes_per_element=bytes_per_element)
    )


@formula
def gemv_flops(*, m: Count, n: Count) -> Flop:
    r"""Operations of an (m, n) matrix times a vector.

    Equation: W = 2mn
    Where: m = m; n = n
    Source: Golub & Van Loan 2013, Matrix Computations, 4th ed., table 1.1.2
    Assumes: a dense matrix.
    """
    return matmul_flops(m=m, n=1, k=n)


@formula
def gemv_bytes(*, m: Count, n: Count, bytes_per_element: Byte) -> Byte:
    r"""Compulsory traffic of an (m, n) matrix times a vector.

    Equation: Q = (mn + m + n) \, b
    Where: m = m; n = n; b = bytes_per_element
    Source: Definition
    Assumes: the matrix and the vector are read once and the result is written once.
    """
    return matmul_bytes(m=m, n=1, k=n, bytes_per_element=bytes_per_element)


@formula
def gemv_intensity(*, m: Count, n: Count, bytes_per_element: Byte) -> FlopPerByte:
    r"""Arithmetic intensity of a matrix times a vector.

    Equation: I = \frac{2mn}{(mn + m + n) \, b}
    Where: m = m; n = n; b = bytes_per_element
    Source: Definition
    Assumes: compulsory traffic only.
    """
    return arithmetic_intensity(
        flops=gemv_flops(m=m, n=n), bytes_moved=gemv_bytes(m=m, n=n, bytes_per_element=bytes_per_element)
    )


@formula
def chain_flops(*, elements: Count, operations: Count) -> Flop:
    r"""Operations of a chain of elementwise operations on one array.

    Equation: W = kN
    Where: N = elements; k = operations
    Source: Definition
    Assumes: each operation of the chain is one FLOP per element.
    """
    return as_flop(operations * elements)


@formula
def unfused_chain_bytes(*, elements: Count, operations: Count, bytes_per_element: Byte) -> Byte:
    r"""Traffic of an elementwise chain run one operation at a time.

    Equation: Q = 2kNb
    Where: N = elements; k = operations; b = bytes_per_element
    Source: Definition
    Assumes: each operation reads the array from main memory and writes it back: the array is larger than the
        caches.
    """
    return 2 * operations * elements * bytes_per_element


@formula
def fused_chain_bytes(*, elements: Count, bytes_per_element: Byte) -> Byte:
    r"""Traffic of an elementwise chain fused into one kernel.

    Equation: Q = 2Nb
    Where: N = elements; b = bytes_per_element
    Source: Definition
    Assumes: the array is read once and written once.
    """
    return 2 * elements * bytes_per_element


@formula
def unfused_chain_intensity(*, elements: Count, operations: Count, bytes_per_element: Byte) -> FlopPerByte:
    r"""Arithmetic intensity of an elementwise chain run one operation at a time.

    Equation: I = \frac{1}{2b}
    Where: N = elements; k = operations; b = bytes_per_element
    Source: Definition
    Assumes: one FLOP per element and operation.
    """
    return arithmetic_intensity(
        flops=chain_flops(elements=elements, operations=operations),
        bytes_moved=unfused_chain_bytes(elements=elements, operations=operations, bytes_per_element=bytes_per_element),
    )


@formula
def fused_chain_intensity(*, elements: Count, operations: Count, bytes_per_element: Byte) -> FlopPerByte:
    r"""Arithmetic intensity of an elementwise chain fused into one kernel.

    Equation: I = \frac{k}{2b}
    Where: N = elements; k = operations; b = bytes_per_element
    Source: Definition
    Assumes: one FLOP per element and operation.
    """
    return arithmetic_intensity(
        flops=chain_flops(elements=elements, operations=operations),
        bytes_moved=fused_chain_bytes(elements=elements, bytes_per_element=bytes_per_element),
    )


@formula
def unfused_chain_time(
    *,
    elements: Count,
    operations: Count,
    bytes_per_element: Byte,
    peak_performance: FlopPerSecond,
    memory_bandwidth: BytePerSecond,
    overhead: Second,
) -> Second:
    r"""Least time of an elementwise chain run one operation at a time.

    Equation: t = k \left(t_0 + \max\left(\frac{N}{\pi},\ \frac{2Nb}{\beta}\right)\right)
    Where: N = elements; k = operations; b = bytes_per_element; \pi = peak_performance; \beta =
        memory_bandwidth; t_0 = overhead
    Source: Definition
    Assumes: as `roofline_time`, once per operation: each operation's overhead comes on top of its work.
    """
    return operations * roofline_time(
        flops=chain_flops(elements=elements, operations=1),
        bytes_moved=fused_chain_bytes(elements=elements, bytes_per_element=bytes_per_element),
        peak_performance=peak_performance,
        memory_bandwidth=memory_bandwidth,
        overhead=overhead,
    )


@formula
def fused_chain_time(
    *,
    elements: Count,
    operations: Count,
    bytes_per_element: Byte,
    peak_performance: FlopPerSecond,
    memory_bandwidth: BytePerSecond,
    overhead: Second,
) -> Second:
    r"""Least time of an elementwise chain fused into one kernel.

    Equation: t = t_0 + \max\left(\frac{kN}{\pi},\ \frac{2Nb}{\beta}\right)
    Where: N = elements; k = operations; b = bytes_per_element; \pi = peak_performance; \beta =
        memory_bandwidth; t_0 = overhead
    Source: Definition
    Assumes: as `roofline_time`, once.
    """
    return roofline_time(
        flops=chain_flops(elements=elements, operations=operations),
        bytes_moved=fused_chain_bytes(elements=elements, bytes_per_element=bytes_per_element),
        peak_performance=peak_performance,
        memory_bandwidth=memory_bandwidth,
        overhead=overhead,
    )


@formula
def queued_unfused_chain_time(
    *,
    elements: Count,
    operations: Count,
    bytes_per_element: Byte,
    peak_performance: FlopPerSecond,
    memory_bandwidth: BytePerSecond,
    overhead: Second,
) -> Second:
    r"""Least time of an elementwise chain run one operation at a time in a queue of calls.

    Equation: t = k \max\left(t_0,\ \frac{N}{\pi},\ \frac{2Nb}{\beta}\right)
    Where: N = elements; k = operations; b = bytes_per_element; \pi = peak_performance; \beta =
        memory_bandwidth; t_0 = overhead
    Source: Definition
    Assumes: as `queued_time`, once per operation.
    """
    return operations * queued_time(
        flops=chain_flops(elements=elements, operations=1),
        bytes_moved=fused_chain_bytes(elements=elements, bytes_per_element=bytes_per_element),
        peak_performance=peak_performance,
        memory_bandwidth=memory_bandwidth,
        overhead=overhead,
    )


@formula
def queued_fused_chain_time(
    *,
    elements: Count,
    operations: Count,
    bytes_per_element: Byte,
    peak_performance: FlopPerSecond,
    memory_bandwidth: BytePerSecond,
    overhead: Second,
) -> Second:
    r"""Least time of an elementwise chain fused into one kernel, in a queue of calls.

    Equation: t = \max\left(t_0,\ \frac{kN}{\pi},\ \frac{2Nb}{\beta}\right)
    Where: N = elements; k = operations; b = bytes_per_element; \pi = peak_performance; \beta =
        memory_bandwidth; t_0 = overhead
    Source: Definition
    Assumes: as `queued_time`, once.
    """
    return queued_time(
        flops=chain_flops(elements=elements, operations=operations),
        bytes_moved=fused_chain_bytes(elements=elements, bytes_per_element=bytes_per_element),
        peak_performance=peak_performance,
        memory_bandwidth=memory_bandwidth,
        overhead=overhead,
    )


@formula
def fusion_speedup(
    *,
    elements: Count,
    operations: Count,
    bytes_per_element: Byte,
    peak_performance: FlopPerSecond,
    memory_bandwidth: BytePerSecond,
    overhead: Second,
) -> Number:
    r"""How many times faster the fused chain is.

    Equation: \frac{t_{\text{unfused}}}{t_{\text{fused}}}
    Where: N = elements; k = operations; b = bytes_per_element; \pi = peak_performance; \beta =
        memory_bandwidth; t_0 = overhead
    Source: Definition
    Assumes: as `unfused_chain_time` and `fused_chain_time`.
    """
    unfused = unfused_chain_time(
        elements=elements,
        operations=operations,
        bytes_per_element=bytes_per_element,
        peak_performance=peak_performance,
        memory_bandwidth=memory_bandwidth,
        overhead=overhead,
    )
    fused = fused_chain_time(
        elements=elements,
        operations=operations,
        bytes_per_element=bytes_per_element,
        peak_performance=peak_performance,
        memory_bandwidth=memory_bandwidth,
        overhead=overhead,
    )
    return unfused / fused


@formula
def softmax_flops(*, rows: Count, columns: Count) -> Flop:
    r"""Operations of a softmax over each row.

    Equation: W = 5rc
    Where: r = rows; c = columns
    Source: counted from the safe softmax of Milakov & Gimelshein 2018, arXiv:1805.02867; Yuan et al. 2024,
        arXiv:2402.16363, count the same five
    Assumes: per element one comparison, subtraction, exponential, addition and division, each one FLOP.
    """
    return as_flop(5 * rows * columns)


@formula
def softmax_bytes(*, rows: Count, columns: Count, bytes_per_element: Byte) -> Byte:
    r"""Compulsory traffic of a softmax over each row.

    Equation: Q = 2rcb
    Where: r = rows; c = columns; b = bytes_per_element
    Source: Definition
    Assumes: a row stays in fast memory between its passes.
    """
    return 2 * rows * columns * bytes_per_element


@formula
def softmax_intensity(*, rows: Count, columns: Count, bytes_per_element: Byte) -> FlopPerByte:
    r"""Arithmetic intensity of a softmax over each row.

    Equation: I = \frac{5}{2b}
    Where: r = rows; c = columns; b = bytes_per_element
    Source: Definition
    Assumes: as `softmax_flops` and `softmax_bytes`.
    """
    return arithmetic_intensity(
        flops=softmax_flops(rows=rows, columns=columns),
        bytes_moved=softmax_bytes(rows=rows, columns=columns, bytes_per_element=bytes_per_element),
    )


@formula
def layer_norm_flops(*, rows: Count, columns: Count) -> Flop:
    r"""Operations of a layer norm over each row, with scale and shift.

    Equation: W = 7rc
    Where: r = rows; c = columns
    Source: Ba, Kiros & Hinton 2016, Layer Normalization, arXiv:1607.06450, eq. 3-4
    Assumes: per element two additions for mean and variance, one subtraction, one square, three operations to
        scale and shift.
    """
    return as_flop(7 * rows * columns)


@formula
def layer_norm_bytes(*, rows: Count, columns: Count, bytes_per_element: Byte) -> Byte:
    r"""Compulsory traffic of a layer norm over each row.

    Equation: Q = (2rc + 2c) \, b
    Where: r = rows; c = columns; b = bytes_per_element
    Source: Definition
    Assumes: a row stays in fast memory between its passes; scale and shift are read once.
    """
    return (2 * rows * columns + 2 * columns) * bytes_per_element


@formula
def layer_norm_intensity(*, rows: Count, columns: Count, bytes_per_element: Byte) -> FlopPerByte:
    r"""Arithmetic intensity of a layer norm over each row.

    Equation: I = \frac{7rc}{(2rc + 2c) \, b}
    Where: r = rows; c = columns; b = bytes_per_element
    Source: Definition
    Assumes: as `layer_norm_flops` and `layer_norm_bytes`.
    """
    return arithmetic_intensity(
        flops=layer_norm_flops(rows=rows, columns=columns),
        bytes_moved=layer_norm_bytes(rows=rows, columns=columns, bytes_per_element=bytes_per_element),
    )


@formula
def attention_prefill_flops(
    *, batch: Count, query_heads: Count, sequence_length: Count, head_dim: Count, causal: Literal[True, False]
) -> Flop:
    r"""Operations of self-attention over a whole sequence.

    Equation: W = 4 B h_q d \sum_{i=1}^{s} n_i, \quad n_i = s \text{ or, if causal, } i
    Where: B = batch; h_q = query_heads; s = sequence_length; d = head_dim; \text{causal} = causal
    Source: Dao 2023, FlashAttention-2, arXiv:2307.08691, section 4 (4 s^2 d per head); Vaswani et al. 2017,
        arXiv:1706.03762, eq. 1
    Assumes: the two matrix products only; a causal kernel skips every masked pair.
    """
    pairs = sequence_length * (sequence_length + 1) / 2 if causal else sequence_length * sequence_length
    return as_flop(4 * batch * query_heads * head_dim * pairs)


@formula
def attention_prefill_bytes(
    *,
    batch: Count,
    query_heads: Count,
    kv_heads: Count,
    sequence_length: Count,
    head_dim: Count,
    bytes_per_element: Byte,
) -> Byte:
    r"""Compulsory traffic of self-attention over a whole sequence.

    Equation: Q = (2 h_q + 2 h_{kv}) B s d \, b
    Where: B = batch; h_q = query_heads; h_{kv} = kv_heads; s = sequence_length; d = head_dim; b =
        bytes_per_element
    Source: Definition
    Assumes: Q, K, V are read once and the output is written once; the scores never reach main memory, and keys and
        values that are read again come from a cache. FlashAttention itself moves more where they do not
        (arXiv:2205.14135, theorem 2).
    """
    return (2 * query_heads + 2 * kv_heads) * batch * sequence_length * head_dim * bytes_per_element


@formula
def attention_prefill_intensity(
    *,
    batch: Count,
    query_heads: Count,
    kv_heads: Count,
    sequence_length: Count,
    head_dim: Count,
    bytes_per_element: Byte,
    causal: Literal[True, False],
) -> FlopPerByte:
    r"""Arithmetic intensity of self-attention over a whole sequence.

    Equation: I = \frac{W}{Q} = \frac{s}{b} \text{ for } h_q = h_{kv} \text{, not causal}
    Where: B = batch; h_q = query_heads; h_{kv} = kv_heads; s = sequence_length; d = head_dim; b =
        bytes_per_element; \text{causal} = causal
    Source: Definition
    Assumes: as `attention_prefill_flops` and `attention_prefill_bytes`.
    """
    return arithmetic_intensity(
        flops=attention_prefill_flops(
            batch=batch, query_heads=query_heads, sequence_length=sequence_length, head_dim=head_dim, causal=causal
        ),
        bytes_moved=attention_prefill_bytes(
            batch=batch,
            query_heads=query_heads,
            kv_heads=kv_heads,
            sequence_length=sequence_length,
            head_dim=head_dim,
            bytes_per_element=bytes_per_element,
        ),
    )


@formula
def attention_decode_flops(*, batch: Count, query_heads: Count, context_length: Count, head_dim: Count) -> Flop:
    r"""Operations of attention for one new token in each sequence.

    Equation: W = 4 B h_q t d
    Where: B = batch; h_q = query_heads; t = context_length; d = head_dim
    Source: Shazeer 2019, Fast Transformer Decoding, arXiv:1911.02150; Ainslie et al. 2023, GQA,
        arXiv:2305.13245
    Assumes: the two matrix products only.
    """
    return as_flop(4 * batch * query_heads * context_length * head_dim)


@formula
def attention_decode_bytes(
    *,
    batch: Count,
    query_heads: Count,
    kv_heads: Count,
    context_length: Count,
    head_dim: Count,
    bytes_per_element: Byte,
) -> Byte:
    r"""Compulsory traffic of attention for one new token in each sequence.

    Equation: Q = (2 h_{kv} t + 2 h_q) B d \, b
    Where: B = batch; h_q = query_heads; h_{kv} = kv_heads; t = context_length; d = head_dim; b =
        bytes_per_element
    Source: Shazeer 2019, Fast Transformer Decoding, arXiv:1911.02150; Ainslie et al. 2023, GQA,
        arXiv:2305.13245
    Assumes: the KV cache and the query are read once and the output is written once.
    """
    return (2 * kv_heads * context_length + 2 * query_heads) * batch * head_dim * bytes_per_element


@formula
def attention_decode_intensity(
    *,
    batch: Count,
    query_heads: Count,
    kv_heads: Count,
    context_length: Count,
    head_dim: Count,
    bytes_per_element: Byte,
) -> FlopPerByte:
    r"""Arithmetic intensity of attention for one new token in each sequence.

    Equation: I = \frac{W}{Q} \approx \frac{2}{b} \frac{h_q}{h_{kv}}
    Where: B = batch; h_q = query_heads; h_{kv} = kv_heads; t = context_length; d = head_dim; b =
        bytes_per_element
    Source: Shazeer 2019, Fast Transformer Decoding, arXiv:1911.02150; Ainslie et al. 2023, GQA,
        arXiv:2305.13245
    Assumes: as `attention_decode_flops` and `attention_decode_bytes`.
    """
    return arithmetic_intensity(
        flops=attention_decode_flops(
            batch=batch, query_heads=query_heads, context_length=context_length, head_dim=head_dim
        ),
        bytes_moved=attention_decode_bytes(
            batch=batch,
            query_heads=query_heads,
            kv_heads=kv_heads,
            context_length=context_length,
            head_dim=head_dim,
            bytes_per_element=bytes_per_element,
        ),
    )


# The kernels that the course places on a roofline, each with its operations and its traffic. The calculator
# offers them and `reconcile` looks a recorded kernel up here.
KERNELS = {
    "matmul": (matmul_flops, matmul_bytes),
    "gemv": (gemv_flops, gemv_bytes),
    "unfused_chain": (chain_flops, unfused_chain_bytes),
    "fused_chain": (chain_flops, fused_chain_bytes),
    "softmax": (softmax_flops, softmax_bytes),
    "layer_norm": (layer_norm_flops, layer_norm_bytes),
    "attention_prefill": (attention_prefill_flops, attention_prefill_bytes),
    "attention_decode": (attention_decode_flops, attention_decode_bytes),
}
