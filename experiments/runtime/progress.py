"""What a training shows on the screen."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import IO, Any


def say(text: str, stream: IO[str] | None = None) -> None:
    """Print a line, on stderr unless told otherwise, if it can be printed.

    Nothing ends because nobody reads it any more, its log's disk is full or lacks the characters.
    """
    with suppress(OSError, ValueError):
        print(text, file=stream or sys.stderr, flush=True)


class Progress:
    """A run's progress on stderr: a bar on a terminal, now and then a line anywhere else.

    Best effort: what cannot be shown is not shown.

    Args:
        label: names the run.
        total: steps of the whole training.
    """

    line_every_seconds = 30
    bars = True  # on a terminal; False where several processes share it

    def __init__(self, label: str, total: int, stream: IO[str] | None = None) -> None:
        self.label, self.total = label, total
        self.stream = stream or sys.stderr
        self.bar = None
        with self._shown():
            if self.bars and self.stream.isatty():
                self.bar = self._make_bar()
        self.last_line = time.monotonic()

    def _make_bar(self) -> Any:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TextColumn("{task.percentage:3.0f}%"),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[note]}"),
            console=Console(file=self.stream),
            refresh_per_second=2,
        )
        self.task = bar.add_task(self.label, total=self.total, note="")
        return bar

    @contextmanager
    def _shown(self) -> Iterator[None]:
        """Go on without the bar where its terminal is gone, or whatever else befalls it."""
        try:
            yield
        except Exception:
            self.bar = None

    def __enter__(self) -> "Progress":
        with self._shown():
            if self.bar:
                self.bar.start()
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._shown():
            if self.bar:
                self.bar.stop()

    def step(self, step: int) -> None:
        """`step` steps are done."""
        with self._shown():
            if self.bar:
                self.bar.update(self.task, completed=step)

    def note(self, text: str, last: bool = False) -> None:
        """Show the latest figures; off a terminal at most one line in a while, and the last."""
        now = time.monotonic()
        if self.bar:
            with self._shown():
                self.bar.update(self.task, note=text)
        elif last or now - self.last_line >= self.line_every_seconds:
            self.last_line = now
            say(f"{self.label}: {text}", self.stream)
