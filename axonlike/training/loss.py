"""The loss of a model on a batch, and its gradients: the pieces of a training step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from jax import lax

from axonlike.combinators.lifted import remat as rematerialized
from axonlike.errors import PathError, ShapeError
from axonlike.evaluate import evaluate
from axonlike.frame import Run
from axonlike.layer import Layer
from axonlike.params import merge, partition, paths
from axonlike.policy import precision as with_precision
from axonlike.selector import Where
from axonlike.spec import show
from axonlike.surgery import trainable
from axonlike.training.auxiliary import Aux, auxiliary
from axonlike.training.batch import both, inputs_of, mask_of
from axonlike.training.metrics import Metric, States, measured, named
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
            element), whose mean is taken. `{output: loss}` for a model whose output is a
            dict; then each sees its own output.
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
        >>> def loss(predictions, batch):
        ...     return optax.softmax_cross_entropy_with_integer_labels(predictions, batch[1])
        >>> f = al.loss_fn(model, loss)
        >>> value, out = f(params, state, (jnp.ones((8, 4)), jnp.zeros(8, int)))
        >>> value.shape
        ()
    """
    model = prepared(model, precision, remat)
    losses = _losses(loss, weights)
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
        named = isinstance(precision, Mapping)
        policy: Any = (
            precision if named else {"compute": precision, "output": jnp.float32}
        )
        model = with_precision(model, **policy)
    if remat is None or remat is False:
        return model
    return rematerialized(model, None if remat is True else remat)


class _Term(NamedTuple):
    """One loss, of one output or (None) of all that the model says."""

    output: str | None
    function: LossFunction
    weight: float | None


def _losses(loss: Loss, weights: Mapping[str, float] | None) -> list[_Term]:
    """The losses, every option having been checked."""
    several = isinstance(loss, Mapping)
    if not several and weights is not None:
        raise ValueError(
            "loss: weights are for several losses, got one. "
            "Write loss={output: function}, or multiply in the loss."
        )
    if not several:
        return [_Term(None, _checked(loss), None)]
    for output in weights or {}:
        if output not in loss:
            raise PathError("loss: weights", str(output), map(str, loss))
    return [
        _Term(output, _checked(function), (weights or {}).get(output))
        for output, function in cast("Mapping[str, Any]", loss).items()
    ]


def _checked(function: Any) -> LossFunction:
    if callable(function):
        return function
    raise TypeError(
        f"loss: expected a function of (predictions, batch), got {show(function)}. "
        "Write lambda y, batch: optax.l2_loss(y, batch[1])."
    )


