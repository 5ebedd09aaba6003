"""The meter: boards that misbehave below zeus's own code, processor packages in files, and simulated traces."""

from __future__ import annotations

import bisect
import multiprocessing.process
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pynvml
import pytest
import torch

from efflab.errors import EfflabError
from efflab.measure import device as devices
from efflab.measure import energy, monitor, timer
from efflab.measure.energy import Meter
from tests.measure import counters
from tests.measure.conftest import Boards
from tests.measure.test_monitor import package

CPU = torch.device("cpu")
CUDA = torch.device("cuda", 0)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> counters.Clock:
    return counters.Clock(monkeypatch)


def show(boards: Boards, *millijoules: int) -> None:
    """Let the boards' counters show these numbers."""
    for board, value in zip(boards.boards, millijoules, strict=False):
        board.millijoules = lambda value=value: value


# A GPU


def test_joules_are_what_the_counter_gained(boards: Boards, clock: counters.Clock) -> None:
    show(boards, 5_000_000)
    with Meter([CUDA]) as meter:
        assert (meter.source, meter.why, meter.shared, meter.period) == ("nvml-counter", "", "", 0.1)
        assert meter.of == "NVML's energy counter of GPU 0"
        mark = meter.begin()
        clock.advance(2.0)
        show(boards, 5_700_250)
        reading = meter.since(mark)
    assert reading == energy.Reading(2.0, (700.25,), "")
    assert reading.total == 700.25
    assert boards.started == 0


def unsupported(boards: Boards) -> None:
    boards.boards[0].errors["nvmlDeviceGetTotalEnergyConsumption"] = pynvml.NVML_ERROR_NOT_SUPPORTED


def forbidden(boards: Boards) -> None:
    boards.boards[0].errors["nvmlDeviceGetTotalEnergyConsumption"] = pynvml.NVML_ERROR_NO_PERMISSION


def lost(boards: Boards) -> None:
    boards.boards[0].errors["nvmlDeviceGetArchitecture"] = pynvml.NVML_ERROR_GPU_IS_LOST


def old(boards: Boards) -> None:
    boards.boards[0].volta = False


def sliced(boards: Boards) -> None:
    boards.boards[0].sliced = True


def a_slices_name(boards: Boards) -> None:
    # torch names a slice by its own UUID, which NVML does not know as a GPU.
    boards.boards.append(type(boards.boards[0])("51ce"))
    boards.visible = [4]
    boards.errors["nvmlDeviceGetHandleByUUID"] = pynvml.NVML_ERROR_NOT_FOUND


def no_driver(boards: Boards) -> None:
    boards.errors["nvmlInit"] = pynvml.NVML_ERROR_DRIVER_NOT_LOADED


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (unsupported, "NVML's energy counter of GPU 0 cannot be read: Not Supported"),
        (forbidden, "NVML's energy counter of GPU 0 cannot be read: Insufficient Permissions"),
        (lost, "NVML says nothing of this GPU's energy: GPU is lost"),
        (old, "this GPU has no energy counter: NVML offers it from the generation of V100 on"),
        (sliced, "this GPU is cut into slices (MIG), and its counter is the whole board's"),
        (a_slices_name, "NVML does not know this GPU: Not Found"),
        (no_driver, "NVML does not start: Driver Not Loaded"),
    ],
)
def test_without_a_counter_there_is_a_sentence_and_no_number(
    broken: Callable[[Boards], None], said: str, boards: Boards, clock: counters.Clock
) -> None:
    show(boards, 1000)
    broken(boards)
    with Meter([CUDA]) as meter:
        assert boards.started == 0, "a meter without a counter holds nothing open"
        assert (meter.source, meter.why, meter.of, meter.period) == ("none", said, "", 0.0)
        mark = meter.begin()
        clock.advance(5)
        for reading in (meter.since(mark), meter.gained(mark)):
            assert (reading.seconds, reading.joules, reading.total, reading.why) == (5.0, None, None, said)
        with energy.metering(meter):
            assert energy.begin() is None and energy.window(mark, 3) is None


