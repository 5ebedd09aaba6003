"""Send a lab to a Slurm queue: fill a batch script, submit it, wait, and take in its record.

The scripts are those of labs/slurm, which also work by hand. What differs from site to site stands in one file,
cluster.yml. Each submission has a folder of its own in the lab book, `submitted/NAME/`: the script as it was
submitted, the job's log, its exit status, and what it measured. That folder has to lie where the nodes see it.

Slurm is asked through `sbatch`, `scontrol` and nothing else, so a cluster without accounting will do. It forgets a
job some minutes after its end; the exit status that the script left then tells how it went.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, field_validator

from efflab import experiments, records, yamlfile
from efflab.errors import EfflabError, unknown
from efflab.experiments.runner import Interrupted
from efflab.measure.distributed import TORCHRUN
from efflab.records import LabBook, Record

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = ROOT / "labs" / "slurm"
LOG, STATUS, SCRIPT, NOTE, SUBMITTING = "job.log", "status", "job.sbatch", "job.json", "submitting"
CPUS = 4  # cores for each GPU, where cluster.yml says nothing
SHORTEST = 3  # min; a job is asked to leave 60 s before its time is up, and Slurm may be a minute early
POLL = (2.0, 15.0)  # s between two questions to the controller, at first and at most
SILENCE = 900.0  # s for which a controller may not answer
NO_ANSWER = 124  # the exit status of a command that gave no answer
LATE = 30.0  # s for which a shared file system may hide what a node has written


class JobFailed(EfflabError):
    """The job ended and left no complete record."""


# cluster.yml

# What Slurm takes as a name: no blank, quote or backslash, so that it stays one word of an #SBATCH line.
Word = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_\[(][A-Za-z0-9_.,:@/%&|()*\[\]+=!-]{0,199}$")]
Module = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.+/-]{0,199}$")]
Variable = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,99}$")]
Text = Annotated[str, StringConstraints(min_length=1, max_length=2000)]

# The keys that are options of sbatch, of 'efflab submit' and of the scripts' #SBATCH lines alike.
OPTIONS = {
    "account": "account",
    "partition": "partition",
    "qos": "qos",
    "reservation": "reservation",
    "constraint": "constraint",
    "time": "time",
    "memory": "mem",
}
# What a script or this module sets itself.
TAKEN = (
    *OPTIONS.values(), "nodes", "ntasks", "ntasks-per-node", "gpus", "gpus-per-node", "gres", "cpus-per-task",
    "cpus-per-gpu", "gpus-per-task", "ntasks-per-gpu", "mem-per-cpu", "mem-per-gpu", "output",
    "error", "open-mode", "signal", "requeue", "no-requeue", "job-name", "chdir", "wrap", "array", "wait", "parsable",
    "test-only", "export", "export-file", "clusters", "cluster", "cluster-constraint",
)  # fmt: skip
WHY = {
    "extra_forbidden": "no such key",
    "string_type": "a text is expected: put it in quotes",
    "string_pattern_mismatch": "a name without blanks, quotes and other signs of the shell is expected",
    "int_type": "a whole number is expected",
    "list_type": "a list is expected, as in [gcc, cuda/12.8]",
    "dict_type": "names with values are expected, each on a line of its own",
    "model_type": "the keys 'image' and 'command' are expected below it",
}


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Container(_Model):
    """A container that holds Python and what efflab needs.

    Attributes:
        image: its file or address; ~ and $VARIABLES are the node's.
        command: what stands before the image.
    """

    image: Text
    command: Text = "apptainer exec --nv"

    @field_validator("image", "command")
    @classmethod
    def _words(cls, text: str) -> str:
        for word in _split(text):
            expand(word)
        return text

    @field_validator("image")
    @classmethod
    def _one(cls, text: str) -> str:
        expand(text)
        return text


class Cluster(_Model):
    """What differs from site to site. Everything is optional; without it the site's default holds.

    Attributes:
        account, partition, qos, reservation, constraint: as Slurm knows them.
        time: the job's limit, in one of sbatch's forms: "90" (minutes), "01:30:00", "1-12".
        gpu: the type of GPU, as in "--gpus-per-node=TYPE:1".
        cpus_per_gpu: cores for each GPU; a job without GPUs gets as many.
        memory: of each node, such as "64G".
        sbatch: more options of sbatch, each as one word: "--exclusive".
        modules: loaded in this order.
        setup: shell lines, run after the modules.
        python: the interpreter; within a container, the one in it.
        container: what Python runs in, on one node.
        environment: variables of the job. ~ and $VARIABLES in their values are the node's.
        data, scratch: folders; the job finds them as EFFLAB_DATA and EFFLAB_SCRATCH.
        labbook: the lab book, where EFFLAB_LABBOOK does not name one.
    """

    account: Word | None = None
    partition: Word | None = None
    qos: Word | None = None
    reservation: Word | None = None
    constraint: Word | None = None
    time: Text | None = None
    gpu: Word | None = None
    cpus_per_gpu: int | None = Field(default=None, ge=1, le=1024)
    memory: Text | None = None
    sbatch: list[Text] = []
    modules: list[Module] = []
    setup: list[Text] = []
    python: Text | None = None
    container: Container | None = None
    environment: dict[Variable, str | int] = {}
    data: Text | None = None
    scratch: Text | None = None
    labbook: Text | None = None

    @field_validator("time")
    @classmethod
    def _limit(cls, text: str | None) -> str | None:
        if text is not None and minutes(text) < SHORTEST:
            raise ValueError(
                f"{text!r} is under {SHORTEST} minutes, and a job is asked to save its state up to two minutes before "
                "its time is up. Give it more"
            )
        return text

    @field_validator("gpu")
    @classmethod
    def _type(cls, text: str | None) -> str | None:
        if text is not None and ":" in text:
            kind = next((w for w in text.split(":") if w != "gpu" and not w.isdigit()), "h100")
            raise ValueError(f"{text!r} holds more than the type of GPU. Write '{kind}'; --gpus says how many")
        return text

    @field_validator("memory")
    @classmethod
    def _size(cls, text: str | None) -> str | None:
        if text is not None and not re.fullmatch(r"[0-9]{1,9}[KMGT]?", text):
            raise ValueError(f"{text!r} is no amount that Slurm takes. Write it as in '64G'")
        return text

    @field_validator("sbatch")
    @classmethod
    def _more(cls, words: list[str]) -> list[str]:
        for word in words:
            found = re.fullmatch(r"--([a-z][a-z0-9-]*)(=[A-Za-z0-9_.,:@/%&|()*\[\]+=!-]+)?", word)
            if not found:
                raise ValueError(f"{word!r} is no option of sbatch as one word. Write it as in '--mail-type=END'")
            if found[1] in TAKEN:
                key = next((k for k, option in OPTIONS.items() if option == found[1]), "")
                mend = f"Use the key {key!r}" if key else "'efflab submit' sets it. Leave it out"
                raise ValueError(f"{word!r} cannot be set here. {mend}")
        return words

    @field_validator("setup")
    @classmethod
    def _lines(cls, lines: list[str]) -> list[str]:
        for line in lines:
            if problem := _syntax(line):
                raise ValueError(f"{line!r} is not one complete line of bash: {problem}")
        return lines

    @field_validator("environment")
    @classmethod
    def _variables(cls, values: dict[str, str | int]) -> dict[str, str | int]:
        for name, value in values.items():
            if name.startswith(("SLURM_", "SBATCH_")) or TORCHRUN.fullmatch(name):
                raise ValueError(f"{name} is set by Slurm or torchrun. Leave it out")
            expand(str(value))
        return values

    @field_validator("python", "data", "scratch")
    @classmethod
    def _path(cls, text: str | None) -> str | None:
        if text is not None:
            expand(text)
        return text

    @field_validator("labbook")
    @classmethod
    def _here(cls, text: str | None) -> str | None:
        if text is not None and "$" in os.path.expandvars(_plain(text)):
            raise ValueError(f"{text!r} names a variable that is not set on this machine")
        return text


def _plain(text: str) -> str:
    # A lone surrogate cannot be written into a file.
    if found := re.search(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]", text):
        raise ValueError(f"{text!r} holds the character {found[0]!r}. Write it on one line without it")
    return text


def _split(text: str) -> list[str]:
    try:
        return shlex.split(_plain(text))
    except ValueError as error:
        raise ValueError(f"{text!r} is no command: {error}") from None


def expand(text: str) -> str:
    """`text` as a word of bash in which a leading ~ and $NAMES are expanded by the shell that runs it, nothing else.

    Raises:
        ValueError: a line break or another control character, or a $ that begins no name.
    """
    pieces = re.findall(r"(^~(?=/|$))|\$(?:\{([A-Za-z_]\w*)\}|([A-Za-z_]\w*))|([^$]+)|(\$)", _plain(text), re.ASCII)
    word = ""
    for home, braced, bare, literal, dollar in pieces:
        if dollar:
            raise ValueError(f"{text!r}: only $NAME and ${{NAME}} are expanded. Other commands belong into 'setup'")
        name = "HOME" if home else braced or bare
        word += f'"${{{name}:?is not set on this node, and cluster.yml uses it}}"' if name else shlex.quote(literal)
    return word or "''"


def minutes(text: str) -> float:
    """The minutes of one of sbatch's forms: "90", "30:00", "01:30:00", "1-12", "1-12:30", "1-12:30:00".

    Raises:
        ValueError: another form.
    """
    found = re.fullmatch(r"(?:([0-9]{1,3})-)?([0-9]{1,5})(?::([0-9]{2}))?(?::([0-9]{2}))?", text)
    if not found:
        raise ValueError(f"{text!r} is no time that Slurm takes. Write it as in '01:30:00' or '90' (minutes)")
    days, first, second, third = (int(g) if g is not None else None for g in found.groups())
    if days is not None:
        return days * 1440 + (first or 0) * 60 + (second or 0) + (third or 0) / 60
    if third is not None:
        return (first or 0) * 60 + (second or 0) + third / 60
    return (first or 0) + (second or 0) / 60


def _syntax(line: str) -> str:
    """What bash says against a line that has to be complete in itself; empty where nothing, or where there is no bash.

    A word after it shows a line that would take in the next one: an open quote, a here-document, a last backslash.
    """
    _plain(line)
    if re.search(r"<<[^<]", line.replace("<<<", "")):
        return "a here-document takes in the lines below"
    if re.search(r"(?<!\\)(\\\\)*\\$", line):
        return "its last backslash takes in the line below"
    bash = shutil.which("bash")
    if not bash:
        return ""
    done = subprocess.run([bash, "-n", "-c", line], capture_output=True, text=True, env={}, timeout=20)
    said = done.stderr.strip().splitlines()
    return re.sub(r"^\S*bash: (-c: )?(line \d+: )?", "", said[0]) if said else ""


def load_cluster(path: str | os.PathLike[str] | None = None) -> tuple[Cluster, Path | None]:
    """What the site needs, and the file that says so, None where there is none.

    Args:
        path: the file; None looks at $EFFLAB_CLUSTER, cluster.yml in the course's folder and in ~/.config/efflab.

    Raises:
        EfflabError: a named file that is missing, or one that is damaged or holds what the scripts cannot take.
    """
    found = _find(path)
    if found is None:
        return Cluster(), None
    data = yamlfile.read(found)
    if data is None:  # everything is commented out
        return Cluster(), found
    if not isinstance(data, dict):
        raise EfflabError(f"{found}: keys with values are expected, as in labs/slurm/cluster.example.yml.")
    return _valid({k: v for k, v in data.items() if v is not None}, str(found)), found


def _find(path: str | os.PathLike[str] | None) -> Path | None:
    if named := path or os.environ.get("EFFLAB_CLUSTER"):
        return Path(named).expanduser()
    config = Path(os.environ.get("XDG_CONFIG_HOME") or Path("~/.config").expanduser())
    return next((p for p in (ROOT / "cluster.yml", config / "efflab" / "cluster.yml") if p.is_file()), None)


def _valid(data: dict[Any, Any], name: str) -> Cluster:
    for key in data:
        if key not in Cluster.model_fields:
            raise unknown(f"{name}: key", key, Cluster.model_fields)
    if isinstance(data.get("time"), int):
        raise EfflabError(f'{name}: time: put it in quotes, as in "01:30:00". YAML reads 1:30:00 as the number 5400.')
    for key in data["environment"] if isinstance(data.get("environment"), dict) else ():
        if not isinstance(key, str):
            raise EfflabError(
                f"{name}: environment: a variable's name is {key!r}, since YAML reads words such as on, yes and no, "
                "and numbers, as values. Put the name in quotes."
            )
    try:
        return Cluster.model_validate(data)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(p) for p in first["loc"] if p not in ("str", "int", "[key]"))
        said = WHY.get(first["type"], first["msg"].removeprefix("Value error, ").rstrip("."))
        got = "" if first["type"] == "value_error" else f", got {str(first['input'])[:60]!r}"
        raise EfflabError(f"{name}: {where}: {said[0].lower() + said[1:]}{got}.") from None


# The script


@dataclass(frozen=True)
class Request:
    """What a job is to measure, and on what.

    Attributes:
        nodes: how many.
        gpus: of each node; 0 measures on its CPU.
        scale: as `efflab run` takes it; None lets the device decide.
        predictions: ids of the predictions that were committed for this run.
    """

    topic: str
    nodes: int = 1
    gpus: int = 1
    scale: str | None = None
    cluster: Cluster = field(default_factory=Cluster)
    predictions: tuple[str, ...] = ()

    @property
    def cores(self) -> int:
        """Of each node."""
        return (self.cluster.cpus_per_gpu or CPUS) * max(1, self.gpus)

    @property
    def alone(self) -> str:
        """What one GPU cannot measure of a topic that is about several; empty where nothing."""
        if self.nodes > 1 or self.gpus != 1 or "multi" not in experiments.get(self.topic).scales:
            return ""
        return f"one GPU has none to talk to: --gpus 2 or more, or --nodes 2, measures what {self.topic} is about."

    @property
    def said(self) -> str:
        """The nodes and GPUs in words."""
        nodes = f"{self.nodes} node{'s' * (self.nodes > 1)}"
        each = " each" if self.nodes > 1 else ""
        return f"{nodes} with {self.gpus or 'no'} GPU{'s' * (self.gpus != 1)}{each}"


def request(
    topic: str,
    *,
    nodes: int = 1,
    gpus: int | None = None,
    scale: str | None = None,
    cluster: Cluster | None = None,
    predictions: Iterable[str] = (),
    **options: str | None,
) -> Request:
    """A request that a job can meet.

    Args:
        gpus: of each node; None takes 1, and 0 for scale "cpu".
        scale: None takes "multi" for more than one GPU or node, else what suits the device.
        options: keys of `OPTIONS`, over what the cluster's file says.

    Raises:
        EfflabError: an unknown topic or scale, several GPUs for a topic that uses one, or a bad number or option.
    """
    experiment = experiments.get(topic)
    for name, number, least in (("nodes", nodes, 1), ("gpus", gpus, 0)):
        if number is not None and (isinstance(number, bool) or not isinstance(number, int) or number < least):
            raise EfflabError(f"submit: {name} is {number!r}; a whole number from {least} up is needed.")
    if gpus is None:
        gpus = 0 if scale == "cpu" else 1
    if scale is not None and scale not in experiment.scales:
        raise EfflabError(f"scale {scale!r}: {topic} has no such scale. It has: {', '.join(experiment.scales)}.")
    if nodes > 1 or gpus > 1:
        if "multi" not in experiment.scales:
            several = [t for t in experiments.topics() if "multi" in experiments.get(t).scales]
            raise EfflabError(
                f"submit: {topic} uses one GPU, and {nodes} node(s) with {gpus} each were asked for. Leave out "
                f"--nodes and --gpus. Topics that use several: {', '.join(several) or 'none yet'}."
            )
        if scale not in (None, "smoke", "multi"):
            raise EfflabError(f"submit: scale {scale!r} uses one device. Use --scale multi, or leave it out.")
        scale = scale or "multi"
    if scale == "multi" and nodes == gpus == 1:
        raise EfflabError(
            "submit: scale 'multi' needs several GPUs, and one was asked for. Use --scale gpu, or ask for more: "
            "--gpus 4, or --nodes 2."
        )
    if scale == "gpu" and not gpus:
        raise EfflabError("submit: scale 'gpu' needs a GPU. Leave out --gpus 0, or use --scale cpu.")
    if scale == "cpu" and gpus:
        raise EfflabError("submit: scale 'cpu' measures a CPU. Leave out --gpus, or use --scale gpu.")
    cluster = cluster or Cluster()
    if own := {k: v for k, v in _of_this_shell().items() if getattr(cluster, k) is None and options.get(k) is None}:
        _valid(own, "submit: SBATCH_ variables of this shell")
        cluster = cluster.model_copy(update=own)
    if given := {k: v for k, v in options.items() if v is not None}:
        _valid(given, "submit")
        cluster = cluster.model_copy(update=given)
    if cluster.container and nodes > 1:
        raise EfflabError(
            "submit: several nodes do not work from within a container: the lab starts srun, which is not in it. "
            "Use one node, or modules and a python of the cluster instead of 'container' in cluster.yml."
        )
    return Request(topic, nodes, gpus, scale, cluster, tuple(predictions))


def _of_this_shell() -> dict[str, str]:
    """What a person's own SBATCH_ variables say of a job; those of a job that this process runs in say nothing."""
    if "SLURM_JOB_ID" in os.environ:
        return {}
    keys = ("account", "partition", "qos", "reservation", "constraint")
    return {key: value for key in keys if (value := os.environ.get(f"SBATCH_{key.upper()}"))}


