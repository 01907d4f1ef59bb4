import gzip
import hashlib
import pickle
import socket
import struct

import numpy as np
import pytest
import torch
from harness import REPOSITORY, small_config

from experiments.config import UserError, load, resolve
from experiments.tasks import image_classification as module
from experiments.tasks.image_classification import (
    ImageClassification,
    crop_and_flip,
    draw_crops_and_flips,
    generator,
    split_by_class,
)

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def task():
    return ImageClassification(small_config(), CPU, None)


# -------------------------------------------------------------------------------- augmentation


def test_crop_and_flip_is_torchvisions_crop_of_the_padded_image_then_flip():
    from torchvision.transforms.v2 import functional as F

    torch.manual_seed(0)
    pixels = torch.randint(0, 256, (64, 3, 32, 32), dtype=torch.uint8)
    draws = draw_crops_and_flips(64, 4, True, generator(0, 0, "test"))
    result = crop_and_flip(pixels, draws, 4)
    assert result.dtype == torch.uint8
    for image, (top, left, flip), mine in zip(pixels, draws.tolist(), result, strict=True):
        expected = F.crop(F.pad(image, [4, 4, 4, 4]), top, left, 32, 32)
        assert torch.equal(mine, F.horizontal_flip(expected) if flip else expected)


def test_all_81_windows_and_both_directions_are_equally_likely():
    count = 162 * 400
    draws = draw_crops_and_flips(count, 4, True, generator(0, 0, "test"))
    outcome = (draws[:, 0] * 9 + draws[:, 1]) * 2 + draws[:, 2]
    observed = outcome.bincount(minlength=162).double()
    assert len(observed) == 162
    # Chi square with 161 degrees of freedom: mean 161, standard deviation 18.
    assert 161 - 4 * 18 < ((observed - 400) ** 2 / 400).sum() < 161 + 4 * 18


def test_without_padding_and_flip_images_stay_as_they_are():
    pixels = torch.randint(0, 256, (5, 1, 8, 8), dtype=torch.uint8)
    draws = draw_crops_and_flips(5, 0, False, generator(0, 0, "test"))
    assert torch.equal(crop_and_flip(pixels, draws, 0), pixels)


def test_batches_depend_on_seed_epoch_and_position_alone(task):
    first = list(task.training_batches(3, 0))
    torch.rand(7)  # somebody else draws from the global generator
    list(task.training_batches(5, 0))
    again = list(task.training_batches(3, 4))
    assert len(first) == task.steps_per_epoch == 11 and len(again) == 7
    for a, b in zip(first[4:], again, strict=True):
        assert torch.equal(a.inputs, b.inputs) and torch.equal(a.labels, b.labels)
    other = next(task.training_batches(4, 0))
    assert not torch.equal(first[0].labels, other.labels)
    seeded = ImageClassification(small_config(seed=2), CPU, None)
    assert not torch.equal(first[0].labels, next(seeded.training_batches(3, 0)).labels)


def test_an_epoch_shows_every_image_once():
    config = small_config("dataset.crop_padding=0")
    task = ImageClassification(config, CPU, None)
    seen = torch.cat([batch.inputs for batch in task.training_batches(0, 0)])
    expected = task._normalize(task.train.pixels)
    assert torch.equal(seen.flatten(1).unique(dim=0), expected.flatten(1).unique(dim=0))
    assert len(seen) == len(expected)


# --------------------------------------------------------------------------------------- splits


def test_digits_are_split_evenly_and_always_alike(task):
    test = task.splits["test"]
    assert len(task.train) == 1297 and len(test) == 500
    assert test.labels.bincount().tolist() == [50] * 10
    assert task.train.pixels.shape[1:] == (1, 8, 8) and task.train.pixels.max() == 16
    digest = hashlib.sha256(test.pixels.numpy().tobytes()).hexdigest()[:16]
    assert digest == "f01f27f364748301"


