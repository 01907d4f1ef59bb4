"""Statistics of the optimizer's own products in the rows of a training."""

import pytest
import torch
from support.harness import small_config

from adahessian import spectrum
from experiments.runs.directory import RunDirectory
from experiments.runs.metrics import read_metrics, without_times
from experiments.tasks.registry import build_task
from experiments.training import loop

WATCH = ("curvature_statistics=true", "optimizers.adahessian.update_interval=2")


def train_here(root, config):
    directory = RunDirectory(root, config)
    with directory.locked():
        loop.train(config, directory, root)
    return directory


def rows_of(directory):
    return [without_times(row) for row in read_metrics(directory.metrics_path)]


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    config = small_config(*WATCH, optimizer="adahessian")
    return train_here(tmp_path_factory.mktemp("watched"), config)


def test_rows_hold_the_statistics(watched):
    model = build_task(watched.config, torch.device("cpu"), None).build_model()
    expected = ["trace_estimate", "trace_estimate_standard_error", "frobenius_norm"]
    expected += ["negative_share", *(f"layer_trace/{name}" for name in spectrum.layers(model))]
    expected += [f"signal_to_noise/block_{2**level}" for level in range(7)]
    for row in read_metrics(watched.metrics_path):
        found = {key.removeprefix("hessian/"): row[key] for key in row if "hessian/" in key}
        assert sorted(found) == sorted(expected)
        layers = [value for key, value in found.items() if key.startswith("layer_trace/")]
        assert sum(layers) == pytest.approx(found["trace_estimate"], rel=1e-4)
        assert 0 < found["negative_share"] < 1
        assert 0 < row["time/curvature_share"] < 1


@pytest.mark.slow  # about 15 s
def test_the_trace_is_that_of_the_spectrum(tmp_path):
    """In a second epoch that moves no weight, the mean over batches is the trace of their mean."""
    config = small_config(
        "curvature_statistics=true", "schedule.factor=1e-6", optimizer="adahessian"
    )
    directory = train_here(tmp_path, config)
    row = read_metrics(directory.metrics_path)[1]
    task = build_task(config, torch.device("cpu"), None)
    model = task.build_model().train()
    model.load_state_dict(torch.load(directory.path / "checkpoint.pt", weights_only=True)["model"])
    hessian = spectrum.Hessian(
        lambda batch: task.loss(model, batch)[0],
        model,
        list(task.training_batches(1, 0)),
        weight=lambda batch: 1.0,
    )
    truth = spectrum.trace(hessian, 12)
    error = row["hessian/trace_estimate_standard_error"]
    assert abs(row["hessian/trace_estimate"] - truth.value) < 4 * (error + truth.standard_error)
    assert error < 0.1 * truth.value and truth.standard_error < 0.1 * truth.value


def test_watching_changes_no_result(watched, tmp_path):
    plain = train_here(tmp_path, small_config(*WATCH[1:], optimizer="adahessian"))
    assert plain.name == watched.name
    for mine, other in zip(rows_of(plain), rows_of(watched), strict=True):
        assert mine.items() <= other.items() and len(mine) < len(other)


def test_an_optimizer_without_products_has_the_rows_that_it_had(tmp_path):
    plain = train_here(tmp_path / "plain", small_config("epochs=1"))
    watched = train_here(tmp_path / "watched", small_config("epochs=1", *WATCH[:1]))
    assert rows_of(plain) == rows_of(watched)
    assert "time/curvature_share" not in read_metrics(watched.metrics_path)[0]


@pytest.mark.parametrize("stop", [3, 4, 14])
def test_resumed_inside_an_epoch_the_rows_are_the_same(stop, watched, tmp_path, monkeypatch):
    """Before and after a refresh, in the first and in the second epoch."""
    config = small_config(*WATCH, "checkpoint_every_steps=1", optimizer="adahessian")
    original, calls = loop.optimizer_step, []

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) == stop:
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(loop, "optimizer_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train_here(tmp_path, config)
    assert rows_of(train_here(tmp_path, config)) == rows_of(watched)


def test_statistics_can_be_asked_for_later(tmp_path, monkeypatch):
    """A checkpoint without them serves a session with them, and the other way round."""
    original, calls = loop.optimizer_step, []

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) in (5, 10):
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(loop, "optimizer_step", interrupted)
    for watch in ("false", "true"):
        with pytest.raises(KeyboardInterrupt):
            train_here(tmp_path, small_config("epochs=1", "checkpoint_every_steps=1",
                       f"curvature_statistics={watch}", optimizer="adahessian"))  # fmt: skip
    directory = train_here(tmp_path, small_config("epochs=1", optimizer="adahessian"))
    (row,) = read_metrics(directory.metrics_path)
    assert not any("hessian/" in key for key in row)
