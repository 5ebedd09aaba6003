"""What the scaling-law lab measures: the final loss of many small language models, and of a few larger ones.

Every run trains a decoder-only transformer on the characters of a text that ships with Python, and then measures its
loss on text that no run was trained on. A point's "role" is one of:

- "fit": a grid of sizes and data sizes, one run each. A law is fitted to these.
- "repeat": a fitted point again with another seed, so that the scatter of a single run is known.
- "held-out": larger models on more data than any fitted run. The law predicts them.
- "checkpoint": the loss of a fitted run before its end, at the data size of a shorter run. Its learning rate was still
  high there. Beside the shorter run it shows what a schedule that is longer than its run does to a loss (Hoffmann et
  al. 2022, section 2).

What keeps the runs comparable: no part of the text is trained on twice, smaller data sizes are subsets of larger ones,
the learning rate falls to zero at the end of each run's own data, and one rule sets it for all widths. Paragraphs that
occur twice are kept once, before the text is split: the topics of Python's help repeat whole sections, and a fifth of
them would otherwise stand in the training and in the validation text.
"""

from __future__ import annotations

import functools
import math
import platform
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from efflab.errors import EfflabError
from efflab.experiments.runner import Case, Plan, Unavailable
from efflab.experiments.text import Corpus, corpus, windows
from efflab.measure import device as devices
from efflab.records import Environment, Record, Sample

SEED = 0
MIXED = 4  # characters that the input of one position is made of
HEAD = 32  # width of an attention head, where the model is wide enough for more than one
RATE = 0.5  # learning rate times width
WARM_UP = 0.1  # share of the steps in which the learning rate rises
BETAS = (0.9, 0.98)
CLIP = 1.0  # norm to which gradients are clipped
THREADS = 1  # on a CPU; more wait for each other on matrices this small, above all where others use the machine
WARM_STEPS = 3  # steps of a throw-away model before the clock starts


@dataclass(frozen=True)
class Scale:
    """What is trained at one scale.

    Attributes:
        text: "topics" or "library".
        every: the last of so many chunks is validation text.
        validation: characters of validation text at most.
        context, batch: tokens in a sequence, sequences in a step.
        layers: of every model.
        widths, tokens: the grid of the fitted runs.
        repeats: (width, tokens) of the fitted runs to repeat.
        seeds: how many further seeds each of them gets.
        held_out: (width, tokens) by name.
    """

    text: str
    every: int
    validation: int
    context: int
    batch: int
    layers: int
    widths: tuple[int, ...]
    tokens: tuple[int, ...]
    repeats: tuple[tuple[int, int], ...]
    seeds: int
    held_out: tuple[tuple[str, tuple[int, int]], ...]


SCALES = {
    "smoke": Scale(
        text="topics", every=10, validation=6000, context=32, batch=4, layers=1, widths=(8, 16, 32),
        tokens=(4096, 8192, 16_384), repeats=((16, 8192),), seeds=1,
        held_out=(("held-out-near", (48, 24_576)), ("held-out-far", (64, 32_768))),
    ),
    "cpu": Scale(
        text="topics", every=10, validation=40_000, context=32, batch=8, layers=1,
        widths=(20, 24, 32, 40, 48, 64, 80), tokens=(40_960, 65_536, 102_400, 163_840),
        repeats=((24, 40_960), (40, 65_536), (48, 102_400)), seeds=2,
        held_out=(("held-out-near", (128, 262_144)), ("held-out-far", (160, 327_680))),
    ),
    "gpu": Scale(
        text="library", every=40, validation=200_000, context=128, batch=16, layers=2,
        widths=(32, 48, 64, 96, 128, 192), tokens=(524_288, 1_048_576, 2_097_152, 4_194_304),
        repeats=((48, 524_288), (64, 1_048_576), (128, 2_097_152)), seeds=2,
        held_out=(("held-out-near", (320, 5_242_880)), ("held-out-far", (448, 6_291_456))),
    ),
}  # fmt: skip


# Model


