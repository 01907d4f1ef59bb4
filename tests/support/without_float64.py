"""Prints as JSON what fails on a device that has no float64, as Apple's GPUs have none."""

import json
import sys
import traceback
from functools import partial

import torch
from support import count_waits, pretend_device

from adahessian import AdaHessian, CurvatureStatistics, spectrum


def problem():
    torch.manual_seed(0)
    layers = torch.nn.Linear(5, 4), torch.nn.ReLU(), torch.nn.Linear(4, 3)
    model = pretend_device.to_device(torch.nn.Sequential(*layers))
    x = pretend_device.Pretended(torch.randn(16, 5))
    y = pretend_device.Pretended(torch.randint(3, (16,)))
    return model, lambda: torch.nn.functional.cross_entropy(model(x), y)


def statistics():
    model, loss = problem()
    optimizer = AdaHessian(model.parameters())
    found = CurvatureStatistics(spectrum.layers(model))
    optimizer.register_curvature_hook(found)

    def closure():
        optimizer.zero_grad()
        value = loss()
        value.backward(create_graph=optimizer.needs_graph)
        return value

    for _ in range(3):
        optimizer.step(closure)
    assert found.summary() is not None
    optimizer.curvature_error(closure)


def spectra(way):
    model, loss = problem()
    hessian = spectrum.Hessian(loss, model, curvature=way)
    spectrum.top_eigenvalues(hessian, 2)
    spectrum.trace(hessian)
    spectrum.spectral_density(hessian)


CASES = {name: partial(count_waits.alone, *case) for name, case in count_waits.ALONE.items()}
CASES["statistics"] = statistics
CASES |= {way: partial(spectra, way) for way in ("double_backward", "finite_difference")}

if __name__ == "__main__":
    failed = {}
    pretend_device.has_float64 = False
    with pretend_device.in_use():
        for name, case in CASES.items():
            try:
                case()
            except Exception:
                failed[name] = traceback.format_exc()
    json.dump(failed, sys.stdout, indent=1)
