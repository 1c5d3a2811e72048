"""What a metric is: a pure state of each batch, states that merge, and their value."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import cache, reduce, wraps
from operator import itemgetter
from typing import Any, NamedTuple, ParamSpec, cast

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax import lax

from axonlike.errors import PathError
from axonlike.spec import show
from axonlike.training.batch import targets_of
from axonlike.types import Array, PyTree

P = ParamSpec("P")
States = dict[str, Any]
"""The states of metrics by name."""


class Metric(NamedTuple):
    """A metric: the state of one batch, two states as one, and a state's value.

    All three are pure functions of arrays: they run under `jax.jit`, and on what several
    devices hold together. `merge` of the states of parts is the state of the whole.

    Args:
        name: in logs, unless another is given there.
        update: `update(predictions, targets, mask=None)`, the state of one batch; the
            mask says which examples, or elements, count.
        merge: `merge(a, b)`, two states as one.
        compute: `compute(state)`, the value.
        grows: whether states are put one after another, along their first axes, so that
            one is larger the more it has seen.

    Shapes:
        mask: the first axes of what is measured; bool.

    Example:
        >>> import jax.numpy as jnp, axonlike as al
        >>> right = al.metrics.Metric(
        ...     "right",
        ...     update=lambda y, targets, mask=None: jnp.sum(y == targets),
        ...     merge=lambda a, b: a + b,
        ...     compute=lambda state: state)
        >>> a = right.update(jnp.arange(3), jnp.arange(3))
        >>> int(right.compute(right.merge(a, a)))
        6
    """

    name: str
    update: Callable[..., PyTree]
    merge: Callable[[Any, Any], Any]
    compute: Callable[[Any], Any]
    grows: bool = False

    def merged(self, states: Iterable[PyTree]) -> PyTree:
        """Several states as one."""
        if not self.grows:
            return reduce(self.merge, states)
        return jax.tree.map(_joined, *states)

    def across(self, state: PyTree, axis_name: Any) -> PyTree:
        """One state of all devices, inside of `jax.shard_map` or `jax.vmap`."""
        every = cast(Any, lax.all_gather)(state, axis_name)
        count = lax.axis_size(axis_name)
        return self.merged(jax.tree.map(itemgetter(i), every) for i in range(count))

    def on(self, output: str) -> Metric:
        """The same metric of one output, where predictions and targets are dicts."""

        def update(predictions: Any, targets: Any, mask: Array | None = None) -> PyTree:
            return self.update(
                _item(predictions, output), _item(targets, output, optional=True), mask
            )

        return self._replace(name=f"{output}/{self.name}", update=update)


def once(make: Callable[P, Metric]) -> Callable[P, Metric]:
    """Equal metrics are one object, except of options that cannot be hashed."""
    known = cast(Any, cache(make))

    @wraps(make)
    def made(*args: P.args, **options: P.kwargs) -> Metric:
        try:
            hash((args, *options.values()))
            found = known
        except TypeError:  # an array
            found = make
        return found(*args, **options)

    return made


def _joined(*parts: Any) -> Any:
    """All at once; outside of jit by NumPy, which compiles nothing."""
    traced = any(isinstance(part, jax.core.Tracer) for part in parts)
    return jnp.concatenate(parts) if traced else np.concatenate(parts)


def _item(tree: Any, name: str, *, optional: bool = False) -> Any:
    if isinstance(tree, Mapping) and name in tree:
        return cast("Mapping[str, Any]", tree)[name]
    if optional and not isinstance(tree, Mapping):
        return tree
    known = (
        map(str, cast("Mapping[str, Any]", tree)) if isinstance(tree, Mapping) else ()
    )
    raise PathError("metric", name, known, "It is read where outputs are a dict.")


class Logs(dict[str, Any]):
    """Numbers by name, of one step; `states` are those of its metrics, to be merged."""

    states: States

    def __init__(self, values: Mapping[str, Any], states: States) -> None:
        super().__init__(values)
        self.states = states


def _flat(logs: Logs) -> Any:
    names = tuple(logs)
    return (*logs.values(), logs.states), names


def _flat_with_keys(logs: Logs) -> Any:
    items = [(jax.tree_util.DictKey(name), value) for name, value in logs.items()]
    return (*items, (jax.tree_util.GetAttrKey("states"), logs.states)), tuple(logs)


def _whole(names: tuple[str, ...], items: Any) -> Logs:
    *values, states = items
    return Logs(dict(zip(names, values, strict=True)), states)


jax.tree_util.register_pytree_with_keys(Logs, _flat_with_keys, _whole, _flat)


def named(metrics: Any) -> dict[str, Metric]:
    """Metrics by name: of a dict, of several, or of one."""
    if metrics is None:
        return {}
    if isinstance(metrics, Mapping):
        found = dict(cast("Mapping[str, Any]", metrics))
    else:
        each: list[Any] = [metrics]
        if isinstance(metrics, (list, tuple)) and not isinstance(metrics, Metric):
            each = list(cast("list[Any]", metrics))
        found = {getattr(item, "name", ""): item for item in each}
        if len(found) < len(each):
            raise ValueError(
                "metrics: two have one name. Write {name: metric} with other names."
            )
    for name, metric in found.items():
        if not isinstance(cast(Any, name), str):
            raise TypeError(f"metrics: expected names that are text, got {name!r}.")
        if not isinstance(metric, Metric):
            raise TypeError(
                f"metrics: expected a metric of al.metrics for {name!r}, got "
                f"{show(metric)}. Write al.metrics.mean(function) for a function."
            )
        if name == "loss" or name.startswith("loss/"):
            raise ValueError(
                f"metrics: {name!r} is the name of a loss. Choose another name."
            )
    return found


def measured(
    metrics: Mapping[str, Metric], y: PyTree, batch: PyTree, mask: Array | None
) -> States:
    """The states of metrics of one batch."""
    return {
        name: metric.update(y, targets_of(batch), mask)
        for name, metric in metrics.items()
    }
