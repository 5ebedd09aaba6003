"""Serve the built book on this machine: `python -m efflab.site.serve FOLDER [PORT]`."""

from __future__ import annotations

import contextlib
import functools
import http.server
import sys
from pathlib import Path


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass

    def end_headers(self) -> None:
        self.send_header("Cache-Control", "no-cache")  # a rebuilt page shows at once
        super().end_headers()


def main(folder: str, port: str = "8000") -> int:
    """Serve `folder` until interrupted; takes the next free port when `port` is in use."""
    if not (Path(folder) / "index.html").exists():
        print(f"{folder}: no built book here. Run 'make book' first.", file=sys.stderr)
        return 2
    try:
        first = int(port)
    except ValueError:
        print(f"PORT={port}: not a number. Use for example 'make serve PORT=8080'.", file=sys.stderr)
        return 2
    handler = functools.partial(_Quiet, directory=folder)
    for candidate in range(first, first + 50):
        try:
            server = http.server.ThreadingHTTPServer(("127.0.0.1", candidate), handler)
        except (OSError, OverflowError):
            continue
        print(f"The book is at http://localhost:{candidate}/ (Ctrl-C stops)", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            server.serve_forever()
        return 0
    print(f"No free port from {first} to {first + 49}. Choose another: make serve PORT=9000", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:3]))
