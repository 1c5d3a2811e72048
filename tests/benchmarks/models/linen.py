"""Flax Linen."""

from collections import Counter
from typing import Any

import flax.linen as nn
import jax
from peers import same
from peers.linen import heads, lstm

from models import MODELS, Sizes, Trainee, Unit


class Use:
    """Its layers, each applied where it is named."""

    def __init__(self, dtype: Any) -> None:
        self.how = {"dtype": dtype}

    def tied(self, x: Any, count: int, features: int) -> Any:
        table = nn.Embed(count, features, **self.how)
        return table(x), table.attend

    def embedding(self, x: Any, count: int, features: int) -> Any:
        return nn.Embed(count, features, **self.how)(x)

    def dense(self, x: Any, features: int) -> Any:
        return nn.Dense(features, **self.how)(x)

    def layer_norm(self, x: Any) -> Any:
        return nn.LayerNorm(epsilon=1e-6, **self.how)(x)

    def batch_norm(self, x: Any) -> Any:
        return nn.BatchNorm(use_running_average=False, momentum=0.9, epsilon=1e-5)(x)

    def conv(self, x: Any, features: int, size: int, strides: int) -> Any:
        return nn.Conv(features, (size, size), strides, use_bias=False)(x)

    def attention(self, x: Any, heads: int) -> Any:
        mask = nn.make_causal_mask(x[..., 0])
        return nn.MultiHeadDotProductAttention(heads, **self.how)(x, mask=mask)

    def lstm(self, x: Any, features: int) -> Any:
        return nn.RNN(nn.OptimizedLSTMCell(features))(x)

    def mean(self, x: Any) -> Any:
        return x.mean((1, 2))


class Model(nn.Module):
    """One of `MODELS`."""

    which: str
    sizes: Sizes

    @nn.compact
    def __call__(self, x: Any) -> Any:
        return MODELS[self.which](Use(self.sizes.dtype), x, self.sizes)


def trainee(name: str, s: Sizes, x: Any, units: list[Unit]) -> Trainee:
    """The model of that name, with our weights."""
    module = Model(name, s)
    shapes = jax.eval_shape(module.init, jax.random.key(0), x)
    state = module.init(jax.random.key(0), x)
    state = {k: v for k, v in state.items() if k != "params"}

    def predict(params: Any, state: Any, x: Any) -> tuple[Any, Any]:
        return module.apply({"params": params, **state}, x, mutable=list(state))

    params = _named(units, s.heads)
    if jax.tree.structure(params) != jax.tree.structure(shapes["params"]):
        raise ValueError(f"linen: {name}: expected {shapes['params']}.")
    return Trainee(params, state, predict)


def _named(units: list[Unit], count: int) -> Any:
    """Linen numbers the modules of each class."""
    numbers, params = Counter[str](), dict[str, Any]()
    for kind, unit in units:
        name, layout = NAMES[kind]
        loaded = heads(unit, count) if kind == "attention" else layout(unit)
        params[f"{name}_{numbers[name]}"] = loaded
        numbers[name] += 1
    return params


NAMES = {
    "attention": ("MultiHeadDotProductAttention", heads),
    "batch_norm": ("BatchNorm", same),
    "conv": ("Conv", same),
    "dense": ("Dense", same),
    "embedding": ("Embed", same),
    "layer_norm": ("LayerNorm", same),
    "lstm": ("OptimizedLSTMCell", lambda unit: lstm(unit)["cell"]),
}