@dataclass(frozen=True)
class Shape:
    """What determines a model: its width, depth, vocabulary and the length of its context."""

    hidden_size: int
    layers: int
    vocabulary: int
    context: int

    @property
    def heads(self) -> int:
        """Attention heads."""
        return max(1, self.hidden_size // HEAD)


def build(shape: Shape, device: Any, seed: int) -> Any:
    """A decoder-only transformer on a device, its weights drawn on the CPU from a seed.

    Pre-norm blocks of causal attention with rotary positions and an MLP four times as wide, no biases, one embedding
    for input and output. The input of a position is one linear map of the embeddings of its character and the three
    before it: without it, a run this short spends most of its data on learning to look at the character before.
    """
    torch = devices.import_torch()
    with torch.random.fork_rng(devices=[]):  # the caller's random state stays
        torch.manual_seed(seed)
        with torch.device("meta" if str(device) == "meta" else "cpu"):
            model = _decoder()(shape)
    return model.to(device)


@functools.cache
def _decoder() -> Any:
    """The module's class, made when it is first needed: importing this file imports no torch."""
    torch = devices.import_torch()
    nn, functional = torch.nn, torch.nn.functional

    class Block(nn.Module):
        def __init__(self, shape: Shape) -> None:
            super().__init__()
            d = shape.hidden_size
            self.heads = shape.heads
            self.before_attention, self.before_mlp = nn.LayerNorm(d, bias=False), nn.LayerNorm(d, bias=False)
            self.query_key_value, self.out = nn.Linear(d, 3 * d, bias=False), nn.Linear(d, d, bias=False)
            self.up, self.down = nn.Linear(d, 4 * d, bias=False), nn.Linear(4 * d, d, bias=False)

        def forward(self, x: Any, cosine: Any, sine: Any) -> Any:
            batch, length, d = x.shape
            packed = self.query_key_value(self.before_attention(x))
            q, k, v = packed.view(batch, length, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
            half = q.shape[-1] // 2
            q = (q * cosine + q.roll(half, -1) * sine).to(v.dtype)
            k = (k * cosine + k.roll(half, -1) * sine).to(v.dtype)
            y = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + self.out(y.transpose(1, 2).reshape(batch, length, d))
            return x + self.down(functional.gelu(self.up(self.before_mlp(x)), approximate="tanh"))

    class Decoder(nn.Module):
        def __init__(self, shape: Shape) -> None:
            super().__init__()
            d = shape.hidden_size
            self.embedding = nn.Embedding(shape.vocabulary, d)
            self.mix = nn.Linear(MIXED * d, d, bias=False)
            self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.layers))
            self.norm = nn.LayerNorm(d, bias=False)
            half = d // shape.heads // 2
            angle = torch.arange(shape.context)[:, None] * 1000.0 ** (-torch.arange(half) / half)
            self.register_buffer("cosine", torch.cat([angle.cos(), angle.cos()], -1), persistent=False)
            self.register_buffer("sine", torch.cat([-angle.sin(), angle.sin()], -1), persistent=False)
            for name, weight in self.named_parameters():
                if weight.dim() == 2:
                    residual = name.endswith(("out.weight", "down.weight"))
                    depth = (2 * shape.layers) ** -0.5 if residual else 1.0
                    nn.init.normal_(weight, 0.0, weight.shape[1] ** -0.5 * depth)

        def forward(self, tokens: Any) -> Any:
            length = tokens.shape[1]
            x = self.embedding(tokens) * self.embedding.embedding_dim**0.5
            x = self.mix(torch.cat([functional.pad(x, (0, 0, back, 0))[:, :length] for back in range(MIXED)], -1))
            for block in self.blocks:
                x = block(x, self.cosine[:length], self.sine[:length])
            return self.norm(x) @ self.embedding.weight.t()

    return Decoder


def loss_of(model: Any, inputs: Any, targets: Any, reduction: str = "mean") -> Any:
    """Cross-entropy of a model's predictions, nats, in float32."""
    functional = devices.import_torch().nn.functional
    return functional.cross_entropy(model(inputs).flatten(0, 1).float(), targets.flatten(), reduction=reduction)


@functools.lru_cache(maxsize=64)
def counted(shape: Shape, batch: int) -> tuple[int, int, int]:
    """All parameters, those outside the embedding, and FLOP of one training step, counted on the real module.

    The module has shapes and no data, so that this takes milliseconds. torch's counter counts products of matrices;
    it counts all attention scores, also those that the mask hides.
    """
    torch = devices.import_torch()
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    model = build(shape, "meta", SEED)
    tokens = torch.zeros(batch, shape.context, dtype=torch.long, device="meta")
    # The counter does not know every fused attention; the plain one is two products.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        loss_of(model, tokens, tokens).backward()
    parameters = sum(p.numel() for p in model.parameters())
    return parameters, parameters - model.embedding.weight.numel(), int(counter.get_total_flops())


# Training


