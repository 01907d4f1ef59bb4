"""Successive halving: who goes on, what it costs, and that what goes on is not trained anew."""

import json
import math
import random

import pytest
from support.harness import DIGITS, finish_run
from support.training import assert_equal, result

from experiments import report, run
from experiments.config.experiment import write_yaml
from experiments.errors import UserError
from experiments.plans import benchmarks, sweeps
from experiments.plans.search import Halving
from experiments.plans.select import runs_of, select_brackets
from experiments.results.benchmarks import read_benchmark
from experiments.results.halving import Limit, limits
from experiments.results.sweeps import read_sweep
from experiments.runs import attempts
from experiments.runs.directory import RunDirectory
from experiments.runs.states import read_state
from experiments.training.session import train_unless_done
from slurm import submit
from slurm.job import Job

BENCHMARK = f"""
config: {DIGITS}
set: {{model.depth: 8, epochs: 9}}
target: {{metric: test/accuracy, value: 0.6}}
trials: 9
studies: 2
halving: {{first: 1, factor: 3}}
rows:
  sgd:
    constructor: torch.optim.SGD
    momentum: 0.9
    weight_decay: 0.0
    weight_decay_divided_by_lr: false
    search: {{lr: {{log_uniform: [0.01, 1]}}}}
  untuned:
    constructor: torch.optim.SGD
    lr: 0.1
    weight_decay: 0.0
    weight_decay_divided_by_lr: false
"""
SWEEP = f"""
config: {DIGITS}
seeds: 1-2
set: {{model.depth: 8, epochs: 4, optimizer: sgd}}
search: {{trials: 4, halving: {{first: 1, factor: 2}},
         space: {{optimizer.lr: {{log_uniform: [0.01, 1]}}}}}}
"""


def write(tmp_path, text):
    path = tmp_path / "file.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def record(root, planned, curve, epochs):
    """The files of a run that was trained for so many of its epochs."""
    directory = RunDirectory(root, planned.config)
    if directory.path.exists():
        for file in directory.path.iterdir():
            file.unlink()
        directory.path.rmdir()
    finish_run(root, planned.config, curve[:epochs])
    if epochs < planned.config.epochs:
        (directory.path / "DONE").unlink()


def train(path, root, curve, order=lambda due: due):
    """What the commands do, without the training; returns the epochs of each run by its place.

    Args:
        curve: of a planned run, its accuracies.
        order: of the runs that are due at a time; those that it leaves out come later.
    """
    brackets = select_brackets([path])
    trained = {}
    while True:
        far = limits(brackets, root)
        due = [r for r in runs_of(brackets) if trained.get(r.place, 0) < far[r.place].epochs]
        if not due:
            return trained
        for planned in order(due):
            trained[planned.place] = far[planned.place].epochs
            record(root, planned, curve(planned), trained[planned.place])


def by_rate(planned):
    """Higher rates learn faster, and in the first epochs already."""
    return [epoch / 10 * planned.config.optimizer.lr**0.2 for epoch in range(1, 10)]


def test_rungs_and_survivors():
    assert Halving(first=2, factor=3).rungs(18) == [2, 6]
    assert Halving(first=2, factor=2).rungs(17) == [2, 4, 8, 16]
    assert Halving(first=4).rungs(4) == []
    assert [Halving(first=1, factor=3).kept(n) for n in (1, 2, 3, 8, 9, 27)] == [1, 1, 1, 2, 3, 9]


def test_the_better_third_goes_on_and_the_best_to_the_end(tmp_path):
    path, root = write(tmp_path, BENCHMARK), tmp_path / "runs"
    trained = train(path, root, by_rate)
    for study in (1, 2):
        trials = [t for t in benchmarks.trials(benchmarks.read(path), path)
                  if (t.row, t.study) == ("sgd", study)]  # fmt: skip
        best = sorted(trials, key=lambda t: -t.point["lr"])
        epochs = [trained[t.run.place] for t in best]
        assert epochs == [9, 3, 3, 1, 1, 1, 1, 1, 1]
    assert [e for place, e in trained.items() if "untuned" in str(place)] == [9, 9]


