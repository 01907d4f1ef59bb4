import numpy
import pytest

from experiments.plots import spectrum


@pytest.fixture
def path(tmp_path):
    """Nine tenths of the eigenvalues about 0, a tenth about 20, in peaks narrower than a bin."""
    grid = numpy.linspace(-2, 30, 4096)

    def peak(center, width):
        return numpy.exp(-(((grid - center) / width) ** 2) / 2) / width / numpy.sqrt(2 * numpy.pi)

    values = 0.9 * peak(0, 0.02) + 0.1 * peak(20, 0.02)
    numpy.savez(tmp_path / "epoch-0002.npz", grid=grid, density=values, eigenvalues=[20.1, 20.0])
    return tmp_path / "epoch-0002.npz"


def test_the_histogram_loses_no_peak(path):
    shares, edges = spectrum.histogram(path)
    assert (len(shares), len(edges)) == (256, 257)
    assert shares.sum() == pytest.approx(1, abs=1e-3)
    assert shares[edges[1:] > 10].sum() == pytest.approx(0.1, abs=1e-3)


def test_the_picture_shows_curve_and_eigenvalues(path):
    pixels = numpy.array(spectrum.picture(path, 2).convert("RGB")).reshape(-1, 3)
    for color in ((31, 119, 180), (255, 127, 14)):  # matplotlib's first two
        assert (abs(pixels.astype(int) - color).sum(1) < 30).sum() > 100


def test_the_computed_eigenvalues_are_counted_and_the_rest_is_estimated():
    """Of 100: 3 large ones and a negative one, which two quadratures weigh wrongly."""
    plot = spectrum.SpectrumPlot(
        "", numpy.zeros(2), numpy.zeros(2), numpy.array([30.0, 20.0, 10.0]),
        nodes=numpy.array([[29.0, 12.0, 2.0, -5.0], [28.0, 11.0, 4.0, -4.0]]),
        weights=numpy.array([[0.2, 0.1, 0.66, 0.04], [0.001, 0.0, 0.995, 0.004]]), num_params=100,
    )  # fmt: skip
    sizes, counts = spectrum.counts(plot, 1)
    assert sizes.tolist() == [30, 20, 10, 4, 2]
    assert counts == pytest.approx([1, 2, 3, 3 + 99.5 / 2, 3 + 99.5 / 2 + 33])
    sizes, counts = spectrum.counts(plot, -1)
    assert sizes.tolist() == [5, 4] and counts == pytest.approx([2, 2.2])
