import copy
import errno
import io
import math
import signal
import sys
import warnings
from collections import deque

import numpy
import pytest
import torch
from support.harness import interrupted, small_config, until_done
from support.training import assert_equal, result

from experiments import cli
from experiments.errors import UserError
from experiments.runs import checkpoint
from experiments.runs.directory import RunDirectory
from experiments.runs.metrics import read_metrics, without_times
from experiments.tasks.image_classification.task import ImageClassification
from experiments.tasks.registry import build_task
from experiments.training import loop
from experiments.training.schedule import GroupSchedule
from experiments.training.session import train_unless_done

CPU = torch.device("cpu")


def run(root, config):
    directory = RunDirectory(root, config)
    with directory.locked():
        loop.train(config, directory, root)
    return directory


def training(task, model, optimizer):
    """What `optimizer_step` works on, without a directory."""
    return loop.Training(task.config, None, task, model, optimizer)


DIFFERENCE = "optimizers.adahessian.curvature=finite_difference"


@pytest.mark.parametrize(
    ("optimizer", "override"),
    [("sgd", ""), ("adam", ""), ("adamw", ""), ("adahessian", ""), ("adahessian", DIFFERENCE)],
)
def test_a_short_training_learns(optimizer, override, tmp_path):
    """Eight epochs reach what a broken optimizer would not: chance is 10 %."""
    config = small_config("epochs=8", *filter(None, [override]), optimizer=optimizer)
    directory = run(tmp_path, config)
    last = read_metrics(directory.metrics_path)[-1]
    assert last["test/accuracy"] > 0.8
    assert directory.done


def test_rows_hold_what_the_schema_says(tmp_path):
    config = small_config("dataset.validation_size=100", "checkpoint_every_steps=4")
    rows = read_metrics(run(tmp_path, config).metrics_path)
    parts = [f"{split}/{key}" for split in ("train", "val", "test") for key in ("loss", "accuracy")]
    times = ["time/epoch_seconds", "time/step_seconds", "time/waited_share"]
    assert [list(row) for row in rows] == [["step", "epoch", "learning_rate", *parts, *times]] * 2
    assert [(row["epoch"], row["step"]) for row in rows] == [(1, 10), (2, 20)]
    assert all(0 < row["time/step_seconds"] < row["time/epoch_seconds"] for row in rows)


def test_two_runs_of_one_seed_are_bitwise_equal_and_other_seeds_differ(tmp_path):
    def rows(root, seed):
        config = small_config("epochs=1", optimizer="adahessian", seed=seed)
        path = run(tmp_path / root, config).metrics_path
        return [without_times(row) for row in read_metrics(path)]

    assert rows("a", 1) == rows("b", 1) != rows("c", 2)


def test_the_curvatures_error_is_recorded_and_changes_nothing(tmp_path):
    def rows(root, *overrides):
        config = small_config("epochs=3", DIFFERENCE, *overrides, optimizer="adahessian")
        path = run(tmp_path / root, config).metrics_path
        return [without_times(row) for row in read_metrics(path)]

    plain, measured = rows("a"), rows("b", "curvature_error_every_epochs=2")
    errors = {key: measured[1].pop(key) for key in list(measured[1]) if key.startswith("hessian/")}
    assert plain == measured
    assert 0 < errors["hessian/relative_error_median"] < 0.05
    assert errors["hessian/mean_ratio"] == pytest.approx(1, abs=0.05)


def test_a_step_counts_the_first_evaluation_of_the_closure():
    """An optimizer may evaluate the closure again, elsewhere, for its curvature."""
    task = build_task(small_config(), CPU, None)
    torch.manual_seed(0)
    model = task.build_model()

    class Twice(torch.optim.SGD):
        def step(self, closure):
            with torch.enable_grad():
                first = closure()
            with torch.no_grad():
                for p in model.parameters():
                    p.add_(0.1)
            with torch.enable_grad():
                closure()
            return first

    batch = next(task.training_batches(0, 0))
    still = torch.optim.SGD(model.parameters(), lr=0.0)
    expected = loop.optimizer_step(training(task, model, still), batch)
    assert loop.optimizer_step(training(task, model, Twice(model.parameters())), batch) == expected
    assert expected["weight"] == 128
    assert expected["loss"] == pytest.approx(128 * math.log(10), rel=0.5)


def test_an_optimizer_that_calls_no_closure_is_a_users_mistake():
    task = build_task(small_config(), CPU, None)
    model = task.build_model()

    class Deaf(torch.optim.SGD):
        def step(self, closure=None):
            return super().step()

    batch = next(task.training_batches(0, 0))
    with pytest.raises(UserError, match="optimizers.sgd: step has not called its closure"):
        loop.optimizer_step(training(task, model, Deaf(model.parameters())), batch)


