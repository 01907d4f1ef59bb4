"""Parameters by pattern, frozen ones, clipping, and optimizers of other kinds."""

import re
from pathlib import Path

import pytest
import torch
from support.harness import interrupted, small_config, until_done
from support.training import assert_equal, result, train_here

from experiments.errors import UserError
from experiments.runs.directory import RunDirectory
from experiments.runs.metrics import read_metrics, without_times
from experiments.tasks.registry import build_task
from experiments.training import groups, loop, optimizers
from experiments.training.restore import restore

CPU = torch.device("cpu")
CONVNET = ("model.name=convnet", "model.depth=3")


def build(*overrides, optimizer="sgd"):
    config = small_config(*CONVNET, *overrides, optimizer=optimizer)
    optimizers.check(config)
    return loop.build(config, RunDirectory(Path("unused"), config), Path("unused"))


def of(optimizer, model):
    """The options of each parameter, by name."""
    by_id = {id(p): g for g in optimizer.param_groups for p in g["params"]}
    return {name: by_id[id(p)] for name, p in model.named_parameters() if id(p) in by_id}


# ------------------------------------------------------------------------------------- groups


def test_no_weight_decay_on_biases_and_another_rate_for_the_head():
    training = build(
        "optimizers.sgd.groups=[{match: 1-D, weight_decay: 0}, {match: linear.*, lr_factor: 10}]",
        "schedule={name: linear}",
    )
    for step in (0, 11):
        training.set_options(step)
        found = of(training.optimizer, training.model)
        decay = {name: group["weight_decay"] for name, group in found.items()}
        assert decay == {name: 0 if name.endswith("bias") else 5e-4 for name in found}
        rate = 0.1 * (1 - step / 22)
        rates = {name: group["lr"] for name, group in found.items()}
        assert rates == pytest.approx(
            {name: rate * (10 if "linear" in name else 1) for name in found}
        )
        assert training.learning_rate == pytest.approx(rate)
    assert len(found) == 6 == len(list(training.model.parameters()))


