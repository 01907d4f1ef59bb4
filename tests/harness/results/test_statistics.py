import math
import random
import statistics

import pytest
from scipy import stats
from support.harness import REPOSITORY, finish_run, small_config
from support.nightly import NIGHTLY

from experiments.config.metrics import ACCURACY, LOSS
from experiments.plans.load import load, resolve
from experiments.results.published import paper_figures
from experiments.results.statistics import (
    Sample,
    compare,
    curve,
    judgement,
    mean_and_std,
    mean_interval,
    studentized_range,
    summarize,
    welch,
)
from experiments.results.tables import ComparisonTable, read_results
from experiments.runs.reading import Run

CIFAR10 = REPOSITORY / "configs" / "cifar10" / "resnet20.yaml"


def table(direction="max", headline="accuracy", **groups):
    """A table of runs with the given last values."""
    meta = {"headline": headline, "metrics": {headline: direction}}
    return ComparisonTable(
        "title",
        "name",
        {
            label: [
                Run(None, meta, {}, [{"epoch": 1, f"test/{headline}": value}], "done")
                for value in values
            ]
            for label, values in groups.items()
        },
    )


def test_two_groups_get_welchs_interval():
    a, b = [0.90, 0.92, 0.94, 0.95], [0.80, 0.86, 0.84]
    best, (other,) = compare(table(b=b, a=a))
    expected = stats.ttest_ind(a, b, equal_var=False).confidence_interval(0.95)
    assert (best, other.label) == ("a", "b")
    assert other.mean == pytest.approx(statistics.mean(a) - statistics.mean(b))
    assert other.interval == pytest.approx((expected.low, expected.high))
    assert other.certain


def test_more_groups_widen_the_intervals_as_scipy_does():
    groups = {"a": [0.90, 0.92, 0.94, 0.95], "b": [0.80, 0.86, 0.84], "c": [0.7, 0.75]}
    _, others = compare(table(**groups, d=[0.5]))
    expected = stats.tukey_hsd(*groups.values(), equal_var=False).confidence_interval(0.95)
    assert [other.label for other in others] == ["b", "c", "d"]
    for place in (0, 1):
        low, high = others[place].interval
        assert low == pytest.approx(expected.low[0][place + 1], abs=1e-5)
        assert high == pytest.approx(expected.high[0][place + 1], abs=1e-5)
    assert others[2].interval is None, "one seed has no spread"


@pytest.mark.parametrize("groups", [3, 40, 300])
@pytest.mark.parametrize("freedom", [1.0, 3.7, 500.0])
def test_the_studentized_range_is_scipys(groups, freedom):
    for q in (1.0, 4.0, 40.0):
        expected = stats.studentized_range.sf(q, groups, freedom)
        assert studentized_range(q, groups, freedom) == pytest.approx(expected, abs=1e-5)


def test_where_less_is_better_the_least_is_best():
    best, (other,) = compare(table("min", "perplexity", a=[20.0, 21.0], b=[30.0, 31.0]))
    assert (best, other.label, other.mean, other.certain) == ("a", "b", pytest.approx(10), True)


@pytest.mark.parametrize(
    "b, certain", [([0.9, 0.9], None), ([0.8, 0.8], None), ([0.8, 0.81], True)]
)
def test_without_spread_there_is_no_interval(b, certain):
    _, (other,) = compare(table(a=[0.9, 0.9], b=b))
    assert (other.interval is None) == (certain is None)


@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_squares_that_are_no_numbers_need_no_squares(scale):
    groups = {"a": [20.0, 22.0], "b": [31.0, 30.5, 33.0], "c": [50.0, 41.0]}
    scaled = {name: [scale * value for value in values] for name, values in groups.items()}
    (_, plain), (_, found) = compare(table("min", **groups)), compare(table("min", **scaled))
    for mine, other in zip(plain, found, strict=True):
        assert other.interval == pytest.approx([scale * end for end in mine.interval], rel=1e-9)


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_what_is_not_finite_is_judged_by_no_interval(value):
    """Every comparison with nan is false, and the last of them would have said: below."""
    interval = welch(Sample.of([20.0, value]), Sample.of([20.0, 21.0]))
    assert interval is None and judgement(interval, 0.1) == "no interval"


def test_one_group_alone_is_best():
    assert compare(table(a=[0.5])) == ("a", [])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("seeds", "spreads"), [(5, [1.0] * 5), (3, [0.2, 0.2, 1.0, 1.0, 5.0])], ids=["equal", "unequal"]
)
def test_intervals_cover_the_truth(spreads, seeds):
    """All differences to the apparently best of five groups at once, in 95 % of tables."""
    draw = random.Random(seeds)
    means = {name: place / 10 for place, name in enumerate("abcde")}
    missed, tables = 0, 200 if NIGHTLY else 30
    for _ in range(tables):
        groups = {
            name: [draw.gauss(mean, spread) for _ in range(seeds)]
            for (name, mean), spread in zip(means.items(), spreads, strict=True)
        }
        best, others = compare(table(**groups))
        true = [(other.interval, means[best] - means[other.label]) for other in others]
        missed += any(not low <= difference <= high for (low, high), difference in true)
    assert missed <= stats.binom.ppf(0.999, tables, 0.05)


