"""Two real processes (gloo) train what one process trains.

tests/cluster/test_slurm.py does so on Slurm.
"""

import signal
import time

import pytest
import torch
from support.harness import DIGITS
from support.training import train_here
from support.two_processes import end, start_two

from experiments.errors import UserError
from experiments.plans.load import load, resolve
from experiments.runs import attempts
from experiments.runs.directory import RunDirectory
from experiments.runs.metrics import read_metrics, without_times
from experiments.runtime import distributed
from experiments.tasks.image_classification.task import ImageClassification

OVERRIDES = (
    "model.name=convnet", "model.depth=3", "dtype=float64", "epochs=3", "checkpoint_every_epochs=3",
    "optimizers.adahessian.update_interval=2",
)  # fmt: skip
MEASURED = (
    "curvature_statistics=true", "spectrum_every_epochs=3", "spectrum.batches=2", "spectrum.k=2",
    "spectrum.num_lanczos_steps=8", "spectrum.trace_matvecs=6",
)  # fmt: skip
TWO = {"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}
DIFFERENCE = "optimizers.adahessian.curvature=finite_difference"


@pytest.fixture
def second_of_two(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE = 2 without RANK, MASTER_ADDR, MASTER_PORT: start the"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE = '0': torchrun sets it, to 1 or more; unset it"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE = 'two': torchrun"),
        ({"WORLD_SIZE": "2", "RANK": "first"}, "RANK = 'first': torchrun sets it, to 0 or more"),
        ({**TWO, "RANK": "2"}, "RANK = 2 of WORLD_SIZE = 2: ranks count from 0"),
        ({**TWO, "MASTER_PORT": "a"}, "MASTER_PORT = 'a': torchrun sets it, to 1 or more"),
    ],
)
def test_what_an_environment_has_left_is_named(variables, message, monkeypatch):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=message):
        distributed.is_main()
        distributed.start(torch.device("cpu"))


def test_one_process_does_nothing_special():
    loss, indices = torch.tensor(3.0), torch.arange(5)
    assert distributed.is_main() and distributed.world_group() is None
    assert distributed.weighted(loss, torch.tensor(5)) is loss
    assert torch.equal(distributed.shard(indices), indices)
    assert list(distributed.rank_batches([1, 2, 3])) == [1, 2, 3]
    assert distributed.sum_over_ranks({"a": 1.0}) == {"a": 1.0} and distributed.broadcast(7) == 7


def test_the_shard_of_one_of_two(second_of_two):
    assert not distributed.is_main()
    assert distributed.shard(torch.arange(5)).tolist() == [3, 4]
    assert list(distributed.rank_batches("abcde")) == ["b", "d"]


def test_the_shards_are_the_batch_whatever_the_world(monkeypatch):
    """Also augmentation: it is drawn for the position in the epoch, not in the share."""
    config = load(DIGITS, ["batch_size=100"])

    def batches(world, rank):
        monkeypatch.setenv("WORLD_SIZE", str(world))
        monkeypatch.setenv("RANK", str(rank))
        task = ImageClassification(config, torch.device("cpu"), None)
        return list(task.training_batches(3, 5))

    (whole, *_), shares = batches(1, 0), [batches(3, rank)[0] for rank in range(3)]
    assert torch.equal(torch.cat([share.inputs for share in shares]), whole.inputs)
    assert torch.equal(torch.cat([share.labels for share in shares]), whole.labels)


def test_what_cannot_be_shared_is_refused(second_of_two):
    from torch import nn

    with pytest.raises(UserError, match="batch_size = 1296: the last batch .* has 1 images"):
        ImageClassification(load(DIGITS, ["batch_size=1296"]), torch.device("cpu"), None)
    with pytest.raises(UserError, match="batch normalization over several processes needs GPUs"):
        distributed.prepare_model(nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)), False)


def start(root, optimizer, *overrides):
    return start_two(root, DIGITS, *OVERRIDES, *overrides, f"optimizer={optimizer}")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("optimizer", "overrides", "tolerance"),
    [
        ("sgd", (), 1e-10),
        ("adahessian", MEASURED, 1e-10),
        # At the configuration's rate this network without normalization leaves its start at once,
        # and then magnifies rounding itself.
        ("adahessian", (DIFFERENCE, "optimizers.adahessian.lr=0.02"), 1e-5),
    ],
)
def test_two_processes_compute_what_one_does(optimizer, overrides, tolerance, tmp_path):
    """To 1e-10 with exact derivatives, to 1e-5 with the finite difference, which magnifies
    rounding; float64. The last batch of an epoch, 17 images, is not shared equally."""
    config = resolve(load(DIGITS, [*OVERRIDES, *overrides]), optimizer, 1)
    directory = RunDirectory(tmp_path / "two", config)
    codes, output = end(start(tmp_path / "two", optimizer, *overrides))
    assert codes == [0, 0], output
    whole = train_here(tmp_path / "one", config)
    ours, theirs = (
        [without_times(row) for row in read_metrics(one.metrics_path)] for one in (directory, whole)
    )
    assert len(ours) == 3
    for row, reference in zip(ours, theirs, strict=True):
        curvature = {key for key in reference if key.startswith("hessian/")}
        for keys, bound in ((reference.keys() - curvature, tolerance), (curvature, 1e-4)):
            expected = {key: reference[key] for key in keys}
            assert {k: row[k] for k in keys} == pytest.approx(expected, rel=bound, abs=bound)
        assert row.keys() == reference.keys()
    assert ("hessian/top_eigenvalue_2" in ours[-1]) == (overrides == MEASURED)
    weights = (
        torch.load(one.path / "checkpoint.pt", weights_only=True)["model"]
        for one in (directory, whole)
    )
    torch.testing.assert_close(*weights, rtol=tolerance, atol=tolerance)
    assert len(attempts.read(directory.path)) == 1  # one of them writes


@pytest.mark.slow
def test_a_signal_to_one_stops_both_at_the_same_step(tmp_path):
    overrides = ("epochs=40", "checkpoint_every_epochs=40")
    config = resolve(load(DIGITS, [*OVERRIDES, *overrides]), "sgd", 1)
    directory = RunDirectory(tmp_path, config)
    processes = start(tmp_path, "sgd", *overrides)
    while not directory.metrics_size():
        assert all(one.poll() is None for one in processes)
        time.sleep(0.01)
    processes[0].send_signal(signal.SIGTERM)
    codes, output = end(processes)
    assert codes == [143, 143], output
    assert (directory.path / "checkpoint.pt").exists() and not directory.done
