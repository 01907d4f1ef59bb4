"""A task of its own (`support.regression`), which the fixture puts into the registry."""

import json
import re
from fractions import Fraction

import numpy
import pytest
import torch
from support.harness import interrupted, until_done
from support.regression import FILE, LINE, MAE, Regression, RegressionConfig
from support.training import assert_equal, result

from experiments import run
from experiments.config.experiment import Config
from experiments.config.metrics import LOSS
from experiments.config.metrics import read as read_declared
from experiments.config.yaml_reader import read_yaml
from experiments.errors import UserError
from experiments.plans.load import load, resolve
from experiments.runs.directory import RunDirectory
from experiments.runs.metrics import read_json, read_metrics
from experiments.runs.reading import read_run
from experiments.tasks import registry
from experiments.tasks.task import Task
from experiments.training import loop


@pytest.fixture(autouse=True)
def path(tmp_path, monkeypatch):
    """The registry's line, and a configuration file."""
    monkeypatch.setitem(registry.TASKS, "regression", LINE)
    monkeypatch.setenv("RUNS_ROOT", str(tmp_path / "runs"))
    (tmp_path / "line.yaml").write_text(FILE)
    return tmp_path / "line.yaml"


def train(path, root, *overrides, optimizer="sgd"):
    directory = RunDirectory(root, resolve(load(path, overrides), optimizer, 1))
    with directory.locked():
        loop.train(directory.config, directory, root)
    return directory


def test_the_command_trains_it_and_says_its_metric(path, tmp_path, capsys):
    for optimizer in ("sgd", "adahessian"):  # one at a time: in this process, with its registry
        assert run.main([str(path), f"optimizer={optimizer}"]) == 0
    shown = capsys.readouterr().err.splitlines()
    directories = [done.parent for done in (tmp_path / "runs").glob("line/linear3/*/*/DONE")]
    assert {directory.parent.name for directory in directories} == {"sgd", "adahessian"}
    for directory in directories:
        meta, rows = read_json(directory / "meta.json"), read_metrics(directory / "metrics.jsonl")
        assert list(read_declared(meta).values()) == [LOSS, MAE]
        assert (meta["headline"], meta["result_split"]) == ("mae", "test")
        assert meta["parameters"] == 4
        parts = ["train/loss", "val/loss", "val/mae", "test/loss", "test/mae"]
        times = ["time/epoch_seconds", "time/step_seconds", "time/waited_share"]
        assert list(rows[0]) == ["step", "epoch", "learning_rate", *parts, *times]
        assert [row["step"] for row in rows] == [4, 8, 12, 16, 20, 24]
        assert [row["learning_rate"] for row in rows] == pytest.approx([0.1] * 3 + [0.01] * 3)
        assert rows[-1]["test/mae"] < 0.5 * rows[0]["test/mae"]
        done = read_json(directory / "DONE")
        assert done["best_epoch_split"] == "val"
        assert done["best_epoch"]["val/mae"] == min(row["val/mae"] for row in rows)
        text = f"test mae {1000 * rows[-1]['test/mae']:.1f} mm"
        assert any(directory.parent.name in line and line.endswith(text) for line in shown)
        files = [directory / name for name in ("config.yaml", "meta.json", "metrics.jsonl", "DONE")]
        assert not any("accuracy" in file.read_text() for file in files)


def test_its_metrics_are_means_over_the_split(path, tmp_path):
    """Also where the batches of an evaluation are not all of one size."""
    directory = train(path, tmp_path, "dataset.test_size=31")
    task = Regression(directory.config, torch.device("cpu"), tmp_path)
    model = task.build_model()
    model.load_state_dict(torch.load(directory.path / "checkpoint.pt", weights_only=True)["model"])
    x, y = task.splits["test"]
    errors = (model(x) - y).abs()
    last = read_metrics(directory.metrics_path)[-1]
    assert last["test/mae"] == pytest.approx(errors.mean().item())
    assert last["test/loss"] == pytest.approx(errors.square().mean().item())


class Replay(Regression):
    """Its batches come from a buffer of its model, into which making them writes."""

    def build_model(self):
        self.model = super().build_model()
        self.model.register_buffer("met", torch.zeros(self.config.model.width))
        return self.model

    def training_batches(self, epoch, first_step):
        for x, y in super().training_batches(epoch, first_step):
            self.model.met += x.mean(0) + torch.rand(1)
            yield x + self.model.met, y


