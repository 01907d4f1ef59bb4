import pytest
import torch
from torch import nn

from adahessian.spectrum import Quadrature
from experiments.benchmarks import density, statistics


def test_batch_normalization_written_out_is_batch_normalization():
    torch.manual_seed(0)
    original = nn.BatchNorm2d(3).double()
    nn.init.normal_(original.weight)
    nn.init.normal_(original.bias)
    x = torch.randn(4, 3, 5, 5, dtype=torch.float64)
    torch.testing.assert_close(density.WrittenOut(original)(x), original(x))


def test_the_distance_is_0_for_equal_densities_and_1_for_ones_apart():
    def at(*nodes):
        return Quadrature(torch.tensor([nodes]).double(), torch.full((1, len(nodes)), 0.5).double())

    assert density.distance(at(0.0, 3.0), at(3.0, 0.0), 0.1) == pytest.approx(0, abs=1e-9)
    assert density.distance(at(0.0, 3.0), at(6.0, 9.0), 0.1) == pytest.approx(1, rel=1e-4)
    assert density.distance(at(0.0, 3.0), at(0.0, 9.0), 0.1) == pytest.approx(0.5, rel=1e-4)


def test_the_cost_of_the_statistics_is_measured(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["", "--batch", "2", "--size", "8", "--steps", "2"])
    statistics.main()
    output = capsys.readouterr().out
    assert "double_backward" in output and "finite_difference" in output
    assert output.count("inside the statistics") == 2