def test_scores_and_prices_are_those_of_the_epochs_that_were_trained(tmp_path, monkeypatch):
    path, root = write(tmp_path, BENCHMARK), tmp_path / "runs"
    train(path, root, by_rate)
    results = read_benchmark(path, root)
    assert not results.missing
    assert results.prices("sgd") == [(9 + 2 * 3 + 6 * 1) * 100] * 2
    assert results.prices("untuned") == [900, 900]
    whole = write(tmp_path, BENCHMARK.replace("halving: {first: 1, factor: 3}", ""))
    everywhere = tmp_path / "whole"
    train(whole, everywhere, by_rate)
    unhalved = read_benchmark(whole, everywhere)
    # The curves do not cross, so halving loses nothing, for a quarter of the price.
    assert results.studies("sgd", "gradients") == unhalved.studies("sgd", "gradients")
    assert results.finals("sgd") == unhalved.finals("sgd")
    assert unhalved.prices("sgd") == [8100, 8100]
    stopped = [s for scores in results.scores["sgd"].values() for s in scores if s.stopped]
    assert len(stopped) == 16 and all(math.isnan(s.final) for s in stopped)
    monkeypatch.setenv("RUNS_ROOT", str(root))
    path = write(tmp_path, BENCHMARK)
    assert report.main(["--benchmark", str(path)]) == 0
    text = (root / "report" / "report.md").read_text(encoding="utf-8")
    assert "one in 3 goes on after epoch 1" in text and "missing" not in text
    assert "paused" not in text


def test_a_stopped_trial_keeps_what_it_had_reached_and_nothing_that_came_later(tmp_path):
    path, root = write(tmp_path, BENCHMARK), tmp_path / "runs"
    planned = [t for t in benchmarks.trials(benchmarks.read(path), path) if t.study == 1]
    places = {t.run.place: t.number for t in planned if t.row == "sgd"}

    def curve(run):
        number = places.get(run.place, 0)
        return [0.8] * 9 if number > 6 else [0.65] * 9 if number == 1 else [0.5, *[0.9] * 8]

    train(path, root, curve)
    for _ in range(2):
        scores = {s.trial.number: s for s in read_benchmark(path, root).scores["sgd"][1]}
        assert [number for number, s in scores.items() if not s.stopped] == [7]
        assert scores[1].costs["steps"] == 100
        assert all(scores[number].costs["steps"] == math.inf for number in range(2, 7))
        assert all(math.isnan(s.final) == s.stopped for s in scores.values())
        assert [scores[n].price for n in range(1, 10)] == [*[100] * 6, 900, 300, 300]
        for trial in planned:  # all of them to their end, for somebody else
            record(root, trial.run, curve(trial.run), 9)


def test_survivors_do_not_depend_on_the_order_of_the_training(tmp_path):
    path = write(tmp_path, BENCHMARK)
    draw = random.Random(0)
    values = {
        run.place: sorted(draw.random() for _ in range(9))
        for run in runs_of(select_brackets([path]))
    }

    def some(due):
        return draw.sample(due, draw.randint(1, len(due)))

    found = [
        train(path, tmp_path / name, lambda run: values[run.place], order)
        for name, order in (("all", lambda due: due), ("some", some), ("others", some))
    ]
    assert found[0] == found[1] == found[2]


def test_each_comparison_is_at_its_own_epoch(tmp_path):
    """Of three that go on, the last at the first comparison is the best at the second."""
    path, root = write(tmp_path, BENCHMARK), tmp_path / "runs"
    (bracket,) = select_brackets([path], ["optimizer=sgd", "seed=1"])
    places = [run.place for run in bracket.runs]

    def curve(run):
        number = places.index(run.place) if run.place in places else 0
        first, later = 0.1 + number / 100, 0.9 - number / 100
        return [first, first, later, *[first] * 6]

    trained = train(path, root, curve)
    assert [trained[place] for place in places] == [1] * 6 + [9, 3, 3]
    for planned in bracket.runs:  # whatever else is known of them
        record(root, planned, curve(planned), 9)
    far = limits([bracket], root)
    assert [far[place] for place in places] == [Limit(n, True) for n in [1] * 6 + [9, 3, 3]]


