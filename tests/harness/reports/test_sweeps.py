import json
import math
import statistics

import pytest
from support.harness import DIGITS, complete, finish_run, small_config

from experiments import report
from experiments.errors import UserError
from experiments.plans import sweeps
from experiments.reports import page
from experiments.reports.page import sweeps as page_sweeps
from experiments.reports.sweep_plots import sweep_plot
from experiments.reports.sweeps import columns, rows, verdict
from experiments.results.sweeps import read_sweep
from experiments.runs import attempts

SET = "set: {model.depth: 8, epochs: 2}\n"
RATES = SET + "seeds: 1-2\ngrid: {optimizer: [sgd, adahessian], optimizer.lr: [0.01, 0.1, 1.0]}\n"
TWO = SET + "grid: {optimizer: [sgd, adam], optimizer.lr: [0.1, 0.01], batch_size: [32, 128]}\n"
OWN = """set:
  optimizer: sgd
  epochs: 2
  model: {constructor: experiments.models.convnet.ConvNet, depth: 3}
"""


def write(tmp_path, text):
    path = tmp_path / "rates.yaml"
    path.write_text(f"config: {DIGITS}\n" + text)
    return path


def finish(path, root, accuracy):
    """Files of finished runs, as far as `accuracy` of the settings is a number."""
    for run in sweeps.expand(path):
        if (last := accuracy(run.settings)) is not None:
            finish_run(root, run.config, [0.3, last])


def rates(settings):
    """Best at 0.1 with SGD; the runs with a rate of 1 were never begun."""
    if settings["optimizer.lr"] == 1.0:
        return None
    better = 0.2 * (settings["optimizer.lr"] == 0.1) + 0.1 * (settings["optimizer"] == "sgd")
    return 0.5 + better + settings["seed"] / 100


def show(tmp_path, monkeypatch, capsys, path):
    monkeypatch.setenv("RUNS_ROOT", str(tmp_path / "runs"))
    assert report.main(["--sweep", str(path)]) == 0
    return capsys.readouterr().out


def test_the_table_has_the_swept_keys_and_marks_the_best_of_many(tmp_path):
    path = write(tmp_path, RATES)
    finish(path, tmp_path, rates)
    results = read_sweep(path, tmp_path)
    spread = f"{100 * statistics.stdev([0.81, 0.82]):.2f}"
    assert columns(results) == ["optimizer", "lr", "n", "last epoch", "best", "runs"]
    assert rows(results) == [
        ["sgd", "0.01", "2", f"61.50 ± {spread}", "", "2 done"],
        ["sgd", "0.1", "2", f"81.50 ± {spread}", "★", "2 done"],
        ["sgd", "1.0", "0", "", "", "2 new"],
        ["adahessian", "0.01", "2", f"51.50 ± {spread}", "", "2 done"],
        ["adahessian", "0.1", "2", f"71.50 ± {spread}", "", "2 done"],
        ["adahessian", "1.0", "0", "", "", "2 new"],
    ]
    text = verdict(results)
    assert "★ sgd lr=0.1: best of 4 combinations by the mean test accuracy of the last" in text
    assert "of 3 of the other 3." in text and "incomplete" not in text
    assert len(results.missing) == 4


def test_settings_that_read_alike_are_two_rows_and_none_is_lost(tmp_path):
    """`1` and `"1"` are two runs; those of one label took each other's place in the verdict."""
    path = write(
        tmp_path, f"{OWN}list: [{{}}, {{model.tag: ''}}, {{model.tag: 1}}, {{model.tag: '1'}}]"
    )
    for place, run in enumerate(sweeps.expand(path)):
        finish_run(tmp_path, run.config, [0.3, 0.5 + place / 10])
    results = read_sweep(path, tmp_path)
    assert len(results.points) == len({point.label for point in results.points}) == 4
    assert "best of 4 combinations" in verdict(results) and "80.00" in rows(results)[3][3]


