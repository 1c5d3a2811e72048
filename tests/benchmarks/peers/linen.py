"""Flax Linen: `module.apply` on the variables that `module.init` made."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from rows import RATE

from peers import Contender, like, same, tree

LAYERS: dict[str, Any] = {
    "layer_norm": nn.LayerNorm(epsilon=1e-6),
    "rms_norm": nn.RMSNorm(epsilon=1e-6),
    "batch_norm": nn.BatchNorm(use_running_average=False, momentum=0.9, epsilon=1e-5),
    "group_norm": nn.GroupNorm(num_groups=8, epsilon=1e-6),
    "dense": nn.Dense(1024),
    "mlp": nn.Sequential([nn.Dense(1024), nn.gelu, nn.Dense(256)]),
    "conv 3x3": nn.Conv(64, (3, 3)),
    "conv strided": nn.Conv(64, (3, 3), strides=2),
    "conv depthwise": nn.Conv(64, (3, 3), feature_group_count=64),
    "conv transposed": nn.ConvTranspose(32, (3, 3), strides=(2, 2)),
    "conv1d": nn.Conv(128, (3,)),
    "max_pool 2x2": partial(nn.max_pool, window_shape=(2, 2), strides=(2, 2)),
    "max_pool 3x3": partial(nn.max_pool, window_shape=(3, 3), strides=(2, 2)),
    "avg_pool 2x2": partial(nn.avg_pool, window_shape=(2, 2), strides=(2, 2)),
    "dropout": nn.Dropout(RATE, deterministic=False),
    "lstm": nn.RNN(nn.OptimizedLSTMCell(128)),
    "gru": nn.RNN(nn.GRUCell(128)),
    "attention": nn.MultiHeadDotProductAttention(8),
    "attention 512": nn.MultiHeadDotProductAttention(8),
    "attention 2048": nn.MultiHeadDotProductAttention(8),
    "embedding": nn.Embed(10_000, 256),
}


def contender(row: Any, weights: Any, x: Any) -> Contender | None:
    """The row's layer, with our weights."""
    if row.name not in LAYERS:
        return None
    module = LAYERS[row.name]
    if not isinstance(module, nn.Module):
        return Contender({}, lambda params, x, key: (module(x), {}), same)
    keys = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
    state = dict(module.init(keys, x))
    made = state.pop("params", {})
    load = LOADS.get(row.name, same)
    params = load(weights)
    like(made, params)

    def forward(params: Any, x: Any, key: Any) -> tuple[Any, Any]:
        rngs = {"dropout": key} if row.random else None
        return module.apply(
            {"params": params, **state}, x, rngs=rngs, mutable=list(state)
        )

    return Contender(params, forward, load)


def _mlp(p: Any) -> Any:
    return {"layers_0": p["dense"], "layers_2": p["dense_1"]}


def heads(p: Any, count: int = 8) -> Any:
    """Their projections keep heads as an axis."""
    split: dict[str, Any] = {}
    for part in ("query", "key", "value"):
        kernel, bias = p[part]["kernel"], p[part]["bias"].reshape(count, -1)
        kernel = kernel.reshape(-1, *bias.shape)
        split[part] = {"kernel": kernel, "bias": bias}
    kernel = p["out"]["kernel"].reshape(*bias.shape, -1)
    return {**split, "out": {"kernel": kernel, "bias": p["out"]["bias"]}}


def lstm(p: Any) -> Any:
    """A matrix for each gate; the bias is with the recurrent ones."""
    leaves: dict[str, Any] = {}
    for i, gate in enumerate("ifgo"):
        leaves[f"cell/i{gate}/kernel"] = jnp.split(p["kernel"], 4, -1)[i]
        leaves[f"cell/h{gate}/kernel"] = jnp.split(p["recurrent_kernel"], 4, -1)[i]
        leaves[f"cell/h{gate}/bias"] = jnp.split(p["bias"], 4)[i]
    return tree(leaves)


def _gru(p: Any) -> Any:
    leaves: dict[str, Any] = {"cell/hn/bias": p["recurrent_bias"]}
    for i, gate in enumerate("rzn"):
        leaves[f"cell/i{gate}/kernel"] = jnp.split(p["kernel"], 3, -1)[i]
        leaves[f"cell/i{gate}/bias"] = jnp.split(p["bias"], 3)[i]
        leaves[f"cell/h{gate}/kernel"] = jnp.split(p["recurrent_kernel"], 3, -1)[i]
    return tree(leaves)


LOADS = {
    "mlp": _mlp,
    "lstm": lstm,
    "gru": _gru,
    "attention": heads,
    "attention 512": heads,
    "attention 2048": heads,
}
