"""The curvature from a part of the batch: against dense Hessians, over all draws, beside a step."""

import copy
import itertools
import pickle
import warnings

import pytest
import torch
from support.device import random_state
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from adahessian import AdaHessian
from adahessian.averaging import block_average
from adahessian.part_correction import remember, scale_factors
from adahessian.probes import rademacher_like

WAYS = ("double_backward", "finite_difference")


class Problem:
    """A smooth network with tensors of several ranks, a batch, and its closures; float64."""

    def __init__(self, examples=32, seed=0):
        torch.manual_seed(seed)
        self.conv = nn.Conv1d(2, 3, 3)
        self.linear = nn.Linear(12, 3)
        self.model = nn.Sequential(self.conv, nn.Tanh(), nn.Flatten(), self.linear).double()
        self.x = torch.randn(examples, 2, 6, dtype=torch.float64)
        self.y = torch.randint(3, (examples,))
        self.asked = []

    @property
    def params(self):
        return list(self.model.parameters())

    def rows(self, start, stop):
        return slice(round(start * len(self.x)), round(stop * len(self.x)))

    def loss(self, start=0.0, stop=1.0):
        rows = self.rows(start, stop)
        return F.cross_entropy(self.model(self.x[rows]), self.y[rows])

    def curvature_closure(self, start, stop):
        self.asked.append((start, stop))
        return self.loss(start, stop)

    def backward(self, **options):
        self.model.zero_grad()
        self.loss().backward(**options)

    def product(self, z, start, stop):
        """z · Hz of a part, by the derivative of the gradient's product with z."""
        grads = torch.autograd.grad(self.loss(start, stop), self.params, create_graph=True)
        inner = sum((g * s).sum() for g, s in zip(grads, z, strict=True))
        return [s * hz for s, hz in zip(z, torch.autograd.grad(inner, self.params), strict=True)]


# ----------------------------------------------------------------------------- the definition


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("fraction", [0.25, 0.5])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"averaging": "signed"},
        {"block_size": None},
        {"block_size": 5, "averaging": "signed"},
        {"num_samples": 3},
        {"foreach": False},
    ],
    ids=str,
)
def test_one_refresh_is_what_the_formulas_say(way, fraction, options):
    problem = Problem()
    optimizer = AdaHessian(
        problem.params, curvature=way, curvature_fraction=fraction, seed=5, lr=0, **options
    )
    problem.backward()
    optimizer.step(curvature_closure=problem.curvature_closure)

    halves = ((0, fraction / 2), (fraction / 2, fraction))
    draws = [
        rademacher_like(problem.params, seed=5, step=0, sample=sample)
        for sample in range(options.get("num_samples", 1))
    ]
    products = [[problem.product(z, *half) for half in halves] for z in draws]
    for i, p in enumerate(problem.params):

        def mean(t):
            return block_average(t, optimizer.defaults["block_size"])

        pairs = [(first[i], second[i]) for first, second in products]
        samples = torch.stack([(a + b) / 2 for a, b in pairs])
        noises = torch.stack([(a - b) / 2 for a, b in pairs])
        if options.get("averaging") == "signed":
            d = torch.stack([mean(s) for s in samples])
            noises = torch.stack([mean(s) for s in noises])
            square, d = d.square().sum(), d.mean(0)
        else:
            square, d = samples.square().sum(), mean(samples.abs().mean(0))
        # signal / (signal + (1 / f - 1) noise), whose denominator is the sample's square
        share = float(1 - (1 - fraction) * noises.square().sum() / square)
        expected = (d * min(max(share, fraction), 1.0) ** 0.5) ** 2
        found = optimizer.state[p]["exp_hessian_diag_sq"] / (1 - 0.999)
        tolerance = 1e-9 if way == "double_backward" else 1e-4
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def test_it_is_called_when_due_for_halves_at_first_and_then_now_and_then():
    problem = Problem()
    optimizer = AdaHessian(problem.params, curvature_fraction=0.5, update_interval=2)
    for _ in range(50):
        problem.backward()
        optimizer.step(curvature_closure=problem.curvature_closure)
    halves, whole = [(0, 0.25), (0.25, 0.5)], [(0, 0.5)]
    assert problem.asked == halves * 16 + halves + whole * 7 + halves


