"""Records and predictions: what is written down, how it is kept, how it is read back.

A record holds raw repeats and the environment they were taken in; medians and ratios are computed on reading.
A prediction holds what someone committed to before the measurement. Both are JSON with a schema version.
A file is written whole or not at all and is never overwritten. Nothing here holds a host or a user name.

How a schema changes: a field is added as an optional one whose default says "not known", and the version stays
("efflab-record/1"), so every older record still loads. An efflab that is older than the field names it and says
that a newer efflab may have written the file. The version rises only where the meaning of a field changes, or
where one that old readers need goes away; a newer version is refused in words. `spec` and `point` are a topic's own
and take new entries freely; what a topic reads from them it checks itself.

Every function that reads or writes raises `EfflabError`, which names the file, the field and the mend.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import getpass
import json
import math
import os
import platform
import re
import secrets
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from efflab.errors import EfflabError
from efflab.units import UNITS

RECORD_SCHEMA = "efflab-record/1"
PREDICTION_SCHEMA = "efflab-prediction/1"
PROGRESS_SCHEMA = "efflab-progress/1"
RESULTS = Path(__file__).resolve().parent.parent / "labs" / "results"
NEVER_NEGATIVE = ("s", "B", "J", "W", "FLOP/s", "B/s")  # a loss or a signed error has another unit
LARGEST_FILE = 64 * 2**20  # B; a record is about 0.1 MB, so anything near this is not one

# How often a counter changes, s. NVML: about every 100 ms (Zeus's authors, ml.energy/blog/energy/measurement/
# thermally-stable-profiling-for-accurate-gpu-energy-measurement). RAPL: about every millisecond (Intel SDM, volume 3B,
# section 16.10.3).
PERIODS = {"nvml-counter": 0.1, "rapl": 1e-3}
TRUSTED = 10  # periods; what is counted in a shorter window may be off by more than a tenth

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,159}$")]
Topic = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z_]{0,39}$")]
Scalar = bool | int | float | str


def now() -> str:
    """The time now in UTC, ISO 8601, to the second: "2026-11-21T08:00:00Z"."""
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def identifier(*parts: str) -> str:
    """A new identifier that is also a safe file name: the parts, the time and four random bytes."""
    words = [slug(p) for p in parts if p]
    return "-".join([*words, now().replace(":", "").replace("-", ""), secrets.token_hex(4)])


def slug(text: str) -> str:
    """`text` in lower case with runs of other characters as one hyphen: "AMD EPYC" becomes "amd-epyc"."""
    return re.sub(r"[^a-z0-9_]+", "-", text.lower()).strip("-") or "unnamed"


def plain(text: str) -> str:
    """An error's text without paths, host or user names, on one line of at most 300 characters."""
    text = " ".join(text.split())
    text = re.sub(r"(?:[A-Za-z]:)?[/\\](?:[^\s/\\'\":,;()]+[/\\])+([^\s/\\'\":,;()]*)", r"\1", text)
    names = [platform.node()]
    with contextlib.suppress(Exception):
        names.append(getpass.getuser())
    for name in names:
        if len(name) > 2 and name != "root":  # which is nobody's
            text = re.sub(rf"(?<![A-Za-z0-9]){re.escape(name)}(?![A-Za-z0-9])", "…", text)
    return text if len(text) <= 300 else text[:299] + "…"


DOUBTS = ("wide", "short", "measured again", "disturbed")  # how a warning of a record goes on that doubts a time


class _Model(BaseModel):
    # Strict: a number in quotes or a true in place of a count is damage, not something to guess about.
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, validate_assignment=True)


def _utc(text: str) -> str:
    if not re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?(Z|\+00:00)", text):
        raise ValueError("a time in UTC such as 2026-11-21T08:00:00Z is expected")
    datetime.datetime.fromisoformat(text)
    return text


def _sound(value: Any, where: str) -> None:
    """Raise ValueError where a JSON value holds a number that is not finite or a text that UTF-8 cannot hold."""
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{where}: {value} is not a finite number")
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            raise ValueError(f"{where}: a lone surrogate, {ascii(value)[:60]}, is no text in UTF-8") from None
    elif isinstance(value, dict):
        for key, inner in value.items():
            _sound(key, where)
            _sound(inner, f"{where}.{key}")
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            _sound(inner, f"{where}[{i}]")


