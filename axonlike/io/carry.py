"""Numbers on their way between tensors in files and arrays of a model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cache
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding

from axonlike.initialize import Recorder, arrays_of
from axonlike.io.arrays import DTYPES, Array, Entry, Item
from axonlike.io.differences import Difference, refuse, target
from axonlike.io.given import sharding_of
from axonlike.io.links import CHUNK, AnyLink, Link, Slot
from axonlike.io.safetensors import NATIVE
from axonlike.io.tensors import forget

_ALIGNED = 64
Arrays = dict[tuple[int, str], Any]


def read(
    links: list[AnyLink],
    entries: Mapping[str, Entry],
    dtype: Any,
    shardings: Mapping[str, Any],
) -> Arrays:
    """The arrays of ours, one link after the other; shardings by path, where there are."""
    arrays: Arrays = {}
    for link in links:
        if isinstance(link, Link) and link.optional:
            continue
        kind = entries[link.theirs[0]].dtype
        made = [_empty(s.shape, target(kind, s.dtype, dtype)) for s in link.ours]
        link.fill(made, lambda name: entries[name].read())
        while made:
            slot = link.ours[len(made) - 1]
            sharding = sharding_of(shardings.get(slot.stored))
            _place(arrays, slot, made.pop(), sharding)
    return arrays


def _empty(shape: tuple[int, ...], dtype: Any) -> Array:
    """Room for an array, where JAX on a CPU can use it as it is, without another copy."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    room = np.empty(size + _ALIGNED, np.uint8)
    start = -room.ctypes.data % _ALIGNED
    return room[start : start + size].view(dtype).reshape(shape)


def _place(arrays: Arrays, slot: Slot, array: Array, sharding: Any) -> None:
    """An array on its devices, or one copy of a stacked one where it belongs."""
    where = slot.side, slot.stored
    if not slot.copies:
        arrays[where] = jax.device_put(array, sharding)
        return
    if where not in arrays:
        shape = (*slot.copies, *slot.shape)
        arrays[where] = jnp.zeros(shape, array.dtype, device=sharding)
    made: Any = jax.device_put(array)
    stack = _writer(_on_mesh(arrays[where]))(arrays[where], made, slot.which)
    arrays[where] = stack.block_until_ready()
    del array, made
    jax.device_put(0)  # the next call is when JAX lets go of what it was lent


def _on_mesh(array: Any) -> Any:
    """The sharding of an array that is on a mesh: a rule's, or one that is set."""
    return array.sharding if isinstance(array.sharding, NamedSharding) else None


@cache
def _writer(sharding: Any) -> Any:
    """What writes copies into stacks of one sharding, which stays what it is."""
    put: Any = _put
    if sharding is not None and AxisType.Explicit in sharding.mesh.axis_types:
        put = cast(Any, jax.sharding).auto_axes(_put, out_sharding=sharding)
    return jax.jit(put, donate_argnums=0, out_shardings=sharding)


def _put(stack: Any, array: Any, index: Any) -> Any:
    """A stack with one copy in its place, written where the stack is."""
    start = (*index, *(0 for _ in array.shape))
    ones = (1,) * len(index)
    return jax.lax.dynamic_update_slice(
        stack, array.reshape(*ones, *array.shape), start
    )


def getter(params: Any, state: Any) -> Any:
    """What reads one of our arrays, or of the copies in one."""
    sides = dict(params), dict(state)

    def get(slot: Slot) -> Array:
        return _value(sides[slot.side][slot.stored], slot)

    return get


def _value(array: Any, slot: Slot) -> Array:
    if slot.which and jax.default_backend() != "cpu":
        array = array[slot.which]  # or else all copies would be fetched
        value = np.asarray(array)
    else:
        value = np.asarray(array)[slot.which]
    return value.T if slot.turned else value


