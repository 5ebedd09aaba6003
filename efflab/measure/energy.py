"""How many joules does this take?

A `Meter` reads the energy counters of the devices that this process measures: of NVIDIA GPUs NVML's, through zeus; of
a CPU those of its packages (RAPL). A counter gives joules only between two readings, so energy always belongs to a
window: `begin` and `since`. Both wait for the devices, so that the window holds all and only the work in between.

Not every machine has a counter that may be read, and not every difference of two readings is an energy. Then there is
no number but a sentence that says why:

- a window shorter than the counter's period, a counter that did not move, one that went back (it was set to zero) or
  rose faster than the device's power limit allows;
- a slice of a GPU (MIG): the counter is the whole board's;
- a driver that refuses, has no counter, or stops answering.

What others do on the same board or package is in the counter too; `Meter.shared` says whether there may be others.
Windows overlap freely: the whole run's and those of its samples read the same counters, and each device once, however
many processes use it.
"""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from efflab.errors import EfflabError
from efflab.measure import device as devices
from efflab.measure import monitor
from efflab.records import PERIODS, Window, plain

TOO_FAST = 2.0  # times the power limit; a device does not take that for as long as a counter's period


class NoCounter(EfflabError):
    """A device's energy cannot be read; the message says why."""


@dataclass(frozen=True)
class Counter:
    """One device's counter.

    Attributes:
        of: what it counts, in words: "NVML's counter of GPU 0".
        read: the energy since some moment, J.
        limit: the most power that the device may take, W; None where that is not known.
        shared: why others may be in the count; "" where nothing says so.
    """

    of: str
    read: Callable[[], float]
    limit: float | None = None
    shared: str = ""


@dataclass(frozen=True)
class Mark:
    """A moment and what the counters showed then, or why they could not be read."""

    at: float
    joules: tuple[float, ...] = ()
    why: str = ""


@dataclass(frozen=True)
class Reading:
    """What a window took.

    Attributes:
        seconds: how long it was.
        joules: of each device; None where there is no such number.
        why: there is none.
    """

    seconds: float
    joules: tuple[float, ...] | None
    why: str = ""

    @property
    def total(self) -> float | None:
        """Of all devices, J."""
        return None if self.joules is None else sum(self.joules)


