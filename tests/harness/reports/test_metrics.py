"""Runs of tasks that no image has: whatever their metric is, everything shows it rightly."""

import html
import json
import math
import re
import statistics
from pathlib import Path

import pytest
from support.harness import DIGITS, REPOSITORY, finish_run, small_config

from experiments import export, report
from experiments.config.metrics import ACCURACY, Metric
from experiments.plans import sweeps
from experiments.plots import curves
from experiments.plots.sweeps import LinePlot
from experiments.reports.page.comparisons import verdict
from experiments.reports.page.figures import headline
from experiments.reports.summary import grid, write_report
from experiments.reports.sweep_plots import sweep_plot
from experiments.results import committed
from experiments.results.statistics import compare, late_limits
from experiments.results.sweeps import read_sweep
from experiments.results.tables import read_results
from experiments.tracking.workspace import make_sections, read_metas

PERPLEXITY = Metric("perplexity", "min", digits=2, log=True)
MAE = Metric("mae", "min", unit="K", digits=3)
BLEU = Metric("bleu", "max", digits=1)
ERROR = Metric("error", "min", unit="%", scale=100, digits=1)
METRICS = (PERPLEXITY, MAE, BLEU, ERROR, ACCURACY)


@pytest.fixture(params=METRICS, ids=lambda metric: metric.name)
def metric(request):
    return request.param


# Values of the last epoch, by seed; sgd's are the larger ones.
LAST = {"sgd": (0.50, 0.52), "adam": (0.30, 0.31)}


@pytest.fixture
def root(metric, tmp_path, monkeypatch):
    root = tmp_path / "runs"
    monkeypatch.setenv("RUNS_ROOT", str(root))
    for optimizer, values in LAST.items():
        for seed, last in enumerate(values, 1):
            config = small_config(optimizer=optimizer, seed=seed)
            start = 40.0 if metric.direction == "min" else 0.01
            finish_run(root, config, [start] * 3 + [(last + 1) / 2] * 2 + [last], metric=metric)
    return root


def best_of(metric):
    return "adam" if metric.direction == "min" else "sgd"


def shown(metric, optimizer):
    values = [metric.scale * value for value in LAST[optimizer]]
    digits = metric.digits
    return f"{statistics.mean(values):.{digits}f} ± {statistics.stdev(values):.{digits}f}"


def test_the_report_shows_the_metric_and_its_best(metric, root, capsys):
    write_report(results := read_results(root), root / "report")
    (table,) = results.tables
    out, markdown = capsys.readouterr().out, (root / "report" / "report.md").read_text()
    page = (root / "report.html").read_text().partition("<main>")[2].partition("</main>")[0]
    for text in (out, markdown):
        assert f"test {metric.title}: mean" in text
        assert all(shown(metric, optimizer) in text for optimizer in LAST)
    assert compare(table)[0] == best_of(metric)
    words = "".join(verdict(table))
    mean = f"{shown(metric, best_of(metric))} {metric.unit}".strip()
    start = f"{best_of(metric)} has the best mean last-epoch test {metric.name}: {mean} (n = 2)."
    assert words.startswith(start)
    assert f"Last epoch by seed: test {metric.title}" in page
    assert ("percentage points" in page) == (metric.unit == "%")
    behind = re.search(r"behind the best by[^<]*", page)[0]
    assert behind == {"": "behind the best by", "K": "behind the best by, K"}.get(
        metric.unit, "behind the best by, points"
    )
    if metric is not ACCURACY:
        assert "accuracy" not in page + out + markdown
    assert [row[0] for row in grid(table).rows] == ["sgd", "adam"], "the file's order, not the best"


def test_pictures_have_the_metrics_axis_and_its_last_values(metric, root, monkeypatch):
    saved = []
    monkeypatch.setattr(curves, "save", lambda figure, path: saved.append(figure))
    results = read_results(root)
    write_report(results, root / "report")
    (table,) = results.tables
    _, right = saved[0].axes
    assert right.get_ylabel() == f"test {metric.title}"
    low, high = late_limits(metric, table.runs)
    assert right.get_ylim() == pytest.approx((low, high))
    shown = [metric.scale * value for values in LAST.values() for value in values]
    assert low < min(shown) and max(shown) < high < 40 * metric.scale, "the start is outside"
    plot = headline(table)
    assert plot.layout.yaxis.title.text == f"test {metric.title}"
    assert right.get_yscale() == ("log" if metric.log else "linear")
    assert (plot.layout.yaxis.type == "log") == metric.log
    limits = [math.log10(low), math.log10(high)] if metric.log else [low, high]
    assert list(plot.layout.yaxis.range) == pytest.approx(limits)


