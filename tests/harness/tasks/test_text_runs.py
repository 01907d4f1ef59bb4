"""What both tasks on text have in common as runs: interruptions, and several processes."""

import pytest
import torch
from support.harness import interrupted, until_done
from support.text import NO_DROPOUT, small_home, train_small
from support.training import assert_equal, result
from support.two_processes import end, start_two

from experiments.plans.load import load, resolve
from experiments.results.tables import read_results
from experiments.runs.directory import RunDirectory
from experiments.runs.metrics import read_metrics, without_times
from experiments.training import loop

TASKS = ("translation", "language")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return small_home(tmp_path_factory)


@pytest.mark.parametrize("optimizer", ["sgd", "adahessian"])
@pytest.mark.parametrize("task", TASKS)
def test_interrupted_it_goes_on(task, optimizer, home, tmp_path, monkeypatch):
    """Inside an epoch and between them, with dropout, and of translation the weights' average."""
    every = ("checkpoint_every_steps=3",)
    whole = train_small(home, task, tmp_path / "whole", *every, optimizer=optimizer)
    step = interrupted(loop.optimizer_step, lambda call: call % 6 == 5)
    monkeypatch.setattr(loop, "optimizer_step", step)
    measure = interrupted(loop.evaluate, lambda call: call in (2, 6))
    monkeypatch.setattr(loop, "evaluate", measure)
    directory, sessions = until_done(
        lambda: train_small(home, task, tmp_path / "cut", *every, optimizer=optimizer)
    )
    assert sessions > 3
    assert_equal(result(directory), result(whole))
    (run,) = read_results(tmp_path / "cut").runs  # with what its sessions say of the task
    assert run.state == "done" and len(run.baselines) == 3


DIFFERENCE = "optimizers.adahessian.curvature=finite_difference"


@pytest.mark.parametrize(
    ("task", "optimizer", "overrides", "tolerance"),
    [
        ("translation", "adahessian", (), 1e-9),
        pytest.param("language", "adahessian", (DIFFERENCE,), 1e-5, marks=pytest.mark.slow),
        pytest.param("translation", "adahessian", (DIFFERENCE,), 1e-5, marks=pytest.mark.slow),
        pytest.param("language", "sgd", (), 1e-9, marks=pytest.mark.slow),
    ],
)
def test_two_processes_compute_what_one_does(task, optimizer, overrides, tolerance, home, tmp_path):
    """A pack is shared out by its sentences, so that the processes have unequal numbers of tokens;
    float64, BLEU and perplexity included."""
    settings = (*NO_DROPOUT, "dtype=float64", "epochs=2", *overrides)
    whole = train_small(home, task, tmp_path / "one", *settings, optimizer=optimizer)
    codes, output = end(start_two(tmp_path / "two", home / f"{task}.yaml", *settings,
                                  f"optimizer={optimizer}", DATA_ROOT=str(home)))  # fmt: skip
    assert codes == [0, 0], output
    config = resolve(load(home / f"{task}.yaml", settings), optimizer, 1)
    directory = RunDirectory(tmp_path / "two", config)
    ours, theirs = (
        [without_times(row) for row in read_metrics(one.metrics_path)] for one in (directory, whole)
    )
    assert len(ours) == 2 and "test/perplexity" in theirs[0]
    assert ours == [pytest.approx(row, rel=tolerance, abs=tolerance) for row in theirs]
    weights = (
        torch.load(one.path / "checkpoint.pt", weights_only=True)["model"]
        for one in (directory, whole)
    )
    torch.testing.assert_close(*weights, rtol=tolerance, atol=tolerance)


def test_a_pack_that_cannot_be_shared_out_is_refused_by_both(home, tmp_path):
    """A pack of a single sentence; each process says so, and none waits for the other."""
    longest = ("dataset.max_tokens=32", "epochs=1", "optimizer=sgd")
    codes, output = end(start_two(tmp_path, home / "translation.yaml", *longest,
                                  DATA_ROOT=str(home)))  # fmt: skip
    assert all(codes)
    assert "dataset.max_tokens = 32: a pack has 1 sentences, too few for 2" in output
