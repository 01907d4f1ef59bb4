import json
import os
import pty
import signal
import subprocess
import sys
import termios
import threading
import time

import pytest
from support.harness import REPOSITORY
from support.patience import PATIENCE
from support.wandb_cases import (
    clean_machine,  # noqa: F401
    new_run,
    record_rows,
    running_server,  # noqa: F401
    session,
)

from experiments import dashboard
from experiments.tracking.tracker import records
from experiments.tracking.workspace import gather


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("RUNS_ROOT", str(tmp_path / "runs"))
    return tmp_path / "runs"


# wandb-workspaces 0.4 still has some.
@pytest.mark.filterwarnings("ignore:Pydantic V1 style:DeprecationWarning")
def test_with_a_key_one_workspace_with_a_panel_for_each_metric(
    tmp_path,
    root,
    server,
    capsys,
):
    directory = new_run(tmp_path)
    record_rows(directory, 2)
    assert dashboard.main([]) == 0
    address = capsys.readouterr().out.split()[-1]
    assert dashboard.main([]) == 0
    assert capsys.readouterr().out.split()[-1] == address
    ((name, view),) = server.views.items()
    assert address == f"{server.url}/me/adahessian?nw={name[3:-2]}"
    section = json.loads(view["spec"])["section"]
    panels = {
        panel["config"]["chartTitle"]: panel["config"]
        for part in section["panelBankConfig"]["sections"]
        for panel in part["panels"]
    }
    assert panels["Test: accuracy"]["metrics"] == ["test/accuracy"]
    assert panels["Curvature: layer trace"]["metrics"] == [
        "hessian/layer_trace/layer1.0.conv1.weight"
    ]
    assert all(panel["xAxis"] == "epoch" for panel in panels.values())
    (runs,) = section["runSets"]
    assert runs["grouping"] == [{"section": "run", "name": "group"}]


def test_without_a_key_and_a_terminal_the_path_of_the_report(tmp_path, root, capsys):
    record_rows(new_run(tmp_path), 1)
    assert dashboard.main([]) == 0
    output = capsys.readouterr()
    assert output.out == f"`make report` writes {root}/report.html\n"
    assert "no wandb key" in output.err
    (root / "report.html").write_text("<html>")
    assert dashboard.main([]) == 0
    assert capsys.readouterr().out == f"{root}/report.html\n"


def test_records_are_gathered_and_made_where_they_are_missing_or_old(tmp_path, root, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    with_record, without = new_run(tmp_path, 1), new_run(tmp_path, 2)
    session(with_record, 1, 2)
    record_rows(without, 2)
    (first,) = records(with_record.path)
    runs = [with_record.path, without.path]
    folder = gather(root, runs)
    links = {link.resolve() for link in folder.iterdir()}
    assert links == {first.resolve(), *(r.resolve() for r in records(without.path))}
    os.utime(with_record.metrics_path, (time.time() + 60, time.time() + 60))
    gather(root, runs)
    (second,) = records(with_record.path)
    assert second.name != first.name
    assert len(list(folder.iterdir())) == 2


@pytest.mark.slow
def test_on_a_terminal_wandbs_own_view(tmp_path):
    """In a real pseudo-terminal, until the run's name is on the screen; `q` ends it."""
    record_rows(new_run(tmp_path), 3)
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (48, 160))
    words = [sys.executable, "-m", "experiments.dashboard"]
    process = subprocess.Popen(
        words, cwd=REPOSITORY, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
    )
    os.close(theirs)
    screen = bytearray()

    def read() -> None:
        try:
            while chunk := os.read(ours, 65536):
                screen.extend(chunk)
        except OSError:  # the other end is closed
            pass

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        deadline = time.monotonic() + PATIENCE
        while b"sgd epochs=2" not in screen and time.monotonic() < deadline:
            time.sleep(0.05)
        assert b"sgd epochs=2" in screen
        os.write(ours, b"q")
        assert process.wait(timeout=PATIENCE) == 0
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    reader.join()
    os.close(ours)
