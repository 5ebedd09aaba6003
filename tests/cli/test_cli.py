"""The command line: every command's help, its messages, its exit status, and life without Jupyter."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import pytest

from efflab import cli, labbook, reconcile, records
from efflab.records import LabBook, Prediction


@pytest.fixture(autouse=True)
def book(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "book"
    monkeypatch.setenv("EFFLAB_LABBOOK", str(folder))
    monkeypatch.delenv("EFFLAB_MODE", raising=False)
    return folder


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A smoke record of this machine, made by the command itself."""
    out = tmp_path_factory.mktemp("records")
    assert cli.main(["run", "roofline", "--scale", "smoke", "--device", "cpu", "--out", str(out)]) == 0
    (file,) = out.glob("*.json")
    return file


COMMANDS = ["doctor", "run", "submit", "replay", "labbook", "notebooks", "check"]


@pytest.mark.parametrize("command", [[], *[[c] for c in COMMANDS], ["labbook", "add"]], ids=" ".join)
def test_every_help_says_something(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main([*command, "--help"])
    assert caught.value.code == 0
    said = capsys.readouterr().out
    assert said.startswith("usage: efflab")
    assert len(said) > 150


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "nosuch"], "'nosuch' is not known"),
        (["run", "rooflin"], "Did you mean 'roofline'"),
        (["replay", "rooflin"], "Did you mean 'roofline'"),
        (["run", "roofline", "--scale", "gpu", "--device", "cpu"], "needs a GPU"),
        (["run", "roofline", "--scale", "multi", "--device", "cpu"], "no such scale"),
        (["run", "roofline", "--scale", "big", "--device", "cpu"], "not known"),
        (["run", "roofline", "--device", "abacus"], "'abacus' is not known"),
        (["replay", "roofline", "--record", "nowhere.json"], "no such file"),
        (["labbook", "add", "nowhere.json"], "no such file"),
        (["check", "nowhere.json"], "no such file"),
        (["labbook", "--out", "."], "this is a folder"),
    ],
)
def test_bad_input_is_one_message_and_status_2(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments) == 2
    captured = capsys.readouterr()
    assert said in captured.err
    assert captured.err.startswith("efflab: ")
    assert captured.err.count("\n") == 1
    assert "Traceback" not in captured.err


def test_no_command_prints_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 0
    assert "doctor" in capsys.readouterr().out


def test_replay_prints_a_banner_and_the_same_twice(smoke: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["replay", "roofline", "--record", str(smoke)]) == 0
    first = capsys.readouterr().out
    assert cli.main(["replay", "roofline", "--record", str(smoke)]) == 0
    assert capsys.readouterr().out == first
    assert first.startswith("Replay of a recorded run: ")
    assert first.splitlines()[0].endswith("Nothing is measured now."), "it may have been measured here"
    assert str(smoke.parent) not in first
    for word in ("predicted", "measured", "Median error", "by profiler"):
        assert word in first


