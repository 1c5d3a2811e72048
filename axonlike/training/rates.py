"""The learning rate: read, written, and lowered where training is stuck."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import optax

from axonlike.errors import ShapeError
from axonlike.spec import show
from axonlike.training.events import Callback, Handlers
from axonlike.training.options import positive, real, whole
from axonlike.training.watch import Mode, Watch
from axonlike.types import PyTree

RATE = "learning_rate"


def learning_rate(state: PyTree) -> float:
    """The learning rate in a state of training.

    It is there if the optimizer was made with `optax.inject_hyperparams`, as
    `optax.inject_hyperparams(optax.adam)(learning_rate=1e-3)`.

    Args:
        state: a `TrainState`, or an optimizer's state.

    Shapes:
        No arrays.

    Raises:
        ValueError: there is none, or there are several.

    Example:
        >>> import optax, axonlike as al
        >>> optimizer = optax.inject_hyperparams(optax.sgd)(learning_rate=0.5)
        >>> al.learning_rate(optimizer.init({}))
        0.5
    """
    return float(np.asarray(_found("learning_rate", state)).item())


def with_learning_rate(state: PyTree, value: float) -> Any:
    """The state of training with another learning rate; nothing is compiled anew.

    Args:
        state: a `TrainState`, or an optimizer's state.
        value: from the next step on.

    Shapes:
        As the state's.

    Raises:
        ValueError: there is none, there are several, or a schedule sets it every step.
        ShapeError: `value` is not one number.

    Example:
        >>> import optax, axonlike as al
        >>> optimizer = optax.inject_hyperparams(optax.sgd)(learning_rate=0.5)
        >>> al.learning_rate(al.with_learning_rate(optimizer.init({}), 0.25))
        0.25
    """
    if not hasattr(value, "dtype"):
        real("with_learning_rate", value=value)
    old: Any = _found("with_learning_rate", state)
    tree: Any = getattr(state, "opt_state", state)
    if _is_scheduled(tree):
        raise ValueError(
            "with_learning_rate: a schedule sets the learning rate at every step. "
            "Pass a number to inject_hyperparams, or change the schedule."
        )
    if np.shape(value) != np.shape(old):
        hint = "Write one of the shape that there is."
        raise ShapeError("with_learning_rate", show(old), show(value), hint)
    new = jnp.asarray(value, getattr(old, "dtype", jnp.float32))
    changed: Any = optax.tree.set(tree, _is_rate, learning_rate=new)
    return changed if tree is state else state._replace(opt_state=changed)


def plateau(
    metric: str | None = None,
    *,
    factor: float = 0.1,
    patience: int = 3,
    min_delta: float = 0.0,
    mode: Mode = "min",
    lowest: float = 0.0,
) -> Callback:
    """Lowers the learning rate when a metric gets no better.

    The optimizer is made with `optax.inject_hyperparams`. A metric of validation is looked
    at after each validation, any other after each epoch.

    Args:
        metric: its name; None: `validation_loss`, without validation `loss`.
        factor: by what the rate is multiplied; between 0 and 1.
        patience: after so many times in a row without an improvement.
        min_delta: by more than so much a value has to be better to be an improvement.
        mode: whether the metric should be `"min"` or `"max"`.
        lowest: the rate goes no lower.

    Shapes:
        No arrays.

    Raises:
        ValueError: an option is out of range, or there is no learning rate to be written.

    Example:
        >>> import optax, axonlike as al
        >>> optimizer = optax.inject_hyperparams(optax.sgd)(learning_rate=0.5)
        >>> r = al.fit(
        ...     lambda state, _: (state, {"loss": 1.0}), optimizer.init({}), [None],
        ...     epochs=4, callbacks=[al.callbacks.plateau(factor=0.5, patience=3)])
        >>> al.learning_rate(r.state)
        0.25
    """
    patience = whole("plateau", "patience", patience)
    positive("plateau", factor=factor)
    real("plateau", lowest=lowest)
    if factor >= 1:
        raise ValueError(f"plateau: factor must be below 1, got {factor}.")
    Watch("plateau", metric, mode, min_delta)

    def bind(loop: Any) -> Handlers:
        learning_rate(loop.state)
        watch = Watch("plateau", metric, mode, min_delta)

        def measured(loop: Any) -> None:
            if not watch.improves(loop) and watch.waited >= patience:
                rate = max(learning_rate(loop.state) * factor, lowest)
                loop.state = with_learning_rate(loop.state, rate)
                watch.waited = 0

        return Handlers({watch.event(loop): measured}, watch.get_state, watch.set_state)

    return bind


def _found(where: str, state: PyTree) -> Any:
    tree: Any = getattr(state, "opt_state", state)
    found: Any = optax.tree.get_all_with_path(tree, RATE, _is_rate)
    if len(found) != 1:
        raise ValueError(
            f"{where}: expected one learning rate in the optimizer's state, got "
            f"{len(found)}. Make it with optax.inject_hyperparams(optax.adam)("
            "learning_rate=1e-3)."
        )
    return found[0][1]


def _is_rate(path: Any, value: Any) -> bool:
    """Whether it is one that inject_hyperparams keeps, not the state of a schedule."""
    return len(path) > 1 and getattr(path[-2], "name", "") == "hyperparams"


def _is_scheduled(tree: Any) -> bool:
    states: Any = optax.tree.get_all_with_path(tree, "hyperparams_states")
    return any(RATE in each for _, each in states)
