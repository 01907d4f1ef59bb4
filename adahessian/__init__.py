"""AdaHessian, a second-order optimizer for deep learning (arXiv:2006.00719), for PyTorch.

Names are resolved when they are first used (PEP 562), so that ``adahessian.jax`` can be imported
where torch is not installed.
"""

from importlib import import_module

_HOMES = {
    "AdaHessian": "adahessian.optimizer",
    "CurvatureStatistics": "adahessian.curvature_statistics",
    "block_average": "adahessian.averaging",
    "grad_and_hessian": "adahessian.functional",
    "rademacher_like": "adahessian.probes",
    "value_grad_and_hessian": "adahessian.functional",
}
_ALIASES = {"Adahessian": "AdaHessian"}  # the published spelling

__all__ = [*_HOMES, *_ALIASES]
__version__ = "0.1.0"


def __getattr__(name: str):
    name = _ALIASES.get(name, name)
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
