"""The loss of a model on a batch, and its gradients: the pieces of a training step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast

import jax.numpy as jnp

from axonlike.combinators.lifted import remat as rematerialized
from axonlike.errors import PathError, ShapeError
from axonlike.evaluation import evaluate
from axonlike.frame import Run
from axonlike.layer import Layer
from axonlike.policy import precision as with_precision
from axonlike.spec import show
from axonlike.training.auxiliary import Aux, auxiliary, check_aux
from axonlike.training.batch import both, inputs_of, mask_of
from axonlike.training.each import check_mean, one_by_one
from axonlike.training.metric import States, measured, named
from axonlike.types import Array, Key, Params, PyTree, State

LossFunction = Callable[[Any, Any], Any]
Loss = LossFunction | Mapping[str, LossFunction]


class Out(NamedTuple):
    """What comes with a loss: the model's new state, terms by name, states of metrics.

    `weight` says how much of the batch counts, where not all of it does.
    """

    state: State
    terms: dict[str, Array]
    metrics: States
    weight: Array | None = None


def loss_fn(
    model: Layer,
    loss: Loss,
    *,
    weights: Mapping[str, float] | None = None,
    aux: Aux | None = None,
    metrics: Any = None,
    precision: Any = None,
    remat: Any = None,
    train: bool = True,
) -> Callable[..., tuple[Array, Out]]:
    """A pure function of params, `(params, state, batch, key=None) -> (loss, out)`.

    `out.state` is the model's new state, `out.terms` the parts of the loss by name,
    `out.metrics` the states of metrics.

    Args:
        model: any layer.
        loss: `loss(predictions, batch)`: one number, or one for each example (or each
            element), whose mean is taken, of what `batch["mask"]` says counts where
            there is such a mask. `{output: loss}` for a model whose output is a dict;
            then each sees its own output.
        weights: `{output: weight}`, for several losses; 1 where nothing is said.
        aux: `{glob: weight}`, added to the loss: of values that layers emit, their
            sum over copies; of params, the sum of their squares. `{glob: function}`
            adds the function of each value or array.
        metrics: `{name: metric}`, or several metrics, of `al.metrics`.
        precision: dtype in which the model computes, with an output in float32; or
            `{"compute": ..., "params": ..., "output": ...}`, as `al.precision` takes them.
        remat: True, or a policy of `jax.checkpoint_policies`: computes the model again in
            the backward pass, rather than keep what is inside it.
        train: whether the model runs as in training.

    Shapes:
        batch: `(inputs, targets, ...)`, or a dict with `"inputs"`; first axes of examples.
        loss: a scalar.

    Raises:
        PathError: a glob of `aux` means nothing, or a loss no output.
        ShapeError: the loss is not floating point.

    Example:
        >>> import jax, jax.numpy as jnp, optax, axonlike as al
        >>> model = al.dense(3)
        >>> params, state = model.init(jax.random.key(0), (None, 4))
        >>> def loss(y, batch):
        ...     return optax.softmax_cross_entropy_with_integer_labels(y, batch[1])
        >>> f = al.loss_fn(model, loss)
        >>> value, out = f(params, state, (jnp.ones((8, 4)), jnp.zeros(8, int)))
        >>> value.shape
        ()
    """
    model = prepared(model, precision, remat)
    losses = losses_of(loss, weights)
    check_aux(aux)
    measures = named(metrics)

    def function(
        params: Params,
        state: State,
        batch: PyTree,
        key: Key | None = None,
        *,
        rows: Array | None = None,
    ) -> tuple[Array, Out]:
        options = {"rows": rows} if rows is not None and "rows" in model.options else {}
        run = Run(key, train, options)
        extra = auxiliary(model, aux, params, state, inputs_of(batch), run)
        run = run._replace(taps=extra.taps)
        y, state, taken = evaluate(model, params, state, inputs_of(batch), run)
        value, terms, weight = _total(losses, y, batch, rows)
        added = extra.values(taken, rows)
        for term in added.values():
            value = value + term
        mask = both(mask_of(batch), rows)
        return value, Out(
            state, {**terms, **added}, measured(measures, y, batch, mask), weight
        )

    return function


def prepared(model: Layer, precision: Any, remat: Any) -> Layer:
    """The model in a precision, computed again in the backward pass, or as it is."""
    if precision is not None:
        policy = {"compute": precision, "output": jnp.float32}
        if isinstance(precision, Mapping):
            policy = dict(cast("Mapping[str, Any]", precision))
        model = with_precision(model, **policy)
    if remat is None or remat is False:
        return model
    if remat is not True and not callable(remat):
        raise TypeError(
            f"remat: expected True or a policy, got {show(remat)}. "
            "Write jax.checkpoint_policies.dots_saveable."
        )
    return rematerialized(model, None if remat is True else remat)


class Term(NamedTuple):
    """One loss, of one output or (None) of all that the model says."""

    output: str | None
    function: LossFunction
    weight: float | None


def losses_of(loss: Loss, weights: Mapping[str, float] | None) -> list[Term]:
    """The losses, every option having been checked."""
    if not isinstance(loss, Mapping):
        if weights is not None:
            raise ValueError(
                "loss: weights are for several losses, got one. "
                "Write loss={output: function}, or multiply in the loss."
            )
        return [Term(None, _checked(loss), None)]
    functions = cast("Mapping[str, Any]", loss)
    for output in weights or {}:
        if output not in functions:
            raise PathError("loss: weights", str(output), map(str, functions))
    return [
        Term(output, _checked(function), (weights or {}).get(output))
        for output, function in functions.items()
    ]


def _checked(function: Any) -> LossFunction:
    if callable(function):
        return function
    raise TypeError(
        f"loss: expected a function of (predictions, batch), got {show(function)}. "
        "Write lambda y, batch: optax.l2_loss(y, batch[1])."
    )


def _total(
    losses: list[Term], y: PyTree, batch: PyTree, rows: Array | None
) -> tuple[Array, dict[str, Array], Array | None]:
    """The weighted sum of the losses, each by name, and how much of the batch counts."""
    total, weight = None, None
    terms: dict[str, Array] = {}
    for term in losses:
        each, weight = _mean(term, _output(y, term.output), batch, rows)
        if term.output is not None:
            terms[f"loss/{term.output}"] = each
        if term.weight is not None:
            each = each * jnp.asarray(term.weight, each.dtype)
        total = each if total is None else total + each
    if total is None:
        raise ValueError(
            "loss: expected at least one, got {}. Write {output: function}."
        )
    return total, terms, weight


def _output(y: PyTree, name: str | None) -> PyTree:
    if name is None:
        return y
    if not isinstance(y, Mapping) or name not in y:
        known = map(str, cast("Mapping[str, Any]", y)) if isinstance(y, Mapping) else ()
        hint = "Losses by name are for a model whose output is a dict."
        raise PathError("loss", name, known, hint)
    return cast("Mapping[str, Any]", y)[name]


def _numbers(found: Any) -> Array:
    """What a loss function returned, as an array of floats."""
    is_one = found is not None and not isinstance(found, (tuple, list, Mapping))
    values = jnp.asarray(found) if is_one else None
    if values is None or not jnp.issubdtype(values.dtype, jnp.floating):
        raise ShapeError(
            "loss", "floating-point numbers", show(found), "Return the loss itself."
        )
    if not values.size:
        raise ShapeError(
            "loss", "at least one number", show(values), "Leave empty batches out."
        )
    return values


def _mean(
    term: Term, y: PyTree, batch: PyTree, rows: Array | None
) -> tuple[Array, Array | None]:
    """The mean of a loss over what counts, and how much that is."""
    values = _numbers(term.function(y, batch))
    if values.ndim == 0 and rows is None:
        return values, None
    if values.ndim == 0:
        check_mean(term.function, y, batch)
        values = one_by_one(term.function, y, batch)
        mask = both(None, rows)
    else:
        mask = both(mask_of(batch), rows, values.shape, "loss")
    values = values.astype(jnp.promote_types(values.dtype, jnp.float32))
    if mask is None:
        return jnp.mean(values), None
    weight = jnp.sum(mask.astype(values.dtype))
    kept = jnp.where(mask, values, jnp.zeros((), values.dtype))
    return jnp.sum(kept) / jnp.maximum(weight, jnp.ones((), weight.dtype)), weight
