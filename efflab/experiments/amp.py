"""What the lab of mixed precision measures: time, memory, gradients and training in FP32, TF32, BF16 and FP16.

A small GPT (`efflab.experiments.decoder`, plain attention, so that a profile tells its products from the rest) is
trained with AdamW and clipped gradients. BF16 and FP16 are torch.amp.autocast's: weights, their gradients and the
optimizer stay in FP32. FP16 adds torch.amp.GradScaler. The point's "role" says what a case is:

- "calibration": the step in FP32, profiled and whole; the matrix products of one step replayed alone in each precision,
  and all its other operations; a forward pass, a microbatch, an update. Nothing is predicted of them.
- "step", "recomputation", "accumulated": time of a training step in another precision, with every layer recomputed,
  and of several microbatches.
- "memory": bytes that the layers keep for the backward pass. The point's "method" says how they were measured.
- "equivalence": the relative difference between the gradient of several microbatches and that of one large batch:
  "equal" ones added up rightly, and two mistakes: losses that are "undivided", and means over "uneven" numbers of
  tokens. "token-weight" is how much a token counts there, in the microbatch that has the fewest.
- "curve": the loss of each step of a training run; every run starts from the same weights and sees the same batches.
- "scale": the loss scale at the end of the run with a scaler.

Which operations a step consists of is read off a step that runs (`operations`); what torch's counter of FLOP counts
is a product. Replayed, they are called one after the other on random numbers of the same shapes, strides and dtypes.

The runs' loss is a mean over a batch of `BATCH_TOKENS` tokens, as large runs have, of which each step computes its
microbatch and leaves out the rest: it is weighted by the microbatch's share of those tokens. The weight is a power of
two, and AdamW's epsilon and the clipping norm are weighted too, so that it changes nothing where numbers neither
underflow nor overflow. In FP16 the gradients of such a mean do underflow.
"""

from __future__ import annotations

import functools
import math
import platform
import warnings as python_warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from efflab.errors import EfflabError
from efflab.experiments.decoder import PARTS, SEED, Decoder, Variant, step_bytes
from efflab.experiments.runner import Case, Plan, Unavailable, out_of_memory, plain
from efflab.experiments.text import Corpus, corpus, windows
from efflab.measure import device as devices
from efflab.measure import memory, timer
from efflab.records import Environment, Record, Sample

WEIGHTS = {"fp32": "fp32", "tf32": "fp32", "bf16": "autocast", "fp16": "autocast-fp16"}  # the decoder's variants
MICROBATCHES = 4  # of a step that accumulates gradients
BETAS = (0.9, 0.95)
CLIP = 1.0  # norm to which gradients are clipped
EPSILON = 1e-8  # AdamW's
STEADY_SCALE = 2.0**10  # of the steps that are timed: no gradient overflows, so that none is skipped
BATCH_TOKENS = 2**20  # over which a run's loss is a mean; GPT-3's batches had 0.5 to 3.2 million tokens
INITIAL_SCALE = 2.0**20  # of a run with a scaler, over the loss weight: too large by a factor of some 2^4
GROWTH, BACKOFF = 2.0, 0.5  # of a run's loss scale
WARM_UP = 0.1  # share of a run's steps in which the learning rate rises; then it stays
CHECKS = 8  # steps of a run at which its gradient is compared with the one in FP32

TIMER: dict[str, dict[str, Any]] = {
    "smoke": {"time_limit": 0.02, "shortest": 1e-3, "most": 6},
    "cpu": {"time_limit": 1.0, "shortest": 10e-3, "most": 30},
    "gpu": {"time_limit": 1.0, "shortest": 20e-3, "most": 60},
}
# On a CPU; torch's own loops for FP16 products run on one, and several threads wait for each other on a busy machine.
THREADS = 1
PROFILED = {"smoke": 2, "cpu": 5, "gpu": 10}  # steps that are profiled, one by one
LONGEST = 2.0  # s; fewer steps are profiled where they would take longer together, but two at least

# The decoder whose steps are timed.
STEPS: dict[str, dict[str, int]] = {
    "smoke": {
        "layers": 2, "sequence_length": 32, "microbatch": 2, "hidden_size": 64, "intermediate_size": 256,
        "query_heads": 4, "head_dim": 16, "vocabulary": 128,
    },
    "cpu": {
        "layers": 4, "sequence_length": 256, "microbatch": 2, "hidden_size": 192, "intermediate_size": 768,
        "query_heads": 3, "head_dim": 64, "vocabulary": 1024,
    },
    "gpu": {
        "layers": 4, "sequence_length": 1024, "microbatch": 4, "hidden_size": 2048, "intermediate_size": 8192,
        "query_heads": 16, "head_dim": 128, "vocabulary": 8192,
    },
}  # fmt: skip

# The decoder that is trained on a text; its vocabulary is the text's.
CURVES: dict[str, dict[str, int]] = {
    "smoke": {
        "layers": 1, "sequence_length": 32, "microbatch": 4, "hidden_size": 32, "intermediate_size": 128,
        "query_heads": 1, "head_dim": 32,
    },
    "cpu": {
        "layers": 2, "sequence_length": 64, "microbatch": 4, "hidden_size": 64, "intermediate_size": 256,
        "query_heads": 2, "head_dim": 32,
    },
    "gpu": {
        "layers": 4, "sequence_length": 256, "microbatch": 16, "hidden_size": 256, "intermediate_size": 1024,
        "query_heads": 8, "head_dim": 32,
    },
}  # fmt: skip


