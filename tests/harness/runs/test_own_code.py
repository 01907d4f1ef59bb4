"""The user's own code is no part of a run's name; where it has changed, that is said."""

import itertools
import shutil

import pytest
from support.harness import finish_run, interrupted, say_in_meta, small_config

from experiments import evaluate, report
from experiments.reports.page import comparisons
from experiments.results.tables import read_results
from experiments.runs import own_code
from experiments.runs.directory import RunDirectory
from experiments.training import loop
from experiments.training.session import train_unless_done

NET = """
from torch import nn
class Net(nn.Sequential):
    def __init__(self, classes):
        super().__init__(nn.Flatten(), nn.Linear(64, classes))
"""
NUMBERS = itertools.count()


@pytest.fixture
def lab(tmp_path, monkeypatch):
    """A package of the user's own, under a name that no other test has imported."""
    folder = tmp_path / f"ownlab{next(NUMBERS)}"
    folder.mkdir()
    (folder / "nets.py").write_text(NET)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("RUNS_ROOT", str(tmp_path / "runs"))
    return folder


def config(lab, seed=1):
    return small_config(f"model={{constructor: {lab.name}.nets.Net}}", "epochs=1", seed=seed)


def change(lab):
    (lab / "nets.py").write_text(f"{NET}# otherwise\n")


def test_the_hash_is_of_modules_alone_wherever_they_lie(lab, tmp_path, monkeypatch):
    before = own_code.marks(config(lab))
    assert before.split()[0] == lab.name and len(before.split()[1]) == 8
    (lab / "notes.txt").write_text("a result")
    assert own_code.marks(config(lab)) == before
    there = tmp_path / "copy"
    shutil.copytree(lab, there / lab.name)
    with monkeypatch.context() as moved:
        moved.syspath_prepend(there)
        assert own_code.marks(config(lab)) == before
    change(lab)
    assert own_code.marks(config(lab)) != before
    assert own_code.marks(small_config()) == ""


def test_what_is_done_or_evaluated_with_other_code_says_so(lab, tmp_path, capsys, recwarn):
    assert train_unless_done(config(lab)) == 0
    directory = RunDirectory(tmp_path / "runs", config(lab))
    known = directory.meta()["sessions"][0]["own_code"]
    assert known == own_code.marks(config(lab))
    for changed in (False, True):
        if changed:
            change(lab)
        capsys.readouterr()
        recwarn.clear()
        assert train_unless_done(config(lab)) == 0
        assert evaluate.main([str(directory.path)]) == 0
        said = capsys.readouterr().err
        now = own_code.marks(config(lab))
        text = f"made with other code of your own: {known}; here is {now}"
        assert (f"({text})" in said) == changed
        warned = [str(one.message) for one in recwarn if "code of your own" in str(one.message)]
        assert (warned == [f"{directory.path} was {text}"] or text in said) == changed


def test_what_goes_on_with_other_code_says_so(lab, tmp_path, monkeypatch):
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(loop, "evaluate", interrupted(loop.evaluate, lambda number: True))
        train_unless_done(config(lab))
    change(lab)
    with pytest.warns(UserWarning, match="was so far made with other code of your own"):
        assert train_unless_done(config(lab)) == 0
    sessions = RunDirectory(tmp_path / "runs", config(lab)).meta()["sessions"]
    assert len({session["own_code"] for session in sessions}) == 2


def session(**more):
    return {"sessions": [{"commit": "c", "dirty": False, "host": "n", "device": "cpu", **more}]}


def test_a_table_says_that_its_runs_are_of_several_versions(tmp_path, monkeypatch, capsys):
    """Of one package; optimizers may name different ones."""
    monkeypatch.setenv("RUNS_ROOT", str(tmp_path))
    marks = ("lab 00000000", "lab 11111111, opts 22222222", "", "lab 00000000")
    for seed, mark in enumerate(marks, 1):
        made = finish_run(tmp_path, small_config(seed=seed), [0.5])
        say_in_meta(made, parameters=100 if seed < 4 else 1234, **session(own_code=mark))
    (table,) = read_results(tmp_path).tables
    assert table.warnings == [
        "The runs of sgd have 100 and 1,234 parameters: not the same network.",
        "Runs of this table were made with 2 versions of your own code in lab (00000000, "
        "11111111).",
    ]
    (section,) = comparisons.tables(read_results(tmp_path))
    assert [one.plain for one in section.blocks[:2]] == table.warnings
    assert report.main([]) == 0
    assert "not the same network" in " ".join(capsys.readouterr().out.split())
    for run in read_results(tmp_path).runs:
        say_in_meta(RunDirectory(tmp_path, small_config(seed=run.meta["seed"])),
                    parameters=100, **session(own_code="lab 00000000"))  # fmt: skip
    assert read_results(tmp_path).tables[0].warnings == []