def render(wanted: Request, folder: Path) -> str:
    """The batch script of a request, from labs/slurm.

    Args:
        folder: the submission's folder, absolute.

    Raises:
        EfflabError: the scripts are not there, or a folder that Slurm would read as a pattern.
    """
    c = wanted.cluster
    name = "nodes.sbatch" if wanted.nodes > 1 else "node.sbatch" if wanted.gpus > 1 else "gpu.sbatch"
    try:
        lines = (SCRIPTS / name).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise EfflabError(
            f"{SCRIPTS / name}: cannot be read: {error.strerror}. 'efflab submit' needs the course's checkout: run it "
            "with that checkout's .venv/bin/efflab."
        ) from None
    for path in (ROOT, folder):
        if re.search(r"[%\\\x00-\x1f\x7f]", str(path)):
            raise EfflabError(
                f"{path}: Slurm gives %, \\ and control characters in a folder a meaning of their own. Choose another "
                "folder; EFFLAB_LABBOOK names the lab book's."
            )
    settings: dict[str, str | None] = {
        "job-name": f"efflab-{wanted.topic}",
        "output": LOG,  # beside the script: sbatch is called in that folder
        "nodes": str(wanted.nodes),
        "cpus-per-task": str(wanted.cores),
        "gpus-per-node": f"{c.gpu}:{wanted.gpus}" if c.gpu and wanted.gpus else str(wanted.gpus or "") or None,
    }
    settings |= {option: value for key, option in OPTIONS.items() if (value := getattr(c, key)) is not None}
    return "\n".join(_site(_directives(lines, settings, c.sbatch), _block(wanted, folder))) + "\n"


