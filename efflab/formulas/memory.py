"""Memory of training and inference: weights, gradients, optimizer state, activations, KV cache.

Everything is in bytes and decimal: 1 GB is 10^9 B. An accelerator's or a framework's "GB" is often GiB, 7% more;
efflab.units.show_binary writes GiB. "Per rank" is what one accelerator holds.
"""

from __future__ import annotations

from typing import Annotated, Literal

from efflab.formulas.namespace import as_bytes, floor, formula, maximum
from efflab.units import Byte, Count, Number, Parameters, Range

ZeroStage = Literal[0, 1, 2, 3]
Convention = Literal["16 bytes", "18 bytes", "fp32"]
Recomputation = Literal["none", "selective", "full"]
Attention = Literal["standard", "flash"]

# Bytes per parameter of (weights, gradients, optimizer state) with Adam. In mixed precision the FP32 master copy of
# the weights belongs to the optimizer: 4 + 4 + 4.
BYTES_PER_PARAMETER: dict[str, tuple[int, int, int]] = {
    "16 bytes": (2, 2, 12),
    "18 bytes": (2, 4, 12),
    "fp32": (4, 4, 8),
}


# Training state


@formula
def weight_bytes(*, parameters: Parameters, bytes_per_parameter: Byte) -> Byte:
    r"""Memory of the weights.

    Equation: M_w = P \, b
    Where: P = parameters; b = bytes_per_parameter
    Source: Definition
    Assumes: every parameter in one format, nothing shared counted twice.
    """
    return parameters * bytes_per_parameter


@formula
def gradient_bytes(*, parameters: Parameters, bytes_per_parameter: Byte) -> Byte:
    r"""Memory of the gradients.

    Equation: M_g = P \, b
    Where: P = parameters; b = bytes_per_parameter
    Source: Definition
    Assumes: every parameter is trained and all gradients are alive at once.
    """
    return parameters * bytes_per_parameter


@formula
def optimizer_bytes(*, parameters: Parameters, bytes_per_parameter: Byte) -> Byte:
    r"""Memory of the optimizer's state.

    Equation: M_o = P \, b
    Where: P = parameters; b = bytes_per_parameter
    Source: Definition; Rajbhandari et al. 2020, arXiv:1910.02054, section 3.1
    Assumes: b adds up all that is kept per parameter. Adam's two moments: 8 B in FP32, 4 B in BF16; with an FP32
        master copy of the weights 12 B; plain SGD 0.
    """
    return parameters * bytes_per_parameter


def _share(ranks, zero_stage, first_stage):
    """Over how many ranks a part is split: ZeRO splits optimizer, then gradients, then weights."""
    return ranks if zero_stage >= first_stage else 1


@formula
def weight_bytes_per_rank(
    *, parameters: Parameters, ranks: Count, zero_stage: ZeroStage, convention: Convention
) -> Byte:
    r"""Memory of the weights on one rank.

    Equation: M_w = b_w P \quad (b_w P / N \text{ from stage 3})
    Where: P = parameters; N = ranks; \text{stage} = zero_stage; \text{convention} = convention
    Source: Rajbhandari et al. 2020, arXiv:1910.02054, section 5
    Assumes: b_w is 2 B in mixed precision (the FP32 master copy counts as optimizer state), 4 B in FP32.
    """
    size = BYTES_PER_PARAMETER[convention][0]
    return as_bytes(size * parameters / _share(ranks, zero_stage, 3))


@formula
def gradient_bytes_per_rank(
    *, parameters: Parameters, ranks: Count, zero_stage: ZeroStage, convention: Convention
) -> Byte:
    r"""Memory of the gradients on one rank.

    Equation: M_g = b_g P \quad (b_g P / N \text{ from stage 2})
    Where: P = parameters; N = ranks; \text{stage} = zero_stage; \text{convention} = convention
    Source: Rajbhandari et al. 2020, arXiv:1910.02054, section 5
    Assumes: b_g is 2 B in the 16-byte convention, 4 B in the 18-byte one, which accumulates in FP32, and in FP32.
    """
    size = BYTES_PER_PARAMETER[convention][1]
    return as_bytes(size * parameters / _share(ranks, zero_stage, 2))


