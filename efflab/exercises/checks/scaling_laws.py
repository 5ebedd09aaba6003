"""Checkers of the scaling laws' code and measurement exercises."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from statistics import NormalDist
from typing import Any

import numpy as np

from efflab.errors import EfflabError
from efflab.exercises.checks import NotYet, Subject, close, recognise, short, written
from efflab.exercises.checks.records import at_scale, command, own, plausible
from efflab.reconcile import datasheet
from efflab.reconcile import scaling_laws as reconcile
from efflab.records import Record
from efflab.units import FLOP_PER_SECOND, NAT, show

DAY = 86400.0


def training_days(answer: Any) -> None:
    """Days to train a decoder: 6ND over what the devices do for the model."""
    function = Subject(answer, "training_days", "parameters", "tokens", "devices", "peak_performance", "mfu")
    draw = random.Random(11)
    cases = [
        (13e9, 1e12, 2048, 312e12, 0.514),  # LLaMA-13B: 135,168 GPU-hours
        (175e9, 300e9, 1, 989.4e12, 0.4),
    ]
    cases += [
        (
            10 ** draw.uniform(8, 11.7), 10 ** draw.uniform(10, 13.2), draw.choice([8, 64, 512, 16384]),
            draw.choice([125e12, 312e12, 989.4e12]), draw.uniform(0.22, 0.46),
        )
        for _ in range(15)
    ]  # fmt: skip
    for n, d, devices, peak, mfu in cases:
        arguments = {"parameters": n, "tokens": d, "devices": devices, "peak_performance": peak, "mfu": mfu}
        got = function.number(**arguments)
        right = 6 * n * d / (devices * peak * mfu) / DAY
        if close(got, right):
            continue
        said = written(function.describe(**arguments), got)
        recognise(
            said,
            got,
            (
                ("seconds", right * DAY, "the time in seconds. A day has 86,400."),
                ("hours", right * 24, "the time in hours. A day has 24."),
                (
                    "counted a multiply-add as one",
                    right / 2,
                    "half of what is right. A multiplication and an addition are two operations, 6ND in all.",
                ),
                (
                    "forgot the backward pass",
                    right / 3,
                    "a third of what is right: 2ND is the forward pass. The backward pass has 4ND more.",
                ),
                (
                    "one product in the backward pass",
                    right * 2 / 3,
                    "two thirds of what is right. The backward pass has two products for each one of the forward pass.",
                ),
                (
                    "counted recomputation",
                    right * 8 / 6,
                    "8/6 of what is right. An MFU counts what the model needs, 6ND, and no recomputed operations.",
                ),
                ("forgot the MFU", right * mfu, "the time at the full peak. The devices reach mfu of it."),
                (
                    "multiplied by the MFU",
                    right * mfu * mfu,
                    "a time that is shorter for a lower MFU. Divide by mfu: less is done per second.",
                ),
                ("forgot the devices", right * devices, "the time on one device. All of them work."),
                (
                    "multiplied by the devices",
                    right * devices * devices,
                    "a time that grows with the number of devices. Divide by it.",
                ),
                ("took the MFU for percent", right * 100, "100 times what is right. mfu is a fraction, 0.4 for 40%."),
            ),
        )
        raise NotYet(
            f"{said}. By hand: {6 * n * d:.5g} FLOP over {devices * peak * mfu:.5g} FLOP/s is "
            f"{right * DAY:.5g} s, so {right:.5g} days."
        )


def _counted(
    layers: int,
    hidden: int,
    intermediate: int,
    query_heads: int,
    kv_heads: int,
    head_dim: int,
    vocabulary: int,
    tied: bool,
) -> int:
    """Parameters of such a decoder, built without memory and counted."""
    import torch
    from torch import nn

    def linear(inputs: int, outputs: int) -> nn.Module:
        return nn.Linear(inputs, outputs, bias=False, device="meta")

    def block() -> nn.ModuleList:
        return nn.ModuleList(
            [
                nn.RMSNorm(hidden, device="meta"), nn.RMSNorm(hidden, device="meta"),
                linear(hidden, query_heads * head_dim), linear(query_heads * head_dim, hidden),
                linear(hidden, kv_heads * head_dim), linear(hidden, kv_heads * head_dim),
                linear(hidden, intermediate), linear(hidden, intermediate), linear(intermediate, hidden),
            ]
        )  # fmt: skip

    embedding, head = nn.Embedding(vocabulary, hidden, device="meta"), linear(hidden, vocabulary)
    if tied:
        head.weight = embedding.weight
    model = nn.ModuleList([embedding, *(block() for _ in range(layers)), nn.RMSNorm(hidden, device="meta"), head])
    assert isinstance(next(model.parameters()), torch.nn.Parameter)
    return sum(p.numel() for p in model.parameters())  # a shared parameter is listed once


def decoder_parameters(answer: Any) -> None:
    """Parameters of a Llama-like decoder, against PyTorch's own count."""
    names = (
        "layers", "hidden_size", "intermediate_size", "query_heads", "kv_heads", "head_dim", "vocabulary", "tied",
    )  # fmt: skip
    function = Subject(answer, "decoder_parameters", *names)
    cases = [
        (2, 64, 176, 8, 2, 8, 100, False),
        (2, 64, 176, 8, 2, 8, 100, True),
        (3, 96, 256, 4, 4, 32, 500, False),  # the heads together are wider than the model
        (32, 4096, 14336, 32, 8, 128, 128256, False),  # Llama 3 8B
        (16, 2048, 8192, 32, 8, 64, 128256, True),  # Llama 3.2 1B
    ]
    draw = random.Random(12)
    for _ in range(8):
        kv = draw.choice([1, 2, 4, 8])
        cases.append(
            (
                draw.randint(1, 6), 64 * draw.randint(1, 16), draw.randint(100, 4000), kv * draw.choice([2, 4, 8]), kv,
                draw.choice([16, 32, 64]), draw.randint(50, 50000), draw.random() < 0.5,
            )
        )  # fmt: skip
    for case in cases:
        arguments = dict(zip(names, case, strict=True))
        got, right = function.number(**arguments), _counted(*case)
        if abs(got - right) < 0.5:
            continue
        layers, h, f, q, kv, d, v, tied = case
        said = written(function.describe(**arguments), got)
        if not math.isfinite(got):
            raise NotYet(f"{said}. PyTorch counts {right:,}.")
        for name, value, why in (
            (
                "query heads for keys and values",
                right + 2 * layers * h * d * (q - kv),
                "which gives keys and values as many heads as queries. They have kv_heads.",
            ),
            (
                "took the heads to be as wide as the model",
                right + layers * (2 * h * (h + h * kv / q) - 2 * h * d * (q + kv)),
                "which takes query_heads × head_dim for hidden_size. Here they differ: use head_dim.",
            ),
            ("two matrices in the MLP", right - layers * h * f, "which gives the MLP two matrices. It has three."),
            ("forgot the output projection", right - layers * h * q * d, "which leaves out the attention's output."),
            (
                "forgot keys or values",
                right - layers * h * kv * d,
                "which has one matrix for the keys and the values. Each has its own.",
            ),
            ("forgot the norms", right - (2 * layers + 1) * h, "which leaves out the norms."),
            ("forgot the last norm", right - h, "which is short by one vector: the norm after the last block."),
            ("one norm per block", right - layers * h, "which has one norm in each block. There are two."),
            (
                "layer norms",
                right + (2 * layers + 1) * h,
                "which gives each norm two vectors. An RMS norm has a scale alone.",
            ),
            (
                "tied and untied swapped",
                right + (v * h if tied else -v * h),
                f"which has {'two matrices' if tied else 'one matrix'} of the vocabulary's size. With tied={tied} "
                f"there {'is one' if tied else 'are two'}.",
            ),
            ("forgot the embedding", right - (1 if tied else 2) * v * h, "which leaves the vocabulary out."),
        ):
            if abs(got - value) < 0.5 and value != right:
                raise NotYet(f"{said}, {why}", name)
        raise NotYet(
            f"{said}. PyTorch counts {right:,}: blocks {layers} × {2 * h * d * (q + kv) + 3 * h * f + 2 * h:,}, "
            "last norm "
            f"{h:,}, embedding and head {(1 if tied else 2) * v * h:,}."
        )