def _directives(lines: list[str], settings: dict[str, str | None], more: list[str]) -> list[str]:
    """The script with its #SBATCH lines set (None takes one out) and what it lacks after the last of them."""
    result: list[str] = []
    left, last = dict(settings), 0
    for line in lines:
        if found := re.fullmatch(r"#SBATCH --([a-z-]+)(?:=\S+)?", line):
            option = found[1]
            if option in settings:
                value = left.pop(option, None)
                if value is None:
                    continue
                line = f"#SBATCH --{option}={value}"
            last = len(result) + 1
        result.append(line)
    added = [f"#SBATCH --{option}={value}" for option, value in left.items() if value is not None]
    return [*result[:last], *added, *(f"#SBATCH {word}" for word in more), *result[last:]]


def _site(lines: list[str], block: list[str]) -> list[str]:
    """The script with its part for the site replaced."""
    first = next(i for i, line in enumerate(lines) if line.startswith("# --- site"))
    last = lines.index("# --- end of site")
    return [*lines[:first], "# --- site: written by 'efflab submit'", *block, *lines[last:]]


def _block(wanted: Request, folder: Path) -> list[str]:
    """What one submission does before Python starts."""
    c, q = wanted.cluster, shlex.quote
    words = ["--scale", wanted.scale] if wanted.scale else []
    words += ["--device", "cpu"] if not wanted.gpus else []
    words += [word for name in wanted.predictions for word in ("--prediction", name)]
    lines = [
        f"submission={q(str(folder))}",
        f'rm -f "$submission/{STATUS}"',
        f"trap 'echo $? > \"$submission/{STATUS}\"' EXIT # how it ended, for when Slurm has forgotten the job",
        f'cd {q(str(ROOT))} || {{ echo "this node does not see the course\'s folder" >&2; exit 2; }}',
        f'set -- {wanted.topic} --out "$submission/records" {shlex.join(words)}'.rstrip(),
    ]
    variables = {n: p for n, p in (("EFFLAB_DATA", c.data), ("EFFLAB_SCRATCH", c.scratch)) if p is not None}
    lines += [f"export {n}={expand(str(v))}" for n, v in {**variables, **c.environment}.items()]
    if c.modules:
        lines.append("command -v module > /dev/null || . /etc/profile")
        lines += [f"module load {m} || exit 2" for m in c.modules]
    for line in c.setup:
        lines.append(line)
        if line.split()[:1] in (["source"], ["."]):
            lines.append(f"[ $? -eq 0 ] || {{ echo {q(f'setup in cluster.yml failed: {line}')} >&2; exit 2; }}")
    if c.python or c.container:
        lines.append("unset EFFLAB_PYTHON")
    if c.container:
        command = [*(expand(w) for w in _split(c.container.command)), expand(c.container.image)]
        lines.append(f"python=({' '.join(command)} {expand(c.python) if c.python else 'python3'})")
    elif c.python:
        lines.append(f"python=({expand(c.python)})")
    elif not c.modules and not c.setup and not os.environ.get("EFFLAB_PYTHON"):
        lines.append(f"python=({q(sys.executable)}) # the one that submitted it")
    return lines


