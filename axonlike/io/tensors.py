"""The tensors of a checkpoint, by name: of files, of a folder, of a dict."""

from __future__ import annotations

import mmap
import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, cast

import jax
import numpy as np

from axonlike.io import shards
from axonlike.io.arrays import DTYPES, PLAIN, Array, Entry, is_masked
from axonlike.io.given import check_names

PICKLES = (".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth")
_USUAL = ("model.safetensors", "model.safetensors.index.json")

Files = str | os.PathLike[str] | list[Any] | tuple[Any, ...] | Mapping[str, Any]
"""A file, the index of several, a folder, several files, or arrays by name."""


def tensors(files: Files) -> dict[str, Entry]:
    """The tensors of files, none of them read yet; or of a dict of arrays.

    Raises:
        ValueError: a file is damaged, or has a format that can run code; two files have
            a tensor of one name.
        FileNotFoundError: there is none.
        TypeError: this is no file.
    """
    if isinstance(files, Mapping):
        check_names("mapping: files", files, "names")
        return {name: _of_array(name, value) for name, value in files.items()}
    if not isinstance(files, (list, tuple)):
        return shards.read(_file(files))
    found: dict[str, Entry] = {}
    for file in files:
        entries = shards.read(_file(file))
        twice = sorted(entries.keys() & found.keys())
        if twice:
            raise ValueError(
                f"mapping: {file} has {twice[0]!r}, and a file before it too. "
                "Pass each file once."
            )
        found |= entries
    return found


def _file(file: Any) -> Path:
    """The file itself, that of a folder being the one that is usual."""
    if not isinstance(file, (str, os.PathLike)):
        raise TypeError(
            f"mapping: expected a path, several, or a dict of arrays, got "
            f"{type(file).__name__}."
        )
    path = Path(cast("str", file))
    if path.is_dir():
        found = [path / name for name in _USUAL if (path / name).exists()]
        if not found:
            raise FileNotFoundError(
                f"mapping: {path} holds neither {_USUAL[0]} nor {_USUAL[1]}. "
                "Pass the file, or the files."
            )
        path = found[0]
    if path.suffix in PICKLES:
        raise ValueError(
            f"mapping: {path.name} is a pickle, which can run code when it is read. "
            "Write it as safetensors where PyTorch is: "
            "safetensors.torch.save_file(state_dict, path)."
        )
    return path


def _of_array(name: str, value: Any) -> Entry:
    """An array, NumPy's, JAX's or PyTorch's, as an entry of a file."""
    dtype = getattr(value, "dtype", "")
    kind = getattr(dtype, "name", str(dtype)).removeprefix("torch.")
    if kind not in DTYPES or not hasattr(value, "shape") or is_masked(value):
        what = f"{type(value).__name__} {kind}".rstrip()
        raise TypeError(f"mapping: {name!r} is {what}, not an array of numbers.")
    return Entry(kind, tuple(value.shape), partial(_array, value))


def _array(value: Any) -> Array:
    if not hasattr(value, "detach"):
        array = np.asarray(value)
        return array.astype(array.dtype.newbyteorder("="), copy=False)
    tensor = value.detach().cpu().resolve_conj().resolve_neg().contiguous()
    if str(tensor.dtype).removeprefix("torch.") not in PLAIN.split():
        return np.asarray(cast(Any, jax.dlpack.from_dlpack(tensor)))
    return tensor.numpy()


def forget(array: Array) -> None:
    """Takes what was read through a memory map out of memory; it can be read again."""
    base: Any = array
    while isinstance(base, np.ndarray):
        base = cast(Any, base).base
    drop = getattr(base, "madvise", None)
    if isinstance(base, mmap.mmap) and drop is not None:
        drop(mmap.MADV_DONTNEED)