LAWS = {
    "Hoffmann, rounded": (406.4, 0.34, 410.7, 0.28),
    "Hoffmann, unrounded": (406.4010175194737, 0.33917084, 410.7228269450398, 0.2849083),
    "Besiroglu": (482.01, 0.3478, 2085.43, 0.3658),
}


def compute_optimal(answer: Any) -> None:
    """The split of a budget with the least loss."""
    function = Subject(answer, "compute_optimal", "flops", "A", "alpha", "B", "beta")
    cases = [(flops, *law) for flops in (5.76e23, 1e21, 3e18) for law in LAWS.values()]
    draw = random.Random(13)
    cases += [
        (10 ** draw.uniform(17, 26), *(draw.uniform(*r) for r in ((50, 900), (0.2, 0.5), (50, 3000), (0.2, 0.5))))
        for _ in range(10)
    ]
    for flops, a, alpha, b, beta in cases:
        arguments = {"flops": flops, "A": a, "alpha": alpha, "B": b, "beta": beta}
        n, d = function.numbers("parameters", "tokens", **arguments)
        call = function.describe(**arguments)
        said = f"{call} gives ({n:.5g}, {d:.5g})"
        power = beta / (alpha + beta)
        balance = (alpha * a / (beta * b)) ** (1 / (alpha + beta))
        best = balance * (flops / 6) ** power
        if not (0 < n < math.inf and 0 < d < math.inf):
            raise NotYet(f"{said}. Both must be positive numbers.")
        if close(n, best, 5e-3) and close(6 * n * d, flops):
            continue
        if close(n, flops / 6 / best, 5e-3) and close(d, best, 5e-3):
            raise NotYet(f"{said}, the right numbers in the wrong order. Return (parameters, tokens).", "wrong order")
        if close(n * d, flops):
            raise NotYet(
                f"{said}. Their product is the budget, but each parameter and token costs 6 operations.", "forgot the 6"
            )
        if not close(6 * n * d, flops):
            raise NotYet(
                f"{said}. 6 × parameters × tokens is {6 * n * d:.5g} FLOP, and the budget is {flops:.5g}.", "budget"
            )
        recognise(
            said,
            n,
            (
                (
                    "swapped the exponents",
                    balance * (flops / 6) ** (alpha / (alpha + beta)),
                    "with C/6 to the power of α/(α+β). That is the tokens' power; the parameters have β/(α+β).",
                ),
                (
                    "G upside down",
                    (flops / 6) ** power / balance,
                    "with G upside down: for N it is αA/(βB) to the power of 1/(α+β).",
                ),
                (
                    "G without the exponents",
                    (a / b) ** (1 / (alpha + beta)) * (flops / 6) ** power,
                    "with A/B in G where αA/(βB) belongs.",
                ),
                (
                    "forgot the 6",
                    balance * flops**power,
                    "with C in place of C/6 under the power.",
                ),
                (
                    "twenty tokens per parameter",
                    math.sqrt(flops / 120),
                    "which is 20 tokens per parameter, whatever the law. The constants decide.",
                ),
                ("equal numbers", math.sqrt(flops / 6), "as many tokens as parameters, whatever the law."),
            ),
            5e-3,
        )

        def loss(n: float, d: float) -> float:
            return a / n**alpha + b / d**beta  # noqa: B023

        raise NotYet(
            f"{said}. There L − E is {loss(n, d):.6g} nats. With {best:.4g} parameters and the same budget it is "
            f"{loss(best, flops / 6 / best):.6g}."
        )


