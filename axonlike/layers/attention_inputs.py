"""What attention takes: one tuple or dict or several inputs, each looked at."""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import jax.numpy as jnp
import numpy as np

from axonlike.errors import ShapeError
from axonlike.layers.checks import array, exactly
from axonlike.spec import show
from axonlike.types import Array, to_dtype

RANK = "(batch, time, features)"
_REST = ("keys_values", "mask", "bias", "lengths", "positions")


class Inputs(NamedTuple):
    """The inputs of attention; the keys are the query itself where none came."""

    query: Any
    keys_values: Any = None
    mask: Any = None
    bias: Any = None
    lengths: Any = None
    positions: Any = None

    @property
    def crosses(self) -> bool:
        """Whether keys and values came from elsewhere."""
        return self.keys_values is not None

    @property
    def sources(self) -> tuple[Any, Any]:
        """What keys and values are made of, in the query's dtype."""
        both = self.keys_values
        if both is None:
            return self.query, self.query
        if not isinstance(both, (tuple, list)):
            both = (both, both)
        keys, values = cast("tuple[Any, Any]", both)
        return to_dtype(keys, self.query.dtype), to_dtype(values, self.query.dtype)


def read(*inputs: Any) -> Inputs:
    """The inputs, out of one tuple or dict where they came so; refuses what cannot be."""
    found = _unpacked(Inputs(*inputs))
    _check(found)
    return found


def full_mask(mask: Any, shape: tuple[Any, ...]) -> Array | None:
    """A mask with four axes, each full or 1."""
    if mask is None:
        return None
    array("attention", mask, "mask", floating=False)
    if not _fits(mask, shape) or mask.dtype != np.bool_:
        expected = f"a bool mask that broadcasts to {shape}"
        hint = (
            "True means may attend: (time, source), (batch, time, source) or all four."
        )
        raise ShapeError("attention", expected, show(mask), hint)
    return _of_four(mask)


def full_bias(bias: Any, shape: tuple[Any, ...]) -> Array | None:
    """A bias with four axes, each full or 1."""
    if bias is None:
        return None
    array("attention", bias, "bias")
    if not _fits(bias, shape):
        expected = f"a bias that broadcasts to {shape}"
        hint = "It has the axes (time, source), (batch, time, source) or all four."
        raise ShapeError("attention", expected, show(bias), hint)
    return _of_four(bias)


def full_lengths(lengths: Any, shape: tuple[Any, ...]) -> Array | None:
    """How many keys of each example there are."""
    if lengths is None:
        return None
    array("attention", lengths, "array of lengths", floating=False)
    whole = jnp.issubdtype(lengths.dtype, jnp.integer)
    if not whole or lengths.ndim != 1 or lengths.shape[0] != shape[0]:
        expected = f"integer lengths of shape ({shape[0]},)"
        hint = "Give the number of keys of each example."
        raise ShapeError("attention", expected, show(lengths), hint)
    return jnp.asarray(lengths).astype(np.int32)


def check_heads(query: Any, num_heads: int) -> None:
    """Refuses a width that the heads cannot share."""
    if query.shape[-1] % num_heads != 0:
        expected = f"{RANK} with features a multiple of num_heads {num_heads}"
        raise ShapeError("attention", expected, show(query), "Or give qkv_features=.")


def _unpacked(found: Inputs) -> Inputs:
    query = found.query
    if isinstance(query, dict):
        named = cast("dict[str, Any]", query)
        if "query" not in named or named.keys() - {"query", *_REST}:
            expected = f"a dict with 'query', and any of {', '.join(map(repr, _REST))}"
            raise ShapeError("attention", expected, show(query), "Rename its items.")
        return _joined(found._replace(query=None), named)
    if isinstance(query, (tuple, list)):
        items = tuple(cast("list[Any]", query))
        if not 1 <= len(items) <= 3:
            expected = "(query, keys_values, mask), the last two optional"
            hint = "Pass 1 to 3 inputs."
            raise ShapeError("attention", expected, show(query), hint)
        given = zip(("query", "keys_values", "mask"), items, strict=False)
        return _joined(found._replace(query=None), dict(given))
    return found


def _joined(apart: Inputs, together: dict[str, Any]) -> Inputs:
    """Inputs that came by themselves and those in one tuple or dict; none came twice."""
    given = {name: x for name, x in together.items() if x is not None}
    twice = [name for name in given if getattr(apart, name) is not None]
    if twice:
        hint = "It came in the first input and by itself."
        raise ShapeError("attention", f"{twice[0]} once", show(together), hint)
    return apart._replace(**given)


def _check(found: Inputs) -> None:
    both = found.keys_values
    if isinstance(both, (tuple, list)) and len(cast("list[Any]", both)) != 2:
        expected = "keys_values of one array, or a pair of keys and values"
        raise ShapeError("attention", expected, show(both), "Pass (keys, values).")
    hint = "Add an axis of size 1 where one is missing."
    exactly("attention", found.query, 3, RANK, hint)
    many = isinstance(both, (tuple, list))
    given: list[Any] = list(cast("list[Any]", both)) if many else [both]
    for x in given if found.crosses else []:
        exactly("attention", x, 3, RANK, hint)
    _check_sizes(found)


def _check_sizes(found: Inputs) -> None:
    query, (keys, values) = found.query, found.sources
    if not query.shape[0] == keys.shape[0] == values.shape[0]:
        got = f"{show(query)} and {show(found.keys_values)}"
        hint = "Repeat the smaller one with jnp.broadcast_to."
        raise ShapeError("attention", "query and keys_values of one batch", got, hint)
    if keys.shape[1] != values.shape[1]:
        expected, hint = "as many values as keys", "They are pairs, one a position."
        raise ShapeError("attention", expected, show(found.keys_values), hint)


def _fits(x: Any, shape: tuple[Any, ...]) -> bool:
    axes = {2: (2, 3), 3: (0, 2, 3), 4: (0, 1, 2, 3)}.get(x.ndim)
    return axes is not None and all(
        n in (1, shape[axis]) for n, axis in zip(x.shape, axes, strict=True)
    )


def _of_four(x: Any) -> Array:
    missing = {2: (0, 1), 3: (1,)}.get(x.ndim, ())
    return jnp.expand_dims(x, missing) if missing else jnp.asarray(x)
