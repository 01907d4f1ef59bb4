import json
import math

import pytest

from experiments.config import metrics
from experiments.config.metrics import ACCURACY, LOSS, Metric

BLEU = Metric("BLEU", "max", digits=2)


def test_a_metric_survives_the_file():
    declared = json.loads(json.dumps({"metrics": metrics.dump([LOSS, ACCURACY, BLEU])}))
    assert metrics.read(declared) == {"loss": LOSS, "accuracy": ACCURACY, "BLEU": BLEU}


def test_runs_of_earlier_versions_recorded_directions_alone():
    found = metrics.read({"metrics": {"loss": "min", "accuracy": "max", "f1": "max"}})
    assert found == {"loss": LOSS, "accuracy": ACCURACY, "f1": Metric("f1", "max")}


@pytest.mark.parametrize("meta", [{}, {"metrics": 3}, {"metrics": [{"title": "x"}]}])
def test_anything_else_is_an_error(meta):
    with pytest.raises((KeyError, TypeError)):
        metrics.read(meta)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"direction": "maximize"}, 'direction=\'maximize\': write "min" or "max"'),
        ({"digits": -1}, "digits=-1: write a whole number, 0 or more"),
        ({"digits": 2.0}, "digits=2.0"),
        ({"scale": "100"}, "scale='100': write a number above 0"),
        ({"scale": -1}, "scale=-1"),
        ({"scale": math.nan}, "scale=nan"),
        ({"unit": None}, "unit=None: write a text"),
        ({"bounds": (1, 0)}, r"bounds=\(1, 0\): write \(lowest, highest\)"),
        ({"bounds": 5}, "bounds=5"),
        ({"name": ""}, "name=''"),
    ],
)
def test_one_that_is_declared_wrongly_is_refused_where_it_is_declared(wrong, said):
    with pytest.raises(ValueError, match=said):
        Metric(**{"name": "f1", "direction": "max"} | wrong)


def test_it_knows_how_it_is_shown():
    assert ACCURACY.title == "accuracy (%)" and ACCURACY.text(0.98765) == "98.77"
    assert LOSS.title == "loss" and LOSS.text(0.98765) == "0.9877"
    assert ACCURACY.sign == 1 and LOSS.sign == -1
    assert BLEU.text(math.exp(700)) == "1.01e+304" and BLEU.text(math.inf) == "inf"


def test_the_result_is_the_headline_on_the_split_that_the_run_names():
    assert metrics.result_key({"headline": "mae", "result_split": "val"}) == "val/mae"
    assert metrics.result_key({"headline": "accuracy"}) == "test/accuracy"  # earlier versions
    for meta in ({}, [], None, "x"):
        with pytest.raises((KeyError, TypeError)):
            metrics.result_key(meta)
