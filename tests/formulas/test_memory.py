"""Memory formulas against tensors and published tables.

Oracles: the tensors that PyTorch saves for the backward pass of a plain decoder, counted by storage; the bytes of real
parameters, gradients and optimizer states; a real KV cache; ranks that shard real tensors; ZeRO's table 1 and
Korthikanti's table 2 as printed.
"""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop
from torch.utils.flop_counter import FlopCounterMode

from efflab.formulas import memory as m
from efflab.measure.memory import SavedTensors
from efflab.units import BYTE, parse, show, show_binary

sizes = st.integers(1, 6)


def storages(tensors):
    """Bytes of the distinct storages under some tensors."""
    found = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(found.values())


def saved_bytes(run, outside, rows):
    """Bytes that autograd keeps between forward and backward, without the tensors `outside` (parameters, targets).

    Row statistics (mean, variance, log-sum-exp, the sum of weights), which the formulas leave out, have at most `rows`
    numbers.
    """
    kept: list[torch.Tensor] = []

    def keep(tensor):
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        result = run()
    known = {t.untyped_storage().data_ptr() for t in outside}
    counted = [t for t in kept if t.untyped_storage().data_ptr() not in known]
    counted = [t for t in counted if t.untyped_storage().nbytes() // t.element_size() > rows]
    assert result is not None  # alive until its tensors are counted
    return storages(counted)


class Norm(nn.Module):
    """Layer norm as one operation that keeps its input and two numbers per row."""

    def __init__(self, width):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x):
        return F.layer_norm(x, x.shape[-1:], self.weight, self.bias)


class Layer(nn.Module):
    """A decoder layer in plain PyTorch, one operation per line."""

    def __init__(self, width, wide, heads, kv_heads, gated, attention, dropout):
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = heads, kv_heads, width // heads
        self.gated, self.attention, self.dropout = gated, attention, dropout
        self.norm1, self.norm2 = Norm(width), Norm(width)
        self.q = nn.Linear(width, width)
        self.k, self.v = (nn.Linear(width, kv_heads * self.head_dim) for _ in range(2))
        self.out = nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, wide), nn.Linear(wide, width)
        self.gate = nn.Linear(width, wide) if gated else None

    def split(self, x, heads):
        batch, length, _ = x.shape
        return x.view(batch, length, heads, self.head_dim).transpose(1, 2)

    def forward(self, x):
        batch, length, width = x.shape
        y = self.norm1(x)
        q = self.split(self.q(y), self.heads)
        k, v = self.split(self.k(y), self.kv_heads), self.split(self.v(y), self.kv_heads)
        if self.attention == "flash":
            z = F.scaled_dot_product_attention(
                q, k, v, dropout_p=self.dropout, is_causal=True, enable_gqa=self.kv_heads != self.heads
            )
        else:
            scores = (q @ k.transpose(-2, -1)) * self.head_dim**-0.5
            scores = F.dropout(torch.softmax(scores, -1), self.dropout, training=self.dropout > 0)
            z = scores @ v
        z = self.out(z.transpose(1, 2).reshape(batch, length, width))
        x = x + F.dropout(z, self.dropout, training=self.dropout > 0)
        y = self.norm2(x)
        y = F.silu(self.gate(y)) * self.up(y) if self.gated else F.gelu(self.up(y))
        y = self.down(y)
        return x + F.dropout(y, self.dropout, training=self.dropout > 0)


CASES = [
    (attention, gated, dropout, dtype)
    for attention, gated, dropout, dtype in itertools.product(
        ("standard", "flash"), (False, True), (0.0, 0.1), (torch.float32, torch.bfloat16)
    )
    if not (attention == "flash" and dropout)  # PyTorch's CPU kernel has no dropout
]


@pytest.mark.parametrize(("attention", "gated", "dropout", "dtype"), CASES)
def test_layer_activations_by_counting_saved_tensors(attention, gated, dropout, dtype):
    layers, batch, length, width, wide, heads = 3, 2, 64, 64, 160, 4
    torch.manual_seed(0)
    net = nn.Sequential(*(Layer(width, wide, heads, heads, gated, attention, dropout) for _ in range(layers)))
    net = net.to(dtype)
    x = torch.randn(batch, length, width, dtype=dtype, requires_grad=True)
    counted = saved_bytes(lambda: net(x), list(net.parameters()), rows=batch * length * heads)
    ours = m.layer_activation_bytes(
        layers=layers,
        sequence_length=length,
        microbatch=batch,
        hidden_size=width,
        intermediate_size=wide,
        mlp_matrices=3 if gated else 2,
        query_heads=heads,
        kv_heads=heads,
        bytes_per_element=dtype.itemsize,
        mask_bytes=dtype.itemsize,  # on a CPU, eager dropout keeps its noise in the tensor's own format
        attention=attention,
        dropout=dropout > 0,
        recomputation="none",
    )
    assert counted == ours