class Slurm(_Model):
    """The Slurm job that a run belonged to."""

    job: str = Field(max_length=40)
    nodes: int = Field(ge=1)


class Environment(_Model):
    """Where a run was taken. Null means: not known here; nothing is guessed.

    Attributes:
        device: name as the driver or the processor reports it.
        kind: "cpu", "cuda" or "rocm".
        count: devices used.
        memory: memory of the device that this process may use, B.
        threads: threads that torch uses on the CPU.
        cores: CPU cores that this process may use (affinity and control group, not the machine's total).
        multiprocessors: streaming multiprocessors (NVIDIA) or compute units (AMD).
        caches: data caches, B, by name: "L1d", "L2", "L3"; on a CPU summed over the instances that its cores reach.
        compute_capability: "9.0" on an NVIDIA GPU; on a CPU the instruction set torch uses, "AVX512".
        clocks: Hz by name: "sm_max", "memory_max" on a GPU; "cpu" on a CPU.
        power_limit: W.
        load: 1-minute load average when the run began, of the whole machine.
        platform: operating system and architecture.
        virtual: the processor says that it runs under a hypervisor.
        commit, dirty: of efflab's own checkout.
        ranks: processes that measured together; null for one process alone.
        backend: of their collectives, "nccl" or "gloo".
        interconnect: between the devices, as the driver reports it, such as "NV18" or "PIX".
    """

    device: str = Field(min_length=1, max_length=200)
    kind: Literal["cpu", "cuda", "rocm"]
    count: int = Field(ge=1)
    memory: int | None = Field(default=None, ge=1)
    threads: int = Field(ge=1)
    cores: int | None = Field(default=None, ge=1)
    multiprocessors: int | None = Field(default=None, ge=1)
    caches: dict[str, int] = {}
    compute_capability: str | None = None
    driver: str | None = None
    cuda: str | None = None
    torch: str
    python: str
    clocks: dict[str, float] | None = None
    power_limit: float | None = Field(default=None, gt=0)
    load: float | None = Field(default=None, ge=0)
    platform: str | None = None
    virtual: bool | None = None
    slurm: Slurm | None = None
    efflab: str
    commit: str | None = Field(default=None, pattern=r"^[0-9a-f]{7,64}$")
    dirty: bool | None = None
    ranks: int | None = Field(default=None, ge=1)
    backend: str | None = Field(default=None, min_length=1, max_length=40)
    interconnect: str | None = Field(default=None, min_length=1, max_length=200)

    @model_validator(mode="after")
    def _positive(self) -> Environment:
        for name, size in self.caches.items():
            if size <= 0:
                raise ValueError(f"caches.{name} must be greater than zero, got {size}")
        for name, clock in (self.clocks or {}).items():
            if clock <= 0:
                raise ValueError(f"clocks.{name} must be greater than zero, got {clock}")
        return self


class Window(_Model):
    """What a counter gained while a sample was timed. Divided by `calls` it is the energy of one.

    Attributes:
        joules: of all devices.
        seconds: from one reading of the counter to the other.
        calls: that were made in between.
        windows: stretches of time that were added. A counter changes every so often (`Energy.period_s`), so that each
            is known to one such period: the joules are right within windows · period / seconds.
    """

    joules: float = Field(gt=0)
    seconds: float = Field(gt=0)
    calls: int = Field(ge=1)
    windows: int = Field(default=1, ge=1)


class Timing(_Model):
    """How a sample was timed.

    Attributes:
        clock: "perf_counter" (CPU) or "cuda-events" (GPU), or "perf_counter+synchronize" for a waited call.
        mode: "back-to-back" (calls follow each other; the mean of `loops` calls is one value) or "waited"
            (each call is waited for before the next is made).
        loops: calls inside one value.
        warmup: calls made before the first value.
        inputs: distinct sets of inputs that the calls cycle through.
        cold: the inputs together exceed the last-level cache, so that no call finds its own in it.
        stop: why repeating ended: "stable" (the criterion was met), "time limit" or "repeat limit".
        energy: of the timed calls; None where no counter was read.
    """

    clock: str
    mode: Literal["back-to-back", "waited"]
    loops: int = Field(ge=1)
    warmup: int = Field(ge=0)
    inputs: int = Field(default=1, ge=1)
    cold: bool = False
    stop: Literal["stable", "time limit", "repeat limit"] = "stable"
    energy: Window | None = None


