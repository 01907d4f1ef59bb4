"""One folder of images per class, as in ImageNet, decoded by worker processes.

    DATA_ROOT/imagenet/train/<class>/*.JPEG
    DATA_ROOT/imagenet/val/<class>/*.JPEG

`experiments.tasks.image_classification.listing` finds them. A request for a batch holds the
positions of its images in the epoch. So any worker of any process can make it, without the batches
before it.
"""

import io
import os
import signal
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import simplejpeg
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms.v2 import functional as F

from experiments.errors import UserError
from experiments.runtime import distributed, stopping
from experiments.tasks.image_classification.augmentation import Transform, with_partners
from experiments.tasks.image_classification.config import ImageClassificationConfig
from experiments.tasks.image_classification.datasets import divide
from experiments.tasks.image_classification.listing import Listing, read_both
from experiments.tasks.randomness import draw_seed, generator, seeded

EVALUATION_BATCH_SIZE = 256
MOST_WORKERS = 32
MEASURED = 500  # images
# torchvision's defaults, with which the official PyTorch example trains.
CROP_SCALE, CROP_RATIO = (0.08, 1.0), (3 / 4, 4 / 3)


class ImagesInFolder:
    """The data path of ImageNet; see `experiments.tasks.image_classification.task.Data`.

    The workers are started here and stay: a fork while another thread imports, as wandb's does
    later, can deadlock. Only one pass over batches is open at a time: beginning another ends it.

    Args:
        config: a resolved configuration.
        device: where batches go.
        data_root: holds the folder `imagenet`.

    Raises:
        UserError: folders are missing or empty, or those of training and evaluation differ.
    """

    in_channels, white = 3, 255

    def __init__(
        self, config: ImageClassificationConfig, device: torch.device, data_root: Path
    ) -> None:
        self.config, self.device = config, device
        root = config.dataset.folder(Path(data_root))
        train, test = _read_together(root)
        self.num_classes = len(train.classes)
        rest, held_out = divide(train.labels, config.dataset)
        self.splits = {"val": train[held_out]} if len(held_out) else {}
        self.splits["test"] = test
        self.train = train[rest]
        self.train_size = len(self.train)
        self._requests = _Requests()
        workers = choose_workers() if config.workers is None else config.workers
        self._loader = DataLoader(
            ImageReader({"train": self.train, **self.splits}, config),
            sampler=self._requests,
            batch_size=None,  # what the sampler asks for is a whole batch
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=device.type == "cuda",
            worker_init_fn=_obey_the_trainer_alone,
            generator=torch.Generator(),  # without it each pass draws from torch's global one
        )
        if workers:
            iter(self._loader)  # an empty pass starts the workers

    def training_batches(self, epoch: int, first_step: int) -> Iterator[tuple[Tensor, Tensor]]:
        size, parts = self.config.batch_size, self.config.micro_batches
        order = torch.randperm(
            self.train_size, generator=generator(self.config.seed, epoch, "order")
        )
        mixes = self.config.augmentation.mixes

        def requests() -> Iterator[Request]:
            for start in range(first_step * size, self.train_size, size):
                stop = min(start + size, self.train_size)
                chosen = distributed.shard(torch.arange(start, stop), parts)
                chosen = with_partners(chosen, start, stop) if mixes else chosen
                yield Request("train", order[chosen].tolist(), epoch, chosen.tolist())

        return self._batches(requests())

    def measure(self) -> tuple[list[float], list[float]]:
        """Of `MEASURED` images spread over the training set, cut as for an evaluation."""
        settings, count = self.config.dataset, min(MEASURED, self.train_size)
        sums = torch.zeros(2, 3, dtype=torch.float64)
        for index in torch.linspace(0, self.train_size - 1, count).round().long().tolist():
            image = read_image(self.train.path(index))
            crop = evaluation_crop(image, settings.resize_size, settings.image_size).double() / 255
            sums += torch.stack([crop.mean((1, 2)), crop.square().mean((1, 2))]) / count
        mean, squares = sums
        return mean.tolist(), (squares - mean**2).sqrt().tolist()

    def evaluation_batches(self, split: str) -> Iterator[tuple[Tensor, Tensor]]:
        batches = range(len(self.splits[split]))
        starts = distributed.rank_batches(batches[::EVALUATION_BATCH_SIZE])
        return self._batches(
            Request(split, list(batches[start : start + EVALUATION_BATCH_SIZE])) for start in starts
        )

    def _batches(self, requests: Iterable["Request"]) -> Iterator[tuple[Tensor, Tensor]]:
        self._requests.current = requests
        for batch in self._loader:
            if isinstance(batch, UserError):
                raise batch
            pixels, labels = batch
            yield (
                pixels.to(self.device, non_blocking=True),
                labels.to(self.device, non_blocking=True),
            )
            assert self._requests.current is requests, "another pass has begun: this one is over"


