"""What users pass, looked at before anything else: an error at once for what it is not."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import jax

from axonlike.layer import Layer
from axonlike.spec import show


def path_of(verb: str, path: Any) -> Path:
    """The path of a file or folder."""
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"{verb}: expected a path, got {show(path)}.")
    return Path(cast("str", path))


def sharding_of(sharding: Any) -> Any:
    """A sharding on devices: that of a PartitionSpec on the mesh that is set.

    Raises:
        ValueError: no mesh is set.
    """
    if not isinstance(sharding, jax.sharding.PartitionSpec):
        return sharding
    mesh = jax.sharding.get_mesh()
    if mesh.empty:
        raise ValueError(
            f"shardings: {sharding} is of a mesh, and none is set. "
            "Call it inside of `with jax.set_mesh(mesh):`, or pass a NamedSharding."
        )
    return jax.sharding.NamedSharding(mesh, sharding)


def check_there(path: Path) -> None:
    """Refuses the path of a file that there is not.

    Raises:
        FileNotFoundError: there is nothing, or a folder.
    """
    if not path.is_file():
        what = "it is a folder" if path.is_dir() else "there is none"
        raise FileNotFoundError(f"load: expected a file at {path}, and {what}.")


def check_layer(verb: str, model: Any) -> None:
    """Refuses what is no model."""
    if not isinstance(model, Layer):
        raise TypeError(f"{verb}: expected a layer, the model, got {show(model)}.")


def check_table(verb: str, table: Any, example: str) -> None:
    """Refuses what is no dict, but for None."""
    if table is not None and not isinstance(table, Mapping):
        raise TypeError(f"{verb}: expected a dict, {example}, got {show(table)}.")


def check_names(verb: str, names: Any, example: str) -> None:
    """Refuses names that are no text."""
    for name in names:
        if not isinstance(name, str):
            raise TypeError(f"{verb}: expected {example} that are text, got {name!r}.")


def check_flags(verb: str, **flags: Any) -> None:
    """Refuses switches that are neither on nor off."""
    for name, value in flags.items():
        if not isinstance(value, bool):
            raise TypeError(f"{verb}: {name} must be True or False, got {value!r}.")
