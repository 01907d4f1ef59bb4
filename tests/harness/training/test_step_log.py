import json
import math
import signal
import time

import numpy
import pytest
import torch
import yaml
from support.harness import complete, interrupted, small_config, start, until_done
from support.rules import RULES
from support.training import assert_equal, result, train_here

from experiments.config.signature import signature
from experiments.runs.directory import RunDirectory
from experiments.runs.metrics import read_metrics
from experiments.training import loop
from experiments.training.step_log import MOST_ELEMENTS, quantiles

EXACT = ("model.name=convnet", "model.depth=3", "dtype=float64", "epochs=1")


def rows_of(directory):
    return read_metrics(directory.steps_path)


def norm(tensors):
    return math.sqrt(sum(float((t.detach().double() ** 2).sum()) for t in tensors))


def test_a_row_says_what_the_step_did(tmp_path, monkeypatch):
    """Weights before and after, and the gradient, as somebody beside the training sees them."""
    step, seen = loop.optimizer_step, []

    def spy(training, batch):
        params = list(training.model.parameters())
        before = [p.detach().clone() for p in params]
        loss, _ = training.task.loss(training.model, batch)
        grads = [g.clone() for g in torch.autograd.grad(loss, params)]
        sums = step(training, batch)
        after = [p.detach().clone() for p in params]
        seen.append((float(loss.detach()), grads, before, after))
        return sums

    monkeypatch.setattr(loop, "optimizer_step", spy)
    directory = train_here(tmp_path, small_config(*EXACT, "log_every_steps=4"))
    rows = rows_of(directory)
    assert [row["step"] for row in rows] == [4, 8]
    assert [row["epoch"] for row in rows] == [4 / 11, 8 / 11]
    for row in rows:
        loss, grads, before, after = seen[row["step"] - 1]
        change = norm([b - a for a, b in zip(after, before, strict=True)])
        assert row["learning_rate"] == 0.1
        assert row["step/loss"] == pytest.approx(loss, rel=1e-12)
        assert row["step/gradient_norm"] == pytest.approx(norm(grads), rel=1e-12)
        assert row["step/weight_norm"] == pytest.approx(norm(before), rel=1e-12)
        assert row["step/update_norm"] == pytest.approx(change, rel=1e-12)
        assert row["step/update_ratio"] == pytest.approx(change / norm(before), rel=1e-12)
    assert len(row) == 8


def test_layers_add_up_to_the_whole(tmp_path):
    directory = train_here(tmp_path, small_config(*EXACT, "log_every_steps=4", "log_layers=true"))
    for row in rows_of(directory):
        for name in ("gradient_norm", "weight_norm", "update_norm"):
            parts = [value for key, value in row.items() if key.startswith(f"step/{name}/")]
            assert len(parts) >= 3
            assert norm([torch.tensor(p) for p in parts]) == pytest.approx(row[f"step/{name}"])
        assert any(key.startswith("step/update_ratio/") for key in row)


def test_of_an_adahessian_there_are_quantiles_of_its_denominator_and_of_d(tmp_path, monkeypatch):
    """The denominator is what the update was divided by; d² is what its first refresh left in v."""
    step, seen = loop.optimizer_step, []

    def spy(training, batch):
        optimizer = training.optimizer
        before = [p.detach().clone() for p in training.model.parameters()]
        sums = step(training, batch)
        (group,) = optimizer.param_groups
        values = {"denominator": [], "curvature": []}
        for p, old in zip(training.model.parameters(), before, strict=True):
            state = optimizer.state[p]
            mean = state["exp_avg"] / (1 - group["betas"][0] ** state["step"].item())
            moved = (old * (1 - group["lr"] * group["weight_decay"]) - p.detach()) / group["lr"]
            known = moved.abs() > 1e-9
            values["denominator"].append((mean / moved)[known])
            d = (state["exp_hessian_diag_sq"] / (1 - group["betas"][1])).sqrt()
            values["curvature"].append(d)
        seen.append({name: torch.cat([v.flatten() for v in of]) for name, of in values.items()})
        return sums

    monkeypatch.setattr(loop, "optimizer_step", spy)
    settings = ("log_every_steps=1", "optimizers.adahessian.update_interval=2")
    rows = rows_of(train_here(tmp_path, small_config(*EXACT, *settings, optimizer="adahessian")))
    for name in ("denominator", "curvature"):
        for key, share in (("p05", 0.05), ("p50", 0.5), ("p95", 0.95)):
            expected = float(numpy.quantile(seen[0][name].numpy(), share))
            assert rows[0][f"step/{name}/{key}"] == pytest.approx(expected, rel=0.02)
    has_d = ["step/curvature/p50" in row for row in rows]
    assert has_d == [step % 2 == 0 for step in range(11)]
    assert all("step/denominator/p50" in row for row in rows)