def test_grouped_query_attention_keeps_fewer_keys_and_values():
    batch, length, width, wide, heads, kv_heads = 1, 64, 64, 160, 8, 2
    net = Layer(width, wide, heads, kv_heads, True, "flash", 0.0)
    x = torch.randn(batch, length, width, requires_grad=True)
    counted = saved_bytes(lambda: net(x), list(net.parameters()), rows=batch * length * heads)
    common = dict(
        layers=1,
        sequence_length=length,
        microbatch=batch,
        hidden_size=width,
        intermediate_size=wide,
        mlp_matrices=3,
        query_heads=heads,
        bytes_per_element=4,
        mask_bytes=1,
        attention="flash",
        dropout=False,
        recomputation="none",
    )
    assert counted == m.layer_activation_bytes(kv_heads=kv_heads, **common)
    assert counted < m.layer_activation_bytes(kv_heads=heads, **common)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_full_recomputation_keeps_the_layers_inputs(dtype):
    layers, batch, length, width = 4, 2, 64, 64
    net = nn.ModuleList(Layer(width, 160, 4, 4, False, "standard", 0.0) for _ in range(layers)).to(dtype)
    x = torch.randn(batch, length, width, dtype=dtype, requires_grad=True)

    def run():
        y = x
        for layer in net:
            y = checkpoint(layer, y, use_reentrant=False)
        return y

    saved = SavedTensors(own=net.parameters())
    with saved.region("layers"):
        result = run()
    ours = m.layer_activation_bytes(
        layers=layers,
        sequence_length=length,
        microbatch=batch,
        hidden_size=width,
        intermediate_size=160,
        mlp_matrices=2,
        query_heads=4,
        kv_heads=4,
        bytes_per_element=dtype.itemsize,
        mask_bytes=1,
        attention="standard",
        dropout=False,
        recomputation="full",
    )
    assert [(k.shape, k.nbytes) for k in saved.kept() if k.nbytes] == layers * [(tuple(x.shape), ours / layers)]
    result.sum().backward()
    assert saved.bytes() == 0, "it was the backward pass that they were kept for"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_output_activations_by_counting_saved_tensors(dtype):
    batch, length, width, vocabulary = 2, 64, 64, 500
    norm, head = Norm(width).to(dtype), nn.Linear(width, vocabulary, bias=False).to(dtype)
    x = torch.randn(batch, length, width, dtype=dtype, requires_grad=True)
    target = torch.randint(vocabulary, (batch * length,))

    def run():
        logits = head(norm(x)).float()
        return F.cross_entropy(logits.view(-1, vocabulary), target)

    counted = saved_bytes(run, [*norm.parameters(), *head.parameters(), target], rows=batch * length)
    ours = m.output_activation_bytes(
        sequence_length=length,
        microbatch=batch,
        hidden_size=width,
        vocabulary=vocabulary,
        bytes_per_element=dtype.itemsize,
    )
    assert counted == ours
    logits = head(norm(x))
    assert storages([logits]) == m.logits_bytes(
        sequence_length=length, microbatch=batch, vocabulary=vocabulary, bytes_per_element=dtype.itemsize
    )


# Korthikanti et al. 2022


@given(st.integers(1, 100), st.integers(1, 4096), st.integers(1, 8), st.integers(1, 64), st.integers(1, 16))
def test_the_general_formula_is_korthikantis_in_16_bits(layers, length, batch, heads, multiple):
    width = heads * 8 * multiple
    common = dict(layers=layers, sequence_length=length, microbatch=batch, hidden_size=width, query_heads=heads)
    theirs = dict(tensor_parallel=1, sequence_parallel=False)
    general = dict(
        intermediate_size=4 * width,
        mlp_matrices=2,
        kv_heads=heads,
        bytes_per_element=2,
        mask_bytes=1,
        dropout=True,
    )
    for attention, recomputation in itertools.product(("standard", "flash"), ("none", "full")):
        choice = dict(attention=attention, recomputation=recomputation)
        assert math.isclose(
            m.layer_activation_bytes(**common, **general, **choice),
            m.activation_bytes(**common, **theirs, **choice),
            rel_tol=1e-12,
        )


