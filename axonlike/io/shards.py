"""Safetensors in several files, with an index that says which array is in which."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

from axonlike.io import safetensors
from axonlike.io.arrays import Entry, Item, damaged
from axonlike.io.atomic import write_text
from axonlike.io.given import check_there
from axonlike.io.notes import LONGEST, is_strings, loads

_SUFFIX = ".index.json"


def write(
    path: Path, arrays: list[Item], shared: Mapping[str, str], most: int | None
) -> None:
    """Writes one file, or several with an index where there are more bytes than `most`.

    The names of shards are new each time, so what was there before is whole until the
    index, or the single file, takes its place.

    Args:
        path: of the single file; the index is called as it, with `.index.json`.
        arrays: in the order that they shall have.
        shared: `{path: the path of the same array}`.
        most: bytes in one file; None: as many as there are.
    """
    if most is not None and (type(most) is not int or most < 1):
        raise ValueError(f"save: max_shard_bytes must be a positive int, got {most!r}.")
    index = index_of(path)
    before = [shard for shard in _shards_before(index) if shard != path]
    groups = list(_grouped(arrays, most))
    if len(groups) == 1:
        safetensors.write(path, arrays, shared)
        with suppress(FileNotFoundError):
            index.unlink()
    else:
        names = _write_shards(path, groups, shared)
        total = sum(item.nbytes for item in arrays)
        table = {"metadata": {"total_size": total}, "weight_map": names}
        write_text(index, json.dumps(table, indent=1))
        with suppress(FileNotFoundError):
            path.unlink()
    for shard in before:
        with suppress(FileNotFoundError):
            shard.unlink()


def index_of(path: Path) -> Path:
    """Where the index is of what has this path as a single file."""
    return path if path.name.endswith(_SUFFIX) else path.with_name(path.name + _SUFFIX)


def _grouped(arrays: list[Item], most: int | None) -> Iterator[list[Item]]:
    group: list[Item] = []
    size = 0
    for item in arrays:
        if group and most is not None and size + item.nbytes > most:
            yield group
            group, size = [], 0
        group.append(item)
        size += item.nbytes
    yield group


def _write_shards(
    path: Path, groups: list[list[Item]], shared: Mapping[str, str]
) -> dict[str, str]:
    """Which file each array went into, by name."""
    token, count = secrets.token_hex(4), len(groups)
    names: dict[str, str] = {}
    for number, group in enumerate(groups, start=1):
        shard = f"{path.stem}-{token}-{number:05}-of-{count:05}.safetensors"
        if not _is_plain(shard):
            raise ValueError(
                f"save: {path.name!r} is no name for several files. Name it without dots "
                'at its front and without any of \\ / : " < > | ? *.'
            )
        here = {item.path for item in group}
        again = {name: source for name, source in shared.items() if source in here}
        safetensors.write(path.with_name(shard), group, again)
        names |= dict.fromkeys([*here, *again], shard)
    return dict(sorted(names.items()))


def files(path: Path) -> list[Path]:
    """Every file of what was written at a path."""
    return [path, index_of(path), *_shards_before(index_of(path))]


def _shards_before(index: Path) -> list[Path]:
    """The files of an index that is there, which an earlier save made."""
    try:
        return [index.with_name(name) for name in {*_weight_map(index).values()}]
    except (OSError, ValueError):  # no index, or a damaged one: its files stay
        return []


def read(path: Path) -> dict[str, Entry]:
    """The arrays of a file, of an index, or of what has one beside it.

    Args:
        path: of the single file or of the index.

    Raises:
        ValueError: a file is not what it should be.
        FileNotFoundError: there is none.
    """
    index = index_of(path)
    if index != path and not index.exists():
        return safetensors.read(path)[0]
    wanted = _weight_map(index)
    if index != path and path.exists() and path.name not in wanted.values():
        raise ValueError(
            f"load: {path} and {index.name} are both there, and may differ. "
            "Delete the one that is older."
        )
    found: dict[str, Entry] = {}
    for name in sorted({*wanted.values()}):
        shard = index.with_name(name)
        if not shard.is_file():
            raise damaged(index, f"the file {name!r} is not beside it")
        arrays = safetensors.read(shard)[0]
        differ = sorted({k for k, v in wanted.items() if v == name} ^ arrays.keys())
        if differ:
            raise damaged(index, f"it and {name!r} differ about {differ[0]!r}")
        found |= arrays
    return found


def _weight_map(index: Path) -> dict[str, str]:
    """Which array is in which file; files are beside the index, nowhere else."""
    check_there(index)
    if index.stat().st_size > LONGEST:
        raise damaged(index, "it is too long")
    try:
        table: Any = loads(index.read_bytes())
    except (ValueError, RecursionError) as error:
        raise damaged(index, "it is not readable") from error
    names = cast("dict[str, Any]", table).get("weight_map") if _is_dict(table) else None
    if not is_strings(names):
        raise damaged(index, "it has no 'weight_map' of files")
    for name, file in cast("dict[str, str]", names).items():
        if not _is_plain(file):
            raise damaged(
                index, f"{name!r} is said to be in {file!r:.80}, no plain name"
            )
    return cast("dict[str, str]", names)


def _is_dict(value: Any) -> bool:
    return isinstance(value, dict)


def _is_plain(name: str) -> bool:
    """Whether a name is that of a safetensors file in the same folder."""
    hidden = name.startswith(".") or not name.isprintable()
    return (
        name.endswith(".safetensors") and not hidden and not {*name} & {*'/\\:"<>|?*'}
    )
