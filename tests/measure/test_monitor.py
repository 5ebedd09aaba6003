"""The monitor against counters that a test sets, and on this machine against the operating system's own numbers."""

from __future__ import annotations

import os
import resource
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from efflab.errors import EfflabError
from efflab.measure import device as devices
from efflab.measure import monitor
from efflab.measure.monitor import NAMES, Counter, Monitor, Packages, Rate
from tests.measure import counters

CPU = torch.device("cpu")
CUDA = torch.device("cuda", 0)


def threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name == "efflab-monitor"]


def use(monkeypatch: pytest.MonkeyPatch, missing: dict[str, str] | None = None, **counters: Any) -> list[None]:
    """Counters that a test made up, in place of a device's; the list grows when their use ends."""
    closed: list[None] = []
    found = {name: Counter(f"fake {name}", read) for name, read in counters.items()}
    monkeypatch.setattr(monitor, "counters", lambda _: (found, dict(missing or {}), lambda: closed.append(None)))
    return closed


# The thread


def test_readings_follow_each_other_at_the_interval_and_stay_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    values = iter(range(10_000))
    closed = use(monkeypatch, memory=lambda: float(next(values)))
    with Monitor(CPU, 0.02) as found:
        begin = time.perf_counter()
        time.sleep(0.5)
        lasted = time.perf_counter() - begin
        assert threads() == ["efflab-monitor"]
    assert threads() == [] and closed == [None]
    assert found.series == {"memory": [float(k) for k in range(len(found.elapsed))]}
    assert 1 <= len(found.elapsed) <= lasted / 0.02 + 1, "a busy machine leaves some out, none comes early"
    assert all(t >= 0.02 * k - 1e-6 for k, t in enumerate(found.elapsed, 1))
    assert found.elapsed == sorted(found.elapsed)
    assert (found.sources, found.missing) == ({"memory": "fake memory"}, {})
    count = len(found.elapsed)
    time.sleep(0.1)
    assert len(found.elapsed) == count, "nothing is read after the block"


def test_a_slow_counter_leaves_out_readings_and_does_not_queue_them(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, power=lambda: time.sleep(0.1) or 7.0)
    with Monitor(CPU, 0.01) as found:
        time.sleep(0.5)
    assert 1 <= len(found.elapsed) <= 7
    assert np.diff(found.elapsed).min(initial=1) >= 0.09


def test_a_block_shorter_than_the_interval_has_one_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, memory=lambda: 3.0)
    begin = time.perf_counter()
    with Monitor(CPU, 30) as found:
        pass
    assert time.perf_counter() - begin < 10, "it did not wait for the interval"
    assert found.series == {"memory": [3.0]} and len(found.elapsed) == 1


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_the_thread_stops_when_the_block_fails(error: type[BaseException], monkeypatch: pytest.MonkeyPatch) -> None:
    closed = use(monkeypatch, memory=lambda: 3.0)
    with pytest.raises(error), Monitor(CPU, 0.01):
        raise error
    assert threads() == [] and closed == [None]


def test_a_counter_that_stops_answering_is_absent_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    left = iter([1.0, 2.0])

    def fails() -> float:
        for value in left:
            return value
        raise OSError("lost")

    use(monkeypatch, missing={"utilization": "none here"}, power=fails, memory=lambda: 4.0)
    with Monitor(CPU, 0.01) as found:
        limit = time.monotonic() + 30
        while "power" not in found.missing and time.monotonic() < limit:
            time.sleep(0.01)
        time.sleep(0.05)
    assert found.missing == {"utilization": "none here", "power": "fake power stopped answering after 2 readings: lost"}
    assert {*found.series} == {*found.sources} == {"memory"}
    assert len(found.series["memory"]) == len(found.elapsed) >= 3


def test_without_any_counter_the_times_are_still_there(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, missing=dict.fromkeys(monitor.NAMES, "none here"))
    with Monitor(CPU, 0.01) as found:
        time.sleep(0.05)
    assert found.series == {} and {*found.missing} == {*monitor.NAMES} and found.elapsed


@pytest.mark.parametrize("interval", [0, -1, float("nan"), float("inf")])
def test_an_interval_that_cannot_be_is_refused(interval: float) -> None:
    with pytest.raises(EfflabError, match="interval must be greater than zero"):
        Monitor(CPU, interval)


def test_a_monitor_is_used_once(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch)
    with Monitor(CPU, 0.01) as found:
        pass
    with pytest.raises(EfflabError, match="used already"), found:
        pass
    assert threads() == []


