"""Whether ImageNet's images can be read as fast as a network takes them.

`python -m experiments.benchmarks.loader` writes JPEG files of ImageNet's sizes (500 x 375, about
110 kB) into a temporary folder and measures, in images per second: ways to decode and crop them, in
one process; the loader alone, with one worker and with one for each core; the network alone,
forward and backward on one batch. The files stay in the system's cache: no disk is measured.
"""

import argparse
import io
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from experiments.config.experiment import Config
from experiments.plans.load import load, resolve
from experiments.reports.publish import provenance, publish
from experiments.reports.sections import Grid
from experiments.tasks.image_classification import folder as image_folder
from experiments.tasks.image_classification.task import ImageClassification

CONFIG = Path(__file__).parents[2] / "configs" / "imagenet" / "resnet18.yaml"
WIDTH, HEIGHT, KILOBYTES = 500, 375, 110
CORES, CLASSES = 16, 4


# ------------------------------------------------------------------------------------ the files


def write_images(root: Path, count: int) -> float:
    """Write `count` images below `root` in ImageNet's layout; returns their mean size in kB.

    Crops of photographs, three of four lying, of the JPEG quality that gives the wanted size.
    """
    from sklearn.datasets import load_sample_images

    photographs = [Image.fromarray(pixels) for pixels in load_sample_images().images]
    random = np.random.default_rng(0)
    crops = []
    for number in range(count):
        photograph = photographs[number % len(photographs)]
        size = (WIDTH, HEIGHT) if number % 4 else (HEIGHT, WIDTH)
        left, top = (
            random.integers(0, max(1, whole - part))
            for whole, part in zip(photograph.size, size, strict=True)
        )
        crops.append(photograph.crop((left, top, left + size[0], top + size[1])))
    quality = min(
        range(60, 101, 2),
        key=lambda q: abs(sum(len(jpeg(crop, q)) for crop in crops[:8]) / 8000 - KILOBYTES),
    )
    files = [jpeg(crop, quality) for crop in crops]
    for number, file in enumerate(files):
        for part in ("train", "val") if number < CLASSES else ("train",):
            folder = root / "imagenet" / part / f"class{number % CLASSES}"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{number}.JPEG").write_bytes(file)
    return sum(map(len, files)) / len(files) / 1000


def jpeg(image: Image.Image, quality: int) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return file.getvalue()


# --------------------------------------------------------------------------------- measurements


def official(path: str, size: int, seed: int) -> Tensor:
    """As the official PyTorch example: Pillow all the way."""
    from torchvision import transforms

    torch.manual_seed(seed)
    with Image.open(path) as file:
        crop = transforms.RandomResizedCrop(size)(file.convert("RGB"))
    return torch.from_numpy(np.array(transforms.RandomHorizontalFlip()(crop)))


def with_pillows_decoder(path: str, size: int, seed: int) -> Tensor:
    with Image.open(path) as file:
        image = torch.from_numpy(np.array(file.convert("RGB"))).permute(2, 0, 1)
    return image_folder.training_crop(image, size, True, seed)


def as_the_loader(path: str, size: int, seed: int) -> Tensor:
    return image_folder.training_crop(image_folder.read_image(path), size, True, seed)


