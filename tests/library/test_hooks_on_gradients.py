"""Hooks of parameters change their gradient; H·z is the derivative of that, and is not changed."""

import pytest
import torch

from adahessian import AdaHessian

HESSIAN = torch.tensor([100.0, 200.0, 300.0], dtype=torch.float64)
HOOKS = {
    "idle": (lambda g: g.clamp(-10, 10), 1.0),
    "half": (lambda g: g * 0.5, 0.5),
    "looks": (lambda g: None, 1.0),
}


# Nothing is wrong, and no check says so: it looks at gradients as they come to the hooks.
@pytest.mark.parametrize("fraction", [1.0, 0.5])
@pytest.mark.parametrize("curvature", ["double_backward", "finite_difference"])
@pytest.mark.parametrize("name", HOOKS)
def test_the_product_is_the_gradients_derivative(name, curvature, fraction):
    hook, factor = HOOKS[name]
    p = torch.tensor([0.01, -0.02, 0.03], dtype=torch.float64, requires_grad=True)
    p.register_hook(hook)
    optimizer = AdaHessian([p], lr=1e-9, curvature=curvature, curvature_fraction=fraction)
    seen = []
    optimizer.register_curvature_hook(lambda _, __, samples: seen.append(samples[0].clone()))

    def loss(*_):
        return (HESSIAN * p * p).sum() / 2

    def closure():
        optimizer.zero_grad()
        value = loss()
        value.backward(create_graph=optimizer.needs_graph)
        return value

    for _ in range(2):
        optimizer.step(closure, curvature_closure=loss if fraction < 1 else None)
        torch.testing.assert_close(p.grad, HESSIAN * p.detach() * factor, rtol=1e-6, atol=1e-8)
        torch.testing.assert_close(seen[-1], HESSIAN * factor, rtol=1e-6, atol=1e-8)
