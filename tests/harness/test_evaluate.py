"""The metrics of a checkpoint are those that its training recorded."""

import pytest
import torch
from support.harness import small_config
from support.training import train_here

from experiments import evaluate
from experiments.models.convnet import ConvNet
from experiments.runs.metrics import read_metrics

CONVNET = ("model={name: convnet, depth: 3}", "epochs=1", "dataset.validation_size=200")


@pytest.fixture(autouse=True)
def roots(tmp_path, monkeypatch):
    monkeypatch.setenv("RUNS_ROOT", str(tmp_path))
    monkeypatch.setattr("warnings.showwarning", None)


@pytest.mark.parametrize("more", ["seed=1", "average={decay: 0.5}"])
def test_it_prints_what_the_run_recorded_and_writes_nothing(more, tmp_path, capsys):
    directory = train_here(tmp_path, small_config(*CONVNET, more))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    (row,) = read_metrics(directory.metrics_path)
    capsys.readouterr()
    for words in ([], [str(directory.path)], [str(directory.path), "--data", str(tmp_path)]):
        assert evaluate.main(words) == 0
        title, *shown = capsys.readouterr().out.splitlines()
        assert title == f"digits/convnet3/sgd/{directory.name} after epoch 1"
        assert shown == [
            f"  {split}: loss {row[f'{split}/loss']:.4f}, "
            f"accuracy {100 * row[f'{split}/accuracy']:.2f} %"
            for split in ("val", "test")
        ]
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_a_checkpoint_is_three_lines_of_plain_torch(tmp_path):
    directory = train_here(tmp_path, small_config(*CONVNET, "average={decay: 0.5}"))
    state = torch.load(directory.path / "checkpoint.pt", weights_only=True)
    model = ConvNet(depth=3, num_classes=10, in_channels=1)
    model.load_state_dict(state["evaluated"] or state["model"])
    assert not torch.equal(model.linear.weight, state["model"]["linear.weight"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "no finished run below"),
        (["nowhere"], "nowhere is no run's directory"),
        (["a", "b"], "one run directory at a time"),
        (["--device", "tpu"], "invalid choice: 'tpu'"),
    ],
)
def test_what_cannot_be_evaluated_is_one_line(words, message, capsys):
    assert evaluate.main(words) == 2
    shown = capsys.readouterr().err
    assert message in shown and shown.count("\n") == 1


def test_data_that_are_nowhere_are_refused_also_where_the_task_looks_at_none(tmp_path, capsys):
    """The run's own results were shown as those on the folder's data."""
    directory = train_here(tmp_path, small_config(*CONVNET))
    capsys.readouterr()
    assert evaluate.main([str(directory.path), "--data", str(tmp_path / "nowhere")]) == 2
    assert "nowhere: there is no such folder" in capsys.readouterr().err
