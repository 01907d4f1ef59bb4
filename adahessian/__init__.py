"""AdaHessian, a second-order optimizer for deep learning (arXiv:2006.00719), for PyTorch.

Names are resolved when they are first used (PEP 562), so that ``adahessian.jax`` and
``adahessian.keras`` can be imported where torch is not installed. Type checkers see ordinary
imports.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from adahessian.averaging import block_average
    from adahessian.curvature.verdict import CurvatureWarning
    from adahessian.curvature_statistics import CurvatureStatistics
    from adahessian.functional import grad_and_hessian, value_grad_and_hessian
    from adahessian.optimizer import AdaHessian, Adahessian
    from adahessian.probes import rademacher_like
    from adahessian.rules import SophiaH

__all__ = [
    "AdaHessian",
    "Adahessian",
    "CurvatureStatistics",
    "CurvatureWarning",
    "SophiaH",
    "block_average",
    "grad_and_hessian",
    "rademacher_like",
    "value_grad_and_hessian",
]
__version__ = "0.1.0"

_HOMES = {
    "AdaHessian": "optimizer",
    "Adahessian": "optimizer",
    "CurvatureStatistics": "curvature_statistics",
    "CurvatureWarning": "curvature.verdict",
    "SophiaH": "rules",
    "block_average": "averaging",
    "grad_and_hessian": "functional",
    "rademacher_like": "probes",
    "value_grad_and_hessian": "functional",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        home = import_module(f"{__name__}.{_HOMES[name]}")
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise ImportError(
            f"adahessian.{name} needs torch: pip install 'adahessian[torch]'. On JAX import "
            "adahessian.jax, with Keras adahessian.keras"
        ) from error
    return getattr(home, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
