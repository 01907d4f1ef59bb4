"""A model's Hessian and Gauss-Newton matrix, by their products with vectors.

    hessian = Hessian(lambda batch: loss_fn(model(batch[0]), batch[1]), model, loader)
    top_eigenvalues(hessian, 5)

The model is used in the mode it is in and left as it was, also if an evaluation raises: buffers
(running statistics), gradients, random states and the train/eval flags are those of before.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from adahessian import _torch
from adahessian._torch import pytree
from adahessian.curvature import CURVATURES
from adahessian.curvature.double_backward import double_backward
from adahessian.curvature.second_derivatives import CustomFunctions, SecondDerivatives
from adahessian.curvature.snapshot import RandomStates, set_random_states
from adahessian.dtypes import widest
from adahessian.replicas import is_sharded
from adahessian.spectrum.evaluation import PreservedState, ShiftedEvaluation

# Multiplies a vector, given as one tensor per parameter; True if another product will follow.
Product = Callable[[list[Tensor], bool], list[Tensor]]


def layers(model: nn.Module) -> dict[str, list[nn.Parameter]]:
    """Return the trainable parameters of each module that has some of its own, by its name.

    The lists are what :class:`Hessian` takes for the layers' diagonal blocks. A parameter that
    several modules share is listed with the first one.
    """
    seen: set[nn.Parameter] = set()
    found = {}
    for name, module in _torch.named_modules(model):
        parameters = _torch.parameters(module).values()
        own = [p for p in parameters if p.requires_grad and p not in seen]
        seen.update(own)
        if own:
            found[name] = own
    return found


@dataclass
class _Evaluation:
    """What is known of a batch after its first evaluation."""

    random: RandomStates  # the random states it starts from
    loss: float
    weight: float
    product: Product | None  # None if the batch has to be evaluated again for each product


class _BatchedMatvec:
    """The weighted mean over batches of some matrix of each batch; see :class:`Hessian`."""

    def __init__(
        self,
        params: nn.Module | Iterable[Tensor],
        batches: Iterable[Any] | None,
        *,
        curvature: str = "double_backward",
        weight: Callable[[Any], float] | None = None,
        keep_batches: int = 1,
        process_group: dist.ProcessGroup | None = None,
    ) -> None:
        params = params.parameters() if isinstance(params, nn.Module) else params
        self.params = [p for p in dict.fromkeys(params) if p.requires_grad]
        if not self.params:
            raise ValueError("params holds no tensor that requires a gradient")
        for p in self.params:
            if not p.is_floating_point() or is_sharded(p):
                raise ValueError(
                    f"a parameter of shape {tuple(p.shape)} is {p.dtype} or a DTensor: parameters "
                    "must be real, and whole on every process"
                )
        if curvature not in CURVATURES:
            raise ValueError(f"curvature must be one of {', '.join(CURVATURES)}, got {curvature!r}")
        if batches is not None and iter(batches) is batches:
            raise ValueError(
                "batches is an iterator, which can be gone through once only: pass a list or a "
                "DataLoader"
            )
        if keep_batches < 0:
            raise ValueError(f"keep_batches must be 0 or more, got {keep_batches}")
        self.size = sum(p.numel() for p in self.params)
        self.device = self.params[0].device
        self.dtype = torch.float32
        for p in self.params:
            self.dtype = torch.promote_types(self.dtype, p.dtype)
        self.exact = curvature == "double_backward"
        self._batches, self._keep_batches, self._group = batches, keep_batches, process_group
        self._weight = (lambda _: 1.0) if batches is None else weight or _num_samples
        self._preserved_state = PreservedState(self.params)
        self._evaluations: list[_Evaluation] = []
        self._first_time = True
        self._check = False  # whether to see if the evaluation is repeatable
        self._total_weight = 0.0

    def __call__(self, vector: Tensor) -> Tensor:
        """Return the product with a vector; both (size,), on ``device``, in ``dtype``.

        Raises:
            ValueError: the vector has another shape, or the batches are not what is needed.
            RuntimeError: the parameters or the batches have changed since the first product.
        """
        if vector.shape != (self.size,):
            raise ValueError(f"expected a vector of shape ({self.size},), got {vector.shape}")
        if self._first_time:
            self._versions = [_torch.version(p) for p in self.params]
            self._random = self._preserved_state.random_states()
            self._evaluations.clear()  # a first product may have failed half way
        elif self._versions != [_torch.version(p) for p in self.params]:
            raise RuntimeError(
                "the parameters have changed since the first product: make a new "
                f"{type(self).__name__} for the new ones"
            )
        total = torch.zeros_like(vector)
        pieces = self.split(vector)
        with self._preserved_state:
            for weight, product in self._products(pieces):
                flat = [part.reshape(-1).to(total.device, total.dtype) for part in product]
                total.add_(torch.cat(flat), alpha=weight)
        if self._group is not None:
            dist.all_reduce(total, group=self._group)
        if self._first_time:
            self._total_weight = self._sum_over_processes(sum(e.weight for e in self._evaluations))
            self._first_time = False
        return total.div_(self._total_weight)

    def split(self, vector: Tensor) -> list[Tensor]:
        """Return a vector's parts, one of each parameter's shape, dtype and device."""
        parts = vector.split([p.numel() for p in self.params])
        return [
            part.view(p.shape).to(p.device, p.dtype)
            for part, p in zip(parts, self.params, strict=True)
        ]

    def _evaluate(self, batch: Any) -> tuple[float, Product]:
        """Evaluate a batch; return its loss and what multiplies its matrix."""
        raise NotImplementedError

    def _products(self, pieces: list[Tensor]) -> Iterator[tuple[float, list[Tensor]]]:
        """Yield each batch's weight and its product."""
        known = self._evaluations
        kept = [(e.weight, e.product) for e in known if e.product is not None]
        if not self._first_time and len(kept) == len(known):
            for weight, product in kept:
                yield weight, product(pieces, True)
            return
        # A loader that shuffles by torch's generator takes the same order again.
        set_random_states(self._random)
        count = 0
        for index, batch in enumerate([()] if self._batches is None else self._batches):
            count += 1
            keep = index < self._keep_batches
            if self._first_time:
                product = self._evaluate_first(batch, keep)
            elif index < len(known):
                product = known[index].product or self._evaluate_again(batch, index)
            else:
                break
            yield known[index].weight, product(pieces, keep)
        if count != len(known):
            number = "more" if count > len(known) else count
            raise _other_batches(f"there are {number}, not {len(known)}")

    def _evaluate_first(self, batch: Any, keep: bool) -> Product:
        random = self._preserved_state.random_states()
        self._check = not self._evaluations
        loss, product = self._evaluate(batch)
        self._check = False
        weight = float(self._weight(batch))
        self._evaluations.append(_Evaluation(random, loss, weight, product if keep else None))
        return product

    def _evaluate_again(self, batch: Any, index: int) -> Product:
        first = self._evaluations[index]
        set_random_states(first.random)
        loss, product = self._evaluate(batch)
        if abs(loss - first.loss) > 1e-3 * abs(first.loss) + 1e-6:
            raise _other_batches(f"the loss of batch {index} is {loss}, not {first.loss}")
        return product

    def _sum_over_processes(self, weight: float) -> float:
        total = torch.tensor(weight, dtype=widest(self.device), device=self.device)
        if self._group is not None:
            dist.all_reduce(total, group=self._group)
        if not total > 0:
            raise ValueError(f"the batches' weights add up to {float(total)}: are there any?")
        return float(total)


