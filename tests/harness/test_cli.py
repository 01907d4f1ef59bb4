import argparse
import importlib
import io
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
import torch
from support.harness import DIGITS, REPOSITORY, SMALL, finish_run, small_config
from support.patience import PATIENCE

from experiments import cli, report
from experiments.errors import UserError
from experiments.runs.directory import RunDirectory
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


@pytest.mark.parametrize(
    ("ask", "words"),
    [
        (lambda: torch.empty(2**58), f"not enough memory for {2**60} bytes: a run takes less"),
        (lambda: torch.empty(2**40, 2**40), "not enough memory: a run"),
        (lambda: numpy.empty(2**58), "not enough memory for 2.00 EiB: a run"),
        (lambda: [0] * 2**60, "not enough memory: a run"),
    ],
)
def test_a_want_of_memory_is_one_line(ask, words, capsys):
    with pytest.raises((MemoryError, RuntimeError)) as found:
        ask()
    assert run(found.value) == 1
    shown = capsys.readouterr().err
    assert shown.startswith(f"error: {words}") and shown.count("\n") == 1
    assert run(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU")) == 1
    assert "not enough memory for 2.00 GiB: a" in capsys.readouterr().err


@pytest.mark.parametrize("error", [ZeroDivisionError, RuntimeError])
def test_a_mistake_of_ours_is_not_hidden(error):
    with pytest.raises(error):
        run(error("shapes do not fit"))


def test_options_may_stand_between_words_and_the_code_is_the_commands():
    assert run(arguments=["a", "--flag", "b=1"]) == 2 and run() == 0


def test_an_option_of_earlier_says_what_to_write_now(capsys):
    assert run(arguments=["a", "--old", "x", "y"]) == 2
    assert capsys.readouterr().err == "error: --old is gone: write new=VALUE\n"


COMMANDS = sorted(
    ".".join(path.with_suffix("").parts[-2:])
    for folder in ("experiments", "slurm")
    for path in (REPOSITORY / folder).glob("*.py")
    if "cli.execute(" in path.read_text("utf-8") and path.name != "cli.py"
)


@pytest.mark.parametrize("columns", [40, 100])
@pytest.mark.parametrize("name", COMMANDS)
def test_help_keeps_the_paragraphs_and_lists_of_a_docstring(name, columns, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    module = importlib.import_module(name)
    with pytest.raises(SystemExit) as ended:
        module.main(["--help"])
    shown = capsys.readouterr().out
    assert ended.value.code == 0
    if "description=__doc__" in Path(module.__file__).read_text("utf-8"):
        begun = re.findall(r"(?:\A|\n\n|\n(?=- ))(\S+ \S+)", module.__doc__)
        assert len(begun) > 1
        assert all(f"\n{words}" in shown for words in begun)
    usage, text = shown.split("\n\n", 1)
    assert not [line for line in text.splitlines() if len(line) > columns and " " in line.strip()]


def test_a_reader_that_leaves_is_no_error():
    script = (
        "import argparse, sys; from experiments import cli\n"
        "def command(parsed):\n    while True: print('x' * 1000)\n"
        "sys.exit(cli.execute(argparse.ArgumentParser(), command, []))"
    )
    process = subprocess.Popen([sys.executable, "-c", script], cwd=REPOSITORY, text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip
    with process:
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == "" and process.wait(timeout=PATIENCE) == 0


def python(script, *redirections, **environment):
    """Run a script by a shell, with its output redirected."""
    words = ["sh", "-c", " ".join(['"$0" -c "$1"', *redirections]), sys.executable, script]
    return subprocess.run(words, cwd=REPOSITORY, env={**os.environ, **environment},
                          capture_output=True, timeout=PATIENCE)  # fmt: skip


def test_a_report_is_written_whoever_reads_it(tmp_path, monkeypatch):
    """Of a place that has what rich takes for markup in it."""
    root = tmp_path / "[/b] [red] :smile:"
    finish_run(root, small_config(), [0.5])
    monkeypatch.setenv("RUNS_ROOT", str(root))
    read, write = os.pipe()
    os.close(read)
    for stdout in (None, os.fdopen(write, "w", encoding="utf-8")):
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", stdout)
            assert report.main([]) == 0
            sys.stdout.close()
        (root / "report.html").unlink()


def test_a_link_that_leads_nowhere_is_named(tmp_path):
    (tmp_path / "scratch").symlink_to(tmp_path / "purged")
    directory = RunDirectory(tmp_path / "scratch", small_config())
    with pytest.raises(UserError, match="/scratch is no folder, or a link to what is not there"):
        with directory.locked():
            pass


def test_a_backend_that_matplotlib_has_no_more():
    done = python("from experiments.plots import canvas; canvas.pyplot()", MPLBACKEND="qt4agg")
    assert done.returncode == 0, done.stderr


def test_a_temporary_folder_whose_path_is_too_long_for_a_socket(tmp_path):
    place = tmp_path / ("x" * 100)
    place.mkdir()
    script = (
        "import sys; from experiments import cli\n"
        "from experiments.runtime.processes import run_each\n"
        "sys.exit(cli.guarded(lambda: run_each(abs, [1], 1)))"
    )
    done = python(script, TMPDIR=str(place))
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: TMPDIR = {place}: too long".encode())


def test_no_file_gets_the_number_of_a_closed_stream():
    script = (
        "import os, sys; from experiments import cli\n"
        "from argparse import ArgumentParser\n"
        "def command(parsed):\n"
        "    sys.stdin.read(), sys.stderr.write('x')\n"
        "    return 0 if os.open('/', os.O_RDONLY) > 2 else 1\n"
        "sys.exit(cli.execute(ArgumentParser(), command, []))"
    )
    assert python(script, "<&- >&- 2>&-").returncode == 0


PRINT = (
    "import argparse, sys; from experiments import cli\n"
    "sys.exit(cli.execute(argparse.ArgumentParser(), lambda parsed: print('x ± y', '…'), []))"
)


def test_output_that_cannot_be_written_is_an_error_of_one_line():
    done = python(PRINT, ">/dev/full")
    assert done.returncode == 1
    assert done.stderr == b"error: cannot write: No space left on device\n"


DIGITS_ONCE = [str(DIGITS), "optimizer=sgd", "epochs=1"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("experiments.run", DIGITS_ONCE),
        ("experiments.paper_table", ["table8", "--dataset", "digits"]),
        ("experiments.figures", []),
        ("experiments.export", ["--to", "root"]),
        ("experiments.corpora", ["catalogues"]),
        ("slurm.submit", [*DIGITS_ONCE, "--profile", "local"]),
    ],
)
def test_a_place_that_takes_no_file_is_one_line(name, words, tmp_path, monkeypatch, capsys):
    """Read-only, of another user, full or no folder: what root meets, too, is a file."""
    root = tmp_path / "root"
    root.write_text("", encoding="utf-8")
    finish_run(tmp_path / "runs", small_config(), [0.5])
    for variable in ("RUNS_ROOT", "DATA_ROOT"):
        monkeypatch.setenv(variable, str(root))
    if name == "experiments.export":
        monkeypatch.setenv("RUNS_ROOT", str(tmp_path / "runs"))
        words = [str(root) if word == "root" else word for word in words]
    assert importlib.import_module(name).main(words) in (1, 2)
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: ") and f"{root}/" in last and "Not a directory" in last


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-", "2>/dev/full"])
def test_without_a_stream_there_is_nobody_to_tell(closed):
    done = python(PRINT, closed)
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_terminal_that_knows_ascii_alone_gets_what_it_knows():
    done = python(PRINT, PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stdout) == (0, b"x ? y ?\n"), done.stderr


def test_a_report_to_an_ascii_log_prints(tmp_path, monkeypatch):
    for seed in (1, 2):
        finish_run(tmp_path, small_config(seed=seed), [0.5, 0.6 + seed / 10])
    monkeypatch.setenv("RUNS_ROOT", str(tmp_path))
    log = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(log, encoding="ascii"))
    assert report.main([]) == 0
    assert b"digits resnet8" in log.getvalue() and b"75.00 ? 7.07" in log.getvalue()
    assert "75.00 ± 7.07" in (tmp_path / "report/report.md").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("where", [">&- 2>&-", ">/dev/full 2>/dev/full"])
def test_a_training_whose_output_goes_nowhere_is_trained_to_its_end(where, tmp_path):
    words = [str(DIGITS), *SMALL, "epochs=1", "optimizer=sgd"]
    script = f"import sys; from experiments import run; sys.exit(run.main({words!r}))"
    done = python(script.replace('"', "'"), where, RUNS_ROOT=str(tmp_path))
    assert done.returncode == 0
    assert RunDirectory(tmp_path, small_config("epochs=1")).done
