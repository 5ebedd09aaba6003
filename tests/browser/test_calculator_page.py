"""Calculators on a bare page, from a file and from a server with a strict policy, in a real browser."""

from __future__ import annotations

import contextlib
import functools
import http.server
import io
import json
import re
import threading

import pytest

from efflab import calculators
from efflab.calculators import bundle, markup
from efflab.records import load_prediction
from efflab.site.assets import minified

HEAD = (
    '<!doctype html><html lang="en"><head><meta charset="utf-8">'
    '<meta name="viewport" content="width=device-width, initial-scale=1"><title>Calculators</title>'
    '<link rel="icon" href="data:,"><link rel="stylesheet" href="efflab.css"><script defer src="efflab.js"></script>'
    + "".join(f'<script defer src="efflab-{t}.js"></script>' for t in bundle.topics())
    + "</head><body><main><h1>Calculators</h1>"
)
POLICY = "default-src 'self'; script-src 'self'; style-src 'self'; img-src 'self' data:"


class Strict(http.server.SimpleHTTPRequestHandler):
    def end_headers(self):
        self.send_header("Content-Security-Policy", POLICY)
        super().end_headers()

    def log_message(self, format, *args):
        pass


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    found = [markup.html(c) for c in calculators.every().values()]
    found.append(markup.html(calculators.get("roofline-explorer"), "roofline-explorer-2", kernel="softmax"))
    (folder / "index.html").write_text(HEAD + "".join(found) + "</main></body></html>")
    (folder / "efflab.js").write_text(minified(bundle.units_script() + bundle.script(), "efflab.js"))
    for topic in bundle.topics():
        (folder / f"efflab-{topic}.js").write_text(minified(bundle.topic_script(topic), "topic.js"))
    (folder / "efflab.css").write_text(bundle.style())
    return folder


@pytest.fixture(scope="module")
def strict(folder):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Strict, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/index.html"
    server.shutdown()


@pytest.fixture(params=["file", "strict"])
def address(request, folder, strict):
    return strict if request.param == "strict" else f"file://{folder}/index.html"


def opened(watched, address):
    watched.page.set_default_timeout(5000)
    watched.page.goto(address)
    watched.page.wait_for_selector(".efflab-calculator[data-ready]")
    return watched.page


def output(root, label):
    return (
        root.locator("dl > div", has=root.page.locator("dt", has_text=re.compile(f"^{label}$")))
        .locator("dd")
        .inner_text()
    )


def clipboard(page):
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    return lambda: page.evaluate("navigator.clipboard.readText()")


def test_an_arrow_key_moves_number_curve_and_sentence(watched, address):
    page = opened(watched, address)
    root = page.locator("#roofline-explorer")
    slider = root.get_by_label("m rows", exact=True)
    before = [
        output(root, "Time, at least"),
        root.locator("circle.here").get_attribute("cx"),
        root.locator(".calc-verdict").inner_text(),
    ]
    described = root.locator(".calc-plot").get_attribute("aria-label")
    slider.focus()
    for _ in range(6):
        page.keyboard.press("ArrowLeft")
    after = [
        output(root, "Time, at least"),
        root.locator("circle.here").get_attribute("cx"),
        root.locator(".calc-verdict").inner_text(),
    ]
    assert all(a != b for a, b in zip(before, after, strict=True))
    here = calculators.get("roofline-explorer").evaluate(m=512)
    assert slider.get_attribute("aria-valuetext") == "512"
    assert after[0] == here.text("time") and after[2] == here.verdict
    assert root.locator(".calc-plot").get_attribute("aria-label") != described
    assert here.text("arithmetic_intensity") in root.locator(".calc-plot").get_attribute("aria-label")
    watched.assert_clean()


