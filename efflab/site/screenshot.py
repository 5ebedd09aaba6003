"""Make the README's screenshot from the built book: `python -m efflab.site.screenshot _build/html`."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from efflab.errors import EfflabError
from efflab.site.assets import ROOT

TARGET = ROOT / "book/_static/screenshot.png"


def main(folder: str) -> int:
    """Open the roofline chapter of the built book in headless Chromium and photograph its first calculator."""
    from playwright.sync_api import sync_playwright

    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not browser:
        raise EfflabError("screenshot: no Chromium found. Install it (Debian: apt install chromium).")
    page_file = Path(folder).resolve() / "book/roofline.html"
    if not page_file.exists():
        raise EfflabError(f"screenshot: {page_file} does not exist. Run 'make book' first.")
    TARGET.parent.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox", "--disable-gpu"])
        page = running.new_page(viewport={"width": 1100, "height": 1000}, device_scale_factor=1.5, color_scheme="light")
        page.goto(page_file.as_uri())
        page.add_style_tag(content=".bd-header, .bd-header-article { display: none !important }")
        page.locator(".efflab-calculator").first.screenshot(path=TARGET)
        running.close()
    print(TARGET.relative_to(ROOT))
    return 0


if __name__ == "__main__":
    sys.exit(main(*(sys.argv[1:] or ["_build/html"])))
