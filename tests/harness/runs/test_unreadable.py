"""One run whose files are damaged, or another user's: it is one row, and the others are there."""

import json
import subprocess
import sys

import pytest
from support.harness import DIGITS, REPOSITORY, SMALL, finish_run, small_config

from experiments import report
from experiments.runs.directory import RunDirectory
from slurm import cancel, jobs, logs, status, submit

FILES = ("config.yaml", "meta.json", "submitted.json", "lease.json", "attempts.jsonl",
         "metrics.jsonl", "DONE")  # fmt: skip


def no_file(path):
    """What may not be opened, whoever asks: root may open anything but a directory as a file."""
    path.mkdir()


DAMAGES = {
    "empty": lambda path: path.write_bytes(b""),
    "torn": lambda path: path.write_bytes(b'{"token": "a", "nam'),
    "another kind": lambda path: path.write_bytes(b"[1, 2]"),
    "no text": lambda path: path.write_bytes(b"\xff\xfe\x00\xd8"),
    "not to be opened": no_file,
}


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """A finished run, and one that ended early after it had been submitted."""
    root = tmp_path / "runs"
    monkeypatch.setenv("RUNS_ROOT", str(root))
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    sound, other = (finish_run(root, small_config(seed=seed), [0.5]) for seed in (1, 2))
    (other.path / "DONE").unlink()
    for run in (sound, other):
        jobs.Submitted("4194304", "local", str(tmp_path), "elsewhere").write(run.path)
    return sound, other


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", FILES)
def test_it_takes_nothing_else_with_it(name, damage, runs, tmp_path, capsys):
    sound, other = runs
    (other.path / name).unlink(missing_ok=True)
    DAMAGES[damage](other.path / name)
    assert status.main([]) == 0
    shown = capsys.readouterr().out
    assert "1 done" in shown or name == "DONE"
    rows, _ = status.collect(tmp_path / "runs", None)
    assert [row.run.rpartition("-")[2] for row in rows] == ["s1", "s2"]
    assert rows[0].state == "done" and rows[0].value == 0.5
    if name in ("config.yaml", "submitted.json"):
        assert rows[1].state == "unreadable" and rows[1].reason.startswith(name)
    assert cancel.main(["*"]) == 0
    assert "nothing to cancel" in capsys.readouterr().out
    assert logs.main(["s1"]) == 2
    assert capsys.readouterr().err.startswith("error: no log yet")
    sweep = tmp_path / "sweep.yaml"
    settings = ", ".join(word.replace("=", ": ") for word in SMALL)
    sweep.write_text(f"config: {DIGITS}\nseeds: 1-3\nset: {{optimizer: sgd, {settings}}}\n")
    assert submit.main([str(sweep), "--profile", "local", "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert f"skipped, done: {sound.path}" in shown and "-s3" in shown
    assert report.main(["--sweep", str(sweep)]) == 0
    assert str(other.path.name) in capsys.readouterr().out or name in (
        "lease.json", "submitted.json", "DONE", "attempts.jsonl", "metrics.jsonl"
    )  # fmt: skip


def test_the_reason_is_one_short_line_and_whole_on_demand(runs, capsys):
    _, other = runs
    reason = "ValueError: " + "long " * 100
    lines = [{"attempt": 1, "started": "", "host": "n1", "job": None, "checkpoint": None},
             {"attempt": 1, "ended": "", "reason": reason.strip()}]  # fmt: skip
    (other.path / "attempts.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert status.main([]) == 0
    short = capsys.readouterr().out
    assert max(map(len, short.splitlines())) < 160 and "long…" in short or "…" in short
    assert status.main(["--long"]) == 0
    assert reason.strip() in capsys.readouterr().out


def test_what_differs_is_in_the_row_and_the_metric_is_the_tasks(runs, tmp_path, capsys):
    finish_run(tmp_path / "runs", small_config("optimizers.sgd.lr=0.3"), [0.25])
    assert status.main([]) == 0
    heading, *rows = capsys.readouterr().out.splitlines()
    assert "test accuracy (%)" in heading and "settings" in heading
    assert sorted(row.split()[1] for row in rows[:3]) == ["lr=0.1", "lr=0.1", "lr=0.3"]
    assert any(row.split()[1:] == ["lr=0.3", "done", "1/2", "25.00"] for row in rows)


def test_status_logs_and_cancel_do_not_wait_for_torch(runs, tmp_path):
    """Nor submit for what only reports and trainings need."""
    script = (
        "import sys; from slurm import {0}; {0}.main({1})\n"
        "heavy = ('torch', 'scipy', 'sklearn', 'matplotlib', 'wandb', 'numpy', 'submitit')\n"
        "sys.exit(str([name for name in heavy if name in sys.modules]))"
    )
    for name, arguments, known in (
        ("status", [], "[]"),
        ("logs", ["*"], "[]"),
        ("cancel", ["*"], "[]"),
        ("submit", [str(DIGITS), "optimizer=sgd", "--profile=local", "--dry-run"],
         "['torch', 'numpy']"),
    ):  # fmt: skip
        done = subprocess.run([sys.executable, "-c", script.format(name, arguments)],
                              cwd=REPOSITORY, capture_output=True, text=True)  # fmt: skip
        assert done.stderr.splitlines()[-1] == known, f"{name}: {done.stderr}"


def test_jobs_are_named_after_their_runs():
    configs = [small_config(f"optimizers.adahessian.lr={lr}", optimizer="adahessian", seed=seed)
               for lr in (0.1, 0.3) for seed in (1, 3)]  # fmt: skip
    directories = [RunDirectory(REPOSITORY, config) for config in configs]
    assert submit.names_of(directories)[1] == "digits-resnet8-adahessian-lr=0.1-s3"
    assert submit.common_name(directories) == "digits-resnet8-adahessian"
    assert submit.common_name(directories[:1]) == "digits-resnet8-adahessian-s1"
