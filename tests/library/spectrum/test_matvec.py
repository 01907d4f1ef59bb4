"""Products with a model's Hessian and Gauss-Newton matrix, against dense ones by torch.func."""

import copy
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from support import spectrum_process
from support.patience import PATIENCE
from support.spectrum_problems import CURVATURES, batches, data, loss_of, network, trainable
from torch import nn
from torch.nn import functional as F

from adahessian import spectrum
from adahessian.spectrum import GaussNewton, Hessian, layers

TESTS = Path(__file__).parents[2]
# Of forward derivatives: a DeprecationWarning in torch 2.11, a FutureWarning in later ones.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")


class PlainBatchNorm(nn.Module):
    """The formula, for torch.func: torch 2.15's transforms of the kernel's backward pass in
    training mode are wrong (their Hessian is not symmetric; pytorch issue 196699 is akin)."""

    def __init__(self, other):
        super().__init__()
        self.weight, self.bias, self.eps = other.weight, other.bias, other.eps

    def forward(self, x):
        mean = x.mean((0, 2, 3), keepdim=True)
        variance = ((x - mean) ** 2).mean((0, 2, 3), keepdim=True)
        normal = (x - mean) / (variance + self.eps).sqrt()
        return normal * self.weight[:, None, None] + self.bias[:, None, None]


def dense(model, function, params):
    """Return the Hessian of a function of (model as a function, its parameters) by torch.func."""
    names = {p: name for name, p in model.named_parameters()}
    model = copy.deepcopy(model)
    if model.training:
        model.bn = PlainBatchNorm(model.bn)
    shapes = [p.shape for p in params]
    flat = torch.cat([p.detach().reshape(-1) for p in params])

    def call(vector, *inputs):
        parts = vector.split([s.numel() for s in shapes])
        values = {names[p]: v.view(s) for p, v, s in zip(params, parts, shapes, strict=True)}
        return torch.func.functional_call(model, values, inputs)

    return function(call, flat)


def dense_hessian(model, all_batches, params):
    total = sum(len(y) for _, y in all_batches)

    def loss(call, vector):
        losses = [F.cross_entropy(call(vector, x), y) * len(y) for x, y in all_batches]
        return sum(losses) / total

    return dense(
        model, lambda call, flat: torch.func.hessian(lambda v: loss(call, v))(flat), params
    )


def columns(operator):
    identity = torch.eye(operator.size, dtype=operator.dtype)
    return torch.stack([operator(row) for row in identity])


# --- the matrix -----------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("curvature", CURVATURES)
def test_products_over_a_loader_are_those_of_the_dense_hessian(curvature, training):
    """Batches of unequal length: the mean over images, not over batches."""
    model = network().train(training)
    all_batches = batches(12, 5, 7)
    operator = Hessian(loss_of(model), model, all_batches, curvature=curvature)
    truth = dense_hessian(model, all_batches, operator.params)
    tolerance = {"double_backward": 1e-10, "finite_difference": 1e-4}[curvature]
    torch.testing.assert_close(
        columns(operator), truth, rtol=0, atol=tolerance * float(truth.abs().max())
    )
    (index,) = (i for i, p in enumerate(operator.params) if p is model.unused)
    unused = operator.split(operator(torch.ones(operator.size, dtype=torch.float64)))[index]
    assert unused.tolist() == [0, 0]


