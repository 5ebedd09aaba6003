"""A submitted job from its first state to its record, with Slurm's answers written down beforehand."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from efflab import cli, records, submit
from efflab.errors import EfflabError
from efflab.lab import Lab
from efflab.records import Energy, LabBook, Slurm
from efflab.submit import Job, JobFailed, Note, State, parse_state

ROOT = Path(__file__).parents[2]

# What scontrol of Slurm 22.05 answered, shortened.
PENDING = (
    "JobId=12 JobName=efflab-roofline UserId=me(1) Priority=1 JobState=PENDING Reason=Resources Dependency=(null) "
    "Requeue=1 Restarts=0 BatchFlag=1 ExitCode=0:0 RunTime=00:00:00 TimeLimit=00:20:00 TimeMin=N/A "
    "StartTime=2030-01-02T03:04:05 EndTime=Unknown Partition=lab NodeList=(null) NumNodes=1-1 "
    "Command=/a b/JobState=x/job.sbatch WorkDir=/a b"
)
RUNNING = PENDING.replace("PENDING Reason=Resources", "RUNNING Reason=None").replace(
    "NodeList=(null)", "NodeList=n[1-2]"
)
AGAIN = PENDING.replace("Restarts=0", "Restarts=2").replace("Reason=Resources", "Reason=BeginTime")
DONE = RUNNING.replace("RUNNING", "COMPLETED")
FAILED = RUNNING.replace("RUNNING", "FAILED").replace("Reason=None", "Reason=NonZeroExitCode").replace("0:0", "3:0")
GONE = subprocess.CompletedProcess([], 1, "", "slurm_load_jobs error: Invalid job id specified\n")
SILENT = subprocess.CompletedProcess([], 1, "", "slurm_load_jobs error: Unable to contact slurm controller\n")


class Answers:
    """Stands in for Slurm: gives its answers in turn, the last one for ever."""

    def __init__(self) -> None:
        self.states: list[object] = [GONE]
        self.sbatch = subprocess.CompletedProcess([], 0, "12;cluster\n", "")
        self.asked: list[tuple[str, ...]] = []

    def __call__(self, *command: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        self.asked.append(command)
        if command[0] == "sbatch":
            return self.sbatch
        answer = self.states.pop(0) if len(self.states) > 1 else self.states[0]
        if callable(answer):
            answer = answer()
        return answer if not isinstance(answer, str) else subprocess.CompletedProcess([], 0, answer, "")


@pytest.fixture
def slurm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Answers:
    answers = Answers()
    monkeypatch.setattr(submit, "_slurm", answers)
    monkeypatch.setattr(submit, "required", lambda: None)
    monkeypatch.setattr(submit, "POLL", (0.01, 0.02))
    monkeypatch.setattr(submit, "LATE", 0.0)
    monkeypatch.setattr(submit, "_find", lambda path: Path(path) if path else None)
    monkeypatch.setenv("EFFLAB_LABBOOK", str(tmp_path / "book"))
    monkeypatch.delenv("EFFLAB_MODE", raising=False)
    return answers


def submitted(tmp_path: Path, topic: str = "roofline", job: str = "12") -> Job:
    folder = tmp_path / "book/submitted/one"
    (folder / "records").mkdir(parents=True)
    note = Note(jobs=[job], topic=topic, scale="smoke", nodes=1, gpus=1, submitted=records.now())
    (folder / "job.json").write_text(note.model_dump_json())
    return Job(folder, note, LabBook(tmp_path / "book"))


def measured(job: Job, number: str = "12", **changes: object) -> Path:
    """Put a recorded run into the job's folder as its record."""
    record = records.recorded("roofline")[-1].model_copy(update=changes)
    record.environment = record.environment.model_copy(update={"slurm": Slurm(job=number, nodes=1)})
    return records.save(record, job.folder / "records")


# What Slurm says


