"""torch's own test suite, imported so that it changes nothing for the tests that run after it."""

import pytest
import torch

# Whoever imports it can set no flag of torch.backends in that process any more: the commands that
# set some would fail in every test that runs after the importing file is collected.
with pytest.MonkeyPatch.context() as patch:
    patch.setattr(torch.backends, "disable_global_flags", lambda: None)
    from torch.testing._internal import common_methods_invocations, common_optimizers

__all__ = ["common_methods_invocations", "common_optimizers"]
