"""Tables and pictures from the files of finished runs: `python -m experiments.report`.

Runs that share everything but the optimizer's settings and the seed (the protocol) stand in one
table; runs that differ in the seed alone make one row. Writes `report/report.md` and one picture
per table below `RUNS_ROOT`.
"""

import argparse
import os
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from experiments.config import UserError, load, read_yaml, resolve, signature
from experiments.record import best_row, read_json, read_metrics

REPOSITORY = Path(__file__).parent.parent
COLUMNS = ("optimizer", "n", "last epoch", "best epoch", "step ms", "x SGD", "paper")


@dataclass
class Run:
    """A finished run as its files tell it."""

    meta: dict[str, Any]
    config: dict[str, Any]
    rows: list[dict[str, Any]]

    @property
    def optimizer(self) -> dict[str, Any]:
        return self.config["optimizers"][self.meta["optimizer"]]

    @property
    def protocol(self) -> dict[str, Any]:
        """The settings that the runs of a table share, flat."""
        own = ("optimizers", "seed", "device")
        shared = {key: value for key, value in self.config.items() if key not in own}
        return {k: v for k, v in flatten(shared).items() if not k.startswith("checkpoint_")}

    def last(self) -> float:
        return self.rows[-1][f"test/{self.meta['headline']}"]

    def best(self) -> float:
        """The test metric of the epoch that is best on the split that the configuration names."""
        headline = self.meta["headline"]
        key = f"{self.config['best_epoch_split']}/{headline}"
        return best_row(self.rows, key, self.meta["metrics"][headline])[f"test/{headline}"]

    def step_seconds(self) -> float:
        times = [row["time/step_seconds"] for row in self.rows if "time/step_seconds" in row]
        return statistics.median(times)


@dataclass
class Table:
    """The runs of one data set, model and protocol.

    Attributes:
        title: data set, model, and what sets this protocol apart from others of the report.
        name: of its files.
        groups: runs by row label, one signature each.
    """

    title: str
    name: str
    groups: dict[str, list[Run]]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m experiments.report", description=__doc__)
    parser.add_argument("--dataset", help="only this data set")
    parser.add_argument("--model", help="only this model, such as resnet20")
    parsed = parser.parse_args(arguments)
    root = Path(os.environ.get("RUNS_ROOT") or "runs")
    try:
        runs, unfinished = find_runs(root, parsed.dataset, parsed.model)
        if not runs:
            raise UserError(f"no finished run below {root} ({unfinished} unfinished)")
        write_report(make_tables(runs), unfinished, root / "report")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def find_runs(root: Path, dataset: str | None, model: str | None) -> tuple[list[Run], int]:
    """The finished runs below a root, and the number of unfinished ones."""
    runs, unfinished = [], 0
    for meta_path in sorted(root.glob(f"{dataset or '*'}/{model or '*'}/*/*/meta.json")):
        directory = meta_path.parent
        if not (directory / "DONE").exists():
            unfinished += 1
            continue
        config = read_yaml((directory / "config.yaml").read_text())
        rows = read_metrics(directory / "metrics.jsonl")
        runs.append(Run(read_json(meta_path), config, rows))
    return runs, unfinished


def make_tables(runs: list[Run]) -> list[Table]:
    """Sort runs into tables (one protocol each) and rows (one signature each)."""
    tables = []
    for (dataset, model), same in _group(runs, lambda r: (r.meta["dataset"], r.meta["model"])):
        protocols = _group(same, lambda r: r.meta["protocol"])
        for protocol, members in protocols:
            others = [group[0].protocol for _, group in protocols]
            differences = _differences(members[0].protocol, others)
            title = " ".join([dataset, model, *differences])
            groups = _rows(members)
            tables.append(Table(title, f"{dataset}-{model}-{protocol}", groups))
    return tables


def _rows(runs: list[Run]) -> dict[str, list[Run]]:
    """Runs by label: the optimizer's name, with its settings where one name has several."""
    rows = {}
    for name, same in _group(runs, lambda r: r.meta["optimizer"]):
        signatures = _group(same, lambda r: r.meta["signature"])
        others = [flatten(group[0].optimizer) for _, group in signatures]
        for mark, members in signatures:
            settings = _differences(flatten(members[0].optimizer), others)
            label = " ".join([name, *settings])
            # Settings that only the code's defaults tell apart have no words to show.
            rows[f"{label} {mark}" if label in rows else label] = members
    return dict(sorted(rows.items(), key=lambda item: _ORDER.get(item[0].split()[0], 99)))


_ORDER = {name: place for place, name in enumerate(("sgd", "adam", "adamw", "adahessian"))}


def _group(runs: list[Run], key: Any) -> list[tuple[Any, list[Run]]]:
    groups: dict[Any, list[Run]] = {}
    for run in runs:
        groups.setdefault(key(run), []).append(run)
    return list(groups.items())


def _differences(settings: dict[str, Any], all_settings: list[dict[str, Any]]) -> list[str]:
    """`key=value` for the settings in which this one and others differ."""
    return [
        f"{key}={value}"
        for key, value in settings.items()
        if any(other.get(key) != value for other in all_settings)
    ]


