import json

import pytest
import torch

from experiments.benchmarks import curvature_accuracy as accuracy
from experiments.benchmarks import zoo
from experiments.models.transformer import Transformer


def case(name):
    (found,) = (c for c in accuracy.cases(quick=True, images="digits") if c.name == name)
    return found


@pytest.mark.parametrize("name", ["ResNet-20", "VGG", "transformer", "Conv1d", "Conv3d", "LSTM"])
def test_the_zoo_meets_its_bounds(name):
    precisions = [p for p in accuracy.PRECISIONS if p.name in ("float64", "float32")]
    bounds = {"float64": (1e-5, 1e-5), "float32": (0.02, 0.1)}
    records = list(accuracy.measure(case(name), precisions, sweep=False, num_probes=1))
    assert [record["step"] for record in records] == [0, 0, 2, 2]
    for record in records:
        median, worst = bounds[record["precision"]]
        assert record["fast"].median < median and record["fast"].worst[0] < worst, record
        assert record["exact_to_float64"].worst[0] < 0.05


def test_tensors_without_curvature_are_listed_apart():
    """A convolution's bias before batch normalization has none."""
    (record, *_) = accuracy.measure(case("VGG"), [accuracy.FLOAT64], False, num_probes=1)
    assert sorted(record["fast"].flat) == sorted(f"{i}.bias" for i in (0, 3, 7, 10, 14, 17))
    assert max(record["fast"].flat.values()) < 1e-5


def test_the_comparison():
    """Norms and means over all probes, each tensor for itself."""
    better = [
        [torch.tensor([3.0, 0.0]), torch.zeros(1)],
        [torch.tensor([0.0, 4.0]), torch.zeros(1)],
    ]
    found = [[torch.tensor([3.3, 0.0]), torch.ones(1)], [torch.tensor([0.0, 4.4]), torch.ones(1)]]
    result = accuracy.compare(found, better, better, ["a", "b"])
    assert result.relative == pytest.approx({"a": 0.1})
    assert result.ratio == pytest.approx({"a": 1.1})
    assert result.flat == pytest.approx({"b": 1 / (3 / 3**0.5)})


def test_the_sweep_finds_the_error_at_both_ends(tmp_path, capsys, monkeypatch):
    """Rounding dominates at small steps, truncation at large ones."""
    monkeypatch.setenv("RUNS_ROOT", str(tmp_path))
    monkeypatch.setitem(accuracy.SWEEPS, "float32", (1e-7, 1e-2))
    arguments = ["--quick", "--only", "tanh", "--precision", "float32", "--sweep"]
    assert accuracy.main(arguments) == 0
    output = capsys.readouterr()
    assert max(len(line) for line in output.out.splitlines() if "written:" not in line) <= 80
    assert "tanh MLP after 0 steps" in output.err
    data = json.loads((tmp_path / "benchmarks" / "curvature-accuracy.json").read_text())["data"]
    errors = {}
    for record in data:
        median = sorted(record["fast"]["relative"].values())[3]
        errors.setdefault(record["step"], []).append(median)
    for small, chosen, large in errors.values():
        assert chosen < 0.1 * min(small, large)


def test_resized_images():
    pixels = torch.arange(4.0).view(1, 1, 2, 2)
    assert zoo.resize(pixels, 1).tolist() == [[[[1.5]]]]
    assert zoo.resize(pixels, 5).tolist() == [[[
        [0, 0, 1, 1, 0], [0, 0, 1, 1, 0], [2, 2, 3, 3, 0], [2, 2, 3, 3, 0], [0, 0, 0, 0, 0],
    ]]]  # fmt: skip


def test_the_transformer_sees_no_later_token():
    torch.manual_seed(0)
    model = Transformer(16, 4, 2, vocabulary=11, length=8)
    tokens = torch.randint(0, 11, (2, 8))
    changed = tokens.clone()
    changed[:, 5] = (tokens[:, 5] + 1) % 11
    difference = (model(tokens) - model(changed)).abs().amax((0, 2))
    assert difference[:5].max() == 0 and difference[5:].min() > 0
