"""Products with the Hessian, and the convergence of the diagonal's estimate to the truth."""

import pytest
import torch
from support.problems import conv_problem, coupled_quadratic
from support.reference import dense_hessian

from adahessian import probes
from adahessian.curvature.double_backward import double_backward
from adahessian.curvature.hutchinson import Probes, hutchinson_samples


def grads_and_leaves(loss, params):
    params = [p.detach().clone().requires_grad_() for p in params]
    value = loss(*params)
    return torch.autograd.grad(value, params, create_graph=True, materialize_grads=True), params


def flat(tensors):
    return torch.cat([t.reshape(-1) for t in tensors])


def test_double_backward_is_the_dense_product():
    params, loss = conv_problem()
    hessian = dense_hessian(loss, params)
    grads, params = grads_and_leaves(loss, params)
    for _ in range(3):
        v = [torch.randn_like(p) for p in params]
        product = double_backward(grads, params, v, retain_graph=True)
        torch.testing.assert_close(flat(product), hessian @ flat(v), rtol=1e-10, atol=1e-12)
        assert not any(hv.requires_grad for hv in product)


def test_parameters_without_curvature_get_zeros():
    a, b, c = (torch.ones(2, dtype=torch.float64) for _ in range(3))
    grads, params = grads_and_leaves(lambda a, b, c: (a**3).sum() + 2 * b.sum(), [a, b, c])
    product = double_backward(grads, params, [torch.ones(2, dtype=torch.float64)] * 3)
    assert product[0].tolist() == [6.0, 6.0]
    assert product[1].tolist() == product[2].tolist() == [0.0, 0.0]


def estimate(hessian, loss, num_samples):
    n = len(hessian) // 2
    zeros = [torch.zeros(n, dtype=torch.float64) for _ in range(2)]
    grads, params = grads_and_leaves(loss, zeros)

    def product(z):
        products = double_backward(grads, params, list(z.values()), retain_graph=True)
        return dict(zip(params, products, strict=True))

    samples = hutchinson_samples(product, Probes(params, seed=1, step=0, num_samples=num_samples))
    return torch.stack([flat(s.values()) for s in samples])


def standard_errors(samples, hessian):
    """Return each element's distance from the true diagonal in standard errors, from the theory:
    one sample's variance is the sum of the squared off-diagonal row."""
    variance = (hessian**2).sum(dim=1) - hessian.diagonal() ** 2
    return (samples.mean(dim=0) - hessian.diagonal()).abs() / (variance / len(samples)).sqrt()


def test_estimate_converges_to_the_dense_diagonal():
    hessian, loss = coupled_quadratic()
    samples = estimate(hessian, loss, 4000)
    assert standard_errors(samples, hessian).max() < 4
    # The theory's variance too, to the precision that 4000 samples allow.
    variance = (hessian**2).sum(dim=1) - hessian.diagonal() ** 2
    torch.testing.assert_close(samples.var(dim=0), variance, rtol=0.15, atol=0)


def one_probe_for_all(tensors, *, seed, step, sample=0, tensor_indices=None):
    indices = [0] * len(tensors)
    return RADEMACHER(tensors, seed=seed, step=step, sample=sample, tensor_indices=indices)


def constant_probe(tensors, **_):
    return [-torch.ones_like(t) for t in tensors]


RADEMACHER = probes.rademacher_like


@pytest.mark.parametrize("broken", [one_probe_for_all, constant_probe])
def test_the_convergence_test_catches_broken_probes(broken, monkeypatch):
    """Regression: AdaHessianJax draws one probe for tensors of one shape; KOZ's is always −1."""
    monkeypatch.setattr(probes, "rademacher_like", broken)
    hessian, loss = coupled_quadratic()
    samples = estimate(hessian, loss, 4000)
    assert standard_errors(samples, hessian).max() > 10
