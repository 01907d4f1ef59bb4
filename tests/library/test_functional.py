"""value_grad_and_hessian over functions of any pytree."""

import pytest
import torch
from support.problems import conv_problem, coupled_quadratic
from support.reference import dense_hessian

from adahessian import grad_and_hessian, value_grad_and_hessian


def test_value_and_gradient_are_autograds_and_the_estimate_converges():
    hessian, loss = coupled_quadratic()
    point = {"a": torch.ones(6, dtype=torch.float64), "b": [torch.zeros(6, dtype=torch.float64)]}

    def fun(scale, p):
        return scale * loss(p["a"], p["b"][0])

    generator = torch.Generator().manual_seed(3)
    value, grad, diagonal = value_grad_and_hessian(
        fun, (2.0, point), generator, argnum=1, num_samples=3000
    )
    x = torch.cat([point["a"], point["b"][0]])
    torch.testing.assert_close(value, x @ hessian @ x)
    torch.testing.assert_close(torch.cat([grad["a"], grad["b"][0]]), 2 * hessian @ x)
    estimate = torch.cat([diagonal["a"], diagonal["b"][0]])
    variance = 4 * ((hessian**2).sum(dim=1) - hessian.diagonal() ** 2)
    errors = (estimate - 2 * hessian.diagonal()).abs() / (variance / 3000).sqrt()
    assert errors.max() < 4
    for tensor in (value, grad["a"], diagonal["b"][0]):
        assert not tensor.requires_grad


def test_one_sample_is_z_times_hz():
    params, loss = conv_problem()
    hessian = dense_hessian(loss, params)
    generator = torch.Generator().manual_seed(5)
    seed = int(torch.randint(2**63 - 1, (), generator=generator))
    from adahessian import rademacher_like

    z = torch.cat([t.reshape(-1) for t in rademacher_like(params, seed=seed, step=0)])
    _, diagonal = grad_and_hessian(lambda p: loss(*p), (params,), torch.Generator().manual_seed(5))
    result = torch.cat([d.reshape(-1) for d in diagonal])
    torch.testing.assert_close(result, z * (hessian @ z), rtol=1e-9, atol=1e-12)
    assert [d.shape for d in diagonal] == [p.shape for p in params]


def test_generator_decides_the_probe():
    _, loss = coupled_quadratic()
    point = (torch.ones(6, dtype=torch.float64), torch.ones(6, dtype=torch.float64))

    def estimate(seed):
        generator = torch.Generator().manual_seed(seed)
        return grad_and_hessian(lambda p: loss(*p), (point,), generator)[1][0]

    assert torch.equal(estimate(1), estimate(1))
    assert not torch.equal(estimate(1), estimate(2))


def test_inputs_are_left_alone():
    x = torch.ones(3, requires_grad=True)
    x.grad = torch.full((3,), 7.0)
    with torch.no_grad():  # works inside no_grad too
        value, _, diagonal = value_grad_and_hessian(lambda x: (x**3).sum(), (x,))
    assert value == 3 and diagonal.tolist() == [6.0, 6.0, 6.0]
    assert x.grad.tolist() == [7.0, 7.0, 7.0]


def test_no_dependence_and_linear_dependence_give_zeros():
    x, y, z = (torch.ones(2) for _ in range(3))
    value, grad, diagonal = value_grad_and_hessian(lambda p: 3 * p[0].sum(), ((x, y),))
    assert grad[0].tolist() == [3.0, 3.0] and grad[1].tolist() == [0.0, 0.0]
    assert diagonal[0].tolist() == diagonal[1].tolist() == [0.0, 0.0]
    value, grad, _ = value_grad_and_hessian(lambda p: torch.tensor(1.5), (z,))
    assert value == 1.5 and grad.tolist() == [0.0, 0.0]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((lambda x: x.sum(), torch.ones(2)), TypeError, "fun_input must be the tuple.*Tensor"),
        ((lambda x: x.sum(), [torch.ones(2)]), TypeError, "fun_input must be the tuple.*list"),
        ((lambda x: x, (torch.ones(2),)), ValueError, r"scalar, got shape \(2,\)"),
        ((lambda x: 1.0, (torch.ones(2),)), TypeError, "must return a tensor, got float"),
        ((lambda x: x.sum(), (torch.ones(2),), None, 1), ValueError, "argnum is 1"),
        ((lambda p: p["w"].sum(), ({"w": torch.ones(2), "n": torch.tensor(3)},)), ValueError,
         r"argument 0\['n'\] is torch.int64"),
        ((lambda p: p[0].sum(), ((torch.ones(2), "relu"),)), ValueError, r"0\[1\] is str"),
    ],
)  # fmt: skip
def test_bad_input_is_named(arguments, error, message):
    with pytest.raises(error, match=message):
        value_grad_and_hessian(*arguments)


def test_weight_norm_has_the_right_second_derivative():
    """torch's own is off by some tens of per cent."""
    torch.manual_seed(0)
    layer = torch.nn.utils.parametrizations.weight_norm(torch.nn.Linear(4, 1)).double()
    x = torch.randn(5, 4).double()
    params = {name: p.detach() for name, p in layer.named_parameters()}

    def loss(given):
        return torch.func.functional_call(layer, given, (x,)).exp().mean()

    _, _, found = value_grad_and_hessian(loss, (params,), num_samples=4000)
    for name, p in params.items():
        step, flat = 1e-4, p.reshape(-1)
        for i in range(flat.numel()):
            values = []
            for sign in (1, 0, -1):
                moved = flat.clone()
                moved[i] += sign * step
                values.append(float(loss({**params, name: moved.view_as(p)})))
            expected = (values[0] - 2 * values[1] + values[2]) / step**2
            assert float(found[name].reshape(-1)[i]) == pytest.approx(expected, rel=0.2, abs=0.1)