@dataclass(frozen=True)
class Run:
    """How the decoder is trained at one scale.

    Attributes:
        text: "topics" or "library".
        steps: of a run.
        rate: learning rate after the warm-up.
        growth_interval: of the scaler, short enough for several cycles within a run.
    """

    text: str
    steps: int
    rate: float
    growth_interval: int


RUNS = {"smoke": Run("topics", 32, 4e-3, 5), "cpu": Run("topics", 160, 2e-3, 20), "gpu": Run("library", 400, 1e-3, 40)}


# A training step


class Training:
    """A decoder, its optimizer and, where FP16 needs one, its scaler.

    A step is, for each microbatch, `forward` and `backward`, then one `update`.

    Args:
        size, variant, device: the decoder's.
        rate: learning rate; 0 leaves the weights as they are and takes the same time.
        loss_weight: AdamW's epsilon and the clipping norm are multiplied by it.
        fused: torch's fused AdamW, which computes in float32 whatever the weights' dtype; without it AdamW computes in
            the weights' dtype.
        scale: initial loss scale; None means no scaler.
        growth_interval: of the scaler.
    """

    def __init__(
        self,
        size: dict[str, int],
        variant: Variant,
        device: Any,
        *,
        rate: float = 0.0,
        loss_weight: float = 1.0,
        fused: bool = True,
        scale: float | None = None,
        growth_interval: int = 2000,
    ) -> None:
        torch = devices.import_torch()
        self.model = Decoder(size, variant, device)
        self.loss_weight = loss_weight
        self._clip = torch.nn.utils.clip_grad_norm_
        self.optimizer = torch.optim.AdamW(
            self.model.parameters, lr=rate, betas=BETAS, eps=EPSILON * loss_weight, weight_decay=0.0, fused=fused
        )
        self.scaler = torch.amp.GradScaler(
            device.type, init_scale=scale or 1.0, growth_factor=GROWTH, backoff_factor=BACKOFF,
            growth_interval=growth_interval, enabled=scale is not None,
        )  # fmt: skip

    def forward(self) -> Any:
        """The loss of the model's batch, without weight."""
        with self.model.autocast:
            return self.model.loss(self.model.run_layers(self.model.embed()))

    def backward(self, loss: Any, weight: float = 1.0) -> None:
        """Add the gradients of a weighted loss to those that are there, multiplied by the loss scale."""
        self.scaler.scale(loss if weight == 1 else loss * weight).backward()

    def unscale(self) -> None:
        """Divide the gradients by the loss scale. Norms and clipping come after it."""
        self.scaler.unscale_(self.optimizer)

    def update(self, *, unscaled: bool = False, forget: bool = True) -> None:
        """Clip the gradients and change the weights, unless a gradient is not finite.

        Args:
            unscaled: `unscale` was called already.
            forget: the gradients are dropped at the end.
        """
        if not unscaled:
            self.unscale()
        self._clip(self.model.parameters, CLIP * self.loss_weight)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if forget:
            self.optimizer.zero_grad(set_to_none=True)

    def step(self, microbatches: int = 1) -> None:
        """One step on the same microbatch so many times, each loss divided by their number."""
        for _ in range(microbatches):
            self.backward(self.forward(), 1 / microbatches)
        self.update()


def available(precision: str, device: Any) -> None:
    """Raise `Unavailable` where a device has no such precision; says why."""
    torch = devices.import_torch()
    if precision == "tf32":
        missing = devices.missing_for("tf32", device)
        if device.type != "cuda":
            missing = "TF32 is a mode of a GPU's matrix units; this run uses the CPU"
        if missing:
            raise Unavailable(missing)
    if precision in ("bf16", "fp16"):
        narrow = torch.bfloat16 if precision == "bf16" else torch.float16
        a = torch.ones(2, 2, device=device)
        try:
            with python_warnings.catch_warnings():  # what is not supported is switched off, with a warning
                python_warnings.simplefilter("ignore")
                with torch.amp.autocast(device.type, narrow):
                    found = (a @ a).dtype
        except (RuntimeError, NotImplementedError) as error:
            if out_of_memory(error):
                raise
            raise Unavailable(f"torch {torch.__version__} refuses {precision} here: {plain(str(error))}") from None
        if found != narrow:
            raise Unavailable(f"torch {torch.__version__} has no autocast to {precision} on this device")


# What a step consists of


