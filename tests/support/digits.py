"""A real, small problem for the trainers: scikit-learn's digits, a network with everything that the
finite difference must hold still, and the plain loop whose parameters a trainer must reproduce."""

import functools

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from adahessian import AdaHessian

CURVATURES = ("double_backward", "finite_difference")


@functools.cache
def _digits():
    data = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32).unsqueeze(1) / 8 - 1
    labels = torch.tensor(data.target)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    return images[order], labels[order]


def train_loader():
    """Return 20 batches of 64 in an order that is drawn beforehand.

    A trainer may ask a loader for an iterator more often than it uses one, and each draws random
    numbers: here from a generator of the loader's own, so that the network's dropout is the same
    whoever iterates.
    """
    images, labels = _digits()
    dataset = TensorDataset(images[:1280], labels[:1280])
    return DataLoader(dataset, 64, generator=torch.Generator())


def build_model(seed=0):
    """Return a network with batch normalization, ReLU, max pooling and dropout."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(inplace=True),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.2),
        nn.Linear(512, 10),
    )


def build_optimizer(params, curvature, **options):
    return AdaHessian(
        params, **{"lr": 0.15, "weight_decay": 1e-3, "curvature": curvature, **options}
    )


@torch.no_grad()
def accuracy(model):
    """Return the share of held-out digits that ``model`` reads correctly."""
    images, labels = _digits()
    model.eval()
    correct = (model(images[1280:]).argmax(dim=1) == labels[1280:]).float().mean().item()
    model.train()
    return correct


def chunks(loader, size):
    """Yield lists of ``size`` consecutive batches."""
    group = []
    for batch in loader:
        group.append(batch)
        if len(group) == size:
            yield group
            group = []


def train_plainly(model, optimizer, epochs=3, accumulate=1, scheduler=None, clip=None, amp=None):
    """Train with the closure of the README; what trainers are compared with.

    Args:
        model, optimizer: what to train, with what.
        epochs: passes through the data.
        accumulate: batches whose mean loss makes a step.
        scheduler: stepped once a step.
        clip: largest norm of the gradient, with double backward.
        amp: the dtype of autocast.
    """
    loader = train_loader()
    dtype = next(model.parameters()).dtype
    for epoch in range(epochs):
        torch.manual_seed(epoch)  # of the dropout
        for batches in chunks(loader, accumulate):

            def closure(batches=batches):
                optimizer.zero_grad()
                total = 0.0
                for images, labels in batches:
                    with torch.autocast("cpu", amp, enabled=amp is not None, cache_enabled=False):
                        loss = F.cross_entropy(model(images.to(dtype)), labels) / accumulate
                    loss.backward(create_graph=optimizer.needs_graph)
                    total = total + loss.detach()
                if clip is not None:
                    nn.utils.clip_grad_norm_(model.parameters(), clip)
                return total

            optimizer.step(closure)
            if scheduler is not None:
                scheduler.step()


def assert_same_parameters(model, expected):
    """Compare parameters and buffers bit for bit."""
    torch.testing.assert_close(model.state_dict(), expected.state_dict(), rtol=0, atol=0)
