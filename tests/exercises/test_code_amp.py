"""The mixed-precision chapter's code checkers: other right solutions pass, usual mistakes are named, mutations of the
notebook's solutions are refused, nothing escapes."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

from efflab import catalog
from efflab.exercises import check, questions
from efflab.exercises.checks.amp import SCALE_MISTAKES, _scaler_history, _scales
from efflab.formulas import amp as formulas
from tests.exercises import judging

NAMES = {
    1: "overflows, scale, growth_interval",
    2: "shares, speedups",
    3: "gradients, scale",
    4: "model, x, dtype",
    5: "model, loss_fn, batches, ignore_index",
    6: "model, optimizer, scaler, batch, clip",
    7: "blocks, x",
}
verdict, wrong = judging.code("amp", NAMES)
solution = judging.solutions("amp")
STRANGE = [
    *judging.STRANGE, 0.1, [judging.Stubborn()], {"0": judging.Stubborn()}, torch.float32, [None] * 8,
    {1: torch.float32},
]  # fmt: skip


@pytest.mark.parametrize("number", NAMES)
@pytest.mark.parametrize("value", STRANGE, ids=lambda v: type(v).__name__)
def test_whatever_comes_back_is_answered_in_words(number, value):
    result = verdict(number, lambda *_: value)
    assert result.outcome == "wrong" and result.feedback


@pytest.mark.parametrize("number", NAMES)
def test_an_exit_an_error_and_a_blank_are_answered_in_words(number):
    judging.led_astray("amp", number, verdict)


@pytest.mark.parametrize("number", NAMES)
def test_the_learners_random_state_and_warnings_stay(number):
    torch.manual_seed(5)
    before, python = torch.get_rng_state(), random.getstate()
    solution(number)
    check(f"amp-code-{number}", solution(number))
    verdict(number, lambda *_: 0.5)
    assert torch.equal(torch.get_rng_state(), before) and random.getstate() == python


# The notebook's solutions and what becomes of them when a line is changed


@pytest.mark.parametrize("number", NAMES)
def test_the_notebooks_solution_is_right(number):
    result = check(f"amp-code-{number}", solution(number))
    assert result.right, result.feedback


MUTATIONS = [
    (1, "scale / 2, 0", "scale / 2, clean"),
    (1, "scale / 2, 0", "scale, 0"),
    (1, "scale / 2, 0", "scale / 4, 0"),
    (1, "clean += 1", "clean += 2"),
    (1, "clean == growth_interval", "clean > growth_interval"),
    (1, "clean == growth_interval", "clean >= growth_interval - 1"),
    (1, "scale * 2, 0", "scale * 2, clean"),
    (1, "scale * 2, 0", "scale * 4, 0"),
    (1, "[scale], 0", "[], 0"),
    (1, "[scale], 0", "[scale], 1"),
    (1, "if overflow:", "if not overflow:"),
    (2, "1 - sum(shares)", "0"),
    (2, "1 - sum(shares)", "sum(shares)"),
    (2, "share / speedup", "share * speedup"),
    (2, "share / speedup", "share / max(1, speedup)"),
    (2, "return 1 / left", "return left"),
    (2, "left += ", "left = "),
    (3, "(exact * scale).to(torch.float16)", "exact.to(torch.float16)"),
    (3, "(exact * scale).to(torch.float16)", "exact.to(torch.float16) * scale"),
    (3, "(exact * scale).to(torch.float16)", "(exact / scale).to(torch.float16)"),
    (3, "(exact * scale).to(torch.float16)", "(exact * scale).to(torch.bfloat16)"),
    (3, "(exact * scale).to(torch.float16)", "exact * scale"),
    (3, "exact != 0", "exact == exact"),
    (3, "(rounded != 0)", "(rounded > 0)"),
    (3, "(rounded != 0)", "(rounded.abs() >= 2**-14)"),
    (3, " & rounded.isfinite()", ""),
    (3, "(rounded != 0) & ", ""),
    (3, "there.sum().item()", "len(gradients)"),
    (4, "if not list(module.children())", "if True"),
    (4, "if not list(module.children())", "if list(module.parameters())"),
    (4, "output.dtype", "inputs[0].dtype"),
    (4, "output.dtype", "str(output.dtype)"),
    (4, "x.device.type, dtype)", "x.device.type, torch.bfloat16)"),
    (4, "x.device.type, dtype)", "x.device.type, dtype, enabled=False)"),
    (4, "handle.remove()", "pass"),
    (4, "name=name", "name='0'"),
    (4, "found[name]", "found[type(module).__name__]"),
    (5, "targets != ignore_index", "targets != -100"),
    (5, "targets != ignore_index", "targets == targets"),
    (5, "if count == 0:", "if count < 0:"),
    (5, "* count / sum(counts)", "/ len(batches)"),
    (5, "* count / sum(counts)", ""),
    (5, "* count / sum(counts)", "* count"),
    (5, "* count / sum(counts)", "* count / sum(counts) / len(batches)"),
    (5, "loss.backward()", "model.zero_grad(); loss.backward()"),
    (5, "loss.backward()", "pass"),
    (5, "total += loss.item()", "total = loss.item()"),
    (5, "total += loss.item()", "total += loss.item() * sum(counts) / count / len(batches)"),
    (5, "return total", "return loss"),
    (6, "optimizer.zero_grad()", "pass"),
    (6, "dtype=torch.float16", "dtype=torch.bfloat16"),
    (6, "dtype=torch.float16", "dtype=torch.float16, enabled=False"),
    (6, "scaler.scale(loss).backward()", "loss.backward()"),
    (6, "    scaler.unscale_(optimizer)\n", ""),
    (6, "    torch.nn.utils.clip_grad_norm_(model.parameters(), clip)\n", ""),
    (6, "clip_grad_norm_(model", "clip_grad_value_(model"),
    (6, "model.parameters(), clip)", "model.parameters(), 1.0)"),
    (6, "scaler.step(optimizer)", "optimizer.step()"),
    (6, "scaler.step(optimizer)", "pass"),
    (6, "scaler.step(optimizer)", "scaler.step(optimizer); optimizer.step()"),
    (6, "    scaler.update()\n", ""),
    (6, "loss.item()", "scaler.scale(loss).item()"),
    (6, "    return loss.item()\n", ""),
    (7, "checkpoint(block, x, use_reentrant=False)", "block(x)"),
    (7, "checkpoint(block, x, use_reentrant=False)", "checkpoint(block, x, use_reentrant=True)"),
    (7, "checkpoint(block, x, use_reentrant=False)", "checkpoint(block, x.detach(), use_reentrant=False)"),
    (7, "use_reentrant=False", "use_reentrant=False, preserve_rng_state=False"),
    (7, "for block in blocks:", "for block in blocks[1:]:"),
    (7, "for block in blocks:", "for block in reversed(blocks):"),
    (7, "    return x\n", ""),
]  # fmt: skip


@pytest.mark.parametrize(("number", "old", "new"), MUTATIONS, ids=lambda x: str(x).strip()[:60])
def test_a_mutated_solution_is_refused(number, old, new):
    result = check(f"amp-code-{number}", solution(number, old, new))
    assert result.outcome == "wrong" and len(result.feedback) > 30, result


# 1. The loss scale


@pytest.mark.parametrize("seed", range(20))
def test_the_checkers_rule_is_gradscalers(seed):
    """The rule that mistakes are told by, the formula and torch's own scaler agree."""
    draw = random.Random(seed)
    history = [draw.random() < 0.2 for _ in range(60)]
    scale, interval = 2.0 ** draw.randint(0, 30), draw.randint(1, 12)
    theirs = _scaler_history(history, scale, interval)
    assert _scales(history, scale, interval) == theirs
    assert formulas.loss_scales(history, scale=scale, growth_interval=interval) == theirs