@dataclass(frozen=True)
class Like:
    """A tensor of floating-point numbers, without them."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: Any


@dataclass(frozen=True)
class Operation:
    """One of torch's operators as a step called it.

    Attributes:
        function: the operator's overload.
        args, kwargs: its arguments; a `Like` in place of a tensor of floating-point numbers, other tensors as copies.
        flops: floating-point operations as torch's counter counts them, FLOP; 0 for what it does not count.
    """

    function: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    flops: int

    @property
    def name(self) -> str:
        """As a profile names it, such as "aten::mm"."""
        return str(self.function.name()).partition(".")[0]

    @property
    def product(self) -> bool:
        """Whether it multiplies matrices."""
        return self.flops > 0

    @property
    def tensors(self) -> list[Like]:
        """What stands for its tensors, in order."""
        torch = devices.import_torch()
        return [x for x in torch.utils._pytree.tree_leaves((self.args, self.kwargs)) if isinstance(x, Like)]

    @property
    def casts(self) -> bool:
        """Whether it turns floating-point numbers of one dtype into another."""
        to = self.kwargs.get("dtype")
        return self.name == "aten::_to_copy" and bool(self.tensors) and to not in (None, self.tensors[0].dtype)


@functools.cache
def _modes() -> tuple[Any, Any]:
    """The classes that see every operator; made when first needed: importing this file imports no torch."""
    torch = devices.import_torch()
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils.flop_counter import flop_registry

    class Recorder(TorchDispatchMode):
        """Keeps every operator that is called inside, in order."""

        def __init__(self) -> None:
            super().__init__()
            self.found: list[Operation] = []

        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = kwargs or {}
            kept = torch.utils._pytree.tree_map_only(torch.Tensor, _described, (tuple(args), kwargs))
            out = function(*args, **kwargs)
            count = flop_registry.get(function.overloadpacket)
            flops = int(count(*args, **kwargs, out_val=out)) if count else 0
            self.found.append(Operation(function, *kept, flops))
            return out

    class Largest(TorchDispatchMode):
        """Keeps the largest magnitude among the FP16 results of what is called inside, views left out."""

        def __init__(self) -> None:
            super().__init__()
            self.found = 0.0

        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = function(*args, **(kwargs or {}))
            aliases = [r.alias_info for r in function._schema.returns]
            if any(a is not None and not a.is_write for a in aliases):
                return out  # a view may be of a weight or an activation
            for tensor in torch.utils._pytree.tree_leaves(out):
                if isinstance(tensor, torch.Tensor) and tensor.dtype == torch.float16 and tensor.numel():
                    self.found = max(self.found, float(tensor.abs().max().nan_to_num(math.inf, math.inf)))
            return out

    return Recorder, Largest


def _described(tensor: Any) -> Any:
    if tensor.is_floating_point():
        return Like(tuple(tensor.shape), tuple(tensor.stride()), tensor.dtype)
    return tensor.detach().clone()  # indices and masks mean something


def operations(run: Callable[[], Any]) -> list[Operation]:
    """The operators that a function calls, its backward passes included, in order."""
    recorder = _modes()[0]()
    with recorder:
        run()
    return recorder.found


def replay(found: list[Operation], device: Any) -> Callable[[], None]:
    """A function that calls some operators again, on random normal numbers in place of what they were called with.

    Operands of the same shape, strides and dtype at the same place of the arguments share their memory.
    """
    torch = devices.import_torch()
    generator = torch.Generator(device=device).manual_seed(SEED)
    pool: dict[tuple[Like, int], Any] = {}

    def filled(like: Like, place: int) -> Any:
        if (like, place) not in pool:
            size = 1 + sum((n - 1) * step for n, step in zip(like.shape, like.stride, strict=True))
            data = torch.randn(max(size, 1), device=device, generator=generator).to(like.dtype)
            pool[like, place] = data.as_strided(like.shape, like.stride)
        return pool[like, place]

    calls = []
    for operation in found:
        leaves, spec = torch.utils._pytree.tree_flatten((operation.args, operation.kwargs))
        leaves = [filled(x, i) if isinstance(x, Like) else x for i, x in enumerate(leaves)]
        args, kwargs = torch.utils._pytree.tree_unflatten(leaves, spec)
        calls.append(functools.partial(operation.function, *args, **kwargs))

    def again() -> None:
        with torch.no_grad():
            for call in calls:
                call()

    return again


def profile(step: Callable[[], Any], products: set[str], clock: timer.Clock, device: Any) -> dict[str, float]:
    """One call of a function under torch.profiler.

    Args:
        step: what is profiled.
        products: names of the operators that multiply matrices, none of which calls another.

    Returns:
        Seconds: "matmul_time" inside the products, "other_time" inside other operators (on a GPU both of their
        kernels), and "step_time" from begin to end, which on a CPU also holds what runs between operators and on a GPU
        what it waits for.
    """
    torch = devices.import_torch()
    from torch.profiler import ProfilerActivity

    cuda = device.type == "cuda"
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if cuda else [])
    with torch.profiler.profile(activities=activities) as profiled:
        clock.synchronize()
        begin = clock.now()
        step()
        clock.synchronize()
        wall = clock.now() - begin
    events = profiled.key_averages()
    on_host = [e for e in events if e.device_type == torch.autograd.DeviceType.CPU]
    if cuda:
        # Kernels and copies once; the operators that launched them carry the same time again.
        on_device = [e for e in events if e.device_type == torch.autograd.DeviceType.CUDA and not e.is_user_annotation]
        inside = sum(e.self_device_time_total for e in on_device)
        matmul = sum(e.device_time_total for e in on_host if e.key in products)
    else:
        inside = sum(e.self_cpu_time_total for e in on_host if not e.key.startswith("ProfilerStep"))
        matmul = sum(e.cpu_time_total for e in on_host if e.key in products)
    return {"matmul_time": matmul * 1e-6, "other_time": (inside - matmul) * 1e-6, "step_time": wall}


# Gradients


def difference(found: list[Any], reference: list[Any]) -> float:
    """Frobenius norm of the difference of two gradients, over that of the reference; all parameters together."""
    torch = devices.import_torch()
    square = sum(float(torch.sum((a.double() - b.double()) ** 2)) for a, b in zip(found, reference, strict=True))
    return math.sqrt(square / sum(float(torch.sum(b.double() ** 2)) for b in reference))


def inner_products(gradients: list[list[Any]]) -> list[float]:
    """The inner product of each gradient with each, row by row; all parameters together."""
    torch = devices.import_torch()
    flat = torch.stack([torch.cat([g.double().flatten() for g in gradient]) for gradient in gradients])
    return (flat @ flat.T).flatten().tolist()


def zero_share(found: list[Any], reference: list[Any]) -> float:
    """Share of the elements that are zero in a gradient, of those that are not zero in the reference."""
    zero = sum(int(((a == 0) & (b != 0)).sum()) for a, b in zip(found, reference, strict=True))
    return zero / sum(int((b != 0).sum()) for b in reference)


def largest_gradient(model: Decoder, weight: float, scale: float) -> float:
    """The largest magnitude of any FP16 number in the backward pass of a weighted loss, as without loss scale.

    Args:
        model: a decoder of the variant "autocast-fp16", with its batch. Its gradients are dropped.
        weight: of the loss.
        scale: loss scale to begin with; it is lowered until nothing overflows.
    """
    while True:
        with model.autocast:
            loss = model.loss(model.run_layers(model.embed()))
        largest = _modes()[1]()
        with largest:
            (loss * weight * scale).backward()
        for p in model.parameters:
            p.grad = None
        if math.isfinite(largest.found):
            return float(largest.found / scale)
        if scale < 1e-30:
            raise EfflabError("the gradient is not finite at any loss scale")
        scale /= 2**4


# The experiment


@dataclass
class Session:
    """What the cases of one run share."""

    scale: str
    device: Any
    warnings: list[str]
    scales: list[float] = field(default_factory=list)  # of the run with a scaler, before the first step and after each
    _operations: dict[str, list[Operation]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.clock = timer.clock_for(self.device)

    @property
    def size(self) -> dict[str, int]:
        """The decoder whose steps are timed."""
        return STEPS[self.scale]

    # The text and its batches

    @property
    def text(self) -> Corpus:
        """The text that runs are trained on."""
        return corpus(RUNS[self.scale].text, 10, 6000)

    @property
    def trained(self) -> dict[str, int]:
        """The decoder that is trained on the text."""
        return CURVES[self.scale] | {"vocabulary": self.text.vocabulary}

    @functools.cached_property
    def batches(self) -> list[tuple[Any, Any]]:
        """Inputs and targets of each step of a run; no part of the text occurs twice."""
        torch = devices.import_torch()
        size, steps = self.trained, RUNS[self.scale].steps
        inputs, targets = windows(torch.tensor(self.text.training), size["sequence_length"])
        wanted = steps * size["microbatch"]
        if wanted > len(inputs):
            raise Unavailable(f"a run needs {wanted} sequences and the text of this Python has {len(inputs)}")
        order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(SEED))[:wanted]
        return [(inputs[at].to(self.device), targets[at].to(self.device)) for at in order.view(steps, -1)]

    @property
    def loss_weight(self) -> float:
        """The share that a step's microbatch has in `BATCH_TOKENS`."""
        return self.trained["microbatch"] * self.trained["sequence_length"] / BATCH_TOKENS

    # Time

    def training(self, precision: str, scale: float = STEADY_SCALE, recomputation: str = "none") -> Training:
        """What is timed in a precision. Raises `Unavailable` where the device has none."""
        available(precision, self.device)
        variant = Variant(WEIGHTS[precision], "math", recomputation=recomputation)
        return Training(self.size, variant, self.device, scale=scale if precision == "fp16" else None)

    def operations(self, precision: str) -> list[Operation]:
        """The operators of a forward and a backward pass in a precision, those of the update left out."""
        if precision not in self._operations:
            training = self.training(precision)
            training.scaler.scale(devices.import_torch().ones((), device=self.device))  # makes what is made once
            self._operations[precision] = operations(lambda: training.backward(training.forward()))
        return self._operations[precision]

    def timed(self, point: dict[str, Any], call: Callable[[], Any], metric: str = "time") -> Sample:
        """The time of a call, again where it was disturbed."""
        timed = timer.undisturbed(
            lambda: timer.back_to_back([call], self.clock, **TIMER[self.scale]),
            lambda said: self.warnings.append(f"{point['case']}: {said}"),
            attempts=1 if self.scale == "smoke" else timer.ATTEMPTS,
        )
        self.warnings.extend(f"{point['case']}: {w}" for w in timed.warnings)
        return Sample(point=point, metric=metric, unit="s", values=timed.values, status="ok", timing=timed.timing)

    def step(self, point: dict[str, Any]) -> Iterator[Sample]:
        """The time of a training step and, for each plain one but the baseline, where it goes by a profile."""
        precision = point["precision"]
        with devices.float32_as(precision):
            training = self.training(precision, recomputation=point["recomputation"])
            step = functools.partial(training.step, point["microbatches"])
            yield self.timed(point, step)
            if point["role"] == "step":
                yield from self.profiled(point, step)

    def share(self, point: dict[str, Any]) -> Iterator[Sample]:
        """Where the time of a step goes."""
        with devices.float32_as(point["precision"]):
            yield from self.profiled(point, self.training(point["precision"]).step)

    def profiled(self, point: dict[str, Any], step: Callable[[], Any]) -> Iterator[Sample]:
        """What profiles of single steps say of a step: seconds in products, in other operators, and in all."""
        names = {o.name for o in self.operations(point["precision"]) if o.product}
        first = profile(step, names, self.clock, self.device)["step_time"]  # and the profiler's own first use
        count = max(2, min(PROFILED[self.scale], int(LONGEST / first)))
        found = [profile(step, names, self.clock, self.device) for _ in range(count)]
        for metric in ("matmul_time", "other_time", "step_time"):
            yield Sample(point=point, metric=metric, unit="s", values=[f[metric] for f in found], status="ok")

    def replayed(self, point: dict[str, Any]) -> Iterator[Sample]:
        """The time of a step's products, or of everything else of it, its update included."""
        precision, products = point["precision"], point["part"] == "matmul"
        with devices.float32_as(precision):
            training = self.training(precision, scale=1.0)  # repeated divisions by it change nothing
            found = [o for o in self.operations(precision) if o.product == products]
            again = replay(found, self.device)
            if products:
                call = again
            else:
                training.backward(training.forward())

                def call() -> None:
                    again()
                    training.update(forget=False)

            yield self.timed(point, call)
        counts = {"operations": len(found)}
        if products:
            counts["flops"] = sum(o.flops for o in found)
        else:
            counts["casts"] = sum(o.casts for o in found)
        for metric, count in counts.items():
            unit = "FLOP" if metric == "flops" else ""
            yield Sample(point=point, metric=metric, unit=unit, values=[float(count)], status="ok")

    def forward(self, point: dict[str, Any]) -> Iterator[Sample]:
        """The time of a forward pass, and of its layers alone."""
        with devices.float32_as(point["precision"]):
            training = self.training(point["precision"])
            yield self.timed(point, training.forward)
            model = training.model
            x = model.embed().detach().requires_grad_()

            def layers() -> None:
                with model.autocast:
                    model.run_layers(x)

            yield self.timed(point, layers, "layers_time")

    def microbatch(self, point: dict[str, Any]) -> Iterator[Sample]:
        """The time of a microbatch whose gradients are added to those that are there."""
        with devices.float32_as(point["precision"]):
            training = self.training(point["precision"])
            yield self.timed(point, lambda: training.backward(training.forward(), 1 / MICROBATCHES))

    def update(self, point: dict[str, Any]) -> Iterator[Sample]:
        """The time of clipping and of the optimizer."""
        with devices.float32_as(point["precision"]):
            training = self.training(point["precision"])
            training.backward(training.forward())
            yield self.timed(point, lambda: training.update(forget=False))

    # Memory

    def memory(self, point: dict[str, Any]) -> Iterator[Sample]:
        """Bytes that the layers keep for the backward pass, and what else a step holds."""
        available(point["precision"], self.device)
        variant = Variant(WEIGHTS[point["precision"]], point["attention"], recomputation=point["recomputation"])
        found = step_bytes(self.size, variant, self.device)
        yield Sample(point=point, metric="memory", unit="B", values=[float(found["activations"])], status="ok")
        kept = [n for n in found if n.startswith("kept_")]
        for name in (*PARTS, "outside", "step", "after_forward", "rounding", "counted", "weight_copies", *kept):
            if name in found:
                yield Sample(point=point, metric=name, unit="B", values=[float(found[name])], status="ok")

    # Gradients

    def gradient(self, precision: str, batches: list[tuple[Any, Any]], divisor: float) -> list[Any]:
        """The gradients of the sum of the mean losses of some microbatches, each divided by a number."""
        model = Decoder(self.trained, Variant(WEIGHTS[precision], "math"), self.device)
        for model.tokens, model.targets in batches:
            with model.autocast:
                loss = model.loss(model.run_layers(model.embed()))
            (loss / divisor).backward()
        return [p.grad for p in model.parameters]

    def equivalence(self, point: dict[str, Any]) -> Iterator[Sample]:
        """The relative difference between the gradients of microbatches and of the batch that they make."""
        torch = devices.import_torch()
        precision = point["precision"]
        available(precision, self.device)
        parts = self.microbatches(point["counted"])
        whole = [tuple(torch.cat(column) for column in zip(*parts, strict=True))]
        with devices.float32_as(precision):
            large = self.gradient(precision, whole, 1)
            found = self.gradient(precision, parts, MICROBATCHES if point["divided"] else 1)
            yield _number(point, "error", difference(found, large))
            if precision != "fp32":
                yield _number(point, "rounding", difference(large, self.gradient("fp32", whole, 1)))
            if point["counted"] == "uneven":
                tokens = [float((targets >= 0).sum()) for _, targets in parts]
                yield Sample(point=point, metric="tokens", unit="tokens", values=tokens, status="ok")
                weights = self.token_weights(parts)
                yield Sample(point=point, metric="token_weight", unit="", values=weights, status="ok")
                inner = inner_products([self.gradient(precision, [part], 1) for part in parts])
                yield Sample(point=point, metric="inner_product", unit="", values=inner, status="ok")

    def token_weight(self, point: dict[str, Any]) -> Iterator[Sample]:
        """How much a token counts in the microbatch that has the fewest."""
        with devices.float32_as(point["precision"]):
            yield _number(point, "token_weight", self.token_weights(self.microbatches(point["counted"]))[-1])

    def microbatches(self, counted: str) -> list[tuple[Any, Any]]:
        """Inputs and targets of the microbatches; "all" of the targets count, or "uneven" numbers of them."""
        parts = self.batches[:MICROBATCHES]
        if counted == "all":
            return parts
        return [(tokens, self.padded(targets, i)) for i, (tokens, targets) in enumerate(parts)]

    @staticmethod
    def padded(targets: Any, index: int) -> Any:
        """Targets of which only the first 2^-index of each sequence count; the rest is padding."""
        kept = max(1, targets.shape[1] >> index)
        targets = targets.clone()
        targets[:, kept:] = -100  # what torch's cross-entropy ignores
        return targets

    def token_weights(self, parts: list[tuple[Any, Any]]) -> list[float]:
        """How much the tokens of each microbatch count: norms of the gradients of their logits over those of a batch.

        The losses' means are divided by the number of microbatches; the batch's loss is one mean over all its tokens.
        """
        torch = devices.import_torch()
        model = Decoder(self.trained, Variant("fp32", "math"), self.device)

        def norms(batches: list[tuple[Any, Any]], divisor: float) -> Any:
            found = []
            for model.tokens, model.targets in batches:
                logits = model.logits(model.run_layers(model.embed()))
                logits.retain_grad()
                loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), model.targets.flatten())
                (loss / divisor).backward()
                found += [torch.linalg.norm(g) for g in logits.grad.split(len(parts[0][0]))]
            return found

        whole = [tuple(torch.cat(column) for column in zip(*parts, strict=True))]
        return [float(a / b) for a, b in zip(norms(parts, len(parts)), norms(whole, 1), strict=True)]

    # Training runs

    def curve(self, point: dict[str, Any]) -> Iterator[Sample]:
        """The loss of each step of a run, and what became of its gradients."""
        precision, of = point["precision"], RUNS[self.scale]
        available(precision, self.device)
        torch = devices.import_torch()
        weight, steps, size = point["loss_weight"], point["steps"], self.trained
        variant = Variant("fp16" if point["weights"] == "fp16" else WEIGHTS[precision], "math")
        training = Training(
            size, variant, self.device, loss_weight=weight, fused=point["fused"],
            scale=point.get("initial_scale"), growth_interval=point.get("growth_interval", 1),
        )  # fmt: skip
        model = training.model
        twin = Decoder(size, Variant("fp32", "math"), self.device)  # the same weights, to compare with
        narrow = Decoder(size, Variant("autocast-fp16", "math"), self.device) if point["scaler"] else None
        losses: list[float] = []
        overflows: list[float] = []
        scales = [training.scaler.get_scale()]
        zero: list[float] = []
        cast: list[float] = []
        largest: list[float] = []
        diverged = None
        with devices.float32_as("fp32"):
            for step in range(steps):
                for group in training.optimizer.param_groups:
                    group["lr"] = of.rate * min(1.0, (step + 1) / max(1, round(WARM_UP * steps)))
                model.tokens, model.targets = self.batches[step]
                loss = training.forward()
                losses.append(float(loss.detach()))
                if not math.isfinite(losses[-1]):
                    losses.pop()
                    diverged = step
                    break
                training.backward(loss, weight)
                if step in checked(steps):
                    reference = self.reference(twin, model, weight)
                    gradients = [p.grad for p in model.parameters]
                    zero.append(zero_share(gradients, reference))
                    cast.append(zero_share([(g * scales[-1]).to(torch.float16) for g in reference], reference))
                    if narrow:
                        self.copied(narrow, model)
                        largest.append(largest_gradient(narrow, weight, scales[-1]))
                training.unscale()
                if point["scaler"]:
                    overflows.append(float(not all(bool(p.grad.isfinite().all()) for p in model.parameters)))
                training.update(unscaled=True)
                scales.append(training.scaler.get_scale())
        if not losses:
            raise EfflabError("the loss is not finite at the first step")
        yield Sample(point=point, metric="loss", unit="nats", values=losses, status="ok")
        if diverged is not None:
            yield _number(point, "diverged_at", diverged)
        series = {"zero_gradients": zero}
        if precision == "fp16":
            series["cast_zero_gradients"] = cast
        if point["scaler"]:
            self.scales = scales
            series |= {"overflow": overflows, "scale": scales, "largest_gradient": largest}
        for metric, values in series.items():
            yield Sample(point=point, metric=metric, unit="", values=values, status="ok")

    def reference(self, twin: Decoder, model: Decoder, weight: float) -> list[Any]:
        """The gradient in FP32 at another model's weights and batch, in FP32 also where those weights are not."""
        self.copied(twin, model)
        for p in twin.parameters:
            p.grad = None
        (twin.loss(twin.run_layers(twin.embed())) * weight).backward()
        return [p.grad for p in twin.parameters]

    @staticmethod
    def copied(to: Decoder, model: Decoder) -> None:
        """Give a model another one's weights and batch."""
        torch = devices.import_torch()
        to.tokens, to.targets = model.tokens, model.targets
        with torch.no_grad():
            for p, source in zip(to.parameters, model.parameters, strict=True):
                p.copy_(source)

    def last_scale(self, point: dict[str, Any]) -> Iterator[Sample]:
        """The loss scale after the last step of the run with a scaler."""
        if not self.scales:
            raise Unavailable("the run with a scaler gave no loss scale")
        yield _number(point, "scale", self.scales[-1])


