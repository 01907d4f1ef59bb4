"""skorch passes a closure: by the finite difference a net trains as the plain loop does."""

import pytest
import torch
from skorch import NeuralNetClassifier
from skorch.callbacks import Callback, GradientNormClipping
from support.digits import (
    assert_same_parameters,
    build_model,
    build_optimizer,
    train_loader,
    train_plainly,
)
from torch import nn

from adahessian import AdaHessian

pytestmark = pytest.mark.slow


class SeedDropout(Callback):
    def on_epoch_begin(self, net, **kwargs):
        torch.manual_seed(len(net.history) - 1)


def build_net(callbacks=(), **options):
    settings = {"lr": 0.15, "weight_decay": 1e-3, "curvature": "finite_difference"} | options
    return NeuralNetClassifier(
        build_model(),
        criterion=nn.CrossEntropyLoss,
        optimizer=AdaHessian,
        lr=settings.pop("lr"),
        **{f"optimizer__{name}": value for name, value in settings.items()},
        max_epochs=3,
        batch_size=64,
        iterator_train__generator=torch.Generator(),
        train_split=None,
        callbacks=[SeedDropout(), *callbacks],
        verbose=0,
    )


def data():
    images, labels = train_loader().dataset.tensors
    return images, labels


@pytest.mark.parametrize("options", [{}, {"update_interval": 3}], ids=["", "interval"])
def test_a_net_is_the_plain_loop(options):
    net = build_net(**options).fit(*data())
    expected = build_model()
    optimizer = build_optimizer(expected.parameters(), "finite_difference", **options)
    train_plainly(expected, optimizer)
    expected.eval()  # as skorch leaves a network
    assert_same_parameters(net.module_, expected)
    assert net.score(*data()) > 0.9


def test_an_interrupted_training_continues(tmp_path):
    whole = build_net().fit(*data())
    files = {f"f_{part}": tmp_path / part for part in ("params", "optimizer", "history")}
    build_net().set_params(max_epochs=2).fit(*data()).save_params(**files)
    resumed = build_net().initialize()
    resumed.load_params(**files)
    resumed.partial_fit(*data(), epochs=1)
    assert_same_parameters(resumed.module_, whole.module_)


def test_clipping_by_a_callback_is_refused():
    """It would be done to the gradients of both evaluations."""
    net = build_net([GradientNormClipping(0.01)])
    with pytest.raises(RuntimeError, match="max_grad_norm does that"):
        net.fit(*data())


def test_double_backward_says_what_to_do():
    with pytest.raises(RuntimeError, match=r"create_graph=optimizer\.needs_graph"):
        build_net(curvature="double_backward").fit(*data())
