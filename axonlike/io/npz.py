"""NumPy's npz files: a zip of arrays, each with a header; nothing is unpickled."""

from __future__ import annotations

import math
import tokenize
import zipfile
import zlib
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy

from axonlike.io.arrays import PLAIN, Array, Entry, Item, checksum, damaged
from axonlike.io.atomic import replacing
from axonlike.io.given import check_there
from axonlike.io.notes import LONGEST, Found, described, note

NATIVE = frozenset(PLAIN.split())
"""The dtypes that such a file has."""
_OURS = "__axonlike__"
# What zipfile, zlib, NumPy and the parser of its headers raise for bytes that are no
# archive; RuntimeError for compressions, versions and ciphers that it does not know.
_WRONG = (
    zipfile.BadZipFile, zlib.error, EOFError, ValueError, RuntimeError,
    OverflowError, SyntaxError, MemoryError, OSError,
    LookupError, TypeError, AttributeError, tokenize.TokenError,
)  # fmt: skip


def write(path: Path, arrays: list[Item], shared: Mapping[str, str]) -> None:
    """Writes one file, all of it or none.

    Args:
        path: of the file.
        arrays: in the order that they shall have.
        shared: `{path: the path of the same array}`.
    """
    sums: dict[str, str] = {}
    with replacing(path) as file, zipfile.ZipFile(file, "w") as archive:
        for item in arrays:
            data = item.read()
            sums[item.path] = f"{checksum(data):08x}"
            _add(archive, item.path, data)
        text = note(arrays, sums, shared).encode()
        _add(archive, _OURS, np.frombuffer(text, np.uint8))


def _add(archive: zipfile.ZipFile, name: str, data: Array) -> None:
    with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
        npy.write_array(member, data, allow_pickle=False)


def read(path: Path) -> dict[str, Entry]:
    """The arrays of a file, none of them read yet.

    An array's header says how many bytes it has, so no more are unpacked.

    Args:
        path: of the file.

    Raises:
        ValueError: the file is not what such a file is.
    """
    check_there(path)
    found: dict[str, Found] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                name = member.filename.removesuffix(".npy")
                if name in found:
                    raise ValueError(f"{name!r} is in it twice")
                found[name] = _member(path, archive, member)
    except _WRONG as error:
        raise damaged(path, f"it is no npz file that can be read ({error})") from error
    ours = found.pop(_OURS, None)
    text = None if ours is None else _note(path, ours)
    return described(path, found, text)


def _note(path: Path, ours: Found) -> str:
    if math.prod(ours[1]) > LONGEST:
        raise damaged(path, "what axonlike noted in it is too long")
    try:
        return ours[2]().tobytes().decode()
    except UnicodeDecodeError as error:
        raise damaged(path, "what axonlike noted in it is not readable") from error


def _member(path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Found:
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"{member.filename!r} is compressed in an unusual way")
    with archive.open(member) as file:
        shape, _, dtype = _read_header(file)
    name = dtype.newbyteorder("=").name
    return name, shape, partial(_read_member, path, member.filename)


def _read_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = npy.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ValueError("an array has an unknown version")
    first = (
        npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    )
    shape, fortran, dtype = first(file, max_header_size=10_000)
    if len(shape) > 32 or any(n < 0 for n in shape):
        raise ValueError("an array has no shape")
    return shape, fortran, dtype


def _read_member(path: Path, filename: str) -> Array:
    name = filename.removesuffix(".npy")
    try:
        with zipfile.ZipFile(path) as archive, archive.open(filename) as file:
            shape, fortran, dtype = _read_header(file)
            if dtype.newbyteorder("=").name not in NATIVE:
                raise ValueError(f"its dtype is {dtype}")
            size = math.prod(shape) * dtype.itemsize
            data = file.read(size + 1)
    except _WRONG as error:
        raise damaged(path, f"{name!r} cannot be read ({error})") from error
    if len(data) != size:
        raise damaged(path, f"{name!r} has more or fewer bytes than its shape")
    array = np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C")
    return np.ascontiguousarray(array.astype(dtype.newbyteorder("="))).reshape(shape)