def test_a_comparison_waits_for_every_trial(tmp_path):
    path, root = write(tmp_path, BENCHMARK), tmp_path / "runs"
    brackets = select_brackets([path], ["optimizer=sgd", "seed=1"])
    (bracket,) = brackets
    for planned in bracket.runs[:-1]:
        record(root, planned, by_rate(planned), 1)
    assert set(limits(brackets, root).values()) == {Limit(1, False)}
    results = read_benchmark(path, root)
    assert len(results.missing) == len(results.members) == 20
    assert not results.studies("sgd", "steps")


def test_who_diverges_stops_first_and_where_all_do_it_ends(tmp_path):
    path, root = write(tmp_path, BENCHMARK), tmp_path / "runs"
    brackets = select_brackets([path], ["optimizer=sgd", "seed=1"])
    runs = brackets[0].runs
    for place, planned in enumerate(runs):
        record(root, planned, [math.nan if place == 0 else 0.1 + place / 100] * 9, 1)
    far = limits(brackets, root)
    assert far[runs[0].place] == Limit(1, True) and far[runs[-1].place] == Limit(3, False)
    for planned in runs:
        directory = root / planned.place
        (directory / "metrics.jsonl").unlink()
        begun = {"attempt": 1, "started": "", "host": "", "job": None, "checkpoint": None}
        lines = [begun, {"attempt": 1, "ended": "", "reason": "NonFiniteLoss: the loss is nan"}]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (directory / attempts.NAME).write_text(text, encoding="utf-8")
        assert read_state(directory)[0] == "diverged"
    assert sorted(one.epochs for one in limits(brackets, root).values()) == [1] * 6 + [3] * 2 + [9]


def test_a_sweeps_points_count_by_the_mean_over_their_seeds(tmp_path):
    path, root = write(tmp_path, SWEEP), tmp_path / "runs"
    rates = list(dict.fromkeys(r.config.optimizer.lr for r in sweeps.expand(path)))
    first = dict(zip(rates, [(0.9, 0.1), (0.4, 0.5), (0.6, 0.6), (0.2, 0.9)], strict=True))

    def curve(planned):
        return [first[planned.config.optimizer.lr][planned.config.seed - 1]] * 4

    trained = train(path, root, curve)
    epochs = [{trained[r.place] for r in sweeps.expand(path) if r.config.optimizer.lr == rate}
              for rate in rates]  # fmt: skip
    assert epochs == [{1}, {1}, {4}, {2}]
    results = read_sweep(path, root)
    assert not results.missing and [len(p.finished) for p in results.points] == [0, 0, 2, 0]
    assert results.best is results.points[2]


def test_one_that_another_file_wants_to_its_end_is_trained_to_its_end(tmp_path):
    halved = write(tmp_path, SWEEP)
    whole = tmp_path / "whole.yaml"
    whole.write_text(SWEEP.replace("halving: {first: 1, factor: 2},", ""), encoding="utf-8")
    for files in ([halved, whole], [whole, halved]):
        far = limits(select_brackets(files), tmp_path)
        assert len(far) == 8 and set(far.values()) == {Limit(4, True)}


