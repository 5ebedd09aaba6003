"""Checkers of the mixed-precision chapter's code and measurement exercises."""

from __future__ import annotations

import copy
import itertools
import math
import random
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from efflab.errors import EfflabError
from efflab.exercises.checks import FLOAT32, NotYet, Subject, close, recognise, short, written
from efflab.exercises.checks.records import (
    FP32_EQUAL,
    at_scale,
    command,
    measured,
    own,
    sample_of,
    steady,
    text,
    timed_well,
    whole,
    within_datasheet,
)
from efflab.experiments import ablation, sprint
from efflab.records import Record, Sample, median
from efflab.units import BYTE, SECOND, show

# 1. The loss scale as a control loop


def _scaler_history(overflows: Sequence[bool], scale: float, growth_interval: int) -> list[float]:
    """The scales of torch.amp.GradScaler itself, driven with gradients that are infinite or not."""
    import torch

    scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=growth_interval)
    weight = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.SGD([weight], lr=0.0)
    scaler.scale(torch.zeros(()))  # makes the scale's tensor
    found = [scaler.get_scale()]
    for overflow in overflows:
        weight.grad = torch.full((1,), math.inf if overflow else 1.0)
        scaler.step(optimizer)
        scaler.update()
        found.append(scaler.get_scale())
    return found


def _scales(
    overflows: Sequence[bool],
    scale: float,
    growth_interval: int,
    *,
    reset: bool = True,
    again: bool = True,
    late: int = 0,
    grows: bool = True,
    backs: bool = True,
    growth: float = 2.0,
    backoff: float = 0.5,
    least: float = 0.0,
    to: float | None = None,
) -> list[float]:
    """A history of loss scales under a rule with one thing changed."""
    found, clean = [scale], 0
    for overflow in overflows:
        if overflow:
            scale = max(least, (scale * backoff if to is None else to) if backs else scale)
            clean = 0 if reset else clean
        else:
            clean += 1
            if clean >= growth_interval + late:
                scale *= growth if grows else 1
                clean = 0 if again else clean
        found.append(scale)
    return found


SCALE_MISTAKES: tuple[tuple[str, dict[str, Any], str], ...] = (
    ("never grew", {"grows": False}, "it never grows. After growth_interval steps without overflow it doubles."),
    ("never fell", {"backs": False}, "it does not fall after an overflow. It halves."),
    (
        "overflow does not reset the counter",
        {"reset": False},
        "the steps without overflow were counted across an overflow. An overflow sets the counter to zero.",
    ),
    (
        "growth does not reset the counter",
        {"again": False},
        "once it has grown it grows with every further step. A growth sets the counter to zero.",
    ),
    (
        "one step late",
        {"late": 1},
        "it grows one step late: after growth_interval steps without overflow, and not after one more.",
    ),
    ("one step early", {"late": -1}, "it grows one step early: growth_interval steps without overflow come first."),
    ("never below one", {"least": 1.0}, "it stops at 1. GradScaler has no lower bound: large gradients may need 2⁻³."),
    ("halved twice", {"backoff": 0.25}, "an overflow takes a quarter. GradScaler's backoff factor is 1/2."),
    ("another factor", {"growth": 10.0}, "it grows by another factor than 2."),
)


def loss_scale_history(answer: Any) -> None:
    """The scales of GradScaler over many histories of overflows."""
    function = Subject(answer, "loss_scale_history", "overflows", "scale", "growth_interval")
    draw = random.Random(31)
    cases: list[tuple[list[bool], float, int]] = [
        ([False] * 7, 1024.0, 3),
        ([True] * 4 + [False] * 3, 65536.0, 2000),
        ([False, True, False, False, True, False, False, False], 4096.0, 2),
        ([False, False, True, False, False, False, False], 256.0, 3),
        ([True] * 5, 4.0, 1),
        ([False] * 4, 8.0, 1),
        ([], 65536.0, 2000),
    ]
    for _ in range(25):
        share = draw.choice([0.05, 0.2, 0.5])
        history = [draw.random() < share for _ in range(draw.randint(1, 40))]
        cases.append((history, 2.0 ** draw.randint(0, 20), draw.randint(1, 8)))
    got = []
    for overflows, scale, interval in cases:
        arguments = {"overflows": list(overflows), "scale": scale, "growth_interval": interval}
        function.describe = (
            lambda o=overflows, s=scale, n=interval, **_: (  # type: ignore[method-assign]
                f"loss_scale_history([{', '.join(map(str, o[:8]))}{', …' if len(o) > 8 else ''}], {s:g}, {n})"
            )
        )
        call, value = function.describe(), function(**arguments)
        if value is None:
            raise NotYet(f"{call} returns nothing. Is the `return` missing?")
        got.append((call, _numbers(call, value)))
    rights = [_scaler_history(*case) for case in cases]
    for (call, values), right in zip(got, rights, strict=True):
        if len(values) == len(right):
            continue
        if len(values) == len(right) - 1 and len(right) > 1:
            which = "the one before the first step" if values == right[1:] else "one of them, perhaps the last"
            raise NotYet(
                f"{call} gives {len(values)} scales; {len(right)} are expected: before the first step and after "
                f"each. You left out {which}.",
                "one too few",
            )
        raise NotYet(f"{call} gives {len(values)} scales; {len(right)} are expected: before the first step and after "
                     "each.")  # fmt: skip
    wrong = next((i for i, right in enumerate(rights) if got[i][1] != right), None)
    if wrong is None:
        return
    (call, values), right, (overflows, _, _) = got[wrong], rights[wrong], cases[wrong]
    step = next(i for i, (a, b) in enumerate(zip(values, right, strict=True)) if a != b)
    after = f"after step {step}" if step else "before the first step"
    said = f"{call}: {after} the scale is {short(values[step])}; GradScaler's is {right[step]:g}"
    for name, rule, why in SCALE_MISTAKES:
        if all(v == _scales(*case, **rule) for (_, v), case in zip(got, cases, strict=True)):
            raise NotYet(f"{said}: {why}", name)
    if all(v == _scales(*case, to=case[1]) for (_, v), case in zip(got, cases, strict=True)):
        raise NotYet(f"{said}: an overflow took it back to where it began. It halves.", "back to the beginning")
    what = "" if not step else " Step {} {}.".format(step, "overflowed" if overflows[step - 1] else "did not overflow")
    raise NotYet(f"{said}.{what}")


def _numbers(call: str, value: Any) -> list[float]:
    """A learner's list of numbers as floats."""
    try:
        if isinstance(value, str | bytes | dict | set):
            raise TypeError
        items = list(value)
    except Exception:  # the object is the learner's and may raise anything
        raise NotYet(f"{written(call, value)}; a list of numbers is expected.") from None
    found = []
    for i, item in enumerate(items):
        try:
            if isinstance(item, bool | str | bytes):
                raise TypeError
            found.append(float(item))
        except Exception:
            raise NotYet(f"{call}: entry {i} is {short(item)}; a number is expected.") from None
    return found


# 2. What a step gains


