"""Fashion-MNIST's files, small: its own first images where it is on disk, else random ones."""

import gzip
import os
import struct
from pathlib import Path

import numpy as np
from PIL import Image

from experiments.tasks.image_classification import datasets


def write_idx(path, values):
    """Write a file of unsigned bytes in LeCun's IDX format, gzipped where its name says so."""
    header = bytes([0, 0, 8, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape)
    content = header + values.tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def write_few(data_root: Path, train: int = 512, test: int = 128) -> None:
    """Write so many images as torchvision's FashionMNIST, and the same ones as folders `clothes`.

    They are the first ones of the set in Debian's place or in the environment's DATA_ROOT.
    """
    counts = {"train": train, "t10k": test}
    there = Path(os.environ.get("DATA_ROOT", "data"))
    if datasets.ON_DISK["fashion-mnist"](there):
        found = zip(counts.items(), datasets.load("fashion-mnist", there), strict=True)
        parts = {
            part: (images.pixels[:n, 0].numpy(), images.labels[:n].numpy().astype(np.uint8))
            for (part, n), images in found
        }
    else:
        random = np.random.default_rng(0)
        parts = {
            part: (
                random.integers(0, 256, (n, 28, 28), dtype=np.uint8),
                (np.arange(n) % 10).astype(np.uint8),
            )
            for part, n in counts.items()
        }
    for split, (part, (pixels, labels)) in zip(("train", "val"), parts.items(), strict=True):
        write_idx(data_root / f"FashionMNIST/raw/{part}-images-idx3-ubyte", pixels)
        write_idx(data_root / f"FashionMNIST/raw/{part}-labels-idx1-ubyte", labels)
        for number, (image, label) in enumerate(zip(pixels, labels, strict=True)):
            path = data_root / "clothes" / split / str(label) / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