def test_the_configured_mean_and_std_are_those_of_the_training_images(task):
    scaled = task.train.pixels.float() / 16
    assert task.config.dataset.mean == [round(scaled.mean().item(), 4)]
    assert task.config.dataset.std == [round(scaled.std().item(), 4)]
    normalized = task._normalize(task.train.pixels)
    assert normalized.mean().abs() < 1e-3 and abs(normalized.std() - 1) < 1e-3


def test_a_validation_split_comes_out_of_the_training_set(task):
    config = small_config("dataset.validation_size=200")
    split = ImageClassification(config, CPU, None)
    assert split.evaluation_splits == ("val", "test")
    assert len(split.splits["val"]) == 200 and len(split.train) == 1097
    assert split.splits["val"].labels.bincount().tolist() == [20] * 10
    assert torch.equal(split.splits["test"].pixels, task.splits["test"].pixels)
    with pytest.raises(UserError, match="dataset.validation_size = 1297: must be below 1297"):
        ImageClassification(small_config("dataset.validation_size=1297"), CPU, None)


def test_split_by_class_takes_each_example_once():
    labels = torch.tensor([0] * 7 + [1] * 5 + [2] * 9)
    rest, held_out = split_by_class(labels, 8, seed=0)
    assert sorted(torch.cat([rest, held_out]).tolist()) == list(range(21))
    assert sorted(labels[held_out].bincount().tolist()) == [2, 3, 3]


def test_a_wrong_number_of_channels_is_refused():
    with pytest.raises(UserError, match="dataset.mean = .*needs 1 values, one per channel"):
        ImageClassification(small_config("dataset.mean=[0.1, 0.2]"), CPU, None)


# ------------------------------------------------------------------------------------- measures


def test_loss_and_sums(task):
    batch = next(task.evaluation_batches("test"))
    model = task.build_model().eval()
    loss, sums = task.loss(model, batch)
    logits = model(batch.inputs)
    assert loss.requires_grad and not sums["correct"].requires_grad
    assert sums["weight"] == 500
    assert sums["correct"] == (logits.argmax(1) == batch.labels).sum()
    totals = {"loss": 4.0, "weight": 8, "correct": 6}
    assert task.summarize(totals) == {"loss": 0.5, "accuracy": 0.75}


def test_evaluation_shows_every_image_once_in_order(task):
    labels = torch.cat([batch.labels for batch in task.evaluation_batches("test")])
    assert torch.equal(labels, task.splits["test"].labels)


# ---------------------------------------------------------------------------------------- CIFAR


def write_cifar(dataset, root, key, monkeypatch):
    """Write 40 random images per file in CIFAR's format, and tell torchvision their MD5 sums."""
    folder = root / dataset.base_folder
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    classes = 10 if key == "labels" else 100
    written = []

    def write(name, content):
        (folder / name).write_bytes(pickle.dumps(content))
        return hashlib.md5((folder / name).read_bytes()).hexdigest()

    for kind in ("train_list", "test_list"):
        entries = []
        for name, _ in getattr(dataset, kind):
            data = random.integers(0, 256, (40, 3072), dtype=np.uint8)
            labels = random.permutation(np.arange(40) % classes).tolist()
            labels[0] = classes - 1
            entries.append([name, write(name, {"data": data, key: labels})])
            written.append((data, labels))
        monkeypatch.setattr(dataset, kind, entries)
    names = {dataset.meta["key"]: [str(number) for number in range(classes)]}
    md5 = write(dataset.meta["filename"], names)
    monkeypatch.setattr(dataset, "meta", {**dataset.meta, "md5": md5})
    return written