def test_a_step_is_torchs_with_these_groups():
    """Against the groups as one writes them by hand."""
    training = build(
        "optimizers.adamw.groups=[{match: 1-D, weight_decay: 0}]",
        "schedule={name: constant}",
        "dtype=float64",  # Adam's first steps are signs, which rounding can turn
        optimizer="adamw",
    )
    model = training.task.build_model()
    model.load_state_dict(training.model.state_dict())
    biases = [p for p in model.parameters() if p.ndim == 1]
    others = [p for p in model.parameters() if p.ndim != 1]
    by_hand = torch.optim.AdamW(
        [{"params": others, "weight_decay": 0.05}, {"params": biases, "weight_decay": 0}], lr=0.01
    )
    for batch in training.task.training_batches(0, 0):
        training.set_options(0)
        loop.optimizer_step(training, batch)
        by_hand.zero_grad()
        training.task.loss(model, batch)[0].backward()
        by_hand.step()
    for one, other in zip(training.model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(one, other)


def test_the_later_entry_counts_and_after_epochs_leaves_it_alone():
    training = build(
        "optimizers.sgd.groups=[{match: '*.bias', momentum: 0.5, lr_factor: 2}, "
        "{match: linear.bias, momentum: 0.1}]",
        "optimizers.sgd.after_epochs={1: {momentum: 0.7, weight_decay: 0.1}}",
    )
    training.set_options(11)
    found = of(training.optimizer, training.model)
    assert {name: g["momentum"] for name, g in found.items()} == {
        name: 0.1 if name == "linear.bias" else 0.5 if "bias" in name else 0.7 for name in found
    }
    assert {g["weight_decay"] for g in found.values()} == {0.1}
    assert found["linear.bias"]["lr"] == 2 * found["linear.weight"]["lr"]


def test_the_released_transformers_blocks():
    """AdaHessian averages matrices over 32 elements and leaves vectors alone."""
    training = build(
        "optimizers.adahessian.block_size=32",
        "optimizers.adahessian.groups=[{match: 1-D, block_size: null}]",
        optimizer="adahessian",
    )
    loop.optimizer_step(training, next(iter(training.task.training_batches(0, 0))))
    found = of(training.optimizer, training.model)
    assert {g["block_size"] for name, g in found.items() if "bias" in name} == {None}
    assert {g["block_size"] for name, g in found.items() if "bias" not in name} == {32}
    state = training.optimizer.state[training.model.linear.weight]["exp_hessian_diag_sq"]
    assert state.flatten()[:32].unique().numel() == 1
    state = training.optimizer.state[training.model.linear.bias]["exp_hessian_diag_sq"]
    assert state.unique().numel() == 10


def test_every_parameter_may_have_a_pattern():
    training = build("optimizers.sgd.groups=[{match: '*', lr_factor: 4}]")
    training.set_options(0)
    (group,) = training.optimizer.param_groups
    assert group["lr"] == pytest.approx(0.4) and training.learning_rate == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ("[{match: lin.*, weight_decay: 0}]", "'lin.*' matches no parameter; known: convs.0."),
        ("[{match: 7-D, weight_decay: 0}]", "groups: '7-D' matches no parameter"),
        ("[{match: 1-D, lr: 0.1}]", "groups, 1-D: lr belongs to the schedule; write lr_factor"),
        ("[{match: 1-D, momentun: 0}]", "groups, 1-D: unknown key 'momentun'; did you mean"),
        ("[{match: 1-D, momentum: -1}]", "optimizers.sgd.groups, 1-D: Invalid momentum value"),
        ("[{match: 1-D, lr_factor: 0}]", "groups.0.lr_factor = 0: Input should be greater than 0"),
        ("[{weight_decay: 0}]", "groups.0.match: Field required"),
        ("{1-D: {weight_decay: 0}}", "groups: Input should be a valid list"),
    ],
)
def test_what_does_not_fit_is_one_line(groups, message):
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        build(f"optimizers.sgd.groups={groups}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("[{match: 1-D, seed: 5}]", "seed is one for all parameter groups"),
        ("[{match: 1-D, process_group: 5}]", "groups, 1-D: unknown key 'process_group'"),
        ("[{match: 1-D, last_refresh: 5}]", "groups, 1-D: unknown key 'last_refresh'"),
    ],
)
def test_what_only_a_whole_optimizer_has_is_refused_before_the_run(override, message):
    override = f"optimizers.adahessian.groups={override}"
    with pytest.raises(UserError, match=re.escape(message)):
        optimizers.check(small_config(override, optimizer="adahessian"))


def test_their_order_and_content_enter_the_signature():
    from experiments.config.signature import signature

    def mark(text):
        return signature(small_config(f"optimizers.sgd.groups={text}"))

    one, two = "{match: 1-D, weight_decay: 0}", "{match: linear.*, weight_decay: 1}"
    assert mark("[]") == signature(small_config())
    marks = [mark(text) for text in ("[]", f"[{one}]", f"[{one}, {two}]", f"[{two}, {one}]")]
    assert len(set(marks)) == 4


def test_a_plateau_lowers_every_group(tmp_path):
    plateau = (
        "schedule={drops: [], factor: 0.5, stepped_at_epoch_start: false, plateau: "
        "{metric: test/accuracy, patience: 0, threshold: 0.9}}"
    )
    config = small_config(
        *CONVNET, plateau, "epochs=3", "optimizers.sgd.groups=[{match: 1-D, lr_factor: 4}]"
    )
    rows = read_metrics(train_here(tmp_path, config).metrics_path)
    assert [row["learning_rate"] for row in rows] == [0.1, 0.1, 0.05]


# ------------------------------------------------------------------------------------- freeze


def test_what_is_frozen_stays_and_the_rest_is_trained(tmp_path):
    config = small_config(*CONVNET, "epochs=1", "freeze=['convs.0.*', 'linear.bias']")
    directory = train_here(tmp_path, config)
    end = torch.load(directory.path / "checkpoint.pt", weights_only=True)["model"]
    torch.manual_seed(loop._model_seed(1))
    start = build_task(config, CPU, None).build_model().state_dict()
    same = {name for name in start if torch.equal(start[name], end[name])}
    assert same == {"convs.0.weight", "convs.0.bias", "linear.bias"}


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        ("['conv.*']", "freeze: 'conv.*' matches no parameter; known: convs.0."),
        ("['*']", "freeze = ['*']: no parameter would be left to train"),
        ("[9-D]", "freeze: '9-D' matches no parameter"),
    ],
)
def test_a_pattern_that_freezes_nothing_or_all_is_refused(patterns, message):
    with pytest.raises(UserError, match=re.escape(message)):
        build(f"freeze={patterns}")


