"""Runs of different problems are never averaged or compared, whichever command groups them."""

import json
from dataclasses import replace

import pytest
from support.harness import DIGITS, finish_run, say_in_meta, small_config

from experiments import export, report
from experiments.config.metrics import ACCURACY, LOSS, dump
from experiments.errors import UserError
from experiments.plans import sweeps
from experiments.results import committed, published
from experiments.results.benchmarks import read_benchmark
from experiments.results.halving import limits
from experiments.results.sweeps import read_sweep
from experiments.results.tables import read_results
from experiments.runs import problem

A = {"classes": 10, "train": 40, "digest": "aaaaaaaaaaaaaaaa"}
B = {"classes": 10, "train": 41, "digest": "bbbbbbbbbbbbbbbb"}
SWEEP = "set: {model.depth: 8, epochs: 2}\nseeds: 1-3\ngrid: {optimizer: [sgd, adam]}\n"
HALVED = f"""
config: {DIGITS}
seeds: [1]
set: {{model.depth: 8, epochs: 4, optimizer: sgd}}
search: {{trials: 4, halving: {{first: 1, factor: 2}},
         space: {{optimizer.lr: {{log_uniform: [0.01, 1]}}}}}}
"""
BENCHMARK = f"""
config: {DIGITS}
set: {{model.depth: 8, epochs: 2}}
target: {{metric: test/accuracy, value: 0.6}}
trials: 1
studies: 3
rows:
  sgd: {{constructor: torch.optim.SGD, lr: 0.1, weight_decay: 0, weight_decay_divided_by_lr: false}}
"""
# What an own task can change without a change of the signature.
OTHERS = {
    "data": {"data": B},
    "headline": {"headline": "loss"},
    "scale": {"metrics": dump((LOSS, replace(ACCURACY, scale=1)))},
    "unit": {"metrics": dump((LOSS, replace(ACCURACY, unit="K")))},
    "direction": {"metrics": dump((LOSS, replace(ACCURACY, direction="min")))},
    "split": {"result_split": "train"},
}


def run(root, value, seed=1, optimizer="sgd", **meta):
    made = finish_run(root, small_config(optimizer=optimizer, seed=seed), [value])
    return say_in_meta(made, **{"metrics": dump((LOSS, ACCURACY)), "data": A} | meta)


@pytest.mark.parametrize("other", OTHERS)
def test_another_problem_is_another_table(other, tmp_path):
    run(tmp_path, 0.5)
    run(tmp_path, 0.7, seed=2, **OTHERS[other])
    run(tmp_path, 0.9, optimizer="adam")
    one, two = read_results(tmp_path).tables
    assert [run.meta["seed"] for run in one.runs] == [1, 1]
    assert [run.meta["seed"] for run in two.runs] == [2]
    assert one.name != two.name and one.title != two.title and f" {other} " in two.title


def test_what_an_earlier_version_wrote_joins_any(tmp_path):
    """In whichever order they are read, and one table has the names that it always had."""
    finish_run(tmp_path, small_config(seed=1), [0.5])
    (alone,) = read_results(tmp_path).tables
    run(tmp_path, 0.7, seed=2)
    finish_run(tmp_path, small_config(seed=3), [0.5])
    (table,) = read_results(tmp_path).tables
    assert [one.meta["seed"] for one in table.groups["sgd"]] == [1, 2, 3]
    assert (table.title, table.name) == (alone.title, alone.name)
    run(tmp_path, 0.7, seed=4, data=B)
    first, second = read_results(tmp_path).tables
    assert [len(first.runs), len(second.runs)] == [3, 1]


def test_the_report_shows_both(tmp_path, monkeypatch, capsys):
    run(tmp_path, 0.5)
    run(tmp_path, 0.7, seed=2, data=B)
    monkeypatch.setenv("RUNS_ROOT", str(tmp_path))
    assert report.main([]) == 0
    shown = capsys.readouterr().out
    assert "data aaaaaaaaaaaaaaaa" in shown and "data bbbbbbbbbbbbbbbb" in shown
    assert "60.00" not in shown