def test_states_are_read_from_slurms_answer():
    assert parse_state(PENDING) == State("PENDING", "Resources", "2030-01-02T03:04:05")
    assert parse_state(RUNNING) == State("RUNNING", "", "2030-01-02T03:04:05", "n[1-2]")
    assert parse_state(AGAIN).restarts == 2
    assert parse_state(FAILED).exit == 3 and parse_state(FAILED).signal is None
    killed = parse_state(FAILED.replace("ExitCode=3:0", "ExitCode=0:9"))
    assert killed.exit is None and killed.signal == 9
    with pytest.raises(EfflabError, match="no state"):
        parse_state("JobId=12")


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (PENDING, "PENDING (Resources: nodes have to become free), expected to start 2030-01-02 03:04"),
        (RUNNING, "RUNNING on n[1-2] since 2030-01-02 03:04"),
        (AGAIN, "queued again (2), PENDING (BeginTime: not before that time), expected to start 2030-01-02 03:04"),
        (PENDING.replace("2030-01-02T03:04:05", "Unknown").replace("Resources", "None"), "PENDING"),
        (PENDING.replace("Resources", "SomethingNew"), "PENDING (SomethingNew), expected to start 2030-01-02 03:04"),
        (DONE, "COMPLETED"),
    ],
)
def test_a_state_in_words(answer, said):
    assert str(parse_state(answer)) == said


def test_a_start_today_is_a_time_of_day():
    today = time.strftime("%Y-%m-%d")
    assert str(State("RUNNING", start=f"{today}T03:04:05", nodes="n1")) == "RUNNING on n1 since 03:04"


FAILED_WITH = "sbatch: error: Batch job submission failed: "


@pytest.mark.parametrize(
    ("said", "mend"),
    [
        (FAILED_WITH + "Invalid account or account/partition combination specified", "--account"),
        ("sbatch: error: invalid partition specified: x", "--partition"),
        (FAILED_WITH + "User's group not permitted to use this partition", "--partition"),
        (FAILED_WITH + "Invalid qos specification", "--qos"),
        (FAILED_WITH + "Job violates accounting/QOS policy (job submit limit)", "Wait until some have ended"),
        (FAILED_WITH + "Requested reservation is invalid", "--reservation"),
        (FAILED_WITH + "Invalid feature specification", "--constraint"),
        ("sbatch: error: Invalid generic resource (gres) specification", "--gpus (0"),
        (FAILED_WITH + "Requested time limit is invalid (missing or exceeds)", "--time"),
        ("sbatch: error: Memory specification can not be satisfied", "--memory"),
        (FAILED_WITH + "Requested node configuration is not available", "--gpus (0"),
        (FAILED_WITH + "Unable to contact slurm controller (connect failure)", "minute"),
        ("sbatch: fatal: Could not establish a configuration source", "login node"),
        ("sbatch: unrecognized option '--nosuch'", "'sbatch' in cluster.yml"),
        ("sbatch: error: a filter of this site: ask for less", "ask for less"),
        ("", "it said nothing"),
    ],
)  # fmt: skip
def test_what_sbatch_refuses_is_said_with_what_to_change(said, mend, slurm, tmp_path, capsys):
    slurm.sbatch = subprocess.CompletedProcess([], 1, "", said + "\n")
    assert cli.main(["submit", "roofline"]) == 2
    shown = capsys.readouterr().err
    assert mend in shown and shown.startswith("efflab: submit: sbatch refused the job: ")
    assert said.removeprefix("sbatch: error: ") in shown
    assert not list((tmp_path / "book/submitted").iterdir())


# Waiting


def test_waiting_shows_each_change_once(slurm, tmp_path):
    job = submitted(tmp_path)

    def write(text: str) -> str:
        (job.folder / "job.log").write_text(text)
        return RUNNING

    slurm.states = [
        PENDING, SILENT, PENDING, RUNNING,
        lambda: write("[1/2] a: 1 ms\n"), lambda: write("[1/2] a: 1 ms\nother\n[2/2] b: failed: x: y\n"), DONE,
    ]  # fmt: skip
    lines: list[str] = []
    state = job.wait(lines.append)
    assert state.name == "COMPLETED"
    assert [re.sub(r" since .*|,.*", "", line) for line in lines] == [
        "job 12: PENDING (Resources: nodes have to become free)", "job 12: Slurm does not answer; asking again",
        "job 12: PENDING (Resources: nodes have to become free)", "job 12: RUNNING on n[1-2]",
        "[1/2] a: 1 ms", "[2/2] b: failed: x: y", "job 12: COMPLETED",
    ]  # fmt: skip
    slurm.states = [DONE]
    hidden: list[str] = []
    job.wait(hidden.append, results=False)
    assert [line for line in hidden if line.startswith("[")] == ["[1/2] a", "[2/2] b"]


