"""Steps by finite differences: what they leave as it is, and which closures they refuse.

"Regression:" names a published implementation that fails the test (repositories as in
docs/implementations.md).
"""

import copy

import pytest
import torch
from support.device import on_gpu, random_state, set_random_state
from support.stepping import assert_unchanged, save_and_load, snapshot, take_step
from torch import nn

from adahessian import AdaHessian


class Stateful(nn.Module):
    """Keeps a running mean that the output depends on, replaced rather than changed in place."""

    def __init__(self):
        super().__init__()
        self.register_buffer("running", torch.zeros(()))

    def forward(self, x):
        self.running = 0.9 * self.running + 0.1 * x.detach().mean()
        return x - self.running


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Dropout(0.3),
        Stateful(),
        nn.Flatten(),
        nn.Linear(36, 10),
    ).double()


def images():
    g = torch.Generator().manual_seed(0)
    return torch.randn(32, 1, 8, 8, dtype=torch.float64, generator=g), torch.arange(32) % 10


def closure_of(model, optimizer, set_to_none=True):
    x, y = images()

    def closure():
        optimizer.zero_grad(set_to_none=set_to_none)
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward(create_graph=optimizer.needs_graph)
        return loss

    return closure


def run(curvature, num_steps=6, set_to_none=True, **options):
    model = network()
    optimizer = AdaHessian(model.parameters(), lr=0.05, curvature=curvature, **options)
    closure = closure_of(model, optimizer, set_to_none)
    torch.manual_seed(7)
    losses = [optimizer.step(closure).item() for _ in range(num_steps)]
    return model, optimizer, losses, random_state()


@pytest.mark.parametrize("options", [{}, {"num_samples": 2}, {"update_interval": 3}])
@pytest.mark.parametrize("set_to_none", [True, False])
def test_finite_difference_trains_as_double_backward_does(options, set_to_none):
    """Parameters, buffers, losses and random state, on a network with every kind of state.

    Regression: EIG redraws dropout between its two evaluations (384 times the norm), and moves
    the running statistics.
    """
    exact, _, exact_losses, exact_random = run("double_backward", **options)
    model, optimizer, losses, random = run("finite_difference", set_to_none=set_to_none, **options)
    assert losses == pytest.approx(exact_losses, rel=1e-5)
    assert torch.equal(random, exact_random)
    for (name, value), expected in zip(
        model.state_dict().items(), exact.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-5, msg=name)
    assert not optimizer.needs_graph and not optimizer.is_second_order


def test_after_a_step_all_is_as_after_one_pass():
    """Gradients, buffers and random state are bit for bit those of an ordinary evaluation."""
    model, plain = network(), network()
    optimizer = AdaHessian(model.parameters(), lr=0.0, curvature="finite_difference")
    before = [p.detach().clone() for p in model.parameters()]
    torch.manual_seed(3)
    loss = optimizer.step(closure_of(model, optimizer))
    random = random_state()
    torch.manual_seed(3)
    x, y = images()
    expected_loss = nn.functional.cross_entropy(plain(x), y)
    expected_loss.backward()
    assert loss == expected_loss and torch.equal(random, random_state())
    for p, q, value in zip(model.parameters(), plain.parameters(), before, strict=True):
        assert torch.equal(p.grad, q.grad)
        assert torch.equal(p, value)  # lr is 0: restored bit for bit
    for (name, a), b in zip(model.named_buffers(), plain.buffers(), strict=True):
        assert torch.equal(a, b), name


def test_a_failing_second_pass_leaves_what_the_first_one_left():
    model, plain = network(), network()
    optimizer = AdaHessian(model.parameters(), curvature="finite_difference")
    closure = closure_of(model, optimizer)
    optimizer.step(closure)
    plain.load_state_dict(model.state_dict())
    before = snapshot(optimizer, list(model.parameters()))
    calls = []

    def failing():
        calls.append(1)
        loss = closure()
        if len(calls) == 2:
            raise MemoryError("in the second pass")
        return loss

    torch.manual_seed(3)
    with pytest.raises(MemoryError):
        optimizer.step(failing)
    random = random_state()
    torch.manual_seed(3)
    closure_of(plain, AdaHessian(plain.parameters(), curvature="finite_difference"))()
    assert_unchanged(optimizer, list(model.parameters()), before)
    assert torch.equal(random, random_state())
    for p, q in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad)
    for a, b in zip(model.buffers(), plain.buffers(), strict=True):
        assert torch.equal(a, b)


