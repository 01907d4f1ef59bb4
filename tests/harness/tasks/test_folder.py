import os
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image
from support import photographs
from support.harness import REPOSITORY, interrupted, until_done
from support.patience import PATIENCE
from support.photographs import CLASSES, IMAGENET, SMALL, TRAIN, VAL, small_config, write_imagenet
from support.training import assert_equal, result

from experiments.errors import UserError
from experiments.plans.load import load, resolve
from experiments.runs import checkpoint
from experiments.runs.directory import RunDirectory
from experiments.runs.metrics import read_metrics, without_times
from experiments.runtime import distributed
from experiments.tasks.image_classification import folder as module
from experiments.tasks.image_classification.task import ImageClassification
from experiments.training import loop

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def data_root(tmp_path_factory):
    return write_imagenet(tmp_path_factory.mktemp("data"))


def task_of(data_root, *overrides):
    return ImageClassification(small_config(*overrides), CPU, data_root)


def train_in(root, data_root, config):
    directory = RunDirectory(root, config)
    with directory.locked():
        loop.train(config, directory, data_root)
    return directory


# ------------------------------------------------------------------------------------ the files


def test_classes_are_the_sorted_folders(data_root):
    data = task_of(data_root).data
    assert data.num_classes == 4 and len(data.train) == 4 * TRAIN
    assert data.train.classes == list(CLASSES)
    assert data.train.labels.tolist() == [label for label in range(4) for _ in range(TRAIN)]
    assert data.train.path(TRAIN) == str(data_root / "imagenet/train/chelsea/chelsea_0.JPEG")
    assert data.splits["test"].labels.bincount().tolist() == [VAL] * 4


def test_a_validation_split_comes_out_of_the_training_folder(data_root):
    task = task_of(data_root, "dataset.validation_size=8")
    assert task.evaluation_splits == ("val", "test") and len(task.data.train) == 4 * TRAIN - 8
    assert task.data.splits["val"].labels.bincount().tolist() == [2] * 4
    names = [set(part.names) for part in (task.data.train, task.data.splits["val"])]
    assert not names[0] & names[1]


def test_a_part_of_the_training_folder_is_taken_beside_the_validation_split(data_root):
    whole = task_of(data_root, "dataset.validation_size=8").data
    part = task_of(data_root, "dataset.validation_size=8", "dataset.train_size=12").data
    assert part.train_size == 12 and part.train.labels.bincount().tolist() == [3] * 4
    assert list(part.splits["val"].names) == list(whole.splits["val"].names)
    assert set(part.train.names) < set(whole.train.names)


def break_by(action):
    """A copy of the folder with one thing wrong."""

    def broken(tmp_path):
        root = write_imagenet(tmp_path)
        action(root / "imagenet")
        return root

    return broken


