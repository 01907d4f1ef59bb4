import json
import re
import shutil

import numpy
import pytest
from support.harness import DIGITS, finish_run, small_config

from experiments import report
from experiments.errors import UserError
from experiments.results.statistics import summarize
from experiments.results.tables import read_results
from experiments.runs.directory import RunDirectory
from experiments.runs.jsonlines import read_rows


def tables(root):
    return read_results(root).tables


def test_protocols_are_never_mixed(tmp_path):
    finish_run(tmp_path, small_config(), [0.5])
    finish_run(tmp_path, small_config("epochs=3"), [0.6])
    titles = [table.title for table in tables(tmp_path)]
    assert sorted(titles) == ["digits resnet8 epochs=2", "digits resnet8 epochs=3"]


def test_settings_of_one_optimizer_are_groups_of_their_own(tmp_path):
    finish_run(tmp_path, small_config(), [0.5])
    finish_run(tmp_path, small_config("optimizers.sgd.lr=0.2"), [0.6])
    finish_run(tmp_path, small_config(optimizer="adam"), [0.7])
    (table,) = tables(tmp_path)
    assert sorted(table.groups) == ["adam", "sgd lr=0.1", "sgd lr=0.2"]


def test_settings_are_sorted_by_the_size_of_their_numbers(tmp_path):
    for rate in (0.2, 0.1, 0.05, 10.0, 9.0):
        finish_run(tmp_path, small_config(f"optimizers.sgd.lr={rate}"), [0.5])
    (table,) = tables(tmp_path)
    assert list(table.groups) == [f"sgd lr={rate}" for rate in (0.05, 0.1, 0.2, 9.0, 10.0)]


def test_the_best_epoch_is_that_of_the_configured_split(tmp_path):
    config = small_config("dataset.validation_size=100", "best_epoch_split=val")
    directory = RunDirectory(tmp_path, config)
    directory.path.mkdir(parents=True)
    directory.describe({"commit": "c"}, {"loss": "min", "accuracy": "max"}, "accuracy")
    for val, test in ((0.5, 0.9), (0.8, 0.7), (0.6, 0.6)):
        directory.append({"val/accuracy": val, "test/accuracy": test, "time/step_seconds": 1.0})
    directory.finish("accuracy", "max")
    (run,) = read_results(tmp_path).runs
    assert (run.last(), run.best()) == (0.6, 0.7)


def test_dataset_and_model_choose(tmp_path):
    finish_run(tmp_path, small_config(), [0.5])
    finish_run(tmp_path, small_config("model.depth=14"), [0.5])
    assert len(read_results(tmp_path).runs) == 2
    (run,) = read_results(tmp_path, "digits", "resnet14").runs
    assert run.meta["model"] == "resnet14"
    with pytest.raises(UserError, match="no finished run below .* \\(no run at all\\)"):
        read_results(tmp_path, "cifar10")


