"""Dense decoder transformers: how many parameters, how many operations, how well a run used its devices.

A multiply and an add are two FLOP. FLOPs are those of the matrix products: the linear layers, the attention scores
and values, the logits. Element-wise work (norms, softmax, activations, rotary positions) and the embedding lookup
count as none. A causal model is counted as if it computed every pair of positions, as PyTorch's FlopCounterMode and
Korthikanti et al. do; a kernel that skips the masked pairs does half of the attention's share. Every formula raises
`FormulaError` for an argument that is not a finite number in its unit's range.
"""

from __future__ import annotations

from typing import Annotated, Literal

from efflab.formulas.namespace import as_flop, formula
from efflab.units import Count, Flop, FlopPerSecond, Number, Parameters, Range, Second, TokenPerSecond

Biases = Literal["none", "qkv", "all"]
Norm = Literal["rms", "layer"]
Projections = Annotated[Number, Range(0, 1)]
Matrices = Annotated[Count, Range(2, 3)]  # 2: up and down; 3: gate, up and down


# Parameters


@formula
def attention_parameters(
    *,
    hidden_size: Count,
    query_heads: Count,
    kv_heads: Count,
    head_dim: Count,
    position_projections: Projections,
    biases: Biases,
) -> Parameters:
    r"""Parameters of one attention block: query, key, value and output projections.

    Equation: P = 2 h \, d (n_q + n_{kv}) + r (h + 2) \, d \, n_q \quad \text{biases: } + d (n_q + 2 n_{kv}) \text{ for
        qkv, } + h \text{ more for all}
    Where: h = hidden_size; n_q = query_heads; n_{kv} = kv_heads; d = head_dim; r = position_projections;
        \text{biases} = biases
    Source: Vaswani et al. 2017, arXiv:1706.03762, section 3.2.2; Ainslie et al. 2023, GQA, arXiv:2305.13245; Dai et al.
        2019, Transformer-XL, arXiv:1901.02860, section 3.3 (relative positions)
    Assumes: r is 1 for the relative positions of Transformer-XL (one matrix, two vectors), as in Gopher and Chinchilla;
        0 for rotary, ALiBi and learned positions. No norm of queries or keys.
    """
    matrices = 2 * hidden_size * head_dim * (query_heads + kv_heads)
    matrices += position_projections * (hidden_size + 2) * head_dim * query_heads
    if biases == "none":
        return matrices
    qkv = head_dim * (query_heads + 2 * kv_heads)
    return matrices + qkv if biases == "qkv" else matrices + qkv + hidden_size


@formula
def mlp_parameters(
    *, hidden_size: Count, intermediate_size: Count, mlp_matrices: Matrices, biases: Biases
) -> Parameters:
    r"""Parameters of one MLP block: 2 matrices (up, down) or 3 (gate, up, down).

    Equation: P = m h f \quad \text{biases: } + (m - 1) f + h \text{ for all}
    Where: h = hidden_size; f = intermediate_size; m = mlp_matrices; \text{biases} = biases
    Source: Vaswani et al. 2017, arXiv:1706.03762, section 3.3; Shazeer 2020, GLU Variants, arXiv:2002.05202
    Assumes: a dense MLP, no experts; a fused gate-and-up matrix counts as two.
    """
    matrices = mlp_matrices * hidden_size * intermediate_size
    return matrices + (mlp_matrices - 1) * intermediate_size + hidden_size if biases == "all" else matrices


@formula
def norm_parameters(
    *, layers: Count, hidden_size: Count, norms_per_block: Count, outer_norms: Number, norm: Norm
) -> Parameters:
    r"""Parameters of all norms: one learned vector in an RMS norm, two in a layer norm.

    Equation: P = v h (L n + n_0), \quad v = 1 \text{ (rms) or } 2 \text{ (layer)}
    Where: L = layers; h = hidden_size; n = norms_per_block; n_0 = outer_norms; \text{norm} = norm
    Source: Zhang & Sennrich 2019, arXiv:1910.07467; Ba, Kiros & Hinton 2016, arXiv:1607.06450
    Assumes: usually two norms per block and one after the last. A layer norm without bias counts as rms.
    """
    norms = hidden_size * (layers * norms_per_block + outer_norms)
    return norms if norm == "rms" else 2 * norms