def test_history_by_counting_from_the_end():
    """Another way: how many good steps in a row end at each step."""

    def other(overflows, scale, growth_interval):
        found = [scale]
        last = -1
        for i, overflow in enumerate(overflows):
            if overflow:
                last = i
                found.append(found[-1] * 0.5)
            else:
                found.append(found[-1] * (2 if (i - last) % growth_interval == 0 else 1))
        return np.array(found)

    assert verdict(1, other)
    assert verdict(1, lambda o, s, n: tuple(torch.tensor(x) for x in other(o, s, n)))


def test_history_with_the_scaler_itself():
    assert verdict(1, _scaler_history)


@pytest.mark.parametrize(("mistake", "rule"), [(name, rule) for name, rule, _ in SCALE_MISTAKES])
def test_history_mistakes(mistake, rule):
    said = wrong(1, lambda o, s, n: _scales(o, s, n, **rule), mistake)
    assert "GradScaler's is" in said


@pytest.mark.parametrize(
    ("mistake", "function"),
    [
        ("one too few", lambda o, s, n: _scales(o, s, n)[:-1]),
        ("one too few", lambda o, s, n: _scales(o, s, n)[1:] if o else [s]),
        ("back to the beginning", lambda o, s, n: _scales(o, s, n, to=s)),
        (None, lambda o, s, n: [s] * (len(o) + 1) if len(o) < 9 else _scales(o, s, n)),
        (None, lambda o, s, n: [*_scales(o, s, n), 1.0]),
        (None, lambda o, s, n: _scales(o, s, n)[-1]),
        (None, lambda o, s, n: [str(x) for x in _scales(o, s, n)]),
    ],
)
def test_other_history_mistakes(mistake, function):
    wrong(1, function, mistake)


