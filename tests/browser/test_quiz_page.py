"""The quiz in a real browser: from a file and under a strict policy, by mouse and by keyboard, saved and not saved."""

from __future__ import annotations

import functools
import html
import http.server
import json
import os
import re
import threading
from pathlib import Path

import pytest
from playwright.sync_api import expect
from sphinx.cmd.build import main as sphinx

from efflab.calculators import bundle
from efflab.exercises import front, questions
from efflab.exercises.questions import Choice, Numeric

POLICY = "default-src 'self'; script-src 'self'; style-src 'self'; img-src 'self' data:; object-src 'none'"
SHOWN = ["roofline-1", "roofline-2", "roofline-3", "roofline-5", "roofline-8", "roofline-code-1", "roofline-own-1"]
BANK = questions.bank("roofline")
CONF = """
extensions = ["myst_parser", "efflab.site.quizzes"]
html_theme = "basic"
myst_enable_extensions = ["dollarmath"]
html_static_path = ["_static"]
html_copy_source = False
templates_path = ["."]
mathjax_path = "none.js"  # the book renders equations at build time; here they stay as LaTeX
"""
# A theme's own pages have inline scripts and styles, which the policy refuses: the page alone, then.
LAYOUT = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Questions</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">
<link rel="stylesheet" href="_static/efflab.css"><script defer src="_static/efflab.js"></script></head>
<body><main>{{ body }}</main></body></html>"""


class Strict(http.server.SimpleHTTPRequestHandler):
    def end_headers(self):
        self.send_header("Content-Security-Policy", POLICY)
        super().end_headers()

    def log_message(self, format, *args):
        pass


def write(source: Path, body: str) -> None:
    """A Sphinx project of one page."""
    (source / "_static").mkdir(parents=True)
    for name, text in (
        ("_static/efflab.js", bundle.units_script() + front.script()),
        ("_static/efflab.css", front.style()), ("conf.py", CONF),
        ("layout.html", LAYOUT), ("index.md", f"# Questions\n\n{body}"),
    ):  # fmt: skip
        (source / name).write_text(text, encoding="utf-8")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A page of questions, built by Sphinx with the directive."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("page")
    write(source, "\n".join(f"```{{quiz}} {name}\n```\n" for name in SHOWN))
    assert sphinx(["-q", "-W", "--keep-going", str(source), str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def strict(folder):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Strict, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/index.html"
    server.shutdown()


@pytest.fixture(params=["file", "strict"])
def address(request, folder, strict):
    return strict if request.param == "strict" else f"file://{folder}/index.html"


class Question:
    """One question on the page."""

    def __init__(self, page, name):
        self.page, self.name, self.root = page, name, page.locator(f"#quiz-{name}")
        self.feedback = self.root.locator(".efflab-quiz-feedback")
        self.input = self.root.get_by_label("Your answer")

    def answer(self, text):
        if isinstance(BANK[self.name], Choice):
            self.root.locator(f"input[value={text}]").check()
        else:
            self.input.fill(text)
        self.root.get_by_role("button", name="Check").click()
        return self.feedback.inner_text()

    @property
    def badge(self):
        return self.root.locator(".efflab-quiz-badge").inner_text()

    def becomes(self, badge):
        """Wait for a badge. Playwright's wait_for_function would evaluate a string, which a strict policy refuses."""
        expect(self.root.locator(".efflab-quiz-badge")).to_have_text(badge)


def opened(watched, address):
    watched.page.goto(address)
    watched.page.locator(".efflab-quiz-bar").wait_for()
    return watched.page


def stored(page):
    return json.loads(page.evaluate("localStorage.getItem('efflab-progress')"))["questions"]


def bar(page):
    return page.locator(".efflab-quiz-bar").inner_text()


def right_letter(name):
    return next(letter for letter, option in BANK[name].ordered.items() if option.right)


