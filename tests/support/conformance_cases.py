"""The conformance vectors' cases: what is optimized, from where, and by which options."""

import math
import random

DEFAULTS = {
    "lr": 0.15,
    "betas": [0.9, 0.999],
    "eps": 1e-4,
    "weight_decay": 0.0,
    "hessian_power": 1.0,
    "block_size": "kernel",
    "averaging": "abs",
    "update_interval": 1,
    "num_samples": 1,
    "seed": 0,
    "max_grad_norm": None,
    "maximize": False,
}
# Options of the cases in format 2, with what they are in those of format 1.
RULE = {"second_moment": "rms", "bias_correction": "refreshes", "update_clip": None}
OIHW = ["out", "in", "kernel", "kernel", "kernel"]


def numbers(draw, shape, low=-1.0, high=1.0):
    """Short decimals, as nested lists."""
    if not shape:
        return round(draw.uniform(low, high), 2)
    return [numbers(draw, shape[1:], low, high) for _ in range(shape[0])]


def params(draw, **axes_and_shapes):
    return [
        {"name": name, "axes": axes, "value": numbers(draw, shape), "options": {}}
        for name, (axes, shape) in axes_and_shapes.items()
    ]


def ranks(layout="oihw"):
    """One tensor of each rank from 0 to 5, on a polynomial whose Hessian is full and changes."""
    draw = random.Random(1)
    shapes = [(), (3,), (2, 3), (2, 1, 3), (2, 1, 2, 2), (1, 2, 1, 2, 2)]
    found = {}
    for rank, shape in enumerate(shapes):
        order = list(range(rank))
        if layout == "hwio" and rank >= 2:
            order = [*range(2, rank), 1, 0]
        axes = [OIHW[axis] for axis in order]
        found[f"rank{rank}"] = axes, tuple(shape[axis] for axis in order)
    size = sum(math.prod(shape) for shape in shapes)
    problem = {
        "kind": "polynomial",
        "a": numbers(draw, (size,), 0.5, 2.0),
        "b": numbers(draw, (size,)),
        "c": numbers(draw, (size,), 0.1, 0.5),
        "u": numbers(draw, (size,), -0.5, 0.5),
    }
    return problem, params(draw, **found)


def quadratic():
    draw = random.Random(2)
    root = numbers(draw, (8, 8))
    matrix = [
        [round(sum(a * b for a, b in zip(r, s, strict=True)) + (r is s), 4) for s in root]
        for r in root
    ]
    problem = {"kind": "quadratic", "matrix": matrix, "vector": numbers(draw, (8,))}
    return problem, params(draw, weight=(["out", "in"], (2, 3)), bias=(["out"], (2,)))


def zero_curvature():
    """The loss is linear in the second tensor."""
    draw = random.Random(3)
    problem = {
        "kind": "polynomial",
        "a": [1.0, 2.0, 0.0, 0.0],
        "b": [0.5, -0.5, 1e-3, -2e-3],
        "c": [0.2, 0.1, 0.0, 0.0],
        "u": [0.3, -0.4, 0.0, 0.0],
    }
    return problem, params(draw, curved=(["out"], (2,)), linear=(["out"], (2,)))


def network(layout="oihw", batches=((0, 4),)):
    """Two layers with tanh between, mean squared error."""
    draw = random.Random(4)
    flipped = layout == "hwio"
    axes = ["in", "out"] if flipped else ["out", "in"]
    problem = {
        "kind": "network",
        "inputs": numbers(draw, (4, 3)),
        "targets": numbers(draw, (4, 2)),
        "batches": [list(b) for b in batches],
    }
    shapes = [(2, 3), (2, 2)]
    shape1, shape2 = [s[::-1] if flipped else s for s in shapes]
    found = {
        "weight1": (axes, shape1), "bias1": (["out"], (2,)),
        "weight2": (axes, shape2), "bias2": (["out"], (2,)),
    }  # fmt: skip
    return problem, params(draw, **found)