def check_ties(
    links: list[AnyLink], entries: Mapping[str, Entry], arrays: Arrays
) -> None:
    """That tensors which are one array of ours are equal."""
    found: list[Difference] = []
    for link in links:
        if not isinstance(link, Link) or not link.optional:
            continue

        def get(slot: Slot) -> Array:
            return _value(arrays[slot.side, slot.stored], slot)

        name, slot = link.theirs[0], link.ours[0]
        ours, theirs = link.tensor(name, get), entries[name].read()
        if not _equal(ours, theirs):
            text = f"{slot.stored!r} is tied to {name!r}, which has other values."
            found.append(Difference(f"{text} Build the model without the tie."))
    refuse(found)


def _equal(ours: Array, theirs: Array) -> bool:
    """Whether two arrays of one shape have the same bytes, in the dtype of ours."""
    a, b = np.atleast_1d(ours), np.atleast_1d(theirs)
    rows = max(1, CHUNK // max(1, b[:1].nbytes))
    for start in range(0, len(b), rows):
        part = slice(start, start + rows)
        if a[part].tobytes() != b[part].astype(a.dtype).tobytes():
            return False
        forget(theirs)
    return True


def check_copies(links: list[AnyLink]) -> None:
    """That of stacked copies all are there, or none: there is no half of an array."""
    counts: dict[str, int] = {}
    slots = {slot.stored: slot for link in links for slot in link.ours}
    for link in links:
        for slot in link.ours:
            counts[slot.stored] = counts.get(slot.stored, 0) + (not link.optional)
    for path, slot in slots.items():
        if counts[path] and counts[path] < math.prod(slot.copies):
            raise ValueError(
                f"mapping: the files have {counts[path]} of the "
                f"{math.prod(slot.copies)} copies in {path!r}. "
                "Load them into a model with stacked=False."
            )


def lacks(recorder: Recorder, arrays: Arrays) -> bool:
    """Whether there are params that no file has."""
    return any(
        (0, path) not in arrays
        for leaf in recorder.leaves.values()
        for path, _ in arrays_of(leaf)[0]
    )


# --- writing


def items(links: list[AnyLink], get: Any, like: Mapping[str, Entry]) -> list[Item]:
    """Every tensor to write, those of one size of numbers together, then by name."""
    found: list[Item] = []
    for link in links:
        kept = not isinstance(link, Link) and _still(link, get, like)
        for name, (shape, dtype) in link.expected.items():
            if link.written or name in like:
                own = like[name] if kept else _entry(link, name, shape, dtype, get)
                found.append(_item(name, own))
    written = {item.path for item in found}
    found += [_item(name, own) for name, own in like.items() if name not in written]
    return sorted(found, key=lambda item: (-DTYPES[item.stored].itemsize, item.path))


def _entry(link: AnyLink, name: str, shape: Any, dtype: Any, get: Any) -> Entry:
    return Entry(str(dtype), shape, lambda: link.tensor(name, get))


def _item(name: str, entry: Entry) -> Item:
    if entry.dtype not in NATIVE:
        raise ValueError(
            f"mapping: save: {name!r} is {entry.dtype}, which safetensors files do not "
            "hold. Convert it."
        )

    def read() -> Array:
        array = entry.read()
        return np.ascontiguousarray(array).reshape(array.shape)

    return Item(name, entry.dtype, entry.dtype, entry.shape, read, (id(entry), ()))


def _still(link: AnyLink, get: Any, like: Mapping[str, Entry]) -> bool:
    """Whether tensors of a file still are what our arrays are."""
    expected = link.expected
    for name in link.theirs:
        if name not in like or (like[name].shape, like[name].dtype) != (
            expected[name][0],
            str(expected[name][1]),
        ):
            return False
    made = [np.empty(slot.shape, slot.dtype) for slot in link.ours]
    link.fill(made, lambda name: like[name].read())
    return all(
        np.array_equal(a, get(slot)) for a, slot in zip(made, link.ours, strict=True)
    )