@formula
def embedding_parameters(
    *, hidden_size: Count, vocabulary: Count, positions: Number, tied_embeddings: Literal[True, False]
) -> Parameters:
    r"""Parameters of the token embedding, the output head and learned positions.

    Equation: P = h (k V + p), \quad k = 1 \text{ if tied, else } 2
    Where: h = hidden_size; V = vocabulary; p = positions; \text{tied} = tied_embeddings
    Source: Radford et al. 2019, Language Models are Unsupervised Multitask Learners; Press & Wolf 2017, Using the
        Output Embedding to Improve Language Models, arXiv:1608.05859
    Assumes: the embedding is as wide as the model; no bias in the head. Rotary and ALiBi positions are 0.
    """
    tables = 1 if tied_embeddings else 2
    return hidden_size * (tables * vocabulary + positions)


@formula
def non_embedding_parameters(
    *,
    layers: Count,
    hidden_size: Count,
    intermediate_size: Count,
    query_heads: Count,
    kv_heads: Count,
    head_dim: Count,
    mlp_matrices: Matrices,
    position_projections: Projections,
    biases: Biases,
    norm: Norm,
    norms_per_block: Count,
    outer_norms: Number,
) -> Parameters:
    r"""Parameters of everything but the embedding, the output head and learned positions.

    Equation: P = L (P_{\text{attention}} + P_{\text{MLP}}) + P_{\text{norms}}
    Where: L = layers; h = hidden_size; f = intermediate_size; n_q = query_heads; n_{kv} = kv_heads; d = head_dim;
        m = mlp_matrices; r = position_projections; \text{biases} = biases; \text{norm} = norm; n = norms_per_block;
        n_0 = outer_norms
    Source: Definition
    Assumes: as `attention_parameters`, `mlp_parameters` and `norm_parameters`. Kaplan et al. leave out norms and
        biases too; see `kaplan_parameters`.
    """
    attention = attention_parameters(
        hidden_size=hidden_size,
        query_heads=query_heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        position_projections=position_projections,
        biases=biases,
    )
    mlp = mlp_parameters(
        hidden_size=hidden_size, intermediate_size=intermediate_size, mlp_matrices=mlp_matrices, biases=biases
    )
    norms = norm_parameters(
        layers=layers, hidden_size=hidden_size, norms_per_block=norms_per_block, outer_norms=outer_norms, norm=norm
    )
    return layers * (attention + mlp) + norms


@formula
def parameter_count(
    *,
    layers: Count,
    hidden_size: Count,
    intermediate_size: Count,
    query_heads: Count,
    kv_heads: Count,
    head_dim: Count,
    vocabulary: Count,
    positions: Number,
    mlp_matrices: Matrices,
    position_projections: Projections,
    tied_embeddings: Literal[True, False],
    biases: Biases,
    norm: Norm,
    norms_per_block: Count,
    outer_norms: Number,
) -> Parameters:
    r"""All parameters of a dense decoder.

    Equation: P = L (P_{\text{attention}} + P_{\text{MLP}}) + P_{\text{norms}} + P_{\text{embedding}}
    Where: L = layers; h = hidden_size; f = intermediate_size; n_q = query_heads; n_{kv} = kv_heads; d = head_dim;
        V = vocabulary; p = positions; m = mlp_matrices; r = position_projections; \text{tied} = tied_embeddings;
        \text{biases} = biases; \text{norm} = norm; n = norms_per_block; n_0 = outer_norms
    Source: Definition
    Assumes: as the formulas of its parts. Rows of the embedding that only pad the vocabulary count.
    """
    blocks = non_embedding_parameters(
        layers=layers,
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        query_heads=query_heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        mlp_matrices=mlp_matrices,
        position_projections=position_projections,
        biases=biases,
        norm=norm,
        norms_per_block=norms_per_block,
        outer_norms=outer_norms,
    )
    return blocks + embedding_parameters(
        hidden_size=hidden_size, vocabulary=vocabulary, positions=positions, tied_embeddings=tied_embeddings
    )


@formula
def kaplan_parameters(
    *, layers: Count, hidden_size: Count, intermediate_size: Count, query_heads: Count, head_dim: Count
) -> Parameters:
    r"""Kaplan's N: the matrices inside the blocks, without embeddings, biases and norms.

    Equation: N \approx 2 h L (2 d n_q + f) = 12 L h^2 \text{ where } f = 4h \text{ and } d n_q = h
    Where: L = layers; h = hidden_size; f = intermediate_size; n_q = query_heads; d = head_dim
    Source: Kaplan et al. 2020, arXiv:2001.08361, section 2.1, eq. 2.1
    Assumes: as many KV heads as query heads; an MLP of two matrices.
    """
    return 2 * hidden_size * layers * (2 * query_heads * head_dim + intermediate_size)