def test_a_choice_brings_its_own_inputs(watched, address):
    page = opened(watched, address)
    root = page.locator("#roofline-explorer")
    assert root.get_by_label("Rows", exact=True).is_hidden()
    root.get_by_label("Kernel").select_option("softmax")
    assert root.get_by_label("Rows", exact=True).is_visible() and root.get_by_label("m rows", exact=True).is_hidden()
    root.get_by_label("Accelerator", exact=True).select_option("custom")
    field = root.get_by_label("Memory bandwidth, exact value")
    field.fill("36 GB/s")
    field.press("Enter")
    here = calculators.get("roofline-explorer").evaluate(
        kernel="softmax", accelerator="custom", own_memory_bandwidth=36e9
    )
    assert output(root, "Time, at least") == here.text("time")
    watched.assert_clean()


def test_a_wrong_number_is_explained_and_nothing_is_lost(watched, address):
    page = opened(watched, address)
    root = page.locator("#fusion")
    field, before = root.get_by_label("Overhead per call, exact value"), output(root, "Fused, at least")
    for text, told in [
        ("7", "has no unit"),
        ("7 GB", "not a unit of time"),
        ("70 s", "got 70 s."),
        ("2 h", "must be 0 or between"),
        ("x", "no number"),
    ]:
        field.fill(text)
        field.press("Enter")
        assert told in root.get_by_role("alert").inner_text()
        assert field.input_value() == text and field.get_attribute("aria-invalid") == "true"
        assert output(root, "Fused, at least") == before
    field.fill("20 µs")
    field.press("Enter")
    assert root.get_by_role("alert").count() == 0 and not field.get_attribute("aria-invalid")
    assert output(root, "Fused, at least") == calculators.get("fusion").evaluate(overhead=2e-5).text("fused_chain_time")


def test_a_size_that_is_not_whole_is_echoed_as_typed(watched, address):
    page = opened(watched, address)
    root = page.locator("#roofline-explorer")
    field = root.get_by_label("m, exact value")
    field.fill("4096.5")
    field.press("Enter")
    assert root.get_by_role("alert").inner_text() == "m must be a whole number, got 4096.5."
    field.fill("2^12.5")
    field.press("Enter")
    assert root.get_by_role("alert").inner_text().endswith("Write a plain number, such as 4,096.")
    field.fill("2^11")
    field.press("Enter")
    assert root.get_by_role("alert").count() == 0 and field.input_value() == "2,048"
    overhead = root.get_by_label("Overhead per call, exact value")
    for text, shown in (("10 µs", "10 µs"), ("0", "0 s")):
        overhead.fill(text)
        overhead.press("Enter")
        assert overhead.input_value() == shown and root.get_by_role("alert").count() == 0
    watched.assert_clean()


def test_a_run_of_another_device_says_so(watched, address):
    """The page opens with an H200; runs of other devices have other roofs."""
    page = opened(watched, address)
    labels = page.locator("#roofline-explorer .calc-legend label")
    assert labels.count() > 0
    for text in labels.all_inner_texts():
        assert ("another device" in text) == ("H200" not in text)


def test_the_drawing_fills_its_column_and_the_results_stand_under_it(watched, address):
    page = opened(watched, address)
    page.set_viewport_size({"width": 720, "height": 900})
    root = page.locator("#roofline-explorer")
    plot, inputs, results = (
        root.locator(s).bounding_box() for s in (".calc-plot svg", ".calc-inputs", ".calc-results")
    )
    assert plot["width"] > 400 and plot["x"] > inputs["x"] + inputs["width"]
    assert results["y"] > plot["y"] + plot["height"] and results["x"] == pytest.approx(plot["x"], abs=2)


def test_the_results_resist_the_styles_of_jupyterlab(watched, address):
    """JupyterLab floats dt and dd at 20% and 80%, and themes indent dd."""
    page = opened(watched, address)
    foreign = """.jp-RenderedHTMLCommon dt { float: left; width: 20%; font-weight: bold; display: block }
        .jp-RenderedHTMLCommon dd { float: left; width: 80%; margin-left: 2rem; margin-bottom: 1em }
        .jp-RenderedHTMLCommon dl { margin-left: 40px } dd { margin-left: 2rem } dl dt { font-weight: bolder }"""
    root = page.locator("#roofline-explorer dl")

    def boxes():
        return root.evaluate(
            "(dl) => [...dl.querySelectorAll('dt, dd')].map((n) => n.getBoundingClientRect())"
            ".map((r) => [r.width, r.height])"
        )

    before = boxes()
    # as a constructed sheet, which the policy allows
    page.evaluate(
        "(css) => { const s = new CSSStyleSheet(); s.replaceSync(css); document.adoptedStyleSheets = [s];"
        " document.querySelector('main').classList.add('jp-RenderedHTMLCommon'); }",
        foreign,
    )
    assert boxes() == before


