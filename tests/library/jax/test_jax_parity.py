# ruff: noqa: E402 (the imports follow the check that JAX is there)
"""The JAX optimizer does what the torch optimizer does: parameters and state, step by step."""

import pytest

pytest.importorskip("jax", reason="needs the extra: pip install adahessian[jax]")

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch

import adahessian.jax as adahessian_jax
from adahessian import AdaHessian, probes

# (torch's shape, permutation from torch's to JAX's layout)
TENSORS = {
    "bias": ((4,), (0,)),
    "conv1": ((2, 3, 3), (2, 1, 0)),
    "conv2": ((3, 2, 2, 3), (2, 3, 1, 0)),
    "conv3": ((2, 1, 2, 1, 3), (2, 3, 4, 1, 0)),
    "dense": ((4, 5), (1, 0)),
    "scale": ((), ()),
}
NUMEL = sum(int(np.prod(shape)) for shape, _ in TENSORS.values())
OPTIONS = [
    {},
    {"block_size": "row", "weight_decay": 0.1, "hessian_power": 0.5},
    {"block_size": None, "update_interval": 3, "betas": (0.0, 0.9)},
    {"block_size": 4, "averaging": "signed", "num_samples": 2},
    {"block_size": "kernel", "averaging": "abs", "num_samples": 3, "update_interval": 2},
    {"block_size": "row", "averaging": "signed", "hessian_power": 0.0, "eps": 0.1},
    {"update_clip": 0.5, "weight_decay": 0.1},
]


def problem(dtype):
    """Return start values in torch's layout and the data of mean((tanh(A θ) − y)²)."""
    rng = np.random.default_rng(0)
    start = {k: rng.normal(size=shape).astype(dtype) for k, (shape, _) in TENSORS.items()}
    matrix = (rng.normal(size=(20, NUMEL)) / 8).astype(dtype)
    return start, matrix, rng.normal(size=20).astype(dtype)


def run_jax(options, dtype, steps):
    """Return the parameters and averages after each step, in torch's layout."""
    start, matrix, target = problem(dtype)
    params = {k: jnp.asarray(v.transpose(TENSORS[k][1])) for k, v in start.items()}
    to_torch = {k: tuple(np.argsort(order)) for k, (_, order) in TENSORS.items()}

    def loss(p):
        theta = jnp.concatenate([p[k].transpose(to_torch[k]).ravel() for k in TENSORS])
        return jnp.mean((jnp.tanh(matrix @ theta) - target) ** 2)

    options = dict(options)
    num_samples = options.pop("num_samples", 1)
    b1, b2 = options.pop("betas", (0.9, 0.999))
    tx = adahessian_jax.adahessian(0.15, b1, b2, **options)
    opt_state = tx.init(params)

    @jax.jit
    def step(params, opt_state, i):
        _, grads, hessian = adahessian_jax.value_grad_and_hessian(
            loss,
            (params,),
            7,
            step=i,
            num_samples=num_samples,
            keep_samples=True,
            refresh=adahessian_jax.needs_hessian(opt_state),
        )
        updates, opt_state = tx.update(grads, opt_state, params, hessian=hessian)
        return optax.apply_updates(params, updates), opt_state

    history = []
    for i in range(steps):
        params, opt_state = step(params, opt_state, i)
        state = opt_state[0]
        trees = (params, state.exp_avg, state.exp_hessian_diag_sq)
        history.append(
            [{k: np.asarray(tree[k].transpose(to_torch[k])) for k in TENSORS} for tree in trees]
        )
        assert int(state.step) == i + 1
    return history, int(state.num_refreshes)


