"""The loss of a model on a batch, and its gradients: the pieces of a training step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast

import jax.numpy as jnp

from axonlike.combinators.lifted import remat as rematerialized
from axonlike.errors import PathError, ShapeError
from axonlike.evaluation import evaluate
from axonlike.frame import Run
from axonlike.io.given import check_layer
from axonlike.layer import Layer
from axonlike.policy import precision as with_precision
from axonlike.spec import show
from axonlike.training.auxiliary import Aux, auxiliary, check_aux, is_weight
from axonlike.training.batch import both, inputs_of, mask_of
from axonlike.training.each import check_mean, one_by_one
from axonlike.training.metric import States, measured, named
from axonlike.types import Array, Key, Params, PyTree, State

LossFunction = Callable[[Any, Any], Any]
Loss = LossFunction | Mapping[str, LossFunction]


class Out(NamedTuple):
    """What comes with a loss: the model's new state, terms by name, states of metrics.

    `weights` says how much of the batch counts for each loss, None where all of it does.
    """

    state: State
    terms: dict[str, Array]
    metrics: States
    weights: dict[str, Array | None]


class Share(NamedTuple):
    """How much of a batch one of its parts is: of the elements that count, of its rows."""

    counted: Array
    rows: Array


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
    check_layer("loss_fn", model)
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
        share: Share | None = None,
    ) -> tuple[Array, Out]:
        options = {"rows": rows} if rows is not None and "rows" in model.options else {}
        run = Run(key, train, options)
        extra = auxiliary(model, aux, params, state, inputs_of(batch), run)
        run = run._replace(taps=extra.taps)
        y, state, taken = evaluate(model, params, state, inputs_of(batch), run)
        value, terms, weights = _total(losses, y, batch, rows, share)
        added = extra.values(taken, rows)
        if share is not None:
            added = {name: _times(term, share.rows) for name, term in added.items()}
        for term in added.values():
            value = value + term
        states = measured(measures, y, batch, both(mask_of(batch), rows))
        return value, Out(state, {**terms, **added}, states, weights)

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

    @property
    def name(self) -> str:
        """In logs."""
        return "loss" if self.output is None else f"loss/{self.output}"

    def weighted(self, value: Array) -> Array:
        """What it adds to the loss."""
        return value if self.weight is None else _times(value, self.weight)


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
    if not functions:
        raise ValueError(
            "loss: expected at least one, got {}. Write {output: function}."
        )
    if weights is not None and not isinstance(cast(Any, weights), Mapping):
        raise TypeError(
            f"loss: expected weights to be a dict, got {show(weights)}. "
            "Write {output: 0.1}."
        )
    for output, weight in (weights or {}).items():
        if output not in functions:
            raise PathError("loss: weights", str(output), map(str, functions))
        if not is_weight(weight):
            raise TypeError(
                f"loss: expected a number as the weight of {output!r}, "
                f"got {show(weight)}."
            )
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
    losses: list[Term],
    y: PyTree,
    batch: PyTree,
    rows: Array | None,
    share: Share | None,
) -> tuple[Array, dict[str, Array], dict[str, Array | None]]:
    """The weighted sum of the losses, each by name, and how much counts for each."""
    terms: dict[str, Array] = {}
    weights: dict[str, Array | None] = {}
    for term in losses:
        terms[term.name], weights[term.name] = _mean(term, y, batch, rows, share)
    first, *others = (term.weighted(terms[term.name]) for term in losses)
    total = sum(others, first)
    return total, {} if losses[0].output is None else terms, weights


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
    term: Term, y: PyTree, batch: PyTree, rows: Array | None, share: Share | None
) -> tuple[Array, Array | None]:
    """The mean of a loss over what counts, and how much that is.

    Of a part of a batch, the mean times what part it is.
    """
    values = _numbers(term.function(_output(y, term.output), batch))
    part = None if share is None else share.counted if values.ndim else share.rows
    if values.ndim == 0 and rows is None:
        return _times(values, part), None
    if values.ndim == 0:
        values, mask = _of_each(term, y, batch), both(None, rows)
    else:
        mask = both(mask_of(batch), rows, values.shape, "loss")
    values = values.astype(jnp.promote_types(values.dtype, jnp.float32))
    if mask is None:
        return _times(jnp.mean(values), part), None
    weight = jnp.sum(mask.astype(values.dtype))
    kept = jnp.where(mask, values, jnp.zeros((), values.dtype))
    mean = jnp.sum(kept) / jnp.maximum(weight, jnp.ones((), weight.dtype))
    return _times(mean, part), weight


def _of_each(term: Term, y: PyTree, batch: PyTree) -> Array:
    """A loss that is one number for a batch, of each of its examples."""
    y = _output(y, term.output)
    check_mean(term.function, y, batch)
    return one_by_one(term.function, y, batch)


def _times(x: Array, factor: Any) -> Array:
    return x if factor is None else x * jnp.asarray(factor, x.dtype)