def convolution(layout="oihw", batches=((0, 4),)):
    """A convolution, tanh, mean over places, readout; mean squared error."""
    draw = random.Random(5)
    flipped = layout == "hwio"
    problem = {
        "kind": "convolution",
        "inputs": numbers(draw, (4, 1, 3, 3), -2, 2),
        "targets": numbers(draw, (4,)),
        "batches": [list(b) for b in batches],
    }
    kernels = (["kernel", "kernel", "in", "out"], (2, 2, 1, 2))
    if not flipped:
        kernels = (OIHW[:4], (2, 1, 2, 2))
    found = {
        "kernels": kernels, "biases": (["out"], (2,)),
        "readout": (["in"], (2,)), "constant": ([], ()),
    }  # fmt: skip
    return problem, params(draw, **found)


def with_groups():
    """Options that differ between tensors."""
    problem, tensors = convolution()
    own = [
        {"lr": 0.05, "weight_decay": 0.2, "block_size": None},
        {"betas": [0.8, 0.99], "eps": 1e-2},
        {"hessian_power": 0.5},
        {"lr": 0.3},
    ]
    for tensor, options in zip(tensors, own, strict=True):
        tensor["options"] = options
    return problem, tensors


HALVES = ((0, 1), (1, 4))


def case(about, problem_and_params, num_steps, **options):
    return about, *problem_and_params, {**DEFAULTS, **options}, num_steps


def rule(about, problem_and_params, num_steps, **options):
    return case(about, problem_and_params, num_steps, **{**RULE, **options})


SOPHIA = {
    "lr": 6.0,
    "betas": [0.96, 0.99],
    "eps": 1e-10,
    "block_size": None,
    "averaging": "signed",
    "second_moment": "signed",
    "bias_correction": None,
    "update_clip": 0.01,
}
SASSHA = {
    "block_size": None,
    "averaging": "signed",
    "second_moment": "mean_abs",
    "hessian_power": 0.5,
    "bias_correction": "steps",
}

