"""What one process of tests/library/spectrum/test_matvec.py does.

Products over its share of batches.
"""

import datetime
import sys

import torch
import torch.distributed as dist
from support.patience import PATIENCE
from torch import nn
from torch.nn import functional as F

from adahessian.spectrum import Hessian, top_eigenvalues


def problem():
    """Return a small network and five batches of unequal length, float64."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    x, y = torch.randn(50, 5, dtype=torch.float64), torch.randint(3, (50,))
    sizes = [16, 4, 12, 8, 10]
    return model, list(zip(x.split(sizes), y.split(sizes), strict=True))


def loss_of(model):
    return lambda batch: F.cross_entropy(model(batch[0]), batch[1])


def main(rank: int, world: int, store: str, out: str) -> None:
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=world,
        timeout=datetime.timedelta(seconds=PATIENCE),
    )  # fmt: skip
    model, batches = problem()
    results = {}
    for curvature in ("double_backward", "finite_difference"):
        hessian = Hessian(
            loss_of(model), model, batches[rank::world], curvature=curvature,
            process_group=dist.group.WORLD,
        )  # fmt: skip
        vector = torch.linspace(-1, 1, hessian.size, dtype=torch.float64)
        results[curvature] = hessian(vector)
    exact = Hessian(loss_of(model), model, batches[rank::world], process_group=dist.group.WORLD)
    results["eigenvalues"] = top_eigenvalues(exact, 2, tolerance=1e-6).eigenvalues
    torch.save(results, f"{out}/{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4])