def fit_power_law(answer: Any) -> None:
    """A least-squares line through log(L − E) against log N."""
    function = Subject(answer, "fit_power_law", "sizes", "losses", "irreducible_loss")
    draw = random.Random(14)
    cases: list[tuple[list[float], list[float], float, str]] = []
    for a, alpha, e, noise in (
        (400.0, 0.34, 1.69, 0.0), (12.0, 0.076, 0.0, 0.0), (50.0, 0.25, 0.0, 0.03), (200.0, 0.3, 1.5, 0.05),
        (8.0, 0.2, 0.7, 0.02),
    ):  # fmt: skip
        sizes = [10 ** (5 + 0.5 * i + 0.2 * draw.random()) for i in range(8)]
        losses = [e + a * n**-alpha * math.exp(draw.gauss(0, noise)) for n in sizes]
        cases.append((sizes, losses, e, f"L = {e} + {a} N^-{alpha}{', with noise' if noise else ''}"))
    for sizes, losses, e, law in cases:
        arguments = {"sizes": list(sizes), "losses": list(losses), "irreducible_loss": e}
        got_a, got_alpha = function.numbers("A", "alpha", **arguments)
        x, y = np.log(sizes), np.log(np.array(losses) - e)
        slope, intercept = np.polyfit(x, y, 1)
        right_a, right_alpha = math.exp(intercept), -float(slope)
        if close(got_a, right_a, 1e-5) and close(got_alpha, right_alpha, 1e-5):
            continue
        said = f"On losses made from {law}, fit_power_law gives ({got_a:.5g}, {got_alpha:.5g})"
        if close(got_a, right_alpha, 1e-5) and close(got_alpha, right_a, 1e-5):
            raise NotYet(f"{said}, the right numbers in the wrong order. Return (A, alpha).", "wrong order")
        if e:
            flat = np.polyfit(x, np.log(losses), 1)[0]
            if close(abs(got_alpha), -float(flat), 1e-5):
                raise NotYet(
                    f"{said}. The line went through log L. With an irreducible loss that is no straight line, and its "
                    f"slope is too flat: {-flat:.3g} in place of {right_alpha:.3g}. Subtract irreducible_loss first.",
                    "kept the irreducible loss",
                )
        if close(got_alpha, right_alpha, 1e-5):
            recognise(
                said,
                got_a,
                (
                    ("gave log A", float(intercept), "log A in place of A. Take its exponential."),
                    ("gave log A", float(intercept) / math.log(10), "the logarithm of A. Take 10 to this power."),
                    (
                        "mixed logarithms",
                        math.exp(float(intercept) / math.log(10)),
                        "the exponential of a logarithm of base 10. Take 10 to this power.",
                    ),
                    (
                        "mixed logarithms",
                        10**intercept,
                        "10 to the power of a natural logarithm. Take its exponential.",
                    ),
                ),
                1e-5,
            )
        recognise(
            said,
            got_alpha,
            (
                (
                    "sign",
                    -right_alpha,
                    "with a negative alpha. L falls with N as N^-alpha, so alpha is minus the slope.",
                ),
                (
                    "turned the line over",
                    -1 / float(np.polyfit(y, x, 1)[0]),
                    "the line of log N against log L. Its slope is another one where there is noise: N is given, L is "
                    "measured.",
                ),
                (
                    "mixed logarithms",
                    right_alpha * math.log(10),
                    "2.3 times the exponent: one logarithm is natural and the other has base 10.",
                ),
                (
                    "mixed logarithms",
                    right_alpha / math.log(10),
                    "the exponent divided by 2.3: one logarithm is natural and the other has base 10.",
                ),
            ),
            1e-5,
        )
        if close(got_alpha, right_alpha, 0.2) and close(got_a, right_a, 0.9):
            raise NotYet(
                f"{said}; least squares on the logarithms gives ({right_a:.5g}, {right_alpha:.5g}). Was the fit "
                "made on the "
                "losses themselves? Then the small models, with the largest losses, dominate it.",
                "another fit",
            )
        raise NotYet(f"{said}; least squares on the logarithms gives ({right_a:.5g}, {right_alpha:.5g}).")