def learning_rate(step: int, steps: int, width: int) -> float:
    """The learning rate of a step (from 0): up over a tenth of the run, then straight down to zero at its end.

    Inverse to the width: with Adam, a step changes the output of a wider layer more.
    """
    warm = max(1, round(WARM_UP * steps))
    return RATE / width * min((step + 1) / warm, (steps - step) / (steps - warm + 1))


class Trainer:
    """A model with its optimizer."""

    def __init__(self, model: Any, device: Any) -> None:
        torch = devices.import_torch()
        self.model, self._device = model, device
        self._weights = list(model.parameters())
        self._clip = torch.nn.utils.clip_grad_norm_
        self._optimizer = torch.optim.AdamW(self._weights, lr=0.0, betas=BETAS, weight_decay=0.0, fused=True)

    def step(self, inputs: Any, targets: Any, rate: float) -> None:
        """One step of training."""
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        with _precision(self._device):
            loss = loss_of(self.model, inputs, targets)
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self._clip(self._weights, CLIP)
        self._optimizer.step()


def narrow(device: Any) -> bool:
    """Whether a device trains in bf16: a GPU that multiplies in it does, and is here to say so."""
    here = device.type == "cuda" and devices.import_torch().cuda.is_available()
    return here and not devices.missing_for("bf16", device)


def _precision(device: Any) -> Any:
    """Autocast to bf16 on a GPU that multiplies in it; weights, optimizer and cross-entropy stay float32."""
    torch = devices.import_torch()
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=narrow(device))


@dataclass
class Session:
    """What the runs of one scale share: the text, on the device."""

    scale: Scale
    device: Any

    @property
    def text(self) -> Corpus:
        """The text."""
        return corpus(self.scale.text, self.scale.every, self.scale.validation)

    @functools.cached_property
    def data(self) -> dict[str, tuple[Any, Any]]:
        """Inputs and targets of the training and the validation sequences."""
        torch = devices.import_torch()
        return {
            name: windows(torch.tensor(tokens, device=self.device), self.scale.context)
            for name, tokens in (("training", self.text.training), ("validation", self.text.validation))
        }

    def shape(self, width: int) -> Shape:
        """The model of a width."""
        return Shape(width, self.scale.layers, self.text.vocabulary, self.scale.context)

    def point(self, width: int, tokens: int, role: str, case: str = "", seed: int = SEED) -> dict[str, Any]:
        """The point of a run; "tokens" are whole steps."""
        shape, in_step = self.shape(width), self.scale.batch * self.scale.context
        parameters, without_embedding, flops = counted(shape, self.scale.batch)
        steps = tokens // in_step
        name = case or f"N{brief(parameters)}-D{brief(tokens)}" + (f"-seed{seed}" if role == "repeat" else "")
        return {
            "case": name, "role": role, "parameters": parameters, "non_embedding_parameters": without_embedding,
            "tokens": steps * in_step, "flops": steps * flops, "layers": shape.layers, "hidden_size": width,
            "heads": shape.heads, "context_length": self.scale.context, "batch": self.scale.batch, "steps": steps,
            "learning_rate": RATE / width, "seed": seed,
        }  # fmt: skip

    def order(self, steps: int, seed: int) -> Any:
        """Which training sequences a run sees, in order, none twice; a shorter run sees the first of them.

        Raises:
            Unavailable: the text is too short for one pass.
        """
        torch = devices.import_torch()
        sequences, wanted = len(self.data["training"][0]), steps * self.scale.batch
        if wanted > sequences:
            raise Unavailable(
                f"the run needs {wanted * self.scale.context} tokens, the training text of this Python has "
                f"{sequences * self.scale.context}, and no part of it is used twice"
            )
        found = torch.randperm(sequences, generator=torch.Generator().manual_seed(seed))[:wanted]
        return found.to(self.device).view(steps, self.scale.batch)

    def train(self, point: dict[str, Any], stops: tuple[int, ...] = ()) -> tuple[float, float, dict[int, float]]:
        """Train one model.

        Args:
            point: as `point` makes it.
            stops: numbers of tokens after which the validation loss is measured on the way, off the clock.

        Returns:
            Final validation loss, nats per token; seconds of training; the losses at the stops.

        Raises:
            Unavailable: the text is too short.
            EfflabError: the loss is not finite.
        """
        steps, width, seed = (int(point[n]) for n in ("steps", "hidden_size", "seed"))
        inputs, targets = self.data["training"]
        order = self.order(steps, seed)
        granted = devices.import_torch().get_num_threads()
        with devices.threads(min(THREADS, granted) if self.device.type == "cpu" else None):
            warm = Trainer(build(self.shape(width), self.device, seed), self.device)
            for at in order[:WARM_STEPS]:
                warm.step(inputs[at], targets[at], 0.0)
            trainer = Trainer(build(self.shape(width), self.device, seed), self.device)
            found: dict[int, float] = {}
            seconds, begin = 0.0, self._now()
            for step in range(steps):
                at = order[step]
                trainer.step(inputs[at], targets[at], learning_rate(step, steps, width))
                seen = (step + 1) * order[0].numel() * self.scale.context
                if seen in stops:
                    seconds += self._now() - begin
                    found[seen] = self.validate(trainer.model)
                    begin = self._now()
            seconds += self._now() - begin
            loss = self.validate(trainer.model)
        if not math.isfinite(loss):
            raise EfflabError(f"the loss is {loss}: training diverged")
        return loss, seconds, found

    def validate(self, model: Any) -> float:
        """Mean loss over the whole validation text, nats per token."""
        torch = devices.import_torch()
        inputs, targets = self.data["validation"]
        total = 0.0
        with torch.no_grad():  # in float32 everywhere
            for some, wanted in zip(inputs.split(128), targets.split(128), strict=True):
                total += float(loss_of(model, some, wanted, "sum"))
        return total / targets.numel()

    def _now(self) -> float:
        if self.device.type == "cuda":
            devices.import_torch().cuda.synchronize(self.device)
        return time.perf_counter()


