"""The paper's tables as data: files below `configs/tables/`, and which runs each of them needs.

A file has `lines` (what is trained, and the paper's figures for it) and `datasets`: where the
table can be made, each with its `blocks` (networks), which name an experiment's configuration. A
line of a block is a sweep (`experiments.plans.sweeps`) of one combination and the block's seeds,
and its settings are those of a sweep's file:

    lines:
      - {series: SGD, set: {optimizer: sgd}, paper: {ResNet-20: {mean: 92.08, std: 0.08, n: 5}}}
    datasets:
      digits: {title: digits, blocks: {ResNet-20: {config: ../digits/resnet20.yaml, seeds: 1-5}}}
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from experiments.config.sections import FiniteFloat, Positive, Section, validate
from experiments.errors import UserError, nearest
from experiments.plans import sweeps
from experiments.plans.load import load, load_one, read_document
from experiments.plans.planned_run import PlannedRun
from experiments.plans.settings import Seeds
from experiments.runtime.paths import runs_root

FOLDER = Path(__file__).parents[2] / "configs" / "tables"

PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
DIVERGES = "diverges"
TEXT = "-text"  # ends the name of a table's file for text, beside that for images


class PaperValue(Section):
    """A figure of the paper; without `std`, of a single run."""

    mean: FiniteFloat
    std: PositiveFloat | None = None
    n: Positive = 1

    @model_validator(mode="after")
    def _check(self) -> "PaperValue":
        if (self.std is None) != (self.n == 1):
            raise ValueError(f"std = {self.std} with n = {self.n}: a std is of several runs")
        return self

    def __str__(self) -> str:
        return f"{self.mean:.2f}" if self.std is None else f"{self.mean:.2f} ± {self.std:.2f}"


class Line(Section):
    """What is trained with every network and seed.

    Attributes:
        series, x: name the line: usually the optimizer, and what sets it apart from others of it.
        set: settings as in a sweep.
        scale: factors of the optimizer's own settings, by `optimizer.KEY`.
        paper: the paper's figures by block, or by what they are of where nothing compares.
        theory, paper_cost: cost in steps of the reference; what the paper measured, by block.
    """

    series: str
    x: int | float | str | None = None
    set: dict[str, Any]
    scale: dict[Annotated[str, Field(pattern=r"^optimizer[.]\w+$")], PositiveFloat] = {}
    paper: dict[str, PaperValue | Literal["diverges"]] = {}
    theory: PositiveFloat | None = None
    paper_cost: dict[str, PositiveFloat] = {}


class Block(Section):
    """A network: the experiment, the seeds that are needed, and settings common to its lines."""

    config: str  # relative to the table's file
    seeds: Seeds
    set: dict[str, Any] = {}


class Variant(Section):
    """The table on one data set."""

    title: str
    blocks: Annotated[dict[str, Block], Field(min_length=1)]


class PaperTable(Section):
    """What a table's file holds.

    Attributes:
        paper_metric: what the paper's figures measure.
        paper_dataset: the variant beside whose results they may stand; none: beside none.
        tolerance: difference in percentage points that counts as none.
        subject: the series that is compared with the others.
        reference: the line whose steps are the unit of cost.
        x: the heading of the lines' `x`.
        axis: of the plot over `x`; none: no plot.
        base: the `x` with which the subject's other lines are compared.
    """

    title: str
    source: str
    paper_metric: str
    paper_dataset: str | None = None
    tolerance: PositiveFloat
    subject: str
    reference: str
    x: str = ""
    axis: Literal["linear", "log", "category"] | None = None
    base: int | float | str | None = None
    note: str = ""
    lines: Annotated[list[Line], Field(min_length=1)]
    datasets: Annotated[dict[str, Variant], Field(min_length=1)]

    @model_validator(mode="after")
    def _check(self) -> "PaperTable":
        labels = [self.label(line) for line in self.lines]
        if len(set(labels)) < len(labels):
            raise ValueError("two lines have the same series and x")
        if self.reference not in labels:
            raise ValueError(f"reference '{self.reference}': {nearest(self.reference, labels)}")
        if self.subject not in (series := {line.series for line in self.lines}):
            raise ValueError(f"subject '{self.subject}': {nearest(self.subject, series)}")
        if self.paper_dataset is None:
            return self
        if self.paper_dataset not in self.datasets:
            raise ValueError(f"paper_dataset: {nearest(self.paper_dataset, self.datasets)}")
        blocks = self.datasets[self.paper_dataset].blocks
        for line in self.lines:
            for name in {**line.paper, **line.paper_cost}:
                if name not in blocks:
                    raise ValueError(f"paper: no block '{name}'; {nearest(name, blocks)}")
        return self

    @property
    def unit_of_cost(self) -> str:
        """The reference without its `x`, as a heading."""
        return next(line.series for line in self.lines if self.label(line) == self.reference)

    def label(self, line: Line) -> str:
        """The name of a line: `SGD`, `SGD × 0.5`, `AdaHessian n=2`."""
        if line.x is None:
            return line.series
        if self.x.startswith("×"):
            return f"{line.series} × {line.x}"
        return f"{line.series} {self.x}={line.x}"


@dataclass(frozen=True)
class Cell:
    """A line in a block, with one run per seed."""

    block: str
    line: Line
    runs: list[PlannedRun]


@dataclass(frozen=True)
class Request:
    """A table on one data set.

    Attributes:
        path: the table's file.
        dataset: the key of the variant.
        root: where runs live.
    """

    path: Path
    table: PaperTable
    dataset: str
    root: Path

    @property
    def name(self) -> str:
        return self.path.stem.removesuffix(TEXT)

    @property
    def variant(self) -> Variant:
        return self.table.datasets[self.dataset]

    @property
    def comparable(self) -> bool:
        """Whether the paper's figures may stand beside the results."""
        return self.dataset == self.table.paper_dataset

    @cached_property
    def absent(self) -> dict[str, str]:
        """The configurations that are not there, by block: it has no cells."""
        return {
            name: os.path.relpath(self.path.parent / block.config)
            for name, block in self.variant.blocks.items()
            if not (self.path.parent / block.config).is_file()
        }

    @cached_property
    def cells(self) -> list[Cell]:
        """All lines of all blocks, in the file's order.

        Raises:
            UserError: naming the file and the settings that are wrong.
        """
        return list(self._cells())

    def _cells(self) -> Iterator[Cell]:
        for block, line, sweep in self.plans():
            yield Cell(block, line, sweeps.runs_of(sweep, self.path))

    def plans(self) -> Iterator[tuple[str, Line, sweeps.Sweep]]:
        """The sweep of each line in each block that has its configuration."""
        for name, block in self.variant.blocks.items():
            if name in self.absent:
                continue
            for line in self.table.lines:
                yield name, line, self._sweep(block, line)

    def _sweep(self, block: Block, line: Line) -> sweeps.Sweep:
        content = {"config": block.config, "seeds": block.seeds, "set": block.set,
                   "list": [line.set | self._scaled(block, line)]}  # fmt: skip
        return validate(sweeps.Sweep, content, self.path)

    def _scaled(self, block: Block, line: Line) -> dict[str, float]:
        """The settings that are multiples of those of the block's configuration."""
        if not line.scale:
            return {}
        config = load_one(self.path.parent / block.config, line.set.get("optimizer"), block.set)
        own = config.optimizers[config.optimizer_name]
        return {
            key: float(f"{factor * getattr(own, key.partition('.')[2]):.12g}")  # 0.3, not 0.1 * 3
            for key, factor in line.scale.items()
        }

    @cached_property
    def shortened(self) -> str:
        """What is shorter than in the configurations, in words; empty for the full protocol."""
        found = {}
        for name, block in self.variant.blocks.items():
            if "epochs" in block.set and name not in self.absent:
                full = load(self.path.parent / block.config).epochs
                if block.set["epochs"] < full:
                    found[f"{block.set['epochs']} of {full} epochs"] = None
        return f"shortened to {', '.join(found)}" if found else ""

    @property
    def title(self) -> str:
        parts = [f"{self.table.title}; {self.variant.title}", self.shortened]
        return ", ".join(part for part in parts if part)