def _total(
    losses: list[_Term], y: PyTree, batch: PyTree, rows: Array | None
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
        raise ValueError("loss: expected at least one, got {}. Write {output: function}.")
    return total, terms, weight


def _output(y: PyTree, name: str | None) -> PyTree:
    if name is None:
        return y
    if not isinstance(y, Mapping) or name not in y:
        known = map(str, cast("Mapping[str, Any]", y)) if isinstance(y, Mapping) else ()
        hint = "Losses by name are for a model whose output is a dict."
        raise PathError("loss", name, known, hint)
    return cast("Mapping[str, Any]", y)[name]


def _mean(
    term: _Term, y: PyTree, batch: PyTree, rows: Array | None
) -> tuple[Array, Array | None]:
    """The mean of a loss over what counts, and how much that is."""
    values = jnp.asarray(term.function(y, batch))
    if not jnp.issubdtype(values.dtype, jnp.floating):
        raise ShapeError(
            "loss", "floating-point numbers", show(values), "Return the loss itself."
        )
    if values.ndim == 0 and rows is None:
        return values, None
    if values.ndim == 0:
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


def one_by_one(function: LossFunction, y: PyTree, batch: PyTree) -> Array:
    """A loss that is one number, of each example by itself."""

    def alone(y: PyTree, batch: PyTree) -> Array:
        def row(x: Any) -> Any:
            return x[None]

        return function(jax.tree.map(row, y), jax.tree.map(row, batch))

    return jax.vmap(alone)(y, batch)


# --- gradients


def grad_fn(
    model: Layer,
    loss: Loss,
    *,
    where: Where = None,
    accumulate: int = 1,
    **options: Any,
) -> Callable[..., tuple[tuple[Array, Out], Params]]:
    """`(params, state, batch, key=None) -> ((loss, out), grads)`: a step's first half.

    Gradients are those of the params that are trained: all but those that `where` leaves
    out and those that are `frozen`. Where that is a part, `grads` is the tree of that part,
    as `al.partition` makes it, and nothing is computed for the rest.

    Args:
        model: any layer.
        loss: as for `loss_fn`.
        where: a selector of the params to train; None for all.
        accumulate: in how many parts of equal size the batch is run, one after another,
            to save memory: the mean of their gradients is that of the whole batch, except
            where a layer looks at several examples at once, as batch norm does.
        options: as for `loss_fn`: `weights`, `aux`, `metrics`, `precision`, `remat`.

    Shapes:
        grads: those of the params.

    Raises:
        PathError: `where` means nothing.
        ValueError: nothing is left to train, or the batch does not divide into parts.

    Example:
        >>> import jax, jax.numpy as jnp, optax, axonlike as al
        >>> model = al.dense(3) >> al.dense(1)
        >>> params, state = model.init(jax.random.key(0), (None, 4))
        >>> grads = al.grad_fn(model, lambda y, batch: (y - batch[1]) ** 2, where="dense_1")
        >>> (value, out), grad = grads(params, state, (jnp.ones((8, 4)), jnp.ones((8, 1))))
        >>> list(grad)
        ['dense_1']
    """
    function = loss_fn(model, loss, **options)
    check_count("accumulate", accumulate)
    measures = named(options.get("metrics"))

    def grads(
        params: Params,
        state: State,
        batch: PyTree,
        key: Key | None = None,
        *,
        rows: Array | None = None,
        scale: Array | None = None,
    ) -> tuple[tuple[Array, Out], Params]:
        trained, rest = parted(model, params, where)

        def scaled(trained: Params, state: Any, batch: Any, key: Any, rows: Any) -> Any:
            whole = merge(trained, rest) if rest else trained
            value, out = function(whole, state, batch, key, rows=rows)
            times = value if scale is None else value * scale.astype(value.dtype)
            return times, (value, out)

        one = jax.value_and_grad(scaled, has_aux=True)
        args = (trained, state, batch, key, rows)
        (_, found), grad = (
            one(*args) if accumulate == 1 else _summed(one, args, accumulate, measures)
        )
        if scale is not None:
            grad = jax.tree.map(lambda g: g / scale.astype(g.dtype), grad)
        return found, grad

    return grads


def check_count(name: str, value: Any) -> None:
    """Refuses what is not a positive int."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name}: expected a positive int, got {value!r}.")


def parted(model: Layer, params: Params, where: Where) -> tuple[Params, Params]:
    """The params that are trained, and the others."""
    free = {path for path, is_free in paths(trainable(model, params)) if is_free}
    if where is not None:
        chosen = partition(params, where, model)[0]
        free &= {path for path, _ in paths(chosen)}
    if not free:
        raise ValueError(
            "train_step: no params are left to train. "
            "Unfreeze a layer, or choose others by where=."
        )
    if len(free) == len(paths(params)):
        return params, {}
    return partition(params, lambda path, _: path in free)


def _summed(
    one: Callable[..., Any], args: Any, parts: int, measures: dict[str, Metric]
) -> Any:
    """Value, extras and gradient of a batch that is run part by part."""
    trained, state, batch, key, rows = args
    pieces = jax.tree.map(lambda x: _split(x, parts), (batch, rows))

    def body(carry: Any, each: Any) -> Any:
        state, total, weight = carry
        index, (batch, rows) = each
        own = None if key is None else jax.random.fold_in(key, index)
        (_, (value, out)), grad = one(trained, state, batch, own, rows)
        times = jnp.ones((), value.dtype) if out.weight is None else out.weight
        more = (value, out.terms, grad)
        total = jax.tree.map(lambda a, b: a + b * times.astype(b.dtype), total, more)
        return (out.state, total, weight + times), out.metrics

    first = jax.tree.map(lambda x: x[0], pieces)
    (_, (value, out)), grad = jax.eval_shape(one, trained, state, first[0], key, first[1])
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), (value, out.terms, grad))
    start = (state, zeros, jnp.zeros((), value.dtype))
    index = jnp.arange(parts, dtype=jnp.uint32)
    (state, total, weight), states = lax.scan(body, start, (index, pieces))
    value, terms, grad = jax.tree.map(lambda a: a / weight.astype(a.dtype), total)
    metrics = _merged(measures, states, parts)
    return (value, (value, Out(state, terms, metrics, weight))), grad


def _merged(measures: dict[str, Metric], states: States, parts: int) -> States:
    """The states of all parts as one."""
    merged: States = {}
    for name, metric in measures.items():
        each = [jax.tree.map(lambda a, i=i: a[i], states[name]) for i in range(parts)]
        merged[name] = metric.merged(each)
    return merged


def _split(x: Any, parts: int) -> Any:
    if x.shape[0] % parts:
        raise ValueError(
            f"accumulate: expected a batch that divides into {parts} equal parts, "
            f"got {x.shape[0]} rows. Pass another batch size, or batch_size= to "
            "train_step, which fills the batch up."
        )
    return jnp.reshape(x, (parts, x.shape[0] // parts, *x.shape[1:]))
