import statistics

import pytest
from harness import REPOSITORY, small_config

from experiments import report
from experiments.config import load, resolve
from experiments.record import RunDirectory

CIFAR10 = REPOSITORY / "configs" / "cifar10" / "resnet20.yaml"


def finish(root, config, accuracies, step_seconds=0.01):
    """The files of a finished run, without the training."""
    directory = RunDirectory(root, config)
    directory.path.mkdir(parents=True)
    directory.describe({"commit": "c"}, {"loss": "min", "accuracy": "max"}, "accuracy")
    for epoch, accuracy in enumerate(accuracies, 1):
        row = {"step": epoch, "epoch": epoch, "learning_rate": 0.1}
        row |= {"train/loss": 1 / epoch, "train/accuracy": accuracy}
        row |= {"test/loss": 1 / epoch, "test/accuracy": accuracy}
        directory.append({**row, "time/epoch_seconds": 1.0, "time/step_seconds": step_seconds})
    directory.finish("accuracy", "max")
    return directory


def tables(root):
    return report.make_tables(report.find_runs(root, None, None)[0])


def test_last_and_best_epoch_over_seeds(tmp_path):
    for seed, last in ((1, 0.8), (2, 0.84)):
        finish(tmp_path, small_config(seed=seed), [0.5, 0.9, last], step_seconds=0.02)
        finish(tmp_path, small_config(seed=seed, optimizer="adahessian"), [0.7], 0.05)
    (table,) = tables(tmp_path)
    assert table.title == "digits resnet8"
    spread = 100 * statistics.stdev([0.8, 0.84])
    assert report.cells(table) == [
        ("sgd", "2", f"82.00 ± {spread:.2f}", "90.00 ± 0.00", "20.0", "1.00", ""),
        ("adahessian", "2", "70.00 ± 0.00", "70.00 ± 0.00", "50.0", "2.50", ""),
    ]


def test_one_run_has_no_std_and_no_sgd_no_ratio(tmp_path):
    finish(tmp_path, small_config(optimizer="adam"), [0.5])
    (table,) = tables(tmp_path)
    assert report.cells(table) == [("adam", "1", "50.00", "50.00", "10.0", "", "")]


def test_protocols_are_never_mixed(tmp_path):
    finish(tmp_path, small_config(), [0.5])
    finish(tmp_path, small_config("epochs=3"), [0.6])
    titles = [table.title for table in tables(tmp_path)]
    assert sorted(titles) == ["digits resnet8 epochs=2", "digits resnet8 epochs=3"]


def test_settings_of_one_optimizer_are_rows_of_their_own(tmp_path):
    finish(tmp_path, small_config(), [0.5])
    finish(tmp_path, small_config("optimizers.sgd.lr=0.2"), [0.6])
    finish(tmp_path, small_config(optimizer="adam"), [0.7])
    (table,) = tables(tmp_path)
    assert sorted(table.groups) == ["adam", "sgd lr=0.1", "sgd lr=0.2"]
    assert all(cell[5] == "" for cell in report.cells(table)), "which sgd would be the unit?"


def test_the_best_epoch_is_that_of_the_configured_split(tmp_path):
    config = small_config("dataset.validation_size=100", "best_epoch_split=val")
    directory = RunDirectory(tmp_path, config)
    directory.path.mkdir(parents=True)
    directory.describe({"commit": "c"}, {"loss": "min", "accuracy": "max"}, "accuracy")
    for val, test in ((0.5, 0.9), (0.8, 0.7), (0.6, 0.6)):
        directory.append({"val/accuracy": val, "test/accuracy": test, "time/step_seconds": 1.0})
    directory.finish("accuracy", "max")
    (table,) = tables(tmp_path)
    assert report.cells(table)[0][2:4] == ("60.00", "70.00")


def test_the_papers_figure_stands_beside_its_protocol_only(tmp_path):
    paper = load(CIFAR10)
    finish(tmp_path, resolve(paper, "adahessian", 1), [0.9])
    finish(tmp_path, resolve(load(CIFAR10, ["epochs=3"]), "adahessian", 1), [0.9])
    figures = {table.title: report.cells(table)[0][-1] for table in tables(tmp_path)}
    assert figures == {
        "cifar10 resnet20 epochs=160": "92.13 ± 0.18",
        "cifar10 resnet20 epochs=3": "",
    }
    assert len(report.paper_figures()) == 8


def test_the_command_writes_tables_and_pictures(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("RUNS_ROOT", str(tmp_path))
    for optimizer in ("sgd", "adam", "adamw", "adahessian"):
        for seed in (1, 2):
            config = small_config(optimizer=optimizer, seed=seed)
            finish(tmp_path, config, [0.5, 0.9, 0.9 + seed / 100])
    unfinished = finish(tmp_path, small_config(seed=3), [0.5])
    (unfinished.path / "DONE").unlink()
    assert report.main(["--dataset", "digits", "--model", "resnet8"]) == 0
    output = capsys.readouterr().out
    assert "91.50 ± 0.71" in output and "1 unfinished run(s) left out" in output
    figures = [line for line in output.splitlines() if "picture:" not in line]
    assert max(len(line) for line in figures if "tables:" not in line) <= 80
    markdown = (tmp_path / "report" / "report.md").read_text()
    assert "| sgd | 2 | 91.50 ± 0.71 | 91.50 ± 0.71 | 10.0 | 1.00 |  |" in markdown
    (picture,) = (tmp_path / "report").glob("digits-resnet8-*.png")
    assert picture.stat().st_size > 20_000 and picture.name in markdown


@pytest.mark.parametrize("arguments", [[], ["--dataset", "cifar10"]])
def test_without_finished_runs_it_says_so(arguments, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("RUNS_ROOT", str(tmp_path))
    assert report.main(arguments) == 2
    assert "no finished run below" in capsys.readouterr().err
