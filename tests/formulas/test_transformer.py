"""The transformer's formulas against real modules.

Oracles: a decoder put together from PyTorch's own layers, whose parameters are counted and whose forward and
backward passes FlopCounterMode counts, with and without checkpointing; published totals of real models.
"""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop
from torch.utils.flop_counter import FlopCounterMode

from efflab import catalog
from efflab.formulas import transformer as t


class Norm(nn.Module):
    def __init__(self, size: int, kind: str) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(size))
        self.shift = nn.Parameter(torch.zeros(size)) if kind == "layer" else None

    def forward(self, x):
        if self.shift is None:
            return nn.functional.rms_norm(x, x.shape[-1:], self.scale)
        return nn.functional.layer_norm(x, x.shape[-1:], self.scale, self.shift)


def core_attention(q, k, v):
    return torch.softmax(q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]), dim=-1) @ v


class Attention(nn.Module):
    def __init__(self, a: dict) -> None:
        super().__init__()
        self.a = a
        h, d, q, kv = a["hidden_size"], a["head_dim"], a["query_heads"], a["kv_heads"]
        qkv_bias = a["biases"] != "none"
        self.query = nn.Linear(h, q * d, bias=qkv_bias)
        self.key = nn.Linear(h, kv * d, bias=qkv_bias)
        self.value = nn.Linear(h, kv * d, bias=qkv_bias)
        self.output = nn.Linear(q * d, h, bias=a["biases"] == "all")
        if a["position_projections"]:
            self.position = nn.Linear(h, q * d, bias=False)
            self.content_bias = nn.Parameter(torch.zeros(q, d))
            self.position_bias = nn.Parameter(torch.zeros(q, d))

    def forward(self, x, recompute=False):
        def heads(projected, n):
            return projected.unflatten(-1, (n, self.a["head_dim"])).transpose(1, 2)

        groups = self.a["query_heads"] // self.a["kv_heads"]
        q = heads(self.query(x), self.a["query_heads"])
        k = heads(self.key(x), self.a["kv_heads"]).repeat_interleave(groups, dim=1)
        v = heads(self.value(x), self.a["kv_heads"]).repeat_interleave(groups, dim=1)
        mixed = checkpoint(core_attention, q, k, v, use_reentrant=False) if recompute else core_attention(q, k, v)
        return self.output(mixed.transpose(1, 2).flatten(-2))


class Mlp(nn.Module):
    def __init__(self, a: dict) -> None:
        super().__init__()
        h, f, bias = a["hidden_size"], a["intermediate_size"], a["biases"] == "all"
        self.gate = nn.Linear(h, f, bias=bias) if a["mlp_matrices"] == 3 else None
        self.up = nn.Linear(h, f, bias=bias)
        self.down = nn.Linear(f, h, bias=bias)

    def forward(self, x):
        up = self.up(x)
        return self.down(nn.functional.gelu(up) if self.gate is None else nn.functional.silu(self.gate(x)) * up)


class Block(nn.Module):
    def __init__(self, a: dict) -> None:
        super().__init__()
        self.attention, self.mlp = Attention(a), Mlp(a)
        self.norms = nn.ModuleList(Norm(a["hidden_size"], a["norm"]) for _ in range(a["norms_per_block"]))

    def forward(self, x, recompute=False):
        x = x + self.attention(self.norms[0](x), recompute)
        return x + self.mlp(self.norms[-1](x))


class Decoder(nn.Module):
    def __init__(self, a: dict) -> None:
        super().__init__()
        h = a["hidden_size"]
        self.tokens = nn.Embedding(a["vocabulary"], h)
        self.positions = nn.Embedding(a["positions"], h) if a["positions"] else None
        self.blocks = nn.ModuleList(Block(a) for _ in range(a["layers"]))
        self.norms = nn.ModuleList(Norm(h, a["norm"]) for _ in range(a["outer_norms"]))
        self.head = nn.Linear(h, a["vocabulary"], bias=False)
        if a["tied_embeddings"]:
            self.head.weight = self.tokens.weight

    def forward(self, ids, recomputation="none"):
        x = self.tokens(ids)
        if self.positions is not None:
            x = x + self.positions.weight[: ids.shape[1]]
        for block in self.blocks:
            if recomputation == "full":
                x = checkpoint(block, x, use_reentrant=False)
            else:
                x = block(x, recomputation == "selective")
        for norm in self.norms:
            x = norm(x)
        return self.head(x)


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())  # a shared tensor counts once


