"""A run's small files with any value replaced by one of another kind: one row, in every command.

The kinds of damage that a reader notices at once are in `test_unreadable.py`.
"""

import io
import json
import math
import random
import sys
import warnings
from contextlib import redirect_stderr, redirect_stdout

import pytest
import yaml
from support.harness import DIGITS, SMALL, finish_run, small_config
from support.nightly import NIGHTLY
from support.page_runs import step_row

from experiments import export
from experiments.errors import UserError
from experiments.reports import page, summary
from experiments.results.sweeps import read_sweep
from experiments.results.tables import read_results
from experiments.runs.directory import RunDirectory
from experiments.tracking import upload, workspace
from experiments.training.session import say_if_done
from slurm import cancel, jobs, logs, status, submit

VALUES = (None, [], {}, "x", 3, -1.5, True, math.nan, [[1]], {"a": {}})
LINES = [
    {"attempt": 1, "started": "x", "host": "h", "job": None, "checkpoint": 5},
    {"attempt": 1, "ended": "y", "reason": "ValueError: y"},
]
LEASE = {"token": "a", "host": "n", "pid": 3, "job": None, "kernel": "k", "flock": True}
FILES = ("config.yaml", "meta.json", "submitted.json", "lease.json", "attempts.jsonl",
         "metrics.jsonl", "steps.jsonl", "wandb/uploaded.json")  # fmt: skip


def mutations(value, put=lambda new: new):
    """The document with one value at any depth replaced, or one key gone."""
    for new in VALUES:
        if type(new) is not type(value) or new != value:
            yield put(new)
    if isinstance(value, dict):
        for key, inner in value.items():
            yield put({k: v for k, v in value.items() if k != key})
            yield from mutations(inner, lambda new, key=key: put({**value, key: new}))
    elif isinstance(value, list):
        for at, inner in enumerate(value):
            yield from mutations(
                inner, lambda new, at=at: put([*value[:at], new, *value[at + 1 :]])
            )


def variants(name, text):
    if name.endswith(".jsonl"):
        rows = [json.loads(line) for line in text.splitlines()]
        found = mutations(rows)
        return ["\n".join(map(json.dumps, rows)) for rows in found if isinstance(rows, list)]
    if name.endswith(".yaml"):
        return [yaml.safe_dump(found) for found in mutations(yaml.safe_load(text))]
    return [json.dumps(found) for found in mutations(json.loads(text))]


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """A sound run, and another one."""
    root = tmp_path / "runs"
    monkeypatch.setenv("RUNS_ROOT", str(root))
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    sound, other = (finish_run(root, small_config(seed=seed), [0.5, 0.6]) for seed in (1, 2))
    for run in (sound, other):
        jobs.Submitted("4194304", "local", str(tmp_path), "elsewhere").write(run.path)
        (run.path / "attempts.jsonl").write_text("\n".join(map(json.dumps, LINES)) + "\n")
        for step in (50, 100):
            run.append_step(step_row(step, "adahessian"))
        (run.path / "wandb").mkdir()
        (run.path / "wandb/uploaded.json").write_text('{"epochs": 2, "url": "x"}\n')
        (run.path / "lease.json").write_text(json.dumps(LEASE))
    return sound, other


def commands(sound, other, tmp_path):
    """What every command does with both, by name; the sound one is there each time."""
    root = tmp_path / "runs"
    sweep = tmp_path / "sweep.yaml"
    settings = ", ".join(word.replace("=", ": ") for word in SMALL)
    sweep.write_text(f"config: {DIGITS}\nseeds: 1-3\nset: {{optimizer: sgd, {settings}}}\n")

    def show_status():
        rows, note = status.collect(root, None)
        status.show(rows, note)
        assert [row.run.rpartition("-")[2] for row in rows] == ["s1", "s2"]
        assert rows[0].state == "done"

    def report():
        results = read_results(root)
        assert sound.path in [run.directory for run in results.having("done")]
        for table in results.tables:
            summary.grid(table)
        for make in page.SECTIONS:
            list(make(results))

    def report_sweep():
        results = read_sweep(sweep, root)
        assert results.members[0].state == "done"
        for make in page.SECTIONS_OF_A_SWEEP:
            list(make(results))

    def dashboard():
        declared, _ = workspace.read_metas([sound.path, other.path])
        workspace.make_sections(workspace.metric_keys([sound.path, other.path]), declared)

    def run():
        for made in (sound, other):
            try:
                say_if_done(RunDirectory(root, made.config))
            except UserError as error:  # another name in meta.json is that of another run
                assert made is other and "a copy, or moved" in str(error)

    def main(command, *arguments, code=0):
        assert command.main(list(arguments)) == code

    return {
        "status": show_status,
        "report": report,
        "sweep": report_sweep,
        "dashboard": dashboard,
        "submit": lambda: main(submit, str(sweep), "--profile", "local", "--dry-run"),
        "cancel": lambda: main(cancel, "*"),
        "logs": lambda: main(logs, "*", code=2),
        "export": lambda: main(export, "--to", str(tmp_path / "results")),
        "upload": lambda: [upload.is_uploaded(run) for run in upload.find_runs(root)],
        "run": run,
    }


# All of them are hundreds for each file.
MANY = sys.maxsize if NIGHTLY else 8


@pytest.mark.parametrize(
    ("most", "done"),
    [
        (3, True),
        pytest.param(MANY, True, marks=pytest.mark.slow),
        pytest.param(MANY, False, marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("name", FILES)
def test_any_value_of_another_kind_is_one_row(name, done, most, runs, tmp_path):
    sound, other = runs
    if not done:
        (other.path / "DONE").unlink()
    path = other.path / name
    found = variants(name, path.read_text())
    random.Random(name).shuffle(found)
    for text in ["", "\0" * 50, *found[:most]]:
        path.write_text(text)
        for command, call in commands(sound, other, tmp_path).items():
            try:
                with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
                    with warnings.catch_warnings():
                        warnings.simplefilter("ignore")
                        call()
            except BaseException as error:
                raise AssertionError(f"{command} with {name}:\n{text}") from error
