"""AdaHessian the slow way: the paper's formulas with the dense Hessian, plain loops, float64.

The oracle of the optimizer's tests. It shares no code with the library: the Hessian comes from
``torch.autograd.functional.hessian``, blocks are built by counting elements, nothing is in place.
Only the probes are taken from the library, because a comparison needs the same ones.
"""

import itertools
import math

import torch

from adahessian import probes


class ReferenceAdaHessian:
    """Steps a list of float64 parameters on a loss given as a function of them.

    Args:
        params: the initial parameters (copied).
        options: the optimizer's options, one dict for each parameter.
    """

    def __init__(self, params, options):
        self.params = [p.detach().clone().double() for p in params]
        self.options = options
        self.exp_avg = [torch.zeros_like(p) for p in self.params]
        self.exp_hessian_diag_sq = [torch.zeros_like(p) for p in self.params]
        self.num_steps = 0
        self.num_refreshes = 0

    def step(self, loss_function):
        """Take one step on ``loss_function(*params)``."""
        params = tuple(p.clone().requires_grad_() for p in self.params)
        grads = torch.autograd.grad(
            loss_function(*params), params, allow_unused=True, materialize_grads=True
        )
        if self.num_steps % self.options[0].get("update_interval", 1) == 0:
            self._refresh(loss_function, params)
        self.num_steps += 1
        new_params = []
        for i, (p, g) in enumerate(zip(self.params, grads, strict=True)):
            o = self.options[i]
            beta1, beta2 = o.get("betas", (0.9, 0.999))
            lr, eps = o.get("lr", 0.15), o.get("eps", 1e-4)
            if o.get("maximize", False):
                g = -g
            self.exp_avg[i] = beta1 * self.exp_avg[i] + (1 - beta1) * g
            m_hat = self.exp_avg[i] / (1 - beta1**self.num_steps)
            v_hat = self.exp_hessian_diag_sq[i] / (1 - beta2**self.num_refreshes)
            denominator = v_hat.sqrt() ** o.get("hessian_power", 1.0) + eps
            decay = o.get("weight_decay", 0.0)
            new_params.append(p - lr * (m_hat / denominator + decay * p))
        self.params = new_params

    def _refresh(self, loss_function, params):
        hessian = dense_hessian(loss_function, params)
        o = self.options[0]
        num_samples = o.get("num_samples", 1)
        samples = []
        for sample in range(num_samples):
            z = probes.rademacher_like(
                params, seed=o.get("seed", 0), step=self.num_steps, sample=sample
            )
            z = torch.cat([zi.reshape(-1) for zi in z])
            samples.append(z * (hessian @ z))
        self.num_refreshes += 1
        start = 0
        for i, p in enumerate(params):
            o = self.options[i]
            beta2 = o.get("betas", (0.9, 0.999))[1]
            of_tensor = [s[start : start + p.numel()] for s in samples]
            start += p.numel()
            if o.get("averaging", "abs") == "abs":
                of_tensor = [s.abs() for s in of_tensor]
            mean = sum(of_tensor) / num_samples
            d = torch.zeros_like(mean)
            for block in blocks(tuple(p.shape), o.get("block_size", "kernel")):
                d[block] = sum(mean[j] for j in block) / len(block)
            d = d.view(p.shape)
            self.exp_hessian_diag_sq[i] = beta2 * self.exp_hessian_diag_sq[i] + (1 - beta2) * d * d


def dense_hessian(loss_function, params):
    """Return the Hessian over all parameters, flattened and joined: shape (n, n)."""
    rows = torch.autograd.functional.hessian(loss_function, tuple(params))
    return torch.cat(
        [
            torch.cat([h.reshape(p.numel(), -1) for h in row], dim=1)
            for p, row in zip(params, rows, strict=True)
        ]
    )


def blocks(shape, block_size):
    """Return the blocks as lists of flat indices."""
    numel = math.prod(shape)
    if isinstance(block_size, int):
        return [list(range(s, min(s + block_size, numel))) for s in range(0, numel, block_size)]
    kept = len(shape)  # how many leading dims tell blocks apart
    if block_size in ("kernel", "row") and len(shape) >= 3:
        kept = 2
    elif block_size == "row" and len(shape) == 2:
        kept = 1
    found = {}
    for flat, place in enumerate(itertools.product(*(range(n) for n in shape))):
        found.setdefault(place[:kept], []).append(flat)
    return list(found.values())
