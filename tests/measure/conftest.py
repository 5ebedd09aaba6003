"""A GPU's NVML that a test plays: a pynvml in place of the real one, or boards below the real one."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch


class Refused(Exception):
    """What NVML raises."""


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A pynvml of one GPU; its state can be changed, and what is in `refused` raises."""
    state = SimpleNamespace(busy=37, used=3 * 2**30, milliwatts=123_456, started=0, refused={}, asked=[])
    properties = SimpleNamespace(
        uuid="8a6e", name="GPU 9000", total_memory=80 * 2**30, multi_processor_count=132, major=9, minor=0,
        L2_cache_size=2**25,
    )  # fmt: skip
    module = ModuleType("pynvml")

    def answer(name: str, value: Any) -> Any:
        def function(*arguments: Any) -> Any:
            state.asked.append((name, arguments))
            if name in state.refused:
                raise Refused(state.refused[name])
            return value(*arguments)

        return function

    def count(by: int) -> None:
        state.started += by

    for name, value in {
        "nvmlInit": lambda: count(1),
        "nvmlShutdown": lambda: count(-1),
        "nvmlDeviceGetHandleByUUID": lambda uuid: f"handle of {uuid}",
        "nvmlDeviceGetUtilizationRates": lambda _: SimpleNamespace(gpu=state.busy, memory=99),
        "nvmlDeviceGetMemoryInfo": lambda _: SimpleNamespace(total=80 * 2**30, free=1, used=state.used),
        "nvmlDeviceGetPowerUsage": lambda _: state.milliwatts,
        "nvmlSystemGetDriverVersion": lambda: b"580.1",
        "nvmlDeviceGetEnforcedPowerLimit": lambda _: 700_000,
        "nvmlDeviceGetMaxClockInfo": lambda _, which: {"sm": 1980, "memory": 2619}[which],
    }.items():
        setattr(module, name, answer(name, value))
    module.NVML_CLOCK_SM, module.NVML_CLOCK_MEM = "sm", "memory"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pynvml", module)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    monkeypatch.setattr(torch.version, "hip", None)
    return state


@dataclass
class Board:
    """One board in NVML's order.

    Attributes:
        uuid: as NVML names it, without "GPU-".
        millijoules: what its counter shows.
        limit: enforced power limit, mW.
        sliced: MIG is on; None: the board knows no slices.
        pids: of the processes that compute on it.
        volta: of this generation or a later one.
        errors: NVML's error code by function.
    """

    uuid: str
    millijoules: Callable[[], int] = lambda: 0
    limit: int = 700_000
    sliced: bool | None = False
    pids: list[int] = field(default_factory=lambda: [os.getpid()])
    volta: bool = True
    errors: dict[str, int] = field(default_factory=dict)


@dataclass
class Boards:
    """A machine's boards.

    Attributes:
        boards: in NVML's order, which their handles are positions in.
        visible: their positions in torch's order, as CUDA_VISIBLE_DEVICES makes it.
        started: nvmlInit less nvmlShutdown.
        asked: (function, position) in the order asked.
        errors: NVML's error code by function, for functions that are asked of no board.
    """

    boards: list[Board]
    visible: list[int]
    started: int = 0
    asked: list[tuple[str, int]] = field(default_factory=list)
    errors: dict[str, int] = field(default_factory=dict)


@pytest.fixture
def boards(monkeypatch: pytest.MonkeyPatch) -> Boards:
    """Four boards under the real pynvml, so that zeus's own code runs above them."""
    import pynvml

    state = Boards([Board(f"{k:08x}-0000-0000-0000-000000000000") for k in range(4)], visible=[0, 1, 2, 3])

    def refuse(errors: dict[str, int], name: str) -> None:
        if name in errors:
            raise pynvml.NVMLError(errors[name])

    def whole(name: str, value: Callable[..., Any]) -> None:
        def function(*arguments: Any) -> Any:
            refuse(state.errors, name)
            return value(*arguments)

        monkeypatch.setattr(pynvml, name, function)

    def of_board(name: str, value: Callable[[Board], Any]) -> None:
        def function(handle: int, *_: Any) -> Any:
            if not state.started:
                raise pynvml.NVMLError(pynvml.NVML_ERROR_UNINITIALIZED)
            state.asked.append((name, handle))
            refuse(state.boards[handle].errors, name)
            return value(state.boards[handle])

        monkeypatch.setattr(pynvml, name, function)

    def start(by: int) -> None:
        state.started += by

    def by_uuid(uuid: str) -> int:
        for k, board in enumerate(state.boards):
            if uuid == f"GPU-{board.uuid}":
                return k
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)

    def mode(board: Board) -> list[int]:
        if board.sliced is None:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return [int(board.sliced), int(board.sliced)]

    def no_grace_hopper(_: Board) -> Any:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)

    whole("nvmlInit", lambda: start(1))
    whole("nvmlShutdown", lambda: start(-1))
    whole("nvmlDeviceGetHandleByUUID", by_uuid)
    whole("nvmlDeviceGetHandleByIndex", lambda index: index)
    whole("nvmlDeviceGetIndex", lambda handle: handle)
    of_board("nvmlDeviceGetC2cModeInfoV", no_grace_hopper)
    of_board("nvmlDeviceGetMigMode", mode)
    architectures = pynvml.NVML_DEVICE_ARCH_PASCAL, pynvml.NVML_DEVICE_ARCH_VOLTA
    of_board("nvmlDeviceGetArchitecture", lambda b: architectures[b.volta])
    of_board("nvmlDeviceGetTotalEnergyConsumption", lambda b: b.millijoules())
    of_board("nvmlDeviceGetEnforcedPowerLimit", lambda b: b.limit)
    of_board("nvmlDeviceGetPowerManagementDefaultLimit", lambda b: 700_000)
    of_board("nvmlDeviceGetPowerManagementLimitConstraints", lambda b: [200_000, 700_000])
    of_board("nvmlDeviceGetComputeRunningProcesses", lambda b: [SimpleNamespace(pid=p) for p in b.pids])
    monkeypatch.setattr(
        torch.cuda,
        "get_device_properties",
        lambda device: SimpleNamespace(uuid=state.boards[state.visible[device.index]].uuid),
    )
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    monkeypatch.setattr(torch.version, "hip", None)
    return state