class Sample(_Model):
    """Raw repeats of one metric at one point.

    Attributes:
        point: what was measured: the case's name and its arguments.
        metric: "time" (of one call), "operator_time", "profiled_time", ...
        unit: symbol of an efflab unit; "s" for times.
        values: raw repeats in that unit, in the order taken. Empty unless the status is "ok".
        status: "ok", "oom" (out of memory: a result) or "failed" (`message` says why).
    """

    point: dict[str, Scalar]
    metric: str = Field(min_length=1, max_length=60)
    unit: str
    values: list[float]
    status: Literal["ok", "oom", "failed"]
    message: str = ""
    timing: Timing | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Sample:
        if self.unit not in UNITS:
            raise ValueError(f"unit {self.unit!r} is not known; known: {', '.join(map(repr, UNITS))}")
        if self.status == "ok" and not self.values:
            raise ValueError("values is empty although the status is 'ok'")
        if self.status != "ok" and self.values:
            raise ValueError(f"values must be empty where the status is {self.status!r}")
        if self.status != "ok" and not self.message:
            raise ValueError(f"message must say why the status is {self.status!r}")
        for i, value in enumerate(self.values):
            if self.metric == "time" and value <= 0:
                raise ValueError(f"values[{i}] must be greater than zero, got {value!r}")
            if self.unit in NEVER_NEGATIVE and value < 0:
                raise ValueError(f"values[{i}] must not be negative in {self.unit}, got {value!r}")
        return self


class Energy(_Model):
    """Energy of the whole run, from its first case to its last, setting up and waiting included.

    What a case took that was killed before it was measured is not in a continued run's (`windows` above 1).

    Measured (`joules`), modelled (`band`) or absent, and never two of them.

    Attributes:
        source: "nvml-counter" and "rapl" are measured.
        joules: of all devices, summed over the sessions of a run that was continued.
        band: [low, high] in J, from the rated power, where nothing was measured.
        window_s: how long the devices were counted.
        windows: stretches of time that were added: one for each session of a run that was continued.
        period_s: how often the counter changes.
        rating: [low, high] in W: the rated power of the devices used, of which `band` is a share over `window_s`.
        of: what was counted, or what is rated so, in words.
        why: nothing was measured.
        shared: why others may be in the count.
    """

    source: Literal["nvml-counter", "rapl", "modelled", "none"] = "none"
    joules: float | None = Field(default=None, gt=0)
    band: list[float] | None = Field(default=None, min_length=2, max_length=2)
    window_s: float | None = Field(default=None, gt=0)
    windows: int = Field(default=1, ge=1)
    period_s: float | None = Field(default=None, gt=0)
    rating: list[float] | None = Field(default=None, min_length=2, max_length=2)
    of: str = Field(default="", max_length=500)
    why: str = Field(default="", max_length=500)
    shared: str = Field(default="", max_length=500)

    @property
    def measured(self) -> bool:
        """A counter was read."""
        return self.joules is not None

    @model_validator(mode="after")
    def _consistent(self) -> Energy:
        wanted = {"modelled": "band", "none": None}.get(self.source, "joules")
        for name in ("joules", "band"):
            if (getattr(self, name) is not None) != (name == wanted):
                raise ValueError(
                    f"{name} must {'be' if name == wanted else 'not be'} given where the source is {self.source!r}"
                )
        if wanted and self.window_s is None:
            raise ValueError(f"window_s must be given where the source is {self.source!r}")
        for name in ("band", "rating"):
            if (pair := getattr(self, name)) is not None and not 0 < pair[0] <= pair[1]:
                raise ValueError(f"{name} must be two numbers above zero, the smaller one first, got {pair!r}")
        return self