def amp_speedup(answer: Any) -> None:
    """Amdahl's law with a speedup for each part; what no part names stays as it was."""
    function = Subject(answer, "amp_speedup", "shares", "speedups")
    draw = random.Random(32)
    cases: list[tuple[list[float], list[float]]] = [
        ([0.7, 0.3], [6.0, 1.2]),
        ([0.7, 0.2], [6.0, 1.5]),
        ([0.5], [8.0]),
        ([1.0], [3.0]),
        ([0.6, 0.4], [1.0, 1.0]),
        ([0.4, 0.4], [4.0, 0.8]),
    ]
    for _ in range(40):
        n = draw.randint(1, 4)
        cuts = sorted(round(draw.random(), 3) for _ in range(n))
        shares = [round(b - a, 3) for a, b in zip([0.0, *cuts], cuts, strict=False)]
        cases.append((shares, [round(draw.choice([0.5, 0.9, 1.5, 3.0, 8.0, 15.0]) * draw.uniform(1, 1.3), 2)
                               for _ in shares]))  # fmt: skip
    got = []
    for shares, speedups in cases:
        function.describe = lambda a=shares, b=speedups, **_: (  # type: ignore[method-assign]
            f"amp_speedup({a}, {b})"
        )
        got.append(function.number(shares=list(shares), speedups=list(speedups)))

    def right(shares: Sequence[float], speedups: Sequence[float]) -> float:
        return 1 / (sum(f / s for f, s in zip(shares, speedups, strict=True)) + 1 - sum(shares))

    def divided(a: float, b: float) -> float:
        return a / b if b else math.inf

    rules: tuple[tuple[str, Callable[[Sequence[float], Sequence[float]], float], str], ...] = (
        (
            "left out the rest",
            lambda f, s: divided(1, sum(a / b for a, b in zip(f, s, strict=True))),
            "the shares do not add up to 1 there, and what they leave out takes as long as before.",
        ),
        (
            "averaged the speedups",
            lambda f, s: sum(a * b for a, b in zip(f, s, strict=True)),
            "the speedups were averaged. Times add up, and speedups do not: share / speedup is what is left of a part.",
        ),
        (
            "averaged the speedups",
            lambda f, s: sum(a * b for a, b in zip(f, s, strict=True)) + 1 - sum(f),
            "the speedups were averaged. Times add up, and speedups do not: share / speedup is what is left of a part.",
        ),
        (
            "gave the time",
            lambda f, s: 1 / right(f, s),
            "that is the time that is left, as a share. Its reciprocal is asked for.",
        ),
        (
            "multiplied",
            lambda f, s: math.prod(s),
            "the speedups were multiplied. Each one speeds up its own part.",
        ),
        (
            "applied Amdahl's law to one part after another",
            lambda f, s: math.prod(1 / (1 - a + a / b) for a, b in zip(f, s, strict=True)),
            "Amdahl's law was applied part after part. All shares are of the step in FP32, so add up what is left.",
        ),
        ("the largest speedup", lambda f, s: max([1.0, *s]), "a part's speedup is not the step's."),
        (
            "the first part alone",
            lambda f, s: right(f[:1], s[:1]),
            "only the first part became faster. Each has its own speedup.",
        ),
        (
            "no part slower",
            lambda f, s: right(f, [max(1.0, b) for b in s]),
            "a part may also become slower, by the casts that are added: its speedup is then below 1.",
        ),
    )
    wrong = next((i for i, (f, s) in enumerate(cases) if not close(got[i], right(f, s), 1e-9)), None)
    if wrong is None:
        function.describe = lambda **_: "amp_speedup([], [])"  # type: ignore[method-assign]
        nothing = function.number(shares=[], speedups=[])
        if not close(nothing, 1.0, 1e-9):
            raise NotYet(f"{written('amp_speedup([], [])', nothing)}. Where no part becomes faster the speedup is 1.")
        return
    shares, speedups = cases[wrong]
    said = written(f"amp_speedup({shares}, {speedups})", got[wrong])
    for name, rule, why in rules:
        if all(close(g, rule(f, s), 1e-9) for g, (f, s) in zip(got, cases, strict=True) if s):
            raise NotYet(f"{said}: {why}", name)
    for name, rule, why in rules:
        if close(got[wrong], rule(shares, speedups), 1e-9):
            raise NotYet(f"{said}: {why}", name)
    left = 1 / right(shares, speedups)
    raise NotYet(f"{said}. By hand: {left:.5g} of the time is left, so {1 / left:.5g}.")


# 3. What FP16 keeps


def surviving_share(answer: Any) -> None:
    """Share of the gradients that are neither zero nor infinite in FP16 after scaling."""
    import numpy as np

    function = Subject(answer, "surviving_share", "gradients", "scale")
    draw = random.Random(33)

    def half(values: Any) -> Any:
        with np.errstate(over="ignore", under="ignore"):
            return np.asarray(values, dtype=np.float64).astype(np.float16)

    def kept(g: list[float], scale: float) -> Any:
        rounded = half(np.array(g) * scale)
        return (rounded != 0) & np.isfinite(rounded)

    def right(g: list[float], scale: float) -> float:
        there = np.array(g) != 0
        return float(kept(g, scale)[there].sum() / there.sum())

    def log_normal(n: int, middle: int) -> list[float]:
        return [draw.choice([-1, 1]) * 2.0 ** draw.gauss(middle, 6) for _ in range(n)]

    # Numbers that FP32 holds, so that a way through FP32 rounds them once.
    def narrow(values: list[float]) -> list[float]:
        return [float(np.float32(v)) for v in values]

    cases: list[tuple[list[float], float]] = [
        (narrow(log_normal(200, -24)), 1.0),
        (narrow(log_normal(200, -24)), 1024.0),
        (narrow(log_normal(200, -6)), 65536.0),
        ([1e-8, 2e-8, 4e-8, 5e-8, 1e-7, 1.0], 1.0),  # around half of the smallest number
        ([-1e-8, -1e-7, -1.0, 1e-8], 1.0),
        ([0.0, 0.0, 0.0, 1e-3, 1e-9], 1.0),
        ([1.0, 2.0, 3.0, 0.5], 32768.0),  # some overflow
        ([65505.0, 65519.0, 65521.0, 70000.0], 1.0),  # what rounds to the largest number, and what to infinity
        ([1e-6, 3e-6, 2e-5], 1.0),  # subnormal numbers are kept
        ([-5.0, -0.5, -1e-9, 0.0], 16384.0),
    ]
    for _ in range(12):
        middle, scale = draw.randint(-30, 0), 2.0 ** draw.randint(0, 20)
        cases.append((narrow(log_normal(60, middle)) + [0.0] * draw.randint(0, 20), scale))
    got = []
    for i, (g, scale) in enumerate(cases):
        shown = f"[{', '.join(f'{x:.6g}' for x in g[:6])}{', …' if len(g) > 6 else ''}]"
        function.describe = lambda a=shown, s=scale, **_: f"surviving_share({a}, {s:g})"  # type: ignore[method-assign]
        got.append((function.describe(), function.number(gradients=list(g), scale=scale)))
        if not i and not math.isfinite(got[0][1]):
            raise NotYet(f"{written(*got[0])}; a share lies between 0 and 1.")

    def share(mask: Any, of: Any) -> float:
        return float(mask.sum() / of.sum())

    def rule(keep: Callable[[Any, float], Any], all_of_them: bool = False) -> Callable[[list[float], float], float]:
        def apply(g: list[float], scale: float) -> float:
            values = np.array(g)
            there = np.ones(len(g), bool) if all_of_them else values != 0
            return share(np.asarray(keep(values, scale)) & there, there)

        return apply

    smallest, least_normal = 2.0**-24, 2.0**-14

    def above(limit: float) -> Callable[[Any, float], Any]:
        return lambda v, s: (np.abs(v * s) >= limit) & np.isfinite(half(v * s))

    rules: tuple[tuple[str, Callable[[list[float], float], float], str], ...] = (
        (
            "counted the zeros",
            rule(lambda v, s: kept(list(v), s), True),
            "gradients that are zero themselves were counted as lost. They have nothing to lose: leave them out.",
        ),
        (
            "counted the zeros",
            rule(lambda v, s: kept(list(v), s) | (v == 0), True),
            "gradients that are zero themselves were counted as kept. They have nothing to lose: leave them out.",
        ),
        ("forgot the scale", rule(lambda v, s: kept(list(v), 1.0)), "the scale changes nothing in yours."),
        (
            "scaled after rounding",
            rule(lambda v, s: np.isfinite(h := half(half(v).astype(np.float64) * s)) & (h != 0)),
            "the gradients were rounded to FP16 first and scaled then. What is lost does not come back: scale first.",
        ),
        ("divided by the scale", rule(lambda v, s: kept(list(v), 1 / s)), "the scale was divided by. Multiply by it."),
        (
            "forgot the overflow",
            rule(lambda v, s: half(v * s) != 0),
            "what overflows was counted as kept. From 65,520 on FP16 has infinity.",
        ),
        (
            "forgot the underflow",
            rule(lambda v, s: np.isfinite(half(v * s))),
            "what becomes zero was counted as kept.",
        ),
        (
            "smallest number without rounding",
            rule(above(smallest)),
            "what lies between half of the smallest number, 2⁻²⁵, and the smallest one, 2⁻²⁴, is rounded up to it "
            "and not lost.",
        ),
        (
            "normal numbers only",
            rule(above(least_normal)),
            "subnormal numbers, from 2⁻²⁴ to 2⁻¹⁴, were counted as lost. They have fewer digits and are kept.",
        ),
        (
            "negative gradients",
            rule(lambda v, s: kept(list(v), s) & (v > 0)),
            "negative gradients were counted as lost. Their magnitude counts.",
        ),
        (
            "equal after a round trip",
            rule(lambda v, s: half(v * s).astype(np.float64) / s == v),
            "only gradients that FP16 holds exactly were counted. A rounded one is kept too.",
        ),
        ("gave the lost share", lambda g, s: 1 - right(g, s), "that is the share that is lost."),
        (
            "gave the number",
            lambda g, s: float(kept(g, s)[np.array(g) != 0].sum()),
            "that is how many are kept. Divide by how many there are.",
        ),
        ("percent", lambda g, s: 100 * right(g, s), "that is in percent. A share lies between 0 and 1."),
    )
    wrong = next((i for i, (g, s) in enumerate(cases) if not close(got[i][1], right(g, s), FLOAT32)), None)
    if wrong is None:
        return
    g, scale = cases[wrong]
    said = written(*got[wrong])
    for name, mistaken, why in rules:
        if all(close(v, mistaken(a, s), FLOAT32) for (_, v), (a, s) in zip(got, cases, strict=True)):
            raise NotYet(f"{said}: {why}", name)
    for name, mistaken, why in rules:
        if close(got[wrong][1], mistaken(g, scale), FLOAT32) and not close(got[wrong][1], right(g, scale), FLOAT32):
            raise NotYet(f"{said}: {why}", name)
    there = sum(x != 0 for x in g)
    raise NotYet(f"{said}; {int(kept(g, scale).sum())} of {there} are kept, {right(g, scale):.5g}.")