def test_replay_refuses_a_record_of_another_topic(
    smoke: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other.json"
    other.write_text(smoke.read_text().replace('"topic": "roofline"', '"topic": "precision"'))
    assert cli.main(["replay", "roofline", "--record", str(other)]) == 2
    assert "'precision'" in capsys.readouterr().err


def test_check_tells_what_a_file_holds(smoke: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check", str(smoke)]) == 0
    assert "a record of roofline at smoke scale" in capsys.readouterr().out
    prediction = records.save(Prediction.new("roofline", {"time": (1.0, "s")}), tmp_path)
    progress = tmp_path / "progress.json"
    progress.write_text('{"schema": "efflab-progress/1", "questions": {}}')
    damaged = tmp_path / "damaged.json"
    damaged.write_text(smoke.read_text().replace('"threads"', '"thread"'))
    assert cli.main(["check", str(prediction), str(damaged), str(progress)]) == 2
    captured = capsys.readouterr()
    assert "a prediction for roofline" in captured.out
    assert "a progress file" in captured.out
    assert "threads" in captured.err
    newer = tmp_path / "newer.json"
    newer.write_text(smoke.read_text().replace("efflab-record/1", "efflab-record/2"))
    assert cli.main(["check", str(newer)]) == 2
    assert "Update efflab" in capsys.readouterr().err


# The lab book


class Page(HTMLParser):
    """Collects what a browser would load, and checks that elements close."""

    VOID = frozenset({"meta", "link", "br", "line", "circle", "polyline"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.stack: list[str] = []
        self.tags: list[str] = []
        self.feed(text)
        assert self.stack == [], f"not closed: {self.stack}"

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loads += [v or "" for k, v in attributes if k in ("src", "href", "srcset", "action")]
        if tag not in self.VOID:
            self.stack.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.stack.pop() == tag


def assert_self_contained(text: str) -> None:
    page = Page(text)
    assert all(load.startswith("data:") for load in page.loads)
    assert "script" not in page.tags
    assert not re.search(r"https?://|@import|url\(", text)


def test_an_empty_lab_book_says_how_to_start(book: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["labbook"]) == 0
    text = (book / "labbook.html").read_text()
    assert "How to start" in text
    assert "efflab run roofline" in text
    assert_self_contained(text)


def test_the_lab_book_shows_predictions_records_errors_and_progress(
    smoke: Path, book: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = records.load_record(smoke)
    measured = records.median(record.find(case="relu-large")[0].values)
    prediction = Prediction.new(
        "roofline",
        {"relu-large.time": (measured * 4, "s"), "relu-large.limiting_factor": (1.0, ""), "x<b>.time": (1.0, "s")},
        inputs={"record": record.id},
        note="<script>alert(1)</script>",
    )
    download = records.save(prediction, tmp_path)
    assert cli.main(["labbook", "add", str(smoke), str(download)]) == 0
    book.joinpath("progress.json").write_text(
        '{"schema": "efflab-progress/1", "questions": {"roofline-1": {"solved": true}, "roofline-2": {}}}'
    )
    (book / "records" / "torn.json").write_text("{")
    out = tmp_path / "page.html"
    assert cli.main(["labbook", "--out", str(out)]) == 0
    assert "torn.json" in capsys.readouterr().err
    text = out.read_text()
    assert_self_contained(text)
    assert "off by a factor of 4" in text
    assert "+300%" in text
    assert "torn.json" in text
    assert "questions solved" in text
    assert "x&lt;b&gt;" in text
    assert str(tmp_path) not in text.replace(str(book / "records" / "torn.json"), "")
    (pair,), problems = labbook.pairs(LabBook().predictions(), [record])
    assert problems == []
    assert pair.factor == pytest.approx(4)


def test_a_live_prediction_belongs_to_the_first_run_after_it(smoke: Path) -> None:
    record = records.load_record(smoke)
    outputs = {"relu-large.time": (1.0, "s")}
    before = Prediction.new("roofline", outputs).model_copy(update={"created": "2000-01-01T00:00:00Z"})
    after = Prediction.new("roofline", outputs).model_copy(update={"created": "2999-01-01T00:00:00Z"})
    assert len(labbook.pairs([before], [record])[0]) == 1
    assert labbook.pairs([after], [record]) == ([], [])


def test_a_prediction_belongs_to_the_record_that_names_it(smoke: Path) -> None:
    """A resumed run keeps the time of its first start, so the times alone would say: predicted too late."""
    record = records.load_record(smoke)
    late = Prediction.new("roofline", {"relu-large.time": (1.0, "s")}).model_copy(
        update={"created": "2999-01-01T00:00:00Z"}
    )
    early = late.model_copy(update={"id": "early", "created": "2000-01-01T00:00:00Z"})
    named = record.model_copy(update={"id": "named", "predictions": [late.id]})
    found = {p.prediction: p.record for p in labbook.pairs([early, late], [record, named])[0]}
    assert found == {"early": record.id, late.id: "named"}


def test_calculators_predictions_stand_beside_the_labs(smoke: Path, book: Path) -> None:
    record = records.load_record(smoke)
    sample = record.find(case="matmul-medium")[0]
    sizes = {"kernel": "matmul", "m": 64, "n": 64, "k": 64}
    assert sizes.items() <= sample.point.items()
    outputs = {"time": (records.median(sample.values) * 2, "s"), "flops": (2.0 * 64**3, "FLOP")}
    made = [
        Prediction.new("roofline", outputs, inputs=sizes | {"dtype": dtype}, source=source, calculator="explorer")
        for dtype, source in (("fp32", "site"), ("bf16", "calculator"))
    ]  # fmt: skip
    for prediction in made:
        LabBook().save_prediction(prediction.model_copy(update={"created": "2000-01-01T00:00:00Z"}))
    LabBook().save_record(record)
    assert cli.main(["labbook"]) == 0
    text = (book / "labbook.html").read_text()
    predictions = text[text.index("<h3>Predictions") : text.index("<h3>Records")]
    assert predictions.count("+100%") == 1
    assert predictions.count("matmul-medium") == 1
    assert predictions.count("not measured yet") == 1
    assert "Your first prediction was off by a factor of 2." in text


@pytest.mark.parametrize("damage", [{"dtype": None}, {"m": "abc"}])
def test_one_record_that_cannot_be_reconciled_does_not_hide_the_others(
    damage: dict[str, object], smoke: Path, book: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = json.loads(smoke.read_text())
    good = records.load_record(smoke)
    for sample in data["samples"]:
        if sample["point"]["case"] == "matmul-medium":
            sample["point"] = {k: v for k, v in (sample["point"] | damage).items() if v is not None}
    bad = records.Record.model_validate(data | {"id": "bad"})
    LabBook().save_record(good)
    LabBook().save_record(bad)
    measured = records.median(good.find(case="relu-large")[0].values)
    for record in (good, bad):
        LabBook().save_prediction(
            Prediction.new("roofline", {"relu-large.time": (measured * 3, "s")}, inputs={"record": record.id})
        )
    assert cli.main(["labbook"]) == 0
    said = capsys.readouterr().err
    assert said.count("record bad: samples[") == 1
    assert next(iter(damage)) in said
    text = (book / "labbook.html").read_text()
    assert "off by a factor of 3" in text
    assert "cannot be reconciled" in text
    assert "Median error" in text


def test_progress_is_by_topic_whatever_follows_the_first_hyphen(book: Path) -> None:
    book.mkdir()
    (book / "progress.json").write_text(
        '{"schema": "efflab-progress/1", "questions": {"roofline-1": {"solved": true}, '
        '"roofline-code-2": {"attempts": 1}, "scaling_laws-3": {}}}'
    )
    assert cli.main(["labbook"]) == 0
    text = (book / "labbook.html").read_text()
    rows = re.findall(r"<tr><td>([^<]*)</td><td class=n>(\d+)</td><td class=n>(\d+)</td></tr>", text)
    assert rows == [("roofline", "1", "2"), ("scaling laws", "0", "1")]


def test_a_damaged_progress_file_is_said(book: Path, capsys: pytest.CaptureFixture[str]) -> None:
    book.mkdir()
    (book / "progress.json").write_text("{")
    assert cli.main(["labbook"]) == 0
    assert "progress.json" in capsys.readouterr().err


# The doctor


def test_the_doctor_looks_at_everything(capsys: pytest.CaptureFixture[str]) -> None:
    status = cli.main(["doctor"])
    said = capsys.readouterr().out
    assert status in (0, 1)
    for what in ("Python", "torch", "device", "threads", "lab book", "disk space", "Slurm", "cluster.yml", "JupyterLab",
                 "caches", "energy"):  # fmt: skip
        assert f"{what}:" in said
    assert ("Ready" in said) == (status == 0)


def test_the_doctor_finds_a_lab_book_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("EFFLAB_LABBOOK", str(tmp_path / "file" / "book"))
    assert cli.main(["doctor"]) == 1
    assert "EFFLAB_LABBOOK" in capsys.readouterr().out


def test_the_doctor_gives_a_mend_for_each_missing_part(monkeypatch: pytest.MonkeyPatch) -> None:
    from efflab.measure import device

    monkeypatch.setattr(device, "compiler", lambda: None)
    monkeypatch.setattr(cli.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(cli.shutil, "which", lambda name: None)
    monkeypatch.setattr(cli.shutil, "disk_usage", lambda path: _Usage())
    found = {f.what: f for f in cli.examine()}
    assert found["C++ compiler"].state == "note"
    assert found["JupyterLab"].state == "note"
    assert found["pydantic"].state == "problem"
    assert found["disk space"].state == "problem"
    assert found["Slurm"].state == "note"
    assert all(f.mend for f in found.values() if f.state == "problem")


ENERGY = [  # what the driver or the system says, and what has to stand in the finding and in its mend
    ("denied", "only root may read", "chmod a+r /sys/class/powercap/intel-rapl:*/energy_uj"),
    ("absent", "no energy counter of a processor package", "a virtual machine hides the counter"),
    ("broken", "the energy counter does not answer", "an administrator can look at"),
    ("nonsense", "the energy counter does not answer: ValueError", "an administrator can look at"),
]


@pytest.mark.parametrize(("state", "said", "mend"), ENERGY, ids=[e[0] for e in ENERGY])
def test_the_doctor_says_why_a_processors_energy_cannot_be_measured_and_what_helps(
    state: str, said: str, mend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from efflab.measure import device, monitor

    if state != "absent":
        package = tmp_path / "intel-rapl:0"
        package.mkdir()
        (package / "name").write_text("package-0")
        (package / "energy_uj").write_text("a lot" if state == "nonsense" else "5000000")
    read = Path.read_text

    def answer(self: Path, *arguments: object, **more: object) -> str:
        if self.name == "energy_uj" and state in ("denied", "broken"):
            raise PermissionError if state == "denied" else OSError("gone")
        return read(self, *arguments, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(Path, "read_text", answer)
    monkeypatch.setattr(monitor, "POWERCAP", tmp_path)
    cpu = torch.device("cpu")
    here = device.environment(cpu).model_copy(update={"device": "Abacus", "cores": 2})
    monkeypatch.setattr(device, "cpuid", lambda: "")
    unrated = cli._energy_finding(cpu, here)
    assert unrated.state == "note" and said in unrated.said and mend in unrated.mend
    assert "records then hold none, since the catalog has no rated power" in unrated.said
    monkeypatch.setattr(device, "threads_per_core", lambda: 1.0)
    named = {"device": "AMD EPYC 9634 84-Core Processor", "virtual": False}
    rated = cli._energy_finding(cpu, here.model_copy(update=named))
    assert "modelled from the rated power, 6.9 W:" in rated.said, "290 W for 84 cores, of which two are used"


def test_the_doctor_says_that_a_processors_energy_is_measured_and_who_else_is_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from efflab.measure import device, monitor

    package = tmp_path / "intel-rapl:0"
    package.mkdir()
    (package / "name").write_text("package-0")
    (package / "energy_uj").write_text("5000000")
    monkeypatch.setattr(monitor, "POWERCAP", tmp_path)
    cpu = torch.device("cpu")
    here = device.environment(cpu)
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    monkeypatch.setattr(device, "cores", lambda: 4)
    assert cli._energy_finding(cpu, here) == cli.Finding("ok", "energy", "measured by RAPL's counter of 1 package")
    monkeypatch.setattr(device, "cores", lambda: 1)
    shared = cli._energy_finding(cpu, here)
    assert shared.state == "note" and "1 of 4 cores are this process's" in shared.said
    assert "a job that has the whole node" in shared.mend


@pytest.mark.parametrize(
    ("refused", "sliced", "said", "mend"),
    [
        ("", True, "MIG", "a whole GPU"),
        ("the package nvidia-ml-py is not installed", False, "not installed", "pip install nvidia-ml-py"),
        ("NVML is NVIDIA's, and this is an AMD GPU", False, "AMD GPU", "NVIDIA's counters"),
        ("NVML does not start: Driver Not Loaded", False, "Driver Not Loaded", "'nvidia-smi' must run here"),
    ],
    ids=["MIG", "no package", "AMD", "no driver"],
)
def test_the_doctor_says_why_a_gpus_energy_cannot_be_measured(
    refused: str, sliced: bool, said: str, mend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from efflab.measure import device

    @contextlib.contextmanager
    def nvml(_: object) -> Iterator[tuple[object, str]]:
        if refused:
            raise device.NoNVML(refused)
        yield SimpleNamespace(nvmlDeviceGetMigMode=lambda _: (int(sliced), int(sliced))), "a handle"

    monkeypatch.setattr(device, "nvml", nvml)
    gpu = device.environment(torch.device("cpu")).model_copy(update={"device": "NVIDIA H200", "power_limit": 650.0})
    found = cli._energy_finding(torch.device("cuda", 0), gpu)
    assert found.state == "note" and said in found.said and mend in found.mend
    assert "650 W: power limit of NVIDIA H200" in found.said


class _Usage:
    free = 2**20


# From elsewhere

BLOCKED = """
import sys, importlib.abc

class Block(importlib.abc.MetaPathFinder):
    names = ("IPython", "ipykernel", "ipywidgets", "jupyter", "jupyterlab", "jupytext", "nbformat", "nbclient",
             "anywidget", "sympy", "matplotlib", "sphinx", "myst_nb")
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self.names or name.startswith("jupyter"):
            raise ModuleNotFoundError(f"No module named {name!r} (blocked by the test)", name=name)

sys.meta_path.insert(0, Block())
from efflab import cli
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["run", "roofline", "--scale", "smoke", "--device", "cpu"], 0),
        (["replay", "roofline", "--record", "RECORD"], 0),
        (["labbook"], 0),
        (["check", "RECORD"], 0),
        (["run", "nosuch"], 2),
    ],
    ids=lambda value: " ".join(value[:2]) if isinstance(value, list) else str(value),
)
def test_without_any_jupyter_package(
    arguments: list[str], status: int, smoke: Path, root: Path, tmp_path: Path
) -> None:
    given = [str(smoke) if a == "RECORD" else a for a in arguments]
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED, *given], capture_output=True, text=True, cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(root)},
    )  # fmt: skip
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr


def test_as_a_module_from_an_uninstalled_checkout(root: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-S", "-c", "import sys; sys.path[:0] = sys.argv[1].split(':'); "
         "from efflab.cli import main; sys.exit(main(['--version']))",
         ":".join([str(root), *[p for p in sys.path if p.endswith("site-packages")]])],
        capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"efflab \d+\.\d+\.\d+\n", done.stdout)
    done = subprocess.run(
        [sys.executable, "-m", "efflab.cli", "run", "nosuch"], capture_output=True, text=True, cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(root)},
    )  # fmt: skip
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_a_closed_pipe_is_no_error(smoke: Path, root: Path) -> None:
    command = f"{sys.executable} -m efflab.cli replay roofline --record {smoke} | head -1"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": str(root)},
    )  # fmt: skip
    assert "Traceback" not in done.stderr
    assert done.stdout.startswith("Replay of a recorded run")


def test_a_record_names_no_host_and_no_user(smoke: Path) -> None:
    import getpass
    import platform

    text = smoke.read_text()
    for name in (platform.node(), str(Path.home())):
        if len(name) > 3:
            assert name not in text
    data = json.loads(text)
    user = getpass.getuser()
    assert user not in json.dumps(data["environment"]).replace(data["environment"]["device"], "")


@pytest.mark.parametrize(("command", "status"), [("--help", 0), ("--version", 0), ("doctor", 2), ("run", 2)])
def test_a_missing_package_is_named_with_its_mend(command: str, status: int, tmp_path: Path) -> None:
    blocker = (
        "import sys\n"
        "class Block:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] == 'pydantic':\n"
        "            raise ModuleNotFoundError('blocked', name='pydantic')\n"
        "sys.meta_path.insert(0, Block())\n"
        "from efflab.cli import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    words = [command, "roofline"] if command == "run" else [command]
    done = subprocess.run([sys.executable, "-c", blocker, *words], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == status
    assert "Traceback" not in done.stderr
    if status:
        assert "'pydantic' is not installed" in done.stderr
        assert "pip install pydantic" in done.stderr


def test_what_was_predicted_of_a_calibration_is_scored_too() -> None:
    run = records.recorded("roofline")[-1]
    copy = reconcile.topic("roofline").calibration(run)["copy"]
    outputs = {"calibration-copy.bandwidth": (copy / 2, "B/s"), "relu-large.limiting_factor": (1.0, "")}
    prediction = Prediction.new("roofline", outputs, inputs={"record": run.id})
    (pair,), problems = labbook.pairs([prediction], [])
    assert not problems and pair.output == "calibration-copy.bandwidth"
    assert pair.measured == copy and pair.factor == pytest.approx(2)


def test_the_error_is_told_run_by_run(book: Path) -> None:
    run = records.recorded("roofline")[-1]
    row = next(r for r in reconcile.topic("roofline").points(run) if r.case == "relu-large")
    for name, factor, year in (("first", 4.0, 2000), ("second", 2.0, 2001)):
        copy = run.model_copy(update={"id": name})
        LabBook().save_record(copy)
        outputs = {"relu-large.time": (row.measured * factor, "s")}
        made = Prediction.new("roofline", outputs, inputs={"record": name})
        LabBook().save_prediction(made.model_copy(update={"created": f"{year}-01-01T00:00:00Z"}))
    assert cli.main(["labbook"]) == 0
    text = (book / "labbook.html").read_text()
    assert "of the first run were off by a factor of 4 (median of 1), of the last by 2 (median of 1)" in text