# 2. The speedup


def speedup(shares, speedups, *, rest=True):
    """By the time of a step of 1,000 ms."""
    left = [1000 * f / s for f, s in zip(shares, speedups, strict=True)]
    return 1000 / (sum(left) + (1000 - 1000 * sum(shares) if rest else 0))


def test_speedup():
    assert verdict(2, speedup)
    assert verdict(2, lambda f, s: np.float64(speedup(f, s)))
    assert verdict(2, lambda f, s: 1 / (1 - sum(a * (1 - 1 / b) for a, b in zip(f, s, strict=True))))


@pytest.mark.parametrize(
    ("mistake", "function"),
    [
        ("left out the rest", lambda f, s: speedup(f, s, rest=False) if f else 1.0),
        ("averaged the speedups", lambda f, s: sum(a * b for a, b in zip(f, s, strict=True))),
        ("averaged the speedups", lambda f, s: sum(a * b for a, b in zip(f, s, strict=True)) + 1 - sum(f)),
        ("gave the time", lambda f, s: 1 / speedup(f, s)),
        ("multiplied", lambda f, s: math.prod(s)),
        ("the largest speedup", lambda f, s: max(s, default=1.0)),
        (
            "applied Amdahl's law to one part after another",
            lambda f, s: math.prod(1 / (1 - a + a / b) for a, b in zip(f, s, strict=True)),
        ),
        ("the first part alone", lambda f, s: speedup(f[:1], s[:1])),
        ("no part slower", lambda f, s: speedup(f, [max(1, b) for b in s])),
        (None, lambda f, s: 1.0),
        (None, lambda f, s: 2.5),
    ],
)
def test_speedup_mistakes(mistake, function):
    wrong(2, function, mistake)


# 3. What FP16 keeps


def by_hand(gradients, scale, *, least=2.0**-25, most=65520.0, strict=True, among=lambda g: g != 0, sign=abs):
    """By FP16's limits, without rounding anything."""
    there = [sign(g) * scale for g in gradients if among(g)]
    return sum((least < x if strict else least <= x) and x < most for x in there) / len(there)


def test_surviving():
    assert verdict(3, by_hand)

    def with_numpy(gradients, scale):
        values = np.array(gradients)
        with np.errstate(all="ignore"):
            rounded = (values * scale).astype(np.float16)
        return np.mean((np.isfinite(rounded) & (rounded != 0))[values != 0])

    assert verdict(3, with_numpy)
    assert verdict(3, lambda g, s: torch.tensor(with_numpy(g, s)))


def narrowly(gradients, scale, keep):
    values = np.array(gradients)
    with np.errstate(all="ignore"):
        mask = np.asarray(keep(values, scale))
    return float(mask[values != 0].mean())


