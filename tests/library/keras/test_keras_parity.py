"""`fit` does what the torch optimizer does: weights and state in float64, for each option."""

import keras
import numpy as np
import pytest
from keras import ops
from library.keras import problems

from adahessian.keras import AdaHessian as KerasAdaHessian

torch = pytest.importorskip("torch")

from adahessian import AdaHessian, probes  # noqa: E402

# (torch's shape, permutation from torch's to Keras' layout)
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
    {"block_size": None, "update_interval": 3, "beta_1": 0.0, "beta_2": 0.9},
    {"block_size": 4, "averaging": "signed", "num_samples": 2, "update_interval": 2},
    {"averaging": "abs", "num_samples": 3, "seed": 2**50 + 1},
    {"block_size": "row", "averaging": "signed", "hessian_power": 0.0, "epsilon": 0.1},
    {"global_clipnorm": 0.05, "update_interval": 2},
    {"update_clip": 0.5, "weight_decay": 0.1},
]
STEPS = 7
RATE = 0.15


class Problem(keras.layers.Layer):
    """tanh(A θ), where θ is all weights in torch's layout and order."""

    def build(self, input_shape):
        for name, (shape, order) in TENSORS.items():
            weight = self.add_weight(shape=[shape[i] for i in order], name=name)
            setattr(self, name, weight)

    def call(self, matrix):
        parts = [
            ops.reshape(ops.transpose(getattr(self, k), tuple(np.argsort(order))), (-1,))
            for k, (_, order) in TENSORS.items()
        ]
        return ops.tanh(ops.matmul(matrix, ops.concatenate(parts)))[:, None]


def problem():
    """Return start values in torch's layout and the data of mean((tanh(A θ) − y)²)."""
    rng = np.random.default_rng(0)
    start = {k: rng.normal(size=shape) for k, (shape, _) in TENSORS.items()}
    return start, rng.normal(size=(20, NUMEL)) / 8, rng.normal(size=(20, 1))


def run_keras(options):
    """Return the model after training, with its probes, both in torch's layout."""
    start, matrix, target = problem()
    model = keras.Sequential([keras.Input((NUMEL,)), Problem(name="problem")])
    for v, (k, (_, order)) in zip(model.trainable_variables, TENSORS.items(), strict=True):
        v.assign(start[k].transpose(order))
    optimizer = KerasAdaHessian(RATE, **options)
    problems.compiled(model, optimizer)
    model.fit(matrix, target, batch_size=20, epochs=STEPS, shuffle=False, verbose=0)

    def in_torch(arrays):
        orders = [np.argsort(order) for _, order in TENSORS.values()]
        return [a.transpose(tuple(o)) for a, o in zip(arrays, orders, strict=True)]

    results = [problems.weights(model)]
    results += [problems.averages(optimizer, n) for n in ("exp_avg", "exp_hessian_diag_sq")]
    return [in_torch(arrays) for arrays in results], int(optimizer._num_refreshes)


def run_torch(options, monkeypatch):
    """Return the same of torch's optimizer, with probes in Keras' order of elements."""
    start, matrix, target = problem()
    draw = probes.rademacher_like

    def in_order_of_keras(tensors, **place):
        shapes = [[shape[i] for i in order] for shape, order in TENSORS.values()]
        drawn = draw([torch.zeros(s, dtype=torch.float64) for s in shapes], **place)
        orders = [tuple(np.argsort(order)) for _, order in TENSORS.values()]
        return [z.permute(o).contiguous() for z, o in zip(drawn, orders, strict=True)]

    monkeypatch.setattr(probes, "rademacher_like", in_order_of_keras)
    params = {k: torch.tensor(v, requires_grad=True) for k, v in start.items()}
    matrix, target = torch.tensor(matrix), torch.tensor(target[:, 0])
    names = {"epsilon": "eps", "global_clipnorm": "max_grad_norm"}
    options = {names.get(k, k): v for k, v in options.items()}
    betas = options.pop("beta_1", 0.9), options.pop("beta_2", 0.999)
    optimizer = AdaHessian(params.values(), lr=RATE, betas=betas, **options)

    def closure():
        optimizer.zero_grad()
        theta = torch.cat([p.reshape(-1) for p in params.values()])
        loss = ((torch.tanh(matrix @ theta) - target) ** 2).mean()
        loss.backward(create_graph=optimizer.needs_graph)
        return loss

    for _ in range(STEPS):
        optimizer.step(closure)
    states = [optimizer.state[p] for p in params.values()]
    results = [[p.detach().numpy() for p in params.values()]]
    results += [[s[n].numpy() for s in states] for n in ("exp_avg", "exp_hessian_diag_sq")]
    return results, int(states[0]["num_refreshes"])


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_as_torch(options, float64, monkeypatch):
    ours, our_refreshes = run_keras(options)
    theirs, their_refreshes = run_torch(options, monkeypatch)
    assert our_refreshes == their_refreshes
    # torch clips to the norm by (norm + 1e-6).
    rtol = 1e-4 if "global_clipnorm" in options else 1e-10
    for our, their in zip(ours, theirs, strict=True):
        largest = max(np.abs(array).max() for array in their)
        for name, a, b in zip(TENSORS, our, their, strict=True):
            assert a.dtype == b.dtype == "float64"
            np.testing.assert_allclose(a, b, rtol, rtol * largest, err_msg=name)
