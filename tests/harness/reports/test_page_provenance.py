import json
import shlex

from support.harness import finish_run, small_config

from experiments.reports.page import provenance
from experiments.results.tables import read_results
from experiments.runs import attempts


def table(root):
    (section,) = provenance.runs(read_results(root))
    grid = section.blocks[-1]
    return [dict(zip(grid.columns, row, strict=True)) for row in grid.rows]


def test_job_and_command_of_a_run(tmp_path):
    root = tmp_path / "my runs"
    run = finish_run(root, small_config(), [0.5])
    meta = json.loads((run.path / "meta.json").read_text("utf-8"))

    def shown(**session):
        meta["sessions"][0] |= session
        (run.path / "meta.json").write_text(json.dumps(meta), encoding="utf-8")
        (row,) = table(root)
        return row["job"], row["command"]

    assert shown() == ("", "")
    command = "python -m experiments.run 'my lab/vit.yaml' seed=1-3"
    assert shown(command=command, job="12_3") == ("12_3", command)


def test_a_job_of_an_earlier_version(tmp_path, monkeypatch):
    root = tmp_path / "my runs"
    run = finish_run(root, small_config(), [0.5])
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    with attempts.recorded(run.path):
        pass
    meta = json.loads((run.path / "meta.json").read_text("utf-8"))
    meta["sessions"][0]["command"] = f"python -m experiments.run {root}/.slurm/2026-11-26"
    (run.path / "meta.json").write_text(json.dumps(meta), encoding="utf-8")
    (row,) = table(root)
    assert row["job"] == "7"
    assert shlex.split(row["command"])[3:] == [f"{run.path}/config.yaml"]
