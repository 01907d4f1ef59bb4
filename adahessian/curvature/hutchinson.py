"""Hutchinson's estimate of the Hessian's diagonal, from products with random probes."""

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor

from adahessian import probes
from adahessian.curvature.products import Vector


class Probes:
    """Independent vectors of random signs, each drawn once and when it is needed.

    Iterating yields them in order, by parameter; without those whose gradient is not asked for
    then. They are not kept, so that many take no more memory than one, unless :meth:`keep` is
    called first.

    Args:
        params: the parameters; the vectors take their shapes, dtypes and devices.
        seed, step, tensor_indices: see :func:`adahessian.probes.rademacher_like`.
        num_samples: how many.

    Attributes:
        params: the parameters, in order, as the keys of a dict.
    """

    def __init__(
        self,
        params: Sequence[Tensor],
        *,
        seed: int,
        step: int,
        num_samples: int = 1,
        tensor_indices: Sequence[int] | None = None,
    ) -> None:
        self.params = dict.fromkeys(params)
        self._seed, self._step, self._num_samples = seed, step, num_samples
        self._tensor_indices = tensor_indices
        self._kept: list[Vector] | None = None

    def __len__(self) -> int:
        return self._num_samples

    def __iter__(self) -> Iterator[Vector]:
        if self._kept is not None:
            yield from self._kept
            return
        for sample in range(self._num_samples):
            yield self._draw(sample)

    def keep(self) -> list[Vector]:
        """Return all of them, and hold them for the iterations that follow."""
        if self._kept is None:
            self._kept = list(self)
        return self._kept

    def _draw(self, sample: int) -> Vector:
        indices = range(len(self.params)) if self._tensor_indices is None else self._tensor_indices
        drawn = [(p, i) for p, i in zip(self.params, indices, strict=True) if p.requires_grad]
        z = probes.rademacher_like(
            [p for p, _ in drawn],
            seed=self._seed,
            step=self._step,
            sample=sample,
            tensor_indices=[i for _, i in drawn],
        )
        return {p: signs for (p, _), signs in zip(drawn, z, strict=True)}


def hutchinson_samples(
    product: Callable[[Vector], Vector], vectors: Iterable[Vector]
) -> Iterator[dict[Tensor, Tensor]]:
    """Yield for each probe an unbiased estimate z·Hz of the Hessian's diagonal.

    E[z zᵀ] = I makes E[z·Hz] = diag(H) (Bekas, Kokiopoulou and Saad 2007; the paper's Eq. 8). One
    estimate's error at element i has the variance of the off-diagonal row, Σ_{j≠i} H_ij².

    Args:
        product: takes a vector z and returns Hz (:class:`HessianProducts`).
        vectors: the probes z.

    Yields:
        One tensor of each parameter's shape, signed and unaveraged, by parameter; parameters for
        which ``product`` returns nothing are left out.
    """
    for z in vectors:
        hz = product(z)
        if not hz:
            yield {}
            continue
        products = torch._foreach_mul([z[p] for p in hz], list(hz.values()))
        yield dict(zip(hz, products, strict=True))
