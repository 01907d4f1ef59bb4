"""Every piecewise function is frozen: the finite difference agrees with double backward.

Each case is a loss in float64 whose inputs straddle the kinks so densely that some change their
piece between the two evaluations; without gates the error is of the order of 1 (asserted too).
"""

import contextlib
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from adahessian.curvature import gates
from adahessian.curvature.constants import Storages
from adahessian.curvature.double_backward import double_backward
from adahessian.curvature.earlier import Earlier
from adahessian.curvature.finite_difference import FiniteDifference
from adahessian.curvature.second_derivatives import SecondDerivatives
from adahessian.probes import rademacher_like

H = 1e-3  # large enough that many elements cross a kink


def compare(loss, params, gates=None, step_size=H):
    """Return the largest relative error of the finite difference over the parameters."""

    def closure(create_graph=False):
        for p in params:
            p.grad = None
        torch.manual_seed(1)
        value = loss()
        value.backward(create_graph=create_graph)
        return value

    z = rademacher_like(params, seed=0, step=0)
    with SecondDerivatives():
        closure(create_graph=True)
    exact = double_backward([p.grad for p in params], params, z)
    difference = FiniteDifference(closure, params, step_size=step_size, gates=gates)
    difference.evaluate()
    product = difference.product(dict(zip(params, z, strict=True)))
    return max(
        ((product[p] - hz).norm() / hz.norm()).item() for p, hz in zip(params, exact, strict=True)
    )


class NoGates(contextlib.nullcontext):
    autocast_dtype, called, met_pieces = None, frozenset(), True
    leaves, generators, losses, dtypes = {}, {}, (), set()
    inside, written = "a gate", Storages()

    def active(self):
        return self

    def rewind(self):
        pass

    def check_complete(self):
        pass


x = torch.linspace(-8, 8, 40_001, dtype=torch.float64)


def smooth(y):
    """A curved loss with nearly equal weights, so that no element's jump goes unseen."""
    return (y**2 + 0.1 * y**3 + y).sum()


def pointwise(function, x=x):
    """A loss over (scale, shift) of a pointwise function."""
    scale = torch.tensor(1.1, dtype=torch.float64, requires_grad=True)
    shift = torch.tensor(0.05, dtype=torch.float64, requires_grad=True)
    return lambda: smooth(function(scale * x + shift)), [scale, shift]


def in_place(function):
    return lambda y: function(y * 1.0)