def for_evaluation(path: str, size: int, seed: int) -> Tensor:
    return image_folder.evaluation_crop(image_folder.read_image(path), size * 8 // 7, size)


WAYS: dict[str, Callable[[str, int, int], Tensor]] = {
    "Pillow decodes, crops and resizes": official,
    "Pillow decodes, torchvision crops": with_pillows_decoder,
    "simplejpeg decodes, torchvision crops (the loader)": as_the_loader,
    "the same for evaluation": for_evaluation,
}


def decoding(task: ImageClassification, repetitions: int) -> dict[str, list[float]]:
    """Images per second of each way, in this process; all take turns in each repetition."""
    listing, size = task.data.train, task.config.dataset.image_size
    paths = [listing.path(index) for index in range(min(64, len(listing)))]
    rates: dict[str, list[float]] = {name: [] for name in WAYS}
    for repetition in range(repetitions + 1):
        for name, way in WAYS.items():
            start = time.perf_counter()
            for number, path in enumerate(paths):
                way(path, size, len(paths) * repetition + number)
            if repetition > 0:
                rates[name].append(len(paths) / (time.perf_counter() - start))
    return rates


def loading(config: Config, workers: int, root: Path, repetitions: int) -> list[float]:
    """Images per second that a training would get, normalization on the device included."""
    device = torch.device("cuda" if config.device == "cuda" else "cpu")
    task = ImageClassification(config.model_copy(update={"workers": workers}), device, root)
    list(islice(task.training_batches(0, 0), 1))  # starts the workers
    rates = []
    for epoch in range(repetitions):
        start = time.perf_counter()
        for _ in task.training_batches(epoch, 0):
            pass
        _synchronize(device)
        rates.append(task.data.train_size / (time.perf_counter() - start))
    return rates


def network(config: Config, root: Path, repetitions: int) -> list[float]:
    """Images per second of forward and backward on one batch that stays where it is."""
    device = torch.device("cuda" if config.device == "cuda" else "cpu")
    task = ImageClassification(config, device, root)
    model, batch = task.build_model().train(), next(task.training_batches(0, 0))
    rates = []
    for repetition in range(repetitions + 1):
        _synchronize(device)
        start = time.perf_counter()
        model.zero_grad()
        task.loss(model, batch)[0].backward()
        _synchronize(device)
        if repetition > 0:
            rates.append(len(batch.labels) / (time.perf_counter() - start))
    return rates


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


# ------------------------------------------------------------------------------------- results


def tables(results: dict[str, Any]) -> list[Grid]:
    """Decoding, and the loader beside the network."""
    repetitions = results["repetitions"]
    rates = {name: median(values) for name, values in results["decoding"].items()}
    slowest = rates[next(iter(WAYS))]
    decoded = Grid(
        f"{results['images']} JPEG files, {WIDTH} x {HEIGHT}, {results['kilobytes']:.0f} kB",
        ("in one process", "images/s", "ms", "x"),
        [
            (name, f"{rate:.0f}", f"{1000 / rate:.2f}", f"{rate / slowest:.2f}")
            for name, rate in rates.items()
        ],
        f"Median of n = {repetitions} interleaved repetitions; the last column is the first row's "
        "time over the row's.",
    )
    rows, one = [], None
    for workers, values in results["loading"].items():
        rate = median(values)
        one = one or rate
        plural = "worker" if workers == 1 else "workers"
        rows.append((f"loader, {workers} {plural}", f"{rate:.0f}", f"{rate / workers:.0f}"))
    rows.append((f"{CORES} times the loader of one worker", f"{CORES * one:.0f}", f"{one:.0f}"))
    for name, values in results["network"].items():
        rows.append((f"network alone, {name}", f"{median(values):.0f}", ""))
    fastest = max(median(values) for values in results["network"].values())
    note = (
        f"Medians of n = {repetitions}; the loader decodes, crops, flips, passes batches of "
        f"{results['batch_size']} on and normalizes them. A device that takes up to "
        f"{CORES * one:.0f} images/s (forward and backward of SGD; AdaHessian takes 2 to 3 times "
        f"as long for an image) does not wait for {CORES} such cores, if they scale; this one "
        f"takes {fastest:.0f}."
    )
    beside = Grid("The loader and the network", ("", "images/s", "per core"), rows, note)
    return [decoded, beside]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.benchmarks.loader", description=__doc__.splitlines()[0]
    )
    default = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", choices=("cpu", "cuda"), default=default)
    parser.add_argument("--images", type=int, default=512, help="files to write (default: 512)")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="small and short, for a test")
    parser.add_argument("--docs", type=Path, help="a page whose tables to replace")
    options = parser.parse_args(arguments)
    batch = 256 if options.device == "cuda" else 8
    small = ("dataset.image_size=32", "dataset.resize_size=36") if options.quick else ()

    def config(*overrides: str) -> Config:
        settings = [f"device={options.device}", *small, *overrides]
        return resolve(load(CONFIG, settings), "sgd", 1)

    workers = {1, image_folder.choose_workers()}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        kilobytes = write_images(root, options.images)
        alone = config("batch_size=32", "workers=0")
        task = ImageClassification(alone, torch.device("cpu"), root)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # as in a worker
        decoded = decoding(task, options.repetitions)
        torch.set_num_threads(threads)
        loaded = {n: loading(alone, n, root, options.repetitions) for n in sorted(workers)}
        depths = (18,) if options.quick else (18, 50)
        networks = {
            f"ResNet-{depth}{', bfloat16' if cast != 'null' else ''}, batch {batch}": network(
                config(f"model.depth={depth}", f"autocast={cast}", f"batch_size={batch}",
                       "workers=0"),
                root, options.repetitions,
            )
            for depth in depths
            for cast in (("null", "bfloat16") if options.device == "cuda" else ("null",))
        }  # fmt: skip
    results = {
        "repetitions": options.repetitions, "images": options.images, "kilobytes": kilobytes,
        "batch_size": 32, "decoding": decoded, "loading": loaded, "network": networks,
    }  # fmt: skip
    publish("bench-loader", tables(results), provenance(options.device), results, options.docs)
    return 0


if __name__ == "__main__":
    sys.exit(main())
