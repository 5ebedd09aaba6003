"""The house's own rules: dependencies, folders, imports, words."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from efflab import calculators, catalog, chapters, experiments, reconcile, records
from efflab.exercises import questions

ROOT = Path(__file__).parent.parent

# Where a topic has a file of its own. A chapter is complete when all of them are there.
SIBLINGS = {
    "page": "book/{}.md",
    "calculators": "efflab/calculators/{}.py",
    "experiment": "efflab/experiments/{}.py",
    "reconcile": "efflab/reconcile/{}.py",
    "pictures": "efflab/plots/{}.py",
    "published numbers": "efflab/catalog/published/{}.yaml",
    "lab source": "labs/source/{}.md",
    "lab": "labs/{}.ipynb",
    "exercise source": "notebooks/source/{}.md",
    "exercises": "notebooks/{}.ipynb",
    "questions": "efflab/exercises/bank/{}.yml",
    "code checks": "efflab/exercises/checks/{}.py",
    "answers by hand": "tests/exercises/by_hand/{}.py",
    "recorded runs": "labs/results/{}",
    "test of the experiment": "tests/experiments/test_{}.py",
    "test of reconcile": "tests/reconcile/test_{}.py",
}
# Files in those folders that belong to no topic.
SHARED = {
    "tests/experiments": set(experiments.SHARED),
    "efflab/calculators": {"__init__", *calculators.SHARED},
    "efflab/experiments": {"__init__", *experiments.SHARED},
    "efflab/reconcile": {"__init__"},
    "efflab/plots": {"__init__"},
    "efflab/exercises/checks": {"__init__", "records"},
    "book": {"intro", "validation", "results", "accelerators", "models", "references"},
}


def tracked() -> list[str]:
    return subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()


def topics() -> list[str]:
    """The chapters of the table of contents."""
    return [c.topic for c in chapters.every()]


def test_every_chapter_has_all_its_files():
    missing = [
        f"{t}: {what} ({path.format(t)})"
        for t in topics()
        for what, path in SIBLINGS.items()
        if not (ROOT / path.format(t)).exists()
    ]
    assert not missing, "chapters lack files: " + "; ".join(missing)
    assert topics(), "the table of contents names no chapter"


def test_no_file_is_orphaned():
    """Every file in a topic folder belongs to a chapter of the table of contents or to the shared ones."""
    orphans = []
    for pattern in SIBLINGS.values():
        folder, _, name = pattern.rpartition("/")
        suffix = name.removeprefix("{}")
        for path in (ROOT / folder).glob(f"*{suffix}"):
            stem = path.name.removesuffix(suffix) if suffix else path.name
            if stem not in topics() and stem not in SHARED.get(folder, set()) and not stem.startswith("."):
                orphans.append(str(path.relative_to(ROOT)))
    assert not orphans, "files of no chapter: " + ", ".join(orphans)


@pytest.mark.parametrize("topic", topics())
def test_a_chapter_is_of_one_piece(topic):
    """What a mistyped topic word, a forgotten section or an unshown question would break in silence."""
    assert experiments.get(topic).topic == topic
    runs = records.recorded(topic)
    assert runs and all(r.topic == topic for r in runs), f"labs/results/{topic} holds another topic's record, or none"
    assert any(r.scale != "smoke" for r in runs), f"{topic}: no recorded run above smoke scale"
    changed = [r.id for r in runs if r.environment.dirty]
    assert not changed, f"{topic}: recorded with uncommitted changes, so no commit reproduces it: {changed}"
    module = reconcile.topic(topic)
    assert module.summary(runs[-1]) and module.table(runs[-1])
    page = (ROOT / f"book/{topic}.md").read_text()
    shown = set(re.findall(r"```\{quiz\} (\S+)", page))
    bank = questions.bank(topic)
    assert len(shown) >= 6, f"{topic}: a chapter shows at least six questions"
    assert shown <= set(bank), f"{topic}: the page shows unknown questions {shown - set(bank)}"
    code = [q for q in bank.values() if q.kind == "code"]
    assert len(code) >= 4, f"{topic}: an exercise notebook has at least four code exercises"
    assert any(q.kind == "measurement" for q in bank.values()), f"{topic}: no exercise on the learner's own record"
    assert sum(p.topic == topic for p in catalog.published()) >= 1, f"{topic}: no published number"
    for part in ("{chapter}", "{formula}", "{calculator}", "{claim}", "{recorded-runs}", "{quiz}"):
        assert f"```{part}" in page or f"````{part}" in page, f"{topic}: the page has no {part}"


def test_published_numbers_belong_to_a_chapter():
    assert {p.topic for p in catalog.published()} <= set(topics())


def test_environment_yml_repeats_the_one_list():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    pip = next(d["pip"] for d in environment if isinstance(d, dict))
    assert pip == ["-c constraints.txt", *project["dependencies"], "-e ."]
    python = next(d for d in environment if isinstance(d, str) and d.startswith("python"))
    assert project["requires-python"].removeprefix(">=") in python


def test_every_dependency_is_pinned_to_a_version_that_fits():
    from packaging.requirements import Requirement

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pins = dict(
        line.lower().replace("_", "-").split("==")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line
    )
    for dependency in map(Requirement, project["dependencies"]):
        name = dependency.name.lower().replace("_", "-")
        assert name in pins, f"{name} is not in constraints.txt"
        assert dependency.specifier.contains(pins[name]), f"{name}=={pins[name]} does not satisfy {dependency}"


def test_one_version():
    import efflab

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert project["version"] == efflab.__version__ == citation["version"]


def test_links_of_the_readme_exist():
    for name in ("README.md", "CONTRIBUTING.md"):
        for target in re.findall(r"\]\(([^)#:]+)\)", (ROOT / name).read_text()):
            assert (ROOT / target).exists(), f"{name} links to {target}, which does not exist"


def test_imports_run_one_way():
    tool = Path(sys.executable).parent / "lint-imports"
    done = subprocess.run([tool], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    "pattern",
    [r"https?://(registry\.npmjs|pypi\.org|files\.pythonhosted|deb\.debian)", r"(?<![\w.])/(work|root|home)/[a-z]"],
    ids=["registry host", "local path"],
)
def test_no_file_names(pattern):
    found = []
    for name in tracked():
        path = ROOT / name
        if path.suffix in {".png", ".woff2"} or name == "tests/test_house.py" or not path.is_file():
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if re.search(pattern, line):
                found.append(f"{name}:{number}")
    assert not found, found


def test_readme_names_commands_that_exist():
    text = (
        (ROOT / "README.md").read_text() + (ROOT / "CONTRIBUTING.md").read_text() + (ROOT / "book/intro.md").read_text()
    )
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"(?:^|`)make ([a-z]+)", text, re.MULTILINE)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"make {target} does not exist"
