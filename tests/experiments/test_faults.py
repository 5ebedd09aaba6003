"""The loop with its planted faults: each does what it says, and none changes what is learned."""

from __future__ import annotations

import collections
import contextlib
import itertools
import math
import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from efflab.errors import EfflabError
from efflab.experiments import faults, text
from efflab.experiments.faults import ALL, FAULTS, NONE, Batches, Loop

CPU = torch.device("cpu")
ROOT = Path(__file__).parent.parent.parent
SIZE = {
    "layers": 2, "sequence_length": 12, "microbatch": 3, "hidden_size": 16, "intermediate_size": 40, "query_heads": 2,
    "head_dim": 8,
}  # fmt: skip
PARAMETERS = 2 + 2 * 12 + 2  # tensors: embedding and positions, twelve a layer, the final norm


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def loop(of: Any = NONE, **options: Any) -> Loop:
    return Loop("topics", SIZE, CPU, of, **options)


def losses(of: Any, steps: int = 15, **options: Any) -> list[float]:
    with loop(of, **options) as found:
        for _ in range(steps):
            found.step()
        return found.losses


# What is learned


@pytest.mark.parametrize("of", [*({name} for name in FAULTS), ALL], ids=lambda of: "+".join(sorted(of)))
def test_a_fault_does_not_change_what_is_learned(of: set[str]) -> None:
    with_it, without = losses(of), losses(NONE)
    assert with_it == pytest.approx(without, rel=1e-5)
    if "tiny" not in of:
        assert with_it == without, "the same operations, to the last bit"


def test_a_seed_gives_the_same_to_the_last_bit_and_another_seed_does_not() -> None:
    assert losses(ALL) == losses(ALL)
    other = losses(ALL, seed=1)
    assert not any(math.isclose(a, b, rel_tol=1e-5) for a, b in zip(losses(ALL), other, strict=True))


def test_it_learns() -> None:
    """An untrained model is no better than chance, and a trained one is."""
    found = losses(NONE, 150)
    vocabulary = len(faults.text_of("topics").vocabulary) + 1
    assert found[0] == pytest.approx(math.log(vocabulary), rel=0.02)
    assert np.mean(found[-10:]) < 0.8 * found[0]


def test_losses_can_be_read_at_any_time() -> None:
    with loop(NONE) as watched:
        for _ in range(faults.WINDOW + 3):
            watched.step()
            assert len(watched.losses) == watched.steps
    assert watched.losses == losses(NONE, faults.WINDOW + 3)


def test_an_unknown_fault_is_refused() -> None:
    with pytest.raises(EfflabError, match=r"fault: 'loder' is not known. Did you mean 'loader'"):
        loop({"loder"})


def test_ready_batches_are_used_again() -> None:
    with loop({"loader"}, ready=2) as found:
        seen = [next(found.batches) for _ in range(5)]
    first = list(itertools.islice(Batches(faults.data_set("topics", 12, False), 3), 2))
    assert [torch.equal(a, b) for a, b in zip(seen, [*first, *first, first[0]], strict=True)] == [True] * 5


# The text and its batches


def test_the_text_is_the_other_labs_text() -> None:
    found = faults.text_of("topics")
    corpus = text.corpus("topics", 10, 100)
    assert (found.sha256, len(found.characters)) == (corpus.sha256, corpus.characters)
    often = {c for c, n in collections.Counter(found.characters).items() if n >= text.RARE}
    assert [*found.vocabulary] == sorted(often)


def test_both_data_sets_hold_the_text_token_by_token() -> None:
    source = faults.text_of("topics")
    slow, fast = faults.Characters(source, 100), faults.Tokens(source, 100)
    assert len(slow) == len(fast) == (len(source.characters) - 1) // 100
    letters = ["\N{REPLACEMENT CHARACTER}", *source.vocabulary]  # token 0 stands for what is rare
    for index in (0, 1, 77, len(slow) - 1):
        assert torch.equal(slow[index], fast[index])
        assert slow[index].dtype == fast[index].dtype == torch.int64
        said = "".join(letters[token] for token in slow[index].tolist())
        for here, there in zip(said, source.characters[index * 100 : index * 100 + 101], strict=True):
            assert here == (there if there in source.vocabulary else letters[0])
    assert any(0 in slow[index].tolist() for index in range(len(slow))), "rare characters occur"


