"""Params and state in files: safetensors, npz or orbax, keyed by path."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from axonlike.evaluation import check_key, recorded
from axonlike.initialize import Recorder, arrays_of, shardings_of
from axonlike.io import npz, orbax, shards
from axonlike.io.arrays import DTYPES, STATE, Entry, Item, as_keys, is_key, items
from axonlike.io.compare import Comparison, Report, Wanted, compared, renamed
from axonlike.io.given import (
    check_flags,
    check_layer,
    check_table,
    path_of,
    sharding_of,
)
from axonlike.io.safetensors import NATIVE
from axonlike.layer import Layer
from axonlike.selector import at
from axonlike.spec import as_spec
from axonlike.transfer import filled
from axonlike.types import FilePath, Key, Params, PyTree, State

Format = Literal["safetensors", "npz", "orbax"]
_SUFFIXES: dict[str, Format] = {
    ".safetensors": "safetensors", ".json": "safetensors", "": "safetensors",
    ".npz": "npz", ".orbax": "orbax",
}  # fmt: skip
_RENAME = "{path in the file: path in the model}"


class _Pair(NamedTuple):
    params: Params
    state: State


class Loaded(_Pair):
    """Params and state, a pair; `report` says what became of every array of the file."""

    report: Report


def save(
    path: FilePath,
    params: Params,
    state: State | None = None,
    *,
    format: Format | None = None,
    max_shard_bytes: int | None = None,
) -> None:
    """Writes params and state to a file, every array under its path.

    The file is whole or not there: it is written beside its place and renamed. It holds
    unrolled paths, `blocks/0/kernel`, however the model stores its copies, every array
    once, and a checksum of each. State that has the path of a param has `#state` after it.

    Args:
        path: of the file; its suffix is the format: `.safetensors`, `.npz`, or `.orbax`,
            which is a folder.
        params: as `init` or training returned them.
        state: likewise; None: no state.
        format: whatever the suffix says.
        max_shard_bytes: safetensors only: more bytes than this make several files, with
            an index beside them, `model.safetensors.index.json`.

    Shapes:
        Any; also bfloat16, 8-bit floats, complex numbers and typed PRNG keys.

    Raises:
        TypeError: something in the trees is no array, or has no values.
        ValueError: no format has this suffix, or an array was donated.
        FileExistsError: an orbax folder would take the place of something else.

    Example:
        >>> import tempfile, jax, axonlike as al
        >>> model = al.dense(2)
        >>> params, state = model.init(jax.random.key(0), (None, 3))
        >>> folder = tempfile.mkdtemp()
        >>> al.save(f"{folder}/model.safetensors", params, state)
        >>> from safetensors.numpy import load_file  # any reader will do
        >>> sorted(load_file(f"{folder}/model.safetensors"))
        ['bias', 'kernel']

    References:
        https://huggingface.co/docs/safetensors; orbax: https://orbax.readthedocs.io.
    """
    file = path_of("save", path)
    chosen = _format("save", file, format)
    if max_shard_bytes is not None and chosen != "safetensors":
        raise ValueError(
            f"save: max_shard_bytes={max_shard_bytes!r} is for safetensors."
        )
    write(file, params, state, chosen, max_shard_bytes)


def write(
    path: Path, params: Params, state: State | None, format: Format, most: int | None
) -> None:
    """Writes params and state in a format."""
    native = {"safetensors": NATIVE, "npz": npz.NATIVE, "orbax": orbax.NATIVE}[format]
    first: dict[Any, str] = {}
    arrays: list[Item] = []
    shared: dict[str, str] = {}
    for item in items({"": params, STATE: state or {}}, native):
        if item.source in first:
            shared[item.path] = first[item.source]
        else:
            first[item.source] = item.path
            arrays.append(item)
    if format == "safetensors":
        shards.write(path, arrays, shared, most)
    else:
        {"npz": npz.write, "orbax": orbax.write}[format](path, arrays, shared)


def load(
    path: FilePath,
    model: Layer,
    spec: PyTree,
    strict: bool = True,
    *,
    format: Format | None = None,
    rename: Mapping[str, str] | None = None,
    key: Key | None = None,
    cast: bool = False,
    shardings: Mapping[str, Any] | None = None,
) -> Loaded:
    """Params and state of a model out of a file that `save` wrote, or another program.

    Everything is checked before anything is loaded: paths, shapes, dtypes, and the
    checksums of `save`. What differs is one error that lists all of it by path. Loading
    runs no code.

    Args:
        path: of the file, of the index of several, or of an orbax folder.
        model: what the arrays are for.
        spec: of its input, as for `init`.
        strict: whether the file has to hold what the model needs and nothing else. If
            not, what fits is loaded, the rest is initialized, and the report says so.
        format: "safetensors", "npz" or "orbax"; None: what the suffix says.
        rename: `{path in the file: path in the model}` of layers or arrays; `*` stands for
            one step, on both sides.
        key: for what is initialized when not strict; None: `jax.random.key(0)`.
        cast: whether floating-point arrays of another precision are converted.
        shardings: as for `init`; only what each device needs of an array is copied to it.

    Shapes:
        As `init` makes them.

    Returns:
        `(params, state)`; its `report` lists what was `loaded`, `renamed`, `missing`,
        `mismatched` and `unused`.

    Raises:
        ValueError: the file is damaged, or does not hold what the model needs.
        PathError: a rename names nothing.
        FileNotFoundError: there is no file.

    Example:
        >>> import tempfile, jax, axonlike as al
        >>> model = al.dense(8) >> al.dense(2)
        >>> params, state = model.init(jax.random.key(0), (None, 3))
        >>> folder = tempfile.mkdtemp()
        >>> al.save(f"{folder}/model.npz", params, state)
        >>> params, state = al.load(f"{folder}/model.npz", model, (None, 3))
        >>> wider = al.dense(8) >> al.dense(5)
        >>> loaded = al.load(f"{folder}/model.npz", wider, (None, 3), strict=False)
        >>> sorted(loaded.report.mismatched)
        ['dense_1/bias', 'dense_1/kernel']
    """
    file = path_of("load", path)
    check_layer("load", model)
    check_key(key, optional=True)
    check_flags("load", strict=strict, cast=cast)
    check_table("load: rename", rename, _RENAME)
    recorder = recorded(model, as_spec(spec))[1]
    places = shardings_of(recorder, shardings)
    entries = read(file, _format("load", file, format))
    wanted = list(wanted_of(_needs(recorder)))
    names = renamed(entries, rename or {}, wanted)
    found = compared(wanted, names, entries, cast)
    if strict and found.differences:
        raise ValueError(found.message(str(file)))
    arrays = fetched(wanted, found, places)

    def known(side: int, here: str, _: Any) -> Any:
        return arrays.get((side, here))

    made = filled(recorder, known, jax.random.key(0) if key is None else key, places)
    pair = Loaded(*made)
    pair.report = found.report
    return pair


def read(path: Path, format: Format) -> dict[str, Entry]:
    """The arrays of a file by their names in it."""
    return {"safetensors": shards.read, "npz": npz.read, "orbax": orbax.read}[format](
        path
    )


def _format(verb: str, path: Path, format: Format | None) -> Format:
    if verb == "save" and path.suffix == ".json":
        raise ValueError(
            f"save: {str(path)!r} is the name of an index, which stands beside what "
            "is saved. Call it .safetensors, .npz or .orbax."
        )
    found = _SUFFIXES.get(path.suffix) if format is None else format
    if found is None or found not in _SUFFIXES.values():
        raise ValueError(
            f"{verb}: {str(path)!r} is of no known format. Call it .safetensors, "
            ".npz or .orbax, or pass format='safetensors', 'npz' or 'orbax'."
        )
    if verb == "load" and path.is_dir() and format in (None, "orbax"):
        return _format_of_folder(path)
    return found


def _format_of_folder(path: Path) -> Format:
    if (path / "model.json").is_file():
        raise ValueError(
            f"load: {str(path)!r} is the folder of a whole model. "
            "Read it with load_model."
        )
    if not orbax.is_checkpoint(path):
        raise ValueError(
            f"load: {str(path)!r} is a folder, and no orbax checkpoint. "
            "Pass the file that is in it."
        )
    return "orbax"


def _needs(recorder: Recorder) -> Iterator[tuple[int, str, Any]]:
    for side in (0, 1):
        for leaf in recorder.leaves.values():
            for path, spec in arrays_of(leaf)[side]:
                yield side, path, spec


def wanted_of(needs: Iterable[tuple[int, str, Any]]) -> Iterator[Wanted]:
    """What a model needs: each array with the names of its copies in a file.

    Args:
        needs: side, path and spec of each; params come first.
    """
    seen: set[str] = set()
    for side, path, spec in needs:
        count = path.split("/").count("*")
        names = [at(path, index) for index in np.ndindex(*spec.shape[:count])]
        names = [name + STATE if name in seen else name for name in names]
        seen.update(names)
        yield Wanted(side, path, str(spec.dtype), tuple(spec.shape), count, names)


def fetched(
    wanted: list[Wanted], found: Comparison, places: Mapping[str, Any]
) -> dict[tuple[int, str], Any]:
    """What fits, as arrays by side and path.

    Raises:
        ValueError: bytes are not those that were written; it lists all such arrays.
    """
    arrays: dict[tuple[int, str], Any] = {}
    damages: list[str] = []
    for each in wanted:
        if not all(name in found.fitting for name in each.names):
            continue
        copies: list[Any] = []
        for name in each.names:
            try:
                copies.append(found.fitting[name].read())
            except ValueError as error:
                damages.append(str(error))
        if not damages:
            sharding = places.get(each.path)
            arrays[each.side, each.path] = _array(each, copies, sharding)
    if damages:
        raise ValueError("\n".join(damages))
    return arrays


def _array(wanted: Wanted, copies: list[Any], sharding: Any) -> Any:
    """One array out of its copies, some of which may be a memory map."""
    lead = wanted.shape[: wanted.copies]
    if is_key(wanted.dtype):
        return as_keys(jnp.array(_stacked(copies, lead)), wanted.dtype)
    dtype = DTYPES[wanted.dtype]
    if sharding is None:
        return jnp.array(_stacked(copies, lead).astype(dtype, copy=False))

    def piece(index: Any) -> Any:
        numbers = np.arange(len(copies)).reshape(lead)[index[: wanted.copies]]
        parts = [copies[i][index[wanted.copies :]] for i in numbers.reshape(-1)]
        return _stacked(parts, numbers.shape).astype(dtype)

    return jax.make_array_from_callback(wanted.shape, sharding_of(sharding), piece)


def _stacked(copies: list[Any], lead: tuple[int, ...]) -> Any:
    """Copies along leading axes; a single array as it is."""
    return np.stack(copies).reshape(*lead, *copies[0].shape) if lead else copies[0]
