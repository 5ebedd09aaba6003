"""What do the device's own counters say while something runs?

A thread reads them at a fixed interval, as `nvidia-smi` or a cluster's monitoring does. What each counter means, and
of what it speaks, differs by device and stands in `Monitor.sources`:

- "utilization", a share of one. On a GPU NVML's: the share of the last sampling period, of 1/6 s to 1 s by product,
  in which at least one kernel ran. It does not say how much of the GPU the kernel used. On a CPU the processor time of
  this process per core that it may use and second; processes that it started, such as data loader workers, are not in
  it.
- "memory", B. On a GPU all that is in use there, by every process. On a CPU the resident set of this process.
- "power", W. On a GPU the board's; a product may average it over a second. On a CPU the energy counters of the
  processor packages (RAPL) over the time between two readings: all that runs on them, without the memory modules.

A counter that this machine does not have, or that stops answering, is absent, and `missing` says why. No number takes
its place.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from efflab.errors import EfflabError
from efflab.measure import device as devices

INTERVAL = 0.1  # s
NAMES = {"utilization": "", "memory": "B", "power": "W"}  # the counters and their units
POWERCAP = Path("/sys/class/powercap")
# The most power that a processor package is rated at, W (AMD EPYC 9965). A counter that was set to zero looks like one
# that went round: only its speed gives it away.
PACKAGE = 500.0


@dataclass(frozen=True)
class Counter:
    """One of `NAMES` on one device: what it is read from, and a function that reads it."""

    source: str
    read: Callable[[], float]


class Missing(EfflabError):
    """This machine has no such counter; the message says why."""


class Monitor:
    """Reads the counters of a device in a thread of its own while the `with` block runs.

    Args:
        device: a torch device.
        interval: s between two readings.

    Attributes:
        elapsed: s from the beginning of the block to each reading.
        series: by counter one value for each of `elapsed`, in the units of `NAMES`.
        sources: by counter what it was read from.
        missing: by counter why it is absent.

    Raises:
        EfflabError: an interval that is not greater than zero.
    """

    def __init__(self, device: Any, interval: float = INTERVAL) -> None:
        if not 0 < interval < float("inf"):
            raise EfflabError(f"monitor: interval must be greater than zero, got {interval!r}.")
        self.elapsed: list[float] = []
        self.series: dict[str, list[float]] = {}
        self.sources: dict[str, str] = {}
        self.missing: dict[str, str] = {}
        self._device, self._interval = device, interval
        self._counters: dict[str, Counter] = {}
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._close: Callable[[], None] = _nothing

    def __enter__(self) -> Monitor:
        if self._thread is not None:
            raise EfflabError("monitor: it was used already. Make a new one.")
        self._counters, self.missing, self._close = counters(self._device)
        self.sources = {name: counter.source for name, counter in self._counters.items()}
        self.series = {name: [] for name in self._counters}
        self._began = time.perf_counter()
        self._thread = threading.Thread(target=self._run, name="efflab-monitor", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        assert self._thread is not None
        self._thread.join()
        self._close()

    def _run(self) -> None:
        readings = 0
        stopped = False
        while not stopped:
            readings += 1
            due = self._began + readings * self._interval
            # A reading that took longer than the interval leaves out those it missed.
            readings = max(readings, int((time.perf_counter() - self._began) / self._interval))
            stopped = self._stop.wait(max(0.0, due - time.perf_counter()))
            if not stopped or not self.elapsed:  # a block shorter than the interval still has one reading
                self._read()

    def _read(self) -> None:
        now = time.perf_counter() - self._began
        for name, counter in list(self._counters.items()):
            try:
                self.series[name].append(float(counter.read()))
            except Exception as error:  # of a driver: whatever it is, the block goes on
                del self._counters[name], self.series[name], self.sources[name]
                self.missing[name] = f"{counter.source} stopped answering after {len(self.elapsed)} readings: {error}"
        self.elapsed.append(now)


def counters(device: Any) -> tuple[dict[str, Counter], dict[str, str], Callable[[], None]]:
    """The counters of a torch device that answer now, why the others are missing, and what ends their use."""
    return _of_gpu(device) if device.type == "cuda" else _of_cpu()


# A GPU


def _nothing() -> None:
    """End the use of counters that need no end."""


def _of_gpu(device: Any) -> tuple[dict[str, Counter], dict[str, str], Callable[[], None]]:
    held = contextlib.ExitStack()
    try:
        pynvml, handle = held.enter_context(devices.nvml(device))
    except devices.NoNVML as error:
        return {}, dict.fromkeys(NAMES, str(error)), _nothing
    offered = {
        "utilization": Counter(
            "NVML, nvmlDeviceGetUtilizationRates", lambda: pynvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100
        ),
        "memory": Counter("NVML, nvmlDeviceGetMemoryInfo", lambda: float(pynvml.nvmlDeviceGetMemoryInfo(handle).used)),
        "power": Counter("NVML, nvmlDeviceGetPowerUsage", lambda: pynvml.nvmlDeviceGetPowerUsage(handle) / 1e3),
    }
    found, missing = {}, {}
    for name, counter in offered.items():
        try:
            counter.read()
            found[name] = counter
        except Exception as error:
            missing[name] = f"{counter.source}: {error}"
    return found, missing, held.close


# A CPU


def _of_cpu() -> tuple[dict[str, Counter], dict[str, str], Callable[[], None]]:
    cores = devices.cores()
    found = {
        "utilization": Counter(
            f"processor time of this process per second and core ({cores})", Rate(time.process_time, 1 / cores)
        )
    }
    missing = {}
    try:
        import psutil

        process = psutil.Process()
        found["memory"] = Counter("psutil, resident set of this process", lambda: float(process.memory_info().rss))
    except ImportError:
        missing["memory"] = "the package psutil is not installed"
    try:
        energy = Packages(POWERCAP)
        packages = f"{energy.count} package{'s' if energy.count > 1 else ''}"
        found["power"] = Counter(f"RAPL, {packages}", Rate(energy.joules))
    except Missing as error:
        missing["power"] = str(error)
    return found, missing, _nothing


class Rate:
    """How fast a rising number rises: its difference since the last call, per second."""

    def __init__(self, total: Callable[[], float], factor: float = 1.0) -> None:
        self._total, self._factor = total, factor
        self._last, self._at = total(), time.perf_counter()

    def __call__(self) -> float:
        """The rate since the last call."""
        total, at = self._total(), time.perf_counter()
        rate = (total - self._last) / (at - self._at) * self._factor if at > self._at else 0.0
        self._last, self._at = total, at
        return rate


class Packages:
    """The energy counters of a machine's processor packages (RAPL), as Linux offers them.

    Domains inside a package (cores, memory controller) are parts of it and are left out.

    Raises:
        Missing: there are none, or this user may not read them.
    """

    def __init__(self, root: Path = POWERCAP) -> None:
        self._files: list[tuple[Path, float]] = []
        for folder in sorted(root.glob("intel-rapl:*")):
            if folder.name.count(":") != 1 or not _text(folder / "name").startswith("package"):
                continue
            try:
                self._files.append((folder / "energy_uj", float(_text(folder / "max_energy_range_uj") or "inf")))
                self._now(folder / "energy_uj")
            except PermissionError:
                raise Missing("RAPL: only root may read the energy counters here") from None
            except (OSError, ValueError) as error:
                raise Missing(f"RAPL: the energy counter does not answer: {type(error).__name__}") from None
        if not self._files:
            raise Missing("RAPL: this system offers no energy counter of a processor package")
        self.count = len(self._files)
        try:
            self._last = [self._now(file) for file, _ in self._files]
        except (OSError, ValueError) as error:
            raise Missing(f"RAPL: the energy counter does not answer: {type(error).__name__}") from None
        self._total = 0.0
        self._at = time.perf_counter()
        self._reset = False

    def joules(self) -> float:
        """Energy since the first reading, J. Between two calls no counter may go round more than once.

        Raises:
            Missing: a counter began again at zero, now or before; what it had counted is lost.
        """
        at = time.perf_counter()
        for i, (file, largest) in enumerate(self._files):
            now = self._now(file)
            gained = (now - self._last[i] if now >= self._last[i] else now + largest - self._last[i]) / 1e6
            # Twice the largest rating, and for a second more: a round is 60 times that and more.
            self._reset |= now < self._last[i] and gained > 2 * PACKAGE * (at - self._at + 1)
            self._total += gained
            self._last[i] = now
        self._at = at
        if self._reset:
            raise Missing("something set it to zero")
        return self._total

    def _now(self, file: Path) -> float:
        return float(file.read_text())


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""