@given(st.integers(1, 50), st.integers(0, 5))
def test_every_item_comes_once_before_any_comes_again(count: int, seed: int) -> None:
    drawn = list(itertools.islice(faults.Endless(count, seed), 3 * count))
    for begin in (0, count, 2 * count):
        assert sorted(drawn[begin : begin + count]) == list(range(count))
    assert drawn == list(itertools.islice(faults.Endless(count, seed), 3 * count))


# What each fault does


def dispatched(of: Any, steps: int = 1) -> faults.Counts:
    """What a loop's steps dispatch, after one that warms up."""
    with loop(of) as found:
        found.step()
        with faults.counting() as counts:
            for _ in range(steps):
                found.step()
    return counts


def test_the_loader_tokenises_every_item_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    does = faults.Characters.__getitem__
    monkeypatch.setattr(faults.Characters, "__getitem__", lambda self, i: asked.append(i) or does(self, i))
    losses({"loader"}, 5)
    assert len(asked) == 5 * SIZE["microbatch"]
    losses(NONE, 5)
    assert len(asked) == 5 * SIZE["microbatch"], "mended, no character is looked up"


def test_copies_carries_one_hot_rows_and_logits_in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of every tensor that is made by a conversion or a copy, its dtype and shape."""
    vocabulary = len(faults.text_of("topics").vocabulary) + 1
    rows = (SIZE["microbatch"], SIZE["sequence_length"], vocabulary)

    def wide(of: Any) -> list[Any]:
        made: list[Any] = []
        to = torch.Tensor.to

        def listens(tensor: Any, *arguments: Any, **options: Any) -> Any:
            found = to(tensor, *arguments, **options)
            if found.dtype == torch.float64:
                made.append((tuple(found.shape), found.data_ptr() != tensor.data_ptr()))
            return found

        with loop(of) as found, monkeypatch.context() as patch:
            patch.setattr(torch.Tensor, "to", listens)
            found.step()
        return made

    # Two batches of rows are made and copied, and the logits are copied once.
    assert wide({"copies"}) == [(rows, True)] * 5
    assert wide(ALL - {"copies"}) == []
    extra = dispatched({"copies"}).bytes - dispatched(NONE).bytes
    assert extra > 5 * 8 * math.prod(rows)


def test_sync_reads_six_numbers_of_every_parameter_and_the_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    read = "aten._local_scalar_dense.default"
    with loop({"sync"}) as found:
        assert len(found.parameters) == PARAMETERS
    assert dispatched({"sync"}, 3).operators.count(read) == 3 * (1 + 6 * PARAMETERS)
    # Making one-hot rows looks at the host's tokens twice for each batch of rows.
    assert dispatched(ALL - {"sync"}, 3).operators.count(read) == 3 * 4
    assert dispatched(ALL - {"sync", "copies"}, 3).operators.count(read) == 0
    items: list[None] = []
    item = torch.Tensor.item
    with loop({"sync"}) as found, monkeypatch.context() as patch:
        found.step()
        patch.setattr(torch.Tensor, "item", lambda tensor: items.append(None) or item(tensor))
        found.step()
    assert len(items) == 1 + 6 * PARAMETERS


def test_mended_all_is_read_at_the_end_of_a_window_and_is_the_same() -> None:
    with loop({"sync"}) as faulty, loop(NONE) as mended:
        for _ in range(faults.WINDOW - 1):
            faulty.step()
            mended.step()
        assert mended.figures == []
        with faults.counting() as counts:
            mended.step()
        faulty.step()
        assert counts.operators.count("aten._local_scalar_dense.default") == 0, "two tensors are read whole"
        assert mended.figures == pytest.approx(faulty.figures, rel=1e-6)
        weight, gradient = (p.detach().numpy() for p in (faulty.parameters[0], faulty.parameters[0].grad))
        # The optimizer has moved the weights since; the gradients are those that were read.
        expected = [np.sqrt((gradient.astype(np.float64) ** 2).sum()), gradient.mean(), np.abs(gradient).max()]
        assert faulty.figures[3:6] == pytest.approx(expected, rel=1e-4, abs=1e-9)
        assert faulty.figures[0] == pytest.approx(np.linalg.norm(weight), rel=0.05)


def test_tiny_is_many_operators_and_the_count_says_how_many() -> None:
    """The count takes the pieces one by one. A whole step with autograd is another route to the difference."""
    size = faults.with_vocabulary("topics", SIZE)
    (many, much), (few, little) = (faults.count_tiny(size, written_out) for written_out in (True, False))
    found, without = dispatched({"tiny"}), dispatched(NONE)
    assert len(found.operators) - len(without.operators) == many - few
    assert found.bytes - without.bytes == pytest.approx(much - little, rel=0.02)
    # A norm and its backward pass are two operators, a GELU too; the optimizer's step raises its counters and runs.
    assert few == 2 * (2 * SIZE["layers"] + 1) + 2 * SIZE["layers"] + 2
    # By the formulas: a layer norm of 9 operations, a GELU of 5, and 17 for AdamW's line of each parameter.
    x, scale, shift = (torch.randn(16) for _ in range(3))
    with faults.counting() as norm:
        faults.layer_norm(x, (16,), scale, shift)
    with faults.counting() as act:
        faults.gelu(x)
    assert (len(norm.operators), len(act.operators)) == (9, 5)
    assert many > 9 * (2 * SIZE["layers"] + 1) + 5 * SIZE["layers"] + 15 * PARAMETERS


def test_python_counts_token_by_token(monkeypatch: pytest.MonkeyPatch) -> None:
    class Watched(dict):  # type: ignore[type-arg]
        written = 0

        def __setitem__(self, key: Any, value: Any) -> None:
            Watched.written += 1
            super().__setitem__(key, value)

    tokens = SIZE["microbatch"] * SIZE["sequence_length"]
    with loop({"python"}) as found, loop(NONE) as mended:
        found._pairs = Watched()
        items = list(itertools.islice(Batches(faults.data_set("topics", 12, False), 3), 4))
        for _ in range(4):
            found.step()
            mended.step()
        assert Watched.written == 4 * tokens
        expected = collections.Counter(
            pair for batch in items for row in batch.tolist() for pair in itertools.pairwise(row)
        )
        assert found.pairs == mended.pairs == expected
        assert mended._pairs == {}
    assert "aten.bincount.default" in dispatched(NONE).operators
    assert "aten.bincount.default" not in dispatched({"python"}).operators


@pytest.mark.parametrize("of", [{"copies"}, NONE], ids=["faulty", "mended"])
def test_the_accuracy_is_that_of_the_step(of: set[str]) -> None:
    with loop(of) as found:
        for _ in range(40):
            found.step()
        (batch,) = itertools.islice(found.batches, 1)
        found.batches = iter([batch])
        found.model.tokens, found.model.targets = batch[:, :-1], batch[:, 1:]
        with torch.no_grad():
            logits = found.model.logits(found.model.run_layers(found.model.embed())).numpy()
        expected = float((logits.argmax(-1) == batch[:, 1:].numpy()).mean())
        found.step()
        assert found.correct == pytest.approx(expected)
    assert expected > 0.05


# What "tiny" writes out, against torch in float64


@given(
    st.lists(st.integers(1, 5), min_size=0, max_size=2), st.integers(2, 17), st.integers(0, 10), st.floats(0.01, 100)
)
def test_written_out_functions_are_torchs(shape: list[int], width: int, seed: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(*shape, width, generator=generator, dtype=torch.float64) * scale
    weight, bias = (torch.randn(width, generator=generator, dtype=torch.float64) for _ in range(2))
    functional = torch.nn.functional
    for ours, torchs, inputs in (
        (lambda x, w, b: faults.layer_norm(x, (width,), w, b), lambda x, w, b: functional.layer_norm(x, (width,), w, b),
         (x, weight, bias)),
        (faults.gelu, functional.gelu, (x,)),
    ):  # fmt: skip
        copies = [[t.clone().requires_grad_() for t in inputs] for _ in range(2)]
        a, b = ours(*copies[0]), torchs(*copies[1])
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
        upstream = torch.randn(a.shape, generator=generator, dtype=torch.float64)
        a.backward(upstream)
        b.backward(upstream)
        for one, other in zip(*copies, strict=True):
            torch.testing.assert_close(one.grad, other.grad, rtol=1e-7, atol=1e-7)


@settings(max_examples=20)
@given(st.integers(1, 12), st.integers(0, 10))
def test_the_written_out_optimizer_is_torchs(steps: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    start = torch.randn(4, 3, generator=generator, dtype=torch.float64)
    ours, torchs = (start.clone().requires_grad_() for _ in range(2))
    a = faults.AdamW([ours])
    b = torch.optim.AdamW([torchs], lr=1e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.01, foreach=False)
    for _ in range(steps):
        gradient = torch.randn(4, 3, generator=generator, dtype=torch.float64)
        ours.grad, torchs.grad = gradient.clone(), gradient.clone()
        a.step()
        b.step()
    torch.testing.assert_close(ours, torchs, rtol=1e-12, atol=1e-12)
    a.zero_grad()
    assert ours.grad is None


def test_parameters_and_flop_are_those_of_the_model() -> None:
    size = faults.with_vocabulary("topics", SIZE)
    parameters, flops = faults.counted(size)
    v, s, h, f, layers = (
        size[n] for n in ("vocabulary", "sequence_length", "hidden_size", "intermediate_size", "layers")
    )
    in_layer = 4 * h * h + 2 * h * f
    assert parameters == (v + s) * h + layers * (in_layer + 3 * h + h + f + h + 4 * h) + 2 * h
    tokens = size["microbatch"] * s
    products = 2 * tokens * (layers * in_layer + v * h) + layers * 2 * 2 * tokens * s * h
    assert flops == 3 * products, "backward is twice forward; scores and values are two products"


# Workers


def children() -> set[int]:
    """Processes that this one started and that run, but for multiprocessing's own tracker."""
    found = psutil.Process().children(recursive=True)
    return {p.pid for p in found if "resource_tracker" not in " ".join(_command(p)) and p.is_running()}


