"""What the profiling lab measures: where the time of a training step goes, and what each mend gains.

A small GPT (`decoder`) is trained with AdamW on the characters of a text that ships with Python. Its loop has five
planted faults, each behind one flag. None changes what is learned.

- "loader": every item of the data set is turned from characters into tokens in plain Python each time it is asked
  for, by looking each character up in a list, in the training process. Mended, the text was turned into tokens once.
- "copies": every step carries the batch to the device and back as float64, and the logits to the host as float64
  for an accuracy in numpy. Mended, the batch goes as it is and the accuracy is computed on the device.
- "sync": every step reads the loss with `.item()`, and norm, mean and largest magnitude of every parameter and of its
  gradient, one by one. Mended, the loss stays on the device, and all are read at the end of a window of steps.
- "tiny": layer norm, GELU and AdamW are written out in element-wise operations. Mended, they are torch's own.
- "python": the tokens of the step are counted one after the other in a dictionary. Mended, `torch.bincount` does it.

Kinds of cases, told apart by the point's "role", in the order measured:

- "calibration": the step with all faults, its profile, the rate of a large product, the time to make one batch, and
  the step of the loop without other faults where batches lie ready. Predictions are made of these.
- "ablation": all faults but one. "ladder": the first faults mended, one more each time.
- "loader": the loop with the loader's fault alone, its batches made by 0, 1, 2, … worker processes.
- "seed": loss curves: the same seed again, another seed, without faults, and with another number of threads (on a
  GPU: with deterministic algorithms).
- "monitor": the counters of `efflab.measure.monitor` while the loop runs with all faults and with none.
- "evidence": the profile of the loop without faults: what of each part is left after its mend.

A step of "ablation" and "ladder" is timed in turns with a step of the loop with all faults, whose time is the metric
"baseline": a drift of the machine falls on both.

Workers are started with "spawn": each is a new Python. A forked one would be a copy of this process with one thread
only, in which a lock that another thread held (of torch's pool, of a notebook's sockets) stays locked for ever, and it
could not use CUDA. A worker needs nothing of the program's main file, so that it is not run again in it.
"""

from __future__ import annotations

import bisect
import contextlib
import dataclasses
import functools
import gzip
import hashlib
import itertools
import json
import math
import os
import platform
import sys
import tempfile
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from efflab.errors import EfflabError, unknown
from efflab.experiments import runner
from efflab.experiments.decoder import Decoder, Variant
from efflab.experiments.runner import Case, Plan, Unavailable
from efflab.experiments.text import TEXTS, paragraphs, tokens_of
from efflab.measure import device as devices
from efflab.measure import timer
from efflab.measure.monitor import NAMES, Monitor
from efflab.records import Environment, Record, Sample, Timing, iqr, median

FAULTS = ("loader", "copies", "sync", "tiny", "python")  # in the order in which the ladder mends them
ALL, NONE = frozenset(FAULTS), frozenset[str]()
BOTH = {"all-faults": ALL, "clean": NONE}
PARTS = (*FAULTS, "forward", "backward", "optimizer")  # of a profiled step; on a GPU also "wait"
RANGE = "efflab:"  # begins the names of ranges in a profile
SEED = 0
VARIANT = Variant("fp32", "sdpa")
THREADS = 1  # on a CPU, so that a worker has a core of its own
RATE, BETAS, EPSILON, DECAY = 1e-3, (0.9, 0.95), 1e-8, 0.01  # of AdamW
WINDOW = 50  # steps after which the mended loop reads what it kept on the device
WARM = 5  # steps of a loop before anything is measured
READY = 16  # batches that lie ready
MOST_TRACED = 50  # steps in a trace
HANGS = 120.0  # s without a batch after which a worker counts as hung


@dataclass(frozen=True)
class Scale:
    """What is measured at one scale.

    Attributes:
        text: of `efflab.experiments.text`.
        size: of the decoder.
        timer: options of the timer for one turn.
        turns: how often the loops of a case take turns.
        profiled: steps under the profiler.
        peak: rows of the product whose rate stands for the peak.
        workers: of the loader cases.
        curve: steps of a loss curve.
        window: s that a monitored loop runs.
        interval: s between two readings of the monitor.
    """

    text: str
    size: dict[str, int]
    timer: dict[str, Any]
    turns: int
    profiled: int
    peak: int
    workers: tuple[int, ...]
    curve: int
    window: float
    interval: float


SCALES = {
    "smoke": Scale(
        text="topics",
        size={"layers": 2, "sequence_length": 16, "microbatch": 4, "hidden_size": 16, "intermediate_size": 64,
              "query_heads": 2, "head_dim": 8},
        timer={"time_limit": 0.02, "shortest": 1e-4, "most": 10}, turns=2, profiled=3, peak=128, workers=(0, 1, 2),
        curve=8, window=0.3, interval=0.05,
    ),
    "cpu": Scale(
        text="topics",
        size={"layers": 2, "sequence_length": 32, "microbatch": 32, "hidden_size": 24, "intermediate_size": 96,
              "query_heads": 2, "head_dim": 12},
        timer={"time_limit": 0.3, "shortest": 1e-3, "most": 60}, turns=4, profiled=10, peak=1024, workers=(0, 1, 2),
        curve=60, window=3.0, interval=0.1,
    ),
    "gpu": Scale(
        text="library",
        size={"layers": 8, "sequence_length": 256, "microbatch": 32, "hidden_size": 512, "intermediate_size": 2048,
              "query_heads": 8, "head_dim": 64},
        timer={"time_limit": 0.5, "shortest": 50e-3, "most": 60}, turns=4, profiled=10, peak=8192,
        workers=(0, 1, 2, 4, 8), curve=60, window=3.0, interval=0.1,
    ),
}  # fmt: skip


