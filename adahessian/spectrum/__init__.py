"""Spectra of a model's curvature, or of any symmetric matrix known by its products with vectors.

    from adahessian.spectrum import Hessian, spectral_density, top_eigenvalues, trace

    hessian = Hessian(lambda batch: loss_fn(model(batch[0]), batch[1]), model, loader)
    print(top_eigenvalues(hessian, 5).eigenvalues, trace(hessian))
    grid, density = spectral_density(hessian, num_lanczos_steps=80)

All cost is in the products, so all functions report progress by products, and all answers carry
their own uncertainty: a residual, or a standard error. Random vectors are ±1 from the project's
hash (:mod:`adahessian.probes`): the same seed gives the same result, and no generator is touched.
docs/spectrum.md tells what is measured about cost and accuracy.
"""

from adahessian.spectrum.density import Quadrature, lanczos_quadrature, smooth, spectral_density
from adahessian.spectrum.eigenvalues import Eigenpairs, smallest_eigenvalues, top_eigenvalues
from adahessian.spectrum.estimate import Estimate
from adahessian.spectrum.estimates import block_traces, diagonal, frobenius_norm, trace
from adahessian.spectrum.matvec import GaussNewton, Hessian, layers
from adahessian.spectrum.products import Matvec, SymmetricMatvec

__all__ = [
    "Eigenpairs",
    "Estimate",
    "GaussNewton",
    "Hessian",
    "Matvec",
    "Quadrature",
    "SymmetricMatvec",
    "block_traces",
    "diagonal",
    "frobenius_norm",
    "lanczos_quadrature",
    "layers",
    "smallest_eigenvalues",
    "smooth",
    "spectral_density",
    "top_eigenvalues",
    "trace",
]
