"""Sourced data about energy: grids, data centres, processors, power limits that others measured."""

from __future__ import annotations

import datetime
import re
from functools import cache
from typing import Literal

from pydantic import Field, model_validator

from efflab.catalog import FOLDER, Source, _Entry, load
from efflab.errors import unknown

# The share of its rated power that a device takes on average while it works, when nothing was measured: CodeCarbon
# takes one half; a busy device takes all of it, and one that waits for data less than a third.
LOADS = (0.3, 1.0)
PER_KWH = 1 / 3.6e6


class Region(_Entry):
    """What a grid gave off per energy, in one year. `g_per_kwh` counts all greenhouse gases as CO2 (CO2e).

    `kind`: "country" and "world" are means over what is generated, "cloud region" that of a provider's grid region
    (location based), "as assumed" a number that a publication computed with.
    `counts`: "life cycle" has building the plants and bringing their fuel in it, "direct" only what they give off.
    """

    name: str
    year: int = Field(ge=1990, le=2100)
    kind: Literal["world", "country", "cloud region", "as assumed"]
    counts: Literal["life cycle", "direct", "not said"]
    g_per_kwh: float = Field(ge=0, le=2000)
    sources: tuple[Source, ...] = Field(min_length=1)
    verified: datetime.date
    doubts: tuple[str, ...] = ()

    @property
    def carbon_intensity(self) -> float:
        """g/J."""
        return self.g_per_kwh * PER_KWH


class Facility(_Entry):
    """PUE and WUE of an operator or of a survey in one year. WUE is the water consumed on site."""

    name: str
    operator: str
    year: int = Field(ge=2000, le=2100)
    covers: Literal["survey", "fleet", "site", "as assumed"]
    pue: float | None = Field(default=None, ge=1, le=5)
    wue_l_per_kwh: float | None = Field(default=None, ge=0, le=20)
    sources: tuple[Source, ...] = Field(min_length=1)
    verified: datetime.date
    doubts: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _says_something(self) -> Facility:
        if self.pue is None and self.wue_l_per_kwh is None:
            raise ValueError("pue or wue_l_per_kwh must be given")
        return self

    @property
    def wue(self) -> float | None:
        """L/J."""
        return None if self.wue_l_per_kwh is None else self.wue_l_per_kwh * PER_KWH


class Rated(_Entry):
    """One product of a processor family and its rated power."""

    product: str
    tdp_w: float = Field(gt=0)
    cores: int = Field(gt=0)


class Processor(_Entry):
    """A family of processors, with those of least and of most rated power per core.

    A processor is of the family where its name matches `names` (a regular expression, the whole name), or where its
    CPUID says `cpuid` ("vendor/family/model") and its name says no product: a virtual machine often hides it.
    """

    name: str
    vendor: str
    year: int = Field(ge=2000, le=2100)
    names: str
    cpuid: tuple[str, ...] = ()
    products: tuple[Rated, ...] = Field(min_length=1)
    sources: tuple[Source, ...] = Field(min_length=1)
    verified: datetime.date
    doubts: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _readable(self) -> Processor:
        try:
            re.compile(self.names)
        except re.error as error:
            raise ValueError(f"names is not a regular expression: {error}") from None
        return self

    def watts_per_core(self, name: str) -> tuple[float, float, str]:
        """Rated power of a core, W, least and most, and of what: of the product where the name says which."""
        # The longest name wins: "EPYC 9654" stands in "EPYC 9654P" too.
        named = sorted((p for p in self.products if p.product in name), key=lambda p: len(p.product))[-1:]
        ranked = sorted(named or self.products, key=lambda p: p.tdp_w / p.cores)
        least, most = ranked[0], ranked[-1]
        low, high = (p.tdp_w / p.cores for p in (least, most))
        told = f"the {least.product} is rated {least.tdp_w:g} W for {least.cores} cores"
        if least is not most:
            told += f", the {most.product} {most.tdp_w:g} W for {most.cores}"
        return low, high, f"{self.name}, where {told}"


class PowerLimit(_Entry):
    """What a workload took under one power limit, relative to the largest."""

    limit_w: float = Field(gt=0)
    energy: float = Field(gt=0)
    time: float = Field(gt=0)


class PowerCurve(_Entry):
    """Energy and time of one workload on one device under several power limits, as somebody measured them."""

    name: str
    device: str
    workload: str
    limits: tuple[PowerLimit, ...] = Field(min_length=3)
    sources: tuple[Source, ...] = Field(min_length=1)
    verified: datetime.date
    doubts: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _in_order(self) -> PowerCurve:
        watts = [row.limit_w for row in self.limits]
        if watts != sorted(set(watts)):
            raise ValueError("limits must rise")
        last = self.limits[-1]
        if (last.energy, last.time) != (1, 1):
            raise ValueError("energy and time of the largest limit must be 1: the others are relative to it")
        return self


@cache
def regions() -> dict[str, Region]:
    """Every carbon intensity by name, in the file's order."""
    return {r.name: r for r in load(FOLDER / "carbon_intensity.yaml", Region)}


def region(name: str) -> Region:
    """The carbon intensity of that name. Raises `EfflabError` for an unknown one; names the nearest."""
    if name not in regions():
        raise unknown("region", name, regions())
    return regions()[name]


@cache
def facilities() -> dict[str, Facility]:
    """PUE and WUE by name, in the file's order."""
    return {f.name: f for f in load(FOLDER / "facilities.yaml", Facility)}


def facility(name: str) -> Facility:
    """The data centre of that name. Raises `EfflabError` for an unknown one; names the nearest."""
    if name not in facilities():
        raise unknown("facility", name, facilities())
    return facilities()[name]


@cache
def power_curves() -> dict[str, PowerCurve]:
    """Measured curves of power limits by name, in the file's order."""
    return {c.name: c for c in load(FOLDER / "power_limits.yaml", PowerCurve)}


@cache
def processors() -> dict[str, Processor]:
    """Processor families by name, in the file's order."""
    return {p.name: p for p in load(FOLDER / "processors.yaml", Processor)}


def rated_per_core(name: str, cpuid: str = "") -> tuple[float, float, str] | None:
    """Rated power of one core of a processor, W, least and most, and of what; None where the catalog has none.

    Args:
        name: as the system reports it, such as "AMD EPYC 9654 96-Core Processor".
        cpuid: "vendor/family/model", such as "AuthenticAMD/25/17"; "" where it is not known.
    """
    named = [p for p in processors().values() if re.fullmatch(p.names, name)]
    hidden = [p for p in processors().values() if cpuid and cpuid in p.cpuid]
    found = (named or hidden)[:1]
    return found[0].watts_per_core(name) if found else None
