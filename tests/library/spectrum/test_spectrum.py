"""Eigenvalues, densities and estimates of matrices whose spectra are known."""

import math
import warnings

import pytest
import torch
from support.device import device, random_state

from adahessian import spectrum
from adahessian.spectrum import SymmetricMatvec

DEVICE = device()


@pytest.fixture(autouse=True)
def matrices_on_the_cpu():
    """As the results are; the products are the device's."""
    with torch.device("cpu"):
        yield


def matvec(matrix, exact=True):
    """Return the matvec of a dense matrix, or of the diagonal one with these entries."""
    matrix = torch.as_tensor(matrix).to(DEVICE)
    matrix = matrix.diag() if matrix.ndim == 1 else matrix
    return SymmetricMatvec(
        lambda v: matrix @ v, len(matrix), matrix.dtype, matrix.device, exact=exact
    )


def random_matrix(n=80, seed=0, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    m = torch.randn(n, n, generator=g, dtype=torch.float64)
    return ((m + m.T) / 2).to(dtype)


def with_spectrum(values, seed=0, dtype=torch.float64):
    """Return a dense matrix with these eigenvalues and random eigenvectors."""
    values = torch.as_tensor(values, dtype=torch.float64)
    g = torch.Generator().manual_seed(seed)
    q, _ = torch.linalg.qr(torch.randn(len(values), len(values), generator=g, dtype=torch.float64))
    return (q @ torch.diag(values) @ q.T).to(dtype)


def network_like(n=120):
    """A few large eigenvalues, a bulk at zero, some negative ones: a trained network's."""
    g = torch.Generator().manual_seed(1)
    bulk = 0.05 * torch.randn(n - 6, generator=g, dtype=torch.float64)
    outliers = torch.tensor([20.0, 9.0, 4.0, 2.5, 1.5, -1.0], dtype=torch.float64)
    return with_spectrum(torch.cat([outliers, bulk]))


# --- eigenvalues ----------------------------------------------------------------------------------


@pytest.mark.parametrize("on_host", [False, True])
@pytest.mark.parametrize("num_vectors", [None, 9])
@pytest.mark.parametrize("k", [1, 5])
def test_eigenpairs_of_a_random_matrix(k, num_vectors, on_host):
    matrix = random_matrix()
    truth = torch.linalg.eigvalsh(matrix).flip(0)
    pairs = spectrum.top_eigenvalues(
        matvec(matrix), k, tolerance=1e-6, num_vectors=num_vectors, eigenvectors=True,
        on_host=on_host,
    )  # fmt: skip
    assert pairs.converged.all() and pairs.eigenvectors.shape == (k, 80)
    torch.testing.assert_close(pairs.eigenvalues, truth[:k], rtol=1e-10, atol=0)
    vectors = pairs.eigenvectors.cpu()
    errors = (vectors @ matrix - pairs.eigenvalues[:, None] * vectors).norm(dim=1)
    torch.testing.assert_close(errors, pairs.residuals, rtol=1e-3, atol=1e-10)
    gram = vectors @ vectors.T
    torch.testing.assert_close(gram, torch.eye(k, dtype=torch.float64), rtol=0, atol=1e-10)


def test_the_smallest_are_the_most_negative():
    matrix = network_like()
    pairs = spectrum.smallest_eigenvalues(matvec(matrix), 2, tolerance=1e-6, eigenvectors=True)
    truth, vectors = torch.linalg.eigh(matrix)
    torch.testing.assert_close(pairs.eigenvalues, truth[:2], rtol=1e-8, atol=0)
    overlap = (pairs.eigenvectors.cpu() * vectors.T[:2]).sum(1).abs()
    torch.testing.assert_close(overlap, torch.ones(2, dtype=torch.float64), rtol=0, atol=1e-6)


def test_the_residual_bounds_the_error():
    """At any tolerance an eigenvalue of the matrix lies within the residual."""
    matrix = random_matrix(seed=3)
    truth = torch.linalg.eigvalsh(matrix)
    for tolerance in (0.3, 0.1, 1e-2, 1e-4):
        pairs = spectrum.top_eigenvalues(matvec(matrix), 3, tolerance=tolerance)
        assert (pairs.residuals <= tolerance * pairs.eigenvalues).all()
        distance = (truth[:, None] - pairs.eigenvalues).abs().min(0).values
        assert (distance <= pairs.residuals + 1e-12).all()


def test_the_residual_shows_the_errors_of_the_products():
    """The usual estimate from the last coefficient would claim convergence to any tolerance."""
    matrix = network_like()
    g = torch.Generator().manual_seed(5)

    def noisy(v):
        noise = torch.randn(v.shape, generator=g, dtype=v.dtype)
        return matrix @ v + 0.1 * noise / noise.norm()

    with pytest.warns(RuntimeWarning, match="relative residuals are .*max_matvecs"):
        pairs = spectrum.top_eigenvalues(
            SymmetricMatvec(noisy, 120, torch.float64, matrix.device),
            2,
            max_matvecs=90,
            num_vectors=40,
        )
    assert not pairs.converged.any()
    assert ((pairs.residuals > 0.03) & (pairs.residuals < 0.3)).all()


@pytest.mark.parametrize("max_matvecs", [8, 9, 12])
def test_what_is_returned_when_products_run_out_belongs_together(max_matvecs):
    """Also where the last product fills the basis, which is then due for a restart."""
    matrix = random_matrix()
    with pytest.warns(RuntimeWarning, match=f"after {max_matvecs} products"):
        pairs = spectrum.top_eigenvalues(
            matvec(matrix), 3, max_matvecs=max_matvecs, num_vectors=9, eigenvectors=True
        )
    vectors = pairs.eigenvectors.cpu()
    errors = vectors @ matrix - pairs.eigenvalues[:, None] * vectors
    torch.testing.assert_close(errors.norm(dim=1), pairs.residuals, rtol=1e-9, atol=1e-9)


def test_multiple_and_clustered_eigenvalues():
    values = torch.linspace(-1, 1, 100, dtype=torch.float64)
    values[-6:] = torch.tensor([3, 3, 3, 2 - 1e-7, 2, 1.5], dtype=torch.float64)
    matrix = with_spectrum(values)
    pairs = spectrum.top_eigenvalues(matvec(matrix), 6, tolerance=1e-9, copies=True)
    torch.testing.assert_close(
        pairs.eigenvalues, values.sort(descending=True).values[:6], rtol=1e-8, atol=0
    )
    once = spectrum.top_eigenvalues(matvec(matrix), 2, tolerance=1e-4)
    assert float(once.eigenvalues[1]) < 2.1, "one sequence shows each distinct eigenvalue once"


@pytest.mark.parametrize("bulk", [0.0, 0.01, 0.3])
@pytest.mark.parametrize("size", [500, 20_000])
def test_copies_in_a_large_matrix(size, bulk):
    """A random vector has hardly a part in a copy, and seems to be an eigenvector of the bulk."""
    g = torch.Generator().manual_seed(0)
    values = bulk * torch.randn(size, dtype=torch.float64, generator=g)
    values[:5] = torch.tensor([5, 5, 5, 4, 4], dtype=torch.float64)
    mirrors = [torch.randn(size, dtype=torch.float64, generator=g) for _ in range(2)]

    def product(v):
        for mirror in mirrors:
            v = v - 2 * mirror * (mirror @ v) / (mirror @ mirror)
        v = values * v
        for mirror in reversed(mirrors):
            v = v - 2 * mirror * (mirror @ v) / (mirror @ mirror)
        return v

    matrix = SymmetricMatvec(product, size, torch.float64)
    for seed in range(5):
        pairs = spectrum.top_eigenvalues(matrix, 3, copies=True, seed=seed)
        assert pairs.eigenvalues == pytest.approx([5, 5, 5], rel=1e-5)
        assert pairs.num_matvecs < 60
    with pytest.warns(RuntimeWarning, match=r"after \d products there may be (further|larger)"):
        most = 6 if bulk else 4
        spectrum.top_eigenvalues(matrix, 1, copies=True, tolerance=0.1, max_matvecs=most)


@pytest.mark.parametrize("exact", [True, False])
def test_one_large_eigenvalue_beyond_a_bulk_of_equal_ones(exact):
    """A random vector is an eigenvector of the bulk, but for a thousandth of its length."""
    size = 1_000_000
    other = torch.randn(size, generator=torch.Generator().manual_seed(0))
    other /= other.norm()
    matrix = SymmetricMatvec(lambda v: v + 2 * other * (other @ v), size, exact=exact)
    pairs = spectrum.top_eigenvalues(matrix)
    assert pairs.eigenvalues == pytest.approx([3], rel=1e-3) and pairs.num_matvecs < 12
    with pytest.warns(RuntimeWarning, match="after 1 products there may be larger eigenvalues"):
        spectrum.top_eigenvalues(matrix, tolerance=0.1, max_matvecs=1)


def test_low_rank_plus_identity():
    """The Krylov space ends after rank + 1 products; going on needs a new vector."""
    values = torch.ones(60, dtype=torch.float64)
    values[:3] = torch.tensor([5, 4, 3])
    pairs = spectrum.top_eigenvalues(matvec(with_spectrum(values)), 5, tolerance=1e-8)
    expected = torch.tensor([5, 4, 3, 1, 1], dtype=torch.float64)
    torch.testing.assert_close(pairs.eigenvalues, expected, rtol=1e-9, atol=0)
    assert pairs.num_matvecs <= 8


@pytest.mark.parametrize("n", [1, 2, 3, 7])
@pytest.mark.parametrize("kind", ["zero", "identity", "random"])
def test_all_eigenvalues_of_tiny_matrices(kind, n):
    matrix = {"zero": torch.zeros(n, n), "identity": torch.eye(n)}.get(kind, random_matrix(n))
    spectrum.top_eigenvalues(matvec(matrix), copies=True)
    pairs = spectrum.top_eigenvalues(matvec(matrix), n, tolerance=1e-6)
    truth = torch.linalg.eigvalsh(matrix.double()).flip(0)
    torch.testing.assert_close(pairs.eigenvalues, truth, rtol=1e-5, atol=1e-5)
    assert pairs.num_matvecs <= n + 1


def test_single_precision():
    values = torch.cat([torch.tensor([100.0, 50.0, 1.0]), 0.01 * torch.randn(300)])
    matrix = with_spectrum(values, dtype=torch.float32)
    pairs = spectrum.top_eigenvalues(matvec(matrix), 3)
    torch.testing.assert_close(pairs.eigenvalues[:3].float(), values[:3], rtol=1e-4, atol=0)


def test_memory_is_bounded_by_num_vectors(monkeypatch):
    sizes = []
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *s, **k: sizes.append(s) or empty(*s, **k))
    pairs = spectrum.top_eigenvalues(matvec(random_matrix()), 2, num_vectors=6, tolerance=1e-8)
    assert pairs.num_matvecs > 20 and (7, 80) in sizes
    assert max(math.prod(s) for s in sizes if all(isinstance(n, int) for n in s)) == 7 * 80


