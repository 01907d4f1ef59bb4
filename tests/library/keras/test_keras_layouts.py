"""Averaging in Keras' layouts is torch's of the transposed weight; probes are torch's numbers."""

import keras
import numpy as np
import pytest
from keras import layers, ops

from adahessian.keras import block_average
from adahessian.keras.probes import rademacher

torch = pytest.importorskip("torch")

import adahessian.averaging as torch_averaging  # noqa: E402
from adahessian.probes import rademacher_like  # noqa: E402

# (shape in Keras, permutation to torch's layout, end of the path)
LAYOUTS = [
    ((), (), "scale"),
    ((10,), (0,), "bias"),
    ((3, 4), (1, 0), "dense/kernel"),
    ((5, 2, 3), (2, 1, 0), "conv1d/kernel"),
    ((2, 3, 4, 5), (3, 2, 0, 1), "conv2d/kernel"),
    ((2, 3, 2, 3, 4), (4, 3, 0, 1, 2), "conv3d/kernel"),
    ((0, 3), (1, 0), "kernel"),
    ((4, 3), (0, 1), "embedding/embeddings"),
]


@pytest.mark.parametrize("block_size", ["kernel", "row", 7])
@pytest.mark.parametrize(("shape", "to_torch", "path"), LAYOUTS, ids=str)
def test_same_as_torch_in_its_layout(shape, to_torch, path, block_size):
    array = np.random.default_rng(0).normal(size=shape).astype("float32")
    ours = ops.convert_to_numpy(block_average(ops.convert_to_tensor(array), block_size, path=path))
    theirs = torch_averaging.block_average(
        torch.tensor(np.ascontiguousarray(array.transpose(to_torch))), block_size
    )
    assert ours.shape == shape
    np.testing.assert_allclose(ours.transpose(to_torch), theirs.numpy(), rtol=2e-6, atol=1e-7)


def swapped(kernel):
    return kernel.transpose(2, 3, 0, 1)


# The layer of Keras, its input, and how its kernel comes to torch's shape.
DEPTHWISE = [
    (layers.DepthwiseConv1D(3, depth_multiplier=2), (9, 4), lambda k: k.transpose(1, 2, 0)),
    (layers.DepthwiseConv2D((2, 3), depth_multiplier=2), (9, 9, 4), swapped),
    (layers.SeparableConv2D(5, 3, depth_multiplier=2), (9, 9, 4), swapped),
    (layers.DepthwiseConv2D(3, depth_multiplier=2, name="conv_dw_1"), (9, 9, 4), swapped),
    (layers.DepthwiseConv2D(3, depth_multiplier=2, name="block_1_depthwise"), (9, 9, 4), swapped),
]
TRANSPOSED = [
    (layers.Conv1DTranspose(5, 3), (9, 4), (2, 1, 0)),
    (layers.Conv2DTranspose(5, (2, 3)), (9, 9, 4), (3, 2, 0, 1)),
    (layers.Conv3DTranspose(5, 2), (4, 4, 4, 3), (4, 3, 0, 1, 2)),
]


@pytest.mark.parametrize("block_size", [5, "kernel"])
@pytest.mark.parametrize(("layer", "shape", "to_torch"), DEPTHWISE, ids=str)
def test_depthwise_kernels(layer, shape, to_torch, block_size):
    """torch has (in · multiplier, 1, *kernel), the multiplier faster than the input."""
    layer = type(layer).from_config(layer.get_config())  # each test builds its own
    layer.build((None, *shape))
    kernel = layer.weights[0]
    array = np.random.default_rng(0).normal(size=kernel.shape).astype("float32")
    ours = block_average(ops.convert_to_tensor(array), block_size, path=kernel.path)
    as_torch = to_torch(array)
    theirs = torch_averaging.block_average(
        torch.tensor(as_torch.reshape(-1, 1, *as_torch.shape[2:]).copy()), block_size
    )
    ours = to_torch(ops.convert_to_numpy(ours)).reshape(theirs.shape)
    np.testing.assert_allclose(ours, theirs.numpy(), rtol=2e-6, atol=1e-7)


@pytest.mark.parametrize("block_size", [5, "kernel"])
@pytest.mark.parametrize(("layer", "shape", "to_torch"), TRANSPOSED, ids=str)
def test_transposed_kernels(layer, shape, to_torch, block_size):
    layer = type(layer).from_config(layer.get_config())  # each test builds its own
    layer.build((None, *shape))
    kernel = layer.weights[0]
    assert kernel.shape[-2:] == (layer.filters, shape[-1])
    array = np.random.default_rng(0).normal(size=kernel.shape).astype("float32")
    ours = block_average(ops.convert_to_tensor(array), block_size, path=kernel.path)
    theirs = torch_averaging.block_average(
        torch.tensor(np.ascontiguousarray(array.transpose(to_torch))), block_size
    )
    ours = ops.convert_to_numpy(ours).transpose(to_torch)
    np.testing.assert_allclose(ours, theirs.numpy(), rtol=2e-6, atol=1e-7)


