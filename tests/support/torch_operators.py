"""torch's own registry of operators, and the product with the Hessian through each of them."""

import itertools
import warnings
from typing import NamedTuple

import torch
from support.device import device
from support.torch_test_suite import common_methods_invocations
from torch.utils import _pytree as pytree

from adahessian.curvature.finite_difference import FiniteDifference
from adahessian.curvature.second_derivatives import SecondDerivatives

op_db = common_methods_invocations.op_db
H = 1e-7
# At the samples themselves, and where pieces meet.
PLACES = {
    "sample": lambda x: x,
    "halves": lambda x: (2 * x).round() / 2,
    "integers": torch.round,
    "zeros": torch.zeros_like,
}
LARGEST = 3000  # elements in a sample


def name_of(op):
    return f"{op.name}.{op.variant_test_name}" if op.variant_test_name else op.name


def differentiable():
    """Return the operators with a derivative in float64 on a CPU, by name."""
    return {
        name_of(op): op
        for op in op_db
        if op.supports_autograd and torch.float64 in op.supported_dtypes("cpu")
    }


def samples_of(op, number):
    """Return some of an operator's samples, spread over all of them."""
    found = itertools.islice(op.sample_inputs(device(), torch.float64, requires_grad=True), 400)
    small = [s for s in found if sum(t.numel() for t in _tensors(s)) < LARGEST]
    return small[:: max(1, len(small) // number)][:number]


class Comparison(NamedTuple):
    """Errors relative to curvature and gradient together; NaN where there is nothing to compare."""

    finite_difference: float  # against double backward
    double_backward: float  # against a difference of gradients, nothing frozen
    frozen: bool  # the finite difference came through pieces
    refused: str  # what it warned of


def compare(op, sample, place):
    """Compare the ways to H·z of a curved function of an operator's outputs.

    Returns:
        None where the operator has no value, no gradient or no second derivative there.
    """
    leaves, spec = pytree.tree_flatten((sample.input, sample.args, sample.kwargs))
    where = [i for i, t in enumerate(leaves) if torch.is_tensor(t) and _is_parameter(t)]
    if not where:
        return None
    params = [PLACES[place](leaves[i].detach()).clone().requires_grad_() for i in where]

    def loss():
        given = list(leaves)
        for i, p in zip(where, params, strict=True):
            given[i] = p * 1.0
        first, args, kwargs = pytree.tree_unflatten(given, spec)
        torch.manual_seed(0)
        return _curved(op.gradcheck_wrapper(op.op, first, *args, **kwargs))

    try:
        grads, z, exact = _exact(loss, params)
    except (RuntimeError, ValueError, IndexError, NotImplementedError):
        return None  # out of its domain
    if exact is None:
        return None

    def closure():
        for p in params:
            p.grad = None
        value = loss()
        value.backward()
        return value

    size = _norm(exact) + _norm(grads) + 1e-2
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        difference = FiniteDifference(closure, params, check=True, step_size=H)
        difference.evaluate()
        used = {p: v for p, v in zip(params, z, strict=True) if p.grad is not None}
        product = difference.product(used)
    # The closure's own gradient is not to be another one: among equal elements, say.
    deviation = _norm([p.grad - g for p, g in zip(params, grads, strict=True) if p in product])
    found = [product.get(p, torch.zeros_like(p)) for p in params]
    plain = _plain_difference(loss, params, z)
    refused = [str(w.message) for w in caught if "cannot freeze" in str(w.message)]
    return Comparison(
        (_norm([a - b for a, b in zip(found, exact, strict=True)]) + deviation) / size,
        _norm([a - b for a, b in zip(plain, exact, strict=True)]) / size,
        difference.replay.met_pieces,
        refused[0] if refused else "",
    )


def _exact(loss, params):
    """Return gradient, probe and H·z by double backward; None for the last where it is none."""
    with SecondDerivatives():
        value = loss()
    if not torch.is_tensor(value) or not value.requires_grad or not value.isfinite():
        return None, None, None
    generator = torch.Generator().manual_seed(1)
    z = [(torch.rand(p.shape, generator=generator) < 0.5).double() * 2 - 1 for p in params]
    grads = torch.autograd.grad(
        value, params, create_graph=True, allow_unused=True, materialize_grads=True
    )
    rows = [(g, v) for g, v in zip(grads, z, strict=True) if g.requires_grad]
    exact = [torch.zeros_like(p) for p in params]
    if rows:
        exact = torch.autograd.grad(
            [g for g, _ in rows], params, [v for _, v in rows], allow_unused=True,
            materialize_grads=True,
        )  # fmt: skip
    grads = [g.detach() for g in grads]
    if not all(bool(t.isfinite().all()) for t in (*exact, *grads)):
        return None, None, None
    return grads, z, exact


def _plain_difference(loss, params, z):
    kept = [p.detach().clone() for p in params]
    sides = []
    for step in (10 * H, -10 * H):
        with torch.no_grad():
            for p, v in zip(params, z, strict=True):
                p.add_(v, alpha=step)
        try:
            sides.append(
                torch.autograd.grad(loss(), params, allow_unused=True, materialize_grads=True)
            )
        except (RuntimeError, ValueError):  # out of its domain
            sides.append([p.detach() * torch.nan for p in params])
        finally:
            with torch.no_grad():
                for p, v in zip(params, kept, strict=True):
                    p.copy_(v)
    return [(a - b) / (20 * H) for a, b in zip(*sides, strict=True)]


def _curved(out):
    """A loss in which all outputs meet, so that none moves unseen where its gradient is zero."""
    total = meeting = 0.0
    for y in pytree.tree_leaves(out):
        if not torch.is_tensor(y) or not y.requires_grad:
            continue
        y = torch.view_as_real(y.resolve_conj()) if y.is_complex() else y
        y = y if y.layout is torch.strided else y.to_dense()
        weights = torch.linspace(0.5, 1.5, y.numel(), dtype=torch.float64).view(y.shape)
        total = total + (weights * y + 0.5 * (2 - weights) * y * y).sum()
        meeting = meeting + (weights * y).sum() / max(1, y.numel()) ** 0.5
    return total + 0.5 * meeting**2


def _is_parameter(t):
    return t.requires_grad and t.dtype == torch.float64 and t.layout is torch.strided


def _tensors(sample):
    leaves = pytree.tree_leaves((sample.input, sample.args, sample.kwargs))
    return [t for t in leaves if torch.is_tensor(t)]


def _norm(tensors):
    return sum(float(t.detach().square().sum()) for t in tensors) ** 0.5
