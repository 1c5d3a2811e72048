"""Parameters are trees: listing, choosing, parting and labelling their arrays by path.

Everything here takes the nested dicts that `init` returns, or any tree shaped like them:
gradients, shapes, masks. Nothing is changed in place.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp

from axonlike.combinators.tying import ties
from axonlike.errors import PathError, ShapeError
from axonlike.layer import Layer
from axonlike.selector import Copies, Item, Where, at, choose, is_whole, whole
from axonlike.spec import show
from axonlike.spots import spots
from axonlike.types import Params, PyTree


def paths(tree: PyTree, model: Layer | None = None) -> list[tuple[str, Any]]:
    """Every `(path, array)` of a tree.

    Args:
        tree: nested dicts of arrays: params, state, gradients, shapes.
        model: what the params are of; gives its order, and a tied array under every
            path that it serves. None: the tree's own order.

    Shapes:
        Any; the arrays themselves are returned.

    Raises:
        TypeError: the tree is not a dict.

    Example:
        >>> import jax, axonlike as al
        >>> model = al.dense(8) >> al.dense(2)
        >>> params, state = model.init(jax.random.key(0), (None, 4))
        >>> [path for path, array in al.paths(params, model)]
        ['dense/kernel', 'dense/bias', 'dense_1/kernel', 'dense_1/bias']
    """
    if not isinstance(tree, dict):
        raise TypeError(
            f"paths: expected a dict of arrays, got {type(tree).__name__}. "
            "Pass the params or the state that init returned."
        )
    found: list[Item] = []
    _collect(tree, "", found)
    return found if model is None else _ordered(found, model)


def _collect(tree: Any, path: str, found: list[Item]) -> None:
    """Dicts by name, which is quick; what else holds arrays as JAX names it."""
    for name, value in tree.items():
        below = f"{path}/{name}" if path else str(name)
        if isinstance(value, dict):
            _collect(value, below, found)
        elif hasattr(value, "shape"):
            found.append((below, value))
        else:
            for keys, leaf in cast(Any, jax.tree_util.tree_flatten_with_path(value)[0]):
                inner = jax.tree_util.keystr(keys, simple=True, separator="/")
                found.append((f"{below}/{inner}" if inner else below, leaf))


def _ordered(found: list[Item], model: Layer) -> list[Item]:
    """In the model's order, tied arrays under their other paths as well."""
    memory = model.identity.memory
    if "order" not in memory:
        homes = (path for spot in spots(model) for path in spot.paths)
        memory["order"] = {path: i for i, path in enumerate(dict.fromkeys(homes))}
        memory["ties"] = list(ties(model))
    by_path = dict(found)
    for target, source in memory["ties"]:
        if source in by_path:
            by_path[target] = by_path[source]
    return sorted(by_path.items(), key=partial(_rank, memory["order"]))


_FIRST = {"kernel": 0, "embedding": 1, "scale": 2, "bias": 3}


def _rank(order: Mapping[str, int], item: Item) -> tuple[int, int, str]:
    """The layer's place in the model, then the usual order of its arrays."""
    home, _, name = item[0].rpartition("/")
    while home and home not in order:
        home = home.rpartition("/")[0]
    return order.get(home, 0), _FIRST.get(name, len(_FIRST)), name


def select(tree: PyTree, where: Where, model: Layer | None = None) -> dict[str, Any]:
    """The arrays that a selector means, by path.

    Args:
        tree: nested dicts of arrays.
        where: a path or glob (of arrays, or of layers for all of theirs), a predicate on
            `(path, array)`, `kind("dense")`, or several of those.
        model: what the params are of; needed for kinds.

    Shapes:
        Those in the tree; one copy of a stacked array (`blocks/3/kernel`) lacks the
        axis of copies.

    Raises:
        PathError: a selector means nothing.

    Example:
        >>> import jax, axonlike as al
        >>> model = al.dense(8) >> al.dense(2)
        >>> params, state = model.init(jax.random.key(0), (None, 4))
        >>> list(al.select(params, "*/kernel"))
        ['dense/kernel', 'dense_1/kernel']
        >>> sorted(al.select(params, "dense_1"))
        ['dense_1/bias', 'dense_1/kernel']
    """
    chosen: dict[str, Any] = {}
    for path, array, copies in _chosen("select", tree, where, model):
        if copies and is_whole(copies, path, array):
            chosen[path] = array
            continue
        for index in sorted(copies):
            chosen[at(path, index)] = array[index]
    return chosen


