import json
import shutil

import pytest

from experiments.benchmarks import compiled, gpu, gpu_report, gpu_tests, one_rank
from experiments.benchmarks.gpu import PARTS

DRY = ["--device", "cpu", "--quick"]
QUICKEST = ("tests", "one-rank")
CLEAN = {"commit": "c" * 40, "dirty": False, "torch": "2.11"}


def dry_run(folder, *parts):
    status = gpu.main([*DRY, "--results", str(folder), "--budget", "3000", "--part", *parts])
    contents = [json.loads(file.read_text()) for file in folder.glob("cpu.*.json")]
    results = {content["part"]: content for content in contents}
    assert {name: found["failure"] for name, found in results.items()} == dict.fromkeys(parts)
    assert all(found["tables"] for found in results.values()) and status == 0
    return results


def test_a_dry_run_writes_a_file_for_each_part(tmp_path):
    found = dry_run(tmp_path, *QUICKEST)
    (table,) = found["tests"]["tables"]
    file, passed, failed, *_ = table["rows"][-1]
    assert (file, failed) == ("all", "0") and int(passed) > 5
    assert all(row[-1] == "0.0e+00" for row in found["one-rank"]["tables"][0]["rows"])


@pytest.mark.slow
def test_a_dry_run_of_everything_else(tmp_path):
    dry_run(tmp_path, *(part.name for part in PARTS if part.name not in QUICKEST))


@pytest.fixture
def made(monkeypatch):
    """Parts are not run, but counted."""
    parts = []

    def run(part, device, quick, limit, origin):
        parts.append(part.name)
        failure = "no GPU" if parts.count("tests") == 1 and part.name == "tests" else None
        return {"part": part.name, "failure": failure, "seconds": 1.0, "provenance": origin}

    monkeypatch.setattr(gpu, "run", run)
    monkeypatch.setattr(gpu, "provenance", lambda device: CLEAN)
    return parts


def test_it_goes_on_where_it_stopped(made, tmp_path, monkeypatch, capsys):
    """What failed or is missing is run; what is there of this commit and torch is not."""
    chosen = ["--results", str(tmp_path), "--part", "tests", "spectrum"]
    assert gpu.main([*DRY, *chosen]) == 1
    assert "incomplete: tests" in capsys.readouterr().err
    assert gpu.main([*DRY, *chosen]) == 0
    assert made == ["tests", "spectrum", "tests"]
    monkeypatch.setattr(gpu, "provenance", lambda device: {**CLEAN, "commit": "d" * 40})
    assert gpu.main([*DRY, *chosen]) == 0
    assert made[3:] == ["tests", "spectrum"]


def test_no_part_is_started_when_the_budget_is_spent(made, tmp_path, capsys):
    assert gpu.main([*DRY, "--results", str(tmp_path), "--budget", "5"]) == 1
    assert made == [] and "the same command goes on" in capsys.readouterr().out


def test_a_part_that_hangs_is_stopped_and_one_that_fails_says_why(tmp_path):
    part = gpu.Part("tests", "gpu_tests")
    found = gpu.run(part, "cpu", True, 0.1, CLEAN)
    assert found["failure"] == "stopped after 0 s" and found["provenance"] == CLEAN
    found = gpu.run(gpu.Part("no", "no_such_module"), "cpu", True, 60, CLEAN)
    assert "no_such_module" in found["failure"] and found["tables"] == []


def test_without_a_gpu_only_a_dry_run(capsys):
    with pytest.raises(SystemExit):
        gpu.main(["--device", "cpu"])
    assert "--quick is a dry run" in capsys.readouterr().err


def test_the_page_holds_the_committed_results(tmp_path):
    """Regenerate it with `python -m experiments.benchmarks.gpu_report`."""
    page = tmp_path / "gpu.md"
    shutil.copy(gpu_report.PAGE, page)
    assert gpu_report.main(["--docs", str(page)]) == 0
    assert page.read_text() == gpu_report.PAGE.read_text()


def test_failures_and_parts_without_results_are_said():
    origin = {"machine": "a GPU", "threads": 1, "cores": 1, "load": 0, **CLEAN, "date": "today"}
    content = {
        "tables": [], "failure": "stopped after 9 s", "command": "python -m x", "seconds": 9.0,
        "provenance": origin,
    }  # fmt: skip
    text = gpu_report.render([content])
    assert "python -m x: stopped after 9 s." in text and "a GPU, 1 of 1 cores" in text
    assert "Not measured yet." in gpu_report.render([])


def test_outcomes_of_tests(tmp_path):
    report = tmp_path / "report.xml"
    report.write_text(
        '<testsuites><testsuite><testcase classname="tests.library.test_a" name="good"/>'
        '<testcase classname="tests.library.test_a" name="bad"><failure message="no&#10;more"/>'
        '</testcase><testcase classname="" name="tests.library.test_b"><error message="collection '
        "failure\">x\nE   ModuleNotFoundError: No module named 'y'</error></testcase>"
        "</testsuite></testsuites>"
    )
    found = gpu_tests.outcomes(report)
    assert found == [
        ("test_a", "good", "passed", ""),
        ("test_a", "bad", "failed", "no"),
        ("test_b", "tests.library.test_b", "not collected",
         "ModuleNotFoundError: No module named 'y'"),
    ]  # fmt: skip
    counts, failures = gpu_tests.tables(found, "cuda")
    assert counts.rows[-1] == ("all", "1", "1", "0", "1") and len(failures.rows) == 2


def test_compiled_steps_are_beside_their_own_eager_ones():
    seconds = {"SGD": [2.0], "SGD, compiled": [1.0], "SGD, whole step captured": [0.5]}
    rows = compiled.table("title", seconds, {"AdamW, compiled": "an error"}, 1).rows
    assert [row[2:] for row in rows] == [
        ("1.00", "1.00"),
        ("0.50", "2.00"),
        ("0.25", "4.00"),
        ("", ""),
    ]


def test_every_way_of_one_process_has_one_to_be_compared_with():
    assert {curvature for _, curvature, _ in one_rank.WAYS.values()} <= one_rank.WAYS.keys()
