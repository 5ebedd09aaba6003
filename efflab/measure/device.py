"""What device is this, and what does this process have of it?

A process often has less than the machine: a Slurm job or a container narrows cores and memory. What is not
known stays null in the record.
"""

from __future__ import annotations

import contextlib
import math
import os
import platform
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from efflab.errors import EfflabError
from efflab.records import Environment, Slurm

# Instructions that multiply in a dtype, as Linux names them, and what converts fp16.
INSTRUCTIONS = (
    "amx_bf16", "amx_fp16", "amx_int8", "asimdhp", "avx2", "avx512_bf16", "avx512_fp16", "avx512_vnni", "avx512f",
    "avx_vnni", "bf16", "f16c", "i8mm",
)  # fmt: skip
ROOT = Path(__file__).resolve().parent.parent.parent  # efflab's checkout, where it is one


def choose(name: str | None = None) -> Any:
    """The torch device to measure: `name` ("cpu", "cuda", "cuda:1"), else a GPU if torch sees one, else the CPU.

    Raises:
        EfflabError: torch is missing, the name is unknown, or torch sees no such device.
    """
    torch = import_torch()
    if name is None:
        return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    match = re.fullmatch(r"(cpu|cuda)(?::(\d{1,3}))?", name)
    if not match:
        raise EfflabError(f"device {name!r} is not known. Known: cpu, cuda, cuda:0, cuda:1, …")
    if match[1] == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        built = torch.version.cuda or torch.version.hip
        why = "torch finds no usable GPU or driver" if built else f"torch {torch.__version__} is a CPU-only build"
        raise EfflabError(f"device {name!r}: {why}. Leave --device out to use the CPU, or see 'efflab doctor'.")
    index = int(match[2]) if match[2] else torch.cuda.current_device()
    if index >= torch.cuda.device_count():
        raise EfflabError(
            f"device {name!r}: torch sees {torch.cuda.device_count()} GPU(s), numbered from 0. "
            "In a Slurm job, ask for more with --gpus."
        )
    return torch.device("cuda", index)


def import_torch() -> Any:
    """The torch module. Raises `EfflabError` with the mend where it does not import."""
    # torch's profiler prints its own notes on stderr unless it was told before its first use.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    try:
        import torch
    except (ImportError, OSError) as error:
        raise EfflabError(f"torch does not import: {error}. Install it with 'pip install torch'.") from None
    return torch


@contextlib.contextmanager
def threads(count: int | None) -> Iterator[None]:
    """Let torch use this many of the CPU's threads; afterwards it uses as many as before.

    Args:
        count: None leaves their number as it is, such as for a GPU.

    Raises:
        EfflabError: a count that is no whole number above zero.
    """
    if count is not None and (not isinstance(count, int) or isinstance(count, bool) or count < 1):
        raise EfflabError(f"threads: count must be a whole number above zero, got {count!r}.")
    torch = import_torch()
    before = torch.get_num_threads()
    try:
        if count is not None:
            torch.set_num_threads(count)
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def float32_as(dtype: str) -> Iterator[None]:
    """Let float32 products use TF32 only where that is what is measured.

    Args:
        dtype: "tf32"; every other name means true float32.
    """
    torch = import_torch()
    held = [b.matmul for b in (torch.backends.cuda, torch.backends.mkldnn) if hasattr(b, "matmul")]
    # torch's older function for this fails once anybody has used the attributes, so it is used only without them.
    held = [m for m in held if hasattr(m, "fp32_precision")]
    before = [m.fp32_precision for m in held] if held else torch.get_float32_matmul_precision()
    try:
        for m in held:
            m.fp32_precision = "tf32" if dtype == "tf32" else "ieee"
        if not held:
            torch.set_float32_matmul_precision("high" if dtype == "tf32" else "highest")
        yield
    finally:
        for m, value in zip(held, before, strict=False):
            m.fp32_precision = value
        if not held:
            torch.set_float32_matmul_precision(before)


def missing_for(dtype: str, device: Any) -> str:
    """Why a GPU's matrix units do not multiply in a dtype, "" where they do; CPUs are not judged.

    Args:
        dtype: "tf32", "bf16" or "fp8"; others are not judged.
        device: a torch device.
    """
    torch = import_torch()
    needed = {"tf32": (8, 0), "bf16": (8, 0), "fp8": (8, 9)}.get(dtype)
    if device.type != "cuda" or needed is None:
        return ""
    if torch.version.hip is not None:
        return "TF32 is not known of this GPU" if dtype == "tf32" else ""
    found = tuple(torch.cuda.get_device_capability(device))
    if found >= needed:
        return ""
    return f"{dtype} products need compute capability {needed[0]}.{needed[1]}; this GPU has {found[0]}.{found[1]}"