# 4. Which dtype each module returns


def _autocast_models() -> Iterator[tuple[str, Any, Any]]:
    """Small models with their inputs. PyTorch's random state, which is the learner's, stays as it was."""
    import torch
    from torch import nn

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.inner = nn.LayerNorm(16), nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))
            self.last = nn.Identity()

        def forward(self, x: Any) -> Any:
            return self.last(x + self.inner(self.norm(x)))

    class Wide(nn.Module):
        """A module that leaves autocast for a part."""

        def __init__(self) -> None:
            super().__init__()
            self.narrow, self.wide = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x: Any) -> Any:
            with torch.autocast(x.device.type, enabled=False):
                y = self.wide(x.float())
            return self.narrow(y)

    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(34)
        models = (
            ("two linear layers and a ReLU", nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)),
             torch.randn(3, 8)),
            ("a block with a residual sum", Block(), torch.randn(4, 16)),
            ("an embedding and a head", nn.Sequential(nn.Embedding(10, 8), nn.LayerNorm(8), nn.Linear(8, 10)),
             torch.arange(6)),
            ("a model that leaves autocast for one layer", Wide(), torch.randn(2, 8)),
            ("a convolution", nn.Sequential(nn.Conv1d(3, 4, 2), nn.Flatten(), nn.Linear(12, 2), nn.Softmax(-1)),
             torch.randn(2, 3, 4)),
        )  # fmt: skip
    yield from models


def _dtypes(model: Any, x: Any, dtype: Any, *, inputs: bool = False, every: bool = False) -> dict[str, Any]:
    """What each module without submodules returns, or takes, under autocast; without autocast where dtype is None."""
    import torch

    found: dict[str, Any] = {}
    handles = []
    for name, module in model.named_modules():
        if every or not any(True for _ in module.children()):

            def hook(module: Any, given: Any, output: Any, name: str = name) -> None:
                found[name] = (given[0] if inputs else output).dtype

            handles.append(module.register_forward_hook(hook))
    with torch.no_grad(), torch.autocast(x.device.type, dtype or torch.bfloat16, enabled=dtype is not None):
        model(x)
    for handle in handles:
        handle.remove()
    return found


def autocast_dtypes(answer: Any) -> None:
    """The dtype that each module returns under autocast."""
    import torch

    function = Subject(answer, "autocast_dtypes", "model", "x", "dtype")
    for what, model, x in _autocast_models():
        for dtype in (torch.bfloat16, torch.float16):
            call = f"autocast_dtypes of {what}, {_short(dtype)}"
            function.describe = lambda c=call, **_: c  # type: ignore[method-assign]
            right = _dtypes(model, x, dtype)
            calls: list[None] = []
            counter = model.register_forward_pre_hook(lambda *_, c=calls: c.append(None))
            try:
                value = function(model=model, x=x, dtype=dtype)
            finally:
                counter.remove()
            if value is None:
                raise NotYet(f"{call} returns nothing. Is the `return` missing?")
            if any(p.dtype != torch.float32 for p in model.parameters()):
                raise NotYet(
                    f"{call}: afterwards the parameters are no longer in FP32. Autocast leaves them as they are, and "
                    "casts copies: call the model inside torch.autocast(x.device.type, dtype).",
                    "converted the model",
                )
            if any(m._forward_hooks or m._forward_pre_hooks for m in model.modules()):
                raise NotYet(
                    f"{call}: afterwards hooks are left on the model. register_forward_hook returns a handle: call its "
                    "remove().",
                    "hooks left",
                )
            if not isinstance(value, dict):
                raise NotYet(f"{written(call, value)}; a dictionary from names to dtypes is expected.")
            if not calls:
                raise NotYet(f"{call} never calls the model. The dtypes show when it runs.", "model not called")
            _compare_dtypes(call, dict(value), right, model, x, dtype)


def _short(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")


def _compare_dtypes(call: str, found: dict[Any, Any], right: dict[str, Any], model: Any, x: Any, dtype: Any) -> None:
    import torch

    try:
        same = found == right
    except Exception:  # the objects are the learner's and may raise anything
        same = False
    if same:
        return
    strange = next((v for v in found.values() if not isinstance(v, torch.dtype)), None)
    if strange is not None:
        raise NotYet(f"{call}: {short(strange)} is no dtype. Take output.dtype, such as torch.float32.", "no dtype")
    if "" in found:
        raise NotYet(
            f"{call}: the name '' is the model itself. Only modules without submodules are asked for.", "containers too"
        )
    more = [str(n) for n in found if n not in right]
    known = dict(model.named_modules())
    if more:
        if any(n in known for n in more):
            raise NotYet(
                f"{call}: {', '.join(more)} holds other modules. Only modules without submodules are asked for: those "
                "without children().",
                "containers too",
            )
        raise NotYet(
            f"{call}: {', '.join(more[:3])} is no name of model.named_modules(); those are {', '.join(right)}.", "names"
        )
    missing = [n for n in right if n not in found]
    if missing:
        raise NotYet(f"{call}: {', '.join(missing)} is missing. Every module without submodules is asked for.")
    name = next(n for n in right if found[n] != right[n])
    said = (
        f"{call}: {name}, a {type(known[name]).__name__}, gives {_short(found[name])}; with autocast it returns "
        f"{_short(right[name])}"
    )
    other = torch.float16 if dtype == torch.bfloat16 else torch.bfloat16
    for mistake, guess, why in (
        (
            "no autocast",
            _dtypes(model, x, None),
            "Yours are the dtypes without autocast. Call the model inside torch.autocast(x.device.type, dtype).",
        ),
        (
            "another dtype",
            _dtypes(model, x, other),
            f"Yours are those of autocast to {_short(other)}. Pass dtype on.",
        ),
        (
            "inputs",
            _dtypes(model, x, dtype, inputs=True),
            "Yours are the dtypes of the inputs. A forward hook is called with (module, inputs, output).",
        ),
        (
            "all in the narrow dtype",
            dict.fromkeys(right, dtype),
            "Not everything runs in the narrow dtype: what autocast does not list runs in the dtype of its input, and "
            "a sum with an FP32 number is FP32.",
        ),
        (
            "parameters",
            {n: next((p.dtype for p in known[n].parameters()), torch.float32) for n in right},
            "Yours are the dtypes of the parameters. They stay in FP32 under autocast; ask for the output's.",
        ),
    ):
        if found == guess:
            raise NotYet(f"{said}. {why}", mistake)
    raise NotYet(f"{said}.")


# 5. Accumulation


def _gradient(model: Any) -> Any:
    """All gradients as one vector; zeros where there is none."""
    import torch

    return torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in model.parameters()])


def _near(a: Any, b: Any, relative: float) -> bool:
    """Two vectors differ by less than a share of the second one's norm."""
    return bool((a - b).norm() <= relative * b.norm())


def _token_models() -> Iterator[tuple[str, Any, list[tuple[Any, Any]], int]]:
    """A model of tokens in float64, microbatches of different numbers of tokens, and the index of padding."""
    import torch
    from torch import nn

    draw = random.Random(35)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(35)

        def make(rows: list[tuple[int, int, float]], ignore: int) -> tuple[Any, list[tuple[Any, Any]]]:
            model = nn.Sequential(nn.Embedding(7, 5), nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 7)).double()
            batches = []
            for size, length, padded in rows:
                tokens, targets = torch.randint(7, (size, length)), torch.randint(1, 7, (size, length))
                for row in targets:
                    keep = max(1, round(length * (1 - padded * draw.random()))) if padded < 1 else 0
                    row[keep:] = ignore
                batches.append((tokens, targets))
            return model, batches

        cases = [
            ("4 microbatches of equal size without padding", -100, [(3, 6, 0.0)] * 4),
            ("3 microbatches with padding", -100, [(4, 8, 0.9), (2, 8, 0.3), (3, 5, 0.0)]),
            ("3 microbatches of different lengths", -100, [(2, 12, 0.0), (5, 3, 0.0), (1, 4, 0.0)]),
            ("5 microbatches of different sizes, padding is 0", 0,
             [(4, 9, 0.8), (1, 9, 0.0), (4, 2, 0.5), (3, 9, 0.9), (2, 5, 0.2)]),
            ("1 microbatch", -100, [(3, 5, 0.5)]),
            ("3 microbatches, one of padding alone", -100, [(2, 6, 0.4), (2, 6, 1.0), (3, 4, 0.2)]),
        ]  # fmt: skip
        made = [(what, *make(rows, ignore), ignore) for what, ignore, rows in cases]
    yield from made