def test_right_wrong_and_not_counted(watched, address):
    page = opened(watched, address)
    assert "7 questions on this page, 0 solved" in bar(page)
    one = Question(page, "roofline-1")
    question = BANK["roofline-1"]
    assert one.answer("").startswith("Not counted. Type an answer first.")
    assert one.answer("295") == "Not counted. '295' has no unit. Add one, such as '295 FLOP/B'."
    assert one.answer("295 GB/s").startswith("Not counted. Unit 'GB/s' is not a unit of arithmetic intensity")
    assert stored(page) == {} and one.badge == ""
    assert one.answer("590.7 FLOP/B") == f"Not yet. {question.misconceptions[0].feedback}"
    assert one.answer("3 FLOP/B") == f"Not yet. {question.wrong}"
    assert one.badge == "2 attempts" and one.input.get_attribute("aria-invalid") == "true"
    assert one.answer("295.3 FLOP/byte") == f"Right. {question.right}"
    assert one.badge == "Solved" and one.input.get_attribute("aria-invalid") == "false"
    assert stored(page)["roofline-1"] == {"solved": True, "attempts": 3, "points": 1, "answer": "295.3 FLOP/byte"}
    two = Question(page, "roofline-2")
    two.root.get_by_role("button", name="Check").click()
    assert two.feedback.inner_text() == "Not counted. Choose an option first."
    for letter, option in BANK["roofline-2"].ordered.items():
        said = two.answer(letter)
        assert said == ("Right. " if option.right else "Not yet. ") + option.feedback
    assert Question(page, "roofline-5").answer("6 GB").startswith("Not yet. 6 GiB would be right, 6 GB is not.")
    assert Question(page, "roofline-5").answer("6 GiB").startswith("Right.")
    assert Question(page, "roofline-8").answer("1.44x").startswith("Right.")
    total = sum(q.points for q in BANK.values())
    assert "7 questions on this page, 4 solved" in bar(page)
    assert f"4 of {total} points in this chapter: the questions of this page and those of its exercise notebook" in bar(
        page
    )
    assert page.locator(".efflab-quiz-bar progress").evaluate("p => [p.value, p.max]") == [4, 7]
    watched.assert_clean()


def test_what_is_solved_stays_solved_and_is_restored(watched, address):
    page = opened(watched, address)
    one, two = Question(page, "roofline-1"), Question(page, "roofline-2")
    one.answer("295 FLOP/B")
    one.answer("1 FLOP/B")
    two.answer("a")
    page.reload()
    page.locator(".efflab-quiz-bar").wait_for()
    assert one.badge == "Solved" and one.input.input_value() == "295 FLOP/B"
    assert one.feedback.inner_text() == f"Right. {BANK['roofline-1'].right}"
    assert two.badge == "1 attempt" and two.root.locator("input[value=a]").is_checked()
    assert two.feedback.inner_text().startswith("Not yet. ")
    assert "7 questions on this page, 1 solved" in bar(page)
    watched.assert_clean()


def test_page_source_and_dom_hold_no_answer(watched, address, folder):
    page = opened(watched, address)
    dom = page.evaluate("document.documentElement.outerHTML")
    # A wrong answer must not bring the right one along.
    Question(page, "roofline-1").answer("7 FLOP/B")
    after = page.evaluate("document.documentElement.outerHTML")
    script = (folder / "_static/efflab.js").read_text(encoding="utf-8")
    for text in ((folder / "index.html").read_text(encoding="utf-8"), dom, after, script):
        text = html.unescape(text)
        for name in SHOWN:
            question = BANK[name]
            if isinstance(question, Choice):
                secrets = [o.feedback for o in question.options]
            elif isinstance(question, Numeric):
                secrets = [question.right, *(m.feedback for m in question.misconceptions)]
                secrets += [m.name for m in question.misconceptions if len(m.name) > 6]
                secrets += [f"{question.value:.4g} {question.unit}", question.printed]
            else:
                secrets = [question.right]
            for secret in secrets:
                # One letter or digit is no secret, and "1.44" may stand in any number.
                assert len(secret) < 5 or secret not in text, (name, secret)
    watched.assert_clean()


def test_hints_come_step_by_step(watched, address):
    page = opened(watched, address)
    root = Question(page, "roofline-1").root
    hints = root.locator(".efflab-quiz-hints li")
    button = root.locator(".efflab-quiz-hint")
    assert button.inner_text() == f"Hint 1 of {hints.count()}"
    for i in range(hints.count()):
        assert [h.is_visible() for h in hints.all()] == [j < i for j in range(hints.count())]
        button.click()
    assert all(h.is_visible() for h in hints.all())
    assert button.inner_text() == "No more hints" and button.get_attribute("aria-disabled") == "true"
    assert hints.first.inner_text() == BANK["roofline-1"].hints[0]
    assert stored(page) == {}
    watched.assert_clean()


