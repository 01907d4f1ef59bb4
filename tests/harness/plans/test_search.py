"""A sweep's `search`: points of a space, the same for the same file."""

import math

import pytest
from support.harness import DIGITS, finish_run

from experiments.errors import UserError
from experiments.plans import sweeps
from experiments.plans.search import Search
from experiments.reports.sweep_plots import sweep_plot
from experiments.reports.sweeps import columns, rows
from experiments.results.sweeps import read_sweep

SPACE = {
    "optimizer.lr": {"log_uniform": [0.01, 1]},
    "optimizer.momentum": {"uniform": [0.5, 0.9]},
    "batch_size": {"choices": [32, 64, 128, 256]},
}


def points(method="sobol", trials=64, seed=0, space=SPACE):
    document = {"method": method, "trials": trials, "seed": seed, "space": space}
    return Search.model_validate(document).points()


def write(tmp_path, text):
    path = tmp_path / "sweep.yaml"
    path.write_text(f"config: {DIGITS}\nset: {{optimizer: sgd}}\n{text}", encoding="utf-8")
    return path


@pytest.mark.parametrize("method", ["sobol", "random"])
class TestPoints:
    def test_are_within_and_spread_as_asked(self, method):
        found = points(method, 512)
        rates = [p["optimizer.lr"] for p in found]
        assert all(0.01 <= lr <= 1 and float(f"{lr:.4g}") == lr for lr in rates)
        # Half of them lie below the geometric mean, a tenth: binomial with σ = 11.
        assert abs(sum(lr < 0.1 for lr in rates) - 256) < 50
        momenta = [p["optimizer.momentum"] for p in found]
        assert min(momenta) >= 0.5 and max(momenta) <= 0.9
        assert abs(sum(momenta) / 512 - 0.7) < 0.03
        for size in (32, 64, 128, 256):
            assert abs(sum(p["batch_size"] == size for p in found) - 128) < 45

    def test_are_the_same_again_and_the_first_of_more(self, method):
        assert points(method, 5) == points(method, 5) == points(method, 23)[:5]
        assert len(points(method, 5)) == 5

    def test_depend_on_the_seed(self, method):
        assert points(method, 5, seed=1) != points(method, 5)

    def test_a_point_of_choices_is_there_once(self, method):
        space = {"batch_size": {"choices": [32, 64]}, "optimizer.betas": {"choices": [[0.9, 0.99]]}}
        found = points(method, 16, space=space)
        assert sorted(p["batch_size"] for p in found) == [32, 64]

    def test_what_is_drawn_again_costs_no_trial(self, method):
        space = {
            "batch_size": {"choices": [32, 64, 96, 128]},
            "optimizer.momentum": {"choices": [0.8, 0.9]},
            "optimizer.lr": {"uniform": [0.1, 0.1001]},  # of four digits: two values
        }
        for seed in range(4):
            found = points(method, 12, seed=seed, space=space)
            assert len(found) == 12
            assert found[:5] == points(method, 5, seed=seed, space=space)
        assert len(points(method, 40, space=space)) == 16


def test_sobol_covers_more_evenly_than_chance():
    space = {"a": {"uniform": [0, 1]}}
    cells = {math.floor(p["a"] * 64) for p in points(trials=64, space=space)}
    assert len(cells) >= 60  # rounding to four digits may move one over a border


def test_it_multiplies_with_the_rest_and_with_seeds(tmp_path):
    text = """
seeds: 1-2
grid: {model.depth: [8, 14]}
search: {trials: 3, space: {optimizer.lr: {log_uniform: [0.01, 1]}}}
"""
    path = write(tmp_path, text)
    runs = sweeps.expand(path)
    assert len(runs) == len({run.place for run in runs}) == 2 * 3 * 2
    rates = [run.config.optimizer.lr for run in runs]
    assert rates[:6:2] == rates[6::2] and rates[::2] == rates[1::2]
    assert [run.place for run in sweeps.expand(path)] == [run.place for run in runs]
    more = sweeps.expand(write(tmp_path, text.replace("trials: 3", "trials: 6")))
    assert {run.place for run in runs} < {run.place for run in more}


def test_its_report_has_a_row_for_each_point_and_no_map_of_gaps(tmp_path):
    space = "optimizer.lr: {log_uniform: [0.01, 1]}, batch_size: {choices: [32, 64, 128]}"
    path = write(tmp_path, f"search: {{trials: 6, space: {{{space}}}}}\n")
    runs = sweeps.expand(path)
    for place, run in enumerate(runs[:5]):
        finish_run(tmp_path / "runs", run.config, [0.3, 0.5 + place / 100])
    results = read_sweep(path, tmp_path / "runs")
    assert columns(results) == ["optimizer", "lr", "batch_size", "n", "last epoch", "best", "runs"]
    found = rows(results)
    assert [row[1] for row in found] == [str(run.config.optimizer.lr) for run in runs]
    assert [row[5] for row in found] == ["", "", "", "", "★", ""] and found[5][6] == "1 new"
    assert len(results.missing) == 1 and sweep_plot(results) is None


@pytest.mark.parametrize(
    ("search", "message"),
    [
        ("{trials: 0, space: {optimizer.lr: {uniform: [0, 1]}}}", "search.trials = 0"),
        ("{trials: 20000, space: {epochs: {choices: [1]}}}", "than or equal to 10000"),
        ("{trials: 2, space: {}}", "search.space"),
        ("{trials: 2}", "search.space"),
        ("{trials: 2, kind: random, space: {epochs: {choices: [1]}}}", "unknown key 'kind'"),
        ("{trials: 2, method: grid, space: {epochs: {choices: [1]}}}", "'sobol' or 'random'"),
        ("{trials: 2, space: {optimizer.lr: [0, 1]}}", "search.space.optimizer.lr"),
        ("{trials: 2, space: {optimizer.lr: {}}}", "write one of log_uniform"),
        ("{trials: 2, space: {optimizer.lr: {uniform: [0, 1], choices: [1]}}}", "write one of"),
        ("{trials: 2, space: {optimizer.lr: {log_uniform: [0, 1]}}}", "both must be above 0"),
        ("{trials: 2, space: {optimizer.lr: {uniform: [1, 0]}}}", "the smaller number first"),
        ("{trials: 2, space: {optimizer.lr: {uniform: [1]}}}", "write [LOW, HIGH]"),
        ("{trials: 2, space: {optimizer.lr: {uniform: [0, .inf]}}}", "finite"),
        ("{trials: 2, space: {epochs: {choices: []}}}", "the list is empty"),
        ("{trials: 2, space: {seed: {choices: [1]}}}", "seed belongs to `seeds`"),
        ("{trials: 2, space: {optimizer.momentun: {choices: [1]}}}", "did you mean 'momentum'?"),
        ("{trials: 2, space: {epochs: {choices: [1]}}}\ngrid: {epochs: [2]}", "the same value"),
    ],
)
def test_mistakes_are_named_with_their_file(search, message, tmp_path):
    with pytest.raises(UserError) as caught:
        sweeps.expand(write(tmp_path, f"search: {search}\n"))
    assert message in str(caught.value) and "sweep.yaml" in str(caught.value)
