"""Looking through autograd's graph."""

from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor
from torch.autograd.graph import Node

from adahessian.curvature.constants import tensors_in

# A reentrant checkpoint, which runs a backward pass of its own within that of the loss.
REENTRANT = "CheckpointFunctionBackward"


def nodes_below(tensors: Iterable[Tensor]) -> Iterator[Node]:
    """Yield each operation on the way from tensors to the leaves that they are computed from."""
    pending, seen = [t.grad_fn for t in tensors], set()
    while pending:
        node = pending.pop()
        if node is None or node in seen:
            continue
        yield node
        seen.add(node)
        pending.extend(following for following, _ in node.next_functions)


def kinds_below(value: Any) -> frozenset[str]:
    """Return the names of the operations that what a closure returns was computed by.

    The same loss has the same ones for another batch, also if a loop runs more often.
    """
    return frozenset(node.name() for node in nodes_below(tensors_in(value)))


def has_node(tensors: Iterable[Tensor], name: str) -> bool:
    """Return whether a function's derivative, by its name in autograd, is in the tensors' graph."""
    return any(node.name() == name for node in nodes_below(tensors))


def leaves_below(tensors: Iterable[Tensor]) -> dict[Tensor, None]:
    """Return the leaves whose gradients a backward pass from some tensors accumulates."""
    tensors = list(tensors)
    leaves = {t: None for t in tensors if t.is_leaf and t.requires_grad}
    # The node that accumulates a leaf's gradient has it as an attribute, for those who look.
    found = (getattr(node, "variable", None) for node in nodes_below(tensors))
    return leaves | {t: None for t in found if t is not None}
