"""A training loop with five planted faults, each behind one flag. None changes what is learned.

A small GPT (`decoder`) is trained with AdamW on the characters of a text that ships with Python.

- "loader": every item of the data set is turned from characters into tokens in plain Python each time it is asked
  for, by looking each character up in a list, in the training process. Mended, the text was turned into tokens once.
- "copies": every step carries its batch to the device as one-hot rows of float64, 8 bytes times the vocabulary for each
  token, and back from there to tokens; and it carries the logits to the host, as float64, for an accuracy in numpy.
  Mended, the batch goes as it is and the accuracy is computed on the device.
- "sync": every step reads the loss with `.item()`, and norm, mean and largest magnitude of every parameter and of its
  gradient, one by one. Mended, the loss stays on the device, and all are read at the end of a window of steps.
- "tiny": layer norm, GELU and AdamW are written out in element-wise operations. Mended, they are torch's own.
- "python": tokens and pairs of tokens are counted one after the other in dictionaries. Mended, `torch.bincount` does
  it.

Workers of the loader are started with "spawn": each is a new Python. A forked one would be a copy of this process with
one of its threads only, in which a lock that another thread held (of torch's pool, of a notebook's sockets) stays
locked for ever, and it could not use CUDA. A worker needs nothing of the program's main file, which is not run again in
it: a notebook has none, and a script may lack the guard that this would need.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import math
import sys
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from efflab.errors import unknown
from efflab.experiments.decoder import Decoder, Variant
from efflab.experiments.text import TEXTS, paragraphs, tokens_of
from efflab.measure import device as devices

FAULTS = ("loader", "copies", "sync", "tiny", "python")
ALL, NONE = frozenset(FAULTS), frozenset[str]()
RANGE = "efflab:"  # begins the names of the parts in a profile
SEED = 0
VARIANT = Variant("fp32", "sdpa")
RATE, BETAS, EPSILON, DECAY = 1e-3, (0.9, 0.95), 1e-8, 0.01  # of AdamW
WINDOW = 50  # steps after which the mended loop reads what it kept on the device
HANGS = 120.0  # s without a batch after which a worker counts as hung

Size = Mapping[str, int]  # of a `Decoder`; its vocabulary is the text's


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
    """A data set with the loader's fault: an item is cut from the text and turned into tokens each time.

    An item has one token more than the context: every token but the last is an input, every one but the first a target.
    One tensor holds both, since each tensor of a batch costs a connection to the worker that made it.
    """

    def __init__(self, text: Text, context: int) -> None:
        self.characters, self.vocabulary, self.context = text.characters, list(text.vocabulary), context

    def __len__(self) -> int:
        return (len(self.characters) - 1) // self.context

    def __getitem__(self, index: int) -> Any:
        begin = index * self.context
        tokens = []
        for character in self.characters[begin : begin + self.context + 1]:
            tokens.append(self.vocabulary.index(character) + 1 if character in self.vocabulary else 0)
        return devices.import_torch().tensor(tokens)


class Tokens:
    """The same data set, mended: the text was turned into tokens once."""

    def __init__(self, text: Text, context: int) -> None:
        token = {character: i for i, character in enumerate(text.vocabulary, 1)}
        self.tokens = devices.import_torch().tensor([token.get(c, 0) for c in text.characters])
        self.context = context

    def __len__(self) -> int:
        return (len(self.tokens) - 1) // self.context

    def __getitem__(self, index: int) -> Any:
        begin = index * self.context
        return self.tokens[begin : begin + self.context + 1]


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
    """Batches of a data set from torch's DataLoader, without end: tokens, [batch, context + 1], on the host.

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

    def __next__(self) -> Any:
        return next(self._iterator)

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
        text: of `efflab.experiments.text`.
        size: of the decoder.
        device: a torch device.
        faults: those of `FAULTS` that it has.
        seed: of the weights and of the order of the data.
        workers, pinned: of the loader.
        ready: so many batches are made in advance and used again and again; 0 asks the loader at each step.

    Attributes:
        losses: of every step so far; reading it waits for the device.
        figures: norm, mean and largest magnitude of each parameter and of its gradient, when they were last read.
        correct: share of the last step's tokens that were predicted.
        pairs: how often one token followed another in the batches so far.
        ranges: mark the parts for a profiler.

    Raises:
        EfflabError: an unknown fault.
    """

    def __init__(
        self,
        text: str,
        size: Size,
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
        self.size = with_vocabulary(text, size)
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
        items = data_set(text, self.size["sequence_length"], "loader" in self.faults)
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
        return [float(loss) for loss in self._losses]

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
            items = next(self.batches)
        with self.range("python"):
            self._count(*inputs_and_targets(items))
        with self.range("copies"):
            self.model.tokens, self.model.targets = self._to_device(items)
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

    def _to_device(self, items: Any) -> list[Any]:
        if "copies" not in self.faults:
            if self.device.type == "cuda":
                # From ordinary memory the copy would first wait for the kernels before it.
                items = items if items.is_pinned() else items.pin_memory()
            return inputs_and_targets(items.to(self.device, non_blocking=True))
        one_hot, vocabulary = self._torch.nn.functional.one_hot, self.size["vocabulary"]
        rows = (one_hot(tokens, vocabulary).to(self._torch.float64) for tokens in inputs_and_targets(items))
        return [some.to(self.device, copy=True).argmax(-1) for some in rows]

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
                # One after the other: a reader that waits for each finds the next not yet started.
                yield norm(some)
                yield some.mean()
                yield norm(some, math.inf)


def inputs_and_targets(items: Any) -> list[Any]:
    """The tokens of a batch but the last of each sequence, and but the first; [batch, context] each."""
    return [items[:, :-1], items[:, 1:]]


def with_vocabulary(text: str, size: Size) -> dict[str, int]:
    """A decoder's size with the vocabulary of a text."""
    return {**size, "vocabulary": len(text_of(text).vocabulary) + 1}


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

    operators: list[str] = field(default_factory=list)
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