def _command(process: psutil.Process) -> list[str]:
    with contextlib.suppress(psutil.Error):
        return process.cmdline()
    return []


def gone(pids: set[int], within: float) -> bool:
    """Whether these processes end within some seconds; zombies count as ended."""
    limit = time.monotonic() + within
    while time.monotonic() < limit:
        if not any(_lives(pid) for pid in pids):
            return True
        time.sleep(0.1)
    return False


def _lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def test_workers_make_the_same_batches_and_end() -> None:
    before, main = children(), sys.modules["__main__"]
    items = faults.data_set("topics", 12, True)
    expected = list(itertools.islice(Batches(items, 3, seed=5), 6))
    with loop({"loader"}, workers=2, seed=5) as found:
        assert sys.modules["__main__"] is main
        made = list(itertools.islice(found.batches, 6))
        assert len(children() - before) == 2
    assert all(torch.equal(a, b) for a, b in zip(made, expected, strict=True))
    assert children() == before
    found.close()  # once more does nothing


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_workers_end_when_the_loop_is_left_by_an_error(error: type[BaseException]) -> None:
    before = children()
    with pytest.raises(error) as caught, loop({"loader"}, workers=1) as found:
        found.step()
        raise error
    assert caught.tb is not None, "the traceback holds the loop, and its workers have ended all the same"
    assert children() == before


