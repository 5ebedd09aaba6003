"""What the theme ships and no page uses is left out, so that pages weigh less. Nothing looks different.

- Icons: the theme's style sheet names nearly two thousand and its fonts draw them all. The names that no page and no
  script of the site mentions go, and the fonts keep what the rest of the style sheets still draws.
- Search: every page loads the index for results while one types, which is off. The search page keeps it.
- sphinx-design: pages without a grid, a card or a tab do not load its style sheet and script.
- KaTeX: its style sheet names each font in three formats; the site ships one.
- Theme: the mode "auto" is no theme, so pages start in the one that the system asks for, without a script in light.
- Style sheets that come with comments and indentation lose them.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from sphinx.application import Sphinx
from sphinx.errors import ExtensionError

from efflab.site.assets import minified

THEME = "_static/styles/pydata-sphinx-theme.css"
ICON = re.compile(r"fa-[\w-]+")
ICON_RULE = re.compile(r'(?:\.fa-[\w-]+::?before,?)+\{content:"[^"]*"\}')
FACE = re.compile(r"@font-face\{[^}]*?(fontawesome/webfonts/[\w-]+)\.woff2[^}]*\}")
SOURCES = re.compile(r"src:url\([^)]*\)[^;}]*")
TRIMMED = 'fa-solid-900.woff) format("woff")'
CODE = re.compile(r"\\([0-9a-fA-F]{1,6})")
PRIVATE = re.compile("[\ue000-\uf8ff]")
SEARCH = re.compile(r"\s*<script src=\"[^\"]*(?:searchtools|language_data|searchindex)\.js[^\"]*\"></script>")
NO_SEARCH_WHILE_TYPING = "DOCUMENTATION_OPTIONS.search_as_you_type = false"
NO_THEME = 'localStorage.getItem("theme") || "auto"'
SYSTEM_THEME = (
    'localStorage.getItem("theme") || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")'
)
DESIGN = re.compile(r'class="[^"]*\bsd-')
DESIGN_FILES = re.compile(r"\s*(?:<link[^>]*sphinx-design\.min\.css[^>]*>|<script[^>]*design-tabs\.js[^>]*></script>)")
OTHER_FORMATS = re.compile(r",url\([^)]*\.(?:woff|ttf)\) format\(\"(?:woff|truetype)\"\)")


def setup(app: Sphinx) -> None:
    """Trim the built site after everything else is done with it."""
    app.connect("build-finished", _finish, priority=950)


def _finish(app: Sphinx, exception: Exception | None) -> None:
    if exception or app.builder.format != "html":
        return
    out = Path(app.outdir)
    search(out)
    design(out)
    icons(out)
    theme(out)
    rewrite(out / "_static/katex.min.css", lambda text: OTHER_FORMATS.sub("", text))
    for sheet in (out / "_static").glob("*.css"):
        if not sheet.name.endswith(".min.css"):
            rewrite(sheet, lambda text: minified(text, "theme.css"))


def search(out: Path) -> None:
    """The search index only where it is used."""
    for page in out.rglob("*.html"):
        if page.name != "search.html":
            rewrite(page, lambda text: SEARCH.sub("", text) if NO_SEARCH_WHILE_TYPING in text else text)


def design(out: Path) -> None:
    """sphinx-design only where it is used."""
    for page in out.rglob("*.html"):
        rewrite(page, lambda text: text if DESIGN.search(text) else DESIGN_FILES.sub("", text))


def theme(out: Path) -> None:
    """A page starts in the system's theme, not in one that no style sheet knows."""
    for page in out.rglob("*.html"):
        rewrite(page, lambda text: text.replace(' data-theme="auto"', "", 1).replace(NO_THEME, SYSTEM_THEME, 1))


def icons(out: Path) -> None:
    """The icons that are used, in the style sheet and in the fonts.

    Raises:
        ExtensionError: the theme's style sheet does not name icons as it did.
    """
    sheet = out / THEME
    if not sheet.exists() or TRIMMED in read(sheet):  # of an earlier build, where nothing was copied again
        return
    static = out / "_static"
    shown = "".join(read(f) for f in out.rglob("*.html")) + "".join(read(f) for f in static.rglob("*.js"))
    used = set(ICON.findall(shown))
    text = read(sheet)
    text, dropped = ICON_RULE.subn(lambda rule: rule[0] if used & set(ICON.findall(rule[0])) else "", text)
    faces = FACE.findall(text)
    if not dropped or not faces:
        raise ExtensionError(f"{THEME}: its icons are not where efflab/site/trim.py looks. Adapt ICON_RULE and FACE.")
    drawn = text + "".join(read(f) for f in static.rglob("*.css") if f != sheet)
    codes = {int(code, 16) for code in CODE.findall(drawn)} | {ord(c) for c in PRIVATE.findall(drawn + shown)}
    kept = {name: subset(static / "vendor" / name, codes) for name in faces}
    text = FACE.sub(lambda face: _face(face[0], face[1]) if kept[face[1]] else "", text)
    sheet.write_text(text, encoding="utf-8")


def _face(rule: str, name: str) -> str:
    return SOURCES.sub(f'src:url(../vendor/{name}.woff) format("woff")', rule)


def subset(font: Path, codes: set[int]) -> bool:
    """Replace a font's files by one that draws these characters only; False where it draws none of them."""
    from fontTools.subset import Options, Subsetter, load_font, save_font

    options = Options(flavor="woff", name_IDs=["*"], notdef_outline=True)
    source = font.with_suffix(".ttf")
    loaded = load_font(str(source), options)
    mine = codes & set(loaded.getBestCmap())
    if mine:
        chosen = Subsetter(options)
        chosen.populate(unicodes=mine)
        chosen.subset(loaded)
        save_font(loaded, str(font.with_suffix(".woff")), options)
    loaded.close()
    for file in (source, font.with_suffix(".woff2")):
        file.unlink(missing_ok=True)
    return bool(mine)


def read(file: Path) -> str:
    """A file's text; what is not UTF-8 in it is replaced."""
    return file.read_text(encoding="utf-8", errors="replace")


def rewrite(file: Path, change: Callable[[str], str]) -> None:
    """Write a file again if the change makes another text of it."""
    text = file.read_text(encoding="utf-8")
    if (changed := change(text)) != text:
        file.write_text(changed, encoding="utf-8")