class Record(_Model):
    """One run of one experiment: raw values only.

    `finished` is null while points are missing (the run was interrupted, or still goes on). `predictions` are the
    ids of those that were committed for this run before it was measured.
    """

    schema_: Literal["efflab-record/1"] = Field(default=RECORD_SCHEMA, alias="schema")
    id: Name
    topic: Topic
    created: str
    finished: str | None = None
    environment: Environment
    spec: dict[str, Any]
    samples: list[Sample]
    energy: Energy = Energy()
    warnings: list[str] = []
    predictions: list[Name] = []

    @model_validator(mode="after")
    def _consistent(self) -> Record:
        for name in ("created", "finished"):
            if (value := getattr(self, name)) is not None:
                try:
                    _utc(value)
                except ValueError as error:
                    raise ValueError(f"{name} {value!r} is not a date: {error}") from None
        _sound(self.spec, "spec")
        if not isinstance(self.spec.get("scale"), str):
            raise ValueError("spec.scale is missing or not a text")
        seen: set[tuple[Any, ...]] = set()
        for sample in self.samples:
            key = (*sorted(sample.point.items(), key=lambda item: item[0]), sample.metric)
            if key in seen:
                raise ValueError(f"two samples of {sample.metric} at the point {sample.point}")
            seen.add(key)
        return self

    @property
    def scale(self) -> str:
        """The scale it was run at: "smoke", "cpu", "gpu" or "multi"."""
        return self.spec["scale"]

    def find(self, metric: str = "time", **point: Scalar) -> list[Sample]:
        """The samples of a metric whose point has all of the given entries."""
        return [
            s for s in self.samples if s.metric == metric and all(s.point.get(k, None) == v for k, v in point.items())
        ]


class Quantity(_Model):
    """A number in base units with the symbol of its unit."""

    value: float
    unit: str

    @model_validator(mode="after")
    def _known(self) -> Quantity:
        if self.unit not in UNITS:
            raise ValueError(f"unit {self.unit!r} is not known; known: {', '.join(map(repr, UNITS))}")
        return self


class Prediction(_Model):
    """What someone committed to, before or beside a measurement. Numbers in base units."""

    schema_: Literal["efflab-prediction/1"] = Field(default=PREDICTION_SCHEMA, alias="schema")
    id: Name
    topic: Topic
    created: str
    source: Literal["calculator", "lab", "site"]
    calculator: str | None = None
    inputs: dict[str, Scalar]
    outputs: dict[str, Quantity]
    note: str = Field(default="", max_length=10_000)

    @model_validator(mode="after")
    def _consistent(self) -> Prediction:
        try:
            _utc(self.created)
        except ValueError as error:
            raise ValueError(f"created {self.created!r} is not a date: {error}") from None
        return self

    @classmethod
    def new(
        cls,
        topic: str,
        outputs: dict[str, tuple[float, str]],
        *,
        inputs: dict[str, Scalar] | None = None,
        source: Literal["calculator", "lab", "site"] = "lab",
        calculator: str | None = None,
        note: str = "",
    ) -> Prediction:
        """A prediction made now. `outputs` gives each name its (value, unit symbol).

        Raises:
            EfflabError: a value that is not a finite number, or an unknown unit.
        """
        data = {
            "schema": PREDICTION_SCHEMA,
            "id": identifier(topic, calculator or source),
            "topic": topic,
            "created": now(),
            "source": source,
            "calculator": calculator,
            "inputs": inputs or {},
            "outputs": {name: {"value": value, "unit": unit} for name, (value, unit) in outputs.items()},
            "note": note,
        }
        return _validated(Prediction, data, "prediction")


Document = TypeVar("Document", Record, Prediction)
_MODELS: dict[str, type[Record] | type[Prediction]] = {"efflab-record": Record, "efflab-prediction": Prediction}


# Reading


def load(path: str | os.PathLike[str]) -> Record | Prediction:
    """Read a record or a prediction file.

    Raises:
        EfflabError: missing, empty, truncated, damaged, of another kind or of a newer schema.
    """
    data, kind = _read(Path(path))
    if kind not in _MODELS:
        raise EfflabError(f"{path}: {kind!r} is neither a record nor a prediction. Its schema names its kind.")
    return _validated(_MODELS[kind], data, str(path))


