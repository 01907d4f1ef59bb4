"""What docs/adding.md says: the files of its pages, as they are printed, are enough."""

import sys

import pytest
import yaml
from support.own_code import names, write_lab, write_pets

from experiments import run
from experiments.runs import own_code


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    folder = tmp_path_factory.mktemp("my lab")
    experiments = write_lab(folder)
    write_pets(folder / "data")
    sys.path.insert(0, str(folder))
    yield experiments
    sys.path.remove(str(folder))
    for name in [name for name in sys.modules if name.split(".")[0] == "mylab"]:
        del sys.modules[name]


@pytest.mark.parametrize("name", ["line", "pets", "stripes", "vit"])
def test_each_is_trained(name, lab, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("RUNS_ROOT", str(tmp_path))
    monkeypatch.setenv("DATA_ROOT", str(lab[name].parent / "data"))
    monkeypatch.setattr("warnings.showwarning", None)
    for optimizer in names(yaml.safe_load(lab[name].read_text("utf-8"))):
        words = [str(lab[name]), f"optimizer={optimizer}", "epochs=2"]
        words += [] if name == "line" else ["batch_size=64"]
        assert run.main(words) == 0, capsys.readouterr().err
    assert len(list(tmp_path.glob("*/*/*/*/DONE"))) == (1 if name == "line" else 2)


def test_no_other_experiment_is_there(lab):
    assert list(lab) == ["line", "pets", "stripes", "vit"]
    assert own_code._places("mylab") == [lab["vit"].parent / "mylab"]
