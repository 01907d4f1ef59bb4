"""Which parameters take part, from when on, and which are refused.

"Regression:" names a published implementation that fails the test (repositories as in
docs/implementations.md).
"""

import copy

import pytest
import torch
from support.problems import conv_problem
from support.stepping import assert_unchanged, leaves, save_and_load, snapshot, take_step
from torch import nn

from adahessian import AdaHessian


def test_frozen_unused_and_linear_parameters():
    """Regression: REF and JET raise a misleading error on zero curvature; REF instruction shifts
    the gradients' index when one is None."""
    used, frozen, unused, linear = (
        torch.full((3,), 2.0, dtype=torch.float64, requires_grad=r)
        for r in (True, False, True, True)
    )
    optimizer = AdaHessian([frozen, unused, linear, used], lr=0.1, eps=0.5)
    take_step(
        optimizer, [frozen, unused, linear, used], lambda _f, _u, b, x: (x**4).sum() + b.sum()
    )
    assert torch.equal(frozen, torch.full_like(frozen, 2.0))
    assert torch.equal(unused, torch.full_like(unused, 2.0))
    # 4x³ / (12x² + eps) and 1 / (0 + eps)
    torch.testing.assert_close(used.detach(), torch.full_like(used, 2.0 - 0.1 * 32 / 48.5))
    torch.testing.assert_close(linear.detach(), torch.full_like(linear, 2.0 - 0.1 / 0.5))


def test_unfrozen_parameter_begins_with_a_refresh_of_its_own():
    """At the next step. Regression: DAV and TIMM raise AttributeError on `hess`."""
    initial, loss = conv_problem()
    params = leaves(initial)
    params[1].requires_grad_(False)
    optimizer = AdaHessian(params, update_interval=3)
    take_step(optimizer, params, loss)
    params[1].requires_grad_(True)
    for step in (1, 2, 3):
        take_step(optimizer, params, loss)
        waited = torch.equal(params[1], initial[1])
        assert waited == (step < 2)
    assert [optimizer.state[params[1]][k] for k in ("step", "num_refreshes")] == [2, 2]
    assert [optimizer.state[params[0]][k] for k in ("step", "num_refreshes")] == [4, 2]


def test_added_group_falls_in_with_the_interval():
    initial, loss = conv_problem()
    params = leaves(initial)
    optimizer = AdaHessian(params[:3], update_interval=3)
    needed = []
    for step in range(7):
        if step == 1:
            optimizer.add_param_group({"params": params[3:], "lr": 0.01})
        needed.append(optimizer.needs_graph)
        take_step(optimizer, params, loss)
        assert torch.equal(params[3], initial[3]) == (step < 2)
    assert needed == [True, False, True, True, False, False, True]


@pytest.mark.parametrize("curvature", ["double_backward", "finite_difference"])
@pytest.mark.parametrize("interval", [1, 2])  # at a refresh and between two
def test_a_parameter_frozen_with_a_gradient_left_stays_where_it_is(curvature, interval):
    p, q = (torch.ones(3, requires_grad=True) for _ in range(2))
    optimizer = AdaHessian([p, q], curvature=curvature, lr=0.1, update_interval=interval)

    def closure():
        optimizer.zero_grad(set_to_none=False)
        loss = (p**4 + q.detach() ** 2).sum() if not q.requires_grad else (p * q**2 + p**4).sum()
        loss.backward(create_graph=optimizer.needs_graph)
        return loss

    optimizer.step(closure)
    q.requires_grad_(False)
    frozen, moving = q.clone(), p.detach().clone()
    optimizer.step(closure)
    assert q.grad is not None
    assert torch.equal(q, frozen) and not torch.equal(p, moving)


def heads_in_turns(interval, steps, options=None, turn=lambda step: step % 2):
    """Return (optimizer, heads, trunk, which steps needed a graph)."""
    trunk = torch.ones(3, dtype=torch.float64, requires_grad=True)
    heads = [torch.full((3,), 1.0 + i, dtype=torch.float64, requires_grad=True) for i in range(2)]
    optimizer = AdaHessian([trunk, *heads], lr=0.01, update_interval=interval, **(options or {}))
    needed = []
    for step in range(steps):
        needed.append(optimizer.needs_graph)
        head = turn(step)
        if head is None:
            take_step(optimizer, [trunk], lambda t: (t**4).sum())
        else:
            take_step(optimizer, [trunk, heads[head]], lambda t, h: ((t * h) ** 4).sum())
    return optimizer, heads, trunk, needed