def accumulate(answer: Any) -> None:
    """The gradient of the mean over all tokens that count, one microbatch at a time."""
    import torch
    from torch.nn import functional as f

    function = Subject(answer, "accumulate", "model", "loss_fn", "batches", "ignore_index")
    for what, model, batches, ignore in _token_models():

        def loss_fn(logits: Any, targets: Any, ignore: int = ignore) -> Any:
            return f.cross_entropy(logits.flatten(0, -2), targets.flatten(), ignore_index=ignore)

        # The whole batch: every token's loss, all in one graph.
        counts = [int((t != ignore).sum()) for _, t in batches]
        each = [f.cross_entropy(model(x).flatten(0, -2), t.flatten(), ignore_index=ignore, reduction="sum")
                for x, t in batches]  # fmt: skip
        total, own_gradients = sum(counts), []
        for loss in each:
            model.zero_grad()
            loss.backward(retain_graph=True)
            own_gradients.append(_gradient(model).clone())
        model.zero_grad()
        mean = sum(each) / total
        mean.backward()
        right, right_loss = _gradient(model).clone(), float(mean.detach())
        sums = [float(loss.detach()) for loss in each]
        model.zero_grad()

        call = f"accumulate over {what}"
        function.describe = lambda c=call, **_: c  # type: ignore[method-assign]
        before = [p.detach().clone() for p in model.parameters()]
        events: list[str] = []

        def note(module: Any, given: Any, output: Any, events: list[str] = events) -> None:
            events.append("forward")
            if output.requires_grad:
                output.register_hook(lambda g: events.append("backward"))

        handle = model.register_forward_hook(note)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # a loss that still requires grad, as a number
                loss = _loss_of(function, call, model=model, loss_fn=loss_fn, batches=list(batches),
                                ignore_index=ignore)  # fmt: skip
        finally:
            handle.remove()
        got = _gradient(model)
        if any(not torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True)):
            raise NotYet(f"{call} changed the parameters. It leaves gradients; the optimiser comes later.", "stepped")
        if "forward" not in events:
            raise NotYet(f"{call} never calls the model.")
        if "backward" not in events:
            raise NotYet(f"{call}: no backward pass. Call backward() for each microbatch.", "no gradient")
        opened = most = 0
        for event in events:
            opened = opened + 1 if event == "forward" else 0
            most = max(most, opened)
        if not bool(got.isfinite().all()) or math.isnan(loss):
            raise NotYet(
                f"{call} gives NaN. The mean over no tokens is 0/0, and NaN times 0 is NaN. A microbatch in which no "
                "token counts adds nothing: leave it out.",
                "mean over nothing",
            )
        if most > 1 + (0 in counts):
            raise NotYet(
                f"{call} runs {most} forward passes before a backward pass, so {most} graphs are in memory at once. "
                "Call backward() for each microbatch before the next one begins: that is what accumulation is for.",
                "all graphs at once",
            )
        if not _near(got, right, FLOAT32):
            _wrong_gradient(call, got, right, own_gradients, counts, batches)
        if not close(loss, right_loss, FLOAT32):
            means = [s / n for s, n in zip(sums, counts, strict=True) if n]
            said = f"{call}: the gradients are right, and the loss that it returns is {loss:.6g}"
            recognise(
                said,
                loss,
                (
                    (
                        "loss is the mean of means",
                        sum(means) / len(means),
                        "the mean of the microbatches' means. Weigh them by their tokens, as the gradients.",
                    ),
                    ("loss of the last microbatch", means[-1], "that of the last microbatch. Add up all of them."),
                    ("loss is a sum", sum(sums), "the sum over the tokens. Divide by their number."),
                    ("loss is a sum", sum(means), "the sum of the microbatches' means."),
                    *(
                        ("loss of the last microbatch", s / total, "the last microbatch's part alone.")
                        for s in sums
                        if s
                    ),
                ),
                FLOAT32,
            )
            raise NotYet(f"{said}; the mean over all {total} tokens that count is {right_loss:.6g}.")


def _loss_of(function: Subject, call: str, **arguments: Any) -> float:
    """The loss that a learner's function returns; NaN is judged by the caller, with the gradients."""
    value = function(**arguments)
    if value is None:
        raise NotYet(f"{call} returns nothing. Return the mean loss.")
    try:
        if isinstance(value, bool | str | bytes):
            raise TypeError
        return float(value)
    except Exception:  # the object is the learner's and may raise anything
        raise NotYet(f"{written(call, value)}; the mean loss is expected, one number.") from None


def _wrong_gradient(
    call: str, got: Any, right: Any, summed: list[Any], counts: list[int], batches: list[tuple[Any, Any]]
) -> None:
    """Name the mistake that a wrong accumulated gradient comes from. `summed`: of each microbatch's summed loss."""
    said = f"{call}: the gradient's norm is {float(got.norm()):.6g}, that of the whole batch {float(right.norm()):.6g}"
    if not bool(got.any()):
        raise NotYet(f"{said}. Is backward() called, and are the gradients not cleared at the end?", "no gradient")
    k, there = len(summed), [i for i, n in enumerate(counts) if n]
    means = {i: summed[i] / counts[i] for i in there}

    def weighted(weights: Sequence[float]) -> Any:
        return sum(weights[i] / sum(weights) * means[i] for i in there)

    elements = [t.numel() for _, t in batches]
    fixed = [int((t != -100).sum()) for _, t in batches]
    tokens = "Weigh each microbatch by the tokens that count in it, over those of all microbatches."
    for name, guess, why in (
        (
            "not divided",
            sum(means.values()),
            f"The microbatches' mean losses were added up and not divided: {k} times too much where they are equal. "
            + tokens,
        ),
        (
            "mean of means",
            sum(means.values()) / k,
            f"Each microbatch's mean was divided by {k}, so a token of a short microbatch counts more than one of a "
            f"long one. {tokens}",
        ),
        (
            "mean of means",
            sum(means.values()) / len(there),
            f"Each microbatch counts the same, so a token of a short one counts more than one of a long one. {tokens}",
        ),
        (
            "ignored another index",
            weighted(fixed),
            "The weights count the targets that are not −100. Padding is ignore_index, which is another number here.",
        ),
        (
            "weighed by all tokens",
            weighted(elements),
            "The weights count padding too. Count the targets that are not ignore_index.",
        ),
        (
            "weighed by sequences",
            weighted([len(t) for _, t in batches]),
            f"The weights count sequences, and these have different numbers of tokens. {tokens}",
        ),
        ("sum over tokens", sum(summed), "That is the gradient of the summed loss. Divide by the tokens that count."),
        (
            "divided twice",
            right / k,
            f"Weighed by the tokens and divided by {k} besides. The weights add up to 1 already.",
        ),
        *(
            (
                "cleared in between",
                part,
                "Only the last microbatch is left. Gradients add up in .grad: do not clear them in between.",
            )
            for part in (means[there[-1]], summed[there[-1]] / sum(counts), means[there[-1]] / k)
        ),
    ):
        if _near(got, guess, FLOAT32):
            raise NotYet(f"{said}. {why}", name)
    off = float((got - right).norm() / right.norm())
    raise NotYet(f"{said}; they differ by {off:.2g} of it. {tokens}")


# 6. One step


