"""The model is left as it was, and what cannot work is refused with a clear message."""

import gc
import weakref

import numpy
import pytest
import torch
from support.spectrum_problems import CURVATURES, batches, data, loss_of, network, trainable
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from adahessian.spectrum import GaussNewton, Hessian

# --- the model is left alone ----------------------------------------------------------------------


def snapshot(model):
    return {
        "parameters": {name: p.detach().clone() for name, p in model.named_parameters()},
        "buffers": {name: b.clone() for name, b in model.named_buffers()},
        "identities": {id(t) for t in [*model.parameters(), *model.buffers()]},
        "gradients": {n: (id(p.grad), p.grad if p.grad is None else p.grad.clone())
                      for n, p in model.named_parameters()},
        "flags": {n: (m.training, len(m._forward_pre_hooks)) for n, m in model.named_modules()},
        "random": torch.get_rng_state(),
        "hooks": len(torch.nn.modules.module._global_forward_pre_hooks),
    }  # fmt: skip


def assert_same(before, after):
    assert before.keys() == after.keys()
    for key, value in before.items():
        if isinstance(value, dict):
            assert_same(value, after[key])
        elif isinstance(value, tuple):
            assert_same(dict(enumerate(value)), dict(enumerate(after[key])))
        elif isinstance(value, torch.Tensor):
            assert torch.equal(value, after[key]), key
        else:
            assert value == after[key], key


OPERATORS = {
    f"{kind} {curvature}": (kind, curvature)
    for kind in ("hessian", "gauss-newton")
    for curvature in CURVATURES
}


def make(kind, curvature, model, all_batches, forward, **options):
    if kind == "hessian":

        def loss(b):
            return F.cross_entropy(forward(b[0]), b[1])

        return Hessian(loss, model, all_batches, curvature=curvature, **options)  # fmt: skip
    return GaussNewton(lambda b: forward(b[0]), lambda out, b: F.cross_entropy(out, b[1]),
                       model, all_batches, curvature=curvature, **options)  # fmt: skip


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("case", OPERATORS.values(), ids=OPERATORS)
def test_everything_is_as_before(case, training):
    """Regression: PyHessian leaves the model in eval mode; hessian-eigenthings changes running
    statistics, and redraws dropout between its two evaluations."""
    model = network(dropout=0.3).train(training)
    model.conv.weight.grad = torch.ones_like(model.conv.weight)
    operator = make(*case, model, batches(8, 8), model)
    v = torch.randn(operator.size).double()
    before = snapshot(model)
    first = operator(v)
    assert_same(before, snapshot(model))
    for _ in range(2):
        torch.testing.assert_close(operator(v), first, rtol=1e-6, atol=1e-9)
        assert_same(before, snapshot(model))


@pytest.mark.parametrize("fails_at", [1, 2, 3, 4])
@pytest.mark.parametrize("case", OPERATORS.values(), ids=OPERATORS)
def test_everything_is_as_before_after_an_exception(case, fails_at):
    model = network(dropout=0.3).train()
    calls = []

    def forward(x):
        calls.append(1)
        h = model(x)
        if len(calls) == fails_at:
            raise KeyError("from the model")
        return h

    operator = make(*case, model, batches(8, 8), forward, keep_batches=0)
    v = torch.randn(operator.size).double()
    before = snapshot(model)
    with pytest.raises(KeyError, match="from the model"):
        operator(v)
        operator(v)
    assert_same(before, snapshot(model))
    expected = make(*case, model, batches(8, 8), model)(v)
    assert_same(before, snapshot(model))
    if fails_at == 1:  # it can be used again, as if nothing had happened
        torch.testing.assert_close(operator(v), expected, rtol=1e-6, atol=1e-9)


def test_products_by_finite_differences_spoil_no_graph():
    """Both curvatures on the same weights, in turn: moving them must not count as a change."""
    model = network()
    exact = Hessian(loss_of(model), model, batches(8))
    approximate = Hessian(loss_of(model), model, batches(8), curvature="finite_difference")
    v = torch.randn(exact.size).double()
    first = exact(v)
    approximate(v)
    assert torch.equal(exact(v), first)


@pytest.mark.parametrize("curvature", CURVATURES)
def test_compiled_models_and_callers_without_gradients(curvature):
    """A compiled function has no second derivative: the operator evaluates the plain one."""
    model = network()
    compiled = torch.compile(model, backend="eager")
    operator = Hessian(loss_of(compiled), model, batches(8), curvature=curvature)
    v = torch.randn(operator.size).double()
    with torch.no_grad():
        found = operator(v)
    expected = Hessian(loss_of(model), model, batches(8), curvature=curvature)(v)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)
    assert not found.requires_grad and not expected.requires_grad


