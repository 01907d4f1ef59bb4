"""The table of docs/implementations.md, checked against the packages that can be installed.

The loss has a diagonal Hessian, where z · Hz is the diagonal whatever the probe: so theirs and ours
can be compared although they draw different probes.
"""

import pytest
import torch
from support.stepping import save_and_load

from adahessian import AdaHessian

pytestmark = [
    pytest.mark.slow,
    # Of packages that we do not maintain.
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
]
SHAPES = [(5,), (3, 4), (2, 3, 3, 3)]


def theirs_torch_optimizer(params):
    import torch_optimizer

    return torch_optimizer.Adahessian(params, lr=0.15)


def theirs_timm(params):
    from timm.optim.adahessian import Adahessian

    return Adahessian(params)


def theirs_timm_kernels(params):
    from timm.optim.adahessian import Adahessian

    return Adahessian(params, avg_conv_kernel=True, weight_decay=0.1)


def theirs_pytorch_optimizer(params):
    import pytorch_optimizer

    return pytorch_optimizer.load_optimizer("adahessian")(params)


CASES = {
    "torch_optimizer": (theirs_torch_optimizer, {"hessian_power": 0.5}),
    "pytorch_optimizer": (
        theirs_pytorch_optimizer,
        {"block_size": None, "averaging": "signed", "lr": 0.1, "eps": 1e-16},
    ),
    "timm": (
        theirs_timm,
        {"block_size": None, "averaging": "signed", "lr": 0.1, "eps": 1e-8},
    ),
    "timm, kernels": (theirs_timm_kernels, {"lr": 0.1, "eps": 1e-8, "weight_decay": 0.1}),
}


def loss(params):
    return sum(
        (torch.linspace(0.5, 2, p.numel()).view_as(p) * (p**2 + p**4 / 4)).sum() for p in params
    )


@pytest.mark.parametrize(("make", "options"), CASES.values(), ids=CASES.keys())
def test_options_reproduce_the_published_package(make, options):
    torch.manual_seed(0)
    theirs = [torch.randn(s).requires_grad_() for s in SHAPES]
    ours = [p.detach().clone().requires_grad_() for p in theirs]
    for params, optimizer in ((theirs, make(theirs)), (ours, AdaHessian(ours, **options))):
        for _ in range(8):
            optimizer.zero_grad()
            loss(params).backward(create_graph=True)
            optimizer.step()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("make", "options"), CASES.values(), ids=CASES.keys())
def test_a_state_dict_of_the_published_package_goes_on(make, options):
    torch.manual_seed(0)
    theirs = [torch.randn(s).requires_grad_() for s in SHAPES]
    published = make(theirs)

    def steps(params, optimizer, number):
        for _ in range(number):
            optimizer.zero_grad()
            loss(params).backward(create_graph=True)
            optimizer.step()

    steps(theirs, published, 5)
    ours = [p.detach().clone().requires_grad_() for p in theirs]
    optimizer = AdaHessian(ours, **options)
    optimizer.load_state_dict(save_and_load(published.state_dict()))
    assert optimizer.needs_graph
    steps(theirs, published, 5)
    steps(ours, optimizer, 5)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    assert all(s["step"] == s["num_refreshes"] == 10 for s in optimizer.state.values())


def test_weight_decay_that_is_not_decoupled_is_refused():
    import pytorch_optimizer

    p = torch.ones(3, requires_grad=True)
    published = pytorch_optimizer.load_optimizer("adahessian")(
        [p], weight_decay=0.1, weight_decouple=False
    )
    with pytest.raises(ValueError, match="weight_decouple=False"):
        AdaHessian([p]).load_state_dict(published.state_dict())
