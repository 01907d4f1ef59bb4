"""The layouts of frameworks that have the spatial axes of kernels first, as flax and Keras do."""

_ORDER = ("kernel", "in", "out")


def declared_axes(axes: list[str], block_size: int | str | None) -> tuple[int, ...] | None:
    """Return a parameter's ``block_axes``: None for layouts whose axes such a library knows.

    Args:
        axes: what each axis is, as a case has it.
        block_size: of the parameter.
    """
    if axes == sorted(axes, key=_ORDER.index):
        return None
    if isinstance(block_size, int):
        return tuple(range(len(axes)))  # torch's layout: runs in the order of memory
    if len(axes) == 2 and block_size != "row":
        return ()
    averaged = "in" if len(axes) == 2 else "kernel"
    return tuple(axis for axis, name in enumerate(axes) if name == averaged)
