"""The command that computes a run's spectrum from its files."""

import os

import numpy
import pytest
import torch
from support.harness import complete
from support.text import small_home, train_small

from experiments import spectrum
from experiments.training.restore import restore

QUICK = ["batches=2", "k=2", "trace_matvecs=6", "num_lanczos_steps=5", "max_matvecs=12"]


@pytest.fixture(scope="module")
def run_directory(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    complete(root, "optimizer=sgd", "epochs=1", "batch_size=64")
    (path,) = root.glob("*/*/*/*/DONE")
    return path.parent


@pytest.fixture(autouse=True)
def roots(tmp_path, monkeypatch):
    monkeypatch.setenv("RUNS_ROOT", str(tmp_path))
    monkeypatch.setenv("DATA_ROOT", str(tmp_path / "data"))


def test_numbers_and_picture_are_written(run_directory, capsys):
    assert spectrum.main([str(run_directory), *QUICK]) == 0
    output = capsys.readouterr()
    assert "after epoch 1" in output.out and "128 images, train mode" in output.out
    assert "(not converged)" in output.out and "max_matvecs=N allows more" in output.out
    assert all(len(line) <= 80 for line in output.out.splitlines() if "spectrum." not in line)
    assert (run_directory / "spectrum.png").stat().st_size > 20_000
    with numpy.load(run_directory / "spectrum.npz") as file:
        found = dict(file)
    assert found["eigenvalues"].shape == found["residuals"].shape == (2,)
    assert found["eigenvalues"][0] > found["eigenvalues"][1] > 0
    assert found["nodes"].shape == found["weights"].shape == (1, 5)
    assert numpy.trapezoid(found["density"], found["grid"]) == pytest.approx(1, abs=1e-6)
    assert f"{float(found['trace']):.6g} ±" in output.out
    assert '"mode": "train"' in str(found["settings"])
    assert not list(run_directory.glob("*tmp*"))


def test_asking_again_gives_the_same_numbers(run_directory):
    found = []
    for draws in (0, 3):
        torch.rand(draws)
        spectrum.main([str(run_directory), *QUICK, "mode=eval"])
        with numpy.load(run_directory / "spectrum.npz") as file:
            found.append(dict(file))
    for key, value in found[0].items():
        assert numpy.array_equal(value, found[1][key]), key


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return small_home(tmp_path_factory)


@pytest.mark.parametrize("name", ["translation", "language"])
def test_runs_on_text_have_one_too(name, home, tmp_path, monkeypatch, capsys):
    """Of the loss that is trained, a mean over all tokens: against differences of gradients."""
    monkeypatch.setenv("DATA_ROOT", str(home))
    path = train_small(home, name, tmp_path).path
    words = ["batches=2", "k=1", "trace_matvecs=6", "num_lanczos_steps=5", "max_matvecs=200"]
    assert spectrum.main([str(path), *words, "mode=eval"]) == 0
    with numpy.load(path / "spectrum.npz") as file:
        found = dict(file)
    task, model, _ = restore(path, "cpu")
    batches = [batch for batch, _ in zip(task.training_batches(0, 0), range(2), strict=False)]
    model.double().eval()
    sums = [task.loss(model, batch)[1]["weight"] for batch in batches]
    assert found["tokens"] == sum(sums) and f"{int(sum(sums))} tokens" in capsys.readouterr().out
    params = list(model.parameters())

    def gradient():
        total = sum(task.loss(model, batch)[0] * w for batch, w in zip(batches, sums, strict=True))
        return [g.clone() for g in torch.autograd.grad(total / sum(sums), params)]

    def product(direction, h=1e-6):
        found = []
        for sign in (1, -1):
            with torch.no_grad():
                torch._foreach_add_(params, direction, alpha=sign * h)
            found.append(gradient())
            with torch.no_grad():
                torch._foreach_sub_(params, direction, alpha=sign * h)
        return [(a - b) / (2 * h) for a, b in zip(*found, strict=True)]

    torch.manual_seed(0)
    direction = [torch.randn_like(p) for p in params]
    for _ in range(60):  # power iteration, to the eigenvalue of the largest magnitude
        norm = torch.stack([d.square().sum() for d in direction]).sum().sqrt()
        direction = [d / norm for d in direction]
        turned = product(direction)
        value = float(sum((a * b).sum() for a, b in zip(direction, turned, strict=True)))
        direction = turned
    assert found["eigenvalues"][0] == pytest.approx(value, rel=0.02)


def test_the_newest_finished_run_is_the_default(run_directory, monkeypatch):
    root = run_directory.parents[3]
    monkeypatch.setenv("RUNS_ROOT", str(root))
    assert spectrum.find_run([]) == run_directory
    other = root / "digits" / "resnet8" / "adam" / "older-s1"
    other.mkdir(parents=True)
    (other / "DONE").touch()
    os.utime(other / "DONE", (0, 0))
    (other.parent / "unfinished-s1").mkdir()
    assert spectrum.find_run([]) == run_directory


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "no finished run below"),
        (["nowhere"], "nowhere is no run's directory: it has no config.yaml"),
        (["a", "b"], "one run directory at a time, got a b"),
        (["batchs=3"], "unknown key 'batchs'; did you mean 'batches'?"),
        (["k=0"], "k = 0: Input should be greater than or equal to 1"),
        (["mode=test"], "mode = 'test': Input should be 'train' or 'eval'"),
        (["curvature=fd"], "curvature = 'fd'"),
        (["trace_matvecs=2"], "trace_matvecs = 2"),
        (["k=["], "not valid YAML"),
        (["{run}", "k=999999", *QUICK[2:]], "k = 999999 for the spectrum: the model has "),
    ],
)
def test_a_users_mistake_is_one_message_and_exit_code_2(words, message, run_directory, capsys):
    assert spectrum.main([word.format(run=run_directory) for word in words]) == 2
    output = capsys.readouterr().err
    assert output.startswith("error: ") and message in output


def test_a_run_without_a_checkpoint(run_directory, tmp_path, capsys):
    (tmp_path / "config.yaml").write_text((run_directory / "config.yaml").read_text())
    assert spectrum.main([str(tmp_path)]) == 2
    assert "has no checkpoint that can be read" in capsys.readouterr().err


def test_interrupting_writes_nothing(run_directory, monkeypatch, capsys):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(spectrum, "compute", interrupt)
    (run_directory / "spectrum.npz").unlink(missing_ok=True)
    assert spectrum.main([str(run_directory)]) == 130
    assert "nothing was written" in capsys.readouterr().err
    assert not (run_directory / "spectrum.npz").exists()
