"""What a training shows on the screen."""

import sys
import time
from contextlib import suppress
from types import TracebackType
from typing import IO, Any


class Progress:
    """A run's progress on stderr: a bar on a terminal, now and then a line anywhere else.

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

    def __enter__(self) -> "Progress":
        if self.bar:
            self.bar.start()
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar:
            self.bar.stop()

    def step(self, step: int) -> None:
        """`step` steps are done."""
        if self.bar:
            self.bar.update(self.task, completed=step)

    def note(self, text: str, last: bool = False) -> None:
        """Show the latest figures; off a terminal at most one line in a while, and the last."""
        now = time.monotonic()
        if self.bar:
            self.bar.update(self.task, note=text)
        elif last or now - self.last_line >= self.line_every_seconds:
            self.last_line = now
            # A training does not end because nobody reads what it says any more.
            with suppress(OSError):
                print(f"{self.label}: {text}", file=self.stream, flush=True)
