"""What people's folders hold besides images, and images that cannot be trained on."""

import json
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image
from support.photographs import CLASSES, TRAIN, VAL, write_imagenet

from experiments.errors import UserError
from experiments.tasks.image_classification import listing as module
from experiments.tasks.image_classification.listing import Listing, describe


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("RUNS_ROOT", str(tmp_path / "runs"))
    module._both.cache_clear()
    return write_imagenet(tmp_path) / "imagenet"


def huge_png(path):
    """A picture of 40,000 x 40,000 pixels, in 60 bytes."""

    def chunk(kind, content):
        return (
            struct.pack(">I", len(content))
            + kind
            + content
            + struct.pack(">I", zlib.crc32(kind + content))
        )

    header = struct.pack(">IIBBBBB", 40_000, 40_000, 8, 2, 0, 0, 0)
    content = chunk(b"IHDR", header) + chunk(b"IDAT", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + content)


def deep(path):
    Image.fromarray(np.full((40, 40), 40_000, dtype=np.uint16)).save(path)


def test_what_is_hidden_is_left_out_and_counted(root, capsys):
    before = Listing.read(root / "train")
    (root / "train/.ipynb_checkpoints").mkdir()
    (root / "train/.ipynb_checkpoints/x.JPEG").write_bytes(b"")
    (root / "train/.DS_Store").touch()
    (root / "train/README.md").touch()
    (root / "train/__MACOSX").mkdir()
    for name in ("._china_1.JPEG", "Thumbs.db", ".nfs0001", "desktop.ini", "notes.txt"):
        (root / "train/china" / name).write_bytes(b"x")
    after = Listing.read(root / "train")
    assert after.classes == before.classes == list(CLASSES)
    assert after.names.tolist() == before.names.tolist() and after.digest == before.digest
    assert (
        f"{root}/train: 9 hidden files, folders and others are left out" in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("part", "name", "make", "message"),
    [
        ("val", "loose.JPEG", os.mknod, r"loose.JPEG lies in no folder of a class: \S+val is sort"),
        ("train/china", "more", os.mkdir, "china/more is a folder inside a class"),
        ("train/china", "x.webp", os.mknod, "x.webp would be left out because of its ending"),
        ("train/china", "x.TIFF", os.mknod, "x.TIFF would be left out because of its ending"),
        ("train/china", "x.JPEG", os.mknod, "x.JPEG is no image that can be read"),
        ("train/china", "x.png", os.mkfifo, "x.png is no image that can be read: it is no file"),
        ("train/china", "x.png", huge_png, "x.png is too large to be decoded"),
        ("train/china", "x.png", deep, r"x.png has more than 8 bits per channel .*mode I;16\)"),
        (
            "val/china",
            "x.jpg",
            lambda path: path.symlink_to("nowhere"),
            "x.jpg is no image .*No su",
        ),
        ("val/china", "x.jpg", lambda path: path.write_text("<html>"), "x.jpg is no image that"),
    ],
)
def test_what_is_wrong_with_a_file_is_named_before_the_first_step(part, name, make, message, root):
    make(root / part / name)
    with pytest.raises(UserError, match=message):
        Listing.read(root / part.partition("/")[0])


def test_of_many_the_first_is_named_and_the_others_counted(root):
    for name in CLASSES:
        (root / "val" / name / f"{name}_0.JPEG").write_bytes(b"")
    with pytest.raises(UserError, match=rf"astronaut_0.JPEG .*\(4 of {4 * VAL} images in \S+val"):
        Listing.read(root / "val")


def settle(root):
    for folder in [root, *root.rglob("*")]:
        os.utime(folder, (1e9, 1e9))


def test_headers_are_looked_at_once_as_long_as_no_folder_changes(root, tmp_path, monkeypatch):
    looked, look = [], module._look
    monkeypatch.setattr(module, "_look", lambda path: looked.append(path) or look(path))
    first = Listing.read(root / "train")
    assert not (tmp_path / "runs").exists(), "it was written a moment ago: it may change unseen"
    settle(root)
    assert (
        Listing.read(root / "train").digest == Listing.read(root / "train").digest == first.digest
    )
    assert len(looked) == 2 * 4 * TRAIN
    (memory,) = (tmp_path / "runs/.data").iterdir()
    for text in ("", "[]", '{"listed": 3}', json.dumps({"listed": "x", "digest": "y"})):
        memory.write_text(text)
        assert Listing.read(root / "train").digest == first.digest
    (root / "train/china/china_1.JPEG").rename(root / "train/china/other.JPEG")
    assert Listing.read(root / "train").digest != first.digest


def test_a_place_where_nothing_can_be_written_is_no_reason_not_to_train(root, monkeypatch):
    settle(root)
    monkeypatch.setenv("RUNS_ROOT", "/proc/nowhere")
    assert len(Listing.read(root / "train")) == 4 * TRAIN


def test_a_description_is_of_names_and_sizes_wherever_they_lie(root, tmp_path):
    found = describe(root)
    assert (found["classes"], found["train"], found["val"]) == (4, 4 * TRAIN, 4 * VAL)
    root.rename(tmp_path / "elsewhere")
    assert describe(root) is None
    assert describe(tmp_path / "elsewhere") == found
    image = tmp_path / "elsewhere/val/china/china_1.JPEG"
    image.write_bytes(image.read_bytes() + b"x")
    module._both.cache_clear()
    assert describe(tmp_path / "elsewhere")["digest"] != found["digest"]