# This machine


def test_memory_is_what_the_system_says_of_this_process() -> None:
    """Against /proc, before and after 200 MB are written to."""
    if not Path("/proc/self/statm").exists():
        pytest.skip("needs Linux's /proc")

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

    with Monitor(CPU, 0.01) as found:
        time.sleep(0.05)
        before = resident()
        held = np.ones(25_000_000)
        after = resident()
        time.sleep(0.2)
    assert held.nbytes == 200_000_000
    memory = found.series["memory"]
    assert memory[0] == pytest.approx(before, abs=50e6)
    assert memory[-1] == pytest.approx(after, abs=50e6)
    assert 150e6 < memory[-1] - memory[0] < 250e6


def test_utilization_is_processor_time_per_core() -> None:
    """Against `os.times`, which counts in ticks: over the whole block they agree, busy or idle."""

    def used() -> float:
        now = os.times()
        return now.user + now.system

    for busy in (True, False):
        with Monitor(CPU, 0.05) as found:
            before, begin = used(), time.perf_counter()
            while time.perf_counter() - begin < 0.6:
                if busy:
                    sum(range(1000))
                else:
                    time.sleep(0.05)
            share = (used() - before) / (time.perf_counter() - begin) / devices.cores()
        gaps = np.diff(found.elapsed, prepend=0.0)
        mean = float(np.average(found.series["utilization"], weights=gaps))
        assert mean == pytest.approx(share, abs=0.12)
    assert str(devices.cores()) in found.sources["utilization"]


def test_what_this_machine_lacks_has_a_reason() -> None:
    with Monitor(CPU, 0.01) as found:
        pass
    assert {*found.series} | {*found.missing} == {*monitor.NAMES}
    assert not {*found.series} & {*found.missing}
    assert all(len(reason) > 10 for reason in found.missing.values())


def test_without_psutil_memory_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psutil", None)
    with Monitor(CPU, 0.01) as found:
        pass
    assert "psutil is not installed" in found.missing["memory"]
    assert "utilization" in found.series


# Energy counters of a processor


def package(root: Path, name: str, energy: float, largest: float = 1e9, inner: str = "") -> Path:
    folder = root / name
    folder.mkdir()
    (folder / "name").write_text(inner or f"package-{name[-1]}\n")
    (folder / "max_energy_range_uj").write_text(f"{largest:.0f}\n")
    (folder / "energy_uj").write_text(f"{energy:.0f}\n")
    return folder / "energy_uj"


def test_packages_add_up_and_their_parts_do_not(tmp_path: Path) -> None:
    one, two = package(tmp_path, "intel-rapl:0", 5e6), package(tmp_path, "intel-rapl:1", 7e6)
    cores = package(tmp_path, "intel-rapl:0:0", 1e6, inner="core")
    system = package(tmp_path, "intel-rapl:2", 1e6, inner="psys")
    found = Packages(tmp_path)
    assert found.count == 2 and found.joules() == 0
    one.write_text("15000000")
    two.write_text("9000000")
    cores.write_text("900000000")
    system.write_text("900000000")
    assert found.joules() == 12
    assert found.joules() == 12


def test_a_counter_that_goes_round_goes_on(tmp_path: Path) -> None:
    counter = package(tmp_path, "intel-rapl:0", 990e6, largest=1e9)
    found = Packages(tmp_path)
    counter.write_text("20000000")
    assert found.joules() == pytest.approx(30)
    counter.write_text("50000000")
    assert found.joules() == pytest.approx(60)


def test_a_machine_without_energy_counters_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for root in (tmp_path, tmp_path / "none"):
        monkeypatch.setattr(monitor, "POWERCAP", root)
        with Monitor(CPU, 0.01) as found:
            pass
        assert found.missing["power"] == "RAPL: this system offers no energy counter of a processor package"


def test_a_counter_for_root_only_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counters.refuse(monkeypatch, package(tmp_path, "intel-rapl:0", 1e6))
    monkeypatch.setattr(monitor, "POWERCAP", tmp_path)
    with Monitor(CPU, 0.01) as found:
        pass
    assert found.missing["power"] == "RAPL: only root may read the energy counters here"