@pytest.mark.parametrize(
    ("mistake", "function"),
    [
        ("counted the zeros", lambda g, s: by_hand(g, s, among=lambda x: True)),
        ("counted the zeros", lambda g, s: (by_hand(g, s, among=lambda x: True) * len(g) + g.count(0)) / len(g)),
        ("forgot the scale", lambda g, s: by_hand(g, 1.0)),
        ("divided by the scale", lambda g, s: by_hand(g, 1 / s)),
        ("forgot the overflow", lambda g, s: by_hand(g, s, most=math.inf)),
        ("forgot the underflow", lambda g, s: by_hand(g, s, least=0)),
        ("smallest number without rounding", lambda g, s: by_hand(g, s, least=2**-24, strict=False)),
        ("normal numbers only", lambda g, s: by_hand(g, s, least=2**-14, strict=False)),
        ("negative gradients", lambda g, s: by_hand(g, s, sign=float)),
        ("gave the lost share", lambda g, s: 1 - by_hand(g, s)),
        ("gave the number", lambda g, s: by_hand(g, s) * sum(x != 0 for x in g)),
        ("percent", lambda g, s: 100 * by_hand(g, s)),
        (
            "scaled after rounding",
            lambda g, s: narrowly(
                g,
                s,
                lambda v, s: np.isfinite(h := (v.astype(np.float16) * np.float64(s)).astype(np.float16)) & (h != 0),
            ),
        ),
        (
            "equal after a round trip",
            lambda g, s: narrowly(g, s, lambda v, s: (v * s).astype(np.float16).astype(float) / s == v),
        ),
        (None, lambda g, s: 0.5),
    ],
)
def test_surviving_mistakes(mistake, function):
    wrong(3, function, mistake)


# 4. Autocast's dtypes


def dtypes(model, x, dtype, *, autocast=True, leaves=True, read=lambda inputs, output: output.dtype, remove=True):
    found, handles = {}, []
    for name, module in model.named_modules():
        if not leaves or not len(list(module.children())):
            handles.append(module.register_forward_hook(lambda m, i, o, name=name: found.__setitem__(name, read(i, o))))
    with torch.amp.autocast(x.device.type, dtype=dtype, enabled=autocast), torch.no_grad():
        model(x)
    for handle in handles if remove else []:
        handle.remove()
    return found


def test_dtypes():
    assert verdict(4, dtypes)


def test_dtypes_by_wrapping_forward():
    """Another way than hooks."""

    def wrapped(model, x, dtype):
        found, originals = {}, []
        for name, module in model.named_modules():
            if not list(module.children()):
                originals.append((module, module.forward))

                def forward(*a, module=module, name=name, original=module.forward):
                    output = original(*a)
                    found[name] = output.dtype
                    return output

                module.forward = forward
        with torch.autocast("cpu", dtype):
            model(x)
        for module, original in originals:
            module.forward = original
        return found

    assert verdict(4, wrapped)


def converted(model, x, dtype):
    return dtypes(model.to(dtype), x.to(dtype) if x.is_floating_point() else x, dtype, autocast=False)


@pytest.mark.parametrize(
    ("mistake", "function"),
    [
        ("no autocast", lambda m, x, d: dtypes(m, x, d, autocast=False)),
        ("containers too", lambda m, x, d: dtypes(m, x, d, leaves=False)),
        ("containers too", lambda m, x, d: {n: t for n, t in dtypes(m, x, d, leaves=False).items() if n}),
        ("inputs", lambda m, x, d: dtypes(m, x, d, read=lambda i, o: i[0].dtype)),
        ("no dtype", lambda m, x, d: dtypes(m, x, d, read=lambda i, o: str(o.dtype))),
        ("hooks left", lambda m, x, d: dtypes(m, x, d, remove=False)),
        ("another dtype", lambda m, x, d: dtypes(m, x, torch.bfloat16)),
        ("all in the narrow dtype", lambda m, x, d: dict.fromkeys(dtypes(m, x, d), d)),
        ("parameters", lambda m, x, d: dict.fromkeys(dtypes(m, x, d), torch.float32)),
        ("converted the model", converted),
        ("model not called", lambda m, x, d: {}),
        ("names", lambda m, x, d: {f"model.{n}": t for n, t in dtypes(m, x, d).items()}),
        (None, lambda m, x, d: dict(list(dtypes(m, x, d).items())[1:])),
    ],
)
def test_dtypes_mistakes(mistake, function):
    said = verdict(4, function)
    assert said.outcome == "wrong", said
    names = {mistake} | ({"no autocast"} if mistake == "parameters" else set())  # equal for a model of linear layers
    assert said.misconception in names, said.feedback


