"""What the race runs: one row for each layer, at one size.

A row is ours; each file of `peers/` says under the row's name how its library spells it.
A new row is one line here and one in each of those that have the layer.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import axonlike as al

RATE = 0.1
"""Of dropout; the one number that two files must share."""


@dataclass(frozen=True)
class Row:
    """A layer of ours and its input; `ids` are how many there are where x is ids."""

    name: str
    layer: al.Layer
    shape: tuple[int, ...]
    ids: int | None = None
    train: bool = False
    random: bool = False

    def input(self) -> Any:
        """The same numbers in every run."""
        draws = np.random.default_rng(0)
        if self.ids is not None:
            return jnp.asarray(draws.integers(0, self.ids, self.shape), jnp.int32)
        return jnp.asarray(draws.standard_normal(self.shape), jnp.float32)

    def weights(self) -> Any:
        """Our params, none of them zero, so that a bias left out is noticed."""
        params, state = self.layer.init(jax.random.key(0), self.input())
        draws = np.random.default_rng(1)

        def shifted(leaf: Any) -> Any:
            return leaf + 0.1 * draws.standard_normal(leaf.shape).astype(np.float32)

        return jax.tree.map(shifted, params), state


def mlp(width: int) -> al.Layer:
    """Of a transformer's block."""
    return al.dense(4 * width) >> jax.nn.gelu >> al.dense(width)


IMAGES = (32, 28, 28, 64)
MAPS = (16, 32, 32, 64)
TOKENS = (8, 128, 256)
STEPS = (32, 64, 64)
ALL = [
    Row("layer_norm", al.layer_norm(epsilon=1e-6), (64, 128, 256)),
    Row("rms_norm", al.rms_norm(epsilon=1e-6), (64, 128, 256)),
    Row("batch_norm", al.batch_norm(momentum=0.9), IMAGES, train=True),
    Row("group_norm", al.group_norm(8, epsilon=1e-6), MAPS),
    Row("dense", al.dense(1024), TOKENS),
    Row("mlp", mlp(256), TOKENS),
    Row("conv 3x3", al.conv(64, 3), MAPS),
    Row("conv strided", al.conv(64, 3, 2), MAPS),
    Row("conv depthwise", al.depthwise_conv(3), MAPS),
    Row("conv transposed", al.conv_transpose(32, 3, 2), (16, 16, 16, 64)),
    Row("conv1d", al.conv(128, 3), (16, 256, 128)),
    Row("max_pool 2x2", al.max_pool(2), IMAGES),
    Row("max_pool 3x3", al.max_pool(3, 2), IMAGES),
    Row("avg_pool 2x2", al.avg_pool(2), IMAGES),
    Row("dropout", al.dropout(RATE), (64, 128, 256), train=True, random=True),
    Row("lstm", al.lstm(128), STEPS),
    Row("gru", al.gru(128), STEPS),
    Row("attention", al.attention(8), TOKENS),
    Row("attention 512", al.attention(8), (4, 512, 256)),
    Row("attention 2048", al.attention(8), (1, 2048, 256)),
    Row("embedding", al.embedding(10_000, 256), (32, 128), ids=10_000),
]
ROWS = {row.name: row for row in ALL}