@formula
def optimizer_bytes_per_rank(
    *, parameters: Parameters, ranks: Count, zero_stage: ZeroStage, convention: Convention
) -> Byte:
    r"""Memory of Adam's state on one rank.

    Equation: M_o = K P \quad (K P / N \text{ from stage 1})
    Where: P = parameters; N = ranks; \text{stage} = zero_stage; \text{convention} = convention
    Source: Rajbhandari et al. 2020, arXiv:1910.02054, section 5
    Assumes: K is 12 B in mixed precision (FP32 master weights and two moments), 8 B in FP32.
    """
    size = BYTES_PER_PARAMETER[convention][2]
    return as_bytes(size * parameters / _share(ranks, zero_stage, 1))


@formula
def training_state_bytes(
    *, parameters: Parameters, ranks: Count, zero_stage: ZeroStage, convention: Convention
) -> Byte:
    r"""Weights, gradients and Adam's state on one rank of data-parallel training with ZeRO.

    Equation: M = P \left( \frac{b_w}{N_w} + \frac{b_g}{N_g} + \frac{K}{N_o} \right)
    Where: P = parameters; N = ranks; \text{stage} = zero_stage; \text{convention} = convention
    Source: Rajbhandari et al. 2020, arXiv:1910.02054, section 5 and table 1
    Assumes: weight, gradient and optimizer's state have 2, 2 and 12 bytes, 2, 4 and 12, or in FP32 4, 4 and 8. Stage 0
        splits nothing, 1 the optimizer's state over the N ranks, 2 the gradients too, 3 the weights too (FSDP); what
        is not split is divided by 1. No activations, buffers or fragmentation.
    """
    return sum(
        part(parameters=parameters, ranks=ranks, zero_stage=zero_stage, convention=convention)
        for part in (optimizer_bytes_per_rank, gradient_bytes_per_rank, weight_bytes_per_rank)
    )


# Activations


@formula
def activation_bytes(
    *,
    layers: Count,
    sequence_length: Count,
    microbatch: Count,
    hidden_size: Count,
    query_heads: Count,
    tensor_parallel: Count,
    sequence_parallel: Literal[True, False],
    recomputation: Recomputation,
    attention: Attention,
) -> Byte:
    r"""Activations that the layers of a GPT keep for the backward pass, in 16 bits with dropout, per rank.

    Equation: L s b h \left( 10 + \frac{24}{t} + \frac{5 a s}{h t} \right), \quad
        \text{sequence parallel: } \frac{L s b h}{t} \left( 34 + \frac{5 a s}{h} \right)
    Where: L = layers; s = sequence_length; b = microbatch; h = hidden_size; a = query_heads; t = tensor_parallel;
        \text{SP} = sequence_parallel; \text{recomputation} = recomputation; \text{attention} = attention
    Source: Korthikanti et al. 2022, arXiv:2205.05198, section 4 and table 2
    Assumes: a plain MLP four times as wide as the model, dropout with masks of one byte, no pipeline. Selective
        recomputation and FlashAttention both drop the term 5as/h; FlashAttention's own row statistics are left out.
        Full recomputation keeps 2sbh per layer, the layer's input, and for a moment one whole layer more, which is
        not counted. Embedding, output layer and loss are not counted either.
    """
    tokens = layers * sequence_length * microbatch
    scores = 5 * query_heads * sequence_length
    if attention == "flash" or recomputation == "selective":
        scores = 0 * scores
    if recomputation == "full":
        total = 2 * hidden_size / (tensor_parallel if sequence_parallel else 1)
    elif sequence_parallel:
        total = (34 * hidden_size + scores) / tensor_parallel
    else:
        total = 10 * hidden_size + (24 * hidden_size + scores) / tensor_parallel
    return as_bytes(tokens * total)


