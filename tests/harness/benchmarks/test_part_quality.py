from fractions import Fraction

import pytest

from experiments.benchmarks import part_quality
from experiments.benchmarks.part_quality import PROBLEMS, Arm, table
from experiments.errors import UserError


def test_an_arm_is_a_text():
    assert Arm.parse("fd,f=1/4,k=2,lr=0.5") == Arm("fd", Fraction(1, 4), 2, 0.5)
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
        problem = PROBLEMS[name]
        arm = Arm.parse("exact,f=1/4")
        row = part_quality.train(problem, arm, 1, problem.data(), steps=1)
        assert 0 < row["validation_loss"] < 30
