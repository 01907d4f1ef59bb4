"""Value, gradient and curvature estimate of any function, without an optimizer."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from adahessian._torch import pytree
from adahessian.curvature.double_backward import double_backward
from adahessian.curvature.hutchinson import Probes
from adahessian.curvature.second_derivatives import CustomFunctions, SecondDerivatives


def value_grad_and_hessian(
    fun: Callable[..., Tensor],
    fun_input: tuple[Any, ...],
    generator: torch.Generator | None = None,
    argnum: int = 0,
    *,
    num_samples: int = 1,
) -> tuple[Tensor, Any, Any]:
    """Return ``fun``'s value, its gradient and an estimate of its Hessian's diagonal.

    The estimate is Hutchinson's, the mean of z·Hz over Rademacher probes z (Eq. 8 of
    arXiv:2006.00719): unbiased, signed and unaveraged. A pass through
    :func:`adahessian.averaging.block_average` gives what the optimizer uses.

    Args:
        fun: a function to a scalar tensor.
        fun_input: the tuple of its positional arguments.
        generator: a CPU generator from which the seed of the probes is drawn (default: torch's).
        argnum: which argument to differentiate. It may be any pytree (nested lists, tuples and
            dicts) of floating-point tensors; they are not changed, nor are their ``grad``.
        num_samples: how many probes to average over.

    Returns:
        (value, gradient, diagonal): a detached scalar and two pytrees like the argument. Where
        ``fun`` does not depend on a tensor, or only linearly, there are zeros.

    Raises:
        TypeError: ``fun_input`` is not a tuple, or ``fun`` does not return a tensor.
        ValueError: ``argnum`` out of range, a leaf that is no floating-point tensor, or a value
            that is no scalar.
    """
    if not isinstance(fun_input, tuple):
        raise TypeError(
            "fun_input must be the tuple of fun's positional arguments, got "
            f"{type(fun_input).__name__}; for a single argument write (argument,)"
        )
    if not 0 <= argnum < len(fun_input):
        raise ValueError(f"argnum is {argnum}, but fun_input has {len(fun_input)} argument(s)")
    paths, spec = pytree.tree_flatten_with_path(fun_input[argnum])
    for path, leaf in paths:
        if not isinstance(leaf, Tensor) or not leaf.is_floating_point():
            kind = leaf.dtype if isinstance(leaf, Tensor) else type(leaf).__name__
            raise ValueError(
                f"argument {argnum}{pytree.keystr(path)} is {kind}: every leaf of the argument to "
                "differentiate must be a floating-point tensor (pass the others by another "
                "argument)"
            )
    leaves = [leaf.detach().clone().requires_grad_() for _, leaf in paths]
    argument = pytree.tree_unflatten(leaves, spec)

    with torch.enable_grad(), SecondDerivatives(look=True) as mode:
        value = fun(*fun_input[:argnum], argument, *fun_input[argnum + 1 :])
        if not isinstance(value, Tensor):
            raise TypeError(f"fun must return a tensor, got {type(value).__name__}")
        if value.numel() != 1:
            raise ValueError(f"fun must return a scalar, got shape {tuple(value.shape)}")
        if value.requires_grad:
            custom = CustomFunctions([value], mode.computed)
            grads = torch.autograd.grad(value, leaves, create_graph=True, materialize_grads=True)
            custom.check(grads)
        else:
            grads = [torch.zeros_like(leaf) for leaf in leaves]

    device = "cpu" if generator is None else generator.device
    seed = int(torch.randint(2**63 - 1, (), generator=generator, device=device))
    probes = Probes(leaves, seed=seed, step=0, num_samples=num_samples)
    diagonal = [torch.zeros_like(leaf) for leaf in leaves]
    for sample, z in enumerate(probes, 1):
        signs = list(z.values())
        products = double_backward(grads, leaves, signs, retain_graph=sample < num_samples)
        torch._foreach_add_(diagonal, torch._foreach_mul(signs, products), alpha=1 / num_samples)
    return (
        value.detach(),
        pytree.tree_unflatten([g.detach() for g in grads], spec),
        pytree.tree_unflatten(diagonal, spec),
    )


def grad_and_hessian(
    fun: Callable[..., Tensor],
    fun_input: tuple[Any, ...],
    generator: torch.Generator | None = None,
    argnum: int = 0,
    *,
    num_samples: int = 1,
) -> tuple[Any, Any]:
    """Return ``fun``'s gradient and curvature estimate; see :func:`value_grad_and_hessian`."""
    _, grad, diagonal = value_grad_and_hessian(
        fun, fun_input, generator, argnum, num_samples=num_samples
    )
    return grad, diagonal
