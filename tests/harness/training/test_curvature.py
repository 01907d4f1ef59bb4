"""Measuring the curvature during a training: what is written, and that nothing is disturbed."""

import numpy
import pytest
import torch
from support.harness import DIGITS, SMALL, small_config, until_done

from experiments import run, spectrum
from experiments.runs import checkpoint
from experiments.runs.directory import RunDirectory
from experiments.runs.metrics import read_metrics, without_times
from experiments.tasks.registry import build_task
from experiments.training import curvature, loop

QUICK = ("batches=1", "k=2", "trace_matvecs=4", "num_lanczos_steps=4", "max_matvecs=8")
SPECTRA = ("spectrum_every_epochs=2", *(f"spectrum.{setting}" for setting in QUICK))


def train_here(root, config):
    directory = RunDirectory(root, config)
    with directory.locked():
        loop.train(config, directory, root)
    return directory


def weights(directory):
    return torch.load(directory.path / "checkpoint.pt", weights_only=True)["model"]


def spectra(directory):
    found = {}
    for path in sorted((directory.path / "spectra").iterdir()):
        with numpy.load(path) as file:
            found[path.name] = dict(file)
    return found


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    config = small_config("epochs=4", *SPECTRA)
    return train_here(tmp_path_factory.mktemp("watched"), config)


def test_every_n_epochs_and_at_initialization_there_is_a_file_and_a_row(watched):
    rows = read_metrics(watched.metrics_path)
    files = spectra(watched)
    assert list(files) == ["epoch-0000.npz", "epoch-0002.npz", "epoch-0004.npz"]
    keys = {"top_eigenvalue", "top_eigenvalue_2", "trace", "trace_standard_error", "smallest_node"}
    for row in rows:
        expected = {f"hessian/{key}" for key in keys} | {"time/spectrum_seconds"}
        expected = expected if row["epoch"] % 2 == 0 else set()
        assert {k for k in row if "hessian" in k or "spectrum" in k} == expected
    for row in rows[1::2]:
        file = files[f"epoch-{row['epoch']:04d}.npz"]
        assert file["epoch"] == row["epoch"] and file["images"] == 128
        assert file["eigenvalues"].tolist() == [
            row["hessian/top_eigenvalue"], row["hessian/top_eigenvalue_2"]
        ]  # fmt: skip
        assert file["trace"] == row["hessian/trace"]
        assert file["nodes"].min() == row["hessian/smallest_node"]
        assert file["nodes"].shape == file["weights"].shape == (1, 4)
        assert numpy.trapezoid(file["density"], file["grid"]) == pytest.approx(1, abs=1e-6)


def test_the_training_is_bitwise_undisturbed(watched, tmp_path):
    plain = train_here(tmp_path, small_config("epochs=4"))
    assert plain.name == watched.name, "the spectrum must not enter the signature"
    for mine, other in zip(
        read_metrics(plain.metrics_path), read_metrics(watched.metrics_path), strict=True
    ):
        assert mine.items() - other.items() == {
            (key, value) for key, value in mine.items() if key.startswith("time/")
        }
    assert all(map(torch.equal, weights(plain).values(), weights(watched).values()))


def test_the_command_finds_what_the_training_wrote(watched, capsys):
    assert spectrum.main([str(watched.path), *QUICK]) == 0
    with numpy.load(watched.path / "spectrum.npz") as file:
        afterwards = dict(file)
    during = spectra(watched)["epoch-0004.npz"]
    assert afterwards.keys() == during.keys()
    for key in afterwards.keys() - {"settings"}:
        assert numpy.array_equal(afterwards[key], during[key]), key


@pytest.mark.parametrize("place", ["save", "record_spectrum"])
def test_resumed_it_writes_the_same_again(place, watched, tmp_path, monkeypatch):
    """Stopped after each spectrum: before the row is there, or before the checkpoint is."""
    module = loop if place == "save" else curvature
    original, calls = getattr(module, place), []

    def interrupted(*arguments, **named):
        value = original(*arguments, **named)
        calls.append(1)
        if place == "save" or (value and len(calls) % 2):
            if len(calls) % 2:
                raise KeyboardInterrupt
        return value

    monkeypatch.setattr(module, place, interrupted)
    config = small_config("epochs=4", "checkpoint_every_epochs=2", *SPECTRA)
    directory, sessions = until_done(lambda: train_here(tmp_path, config))
    assert sessions > 1
    for mine, other in zip(
        read_metrics(directory.metrics_path), read_metrics(watched.metrics_path), strict=True
    ):
        assert without_times(mine) == without_times(other)
    for name, file in spectra(watched).items():
        again = spectra(directory)[name]
        assert all(numpy.array_equal(value, again[key]) for key, value in file.items()), name
    assert not list(directory.path.glob("**/*tmp*"))


def test_model_modes_and_generators_are_as_before():
    config = small_config()
    task = build_task(config, torch.device("cpu"), None)
    model = task.build_model().eval()
    model.blocks[0].bn1.train()
    next(model.parameters()).grad = torch.ones_like(next(model.parameters()))
    modes = [module.training for module in model.modules()]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    random = checkpoint.random_state()["cpu"]
    settings = small_config(*SPECTRA).spectrum
    curvature.compute_spectrum(task, model, 0, settings)
    assert modes == [module.training for module in model.modules()]
    assert all(map(torch.equal, state.values(), model.state_dict().values()))
    assert torch.equal(random, checkpoint.random_state()["cpu"])
    assert [p.grad is not None for p in model.parameters()].count(True) == 1

    next(model.parameters()).data.fill_(float("inf"))
    with pytest.raises(RuntimeError, match="not finite"):
        curvature.compute_spectrum(task, model, 0, settings)
    assert modes == [module.training for module in model.modules()]
    assert torch.equal(random, checkpoint.random_state()["cpu"])


def test_a_spectrum_that_cannot_be_computed_ends_no_training(tmp_path):
    config = small_config(*SPECTRA)
    task = build_task(config, torch.device("cpu"), None)
    model = task.build_model()
    model.linear.bias.data.fill_(float("nan"))
    with pytest.warns(UserWarning, match="no spectrum after epoch 2: .* is not finite"):
        assert curvature.record_spectrum(config, tmp_path, task, model, 2) == {}
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            ["spectrum_every_epochs=1", "spectrum.k=999999"],
            "k = 999999 for the spectrum: the model has ",
        ),
        (["spectrum.batchs=3"], "unknown key 'batchs'; did you mean 'batches'?"),
        (["spectrum.trace_matvecs=3"], "spectrum.trace_matvecs = 3: "),
        (["spectrum_every_epochs=-1"], "spectrum_every_epochs = -1: "),
    ],
)
def test_a_users_mistake_is_one_message_and_exit_code_2(
    settings, message, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("RUNS_ROOT", str(tmp_path))
    monkeypatch.setattr("warnings.showwarning", None)  # `main` sets it; put back afterwards
    assert run.main([str(DIGITS), *SMALL, "optimizer=sgd", *settings]) == 2
    output = capsys.readouterr().err
    assert "error: " in output and message in output