POINTWISE = {
    "F.relu": F.relu,
    "torch.relu": torch.relu,
    "Tensor.relu": lambda y: y.relu(),
    "relu_": in_place(torch.relu_),
    "Tensor.relu_": in_place(lambda y: y.relu_()),
    "F.relu inplace": in_place(lambda y: F.relu(y, inplace=True)),
    "nn.ReLU": nn.ReLU(),
    "nn.ReLU inplace": in_place(nn.ReLU(inplace=True)),
    "leaky": lambda y: F.leaky_relu(y, 0.2),
    "leaky in place": in_place(nn.LeakyReLU(0.3, inplace=True)),
    "leaky_": in_place(lambda y: F.leaky_relu_(y, 0.2)),
    "prelu": lambda y: F.prelu(y, torch.tensor([0.3], dtype=y.dtype)),
    "prelu per channel": lambda y: F.prelu(
        y[:40_000].view(-1, 4), torch.tensor([0.1, 0.3, 0.5, 0.7], dtype=y.dtype)
    ),
    "rrelu": lambda y: F.rrelu(y, 0.1, 0.4, training=True),
    "rrelu eval": lambda y: F.rrelu(y, 0.1, 0.4),
    "rrelu in place": in_place(nn.RReLU(0.1, 0.4, inplace=True)),
    "relu6": F.relu6,
    "nn.ReLU6": nn.ReLU6(),
    "hardtanh": lambda y: F.hardtanh(y, -2.0, 1.5),
    "hardtanh in place": in_place(nn.Hardtanh(inplace=True)),
    "hardswish": F.hardswish,
    "hardswish in place": in_place(nn.Hardswish(inplace=True)),
    "hardsigmoid": F.hardsigmoid,
    "threshold": nn.Threshold(0.5, 2.0),
    "elu": lambda y: F.elu(y, 2.0),
    "selu": F.selu,
    "celu": lambda y: F.celu(y, 0.5),
    "softshrink": nn.Softshrink(1.0),
    "hardshrink": nn.Hardshrink(1.0),
    "clamp": lambda y: torch.clamp(y, -1, 2),
    "clamp min": lambda y: y.clamp(min=0.3),
    "clamp_": in_place(lambda y: y.clamp_(-1, 2)),
    "clamp tensors": lambda y: y.clamp(torch.tensor(-1.0).double(), torch.tensor(2.0).double()),
    "clip": lambda y: torch.clip(y, max=1.0),
    "clamp_min": lambda y: y.clamp_min(0.0),
    "clamp_max": lambda y: torch.clamp_max(y, 1.0),
    "abs": torch.abs,
    "builtin abs": abs,
    "abs_": in_place(lambda y: y.abs_()),
    "round": lambda y: y * y.round(),
    "straight through": lambda y: y + (y.round() - y).detach(),
    "stopped gradient": lambda y: y * y.detach(),
    "sign": lambda y: y * torch.sign(y),
    "comparison": lambda y: y * (y > 0),
    "where": lambda y: torch.where(y > 0.3, 2 * y, y),
    "masked_fill": lambda y: y.masked_fill(y < 0.1, 0.1),
    "boolean index": lambda y: y[y > 0.2],
    "maximum": lambda y: torch.maximum(y, 0.5 * y + 0.1),
    "minimum": lambda y: torch.minimum(y, 0.5 * y + 0.1),
    "max of two": lambda y: torch.max(y, 0.5 * y + 0.1),
    "fmax": lambda y: torch.fmax(y, 0.5 * y),
    "l1_loss": lambda y: F.l1_loss(y, torch.zeros_like(y), reduction="none"),
    "bernoulli": lambda y: y * torch.bernoulli(torch.sigmoid(y)),
    "fake quantization": lambda y: torch.fake_quantize_per_tensor_affine(y, 0.25, 1, -32, 15),
    "and a kernel": lambda y: torch.fake_quantize_per_tensor_affine(y, 0.25, 1, -16, 15) + y % 1,
    "dropout": lambda y: F.relu(F.dropout(y, 0.4)),
    "alpha dropout": lambda y: F.relu(F.alpha_dropout(y, 0.4, training=True)),
}


@pytest.mark.parametrize("function", POINTWISE.values(), ids=POINTWISE.keys())
def test_pointwise_functions(function):
    loss, params = pointwise(function)
    assert compare(loss, params) < 3 * H


@pytest.mark.parametrize(
    "name", ["leaky", "hardswish", "hardtanh", "relu6", "prelu", "selu", "abs"]
)
def test_pieces_are_computed_in_full_precision(name):
    """A slope rounded to float32 moves the function by more than a step of 1e-8 does."""
    loss, params = pointwise(POINTWISE[name], x[::40])
    assert compare(loss, params, step_size=1e-8) < 1e-5


@pytest.mark.parametrize("name", ["F.relu", "leaky", "selu", "abs", "where", "clamp min"])
def test_the_comparison_fails_without_gates(name):
    loss, params = pointwise(POINTWISE[name], x / 16)
    assert compare(loss, params) < 5 * H
    assert compare(loss, params, NoGates()) > 0.1


def windows(dims):
    """A convolution network's feature map of ``dims`` spatial dims, as a function of its weight."""
    g = torch.Generator().manual_seed(0)
    size = {1: 400, 2: 24, 3: 10}[dims]
    images = torch.randn(4, 2, *[size] * dims, generator=g, dtype=torch.float64)
    weight = torch.randn(3, 2, *[3] * dims, generator=g, dtype=torch.float64, requires_grad=True)
    convolve = getattr(F, f"conv{dims}d")
    return lambda: convolve(images, weight), weight


