import pytest
from support.wandb_cases import (
    clean_machine,  # noqa: F401
    new_run,
    record_rows,
    row,
    running_server,  # noqa: F401
)

from experiments import upload
from experiments.tracking.upload import is_uploaded


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("RUNS_ROOT", str(tmp_path / "runs"))
    return tmp_path / "runs"


def test_uploading_needs_no_record_and_happens_once(tmp_path, root, server, capsys):
    for seed in (1, 2):
        directory = new_run(tmp_path, seed)
        record_rows(directory, 3)
    (directory.path / "DONE").write_text("{}")
    assert upload.main([]) == 0
    output = capsys.readouterr().out
    assert output.count("epochs 1 to 3, http") == 2 and "2 of 2 runs uploaded" in output
    assert [run.epochs() for run in server.runs.values()] == [[1, 2, 3], [1, 2, 3]]
    assert sorted(run.exit_code for run in server.runs.values()) == [0, 1]
    assert upload.main([]) == 0
    assert capsys.readouterr().out == "nothing to upload\n"
    # A run that goes on is uploaded again, from where it was.
    directory.append(row(4))
    assert upload.main([]) == 0
    assert sorted(run.epochs() for run in server.runs.values()) == [[1, 2, 3], [1, 2, 3, 4]]


def test_uploading_without_a_key_says_how_to_get_one(tmp_path, capsys):
    record_rows(new_run(tmp_path), 1)
    assert upload.main([]) == 2
    assert "`wandb login` stores" in capsys.readouterr().err


def test_uploading_nothing(server, root, capsys):
    assert upload.main([]) == 2
    assert f"no run below {root}" in capsys.readouterr().err


def test_uploading_to_a_server_that_is_down(tmp_path, server, capsys):
    record_rows(new_run(tmp_path), 1)
    server.stop()
    assert upload.main([]) == 2
    assert f"{server.url} does not answer" in capsys.readouterr().err


def test_a_torn_row_is_no_obstacle(tmp_path, server):
    directory = new_run(tmp_path)
    record_rows(directory, 2)
    with directory.metrics_path.open("a") as file:
        file.write('{"epoch": 3, "tr')
    assert upload.main([]) == 0
    assert [run.epochs() for run in server.runs.values()] == [[1, 2]]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"url": ""}'])
def test_a_damaged_marker_stops_no_upload(content, tmp_path):
    directory = new_run(tmp_path)
    record_rows(directory, 2)
    (directory.path / "wandb").mkdir()
    (directory.path / "wandb" / "uploaded.json").write_text(content)
    assert not is_uploaded(directory.path)
