"""Muon for matrices and AdamW for the rest, as one optimizer."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn


class MuonAdamW(torch.optim.Optimizer):
    """`torch.optim.Muon` for weights of two or more dimensions, `torch.optim.AdamW` for the others.

    Muon (Keller Jordan et al., 2024) is made for the matrices of hidden layers. A convolution's
    weight is the matrix (out, in · height · width), as there. Embeddings and the last layer belong
    to AdamW: say so by `use_muon=False` in their parameter group.

    Both have the same learning rate and weight decay, which `adjust_lr_fn="match_rms_adamw"` is
    for: Muon's update of an m × n matrix times 0.2 √max(m, n) has about the root mean square of an
    AdamW's (Liu et al., 2502.16982).

    Differences from torch's two classes: none in the arithmetic, both are called at each step.

    Args:
        params: parameters, or groups of them.
        lr: learning rate.
        weight_decay: decoupled, times `lr`.
        momentum, nesterov, ns_steps, adjust_lr_fn: Muon's.
        betas, eps: AdamW's.
        use_muon: whether a group's weights of two or more dimensions are Muon's.

    Raises:
        ValueError: an option that `torch.optim.Muon` or `torch.optim.AdamW` refuses.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_steps: int = 5,
        adjust_lr_fn: str | None = "match_rms_adamw",
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        use_muon: bool = True,
    ) -> None:
        options = dict(
            lr=lr,
            weight_decay=weight_decay,
            momentum=momentum,
            nesterov=nesterov,
            ns_steps=ns_steps,
            adjust_lr_fn=adjust_lr_fn,
            betas=betas,
            eps=eps,
            use_muon=use_muon,
        )
        super().__init__(params, options)
        for group in self.param_groups:  # what torch refuses, it refuses now
            _muon([nn.Parameter(torch.zeros(1, 1))], group)
            _adamw([nn.Parameter(torch.zeros(1))], group)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; returns what the closure, if there is one, has returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            matrices = [p for p in params if group["use_muon"] and p.ndim >= 2]
            others = [p for p in params if not (group["use_muon"] and p.ndim >= 2)]
            if matrices:
                self._step_as_matrices(matrices, group)
            if others:
                optimizer = _adamw(others, group)
                self._lend_state(optimizer, others, others)
                optimizer.step()
        return loss

    def _step_as_matrices(self, params: Sequence[Tensor], group: dict[str, Any]) -> None:
        twins = []
        for p in params:
            twin = nn.Parameter(p.detach().flatten(1))  # the same memory, where p is contiguous
            assert p.grad is not None
            twin.grad = p.grad.flatten(1)
            twins.append(twin)
        optimizer = _muon(twins, group)
        self._lend_state(optimizer, twins, params)
        optimizer.step()
        for p, twin in zip(params, twins, strict=True):
            if twin.data_ptr() != p.data_ptr():
                p.copy_(twin.view(p.shape))

    def _lend_state(
        self, optimizer: torch.optim.Optimizer, twins: Sequence[Tensor], params: Sequence[Tensor]
    ) -> None:
        """Let another optimizer work on the state that is kept, and saved, here."""
        for twin, p in zip(twins, params, strict=True):
            optimizer.state[twin] = self.state[p]


def _muon(params: Sequence[Tensor], group: dict[str, Any]) -> torch.optim.Muon:
    names = ("lr", "weight_decay", "momentum", "nesterov", "ns_steps", "adjust_lr_fn")
    return torch.optim.Muon(params, **{name: group[name] for name in names})


def _adamw(params: Sequence[Tensor], group: dict[str, Any]) -> torch.optim.AdamW:
    names = ("lr", "weight_decay", "betas", "eps")
    return torch.optim.AdamW(params, **{name: group[name] for name in names})
