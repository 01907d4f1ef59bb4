"""torch's default device and type are for what users make. On this device nothing is computed."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from adahessian import AdaHessian, SophiaH, spectrum, value_grad_and_hessian

OPTIONS = {
    "exact": {},
    "finite difference": {"curvature": "finite_difference"},
    "checked": {"curvature": "finite_difference", "check_interval": 2},
    "delayed": {"update_interval": 2, "num_samples": 2},
    "part": {"curvature_fraction": 0.5},
    "part, finite difference": {"curvature_fraction": 0.5, "curvature": "finite_difference"},
    "blocks": {"block_size": 4, "averaging": "signed", "foreach": False},
}


def problem():
    g = torch.Generator("cpu").manual_seed(0)
    x = torch.randn(64, 2, 6, 6, generator=g, device="cpu")
    y = torch.randint(3, (64,), generator=g, device="cpu")
    torch.manual_seed(0)
    with torch.device("cpu"):
        model = nn.Sequential(
            nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ELU(), nn.Dropout(0.1), nn.Flatten(),
            nn.Linear(64, 3),
        )  # fmt: skip
    return model, x, y


def trained(options, optimizer_class=AdaHessian):
    """Return the parameters after some steps, the last of them in a copy that was saved."""
    model, x, y = problem()
    optimizer = optimizer_class(model.parameters(), lr=0.1, **options)

    def step(optimizer, model):
        def closure():
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward(create_graph=optimizer.needs_graph)
            return loss

        def part(start, stop):
            rows = slice(round(start * 64), round(stop * 64))
            return F.cross_entropy(model(x[rows]), y[rows])

        optimizer.step(closure, curvature_closure=part if "curvature_fraction" in options else None)

    for _ in range(4):
        step(optimizer, model)
    model, state = copy.deepcopy(model), copy.deepcopy(optimizer.state_dict())
    optimizer = optimizer_class(model.parameters(), lr=0.1, **options)
    optimizer.load_state_dict(state)
    for _ in range(3):
        step(optimizer, model)
    return [p.detach() for p in model.parameters()]


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_a_training_is_the_same_with_another_default_type(options, monkeypatch):
    expected = trained(options)
    made = problem()
    monkeypatch.setattr(f"{__name__}.problem", lambda: made)
    torch.set_default_dtype(torch.float16)
    try:
        found = trained(options)
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def is_unmoved(compute):
    expected = compute()
    with torch.device("meta"):
        found = compute()
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_a_training_is_the_same(options):
    is_unmoved(lambda: trained(options))


def test_another_rule_is_the_same():
    is_unmoved(lambda: trained({}, SophiaH))


def test_a_function_is_the_same():
    def compute():
        torch.manual_seed(0)
        w = torch.linspace(-1, 1, 12, device="cpu").view(3, 4)
        return value_grad_and_hessian(lambda w: w.tanh().square().sum(), (w,), num_samples=2)

    is_unmoved(compute)


def test_spectra_are_the_same():
    def compute():
        model, x, y = problem()
        hessian = spectrum.Hessian(lambda b: F.cross_entropy(model(b[0]), b[1]), model, [(x, y)])
        pairs = spectrum.top_eigenvalues(hessian, 2)
        grid, density = spectrum.spectral_density(hessian, num_lanczos_steps=4)
        means = [spectrum.trace(hessian, num_matvecs=4).value, *spectrum.frobenius_norm(hessian, 4)]
        return [pairs.eigenvalues, grid, density, torch.tensor(means, device="cpu")]

    is_unmoved(compute)