def test_a_controller_that_stays_silent_ends_the_waiting_and_not_the_job(slurm, tmp_path, monkeypatch):
    monkeypatch.setattr(submit, "SILENCE", 0.05)
    slurm.states = [SILENT]
    with pytest.raises(EfflabError, match="--collect 12"):
        submitted(tmp_path).wait(lambda line: None)


def test_the_controller_is_asked_less_and_less_often(slurm, tmp_path, monkeypatch):
    monkeypatch.setattr(submit, "POLL", (0.05, 0.4))
    slurm.states = [RUNNING]
    job = submitted(tmp_path)
    times: list[float] = []
    real = job.state
    monkeypatch.setattr(Job, "state", lambda self: (times.append(time.monotonic()), real())[1])
    threading.Timer(1.5, lambda: slurm.states.append(DONE)).start()
    job.wait(lambda line: None)
    assert len(times) < 15, "at the first rate it would have been 30 times"


def test_a_status_that_appears_is_looked_at_at_once(slurm, tmp_path, monkeypatch):
    monkeypatch.setattr(submit, "POLL", (30.0, 60.0))
    job = submitted(tmp_path)
    slurm.states = [RUNNING, DONE]
    threading.Timer(0.5, lambda: (job.folder / "status").write_text("0\n")).start()
    began = time.monotonic()
    assert job.wait(lambda line: None).name == "COMPLETED"
    assert time.monotonic() - began < 25


def test_on_a_terminal_a_bar_shows_the_cases(slurm, tmp_path, monkeypatch, capsys):
    job = submitted(tmp_path)
    (job.folder / "job.log").write_text("[1/2] a: 1 ms\n[2/2] b: 2 ms\n")
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    slurm.states = [PENDING, RUNNING, DONE]
    job.wait()
    said = capsys.readouterr().err
    assert "job 12: PENDING" in said and "2/2" in said and "b: 2 ms" in said


# Collecting


