"""Published optimizers other than AdaHessian that are options of its engine; docs/rules.md."""

from typing import Any

from torch import Tensor
from torch.optim.optimizer import ParamsT

from adahessian.optimizer import AdaHessian


class SophiaH(AdaHessian):
    r"""Sophia-H (Liu, Li, Hall, Liang, Ma, ICLR 2024, arXiv:2305.14342): AdaHessian's engine.

    .. code-block:: text

        m ← β₁ m + (1 − β₁) g                              exp_avg
        h ← β₂ h + (1 − β₂) z · Hz      at each refresh    exp_hessian_diag
        θ ← θ − lr · weight_decay · θ
        θ ← θ − lr · clip(m / max(h, eps), update_clip)    element by element

    No more than these defaults of :class:`AdaHessian`: ``second_moment="signed"``,
    ``averaging="signed"``, ``block_size=None``, ``bias_correction=None``, ``update_interval=10``.
    All else is as there: closures, both ways to H·z, parts of the batch, processes, state.

    Differences from the paper: it writes η · clip(m / max(γ h, ε), 1), which is the same with
    lr = η / γ, update_clip = γ, eps = ε / γ and a weight decay times γ (its first version, and
    pytorch_optimizer, write ours). Probes are Rademacher's, the paper's are Gaussian: both are
    unbiased, and Rademacher's are exact where the Hessian is diagonal. The Hessian is that of the
    step's whole batch, or with ``curvature_fraction`` of a part of it, as in the paper.

    Args:
        params: as for :class:`AdaHessian`, and so are all options that are not named here.
        lr: learning rate. 0.06, as in pytorch_optimizer, is η = 0.0006 at γ = 0.01.
        betas: decay of the two averages; the paper's.
        eps: least denominator, above 0; the paper's 1e-12 over γ.
        update_clip: bound ρ of an element's update before lr; the paper's γ for Hutchinson's
            estimate. A smaller one clips more; None for no clipping.
        update_interval: the paper's k.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.06,
        betas: tuple[float, float] = (0.96, 0.99),
        eps: float = 1e-10,
        weight_decay: float = 0.0,
        *,
        update_clip: float | None = 0.01,
        block_size: int | str | None = None,
        curvature: str = "double_backward",
        curvature_fraction: float = 1.0,
        update_interval: int = 10,
        num_samples: int = 1,
        seed: int = 0,
        check_interval: int = 500,
        max_grad_norm: float | None = None,
        process_group: Any = None,
        foreach: bool | None = None,
        maximize: bool = False,
    ):
        super().__init__(
            params,
            lr,
            betas,
            eps,
            weight_decay,
            update_clip=update_clip,
            block_size=block_size,
            curvature=curvature,
            curvature_fraction=curvature_fraction,
            update_interval=update_interval,
            num_samples=num_samples,
            seed=seed,
            check_interval=check_interval,
            max_grad_norm=max_grad_norm,
            process_group=process_group,
            foreach=foreach,
            maximize=maximize,
            averaging="signed",
            second_moment="signed",
            bias_correction=None,
        )