def load_record(path: str | os.PathLike[str]) -> Record:
    """Read a record file. Raises `EfflabError` as `load` does, and for a file of another kind."""
    document = load(path)
    if not isinstance(document, Record):
        raise EfflabError(f"{path}: this is a prediction; a record is needed. Records have schema {RECORD_SCHEMA!r}.")
    return document


def load_prediction(path: str | os.PathLike[str]) -> Prediction:
    """Read a prediction file. Raises `EfflabError` as `load` does, and for a file of another kind."""
    document = load(path)
    if not isinstance(document, Prediction):
        raise EfflabError(f"{path}: this is a record; a prediction is needed. Its schema is {PREDICTION_SCHEMA!r}.")
    return document


def check(path: str | os.PathLike[str]) -> str:
    """Validate a record, a prediction or a progress file and return one sentence that says what it holds.

    A progress file is checked for its schema and its shape as JSON; its owner checks its answers.

    Raises:
        EfflabError: as `load` does.
    """
    data, kind = _read(Path(path))
    if kind == "efflab-progress":
        return f"{path}: a progress file, schema {data['schema']}."
    document = load(path)
    if isinstance(document, Prediction):
        return f"{path}: a prediction for {document.topic} of {document.created}, {len(document.outputs)} outputs."
    states = {s: sum(x.status == s for x in document.samples) for s in ("ok", "oom", "failed")}
    counts = ", ".join(f"{n} {s}" for s, n in states.items() if n or s == "ok")
    end = "" if document.finished else " It is partial: the run did not finish."
    return (
        f"{path}: a record of {document.topic} at {document.scale} scale on {document.environment.device}, "
        f"{document.created}, {len(document.samples)} samples ({counts}).{end}"
    )


def _read(path: Path) -> tuple[dict[str, Any], str]:
    """The JSON object of a file and the kind that its schema names, of a version that this efflab knows."""
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise EfflabError(f"{path}: larger than {LARGEST_FILE // 2**20} MiB, so it is no efflab file.")
        raw = path.read_bytes()
    except FileNotFoundError:
        raise EfflabError(f"{path}: no such file. Check the path.") from None
    except OSError as error:
        raise EfflabError(f"{path}: cannot be read: {error.strerror}. Check the path and its permissions.") from None
    return parse_json(raw, str(path))


def parse_json(raw: bytes | str, name: str) -> tuple[dict[str, Any], str]:
    """Read the bytes of an efflab file: its JSON object and the kind its schema names ("efflab-record").

    Raises:
        EfflabError: empty, truncated, not JSON, no object, duplicate keys, NaN or a number too large to be finite, a
            text that UTF-8 cannot hold, or a schema that is missing or newer.
    """
    try:
        text = raw.decode("utf-8-sig") if isinstance(raw, bytes) else raw
    except UnicodeDecodeError:
        raise EfflabError(f"{name}: not a text in UTF-8, so it is no efflab file.") from None
    if not text.strip():
        raise EfflabError(f"{name}: the file is empty. Delete it, or fetch it again from where it came.")

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = [k for k, _ in items]
        twice = next((k for k in keys if keys.count(k) > 1), None) if len(set(keys)) < len(keys) else None
        if twice is not None:
            raise EfflabError(f"{name}: the field {twice!r} appears twice in one object. Remove one.")
        return dict(items)

    def constant(word: str) -> Any:
        raise EfflabError(f"{name}: {word} is not a number that JSON allows. Measured values are finite.")

    def number(word: str) -> float:
        if not math.isfinite(float(word)):
            raise EfflabError(f"{name}: {word[:40]} is too large for a number. Measured values are finite.")
        return float(word)

    try:
        data = json.loads(text, object_pairs_hook=pairs, parse_constant=constant, parse_float=number)
        _sound(data, "the document")
    except json.JSONDecodeError as error:
        if error.pos >= len(text.rstrip()) - 1 or "Unterminated" in error.msg:
            raise EfflabError(f"{name}: the file is cut off at line {error.lineno}. Fetch it again.") from None
        raise EfflabError(
            f"{name}: not JSON at line {error.lineno}, column {error.colno}: {error.msg}. "
            "It was edited by hand or cut off; fetch it again."
        ) from None
    except (RecursionError, ValueError) as error:
        if isinstance(error, EfflabError):
            raise
        if "lone surrogate" in str(error):
            raise EfflabError(f"{name}: {error}. Fetch the file again.") from None
        raise EfflabError(f"{name}: not an efflab file: {type(error).__name__} while reading its JSON.") from None
    if not isinstance(data, dict):
        raise EfflabError(f"{name}: a JSON object is expected, got {type(data).__name__}. It is no efflab file.")
    schema = data.get("schema")
    if schema is None:
        raise EfflabError(f"{name}: the field 'schema' is missing, so it is no efflab file.")
    known = {"efflab-record": 1, "efflab-prediction": 1, "efflab-progress": 1}
    match = re.fullmatch(r"([a-z-]+)/(\d{1,9})", schema) if isinstance(schema, str) else None
    if not match or match[1] not in known:
        raise EfflabError(
            f"{name}: schema {schema!r} is not known. Known: {', '.join(f'{k}/{v}' for k, v in known.items())}."
        )
    if int(match[2]) > known[match[1]]:
        raise EfflabError(
            f"{name}: schema {schema!r} is newer than this efflab reads ({match[1]}/{known[match[1]]}). "
            "Update efflab: run 'git pull' in its checkout, or 'pip install --upgrade efflab'."
        )
    if int(match[2]) < 1:
        raise EfflabError(f"{name}: schema {schema!r} does not exist. The first one is {match[1]}/1.")
    return data, match[1]


