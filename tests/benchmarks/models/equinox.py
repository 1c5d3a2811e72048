"""Equinox: a model of one example, under `jax.vmap`; arrays outside of `jit`.

Images are channels first, as it has them.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from equinox import nn
from peers.equinox import cell, one, projections

from models import MODELS, Sizes, Trainee, Unit, Units

KEY = jax.random.key(0)


class Use(Units):
    """Its layers: made with the sizes of what comes in, then found again."""

    state: Any = None

    def tied(self, x: Any, count: int, features: int) -> Any:
        table = self.next(lambda: nn.Embedding(count, features, key=KEY))
        return jax.vmap(table)(x), lambda h: h @ table.weight.T

    def embedding(self, x: Any, count: int, features: int) -> Any:
        return self.tied(x, count, features)[0]

    def dense(self, x: Any, features: int) -> Any:
        module = self.next(lambda: nn.Linear(x.shape[-1], features, key=KEY))
        return module(x) if x.ndim == 1 else jax.vmap(module)(x)

    def layer_norm(self, x: Any) -> Any:
        return jax.vmap(self.next(lambda: nn.LayerNorm(x.shape[-1], eps=1e-6)))(x)

    def batch_norm(self, x: Any) -> Any:
        how = {"eps": 1e-5, "momentum": 0.9, "mode": "batch"}
        module = self.next(lambda: nn.BatchNorm(len(x), "batch", **how))
        if self.state is None:
            return x
        y, self.state = module(x, self.state)
        return y

    def conv(self, x: Any, features: int, size: int, strides: int) -> Any:
        how = {"padding": "SAME", "use_bias": False, "key": KEY}
        return self.next(lambda: nn.Conv2d(len(x), features, size, strides, **how))(x)

    def attention(self, x: Any, heads: int) -> Any:
        parts = ("query", "key", "value", "output")
        how: dict[str, Any] = {f"use_{part}_bias": True for part in parts}

        def make() -> Any:
            return nn.MultiheadAttention(heads, x.shape[-1], **how, key=KEY)

        mask = jnp.tril(jnp.ones((len(x), len(x)), bool))
        return self.next(make)(x, x, x, mask=mask)

    def lstm(self, x: Any, features: int) -> Any:
        module = self.next(lambda: nn.LSTMCell(x.shape[-1], features, key=KEY))

        def step(carry: Any, x: Any) -> Any:
            carry = module(x, carry)
            return carry, carry[0]

        zeros = jnp.zeros(features)
        return jax.lax.scan(step, (zeros, zeros), x)[1]

    def mean(self, x: Any) -> Any:
        return x.mean((1, 2))


def trainee(name: str, s: Sizes, x: Any, units: list[Unit]) -> Trainee:
    """The model of that name, with our weights."""
    first = Use()
    jax.vmap(lambda x: MODELS[name](first, x, s))(_first(x))
    made, state = nn.make_with_state(lambda: first.made)()
    params, static = eqx.partition(made, eqx.is_array)
    params = [_load(m, *unit) for m, unit in zip(params, units, strict=True)]

    def predict(params: Any, state: Any, x: Any) -> tuple[Any, Any]:
        cast = jax.tree.map(lambda leaf: leaf.astype(s.dtype), params)
        made = eqx.combine(cast, static)

        def one(x: Any, state: Any) -> Any:
            use = Use(made)
            use.state = state
            return MODELS[name](use, x, s), use.state

        how: dict[str, Any] = {"in_axes": (0, None), "out_axes": (0, None)}
        return jax.vmap(one, axis_name="batch", **how)(_first(x), state)

    return Trainee(params, state, predict)


def _first(x: Any) -> Any:
    """Channels first, if it is images."""
    return jnp.moveaxis(x, -1, 1) if x.ndim == 4 else x


def _load(made: Any, kind: str, unit: Any) -> Any:
    if kind == "attention":
        return projections(made, unit)
    return (cell if kind == "lstm" else one)(made, unit)
