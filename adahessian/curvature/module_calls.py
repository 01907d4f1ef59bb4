"""The calls of modules that an evaluation makes."""

import threading
from collections.abc import Callable
from typing import Any

from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils.hooks import RemovableHandle


def before_each_call(hook: Callable[[nn.Module, Any], object]) -> RemovableHandle:
    """Call a hook with each module that this thread calls, and its arguments, until removed."""
    return register_module_forward_pre_hook(_of_this_thread(hook))


def after_each_call(hook: Callable[[nn.Module, Any, Any], None]) -> RemovableHandle:
    """Call a hook with each module that this thread has called, also where that raises."""
    return register_module_forward_hook(_of_this_thread(hook), always_call=True)


def _of_this_thread(hook: Callable[..., object]) -> Callable[..., None]:
    """torch's hooks are for all threads: another one may train a model of its own meanwhile."""
    thread = threading.get_ident()

    def called(*args: Any) -> None:
        if threading.get_ident() == thread:
            hook(*args)

    return called