@pytest.mark.parametrize("needed", [True, False])
def test_the_graph_is_kept_only_where_the_optimizer_asks(needed):
    task = build_task(small_config(), CPU, None)
    model = task.build_model()
    graphs = []

    class Asking(torch.optim.SGD):
        needs_graph = needed

        def step(self, closure):
            with torch.enable_grad():
                closure()
            graphs.append(next(iter(model.parameters())).grad.grad_fn is not None)
            self.zero_grad()  # or the cycle of parameter, gradient and graph outlives us

    batch = next(task.training_batches(0, 0))
    with warnings.catch_warnings():  # torch's, about the reference cycle that we cut above
        warnings.simplefilter("ignore")
        loop.optimizer_step(training(task, model, Asking(model.parameters())), batch)
    assert graphs == [needed]


def test_after_epochs_reaches_the_optimizer(tmp_path, monkeypatch):
    seen = []
    step = loop.optimizer_step

    def spy(training, batch):
        (group,) = training.optimizer.param_groups
        seen.append((group["momentum"], group["lr"]))
        return step(training, batch)

    monkeypatch.setattr(loop, "optimizer_step", spy)
    run(tmp_path, small_config("optimizers.sgd.after_epochs={1: {momentum: 0.5}}"))
    assert [momentum for momentum, _ in seen] == [0.9] * 11 + [0.5] * 11
    assert seen[-1][1] == pytest.approx(0.001)


CONVNET = ("model.name=convnet", "model.depth=3", "dtype=float64")  # no batch normalization


@pytest.mark.parametrize(
    ("optimizer", "override", "tolerance"),
    [("sgd", "seed=1", 1e-12), ("adahessian", "seed=1", 1e-10), ("adahessian", DIFFERENCE, 1e-4)],
)
def test_micro_batches_change_nothing_but_the_order_of_additions(
    optimizer, override, tolerance, tmp_path
):
    """Where no layer looks at several images. 128 images in five parts, not all of one size."""

    def trained(root, *overrides):
        config = small_config(*CONVNET, "epochs=1", override, *overrides, optimizer=optimizer)
        directory = run(tmp_path / root, config)
        (row,) = read_metrics(directory.metrics_path)
        weights = torch.load(directory.path / "checkpoint.pt", weights_only=True)["model"]
        return without_times(row), weights

    measured = ("curvature_error_every_epochs=1",) if override == DIFFERENCE else ()
    whole, parts = trained("whole"), trained("parts", "micro_batches=5", *measured)
    assert parts[0].pop("hessian/relative_error_largest", 0) < 1e-5
    assert {key: parts[0][key] for key in whole[0]} == pytest.approx(whole[0], rel=tolerance)
    torch.testing.assert_close(parts[1], whole[1], rtol=tolerance, atol=tolerance)


def test_micro_batches_hold_one_part_at_a_time_and_their_shares_add_up_to_one():
    task = build_task(small_config("micro_batches=5"), CPU, None)
    batch = next(task.training_batches(0, 0))
    parts = task.micro_batches(batch)
    assert [len(part.labels) for part, _ in parts] == [26, 26, 26, 25, 25]
    assert sum(share for _, share in parts) == pytest.approx(1)
    assert torch.equal(torch.cat([part.inputs for part, _ in parts]), batch.inputs)


PART = ("optimizers.adahessian.curvature_fraction=0.5", "checkpoint_every_steps=2")


@pytest.mark.parametrize("way", ["optimizers.adahessian.curvature=double_backward", DIFFERENCE])
def test_curvature_from_a_part_of_each_batch(way, tmp_path, monkeypatch):
    """Interrupted and resumed bitwise; the last batch of 17 images is too small for ResNet-20."""
    config = small_config(way, *PART, optimizer="adahessian")
    sizes = []
    loss_alone = ImageClassification.loss_alone

    def spy(task, model, batch):
        sizes.append(len(batch.labels))
        return loss_alone(task, model, batch)

    monkeypatch.setattr(ImageClassification, "loss_alone", spy)
    whole = run(tmp_path / "whole", config)
    assert set(sizes) == {32, 64, 4, 8}
    assert read_metrics(whole.metrics_path)[-1]["test/accuracy"] > 0.3

    def stop_soon():
        stop_soon.steps += 1
        return signal.SIGTERM if stop_soon.steps == 7 else None

    stop_soon.steps = 0
    monkeypatch.setattr(loop.stopping, "requested", stop_soon)
    with pytest.raises(loop.stopping.Stopped):
        run(tmp_path / "parts", config)
    monkeypatch.undo()
    assert_equal(result(whole), result(run(tmp_path / "parts", config)))


