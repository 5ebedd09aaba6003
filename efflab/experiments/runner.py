"""Run an experiment: time every case, keep what was measured whatever happens.

After every case the whole record so far replaces a partial file, in one step and outside any timed region, so
that a killed run loses at most the case it was in. Running the same experiment again on the same device with
the same software continues there. Out of memory is a result; another failure of a case is one too. The
finished record gets its own name and overwrites nothing.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import hashlib
import json
import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from efflab.catalog import energy as ratings
from efflab.catalog import match_device
from efflab.errors import EfflabError
from efflab.measure import device as devices
from efflab.measure import energy as meters
from efflab.measure.memory import out_of_memory
from efflab.records import (
    Energy,
    Environment,
    LabBook,
    NotSaved,
    Record,
    Sample,
    Scalar,
    dumps,
    identifier,
    load_record,
    median,
    now,
    plain,
    save,
    slug,
    write,
)  # fmt: skip
from efflab.units import UNITS, show

KEPT = "keep"  # a file in a workspace that is not removed


@dataclass(frozen=True)
class Case:
    """One point of a sweep.

    Attributes:
        point: what is measured; its "case" is unique within the experiment.
        samples: yields the case's samples when called; the first of metric `metric` is the case's result.
    """

    point: dict[str, Scalar]
    samples: Callable[[], Iterator[Sample]]
    metric: str = "time"
    unit: str = "s"

    @property
    def name(self) -> str:
        """The case's name."""
        return str(self.point["case"])


@dataclass
class Plan:
    """What will be measured: a JSON-able description, and the cases in order.

    Attributes:
        environment: what the record's environment says differently, such as the number of ranks.
        devices: torch devices of this node that the run uses, all of whose energy counts; empty means the one it was
            given.
        nodes: that have as many devices and cores as this one.
        energy: what the run took so far in this session on all of them, or why that is not known; None means what the
            counters of `devices` say, which are this node's.
        close: called when the run ends, however it ends.
    """

    spec: dict[str, Any]
    cases: list[Case]
    warnings: list[str] = field(default_factory=list)
    environment: dict[str, Any] = field(default_factory=dict)
    devices: list[Any] = field(default_factory=list)
    nodes: int = 1
    energy: Callable[[], Energy] | None = None
    close: Callable[[], None] = lambda: None


class Experiment(Protocol):
    """What an experiment module's EXPERIMENT offers."""

    topic: str
    scales: tuple[str, ...]

    def plan(self, scale: str, device: Any, environment: Environment, resumed: Record | None) -> Plan: ...


class Interrupted(EfflabError):
    """The run was stopped by hand or by the scheduler; what was measured is kept."""


class RunFailed(EfflabError):
    """No further case can be measured now. It ends the run; what was measured is kept, and the rest stays open."""


class Unavailable(EfflabError):
    """A case cannot be measured on this device; the message says why. It becomes a failed sample."""


def default_scale(device: Any) -> str:
    """The scale that suits a device: "gpu" on a GPU, else "cpu"."""
    return "gpu" if device.type == "cuda" else "cpu"


def run(
    experiment: Experiment,
    *,
    scale: str | None = None,
    device: str | None = None,
    out: str | os.PathLike[str] | None = None,
    restart: bool = False,
    predictions: Iterable[str] = (),
    report: Callable[[str], None] | None = None,
) -> tuple[Record, Path]:
    """Measure an experiment and save its record.

    Args:
        experiment: a topic's EXPERIMENT.
        scale: "smoke", "cpu", "gpu" or "multi"; None takes the device's own.
        device: "cpu", "cuda" or "cuda:N"; None takes a GPU if there is one.
        out: folder of the record; None means the lab book's records.
        restart: set an earlier partial run aside instead of continuing it.
        predictions: ids of the predictions that were committed for this run; the record keeps them.
        report: receives lines about the progress; None draws a bar on a terminal and prints lines elsewhere.

    Returns:
        The record and its file.

    torch's number of threads is put back at the end. What a topic changes in the process and cannot put back says so
    where it stands, as glibc's allocator settings do in `efflab.measure.memory.keep_pages`.

    Raises:
        Interrupted: stopped with Ctrl-C or SIGINT; the partial file continues when run again.
        NotSaved: the record could not be written where it was wanted; says where it is kept.
        EfflabError: a scale or device that does not fit, another run of the same, a lost GPU, or processes that do not
            answer.
    """
    chosen = devices.choose(device)
    scale = scale or default_scale(chosen)
    check_scale(experiment, scale, chosen)
    # More threads than granted cores would wait for each other.
    with devices.threads(min(devices.import_torch().get_num_threads(), devices.cores())):
        return _run(experiment, scale, chosen, out, restart, list(predictions), report)