def test_a_dtype_without_a_peak_is_explained(watched, address):
    page = opened(watched, address)
    root = page.locator("#roofline-explorer")
    root.get_by_label("Accelerator", exact=True).select_option("A100 SXM 80GB")
    root.get_by_label("Data type", exact=True).select_option("fp8")
    here = calculators.get("roofline-explorer").evaluate(accelerator="A100 SXM 80GB", dtype="fp8")
    assert root.locator(".calc-verdict").inner_text() == here.verdict
    assert output(root, "Time, at least") == "—"
    root.get_by_role("button", name="Use fp16").click()
    assert output(root, "Time, at least") != "—" and root.get_by_label("Data type", exact=True).input_value() == "fp16"
    assert root.locator(".calc-offer").count() == 0
    assert page.evaluate("document.activeElement.value") == "fp16"
    watched.assert_clean()


def test_a_shared_link_opens_the_same_calculation(watched, address):
    page = opened(watched, address)
    read = clipboard(page)
    root = page.locator("#roofline-explorer-2")
    root.get_by_label("Accelerator", exact=True).select_option("GB200 NVL72 (per GPU)")
    root.get_by_label("Rows, exact value").fill("1,000")
    root.get_by_label("Rows, exact value").press("Enter")
    root.get_by_role("button", name="Share").click()
    root.get_by_text("Link copied").wait_for()
    link, verdict, time = read(), root.locator(".calc-verdict").inner_text(), output(root, "Time, at least")
    assert link == page.url and "#roofline-explorer-2?" in link
    page.goto("about:blank")
    page.goto(link)
    root = page.locator("#roofline-explorer-2")
    root.locator("[aria-live]").wait_for()
    assert root.get_by_label("Rows, exact value").input_value() == "1,000"
    assert (root.locator(".calc-verdict").inner_text(), output(root, "Time, at least")) == (verdict, time)
    assert page.evaluate("document.getElementById('roofline-explorer-2').getBoundingClientRect().top") < 300
    watched.assert_clean()


def test_a_bad_link_is_explained_and_what_is_good_in_it_kept(watched, address):
    page = opened(watched, address + "#roofline-explorer?kernel=softmax&rows=-4&colour=red&dtype=%E0%A4%A")
    root = page.locator("#roofline-explorer")
    told = root.get_by_role("status").inner_text()
    for part in ("rows must be between", "colour is not an input", "dtype cannot be read"):
        assert part in told
    assert root.get_by_label("Kernel").input_value() == "softmax"
    assert output(root, "Time, at least") == calculators.get("roofline-explorer").evaluate(kernel="softmax").text(
        "time"
    )
    page.evaluate("location.hash = '#roofline-explorer?kernel=gemv'")
    root.get_by_label("Kernel").and_(page.locator(":has(option:checked[value=gemv])")).wait_for()
    for hash in ("#nothing?here=1", "#roofline-explorer", "#%", "#roofline-explorer?"):
        page.evaluate(f"location.hash = '{hash}'")
    watched.assert_clean()


def test_reset_brings_the_first_values_back(watched, address):
    page = opened(watched, address)
    root = page.locator("#roofline-explorer-2")
    before = root.locator("dl").inner_text()
    root.get_by_label("Kernel").select_option("gemv")
    root.get_by_label("m, exact value").fill("nonsense")
    root.get_by_label("m, exact value").press("Enter")
    root.get_by_role("button", name="Reset").click()
    assert root.locator("dl").inner_text() == before and root.get_by_label("Kernel").input_value() == "softmax"
    root.get_by_label("Kernel").select_option("gemv")
    assert root.get_by_role("alert").count() == 0
    assert root.get_by_label("m, exact value").input_value() == "4,096"


