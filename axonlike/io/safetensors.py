"""Safetensors files: written in one pass with checksums, read through a memory map.

The format is a JSON header, with the dtype, shape and place of every array, and the bytes.
Any reader of safetensors reads these files; what is ours stands in the header's metadata.
"""

from __future__ import annotations

import json
import math
import mmap
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import IO, Any, cast

import numpy as np

from axonlike.io.arrays import DTYPES, Array, Entry, Item, checksum, damaged
from axonlike.io.atomic import replacing
from axonlike.io.given import check_there
from axonlike.io.notes import LONGEST, described, is_strings, loads, note

_NAMES = {
    "BOOL": "bool",
    "I8": "int8", "I16": "int16", "I32": "int32", "I64": "int64",
    "U8": "uint8", "U16": "uint16", "U32": "uint32", "U64": "uint64",
    "F16": "float16", "F32": "float32", "F64": "float64",
    "BF16": "bfloat16", "C64": "complex64",
    "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "F8_E8M0": "float8_e8m0fnu",
}  # fmt: skip
_CODES = {name: code for code, name in _NAMES.items()}
NATIVE = frozenset(_CODES)
"""The dtypes that such a file has."""
_OURS = "axonlike"


def write(
    path: Path,
    arrays: list[Item],
    shared: Mapping[str, str],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes one file, all of it or none.

    The header comes first and holds the checksums, so their places are filled afterwards.

    Args:
        path: of the file.
        arrays: in the order that they shall have.
        shared: `{path: the path of the same array}`.
        metadata: for the header, text by text.
    """
    sums = dict.fromkeys((item.path for item in arrays), "0" * 8)
    with replacing(path) as file:
        file.write(_header(arrays, shared, sums, metadata))
        for item in arrays:
            sums[item.path] = _add(file, item)
        file.seek(0)
        file.write(_header(arrays, shared, sums, metadata))


def _add(file: IO[bytes], item: Item) -> str:
    """Writes one array, which is gone from memory afterwards, and returns its checksum."""
    data = item.read()
    file.write(data.reshape(-1).view(np.uint8).data)
    return f"{checksum(data):08x}"


def _header(
    arrays: list[Item],
    shared: Mapping[str, str],
    sums: Mapping[str, str],
    metadata: Mapping[str, str] | None,
) -> bytes:
    extra = {**(metadata or {}), _OURS: note(arrays, sums, shared)}
    header: dict[str, Any] = {"__metadata__": extra}
    begin = 0
    for item in arrays:
        end = begin + item.nbytes
        header[item.path] = {
            "dtype": _CODES[item.stored],
            "shape": item.shape,
            "data_offsets": [begin, end],
        }
        begin = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def read(path: Path) -> tuple[dict[str, Entry], dict[str, str]]:
    """The arrays of a file, none of them read yet, and the metadata of its header.

    Nothing in the header is trusted: every array lies within the file, and together they
    fill it.

    Args:
        path: of the file.

    Raises:
        ValueError: the file is not what such a file is.
    """
    check_there(path)
    with path.open("rb") as file:
        start, header = _read_header(path, file)
        buffer = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    extra = header.pop("__metadata__", {})
    if not is_strings(extra):
        raise damaged(path, "its metadata is not text")
    if _OURS not in extra and any('"checksums"' in text for text in extra.values()):
        raise damaged(path, "what axonlike noted in it is under another name")
    places = {name: _place(path, name, value) for name, value in header.items()}
    _check_places(path, places, len(buffer) - start)
    found = {
        name: (dtype, shape, partial(_view, buffer, dtype, shape, start + begin))
        for name, (dtype, shape, begin, _) in places.items()
    }
    return described(path, found, extra.get(_OURS)), extra


def _view(buffer: Any, dtype: str, shape: tuple[int, ...], at: int) -> Array:
    return np.ndarray(shape, DTYPES[dtype], buffer, at)


def _read_header(path: Path, file: IO[bytes]) -> tuple[int, dict[str, Any]]:
    size = path.stat().st_size
    first = file.read(8)
    length = int.from_bytes(first, "little")
    if size < 8 or length > min(size - 8, LONGEST):
        if first.startswith(b"PK\3\4"):
            raise ValueError(
                f"load: {path} is a zip, and no safetensors file. "
                "NumPy's are called .npz; PyTorch's are pickles, which are not read."
            )
        raise damaged(path, f"it has {size} bytes, too few for its header")
    try:
        header = loads(file.read(length))
    except (ValueError, RecursionError) as error:
        raise damaged(path, "its header is not readable") from error
    if not isinstance(header, dict):
        raise damaged(path, "its header is no table of arrays")
    return 8 + length, cast("dict[str, Any]", header)


def _place(path: Path, name: str, value: Any) -> tuple[str, tuple[int, ...], int, int]:
    """The dtype, shape, begin and end of one array, checked."""
    fields = cast("dict[str, Any]", value if isinstance(value, dict) else {})
    code: Any = fields.get("dtype")
    shape, ends = _sizes(fields.get("shape")), _sizes(fields.get("data_offsets"))
    dtype = _NAMES.get(code) if isinstance(code, str) else None
    if dtype is None:
        raise damaged(path, f"{name!r} has an unknown dtype, {code!r:.40}")
    if shape is None or ends is None or len(shape) > 32 or len(ends) != 2:
        raise damaged(path, f"{name!r} has no shape and place")
    if ends[1] - ends[0] != math.prod(shape) * DTYPES[dtype].itemsize:
        raise damaged(path, f"{name!r} has more or fewer bytes than its shape")
    return dtype, shape, ends[0], ends[1]


def _sizes(value: Any) -> tuple[int, ...] | None:
    """The numbers in a list, if that is what it is and none is negative."""
    sizes: list[Any] = cast("list[Any]", value) if isinstance(value, list) else [None]
    return tuple(sizes) if all(type(n) is int and n >= 0 for n in sizes) else None


def _check_places(path: Path, places: Mapping[str, Any], size: int) -> None:
    """That the arrays fill the file, one after the other."""
    at = 0
    for name, (*_, begin, end) in sorted(places.items(), key=lambda item: item[1][2:]):
        if begin != at:
            raise damaged(path, f"{name!r} does not begin where the one before it ends")
        if end > size:
            raise damaged(path, f"it ends before {name!r} does")
        at = end
    if at != size:
        raise damaged(path, f"{size - at} bytes at its end belong to no array")