def train_step(answer: Any) -> None:
    """Scale, backward, unscale, clip, step, update: judged by what becomes of the parameters and of the scale."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, on a loss that requires grad and on steps that were skipped
        _check_train_step(answer)


class _Bench:
    """A small model with its optimizer, scaler and batch, and what a step did to them."""

    RATE = 0.5

    def __init__(self, scale: float, *, growth_interval: int = 1000, enabled: bool = True) -> None:
        import torch
        from torch import nn

        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(36)
            self.model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4))
            self.batch = torch.randn(12, 8), torch.randint(4, (12,))
        with torch.no_grad():
            for p in self.model.parameters():
                p *= 2  # so that the gradients are not small
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=self.RATE)
        self.events: list[str] = []
        self.scaled: list[Any] = []
        events, scaled = self.events, self.scaled

        class Spy(torch.amp.GradScaler):
            def scale(self, outputs: Any) -> Any:
                events.append("scale")
                scaled.append(outputs.dtype)
                return super().scale(outputs)

            def unscale_(self, optimizer: Any) -> None:
                events.append("unscale_")
                super().unscale_(optimizer)

            def step(self, optimizer: Any, *args: Any, **kwargs: Any) -> Any:
                events.append("step")
                return super().step(optimizer, *args, **kwargs)

            def update(self, new_scale: Any = None) -> None:
                events.append("update")
                super().update(new_scale)

        self.scaler = Spy("cpu", init_scale=scale, growth_interval=growth_interval, enabled=enabled)

        def note(module: Any, given: Any, output: Any) -> None:
            events.append(f"forward in {_short(output.dtype)}")
            if output.requires_grad:
                output.register_hook(
                    lambda g: events.append("backward inside" if torch.is_autocast_enabled("cpu") else "backward")
                )

        self.model[0].register_forward_hook(note)

    def vector(self) -> Any:
        """The parameters as one vector."""
        import torch

        return torch.cat([p.detach().flatten() for p in self.model.parameters()]).clone()

    def right(self) -> tuple[Any, float]:
        """The gradient and the loss of the batch at the present parameters, in float64."""
        import torch

        model = copy.deepcopy(self.model).double()
        for module in model:
            module._forward_hooks.clear()
        model.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(self.batch[0].double()), self.batch[1])
        loss.backward()
        return _gradient(model).float(), float(loss.detach())


CLOSE_ENOUGH = 0.02  # FP16 rounds the gradients of this model by less than a third of it


def _check_train_step(answer: Any) -> None:
    import torch

    function = Subject(answer, "train_step", "model", "optimizer", "scaler", "batch", "clip")

    def step(bench: _Bench, clip: float, what: str) -> tuple[float, Any]:
        """The loss returned, and the change of the parameters over minus the learning rate."""
        function.describe = lambda **_: f"train_step {what}"  # type: ignore[method-assign]
        before = bench.vector()
        value = _loss_of(
            function, f"train_step {what}", model=bench.model, optimizer=bench.optimizer, scaler=bench.scaler,
            batch=bench.batch, clip=clip,
        )  # fmt: skip
        return value, (before - bench.vector()) / bench.RATE

    # No clipping, no overflow: the plain gradient.
    bench = _Bench(1024.0)
    gradient, loss = bench.right()
    norm = float(gradient.norm())
    said = "train_step with a scale of 1,024 and nothing to clip"
    returned, moved = step(bench, 1e6, "with a scale of 1,024 and nothing to clip")
    forward = next((e for e in bench.events if e.startswith("forward")), "")
    if not forward:
        raise NotYet(f"{said} never calls the model.")
    if forward == "forward in float32":
        raise NotYet(
            f"{said}: the first layer gives FP32. Run the forward pass inside "
            "torch.autocast(inputs.device.type, dtype=torch.float16).",
            "no autocast",
        )
    if forward != "forward in float16":
        raise NotYet(f"{said}: the first layer gives {forward.removeprefix('forward in ')}; FP16 is asked for.",
                     "another dtype")  # fmt: skip
    if "scale" not in bench.events:
        raise NotYet(
            f"{said}: scaler.scale was not called. The loss is multiplied by the scale before backward().",
            "loss not scaled",
        )
    if bench.scaled[0] == torch.float16:
        raise NotYet(
            f"{said}: the loss that is scaled is in FP16, where 65,504 is the end. Compute the loss inside autocast: "
            "it takes cross-entropy to FP32.",
            "loss in FP16",
        )
    if not any(e.startswith("backward") for e in bench.events):
        raise NotYet(f"{said}: no backward pass. scaler.scale(loss) returns the scaled loss: call its backward().",
                     "no backward")  # fmt: skip
    if "backward inside" in bench.events:
        raise NotYet(
            f"{said}: the backward pass runs inside autocast. It takes the dtypes of the forward pass by itself: end "
            "the context after the loss.",
            "backward under autocast",
        )
    if "step" not in bench.events:
        if not bool(moved.any()):
            raise NotYet(f"{said}: the parameters stay. Call scaler.step(optimizer).", "no step")
        raise NotYet(
            f"{said}: scaler.step was not called, but the parameters moved. optimizer.step() knows nothing of "
            "overflows: call scaler.step(optimizer).",
            "optimizer.step",
        )
    if "update" not in bench.events:
        raise NotYet(f"{said}: scaler.update was not called, so the scale never changes.", "no update")
    if bench.events.index("update") < bench.events.index("step"):
        raise NotYet(f"{said}: scaler.update comes before scaler.step. It goes last.", "update before step")
    if _near(moved, 1024 * gradient, CLOSE_ENOUGH):
        raise NotYet(f"{said}: the parameters moved by the scaled gradient, 1,024 times too far.", "not unscaled")
    if _near(moved, 2 * gradient, CLOSE_ENOUGH):
        raise NotYet(f"{said}: the parameters moved twice as far as the gradient says. Was optimizer.step() called as "
                     "well?", "stepped twice")  # fmt: skip
    if not bool(moved.any()):
        raise NotYet(f"{said}: the parameters stay. Were the gradients cleared between backward and step?", "no step")
    if not _near(moved, gradient, CLOSE_ENOUGH):
        raise NotYet(f"{said}: the parameters moved by {float(moved.norm()):.4g} times the learning rate, and the "
                     f"gradient's norm is {norm:.4g}.")  # fmt: skip
    _right_loss(said, returned, loss, 1024.0)

    # The next step: gradients of the first one must be gone. At a scale of 1 they show.
    bench = _Bench(1.0)
    step(bench, 1e6, "with a scale of 1")
    gradient_then, _ = bench.right()
    _, moved = step(bench, 1e6, "a second time")
    if _near(moved, gradient + gradient_then, CLOSE_ENOUGH) or not _near(moved, gradient_then, CLOSE_ENOUGH):
        raise NotYet(
            "train_step a second time: the gradients of the first step are still in it. Clear them with "
            "optimizer.zero_grad().",
            "gradients not cleared",
        )

    # Clipping.
    bench, clip = _Bench(1024.0), norm / 8
    said = f"train_step with a gradient of norm {norm:.3g}, a clip of {clip:.3g} and a scale of 1,024"
    _, moved = step(bench, clip, said.removeprefix("train_step "))
    length = float(moved.norm())
    if close(length, clip / 1024, 0.05):
        raise NotYet(
            f"{said}: the parameters moved by {length:.3g} times the learning rate, clip over scale. The scaled "
            "gradients were clipped. Call scaler.unscale_(optimizer) before you clip.",
            "clipped before unscaling",
        )
    if close(length, norm, 0.05):
        raise NotYet(
            f"{said}: the gradient was not clipped. torch.nn.utils.clip_grad_norm_(model.parameters(), clip) goes "
            "between scaler.unscale_(optimizer) and scaler.step(optimizer).",
            "not clipped",
        )
    if not _near(moved, gradient * (clip / norm), 2 * CLOSE_ENOUGH):
        if float(moved.abs().max()) <= clip * (1 + CLOSE_ENOUGH) and length > clip:
            raise NotYet(
                f"{said}: each element was clipped for itself, which changes the direction. clip_grad_norm_ shortens "
                "the whole gradient.",
                "clipped each element",
            )
        raise NotYet(f"{said}: the parameters moved by {length:.3g} times the learning rate; {clip:.3g} in the "
                     "gradient's direction is right.")  # fmt: skip

    # Overflow.
    scale = 2.0**40
    bench = _Bench(scale)
    said = "train_step with a scale of 2⁴⁰, under which the gradients overflow"
    returned, moved = step(bench, 1.0, said.removeprefix("train_step "))
    if not bool(moved.isfinite().all()) or bool(moved.any()):
        raise NotYet(
            f"{said}: the parameters changed. An overflow skips the step: leave it to scaler.step(optimizer).",
            "stepped on an overflow",
        )
    if bench.scaler.get_scale() != scale / 2:
        raise NotYet(
            f"{said}: afterwards the scale is {bench.scaler.get_scale() / scale:g} times what it was; half of it is "
            "right. Call scaler.update() once, at the end of each step.",
            "update not once",
        )
    _right_loss(said, returned, loss, scale)

    # Growth, and a scaler that is switched off, as for BF16.
    bench = _Bench(64.0, growth_interval=2)
    for _ in range(3):
        step(bench, 1e6, "three times with a growth interval of 2")
    if bench.scaler.get_scale() != 128.0:
        raise NotYet(
            f"train_step three times with a growth interval of 2: the scale went from 64 to "
            f"{bench.scaler.get_scale():g}; 128 is right. Call scaler.update() once for each step.",
            "update not once",
        )
    bench = _Bench(1024.0, enabled=False)
    _, moved = step(bench, clip, "with a scaler that is switched off")
    if not _near(moved, gradient * (clip / norm), 2 * CLOSE_ENOUGH):
        raise NotYet(
            "train_step with GradScaler(enabled=False), as one uses it with BF16, does another step. Leave the scale "
            "to the scaler's own functions: they do nothing then.",
            "scaled by hand",
        )


def _right_loss(said: str, returned: float, right: float, scale: float) -> None:
    if close(returned, right, CLOSE_ENOUGH):
        return
    if close(returned, right * scale, CLOSE_ENOUGH):
        raise NotYet(f"{said} returns {returned:.6g}, the scaled loss. Return the loss before scaling.", "scaled loss")
    raise NotYet(f"{said} returns {returned:.6g}; the loss is {right:.4g}.")


# 7. Checkpointing


def _block_lists() -> Iterator[tuple[str, list[Any], Any]]:
    """Chains of blocks with their input."""
    import torch
    from torch import nn

    class Block(nn.Module):
        def __init__(self, h: int, dropout: float) -> None:
            super().__init__()
            self.norm, self.up, self.down = nn.LayerNorm(h), nn.Linear(h, 4 * h), nn.Linear(4 * h, h)
            self.dropout = nn.Dropout(dropout)

        def forward(self, x: Any) -> Any:
            return x + self.dropout(self.down(nn.functional.gelu(self.up(self.norm(x)))))

    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(37)
        made = [
            ("8 blocks", [Block(16, 0.0) for _ in range(8)], torch.randn(4, 6, 16, requires_grad=True)),
            ("8 blocks, for an input without gradient", [Block(16, 0.0) for _ in range(8)], torch.randn(4, 6, 16)),
            ("6 blocks with dropout", [Block(16, 0.4) for _ in range(6)], torch.randn(4, 6, 16, requires_grad=True)),
        ]  # fmt: skip
    yield from made


def checkpointed(answer: Any) -> None:
    """The same output and gradients as plain blocks, with less kept for the backward pass."""
    import torch

    from efflab.measure.memory import SavedTensors

    function = Subject(answer, "checkpointed", "blocks", "x")
    for what, blocks, x in _block_lists():
        parameters = [p for b in blocks for p in b.parameters()]
        call = f"checkpointed over {what}"
        function.describe = lambda c=call, **_: c  # type: ignore[method-assign]
        order: list[int] = []
        for i, block in enumerate(blocks):
            block.register_forward_pre_hook(lambda *_, i=i, order=order: order.append(i))

        def run(
            forward: Callable[[], Any], parameters: list[Any] = parameters, x: Any = x
        ) -> tuple[Any, list[Any], int]:
            """The output, the gradients, and the bytes kept."""
            for p in [*parameters, x]:
                p.grad = None
            saved = SavedTensors(parameters)
            with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch's, on checkpoints of inputs without gradient
                torch.default_generator.manual_seed(38)
                with saved.region("blocks"):
                    output = forward()
                if not isinstance(output, torch.Tensor):
                    return output, [], 0
                kept = saved.bytes()
                if output.requires_grad:
                    torch.default_generator.manual_seed(39)  # as other random numbers would be drawn meanwhile
                    output.square().sum().backward()
            return output.detach(), [p.grad for p in [*parameters, *([x] if x.requires_grad else [])]], kept

        def plainly(blocks: list[Any] = blocks, x: Any = x) -> Any:
            y = x
            for block in blocks:
                y = block(y)
            return y

        right, gradients, kept_plainly = run(plainly)
        order.clear()
        output, found, kept = run(lambda b=blocks, x=x: function(blocks=list(b), x=x))
        if output is None:
            raise NotYet(f"{call} returns nothing. Is the `return` missing?")
        if not isinstance(output, torch.Tensor) or output.shape != right.shape:
            shape = f"a tensor of shape {tuple(output.shape)}" if isinstance(output, torch.Tensor) else short(output)
            raise NotYet(f"{call} gives {shape}; a tensor of shape {tuple(right.shape)} is expected.")
        once = order[: len(blocks)]
        if once != list(range(len(blocks))):
            raise NotYet(f"{call}: the blocks ran in the order {once}. Run each once, one after another.", "order")
        if not torch.allclose(output, right, rtol=1e-4, atol=1e-5):
            raise NotYet(f"{call}: the output differs from that of the plain blocks.", "another output")
        if all(g is None for g in found):
            if not x.requires_grad:
                raise NotYet(
                    f"{call}: no parameter has a gradient. With use_reentrant=True a checkpoint whose inputs need no "
                    "gradient cuts the graph off. Pass use_reentrant=False.",
                    "reentrant",
                )
            raise NotYet(
                f"{call}: no gradient arrives. torch.no_grad() or detach() keeps nothing because it cuts the graph "
                "off; torch.utils.checkpoint.checkpoint keeps what it needs to run the block again.",
                "no gradient",
            )
        if any(g is None for g in found):
            raise NotYet(
                f"{call}: some parameters, or the input, have no gradient. Somewhere the graph is cut off.",
                "no gradient",
            )
        if not all(torch.allclose(a, b, rtol=1e-3, atol=1e-4) for a, b in zip(found, gradients, strict=True)):
            if "dropout" in what:
                raise NotYet(
                    f"{call}: the gradients differ from those of the plain blocks. The second run must drop the same "
                    "elements: keep preserve_rng_state=True.",
                    "other random numbers",
                )
            raise NotYet(f"{call}: the gradients differ from those of the plain blocks.", "another gradient")
        said = f"{call} keeps {kept:,} B for the backward pass, the plain blocks {kept_plainly:,} B"
        if kept > 0.5 * kept_plainly:
            if kept > 0.95 * kept_plainly:
                raise NotYet(
                    f"{said}. Run each block through torch.utils.checkpoint.checkpoint(block, x, use_reentrant=False).",
                    "nothing checkpointed",
                )
            raise NotYet(f"{said}. Less than half can be had: checkpoint every block.", "too few checkpoints")
        again = order[len(blocks) :]
        if again[: len(blocks)] == list(range(len(blocks))):
            raise NotYet(
                f"{said}. But in the backward pass all blocks run again before the first gradient, so that everything "
                "is in memory after all. Make a checkpoint of each block, or of a few.",
                "one segment",
            )


# The learner's own records

TIMES_NEEDED = 8
TIME_NOISE = 1.3  # a part of a step is believed to take so many times what the step takes
PREDICTION_NOISE = 2.5  # measured over predicted step time, or its inverse
BF16_EQUAL = 0.1  # as FP32_EQUAL
CURVES_NEAR = 0.1  # of the FP32 curve's last losses: how far those of BF16 and of scaled FP16 may be away


def own_record(answer: Any) -> str:
    """A record of the learner's own device: timed well, with parts, memory, gradients and scales that fit together."""
    record = own("amp", answer)
    timed = measured(record, "time")
    if len(timed) < TIMES_NEEDED or not _values(record, "step-fp32"):
        raise NotYet(
            f"Record {record.id} has {len(timed)} timed cases; {TIMES_NEEDED} with the step in FP32 among them are "
            f"needed. Run '{command('amp')}'."
        )
    timed_well(record)
    at_scale(record)
    said = steady(record, timed, "steps and replays")
    steps = _step_times(record)
    kinds = _step_memory(record)
    _equivalence(record)
    overflows = _curves(record)
    return (
        f"{len(timed)} timed cases, {said}; {steps} step times within a factor of {PREDICTION_NOISE} of what their "
        f"parts predict; the memory of {kinds} kinds of steps; {overflows} overflows, and the scales that follow."
    )