@formula
def megatron_parameters(
    *, layers: Count, hidden_size: Count, sequence_length: Number, vocabulary: Number
) -> Parameters:
    r"""Parameters of a GPT model with an MLP of 4h, from four numbers.

    Equation: P = 12 L h^2 \left( 1 + \frac{13}{12 h} + \frac{V + s}{12 L h} \right)
    Where: L = layers; h = hidden_size; s = sequence_length; V = vocabulary
    Source: Narayanan et al. 2021, Efficient Large-Scale Language Model Training on GPU Clusters, arXiv:2104.04473,
        eq. 2
    Assumes: biases everywhere, layer norms, one learned position per place of the sequence, tied embeddings; the last
        norm (2h) is left out.
    """
    blocks = 12 * layers * hidden_size * hidden_size + 13 * layers * hidden_size
    return blocks + (vocabulary + sequence_length) * hidden_size


# Operations


@formula
def attention_score_flops(*, layers: Count, query_heads: Count, head_dim: Count, sequence_length: Count) -> Flop:
    r"""Operations of the scores and of their product with the values, one sequence, forward, all layers.

    Equation: W = 4 L s^2 d n_q
    Where: L = layers; n_q = query_heads; d = head_dim; s = sequence_length
    Source: Korthikanti et al. 2022, arXiv:2205.05198, appendix A
    Assumes: every pair of positions is computed; a kernel that skips the masked pairs does half.
    """
    return as_flop(4 * layers * sequence_length * sequence_length * query_heads * head_dim)


@formula
def logit_flops(*, hidden_size: Count, vocabulary: Count, sequence_length: Count) -> Flop:
    r"""Operations of the output head, one sequence, forward.

    Equation: W = 2 s h V
    Where: h = hidden_size; V = vocabulary; s = sequence_length
    Source: Korthikanti et al. 2022, arXiv:2205.05198, appendix A
    Assumes: logits at every position, as in training; decoding needs them at one.
    """
    return as_flop(2 * sequence_length * hidden_size * vocabulary)


@formula
def forward_flops(
    *,
    layers: Count,
    hidden_size: Count,
    intermediate_size: Count,
    query_heads: Count,
    kv_heads: Count,
    head_dim: Count,
    vocabulary: Count,
    mlp_matrices: Matrices,
    sequence_length: Count,
) -> Flop:
    r"""Operations of one forward pass over one sequence.

    Equation: W = 2 s L \left( 2 h d (n_q + n_{kv}) + m h f \right) + 4 L s^2 d n_q + 2 s h V
    Where: L = layers; h = hidden_size; f = intermediate_size; n_q = query_heads; n_{kv} = kv_heads; d = head_dim;
        V = vocabulary; m = mlp_matrices; s = sequence_length
    Source: Korthikanti et al. 2022, arXiv:2205.05198, appendix A, with KV heads and the MLP's shape left free
    Assumes: matrix products only; every pair of positions, masked or not; logits at every position; no products of
        relative positions.
    """
    weights = 2 * hidden_size * head_dim * (query_heads + kv_heads) + mlp_matrices * hidden_size * intermediate_size
    return (
        as_flop(2 * sequence_length * layers * weights)
        + attention_score_flops(
            layers=layers, query_heads=query_heads, head_dim=head_dim, sequence_length=sequence_length
        )
        + logit_flops(hidden_size=hidden_size, vocabulary=vocabulary, sequence_length=sequence_length)
    )


@formula
def training_flops_per_sequence(
    *,
    layers: Count,
    hidden_size: Count,
    intermediate_size: Count,
    query_heads: Count,
    kv_heads: Count,
    head_dim: Count,
    vocabulary: Count,
    mlp_matrices: Matrices,
    sequence_length: Count,
) -> Flop:
    r"""Operations of one forward and one backward pass over one sequence.

    Equation: W = 3 W_{\text{forward}}
    Where: L = layers; h = hidden_size; f = intermediate_size; n_q = query_heads; n_{kv} = kv_heads; d = head_dim;
        V = vocabulary; m = mlp_matrices; s = sequence_length
    Source: Korthikanti et al. 2022, arXiv:2205.05198, appendix A
    Assumes: as `forward_flops`; the backward pass multiplies twice for each product of the forward pass; nothing is
        computed again, neither by checkpointing nor inside a fused attention.
    """
    return 3 * forward_flops(
        layers=layers,
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        query_heads=query_heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        vocabulary=vocabulary,
        mlp_matrices=mlp_matrices,
        sequence_length=sequence_length,
    )