def test_a_frozen_part_has_no_curvature_and_no_options(tmp_path):
    """Through both ways, with statistics and a spectrum; the part may be most of the network."""
    config = small_config(
        *CONVNET, "epochs=1", "freeze=['convs.*']", "curvature_statistics=true",
        "curvature_error_every_epochs=1", "spectrum_every_epochs=1",
        "spectrum={batches: 1, k: 1, trace_matvecs: 4, num_lanczos_steps: 3}",
        "optimizers.adahessian.curvature=finite_difference",
        "optimizers.adahessian.groups=[{match: linear.bias, weight_decay: 0}]",
        optimizer="adahessian",
    )  # fmt: skip
    (row,) = read_metrics(train_here(tmp_path, config).metrics_path)
    assert {key for key in row if key.startswith("hessian/layer_trace")} == {
        "hessian/layer_trace/linear"
    }
    assert row["hessian/relative_error_largest"] < 0.05
    with pytest.raises(UserError, match="groups: 'convs.*' matches no parameter"):
        build("freeze=['convs.*']", "optimizers.sgd.groups=[{match: convs.*, lr_factor: 2}]")


# ----------------------------------------------------------------------------------- clipping


@pytest.mark.parametrize("micro_batches", [1, 4])
def test_a_gradient_is_clipped_as_a_whole(micro_batches):
    """Also where it is added up from parts of a batch."""
    training = build(
        "optimizers.sgd.max_grad_norm=0.01", "optimizers.sgd.momentum=0.0",
        "optimizers.sgd.weight_decay=0", f"micro_batches={micro_batches}",
    )  # fmt: skip
    before = [p.detach().clone() for p in training.model.parameters()]
    batch = next(iter(training.task.training_batches(0, 0)))
    training.set_options(0)
    loop.optimizer_step(training, batch)
    steps = [b - p.detach() for b, p in zip(before, training.model.parameters(), strict=True)]
    norm = torch.linalg.vector_norm(torch.cat([s.flatten() for s in steps]))
    assert norm.item() == pytest.approx(0.1 * 0.01, rel=1e-3)


def test_ours_clips_itself_so_that_its_curvature_is_whole():
    clipped = build("optimizers.adahessian.max_grad_norm=0.01", optimizer="adahessian")
    free = build(optimizer="adahessian")
    assert clipped.optimizer.param_groups[0]["max_grad_norm"] == 0.01
    batch = next(iter(clipped.task.training_batches(0, 0)))
    for training in (clipped, free):
        loop.optimizer_step(training, batch)
    for one, other in zip(clipped.model.parameters(), free.model.parameters(), strict=True):
        states = [t.optimizer.state[p] for t, p in ((clipped, one), (free, other))]
        assert torch.equal(*(state["exp_hessian_diag_sq"] for state in states))
        assert not torch.equal(*(state["exp_avg"] for state in states))


class Foreign(torch.optim.SGD):
    """Needs the gradient's graph, as other packages' AdaHessian do, and cannot clip."""

    needs_graph = True


def test_another_second_order_optimizer_is_not_clipped_before_its_curvature():
    override = f"{{constructor: {__name__}.Foreign, lr: 0.1, weight_decay: 0, "
    override += "weight_decay_divided_by_lr: false, max_grad_norm: 1}"
    with pytest.raises(UserError, match="max_grad_norm: .*Foreign differentiates or averages"):
        optimizers.check(small_config(f"optimizers.sgd={override}"))


# ----------------------------------------------------------- without lr, or without weight decay


class Rateless(torch.optim.Optimizer):
    """Sign descent with a rate that nobody sets."""

    def __init__(self, params, scale=1.0):
        super().__init__(params, {"scale": scale})

    @torch.no_grad()
    def step(self, closure):
        with torch.enable_grad():
            loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                p.sub_(1e-3 * group["scale"] * p.grad.sign())
        return loss


