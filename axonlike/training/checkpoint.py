"""Checkpoints: a folder each, written whole or not at all, and checked when read.

Orbax writes the arrays. Beside them lies a manifest: what is an array and what a plain
value, and a checksum of every file, its own included. A checkpoint is written under
another name and renamed when it is complete, so that whatever has its name is whole;
what a disk did to it later, the checksums tell.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np

from axonlike.errors import PathError, ShapeError
from axonlike.extras import optional
from axonlike.io.orbax import nested
from axonlike.spec import show
from axonlike.training.options import whole, whole_or_none
from axonlike.types import PyTree

ARRAYS, MANIFEST = "arrays", "manifest.json"
WRITING, DELETING = ".writing-", ".deleting-"
FORMAT = 1
PLAIN = (bool, int, float, str, type(None))


class Saved(NamedTuple):
    """What a checkpoint holds: nested dicts of NumPy arrays and plain values."""

    path: Path
    tree: dict[str, Any]


class TornCheckpoint(UserWarning):
    """A checkpoint that is not complete, or not what was written; it was not loaded."""


def save_checkpoint(
    folder: str | os.PathLike[str],
    step: int,
    state: PyTree,
    *,
    keep: int | None = None,
) -> Path:
    """Writes what training has to know to go on, as one of a folder's checkpoints.

    It is there whole or not at all, whenever the process ends.

    Args:
        folder: of the checkpoints of one training; made if it is not there.
        step: after so many steps; in the checkpoint's name, `step-00000100`.
        state: any pytree of arrays and keys: a `TrainState`.
        keep: so many of the newest stay, older ones are deleted; None: all.

    Shapes:
        Any.

    Returns:
        The checkpoint's path.

    Raises:
        ImportError: orbax-checkpoint is not installed.
        ValueError: `step` or `keep` is out of range, or several processes hold the arrays.

    Example:
        >>> import tempfile, jax.numpy as jnp, axonlike as al
        >>> folder = tempfile.mkdtemp()
        >>> path = al.save_checkpoint(folder, 100, {"weight": jnp.ones(3)})
        >>> path.name, al.load_checkpoint(folder)["weight"]
        ('step-00000100', array([1., 1., 1.], dtype=float32))
    """
    count = whole("save_checkpoint", "step", step, lowest=0)
    keep = whole_or_none("save_checkpoint", "keep", keep)
    path = write(Path(folder), f"step-{count:08}", {"state": state})
    if keep is not None:
        prune(Path(folder), "step", keep)
    return path


def load_checkpoint(
    folder: str | os.PathLike[str], state: PyTree = None, *, best: bool = False
) -> Any:
    """The state in the newest checkpoint of a folder that is whole.

    What is torn or was changed on disk is passed over with a warning that names it.

    Args:
        folder: of the checkpoints, or one checkpoint.
        state: a pytree of the structure, shapes and dtypes that are expected, say
            `step.start(params, state, key=key)`; arrays are put where its arrays are.
            None: the arrays come as they are, NumPy's in nested dicts.
        best: the best one in place of the newest.

    Shapes:
        Those of `state`.

    Returns:
        What was saved, as a tree like `state`.

    Raises:
        FileNotFoundError: there is no checkpoint that is whole.
        PathError: an array is missing, or there is one too many.
        ShapeError: an array is another than expected. If the model has changed, load
            without `state` and take the params through `migrate`.

    Example:
        >>> import tempfile, jax.numpy as jnp, axonlike as al
        >>> folder = tempfile.mkdtemp()
        >>> path = al.save_checkpoint(folder, 100, {"weight": jnp.ones(3)})
        >>> al.load_checkpoint(folder, {"weight": jnp.zeros(3)})
        {'weight': Array([1., 1., 1.], dtype=float32)}
    """
    saved = found(Path(folder), "best" if best else "step")
    if saved is None:
        raise FileNotFoundError(
            f"load_checkpoint: {os.fspath(folder)} has no checkpoint that is whole."
        )
    return saved.tree["state"] if state is None else filled(saved, state)


# --- a tree as flat arrays and values, by name


def flat(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every leaf of dicts and other pytrees, under a name that says where it is."""
    if isinstance(tree, PLAIN):
        yield path, tree
        return
    flatten = cast(Any, jax.tree_util.tree_leaves_with_path)
    for keys, leaf in flatten(tree, is_leaf=_is_none):
        steps = [jax.tree_util.keystr((key,), simple=True) for key in keys]
        yield "/".join([*([path] if path else []), *map(_quoted, steps)]), leaf