# The text


@dataclass(frozen=True)
class Text:
    """A text as characters. `vocabulary` lists those that have a token of their own, from 1; the others share 0."""

    name: str
    sha256: str
    characters: str
    vocabulary: tuple[str, ...]


@functools.lru_cache(maxsize=2)
def text_of(name: str) -> Text:
    """A text that ships with Python, without its repeated paragraphs."""
    title, read = TEXTS[name]
    whole = "\n\n".join(paragraphs(read()))
    return Text(title, hashlib.sha256(whole.encode()).hexdigest(), whole, tuple(tokens_of(whole)))


class Characters:
    """A data set with the loader's fault: an item is cut from the text and turned into tokens each time."""

    def __init__(self, text: Text, context: int) -> None:
        self.characters, self.vocabulary, self.context = text.characters, list(text.vocabulary), context

    def __len__(self) -> int:
        return (len(self.characters) - 1) // self.context

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        torch = devices.import_torch()
        begin = index * self.context
        tokens = []
        for character in self.characters[begin : begin + self.context + 1]:
            tokens.append(self.vocabulary.index(character) + 1 if character in self.vocabulary else 0)
        return torch.tensor(tokens[:-1]), torch.tensor(tokens[1:])


class Tokens:
    """The same data set, mended: the text was turned into tokens once."""

    def __init__(self, text: Text, context: int) -> None:
        token = {character: i for i, character in enumerate(text.vocabulary, 1)}
        self.tokens = devices.import_torch().tensor([token.get(c, 0) for c in text.characters])
        self.context = context

    def __len__(self) -> int:
        return (len(self.tokens) - 1) // self.context

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        begin = index * self.context
        window = self.tokens[begin : begin + self.context + 1]
        return window[:-1], window[1:]


class Endless:
    """Indices in random order, every one once before any comes again, without end."""

    def __init__(self, count: int, seed: int) -> None:
        self._count, self._seed = count, seed

    def __iter__(self) -> Iterator[int]:
        torch = devices.import_torch()
        generator = torch.Generator().manual_seed(self._seed)
        while True:
            yield from torch.randperm(self._count, generator=generator).tolist()


@functools.lru_cache(maxsize=4)
def data_set(text: str, context: int, faulty: bool) -> Any:
    """The data set of a text, in either form."""
    return (Characters if faulty else Tokens)(text_of(text), context)


class Batches:
    """Batches of a data set from torch's DataLoader, without end: tokens and targets, [batch, context], on the host.

    Args:
        items: the data set.
        batch: sequences in a batch.
        seed: of the order.
        workers: processes that make batches; 0 makes them in this process.
        pinned: batches lie in page-locked memory.

    `close` ends the workers. The batches are the same for every number of workers.
    """

    def __init__(self, items: Any, batch: int, seed: int = SEED, workers: int = 0, pinned: bool = False) -> None:
        from torch.utils.data import DataLoader

        options: dict[str, Any] = {}
        if workers:
            options = {"multiprocessing_context": "spawn", "timeout": HANGS}
        self._iterator: Any = None
        loader = DataLoader(
            items, batch_size=batch, sampler=Endless(len(items), seed), num_workers=workers, pin_memory=pinned,
            generator=devices.import_torch().Generator().manual_seed(seed), **options,
        )  # fmt: skip
        with _without_main() if workers else contextlib.nullcontext():
            self._iterator = iter(loader)

    def __iter__(self) -> Batches:
        return self

    def __next__(self) -> tuple[Any, Any]:
        tokens, targets = next(self._iterator)
        return tokens, targets

    def close(self) -> None:
        """End the workers, if there are any."""
        iterator, self._iterator = self._iterator, None
        # Named, since an iterator that an exception's traceback holds does not end its workers when it is let go.
        if hasattr(iterator, "_shutdown_workers"):
            iterator._shutdown_workers()