def test_questions_of_the_notebook_say_so(watched, address):
    page = opened(watched, address)
    for name, call in (
        ("roofline-code-1", 'check("roofline-code-1", your_function)'),
        ("roofline-own-1", 'check("roofline-own-1")'),
    ):
        root = Question(page, name).root
        assert call in root.inner_text() and root.get_by_role("button").count() == 0
    watched.assert_clean()


def test_export_reset_import(watched, address, tmp_path):
    page = opened(watched, address)
    Question(page, "roofline-1").answer("295 FLOP/B")
    Question(page, "roofline-3").answer("1 FLOP/B")
    with page.expect_download() as download:
        page.get_by_role("button", name="Export").click()
    file = tmp_path / download.value.suggested_filename
    download.value.save_as(file)
    assert file.name == "efflab-progress.json"
    # The library reads it.
    from efflab.exercises.progress_file import read

    assert {n: e.solved for n, e in read(file).items()} == {"roofline-1": True, "roofline-3": False}

    page.get_by_role("button", name="Reset").click()
    assert "Erase your answers to 2 questions" in bar(page)
    assert page.evaluate("document.activeElement.textContent") == "Keep"
    page.keyboard.press("Enter")
    assert "7 questions on this page, 1 solved" in bar(page) and len(stored(page)) == 2
    assert page.evaluate("document.activeElement.textContent") == "Reset…"
    page.keyboard.press("Enter")
    page.get_by_role("button", name="Erase").click()
    assert "7 questions on this page, 0 solved" in bar(page) and stored(page) == {}
    one = Question(page, "roofline-1")
    assert one.input.input_value() == "" and one.badge == "" and one.feedback.inner_text() == ""

    page.locator("input[type=file]").set_input_files(file)
    page.get_by_text("2 questions read from efflab-progress.json; 1 newly solved.").wait_for()
    assert one.badge == "Solved" and one.input.input_value() == "295 FLOP/B"
    assert "7 questions on this page, 1 solved" in bar(page) and len(stored(page)) == 2
    # A file of the library: the exercise notebook's points join the chapter's total.
    row = {"solved": True, "attempts": 1, "points": 2, "answer": None}
    (tmp_path / "book.json").write_text(
        json.dumps({"schema": "efflab-progress/1", "questions": {"roofline-code-1": row}})
    )
    page.locator("input[type=file]").set_input_files(tmp_path / "book.json")
    page.get_by_text("1 question read from book.json; 1 newly solved.").wait_for()
    assert "3 of " in bar(page) and Question(page, "roofline-code-1").badge == "Solved"
    watched.assert_clean()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "The file is empty."),
        ('{"schema": "efflab-progress/1", "quest', "cut off"),
        ('{"schema": "efflab-progress/3", "questions": {}}', "newer than this page reads"),
        ('{"schema": "efflab-record/1"}', "not a progress file"),
        ("\x00\x01\x02", "not JSON"),
    ],
)
def test_a_file_that_cannot_be_imported_is_refused(watched, folder, tmp_path, text, said):
    page = opened(watched, f"file://{folder}/index.html")
    Question(page, "roofline-1").answer("295 FLOP/B")
    before = stored(page)
    (tmp_path / "in.json").write_text(text)
    page.locator("input[type=file]").set_input_files(tmp_path / "in.json")
    page.get_by_text("in.json was not imported.").wait_for()
    assert said in bar(page) and stored(page) == before
    watched.assert_clean()


FULL = "Storage.prototype.setItem = () => { throw new DOMException('full', 'QuotaExceededError'); }"
REFUSED = "Object.defineProperty(window, 'localStorage', { get() { throw new DOMException('no', 'SecurityError'); } })"


@pytest.mark.parametrize(("broken", "said"), [(FULL, "its storage is full"), (REFUSED, "it refuses to store data")])
def test_a_failure_to_save_is_said_and_nothing_is_lost(watched, address, tmp_path, broken, said):
    watched.page.add_init_script(broken)
    page = opened(watched, address)
    message = f"Your answers are not saved in this browser: {said}. Export them to a file before you leave this page."
    assert message in bar(page)  # before anything is answered
    one = Question(page, "roofline-1")
    assert one.answer("295 FLOP/B").startswith("Right.")
    assert one.badge == "Solved" and "7 questions on this page, 1 solved" in bar(page) and message in bar(page)
    with page.expect_download() as download:
        page.get_by_role("button", name="Export").click()
    download.value.save_as(tmp_path / "out.json")
    assert "roofline-1" in json.loads((tmp_path / "out.json").read_text())["questions"]
    watched.assert_clean()


