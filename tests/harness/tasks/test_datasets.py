import hashlib
import pickle
import socket

import numpy as np
import pytest
import torch
from support.fashion_mnist import write_idx
from support.harness import REPOSITORY

from experiments.errors import UserError
from experiments.plans.load import load, resolve
from experiments.tasks.image_classification import datasets as module
from experiments.tasks.image_classification.task import ImageClassification

CPU = torch.device("cpu")


def test_a_validation_set_leaves_images_of_every_class():
    """Also of a rare one; a number that no image has is no class."""
    labels = torch.tensor([0] * 40 + [3] * 6 + [1] * 30)
    for size in range(1, 76):
        rest, _ = module.split_by_class(labels, size, seed=1)
        if set(labels[rest].tolist()) == {0, 1, 3}:
            assert len(module.hold_out(labels, size)[1]) == (most := size)
        else:
            with pytest.raises(UserError, match="takes all 6 training images of class 3, as .* 3 "):
                module.hold_out(labels, size)
    with pytest.raises(UserError, match=f"At most {most} leaves some of each"):
        module.hold_out(labels, 30)


def test_split_by_class_takes_each_example_once():
    labels = torch.tensor([0] * 7 + [1] * 5 + [2] * 9)
    rest, held_out = module.split_by_class(labels, 8, seed=0)
    assert sorted(torch.cat([rest, held_out]).tolist()) == list(range(21))
    assert sorted(labels[held_out].bincount().tolist()) == [2, 3, 3]


def images(*overrides):
    config = resolve(load(REPOSITORY / "configs/digits/resnet20.yaml", overrides), "sgd", seed=1)
    return ImageClassification(config, CPU, "").data


def test_a_part_of_the_training_images_is_always_the_same_and_has_all_classes():
    sizes = ("dataset.train_size=95", "dataset.validation_size=50")
    part, again = images(*sizes, "batch_size=95"), images(*sizes, "batch_size=7")
    whole = images(sizes[1])
    assert part.train_size == 95 and set(part.train.labels.bincount().tolist()) == {9, 10}
    assert torch.equal(part.train.pixels, again.train.pixels)
    assert torch.equal(part.splits["val"].pixels, whole.splits["val"].pixels)
    assert torch.equal(part.splits["test"].pixels, whole.splits["test"].pixels)
    rows = {tuple(row) for row in whole.train.pixels.flatten(1).tolist()}
    assert {tuple(row) for row in part.train.pixels.flatten(1).tolist()} <= rows


@pytest.mark.parametrize(("size", "most"), [(9, 1247), (1248, 1247)])
def test_a_part_that_cannot_be_taken_is_refused(size, most):
    message = f"dataset.train_size = {size}: must be from 10, an image of each class, to {most}"
    with pytest.raises(UserError, match=message):
        images(f"dataset.train_size={size}", "dataset.validation_size=50")


@pytest.mark.parametrize("size", [4, 12])
def test_images_in_memory_are_resized(size):
    data, old = images(f"dataset.image_size={size}"), images()
    for new, before in ((data.train, old.train), (data.splits["test"], old.splits["test"])):
        assert new.pixels.shape == (len(before), 1, size, size)
        assert new.pixels.dtype == torch.uint8 and torch.equal(new.labels, before.labels)
        error = new.pixels.float().mean((1, 2, 3)) - before.pixels.float().mean((1, 2, 3))
        assert error.abs().max() < 1.5  # of 16
    x, _ = next(data.training_batches(1, 0))
    assert x.shape[-2:] == (size, size)


def test_the_digits_are_scikit_learns(tmp_path):
    from sklearn.datasets import load_digits

    train, test = module.digits(tmp_path)
    assert (len(train.labels), test.labels.bincount().tolist()) == (1297, [50] * 10)
    expected = load_digits()
    rows = {
        (*pixels.tolist(), label)
        for part in (train, test)
        for pixels, label in zip(part.pixels.flatten(1), part.labels.tolist(), strict=True)
    }
    pairs = zip(expected.data, expected.target.tolist(), strict=True)
    assert rows == {(*map(int, pixels), label) for pixels, label in pairs}


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
    config = load(REPOSITORY / "configs" / name / f"resnet{depth}.yaml", ["batch_size=32"])
    task = ImageClassification(resolve(config, "sgd", 1), CPU, tmp_path)
    *train, (test_data, test_labels) = written
    pixels = np.concatenate([data for data, _ in train]).reshape(-1, 3, 32, 32)
    assert np.array_equal(task.data.train.pixels.numpy(), pixels)
    assert task.data.train.pixels.is_contiguous() and task.data.train.pixels.dtype == torch.uint8
    assert task.data.train.labels.tolist() == [label for _, labels in train for label in labels]
    assert np.array_equal(task.data.splits["test"].pixels.numpy().reshape(40, 3072), test_data)
    assert task.data.splits["test"].labels.tolist() == test_labels
    batch = next(task.evaluation_batches("test"))
    image = test_data[0].reshape(3, 32, 32) / 255
    expected = (image - np.array(config.dataset.mean)[:, None, None]) / np.array(
        config.dataset.std
    )[:, None, None]
    assert np.allclose(batch.inputs[0].numpy(), expected, atol=1e-5)
    assert task.data.num_classes == (10 if name == "cifar10" else 100)