def test_the_copied_python_runs(watched, address):
    page = opened(watched, address)
    read = clipboard(page)
    root = page.locator("#overhead")
    root.get_by_label(re.compile("^Matrix size .*product")).and_(root.locator("input[type=range]")).press("ArrowRight")
    root.get_by_role("button", name="Copy as Python").click()
    root.get_by_text("Python copied.").wait_for()
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(read(), "copied", "exec"), {})
    assert f"Time of a call, at least: {output(root, 'Time of a call, at least')}" in printed.getvalue().splitlines()


def test_a_clipboard_that_refuses_is_said_and_the_text_shown(watched, address):
    watched.page.add_init_script(
        "navigator.clipboard.writeText = () => Promise.reject(new DOMException('no', 'NotAllowedError'))"
    )
    page = opened(watched, address)
    root = page.locator("#fusion")
    root.get_by_role("button", name="Copy as Python").click()
    assert "did not allow copying" in root.get_by_role("status").inner_text()
    assert root.get_by_label("Text to copy").input_value().startswith("from efflab.formulas import roofline")
    watched.assert_clean()


def test_a_saved_prediction_is_valid(watched, address, tmp_path):
    page = opened(watched, address)
    root = page.locator("#fusion")
    with page.expect_download() as download:
        root.get_by_role("button", name="Save as prediction").click()
    file = tmp_path / download.value.suggested_filename
    download.value.save_as(file)
    made = load_prediction(file)
    here = calculators.get("fusion").evaluate()
    assert (made.source, made.calculator, made.topic) == ("site", "fusion", "roofline")
    assert made.inputs == {n: here.state[n] for n in here.relevant}
    assert made.outputs["fusion_speedup"].value == pytest.approx(here["fusion_speedup"])
    assert file.name in root.get_by_role("status").inner_text()
    watched.assert_clean()


def test_calculators_can_share_an_accelerator_and_a_data_type(watched, address):
    page = opened(watched, address)
    names = [c.name for c in calculators.every().values() if c.topic == "roofline"]
    roots = [page.locator(f"#{n}") for n in [*names, "roofline-explorer-2"]]
    roots[1].get_by_label("Accelerator", exact=True).select_option("L4")
    assert roots[0].get_by_label("Accelerator", exact=True).input_value() == "H200 SXM"
    roots[1].get_by_label("Same accelerator and data type in all calculators of this page").check()
    for root in roots:
        assert root.get_by_label("Accelerator", exact=True).input_value() == "L4"
        assert root.get_by_label("Same accelerator").is_checked()
    roots[0].get_by_label("Accelerator", exact=True).select_option("H100 SXM")
    roots[0].get_by_label("Data type", exact=True).select_option("fp8")
    assert all(root.get_by_label("Data type", exact=True).input_value() == "fp8" for root in roots)
    shown = calculators.get("ridge-point").evaluate(accelerator="H100 SXM", dtype="fp8").text("ridge_point")
    assert output(roots[names.index("ridge-point")], "Ridge point") == shown
    roots[2].get_by_label("Same accelerator").uncheck()
    roots[0].get_by_label("Accelerator", exact=True).select_option("T4")
    assert roots[1].get_by_label("Accelerator", exact=True).input_value() == "H100 SXM"
    watched.assert_clean()


@pytest.mark.parametrize("width", [320, 390, 768, 1280])
def test_no_width_overflows(watched, address, width):
    watched.page.set_viewport_size({"width": width, "height": 800})
    page = opened(watched, address)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for kernel in ("attention_decode", "custom"):
        page.locator("#roofline-explorer").get_by_label("Kernel").select_option(kernel)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    small = page.evaluate(
        """[...document.querySelectorAll("main :is(select, button, input)")].filter((n) => n.checkVisibility())
        .map((n) => [n, (n.type === "checkbox" ? n.closest("label") : n).getBoundingClientRect()])
        .filter(([n, r]) => r.height < 24 || r.width < 24).map(([n]) => n.outerHTML)"""
    )
    assert not small
    watched.assert_clean()


