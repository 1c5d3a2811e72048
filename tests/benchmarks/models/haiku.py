"""Haiku: `hk.transform_with_state`."""

from collections import Counter
from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp
from peers import like
from peers.haiku import linear, lstm

from models import MODELS, Sizes, Trainee, Unit


class Use:
    """Its layers, each applied where it is named."""

    def tied(self, x: Any, count: int, features: int) -> Any:
        table = hk.Embed(count, features)
        return table(x), lambda h: h @ table.embeddings.T

    def embedding(self, x: Any, count: int, features: int) -> Any:
        return hk.Embed(count, features)(x)

    def dense(self, x: Any, features: int) -> Any:
        return hk.Linear(features)(x)

    def layer_norm(self, x: Any) -> Any:
        return hk.LayerNorm(-1, True, True, eps=1e-6, use_fast_variance=True)(x)

    def batch_norm(self, x: Any) -> Any:
        return hk.BatchNorm(True, True, 0.9, eps=1e-5)(x, True)

    def conv(self, x: Any, features: int, size: int, strides: int) -> Any:
        return hk.Conv2D(features, size, strides, with_bias=False)(x)

    def attention(self, x: Any, heads: int) -> Any:
        mask = jnp.tril(jnp.ones((x.shape[1], x.shape[1]), bool))[None, None]
        init = hk.initializers.VarianceScaling()
        size = x.shape[-1] // heads
        return hk.MultiHeadAttention(heads, size, w_init=init)(x, x, x, mask)

    def lstm(self, x: Any, features: int) -> Any:
        cell = hk.LSTM(features)
        carry = cell.initial_state(x.shape[0])
        return hk.dynamic_unroll(cell, x, carry, time_major=False)[0]

    def mean(self, x: Any) -> Any:
        return x.mean((1, 2))


def trainee(name: str, s: Sizes, x: Any, units: list[Unit]) -> Trainee:
    """The model of that name, with our weights."""
    module = hk.transform_with_state(lambda x: MODELS[name](Use(), x, s))
    made, state = module.init(jax.random.key(0), x)
    params = _named(units)
    like(made, params)

    def predict(params: Any, state: Any, x: Any) -> tuple[Any, Any]:
        return module.apply(params, state, None, x)

    return Trainee(params, state, predict)


def _named(units: list[Unit]) -> Any:
    """Haiku numbers the modules of each class, but for the first."""
    numbers, params = Counter[str](), dict[str, Any]()
    for kind, unit in units:
        number = numbers[kind]
        name = f"{NAMES[kind]}_{number}" if number else NAMES[kind]
        numbers[kind] += 1
        for path, layout in _parts(kind, unit).items():
            params[f"{name}{path}"] = layout
    return params


NAMES = {
    "attention": "multi_head_attention",
    "batch_norm": "batch_norm",
    "conv": "conv2_d",
    "dense": "linear",
    "embedding": "embed",
    "layer_norm": "layer_norm",
    "lstm": "lstm",
}


def _parts(kind: str, unit: Any) -> dict[str, Any]:
    """Params of the modules within one unit."""
    if kind == "attention":
        parts = {"query": "query", "key": "key", "value": "value", "out": "linear"}
        return {f"/{theirs}": linear(unit[ours]) for ours, theirs in parts.items()}
    if kind == "lstm":
        return {"/linear": lstm(unit)["lstm/linear"]}
    if kind == "batch_norm":
        wide = {k: leaf.reshape(1, 1, 1, -1) for k, leaf in unit.items()}
        return {"": {"scale": wide["scale"], "offset": wide["bias"]}}
    if kind == "layer_norm":
        return {"": {"scale": unit["scale"], "offset": unit["bias"]}}
    names = {"kernel": "w", "bias": "b", "embedding": "embeddings"}
    return {"": {names[k]: leaf for k, leaf in unit.items()}}
