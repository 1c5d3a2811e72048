"""GPT-2 without a library: our params, plain functions, JAX's own attention."""

from typing import Any

import jax
import jax.numpy as jnp

from models import Sizes, Trainee, Unit


def trainee(name: str, s: Sizes, x: Any, units: list[Unit]) -> Trainee:
    """GPT-2; there is no other model by hand."""
    if name != "gpt2":
        raise ValueError(f"by_hand: expected gpt2, got {name!r}.")

    def predict(params: Any, state: Any, tokens: Any) -> tuple[Any, Any]:
        cast = jax.tree.map(lambda leaf: leaf.astype(s.dtype), params)
        table, places, *layers, norm = cast
        x = table["embedding"][tokens] + places["embedding"][: tokens.shape[1]]
        for i in range(0, len(layers), 5):
            x = _block(layers[i : i + 5], x, s.heads)
        return _norm(norm, x) @ table["embedding"].T, state

    return Trainee([unit for _, unit in units], {}, predict)


def _block(layers: list[Any], x: Any, heads: int) -> Any:
    before, attention, between, up, down = layers
    x = x + _attend(attention, _norm(before, x), heads)
    return x + _affine(down, jax.nn.gelu(_affine(up, _norm(between, x))))


def _affine(p: Any, x: Any) -> Any:
    return x @ p["kernel"] + p["bias"]


def _norm(p: Any, x: Any) -> Any:
    y = jax.nn.standardize(x.astype(jnp.float32), -1, epsilon=1e-6)
    return (y * p["scale"] + p["bias"]).astype(x.dtype)


def _attend(p: Any, x: Any, heads: int) -> Any:
    shape = (*x.shape[:2], heads, x.shape[2] // heads)
    q, k, v = (_affine(p[n], x).reshape(shape) for n in ("query", "key", "value"))
    y = jax.nn.dot_product_attention(q, k, v, is_causal=True)
    return _affine(p["out"], y.reshape(x.shape))