def test_ids_are_unique_and_every_control_has_a_name(watched, address):
    page = opened(watched, address)
    ids = page.evaluate("[...document.querySelectorAll('[id]')].map((n) => n.id)")
    assert len(ids) == len(set(ids))
    unnamed = page.evaluate(
        """[...document.querySelectorAll("main :is(select, button, input, textarea)")]
        .filter((n) => !(n.labels?.length || n.getAttribute("aria-label") || n.textContent.trim()))
        .map((n) => n.outerHTML)"""
    )
    assert not unnamed


@pytest.mark.parametrize("width", [390, 1000])
def test_the_script_moves_nothing(browser, folder, width):
    """The page without its script and the page with it have the same layout, so nothing jumps when it starts."""
    explorer = calculators.get("roofline-explorer")
    heights = [_height(browser, folder, explorer, enabled, width) for enabled in (False, True)]
    assert heights[0] == pytest.approx(heights[1], abs=4)


def _height(browser, folder, calculator, enabled, width):
    """The calculator's height with its script, or as a browser with scripts shows it until the script runs."""
    page = HEAD + markup.html(calculator) + "</main></body></html>"
    early = re.sub(r"@media \(scripting: none\) .*", "", bundle.style())
    assert early != bundle.style()
    (folder / "early.css").write_text(early)
    (folder / "one.html").write_text(page if enabled else page.replace('href="efflab.css"', 'href="early.css"'))
    context = browser.new_context(viewport={"width": width, "height": 800}, java_script_enabled=enabled)
    page = context.new_page()
    page.goto(f"file://{folder}/one.html")
    if enabled:
        page.wait_for_selector("[data-ready]")
    height = page.locator(".efflab-calculator").bounding_box()["height"]
    context.close()
    return height


def test_without_a_script_the_numbers_are_there(browser, folder):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(f"file://{folder}/index.html")
    root = page.locator("#roofline-explorer")
    here = calculators.get("roofline-explorer").evaluate()
    assert here.verdict in root.inner_text() and here.text("time") in root.inner_text()
    assert root.locator(".calc-plot").is_hidden()
    assert json.dumps("H200 SXM")[1:-1] in root.inner_text()
    context.close()


# ---- the parts of the later chapters: stacks, tables, number fields, bits


def number_format(page):
    root = page.locator("#number-format")
    field = root.get_by_label("Number", exact=True)

    def typed(text, format=None):
        if format:
            root.get_by_label("Format", exact=True).select_option(format)
        field.fill(text)
        field.press("Enter")
        return output(root, "Stored"), root.locator(".calc-bits").get_attribute("aria-label")

    return root, field, typed


def test_the_explorer_follows_what_is_typed(watched, address):
    page = opened(watched, address)
    root, field, typed = number_format(page)
    for text, format in [("0.1", "FP16"), ("2^-24", "FP16"), ("65520", "FP16"), ("-0", "BF16"), ("nan", "FP8 E4M3FN"),
                         ("-inf", "FP8 E5M2"), ("1e30", "FP4 E2M1"), ("-1e-310", "FP64")]:  # fmt: skip
        here = calculators.get("number-format").evaluate(value=text, format=format)
        stored, bits = typed(text, format)
        assert stored == here.text("stored") and root.locator(".calc-verdict").inner_text() == here.verdict
        fields = here.bits()
        assert fields.exponent in bits and bits.endswith(fields.meaning)
        cells = root.locator(".calc-cells b").all_inner_texts()
        assert "".join(cells) == fields.sign + fields.exponent + fields.mantissa
        row = root.locator(".calc-compare tr", has=page.get_by_role("button", name=format, exact=True))
        assert row.locator("td").first.inner_text() == calculators.get("number-format")._text(
            "stored", here.state, here["stored"], brief=True
        )
    before = output(root, "Stored")
    typed("one third")
    assert "no number found" in root.get_by_role("alert").inner_text() and field.input_value() == "one third"
    assert output(root, "Stored") == before and field.get_attribute("aria-invalid") == "true"
    watched.assert_clean()