def test_an_error_in_a_worker_is_raised_here_and_the_workers_end() -> None:
    before = children()
    items = faults.Characters(faults.text_of("topics"), 12)
    items.vocabulary = None  # type: ignore[assignment]
    batches = Batches(items, 3, workers=2)
    try:
        with pytest.raises(TypeError, match="worker process"):
            next(batches)
    finally:
        batches.close()
    assert children() == before


def program(code: str) -> str:
    head = """
        import os, signal, sys, torch
        from efflab.experiments.faults import Loop
        size = {"layers": 1, "sequence_length": 12, "microbatch": 3, "hidden_size": 16, "intermediate_size": 40,
                "query_heads": 2, "head_dim": 8}
        torch.randn(600, 600) @ torch.randn(600, 600)  # torch's threads are there before the workers are
        loop = Loop("topics", size, torch.device("cpu"), {"loader"}, workers=1)
        loop.step()
        (worker,) = loop.batches._iterator._workers
        print(worker.pid, flush=True)
    """
    return textwrap.dedent(head) + textwrap.dedent(code)


@pytest.mark.parametrize("how", ["file", "stdin"])
def test_a_program_needs_no_guard_around_its_main_part(how: str, tmp_path: Path) -> None:
    """With the usual way of spawning, a file without a guard would run again in the worker, and so without end."""
    code = program("loop.step(); loop.close(); print('done')")
    (tmp_path / "script.py").write_text(code)
    command, given_ = ([sys.executable, "script.py"], None) if how == "file" else ([sys.executable, "-"], code)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    ran = subprocess.run(
        command, input=given_, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.split()[1:] == ["done"]


@pytest.mark.parametrize("end", ["signal.SIGKILL", "signal.SIGINT"])
def test_no_worker_outlives_a_process_that_was_stopped(end: str) -> None:
    # A shell may have started the tests with SIGINT ignored, which children inherit.
    listening = "signal.signal(signal.SIGINT, signal.default_int_handler)"
    code = program(f"{listening}\nos.kill(os.getpid(), {end})\nloop.step()")
    ran = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
        timeout=120,
    )  # fmt: skip
    assert ran.returncode != 0 and len(ran.stdout.split()) == 1, ran.stderr
    assert gone({int(ran.stdout.split()[0])}, within=60)


