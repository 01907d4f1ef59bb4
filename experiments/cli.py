"""What every command shares: how it begins and the ways in which it can end."""

import argparse
import errno
import io
import os
import re
import sys
import textwrap
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, NoReturn

from experiments.errors import FAILED, INTERRUPTED, USER_ERROR, UserError, nearest
from experiments.runtime.progress import say
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
    return guarded(lambda: command(_parse(parser, arguments)), interrupted)


def _parse(parser: argparse.ArgumentParser, arguments: Sequence[str] | None) -> argparse.Namespace:
    """What was parsed; a mistake is one line, without the usage."""

    def refuse(message: str) -> NoReturn:
        raise UserError(f"{message}; --help lists the options")

    parser.error = refuse
    parser.formatter_class = Help
    parsed, unknown = parser.parse_known_intermixed_args(arguments)
    if not unknown:
        return parsed
    if found := re.fullmatch(r"--?([A-Za-z][\w.]*=.*)", unknown[0], re.DOTALL):
        raise UserError(
            f"{unknown[0]}: a setting has no dashes, write {found[1]} (in a sweep of wandb: "
            "${args_no_hyphens} in its command)"
        )
    options = [option for action in parser._actions for option in action.option_strings]
    raise UserError(f"unknown option {unknown[0]}; {nearest(unknown[0], options)}")


def guarded(command: Callable[[], int | None], interrupted: str = "interrupted") -> int:
    """As `execute`, for a command whose arguments are known."""
    warnings.showwarning = _show_warning
    _open_streams()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal or log may know ASCII alone
            stream.reconfigure(errors="replace")
    try:
        code = command() or 0
        sys.stdout.flush()
        return code
    except UserError as error:
        say(f"error: {error}")
        return USER_ERROR
    except Stopped as stop:
        say(f"{stop}; the same command goes on from here")
        return stop.exit_code
    except KeyboardInterrupt:
        say(interrupted)
        return INTERRUPTED
    except BrokenPipeError:
        _forget_stdout()
        return 0
    except OSError as error:
        if error.errno not in (FULL if error.filename is None else FULL | REFUSED):
            raise
        if error.filename is None:
            _forget_stdout()
        say(f"error: {error.filename or 'cannot write'}: {error.strerror}")
        return FAILED
    except (MemoryError, RuntimeError) as error:
        if (said := _memory(error)) is None:
            raise
        say(
            f"error: not enough memory{said}: a run takes less with more micro_batches, or with "
            "smaller images, batches or networks"
        )
        return FAILED


# Of torch for a CPU, which has no class of its own for it.
_NO_MEMORY = r"allocate memory|not enough memory|Storage size calculation overflowed"


def _memory(error: Exception) -> str | None:
    """How much memory was asked for in vain, where that is known; None of any other error.

    By its words, as torch may not have been imported.
    """
    words = str(error)
    known = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    if not known and not re.search(_NO_MEMORY, words):
        return None
    asked = re.search(
        r"[Tt]ried to allocate ([\d.,]+ \w+)|[Uu]nable to allocate ([\d.,]+ \w+)", words
    )
    return f" for {asked[1] or asked[2]}" if asked else ""


FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}  # what printing to a file can meet
# What a place that somebody named can be, and no mistake of ours.
REFUSED = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ESTALE}


def _open_streams() -> None:
    """Where the shell has closed a standard stream, one that leads nowhere.

    The next file that is opened would have its number, and in it what a library prints.
    """
    while (free := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(free, True)
    os.close(free)
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            mode = "r" if name == "stdin" else "w"
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))


def _forget_stdout() -> None:
    """Python flushes stdout once more when it ends, which must not fail again."""
    with suppress(OSError):
        sys.stdout.flush()
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class Help(argparse.HelpFormatter):
    """A module's docstring as it is written: argparse joins its paragraphs and lists into one."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        filled = []
        for paragraph in re.split(r"\n\s*\n", text.strip()):
            for part in re.split(r"\n(?=- )", paragraph):
                further = indent + ("  " if part.startswith("- ") else "")
                words = " ".join(part.split())
                filled.append(textwrap.fill(words, width, initial_indent=indent,
                                            subsequent_indent=further, break_long_words=False,
                                            break_on_hyphens=False))  # fmt: skip
            filled.append("")
        return "\n".join(filled[:-1])


class Renamed(argparse.Action):
    """An option that there was once: refused with what is written in its place."""

    def __init__(self, option_strings: Sequence[str], dest: str, const: str) -> None:
        super().__init__(option_strings, dest, nargs="*", const=const, help=argparse.SUPPRESS)

    def __call__(self, parser: Any, namespace: Any, values: Any, option: str | None = None) -> None:
        raise UserError(f"{option} is gone: write {self.const}")


def _show_warning(message: Warning | str, category: type[Warning], *where: object) -> None:
    say(f"{category.__name__}: {message}")