def test_a_row_of_the_table_chooses_its_format(watched, address):
    page = opened(watched, address)
    root, _, typed = number_format(page)
    typed("300")
    pick = root.get_by_role("button", name="FP8 E4M3FN", exact=True)
    pick.focus()
    page.keyboard.press("Enter")
    assert root.get_by_label("Format", exact=True).input_value() == "FP8 E4M3FN"
    assert pick.get_attribute("aria-pressed") == "true" and root.locator("[aria-pressed=true]").count() == 1
    assert output(root, "Stored") == "288"
    watched.assert_clean()


def test_the_explorer_is_shared_reset_copied_and_saved(watched, address, tmp_path):
    page = opened(watched, address)
    read = clipboard(page)
    root, field, typed = number_format(page)
    typed("-2^-24", "FP16")
    root.get_by_role("button", name="Share").click()
    root.get_by_text("Link copied").wait_for()
    link = read()
    root.get_by_role("button", name="Copy as Python").click()
    root.get_by_text("Python copied.").wait_for()
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(read(), "copied", "exec"), {})
    assert "Stored: −5.9604644775390625 × 10⁻⁸" in printed.getvalue().splitlines()
    with page.expect_download() as download:
        root.get_by_role("button", name="Save as prediction").click()
    download.value.save_as(tmp_path / "prediction.json")
    made = load_prediction(tmp_path / "prediction.json")
    assert made.inputs["value"] == "-2^-24" and made.outputs["stored"].value == -(2.0**-24)
    root.get_by_role("button", name="Reset").click()
    assert field.input_value() == "0.1"
    page.goto("about:blank")
    page.goto(link)
    root, field, _ = number_format(page)
    root.locator("[aria-live]").wait_for()
    assert field.input_value() == "-2^-24" and output(root, "Stored") == "−5.9604644775390625 × 10⁻⁸"
    watched.assert_clean()


def test_a_stack_shows_what_is_too_much(watched, address):
    page = opened(watched, address)
    root, calculator = page.locator("#kv-cache"), calculators.get("kv-cache")
    for context, kind in (("4,096", "free"), ("65,536", "over")):
        field = root.get_by_label(re.compile("^Context.*exact value"))
        field.fill(context)
        field.press("Enter")
        listed = calculator.evaluate(context_length=context).listed()
        rows = root.locator(".calc-stack tr").all_inner_texts()
        assert [r.split("\t") for r in rows] == [[label, amount, share] for _, label, amount, share in listed]
        assert listed[-1][0] == kind and root.locator(f".calc-stack .calc-{kind}").count() == 1
        parts = [p.bounding_box() for p in root.locator(".calc-stack svg .part").all()]
        shares = [float(re.sub("[^0-9.]", "", share)) for k, _, _, share in listed if k == "part"]
        widths = [p["width"] for p in parts]
        assert widths[1] / widths[0] == pytest.approx(shares[1] / shares[0], rel=0.05)  # drawn to a tenth of a pixel
        assert (root.locator(".calc-stack svg .over").count() == 1) == (kind == "over")
    watched.assert_clean()


@pytest.mark.parametrize("width", [390, 1000])
@pytest.mark.parametrize("name", ["number-format", "kv-cache", "compute-optimal"])
def test_the_script_moves_nothing_of_the_later_parts_either(browser, folder, name, width):
    heights = [_height(browser, folder, calculators.get(name), enabled, width) for enabled in (False, True)]
    assert heights[0] == pytest.approx(heights[1], abs=4)


def test_a_hint_can_be_followed_and_old_results_step_back(watched, address):
    page = opened(watched, address)
    root = page.locator("#compute-optimal")
    field = root.get_by_label("Amount, exact value").locator("visible=true")
    note = root.locator(".calc-stale-note")
    before = output(root, "Parameters")
    assert note.is_hidden()
    field.fill("1e21")
    field.press("Enter")
    assert root.get_by_role("alert").inner_text().endswith("Add one, such as '1e21 FLOP'.")
    assert note.is_visible() and output(root, "Parameters") == before
    ink, muted = (
        page.evaluate("(n) => getComputedStyle(n).color", root.locator(s).first.element_handle())
        for s in (".calc-title", "dd")
    )
    assert ink != muted
    field.fill("1e21 FLOP")
    field.press("Enter")
    assert note.is_hidden() and root.get_by_role("alert").count() == 0
    assert output(root, "Parameters") == calculators.get("compute-optimal").evaluate(budget_flops=1e21).text(
        "optimal_parameters"
    )
    watched.assert_clean()