@pytest.mark.parametrize(
    ("fraction", "reason"),
    [(0.005, "its part of the batch holds no example"), (0.05, "batch normalization over 3 ")],
)
def test_a_part_that_is_too_small_is_refused_in_the_words_of_the_file(fraction, reason, tmp_path):
    setting = f"optimizers.adahessian.curvature_fraction={fraction}"
    with pytest.raises(UserError) as refused:
        run(tmp_path, small_config(setting, optimizer="adahessian"))
    message = str(refused.value)
    assert message.startswith("optimizers.adahessian.curvature_fraction: ") and reason in message


def test_a_part_of_a_batch():
    task = build_task(small_config(), CPU, None)
    batch = next(task.training_batches(0, 0))
    halves = [task.part(batch, 0, 0.125), task.part(batch, 0.125, 0.25)]
    assert torch.equal(torch.cat([half.labels for half in halves]), batch.labels[:32])
    assert task.part(batch, 0, 0.001) is None
    model = task.build_model()
    loss, weight = task.loss_alone(model, batch)
    expected, sums = task.loss(model, batch)
    assert torch.equal(loss, expected) and weight == sums["weight"] == 128


@pytest.mark.parametrize("way", ["optimizers.adahessian.curvature=double_backward", DIFFERENCE])
def test_autocast_computes_in_bfloat16_and_keeps_weights_and_losses_in_float32(way, tmp_path):
    config = small_config("autocast=bfloat16", "channels_last=true", way, optimizer="adahessian")
    task = build_task(config, CPU, None)
    model, seen = task.build_model(), []
    model.linear.register_forward_hook(lambda module, args, out: seen.append(out.dtype))
    loss, _ = task.loss(model, next(task.training_batches(0, 0)))
    assert seen == [torch.bfloat16] and loss.dtype == torch.float32
    last = read_metrics(run(tmp_path, config).metrics_path)[-1]
    assert last["test/accuracy"] > 0.3  # after two epochs; chance is 10 %


PLATEAU = (
    "epochs=7", "schedule={drops: [], factor: 0.5, stepped_at_epoch_start: false, "
    "plateau: {metric: test/accuracy, patience: 1, threshold: 0.05}}",
)  # fmt: skip


def test_the_rate_waits_for_a_plateau_as_torchs_scheduler_does(tmp_path):
    rows = read_metrics(run(tmp_path, small_config(*PLATEAU)).metrics_path)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, mode="max", factor=0.5, patience=1, threshold=0.05
    )
    expected = []
    for row in rows:
        expected.append(optimizer.param_groups[0]["lr"])
        scheduler.step(row["test/accuracy"])
    assert [row["learning_rate"] for row in rows] == expected
    assert expected[0] == 0.1 > expected[-1]


def test_a_plateau_survives_an_interruption(tmp_path, monkeypatch):
    """Also one between two epochs, when the number of bad epochs is all that tells."""
    config = small_config(*PLATEAU, "checkpoint_every_steps=5")
    whole = [without_times(r) for r in read_metrics(run(tmp_path / "whole", config).metrics_path)]
    step = interrupted(loop.optimizer_step, lambda call: call % 16 == 0)
    monkeypatch.setattr(loop, "optimizer_step", step)
    directory, sessions = until_done(lambda: run(tmp_path / "cut", config))
    assert sessions > 1
    assert [without_times(row) for row in read_metrics(directory.metrics_path)] == whole


def test_an_optimizer_can_have_a_schedule_of_its_own():
    schedule = "{drops: [0.5], factor: 0.2, stepped_at_epoch_start: false}"
    config = small_config(f"optimizers.adam.schedule={schedule}", "epochs=4", optimizer="adam")
    rates = [GroupSchedule(config, 1).values(epoch)["lr"] for epoch in range(4)]
    assert rates == pytest.approx([0.001, 0.001, 0.0002, 0.0002])


@pytest.mark.parametrize("rate", [1e3, 1e38])
def test_a_training_that_explodes_ends_with_step_rate_and_a_good_checkpoint(rate, tmp_path):
    config = small_config(f"optimizers.sgd.lr={rate}", "checkpoint_every_steps=1")
    directory = RunDirectory(tmp_path, config)
    with (
        directory.locked(),
        pytest.raises(loop.NonFiniteLoss, match=r"step \d+.*learning rate 1(000|e.38)"),
    ):
        loop.train(config, directory, tmp_path)
    assert not directory.done
    if (directory.path / "checkpoint.pt").exists():
        state = torch.load(directory.path / "checkpoint.pt", weights_only=True)
        assert all(p.isfinite().all() for key, p in state["model"].items() if "running" not in key)