def huber_objective(answer: Any) -> None:
    """Sum of Huber losses of log residuals, Hoffmann's equation 11."""
    names = ("a", "b", "e", "alpha", "beta", "parameters", "tokens", "losses", "delta")
    function = Subject(answer, "huber_objective", *names)
    generator = np.random.default_rng(15)
    law = (6.0073404, 6.0179186, 0.5267228, 0.33917084, 0.2849083)
    for a, b, e, alpha, beta, spread, outlier, delta, what in (
        (*law, 2e-4, 0.0, 1e-3, "runs near the law"),
        (*law, 2e-4, 0.1, 1e-3, "runs near the law and two outliers"),
        (*law, 3e-2, 0.0, 1e-3, "runs far from the law"),
        (5.5, 7.1, 0.6, 0.35, 0.37, 1e-2, 0.3, 1e-2, "runs on either side of delta"),
    ):
        n = 10 ** generator.uniform(7.5, 10.5, 9)
        d = 10 ** generator.uniform(9, 11.5, 9)
        predicted = np.exp(e) + np.exp(a) / n**alpha + np.exp(b) / d**beta
        noise = generator.normal(0, spread, 9)
        noise[[4, 7]] += outlier, -outlier  # on both sides, or a test without the absolute value looks like squares
        losses = predicted * np.exp(noise)
        arguments = dict(zip(names, (a, b, e, alpha, beta, n, d, losses, delta), strict=True))
        value = function(**{k: v.copy() if isinstance(v, np.ndarray) else v for k, v in arguments.items()})
        call = f"On {what}, huber_objective"
        if value is None:
            raise NotYet(f"{call} returns nothing. Is the `return` missing?")
        size = getattr(value, "size", 1)
        if isinstance(value, list | tuple) or (isinstance(size, int) and size == len(n)):
            raise NotYet(f"{call} gives {short(value)}, one number per run. Return their sum.", "not summed")
        try:
            if isinstance(value, bool | str):
                raise TypeError
            got = float(value)
        except Exception:  # the object is the learner's and may raise anything
            raise NotYet(f"{call} gives {short(value)}; one number is expected.") from None

        def huber(r: np.ndarray) -> float:
            size = np.abs(r)
            return float(np.where(size <= delta, r**2 / 2, delta * (size - delta / 2)).sum())  # noqa: B023

        r = np.log(predicted) - np.log(losses)
        right = huber(r)
        if close(got, right, 1e-5):
            continue
        said = f"{call} gives {got:.6g}"
        with np.errstate(all="ignore"):
            plain = e + a / n**alpha + b / d**beta
            mistakes = (
                (
                    "averaged",
                    right / len(n),
                    "the mean over the runs. Sum: with the mean the numbers are so small that an optimiser stops "
                    "before it "
                    "has converged, which happened to Hoffmann et al.",
                ),
                ("forgot the half", 2 * right, "twice the right value. The Huber loss is r²/2 for small r."),
                (
                    "residuals of the losses",
                    huber(predicted - losses),
                    "the residuals of the losses themselves. Take those of their logarithms.",
                ),
                (
                    "took the constants for their logarithms",
                    huber(np.log(np.abs(plain)) - np.log(losses)),
                    "with a, b and e in place of their exponentials. A = exp(a), B = exp(b), E = exp(e).",
                ),
                (
                    "base 10",
                    huber(r / math.log(10)),
                    "with logarithms of base 10. Take the natural ones.",
                ),
                *(
                    (
                        "no absolute value",
                        float(np.where(side <= delta, r**2 / 2, delta * (beyond - delta / 2)).sum()),
                        "|r| <= delta is tested without the absolute value, so a large negative residual takes r²/2.",
                    )
                    for side in (r, -r)
                    for beyond in (np.abs(r), side)
                ),
                (
                    "squared everywhere",
                    float((r**2 / 2).sum()),
                    "r²/2 for every run. Beyond delta the Huber loss grows in proportion to |r|, so that one bad "
                    "run does not "
                    "rule the fit.",
                ),
                (
                    "linear everywhere",
                    float((delta * (np.abs(r) - delta / 2)).sum()),
                    "the linear branch for every run. Up to delta it is r²/2.",
                ),
                (
                    "linear everywhere",
                    float((delta * np.abs(r)).sum()),
                    "delta × |r| for every run. Up to delta it is r²/2, beyond it delta × (|r| − delta/2).",
                ),
                (
                    "jump at delta",
                    float(np.where(np.abs(r) <= delta, r**2 / 2, delta * np.abs(r)).sum()),
                    "delta × |r| beyond delta. Subtract delta/2 from |r|, or the two branches do not meet.",
                ),
                (
                    "jump at delta",
                    float(np.where(np.abs(r) <= delta, r**2 / 2, delta * (np.abs(r) - delta)).sum()),
                    "delta × (|r| − delta) beyond delta. It is delta/2 that is subtracted, or the two branches do "
                    "not meet.",
                ),
            )
        recognise(said, got, mistakes, 1e-5)
        raise NotYet(
            f"{said}; {right:.6g} is right. For its first run the logarithm of the law's loss is "
            f"{np.log(predicted[0]):.6g}, "
            f"that of the measured one {np.log(losses[0]):.6g}, and delta is {delta:g}."
        )