POOLS = {
    "max_pool1d": (1, lambda y: F.max_pool1d(y, 3)),
    "nn.MaxPool1d": (1, nn.MaxPool1d(3, stride=2, padding=1)),
    "max_pool2d": (2, lambda y: F.max_pool2d(y, 2)),
    "torch.max_pool2d": (2, lambda y: torch.max_pool2d(y, 2)),
    "nn.MaxPool2d": (2, nn.MaxPool2d(3, 2, 1, ceil_mode=True)),
    "with indices": (2, lambda y: F.max_pool2d(y, 2, return_indices=True)[0]),
    "unpool": (2, lambda y: F.max_unpool2d(*F.max_pool2d(y, 2, return_indices=True), 2)),
    "unbatched": (2, lambda y: F.max_pool2d(y[0], 2)),
    "max_pool3d": (3, nn.MaxPool3d(2)),
    "adaptive 1": (1, nn.AdaptiveMaxPool1d(5)),
    "adaptive 2": (2, nn.AdaptiveMaxPool2d((3, 4))),
    "adaptive 3": (3, nn.AdaptiveMaxPool3d(2)),
    "fractional 2": (2, nn.FractionalMaxPool2d(2, output_ratio=0.5)),
    "fractional 3": (3, lambda y: F.fractional_max_pool3d(y, 2, output_size=3)),
    "max": (2, lambda y: y.max() * y.mean()),
    "max over dim": (2, lambda y: y.max(dim=1).values),
    "max, keepdim": (2, lambda y: torch.max(y, 2, True)[0]),
    "min over dim": (2, lambda y: torch.min(y, dim=-1)[0]),
    "amax": (2, lambda y: y.amax(dim=(2, 3))),
    "amax of all": (2, lambda y: torch.amax(y) * y),
    "amin": (2, lambda y: torch.amin(y, (1, 2), keepdim=True)),
    "median": (2, lambda y: y.median(dim=1).values),
    "median of all": (2, lambda y: y.median() * y),
    "kthvalue": (2, lambda y: y.kthvalue(2, dim=1)[0]),
    "mode": (2, lambda y: y.mode(dim=1)[0]),
    "sort": (2, lambda y: y.sort(dim=1, descending=True)[0] * torch.arange(3).view(3, 1, 1)),
    "msort": (2, lambda y: torch.msort(y) * torch.arange(4).view(4, 1, 1, 1)),
    "topk": (2, lambda y: y.topk(2, dim=1)[0]),
    "topk, default dim": (2, lambda y: torch.topk(y, 5).values),
    "cummax": (2, lambda y: torch.cummax(y, 1)[0]),
    "argmax and gather": (2, lambda y: y.gather(1, y.argmax(1, keepdim=True))),
    "argsort": (2, lambda y: y.gather(1, y.argsort(1)[:, :1])),
}


@pytest.mark.parametrize(("dims", "pool"), POOLS.values(), ids=POOLS.keys())
def test_selections(dims, pool):
    features, weight = windows(dims)
    assert compare(lambda: smooth(pool(features())), [weight]) < 10 * H


def test_ties_share_the_gradient_as_in_double_backward():
    w = torch.tensor([1.0, 2.0], dtype=torch.float64, requires_grad=True)

    def loss():
        y = torch.stack([w[0], w[0], w[1] / 2, w[1]])
        return y.amax() ** 2 + y[:3].max() ** 3 + torch.maximum(w[0], w[1] / 2) ** 2

    assert compare(loss, [w]) < 3 * H


# --- numbers that no rectifier changes, and integers ---------------------------------------------


@pytest.mark.parametrize("name", ["F.relu", "leaky", "relu6", "hardtanh", "softshrink", "abs"])
def test_infinite_activations(name):
    """A masked score is −inf, and 0 times that is no number."""
    function = POINTWISE[name]
    values = torch.tensor([-torch.inf, -1.0, 2.0, torch.inf], dtype=torch.float64)
    tape = gates.Gates()
    results = []
    for _ in range(2):
        y = values.clone().requires_grad_()
        with tape:
            out = function(y)
        results.append((out, *torch.autograd.grad(out.sum(), y)))
        tape.rewind()
    for first, second in zip(*results, strict=True):
        assert torch.equal(first, second) and not second.isnan().any()


def masked_mean(y):
    """Rows of unequal length, as a batch of sentences."""
    lengths = torch.tensor([3, 5, 2])
    inside = torch.arange(lengths.max())[None] < lengths[:, None]
    return (y[:15].view(3, 5) * inside).sum(1) / torch.maximum(lengths, torch.tensor(3))


