import shutil

import pytest
from support.harness import DIGITS, finish_run, small_config

from experiments import export, report
from experiments.errors import UserError
from experiments.results.sweeps import read_sweep
from experiments.results.tables import read_results
from experiments.runs import layout
from experiments.training.session import train_unless_done
from slurm import status


def test_what_is_made_is_found_and_nothing_else_is(tmp_path):
    configs = [
        small_config(optimizer=name, seed=seed) for name in ("adam", "sgd") for seed in (1, 2)
    ]
    for config in configs:
        finish_run(tmp_path, config, [0.5])
    here = [tmp_path / layout.path_of(config) for config in configs]
    (here[0] / "DONE").unlink()
    (tmp_path / ".slurm" / "code-1" / "experiments" / "runs").mkdir(parents=True)
    (tmp_path / "report" / "a" / "b" / "c").mkdir(parents=True)
    assert layout.find(tmp_path) == here
    assert layout.find(tmp_path, holding="DONE") == here[1:]
    assert layout.find(tmp_path, dataset="digits", model="resnet8") == here
    assert layout.find(tmp_path, dataset="cifar10") == layout.find(tmp_path / "nowhere") == []
    assert layout.find(tmp_path, dataset="/nope") == layout.find(tmp_path, model="../resnet8") == []


def test_the_seeds_of_a_configuration(tmp_path):
    for seed in (1, 3):
        finish_run(tmp_path, small_config(seed=seed), [0.5])
    finish_run(tmp_path, small_config("epochs=3"), [0.5])
    found = layout.find_seeds(tmp_path, small_config(seed=7), holding="DONE")
    assert [path.name[-3:] for path in found] == ["-s1", "-s3"]


def copied(root):
    """A run, a backup of its optimizer's folder, and a copy of it under another seed's name."""
    own = finish_run(root, small_config(), [0.5]).path
    shutil.copytree(own.parent, own.parent.with_name("sgd.bak"))
    shutil.copytree(own, own.with_name(own.name.replace("-s1", "-s7")))
    return own


def test_a_copy_is_a_row_and_counted_nowhere(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("RUNS_ROOT", str(tmp_path))
    own = copied(tmp_path)
    results = read_results(tmp_path)
    assert [[run.directory for run in table.runs] for table in results.tables] == [[own]]
    assert results.left_out == "2 moved run(s) left out"
    assert report.main([]) == 0
    said = f"a copy, or moved: its meta.json says digits/resnet8/sgd/{own.name}"
    assert said in (tmp_path / "report.html").read_text()
    rows, _ = status.collect(tmp_path, None)
    assert sorted(row.state for row in rows) == ["done", "moved", "moved"]
    assert [row.reason for row in rows].count(said) == 2
    capsys.readouterr()
    assert export.main(["--to", str(tmp_path / "results")]) == 0
    shown = capsys.readouterr()
    assert shown.out.startswith("1 runs below") and shown.err.count(said) == 2


def test_a_plan_does_not_take_a_copy_for_its_run(tmp_path, monkeypatch):
    monkeypatch.setenv("RUNS_ROOT", str(tmp_path))
    copied(tmp_path)
    path = tmp_path / "sweep.yaml"
    path.write_text(f"config: {DIGITS}\nseeds: [1, 7]\n"
                    "set: {model.depth: 8, epochs: 2, optimizer: sgd}\n")  # fmt: skip
    (point,) = read_sweep(path, tmp_path).points
    assert [one.state for one in point.members] == ["done", "moved"]
    with pytest.raises(UserError, match="-s7 is a copy, or moved: .*; move it away to train"):
        train_unless_done(small_config(seed=7))


@pytest.mark.parametrize("left", ["DONE", "metrics.jsonl", "attempts.jsonl"])
def test_what_has_lost_its_meta_is_listed(left, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("RUNS_ROOT", str(tmp_path))
    finish_run(tmp_path, small_config(), [0.5])
    other = finish_run(tmp_path, small_config(seed=2), [0.5]).path
    for path in list(other.iterdir()):
        if path.name != left:
            path.unlink()
    (other / left).touch()
    results = read_results(tmp_path)
    assert list(results.unreadable) == [other]
    assert results.unreadable[other].startswith("there is no meta.json")
    assert results.left_out == "1 unreadable run(s) left out"
    assert export.main(["--to", str(tmp_path / "results")]) == 0
    assert f"left out, unreadable: {other} (there is no meta.json" in capsys.readouterr().err
