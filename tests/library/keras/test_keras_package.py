"""A backend needs no other, and no package of another front end."""

import os
import subprocess
import sys
from pathlib import Path

import keras
from support.patience import PATIENCE

ROOT = Path(__file__).parents[3]
BACKEND = keras.backend.backend()

# A finder, because Keras takes a None in sys.modules for a module. Packages that TensorFlow imports
# itself where they are installed are away as well.
TRAIN = """
import sys

class Away:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {away}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Away())
import numpy as np
import adahessian.keras
assert not {{"keras", "tensorflow", "jax", "torch"}} & set(sys.modules), "imports are lazy"
import keras
from adahessian.keras import AdaHessian, second_order

model = second_order(keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)]))
model.compile(optimizer=AdaHessian(0.1, update_interval=2), loss="mse", jit_compile=False)
before = model.get_weights()
model.fit(np.ones((8, 3)), np.ones((8, 2)), batch_size=4, verbose=0)
assert any((a != b).any() for a, b in zip(before, model.get_weights()))
assert not set({away}) & {{name.split(".")[0] for name in sys.modules}}
"""


def run(script, **env):
    return subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )


def test_trains_where_no_other_backend_is():
    away = {"tensorflow", "jax", "jaxlib", "flax", "optax", "torch"}
    away -= {"jax": {"jax", "jaxlib"}}.get(BACKEND, {BACKEND})
    done = run(TRAIN.format(away=sorted(away)))
    assert done.returncode == 0, done.stderr


def test_other_backends_are_refused():
    done = run("import adahessian.keras; adahessian.keras.AdaHessian", KERAS_BACKEND="numpy")
    assert "backend 'numpy' does not have" in done.stderr


def test_private_names_are_there():
    """Those of Keras that every backend needs; a change of one is seen here first."""
    optimizer = keras.optimizers.SGD(0.1)
    optimizer.build([keras.Variable([1.0])])
    for name in (
        "_backend_update_step", "_check_variables_are_known", "_get_variable_index",
        "_iterations", "_overwrite_variable_with_gradient", "_trainable_variables",
    ):  # fmt: skip
        assert hasattr(optimizer, name), name
