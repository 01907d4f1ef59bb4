"""The page while runs go on: served on this machine alone, made anew when they have written.

Nothing is written: the page lies in memory, and runs are only read.
"""

import time
from collections.abc import Callable, Iterable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

from experiments.errors import UserError
from experiments.reports.render import html
from experiments.reports.sections import Section, Text
from experiments.runs.layout import find, holds
from experiments.runs.states import read_state
from experiments.runtime.progress import say

HOST, PORT = "127.0.0.1", 8000
NAMES = (HOST, "localhost")  # under which a browser may ask: no other site's name leads here
LOOK_SECONDS, REST_SECONDS = 2.0, 8.0
WRITTEN = ("meta.json", "metrics.jsonl", "steps.jsonl", "DONE")


class Live:
    """A page that is made anew when what it shows has changed.

    Args:
        root: below which the runs are.
        make: returns the page's sections; raises UserError where there is nothing to show yet.
        port: 0 for any that is free.

    Raises:
        UserError: the port is taken.
    """

    def __init__(self, root: Path, make: Callable[[], Iterable[Section]], port: int = PORT) -> None:
        self.root, self.make = root, make
        self.seen: Any = None
        self.version, self.page = "", b""
        try:
            self.http = ThreadingHTTPServer((HOST, port), _handler(self))
        except OSError as error:
            raise UserError(
                f"--port {port}: {error.strerror or error}; --port 0 takes a free one"
            ) from None
        self.http.daemon_threads = True

    @property
    def address(self) -> str:
        return f"http://{HOST}:{self.http.server_port}/"

    def look(self) -> bool:
        """Make the page anew if any run has changed; returns whether it did."""
        found = fingerprint(self.root)
        if found == self.seen:
            return False
        try:
            sections = list(self.make())
        except UserError as error:
            sections = [Section("Nothing to show yet", [Text(str(error))])]
        self.seen, version = found, str(time.time_ns())
        page = html.render(self.root.resolve().name, sections, version)
        self.page, self.version = page.encode(), version
        return True

    def run(self) -> None:
        """Serve until Ctrl-C."""
        self.look()
        thread = Thread(target=self.http.serve_forever, name="page", daemon=True)
        thread.start()
        try:
            say(f"{self.address} shows the runs below {self.root} as they go on; Ctrl-C ends it")
            while True:
                time.sleep(REST_SECONDS if self.look() else LOOK_SECONDS)
        except KeyboardInterrupt:
            say("ended; the runs go on")
        finally:
            self.http.shutdown()
            self.http.server_close()


def fingerprint(root: Path) -> list[Any]:
    """What changes when a run has written something, begins, or ends in any way."""
    found: list[Any] = []
    for directory in find(root):
        state = "" if holds(directory, "DONE") else read_state(directory)[0]
        sizes: list[Any] = []
        for name in WRITTEN:
            try:
                status = (directory / name).stat()
                sizes.append((status.st_size, status.st_mtime_ns))
            except OSError:
                sizes.append(None)
        found.append((directory, state, sizes))
    return found


def _handler(live: Live) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *_: Any) -> None:
            pass

        def do_GET(self) -> None:
            name = self.headers.get("Host", "").partition(":")[0]
            if name not in NAMES:
                self.send_error(403)
            elif self.path == "/":
                self._send("text/html", live.page)
            elif self.path == "/version":
                self._send("text/plain", live.version.encode())
            else:
                self.send_error(404)

        def _send(self, kind: str, body: bytes) -> None:
            self.send_response(200)
            self.send_header("Content-Type", f"{kind}; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Cache-Control", "no-store")
            self.end_headers()
            self.wfile.write(body)

    return Handler