def test_damaged_storage_is_set_aside_and_said(watched, address):
    page = opened(watched, address)
    page.evaluate("localStorage.setItem('efflab-progress', '{\"schema\": \"efflab-progress/1\", ')")
    page.reload()
    page.locator(".efflab-quiz-bar").wait_for()
    assert "could not be read and was set aside" in bar(page)
    assert Question(page, "roofline-1").answer("295 FLOP/B").startswith("Right.")
    assert stored(page)["roofline-1"]["solved"]
    assert page.evaluate("localStorage.getItem('efflab-progress-damaged')").startswith('{"schema"')
    watched.assert_clean()


def test_two_tabs_keep_each_others_answers(watched, strict):
    page = opened(watched, strict)
    other = page.context.new_page()
    other.goto(strict)
    other.locator(".efflab-quiz-bar").wait_for()
    Question(other, "roofline-1").answer("295 FLOP/B")
    Question(page, "roofline-1").becomes("Solved")
    Question(page, "roofline-3").answer("315 FLOP/B")
    assert {n for n, e in stored(page).items() if e["solved"]} == {"roofline-1", "roofline-3"}
    watched.assert_clean()


def test_what_one_tab_erases_stays_erased(watched, strict):
    """The other tab hears of it, forgets its own copy, clears its fields, and brings nothing back."""
    page = opened(watched, strict)
    Question(page, "roofline-1").answer("295 FLOP/B")
    other = page.context.new_page()
    other.goto(strict)
    other.locator(".efflab-quiz-bar").wait_for()
    there = Question(other, "roofline-1")
    assert there.badge == "Solved" and there.input.input_value() == "295 FLOP/B"
    page.get_by_role("button", name="Reset").click()
    page.get_by_role("button", name="Erase").click()
    there.becomes("")
    assert there.input.input_value() == "" and there.feedback.inner_text() == "" and "0 solved" in bar(other)
    Question(other, "roofline-3").answer("1 FLOP/B")
    Question(page, "roofline-3").becomes("1 attempt")
    assert set(stored(page)) == {"roofline-3"} and Question(page, "roofline-1").badge == ""
    watched.assert_clean()


def test_questions_are_numbered_by_their_place_and_keep_their_id(watched, folder):
    page = opened(watched, f"file://{folder}/index.html")
    for number, name in enumerate(SHOWN, 1):
        root = page.locator(f"#quiz-{name}")
        assert root.locator(".efflab-quiz-number").inner_text() == f"Question {number}."
        assert root.locator("code.efflab-quiz-id").inner_text() == name
    watched.assert_clean()


def test_a_near_miss_is_called_close(watched, address):
    page = opened(watched, address)
    assert Question(page, "roofline-1").answer("320 FLOP/B") == f"Not yet. {questions.CLOSE}"
    assert Question(page, "roofline-1").answer("300 FLOP/B").startswith("Right. ")  # two digits
    assert Question(page, "roofline-3").answer("7 FLOP/B").startswith("Not yet. Write down each factor")
    watched.assert_clean()


def test_by_keyboard_alone(watched, address):
    page = opened(watched, address)

    def focused(script="e => e.textContent || e.value"):
        return page.evaluate(f"({script})(document.activeElement)")

    page.keyboard.press("Tab")
    visited = [focused()]
    while not page.evaluate("document.activeElement.matches('#quiz-roofline-1-input')"):
        page.keyboard.press("Tab")
        visited.append(focused())
        assert len(visited) < 60
    assert [v for v in visited if v in ("Export", "Import", "Reset…")] == ["Export", "Import", "Reset…"]
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineWidth")
    assert outline == "3px"
    page.keyboard.type("295 FLOP/B")
    page.keyboard.press("Enter")
    assert Question(page, "roofline-1").feedback.inner_text().startswith("Right.")
    page.keyboard.press("Tab")
    assert focused() == "Check"
    page.keyboard.press("Tab")
    page.keyboard.press("Space")
    assert focused() == "Hint 2 of 3"
    page.keyboard.press("Tab")
    options = list(BANK["roofline-2"].ordered)
    page.keyboard.press("Space")
    for _ in range(options.index(right_letter("roofline-2"))):
        page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    assert Question(page, "roofline-2").feedback.inner_text().startswith("Right.")
    watched.assert_clean()


