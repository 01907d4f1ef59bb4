"""What every command shares: how it begins and the ways in which it can end."""

import argparse
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from experiments.errors import INTERRUPTED, USER_ERROR, UserError
from experiments.runtime.stopping import Stopped


def execute(
    parser: argparse.ArgumentParser,
    command: Callable[[argparse.Namespace], int | None],
    arguments: Sequence[str] | None = None,
    interrupted: str = "interrupted",
) -> int:
    """Parse the command line, run the command, and say in one line what ended it early.

    Args:
        parser: of the command line; options may stand between its words.
        command: gets what was parsed; returns the exit code, None for 0.
        arguments: in place of the process's own.
        interrupted: what to say after Ctrl-C.

    Returns:
        The exit code: the command's own; 2 for a mistake of the user, 130 after Ctrl-C, 128 + its
        number for another signal; 0 where nobody reads the output any more.
    """
    return guarded(lambda: command(parser.parse_intermixed_args(arguments)), interrupted)


def guarded(command: Callable[[], int | None], interrupted: str = "interrupted") -> int:
    """As `execute`, for a command whose arguments are known."""
    warnings.showwarning = _show_warning
    try:
        code = command() or 0
        sys.stdout.flush()
        return code
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return USER_ERROR
    except Stopped as stop:
        print(f"{stop}; the same command goes on from here", file=sys.stderr)
        return stop.exit_code
    except KeyboardInterrupt:
        print(interrupted, file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # Python flushes stdout once more when it ends, which must not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


class Renamed(argparse.Action):
    """An option that there was once: refused with what is written in its place."""

    def __init__(self, option_strings: Sequence[str], dest: str, const: str) -> None:
        super().__init__(option_strings, dest, nargs="*", const=const, help=argparse.SUPPRESS)

    def __call__(self, parser: Any, namespace: Any, values: Any, option: str | None = None) -> None:
        raise UserError(f"{option} is gone: write {self.const}")


def _show_warning(message: Warning | str, category: type[Warning], *where: object) -> None:
    print(f"{category.__name__}: {message}", file=sys.stderr)