def _values(record: Record, case: str, metric: str = "time") -> list[float]:
    """The repeats of a metric of a case; empty where the record has none."""
    found = measured(record, metric, case=case)
    return found[0].values if found else []


def _needed(record: Record, case: str, metric: str, why: str) -> list[float]:
    """The repeats of a metric of a case that every record holds."""
    values = _values(record, case, metric)
    if not values:
        raise NotYet(f"Record {record.id} holds no {metric} of {case}: {why} Run '{command('amp')}'.", "incomplete")
    return values


def _step_times(record: Record) -> int:
    """Parts of a step take less time than the step, and the steps about what their parts predict."""
    from efflab.formulas import amp

    time = {case: median(v) for s in record.find("time") if (v := _values(record, case := text(s, "case", "amp")))}
    whole = time["step-fp32"]
    for case in ("forward-fp32", "matmul-fp32", "update-fp32", "microbatch-fp32"):
        if case in time and time[case] > TIME_NOISE * whole:
            raise NotYet(
                f"{case}: {show(time[case], SECOND)}, and the whole step in FP32 takes {show(whole, SECOND)}. A part "
                f"takes no longer. Was the machine busy meanwhile? Run '{command('amp')}' again.",
                "part longer than the whole",
            )
    for case, longer in (("recomputed-fp32", "step-fp32"), ("recomputed-bf16", "step-bf16"),
                         ("accumulated-fp32-4", "step-fp32")):  # fmt: skip
        if case in time and longer in time and time[case] * TIME_NOISE < time[longer]:
            raise NotYet(
                f"{case}: {show(time[case], SECOND)}, and {longer} takes {show(time[longer], SECOND)}. It does all "
                f"that the other does, and more. Was the machine busy meanwhile? Run '{command('amp')}' again.",
                "part longer than the whole",
            )
    for precision in ("fp32", "tf32", "bf16", "fp16"):
        case = f"matmul-{precision}"
        flops = _values(record, case, "flops")
        if case in time and flops:
            within_datasheet(record, case, flops[0] / time[case], precision)
    why = "from it the steps' times are predicted."
    products, profiled = (median(_needed(record, "share-fp32", m, why)) for m in ("matmul_time", "step_time"))
    if not 0 < products <= TIME_NOISE * profiled:
        raise NotYet(
            f"share-fp32: {show(products, SECOND)} of products in a profiled step of {show(profiled, SECOND)}. "
            f"Run '{command('amp')}' again.",
            "part longer than the whole",
        )
    found = 0
    for precision in ("tf32", "bf16", "fp16"):
        # TF32 changes the products alone.
        other = time.get(f"other-{precision}", time.get("other-fp32") if precision == "tf32" else None)
        needed = [time.get(f"step-{precision}"), time.get("matmul-fp32"), time.get(f"matmul-{precision}"),
                  time.get("other-fp32"), other]  # fmt: skip
        if None in needed:
            continue
        step, matmul, narrow, rest, narrow_rest = needed
        try:
            expected = amp.amp_step_time(
                time=whole,
                matmul_share=min(1.0, products / profiled),
                matmul_speedup=matmul / narrow,
                other_speedup=rest / narrow_rest,
            )
        except EfflabError as error:
            raise NotYet(f"step-{precision}: cannot be predicted from its parts: {error}", "damaged") from None
        if not 1 / PREDICTION_NOISE <= step / expected <= PREDICTION_NOISE:
            raise NotYet(
                f"step-{precision}: {show(step, SECOND)}, and from the shares and speedups of its parts "
                f"{show(expected, SECOND)} follow. More than a factor of {PREDICTION_NOISE} is not explained by what "
                f"the parts leave out. Was the machine busy meanwhile? Run '{command('amp')}' again.",
                "far from its parts",
            )
        found += 1
    if not found:
        raise NotYet(f"Record {record.id} holds no step in another precision than FP32. Run '{command('amp')}'.",
                     "incomplete")  # fmt: skip
    return found


