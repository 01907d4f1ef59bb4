"""The paper's curves, and our finished runs that follow its protocol.

Such a run has the signature of the named configuration, unchanged.
"""

import csv
import warnings
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from experiments.config.metrics import ACCURACY, LOSS
from experiments.config.signature import signature
from experiments.errors import UserError
from experiments.plans import paper_tables
from experiments.plans.load import load, resolve
from experiments.runs import problem
from experiments.runs.jsonlines import read_rows
from experiments.runs.layout import find_seeds
from experiments.runs.metrics import read_json
from experiments.runs.states import read_state

REPOSITORY = Path(__file__).parents[2]
CURVES = Path(__file__).parent / "paper_figures"
# The paper's names of the optimizers by ours, in the paper's order.
OPTIMIZERS = {"sgd": "SGD", "adam": "Adam", "adamw": "AdamW", "adahessian": "AdaHessian"}

# Split and metric of each figure, by the word in the names of the CSV files.
QUANTITIES = {"train_loss": ("train", LOSS), "test_acc": ("test", ACCURACY)}

Points = list[tuple[int, float]]  # (epoch, value)


@dataclass(frozen=True)
class PaperFigure:
    """A network of the paper's Figures A.7 and A.8.

    Attributes:
        name: of the picture's file and of the CSV files.
        config: the file that follows the protocol; without it there are no runs of ours.
    """

    name: str
    title: str
    source: str
    config: str


FIGURES = (
    PaperFigure("resnet20_cifar10", "ResNet-20 on CIFAR-10", "A7", "configs/cifar10/resnet20.yaml"),
    PaperFigure("resnet32_cifar10", "ResNet-32 on CIFAR-10", "A7", "configs/cifar10/resnet32.yaml"),
    PaperFigure(
        "resnet18_imagenet", "ResNet-18 on ImageNet", "A8", "configs/imagenet/resnet18.yaml"
    ),
)


def paper_curves(figure: PaperFigure, quantity: str) -> dict[str, Points]:
    """Read the paper's curves by our names of the optimizers.

    Args:
        quantity: one of `QUANTITIES`.

    Returns:
        Values as they are shown.
    """
    path = CURVES / f"{figure.source}_{quantity}_{figure.name}.csv"
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return {
        name: [(int(row["x"]), float(row[spelling])) for row in rows]
        for name, spelling in OPTIMIZERS.items()
    }


def our_runs(figure: PaperFigure, root: Path) -> dict[str, list[list[dict]]]:
    """The finished runs of a figure's protocol below a root: rows by run, by optimizer.

    Runs on other data than most of them are left out, with a warning.

    Raises:
        UserError: the metrics of a finished run cannot be read.
    """
    if not (REPOSITORY / figure.config).exists():
        return {}
    experiment = load(REPOSITORY / figure.config)
    found = {}
    for name in (name for name in OPTIMIZERS if name in experiment.optimizers):
        for run in find_seeds(root, resolve(experiment, name, seed=1), holding="DONE"):
            if (why := read_state(run))[0] in ("unreadable", "moved"):
                warnings.warn(f"{run} is left out of {figure.title}: {why[1]}", stacklevel=2)
            else:
                found[name, run] = read_json(run / "meta.json")
    config = experiment.model_dump()
    for (name, run), why in problem.apart(list(found), list(found.values()), [config] * len(found)):
        warnings.warn(f"{run} is left out of {figure.title}: {why}", stacklevel=2)
        del found[name, run]
    runs: dict[str, list[list[dict]]] = {}
    for name, run in found:
        runs.setdefault(name, []).append(_rows(run / "metrics.jsonl"))
    return runs


def our_curves(runs: list[list[dict]], quantity: str) -> list[Points]:
    """The curves of the runs of one optimizer, in the paper's units."""
    split, metric = QUANTITIES[quantity]
    key = f"{split}/{metric.name}"
    return [
        [(row["epoch"], metric.scale * row[key]) for row in rows if key in row] for rows in runs
    ]


def _rows(path: Path) -> list[dict]:
    rows, problem = read_rows(path)
    if problem:
        raise UserError(
            f"{path} cannot be read ({problem}); remove {path.parent} to train this run anew"
        )
    return rows


@cache
def paper_figures() -> dict[tuple[str, str], str]:
    """The paper's figures by data set and signature of the run that follows its protocol."""
    figures: dict[tuple[str, str], str] = {}
    for name in paper_tables.names():
        request = paper_tables.find(name, None)
        for cell in request.cells if request.comparable else []:
            if cell.block in cell.line.paper:
                config = cell.runs[0].config
                key = config.dataset.name, signature(config)
                figures.setdefault(key, str(cell.line.paper[cell.block]))
    return figures