def in_order(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """As `flat`, dicts in the order of their items; JAX would sort them."""
    if type(tree) is not dict:
        yield from flat(tree, path)
        return
    for name, item in cast("dict[Any, Any]", tree).items():
        yield from in_order(item, "/".join([*([path] if path else []), _quoted(name)]))


def filled(saved: Saved, like: PyTree) -> Any:
    """The state of a checkpoint as a tree like `like`."""
    return unnamed(saved.tree.get("state", {}), like, f"checkpoint {saved.path}")


def unnamed(tree: Any, like: PyTree, where: str) -> Any:
    """A tree like `like`, out of nested dicts by the names of its leaves."""
    found, wanted = dict(flat(tree)), dict(flat(like))
    hint = "If the model has changed, load without a state and use al.migrate."
    for name in [*wanted, *found]:
        if name not in found or name not in wanted:
            raise PathError(where, name, found if name in wanted else wanted, hint)
    leaves = [placed(f"{where}: {n}", found[n], wanted[n], hint) for n in wanted]
    structure = cast(Any, jax.tree.structure)(like, is_leaf=_is_none)
    return jax.tree.unflatten(structure, leaves)


def placed(where: str, value: Any, like: Any, hint: str = "") -> Any:
    """A value from a checkpoint as one like another: same kind, dtype and devices."""
    put = cast(Any, jax.device_put)
    if like is None or isinstance(like, PLAIN):
        return value.item() if hasattr(value, "item") else value
    target = jax.random.key_data(like) if is_key(like) else like
    if show(value) != show(target):
        raise ShapeError(where, show(target), show(value), hint)
    if isinstance(like, np.ndarray):
        return value
    array = put(value, getattr(target, "sharding", None), may_alias=False)
    if is_key(like):
        return cast(Any, jax.random.wrap_key_data)(
            array, impl=jax.random.key_impl(like)
        )
    return array


def is_key(x: Any) -> bool:
    """Whether an array is one of typed keys."""
    return hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def _is_none(x: Any) -> bool:
    return x is None


def _quoted(step: str) -> str:
    return step.replace("%", "%25").replace("/", "%2F")


def _unquoted(step: str) -> str:
    return step.replace("%2F", "/").replace("%25", "%")


# --- writing


def write(folder: Path, name: str, tree: Mapping[str, Any]) -> Path:
    """Writes a checkpoint under its name when it is complete; one of that name goes."""
    if jax.process_count() > 1:
        raise ValueError(
            f"checkpoint: {jax.process_count()} processes hold the arrays. "
            "Use orbax's own CheckpointManager, which has them agree."
        )
    leaves = dict(in_order(dict(tree)))
    arrays = {n: _raw(n, leaf) for n, leaf in leaves.items() if not _is_plain(leaf)}
    folder.mkdir(parents=True, exist_ok=True)
    sweep(folder)
    unfinished = folder / f"{WRITING}{name}"
    unfinished.mkdir()
    _write_arrays(unfinished / ARRAYS, {n: a for n, a in arrays.items() if a.size})
    manifest = {
        "format": FORMAT,
        "names": list(leaves),
        "values": {n: leaf for n, leaf in leaves.items() if _is_plain(leaf)},
        "arrays": {n: [str(a.dtype), list(a.shape)] for n, a in arrays.items()},
        "files": checksums(unfinished),
    }
    _write_manifest(unfinished / MANIFEST, manifest)
    path = folder / name
    if path.exists():
        _delete(path)
    os.rename(unfinished, path)
    _to_disk(folder)
    return path


def prune(folder: Path, kind: str, keep: int) -> None:
    """Deletes all checkpoints of a kind but the newest."""
    for path in checkpoints(folder, kind)[keep:]:
        _delete(path)


def sweep(folder: Path) -> None:
    """Clears away what was not finished when a process ended."""
    for path in folder.iterdir():
        if path.name.startswith((WRITING, DELETING)):
            shutil.rmtree(path)


def _delete(path: Path) -> None:
    """Under another name first, so that nothing half deleted has a checkpoint's name."""
    doomed = path.with_name(f"{DELETING}{path.name}")
    if doomed.exists():
        shutil.rmtree(doomed)
    os.rename(path, doomed)
    shutil.rmtree(doomed)


def _is_plain(leaf: Any) -> bool:
    return isinstance(leaf, PLAIN)


def _raw(name: str, leaf: Any) -> Any:
    """An array as orbax takes it: keys as the numbers that they are."""
    if is_key(leaf):
        return jax.random.key_data(leaf)
    array = leaf if isinstance(leaf, jax.Array) else np.asarray(leaf)
    if array.dtype.kind in "OUSM":
        raise TypeError(
            f"checkpoint: expected an array, a number or text for {name!r}, got "
            f"{show(leaf)}. Leave it out of the state."
        )
    return array


def _orbax() -> tuple[Any, Any]:
    ocp: Any = optional("orbax.checkpoint", "checkpoint")
    return ocp, ocp.Checkpointer(ocp.PyTreeCheckpointHandler())


def _write_arrays(path: Path, arrays: Mapping[str, Any]) -> None:
    ocp, checkpointer = _orbax()
    if arrays:
        tree = dict(arrays)
        checkpointer.save(path.absolute(), args=ocp.args.PyTreeSave(tree))


def _write_manifest(path: Path, manifest: Mapping[str, Any]) -> None:
    text = json.dumps(manifest)
    path.write_text(f"{_digest(text)}\n{text}\n", encoding="utf-8")
    _to_disk(path)
    _to_disk(path.parent)


def checksums(path: Path) -> dict[str, str]:
    """The SHA-256 of every file below a folder but the manifest, on disk by then."""
    found: dict[str, str] = {}
    for file in sorted(p for p in path.rglob("*") if p.is_file()):
        if file.relative_to(path) != Path(MANIFEST):
            with file.open("rb") as opened:
                digest = hashlib.file_digest(opened, "sha256")
                os.fsync(opened.fileno())
            found[file.relative_to(path).as_posix()] = digest.hexdigest()
    return found


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _to_disk(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


# --- reading


def checkpoints(folder: Path, kind: str) -> list[Path]:
    """The checkpoints of a kind in a folder, the newest first."""
    if not folder.is_dir():
        return []
    named = [p for p in folder.iterdir() if re.fullmatch(rf"{kind}-\d+", p.name)]
    return sorted(named, key=lambda path: int(path.name.partition("-")[2]))[::-1]


def found(path: Path, kind: str = "step") -> Saved | None:
    """The newest checkpoint of a folder, or the one that the path is of."""
    return read(path) if (path / MANIFEST).exists() else newest(path, kind)


def newest(folder: Path, kind: str = "step") -> Saved | None:
    """The newest checkpoint that is whole; None where there is none."""
    if folder.is_dir():
        for path in folder.glob(f"{WRITING}*"):
            _warn(path, "it was not finished")
    for path in checkpoints(folder, kind):
        try:
            return read(path)
        except (OSError, ValueError) as error:
            _warn(path, str(error))
    return None


def read(path: Path) -> Saved:
    """What a checkpoint holds; an error that says what is wrong where it is not whole."""
    manifest = _read_manifest(path / MANIFEST)
    actual = checksums(path)
    for file, digest in manifest["files"].items():
        if actual.get(file) != digest:
            state = "is missing" if file not in actual else "is not what was written"
            raise ValueError(f"{file} {state}")
    leaves = manifest["values"] | _read_arrays(path / ARRAYS, manifest["arrays"])
    steps = ([_unquoted(s) for s in n.split("/")] for n in manifest["names"])
    values = (leaves[name] for name in manifest["names"])
    return Saved(path, nested(zip(steps, values, strict=True)))


def _read_manifest(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise ValueError(f"{MANIFEST} is missing")
    digest, _, text = path.read_bytes().decode(errors="replace").partition("\n")
    if digest != _digest(text.removesuffix("\n")):
        raise ValueError(f"{MANIFEST} is not what was written")
    manifest = cast("dict[str, Any]", json.loads(text))
    if manifest["format"] != FORMAT:
        raise ValueError(
            f"its format is {manifest['format']}, this version reads {FORMAT}"
        )
    return manifest


def _read_arrays(path: Path, described: Mapping[str, Any]) -> dict[str, Any]:
    """All arrays, as NumPy's; empty ones, which orbax does not write, from their shape."""
    ocp, checkpointer = _orbax()
    empty = {
        name: np.zeros(shape, jnp.dtype(dtype))
        for name, (dtype, shape) in described.items()
        if 0 in shape
    }
    full = {name: 0 for name in described if name not in empty}
    if not full:
        return empty
    kinds = {name: ocp.RestoreArgs(restore_type=np.ndarray) for name in full}
    args = ocp.args.PyTreeRestore(item=full, restore_args=kinds)
    return {**checkpointer.restore(path.absolute(), args=args), **empty}


def _warn(path: Path, why: str) -> None:
    text = f"checkpoint {path} is not whole and was passed over: {why}."
    warnings.warn(text, TornCheckpoint, stacklevel=4)
