"""No page asks another host for anything."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx
from sphinx.errors import ExtensionError

# What the theme and its companions load that no page here needs: MathJax (equations are rendered at build
# time), Thebe and require.js (no kernel), html-manager (calculators have their own front end).
UNWANTED = ("mathjax", "thebe", "require.min.js", "html-manager", "embed-amd")
# The theme's icons exist twice, as 1.5 MB of script and as a font in its style sheet. The font suffices.
ICON_SCRIPT = re.compile(r"\s*<script[^>]*fontawesome\.js[^>]*></script>|\s*<link[^>]*fontawesome\.js[^>]*/?>")
INLINE_THEBE = re.compile(r"\s*<script>\s*(?:var|let|const)?\s*THEBE_JS_URL.*?</script>", re.DOTALL)
LOADED = re.compile(
    r"<(?:script|img|iframe|audio|video|source|embed|object|link)\b[^>]*?\b(?:src|href|data)\s*=\s*[\"']?((?:https?:)?//[^\"'\s>]+)",
    re.IGNORECASE,
)
CSS_URL = re.compile(r"(?:url\(\s*[\"']?|@import\s+[\"'])((?:https?:)?//[^\"')\s]+)", re.IGNORECASE)


def setup(app: Sphinx) -> None:
    """Connect the filter and the check."""
    app.connect("html-page-context", _filter, priority=900)
    app.connect("build-finished", _finish, priority=900)


def _filter(app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: Any) -> None:
    def wanted(file: Any) -> bool:
        name = str(getattr(file, "filename", file) or "")
        return not any(u in name.lower() for u in UNWANTED)

    context["script_files"] = [f for f in context.get("script_files", []) if wanted(f)]
    context["css_files"] = [f for f in context.get("css_files", []) if wanted(f)]


def remote_assets(folder: Path) -> list[str]:
    """Every remote address that a page or a style sheet of a built site would load, as "file: address"."""
    found = []
    for page in sorted(folder.rglob("*.html")):
        text = page.read_text(encoding="utf-8")
        for match in LOADED.finditer(text):
            tag = match.group(0).lower()
            if tag.startswith("<link") and re.search(r'rel="?(canonical|author|license|next|prev)', tag):
                continue
            found.append(f"{page.relative_to(folder)}: {match.group(1)}")
    for sheet in sorted(folder.rglob("*.css")):
        for match in CSS_URL.finditer(sheet.read_text(encoding="utf-8", errors="replace")):
            found.append(f"{sheet.relative_to(folder)}: {match.group(1)}")
    return found


def _finish(app: Sphinx, exception: Exception | None) -> None:
    if exception or app.builder.format != "html":
        return
    out = Path(app.outdir)
    for page in out.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        cleaned = INLINE_THEBE.sub("", ICON_SCRIPT.sub("", text))
        # The theme's search button has no name for a screen reader.
        cleaned = re.sub(
            r'<button class="([^"]*search-button[^"]*)"(?![^>]*aria-label)',
            r'<button class="\1" aria-label="Search"',
            cleaned,
        )
        # Roles that docutils writes and ARIA has deprecated, or forbids where they stand.
        cleaned = re.sub(r' role="doc-(biblioentry|backlink)"', "", cleaned)
        cleaned = re.sub(r'<div role="list" class="citation-list">', '<div class="citation-list">', cleaned)
        if cleaned != text:
            page.write_text(cleaned, encoding="utf-8")
    for leftover in ("scripts/fontawesome.js", "scripts/fontawesome.js.map", "scripts/fontawesome.js.LICENSE.txt"):
        (out / "_static" / leftover).unlink(missing_ok=True)
    if found := remote_assets(out):
        raise ExtensionError("pages would ask other hosts: " + "; ".join(found[:10]))
