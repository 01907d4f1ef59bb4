"""Trainings that are compared in pairs: what is missing is trained, and differences have intervals.

A training is known by its settings, an arm (what is compared) and a seed, and is a line of
`FOLDER/trainings.jsonl`. Trainings of equal seed have the same initial weights, batches and probes.
The command that trains may be interrupted, and several may work in one folder.
"""

import fcntl
import json
import multiprocessing
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from experiments.results.statistics import mean_interval


class Trainings:
    """The trainings in a folder, shared with other processes.

    Args:
        folder: exists.
        settings: what all trainings of one comparison share, as JSON holds it.
    """

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        self.folder, self.settings = folder, settings
        self.path = folder / "trainings.jsonl"

    def rows(self) -> list[dict[str, Any]]:
        if not self.path.exists():
            return []
        rows = [json.loads(line) for line in self.path.read_text("utf-8").splitlines()]
        return [row for row in rows if row["settings"] == self.settings]

    def by_seed(self, arms: Sequence[str]) -> dict[int, dict[str, Any]]:
        """Rows by seed and arm, of the seeds for which all these arms are there."""
        found: dict[int, dict[str, Any]] = {}
        for row in self.rows():
            if row["arm"] in arms:
                found.setdefault(row["seed"], {})[row["arm"]] = row
        return {seed: rows for seed, rows in sorted(found.items()) if len(rows) == len(set(arms))}

    def append(self, row: dict[str, Any]) -> None:
        line = json.dumps({"settings": self.settings, **row}) + "\n"
        with self.path.open("a", encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.write(line)

    @contextmanager
    def claimed(self, seed: int, arm: str) -> Iterator[bool]:
        """Whether it is ours to train; the claim ends with the block, or with the process."""
        name = f".{seed}-{arm.replace('/', '_')}.lock"
        with (self.folder / name).open("w", encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                yield False
                return
            yield True

    def train_missing(
        self,
        seeds: Sequence[int],
        arms: Sequence[str],
        train: Callable[[int, str], dict[str, Any]],
        jobs: int = 1,
    ) -> None:
        """Train what is not there and what no other process is training.

        Args:
            seeds: all seeds.
            arms: in this order.
            train: a seed and an arm to the row of its training, without both. With several jobs
                something that can be pickled.
            jobs: how many to train at a time, each in a process of its own.
        """
        done = {(row["seed"], row["arm"]) for row in self.rows()}
        missing = [(seed, arm) for seed in seeds for arm in arms if (seed, arm) not in done]
        if jobs == 1:
            for seed, arm in missing:
                self._train(seed, arm, train)
            return
        with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
            futures = [pool.submit(self._train, seed, arm, train) for seed, arm in missing]
            for future in futures:
                future.result()

    def _train(self, seed: int, arm: str, train: Callable[[int, str], dict[str, Any]]) -> None:
        with self.claimed(seed, arm) as ours:
            found = any((row["seed"], row["arm"]) == (seed, arm) for row in self.rows())
            if found or not ours:
                return
            row = train(seed, arm)
            self.append({"seed": seed, "arm": arm, **row})
            numbers = {k: v for k, v in row.items() if isinstance(v, float)}
            said = "  ".join(f"{name} {value:.4g}" for name, value in numbers.items())
            print(f"seed {seed} {arm:17s} {said}", file=sys.stderr, flush=True)


class Difference(NamedTuple):
    """How far one arm is from another, in pairs, in the unit asked for.

    Attributes:
        first, second: means of both arms.
        mean: of the differences, second minus first.
        low, high: its 95 % interval; both the mean where there are too few pairs for one.
    """

    first: float
    second: float
    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, first: Sequence[float], second: Sequence[float], relative: bool) -> "Difference":
        """In hundredths of the first arm's mean, or of one."""
        scale = 100 / statistics.mean(first) if relative else 100
        differences = [scale * (b - a) for a, b in zip(first, second, strict=True)]
        mean = statistics.mean(differences)
        low, high = mean_interval(differences) or (mean, mean)
        return cls(statistics.mean(first), statistics.mean(second), mean, low, high)
