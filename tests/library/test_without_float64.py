"""On a device without float64 (Apple's GPUs) everything sums in float32 there."""

from support import pretend_device


def test_steps_statistics_and_spectra():
    failed = pretend_device.run("support.without_float64")
    assert not failed, "\n".join(failed.values())
