"""A replay at unchanged parameters is the recorded evaluation, bit for bit, and that the plain one.

In every precision and memory layout: outputs, their strides, and gradients with theirs. What a
replay computes otherwise, be it a rounding, the finite difference divides by its step. No function
is exempt. (Zeros of either sign are equal here.)
"""

import contextlib
import functools
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from support.device import on_gpu
from support.harness import REPOSITORY
from torch.nn import functional as F

from adahessian.curvature import piecewise
from adahessian.curvature.gates import Gates
from adahessian.curvature.piecewise import GATES

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
SHAPE = (4, 6, 5, 6)
# Of all functions below with their arguments; both zeros.
KINKS = [0.0, -0.0, 0.5, -0.5, 1.0, -1.0, 1.5, -2.0, 3.0, -3.0, 6.0]


@functools.cache
def numbers(shape, seed=0):
    """Numbers of which a third lies on the kinks, and some are equal."""
    generator = torch.Generator().manual_seed(seed)
    x = 2 * torch.randn(shape, generator=generator, dtype=torch.float64)
    kinks = torch.tensor(KINKS, dtype=torch.float64)
    some = torch.randperm(x.numel(), generator=generator)[: x.numel() // 3]
    x.view(-1)[some] = kinks[torch.arange(len(some)) % len(kinks)]
    return x


def probabilities(shape):
    return numbers(shape).sigmoid()


class Call(NamedTuple):
    """A call of a function: arguments behind the input, which is made by ``data(shape)``.

    A function among the arguments makes one more operand of the input.
    """

    args: tuple
    kwargs: dict[str, Any]
    shape: tuple[int, ...]
    data: Callable[[tuple[int, ...]], torch.Tensor]
    infinite: bool  # also with infinities among the numbers
    detached: bool  # without a gradient


def call(*args, shape=SHAPE, data=numbers, infinite=True, detached=False, **kwargs):
    return Call(args, kwargs, shape, data, infinite, detached)


def other(x):
    """A tensor that is equal to x in places."""
    return torch.where(numbers(x.shape, 1).to(x) > 0, numbers(x.shape, 2).to(x), x.detach())


def other_row(x):
    return numbers(x.shape[-1:], 3).to(x)


def one_number(x):
    """It has a type of its own, which does not decide the output's."""
    return torch.tensor(0.5)


def two_quantiles(x):
    return torch.tensor([0.2, 0.73]).to(x)


def one_quantile(x):
    return torch.tensor(0.5).to(x)


def begun(x):
    """What an observer keeps; each call writes to its own."""
    return torch.ones(1)


# Their own derivative is a sum over all slices, which torch adds up in another order; or none.
NO_PARAMETERS = (two_quantiles, one_quantile, begun)
ZERO_POINTS = torch.zeros(6, dtype=torch.int32)


def integers(x):
    return torch.arange(x.shape[-1])


def weights(*shape):
    return lambda x: numbers(shape, 4).to(x)


LINE, VOLUME = (4, 6, 12), (2, 3, 4, 6, 4)
# torch takes numpy's names of arguments, too: axis, keepdims, x2.
ORDERED = [call(-1), call(1), call(dim=2), call(axis=1)]
EXTREMUM = [call(()), call(1), call((2, 3), True), call(dim=(1, 2)), call(axis=1, keepdims=True)]
FIRST_OF = [
    call(), call(1), call(dim=-1, keepdim=True), call(axis=1, keepdims=True), call(other),
    call(other=other_row),
]  # fmt: skip
OF_TWO = [call(other), call(other_row), call(one_number), call(integers), call(x2=other)]
CALLS = {
    **dict.fromkeys("relu selu hardsigmoid hardswish relu6".split(), [call()]),
    "leaky_relu": [call(), call(0.3)],
    "prelu": [call(weights(1)), call(weights(6)), call(weights(6), shape=(5, 6))],
    "elu": [call(), call(0.7)],
    "celu": [call(), call(0.7)],
    "rrelu": [call(), call(0.1, 0.4, training=True)],
    "threshold": [call(0.5, 1.1)],
    "_threshold": [call(0.5, 1.1)],
    "hardtanh": [call(), call(-2.0, 1.5), call(-0.3, 0.7)],
    "softshrink": [call(), call(0.3)],
    "hardshrink": [call(), call(0.3)],
    "clamp": [
        call(-1, 2),
        call(min=0.3),
        call(None, 1.5),
        call(0.0, 6.0),
        call(3.0, 1.0),
        call(weights(6), weights(5, 1)),
        call(weights(2, 1, 1, 1, 1)),
        call(max=one_number),
    ],  # fmt: skip
    "clip": [call(-1, 2), call(max=weights(6))],
    "clamp_min": [call(0.5), call(weights(6))],
    "clamp_max": [call(0.5), call(max=weights(6))],
    **dict.fromkeys(("abs", "absolute"), [call()]),
    **dict.fromkeys(("max", "min"), FIRST_OF),
    **dict.fromkeys(("median", "nanmedian"), FIRST_OF[:4]),
    **dict.fromkeys(
        ("quantile", "nanquantile"),
        [
            call(0.4, infinite=False),
            call(0.5, 1, True, infinite=False),
            call(0.3, dim=-1, interpolation="midpoint", infinite=False),
            call(0.99, dim=0, interpolation="nearest"),
            call(1.0, dim=2),
            call(two_quantiles, 3, infinite=False),
            call(one_quantile, 1, infinite=False),
        ],
    ),
    **dict.fromkeys("maximum minimum fmax fmin".split(), OF_TWO),
    **dict.fromkeys(("amax", "amin"), EXTREMUM),
    **dict.fromkeys(("mode", "sort", "cummax", "cummin"), ORDERED),
    **dict.fromkeys(("topk", "kthvalue"), [call(2), call(3, 1), call(k=2, dim=0), call(2, axis=1)]),
    **dict.fromkeys("round floor ceil trunc fix sign sgn detach".split(), [call()]),
    "heaviside": [call(weights(6), detached=True)],  # has no derivative
    "bernoulli": [call(data=probabilities, infinite=False)],
    "bernoulli_": [call(0.3)],
    "msort": [call()],
    "fake_quantize_per_tensor_affine": [call(0.4, 1, -2, 3), call(begun, ZERO_POINTS[:1], -1, 2)],
    "fake_quantize_per_channel_affine": [call(torch.full((6,), 0.4), ZERO_POINTS, 1, -2, 3)],
    "fused_moving_avg_obs_fake_quant": [
        call(*[begun] * 5, lambda x: ZERO_POINTS[:1].clone(), 0.1, 0, 15, 0, infinite=False)
    ],
    "l1_loss": [
        call(other),
        call(other, reduction="sum"),
        call(target=other, reduction="none"),
        call(other, size_average=False),
    ],
    "max_pool1d": [call(3, shape=LINE), call(3, 2, 1, shape=LINE)],
    "max_pool2d": [
        call(2),
        call((3, 2), stride=2, padding=1),
        call(2, 1, 0, 2),
        call(2, ceil_mode=True, shape=(6, 5, 5)),
    ],
    "max_pool3d": [call(2, shape=VOLUME), call(3, 1, shape=VOLUME)],
    "adaptive_max_pool1d": [call(5, shape=LINE)],
    "adaptive_max_pool2d": [call(3), call((3, 4))],
    "adaptive_max_pool3d": [call((2, 3, 2), shape=VOLUME)],
    "fractional_max_pool2d": [call(2, output_size=3), call(2, output_ratio=(0.6, 0.6))],
    "fractional_max_pool3d": [call(2, output_size=(2, 3, 2), shape=VOLUME)],
    "embedding": [
        call(torch.arange(12).view(3, 4) % 6, shape=(6, 5)),
        call(torch.arange(12).view(3, 4) % 6, 2, shape=(6, 5)),
    ],
    "conv1d": [call(weights(4, 6, 3), weights(4), shape=LINE, infinite=False)],
    "conv2d": [
        call(weights(4, 6, 3, 3), infinite=False),
        call(weights(4, 6, 3, 3), weights(4), 2, 1, infinite=False),
        call(weights(6, 1, 3, 3), weights(6), padding="same", groups=6, infinite=False),
    ],
    "conv3d": [call(weights(4, 3, 3, 3, 3), weights(4), shape=VOLUME, infinite=False)],
}


def calls_of(function):
    name = function.__name__
    base = name.strip("_").removesuffix("_with_indices")
    for key in (name, name.strip("_"), base):
        if key in CALLS:
            return CALLS[key]
    raise KeyError(f"{name} is a gate without an example in this test: add one to CALLS")


def channels_last(x):
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    return x.contiguous(memory_format=formats.get(x.ndim, torch.contiguous_format))


def every_second(x):
    """A view with gaps."""
    return x.repeat_interleave(2, 1)[:, ::2]


def repeated(g):
    return g.flatten()[0].expand(g.shape)


def repeated_over_pixels(g):
    return g[..., :1, :1].expand(g.shape) if g.ndim > 3 else g


def rows_repeated(x):
    return x[:1].expand(x.shape)


def contiguous(x):
    return x.contiguous()


# The layout of the input, and that of the gradient which comes from behind.
LAYOUTS = {
    "contiguous": (contiguous, contiguous),
    "channels_last": (channels_last, channels_last),
    "a contiguous gradient": (channels_last, contiguous),
    "a channels_last gradient": (contiguous, channels_last),
    "a sum's gradient": (channels_last, repeated),
    "a mean's gradient": (channels_last, repeated_over_pixels),
    "a view with gaps": (every_second, contiguous),
    "an expanded view": (rows_repeated, contiguous),
}


def evaluate(function, example, data, layouts, gates):
    """Return outputs and gradients of a function, as a network's layer computes them.

    And what is drawn next: a random function's replay is to leave the generator where it was left.
    """
    of_input, of_gradient = layouts
    leaves = [of_input(data).detach().requires_grad_()]

    def operand(make):
        t = make(data)
        if t.is_floating_point() and make not in NO_PARAMETERS:
            leaves.append(t.detach().requires_grad_())
            t = leaves[-1] * 1
        return t

    torch.manual_seed(0)
    with gates:
        x = of_input(leaves[0] * 1)
        args = [operand(a) if callable(a) else a for a in example.args]
        kwargs = {k: operand(a) if callable(a) else a for k, a in example.kwargs.items()}
        with torch.set_grad_enabled(not example.detached):
            out = function(x, *args, **kwargs)
        drawn = torch.rand(3, device=x.device)
        outputs = [out] if torch.is_tensor(out) else list(out)
        moving = [t for t in outputs if t.requires_grad and not example.detached]
        behind = [of_gradient(numbers(t.shape, 5).to(t)) for t in moving]
        grads = torch.autograd.grad(moving, leaves, behind, allow_unused=True) if moving else ()
    return [*outputs, x, drawn, *grads]


def assert_equal_bits(results, expected, what):
    for number, (a, b) in enumerate(zip(results, expected, strict=True)):
        where = f"{what}, tensor {number} of {len(results)}"
        if a is None or b is None:
            assert a is b, where
            continue
        assert (a.dtype, a.shape, a.stride()) == (b.dtype, b.shape, b.stride()), where
        difference = torch.where(a.isnan() & b.isnan(), 0, a - b).abs().max()
        same = (a == b) | a.isnan() & b.isnan()
        assert same.all(), f"{where}: {(~same).sum()} of {same.numel()} differ, by {difference:.2g}"


def name_of(function):
    for home, place in ((torch, "torch"), (torch.Tensor, "Tensor"), (F, "F")):
        for name in dir(home):
            if getattr(home, name, None) is function:
                return f"{place}.{name}"
    return str(function)


def refused_by_torch(error):
    """Whether torch has no kernel for a precision, none that repeats, or cannot write in place."""
    refusals = (
        "not implemented for", "Can't detach views", "more than one element of the written",
        "doesn't match the broadcast shape", "does not have a deterministic implementation",
        "must be either float or double", "expected scalar type Float",
    )  # fmt: skip
    return any(refusal in str(error) for refusal in refusals)


@pytest.fixture
def same_bits_twice():
    """On a GPU some of torch's kernels add in another order each time; this asks for the others."""
    torch.use_deterministic_algorithms(on_gpu())
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("same_bits_twice")
@pytest.mark.filterwarnings("ignore:size_average and reduce args will be deprecated")
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
@pytest.mark.parametrize("function", list(GATES), ids=map(name_of, GATES))
def test_replay_is_the_recorded_evaluation(function, dtype):
    compared = 0
    for number, example in enumerate(calls_of(function)):
        data = example.data(example.shape).to(dtype, copy=True)
        for name, layouts in LAYOUTS.items():
            compared += compare(function, example, data, layouts, f"call {number}, {name}")
        if example.infinite:
            data.view(-1)[::7], data.view(-1)[1::9] = -torch.inf, torch.inf
            what = f"call {number}, infinite"
            compared += compare(function, example, data, LAYOUTS["contiguous"], what)
    if not compared:
        pytest.skip("torch does not have it")


def compare(function, example, data, layouts, what):
    """Compare plain, recorded and replayed evaluation; return whether torch has this one."""
    try:
        plain = evaluate(function, example, data, layouts, contextlib.nullcontext())
    except RuntimeError as error:
        if refused_by_torch(error):
            return False
        raise
    gates = Gates()
    recorded = evaluate(function, example, data, layouts, gates)
    assert_equal_bits(recorded, plain, f"{what}: recorded and plain")
    gates.rewind()
    replayed = evaluate(function, example, data, layouts, gates)
    assert_equal_bits(replayed, recorded, f"{what}: replayed and recorded")
    gates.check_complete()
    assert gates._tape
    return True


def test_a_recording_leaves_no_hook_on_a_leaf():
    x = torch.randn(3, requires_grad=True)
    with Gates():
        F.relu(x).sum().backward()
    assert not x._backward_hooks


# --- with elements that have left their piece -----------------------------------------------------

BEYOND = {
    "relu": (F.relu, [0]),
    "leaky_relu": (lambda x: F.leaky_relu(x, 0.3), [0]),
    "prelu": (lambda x: F.prelu(x.view(1, 2, -1), torch.tensor([0.2, 0.3]).to(x)), [0]),
    "elu": (lambda x: F.elu(x, 2.0), [0]),
    "celu": (lambda x: F.celu(x, 0.5), [0]),
    "selu": (F.selu, [0]),
    "threshold": (lambda x: F.threshold(x, 0.5, 2.0), [0.5]),
    "hardtanh": (lambda x: F.hardtanh(x, -2.0, 1.5), [-2, 1.5]),
    "relu6": (F.relu6, [0, 6]),
    "hardsigmoid": (F.hardsigmoid, [-3, 3]),
    "hardswish": (F.hardswish, [-3, 3]),
    "softshrink": (lambda x: F.softshrink(x, 0.3), [-0.3, 0.3]),
    "hardshrink": (F.hardshrink, [-0.5, 0.5]),
    "clamp": (lambda x: x.clamp(-1, 2), [-1, 2]),
    "clamp of tensors": (
        lambda x: x.clamp(torch.tensor(-1.0).to(x), torch.tensor(2.0).to(x)),
        [-1, 2],
    ),
    "abs": (torch.abs, [0]),
    "maximum": (lambda x: torch.maximum(x, torch.ones_like(x)), [1]),
    "fmin": (lambda x: torch.fmin(x, torch.ones_like(x)), [1]),
}


@pytest.mark.parametrize("looks", [True, False], ids=["on a CPU", "as on a device"])
@pytest.mark.parametrize(("function", "kinks"), BEYOND.values(), ids=BEYOND)
def test_a_replay_continues_the_piece(function, kinks, looks, monkeypatch):
    """Behind the kink value and slope are those in front of it, up to the piece's curvature."""
    monkeypatch.setattr(piecewise, "_can_look", lambda t: looks)
    h = 1e-6
    kinks = torch.tensor(kinks, dtype=torch.float64)
    first = torch.cat([kinks - h, kinks + h]).requires_grad_()
    second = torch.cat([kinks + h, kinks - h]).requires_grad_()
    gates = Gates()
    with gates:
        y1 = function(first)
    (slope,) = torch.autograd.grad(y1.sum(), first)
    gates.rewind()
    with gates:
        y2 = function(second)
    (slope2,) = torch.autograd.grad(y2.sum(), second)
    with torch.no_grad():
        linear = y1.flatten() + slope * (second - first)
    # CUDA's kernels of these two multiply by a sixth that is rounded to float32.
    sixth = on_gpu() and function in (F.hardsigmoid, F.hardswish)
    torch.testing.assert_close(y2.flatten(), linear, rtol=0, atol=1e-7 if sixth else 10 * h**2)
    torch.testing.assert_close(slope2, slope, rtol=0, atol=10 * h)


@pytest.mark.parametrize("in_place", [False, True], ids=["", "in place"])
@pytest.mark.parametrize("function", [F.elu, F.celu, F.selu, F.hardswish, F.hardsigmoid])
def test_infinite_values_have_their_pieces_on_a_device_too(function, in_place, monkeypatch):
    monkeypatch.setattr(piecewise, "_can_look", lambda t: False)
    x = torch.tensor([-torch.inf, -4, -1, 1, 4, torch.inf], dtype=torch.float64, requires_grad=True)
    gates, found = Gates(), []
    for _ in range(2):
        with gates:
            y = function(2 * x, inplace=in_place)
        found += [y, *torch.autograd.grad(y, x, torch.ones_like(y))]
        gates.rewind()
    torch.testing.assert_close(found[2:], found[:2], equal_nan=True)


# --- whole networks, on other processors' kernels -------------------------------------------------

KERNELS = {
    "AVX2": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"},
    "DEFAULT": {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41"},
}


@pytest.mark.cpu_only(reason="of processors' kernels")
@pytest.mark.parametrize("kernels", KERNELS)
def test_networks(kernels):
    """A ResNet and others, in float32 and under bfloat16 autocast, channels_last and contiguous."""
    run = subprocess.run(
        [sys.executable, "-W", "error", "tests/support/replay_networks.py"],
        cwd=REPOSITORY,
        env={**os.environ, **KERNELS[kernels], "PYTHONPATH": os.pathsep.join([".", "tests"])},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() in KERNELS  # and no network that differs
