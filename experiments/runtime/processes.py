"""Many calls of one function, several at a time, each in a process of its own.

A call that crashes takes no other one with it. The processes are forked from a server that imports
modules once and does nothing else: importing torch takes longer than a small training. A signal
reaches every process once, and none is started after it.
"""

import multiprocessing
import os
import signal
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from types import FrameType
from typing import Any

from experiments.errors import UserError
from experiments.runtime.stopping import Stopped, heard


def run_each(
    function: Callable[[Any, int], int],
    items: Sequence[Any],
    at_a_time: int,
    preload: Sequence[str] = (),
    ended: Callable[[Any, int], None] = lambda item, code: None,
) -> list[int]:
    """Call `function(item, slot)` for every item.

    Args:
        function: of a module that can be imported; returns an exit code.
        items: in the order in which they are begun; can be pickled.
        at_a_time: how many calls there are at the same time. The slots are numbered from 0, and no
            two calls have the same one at the same time.
        preload: modules that take long to import.
        ended: called with an item and its exit code, or minus the signal that killed its process.

    Returns:
        The exit code of each, 128 + the signal where one killed it.

    Raises:
        Stopped: a signal came; all processes have ended, and items may not have been begun.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(preload))
    waiting = deque(enumerate(items))
    running: dict[int, tuple[Any, int]] = {}  # by slot: the process, and the place of its item
    codes = [0] * len(items)
    with _passing_on(running) as came:
        while running or (waiting and not came):
            while waiting and len(running) < at_a_time and not came:
                place, item = waiting.popleft()
                slot = min(set(range(at_a_time)) - running.keys())
                process = context.Process(
                    target=_call, args=(dict(os.environ), function, item, slot)
                )
                _start(process)
                assert process.pid is not None  # it was started
                running[slot] = process, place
                for number in came:  # while it was being started
                    os.kill(process.pid, number)
            ready = connection.wait([process.sentinel for process, _ in running.values()])
            for slot, (process, place) in list(running.items()):
                if process.sentinel in ready:
                    process.join()
                    code = process.exitcode
                    codes[place] = 128 - code if code < 0 else code
                    del running[slot]
                    ended(items[place], code)
    if came:
        raise Stopped(signal.Signals(came[0]))
    return codes


def _start(process: BaseProcess) -> None:
    """Start it; the first one starts the server, whose socket lies in the temporary folder."""
    try:
        process.start()
    except OSError as error:
        if "AF_UNIX path too long" not in str(error):
            raise
        raise UserError(
            f"TMPDIR = {tempfile.gettempdir()}: too long a path for a socket; set a shorter one "
            "(TMPDIR=/tmp), or train one run at a time, each by a command of its own"
        ) from None


@contextmanager
def _passing_on(running: dict[int, tuple[Any, int]]) -> Iterator[list[int]]:
    """Send signals on to the processes; yields the list of those that came."""
    came: list[int] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        came.append(number)
        for process, _ in list(running.values()):
            if process.is_alive():
                os.kill(process.pid, number)

    before = {number: signal.signal(number, pass_on) for number in heard()}
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _call(
    environment: dict[str, str], function: Callable[[Any, int], int], item: Any, slot: int
) -> None:
    os.environ.clear()  # the server's, as it was when the first process was started
    os.environ.update(environment)
    os.setpgid(0, 0)  # Ctrl-C reaches the parent alone, which passes it on: twice would not wait
    threading.Thread(target=_end_with_parent, daemon=True).start()
    sys.exit(function(item, slot))


def _end_with_parent() -> None:
    """Stop as by a signal where the parent was killed, rather than go on unseen."""
    if (parent := multiprocessing.parent_process()) is not None:
        parent.join()
    os.kill(os.getpid(), signal.SIGTERM)