def test_a_damaged_cifar_file_is_noticed(tmp_path, monkeypatch):
    from torchvision.datasets import CIFAR10

    write_cifar(CIFAR10, tmp_path, "labels", monkeypatch)
    path = tmp_path / CIFAR10.base_folder / "data_batch_3"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(UserError, match=r"batch_3 is not the .* sum is \w{32}, not \w{32}"):
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


@pytest.fixture
def small_fashion(tmp_path, monkeypatch):
    """Where both places are, and how many images the set has."""
    monkeypatch.setattr(module, "DEBIAN_FASHION_MNIST", tmp_path / "debian")
    known = {"train": (30, list(range(10))), "t10k": (20, list(range(10)))}
    monkeypatch.setattr(module, "FASHION_MNIST", known)


def write_fashion(folder, suffix="", images=(30, 20), labels=(30, 20), side=28, first=0):
    random = np.random.default_rng(0)
    written = {}
    for part, count, answers in zip(("train", "t10k"), images, labels, strict=True):
        written[part] = random.integers(0, 256, (count, side, side), dtype=np.uint8)
        names = ((np.arange(answers) + first) % 10).astype(np.uint8)
        write_idx(folder / f"{part}-images-idx3-ubyte{suffix}", written[part])
        write_idx(folder / f"{part}-labels-idx1-ubyte{suffix}", names)
    return written


@pytest.mark.parametrize(("folder", "suffix"), [("FashionMNIST/raw", ""), ("debian", ".gz")])
def test_fashion_mnist_is_read_from_both_places(folder, suffix, tmp_path, small_fashion):
    written = write_fashion(tmp_path / folder, suffix)
    train, test = module.fashion_mnist(tmp_path)
    assert np.array_equal(train.pixels.numpy()[:, 0], written["train"])
    assert np.array_equal(test.pixels.numpy()[:, 0], written["t10k"])
    assert test.labels.tolist() == [number % 10 for number in range(20)]
    (tmp_path / folder / f"t10k-labels-idx1-ubyte{suffix}").write_bytes(b"nothing")
    with pytest.raises(UserError, match="is damaged"):
        module.fashion_mnist(tmp_path)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"images": (300, 20), "labels": (100, 20)}, "train has 300 x 28 x 28 pixels and 100 lab"),
        ({"labels": (30, 10)}, "t10k has 20 x 28 x 28 pixels and 10 labels, not 20 x 28 x 28"),
        ({"side": 32}, "train has 30 x 32 x 32 pixels"),
        ({"first": 5}, r"train is another set than Fashion-MNIST: .* \[5, 6, 7, 8, 9, 0"),
    ],
)
def test_another_set_under_its_names_is_refused(wrong, message, tmp_path, small_fashion):
    """MNIST, KMNIST and EMNIST name their files alike."""
    write_fashion(tmp_path / "FashionMNIST" / "raw", **wrong)
    with pytest.raises(UserError, match=message):
        module.fashion_mnist(tmp_path)


def test_a_description_never_downloads(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "can_connect", lambda url: pytest.fail("it asked a server"))
    monkeypatch.setattr(module, "DEBIAN_FASHION_MNIST", tmp_path / "debian")
    for name in ("cifar10", "cifar100", "fashion-mnist"):
        assert module.describe(name, tmp_path) is None
    found = module.describe("digits", tmp_path)
    assert (found["classes"], found["train"], found["test"]) == (10, 1297, 500)


def test_a_description_tells_sets_of_one_size_apart(tmp_path, small_fashion):
    described = []
    for place, more in (("a", {}), ("b", {}), ("c", {"images": (30, 20)})):
        written = write_fashion(tmp_path / place / "FashionMNIST" / "raw", **more)
        if place == "c":  # one pixel
            written["train"][3, 3, 3] ^= 1
            path = tmp_path / place / "FashionMNIST" / "raw" / "train-images-idx3-ubyte"
            write_idx(path, written["train"])
        described.append(module.describe("fashion-mnist", tmp_path / place))
    assert described[0] == described[1] != described[2]
