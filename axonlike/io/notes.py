"""What is noted in a file about its arrays: checksums, dtypes, which are the same."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any, cast

import numpy as np

from axonlike.io.arrays import DTYPES, Array, Entry, Item, checksum, damaged, entry

Found = tuple[str, tuple[int, ...], Callable[[], Array]]
"""The dtype and shape of an array in a file, and how to read it."""
LONGEST = 100_000_000
"""Bytes of JSON that are read; no file that was written has more."""
_KEYS = ("key<fry>", "key<rbg>", "key<urbg>")


def note(arrays: list[Item], sums: Mapping[str, str], shared: Mapping[str, str]) -> str:
    """The note about arrays; `shared` is `{path: the path of the same array}`."""
    dtypes = {item.path: item.dtype for item in arrays if item.dtype != item.stored}
    tables = {"checksums": dict(sums), "dtypes": dtypes, "shared": dict(shared)}
    return json.dumps({"version": 1, **tables})


def described(
    path: Any, found: Mapping[str, Found], text: str | None
) -> dict[str, Entry]:
    """The arrays of a file as they were before they were written, by the note in it.

    Without a note they are what they seem.
    """
    if text is None:
        return {
            name: Entry(dtype, shape, partial(_sound, path, name, read))
            for name, (dtype, shape, read) in found.items()
        }
    sums, dtypes, shared = _read(path, text, found.keys())
    entries: dict[str, Entry] = {}
    for name, (stored, shape, read) in found.items():
        checked = partial(_checked, path, name, read, sums[name])
        try:
            entries[name] = entry(dtypes.get(name, stored), stored, shape, checked)
        except ValueError as error:
            raise damaged(path, f"{name!r}: {error}") from error
    for name, source in shared.items():
        entries[name] = entries[source]
    return entries


def _read(path: Any, text: str, names: Collection[str]) -> tuple[Any, Any, Any]:
    """Checksums, dtypes and shared arrays, checked against what is there."""
    try:
        notes: Any = loads(text)
        version = notes["version"]
        tables = [notes[key] for key in ("checksums", "dtypes", "shared")]
    except (ValueError, RecursionError, LookupError, TypeError) as error:
        raise damaged(path, "what axonlike noted in it is not readable") from error
    if version != 1:
        raise ValueError(
            f"load: {path}: it was written in version {version!r:.20} of the format. "
            "Update axonlike."
        )
    if not all(map(is_strings, tables)):
        raise damaged(path, "what axonlike noted in it is not readable")
    sums, dtypes, shared = tables
    differ = sorted({*names} ^ sums.keys())
    if differ:
        raise damaged(path, f"{differ[0]!r} is not what was written under that name")
    for name in [*dtypes, *shared.values()]:
        if name not in names:
            raise damaged(path, f"{name!r} is not in it")
    for name in {*shared} & {*names}:
        raise damaged(path, f"{name!r} is in it twice")
    for name, dtype in dtypes.items():
        if dtype not in DTYPES and dtype not in _KEYS:
            raise damaged(path, f"{name!r} has an unknown dtype, {dtype!r:.40}")
    return sums, dtypes, shared


def _checked(path: Any, name: str, read: Callable[[], Array], wanted: str) -> Array:
    data = read()
    if f"{checksum(data):08x}" != wanted:
        raise damaged(path, f"{name!r} has other bytes than were written")
    return _sound(path, name, lambda: data)


def _sound(path: Any, name: str, read: Callable[[], Array]) -> Array:
    """An array whose bytes mean something: those of a bool are 0 or 1."""
    data = read()
    if data.dtype == np.bool_ and data.size and data.view(np.uint8).max() > 1:
        raise damaged(path, f"{name!r} has bytes that are no bool")
    return data


def loads(text: bytes | str) -> Any:
    """JSON in UTF-8 in which no name stands twice.

    Raises:
        ValueError: it is not.
        RecursionError: it nests too deep.
    """

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ValueError("a name stands twice")
        return found

    text = text.decode() if isinstance(text, bytes) else text
    return json.loads(text, object_pairs_hook=once)


def is_strings(value: Any) -> bool:
    """Whether this is a dict of text by text."""
    if not isinstance(value, dict):
        return False
    pairs = cast("dict[Any, Any]", value).items()
    return all(isinstance(k, str) and isinstance(v, str) for k, v in pairs)