def remove_all(folder, also_folder=True):
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    if also_folder:
        folder.rmdir()


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (remove_all, "imagenet/train cannot be read: No such file or directory. Put the "
         "images there, or set DATA_ROOT; docs/imagenet.md says how"),
        (lambda f: remove_all(f / "val"), "imagenet/val cannot be read: No such file"),
        (lambda f: remove_all(f / "val", False), "imagenet/val has no folders of classes in it"),
        (lambda f: [remove_all(f / "train" / name) for name in ("china", "coffee", "astronaut")],
         r"imagenet/train has a single folder \(\w+\) of classes in it"),
        (lambda f: remove_all(f / "train" / "china", False), "train/china has no images"),
        (lambda f: remove_all(f / "train" / "china"),
         r"train lacks 1 of the 4 classes in \S+val \(china\)"),
        (lambda f: remove_all(f / "val" / "coffee"),
         r"val lacks 1 of the 4 classes in \S+train \(coffee\)"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_the_folder_is_named(action, message, tmp_path):
    with pytest.raises(UserError, match=message):
        task_of(break_by(action)(tmp_path))


def test_the_official_networks_and_what_they_refuse(data_root):
    for depth, count in ((18, 11_178_564), (34, 21_286_724), (50, 23_516_228)):
        task = task_of(data_root, "model.name=imagenet-resnet", f"model.depth={depth}")
        assert sum(p.numel() for p in task.build_model().parameters()) == count
    with pytest.raises(UserError, match="depth 20: an ImageNet ResNet has 18, 34 or 50 layers"):
        small_config("model.name=imagenet-resnet", "model.depth=20")
    with pytest.raises(UserError, match="image_size 0, resize_size 24: imagenet needs both"):
        small_config("dataset.image_size=0")
    with pytest.raises(UserError, match="crop_padding is for images in memory"):
        small_config("dataset.crop_padding=4")


# --------------------------------------------------------------------------- decoding and cropping


def largest_difference(ours, picture):
    theirs = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
    return (ours.int() - theirs.int()).abs().max()


@pytest.mark.parametrize("seed", range(4))
def test_crops_are_those_of_torchvisions_transforms_on_pillows_images(seed, data_root):
    """Within a grey level of the official example's pipeline, at the same random numbers."""
    from torchvision import transforms

    path = str(data_root / "imagenet/train/coffee/coffee_1.JPEG")
    official = transforms.Compose(
        [transforms.RandomResizedCrop(24), transforms.RandomHorizontalFlip()]
    )
    with Image.open(path) as picture:
        torch.manual_seed(seed)
        expected = official(picture)
        evaluated = transforms.CenterCrop(20)(transforms.Resize(24)(picture))
    torch.manual_seed(99)
    before = torch.get_rng_state()
    image = module.read_image(path)
    assert largest_difference(module.training_crop(image, 24, True, seed), expected) <= 1
    assert largest_difference(module.evaluation_crop(image, 24, 20), evaluated) <= 1
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("mode", "kind", "levels"),
    [("RGB", "JPEG", 1), ("L", "JPEG", 1), ("CMYK", "JPEG", 2), ("RGBA", "PNG", 0)],
)
def test_images_of_other_kinds_than_their_names_say_are_read(mode, kind, levels, tmp_path):
    """ImageNet has a PNG called JPEG, and pictures meant for printing."""
    path = tmp_path / "n02105855_2933.JPEG"
    photographs.photographs()["chelsea"].crop((0, 0, 60, 50)).convert(mode).save(path, kind)
    with Image.open(path) as picture:
        assert largest_difference(module.read_image(str(path)), picture.convert("RGB")) <= levels


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_image_is_named(workers, tmp_path):
    root = write_imagenet(tmp_path)
    path = root / "imagenet/train/china/china_3.JPEG"
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(UserError, match=r"^\S+china_3.JPEG is no image that can be read: "):
        list(task_of(root, f"workers={workers}").training_batches(0, 0))


# ------------------------------------------------------------------------------------- batches


def assert_same(one, other):
    assert len(one) == len(other) > 0
    for a, b in zip(one, other, strict=True):
        assert torch.equal(a.inputs, b.inputs) and torch.equal(a.labels, b.labels)


def test_batches_depend_on_seed_epoch_and_position_alone(data_root):
    task = task_of(data_root)
    first = list(task.training_batches(3, 0))
    assert len(first) == task.steps_per_epoch == 5
    assert [len(batch.labels) for batch in first] == [8, 8, 8, 8, 4]
    labels = torch.cat([batch.labels for batch in first])
    assert labels.bincount().tolist() == [TRAIN] * 4 and labels.tolist() != sorted(labels.tolist())
    torch.rand(7)  # somebody else draws from the global generator
    assert_same(list(task.training_batches(3, 2)), first[2:])
    workers = task_of(data_root, "workers=2")
    assert_same(list(workers.training_batches(3, 2)), first[2:])
    next(workers.training_batches(1, 0))  # left there, with more under way
    list(workers.evaluation_batches("test"))
    assert_same(list(workers.training_batches(3, 1)), first[1:])
    assert not torch.equal(next(task.training_batches(4, 0)).inputs, first[0].inputs)


def test_the_global_generator_is_left_alone(data_root):
    """Or a run that resumes in mid-epoch would drop out other units."""
    for workers in (0, 1):
        task = task_of(data_root, f"workers={workers}")
        before = torch.get_rng_state()
        list(task.training_batches(0, 3)), list(task.evaluation_batches("test"))
        assert torch.equal(torch.get_rng_state(), before)


