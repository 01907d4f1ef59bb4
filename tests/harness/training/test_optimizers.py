import re

import pytest
import torch
from support.harness import small_config
from support.training import train_here

from adahessian import AdaHessian
from experiments.errors import UserError
from experiments.runtime.device import build_device
from experiments.training import optimizers
from experiments.training.schedule import GroupSchedule


def test_after_epochs_sets_entries_of_the_parameter_groups():
    """The paper's delayed curvature: every step for 5 epochs, then every fourth."""
    config = small_config(
        "optimizers.adahessian.after_epochs={5: {update_interval: 4}, 7: {update_interval: 2}}",
        optimizer="adahessian",
    )
    schedule = GroupSchedule(config, steps_per_epoch=3)
    intervals = [schedule.values(step).get("update_interval") for step in range(27)]
    assert intervals == [None] * 15 + [4] * 6 + [2] * 6
    optimizers.check(config)


@pytest.mark.parametrize(
    ("override", "optimizer", "message"),
    [
        ("optimizers.sgd.momentum=-1", "sgd", "optimizers.sgd: Invalid momentum value: -1"),
        ("optimizers.adahessian.eps=-1", "adahessian", "optimizers.adahessian: .*eps"),
        ("optimizers.adam.betas=3", "adam", "optimizers.adam: "),
        ("optimizers.adam.betas=[]", "adam", r"optimizers.adam: betas is \[\]: .* takes a list"),
        (
            "optimizers.sgd.after_epochs={5: {momentun: 0.5}}",
            "sgd",
            "after_epochs.5: unknown key 'momentun'; did you mean 'momentum'?",
        ),
        (
            "optimizers.adahessian.after_epochs={3: {update_interval: 4}, 5: {eps: -1}}",
            "adahessian",
            "optimizers.adahessian.after_epochs.5: .*eps",
        ),
        (
            "optimizers.adahessian.after_epochs={0: {last_refresh: 3}}",  # a counter, no option
            "adahessian",
            "after_epochs.0: unknown key 'last_refresh'",
        ),
    ],
)
def test_what_an_optimizer_refuses_is_a_users_mistake(override, optimizer, message):
    with pytest.raises(UserError, match=message):
        optimizers.check(small_config(override, optimizer=optimizer))


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is there")
def test_a_missing_gpu_is_a_users_mistake():
    with pytest.raises(UserError, match="no GPU"):
        optimizers.check(small_config("device=cuda"))
    assert build_device(small_config()).type == "cpu"


def test_an_optimizer_that_takes_a_seed_gets_the_runs():
    for seed in (1, 7):
        config = small_config(optimizer="adahessian", seed=seed)
        optimizer = optimizers.build_optimizer(config, torch.nn.Linear(1, 1))
        assert optimizer.param_groups[0]["seed"] == seed


class Asking(torch.optim.SGD):
    """Says itself, not by its class, what it needs."""

    def __init__(self, params, lr=0.1, seed=0, process_group=None):
        super().__init__(params, lr)
        self.needs_graph = True


def test_capabilities_are_those_of_the_optimizer():
    parameter = [torch.nn.Parameter(torch.zeros(1))]
    none = optimizers.Capabilities.of(torch.optim.SGD(parameter))
    assert not any(vars(none).values())
    ours = vars(optimizers.Capabilities.of(AdaHessian(parameter)))
    assert [name for name, value in ours.items() if not value] == ["has_modes"]
    assert optimizers.Capabilities.of(AdaHessian(parameter)) == optimizers.Capabilities.of(
        AdaHessian
    )
    found = optimizers.Capabilities.of(Asking(parameter))
    assert {name for name, value in vars(found).items() if value} == {
        "takes_seed", "averages_over_processes", "asks_for_graph",
    }  # fmt: skip


