"""The throughput sprint: a slow training script, three mends, and what each of them gains.

The script below trains a small GPT on the characters of Python's help. What it learns is right, and it is slow for
three reasons, one in each of three functions: `batches` (data), `layer` (compute) and `gradients` (memory). A mend is a
function with the same parameters that does the same in less time. `measure` checks that it does the same, times the
script as it is, with each mend alone and with all of them, and keeps a record in the lab book.

The record's topic is "sprint", so that nothing takes it for the record of a lab. It holds, for each of the cases
"baseline", "data", "compute", "memory" and "all":

- "time": s per step, one value for each run of the script from start to end. The cases take turns: the i-th values of
  all cases belong to one round, so that a ratio of two of them compares runs that followed each other closely.
- "begun": when each of those runs began, s after the first one.
- "loss": of each step of the untimed first run.
- "gradient_error": relative difference of the first gradient from the baseline's, for weights drawn at random.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import inspect
import itertools
import math
import random
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from efflab.errors import EfflabError, unknown
from efflab.experiments import text as texts
from efflab.experiments.ablation import CASES, TOPIC, interval, table
from efflab.experiments.runner import plain
from efflab.measure import device as devices
from efflab.measure import timer
from efflab.records import LabBook, Record, Sample, Timing, identifier, now, slug
from efflab.units import SECOND, show

devices.import_torch()  # which keeps torch's profiler from printing notes of its own

# The slow script, as the exercise notebook shows it. Do not mend it here.


def batches(text, batch, context, steps, seed):
    """For each step the tokens and the targets, [batch, context]: windows of the text at random places."""
    draw = random.Random(seed)
    for _ in range(steps):
        rows = []
        for _ in range(batch):
            number = {c: i for i, c in enumerate(sorted(set(text)))}
            tokens = [number[c] for c in text]
            start = draw.randrange(len(text) - context)
            rows.append(tokens[start : start + context + 1])
        window = torch.tensor(rows)
        yield window[:, :-1], window[:, 1:]


def layer(x, w, heads):
    """A layer of the GPT. x: [batch, context, hidden]; w: its weights by name."""

    def norm(x, scale, shift):
        mean = x.mean(-1, keepdim=True)
        variance = ((x - mean) ** 2).mean(-1, keepdim=True)
        return (x - mean) / torch.sqrt(variance + 1e-5) * scale + shift

    length, size = x.shape[1], x.shape[2] // heads
    future = torch.ones(length, length, dtype=torch.bool, device=x.device).triu(1)
    q, k, v = (norm(x, w["scale1"], w["shift1"]) @ w["qkv"]).chunk(3, dim=-1)
    mixed = []
    for head in range(heads):
        part = slice(head * size, (head + 1) * size)
        scores = q[..., part] @ k[..., part].transpose(1, 2) / math.sqrt(size)
        scores = torch.exp(scores.masked_fill(future, -math.inf))
        mixed.append(scores / scores.sum(-1, keepdim=True) @ v[..., part])
    x = x + torch.cat(mixed, -1) @ w["out"]
    inner = norm(x, w["scale2"], w["shift2"]) @ w["up"]
    inner = inner * 0.5 * (1 + torch.erf(inner / math.sqrt(2)))
    return x + inner @ w["down"]


def gradients(loss_of, tokens, targets):
    """Leave the gradients of the mean loss in the parameters' .grad and return that loss as a number."""
    total = 0.0
    for i in range(len(tokens)):
        row = slice(i, i + 1)
        loss = checkpoint(loss_of, tokens[row], targets[row], use_reentrant=False) / len(tokens)
        loss.backward()
        total += loss.item()
    return total