@contextlib.contextmanager
def _without_main() -> Iterator[None]:
    """Hide the program's main file from processes that are started inside: they would run it again."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


# What "tiny" writes out


def layer_norm(x: Any, shape: Sequence[int], scale: Any, shift: Any, epsilon: float = 1e-5) -> Any:
    """Layer norm over the last dimension, one small operation after the other."""
    centred = x - x.mean(-1, keepdim=True)
    variance = (centred * centred).mean(-1, keepdim=True)
    return centred / (variance + epsilon).sqrt() * scale + shift


def gelu(x: Any) -> Any:
    """GELU with the error function, one small operation after the other."""
    return 0.5 * x * (1.0 + (x / math.sqrt(2.0)).erf())


class AdamW:
    """AdamW (Loshchilov and Hutter 2019, algorithm 2), parameter by parameter, one small operation after the other."""

    def __init__(self, parameters: Iterable[Any]) -> None:
        torch = devices.import_torch()
        self._parameters = list(parameters)
        self._first = [torch.zeros_like(p) for p in self._parameters]
        self._second = [torch.zeros_like(p) for p in self._parameters]
        self._steps = 0

    def zero_grad(self) -> None:
        """Let the gradients go."""
        for parameter in self._parameters:
            parameter.grad = None

    def step(self) -> None:
        """One step of every parameter."""
        torch = devices.import_torch()
        self._steps += 1
        beta1, beta2 = BETAS
        with torch.no_grad():
            for i, p in enumerate(self._parameters):
                self._first[i] = beta1 * self._first[i] + (1 - beta1) * p.grad
                self._second[i] = beta2 * self._second[i] + (1 - beta2) * p.grad * p.grad
                first = self._first[i] / (1 - beta1**self._steps)
                second = self._second[i] / (1 - beta2**self._steps)
                p.copy_(p - RATE * DECAY * p - RATE * first / (second.sqrt() + EPSILON))


def optimizer_of(parameters: Sequence[Any], written_out: bool) -> Any:
    """AdamW, written out or torch's fused one."""
    if written_out:
        return AdamW(parameters)
    adamw = devices.import_torch().optim.AdamW
    return adamw(parameters, lr=RATE, betas=BETAS, eps=EPSILON, weight_decay=DECAY, fused=True)


# The loop