def test_other_peoples_gradients_are_restored():
    """A second optimizer's parameters get the first pass's gradients too."""
    model = network()
    half = list(model[-1].parameters())
    rest = [p for p in model.parameters() if not any(p is q for q in half)]
    optimizer = AdaHessian(half, lr=0.0, curvature="finite_difference")
    x, y = images()

    def closure():
        model.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        return loss

    torch.manual_seed(1)
    optimizer.step(closure)
    grads = [p.grad for p in rest]
    model.load_state_dict(network().state_dict())
    torch.manual_seed(1)
    closure()
    for p, grad in zip(rest, grads, strict=True):
        assert torch.equal(p.grad, grad)


def test_gradients_stay_in_their_buffer():
    """Regression: a step left clones, and what the closure did to the buffer was lost."""
    left = []
    for in_buffer in (False, True):
        model = network()
        params = list(model.parameters())
        optimizer = AdaHessian(params, curvature="finite_difference")
        buffer = torch.zeros(sum(p.numel() for p in params), dtype=torch.float64)
        parts = buffer.split([p.numel() for p in params])
        views = [part.view_as(p) for p, part in zip(params, parts, strict=True)]
        for p, view in zip(params, views, strict=True):
            p.grad = view if in_buffer else None
        torch.manual_seed(1)
        for _ in range(2):
            optimizer.step(closure_of(model, optimizer, set_to_none=not in_buffer))
        left.append([*params, *(views if in_buffer else [p.grad for p in params])])
    for alone, found in zip(*left, strict=True):
        assert torch.equal(alone, found)


@pytest.mark.parametrize("begins", [0, 2])
@pytest.mark.parametrize("are_views", [False, True])
def test_a_closure_may_keep_the_tensors_of_its_gradients(are_views, begins):
    """Regression: the second evaluation wrote over the first one's gradients, H·z was zero."""
    left = []
    for in_its_own in (False, True):
        model = network()
        optimizer = AdaHessian(model.parameters(), curvature="finite_difference")
        usual = closure_of(model, optimizer)
        own = [torch.zeros(p.numel(), dtype=p.dtype) for p in model.parameters()]
        if not are_views:
            own = [torch.zeros_like(p) for p in model.parameters()]

        def closure(step, model=model, own=own, in_its_own=in_its_own, usual=usual):
            loss = usual()
            for p, kept in zip(model.parameters(), own, strict=True):
                if in_its_own and step >= begins:
                    p.grad = kept.view_as(p).copy_(p.grad)
            return loss

        torch.manual_seed(1)
        for step in range(4):
            if in_its_own and step == begins > 0:
                state, before = random_state(), copy.deepcopy(model.state_dict())
                with pytest.raises(RuntimeError, match="tensors that it keeps, .* step again"):
                    optimizer.step(lambda: closure(begins))
                set_random_state(state)
                model.load_state_dict(before)
            optimizer.step(lambda step=step: closure(step))
        left.append(list(model.parameters()))
    for alone, found in zip(*left, strict=True):
        torch.testing.assert_close(alone, found, rtol=1e-12, atol=0)


def new_batch(model, optimizer):
    batches = iter(torch.randn(9, 32, 1, 8, 8, dtype=torch.float64))

    def closure():
        optimizer.zero_grad()
        loss = (model(next(batches)) ** 2).mean()
        loss.backward()
        return loss

    return closure


def no_zeroing(model, optimizer):
    x, y = images()

    def closure():
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        return loss

    return closure


def other_branch(model, optimizer):
    calls = []
    closure = closure_of(model, optimizer)

    def alternating():
        calls.append(1)
        return closure() if len(calls) % 2 else closure() + closure()

    return alternating


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (new_batch, "the loss is .* one fixed batch"),
        (no_zeroing, "clear the gradients itself"),
        (other_branch, "not the first one's computation"),
    ],
)
def test_a_closure_that_is_not_repeatable_is_found_at_the_first_step(make, message):
    model = network()
    optimizer = AdaHessian(model.parameters(), curvature="finite_difference")
    before = snapshot(optimizer, list(model.parameters()))
    with pytest.raises(RuntimeError, match=message):
        optimizer.step(make(model, optimizer))
    assert_unchanged(optimizer, list(model.parameters()), before)


def test_a_step_lost_in_rounding_is_an_error():
    """θ + h·z = θ would be zero curvature, and a division by eps."""
    small = torch.ones(3, requires_grad=True)
    large = torch.full((4,), 1e6, requires_grad=True)
    optimizer = AdaHessian([small, large], curvature="finite_difference")
    with pytest.raises(RuntimeError, match=r"lost in the rounding.*shape \(4,\).*1e\+06"):
        take_step(optimizer, [small, large], lambda a, b: (a**2).sum() + (b**2 / 1e12).sum())
    assert torch.equal(large, torch.full((4,), 1e6))


