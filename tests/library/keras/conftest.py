"""Keras has one backend in a process: KERAS_BACKEND says which these tests are of.

Without it, test_each_backend.py alone is collected; it runs the others once for each backend.
"""

import contextlib
import os

BACKEND = os.environ.get("KERAS_BACKEND")
collect_ignore_glob = ["test_each_backend.py"] if BACKEND else ["test_keras_*.py"]
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

if BACKEND:
    if BACKEND == "jax":  # two devices, for keras.distribution
        os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"

    import pytest

    # torch imports the rest of itself when its first optimizer is made, which crashes the process
    # where TensorFlow has been imported between.
    with contextlib.suppress(ModuleNotFoundError):
        import torch

        torch.optim.SGD([torch.zeros(1)])
    keras = pytest.importorskip("keras", reason="needs the extra: pip install adahessian[keras]")

    if BACKEND == "tensorflow":
        import tensorflow as tf

        # Two devices, for the replicas of a MirroredStrategy.
        (cpu,) = tf.config.list_physical_devices("CPU")
        device = tf.config.LogicalDeviceConfiguration()
        tf.config.set_logical_device_configuration(cpu, [device, device])

    def pytest_collection_modifyitems(items):
        """NumPy 2 warns of what Keras on torch calls for every tensor."""
        for item in items:
            item.add_marker(pytest.mark.filterwarnings("ignore:__array__ implementation doesn't"))

    @pytest.fixture(autouse=True)
    def fresh_session():
        """Names begin at zero; what a test has set is gone."""
        keras.utils.clear_session()
        yield
        keras.config.set_floatx("float32")
        keras.config.set_dtype_policy("float32")

    @pytest.fixture
    def float64(monkeypatch):
        """Weights, data and hyperparameters in float64, and what is computed with them.

        Keras takes many results on JAX and torch through float32, whatever they are made of:
        ops.tanh on the one, ops.matmul on the other, the mean of the loss on both.
        """
        from keras.src.backend.common import dtypes

        monkeypatch.setitem(dtypes.BIT64_TO_BIT32_DTYPE, "float64", "float64")
        keras.config.set_floatx("float64")
        keras.config.set_dtype_policy("float64")
        if BACKEND != "jax":
            yield
            return
        import jax

        with jax.enable_x64(True):
            yield
