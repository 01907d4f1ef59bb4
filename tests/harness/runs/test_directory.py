import io
import json
import math
import subprocess

import pytest
from support.harness import finish_run, small_config

from experiments.config.signature import protocol, signature
from experiments.errors import UserError
from experiments.plans.load import load
from experiments.runs import provenance as runs_provenance
from experiments.runs.directory import RunDirectory
from experiments.runs.metrics import best_row, read_metrics, without_times
from experiments.runtime.progress import Progress


@pytest.fixture
def directory(tmp_path):
    directory = RunDirectory(tmp_path, small_config(seed=4))
    directory.path.mkdir(parents=True)
    return directory


def test_the_path_names_data_model_optimizer_signature_and_seed(tmp_path, directory):
    config = directory.config
    expected = tmp_path / "digits" / "resnet8" / "sgd" / f"{signature(config)}-s4"
    assert directory.path == expected


def test_description(directory):
    for number in (1, 2):
        directory.describe({"commit": number}, {"loss": "min", "accuracy": "max"}, "accuracy")
    assert load(directory.path / "config.yaml") == directory.config
    meta = directory.meta()
    assert meta["sessions"] == [{"commit": 1}, {"commit": 2}]
    assert meta["signature"] == signature(directory.config)
    assert meta["protocol"] == protocol(directory.config)
    assert (meta["optimizer"], meta["seed"], meta["headline"]) == ("sgd", 4, "accuracy")


def test_a_session_tells_commit_versions_and_device():
    import torch

    session = runs_provenance.session(torch.device("cpu"))
    assert {"commit", "dirty", "command", "torch", "python", "host", "started"} <= set(session)
    assert session["device"] == "cpu" and session["torch"] == torch.__version__
    json.dumps(session)


def test_git_is_asked_without_its_lock_and_not_for_ever(monkeypatch):
    """A status that refreshes the index makes somebody's commit fail at that moment."""
    asked = []

    def run(command, **named):
        asked.append(command[:2])
        assert named["timeout"]
        raise subprocess.TimeoutExpired(command, 60)

    monkeypatch.setattr(runs_provenance.subprocess, "run", run)
    assert runs_provenance.git_state() == {"commit": None, "dirty": None}
    assert asked == [["git", "--no-optional-locks"]] * 2


def test_a_row_of_an_epoch_is_on_disk_and_one_of_a_step_waits(directory, monkeypatch):
    synced = []
    monkeypatch.setattr("os.fsync", synced.append)
    assert (directory.metrics_size(), directory.steps_size()) == (0, 0)
    directory.append_step({"step": 1})
    assert not synced and directory.steps_size() > 0
    directory.append({"epoch": 1})
    assert len(synced) == 1


def test_metrics_are_cut_back(directory):
    directory.cut_metrics(0)
    directory.append({"epoch": 1})
    size = directory.metrics_size()
    directory.append({"epoch": 2})
    directory.cut_metrics(size)
    directory.append({"epoch": 3})
    assert read_metrics(directory.metrics_path) == [{"epoch": 1}, {"epoch": 3}]
    with pytest.raises(UserError, match="is shorter than when the checkpoint was saved"):
        directory.cut_metrics(1000)


def test_the_summary_names_last_and_best_epoch(directory):
    for epoch, accuracy in enumerate((0.5, 0.9, 0.9, 0.8), 1):
        directory.append({"epoch": epoch, "test/accuracy": accuracy, "time/x": 1.0})
    assert not directory.done
    directory.finish("accuracy", "max")
    assert directory.done
    summary = json.loads((directory.path / "DONE").read_text())
    assert summary == {
        "last_epoch": {"epoch": 4, "test/accuracy": 0.8},
        "best_epoch": {"epoch": 2, "test/accuracy": 0.9},
        "best_epoch_split": "test",
    }


def test_rows():
    rows = [{"a": 2, "time/b": 1}, {"a": 1}, {"a": 1, "b": 0}]
    assert without_times(rows[0]) == {"a": 2}
    assert best_row(rows, "a", "min") == {"a": 1}
    assert best_row(rows, "a", "max") == rows[0]
    for direction, best in (("max", 2), ("min", 1)):
        for bad in (math.nan, math.inf, -math.inf):
            found = [{"a": bad}, {"a": 1}, {"a": bad}, {"a": 2}]
            assert best_row(found, "a", direction) == {"a": best}


def test_one_process_at_a_time(tmp_path):
    config = small_config()
    with (
        RunDirectory(tmp_path, config).locked(),
        pytest.raises(UserError, match="another process"),
        RunDirectory(tmp_path, config).locked(),
    ):
        pass
    with RunDirectory(tmp_path, config).locked():
        pass


def test_off_a_terminal_progress_is_a_line_now_and_then():
    stream = io.StringIO()
    with Progress("run", 10, stream) as progress:
        progress.step(1)
        progress.note("first")
        progress.last_line -= 100
        progress.note("second")
        progress.note("third")
        progress.note("end", last=True)
    assert stream.getvalue() == "run: second\nrun: end\n"


def test_on_a_terminal_progress_is_a_bar():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    stream = Terminal()
    with Progress("my run", 10, stream) as progress:
        progress.step(10)
        progress.note("epoch 1/1")
    assert "my run" in stream.getvalue() and "100%" in stream.getvalue()


def test_who_does_not_write_leaves_no_trace_and_reads_what_is_there(tmp_path):
    """Of several processes that train one run, all but the first."""
    config = small_config()
    onlooker = RunDirectory(tmp_path, config, writes=False)
    with onlooker.locked():
        onlooker.describe({}, {}, "accuracy")
        onlooker.append({"epoch": 1})
        onlooker.cut_metrics(5)
        onlooker.save_checkpoint({})
        onlooker.finish("accuracy", "max")
    assert list(tmp_path.iterdir()) == []
    finish_run(tmp_path, config, [0.5])
    assert onlooker.done and onlooker.metrics_size() and onlooker.meta()["headline"] == "accuracy"


@pytest.mark.parametrize("text", ["", "{", "[]", '{"sessions": 3}'])
def test_a_damaged_description_is_written_anew(text, tmp_path):
    run = finish_run(tmp_path, small_config(), [0.5])
    (run.path / "meta.json").write_text(text)
    with pytest.warns(UserWarning, match="meta.json is damaged"):
        run.describe({"commit": 2}, {"accuracy": "max"}, "accuracy")
    assert run.meta()["sessions"] == [{"commit": 2}]
    assert not list(run.path.glob("*.part"))