@pytest.mark.parametrize("interval", [2, 4, 10])
@pytest.mark.parametrize("options", [{}, {"curvature": "finite_difference"}])
def test_heads_in_turns_are_all_refreshed(interval, options):
    """Every refresh of the group meets the same head, if the interval is even."""
    optimizer, heads, trunk, needed = heads_in_turns(interval, 40 * interval, options)
    first, second = (optimizer.state[h] for h in heads)
    assert first["step"] == second["step"] + 1 == 20 * interval
    assert first["num_refreshes"] == 40 == optimizer.state[trunk]["num_refreshes"]
    assert 4 <= second["num_refreshes"] <= 40
    if not options:  # each of these few costs a graph, and no other step
        assert sum(needed) <= 40 + 2 * second["num_refreshes"]


def test_a_head_that_is_never_seen_again_asks_no_graph_of_the_others():
    _, _, _, needed = heads_in_turns(4, 400, turn=lambda step: 0 if step < 5 else None)
    assert sum(needed) == 100
    optimizer, heads, _, needed = heads_in_turns(4, 400, turn=lambda step: int(step % 99 == 1))
    assert optimizer.state[heads[1]]["num_refreshes"] >= 1  # rare, and begun
    assert sum(needed[200:]) <= 51


@pytest.mark.parametrize("steps_with", [0, 5])
def test_a_group_without_gradients_asks_no_graph_of_the_others(steps_with):
    """Regression: its refresh stayed due, and every step needed a graph."""
    a, b = (torch.ones(3, requires_grad=True) for _ in range(2))
    optimizer = AdaHessian([{"params": [a]}, {"params": [b], "update_interval": 5}])
    optimizer.param_groups[0]["update_interval"] = 10
    needed = []
    for step in range(22):
        needed.append(optimizer.needs_graph)
        uses = step < steps_with
        take_step(
            optimizer, [a, b], lambda a, b, uses=uses: (a**4).sum() + ((b**4).sum() if uses else 0)
        )
    assert [i for i, needs in enumerate(needed) if needs] == [0, 5, 10, 15, 20]
    assert [g["last_refresh"] for g in optimizer.param_groups] == [20, 20]
    for _ in range(2):  # between two refreshes
        take_step(optimizer, [a, b], lambda a, b: (a**4).sum() + (b**4).sum())
    assert optimizer.state[b]["num_refreshes"] == 1 and not optimizer.needs_graph


def test_a_step_without_any_gradient_leaves_the_first_refresh_due():
    a = torch.ones(3, requires_grad=True)
    optimizer = AdaHessian([a], update_interval=10)
    optimizer.step()
    assert optimizer.needs_graph
    take_step(optimizer, [a], lambda a: (a**4).sum())
    assert optimizer.param_groups[0]["last_refresh"] == 1


@pytest.mark.parametrize("size", [0, 2])
def test_a_constant_gradient_that_is_due_alone(size):
    """Regression: without a closure its graph was called missing, though others have one."""
    a, b = (torch.ones(n, dtype=torch.float64, requires_grad=True) for n in (3, size))
    optimizer = AdaHessian([{"params": [a], "update_interval": 3}, {"params": [b]}])
    for _ in range(3):
        optimizer.zero_grad()
        ((a**4).sum() + b.sum()).backward(create_graph=optimizer.needs_graph)
        optimizer.step()
    assert optimizer.state[b]["num_refreshes"] == 3
    assert not optimizer.state[b]["exp_hessian_diag_sq"].any()


