"""A GPU's NVML that a test plays."""

from __future__ import annotations

import sys
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
