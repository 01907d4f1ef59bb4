import json

import pytest
from PIL import Image

from experiments.benchmarks import loader


def test_the_files_are_of_imagenets_size_and_layout(tmp_path):
    kilobytes = loader.write_images(tmp_path, 12)
    assert kilobytes == pytest.approx(loader.KILOBYTES, rel=0.25)
    train = sorted((tmp_path / "imagenet/train").glob("*/*.JPEG"))
    assert len(train) == 12 and len(list((tmp_path / "imagenet/val").glob("*/*.JPEG"))) == 4
    with Image.open(train[1]) as image:
        assert sorted(image.size) == [375, 500]


def test_the_command_measures_and_writes_its_tables(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("RUNS_ROOT", str(tmp_path))
    page = tmp_path / "page.md"
    page.write_text("<!-- bench-loader:begin -->\n<!-- bench-loader:end -->\n")
    arguments = ["--quick", "--images", "40", "--repetitions", "1", "--device", "cpu"]
    assert loader.main([*arguments, "--docs", str(page)]) == 0
    shown = [line for line in capsys.readouterr().out.splitlines() if "written:" not in line]
    assert max(len(line) for line in shown) <= 80
    data = json.loads((tmp_path / "benchmarks/bench-loader.json").read_text())["data"]
    assert set(data["decoding"]) == set(loader.WAYS)
    assert "1" in data["loading"] and all(rate > 0 for rate in data["loading"]["1"])
    assert "| network alone, ResNet-18, batch 8 |" in page.read_text()