class Hessian(_BatchedMatvec):
    """The Hessian of the mean loss over batches, with respect to some parameters.

    Args:
        loss: takes a batch and returns its mean loss, a scalar tensor; called with nothing if
            ``batches`` is None. It draws random numbers from torch's generators only.
        params: a model, or the parameters whose block of the Hessian is meant: a layer's, say
            (:func:`layers`). Frozen ones are left out, unused ones have rows of zeros. ``params``
            lists those that count; the vectors' elements follow its order.
        batches: the batches, the same ones in each pass. Batch statistics are each batch's own.
        curvature: ``"double_backward"``, exact, or ``"finite_difference"``, which costs and
            holds no more than a training step; its errors are about a percent of the largest
            eigenvalue (docs/spectrum.md).
        weight: takes a batch and returns how much its mean loss weighs, such as its number of
            tokens (default: the length of its first tensor).
        keep_batches: so many batches keep what the first product computed (the graph of the
            gradient; with finite differences the gradient and the frozen gates), which makes each
            further product cheaper by a forward and a backward pass. The others are evaluated
            anew in each product.
        process_group: its processes each have batches of their own; the products are those of
            the mean over all of them. Parameters and vectors must be equal everywhere. The model
            is to be the bare one, without DistributedDataParallel.

    Attributes:
        size, dtype, device: of the vectors; dtype is at least float32.
        params: the parameters, in the order of the vectors' elements.
        exact: whether products are exact up to rounding.

    Raises:
        ValueError: an argument that does not fit.
    """

    def __init__(
        self,
        loss: Callable[..., Tensor],
        params: nn.Module | Iterable[Tensor],
        batches: Iterable[Any] | None = None,
        **options,
    ) -> None:
        super().__init__(params, batches, **options)
        self._loss = loss

    def _evaluate(self, batch: Any) -> tuple[float, Product]:
        arguments = () if self._batches is None else (batch,)
        return self._exact(arguments) if self.exact else self._finite(arguments)

    # The products hold no reference to this object: the graphs in them are to be freed with it.

    def _exact(self, arguments: tuple) -> tuple[float, Product]:
        params = self.params
        mode = SecondDerivatives(look=self._check)
        with torch.enable_grad(), torch.compiler.set_stance("force_eager"), mode:
            loss = _check_loss(self._loss(*arguments))
            custom = CustomFunctions([loss] if self._check else [], mode.computed)
            grads = torch.autograd.grad(loss, params, create_graph=True, allow_unused=True)
        if self._check:
            custom.check(grads)
        _check_dense(grads)
        used = [i for i, g in enumerate(grads) if g is not None]
        used_grads = [grads[i] for i in used]

        def product(pieces: list[Tensor], more: bool) -> list[Tensor]:
            return double_backward(used_grads, params, [pieces[i] for i in used], retain_graph=more)

        return float(loss.detach()), product

    def _finite(self, arguments: tuple) -> tuple[float, Product]:
        params, loss_function, losses = self.params, self._loss, []

        def gradients() -> list[Tensor]:
            for p in params:
                p.grad = None
            loss = _check_loss(loss_function(*arguments))
            loss.backward(inputs=params)
            losses.append(float(loss.detach()))
            _check_dense([p.grad for p in params])
            return [torch.zeros_like(p) if p.grad is None else p.grad for p in params]

        shifted = ShiftedEvaluation(gradients, params, check=self._check)

        def product(pieces: list[Tensor], more: bool) -> list[Tensor]:
            grads, step = shifted.at(pieces)
            if not step:
                return [torch.zeros_like(p) for p in params]
            return list(torch._foreach_div(torch._foreach_sub(grads, shifted.value), step))

        return losses[0], product


