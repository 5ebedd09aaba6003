"""The batch script that a request and a cluster.yml become. bash itself is the oracle: it reads and runs it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from efflab import experiments, submit
from efflab.errors import EfflabError
from efflab.submit import Cluster, Request, expand, load_cluster, minutes, render, request

ROOT = Path(__file__).parents[2]
BASH = shutil.which("bash")
EXAMPLE = ROOT / "labs/slurm/cluster.example.yml"
SEVERAL = [t for t in experiments.topics() if "multi" in experiments.get(t).scales]


def read(folder: Path, text: str) -> Cluster:
    path = folder / "cluster.yml"
    path.write_text(text, encoding="utf-8")
    return load_cluster(path)[0]


def directives(script: str) -> list[str]:
    return [line.removeprefix("#SBATCH ") for line in script.splitlines() if line.startswith("#SBATCH")]


def complete(script: str) -> None:
    """bash reads it, and sbatch, which stops at the first command, reads every line that is meant for it."""
    done = subprocess.run([BASH, "-n"], input=script, capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr, done.stderr
    lines = script.splitlines()
    first = next(i for i, line in enumerate(lines) if line and not line.startswith("#"))
    assert not any(line.startswith("#SBATCH") for line in lines[first:])
    names = [re.match(r"--([a-z-]+)", d)[1] for d in directives(script)]
    assert len(set(names)) == len(names), "an option is given twice"


# Which script, and with which options


@pytest.mark.parametrize("topic", SEVERAL or [None])
def test_the_script_fits_the_nodes_and_gpus(topic, tmp_path):
    one = render(request("roofline"), tmp_path)
    assert {"--nodes=1", "--gpus-per-node=1", "--job-name=efflab-roofline"} <= set(directives(one))
    none = render(request("roofline", gpus=0), tmp_path)
    assert not any("gpu" in d for d in directives(none))
    assert "--device cpu" in none and "--device" not in one.partition("# --- site")[2]
    for script in (one, none):
        complete(script)
        assert {"--requeue", "--open-mode=append", "--signal=B:USR1@60"} <= set(directives(script))
    if topic:
        assert request(topic, gpus=0, scale="multi").scale == "multi", "several ranks on the cores of one node"
        node = render(request(topic, gpus=4, cluster=Cluster(gpu="a100", cpus_per_gpu=3)), tmp_path)
        assert {"--nodes=1", "--gpus-per-node=a100:4", "--cpus-per-task=12"} <= set(directives(node))
        assert "--standalone" in node and "set -- " + topic in node and "--scale multi" in node
        nodes = render(request(topic, nodes=3, gpus=2), tmp_path)
        assert {"--nodes=3", "--gpus-per-node=2", "--cpus-per-task=8"} <= set(directives(nodes))
        assert "rdzv-backend" in nodes
        complete(node)
        complete(nodes)


def test_options_come_before_the_file(tmp_path):
    cluster = read(tmp_path, "partition: slow\naccount: ours\ntime: '00:10:00'\nsbatch: [--exclusive]\n")
    script = render(request("roofline", cluster=cluster, partition="fast", time="90", memory="8G"), tmp_path)
    found = set(directives(script))
    assert {"--partition=fast", "--account=ours", "--time=90", "--mem=8G", "--exclusive"} <= found
    complete(script)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ({"topic": "rooflin"}, "Did you mean 'roofline'"),
        ({"nodes": 0}, "nodes is 0; a whole number from 1 up"),
        ({"gpus": -1}, "gpus is -1; a whole number from 0 up"),
        ({"gpus": 2}, "roofline uses one GPU"),
        ({"nodes": 2}, "roofline uses one GPU"),
        ({"scale": "multi"}, "roofline has no such scale. It has: smoke"),
        ({"scale": "gpu", "gpus": 0}, "scale 'gpu' needs a GPU"),
        ({"scale": "cpu", "gpus": 1}, "scale 'cpu' measures a CPU"),
        ({"time": "soon"}, "submit: time: 'soon' is no time that Slurm takes"),
        ({"time": "2"}, "under 3 minutes"),
        (
            {"partition": "a b"},
            "submit: partition: a name without blanks, quotes and other signs of the shell is expected, got 'a b'",
        ),
        ({"account": "x\n#SBATCH --wrap=y"}, "submit: account: a name without blanks"),
        ({"memory": "lots"}, "submit: memory: 'lots' is no amount"),
    ],
)
def test_what_no_job_can_meet_is_refused_with_the_mend(words, says):
    with pytest.raises(EfflabError, match=re.escape(says)):
        request(**{"topic": "roofline", **words})


def test_several_nodes_and_a_container_are_refused():
    if not SEVERAL:
        pytest.skip("no topic uses several nodes yet")
    box = Cluster(container=submit.Container(image="x.sif"))
    with pytest.raises(EfflabError, match="from within a container"):
        request(SEVERAL[0], nodes=2, cluster=box)
    with pytest.raises(EfflabError, match="uses one device"):
        request(SEVERAL[0], gpus=2, scale="gpu")
    assert request(SEVERAL[0], gpus=2, cluster=box).scale == "multi"


def test_scale_cpu_takes_no_gpu():
    assert request("roofline", scale="cpu").gpus == 0
    assert request("roofline", scale="smoke").gpus == request("roofline").gpus == 1


@pytest.mark.parametrize("name", ["with % sign", "back\\slash", "line\nbreak"])
def test_folders_that_slurm_reads_as_patterns_are_refused(name, tmp_path):
    with pytest.raises(EfflabError, match="Choose another folder"):
        render(Request("roofline"), tmp_path / name)


def test_without_the_scripts_it_says_where_they_are(tmp_path, monkeypatch):
    monkeypatch.setattr(submit, "SCRIPTS", tmp_path)
    with pytest.raises(EfflabError, match="course's checkout"):
        render(Request("roofline"), tmp_path)


# Times, against sbatch's manual


@pytest.mark.parametrize(
    ("text", "expected"),
    [("90", 90), ("30:30", 30.5), ("01:30:00", 90), ("1-12", 36 * 60), ("1-12:30", 36.5 * 60), ("1-00:00:30", 1440.5)],
)
def test_times_are_read_as_slurm_reads_them(text, expected):
    assert minutes(text) == expected


@pytest.mark.parametrize("text", ["", "-1", "1:2:3:4", "1h", "1.5", "१२", "10 ", "UNLIMITED"])
def test_other_times_are_refused(text):
    with pytest.raises(ValueError, match="no time that Slurm takes"):
        minutes(text)


# cluster.yml


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("partitoin: x", "cluster.yml: key: 'partitoin' is not known. Did you mean 'partition'"),
        ("time: 1:30:00", "put it in quotes"),
        ("time: '1'", "under 3 minutes"),
        ("account: 12", "account: a text is expected: put it in quotes, got '12'"),
        ("partition: yes", "partition: a text is expected: put it in quotes"),
        ("partition: 'a b'", "partition: a name without blanks"),
        ("partition: 'a\n\n  #SBATCH --wrap=x'", "partition: a name without blanks"),
        ("cpus_per_gpu: 0", "cpus_per_gpu: input should be greater than or equal to 1"),
        ("cpus_per_gpu: many", "cpus_per_gpu: a whole number is expected, got 'many'"),
        ("memory: 64 GB", "memory: '64 GB' is no amount that Slurm takes"),
        ("modules: cuda", "modules: a list is expected"),
        ("modules: ['cuda; rm -r x']", "modules.0: a name without blanks"),
        ("modules: ['-f']", "modules.0: a name"),
        ("setup: ['if true']", "is not one complete line of bash"),
        ("setup: ['echo \"a']", "is not one complete line of bash"),
        ("setup: ['cat <<EOF']", "a here-document takes in the lines below"),
        ("setup: ['a \\']", "its last backslash"),
        ('setup: ["a\\nb"]', "holds the character '\\n'"),
        ("sbatch: ['--partition=x']", "Use the key 'partition'"),
        ("sbatch: ['--output=x']", "'efflab submit' sets it"),
        ("sbatch: ['--comment=a b']", "is no option of sbatch as one word"),
        ("sbatch: ['-p']", "is no option of sbatch as one word"),
        ("environment: {SLURM_JOB_ID: x}", "set by Slurm or torchrun"),
        ("environment: {RANK: x}", "set by Slurm or torchrun"),
        ("environment: {'A-B': x}", "A-B: a name"),
        ("environment: {A: $(id)}", "only $NAME and ${NAME} are expanded"),
        ("environment: {A: true}", "a text is expected"),
        ("scratch: '$(id)'", "only $NAME and ${NAME} are expanded"),
        ('python: "a\\x85b"', "holds the character"),
        ("labbook: $NOSUCHVARIABLE/x", "a variable that is not set on this machine"),
        ("container: x.sif", "container: the keys 'image' and 'command' are expected"),
        ("gpu: gpu:h100:2", "Write 'h100'"),
        ("environment: {ON: yes}", "a variable's name is True"),
        ("container: {command: docker run}", "container.image: field required"),
        ('container: {image: x, command: "a \'b"}', "is no command"),
        ("container: {imag: x}", "container.image: field required"),
        ("- a", "keys with values are expected"),
        ("account: a\naccount: b", "the key 'account' appears twice"),
        ("account: [", "not valid YAML"),
    ],
)
def test_a_bad_cluster_yml_names_the_key_and_the_mend(text, says, tmp_path):
    with pytest.raises(EfflabError) as caught:
        read(tmp_path, text)
    assert says in str(caught.value)
    assert "cluster.yml" in str(caught.value)


def test_where_cluster_yml_is_looked_for(tmp_path, monkeypatch):
    course, config = tmp_path / "course", tmp_path / "config"
    for folder in (course, config / "efflab"):
        folder.mkdir(parents=True)
    monkeypatch.setattr(submit, "ROOT", course)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(config))
    monkeypatch.delenv("EFFLAB_CLUSTER", raising=False)
    assert load_cluster() == (Cluster(), None)
    expected = []
    for path, how in (
        (config / "efflab/cluster.yml", None), (course / "cluster.yml", None), (tmp_path / "env.yml", "EFFLAB_CLUSTER"),
    ):  # fmt: skip
        path.write_text(f"account: a{len(expected)}\n")
        if how:
            monkeypatch.setenv(how, str(path))
        expected.append(path)
        assert load_cluster()[1] == path
    assert load_cluster(expected[0])[0].account == "a0"
    with pytest.raises(EfflabError, match="no such file"):
        load_cluster(tmp_path / "missing.yml")


def test_the_example_is_valid_as_it_is_and_uncommented(tmp_path):
    text = EXAMPLE.read_text()
    assert read(tmp_path, text) == Cluster()
    # An entry begins with a key, continues with deeper lines, and is no sentence.
    entries = re.sub(r"^# (?=[a-z_]+:|  +[A-Za-z_-]+)", "", text, flags=re.MULTILINE)
    cluster = read(tmp_path, entries.replace("labbook: ~", "labbook: /home"))
    assert {name for name in Cluster.model_fields if not getattr(cluster, name)} == set()
    complete(render(request("roofline", cluster=cluster), tmp_path))


# What a value may become in the script

NASTY = st.sampled_from(
    ["$(touch CANARY)", "`touch CANARY`", "; touch CANARY", "& touch CANARY #", "| touch CANARY", "\n touch CANARY",
     "' ; touch CANARY '", '" ; touch CANARY "', "$", "${HOME", "${HOME}", "$HOME", "~", "\\", "'", '"', "#", "*", " ",
     "!x", "(", "{a,b}", "é", "%j", "\t", "\u2028", "$'x'", "<(touch CANARY)", "> CANARY", "=", "[a]", "-"]
)  # fmt: skip
VALUES = st.lists(st.one_of(NASTY, st.text(max_size=4), st.sampled_from(["a", "/", "x1"])), min_size=1, max_size=4).map(
    "".join
)


def meant(text: str, home: str) -> str:
    """What a path of cluster.yml means, by Python's own rules."""
    if text == "~" or text.startswith("~/"):
        text = home + text[1:]
    return re.sub(r"\$(?:\{HOME\}|HOME(?![A-Za-z0-9_]))", lambda _: home, text)


