"""A curve in characters."""

from collections.abc import Sequence

EIGHTHS = " ▁▂▃▄▅▆▇█"


def curve(values: Sequence[float], width: int = 64, height: int = 6) -> list[str]:
    """The curve through equally spaced values as an area, from zero to the largest value.

    Args:
        values: not negative, from the left to the right.
        width: columns, each with the mean of the values that fall into it.
        height: lines.

    Returns:
        The lines from the top to the bottom, with the largest value and zero before them.
    """
    width = min(width, len(values))
    edges = [round(column * len(values) / width) for column in range(width + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in zip(edges, edges[1:], strict=False)]
    top = max(values) or 1.0
    eighths = [round(8 * height * mean / top) for mean in means]
    labels = [f"{max(values):.3g}", *[""] * (height - 2), "0"]
    margin = max(map(len, labels))
    return [
        f"{labels[line]:>{margin}} ┤" + "".join(
            EIGHTHS[min(8, max(0, filled - 8 * (height - 1 - line)))] for filled in eighths
        ).rstrip()
        for line in range(height)
    ]  # fmt: skip
