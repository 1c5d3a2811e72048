"""The same layers as the other libraries spell them, each in its fastest idiom."""

import importlib
import importlib.util
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

MODULES = {  # the column's name: the file here, the library it needs
    "linen": ("linen", "flax"),
    "nnx": ("nnx", "flax"),
    "haiku": ("haiku", "haiku"),
    "equinox": ("equinox", "equinox"),
    "torch": ("pytorch", "torch"),
}


def same(x: Any) -> Any:
    """No change."""
    return x


class Contender(NamedTuple):
    """One library's way to compute a row.

    `forward(params, x, key)` gives the output and new state. `load` is our params in
    their layout: it may add a constant, but must be linear otherwise, for gradients are
    compared through it. `into` and `back` lay an array out their way and ours.
    """

    params: Any
    forward: Callable[[Any, Any, Any], tuple[Any, Any]]
    load: Callable[[Any], Any]
    into: Callable[[Any], Any] = same
    back: Callable[[Any], Any] = same


def peers() -> dict[str, Any]:
    """The modules whose libraries are installed."""
    return {
        name: importlib.import_module(f"peers.{file}")
        for name, (file, library) in MODULES.items()
        if importlib.util.find_spec(library) is not None
    }


def ours(row: Any) -> Contender:
    """Our own way."""
    params, state = row.weights()

    def forward(params: Any, x: Any, key: Any) -> tuple[Any, Any]:
        return row.layer.apply(
            params, state, x, key=key if row.random else None, train=row.train
        )

    return Contender(params, forward, same)


def tree(leaves: dict[str, Any]) -> Any:
    """Nested dicts of paths: `{"a/b": 1}` is `{"a": {"b": 1}}`."""
    nested: dict[str, Any] = {}
    for path, leaf in leaves.items():
        *folders, last = path.split("/")
        place = nested
        for folder in folders:
            place = place.setdefault(folder, {})
        place[last] = leaf
    return nested


def like(theirs: Any, loaded: Any) -> None:
    """Raises unless a loaded tree has exactly the leaves that the library made."""
    shapes = [jax.tree.map(lambda leaf: leaf.shape, t) for t in (theirs, loaded)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"peers: expected params {shapes[0]}, got {shapes[1]}.")