def flops(a: dict, sequence_length: int, batch: int = 1, *, backward: bool, recomputation: str = "none") -> int:
    torch.manual_seed(0)
    model = Decoder(a)
    ids = torch.randint(a["vocabulary"], (batch, sequence_length))
    with set_checkpoint_early_stop(False), FlopCounterMode(display=False) as counter:
        logits = model(ids, recomputation)
        if backward:
            logits.sum().backward()
    return counter.get_total_flops()


@st.composite
def architectures(draw):
    kv = draw(st.sampled_from([1, 2, 3]))
    return dict(
        layers=draw(st.integers(1, 3)),
        hidden_size=draw(st.integers(1, 40)),
        intermediate_size=draw(st.integers(1, 60)),
        query_heads=kv * draw(st.integers(1, 3)),
        kv_heads=kv,
        head_dim=draw(st.integers(1, 16)),
        vocabulary=draw(st.integers(1, 90)),
        positions=draw(st.sampled_from([0, 64])),
        mlp_matrices=draw(st.sampled_from([2, 3])),
        position_projections=draw(st.sampled_from([0, 1])),
        tied_embeddings=draw(st.booleans()),
        biases=draw(st.sampled_from(["none", "qkv", "all"])),
        norm=draw(st.sampled_from(["rms", "layer"])),
        norms_per_block=draw(st.integers(1, 4)),
        outer_norms=draw(st.integers(0, 2)),
    )


def chosen(a: dict, *names: str) -> dict:
    return {n: a[n] for n in names}


SHAPE = (
    "layers",
    "hidden_size",
    "intermediate_size",
    "query_heads",
    "kv_heads",
    "head_dim",
    "vocabulary",
    "mlp_matrices",
)
ATTENTION = ("hidden_size", "query_heads", "kv_heads", "head_dim", "position_projections", "biases")


@given(architectures())
def test_parameters_by_counting_a_real_model(a):
    with torch.device("meta"):
        model = Decoder(a)
    assert t.parameter_count(**a) == parameters(model)
    attention = sum(parameters(b.attention) for b in model.blocks)
    assert a["layers"] * t.attention_parameters(**chosen(a, *ATTENTION)) == attention
    mlp = sum(parameters(b.mlp) for b in model.blocks)
    assert (
        a["layers"] * t.mlp_parameters(**chosen(a, "hidden_size", "intermediate_size", "mlp_matrices", "biases")) == mlp
    )
    norms = sum(parameters(m) for m in model.modules() if isinstance(m, Norm))
    assert norms == t.norm_parameters(**chosen(a, "layers", "hidden_size", "norms_per_block", "outer_norms", "norm"))
    tables = nn.ModuleList([m for m in (model.tokens, model.positions, model.head) if m is not None])
    assert parameters(tables) == t.embedding_parameters(
        **chosen(a, "hidden_size", "vocabulary", "positions", "tied_embeddings")
    )
    rest = {k: v for k, v in a.items() if k not in ("vocabulary", "positions", "tied_embeddings")}
    assert t.non_embedding_parameters(**rest) == parameters(model) - parameters(tables)


@pytest.mark.parametrize("name", catalog.models())
def test_real_models_built_without_memory_have_their_published_size(name):
    model = catalog.model(name)
    with torch.device("meta"):
        count = parameters(Decoder(model.architecture()))
    assert count == t.parameter_count(**model.architecture())
    if "," in model.parameters_printed:
        assert count == model.parameters  # printed to the last digit


