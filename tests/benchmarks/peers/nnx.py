"""Flax NNX: the module split once, merged inside `jax.jit`, its State passed between.

That is NNX's own advice for speed: `nnx.jit` would walk the module at every call.
"""

from functools import partial
from typing import Any

from flax import nnx
from rows import RATE

from peers import Contender, same
from peers.linen import heads

make = nnx.Rngs(0)
LAYERS: dict[str, Any] = {
    "layer_norm": lambda: nnx.LayerNorm(256, epsilon=1e-6, rngs=make),
    "rms_norm": lambda: nnx.RMSNorm(256, epsilon=1e-6, rngs=make),
    "batch_norm": lambda: nnx.BatchNorm(64, momentum=0.9, epsilon=1e-5, rngs=make),
    "group_norm": lambda: nnx.GroupNorm(64, num_groups=8, epsilon=1e-6, rngs=make),
    "dense": lambda: nnx.Linear(256, 1024, rngs=make),
    "mlp": lambda: nnx.Sequential(
        nnx.Linear(256, 1024, rngs=make), nnx.gelu, nnx.Linear(1024, 256, rngs=make)
    ),
    "conv 3x3": lambda: nnx.Conv(64, 64, (3, 3), rngs=make),
    "conv strided": lambda: nnx.Conv(64, 64, (3, 3), strides=2, rngs=make),
    "conv depthwise": lambda: nnx.Conv(
        64, 64, (3, 3), feature_group_count=64, rngs=make
    ),
    "conv transposed": lambda: nnx.ConvTranspose(
        64, 32, (3, 3), strides=(2, 2), rngs=make
    ),
    "conv1d": lambda: nnx.Conv(128, 128, (3,), rngs=make),
    "max_pool 2x2": lambda: partial(nnx.max_pool, window_shape=(2, 2), strides=(2, 2)),
    "max_pool 3x3": lambda: partial(nnx.max_pool, window_shape=(3, 3), strides=(2, 2)),
    "avg_pool 2x2": lambda: partial(nnx.avg_pool, window_shape=(2, 2), strides=(2, 2)),
    "dropout": lambda: nnx.Dropout(RATE),
    "lstm": lambda: nnx.RNN(nnx.OptimizedLSTMCell(64, 128, rngs=make), rngs=make),
    "attention": lambda: nnx.MultiHeadAttention(8, 256, decode=False, rngs=make),
    "embedding": lambda: nnx.Embed(10_000, 256, rngs=make),
}
LAYERS["attention 512"] = LAYERS["attention 2048"] = LAYERS["attention"]


def contender(row: Any, weights: Any, x: Any) -> Contender | None:
    """The row's layer, with our weights; no gru, whose gate n has one bias less."""
    if row.name not in LAYERS:
        return None
    module = LAYERS[row.name]()
    if not isinstance(module, nnx.Module):
        return Contender({}, lambda params, x, key: (module(x), {}), same)
    if isinstance(module, nnx.BatchNorm):
        module.train()
    graph, made, rest = nnx.split(module, nnx.Param, ...)
    layout = LOADS.get(row.name, same)

    def load(weights: Any) -> Any:
        state = nnx.clone(made)
        nnx.replace_by_pure_dict(state, layout(weights))
        return state

    def forward(params: Any, x: Any, key: Any) -> tuple[Any, Any]:
        module = nnx.merge(graph, params, rest, copy=True)
        y = module(x, rngs=nnx.Rngs(dropout=key)) if row.random else module(x)
        return y, nnx.state(module, nnx.BatchStat)

    return Contender(load(weights), forward, load)


def _mlp(p: Any) -> Any:
    return {"layers": {0: p["dense"], 2: p["dense_1"]}}


def lstm(p: Any) -> Any:
    recurrent = {"kernel": p["recurrent_kernel"], "bias": p["bias"]}
    return {"cell": {"dense_i": {"kernel": p["kernel"]}, "dense_h": recurrent}}


LOADS = {
    "mlp": _mlp,
    "lstm": lstm,
    "attention": heads,
    "attention 512": heads,
    "attention 2048": heads,
}