# Slurm

VISIBLE = ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "GPU_DEVICE_ORDINAL")


def clean(variables: dict[str, str] | None = None) -> dict[str, str]:
    """The environment of a command of Slurm's, without what an outer job or torchrun has set.

    A notebook often runs in a job itself. A job that inherited its SLURM_* would take its limits, or be refused. A
    user's own SBATCH_* go too, since they would win over the script: `request` writes into it what they say of account,
    partition, qos, reservation and constraint.
    """
    variables = dict(os.environ) if variables is None else variables
    inside = "SLURM_JOB_ID" in variables
    drop = ("SLURM_", "SBATCH_", "SQUEUE_", "SCONTROL_", "SRUN_", "PMI_", "PMIX_", "OMPI_")
    kept = {k: v for k, v in variables.items() if k == "SLURM_CONF" or not k.startswith(drop)}
    gone = {*VISIBLE, *filter(TORCHRUN.fullmatch, kept)}
    if inside:
        gone.add("TMPDIR")  # often a folder of that job's node
    if any(k.startswith("TORCHELASTIC_") for k in variables):
        gone.add("OMP_NUM_THREADS")  # torchrun sets it to 1
    return {k: v for k, v in kept.items() if k not in gone}


def required() -> None:
    """Raise where this machine has no commands of Slurm.

    Raises:
        EfflabError: says what else can be done.
    """
    if not all(shutil.which(c) for c in ("sbatch", "scontrol")):
        raise EfflabError(
            "submit: this machine has no sbatch, so it reaches no Slurm cluster. Submit from the cluster's login node, "
            "measure here ('efflab run', mode 'live') or look at a recorded run ('efflab replay', mode 'replay')."
        )