def test_finite_differences_are_refused_for_small_eigenvalues():
    with pytest.raises(ValueError, match="curvature='double_backward'"):
        spectrum.smallest_eigenvalues(matvec(random_matrix(), exact=False))


# --- density --------------------------------------------------------------------------------------


def test_as_many_steps_as_rows_give_the_spectrum_itself():
    matrix = random_matrix(30)
    nodes, weights = spectrum.lanczos_quadrature(matvec(matrix), num_lanczos_steps=99)
    torch.testing.assert_close(nodes[0], torch.linalg.eigvalsh(matrix), rtol=1e-9, atol=1e-9)
    assert float(weights.sum()) == pytest.approx(1)


def test_moments_of_a_diagonal_matrix_are_exact():
    """Random signs weigh all entries of a diagonal matrix equally: no randomness is left."""
    values = torch.linspace(-1, 3, 200, dtype=torch.float64)
    nodes, weights = spectrum.lanczos_quadrature(matvec(values), 12, 2)
    assert nodes.shape == weights.shape == (2, 12)
    for power in range(24):  # exact below degree 2 · 12
        moments = (weights * nodes**power).sum(1)
        torch.testing.assert_close(moments, (values**power).mean().expand(2), rtol=1e-9, atol=0)


def test_moments_converge_to_those_of_the_spectrum():
    matrix = random_matrix(60)
    truth = torch.linalg.eigvalsh(matrix)
    nodes, weights = spectrum.lanczos_quadrature(matvec(matrix), 20, 400)
    for power in (1, 2, 3, 4):
        samples = (weights * nodes**power).sum(1)
        error = float(samples.mean() - (truth**power).mean())
        assert abs(error) < 4 * float(samples.std()) / 20