def cores() -> int:
    """CPU cores that this process may use: its affinity, narrowed by its control group's quota."""
    try:
        allowed = len(os.sched_getaffinity(0))
    except AttributeError:  # not Linux
        allowed = os.cpu_count() or 1
    quota = cpu_quota()
    return max(1, min(allowed, math.ceil(quota))) if quota else max(1, allowed)


def threads_per_core(root: Path = Path("/sys/devices/system/cpu"), allowed: set[int] | None = None) -> float:
    """Hardware threads of each physical core, on average over the cores of which this process may use a thread.

    1 where the system does not say, as in a virtual machine that hides them.
    """
    if allowed is None:
        try:
            allowed = os.sched_getaffinity(0)
        except AttributeError:  # not Linux
            return 1.0
    cores = {_text(root / f"cpu{i}" / "topology" / "thread_siblings_list") or str(i) for i in allowed}
    return max(1.0, len(allowed) / len(cores)) if cores else 1.0


def cpu_quota(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> float | None:
    """CPU cores that the control group grants on average, None where it sets no limit."""
    quotas = []
    for folder in _groups(root, own):
        text = _text(folder / "cpu.max")
        if text and not text.startswith("max"):
            with contextlib.suppress(ValueError, ZeroDivisionError):
                limit, period = text.split()[:2]
                quotas.append(float(limit) / float(period))
        limit, period = _text(folder / "cpu.cfs_quota_us"), _text(folder / "cpu.cfs_period_us")  # version 1
        with contextlib.suppress(TypeError, ValueError, ZeroDivisionError):
            if float(limit or "-1") > 0:
                quotas.append(float(limit or 0) / float(period or 0))
    return min(quotas) if quotas else None


def memory_limit(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> int | None:
    """Memory that the control group grants, B, None where it sets no limit."""
    limits = []
    for folder in _groups(root, own):
        for name in ("memory.max", "memory.limit_in_bytes"):
            text = _text(folder / name)
            if text and text.isdigit() and int(text) < 2**60:
                limits.append(int(text))
    return min(limits) if limits else None


def _groups(root: Path, own: Path) -> list[Path]:
    """The folders of this process's control groups, each with its parents: a limit on any of them holds."""
    folders = [root, root / "cpu", root / "memory"]
    for line in (_text(own) or "").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        for base in [root, *(root / c for c in controllers.split(",") if c)]:
            folder = base / path.lstrip("/")
            while folder != base and base in folder.parents:
                folders.append(folder)
                folder = folder.parent
    return folders


def memory() -> int | None:
    """Main memory that this process may use, B."""
    total = None
    with contextlib.suppress(ValueError, OSError, AttributeError):
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limits = [m for m in (total, memory_limit()) if m]
    return min(limits) if limits else None


def cpu_name(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The processor's own name, such as "AMD EPYC 9654 96-Core Processor"; its architecture where it gives none."""
    for line in (_text(cpuinfo) or "").splitlines():
        if line.lower().startswith(("model name", "hardware")):
            return " ".join(line.partition(":")[2].split()) or platform.machine()
    if sys.platform == "darwin":
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            said = subprocess.run(
                ["sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, text=True, timeout=5, check=True
            )
            return said.stdout.strip()
    return platform.processor() or platform.machine() or "CPU"


def cpu_flags(cpuinfo: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """Instruction-set flags of the processor, empty where the system does not list them."""
    for line in (_text(cpuinfo) or "").splitlines():
        if line.lower().startswith(("flags", "features")):
            return frozenset(line.partition(":")[2].split())
    return frozenset()


def cpuid(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """What the processor says it is, whatever its name: "AuthenticAMD/25/17"; "" where the system does not say."""
    found: dict[str, str] = {}
    for line in (_text(cpuinfo) or "").splitlines():
        key, _, value = line.partition(":")
        found.setdefault(key.strip(), value.strip())
    parts = [found.get(key, "") for key in ("vendor_id", "cpu family", "model")]
    return "/".join(parts) if all(parts) else ""


def instructions(device: Any) -> list[str] | None:
    """Those of `INSTRUCTIONS` that a CPU offers, sorted; None for a GPU."""
    return sorted(cpu_flags() & set(INSTRUCTIONS)) if device.type == "cpu" else None


def cpu_caches(root: Path = Path("/sys/devices/system/cpu"), allowed: set[int] | None = None) -> dict[str, int]:
    """Data caches that the allowed cores reach, B, summed over distinct instances: {"L1d": …, "L2": …, "L3": …}."""
    if allowed is None:
        try:
            allowed = os.sched_getaffinity(0)
        except AttributeError:
            allowed = set(range(os.cpu_count() or 1))
    found: dict[str, dict[str, int]] = {}
    for core in sorted(allowed):
        for index in sorted((root / f"cpu{core}" / "cache").glob("index*")):
            kind, level, size = (_text(index / name) or "" for name in ("type", "level", "size"))
            match = re.fullmatch(r"(\d+)([KMG]?)", size)
            if kind not in ("Data", "Unified") or not match or not level:
                continue
            shared = _text(index / "shared_cpu_list") or str(core)
            bytes_ = int(match[1]) * {"": 1, "K": 2**10, "M": 2**20, "G": 2**30}[match[2]]
            if bytes_:
                found.setdefault(f"L{level}{'d' if kind == 'Data' else ''}", {})[shared] = bytes_
    return {name: sum(instances.values()) for name, instances in sorted(found.items())}


def last_level_cache(environment: Environment) -> int:
    """Size of the largest cache in B; 32 MiB where the system names none, so that sweeps still exceed it."""
    return max(environment.caches.values(), default=32 * 2**20)


def has_fast_bf16() -> bool:
    """The CPU multiplies bf16 in hardware (AVX512-BF16, AMX or Arm's bf16), as far as its flags say."""
    return bool({"avx512_bf16", "amx_bf16", "bf16"} & cpu_flags())


def versions() -> dict[str, Any]:
    """efflab's version, and the commit of its checkout with whether files differ from it (null outside a checkout)."""
    found: dict[str, Any] = {"efflab": efflab_version(), "commit": None, "dirty": None}
    if not (ROOT / ".git").exists() or not shutil.which("git"):
        return found

    def git(*words: str) -> str:
        # Read-only, and without taking the index lock that someone else's command may hold.
        command = ["git", "--no-optional-locks", "-C", str(ROOT), *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()

    with contextlib.suppress(OSError, subprocess.SubprocessError):
        commit = git("rev-parse", "HEAD")
        if re.fullmatch(r"[0-9a-f]{7,64}", commit):
            found["commit"] = commit
            found["dirty"] = bool(git("status", "--porcelain", "--untracked-files=no", "--", "efflab"))
    return found


def efflab_version() -> str:
    """efflab's version, from its checkout's pyproject.toml or from the installed package."""
    with contextlib.suppress(OSError, KeyError, tomllib.TOMLDecodeError):
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        if project["name"] == "efflab":
            return project["version"]
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("efflab")
    except PackageNotFoundError:
        return "unknown"


def slurm(variables: dict[str, str] | None = None) -> Slurm | None:
    """The Slurm job that this process runs in, None outside one."""
    variables = dict(os.environ) if variables is None else variables
    job = variables.get("SLURM_JOB_ID")
    if not job or not re.fullmatch(r"[0-9_.+]{1,40}", job):
        return None
    nodes = variables.get("SLURM_JOB_NUM_NODES") or variables.get("SLURM_NNODES") or "1"
    return Slurm(job=job, nodes=int(nodes) if nodes.isdigit() and int(nodes) > 0 else 1)


def environment(device: Any) -> Environment:
    """Describe the device and the software of this process.

    Args:
        device: a torch device, as `choose` returns.

    Raises:
        EfflabError: the GPU does not answer.
    """
    torch = import_torch()
    load = None
    with contextlib.suppress(OSError, AttributeError):
        load = round(os.getloadavg()[0], 2)
    common: dict[str, Any] = {
        "count": 1,
        "threads": torch.get_num_threads(),
        "cores": cores(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "load": load,
        "platform": f"{platform.system()} {platform.machine()}",
        "virtual": "hypervisor" in cpu_flags() if cpu_flags() else None,
        "slurm": slurm(),
        **versions(),
    }
    if device.type == "cpu":
        clock = _cpu_clock()
        capability = torch.backends.cpu.get_cpu_capability()
        return Environment(
            device=cpu_name(), kind="cpu", memory=memory(), caches=cpu_caches(), compute_capability=capability,
            clocks={"cpu": clock} if clock else None, **common,
        )  # fmt: skip
    try:
        properties = torch.cuda.get_device_properties(device)
        torch.empty(1, device=device)
    except RuntimeError as error:
        raise EfflabError(f"device {device}: the GPU does not answer: {error}. See 'efflab doctor'.") from None
    rocm = torch.version.hip is not None
    l2 = getattr(properties, "L2_cache_size", 0)
    return Environment(
        device=properties.name,
        kind="rocm" if rocm else "cuda",
        memory=properties.total_memory,
        multiprocessors=properties.multi_processor_count,
        caches={"L2": l2} if l2 else {},
        compute_capability=None if rocm else f"{properties.major}.{properties.minor}",
        cuda=torch.version.hip or torch.version.cuda,
        **{"driver": _driver(), **_said_by_nvml(device)},
        **common,
    )


def _cpu_clock() -> float | None:
    """Clock of the first core now, Hz, as the system reports it (a virtual machine reports a nominal one)."""
    for line in (_text(Path("/proc/cpuinfo")) or "").splitlines():
        if line.startswith("cpu MHz"):
            with contextlib.suppress(ValueError):
                return float(line.partition(":")[2]) * 1e6
    return None


def _driver() -> str | None:
    match = re.search(r"Kernel Module.*?\s(\d+\.\d+(?:\.\d+)?)\s", _text(Path("/proc/driver/nvidia/version")) or "")
    return match[1] if match else None


class NoNVML(EfflabError):
    """NVML does not answer for this GPU; the message says why."""


@contextlib.contextmanager
def nvml(device: Any) -> Iterator[tuple[Any, Any]]:
    """NVML, started, and its handle of a GPU; shut down afterwards.

    Args:
        device: a torch device of type "cuda".

    Yields:
        The module `pynvml` and the handle that its functions take.

    Raises:
        NoNVML: an AMD GPU, no package nvidia-ml-py, no driver, or a GPU that NVML does not know (such as a MIG slice).
    """
    torch = import_torch()
    if torch.version.hip is not None:
        raise NoNVML("NVML is NVIDIA's, and this is an AMD GPU")
    try:
        import pynvml
    except ImportError:
        raise NoNVML("the package nvidia-ml-py is not installed") from None
    try:
        pynvml.nvmlInit()
    except Exception as error:
        raise NoNVML(f"NVML does not start: {error}") from None
    try:
        try:
            # Not by its number: CUDA_VISIBLE_DEVICES renumbers the GPUs for torch and not for NVML.
            handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
        except Exception as error:
            raise NoNVML(f"NVML does not know this GPU: {error}") from None
        yield pynvml, handle
    finally:
        with contextlib.suppress(Exception):
            pynvml.nvmlShutdown()


def _said_by_nvml(device: Any) -> dict[str, Any]:
    """What NVML adds to an environment: driver, power limit in W, clocks in Hz; what it refuses is left out."""
    found: dict[str, Any] = {}
    with contextlib.suppress(NoNVML), nvml(device) as (pynvml, handle):
        with contextlib.suppress(Exception):
            found["driver"] = _decoded(pynvml.nvmlSystemGetDriverVersion())
        with contextlib.suppress(Exception):
            found["power_limit"] = pynvml.nvmlDeviceGetEnforcedPowerLimit(handle) / 1e3
        with contextlib.suppress(Exception):
            found["clocks"] = {
                "sm_max": pynvml.nvmlDeviceGetMaxClockInfo(handle, pynvml.NVML_CLOCK_SM) * 1e6,
                "memory_max": pynvml.nvmlDeviceGetMaxClockInfo(handle, pynvml.NVML_CLOCK_MEM) * 1e6,
            }
    return found


def _decoded(text: Any) -> str:
    return text.decode() if isinstance(text, bytes) else str(text)


def compiler() -> str | None:
    """The C++ compiler that torch.compile would use on a CPU, None where there is none."""
    named = os.environ.get("CXX")
    return next((c for c in (named, "g++", "clang++") if c and shutil.which(c)), None)


def _text(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return None