def _read_together(root: Path) -> tuple[Listing, Listing]:
    """`read_both`: of several processes one looks at the headers, the others read what it found."""
    error = None
    if distributed.is_main():
        try:
            read_both(root)
        except UserError as found:
            error = str(found)
    if distributed.world_group() is not None:
        error = distributed.broadcast(error)
    if error:
        raise UserError(error)
    return read_both(root)


# --------------------------------------------------------------------------------- in a worker


@dataclass(frozen=True)
class Request:
    """All that a worker needs to make a batch.

    Attributes:
        split: `"train"`, or one that is evaluated.
        indices: of the images in its listing.
        epoch: of a training.
        positions: of a training: of each image in the epoch's order.
    """

    split: str
    indices: list[int]
    epoch: int = 0
    positions: list[int] | None = None


class _Requests:
    """What the loader asks for next; replaced for each pass."""

    current: Iterable[Request] = ()

    def __iter__(self) -> Iterator[Request]:
        return iter(self.current)


class ImageReader(Dataset):
    """Makes batches of pixels and labels from files.

    Args:
        listings: by split.
        config: a resolved configuration.
    """

    def __init__(self, listings: dict[str, Listing], config: ImageClassificationConfig) -> None:
        self.listings, self.settings, self.seed = listings, config.dataset, config.seed
        self.transform = Transform(config.augmentation, config.seed, 255, config.dataset.mean)

    def __getitem__(self, request: Request) -> tuple[Tensor, Tensor] | UserError:
        """Pixels `(n, 3, size, size)`, uint8, channels last in memory, and labels `(n,)`.

        An error is returned, not raised: the loader would wrap it in tracebacks.
        """
        listing, size = self.listings[request.split], self.settings.image_size
        pixels = torch.empty(
            (len(request.indices), 3, size, size), dtype=torch.uint8,
            memory_format=torch.channels_last,
        )  # fmt: skip
        try:
            for place, index in enumerate(request.indices):
                image = read_image(listing.path(index))
                if request.positions is None:
                    pixels[place] = evaluation_crop(image, self.settings.resize_size, size)
                else:
                    purpose = f"augmentation {request.positions[place]}"
                    seed = draw_seed(self.seed, request.epoch, purpose)
                    crop = training_crop(image, size, self.settings.flip, seed)
                    at = torch.tensor(request.positions[place : place + 1])
                    pixels[place] = self.transform(crop[None], request.epoch, at)[0]
        except UserError as error:
            return error
        return pixels, listing.labels[request.indices]


def read_image(path: str) -> Tensor:
    """Decode an image file to `(3, height, width)`, uint8, channels last in memory.

    simplejpeg gives Pillow's pixels in two thirds of Pillow's time. Pillow reads what it refuses:
    a few of ImageNet's files are no JPEG in spite of their names.

    Raises:
        UserError: neither can read it.
    """
    try:
        content = Path(path).read_bytes()
        try:
            pixels = simplejpeg.decode_jpeg(content)
        except ValueError:
            with Image.open(io.BytesIO(content)) as image:
                pixels = np.array(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(f"{path} is no image that can be read: {error}") from None
    return torch.from_numpy(pixels).permute(2, 0, 1)


def training_crop(image: Tensor, size: int, flip: bool, seed: int) -> Tensor:
    """torchvision's RandomResizedCrop, then RandomHorizontalFlip, drawn from `seed`."""
    with seeded(seed):
        top, left, height, width = RandomResizedCrop.get_params(image, CROP_SCALE, CROP_RATIO)
        mirrored = flip and bool(torch.rand(()) < 0.5)
    crop = F.resized_crop(image, top, left, height, width, [size, size], antialias=True)
    return F.horizontal_flip(crop) if mirrored else crop


def evaluation_crop(image: Tensor, resize_size: int, size: int) -> Tensor:
    """The centre of the image whose shorter side was resized."""
    return F.center_crop(F.resize(image, [resize_size], antialias=True), [size, size])


def _obey_the_trainer_alone(worker: int) -> None:
    """Ignore the signals that ask for an end, unless the trainer itself sends one.

    Slurm and terminals send them to every process, but the trainer needs its workers to finish its
    step.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, stopping.SIGNALS)

    def wait() -> None:
        while signal.sigwaitinfo(stopping.SIGNALS).si_pid != os.getppid():
            pass
        os._exit(0)

    threading.Thread(target=wait, daemon=True).start()


def choose_workers() -> int:
    """One worker per core that this process may use.

    Several processes on a machine share its cores, unless the launcher has given each its own.
    """
    neighbours = distributed.number("LOCAL_WORLD_SIZE", 1)
    cores = os.cpu_count() or 1
    mine = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else cores
    return max(1, min(mine, cores // neighbours, MOST_WORKERS))