def test_density_is_the_smoothed_spectrum():
    matrix = random_matrix(200, seed=2)
    truth = torch.linalg.eigvalsh(matrix)
    grid, density = spectrum.spectral_density(matvec(matrix), 60, 8, width=1.0)
    assert grid.shape == density.shape == (1024,)
    assert float(torch.trapezoid(density, grid)) == pytest.approx(1, abs=1e-6)
    bumps = torch.exp(-0.5 * (grid - truth[:, None]) ** 2) / math.sqrt(2 * math.pi)
    difference = torch.trapezoid((density - bumps.mean(0)).abs(), grid)
    assert float(difference) < 0.15  # of 8 random vectors: 0.1 with 4, 0.065 with 16


def test_a_sequence_that_ends_early():
    """A single distinct eigenvalue: one product tells all, the density is one bump."""
    nodes, weights = spectrum.lanczos_quadrature(matvec(2 * torch.ones(50)), 10, 3)
    assert torch.equal(weights[:, 1:], torch.zeros(3, 9, dtype=torch.float64))
    grid, density = spectrum.smooth(spectrum.Quadrature(nodes, weights))
    assert float(torch.trapezoid(density, grid)) == pytest.approx(1, abs=1e-6)
    assert float(grid[density.argmax()]) == pytest.approx(2, abs=1e-3)
    grid, density = spectrum.spectral_density(matvec(torch.zeros(50)), 10)
    assert torch.isfinite(density).all()