def test_a_finished_job_gives_its_record_once(slurm, tmp_path, capsys):
    job = submitted(tmp_path)
    used = Energy(source="nvml-counter", joules=5e5, window_s=1500.0, period_s=0.1, of="a counter", shared="others")
    path = measured(job, energy=used)
    slurm.states = [DONE]
    for _ in range(2):
        assert cli.main(["submit", "--collect", "12"]) == 0
        assert [p.name for p in (tmp_path / "book/records").iterdir()] == [path.name]
    assert records.load_record(tmp_path / "book/records" / path.name).energy == used
    assert cli.main(["submit", "--collect", "12", "--out", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / path.name).exists()
    assert "Kept in" in capsys.readouterr().out


def test_a_job_that_slurm_has_forgotten_is_known_by_its_status(slurm, tmp_path):
    job = submitted(tmp_path)
    (job.folder / "status").write_text("3\n")
    (job.folder / "job.log").write_text("a last word\n")
    assert job.wait(lambda line: None) == State("GONE", exit=3)
    with pytest.raises(JobFailed, match=r"exit status 3(.|\n)*  \| a last word"):
        job.collect(state=State("GONE", exit=3))
    (job.folder / "status").unlink()
    with pytest.raises(JobFailed, match="it was killed, or its node failed"):
        job.collect(state=job.wait(lambda line: None))
    measured(job)
    assert job.collect(state=State("GONE"))[0].topic == "roofline"


@pytest.mark.parametrize(
    ("state", "says"),
    [
        (State("FAILED", exit=2), "FAILED with exit status 2"),
        (State("FAILED", signal=9), "ended by signal 9"),
        (State("FAILED", reason="JobLaunchFailure", signal=53), "'labbook' in cluster.yml"),
        (State("OUT_OF_MEMORY"), "--memory"),
        (State("TIMEOUT"), "--time"),
        (State("NODE_FAIL"), "submit the same again"),
        (State("CANCELLED"), "administrator"),
        (State("PREEMPTED"), "took its place"),
        (State("COMPLETED", exit=0), "left no complete record"),
        (State("SOMETHING_NEW"), "SOMETHING_NEW"),
        (None, "Slurm knows it no more"),
    ],
)
def test_each_end_has_its_mend(state, says, slurm, tmp_path):
    job = submitted(tmp_path)
    with pytest.raises(JobFailed, match=re.escape(says)) as caught:
        job.collect(state=state)
    assert str(job.folder / "job.log") in str(caught.value)


def test_only_a_complete_record_of_this_job_is_taken(slurm, tmp_path):
    job = submitted(tmp_path)
    measured(job, finished=None)
    with pytest.raises(JobFailed):
        job.collect(state=State("TIMEOUT"))
    measured(job, number="13", id="another")
    with pytest.raises(EfflabError, match="by job 13, not of 'roofline' by job 12"):
        job.collect(state=State("COMPLETED", exit=0))
    (job.folder / "records/another.json").write_text("{")
    with pytest.raises(EfflabError, match="cut off"):
        job.collect(state=State("COMPLETED", exit=0))


def test_a_record_that_the_file_system_shows_late_is_waited_for(slurm, tmp_path, monkeypatch):
    monkeypatch.setattr(submit, "LATE", 30.0)
    job = submitted(tmp_path)
    threading.Timer(0.3, lambda: measured(job)).start()
    assert job.collect(state=State("COMPLETED", exit=0))[0].topic == "roofline"


def test_the_log_of_a_failed_lab_shows_no_result(slurm, tmp_path):
    job = submitted(tmp_path)
    (job.folder / "job.log").write_text("[1/2] a: 1 ms\nError: no room\n")
    with pytest.raises(JobFailed) as caught:
        job.collect(state=State("FAILED", exit=1), results=False)
    assert "  | [1/2] a\n  | Error: no room" in str(caught.value)


# Submitting


def test_the_same_goes_on_where_a_job_has_ended_early(slurm, tmp_path, capsys):
    job = submitted(tmp_path)
    measured(job, finished=None).rename(job.folder / "records/roofline-smoke-0.partial.json")
    (job.folder / "job.log").write_text("earlier\n")
    slurm.states = [RUNNING]
    wanted = ["submit", "roofline", "--scale", "smoke", "--no-wait"]
    assert cli.main(wanted) == 0
    assert len(list((tmp_path / "book/submitted").iterdir())) == 2, "one that still runs is left alone"
    shutil.rmtree(next(p for p in (tmp_path / "book/submitted").iterdir() if p.name != "one"))
    slurm.states = [GONE]
    assert cli.main([*wanted, "--restart"]) == 0
    assert len(list((tmp_path / "book/submitted").iterdir())) == 2, "--restart begins anew"
    shutil.rmtree(next(p for p in (tmp_path / "book/submitted").iterdir() if p.name != "one"))
    slurm.sbatch = subprocess.CompletedProcess([], 0, "15\n", "")
    assert cli.main(wanted) == 0
    assert json.loads((job.folder / "job.json").read_text())["jobs"] == ["12", "15"]
    assert (job.folder / "job-12.log").read_text() == "earlier\n"
    assert "efflab submit --collect 15" in capsys.readouterr().out
    for number in ("12", "15"):
        found = submit.find(number, LabBook(tmp_path / "book"))
        assert (found.folder, found.id) == (job.folder, "15"), "the earlier number leads to the job that goes on"
    assert not list(job.folder.glob("status*")) and not (job.folder / submit.SUBMITTING).exists()


def early(tmp_path: Path) -> Job:
    """A submission that ended early, with what it left."""
    job = submitted(tmp_path)
    measured(job, finished=None).rename(job.folder / "records/roofline-smoke-0.partial.json")
    (job.folder / "job.log").write_text("earlier\n")
    (job.folder / "status").write_text("130\n")
    return job


def again(job: Job) -> Job:
    return submit.submit(submit.request("roofline", gpus=1, scale="smoke"), job.labbook)


def test_nothing_begins_anew_while_the_controller_is_silent(slurm, tmp_path):
    job = early(tmp_path)
    slurm.states = [SILENT]
    with pytest.raises(EfflabError, match=r"does not answer.*whether job 12 .*Submit again in a minute"):
        again(job)
    assert [c[0] for c in slurm.asked] == ["scontrol"]
    assert [p.name for p in (tmp_path / "book/submitted").iterdir()] == ["one"]


def test_a_refusal_leaves_the_earlier_jobs_files(slurm, tmp_path):
    job = early(tmp_path)
    slurm.sbatch = subprocess.CompletedProcess([], 1, "", "sbatch: error: Invalid qos specification\n")
    with pytest.raises(EfflabError, match="Change --qos"):
        again(job)
    assert (job.folder / "job.log").read_text() == "earlier\n"
    assert (job.folder / "status").read_text() == "130\n"
    assert not list(job.folder.glob("*-12*")) and not (job.folder / submit.SUBMITTING).exists()
    slurm.sbatch = subprocess.CompletedProcess([], 0, "15\n", "")
    assert again(job).note.jobs == ["12", "15"], "and it can be submitted then"
    assert not (job.folder / "status").exists()


def test_a_silent_sbatch_may_have_queued_the_job(slurm, tmp_path):
    """Nothing that such a job needs is removed, and nobody is told to submit it again."""
    job = early(tmp_path)
    slurm.sbatch = subprocess.CompletedProcess([], submit.NO_ANSWER, "", "sbatch gave no answer in 120 s")
    with pytest.raises(EfflabError, match=r"may be queued all the same: look with 'squeue --me'"):
        again(job)
    assert (job.folder / "job.sbatch").exists() and not (job.folder / "job.log").exists()
    with pytest.raises(EfflabError, match="may be queued"):
        submit.submit(submit.request("precision"), job.labbook)
    assert len(list((tmp_path / "book/submitted").glob("*/job.sbatch"))) == 2


def test_a_second_one_does_not_change_the_first_ones_script(slurm, tmp_path, monkeypatch):
    job = early(tmp_path)
    (job.folder / "job.sbatch").write_text("the first one's")
    (job.folder / submit.SUBMITTING).touch()
    with pytest.raises(EfflabError, match="being submitted"):
        again(job)
    assert (job.folder / "job.sbatch").read_text() == "the first one's"


def test_of_two_that_submit_the_same_one_goes_on(slurm, tmp_path, monkeypatch):
    """The second one looks before the first one's job is noted, and submits while it is, or after."""
    job = early(tmp_path)
    (job.folder / submit.SUBMITTING).touch()
    with pytest.raises(EfflabError, match=r"being submitted in .*If no process does so, remove"):
        again(job)
    os.utime(job.folder / submit.SUBMITTING, (0, 0))  # of a process that was killed long ago
    assert again(job).note.jobs == ["12", "12"]
    monkeypatch.setattr(submit, "_early", lambda *_: job)
    with pytest.raises(EfflabError, match="Another process was first"):
        again(job)
    assert [c[0] for c in slurm.asked].count("sbatch") == 1


def test_a_dry_run_needs_no_slurm_and_leaves_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("EFFLAB_LABBOOK", str(tmp_path / "book"))
    monkeypatch.setattr(submit, "_find", lambda path: Path(path) if path else None)
    assert cli.main(["submit", "roofline", "--dry-run", "--account", "me"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("#!/bin/bash\n") and "#SBATCH --account=me\n" in said
    assert not list(tmp_path.iterdir())
    assert cli.main(["submit", "roofline"]) == 2
    assert "'efflab run', mode 'live'" in capsys.readouterr().err
    with pytest.raises(EfflabError, match="mode 'replay'"):
        Lab("roofline", "submit")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["rooflin"], "Did you mean 'roofline'"),
        ([], "name a topic, one of"),
        (["roofline", "--collect", "12"], "Leave out 'roofline'"),
        (["--collect", "12"], "No job was. Set EFFLAB_LABBOOK"),
        (["roofline", "--gpus", "2"], "uses one GPU"),
        (["ddp", "--scale", "multi"], "one was asked for. Use --scale gpu, or ask for more: --gpus 4, or --nodes 2"),
        (["roofline", "--time", "soon"], "no time that Slurm takes"),
        (["roofline", "--cluster", "missing.yml"], "no such file"),
    ],
)
def test_bad_input_is_one_message(words, says, slurm, capsys):
    assert cli.main(["submit", *words]) == 2
    said = capsys.readouterr().err
    assert says in said and said.count("\n") == 1
    assert not slurm.asked, "Slurm was not troubled"


