"""The built site as a reader meets it: offline, light and dark, wide and narrow, by keyboard."""

from __future__ import annotations

import json
import re

import pytest
import yaml

from efflab import chapters
from efflab.exercises import questions
from efflab.site.assets import asset

PAGES = [f"{page}.html" for page in chapters.pages()]
CHAPTERS = [f"book/{c.topic}.html" for c in chapters.every()]


def open_page(watched, served, page, theme="light"):
    watched.page.add_init_script(f"localStorage.setItem('mode', '{theme}'); localStorage.setItem('theme', '{theme}')")
    watched.page.goto(f"{served}/{page}")
    watched.page.wait_for_load_state("load")
    watched.page.evaluate(f"document.documentElement.dataset.theme = '{theme}'")
    return watched.page


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize("width", [390, 768, 1280])
def test_no_page_overflows_or_asks_or_complains(watched, served, name, width):
    watched.page.set_viewport_size({"width": width, "height": 844})
    page = open_page(watched, served, name)
    page.wait_for_timeout(300)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.locator("article h1").count() == 1
    watched.assert_clean()


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_nothing(watched, served, name, theme):
    page = open_page(watched, served, name, theme)
    page.wait_for_timeout(300)
    page.evaluate(asset("axe-core/axe.min.js").read_text())
    found = page.evaluate("axe.run(document, {runOnly: ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'wcag22aa']})")
    violations = [
        f"{v['id']}: {n['target']} {n.get('failureSummary', '')}" for v in found["violations"] for n in v["nodes"]
    ]
    # axe does not judge text of its background's own colour: it calls that incomplete, as it may be meant
    violations += [
        f"invisible: {n['target']}"
        for v in found["incomplete"]
        for n in v["nodes"]
        if any((c["data"] or {}).get("messageKey") == "equalRatio" for c in n["any"])
    ]
    assert not violations, "\n".join(violations)


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize("media", ["screen", "print"])
def test_every_table_fits_its_box(watched, served, name, media):
    """At desktop width and in print no column hides beside the page."""
    page = open_page(watched, served, name)
    page.emulate_media(media=media)
    wide = page.evaluate(
        """[...document.querySelectorAll('.efflab-table')]
            .filter(e => e.scrollWidth > e.clientWidth + 1).map(e => e.ariaLabel)"""
    )
    assert wide == []


CONTRAST = """() => {
    const rgba = (text) => { const [r, g, b, a = 1] = text.match(/[\\d.]+/g).map(Number); return [r, g, b, a]; };
    const linear = (v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    const light = (c) => c.slice(0, 3).map((v) => linear(v / 255))
        .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
    function ground(node) {
        for (; node; node = node.parentElement) {
            const c = rgba(getComputedStyle(node).backgroundColor);
            if (c[3] > 0.99) return c;
        }
        return [255, 255, 255, 1];
    }
    const cells = [...document.querySelectorAll("article table :is(th, td)")];
    return cells.filter((n) => n.textContent.trim() && n.checkVisibility()).map((n) => {
        const [a, b] = [light(rgba(getComputedStyle(n).color)), light(ground(n))];
        return [(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), n.textContent.trim().slice(0, 40)];
    }).filter(([ratio]) => ratio < 4.5);
}"""


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_text_of_every_table_stands_out(watched, served, name, scheme):
    """As a reader gets the dark page: by the system's wish, then by the page's own button."""
    watched.page.emulate_media(color_scheme=scheme)
    watched.page.goto(f"{served}/{name}")
    theme = "document.documentElement.dataset.theme"
    assert watched.page.evaluate(theme) == scheme
    assert watched.page.evaluate(CONTRAST) == []
    for _ in range(2):
        watched.page.locator(".theme-switch-button:visible").first.click()
        assert watched.page.evaluate(CONTRAST) == [], watched.page.evaluate(theme)
    watched.assert_clean()  # no word of an invalid theme, and no icon that is missing