LBFGS = "{constructor: torch.optim.LBFGS, lr: 0.5, max_iter: 4, history_size: 3}"
PRODIGY = ("{constructor: pytorch_optimizer.Prodigy, lr: 1.0, weight_decay: 0, "
           "weight_decay_divided_by_lr: false}")  # fmt: skip
SCHEDULE_FREE = ("{constructor: pytorch_optimizer.ScheduleFreeAdamW, lr: 0.01, weight_decay: 0, "
                 "weight_decay_divided_by_lr: false}")  # fmt: skip
RATELESS = f"{{constructor: {__name__}.Rateless, scale: 2}}"


def other(text, *overrides):
    return small_config(
        *CONVNET, "epochs=2", f"optimizers.other={text}", "schedule={name: constant}",
        "checkpoint_every_steps=2", *overrides, optimizer="other",
    )  # fmt: skip


@pytest.mark.parametrize("text", [LBFGS, PRODIGY, SCHEDULE_FREE, RATELESS])
def test_an_optimizer_of_another_kind_is_a_row(text, tmp_path, monkeypatch):
    """It learns, and interrupted it ends bitwise as it does uninterrupted."""
    config = other(text)
    whole = train_here(tmp_path / "whole", config)
    rows = [without_times(row) for row in read_metrics(whole.metrics_path)]
    assert rows[-1]["train/loss"] < rows[0]["train/loss"]
    assert ("learning_rate" in rows[0]) == (text != RATELESS)
    assert ("train/gradients" in rows[0]) == (text == LBFGS)  # the others evaluate one a step
    step = interrupted(loop.optimizer_step, lambda call: call % 9 == 5)
    monkeypatch.setattr(loop, "optimizer_step", step)
    directory, sessions = until_done(lambda: train_here(tmp_path / "cut", config))
    assert sessions > 2
    assert_equal(result(directory), result(whole))


def test_a_schedule_free_optimizer_is_evaluated_at_its_averaged_weights(tmp_path):
    directory = train_here(tmp_path, other(SCHEDULE_FREE, "checkpoint_every_steps=0"))
    last = read_metrics(directory.metrics_path)[-1]
    state = torch.load(directory.path / "checkpoint.pt", weights_only=True)
    assert not torch.equal(state["model"]["linear.weight"], state["evaluated"]["linear.weight"])
    task, model, _ = restore(directory.path, "cpu")
    for weights, equal in ((state["evaluated"], True), (state["model"], False)):
        if not equal:
            model.load_state_dict(weights)
        found = loop.evaluate(task, model, "test")["loss"]
        assert (found == last["test/loss"]) is equal


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{constructor: torch.optim.LBFGS}", "lr is missing: torch.optim.LBFGS takes one"),
        (
            "{constructor: torch.optim.LBFGS, lr: 1, weight_decay: 0}",
            "torch.optim.LBFGS takes no weight_decay: leave it out",
        ),
        (RATELESS[:-1] + ", lr: 1}", "Rateless takes no lr: leave it out"),
        (RATELESS[:-1] + ", schedule: {name: cosine}}", "a schedule needs an lr"),
        ("{constructor: torch.optim.SGD, lr: 1}", "weight_decay is missing: torch.optim.SGD"),
        (
            "{constructor: torch.optim.SGD, lr: 1, weight_decay: 0}",
            "weight_decay_divided_by_lr is missing: true or false",
        ),
        (PRODIGY[:-1] + ", kwargs: 1}", "unknown key 'kwargs'"),
    ],
)
def test_what_an_optimizer_does_not_take_is_not_asked_for(text, message):
    with pytest.raises(UserError, match=re.escape(message)):
        other(text)


def test_a_pattern_of_dimensions_is_no_pattern_of_names():
    p = torch.nn.Parameter(torch.zeros(2, 2))
    assert groups.matches("2-D", "x", p) and not groups.matches("1-D", "1-D", p)
    assert groups.matches("A*", "Ab", p) and not groups.matches("a*", "Ab", p)