def checked(steps: int) -> list[int]:
    """The steps of a run, from 0, at which its gradient is compared with the one in FP32; first and last included."""
    return sorted({round(i * (steps - 1) / (CHECKS - 1)) for i in range(CHECKS)})


def _case(
    session: Session,
    measure: Callable[[dict[str, Any]], Iterator[Sample]],
    point: dict[str, Any],
    metric: str = "time",
    unit: str = "s",
) -> Case:
    def samples() -> Iterator[Sample]:
        with devices.threads(THREADS if session.device.type == "cpu" else None):
            yield from measure(point)

    return Case(point, samples, metric=metric, unit=unit)


def _number(point: dict[str, Any], metric: str, value: float) -> Sample:
    return Sample(point=point, metric=metric, unit="", values=[float(value)], status="ok")


class Amp:
    """The experiment: see the module's text."""

    topic = "amp"
    scales = ("smoke", "cpu", "gpu")

    def plan(self, scale: str, device: Any, environment: Environment, resumed: Record | None) -> Plan:
        """The cases of a scale on a device, in the order they are measured. Builds no tensor on a GPU."""
        warnings: list[str] = []
        session = Session(scale, device, warnings)
        for sample in resumed.samples if resumed else []:
            if sample.metric == "scale" and sample.status == "ok" and sample.point.get("role") == "curve":
                session.scales = list(sample.values)
        of, text = RUNS[scale], session.text
        cases = [*_times(session), *_memory(session), *_equivalence(session), *_curves(session)]
        spec: dict[str, Any] = {
            "scale": scale, "seed": SEED, "timer": TIMER[scale], "profiled_steps": PROFILED[scale],
            "decoder": session.size | {"tied_embeddings": True, "positions": session.size["sequence_length"]},
            "trained": session.trained | {"tied_embeddings": True, "positions": session.trained["sequence_length"]},
            "attention": "math", "method": memory.method_for(device),
            "threads": THREADS if device.type == "cpu" else None,
            "optimizer": f"AdamW, betas {BETAS[0]} and {BETAS[1]}, no weight decay, gradients clipped",
            "clip": CLIP, "epsilon": EPSILON, "microbatches": MICROBATCHES, "steady_scale": STEADY_SCALE,
            "text": text.name, "text_of_python": platform.python_version(), "sha256": text.sha256,
            "characters": text.characters, "vocabulary": text.vocabulary, "steps": of.steps, "learning_rate": of.rate,
            "warm_up": WARM_UP, "batch_tokens": BATCH_TOKENS, "loss_weight": session.loss_weight,
            "growth_interval": of.growth_interval, "checked_steps": checked(of.steps),
            "autocast": _autocast(device),
            "instructions": devices.instructions(device),
            "onednn": _onednn() if device.type == "cpu" else None,
            "cases": [c.name for c in cases],
        }  # fmt: skip
        return Plan(spec, cases, warnings)


