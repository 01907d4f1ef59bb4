"""The AdaHessians of installed packages, unmodified, as ports for the conformance vectors."""

import math

from adahessian import AdaHessian
from adahessian.conformance.torch_port import replayed

NAMES = {"eps", "betas", "lr", "weight_decay", "hessian_power"}  # the same everywhere


NO_OTHER_RULE = {"second_moment": ["rms"], "bias_correction": ["refreshes"], "update_clip": [None]}


def torch_optimizer(case):
    import torch_optimizer

    averaging = ["abs"] if has_kernels(case) else averagings(case)
    refuse(case, block_size=["kernel"], averaging=averaging, update_interval=[1], num_samples=[1])
    return replayed(case, lambda groups: torch_optimizer.Adahessian(groups, **common(case)))


def pytorch_optimizer(case):
    import pytorch_optimizer

    if case["options"].get("second_moment") == "signed":
        return sophia_h(case)
    refuse(case, block_size=[None], averaging=averagings(case), maximize=[False, True])
    make = pytorch_optimizer.load_optimizer("adahessian")
    options = case["options"]
    more = {
        "update_period": options["update_interval"],
        "num_samples": options["num_samples"],
        "maximize": options["maximize"],
    }
    return replayed(case, lambda groups: make(groups, **common(case), **more))


def sophia_h(case):
    """pytorch_optimizer's Sophia-H, whose averages get the vectors' names."""
    import pytorch_optimizer

    rule = {"second_moment": ["signed"], "bias_correction": [None], "hessian_power": [1.0]}
    clips = [case["options"]["update_clip"] or math.inf]
    refuse(case, **rule, update_clip=clips, block_size=[None], averaging=["signed"])
    options = case["options"]

    class Named(pytorch_optimizer.SophiaH):
        def step(self, *args, **kwargs):
            super().step(*args, **kwargs)
            for state in self.state.values():
                state["exp_avg"], state["exp_hessian_diag"] = (
                    state["momentum"], state["hessian_moment"]
                )  # fmt: skip

    def make(groups):
        return Named(
            groups,
            lr=options["lr"],
            betas=options["betas"],
            eps=options["eps"],
            weight_decay=options["weight_decay"],
            p=options["update_clip"],
            update_period=options["update_interval"],
            num_samples=options["num_samples"],
            hessian_distribution="rademacher",
        )

    return replayed(case, make)


def timm(case):
    from timm.optim.adahessian import Adahessian

    options = case["options"]
    kernels = options["block_size"] == "kernel" and has_kernels(case)
    averaging = ["abs"] if kernels else averagings(case)
    refuse(case, block_size=["kernel" if kernels else None], averaging=averaging)
    more = {
        "update_each": options["update_interval"],
        "n_samples": options["num_samples"],
        "avg_conv_kernel": kernels,
    }
    return replayed(case, lambda groups: Adahessian(groups, **common(case), **more))


def ours(case):
    """The same way for ours, as the control."""
    return replayed(case, lambda groups: AdaHessian(groups, **case["options"]))


def has_kernels(case):
    return any("kernel" in param["axes"] for param in case["params"])


def common(case):
    return {name: case["options"][name] for name in NAMES}


def averagings(case):
    """Those that are the same as the signed one, element by element."""
    return ["signed", "abs"] if case["options"]["num_samples"] == 1 else ["signed"]


def refuse(case, **known):
    """Raise NotImplementedError for values of options that a package does not have."""
    known = {**NO_OTHER_RULE, "maximize": [False], "max_grad_norm": [None], **known}
    if not has_kernels(case):  # both are then element by element
        known["block_size"] = ["kernel", None]
    own = [param["options"] for param in case["params"]]
    for name, values in known.items():
        for options in [case["options"], *own]:
            if name in options and options[name] not in values:
                raise NotImplementedError(f"{name}={options[name]}")
