import json

from experiments.benchmarks import step_log


def test_the_command_prints_what_a_row_costs(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("RUNS_ROOT", str(tmp_path / "runs"))
    monkeypatch.setenv("DATA_ROOT", str(tmp_path / "data"))
    assert step_log.main(["--quick", "--repetitions", "2", "--layers"]) == 0
    assert "What a logged step costs" in capsys.readouterr().out
    found = json.loads((tmp_path / "runs" / "benchmarks" / "step-log.json").read_text())["data"]
    assert list(found) == list(step_log.METHODS)
    for times in found.values():
        assert [len(values) for values in times.values()] == [2, 2, 2]
        assert all(row < whole for row, whole in zip(times["row"], times["logged"], strict=True))
    assert not list((tmp_path / "runs").glob("cifar10*")), "nothing but the table is written"