def test_the_graph_is_freed_with_the_operator():
    model = network()
    alive = []

    def loss(batch):
        out = model(batch[0])
        alive.append(weakref.ref(out))
        return F.cross_entropy(out, batch[1])

    gc.disable()
    try:
        operator = Hessian(loss, model, batches(8))
        operator(torch.randn(operator.size).double())
        del operator
        assert alive[0]() is None
    finally:
        gc.enable()


# --- what is refused ------------------------------------------------------------------------------


def test_changed_parameters_are_noticed():
    model = network()
    operator = Hessian(loss_of(model), model, batches(8))
    v = torch.ones(operator.size, dtype=torch.float64)
    operator(v)
    with torch.no_grad():
        model.conv.weight.add_(0.1)
    with pytest.raises(RuntimeError, match="parameters have changed .* make a new Hessian"):
        operator(v)


@pytest.mark.parametrize("curvature", CURVATURES)
def test_a_loader_that_shuffles(curvature):
    """By torch's own generator it gives the same order each time; by another one it is refused."""
    model, dataset = network(), TensorDataset(*data())
    operator = Hessian(
        loss_of(model), model, DataLoader(dataset, 8, shuffle=True), curvature=curvature
    )
    v = torch.ones(operator.size, dtype=torch.float64)
    torch.testing.assert_close(operator(v), operator(v), rtol=1e-6, atol=1e-9)
    loader = DataLoader(dataset, 8, shuffle=True, generator=torch.Generator())
    operator = Hessian(loss_of(model), model, loader, curvature=curvature)
    operator(v)
    with pytest.raises(RuntimeError, match="not those of the first product: the loss of batch"):
        operator(v)


def test_batches_that_come_or_go():
    model, all_batches = network(), batches(8, 8, 8)
    operator = Hessian(loss_of(model), model, all_batches)
    v = torch.ones(operator.size, dtype=torch.float64)
    operator(v)
    for changed, message in ((all_batches + all_batches[:1], "more"), (all_batches[:2], "2")):
        operator._batches = changed
        with pytest.raises(RuntimeError, match=f"there are {message}, not 3"):
            operator(v)


def test_random_numbers_from_elsewhere_are_refused():
    model, noise = network(), numpy.random.default_rng(0)

    def loss(batch):
        x = batch[0] + torch.from_numpy(noise.standard_normal(batch[0].shape))
        return F.cross_entropy(model(x), batch[1])

    operator = Hessian(loss, model, batches(8), curvature="finite_difference")
    with pytest.raises(RuntimeError, match="second evaluation of the closure"):
        operator(torch.ones(operator.size, dtype=torch.float64))
    operator = Hessian(loss, model, batches(8), keep_batches=0)
    v = torch.ones(operator.size, dtype=torch.float64)
    operator(v)
    with pytest.raises(RuntimeError, match="the loss must be repeatable"):
        operator(v)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, b: Hessian(loss_of(m), [m.frozen], b), "no tensor that requires a gradient"),
        (lambda m, b: Hessian(loss_of(m), m, b, curvature="exact"), "got 'exact'"),
        (lambda m, b: Hessian(loss_of(m), m, iter(b)), "batches is an iterator"),
        (lambda m, b: Hessian(loss_of(m), m, b, keep_batches=-1), "got -1"),
        (lambda m, b: Hessian(loss_of(m), m, [])(ones(m)), "weights add up to 0"),
        (lambda m, b: Hessian(loss_of(m), m, b)(ones(m)[1:]), "expected a vector of shape"),
        (lambda m, b: Hessian(lambda _: m(b[0][0]), m, b)(ones(m)), "scalar, got shape \\(8, 4\\)"),
        (lambda m, b: Hessian(lambda _: 1.0, m, b)(ones(m)), "the loss must be a tensor"),
        (lambda m, b: Hessian(lambda _: torch.ones(()), m, b)(ones(m)), "has no gradient"),
        (lambda m, b: Hessian(lambda _: m.unused.sum(), m, ["text"])(ones(m)), "pass weight="),
    ],
)
def test_bad_input(call, message):
    model = network()
    with pytest.raises(ValueError, match=message):
        call(model, batches(8))


@pytest.mark.parametrize("curvature", CURVATURES)
def test_kinds_of_parameters_that_do_not_fit(curvature):
    complex_one = torch.ones(2, dtype=torch.cfloat, requires_grad=True)
    with pytest.raises(ValueError, match=r"shape \(2,\) is torch.complex64"):
        Hessian(lambda: complex_one.abs().sum(), [complex_one], curvature=curvature)
    embedding = torch.nn.Embedding(5, 2, sparse=True)
    operator = Hessian(
        lambda: embedding(torch.tensor([1])).pow(3).sum(), embedding, curvature=curvature
    )
    with pytest.raises(ValueError, match="sparse=False"):
        operator(torch.ones(10))


def ones(model):
    return torch.ones(sum(p.numel() for p in trainable(model)), dtype=torch.float64)