def model(size, vocabulary, device, layer):
    """The parameters of the GPT, and a function from tokens and targets to the mean loss."""
    generator = torch.Generator().manual_seed(0)

    def weight(*shape):
        return (0.02 * torch.randn(*shape, generator=generator)).to(device).requires_grad_()

    def norm():
        ones, zeros = torch.ones(h, device=device), torch.zeros(h, device=device)
        return ones.requires_grad_(), zeros.requires_grad_()

    h = size["hidden"]
    embedding, positions, layers = weight(vocabulary, h), weight(size["context"], h), []
    for _ in range(size["layers"]):
        (scale1, shift1), (scale2, shift2) = norm(), norm()
        layers.append({
            "scale1": scale1, "shift1": shift1, "qkv": weight(h, 3 * h), "out": weight(h, h),
            "scale2": scale2, "shift2": shift2, "up": weight(h, 4 * h), "down": weight(4 * h, h),
        })  # fmt: skip

    def loss_of(tokens, targets):
        x = F.embedding(tokens, embedding) + positions
        for w in layers:
            x = layer(x, w, size["heads"])
        return F.cross_entropy((x @ embedding.t()).flatten(0, 1), targets.flatten())

    return [embedding, positions, *(p for w in layers for p in w.values())], loss_of


def train(text, size, device, batches, layer, gradients):
    """Train from the beginning; the loss of each step."""
    parameters, loss_of = model(size, len(set(text)), device, layer)
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, fused=True)
    losses = []
    for tokens, targets in batches(text, size["batch"], size["context"], size["steps"], seed=1):
        optimizer.zero_grad()
        losses.append(gradients(loss_of, tokens.to(device), targets.to(device)))
        optimizer.step()
    return losses


# The measurement

FUNCTIONS: tuple[Callable[..., Any], ...] = (batches, layer, gradients, model, train)
MENDS: dict[str, Callable[..., Any]] = {"data": batches, "compute": layer, "memory": gradients}
THREADS = 1  # on a CPU: more wait for each other on matrices this small, above all where others use the machine
# Of the loss of each step, and of a whole gradient: BF16 under autocast stays below a quarter of both.
LOSS_TOLERANCE, GRADIENT_TOLERANCE = 0.005, 0.05
ROUNDING = 5e-4  # of a whole gradient that was computed in FP32 alone; GELU by tanh stays below it
ROTATED = 7919  # characters by which each round's text begins later, so that nothing learned of the last one helps
WIDE = 0.15  # where an interval is wider than ± this share of its speedup, `most_rounds` are measured
LONGEST = 60.0  # s, after which no round is added to `rounds`

SIZES: dict[str, dict[str, int]] = {
    "smoke": {
        "characters": 2000, "hidden": 16, "heads": 2, "layers": 1, "context": 16, "batch": 4, "steps": 2, "rounds": 2,
        "most_rounds": 2,
    },
    "cpu": {
        "characters": 120_000, "hidden": 64, "heads": 8, "layers": 1, "context": 64, "batch": 8, "steps": 4,
        "rounds": 9, "most_rounds": 15,
    },
}  # fmt: skip
SIZES["gpu"] = SIZES["cpu"]

_TYPICAL = {
    "compute": "Is the attention causal, do both norms have their scale and shift, is the GELU the one with erf, and "
    "are both sums with x there?",
    "memory": "Is the loss the mean over all sequences of the batch, and does backward() run on all of it?",
}


def source() -> str:
    """The slow script, as it stands above."""
    return "\n\n\n".join(inspect.getsource(f).rstrip() for f in FUNCTIONS)


def text(scale: str = "cpu") -> str:
    """What the script trains on: the beginning of Python's help."""
    return "\n\n".join(texts.paragraphs(texts.topics()))[: SIZES[scale]["characters"]]


def fingerprint() -> str:
    """SHA-256 of the slow script: a record of another script is not comparable."""
    return hashlib.sha256(source().encode()).hexdigest()


