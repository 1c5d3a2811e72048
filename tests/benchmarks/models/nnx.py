"""Flax NNX: split once, merged inside `jax.jit`."""

from typing import Any

from flax import nnx
from peers import same
from peers.linen import heads
from peers.nnx import lstm

from models import MODELS, Sizes, Trainee, Unit, Units


class Use(Units):
    """Its layers: made with the sizes of what comes in, then found again."""

    dtype: Any = None

    def tied(self, x: Any, count: int, features: int) -> Any:
        how = {"dtype": self.dtype, "rngs": KEYS}
        table = self.next(lambda: nnx.Embed(count, features, **how))
        return table(x), table.attend

    def embedding(self, x: Any, count: int, features: int) -> Any:
        return self.tied(x, count, features)[0]

    def dense(self, x: Any, features: int) -> Any:
        how = {"dtype": self.dtype, "rngs": KEYS}
        return self.next(lambda: nnx.Linear(x.shape[-1], features, **how))(x)

    def layer_norm(self, x: Any) -> Any:
        how = {"epsilon": 1e-6, "dtype": self.dtype, "rngs": KEYS}
        return self.next(lambda: nnx.LayerNorm(x.shape[-1], **how))(x)

    def batch_norm(self, x: Any) -> Any:
        how = {"momentum": 0.9, "epsilon": 1e-5, "rngs": KEYS}
        return self.next(lambda: nnx.BatchNorm(x.shape[-1], **how))(x)

    def conv(self, x: Any, features: int, size: int, strides: int) -> Any:
        how = {"strides": strides, "use_bias": False, "rngs": KEYS}
        sizes = (x.shape[-1], features, (size, size))
        return self.next(lambda: nnx.Conv(*sizes, **how))(x)

    def attention(self, x: Any, heads: int) -> Any:
        how = {"decode": False, "dtype": self.dtype, "rngs": KEYS}
        module = self.next(lambda: nnx.MultiHeadAttention(heads, x.shape[-1], **how))
        return module(x, is_causal=True)

    def lstm(self, x: Any, features: int) -> Any:
        def make() -> Any:
            cell = nnx.OptimizedLSTMCell(x.shape[-1], features, rngs=KEYS)
            return nnx.RNN(cell, rngs=KEYS)

        return self.next(make)(x)

    def mean(self, x: Any) -> Any:
        return x.mean((1, 2))


KEYS = nnx.Rngs(0)


def trainee(name: str, s: Sizes, x: Any, units: list[Unit]) -> Trainee:
    """The model of that name, with our weights."""
    first = Use()
    first.dtype = s.dtype
    MODELS[name](first, x, s)
    graph, params, state, rest = nnx.split(
        nnx.List(first.made), nnx.Param, nnx.BatchStat, ...
    )
    loaded = {i: _layout(*unit, s.heads) for i, unit in enumerate(units)}
    nnx.replace_by_pure_dict(params, loaded)

    def predict(params: Any, state: Any, x: Any) -> tuple[Any, Any]:
        made = nnx.merge(graph, params, state, rest, copy=True)
        y = MODELS[name](Use(made), x, s)
        return y, nnx.state(made, nnx.BatchStat)

    return Trainee(params, state, predict)


def _layout(kind: str, unit: Any, count: int) -> Any:
    if kind == "attention":
        return heads(unit, count)
    return (lstm if kind == "lstm" else same)(unit)