# 5. Accumulation


def accumulated(model, loss_fn, batches, ignore, *, weight=None, index=None, keep=False, skip=True, loss="mean"):
    index = ignore if index is None else index
    n = [int((t != index).sum()) for _, t in batches]
    weight = weight or (lambda i: n[i] / sum(n))
    total = 0.0
    for i, (x, t) in enumerate(batches):
        if skip and not int((t != ignore).sum()):
            continue
        part = loss_fn(model(x), t) * weight(i)
        if keep:
            model.zero_grad()
        part.backward()
        total += float(part.detach())
    return total


def test_accumulate():
    assert verdict(5, accumulated)


def test_accumulate_by_sums_divided_at_the_end():
    """The gradients of summed losses, divided by the number of tokens once all are there."""

    def other(model, loss_fn, batches, ignore_index):
        total, tokens = torch.zeros(()), 0
        for x, t in batches:
            n = (t != ignore_index).sum()
            if n > 0:
                loss = loss_fn(model(x), t) * n
                loss.backward()
                total, tokens = total + loss.detach(), tokens + n
        for p in model.parameters():
            p.grad /= tokens
        return total / tokens

    assert verdict(5, other)


def test_accumulate_may_drop_the_nan_after_the_forward_pass():
    def other(model, loss_fn, batches, ignore_index):
        tokens = sum((t != ignore_index).sum() for _, t in batches)
        total = 0
        for x, t in batches:
            loss = loss_fn(model(x), t)
            if not loss.isnan():
                loss = loss * (t != ignore_index).sum() / tokens
                loss.backward()
                total = total + loss.detach()
        return total

    assert verdict(5, other)


def all_at_once(model, loss_fn, batches, ignore_index):
    n = [int((t != ignore_index).sum()) for _, t in batches]
    loss = sum(loss_fn(model(x), t) * k / sum(n) for (x, t), k in zip(batches, n, strict=True) if k)
    loss.backward()
    return loss.item()


def stepping(model, loss_fn, batches, ignore_index):
    loss = accumulated(model, loss_fn, batches, ignore_index)
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    return loss


def clearing(model, loss_fn, batches, ignore_index):
    loss = accumulated(model, loss_fn, batches, ignore_index)
    model.zero_grad()
    return loss


@pytest.mark.parametrize(
    ("mistake", "function"),
    [
        ("not divided", lambda m, f, b, i: accumulated(m, f, b, i, weight=lambda k: 1.0)),
        ("mean of means", lambda m, f, b, i: accumulated(m, f, b, i, weight=lambda k: 1 / len(b))),
        (
            "weighed by all tokens",
            lambda m, f, b, i: accumulated(m, f, b, i, weight=lambda k: b[k][1].numel() / sum(t.numel() for _, t in b)),
        ),
        (
            "weighed by sequences",
            lambda m, f, b, i: accumulated(m, f, b, i, weight=lambda k: len(b[k][1]) / sum(len(t) for _, t in b)),
        ),
        ("ignored another index", lambda m, f, b, i: accumulated(m, f, b, i, index=-100)),
        (
            "sum over tokens",
            lambda m, f, b, i: accumulated(m, f, b, i, weight=lambda k: float((b[k][1] != i).sum())),
        ),
        ("cleared in between", lambda m, f, b, i: accumulated(m, f, b, i, keep=True)),
        ("mean over nothing", lambda m, f, b, i: accumulated(m, f, b, i, skip=False)),
        ("all graphs at once", all_at_once),
        ("stepped", stepping),
        ("no gradient", clearing),
        ("no gradient", lambda m, f, b, i: sum(f(m(x), t).item() for x, t in b if (t != i).any())),
        (
            "loss is the mean of means",
            lambda m, f, b, i: (
                accumulated(m, f, b, i),
                sum(v := [f(m(x), t).item() for x, t in b if (t != i).any()]) / len(v),
            )[1],
        ),
        (
            "loss of the last microbatch",
            lambda m, f, b, i: (accumulated(m, f, b, i), f(m(b[-1][0]), b[-1][1]).item())[1],
        ),
        (
            "loss is a sum",
            lambda m, f, b, i: accumulated(m, f, b, i) * sum(int((t != i).sum()) for _, t in b),
        ),
    ],
)
def test_accumulate_mistakes(mistake, function):
    said = verdict(5, function)
    assert said.outcome == "wrong", said
    assert said.misconception in {mistake, "all graphs at once" if "loss" in mistake else mistake}, said.feedback