def blocks(s, b, h, a):
    """Section 4.1 block by block, item by item: what every rank keeps, what tensor parallelism splits, the scores."""
    inputs = 2 * s * b * h + 2 * s * b * h  # into Q, K, V; into the MLP
    norms = 2 * (2 * s * b * h)
    masks = s * b * h + s * b * h
    q_and_k, v, into_projection = 4 * s * b * h, 2 * s * b * h, 2 * s * b * h
    into_gelu, into_second = 8 * s * b * h, 8 * s * b * h
    softmax, softmax_mask, softmax_dropout = 2 * a * s * s * b, a * s * s * b, 2 * a * s * s * b
    return (
        inputs + norms + masks,
        q_and_k + v + into_projection + into_gelu + into_second,
        softmax + softmax_mask + softmax_dropout,
    )


@given(sizes, st.integers(1, 64), sizes, st.integers(1, 64), sizes, st.integers(1, 8))
def test_korthikantis_table_2_by_adding_up_the_blocks(layers, s, b, h, a, t):
    replicated, split, scores = blocks(s, b, h, a)
    expected = {
        (False, "none", "standard"): replicated + (split + scores) / t,
        (True, "none", "standard"): (replicated + split + scores) / t,
        (False, "selective", "standard"): replicated + split / t,
        (True, "selective", "standard"): (replicated + split) / t,
        (False, "none", "flash"): replicated + split / t,
        (True, "none", "flash"): (replicated + split) / t,
        (False, "full", "standard"): 2 * s * b * h,
        (True, "full", "standard"): 2 * s * b * h / t,
    }
    for (sequence_parallel, recomputation, attention), per_layer in expected.items():
        ours = m.activation_bytes(
            layers=layers,
            sequence_length=s,
            microbatch=b,
            hidden_size=h,
            query_heads=a,
            tensor_parallel=t,
            sequence_parallel=sequence_parallel,
            recomputation=recomputation,
            attention=attention,
        )
        assert math.isclose(ours, layers * per_layer, rel_tol=1e-12)


@given(st.integers(1, 4096), st.integers(1, 20000), st.integers(1, 200))
def test_the_saved_share_by_two_layers(s, h, a):
    common = dict(layers=1, sequence_length=s, microbatch=1, hidden_size=h, query_heads=a, tensor_parallel=8)
    whole, kept = (
        m.activation_bytes(**common, sequence_parallel=True, attention="standard", recomputation=r)
        for r in ("none", "selective")
    )
    ours = m.attention_activation_share(sequence_length=s, hidden_size=h, query_heads=a)
    assert math.isclose(ours, (whole - kept) / whole, rel_tol=1e-9)


@given(st.integers(1, 10000), st.integers(1, 20000))
def test_selective_recomputation_by_counting_products(s, h):
    """Of one sequence and layer: matrix products of 2mnk operations, forward once, backward twice."""
    projections = 4 * (2 * s * h * h) + 2 * (2 * s * h * 4 * h)
    scores = 2 * (2 * s * s * h)
    model = 3 * (projections + scores)
    ours = m.selective_recomputation_overhead(sequence_length=s, hidden_size=h)
    assert math.isclose(ours, scores / model, rel_tol=1e-12)


