"""The outermost eigenvalues of a symmetric matrix, by Lanczos."""

import math
import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from adahessian.spectrum.krylov import KrylovBasis
from adahessian.spectrum.products import Counter, Matvec, Progress, SymmetricMatvec, check_positive


@dataclass(frozen=True)
class Eigenpairs:
    """Eigenvalues and how good they are.

    Attributes:
        eigenvalues: (k,), float64 on the CPU, the outermost first.
        residuals: (k,), ‖A x − λ x‖ for each pair with ‖x‖ = 1, of the products as they were
            computed. An eigenvalue of A lies within that distance of λ.
        converged: (k,), whether the residual met the tolerance.
        eigenvectors: (k, size), one unit vector per row; None unless asked for.
        num_matvecs: products spent.
    """

    eigenvalues: Tensor
    residuals: Tensor
    converged: Tensor
    eigenvectors: Tensor | None
    num_matvecs: int


def top_eigenvalues(
    matvec: Matvec,
    k: int = 1,
    *,
    tolerance: float | None = None,
    max_matvecs: int | None = None,
    num_vectors: int | None = None,
    eigenvectors: bool = False,
    copies: bool = False,
    on_host: bool = False,
    seed: int = 0,
    progress: Progress | None = None,
) -> Eigenpairs:
    """Return the k largest eigenvalues (most positive, not largest in magnitude).

    Lanczos with full re-orthogonalization and thick restarts (Wu and Simon 2000). It stops when
    each of the k pairs has ‖A x − λ x‖ ≤ tolerance·|λ|. That bounds the error of the eigenvalue
    itself, and by far: for an exact A it is of the order of the residual's square over the gap to
    the next eigenvalue. The residual is that of the products as computed, not the usual estimate
    from the last coefficient alone, which an inexact product leaves too small.

    Args:
        matvec: the matrix.
        k: how many.
        tolerance: relative residual to reach (default: 1e-3, or 1e-2 with finite differences,
            whose own errors are not far below that).
        max_matvecs: products to spend at most (default: 300, or 20 k if that is more).
        num_vectors: Lanczos vectors to hold at most, which bounds the memory to num_vectors + 1
            vectors (default: 60, or 2 k + 20 if that is more). Fewer need more products.
        eigenvectors: return them too.
        copies: also find the further copies of multiple eigenvalues. A Lanczos sequence shows each
            distinct eigenvalue once, so this starts further ones from new random vectors,
            orthogonal to what was found, until one changes nothing. Each is long enough to show a
            copy (but for one case in a thousand), which takes 10 to 80 products.
        on_host: keep the Lanczos vectors in the host's memory and orthogonalize there. Each
            product then moves two vectors between host and device.
        seed: of the starting vector.
        progress: called after each product with the number done and ``max_matvecs``.

    Raises:
        ValueError: an argument out of its range.
        RuntimeError: a product that is not finite, or of the wrong shape.

    Warns:
        RuntimeWarning: not all pairs converged, ``converged`` says which; or the products did not
            suffice to look for larger eigenvalues or further copies.
    """
    tolerance, max_matvecs, capacity = _resolve(matvec, k, tolerance, max_matvecs, num_vectors)
    basis = KrylovBasis(matvec, capacity, on_host=on_host, seed=seed)
    basis.start_anew()
    found = None  # the eigenvalues at the end of the last Lanczos sequence
    report = Counter(progress, max_matvecs)
    length = 0  # of the present Lanczos sequence
    while True:
        alive = basis.extend()
        report()
        length += 1
        values, coefficients, residuals = basis.ritz()
        # What rounding leaves of a residual, however long one goes on.
        floor = 20 * torch.finfo(matvec.dtype).eps * float(values.abs().max())
        converged = residuals[:k] <= (tolerance * values[:k].abs()).clamp(min=floor)
        settled = len(converged) == k and bool(converged.all())
        share = 1.0
        if settled and found is not None and len(values) > k:
            # What the new sequence has found beyond the k must be more than a first impression.
            settled = residuals[k] <= max(0.1 * float(values[:k].abs().min()), floor)
            # A copy is to be told from what is half as large.
            if width := float(values[0] - values[-1]):
                share = 0.5 * abs(float(values[k - 1])) / width
        # In a large matrix a random vector sees hardly more than the many eigenvalues of the bulk,
        # and can seem to be the eigenvector of one.
        settled = settled and (not alive or length >= _telling_length(matvec.size, share))
        complete = basis.num_products == matvec.size
        finished = settled and not (copies and _changed(found, values[:k], tolerance))
        if complete or finished or report.done == max_matvecs:
            break
        if settled:
            found = values[:k]
            basis.restart(coefficients[:, :k])
        elif basis.full:
            basis.restart(coefficients[:, : k + (capacity - k) // 2])
        if settled or not alive:  # not alive: in this space there is nothing more to find
            basis.start_anew()
            length = 0
    vectors = basis.combine(coefficients[:, :k]) if eigenvectors else None
    pairs = Eigenpairs(values[:k], residuals[:k], converged, vectors, report.done)
    unsure = ""
    if not (len(converged) == k and converged.all()):
        unsure = _unconverged(pairs, tolerance, complete)
    elif not (finished or complete):
        what = "larger eigenvalues" if found is None else "further copies of these eigenvalues"
        unsure = f"there may be {what}: allow more by max_matvecs"
    if unsure:
        warnings.warn(f"after {report.done} products {unsure}", RuntimeWarning, stacklevel=2)
    return pairs


def _unconverged(pairs: Eigenpairs, tolerance: float, complete: bool) -> str:
    """What to say of pairs that are not all good to a tolerance; complete: all there is to know."""
    relative = [float(f"{r:.2g}") for r in pairs.residuals / pairs.eigenvalues.abs()]
    advice = "allow more by max_matvecs, or a larger tolerance"
    if complete:
        advice = "more would change nothing, the products are not exact or not symmetric"
    return f"the relative residuals are {relative}, above the tolerance {tolerance}: {advice}"


def _resolve(
    matvec: Matvec,
    k: int,
    tolerance: float | None,
    max_matvecs: int | None,
    num_vectors: int | None,
) -> tuple[float, int, int]:
    """Check the arguments; return tolerance, max_matvecs and how many vectors to hold."""
    check_positive("k", k)
    if k > matvec.size:
        raise ValueError(f"k is {k}, but the matrix has {matvec.size} rows")
    if tolerance is None:
        tolerance = 1e-3 if matvec.exact else 1e-2
    if not tolerance > 0:
        raise ValueError(f"tolerance must be positive, got {tolerance}")
    max_matvecs = max(300, 20 * k) if max_matvecs is None else max_matvecs
    if max_matvecs < k:
        raise ValueError(f"max_matvecs is {max_matvecs}: needs at least k = {k}")
    num_vectors = max(60, 2 * k + 20) if num_vectors is None else num_vectors
    capacity = min(num_vectors, matvec.size)
    if capacity < min(k + 2, matvec.size):
        raise ValueError(f"num_vectors is {num_vectors}: needs at least k + 2 = {k + 2}")
    return tolerance, max_matvecs, capacity


def _telling_length(size: int, share: float) -> int:
    """Return how long a sequence must be to show an eigenvalue apart from the others, if there is.

    After m products the largest Ritz value is off by more than a share ε of the spectrum's width
    with a probability below 1.648 √size · exp(−√ε (2m − 1)) (Kuczyński and Woźniakowski 1992): one
    in a thousand. Such a Ritz value has a large residual until it is exact, and is waited for.

    Args:
        share: of the width, by which it is apart; 1: far from a narrow bulk.
    """
    steepness = math.sqrt(min(max(share, 0.01), 1.0))
    return math.ceil((math.log(1.648 * math.sqrt(size) / 1e-3) / steepness + 1) / 2)


def _changed(before: Tensor | None, now: Tensor, tolerance: float) -> bool:
    return before is None or bool(((now - before).abs() > tolerance * now.abs()).any())


def smallest_eigenvalues(matvec: Matvec, k: int = 1, **options) -> Eigenpairs:
    """Return the k smallest eigenvalues (most negative first); see :func:`top_eigenvalues`.

    Raises:
        ValueError: also for products by finite differences: they cannot tell small or negative
            eigenvalues from their own errors, which scale with the largest.
    """
    if not matvec.exact:
        raise ValueError(
            "small and negative eigenvalues need exact products: use "
            "curvature='double_backward'. The errors of a finite difference scale with the largest "
            "eigenvalue"
        )
    negated = SymmetricMatvec(lambda v: -matvec(v), matvec.size, matvec.dtype, matvec.device)
    pairs = top_eigenvalues(negated, k, **options)
    return Eigenpairs(
        -pairs.eigenvalues, pairs.residuals, pairs.converged, pairs.eigenvectors, pairs.num_matvecs
    )