@pytest.mark.parametrize("task", [Regression, Replay])
@pytest.mark.parametrize("optimizer", ["sgd", "adahessian"])
def test_interrupted_it_goes_on(optimizer, task, path, tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "_task_class", lambda name: task)
    every = ("checkpoint_every_steps=2",)
    whole = train(path, tmp_path / "whole", *every, optimizer=optimizer)
    step = interrupted(loop.optimizer_step, lambda call: call % 7 == 3)
    monkeypatch.setattr(loop, "optimizer_step", step)
    cut = lambda: train(path, tmp_path / "cut", *every, optimizer=optimizer)  # noqa: E731
    directory, sessions = until_done(cut)
    assert sessions > 2
    assert_equal(result(directory), result(whole))


def test_the_rate_waits_for_its_metric_to_fall(path, tmp_path):
    plateau = ("schedule={drops: [], factor: 0.5, stepped_at_epoch_start: false, plateau: "
               "{metric: val/mae, patience: 0, threshold: 0.9}}")  # fmt: skip
    rows = read_metrics(train(path, tmp_path, plateau).metrics_path)
    # Only less than a tenth of the best one would be an improvement.
    assert [row["learning_rate"] for row in rows] == [0.1 * 0.5 ** max(0, n - 1) for n in range(6)]


def test_without_a_test_split_the_result_is_of_the_validation(path, tmp_path):
    directory = train(path, tmp_path, "dataset.test_size=0")
    rows = read_metrics(directory.metrics_path)
    assert not any(key.startswith("test/") for row in rows for key in row)
    assert read_json(directory.path / "meta.json")["result_split"] == "val"
    read = read_run(directory.path)
    assert (read.state, read.problem, read.headline) == ("done", "", MAE)
    assert read.last() == rows[-1]["val/mae"]
    assert read.best() == min(row["val/mae"] for row in rows)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["dataset.test_size=0", "best_epoch_split=test"], "'test' needs dataset.test_size > 0"),
        (["dataset.validation_size=0"], "'val' needs dataset.validation_size > 0"),
        (["dataset.flip=true"], "dataset: unknown key 'flip'"),
        (["task=regresion"], "no such task; did you mean 'regression'?"),
        (
            ["schedule={drops: [], factor: 0.5, stepped_at_epoch_start: false, plateau: "
             "{metric: test/accuracy, patience: 0, threshold: 0}}"],
            "schedule.plateau.metric 'test/accuracy': no such metric; ",
        ),
    ],
)  # fmt: skip
def test_what_does_not_fit_it_is_refused(overrides, message, path):
    with pytest.raises(UserError) as caught:
        load(path, overrides)
    assert message in str(caught.value) and "\n" not in str(caught.value).strip()


@pytest.mark.parametrize("name", ["../sgd", "sgd/nesterov", ".sgd", "..", "''"])
def test_an_optimizer_names_a_folder_or_is_refused(name, path):
    """Elsewhere its runs would be written outside of theirs, or seen by nothing that looks."""
    path.write_text(FILE.replace("  sgd:", f"  {name}:"))
    with pytest.raises(UserError, match=re.escape(f"optimizers.{name.strip(chr(39))} = ")):
        load(path)


def test_a_batch_that_the_task_cannot_split_is_refused(path, tmp_path):
    with pytest.raises(UserError, match="micro_batches = 2: regression cannot split a batch"):
        train(path, tmp_path, "micro_batches=2")


def test_a_metric_that_is_declared_and_not_measured_is_noticed_at_once(path, tmp_path, monkeypatch):
    monkeypatch.setattr(Regression, "evaluate", Task.evaluate)
    with pytest.raises(UserError, match="split val: summarize lacks 'mae', a metric of the task"):
        train(path, tmp_path)


