"""Block averaging against counting, for every rank and block size."""

import pytest
import torch
from support.reference import blocks
from torch import nn

from adahessian import block_average

SHAPES = [(), (5,), (1,), (3, 4), (2, 3, 5), (2, 3, 3, 3), (4, 1, 3, 3), (2, 2, 2, 3, 2), (0, 3)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("block_size", ["kernel", "row", None, 1, 2, 4, 7, 1000])
def test_every_rank_and_block_size(shape, block_size):
    x = torch.randn(shape, dtype=torch.float64)
    expected = torch.zeros(x.numel(), dtype=torch.float64)
    for block in blocks(shape, block_size):
        expected[block] = x.reshape(-1)[block].mean()
    before = x.clone()
    result = block_average(x, block_size)
    assert result.shape == x.shape
    torch.testing.assert_close(result.reshape(-1), expected, atol=1e-14, rtol=0)
    assert torch.equal(x, before)


def test_contiguous_runs_are_written_back_where_they_were_read():
    """The released TF2 code averages strided groups: 1.5, 1.5, 2.5, ... instead."""
    result = block_average(torch.arange(6.0), 2)
    assert result.tolist() == [0.5, 0.5, 2.5, 2.5, 4.5, 4.5]


def test_last_run_may_be_shorter():
    assert block_average(torch.arange(5.0), 2).tolist() == [0.5, 0.5, 2.5, 2.5, 4.0]


@pytest.mark.parametrize("block_size", ["kernel", "row", 3])
def test_channels_last_storage_changes_nothing(block_size):
    x = torch.randn(4, 3, 3, 3)
    result = block_average(x.to(memory_format=torch.channels_last), block_size)
    torch.testing.assert_close(result, block_average(x, block_size))


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv1d(2, 4, 3),  # rank 3 and 5: UnboundLocalError, or the previous tensor's value, in
        nn.Conv3d(2, 4, (1, 2, 3)),  # the released image_classification code
        nn.Conv2d(4, 4, 3, groups=2),
        nn.Conv2d(4, 4, 3, groups=4),
        nn.ConvTranspose2d(2, 6, (2, 3), groups=2),
        nn.Conv2d(1, 1, 3),  # one input channel: IndexError in Best-Deep-Learning-Optimizers
    ],
)
def test_convolutions_are_averaged_over_each_kernel(layer):
    w = torch.randn_like(layer.weight)
    result = block_average(w, "kernel")
    kernel_dims = tuple(range(w.ndim - len(layer.kernel_size), w.ndim))
    torch.testing.assert_close(result, w.mean(kernel_dims, keepdim=True).expand_as(w))


@pytest.mark.parametrize("bad", [0, -1, "rows", 2.0, True, (3, 3)])
def test_bad_block_size_is_named(bad):
    with pytest.raises(ValueError, match="block_size must be") as error:
        block_average(torch.ones(3), bad)
    assert repr(bad) in str(error.value)