def _run(
    experiment: Experiment,
    scale: str,
    chosen: Any,
    out: str | os.PathLike[str] | None,
    restart: bool,
    predictions: list[str],
    report: Callable[[str], None] | None,
) -> tuple[Record, Path]:
    environment = devices.environment(chosen)
    folder = Path(out) if out is not None else LabBook().path / "records"
    _writable(folder)
    fresh = experiment.plan(scale, chosen, environment, None)
    partial = folder / f"{experiment.topic}-{scale}-{_key(fresh, environment)}.partial.json"

    with _lock(partial), _workspace(partial) as place:
        resumed = _resume(partial, experiment.topic, restart)
        if resumed is None:
            place.clear()  # of a run that is finished, or whose partial file somebody removed
        plan = experiment.plan(scale, chosen, environment, resumed)
        record = resumed or Record(
            id=identifier(experiment.topic, slug(environment.device)[:60], scale),
            topic=experiment.topic,
            created=now(),
            environment=Environment.model_validate({**environment.model_dump(), **plan.environment}),
            spec=plan.spec,
            samples=[],
            warnings=list(plan.warnings),
        )
        if resumed:
            record.warnings.append(f"resumed at {now()} after {_done(resumed, plan)} of {len(plan.cases)} cases")
        # With the workspace comes a partial file, so that the next run knows whose it is.
        place.begin = lambda: _keep(record, partial)
        record.predictions = [*dict.fromkeys([*record.predictions, *predictions])]
        say = _Progress(len(plan.cases), experiment.topic, report)
        say.warn(f"{experiment.topic}: {scale} scale on {environment.device} ({chosen}), cases: {len(plan.cases)}")
        for unexpected in _unexpected(environment, chosen):
            say.warn(f"warning: {unexpected}")
        ends = contextlib.ExitStack()
        ends.callback(plan.close)  # once
        try:
            account = Account(plan.devices or [chosen], record, plan.nodes, plan.energy)
            with account.meter, meters.metering(account.meter):
                try:
                    _measure(record, plan, partial, chosen, say, account)
                except KeyboardInterrupt:
                    ends.close()  # what the plan started hands over its last reading
                    record.energy = account.so_far()  # the case that was stopped is measured again, and took this too
                    raise
        except KeyboardInterrupt:
            stopped = f"{experiment.topic}: stopped after {_done(record, plan)} of {len(plan.cases)} cases."
            if not record.samples and not place.path.exists():
                raise Interrupted(f"{stopped} Nothing was measured yet.") from None
            try:
                write(partial, dumps(record), replace=True)
            except NotSaved as error:
                raise Interrupted(f"{stopped} {error}") from None
            raise Interrupted(
                f"{stopped} They are kept in {partial}. Run the same command again to continue."
            ) from None
        finally:
            try:
                ends.close()
            finally:
                say.close()
        record.finished = now()
        path = _finish(record, folder)
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        if place.kept:
            say.warn(f"warning: what failed processes left behind is in {place.rename(record.id)}")
        else:
            place.clear()
        return record, path


class Account:
    """The energy of a run: of its earlier sessions and of this one, so far.

    Args:
        of: the torch devices that count.
        record: it and its earlier sessions' energy.
        nodes, energy: as `Plan` has them.
    """

    def __init__(
        self, of: Sequence[Any], record: Record, nodes: int = 1, energy: Callable[[], Energy] | None = None
    ) -> None:
        self.meter = meters.Meter(of)
        # A session that was stopped in its first case has energy and no samples.
        self._before = record.energy if record.samples or record.energy != Energy() else None
        ran = record.environment
        threads = record.spec.get("threads") or ran.threads
        self._rating = rating(of, ran, nodes, threads * math.ceil((ran.ranks or 1) / nodes))
        self._energy = energy
        self._began = self.meter.begin()

    def so_far(self) -> Energy:
        """Read the counters. To be called so often that none goes round twice in between."""
        reading = self.meter.since(self._began)
        if self._energy is not None:
            now = self._energy()
        elif reading.total is not None:
            now = Energy(
                source=self.meter.source, joules=reading.total, window_s=reading.seconds, period_s=self.meter.period,
                of=self.meter.of, shared=self.meter.shared,
            )  # fmt: skip
        else:
            now = Energy(why=reading.why)
        if not now.measured and self._rating is None:
            now = Energy(why=f"{now.why}; and the catalog has no rated power of this device")
        elif not now.measured and self._rating is not None:
            low, high, of = self._rating
            band = [reading.seconds * share * watts for share, watts in zip(ratings.LOADS, (low, high), strict=True)]
            now = Energy(
                source="modelled", band=band, rating=[low, high], of=of, why=now.why, window_s=reading.seconds
            )  # fmt: skip
        return now if self._before is None else _sum(self._before, now)