def _validated(model: type[Document], data: dict[str, Any], name: str) -> Document:
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise EfflabError(f"{name}: {explain(error)}") from None


def explain(error: ValidationError) -> str:
    """Say in one or more sentences which fields of a document are wrong, what was found and what is expected."""
    problems: dict[str, str] = {}
    for item in error.errors(include_url=False):
        where = ""
        for part in item["loc"]:
            if isinstance(part, int):
                where += f"[{part}]"
            elif part not in ("bool", "int", "float", "str"):  # members of a union, not fields
                where += ("." if where else "") + str(part)
        said = item["msg"].removeprefix("Value error, ")
        said = {"missing": "the field is missing", "extra_forbidden": "this efflab knows no such field"}.get(
            item["type"], said
        )
        shown = "" if item["type"] in ("missing", "value_error") else f", got {_short(item.get('input'))}"
        if where in problems:  # the other members of a union
            said, shown = "a number, a text, true or false is expected", f", got {_short(item.get('input'))}"
        problems[where] = f"{where or 'the document'}: {said[0].lower()}{said[1:]}{shown}"
    rest = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
    said = "; ".join([*problems.values()][:3]) + rest
    if all(item["type"] == "extra_forbidden" for item in error.errors(include_url=False)):
        return f"{said}. A newer efflab may have written it: update efflab."
    return f"{said}. The file does not follow its schema: fetch it again or measure once more."


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


# Writing


class NotSaved(EfflabError):
    """A file could not be written where it was wanted. `kept` is where its content is instead, or None."""

    def __init__(self, message: str, kept: Path | None, text: str) -> None:
        super().__init__(message)
        self.kept = kept
        self.text = text


