"""AdaHessian (arXiv:2006.00719) for Keras 3, on TensorFlow, JAX and torch.

Needs Keras and one of its backends: ``pip install adahessian[keras]`` beside the backend. Only the
active backend is imported. See docs/keras.md.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from adahessian.keras.averaging import block_average
    from adahessian.keras.model import second_order
    from adahessian.keras.optimizer import AdaHessian

__all__ = ["AdaHessian", "block_average", "second_order"]

_HOMES = {
    "AdaHessian": "optimizer",
    "block_average": "averaging",
    "second_order": "model",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
