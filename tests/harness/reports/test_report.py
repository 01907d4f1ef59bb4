import json
import math
import statistics

import pytest
from support.harness import finish_run, small_config

from experiments import report
from experiments.plots import canvas
from experiments.reports.summary import grid, write_report
from experiments.results.tables import read_results
from experiments.tasks.text.config import PERPLEXITY


def tables(root):
    return read_results(root).tables


def test_last_and_best_epoch_over_seeds(tmp_path):
    for seed, last in ((1, 0.8), (2, 0.84)):
        finish_run(tmp_path, small_config(seed=seed), [0.5, 0.9, last], step_seconds=0.02)
        finish_run(tmp_path, small_config(seed=seed, optimizer="adahessian"), [0.7], 0.05)
    (table,) = tables(tmp_path)
    assert table.title == "digits resnet8"
    spread = 100 * statistics.stdev([0.8, 0.84])
    columns, *rows = grid(table).texts()
    assert columns == ["optimizer", "n", "last epoch", "best epoch", "step ms", "× sgd"]
    assert rows == [
        ["sgd", "2", f"82.00 ± {spread:.2f}", "90.00 ± 0.00", "20.0", "1.00"],
        ["adahessian", "2", "70.00 ± 0.00", "70.00 ± 0.00", "50.0", "2.50"],
    ]


def test_one_run_has_no_std_and_no_sgd_no_ratio(tmp_path):
    finish_run(tmp_path, small_config(optimizer="adam"), [0.5])
    (table,) = tables(tmp_path)
    columns, *rows = grid(table).texts()
    assert columns == ["optimizer", "n", "last epoch", "best epoch", "step ms"]
    assert rows == [["adam", "1", "50.00", "50.00", "10.0"]]


def test_with_two_kinds_of_sgd_there_is_no_unit_of_time(tmp_path):
    finish_run(tmp_path, small_config(), [0.5])
    finish_run(tmp_path, small_config("optimizers.sgd.lr=0.2"), [0.6])
    (table,) = tables(tmp_path)
    assert table.reference is None, "which sgd would be the unit?"
    assert not any("sgd" in column for column in grid(table).columns)


def test_the_command_writes_tables_and_pictures(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("RUNS_ROOT", str(tmp_path))
    for optimizer in ("sgd", "adam", "adamw", "adahessian"):
        for seed in (1, 2):
            config = small_config(optimizer=optimizer, seed=seed)
            finish_run(tmp_path, config, [0.5, 0.9, 0.9 + seed / 100])
    unfinished = finish_run(tmp_path, small_config(seed=3), [0.5])
    (unfinished.path / "DONE").unlink()
    assert report.main(["--dataset", "digits", "--model", "resnet8"]) == 0
    output = capsys.readouterr().out
    assert "91.50 ± 0.71" in output and "1 killed run(s) shown as far as" in output
    paths = ("picture:", "tables:", "page:")
    assert max(len(line) for line in output.splitlines() if not line.startswith(paths)) <= 80
    assert f"page:    {tmp_path / 'report.html'}" in output
    assert "<!doctype html>" in (tmp_path / "report.html").read_text()
    markdown = (tmp_path / "report" / "report.md").read_text()
    assert "| sgd | 2 | 91.50 ± 0.71 | 91.50 ± 0.71 | 10.0 | 1.00 |" in markdown
    (picture,) = (tmp_path / "report").glob("digits-resnet8-*.png")
    assert picture.stat().st_size > 20_000 and picture.name in markdown


def test_one_that_has_all_but_diverged_does_not_keep_the_others_from_being_shown(
    tmp_path, capsys, monkeypatch
):
    """A perplexity is at most exp(700), of which neither square nor margin is a number."""
    monkeypatch.setenv("RUNS_ROOT", str(tmp_path))
    for seed in (1, 2):
        lost = [1e5, math.exp(700) / seed]
        finish_run(tmp_path, small_config(seed=seed), lost, metric=PERPLEXITY)
        config = small_config(optimizer="adam", seed=seed)
        finish_run(tmp_path, config, [30.0, 20.0 + seed], metric=PERPLEXITY)
    assert report.main([]) == 0
    output = capsys.readouterr().out
    assert "21.50 ± 0.71" in output and "7.61e+303 ± 3.59e+303" in output
    assert "7.61e+303 ± 3.59e+303" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize("arguments", [[], ["--dataset", "cifar10"]])
def test_without_finished_runs_it_says_so(arguments, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("RUNS_ROOT", str(tmp_path))
    assert report.main(arguments) == 2
    assert "no finished run below" in capsys.readouterr().err


def test_settings_are_shown_as_they_are(tmp_path, capsys, monkeypatch):
    """Neither the terminal's markup nor Markdown's may swallow a part of them."""
    monkeypatch.setenv("RUNS_ROOT", str(tmp_path))
    for block in ("row", "kernel"):
        override = f"optimizers.adahessian.block_size={block}"
        finish_run(tmp_path, small_config(override, optimizer="adahessian"), [0.5])
    (table,) = tables(tmp_path)
    hostile = {f"[bold]{label}|x": runs for label, runs in table.groups.items()}
    results = read_results(tmp_path)
    results.tables[0].groups = hostile
    write_report(results, tmp_path / "report")
    assert "[bold]adahessian" in capsys.readouterr().out
    assert "| [bold]adahessian block_size=row\\|x |" in (tmp_path / "report/report.md").read_text()


@pytest.mark.parametrize("text", ["$x_{$", "a\nb\x07", "long " * 999, "😀\u202e"])
def test_a_text_of_a_setting_is_shown_as_it_is_in_one_line(text, tmp_path, monkeypatch, capsys):
    """`$` is TeX to matplotlib, and ended the report of all runs; a line break ended a heading."""
    monkeypatch.setenv("RUNS_ROOT", str(tmp_path))
    model = "model={constructor: experiments.models.convnet.ConvNet, depth: 3, tag: %s}"
    for tag in (text, "plain"):
        finish_run(tmp_path, small_config(model % json.dumps(tag, ensure_ascii=False)), [0.5])
    assert report.main([]) == 0
    written = (tmp_path / "report" / "report.md").read_text(encoding="utf-8").split("\n")
    headings = [line for line in written if line.startswith("## ")]
    assert len(headings) == 2 and all(len(line) < 200 for line in headings)
    assert all(line.isprintable() for line in headings)
    assert len([*(tmp_path / "report").glob("*.png")]) == 2


def test_numbers_at_a_logarithmic_axis_are_still_formulas(tmp_path):
    figure, (axes,) = canvas.panels(1, (3, 3))
    axes.plot([1, 2], [1, 1000])
    axes.set(yscale="log", title="$5 and $6")
    canvas.save(figure, tmp_path / "a.png")
    assert any(
        "mathdefault" in one.get_text() and one.get_parse_math() for one in axes.get_yticklabels()
    )
    assert not axes.title.get_parse_math()
