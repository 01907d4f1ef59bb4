import os
import signal
import socket
import subprocess
import sys
from http.client import HTTPConnection
from threading import Thread

import pytest
from support.harness import REPOSITORY, finish_run, small_config

from experiments import report
from experiments.errors import UserError
from experiments.reports import page
from experiments.reports.live import Live
from experiments.results.tables import read_results


@pytest.fixture
def serve():
    """A page of the runs below a root, and what asks for it."""
    pages = []

    def start(root):
        live = Live(root, lambda: page.make(read_results(root)), port=0)
        live.look()
        Thread(target=live.http.serve_forever, daemon=True).start()
        pages.append(live)

        def get(path, host=None):
            connection = HTTPConnection("127.0.0.1", live.http.server_port)
            connection.request("GET", path, headers={"Host": host} if host else {})
            answer = connection.getresponse()
            return answer.status, answer.read().decode()

        return live, get

    yield start
    for live in pages:
        live.http.shutdown()
        live.http.server_close()


def contents(root):
    return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in root.rglob("*")}


def test_the_page_follows_the_runs_and_writes_nothing(tmp_path, serve):
    first = finish_run(tmp_path, small_config("epochs=4"), [0.5, 0.6])
    (first.path / "DONE").unlink()
    before = contents(tmp_path)
    live, get = serve(tmp_path)
    status, text = get("/")
    assert status == 200 and "sgd, seed 1 (killed)" in text and "epoch 2 of 4" in text
    version = get("/version")[1]
    assert f'data-version="{version}"' in text
    assert not live.look() and get("/version")[1] == version, "nothing has changed"
    assert contents(tmp_path) == before
    first.append_step({"step": 50, "epoch": 2.5, "step/loss": 0.3})
    assert live.look()
    status, text = get("/")
    assert "Loss of single batches" in text and get("/version")[1] != version
    finish_run(tmp_path, small_config(optimizer="adam"), [0.7])
    assert live.look() and "adam" in get("/")[1]


def test_without_runs_it_waits_for_them(tmp_path, serve):
    live, get = serve(tmp_path / "runs")
    assert "no finished run below" in get("/")[1]
    finish_run(tmp_path / "runs", small_config(), [0.5])
    assert live.look() and "50.00" in get("/")[1]


def test_it_answers_to_this_machines_names_alone_and_has_two_pages(tmp_path, serve):
    """Another site whose name leads to this machine gets nothing."""
    finish_run(tmp_path, small_config(), [0.5])
    live, get = serve(tmp_path)
    assert live.http.server_address[0] == "127.0.0.1"
    assert get("/", "evil.example:80")[0] == 403
    assert get("/", "localhost:1234")[0] == 200
    for path in ("/../config.yaml", "/report.html", "/version/x"):
        assert get(path)[0] == 404


def test_a_port_that_is_taken(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"--port {port}: .*--port 0 takes a free one"):
            Live(tmp_path, list, port)


@pytest.mark.parametrize("arguments", [["--port", "8000"], ["--watch", "--port", "70000"]])
def test_a_port_that_is_none(arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("RUNS_ROOT", str(tmp_path))
    assert report.main(arguments) == 2
    assert "a number up to 65535, beside --watch" in capsys.readouterr().err


def test_ctrl_c_ends_it(tmp_path):
    finish_run(tmp_path, small_config(), [0.5])
    before = contents(tmp_path)
    script = (  # where this was started in the background, a child would ignore Ctrl-C
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "from experiments import report; sys.exit(report.main(['--watch', '--port', '0']))"
    )
    words = [sys.executable, "-c", script]
    environment = {**os.environ, "RUNS_ROOT": str(tmp_path)}
    with subprocess.Popen(
        words, cwd=REPOSITORY, env=environment, stderr=subprocess.PIPE, text=True
    ) as process:
        line = process.stderr.readline()
        assert line.startswith("http://127.0.0.1:"), line
        process.send_signal(signal.SIGINT)
        assert process.stderr.read() == "ended; the runs go on\n"
    assert process.returncode == 0
    assert contents(tmp_path) == before