def test_the_loss_alone_may_be_wrong():
    """Gradients right, loss wrong: told apart from wrong gradients."""

    def last(model, loss_fn, batches, ignore_index):
        n = [int((t != ignore_index).sum()) for _, t in batches]
        for (x, t), k in zip(batches, n, strict=True):
            if k:
                mean = loss_fn(model(x), t)
                (mean * k / sum(n)).backward()
        return mean.item()

    assert "the gradients are right" in wrong(5, last, "loss of the last microbatch")


# 6. One step


def step(
    model, optimizer, scaler, batch, clip, *, dtype=torch.float16, inside=False, loss_inside=True, unscale=True,
    clip_first=False, clipping=True, by=None, clear=True, update=1, returned=lambda loss, scaler: loss.item(),
):  # fmt: skip
    x, y = batch
    if clear:
        optimizer.zero_grad(set_to_none=True)
    with torch.amp.autocast(x.device.type, dtype=dtype or torch.float16, enabled=dtype is not None):
        logits = model(x)
        if loss_inside:
            loss = F.cross_entropy(logits, y)
        if inside:
            scaler.scale(loss).backward()
    if not loss_inside:
        loss = F.cross_entropy(logits, y)
    value = returned(loss, scaler)
    if not inside:
        scaler.scale(loss).backward()
    clipper = by or torch.nn.utils.clip_grad_norm_
    if clipping and clip_first:
        clipper(model.parameters(), clip)
    if unscale:
        scaler.unscale_(optimizer)
    if clipping and not clip_first:
        clipper(model.parameters(), clip)
    scaler.step(optimizer)
    for _ in range(update):
        scaler.update()
    return value


def test_step():
    assert verdict(6, step)


def test_step_that_clears_at_the_end():
    def other(model, optimizer, scaler, batch, clip):
        value = step(model, optimizer, scaler, batch, clip, clear=False)
        optimizer.zero_grad()
        return value

    assert verdict(6, other)


def test_step_that_clips_by_hand():
    def by_hand(parameters, clip):
        grads = [p.grad for p in parameters]
        norm = torch.sqrt(sum(g.square().sum() for g in grads))
        for g in grads:
            g *= torch.clamp(clip / norm, max=1.0)

    assert verdict(6, lambda *a: step(*a, by=by_hand))


def test_step_that_clips_to_the_scaled_clip():
    """Clipping scaled gradients to a scaled norm is the same thing."""

    def other(model, optimizer, scaler, batch, clip):
        return step(model, optimizer, scaler, batch, clip * scaler.get_scale(), unscale=False)

    assert verdict(6, other)


def without_scaler(model, optimizer, scaler, batch, clip):
    optimizer.zero_grad()
    with torch.autocast("cpu", torch.float16):
        loss = F.cross_entropy(model(batch[0]), batch[1])
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
    optimizer.step()
    scaler.update()
    return loss.item()


def update_first(model, optimizer, scaler, batch, clip):
    optimizer.zero_grad()
    with torch.autocast("cpu", torch.float16):
        loss = F.cross_entropy(model(batch[0]), batch[1])
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
    scaler.update()
    scaler.step(optimizer)
    return loss.item()


