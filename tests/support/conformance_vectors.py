"""Makes the conformance vectors by the oracle.

`UPDATE_CONFORMANCE=1 pytest tests/library/test_conformance.py` writes them. The losses are written
a second time here, with torch's own layers.
"""

import json

import torch
from support.conformance_cases import CASES, RULE
from support.conformance_schema import AnyCase
from support.reference import ReferenceAdaHessian, dense_hessian

from adahessian import probes

TOLERANCE = {"rtol": 1e-9, "atol": 1e-12}
# Implementations keep a clipped norm from zero in ways of their own, as by 1e-6.
TOLERANCES = {"clipping": {"rtol": 1e-4, "atol": 1e-9}}
AVERAGES = {
    "rms": "exp_hessian_diag_sq",
    "mean_abs": "exp_hessian_diag_abs",
    "signed": "exp_hessian_diag",
}
PROBES = [
    {"seed": 0, "step": 0, "sample": 0, "tensor": 0, "numel": 40},
    {"seed": 0, "step": 0, "sample": 0, "tensor": 1, "numel": 40},
    {"seed": 0, "step": 1, "sample": 2, "tensor": 3, "numel": 40},
    {"seed": 2**62 + 12345, "step": 1000, "sample": 1, "tensor": 7, "numel": 70},
    {"seed": 2**32 - 1, "step": 2**31, "sample": 0, "tensor": 0, "numel": 1},
]


def beside_the_cases():
    """The text of each other file by its name."""
    return {
        "probes.json": text([{**where, "signs": signs(**where)} for where in PROBES]),
        "schema.json": json.dumps(AnyCase.json_schema(), indent=1) + "\n",
    }


def text(value):
    """JSON with one array of numbers on a line."""
    return _format(value, "") + "\n"


def _format(value, indent):
    deeper = indent + " "
    if isinstance(value, dict) and value:
        rows = [f"{deeper}{json.dumps(k)}: {_format(v, deeper)}" for k, v in value.items()]
        return "{\n" + ",\n".join(rows) + f"\n{indent}}}"
    if isinstance(value, list) and "{" in json.dumps(value):
        rows = [f"{deeper}{_format(v, deeper)}" for v in value]
        return "[\n" + ",\n".join(rows) + f"\n{indent}]"
    return json.dumps(value)


def signs(seed, step, sample, tensor, numel):
    """A probe as integers."""
    like = [torch.zeros(numel)]
    indices = [tensor]
    (z,) = probes.rademacher_like(like, seed=seed, step=step, sample=sample, tensor_indices=indices)
    return z.int().tolist()


def make(name):
    """One case, as its file holds it."""
    about, problem, params, options, num_steps = CASES[name]
    own = [{**options, **p["options"], "axes": torch_order(p["axes"])} for p in params]
    initial = [torch.tensor(p["value"], dtype=torch.float64) for p in params]
    oracle = ReferenceAdaHessian(initial, own)
    parts = losses(problem, [p["axes"] for p in params])
    steps = []
    for number in range(num_steps):
        drawn = [
            probes.rademacher_like(oracle.params, seed=options["seed"], step=number, sample=s)
            for s in range(options["num_samples"])
        ]
        batches = [derivatives(part, oracle.params, drawn) for part in parts]
        oracle.step(lambda *tensors: sum(part(*tensors) for part in parts))
        expected = {
            "exp_avg": lists(oracle.exp_avg),
            AVERAGES[options.get("second_moment", "rms")]: lists(oracle.exp_hessian_diag_sq),
            "params": lists(oracle.params),
        }
        drawn = [[z.int().tolist() for z in sample] for sample in drawn]
        steps.append({"probes": drawn, "batches": batches, "expected": expected})
    return {
        "format": 2 if RULE.keys() <= options.keys() else 1,
        "name": name,
        "about": about,
        "options": options,
        "problem": problem,
        "params": params,
        "tolerance": TOLERANCES.get(name, TOLERANCE),
        "steps": steps,
    }


def torch_order(axes):
    """The dims in the order out, in, kernel."""
    return sorted(range(len(axes)), key=lambda i: ("out", "in", "kernel").index(axes[i]))


def derivatives(part, params, drawn):
    """The gradient and the products of one micro-batch's loss, by its dense Hessian."""
    leaves = [p.clone().requires_grad_() for p in params]
    grads = torch.autograd.grad(part(*leaves), leaves, materialize_grads=True)
    hessian = dense_hessian(part, params)
    products = []
    for sample in drawn:
        product = hessian @ torch.cat([z.reshape(-1) for z in sample])
        pieces = product.split([p.numel() for p in params])
        products.append(lists(h.view(p.shape) for h, p in zip(pieces, params, strict=True)))
    return {"grads": lists(grads), "products": products}


def lists(tensors):
    return [t.tolist() for t in tensors]


def losses(problem, axes):
    """The loss of each micro-batch, as a function of the parameters."""
    data = {
        key: torch.tensor(value, dtype=torch.float64)
        for key, value in problem.items()
        if key not in ("kind", "batches")
    }

    def quadratic(*params):
        theta = torch.cat([p.reshape(-1) for p in params])
        return 0.5 * torch.dot(theta, data["matrix"].mv(theta)) + torch.dot(data["vector"], theta)

    def polynomial(*params):
        theta = torch.cat([p.reshape(-1) for p in params])
        square = torch.dot(data["u"], theta) ** 2
        terms = [data["b"] * theta, data["a"] * theta**2 / 2, data["c"] * theta**4 / 4]
        return sum(t.sum() for t in terms) + square / 2

    def of_examples(start, stop):
        def loss(*params):
            a, b, c, d = [p.permute(torch_order(x)) for p, x in zip(params, axes, strict=True)]
            inputs, targets = data["inputs"][start:stop], data["targets"][start:stop]
            if problem["kind"] == "network":
                linear = torch.nn.functional.linear
                outputs = linear(linear(inputs, a, b).tanh(), c, d)
            else:
                hidden = torch.nn.functional.conv2d(inputs, a, b).tanh()
                outputs = hidden.flatten(2).mean(2).mv(c) + d
            whole = len(data["targets"])
            return torch.nn.functional.mse_loss(outputs, targets, reduction="sum") / 2 / whole

        return loss

    if problem["kind"] in ("network", "convolution"):
        return [of_examples(*batch) for batch in problem["batches"]]
    return [{"quadratic": quadratic, "polynomial": polynomial}[problem["kind"]]]
