"""Print every budget with what was measured: `python -m bench [BUILT_BOOK]`."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import http.server
import importlib
import json
import shutil
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bench import ddp
from efflab import chapters, experiments, reconcile, records
from efflab.experiments import runner
from efflab.measure import device, timer

KB = 1e3
PAGES = tuple(f"{page}.html" for page in chapters.pages())
OWN = ("/efflab", "katex.min.css")


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


class _Stopwatch:
    """Adds up the seconds spent inside functions, by name; time inside an inner one counts for the outermost only."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._inside = False

    def watch(self, name: str | Callable[[], str], function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, timed under a name unless another watched one called it."""

        @functools.wraps(function)
        def timed(*given: Any, **named: Any) -> Any:
            if self._inside:
                return function(*given, **named)
            self._inside = True
            key = name if isinstance(name, str) else name()
            begin = time.perf_counter()
            try:
                return function(*given, **named)
            finally:
                self._inside = False
                self.seconds[key] = self.seconds.get(key, 0.0) + time.perf_counter() - begin

        return timed


class _Watched:
    """An experiment whose cases tell how long they ran."""

    def __init__(self, experiment: Any) -> None:
        self._experiment = experiment
        self.topic, self.scales = experiment.topic, experiment.scales
        self.inside, self.first, self.last = 0.0, 0.0, 0.0

    def plan(self, *given: Any) -> runner.Plan:
        """The experiment's plan with watched cases."""
        plan = self._experiment.plan(*given)
        plan.cases = [dataclasses.replace(c, samples=functools.partial(self._samples, c)) for c in plan.cases]
        return plan

    def _samples(self, case: runner.Case) -> Iterator[records.Sample]:
        begin = time.perf_counter()
        self.first = self.first or begin
        yield from case.samples()  # the runner only keeps what is yielded, which takes no time worth counting
        self.last = time.perf_counter()
        self.inside += self.last - begin


def harness(tmp: Path, scale: str = "cpu") -> None:
    """Where the time of a run goes, and the runner's own bookkeeping (files, progress, collecting garbage).

    Measured time is what is spent inside `efflab.measure.timer`, warm-up included. The budget is on the bookkeeping
    from the first case to the end, relative to that, at the scale that a learner runs.
    """
    torch = device.import_torch()
    for topic in experiments.topics():
        if topic == "ddp":  # measures in processes of its own; see bench.ddp
            continue
        watched, clock = _Watched(experiments.get(topic)), _Stopwatch()
        module = importlib.import_module(f"efflab.experiments.{topic}")
        threads = torch.get_num_threads()

        def kind(threads: int = threads) -> str:
            return "one thread" if torch.get_num_threads() < threads else "timer"

        with contextlib.ExitStack() as put_back:
            for owner, attribute, name in (
                (getattr(module, "Session", None), "measure_ceiling", "ceilings"),
                (module, "profile", "profiling"),
                (timer, "back_to_back", kind),
                (timer, "waited", kind),
            ):
                if owner is not None and hasattr(owner, attribute):
                    real = getattr(owner, attribute)
                    put_back.callback(setattr, owner, attribute, real)
                    setattr(owner, attribute, clock.watch(name, real))
            begin = time.perf_counter()
            runner.run(watched, scale=scale, device="cpu", out=tmp, report=lambda _: None)
            end = time.perf_counter()
        ceilings, profiling = clock.seconds.get("ceilings", 0.0), clock.seconds.get("profiling", 0.0)
        alone, cases = clock.seconds.get("one thread", 0.0), clock.seconds.get("timer", 0.0)
        measured = cases + alone + ceilings
        own = (end - watched.first) - watched.inside
        for what, seconds in (
            ("before the first case: device, versions, plan", watched.first - begin),
            ("timing the cases, warm-up included", cases),
            ("timing ceilings, once and again around each case", ceilings),
            ("timing on one thread", alone),
            ("profiling", profiling),
            ("making tensors, compiling", watched.inside - measured - profiling),
        ):
            print(f"{topic}, {scale} scale: {what:<52} {seconds:>8.2f} s")
        share = own / measured
        line(f"{topic}: runner's bookkeeping to measured time", f"{share:.1%}", "2%", share < 0.02)


def ranks(tmp: Path) -> None:
    """A step of data-parallel training as the lab times it, against a bare loop in the same processes."""
    low, middle, high = ddp.ratio(tmp)
    print(f"ddp: middle half of the ratios: {low:.3f} to {high:.3f}")
    line("ddp: step in the harness to a bare loop's", f"{middle:.3f}", "1.02", middle < 1.02)


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
        ranks(Path(tmp))
    predictions()
    print(json.dumps({"benched": time.strftime("%Y-%m-%d")}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