@formula
def flops_per_token(
    *,
    layers: Count,
    hidden_size: Count,
    intermediate_size: Count,
    query_heads: Count,
    kv_heads: Count,
    head_dim: Count,
    vocabulary: Count,
    mlp_matrices: Matrices,
    sequence_length: Count,
) -> Flop:
    r"""Operations of training on one token, attention included.

    Equation: W = 6 L \left( 2 h d (n_q + n_{kv}) + m h f \right) + 12 L s d n_q + 6 h V
    Where: L = layers; h = hidden_size; f = intermediate_size; n_q = query_heads; n_{kv} = kv_heads; d = head_dim;
        V = vocabulary; m = mlp_matrices; s = sequence_length
    Source: Korthikanti et al. 2022, arXiv:2205.05198, appendix A
    Assumes: as `training_flops_per_sequence`, shared evenly by the tokens of the sequence.
    """
    per_sequence = training_flops_per_sequence(
        layers=layers,
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        query_heads=query_heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        vocabulary=vocabulary,
        mlp_matrices=mlp_matrices,
        sequence_length=sequence_length,
    )
    return per_sequence / sequence_length


@formula
def palm_flops_per_token(
    *, parameters: Parameters, layers: Count, query_heads: Count, head_dim: Count, sequence_length: Count
) -> Flop:
    r"""Operations of training on one token: 6N and the attention.

    Equation: W = 6 N + 12 L n_q d s
    Where: N = parameters; L = layers; n_q = query_heads; d = head_dim; s = sequence_length
    Source: Chowdhery et al. 2022, PaLM, arXiv:2204.02311, appendix B
    Assumes: every parameter takes part in one matrix product; true of a tied embedding, which serves as the head, not
        of an untied one.
    """
    return as_flop(6 * parameters + 12 * layers * query_heads * head_dim * sequence_length)


@formula
def ratio_to_6nd(*, flops_per_token: Flop, parameters: Parameters) -> Number:
    r"""How many times the operations of training are those that 6ND gives.

    Equation: \frac{w}{6 N}
    Where: w = flops_per_token; N = parameters
    Source: Kaplan et al. 2020, arXiv:2001.08361, section 2.1 (C = 6ND)
    Assumes: operations per token of training. Attention lifts the ratio above 1, an untied embedding lowers it.
    """
    return flops_per_token / as_flop(6 * parameters)


@formula
def attention_share(
    *,
    layers: Count,
    hidden_size: Count,
    intermediate_size: Count,
    query_heads: Count,
    kv_heads: Count,
    head_dim: Count,
    vocabulary: Count,
    mlp_matrices: Matrices,
    sequence_length: Count,
) -> Number:
    r"""Share of all operations that the scores and values take; it grows with the sequence.

    Equation: \frac{4 L s^2 d n_q}{W_{\text{forward}}}
    Where: L = layers; h = hidden_size; f = intermediate_size; n_q = query_heads; n_{kv} = kv_heads; d = head_dim;
        V = vocabulary; m = mlp_matrices; s = sequence_length
    Source: Definition
    Assumes: as `forward_flops`; the same share in the backward pass.
    """
    scores = attention_score_flops(
        layers=layers, query_heads=query_heads, head_dim=head_dim, sequence_length=sequence_length
    )
    return scores / forward_flops(
        layers=layers,
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        query_heads=query_heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        vocabulary=vocabulary,
        mlp_matrices=mlp_matrices,
        sequence_length=sequence_length,
    )


@formula
def hoffmann_training_flops(
    *,
    layers: Count,
    hidden_size: Count,
    intermediate_size: Count,
    query_heads: Count,
    head_dim: Count,
    vocabulary: Number,
    sequence_length: Count,
) -> Flop:
    r"""Operations of one forward and one backward pass over one sequence, as Hoffmann et al. count them.

    Equation: W = 3 \left[ 4 s h V + L \left( 8 s h d n_q + 4 s^2 d n_q + 3 s^2 n_q + 4 s h f \right) \right]
    Where: L = layers; h = hidden_size; f = intermediate_size; n_q = query_heads; d = head_dim; V = vocabulary; s =
        sequence_length
    Source: Hoffmann et al. 2022, arXiv:2203.15556, appendix F
    Assumes: the embedding is counted as a matrix product and the softmax as three operations per score. With vocabulary
        0 (no embedding, no logits) it gives the paper's Table A4.
    """
    attention = sequence_length * hidden_size * 8 * head_dim * query_heads
    attention += sequence_length * sequence_length * query_heads * (4 * head_dim + 3)
    dense = 4 * sequence_length * hidden_size * intermediate_size
    return as_flop(3 * (4 * sequence_length * hidden_size * vocabulary + layers * (attention + dense)))


