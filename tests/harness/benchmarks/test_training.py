import json
from collections import Counter
from contextlib import ExitStack

import pytest
import torch
from torchvision import datasets

from experiments.benchmarks import training
from experiments.benchmarks.cifar_files import cifar10
from experiments.benchmarks.training import METHODS, Trainee, plain_epoch, plain_loader
from experiments.benchmarks.watch import PHASES
from experiments.tasks.registry import build_task
from experiments.training import loop
from experiments.training.clock import register_evaluation_hook

SMALL = ("device=cpu", "model.depth=8", "batch_size=4")
BY_LABEL = {method.label: method for method in METHODS}


@pytest.fixture
def make(tmp_path):
    """Trainees on a few random images in CIFAR-10's files."""
    with cifar10(tmp_path, images=100) as (dataset, root):

        def trainee(label, steps=2):
            config = BY_LABEL[label].config(SMALL)
            task = build_task(config, torch.device("cpu"), root)
            loader = plain_loader(config, dataset, root, workers=0, pin_memory=False)
            return Trainee(BY_LABEL[label], config, task, loader, steps)

        yield trainee


@pytest.mark.parametrize("label", BY_LABEL)
def test_the_phases_are_all_of_the_step(label, make):
    """They add up to what a clock of its own says of the same turn."""
    trainee = make(label)
    watch = trainee.turn(split=True)
    phases = watch.phases()
    assert tuple(phases) == PHASES
    assert 0.8 * watch.total < sum(phases.values()) * trainee.steps <= watch.total
    refreshes = BY_LABEL[label].optimizer == "adahessian"
    for phase in ("data", "forward", "backward", "update", "rest"):
        assert phases[phase] > 0
    assert (phases["curvature"] > 0) == refreshes


@pytest.mark.parametrize(
    ("label", "step"),
    [
        ("SGD", ["update", "forward", "backward", "update", "rest"]),
        ("plain loop, SGD", ["data", "forward", "backward", "update", "rest"]),
        (
            "exact",
            ["update", "forward", "backward", "curvature", "update", "rest"],
        ),
        (
            "finite difference",
            ["update", "forward", "backward", *["curvature"] * 4, "update", "rest"],
        ),
    ],
)
def test_each_mark_stands_where_its_phase_ends(label, step, make):
    trainee = make(label)
    trainee.turn(split=True)  # the optimizer's first step may check the closure
    watch = trainee.turn(split=True)
    names = [name for name, _ in watch._marks]
    before = ["rest"] if label != "plain loop, SGD" else []  # from the batch to the step
    assert names == ["", *[*before, *step, "data"] * trainee.steps]


def test_a_cycle_refreshes_once(make):
    trainee = make("exact, every 5")
    assert trainee.steps == 5
    for _ in range(2):  # the second turn begins where the first one ended
        watch = trainee.turn(split=True)
        assert Counter(name for name, _ in watch._marks)["curvature"] == 1


def test_an_untouched_turn_has_no_hooks(make):
    trainee = make("exact")
    trainee.turn(split=True)
    for hooks in (
        trainee.model._forward_pre_hooks,
        trainee.model._forward_hooks,
        trainee.optimizer._optimizer_step_pre_hooks,
        trainee.optimizer._optimizer_step_post_hooks,
        trainee.optimizer._curvature_hooks,
    ):
        assert not hooks
    watch = trainee.turn(split=False)
    assert watch.total > 0 and watch._marks is None


def test_the_marks_do_not_change_the_training(make):
    """What is timed is the harness's loop, step for step."""
    watched, free = make("finite difference"), make("finite difference")
    watched.turn(split=True)
    batches = free.task.training_batches(0, 0)
    training = loop.Training(free.config, None, free.task, free.model, free.optimizer)
    free.model.train()
    for _ in range(watched.steps):
        loop.optimizer_step(training, next(batches))
    for mine, other in zip(watched.model.parameters(), free.model.parameters(), strict=True):
        assert torch.equal(mine, other)


def test_the_plain_loop_trains(make):
    trainee = make("plain loop, SGD")
    losses = [
        plain_epoch(trainee.model, trainee.optimizer, trainee.loader, torch.device("cpu"))
        for _ in range(4)
    ]
    assert min(losses[-2:]) < losses[0]


def test_what_is_generated_is_read_and_goes_away(tmp_path):
    config = BY_LABEL["SGD"].config(SMALL)
    with cifar10(tmp_path, images=50) as (dataset, root):
        assert datasets.CIFAR10 is dataset
        task = build_task(config, torch.device("cpu"), root)
        batches = list(task.training_batches(0, 0))
        assert len(batches) == 13 and batches[0].inputs.shape == (4, 3, 32, 32)
        pixels = torch.from_numpy(dataset(root).data)
        assert pixels.shape == (50, 32, 32, 3) and pixels.unique().numel() == 256
    assert not root.exists() and datasets.CIFAR10 is not dataset
    assert not list(tmp_path.iterdir())


def test_epochs_follow_from_the_median_step():
    found = {
        "SGD": {"step": [1.0, 5.0, 2.0]},
        "exact": {"step": [3.0, 15.0, 6.0]},
    }
    table = training.speed_table(found, 15.0, "title", "note")
    assert table.rows == [
        ("SGD", "2000.0", "1.00", "2", "80.0"),
        ("exact", "6000.0", "3.00", "0.667", "240.0"),
    ]


def test_the_command_prints_and_writes_its_tables(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("RUNS_ROOT", str(tmp_path / "runs"))
    monkeypatch.setenv("DATA_ROOT", str(tmp_path / "data"))
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- bench-train:begin -->\nold\n<!-- bench-train:end -->\nafter\n")
    arguments = ["--quick", "--device", "cpu", "--repetitions", "1", "--steps", "1"]
    assert training.main([*arguments, "--workers", "1", "--docs", str(page)]) == 0
    printed = [line for line in capsys.readouterr().out.splitlines() if "written:" not in line]
    assert max(len(line) for line in printed) <= 80
    result = json.loads((tmp_path / "runs" / "benchmarks" / "bench-train.json").read_text())
    assert list(result["data"]) == [method.label for method in METHODS]
    assert [len(table["rows"]) for table in result["tables"]] == [len(METHODS)] * 3
    assert "random images in CIFAR-10's files" in result["tables"][0]["title"]
    markdown = page.read_text()
    assert "old" not in markdown and all(f"| {label} |" in markdown for label in BY_LABEL)


def test_hooks_of_a_step_without_closure_are_harmless():
    """A loop may step either way; the watch sees the evaluations that there are."""
    parameter = torch.nn.Parameter(torch.ones(1))
    optimizer, seen = torch.optim.SGD([parameter], lr=0.1), []
    with ExitStack() as stack:
        handle = register_evaluation_hook(
            optimizer, lambda: seen.append("begin"), lambda: seen.append("evaluated")
        )
        stack.callback(handle.remove)
        parameter.grad = torch.ones(1)
        optimizer.step()
        optimizer.step(lambda: torch.tensor(1.0))
    optimizer.step()
    assert seen == ["begin", "begin", "evaluated"]
