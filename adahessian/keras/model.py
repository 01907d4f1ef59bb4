"""What a model needs so that AdaHessian can train it."""

from typing import TypeVar

from adahessian.keras.optimizer import backend

Model = TypeVar("Model")


def second_order(model: Model) -> Model:
    """Let ``model.fit`` and ``model.train_on_batch`` hand H·z to AdaHessian; return ``model``.

    Needed on the JAX backend, where an optimizer sees gradients as numbers without a history: the
    model's own ``train_step`` is then differentiated in the direction of the probes. On the others
    nothing is done, so that one script serves all. Before or after ``compile``; a model that was
    loaded from a file needs it anew.

    Args:
        model: a ``keras.Model``. With another optimizer than AdaHessian it trains as ever.
    """
    return backend.second_order(model)