def names() -> list[str]:
    """The tables of the repository."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def find(name: str, dataset: str | None, root: Path | None = None) -> Request:
    """A table by its name or file, on a data set; by default on the paper's, or the first.

    Of `table6` on a data set of text the file is `table6-text.yaml`.

    Raises:
        UserError: there is no such table or data set, or the file is wrong.
    """
    known = name in names()
    path = FOLDER / f"{name}.yaml" if known else Path(name)
    if not known and not (name.endswith((".yaml", ".yml")) and path.is_file()):
        raise UserError(f"no table '{name}', neither a file nor below configs/tables/; "
                        + nearest(name, names()))  # fmt: skip
    table: PaperTable = validate(PaperTable, read_document(path), path)
    on_text, known_datasets = path.with_name(f"{path.stem}{TEXT}.yaml"), [*table.datasets]
    if dataset is not None and dataset not in table.datasets and on_text.is_file():
        other: PaperTable = validate(PaperTable, read_document(on_text), on_text)
        known_datasets += other.datasets
        if dataset in other.datasets:
            path, table = on_text, other
    dataset = dataset or table.paper_dataset or next(iter(table.datasets))
    if dataset not in table.datasets:
        raise UserError(f"{name} on '{dataset}'? {nearest(dataset, known_datasets)}")
    return Request(path, table, dataset, root or runs_root())
