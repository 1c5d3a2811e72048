"""In what the tensors of files differ from the arrays of a model: names, shapes, dtypes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from axonlike.combinators.tying import ties
from axonlike.errors import nearest
from axonlike.io.arrays import DTYPES, Entry
from axonlike.io.conventions import CONVENTIONS
from axonlike.io.links import AnyLink, Slot
from axonlike.paths import join
from axonlike.spots import spots

_ALWAYS = frozenset(
    (
        "kernel",
        "embedding",
        "recurrent_kernel",
        "token",
        "negative_slope",
        "mean",
        "var",
    )
)
"""Arrays that a layer has whatever its options are, unless they are tied."""


class Difference(NamedTuple):
    """One thing in which a file and a model differ; `wrong` if no half of it would do."""

    text: str
    wrong: bool = True


def differences(
    link: AnyLink, entries: Mapping[str, Entry], dtype: Any
) -> Iterator[Difference]:
    """What is missing, or has another shape or dtype."""
    ours = ", ".join(repr(slot.path) for slot in link.ours)
    for name, (shape, wanted) in link.expected.items():
        text = f"{wanted}[{', '.join(map(str, shape))}]"
        entry = entries.get(name)
        if entry is None:
            if not link.optional:
                near = nearest(name, sorted(entries))
                yield Difference(f"{ours}: no tensor {name!r}, {text}. {near}", False)
        elif entry.shape != shape:
            yield Difference(f"{ours}: {name!r} should be {text}, got {entry}.")
        elif entry.dtype != str(wanted) and not _converts(entry.dtype, wanted, dtype):
            hint = _hint(entry.dtype, wanted)
            yield Difference(f"{ours}: {name!r} should be {text}, got {entry}. {hint}")


def unused(links: Iterable[AnyLink], entries: Mapping[str, Entry]) -> list[Difference]:
    """Tensors that are for nothing in the model."""
    used = {name for link in links for name in link.theirs}
    return [
        Difference(
            f"{name!r}, {entries[name]}, is for nothing in the model. "
            f"{nearest(name, sorted(used))}",
            False,
        )
        for name in sorted(entries.keys() - used)
    ]


def check_dtype(dtype: Any) -> None:
    """Refuses a dtype for weights that is not one of floating-point numbers."""
    if dtype is None or (isinstance(dtype, str) and dtype == "file"):
        return
    try:
        known = _is_float(DTYPES[dtype] if isinstance(dtype, str) else dtype)
    except (KeyError, TypeError):  # there is no such dtype, or this is none
        known = False
    if not known:
        raise ValueError(
            f"mapping: dtype is 'file', None or one of floating-point numbers, got "
            f"{dtype!r}."
        )


def _is_float(dtype: Any) -> bool:
    return bool(jnp.issubdtype(dtype, jnp.floating))


def _converts(kind: str, wanted: Any, dtype: Any) -> bool:
    """Whether a tensor's dtype may be another one than that of our array."""
    both = kind in DTYPES and _is_float(DTYPES[kind]) and _is_float(wanted)
    return both and dtype is not None and _is_there(target(kind, wanted, dtype))


def _is_there(dtype: Any) -> bool:
    """Whether JAX has a dtype as it is set up: float64 needs a flag."""
    return jax.dtypes.canonicalize_dtype(dtype) == dtype


def target(kind: str, wanted: Any, dtype: Any) -> Any:
    """The dtype that an array gets."""
    if dtype is None or not _is_float(wanted):
        return wanted
    return DTYPES[kind] if dtype == "file" else np.dtype(dtype)


def _hint(kind: str, wanted: Any) -> str:
    if kind not in DTYPES or not (_is_float(DTYPES[kind]) and _is_float(wanted)):
        return ""
    if not _is_there(DTYPES[kind]):
        return f"Pass dtype={str(wanted)!r} to convert it."
    return f"Pass dtype={str(wanted)!r} to convert it, or dtype='file' to keep it."


def unnamed(slot: Slot, layer: Any) -> Difference:
    """An array of a model that is in no rule."""
    known = layer is not None and layer.kind in CONVENTIONS
    kind = "an array of no layer" if layer is None else layer.headline
    hint = "Map its layer" if known else "Map the array itself, or pass conventions="
    return Difference(f"{slot.path!r}, of {kind}, is in no rule. {hint}.", False)


def missing(model: Any, stored: Iterable[str]) -> list[Difference]:
    """Arrays that layers of a model need, and that are not in its trees."""
    there = {*stored, *(target for target, _ in ties(model))}
    return [
        Difference(f"{path!r} has no {tensor.ours!r} in params or state.")
        for spot in spots(model)
        for path in spot.paths
        for tensor in CONVENTIONS.get(spot.layer.kind, {}).values()
        if tensor.ours in _ALWAYS and join(path, tensor.ours) not in there
    ]


def refuse(found: list[Difference], verb: str = "load", both: str = "") -> None:
    """One error with every difference."""
    if not found:
        return
    places = "1 place" if len(found) == 1 else f"{len(found)} places"
    lines = "\n".join(f"  {each.text}" for each in found)
    both = both or "the files and the model"
    raise ValueError(f"mapping: {verb}: {both} differ in {places}:\n{lines}")
