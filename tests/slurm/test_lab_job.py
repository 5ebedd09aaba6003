"""Every lab as a Slurm job: through `efflab submit`, and by hand with sbatch."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from efflab import cli, experiments

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "labs/slurm"


def of_the_job(path: Path, topic: str, job: str) -> dict:
    """A record, after looking at what every job's record has to say."""
    text = path.read_text()
    record = json.loads(text)
    assert record["topic"] == topic
    assert record["finished"]
    assert record["environment"]["slurm"]["job"] == job
    assert record["environment"]["threads"] <= 4
    assert str(path.parent) not in text and str(ROOT) not in text, "a record holds no path of the machine"
    return record


# The lab of several GPUs runs as a job on two nodes and on one in test_submit.py.
@pytest.mark.parametrize("topic", [t for t in experiments.topics() if t != "ddp"])
def test_a_submitted_lab_comes_back_as_a_record(topic, slurm, book, capsys):
    assert cli.main(["submit", topic, "--scale", "smoke"]) == 0
    said = capsys.readouterr()
    (path,) = (book / "records").glob("*.json")
    (folder,) = (book / "submitted").iterdir()
    (job,) = json.loads((folder / "job.json").read_text())["jobs"]
    record = of_the_job(path, topic, job)
    assert record["environment"]["slurm"]["nodes"] == 1
    assert f"job {job}: " in said.err and "[1/" in said.err
    assert str(path) in said.out
    assert (folder / "status").read_text() == "0\n"


def test_the_script_works_by_hand(slurm, tmp_path, monkeypatch):
    monkeypatch.setitem(slurm.environment, "EFFLAB_LABBOOK", str(tmp_path / "labbook"))
    log = tmp_path / "job.log"
    job = slurm.submit(f"--output={log}", str(SCRIPTS / "gpu.sbatch"), "roofline", "--scale", "smoke", cwd=ROOT)
    assert slurm.wait(job) == "COMPLETED", log.read_text()[-3000:]
    (path,) = (tmp_path / "labbook").glob("records/*.json")
    of_the_job(path, "roofline", job)


def test_a_job_that_cannot_write_fails_and_says_so(slurm, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setitem(slurm.environment, "EFFLAB_LABBOOK", str(tmp_path / "file" / "labbook"))
    log = tmp_path / "job.log"
    job = slurm.submit(f"--output={log}", str(SCRIPTS / "gpu.sbatch"), "roofline", "--scale", "smoke", cwd=ROOT)
    assert slurm.wait(job) == "FAILED"
    assert "labbook" in log.read_text() and "Traceback" not in log.read_text()


@pytest.mark.parametrize("script", ["gpu.sbatch", "node.sbatch", "nodes.sbatch"])
def test_a_script_says_what_it_needs(script, slurm, tmp_path):
    options = ("--gpus-per-node=2", "--cpus-per-task=2")
    elsewhere, nameless = tmp_path / "elsewhere.log", tmp_path / "nameless.log"
    first = slurm.submit(*options, f"--output={elsewhere}", str(SCRIPTS / script), "roofline", cwd=tmp_path)
    second = slurm.submit(*options, f"--output={nameless}", str(SCRIPTS / script), cwd=ROOT)
    assert slurm.wait(first) == slurm.wait(second) == "FAILED"
    assert "from the course's folder" in elsewhere.read_text()
    assert "name the lab's topic" in nameless.read_text() and "roofline" in nameless.read_text()
    done = subprocess.run(["bash", str(SCRIPTS / script)], capture_output=True, text=True, env={}, cwd=tmp_path)
    assert done.returncode != 0 and "sbatch" in done.stderr