@formula
def hoffmann_flop_ratio(
    *,
    parameters: Parameters,
    layers: Count,
    hidden_size: Count,
    intermediate_size: Count,
    query_heads: Count,
    head_dim: Count,
    sequence_length: Count,
) -> Number:
    r"""Operations by Hoffmann's count over those by 6ND: the last column of Table A4.

    Equation: \frac{W}{6 N s}
    Where: N = parameters; L = layers; h = hidden_size; f = intermediate_size; n_q = query_heads; d = head_dim; s =
        sequence_length
    Source: Hoffmann et al. 2022, arXiv:2203.15556, appendix F, Table A4
    Assumes: `hoffmann_training_flops` without embedding and logits, which is what the table's values need.
    """
    training = hoffmann_training_flops(
        layers=layers,
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        query_heads=query_heads,
        head_dim=head_dim,
        vocabulary=0,
        sequence_length=sequence_length,
    )
    return training / as_flop(6 * parameters * sequence_length)


@formula
def model_flops_per_iteration(
    *, layers: Count, hidden_size: Count, sequence_length: Count, vocabulary: Count, batch: Count
) -> Flop:
    r"""Operations that one training iteration of a GPT model needs, however it is run.

    Equation: W = 72 B L s h^2 \left( 1 + \frac{s}{6h} + \frac{V}{12 h L} \right)
    Where: L = layers; h = hidden_size; s = sequence_length; V = vocabulary; B = batch
    Source: Korthikanti et al. 2022, arXiv:2205.05198, appendix A, eq. 7
    Assumes: an MLP of two matrices and 4h; as many KV heads as query heads; every pair of positions.
    """
    blocks = 72 * layers * sequence_length * hidden_size * hidden_size
    attention = 12 * layers * sequence_length * sequence_length * hidden_size
    logits = 6 * sequence_length * hidden_size * vocabulary
    return as_flop(batch * (blocks + attention + logits))


@formula
def hardware_flops_per_iteration(
    *,
    layers: Count,
    hidden_size: Count,
    sequence_length: Count,
    vocabulary: Count,
    batch: Count,
    recomputation: Literal["none", "selective", "full"],
) -> Flop:
    r"""Operations that the devices do in one training iteration of a GPT model, recomputation included.

    Equation: W = 72 B L s h^2 \left( r + q \frac{s}{6h} + \frac{V}{12 h L} \right), \quad (r, q) = (1, 1)
        \text{ none}, (1, \tfrac43) \text{ selective}, (\tfrac43, \tfrac43) \text{ full}
    Where: L = layers; h = hidden_size; s = sequence_length; V = vocabulary; B = batch; \text{recomputation} =
        recomputation
    Source: Korthikanti et al. 2022, arXiv:2205.05198, appendix A (selective); Narayanan et al. 2021, arXiv:2104.04473,
        eq. 3 (full)
    Assumes: as `model_flops_per_iteration`; selective computes the scores and values a second time, full the whole
        forward pass of the blocks, neither the logits. Korthikanti's eq. 8 has s/3h for selective, which adds the
        second computation three times over.
    """
    forward_blocks = 24 * layers * sequence_length * hidden_size * hidden_size
    forward_attention = 4 * layers * sequence_length * sequence_length * hidden_size
    again = {"none": 0, "selective": forward_attention, "full": forward_blocks + forward_attention}[recomputation]
    model = model_flops_per_iteration(
        layers=layers,
        hidden_size=hidden_size,
        sequence_length=sequence_length,
        vocabulary=vocabulary,
        batch=batch,
    )
    return model + as_flop(batch * again)


# Utilisation


@formula
def mfu(*, model_flops: Flop, time: Second, devices: Count, peak_performance: FlopPerSecond) -> Number:
    r"""Model FLOPs utilisation: the operations that the model needs, over those that the devices could do.

    Equation: \text{MFU} = \frac{W_{\text{model}}}{t \, n \, \pi}
    Where: W_{\text{model}} = model_flops; t = time; n = devices; \pi = peak_performance
    Source: Chowdhery et al. 2022, PaLM, arXiv:2204.02311, section 4.1 and appendix B
    Assumes: the dense peak of the dtype that the matrix products use; recomputed operations are left out.
    """
    return model_flops / (time * devices * peak_performance)