@pytest.mark.parametrize(("length", "width", "heads"), [(32, 64, 4), (96, 32, 2)])
def test_selective_recomputation_by_pytorchs_counter(length, width, heads):
    """Forward and backward of one layer, with and without a checkpoint around the scores."""
    net = nn.ModuleDict({"qkv": nn.Linear(width, 3 * width), "out": nn.Linear(width, width)})
    net.update({"up": nn.Linear(width, 4 * width), "down": nn.Linear(4 * width, width)})

    def core(q, k, v):
        return torch.softmax(q @ k.transpose(-2, -1), -1) @ v

    def operations(selective):
        x = torch.randn(1, length, width, requires_grad=True)
        with FlopCounterMode(display=False) as counter:
            q, k, v = net["qkv"](x).view(1, length, 3, heads, -1).permute(2, 0, 3, 1, 4)
            z = checkpoint(core, q, k, v, use_reentrant=False) if selective else core(q, k, v)
            y = net["out"](z.transpose(1, 2).reshape(1, length, width))
            net["down"](F.gelu(net["up"](y))).sum().backward()
        return counter.get_total_flops()

    model = operations(selective=False)
    # PyTorch stops before the last product, whose inputs are all that the backward pass needs; Megatron does not
    with set_checkpoint_early_stop(False):
        again = operations(selective=True)
    ours = m.selective_recomputation_overhead(sequence_length=length, hidden_size=width)
    assert math.isclose(again / model - 1, ours, rel_tol=1e-12)


# Training state


@pytest.mark.parametrize(
    ("weights", "optimizer", "convention"),
    [(torch.float32, "adam", "fp32"), (torch.bfloat16, "adam", None), (torch.float32, "momentum", None)],
)
def test_training_state_by_adding_up_tensors(weights, optimizer, convention):
    net = nn.Sequential(nn.Linear(300, 200), nn.Linear(200, 100)).to(weights)
    parameters = list(net.parameters())
    count = sum(p.numel() for p in parameters)
    step = torch.optim.AdamW(parameters) if optimizer == "adam" else torch.optim.SGD(parameters, lr=0.1, momentum=0.9)
    net(torch.randn(4, 300, dtype=weights)).float().square().sum().backward()
    step.step()
    states = [t for s in step.state.values() for t in s.values() if torch.is_tensor(t) and t.dim() > 0]
    size = weights.itemsize
    moments = 2 if optimizer == "adam" else 1
    ours = [
        m.weight_bytes(parameters=count, bytes_per_parameter=size),
        m.gradient_bytes(parameters=count, bytes_per_parameter=size),
        m.optimizer_bytes(parameters=count, bytes_per_parameter=moments * size),
    ]
    counted = [storages(parameters), storages([p.grad for p in parameters]), storages(states)]
    assert ours == counted
    if convention:
        assert sum(counted) == m.training_state_bytes(parameters=count, ranks=1, zero_stage=0, convention=convention)


def shard(tensor, ranks, rank, split):
    """The part of a tensor that a rank keeps."""
    return tensor.chunk(ranks)[rank].clone() if split else tensor


@pytest.mark.parametrize(("ranks", "stage"), list(itertools.product((1, 4, 16), (0, 1, 2, 3))))
@pytest.mark.parametrize("convention", ["16 bytes", "18 bytes", "fp32"])
def test_zero_by_sharding_tensors(ranks, stage, convention):
    """Make the tensors that the convention names, cut them as the stage says, and count one rank's bytes."""
    count, half, full = 1600, torch.bfloat16, torch.float32
    mixed = convention != "fp32"
    weights = [torch.zeros(count, dtype=half if mixed else full)]
    gradients = [torch.zeros(count, dtype=half if convention == "16 bytes" else full)]
    states = [torch.zeros(count, dtype=full) for _ in range(3 if mixed else 2)]
    parts = [
        [shard(t, ranks, ranks - 1, stage >= first) for t in tensors]
        for tensors, first in ((weights, 3), (gradients, 2), (states, 1))
    ]
    case = dict(parameters=count, ranks=ranks, zero_stage=stage, convention=convention)
    assert m.weight_bytes_per_rank(**case) == storages(parts[0])
    assert m.gradient_bytes_per_rank(**case) == storages(parts[1])
    assert m.optimizer_bytes_per_rank(**case) == storages(parts[2])
    assert m.training_state_bytes(**case) == storages(itertools.chain(*parts))


# Rajbhandari et al. 2020, arXiv:1910.02054, table 1: GB per device by degree of data parallelism, as printed.
ZERO_TABLE_1 = {
    1: ((120, 120, 120), (2048, 2048, 2048), (16000, 16000, 16000)),
    4: ((52.5, 41.3, 30), (896, 704, 512), (7000, 5500, 4000)),
    16: ((35.6, 21.6, 7.5), (608, 368, 128), (4750, 2875, 1000)),
    64: ((31.4, 16.6, 1.88), (536, 284, 32), (4187, 2218, 250)),
    256: ((30.4, 15.4, 0.47), (518, 263, 8), (4046, 2054, 62.5)),
    1024: ((30.1, 15.1, 0.12), (513, 257, 2), (4011, 2013, 15.6)),
}