def test_no_picture_is_drawn_of_points_that_would_share_a_place(tmp_path):
    path = write(tmp_path, OWN + "grid: {optimizer.lr: [0.1, 0.2], model.tag: [1, '1']}")
    finish(path, tmp_path, lambda settings: settings["optimizer.lr"])
    results = read_sweep(path, tmp_path)
    assert len(results.points) == 4 and sweep_plot(results) is None


def test_the_best_says_that_it_is_incomplete(tmp_path):
    path = write(tmp_path, RATES)
    runs = sweeps.expand(path)
    finish_run(tmp_path, runs[0].config, [0.5])
    finish_run(tmp_path, runs[2].config, [0.9])
    text = verdict(read_sweep(path, tmp_path))
    assert "★ sgd lr=0.1: best of 2" in text and "It is incomplete (1 done, 1 new)" in text
    assert "of 0 of the other 1." in text, "one seed each says nothing for certain"


def test_every_state_is_named_with_its_reason(tmp_path):
    path = write(tmp_path, SET + "seeds: 1-6\ngrid: {optimizer: [sgd]}\n")
    runs = sweeps.expand(path)
    places = [finish_run(tmp_path, run.config, [0.5]).path for run in runs[:5]]
    (places[1] / "metrics.jsonl").write_text('{"epoch": 1, "test/accuracy": NaN}\n')
    (places[2] / "meta.json").write_text("{")
    for place, reason in ((places[3], "stopped by SIGTERM"), (places[4], "ValueError: no")):
        (place / "DONE").unlink()
        lines = [
            {"attempt": 1, "started": "", "host": "n1", "job": None, "checkpoint": None},
            {"attempt": 1, "ended": "", "reason": reason},
        ]
        (place / attempts.NAME).write_text("".join(json.dumps(line) + "\n" for line in lines))
    (places[4] / "meta.json").unlink()  # it failed before it described itself
    results = read_sweep(path, tmp_path)
    found = {one.run.config.seed: (one.state, one.problem) for one in results.members}
    assert found[1] == ("done", "")
    assert found[2] == ("diverged", "its last test/accuracy is nan")
    assert found[3][0] == "unreadable" and "JSONDecodeError" in found[3][1]
    assert found[4] == ("stopped", "stopped by SIGTERM")
    assert found[5] == ("failed", "ValueError: no")
    assert found[6] == ("new", "")
    (point,) = results.points
    assert point.states == "1 done, 1 diverged, 1 unreadable, 1 stopped, 1 failed, 1 new"
    # What is marked as done is not sent again, whatever is wrong with it.
    assert [one.run.config.seed for one in results.missing] == [4, 5, 6]


def test_values_that_only_some_combinations_set_are_those_of_the_configuration(tmp_path):
    text = "list: [{optimizer: sgd}, {optimizer: adam, optimizer.lr: 0.01, batch_size: 64}]"
    results = read_sweep(write(tmp_path, text), tmp_path)
    config = small_config()
    assert results.keys == ["optimizer.lr", "batch_size"]
    assert [list(point.values.values()) for point in results.points] == [
        [config.optimizer.lr, config.batch_size],
        [0.01, 64],
    ]


def test_a_key_with_one_value_is_not_swept(tmp_path):
    text = "grid: {optimizer: [sgd], batch_size: [64], optimizer.lr: [0.1, 0.2]}"
    assert read_sweep(write(tmp_path, text), tmp_path).keys == ["optimizer.lr"]
    same = ("{name: cosine, warmup_epochs: 1}", "{warmup_epochs: 1, name: cosine}")
    points = [f"{{optimizer: sgd, epochs: {2 + i}, schedule: {s}}}" for i, s in enumerate(same)]
    assert read_sweep(write(tmp_path, f"list: [{', '.join(points)}]"), tmp_path).keys == ["epochs"]


