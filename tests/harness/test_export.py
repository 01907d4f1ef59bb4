import json
import math

import pytest
from support.harness import REPOSITORY, finish_run, small_config
from support.text import small_home, train_small

from experiments import export, report
from experiments.config.signature import signature
from experiments.plans.differences import protocol
from experiments.plans.load import parse
from experiments.results import committed
from experiments.results.committed import DIVERGED, read
from experiments.results.prices import gradients_by_epoch
from experiments.results.tables import read_results


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
    monkeypatch.setenv("RUNS_ROOT", str(tmp_path / "runs"))
    monkeypatch.setattr(committed, "FOLDER", tmp_path / "results")


def files(folder):
    return {path.relative_to(folder): path.read_text() for path in folder.rglob("*.json")}


def finish(tmp_path, seed, last=0.7, optimizer="adahessian", **more):
    config = small_config("optimizers.adahessian.after_epochs={1: {update_interval: 2}}",
                          optimizer=optimizer, seed=seed)  # fmt: skip
    return finish_run(tmp_path / "runs", config, [0.123456789, 0.8, last], **more)


def test_runs_come_back_as_they_were(tmp_path):
    for seed in (1, 2, 10):
        finish(tmp_path, seed, 0.7 + seed / 100)
    finish(tmp_path, 1, optimizer="sgd", **{"train/gradients": 700})
    assert export.main([]) == 0
    live = {run.directory: run for run in read_results(tmp_path / "runs").runs}
    back = read(tmp_path / "results", tmp_path / "runs")
    assert back.keys() == live.keys()
    for directory, run in back.items():
        there = live[directory]
        assert (run.last(), run.best()) == pytest.approx((there.last(), there.best()), rel=1e-5)
        assert run.epoch() == 3
        assert run.step_seconds() == there.step_seconds()
        assert run.mean_steps() == there.mean_steps()
        assert run.training_seconds() == there.training_seconds()
        assert protocol(run.config) == protocol(there.config)
        assert run.meta["seed"] == there.meta["seed"]
        assert run.optimizer == there.optimizer
        assert gradients_by_epoch(run) == gradients_by_epoch(there) != {}
        assert run.series("test/accuracy") == {1: 0.12346, 2: 0.8, 3: run.last()}


def test_curves_of_a_run_whose_result_is_measured_at_the_end_alone(tmp_path, tmp_path_factory):
    """BLEU costs a search: its run's curves are the loss and the perplexity of every epoch."""
    home = small_home(tmp_path_factory)
    at_the_end = ("decoding.every_epochs=0", "decoding.max_length=2")
    train_small(home, "translation", tmp_path / "runs", *at_the_end)
    assert export.main([]) == 0
    (live,) = read_results(tmp_path / "runs").runs
    (back,) = read(tmp_path / "results", tmp_path / "runs").values()
    assert back.epoch() == 3 and list(back.series("test/bleu")) == [3]
    for key in ("train/loss", "val/loss", "val/perplexity", "test/loss", "test/perplexity"):
        assert len(live.series(key)) == 3
        assert back.series(key) == pytest.approx(live.series(key), rel=1e-4)
    assert back.last() == pytest.approx(live.last(), abs=1e-4)


def test_files_hold_no_host_and_no_path_and_are_the_same_each_time(tmp_path):
    finish(tmp_path, 1)
    meta = next((tmp_path / "runs").glob("*/*/*/*/meta.json"))
    secret = json.loads(meta.read_text())
    secret["sessions"][0] |= {"host": "secret-host", "command": "python /secret/path"}
    meta.write_text(json.dumps(secret))
    export.main([])
    (first,) = files(tmp_path / "results").items()
    assert first[0].parent.as_posix() == "digits/resnet8"
    assert "secret" not in first[1] and str(tmp_path) not in first[1]
    export.main(["--to", str(tmp_path / "again")])
    export.main([])
    assert files(tmp_path / "again") == files(tmp_path / "results") == dict([first])


def signed_name(path):
    """The name that a file should have, by the configuration in it."""
    document = json.loads(path.read_text())["config"]
    for options in document["optimizers"].values():  # JSON has no whole numbers as keys
        options["after_epochs"] = {int(k): v for k, v in options["after_epochs"].items()}
    config = parse(document, path)
    return f"{config.optimizer_name}-{signature(config)}"


def test_the_configuration_in_a_file_has_the_signature_in_its_name(tmp_path):
    finish(tmp_path, 1)
    export.main([])
    (path,) = (tmp_path / "results").rglob("*.json")
    assert path.stem == signed_name(path)


def test_the_committed_results_are_what_their_names_say():
    for path in (REPOSITORY / "results").glob("*/*/*.json"):
        assert path.stem == signed_name(path)
    for run in read(REPOSITORY / "results", REPOSITORY / "runs").values():
        sign, (low, high) = run.headline.sign, run.headline.bounds or (0, math.inf)
        assert run.state == DIVERGED or low <= run.last() <= high
        assert gradients_by_epoch(run)
        assert run.state == DIVERGED or sign * run.last() <= sign * run.best()
        assert not any("host" in session for session in run.meta["sessions"])


def test_seeds_that_are_not_here_stay_and_those_that_are_win(tmp_path):
    for seed in (1, 2):
        finish(tmp_path, seed, 0.5)
    export.main([])
    for directory in (tmp_path / "runs").glob("*/*/*/*"):
        directory.rename(tmp_path / directory.name)
    finish(tmp_path, 2, 0.6)
    finish(tmp_path, 3, 0.6)
    unfinished = finish(tmp_path, 1, 0.9)
    (unfinished.path / "DONE").unlink()
    export.main([])
    back = read(tmp_path / "results", tmp_path / "runs")
    assert [(run.meta["seed"], run.last()) for run in back.values()] == [
        (1, 0.5),
        (2, 0.6),
        (3, 0.6),
    ]


def test_a_diverged_run_is_a_result(tmp_path):
    directory = finish(tmp_path, 1, **{"train/loss": math.inf})
    (directory.path / "DONE").unlink()
    lines = [
        {"attempt": 1, "started": "2026", "host": "h", "job": None, "checkpoint": None},
        {"attempt": 1, "ended": "2026", "reason": "NonFiniteLoss: the loss is nan"},
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (directory.path / "attempts.jsonl").write_text(text)
    export.main([])
    (run,) = read(tmp_path / "results", tmp_path / "runs").values()
    assert run.state == "diverged" and run.series("train/loss") == {}


def test_a_run_whose_last_metrics_are_not_finite_is_exported_as_diverged(tmp_path):
    finish(tmp_path, 1, **{"test/accuracy": math.nan})
    assert export.main([]) == 0
    (run,) = read(tmp_path / "results", tmp_path / "runs").values()
    assert run.state == DIVERGED and run.series("test/accuracy") == {}


def test_a_damaged_file_is_named(tmp_path, capsys):
    finish(tmp_path, 1)
    export.main([])
    (path,) = (tmp_path / "results").rglob("*.json")
    path.write_text("{")
    assert export.main([]) == 2
    assert f"{path} cannot be read" in capsys.readouterr().err


def test_the_report_shows_committed_runs_where_that_is_asked(tmp_path, capsys):
    for seed in (1, 2):
        finish(tmp_path, seed)
    export.main([])
    next((tmp_path / "runs").glob("*/*/*/*-s2")).rename(tmp_path / "away")
    assert len(read_results(tmp_path / "runs").runs) == 1
    assert report.main(["--committed"]) == 0
    row = capsys.readouterr().out.partition("adahessian")[2].partition("\n")[0]
    assert row.split()[0] == "2"
