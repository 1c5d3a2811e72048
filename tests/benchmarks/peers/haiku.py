"""Haiku: `hk.transform_with_state`, whose apply is a pure function."""

from collections.abc import Callable
from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp
from rows import RATE

from peers import Contender, like


def unroll(x: Any) -> Any:
    cell = hk.LSTM(128)
    carry = cell.initial_state(x.shape[0])
    return hk.dynamic_unroll(cell, x, carry, time_major=False)[0]


def attention(x: Any) -> Any:
    return hk.MultiHeadAttention(8, 32, w_init=hk.initializers.VarianceScaling())(
        x, x, x
    )


LAYERS: dict[str, Callable[[Any], Any]] = {
    "layer_norm": lambda x: hk.LayerNorm(
        -1, True, True, eps=1e-6, use_fast_variance=True
    )(x),
    "rms_norm": lambda x: hk.RMSNorm(-1, eps=1e-6)(x),
    "batch_norm": lambda x: hk.BatchNorm(True, True, 0.9, eps=1e-5)(x, True),
    "group_norm": lambda x: hk.GroupNorm(8, eps=1e-6)(x),
    "dense": lambda x: hk.Linear(1024)(x),
    "mlp": lambda x: hk.nets.MLP([1024, 256], activation=jax.nn.gelu)(x),
    "conv 3x3": lambda x: hk.Conv2D(64, 3)(x),
    "conv strided": lambda x: hk.Conv2D(64, 3, 2)(x),
    "conv depthwise": lambda x: hk.DepthwiseConv2D(1, 3)(x),
    "conv transposed": lambda x: hk.Conv2DTranspose(32, 3, 2)(x),
    "conv1d": lambda x: hk.Conv1D(128, 3)(x),
    "max_pool 2x2": lambda x: hk.max_pool(x, (1, 2, 2, 1), (1, 2, 2, 1), "VALID"),
    "max_pool 3x3": lambda x: hk.max_pool(x, (1, 3, 3, 1), (1, 2, 2, 1), "VALID"),
    "avg_pool 2x2": lambda x: hk.avg_pool(x, (1, 2, 2, 1), (1, 2, 2, 1), "VALID"),
    "dropout": lambda x: hk.dropout(hk.next_rng_key(), RATE, x),
    "lstm": unroll,
    "attention": attention,
    "attention 512": attention,
    "attention 2048": attention,
    "embedding": lambda x: hk.Embed(10_000, 256)(x),
}


def contender(row: Any, weights: Any, x: Any) -> Contender | None:
    """The row's layer, with our weights; no gru, which resets before the product."""
    if row.name not in LAYERS:
        return None
    module = hk.transform_with_state(LAYERS[row.name])
    made, state = module.init(jax.random.key(0), x)
    load = LOADS.get(row.name, _one(made))
    params = load(weights)
    like(made, params)

    def forward(params: Any, x: Any, key: Any) -> tuple[Any, Any]:
        return module.apply(params, state, key, x)

    return Contender(params, forward, load)


NAMES = {"kernel": "w", "bias": "b", "scale": "scale", "embedding": "embeddings"}


def _one(made: Any) -> Callable[[Any], Any]:
    """The params of the only module, renamed; a norm's bias is its offset."""

    def load(p: Any) -> Any:
        if not p:
            return {}
        ((module, theirs),) = made.items()
        names = {**NAMES, "bias": "offset"} if "scale" in theirs else NAMES
        return {
            module: {
                names[k]: leaf.reshape(theirs[names[k]].shape) for k, leaf in p.items()
            }
        }

    return load


def _mlp(p: Any) -> Any:
    return {
        f"mlp/~/linear_{i}": linear(p[k]) for i, k in enumerate(("dense", "dense_1"))
    }


def linear(p: Any) -> Any:
    return {"w": p["kernel"], "b": p["bias"]}


def _transposed(p: Any) -> Any:
    kernel = jnp.swapaxes(p["kernel"], -1, -2)
    return {"conv2_d_transpose": {"w": kernel, "b": p["bias"]}}


def lstm(p: Any) -> Any:
    """One matrix for input and carry, gates i, g, f, o; it adds 1 to f by itself."""
    kernel = jnp.concatenate([p["kernel"], p["recurrent_kernel"]])
    one = jnp.repeat(jnp.array([0.0, 0.0, 1.0, 0.0]), len(p["bias"]) // 4)
    return {"lstm/linear": {"w": _igfo(kernel), "b": _igfo(p["bias"]) - one}}


def _igfo(gates: Any) -> Any:
    i, f, g, o = jnp.split(gates, 4, -1)
    return jnp.concatenate([i, g, f, o], -1)


def _heads(p: Any) -> Any:
    names = {"query": "query", "key": "key", "value": "value", "out": "linear"}
    return {f"multi_head_attention/{t}": linear(p[o]) for o, t in names.items()}


LOADS = {
    "mlp": _mlp,
    "conv transposed": _transposed,
    "lstm": lstm,
    "attention": _heads,
    "attention 512": _heads,
    "attention 2048": _heads,
}