def _chosen(
    verb: str, tree: PyTree, where: Where, model: Layer | None
) -> list[tuple[str, Any, Copies]]:
    """Every array with what is chosen of it, tied ones under every path."""
    items = paths(tree, model)
    layers = None if model is None else list(spots(model))
    copies = choose(verb, where, items, layers)
    return [(*item, each) for item, each in zip(items, copies, strict=True)]


def _whole(
    verb: str, tree: PyTree, where: Where, model: Layer | None
) -> dict[str, bool]:
    """Which arrays are chosen; a part of one is refused."""
    tied = {} if model is None else dict(ties(model))
    marks: dict[str, bool] = {}
    for path, array, copies in _chosen(verb, tree, where, model):
        home = tied.get(path, path)
        marks[home] = whole(copies, verb, path, array) or marks.get(home, False)
    return marks


def count(tree: PyTree, where: Where = None, model: Layer | None = None) -> int:
    """How many numbers a tree holds.

    Args:
        tree: nested dicts of arrays, or of their shapes.
        where: a selector, as for `select`; None for all.
        model: what the params are of; needed for kinds.

    Shapes:
        Any.

    Raises:
        PathError: a selector means nothing.

    Example:
        >>> import jax, axonlike as al
        >>> params, state = al.dense(2).init(jax.random.key(0), (None, 3))
        >>> al.count(params), al.count(params, "bias")
        (8, 2)
    """
    return sum(math.prod(leaf.shape) for leaf in _leaves(tree, where, model))


def nbytes(tree: PyTree, where: Where = None, model: Layer | None = None) -> int:
    """How many bytes a tree takes.

    Args:
        tree: nested dicts of arrays, or of their shapes.
        where: a selector, as for `select`; None for all.
        model: what the params are of; needed for kinds.

    Shapes:
        Any.

    Raises:
        PathError: a selector means nothing.

    Example:
        >>> import jax, axonlike as al
        >>> params, state = al.dense(2).init(jax.random.key(0), (None, 3))
        >>> al.nbytes(params)
        32
    """
    sizes = (
        math.prod(leaf.shape) * leaf.dtype.itemsize
        for leaf in _leaves(tree, where, model)
    )
    return sum(sizes)


def _leaves(tree: PyTree, where: Where, model: Layer | None) -> list[Any]:
    """The chosen arrays, each once."""
    if where is None:
        return jax.tree.leaves(tree)
    tied = {} if model is None else dict(ties(model))
    chosen = select(tree, where, model)
    return list({tied.get(path, path): leaf for path, leaf in chosen.items()}.values())


def partition(
    tree: PyTree, where: Where, model: Layer | None = None
) -> tuple[Params, Params]:
    """Two trees, of what a selector means and of the rest; `merge` joins them again.

    A gradient with respect to the first one costs nothing for the second, and an
    optimizer started on the first one keeps no memory for the second.

    Args:
        tree: nested dicts of arrays.
        where: a selector, as for `select`.
        model: what the params are of; needed for kinds.

    Shapes:
        Those in the tree; a dict without arrays is left out.

    Raises:
        PathError: a selector means nothing.
        ValueError: a selector means some copies in a stacked array.

    Example:
        >>> import jax, jax.numpy as jnp, axonlike as al
        >>> model = al.serial(body=al.dense(8), head=al.dense(2))
        >>> params, state = model.init(jax.random.key(0), (None, 4))
        >>> head, body = al.partition(params, "head")
        >>> loss = lambda head: model.predict(
        ...     al.merge(head, body), state, jnp.ones((1, 4))).sum()
        >>> list(jax.grad(loss)(head))
        ['head']
    """
    marks = _whole("partition", tree, where, model)
    return _kept(tree, marks, True), _kept(tree, marks, False)