def test_a_clear_lead_is_seen():
    draw = random.Random(0)
    groups = {
        name: [draw.gauss(mean, 0.01) for _ in range(5)] for name, mean in (("a", 0.9), ("b", 0.8))
    }
    assert compare(table(**groups))[1][0].certain


def test_the_interval_of_a_mean():
    low, high = mean_interval([1.0, 2.0, 3.0])
    assert (low + high) / 2 == pytest.approx(2)
    assert (high - low) / 2 == pytest.approx(4.302653 / math.sqrt(3), rel=1e-5)
    assert mean_interval([1.0]) is None and mean_interval([2.0, 2.0]) is None
    assert all(map(math.isnan, mean_interval([1.0, 2.0, math.nan])))


def test_mean_and_std_as_shown():
    assert mean_and_std(ACCURACY, [0.8, 0.84]) == "82.00 ± 2.83"
    assert mean_and_std(ACCURACY, [0.8]) == "80.00"
    assert mean_and_std(LOSS, [0.0123]) == "0.0123"


def test_curves_of_runs_of_different_lengths(tmp_path):
    finish_run(tmp_path, small_config(seed=1), [0.1, 0.2, 0.3])
    finish_run(tmp_path, small_config(seed=2), [0.3])
    runs = read_results(tmp_path).runs
    runs[1].rows.append({"epoch": 2, "test/accuracy": math.nan})
    found = curve(runs, "test/accuracy", 100)
    assert found.x == [1, 2, 3]
    assert found.means == pytest.approx([20, 20, 30])
    assert found.stds == pytest.approx([statistics.stdev([10, 30]), 0, 0])
    assert curve(runs, "hessian/trace").x == []


def test_a_band_keeps_a_positive_edge():
    runs = table("min", "loss", a=[0.01, 1.0]).runs
    low, high = curve(runs, "test/loss").band()
    assert 0 < low[0] < 0.505 < high[0]


def test_rows_tell_seeds_times_and_hours(tmp_path):
    for seed in (1, 2):
        finish_run(tmp_path, small_config(seed=seed), [0.5, 0.9], step_seconds=0.02)
    finish_run(tmp_path, small_config(optimizer="adahessian"), [0.7], 0.05)
    sgd, adahessian = summarize(read_results(tmp_path).tables[0])
    assert (sgd.label, sgd.last, sgd.best) == ("sgd", [0.9, 0.9], [0.9, 0.9])
    assert (sgd.step_seconds, sgd.ratio, adahessian.ratio) == (0.02, 1, 2.5)
    assert sgd.hours == pytest.approx(8 / 3600)


def test_steps_that_shared_their_processor_have_no_cost(tmp_path):
    """Steady load makes all epochs slow alike; only the processor's time tells."""
    finish_run(tmp_path, small_config(), [0.5, 0.9], 0.01, **{"time/waited_share": 0.01})
    finish_run(tmp_path, small_config(optimizer="adam"), [0.5, 0.9], **{"time/waited_share": 0.4})
    sgd, adam = summarize(read_results(tmp_path).tables[0])
    assert (sgd.step_seconds, sgd.ratio) == (0.01, 1)
    assert math.isnan(adam.step_seconds) and adam.ratio is None


def test_without_times_there_is_no_ratio():
    (row,) = summarize(read := _without_times())
    assert read.metric.name == "accuracy"
    assert math.isnan(row.step_seconds) and row.hours == 0


def _without_times():
    found = table(sgd=[0.5])
    for run in found.runs:
        run.meta |= {"dataset": "digits", "signature": "0", "sessions": []}
        run.config["optimizers"] = {"sgd": {}}
        run.meta["optimizer"] = "sgd"
        run.config["best_epoch_split"] = "test"
    return found


def test_the_papers_figure_stands_beside_its_protocol_only(tmp_path):
    paper = load(CIFAR10)
    finish_run(tmp_path, resolve(paper, "adahessian", 1), [0.9])
    finish_run(tmp_path, resolve(load(CIFAR10, ["epochs=3"]), "adahessian", 1), [0.9])
    figures = {
        table.title: summarize(table, paper_figures())[0].paper
        for table in read_results(tmp_path).tables
    }
    assert figures == {
        "cifar10 resnet20 epochs=160": "92.13 ± 0.18",
        "cifar10 resnet20 epochs=3": "",
    }
    networks = sum(dataset == "cifar10" for dataset, _ in paper_figures())
    assert networks == 2 * (4 + 4), "Table 2, and the intervals beyond 1 of Table 8"