def brief(number: float) -> str:
    """A number in two or three digits: 5328 is "5.3k", 163840 is "164k"."""
    for factor, letter in ((1e6, "M"), (1e3, "k")):
        if number >= 0.9995 * factor:
            scaled = number / factor
            return (f"{scaled:.1f}".removesuffix(".0") if scaled < 99.5 else f"{scaled:.0f}") + letter
    return f"{number:.0f}"


# The experiment


class ScalingLaws:
    """The experiment: see the module's text."""

    topic = "scaling_laws"
    scales = ("smoke", "cpu", "gpu")

    def plan(self, scale: str, device: Any, environment: Environment, resumed: Record | None) -> Plan:
        """The runs of a scale, fitted ones first. Builds no tensor on the device."""
        of = SCALES[scale]
        session = Session(of, device)
        text = session.text
        points = [session.point(width, tokens, "fit") for width in of.widths for tokens in of.tokens]
        points += [
            session.point(width, tokens, "repeat", seed=SEED + 1 + again)
            for width, tokens in of.repeats
            for again in range(of.seeds)
        ]
        points += [session.point(*size, "held-out", case) for case, size in of.held_out]
        spec = {
            "scale": scale, "seed": SEED, "text": text.name, "text_of_python": platform.python_version(),
            "sha256": text.sha256, "characters": text.characters, "vocabulary": text.vocabulary,
            "training_tokens": len(text.training), "validation_tokens": len(text.validation), "passes": 1,
            "learning_rate": f"{RATE:g} / width, rising over {WARM_UP:.0%} of the run, then falling to zero at its end",
            "optimizer": f"AdamW, betas {BETAS[0]} and {BETAS[1]}, no weight decay, gradients clipped at {CLIP:g}",
            "precision": "bf16 autocast" if narrow(device) else "fp32",
            "threads": THREADS if device.type == "cpu" else None,
            "cases": [p["case"] for p in points],
        }  # fmt: skip
        return Plan(spec, [self._case(p, session) for p in points])

    def _case(self, point: dict[str, Any], session: Session) -> Case:
        def samples() -> Iterator[Sample]:
            longest = max(session.scale.tokens)
            early = point["role"] == "fit" and point["tokens"] == longest
            stops = tuple(t for t in session.scale.tokens if t < longest) if early else ()
            loss, seconds, found = session.train(point, stops)
            yield Sample(point=point, metric="loss", unit="nats", values=[loss], status="ok")
            yield Sample(point=point, metric="time", unit="s", values=[seconds], status="ok")
            for tokens, value in found.items():
                steps = tokens // (int(point["batch"]) * int(point["context_length"]))
                stopped = point | {
                    "case": f"{point['case']}-at-{brief(tokens)}", "role": "checkpoint", "tokens": tokens,
                    "flops": point["flops"] // point["steps"] * steps, "steps": steps, "schedule_tokens": longest,
                }  # fmt: skip
                yield Sample(point=stopped, metric="loss", unit="nats", values=[value], status="ok")

        return Case(point, samples, metric="loss", unit="nats")


EXPERIMENT = ScalingLaws()
