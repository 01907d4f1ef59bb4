import json

import pytest
import torch

from experiments.runs import attempts, checkpoint
from experiments.runtime.stopping import Stopped, signal


def fail(directory, error):
    with pytest.raises(type(error)), attempts.recorded(directory):
        raise error


@pytest.fixture(autouse=True)
def job(monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "7")


def test_beginning_and_end_of_each(tmp_path):
    assert attempts.read(tmp_path) == []
    fail(tmp_path, ValueError("one\nline"))
    fail(tmp_path, Stopped(signal.SIGUSR2))
    with attempts.recorded(tmp_path):
        (_, _, now) = attempts.read(tmp_path)
        assert now.reason is None
    one, two, three = attempts.read(tmp_path)
    assert (one.number, one.reason, one.job) == (1, "ValueError: one line", "7")
    assert (two.number, two.reason) == (2, "stopped by SIGUSR2")
    assert (three.number, three.reason) == (3, "done")


def test_a_torn_line_hides_nothing_else(tmp_path):
    fail(tmp_path, ValueError("a"))
    path = tmp_path / attempts.NAME
    path.write_text(path.read_text() + '{"attempt": 2, "star')
    fail(tmp_path, ValueError("b"))
    assert [one.reason for one in attempts.read(tmp_path)] == ["ValueError: a", "ValueError: b"]


def test_three_ends_alike_without_a_new_checkpoint_are_hopeless(tmp_path):
    for _ in range(3):
        assert attempts.hopeless(tmp_path, "7") is None
        fail(tmp_path, OSError("broken"))
    assert attempts.hopeless(tmp_path, "7") == "OSError: broken"
    assert attempts.hopeless(tmp_path, "8") is None  # whoever submits again means it
    checkpoint.save(tmp_path, {"a": torch.zeros(1)})
    assert attempts.hopeless(tmp_path, "7") is None  # it got further


def test_ends_of_different_kinds_are_not(tmp_path):
    for text in ("a", "b", "a", "b"):
        fail(tmp_path, OSError(text))
    assert attempts.hopeless(tmp_path, "7") is None


def test_killed_three_times_is_hopeless_too(tmp_path):
    for number in range(3):
        row = {"attempt": number, "started": "", "host": "n1", "job": "7", "checkpoint": None}
        with (tmp_path / attempts.NAME).open("a") as file:
            file.write(json.dumps(row) + "\n")
    assert attempts.hopeless(tmp_path, "7") == "killed"
