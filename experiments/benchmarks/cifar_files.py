"""CIFAR-10 for a benchmark: the real files where they are, else random images in their format."""

import pickle
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from torchvision import datasets
from torchvision.datasets import CIFAR10


class RandomCifar10(CIFAR10):
    """CIFAR-10's files with other content: nobody knows their MD5 sums."""

    train_list = [[name, None] for name, _ in CIFAR10.train_list]
    test_list = [[name, None] for name, _ in CIFAR10.test_list]
    meta = {**CIFAR10.meta, "md5": None}


@contextmanager
def cifar10(root: Path, images: int = 50_000) -> Iterator[tuple[type[CIFAR10], Path]]:
    """The data set, `CIFAR10` or `RandomCifar10`, and the folder that it is to read.

    Within the block `RandomCifar10` has the other one's place in torchvision, so that all that
    reads CIFAR-10, such as the task of the harness, does so by its own code.

    Args:
        root: where the real files may be.
        images: training images, where they have to be generated.
    """
    names = [name for name, _ in CIFAR10.train_list + CIFAR10.test_list]
    if all((root / CIFAR10.base_folder / name).is_file() for name in names):
        yield CIFAR10, root
        return
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder), images)
        datasets.CIFAR10 = RandomCifar10
        try:
            yield RandomCifar10, Path(folder)
        finally:
            datasets.CIFAR10 = CIFAR10


def generate(root: Path, images: int) -> None:
    """Write the files of `RandomCifar10` below `root`."""
    random = np.random.default_rng(0)
    folder = root / CIFAR10.base_folder
    folder.mkdir()

    def write(name: str, content: Any) -> None:
        (folder / name).write_bytes(pickle.dumps(content))

    count = images // len(CIFAR10.train_list)
    for name, _ in CIFAR10.train_list + CIFAR10.test_list:
        pixels = random.integers(0, 256, (count, 3 * 32 * 32), dtype=np.uint8)
        write(name, {"data": pixels, "labels": [i % 10 for i in range(count)]})
    write(CIFAR10.meta["filename"], {CIFAR10.meta["key"]: [str(i) for i in range(10)]})