def _kept(tree: Any, marks: Mapping[str, bool], wanted: bool, path: str = "") -> Any:
    """The dicts of a tree with the arrays that are marked so, and no empty dict."""
    kept: dict[str, Any] = {}
    for name, value in tree.items():
        below = f"{path}/{name}" if path else str(name)
        if isinstance(value, dict):
            inside = _kept(value, marks, wanted, below)
            if inside:
                kept[name] = inside
        elif _mark(marks, below) == wanted:
            kept[name] = value
    return kept


def _mark(marks: Mapping[str, bool], path: str) -> bool:
    """The mark of what stands at a path: one for all arrays of a tuple or list."""
    if path in marks:
        return marks[path]
    inside = {mark for other, mark in marks.items() if other.startswith(f"{path}/")}
    if len(inside) > 1:
        raise ValueError(
            f"partition: {path!r} is one tuple or list, chosen in part. "
            "Choose all of it, or make it a dict."
        )
    return inside.pop() if inside else False


def merge(*trees: PyTree) -> Params:
    """One tree of the arrays of several, which must not be at the same places.

    Args:
        trees: nested dicts of arrays, such as `partition` returns.

    Shapes:
        Those in the trees.

    Raises:
        ValueError: two trees have an array at one path.

    Example:
        >>> import axonlike as al
        >>> al.merge({"a": {"kernel": 1}}, {"a": {"bias": 2}, "b": {"kernel": 3}})
        {'a': {'kernel': 1, 'bias': 2}, 'b': {'kernel': 3}}
    """
    merged: Params = {}
    for tree in trees:
        merged = _merged(merged, tree, "")
    return merged


def _merged(a: Any, b: Any, path: str) -> Any:
    if not isinstance(a, dict) or not isinstance(b, dict):
        raise ValueError(
            f"merge: {path or 'the root'!r} is an array in one tree and something in "
            "another. Merge the two trees of one partition."
        )
    ours, theirs = cast(Params, a), cast(Params, b)
    merged = dict(ours)
    for name, value in theirs.items():
        below = f"{path}/{name}" if path else str(name)
        merged[name] = _merged(ours[name], value, below) if name in ours else value
    return merged


def labels(
    tree: PyTree,
    rules: Mapping[Any, str],
    default: str | None = None,
    model: Layer | None = None,
) -> PyTree:
    """A tree of labels, one for each array, as `optax.multi_transform` takes it.

    Args:
        tree: nested dicts of arrays.
        rules: `{selector: label}`; the first that means an array labels it.
        default: of arrays that no rule means; None: there must be none.
        model: what the params are of; needed for kinds.

    Shapes:
        The tree's structure.

    Raises:
        PathError: a selector means nothing.
        ValueError: an array has no label, or a selector means some copies in it.

    Example:
        >>> import jax, optax, axonlike as al
        >>> model = al.serial(body=al.dense(8), head=al.dense(2))
        >>> params, state = model.init(jax.random.key(0), (None, 4))
        >>> labels = al.labels(params, {"head": "fast", "body": "slow"})
        >>> rates = {"fast": optax.sgd(0.1), "slow": optax.sgd(0.01)}
        >>> optimizer = optax.multi_transform(rates, labels)
    """
    found: dict[str, str] = {}
    for where, label in rules.items():
        for path, mark in _whole("labels", tree, where, model).items():
            if mark:
                found.setdefault(path, label)
    bare = [path for path, _ in paths(tree) if path not in found]
    if bare and default is None:
        raise ValueError(
            f"labels: no rule means {bare[0]!r}"
            + (f" and {len(bare) - 1} more" if len(bare) > 1 else "")
            + ". Add a rule, or default=."
        )
    return mapped(lambda path, _: found.get(path, default), tree)


def mapped(function: Callable[[str, Any], Any], tree: PyTree) -> PyTree:
    """`function(path, array)` for every array of a tree."""

    def one(keys: Any, leaf: Any) -> Any:
        return function(jax.tree_util.keystr(keys, simple=True, separator="/"), leaf)

    return jax.tree_util.tree_map_with_path(one, tree)