@settings(deadline=None, max_examples=20, phases=[Phase.generate])
@given(architectures(), st.integers(1, 24))
def test_forward_and_backward_flops_by_pytorch(a, sequence_length):
    shape = chosen(a, *SHAPE)
    forward = flops(a, sequence_length, backward=False)
    assert t.forward_flops(**shape, sequence_length=sequence_length) == forward
    both = flops(a, sequence_length, backward=True)
    assert t.training_flops_per_sequence(**shape, sequence_length=sequence_length) == both
    assert math.isclose(t.flops_per_token(**shape, sequence_length=sequence_length) * sequence_length, both)


@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 16), st.integers(1, 32), st.integers(1, 40))
def test_scores_and_logits_by_pytorch(layers, heads, head_dim, sequence_length, vocabulary):
    q = torch.empty(1, heads, sequence_length, head_dim, device="meta")
    hidden = torch.empty(sequence_length, head_dim, device="meta")
    with FlopCounterMode(display=False) as counter:
        for _ in range(layers):
            core_attention(q, q, q)
    kwargs = dict(layers=layers, query_heads=heads, head_dim=head_dim, sequence_length=sequence_length)
    assert t.attention_score_flops(**kwargs) == counter.get_total_flops()
    with FlopCounterMode(display=False) as counter:
        hidden @ torch.empty(head_dim, vocabulary, device="meta")
    logits = t.logit_flops(hidden_size=head_dim, vocabulary=vocabulary, sequence_length=sequence_length)
    assert logits == counter.get_total_flops()


GPT = dict(
    kv_heads=2, query_heads=2, positions=24, mlp_matrices=2, position_projections=0, tied_embeddings=True,
    biases="all", norm="layer", norms_per_block=2, outer_norms=1,
)  # fmt: skip


def gpt(layers: int, head_dim: int, vocabulary: int) -> dict:
    h = 2 * head_dim
    return GPT | dict(layers=layers, hidden_size=h, intermediate_size=4 * h, head_dim=head_dim, vocabulary=vocabulary)


@settings(deadline=None, max_examples=5, phases=[Phase.generate])
@given(st.integers(1, 3), st.integers(1, 8), st.integers(2, 40), st.integers(1, 24), st.integers(1, 3))
def test_recomputation_by_checkpointing_a_real_model(layers, head_dim, vocabulary, sequence_length, batch):
    a = gpt(layers, head_dim, vocabulary)
    kwargs = dict(
        layers=layers,
        hidden_size=2 * head_dim,
        sequence_length=sequence_length,
        vocabulary=vocabulary,
        batch=batch,
    )
    for recomputation in ("none", "selective", "full"):
        counted = flops(a, sequence_length, batch, backward=True, recomputation=recomputation)
        assert t.hardware_flops_per_iteration(**kwargs, recomputation=recomputation) == counted
        run = dict(time=0.5, devices=4, peak_performance=1e9)
        assert math.isclose(t.iteration_hfu(**kwargs, recomputation=recomputation, **run), counted / 2e9)
        if recomputation == "none":
            assert math.isclose(t.iteration_mfu(**kwargs, **run), counted / 2e9)
    assert t.model_flops_per_iteration(**kwargs) == flops(a, sequence_length, batch, backward=True)


@given(st.integers(1, 3), st.integers(1, 8), st.integers(1, 40))
def test_kaplan_and_megatron_count_parts_of_a_real_model(layers, head_dim, vocabulary):
    a = gpt(layers, head_dim, vocabulary)
    with torch.device("meta"):
        model = Decoder(a)
    h = a["hidden_size"]
    matrices = sum(m.weight.numel() for m in model.blocks.modules() if isinstance(m, nn.Linear))
    shape = chosen(a, "layers", "hidden_size", "intermediate_size", "query_heads", "head_dim")
    assert t.kaplan_parameters(**shape) == matrices
    megatron = t.megatron_parameters(
        layers=layers, hidden_size=h, sequence_length=a["positions"], vocabulary=vocabulary
    )
    assert megatron == parameters(model) - parameters(model.norms)


