"""The training step: one pure function, jitted, that gives its old state away."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from typing import Any, cast

import jax
import jax.core
import jax.numpy as jnp
import optax

from axonlike.evaluation import check_key
from axonlike.io.given import check_layer
from axonlike.layer import Layer
from axonlike.params import merge
from axonlike.selector import Where
from axonlike.spec import show
from axonlike.training.auxiliary import Aux
from axonlike.training.batch import as_arrays, padded, size_of
from axonlike.training.each import WholeBatchError
from axonlike.training.evaluation import Evaluation
from axonlike.training.gradients import grad_fn, parted
from axonlike.training.loss import Loss, Out, loss_fn
from axonlike.training.metric import Logs, named
from axonlike.training.options import is_number, shown, whole_or_none
from axonlike.training.state import (
    LossScale,
    TrainState,
    all_finite,
    averages,
    first_scale,
    next_scale,
    owned,
)
from axonlike.types import Array, Key, Params, PyTree, State


class TrainStep:
    """A training step `(ts, batch) -> (ts, logs)`; made by `train_step`."""

    def __init__(
        self, model: Layer, loss: Loss, optimizer: Any, **options: Any
    ) -> None:
        self.model, self.loss, self.optimizer = model, loss, optimizer
        self.where: Where = options.pop("where")
        self.ema: float | None = options.pop("ema")
        self.loss_scale: Any = options.pop("loss_scale")
        self.batch_size: int | None = options.pop("batch_size")
        self.accumulate: int = options["accumulate"]
        self.options = options
        self.metrics = named(options["metrics"])
        self._update = optax.with_extra_args_support(optimizer).update
        self._grads = grad_fn(model, loss, where=self.where, **options)
        options.pop("accumulate")
        self._loss = loss_fn(model, loss, **options)
        self._donated = jax.jit(self._step, donate_argnums=0)
        self._fills = True

    def start(
        self, params: Params, state: State, *, key: Key | None = None
    ) -> TrainState:
        """The state that training starts with; it has copies of all arrays.

        They are held against the model at the first step, which knows the input.

        Args:
            params: as the model's `init` made them.
            state: as `init` made it.
            key: for layers that draw random numbers in training.

        Returns:
            A `TrainState` at step 0.
        """
        check_key(key, optional=True)
        trained, _ = parted(self.model, params, self.where)
        dynamic = self.loss_scale == "dynamic"
        return owned(
            TrainState(
                step=jnp.asarray(0, jnp.int32),
                params=params,
                model_state=state,
                opt_state=self.optimizer.init(trained),
                key=key,
                ema=None if self.ema is None else averages(params),
                loss_scale=first_scale() if dynamic else None,
            )
        )

    def __call__(self, ts: TrainState, batch: PyTree) -> tuple[TrainState, Logs]:
        """Takes one step; the arrays of `ts` are given away.

        Args:
            ts: as `start` or a step returned it.
            batch: `(inputs, targets, ...)`, or a dict with `"inputs"`.

        Returns:
            `(ts, logs)`: the next state, and numbers by name, `"loss"` the first.
        """
        return self._filled(cast(Any, self._donated), ts, batch)

    def evaluate(self, ts: TrainState, data: Iterable[Any]) -> dict[str, Any]:
        """The losses and metrics of the model as it is, in inference, over all batches.

        Auxiliary losses are left out.

        Args:
            ts: a state.
            data: an iterable of batches.

        Returns:
            Python floats by name, `"loss"` the first.
        """
        _check_state(ts)
        return self._evaluation(ts.params, ts.model_state, data, self.batch_size)

    @cached_property
    def _evaluation(self) -> Evaluation:
        some = self.options
        return Evaluation(
            self.model, self.loss, some["weights"], some["metrics"], some["precision"]
        )

    def lower(self, ts: TrainState, batch: PyTree) -> Any:
        """The step as JAX lowers it for such arguments: its text, its compilation.

        Args:
            ts: a state, or its shapes.
            batch: a batch, or its shapes.

        Returns:
            What `jax.jit(...).lower` returns.
        """
        return self._filled(cast(Any, self._donated).lower, ts, batch)

    def _filled(self, run: Callable[..., Any], ts: TrainState, batch: PyTree) -> Any:
        """Runs a batch that is filled up where its full size is known.

        Where the batches only happen to know it, and something is of a whole batch, they
        are run as they are; that shows when the step is traced.
        """
        _check_state(ts)
        size = self.batch_size or (size_of(batch) if self._fills else None)
        arrays = as_arrays(batch)
        if size is None:
            return run(ts, arrays, None)
        try:
            size = -(-size // self.accumulate) * self.accumulate
            return run(ts, *padded(arrays, size))
        except WholeBatchError:
            if self.batch_size is not None:
                raise
        self._fills = False
        return run(ts, arrays, None)

    def _step(
        self, ts: TrainState, batch: PyTree, rows: Array | None
    ) -> tuple[TrainState, Logs]:
        key = None
        if ts.key is not None and self.model.uses_key:
            key = jax.random.fold_in(ts.key, ts.step)
        scale = self._scale(ts.loss_scale)
        (value, out), grads = self._grads(
            ts.params, ts.model_state, batch, key, rows=rows, scale=scale
        )
        trained, rest = parted(self.model, ts.params, self.where)

        def value_fn(trained: Params) -> Array:
            whole = merge(trained, rest) if rest else trained
            return self._loss(whole, ts.model_state, batch, key, rows=rows)[0]

        updates, opt_state = self._update(
            grads, ts.opt_state, trained, value=value, grad=grads, value_fn=value_fn
        )
        trained = cast(Params, optax.apply_updates(trained, updates))
        after = ts._replace(
            params=merge(trained, rest) if rest else trained,
            model_state=out.state,
            opt_state=opt_state,
        )
        after = after._replace(ema=self._averaged(ts, after))
        after = self._scaled(ts, after, grads)._replace(step=ts.step + 1)
        return after, self._logs(value, out, after)

    def _scale(self, state: LossScale | None) -> Array | None:
        if self.loss_scale is None:
            return None
        return (
            jnp.asarray(self.loss_scale, jnp.float32) if state is None else state.scale
        )

    def _scaled(
        self, before: TrainState, after: TrainState, grads: PyTree
    ) -> TrainState:
        """With a dynamic scale: the state as before where a gradient is not finite."""
        if before.loss_scale is None:
            return after
        finite = all_finite(grads)

        def chosen(new: Any, old: Any) -> Array:
            return jnp.where(finite, new, old)

        kept: TrainState = jax.tree.map(chosen, after, before)
        return kept._replace(loss_scale=next_scale(before.loss_scale, finite))

    def _averaged(self, before: TrainState, after: TrainState) -> Params | None:
        if self.ema is None:
            return None
        decay = self.ema

        def moved(old: Array, new: Array) -> Array:
            return old + (new - old) * jnp.asarray(1 - decay, old.dtype)

        return cast(Params, jax.tree.map(moved, before.ema, averages(after.params)))

    def _logs(self, value: Array, out: Out, after: TrainState) -> Logs:
        values = {"loss": value, **out.terms}
        if after.loss_scale is not None:
            values["loss_scale"] = after.loss_scale.scale
        for name, metric in self.metrics.items():
            if name in values:
                raise ValueError(
                    f"metrics: {name!r} is in the logs already. Choose another name."
                )
            values[name] = metric.compute(out.metrics[name])
        return Logs(values, out.metrics)


def train_step(
    model: Layer,
    loss: Loss,
    optimizer: optax.GradientTransformation,
    *,
    weights: Mapping[str, float] | None = None,
    aux: Aux | None = None,
    metrics: Any = None,
    where: Where = None,
    accumulate: int = 1,
    precision: Any = None,
    loss_scale: float | str | None = None,
    remat: Any = None,
    ema: float | None = None,
    batch_size: int | None = None,
) -> TrainStep:
    """A pure, jitted training step: `ts, logs = step(ts, batch)`.

    `ts = step.start(params, state, key=...)` begins. A step gives the arrays of the state
    it takes away, so keep only the one that it returns.

    Args:
        model: any layer; what is `frozen` in it is not touched, by weight decay neither.
        loss: `loss(predictions, batch)`: one number, or one for each example (or each
            element), whose mean is taken; or `{output: loss}`.
        optimizer: of optax; those that look at the loss itself get it.
        weights: `{output: weight}`, for several losses.
        aux: `{glob: weight}`: auxiliary losses that layers emit, and regularizers of
            params, as for `loss_fn`.
        metrics: `{name: metric}`, or several metrics, of `al.metrics`.
        where: a selector of the params to train; None for all. The others have no
            gradients, and no place in the optimizer's state.
        accumulate: in how many parts the batch is run, to save memory.
        precision: dtype in which the model computes, or a policy, as for `loss_fn`.
        loss_scale: by what the loss is multiplied before gradients are taken, and these
            divided; `"dynamic"`: found as training goes on, steps whose gradients are
            not finite leaving everything as it was.
        remat: True, or a policy: computes the model again in the backward pass.
        ema: decay of a moving average of the params, `ts.ema`, say 0.999. Of params in
            16 bits it is in float32, which alone can hold such small changes.
        batch_size: rows of a full batch. Shorter ones are filled up to it, with rows
            that do not count, so that no other size is compiled; the loss and what
            layers emit must then be of each example. None: so are the batches of
            `al.batches`, where that can be, and others are run as they are.

    Shapes:
        batch: `(inputs, targets, ...)`, or a dict with `"inputs"`; first axes of examples.
        logs: scalars.

    Raises:
        TypeError: something is not what it should be.
        ValueError: an option is out of range.
        PathError: a selector means nothing.

    Example:
        >>> import jax, jax.numpy as jnp, optax, axonlike as al
        >>> model = al.dense(8) >> jax.nn.relu >> al.dense(3)
        >>> def loss(y, batch):
        ...     return optax.softmax_cross_entropy_with_integer_labels(y, batch[1])
        >>> step = al.train_step(model, loss, optax.adam(0.1))
        >>> params, state = model.init(jax.random.key(0), (None, 4))
        >>> ts = step.start(params, state, key=jax.random.key(1))
        >>> batch = jnp.ones((6, 4)), jnp.zeros(6, int)
        >>> for _ in range(20):
        ...     ts, logs = step(ts, batch)
        >>> bool(logs["loss"] < 0.01), int(ts.step)
        (True, 20)
    """
    check_layer("train_step", model)
    if not hasattr(optimizer, "update") or not hasattr(optimizer, "init"):
        raise TypeError(
            f"train_step: expected an optimizer of optax, got {show(optimizer)}. "
            "Write optax.adam(1e-3)."
        )
    _check_numbers(loss_scale, ema)
    return TrainStep(
        model,
        loss,
        optimizer,
        weights=weights,
        aux=aux,
        metrics=metrics,
        where=where,
        accumulate=accumulate,
        precision=precision,
        loss_scale=loss_scale,
        remat=remat,
        ema=ema,
        batch_size=whole_or_none("train_step", "batch_size", batch_size),
    )


def _check_state(ts: Any) -> None:
    """Refuses what is no state of training, or one that was given away."""
    if not isinstance(ts, TrainState):
        raise TypeError(
            f"train_step: expected a TrainState, got {type(ts).__name__}. "
            "Begin with ts = step.start(params, state, key=key)."
        )
    traced = isinstance(ts.step, jax.core.Tracer)
    if not traced and getattr(ts.step, "is_deleted", bool)():
        raise ValueError(
            "train_step: this state was given away to a step before. Go on with what "
            "that returned: ts, logs = step(ts, batch)."
        )


def _check_numbers(loss_scale: Any, ema: Any) -> None:
    """Refuses a scale or a decay that is none."""
    scales = is_number(loss_scale) and loss_scale > 0
    if not (scales or loss_scale is None or loss_scale == "dynamic"):
        raise ValueError(
            "train_step: loss_scale must be a positive number or 'dynamic', got "
            f"{shown(loss_scale)}."
        )
    if ema is not None and not (is_number(ema) and 0 <= ema < 1):
        raise ValueError(f"train_step: ema must be in [0, 1), got {shown(ema)}.")