def test_power_is_energy_per_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counter = package(tmp_path, "intel-rapl:0", 0, largest=1e12)
    monkeypatch.setattr(monitor, "POWERCAP", tmp_path)
    with Monitor(CPU, 0.05) as found:
        time.sleep(0.12)
        counter.write_text("3000000")
        time.sleep(0.2)
    gaps = np.diff(found.elapsed, prepend=0.0)
    assert float(np.sum(gaps * found.series["power"])) == pytest.approx(3, rel=0.2)
    assert "1 package" in found.sources["power"]


def test_a_rate_is_a_difference_per_second(monkeypatch: pytest.MonkeyPatch) -> None:
    total, now = [10.0], [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    rate = Rate(lambda: total[0], 0.5)
    total[0], now[0] = 30.0, 104.0
    assert rate() == 2.5
    now[0] = 105.0
    assert rate() == 0
    assert rate() == 0, "no time has passed"


# A GPU that a test plays


def test_nvmls_numbers_are_those_put_in(nvml: SimpleNamespace) -> None:
    with Monitor(CUDA, 0.01) as found:
        time.sleep(0.1)
        assert nvml.started == 1
        nvml.busy, nvml.used, nvml.milliwatts = 100, 2**20, 700_000
        time.sleep(0.1)
    assert nvml.started == 0
    for name, first, last in (("utilization", 0.37, 1.0), ("memory", 3 * 2**30, 2**20), ("power", 123.456, 700.0)):
        series = found.series[name]
        assert len(series) == len(found.elapsed)
        assert series[-1] == last and set(series) <= {first, last}
    asked = dict(nvml.asked)
    assert asked["nvmlDeviceGetHandleByUUID"] == ("GPU-8a6e",)
    assert asked["nvmlDeviceGetPowerUsage"] == ("handle of GPU-8a6e",)
    assert all(source.startswith("NVML, ") for source in found.sources.values())


def test_what_a_gpu_does_not_offer_is_absent(nvml: SimpleNamespace) -> None:
    nvml.refused = {"nvmlDeviceGetUtilizationRates": "Not Supported"}
    with Monitor(CUDA, 0.01) as found:
        time.sleep(0.03)
    assert found.missing == {"utilization": "NVML, nvmlDeviceGetUtilizationRates: Not Supported"}
    assert {*found.series} == {"memory", "power"}


@pytest.mark.parametrize(
    ("name", "said"),
    [("nvmlInit", "NVML does not start: broken"), ("nvmlDeviceGetHandleByUUID", "NVML does not know this GPU: broken")],
)
def test_without_nvml_every_counter_is_absent(name: str, said: str, nvml: SimpleNamespace) -> None:
    nvml.refused = {name: "broken"}
    with Monitor(CUDA, 0.01) as found:
        pass
    assert found.missing == dict.fromkeys(monitor.NAMES, said)
    assert found.series == {} and nvml.started == 0


def test_a_gpu_that_is_lost_on_the_way_is_said(nvml: SimpleNamespace) -> None:
    with Monitor(CUDA, 0.01) as found:
        time.sleep(0.05)
        nvml.refused = {"nvmlDeviceGetPowerUsage": "GPU is lost"}
        time.sleep(0.2)
    assert "power" not in found.series
    assert "stopped answering after" in found.missing["power"] and "GPU is lost" in found.missing["power"]


def test_without_its_package_or_on_an_amd_gpu_there_is_no_nvml(
    nvml: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "pynvml", None)
        with Monitor(CUDA, 0.01) as found:
            pass
        assert set(found.missing.values()) == {"the package nvidia-ml-py is not installed"}
    monkeypatch.setattr(torch.version, "hip", "6.2")
    with Monitor(CUDA, 0.01) as found:
        pass
    assert "AMD" in found.missing["power"] and found.series == {}
    assert nvml.asked == []


@pytest.mark.gpu
def test_this_gpus_counters_answer() -> None:
    matrix = torch.randn(4096, 4096, device="cuda")
    with Monitor(CUDA, 0.1) as found:
        begin = time.perf_counter()
        while time.perf_counter() - begin < 2:
            matrix @ matrix
            torch.cuda.synchronize()
    assert set(found.series) == set(NAMES) and not found.missing
    assert {len(values) for values in found.series.values()} == {len(found.elapsed)} and len(found.elapsed) >= 5
    assert 0 <= min(found.series["utilization"]) <= max(found.series["utilization"]) <= 1
    assert max(found.series["utilization"]) > 0.5
    assert min(found.series["memory"]) > 4 * 4096**2
    assert 1 < min(found.series["power"]) <= max(found.series["power"]) < 5000
