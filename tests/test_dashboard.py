import json
import os
import pty
import subprocess
import sys
import time

import pytest
from harness import REPOSITORY
from test_tracking import clean, cut, new_run, row, server, session  # noqa: F401

from experiments import dashboard, upload
from experiments.tracking import records


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("RUNS_ROOT", str(tmp_path / "runs"))
    return tmp_path / "runs"


def record_rows(directory, last):
    for epoch in range(1, last + 1):
        directory.append(row(epoch))


# -------------------------------------------------------------------------------------- uploading


def test_uploading_needs_no_record_and_happens_once(tmp_path, root, server, capsys):  # noqa: F811
    for seed in (1, 2):
        directory = new_run(tmp_path, seed)
        record_rows(directory, 3)
    (directory.path / "DONE").write_text("{}")
    assert upload.main([]) == 0
    output = capsys.readouterr().out
    assert output.count("epochs 1 to 3, http") == 2 and "2 of 2 runs uploaded" in output
    assert [run.epochs() for run in server.runs.values()] == [[1, 2, 3], [1, 2, 3]]
    assert sorted(run.exit_code for run in server.runs.values()) == [0, 1]
    assert upload.main([]) == 0
    assert capsys.readouterr().out == "nothing to upload\n"
    # A run that goes on is uploaded again, from where it was.
    directory.append(row(4))
    assert upload.main([]) == 0
    assert sorted(run.epochs() for run in server.runs.values()) == [[1, 2, 3], [1, 2, 3, 4]]


def test_uploading_without_a_key_says_how_to_get_one(tmp_path, capsys):
    record_rows(new_run(tmp_path), 1)
    assert upload.main([]) == 2
    assert "`wandb login` stores" in capsys.readouterr().err


def test_uploading_nothing(server, root, capsys):  # noqa: F811
    assert upload.main([]) == 2
    assert f"no run below {root}" in capsys.readouterr().err


def test_uploading_to_a_server_that_is_down(tmp_path, server, capsys):  # noqa: F811
    record_rows(new_run(tmp_path), 1)
    server.stop()
    assert upload.main([]) == 2
    assert f"{server.url} does not answer" in capsys.readouterr().err


# -------------------------------------------------------------------------------------- dashboard


def test_with_a_key_one_workspace_with_a_panel_for_each_metric(
    tmp_path,
    root,
    server,
    capsys,  # noqa: F811
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
    folder = dashboard.gather(root, runs)
    links = {link.resolve() for link in folder.iterdir()}
    assert links == {first.resolve(), *(r.resolve() for r in records(without.path))}
    os.utime(with_record.metrics_path, (time.time() + 60, time.time() + 60))
    dashboard.gather(root, runs)
    (second,) = records(with_record.path)
    assert second.name != first.name
    assert len(list(folder.iterdir())) == 2


@pytest.mark.slow
def test_on_a_terminal_wandbs_own_view(tmp_path):
    """In a real pseudo-terminal, until the run's name is on the screen; `q` ends it."""
    record_rows(new_run(tmp_path), 3)
    ours, theirs = pty.openpty()
    words = [sys.executable, "-m", "experiments.dashboard"]
    with subprocess.Popen(
        words, cwd=REPOSITORY, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
    ) as process:
        os.close(theirs)
        screen, deadline = b"", time.monotonic() + 100
        os.set_blocking(ours, False)
        while b"sgd seed 1" not in screen and time.monotonic() < deadline:
            try:
                screen += os.read(ours, 65536)
            except BlockingIOError:
                time.sleep(0.05)
        assert b"sgd seed 1" in screen
        os.write(ours, b"q")
        while process.poll() is None and time.monotonic() < deadline:
            try:
                os.read(ours, 65536)
            except OSError:  # nothing to read yet, or the terminal is closed
                time.sleep(0.05)
        assert process.wait(timeout=5) == 0
    os.close(ours)
