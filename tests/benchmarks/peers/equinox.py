"""Equinox: `jax.vmap` over the batch, `eqx.partition` and `eqx.combine` outside `jit`.

Its arrays are channels first, so these are what it is given.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from equinox import nn
from rows import RATE

from peers import Contender, same

KEY = jax.random.key(0)
Call = Callable[[Any, Any, Any], Any]


def over(axes: int) -> Call:
    """The module on each entry of the leading axes."""

    def call(module: Any, x: Any, key: Any) -> Any:
        for _ in range(axes):
            module = jax.vmap(module)
        return module(x)

    return call


def whole(module: Any, x: Any, key: Any) -> Any:
    return module(x, key=key)


def attend(module: Any, x: Any, key: Any) -> Any:
    return jax.vmap(lambda t: module(t, t, t))(x)


def lstm(module: Any, x: Any, key: Any) -> Any:
    def one(steps: Any) -> Any:
        def step(carry: Any, x: Any) -> Any:
            carry = module(x, carry)
            return carry, carry[0]

        zeros = jnp.zeros(128)
        return jax.lax.scan(step, (zeros, zeros), steps)[1]

    return jax.vmap(one)(x)


def gru(module: Any, x: Any, key: Any) -> Any:
    def one(steps: Any) -> Any:
        def step(carry: Any, x: Any) -> Any:
            carry = module(x, carry)
            return carry, carry

        return jax.lax.scan(step, jnp.zeros(128), steps)[1]

    return jax.vmap(one)(x)


def mlp() -> Any:
    return nn.MLP(256, 256, 1024, 1, activation=jax.nn.gelu, key=KEY)


def attention() -> Any:
    biases = dict.fromkeys(("query", "key", "value", "output"), True)
    options = {f"use_{part}_bias": use for part, use in biases.items()}
    return nn.MultiheadAttention(8, 256, **options, key=KEY)


LAYERS: dict[str, tuple[Callable[[], Any], Call]] = {
    "layer_norm": (lambda: nn.LayerNorm(256, eps=1e-6), over(2)),
    "rms_norm": (lambda: nn.RMSNorm(256, eps=1e-6, use_bias=False), over(2)),
    "group_norm": (lambda: nn.GroupNorm(8, 64, eps=1e-6), over(1)),
    "dense": (lambda: nn.Linear(256, 1024, key=KEY), over(2)),
    "mlp": (mlp, over(2)),
    "conv 3x3": (lambda: nn.Conv2d(64, 64, 3, padding="SAME", key=KEY), over(1)),
    "conv strided": (lambda: nn.Conv2d(64, 64, 3, 2, padding="SAME", key=KEY), over(1)),
    "conv depthwise": (
        lambda: nn.Conv2d(64, 64, 3, padding="SAME", groups=64, key=KEY), over(1),
    ),
    "conv transposed": (
        lambda: nn.ConvTranspose2d(64, 32, 3, 2, padding="SAME", key=KEY), over(1),
    ),
    "conv1d": (lambda: nn.Conv1d(128, 128, 3, padding="SAME", key=KEY), over(1)),
    "max_pool 2x2": (lambda: nn.MaxPool2d(2, 2), over(1)),
    "max_pool 3x3": (lambda: nn.MaxPool2d(3, 2), over(1)),
    "avg_pool 2x2": (lambda: nn.AvgPool2d(2, 2), over(1)),
    "dropout": (lambda: nn.Dropout(RATE), whole),
    "lstm": (lambda: nn.LSTMCell(64, 128, key=KEY), lstm),
    "gru": (lambda: nn.GRUCell(64, 128, key=KEY), gru),
    "attention": (attention, attend),
    "attention 512": (attention, attend),
    "attention 2048": (attention, attend),
    "embedding": (lambda: nn.Embedding(10_000, 256, key=KEY), over(2)),
}  # fmt: skip
CHANNELS_FIRST = ("conv", "max_pool", "avg_pool", "group_norm", "batch_norm")


def contender(row: Any, weights: Any, x: Any) -> Contender | None:
    """The row's layer, with our weights."""
    first = row.name.startswith(CHANNELS_FIRST)
    layout = (_first, _last) if first else (same, same)
    if row.name == "batch_norm":
        return _batch_norm(weights, layout)
    if row.name not in LAYERS:
        return None
    make, call = LAYERS[row.name]
    made, static = eqx.partition(make(), eqx.is_array)

    def load(weights: Any) -> Any:
        return LOADS.get(row.name, one)(made, weights)

    def forward(params: Any, x: Any, key: Any) -> tuple[Any, Any]:
        return call(eqx.combine(params, static), x, key), {}

    return Contender(load(weights), forward, load, *layout)


def _batch_norm(weights: Any, layout: Any) -> Contender:
    """The one with state, which each example is given and returns."""
    make = eqx.nn.make_with_state(nn.BatchNorm)
    module, state = make(64, "batch", eps=1e-5, momentum=0.9, mode="batch")
    made, static = eqx.partition(module, eqx.is_array)

    def forward(params: Any, x: Any, key: Any) -> tuple[Any, Any]:
        module = eqx.combine(params, static)
        how = {"axis_name": "batch", "in_axes": (0, None), "out_axes": (0, None)}
        return jax.vmap(module, **how)(x, state)

    load = partial(one, made)
    return Contender(load(weights), forward, load, *layout)


def _first(x: Any) -> Any:
    return jnp.moveaxis(x, -1, 1)


def _last(x: Any) -> Any:
    return jnp.moveaxis(x, 1, -1)


def one(made: Any, p: Any) -> Any:
    """A module of one weight and perhaps a bias, of whichever shape."""
    if not p:
        return made
    weight = next(p[k] for k in ("kernel", "scale", "embedding") if k in p)
    if "kernel" in p:  # (*window, in, out) is (out, in, *window) here
        weight = jnp.moveaxis(weight, (-1, -2), (0, 1))
    made = eqx.tree_at(lambda m: m.weight, made, weight)
    if "bias" not in p:
        return made
    return eqx.tree_at(lambda m: m.bias, made, p["bias"].reshape(made.bias.shape))


def _mlp(made: Any, p: Any) -> Any:
    layers = [
        one(m, p[k]) for m, k in zip(made.layers, ("dense", "dense_1"), strict=True)
    ]
    return eqx.tree_at(lambda m: list(m.layers), made, layers)


def cell(made: Any, p: Any) -> Any:
    leaves = [p["kernel"].T, p["recurrent_kernel"].T, p["bias"]]
    return eqx.tree_at(lambda m: [m.weight_ih, m.weight_hh, m.bias], made, leaves)


def _gru(made: Any, p: Any) -> Any:
    return eqx.tree_at(lambda m: m.bias_n, cell(made, p), p["recurrent_bias"])


def projections(made: Any, p: Any) -> Any:
    names = {"query": "query", "key": "key", "value": "value", "out": "output"}
    for ours, theirs in names.items():
        projection = f"{theirs}_proj"
        loaded = one(getattr(made, projection), p[ours])
        made = eqx.tree_at(lambda m, at=projection: getattr(m, at), made, loaded)
    return made


LOADS = {
    "mlp": _mlp,
    "lstm": cell,
    "gru": _gru,
    "attention": projections,
    "attention 512": projections,
    "attention 2048": projections,
}
