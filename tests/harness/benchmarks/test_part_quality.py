import json
from fractions import Fraction
from pathlib import Path

import pytest

from experiments.benchmarks import part_quality
from experiments.benchmarks.part_quality import PROBLEMS, Arm, table
from experiments.errors import UserError


def test_an_arm_is_a_text():
    assert Arm.parse("fd,f=1/4,k=2,first=3,lr=0.5") == Arm("fd", Fraction(1, 4), 2, 3, 0.5)
    optimizer = Arm.parse("fd,f=1/4,k=2").build(PROBLEMS["perceptron"].build().parameters(), 0.1, 3)
    (group,) = optimizer.param_groups
    names = ("curvature", "curvature_fraction", "update_interval", "lr", "seed")
    assert [group[name] for name in names] == ["finite_difference", 0.25, 2, 0.1, 3]


@pytest.mark.parametrize("text", ["", "exakt", "exact,f", "exact,f=1/0", "fd,k=x", "fd,q=1"])
def test_other_texts_are_refused(text):
    with pytest.raises(UserError, match=f"--arms {text}"):
        Arm.parse(text)


@pytest.mark.parametrize(
    ("differences", "answer"),
    [([0.001, -0.001] * 10, "yes"), ([0.05, 0.051] * 10, "no"), ([0.2, -0.2] * 10, "open")],
)
def test_no_loss_is_an_interval_within_one_per_cent(differences, answer):
    pairs = {
        seed: {
            "exact": {"validation_loss": 1.0, "train_loss": 1.0},
            "exact,f=1/4": {"validation_loss": 1.0 + d, "train_loss": 1.0 + d},
        }
        for seed, d in enumerate(differences)
    }
    rows = table(PROBLEMS["perceptron"], ["exact", "exact,f=1/4"], pairs).rows
    assert [row[3] for row in rows] == ["", answer]


def test_the_command_trains_what_is_missing_and_draws(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("RUNS_ROOT", str(tmp_path))
    arguments = ["--problem", "perceptron", "--arms", "exact", "fd,f=1/4", "--steps", "3"]
    arguments += ["--folder", str(tmp_path / "q")]
    assert part_quality.main([*arguments, "--pairs", "2"]) == 0
    assert capsys.readouterr().err.count("seed") == 4
    picture = tmp_path / "price.png"
    assert part_quality.main([*arguments, "--pairs", "3", "--picture", str(picture)]) == 0
    output = capsys.readouterr()
    assert output.err.count("seed") == 2 and "n = 3 pairs" in output.out
    assert picture.stat().st_size > 5_000


def test_every_problem_has_its_data_and_takes_a_step():
    for name in ("perceptron", "characters", "resnet20"):
        row = part_quality.train(name, 1, "cpu", 1, "exact,f=1/4")
        assert 0 < row["validation_loss"] < 30


def test_each_arm_takes_its_best_rate_and_that_of_the_first(tmp_path, monkeypatch):
    monkeypatch.setenv("RUNS_ROOT", str(tmp_path))
    arguments = ["--problem", "perceptron", "--arms", "exact", "exact,f=1/4", "--steps", "3"]
    arguments += ["--folder", str(tmp_path / "q"), "--rates", "1", "1e9", "--tuning", "2"]
    assert part_quality.main([*arguments, "--pairs", "2"]) == 0
    (found,) = json.loads(Path(tmp_path, "benchmarks", "part-quality.json").read_text("utf-8"))[
        "tables"
    ]
    assert [row[0] for row in found["rows"]] == ["exact,lr=1", "exact,f=1/4,lr=1"]
    assert "among 1, 1e+09" in found["note"]
    lines = (tmp_path / "q" / "trainings.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 2 * 2 * 2 + 2 * 2  # rates, then pairs


@pytest.mark.slow
def test_jobs_train_what_one_process_trains(tmp_path, monkeypatch):
    monkeypatch.setenv("RUNS_ROOT", str(tmp_path))
    arguments = ["--problem", "perceptron", "--arms", "exact", "--steps", "3", "--pairs", "3"]
    losses = []
    for jobs in ("1", "2"):
        folder = tmp_path / jobs
        assert part_quality.main([*arguments, "--folder", str(folder), "--jobs", jobs]) == 0
        lines = (folder / "trainings.jsonl").read_text(encoding="utf-8").splitlines()
        rows = sorted((json.loads(line) for line in lines), key=lambda row: row["seed"])
        losses.append([(row["seed"], round(row["validation_loss"], 5)) for row in rows])
    assert losses[0] == losses[1]


def test_rates_are_chosen_by_the_mean_loss_and_no_number_is_the_worst():
    def rows(arm, *losses):
        return [{"arm": arm, "seed": 1, "validation_loss": loss} for loss in losses]

    found = [*rows("a,lr=1", 0.5, 0.5), *rows("a,lr=2", 0.1, float("nan"))]
    assert part_quality.best_rates(["a"], [1, 2], found) == {"a": "a,lr=1"}