def test_parameters_that_share_their_memory_are_named_as_such():
    """Regression: the step along both was called lost in the rounding of one."""
    a = nn.Parameter(torch.tensor([0.5, -1.0, 2.0]))
    optimizer = AdaHessian([a, nn.Parameter(a.data)], curvature="finite_difference")
    b = optimizer.param_groups[0]["params"][1]
    with pytest.raises(RuntimeError, match="two parameters share their memory"):
        take_step(optimizer, [a, b], lambda a, b: (a**4).sum() + (b**2 * a).sum())
    assert a.tolist() == [0.5, -1.0, 2.0]
    buffer = torch.ones(6)
    a, b = (nn.Parameter(half) for half in buffer.split(3))
    optimizer = AdaHessian([a, b], curvature="finite_difference")
    take_step(optimizer, [a, b], lambda a, b: (a**4).sum() + (b**2 * a).sum())
    assert (buffer < 1).all()


def test_finite_difference_needs_a_closure():
    p = torch.ones(3, requires_grad=True)
    optimizer = AdaHessian([p], curvature="finite_difference")
    (p**2).sum().backward()
    with pytest.raises(RuntimeError, match="optimizer.step\\(closure\\)"):
        optimizer.step()


@pytest.mark.filterwarnings("ignore:The CUDA Graph is empty")
@pytest.mark.skipif(not on_gpu(), reason="on a GPU: pytest --device cuda")
def test_a_step_is_not_captured():
    """Each replay would repeat one probe and one bias correction."""
    p = torch.ones(3, requires_grad=True)
    optimizer = AdaHessian([p])
    take_step(optimizer, [p], lambda p: (p**2).sum())
    with pytest.raises(RuntimeError, match="cannot be captured"):
        with torch.cuda.graph(torch.cuda.CUDAGraph()):
            take_step(optimizer, [p], lambda p: (p**2).sum())


@pytest.mark.parametrize("curvature", ["double_backward", "finite_difference"])
def test_clipping_acts_on_the_gradient_alone(curvature):
    _, free, _, _ = run(curvature, num_steps=1)
    model, clipped, _, _ = run(curvature, num_steps=1, max_grad_norm=0.01)
    norm = torch.stack([p.grad.norm() for p in model.parameters()]).norm()
    assert norm.item() == pytest.approx(0.01, rel=1e-4)
    for a, b in zip(free.state.values(), clipped.state.values(), strict=True):
        assert torch.equal(a["exp_hessian_diag_sq"], b["exp_hessian_diag_sq"])


@pytest.mark.parametrize("curvature", ["double_backward", "finite_difference"])
def test_curvature_error_changes_nothing(curvature):
    model, optimizer, _, _ = run(curvature, num_steps=3)
    grads = [p.grad.clone() for p in model.parameters()]
    buffers = [b.clone() for b in model.buffers()]
    before = snapshot(optimizer, list(model.parameters()))
    random = random_state()
    error = optimizer.curvature_error(closure_of(model, optimizer))
    assert 0 < error.median < 1e-6 and error.largest < 1e-5
    assert error.mean_ratio == pytest.approx(1, abs=1e-6)
    assert list(error.flat) == [1]  # the bias before batch normalization
    optimizer.curvature_error(closure_of(model, optimizer, set_to_none=False))
    assert_unchanged(optimizer, list(model.parameters()), before)
    assert torch.equal(random, random_state())
    for p, grad in zip(model.parameters(), grads, strict=True):
        assert torch.equal(p.grad, grad)
    for b, value in zip(model.buffers(), buffers, strict=True):
        assert torch.equal(b, value)


def test_resume_with_finite_differences_is_bitwise():
    model, optimizer, _, _ = run("finite_difference", num_steps=4, update_interval=3)
    twin = network()
    twin.load_state_dict(save_and_load(model.state_dict()))
    other = AdaHessian(twin.parameters(), curvature="finite_difference", update_interval=3)
    other.load_state_dict(save_and_load(optimizer.state_dict()))
    for m, o in ((model, optimizer), (twin, other)):
        torch.manual_seed(1)
        for _ in range(4):
            o.step(closure_of(m, o))
    for a, b in zip(model.state_dict().values(), twin.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_kernels_without_a_second_derivative():
    """torch's fast attention has none: double backward says what to do, differences just work."""
    torch.manual_seed(0)
    q = torch.randn(2, 2, 16, 8, requires_grad=True)

    def loss(q):
        return nn.functional.scaled_dot_product_attention(q, q, q).square().sum()

    with pytest.raises(RuntimeError, match="finite_difference.*SDPBackend.MATH"):
        take_step(AdaHessian([q]), [q], loss)
    optimizer = AdaHessian([q], curvature="finite_difference", lr=0.01)
    losses = [take_step(optimizer, [q], loss).item() for _ in range(5)]
    assert losses[-1] < losses[0]
