import json
import sys

import pytest

from experiments.benchmarks import resident


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_command_prints_peaks_of_processes(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("RUNS_ROOT", str(tmp_path))
    assert resident.main(["--quick", "--processes", "1", "--steps", "2"]) == 0
    assert "Resident memory" in capsys.readouterr().out
    found = json.loads((tmp_path / "benchmarks" / "resident.json").read_text())["data"]
    for methods in found.values():
        (sgd,), (difference,) = methods["SGD"], methods["finite difference"]
        assert len(sgd) == 2 and 0 < max(sgd) < max(difference) < 1000


def test_what_it_cannot_measure_is_one_line(capsys):
    with pytest.raises(SystemExit):
        resident.main(["--steps", "1"])
    assert "--steps: at least 2" in capsys.readouterr().err