class _Estimate:
    """An estimate that remembers what it was given."""

    MOST = 20_000

    def __init__(self, runs: list[tuple[float, ...]]) -> None:
        self.runs, self.given, self.values = runs, [], []

    def __call__(self, drawn: Any) -> float:
        if len(self.values) >= self.MOST:
            raise NotYet(f"estimate was called more than {self.MOST} times. How often should it be?")
        try:
            found = [tuple(float(x) for x in run) for run in drawn]
        except Exception:
            raise NotYet(
                f"estimate was given {short(drawn)}. It needs a list of runs, such as {short(self.runs[:2])}.",
                "not whole runs",
            ) from None
        self.given.append(found)
        value = sum(run[-1] for run in found) / max(1, len(found)) + 0.01 * max((run[-1] for run in found), default=0.0)
        self.values.append(value)
        return value


def bootstrap_interval(answer: Any) -> None:
    """Whole runs drawn with replacement, and the middle of the estimates."""
    function = Subject(answer, "bootstrap_interval", "runs", "estimate", "level", "resamples", "generator")
    for size, level, resamples, seed in ((12, 0.9, 400, 1), (7, 0.5, 1000, 2), (20, 0.95, 600, 3)):
        draw = random.Random(seed)
        runs = [(10.0 ** (5 + i / 4), 10.0 ** (7 + i / 3), 2 + 3 * draw.random() ** 3) for i in range(size)]
        estimate, generator = _Estimate(runs), np.random.default_rng(seed)
        before = str(generator.bit_generator.state)
        call = f"bootstrap_interval on {size} runs, level={level}, resamples={resamples}"
        low, high = _interval(function, call, runs, estimate, level, resamples, generator)
        given, values = estimate.given, estimate.values
        if given and len(given) == resamples + 1 and runs in (given[0], given[-1]):
            at = 0 if given[0] == runs else len(given) - 1  # the estimate from all the runs, beside the resamples
            given, values = [g for i, g in enumerate(given) if i != at], [v for i, v in enumerate(values) if i != at]
        if len(given) != resamples:
            raise NotYet(f"{call} called estimate {len(given)} times; resamples asks for {resamples}.", "resamples")
        wrong = next((len(g) for g in given if len(g) != size), None)
        if wrong is not None:
            raise NotYet(
                f"{call} drew lists of {wrong} runs. Each list is as long as runs, or the interval has another width.",
                "another size",
            )
        known = set(runs)
        if any(run not in known for g in given for run in g):
            raise NotYet(
                f"{call} made runs that do not exist. Draw whole runs, do not mix their numbers.", "not whole runs"
            )
        if all(len(set(g)) == size for g in given):
            raise NotYet(
                f"{call} drew without replacement: every list holds each run once, so every estimate is the same.",
                "without replacement",
            )
        if str(generator.bit_generator.state) == before:
            raise NotYet(
                f"{call} took no number from generator. Draw from it, so that a result can be repeated.",
                "own randomness",
            )
        if len({tuple(g) for g in given}) < 0.9 * resamples:
            raise NotYet(f"{call} drew the same list again and again. Draw anew for each.", "the same list")
        counts = [sum(g.count(run) for g in given) for run in runs]
        # Each run is expected `resamples` times, with a standard deviation of about its root.
        worst = max(abs(c - resamples) for c in counts)
        if worst > 7 * math.sqrt(resamples):
            rare = runs[max(range(size), key=lambda i: abs(counts[i] - resamples))]
            raise NotYet(
                f"{call} drew the run {short(rare)} {counts[runs.index(rare)]} times; each of them is due about "
                f"{resamples} "
                "times. Does the draw reach the first and the last?",
                "uneven",
            )
        ordered = np.sort(values)

        def between(value: float, share: float) -> bool:
            """Whether a value lies where some definition of this quantile puts it."""
            at = share * (len(ordered) - 1)  # noqa: B023
            below, above = max(0, math.floor(at) - 1), min(len(ordered) - 1, math.ceil(at) + 1)  # noqa: B023
            return ordered[below] - 1e-9 <= value <= ordered[above] + 1e-9  # noqa: B023

        if between(low, (1 - level) / 2) and between(high, (1 + level) / 2):
            continue
        said = f"{call} gives ({low:.5g}, {high:.5g})"
        if between(high, (1 - level) / 2) and between(low, (1 + level) / 2):
            raise NotYet(f"{said}. Return (low, high).", "wrong order")
        if between(low, 1 - level) and between(high, level):
            raise NotYet(
                f"{said}. Between the quantiles 1 − level and level lies less than level of the estimates: half of "
                "what "
                "is left out belongs to each side.",
                "left out twice as much",
            )
        if between(low, 0.0) and between(high, level):
            raise NotYet(f"{said}. That leaves all of it out at the upper end. Share it between both.", "one side")
        if close(low, ordered[0], 1e-9) and close(high, ordered[-1], 1e-9):
            raise NotYet(f"{said}, the least and the greatest estimate. Take the quantiles.", "the whole range")
        mean, z = float(np.mean(values)), NormalDist().inv_cdf((1 + level) / 2)
        for spread, name, why in (
            (float(np.std(values)), "a normal interval", "the mean and a multiple of the standard deviation"),
            (
                float(np.std(values)) / math.sqrt(resamples), "the error of the mean",
                "a standard deviation divided by the root of resamples. More resamples must not narrow the interval",
            ),
        ):  # fmt: skip
            if any(close(high - low, 2 * f * spread, 5e-3) for f in (z, 1.0, 1.96)) and low < mean < high:
                raise NotYet(
                    f"{said}, {why}. Take quantiles of the estimates: they need no symmetry, and a loss has a floor.",
                    name,
                )
        wanted = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
        raise NotYet(
            f"{said}. The middle {level:.0%} of its estimates lie between {wanted[0]:.5g} and {wanted[1]:.5g}."
        )