@formula
def layer_activation_bytes(
    *,
    layers: Count,
    sequence_length: Count,
    microbatch: Count,
    hidden_size: Count,
    intermediate_size: Count,
    mlp_matrices: Annotated[Count, Range(2, 3)],
    query_heads: Count,
    kv_heads: Count,
    bytes_per_element: Byte,
    mask_bytes: Byte,
    attention: Attention,
    dropout: Literal[True, False],
    recomputation: Literal["none", "full"],
) -> Byte:
    r"""Activations that the layers of a decoder keep for the backward pass, on one device in one format.

    Equation: L s b \left( B \left( \left(6 + 2 \tfrac{a_k}{a}\right) h + (2 n - 2) f \right) + 2 h m
        + a s \left( B + B + m \right) \right)
    Where: L = layers; s = sequence_length; b = microbatch; h = hidden_size; f = intermediate_size; n = mlp_matrices;
        a = query_heads; a_k = kv_heads; B = bytes_per_element; m = mask_bytes; \text{attention} = attention;
        \text{dropout} = dropout; \text{recomputation} = recomputation
    Source: Korthikanti et al. 2022, arXiv:2205.05198, section 4.1, with its constants 2 (bytes), 1 (mask) and 4h
        (MLP) left open
    Assumes: two norms, attention and an MLP of 2 matrices (plain) or 3 (gated) per layer, each operation a tensor of
        its own as in eager PyTorch. Without dropout the masks m and the second copy of the scores do not exist, with
        FlashAttention no scores at all. Full recomputation keeps the layer's input, sbhB, and for a moment one whole
        layer more, which is not counted. Row statistics of norms and of FlashAttention are left out.
    """
    tokens = layers * sequence_length * microbatch
    if recomputation == "full":
        return tokens * hidden_size * bytes_per_element
    wide = (6 + 2 * kv_heads / query_heads) * hidden_size + (2 * mlp_matrices - 2) * intermediate_size
    total = wide * bytes_per_element
    if dropout:
        total = total + 2 * hidden_size * mask_bytes
    if attention == "standard":
        per_score = 2 * bytes_per_element + mask_bytes if dropout else bytes_per_element
        total = total + query_heads * sequence_length * per_score
    return tokens * total


@formula
def output_activation_bytes(
    *, sequence_length: Count, microbatch: Count, hidden_size: Count, vocabulary: Count, bytes_per_element: Byte
) -> Byte:
    r"""What final norm, output layer and cross-entropy keep for the backward pass.

    Equation: s b \left( 2 h B + 4 v \right)
    Where: s = sequence_length; b = microbatch; h = hidden_size; v = vocabulary; B = bytes_per_element
    Source: Korthikanti et al. 2022, arXiv:2205.05198, section 4.3
    Assumes: the loss keeps its log-probabilities in FP32, 4 B each. Inputs of the norm and of the output layer are
        kept, token numbers and targets (8 B each) are not counted; the gradient of the logits comes on top for a
        moment.
    """
    per_token = 2 * hidden_size * bytes_per_element + as_bytes(4 * vocabulary)
    return sequence_length * microbatch * per_token


@formula
def logits_bytes(*, sequence_length: Count, microbatch: Count, vocabulary: Count, bytes_per_element: Byte) -> Byte:
    r"""Memory of one tensor of logits.

    Equation: s b v B
    Where: s = sequence_length; b = microbatch; v = vocabulary; B = bytes_per_element
    Source: Definition
    Assumes: one copy. A step of training holds several at its peak: logits, log-probabilities and their gradients.
    """
    return sequence_length * microbatch * vocabulary * bytes_per_element


@formula
def attention_activation_share(*, sequence_length: Count, hidden_size: Count, query_heads: Count) -> Number:
    r"""Share of a layer's activations that selective recomputation or FlashAttention saves.

    Equation: \frac{5 a s / h}{34 + 5 a s / h}
    Where: s = sequence_length; h = hidden_size; a = query_heads
    Source: Korthikanti et al. 2022, arXiv:2205.05198, section 5
    Assumes: tensor and sequence parallelism, 16 bits, dropout, a plain MLP four times as wide as the model.
    """
    scores = 5 * query_heads * sequence_length / hidden_size
    return scores / (34 + scores)