@pytest.mark.parametrize("way", WAYS)
def test_the_whole_batch_beside_the_step_is_the_usual_optimizer(way):
    usual, beside = Problem(), Problem()
    optimizers = [AdaHessian(problem.params, lr=0.1, curvature=way) for problem in (usual, beside)]

    def closure():
        usual.backward(create_graph=optimizers[0].needs_graph)
        return usual.loss()

    for _ in range(5):
        optimizers[0].step(closure)
        beside.backward()
        optimizers[1].step(curvature_closure=beside.curvature_closure)
    assert set(beside.asked) == {(0, 1)}
    for a, b in zip(usual.params, beside.params, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


# ----------------------------------------------------------------------------- the correction


def test_the_derivation_holds_for_every_draw_of_a_part():
    """Over all parts and halves of 6 examples the mean is exact, at every fraction."""
    values = torch.tensor([3.0, -1.0, 0.5, 4.0, -2.0, 7.0], dtype=torch.float64)
    truth = values.mean() ** 2
    for size in (2, 4, 6):
        fraction, half = size / 6, size // 2
        found = []
        for order in itertools.permutations(range(6), size):
            first, second = values[list(order[:half])].mean(), values[list(order[half:])].mean()
            s, noise = (first + second) / 2, (first - second) / 2
            found.append(s**2 - (1 - fraction) * noise**2)
        torch.testing.assert_close(torch.stack(found).mean(), truth)


@pytest.mark.parametrize("fraction", [0.25, 0.5])
def test_corrected_curvature_converges_to_the_whole_batchs(fraction):
    """The root mean square over parts and probes; uncorrected it is far off."""
    problem = Problem(64)
    states = [{} for _ in problem.params]
    truth, raw = torch.zeros(2, 4, dtype=torch.float64)
    for step in range(300):
        order = torch.randperm(64)
        problem.x, problem.y = problem.x[order], problem.y[order]
        z = rademacher_like(problem.params, seed=0, step=step)
        first = problem.product(z, 0, fraction / 2)
        second = problem.product(z, fraction / 2, fraction)
        samples, noises = torch._foreach_add(first, second), torch._foreach_sub(first, second)
        # All refreshes count alike.
        remember(
            states, [samples], [noises], fraction=fraction, beta2=(step / (step + 1)) ** (1 / 8)
        )
        truth += torch.stack(torch._foreach_norm(problem.product(z, 0, 1))).square()
        raw += torch.stack(torch._foreach_norm(samples)).square() / 4
    inflation = (raw / truth).sqrt()
    assert inflation.max() > 1.12
    corrected = inflation * torch.stack(scale_factors(states, fraction))
    assert (corrected - 1).abs().max() < 0.12


def factors(samples, noises, fraction=0.25, states=None):
    """Of tensors that have seen one refresh, or one more."""
    states = [{} for _ in samples] if states is None else states
    remember(states, [samples], [noises], fraction=fraction, beta2=0.999)
    return [float(factor) for factor in scale_factors(states, fraction)]


def test_factors_stay_within_their_bounds():
    nothing, noise, same = torch.zeros(3), torch.tensor([1.0, -2.0]), torch.ones(2)
    found = factors([nothing, noise / 8, same], [nothing, noise, 0 * same])
    assert found == [1.0, 0.5, 1.0]


def test_what_is_remembered_does_not_depend_on_the_fraction():
    """So that it may be changed in the middle of a training."""
    signal, noise = 4.0, 3.0  # t² and S² / n
    states = []
    for fraction in (0.5, 0.25):
        difference = torch.tensor([noise / fraction]).sqrt()
        sample = torch.tensor([signal + (1 / fraction - 1) * noise]).sqrt()
        states.append([{}])
        factors([sample], [difference], fraction, states[-1])
        (found,) = scale_factors(states[-1], 0.125)
        torch.testing.assert_close(found, torch.tensor(4 / 25).sqrt())
    for name, value in states[0][0].items():
        torch.testing.assert_close(value, states[1][0][name])


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
@pytest.mark.parametrize("place", [0, 1])
def test_what_is_not_finite_is_not_remembered(bad, place):
    states = [{}]
    good = [[torch.tensor([2.0, 1.0])], [torch.tensor([1.0, 1.0])]]
    before = factors(*good, states=states)
    remembered = copy.deepcopy(states)
    good[place] = [torch.tensor([bad, 1.0])]
    assert factors(*good, states=states) == before and states == remembered


# ----------------------------------------------------------------------------- beside the step


class Everything(nn.Module):
    """Batch normalization, dropout, a checkpoint, a frozen and an unused parameter."""

    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Linear(6, 8), nn.BatchNorm1d(8)
        self.second, self.last = nn.Linear(8, 8), nn.Linear(8, 3)
        self.last.bias.requires_grad_(False)
        self.unused = nn.Parameter(torch.ones(2))

    def forward(self, x):
        h = F.dropout(F.relu(self.norm(self.first(x))), 0.3, self.training)
        h = h + checkpoint(lambda t: F.relu(self.second(t)), h, use_reentrant=False)
        return self.last(h)


def everything(way, **options):
    torch.manual_seed(0)
    model = Everything()
    x, y = torch.randn(64, 6), torch.randint(3, (64,))
    optimizer = AdaHessian(model.parameters(), curvature=way, curvature_fraction=0.5, **options)

    def curvature_closure(start, stop):
        rows = slice(round(start * 64), round(stop * 64))
        return F.cross_entropy(model(x[rows]), y[rows])

    def gradient():
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()

    return model, optimizer, gradient, curvature_closure


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("way", WAYS)
def test_nothing_is_left_behind(way, fails):
    model, optimizer, gradient, curvature_closure = everything(way, lr=0)
    called = []
    for p in model.parameters():
        if p.requires_grad:
            p.register_post_accumulate_grad_hook(lambda p: called.append(p))
    gradient()
    called.clear()
    grads = {p: (p.grad, None if p.grad is None else p.grad.clone()) for p in model.parameters()}
    before = copy.deepcopy(model.state_dict())
    random = random_state()

    def failing(start, stop):
        loss = curvature_closure(start, stop)
        if start:
            raise KeyError("the second half")
        return loss

    if fails:
        with pytest.raises(KeyError):
            optimizer.step(curvature_closure=failing)
        assert not optimizer.state
    else:
        optimizer.step(curvature_closure=curvature_closure)
        assert len(optimizer.state) == 7
    assert not called and torch.equal(random, random_state())
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    for p, (grad, value) in grads.items():
        assert p.grad is grad and (grad is None or torch.equal(grad, value))


@pytest.mark.parametrize("way", WAYS)
def test_resume_is_bitwise_and_forgets_the_closure(way):
    runs = []
    for resumes in (False, True):
        model, optimizer, gradient, curvature_closure = everything(way)
        for step in range(6):
            gradient()
            optimizer.curvature_closure = curvature_closure
            optimizer.step()
            if resumes and step == 2:
                for copied in (
                    copy.deepcopy(optimizer),
                    pickle.loads(pickle.dumps(optimizer.state_dict())),
                ):
                    assert getattr(copied, "curvature_closure", None) is None
                saved = optimizer.state_dict()
                optimizer = AdaHessian(model.parameters(), curvature=way, curvature_fraction=0.5)
                optimizer.load_state_dict(copy.deepcopy(saved))
        runs.append([p.detach().clone() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


BUFFERS = {
    "bool": lambda: torch.ones(3, dtype=torch.bool),
    "complex": lambda: torch.ones(3, dtype=torch.cfloat),
    "float8": lambda: torch.ones(3).to(torch.float8_e4m3fn),
    "sparse": lambda: torch.eye(3).to_sparse(),
    "compressed": lambda: torch.eye(3).to_sparse_csr(),
    "expanded": lambda: torch.ones(1).expand(3),
    "empty": lambda: torch.empty(0),
    "scalar": lambda: torch.tensor(3),
    "every second": lambda: torch.ones(6)[::2],
    "inference": lambda: torch.ones(3),
}


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
@pytest.mark.parametrize("kind", BUFFERS)
@pytest.mark.parametrize("fraction", [0.5, 1.0])
@pytest.mark.parametrize("way", WAYS)
def test_buffers_of_every_kind(way, fraction, kind):
    """Those that torch lets nobody write to need no copy, and cannot be written back."""
    with torch.inference_mode(kind == "inference"):
        buffer = BUFFERS[kind]()
    problem = Problem()
    problem.model.register_buffer("kept", buffer)
    optimizer = AdaHessian(problem.params, curvature=way, curvature_fraction=fraction)

    def closure():
        problem.model.zero_grad()
        loss = problem.loss()
        loss.backward(create_graph=optimizer.needs_graph)
        return loss

    part = {"curvature_closure": problem.curvature_closure} if fraction < 1 else {}
    for _ in range(2):
        optimizer.step(closure, **part)
    assert problem.model.kept is buffer


@pytest.mark.parametrize("way", WAYS)
def test_the_closure_may_set_the_attribute(way):
    """Where a trainer draws the batch within its closure, only there the part is known."""
    weights = []
    for sets in (False, True):
        problem = Problem()
        optimizer = AdaHessian(problem.params, curvature=way, curvature_fraction=0.5)

        def closure(problem=problem, optimizer=optimizer, sets=sets):
            problem.backward()
            if sets:
                optimizer.curvature_closure = problem.curvature_closure
            return problem.loss()

        for _ in range(3):
            part = {} if sets else {"curvature_closure": problem.curvature_closure}
            optimizer.step(closure, **part)
            assert (optimizer.curvature_closure is not None) == sets
        weights.append([p.detach().clone() for p in problem.params])
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))


def test_an_element_waits_for_its_curvature():
    """A word of the batch that is in no part has a gradient, and a denominator of eps alone."""
    torch.manual_seed(0)
    embedding, linear = nn.Embedding(5, 4), nn.Linear(4, 3)
    words, labels = torch.tensor([0, 1, 2, 3] * 4), torch.arange(16) % 3
    order = words.argsort()  # the first quarter has word 0 alone
    words, labels = words[order], labels[order]
    params = [embedding.weight, *linear.parameters()]
    first = [p.detach().clone() for p in params]
    for foreach in (True, False):
        with torch.no_grad():
            for p, value in zip(params, first, strict=True):
                p.copy_(value)
        optimizer = AdaHessian(params, curvature_fraction=0.25, foreach=foreach)

        def loss(start, stop):
            rows = slice(round(start * 16), round(stop * 16))
            return F.cross_entropy(linear(embedding(words[rows])), labels[rows])

        optimizer.zero_grad()
        loss(0, 1).backward()
        assert embedding.weight.grad[:4].abs().min() > 0
        optimizer.step(curvature_closure=loss)
        moved = (embedding.weight != first[0]).any(1)
        assert moved.tolist() == [True, False, False, False, False]


@pytest.mark.parametrize("way", WAYS)
def test_a_parameter_outside_of_the_part_has_no_curvature_there(way):
    experts = nn.ModuleList(nn.Linear(4, 3) for _ in range(2))
    x, y = torch.randn(16, 4), torch.randint(3, (16,))
    optimizer = AdaHessian(experts.parameters(), curvature=way, curvature_fraction=0.5)

    def loss(start, stop):
        total = F.cross_entropy(experts[0](x), y)
        return total + F.cross_entropy(experts[1](x), y) if stop == 1 else total

    loss(0, 1).backward()
    before = copy.deepcopy(experts.state_dict())
    optimizer.step(curvature_closure=loss)
    after = experts.state_dict()
    assert all(torch.equal(before[k], after[k]) == k.startswith("1") for k in before)


@pytest.mark.parametrize("way", WAYS)
def test_a_loss_without_curvature(way):
    linear = nn.Linear(4, 1)
    x = torch.randn(8, 4)
    optimizer = AdaHessian(linear.parameters(), curvature=way, curvature_fraction=0.5)

    def loss(start, stop):
        return linear(x[round(8 * start) : round(8 * stop)]).mean()

    loss(0, 1).backward()
    before = copy.deepcopy(linear.state_dict())
    optimizer.step(curvature_closure=loss)
    if way == "double_backward":
        assert not optimizer.state[linear.weight]["exp_hessian_diag_sq"].any()
        assert all(torch.equal(before[k], v) for k, v in linear.state_dict().items())


def test_a_derivative_that_ends_the_graph_is_refused():
    """Not one gradient has a graph then, as of a loss without curvature."""

    class Cube(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x**3

        @staticmethod
        def backward(ctx, *grads):
            (x,) = ctx.saved_tensors
            return grads[0].detach() * 3 * x.detach() ** 2

    p = torch.ones(4, requires_grad=True)
    optimizer = AdaHessian([p], curvature_fraction=0.5)
    Cube.apply(p).square().mean().backward()
    with pytest.raises(RuntimeError, match="backward method of Cube builds no graph"):
        optimizer.step(curvature_closure=lambda start, stop: Cube.apply(p).square().mean())


def test_gradients_taken_on_the_way_to_the_loss_raise_no_alarm():
    """Some steps of training within the loss, as in meta-learning."""
    problem = Problem()

    def loss(*bounds):
        weights = dict(problem.model.named_parameters())
        for _ in range(2):
            out = torch.func.functional_call(problem.model, weights, (problem.x[:8],))
            inner = F.cross_entropy(out, problem.y[:8])
            grads = torch.autograd.grad(inner, list(weights.values()), create_graph=True)
            weights = {k: w - 0.5 * g for (k, w), g in zip(weights.items(), grads, strict=True)}
        rows = problem.rows(*bounds)
        out = torch.func.functional_call(problem.model, weights, (problem.x[rows],))
        return F.cross_entropy(out, problem.y[rows])

    optimizer = AdaHessian(
        problem.params, curvature="finite_difference", curvature_fraction=0.5, check_interval=1
    )
    loss(0, 1).backward()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.step(curvature_closure=loss)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("way", WAYS)
def test_the_gradient_may_be_compiled(way, backend):
    weights = []
    for compiles in (False, True):
        model, optimizer, _, _ = everything(way, lr=0.1)
        model.eval()
        x, y = torch.randn(64, 6), torch.randint(3, (64,))
        net = torch.compile(model, backend=backend) if compiles else model

        def loss(start, stop, net=net, x=x, y=y):
            rows = slice(round(start * 64), round(stop * 64))
            return F.cross_entropy(net(x[rows]), y[rows])

        for _ in range(2):
            optimizer.zero_grad()
            loss(0, 1).backward()
            optimizer.step(curvature_closure=loss)
        weights.append([p.detach().clone() for p in model.parameters()])
    for a, b in zip(*weights, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("way", WAYS)
def test_a_grad_scaler_scales_gradient_and_curvature(way):
    """Also behind unscale_: the part's loss does not come through the scaler."""
    weights = []
    for scale in (None, 1.0, 2.0**10):
        model, optimizer, gradient, curvature_closure = everything(way, lr=0.1)
        scaler = torch.amp.GradScaler("cpu", init_scale=scale or 1.0, enabled=scale is not None)
        for step in range(3):
            torch.manual_seed(step)
            gradient()
            for p in model.parameters():
                if p.grad is not None:
                    p.grad.mul_(scaler.get_scale())
            scaler.scale(torch.ones(()))  # begins the scaler's step
            if step == 1:
                scaler.unscale_(optimizer)
            scaler.step(optimizer, curvature_closure=curvature_closure)
            scaler.update()
        weights.append([p.detach().clone() for p in model.parameters()])
    for other in weights[1:]:
        for a, b in zip(weights[0], other, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["None", "batch normalization"])
def test_a_batch_that_is_too_small_postpones_the_refresh(kind):
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    if kind == "None":
        model[1] = nn.Identity()
    optimizer = AdaHessian(model.parameters(), curvature_fraction=0.5, update_interval=2)
    refreshed = []
    for step, examples in enumerate((64, 64, 12, 64, 64, 64)):
        x, y = torch.randn(examples, 4), torch.randint(2, (examples,))

        def loss(start, stop, x=x, y=y):
            rows = slice(round(start * len(x)), round(stop * len(x)))
            if kind == "None" and len(x) < 20:
                return None
            return F.cross_entropy(model(x[rows]), y[rows])

        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        before = [p.detach().clone() for p in model.parameters()]
        optimizer.step(curvature_closure=loss)
        assert not any(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
        if optimizer.param_groups[0]["last_refresh"] == step:
            refreshed.append(step)
    assert refreshed == [0, 3, 5]


# ----------------------------------------------------------------------------- what is refused


def test_without_a_closure_of_the_part():
    problem = Problem()
    optimizer = AdaHessian(problem.params, curvature_fraction=0.5)
    assert not optimizer.needs_graph and not optimizer.is_second_order
    problem.backward()
    before = [p.detach().clone() for p in problem.params]
    with pytest.raises(RuntimeError, match=r"curvature_fraction=0.5 needs .*curvature_closure"):
        optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(before, problem.params, strict=True))


@pytest.mark.parametrize("fraction", [0, -0.5, 1.5, "half", None, True, float("nan")])
def test_fractions_that_are_none(fraction):
    with pytest.raises(ValueError, match="curvature_fraction must be above 0 and at most 1"):
        AdaHessian([nn.Parameter(torch.ones(1))], curvature_fraction=fraction)


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (lambda loss: loss.item(), "must return a loss with its graph, got"),
        (lambda loss: loss.detach(), "must return a loss with its graph"),
        (lambda loss: loss.repeat(2), "must return a loss with its graph"),
        (lambda loss: None, "got None"),
        (lambda loss: loss.backward(), "must return a loss with its graph, got None"),
        (lambda loss: (loss.backward(retain_graph=True), loss)[1], "not call backward"),
    ],
)
@pytest.mark.parametrize("way", WAYS)
def test_a_closure_that_returns_no_loss(way, result, message):
    problem = Problem()
    optimizer = AdaHessian(problem.params, curvature=way, curvature_fraction=0.5)
    problem.backward()
    grads = [p.grad.clone() for p in problem.params]
    with pytest.raises(RuntimeError, match=message):
        optimizer.step(curvature_closure=lambda start, stop: result(problem.loss(start, stop)))
    assert all(torch.equal(p.grad, g) for p, g in zip(problem.params, grads, strict=True))


@pytest.mark.parametrize("first", [True, False], ids=["first", "behind a layer"])
@pytest.mark.parametrize("way", WAYS)
def test_a_reentrant_checkpoint_is_refused(way, first):
    """torch's own message there names neither; where the data come to it first, there is none."""
    inner, outer = nn.Linear(4, 4), nn.Linear(4, 4)
    optimizer = AdaHessian([*inner.parameters(), *outer.parameters()], curvature=way)

    def loss(start=0, stop=1):
        x = torch.ones(2, 4, requires_grad=True)
        x = checkpoint(inner, x if first else outer(x), use_reentrant=True)
        return (outer(x) if first else x).square().mean()

    loss().backward()
    with pytest.raises(RuntimeError, match="use_reentrant=False"):
        optimizer.step(curvature_closure=loss)


@pytest.mark.parametrize(("examples", "outcome"), [(28, "refused"), (56, "warned"), (64, "silent")])
def test_batch_normalization_over_few_examples(examples, outcome, recwarn):
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    x, y = torch.randn(examples, 4), torch.randint(2, (examples,))
    optimizer = AdaHessian(model.parameters(), curvature_fraction=0.5)

    def loss(start, stop):
        rows = slice(round(start * examples), round(stop * examples))
        return F.cross_entropy(model(x[rows]), y[rows])

    def step():
        optimizer.zero_grad()
        loss(0, 1).backward()
        optimizer.step(curvature_closure=loss)

    if outcome == "refused":
        with pytest.raises(RuntimeError, match="batch normalization over 7 examples"):
            step()
        return
    step()
    step()
    said = [str(w.message) for w in recwarn]
    assert len(said) == (outcome == "warned")
    assert all("evaluated on 14 examples" in message for message in said)