def scaled_by_hand(model, optimizer, scaler, batch, clip):
    """Divides by the scale that the scaler has when it is on."""
    optimizer.zero_grad()
    with torch.autocast("cpu", torch.float16):
        loss = F.cross_entropy(model(batch[0]), batch[1])
    (scaler.scale(loss) * 1.0).backward()
    for p in model.parameters():
        p.grad /= 1024.0
    torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
    for p in model.parameters():
        p.grad *= 1024.0
    scaler.step(optimizer)
    scaler.update()
    return loss.item()


@pytest.mark.parametrize(
    ("mistake", "function"),
    [
        ("no autocast", lambda *a: step(*a, dtype=None)),
        ("another dtype", lambda *a: step(*a, dtype=torch.bfloat16)),
        ("backward under autocast", lambda *a: step(*a, inside=True)),
        ("loss in FP16", lambda *a: step(*a, loss_inside=False)),
        ("clipped before unscaling", lambda *a: step(*a, clip_first=True)),
        ("clipped before unscaling", lambda *a: step(*a, unscale=False)),
        ("not clipped", lambda *a: step(*a, clipping=False)),
        ("clipped each element", lambda *a: step(*a, by=torch.nn.utils.clip_grad_value_)),
        ("gradients not cleared", lambda *a: step(*a, clear=False)),
        ("no update", lambda *a: step(*a, update=0)),
        ("scaled loss", lambda *a: step(*a, returned=lambda loss, scaler: float(scaler.scale(loss.detach())))),
        ("optimizer.step", without_scaler),
        ("scaled by hand", scaled_by_hand),
        (None, lambda *a: step(*a, returned=lambda loss, scaler: 3.0)),
    ],
)
def test_step_mistakes(mistake, function):
    wrong(6, function, mistake)


def test_update_before_step_is_told():
    """torch itself refuses the order; its words come with the line."""
    said = verdict(6, update_first)
    assert said.outcome == "wrong" and ("update" in said.feedback or "unscale" in said.feedback)


def test_a_step_on_an_overflow_is_told():
    """A loop that replaces what is not finite and goes on."""

    def stubborn(model, optimizer, scaler, batch, clip):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.float16):
            loss = F.cross_entropy(model(batch[0]), batch[1])
        scaler.scale(loss).backward()
        for p in model.parameters():
            p.grad = torch.where(p.grad.isfinite(), p.grad, 1e12)
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        scaler.step(optimizer)
        scaler.update()
        return loss.item()

    wrong(6, stubborn, "stepped on an overflow")


# 7. Checkpoints


def blockwise(blocks, x, **options):
    for block in blocks:
        x = checkpoint(block, x, **{"use_reentrant": False, **options})
    return x


def test_checkpointed():
    assert verdict(7, blockwise)


def test_checkpoints_of_two_blocks():
    def pairs(blocks, x):
        for i in range(0, len(blocks), 2):
            x = checkpoint(lambda y, part=blocks[i : i + 2]: torch.nn.Sequential(*part)(y), x, use_reentrant=False)
        return x

    assert verdict(7, pairs)


def test_checkpoint_sequential_is_right_with_enough_segments():
    assert verdict(7, lambda b, x: checkpoint_sequential(b, len(b), x, use_reentrant=False))
    wrong(7, lambda b, x: checkpoint_sequential(b, 1, x, use_reentrant=False), "nothing checkpointed")


def plainly(blocks, x):
    for block in blocks:
        x = block(x)
    return x


def under_no_grad(blocks, x):
    with torch.no_grad():
        return plainly(blocks, x)


@pytest.mark.parametrize(
    ("mistake", "function"),
    [
        ("nothing checkpointed", plainly),
        ("no gradient", under_no_grad),
        ("no gradient", lambda b, x: blockwise(b, x).detach()),
        ("no gradient", lambda b, x: blockwise(b[4:], plainly(b[:4], x).detach())),
        ("reentrant", lambda b, x: blockwise(b, x, use_reentrant=True)),
        ("other random numbers", lambda b, x: blockwise(b, x, preserve_rng_state=False)),
        ("one segment", lambda b, x: checkpoint(lambda y: plainly(b, y), x, use_reentrant=False)),
        ("too few checkpoints", lambda b, x: plainly(b[2:], blockwise(b[:2], x))),
        ("order", lambda b, x: blockwise(b[::-1], x)),
        ("order", lambda b, x: blockwise(b[:-1], x)),
        ("another output", lambda b, x: 2 * blockwise(b, x)),
    ],
)
def test_checkpointed_mistakes(mistake, function):
    wrong(7, function, mistake)