def dumps(document: Record | Prediction) -> str:
    """The document as JSON, one sample per line so that a difference between two records can be read."""
    data = document.model_dump(mode="json", by_alias=True)
    lines = []
    for key, value in data.items():
        if key == "samples" and value:
            rows = ",\n".join("  " + json.dumps(v, ensure_ascii=False, allow_nan=False) for v in value)
            lines.append(f' "samples": [\n{rows}\n ]')
        else:
            lines.append(f" {json.dumps(key)}: {json.dumps(value, ensure_ascii=False, allow_nan=False)}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def write(path: str | os.PathLike[str], text: str | bytes, *, replace: bool = False) -> Path:
    """Write a file whole or not at all; never overwrite one unless `replace`.

    The text (or bytes) goes to a temporary file in the same folder, reaches the disk, and then takes its name.

    Raises:
        EfflabError: the file exists.
        NotSaved: the folder or the disk refuses; the text is then kept in the temporary folder where possible.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _write(path, text if isinstance(text, bytes) else text.encode(), replace)
    except FileExistsError as error:
        if not path.exists():  # a parent exists as a file
            raise _not_saved(path, text, error) from None
        raise EfflabError(f"{path}: the file exists and is not overwritten. Choose another name.") from None
    except OSError as error:
        raise _not_saved(path, text, error) from None
    return path


def _write(path: Path, data: bytes, replace: bool) -> None:
    temporary = path.with_name(f".{path.name[:100]}.{secrets.token_hex(4)}.tmp")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(descriptor, view) :]
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        if replace:
            os.replace(temporary, path)
        else:
            try:
                os.link(temporary, path)  # fails where the name is taken, unlike a rename
            except FileExistsError:
                raise
            except OSError:  # a file system without hard links: reserve the name, then move onto it
                os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
                os.replace(temporary, path)
        with contextlib.suppress(OSError):  # some file systems refuse to sync a folder
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
    finally:
        with contextlib.suppress(OSError):
            os.unlink(temporary)


def _not_saved(path: Path, text: str | bytes, error: OSError) -> NotSaved:
    mend = {
        errno.ENOSPC: "The disk is full: free some space.",
        errno.EDQUOT: "Your disk quota is used up: free some space.",
        errno.EROFS: "The folder is read-only: choose another with --out or EFFLAB_LABBOOK.",
        errno.EACCES: "You may not write there: choose another folder with --out or EFFLAB_LABBOOK.",
        errno.EPERM: "You may not write there: choose another folder with --out or EFFLAB_LABBOOK.",
        errno.ENOTDIR: "A part of the path is a file: choose another folder with --out or EFFLAB_LABBOOK.",
        errno.EEXIST: "A part of the path is a file: choose another folder with --out or EFFLAB_LABBOOK.",
    }.get(error.errno or 0, "Choose another folder with --out or EFFLAB_LABBOOK.")
    kept: Path | None = None
    with contextlib.suppress(OSError):
        folder = Path(tempfile.mkdtemp(prefix="efflab-kept-"))
        _write(folder / path.name, text if isinstance(text, bytes) else text.encode(), replace=False)
        kept = folder / path.name
    where = f"The content is kept in {kept}." if kept else "The temporary folder could not keep the content either."
    said = f"{path}: cannot be written: {error.strerror or error}. {mend} {where}"
    return NotSaved(said, kept, "" if isinstance(text, bytes) else text)


def save(document: Record | Prediction, folder: str | os.PathLike[str]) -> Path:
    """Write a document into a folder under its id, never over another file.

    Raises:
        EfflabError, NotSaved: as `write`.
    """
    path = Path(folder) / f"{document.id}.json"
    return write(path, dumps(document))


# The lab book


def _course() -> Path:
    """The course's folder where the current one is inside of it: one lab book for labs, exercises and terminal."""
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / "labs" / "source").is_dir() and (folder / "notebooks" / "source").is_dir():
            return folder if folder != here else Path()
    return Path()