def biased_by_distance(y):
    """Scores with a bias for each distance up to three, as in T5."""
    position = torch.arange(5)
    distance = (position[:, None] - position[None]).abs()
    distance = torch.min(distance, torch.full_like(distance, 3)).clamp(max=3)
    assert distance.amax() == 3 and (distance > 2).amax()
    return (y[:4] * y[4:8])[distance].max(dim=1).values


@pytest.mark.parametrize("function", [masked_mean, biased_by_distance])
def test_integers_have_no_gates_and_keep_their_type(function):
    loss, params = pointwise(function, x[::2000])
    assert compare(loss, params) < 10 * H


def test_complex_numbers_have_no_pieces():
    loss, params = pointwise(lambda y: torch.complex(y, y + 9).abs(), x[::40])
    assert compare(loss, params) < 10 * H


@pytest.mark.parametrize(
    "indices_of",
    [
        lambda y: y.sort()[1],
        lambda y: y.topk(5).indices,
        lambda y: y.view(4, -1).max(dim=0)[1],
        lambda y: F.max_pool1d(y.view(1, -1), 4, return_indices=True)[1],
    ],
)
def test_a_model_may_change_the_indices_that_it_gets(indices_of):
    loss, params = pointwise(lambda y: y[indices_of(y).sub_(1).abs_().flatten()], x[::400][:100])
    for _ in range(2):
        assert compare(loss, params) < 10 * H


def test_a_parameter_that_only_decides_a_step_has_a_gradient_of_zeros():
    """In the replay too, not none: sgn, round and their like cut no graph."""
    y = torch.randn(5, requires_grad=True)

    def closure():
        y.grad = None
        value = (y.sgn() + y.round()).sum()
        value.backward()
        return value

    difference = FiniteDifference(closure, [y], check=True)
    difference.evaluate()
    (z,) = rademacher_like([y], seed=0, step=0)
    assert not difference.product({y: z})[y].any()


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
        self.norm = nn.BatchNorm2d(3)

    def forward(self, y):
        return F.relu(y + self.second(F.relu(self.norm(self.first(y)))))