def _interval(function: Subject, call: str, *arguments: Any) -> tuple[float, float]:
    """The learner's interval, read with care: a description of the call would be too long."""
    names = ("runs", "estimate", "level", "resamples", "generator")
    function.describe = lambda **_: call  # type: ignore[method-assign]
    low, high = function.numbers("low", "high", **dict(zip(names, arguments, strict=True)))
    return low, high


def utilisation(answer: Any) -> None:
    """MFU and HFU from a throughput."""
    names = ("tokens_per_second", "parameters", "devices", "peak_performance", "recomputed")
    function = Subject(answer, "utilisation", *names)
    cases = [
        (380.0 * 2048, 65.2e9, 2048, 312e12, False),  # LLaMA-65B, as its paper reports
        (380.0 * 2048, 65.2e9, 2048, 312e12, True),
    ]
    draw = random.Random(16)
    for _ in range(12):
        devices, n = draw.choice([8, 64, 1024]), 10 ** draw.uniform(8.5, 11)
        peak = draw.choice([312e12, 989.4e12])
        cases.append((draw.uniform(0.2, 0.5) * devices * peak / (6 * n), n, devices, peak, draw.random() < 0.5))
    for speed, n, devices, peak, recomputed in cases:
        arguments = dict(zip(names, (speed, n, devices, peak, recomputed), strict=True))
        mfu, hfu = function.numbers("mfu", "hfu", **arguments)
        right = 6 * n * speed / (devices * peak)
        hardware = right * (8 / 6 if recomputed else 1)
        if close(mfu, right) and close(hfu, hardware):
            continue
        said = f"{function.describe(**arguments)} gives ({mfu:.5g}, {hfu:.5g})"
        if recomputed and close(mfu, hardware) and close(hfu, right):
            raise NotYet(
                f"{said}, in the wrong order. HFU counts the recomputed operations too: it is larger.", "swapped"
            )
        if recomputed and close(mfu, hardware):
            raise NotYet(
                f"{said}. The MFU holds recomputed operations. It counts what the model needs: 6 per parameter and "
                "token.",
                "recomputation in the MFU",
            )
        recognise(
            said,
            mfu,
            (
                (
                    "counted a multiply-add as one",
                    right / 2,
                    "where the MFU is half of what is right. A multiplication and an addition are two operations.",
                ),
                (
                    "forgot the backward pass",
                    right / 3,
                    "where the MFU is a third of what is right: 2 operations are the forward pass. Training has 6.",
                ),
                (
                    "forgot the devices",
                    right * devices,
                    "an MFU above 1. The throughput is that of all devices: divide by their number.",
                ),
                ("percent", right * 100, "a utilisation in percent. Return a fraction, 0.4 for 40%."),
                (
                    "turned over",
                    1 / right,
                    "a ratio upside down: divide what the model needs by what the devices could do.",
                ),
                (
                    "reduced by recomputation",
                    right * 6 / 8,
                    "where the MFU is too small by 6/8. It does not depend on recomputation.",
                ),
            ),
        )
        if close(mfu, right):
            if recomputed and close(hfu, right):
                raise NotYet(
                    f"{said}. With recomputation the devices do 2 more operations per parameter and token, and the HFU "
                    "counts them.",
                    "forgot the recomputation",
                )
            recognise(
                said,
                hfu,
                (
                    (
                        "recomputed the backward pass",
                        right * 10 / 6,
                        "where the HFU adds 4 operations. A forward pass has 2.",
                    ),
                    (
                        "recomputed everything",
                        right * 2,
                        "where the HFU counts everything twice. Only the forward pass is repeated.",
                    ),
                    ("half a pass", right * 9 / 6, "where the HFU adds 3 operations. A forward pass has 2."),
                    (
                        "ignored recomputed",
                        right * 8 / 6,
                        "an HFU above the MFU without recomputation. Then both are the same.",
                    ),
                ),
            )
            raise NotYet(f"{said}. The MFU is right; the HFU is {hardware:.5g}.")
        raise NotYet(
            f"{said}. By hand: 6 × {n:.5g} × {speed:.5g} FLOP/s over {devices} × {peak:.5g} FLOP/s is {right:.5g}."
        )