def _times(session: Session) -> Iterator[Case]:
    def point(case: str, role: str, precision: str, **more: Any) -> dict[str, Any]:
        return {
            "case": case, "role": role, "precision": precision, "scaler": precision == "fp16", "attention": "math",
            "recomputation": "none", "microbatches": 1, **session.size, **more,
        }  # fmt: skip

    def case(measure: Callable[[dict[str, Any]], Iterator[Sample]], metric: str, *args: Any, **more: Any) -> Case:
        return _case(session, measure, point(*args, **more), metric)

    role = "calibration"
    others = [p for p in WEIGHTS if p not in ("fp32", *(("tf32",) if session.device.type != "cuda" else ()))]
    yield case(session.step, "time", "step-fp32", role, "fp32", series="step")
    yield case(session.share, "matmul_time", "share-fp32", role, "fp32", series="share")
    for precision in ("fp32", *others):
        yield case(session.replayed, "time", f"matmul-{precision}", role, precision, part="matmul", series="matmul")
    for precision in ("fp32", "bf16", "fp16"):
        yield case(session.replayed, "time", f"other-{precision}", role, precision, part="other", series="other")
    for precision in ("fp32", "bf16"):
        yield case(session.forward, "time", f"forward-{precision}", role, precision, series="forward")
    yield case(session.microbatch, "time", "microbatch-fp32", role, "fp32", series="microbatch")
    yield case(session.update, "time", "update-fp32", role, "fp32", series="update")
    for precision in others:
        yield case(session.step, "time", f"step-{precision}", "step", precision, series="step")
    for precision in ("fp32", "bf16"):
        more = {"recomputation": "full", "series": "recomputed"}
        yield case(session.step, "time", f"recomputed-{precision}", "recomputation", precision, **more)
    more = {"microbatches": MICROBATCHES, "series": "accumulated"}
    yield case(session.step, "time", f"accumulated-fp32-{MICROBATCHES}", "accumulated", "fp32", **more)