def test_a_prediction_has_to_be_one(capsys):
    assert cli.main(["run", "roofline", "--scale", "smoke", "--prediction", "../x"]) == 2
    assert "not the id of a prediction" in capsys.readouterr().err


def test_a_lab_book_that_cannot_be_written_submits_nothing(slurm, tmp_path, capsys):
    (tmp_path / "book").mkdir()
    (tmp_path / "book/submitted").write_text("in the way")
    assert cli.main(["submit", "roofline"]) == 2
    assert "cannot be written" in capsys.readouterr().err
    assert not slurm.asked


@pytest.mark.parametrize("reason", [records.NotSaved("the disk is full", None, ""), KeyboardInterrupt()])
def test_a_job_whose_note_cannot_be_written_is_cancelled(reason, slurm, tmp_path, monkeypatch):
    real = records.write

    def full(path: Path, text: str, **options: bool) -> Path:
        if Path(path).name == submit.NOTE:
            raise reason
        return real(path, text, **options)

    monkeypatch.setattr(records, "write", full)
    with pytest.raises(type(reason)):
        submit.submit(submit.request("roofline"), LabBook(tmp_path / "book"))
    assert slurm.asked[-1] == ("scancel", "12")


# The lab


def test_arguments_of_another_mode_are_refused(slurm, tmp_path):
    with pytest.raises(EfflabError, match="belong to mode 'submit'"):
        Lab("roofline", "live", gpus=1, labbook=tmp_path)
    with pytest.raises(EfflabError, match="Leave device out"):
        Lab("roofline", "submit", device="cpu", labbook=tmp_path)
    with pytest.raises(EfflabError, match="uses one GPU"):
        Lab("roofline", "submit", gpus=2, labbook=tmp_path)


