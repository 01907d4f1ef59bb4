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

from experiments import build, distributed, stopping
from experiments.config import Config, UserError, load, read_yaml, resolve
from experiments.record import Onlooker, RunDirectory, data_root, git_state, runs_root
from experiments.train import NonFiniteLoss, train

USER_ERROR, FAILED, INTERRUPTED = 2, 1, 130


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
            build.check(config)
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


def select(path: str, settings: Sequence[str]) -> list[Config]:
    """The resolved configurations that a command line asks for, optimizer by optimizer."""
    chosen = {"optimizer": None, "seed": None}
    overrides = []
    for setting in settings:
        key, _, value = setting.partition("=")
        if key in chosen:
            chosen[key] = [item.strip() for item in value.split(",")]
        else:
            overrides.append(setting)
    config = load(path, overrides)
    names = chosen["optimizer"] or list(config.optimizers)
    if chosen["optimizer"] is None and len(names) > 1:
        raise UserError(f"which optimizer? add optimizer=NAME[,NAME] with {', '.join(names)}")
    seeds = [_seed(text) for text in chosen["seed"]] if chosen["seed"] else [config.seed]
    return [resolve(config, name, seed) for name in names for seed in seeds]


def _seed(text: str) -> int:
    seed = read_yaml(text)
    if type(seed) is not int or seed < 0:
        raise UserError(f"seed = '{text}': must be a whole number, 0 or more")
    return seed


def train_unless_done(config: Config, wait: bool = False) -> int:
    """Train one run, or say that it is done; returns the exit code.

    Args:
        config: of the run.
        wait: while another process trains it, rather than refuse.
    """
    distributed.start(build.build_device(config))
    directory = (RunDirectory if distributed.is_main() else Onlooker)(runs_root(), config)
    if distributed.agree(directory.done):
        print(f"done already: {directory.path}{_other_commit(directory)}", file=sys.stderr)
        return 0
    try:
        with stopping.listening(), directory.locked(wait):
            if not distributed.agree(directory.done):  # it may be since we waited
                train(config, directory, data_root())
    except NonFiniteLoss as error:
        print(f"error: {error}", file=sys.stderr)
        return FAILED
    return 0


def _other_commit(directory: RunDirectory) -> str:
    then, now = directory.meta()["sessions"][-1]["commit"], git_state()["commit"]
    return "" if then == now else f" (at commit {str(then)[:10]}; this is {str(now)[:10]})"


def _show_warning(message: Warning | str, category: type[Warning], *where: object) -> None:
    print(f"{category.__name__}: {message}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
