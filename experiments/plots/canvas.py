"""Empty pictures and their files: nothing else sets matplotlib up."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from pathlib import Path
from typing import Any


def pyplot() -> Any:
    """matplotlib's pyplot, without a window; imported here because it takes a second."""
    os.environ["MPLBACKEND"] = "agg"  # one that matplotlib does not have (any more) ends its import
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    return pyplot


def panels(number: int, size: tuple[float, float]) -> tuple[Any, list[Any]]:
    """A figure and its axes, side by side.

    Args:
        size: of the figure, in inches.
    """
    figure, axes = pyplot().subplots(1, number, figsize=size, squeeze=False, layout="constrained")
    return figure, list(axes[0])


_formats: ContextVar[tuple[str, ...]] = ContextVar("_formats", default=())


def save(figure: Any, path: Path, dpi: int = 150) -> None:
    """Write the picture and forget the figure; the folder is made where it is missing."""
    import numpy

    path.parent.mkdir(parents=True, exist_ok=True)
    # A logarithmic axis places ticks beyond its ends, where there may be no numbers any more.
    with numpy.errstate(over="ignore"):
        _show_texts_as_they_are(figure)
        with _naming(path):
            figure.savefig(path, dpi=dpi)
        for ending in _formats.get():
            _save_vectors(figure, path.with_suffix(f".{ending}"))
    pyplot().close(figure)


def _show_texts_as_they_are(figure: Any) -> None:
    """No text is a formula but the numbers that matplotlib itself writes at an axis.

    Texts come from files: `$` in one would be read as TeX, and end the report where it is none.
    """
    from matplotlib.text import Text
    from matplotlib.ticker import LogFormatter, ScalarFormatter

    own = set()
    for axis in (axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)):
        if isinstance(axis.get_major_formatter(), LogFormatter | ScalarFormatter):
            own |= {*axis.get_ticklabels(which="both"), axis.get_offset_text()}
    for text in figure.findobj(Text):
        text.set_parse_math(text in own)


def _save_vectors(figure: Any, path: Path) -> None:
    """The same figure gives the same file; a PDF has its fonts embedded as journals want them."""
    date = "Date" if path.suffix == ".svg" else "CreationDate"
    with pyplot().rc_context({"pdf.fonttype": 42, "svg.hashsalt": path.stem}):
        with _naming(path):
            figure.savefig(path, metadata={date: None})


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Give an error its file: a full disk is met while writing, which names none."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def as_vectors(command: Callable[[Any], None]) -> Callable[[Any], None]:
    """A command whose pictures are written as PDF and SVG, too, where its `vector` is set."""

    @wraps(command)
    def run(parsed: Any) -> None:
        token = _formats.set(("pdf", "svg") if parsed.vector else ())
        try:
            command(parsed)
        finally:
            _formats.reset(token)

    return run
