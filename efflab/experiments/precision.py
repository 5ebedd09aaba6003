"""What the precision lab measures: what fewer bits cost and save.

Four kinds of cases, told apart by the point's "role":

- "calibration": a tiny product of each dtype, whose time is a call's overhead; the largest product of each dtype,
  whose rate stands for the dtype's peak; the error of the largest fp32 product, which says in what blocks the library
  adds up. Nothing is predicted of them.
- "product": square matrix products of each dtype, timed. Where no product of the largest size can be had, the largest
  one that was measured takes its place.
- "error": the same products against a product in float64 of the same inputs before they were rounded: the Frobenius
  norm of the difference over that of the product. float64 itself is the reference and has no error here.
- "weights", "gradients", "optimizer", "activations", "step": bytes of a training step of a small decoder. The point's
  "method" says how: "counted" tensors, or the GPU's "allocator".

The decoder is a GPT: learned positions, layers of layer norm, attention, layer norm and a plain GELU MLP, biases
everywhere, dropout after the softmax and after both blocks, an output layer that shares the embedding's weights,
logits in float32. "math" attention is two products with a softmax between them; "sdpa" is torch's
scaled_dot_product_attention, whatever torch makes of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from efflab.catalog import BYTES_PER_ELEMENT
from efflab.experiments.decoder import DROPOUT, PARTS, Variant, step_bytes
from efflab.experiments.runner import Case, Plan, Unavailable, out_of_memory, plain
from efflab.measure import device as devices
from efflab.measure import memory, timer
from efflab.records import Environment, Record, Sample, median

DTYPES = {
    "fp64": "float64", "fp32": "float32", "tf32": "float32", "bf16": "bfloat16", "fp16": "float16",
    "fp8": "float8_e4m3fn", "int8": "int8",
}  # fmt: skip
SEED = 0
TINY = 32  # rows of the product that stands for the overhead; every dtype's library takes this size
MIDDLE = 1024  # rows of a product that every scale but "smoke" has, so that a lab can name it
LARGE = 1024  # rows from which several threads are faster than one, unless something else runs on their cores
HINDERED = 3  # of any size: one thread that is this many times faster says that something else runs on the cores
# A tiny product that takes longer than another one, on all threads or on one, times this, was disturbed. A GPU may
# spend its time launching either of them.
OVERHEAD_LONGER = {"cpu": 1.0, "cuda": 1.5}
LONGEST = 5.0  # s; a product that would take longer than this is left out

TIMER: dict[str, dict[str, Any]] = {
    "smoke": {"time_limit": 0.02, "shortest": 1e-3, "most": 8},
    "cpu": {"time_limit": 0.4, "shortest": 5e-3, "most": 40},
    "gpu": {"time_limit": 0.5, "shortest": 10e-3, "most": 60},
}
# One training step's architecture by scale. At "cpu" and "gpu" heads × sequence length / hidden size is 16, as in
# GPT-3 with 175B parameters, so that attention takes the share of the activations that it takes there.
DECODERS: dict[str, dict[str, int]] = {
    "smoke": {
        "layers": 2, "sequence_length": 32, "microbatch": 2, "hidden_size": 64, "intermediate_size": 256,
        "query_heads": 4, "head_dim": 16, "vocabulary": 128,
    },
    "cpu": {
        "layers": 4, "sequence_length": 512, "microbatch": 2, "hidden_size": 256, "intermediate_size": 1024,
        "query_heads": 8, "head_dim": 32, "vocabulary": 1024,
    },
    "gpu": {
        "layers": 4, "sequence_length": 2048, "microbatch": 2, "hidden_size": 2048, "intermediate_size": 8192,
        "query_heads": 16, "head_dim": 128, "vocabulary": 8192,
    },
}  # fmt: skip


VARIANTS = (
    Variant("fp32", "math"),
    Variant("fp32", "math", dropout=True),
    Variant("fp32", "sdpa"),
    Variant("fp32", "math", dropout=True, recomputation="full"),
    Variant("bf16", "math"),
    Variant("bf16", "math", dropout=True),
    Variant("bf16", "sdpa"),
    Variant("bf16", "sdpa", recomputation="full"),
    Variant("autocast", "sdpa"),
)
GPU_ONLY = (Variant("bf16", "sdpa", dropout=True),)  # on a CPU torch falls back to math attention for it


# Matrix products


@dataclass
class Product:
    """A square product a b^T that is ready to be called; `exact` turns what it returns into float64."""

    call: Callable[[], Any]
    exact: Callable[[Any], Any]


def product(dtype: str, a: Any, b: Any) -> Product:
    """Round two float64 matrices to a dtype and prepare their product a b^T.

    The second operand is stored by rows and used transposed, as torch.nn.Linear does. fp8 is E4M3, unscaled, with a
    bf16 result. int8 takes the largest magnitude of each matrix as 127 and returns int32.

    Raises:
        Unavailable: this torch, or this device, has no such product; says why.
    """
    torch = devices.import_torch()
    if dtype in ("fp8", "int8"):
        function = {"fp8": "_scaled_mm", "int8": "_int_mm"}[dtype]
        if not hasattr(torch, function) or not hasattr(torch, DTYPES[dtype]):
            raise Unavailable(f"torch {torch.__version__} has no {dtype} matrix product")
    if dtype in ("tf32", "fp8") and (missing := devices.missing_for(dtype, a.device)):
        raise Unavailable(missing)  # other dtypes are multiplied by other units there, slowly, and that is measured
    if dtype == "fp8":
        one = torch.ones((), device=a.device)
        x, weight = (m.to(torch.float32).to(torch.float8_e4m3fn) for m in (a, b))
        out = torch.empty(a.shape[0], b.shape[0], device=a.device, dtype=torch.bfloat16)
        made = Product(
            lambda: torch._scaled_mm(x, weight.t(), scale_a=one, scale_b=one, out_dtype=torch.bfloat16, out=out),
            lambda out: out.double(),
        )
    elif dtype == "int8":
        scales = [float(m.abs().max()) / 127 for m in (a, b)]
        x, weight = ((m / s).round().to(torch.int8) for m, s in zip((a, b), scales, strict=True))
        out = torch.empty(a.shape[0], b.shape[0], device=a.device, dtype=torch.int32)
        made = Product(lambda: torch._int_mm(x, weight.t(), out=out), lambda out: out.double() * scales[0] * scales[1])
    else:
        x, weight = (m.to(getattr(torch, DTYPES[dtype])) for m in (a, b))
        out = torch.empty(a.shape[0], b.shape[0], device=a.device, dtype=x.dtype).fill_(1)
        made = Product(lambda: torch.mm(x, weight.t(), out=out), lambda out: out.double())
    try:
        made.call()
    except (RuntimeError, NotImplementedError) as error:
        if out_of_memory(error):
            raise
        raise Unavailable(f"torch {torch.__version__} refuses a {dtype} product here: {plain(str(error))}") from None
    return made


# The experiment


@dataclass
class Session:
    """What the cases of one run share."""

    scale: str
    device: Any
    warnings: list[str]
    last: dict[str, tuple[int, float]] = field(default_factory=dict)  # dtype: (size, median s) of its last product
    overheads: dict[str, float] = field(default_factory=dict)  # dtype: median s of its tiny product
    _inputs: tuple[int, Any, Any] | None = None
    _reference: tuple[int, Any] | None = None
    _step: tuple[str, dict[str, float]] | None = None

    def __post_init__(self) -> None:
        self.clock = timer.clock_for(self.device)

    def inputs(self, n: int) -> tuple[Any, Any]:
        """Two matrices of normal random numbers in float64; never zeros, which draw less power."""
        if self._inputs is None or self._inputs[0] != n:
            self._inputs = self._reference = None  # their memory goes before new memory is asked for
            torch = devices.import_torch()
            generator = torch.Generator(device=self.device).manual_seed(SEED)
            a, b = (torch.randn(n, n, device=self.device, dtype=torch.float64, generator=generator) for _ in range(2))
            self._inputs = n, a, b
        return self._inputs[1:]

    def reference(self, n: int) -> Any:
        """The float64 product of the inputs of a size."""
        a, b = self.inputs(n)
        if self._reference is None:
            self._reference = n, a @ b.t()
        return self._reference[1]

    def not_too_long(self, dtype: str, n: int, longest: float) -> None:
        """Raise `Unavailable` where the last product of a dtype says that this size takes more than `longest`, s."""
        if dtype in self.last:
            size, seconds = self.last[dtype]
            expected = seconds * (n / size) ** 3
            if expected > longest:
                raise Unavailable(
                    f"at size {size} a {dtype} product took {seconds:.3g} s, so this size would take about "
                    f"{expected:.3g} s, longer than the lab allows"
                )

    def time(self, point: dict[str, Any]) -> Iterator[Sample]:
        """The time of a product and, on several threads, of the same on one."""
        dtype, n = point["dtype"], point["m"]
        self.not_too_long(dtype, n, LONGEST)
        options = dict(TIMER[self.scale])
        if point["role"] == "calibration":
            options |= {"fewest": 6, "time_limit": 2 * options["time_limit"]}
        with devices.float32_as(dtype):
            call = product(dtype, *self.inputs(n)).call
            timed = timer.undisturbed(
                lambda: timer.back_to_back([call], self.clock, **options),
                lambda said: self.warnings.append(f"{point['case']}: {said}"),
                attempts=1 if self.scale == "smoke" else timer.ATTEMPTS,
            )
            self.warnings.extend(f"{point['case']}: {w}" for w in timed.warnings)
            self.remember(dtype, n, median(timed.values))
            yield Sample(point=point, metric="time", unit="s", values=timed.values, status="ok", timing=timed.timing)
            threads = devices.import_torch().get_num_threads()
            if self.device.type != "cpu" or threads == 1 or point["role"] == "calibration":
                return
            few = {"time_limit": 0.1, "fewest": 3, "most": 5, "shortest": options["shortest"]}
            with devices.threads(1):
                alone = timer.back_to_back([call], self.clock, **few)
            yield Sample(
                point=point, metric="time_one_thread", unit="s", values=alone.values, status="ok", timing=alone.timing
            )
            self.doubt_overhead(dtype, n, median(alone.values))
            faster = median(timed.values) / median(alone.values)
            if faster >= HINDERED or (n >= LARGE and faster > 1 / 0.9):
                self.warnings.append(
                    f"{point['case']}: disturbed: one thread is faster than {threads}, so something else used the cores"
                )

    def remember(self, dtype: str, n: int, seconds: float) -> None:
        """Keep what a product took for those that follow."""
        if n == TINY:
            self.overheads[dtype] = seconds
        else:
            self.last[dtype] = n, seconds
            self.doubt_overhead(dtype, n, seconds)

    def doubt_overhead(self, dtype: str, n: int, seconds: float) -> None:
        """Warn, once a dtype, where a product took less time than the tiny one."""
        waited = self.overheads.get(dtype, 0.0)
        if waited > OVERHEAD_LONGER[self.device.type] * seconds:
            self.warnings.append(
                f"overhead-{dtype}: disturbed: the product of size {TINY} took {waited:.3g} s and the one of size {n} "
                f"{seconds:.3g} s, so something else ran"
            )
            del self.overheads[dtype]

    def error(self, point: dict[str, Any]) -> Iterator[Sample]:
        """The relative error of a product, and the largest magnitudes of its inputs."""
        dtype, n = point["dtype"], point["m"]
        self.not_too_long(dtype, n, 5 * LONGEST)  # called once or twice, not repeated
        torch = devices.import_torch()
        a, b = self.inputs(n)
        with devices.float32_as(dtype):
            made = product(dtype, a, b)
            difference = made.exact(made.call()) - self.reference(n)
        value = float(torch.linalg.norm(difference) / torch.linalg.norm(self.reference(n)))
        yield Sample(point=point, metric="error", unit="", values=[value], status="ok")
        largest = [float(m.abs().max()) for m in (a, b)]
        yield Sample(point=point, metric="absmax", unit="", values=largest, status="ok")

    def memory(self, point: dict[str, Any], variant: Variant, what: str) -> Iterator[Sample]:
        """Bytes of one part of a step; for the whole step and its activations also what they consist of."""
        if self._step is None or self._step[0] != variant.name:
            self._step = self._inputs = self._reference = None  # the products' matrices make room
            size = DECODERS[self.scale]
            self._step = variant.name, step_bytes(size, variant, self.device)
        found = self._step[1]
        yield Sample(point=point, metric="memory", unit="B", values=[float(found[what])], status="ok")
        parts = {
            "step": (*PARTS, "activations", "outside", "after_forward", "rounding"),
            "activations": ("counted", "weight_copies", *(n for n in found if n.startswith("kept_"))),
        }.get(what, ())
        for name in parts:
            if name in found:
                yield Sample(point=point, metric=name, unit="B", values=[float(found[name])], status="ok")


class Precision:
    """The experiment: see the module's text."""

    topic = "precision"
    scales = ("smoke", "cpu", "gpu")

    def plan(self, scale: str, device: Any, environment: Environment, resumed: Record | None) -> Plan:
        """The cases of a scale on a device, in the order they are measured. Builds no tensor."""
        warnings: list[str] = []
        session = Session(scale, device, warnings)
        for sample in resumed.samples if resumed else []:
            if sample.metric == "time" and sample.status == "ok" and "m" in sample.point:
                session.remember(str(sample.point["dtype"]), int(sample.point["m"]), median(sample.values))
        dtypes = [d for d in DTYPES if device.type == "cuda" or d != "tf32"]
        sizes = self._sizes(scale, environment)
        cases = []
        for dtype in dtypes:
            cases.append(self._product(f"overhead-{dtype}", dtype, TINY, "calibration", session))
            for n in sizes:
                role = "calibration" if n == sizes[-1] else "product"
                cases.append(self._product(f"matmul-{dtype}-{n}", dtype, n, role, session))
        middle = MIDDLE if MIDDLE in sizes else sizes[-2]
        for n in (sizes[0], middle, sizes[-1]):
            cases += [self._error(dtype, n, n == sizes[-1], session) for dtype in dtypes if dtype != "fp64"]
        variants = [*VARIANTS, *(GPU_ONLY if device.type == "cuda" else ())]
        for weights in ("fp32", "bf16", "autocast"):
            for variant in (v for v in variants if v.weights == weights):
                first = variant == next(v for v in variants if v.weights == weights) and weights != "autocast"
                for what in (*(PARTS if first else ()), "activations", "step"):
                    cases.append(self._memory(what, variant, memory.method_for(device), session))
        spec: dict[str, Any] = {
            "scale": scale, "seed": SEED, "timer": TIMER[scale], "longest": LONGEST, "dtypes": dtypes, "sizes": sizes,
            "decoder": DECODERS[scale] | {"tied_embeddings": True, "positions": DECODERS[scale]["sequence_length"]},
            "dropout": DROPOUT, "optimizer": "AdamW", "method": memory.method_for(device),
            "instructions": devices.instructions(device),
            "cases": [c.name for c in cases],
        }  # fmt: skip
        if device.type == "cuda":
            cuda = devices.import_torch().backends.cuda.matmul
            spec["reduced_precision_reduction"] = {
                "bf16": bool(cuda.allow_bf16_reduced_precision_reduction),
                "fp16": bool(cuda.allow_fp16_reduced_precision_reduction),
            }
        return Plan(spec, cases, warnings)

    def _sizes(self, scale: str, environment: Environment) -> list[int]:
        """Rows of the products, rising; the last one calibrates."""
        if scale == "smoke":
            return [48, 96, 192]
        if scale == "gpu":
            return [512, 1024, 2048, 4096, 8192]
        large = 2048 if (environment.cores or 1) <= 8 else 4096
        return [large // 8, large // 4, large // 2, large]

    def _product(self, case: str, dtype: str, n: int, role: str, session: Session) -> Case:
        point = _point(case, role, dtype, n) | {"series": f"{dtype} by size"}
        return Case(point, lambda: session.time(point))

    def _error(self, dtype: str, n: int, largest: bool, session: Session) -> Case:
        role = "calibration" if dtype == "fp32" and largest else "error"
        point = _point(f"error-{dtype}-{n}", role, dtype, n) | {"series": f"{dtype} error by size"}
        return Case(point, lambda: session.error(point), metric="error", unit="")

    def _memory(self, what: str, variant: Variant, method: str, session: Session) -> Case:
        name = f"{what}-{variant.weights if what in PARTS else variant.name}"
        point: dict[str, Any] = {
            "case": name, "role": what, "weights": variant.weights, "attention": variant.attention,
            "dropout": variant.dropout, "recomputation": variant.recomputation, "method": method,
            **DECODERS[session.scale], "series": what,
        }  # fmt: skip
        return Case(point, lambda: session.memory(point, variant, what), metric="memory", unit="B")


def _point(case: str, role: str, dtype: str, n: int) -> dict[str, Any]:
    return {
        "case": case, "role": role, "kernel": "matmul", "m": n, "n": n, "k": n, "dtype": dtype,
        "bytes_per_element": int(BYTES_PER_ELEMENT[dtype]),
    }  # fmt: skip


EXPERIMENT = Precision()