def test_two_passes_cannot_be_interleaved(data_root):
    task = task_of(data_root)
    batches = task.training_batches(0, 0)
    next(batches), next(task.evaluation_batches("test"))
    with pytest.raises(AssertionError, match="another pass has begun"):
        next(batches)


@pytest.mark.parametrize("parts", [1, 2])
def test_the_shares_are_the_batch_whatever_the_world(parts, data_root, monkeypatch):
    """Also those of each micro-batch: it holds the same images in every world."""

    def micro_batches(world, rank):
        monkeypatch.setenv("WORLD_SIZE", str(world))
        monkeypatch.setenv("RANK", str(rank))
        task = task_of(data_root, "batch_size=19", f"micro_batches={parts}")
        batch = next(task.training_batches(1, 1))
        found = task.micro_batches(batch)
        assert len(found) == parts and sum(share for _, share in found) == pytest.approx(1)
        return [part for part, _ in found]

    whole, shares = micro_batches(1, 0), [micro_batches(3, rank) for rank in range(3)]
    assert sum(len(part.labels) for part in whole) == 17
    for number, part in enumerate(whole):
        pieces = [share[number] for share in shares]
        assert torch.equal(torch.cat([piece.inputs for piece in pieces]), part.inputs)
        assert torch.equal(torch.cat([piece.labels for piece in pieces]), part.labels)


def test_evaluation_shows_every_image_once_to_one_process(data_root, monkeypatch):
    monkeypatch.setattr(module, "EVALUATION_BATCH_SIZE", 5)
    task = task_of(data_root)
    whole = list(task.evaluation_batches("test"))
    assert torch.cat([b.labels for b in whole]).tolist() == task.data.splits["test"].labels.tolist()
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    read = []
    monkeypatch.setattr(module, "read_image", lambda path: read.append(path) or image)
    image = torch.zeros(3, 30, 30, dtype=torch.uint8)
    own = list(task_of(data_root).evaluation_batches("test"))
    assert [b.labels.tolist() for b in own] == [b.labels.tolist() for b in whole[1::2]]
    assert len(read) == sum(len(b.labels) for b in own), "others' images are not decoded"


@pytest.mark.parametrize("channels_last", [False, True])
def test_images_and_weights_lie_in_memory_as_asked(channels_last, data_root):
    task = task_of(data_root, f"channels_last={str(channels_last).lower()}")
    batch = next(task.training_batches(0, 0))
    weight = next(task.build_model().parameters())
    for tensor in (batch.inputs, weight):
        assert tensor.is_contiguous(memory_format=torch.channels_last) == channels_last
        assert tensor.is_contiguous() != channels_last


def test_workers_are_chosen_from_the_cores_of_this_process(monkeypatch):
    cores = len(os.sched_getaffinity(0))
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)))
    assert module.choose_workers() == 16
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")  # each of four has 16 cores of its own
    assert module.choose_workers() == 16
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)))
    assert module.choose_workers() == 16  # all of them see all 64
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "128")
    assert module.choose_workers() == 1
    assert cores


# ------------------------------------------------------------------------------------ trainings

DIFFERENCE = "optimizers.adahessian.curvature=finite_difference"
EVERYTHING = (
    "model.name=imagenet-resnet", "model.depth=18", "epochs=1", "micro_batches=2", "workers=1",
    "autocast=bfloat16", "dataset.image_size=32", "dataset.resize_size=36",
    "batch_size=18", "optimizers.adahessian.lr=0.001",
)  # fmt: skip


@pytest.mark.parametrize("last", ["channels_last=true", f"channels_last=true {DIFFERENCE}"])
def test_resnet18_trains_with_everything_at_once(last, data_root, tmp_path):
    config = small_config(*EVERYTHING, *last.split(), optimizer="adahessian")
    directory = train_in(tmp_path, data_root, config)
    (row,) = read_metrics(directory.metrics_path)
    assert directory.done and 0.5 < row["train/loss"] < 5 and row["step"] == 2
    weights = torch.load(directory.path / "checkpoint.pt", weights_only=True)["model"]
    assert weights["conv1.weight"].dtype == torch.float32