def test_what_waits_is_in_the_state_dict():
    """A run that is resumed asks for the same graphs."""
    a, heads, trunk, _ = heads_in_turns(4, 2)
    assert a.param_groups[0]["missed"] == (2,) and a.needs_graph
    b = AdaHessian([p.detach().clone().requires_grad_() for p in (trunk, *heads)])
    b.load_state_dict(save_and_load(a.state_dict()))
    assert b.param_groups[0]["missed"] == (2,) and b.needs_graph
    heads[1].requires_grad_(False)
    assert not a.needs_graph


def test_the_curvature_of_who_is_refreshed_alone_is_the_oracles():
    """A refresh of its own probes one parameter: its diagonal block of the Hessian."""
    optimizer, heads, trunk, _ = heads_in_turns(4, 3, turn=lambda step: [0, 1, None][step])
    h, t = heads[1].detach().clone(), trunk.detach().clone()
    take_step(optimizer, [trunk, heads[1]], lambda t, h: ((t * h) ** 4).sum())
    expected = 0.001 * (12 * h**2 * t**4) ** 2
    torch.testing.assert_close(optimizer.state[heads[1]]["exp_hessian_diag_sq"], expected)


def test_a_parameter_that_was_cast_is_named_with_the_way_out():
    p = nn.Parameter(torch.ones(3))
    optimizer = AdaHessian([p])
    take_step(optimizer, [p], lambda p: (p**4).sum())
    p.data = p.data.double()
    p.grad = torch.ones_like(p)
    optimizer.param_groups[0]["update_interval"] = 9
    with pytest.raises(ValueError, match=r"parameter 0 .* optimizer.load_state_dict\(optimizer"):
        optimizer.step()


@pytest.mark.parametrize("foreach", [True, False])
@pytest.mark.parametrize("shape", [(7, 3), (1, 3), (3,), (5, 1)])
def test_a_parameter_that_was_resized_is_named_with_the_way_out(shape, foreach):
    """Regression: shapes that broadcast trained on, others raised when the step was half taken."""
    p = nn.Parameter(torch.ones(5, 3))
    optimizer = AdaHessian([("w", p)], foreach=foreach)
    take_step(optimizer, [p], lambda p: (p**4).sum())
    p.data = torch.ones(shape)
    p.grad = None
    before = snapshot(optimizer, [p])
    with pytest.raises(ValueError, match=r"\(w\), .*has a state of shape \(5, 3\)"):
        take_step(optimizer, [p], lambda p: (p**4).sum())
    assert_unchanged(optimizer, [p], before)
    optimizer.state.pop(p)
    take_step(optimizer, [p], lambda p: (p**4).sum())
    assert optimizer.state[p]["exp_avg"].shape == shape and (p < 1).all()


def test_the_way_out_after_a_cast():
    model = nn.Linear(3, 1)
    optimizer = AdaHessian(model.parameters())
    x = torch.ones(2, 3)
    take_step(optimizer, [model], lambda m: m(x).square().mean())
    model.double()
    optimizer.zero_grad()
    optimizer.load_state_dict(optimizer.state_dict())
    take_step(optimizer, [model], lambda m: m(x.double()).square().mean())
    assert all(s["exp_avg"].dtype == torch.float64 for s in optimizer.state.values())


def test_wholly_frozen_group_never_asks_for_a_graph():
    initial, loss = conv_problem()
    params = leaves(initial)
    for p in params[:2]:
        p.requires_grad_(False)
    optimizer = AdaHessian([{"params": params[:2]}, {"params": params[2:]}], update_interval=2)
    needed = []
    for _ in range(4):
        needed.append(optimizer.needs_graph)
        take_step(optimizer, params, loss)
    assert needed == [True, False, True, False]


def test_gradients_that_are_views():
    """Regression: REF's detach_() raises on them (DistributedDataParallel's buckets)."""
    initial, loss = conv_problem()
    params, views = leaves(initial), leaves(initial)
    a, b = AdaHessian(params), AdaHessian(views)
    take_step(a, params, loss)
    grads = torch.autograd.grad(loss(*views), views, create_graph=True)
    flat = torch.cat([g.reshape(-1) for g in grads])
    for p, part in zip(views, flat.split([p.numel() for p in views]), strict=True):
        p.grad = part.view_as(p)
    b.step()
    for p, q in zip(params, views, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-12)
        assert not q.grad.requires_grad