def test_line_over_one_number(tmp_path):
    path = write(tmp_path, RATES.replace("[0.01, 0.1, 1.0]", "[1.0, 0.1, 0.01]"))
    finish(path, tmp_path, rates)
    results = read_sweep(path, tmp_path)
    numbers = sweep_plot(results)
    line = numbers.lines[0]
    assert line.curve.x == [0.01, 0.1], "by size, and without what has no result"
    assert line.curve.means == pytest.approx([61.5, 81.5])
    assert line.curve.stds == pytest.approx([100 * statistics.stdev([0.61, 0.62])] * 2)
    assert [x for x, _ in line.dots] == [0.01, 0.01, 0.1, 0.1]
    assert line.dot_names == ["seed 1", "seed 2"] * 2
    plot = page_sweeps.lines(numbers)
    assert plot.layout.xaxis.type == "log"
    ring = next(trace for trace in plot.data if trace.name == "best mean")
    assert (list(ring.x), list(ring.y)) == ([0.1], pytest.approx([81.5]))


@pytest.mark.parametrize(
    ("values", "logarithmic"),
    [("[0.1, 0.2]", False), ("[0.1, 1.0]", True), ("[0, 1.0]", False)],
)
def test_an_axis_is_logarithmic_where_its_values_ask_for_it(values, logarithmic, tmp_path):
    text = f"grid: {{optimizer: [adamw], optimizer.weight_decay: {values}}}"
    path = write(tmp_path, SET + text)
    finish(path, tmp_path, lambda settings: 0.5)
    assert sweep_plot(read_sweep(path, tmp_path)).logarithmic == logarithmic


def test_heat_map_over_two_keys(tmp_path):
    path = write(tmp_path, TWO)

    def accuracy(settings):
        if settings["optimizer"] == "adam":
            return 0.5
        return {(0.1, 32): 0.9, (0.1, 128): 0.8, (0.01, 32): 0.7}.get(
            (settings["optimizer.lr"], settings["batch_size"])
        )

    finish(path, tmp_path, accuracy)
    results = read_sweep(path, tmp_path)
    numbers = sweep_plot(results)
    assert [one.name for one in numbers.maps] == ["sgd", "adam"]
    assert [one.best for one in numbers.maps] == [(0, 1), None]
    plot = page_sweeps.heat_map(numbers, numbers.maps[0])
    heat = plot.data[0]
    assert (list(heat.x), list(heat.y)) == (["0.01", "0.1"], ["32", "128"])
    assert list(heat.z[0]) == pytest.approx([70, 90])
    assert math.isnan(heat.z[1][0]) and heat.z[1][1] == pytest.approx(80)
    assert (heat.zmin, heat.zmax) == pytest.approx((50, 90)), "common to all optimizers"
    texts = [text for trace in plot.data[1:] for text in trace.text]
    assert sorted(texts) == ["1 new", "70.00", "80.00", "★ 90.00"]


@pytest.mark.parametrize(
    ("text", "picture"),
    [
        ("grid: {optimizer: [sgd], optimizer.lr: [0.1, 0.2]}", True),
        ("grid: {optimizer: [sgd], optimizer.lr: [0.1, 0.2], batch_size: [64, 32]}", True),
        ("grid: {optimizer: [sgd, adam]}", False),
        ("grid: {optimizer: [sgd], optimizer.nesterov: [true, false]}", False),
        (
            "grid: {optimizer: [sgd], optimizer.lr: [0.1, 0.2], batch_size: [64, 32], "
            "dataset.crop_padding: [0, 1]}",
            False,
        ),
    ],
)
def test_a_picture_where_one_number_or_two_keys_are_swept(
    text, picture, tmp_path, capsys, monkeypatch
):
    path = write(tmp_path, SET + text)
    finish(path, tmp_path / "runs", lambda settings: 0.5)
    output = show(tmp_path, monkeypatch, capsys, path)
    found = tmp_path / "runs" / "report" / "sweep-rates.png"
    assert found.exists() == picture == ("picture:" in output)
    assert not picture or found.stat().st_size > 10_000