class Meter:
    """The energy counters of some devices. Use it as a context manager, or `close` it.

    Attributes:
        source: "nvml-counter", "rapl" or "none".
        of: what is counted, in words.
        why: there is no counter; "" where there is one.
        period: how often the counters change, s.
        shared: why others may be in the counts, "" where nothing says so.

    Raises:
        EfflabError: no device is named.
    """

    def __init__(self, of: Sequence[Any]) -> None:
        if not of:
            raise EfflabError("meter: no device is named. Give at least one torch device.")
        self._held = contextlib.ExitStack()
        self._counters: list[Counter] = []
        self._devices = list(dict.fromkeys(of))  # a device that two ranks share is counted once
        self.source: Literal["nvml-counter", "rapl", "none"] = "none"
        self.why = ""
        try:
            kind: Literal["nvml-counter", "rapl"] = "nvml-counter" if self._devices[0].type == "cuda" else "rapl"
            # Two devices may be one board: "cuda" and "cuda:0".
            found = list({c.of: c for c in (counter(d, self._held) for d in self._devices)}.values())
            for one in found:
                _number(one)
            self._counters, self.source = found, kind
        except NoCounter as error:
            self._held.close()
            self.why = plain(str(error))
        named = [c.of for c in self._counters]
        self.of = "".join(named) if len(named) < 2 else f"{len(named)} counters, from {named[0]} to {named[-1]}"
        self.shared = next((c.shared for c in self._counters if c.shared), "")
        self.period = PERIODS.get(self.source, 0.0)

    def __enter__(self) -> Meter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the use of the counters."""
        self._held.close()

    def begin(self, *, wait: bool = True) -> Mark:
        """Read the counters: where a window begins.

        Args:
            wait: for the devices to finish what they were given. Without it the window may begin within a call.
        """
        return self._read(wait)

    def since(self, mark: Mark) -> Reading:
        """Wait for the devices and say what they took since a mark."""
        found = self.gained(mark)
        why = found.why
        if not why and found.seconds < self.period:
            why = f"the window of {found.seconds:.3g} s is shorter than the counter's period of {self.period:.3g} s"
        for one, gained in zip(self._counters, found.joules or (), strict=False):
            if why:
                break
            if gained < 0:
                why = f"{one.of} went back by {-gained:.3g} J: something set it to zero"
            elif gained == 0:
                why = f"{one.of} did not move in {found.seconds:.3g} s"
            elif one.limit is not None and gained > TOO_FAST * one.limit * (found.seconds + self.period):
                why = f"{one.of} rose by {gained:.3g} J in {found.seconds:.3g} s, at a power limit of {one.limit:.3g} W"
        return Reading(found.seconds, None if why else found.joules, why)

    def gained(self, mark: Mark, *, wait: bool = True) -> Reading:
        """What the counters show more than at a mark, as it is: zero, below zero and of short windows too.

        Args:
            wait: as `begin`.
        """
        now = self._read(wait)
        why = self.why or mark.why or now.why
        joules = None if why else tuple(b - a for a, b in zip(mark.joules, now.joules, strict=True))
        return Reading(now.at - mark.at, joules, why)

    def _read(self, wait: bool) -> Mark:
        why = _wait(self._devices) if wait else ""
        at = time.perf_counter()
        try:
            return Mark(at, tuple(_number(c) for c in self._counters), why)
        except NoCounter as error:
            return Mark(at, why=why or plain(str(error)))


def _wait(of: Sequence[Any]) -> str:
    """Wait for what this process gave the devices; why that fails, else "". No energy is worth a run.

    Without a context it gave nothing, and waiting would make one.
    """
    torch = devices.import_torch()
    for one in of:
        if one.type != "cuda" or not torch.cuda.is_initialized():
            continue
        if torch._C._cuda_hasPrimaryContext(torch.cuda.current_device() if one.index is None else one.index):
            try:
                torch.cuda.synchronize(one)
            except Exception as error:  # a lost device; what runs next meets it too, and says so
                return plain(f"the GPU does not answer: {error}")
    return ""


def _number(one: Counter) -> float:
    try:
        found = float(one.read())
    except Exception as error:  # of a driver: whatever it is, there is no number
        raise NoCounter(f"{one.of} cannot be read: {error}") from None
    if not math.isfinite(found):
        raise NoCounter(f"{one.of} cannot be read: it says {found}")
    return found


# The counter of a device


def counter(device: Any, held: contextlib.ExitStack) -> Counter:
    """The energy counter of a torch device.

    Args:
        held: what has to be ended after the last reading is put there.

    Raises:
        NoCounter: there is none that this process may read, or it counts more than this device.
    """
    return _of_gpu(device, held) if device.type == "cuda" else _of_cpu()


def _of_gpu(device: Any, held: contextlib.ExitStack) -> Counter:
    try:
        pynvml, handle = held.enter_context(devices.nvml(device))
    except devices.NoNVML as error:
        raise NoCounter(str(error)) from None
    sliced = False
    with contextlib.suppress(Exception):  # a GPU that knows no slices refuses the question
        sliced = bool(pynvml.nvmlDeviceGetMigMode(handle)[0])
    if sliced:
        raise NoCounter("this GPU is cut into slices (MIG), and its counter is the whole board's")
    try:
        from zeus.device.gpu.nvidia import NVIDIAGPU

        # By NVML's own index. zeus's list of visible GPUs takes CUDA_VISIBLE_DEVICES for numbers in NVML's order, and
        # it may hold names (UUIDs), or numbers in another order.
        index = pynvml.nvmlDeviceGetIndex(handle)
        gpu = NVIDIAGPU(index)
        supported = gpu.supports_get_total_energy_consumption()
    except ImportError as error:
        raise NoCounter(f"the package zeus does not import: {error}") from None
    except Exception as error:
        raise NoCounter(f"NVML says nothing of this GPU's energy: {error}") from None
    if not supported:
        raise NoCounter("this GPU has no energy counter: NVML offers it from the generation of V100 on")
    what = f"NVML's energy counter of GPU {index}"
    limit = None
    with contextlib.suppress(Exception):
        limit = pynvml.nvmlDeviceGetEnforcedPowerLimit(handle) / 1e3
    return Counter(what, lambda: gpu.get_total_energy_consumption() / 1e3, limit, _others(pynvml, handle, what))


def _others(pynvml: Any, handle: Any, what: str) -> str:
    """Whether other processes than this one's family compute on a GPU, in words."""
    try:
        found = {p.pid for p in pynvml.nvmlDeviceGetComputeRunningProcesses(handle)}
    except Exception:
        return ""  # not every driver says
    ours = _family() | {pid for pid in found if _of_this_job(pid)}
    # In a container the driver may number processes as the host does: then none is known here, and one of them is this.
    others = len(found - ours) if found & ours else max(0, len(found) - 1)
    return f"{what} also holds what {others} other process{'es take' if others > 1 else ' takes'} there" * bool(others)


