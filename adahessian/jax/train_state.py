"""A flax ``TrainState`` (linen) that hands the curvature to its optimizer."""

import functools
from typing import Any, cast

import optax
from flax.training import train_state


class TrainState(train_state.TrainState):
    """flax's ``TrainState``, whose ``apply_gradients`` takes ``hessian=`` as well."""

    # pyrefly: ignore [bad-override]: the curvature is not optional.
    def apply_gradients(self, *, grads: Any, hessian: Any, **kwargs: Any) -> "TrainState":
        """Return the state after one step.

        Args:
            grads: a tree like ``params``.
            hessian: the curvature estimate, a tree like ``params``
                (:func:`adahessian.jax.value_grad_and_hessian`).
            kwargs: further attributes to replace.
        """
        # flax calls tx.update without further arguments.
        tx = cast(optax.GradientTransformationExtraArgs, self.tx)
        update = functools.partial(tx.update, hessian=hessian)
        bound = self.replace(tx=optax.GradientTransformationExtraArgs(self.tx.init, update))
        stepped = super(TrainState, bound).apply_gradients(grads=grads, **kwargs)
        return stepped.replace(tx=self.tx)