def test_an_export_keeps_the_data_and_one_problem_a_file(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("RUNS_ROOT", str(tmp_path / "runs"))
    folder = tmp_path / "results"
    run(tmp_path / "runs", 0.5)
    assert export.main(["--to", str(folder)]) == 0
    (path,) = folder.glob("*/*/*.json")
    assert json.loads(path.read_text())["meta"]["data"] == A
    # What is committed decides, even where more runs are of another problem.
    for seed in (2, 3):
        run(tmp_path / "runs", 0.7, seed=seed, data=B)
    run(tmp_path / "runs", 0.9, seed=4)
    capsys.readouterr()
    assert export.main(["--to", str(folder)]) == 0
    said = capsys.readouterr()
    assert said.out.startswith("2 runs below")
    assert said.err.count("left out of") == 2 and "data bbbbbbbbbbbbbbbb" in said.err
    back = committed.read(folder, tmp_path / "runs").values()
    assert [one.meta["seed"] for one in back] == [1, 4]
    assert len(read_results(tmp_path / "runs", more=back).tables) == 2


def test_a_sweep_leaves_it_out_and_says_so(tmp_path):
    path = tmp_path / "sweep.yaml"
    path.write_text(f"config: {DIGITS}\n{SWEEP}")
    for one in sweeps.expand(path):
        other = one.config.seed == 3 and one.config.optimizer_name == "sgd"
        run(tmp_path, 0.9 if other else 0.5, one.config.seed, one.config.optimizer_name,
            data=B if other else A)  # fmt: skip
    results = read_sweep(path, tmp_path)
    assert [len(point.finished) for point in results.points] == [2, 3]
    (out,) = [one for one in results.members if one.state == "other problem"]
    assert out.problem == (
        "not comparable: data bbbbbbbbbbbbbbbb, the others data aaaaaaaaaaaaaaaa"
    )
    assert [len(runs) for runs in results.tables[0].groups.values()] == [2, 3]
    assert not out.missing


def test_halving_does_not_choose_between_them(tmp_path):
    path = tmp_path / "halved.yaml"
    path.write_text(HALVED)
    brackets = sweeps.brackets(sweeps.read(path), path)
    for number, one in enumerate(brackets[0].runs):
        say_in_meta(finish_run(tmp_path, one.config, [0.5]), data=B if number else A)
    with pytest.raises(UserError, match="not comparable: data a{16}, the others data b{16}"):
        limits(brackets, tmp_path)


def test_a_benchmark_scores_one_problem(tmp_path):
    path = tmp_path / "benchmark.yaml"
    path.write_text(BENCHMARK)
    for number, one in enumerate(read_benchmark(path, tmp_path).planned):
        say_in_meta(finish_run(tmp_path, one.run.config, [0.7]), data=A if number else B)
    results = read_benchmark(path, tmp_path)
    assert sorted(results.scores["sgd"]) == [2, 3]
    assert [one.state for one in results.members].count("other problem") == 1


def test_data_that_a_plan_names_are_meant_to_differ():
    metas = [{"protocol": name, "headline": "loss", "metrics": dump((LOSS,)), "data": data}
             for name, data in (("1", A), ("2", A), ("3", B))]  # fmt: skip
    configs = [{"dataset": {"root": root}} for root in ("here", "here", "there")]
    assert problem.apart("abc", metas, configs) == []
    ((name, why),) = problem.apart("abc", metas, [configs[0]] * 3)
    assert name == "c" and "data bbbbbbbbbbbbbbbb" in why


def test_the_papers_curves_are_of_one_problem(tmp_path):
    from experiments.plans.load import load, resolve

    figure = published.FIGURES[0]
    config = load(published.REPOSITORY / figure.config)
    for seed, data in ((1, A), (2, A), (3, B)):
        made = finish_run(tmp_path, resolve(config, "sgd", seed), [0.5])
        say_in_meta(made, data=data)
    with pytest.warns(UserWarning, match="-s3 is left out of ResNet-20 on CIFAR-10"):
        assert len(published.our_runs(figure, tmp_path)["sgd"]) == 2
