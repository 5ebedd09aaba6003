"""What happens to a submitted job: refused, cancelled, stopped, queued again, submitted from within another."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from efflab import cli, experiments, records, submit
from efflab.errors import EfflabError
from efflab.experiments.runner import Interrupted
from efflab.lab import Lab
from efflab.measure import distributed
from efflab.records import LabBook

ROOT = Path(__file__).parents[2]
SMOKE = ("roofline", "--scale", "smoke")
needs_ddp = pytest.mark.skipif("ddp" not in experiments.topics(), reason="the lab of several GPUs is not there yet")


def until(condition, what: str, seconds: float = 120):
    """What `condition` returns, once it is true."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.1)
    pytest.fail(f"{what}: not within {seconds} s")


def only(folder: Path) -> Path:
    (found,) = folder.iterdir()
    return found


def site(tmp_path: Path, text: str) -> str:
    """A cluster.yml; its path."""
    path = tmp_path / "cluster.yml"
    path.write_text(text)
    return str(path)


def held(tmp_path: Path) -> str:
    """A cluster.yml whose jobs wait until they are released."""
    return site(tmp_path, "sbatch: [--hold]\n")


def start(slurm, book: Path, *words: str) -> subprocess.Popen:
    """`efflab submit` as a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "efflab.cli", "submit", *words], cwd=ROOT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={**os.environ, **slurm.environment, "EFFLAB_LABBOOK": str(book)},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # tests in the background ignore it
    )  # fmt: skip


class Waiting:
    """`efflab submit` in a thread of this process."""

    def __init__(self, *words: str) -> None:
        self.said, self._status = "", list[int]()
        self._thread = threading.Thread(target=lambda: self._status.append(cli.main(["submit", *words])), daemon=True)
        self._thread.start()

    def until(self, words: str, capsys) -> None:
        """Wait until it has said these words on stderr."""

        def heard() -> bool:
            self.said += capsys.readouterr().err
            return words in self.said

        until(heard, words)

    def end(self) -> int:
        """Its exit status."""
        self._thread.join(120)
        return self._status[0]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--partition", "nosuch"], ("'partition' in cluster.yml", "sinfo")),
        (["--reservation", "nosuch"], ("--reservation", "'reservation' in cluster.yml")),
        (["--constraint", "nosuch"], ("--constraint", "'constraint' in cluster.yml")),
        (["--memory", "900G"], ("--memory", "'memory' in cluster.yml")),
        (["--cluster", "gpu: nosuch\n"], ("--gpus (0 measures on a CPU)", "'gpu'")),
        (["--cluster", "sbatch: [--nosuch=1]\n"], ("'sbatch' in cluster.yml", "unrecognized option")),
    ],
)
def test_a_refusal_says_what_to_change(options, says, slurm, book, tmp_path, capsys):
    if options[0] == "--cluster":
        options = ["--cluster", site(tmp_path, options[1])]
    assert cli.main(["submit", *SMOKE, *options]) == 2
    said = capsys.readouterr().err
    assert said.startswith("efflab: submit: sbatch refused the job: ")
    for words in says:
        assert words in said
    assert not list((book / "submitted").iterdir()), "nothing is left of a job that was refused"


def test_a_job_that_will_never_start_says_so_and_can_be_cancelled(slurm, book, capsys):
    waiting = Waiting(*SMOKE, "--time", "20:00:00")  # the partition's limit is an hour
    job = until(lambda: slurm.run("squeue", "-h", "-o", "%i").stdout.strip(), "the job is queued")
    waiting.until("It will not start like this", capsys)
    assert slurm.run("scancel", job).returncode == 0
    assert waiting.end() == 1
    waiting.until(f"job {job} (roofline): CANCELLED", capsys)
    assert "PENDING (Partition" in waiting.said


def test_ctrl_c_leaves_the_job_and_says_how_to_come_back(slurm, book, tmp_path, capsys):
    waiting = start(slurm, book, *SMOKE, "--cluster", held(tmp_path))
    try:
        early = ""
        while "JobHeldUser" not in early:
            line = waiting.stderr.readline()
            assert line, f"it ended and said:\n{early}"
            early += line
        job = slurm.run("squeue", "-h", "-o", "%i").stdout.strip()
        waiting.send_signal(signal.SIGINT)
        out, late = waiting.communicate(timeout=60)
    finally:
        waiting.kill()
    said = early + late
    assert waiting.returncode == 130, said
    assert f"Submitted: job {job}, 1 node with 1 GPU" in out
    assert f"efflab submit --collect {job}" in said and f"scancel {job}" in said and "Traceback" not in said
    assert cli.main(["submit", "--collect", job, "--no-wait"]) == 1
    assert "has not ended" in capsys.readouterr().out
    assert slurm.run("scontrol", "release", job).returncode == 0
    assert cli.main(["submit", "--collect", job]) == 0
    kept = only(book / "records")
    assert cli.main(["submit", "--collect", job]) == 0, "collecting twice changes nothing"
    assert only(book / "records") == kept
    assert records.load_record(kept).environment.slurm.job == job
    assert cli.main(["submit", "--collect", "999"]) == 2
    assert "was not submitted from" in capsys.readouterr().err


def test_a_failing_job_shows_the_end_of_its_log(slurm, book, tmp_path, capsys):
    text = "setup: ['echo a line of the setup']\npython: /nowhere/python\n"
    assert cli.main(["submit", *SMOKE, "--cluster", site(tmp_path, text)]) == 1
    said = capsys.readouterr().err
    assert "FAILED with exit status 127" in said
    assert "  | a line of the setup" in said and "/nowhere/python" in said
    assert (only(book / "submitted") / "status").read_text() == "127\n"
    assert not (book / "records").exists()


def test_a_job_submitted_from_within_a_job(slurm, book, tmp_path, monkeypatch):
    """As from a notebook that runs in a job: nothing of the outer job, or of a torchrun in it, reaches this one."""
    listed = tmp_path / "inner"
    inner = site(tmp_path, f"setup: ['env > {listed}']\npython: {sys.executable}\n")
    outer = tmp_path / "outer.sbatch"
    outer.write_text(
        "#!/bin/bash\nexport RANK=3 WORLD_SIZE=8 MASTER_ADDR=nowhere SBATCH_PARTITION=nosuch SLURM_MEM_PER_CPU=1\n"
        f"'{sys.executable}' -m efflab.cli submit {' '.join(SMOKE)} --gpus 0 --cluster '{inner}'\n"
    )
    monkeypatch.setitem(slurm.environment, "EFFLAB_LABBOOK", str(book))
    log = tmp_path / "outer.log"
    job = slurm.submit(f"--output={log}", "--cpus-per-task=1", "--gpus-per-node=1", "--mem=500M", str(outer), cwd=ROOT)
    assert slurm.wait(job) == "COMPLETED", log.read_text()[-3000:]
    record = records.load_record(only(book / "records"))
    assert record.environment.slurm.job != job
    variables = dict(line.split("=", 1) for line in listed.read_text().splitlines() if "=" in line)
    assert variables["SLURM_JOB_ID"] == record.environment.slurm.job
    assert variables["SLURM_CPUS_PER_TASK"] == str(submit.CPUS)
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "SBATCH_PARTITION", "SLURM_MEM_PER_CPU", "CUDA_VISIBLE_DEVICES"):
        assert name not in variables


def test_what_cluster_yml_says_reaches_the_job(slurm, book, tmp_path, monkeypatch):
    listed = tmp_path / "listed"
    text = f"""