class GaussNewton(_BatchedMatvec):
    """The Gauss-Newton matrix of the mean loss: the mean of Jᵀ·H·J over the batches.

    J is the Jacobian of the model's outputs, H the Hessian of the loss with respect to them. It is
    positive semi-definite if the loss is convex in the outputs (Schraudolph 2002), and the part of
    the Hessian that remains where the outputs are linear in the parameters.

    Args:
        outputs: takes a batch and returns the model's outputs, one tensor.
        loss: takes outputs and a batch and returns the batch's mean loss, a scalar tensor.
        params, batches, and further options: as for :class:`Hessian`.
    """

    def __init__(
        self,
        outputs: Callable[[Any], Tensor],
        loss: Callable[[Tensor, Any], Tensor],
        params: nn.Module | Iterable[Tensor],
        batches: Iterable[Any],
        **options,
    ) -> None:
        super().__init__(params, batches, **options)
        self._outputs, self._loss = outputs, loss

    def _evaluate(self, batch: Any) -> tuple[float, Product]:
        params = self.params
        outputs, times_jacobian = (self._exact if self.exact else self._finite)(batch)
        point = outputs.detach().requires_grad_()
        with torch.enable_grad():
            loss = _check_loss(self._loss(point, batch))
            (output_grad,) = torch.autograd.grad(loss, point, create_graph=True)

        def product(pieces: list[Tensor], more: bool) -> list[Tensor]:
            tangent = times_jacobian(pieces)
            (curved,) = double_backward([output_grad], [point], [tangent], retain_graph=more)
            parts = torch.autograd.grad(
                outputs, params, curved, retain_graph=more, allow_unused=True
            )
            return [
                torch.zeros_like(p) if part is None else part
                for p, part in zip(params, parts, strict=True)
            ]

        return float(loss.detach()), product

    def _exact(self, batch: Any) -> tuple[Tensor, Callable[[list[Tensor]], Tensor]]:
        # u -> Jᵀu is linear: differentiating its product with v by u gives J·v.
        with torch.enable_grad(), torch.compiler.set_stance("force_eager"), SecondDerivatives():
            outputs = _check_depends(self._outputs(batch), "the outputs")
            u = torch.zeros_like(outputs, requires_grad=True)
            custom = CustomFunctions([outputs] if self._check else [])
            pulled = torch.autograd.grad(
                outputs, self.params, u, create_graph=True, allow_unused=True
            )
        if self._check:
            custom.check(pulled)
        used = [i for i, g in enumerate(pulled) if g is not None]

        def times_jacobian(pieces: list[Tensor]) -> Tensor:
            grads, vectors = [pulled[i] for i in used], [pieces[i] for i in used]
            return torch.autograd.grad(grads, u, vectors, retain_graph=True)[0]

        return outputs, times_jacobian

    def _finite(self, batch: Any) -> tuple[Tensor, Callable[[list[Tensor]], Tensor]]:
        outputs_function, graph_needed = self._outputs, [True]

        def closure() -> Tensor:
            # The further evaluations move parameters and buffers and put them back. The graph is
            # used in between only, so it need not count that as a change.
            hooks = torch.autograd.graph.saved_tensors_hooks(Tensor.detach, lambda saved: saved)
            with torch.set_grad_enabled(bool(graph_needed) and graph_needed.pop()), hooks:
                return outputs_function(batch)

        shifted = ShiftedEvaluation(closure, self.params)
        outputs = _check_depends(shifted.value, "the outputs")

        def times_jacobian(pieces: list[Tensor]) -> Tensor:
            moved, step = shifted.at(pieces)
            return (moved - outputs.detach()).div_(step) if step else torch.zeros_like(outputs)

        return outputs, times_jacobian