OVERRIDES = (
    "checkpoint_every_steps=1", "schedule.plateau.patience=0", "schedule.plateau.threshold=0.3",
    "optimizers.adahessian.update_interval=3", "micro_batches=2",
)  # fmt: skip


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, data_root):
    config = small_config(*OVERRIDES, optimizer="adahessian")
    return result(train_in(tmp_path_factory.mktemp("whole"), data_root, config))


@pytest.mark.parametrize("workers", [0, 1])
def test_resumed_inside_an_epoch_it_is_bitwise_the_uninterrupted_run(
    workers, uninterrupted, data_root, tmp_path, monkeypatch
):
    """Whatever the number of workers; what came before the interruption is not decoded again."""
    config = small_config(*OVERRIDES, f"workers={workers}", optimizer="adahessian")
    step, read = interrupted(loop.optimizer_step, lambda call: call % 4 == 0), []
    monkeypatch.setattr(loop, "optimizer_step", step)
    reading = module.read_image
    monkeypatch.setattr(module, "read_image", lambda path: read.append(path) or reading(path))
    directory, sessions = until_done(lambda: train_in(tmp_path, data_root, config))
    assert sessions == 5
    assert_equal(result(directory), uninterrupted)
    if workers == 0:  # three epochs, evaluations, and the batch of each interruption again
        assert len(read) <= 3 * 4 * (TRAIN + VAL) + 8 * (sessions - 1)
    rates = [row["learning_rate"] for row in read_metrics(directory.metrics_path)]
    assert rates[0] == 0.15 and rates[-1] < 0.15, "no plateau: the test shows less than it says"


def start(runs_root, data_root, *overrides, **environment):
    command = [sys.executable, "-W", "error", "-m", "experiments.run", str(IMAGENET), *SMALL,
               *overrides]  # fmt: skip
    known = {**os.environ, "RUNS_ROOT": str(runs_root), "DATA_ROOT": str(data_root),
             "OMP_NUM_THREADS": "1"}  # fmt: skip
    return subprocess.Popen(
        command, cwd=REPOSITORY, env={**known, **environment}, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip


@pytest.mark.slow
def test_a_signal_to_the_whole_group_ends_with_a_checkpoint(data_root, tmp_path):
    """Slurm sends it to every process of a job: the workers must outlive the step."""
    overrides = ("workers=1", "epochs=1000", "optimizer=sgd")
    directory = RunDirectory(tmp_path, small_config("epochs=1000"))
    process = start(tmp_path, data_root, *overrides)
    while not directory.metrics_size():
        assert process.poll() is None
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGTERM)
    _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 143 and "stopped by SIGTERM" in errors, errors
    assert "Traceback" not in errors and checkpoint.load(directory.path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("optimizer", "overrides", "tolerance"),
    [("sgd", (), 1e-10), ("adahessian", (), 1e-10), ("adahessian", (DIFFERENCE,), 1e-5)],
)
def test_two_processes_compute_what_one_does(optimizer, overrides, tolerance, data_root, tmp_path):
    overrides = ("dtype=float64", "micro_batches=2", "batch_size=19", "workers=1", *overrides)
    config = resolve(load(IMAGENET, [*SMALL, *overrides]), optimizer, 1)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    world = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    processes = [
        start(tmp_path / "two", data_root, *overrides, f"optimizer={optimizer}",
              **world, RANK=rank, LOCAL_RANK=rank)
        for rank in "01"
    ]  # fmt: skip
    errors = [process.communicate(timeout=PATIENCE)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors
    whole = train_in(tmp_path / "one", data_root, config)
    two = RunDirectory(tmp_path / "two", config)
    ours, reference = (
        [without_times(row) for row in read_metrics(one.metrics_path)] for one in (two, whole)
    )
    assert len(ours) == 3
    for row, expected in zip(ours, reference, strict=True):
        assert row == pytest.approx(expected, rel=tolerance, abs=tolerance)
    assert not distributed.world_group()
