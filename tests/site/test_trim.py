"""What the site leaves out of its theme, on a copy of the theme's own files."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pydata_sphinx_theme
import pytest
from fontTools.ttLib import TTFont
from sphinx.errors import ExtensionError

from efflab.site import trim

THEME = Path(pydata_sphinx_theme.__file__).parent / "theme/pydata_sphinx_theme/static"
PAGE = '<i class="fa-solid fa-bars"></i><i class="fa-solid fa-magnifying-glass"></i>\uf015'
SEARCH = '<script src="../_static/searchtools.js"></script>\n<script src="../searchindex.js"></script>'


@pytest.fixture
def site(tmp_path):
    for part in ("styles", "vendor"):
        shutil.copytree(THEME / part, tmp_path / "_static" / part)
    (tmp_path / "_static/theme.js").write_text("node.classList.add('fa-xmark')")
    (tmp_path / "page.html").write_text(PAGE)
    return tmp_path


def drawn(font):
    """Character to its outline: what the font paints."""
    glyphs, table = font.getGlyphSet(), {}
    from fontTools.pens.recordingPen import RecordingPen

    for code, name in font.getBestCmap().items():
        pen = RecordingPen()
        glyphs[name].draw(pen)
        table[code] = (pen.value, glyphs[name].width)
    return table


def test_what_is_shown_is_kept_and_painted_the_same(site):
    whole = {f.stem: drawn(TTFont(f)) for f in (site / "_static/vendor").rglob("*.ttf")}
    before = (site / trim.THEME).read_text()
    trim.icons(site)
    after = (site / trim.THEME).read_text()
    for name in ("fa-bars", "fa-magnifying-glass", "fa-xmark"):
        assert re.search(rf"\.{name}:before[^{{]*\{{content", after), name
    assert ".fa-hippo:before" in before and ".fa-hippo:before" not in after
    assert len(after) < len(before) - 60_000
    fonts = list((site / "_static/vendor").rglob("*.woff"))
    assert {f.stem for f in fonts} == {"fa-solid-900", "fa-regular-400", "fa-brands-400"}
    for file in fonts:
        kept = drawn(TTFont(file))
        assert kept and all(whole[file.stem][code] == outline for code, outline in kept.items())
        assert file.stat().st_size < 10_000
    solid = drawn(TTFont(next(f for f in fonts if "solid" in f.stem)))
    assert {0xF0C9, 0xF002, 0xF00D, 0xF015} <= set(solid)  # bars, magnifying glass, x mark, and one in the text itself


def test_what_the_rest_of_the_sheet_draws_is_kept(site):
    """Admonitions, links to GitHub and the like name their characters in variables, as escapes or as themselves."""
    trim.icons(site)
    text = (site / trim.THEME).read_text()
    named = {chr(int(c, 16)) for c in re.findall(r"--pst-icon-[\w-]+:\s*\"\\([0-9a-f]{4})", text)}
    named |= set(re.findall(r"--pst-icon-[\w-]+:\s*\"([\ue000-\uf8ff])", text))
    assert len(named) >= 10, "the theme's variables were not found"
    fonts = [set(map(chr, TTFont(f).getBestCmap())) for f in (site / "_static/vendor").rglob("*.woff")]
    assert named <= set.union(*fonts)


def test_every_address_of_the_sheet_exists(site):
    trim.icons(site)
    sheet = site / trim.THEME
    found = re.findall(r"url\((\.\./vendor/[^)]+)\)", sheet.read_text())
    assert len(found) == 3 and all((sheet.parent / f).exists() for f in found)
    assert not list(site.rglob("*.ttf")) and not list(site.rglob("*.woff2"))


def test_trimming_twice_is_trimming_once(site):
    trim.icons(site)
    before = (site / trim.THEME).read_text()
    trim.icons(site)
    assert (site / trim.THEME).read_text() == before


def test_another_theme_is_noticed(site):
    (site / trim.THEME).write_text("body { color: red }")
    with pytest.raises(ExtensionError, match="Adapt ICON_RULE"):
        trim.icons(site)


def test_a_page_with_a_grid_keeps_what_draws_it(tmp_path):
    files = (
        '<link rel="stylesheet" type="text/css" href="../_static/sphinx-design.min.css?v=6a" />'
        '<script data-sd-tabs-storage-prefix="sd-id-" src="../_static/design-tabs.js?v=fc"></script>'
    )
    grid = f'{files}<div class="sd-container sd-row">'
    (tmp_path / "grid.html").write_text(grid)
    (tmp_path / "page.html").write_text(f'{files}<div class="other">')
    trim.design(tmp_path)
    assert (tmp_path / "grid.html").read_text() == grid
    assert (tmp_path / "page.html").read_text() == '<div class="other">'


def test_the_search_index_stays_where_it_is_used(tmp_path):
    off = f"{SEARCH}<script>DOCUMENTATION_OPTIONS.search_as_you_type = false;</script>"
    on = off.replace("false", "true")
    for name, text in (("page.html", off), ("typing.html", on), ("search.html", off)):
        (tmp_path / name).write_text(text)
    trim.search(tmp_path)
    assert "searchindex" not in (tmp_path / "page.html").read_text()
    assert (tmp_path / "typing.html").read_text() == on and (tmp_path / "search.html").read_text() == off


def test_a_page_starts_in_the_theme_of_the_system(tmp_path):
    page = tmp_path / "page.html"
    page.write_text(
        f'<html lang="en" data-theme="auto"><script>x = {trim.NO_THEME};</script><body data-default-mode="auto">'
    )
    trim.theme(tmp_path)
    assert page.read_text() == (
        f'<html lang="en"><script>x = {trim.SYSTEM_THEME};</script><body data-default-mode="auto">'
    )