def _memory(session: Session) -> Iterator[Case]:
    variants = [(p, "none") for p in ("fp32", "bf16", "fp16")] + [(p, "full") for p in ("fp32", "bf16")]
    for precision, recomputation in variants:
        point: dict[str, Any] = {
            "case": f"memory-{precision}" + ("-recomputed" if recomputation == "full" else ""), "role": "memory",
            "precision": precision, "weights": WEIGHTS[precision], "attention": "math", "dropout": False,
            "recomputation": recomputation, "method": memory.method_for(session.device), **session.size,
            "series": "memory",
        }  # fmt: skip
        yield _case(session, session.memory, point, "memory", "B")


def _equivalence(session: Session) -> Iterator[Case]:
    for case, precision, divided, counted in (
        ("equal-fp32", "fp32", True, "all"),
        ("equal-bf16", "bf16", True, "all"),
        ("undivided", "fp32", False, "all"),
        ("uneven", "fp32", True, "uneven"),
    ):
        point: dict[str, Any] = {
            "case": case, "role": "equivalence", "precision": precision, "microbatches": MICROBATCHES,
            "divided": divided, "counted": counted, "attention": "math", **session.trained, "series": "equivalence",
        }  # fmt: skip
        yield _case(session, session.equivalence, point, "error", "")
    row, length = session.trained["microbatch"], session.trained["sequence_length"]
    tokens = [row * max(1, length >> i) for i in range(MICROBATCHES)]
    point = point | {"case": "token-weight", "tokens": tokens[-1], "total_tokens": sum(tokens)}
    yield _case(session, session.token_weight, point, "token_weight", "")


