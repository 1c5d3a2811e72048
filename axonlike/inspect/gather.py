"""What goes into a table of a model: shapes, arrays and costs, put into its rows."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp

from axonlike.combinators.tying import ties
from axonlike.errors import PathError, ShapeError
from axonlike.initialize import Recorder, arrays_of, put
from axonlike.inspect.costs import Costs, forward_costs, kept_costs
from axonlike.inspect.flow import connect, sources
from axonlike.inspect.rows import Finder, Row
from axonlike.inspect.trace import Call
from axonlike.params import partition, paths
from axonlike.spec import is_unknown, names_of, show, size_of
from axonlike.surgery import trainable
from axonlike.types import PyTree


class Arrays(NamedTuple):
    """The params and state of a model, as shapes."""

    params: PyTree
    state: PyTree


def outputs(finder: Finder, recorder: Recorder) -> None:
    """What each layer returns, its named dims kept."""
    for row in finder.by_path.values():
        known = [
            recorder.outputs[path] for path in row.paths if path in recorder.outputs
        ]
        row.spec = known[0] if known else None


def arrays(recorder: Recorder, params: PyTree) -> Arrays:
    """The shapes of what `init` makes; or of params that are given in their place."""
    made: dict[str, Any] = {}
    state: dict[str, Any] = {}
    for leaf in recorder.leaves.values():
        for tree, items in zip((made, state), arrays_of(leaf), strict=True):
            for path, spec in items:
                home, _, name = path.rpartition("/")
                put(tree, home, {name: spec})
    if params is None:
        return Arrays(made, state)
    ours, theirs = dict(paths(made)), dict(paths(params))
    for path in sorted(theirs.keys() - ours.keys()):
        raise PathError("summary: params", path, ours, "Pass what init returned.")
    for path in sorted(ours.keys() - theirs.keys()):
        raise PathError("summary: init's params", path, theirs, "It is missing.")
    for path, wanted in ours.items():
        _check_shape(path, wanted, theirs[path])
    return Arrays(jax.tree.map(_struct, params), state)


def _check_shape(path: str, wanted: Any, got: Any) -> None:
    if getattr(got, "shape", None) != wanted.shape:
        where, hint = f"summary: params: {path}", "Pass params of this model and spec."
        raise ShapeError(where, show(wanted), show(got), hint)


def _struct(array: Any) -> Any:
    return jax.ShapeDtypeStruct(array.shape, array.dtype)


def count_arrays(finder: Finder, model: Any, made: Arrays) -> None:
    """Params and state of each row: their numbers and bytes, what is trained, what tied."""
    mask = dict(paths(trainable(model, made.params)))
    for path, spec in paths(made.params):
        sums, number = finder.of_array(path).sums, math.prod(spec.shape)
        sums["params"] += number
        sums["bytes"] += nbytes([spec])
        sums["trainable" if mask[path] else "frozen"] += number
    for path, spec in paths(made.state):
        sums = finder.of_array(path).sums
        sums["state"] += math.prod(spec.shape)
        sums["state_bytes"] += nbytes([spec])
    for target, source in tied(model):
        finder.of_array(target).tied_to.append(source)


def tied(model: Any) -> Iterator[tuple[str, str]]:
    """Targets and sources of ties; of unrolled copies those of the first."""
    told: set[str] = set()
    for target, source in ties(model):
        array = "/".join(step for step in target.split("/") if not step.isdigit())
        if array not in told:
            yield target, source
        told.add(array)


def memory(optimizer: Any, model: Any, made: Arrays) -> int:
    """Bytes that an optimizer keeps for the params that are trained, as in `train_step`."""
    if not hasattr(optimizer, "init") or not hasattr(optimizer, "update"):
        raise TypeError(
            f"summary: expected an optimizer of optax, got {show(optimizer)}. "
            "Write optax.adam(1e-3)."
        )
    free = dict(paths(trainable(model, made.params)))

    def is_trained(path: str, array: Any) -> bool:
        return free[path] and jnp.issubdtype(array.dtype, jnp.inexact)

    some = any(is_trained(path, array) for path, array in paths(made.params))
    trained = partition(made.params, is_trained)[0] if some else {}
    return nbytes(jax.tree.leaves(jax.eval_shape(optimizer.init, trained)))


def nbytes(specs: Iterable[Any]) -> int:
    """How many bytes arrays of these shapes take."""
    return sum(math.prod(s.shape) * s.dtype.itemsize for s in specs)


class Sizes(NamedTuple):
    """At which sizes of named dims costs are counted."""

    known: Mapping[str, int]
    names: tuple[str, ...]

    @property
    def assumed(self) -> list[str]:
        """The names that are 1 because nothing else was said."""
        return [name for name in self.names if name not in self.known]

    def of(self, spec: Any) -> Any:
        """The spec with every size a number."""
        sizes = {name: 1 for name in self.names} | dict(self.known)
        shape = [size_of(str(n), sizes) if is_unknown(n) else n for n in spec.shape]
        return jax.ShapeDtypeStruct(tuple(map(int, shape)), spec.dtype)

    def __str__(self) -> str:
        values = {name: self.known.get(name, 1) for name in self.names}
        return ", ".join(f"{name} = {size}" for name, size in values.items())


def is_count(n: Any) -> bool:
    """Whether it is a positive int."""
    return isinstance(n, int) and not isinstance(n, bool) and n > 0


def sizes_of(specs: PyTree, given: Mapping[str, int]) -> Sizes:
    """The sizes for a spec, from what was given."""
    if not isinstance(cast(Any, given), Mapping):
        raise TypeError(f"summary: sizes: expected {{name: size}}, got {show(given)}.")
    dims = [n for spec in jax.tree.leaves(specs) for n in spec.shape if is_unknown(n)]
    names = tuple(dict.fromkeys(name for n in dims for name in names_of(str(n))))
    for name, size in given.items():
        if name not in names:
            raise PathError("summary: sizes", name, names)
        if not is_count(size):
            raise ValueError(
                f"summary: the size of {name!r} must be a positive int, got {size!r}."
            )
    return Sizes(given, names)


def count_costs(finder: Finder, root: Row, call: Call) -> None:
    """FLOPs and outputs of each row for a call, and where it takes its inputs from."""
    jaxpr = call.forward()
    _into(finder, forward_costs(jaxpr, len(jax.tree.leaves(call.state))))
    first = len(jax.tree.leaves((call.params, call.state)))
    names = _inputs(call.x)
    connect(root, sources(jaxpr, finder, names, first), names)


def count_kept(finder: Finder, call: Call) -> None:
    """What each row keeps for the backward pass of such a call in training."""
    _into(finder, kept_costs(call._replace(train=True).linear()))


def _into(finder: Finder, costs: Costs) -> None:
    for (what, scope), cost in costs.items():
        finder.of_scope(scope).sums[what] += cost


def _inputs(x: PyTree) -> list[str]:
    """What the model's inputs are called."""
    found = cast(Any, jax.tree_util.tree_flatten_with_path(x)[0])
    rest = [jax.tree_util.keystr(p, simple=True, separator="/") for p, _ in found]
    return [f"input/{name}" if name else "input" for name in rest]