def test_without_its_packages_or_on_an_amd_gpu_there_is_no_counter(
    boards: Boards, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "zeus.device.gpu.nvidia", None)
        with Meter([CUDA]) as meter:
            assert meter.why.startswith("the package zeus does not import: ")
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "pynvml", None)
        with Meter([CUDA]) as meter:
            assert meter.why == "the package nvidia-ml-py is not installed"
    monkeypatch.setattr(torch.version, "hip", "6.2")
    with Meter([CUDA]) as meter:
        assert meter.why == "NVML is NVIDIA's, and this is an AMD GPU"
    assert boards.started == 0


def test_a_gpu_that_knows_no_slices_is_counted(boards: Boards) -> None:
    boards.boards[0].sliced = None
    with Meter([CUDA]) as meter:
        assert meter.source == "nvml-counter"


def test_a_gpu_lost_within_a_window_leaves_it_without_a_number(boards: Boards, clock: counters.Clock) -> None:
    show(boards, 1_000)
    errors = boards.boards[0].errors
    with Meter([CUDA]) as meter:
        before = meter.begin()
        clock.advance(1)
        errors["nvmlDeviceGetTotalEnergyConsumption"] = pynvml.NVML_ERROR_GPU_IS_LOST
        during = meter.begin()
        said = "NVML's energy counter of GPU 0 cannot be read: GPU is lost"
        assert meter.since(before) == meter.gained(before) == energy.Reading(1.0, None, said)
        # It answers again: only windows that began or ended in between have no number.
        errors.clear()
        show(boards, 101_000)
        clock.advance(1)
        assert meter.since(during) == energy.Reading(1.0, None, said)
        assert meter.since(before) == energy.Reading(2.0, (100.0,))
    assert boards.started == 0


@pytest.mark.parametrize(
    ("seconds", "gained", "said"),
    [
        (0.05, 20_000, "the window of 0.05 s is shorter than the counter's period of 0.1 s"),
        (2.0, -400_000, "NVML's energy counter of GPU 0 went back by 400 J: something set it to zero"),
        (2.0, 0, "NVML's energy counter of GPU 0 did not move in 2 s"),
        # 2.1 s at twice the limit of 700 W are 2940 J.
        (2.0, 2_941_000, "NVML's energy counter of GPU 0 rose by 2.94e+03 J in 2 s, at a power limit of 700 W"),
        (2.0, 2_939_000, ""),
        (2.0, 1, ""),
    ],
)
def test_not_every_difference_is_an_energy(
    seconds: float, gained: int, said: str, boards: Boards, clock: counters.Clock
) -> None:
    show(boards, 1_000_000)
    with Meter([CUDA]) as meter:
        mark = meter.begin()
        clock.advance(seconds)
        show(boards, 1_000_000 + gained)
        reading = meter.since(mark)
        assert reading.seconds == pytest.approx(seconds)
        assert (reading.why, reading.joules is None) == (said, bool(said))
        raw = meter.gained(mark)
    assert raw.why == "" and raw.total == pytest.approx(gained / 1e3), "raw differences are not judged"


def test_several_gpus_add_up_and_each_counts_once(boards: Boards, clock: counters.Clock) -> None:
    two = torch.device("cuda", 2)
    show(boards, 1_000, 2_000, 3_000, 4_000)
    with Meter([CUDA, two, torch.device("cuda", 0), two]) as meter:
        assert meter.of == "2 counters, from NVML's energy counter of GPU 0 to NVML's energy counter of GPU 2"
        mark = meter.begin()
        clock.advance(1)
        show(boards, 11_000, 902_000, 33_000, 904_000)
        assert meter.since(mark).joules == (10.0, 30.0)
        assert meter.since(mark).total == 40.0
    assert boards.started == 0


def test_one_board_under_two_names_counts_once(
    boards: Boards, clock: counters.Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    uuid = boards.boards[0].uuid
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: type("P", (), {"uuid": uuid}))
    with Meter([torch.device("cuda"), CUDA]) as meter:
        mark = meter.begin()
        clock.advance(1)
        show(boards, 7_000)
        assert meter.since(mark).joules == (7.0,)


