"""Every lab as a Slurm job."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from efflab import experiments

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "labs/slurm/lab.sbatch"


@pytest.mark.parametrize("topic", experiments.topics())
def test_the_batch_script_writes_a_record(topic, slurm, tmp_path):
    """The script that learners submit, unchanged, at the scale of a test."""
    slurm.environment["EFFLAB_LABBOOK"] = str(tmp_path / "labbook")
    slurm.environment["EFFLAB_RUN_OPTIONS"] = "--scale smoke"
    log = tmp_path / "job.log"
    job = slurm.submit(f"--output={log}", str(SCRIPT), topic, cwd=ROOT)
    state = slurm.wait(job)
    assert state == "COMPLETED", log.read_text()[-3000:]
    (path,) = (tmp_path / "labbook").glob("records/**/*.json")
    record = json.loads(path.read_text())
    assert record["topic"] == topic
    assert record["environment"]["slurm"]["job"] == job
    assert record["environment"]["slurm"]["nodes"] == 1
    assert record["environment"]["threads"] <= 4
    text = path.read_text()
    assert str(tmp_path) not in text and str(ROOT) not in text, "a record holds no path of the machine"


def test_a_job_that_cannot_write_fails_and_says_so(slurm, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    slurm.environment["EFFLAB_LABBOOK"] = str(tmp_path / "file" / "labbook")
    slurm.environment["EFFLAB_RUN_OPTIONS"] = "--scale smoke"
    log = tmp_path / "job.log"
    job = slurm.submit(f"--output={log}", str(SCRIPT), "roofline", cwd=ROOT)
    assert slurm.wait(job) == "FAILED"
    assert "labbook" in log.read_text() and "Traceback" not in log.read_text()


def test_a_job_from_another_folder_says_where_to_submit(slurm, tmp_path):
    log = tmp_path / "job.log"
    job = slurm.submit(f"--output={log}", str(SCRIPT), "roofline", cwd=tmp_path)
    assert slurm.wait(job) == "FAILED"
    assert "from the course's folder" in log.read_text()


def test_a_job_without_a_topic_says_what_is_missing(slurm, tmp_path):
    log = tmp_path / "job.log"
    job = slurm.submit(f"--output={log}", str(SCRIPT), cwd=ROOT)
    assert slurm.wait(job) == "FAILED"
    assert "name the lab's topic" in log.read_text()


def test_the_script_needs_sbatch(tmp_path):
    import subprocess

    bash = shutil.which("bash")
    done = subprocess.run([bash, str(SCRIPT)], capture_output=True, text=True, env={})
    assert done.returncode != 0 and "sbatch" in done.stderr
