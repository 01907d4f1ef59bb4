"""A run's identity holds its data: what is done or begun on one set does not go on on another."""

import json

import pytest
import torch
from support.harness import finish_run, interrupted, small_config
from support.training import train_here

from experiments import evaluate, spectrum
from experiments.errors import UserError
from experiments.runs.directory import RunDirectory
from experiments.tasks.image_classification.task import ImageClassification
from experiments.training import loop, session

OTHER = {"classes": 3, "train": 5, "test": 2, "digest": "0123"}
BOTH = (
    r"was trained on other data: 10 classes, 1297 train, 500 test \(digest [0-9a-f]{16}\); "
    r"here is 3 classes, 5 train, 2 test \(digest 0123\). Set DATA_ROOT"
)


@pytest.fixture
def other_data(monkeypatch):
    def give():
        monkeypatch.setattr(ImageClassification, "describe_data", lambda *arguments: OTHER)

    return give


def data_of(directory):
    state = torch.load(directory.path / "checkpoint.pt", weights_only=True)
    return directory.meta()["data"], state["data"]


def stopped(root, config, monkeypatch, call=14):
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        step = interrupted(loop.optimizer_step, lambda number: number == call)
        patched.setattr(loop, "optimizer_step", step)
        train_here(root, config)
    return RunDirectory(root, config)


def test_a_run_that_was_begun_on_other_data_is_refused(tmp_path, monkeypatch, other_data):
    directory = stopped(tmp_path, small_config(), monkeypatch)
    known = data_of(directory)
    assert known[0] == known[1] and known[0]["train"] == 1297
    before = (directory.path / "checkpoint.pt").read_bytes()
    other_data()
    with pytest.raises(UserError, match=BOTH):
        train_here(tmp_path, directory.config)
    # Also where only the checkpoint tells.
    meta = {key: value for key, value in directory.meta().items() if key != "data"}
    (directory.path / "meta.json").write_text(json.dumps(meta))
    with pytest.raises(UserError, match=BOTH):
        train_here(tmp_path, directory.config)
    assert (directory.path / "checkpoint.pt").read_bytes() == before


def test_a_run_that_is_done_on_other_data_is_refused(tmp_path, monkeypatch, other_data, capsys):
    monkeypatch.setenv("RUNS_ROOT", str(tmp_path))
    directory = train_here(tmp_path, small_config("epochs=1"))
    assert session.say_if_done(directory)
    assert "done already" in capsys.readouterr().err
    other_data()
    with pytest.raises(UserError, match=BOTH):
        session.train_unless_done(directory.config)


def test_a_checkpoint_is_looked_at_on_its_own_data(tmp_path, monkeypatch, other_data, capsys):
    """Unless others are named; the weights that it began with are no data."""
    monkeypatch.setenv("RUNS_ROOT", str(tmp_path))
    begun = train_here(tmp_path, small_config("epochs=1", "model={name: convnet, depth: 3}"))
    more = f"init_from.path={begun.path}"
    run = train_here(
        tmp_path, small_config("epochs=1", "model={name: convnet, depth: 3}", more, seed=2)
    )
    assert "initial weights" in run.meta()["data"]
    assert evaluate.main([str(run.path)]) == 0
    other_data()
    for command in (evaluate, spectrum):
        capsys.readouterr()
        assert command.main([str(run.path)]) == 2
        said = capsys.readouterr().err
        assert "here is 3 classes, 5 train, 2 test (digest 0123)" in said and "--data" in said
        assert said.count("\n") == 1
    assert not (run.path / "spectrum.npz").exists()
    assert evaluate.main([str(run.path), "--data", str(tmp_path)]) == 0


def test_a_run_of_an_earlier_version_is_accepted_once(tmp_path, other_data):
    directory = finish_run(tmp_path, small_config(), [0.5])
    assert "data" not in directory.meta()
    assert session.say_if_done(directory)
    assert directory.meta()["data"]["train"] == 1297
    other_data()
    with pytest.raises(UserError, match=BOTH):
        session.say_if_done(directory)


def test_a_checkpoint_of_an_earlier_version_is_accepted_and_completed(tmp_path, monkeypatch):
    directory = stopped(tmp_path, small_config(), monkeypatch)
    state = torch.load(directory.path / "checkpoint.pt", weights_only=True)
    del state["data"], state["position"]["step_seconds"]
    torch.save(state, directory.path / "checkpoint.pt")
    meta = {key: value for key, value in directory.meta().items() if key != "data"}
    (directory.path / "meta.json").write_text(json.dumps(meta))
    train_here(tmp_path, directory.config)
    assert None not in data_of(directory)


@pytest.mark.parametrize("known", [None, 3, [], "x"])
def test_where_the_data_are_not_or_nothing_is_known_what_is_done_is_done(
    known, tmp_path, monkeypatch
):
    directory = finish_run(tmp_path, small_config(), [0.5])
    meta = {**directory.meta(), "data": known}
    (directory.path / "meta.json").write_text(json.dumps(meta))
    assert session.say_if_done(directory)
    monkeypatch.setattr(ImageClassification, "describe_data", lambda *arguments: None)
    assert session.say_if_done(directory)


def test_data_that_are_damaged_now_do_not_undo_a_run(tmp_path, monkeypatch):
    def damaged(*arguments):
        raise UserError("the data are damaged")

    directory = finish_run(tmp_path, small_config(), [0.5])
    monkeypatch.setattr(ImageClassification, "describe_data", damaged)
    assert session.say_if_done(directory)


def test_what_cannot_be_written_is_not_completed_and_done_all_the_same(tmp_path, monkeypatch):
    directory = finish_run(tmp_path, small_config(), [0.5])
    (directory.path / "meta.json").unlink()
    (directory.path / "meta.json").mkdir()
    assert session.say_if_done(directory)