OWN = """
import torch


class NoClosure(torch.optim.SGD):
    def step(self):
        return super().step()


class Decorated(torch.optim.SGD):
    @torch.no_grad()
    def step(self, closure):
        return super().step(closure)


def make(params, **options):
    return torch.optim.SGD(params, **options)


class Splits(torch.optim.SGD):
    def __init__(self, params, lr=0.1):
        super().__init__([{"params": params}, {"params": [], "lr": 0.01}], lr)


class Wrapper(torch.optim.Optimizer):
    def __init__(self, params, lr=0.1):
        self.base = torch.optim.SGD(params, lr)
        self.param_groups = self.base.param_groups

    def step(self, closure):
        return self.base.step(closure)


class Plain(torch.optim.Optimizer):
    def __init__(self, params, lr=0.1):
        super().__init__(params, {"lr": lr})
        self.steps = 0

    @torch.no_grad()
    def step(self, closure):
        loss = closure()
        for param in self.param_groups[0]["params"]:
            param -= self.rate() * param.grad
        return loss

    def rate(self):
        return self.param_groups[0]["lr"]


class Counting(Plain):
    def rate(self):
        self.steps += 1
        return super().rate() / self.steps


class Lookahead(Plain):
    def __init__(self, params, lr=0.1):
        super().__init__(params, lr)
        self._base = torch.optim.SGD(self.param_groups, lr, momentum=0.9)

    def step(self, closure):
        return self._base.step(closure)


class Saving(Counting):
    def state_dict(self):
        return super().state_dict() | {"steps": self.steps}

    def load_state_dict(self, state):
        self.steps = state["steps"]
        super().load_state_dict({key: state[key] for key in ("state", "param_groups")})


class Caching(Plain):
    def rate(self):
        self.steps += 1
        return super().rate()


class OwnRate(Plain):
    def rate(self):
        return self.defaults["lr"]


class Stale(Plain):
    def __init__(self, params, lr=0.1):
        super().__init__(params, lr)
        self._groups = self.param_groups

    def rate(self):
        return self._groups[0]["lr"]


class Unkind(Plain):  # torch's load_state_dict gives all of the state the parameters' type
    def rate(self):
        kept = self.state[self.param_groups[0]["params"][0]]
        kept.setdefault("sign", torch.ones((), dtype=torch.int8))
        assert kept["sign"].dtype == torch.int8
        return super().rate()
"""


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "own_optimizers.NoClosure",
            ", lr: 0.1, weight_decay: 0, weight_decay_divided_by_lr: false",
            "its step takes no closure",
        ),
        ("own_optimizers.make", ", lr: 0.1", "is no class"),
        ("torch.optim.swa_utils.AveragedModel", "", "is no class of optimizers"),
        (
            "own_optimizers.Decorated",
            ", lr: 0.1, weight_decay: 0, weight_decay_divided_by_lr: false",
            None,
        ),
    ],
)
def test_what_is_no_optimizer_is_refused(name, options, message, tmp_path, monkeypatch):
    (tmp_path / "own_optimizers.py").write_text(OWN, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    override = f"optimizers.own={{constructor: {name}{options}}}"
    if message is None:
        optimizers.check(small_config(override, optimizer="own"))
    else:
        with pytest.raises(UserError, match=f"constructor '{name}'.*{message}"):
            optimizers.check(small_config(override, optimizer="own"))


def own(name, tmp_path, monkeypatch, *overrides):
    (tmp_path / "own_optimizers.py").write_text(OWN, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    row = f"{{constructor: own_optimizers.{name}, lr: 0.1}}"
    return small_config(f"optimizers.own={row}", "epochs=1", *overrides, optimizer="own")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Splits", "own_optimizers.Splits makes 2 parameter groups of one"),
        ("Wrapper", r"Wrapper has no state_dict.*does it call super\(\).__init__"),
    ],
)
def test_what_could_not_be_set_or_saved_is_refused(name, message, tmp_path, monkeypatch):
    with pytest.raises(UserError, match=message):
        optimizers.check(own(name, tmp_path, monkeypatch))


def test_a_step_without_gradients_gets_those_of_its_closure(tmp_path, monkeypatch):
    """Under `torch.no_grad()` it ended in torch's error, that nothing requires a gradient."""
    directory = train_here(tmp_path, own("Plain", tmp_path, monkeypatch))
    assert directory.done


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("Counting", "the steps of .*Counting depend on steps, which its state_dict does not have"),
        ("Lookahead", "the steps of .* depend on _base, which.*|whatever `lr` is in"),
        ("Stale", r"depend on something \(are `param_groups` those in use after load_state_dict"),
        ("Unkind", r"Unkind does not go on from .* has \(AssertionError \(own_optimizers.py, line"),
        ("OwnRate", "first steps of .*OwnRate are the same whatever `lr` is in its `param_groups`"),
        ("Saving", None),
        ("Caching", None),
        ("Plain", None),
    ],
)
@pytest.mark.parametrize("changes", [True, False])
def test_what_a_checkpoint_or_the_schedule_would_not_do_is_named(
    name, found, changes, tmp_path, monkeypatch
):
    """The rate counts where it changes at all."""
    config = own(name, tmp_path, monkeypatch, *([] if changes else ["schedule={name: constant}"]))
    said = optimizers.doubts(config)
    expected = found and (changes or name != "OwnRate")
    assert (len(said) == 1 and re.search(found, said[0])) if expected else not said


def test_a_training_says_what_its_optimizer_forgets(tmp_path, monkeypatch):
    with pytest.warns(UserWarning, match="steps of own_optimizers.Counting depend on steps, which"):
        train_here(tmp_path, own("Counting", tmp_path, monkeypatch))