def _slurm(*command: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    required()
    try:
        return subprocess.run(
            command, cwd=cwd, env=clean(), capture_output=True, text=True, errors="replace", timeout=120
        )
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, NO_ANSWER, "", f"{command[0]} gave no answer in 120 s")


# What sbatch says, and what to change.
REFUSALS = {
    "unrecognized option|invalid option": "Change 'sbatch' in cluster.yml; 'sbatch --help' lists what it may say.",
    "configuration source|DNS SRV|slurm.conf": "This machine has Slurm's commands and no cluster: use a login node.",
    "contact slurm controller|connection refused|timed out": "Slurm's controller does not answer: wait a minute and "
    "submit again.",
    "accounting/qos policy|job submit limit": "Your jobs together would exceed a limit of your account or qos. Wait "
    "until some have ended, or ask for less with --time, --gpus or --nodes; 'sacctmgr show qos' lists limits.",
    "account": "Change --account, or 'account' in cluster.yml; 'sacctmgr show associations user=$USER' lists yours.",
    "partition|access.*denied": "Change --partition, or 'partition' in cluster.yml; 'sinfo' lists them, and your "
    "account may not use each.",
    "qos": "Change --qos, or 'qos' in cluster.yml; each limits time, GPUs and jobs.",
    "reservation": "Change --reservation, or 'reservation' in cluster.yml; 'scontrol show reservation' lists them.",
    "feature|constraint": "Change --constraint, or 'constraint' in cluster.yml; \"sinfo -o '%P %f'\" lists them.",
    "gres|generic resource": "Change --gpus (0 measures on a CPU), or 'gpu' in cluster.yml; \"sinfo -o '%P %G'\" lists "
    "the types.",
    "memory": "Change --memory, or 'memory' in cluster.yml; \"sinfo -o '%P %m'\" lists what nodes have, in MB.",
    "time": "Change --time, or 'time' in cluster.yml; \"sinfo -o '%P %l'\" lists the partitions' limits.",
    "node configuration|node count|processors|nodes": "No node has what was asked for. Change --gpus (0 measures on a "
    "CPU), --nodes or --memory, or 'gpu', 'cpus_per_gpu', 'memory' or 'partition' in cluster.yml; \"sinfo -o '%P %D %c "
    "%m %G'\" lists what there is.",
}


def refusal(said: str) -> EfflabError:
    """The error for what sbatch said on stderr, with what to change."""
    lines = [line.partition("error: ")[2] or line for line in said.strip().splitlines() if line.strip()]
    mend = next((m for pattern, m in REFUSALS.items() if re.search(pattern, said, re.IGNORECASE)), "")
    why = " ".join(lines)[:400].rstrip(".") or "it said nothing"
    return EfflabError(f"submit: sbatch refused the job: {why}. {mend}".strip())