def _curves(session: Session) -> Iterator[Case]:
    of, weight = RUNS[session.scale], session.loss_weight
    scaler = {
        "initial_scale": INITIAL_SCALE / weight, "growth_interval": of.growth_interval, "growth_factor": GROWTH,
        "backoff_factor": BACKOFF,
    }  # fmt: skip
    for case, precision, weights, scaled in (
        ("curve-fp32", "fp32", "fp32", False),
        ("curve-bf16", "bf16", "fp32", False),
        ("curve-fp16-scaled", "fp16", "fp32", True),
        ("curve-fp16-unscaled", "fp16", "fp32", False),
        ("curve-fp16-weights", "fp16", "fp16", False),
    ):
        # Weights in FP16 fail by AdamW's arithmetic, so their loss has no weight that would make gradients vanish.
        loss_weight = 1.0 if weights == "fp16" else weight
        point: dict[str, Any] = {
            "case": case, "role": "curve", "precision": precision, "weights": weights, "scaler": scaled,
            "attention": "math", **session.trained, "steps": of.steps, "learning_rate": of.rate, "seed": SEED,
            "loss_weight": loss_weight, "epsilon": EPSILON * loss_weight, "fused": False, **(scaler if scaled else {}),
            "series": "curve",
        }  # fmt: skip
        yield _case(session, session.curve, point, "loss", "nats")
    point = {"case": "scale-fp16", "role": "scale", "precision": "fp16", "scaler": True, "steps": of.steps, **scaler}
    yield _case(session, session.last_scale, point, "scale", "")


def _autocast(device: Any) -> dict[str, bool] | None:
    """What torch.amp.autocast computes in on a CPU; a GPU has both, and is not asked before the run begins."""
    if device.type != "cpu":
        return None
    found = {}
    for precision in ("bf16", "fp16"):
        try:
            available(precision, device)
            found[precision] = True
        except Unavailable:
            found[precision] = False
    return found


def _onednn() -> dict[str, bool | None]:
    """Whether oneDNN, which torch's 16-bit products go through, multiplies a dtype on this CPU; null: it does not say.

    What it does not multiply, torch's own loops convert to float32, element by element.
    """
    torch = devices.import_torch()
    found: dict[str, bool | None] = {}
    for precision in ("bf16", "fp16"):
        try:
            found[precision] = bool(getattr(torch.ops.mkldnn, f"_is_mkldnn_{precision}_supported")())
        except (AttributeError, RuntimeError):
            found[precision] = None
    return found


EXPERIMENT = Amp()
