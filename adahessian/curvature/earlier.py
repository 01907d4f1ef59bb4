"""What earlier evaluations have shown of a loss, for those that follow."""

from collections import deque
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from adahessian.curvature.attributes import Places
from adahessian.curvature.changes import Usual
from adahessian.curvature.check import AccuracyCheck
from adahessian.curvature.gates import Gates
from adahessian.curvature.searches import Searches
from adahessian.curvature.snapshot import modules_around
from adahessian.curvature.verdict import Verdict

# What tells one loss from another: its operations, and which parameters had a gradient.
Kinds = tuple[frozenset[str], tuple[bool, ...]]


class Earlier:
    """What earlier evaluations have shown of a loss, for those that follow.

    Where a recorded evaluation met no gate, the loss is smooth: the next ``LOOK_AGAIN`` refreshes
    evaluate it as it is, compiled code included, which would show no gates. Then one is recorded
    again. Nothing of it is saved: a refresh that is recorded has the same result. What is known is
    known of a loss made of these operations: the closure may compute another one (two tasks in
    turns, a penalty that sets in later), which is recorded, too.

    Attributes:
        is_smooth: whether the coming refresh need not be recorded.
        modules: whose buffers an evaluation may change; None before they are looked for.
        params: theirs.
        places: their attributes that it has changed; None before the first.
        autocast_dtype, called, dtypes: see :class:`Gates`.
        wrappers: the DistributedDataParallel modules that the last recorded evaluation called.
        part_wrappers: those of the last part of a batch; None before the first.
        verdicts: of the last refreshes, where they have not been told.
        has_compared: whether the processes are known to ask for the same products.
        has_hidden_pieces: whether there are some that only the kernels below autograd show.
        refills: whether the closure writes its gradients into the tensors that held those of the
            evaluation before; None before that is known.
        searches: the forward methods of custom functions that are not to be frozen.
        looked_at: the losses in which such pieces were looked for, by their operations.
        smooth: those that met no gate.
        changes, unexplained: those of losses from one evaluation to the next, and of smooth ones
            what the gradients do not say of it.
        is_explained: whether the gradients of the last recorded evaluation are those of what the
            closure returned.
    """

    LOOK_AGAIN = 64

    def __init__(self) -> None:
        self.is_smooth = False
        self.modules: list[nn.Module] | None = None
        self.params: list[Tensor] = []
        self.places: Places | None = None
        self.autocast_dtype: torch.dtype | None = None
        self.called: set[str] = set()
        self.dtypes: set[torch.dtype] = set()
        self.wrappers: dict[DistributedDataParallel, None] = {}
        self.part_wrappers: dict[DistributedDataParallel, None] | None = None
        self.verdicts: deque[Verdict] = deque()
        self.has_hidden_pieces = self.has_compared = False
        self.refills: bool | None = None
        self.searches = Searches()
        self.looked_at: set[Kinds] = set()
        self.smooth: set[Kinds] = set()
        self.is_explained = False
        self.changes, self.unexplained = Usual(), Usual()
        self._remaining = 0

    def begin_refresh(self, *, look: bool = False) -> None:
        """Count a refresh.

        Args:
            look: record its evaluation in any case.
        """
        self.is_smooth = self._remaining > 0 and not look
        self._remaining -= 1

    def always_record(self) -> None:
        """Take nothing that was learned for granted at the next refresh."""
        self._remaining = 0

    def hear(self, *, but: int = 0) -> bool:
        """Warn of what has been found; return whether another h may help.

        Args:
            but: verdicts of so many last refreshes, which may still be on their way to the host.
        """
        found = False
        while len(self.verdicts) > but:
            verdict = self.verdicts.popleft()
            found |= verdict.tell()
            self._learn_of_strays(verdict.accuracy)
        return found

    def _learn_of_strays(self, accuracy: AccuracyCheck) -> None:
        if accuracy.recorded_strays is not None:
            self.is_explained = not accuracy.recorded_strays
        if accuracy.strays is not None and accuracy.strays:
            self.always_record()

    def known_modules(self, params: Iterable[Tensor]) -> list[nn.Module]:
        """Return ``modules``; the first time, look for those around some parameters."""
        if self.modules is None:
            self.modules = modules_around(params)
        return self.modules

    def learn(self, gates: Gates, modules: Iterable[nn.Module], params: Iterable[Tensor]) -> None:
        """Take in a recorded evaluation.

        Args:
            gates: that recorded it.
            modules: all that are known.
            params: whose gradients they may change.
        """
        self.modules, self.params = list(modules), list(params)
        self.autocast_dtype, self.called = gates.autocast_dtype, gates.called
        self.dtypes = gates.dtypes
        # Other leaves of the graph may be new ones in each step, which only a record finds.
        others = gates.leaves.keys() - set(self.params)
        self._remaining = 0 if gates.met_pieces or others else self.LOOK_AGAIN