REASONS = {
    "Resources": "nodes have to become free",
    "Priority": "other jobs come first",
    "Dependency": "another job has to end first",
    "BeginTime": "not before that time",
    "Reservation": "the reservation has not begun",
    "ReqNodeNotAvail": "nodes are down or reserved",
    "JobHeldUser": "held: 'scontrol release JOB' lets it go",
    "JobHeldAdmin": "held by the administrators: ask them",
    "launch_failed_requeued_held": "it could not be started and is held: 'scontrol release JOB' lets it go",
    "QOSMaxJobsPerUserLimit": "you have as many jobs running as you may",
    "QOSMaxGRESPerUser": "you use as many GPUs as you may",
    "AssocGrpGRES": "your account uses as many GPUs as it may",
    "AssocGrpGRESMinutes": "your account's GPU time is used up",
    "AssocGrpCPUMinutesLimit": "your account's time is used up",
}
# Reasons that pass only when somebody changes something.
NEVER = {
    "PartitionConfig": "the partition has fewer nodes or cores, or a shorter limit, than was asked for",
    "PartitionTimeLimit": "the partition's limit is shorter than --time",
    "PartitionNodeLimit": "the partition gives fewer nodes than --nodes",
    "PartitionDown": "the partition is down",
    "PartitionInactive": "the partition is closed",
    "BadConstraints": "no node has what 'constraint' asks for",
    "AccountNotAllowed": "the account may not use this partition",
    "InvalidAccount": "the account is not valid",
    "InvalidQOS": "the qos is not valid",
    "QOSNotAllowed": "the qos may not use this partition",
    "JobArrayTaskLimit": "the array's limit is reached",
}
WAITING = ("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT", "RESV_DEL_HOLD")
RUNNING = ("RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "RESIZING", "SIGNALING", "STAGE_OUT")
AGAIN = "What it measured is kept: submit the same again and it goes on there."
ENDS = {
    "FAILED": "The end of its log says why.",
    "OUT_OF_MEMORY": f"The node's memory ran out: ask for more with --memory, or 'memory' in cluster.yml. {AGAIN}",
    "TIMEOUT": f"Its time was up: ask for more with --time, or 'time' in cluster.yml. {AGAIN}",
    "NODE_FAIL": f"A node failed. {AGAIN}",
    "BOOT_FAIL": "A node did not boot. Submit it again.",
    "DEADLINE": "It could not end before its deadline. Submit it again.",
    "CANCELLED": f"Someone cancelled it: you, or an administrator. {AGAIN}",
    "PREEMPTED": f"Another job took its place. {AGAIN}",
    "LAUNCH": "The node could not open the job's log. The lab book has to lie on a file system that the nodes see: "
    "set EFFLAB_LABBOOK, or 'labbook' in cluster.yml.",
    "GONE": f"Slurm knows it no more, and it left no exit status: it was killed, or its node failed. {AGAIN}",
}


@dataclass(frozen=True)
class State:
    """What Slurm says of a job.

    Attributes:
        name: such as "PENDING"; "GONE" where Slurm has forgotten it.
        exit, signal: the exit status of its script and the signal that ended it, None where not known.
    """

    name: str
    reason: str = ""
    start: str = ""
    nodes: str = ""
    restarts: int = 0
    exit: int | None = None
    signal: int | None = None

    @property
    def waiting(self) -> bool:
        """It has not begun, or is to begin again."""
        return self.name in WAITING

    @property
    def ended(self) -> bool:
        """It will not go on."""
        return self.name not in (*WAITING, *RUNNING)

    def __str__(self) -> str:
        if self.waiting:
            never = NEVER.get(self.reason)
            why = never or REASONS.get(self.reason, "")
            said = f"{self.name} ({self.reason}{': ' * bool(why)}{why})" if self.reason else self.name
            again = f"queued again ({self.restarts}), " if self.restarts else ""
            start = f", expected to start {_clock(self.start)}" if self.start else ""
            return f"{again}{said}{start}" + (
                ". It will not start like this: cancel it and submit another" * bool(never)
            )
        since = f" since {_clock(self.start)}" if self.start and not self.ended else ""
        nodes = f" on {self.nodes}" if self.nodes and not self.ended else ""
        return f"{self.name}{nodes}{since}"


def _clock(text: str) -> str:
    day, _, clock = text.partition("T")
    return clock[:5] if day == time.strftime("%Y-%m-%d") else f"{day} {clock[:5]}"


def parse_state(text: str) -> State:
    """Read the answer of `scontrol -o show job`.

    Raises:
        EfflabError: it holds no state.
    """

    def get(key: str) -> str:
        found = re.search(rf"(?:^|\s){key}=(\S*)", text)
        return found[1] if found and found[1] not in ("(null)", "None", "Unknown", "N/A") else ""

    name = get("JobState")
    if not name:
        raise EfflabError(f"submit: Slurm's answer about the job holds no state: {text.strip()[:200]!r}.")
    code = re.match(r"(\d+):(\d+)", get("ExitCode"))
    ended = name not in (*WAITING, *RUNNING)
    return State(
        name=name,
        reason=get("Reason"),
        start=get("StartTime"),
        nodes=get("NodeList"),
        restarts=int(get("Restarts") or 0) if (get("Restarts") or "0").isdigit() else 0,
        exit=int(code[1]) if code and ended and code[2] == "0" else None,
        signal=int(code[2]) if code and ended and code[2] != "0" else None,
    )


# A job


class Note(BaseModel):
    """What the lab book keeps of a submission, in its folder.

    Attributes:
        jobs: Slurm's numbers: the last one is the present one, those before it ended early.
    """

    model_config = ConfigDict(extra="ignore", strict=True)
    jobs: list[Annotated[str, StringConstraints(pattern=r"^[0-9]{1,20}$")]] = Field(min_length=1)
    topic: records.Topic
    scale: str | None
    nodes: int
    gpus: int
    submitted: str


@dataclass
class Job:
    """One submission."""

    folder: Path
    note: Note
    labbook: LabBook

    @property
    def id(self) -> str:
        """Slurm's number."""
        return self.note.jobs[-1]

    @property
    def log(self) -> str:
        """What the job has written so far."""
        try:
            return (self.folder / LOG).read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ""

    def state(self) -> State | None:
        """What Slurm says now; None where its controller does not answer."""
        done = _slurm("scontrol", "-o", "show", "job", self.id)
        if done.returncode == 0 and "JobState=" in done.stdout:
            return parse_state(done.stdout)
        if "Invalid job id" in done.stderr + done.stdout:
            return State("GONE", exit=self._left())
        return None

    def _left(self) -> int | None:
        with contextlib.suppress(OSError, ValueError):
            return int((self.folder / STATUS).read_text())
        return None

    def wait(self, report: Callable[[str], None] | None = None, *, results: bool = True) -> State:
        """Wait until the job has ended, and show how it goes on.

        Args:
            report: receives a line for each change; None draws a bar on a terminal and prints lines elsewhere.
            results: show what the cases measured, not their names alone.

        Raises:
            Interrupted: stopped with Ctrl-C; the job goes on.
            EfflabError: the controller gave no answer for a quarter of an hour.
        """
        display = _Display(self, report, results)
        try:
            return self._wait(display)
        except KeyboardInterrupt:
            raise Interrupted(f"Job {self.id} goes on. {self.how()}") from None
        finally:
            display.close()

    def _wait(self, display: _Display) -> State:
        poll, most = POLL
        pause, asked, heard = poll, -poll, time.monotonic()
        before: State | None = None
        left = self._left()
        while True:
            now = time.monotonic()
            if now - asked >= pause:
                state, asked = self.state(), time.monotonic()
                if state is not None:
                    heard = asked
                elif asked - heard > SILENCE:
                    raise EfflabError(f"submit: Slurm's controller has not answered for 15 minutes. {self.how()}")
                pause = poll if state != before else min(1.3 * pause, most)
                before = state or before
                display.state(state)
                if state is not None and state.ended:
                    display.progress()
                    return state
            display.progress()
            time.sleep(min(0.5, poll))
            if (exit_ := self._left()) != left:  # it has just ended: ask at once
                left, asked = exit_, -pause

    def how(self) -> str:
        """How to come back to it."""
        return f"'efflab submit --collect {self.id}' waits for it and keeps its record; 'scancel {self.id}' stops it."

    def collect(
        self, out: str | os.PathLike[str] | None = None, *, state: State | None = None, results: bool = True
    ) -> tuple[Record, Path]:
        """Take the job's record into the lab book, or into `out`. Doing it twice changes nothing.

        Args:
            state: how it ended, as `wait` returned it.
            results: show what the cases measured in the log of a job that failed.

        Raises:
            JobFailed: it left no complete record; says why and shows the end of its log.
            EfflabError: a record that is damaged or another job's, or a folder that cannot be written.
        """
        record = self._record(state)
        if record is None:
            raise self._failed(state, results)
        path = (Path(out) if out is not None else self.labbook.path / "records") / f"{record.id}.json"
        if path.exists() and records.load_record(path) == record:
            return record, path
        return record, records.save(record, path.parent)

    def unused(self, record: Record) -> str:
        """What to know where the job had GPUs and its record is of a CPU; "" otherwise."""
        if not self.note.gpus or record.environment.kind != "cpu":
            return ""
        return (
            f"job {self.id} had {self.note.gpus} GPU{'s' * (self.note.gpus > 1)} in each node and measured the CPU: "
            f"its torch, {record.environment.torch}, saw none. Give its Python a torch with CUDA: 'python' or 'setup' "
            "in cluster.yml. --gpus 0 asks for none."
        )

    def _record(self, state: State | None) -> Record | None:
        """Its complete record. A shared file system may show it late."""
        deadline = time.monotonic() + (
            LATE if state and state.name in ("COMPLETED", "GONE") and state.exit == 0 else 0.0
        )
        while True:
            files = sorted((self.folder / "records").glob("*.json"))
            found = [records.load_record(f) for f in files if not f.name.endswith(".partial.json")]
            for record in found:
                job = record.environment.slurm.job if record.environment.slurm else self.id
                if record.topic != self.note.topic or job not in self.note.jobs:
                    raise EfflabError(
                        f"{self.folder / 'records' / record.id}.json: a record of {record.topic!r} by job {job}, not "
                        f"of {self.note.topic!r} by job {self.id}. Take it out of the folder, then collect again."
                    )
            complete = [r for r in found if r.finished]
            if complete or time.monotonic() >= deadline:
                return max(complete, key=lambda r: r.created, default=None)
            time.sleep(0.5)

    def _failed(self, state: State | None, results: bool) -> JobFailed:
        state = state or State("GONE", exit=self._left())
        ended, mend = state.name, ENDS.get(state.name, "")
        if state.name == "FAILED" and state.reason == "JobLaunchFailure" and not self.log:
            mend = ENDS["LAUNCH"]
        elif state.name == "GONE" and state.exit is not None:
            ended, mend = f"it ended with exit status {state.exit}", ENDS["FAILED"]
        elif state.name == "FAILED" and state.exit is not None:
            ended = f"FAILED with exit status {state.exit}"
        elif state.name == "FAILED" and state.signal is not None:
            ended = f"FAILED, ended by signal {state.signal}"
        elif state.name == "COMPLETED":
            mend = "It left no complete record. The end of its log says why."
        end = self.log.strip() if results else CASE.sub(r"[\1/\2] \3", self.log.strip())
        shown = "".join(f"\n  | {line}" for line in end.splitlines()[-15:])
        return JobFailed(f"job {self.id} ({self.note.topic}): {ended}. {mend} Its log: {self.folder / LOG}{shown}")


CASE = re.compile(r"^\[(\d+)/(\d+)\] ([^:\n]+)(.*)$", re.MULTILINE)


class _Display:
    """How a job goes on: one line that changes on a terminal, plain lines elsewhere, on stderr or to a function."""

    def __init__(self, job: Job, report: Callable[[str], None] | None, results: bool) -> None:
        self._job, self._report, self._results = job, report, results
        self._said, self._cases, self._size = "", 0, 0
        self._bar: Any = None
        if report is None and sys.stderr.isatty():
            with contextlib.suppress(ModuleNotFoundError):  # the job is submitted: plain lines will do
                from tqdm import tqdm

                self._bar = tqdm(total=1, bar_format="{desc}", unit="case", dynamic_ncols=True, leave=True)

    def state(self, state: State | None) -> None:
        """Show what Slurm says; None for no answer."""
        said = f"job {self._job.id}: {state if state is not None else 'Slurm does not answer; asking again'}"
        if said == self._said:
            return
        self._said = said
        if self._bar is not None:
            self._bar.set_description_str(said)
            if state is not None and state.waiting and state.reason in NEVER:
                self._bar.write(said, file=sys.stderr)  # the bar's line is cut at the terminal's width
        else:
            self._say(said)

    def progress(self) -> None:
        """Show the cases that the log has gained."""
        path = self._job.folder / LOG
        size = path.stat().st_size if path.exists() else 0
        if size == self._size:
            return
        self._size, found = size, CASE.findall(self._job.log)
        for done, total, name, result in found[self._cases :]:
            text = f"{name}{result if self._results else ''}"
            if self._bar is not None:
                if self._bar.bar_format:  # the time in the queue is none of the cases'
                    self._bar.bar_format = None
                    self._bar.reset(int(total))
                self._bar.n = int(done)
                self._bar.set_postfix_str(text[:60], refresh=True)
            else:
                self._say(f"[{done}/{total}] {text}")
        self._cases = len(found)

    def _say(self, text: str) -> None:
        if self._report is not None:
            self._report(text)
        else:
            print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        """End the line."""
        if self._bar is not None:
            self._bar.close()


def book(cluster: Cluster, path: str | os.PathLike[str] | None = None) -> LabBook:
    """The lab book of a submission: `path`, $EFFLAB_LABBOOK, cluster.yml's, else the course's."""
    if path is None and not os.environ.get("EFFLAB_LABBOOK") and cluster.labbook:
        path = os.path.expandvars(cluster.labbook)
    return LabBook(path)


def submit(wanted: Request, labbook: LabBook, *, restart: bool = False) -> Job:
    """Submit a request. One of the same that ended early goes on where it stopped, unless `restart`.

    Raises:
        EfflabError: no Slurm, sbatch's refusal with what to change, or a lab book that cannot be written.
    """
    required()
    earlier = None if restart else _early(wanted, labbook)
    name = records.identifier(wanted.topic, wanted.scale or "")
    folder = earlier.folder if earlier else (labbook.path / "submitted" / name).absolute()
    script = render(wanted, folder)
    with _alone(earlier) if earlier else contextlib.nullcontext():
        records.write(folder / SCRIPT, script, replace=True)
        return _sent(wanted, labbook, folder, earlier)


def _sent(wanted: Request, labbook: LabBook, folder: Path, earlier: Job | None) -> Job:
    """Submit the script in a folder, and note the job there."""
    aside = {LOG: f"job-{earlier.id}.log", STATUS: f"status-{earlier.id}"} if earlier else {}
    _renamed(folder, aside)
    done = _slurm("sbatch", "--parsable", SCRIPT, cwd=folder)
    found = re.match(r"(\d+)", done.stdout.strip())
    if done.returncode == NO_ANSWER:
        raise EfflabError(
            f"submit: {done.stderr}. The job may be queued all the same: look with 'squeue --me' and cancel it with "
            f"'scancel JOB' before you submit again. Its script is in {folder}."
        )
    if done.returncode != 0 or not found:
        _renamed(folder, {new: old for old, new in aside.items()})
        if not earlier:
            shutil.rmtree(folder, ignore_errors=True)
        raise refusal(done.stderr or done.stdout)
    note = Note(
        jobs=[*(earlier.note.jobs if earlier else []), found[1]], topic=wanted.topic, scale=wanted.scale,
        nodes=wanted.nodes, gpus=wanted.gpus, submitted=records.now(),
    )  # fmt: skip
    try:
        records.write(folder / NOTE, json.dumps(note.model_dump(), indent=1) + "\n", replace=True)
    except BaseException:  # Ctrl-C too
        _slurm("scancel", found[1])  # nobody would find its record
        raise
    return Job(folder, note, labbook)


def _renamed(folder: Path, names: dict[str, str]) -> None:
    for old, new in names.items():
        with contextlib.suppress(OSError):
            (folder / old).rename(folder / new)


@contextlib.contextmanager
def _alone(earlier: Job) -> Iterator[None]:
    """Keep others from going on in the same folder.

    Raises:
        EfflabError: somebody else does so now, or has just done so.
    """
    path = earlier.folder / SUBMITTING
    with contextlib.suppress(OSError):
        if time.time() - path.stat().st_mtime > SILENCE:
            path.unlink()  # of a process that was killed
    same = f"submit: the same is being submitted in {earlier.folder}."
    try:
        path.touch(exist_ok=False)
    except FileExistsError:
        raise EfflabError(f"{same} If no process does so, remove {path}.") from None
    except OSError as error:
        raise EfflabError(f"{path}: cannot be written: {error.strerror}. Set EFFLAB_LABBOOK.") from None
    try:
        if Note.model_validate_json((earlier.folder / NOTE).read_bytes()) != earlier.note:
            raise EfflabError(f"{same} Another process was first: 'efflab submit --collect' waits for its job.")
        yield
    finally:
        path.unlink(missing_ok=True)


def jobs(labbook: LabBook) -> list[Job]:
    """The submissions of a lab book, oldest first; damaged notes are left out."""
    found = []
    for path in (labbook.path / "submitted").glob(f"*/{NOTE}"):
        with contextlib.suppress(OSError, ValidationError):
            found.append(Job(path.parent.absolute(), Note.model_validate_json(path.read_bytes()), labbook))
    return sorted(found, key=lambda j: (j.note.submitted, j.folder.name))


def find(number: str, labbook: LabBook) -> Job:
    """The newest submission with this number of Slurm's, or one that goes on with a job of that number.

    Raises:
        EfflabError: the lab book has none.
    """
    every = jobs(labbook)
    for job in reversed(every):
        if number in job.note.jobs:
            return job
    known = [j.id for j in every[-5:]]
    raise EfflabError(
        f"submit: job {number!r} was not submitted from the lab book {labbook.path}. "
        + (f"Its newest jobs: {', '.join(known)}." if known else "No job was. Set EFFLAB_LABBOOK to the one it was.")
    )


def _early(wanted: Request, labbook: LabBook) -> Job | None:
    """The newest submission of the same, if it ended early and left something to go on with.

    Raises:
        EfflabError: Slurm does not say whether it ended.
    """
    same = (wanted.topic, wanted.scale, wanted.nodes, wanted.gpus)
    alike = [j for j in jobs(labbook) if (j.note.topic, j.note.scale, j.note.nodes, j.note.gpus) == same]
    if not alike:
        return None
    job = alike[-1]
    measured = [p.name for p in (job.folder / "records").glob("*.json")]
    if not measured or any(not name.endswith(".partial.json") for name in measured):
        return None
    state = job.state()
    if state is None:
        raise EfflabError(
            f"submit: Slurm's controller does not answer, so that nobody knows whether job {job.id} of the same still "
            "runs. Submit again in a minute; --restart begins anew."
        )
    return job if state.ended else None
