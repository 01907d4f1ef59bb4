import json

import pytest

from experiments.benchmarks import spectrum


def broken(problem, amount):
    raise NotImplementedError("no such product")


def test_the_command_writes_its_table_without_the_candidates_that_fail(
    tmp_path, monkeypatch, capsys
):
    ours = ("ours", "ours, finite differences")
    candidates = {name: spectrum.TOPS[name] for name in ours}
    monkeypatch.setattr(spectrum, "TOPS", {**candidates, "broken": broken})
    monkeypatch.setattr(spectrum, "top_eigenthings", lambda *_: None)
    monkeypatch.setattr(spectrum, "version", lambda name: "0")
    monkeypatch.setenv("RUNS_ROOT", str(tmp_path))
    mark = "bench-spectrum-eigenvalues"
    page = tmp_path / "page.md"
    page.write_text(f"<!-- {mark}:begin -->\nold\n<!-- {mark}:end -->\n")
    arguments = ["--batch", "4", "--size", "8", "--repetitions", "2", "--part", "eigenvalues"]
    assert spectrum.main([*arguments, "--docs", str(page)]) == 0
    assert "broken fails: NotImplementedError: no such product" in capsys.readouterr().err
    result = json.loads((tmp_path / "benchmarks" / f"{mark}.json").read_text())
    assert {name: len(times) for name, times in result["data"].items()} == dict.fromkeys(ours, 2)
    (table,) = result["tables"]
    exact, difference = table["rows"]
    assert exact[:1] + exact[2:3] == ["ours", "1.00"]
    assert float(exact[4]) < 1e-3 and float(difference[4]) < 2e-2
    assert "old" not in page.read_text() and "| ours, finite differences |" in page.read_text()


def test_times_and_ratios_are_medians_over_the_repetitions():
    seconds = {"ours": [1.0, 2.0, 4.0], "theirs": [3.0, 4.0, 8.0]}
    more = {"products": lambda name: str(len(name))}
    table = spectrum.make_table("title", seconds, more, "note")
    assert table.columns == ("candidate", "seconds", "x ours", "products")
    assert table.rows == [
        ("ours", "2.00 (1.00 to 4.00)", "1.00", "4"),
        ("theirs", "4.00 (3.00 to 8.00)", "2.00", "6"),
    ]


@pytest.mark.parametrize("method", ["ours", "ours, finite differences"])
def test_a_sequence_runs_on_the_problem(method):
    arguments = spectrum.argparse.Namespace(device="cpu", batch=4, size=8, mode="eval")
    problem = spectrum.make_problem(arguments, steps=1)
    quadrature = spectrum.SEQUENCES[method](problem, 2)
    assert quadrature.nodes.numel() == 2