@pytest.mark.parametrize("reentrant", [True, False])
def test_activation_checkpointing(reentrant):
    """The forward runs again inside backward, and must replay the same gates there."""
    from torch.utils.checkpoint import checkpoint

    torch.manual_seed(0)
    model = nn.Sequential(Residual(), Residual(), nn.Dropout(0.2)).double()
    images = torch.randn(8, 3, 12, 12, dtype=torch.float64)
    params = list(model.parameters())

    def plain():
        return smooth(model(images)) / 1000

    def checkpointed():
        y = images.clone().requires_grad_()
        for block in model:
            y = checkpoint(block, y, use_reentrant=reentrant)
        return smooth(y) / 1000

    def product(loss):
        def closure():
            model.zero_grad()
            torch.manual_seed(1)
            value = loss()
            value.backward()
            return value

        difference = FiniteDifference(closure, params, check=True, step_size=H)
        difference.evaluate()
        z = rademacher_like(params, seed=0, step=0)
        return difference.product(dict(zip(params, z, strict=True))).values()

    for a, b in zip(product(plain), product(checkpointed), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


# --- what no gate can reach is frozen below autograd, or reported ---------------------------------


def relu(y):
    return torch.relu(y)


with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # deprecated, and still met
    scripted = torch.jit.script(relu)


def recurrent(y):
    torch.manual_seed(0)
    return nn.RNN(1, 4, nonlinearity="relu").double()(y.view(-1, 1, 1))[0]


ROWS = torch.tensor([2, 0, 1, 1, 0])
HIDDEN = {
    "nn.RNN": recurrent,
    "TorchScript": scripted,
    "below torch's functions": lambda y: torch.ops.aten.relu(y),
    "L1 penalty with zeros": lambda y: torch.norm(y.round(decimals=0) * 0 + y[15] * y, 1),
    "linalg.vector_norm": lambda y: torch.linalg.vector_norm(y.view(4, -1), 1, dim=1),
    "largest element": lambda y: y.view(4, -1).norm(torch.inf, dim=1),
    "pairwise_distance": lambda y: F.pairwise_distance(y.view(5, -1), y.view(5, -1) ** 2, p=1),
    "normalize": lambda y: F.normalize(y.view(5, -1), p=1),
    "cdist": lambda y: torch.cdist(y.view(5, -1), y.view(5, -1) ** 2, p=1),
    "cdist, largest": lambda y: torch.cdist(y.view(5, -1), y.view(5, -1) ** 2, p=torch.inf),
    "dist": lambda y: torch.dist(y, y**2, 1),
    "aminmax": lambda y: torch.stack(torch.aminmax(y.view(5, -1), dim=1)),
    "scatter_reduce": lambda y: y.new_zeros(3, 4).scatter_reduce(
        0, ROWS[:, None].expand(5, 4), y.view(5, 4), "amax", include_self=False
    ),
    "index_reduce": lambda y: y.new_zeros(3, 4).index_reduce(0, ROWS, y.view(5, 4), "amin"),
    "remainder": lambda y: y % 1.0,
    "fmod": lambda y: torch.fmod(y, 0.7),
    "frac": lambda y: y.frac(),
    "rounded division": lambda y: y * torch.div(y, 0.3, rounding_mode="floor"),
    "quantile": lambda y: torch.quantile(y.view(5, -1), 0.3, dim=1),
    "learned quantiles": lambda y: torch.quantile(y.view(5, -1), y.view(-1)[:3].sigmoid(), dim=1),
    "learned nanquantile": lambda y: torch.nanquantile(
        torch.where(y > 1, torch.nan, y).view(5, -1), y.view(-1)[0].sigmoid(), dim=0
    ),
    "product with zeros beside them": lambda y: y.view(5, -1).prod(1) + y.norm(1),
    "cumulative product beside them": lambda y: y.view(5, -1).cumprod(1).sum() + y.norm(1),
    "nan_to_num": lambda y: torch.nan_to_num(y.abs(), posinf=1.0),
    "straight-through Gumbel": lambda y: F.gumbel_softmax(y.view(5, -1), hard=True) * y.view(5, -1),
    "softsign": F.softsign,
    "gaussian_nll": lambda y: F.gaussian_nll_loss(y, y * 2, y**2 + 0.01),
    "LPPool": lambda y: F.lp_pool1d(y.view(1, 1, -1), 1, 3),
    "corrcoef": lambda y: torch.corrcoef(torch.stack([y, y**2])),
    "smooth L1": lambda y: F.smooth_l1_loss(y, torch.zeros_like(y), beta=0.3),
    "Huber": lambda y: F.huber_loss(y, torch.zeros_like(y), delta=0.3),
    "margin_ranking_loss": lambda y: F.margin_ranking_loss(y, -y, torch.ones_like(y)),
    "multi_margin_loss": lambda y: F.multi_margin_loss(y.view(2, -1), torch.zeros(2).long()),
    "multilabel_margin_loss": lambda y: F.multilabel_margin_loss(
        y.view(2, -1), torch.arange(10).expand(2, 10)
    ),
    "triplet_margin_loss": lambda y: F.triplet_margin_loss(
        y.view(5, -1), y.view(5, -1) ** 2, 0.5 * y.view(5, -1), p=1
    ),
    "hinge_embedding_loss": lambda y: F.hinge_embedding_loss(y, y.detach().sign().sign()),
}


@pytest.mark.filterwarnings("error", "ignore:index_reduce")
@pytest.mark.parametrize("function", HIDDEN.values(), ids=HIDDEN.keys())
def test_what_no_gate_can_reach_is_frozen_below_autograd(function):
    """Elements that lie on a kink, or change their piece within the step of the difference."""
    scale = torch.ones(20, dtype=torch.float64, requires_grad=True)
    values = torch.linspace(-1.5, 1.6, 20, dtype=torch.float64)
    values[::4] = torch.tensor([0.0, 0.3, -1.0, 0.0, 1.0], dtype=torch.float64)

    def loss():
        return smooth(function(scale * values))

    def closure():
        scale.grad = None
        torch.manual_seed(1)
        value = loss()
        value.backward()
        return value

    (z,) = rademacher_like([scale], seed=0, step=0)
    try:
        with SecondDerivatives():
            torch.manual_seed(1)
            (grad,) = torch.autograd.grad(loss(), scale, create_graph=True)
        (exact,) = torch.autograd.grad(grad, scale, z)
    except (NotImplementedError, RuntimeError) as error:
        if "derivative" not in str(error) or "not implemented" not in str(error):
            raise
        pytest.skip(f"torch {torch.__version__}: {error}")
    difference = FiniteDifference(closure, [scale], check=True, step_size=1e-7)
    difference.evaluate()
    product = difference.product({scale: z})[scale]
    torch.testing.assert_close(scale.grad, grad.detach())
    torch.testing.assert_close(product, exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["elu", "selu", "celu", "prelu", "hardswish"])
def test_activations_that_are_exactly_zero(name):
    """A layer that starts at zero puts all of them on the kink."""
    w = torch.zeros(6, dtype=torch.float64, requires_grad=True)
    x = torch.linspace(-1, 1, 6, dtype=torch.float64)
    assert compare(lambda: smooth(POINTWISE[name](w * x + 0.0)), [w], step_size=1e-7) < 1e-5


def test_kernels_are_recorded_again_at_the_next_refresh():
    """What the first one has found is known from then on, without another look."""
    p = torch.tensor([0.0, 1.0, -2.0], dtype=torch.float64, requires_grad=True)
    earlier = Earlier()

    def closure():
        p.grad = None
        value = p.norm(1) ** 2
        value.backward()
        return value

    z = torch.ones_like(p)
    for check in (True, False, False):
        earlier.begin_refresh()
        difference = FiniteDifference(closure, [p], check=check, earlier=earlier)
        difference.evaluate()
        expected = 2 * p.detach().sign() * (p.detach().sign() * z).sum()
        torch.testing.assert_close(difference.product({p: z})[p], expected)
        assert earlier.has_hidden_pieces and not earlier.is_smooth


def test_what_cannot_be_frozen_is_reported_once_with_its_name():
    grid = torch.zeros(1, 3, 3, 2, requires_grad=True)

    def closure():
        grid.grad = None
        value = F.grid_sample(torch.randn(1, 1, 4, 4), grid, align_corners=True).sum()
        value = value + F.grid_sample(torch.randn(1, 1, 4, 4), grid, align_corners=True).sum()
        value.backward()
        return value

    with pytest.warns(UserWarning, match="grid_sampler(_2d)? inside grid_sampler") as caught:
        FiniteDifference(closure, [grid], check=True).evaluate()
    assert len(caught) == 1


def test_no_false_alarm():
    """Ordinary layers and losses raise no warning (warnings are errors here)."""
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(True), nn.MaxPool2d(2), nn.GELU(),
        nn.GroupNorm(2, 8), nn.SiLU(), nn.Hardswish(), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
        nn.LayerNorm(32), nn.Linear(32, 16), nn.Softplus(), nn.Dropout(0.1), nn.Linear(16, 10),
    )  # fmt: skip
    images, labels = torch.randn(4, 3, 12, 12), torch.tensor([1, 2, 3, 4])

    def closure():
        model.zero_grad()
        logits = model(images)
        loss = F.cross_entropy(logits, labels, label_smoothing=0.1)
        loss = loss + F.mse_loss(F.normalize(logits), logits) + F.smooth_l1_loss(logits, 0 * logits)
        loss.backward()
        return loss

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        FiniteDifference(closure, list(model.parameters()), check=True).evaluate()


# --- the tape -------------------------------------------------------------------------------------


def replay(first, second):
    tape = gates.Gates()
    with tape:
        first()
    tape.rewind()
    with tape:
        second()
    tape.check_complete()


@pytest.mark.parametrize(
    "second",
    [
        lambda y: y.clamp(0, 1),  # another function
        lambda y: y.relu().relu(),  # one more
        lambda y: y * 2,  # one less
    ],
)
def test_another_computation_is_an_error(second):
    y = torch.randn(5, requires_grad=True)
    with pytest.raises(RuntimeError, match="not the first one's computation"):
        replay(lambda: y.relu(), lambda: second(y))
