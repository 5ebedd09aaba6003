"""What a process has of its machine, read from made-up system files."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from efflab.errors import EfflabError
from efflab.measure import device
from efflab.records import Environment


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_the_tightest_cpu_quota_of_all_parents_holds(tmp_path: Path) -> None:
    root = tree(tmp_path, {
        "cg/slurm/job_7/cpu.max": "max 100000\n",
        "cg/slurm/cpu.max": "350000 100000\n",
        "own": "0::/slurm/job_7/step_0\n",
    })  # fmt: skip
    assert device.cpu_quota(root / "cg", root / "own") == 3.5
    assert device.cpu_quota(root / "cg", root / "missing") is None


def test_version_1_groups_are_read(tmp_path: Path) -> None:
    root = tree(tmp_path, {
        "cg/cpu,cpuacct/docker/x/cpu.cfs_quota_us": "150000\n",
        "cg/cpu,cpuacct/docker/x/cpu.cfs_period_us": "100000\n",
        "cg/memory/docker/x/memory.limit_in_bytes": "1073741824\n",
        "cg/memory/memory.limit_in_bytes": "9223372036854771712\n",
        "own": "4:memory:/docker/x\n3:cpu,cpuacct:/docker/x\n",
    })  # fmt: skip
    (root / "cg/cpu").symlink_to("cpu,cpuacct")
    assert device.cpu_quota(root / "cg", root / "own") == 1.5
    assert device.memory_limit(root / "cg", root / "own") == 2**30


def test_caches_are_summed_over_instances_that_the_cores_reach(tmp_path: Path) -> None:
    files = {}
    for core in range(4):
        for index, (level, kind, size, shared) in enumerate(
            [("1", "Data", "32K", str(core)), ("1", "Instruction", "64K", str(core)), ("2", "Unified", "1M", str(core)),
             ("3", "Unified", "16384K", "0-1" if core < 2 else "2-3")]
        ):  # fmt: skip
            base = f"cpu{core}/cache/index{index}"
            files |= {f"{base}/level": level, f"{base}/type": kind, f"{base}/size": size,
                      f"{base}/shared_cpu_list": shared}  # fmt: skip
    root = tree(tmp_path, files)
    assert device.cpu_caches(root, {0, 1}) == {"L1d": 2 * 2**15, "L2": 2 * 2**20, "L3": 2**24}
    assert device.cpu_caches(root, {1, 2}) == {"L1d": 2 * 2**15, "L2": 2 * 2**20, "L3": 2 * 2**24}
    assert device.cpu_caches(tmp_path / "none", {0}) == {}


def test_cpu_name_and_flags(tmp_path: Path) -> None:
    info = tmp_path / "cpuinfo"
    info.write_text("processor\t: 0\nmodel name\t:  Some   CPU 9000 \nflags\t\t: fpu avx2 avx512_bf16 hypervisor\n")
    assert device.cpu_name(info) == "Some CPU 9000"
    assert "avx512_bf16" in device.cpu_flags(info)
    assert device.cpu_name(tmp_path / "none")
    assert device.cpu_flags(tmp_path / "none") == frozenset()


def test_only_instructions_that_multiply_are_listed_and_none_for_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "cpu_flags", lambda: frozenset({"fpu", "f16c", "avx2", "hypervisor"}))
    assert device.instructions(torch.device("cpu")) == ["avx2", "f16c"]
    assert device.instructions(torch.device("cuda", 0)) is None


def test_slurm_is_read_from_its_variables_only() -> None:
    assert device.slurm({}) is None
    job = device.slurm({"SLURM_JOB_ID": "4711", "SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_USER": "someone"})
    assert job is not None
    assert (job.job, job.nodes) == ("4711", 2)
    assert device.slurm({"SLURM_JOB_ID": "1; rm -rf"}) is None


def test_the_environment_of_this_cpu() -> None:
    found = device.environment(torch.device("cpu"))
    assert found.kind == "cpu"
    assert found.threads == torch.get_num_threads()
    assert found.torch == torch.__version__
    assert found.cores is not None
    assert 1 <= found.cores <= (os.cpu_count() or 1)
    if hasattr(os, "sched_getaffinity"):
        assert found.cores <= len(os.sched_getaffinity(0))
    assert found.memory is None or found.memory > 2**20


def test_affinity_narrows_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3}, raising=False)
    assert device.cores() == 1


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "", "tpu:0", "cpu "])
def test_unknown_devices_are_named(name: str) -> None:
    with pytest.raises(EfflabError, match="not known"):
        device.choose(name)


@pytest.mark.no_gpu
def test_a_missing_gpu_is_said() -> None:
    with pytest.raises(EfflabError, match="cuda"):
        device.choose("cuda")
    assert device.choose().type == "cpu"


@pytest.mark.gpu
def test_the_environment_of_a_gpu() -> None:
    found = device.environment(device.choose("cuda"))
    assert found.kind in ("cuda", "rocm")
    assert found.device == torch.cuda.get_device_name()
    assert found.memory == torch.cuda.get_device_properties(0).total_memory
    with pytest.raises(EfflabError, match="torch sees"):
        device.choose("cuda:99")


# What NVML says


def on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> Environment:
    """The environment of a GPU of which torch knows what the fixture `nvml` says."""
    monkeypatch.setattr(torch, "empty", lambda *_, **__: None)
    monkeypatch.setattr(device, "_driver", lambda: "from the kernel")
    return device.environment(torch.device("cuda", 0))


def test_nvml_adds_driver_power_limit_and_clocks(nvml: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    found = on_a_gpu(monkeypatch)
    assert (found.device, found.kind, found.compute_capability) == ("GPU 9000", "cuda", "9.0")
    assert (found.driver, found.power_limit) == ("580.1", 700.0)
    assert found.clocks == {"sm_max": 1.98e9, "memory_max": 2.619e9}
    assert nvml.started == 0


def test_what_nvml_refuses_is_unknown(nvml: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    nvml.refused = {"nvmlDeviceGetEnforcedPowerLimit": "Not Supported"}
    found = on_a_gpu(monkeypatch)
    assert found.power_limit is None and found.driver == "580.1" and found.clocks
    nvml.refused = {"nvmlDeviceGetHandleByUUID": "Not Found"}  # as for a MIG slice
    found = on_a_gpu(monkeypatch)
    assert (found.driver, found.power_limit, found.clocks) == ("from the kernel", None, None)
    assert nvml.started == 0


# What is put back


def test_threads_are_as_before_whatever_happens_inside() -> None:
    before = torch.get_num_threads()
    with device.threads(before + 1):
        assert torch.get_num_threads() == before + 1
        with device.threads(None):
            assert torch.get_num_threads() == before + 1
            torch.set_num_threads(before + 2)
        assert torch.get_num_threads() == before + 1
    with pytest.raises(ZeroDivisionError), device.threads(before + 1):
        raise ZeroDivisionError
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("count", [0, -1, 1.5, True, "2"])
def test_no_number_of_threads(count: Any) -> None:
    with pytest.raises(EfflabError, match="count must be a whole number above zero"), device.threads(count):
        pass


@pytest.fixture
def matmuls() -> Iterator[list[object]]:
    """Where torch keeps how float32 products may be done; as it was afterwards."""
    held: list[object] = [torch.backends.cuda.matmul, torch.backends.mkldnn.matmul]
    before = [m.fp32_precision for m in held]  # type: ignore[attr-defined]
    yield held
    for m, value in zip(held, before, strict=True):
        m.fp32_precision = value  # type: ignore[attr-defined]


@pytest.mark.parametrize("owner", [("none", "none"), ("tf32", "ieee"), ("ieee", "bf16"), ("tf32", "tf32")])
def test_float32_is_what_is_measured_and_then_as_its_owner_set_it(
    owner: tuple[str, str], matmuls: list[object]
) -> None:
    """Also where somebody has used torch's attributes, after which its older function fails."""

    def now() -> list[str]:
        return [m.fp32_precision for m in matmuls]  # type: ignore[attr-defined]

    for m, value in zip(matmuls, owner, strict=True):
        m.fp32_precision = value  # type: ignore[attr-defined]
    before = now()  # "none" may read as what holds above it
    with contextlib.suppress(RuntimeError), device.float32_as("tf32"):
        assert now() == ["tf32", "tf32"]
        raise RuntimeError
    assert now() == before
    with device.float32_as("fp32"):
        assert now() == ["ieee", "ieee"]
        x = torch.ones(2, 2)
        assert torch.equal(x @ x, 2 * x)
    assert now() == before


@pytest.mark.parametrize(
    ("siblings", "allowed", "expected"),
    [
        ({0: "0,4", 4: "0,4", 1: "1,5", 5: "1,5"}, {0, 1, 4, 5}, 2.0),
        ({0: "0,4", 4: "0,4", 1: "1,5", 5: "1,5"}, {0, 1}, 1.0),
        ({0: "0-1", 1: "0-1", 2: "2"}, {0, 1, 2}, 1.5),
        ({}, {0, 1, 2}, 1.0),
    ],
)
def test_threads_of_a_core_are_counted_once(
    siblings: dict[int, str], allowed: set[int], expected: float, tmp_path: Path
) -> None:
    for cpu, listed in siblings.items():
        folder = tmp_path / f"cpu{cpu}" / "topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(listed + "\n")
    assert device.threads_per_core(tmp_path, allowed) == expected
