"""A backend needs no other, and no package of another front end."""

import os
import subprocess
import sys
from pathlib import Path

import keras
import pytest
from support.patience import PATIENCE

ROOT = Path(__file__).parents[3]
BACKEND = keras.backend.backend()

# No finder finds them: Keras takes a None in sys.modules for a module, and torch looks for what it
# does not import. What TensorFlow imports itself where it is installed is away as well.
TRAIN = """
import sys

class Hiding:
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, *more):
        return None if name.split(".")[0] in {away} else self.finder.find_spec(name, *more)

    def __getattr__(self, name):
        return getattr(self.finder, name)

sys.meta_path[:] = [Hiding(finder) for finder in sys.meta_path]
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
    pytest.importorskip("jax", reason="Keras' numpy backend imports it")
    done = run("import adahessian.keras; adahessian.keras.AdaHessian", KERAS_BACKEND="numpy")
    assert "backend 'numpy' does not have" in done.stderr


class Recording(keras.optimizers.Optimizer):
    """Keeps what it is called with."""

    calls = []  # of the class: Keras tracks what is set on the optimizer

    def _backend_update_step(self, *given):
        self.calls.append(given)


def test_private_names_do_what_we_need():
    """Those of Keras that every backend needs; a change of one is seen here first."""
    a, b = keras.Variable([1.0]), keras.Variable([2.0])
    optimizer = Recording(0.5, gradient_accumulation_steps=2)
    optimizer.build([a, b])
    assert [v is w for v, w in zip(optimizer._trainable_variables, (a, b), strict=True)]
    assert [optimizer._get_variable_index(v) for v in (b, a)] == [1, 0]
    optimizer._check_variables_are_known([b])
    with pytest.raises(ValueError, match="Unknown variable"):
        optimizer._check_variables_are_known([keras.Variable([0.0])])
    optimizer.apply([keras.ops.ones(1), keras.ops.ones(1)])
    assert int(optimizer._iterations) == 1 and int(optimizer.iterations) == 0
    optimizer = Recording(0.5)
    optimizer.build([a, b])
    a.overwrite_with_gradient = True
    assert [optimizer._overwrite_variable_with_gradient(v) for v in (a, b)] == [True, False]
    optimizer.apply([keras.ops.zeros(1), keras.ops.ones(1)])
    (grad,), (variable,), rate = optimizer.calls[-1]
    assert variable is b and float(rate) == 0.5
    assert [keras.ops.convert_to_numpy(v)[0] for v in (grad, a.value)] == [1, 0]
