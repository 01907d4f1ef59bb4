import json

import pytest
from support.harness import DIGITS, SMALL, complete, small_config

from experiments import run
from experiments.errors import UserError
from experiments.plans.select import select
from experiments.runs.directory import RunDirectory
from experiments.tasks.image_classification import datasets
from experiments.training import session


@pytest.fixture(autouse=True)
def roots(tmp_path, monkeypatch):
    monkeypatch.setenv("RUNS_ROOT", str(tmp_path / "runs"))
    monkeypatch.setenv("DATA_ROOT", str(tmp_path / "data"))
    monkeypatch.setattr("warnings.showwarning", None)  # `main` sets it; put back afterwards


def main(*settings: str) -> int:
    return run.main([str(DIGITS), *SMALL, *settings])


def test_optimizers_and_seeds_as_lists():
    runs = select(str(DIGITS), ["optimizer=sgd,adam", "seed=1,2,3", "epochs=4"])
    chosen = [(config.optimizer_name, config.seed, config.epochs) for config in runs]
    assert chosen == [(name, seed, 4) for name in ("sgd", "adam") for seed in (1, 2, 3)]


def test_what_is_left_out():
    with pytest.raises(UserError, match="which optimizer?.* sgd, adam, adamw, adahessian"):
        select(str(DIGITS), [])
    (config,) = select(str(DIGITS), ["optimizer=sgd"])
    assert config.seed == 1


def test_asking_twice_runs_once_and_says_what_commit_it_came_from(tmp_path, capsys, monkeypatch):
    assert main("optimizer=sgd", "seed=1,2", "epochs=1") == 0
    output = capsys.readouterr().err
    assert "sgd seed 1: epoch 1/1" in output and "sgd seed 2: epoch 1/1" in output
    assert main("optimizer=sgd", "seed=1", "epochs=1") == 0
    assert capsys.readouterr().err.startswith(f"done already: {tmp_path}")
    monkeypatch.setattr(session, "git_state", lambda: {"commit": "0123456789abcdef"})
    main("optimizer=sgd", "seed=1", "epochs=1")
    assert "this is 0123456789)" in capsys.readouterr().err


def test_a_finished_runs_own_configuration_is_the_same_run(tmp_path, capsys):
    main("optimizer=sgd", "seed=3", "epochs=1")
    (path,) = (tmp_path / "runs").glob("*/*/*/*/config.yaml")
    capsys.readouterr()
    assert run.main([str(path)]) == 0
    assert "done already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["optimizer=addam"], "did you mean 'adam'?"),
        (["optimizer=sgd", "seed=x"], "seed = 'x': must be a whole number"),
        (["optimizer=sgd", "epoch=1"], "did you mean 'epochs'?"),
        # Refused before the first of the two trains.
        (["optimizer=adam,sgd", "optimizers.sgd.momentum=-1"], "Invalid momentum"),
    ],
)
def test_a_users_mistake_is_one_message_and_exit_code_2(settings, message, tmp_path, capsys):
    assert main(*settings) == 2
    output = capsys.readouterr().err
    assert output.startswith("error: ") and message in output and "Traceback" not in output
    assert not (tmp_path / "runs").exists()


def test_cifar_without_data_or_network(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(datasets, "can_connect", lambda url: False)
    config = DIGITS.parent.parent / "cifar10" / "resnet20.yaml"
    assert run.main([str(config), "optimizer=adahessian"]) == 2
    output = capsys.readouterr().err
    assert f"{tmp_path}/data/cifar-10-batches-py/data_batch_1 is not there" in output
    assert "`make quickstart` needs no download" in output


def test_a_run_that_explodes_fails_and_the_others_go_on(capsys):
    code = main("optimizer=sgd,adam", "optimizers.sgd.lr=1e30", "epochs=1")
    output = capsys.readouterr().err
    assert code == 1
    assert "learning rate 1e+30" in output and "adam seed 1: epoch 1/1" in output


def test_the_command_in_a_process_of_its_own(tmp_path):
    complete(tmp_path / "runs", "optimizer=adamw", "epochs=1")
    directory = RunDirectory(tmp_path / "runs", small_config("epochs=1", optimizer="adamw"))
    assert json.loads((directory.path / "DONE").read_text())["last_epoch"]["epoch"] == 1
    names = {path.name for path in directory.path.iterdir()} - {"attempts.jsonl"}
    assert names == {"config.yaml", "meta.json", "metrics.jsonl", "checkpoint.pt", "DONE"}


def test_interrupting_says_how_to_go_on(capsys, monkeypatch):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(session, "train", interrupt)
    assert main("optimizer=sgd") == 130
    assert "the same command goes on" in capsys.readouterr().err
