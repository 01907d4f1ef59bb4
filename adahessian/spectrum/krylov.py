"""Orthonormal vectors and Rayleigh-Ritz, the machinery behind eigenvalues and densities."""

from collections.abc import Iterator

import torch
from torch import Tensor

from adahessian.spectrum.products import Matvec, checked, random_vector

_CHUNK = 1 << 20  # columns that a change of basis works on at a time


class KrylovBasis:
    """Orthonormal vectors Q, and the products A·Q in terms of them.

    A·q_j = Σ_i P_ij q_i + (what is beyond the basis, for the last one). The matrix P is recorded
    whole, although an exact symmetric A makes it tridiagonal (or, after a restart, an arrow and a
    tridiagonal): its asymmetry is the error of the products, and belongs into the residuals.

    Orthogonalization is classical Gram-Schmidt, done twice, which keeps |QᵀQ − I| at rounding
    (Giraud, Langou and Rozložník 2005) and consists of products of matrix and vector.

    Args:
        matvec: the matrix A.
        capacity: how many vectors may be multiplied; memory is that and one, times the size.
        on_host: keep the vectors in the host's memory, and do everything but the products there.
        seed: of the random starting vectors.
    """

    def __init__(self, matvec: Matvec, capacity: int, *, on_host: bool, seed: int) -> None:
        self._matvec, self._capacity, self._seed = matvec, capacity, seed
        self._device = torch.device("cpu") if on_host else matvec.device
        self._vectors = torch.empty(
            capacity + 1, matvec.size, dtype=matvec.dtype, device=self._device
        )
        self._starts = 0
        self.clear()

    def clear(self) -> None:
        """Forget all vectors, but not which random ones have been used."""
        self._size = 0  # vectors there are, the last one possibly not yet multiplied
        self.num_products = 0
        on_cpu = {"dtype": torch.float64, "device": "cpu"}
        self._projected = torch.zeros(self._capacity + 1, self._capacity, **on_cpu)
        # Norms of the parts of A·q that restarts have dropped.
        self._dropped = torch.zeros(self._capacity, **on_cpu)

    @property
    def full(self) -> bool:
        return self.num_products == self._capacity

    def __iter__(self) -> Iterator[Tensor]:
        for vector in self._vectors[: self._size]:
            yield vector.to(self._matvec.device)

    def add(self, vector: Tensor) -> bool:
        """Append a vector's part orthogonal to the others; False if there is none."""
        before = vector.norm()
        _, rest, norm = self._orthogonalize(vector.to(self._device))
        if norm <= 1e3 * torch.finfo(vector.dtype).eps * float(before):
            return False
        self._append(rest, norm)
        return True

    def remove(self, vector: Tensor) -> Tensor:
        """Return the part of a vector that is orthogonal to the basis."""
        if self._size == 0:
            return vector
        return self._orthogonalize(vector.to(self._device))[1].to(self._matvec.device)

    def start_anew(self) -> None:
        """Take a random vector as the next one, instead of what the last product would give."""
        if self._size > self.num_products:
            self._size = self.num_products
            last = self._projected[self._size, : self._size]
            self._dropped[: self._size] = torch.hypot(self._dropped[: self._size], last)
            last.zero_()
        # A random vector that lies in the space has probability zero, but for tiny spaces of signs.
        while True:
            vector = random_vector(self._matvec, self._seed, self._starts)
            self._starts += 1
            if self.add(vector):
                return

    def extend(self) -> bool:
        """Multiply the last vector, and append what is new; False if nothing is."""
        j = self.num_products
        product = checked(self._matvec, self._vectors[j].to(self._matvec.device))
        coefficients, rest, norm = self._orthogonalize(product.to(self._device))
        self._projected[: j + 1, j] = coefficients
        self.num_products += 1
        scale = float(self._projected.abs().max())
        if self._size == self._matvec.size or norm <= torch.finfo(rest.dtype).eps * scale:
            return False
        self._projected[j + 1, j] = norm
        self._append(rest, norm)
        return True

    def tridiagonal(self) -> Tensor:
        """Return the symmetric tridiagonal matrix of one Lanczos sequence, (m, m), float64."""
        m = self.num_products
        off = self._projected.diagonal(-1)[: m - 1]
        main = self._projected.diagonal()[:m]
        return torch.diag(main) + torch.diag(off, 1) + torch.diag(off, -1)

    def ritz(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return the best approximations of eigenpairs in the space, the largest first.

        Returns:
            (values, coefficients, residuals): (m,), (m, m) with one vector per column in terms of
            the basis, and (m,), the norms of A x − λ x; float64 on the CPU.
        """
        m = self.num_products
        inside = self._projected[:m, :m]
        values, coefficients = torch.linalg.eigh((inside + inside.T) / 2)
        values, coefficients = values.flip(0), coefficients.flip(1)
        beyond = self._projected[m, :m] @ coefficients
        error = (inside @ coefficients - coefficients * values).norm(dim=0)
        dropped = (self._dropped[:m].unsqueeze(1) * coefficients).norm(dim=0)
        return values, coefficients, torch.stack([beyond, error, dropped]).norm(dim=0)

    def combine(self, coefficients: Tensor) -> Tensor:
        """Return Σ_j coefficients_jk q_j, one vector per row, on the matrix's device."""
        weights = coefficients.T.to(self._vectors)
        return (weights @ self._vectors[: len(coefficients)]).to(self._matvec.device)

    def restart(self, coefficients: Tensor) -> None:
        """Keep these Ritz vectors and the next vector, drop the rest of the space."""
        m, kept = coefficients.shape
        values = ((coefficients.T @ self._projected[:m, :m]) * coefficients.T).sum(1)
        error = (self._projected[:m, :m] @ coefficients - coefficients * values).norm(dim=0)
        dropped = (self._dropped[:m].unsqueeze(1) * coefficients).norm(dim=0)
        beyond = self._projected[m, :m] @ coefficients
        weights = coefficients.T.to(self._vectors)
        for columns in self._vectors.split(_CHUNK, dim=1):
            columns[:kept] = weights @ columns[:m]
        has_next = self._size > m
        if has_next:
            self._vectors[kept] = self._vectors[m]
        self.clear()
        self._size, self.num_products = kept + has_next, kept
        self._projected[:kept, :kept] = torch.diag(values)
        self._projected[kept, :kept] = beyond
        self._dropped[:kept] = torch.hypot(error, dropped)

    def _append(self, vector: Tensor, norm: float) -> None:
        torch.div(vector, norm, out=self._vectors[self._size])
        self._size += 1

    def _orthogonalize(self, vector: Tensor) -> tuple[Tensor, Tensor, float]:
        """Return coefficients (float64, CPU), the part outside of the basis, and its norm."""
        known = self._vectors[: self._size]
        first = known @ vector
        rest = torch.addmv(vector, known.T, first, alpha=-1)
        second = known @ rest
        rest.addmv_(known.T, second, alpha=-1)
        coefficients = torch.stack([first, second]).cpu().double().sum(0)
        return coefficients, rest, float(rest.norm())