def flatten(section: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested keys as dotted paths."""
    flat = {}
    for key, value in section.items():
        if isinstance(value, dict) and value:
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


# -------------------------------------------------------------------------------------- figures


def cells(table: Table) -> list[tuple[str, ...]]:
    """The table's rows as text, in the order of `COLUMNS`."""
    reference = next((runs for label, runs in table.groups.items() if label == "sgd"), None)
    lines = []
    for label, runs in table.groups.items():
        seconds = statistics.median(run.step_seconds() for run in runs)
        ratio = ""
        if reference:
            ratio = f"{seconds / statistics.median(run.step_seconds() for run in reference):.2f}"
        last, best = ([measure(run) for run in runs] for measure in (Run.last, Run.best))
        percent = runs[0].meta["headline"] == "accuracy"
        lines.append(
            (
                label,
                str(len(runs)),
                mean_and_std(last, percent),
                mean_and_std(best, percent),
                f"{1000 * seconds:.1f}",
                ratio,
                paper_figures().get((runs[0].meta["dataset"], runs[0].meta["signature"]), ""),
            )
        )
    return lines


def mean_and_std(values: list[float], percent: bool) -> str:
    """`mean ± sample standard deviation`, without the latter for a single value."""
    scale = 100 if percent else 1
    mean = f"{scale * statistics.mean(values):.2f}"
    return f"{mean} ± {scale * statistics.stdev(values):.2f}" if len(values) > 1 else mean


@cache
def paper_figures() -> dict[tuple[str, str], str]:
    """The paper's figures by data set and signature of the run that follows its protocol."""
    figures = {}
    for entry in read_yaml((REPOSITORY / "experiments" / "paper.yaml").read_text()):
        config = load(REPOSITORY / entry["config"])
        for name, (mean, std) in entry["accuracy"].items():
            mark = signature(resolve(config, name, seed=1))
            figures[config.dataset.name, mark] = f"{mean:.2f} ± {std:.2f}"
    return figures


# --------------------------------------------------------------------------------------- output


def write_report(tables: list[Table], unfinished: int, folder: Path) -> None:
    """Print the tables; write them as Markdown, and a picture of each."""
    from rich import box
    from rich.console import Console
    from rich.table import Table as Grid

    # Piped output has no width of its own: 80 columns are readable everywhere.
    console = Console(width=None if sys.stdout.isatty() else 80, highlight=False)
    folder.mkdir(parents=True, exist_ok=True)
    markdown = ["# Report\n"]
    for table in tables:
        headline = next(iter(table.groups.values()))[0].meta["headline"]
        note = caption(headline)
        grid = Grid(*COLUMNS, title=table.title, caption=note, box=box.SIMPLE_HEAD, pad_edge=False)
        lines = cells(table)
        for column in grid.columns[1:]:
            column.justify, column.no_wrap = "right", True
        for line in lines:
            grid.add_row(*line)
        picture = draw(table, folder / f"{table.name}.png")
        console.print(grid)
        console.print(f"picture: {picture}", soft_wrap=True)
        markdown += [f"## {table.title}\n", _markdown(COLUMNS), _markdown(["---"] * len(COLUMNS))]
        markdown += [*map(_markdown, lines), f"\n{note}\n\n![{table.title}]({picture.name})\n"]
    if unfinished:
        console.print(f"{unfinished} unfinished run(s) left out")
    (folder / "report.md").write_text("\n".join(markdown))
    console.print(f"tables:  {folder / 'report.md'}", soft_wrap=True)


def caption(headline: str) -> str:
    unit = ", %" if headline == "accuracy" else ""
    return f"test {headline}{unit}: mean ± sample std over n seeds; step: median"


def _markdown(line: Sequence[str]) -> str:
    return f"| {' | '.join(line)} |"


def draw(table: Table, path: Path) -> Path:
    """Training loss and test metric over the epochs: mean line, band of one std over seeds."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    headline = next(iter(table.groups.values()))[0].meta["headline"]
    percent = headline == "accuracy"
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    for label, runs in table.groups.items():
        text = f"{label} (n={len(runs)})"
        _curve(left, runs, "train/loss", 1, text)
        _curve(right, runs, f"test/{headline}", 100 if percent else 1, text)
    left.set(xlabel="epoch", ylabel="training loss", yscale="log")
    right.set(xlabel="epoch", ylabel=f"test {headline}{' (%)' if percent else ''}")
    if percent:
        right.set_ylim(*_accuracy_limits(table, headline))
    left.legend()
    for axes in (left, right):
        axes.grid(alpha=0.3)
    figure.suptitle(table.title)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
    return path


def _curve(axes: Any, runs: list[Run], key: str, scale: float, label: str) -> None:
    epochs = [row["epoch"] for row in runs[0].rows]
    columns = list(zip(*([scale * row[key] for row in run.rows] for run in runs), strict=True))
    means = [statistics.mean(column) for column in columns]
    (line,) = axes.plot(epochs, means, label=label, linewidth=1.4)
    if len(runs) > 1:
        spread = [statistics.stdev(column) for column in columns]
        # A band that reaches zero has no lower edge on a logarithmic axis.
        low = [max(m - s, m / 10) for m, s in zip(means, spread, strict=True)]
        high = [m + s for m, s in zip(means, spread, strict=True)]
        axes.fill_between(epochs, low, high, alpha=0.2, color=line.get_color(), linewidth=0)


def _accuracy_limits(table: Table, headline: str) -> tuple[float, float]:
    """Limits that fit the second half of the training, where the optimizers differ little."""
    late = [
        100 * row[f"test/{headline}"]
        for runs in table.groups.values()
        for run in runs
        for row in run.rows[len(run.rows) // 2 :]
    ]
    low, high = min(late), max(late)
    margin = max(high - low, 1.0)
    return max(0.0, low - margin), min(100.0, high + 0.5)


if __name__ == "__main__":
    sys.exit(main())