def measure(
    mends: Mapping[str, Callable[..., Any]],
    *,
    scale: str | None = None,
    device: str | None = None,
    labbook: LabBook | None = None,
    report: Callable[[str], None] = print,
) -> Record:
    """Check the mends, time the script without and with them, and keep the record.

    Args:
        mends: by name, "data", "compute" and "memory": functions with the parameters of `batches`, `layer` and
            `gradients`. Some may be missing, or raise NotImplementedError; then there is no case "all".
        scale: "smoke", "cpu" or "gpu"; None takes the device's own.
        device: as `efflab.measure.device.choose` takes it.
        labbook: where the record goes; None means the learner's own.
        report: receives lines about the progress.

    Returns:
        The record, which is in the lab book already.

    Raises:
        NotImplementedError: no mend is written yet.
        EfflabError: an unknown name, no function, other parameters, or a mend that does something else than the
            script; says what. Nothing is timed then.
        NotSaved: the record could not be written; says where it is kept.
    """
    if not isinstance(mends, Mapping):
        raise EfflabError(f"mends: a dictionary from {', '.join(MENDS)} to functions is expected, got {mends!r:.60}.")
    for name in mends:
        if name not in MENDS:
            raise unknown("mends", name, MENDS)
    chosen = devices.choose(device)
    scale = scale or ("gpu" if chosen.type == "cuda" else "cpu")
    if scale not in SIZES:
        raise unknown("scale", scale, SIZES)
    size = SIZES[scale]
    help_text = text(scale)
    with devices.threads(THREADS if chosen.type == "cpu" else None):
        written = {n: f for n, f in mends.items() if _written(n, f, help_text, size, chosen)}
        for name in MENDS:
            if name not in written:
                report(f"{name}: not written yet")
        if not written:
            raise NotImplementedError("No mend is written yet. Write one of them, then measure again.")
        record = _measured(written, scale, help_text, size, chosen, report)
    LabBook().save_record(record) if labbook is None else labbook.save_record(record)
    report(table(record))
    return record


def _written(name: str, mend: Any, text: str, size: dict[str, int], device: Any) -> bool:
    """Whether a mend is written; then it does what the script does.

    Raises:
        EfflabError: it does not; says what.
    """
    if not callable(mend):
        raise EfflabError(f"mend {name!r}: pass the function itself, without calling it; got {mend!r:.60}.")
    wanted = [*inspect.signature(MENDS[name]).parameters]
    try:
        inspect.signature(mend).bind(**dict.fromkeys(wanted))
    except TypeError:
        raise EfflabError(
            f"mend {name!r}: it must take the parameters ({', '.join(wanted)}) as {MENDS[name].__name__} does."
        ) from None
    except ValueError:
        pass  # a function without a signature
    try:
        if name == "data":
            _same_batches(mend, text, size)
        else:
            with _narrow() as seen:
                loss, difference = _first_gradient({name: mend}, text, size, device)
            right = _first_gradient({}, text, size, device)[0]
            _same_gradient(name, loss, right, difference, GRADIENT_TOLERANCE if seen else ROUNDING)
    except NotImplementedError:
        return False
    except EfflabError:
        raise
    except Exception as error:
        frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename != __file__ and f.line]
        own = [f for f in frames if "site-packages" not in f.filename]
        place = f", in line {(own or frames)[-1].lineno}: {(own or frames)[-1].line}" if frames else ""
        raise EfflabError(f"mend {name!r} raised {type(error).__name__}: {plain(str(error))}{place}") from error
    return True


def _same_batches(mend: Callable[..., Any], text: str, size: dict[str, int]) -> None:
    arguments = (text, size["batch"], size["context"], size["steps"])
    other = (text[ROTATED % len(text) :] + text[: ROTATED % len(text)], *arguments[1:])
    for asked_for, seed in ((arguments, 1), (arguments, 2), (other, 1)):
        right = list(batches(*asked_for, seed=seed))
        given = mend(*asked_for, seed=seed)
        if given is None:
            raise EfflabError("mend 'data' gives nothing. Is a `yield` missing?")
        found = list(itertools.islice(given, len(right) + 1))
        if len(found) != len(right):
            some = "more" if len(found) > len(right) else f"{len(found)}"
            raise EfflabError(f"mend 'data' gives {some} batches in {len(right)} steps. One for each step is expected.")
        for step, (pair, wanted) in enumerate(zip(found, right, strict=True)):
            if not (isinstance(pair, tuple | list) and len(pair) == 2):
                raise EfflabError("mend 'data': each batch is a pair, tokens and targets, as those of `batches`.")
            for what, got, asked in zip(("tokens", "targets"), pair, wanted, strict=True):
                if not isinstance(got, torch.Tensor):
                    raise EfflabError(f"mend 'data': its {what} are no tensor but {type(got).__name__}.")
                if got.shape != asked.shape or got.dtype != asked.dtype:
                    raise EfflabError(
                        f"mend 'data': its {what} are {tuple(got.shape)} of {got.dtype}, the script's "
                        f"{tuple(asked.shape)} of {asked.dtype}."
                    )
                if not torch.equal(got.cpu(), asked):
                    row, column = (int(i) for i in (got.cpu() != asked).nonzero()[0])
                    raise EfflabError(
                        f"mend 'data' gives other {what} than the script: in step {step}, row {row}, column {column} "
                        f"it has {int(got[row, column])}, the script {int(asked[row, column])}. Draw the places in "
                        "the same order, with random.Random(seed), and number the characters as the script does."
                    )


