"""Sourced data: accelerators and published results.

The YAML files beside this module are the data; this module loads and checks them. An entry without a source
does not load, so no number enters the course without saying where it is from.
"""

from __future__ import annotations

import datetime
from functools import cache
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from efflab import yamlfile
from efflab.errors import EfflabError, unknown
from efflab.units import PARAMETER, TOKEN, parse

FOLDER = Path(__file__).parent

# Storage, not compute: TF32 operands are kept in four bytes.
BYTES_PER_ELEMENT = {
    "fp64": 8.0, "fp32": 4.0, "tf32": 4.0, "bf16": 2.0, "fp16": 2.0, "fp8": 1.0, "int8": 1.0, "fp4": 0.5,
}  # fmt: skip
Dtype = Literal["fp64", "fp64_tensor", "fp32", "fp32_tensor", "tf32", "bf16", "fp16", "fp8", "int8", "fp4"]

GIGA, TERA = 1e9, 1e12


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=False, str_strip_whitespace=True)


class Source(_Entry):
    """Where a number is from."""

    title: str = Field(min_length=3)
    url: str | None = Field(default=None, pattern=r"^https?://")
    where: str | None = None
    covers: str | None = None


class Link(_Entry):
    """The link between accelerators: bandwidth in one direction, and how many it joins in the vendor's system."""

    name: str
    gb_per_s_per_direction: float = Field(gt=0)
    joins: int = Field(gt=1)


class Accelerator(_Entry):
    """One accelerator. The YAML keys carry data-sheet units; the properties give SI base units."""

    name: str
    vendor: str
    year: int = Field(ge=2000, le=2100)
    matches: tuple[str, ...] = ()
    peak_dense_tflops: dict[Dtype, float]
    peak_sparse_tflops: dict[Dtype, float] = {}
    memory_gb: float = Field(gt=0)
    memory_type: str
    memory_bandwidth_gb_per_s: float = Field(gt=0)
    link: Link | None = None
    l2_cache_mb: float | None = Field(default=None, gt=0)
    tdp_w: float | None = Field(default=None, gt=0)
    sources: tuple[Source, ...] = Field(min_length=1)
    verified: datetime.date
    doubts: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _plausible(self) -> Accelerator:
        for dtype, peak in [*self.peak_dense_tflops.items(), *self.peak_sparse_tflops.items()]:
            if not peak > 0:
                raise ValueError(f"the {dtype} peak must be greater than zero, got {peak}")
        for dtype, sparse in self.peak_sparse_tflops.items():
            dense = self.peak_dense_tflops.get(dtype)
            if dense is None or sparse <= dense:
                raise ValueError(
                    f"the sparse {dtype} peak ({sparse}) must exceed a dense one ({dense}): "
                    "is the dense number under the wrong key?"
                )
        return self

    @property
    def peak_dense(self) -> dict[str, float]:
        """Dense peaks by dtype, FLOP/s (int8: operations/s)."""
        return {k: v * TERA for k, v in self.peak_dense_tflops.items()}

    @property
    def peak_sparse(self) -> dict[str, float]:
        """Peaks with 2:4 structured sparsity by dtype, FLOP/s. Not for dense operands."""
        return {k: v * TERA for k, v in self.peak_sparse_tflops.items()}

    @property
    def memory(self) -> float:
        """Memory capacity as the vendor prints it, taken as decimal GB, B; a driver may report up to 8% more."""
        return self.memory_gb * GIGA

    @property
    def memory_bandwidth(self) -> float:
        """Memory bandwidth, B/s."""
        return self.memory_bandwidth_gb_per_s * GIGA

    @property
    def link_bandwidth(self) -> float | None:
        """Bandwidth of the accelerator link in one direction, B/s; None where there is only PCIe."""
        return self.link.gb_per_s_per_direction * GIGA if self.link else None

    @property
    def tdp(self) -> float | None:
        """Thermal design power, W; None where the vendor prints none."""
        return self.tdp_w

    def peak(self, dtype: str) -> float:
        """Dense peak performance for a dtype, FLOP/s.

        Raises:
            EfflabError: this accelerator has no such peak.
        """
        if dtype not in self.peak_dense_tflops:
            raise EfflabError(f"{self.name} has no dense {dtype} peak. It has: {', '.join(self.peak_dense_tflops)}.")
        return self.peak_dense_tflops[dtype] * TERA  # type: ignore[index]


class Differs(_Entry):
    """A printed value that does not follow from the source's own inputs, what does, and why."""

    kind: Literal["misprint", "rounded", "counted otherwise"]
    correct: str | float
    why: str = Field(min_length=10)


class Published(_Entry):
    """A published number and the formula that should reproduce it.

    `inputs` and `printed` are numbers or texts with units ("1.5 TB/s"); `tolerance` is relative.
    """

    id: str = Field(pattern=r"^[a-z0-9][a-z0-9.-]*$")
    topic: str
    formula: str = Field(pattern=r"^[a-z_]+\.[a-z_0-9]+$")
    inputs: dict[str, bool | float | str]
    printed: str | float
    tolerance: float = Field(gt=0, le=0.2)
    source: Source
    note: str = ""
    differs: Differs | None = None


