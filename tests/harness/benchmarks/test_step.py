import json

import pytest
import torch

from adahessian import update
from experiments.benchmarks import harness, intervals, step, zoo
from experiments.benchmarks.launches import launches
from experiments.reports.publish import insert


@pytest.fixture(autouse=True)
def small_machine(tmp_path, monkeypatch):
    """Results go to a folder of the test; the public packages are not there."""

    def missing(name):
        raise ImportError(name)

    monkeypatch.setenv("RUNS_ROOT", str(tmp_path))
    monkeypatch.setattr(harness, "import_module", missing)


def test_the_command_prints_and_writes_its_tables(tmp_path, capsys):
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- bench:begin -->\nold\n<!-- bench:end -->\nafter\n")
    arguments = ["--quick", "--network", "transformer", "--repetitions", "1", "--device", "cpu"]
    assert step.main([*arguments, "--docs", str(page)]) == 0
    output = capsys.readouterr()
    assert "pip install 'adahessian[bench]'" in output.err
    tables = [line for line in output.out.splitlines() if "written:" not in line]
    assert max(len(line) for line in tables) <= 80
    result = json.loads((tmp_path / "benchmarks" / "bench.json").read_text())
    assert result["provenance"]["threads"] == torch.get_num_threads()
    (data,) = result["data"]
    assert list(data["seconds"]) == [
        "SGD", "AdamW", "exact", "exact, every 2", "exact, 1/2 of the batch", "finite difference",
        "finite difference, every 2", "finite difference, 1/2 of the batch",
    ]  # fmt: skip
    assert all(len(times) == 1 and times[0] > 0 for times in data["seconds"].values())
    markdown = page.read_text()
    assert markdown.startswith("before\n") and markdown.endswith("\nafter\n")
    assert (
        "old" not in markdown and "| SGD |" in markdown and "| timm | not installed |" in markdown
    )


def stepper(method, network):
    return harness.Stepper(method, step.problem(network, True, "cpu"), "cpu")


def test_memory_is_that_of_a_step_and_of_the_optimizers_state():
    """The exact way keeps a second graph; the state of AdamW is a copy larger than SGD's."""
    methods = {method.label: method for method in step.methods(quick=True)}
    chosen = ("SGD", "AdamW", "exact", "finite difference")
    peak = {label: step.peak_memory(stepper(methods[label], "resnet20")) for label in chosen}
    params = 4 * sum(p.numel() for p in zoo.resnet20().parameters())
    assert 0.9 * params < peak["AdamW"] - peak["SGD"] < 2 * params
    assert peak["exact"] > 1.8 * peak["SGD"]
    assert peak["SGD"] < peak["finite difference"] < peak["exact"]


def test_ratios_are_taken_within_a_repetition():
    """Load that comes and goes between the repetitions cancels."""
    load = [1.0, 5.0, 2.0]
    result = {
        "title": "a network",
        "seconds": {"SGD": load, "exact": [3 * seconds for seconds in load]},
        "memory": {"SGD": 2**20, "exact": 2**21},
        "launches": {"SGD": {"operations": 180}},
        "missing": ["timm"],
        "too_large": ["torch_optimizer"],
    }
    assert step.cost_table(result, 3).rows == [
        ("SGD", "2000.0", "1.00", "1", "1.00", "180"),
        ("exact", "6000.0", "3.00", "2", "2.00", ""),
        ("timm", "not installed", "", "", "", ""),
        ("torch_optimizer", "out of memory", "", "", "", ""),
    ]


def test_a_page_without_its_marks_is_left_alone(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("<!-- bench:begin -->")
    with pytest.raises(ValueError, match="has no <!-- bench:begin -->"):
        insert(page, "bench", "table")
    assert page.read_text() == "<!-- bench:begin -->"


def test_the_intervals_of_the_papers_table_8(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("<!-- bench-intervals:begin -->\n<!-- bench-intervals:end -->\n")
    arguments = ["--quick", "--repetitions", "1", "--device", "cpu", "--docs", str(page)]
    assert intervals.main(arguments) == 0
    result = json.loads((tmp_path / "benchmarks" / "bench-intervals.json").read_text())
    (table,) = result["tables"]
    assert [row[:3] for row in table["rows"]] == [
        ["ResNet-8", "exact", "SGD"],
        ["ResNet-8", "exact", "Adam"],
        ["ResNet-8", "finite difference", "SGD"],
        ["ResNet-8", "finite difference", "Adam"],
    ]
    assert len(table["rows"]) == 4 and all(len(row) == 8 for row in table["rows"])
    assert "| network | curvature | unit | k = 1 |" in page.read_text()


def test_launches_are_operations_that_compute(monkeypatch):
    x = torch.ones(4)
    found = launches(lambda: (x.view(2, 2).t() + 1).mul_(2), "cpu")
    assert found == {"operations": 2}


def test_a_method_without_memory_is_a_row_and_the_others_go_on(tmp_path, monkeypatch, capsys):
    def peak_memory(stepper):
        if stepper.method.label == "exact":
            raise torch.OutOfMemoryError("too large")
        return 1

    monkeypatch.setattr(step, "peak_memory", peak_memory)
    arguments = ["--quick", "--network", "gpt2", "--repetitions", "1", "--device", "cpu"]
    assert step.main([*arguments, "--only", "exact"]) == 0
    result = json.loads((tmp_path / "benchmarks" / "bench.json").read_text())
    (table,) = result["tables"]  # none of the intervals, of which there is one
    assert ["exact", "out of memory"] in [row[:2] for row in table["rows"]]
    assert [row[0] for row in table["rows"]] == ["SGD", "exact, 1/2 of the batch", "exact"]


def test_only_the_rows_that_are_asked_for(tmp_path):
    arguments = ["--quick", "--network", "transformer", "--repetitions", "1", "--device", "cpu"]
    assert step.main([*arguments, "--only", "difference, every"]) == 0
    result = json.loads((tmp_path / "benchmarks" / "bench.json").read_text())
    assert list(result["data"][0]["seconds"]) == ["SGD", "finite difference, every 2"]


@pytest.mark.parametrize("network", step.NETWORKS)
def test_a_finite_difference_launches_at_most_two_and_a_half_times_what_sgd_does(
    network, monkeypatch
):
    """Of two gradients; the update, the probe and the gates go through all tensors in one call."""
    monkeypatch.setattr(update, "_can_be_read", lambda flags: False)  # as on a device
    methods = {method.label: method for method in step.methods(quick=True)}
    operations = []
    for label in ("SGD", "finite difference"):
        taken = stepper(methods[label], network)
        taken.settle()
        operations.append(launches(taken.step, "cpu")["operations"])
    sgd, ours = operations
    assert ours <= 2.5 * sgd
