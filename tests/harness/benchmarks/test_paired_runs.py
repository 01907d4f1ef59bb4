import json

import pytest

from experiments.benchmarks import paired_runs
from experiments.benchmarks.paired_runs import EXACT, FAST, Settings, verdict
from experiments.benchmarks.trainings import Trainings


def rows(differences, loss=0.5, accuracy=0.8):
    """Pairs whose test losses differ by given parts of the loss."""
    exact = {"data": "d", "test_loss": loss, "train_loss": loss, "test_accuracy": accuracy}
    return {
        seed: {EXACT: exact, FAST: {**exact, "test_loss": loss * (1 + difference)}}
        for seed, difference in enumerate(differences, 1)
    }


@pytest.mark.parametrize(
    ("differences", "holds"),
    [
        ([0.01, -0.01] * 20, True),
        ([0.01, -0.002] * 20, False),  # zero is outside
        ([0.10, -0.10] * 8, False),  # too wide
        ([0.01, -0.01, float("nan")] * 10, False),  # a training exploded
    ],
)
def test_the_verdict(differences, holds):
    table, passed = verdict(Settings(), rows(differences))
    assert passed == holds
    assert [row[-1] for row in table.rows] == ["yes" if holds else "NO", "yes", "-"]
    assert f"n = {len(differences)} pairs" in table.note


def test_the_command_trains_what_is_missing(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("RUNS_ROOT", str(tmp_path))
    folder = tmp_path / "paired"
    arguments = ["--steps", "2", "--batch-size", "8", "--depth", "8", "--images", "digits"]
    arguments += ["--folder", str(folder), "--pairs"]
    assert paired_runs.main([*arguments, "2"]) == 1
    assert "2 pairs are complete: too few" in capsys.readouterr().err
    # As after an interruption between the two trainings of a pair.
    lines = (folder / "trainings.jsonl").read_text().splitlines(keepends=True)
    (folder / "trainings.jsonl").write_text("".join(lines[:3]))
    paired_runs.main([*arguments, "3", "--picture", str(tmp_path / "new" / "losses.png")])
    assert (tmp_path / "new" / "losses.png").stat().st_size > 10_000
    trained = [line.split()[:3] for line in capsys.readouterr().err.splitlines()]
    assert trained == [["seed", "2", FAST], ["seed", "3", EXACT], ["seed", "3", FAST]]
    result = json.loads((tmp_path / "benchmarks" / "paired-runs.json").read_text())
    assert list(result["data"]["pairs"]) == ["1", "2", "3"]
    assert len(result["data"]["pairs"]["1"][EXACT]["losses"]) == 2
    # The two part, if little, after the first step; data and initial weights are the same.
    pair = result["data"]["pairs"]["1"]
    assert pair[EXACT]["train_loss"] == pytest.approx(pair[FAST]["train_loss"], rel=0.05)
    assert pair[EXACT]["train_loss"] != pair[FAST]["train_loss"]


def test_a_training_is_done_by_one_process_and_other_settings_are_other_results(tmp_path):
    results, others = (Trainings(tmp_path, {"steps": steps}) for steps in (1, 2))
    with results.claimed(1, "a") as ours, Trainings(tmp_path, {}).claimed(1, "a") as theirs:
        assert ours and not theirs
    with results.claimed(1, "a") as again:
        assert again
    results.append({"seed": 1, "arm": "a"})
    assert len(results.rows()) == 1 and others.rows() == []