@pytest.mark.parametrize(
    ("old", "new", "words", "message"),
    [
        ("first: 1", "first: 4", [], "halving.first = 4 is not before the last of 4 epochs"),
        ("first: 1", "first: 0", [], "search.halving.first = 0"),
        ("factor: 2", "factor: 1", [], "search.halving.factor = 1"),
        ("{log_uniform: [0.01, 1]}", "{choices: [0.1]}, epochs: {choices: [3, 4]}", [],
         "trials of one length, not of 3, 4 epochs"),
        ("", "", ["seed=1"], "seed cannot be set"),
        (", optimizer: sgd", "", ["optimizer=sgd", "seed=1"], "seed cannot be set"),
        ("[0.01, 1]}", "[0.01, 1]}, optimizer: {choices: [sgd, adam]}", ["optimizer=sgd"],
         "optimizer cannot be set"),
    ],
)  # fmt: skip
def test_mistakes_are_named(old, new, words, message, tmp_path):
    text = SWEEP.replace(old, new) if old else SWEEP
    with pytest.raises(UserError) as caught:
        select_brackets([write(tmp_path, text)], words)
    assert message in str(caught.value) and "file.yaml" in str(caught.value)


# --- with the real commands -----------------------------------------------------------------------

REAL = SWEEP.replace("seeds: 1-2", "seeds: [1]").replace("trials: 4", "trials: 2").replace(
    "epochs: 4", "epochs: 3"
)  # fmt: skip


PAUSED = "paused after epoch {}, where trials are compared"


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("RUNS_ROOT", str(tmp_path / "runs"))
    monkeypatch.setenv("DATA_ROOT", str(tmp_path / "data"))
    monkeypatch.setattr("warnings.showwarning", None)
    return tmp_path / "runs"


def test_who_goes_on_is_bitwise_the_run_that_never_stopped(root, tmp_path, capsys, monkeypatch):
    path = write(tmp_path, REAL)
    assert run.main([str(path), "--jobs", "2"]) == 0
    planned = sweeps.expand(path)
    states = {read_state(root / one.place) for one in planned}
    assert states == {("done", ""), ("stopped", PAUSED.format(1))}
    (best,) = [one for one in planned if (root / one.place / "DONE").exists()]
    reasons = [one.reason for one in attempts.read(root / best.place)]
    assert reasons == [PAUSED.format(1), "done"]
    there = {f: f.stat().st_mtime_ns for f in root.rglob("*") if f.is_file()}
    assert run.main([str(path), "--jobs", "2"]) == 0  # nothing is due any more
    assert there == {f: f.stat().st_mtime_ns for f in root.rglob("*") if f.is_file()}
    halved = result(RunDirectory(root, best.config))
    monkeypatch.setenv("RUNS_ROOT", str(tmp_path / "whole"))
    assert train_unless_done(best.config) == 0
    assert_equal(halved, result(RunDirectory(tmp_path / "whole", best.config)))


def test_a_cluster_gets_what_is_due_and_the_next_comparison_when_it_is_asked_again(
    root, tmp_path, capsys
):
    path = write(tmp_path, REAL)
    command = [str(path), "--profile", "local", "--dry-run"]
    assert submit.main(command) == 0
    out = capsys.readouterr().out
    assert out.count("would send") == 2 and "the same command then sends what goes on" in out
    one, other = sweeps.expand(path)
    for planned, value in ((one, 0.9), (other, 0.1)):
        record(root, planned, [value] * 3, 1)
    assert submit.main(command) == 0
    out = capsys.readouterr().out
    assert out.count("would send") == 1 and f"would send: {root / one.place}" in out
    assert f"skipped, stopped by halving after epoch 1: {root / other.place}" in out


def test_a_job_pauses_where_it_is_told_to(root, tmp_path):
    planned, _ = sweeps.expand(write(tmp_path, REAL))
    directory = root / planned.place
    directory.mkdir(parents=True)
    (directory / "config.yaml").write_text(write_yaml(planned.config), encoding="utf-8")
    for until in (1, 2):
        Job([str(directory / "config.yaml")], str(root), str(tmp_path / "data"), until=(until,))()
        assert read_state(directory) == ("stopped", PAUSED.format(until))
        rows = (directory / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        assert [json.loads(row)["epoch"] for row in rows] == list(range(1, until + 1))
    Job([str(directory / "config.yaml")], str(root), str(tmp_path / "data"))()
    assert read_state(directory)[0] == "done"