def _sum(before: Energy, now: Energy) -> Energy:
    """The energy of an earlier session and of this one. It is measured where both are, and absent where one is."""
    if "none" in (before.source, now.source):
        return Energy(why=before.why or now.why or "it was not read in an earlier session of this run")
    joined = {
        "window_s": (before.window_s or 0.0) + (now.window_s or 0.0),
        "windows": before.windows + now.windows,
        "shared": before.shared or now.shared,
    }
    if before.joules is not None and now.joules is not None:
        return now.model_copy(update={"joules": before.joules + now.joules, **joined})
    ends = [one.band or [one.joules or 0.0] * 2 for one in (before, now)]
    band = [sum(pair) for pair in zip(*ends, strict=True)]
    if before.joules is not None or now.joules is not None:  # then the band is not of one rating alone
        joined |= {"rating": None, "of": "", "why": f"{before.why or now.why}, in one of the sessions"}
    return (now if now.band else before).model_copy(update={"band": band, **joined})


def rating(
    of: Sequence[Any], environment: Environment, nodes: int = 1, threads: int | None = None
) -> tuple[float, float, str] | None:
    """Rated power of devices together, W, least and most, and of what; None where nobody says.

    A GPU's is its power limit, or the catalog's TDP. A processor's is at least that of the cores that work, and at most
    that of all cores that this process may use.

    Args:
        of: torch devices, all of one kind.
        environment: where they are.
        nodes: that have as many each.
        threads: that work on a CPU of each node; None means all that it may use.
    """
    each = f" on each of {nodes} nodes" * (nodes > 1)
    if of[0].type == "cuda":
        entry = match_device(environment.device, environment.memory or 0)
        watts = environment.power_limit or (entry.tdp if entry else None)
        if watts is None:
            return None
        what = "power limit" if environment.power_limit else "TDP"
        total = nodes * len(of) * watts
        return (
            total, total, f"{what} of {environment.device}, {watts:g} W" + f", {len(of)} of them" * (len(of) > 1) + each
        )  # fmt: skip
    found = ratings.rated_per_core(environment.device, devices.cpuid())
    if found is None:
        return None
    low, high, what = found
    count = max(1, round((environment.cores or 1) / devices.threads_per_core()))
    busy: float = min(count, threads or count)
    if environment.virtual:
        busy /= 2  # what a virtual machine calls a core may be one of two threads of one
    cores = f"{busy:g} to {count} cores" if busy < count else f"{count} core{'s' * (count > 1)}"
    return nodes * busy * low, nodes * count * high, f"{cores}{each} of {what}"


class _Workspace:
    """The folder of the present run. See `workspace`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.begin: Callable[[], Any] = lambda: None  # called before the folder is made

    @property
    def kept(self) -> bool:
        """It stays when the run is finished; also where that was said before the run was interrupted."""
        return (self.path / KEPT).exists()

    def clear(self) -> None:
        """Remove it."""
        shutil.rmtree(self.path, ignore_errors=True)

    def rename(self, name: str) -> Path:
        """Give it the finished record's name, so that no later run takes it for its own."""
        with contextlib.suppress(OSError):
            self.path = self.path.rename(self.path.with_name(f"{name}.workspace"))
        return self.path


_present: _Workspace | None = None


@contextlib.contextmanager
def _workspace(partial: Path) -> Iterator[_Workspace]:
    global _present
    before = _present
    _present = _Workspace(partial.with_name(partial.name.removesuffix(".partial.json") + ".workspace"))
    try:
        yield _present
    finally:
        _present = before


def workspace(*, keep: bool = False) -> Path:
    """The folder in which the present run may keep files: checkpoints, what its processes say.

    It lies beside the partial file, so that the run finds it again when it continues, and is removed when the record
    is finished.

    Args:
        keep: leave it where it is at the end, since it holds something that a message names.

    Raises:
        EfflabError: no run is going on, or the folder cannot be made.
    """
    if _present is None:
        raise EfflabError("workspace: no experiment runs. Only a case may ask for it.")
    if not _present.path.exists():
        _present.begin()
    try:
        _present.path.mkdir(parents=True, exist_ok=True)
        if keep:
            (_present.path / KEPT).touch()
    except OSError as error:
        raise EfflabError(f"{_present.path}: cannot be made: {error.strerror}. Choose another --out.") from None
    return _present.path