class Loop:
    """The training loop with some of the faults. A context: at its end the loader's workers end.

    Args:
        scale: its text and its decoder's size.
        device: a torch device.
        faults: those of `FAULTS` that it has.
        seed: of the weights and of the order of the data.
        workers, pinned: of the loader.
        ready: so many batches are made in advance and used again and again; 0 asks the loader at each step.

    Attributes:
        losses: of every step so far; reading it waits for the device.
        figures: norm, mean and largest magnitude of each parameter and of its gradient, when they were last read.
        correct: share of the last step's tokens that were predicted.
        counts: how often each token was trained on or predicted.
        ranges: mark the parts for a profiler.

    Raises:
        EfflabError: an unknown fault.
    """

    def __init__(
        self,
        scale: Scale,
        device: Any,
        faults: Iterable[str],
        seed: int = SEED,
        workers: int = 0,
        pinned: bool = False,
        ready: int = 0,
    ) -> None:
        self.faults = frozenset(faults)
        for name in self.faults - ALL:
            raise unknown("fault", name, FAULTS)
        torch = self._torch = devices.import_torch()
        self.device, self.ranges, self.steps = device, False, 0
        self._pinned = pinned
        self.size = size_of(scale)
        self.model = Decoder(self.size, VARIANT, device, seed)
        tiny = "tiny" in self.faults
        self.model.layer_norm = self._marked(layer_norm if tiny else self.model.layer_norm)
        self.model.gelu = self._marked(gelu if tiny else self.model.gelu)
        self.parameters = self.model.parameters
        self.optimizer = optimizer_of(self.parameters, tiny)
        self._losses: list[Any] = []
        self.figures: list[float] = []
        self._correct: Any = 0.0
        self._tokens: dict[int, int] = {}
        self._pairs: dict[tuple[int, int], int] = {}
        self._counted = torch.zeros(self.size["vocabulary"] ** 2, dtype=torch.int64)
        items = data_set(scale.text, self.size["sequence_length"], "loader" in self.faults)
        self.batches: Any = Batches(items, self.size["microbatch"], seed, workers, pinned)
        if ready:
            made = list(itertools.islice(self.batches, ready))
            self.batches.close()
            self.batches = itertools.cycle(made)

    def __enter__(self) -> Loop:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the loader's workers."""
        if isinstance(self.batches, Batches):
            self.batches.close()

    @property
    def losses(self) -> list[float]:
        """The loss of every step so far."""
        self._losses = [float(loss) for loss in self._losses]
        return list(self._losses)

    @property
    def correct(self) -> float:
        """Share of the last step's tokens that were predicted."""
        return float(self._correct)

    @property
    def pairs(self) -> dict[tuple[int, int], int]:
        """How often one token followed another in the batches so far."""
        if "python" in self.faults:
            return dict(self._pairs)
        found = self._counted.nonzero().flatten().tolist()
        return {divmod(pair, self.size["vocabulary"]): int(self._counted[pair]) for pair in found}

    def step(self) -> None:
        """One step of training."""
        functional = self._torch.nn.functional
        with self.range("loader"):
            tokens, targets = next(self.batches)
        with self.range("python"):
            self._count(tokens, targets)
        with self.range("copies"):
            self.model.tokens, self.model.targets = self._to_device(tokens), self._to_device(targets)
        with self.range("forward"):
            logits = self.model.logits(self.model.run_layers(self.model.embed()))
            loss = functional.cross_entropy(logits.flatten(0, 1), self.model.targets.flatten())
        with self.range("copies"):
            self._correct = self._accuracy(logits.detach())
        with self.range("optimizer"):
            self.optimizer.zero_grad()
        with self.range("backward"):
            loss.backward()
        with self.range("sync"):
            self._read(loss.detach())
        with self.range("tiny"):
            self.optimizer.step()
        self.steps += 1

    def range(self, part: str) -> Any:
        """Around what belongs to a part, for a profiler; without one it costs next to nothing."""
        return self._torch.profiler.record_function(RANGE + part) if self.ranges else contextlib.nullcontext()

    def _marked(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def marked(*arguments: Any) -> Any:
            with self.range("tiny"):
                return function(*arguments)

        return marked

    def _to_device(self, tokens: Any) -> Any:
        if "copies" not in self.faults:
            return tokens.to(self.device, non_blocking=self._pinned)
        rows = self._torch.nn.functional.one_hot(tokens, self.size["vocabulary"]).to(self._torch.float64)
        return rows.to(self.device, copy=True).argmax(-1)

    def _accuracy(self, logits: Any) -> Any:
        if "copies" not in self.faults:
            right = logits.gather(-1, self.model.targets.unsqueeze(-1)).squeeze(-1)
            return (right == logits.amax(-1)).float().mean()
        guesses = logits.to("cpu", self._torch.float64, copy=True).numpy().argmax(-1)
        return (guesses == self.model.targets.to("cpu", copy=True).numpy()).mean()

    def _count(self, tokens: Any, targets: Any) -> None:
        # Both lie on the host, so that counting waits for no device. On a GPU torch.bincount would.
        if "python" not in self.faults:
            vocabulary = self.size["vocabulary"]
            self._counted += self._torch.bincount((tokens * vocabulary + targets).flatten(), minlength=vocabulary**2)
            return
        for token, after in zip(tokens.flatten().numpy(), targets.flatten().numpy(), strict=True):
            token, after = int(token), int(after)
            self._tokens[token] = self._tokens.get(token, 0) + 1
            self._pairs[token, after] = self._pairs.get((token, after), 0) + 1

    def _read(self, loss: Any) -> None:
        if "sync" in self.faults:
            self._losses.append(loss.item())
            self.figures = [number.item() for number in self._figures()]  # each is waited for before the next
            return
        self._losses.append(loss)
        if (self.steps + 1) % WINDOW == 0:
            self.figures = self._torch.stack([*self._figures()]).tolist()
            self._losses = self._losses[:-WINDOW] + self._torch.stack(self._losses[-WINDOW:]).tolist()

    def _figures(self) -> Iterator[Any]:
        norm = self._torch.linalg.vector_norm
        for parameter in self.parameters:
            for some in (parameter.detach(), parameter.grad):
                yield from (norm(some), some.mean(), norm(some, math.inf))


def size_of(scale: Scale) -> dict[str, int]:
    """The decoder's size with the text's vocabulary."""
    return scale.size | {"vocabulary": len(text_of(scale.text).vocabulary) + 1}


# What the loop does, counted


@functools.lru_cache(maxsize=8)
def _counted(items: tuple[tuple[str, int], ...]) -> tuple[int, int]:
    torch = devices.import_torch()
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.utils.flop_counter import FlopCounterMode

    # Fake tensors have shapes and no data. The counter does not know every fused attention; "math" is two products.
    with FakeTensorMode():
        model = Decoder(dict(items), Variant(VARIANT.weights, "math"), torch.device("cpu"))
        with FlopCounterMode(display=False) as counter:
            model.loss(model.run_layers(model.embed())).backward()
        return sum(p.numel() for p in model.parameters), int(counter.get_total_flops())


def counted(size: dict[str, int]) -> tuple[int, int]:
    """Parameters, and FLOP of one training step, counted on the real model.

    torch's counter counts products of matrices, and all attention scores, also those that the mask hides.
    """
    return _counted(tuple(sorted(size.items())))


@dataclass
class Counts:
    """Operators that torch dispatched, below autograd, in order; and bytes of the tensors they were given and made.

    Those that only look at a tensor's memory in another way are left out.
    """

    operators: list[str] = dataclasses.field(default_factory=list)
    bytes: int = 0


@contextlib.contextmanager
def counting() -> Iterator[Counts]:
    """Count what is dispatched inside."""
    torch = devices.import_torch()
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    found = Counts()

    class Listening(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            made = function(*args, **(kwargs or {}))
            if function.namespace == "aten" and not function.is_view:
                found.operators.append(str(function))
                tensors = [t for t in tree_leaves((args, kwargs, made)) if isinstance(t, torch.Tensor)]
                found.bytes += sum(t.nbytes for t in tensors)
            return made

    with Listening():
        yield found


def count_tiny(size: dict[str, int], written_out: bool) -> tuple[int, int]:
    """Operators of a step, and bytes that they read and write, in what the fault "tiny" touches.

    That is layer norms, GELUs, their backward passes, and the optimizer, on a CPU.

    Args:
        size: of the decoder.
        written_out: as the fault has it, or mended.
    """
    torch = devices.import_torch()
    functional, hidden, wide = torch.nn.functional, size["hidden_size"], size["intermediate_size"]
    rows = (size["microbatch"], size["sequence_length"])

    def passes(function: Callable[..., Any], *sizes: tuple[int, ...]) -> Counts:
        inputs = [torch.randn(s, requires_grad=True) for s in sizes]
        with counting() as forward:
            y = function(*inputs)
        upstream = torch.ones_like(y)
        with counting() as backward:
            y.backward(upstream)
        return Counts(forward.operators + backward.operators, forward.bytes + backward.bytes)

    norm, act = (layer_norm, gelu) if written_out else (functional.layer_norm, functional.gelu)
    norms = passes(lambda x, scale, shift: norm(x, (hidden,), scale, shift), (*rows, hidden), (hidden,), (hidden,))
    acts = passes(act, (*rows, wide))
    parameters = Decoder(size, VARIANT, torch.device("cpu")).parameters
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    optimizer = optimizer_of(parameters, written_out)
    optimizer.step()  # the first step also makes the states
    with counting() as steps:
        optimizer.step()
    times = ((2 * size["layers"] + 1, norms), (size["layers"], acts), (1, steps))
    return sum(n * len(c.operators) for n, c in times), sum(n * c.bytes for n, c in times)


# A profile


@dataclass
class Profile:
    """Steps under torch.profiler. Every list has one value for each step.

    Attributes:
        step: s of the step.
        ranges: s by part, without the parts inside of it. What is left of the step is between the parts.
        events: what the profiler wrote down, by part; each cost time that is in the ranges.
        operators: calls of operators by the loop or by autograd, without those that operators call.
        kernels, kernel_time: of a GPU, kernels and copies started by part and the s that they took; else empty.
    """

    step: list[float]
    ranges: dict[str, list[float]]
    events: dict[str, list[float]]
    operators: list[float]
    kernels: dict[str, list[float]]
    kernel_time: dict[str, list[float]]


def profiled(loops: Mapping[str, Loop], steps: int) -> Any:
    """torch's profile of some steps of each loop, one loop after the other; each step is waited for at its end.

    Args:
        loops: by the name of the range around the loop's steps.
        steps: of each; one more before them warms up the profiler.
    """
    torch = devices.import_torch()
    from torch.profiler import ProfilerActivity

    cuda = any(loop.device.type == "cuda" for loop in loops.values())
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if cuda else [])
    schedule = torch.profiler.schedule(wait=0, warmup=1, active=1, repeat=1)

    def run(some: int) -> None:
        for name, loop in loops.items():
            with torch.profiler.record_function(RANGE + name):
                for _ in range(some):
                    with loop.range("step"):
                        loop.step()
                        if cuda:
                            with loop.range("wait"):
                                torch.cuda.synchronize(loop.device)
        found.step()

    try:
        for loop in loops.values():
            loop.ranges = True
            for _ in range(WARM):
                loop.step()
        with torch.profiler.profile(activities=activities, schedule=schedule) as found:
            run(1)
            run(steps)
    finally:
        for loop in loops.values():
            loop.ranges = False
    return found


def profile(loop: Loop, steps: int) -> Profile:
    """Where the time of some steps goes.

    A range covers what the loop does inside of it. Of the backward pass of what "tiny" touches there is none: autograd
    runs it. There an event belongs to "tiny" if it has the sequence number of an operation of the forward pass that
    lies in a range of "tiny". The engine's time before such an event counts with it.
    """
    torch = devices.import_torch()
    found = profiled({"loop": loop}, steps).events()
    events = [e for e in found if e.device_type == torch.autograd.DeviceType.CPU]
    whole = sorted((e for e in events if e.name == RANGE + "step"), key=lambda e: e.time_range.start)
    parts = [*PARTS, *(["wait"] if loop.device.type == "cuda" else [])]
    ranges, counts, kernels, kernel_time = ({p: [0.0] * len(whole) for p in parts} for _ in range(4))
    calls = [0.0] * len(whole)
    part_of = _parts_of(events)
    begins = [e.time_range.start for e in whole]
    done = [e.time_range.start for e in whole]  # until when autograd's engine had worked on other nodes
    for event in sorted(events, key=lambda e: e.time_range.start):
        k = bisect.bisect_right(begins, event.time_range.start) - 1
        if k < 0 or event.time_range.start > whole[k].time_range.end or event is whole[k]:
            continue
        part = part_of[id(event)]
        seconds = event.time_range.elapsed_us() * 1e-6
        if event.name.startswith(RANGE):
            ranges[part][k] += seconds
            above = _range_above(event)
            if above in ranges:
                ranges[above][k] -= seconds
            done[k] = event.time_range.start
        elif event.name.startswith(NODE):
            if part == "tiny":
                seconds = (event.time_range.end - done[k]) * 1e-6
                ranges["tiny"][k] += seconds
                ranges["backward"][k] -= seconds
            done[k] = event.time_range.end
        if part is None:
            continue
        counts[part][k] += 1
        calls[k] += event.name.startswith("aten::") and not (
            event.cpu_parent is not None and event.cpu_parent.name.startswith("aten::")
        )
        if not getattr(event, "is_user_annotation", False):
            kernels[part][k] += len(event.kernels)
            kernel_time[part][k] += sum(kernel.duration for kernel in event.kernels) * 1e-6
    if loop.device.type != "cuda":
        kernels = kernel_time = {}
    step = [e.time_range.elapsed_us() * 1e-6 for e in whole]
    return Profile(step, ranges, counts, calls, kernels, kernel_time)


WHOLE = ("", "step", "loop")  # names of ranges that are no part
NODE = "autograd::engine::evaluate_function: "


def _range_above(event: Any) -> str:
    """The part of the range that an event lies in, "" where there is none."""
    above = event.cpu_parent
    while above is not None and not above.name.startswith(RANGE):
        above = above.cpu_parent
    return "" if above is None else above.name.removeprefix(RANGE)


def _parts_of(events: list[Any]) -> dict[int, str | None]:
    """The part that each event belongs to, by the event's id(); None for what lies between the parts."""
    found: dict[int, str | None] = {}
    by_number: dict[tuple[int, int], str] = {}
    for event in sorted(events, key=lambda e: e.time_range.start):
        name = event.name.removeprefix(RANGE) if event.name.startswith(RANGE) else _range_above(event)
        found[id(event)] = name if name not in WHOLE else None
        if event.sequence_nr >= 0 and name in ("forward", "tiny"):
            # An operation that autograd has nothing to do for carries the number of the next one that it has: the
            # last one counts.
            by_number[event.thread, event.sequence_nr] = name
    for event in events:
        node = event
        while node is not None and not node.name.startswith(NODE):
            node = node.cpu_parent
        if node is not None:
            tiny = by_number.get((node.fwd_thread, node.sequence_nr)) == "tiny"
            found[id(event)] = "tiny" if tiny else "backward"
    return found


def trace(path: str | os.PathLike[str], scale: str | None = None, device: str | None = None, steps: int = 3) -> Path:
    """Write a trace of a few steps of the loop with all faults, and then of the loop without any.

    It is JSON in Chrome's trace event format, compressed, and opens in Perfetto (ui.perfetto.dev) or chrome://tracing.

    Args:
        path: the file, named *.json.gz; never overwritten.
        scale, device: as `runner.run` takes them.
        steps: of each loop.

    Raises:
        EfflabError: another name, a file that exists, a number of steps below 1, or a scale or device that does not
            fit.
        NotSaved: it cannot be written.
    """
    path = Path(path)
    if not path.name.endswith(".json.gz"):
        raise EfflabError(f"trace: {path.name!r} is no name for a compressed trace. Let it end in .json.gz.")
    if path.exists():
        raise EfflabError(f"{path}: the file exists and is not overwritten. Choose another name.")
    if not 1 <= steps <= MOST_TRACED:
        raise EfflabError(f"trace: steps must lie between 1 and {MOST_TRACED}, got {steps!r}.")
    chosen = devices.choose(device)
    scale = scale or runner.default_scale(chosen)
    if scale not in SCALES:
        raise unknown("trace: scale", scale, SCALES)
    with contextlib.ExitStack() as stack:
        stack.enter_context(_quietly(chosen))
        loops = {name: stack.enter_context(Loop(SCALES[scale], chosen, faults)) for name, faults in BOTH.items()}
        found = profiled(loops, steps)
        with tempfile.TemporaryDirectory() as folder:
            exported = Path(folder) / "trace.json"
            found.export_chrome_trace(str(exported))
            data = json.loads(exported.read_text())
    data.pop("traceName", None)  # the path of a file that is gone
    _write(path, gzip.compress(json.dumps(data).encode(), mtime=0))
    return path


def _write(path: Path, data: bytes) -> None:
    """Write a file whole or not at all, never over another one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(data)
        os.link(temporary, path)
    except FileExistsError:
        raise EfflabError(f"{path}: the file exists and is not overwritten. Choose another name.") from None
    except OSError as error:
        raise EfflabError(f"{path}: cannot be written: {error.strerror}. Choose another folder.") from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


# The experiment


@contextlib.contextmanager
def _quietly(device: Any, threads: int = THREADS) -> Iterator[None]:
    """A number of threads on a CPU, and true float32 on a GPU."""
    torch = devices.import_torch()
    before = torch.get_num_threads()
    if device.type == "cpu":
        torch.set_num_threads(threads)
    try:
        with devices.float32_as("fp32"):
            yield
    finally:
        torch.set_num_threads(before)


def in_turns(
    calls: Sequence[Callable[[], Any]], clock: timer.Clock, turns: int, options: Mapping[str, Any]
) -> list[timer.Timed]:
    """Time several calls back to back, each for a while and then again, so that a drift falls on all of them.

    Args:
        calls: one for each thing that is timed.
        clock: the device's.
        turns: of each call.
        options: of `timer.back_to_back`, for one turn.

    Returns:
        For each call the values of all its turns. `loops` is the least of any turn, `warmup` the sum.
    """
    taken: list[list[timer.Timed]] = [[] for _ in calls]
    for _ in range(turns):
        for found, call in zip(taken, calls, strict=True):
            found.append(timer.back_to_back([call], clock, **options))
    return [_together(found) for found in taken]


def _together(found: list[timer.Timed]) -> timer.Timed:
    values = [value for timed in found for value in timed.values]
    timings = [timed.timing for timed in found]
    timing = timings[0].model_copy(
        update={
            "loops": min(t.loops for t in timings),
            "warmup": sum(t.warmup for t in timings),
            "stop": next((t.stop for t in timings if t.stop != "stable"), "stable"),
        }
    )
    warnings = [w for timed in found for w in timed.warnings if w.startswith("short")][:1]
    spread = iqr(values) / median(values)
    if spread > timer.WIDE:
        warnings.append(
            f"wide: the middle half of {len(values)} values spans {spread:.0%} of the median; something else ran, or "
            "the clock speed changed"
        )
    return timer.Timed(values, timing, warnings)


@dataclass
class Session:
    """What the cases of one run share."""

    scale: Scale
    device: Any
    warnings: list[str]

    def __post_init__(self) -> None:
        self.clock = timer.clock_for(self.device)

    @functools.cached_property
    def size(self) -> dict[str, int]:
        """The decoder's size."""
        return size_of(self.scale)

    def point(self, case: str, role: str, faults: Iterable[str], **more: Any) -> dict[str, Any]:
        """The point of a case that runs the loop."""
        size, (parameters, flops) = self.size, counted(self.size)
        return {
            "case": case, "role": role, "faults": ",".join(sorted(faults)), "batch": size["microbatch"],
            "context": size["sequence_length"], "tokens": size["microbatch"] * size["sequence_length"],
            "layers": size["layers"], "hidden_size": size["hidden_size"], "vocabulary": size["vocabulary"],
            "parameters": parameters, "flops": flops, "seed": SEED, "workers": 0, "pinned": False,
            "threads": THREADS if self.device.type == "cpu" else 0, **more,
        }  # fmt: skip

    def loop(self, point: dict[str, Any], **options: Any) -> Loop:
        """The loop of a point."""
        faults = [name for name in str(point["faults"]).split(",") if name]
        return Loop(
            self.scale, self.device, faults, int(point["seed"]), int(point["workers"]), bool(point["pinned"]), **options
        )

    def sample(self, point: dict[str, Any], metric: str, timed: timer.Timed) -> Sample:
        """A sample of what was timed; its warnings go into the record."""
        self.warnings.extend(f"{point['case']}: {w}" for w in timed.warnings)
        return Sample(point=point, metric=metric, unit="s", values=timed.values, status="ok", timing=timed.timing)

    def take_turns(self, *calls: Callable[[], Any]) -> list[timer.Timed]:
        """`in_turns` as the scale says."""
        return in_turns(calls, self.clock, self.scale.turns, self.scale.timer)

    # What the cases do

    def step(self, point: dict[str, Any], **options: Any) -> Iterator[Sample]:
        """The time of a step."""
        if point["pinned"] and self.device.type != "cuda":
            raise Unavailable("page-locked memory speeds up copies to a GPU, and this device is a CPU")
        with _quietly(self.device), self.loop(point, **options) as loop:
            yield self.sample(point, "time", self.take_turns(loop.step)[0])

    def against_all_faults(self, point: dict[str, Any]) -> Iterator[Sample]:
        """The time of a step, in turns with that of a step with all faults."""
        with (
            _quietly(self.device),
            Loop(self.scale, self.device, ALL) as faulty,
            self.loop(point) as loop,
        ):
            baseline, mended = self.take_turns(faulty.step, loop.step)
        yield self.sample(point, "time", mended)
        if mended.warnings:
            baseline = dataclasses.replace(baseline, warnings=[])  # one doubt for a case is enough
        yield self.sample(point, "baseline", baseline)

    def batch(self, point: dict[str, Any]) -> Iterator[Sample]:
        """The time to make one batch."""
        items = data_set(self.scale.text, self.size["sequence_length"], True)
        batches = Batches(items, self.size["microbatch"])
        with _quietly(self.device):
            clock = timer.CPUClock()
            (timed,) = in_turns([lambda: next(batches)], clock, self.scale.turns, self.scale.timer)
        yield self.sample(point, "time", timed)

    def peak(self, point: dict[str, Any]) -> Iterator[Sample]:
        """The time of a large product."""
        torch = devices.import_torch()
        n = self.scale.peak
        generator = torch.Generator(device=self.device).manual_seed(SEED)
        a, b = (torch.randn(n, n, device=self.device, generator=generator) for _ in range(2))
        out = torch.empty_like(a)
        with _quietly(self.device):
            (timed,) = self.take_turns(lambda: torch.mm(a, b, out=out))
        yield self.sample(point, "time", timed)

    def profile(self, point: dict[str, Any]) -> Iterator[Sample]:
        """Where the time of a step goes."""
        with _quietly(self.device), self.loop(point) as loop:
            before = self.take_turns(loop.step)
            found = profile(loop, self.scale.profiled)
            plainly = _together([*before, *self.take_turns(loop.step)])
        waits = "+synchronize" if self.device.type == "cuda" else ""
        timing = Timing(clock="torch.profiler" + waits, mode="waited", loops=1, warmup=WARM + 1, stop="repeat limit")

        def sample(metric: str, unit: str, values: list[float]) -> Sample:
            clocked = timing if unit == "s" else None
            return Sample(point=point, metric=metric, unit=unit, values=values, status="ok", timing=clocked)

        yield sample("time", "s", found.step)
        yield self.sample(point, "baseline", plainly)
        for part, values in found.ranges.items():
            # A nested range may end a rounding after the one around it.
            yield sample(f"range_{part}", "s", [max(0.0, v) for v in values])
        for part, values in found.events.items():
            yield sample(f"events_{part}", "", values)
        yield sample("operators", "", found.operators)
        if found.kernels:
            yield sample("kernels", "", [sum(step) for step in zip(*found.kernels.values(), strict=True)])
            yield sample("kernel_time", "s", [sum(step) for step in zip(*found.kernel_time.values(), strict=True)])
            for part, values in found.kernel_time.items():
                yield sample(f"kernel_{part}", "s", values)
        for ending, written_out in (("", True), ("_mended", False)):
            number, bytes_ = count_tiny(self.size, written_out)
            yield sample(f"operators_tiny{ending}", "", [float(number)])
            yield sample(f"bytes_tiny{ending}", "B", [float(bytes_)])

    def curve(self, point: dict[str, Any]) -> Iterator[Sample]:
        """The loss of every step of a short training."""
        torch = devices.import_torch()
        before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
        if point["deterministic"]:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS asks for it
        try:
            torch.use_deterministic_algorithms(bool(point["deterministic"]), warn_only=True)
            with _quietly(self.device, int(point["threads"]) or THREADS), self.loop(point) as loop:
                for _ in range(self.scale.curve):
                    loop.step()
                losses = loop.losses
        finally:
            torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        if not all(map(math.isfinite, losses)):
            raise EfflabError("the loss is not finite: training diverged")
        yield Sample(point=point, metric="loss", unit="nats", values=losses, status="ok")

    def monitor(self, point: dict[str, Any]) -> Iterator[Sample]:
        """The device's counters while the loop runs."""
        options = {"time_limit": self.scale.window, "most": 10**6, "stable": 1e-9}
        with _quietly(self.device), self.loop(point) as loop:
            for _ in range(WARM):
                loop.step()
            with Monitor(self.device, self.scale.interval) as monitor:
                timed = timer.back_to_back([loop.step], self.clock, **self.scale.timer | options)
        yield self.sample(point, "time", timed)
        yield Sample(point=point, metric="elapsed", unit="s", values=monitor.elapsed, status="ok")
        for name, unit in NAMES.items():
            if name in monitor.missing:
                yield Sample(
                    point=point, metric=name, unit=unit, values=[], status="failed",
                    message=runner.plain(monitor.missing[name]),
                )  # fmt: skip
            else:
                read = point | {"source": monitor.sources[name]}
                yield Sample(point=read, metric=name, unit=unit, values=monitor.series[name], status="ok")


class Profiling:
    """The experiment: see the module's text."""

    topic = "profiling"
    scales = ("smoke", "cpu", "gpu")

    def plan(self, scale: str, device: Any, environment: Environment, resumed: Record | None) -> Plan:
        """The cases of a scale on a device, in the order they are measured. Builds no tensor on the device."""
        of, warnings = SCALES[scale], list[str]()
        session = Session(of, device, warnings)
        text = text_of(of.text)
        on_gpu = device.type == "cuda"
        cases = []

        def add(
            case: str, role: str, faults: Iterable[str], does: Any, result: Any = ("time", "s"), **more: Any
        ) -> None:
            point = session.point(case, role, faults, **more)
            cases.append(Case(point, lambda: does(point), *result))

        add("all-faults", "calibration", ALL, session.step)
        add("profile", "calibration", ALL, session.profile)
        square = {"m": of.peak, "n": of.peak, "k": of.peak, "dtype": "fp32"}
        point = {"case": "peak", "role": "calibration", "threads": THREADS if not on_gpu else 0, **square}
        cases.append(Case(point, lambda: session.peak(point)))
        add("batch-load", "calibration", {"loader"}, session.batch)
        add("compute", "calibration", {"loader"}, functools.partial(session.step, ready=READY), ready=READY)
        for name in FAULTS:
            add(f"without-{name}", "ablation", ALL - {name}, session.against_all_faults, mended=name)
        for count in range(2, len(FAULTS) + 1):
            mended = FAULTS[:count]
            add(f"mended-{count}", "ladder", ALL - {*mended}, session.against_all_faults, mended=",".join(mended))
        add("profile-clean", "evidence", NONE, session.profile)
        for workers in of.workers:
            if workers <= max(2, environment.cores or 1):
                add(f"workers-{workers}", "loader", {"loader"}, session.step, workers=workers)
        add("workers-2-pinned", "loader", {"loader"}, session.step, workers=2, pinned=True)
        loss = {"result": ("loss", "nats"), "deterministic": False, "steps": of.curve}
        for case, faults, more in (
            ("seed-0", ALL, {}),
            ("seed-0-again", ALL, {}),
            ("seed-1", ALL, {"seed": 1}),
            ("seed-0-clean", NONE, {}),
            # Torch's layer norm adds up in an order that depends on the threads.
            ("seed-0-deterministic", NONE, {"deterministic": True})
            if on_gpu
            else ("seed-0-threads", NONE, {"threads": 2}),
        ):
            add(case, "seed", faults, session.curve, **loss | more)
        for name, faults in BOTH.items():
            add(f"monitor-{name}", "monitor", faults, session.monitor, interval=of.interval)
        spec: dict[str, Any] = {
            "scale": scale, "seed": SEED, "faults": list(FAULTS), "timer": of.timer, "turns": of.turns,
            "text": text.name, "text_of_python": platform.python_version(), "sha256": text.sha256,
            "characters": len(text.characters), "decoder": session.size, "variant": VARIANT.name, "precision": "fp32",
            "optimizer": f"AdamW, learning rate {RATE:g}, betas {BETAS[0]} and {BETAS[1]}, epsilon {EPSILON:g}, "
            f"weight decay {DECAY:g}",
            "window": WINDOW, "profiled_steps": of.profiled, "monitored": of.window, "interval": of.interval,
            "threads": THREADS if not on_gpu else None, "workers": "spawned", "cases": [c.name for c in cases],
        }  # fmt: skip
        return Plan(spec, cases, warnings)


EXPERIMENT = Profiling()
