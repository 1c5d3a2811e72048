"""Trees as the arrays of a file: unrolled paths, bytes in C order, dtypes by name."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple, cast

import jax
import jax.core
import ml_dtypes
import numpy as np

from axonlike.params import paths
from axonlike.selector import at
from axonlike.types import PyTree

STATE = "#state"
"""What follows the path of state that has the path of a param; names hold no `#`."""

_RESERVED = ("__axonlike__", "__metadata__")

PLAIN = (
    "bool int8 int16 int32 int64 uint8 uint16 uint32 uint64 "
    "float16 float32 float64 complex64 complex128"
)
"""The dtypes that NumPy has by itself."""
_MORE = (
    "bfloat16 float8_e3m4 float8_e4m3 float8_e4m3b11fnuz float8_e4m3fn float8_e4m3fnuz "
    "float8_e5m2 float8_e5m2fnuz float8_e8m0fnu float4_e2m1fn float6_e2m3fn "
    "float6_e3m2fn int2 int4 uint2 uint4"
)
DTYPES: dict[str, np.dtype[Any]] = {
    name: np.dtype(getattr(ml_dtypes, name, name))
    for name in f"{PLAIN} {_MORE}".split()
    if name in PLAIN.split() or hasattr(ml_dtypes, name)
}
"""What arrays in a file may be, besides PRNG keys."""

Array = np.ndarray[Any, Any]


class Item(NamedTuple):
    """An array on its way to a file: what it is there, and how to get at it.

    `dtype` is the name of its own, `float32` or `key<fry>`; `stored` and `shape` are those
    that it has in the file: bytes along a new last axis where the file has no such dtype,
    numbers for keys.
    """

    path: str
    dtype: str
    stored: str
    shape: tuple[int, ...]
    read: Callable[[], Array]
    source: tuple[int, tuple[int, ...]]
    """What tells one array from another: those that are the same are stored once."""

    @property
    def nbytes(self) -> int:
        """The bytes that it takes."""
        return math.prod(self.shape) * DTYPES[self.stored].itemsize


class Entry(NamedTuple):
    """An array in a file, read when it is asked for."""

    dtype: str
    shape: tuple[int, ...]
    read: Callable[[], Array]
    """Its numbers; those that keys are made of."""

    def __str__(self) -> str:
        return f"{self.dtype}[{', '.join(map(str, self.shape))}]"


def damaged(file: Any, what: str) -> ValueError:
    """The error of a file that cannot be what was written."""
    return ValueError(
        f"load: {file}: {what}. The file is damaged: get or write it again."
    )


def checksum(data: Any, before: int = 0) -> int:
    """The CRC-32 of an array's bytes."""
    return zlib.crc32(data.reshape(-1).view(np.uint8), before)


def items(trees: Mapping[str, PyTree], native: frozenset[str]) -> Iterator[Item]:
    """Every array of params and state as a file with these dtypes holds it.

    Stacked copies are one array each, under unrolled paths.
    """
    found: set[str] = set()
    for suffix, tree in trees.items():
        for path, array in paths(tree):
            check(path, array)
            for item in _items(path, array, native):
                name = item.path + suffix if item.path in found else item.path
                if name.split("/")[0] in _RESERVED:
                    raise ValueError(
                        f"save: {name!r} is where a file keeps its notes. Rename it."
                    )
                if name in found:
                    raise ValueError(
                        f"save: two arrays are called {name!r}. Names hold no '/'."
                    )
                found.add(name)
                yield item._replace(path=name)


def _items(path: str, array: Any, native: frozenset[str]) -> Iterator[Item]:
    dtype = array.dtype.name
    count = path.split("/").count("*")
    stored, shape = in_file(dtype, array.shape[count:], native)

    def read(index: tuple[int, ...]) -> Array:
        whole = jax.random.key_data(array) if is_key(dtype) else array
        data = np.asarray(whole)[index]
        native = data.astype(data.dtype.newbyteorder("="), copy=False)
        data = np.ascontiguousarray(native).reshape(native.shape)
        if data.dtype.name == stored:
            return data
        return data.reshape(*data.shape, 1).view(np.uint8)

    for index in np.ndindex(*array.shape[:count]):
        name = at(path, index)
        here = (id(array), index)
        yield Item(name, dtype, stored, shape, partial(read, index), here)