def load(path: Path, model: type[_Entry]) -> list[Any]:
    """Read a YAML list of entries.

    Raises:
        EfflabError: the file is not a YAML list, or an entry is incomplete or wrong; names entry and field.
    """
    rows = yamlfile.read(path)
    if not isinstance(rows, list):
        raise EfflabError(f"{path.name}: expected a list of entries, each starting with '- '.")
    entries, key = [], "id" if "id" in model.model_fields else "name"
    for number, row in enumerate(rows, 1):
        label = row.get(key, f"entry {number}") if isinstance(row, dict) else f"entry {number}"
        try:
            entries.append(model.model_validate(row))
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(map(str, first["loc"])) or "entry"
            raise EfflabError(f"{path.name}: {label}: {field}: {first['msg']}.") from None
    names = [getattr(e, key) for e in entries]
    for name in names:
        if names.count(name) > 1:
            raise EfflabError(f"{path.name}: {name}: two entries have this {key}. Give each its own.")
    return entries


@cache
def accelerators() -> dict[str, Accelerator]:
    """Every accelerator by name, in the file's order."""
    return {a.name: a for a in load(FOLDER / "accelerators.yaml", Accelerator)}


def accelerator(name: str) -> Accelerator:
    """The accelerator of that name.

    Raises:
        EfflabError: unknown; names the nearest known ones.
    """
    known = accelerators()
    if name not in known:
        raise unknown("accelerator", name, known)
    return known[name]


def match_device(device_name: str, memory: float) -> Accelerator | None:
    """The catalog's entry for a device as its driver names it.

    Args:
        device_name: what the driver reports, such as "NVIDIA H200". The whole name must match: an H200 NVL has
            other peaks than an H200 SXM.
        memory: what the driver reports, B. It tells variants of one name apart. NVIDIA prints capacities nearer
            to GiB than to GB, so drivers report up to 8% more than the printed number of GB (an H200 of "141 GB"
            reports 150.8 GB); the nearest capacity within 12% wins.
    """
    fitting = [
        a for a in accelerators().values() if device_name in a.matches and abs(a.memory - memory) <= 0.12 * a.memory
    ]
    return min(fitting, key=lambda a: abs(a.memory - memory), default=None)


class Law(_Entry):
    """A published parametric law L = E + A / N^alpha + B / D^beta; losses in nats per token."""

    name: str
    year: int = Field(ge=2000, le=2100)
    irreducible_loss: float = Field(gt=0)
    parameter_coefficient: float = Field(gt=0)
    parameter_exponent: float = Field(gt=0, lt=3)
    token_coefficient: float = Field(gt=0)
    token_exponent: float = Field(gt=0, lt=3)
    standard_errors: dict[str, float] = {}
    data: str
    sources: tuple[Source, ...] = Field(min_length=1)
    verified: datetime.date
    doubts: tuple[str, ...] = ()

    def constants(self) -> dict[str, float]:
        """The five constants, by the names that `formulas.scaling_laws.parametric_loss` gives them."""
        names = ("irreducible_loss", "parameter_coefficient", "parameter_exponent", "token_coefficient")
        return {name: getattr(self, name) for name in (*names, "token_exponent")}


class PowerLaw(_Entry):
    """A published law of one scale, L = (X_c / X)^alpha; losses in nats per token."""

    name: str
    year: int = Field(ge=2000, le=2100)
    scale: Literal["parameters", "tokens", "petaflop_days"]
    critical_scale: float = Field(gt=0)
    exponent: float = Field(gt=0, lt=3)
    sources: tuple[Source, ...] = Field(min_length=1)
    verified: datetime.date
    doubts: tuple[str, ...] = ()


@cache
def laws() -> dict[str, Law]:
    """Every parametric law by name, in the file's order."""
    return {law.name: law for law in load(FOLDER / "laws.yaml", Law)}


def law(name: str) -> Law:
    """The parametric law of that name.

    Raises:
        EfflabError: unknown; names the nearest known ones.
    """
    if name not in laws():
        raise unknown("law", name, laws())
    return laws()[name]


@cache
def power_laws() -> dict[str, PowerLaw]:
    """Every power law of one scale by name, in the file's order."""
    return {law.name: law for law in load(FOLDER / "power_laws.yaml", PowerLaw)}


class Shape(_Entry):
    """A dense decoder's architecture. Positions: learned ones; rotary and ALiBi positions are 0."""

    layers: int = Field(gt=0)
    hidden_size: int = Field(gt=0)
    intermediate_size: int = Field(gt=0)
    query_heads: int = Field(gt=0)
    kv_heads: int = Field(gt=0)
    head_dim: int = Field(gt=0)
    vocabulary: int = Field(gt=0)
    positions: int = Field(ge=0)
    mlp: Literal["gated", "plain"]
    position_projections: Literal[0, 1] = 0
    tied_embeddings: bool
    biases: Literal["none", "qkv", "all"]
    norm: Literal["rms", "layer"]
    norms_per_block: int = Field(gt=0)
    outer_norms: int = Field(ge=0)

    @model_validator(mode="after")
    def _plausible(self) -> Shape:
        if self.query_heads % self.kv_heads:
            raise ValueError(f"{self.query_heads} query heads cannot share {self.kv_heads} KV heads evenly")
        return self