def test_without_a_script_the_questions_read_as_text(browser, folder):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(f"file://{folder}/index.html")
    assert page.get_by_text("Checking an answer needs JavaScript.").count() == 5
    for name in ("roofline-1", "roofline-2"):
        root = page.locator(f"#quiz-{name}")
        assert BANK[name].title in root.inner_text()
        assert root.get_by_role("button").count() == 0
    for option in BANK["roofline-2"].options:
        assert page.get_by_text(option.text).is_visible()
    context.close()


def test_at_phone_width_nothing_overflows_and_targets_are_large(browser, folder):
    context = browser.new_context(viewport={"width": 390, "height": 800}, has_touch=True, is_mobile=True)
    page = context.new_page()
    page.goto(f"file://{folder}/index.html")
    page.locator(".efflab-quiz-bar").wait_for()
    for name in ("roofline-1", "roofline-2", "roofline-code-1"):
        box = Question(page, name).root.bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= 390
    Question(page, "roofline-1").answer("590 FLOP/B")
    for target in page.locator(
        ".efflab-quiz button, .efflab-quiz-bar button, .efflab-quiz-option, .efflab-quiz-input"
    ).all():
        if target.is_visible():
            assert target.bounding_box()["height"] >= 44
    context.close()


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_accessibility_by_axe(watched, folder, root, theme):
    axe = root / "node_modules/axe-core/axe.min.js"
    if not axe.exists():
        if os.environ.get("EFFLAB_REQUIRE_ALL") == "1":
            pytest.fail("needs axe-core: run 'make assets'", pytrace=False)
        pytest.skip("needs axe-core: run 'make assets'")
    page = opened(watched, f"file://{folder}/index.html")
    if theme == "dark":  # as pydata-sphinx-theme's dark colours
        page.evaluate(
            """() => { const r = document.documentElement; r.dataset.theme = 'dark';
            for (const [k, v] of Object.entries({'text-base': '#ced6dd', 'text-muted': '#9ca4af', 'surface': '#29313d',
              'background': '#14181e', 'border': '#48566b'})) r.style.setProperty('--pst-color-' + k, v);
            document.body.style.background = '#14181e'; document.body.style.color = '#ced6dd'; }"""
        )
    Question(page, "roofline-1").answer("590.7 FLOP/B")
    Question(page, "roofline-2").answer(right_letter("roofline-2"))
    Question(page, "roofline-3").answer("315")
    Question(page, "roofline-1").root.locator(".efflab-quiz-hint").click()
    page.get_by_role("button", name="Reset").click()
    page.add_script_tag(path=str(axe))
    found = page.evaluate("axe.run({include: [['.efflab-quiz'], ['.efflab-quiz-bar']]}, {preload: false})")
    assert [(v["id"], [n["html"][:120] for n in v["nodes"]]) for v in found["violations"]] == []
    assert any(p["id"] == "color-contrast" for p in found["passes"])
    watched.assert_clean()


def test_print_leaves_the_controls_out(watched, folder):
    page = opened(watched, f"file://{folder}/index.html")
    page.emulate_media(media="print")
    assert not page.locator(".efflab-quiz-bar").is_visible()
    assert not page.get_by_role("button", name="Check").first.is_visible()
    assert page.get_by_text(BANK["roofline-1"].title).is_visible()


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("```{quiz} roofline-99\n```\n", "Did you mean 'roofline-9'"),
        ("```{quiz} roofline-1\n```\n\n```{quiz} roofline-1\n```\n", "on this page twice"),
        ("```{quiz}\n```\n", "1 argument"),
    ],
)
def test_a_wrong_directive_fails_the_build_in_words(tmp_path, capfd, body, said):
    source = tmp_path / "source"
    write(source, body)
    assert sphinx(["-q", "-W", "--keep-going", str(source), str(tmp_path / "out")]) != 0
    assert re.search(re.escape(said), capfd.readouterr().err)


def test_two_builds_are_the_same(folder, tmp_path):
    source = tmp_path / "source"
    write(source, "```{quiz} roofline-1\n```\n")
    built = []
    for name in ("a", "b"):
        assert sphinx(["-q", "-E", str(source), str(tmp_path / name)]) == 0
        built.append(
            re.findall(r'<script type="application/json">.*?</script>', (tmp_path / name / "index.html").read_text())
        )
    assert built[0] == built[1] and len(built[0]) == 1
    assert built[0][0] in (folder / "index.html").read_text()
