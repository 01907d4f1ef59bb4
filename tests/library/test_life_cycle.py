"""Any order of what a training does to an optimizer, against the slow oracle after every step."""

import copy
import pickle

import pytest
import torch
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from support.reference import LifeCycleReference
from support.stepping import save_and_load
from torch.amp import GradScaler

from adahessian import AdaHessian

pytestmark = pytest.mark.cpu_only(reason="thousands of steps of a few elements")


def loss_of(params, used):
    """A smooth loss of some vectors, in which all of them are coupled."""
    chosen = [params[i] for i in used]
    total = sum(p.sum() for p in chosen)
    return torch.tanh(total / 3) ** 2 + sum((p**4 / 4 + torch.cos(p)).sum() for p in chosen)


class LifeCycle(RuleBasedStateMachine):
    @initialize(
        interval=st.integers(1, 4),
        samples=st.integers(1, 2),
        norm=st.sampled_from([None, 0.5]),
        foreach=st.booleans(),
    )
    def begin(self, interval, samples, norm, foreach):
        self.shared = {"num_samples": samples, "max_grad_norm": norm, "seed": 3}
        self.options = {**self.shared, "update_interval": interval, "foreach": foreach, "lr": 0.02}
        self.params = [self.draw(i) for i in range(3)]
        self.optimizer = AdaHessian(self.params, **self.options)
        self.oracle = LifeCycleReference(self.params, self.options)

    @staticmethod
    def draw(i):
        generator = torch.Generator().manual_seed(i)
        return torch.randn(2, dtype=torch.float64, generator=generator).requires_grad_()

    @rule(
        # Who has a gradient in one step, the next ..., again and again.
        turns=st.lists(
            st.sampled_from(["0", "01", "012", "12", "034", "4"]), min_size=1, max_size=4
        ),
        times=st.sampled_from([1, 1, 2, 12]),
        set_to_none=st.booleans(),
        how=st.sampled_from(["closure", "two lines", "scaled", "overflow"]),
    )
    def steps(self, turns, times, set_to_none, how):
        for used in times * turns:
            self.step({int(i) for i in used}, set_to_none, how)
            self.is_the_oracle()

    def step(self, used, set_to_none, how):
        used = [i for i in sorted(used) if i < len(self.params) and self.params[i].requires_grad]
        assert self.optimizer.needs_graph == self.oracle.needs_graph()
        self.optimizer.zero_grad(set_to_none)
        self.oracle.zero_grad(set_to_none)
        if not used:
            return

        def backward(scaler=None, factor=1.0):
            value = factor * loss_of(self.params, used)
            scaled = value if scaler is None else scaler.scale(value)
            scaled.backward(create_graph=self.optimizer.needs_graph)
            return value

        if how in ("scaled", "overflow"):
            scaler = GradScaler("cpu", init_scale=8.0)
            backward(scaler, torch.inf if how == "overflow" else 1.0)
            scaler.step(self.optimizer)
        elif how == "closure":
            self.optimizer.step(backward)
        else:
            backward()
            self.optimizer.step()
        if how == "overflow":
            self.oracle.skip(used)
        else:
            self.oracle.step(loss_of, used)

    @rule(i=st.integers(0, 2))
    def freeze_or_unfreeze(self, i):
        if i < len(self.params):
            p = self.params[i]
            p.requires_grad_(not p.requires_grad)
            self.oracle.requires_grad[i] = p.requires_grad

    @precondition(lambda self: len(self.params) < 5)
    @rule(decay=st.sampled_from([0.0, 0.1]), interval=st.integers(1, 3))
    def add_group(self, decay, interval):
        p = self.draw(len(self.params))
        options = {**self.shared, "weight_decay": decay, "update_interval": interval, "lr": 0.01}
        self.optimizer.add_param_group({"params": [p], **options})
        self.params.append(p)
        self.oracle.add_group([p], options)

    @rule(group=st.integers(0, 2), lr=st.sampled_from([0.0, 0.05, -1e-19]), tensor=st.booleans())
    def set_lr(self, group, lr, tensor):
        if group < len(self.optimizer.param_groups):
            self.optimizer.param_groups[group]["lr"] = torch.tensor(lr) if tensor else lr
            rounded = float(torch.tensor(lr)) if tensor else lr
            self.oracle.groups[group]["lr"] = max(rounded, 0.0)

    @rule(group=st.integers(0, 2), interval=st.integers(1, 5))
    def set_interval(self, group, interval):
        if group < len(self.optimizer.param_groups):
            self.optimizer.param_groups[group]["update_interval"] = interval
            self.oracle.groups[group]["update_interval"] = interval

    @rule(through=st.sampled_from([save_and_load, copy.deepcopy, lambda s: s]))
    def resume(self, through):
        """In a fresh optimizer; the one before goes on, and must not matter."""
        old, state = self.optimizer, through(self.optimizer.state_dict())
        groups = [{"params": g["params"], **self.shared} for g in old.param_groups]
        self.optimizer = AdaHessian(groups, **self.shared)
        self.optimizer.load_state_dict(state)
        for average in [s["exp_avg"] for s in old.state.values() if "exp_avg" in s]:
            average.fill_(torch.nan)

    @rule(duplicate=st.sampled_from([copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))]))
    def move_to_a_copy(self, duplicate):
        self.optimizer.zero_grad()
        self.oracle.zero_grad(True)
        self.optimizer = duplicate(self.optimizer)
        self.params = [p for group in self.optimizer.param_groups for p in group["params"]]

    @rule()
    def load_what_is_refused(self):
        state = self.optimizer.state_dict()
        for group in state["param_groups"]:
            group["curvature"] = "exact"
        with pytest.raises(ValueError, match="curvature must be"):
            self.optimizer.load_state_dict(state)

    @invariant()
    def is_the_oracle(self):
        for i, p in enumerate(getattr(self, "params", ())):
            torch.testing.assert_close(p.detach(), self.oracle.params[i], rtol=1e-9, atol=1e-11)
            state = self.optimizer.state.get(p, {})
            counts = [int(state.get(k, 0)) for k in ("step", "num_refreshes", "last_refresh")]
            assert counts == self.oracle.counts[i], i
            assert (i in self.oracle.exp_avg) == ("exp_avg" in state)
            for name in ("exp_avg", "exp_hessian_diag_sq") if state else ():
                expected = getattr(self.oracle, name)[i]
                torch.testing.assert_close(state[name], expected, rtol=1e-9, atol=1e-11)
        for group in getattr(self, "optimizer", self).__dict__.get("param_groups", ()):
            assert "differentiable" not in group


LifeCycle.TestCase.settings = settings(
    max_examples=20,
    stateful_step_count=20,
    deadline=None,
    derandomize=True,
    phases=[Phase.generate, Phase.shrink],
    suppress_health_check=list(HealthCheck),
)
TestLifeCycle = LifeCycle.TestCase
