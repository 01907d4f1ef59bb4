"""adahessian.jax and the torch side do not need each other."""

import subprocess
import sys
from pathlib import Path

import pytest
from support.patience import PATIENCE

pytest.importorskip("jax", reason="needs the extra: pip install adahessian[jax]")

TRAIN_WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None  # from here on `import torch` raises ImportError
import jax.numpy as jnp, optax
import adahessian.jax
tx = adahessian.jax.adahessian(0.1)
x = jnp.ones(3)
_, g, h = adahessian.jax.value_grad_and_hessian(lambda x: jnp.sum(x**2), (x,), 0)
u, _ = tx.update(g, tx.init(x), x, hessian=h)
assert jnp.allclose(optax.apply_updates(x, u), 0.9)
assert "flax" not in sys.modules
"""

TORCH_WITHOUT_JAX = """
import sys
for name in ("jax", "jaxlib", "optax", "flax"):
    sys.modules[name] = None
import adahessian, pkgutil
for module in pkgutil.iter_modules(adahessian.__path__):
    if not module.ispkg:
        __import__(f"adahessian.{module.name}")
assert adahessian.AdaHessian.__name__ == "AdaHessian"
"""


@pytest.mark.parametrize("script", [TRAIN_WITHOUT_TORCH, TORCH_WITHOUT_JAX], ids=["jax", "torch"])
def test_each_side_works_without_the_other(script):
    root = Path(__file__).parents[3]
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        cwd=root,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stderr
