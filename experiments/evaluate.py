"""Evaluate a checkpoint: `python -m experiments.evaluate [RUN_DIR] [--data FOLDER]`.

Without RUN_DIR it takes the newest finished run below `RUNS_ROOT`. It prints the metrics of every
split that the run evaluates, at the weights that it evaluates: the averaged ones where there are
any. Data other than those that the run was trained on are refused, unless `--data` names them: in
place of DATA_ROOT, or of a `dataset.root` that is absolute. Of texts the training set must be the
run's, because it makes the vocabulary. Nothing is written.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from experiments import cli
from experiments.training.evaluation import evaluate
from experiments.training.restore import find_run, name_of, restore


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m experiments.evaluate", description=__doc__)
    parser.add_argument("run", nargs="*", metavar="RUN_DIR", help="default: the newest finished")
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="in place of DATA_ROOT")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    return cli.execute(parser, _evaluate, arguments)


def _evaluate(parsed: argparse.Namespace) -> None:
    directory = find_run(parsed.run)
    task, model, epoch = restore(directory, parsed.device, parsed.data)
    print(f"{name_of(directory)} after epoch {epoch}")
    for split in task.evaluation_splits:
        measured = evaluate(task, model, split, final=True)
        told = [
            f"{metric.name} {metric.text(measured[metric.name])} {metric.unit}".rstrip()
            for metric in task.metrics
        ]
        print(f"  {split}: {', '.join(told)}")


if __name__ == "__main__":
    sys.exit(main())