@formula
def selective_recomputation_overhead(*, sequence_length: Count, hidden_size: Count) -> Number:
    r"""Operations that selective recomputation adds, relative to the model's own.

    Equation: \frac{s / 18h}{1 + s / 6h}
    Where: s = sequence_length; h = hidden_size
    Source: Korthikanti et al. 2022, arXiv:2205.05198, section 5 and appendix A
    Assumes: the scores and values are computed once more, a third of what they take forward and backward; the output
        layer is not counted. Korthikanti's eq. 8 adds them three times over, s/6h in place of s/18h.
    """
    scores = sequence_length / (6 * hidden_size)
    return scores / 3 / (1 + scores)


# Inference


@formula
def kv_bytes_per_token(*, layers: Count, kv_heads: Count, head_dim: Count, bytes_per_element: Byte) -> Byte:
    r"""KV cache that one token of one sequence takes.

    Equation: 2 L a_k d B
    Where: L = layers; a_k = kv_heads; d = head_dim; B = bytes_per_element
    Source: Definition; Pope et al. 2022, arXiv:2211.05102
    Assumes: one key and one value per layer and KV head; no sliding window, no compression, no padding to blocks.
    """
    return 2 * layers * kv_heads * head_dim * bytes_per_element


@formula
def kv_cache_bytes(
    *,
    layers: Count,
    kv_heads: Count,
    head_dim: Count,
    context_length: Count,
    batch: Count,
    bytes_per_element: Byte,
) -> Byte:
    r"""KV cache of a batch of sequences.

    Equation: 2 L a_k d B \, s b
    Where: L = layers; a_k = kv_heads; d = head_dim; s = context_length; b = batch; B = bytes_per_element
    Source: Definition; Pope et al. 2022, arXiv:2211.05102
    Assumes: every sequence of the batch has the same length; no sliding window, no compression, no padding to blocks.
    """
    per_token = kv_bytes_per_token(
        layers=layers, kv_heads=kv_heads, head_dim=head_dim, bytes_per_element=bytes_per_element
    )
    return per_token * context_length * batch


@formula
def latent_kv_bytes_per_token(*, layers: Count, latent_size: Count, rope_size: Number, bytes_per_element: Byte) -> Byte:
    r"""KV cache that one token takes with multi-head latent attention.

    Equation: L \left( d_c + d_r \right) B
    Where: L = layers; d_c = latent_size; d_r = rope_size; B = bytes_per_element
    Source: DeepSeek-AI 2024, DeepSeek-V2, arXiv:2405.04434, section 2.1
    Assumes: one latent vector for keys and values of all heads and one rotary key per layer; the number of heads does
        not matter.
    """
    return layers * (latent_size + rope_size) * bytes_per_element


@formula
def kv_heads_per_device(*, kv_heads: Count, tensor_parallel: Count) -> Number:
    r"""KV heads whose cache one device holds under tensor parallelism.

    Equation: \max\left(1,\ \frac{a_k}{t}\right)
    Where: a_k = kv_heads; t = tensor_parallel
    Source: Definition; Pope et al. 2022, arXiv:2211.05102
    Assumes: heads are split evenly; with more devices than heads each head is held by several devices.
    """
    return maximum(kv_heads / tensor_parallel, 1)


@formula
def largest_batch(*, memory: Byte, weights: Byte, bytes_per_sequence: Byte) -> Number:
    r"""Sequences that fit beside the weights.

    Equation: \left\lfloor \frac{\max(0,\ M - M_w)}{M_s} \right\rfloor
    Where: M = memory; M_w = weights; M_s = bytes_per_sequence
    Source: Definition
    Assumes: nothing else takes memory; count what the framework and activations need into the weights.
    """
    return floor(maximum(memory - weights, 0 * memory) / bytes_per_sequence)


@formula
def largest_context(*, memory: Byte, weights: Byte, bytes_per_token: Byte, batch: Count) -> Number:
    r"""Tokens of context that fit beside the weights, per sequence.

    Equation: \left\lfloor \frac{\max(0,\ M - M_w)}{b M_t} \right\rfloor
    Where: M = memory; M_w = weights; M_t = bytes_per_token; b = batch
    Source: Definition
    Assumes: nothing else takes memory; every sequence of the batch has the same length.
    """
    return floor(maximum(memory - weights, 0 * memory) / (bytes_per_token * batch))