def test_the_command_on_a_real_training_and_a_run_not_begun(tmp_path, capsys, monkeypatch):
    path = write(tmp_path, SET + "grid: {optimizer: [sgd], optimizer.lr: [0.05, 0.1]}")
    complete(tmp_path / "runs", "optimizer=sgd", "seed=1", "optimizers.sgd.lr=0.05")
    output = show(tmp_path, monkeypatch, capsys, path)
    trained, other = sweeps.expand(path)
    last = (tmp_path / "runs" / trained.place / "metrics.jsonl").read_text().splitlines()[-1]
    row = [c.split() for c in output.splitlines() if c.split()[:2] == ["sgd", "0.05"]]
    assert row == [["sgd", "0.05", "1", f"{100 * json.loads(last)['test/accuracy']:.2f}",
                    "★", "1", "done"]]  # fmt: skip
    relative = other.place
    assert f"new: sgd lr=0.1, seed 1 ({relative})\n" in output
    assert "1 of 2 runs are missing; this trains them (CLUSTER=slurm: on a cluster):\n" in output
    assert f"\n  make sweep SWEEP={path}\n" in output
    table = output.partition("new:")[0]
    assert max(map(len, table.splitlines())) <= 80
    markdown = (tmp_path / "runs" / "report" / "report.md").read_text()
    assert "| optimizer | lr | n | last epoch | best | runs |" in markdown
    assert f"| new | sgd lr=0.1, seed 1 | {relative} |" in markdown
    assert "![Sweep rates](sweep-rates.png)" in markdown
    html = (tmp_path / "runs" / "report.html").read_text()
    assert '<section id="sweep-rates"' in html and str(relative) in html


def test_nothing_begun_is_a_report_too(tmp_path, capsys, monkeypatch):
    output = show(tmp_path, monkeypatch, capsys, write(tmp_path, RATES))
    assert "No run is finished yet" in output and "12 of 12 runs are missing" in output
    assert output.count("\nnew: ") == 12 and "picture:" not in output


def test_other_runs_are_not_in_the_report_of_a_sweep(tmp_path):
    path = write(tmp_path, RATES)
    finish(path, tmp_path, rates)
    finish_run(tmp_path, small_config("optimizers.sgd.lr=0.7", seed=9), [0.99])
    results = read_sweep(path, tmp_path)
    assert len(results.runs) == 8 and results.best.label == "sgd lr=0.1"
    (table,) = results.tables
    assert list(table.groups)[:2] == ["sgd lr=0.01", "sgd lr=0.1"]


def test_texts_of_a_file_are_shown_as_they_are(tmp_path):
    path = write(tmp_path, "grid: {optimizer: [sgd], optimizer.lr: [0.1, 0.2]}")
    hostile = path.rename(tmp_path / "<img src=x>[bold].yaml")
    finish(hostile, tmp_path / "runs", lambda settings: 0.5)
    results = read_sweep(hostile, tmp_path / "runs")
    text = page.write_page(results, tmp_path / "report.html").read_text()
    assert "<img src=x>" not in text and "&lt;img src=x&gt;[bold]" in text


def test_a_sweep_is_found_by_name_or_path(tmp_path):
    named = sweeps.find("digits-lr")
    assert named.name == "digits-lr.yaml" and named.is_file()
    assert sweeps.find(str(named)) == named
    path = write(tmp_path, RATES)
    assert sweeps.find(str(path)) == path
    with pytest.raises(UserError, match="no sweep 'digits-lx'.*did you mean 'digits-lr'"):
        sweeps.find("digits-lx")
    with pytest.raises(UserError, match="resnet20.yaml is no sweep"):
        sweeps.find(str(DIGITS))


def test_mistakes_end_with_a_message(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("RUNS_ROOT", str(tmp_path))
    assert report.main(["--sweep", "nothing"]) == 2
    assert "error: no sweep 'nothing'" in capsys.readouterr().err
    assert report.main(["--sweep", "digits-lr", "--model", "resnet20"]) == 2
    assert "leave out --dataset, --model and --committed" in capsys.readouterr().err
    assert report.main(["--sweep", str(write(tmp_path, "gird: {}"))]) == 2
    assert "did you mean 'grid'?" in capsys.readouterr().err