def stack(tree: PyTree, path: str) -> Params:
    """A tree whose copies `blocks/0/...`, `blocks/1/...` stand in one: `blocks/*/...`.

    What `repeat(..., stacked=True)` takes, of what `stacked=False` made. Not meant to run
    under `jax.jit`, where it compiles slowly.

    Args:
        tree: nested dicts of arrays.
        path: where the copies are; "" where they are at the root.

    Shapes:
        Each array gets a leading axis of copies.

    Raises:
        PathError: there is nothing at the path.
        ValueError: what is there are not numbered copies, or they differ.

    Example:
        >>> import jax.numpy as jnp, axonlike as al
        >>> params = {"blocks": {"0": {"bias": jnp.ones(2)}, "1": {"bias": jnp.ones(2)}}}
        >>> al.stack(params, "blocks")["blocks"]["*"]["bias"].shape
        (2, 2)
    """

    def stacked(copies: Any) -> Any:
        names = sorted(copies, key=lambda name: (len(name), name))
        if not names or names != [str(i) for i in range(len(names))]:
            raise ValueError(
                f"stack: expected copies '0', '1', ... at {path!r}, got {names}. "
                "Pass the path of a repeat with stacked=False."
            )
        return {"*": _stacked([copies[name] for name in names], path)}

    return _changed("stack", tree, path, stacked)


def _stacked(copies: list[Any], path: str) -> Any:
    def spec(a: Any) -> Any:
        return a.shape, a.dtype

    def together(*arrays: Any) -> Any:
        return jnp.stack(arrays)

    specs = [jax.tree.map(spec, copy) for copy in copies]
    for i, each in enumerate(specs):
        if each != specs[0]:
            raise ShapeError(
                "stack", f"copy {i} of {path!r} like copy 0, {show(copies[0])}",
                show(copies[i]), "Only equal layers stack.",
            )  # fmt: skip
    return jax.tree.map(together, *copies)


def unstack(tree: PyTree, path: str) -> Params:
    """A tree whose stacked `blocks/*/...` is copies: `blocks/0/...`, `blocks/1/...`.

    What `repeat(..., stacked=False)` takes, of what `stacked=True` made.

    Args:
        tree: nested dicts of arrays.
        path: where the stack is; "" where it is at the root.

    Shapes:
        Each array loses its leading axis of copies.

    Raises:
        PathError: there is nothing at the path.
        ValueError: what is there is not a stack.

    Example:
        >>> import jax.numpy as jnp, axonlike as al
        >>> al.unstack({"blocks": {"*": {"bias": jnp.ones((2, 3))}}}, "blocks")
        {'blocks': {'0': {'bias': Array([1., 1., 1.], ...)}, '1': ...}}
    """

    def apart(stacked: Any) -> Any:
        arrays = jax.tree.leaves(stacked.get("*", {}))
        counts = {leaf.shape[:1] for leaf in arrays}
        if list(stacked) != ["*"] or len(counts) != 1:
            raise ValueError(
                f"unstack: expected one stack '*' at {path!r}, got {sorted(stacked)}. "
                "Pass the path of a stacked repeat or an ensemble."
            )
        copies = range(counts.pop()[0])
        return {str(i): jax.tree.map(partial(_at, i), stacked["*"]) for i in copies}

    return _changed("unstack", tree, path, apart)


def _at(index: int, array: Any) -> Any:
    return array[index]


def _changed(
    verb: str, tree: Any, path: str, change: Callable[[Any], Any], done: str = ""
) -> Any:
    """The tree with the dict at a path changed."""
    if not path:
        return change(tree)
    step, _, rest = path.partition("/")
    here = cast(Params, tree)
    if not isinstance(here.get(step), dict):
        raise PathError(verb, f"{done}{path}", [f"{done}{name}" for name in here])
    return {**here, step: _changed(verb, here[step], rest, change, f"{done}{step}/")}
