"""Stopping on request: a signal asks, and the training loop answers once its step is finished.

Slurm sends SIGUSR2 ahead of the time limit and of a preemption, SIGTERM where it will not wait;
other schedulers, or whoever asked them to, SIGUSR1, and SIGXCPU where the processor's time is used
up; a person presses Ctrl-C, or closes the terminal (SIGHUP, which `nohup` ignores). Each ends the
training at the next step with a checkpoint of that step.
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (
    signal.SIGINT, signal.SIGTERM, signal.SIGUSR2, signal.SIGHUP, signal.SIGUSR1, signal.SIGXCPU,
)  # fmt: skip

_requested: signal.Signals | None = None


class Stopped(Exception):
    """A training that ended early because a signal asked for it; its checkpoint is saved.

    Attributes:
        signal: the one that asked.
        exit_code: 128 + its number, as shells do: 130 SIGINT, 143 SIGTERM, 140 SIGUSR2, 129 SIGHUP,
            138 SIGUSR1, 152 SIGXCPU.
    """

    def __init__(self, number: signal.Signals) -> None:
        super().__init__(f"stopped by {number.name}")
        self.signal = number
        self.exit_code = 128 + number


class Paused(Exception):
    """A training that ended after the epoch up to which it was asked for; its checkpoint is saved.

    Args:
        epoch: of them.
    """

    def __init__(self, epoch: int) -> None:
        super().__init__(f"paused after epoch {epoch}, where trials are compared")


def requested() -> signal.Signals | None:
    """The signal that asked to stop, if one did."""
    return _requested


def heard() -> list[signal.Signals]:
    """`SIGNALS`, without a SIGHUP that whoever started this process has told it to ignore."""
    nohup = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    return [number for number in SIGNALS if not (nohup and number == signal.SIGHUP)]


@contextmanager
def listening() -> Iterator[None]:
    """Take `SIGNALS` as requests; only in the main thread, where Python delivers them.

    Raises:
        Stopped: on leaving, if a request came too late for whoever should have answered it.
    """
    global _requested
    _requested = None
    before = {number: signal.signal(number, _request) for number in heard()}
    try:
        yield
        if _requested:
            raise Stopped(_requested)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _requested = None


def _request(number: int, frame: FrameType | None) -> None:
    global _requested
    if number == signal.SIGINT and _requested == signal.SIGINT:
        raise KeyboardInterrupt  # who presses Ctrl-C twice does not want to wait for the step
    # SIGUSR2 also says that the job may go on later, so a SIGTERM beside it takes nothing back.
    if _requested != signal.SIGUSR2:
        _requested = signal.Signals(number)