def test_weights_are_real_and_orthogonality_holds():
    """Regression: PyHessian's nonsymmetric solver gives complex weights; and without full
    re-orthogonalization converged eigenvalues appear several times."""
    matrix = with_spectrum(torch.cat([torch.tensor([1000.0]), torch.linspace(0, 1, 149)]),
                           dtype=torch.float32)  # fmt: skip
    nodes, weights = spectrum.lanczos_quadrature(matvec(matrix), 60)
    assert not nodes.is_complex() and (weights >= 0).all()
    assert int((nodes > 500).sum()) == 1


# --- estimates ------------------------------------------------------------------------------------


METHODS = {
    "hutchinson": lambda m, seed: spectrum.trace(m, 30, method="hutchinson", seed=seed),
    "hutch++": lambda m, seed: spectrum.trace(m, 30, seed=seed),
}


@pytest.mark.parametrize("method", METHODS)
def test_trace_is_unbiased_and_its_error_honest(method):
    """Over 400 seeds: the mean is right, and 95 % intervals (of Student's t) cover it."""
    matrix = network_like()
    estimates = [METHODS[method](matvec(matrix), seed) for seed in range(400)]
    values = torch.tensor([e.value for e in estimates], dtype=torch.float64)
    errors = torch.tensor([e.standard_error for e in estimates], dtype=torch.float64)
    truth = float(matrix.trace())
    assert abs(float(values.mean()) - truth) < 4 * float(values.std()) / math.sqrt(400)
    quantile = {"hutchinson": 2.045, "hutch++": 2.262}[method]  # 29 and 9 degrees of freedom
    coverage = float(((values - truth).abs() < quantile * errors).double().mean())
    assert 0.91 < coverage < 0.985  # 0.95 ± 0.011 (standard error) if samples were normal
    assert all(e.num_matvecs == 30 for e in estimates)


def test_hutch_plus_plus_wins_where_few_eigenvalues_dominate():
    m = matvec(network_like())
    spread = {
        method: torch.tensor([METHODS[method](m, seed).value for seed in range(100)]).std()
        for method in METHODS
    }
    assert spread["hutch++"] < 0.3 * spread["hutchinson"]


def test_hutch_plus_plus_of_a_low_rank_matrix_is_exact():
    matrix = with_spectrum([5.0, 3.0, -2.0] + [0.0] * 40)
    estimate = spectrum.trace(matvec(matrix), 20)
    assert estimate.value == pytest.approx(6, abs=1e-9) and estimate.standard_error < 1e-9


@pytest.mark.parametrize("on_host", [False, True])
def test_hutch_plus_plus_with_more_products_than_rows(on_host):
    matrix = random_matrix(5)
    estimate = spectrum.trace(matvec(matrix), 40, on_host=on_host)
    assert abs(estimate.value - float(matrix.trace())) < 4 * estimate.standard_error + 1e-9
    assert estimate.num_matvecs == 40