def test_the_devices_that_are_told_are_enough(watched, address):
    page = opened(watched, address)
    root = page.locator("#training-time")
    told = output(root, "Devices for the deadline")
    assert told == "12,222"
    field = root.get_by_label("Devices, exact value")
    field.fill(told)
    field.press("Enter")
    assert root.locator(".calc-verdict").inner_text().startswith("In time")
    watched.assert_clean()


def test_a_sum_is_what_its_parts_add_up_to(watched, address):
    page = opened(watched, address)
    root = page.locator("#kv-cache")
    here = calculators.get("kv-cache").evaluate(batch=16)
    field = root.get_by_label(re.compile("^Batch.*exact value"))
    field.fill("16")
    field.press("Enter")
    assert output(root, "On one accelerator") == here.text("total")
    assert here["total"] == here["weights"] + here["cache"]
    rows = root.locator(".calc-stack .calc-total td").first.inner_text()
    assert rows == here.text("total")
    watched.assert_clean()


def test_a_row_of_the_table_of_fits_chooses_its_fit(watched, address):
    page = opened(watched, address)
    root, calculator = page.locator("#compute-optimal"), calculators.get("compute-optimal")
    table = root.locator(".calc-compare")
    for name in calculator.table["law"].table:
        table.get_by_role("button", name=name, exact=True).click()
        here = calculator.evaluate(law=name)
        assert output(root, "Parameters") == here.text("optimal_parameters")
        assert root.locator(".calc-verdict").inner_text() == here.verdict
        cells = table.locator(".calc-chosen-row td").all_inner_texts()
        assert cells == [calculator.cell(c, here.state, here[c]) for c in calculator.compare.columns]
        assert root.get_by_label("Published fit", exact=True).input_value() == name
    watched.assert_clean()


def test_an_error_of_many_digits_is_short_first(watched, address):
    page = opened(watched, address)
    watched.page.set_viewport_size({"width": 390, "height": 844})
    root, _, typed = number_format(page)
    first, small = output(root, "Error: stored less typed").split("\n")
    assert first.strip() == "≈ 9.77 × 10⁻⁵" and small.startswith("exactly 0.000097")
    typed("0.5")
    assert output(root, "Error: stored less typed") == "0"
    assert root.locator(".calc-compare").evaluate("(n) => n.scrollWidth <= n.clientWidth + 1")
    watched.assert_clean()


def test_a_limit_that_was_not_measured_is_neither_offered_nor_listed(watched, address):
    page = opened(watched, address)
    root = page.locator("#power-limit")
    limit = root.get_by_label("Power limit", exact=True)
    root.get_by_label("Measured", exact=True).select_option("V100, BERT")
    of = "(s) => [...s.options].filter((o) => o.disabled).map((o) => o.value)"
    assert limit.evaluate(of) == sorted(calculators.get("power-limit").evaluate(curve="V100, BERT").refused("limit"))
    assert "300 W" in limit.evaluate(of)
    shown = root.locator(".calc-compare tbody tr:not([hidden]) th").all_inner_texts()
    assert shown == [f"{w} W" for w in range(100, 251, 25)]
    watched.assert_clean()


def test_what_a_measured_power_leaves_out_says_why(watched, address):
    page = opened(watched, address)
    root = page.locator("#training-footprint")
    assert output(root, "Energy, at the least") != "measured: no band"
    root.get_by_label("What is known", exact=True).select_option("measured")
    assert output(root, "Energy, at the least") == output(root, "Carbon, at the most") == "measured: no band"
    watched.assert_clean()