@settings(deadline=None, max_examples=8, phases=[Phase.generate])
@given(st.integers(1, 3), st.integers(1, 8), st.integers(2, 40), st.integers(1, 24))
def test_palms_formula_is_exact_where_every_parameter_multiplies(layers, head_dim, vocabulary, sequence_length):
    """A tied GPT without biases, norms and learned positions: 6N and the attention are all there is."""
    a = gpt(layers, head_dim, vocabulary)
    model = Decoder(a)
    multiplied = sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear))
    ours = t.palm_flops_per_token(
        parameters=multiplied,
        sequence_length=sequence_length,
        **chosen(a, "layers", "query_heads", "head_dim"),
    )
    counted = flops(a, sequence_length, backward=True)
    assert math.isclose(ours * sequence_length, counted, rel_tol=1e-12)
    ratio = t.ratio_to_6nd(flops_per_token=counted / sequence_length, parameters=multiplied)
    # the weights alone are 6N, so all above 1 is the attention's
    scores = t.attention_share(**chosen(a, *SHAPE), sequence_length=sequence_length)
    assert ratio > 1 and math.isclose(scores, 1 - 1 / ratio, rel_tol=1e-9)


@settings(deadline=None, max_examples=12, phases=[Phase.generate])
@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 16), st.integers(0, 50), st.integers(1, 30))
def test_hoffmanns_count_by_pytorch_and_his_additions(layers, heads, head_dim, vocabulary, sequence_length):
    """Without its embedding product and its softmax, Hoffmann's count is that of the matrix products."""
    a = GPT | dict(
        layers=layers, hidden_size=24, intermediate_size=40, head_dim=head_dim, query_heads=heads, kv_heads=heads,
        vocabulary=max(vocabulary, 1), positions=32,
    )  # fmt: skip
    counted = flops(a, sequence_length, backward=True)
    if not vocabulary:
        counted -= 3 * 2 * sequence_length * 24 * 1
    softmax = 3 * 3 * layers * heads * sequence_length**2
    embedding = 3 * 2 * sequence_length * vocabulary * 24
    ours = t.hoffmann_training_flops(
        layers=layers, hidden_size=24, intermediate_size=40, query_heads=heads, head_dim=head_dim,
        vocabulary=vocabulary, sequence_length=sequence_length,
    )  # fmt: skip
    assert ours == counted + softmax + embedding


@given(st.integers(1, 10**15), st.integers(1, 10**6), st.integers(1, 10**4), st.integers(1, 10**15))
def test_utilisation_by_exact_fractions(per_token, tokens, devices, peak):
    """One second of a run: tokens times operations each, of what the devices could have done."""
    done = Fraction(per_token * tokens, devices * peak)
    common = dict(devices=devices, peak_performance=peak)
    assert math.isclose(t.mfu(model_flops=per_token * tokens, time=1, **common), done, rel_tol=1e-12)
    assert math.isclose(t.mfu(model_flops=per_token * tokens, time=2, **common), done / 2, rel_tol=1e-12)
    assert math.isclose(t.hfu(hardware_flops=per_token * tokens, time=1, **common), done, rel_tol=1e-12)
    rate = dict(flops_per_token=per_token, **common)
    assert math.isclose(t.mfu_from_tokens(tokens_per_second=tokens, **rate), done, rel_tol=1e-12)
    assert math.isclose(t.tokens_per_second(mfu=float(done), **rate), tokens, rel_tol=1e-9)


