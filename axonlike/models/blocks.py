"""What the models here share: transformer blocks, activations by name, configs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp

from axonlike.combinators.basic import residual, serial
from axonlike.combinators.wire import wire
from axonlike.errors import ShapeError
from axonlike.layer import Layer
from axonlike.layers.dropout import dropout
from axonlike.layers.linear import dense
from axonlike.spec import show
from axonlike.types import Array

Activation = Callable[[Array], Array]
exact_gelu = partial(jax.nn.gelu, approximate=False)

ACTIVATIONS: dict[str, Activation] = {
    "gelu": exact_gelu,
    "gelu_new": jax.nn.gelu,
    "gelu_pytorch_tanh": jax.nn.gelu,
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
    "swish": jax.nn.silu,
    "tanh": jnp.tanh,
}
"""Activations by the names that transformers has for them."""


def mlp(
    hidden: int, features: int, activation: Activation, use_bias: bool = True
) -> Layer:
    """Up, an activation, and down again."""
    return serial(
        up=dense(hidden, use_bias=use_bias),
        act=activation,
        down=dense(features, use_bias=use_bias),
    )


def pre_norm(norm: Layer, attn: Layer, mlp: Layer, dropout_rate: float) -> Layer:
    """A block of a transformer: attention, then the rest, each added to what came in."""
    drop = dropout(dropout_rate)
    return serial(
        residual(serial(norm.named("attn_norm"), attn.named("attn"), drop)),
        residual(serial(norm.named("mlp_norm"), mlp.named("mlp"), drop)),
    )


def masked(
    norm: Layer, attn: Layer, mlp: Layer, dropout_rate: float, *, norm_first: bool
) -> Layer:
    """The same of `(x, mask)`, norms first or last; the mask is passed on."""
    run = norm_before if norm_first else norm_after
    drop = dropout(dropout_rate)
    parts = {"attn": attn, "attn_norm": norm, "mlp": mlp, "mlp_norm": norm}
    return wire(run, **parts, attn_dropout=drop, mlp_dropout=drop)


def norm_before(sub: Any, x: Array, mask: Array) -> tuple[Array, Array]:
    """Norms stand before attention and the rest."""
    x = x + sub.attn_dropout(sub.attn(sub.attn_norm(x), mask=mask))
    return x + sub.mlp_dropout(sub.mlp(sub.mlp_norm(x))), mask


def norm_after(sub: Any, x: Array, mask: Array) -> tuple[Array, Array]:
    """Norms stand after the sums, as in the first transformer."""
    x = sub.attn_norm(x + sub.attn_dropout(sub.attn(x, mask=mask)))
    return sub.mlp_norm(x + sub.mlp_dropout(sub.mlp(x))), mask


def unpacked(kind: str, names: tuple[str, ...], given: tuple[Any, ...]) -> list[Any]:
    """Inputs by themselves, or in one tuple or dict of the first; None where none came.

    Raises:
        ShapeError: the tuple or dict is not of these inputs.
    """
    first, *rest = given
    together: dict[str, Any] = {names[0]: first}
    if isinstance(first, (tuple, list)):
        items = list(cast("list[Any]", first))
        together = (
            dict(zip(names, items, strict=False)) if len(items) <= len(names) else {}
        )
    elif isinstance(first, dict):
        together = dict(cast("dict[str, Any]", first))
    if names[0] not in together or together.keys() - set(names):
        expected = f"{names[0]!r}, and any of {', '.join(map(repr, names[1:]))}"
        raise ShapeError(kind, expected, show(first), "Pass a tuple or dict of those.")
    apart = dict(zip(names[1:], rest, strict=True))
    return [together.get(name, apart.get(name)) for name in names]


def full_mask(x: Array, mask: Array | None) -> Array:
    """A mask of tokens, `(batch, time)`, for attention; all of them where there is none.

    Raises:
        ShapeError: the mask is not one of these tokens.
    """
    if mask is None:
        return jnp.ones((x.shape[0], 1, 1, x.shape[1]), jnp.bool_)
    if tuple(mask.shape) != tuple(x.shape[:2]):
        expected = f"({', '.join(map(str, x.shape[:2]))})"
        hint = "It is true where there is a token: (batch, time)."
        raise ShapeError("mask", expected, show(mask), hint)
    return jnp.asarray(mask, jnp.bool_)[:, None, None, :]


def first_token(x: Array) -> Array:
    """What stands first in each sequence."""
    return x[:, 0]


def activation(kind: str, name: Any) -> Activation:
    """An activation by the name that a config has for it.

    Raises:
        ValueError: none of that name is known here.
    """
    if name not in ACTIVATIONS:
        raise unknown(kind, "an activation", name, f"one of {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


def architecture(config: Mapping[str, Any]) -> str | None:
    """The class of transformers that a config is of, if it says so."""
    names = config.get("architectures") or [None]
    if not isinstance(names, (list, tuple)):
        raise TypeError(f"architectures should be a list, got {names!r}")
    return cast("list[Any]", names)[0]


def num_labels(config: Mapping[str, Any]) -> int:
    """How many labels a classifier has, by its config."""
    return config.get("num_labels", len(config.get("id2label") or "ab"))


def refuse(kind: str, config: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Refuses a config with an option that the model here does not have.

    Raises:
        ValueError: an option is there, and is not what the model does.
    """
    for name, value in expected.items():
        if config.get(name, value) != value:
            raise unknown(kind, name, config[name], repr(value))


def unknown(kind: str, what: str, got: Any, wanted: str) -> ValueError:
    """The error of a config that says what is not known here."""
    return ValueError(f"{kind}: config: {what} should be {wanted}, got {got!r}.")
