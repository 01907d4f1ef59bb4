import json
import re
from pathlib import Path

import pytest
from support.harness import REPOSITORY, finish_run, small_config

from experiments.runs import attempts
from experiments.runs.directory import RunDirectory
from experiments.runs.states import STATES, read_state


def write_attempt(directory: Path, *ends: dict) -> None:
    row = {"attempt": 9, "started": "", "host": "n1", "job": None, "checkpoint": None}
    with (directory / attempts.NAME).open("a") as file:
        file.writelines(json.dumps(line) + "\n" for line in (row, *ends))


def test_from_never_begun_to_an_error(tmp_path):
    run = RunDirectory(tmp_path, small_config())
    assert read_state(run.path) == ("new", "")
    run.path.mkdir(parents=True)
    (run.path / "config.yaml").touch()  # a submission leaves it
    assert read_state(run.path) == ("new", "")
    with run.locked():
        assert read_state(run.path) == ("running", "")
    with pytest.raises(ValueError), run.locked():
        raise ValueError("no such thing")
    assert read_state(run.path) == ("failed", "ValueError: no such thing")


@pytest.mark.parametrize(
    ("ends", "state"),
    [
        ([], ("killed", "")),
        ([{"attempt": 9, "reason": "stopped by SIGTERM"}], ("stopped", "stopped by SIGTERM")),
        ([{"attempt": 9, "reason": "KeyboardInterrupt"}], ("stopped", "KeyboardInterrupt")),
        ([{"attempt": 9, "reason": "NonFiniteLoss: nan"}], ("diverged", "NonFiniteLoss: nan")),
    ],
)
def test_the_last_attempt_tells_how_it_ended(ends, state, tmp_path):
    directory = finish_run(tmp_path, small_config(), [0.5]).path
    (directory / "DONE").unlink()
    assert read_state(directory) == ("killed", ""), "no attempt was recorded, and yet it had begun"
    write_attempt(directory, *ends)
    assert read_state(directory) == state


@pytest.mark.parametrize(
    ("name", "text", "state", "reason"),
    [
        ("DONE", "", "done", ""),
        ("metrics.jsonl", "", "no result", "it is marked as done but has no test/accuracy"),
        ("metrics.jsonl", '{"test/accuracy": NaN}', "diverged", "its last test/accuracy is nan"),
        (
            "metrics.jsonl",
            '{"test/accuracy": 0.1, "train/loss": Infinity}',
            "diverged",
            "its last train/loss is inf",
        ),
        (
            "metrics.jsonl",
            '{"test/accuracy": 0.1, "val/loss": NaN, "test/loss": -Infinity}',
            "diverged",
            "its last val/loss is nan, test/loss is -inf",
        ),
        (
            "metrics.jsonl",
            '{"test/accuracy": 0.1, "time/x": NaN, "hessian/loss_": NaN}',
            "done",
            "",
        ),
        ("metrics.jsonl", '{"test/accuracy": NaN}\n{"test/accuracy": 0.1}', "done", ""),
        ("metrics.jsonl", '{"test/accuracy": null}', "unreadable", "metrics.jsonl: TypeError: its"),
        ("meta.json", "{", "unreadable", "meta.json: JSONDecodeError: "),
        ("meta.json", "[]", "unreadable", "meta.json: TypeError: "),
        ("meta.json", "{}", "unreadable", "meta.json: KeyError: 'headline'"),
    ],
)
def test_the_mark_of_what_is_done_must_have_a_result(name, text, state, reason, tmp_path):
    directory = finish_run(tmp_path, small_config(), [0.5]).path
    (directory / name).write_text(text)
    found = read_state(directory)
    assert found[0] == state and found[1].startswith(reason)


def test_the_documentation_has_every_word():
    text = (REPOSITORY / "docs" / "report.md").read_text()
    table = text.partition("## A run's state")[2].partition("\n## ")[0]
    assert re.findall(r"^\| `([a-z ]+)` \|", table, flags=re.MULTILINE) == list(STATES)