def test_one_gpu_without_a_counter_leaves_their_sum_without_a_number(boards: Boards, clock: counters.Clock) -> None:
    boards.boards[1].errors["nvmlDeviceGetTotalEnergyConsumption"] = pynvml.NVML_ERROR_NOT_SUPPORTED
    with Meter([CUDA, torch.device("cuda", 1)]) as meter:
        assert meter.source == "none" and "GPU 1 cannot be read" in meter.why
        assert boards.started == 0
    boards.boards[1].errors.clear()
    with Meter([CUDA, torch.device("cuda", 1)]) as meter:
        mark = meter.begin()
        clock.advance(1)
        show(boards, 5_000)  # the other one stands still
        assert meter.since(mark).why == "NVML's energy counter of GPU 1 did not move in 1 s"


@pytest.mark.parametrize("visible", ["3,1", "GPU-00000003-0000-0000-0000-000000000000,GPU-00000001"])
def test_the_counter_is_that_of_the_board_that_torch_uses(
    visible: str, boards: Boards, clock: counters.Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch's GPU 0 is NVML's 3, whatever CUDA_VISIBLE_DEVICES holds."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    boards.visible = [3, 1]
    show(boards, 10, 20, 30, 40)
    with Meter([CUDA]) as meter:
        assert meter.of == "NVML's energy counter of GPU 3"
        mark = meter.begin()
        clock.advance(1)
        show(boards, 10, 20, 30, 8_040)
        assert meter.since(mark).total == pytest.approx(8)
    assert {position for _, position in boards.asked} == {3}


@pytest.mark.parametrize("volta", [True, False])
def test_no_process_is_started_for_it(volta: bool, boards: Boards, monkeypatch: pytest.MonkeyPatch) -> None:
    """For older GPUs zeus offers a process that polls their power; nothing here begins one."""

    def started(*_: Any, **__: Any) -> None:
        raise AssertionError("a process was started")

    monkeypatch.setattr(multiprocessing.process.BaseProcess, "start", started)
    monkeypatch.setattr(subprocess, "Popen", started)
    monkeypatch.setattr(os, "fork", started)
    boards.boards[0].volta = volta
    with Meter([CUDA]) as meter:
        meter.since(meter.begin())
    asked = {name for name, _ in boards.asked}
    assert ("nvmlDeviceGetTotalEnergyConsumption" in asked) == volta
    assert not any("Power" in name and "Limit" not in name for name in asked)


def test_a_child_is_not_another_process_and_a_stranger_is(boards: Boards) -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        own = [os.getpid(), child.pid]
        nobody = [2**22 + 1, 2**22 + 2, 2**22 + 3]  # beyond Linux's largest process number
        what = "NVML's energy counter of GPU 0 also holds what "
        for pids, said in (
            (own, ""),
            ([*own, nobody[0]], f"{what}1 other process takes there"),
            ([*own, *nobody], f"{what}3 other processes take there"),
            # The driver numbers them as the host does, and this process in a container has another number.
            (nobody[:1], ""),
            (nobody[:2], f"{what}1 other process takes there"),
            ([], ""),
        ):
            boards.boards[0].pids = pids
            with Meter([CUDA]) as meter:
                assert (meter.shared, meter.source) == (said, "nvml-counter")
    finally:
        child.communicate(b"\n")
    boards.boards[0].errors["nvmlDeviceGetComputeRunningProcesses"] = pynvml.NVML_ERROR_NOT_SUPPORTED
    with Meter([CUDA]) as meter:
        assert (meter.shared, meter.source) == ("", "nvml-counter"), "a driver that does not say says nothing"


def test_a_gpu_that_cannot_be_waited_for_costs_the_energy_and_not_the_run(
    boards: Boards, clock: counters.Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(_: Any) -> None:
        raise RuntimeError("CUDA error: the device is lost")

    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch._C, "_cuda_hasPrimaryContext", lambda _: True, raising=False)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    with Meter([CUDA]) as meter:
        monkeypatch.setattr(torch.cuda, "synchronize", lambda _: None)
        mark = meter.begin()
        clock.advance(1)
        show(boards, 900_000)
        monkeypatch.setattr(torch.cuda, "synchronize", lost)
        reading = meter.since(mark)
        later = meter.since(meter.begin())
    assert reading.total is None and later.total is None
    assert reading.why == later.why == "the GPU does not answer: CUDA error: the device is lost"


@pytest.mark.parametrize("said", [float("nan"), float("inf")])
def test_what_is_no_number_is_no_energy(said: float, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = [1.0, 2.0, said]
    counters.play(monkeypatch, lambda: shown.pop(0))
    with Meter([CPU]) as meter:
        mark = meter.begin()
        assert meter.since(mark).why == f"the test's counter cannot be read: it says {said}"


@pytest.mark.parametrize(("job", "said"), [("77", ""), ("78", "1 other process takes there"), (None, "1 other")])
def test_a_process_of_the_same_slurm_job_is_not_another(
    job: str | None, said: str, boards: Boards, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rank that srun started is neither a child of this process nor one of those that started it."""
    begun = subprocess.run(
        ["sh", "-c", "setsid sleep 60 >/dev/null 2>&1 & echo $!"], env={**os.environ, "SLURM_JOB_ID": "77"},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    rank = int(begun.stdout)
    try:
        monkeypatch.delenv("SLURM_JOB_ID", raising=False)
        if job:
            monkeypatch.setenv("SLURM_JOB_ID", job)
        boards.boards[0].pids = [os.getpid(), rank]
        with Meter([CUDA]) as meter:
            assert said in meter.shared and bool(said) == bool(meter.shared)
    finally:
        os.kill(rank, signal.SIGKILL)


def test_a_window_waits_for_the_gpu_at_both_ends_before_it_reads(
    boards: Boards, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch._C, "_cuda_hasPrimaryContext", lambda index: index == 0, raising=False)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: order.append(f"waited for {device}"))
    for k in (0, 1):
        boards.boards[k].millijoules = lambda k=k: order.append(f"read {k}") or 0
    with Meter([CUDA, torch.device("cuda", 1)]) as meter:
        order.clear()
        mark = meter.begin()
        assert order == ["waited for cuda:0", "read 0", "read 1"], "GPU 1 has no context: there is nothing to wait for"
        order.clear()
        meter.since(mark)
        assert order == ["waited for cuda:0", "read 0", "read 1"]
        order.clear()
        meter.gained(meter.begin(wait=False), wait=False)
        assert order == ["read 0", "read 1"] * 2


def test_windows_overlap_freely(boards: Boards, clock: counters.Clock) -> None:
    with Meter([CUDA]) as meter:
        outer = meter.begin()
        clock.advance(1)
        show(boards, 100_000)
        inner = meter.begin()
        clock.advance(1)
        show(boards, 250_000)
        assert meter.since(inner).total == 150
        clock.advance(1)
        show(boards, 300_000)
        assert meter.since(outer).total == 300
        assert meter.since(inner).total == 200


def test_a_meter_of_nothing_is_refused() -> None:
    with pytest.raises(EfflabError, match="no device is named"):
        Meter([])


def test_a_board_is_held_until_the_meter_is_closed(boards: Boards) -> None:
    meters = [Meter([CUDA, torch.device("cuda", 1)]) for _ in range(2)]
    assert boards.started == 4
    meters[0].close()
    assert boards.started == 2
    assert meters[1].gained(meters[1].begin()).joules == (0.0, 0.0), "closing one leaves the other"
    meters[1].close()
    meters[1].close()
    assert boards.started == 0


def test_power_limits_are_those_that_nvml_names(boards: Boards) -> None:
    boards.boards[0].limit = 450_000
    assert energy.limits(CUDA) == {"enforced": 450.0, "default": 700.0, "least": 200.0, "most": 700.0}
    errors = boards.boards[0].errors
    errors["nvmlDeviceGetPowerManagementLimitConstraints"] = pynvml.NVML_ERROR_NO_PERMISSION
    assert energy.limits(CUDA) == {"enforced": 450.0, "default": 700.0}
    errors["nvmlDeviceGetEnforcedPowerLimit"] = errors["nvmlDeviceGetPowerManagementDefaultLimit"] = (
        pynvml.NVML_ERROR_NOT_SUPPORTED
    )
    with pytest.raises(energy.NoCounter, match="nothing of this GPU's power limits: Not Supported"):
        energy.limits(CUDA)
    boards.errors["nvmlInit"] = pynvml.NVML_ERROR_DRIVER_NOT_LOADED
    with pytest.raises(energy.NoCounter, match="Driver Not Loaded"):
        energy.limits(CUDA)
    assert boards.started == 0
    assert not any("Set" in name for name, _ in boards.asked)


@pytest.mark.gpu
def test_this_gpus_counter_moves_as_its_power_limit_allows() -> None:
    found = torch.device("cuda", torch.cuda.current_device())
    matrix = torch.randn(4096, 4096, device=found)
    with Meter([found]) as meter:
        if meter.source == "none":
            pytest.skip(meter.why)
        mark = meter.begin()
        begin = time.perf_counter()
        while time.perf_counter() - begin < 2:
            matrix @ matrix
            torch.cuda.synchronize()
        reading = meter.since(mark)
    assert reading.total is not None, reading.why
    assert 20 < reading.total / reading.seconds < 1.2 * energy.limits(found)["enforced"]


# The packages of a processor


@pytest.fixture
def powercap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty powercap tree of a machine whose cores are all this process's."""
    monkeypatch.setattr(monitor, "POWERCAP", tmp_path)
    monkeypatch.setattr(devices, "cores", lambda: 8)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    return tmp_path


def test_packages_add_up_and_domains_inside_of_them_do_not(powercap: Path, clock: counters.Clock) -> None:
    one, two = package(powercap, "intel-rapl:0", 5e6), package(powercap, "intel-rapl:1", 7e6)
    inside = package(powercap, "intel-rapl:0:0", 1e6, inner="core")
    with Meter([CPU, CPU]) as meter:
        assert (meter.source, meter.of, meter.shared, meter.period) == (
            "rapl", "RAPL's counters of 2 packages", "", 1e-3,
        )  # fmt: skip
        mark = meter.begin()
        clock.advance(1)
        one.write_text("15000000")
        two.write_text("9000000")
        inside.write_text("900000000")
        assert meter.since(mark).joules == (12.0,)


def test_a_package_that_goes_round_goes_on(powercap: Path, clock: counters.Clock) -> None:
    counter = package(powercap, "intel-rapl:0", 990e6, largest=1e9)
    with Meter([CPU]) as meter:
        mark = meter.begin()
        for now, total in (("20000000", 30.0), ("500000000", 510.0), ("10000000", 1020.0)):
            clock.advance(1)
            counter.write_text(now)
            assert meter.since(mark).total == pytest.approx(total)


def test_a_package_that_begins_again_at_zero_is_no_wrap(powercap: Path, clock: counters.Clock) -> None:
    """A wrap and a reset look alike but for the power that they seem to take."""
    counter = package(powercap, "intel-rapl:0", 900e9, largest=1000e9)
    with Meter([CPU]) as meter:
        mark = meter.begin()
        clock.advance(1)
        counter.write_text("0")
        reading = meter.since(mark)
    assert reading.total is None
    assert reading.why == "RAPL's counter of 1 package cannot be read: something set it to zero"


@pytest.mark.parametrize(("watts", "counted"), [(800, True), (1050, False)])
def test_each_package_adds_to_the_power_that_is_believed(
    watts: int, counted: bool, powercap: Path, clock: counters.Clock
) -> None:
    """Two packages may take twice what one may, 500 W, and the meter believes twice that limit."""
    pair = [package(powercap, f"intel-rapl:{k}", 0, largest=1e12) for k in range(2)]
    with Meter([CPU]) as meter:
        mark = meter.begin()
        clock.advance(1)
        for one in pair:
            one.write_text(f"{watts}000000")
        reading = meter.since(mark)
    assert (reading.total is not None) == counted, reading.why


def test_packages_that_only_root_may_read_have_no_number(powercap: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counters.refuse(monkeypatch, package(powercap, "intel-rapl:0", 1e6))
    with Meter([CPU]) as meter:
        assert (meter.source, meter.why) == ("none", "RAPL: only root may read the energy counters here")
        assert meter.since(meter.begin()).why == meter.why


def test_a_package_that_stops_answering_leaves_its_window_without_a_number(
    powercap: Path, clock: counters.Clock
) -> None:
    counter = package(powercap, "intel-rapl:0", 1e6)
    with Meter([CPU]) as meter:
        mark = meter.begin()
        clock.advance(1)
        counter.unlink()
        reading = meter.since(mark)
        assert reading.joules is None and "RAPL's counter of 1 package cannot be read" in reading.why
        counter.write_text("4000000")
        assert meter.since(mark).total == 3.0


def test_without_packages_there_is_a_sentence(powercap: Path) -> None:
    with Meter([CPU]) as meter:
        assert meter.why == "RAPL: this system offers no energy counter of a processor package"


@pytest.mark.parametrize(
    ("granted", "said"), [(8, ""), (3, "RAPL counts whole packages, and 3 of 8 cores are this pro")]
)
def test_with_some_of_the_cores_others_may_be_in_the_count(
    granted: int, said: str, powercap: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package(powercap, "intel-rapl:0", 1e6)
    monkeypatch.setattr(devices, "cores", lambda: granted)
    with Meter([CPU]) as meter:
        assert meter.shared.startswith(said) and bool(meter.shared) == bool(said)


# Traces


@pytest.mark.parametrize("name", counters.POWERS)
def test_a_trace_is_what_its_head_says(name: str) -> None:
    head = (counters.DATA / f"{name}.csv").read_text().splitlines()[0]
    assert head.startswith("# Simulated, not recorded on hardware")
    assert counters.trace(name) == counters.simulate(name)


def replay(boards: Boards, clock: counters.Clock, name: str) -> float:
    """Let board 0 show a trace by the clock; when it began."""
    rows, began = counters.trace(name), clock.now
    times = [t for t, _ in rows]
    boards.boards[0].millijoules = lambda: rows[bisect.bisect_right(times, clock.now - began + 1e-9) - 1][1]
    return began


WINDOWS = [(begin, length) for length in (0.5, 1.0, 3.0, 9.0) for begin in (2.5, 3.03, 4.577)]


@pytest.mark.parametrize("name", ["steady", "steps"])
@pytest.mark.parametrize(("begin", "length"), WINDOWS)
def test_a_windows_energy_is_right_within_the_period_over_its_length(
    name: str, begin: float, length: float, boards: Boards, clock: counters.Clock
) -> None:
    """Each end is old by less than a period, in which the board takes its largest power at most. In "steps" the
    sensor also misses three quarters of the load, which evens out: over N updates as one over the root of N."""
    began = replay(boards, clock, name)
    with Meter([CUDA]) as meter:
        clock.now = began + begin
        mark = meter.begin()
        clock.advance(length)
        found = meter.since(mark).total
    true = counters.true_energy(name, begin, begin + length)
    largest = {"steady": 500.0, "steps": 600.0}[name]
    missed = 0.0 if name == "steady" else (600 - 250) / 2 * energy.PERIODS["nvml-counter"] * (length / 0.1) ** 0.5
    assert found is not None
    assert abs(found - true) <= largest * energy.PERIODS["nvml-counter"] + missed + 1e-3
    if length == 9.0:
        assert found == pytest.approx(true, rel=0.05)


def test_a_longer_window_is_nearer_to_the_truth(boards: Boards, clock: counters.Clock) -> None:
    """The largest error over many beginnings falls as one over the length, and is near the bound where it is worst."""
    began = replay(boards, clock, "steady")
    worst = {}
    with Meter([CUDA]) as meter:
        for length in (0.15, 0.55, 2.05, 6.05):
            errors = []
            for k in range(100):
                clock.now = began + 3 + 0.0137 * k
                mark = meter.begin()
                clock.advance(length)
                errors.append(abs((meter.since(mark).total or 0.0) / (500 * length) - 1))
            worst[length] = max(errors)
    for length, error in worst.items():
        assert 0.3 * 0.1 / length < error <= 0.1 / length + 1e-6


def test_a_load_in_step_with_the_sensor_is_counted_wrong_and_no_window_shows_it(
    boards: Boards, clock: counters.Clock
) -> None:
    """The sensor looks in the same quarter of every update. What a meter reads is the counter, not the truth."""
    began = replay(boards, clock, "in-step")
    with Meter([CUDA]) as meter:
        clock.now = began + 1
        mark = meter.begin()
        clock.advance(10)
        assert meter.since(mark).total == pytest.approx(10 * 600, rel=0.01)
    assert counters.true_energy("in-step", 1, 11) == pytest.approx(10 * 250, rel=0.01)


# The timer


class Work:
    """A call that takes some time and a fixed energy, and counts itself. Calls by number may be slow, s."""

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        joules: float = 0.25,
        period: float = 1e-3,
        slow: Mapping[int, float] = MappingProxyType({}),
    ) -> None:
        self.clock = counters.Clock(monkeypatch)
        self.calls, self.joules, self.slow = 0, joules, slow
        counters.play(monkeypatch, lambda: self.calls * self.joules, period=period)

    def __call__(self) -> None:
        self.calls += 1
        self.clock.advance(self.slow.get(self.calls, 2e-3))


OPTIONS = {"time_limit": 0.5, "shortest": 0.01, "most": 20}


@pytest.mark.parametrize("mode", [timer.back_to_back, timer.waited])
def test_a_timing_holds_the_energy_of_its_timed_calls(
    mode: Callable[..., timer.Timed], monkeypatch: pytest.MonkeyPatch
) -> None:
    work = Work(monkeypatch)
    with Meter([CPU]) as meter, energy.metering(meter):
        timed = mode([work], timer.CPUClock(), **OPTIONS)
    used = timed.timing.energy
    assert used is not None
    assert used.calls == work.calls - timed.timing.warmup == len(timed.values) * timed.timing.loops
    assert used.joules == pytest.approx(0.25 * used.calls)
    assert used.seconds == pytest.approx(2e-3 * used.calls)


def test_a_slow_call_while_the_timer_warms_up_is_not_charged_to_the_timed_calls(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The second call makes the loop look long enough; the one after it shows that it is not, and more follow."""
    work = Work(monkeypatch, slow={2: 1.0})
    with Meter([CPU]) as meter, energy.metering(meter):
        timed = timer.back_to_back([work], timer.CPUClock(), **OPTIONS)
    used = timed.timing.energy
    assert timed.timing.warmup > 3 and timed.timing.loops > 1
    assert used is not None and used.calls == work.calls - timed.timing.warmup
    assert used.joules == pytest.approx(0.25 * used.calls)
    assert used.seconds == pytest.approx(2e-3 * used.calls)


def test_without_a_meter_a_timing_has_no_energy(monkeypatch: pytest.MonkeyPatch) -> None:
    work = Work(monkeypatch)
    with Meter([CPU]) as meter:
        assert timer.back_to_back([work], timer.CPUClock(), **OPTIONS).timing.energy is None
        with energy.metering(meter):
            pass
        assert timer.back_to_back([work], timer.CPUClock(), **OPTIONS).timing.energy is None


def test_the_innermost_meter_counts_and_the_outer_one_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def read() -> float | None:
        mark = energy.begin()
        return None if mark is None else mark.joules[0]

    counters.play(monkeypatch, lambda: 1.0)
    outer = Meter([CPU])
    counters.play(monkeypatch, lambda: 2.0)
    inner = Meter([CPU])
    with energy.metering(outer):
        with pytest.raises(ZeroDivisionError), energy.metering(inner):
            assert read() == 2
            raise ZeroDivisionError
        assert read() == 1
    assert read() is None


def test_a_timing_that_is_too_short_or_loses_its_counter_has_no_energy(monkeypatch: pytest.MonkeyPatch) -> None:
    work = Work(monkeypatch, period=1e3)
    with Meter([CPU]) as meter, energy.metering(meter):
        timed = timer.back_to_back([work], timer.CPUClock(), **OPTIONS)
    assert timed.timing.energy is None and timed.values == pytest.approx([2e-3] * len(timed.values))

    def fails() -> float:
        if work.calls > 10:
            raise OSError("gone")
        return 0.0

    work.calls = 0
    counters.play(monkeypatch, fails)
    with Meter([CPU]) as meter, energy.metering(meter):
        timed = timer.back_to_back([work], timer.CPUClock(), **OPTIONS)
    assert timed.timing.energy is None and timed.values == pytest.approx([2e-3] * len(timed.values))


def test_turns_add_their_energy_up_and_one_without_it_leaves_none(monkeypatch: pytest.MonkeyPatch) -> None:
    work = Work(monkeypatch)
    with Meter([CPU]) as meter, energy.metering(meter):
        (timed,) = timer.in_turns([work], timer.CPUClock(), 3, OPTIONS)
    used = timed.timing.energy
    assert used is not None and used.calls == work.calls - timed.timing.warmup
    assert used.joules == pytest.approx(0.25 * used.calls)
    assert used.seconds == pytest.approx(2e-3 * used.calls)
    without = timer.back_to_back([work], timer.CPUClock(), **OPTIONS)
    assert timer.together([timed, without]).timing.energy is None
