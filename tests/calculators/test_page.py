"""What a page holds before its script runs, and the directive that puts it there."""

from __future__ import annotations

import io
import json
import re
from html.parser import HTMLParser

import pytest
from sphinx.application import Sphinx
from sphinx.util.docutils import docutils_namespace

from efflab import calculators
from efflab.calculators import bundle, markup
from efflab.errors import EfflabError

NAMES = list(calculators.every())


@pytest.mark.parametrize("name", NAMES)
def test_the_page_reads_without_a_script(name):
    calculator = calculators.get(name)
    page = markup.html(calculator)
    text = re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)
    text = re.sub(r"<[^>]+>", " ", text)
    result = calculator.evaluate()
    assert calculator.title in text and result.verdict in text
    for output in calculator.outputs:
        if output.shown:
            assert output.label in text and result.text(output.name) in text
    for given in result.relevant:
        assert calculator.table[given].label in text


@pytest.mark.parametrize("name", NAMES)
def test_what_is_opened_is_closed(name):
    open_tags = []
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, attributes: open_tags.append(tag)
    parser.handle_endtag = lambda tag: open_tags.pop() == tag or pytest.fail(f"{tag} closes another element")
    parser.feed(markup.html(calculators.get(name)))
    assert not open_tags


@pytest.mark.parametrize("name", NAMES)
def test_the_page_suits_a_strict_policy(name):
    page = markup.html(calculators.get(name))
    assert " style=" not in page and not re.search(r" on\w+=", page)
    scripts = re.findall(r"<script([^>]*)>(.*?)</script>", page, flags=re.DOTALL)
    assert [attributes for attributes, _ in scripts] == [' type="application/json"']
    assert json.loads(scripts[0][1]) == {"name": name, "state": {}}


def test_three_calculators_weigh_little():
    assert (
        sum(len(markup.html(calculators.get(n)).encode()) for n in ("roofline-explorer", "fusion", "overhead")) < 15000
    )


def test_a_page_starts_at_the_state_asked_for():
    page = markup.html(calculators.get("roofline-explorer"), "here", kernel="softmax", overhead="5 µs")
    assert 'id="here"' in page and calculators.get("roofline-explorer").evaluate(kernel="softmax").text("time") in page
    assert json.loads(re.search(r"<script[^>]*>(.*?)</script>", page)[1])["state"]["overhead"] == pytest.approx(5e-6)
    with pytest.raises(EfflabError, match="m must be between"):
        markup.html(calculators.get("roofline-explorer"), m=0)


def test_text_cannot_break_out_of_the_declaration():
    assert "</script" not in bundle.as_json({"label": "</script><b>"})


def build(folder, source, builder="html"):
    (folder / "source").mkdir()
    (folder / "source/index.rst").write_text(f"Title\n=====\n\n{source}\n")
    (folder / "source/conf.py").write_text(
        "def setup(app):\n    from efflab.site import calculators\n    calculators.setup(app)\n"
    )
    warnings = io.StringIO()
    folders = [folder / "source", folder / "source", folder / "out", folder / "trees"]
    with docutils_namespace():
        Sphinx(*folders, builder, status=None, warning=warnings).build()
    suffix = {"html": "html", "text": "txt"}[builder]
    return (folder / f"out/index.{suffix}").read_text(), warnings.getvalue()


def test_the_directive_puts_calculators_on_a_page(tmp_path):
    page, warnings = build(
        tmp_path,
        ".. calculator:: ridge-point\n\n.. calculator:: fusion\n   :operations: 12\n   :overhead: 2 µs\n\n"
        ".. calculator:: ridge-point\n   :dtype: fp8",
    )
    assert not warnings
    ids = re.findall(r'class="efflab-calculator" id="([^"]+)"', page)
    assert ids == ["ridge-point", "fusion", "ridge-point-2"]
    assert calculators.get("fusion").evaluate(operations=12, overhead=2e-6).verdict in page
    every_id = re.findall(r' id="([^"]+)"', page)
    assert len(every_id) == len(set(every_id))


def test_other_formats_get_the_numbers_as_text(tmp_path):
    page, warnings = build(tmp_path, ".. calculator:: ridge-point", "text")
    assert not warnings
    assert calculators.get("ridge-point").title in page and "206 FLOP/B" in page


@pytest.mark.parametrize(
    ("source", "told"),
    [
        (".. calculator:: ridge-pont", "Did you mean 'ridge-point'"),
        (".. calculator:: ridge-point\n   :dtype: fp9", "dtype: 'fp9' is not known"),
        (".. calculator:: ridge-point\n   :kernel: matmul", "ridge-point: input: 'kernel' is not known"),
        (".. calculator:: ridge-point\n   :colour: red", "colour"),
    ],
)
def test_a_wrong_directive_is_an_error(tmp_path, source, told):
    _, warnings = build(tmp_path, source)
    assert told in warnings and "ERROR" in warnings