def _step_memory(record: Record) -> int:
    """Autocast halves a part of the activations and no weights; recomputation keeps less."""
    kept: dict[str, float] = {}
    for name in ("fp32", "bf16", "fp16", "fp32-recomputed", "bf16-recomputed"):
        if values := _values(record, f"memory-{name}", "memory"):
            kept[name] = values[0]
            if values[0] <= 0:
                raise NotYet(f"memory-{name}: {show(values[0], BYTE)}. A forward pass keeps something.", "no memory")
    if "fp32" not in kept or not {"bf16", "fp16"} & {*kept}:
        raise NotYet(f"Record {record.id} holds no memory of a step in FP32 and of one under autocast. "
                     f"Run '{command('amp')}'.", "incomplete")  # fmt: skip
    for name in ("bf16", "fp16"):
        if name in kept and not 0.45 <= kept[name] / kept["fp32"] < 1.02:
            raise NotYet(
                f"memory-{name}: {show(kept[name], BYTE)}, and in FP32 {show(kept['fp32'], BYTE)}. Under autocast the "
                "layers keep between half of it and all of it.",
                "activations out of bounds",
            )
        wide, narrow = _values(record, "memory-fp32", "weights"), _values(record, f"memory-{name}", "weights")
        if wide and narrow and not 0.98 * wide[0] <= narrow[0] <= 1.02 * wide[0]:
            raise NotYet(
                f"memory-{name}: {show(narrow[0], BYTE)} of weights, and in FP32 {show(wide[0], BYTE)}. Under autocast "
                "the weights stay in FP32.",
                "weights not in FP32",
            )
    for name in ("fp32", "bf16"):
        if f"{name}-recomputed" in kept and name in kept and kept[f"{name}-recomputed"] >= kept[name]:
            raise NotYet(
                f"memory-{name}-recomputed: {show(kept[f'{name}-recomputed'], BYTE)}, and without recomputation "
                f"{show(kept[name], BYTE)}. Recomputation keeps less.",
                "recomputation keeps more",
            )
    return len(kept)


def _equivalence(record: Record) -> None:
    """Accumulation equals the large batch within rounding, and the planted mistakes do not."""
    why = "whether accumulated gradients equal the large batch's."
    for case, most in (("equal-fp32", FP32_EQUAL), ("equal-bf16", BF16_EQUAL)):
        values = _values(record, case, "error") if case == "equal-bf16" else _needed(record, case, "error", why)
        if values and not 0 < values[0] <= most:
            which = (
                "No difference at all: was one gradient compared with itself?"
                if values[0] <= 0
                else (f"Rounding explains {most:g} at most.")
            )
            raise NotYet(f"{case}: a relative difference of {values[0]:.3g}. {which}", "error out of bounds")
    undivided = _needed(record, "undivided", "error", why)[0]
    k = whole(sample_of(record, "undivided", "error"), "microbatches", "amp", 2)
    if not close(undivided, k - 1, 0.02):
        raise NotYet(
            f"undivided: a relative difference of {undivided:.3g}. The sum of {k} equal microbatches' gradients is {k} "
            f"times their mean, so it is {k - 1}.",
            "error out of bounds",
        )
    tokens, weights = _values(record, "uneven", "tokens"), _values(record, "uneven", "token_weight")
    if len(tokens) != len(weights) or not tokens or min(tokens) <= 0:
        raise NotYet(f"uneven: the record holds {len(tokens)} numbers of tokens and {len(weights)} weights of them. "
                     f"Run '{command('amp')}'.", "incomplete")  # fmt: skip
    for n, weight in zip(tokens, weights, strict=True):
        if not close(weight, sum(tokens) / (len(tokens) * n), 0.02):
            raise NotYet(
                f"uneven: a token of the microbatch with {n:.0f} counts {weight:.3g} times; of {sum(tokens):.0f} "
                f"tokens in {len(tokens)} microbatches it is {sum(tokens) / (len(tokens) * n):.3g}.",
                "error out of bounds",
            )