# The questions' texts


def test_what_the_texts_say_beside_the_answers():
    """Numbers in texts and feedback that no answer holds, each computed again."""
    bank = questions.bank("amp")
    h100, a100 = catalog.accelerator("H100 SXM"), catalog.accelerator("A100 SXM 40GB")
    assert round(h100.peak("bf16") / h100.peak("fp32")) == 15 and "15 times" in bank["amp-6"].text
    assert a100.peak("bf16") == pytest.approx(2 * a100.peak("tf32"))  # 24
    assert formulas.amp_speedup(matmul_share=0.8, matmul_speedup=15, other_speedup=1) == pytest.approx(3.9, abs=0.05)
    assert pytest.approx(0.73, abs=0.005) == (0.35 / 1.2) / (0.65 / 6 + 0.35 / 1.2)  # 5: almost three quarters
    assert float(torch.finfo(torch.bfloat16).smallest_normal) * 2**-7 == pytest.approx(9e-41, rel=0.03)  # 9
    assert float(torch.finfo(torch.float16).smallest_normal) * 2**-10 == pytest.approx(6e-8, rel=0.01)
    assert pytest.approx(3e-8, rel=0.01) == 2**-25  # 10
    assert 16384 <= bank["amp-11"].value < 32768
    assert [65536 / 2**n for n in range(6) if 65536 / 2**n > 3000] == [65536, 32768, 16384, 8192, 4096]  # 13
    assert 800 == 320 + 240 + 208 + 32 and 800 / (4 * 320) == 0.625  # 17
    assert 6 * 96 == 576 and round(512 / 8 / 6, 1) == 10.7 and pytest.approx(5.3, abs=0.05) == 512 / 96  # 20
    assert 8 * (85 + 60) == 1160  # 21
    kept = {k: k * 25 + 36 / k * 400 for k in range(1, 37)}  # 23
    assert min(kept, key=kept.get) == 24 and kept[24] == 1200 and 36 * 400 == 14400 and kept[36] == 1300


def test_the_scaler_has_the_defaults_that_the_texts_name():
    scaler = torch.amp.GradScaler("cpu")
    state = scaler.state_dict()
    assert (state["scale"], state["growth_factor"], state["backoff_factor"]) == (65536.0, 2.0, 0.5)
    assert state["growth_interval"] == 2000


def test_a_half_model_is_refused_as_the_text_says():
    """amp-4: GradScaler's own words."""
    model = torch.nn.Linear(4, 4).half()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(model(torch.ones(2, 4).half()).sum()).backward()
    with pytest.raises(ValueError, match=r"Attempting to unscale FP16 gradients"):
        scaler.unscale_(optimizer)
    right = next(o for o in questions.question("amp-4").options if o.right)
    assert "Attempting to unscale FP16 gradients" in right.feedback


def test_autocast_on_a_cpu_is_as_the_texts_say():
    """amp-1: there layer norm and softmax take the dtype of their input."""
    x = torch.randn(2, 8)
    with torch.autocast("cpu", torch.float16):
        y = F.linear(x, torch.randn(8, 8))
        assert y.dtype == F.layer_norm(y, (8,)).dtype == y.softmax(-1).dtype == torch.float16
        assert F.layer_norm(x, (8,)).dtype == torch.float32
        assert F.cross_entropy(y, torch.zeros(2, dtype=torch.long)).dtype == torch.float32


def test_the_old_names_warn_as_the_text_says():
    with pytest.warns(FutureWarning, match=r"torch\.amp\.GradScaler\('cuda'"):
        torch.cuda.amp.GradScaler(enabled=False)
    with pytest.warns(FutureWarning, match=r"torch\.amp\.autocast\('cuda'"):
        torch.cuda.amp.autocast(enabled=False)