def is_masked(array: Any) -> bool:
    """Whether an array is NumPy's with a mask, which would be lost."""
    return isinstance(array, np.ma.MaskedArray)


def check(path: str, array: Any, where: str = "save") -> None:
    """Refuses what is no array whose numbers can be had here."""
    if not hasattr(array, "shape") or not hasattr(array, "dtype"):
        raise TypeError(
            f"{where}: {path!r} is {type(array).__name__}, not an array. "
            "Pass the params and state that init or apply returned."
        )
    if is_masked(array):
        raise TypeError(
            f"{where}: {path!r} is a masked array, and files hold no masks. "
            "Pass array.filled(...), and the mask as an array of its own."
        )
    if isinstance(array, (jax.core.Tracer, jax.ShapeDtypeStruct)):
        raise TypeError(
            f"{where}: {path!r} has no values, only a shape. "
            "Call it outside of jit, grad and eval_shape."
        )
    if array.dtype.name not in DTYPES and not is_key(array.dtype.name):
        raise TypeError(
            f"{where}: {path!r} has dtype {array.dtype}, which no file holds. Convert it."
        )
    if path.split("/").count("*") > len(array.shape):
        raise ValueError(
            f"{where}: {path!r} has more steps '*' than axes of copies. "
            "Pass the params that init returned."
        )
    if isinstance(array, jax.Array) and array.is_deleted():
        raise ValueError(
            f"{where}: {path!r} is deleted, for it was donated to a compiled function. "
            "Pass what that function returned."
        )
    if isinstance(array, jax.Array) and not array.is_fully_addressable:
        raise ValueError(
            f"{where}: {path!r} is spread over processes, of which this one has a part. "
            "Gather it first: jax.experimental.multihost_utils.process_allgather."
        )


# --- PRNG keys, and dtypes that a file does not have


def is_key(dtype: str) -> bool:
    """Whether this is the dtype of typed PRNG keys."""
    return dtype.startswith("key<")


def as_keys(data: Any, dtype: str) -> Any:
    """The typed keys that are made of these numbers."""
    return cast(Any, jax.random).wrap_key_data(data, impl=_implementation(dtype))


def in_file(
    dtype: str, shape: tuple[int, ...], native: frozenset[str]
) -> tuple[str, tuple[int, ...]]:
    """The dtype and shape that an array has in a file with these dtypes."""
    if is_key(dtype):
        key = jax.eval_shape(_key_data(dtype))
        return str(key.dtype), (*shape, *key.shape)
    if dtype in native:
        return dtype, shape
    return "uint8", (*shape, DTYPES[dtype].itemsize)


def entry(
    dtype: str, stored: str, shape: tuple[int, ...], read: Callable[[], Array]
) -> Entry:
    """An array of a file, which has a stored dtype and shape there.

    Raises:
        ValueError: an array of this dtype would have others there.
    """
    if dtype == stored:
        return Entry(dtype, shape, read)
    tail = in_file(dtype, (), frozenset())
    cut = len(shape) - len(tail[1])
    if (stored, shape[max(cut, 0) :]) != tail:
        raise ValueError(f"{stored}{list(shape)} cannot hold {dtype}")
    if is_key(dtype):
        return Entry(dtype, shape[:cut], read)

    def again() -> Array:
        return np.ascontiguousarray(read()).view(DTYPES[dtype]).reshape(shape[:cut])

    return Entry(dtype, shape[:cut], again)


def _key_data(dtype: str) -> Callable[[], Any]:
    return partial(_key_numbers, _implementation(dtype))


def _key_numbers(implementation: str) -> Any:
    return jax.random.key_data(jax.random.key(0, impl=implementation))


def _implementation(dtype: str) -> str:
    """The implementation of keys, by what JAX shows of their dtype."""
    for name in ("threefry2x32", "rbg", "unsafe_rbg"):
        if str(jax.eval_shape(partial(jax.random.key, 0, impl=name)).dtype) == dtype:
            return name
    raise ValueError(f"{dtype!r} is no dtype of keys in this version of JAX")