def check_scale(experiment: Experiment, scale: str, device: Any) -> None:
    """Raise `EfflabError` for a scale that is not known, that an experiment lacks, or that does not suit a device."""
    name = f"scale {scale!r}"
    if scale not in ("smoke", "cpu", "gpu", "multi"):
        raise EfflabError(f"{name} is not known. Known: smoke, cpu, gpu, multi.")
    if scale not in experiment.scales:
        raise EfflabError(f"{name}: {experiment.topic} has no such scale. It has: {', '.join(experiment.scales)}.")
    if scale == "gpu" and device.type != "cuda":
        raise EfflabError(f"{name} needs a GPU and this run uses the CPU. Use --scale cpu, or --device cuda.")
    if scale == "cpu" and device.type != "cpu":
        raise EfflabError(f"{name} measures a CPU and this run uses a GPU. Add --device cpu, or use --scale gpu.")


def _unexpected(environment: Environment, device: Any) -> list[str]:
    """What a person would want to know before a run begins: a busy machine, a GPU that is not used."""
    found = []
    if device.type == "cpu":
        load, cores = environment.load or 0.0, os.cpu_count() or 1  # the load is the whole machine's
        if load > 0.8 * cores:
            found.append(f"the load is {load:.1f} on {cores} cores. Other programs disturb a measurement: close them.")
        granted = os.environ.get("SLURM_GPUS_ON_NODE") or os.environ.get("CUDA_VISIBLE_DEVICES")
        if granted not in (None, "", "0", "-1", "NoDevFiles"):
            torch = devices.import_torch()
            why = "torch sees none" if not torch.cuda.is_available() else "--device says cpu"
            found.append(f"a GPU was granted and is not used: {why}. See 'efflab doctor'.")
    return found


def _key(plan: Plan, environment: Environment) -> str:
    """Eight characters that differ when a partial run must not be continued: other work, device or software."""
    same = {
        "spec": plan.spec,
        "points": [case.point for case in plan.cases],
        **environment.model_dump(
            include={"device", "kind", "memory", "threads", "torch", "python", "efflab", "commit", "dirty"}
        ),
    }
    return hashlib.sha256(json.dumps(same, sort_keys=True).encode()).hexdigest()[:8]


def _writable(folder: Path) -> None:
    """Refuse a folder that cannot hold the record before anything is measured.

    A disk that is full, now or later, is another matter: then the run goes on and its result is kept elsewhere.
    """
    probe = folder / f".efflab-{os.getpid()}.probe"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return
        raise EfflabError(
            f"{folder}: the record cannot be written here: {error.strerror}. Nothing was measured. "
            "Choose another folder with --out, or set EFFLAB_LABBOOK."
        ) from None