# Hoffmann et al. 2022, arXiv:2203.15556, Table A9: millions of parameters, width, MLP, head size, heads, layers.
TABLE_A9 = """
44 512 2048 64 8 8; 57 576 2304 64 9 9; 74 640 2560 64 10 10; 90 640 2560 64 10 13; 106 640 2560 64 10 16;
117 768 3072 64 12 12; 140 768 3072 64 12 15; 163 768 3072 64 12 18; 175 896 3584 64 14 14; 196 896 3584 64 14 16;
217 896 3584 64 14 18; 251 1024 4096 64 16 16; 278 1024 4096 64 16 18; 306 1024 4096 64 16 20;
425 1280 5120 128 10 18; 489 1280 5120 128 10 21; 509 1408 5632 128 11 18; 552 1280 5120 128 10 24;
587 1408 5632 128 11 21; 632 1536 6144 128 12 19; 664 1408 5632 128 11 24; 724 1536 6144 128 12 22;
816 1536 6144 128 12 25; 893 1792 7168 128 14 20; 1018 1792 7168 128 14 23; 1143 1792 7168 128 14 26;
1266 2048 8192 128 16 22; 1424 2176 8704 128 17 22; 1429 2048 8192 128 16 25; 1593 2048 8192 128 16 28;
1609 2176 8704 128 17 25; 1731 2304 9216 128 18 24; 1794 2176 8704 128 17 28; 2007 2304 9216 128 18 28;
2283 2304 9216 128 18 32; 2298 2560 10240 128 20 26; 2639 2560 10240 128 20 30; 2980 2560 10240 128 20 34;
3530 2688 10752 128 22 36; 3802 2816 11264 128 22 36; 4084 2944 11776 128 22 36; 4516 3072 12288 128 24 36;
6796 3584 14336 128 28 40; 9293 4096 16384 128 32 42; 11452 4352 17408 128 32 47; 12295 4608 18432 128 36 44;
12569 4608 18432 128 32 47; 13735 4864 19456 128 32 47; 14940 4992 19968 128 32 49; 16183 5120 20480 128 40 47
"""


@pytest.mark.parametrize("row", [r.split() for r in TABLE_A9.split(";")], ids=lambda row: f"{row[0]}M")
def test_the_fifty_models_of_hoffmanns_table_a9(row):
    """To the printed million; some rows are cut and some rounded. Their relative positions are in it."""
    millions, width, mlp, head_dim, heads, layers = map(int, row)
    ours = t.parameter_count(
        layers=layers, hidden_size=width, intermediate_size=mlp, query_heads=heads, kv_heads=heads, head_dim=head_dim,
        vocabulary=32000, positions=0, mlp_matrices=2, position_projections=1, tied_embeddings=True, biases="all",
        norm="rms", norms_per_block=2, outer_norms=1,
    )  # fmt: skip
    assert abs(ours - millions * 1e6) < 1e6


@pytest.mark.parametrize(
    ("width", "layers", "batch", "time", "printed"),
    [
        (6144, 48, 4, 1.10, 43.7),
        (12288, 96, 64, 13.75, 52.8),
        (20480, 105, 280, 37.83, 57.0),
        (25600, 128, 512, 71.49, 57.0),
    ],
)
def test_korthikantis_printed_hfu_adds_the_scores_three_times(width, layers, batch, time, printed):
    """The published rows say so. One computation more adds a third of what the printed values need."""
    devices = {4: 8}.get(batch, batch)
    shape = dict(layers=layers, hidden_size=width, sequence_length=2048, vocabulary=51200, batch=batch)
    model = t.hardware_flops_per_iteration(**shape, recomputation="none")
    selective = t.hardware_flops_per_iteration(**shape, recomputation="selective")
    as_printed = model + 3 * (selective - model)
    assert math.isclose(as_printed / (time * devices * 312e12), printed / 100, rel_tol=0.004)
    assert selective / (time * devices * 312e12) < printed / 100 * 0.992


def test_the_published_sizes_of_korthikantis_table_3():
    """Its four models, whose shapes are printed: the names are their sizes."""
    for billions, h, layers in ((22, 6144, 48), (175, 12288, 96), (530, 20480, 105), (1000, 25600, 128)):
        ours = t.megatron_parameters(layers=layers, hidden_size=h, sequence_length=2048, vocabulary=51200)
        assert math.isclose(ours, billions * 1e9, rel_tol=0.01)