@settings(max_examples=150)
@given(text=VALUES)
def test_a_path_becomes_one_word_of_bash_and_runs_nothing(text, tmp_path_factory):
    try:
        word = expand(text)
    except ValueError:
        return
    folder = tmp_path_factory.mktemp("cwd")
    done = subprocess.run([BASH, "-c", f"printf %s {word}"], cwd=folder, capture_output=True, env={"HOME": "/the home"})
    assert not list(folder.iterdir()), "a value has become a command"
    if b"is not set on this node" not in done.stderr:
        assert done.stdout.decode("utf-8", "surrogateescape") == meant(text, "/the home")


PROGRAM = """#!{python}
import json, os, sys
with open({out!r}, "w") as file:
    json.dump([sys.argv[1:], dict(os.environ)], file)
"""


@settings(max_examples=60)
@given(
    data=st.fixed_dictionaries(
        {},
        optional={
            **{k: VALUES for k in ("account", "partition", "constraint", "gpu", "memory", "data", "scratch", "python")},
            "environment": st.dictionaries(st.sampled_from(["A", "B", "C D", "E;x"]), VALUES, max_size=3),
            "modules": st.lists(VALUES, max_size=2),
            "sbatch": st.lists(VALUES.map(lambda v: f"--comment={v}"), max_size=1),
            "container": st.fixed_dictionaries({"image": VALUES}, optional={"command": VALUES}),
        },
    )
)
def test_no_value_becomes_a_command(data, tmp_path_factory):
    """Whatever stands in cluster.yml is refused, or arrives as it stands; what it says is never run."""
    folder = tmp_path_factory.mktemp("job")
    taken: dict[str, object] = {}
    for key, value in data.items():
        with contextlib.suppress(EfflabError):
            read(folder, yaml.safe_dump({key: value}))
            taken[key] = value
    cluster = read(folder, yaml.safe_dump(taken))
    script = render(request("roofline", cluster=cluster), folder)
    complete(script)
    work = folder / "work"
    work.mkdir()
    program = folder / "program"
    program.write_text(PROGRAM.format(python=sys.executable, out=str(folder / "out.json")))
    program.chmod(0o755)
    # Python is what the script starts; `module` is a function of the site's. Neither is the value's to choose here.
    script = re.sub(r"^python=.*\n", "", script, flags=re.MULTILINE)
    script = script.replace("# --- end of site", f"python=({program})\n# --- end of site")
    script = script.replace(f"cd {ROOT}", f"cd {work}").replace(". labs/slurm", f". {ROOT}/labs/slurm")
    done = subprocess.run(
        [BASH, "-c", f"module() {{ :; }}\n{script}"], cwd=folder, capture_output=True, text=True, errors="replace",
        env={"PATH": os.environ["PATH"], "HOME": "/the home", "SLURM_SUBMIT_DIR": str(work), "SLURM_JOB_ID": "1"},
    )  # fmt: skip
    assert not list(folder.rglob("*CANARY*")) and not list(work.iterdir()), "a value has become a command"
    if "is not set on this node" in done.stderr:
        return
    words, variables = json.loads((folder / "out.json").read_text())
    assert words == ["-m", "efflab.cli", "run", "roofline", "--out", str(folder / "records")]
    expected = {"EFFLAB_DATA": cluster.data, "EFFLAB_SCRATCH": cluster.scratch, **cluster.environment}
    for name, value in expected.items():
        if value is not None:
            assert variables[name] == meant(str(value), "/the home")