def run_torch(options, dtype, steps, monkeypatch):
    """Return the same of torch's optimizer with JAX's probes, brought to torch's layout."""
    start, matrix, target = problem(dtype)
    params = {k: torch.tensor(v, requires_grad=True) for k, v in start.items()}
    matrix, target = torch.tensor(matrix), torch.tensor(target)

    def probes_of_jax(tensors, *, seed, step, sample=0, tensor_indices=None):
        in_jax = {k: jnp.zeros([shape[i] for i in order]) for k, (shape, order) in TENSORS.items()}
        z = adahessian_jax.rademacher_like(in_jax, seed=seed, step=step, sample=sample)
        return [
            torch.tensor(np.asarray(z[k].transpose(tuple(np.argsort(order))))).to(target.dtype)
            for k, (_, order) in TENSORS.items()
        ]

    monkeypatch.setattr(probes, "rademacher_like", probes_of_jax)
    optimizer = AdaHessian(params.values(), lr=0.15, seed=7, **options)

    def closure():
        optimizer.zero_grad()
        theta = torch.cat([p.reshape(-1) for p in params.values()])
        loss = ((torch.tanh(matrix @ theta) - target) ** 2).mean()
        loss.backward(create_graph=optimizer.needs_graph)
        return loss

    history = []
    for _ in range(steps):
        optimizer.step(closure)
        state = {k: optimizer.state[p] for k, p in params.items()}
        history.append(
            [
                {k: p.detach().clone().numpy() for k, p in params.items()},
                {k: s["exp_avg"].clone().numpy() for k, s in state.items()},
                {k: s["exp_hessian_diag_sq"].clone().numpy() for k, s in state.items()},
            ]
        )
    return history, int(state["bias"]["num_refreshes"])


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_parameters_and_state_step_by_step(options, dtype, monkeypatch):
    steps = 7
    if dtype == "float32":
        # Small denominators amplify rounding from step to step, until nothing is left to compare.
        options = {"eps": 0.1, **options}
    with jax.enable_x64(dtype == "float64"):
        ours, our_refreshes = run_jax(options, dtype, steps)
    with jax.enable_x64(False):
        theirs, their_refreshes = run_torch(options, dtype, steps, monkeypatch)
    assert our_refreshes == their_refreshes
    # Where signs cancel, the rounding is relative to what cancelled.
    rtol, atol = (1e-9, 1e-12) if dtype == "float64" else (1e-4, 1e-5)
    for step, (our_trees, their_trees) in enumerate(zip(ours, theirs, strict=True)):
        for our, their in zip(our_trees, their_trees, strict=True):
            largest = max(np.abs(array).max() for array in their.values())
            for key in TENSORS:
                assert our[key].dtype == their[key].dtype == dtype
                np.testing.assert_allclose(
                    our[key], their[key], rtol, atol * largest, err_msg=f"{key}, step {step}"
                )


def test_same_seed_means_the_same_training():
    """With vectors alone there is no layout to translate: nothing is injected here."""
    start = np.linspace(-1, 1, 12).astype(np.float32)
    matrix = np.random.default_rng(1).normal(size=(12, 12)).astype(np.float32)
    parts = [
        torch.tensor(start[:5], requires_grad=True),
        torch.tensor(start[5:], requires_grad=True),
    ]
    optimizer = AdaHessian(parts, lr=0.05, seed=2**50 + 1, num_samples=2)

    def closure():
        optimizer.zero_grad()
        loss = torch.tanh(torch.tensor(matrix) @ torch.cat(parts)).square().mean()
        loss.backward(create_graph=True)
        return loss

    params = [jnp.asarray(start[:5]), jnp.asarray(start[5:])]
    tx = adahessian_jax.adahessian(0.05)
    opt_state = tx.init(params)

    @jax.jit
    def step(params, opt_state, i):
        _, grads, hessian = adahessian_jax.value_grad_and_hessian(
            lambda p: jnp.mean(jnp.tanh(matrix @ jnp.concatenate(p)) ** 2),
            (params,),
            2**50 + 1,
            step=i,
            num_samples=2,
            keep_samples=True,
        )
        updates, opt_state = tx.update(grads, opt_state, params, hessian=hessian)
        return optax.apply_updates(params, updates), opt_state

    for i in range(10):
        optimizer.step(closure)
        params, opt_state = step(params, opt_state, i)
    for ours, theirs in zip(params, parts, strict=True):
        np.testing.assert_allclose(ours, theirs.detach().numpy(), rtol=1e-4, atol=1e-5)