def _first_gradient(
    mends: Mapping[str, Callable[..., Any]], text: str, size: dict[str, int], device: Any
) -> tuple[Any, float]:
    """The loss that `gradients` returns for the first batch, and how far its gradient is from the script's.

    For weights drawn at random: those that training begins with hide what is wrong with a part that does little yet.
    """

    def run(layer: Callable[..., Any], gradients: Callable[..., Any]) -> tuple[Any, list[Any]]:
        parameters, loss_of = model(size, len(set(text)), device, layer)
        generator = torch.Generator().manual_seed(2)
        with torch.no_grad():
            for p in parameters:
                p += 0.1 * torch.randn(p.shape, generator=generator).to(device)
        loss = gradients(loss_of, tokens, targets)
        return loss, [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]

    tokens, targets = (t.to(device) for t in next(batches(text, size["batch"], size["context"], 1, seed=3)))
    right = run(layer, gradients)[1]
    loss, found = run(mends.get("compute", layer), mends.get("memory", gradients))
    off = sum(float((a.double() - b.double()).square().sum()) for a, b in zip(found, right, strict=True))
    whole = sum(float(b.double().square().sum()) for b in right)
    difference = math.sqrt(off / whole) if math.isfinite(off) else math.inf
    return loss, difference


@contextlib.contextmanager
def _narrow() -> Iterator[set[Any]]:
    """The 16-bit dtypes that operators give inside."""
    seen: set[Any] = set()

    class Watching(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            found = function(*args, **(kwargs or {}))
            given = found if isinstance(found, tuple | list) else (found,)
            seen.update(t.dtype for t in given if getattr(t, "dtype", None) in (torch.bfloat16, torch.float16))
            return found

    with Watching():
        yield seen


def _same_gradient(name: str, loss: Any, right: float, difference: float, allowed: float) -> None:
    if difference > allowed:
        why = "for narrower dtypes" if allowed == GRADIENT_TOLERANCE else "for rounding in FP32"
        raise EfflabError(
            f"mend {name!r} gives another gradient than the script: the relative difference is {difference:.2g}, and "
            f"{allowed:g} is allowed {why}. {_TYPICAL[name]}"
        )
    if isinstance(loss, torch.Tensor):
        raise EfflabError(f"mend {name!r}: `gradients` returns a tensor; a number is expected: return loss.item().")
    try:
        value = float(loss)
    except Exception:  # the object is the learner's and may raise anything
        raise EfflabError(f"mend {name!r}: `gradients` returns {loss!r:.60}; the mean loss is expected.") from None
    if not abs(value / right - 1) <= LOSS_TOLERANCE:
        raise EfflabError(f"mend {name!r}: the loss is {value:.6g}; the script's is {right:.6g}.")


def _measured(
    mends: Mapping[str, Callable[..., Any]],
    scale: str,
    text: str,
    size: dict[str, int],
    device: Any,
    report: Callable[[str], None],
) -> Record:
    cases = {name: parts for name, parts in CASES.items() if all(p in mends for p in parts)}
    clock = timer.clock_for(device)

    def run(case: str, turn: int = 0) -> tuple[float, float, list[float]]:
        """When it began, s per step, and the losses."""
        turned = text[turn * ROTATED % len(text) :] + text[: turn * ROTATED % len(text)]
        parts = {MENDS[n].__name__: mends[n] if n in cases[case] else MENDS[n] for n in MENDS}
        threads = THREADS if device.type == "cpu" else None
        # What a mend switches on stays within its own run: the script's time is always the same script's.
        with devices.threads(threads), devices.float32_as("fp32"), torch.set_grad_enabled(True):
            clock.synchronize()
            begin = clock.now()
            losses = train(turned, size, device, **parts)
            clock.synchronize()
        return begin, (clock.now() - begin) / size["steps"], [float(loss) for loss in losses]

    environment = devices.environment(device)
    record = Record(
        id=identifier(TOPIC, slug(environment.device)[:60], scale),
        topic=TOPIC,
        created=now(),
        environment=environment,
        spec={
            "scale": scale, "script": fingerprint(), "size": dict(size), "mends": sorted(mends),
            "text": "pydoc_data.topics", "text_sha256": hashlib.sha256(text.encode()).hexdigest(),
        },
        samples=[],
    )  # fmt: skip
    first = {case: run(case) for case in cases}  # which warms up as well
    losses = {case: found[2] for case, found in first.items()}
    expected = size["rounds"] * size["steps"] * sum(seconds for _, seconds, _ in first.values())
    report(
        f"{len(cases)} cases in {size['rounds']} rounds, or {size['most_rounds']} where they scatter: "
        f"{show(expected, SECOND, 2)} or more …"
    )
    rounds: dict[str, list[tuple[float, float]]] = {case: [] for case in cases}
    order, started = [*cases], clock.now()
    enabled = gc.isenabled()
    gc.disable()  # a collection inside a run would be charged to it
    gc.collect()
    gc.freeze()  # so that the collections between rounds look at little
    try:
        for turn in range(size["most_rounds"]):
            # Looked at once: an interval that is looked at until it is narrow is no longer one of 95%.
            if turn == size["rounds"] and not _wide(rounds):
                break
            if turn >= size["rounds"] and clock.now() - started > LONGEST:
                break
            gc.collect()
            found = {}
            for case in order[turn % len(order) :] + order[: turn % len(order)]:  # nobody is always the first
                begin, seconds, found[case] = run(case, turn + 1)
                rounds[case].append((begin, seconds))
            for case, again in found.items():
                if not _same_losses(again, found["baseline"]):
                    raise EfflabError(
                        f"{case}: a later run has other losses than the script, {again[-1]:.6g} and "
                        f"{found['baseline'][-1]:.6g} after {size['steps']} steps. A mend leaves something behind from "
                        "run to run."
                    )
    finally:
        gc.unfreeze()
        if enabled:
            gc.enable()
    start = min(begin for values in rounds.values() for begin, _ in values)
    name = "perf_counter" if device.type == "cpu" else "perf_counter+synchronize"
    count = len(rounds["baseline"])
    stop = "stable" if not _wide(rounds) else "repeat limit" if count == size["most_rounds"] else "time limit"
    timing = Timing(clock=name, mode="waited", loops=size["steps"], warmup=size["steps"], stop=stop)
    samples = []
    for case, parts in cases.items():
        point = {"case": case, "role": "ablation", "mends": ",".join(parts)} | size
        named = {p: mends[p] for p in parts}
        samples += [
            Sample(point=point, metric="time", unit="s", values=[s for _, s in rounds[case]], status="ok",
                   timing=timing),
            Sample(point=point, metric="begun", unit="s", values=[b - start for b, _ in rounds[case]], status="ok"),
            Sample(point=point, metric="loss", unit="nats", values=losses[case], status="ok"),
            Sample(point=point, metric="gradient_error", unit="", status="ok",
                   values=[_first_gradient(named, text, size, device)[1]]),
        ]  # fmt: skip
    record.samples = samples
    record.finished = now()
    return record


def _wide(rounds: Mapping[str, list[tuple[float, float]]]) -> bool:
    """Whether the interval of some case's speedup is still wide."""
    base = [seconds for _, seconds in rounds["baseline"]]
    intervals = (interval(base, [seconds for _, seconds in found]) for found in rounds.values())
    return any(high - low > 2 * WIDE * middle for low, middle, high in intervals)


def _same_losses(a: list[float], b: list[float]) -> bool:
    return len(a) == len(b) and all(abs(x - y) <= LOSS_TOLERANCE * abs(y) for x, y in zip(a, b, strict=True))