def test_the_trace_stops_at_the_relative_error_asked_for():
    """Regression: PyHessian stops when two running means agree, after 6 to 64 products at a
    tolerance of 0.001, wherever chance has it. Here the error at the stop is what was asked."""
    matrix = network_like()
    truth = float(matrix.trace())
    stopped = [
        spectrum.trace(matvec(matrix), 5000, method="hutchinson", relative_error=0.1, seed=seed)
        for seed in range(60)
    ]
    assert all(e.standard_error <= 0.1 * abs(e.value) for e in stopped)
    assert all(12 <= e.num_matvecs < 5000 for e in stopped)
    inside = [abs(e.value - truth) < 2 * 0.1 * truth for e in stopped]
    assert sum(inside) >= 52  # 95 % of 60 are 57
    enough = spectrum.trace(matvec(matrix), 30, method="hutchinson", relative_error=1e-9)
    assert enough.num_matvecs == 30


def test_traces_of_blocks_from_the_same_products():
    matrix = random_matrix(60)
    sizes = [10, 1, 49]
    starts = [0, 10, 11]
    truth = [
        float(matrix[s : s + n, s : s + n].trace()) for s, n in zip(starts, sizes, strict=True)
    ]
    estimates = spectrum.block_traces(matvec(matrix), sizes, 800)
    for estimate, expected in zip(estimates, truth, strict=True):
        assert abs(estimate.value - expected) < 4 * estimate.standard_error
    whole = spectrum.trace(matvec(matrix), 800, method="hutchinson")
    assert sum(e.value for e in estimates) == pytest.approx(whole.value)


def test_diagonal_converges_with_the_error_it_states():
    matrix = random_matrix(40)
    found = spectrum.diagonal(matvec(matrix), 3000)
    value, standard_error = found.value.cpu(), found.standard_error.cpu()
    deviations = (value - matrix.diagonal()) / standard_error
    assert deviations.abs().max() < 4.5
    assert 0.7 < float(deviations.std()) < 1.3
    variance = (matrix**2).sum(1) - matrix.diagonal() ** 2
    torch.testing.assert_close(standard_error, (variance / 3000).sqrt(), rtol=0.1, atol=0)


def test_frobenius_norm():
    matrix = random_matrix(60)
    truth = float(matrix.norm())
    estimates = [spectrum.frobenius_norm(matvec(matrix), 40, seed=seed) for seed in range(200)]
    inside = [abs(e.value - truth) < 2.02 * e.standard_error for e in estimates]
    assert 0.91 < sum(inside) / 200 < 0.99
    squares = torch.tensor([e.value**2 for e in estimates], dtype=torch.float64)
    assert abs(float(squares.mean()) - truth**2) < 4 * float(squares.std()) / math.sqrt(200)
    assert spectrum.frobenius_norm(matvec(torch.zeros(4)), 3) == (0, 0, 3)


# --- manners --------------------------------------------------------------------------------------