def test_samples_of_the_best_run_and_what_needs_no_learning_are_shown(metric, root, capsys):
    samples = {}
    for run in read_results(root).runs:
        samples[run.last()] = f"<b>text</b> of {run.last()}."
        path, meta = run.directory / "DONE", run.meta
        done = json.loads(path.read_text()) | {"samples": [{"source": samples[run.last()]}]}
        path.write_text(json.dumps(done), encoding="utf-8")
        meta["sessions"][-1]["baselines"] = {"copy": 0.2, "nearest": 0.25}
        meta["data"] = {"test examples": 1234}
        (run.directory / "meta.json").write_text(json.dumps(meta), encoding="utf-8")
    write_report(results := read_results(root), root / "report")
    page = (root / "report.html").read_text()
    best = max(samples, key=lambda value: metric.sign * value)
    assert "Samples of the best run" in page and html.escape(samples[best]) in page
    assert not any(html.escape(text) in page for last, text in samples.items() if last != best)
    said = f"Without learning the test set of 1,234 examples has: copy {metric.text(0.2)}, "
    for text in (page, (root / "report" / "report.md").read_text()):
        assert said in text
    assert said[:40] in " ".join(capsys.readouterr().out.split())
    for run in results.runs:  # nothing of it is needed
        (run.directory / "DONE").write_text('{"samples": 5}', encoding="utf-8")
    write_report(read_results(root), root / "report")
    assert "Samples of" not in (root / "report.html").read_text()


def test_a_sweeps_best_is_the_best(metric, tmp_path, monkeypatch, capsys):
    path = tmp_path / "rates.yaml"
    path.write_text(
        f"config: {DIGITS}\nset: {{model.depth: 8, epochs: 2}}\n"
        "grid: {optimizer: [sgd], optimizer.lr: [0.1, 0.2, 0.3]}\n"
    )
    monkeypatch.setenv("RUNS_ROOT", str(tmp_path / "runs"))
    for run in sweeps.expand(path):
        finish_run(tmp_path / "runs", run.config, [0.9, run.settings["optimizer.lr"]],
                   metric=metric)  # fmt: skip
    best = 0.1 if metric.direction == "min" else 0.3
    results = read_sweep(path, tmp_path / "runs")
    assert results.best.values == {"optimizer.lr": best}
    plot = sweep_plot(results)
    assert isinstance(plot, LinePlot) and plot.y_title == f"last epoch, test {metric.title}"
    assert plot.best == (best, pytest.approx(metric.scale * best))
    assert report.main(["--sweep", str(path)]) == 0
    out = capsys.readouterr().out
    assert f"★ sgd lr={best}: best of 3 combinations by the mean test {metric.name}" in out
    row = [line.split() for line in out.splitlines() if line.split()[:2] == ["sgd", str(best)]]
    assert row == [["sgd", str(best), "1", metric.text(best), "★", "1", "done"]]


def test_exported_runs_come_back_with_their_metric(metric, root, tmp_path, monkeypatch):
    monkeypatch.setattr(committed, "FOLDER", tmp_path / "results")
    before = read_results(root)
    assert export.main([]) == 0
    back = committed.read(tmp_path / "results", root)
    assert {run.headline for run in back.values()} == {metric}
    for run in before.runs:
        there = back[run.directory]
        assert (there.last(), there.best()) == (run.last(), run.best())
        assert there.series(f"test/{metric.name}") == run.series(f"test/{metric.name}")
    for path in root.glob("*/*/*/*/DONE"):
        path.unlink()
    (table,) = read_results(root, more=back.values()).tables
    assert grid(table).texts() == grid(before.tables[0]).texts()


