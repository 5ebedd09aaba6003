"""What the scaling-laws lab measures: the loss of small language models of several sizes on several amounts of text.

Three kinds of runs, told apart by the point's "role":

- "fit": every size on every amount of text;
- "repeat": some of them again with other seeds, which says how much one loss scatters;
- "held-out": runs larger than any of those, trained last.

Each is a decoder-only transformer that reads characters (at gpu scale bytes) and is trained for one pass over its
part of the text, with a learning rate that rises over the first tenth of the run and falls to zero at its end. A
schedule that is longer than the run would leave the loss of the short runs too high (Hoffmann et al. 2022).

The text ships with Python: the help topics of pydoc, at gpu scale the sources of the standard library. Its SHA-256 is
in the record, since it differs from version to version. The validation text is never trained on.
"""

from __future__ import annotations

import functools
import hashlib
import math
import re
import sysconfig
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from efflab.experiments.runner import Case, Plan
from efflab.measure import device as devices
from efflab.records import Environment, Record, Sample

HEAD_DIM = 16  # of every model; a model of width 64 has four heads
MIXED = 4  # embeddings of this many characters, the current one and those before it, are mixed into one
BETAS = (0.9, 0.98)
WARM_UP = 0.1  # of a run's steps
CLIP = 1.0  # norm of the gradient
THREADS = 1  # several would wait for each other on matrices as small as these
EVERY = 10  # one part in ten is validation text
CHUNK = 2000  # characters of a part of the help topics
LEFT_OUT = {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3", "__pycache__"}


@dataclass(frozen=True)
class Scale:
    """What a scale trains.

    Attributes:
        text: "pydoc topics" or "standard library".
        widths: of the fitted models, rising; multiples of HEAD_DIM, or one head that is narrower.
        tokens: training tokens of the fitted models, rising.
        held_out: (width, tokens) of the runs that no fit sees.
        repeats: (width, tokens) that are trained again, once per seed of `seeds`.
        seeds: of the repeats; the other runs have seed 0.
        layers: transformer blocks of every model.
        context: tokens that a model sees at once.
        batch: windows in one step.
        rate: peak learning rate times width.
    """

    text: str
    widths: tuple[int, ...]
    tokens: tuple[int, ...]
    held_out: tuple[tuple[int, int], ...]
    repeats: tuple[tuple[int, int], ...]
    seeds: tuple[int, ...]
    layers: int
    context: int
    batch: int
    rate: float


SCALES = {
    "smoke": Scale(
        "pydoc topics", (8, 16, 24), (2048, 4096, 8192), ((32, 16384),), ((16, 4096),), (1,), 1, 32, 8, 0.4
    ),
    "cpu": Scale(
        "pydoc topics", (12, 16, 24, 32, 40, 48), (40960, 81920, 163840), ((64, 327680),), ((24, 81920), (32, 81920)),
        (1, 2), 2, 64, 4, 0.4,
    ),
    "gpu": Scale(
        "standard library", (32, 48, 64, 96, 128, 192), (1 << 20, 1 << 21, 1 << 22), ((384, 1 << 23),),
        ((64, 1 << 21), (128, 1 << 21)), (1, 2), 4, 128, 32, 0.4,
    ),
}  # fmt: skip


# Text


@dataclass(frozen=True)
class Text:
    """Tokens to train on and to validate with, as lists of numbers below `vocabulary`."""

    training: list[int]
    validation: list[int]
    vocabulary: int
    sha256: str
    source: str


@functools.cache
def text(name: str) -> Text:
    """The text of that name, split into training and validation parts."""
    parts = _topics() if name == "pydoc topics" else _library()
    whole = "".join(parts) if name == "pydoc topics" else b"".join(parts)  # type: ignore[arg-type]
    training = parts[0][:0].join(p for i, p in enumerate(parts) if i % EVERY != EVERY - 1)  # type: ignore[arg-type]
    validation = parts[0][:0].join(p for i, p in enumerate(parts) if i % EVERY == EVERY - 1)  # type: ignore[arg-type]
    if isinstance(whole, bytes):
        return Text(list(training), list(validation), 256, hashlib.sha256(whole).hexdigest(), name)
    number = {c: i for i, c in enumerate(sorted(set(whole)))}
    digest = hashlib.sha256(whole.encode()).hexdigest()
    return Text([number[c] for c in training], [number[c] for c in validation], len(number), digest, name)


def _topics() -> list[str]:
    """The help topics of pydoc without paragraphs that occur twice, in parts of about CHUNK characters."""
    from pydoc_data.topics import topics

    seen: set[str] = set()
    parts, size = [""], 0
    for name in sorted(topics):
        for paragraph in re.split(r"\n\s*\n", topics[name]):
            key = " ".join(paragraph.split())
            if not key or key in seen:
                continue
            seen.add(key)
            if size >= CHUNK:
                parts.append("")
                size = 0
            parts[-1] += paragraph + "\n\n"
            size += len(paragraph) + 2
    return parts


def _library() -> list[bytes]:
    """The standard library's Python sources in alphabetical order, a part per file."""
    root = Path(sysconfig.get_path("stdlib"))
    files = (f for f in root.rglob("*.py") if not LEFT_OUT & set(f.relative_to(root).parts))
    return [f.read_bytes() for f in sorted(files, key=lambda f: f.relative_to(root).as_posix())]


# Model


def build(width: int, scale: Scale, vocabulary: int, device: Any = "cpu") -> Any:
    """A decoder-only transformer: no biases, rotary positions, a GELU MLP four times as wide, tied embeddings.

    The embeddings of a character and of the MIXED - 1 before it are mixed by one matrix. Attention learns to look at
    the character before only after many more steps than these runs have.
    """
    torch = devices.import_torch()
    from torch import nn

    heads = max(1, width // HEAD_DIM)
    head = width // heads

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm_1, self.norm_2 = nn.LayerNorm(width, bias=False), nn.LayerNorm(width, bias=False)
            self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
            self.up, self.down = nn.Linear(width, 4 * width, bias=False), nn.Linear(4 * width, width, bias=False)

        def forward(self, x: Any, cosine: Any, sine: Any) -> Any:
            rows, length, _ = x.shape
            q, k, v = self.qkv(self.norm_1(x)).view(rows, length, 3, heads, head).permute(2, 0, 3, 1, 4)
            q, k = q * cosine + q.roll(head // 2, -1) * sine, k * cosine + k.roll(head // 2, -1) * sine
            attended = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + self.out(attended.transpose(1, 2).reshape(rows, length, width))
            return x + self.down(nn.functional.gelu(self.up(self.norm_2(x)), approximate="tanh"))

    class Decoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(vocabulary, width)
            self.mix = nn.Linear(MIXED * width, width, bias=False)
            self.blocks = nn.ModuleList(Block() for _ in range(scale.layers))
            self.norm = nn.LayerNorm(width, bias=False)
            angles = torch.arange(scale.context)[:, None] * 1000 ** (-torch.arange(head // 2) / (head // 2))
            self.register_buffer("cosine", torch.cat([angles.cos(), angles.cos()], -1), persistent=False)
            self.register_buffer("sine", torch.cat([-angles.sin(), angles.sin()], -1), persistent=False)
            for name, weight in self.named_parameters():
                if weight.ndim == 2:
                    nn.init.normal_(weight, 0, weight.shape[1] ** -0.5)
                if name.endswith(("out.weight", "down.weight")):
                    weight.data.mul_((2 * scale.layers) ** -0.5)

        def forward(self, tokens: Any) -> Any:
            length = tokens.shape[1]
            x = self.embedding(tokens) * width**0.5
            shifted = [nn.functional.pad(x, (0, 0, k, 0))[:, :length] for k in range(MIXED)]
            x = self.mix(torch.cat(shifted, -1))
            for block in self.blocks:
                x = block(x, self.cosine[:length], self.sine[:length])
            return self.norm(x) @ self.embedding.weight.t()

    with torch.device(device):
        return Decoder()


@dataclass(frozen=True)
class Size:
    """Counted from a model, not computed: parameters, those outside the embedding, and operations of one step."""

    parameters: int
    non_embedding: int
    step_flops: int


@functools.cache
def size(width: int, scale: Scale, vocabulary: int) -> Size:
    """Count a model's parameters and, with PyTorch's counter, the operations of one training step.

    Nothing is computed: the model's tensors have shapes and no data. The counter counts matrix products and
    attention, two operations for a multiplication and an addition, and all of the attention scores.
    """
    torch = devices.import_torch()
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    model = build(width, scale, vocabulary, "meta")
    tokens = torch.zeros(scale.batch, scale.context, dtype=torch.long, device="meta")
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        _loss(model(tokens), tokens).backward()
    parameters = sum(p.numel() for p in model.parameters())
    return Size(parameters, parameters - model.embedding.weight.numel(), int(counter.get_total_flops()))


def _loss(logits: Any, targets: Any, reduction: str = "mean") -> Any:
    from torch.nn.functional import cross_entropy

    return cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction=reduction)


# Training


def rate(step: int, steps: int, peak: float) -> float:
    """The learning rate of a step, counted from 0: it rises for a tenth of the run and ends at zero with it."""
    warm = max(1, round(WARM_UP * steps))
    return peak * min((step + 1) / warm, (steps - step) / max(1, steps - warm), 1.0)


def train(point: dict[str, Any], scale: Scale, device: Any) -> tuple[float, float]:
    """Train one model; its loss on the whole validation text, nats per token, and the seconds that training took."""
    torch = devices.import_torch()
    words, seed = text(scale.text), int(point["seed"])
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):  # the same weights on every device: they are drawn on the CPU
        torch.manual_seed(seed)
        model = build(int(point["hidden_size"]), scale, words.vocabulary).to(device)
    length, batch, steps = scale.context, scale.batch, int(point["steps"])
    windows = (len(words.training) - 1) // length
    data = torch.tensor(words.training[: windows * length + 1])
    x, y = data[:-1].view(windows, length).to(device), data[1:].view(windows, length).to(device)
    order = torch.randperm(windows, generator=generator)[: steps * batch].to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1.0, betas=BETAS, weight_decay=0.0, fused=True)
    narrow = torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda")
    _synchronise(torch, device)
    begin = time.perf_counter()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate(step, steps, float(point["learning_rate"]))
        rows = order[step * batch : (step + 1) * batch]
        with narrow:
            logits = model(x[rows])
        loss = _loss(logits, y[rows])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
    _synchronise(torch, device)
    seconds = time.perf_counter() - begin
    return _validate(torch, model, words, scale, device), seconds


def _validate(torch: Any, model: Any, words: Text, scale: Scale, device: Any) -> float:
    windows = (len(words.validation) - 1) // scale.context
    data = torch.tensor(words.validation[: windows * scale.context + 1])
    x, y = (d.view(windows, scale.context).to(device) for d in (data[:-1], data[1:]))
    total = 0.0
    with torch.no_grad():
        for a, b in zip(x.split(64), y.split(64), strict=True):
            total += _loss(model(a), b, reduction="sum").item()
    return total / (windows * scale.context)


def _synchronise(torch: Any, device: Any) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


# The experiment


class ScalingLaws:
    """Loss against model size and data."""

    topic = "scaling_laws"
    scales = tuple(SCALES)

    def plan(self, scale: str, device: Any, environment: Environment, resumed: Record | None) -> Plan:
        """The runs of a scale, small ones first, held-out ones last."""
        chosen = SCALES[scale]
        words = text(chosen.text)
        wanted = [(w, d, "fit", 0) for w in chosen.widths for d in chosen.tokens]
        wanted += [(w, d, "repeat", s) for w, d in chosen.repeats for s in chosen.seeds]
        wanted += [(w, d, "held-out", 0) for w, d in chosen.held_out]
        cases = [self._case(chosen, words, device, *run) for run in wanted]
        settings = {k: v for k, v in asdict(chosen).items() if k not in ("widths", "tokens", "held_out", "repeats")}
        spec = {
            "scale": scale,
            **settings,
            "seeds": list(chosen.seeds),
            "sha256": words.sha256,
            "vocabulary": words.vocabulary,
            "training_tokens": len(words.training),
            "validation_tokens": len(words.validation),
            "passes": 1,
            "schedule": f"linear, {WARM_UP:.0%} warm-up, ends at zero with the run",
            "threads": THREADS if device.type == "cpu" else None,
            "optimizer": f"AdamW, betas {BETAS[0]} and {BETAS[1]}, no weight decay, gradient clipped at {CLIP:g}",
            "precision": "bf16 autocast" if device.type == "cuda" else "fp32",
            "runs": [c.name for c in cases],
        }
        return Plan(spec=spec, cases=cases)

    def _case(self, scale: Scale, words: Text, device: Any, width: int, tokens: int, role: str, seed: int) -> Case:
        counted = size(width, scale, words.vocabulary)
        steps = tokens // (scale.batch * scale.context)
        if tokens > len(words.training) - 1:
            raise ValueError(f"{tokens} tokens of {len(words.training)}: the text would repeat")
        name = {"fit": "run", "repeat": "again", "held-out": "large"}[role]
        point: dict[str, Any] = {
            "case": f"{name}-{width}-{tokens // 1024}k" + (f"-seed{seed}" if seed else ""),
            "role": role,
            "parameters": counted.parameters,
            "non_embedding_parameters": counted.non_embedding,
            "tokens": steps * scale.batch * scale.context,
            "flops": counted.step_flops * steps,
            "layers": scale.layers,
            "hidden_size": width,
            "heads": max(1, width // HEAD_DIM),
            "context_length": scale.context,
            "batch": scale.batch,
            "steps": steps,
            "learning_rate": scale.rate / width,
            "seed": seed,
        }

        def samples() -> Iterator[Sample]:
            torch = devices.import_torch()
            threads = torch.get_num_threads()
            torch.set_num_threads(min(THREADS, threads))
            try:
                loss, seconds = train(point, scale, device)
            finally:
                torch.set_num_threads(threads)
            if not math.isfinite(loss):
                raise ValueError(f"the loss is {loss}: training diverged")
            yield Sample(point=point, metric="loss", unit="nats", values=[loss], status="ok")
            yield Sample(point=point, metric="time", unit="s", values=[seconds], status="ok")

        return Case(point=point, samples=samples, metric="loss", unit="nats")


EXPERIMENT = ScalingLaws()