CASES = {
    "defaults-ranks": case("the defaults, tensors of rank 0 to 5", ranks(), 3),
    "defaults-convolution": case(
        "the defaults; the released image classification code", convolution(), 4
    ),
    "defaults-network": case("the defaults on matrices, which they do not average", network(), 4),
    "defaults-quadratic": case("the defaults on a quadratic", quadratic(), 4),
    "row-ranks": case("rows of matrices, kernels of the others", ranks(), 3, block_size="row"),
    "row-network": case(
        "rows of matrices; the released instruction code", network(), 4, block_size="row"
    ),
    "runs-ranks": case("runs of 4 elements, the last one shorter", ranks(), 3, block_size=4),
    "runs-network": case(
        "runs; the released translation code's options, whose runs have 32",
        network(),
        4,
        block_size=2,
        betas=[0.9, 0.98],
        lr=0.047,
    ),
    "elements-ranks": case(
        "element by element; davda54's and timm's defaults",
        ranks(),
        3,
        block_size=None,
        averaging="signed",
        lr=0.1,
        eps=1e-08,
    ),
    "elements-convolution": case(
        "element by element; pytorch_optimizer's defaults",
        convolution(),
        4,
        block_size=None,
        averaging="signed",
        lr=0.1,
        eps=1e-16,
    ),
    "kernels-small-eps": case(
        "kernels; timm's with its averaging", convolution(), 4, lr=0.1, eps=1e-08
    ),
    "signed-convolution": case("the paper's Eq. 10", convolution(), 4, averaging="signed"),
    "signed-rows": case(
        "the paper's Eq. 10 on rows", network(), 4, averaging="signed", block_size="row"
    ),
    "samples-kernels": case(
        "three probes, the mean of magnitudes", convolution(), 3, num_samples=3
    ),
    "samples-signed-kernels": case(
        "three probes, the signed mean",
        convolution(),
        3,
        num_samples=3,
        eps=0.1,
        averaging="signed",
    ),
    "samples-elements": case(
        "three probes, magnitudes, element by element", network(), 3, num_samples=3, block_size=None
    ),
    "samples-signed-elements": case(
        "three probes, the signed mean, element by element; davda54, timm",
        network(),
        3,
        num_samples=3,
        block_size=None,
        averaging="signed",
    ),
    "power-half": case(
        "Hessian power 1/2; torch_optimizer's defaults", convolution(), 4, hessian_power=0.5
    ),
    "power-odd": case("Hessian power 0.7", network(), 3, hessian_power=0.7),
    "power-zero": case("Hessian power 0: momentum", network(), 3, hessian_power=0.0, lr=0.05),
    "betas": case("other decays", convolution(), 4, betas=[0.5, 0.9]),
    "beta-zero": case(
        "no momentum, no memory of the curvature", network(), 3, betas=[0.0, 0.0], eps=0.1
    ),
    "eps": case(
        "an eps that matters, which stands outside the power",
        convolution(),
        3,
        eps=0.5,
        hessian_power=0.5,
    ),
    "weight-decay": case("decoupled, times the learning rate", convolution(), 4, weight_decay=0.3),
    "learning-rate-zero": case("only the averages move", network(), 2, lr=0.0, weight_decay=0.3),
    "maximize": case("ascent", network(), 3, maximize=True, lr=0.02),
    "clipping": case(
        "the gradient's norm is clipped, the curvature is not", convolution(), 4, max_grad_norm=0.05
    ),
    "delayed": case("a refresh at every third step", convolution(), 8, update_interval=3),
    "delayed-elements": case(
        "a refresh at every second step, element by element",
        network(),
        5,
        update_interval=2,
        block_size=None,
        averaging="signed",
    ),
    "delayed-samples": case(
        "a refresh of two probes at every second step",
        network(),
        5,
        update_interval=2,
        num_samples=2,
    ),
    "accumulated": case(
        "two micro-batches, whose signed products add up", convolution(batches=HALVES), 3
    ),
    "accumulated-samples": case(
        "the same with two probes", convolution(batches=HALVES), 3, num_samples=2
    ),
    "accumulated-elements": case(
        "the same, element by element",
        network(batches=HALVES),
        3,
        block_size=None,
        averaging="signed",
    ),
    "groups": case("options that differ between tensors", with_groups(), 4),
    "zero-curvature": case(
        "the loss is linear in a tensor: its denominator is eps", zero_curvature(), 3, eps=0.01
    ),
    "seed": case("a seed of more than 32 bits", network(), 2, seed=2**62 + 12345),
    "hwio-ranks": case("kernel axes first, outputs last", ranks("hwio"), 3),
    "hwio-rows": case(
        "inputs first, outputs last: a row is a column", ranks("hwio"), 3, block_size="row"
    ),
    "hwio-runs": case(
        "runs, counted in the order outputs, inputs, kernel", ranks("hwio"), 3, block_size=4
    ),
    "hwio-convolution": case("a convolution in the other layout", convolution("hwio"), 3),
    "hwio-network": case(
        "a network in the other layout", network("hwio"), 3, eps=0.1, block_size="row"
    ),
    "sophia": rule("Sophia-H", convolution(), 4, **SOPHIA),
    "sophia-delayed": rule("Sophia-H, a refresh at every second step", network(), 5,
                           update_interval=2, weight_decay=0.01, **SOPHIA),
    "sophia-samples": rule("Sophia-H with two probes", network(), 3, num_samples=2, **SOPHIA),
    "sassha": rule("Sassha without its perturbation", convolution(), 4, **SASSHA),
    "sassha-delayed": rule("the same with a refresh at every third step, and its correction",
                           network(), 8, update_interval=3, weight_decay=0.1, **SASSHA),
    "clipped": rule("AdaHessian with a bounded update", convolution(), 4, update_clip=0.5),
    "magnitudes": rule("the mean of magnitudes in kernels", convolution(), 4,
                       second_moment="mean_abs"),
    "signed-power": rule("a power of the signed average, an eps that matters", ranks(), 3,
                         **{**SOPHIA, "eps": 0.5, "bias_correction": "refreshes",
                            "update_clip": None, "lr": 0.1, "hessian_power": 0.5}),
    "uncorrected": rule("AdaHessian without bias correction", network(), 3, eps=0.1,
                        bias_correction=None),
    "steps-corrected": rule("AdaHessian whose correction counts steps", network(), 5,
                            update_interval=2, bias_correction="steps"),
}  # fmt: skip