def test_runs_of_earlier_versions_are_read_and_go_on(path, tmp_path):
    """They recorded directions alone; their result is on the test split."""
    directory = train(path, tmp_path)
    new = read_json(directory.path / "meta.json")
    meta = {key: value for key, value in new.items() if key != "result_split"}
    meta["metrics"] = {"loss": "min", "mae": "min"}
    (directory.path / "meta.json").write_text(json.dumps(meta))
    read = read_run(directory.path)
    assert read.test_key == "test/mae" and read.headline.direction == "min"
    (directory.path / "DONE").unlink()
    train(path, tmp_path)
    again = read_json(directory.path / "meta.json")
    assert len(again.pop("sessions")) == 2
    assert again.items() <= new.items()


class OneDerivative(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        return grad


MEASURED = ("curvature_error_every_epochs=2", "spectrum_every_epochs=2", "spectrum.k=1",
            "spectrum.trace_matvecs=4", "spectrum.num_lanczos_steps=2", "epochs=4")  # fmt: skip


def test_measuring_the_curvature_changes_no_model_that_batches_change(path, tmp_path, monkeypatch):
    """The keys that ask for it enter no signature."""
    monkeypatch.setattr(registry, "_task_class", lambda name: Replay)
    plain, measured = (
        train(path, tmp_path / name, "epochs=4", *more, optimizer="adahessian")
        for name, more in (("plain", ()), ("measured", MEASURED))
    )
    (rows, weights, _), (others, same, _) = result(plain), result(measured)
    assert [row.items() - other.items() for row, other in zip(rows, others, strict=True)] == [
        set()
    ] * 4
    assert all(torch.equal(tensor, same[name]) for name, tensor in weights.items())
    assert {"hessian/trace", "hessian/mean_ratio"} <= others[-1].keys()


def test_a_loss_without_second_derivative_ends_no_measured_training(path, tmp_path, monkeypatch):
    loss = Regression.loss

    def once(self, model, batch):
        value, sums = loss(self, model, batch)
        return OneDerivative.apply(value), sums

    monkeypatch.setattr(Regression, "loss", once)
    more = ("optimizers.adahessian.curvature=finite_difference", "spectrum_every_epochs=0")
    with pytest.warns(UserWarning, match="no curvature error after epoch [24]: "):
        assert train(path, tmp_path, *MEASURED, *more, optimizer="adahessian").done
    more = "optimizers.adahessian.curvature=double_backward"
    with pytest.raises(UserError, match="optimizers.adahessian: .*curvature='finite_difference'"):
        train(path, tmp_path, more, optimizer="adahessian")


def test_a_loss_that_differentiates_says_so_in_an_evaluation(path, tmp_path, monkeypatch):
    def loss(self, model, batch):
        x = batch[0].clone().requires_grad_()
        (slope,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
        return slope.square().mean(), {"weight": len(x)}

    monkeypatch.setattr(Regression, "loss", loss)
    with pytest.raises(UserError, match="split val: .* within `with torch.enable_grad\\(\\):`"):
        train(path, tmp_path)


REAL = {
    "tensor": lambda value: torch.tensor(value),
    "one element": lambda value: torch.tensor([[value]]),
    "float32": lambda value: numpy.float32(value),
    "array": lambda value: numpy.array([value]),
    "fraction": lambda value: Fraction(value),
}
NONE = {
    "None": (lambda value: None, "'{}' is None, not a number"),
    "text": (lambda value: f"{value}", "'{}' is a str, not a number"),
    "list": (lambda value: [value], "'{}' is a list, not a number"),
    "two": (lambda value: torch.zeros(2), r"'{}' is a Tensor of shape \(2,\), not a number"),
    "complex": (lambda value: 1j, "'{}' is a complex, not a number"),
}


def measures(monkeypatch, number, of="metric"):
    """Let the task hand over its metric, or its sum, in another form."""
    summarize, evaluate, loss = Regression.summarize, Regression.evaluate, Regression.loss

    def new_summarize(self, totals):
        return {name: number(value) for name, value in summarize(self, totals).items()}

    def new_evaluate(self, model, batch):
        found = evaluate(self, model, batch)
        return {**found, "error": number(float(found["error"]))}

    def new_loss(self, model, batch):
        return loss(self, model, batch)[0], {"weight": len(batch[0])}

    if of == "metric":
        monkeypatch.setattr(Regression, "summarize", new_summarize)
    else:
        monkeypatch.setattr(Regression, "evaluate", new_evaluate)
        monkeypatch.setattr(Regression, "loss", new_loss)


@pytest.mark.parametrize("of", ["metric", "sum"])
@pytest.mark.parametrize("kind", REAL)
def test_any_real_number_is_a_metric_or_a_sum(kind, of, path, tmp_path, monkeypatch):
    expected = read_metrics(train(path, tmp_path / "plain", "epochs=2").metrics_path)
    measures(monkeypatch, REAL[kind], of)
    rows = read_metrics(train(path, tmp_path / "other", "epochs=2").metrics_path)
    for key in ("train/loss", "val/mae", "test/mae", "test/loss"):
        values = [[row[key] for row in found] for found in (rows, expected)]
        assert values[0] == pytest.approx(values[1], rel=1e-6)


@pytest.mark.parametrize("of", ["metric", "sum"])
@pytest.mark.parametrize("kind", NONE)
def test_what_is_no_number_is_one_line_before_any_row(kind, of, path, tmp_path, monkeypatch):
    number, message = NONE[kind]
    measures(monkeypatch, number, of)
    where = "train: the metric " if of == "metric" else "val: the sum "
    text = message.format("loss" if of == "metric" else "error")
    with pytest.raises(UserError, match=f"^task 'regression', split {where}{text}$"):
        train(path, tmp_path, "epochs=2")
    assert not [row for file in tmp_path.rglob("metrics.jsonl") for row in read_metrics(file)]


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ({"loss": 1.0}, "split val: summarize lacks 'mae', a metric of the task"),
        ({"loss": 1.0, "mae": 1.0, "mse": 1.0}, "split val: summarize has 'mse', no metric"),
        ({}, "split train: summarize lacks 'loss'"),
        (None, "split train: summarize returns None, not a dict"),
        (
            KeyError("errors"),
            "split train: summarize misses 'errors', the sums are 'weight', 'loss'",
        ),
    ],
)
def test_metrics_that_are_missing_or_not_declared_are_one_line(
    returned, message, path, tmp_path, monkeypatch
):
    def summarize(self, totals):
        if isinstance(returned, Exception):
            raise returned
        return returned

    monkeypatch.setattr(Regression, "summarize", summarize)
    with pytest.raises(UserError, match=message):
        train(path, tmp_path, "epochs=2")