@pytest.mark.parametrize("foreach", [False, True])
def test_storage_never_moves(foreach):
    """Regression: REF rebinds p.data at every step, which breaks flat buffers and CUDA graphs."""
    initial, loss = conv_problem()
    params = leaves(initial)
    optimizer = AdaHessian(params, foreach=foreach, weight_decay=0.1)
    take_step(optimizer, params, loss)
    tensors = params + [
        s[k] for s in optimizer.state.values() for k in ("exp_avg", "exp_hessian_diag_sq")
    ]
    before = [t.data_ptr() for t in tensors]
    take_step(optimizer, params, loss)
    assert [t.data_ptr() for t in tensors] == before


def test_channels_last_network_trains_the_same():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Conv2d(4, 2, 3), nn.Flatten()).double()
    other = copy.deepcopy(model).to(memory_format=torch.channels_last)
    x = torch.randn(5, 3, 6, 6, dtype=torch.float64)
    for m, images in ((model, x), (other, x.to(memory_format=torch.channels_last))):
        optimizer = AdaHessian(m.parameters())
        for _ in range(3):
            take_step(optimizer, list(m.parameters()), lambda *_: (m(images) ** 2).mean())  # noqa: B023
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-12)


# --- bad input ------------------------------------------------------------------------------------


def make_sparse(p):
    with torch.sparse.check_sparse_tensor_invariants():  # torch warns where it is left open
        p.grad = torch.sparse_coo_tensor([[0]], [1.0], (4,))


def make_complex(p):
    p.data = p.data.to(torch.complex64)
    p.grad = torch.ones(4, dtype=torch.complex64)


def make_half(p):
    p.data = p.data.to(torch.bfloat16)
    p.grad = torch.ones(4, dtype=torch.bfloat16)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [(make_sparse, "sparse"), (make_complex, "complex"), (make_half, "bfloat16.*autocast")],
)
def test_unfit_parameter_is_named_and_nothing_changes(spoil, message):
    good = torch.ones(3, requires_grad=True)
    bad = torch.ones(4, requires_grad=True)
    optimizer = AdaHessian([good, bad])
    take_step(optimizer, [good], lambda x: (x**4).sum())
    before = snapshot(optimizer, [good])
    spoil(bad)
    with pytest.raises(ValueError, match=message) as error:
        optimizer.step()
    assert "parameter 1 " in str(error.value)
    assert_unchanged(optimizer, [good], before)


TYPES = dict.fromkeys(t for t in vars(torch).values() if isinstance(t, torch.dtype))
FIT = (torch.float32, torch.float64)
UNFIT = [{"dtype": t} for t in TYPES if (t.is_floating_point or t.is_complex) and t not in FIT]
UNFIT.append({"device": "meta"})


@pytest.mark.filterwarnings("ignore:.* support is experimental")
@pytest.mark.parametrize("kind", UNFIT, ids=str)
@pytest.mark.parametrize("fraction", [1.0, 0.5])
@pytest.mark.parametrize("curvature", ["double_backward", "finite_difference"])
def test_numbers_of_each_kind_are_refused_before_anything_is_computed(curvature, fraction, kind):
    bad = nn.Parameter(torch.empty(4, **kind))
    optimizer = AdaHessian([bad], curvature=curvature, curvature_fraction=fraction)
    optimizer.curvature_closure = lambda start, stop: pytest.fail("evaluated")
    with pytest.raises(ValueError, match="complex|has dtype|to_empty"):
        optimizer.step(lambda: pytest.fail("evaluated"))


def test_parameters_without_a_shape_are_refused_where_a_probe_comes_first():
    model = nn.Sequential(nn.LazyLinear(2))
    optimizer = AdaHessian(model.parameters(), curvature="finite_difference")
    for evaluate in (optimizer.step, optimizer.curvature_error):
        with pytest.raises(ValueError, match="lazy module .* call the model once"):
            evaluate(lambda: pytest.fail("evaluated"))
    exact = AdaHessian(model.parameters())
    take_step(exact, list(model.parameters()), lambda *_: model(torch.ones(4, 3)).square().sum())
    assert len(exact.state) == 2