def _family() -> set[int]:
    """This process, those that started it and those that it started."""
    try:
        import psutil

        me = psutil.Process()
        return {me.pid, *(p.pid for p in me.parents()), *(p.pid for p in me.children(recursive=True))}
    except Exception:
        return {os.getpid()}


def _of_this_job(pid: int) -> bool:
    """Whether a process belongs to this process's Slurm job, such as a rank that srun or torchrun started."""
    job = os.environ.get("SLURM_JOB_ID")
    try:
        import psutil

        return bool(job) and psutil.Process(pid).environ().get("SLURM_JOB_ID") == job
    except Exception:  # it has ended, or is another user's
        return False


def _of_cpu(root: Path | None = None) -> Counter:
    try:
        packages = monitor.Packages(monitor.POWERCAP if root is None else root)
    except monitor.Missing as error:
        raise NoCounter(str(error)) from None
    whole = os.cpu_count() or 1
    granted = devices.cores()
    shared = f"RAPL counts whole packages, and {granted} of {whole} cores are this process's" * (granted < whole)
    what = f"RAPL's counter{'s' * (packages.count > 1)} of {packages.count} package{'s' * (packages.count > 1)}"
    return Counter(what, packages.joules, packages.count * monitor.PACKAGE, shared)


def limits(device: Any) -> dict[str, float]:
    """Power limits of a GPU, W: "enforced" now, "default", and the "least" and "most" that can be set.

    What the driver does not say is left out. Nothing is changed.

    Raises:
        NoCounter: NVML says nothing of this GPU's limits.
    """
    found: dict[str, float] = {}
    why = ""
    try:
        with devices.nvml(device) as (pynvml, handle):
            for names, ask in (
                (("enforced",), pynvml.nvmlDeviceGetEnforcedPowerLimit),
                (("default",), pynvml.nvmlDeviceGetPowerManagementDefaultLimit),
                (("least", "most"), pynvml.nvmlDeviceGetPowerManagementLimitConstraints),
            ):
                try:
                    said = ask(handle)
                except Exception as error:
                    why = why or str(error)
                    continue
                found.update(zip(names, [w / 1e3 for w in (said if len(names) > 1 else [said])], strict=True))
    except devices.NoNVML as error:
        raise NoCounter(str(error)) from None
    if not found:
        raise NoCounter(f"NVML says nothing of this GPU's power limits: {why}")
    return found


# Windows around what is timed

_present: Meter | None = None


@contextlib.contextmanager
def metering(meter: Meter) -> Iterator[Meter]:
    """Let this meter be the one with which the timer reads windows; afterwards the one before."""
    global _present
    before, _present = _present, meter
    try:
        yield meter
    finally:
        _present = before


def begin() -> Mark | None:
    """Where a window of the present meter begins; None where there is none or it has no counter."""
    return None if _present is None or _present.source == "none" else _present.begin()


def window(mark: Mark | None, calls: int) -> Window | None:
    """What so many calls took since a mark, None where there is no such number."""
    if mark is None or _present is None:
        return None
    reading = _present.since(mark)
    return None if reading.total is None else Window(joules=reading.total, seconds=reading.seconds, calls=calls)
