"""A loopback server that speaks enough of wandb's protocol to receive runs and resume them.

It keeps what a client sends and checks nothing: neither that steps are unique nor that they grow.
Whoever uploads has to see to that, and the tests read it off here.
"""

import gzip
import json
import re
import sys
import threading
import time
from collections import defaultdict
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

API_KEY = "0" * 40


@dataclass
class StoredRun:
    """One run as the server holds it; `history` has the lines as they were sent."""

    history: list[str] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    description: dict[str, Any] = field(default_factory=dict)
    exit_code: int | None = None

    def epochs(self) -> list[int]:
        return [row["epoch"] for row in self.rows()]

    def rows(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.history]


class QuietServer(ThreadingHTTPServer):
    """Says nothing of clients that hang up: it would stand in what the tests read."""

    def handle_error(self, request, client_address) -> None:
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class WandbServer:
    """Serves from entering to leaving the context, on a free port of 127.0.0.1.

    Attributes:
        runs: what was received, by run id.
        views: the workspace views that were written, by name.
    """

    def __init__(self) -> None:
        self.runs: dict[str, StoredRun] = defaultdict(StoredRun)
        self.views: dict[str, dict[str, Any]] = {}
        self.http = QuietServer(("127.0.0.1", 0), _handler(self))
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        self.environment = {"WANDB_BASE_URL": self.url, "WANDB_API_KEY": API_KEY}
        self.received = threading.Event()  # set once a line of history has arrived

    def __enter__(self) -> "WandbServer":
        threading.Thread(target=self.http.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Stop answering: from now on connections are refused."""
        self.http.shutdown()
        self.http.server_close()

    # ------------------------------------------------------------------------- what it answers

    def graphql(self, operation: str, variables: dict[str, Any]) -> dict[str, Any]:
        answer = getattr(self, f"_{operation}", None)
        return answer(variables) if answer else {}

    def _Viewer(self, variables: dict[str, Any]) -> dict[str, Any]:
        return {"viewer": {"id": "1", "entity": "me", "username": "me", "flags": "{}"}}

    def _GetDefaultEntity(self, variables: dict[str, Any]) -> dict[str, Any]:
        return self._Viewer(variables)

    def _UpsertView2(self, variables: dict[str, Any]) -> dict[str, Any]:
        name = variables["name"]
        inserted = name not in self.views
        self.views[name] = variables
        return {"upsertView": {"view": {"id": f"id of {name}", "name": name}, "inserted": inserted}}

    def _View(self, variables: dict[str, Any]) -> dict[str, Any]:
        views = [view for name, view in self.views.items() if name == variables["viewName"]]
        edges = [{"node": {**view, "id": f"id of {view['name']}"}} for view in views]
        return {"project": {"allViews": {"edges": edges}}}

    def _RunResumeStatus(self, variables: dict[str, Any]) -> dict[str, Any]:
        bucket = None
        if (name := variables["name"]) in self.runs:
            run = self.runs[name]
            bucket = {
                "id": name,
                "name": name,
                "summaryMetrics": json.dumps(run.summary),
                "displayName": name,
                "logLineCount": 0,
                "historyLineCount": len(run.history),
                "eventsLineCount": 0,
                "historyTail": json.dumps(run.history[-1:]),
                "eventsTail": "[]",
                "config": json.dumps(run.config),
                "tags": [],
                "wandbConfig": json.dumps({"t": 1}),
            }
        project = {"id": "1", "name": variables["project"], "entity": {"id": "1", "name": "me"}}
        return {"model": {**project, "bucket": bucket}}

    def _UpsertBucket(self, variables: dict[str, Any]) -> dict[str, Any]:
        name = variables["name"]
        inserted = name not in self.runs
        run = self.runs[name]
        run.config |= json.loads(variables["config"] or "{}")
        run.description |= {key: value for key, value in variables.items() if value}
        project = {"id": "1", "name": variables["project"], "entity": {"id": "1", "name": "me"}}
        bucket = {
            "id": name,
            "name": name,
            "displayName": variables["displayName"],
            "config": json.dumps(run.config),
            "project": project,
            "historyLineCount": len(run.history),
        }
        return {"upsertBucket": {"bucket": bucket, "inserted": inserted}}

    def _CreateRunFiles(self, variables: dict[str, Any]) -> dict[str, Any]:
        run = variables["run"]
        files = [
            {"name": name, "uploadUrl": f"{self.url}/upload/{run}/{name}"}
            for name in variables["files"]
        ]
        return {"createRunFiles": {"runID": run, "uploadHeaders": [], "files": files}}

    def file_stream(self, name: str, body: dict[str, Any]) -> None:
        """Store lines of history where the client says that they belong."""
        run = self.runs[name]
        chunk = body.get("files", {}).get("wandb-history.jsonl")
        if chunk:
            offset = chunk["offset"]
            run.history[offset : offset + len(chunk["content"])] = chunk["content"]
            self.received.set()
        summary = body.get("files", {}).get("wandb-summary.json")
        if summary:
            run.summary = json.loads(summary["content"][-1])
        if body.get("complete"):
            run.exit_code = body["exitcode"]


def _handler(server: WandbServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *arguments: object) -> None:
            pass

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            if self.headers.get("content-encoding") == "gzip":
                body = gzip.decompress(body)
            answer: dict[str, Any] = {}
            if self.path == "/graphql":
                query = json.loads(body)
                name = re.search(r"(?:query|mutation) (\w+)", query["query"])[1]
                answer = {"data": server.graphql(name, query.get("variables") or {})}
            elif self.path.endswith("/file_stream"):
                server.file_stream(self.path.split("/")[-2], json.loads(body))
            self._send(json.dumps(answer).encode())

        do_PUT = do_POST

        def do_GET(self) -> None:
            self._send(b"{}")

        def _send(self, body: bytes) -> None:
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    return Handler


def answering(code: int, body: bytes, delay: float = 0) -> ThreadingHTTPServer:
    """Start a server that is none of wandb's and answers always the same, after `delay` seconds."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *arguments: object) -> None:
            pass

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("content-length", 0)))
            time.sleep(delay)
            self.send_response(code)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_PUT = do_POST

    http = QuietServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=http.serve_forever, daemon=True).start()
    return http