@pytest.mark.parametrize("rule", RULES)
def test_of_any_rule_there_are_these_quantiles(rule, tmp_path):
    options = {**RULES[rule], "constructor": "adahessian.AdaHessian"}
    options |= {"lr": 1e-3, "weight_decay": 0, "weight_decay_divided_by_lr": False}
    text = f"optimizers.rule={yaml.safe_dump(_lists(options), default_flow_style=True, width=9999)}"
    config = small_config(*EXACT, text, "log_every_steps=5", optimizer="rule")
    for row in rows_of(train_here(tmp_path, config)):
        assert all(row[f"step/denominator/{q}"] > 0 for q in ("p05", "p50", "p95"))


def _lists(options):
    return {key: list(one) if isinstance(one, tuple) else one for key, one in options.items()}


@pytest.mark.parametrize("size", [1, 100, 3 * MOST_ELEMENTS + 5])
def test_quantiles_are_those_of_all_elements_as_one_vector(size):
    values = torch.randn(size, generator=torch.Generator().manual_seed(0))
    parts = list(values.split([size // 3, size // 3, size - 2 * (size // 3)]))
    expected = numpy.quantile(values.numpy(), [0.05, 0.5, 0.95], method="nearest")
    found = [float(value) for value in quantiles(parts)]
    assert found == pytest.approx(expected.tolist(), abs=0 if size < MOST_ELEMENTS else 0.02)


@pytest.mark.parametrize("optimizer", ["sgd", "adahessian"])
def test_logging_changes_nothing_and_no_signature(optimizer, tmp_path):
    def trained(root, *settings):
        config = small_config("epochs=1", *settings, optimizer=optimizer)
        return config, train_here(tmp_path / root, config)

    off, quiet = trained("off", "log_every_steps=0")
    nothing, silent = trained("null", "log_every_steps=null")
    on, talking = trained("on", "log_every_steps=2", "log_layers=true")
    assert signature(off) == signature(nothing) == signature(on)
    assert not quiet.steps_path.exists() and not silent.steps_path.exists()
    assert len(rows_of(talking)) == 5
    talking.steps_path.unlink()
    assert_equal(result(quiet), result(talking))


LOGGED = ("log_every_steps=3", "log_layers=true", "optimizers.adahessian.update_interval=2")


@pytest.mark.parametrize("every", [0, 1, 5])
@pytest.mark.parametrize("optimizer", ["adamw", "adahessian"])
def test_interrupted_and_resumed_the_rows_are_the_same(every, optimizer, tmp_path, monkeypatch):
    """Rows behind the last checkpoint are cut off and written again."""
    settings = (*LOGGED[:2], f"checkpoint_every_steps={every}")
    config = small_config(*settings, optimizer=optimizer)
    whole = result(train_here(tmp_path / "whole", config))
    step = interrupted(loop.optimizer_step, lambda call: call in (5, 14, 22))
    monkeypatch.setattr(loop, "optimizer_step", step)
    directory, sessions = until_done(lambda: train_here(tmp_path / "cut", config))
    assert sessions > 1 and len(rows_of(directory)) == 7
    assert_equal(result(directory), whole)


@pytest.mark.slow
def test_after_sigkill_the_rows_are_those_of_an_uninterrupted_run(tmp_path):
    settings = (*LOGGED, "epochs=4", "checkpoint_every_steps=7")
    config = small_config(*settings, optimizer="adahessian")
    whole = result(train_here(tmp_path / "whole", config))
    killed = RunDirectory(tmp_path / "killed", config)
    with start(tmp_path / "killed", *settings, "optimizer=adahessian") as process:
        while killed.steps_size() == 0 or len(rows_of(killed)) < 6:
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    assert not killed.done
    complete(tmp_path / "killed", *settings, "optimizer=adahessian")
    assert_equal(result(killed), whole)


def test_a_checkpoint_of_an_earlier_version_knows_no_steps(tmp_path, monkeypatch):
    config = small_config("log_every_steps=3", "checkpoint_every_steps=2")
    state_of = loop._state
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(loop, "_state", lambda *a: without_steps(state_of(*a)))
        step = interrupted(loop.optimizer_step, lambda call: call == 8)
        patched.setattr(loop, "optimizer_step", step)
        train_here(tmp_path, config)
    assert [row["step"] for row in rows_of(train_here(tmp_path, config))] == [9, 12, 15, 18, 21]


def without_steps(state):
    del state["steps_size"]
    return state


def test_a_row_is_a_line_of_json(tmp_path):
    directory = train_here(tmp_path, small_config("epochs=1", "log_every_steps=5"))
    lines = directory.steps_path.read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [5, 10]