@pytest.mark.parametrize(("ranks", "model", "stage"), list(itertools.product(ZERO_TABLE_1, range(3), (1, 2, 3))))
def test_every_cell_of_zeros_table_1(ranks, model, stage):
    """The two large models' numbers are cut, not rounded, so a whole unit of the last digit is allowed."""
    printed = ZERO_TABLE_1[ranks][model][stage - 1]
    digits = len(str(printed).partition(".")[2])
    parameters = (7.5e9, 128e9, 1e12)[model]
    ours = m.training_state_bytes(parameters=parameters, ranks=ranks, zero_stage=stage, convention="16 bytes") / 1e9
    unit = 10.0**-digits
    assert printed - unit / 2 * (1 + 1e-9) <= ours < printed + unit


# Inference


@settings(max_examples=30, deadline=None)
@given(sizes, st.integers(1, 4), st.integers(1, 16), st.integers(1, 20), st.integers(1, 4))
def test_kv_cache_by_filling_one(layers, kv_heads, head_dim, length, batch):
    cache = [[torch.empty(batch, kv_heads, 0, head_dim, dtype=torch.bfloat16) for _ in range(2)] for _ in range(layers)]
    for _ in range(length):
        new = torch.zeros(batch, kv_heads, 1, head_dim, dtype=torch.bfloat16)
        cache = [[torch.cat([old, new], dim=2) for old in layer] for layer in cache]
    counted = sum(t.untyped_storage().nbytes() for layer in cache for t in layer)
    common = dict(layers=layers, kv_heads=kv_heads, head_dim=head_dim, bytes_per_element=2)
    assert m.kv_cache_bytes(context_length=length, batch=batch, **common) == counted
    assert m.kv_bytes_per_token(**common) * length * batch == counted


@given(sizes, st.integers(1, 64), st.integers(1, 16))
def test_latent_kv_cache_by_its_tensors(layers, latent, rope):
    cache = [
        (torch.empty(latent, dtype=torch.bfloat16), torch.empty(rope, dtype=torch.bfloat16)) for _ in range(layers)
    ]
    counted = sum(t.untyped_storage().nbytes() for layer in cache for t in layer)
    assert counted == m.latent_kv_bytes_per_token(
        layers=layers, latent_size=latent, rope_size=rope, bytes_per_element=2
    )


@given(st.integers(1, 10**6), st.integers(0, 10**6), st.integers(1, 10**4), st.integers(1, 50))
def test_what_fits_by_filling_up(memory, weights, each, batch):
    sequences, used = 0, weights
    while used + each <= memory and sequences < 10**7:
        used += each
        sequences += 1
        if sequences > 2000:  # far from the limit: jump
            more = (memory - used) // each
            sequences, used = sequences + more, used + more * each
    weights = max(weights, 1)
    if weights != used - sequences * each:  # weights of 0 were raised to 1, which the unit needs
        return
    assert m.largest_batch(memory=memory, weights=weights, bytes_per_sequence=each) == sequences
    tokens = m.largest_context(memory=memory, weights=weights, bytes_per_token=each, batch=batch)
    free = max(0, memory - weights)
    assert tokens * each * batch <= free < (tokens + 1) * each * batch


@pytest.mark.parametrize(("kv_heads", "devices"), list(itertools.product((1, 2, 8, 32), (1, 2, 4, 8, 16))))
def test_kv_heads_per_device_by_dealing_them_out(kv_heads, devices):
    held = [set() for _ in range(devices)]
    for slot in range(max(kv_heads, devices)):
        held[slot % devices].add(slot % kv_heads)
    assert m.kv_heads_per_device(kv_heads=kv_heads, tensor_parallel=devices) == max(len(h) for h in held)


def test_gb_is_not_gib():
    """GPT-3's weights in FP32: 700 GB, which a tool that counts in GiB shows as 652."""
    size = m.weight_bytes(parameters=175e9, bytes_per_parameter=4)
    assert show(size, BYTE) == "700 GB" and show_binary(size) == "652 GiB"
    assert parse("1 GiB", BYTE) / parse("1 GB", BYTE) == 2**30 / 10**9