class LabBook:
    """A learner's own predictions, records and progress: one folder.

    Args:
        path: the folder; None means $EFFLAB_LABBOOK, else "labbook" in the course's folder where the current one is
            inside of it, else ./labbook. It is made when something is saved.
    """

    def __init__(self, path: str | os.PathLike[str] | None = None) -> None:
        chosen = path if path is not None else os.environ.get("EFFLAB_LABBOOK") or _course() / "labbook"
        self.path = Path(chosen).expanduser()
        if self.path.exists() and not self.path.is_dir():
            raise EfflabError(f"lab book {self.path}: this is a file, not a folder. Set EFFLAB_LABBOOK to a folder.")

    def __repr__(self) -> str:
        return f"LabBook({str(self.path)!r})"

    @property
    def progress_path(self) -> Path:
        """Where the exercises keep the learner's progress."""
        return self.path / "progress.json"

    def save_prediction(self, prediction: Prediction) -> Path:
        """Keep a prediction. Raises `EfflabError` if one with its id is there, `NotSaved` if it cannot be written."""
        return save(prediction, self.path / "predictions")

    def save_record(self, record: Record) -> Path:
        """Keep a record. Raises `EfflabError` if one with its id is there, `NotSaved` if it cannot be written."""
        return save(record, self.path / "records")

    def predictions(self, topic: str | None = None) -> list[Prediction]:
        """The predictions, oldest first. Raises `EfflabError` for a damaged file, which it names."""
        found = [load_prediction(p) for p in self._files("predictions")]
        return sorted((p for p in found if topic in (None, p.topic)), key=lambda p: (p.created, p.id))

    def records(self, topic: str | None = None) -> list[Record]:
        """The records, oldest first. Raises `EfflabError` for a damaged file, which it names."""
        found = [load_record(p) for p in self._files("records")]
        return sorted((r for r in found if topic in (None, r.topic)), key=lambda r: (r.created, r.id))

    def readable(self) -> tuple[list[Prediction], list[Record], list[str]]:
        """Everything that can be read, and one sentence for each file that cannot."""
        predictions, records, problems = [], [], []
        for kind, reader, kept in (("predictions", load_prediction, predictions), ("records", load_record, records)):
            for path in self._files(kind):
                try:
                    kept.append(reader(path))  # type: ignore[attr-defined]
                except EfflabError as error:
                    problems.append(str(error))
        predictions.sort(key=lambda p: (p.created, p.id))
        records.sort(key=lambda r: (r.created, r.id))
        return predictions, records, problems

    def add(self, path: str | os.PathLike[str]) -> Path:
        """Take in a prediction or record that was downloaded or measured elsewhere, after validating it.

        Adding the same content again changes nothing.

        Raises:
            EfflabError: damaged, of a newer schema, or another file has its id.
        """
        document = load(path)
        folder = self.path / ("records" if isinstance(document, Record) else "predictions")
        target = folder / f"{document.id}.json"
        if target.exists():
            if load(target) == document:
                return target
            raise EfflabError(f"{path}: the lab book already has another file with the id {document.id!r}.")
        return self.save_record(document) if isinstance(document, Record) else self.save_prediction(document)

    def _files(self, kind: str) -> Iterator[Path]:
        folder = self.path / kind
        try:
            names = sorted(p for p in folder.iterdir() if p.suffix == ".json" and not p.name.startswith("."))
        except FileNotFoundError:
            return
        except OSError as error:
            raise EfflabError(f"lab book {folder}: cannot be read: {error.strerror}. Check its permissions.") from None
        yield from (p for p in names if not p.name.endswith(".partial.json"))


def recorded(topic: str) -> list[Record]:
    """The recorded runs of a topic that come with the course (labs/results/<topic>/*.json), newest last.

    Empty where the topic has none, or where efflab is installed without its checkout.

    Raises:
        EfflabError: the name cannot be a topic, or a file is damaged.
    """
    if not re.fullmatch(r"[a-z][a-z_]*", topic):
        raise EfflabError(f"topic {topic!r}: a topic is one word in small letters, such as 'roofline'.")
    files = sorted((RESULTS / topic).glob("*.json"))
    return sorted((load_record(p) for p in files), key=lambda r: (r.created, r.id))


def median(values: list[float]) -> float:
    """The median of raw repeats.

    Raises:
        EfflabError: no values.
    """
    return quantile(values, 0.5)


def quantile(values: list[float], q: float) -> float:
    """The quantile of raw repeats, linear between order statistics (Hyndman & Fan 1996, type 7).

    Raises:
        EfflabError: no values, or q outside 0 to 1.
    """
    if not values:
        raise EfflabError("quantile: there are no values. The sample's status says why.")
    if not 0 <= q <= 1:
        raise EfflabError(f"quantile: q must lie between 0 and 1, got {q!r}.")
    ordered = sorted(values)
    position = q * (len(ordered) - 1)
    low = math.floor(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)


def iqr(values: list[float]) -> float:
    """The interquartile range of raw repeats. Raises `EfflabError` without values."""
    return quantile(values, 0.75) - quantile(values, 0.25)