def test_every_local_address_of_a_page_exists(book):
    missing = []
    for page in book.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        if "<html" not in text or page.is_relative_to(book / "_static"):
            continue
        for address in re.findall(r'(?:href|src)="([^"#?]+)[^"]*"', text):
            if re.match(r"(?:https?|data|mailto|javascript):|//", address):
                continue
            target = (page.parent / address).resolve()
            if not target.is_file():
                missing.append(f"{page.name}: {address}")
        assert 'rel="icon"' in text or 'http-equiv="Refresh"' in text, page.name
    assert not missing, "\n".join(missing)


def test_without_a_script_a_page_has_a_theme(browser, served):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(f"{served}/{CHAPTERS[0]}")
    assert page.locator("html").get_attribute("data-theme") is None
    assert page.locator(".efflab-figure img:visible").count() == page.locator(".efflab-figure").count() > 0
    context.close()


@pytest.mark.parametrize("name", PAGES)
def test_on_a_phone_what_is_cut_says_so(watched, served, name):
    """Pictures and tables of runs fit; what scrolls sideways has its shadow; a picture opens alone."""
    watched.page.set_viewport_size({"width": 390, "height": 844})
    watched.page.goto(f"{served}/{name}")
    cut = watched.page.evaluate(
        """[...document.querySelectorAll("article *")]
        .filter((n) => n.matches("div.math") || ["auto", "scroll"].includes(getComputedStyle(n).overflowX))
        .filter((n) => n.scrollWidth > n.clientWidth + 1)
        .map((n) => ({ shadow: getComputedStyle(n).backgroundImage.split("linear-gradient").length > 4, tag: n.tagName,
            classes: n.className, text: n.textContent.trim().slice(0, 40) }))"""
    )
    assert [c for c in cut if not c["shadow"] and c["tag"] != "PRE"] == []
    assert [c for c in cut if re.search("efflab-(run-table|stack|figure)|calc-compare", c["classes"])] == []
    for picture in watched.page.locator(".efflab-figure > a").all():
        assert picture.get_attribute("href").endswith(".svg") and picture.bounding_box()["width"] <= 390


def test_axe_would_find_something(watched, served):
    """The check can fail: an image without a text."""
    page = open_page(watched, served, PAGES[0])
    page.evaluate("document.querySelector('article h1').insertAdjacentHTML('afterend', '<img src=\"x.png\">')")
    page.evaluate(asset("axe-core/axe.min.js").read_text())
    assert [v["id"] for v in page.evaluate("axe.run()")["violations"]].count("image-alt") == 1


def test_a_slider_moved_by_keyboard_changes_number_and_curve(watched, served):
    page = open_page(watched, served, "book/roofline.html")
    calculator = page.locator(".efflab-calculator").first
    slider = calculator.locator("input[type=range]:visible").first
    before_text = calculator.locator("[aria-live]").first.inner_text()
    before_plot = calculator.locator("svg").first.inner_html()
    slider.focus()
    for _ in range(5):
        page.keyboard.press("ArrowLeft")
    assert calculator.locator("[aria-live]").first.inner_text() != before_text
    assert calculator.locator("svg").first.inner_html() != before_plot
    watched.assert_clean()


def test_the_page_shows_what_python_computes(watched, served):
    """The worked case of the text, in the browser's calculator and in Python."""
    from efflab import calculators

    page = open_page(watched, served, "book/roofline.html")
    result = calculators.get("roofline-explorer").evaluate()
    shown = page.locator(".efflab-calculator").first.inner_text()
    assert result.verdict in shown


def test_every_calculator_works_from_a_file(watched, book):
    watched.page.goto((book / "book/roofline.html").as_uri())
    count = watched.page.locator(".efflab-calculator").count()
    assert count == 3
    for i in range(count):
        calculator = watched.page.locator(".efflab-calculator").nth(i)
        assert calculator.locator("svg").count() >= 1
        assert calculator.locator("input[type=range]:visible").count() >= 1
    assert not watched.remote