@pytest.mark.parametrize("attention", [
    layers.MultiHeadAttention(2, 3), layers.GroupQueryAttention(3, 4, 2)
], ids=lambda layer: type(layer).__name__)  # fmt: skip
def test_kernels_of_attention_stand_element_by_element(attention):
    attention.build((None, 5, 4), (None, 5, 4))
    kernels = [w for w in attention.weights if len(w.shape) == 3]
    assert len(kernels) == 4
    for kernel in kernels:
        array = ops.convert_to_tensor(np.random.default_rng(0).normal(size=kernel.shape))
        averaged = block_average(array, "kernel", path=kernel.path)
        np.testing.assert_array_equal(ops.convert_to_numpy(averaged), ops.convert_to_numpy(array))


def averaged_along(weight, block_size):
    """Return the axes of a weight along which its averaged curvature is constant."""
    array = np.random.default_rng(0).normal(size=weight.shape).astype("float32")
    found = block_average(ops.convert_to_tensor(array), block_size, path=weight.path)
    found = ops.convert_to_numpy(found)
    return [i for i in range(found.ndim) if np.allclose(np.diff(found, axis=i), 0, atol=1e-6)]


@pytest.mark.parametrize("name", ["query", "value", "depthwise_7"])
def test_a_convolution_is_one_whatever_its_name(name):
    for layer, shape in ((layers.Conv1D(3, 3), (6, 2)), (layers.Conv2D(3, 3), (6, 6, 2))):
        layer = type(layer).from_config({**layer.get_config(), "name": name})
        layer.build((None, *shape))
        assert averaged_along(layer.kernel, "kernel") == list(range(len(shape) - 1))


def test_lora():
    attention, embedding = layers.MultiHeadAttention(2, 3), layers.Embedding(7, 3)
    attention.build((None, 5, 4), (None, 5, 4))
    embedding.build((None, 5))
    attention._query_dense.enable_lora(2)
    embedding.enable_lora(2)
    for block_size in ("kernel", "row"):
        assert averaged_along(attention._query_dense.lora_kernel_a, block_size) == []
    assert averaged_along(embedding.lora_embeddings_a, "row") == [1]  # one row per token
    assert averaged_along(embedding.lora_embeddings_b, "row") == [0]


def test_biases_of_any_shape_stand_element_by_element():
    attention, normalization = layers.MultiHeadAttention(2, 3), layers.LayerNormalization((1, 2, 3))
    attention.build((None, 5, 4), (None, 5, 4))
    normalization.build((None, 4, 5, 2))
    cell, relu = layers.GRUCell(3), layers.PReLU()
    cell.build((None, 4))
    relu.build((None, 4, 5, 2))
    biases = [attention._query_dense.bias, cell.bias, *normalization.weights, relu.alpha]
    for bias in biases:
        assert len(bias.shape) > 1
        for block_size in ("kernel", "row"):
            assert averaged_along(bias, block_size) == []


def test_declared_axes():
    array = ops.reshape(ops.arange(24, dtype="float32"), (2, 3, 4))
    as_numpy = ops.convert_to_numpy(array)
    np.testing.assert_array_equal(
        ops.convert_to_numpy(block_average(array, "kernel", block_axes=())), as_numpy
    )
    for block_size in ("kernel", "row", 4):
        averaged = ops.convert_to_numpy(block_average(array, block_size, block_axes=(-1,)))
        means = np.broadcast_to(as_numpy.mean(2, keepdims=True), as_numpy.shape)
        np.testing.assert_allclose(averaged, means)
    for axes in ((3,), (0, 0), 1):
        with pytest.raises(ValueError, match="block_axes must be a tuple"):
            block_average(array, "kernel", block_axes=axes)


@pytest.mark.parametrize("seed", [0, 2**63 - 1])
def test_probes_are_those_of_torch(seed):
    shapes = [(), (5,), (3, 3, 2, 7), (1000,), (2, 0)]
    place = dict(seed=seed, sample=2, tensor_indices=[4, 0, 2, 1, 3])
    theirs = rademacher_like([torch.zeros(s) for s in shapes], step=2**31 + 5, **place)
    later = rademacher_like([torch.zeros(s) for s in shapes], step=7, **place)
    if keras.backend.backend() == "torch":
        pytest.skip("they are torch's own here")
    ours = rademacher(shapes, ["float32"] * 5, step=2**31 + 5, **place)
    in_graph = rademacher(shapes, ["float32"] * 5, step=ops.convert_to_tensor(7), **place)
    for probes, expected in ((ours, theirs), (in_graph, later)):
        for probe, other in zip(probes, expected, strict=True):
            assert keras.backend.standardize_dtype(probe.dtype) == "float32"
            np.testing.assert_array_equal(ops.convert_to_numpy(probe), other.numpy())
