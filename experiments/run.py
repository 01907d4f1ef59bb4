"""Train: `python -m experiments.run CONFIG optimizer=NAME[,NAME] seed=N[,N] [key.path=value ...]`.

Runs one after another, each in its own directory below `RUNS_ROOT` (default `runs`), with data
from `DATA_ROOT` (default `data`). A run that is done is skipped; one that was interrupted goes
on from its checkpoint. Ctrl-C, SIGTERM and SIGUSR2 finish the step, save it, and exit with 130,
143 and 140.
"""

import argparse
import sys
import warnings
from collections.abc import Sequence

from experiments.errors import INTERRUPTED, USER_ERROR, UserError
from experiments.plans.select import select
from experiments.runtime import stopping
from experiments.training import optimizers
from experiments.training.session import train_unless_done


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.run",
        description="Train the runs of an experiment that are not done yet.",
        epilog="example: python -m experiments.run configs/digits/resnet20.yaml "
        "optimizer=sgd,adahessian seed=1,2,3 epochs=30",
    )
    parser.add_argument("config", help="a YAML file below configs/")
    parser.add_argument(
        "settings",
        nargs="*",
        metavar="key=value",
        help="optimizer=NAME[,NAME], seed=N[,N], and any key.path=value of the configuration",
    )
    parsed = parser.parse_args(arguments)
    warnings.showwarning = _show_warning
    try:
        runs = select(parsed.config, parsed.settings)
        for config in runs:
            optimizers.check(config)
        return max([train_unless_done(config) for config in runs])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return USER_ERROR
    except stopping.Stopped as stop:
        print(f"{stop}; the same command goes on from here", file=sys.stderr)
        return stop.exit_code
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from the last checkpoint", file=sys.stderr)
        return INTERRUPTED


def _show_warning(message: Warning | str, category: type[Warning], *where: object) -> None:
    print(f"{category.__name__}: {message}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