CALLS = {
    "top_eigenvalues": lambda m, **k: spectrum.top_eigenvalues(m, 2, **k).eigenvalues,
    "trace": lambda m, **k: torch.tensor(spectrum.trace(m, 20, **k)),
    "block_traces": lambda m, **k: torch.tensor(spectrum.block_traces(m, [80], 20, **k)),
    "diagonal": lambda m, **k: spectrum.diagonal(m, 20, **k).value,
    "frobenius_norm": lambda m, **k: torch.tensor(spectrum.frobenius_norm(m, 20, **k)),
    "spectral_density": lambda m, **k: spectrum.spectral_density(m, 10, 2, **k)[1],
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_seeds_decide_and_generators_are_left_alone(call):
    m = matvec(random_matrix())
    before = random_state()
    first = call(m, seed=1)
    assert torch.equal(before, random_state())
    torch.rand(3)
    assert torch.equal(call(m, seed=1), first)
    if call is not CALLS["top_eigenvalues"]:
        assert not torch.equal(call(m, seed=2), first)


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_progress_counts_the_products(call):
    matrix, products, reports = random_matrix(), [], []
    m = SymmetricMatvec(
        lambda v: products.append(1) or matrix @ v, 80, torch.float64, matrix.device
    )
    call(m, progress=lambda done, total: reports.append((len(products), done, total)))
    assert [made for made, _, _ in reports] == list(range(1, len(products) + 1))
    assert all(done == made and done <= total for made, done, total in reports)
    if call is not CALLS["top_eigenvalues"]:
        assert reports[-1][1] == reports[-1][2]


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_products_that_are_not_finite(call):
    with pytest.raises(RuntimeError, match="product with a vector is not finite"):
        call(matvec(torch.full((80,), math.nan)))
    with pytest.raises(RuntimeError, match=r"shape \(80,\) has shape \(79,\)"):
        call(SymmetricMatvec(lambda v: v[1:], 80))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: spectrum.top_eigenvalues(m, 0), "k must be a whole number, 1 or more, got 0"),
        (lambda m: spectrum.top_eigenvalues(m, 1.0), "k must be a whole number"),
        (lambda m: spectrum.top_eigenvalues(m, 9), "k is 9, but the matrix has 8 rows"),
        (lambda m: spectrum.top_eigenvalues(m, tolerance=0), "tolerance must be positive, got 0"),
        (lambda m: spectrum.top_eigenvalues(m, 3, max_matvecs=2), "needs at least k = 3"),
        (lambda m: spectrum.top_eigenvalues(m, 3, num_vectors=4), r"at least k \+ 2 = 5"),
        (lambda m: spectrum.trace(m, method="xtrace"), "must be 'hutch\\+\\+' or 'hutchinson'"),
        (lambda m: spectrum.trace(m, 3), "num_matvecs must be a whole number, 4 or more, got 3"),
        (lambda m: spectrum.trace(m, relative_error=-1), "relative_error must be positive"),
        (lambda m: spectrum.diagonal(m, 1), "num_matvecs must be a whole number, 2 or more"),
        (lambda m: spectrum.block_traces(m, [3, 4]), r"to the matrix's 8 rows, got \[3, 4\]"),
        (lambda m: spectrum.block_traces(m, [-1, 9]), "block_sizes, none below 0"),
        (lambda m: SymmetricMatvec(m, 0), "size must be a whole number, 1 or more, got 0"),
        (lambda m: SymmetricMatvec(m, 8, torch.complex64), "real numbers, .* got torch.complex64"),
        (lambda m: spectrum.lanczos_quadrature(m, 0), "num_lanczos_steps must be"),
        (lambda m: spectrum.spectral_density(m, 5, 0), "num_repeats must be"),
        (lambda m: spectrum.spectral_density(m, width=0), "must be positive and finite, got 0"),
        (lambda m: spectrum.spectral_density(m, width=math.inf), "finite, got inf"),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call(matvec(random_matrix(8)))


@pytest.mark.parametrize("sign", [1, -1])
def test_a_sequence_that_ends_early_has_no_nodes_that_are_none(sign):
    """The Krylov space of a matrix with two eigenvalues has two dimensions: no node is zero."""
    quadrature = spectrum.lanczos_quadrature(matvec(sign * torch.tensor([3.0, 3, 3, 2, 2])), 5, 3)
    assert quadrature.nodes.shape == quadrature.weights.shape == (3, 5)
    assert sorted({abs(round(float(node), 4)) for node in quadrature.nodes.flatten()}) == [2, 3]
    assert quadrature.weights.sum(1) == pytest.approx(1)


def test_functions_that_are_no_symmetric_matrices():
    """All products are spent, and more would change nothing: that is to be said, too."""
    lopsided = torch.ones(20, 20, dtype=torch.float64).triu()
    with pytest.warns(RuntimeWarning, match="not exact or not symmetric"):
        spectrum.top_eigenvalues(matvec(lopsided))
    in_place = SymmetricMatvec(lambda v: v.mul_(torch.arange(1.0, 6)), 5)
    for call in (spectrum.top_eigenvalues, spectrum.trace, spectrum.frobenius_norm):
        with pytest.raises(RuntimeError, match="has changed the vector in place"):
            call(in_place)
    with torch.inference_mode():
        assert spectrum.trace(SymmetricMatvec(lambda v: 2 * v, 5), 8).value == pytest.approx(10)


def test_no_warning_when_the_matrix_is_exhausted():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        spectrum.top_eigenvalues(matvec(torch.tensor([1.0, 1e-9, 0.0])), 3, tolerance=1e-12)
