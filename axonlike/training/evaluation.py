"""A model on batches without training: its losses, metrics and predictions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache, partial
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from axonlike.io.given import check_layer
from axonlike.layer import Layer
from axonlike.training.batch import (
    as_arrays,
    inputs_of,
    mask_of,
    padded,
    rows_of,
    size_of,
)
from axonlike.training.each import WholeBatchError
from axonlike.training.loss import Loss, loss_fn, losses_of
from axonlike.training.means import merge_means, value_of_mean
from axonlike.training.metric import Metric, States, named
from axonlike.training.options import check_data, whole_or_none
from axonlike.types import Array, Params, PyTree, State


class Evaluation:
    """`(params, state, data) -> numbers by name`, compiled once for all epochs."""

    def __init__(
        self,
        model: Layer,
        loss: Loss | None,
        weights: Mapping[str, float] | None,
        metrics: Any,
        precision: Any,
    ) -> None:
        self._metrics = named(metrics)
        self._losses = [] if loss is None else losses_of(loss, weights)
        self._fills = True
        options = {"weights": weights, "metrics": metrics, "precision": precision}
        function = _no_loss if loss is None else loss
        self._function = loss_fn(model, function, train=False, **options)
        self._measure = jax.jit(self._states)
        self._merge = jax.jit(self._merged)
        self._compute = jax.jit(self._values)

    def __call__(
        self, params: Params, state: State, data: Iterable[Any], size: int | None
    ) -> dict[str, Any]:
        """Runs the model on all batches; nothing waits before the last."""
        check_data("evaluate", data)
        total: Any = {}
        merge = cast(Any, self._merge)
        parts: dict[str, list[Any]] = {}
        for given in data:
            states = self._of_batch(params, state, given, size)
            for name in self._growing(states):
                parts.setdefault(name, []).append(states.pop(name))
            total = merge(total, states) if total else states
        if not total and not parts:
            raise ValueError(
                "evaluate: expected batches, got none. An iterator is used up once."
            )
        grown = {name: self._metrics[name].merged(each) for name, each in parts.items()}
        values = jax.device_get(self._compute({**total, **grown}))
        order = [*(n for n in values if n not in self._metrics), *self._metrics]
        return {name: _plain(values[name]) for name in order}

    def _of_batch(self, params: Params, state: State, given: PyTree, size: Any) -> Any:
        """The states of a batch, which is filled up where its full size is known."""
        run, arrays = cast(Any, self._measure), as_arrays(given)
        full = size or (size_of(given) if self._fills else None)
        if full is None:
            return run(params, state, arrays, None)
        try:
            return run(params, state, *padded(arrays, full))
        except WholeBatchError:
            if size is not None:
                raise
        self._fills = False
        return run(params, state, arrays, None)

    def _growing(self, states: States) -> list[str]:
        return [n for n, m in self._metrics.items() if m.grows and n in states]

    def _states(
        self, params: Params, state: State, batch: PyTree, rows: Array | None
    ) -> States:
        value, out = self._function(params, state, batch, rows=rows)
        means: States = {}
        for name in (term.name for term in self._losses):
            mean, weight = out.terms.get(name, value), out.weights[name]
            if weight is None:
                weight = jnp.asarray(rows_of(batch), jnp.float32)
            means[name] = {"mean": mean.astype(jnp.float32), "weight": weight}
        return {**means, **out.metrics}

    def _merged(self, a: States, b: States) -> States:
        return {name: self._metric(name).merge(a[name], b[name]) for name in a}

    def _values(self, states: States) -> States:
        values = {n: self._metric(n).compute(state) for n, state in states.items()}
        if self._losses:
            first, *others = (t.weighted(values[t.name]) for t in self._losses)
            values["loss"] = sum(others, first)
        return values

    def _metric(self, name: str) -> Metric:
        return self._metrics.get(name, _LOSS)


_LOSS = Metric("loss", cast(Any, None), merge_means, value_of_mean)


def _no_loss(predictions: PyTree, batch: PyTree) -> Array:
    mask = mask_of(batch)
    shape = (rows_of(batch),) if mask is None else mask.shape
    return jnp.zeros(shape, jnp.float32)


def _plain(value: Any) -> Any:
    return float(value) if np.ndim(value) == 0 else value


def evaluate(
    model: Layer,
    params: Params,
    state: State,
    data: Iterable[Any],
    *,
    loss: Loss | None = None,
    weights: Mapping[str, float] | None = None,
    metrics: Any = None,
    precision: Any = None,
    batch_size: int | None = None,
) -> dict[str, Any]:
    """Losses and metrics of a model in inference, over all batches.

    They are those of the whole data, however it is divided. `step.evaluate(ts, data)` does
    this for the model, loss and metrics of a `train_step`.

    Args:
        model: any layer.
        params: of the model.
        state: of the model.
        data: an iterable of batches, such as `al.batches` makes.
        loss: as for `train_step`; the mean over examples of a loss that is one number.
        weights: `{output: weight}`, for several losses.
        metrics: `{name: metric}`, or several metrics, of `al.metrics`.
        precision: as for `train_step`.
        batch_size: rows of a full batch, to which shorter ones are filled up; None: as
            the batches of `al.batches` say.

    Shapes:
        batch: `(inputs, targets, ...)`, or a dict with `"inputs"` and `"targets"`.

    Returns:
        Python floats by name; NumPy arrays of metrics that are no single number.

    Raises:
        ValueError: there are no batches, or nothing to measure.

    Example:
        >>> import jax, numpy as np, axonlike as al
        >>> model = al.dense(3)
        >>> params, state = model.init(jax.random.key(0), (None, 4))
        >>> data = al.batches((np.ones((10, 4), "f"), np.zeros(10, int)), 4)
        >>> scores = al.evaluate(
        ...     model, params, state, data, metrics=al.metrics.accuracy())
        >>> scores["accuracy"] in (0.0, 1.0)
        True
    """
    check_layer("evaluate", model)
    batch_size = whole_or_none("evaluate", "batch_size", batch_size)
    if loss is None and not named(metrics):
        raise ValueError("evaluate: nothing to measure. Pass loss=, metrics= or both.")
    try:
        made = _evaluation(model, *map(_frozen, (loss, weights, metrics, precision)))
    except TypeError:  # something in it cannot be hashed
        made = Evaluation(model, loss, weights, metrics, precision)
    return made(params, state, data, batch_size)


@lru_cache(maxsize=64)
def _evaluation(
    model: Layer, loss: Any, weights: Any, metrics: Any, precision: Any
) -> Any:
    """What is compiled for these, again for equal ones."""
    return Evaluation(model, *map(_thawed, (loss, weights, metrics, precision)))


class _Items(tuple[Any, ...]):
    """The items of a dict, to be hashed."""


def _frozen(value: Any) -> Any:
    if isinstance(value, Mapping):
        return _Items(cast("Mapping[str, Any]", value).items())
    return tuple(cast("list[Any]", value)) if isinstance(value, list) else value


def _thawed(value: Any) -> Any:
    return dict(value) if isinstance(value, _Items) else value


def _first(count: int, y: Any) -> Any:
    return np.asarray(y)[:count]


def predict_batches(
    model: Layer,
    params: Params,
    state: State,
    data: Iterable[Any],
    *,
    batch_size: int | None = None,
) -> Iterator[PyTree]:
    """The predictions of a model, batch by batch, a row for each that came in.

    Args:
        model: any layer.
        params: of the model.
        state: of the model.
        data: an iterable of batches, such as `al.batches` makes, or of inputs alone.
        batch_size: rows of a full batch, to which shorter ones are filled up; None: as
            the batches of `al.batches` say.

    Shapes:
        predictions: `(rows, ...)`, as the model makes them of the batch's inputs.

    Raises:
        ValueError: a batch has no inputs.

    Example:
        >>> import jax, numpy as np, axonlike as al
        >>> model = al.dense(3)
        >>> params, state = model.init(jax.random.key(0), (None, 4))
        >>> data = al.batches((np.ones((10, 4), "f"),), 4)
        >>> [y.shape for y in al.predict_batches(model, params, state, data)]
        [(4, 3), (4, 3), (2, 3)]
    """
    check_layer("predict_batches", model)
    batch_size = whole_or_none("predict_batches", "batch_size", batch_size)
    check_data("predict_batches", data)
    return _predictions(jax.jit(model.predict), params, state, data, batch_size)


def _predictions(
    predict: Any, params: Params, state: State, data: Iterable[Any], batch_size: Any
) -> Iterator[PyTree]:
    for given in data:
        size = batch_size or size_of(given)
        x = as_arrays(inputs_of(given))
        if size is None:
            yield predict(params, state, x)
            continue
        count = rows_of(x)
        y: Any = predict(params, state, padded(x, size).batch)
        yield y if count == size else jax.tree.map(partial(_first, count), y)