@pytest.mark.parametrize("log", [0, 1, 7])
def test_a_loss_that_is_not_a_number_is_named(log, tmp_path, monkeypatch):
    """Also where later steps follow before anybody looks."""
    config = small_config("checkpoint_every_steps=5", f"log_every_steps={log}")
    step, steps = loop.optimizer_step, []

    def poisoned(*arguments):
        steps.append(1)
        sums = step(*arguments)
        if len(steps) in (14, 15):
            return {**sums, "loss": sums["loss"] * math.nan}
        return sums

    monkeypatch.setattr(loop, "optimizer_step", poisoned)
    directory = RunDirectory(tmp_path, config)
    with (
        directory.locked(),
        pytest.raises(
            loop.NonFiniteLoss,
            match=r"the loss is nan at step 14 \(epoch 2, learning rate 0.001\)",
        ),
    ):
        loop.train(config, directory, tmp_path)
    position = torch.load(directory.path / "checkpoint.pt", weights_only=True)["position"]
    assert (position["epoch"], position["step"]) == (0, 11)


@pytest.mark.parametrize("place", ["evaluate", "measure_curvature"])
def test_what_was_trained_is_saved_before_it_is_evaluated(place, tmp_path, monkeypatch):
    """An evaluation that fails costs no training: it alone is done again."""
    config = small_config("epochs=1")
    whole = read_metrics(run(tmp_path / "whole", config).metrics_path)
    directory = RunDirectory(tmp_path / "failed", config)

    def fail(*arguments):
        raise ValueError("an image that cannot be read")

    with monkeypatch.context() as patched, pytest.raises(ValueError), directory.locked():
        patched.setattr(loop, place, fail)
        loop.train(config, directory, tmp_path)
    saved = checkpoint.stamp(directory.path)
    with monkeypatch.context() as patched, pytest.raises(ValueError), directory.locked():
        patched.setattr(loop, place, fail)
        loop.train(config, directory, tmp_path)
    assert checkpoint.stamp(directory.path) == saved, "or it would be tried for ever"
    monkeypatch.setattr(loop, "optimizer_step", None)
    (row,) = read_metrics(run(tmp_path / "failed", config).metrics_path)
    assert without_times(row) == without_times(whole[0]) and row.keys() == whole[0].keys()


class Hoarder(torch.optim.SGD):
    """Keeps its past where torch does not load it from again."""

    def __init__(self, params, lr, weight_decay, kept=None):
        super().__init__(params, lr=lr, weight_decay=weight_decay)
        self.kept = kept

    def step(self, closure):
        loss = super().step(closure)
        for p in self.param_groups[0]["params"]:
            self.state[p]["sums"] = {"plain": torch.zeros(3), "kept": self.kept}
        return loss


@pytest.mark.parametrize("kept", [deque([1]), numpy.float64(1), lambda: 0])
def test_a_state_that_could_not_be_resumed_is_refused_at_step_one(kept, tmp_path, monkeypatch):
    def build(config, model):
        return Hoarder(model.parameters(), 0.1, 0.0, kept)

    monkeypatch.setattr(loop.optimizers, "build_optimizer", build)
    steps, step = [], loop.optimizer_step
    monkeypatch.setattr(loop, "optimizer_step", lambda *a: steps.append(1) or step(*a))
    directory = RunDirectory(tmp_path, small_config())
    entry = rf"^optimizer.state.0.sums.kept of the training's state is a \S*{type(kept).__name__}"
    with pytest.raises(UserError, match=entry), directory.locked():
        loop.train(directory.config, directory, tmp_path)
    assert len(steps) == 1 and not (directory.path / "checkpoint.pt").exists()


class Gone(io.StringIO):
    """A terminal that was closed, or a log whose disk is full; or that knows ASCII alone."""

    def __init__(self, error, terminal):
        super().__init__()
        self.error, self.terminal = error, terminal
        self.tried = False

    def isatty(self):
        return self.terminal

    def write(self, text):
        self.tried = True
        raise copy.copy(self.error)


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize(
    "error",
    [BrokenPipeError(), OSError(errno.ENOSPC, "full"), OSError(errno.EIO, "hung up"),
     UnicodeEncodeError("ascii", "±", 0, 1, "not in range"), ValueError("I/O on closed file")],
)  # fmt: skip
def test_nothing_that_is_said_ends_a_training(error, terminal, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stderr", gone := Gone(error, terminal))
    monkeypatch.setattr(sys, "stdout", Gone(error, terminal))
    monkeypatch.setattr(warnings, "showwarning", cli._show_warning)
    step = loop.optimizer_step

    def warning_step(*arguments):
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.warn("said in a step", stacklevel=1)
        return step(*arguments)

    monkeypatch.setattr(loop, "optimizer_step", warning_step)
    monkeypatch.setattr(loop.Progress, "line_every_seconds", 0)
    monkeypatch.setenv("RUNS_ROOT", str(tmp_path))
    assert cli.guarded(lambda: train_unless_done(small_config("epochs=1"))) == 0
    assert gone.tried and RunDirectory(tmp_path, small_config("epochs=1")).done