# wandb-workspaces 0.4 still has some.
@pytest.mark.filterwarnings("ignore:Pydantic V1 style:DeprecationWarning")
def test_the_workspace_has_the_metrics_panels_and_columns(metric, root):
    runs = [path.parent for path in root.glob("*/*/*/*/meta.json")]
    (runs[0] / "meta.json").write_text("{")  # a damaged run takes nothing away
    declared, results = read_metas(runs)
    assert declared[metric.name] == metric and results == [f"test/{metric.name}"]
    keys = [f"test/{metric.name}", "time/step_seconds", "hessian/trace"]
    panels = {panel.title: panel for part in make_sections(keys, declared) for panel in part.panels}
    panel = panels[f"Test: {metric.name}"]
    assert (panel.title_y, panel.log_y) == (metric.name, metric.direction == "min")
    assert panels["Time: step seconds"].title_y == "seconds"
    assert not panels["Curvature: trace"].log_y


def test_metas_of_earlier_versions_mean_the_same(root, metric):
    """They have names and directions alone, of which the units of loss and accuracy are known."""
    before = grid(read_results(root).tables[0])
    for path in root.glob("*/*/*/*/meta.json"):
        meta = json.loads(path.read_text())
        meta["metrics"] = {"loss": "min", metric.name: metric.direction}
        path.write_text(json.dumps(meta))
    (table,) = read_results(root).tables
    assert compare(table)[0] == best_of(metric)
    if metric is ACCURACY:
        assert grid(table) == before
    else:
        assert table.metric == Metric(metric.name, metric.direction)


def test_without_a_test_set_the_result_is_that_of_another_split(metric, root, capsys):
    for path in root.glob("*/*/*/*/meta.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"result_split": "val"}))
        rows = path.with_name("metrics.jsonl")
        rows.write_text(rows.read_text().replace('"test/', '"val/'))
        config = path.with_name("config.yaml")
        config.write_text(config.read_text().replace("split: test", "split: val"))
    write_report(results := read_results(root), root / "report")
    (table,) = results.tables
    words = "".join(verdict(table))
    assert f"has the best mean last-epoch val {metric.name}: " in words
    out, page = capsys.readouterr().out, (root / "report.html").read_text()
    assert f"val {metric.title}: mean" in out and f"test {metric.name}" not in out
    assert f"Test {metric.name}" not in page and f"test {metric.name}" not in page
    assert (
        f"Last epoch by seed: val {metric.title}" in page and "chosen on the val set itself" in page
    )


# ---------------------------------------------------------------------------------- who knows what

# Who may know what an image's task measures: the task, its metric, and the figures of a paper.
KNOW_ACCURACY = {
    "config/metrics.py",
    "results/published.py",
}
ROOMS_THAT_KNOW = ("tasks", "benchmarks", "ports")


def sources(*rooms):
    folder = REPOSITORY / "experiments"
    for path in sorted(folder.rglob("*.py")):
        place = path.relative_to(folder)
        if not rooms or place.parts[0] in rooms:
            yield place, path.read_text(encoding="utf-8")


def test_only_the_task_knows_what_an_accuracy_is():
    word = re.compile(r"\baccurac(y|ies)\b|\bpercent\b", re.I)
    found = {
        place.as_posix()
        for place, text in sources()
        if place.parts[0] not in ROOMS_THAT_KNOW and word.search(text)
    }
    assert found <= KNOW_ACCURACY


def test_no_report_looks_for_an_optimizer_by_name():
    """But for the names that the paper gives its own curves."""
    word = re.compile(r"""["'](x |× )?(sgd|adam|adamw)["']""", re.I)
    found = [
        place
        for place, text in sources("results", "reports", "plots", "tracking")
        if word.search(text)
    ]
    assert found == [Path("results/published.py")]


def test_every_text_is_read_and_written_as_utf8():
    bare = re.compile(r"""\.(read_text\(\)|write_text\((?!.*encoding)|open\(["'][rwax]t?["']\))""")
    found = [
        (place.as_posix(), line)
        for place, text in sources("results", "reports", "plots", "tracking")
        for line in text.splitlines()
        if bare.search(line)
    ]
    assert found == []
