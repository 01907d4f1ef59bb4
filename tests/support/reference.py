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

    Attributes:
        exp_hessian_diag_sq: the average of the curvature, whatever ``second_moment`` makes of it.
    """

    def __init__(self, params, options):
        self.params = [p.detach().clone().double() for p in params]
        self.options = options
        self.exp_avg = [torch.zeros_like(p) for p in self.params]
        self.exp_hessian_diag_sq = [torch.zeros_like(p) for p in self.params]
        self.num_steps = 0
        self.num_refreshes = 0
        self.last_refresh = 0  # the number of its step, from 1

    def step(self, loss_function):
        """Take one step on ``loss_function(*params)``."""
        params = tuple(p.clone().requires_grad_() for p in self.params)
        grads = torch.autograd.grad(
            loss_function(*params), params, allow_unused=True, materialize_grads=True
        )
        if self.num_steps % self.options[0].get("update_interval", 1) == 0:
            self._refresh(loss_function, params)
        self.num_steps += 1
        norm = math.sqrt(sum((g**2).sum().item() for g in grads))
        new_params = []
        for i, (p, g) in enumerate(zip(self.params, grads, strict=True)):
            o = self.options[i]
            if o.get("max_grad_norm") is not None:
                g = g * min(1.0, o["max_grad_norm"] / (norm + 1e-6))
            beta1, beta2 = o.get("betas", (0.9, 0.999))
            lr, eps = o.get("lr", 0.15), o.get("eps", 1e-4)
            if o.get("maximize", False):
                g = -g
            self.exp_avg[i] = beta1 * self.exp_avg[i] + (1 - beta1) * g
            m_hat, v_hat = self.exp_avg[i], self.exp_hessian_diag_sq[i]
            correction = o.get("bias_correction", "refreshes")
            if correction is not None:
                counts = {"refreshes": self.num_refreshes, "steps": self.last_refresh}
                m_hat = m_hat / (1 - beta1**self.num_steps)
                v_hat = v_hat / (1 - beta2 ** counts[correction])
            power, moment = o.get("hessian_power", 1.0), o.get("second_moment", "rms")
            if moment == "signed":
                denominator = torch.maximum(v_hat, torch.zeros_like(v_hat)) ** power
                denominator = torch.maximum(denominator, torch.full_like(v_hat, eps))
            else:
                size = v_hat.sqrt() if moment == "rms" else v_hat
                denominator = size**power + eps
            update, clip = m_hat / denominator, o.get("update_clip")
            if clip is not None:
                update = torch.tensor(
                    [min(max(u, -clip), clip) for u in update.flatten().tolist()],
                    dtype=update.dtype,
                ).view(update.shape)
            decay = o.get("weight_decay", 0.0)
            new_params.append(p - lr * (update + decay * p))
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
        self.last_refresh = self.num_steps + 1
        start = 0
        for i, p in enumerate(params):
            o = self.options[i]
            beta2 = o.get("betas", (0.9, 0.999))[1]
            of_tensor = [s[start : start + p.numel()] for s in samples]
            start += p.numel()
            if o.get("maximize", False):  # it descends on the negative loss
                of_tensor = [-s for s in of_tensor]
            if o.get("averaging", "abs") == "abs":
                of_tensor = [s.abs() for s in of_tensor]
            mean = sum(of_tensor) / num_samples
            d = torch.zeros_like(mean)
            for block in blocks(tuple(p.shape), o.get("block_size", "kernel"), o.get("axes")):
                d[block] = sum(mean[j] for j in block) / len(block)
            d = d.view(p.shape)
            averaged = {"rms": d * d, "mean_abs": d.abs(), "signed": d}
            news = averaged[o.get("second_moment", "rms")]
            self.exp_hessian_diag_sq[i] = beta2 * self.exp_hessian_diag_sq[i] + (1 - beta2) * news


def dense_hessian(loss_function, params):
    """Return the Hessian over all parameters, flattened and joined: shape (n, n)."""
    rows = torch.autograd.functional.hessian(loss_function, tuple(params))
    return torch.cat(
        [
            torch.cat([h.reshape(p.numel(), -1) for h in row], dim=1)
            for p, row in zip(params, rows, strict=True)
        ]
    )


def blocks(shape, block_size, axes=None):
    """Return the blocks as lists of flat indices.

    ``axes`` are the dims in the order (out, in, kernel) of another layout than torch's.
    """
    numel = math.prod(shape)
    if axes is not None:
        flat = torch.arange(numel).view(shape).permute(axes)
        order = flat.reshape(-1).tolist()
        return [[order[j] for j in block] for block in blocks(tuple(flat.shape), block_size)]
    if block_size is None:
        return [[j] for j in range(numel)]
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


class LifeCycleReference:
    """What a training with freezing, groups, intervals and skipped steps comes to; float64.

    The slow twin of what decides who takes part: a dict for each parameter instead of groups, and
    every rule written out. Averages are element by element, magnitudes.
    """

    def __init__(self, params, options):
        self.params, self.groups, self.group_of = [], [], []
        self.requires_grad, self.counts, self.grad = [], [], []
        self.exp_avg, self.exp_hessian_diag_sq = {}, {}
        self.missed = set()
        self.options = options
        self.add_group(params, options)

    def add_group(self, params, options):
        counters = {"step": 0, "last": None}
        if self.groups:
            counters = {key: self.groups[0][key] for key in counters}
        self.groups.append({"weight_decay": 0.0, **options, **counters})
        for p in params:
            self.params.append(p.detach().clone())
            self.group_of.append(len(self.groups) - 1)
            self.requires_grad.append(True)
            self.counts.append([0, 0, 0])  # steps, refreshes, the step of the last refresh
            self.grad.append(None)

    def zero_grad(self, set_to_none):
        for i, g in enumerate(self.grad):
            self.grad[i] = None if g is None or set_to_none else torch.zeros_like(g)

    def _group_is_due(self, group):
        return group["last"] is None or group["step"] - group["last"] >= group["update_interval"]

    def _due(self):
        return [
            i
            for i, g in enumerate(self.group_of)
            if self.requires_grad[i] and (self._group_is_due(self.groups[g]) or i in self.missed)
        ]

    def needs_graph(self):
        return bool(self._due())

    def skip(self, used):
        for i in used:
            self.grad[i] = torch.full_like(self.params[i], math.nan)

    def step(self, loss_function, used):
        params = [p.clone().requires_grad_() for p in self.params]
        loss = loss_function(params, used)
        for i, g in zip(used, torch.autograd.grad(loss, [params[i] for i in used]), strict=True):
            self.grad[i] = g if self.grad[i] is None else self.grad[i] + g
        due = self._due()
        taking_part = [i for i in due if self.grad[i] is not None]
        d = self._curvature(loss_function, used, due, taking_part) if taking_part else {}

        norm = self.options["max_grad_norm"]
        if norm is not None:
            total = math.sqrt(sum((g**2).sum().item() for g in self.grad if g is not None))
            self.grad = [
                None if g is None else g * min(1.0, norm / (total + 1e-6)) for g in self.grad
            ]
        regular = [self._group_is_due(group) for group in self.groups]
        for i, g in enumerate(self.group_of):
            if self.grad[i] is not None and self.requires_grad[i]:
                self._step_one(i, self.groups[g], d.get(i), regular[g])
        for g, group in enumerate(self.groups):
            of_group = [i for i, its in enumerate(self.group_of) if its == g]
            can_train = [i for i in of_group if self.requires_grad[i]]
            unused = bool(can_train) and all(self.grad[i] is None for i in can_train)
            unused = unused and any(grad is not None for grad in self.grad)
            if regular[g] and (any(i in d for i in of_group) or unused):
                group["last"] = group["step"]
            group["step"] += 1

    def _curvature(self, loss_function, used, due, taking_part):
        """|z · Hz| by the Hessian's rows and columns of those that are refreshed."""
        chosen = [i for i in taking_part if i in used]

        def of_chosen(*values):
            params = [p.clone() for p in self.params]
            for i, value in zip(chosen, values, strict=True):
                params[i] = value
            return loss_function(params, used)

        hessian = dense_hessian(of_chosen, [self.params[i] for i in chosen]) if chosen else None
        d = {i: torch.zeros_like(self.params[i]) for i in taking_part}
        for sample in range(self.options["num_samples"]):
            z = probes.rademacher_like(
                [self.params[i] for i in due],
                seed=self.options["seed"],
                step=self.groups[0]["step"],
                sample=sample,
                tensor_indices=due,
            )
            z = dict(zip(due, z, strict=True))
            if chosen:
                flat = torch.cat([z[i] for i in chosen])
                estimate = (flat * (hessian @ flat)).abs() / self.options["num_samples"]
                sizes = [len(self.params[i]) for i in chosen]
                for i, part in zip(chosen, estimate.split(sizes), strict=True):
                    d[i] = d[i] + part
        return d

    def _step_one(self, i, group, d, regular):
        count = self.counts[i]
        if d is None and count[1] == 0:
            if not regular:
                self.missed.add(i)
            return
        starved = count[0] - count[2] >= 4 * group["update_interval"]  # before this step
        count[0] += 1
        if d is not None:
            count[1] += 1
            count[2] = count[0]
            self.missed.discard(i)
            v = self.exp_hessian_diag_sq.get(i, torch.zeros_like(d))
            self.exp_hessian_diag_sq[i] = 0.999 * v + 0.001 * d * d
        m = self.exp_avg.get(i, torch.zeros_like(self.params[i]))
        self.exp_avg[i] = 0.9 * m + 0.1 * self.grad[i]
        m_hat = self.exp_avg[i] / (1 - 0.9 ** count[0])
        v_hat = self.exp_hessian_diag_sq[i] / (1 - 0.999 ** count[1])
        step = m_hat / (v_hat.sqrt() + 1e-4) + group["weight_decay"] * self.params[i]
        self.params[i] = self.params[i] - group["lr"] * step
        if d is None and not regular and starved:
            self.missed.add(i)
