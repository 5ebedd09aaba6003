"""The command `efflab`, also `python -m efflab.cli`.

Bad input prints one message on stderr and exits with status 2. A run that is stopped exits with status 130 and
says how to continue. Nothing here needs a Jupyter package.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import os
import platform
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from efflab import __version__
from efflab.errors import EfflabError, unknown

NEEDED = {
    "numpy": "numpy",
    "pydantic": "pydantic",
    "yaml": "pyyaml",
    "tqdm": "tqdm",
    "scipy": "scipy",
    "torch": "torch",
}
# What helps where an energy counter cannot be read, by a part of the message that says why. The first that fits counts.
ENERGY_MENDS = {
    "only root may read": "an administrator can allow it until the next boot: "
    "'chmod a+r /sys/class/powercap/intel-rapl:*/energy_uj'. Linux keeps it from users because a program can learn "
    "other programs' secrets from it (CVE-2020-8694), so not on a shared machine. Or measure on a GPU",
    "no energy counter of a processor package": "a virtual machine hides the counter, and not every processor has "
    "one: measure on a machine of your own that runs Linux, or on a GPU",
    "the energy counter does not answer": "an administrator can look at /sys/class/powercap/intel-rapl:*/energy_uj",
    "(MIG)": "measure on a whole GPU",
    "does not know this GPU": "measure on a whole GPU: NVML has no energy of a slice (MIG)",
    "zeus": "'pip install zeus'",
    "nvidia-ml-py": "'pip install nvidia-ml-py'",
    "AMD GPU": "none: of GPUs efflab reads NVIDIA's counters",
    "has no energy counter": "measure on a newer GPU",
    "NVML": "'nvidia-smi' must run here; a container needs NVIDIA_DRIVER_CAPABILITIES=compute,utility",
}
EPILOG = "Messages about bad input go to stderr; the exit status is then 2. 'efflab COMMAND --help' shows each command."


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status: 0, 1 (a check failed), 2 (bad input) or 130 (stopped)."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, ValueError, OSError):
            stream.reconfigure(errors="replace")  # a terminal that cannot print µ still gets the rest
    parser = _parser()
    given = parser.parse_args(arguments)
    if not hasattr(given, "command"):
        parser.print_help()
        return 0
    try:
        return given.command(given)
    except EfflabError as error:
        from efflab.records import NotSaved

        print(f"efflab: {error}", file=sys.stderr)
        if isinstance(error, NotSaved) and error.kept is None:
            print(error.text)  # the last place where a measurement can be kept
        return 130 if type(error).__name__ == "Interrupted" else 2
    except ModuleNotFoundError as error:
        name = (error.name or "").partition(".")[0]
        if name not in NEEDED:
            raise
        mend = f"{sys.executable} -m pip install {NEEDED[name]}"
        print(
            f"efflab: the package {name!r} is not installed for {sys.executable}. Install it: {mend}", file=sys.stderr
        )
        return 2
    except KeyboardInterrupt:
        print("efflab: stopped.", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of a pipe has gone, as 'efflab replay roofline | head' does
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="efflab",
        description="Predict, measure and reconcile the efficiency of AI workloads.",
        epilog=EPILOG,
    )
    parser.add_argument("--version", action="version", version=f"efflab {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", title="commands")

    def add(name: str, command: Callable[[Any], int], help: str, more: str = "") -> argparse.ArgumentParser:
        sub = commands.add_parser(
            name, help=help, description=f"{help}\n\n{more}".strip(), epilog=EPILOG,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )  # fmt: skip
        sub.set_defaults(command=command)
        return sub

    add("doctor", _doctor, "Check this machine for the labs, with a mend for what is missing.")

    run = add(
        "run", _run, "Measure a topic's experiment on this machine and keep the record.",
        "The record goes to the lab book unless --out names a folder. A run that is stopped continues when the same\n"
        "command is given again. Scales: smoke (seconds; says nothing about the device), cpu (under two minutes on\n"
        "two cores), gpu (one GPU), multi (several GPUs; topics that have it).",
    )  # fmt: skip
    run.add_argument("topic", metavar="TOPIC", help="what to measure, such as roofline")
    run.add_argument("--scale", metavar="SCALE", help="smoke, cpu, gpu or multi; default: what suits the device")
    run.add_argument("--out", metavar="DIR", help="folder for the record; default: records/ in the lab book")
    run.add_argument("--device", metavar="DEVICE", help="cpu, cuda or cuda:N; default: a GPU if there is one")
    run.add_argument("--restart", action="store_true", help="set an interrupted run aside instead of continuing it")
    run.add_argument(
        "--prediction", metavar="ID", action="append", default=[],
        help="a prediction of the lab book that was made for this run; the record keeps its id; may be repeated",
    )  # fmt: skip

    submit = add(
        "submit", _submit, "Measure a topic's experiment in a job on a Slurm cluster and fetch the record.",
        "The script is one of labs/slurm, filled with what cluster.yml says of your site; --dry-run prints it.\n"
        "cluster.yml: --cluster, else $EFFLAB_CLUSTER, else the course's folder, else ~/.config/efflab; none is fine,\n"
        "and labs/slurm/cluster.example.yml shows what it may say. Options given here come first.\n"
        "The command waits and shows how the job goes on. Ctrl-C leaves the job running. A job that ends early goes\n"
        "on where it stopped when you submit the same again. The exit status is 1 when the job has failed.\n\n"
        "  efflab submit roofline                     one GPU\n"
        "  efflab submit ddp --nodes 2 --gpus 4       two nodes, four GPUs each\n"
        "  efflab submit roofline --gpus 0            a CPU\n"
        "  efflab submit --collect JOB                wait for a job of yours and fetch its record",
    )  # fmt: skip
    submit.add_argument("topic", metavar="TOPIC", nargs="?", help="what to measure, such as roofline")
    submit.add_argument("--nodes", metavar="N", type=int, default=1, help="how many nodes; default: 1")
    submit.add_argument("--gpus", metavar="N", type=int, help="GPUs of each node; 0 measures on its CPU; default: 1")
    submit.add_argument("--scale", metavar="SCALE", help="smoke, cpu, gpu or multi; default: what suits the GPUs")
    for option, key, help in (
        ("time", "TIME", "the job's limit, as in 01:30:00 or 90 (minutes)"),
        ("partition", "NAME", "where it runs"),
        ("account", "NAME", "who pays"),
        ("qos", "NAME", "quality of service"),
        ("reservation", "NAME", "nodes that are kept for you"),
        ("constraint", "FEATURE", "what the nodes must have"),
        ("memory", "SIZE", "memory of each node, as in 64G"),
    ):
        submit.add_argument(f"--{option}", metavar=key, help=f"{help}; default: as cluster.yml or the site says")
    submit.add_argument("--cluster", metavar="FILE", help="the site's cluster.yml")
    submit.add_argument("--out", metavar="DIR", help="folder for the record; default: records/ in the lab book")
    submit.add_argument("--restart", action="store_true", help="begin anew where an earlier job has ended early")
    submit.add_argument("--dry-run", action="store_true", help="print the batch script and submit nothing")
    submit.add_argument("--no-wait", action="store_true", help="do not wait: fetch the record later with --collect")
    submit.add_argument("--collect", metavar="JOB", help="the number of a job that was submitted before")

    replay = add(
        "replay", _replay, "Show a recorded run: predicted against measured.",
        "Nothing is measured: a banner says on which device and when the run was recorded.",
    )  # fmt: skip
    replay.add_argument("topic", metavar="TOPIC", help="such as roofline")
    replay.add_argument("--record", metavar="FILE", help="the record; default: the newest that comes with the course")

    book = add(
        "labbook", _labbook, "Write your lab book as one HTML page, or add a file to it.",
        "The lab book is the folder $EFFLAB_LABBOOK, else ./labbook.\n\n"
        "  efflab labbook                 write the page\n"
        "  efflab labbook add FILE        take in a prediction or record that was saved elsewhere",
    )  # fmt: skip
    book.add_argument("--out", metavar="FILE", help="the page; default: labbook.html in the lab book")
    book.set_defaults(action=None)
    actions = book.add_subparsers(metavar="[add FILE]")
    adding = actions.add_parser("add", help="take in a prediction or record file", epilog=EPILOG)
    adding.add_argument("files", metavar="FILE", nargs="+")
    adding.set_defaults(action="add")

    notebooks = add("notebooks", _notebooks, "Make the notebooks from their text sources.")
    notebooks.add_argument("--check", action="store_true", help="only compare; exit with status 1 if one is stale")

    check = add("check", _check, "Validate record, prediction or progress files.")
    check.add_argument("files", metavar="FILE", nargs="+")
    return parser


def _topic(name: str) -> str:
    from efflab import experiments

    if name not in experiments.topics():
        raise unknown("topic", name, experiments.topics())
    return name


def _prediction(name: str) -> None:
    from pydantic import TypeAdapter, ValidationError

    from efflab.records import Name

    try:
        TypeAdapter(Name).validate_python(name)
    except ValidationError:
        raise EfflabError(
            f"--prediction {name!r}: not the id of a prediction. It is the file's name in the lab book's predictions/, "
            "without .json."
        ) from None


def _run(given: argparse.Namespace) -> int:
    from efflab import experiments
    from efflab.experiments import runner

    for name in given.prediction:
        _prediction(name)
    experiment = experiments.get(_topic(given.topic))

    with _stopped_by_scheduler():
        record, path = runner.run(
            experiment, scale=given.scale, device=given.device, out=given.out, restart=given.restart,
            predictions=given.prediction,
        )  # fmt: skip
    return _tell(record, path)


@contextlib.contextmanager
def _stopped_by_scheduler() -> Iterator[None]:
    """Treat the signals with which a scheduler ends a job as Ctrl-C, so that the run saves its state.

    SIGTERM is Slurm's own; SIGUSR1 is what the batch scripts ask it for. What comes after the first is ignored: it must
    not break the saving.
    """
    before: dict[int, Any] = {}

    def stop(*_: Any) -> None:
        for number in before:
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    try:
        for name in ("SIGTERM", "SIGUSR1"):
            with contextlib.suppress(ValueError, AttributeError):  # not in the main thread, or not a Unix
                number = getattr(signal, name)
                before[number] = signal.getsignal(number)
                signal.signal(number, stop)
        yield
    finally:
        for number, handler in before.items():
            with contextlib.suppress(ValueError):
                signal.signal(number, handler)


def _tell(record: Any, path: Path) -> int:
    """Print what a run measured, and where its record is; the exit status."""
    from efflab.lab import disturbed
    from efflab.reconcile import energy_text
    from efflab.reconcile import topic as reconcile_topic

    print(f"Kept in {path}")
    for warning in record.warnings:
        print(f"warning: {warning}")
    print()
    try:
        print(reconcile_topic(record.topic).summary(record))
        print(energy_text(record))
        if said := disturbed(record):
            print(said)
    except KeyboardInterrupt:
        print(f"stopped before the summary; the record is complete: efflab replay {record.topic} --record {path}")
        return 130
    return 0


def _submit(given: argparse.Namespace) -> int:
    from efflab import submit

    cluster, _ = submit.load_cluster(given.cluster)
    book = submit.book(cluster)
    if given.collect is not None:
        if given.topic:
            raise EfflabError(f"submit: --collect fetches a job's record. Leave out {given.topic!r}.")
        job = submit.find(given.collect, book)
        if given.no_wait and (state := job.state()) is not None and not state.ended:
            print(f"Not collected: job {job.id} has not ended: {state}")
            return 1
        return _collect(job, given.out)
    if not given.topic:
        from efflab import experiments

        raise EfflabError(f"submit: name a topic, one of {', '.join(experiments.topics())}, or --collect JOB.")
    wanted = submit.request(
        _topic(given.topic), nodes=given.nodes, gpus=given.gpus, scale=given.scale, cluster=cluster,
        **{key: getattr(given, key) for key in submit.OPTIONS},
    )  # fmt: skip
    if said := wanted.alone:
        print(f"efflab: {said}", file=sys.stderr)
    if given.dry_run:
        print(submit.render(wanted, (book.path / "submitted" / "NAME").absolute()), end="")
        return 0
    job = submit.submit(wanted, book, restart=given.restart)
    print(f"Submitted: job {job.id}, {wanted.said}; its script and log: {job.folder}")
    if given.no_wait:
        print(job.how())
        return 0
    return _collect(job, given.out)


def _collect(job: Any, out: str | None) -> int:
    from efflab.submit import JobFailed

    try:
        state = job.wait()
        record, path = job.collect(out, state=state)
    except JobFailed as error:
        print(f"efflab: {error}", file=sys.stderr)
        return 1
    if said := job.unused(record):
        print(f"efflab: {said}", file=sys.stderr)
    return _tell(record, path)


def _replay(given: argparse.Namespace) -> int:
    from efflab import records
    from efflab.reconcile import energy_text
    from efflab.reconcile import topic as reconcile_topic

    module = reconcile_topic(_topic(given.topic))
    if given.record:
        record = records.load_record(given.record)
        if record.topic != given.topic:
            raise EfflabError(f"{given.record}: a record of {record.topic!r}; one of {given.topic!r} is needed.")
    else:
        runs = records.recorded(given.topic)
        if not runs:
            raise EfflabError(
                f"replay: no recorded run of {given.topic!r} comes with this copy. Measure one with "
                f"'efflab run {given.topic}', then give its file with --record."
            )
        record = runs[-1]
    print(module.banner(record))
    print()
    print(module.text(record))
    print()
    print(energy_text(record))
    return 0


def _labbook(given: argparse.Namespace) -> int:
    from efflab import labbook, records

    book = records.LabBook()
    if given.action == "add":
        for file in given.files:
            print(f"Added: {book.add(file)}")
        return 0
    text, problems = labbook.page(book)
    path = Path(given.out) if given.out else book.path / "labbook.html"
    if path.is_dir():
        raise EfflabError(f"--out {path}: this is a folder. Name a file, such as {path / 'labbook.html'}.")
    records.write(path, text, replace=True)
    for problem in problems:
        print(f"warning: {problem}", file=sys.stderr)
    print(f"Written: {path}")
    return 0


def _notebooks(given: argparse.Namespace) -> int:
    from efflab import notebooks

    return notebooks.main(check=given.check)


def _check(given: argparse.Namespace) -> int:
    from efflab import records

    failed = 0
    for file in given.files:
        try:
            print(records.check(file))
        except EfflabError as error:
            print(f"efflab: {error}", file=sys.stderr)
            failed = 2
    return failed


# Doctor


@dataclass(frozen=True)
class Finding:
    """One line of the doctor: `state` is "ok", "note" (something optional is missing) or "problem"."""

    state: str
    what: str
    said: str
    mend: str = ""


def examine() -> list[Finding]:
    """What this machine has for the labs, and the mend for what it lacks. Changes nothing that stays."""
    found = []
    found.append(Finding("ok", "Python", platform.python_version()))
    for module in ("numpy", "scipy", "pydantic", "yaml", "tqdm"):
        if importlib.util.find_spec(module) is None:
            found.append(Finding("problem", module, "not installed", "run 'pip install -e .' in the checkout"))
    found += _device_findings()
    for module, what, why in (
        ("matplotlib", "matplotlib", "the pictures in the labs"),
        ("jupyterlab", "JupyterLab", "the notebooks"),
        ("anywidget", "anywidget", "the calculators in notebooks"),
    ):
        if importlib.util.find_spec(module) is not None:
            found.append(Finding("ok", what, "installed"))
        else:
            mend = f"'pip install {module}' for {why}; efflab run, replay and labbook work without"
            found.append(Finding("note", what, "not installed", mend))
    found += _labbook_findings()
    found.append(_slurm_finding())
    found.append(_cluster_finding())
    return found


def _device_findings() -> list[Finding]:
    from efflab.catalog import match_device
    from efflab.measure import device
    from efflab.units import show_binary

    found = []
    try:
        torch = device.import_torch()
    except EfflabError as error:
        return [Finding("problem", "torch", "does not import", str(error))]
    found.append(Finding("ok", "torch", torch.__version__))
    try:
        chosen = device.choose()
        e = device.environment(chosen)
    except EfflabError as error:
        return [*found, Finding("problem", "device", "does not answer", str(error))]
    memory = f", {show_binary(e.memory)} of memory" if e.memory else ""
    if e.kind == "cpu":
        built = torch.version.cuda or torch.version.hip
        gpu = "torch sees no GPU" if built else "this torch is a CPU-only build"
        found.append(Finding("ok", "device", f"{e.device}{memory}, {e.compute_capability}; {gpu}"))
    else:
        entry = match_device(e.device, e.memory or 0)
        known = f"the catalog knows it as {entry.name}" if entry else "not in the catalog: ceilings are measured"
        found.append(Finding("ok", "device", f"{e.device}{memory}; {known}"))
        if e.power_limit is None:
            found.append(Finding("note", "NVML", "not readable", "'pip install nvidia-ml-py' for clocks and power"))
    total = os.cpu_count() or 1
    cores = f"{e.threads} threads on {e.cores} cores"
    if e.cores and e.cores < total:
        found.append(Finding("note", "threads", f"{cores}; the machine has {total}, this process is granted fewer"))
    else:
        found.append(Finding("ok", "threads", cores))
    if e.load is not None and e.cores and e.load > 0.3 * e.cores:
        found.append(Finding("note", "load", f"{e.load}", "other programs run: wait for them before you measure"))
    cxx = device.compiler()
    if cxx:
        found.append(Finding("ok", "C++ compiler", f"{Path(cxx).name}, for torch.compile on a CPU"))
    elif e.kind == "cpu":
        found.append(Finding("note", "C++ compiler", "none", "install g++; without it the fused chain is left out"))
    found.append(_energy_finding(chosen, e))
    caches = ", ".join(f"{n} {show_binary(s)}" for n, s in e.caches.items())
    if caches:
        found.append(Finding("ok", "caches", caches))
    else:
        found.append(Finding("note", "caches", "not reported", "none needed: 32 MiB is assumed for the sweeps"))
    return found


def _energy_finding(chosen: Any, environment: Any) -> Finding:
    from efflab.experiments.runner import rating
    from efflab.measure.energy import Meter
    from efflab.reconcile import span
    from efflab.units import WATT

    with Meter([chosen]) as meter:
        if meter.source != "none":
            if not meter.shared:
                return Finding("ok", "energy", f"measured by {meter.of}")
            mend = "measure where nobody else computes, as in a job that has the whole node"
            return Finding("note", "energy", f"measured by {meter.of}; {meter.shared}", mend)
    said = "records then hold none, since the catalog has no rated power of this device"
    if rated := rating([chosen], environment):
        said = f"records then hold a band that is modelled from the rated power, {span(rated[:2], WATT)}: {rated[2]}"
    mends = (mend for fragment, mend in ENERGY_MENDS.items() if fragment in meter.why)
    return Finding("note", "energy", f"not measured here: {meter.why}; {said}", next(mends, ""))


def _labbook_findings() -> list[Finding]:
    from efflab.records import LabBook
    from efflab.units import show_binary

    try:
        book = LabBook()
    except EfflabError as error:
        return [Finding("problem", "lab book", "not usable", str(error))]
    nearest = next(p for p in (book.path, *book.path.absolute().parents) if p.exists())
    mend = "set EFFLAB_LABBOOK to a folder that you may write"
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK) or _read_only(nearest):
        return [Finding("problem", "lab book", f"{book.path} cannot be written", mend)]
    found = [Finding("ok", "lab book", f"{book.path}{'' if book.path.exists() else ' (made when needed)'}")]
    free = shutil.disk_usage(nearest).free
    if free < 100 * 2**20:
        mend = "free some space: a record takes under 1 MiB, torch.compile's cache some 100 MiB"
        found.append(Finding("problem", "disk space", show_binary(free), mend))
    else:
        found.append(Finding("ok", "disk space", f"{show_binary(free)} free"))
    return found


def _read_only(folder: Path) -> bool:
    try:
        return bool(os.statvfs(folder).f_flag & os.ST_RDONLY)
    except (OSError, AttributeError):
        return False


def _slurm_finding() -> Finding:
    from efflab.measure.device import slurm

    job = slurm()
    if job:
        return Finding("ok", "Slurm", f"inside job {job.job}, {job.nodes} node(s)")
    if shutil.which("sbatch"):
        return Finding("ok", "Slurm", "sbatch is there; this shell is not inside a job")
    return Finding("note", "Slurm", "not found", "none needed unless you submit labs to a cluster")


def _cluster_finding() -> Finding:
    from efflab.submit import load_cluster

    try:
        _, path = load_cluster()
    except EfflabError as error:
        return Finding("problem", "cluster.yml", "not usable", str(error))
    if path is None:
        said = "none, so 'efflab submit' takes the site's defaults"
        return Finding("ok", "cluster.yml", f"{said}; labs/slurm/cluster.example.yml shows what it may say")
    return Finding("ok", "cluster.yml", f"{path} is valid")


def _doctor(given: argparse.Namespace) -> int:
    marks = {"ok": "ok     ", "note": "note   ", "problem": "PROBLEM"}
    findings = examine()
    for f in findings:
        print(f"{marks[f.state]}  {f.what}: {f.said}" + (f"\n         → {f.mend}" if f.mend else ""))
    problems = sum(f.state == "problem" for f in findings)
    print(f"\n{problems} problem(s)." if problems else "\nReady. Try: efflab run roofline")
    return 1 if problems else 0


if __name__ == "__main__":
    raise SystemExit(main())