def test_workers_start_from_a_notebooks_kernel(tmp_path: Path) -> None:
    """The kernel has threads and sockets of its own, and its main module is no file."""
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.v4.new_notebook()
    notebook.cells = [
        nbformat.v4.new_code_cell(program("")),
        nbformat.v4.new_code_cell("[loop.step() for _ in range(3)]; loop.close(); print(len(loop.losses))"),
    ]
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = str(ROOT)
    try:
        NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(tmp_path)}}).execute()
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before
    assert "4" in notebook.cells[1].outputs[0].text
    assert gone({int(notebook.cells[0].outputs[0].text.split()[0])}, within=60)


@pytest.mark.gpu
def test_on_a_gpu_the_faults_change_nothing_but_rounding() -> None:
    cuda = torch.device("cuda")

    def curve(of: Any, **options: Any) -> list[float]:
        with Loop("topics", SIZE, cuda, of, **options) as found:
            for _ in range(15):
                found.step()
            return found.losses

    clean = curve(NONE)
    for of in (*({name} for name in FAULTS), ALL):
        assert curve(of) == pytest.approx(clean, rel=1e-3)
    assert curve({"loader"}, workers=1, pinned=True) == pytest.approx(clean, rel=1e-3)


@pytest.mark.gpu
@pytest.mark.parametrize(("of", "waits"), [(NONE, False), ({"sync"}, True), ({"copies"}, True)], ids=str)
def test_on_a_gpu_the_loop_without_faults_waits_for_nothing(of: Any, waits: bool) -> None:
    with Loop("topics", SIZE, torch.device("cuda"), of) as found:
        for _ in range(3):
            found.step()
        torch.cuda.synchronize()
        try:
            torch.cuda.set_sync_debug_mode("error")
            if waits:
                with pytest.raises(RuntimeError, match="synchroniz"):
                    found.step()
            else:
                found.step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