@pytest.mark.parametrize(
    ("name", "depth", "key"), [("cifar10", 20, "labels"), ("cifar100", 32, "fine_labels")]
)
def test_cifar_is_read_from_its_own_format(name, depth, key, tmp_path, monkeypatch):
    from torchvision import datasets

    dataset = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]
    written = write_cifar(dataset, tmp_path, key, monkeypatch)
    config = load(REPOSITORY / "configs" / name / f"resnet{depth}.yaml")
    task = ImageClassification(resolve(config, "sgd", 1), CPU, tmp_path)
    *train, (test_data, test_labels) = written
    pixels = np.concatenate([data for data, _ in train]).reshape(-1, 3, 32, 32)
    assert np.array_equal(task.train.pixels.numpy(), pixels)
    assert task.train.pixels.is_contiguous() and task.train.pixels.dtype == torch.uint8
    assert task.train.labels.tolist() == [label for _, labels in train for label in labels]
    assert np.array_equal(task.splits["test"].pixels.numpy().reshape(40, 3072), test_data)
    assert task.splits["test"].labels.tolist() == test_labels
    batch = next(task.evaluation_batches("test"))
    image = test_data[0].reshape(3, 32, 32) / 255
    expected = (image - np.array(config.dataset.mean)[:, None, None]) / np.array(
        config.dataset.std
    )[:, None, None]
    assert np.allclose(batch.inputs[0].numpy(), expected, atol=1e-5)
    assert task.num_classes == (10 if name == "cifar10" else 100)


def test_a_damaged_cifar_file_is_noticed(tmp_path, monkeypatch):
    from torchvision.datasets import CIFAR10

    write_cifar(CIFAR10, tmp_path, "labels", monkeypatch)
    path = tmp_path / CIFAR10.base_folder / "data_batch_3"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(UserError, match="cifar-10-batches-py is damaged"):
        module.cifar10(tmp_path)


@pytest.mark.parametrize(
    ("reader", "file"),
    [
        (module.cifar10, "cifar-10-batches-py/data_batch_1"),
        (module.cifar100, "cifar-100-python/train"),
        (module.fashion_mnist, "FashionMNIST/raw/train-images-idx3-ubyte"),
    ],
)
def test_missing_data_without_a_network_names_folder_file_and_way_out(
    reader, file, tmp_path, monkeypatch
):
    monkeypatch.setattr(module, "can_connect", lambda url: False)
    monkeypatch.setattr(module, "DEBIAN_FASHION_MNIST", tmp_path)
    with pytest.raises(UserError) as caught:
        reader(tmp_path)
    message = str(caught.value)
    assert f"{tmp_path / file} is not there" in message
    assert "DATA_ROOT" in message and "`make quickstart` needs no download" in message


def test_a_failing_download_is_told(tmp_path, monkeypatch):
    from torchvision.datasets import CIFAR10

    def fail(self):
        raise OSError("connection reset")

    monkeypatch.setattr(module, "can_connect", lambda url: True)
    monkeypatch.setattr(CIFAR10, "download", fail)
    with pytest.raises(UserError, match="its download failed: connection reset"):
        module.cifar10(tmp_path)
    assert socket.getdefaulttimeout() is None


# -------------------------------------------------------------------------------- Fashion-MNIST


def write_idx(path, values):
    header = bytes([0, 0, 8, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape)
    content = header + values.tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


@pytest.mark.parametrize(("folder", "suffix"), [("FashionMNIST/raw", ""), ("debian", ".gz")])
def test_fashion_mnist_is_read_from_both_places(folder, suffix, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "DEBIAN_FASHION_MNIST", tmp_path / "debian")
    random = np.random.default_rng(0)
    written = {}
    for part, count in (("train", 30), ("t10k", 20)):
        written[part] = random.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = (np.arange(count) % 10).astype(np.uint8)
        write_idx(tmp_path / folder / f"{part}-images-idx3-ubyte{suffix}", written[part])
        write_idx(tmp_path / folder / f"{part}-labels-idx1-ubyte{suffix}", labels)
    train, test = module.fashion_mnist(tmp_path)
    assert np.array_equal(train.pixels.numpy()[:, 0], written["train"])
    assert np.array_equal(test.pixels.numpy()[:, 0], written["t10k"])
    assert test.labels.tolist() == [number % 10 for number in range(20)]
    (tmp_path / folder / f"t10k-labels-idx1-ubyte{suffix}").write_bytes(b"nothing")
    with pytest.raises(UserError, match="is damaged"):
        module.fashion_mnist(tmp_path)