def test_half_a_line_is_passed_over_and_said(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"epoch": 1, "a": 0.5}\n\n[1]\n{"epoch": 2, "a"')
    assert read_rows(path) == ([{"epoch": 1, "a": 0.5}], "3 damaged line(s) in metrics.jsonl")
    path.write_bytes(b'{"epoch": 1}\n\xff\xfe')
    assert read_rows(path) == ([{"epoch": 1}], "1 damaged line(s) in metrics.jsonl")
    assert read_rows(tmp_path / "none") == ([], "")


def test_what_is_not_done_is_left_out_and_counted(tmp_path):
    places = [finish_run(tmp_path, small_config(seed=seed), [0.5]).path for seed in range(1, 5)]
    (places[1] / "DONE").unlink()
    (places[2] / "metrics.jsonl").write_text('{"epoch": 1, "test/accuracy": NaN}\n{"ep')
    (places[3] / "metrics.jsonl").write_text("")
    results = read_results(tmp_path)
    assert results.left_out == "1 diverged, 1 no result run(s) left out"
    assert results.under_way == "1 killed run(s) shown as far as they have come, and in no mean"
    assert [run.meta["seed"] for run in results.tables[0].runs] == [1]
    assert [(label, run.meta["seed"]) for label, run in results.tables[0].under_way] == [("sgd", 2)]
    (run,) = (run for run in results.having("diverged") if run.meta["seed"] == 3)
    assert run.problem == "its last test/accuracy is nan; 1 damaged line(s) in metrics.jsonl"


def test_a_run_under_way_shares_a_label_or_has_its_own_and_is_in_no_statistic(tmp_path):
    """Also where no run of the table is done yet; one that has nothing to show is left out."""
    finish_run(tmp_path, small_config(seed=1), [0.5])
    for optimizer, more in (("sgd", ()), ("adam", ()), ("sgd", ("epochs=9",))):
        run = finish_run(tmp_path, small_config(*more, optimizer=optimizer, seed=2), [0.9])
        (run.path / "DONE").unlink()
    silent = finish_run(tmp_path, small_config("epochs=8", seed=2), [0.9])
    (silent.path / "DONE").unlink()
    silent.metrics_path.write_text("")
    results = read_results(tmp_path)
    one, other = sorted(results.all_tables, key=lambda table: not table.groups)
    assert results.tables == [one]
    assert {label: len(runs) for label, runs in one.groups.items()} == {"sgd": 1}
    assert [label for label, _ in one.under_way] == ["sgd", "adam"]
    assert [row.last for row in summarize(one)] == [[0.5]]
    assert not other.groups and [label for label, _ in other.under_way] == ["sgd"]
    assert other.result_title == "test accuracy (%)" and other.reference is None
    assert results.left_out == "1 killed run(s) left out"


def test_what_cannot_be_read_is_listed_with_the_reason(tmp_path):
    finish_run(tmp_path, small_config(seed=1), [0.5])
    paths = [finish_run(tmp_path, small_config(seed=seed), [0.5]).path for seed in (2, 3, 4, 5)]
    (paths[0] / "meta.json").write_text("{")
    (paths[1] / "config.yaml").write_text("a: [")
    (paths[2] / "config.yaml").unlink()
    (paths[3] / "meta.json").write_text('{"dataset": "digits"}')
    results = read_results(tmp_path)
    assert set(results.unreadable) == set(paths)
    assert "JSONDecodeError" in results.unreadable[paths[0]]
    assert "not valid YAML" in results.unreadable[paths[1]]
    assert "config.yaml" in results.unreadable[paths[2]]
    assert "KeyError" in results.unreadable[paths[3]]
    assert len(results.runs) == 1 and results.left_out == "4 unreadable run(s) left out"


def test_an_empty_root_says_so(tmp_path):
    shutil.rmtree(finish_run(tmp_path, small_config(), [0.5]).path)
    with pytest.raises(UserError, match="no finished run below .*no run at all"):
        read_results(tmp_path)


def test_the_initialization_is_epoch_0_and_damaged_spectra_are_left_out(tmp_path):
    folder = finish_run(tmp_path, small_config(), [0.5], **{"hessian/trace": 2.0}).path / "spectra"
    folder.mkdir()
    grid = numpy.linspace(-1, 3, 5)
    arrays = {"grid": grid, "density": grid**2, "eigenvalues": numpy.array([3.0, 1.0])}
    numpy.savez(folder / "epoch-0000.npz", trace=7.0, trace_standard_error=0.5, **arrays)
    (folder / "epoch-0001.npz").write_bytes((folder / "epoch-0000.npz").read_bytes()[:100])
    (folder / "epoch-0002.npz").write_text("nothing")
    numpy.savez(folder / "epoch-0003.npz", grid=grid)
    later = {**arrays, "trace": 1.0, "trace_standard_error": 0.1}
    numpy.savez(folder.parent / "spectrum.npz", epoch=9, settings="{}", **later)
    (run,) = read_results(tmp_path).runs
    assert sorted(run.spectra()) == [0, 9], "the other files are damaged"
    assert run.series("hessian/trace") == {0: 7.0, 1: 2.0}
    assert run.series("hessian/trace_standard_error") == {0: 0.5}
    assert run.series("hessian/top_eigenvalue_2") == {0: 1.0}
    assert (run.last(), run.epoch()) == (0.5, 1)


def test_rows_are_in_the_order_of_the_experiments_file(tmp_path):
    """Whatever the names are and whenever they ran; unknown ones follow in the alphabet's order."""
    for optimizer in ("adahessian", "adamw", "sgd", "adam"):
        finish_run(tmp_path, small_config(optimizer=optimizer), [0.5])
    for name in ("zeta", "mine10", "mine9"):
        finish_run(tmp_path, renamed(name), [0.5])
    (table,) = tables(tmp_path)
    known = ["sgd", "adam", "adamw", "adahessian"]
    assert list(table.groups) == [*known, "mine9", "mine10", "zeta"]
    assert table.reference == "sgd"


def test_without_the_files_first_optimizer_no_step_is_the_unit(tmp_path):
    for name in ("zeta", "mine"):
        finish_run(tmp_path, renamed(name), [0.5])
    finish_run(tmp_path, small_config(optimizer="adam"), [0.5])
    (table,) = tables(tmp_path)
    assert (list(table.groups), table.reference) == (["adam", "mine", "zeta"], None)


def renamed(name):
    """A run of somebody's own file, with an optimizer that no experiment here has."""
    config = small_config()
    return config.model_copy(update={"optimizers": {name: config.optimizer}})


def test_a_key_added_later_is_no_difference(tmp_path):
    """Runs of before and after it are of one protocol, and of one label."""
    new = finish_run(tmp_path, small_config(), [0.5]).path
    old = finish_run(tmp_path, small_config("epochs=3"), [0.6]).path
    config = (old / "config.yaml").read_text()
    for key in ("channels_last", "micro_batches", "image_size", "resize_size"):
        config = re.sub(rf"^ *{key}:.*\n", "", config, flags=re.M)
    (old / "config.yaml").write_text(config)
    assert len(config) < len((new / "config.yaml").read_text()) - 50
    titles = sorted(table.title for table in tables(tmp_path))
    assert titles == ["digits resnet8 epochs=2", "digits resnet8 epochs=3"]


def test_a_default_is_not_named(tmp_path):
    for optimizer in ("adahessian", "adahessian.after_epochs={1: {update_interval: 2}}"):
        overrides = [f"optimizers.{optimizer}"] if "=" in optimizer else []
        finish_run(tmp_path, small_config(*overrides, optimizer="adahessian"), [0.5])
    (table,) = tables(tmp_path)
    assert list(table.groups) == ["adahessian", "adahessian update_interval=2 after epoch 1"]


DAMAGES = [
    *[
        ("config.yaml", text)
        for text in ("", "a: [", "[1]", "optimizers: null", "optimizers: {sgd: 1}", b"\xe9", None)
    ],
    *[
        ("meta.json", damage)
        for damage in ("{", "[]", {"metrics": 1}, {"sessions": None}, {"headline": "x"}, b"\xe9")
    ],
    ("metrics.jsonl", '{"epoch": 1, "test/accuracy": "high"}'),
]


@pytest.mark.parametrize(("name", "text"), DAMAGES)
def test_a_damaged_run_is_one_row_with_its_reason(name, text, tmp_path, capsys, monkeypatch):
    """Of the report and of a sweep's report, which have all other runs."""
    monkeypatch.setenv("RUNS_ROOT", str(tmp_path / "runs"))
    sweep = tmp_path / "rates.yaml"
    sweep.write_text(f"config: {DIGITS}\nset: {{model.depth: 8, epochs: 2}}\nseeds: 1-2\n"
                     "grid: {optimizer: [sgd]}\n")  # fmt: skip
    damaged = [finish_run(tmp_path / "runs", small_config(seed=seed), [0.5]) for seed in (1, 2)][1]
    path = damaged.path / name
    if text is None:
        path.unlink()
    elif isinstance(text, dict):
        path.write_text(json.dumps(json.loads(path.read_text()) | text))
    else:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    for arguments in ([], ["--sweep", str(sweep)]):
        assert report.main(arguments) == 0
        out = capsys.readouterr().out
        page = (tmp_path / "runs" / "report.html").read_text()
        assert "50.00" in out and f"{damaged.name}" in page and "unreadable" in page
    assert "unreadable: sgd, seed 2" in out and "Error" in out
