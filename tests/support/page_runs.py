"""Runs for the tests of the report page: files as trainings leave them, without the trainings."""

import json
from pathlib import Path

import numpy
import torch
from support.harness import finish_run, small_config

from adahessian import spectrum

CURVATURE = {
    "hessian/top_eigenvalue": 4.0,
    "hessian/top_eigenvalue_2": 2.0,
    "hessian/trace": 9.0,
    "hessian/trace_standard_error": 0.5,
    "hessian/trace_estimate": 8.0,
    "hessian/trace_estimate_standard_error": 1.0,
    "hessian/frobenius_norm": 5.0,
    "hessian/negative_share": 0.25,
    "hessian/layer_trace/conv": 7.0,
    "hessian/layer_trace/linear": -0.5,
    "hessian/signal_to_noise/block_1": 0.5,
    "hessian/signal_to_noise/block_2": 0.7,
    "time/curvature_share": 0.4,
}

HOSTILE = '</script><script>alert("x")</script><img src=http://x.invalid/y onerror=alert(1)>'


def write_spectra(folder: Path, epochs: tuple[int, ...], largest: float) -> None:
    """Spectra of known matrices, by the library's own Lanczos: one large eigenvalue, a bulk."""
    folder.mkdir()
    for epoch in epochs:
        values = torch.linspace(-0.2, 1, 60) / (1 + epoch)
        values[-1] = largest / (1 + epoch)
        matrix = spectrum.SymmetricMatvec(lambda v, values=values: values * v, 60)
        quadrature = spectrum.lanczos_quadrature(matrix, 20)
        trace = spectrum.trace(matrix, 20)
        grid, density = spectrum.smooth(quadrature)
        numpy.savez(
            folder / f"epoch-{epoch:04d}.npz", grid=grid, density=density, trace=trace.value,
            trace_standard_error=trace.standard_error,
            eigenvalues=spectrum.top_eigenvalues(matrix, 2).eigenvalues,
        )  # fmt: skip


def write_runs(root: Path) -> None:
    """Two optimizers with curvature and three seeds, one without, and one run unfinished."""
    for optimizer, last in (("sgd", 0.9), ("adahessian", 0.95), ("adam", 0.7)):
        for seed in (1, 2, 3):
            config = small_config(optimizer=optimizer, seed=seed)
            more = {} if optimizer == "adam" else CURVATURE
            accuracies = [0.3, 0.6, last + seed / 100]
            step = {"sgd": 0.01, "adam": 0.011, "adahessian": 0.03}[optimizer]
            run = finish_run(root, config, accuracies, step, **more)
            for step in (50, 100, 150) if optimizer != "adam" else ():
                run.append_step(step_row(step, optimizer))
            if more and seed == 1:
                write_spectra(run.path / "spectra", (0, 1, 3), 6.0)
    unfinished = finish_run(root, small_config(seed=7), [0.5])
    (unfinished.path / "DONE").unlink()
    unfinished.append_step(step_row(50, "sgd"))
    with unfinished.metrics_path.open("a") as file:
        file.write('{"epoch": 2, "test/acc')


def step_row(step: int, optimizer: str) -> dict[str, float]:
    """As a training logs it, with two layers."""
    row = {"step": step, "epoch": step / 100, "learning_rate": 0.1, "step/loss": 100 / step}
    for place, layer in enumerate(("", "/conv", "/linear"), 1):
        row[f"step/gradient_norm{layer}"] = 0.5 / place
        row[f"step/weight_norm{layer}"] = 10.0 / place
        row[f"step/update_norm{layer}"] = 0.01 * place
        row[f"step/update_ratio{layer}"] = 0.001 * place
    if optimizer == "adahessian":
        for name in ("denominator", "curvature"):
            row |= {f"step/{name}/{key}": 10.0**at for at, key in enumerate(("p05", "p50", "p95"))}
    return row


def write_hostile_run(root: Path) -> None:
    """A run whose files hold markup wherever they hold text."""
    run = finish_run(root, small_config(), [0.5], **CURVATURE)
    write_spectra(run.path / "spectra", (0, 1), 6.0)
    config = (run.path / "config.yaml").read_text()
    (run.path / "config.yaml").write_text(config.replace("  sgd:", f"  {json.dumps(HOSTILE)}:"))
    meta = json.loads((run.path / "meta.json").read_text())
    for key in ("dataset", "model", "optimizer"):
        meta[key] = HOSTILE
    for key in ("commit", "host", "device", "torch", "python", "started", "command", "job"):
        meta["sessions"][0][key] = HOSTILE
    (run.path / "meta.json").write_text(json.dumps(meta))
    row = json.loads(run.metrics_path.read_text().splitlines()[0])
    row[f"hessian/layer_trace/{HOSTILE}"] = 1.0
    run.append_step({**step_row(50, "sgd"), f"step/update_ratio/{HOSTILE}": 0.1})
    run.metrics_path.write_text(json.dumps(row) + "\n")