def test_predictions_and_a_lab_book_with_blanks_arrive_whole(tmp_path):
    folder = tmp_path / "a 'b' $HOME `c`"
    folder.mkdir()
    wanted = request("roofline", scale="smoke", predictions=["one", "two"])
    script = render(wanted, folder).replace(sys.executable, "echo")
    script = re.sub(r"^python=.*$", "python=(echo)", script, flags=re.MULTILINE)
    done = subprocess.run(
        [BASH, "-c", script], capture_output=True, text=True, cwd=tmp_path,
        env={"PATH": os.environ["PATH"], "SLURM_SUBMIT_DIR": str(tmp_path), "SLURM_JOB_ID": "7"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = f"run roofline --out {folder}/records --scale smoke --prediction one --prediction two"
    assert done.stdout.splitlines()[-1].endswith(said)
    assert (folder / "status").read_text() == "0\n"


def test_which_python_runs(tmp_path, monkeypatch):
    monkeypatch.delenv("EFFLAB_PYTHON", raising=False)

    def line(**keys: object) -> list[str]:
        text = render(request("roofline", cluster=Cluster(**keys)), tmp_path)
        return [w for w in text.partition("written by")[2].splitlines() if w.startswith(("python=", "unset"))]

    assert line() == [f"python=({sys.executable}) # the one that submitted it"]
    assert line(setup=["source x"]) == [], "what the setup has brought, as by hand"
    assert line(python="~/v/bin/python")[0] == "unset EFFLAB_PYTHON"
    box = {"image": "$HOME/x.sif", "command": "apptainer exec --nv --bind /a:/b"}
    assert "apptainer exec --nv --bind /a:/b" in line(container=submit.Container(**box))[1]
    assert line(container=submit.Container(**box))[1].endswith("/x.sif python3)")
    monkeypatch.setenv("EFFLAB_PYTHON", "/usr/bin/python3")
    assert line() == []


def says_its_path(path: Path) -> Path:
    """A program that prints its own path, in place of a Python."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\necho 'this is {path}'\n")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize(
    ("setup", "mine", "runs"),
    [
        ([], "", "sys/python"),  # the one that submitted it
        (["export NOTHING=1"], "", "course/.venv/bin/python"),
        (["source {tmp}/venv.sh"], "", "venv/bin/python"),
        ([". {tmp}/conda.sh"], "", "conda/bin/python"),
        (["export NOTHING=1"], "of mine/python", "of mine/python"),
        (["export NOTHING=1"], "env {tmp}/conda/bin/python", "conda/bin/python"),
    ],
)
def test_the_python_that_a_job_runs(setup, mine, runs, tmp_path, monkeypatch):
    """The course's folder has a .venv, as after 'make', and the shell that submits has an environment activated."""
    course = tmp_path / "course"
    (course / "labs").mkdir(parents=True)
    (course / "labs/slurm").symlink_to(submit.SCRIPTS)
    for name in ("sys/python", "course/.venv/bin/python", "venv/bin/python", "conda/bin/python", "of mine/python"):
        says_its_path(tmp_path / name)
    for name, variable in (("venv", "VIRTUAL_ENV"), ("conda", "CONDA_PREFIX")):
        place = tmp_path / name
        (tmp_path / f"{name}.sh").write_text(f'export {variable}="{place}" PATH="{place}/bin:$PATH"\n')
    monkeypatch.setattr(submit, "ROOT", course)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "sys/python"))
    monkeypatch.delenv("EFFLAB_PYTHON", raising=False)
    lines = tuple(line.format(tmp=tmp_path) for line in setup)
    script = render(request("roofline", cluster=Cluster(setup=list(lines))), tmp_path)
    environment = {
        "PATH": os.environ["PATH"], "SLURM_SUBMIT_DIR": str(course), "SLURM_JOB_ID": "7", "VIRTUAL_ENV": "/of/the/shell"
    }  # fmt: skip
    if mine:
        path = tmp_path / mine
        environment["EFFLAB_PYTHON"] = str(path) if path.exists() else mine.format(tmp=tmp_path)
    done = subprocess.run([BASH, "-c", script], capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"this is {tmp_path / runs}"


def test_a_setup_may_hold_a_blank_line(tmp_path):
    complete(render(request("roofline", cluster=Cluster(setup=[" ", "# nothing"])), tmp_path))


def test_a_setup_that_cannot_be_sourced_ends_the_job(tmp_path):
    script = render(request("roofline", cluster=Cluster(setup=["source /nowhere/activate"])), tmp_path)
    done = subprocess.run(
        [BASH, "-c", script], capture_output=True, text=True, cwd=tmp_path,
        env={"PATH": os.environ["PATH"], "SLURM_SUBMIT_DIR": str(tmp_path), "SLURM_JOB_ID": "7"},
    )  # fmt: skip
    assert done.returncode == 2
    assert "setup in cluster.yml failed: source /nowhere/activate" in done.stderr and "efflab.cli" not in done.stdout


# The environment of sbatch


def test_an_outer_job_and_torchrun_leave_nothing():
    outer = {
        "SLURM_CONF": "/etc/slurm.conf", "SLURM_JOB_ID": "1", "SLURM_MEM_PER_CPU": "100", "SBATCH_PARTITION": "x",
        "SQUEUE_FORMAT": "x", "RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "a", "MASTER_PORT": "1",
        "LOCAL_RANK": "0", "TORCHELASTIC_RUN_ID": "x", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "0",
        "TMPDIR": "/scratch/job1", "PATH": "/bin", "HOME": "/h", "EFFLAB_DATA": "/d",
    }  # fmt: skip
    assert submit.clean(outer) == {"SLURM_CONF": "/etc/slurm.conf", "PATH": "/bin", "HOME": "/h", "EFFLAB_DATA": "/d"}
    login = {"TMPDIR": "/tmp/me", "OMP_NUM_THREADS": "4", "HOME": "/h"}
    assert submit.clean(login) == login


def test_what_the_shell_says_to_sbatch_stands_in_the_script(tmp_path, monkeypatch):
    """A variable would win over the script. It becomes a line of it, where cluster.yml and the options are silent."""
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    monkeypatch.setenv("SBATCH_ACCOUNT", "mine")
    monkeypatch.setenv("SBATCH_PARTITION", "of-the-shell")
    wanted = request("roofline", cluster=Cluster(partition="of-the-file"))
    assert {"--account=mine", "--partition=of-the-file"} < {*directives(render(wanted, tmp_path))}
    assert "--account=other" in directives(render(request("roofline", account="other"), tmp_path))
    assert "SBATCH_ACCOUNT" not in submit.clean()
    monkeypatch.setenv("SBATCH_ACCOUNT", "two words")
    with pytest.raises(EfflabError, match="SBATCH_ variables of this shell: account: a name without blanks"):
        request("roofline")
    monkeypatch.setenv("SLURM_JOB_ID", "5")  # of the outer job
    assert not any("account" in line for line in directives(render(request("roofline"), tmp_path)))
