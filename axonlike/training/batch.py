"""What a batch is: inputs with what else is known, and how a short one is made full."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, cast

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from axonlike.errors import ShapeError
from axonlike.spec import show
from axonlike.types import Array, PyTree


class ShortTuple(tuple[Any, ...]):
    """A batch of data whose last batch is shorter; `batch_size` rows are a full one."""

    batch_size: int = 0


class ShortDict(dict[str, Any]):
    """As `ShortTuple`, for a batch that is a dict."""

    batch_size: int = 0


def marked(batch: PyTree, batch_size: int) -> PyTree:
    """The batch, told that a full one has so many rows."""
    kinds: dict[Any, Any] = {tuple: ShortTuple, dict: ShortDict}
    kind = kinds.get(cast(Any, type(batch)))
    if kind is None:
        return batch
    made = kind(batch)
    made.batch_size = batch_size
    return made


def size_of(batch: PyTree) -> int | None:
    """How many rows a full batch has, where a short one may come."""
    return getattr(batch, "batch_size", None)


def _flat_tuple(batch: ShortTuple) -> Any:
    return tuple(batch), batch.batch_size


def _whole_tuple(batch_size: int, items: Any) -> ShortTuple:
    return marked(tuple(items), batch_size)


def _flat_dict(batch: ShortDict) -> Any:
    names = tuple(sorted(batch))
    return tuple(batch[name] for name in names), (names, batch.batch_size)


def _whole_dict(known: Any, items: Any) -> ShortDict:
    return marked(dict(zip(known[0], items, strict=True)), known[1])


jax.tree_util.register_pytree_node(ShortTuple, _flat_tuple, _whole_tuple)
jax.tree_util.register_pytree_node(ShortDict, _flat_dict, _whole_dict)


# --- the parts of a batch


def inputs_of(batch: PyTree) -> PyTree:
    """What the model receives."""
    if isinstance(batch, Mapping):
        return _named(cast("Mapping[str, Any]", batch), "inputs")
    if isinstance(batch, (tuple, list)):
        return _numbered(cast("list[Any]", batch), 0)
    return batch


def targets_of(batch: PyTree) -> PyTree:
    """What the model should have said."""
    if isinstance(batch, Mapping):
        return _named(cast("Mapping[str, Any]", batch), "targets")
    if isinstance(batch, (tuple, list)):
        return _numbered(cast("list[Any]", batch), 1)
    return _numbered([batch], 1)


def mask_of(batch: PyTree) -> Array | None:
    """Which elements count, where a batch that is a dict says so by `"mask"`."""
    if isinstance(batch, Mapping):
        return cast("Mapping[str, Any]", batch).get("mask")
    return None


def _named(batch: Mapping[str, Any], name: str) -> Any:
    if name not in batch:
        raise ValueError(
            f"batch: expected a dict with {name!r}, got {sorted(map(str, batch))}. "
            f'Write {{"inputs": x, "targets": y}}, or a tuple (x, y).'
        )
    return batch[name]


def _numbered(batch: Any, index: int) -> Any:
    if len(batch) <= index:
        what = "(inputs, targets, ...)" if index else "(inputs, ...)"
        raise ValueError(
            f"batch: expected a tuple {what}, got {len(batch)} items. "
            "Write (x, y), or a dict with inputs and targets."
        )
    return batch[index]


# --- as arrays


def as_arrays(batch: PyTree) -> PyTree:
    """The batch as tuples and dicts of arrays, whatever a loader made it of."""
    kind = cast(Any, type(batch))
    if kind is tuple or kind is list or kind is ShortTuple:
        return tuple(map(as_arrays, batch))
    if kind is dict or kind is ShortDict:
        return {name: as_arrays(item) for name, item in batch.items()}
    if isinstance(batch, (jax.Array, np.ndarray, jax.core.Tracer)):
        return cast(Any, batch)
    if isinstance(batch, Mapping):
        return as_arrays(dict(cast("Mapping[str, Any]", batch)))
    if hasattr(kind, "_fields"):
        return kind(*map(as_arrays, cast("tuple[Any, ...]", batch)))
    return np.asarray(batch) if hasattr(batch, "__array__") else batch


def rows_of(batch: PyTree) -> int:
    """How many examples there are: the size of the first axis of all arrays."""
    sizes = {np.shape(leaf)[:1] for leaf in jax.tree.leaves(batch)}
    if len(sizes) != 1 or () in sizes:
        raise ShapeError(
            "batch", "arrays with one first axis, of examples", show(batch),
            "Give each array a row for each example.",
        )  # fmt: skip
    return sizes.pop()[0]


def count_of(batch: PyTree) -> Any:
    """How many examples of a batch count; 1 where it does not tell. Waits for nothing."""
    mask = mask_of(batch)
    if hasattr(mask, "sum"):
        return cast(Any, mask).sum()
    first = _first(batch)
    return first.shape[0] if getattr(first, "shape", ()) else 1


def _first(tree: Any) -> Any:
    """The first leaf of tuples, lists and dicts; quicker than all of them."""
    if isinstance(tree, Mapping):
        tree = list(cast("Mapping[str, Any]", tree).values())
    if isinstance(tree, (tuple, list)) and tree:
        return _first(cast("list[Any]", tree)[0])
    return cast(Any, tree)


class Padded(NamedTuple):
    """A batch of full size, and which of its rows were there before."""

    batch: PyTree
    rows: Array | np.ndarray[Any, Any]


def padded(batch: PyTree, size: int) -> Padded:
    """The batch with its rows repeated until there are `size`."""
    count = rows_of(batch)
    if not 1 <= count <= size:
        raise ShapeError(
            "batch", f"1 to {size} rows", str(count),
            "batch_size is the size of the largest batch.",
        )  # fmt: skip
    rows = np.arange(size) < count
    if count == size:
        return Padded(batch, rows)
    index = np.arange(size) % count

    def longer(x: Any) -> Any:
        if isinstance(x, jax.core.Tracer):
            return jnp.take(cast(Any, x), index, 0)
        return np.asarray(x)[index]

    return Padded(jax.tree.map(longer, batch), rows)


def over(mask: Any, shape: tuple[int, ...], what: str) -> Array:
    """A mask of first axes at the full shape of what it masks."""
    if tuple(mask.shape) != shape[: mask.ndim]:
        raise ShapeError(
            what, f"a mask of the first axes of {list(shape)}", show(mask),
            "Give it one truth value for each example, or for each element.",
        )  # fmt: skip
    wide = jnp.reshape(mask, (*mask.shape, *(1,) * (len(shape) - mask.ndim)))
    return jnp.broadcast_to(wide, shape).astype(bool)


def both(
    mask: Any, rows: Any, shape: tuple[int, ...] | None = None, what: str = "batch"
) -> Array | None:
    """What counts by a mask and by rows; at a full shape, where one is given."""
    masks = [each for each in (mask, rows) if each is not None]
    if not masks:
        return None
    if shape is None:
        shape = max((tuple(each.shape) for each in masks), key=len)
    first, *rest = [over(each, shape, what) for each in masks]
    return first & rest[0] if rest else first
