"""Data of one's own: a `Dataset` by its path, torchvision's sets by name, any folder."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.harness import small_config
from support.photographs import CLASSES, write_imagenet
from support.photographs import small_config as folder_config
from support.training import train_here

from experiments.errors import UserError
from experiments.runs.metrics import read_metrics
from experiments.tasks import registry
from experiments.tasks.image_classification import constructed, datasets, in_memory
from experiments.training import optimizers

CPU = torch.device("cpu")
OWN = ("model={name: convnet, depth: 3}", "epochs=1", "batch_size=16")


class Spots:
    """A bright spot in one of four quarters; images in the forms that a `Dataset` returns."""

    def __init__(self, root, split, form="pillow", count=40, size=8):
        self.split, self.form, self.count, self.size = split, form, count, size
        assert Path(root).is_absolute() and split in ("train", "test")

    def __len__(self):
        return self.count if self.split == "train" else self.count // 2

    def __getitem__(self, index):
        if index >= len(self):
            raise IndexError(index)
        label, size = index % 4, self.size
        image = np.full((size, size), 20 + index, dtype=np.uint8)
        row, column = divmod(label, 2)
        image[row * 4 : row * 4 + 4, column * 4 : column * 4 + 4] = 200
        forms = {
            "pillow": lambda: Image.fromarray(image),
            "colour": lambda: np.stack([image, image, image // 2], axis=-1),
            "tensor": lambda: torch.from_numpy(image)[None],
            "flat": lambda: torch.from_numpy(image),
            "float": lambda: torch.from_numpy(image)[None] / 255,
            "large": lambda: torch.from_numpy(image)[None] / 2.0,
            "growing": lambda: image[: 4 + index],
            "int16": lambda: torch.from_numpy(image).to(torch.int16),
        }
        return forms[self.form](), label if self.form != "negative" else -1


class Odd(Spots):
    """Items that are no image with the number of its class, by name."""

    def __init__(self, root, split, item="fraction"):
        super().__init__(root, split)
        self.item = item

    def __len__(self):
        if self.item == "no length":
            raise TypeError("no len()")
        return 20 if self.item == "same" else super().__len__()

    def __getitem__(self, index):
        image, label = super().__getitem__(index)
        array = np.array(image)
        if index != 7 and self.item not in ("same", "one class"):
            return image, label
        items = {
            "fraction": lambda: (image, 0.7),
            "nan": lambda: (image, float("nan")),
            "infinite": lambda: (image, float("inf")),
            "text": lambda: (image, "cat"),
            "digit": lambda: (image, "3"),
            "none": lambda: (image, None),
            "one hot": lambda: (image, torch.eye(4)[label]),
            "mask": lambda: (image, array),
            "dict": lambda: {"image": image, "label": label},
            "three": lambda: (image, label, "name"),
            "alone": lambda: image,
            "key": lambda: {}["row 7"],
            "no image": lambda: ("photo.png", label),
            "channels first": lambda: (np.stack([array] * 3), label),
            "same": lambda: (image, label),
            "one class": lambda: (image, 2),
        }
        return items[self.item]()


class Random(Spots):
    """Draws in its items, as transforms do, or when it is constructed."""

    def __init__(self, root, split, when="read"):
        super().__init__(root, split)
        self.when, self.noise = when, int(torch.randint(1000, ()))

    def __getitem__(self, index):
        image, label = super().__getitem__(index)
        image = np.array(image)
        if self.when == "read" and self.split == "train" and torch.rand(()) < 0.5:
            image = image[:, ::-1].copy()
        if self.when == "constructed":
            image[0, 0] = self.noise % 256
        return image, label


@pytest.mark.parametrize("when", ["read", "constructed"])
def test_a_set_that_draws_is_refused(when, tmp_path):
    """Its transform acted once, and each run was trained on, and refused, other data."""
    name = f"{Random.__module__}.Random"
    config = small_config(
        f"dataset={{name: spots, constructor: {name}, when: {when}, validation_size: 0, "
        "crop_padding: 0, flip: false}"
    )
    with pytest.raises(UserError, match=rf"Random\[\d+\] is another one when it is {when} again"):
        registry.build_task(config, CPU, tmp_path)


class Labels(Spots):
    """Whole numbers, in all the types that they come in."""

    def __getitem__(self, index):
        image, label = super().__getitem__(index)
        forms = (int, float, np.int64, np.float32, torch.tensor, lambda n: np.array([n]))
        return image, forms[index % len(forms)](label)


class Palette(Spots):
    """Pictures whose numbers of colours say nothing: each has a palette of its own."""

    def __getitem__(self, index):
        image, label = super().__getitem__(index)
        return image.convert("RGB").convert("P", palette=Image.Palette.ADAPTIVE), label


class ByTrain(Spots):
    """Tells its parts apart by `train`, and needs no root."""

    def __init__(self, train, classes=4):
        super().__init__("/", "train" if train else "test")
        self.classes = 4 if not train else classes

    def __getitem__(self, index):
        image, label = super().__getitem__(index)
        return image, min(label, self.classes - 1)


class Linear(torch.nn.Sequential):
    def __init__(self, num_classes):
        super().__init__(torch.nn.Flatten(), torch.nn.LazyLinear(num_classes))


def nothing_known():
    return []


def own(text="", constructor="Spots", *overrides):
    dataset = (
        f"dataset={{name: spots, constructor: {__name__}.{constructor}, validation_size: 0, "
        f"crop_padding: 1, flip: false, {text}}}"
    )
    return small_config(dataset, *OWN, *overrides)


def images(text="", constructor="Spots", root=Path("data")):
    config = own(text, constructor)
    optimizers.check(config)
    return constructed.load(config.dataset, root)


@pytest.mark.parametrize("form", ["pillow", "tensor", "flat", "float"])
def test_an_image_may_come_in_the_usual_forms(form):
    train, test = images(f"form: {form}")
    assert (len(train), len(test)) == (40, 20) and train.pixels.dtype == torch.uint8
    assert train.pixels.shape == (40, 1, 8, 8)
    assert train.pixels[5, 0, 0, 7] == 200 and train.pixels[5, 0, 7, 7] == 25
    assert train.labels.tolist() == [0, 1, 2, 3] * 10


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ("fraction", r"Odd\[7\] has the label 0.7 \(float\): a label is the number of its class"),
        ("nan", r"Odd\[7\] has the label nan"),
        ("infinite", r"Odd\[7\] has the label inf"),
        ("text", r"Odd\[7\] has the label cat \(str\)"),
        ("digit", r"Odd\[7\] has the label 3 \(str\)"),
        ("none", r"Odd\[7\] has the label None"),
        ("one hot", r"Odd\[7\] has the label tensor\(\[0., 0., 0., 1.\]\) \(Tensor\)"),
        ("mask", r"Odd\[7\] has the label \[\[.*\(ndarray\)"),
        ("dict", r"Odd\[7\] is a dict, not an image and its label"),
        ("three", r"Odd\[7\] is a tuple of 3, not an image and its label"),
        ("alone", r"Odd\[7\] is a Image, not an image and its label"),
        ("key", r"Odd\[7\]: KeyError: 'row 7'"),
        ("no image", r"Odd\[7\]: TypeError: "),
        ("channels first", r"Odd\[7\] is an array of shape \(3, 8, 8\), whose channels seem"),
        ("no length", r"Odd has no length: TypeError: no len\(\)"),
        ("same", r"Odd tests the 20 images that it trains"),
        ("one class", r"Odd: all training images are of class 2"),
    ],
)
def test_an_item_that_is_no_labelled_image_is_one_line(item, message):
    with pytest.raises(UserError, match=rf"^dataset: {__name__}\.{message}") as refused:
        images(f"item: {item}", "Odd")
    assert "\n" not in str(refused.value)


def test_labels_and_palettes_are_what_they_mean():
    (whole, _), (sound, _) = images("", "Labels"), images("", "Spots")
    assert whole.labels.equal(sound.labels)
    coloured, _ = images("", "Palette")
    assert coloured.pixels.equal(sound.pixels.expand(-1, 3, -1, -1))


def test_colours_are_put_first_and_parts_are_told_apart_by_train():
    train, _ = images("form: colour")
    assert train.pixels[0, :, 7, 7].tolist() == [20, 20, 10]
    train, test = images("", "ByTrain")
    assert (len(train), len(test)) == (40, 20)


def test_a_data_set_of_ones_own_is_trained_and_is_part_of_the_runs_identity(tmp_path):
    linear = f"model={{constructor: {__name__}.Linear}}"
    config = own("", "Spots", linear, "epochs=8", "optimizers.sgd.lr=0.01")
    directory = train_here(tmp_path, config)
    assert directory.path.parts[-4] == "spots"
    assert read_metrics(directory.metrics_path)[-1]["test/accuracy"] == 1
    known = directory.meta()["data"]
    assert (known["classes"], known["train"], known["test"]) == (4, 40, 20)
    other = registry.describe_data(own("count: 44"), tmp_path)
    assert other["digest"] != known["digest"]


def test_mean_and_deviation_are_measured_where_they_are_not_given():
    task = registry.build_task(own("form: colour"), CPU, Path("data"))
    scaled = task.data.train.pixels.double() / 255
    expected = [scaled.mean((0, 2, 3)).tolist(), scaled.std((0, 2, 3), correction=0).tolist()]
    assert np.allclose(task._moments(), expected)
    inputs = torch.cat([task._normalize(task.data.train.pixels)])
    assert inputs.mean((0, 2, 3)).abs().max() < 1e-5
    assert inputs.std((0, 2, 3), correction=0).sub(1).abs().max() < 1e-5
    given = registry.build_task(own("mean: [0.5], std: [2.0]"), CPU, Path("data"))
    assert given._moments() == [[0.5], [2.0]]
    with pytest.raises(UserError, match=re.escape("dataset.mean = [0.5]: needs 3 values")):
        registry.build_task(own("form: colour, mean: [0.5]"), CPU, Path("data"))


@pytest.mark.parametrize(
    ("text", "constructor", "message"),
    [
        ("from: colour", "Spots", "dataset: unknown key 'from', no argument of"),
        ("", "Stops", "cannot be imported"),
        ("", "nothing_known", "takes neither train= nor split=: nothing tells its training"),
        ("classes: 2", "ByTrain", "tests a class 3 that it does not train"),
        ("form: growing", "Spots", "Spots[1] is (1, 5, 8) and the first image (1, 4, 8): images"),
        ("form: large", "Spots", "has values from 10 to 100: return uint8, or numbers from 0 to 1"),
        ("form: int16", "Spots", "Spots[0] is no image: torch.int16 of shape (1, 8, 8)"),
        ("count: 0", "Spots", "Spots is empty"),
    ],
)
def test_what_is_no_data_set_of_images_is_one_line(text, constructor, message):
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        images(text, constructor)
    assert "\n" not in str(caught.value)


# --------------------------------------------------------------------------- torchvision's sets


def write_idx(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    path.write_bytes(bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes())


def write_mnist(folder, prefix="", train="train", test="t10k"):
    random = np.random.default_rng(0)
    for part, count in ((train, 60), (test, 30)):
        labels = np.arange(count, dtype=np.uint8) % 10
        pixels = random.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        write_idx(folder / f"{prefix}{part}-images-idx3-ubyte", pixels)
        write_idx(folder / f"{prefix}{part}-labels-idx1-ubyte", labels)


@pytest.mark.parametrize(("name", "folder"), [("mnist", "MNIST"), ("kmnist", "KMNIST")])
def test_a_set_of_torchvision_is_a_name(name, folder, tmp_path):
    write_mnist(tmp_path / folder / "raw")
    text = f"dataset={{name: {name}, validation_size: 0, crop_padding: 0, flip: false}}"
    config = small_config(text, *OWN, "batch_size=60")
    train, test = constructed.load(config.dataset, tmp_path)
    assert train.pixels.shape == (60, 1, 28, 28) and len(test) == 30
    assert train.labels[:11].tolist() == [*range(10), 0]
    assert registry.describe_data(config, tmp_path)["train"] == 60
    inputs = next(iter(registry.build_task(config, CPU, tmp_path).training_batches(0, 0))).inputs
    assert abs(float(inputs.mean())) < 1e-5


def test_emnist_says_which_of_its_sets(tmp_path):
    raw = tmp_path / "EMNIST" / "raw"
    write_mnist(raw, "emnist-balanced-", "train", "test")
    more = "validation_size: 0, crop_padding: 0, flip: false"
    config = small_config(f"dataset={{name: emnist, split: balanced, {more}}}", *OWN)
    assert len(constructed.load(config.dataset, tmp_path)[1]) == 30
    config = small_config(f"dataset={{name: emnist, {more}}}", *OWN)
    with pytest.raises(UserError, match="EMNIST: Unknown value 'train' for argument split. Valid"):
        constructed.load(config.dataset, tmp_path)


def test_a_set_that_is_neither_there_nor_to_be_had(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets, "can_connect", lambda hop: False)
    for folder in ("MNIST", "SVHN", "USPS", "STL10"):
        name = folder.lower()
        text = f"dataset={{name: {name}, validation_size: 0, crop_padding: 0, flip: false}}"
        config = small_config(text, *OWN)
        assert registry.describe_data(config, tmp_path) is None
        with pytest.raises(UserError, match=f"{folder} is not there, and .* cannot be reached"):
            registry.build_task(config, CPU, tmp_path)


# ------------------------------------------------------------------------------- any folder


@pytest.mark.parametrize("evaluated", ["val", "test"])
def test_any_folder_of_class_folders_has_a_name_and_a_place(evaluated, tmp_path):
    write_imagenet(tmp_path)
    place = shutil.move(tmp_path / "imagenet", tmp_path / "my photographs")
    if evaluated == "test":
        shutil.move(place / "val", place / "test")
    dataset = (
        f"dataset={{name: photographs, root: {place}, validation_size: 0, crop_padding: 0, "
        "flip: true, image_size: 20, resize_size: 24}"
    )
    config = folder_config(dataset, "dataset.image_size=20", "epochs=1")
    task = registry.build_task(config, CPU, Path("elsewhere"))
    assert task.data.train.classes == list(CLASSES) and len(task.data.splits["test"]) == 16
    (mean, std), (again, _) = task._moments(), task.data.measure()
    assert mean == again and all(0.2 < value < 0.8 for value in mean) and min(std) > 0.05
    relative = folder_config(dataset.replace(str(place), place.name), "epochs=1")
    found = registry.describe_data(relative, tmp_path)
    assert found == registry.describe_data(config, Path("elsewhere")) and found["val"] == 16


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{name: pets}", "no data set is called 'pets'; known: digits, cifar10"),
        ("{name: digits, root: x}", "digits lies in DATA_ROOT: root is for folders under another"),
        ("{name: pets, root: x}", "image_size 0, resize_size 0: a folder needs both"),
        (
            "{name: pets, root: x, image_sise: 3}",
            "unknown key 'image_sise'; did you mean",
        ),
        ("{name: a/b, root: x}", "names a folder"),
    ],
)
def test_a_name_that_nobody_knows_is_one_line(text, message):
    text = text.replace("}", ", validation_size: 0, crop_padding: 0, flip: false}")
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        small_config(f"dataset={text}")
    assert "\n" not in str(caught.value)


def test_the_digits_measured_are_near_what_their_file_says():
    task = registry.build_task(small_config("dataset.mean=null", "dataset.std=null"), CPU, Path())
    given = small_config().dataset
    assert isinstance(task.data, in_memory.ImagesInMemory)
    assert np.allclose(task._moments(), [given.mean, given.std], atol=0.01)