class Model(_Entry):
    """One published dense language model. Counts are kept as they were printed; the properties give numbers."""

    name: str
    maker: str
    year: int = Field(ge=2017, le=2100)
    shape: Shape
    sequence_length: int = Field(gt=0)
    parameters_printed: str
    tokens_printed: str | None
    differs: Differs | None = None
    sources: tuple[Source, ...] = Field(min_length=1)
    verified: datetime.date
    doubts: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _readable(self) -> Model:
        correct = parse(self.differs.correct, PARAMETER, "differs.correct") if self.differs else None
        if min(c for c in (self.parameters, self.tokens, correct) if c is not None) <= 0:
            raise ValueError("counts of parameters and tokens must be greater than zero")
        return self

    @property
    def parameters(self) -> float:
        """Parameters as published, as exactly as they were printed."""
        return parse(self.parameters_printed, PARAMETER, "parameters_printed")

    @property
    def tokens(self) -> float | None:
        """Training tokens as published; None where none were."""
        return None if self.tokens_printed is None else parse(self.tokens_printed, TOKEN, "tokens_printed")

    def architecture(self) -> dict[str, Any]:
        """The arguments of `formulas.transformer.parameter_count`."""
        values = self.shape.model_dump()
        return values | {"mlp_matrices": {"plain": 2, "gated": 3}[values.pop("mlp")]}


@cache
def models() -> dict[str, Model]:
    """Every model by name, in the file's order."""
    return {m.name: m for m in load(FOLDER / "models.yaml", Model)}


def model(name: str) -> Model:
    """The model of that name.

    Raises:
        EfflabError: unknown; names the nearest known ones.
    """
    if name not in models():
        raise unknown("model", name, models())
    return models()[name]


class Block(_Entry):
    """What the elements of a block format share; element and scales by the names of their formats."""

    size: int = Field(gt=1)
    element: str
    scale: str
    tensor_scale: str | None = None


class Format(_Entry):
    """One number format. Range and resolution follow from its bits: see `formulas.precision`."""

    name: str
    exponent_bits: int = Field(ge=2, le=11)
    mantissa_bits: int = Field(ge=0, le=52)
    flavour: Literal["ieee", "fn", "fnuz", "finite", "scale"]
    bits: int = Field(gt=0, le=64)
    storage_bits: int | None = Field(default=None, le=64)
    torch: str | None = None
    ml_dtypes: str | None = None
    block: Block | None = None
    sources: tuple[Source, ...] = Field(min_length=1)
    verified: datetime.date
    doubts: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _plausible(self) -> Format:
        expected = self.exponent_bits + self.mantissa_bits + (self.flavour != "scale")
        if self.bits != expected:
            raise ValueError(f"sign, exponent and mantissa have {expected} bits together, not {self.bits}")
        if self.storage_bits is not None and self.storage_bits < self.bits:
            raise ValueError(f"{self.bits} bits cannot be stored in {self.storage_bits}")
        return self

    def arguments(self) -> dict[str, Any]:
        """The arguments of the formulas of `formulas.precision`; a block format's are those of its element."""
        return {name: getattr(self, name) for name in ("exponent_bits", "mantissa_bits", "flavour")}

    @property
    def bytes_per_element(self) -> float:
        """Bytes that one number takes in memory, its share of the block's scale included."""
        shared = number_format(self.block.scale).bits / self.block.size if self.block else 0
        return ((self.storage_bits or self.bits) + shared) / 8


@cache
def formats() -> dict[str, Format]:
    """Every number format by name, in the file's order.

    Raises:
        EfflabError: a block format's element or scale is no format, or differs from it.
    """
    known = {f.name: f for f in load(FOLDER / "formats.yaml", Format)}
    for one in known.values():
        for part in (one.block.element, one.block.scale, one.block.tensor_scale) if one.block else ():
            if part is not None and part not in known:
                raise unknown(f"formats.yaml: {one.name}: format", part, known)
        if one.block and known[one.block.element].arguments() != one.arguments():
            raise EfflabError(f"formats.yaml: {one.name}: its bits are not those of {one.block.element}.")
    return known


def number_format(name: str) -> Format:
    """The number format of that name.

    Raises:
        EfflabError: unknown; names the nearest known ones.
    """
    if name not in formats():
        raise unknown("number format", name, formats())
    return formats()[name]


@cache
def published() -> list[Published]:
    """Every published number: one file per topic, in each file's order.

    Raises:
        EfflabError: two numbers share an id, or one stands in the file of another topic.
    """
    rows: list[Published] = []
    for path in sorted((FOLDER / "published").glob("*.yaml")):
        for row in load(path, Published):
            if row.topic != path.stem:
                raise EfflabError(f"published/{path.name}: {row.id}: its topic is {row.topic!r}. Move it to that file.")
            if row.id in {r.id for r in rows}:
                raise EfflabError(f"published/{path.name}: {row.id}: another file has this id. Give each its own.")
            rows.append(row)
    return rows