account: someone
gpu: fake
cpus_per_gpu: 2
memory: 300M
sbatch: [--comment=hello]
setup: ['export FROM_SETUP=$EFFLAB_SCRATCH', 'env > {listed}']
python: {sys.executable}
environment: {{PLAIN: "a;b 'c' \\"d\\" `e`", HERE: "~/x/$SLURM_JOB_ID", NUMBER: 3}}
scratch: $HOME/scratch
data: /somewhere
labbook: "{tmp_path}/book of the site"
"""
    monkeypatch.delenv("EFFLAB_LABBOOK")
    assert cli.main(["submit", *SMOKE, "--cluster", site(tmp_path, text), "--out", str(tmp_path / "out")]) == 0
    record = records.load_record(only(tmp_path / "out"))
    job = record.environment.slurm.job
    home = os.path.expanduser("~")
    variables = dict(line.split("=", 1) for line in listed.read_text().splitlines() if "=" in line)
    assert variables["PLAIN"] == "a;b 'c' \"d\" `e`"
    assert variables["HERE"] == f"{home}/x/{job}"
    assert variables["NUMBER"] == "3"
    assert variables["EFFLAB_SCRATCH"] == variables["FROM_SETUP"] == f"{home}/scratch"
    assert variables["EFFLAB_DATA"] == "/somewhere"
    assert variables["SLURM_GPUS_PER_NODE"] == "fake:1"
    assert variables["SLURM_CPUS_PER_TASK"] == "2"
    assert variables["SLURM_MEM_PER_NODE"] == "300"
    assert (tmp_path / "book of the site/submitted").is_dir()


def test_a_preempted_job_goes_on_where_it_stopped(slurm, book, capsys):
    """As when another job needs the node: Slurm signals the script, which queues the job again."""
    preempt(slurm, book, capsys, "amp", lambda folder: "[3/" in (folder / "job.log").read_text())
    record = records.load_record(only(book / "records"))
    assert any(w.startswith("resumed at") for w in record.warnings)
    log = (only(book / "submitted") / "job.log").read_text()
    assert "asked to leave" in log and "is queued again" in log and "kept from the earlier run" in log


def asked(folder: Path) -> list[Path]:
    """The launches of a job whose ranks were asked to stop."""
    return [path.parent for path in folder.rglob(distributed.STOP) if distributed.asked_to_stop(path.parent)]


@contextlib.contextmanager
def standing_still(folder: Path):
    """Hold the ranks of a job where they are until they have been asked to stop: the signal takes its time."""
    here = [json.loads(path.read_text())["pid"] for path in folder.rglob("begun-*.json")]
    before = {*asked(folder)}  # of launches that are over
    try:
        for pid in here:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
        yield
        until(lambda: {*asked(folder)} - before, "they are asked to stop")
    finally:
        for pid in here:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def preempt(slurm, book: Path, capsys, topic: str, ready, *options: str, hold=contextlib.nullcontext) -> None:
    """Submit, signal the job when `ready` says so of its folder, let it start again soon, and collect."""
    waiting = Waiting(topic, "--scale", "smoke", *options)
    log = until(lambda: list(book.glob("submitted/*/job.log")), "the job runs")[0]
    until(lambda: ready(log.parent), "far enough")
    job = json.loads((log.parent / "job.json").read_text())["jobs"][0]
    with hold(log.parent):
        assert slurm.run("scancel", "--batch", "--signal=USR1", job).returncode == 0
    waiting.until(f"job {job}: queued again (1), PENDING", capsys)
    # Slurm revokes the credential of the first start and refuses one made in the same second, so not 'now'.
    soon = ("scontrol", "update", f"JobId={job}", "StartTime=now+2")
    until(lambda: slurm.run(*soon).returncode == 0, "it may start")
    assert waiting.end() == 0, log.read_text()[-3000:]


def test_a_cancelled_job_is_continued_by_submitting_again(slurm, book, capsys):
    waiting = Waiting("amp", "--scale", "smoke")
    log = until(lambda: list(book.glob("submitted/*/job.log")), "the job runs")[0]
    until(lambda: "[3/" in log.read_text(), "some cases")
    job = json.loads((log.parent / "job.json").read_text())["jobs"][0]
    slurm.run("scancel", job)
    assert waiting.end() == 1
    said = capsys.readouterr().err
    assert "CANCELLED" in said and "submit the same again" in said
    assert cli.main(["submit", "amp", "--scale", "smoke"]) == 0
    folder = only(book / "submitted")
    assert json.loads((folder / "job.json").read_text())["jobs"][0] == job
    assert "kept from the earlier run" in (folder / "job.log").read_text()
    assert any(w.startswith("resumed at") for w in records.load_record(only(book / "records")).warnings)


def test_the_lab_in_submit_mode(slurm, book, capsys, monkeypatch):
    lab = Lab("roofline", "submit", scale="smoke", gpus=0)
    lab.start()
    assert "Submit: measured in a Slurm job at smoke scale on 1 node with no GPUs." in capsys.readouterr().out
    with pytest.raises(EfflabError, match="commit to a prediction first"):
        lab.measure()
    lab.predict({"relu-large": "1 ms"})

    def stopped(*_: object, **__: object) -> None:
        raise Interrupted("stopped")

    with monkeypatch.context() as patched:
        patched.setattr(submit.Job, "wait", stopped)
        with pytest.raises(Interrupted):
            lab.measure()
    lab.measure()  # waits on for the same job
    said = capsys.readouterr().out
    assert said.count("Submitted: job") == 1
    assert "[1/" in said and not any(": " in line for line in said.splitlines() if line.startswith("[")), (
        "no result yet"
    )
    lab.calibration()
    lab.reconcile()
    (prediction,) = LabBook(book).predictions()
    assert prediction.inputs["mode"] == "submit"
    assert lab.record().predictions == [prediction.id]
    assert len(list((book / "submitted").iterdir())) == 1


@needs_ddp
def test_two_nodes(slurm, book, capsys):
    assert cli.main(["submit", "ddp", "--scale", "smoke", "--nodes", "2", "--gpus", "1"]) == 0
    record = records.load_record(only(book / "records"))
    assert record.environment.slurm.nodes == 2
    assert record.environment.ranks >= 2
    # No account of a made-up cluster's processors: two launches, and none where the counters may not be read.
    assert record.energy.joules is None and record.energy.why
    assert record.energy.source != "modelled" or "on each of 2 nodes" in record.energy.of
    assert "on n[1-2] since" in capsys.readouterr().err
    assert "#SBATCH --nodes=2" in (only(book / "submitted") / "job.sbatch").read_text()


@needs_ddp
def test_a_preempted_training_goes_on_at_its_checkpoint(slurm, book, tmp_path, capsys):
    cores = site(tmp_path, "cpus_per_gpu: 2\n")
    preempt(
        slurm,
        book,
        capsys,
        "ddp",
        lambda folder: list(folder.rglob("checkpoint.pt")),
        "--gpus",
        "2",
        "--cluster",
        cores,
        hold=standing_still,
    )
    record = records.load_record(only(book / "records"))
    assert any(w.startswith("resumed at") for w in record.warnings)
    (losses,) = record.find("loss", case="curve")
    (resumed,) = record.find("resumed_at", case="curve")
    assert 0 < resumed.values[0] < len(losses.values)
    (killed,) = record.find("difference", role="resume")  # from the same training, stopped elsewhere
    assert killed.values[0] < 1e-6