def test_a_labs_cases_are_those_of_the_scale_that_will_run(slurm, tmp_path):
    """What may be predicted beforehand is what a recorded device of this kind has measured."""
    cpu = next(r for r in records.recorded("roofline") if r.scale == "cpu")
    cases = {str(s.point["case"]) for s in cpu.samples if s.point.get("role") == "kernel"}
    offered = set(Lab("roofline", "submit", gpus=0, labbook=tmp_path).cases())
    assert cases and len(cases & offered) > 0.8 * len(cases)
    gpu = set(Lab("precision", "submit", labbook=tmp_path).cases())
    assert any("tf32" in case for case in gpu), "a CPU has no tf32"


def test_a_failed_job_leaves_the_lab_free_to_submit_again(slurm, tmp_path, capsys):
    lab = Lab("roofline", "submit", scale="smoke", labbook=tmp_path / "book")
    lab.predict({"relu-large": "1 ms"})
    slurm.states = [FAILED]
    for _ in range(2):
        with pytest.raises(JobFailed, match="exit status 3"):
            lab.measure()
    assert sum(c[0] == "sbatch" for c in slurm.asked) == 2
    script = next((tmp_path / "book/submitted").glob("*/job.sbatch")).read_text()
    (prediction,) = LabBook(tmp_path / "book").predictions()
    assert f"--scale smoke --prediction {prediction.id}" in script