# The learner's own record

RUNS_NEEDED, SIZES_NEEDED, DATA_NEEDED = 9, 3, 3
# English holds 0.6 to 1.3 bits per letter, by Shannon's experiment of 1951. Less, from a small model on a text that it
# has not seen, is no prediction.
LEAST_PER_CHARACTER = 0.4  # nats
CHARACTERS = 1000  # a vocabulary below this is one of characters or bytes
WORSE = 0.02  # relative; so much worse a larger model may be by chance
MISFIT = 0.05  # relative; a law that misses its own runs by more than this (median) describes nothing
SIX = (0.3, 5.0)  # counted operations over 6ND: embeddings and attention move it, but not that far
# A CPU core does at most 64 FP32 operations per cycle (two fused multiply-adds on 16 numbers).
CORE = 64 * 6e9  # FLOP/s


def own_record(answer: Any) -> str:
    """A record of the learner's own runs: enough of them, possible losses, and a larger run that tests the law."""
    record = own("scaling_laws", answer)
    try:
        runs = reconcile.runs(record)
        fitted = [r for r in runs if r.role == "fit"]
        sizes, data = {r.size for r in fitted}, {r.tokens for r in fitted}
        largest = max((r.flops * 6 * r.size * r.tokens for r in runs), default=1.0)
        if not largest < math.inf:
            raise OverflowError("a run is larger than any number")
    except (EfflabError, ArithmeticError) as error:
        raise NotYet(f"{str(error).rstrip('.')}. Measure with '{command('scaling_laws')}'.", "damaged") from None
    if len(fitted) < RUNS_NEEDED or len(sizes) < SIZES_NEEDED or len(data) < DATA_NEEDED:
        raise NotYet(
            f"Record {record.id} has {len(fitted)} runs of {len(sizes)} sizes on {len(data)} amounts of data; a law of "
            f"five constants needs {RUNS_NEEDED} of {SIZES_NEEDED} on {DATA_NEEDED}. Run '{command('scaling_laws')}'."
        )
    at_scale(record)
    _possible(record, runs)
    held_out = [r for r in runs if r.role == "held-out"]
    if not held_out:
        raise NotYet(
            f"Record {record.id} has no held-out run. A law that was never tried beyond its own runs is untested. "
            f"Run '{command('scaling_laws')}'.",
            "nothing held out",
        )
    for run in held_out:
        if run.flops <= max(r.flops for r in fitted):
            raise NotYet(
                f"{run.case}: held out, but no larger than the runs that the law was fitted to. That tests the "
                "inside of "
                "the range, not the extrapolation.",
                "held out inside",
            )
    _ordered(fitted)
    return _tested(record, len(fitted), len(sizes), len(data))


