"""The Sphinx extension behind the book.

It adds the directives that pages use (calculator, quiz, formula, claim, chapter, published-numbers,
recorded-runs), renders equations at build time, and keeps every page free of other hosts: what a theme or an
extension asks for elsewhere is removed, and the build fails if anything remains.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx
from sphinx.errors import ExtensionError

import efflab
from efflab.site import calculators, hosts, pages, quizzes, trim
from efflab.site.assets import asset, minified

HERE = Path(__file__).parent
QUIZ = "efflab-quiz"
MARKERS = ("efflab-calculator", QUIZ)


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the extension."""
    _equations(app)
    calculators.setup(app)
    quizzes.setup(app)
    pages.setup(app)
    hosts.setup(app)
    trim.setup(app)
    app.connect("builder-inited", _write_assets)
    app.connect("html-page-context", _page_assets)
    app.connect("build-finished", _remove_assets)
    return {"version": efflab.__version__, "parallel_read_safe": True, "parallel_write_safe": True}


def _equations(app: Sphinx) -> None:
    """KaTeX renders on the build machine; a wrong equation fails the build.

    It runs in V8 inside this process. The extension's own Node server would be a second process to wait for,
    and one that a failed build leaves behind.
    """
    from py_mini_racer import JSEvalException, MiniRacer
    from sphinxcontrib import katex

    v8 = MiniRacer()
    v8.eval(asset("katex/dist/katex.min.js").read_text(encoding="utf-8"))

    def render(latex: str, options: dict[str, Any] | None = None) -> str:
        try:
            return v8.call("katex.renderToString", latex, {"throwOnError": True} | (options or {}))
        except JSEvalException as error:
            raise ExtensionError(f"equation {latex!r}: {str(error).splitlines()[0]}") from None

    katex.render_latex = render
    app.setup_extension("sphinxcontrib.katex")
    app.config.katex_prerender = True
    app.config.katex_css_path = "katex.min.css"
    app.config.html_math_renderer = "katex"


def _write_assets(app: Sphinx) -> None:
    from efflab.calculators import bundle
    from efflab.exercises import front

    folder = Path(tempfile.mkdtemp(prefix="efflab-static-"))
    app._efflab_static = folder  # type: ignore[attr-defined]
    scripts = {topic_script(t): bundle.topic_script(t) for t in bundle.topics()}
    scripts |= {"efflab.js": f"{bundle.units_script()}\n{bundle.script()}"}
    scripts |= {"efflab-quiz.js": front.script(asset("tweetnacl/nacl-fast.min.js"))}
    styles = [(HERE / "site.css").read_text(encoding="utf-8"), front.style(), bundle.style()]
    for name, text in (scripts | {"efflab.css": "\n".join(styles)}).items():
        (folder / name).write_text(minified(text, name), encoding="utf-8")
    shutil.copy(asset("katex/dist/katex.min.css"), folder)
    shutil.copytree(asset("katex/dist/fonts"), folder / "fonts", ignore=shutil.ignore_patterns("*.ttf", "*.woff"))
    app.config.html_static_path.append(str(folder))
    app.add_css_file("efflab.css", priority=900)


def _page_assets(app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: Any) -> None:
    """A page loads the scripts of what it shows: units and calculators, quizzes, and its calculators' topics."""
    body = context.get("body", "")
    if not any(marker in body for marker in MARKERS):
        return
    shown = [topic_script(node["topic"]) for node in doctree.findall(calculators.calculator)] if doctree else []
    for name in ("efflab.js", *(["efflab-quiz.js"] if QUIZ in body else []), *dict.fromkeys(shown)):
        app.add_js_file(name, loading_method="defer")


def topic_script(topic: str) -> str:
    """The name of the script that carries a topic's calculators."""
    return f"efflab-{topic.replace('_', '-')}.js"


def _remove_assets(app: Sphinx, exception: Exception | None) -> None:
    shutil.rmtree(getattr(app, "_efflab_static", ""), ignore_errors=True)