def test_a_record_that_cannot_be_kept_is_collected_again(slurm, tmp_path, capsys, monkeypatch):
    lab = Lab("roofline", "submit", scale="smoke", labbook=tmp_path / "book")
    lab.predict({"relu-large": "1 ms"})

    def ended(job: Job, *_: object, **__: object) -> submit.State:
        measured(job)
        return submit.State("COMPLETED", exit=0)

    def full(*_: object) -> None:
        raise records.NotSaved("the disk is full", None, "")

    monkeypatch.setattr(Job, "wait", ended)
    with monkeypatch.context() as patched, pytest.raises(records.NotSaved):
        patched.setattr(records, "save", full)
        lab.measure()
    lab.measure()
    assert [c[0] for c in slurm.asked].count("sbatch") == 1
    assert "had 1 GPU in each node and measured the CPU" in capsys.readouterr().out


# The script's shell: what it does with the scheduler's signals

PROGRAM = """
import pathlib, signal, sys, time
here = pathlib.Path(sys.argv[-1])
def leave(*_):
    (here / "saved").write_text("")
    sys.exit(int((here / "exit").read_text()))
signal.signal(signal.SIGUSR1, leave)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
(here / "ready").write_text("")
for _ in range(600):
    time.sleep(0.05)
    if (here / "end").exists():
        sys.exit(int((here / "exit").read_text()))
"""


@pytest.mark.parametrize(
    ("sent", "exit_", "restarts", "again"),
    [
        (signal.SIGUSR1, 130, 0, True),
        (signal.SIGUSR1, 0, 0, False),  # it had just finished
        (signal.SIGTERM, 130, 0, False),  # cancelled
        (None, 3, 0, False),
        (signal.SIGUSR1, 130, 10, False),  # it never gets further
    ],
)
def test_only_a_job_that_was_asked_to_leave_and_did_not_finish_is_queued_again(
    sent, exit_, restarts, again, tmp_path, monkeypatch
):
    (tmp_path / "scontrol").write_text(f'#!/bin/bash\necho "$@" >> {tmp_path}/asked\n')
    (tmp_path / "scontrol").chmod(0o755)
    (tmp_path / "program.py").write_text(PROGRAM)
    (tmp_path / "exit").write_text(str(exit_))
    text = submit.render(submit.request("roofline"), tmp_path)
    text = re.sub(r"^python=.*$", f"python=({sys.executable} {tmp_path}/program.py)", text, flags=re.MULTILINE)
    text = text.replace('run_lab "$@"', f"run_lab roofline {tmp_path}")
    script = tmp_path / "job.sbatch"
    script.write_text(text)
    running = subprocess.Popen(
        ["bash", str(script)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_SUBMIT_DIR": str(tmp_path),
             "SLURM_JOB_ID": "5", "SLURM_RESTART_COUNT": str(restarts)},
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 60
        while not (tmp_path / "ready").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        if sent is not None:
            running.send_signal(sent)  # to the shell alone, as --signal=B: does
        if sent is not signal.SIGUSR1:
            time.sleep(0.3)
            assert running.poll() is None, "the shell outlives what it was sent"
            (tmp_path / "end").write_text("")
        said, _ = running.communicate(timeout=60)
    finally:
        if running.poll() is None:
            os.killpg(running.pid, signal.SIGKILL)
    assert running.returncode == exit_, said
    assert (tmp_path / "saved").exists() == (sent is signal.SIGUSR1)
    assert (tmp_path / "asked").exists() == again
    if again:
        assert (tmp_path / "asked").read_text() == "requeue 5\n" and "is queued again" in said
    assert (tmp_path / "status").exists() != again, "a job that is queued again has not ended"


def test_the_doctor_looks_at_cluster_yml(tmp_path, monkeypatch):
    monkeypatch.setattr(submit, "ROOT", tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv("EFFLAB_CLUSTER", raising=False)

    def finding() -> cli.Finding:
        return next(f for f in cli.examine() if f.what == "cluster.yml")

    assert finding().state == "ok" and "cluster.example.yml" in finding().said
    (tmp_path / "cluster.yml").write_text("account: x\n")
    assert finding().state == "ok" and "is valid" in finding().said
    (tmp_path / "cluster.yml").write_text("acount: x\n")
    assert finding().state == "problem" and "Did you mean 'account'" in finding().mend
