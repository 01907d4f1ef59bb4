"""Hutchinson's estimate of the Hessian's diagonal, from products with random probes."""

from collections.abc import Callable, Iterator, Sequence

from torch import Tensor

from adahessian import probes


def hutchinson_samples(
    hvp: Callable[[list[Tensor], bool], list[Tensor]],
    params: Sequence[Tensor],
    *,
    seed: int,
    step: int,
    num_samples: int = 1,
    tensor_indices: Sequence[int] | None = None,
) -> Iterator[list[Tensor]]:
    """Yield ``num_samples`` unbiased estimates z·Hz of the Hessian's diagonal.

    E[z zᵀ] = I makes E[z·Hz] = diag(H) (Bekas, Kokiopoulou and Saad 2007; the paper's Eq. 8). One
    estimate's error at element i has the variance of the off-diagonal row, Σ_{j≠i} H_ij².

    Args:
        hvp: takes a vector (one tensor for each parameter) and whether another product follows,
            and returns the Hessian's product with it.
        params: the parameters.
        seed, step, tensor_indices: see :func:`adahessian.probes.rademacher_like`.
        num_samples: how many probes.

    Yields:
        Lists with one tensor of each parameter's shape, signed and unaveraged.
    """
    for sample in range(num_samples):
        z = probes.rademacher_like(
            params, seed=seed, step=step, sample=sample, tensor_indices=tensor_indices
        )
        products = hvp(z, sample + 1 < num_samples)
        yield [zi * hz for zi, hz in zip(z, products, strict=True)]