def _possible(record: Record, runs: list[reconcile.Run]) -> None:
    """Losses that a language model can have, and rates that the device can do."""
    vocabulary = record.spec.get("vocabulary")
    if isinstance(vocabulary, bool) or not isinstance(vocabulary, int) or not 1 < vocabulary < 10**7:
        raise NotYet(
            f"Record {record.id} does not say how many tokens its vocabulary has (spec.vocabulary is "
            f"{short(vocabulary)}). "
            f"Measure with '{command('scaling_laws')}'.",
            "damaged",
        )
    guess = math.log(vocabulary)
    environment = record.environment
    device = datasheet(record)
    for run in runs:
        if run.loss >= guess:
            raise NotYet(
                f"{run.case}: a loss of {show(run.loss, NAT)}. A model that holds all {vocabulary} tokens for "
                "equally likely "
                f"has ln {vocabulary} = {show(guess, NAT)}. Did it learn anything, and is the loss in nats?",
                "worse than guessing",
            )
        if vocabulary < CHARACTERS and run.loss < LEAST_PER_CHARACTER:
            raise NotYet(
                f"{run.case}: a loss of {show(run.loss, NAT)} per character. Text holds more than that: was the model "
                "trained on what it was tested on?",
                "too good",
            )
        six = 6 * run.size * run.tokens
        if not SIX[0] <= run.flops / six <= SIX[1]:
            raise NotYet(
                f"{run.case}: {run.flops:.3g} FLOP for {run.size:,.0f} parameters and {run.tokens:,.0f} tokens is "
                f"{run.flops / six:.2g} times 6ND. Size, tokens or operations are wrong.",
                "operations",
            )
        if run.time is None:
            continue
        if device and device.peak_dense:
            plausible(
                run.case,
                run.flops / run.time,
                max(device.peak_dense.values()) * environment.count,
                unit=FLOP_PER_SECOND,
                noise=1.0,
                than=f"the highest peak of {device.name}",
                why="The time is too short to be true.",
                name="faster than the device",
            )
        elif environment.kind == "cpu":
            cores = environment.cores or environment.threads
            plausible(
                run.case,
                run.flops / run.time,
                cores * CORE,
                unit=FLOP_PER_SECOND,
                noise=1.0,
                than=f"what {cores} CPU cores could do at 64 operations per cycle and 6 GHz",
                why="The time is too short to be true.",
                name="faster than the device",
            )


def _ordered(fitted: list[reconcile.Run]) -> None:
    """More parameters on the same data, or more data for the same model, do not make the loss worse."""
    pairs, worse = 0, []
    for a in fitted:
        for b in fitted:
            larger = (b.size > a.size and b.tokens == a.tokens) or (b.size == a.size and b.tokens > a.tokens)
            if not larger:
                continue
            pairs += 1
            if b.loss > (1 + WORSE) * a.loss:
                worse.append((b.loss / a.loss, a, b))
    if len(worse) > pairs / 10:
        _, a, b = max(worse, key=lambda w: w[0])
        more = "parameters" if b.size > a.size else "tokens"
        raise NotYet(
            f"{len(worse)} of {pairs} pairs of runs go the wrong way. {b.case} has more {more} than {a.case}, and "
            "its loss is "
            f"{show(b.loss, NAT)} against {show(a.loss, NAT)}. No law of this form fits that: was the learning rate "
            "too high "
            "for the larger models, or the training cut short?",
            "larger is worse",
        )


def _tested(record: Record, runs: int, sizes: int, data: int) -> str:
    """What the law said of the held-out run; refused where the law does not even describe its own runs."""
    try:
        fit = reconcile.law(record)
    except EfflabError as error:
        raise NotYet(str(error), "no law") from None
    predicted = {r.case: float(fit.loss(r.size, r.tokens)) for r in reconcile.runs(record)}
    miss = float(np.median([abs(r.loss / predicted[r.case] - 1) for r in reconcile.runs(record, ("fit",))]))
    if not miss <= MISFIT:
        raise NotYet(
            f"The law fitted to these runs misses them by {miss:.1%} (median); {MISFIT:.0%} is the most that is "
            "believed. "
            "Were all of them trained to the end of their schedule, on one text?",
            "no law",
        )
    said = f"{runs} runs of {sizes} sizes on {data} amounts of data; the law fits them to {miss:.2%} (median)."
    for run in reconcile.runs(record, ("held-out",)):
        said += (
            f" For {run.case} it predicts {show(predicted[run.case], NAT)}; measured: {show(run.loss, NAT)}, "
            f"{abs(predicted[run.case] / run.loss - 1):.1%} off."
        )
    return said


CHECKERS: dict[str, Callable[[Any], str | None]] = {
    f.__name__: f
    for f in (
        training_days,
        decoder_parameters,
        compute_optimal,
        fit_power_law,
        huber_objective,
        bootstrap_interval,
        utilisation,
        own_record,
    )
}
