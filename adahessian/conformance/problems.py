"""The cases' losses, in the functions that torch, jax.numpy and TensorFlow's numpy have in common.

For ports that take the derivatives themselves; docs/conformance.md has the formulas.
"""

from typing import Any

# The order into which every layout is brought: torch's.
_ORDER = ("out", "in", "kernel")


def num_batches(problem: dict[str, Any]) -> int:
    """Return how many micro-batches one step consists of."""
    return len(problem.get("batches", [None]))


def is_of_another_rule(case: dict[str, Any]) -> bool:
    """Whether a case asks for another average of the curvature, or another correction of it."""
    rule = {"second_moment": "rms", "bias_correction": "refreshes"}
    return any(case["options"].get(name, usual) != usual for name, usual in rule.items())


def loss(case: dict[str, Any], params: list[Any], batch: int, xp: Any, **options: Any) -> Any:
    """Return the part of the loss that a micro-batch contributes; the parts add up.

    Args:
        case: one of :func:`adahessian.conformance.cases`.
        params: arrays in the case's layouts.
        batch: the number of the micro-batch.
        xp: torch, jax.numpy or tensorflow.experimental.numpy.
        options: of ``xp.asarray``, the dtype.
    """
    problem = case["problem"]
    data = {
        key: xp.asarray(value, **options)
        for key, value in problem.items()
        if key not in ("kind", "batches")
    }
    if problem["kind"] == "quadratic":
        theta = _joined(params, xp)
        product = xp.matmul(data["matrix"], theta)
        return xp.matmul(theta, product) / 2 + xp.matmul(data["vector"], theta)
    if problem["kind"] == "polynomial":
        theta = _joined(params, xp)
        each = data["b"] * theta + data["a"] * theta**2 / 2 + data["c"] * theta**4 / 4
        return xp.sum(each) + xp.matmul(data["u"], theta) ** 2 / 2
    start, stop = problem["batches"][batch]
    outputs = {"network": _network, "convolution": _convolution}[problem["kind"]]
    axes = [param["axes"] for param in case["params"]]
    params = [_canonical(p, names, xp) for p, names in zip(params, axes, strict=True)]
    errors = outputs(params, data["inputs"][start:stop], xp) - data["targets"][start:stop]
    return xp.sum(errors**2) / (2 * len(problem["targets"]))


def _joined(params: list[Any], xp: Any) -> Any:
    return xp.concatenate([xp.reshape(p, (-1,)) for p in params])


def _canonical(param: Any, axes: list[str], xp: Any) -> Any:
    order = sorted(range(len(axes)), key=lambda axis: _ORDER.index(axes[axis]))
    return xp.moveaxis(param, tuple(order), tuple(range(len(axes))))


def _network(params: list[Any], inputs: Any, xp: Any) -> Any:
    weight1, bias1, weight2, bias2 = params
    hidden = xp.tanh(xp.einsum("ni,oi->no", inputs, weight1) + bias1)
    return xp.einsum("ni,oi->no", hidden, weight2) + bias2


def _convolution(params: list[Any], images: Any, xp: Any) -> Any:
    kernels, biases, readout, constant = params
    height, width = (images.shape[i] - kernels.shape[i] + 1 for i in (2, 3))
    activations = biases[:, None, None]
    for row in range(kernels.shape[2]):
        for column in range(kernels.shape[3]):
            window = images[:, :, row : row + height, column : column + width]
            tap = kernels[:, :, row, column]
            activations = activations + xp.einsum("ncij,oc->noij", window, tap)
    return xp.matmul(xp.mean(xp.tanh(activations), axis=(2, 3)), readout) + constant
