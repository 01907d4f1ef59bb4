"""Probes are ±1, unbiased, uncorrelated, and a function of their coordinates alone."""

import pytest
import torch
from support.device import random_state

from adahessian import rademacher_like
from adahessian.hashing import random_words, stream_keys
from adahessian.probes import _sign_of_each_bit, _signs


def flat(tensors):
    return torch.cat([t.reshape(-1) for t in tensors])


def draw(shapes, steps, **kwargs):
    """Return one row of flattened probes for each step."""
    tensors = [torch.empty(s, dtype=torch.float64) for s in shapes]
    return torch.stack([flat(rademacher_like(tensors, step=t, **kwargs)) for t in range(steps)])


def test_values_shapes_and_dtypes():
    tensors = [
        torch.empty(3, 5),
        torch.empty((), dtype=torch.float64),
        torch.empty(0, 4),
        torch.empty(2, 3, 4, 5).to(memory_format=torch.channels_last),
        torch.empty(65),
    ]
    for tensor, z in zip(tensors, rademacher_like(tensors, seed=1, step=2), strict=True):
        assert z.shape == tensor.shape and z.dtype == tensor.dtype
        assert torch.equal(z.abs(), torch.ones_like(z))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_signs_that_are_made_are_those_that_are_looked_up(dtype):
    """A GPU makes them; a processor has a table."""
    octets = torch.randint(256, (999,))
    made = _sign_of_each_bit(octets, dtype)
    bits = [[octet >> place & 1 for place in range(8)] for octet in octets.tolist()]
    assert torch.equal(made, 2 * torch.tensor(bits, dtype=dtype) - 1)
    assert torch.equal(made.view(-1), _signs(octets, dtype))


def test_identity_covariance():
    """E[z] = 0 and E[z zᵀ] = I, between tensors of one shape too.

    A constant probe (pytorch_optimizer's randint_like(p, 0, 1)) and one probe for all tensors of
    a shape (AdaHessianJax) both fail here.
    """
    n = 4000
    z = draw([(40,), (40,), (3, 2), ()], n, seed=5)
    mean = z.mean(dim=0)
    covariance = z.T @ z / n
    # The largest of d (or d²/2) normal deviates of scale 1/√n
    assert mean.abs().max() < 4.5 / n**0.5
    off_diagonal = covariance - torch.eye(len(mean), dtype=z.dtype)
    assert off_diagonal.abs().max() < 5.5 / n**0.5
    assert torch.equal(covariance.diagonal(), torch.ones_like(mean))


@pytest.mark.parametrize("change", [{"seed": 2**40 + 7}, {"step": 4}, {"sample": 1}])
def test_every_coordinate_gives_another_probe(change):
    tensors = [torch.empty(4096)]
    base = {"seed": 7, "step": 3, "sample": 0}
    a = rademacher_like(tensors, **base)[0]
    b = rademacher_like(tensors, **{**base, **change})[0]
    assert abs((a * b).mean()) < 4.5 / 64


def test_runs_of_bits_are_balanced():
    """Neighbours within a word and across words are independent."""
    z = rademacher_like([torch.empty(200_000)], seed=0, step=0)[0]
    for lag in (1, 2, 31, 32, 33, 64, 1024):
        assert abs((z[lag:] * z[:-lag]).mean()) < 4.5 / 200_000**0.5, lag


def test_tensor_keeps_its_probe_when_others_are_left_out():
    a, b, c = torch.empty(50), torch.empty(50), torch.empty(7, 7)
    all_three = rademacher_like([a, b, c], seed=1, step=1)
    last_two = rademacher_like([b, c], seed=1, step=1, tensor_indices=[1, 2])
    assert torch.equal(all_three[1], last_two[0]) and torch.equal(all_three[2], last_two[1])


def test_memory_format_and_dtype_change_nothing():
    a = torch.empty(2, 3, 4, 5)
    z = rademacher_like([a, a.double(), a.to(memory_format=torch.channels_last)], seed=1, step=1,
                        tensor_indices=[4, 4, 4])  # fmt: skip
    assert torch.equal(z[0], z[2]) and torch.equal(z[0].double(), z[1])


def test_is_the_documented_hash():
    """Element e is bit e % 32 of word e // 32: what JAX must reproduce."""
    z = rademacher_like([torch.empty(100)], seed=11, step=22, sample=3, tensor_indices=[5])[0]
    keys = stream_keys(11, 22, 3, 5)
    for e in range(100):
        bit = random_words(e // 32, keys) >> (e % 32) & 1
        assert z[e] == 2 * bit - 1


def test_hash_is_the_same_on_ints_and_arrays():
    import numpy as np

    index = [0, 1, 2, 31, 2**20, 2**32 - 1]
    keys = stream_keys(2**63 - 1, 9, 0, 2**31)
    expected = [random_words(i, keys) for i in index]
    assert random_words(torch.tensor(index), keys).tolist() == expected
    as_uint32 = random_words(np.array(index, np.uint32), [np.uint32(k) for k in keys])
    assert as_uint32.dtype == np.uint32 and as_uint32.tolist() == expected
    assert len(set(expected)) == len(index) and all(0 <= e < 2**32 for e in expected)


def test_no_global_random_state_is_touched():
    torch.manual_seed(0)
    before = random_state()
    rademacher_like([torch.empty(10)], seed=1, step=1)
    assert torch.equal(before, random_state())