@pytest.mark.parametrize("keep_batches", [0, 1, 2, 9])
@pytest.mark.parametrize("curvature", CURVATURES)
def test_kept_or_evaluated_anew_the_products_are_the_same(curvature, keep_batches):
    model = network(dropout=0.5)
    torch.manual_seed(7)
    operator = Hessian(loss_of(model), model, batches(8, 8, 8), curvature=curvature,
                       keep_batches=keep_batches)  # fmt: skip
    torch.manual_seed(7)
    reference = Hessian(loss_of(model), model, batches(8, 8, 8), keep_batches=9)
    tolerance = {"double_backward": 1e-12, "finite_difference": 1e-4}[curvature]
    for i in range(3):
        v = torch.randn(operator.size, generator=torch.Generator().manual_seed(i)).double()
        torch.manual_seed(7)  # only the first product depends on it
        expected = reference(v)
        torch.manual_seed(7 + i)
        scale = float(expected.abs().max())
        torch.testing.assert_close(operator(v), expected, rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize("curvature", CURVATURES)
def test_gauss_newton_is_jacobian_hessian_jacobian(curvature):
    model = network().train()
    all_batches = batches(12, 7)
    operator = GaussNewton(
        lambda b: model(b[0]), lambda out, b: F.cross_entropy(out, b[1]), model, all_batches,
        curvature=curvature,
    )  # fmt: skip
    truth = torch.zeros(operator.size, operator.size, dtype=torch.float64)
    for x, y in all_batches:

        def products(call, flat, x=x, y=y):
            outputs = call(flat, x)
            jacobian = torch.func.jacrev(lambda v: call(v, x))(flat).flatten(0, 1)
            curved = torch.func.hessian(lambda o: F.cross_entropy(o, y))(outputs)
            curved = curved.view(outputs.numel(), outputs.numel())
            return jacobian.T @ curved @ jacobian

        truth += dense(model, products, operator.params) * len(y) / 19
    tolerance = {"double_backward": 1e-10, "finite_difference": 1e-5}[curvature]
    found = columns(operator)
    torch.testing.assert_close(found, truth, rtol=0, atol=tolerance * float(truth.abs().max()))
    assert float(torch.linalg.eigvalsh((found + found.T) / 2)[0]) > -1e-5


def test_layers_are_the_diagonal_blocks():
    model, all_batches = network(), batches(24)
    truth = dense_hessian(model, all_batches, trainable(model))
    found = layers(model)
    assert list(found) == ["", "conv", "bn", "out"] and found[""] == [model.unused]
    order = {p: i for i, p in enumerate(trainable(model))}
    starts = torch.tensor([0] + [p.numel() for p in trainable(model)]).cumsum(0)
    for params in found.values():
        rows = torch.cat([torch.arange(starts[order[p]], starts[order[p] + 1]) for p in params])
        if params == [model.unused]:
            continue
        block = Hessian(loss_of(model), params, all_batches)
        torch.testing.assert_close(columns(block), truth[rows][:, rows], rtol=0, atol=1e-11)


def test_shared_parameters_count_once():
    first, second = nn.Linear(3, 3), nn.Linear(3, 3)
    second.weight = first.weight
    model = nn.Sequential(first, nn.Tanh(), second)
    assert {name: len(params) for name, params in layers(model).items()} == {"0": 2, "2": 1}
    x = torch.randn(5, 3)
    operator = Hessian(lambda: model(x).square().mean(), [first.weight, second.weight, first.bias])
    assert operator.size == 12 and len(operator.params) == 2
    found = columns(operator)
    torch.testing.assert_close(found, found.T, rtol=1e-4, atol=1e-6)


def test_results_through_the_library():
    """From model to answer: eigenvalues, trace and diagonal of the dense Hessian."""
    model, all_batches = network(), batches(16, 8)
    truth = dense_hessian(model, all_batches, trainable(model))
    operator = Hessian(loss_of(model), model, all_batches)
    values = torch.linalg.eigvalsh(truth).cpu()
    top = spectrum.top_eigenvalues(operator, 3, tolerance=1e-6, on_host=True)
    torch.testing.assert_close(top.eigenvalues, values.flip(0)[:3], rtol=1e-8, atol=0)
    smallest = spectrum.smallest_eigenvalues(operator, 2, tolerance=1e-6)
    torch.testing.assert_close(smallest.eigenvalues, values[:2], rtol=1e-8, atol=0)
    assert smallest.eigenvalues[0] < 0
    estimate = spectrum.trace(operator, 60)
    assert abs(estimate.value - float(truth.trace())) < 4 * estimate.standard_error
    diagonal = spectrum.diagonal(operator, 400)
    deviations = (diagonal.value - truth.diagonal()).abs() / diagonal.standard_error.clamp(1e-12)
    assert deviations.max() < 5
    sizes = [sum(p.numel() for p in params) for params in ([p] for p in operator.params)]
    assert len(spectrum.block_traces(operator, sizes, 4)) == len(sizes)


def test_finite_differences_find_the_top_eigenvalues_in_single_precision():
    model, (x, y) = network().float().train(), data()
    batch = [(x.float(), y)]
    exact = Hessian(loss_of(model), model, batch)
    approximate = Hessian(loss_of(model), model, batch, curvature="finite_difference")
    assert exact.exact and not approximate.exact
    truth = spectrum.top_eigenvalues(exact, 3, tolerance=1e-4).eigenvalues
    found = spectrum.top_eigenvalues(approximate, 3)
    assert found.converged.all()
    torch.testing.assert_close(found.eigenvalues, truth, rtol=1e-2, atol=0)


@pytest.mark.parametrize("curvature", CURVATURES)
def test_the_scale_of_the_vector_is_no_matter(curvature):
    """Regression: hessian-eigenthings steps by eps·v, whatever the size of v."""
    model = network()
    operator = Hessian(loss_of(model), model, batches(8), curvature=curvature)
    v = torch.randn(operator.size, generator=torch.Generator().manual_seed(0)).double()
    product = operator(v)
    for scale in (1e-20, 1e20):
        torch.testing.assert_close(operator(scale * v) / scale, product, rtol=1e-3, atol=1e-6)
    assert not operator(torch.zeros_like(v)).any()


def test_vectors_that_leave_tensors_out_are_no_lost_steps():
    """Regression for composing FiniteDifference.product: it demands a step in every tensor."""
    model = network().float()
    operator = Hessian(lambda b: F.cross_entropy(model(b[0].float()), b[1]), model, batches(8),
                       curvature="finite_difference")  # fmt: skip
    v = torch.zeros(operator.size)
    v[3] = 1
    assert torch.isfinite(operator(v)).all()


@pytest.mark.parametrize("curvature", CURVATURES)
def test_an_empty_parameter_has_no_rows(curvature):
    model = network()
    params = [p for p in model.parameters() if p.requires_grad]
    empty = nn.Parameter(torch.zeros(0, 3, dtype=torch.float64))
    v = torch.randn(sum(p.numel() for p in params), dtype=torch.float64)
    found, expected = (
        Hessian(loss_of(model), p, batches(8), curvature=curvature)(v)
        for p in ([empty, *params], params)
    )
    assert torch.equal(found, expected)


# --- others ---------------------------------------------------------------------------------------


@pytest.mark.cpu_only(reason="its processes talk through gloo")
def test_two_processes_share_the_batches(tmp_path):
    processes = [
        subprocess.Popen(
            [sys.executable, TESTS / "support/spectrum_process.py", str(rank), "2",
             tmp_path / "store", tmp_path],
            env={"PYTHONPATH": f"{TESTS.parent}:{TESTS}", "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    outputs = [p.communicate(timeout=PATIENCE)[0] for p in processes]
    assert all(p.returncode == 0 for p in processes), "\n".join(outputs)
    results = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    model, all_batches = spectrum_process.problem()
    alone = Hessian(spectrum_process.loss_of(model), model, all_batches)
    v = torch.linspace(-1, 1, alone.size, dtype=torch.float64)
    for result in results:
        torch.testing.assert_close(result["double_backward"], alone(v), rtol=0, atol=1e-12)
        torch.testing.assert_close(result["finite_difference"], alone(v), rtol=1e-3, atol=1e-6)
        values = spectrum.top_eigenvalues(alone, 2, tolerance=1e-6).eigenvalues
        torch.testing.assert_close(result["eigenvalues"], values, rtol=1e-8, atol=0)


def test_curvlinops_agrees():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it uses torch.jit.script, which is deprecated
        curvlinops = pytest.importorskip(
            "curvlinops", reason="an oracle: pip install curvlinops-for-pytorch (extra [oracle])"
        )
    model = network().eval()
    del model.unused, model.frozen  # it wants parameters that the loss depends on
    model.frozen = 1.0
    all_batches = batches(12, 12)
    params = list(model.parameters())
    theirs = curvlinops.HessianLinearOperator(model, nn.CrossEntropyLoss(), params, all_batches)
    ours = Hessian(loss_of(model), params, all_batches)
    ggn = curvlinops.GGNLinearOperator(model, nn.CrossEntropyLoss(), params, all_batches)
    gauss_newton = GaussNewton(
        lambda b: model(b[0]), lambda out, b: F.cross_entropy(out, b[1]), params, all_batches
    )
    v = torch.randn(ours.size).double()
    torch.testing.assert_close(ours(v), theirs @ v, rtol=0, atol=1e-10)
    torch.testing.assert_close(gauss_newton(v), ggn @ v, rtol=0, atol=1e-10)
