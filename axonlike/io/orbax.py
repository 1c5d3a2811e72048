"""Orbax checkpoints: a folder that orbax itself writes and reads."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np

from axonlike.extras import optional
from axonlike.io.arrays import DTYPES, Array, Entry, Item, checksum, damaged
from axonlike.io.atomic import replace_folder
from axonlike.io.notes import Found, described, note

NATIVE = frozenset(DTYPES)
"""The dtypes that such a folder has."""
_OURS = "__axonlike__"
_MARKS = ("_CHECKPOINT_METADATA", "_METADATA")


def write(path: Path, arrays: list[Item], shared: Mapping[str, str]) -> None:
    """Writes one folder, nested dicts of arrays as any user of orbax reads them.

    Args:
        path: of the folder.
        arrays: in the order that they shall have.
        shared: `{path: the path of the same array}`.
    """
    ocp = optional("orbax.checkpoint", "save")
    _check_place(path)
    _check(arrays)
    values = {item.path: item.read() for item in arrays}
    sums = {name: f"{checksum(data):08x}" for name, data in values.items()}
    text = note(arrays, sums, shared).encode()
    leaves = nested((name.split("/"), array) for name, array in values.items())
    tree = {**leaves, _OURS: np.frombuffer(text, np.uint8)}

    def fill(folder: Path) -> None:
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as writer:
            writer.save(folder, args=ocp.args.PyTreeSave(tree))

    replace_folder(path.absolute(), fill)


def _check_place(path: Path) -> None:
    """Refuses to put a folder in the place of anything but such a folder."""
    empty = path.is_dir() and not any(path.iterdir())
    if path.exists() and not empty and not is_checkpoint(path):
        raise FileExistsError(
            f"save: {path} is there and no orbax checkpoint, so it is not replaced. "
            "Choose another path."
        )


def is_checkpoint(path: Path) -> bool:
    """Whether a folder is one that orbax wrote."""
    return any((path / name).is_file() for name in _MARKS)


def _check(arrays: list[Item]) -> None:
    """Refuses what orbax cannot write."""
    names: set[str] = set()
    for item in arrays:
        dotted = item.path.replace("/", ".")
        if dotted in names or not item.nbytes:
            what = "has no numbers" if not item.nbytes else "is one name with another"
            raise ValueError(
                f"save: {item.path!r} {what}, which orbax cannot write. "
                "Save as safetensors."
            )
        names.add(dotted)
    for item in arrays:
        above = item.path.split("/")[:-1]
        for count in range(1, len(above) + 1):
            if ".".join(above[:count]) in names:
                raise ValueError(
                    f"save: {item.path!r} is below an array, which orbax cannot write. "
                    "Save as safetensors."
                )


def nested(leaves: Iterable[tuple[list[str], Any]]) -> dict[str, Any]:
    """Nested dicts of leaves, each by the steps that lead to it."""
    tree: dict[str, Any] = {}
    for (*above, last), leaf in leaves:
        here = tree
        for step in above:
            here = here.setdefault(step, {})
        here[last] = leaf
    return tree


def read(path: Path) -> dict[str, Entry]:
    """The arrays of a folder; all are read when the first one is.

    Args:
        path: of the folder.

    Raises:
        ValueError: the folder is not what orbax wrote.
    """
    if not path.is_dir():
        raise FileNotFoundError(f"load: there is no folder {path}.")
    ocp = optional("orbax.checkpoint", "load")
    reader = _Reader(ocp, path.absolute())
    found = reader.found()
    if _OURS not in found:
        return described(path, found, None)
    try:
        text = found.pop(_OURS)[2]().tobytes().decode()
    except UnicodeDecodeError as error:
        raise damaged(path, "what axonlike noted in it is not readable") from error
    return described(path, found, text)


class _Reader:
    """Reads a folder once, whichever array is asked for."""

    def __init__(self, ocp: Any, path: Path) -> None:
        self.ocp, self.path = ocp, path
        self.arrays: dict[str, Array] = {}

    def found(self) -> dict[str, Found]:
        """Every array in the folder by path."""
        with self._checkpointer() as reader:
            tree: Any = reader.metadata(self.path).item_metadata.tree
            return {
                name: (
                    np.dtype(leaf.dtype).name,
                    tuple(leaf.shape),
                    self._of(name, tree),
                )
                for name, leaf in _leaves(tree, "")
            }

    @contextmanager
    def _checkpointer(self) -> Generator[Any]:
        """What reads the folder, and the error of a folder that it cannot read."""
        handler = self.ocp.PyTreeCheckpointHandler()
        try:
            with self.ocp.Checkpointer(handler) as reader:
                yield reader
        except Exception as error:
            # Orbax, tensorstore and the JSON in the folder raise errors of many kinds for
            # bytes that are not what was written; whatever it is, the folder is at fault.
            what = f"orbax cannot read it ({_short(error)})"
            raise damaged(self.path, what) from error

    def _of(self, name: str, tree: Any) -> Any:
        def read() -> Array:
            if not self.arrays:
                self.arrays = self._read(tree)
            return self.arrays[name]

        return read

    def _read(self, tree: Any) -> dict[str, Array]:
        how = self.ocp.RestoreArgs(restore_type=np.ndarray)
        args = self.ocp.args.PyTreeRestore(restore_args=_like(tree, how))
        with self._checkpointer() as reader:
            made = reader.restore(self.path, args=args)
        return {name: np.asarray(array) for name, array in _leaves(made, "")}


def _like(tree: Any, value: Any) -> Any:
    if not isinstance(tree, dict):
        return value
    return {k: _like(v, value) for k, v in cast("dict[str, Any]", tree).items()}


def _leaves(tree: Any, path: str) -> Any:
    for name, value in tree.items():
        below = f"{path}/{name}" if path else str(name)
        if isinstance(value, dict):
            yield from _leaves(value, below)
        elif not hasattr(value, "shape") or not hasattr(value, "dtype"):
            raise ValueError(f"{below!r} is no array")
        else:
            yield below, value


def _short(error: Exception) -> str:
    first = next(iter(str(error).splitlines()), "")
    return f"{type(error).__name__}: {first:.120}"