def _num_samples(batch: Any) -> int:
    tensors = [leaf for leaf in pytree.tree_leaves(batch) if isinstance(leaf, Tensor) and leaf.ndim]
    if not tensors:
        raise ValueError(
            f"a batch of type {type(batch).__name__} shows no tensor whose length is the number of "
            "samples: pass weight="
        )
    return len(tensors[0])


def _check_loss(loss: Any) -> Tensor:
    if isinstance(loss, Tensor) and loss.numel() != 1:
        raise ValueError(f"the loss must be a scalar, got shape {tuple(loss.shape)}")
    return _check_depends(loss, "the loss")


def _check_depends(value: Any, name: str) -> Tensor:
    if not isinstance(value, Tensor):
        raise ValueError(f"{name} must be a tensor, got {type(value).__name__}")
    if not value.requires_grad:
        raise ValueError(f"{name} has no gradient: does it depend on the parameters?")
    return value


def _check_dense(grads: Iterable[Tensor | None]) -> None:
    if any(g is not None and g.is_sparse for g in grads):
        raise ValueError("a gradient is sparse: build the embedding with sparse=False")


def _other_batches(found: str) -> RuntimeError:
    return RuntimeError(
        f"the batches are not those of the first product: {found}. Every pass must give the same "
        "batches in the same order, and the loss must be repeatable"
    )
