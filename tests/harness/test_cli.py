import argparse
import signal
import subprocess
import sys

import pytest
from support.harness import REPOSITORY

from experiments import cli
from experiments.errors import UserError
from experiments.runtime.stopping import Stopped


def run(error=None, arguments=()):
    parser = argparse.ArgumentParser()
    parser.add_argument("words", nargs="*")
    parser.add_argument("--flag", action="store_true")
    parser.add_argument("--old", action=cli.Renamed, const="new=VALUE")

    def command(parsed):
        if error:
            raise error
        return len(parsed.words)

    return cli.execute(parser, command, arguments)


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (UserError("no such thing"), 2, "error: no such thing\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (Stopped(signal.SIGTERM), 143, "stopped by SIGTERM; the same command goes on from here\n"),
        (Stopped(signal.SIGUSR2), 140, "stopped by SIGUSR2; the same command goes on from here\n"),
    ],
)
def test_every_way_to_end_is_one_line_and_a_code(error, code, said, capsys):
    assert run(error) == code
    assert capsys.readouterr().err == said


def test_a_mistake_of_ours_is_not_hidden():
    with pytest.raises(ZeroDivisionError):
        run(ZeroDivisionError())


def test_options_may_stand_between_words_and_the_code_is_the_commands():
    assert run(arguments=["a", "--flag", "b=1"]) == 2 and run() == 0


def test_an_option_of_earlier_says_what_to_write_now(capsys):
    assert run(arguments=["a", "--old", "x", "y"]) == 2
    assert capsys.readouterr().err == "error: --old is gone: write new=VALUE\n"


def test_a_reader_that_leaves_is_no_error():
    script = (
        "import argparse, sys; from experiments import cli\n"
        "def command(parsed):\n    while True: print('x' * 1000)\n"
        "sys.exit(cli.execute(argparse.ArgumentParser(), command, []))"
    )
    process = subprocess.Popen([sys.executable, "-c", script], cwd=REPOSITORY, text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == "" and process.wait(timeout=60) == 0