@contextlib.contextmanager
def _lock(partial: Path) -> Iterator[None]:
    """Hold the partial file for this process, where the file system can lock.

    The lock file stays. Removing it would let a third process lock a new file of the same name while a second one
    holds the old.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    path = partial.with_name(f".{partial.name}.lock")
    descriptor = None
    with contextlib.suppress(OSError):  # a folder that cannot be written is reported when something is saved
        partial.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    if descriptor is None:
        yield
        return
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise EfflabError(
                f"{partial}: another process runs this same experiment. Wait for it, or choose another --out."
            ) from None
        except OSError:
            pass  # this file system has no locks
        yield
    finally:
        os.close(descriptor)


def _resume(partial: Path, topic: str, restart: bool) -> Record | None:
    if not partial.exists():
        return None
    try:
        record = load_record(partial)
        if record.topic != topic:
            raise EfflabError(f"{partial}: holds another topic, {record.topic!r}.")
    except EfflabError as error:
        if not restart:
            raise EfflabError(f"{error} It is a partial run that cannot be continued: add --restart.") from None
        record = None
    if not restart:
        return record
    aside = partial.with_name(f"{partial.name.removesuffix('.partial.json')}-{identifier('set-aside')}.json.old")
    try:
        os.replace(partial, aside)
    except OSError as error:
        raise EfflabError(f"{partial}: cannot be set aside: {error.strerror}. Choose another --out.") from None
    return None


def _done(record: Record, plan: Plan) -> int:
    names = {c.name for c in plan.cases}
    return len({s.point.get("case") for s in record.samples if s.point.get("case") in names})


def _measure(record: Record, plan: Plan, partial: Path, device: Any, say: _Progress, account: Account) -> None:
    done = {s.point.get("case") for s in record.samples}
    unwritten = ""
    for case in plan.cases:
        if case.name in done:
            say.line(case.name, "kept from the earlier run")
            continue
        try:
            samples, warnings = _attempt(case, device)
        except RunFailed as error:
            kept = f"What was measured before is kept in {partial}. " if record.samples else ""
            raise EfflabError(
                f"{record.topic}: no case can be measured any more, from {case.name} on: {error}\n{kept}When that is "
                "mended, run the same command again."
            ) from None
        if any(s.status == "failed" for s in samples) and not _answers(device):
            # The case is left out, so that running again measures it.
            lost = next(s.message for s in samples if s.status == "failed")
            raise EfflabError(
                f"{record.topic}: the GPU stopped answering at {case.name}: {lost} What was measured before is kept "
                f"in {partial}. See 'efflab doctor', then run the same command again."
            )
        record.samples.extend(samples)
        record.warnings.extend(w for w in warnings + plan.warnings if w not in record.warnings)
        result = next(s for s in samples if s.metric == case.metric and s.point == case.point)
        if result.status == "ok":
            say.line(case.name, show(median(result.values), UNITS[result.unit]))
        else:
            say.line(case.name, f"{result.status}: {result.message}")
        record.energy = account.so_far()
        why = _keep(record, partial)
        if why and not unwritten:
            unwritten = why
            say.warn(f"{unwritten} The run goes on; its results are held in memory.")


def _keep(record: Record, partial: Path) -> str:
    """Write the partial file. What prevents that, in words; else ""."""
    try:
        write(partial, dumps(record), replace=True)
    except NotSaved as error:
        if error.kept:  # the record is still in memory; a copy per case would fill another disk
            with contextlib.suppress(OSError):
                error.kept.unlink()
                error.kept.parent.rmdir()
        return str(error).partition(" The content")[0].partition(" The temporary")[0]
    return ""


def _attempt(case: Case, device: Any) -> tuple[list[Sample], list[str]]:
    samples: list[Sample] = []
    status, message = "ok", ""
    warnings: list[str] = []
    try:
        for sample in case.samples():
            samples.append(sample)
    except RunFailed:
        raise
    except Exception as error:
        status = "oom" if out_of_memory(error) else "failed"
        message = plain(str(error) if isinstance(error, EfflabError) else f"{type(error).__name__}: {error}")
    measured = any(s.metric == case.metric and s.point == case.point for s in samples)
    if not measured:
        message = message or "the case gave no result"
        samples.append(
            Sample(
                point=case.point, metric=case.metric, unit=case.unit, values=[],
                status="oom" if status == "oom" else "failed", message=message,
            )
        )  # fmt: skip
    elif status != "ok":
        warnings.append(f"{case.name}: measured, but what follows its timing {status}: {message}")
    # A traceback holds a failed case's tensors in cycles. A whole collection takes some 50 ms, so it is left out
    # after a case that went well: its tensors go when the last reference does.
    gc.collect(2 if status != "ok" else 0)
    if device.type == "cuda":
        with contextlib.suppress(Exception):
            devices.import_torch().cuda.empty_cache()
    return samples, warnings


def _answers(device: Any) -> bool:
    if device.type != "cuda":
        return True
    try:
        devices.import_torch().cuda.synchronize(device)
    except Exception:
        return False
    return True


def _finish(record: Record, folder: Path) -> Path:
    path = folder / f"{record.id}.json"
    if path.exists():  # killed between writing the record and removing the partial file
        try:
            if load_record(path).samples == record.samples:
                return path
        except EfflabError:
            pass
        record.id = identifier(record.topic, slug(record.environment.device)[:60], record.scale)
    return save(record, folder)


class _Progress:
    """A bar on a terminal, plain lines elsewhere, on stderr; or lines to a function."""

    def __init__(self, total: int, topic: str, report: Callable[[str], None] | None) -> None:
        self._total, self._count, self._report = total, 0, report
        self._bar = None
        self._begin = time.monotonic()
        if report is None and sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=total, desc=topic, unit="case", leave=True, dynamic_ncols=True)

    def line(self, name: str, text: str) -> None:
        """One case is done."""
        self._count += 1
        if self._bar is not None:
            self._bar.set_postfix_str(f"{name} {text}"[:60], refresh=False)
            self._bar.update(1)
        else:
            self._say(f"[{self._count}/{self._total}] {name}: {text}")

    def warn(self, text: str) -> None:
        """Say something that is no case."""
        if self._bar is not None:
            self._bar.write(text, file=sys.stderr)
        else:
            self._say(text)

    def _say(self, text: str) -> None:
        if self._report is not None:
            self._report(text)
        else:
            print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        """End the bar."""
        if self._bar is not None:
            self._bar.close()
