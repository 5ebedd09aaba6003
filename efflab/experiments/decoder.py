"""A GPT that labs train and measure: learned positions, pre-norm layers, biases, one matrix for input and output.

Layers of layer norm, attention, layer norm and a plain GELU MLP; dropout after the softmax and after both blocks;
logits in float32. "math" attention is two products with a softmax between them; "sdpa" is torch's
scaled_dot_product_attention, whatever torch makes of it.

`step_bytes` says how many bytes a training step of it holds.
"""

from __future__ import annotations

import gc
import math
from dataclasses import dataclass
from typing import Any

from efflab.measure import device as devices
from efflab.measure import memory

SEED = 0
DROPOUT = 0.1
PARTS = ("weights", "gradients", "optimizer")  # of what a step holds, beside its activations


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


# What a training step holds


def step_bytes(size: dict[str, int], variant: Variant, device: Any) -> dict[str, float]:
    """Bytes of one training step of a decoder, measured.

    Returns:
        Bytes by name, by the device's method: "weights", "gradients", "optimizer", "activations" (what the layers keep
        at the end of the forward pass), "outside" (what embedding, final norm, output layer and loss keep) and "step".
        Counted, "step" is their sum: what a second step holds at the end of its forward pass if gradients stay
        allocated (`set_to_none=False`), as they do where they are accumulated. On a GPU it is the allocator's peak
        over such a second step, beside "after_forward" (allocated at the end of the forward pass) and "rounding"
        (allocated then but not asked for). Always counted: "counted" (the layers), "kept_<dtype>" of them, and
        "weight_copies", which autocast makes of the weights.
    """
    torch = devices.import_torch()
    found = _allocated(size, variant, device) if memory.method_for(device) == "allocator" else {}
    model = Decoder(size, variant, device)
    optimizer = torch.optim.AdamW(model.parameters)
    saved = memory.SavedTensors([*model.parameters, model.mask, model.tokens, model.targets])
    with model.autocast:
        with saved.region("outside"):
            x = model.embed()
        with saved.region("layers"):
            y = model.run_layers(x)
        with saved.region("outside"):
            loss = model.loss(y)
    kept, outside = saved.kept("layers"), saved.bytes("outside")
    loss.backward()
    optimizer.step()

    counted = {
        "weights": memory.tensor_bytes(model.parameters),
        "gradients": memory.tensor_bytes(p.grad for p in model.parameters),
        "optimizer": memory.tensor_bytes(memory.optimizer_tensors(optimizer)),
        "activations": sum(k.nbytes for k in kept),
        "outside": outside,
    }
    counted["step"] = sum(counted.values())
    detail: dict[str, float] = {
        "counted": counted["activations"],
        "weight_copies": sum(k.nbytes for k in kept if k.copy),
    }
    for k in kept:
        detail[f"kept_{k.dtype}"] = detail.get(f"kept_{k.dtype}", 0) + k.nbytes
    return counted | detail | found


def _allocated(size: dict[str, int], variant: Variant, device: Any) -> dict[str, float]:
    """What the allocator says of a step, each part as the difference that it makes."""
    torch = devices.import_torch()
    allocator = memory.Allocator(device)
    first = Decoder(size, variant, device)  # what libraries allocate at their first use belongs to no variant
    with first.autocast:
        loss = first.loss(first.run_layers(first.embed()))
    loss.backward()
    del first, loss
    gc.collect()

    base = allocator.now()
    model = Decoder(size, variant, device)
    found: dict[str, float] = {}
    fixed = [model.mask, model.tokens, model.targets]
    found["weights"] = allocator.now() - base - memory.tensor_bytes(fixed)
    base += memory.tensor_bytes(fixed)
    optimizer = torch.optim.AdamW(model.parameters)
    for step in range(2):  # the first one makes gradients and states
        allocator.reset_peak()
        before = allocator.now()
        with model.autocast:
            x = model.embed()
            entered = allocator.now()
            y = model.run_layers(x)
            # The layers' input and output are equally large. They keep the input, and what follows keeps the output.
            left = allocator.now()
            loss = model.loss(y)
        after = allocator.now()
        found |= {"activations": left - entered, "outside": after - before - (left - entered)}
        found["after_forward"] = after - base
        requested = allocator.requested()
        if requested is not None:
            found["rounding"] = after - requested
        del x, y
        loss.backward()
        del loss
        if step == 0:
            before = allocator.now()
            found["gradients"] = before - base - found["weights"]
            optimizer.step()
            found["optimizer"] = allocator.now() - before
            optimizer.zero_grad(set_to_none=False)
    found["step"] = allocator.peak() - base
    return found
