"""No step waits for the device, but the first, those that are logged, and those that are saved."""

import pytest
from support import pretend_device
from support.count_waits import ALONE, IN_THE_HARNESS, LOGGED, STEPS


@pytest.fixture(scope="module")
def counted():
    """Of each training, what waited in each of its steps: on a device that is pretended."""
    return pretend_device.run("support.count_waits")


def test_the_device_notices_what_waits(counted):
    """First steps do: they look at the loss, and copy constants to the device."""
    first = counted["alone"]["finite difference"][0]
    assert {name.split()[0] for name in first} >= {"tolist", "aten._local_scalar_dense.default"}


@pytest.mark.parametrize("case", ALONE)
def test_an_optimizer_alone(case, counted):
    assert counted["alone"][case][1:] == [{}] * 7
    if case == "AdamW":
        assert counted["alone"][case][0] == {}


@pytest.mark.parametrize("case", IN_THE_HARNESS)
def test_a_step_of_the_harness(case, counted):
    steps, rows = counted["harness"][case]
    assert rows == STEPS // LOGGED
    for number, waits in enumerate(steps[1:], 2):
        # The end of a step is noted before its row is read: that belongs to the one after.
        if (number - 1) % LOGGED == 0:
            assert sum(n for name, n in waits.items() if name.startswith("tolist")) == 1
            waits = {n: c for n, c in waits.items() if not n.startswith(("tolist", "synchronize"))}
        assert waits == {}, f"step {number}"