@formula
def hfu(*, hardware_flops: Flop, time: Second, devices: Count, peak_performance: FlopPerSecond) -> Number:
    r"""Hardware FLOPs utilisation: the operations that the devices did, over those that they could do.

    Equation: \text{HFU} = \frac{W_{\text{hardware}}}{t \, n \, \pi}
    Where: W_{\text{hardware}} = hardware_flops; t = time; n = devices; \pi = peak_performance
    Source: Chowdhery et al. 2022, PaLM, arXiv:2204.02311, section 4.1; Korthikanti et al. 2022, arXiv:2205.05198,
        section 6.3
    Assumes: as `mfu`, recomputed operations included; never below MFU.
    """
    return hardware_flops / (time * devices * peak_performance)


@formula
def mfu_from_tokens(
    *, tokens_per_second: TokenPerSecond, flops_per_token: Flop, devices: Count, peak_performance: FlopPerSecond
) -> Number:
    r"""Model FLOPs utilisation from the throughput of a training run.

    Equation: \text{MFU} = \frac{v \, w}{n \, \pi}
    Where: v = tokens_per_second; w = flops_per_token; n = devices; \pi = peak_performance
    Source: Chowdhery et al. 2022, PaLM, arXiv:2204.02311, appendix B
    Assumes: the throughput of all devices together; operations per token of training, not of inference.
    """
    return tokens_per_second * flops_per_token / (devices * peak_performance)


@formula
def tokens_per_second(
    *, mfu: Number, flops_per_token: Flop, devices: Count, peak_performance: FlopPerSecond
) -> TokenPerSecond:
    r"""Throughput of a training run at a given utilisation: the inverse of `mfu_from_tokens`.

    Equation: v = \frac{\text{MFU} \, n \, \pi}{w}
    Where: \text{MFU} = mfu; w = flops_per_token; n = devices; \pi = peak_performance
    Source: Chowdhery et al. 2022, PaLM, arXiv:2204.02311, appendix B
    Assumes: as `mfu_from_tokens`.
    """
    return mfu * devices * peak_performance / flops_per_token


@formula
def iteration_mfu(
    *,
    layers: Count,
    hidden_size: Count,
    sequence_length: Count,
    vocabulary: Count,
    batch: Count,
    time: Second,
    devices: Count,
    peak_performance: FlopPerSecond,
) -> Number:
    r"""Model FLOPs utilisation of a GPT model from the time of one training iteration.

    Equation: \text{MFU} = \frac{72 B L s h^2 \left( 1 + \frac{s}{6h} + \frac{V}{12 h L} \right)}{t \, n \, \pi}
    Where: L = layers; h = hidden_size; s = sequence_length; V = vocabulary; B = batch; t = time; n = devices; \pi =
        peak_performance
    Source: Korthikanti et al. 2022, arXiv:2205.05198, section 6.3 and appendix A
    Assumes: as `model_flops_per_iteration` and `mfu`.
    """
    flops = model_flops_per_iteration(
        layers=layers, hidden_size=hidden_size, sequence_length=sequence_length, vocabulary=vocabulary, batch=batch
    )
    return mfu(model_flops=flops, time=time, devices=devices, peak_performance=peak_performance)


@formula
def iteration_hfu(
    *,
    layers: Count,
    hidden_size: Count,
    sequence_length: Count,
    vocabulary: Count,
    batch: Count,
    recomputation: Literal["none", "selective", "full"],
    time: Second,
    devices: Count,
    peak_performance: FlopPerSecond,
) -> Number:
    r"""Hardware FLOPs utilisation of a GPT model from the time of one training iteration.

    Equation: \text{HFU} = \frac{W_{\text{hardware}}}{t \, n \, \pi}
    Where: L = layers; h = hidden_size; s = sequence_length; V = vocabulary; B = batch; \text{recomputation} =
        recomputation; t = time; n = devices; \pi = peak_performance
    Source: Korthikanti et al. 2022, arXiv:2205.05198, section 6.3 and appendix A
    Assumes: as `hardware_flops_per_iteration` and `hfu`. The paper's own HFU is higher: see there.
    """
    flops = hardware_flops_per_iteration(
        layers=layers,
        hidden_size=hidden_size,
        sequence_length=sequence_length,
        vocabulary=vocabulary,
        batch=batch,
        recomputation=recomputation,
    )
    return hfu(hardware_flops=flops, time=time, devices=devices, peak_performance=peak_performance)