def _curves(record: Record) -> int:
    """Losses begin at chance and end alike, and the scales follow from the overflows. Returns how many there were."""
    from efflab.formulas import amp

    why = "the loss of each training step."
    reference = _needed(record, "curve-fp32", "loss", why)
    vocabulary = whole(sample_of(record, "curve-fp32", "loss"), "vocabulary", "amp", 2)
    tail = max(1, len(reference) // 8)
    end = sum(reference[-tail:]) / tail
    if not abs(reference[0] / math.log(vocabulary) - 1) <= 0.25 or end >= reference[0]:
        raise NotYet(
            f"curve-fp32: the loss goes from {reference[0]:.3g} to {end:.3g}. It begins near the logarithm of the "
            f"vocabulary, {math.log(vocabulary):.3g}, and falls.",
            "loss out of bounds",
        )
    for case in ("curve-bf16", "curve-fp16-scaled"):
        losses = _values(record, case, "loss")
        if losses and len(losses) != len(reference):
            raise NotYet(f"{case}: {len(losses)} losses, and curve-fp32 has {len(reference)}. Run '{command('amp')}'.",
                         "incomplete")  # fmt: skip
        if losses and abs(sum(losses[-tail:]) / tail / end - 1) > CURVES_NEAR:
            raise NotYet(
                f"{case}: the loss ends at {sum(losses[-tail:]) / tail:.3g}, in FP32 at {end:.3g}. More than "
                f"{CURVES_NEAR:.0%} is not what the narrower format explains.",
                "loss out of bounds",
            )
    overflows = _values(record, "curve-fp16-scaled", "overflow")
    if not overflows:
        if any(s.status == "failed" for s in record.find("loss", case="curve-fp16-scaled")):
            return 0  # this device has no FP16
        raise NotYet(f"Record {record.id} holds no overflows of the run in FP16. Run '{command('amp')}'.", "incomplete")
    scales = _needed(record, "curve-fp16-scaled", "scale", "the loss scale before the first step and after each.")
    point = record.find("scale", case="curve-fp16-scaled")[0].point
    try:
        right = amp.loss_scales(
            [bool(o) if o in (0, 1) else o for o in overflows],
            scale=scales[0],
            growth_interval=point.get("growth_interval"),
            growth_factor=point.get("growth_factor", amp.GROWTH_FACTOR),
            backoff_factor=point.get("backoff_factor", amp.BACKOFF_FACTOR),
        )
    except (EfflabError, TypeError, ValueError, OverflowError) as error:
        raise NotYet(f"curve-fp16-scaled: its scales cannot be followed: {error}", "damaged") from None
    wrong = next((i for i, (a, b) in enumerate(zip(scales, right, strict=False)) if not close(a, b, 1e-6)), None)
    if len(scales) != len(right) or wrong is not None:
        where = (
            f"after step {wrong} it is {scales[wrong]:g}, and {right[wrong]:g} follows"
            if wrong is not None
            else (f"there are {len(scales)} scales for {len(overflows)} steps")
        )
        raise NotYet(f"curve-fp16-scaled: the scales do not follow from the overflows: {where}.", "scales")
    last = _values(record, "scale-fp16", "scale")
    if last and not close(last[-1], scales[-1], 1e-6):
        raise NotYet(f"scale-fp16: {last[-1]:g}, and the run's last scale is {scales[-1]:g}.", "scales")
    if not any(overflows):
        raise NotYet(
            f"curve-fp16-scaled: not one step overflows, so the scale was never tried. Run '{command('amp')}' again.",
            "scales",
        )
    return int(sum(overflows))


# The sprint

LEAST_SPEEDUP = 1.5
SYNERGY = 2.0  # how many times the speedup that follows from the parts is believed
MEASURE = command(ablation.TOPIC)


def throughput_sprint(answer: Any) -> str:
    """A sprint's record: a whole ablation, timed in turns, with equal losses, and a gain of each mend."""
    record = own(ablation.TOPIC, answer)
    at_scale(record)
    cases = _sprint_cases(record)
    timed_well(record, ablation.FEWEST_ROUNDS)
    _in_turns(record, cases)
    _same_training(record)
    found = ablation.ablation(record)
    base, whole, alone = found["baseline"], found["all"], {name: found[name] for name in sprint.MENDS}
    for name, gain in alone.items():
        if gain.low <= 1:
            raise NotYet(
                f"{name}: alone it makes a step {gain.speedup:.2f} times faster, and the interval of 95% is "
                f"{gain.low:.2f} to {gain.high:.2f}. That is no gain that shows. Does the mend do less work than the "
                f"script? If it does, close other programs and measure again.",
                "no gain alone",
            )
    name, best = max(alone.items(), key=lambda item: item[1].speedup)
    over_best = sorted(b / v for b, v in zip(cases[name].values, cases["all"].values, strict=True))
    if over_best[ablation.interval_rank(len(over_best)) - 1] <= 1:
        raise NotYet(
            f"All mends together make a step {whole.speedup:.2f} times faster, {name} alone {best.speedup:.2f} times. "
            "Together they must gain more. Does one of them undo another?",
            "no gain together",
        )
    if whole.speedup < LEAST_SPEEDUP:
        raise NotYet(
            f"Together the mends make a step {whole.speedup:.2f} times faster; {LEAST_SPEEDUP} is asked for. "
            "Which part takes most of what is left?",
            "too little together",
        )
    # What data saves is gone whatever the others do; the other two speed up what is left, each by its own factor.
    left = 1 - alone["data"].saved
    rest = [(1 / alone[n].speedup - alone["data"].saved) / left for n in ("compute", "memory")]
    expected = 1 / (left * math.prod(rest)) if min(rest) > 0.02 else math.inf
    if whole.speedup > SYNERGY * expected:
        raise NotYet(
            f"Together the mends make a step {whole.speedup:.3g} times faster. From what each of them saves alone, "
            f"{', '.join(f'{g.saved:.0%}' for g in alone.values())}, about {expected:.3g} follows. Were all cases "
            "timed in one run, with nothing changed in between?",
            "more than the parts allow",
        )
    return (
        f"{', '.join(f'{n} {g.speedup:.2f}×' for n, g in alone.items())}, all {whole.speedup:.2f}×: from "
        f"{show(base.time, SECOND)} to {show(whole.time, SECOND)} per step, the same loss after "
        f"{len(record.find('loss', case='all')[0].values)} steps."
    )


def _sprint_cases(record: Record) -> dict[str, Sample]:
    """The timed sample of each case, of one script and one size."""
    if record.spec.get("script") != sprint.fingerprint():
        raise NotYet(
            f"Record {record.id} was measured with another script than this efflab's. Run '{MEASURE}'.",
            "another script",
        )
    found: dict[str, Sample] = {}
    for sample in record.find("time"):
        if sample.status == "ok":
            found[text(sample, "case", ablation.TOPIC)] = sample
    missing = [case for case in ablation.CASES if case not in found]
    if missing:
        raise NotYet(
            f"Record {record.id} is no whole ablation: {', '.join(missing)} {'is' if len(missing) == 1 else 'are'} "
            f"missing. Write all three mends, then run '{MEASURE}'.",
            "incomplete",
        )
    cases = {case: found[case] for case in ablation.CASES}
    size = sprint.SIZES.get(record.scale, {})
    for case, sample in cases.items():
        if any(sample.point.get(name) != value for name, value in size.items()):
            raise NotYet(f"{case}: its sizes are not those of the sprint. Run '{MEASURE}'.", "another size")
        if sample.point.get("mends") != ",".join(ablation.CASES[case]):
            raise NotYet(
                f"{case}: its mends are {short(sample.point.get('mends'))}; one change at a time is measured. "
                f"Run '{MEASURE}'.",
                "damaged",
            )
    if len({len(s.values) for s in cases.values()}) > 1:
        counts = ", ".join(f"{case} {len(s.values)}" for case, s in cases.items())
        raise NotYet(f"The cases have different numbers of repeats: {counts}. Run '{MEASURE}'.", "incomplete")
    return cases


def _in_turns(record: Record, cases: dict[str, Sample]) -> None:
    """The cases took turns, and no run lasts longer than until the next one begins."""
    begun: dict[str, list[float]] = {}
    for case, sample in cases.items():
        found = record.find("begun", case=case)
        if not found or found[0].status != "ok" or len(found[0].values) != len(sample.values):
            raise NotYet(f"{case}: the record does not say when its runs began. Run '{MEASURE}'.", "damaged")
        begun[case] = found[0].values
    steps = sprint.SIZES[record.scale]["steps"]
    runs = sorted(
        (begin, begin + seconds * steps, turn, case)
        for case, sample in cases.items()
        for turn, (begin, seconds) in enumerate(zip(begun[case], sample.values, strict=True))
    )
    if [turn for _, _, turn, _ in runs] != sorted(turn for _, _, turn, _ in runs):
        raise NotYet(
            "The cases were not measured in turns. Then a machine that slows down in between looks like a gain or a "
            f"loss. Run '{MEASURE}'.",
            "not in turns",
        )
    for (_, end, turn, case), (begin, *_) in itertools.pairwise(runs):
        if end > begin * (1 + 1e-9) + 1e-3:
            raise NotYet(
                f"{case}: its run {turn + 1} ends {show(end - begin, SECOND)} after the next one began. The times were "
                f"not measured in one run. Run '{MEASURE}'.",
                "times overlap",
            )


def _same_training(record: Record) -> None:
    """Every case trains as the script does: the same first gradient, the same losses."""
    losses: dict[str, list[float]] = {}
    for case in ablation.CASES:
        for metric in ("loss", "gradient_error"):
            found = record.find(metric, case=case)
            if not found or found[0].status != "ok":
                raise NotYet(f"{case}: the record holds no {metric}. Run '{MEASURE}'.", "incomplete")
            if metric == "loss":
                losses[case] = found[0].values
            elif not 0 <= found[0].values[0] <= sprint.GRADIENT_TOLERANCE:
                raise NotYet(
                    f"{case}: the first gradient differs from the script's by {found[0].values[0]:.2g} of it; "
                    f"{sprint.GRADIENT_TOLERANCE:.0%} is allowed. A mend must not change what is learned.",
                    "another gradient",
                )
    steps = sprint.SIZES[record.scale]["steps"]
    for case, values in losses.items():
        if len(values) != steps:
            raise NotYet(f"{case}: {len(values)} losses for {steps} steps. Run '{MEASURE}'.", "incomplete")
        for step, (a, b) in enumerate(zip(values, losses["baseline"], strict=True), 1):
            if abs(a - b) > sprint.LOSS_TOLERANCE * abs(b):
                raise NotYet(
                    f"{case}: after step {step} the loss is {a:.5g}, the script's {b:.5g}. A mend must not change what "
                    "is learned.",
                    "another loss",
                )


CHECKERS: dict[str, Callable[[Any], str | None]] = {
    f.__name__: f
    for f in (
        loss_scale_history,
        amp_speedup,
        surviving_share,
        autocast_dtypes,
        accumulate,
        train_step,
        checkpointed,
        own_record,
        throughput_sprint,
    )
}
