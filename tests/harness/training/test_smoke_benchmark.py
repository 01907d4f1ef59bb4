"""The smoke tier: every row of `configs/benchmarks/smoke.yaml` trains, and resumes to the bit."""

import math

import pytest
from support.training import assert_equal, result

from experiments.plans import benchmarks
from experiments.runs.directory import RunDirectory
from experiments.runs.metrics import read_metrics
from experiments.training.session import train_unless_done

PATH = benchmarks.FOLDER / "smoke.yaml"
ROWS = benchmarks.read(PATH).rows
TINY = {"model.depth": 8, "epochs": 2, "batch_size": 128, "log_every_steps": 3, "log_layers": True}


@pytest.mark.slow
@pytest.mark.parametrize("row", ROWS)
def test_a_row_trains_and_a_pause_changes_nothing(row, tmp_path, monkeypatch):
    pytest.importorskip("pytorch_optimizer")
    monkeypatch.setenv("RUNS_ROOT", str(tmp_path))
    monkeypatch.setenv("DATA_ROOT", str(tmp_path / "data"))
    tiny = benchmarks.read(PATH).model_copy(
        update={"set": TINY, "trials": 1, "rows": {row: ROWS[row]}}
    )
    (trial,) = benchmarks.trials(tiny, PATH)
    for until in (1, None):
        assert train_unless_done(trial.run.config, until=until) == 0
    paused = RunDirectory(tmp_path, trial.run.config)
    rows = read_metrics(paused.metrics_path)
    assert paused.done and [one["epoch"] for one in rows] == [1, 2]
    assert all(math.isfinite(one["test/loss"]) for one in rows)
    assert rows[1]["train/loss"] < rows[0]["train/loss"]
    assert read_metrics(paused.steps_path)
    monkeypatch.setenv("RUNS_ROOT", str(tmp_path / "whole"))
    assert train_unless_done(trial.run.config) == 0
    assert_equal(result(paused), result(RunDirectory(tmp_path / "whole", trial.run.config)))