def test_no_answer_is_published(book):
    """Neither feedback nor option verdicts of the bank stand in any published file in the clear."""
    published = [
        p.read_text(encoding="utf-8", errors="replace")
        for p in book.rglob("*")
        if p.suffix in {".html", ".js", ".json", ".txt", ".md"}
    ]
    bank = yaml.safe_load((questions.FOLDER / "roofline.yml").read_text(encoding="utf-8"))
    texts = []

    def collect(node, key=""):
        if isinstance(node, dict):
            for k, v in node.items():
                collect(v, k)
        elif isinstance(node, list):
            for v in node:
                collect(v, key)
        elif isinstance(node, str) and key in {"feedback", "right", "wrong", "explanation"} and len(node) > 25:
            texts.append(node)

    collect(bank)
    assert len(texts) >= 20, "the bank's feedback was not found: has its layout changed?"
    for text in texts:
        plain = re.sub(r"[`$*]", "", text).strip()[:60]
        for content in published:
            assert plain not in content, f"published in the clear: {plain}"


def test_no_page_loads_anything_remote(book):
    from efflab.site.hosts import remote_assets

    assert remote_assets(book) == []


def test_the_remote_check_can_fail(tmp_path):
    from efflab.site.hosts import remote_assets

    (tmp_path / "a.html").write_text(
        '<script src="https://cdn.example/x.js"></script><a href="https://example.org">fine</a>'
    )
    (tmp_path / "b.css").write_text("@import 'https://fonts.example/f.css'; a { background: url(//img.example/x.png) }")
    assert len(remote_assets(tmp_path)) == 3


def test_equations_need_no_script(watched, served):
    context = watched.page.context.browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(f"{served}/book/roofline.html")
    assert page.locator(".katex-html").count() >= 10
    assert page.locator(".katex-error").count() == 0
    # the calculators read as text without a script
    assert "FLOP/s" in page.locator(".efflab-calculator").first.inner_text()
    context.close()


def test_the_validation_page_prints_every_row(watched, served):
    from efflab import catalog

    page = open_page(watched, served, "book/validation.html")
    assert page.locator(".efflab-published tbody tr:not(.efflab-note)").count() == len(catalog.published())


def test_the_front_page_redirects(watched, served):
    watched.page.goto(f"{served}/index.html")
    watched.page.wait_for_url(re.compile("intro"))


def test_shared_addresses_restore_the_state(watched, served):
    page = open_page(watched, served, "book/roofline.html#roofline-explorer?kernel=gemv")
    shown = page.locator(".efflab-calculator").first.inner_text()
    assert "emory-bound" in shown
    assert json.dumps(shown)  # the state is text, not a script


def test_a_page_loads_the_scripts_of_what_it_shows(book):
    """Its own scripts, by what the page holds: calculators, the topics that they belong to, quizzes."""
    from efflab import calculators

    seen = set()
    for page in book.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        shown = set(
            re.findall(r'"name": ?"([a-z-]+)"', "".join(re.findall(r"application/json\">(.*?)</script>", text)))
        )
        topics = {calculators.get(n).topic.replace("_", "-") for n in shown & set(calculators.every())}
        quiz = 'class="efflab-quiz"' in text
        wanted = {f"efflab-{t}.js" for t in topics} | ({"efflab-quiz.js"} if quiz else set())
        wanted |= {"efflab.js"} if wanted else set()
        loaded = set(re.findall(r'src="[./]*_static/(efflab[a-z-]*\.js)', text))
        assert wanted <= loaded and loaded - wanted <= {"efflab.js", "efflab-quiz.js"}, page.name
        seen |= loaded
    assert {"efflab.js", "efflab-quiz.js", "efflab-roofline.js"} <= seen


def test_the_search_finds_pages(watched, served):
    """The index is loaded by the search page only."""
    page = open_page(watched, served, "search.html?q=bandwidth")
    page.wait_for_selector("#search-results li")
    watched.assert_clean()