@pytest.mark.parametrize(
    ("sums", "message"),
    [
        (None, "split train: sums are None, not a dict of numbers"),
        ({"count": 3}, "split train: the sums 'count' lack 'weight'"),
    ],
)
def test_sums_of_a_training_batch_that_are_none_are_one_line(
    sums, message, path, tmp_path, monkeypatch
):
    loss = Regression.loss
    monkeypatch.setattr(Regression, "loss", lambda *given: (loss(*given)[0], sums))
    with pytest.raises(UserError, match=message):
        train(path, tmp_path, "epochs=2")


@pytest.mark.parametrize(
    ("steps", "said"),
    [
        (0, "steps_per_epoch is 0; set a whole number"),
        (None, "steps_per_epoch is None"),
        (3, "an epoch has more than 3 batches, and steps_per_epoch is 3"),
        (5, "an epoch has 4 batches, and steps_per_epoch is 5"),
        (numpy.int64(4), ""),
    ],
)
def test_steps_that_an_epoch_does_not_have_are_refused(steps, said, path, tmp_path, monkeypatch):
    """Schedule, rows and checkpoints counted by them, and were wrong without a word."""
    monkeypatch.setattr(Regression, "count_steps", lambda self, size, unit: steps)
    if not said:
        assert train(path, tmp_path, "epochs=1").done
        return
    with pytest.raises(UserError, match=said):
        train(path, tmp_path, "epochs=1")


def test_a_configuration_that_measures_nothing_is_refused_where_it_is_written():
    with pytest.raises(ValueError, match="NoLoss.metrics lacks 'loss'"):

        class NoLoss(Config):
            metrics = (MAE,)
            headline = MAE

    class OneSplit(RegressionConfig):
        @property
        def evaluation_splits(self):
            return "test"

    with pytest.raises(ValueError, match="evaluation_splits is the text 'test': return a tuple"):
        OneSplit.model_validate(read_yaml(FILE))
