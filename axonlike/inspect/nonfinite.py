"""Where a model's values or gradients become NaN or infinite."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from types import MappingProxyType
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np

from axonlike.evaluation import check_key, check_options, check_train, evaluate
from axonlike.frame import Run
from axonlike.inspect.nonfinite_report import NonfiniteReport, Row
from axonlike.inspect.probe import SILENT, Probe, is_smooth, magnitude, summed
from axonlike.layer import Layer, as_layer
from axonlike.params import paths
from axonlike.spec import show
from axonlike.surgery import trainable
from axonlike.types import Array, Key, Params, PyTree, State

Loss = Callable[..., Any]


class Guarded(NamedTuple):
    """What a guarded evaluation returns."""

    value: Array
    """The loss."""
    grads: Params
    output: PyTree
    state: State
    report: NonfiniteReport


def locate_nonfinite(
    model: Any,
    params: Params,
    state: State,
    x: PyTree,
    *args: Any,
    loss: Loss | None = None,
    key: Key | None = None,
    train: bool = False,
    options: Mapping[str, Any] = MappingProxyType({}),
) -> NonfiniteReport:
    """Where the first NaN or infinite number of a run comes from, forward and backward.

    One run of the model and of its gradient, in which every value that a layer receives
    or returns is looked at, and every gradient of those and of params. What is found is the
    layer that made it out of finite numbers; `report.forward` and `report.backward` say its
    path (copies of a repeat or an ensemble by number), the step of a recurrence or the
    number of what is mapped, and whether it is NaN or infinite. It also lists params that
    are not finite to begin with, state that is not finite after the run, params whose
    gradient is exactly zero (frozen ones left out), and units that are zero in the whole
    batch.

    Args:
        model: any layer, or a function.
        params: of the model.
        state: of the model.
        x: its input.
        args: what else the loss takes, such as the batch.
        loss: `loss(predictions, *args)`, one number or several, whose mean is taken;
            None: the sum of the output.
        key: for layers that draw random numbers.
        train: whether to run as in training.
        options: static options by name, as for `apply`.

    Shapes:
        As the model's.

    Raises:
        TypeError: the model is no layer; params, state, x or args hold what is no array;
            the loss is no function, or not one array of floating point; train is no
            Python bool; options are no mapping.
        PathError: there is no such option.

    Example:
        >>> import jax, jax.numpy as jnp, axonlike as al
        >>> model = al.serial(body=al.scale(), root=jnp.sqrt, head=al.dense(1))
        >>> params, state = model.init(jax.random.key(0), (None, 4))
        >>> report = al.locate_nonfinite(model, params, state, -jnp.ones((2, 4)))
        >>> report.forward.path, report.forward.what
        ('root', 'nan')
        >>> report = al.locate_nonfinite(model, params, state, jnp.zeros((2, 4)))
        >>> report.backward.path, report.backward.what
        ('root', 'inf')
    """
    model = as_layer(model, "locate_nonfinite")
    measure = _measuring(
        model, _checked(loss), check_train(train), check_options(options)
    )
    key = check_key(key, optional=True)
    _check_arrays("locate_nonfinite", params=params, state=state, x=x, args=args)
    with jax.debug_nans(False), jax.debug_infs(False):
        return measure(params, state, x, args, key)


def nonfinite_guard(model: Any, loss: Loss | None = None) -> Callable[..., Guarded]:
    """A loss and its gradients, with a report where something is NaN or infinite.

    For use in a jitted step: `guard(params, state, x, *args, key=None, train=False)` is a
    pure function. As long as loss, output, gradients and state are finite, it only looks
    at those. Where they are not, `jax.lax.cond` runs the step once more inside of the same
    program, as `locate_nonfinite` does, and `report` says what that would say. (Under
    `jax.vmap` a choice runs both of its sides: use it inside of the step.)

    Args:
        model: any layer, or a function.
        loss: `loss(predictions, *args)`, one number or several, whose mean is taken;
            None: the sum of the output.

    Shapes:
        value: a scalar.
        grads: those of the params.

    Raises:
        TypeError: as of `locate_nonfinite`.

    Example:
        >>> import jax, jax.numpy as jnp, axonlike as al
        >>> model = al.serial(body=al.scale(), root=jnp.sqrt, head=al.dense(1))
        >>> params, state = model.init(jax.random.key(0), (None, 4))
        >>> guard = al.nonfinite_guard(model, lambda y, target: (y - target) ** 2)
        >>> out = jax.jit(guard)(params, state, -jnp.ones((2, 4)), jnp.ones((2, 1)))
        >>> bool(out.report)
        True
        >>> print(out.report.forward)
        forward: nan in the output of root: jax.numpy.sqrt
    """
    model, loss = as_layer(model, "nonfinite_guard"), _checked(loss)

    def guarded(
        params: Params,
        state: State,
        x: PyTree,
        *args: Any,
        key: Key | None = None,
        train: bool = False,
        options: Mapping[str, Any] = MappingProxyType({}),
    ) -> Guarded:
        train = check_train(train)
        run = Run(check_key(key, optional=True), train, options)
        _check_arrays("nonfinite_guard", params=params, state=state, x=x, args=args)

        def objective(params: Params) -> Any:
            y, after, _ = evaluate(model, params, state, x, run)
            return _value(loss, y, args), (y, after)

        (value, (y, after)), grads = _value_and_grad(objective)(params)
        measure = _measuring(model, loss, train, options)
        given = (params, state, x, args, key)
        shape = jax.eval_shape(measure, *given)
        none = partial(NonfiniteReport.none, shape)
        bad = ~jnp.isfinite(_largest((value, grads, y, after)))
        report = cast(Any, jax.lax.cond)(bad, measure, none, *given)
        return Guarded(value, grads, y, after, report)

    return guarded


def _checked(loss: Any) -> Loss | None:
    if loss is None or callable(loss):
        return loss
    raise TypeError(
        f"loss: expected a function of the predictions, got {show(loss)}. "
        "Write lambda y, target: optax.l2_loss(y, target)."
    )


_ARRAYS = (jax.Array, np.ndarray, np.generic, int, float, complex)


def _check_arrays(what: str, **trees: PyTree) -> None:
    """Refuses what is no array before `jax.jit` does, which names no argument of ours."""
    for name, tree in trees.items():
        if not all(isinstance(leaf, _ARRAYS) for leaf in jax.tree.leaves(tree)):
            raise TypeError(f"{what}: {name}: expected arrays, got {show(tree)}.")


def _measuring(
    model: Layer, loss: Loss | None, train: bool, options: Mapping[str, Any]
) -> Callable[..., Any]:
    """The jitted function that runs a model, looking at everything on the way."""
    try:
        items = sorted(options.items())
        typed = tuple((name, cast(Any, type)(option), option) for name, option in items)
        return _known(model, loss, train, typed)
    except TypeError:  # an option that cannot be compared
        return _made(model, loss, Run(None, train, options))


@lru_cache(maxsize=16)
def _known(model: Layer, loss: Any, train: bool, typed: Any) -> Callable[..., Any]:
    options = {name: option for name, _, option in typed}  # 1 is not True
    return _made(model, loss, Run(None, train, options))


def _made(model: Layer, loss: Loss | None, run: Run) -> Callable[..., Any]:
    def measure(
        params: Params, state: State, x: PyTree, args: tuple[Any, ...], key: Any
    ) -> NonfiniteReport:
        probe = Probe()
        watched = run._replace(key=key, around=probe, numbered=True, stepwise=True)
        shapes = jax.eval_shape(partial(_taken, model, watched), params, state, x)
        tokens = {k: _zeros(s) for k, s in shapes.items() if k in probe.entries}

        def objective(params: Params, tokens: Mapping[str, Any]) -> Any:
            probe.tokens = tokens
            y, after, taken = evaluate(model, params, state, x, watched)
            return _value(loss, y, args), (after, taken)

        differentiated = _value_and_grad(objective, (0, 1))
        (value, (after, taken)), (grads, seen) = differentiated(params, tokens)
        rows = [*_of_values(probe, taken), *_of_gradients(probe, seen)]
        rows += [
            (Row("loss", "loss", ()), _magnitude(value)),
            *_of_arrays("state", after),
        ]
        return NonfiniteReport.of([*rows, *_of_params(model, params, grads)])

    return jax.jit(measure)


def _taken(model: Layer, run: Run, params: Params, state: State, x: PyTree) -> Any:
    return evaluate(model, params, state, x, run)[2]


def _value_and_grad(function: Callable[..., Any], argnums: Any = 0) -> Any:
    return jax.value_and_grad(function, argnums, has_aux=True, allow_int=True)


def _largest(tree: PyTree) -> Array:
    return magnitude(leaf for leaf in jax.tree.leaves(tree) if is_smooth(leaf))


def _zeros(spec: Any) -> Array:
    return jnp.zeros(spec.shape, spec.dtype)


def _value(loss: Loss | None, y: PyTree, args: tuple[Any, ...]) -> Array:
    """The loss as one number."""
    if loss is not None:
        found = loss(y, *args)
        if not jax.tree_util.all_leaves([found]) or isinstance(found, str):
            raise TypeError(f"loss: expected one array, got {show(found)}.")
        value = jnp.asarray(found)
        if not jnp.issubdtype(value.dtype, jnp.floating):
            raise TypeError(
                f"loss: expected floating-point numbers, got {show(value)}."
            )
        return jnp.mean(value)
    return summed(y)


Measured = tuple[Row, Any]


def _of_values(probe: Probe, taken: Mapping[str, Any]) -> list[Measured]:
    found: list[Measured] = []
    for name, entry in probe.entries.items():
        if name in taken:
            row = Row("forward", entry.site, taken[name].shape, entry)
            found.append((row, taken[name]))
        if name + SILENT in taken:
            silent = taken[name + SILENT]
            row = Row("silent", entry.site, silent.shape, entry)
            found.append((row, silent.astype(jnp.float32)))
    return found


def _of_gradients(probe: Probe, seen: Mapping[str, Any]) -> list[Measured]:
    entries = probe.entries
    return [
        (Row("backward", entries[name].site, value.shape, entries[name]), value)
        for name, value in seen.items()
    ]


def _of_params(model: Layer, params: Params, grads: Params) -> list[Measured]:
    """The magnitude of each param's gradient, and of itself."""
    free = dict(paths(trainable(model, params)))
    found: list[Measured] = []
    for path, grad in paths(grads):
        if is_smooth(grad):
            value = _by_copy(path, grad)
            kind = "gradient" if free.get(path, True) else "frozen"
            found.append((Row(kind, path, value.shape), value))
    return found + _of_arrays("param", params)


def _of_arrays(kind: str, tree: PyTree) -> list[Measured]:
    """The magnitude of each array itself."""
    smooth = [(path, leaf) for path, leaf in paths(tree) if is_smooth(leaf)]
    values = [(path, _by_copy(path, leaf)) for path, leaf in smooth]
    return [(Row(kind, path, value.shape), value) for path, value in values]


def _by_copy(path: str, leaf: Any) -> Array:
    """The magnitude of an array, of each copy where it is a stack of them."""
    measure: Callable[[Any], Array] = _magnitude
    for _ in range(path.split("/").count("*")):
        measure = jax.vmap(measure)
    return measure(leaf)


def _magnitude(leaf: Any) -> Array:
    return magnitude([leaf])
