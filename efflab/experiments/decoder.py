"""A GPT that labs train and measure: learned positions, pre-norm layers, biases, one matrix for input and output.

Layers of layer norm, attention, layer norm and a plain GELU MLP; dropout after the softmax and after both blocks;
logits in float32. "math" attention is two products with a softmax between them; "sdpa" is torch's
scaled_dot_product_attention, whatever torch makes of it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from efflab.measure import device as devices

SEED = 0
DROPOUT = 0.1


@dataclass(frozen=True)
class Variant:
    """How a step is done.

    Attributes:
        weights: "fp32", "bf16" or "fp16": in what the weights are kept and everything is computed; "autocast" or
            "autocast-fp16": kept in fp32, computed under torch.autocast in bf16 or fp16.
        attention: "math" or "sdpa".
        dropout: after the softmax and after both blocks of a layer.
        recomputation: "none" or "full": each layer keeps its input only and runs again in the backward pass.
    """

    weights: str
    attention: str
    dropout: bool = False
    recomputation: str = "none"

    @property
    def name(self) -> str:
        """Such as "bf16-math-dropout"."""
        options = ["dropout"] * self.dropout + ["recomputed"] * (self.recomputation == "full")
        return "-".join([self.weights, self.attention, *options])


class Decoder:
    """A GPT with its parameters, as plain tensors and functions.

    Attributes:
        tokens, targets: the batch, [microbatch, sequence length], drawn at random; assign to train on a text.
        layer_norm, gelu: torch's functions; assign others that compute the same.
    """

    def __init__(self, size: dict[str, int], variant: Variant, device: Any, seed: int = SEED) -> None:
        self.torch = torch = devices.import_torch()
        self.size, self.variant, self.device = size, variant, device
        self.dropout = DROPOUT if variant.dropout else 0.0
        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(variant.weights, torch.float32)
        self.layer_norm, self.gelu = torch.nn.functional.layer_norm, torch.nn.functional.gelu
        generator = torch.Generator(device=device).manual_seed(seed)

        def weight(*shape: int) -> Any:
            made = torch.randn(*shape, device=device, generator=generator) * 0.02
            return made.to(dtype).requires_grad_()

        def norm() -> list[Any]:
            return [made(h, device=device, dtype=dtype).requires_grad_() for made in (torch.ones, torch.zeros)]

        h, f = size["hidden_size"], size["intermediate_size"]
        self.embedding, self.positions = weight(size["vocabulary"], h), weight(size["sequence_length"], h)
        self.layers = [
            [*norm(), weight(3 * h, h), weight(3 * h), weight(h, h), weight(h),
             *norm(), weight(f, h), weight(f), weight(h, f), weight(h)]
            for _ in range(size["layers"])
        ]  # fmt: skip
        self.norm = norm()
        s = size["sequence_length"]
        self.mask = torch.full((s, s), -math.inf, device=device, dtype=dtype).triu(1)
        shape = (size["microbatch"], s)
        self.tokens, self.targets = (
            torch.randint(size["vocabulary"], shape, device=device, generator=generator) for _ in range(2)
        )

    @property
    def parameters(self) -> list[Any]:
        """Every parameter once."""
        return [self.embedding, self.positions, *(p for layer in self.layers for p in layer), *self.norm]

    @property
    def autocast(self) -> Any:
        """The context in which the forward pass runs."""
        narrow = {"autocast": self.torch.bfloat16, "autocast-fp16": self.torch.float16}.get(self.variant.weights)
        return self.torch.autocast(self.device.type, narrow or self.torch.bfloat16, enabled=narrow is not None)

    def embed(self) -> Any:
        """Tokens to vectors, [microbatch, sequence length, hidden size]."""
        return self.torch.nn.functional.embedding(self.tokens, self.embedding) + self.positions

    def run_layers(self, x: Any) -> Any:
        """The layers, each recomputed in the backward pass where the variant says so."""
        from torch.utils.checkpoint import checkpoint

        for layer in self.layers:
            if self.variant.recomputation == "full":
                x = checkpoint(self._layer, x, layer, use_reentrant=False)
            else:
                x = self._layer(x, layer)
        return x

    def loss(self, x: Any) -> Any:
        """Cross-entropy of the logits."""
        return self.torch.nn.functional.cross_entropy(self.logits(x).flatten(0, 1), self.targets.flatten())

    def logits(self, x: Any) -> Any:
        """Final norm and output layer with the embedding's weights, in float32."""
        x = self.layer_norm(x, x.shape[-1:], *self.norm)
        return self.torch.nn.functional.linear(x, self.embedding).float()

    def _layer(self, x: Any, parameters: list[Any]) -> Any:
        f = self.torch.nn.functional
        scale1, shift1, w_qkv, b_qkv, w_out, b_out, scale2, shift2, w_up, b_up, w_down, b_down = parameters
        batch, length, hidden = x.shape
        heads, dim = self.size["query_heads"], self.size["head_dim"]
        projected = f.linear(self.layer_norm(x, (hidden,), scale1, shift1), w_qkv, b_qkv)
        q, k, v = projected.view(batch, length, 3, heads, dim).permute(2, 0, 3, 1, 4)
        if self.variant.attention == "sdpa":
            mixed = f.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=self.dropout)
        else:
            scores = (q @ k.transpose(-1, -2)) * dim**-0.5
            mixed = f.dropout(self.torch.softmax(scores + self.mask.to(scores.dtype), -1), self.dropout) @ v
        mixed = f.linear(mixed.transpose(1, 2).reshape(batch, length, hidden), w_out, b_out)
        x = x + f.dropout(mixed, self.dropout)
        inner = self.gelu(f.linear(self.layer_norm(x, (hidden,), scale2, shift2), w_up, b_up))
        return x + f.dropout(f.linear(inner, w_down, b_down), self.dropout)
