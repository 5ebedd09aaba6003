"""Print every budget with what was measured: `python -m bench [BUILT_BOOK]`."""

from __future__ import annotations

import functools
import http.server
import json
import shutil
import statistics
import sys
import threading
import time
from pathlib import Path

from efflab import chapters, experiments, reconcile, records
from efflab.experiments import runner

KB = 1e3
PAGES = tuple(f"{page}.html" for page in chapters.pages())
OWN = ("efflab.js", "efflab.css", "katex.min.css")


def line(what: str, value: str, budget: str, kept: bool) -> None:
    """Print one budget."""
    print(f"{what:<52} {value:>14}   budget {budget:<12} {'kept' if kept else 'EXCEEDED'}")


class _Server(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


def site(folder: Path) -> None:
    """Weights of pages, time to the first working calculator, latency of an update, requests to other hosts."""
    from playwright.sync_api import sync_playwright

    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not browser:
        print("site: skipped, no Chromium found (Debian: apt install chromium)")
        return
    handler = functools.partial(_Server, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox", "--disable-gpu"])
        for name in PAGES:
            sizes: dict[str, int] = {}
            remote: list[str] = []
            page = running.new_context(viewport={"width": 1280, "height": 900}).new_page()
            page.on("request", lambda r, found=remote: found.append(r.url) if not r.url.startswith(address) else None)
            page.on("response", lambda r, found=sizes: found.update({r.url: len(r.body())}) if r.ok else None)
            page.goto(f"{address}/{name}", wait_until="networkidle")
            own = sum(s for u, s in sizes.items() if u.endswith(name) or any(o in u for o in OWN) or "/_images/" in u)
            whole = sum(sizes.values())
            line(f"{name}: own bytes", f"{own / KB:.0f} kB", "150 kB", own < 150 * KB)
            line(f"{name}: whole page, uncompressed", f"{whole / KB:.0f} kB", "1000 kB", whole < 1000 * KB)
            line(f"{name}: requests to other hosts", str(len(remote)), "0", not remote)
            page.context.close()
        first, updates = [], []
        for _ in range(7):
            page = running.new_context(viewport={"width": 1280, "height": 900}).new_page()
            page.goto(f"{address}/book/roofline.html", wait_until="commit")
            page.wait_for_selector(".efflab-calculator svg", state="attached")
            first.append(page.evaluate("performance.now() - performance.getEntriesByType('navigation')[0].responseEnd"))
            page.wait_for_load_state("load")
            updates += page.evaluate(
                """() => {
                    const slider = document.querySelector('.efflab-calculator input[type=range]:not([disabled])');
                    const times = [];
                    for (let i = 0; i < 60; i++) {
                        slider.value = String(Number(slider.min || 0) + (i % 20));
                        const begin = performance.now();
                        slider.dispatchEvent(new Event('input', { bubbles: true }));
                        times.push(performance.now() - begin);
                    }
                    return times;
                }"""
            )
            page.context.close()
        running.close()
    server.shutdown()
    middle = statistics.median(first)
    line("first working calculator after the HTML, median of 7", f"{middle:.0f} ms", "300 ms", middle < 300)
    p95 = sorted(updates)[int(0.95 * len(updates))]
    line("one update of the roofline explorer, p95", f"{p95:.1f} ms", "4 ms", p95 < 4)


def harness(tmp: Path) -> None:
    """The runner's own time as a share of a run, at the smallest scale, where it weighs most."""
    for topic in experiments.topics():
        busy = 0.0
        experiment = experiments.get(topic)

        def report(_: str) -> None:
            pass

        original = runner._attempt

        def timed(case, device, original=original):  # type: ignore[no-untyped-def]
            nonlocal busy
            begin = time.perf_counter()
            result = original(case, device)
            busy += time.perf_counter() - begin
            return result

        runner._attempt = timed
        try:
            begin = time.perf_counter()
            runner.run(experiment, scale="smoke", device="cpu", out=tmp, report=report)
            total = time.perf_counter() - begin
        finally:
            runner._attempt = original
        share = 1 - busy / total
        line(f"{topic}: runner outside the cases, smoke scale", f"{share:.1%}", "2%", share < 0.02)


def predictions() -> None:
    """Prediction error of every recorded run."""
    for topic in experiments.topics():
        module = reconcile.topic(topic)
        for record in records.recorded(topic):
            print(f"{topic}: {module.banner(record)}")
            print(f"  {module.summary(record)}")


def main() -> int:
    """Print everything."""
    import tempfile

    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "_build/html")
    if (folder / "index.html").exists():
        site(folder)
    else:
        print(f"site: skipped, no built book in {folder}. Run 'make book'.")
    with tempfile.TemporaryDirectory() as tmp:
        harness(Path(tmp))
    predictions()
    print(json.dumps({"benched": time.strftime("%Y-%m-%d")}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
