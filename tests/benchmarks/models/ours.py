"""Our models, as pipes."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import axonlike as al
from models import Sizes, Trainee, Unit


def gpt(s: Sizes) -> al.Layer:
    mlp = al.dense(4 * s.width) >> jax.nn.gelu >> al.dense(s.width)
    attend = al.residual(al.layer_norm() >> al.attention(s.heads, causal=True))
    block = attend >> al.residual(al.layer_norm() >> mlp)
    blocks = al.repeat(block, s.blocks, stacked=False)
    embed = al.embedding(s.vocab, s.width)
    return embed >> blocks >> al.layer_norm() >> al.dense(s.vocab)


def gpt2(s: Sizes) -> al.Layer:
    mlp = al.dense(4 * s.width) >> jax.nn.gelu >> al.dense(s.width)
    attend = al.residual(al.layer_norm() >> al.attention(s.heads, causal=True))
    block = attend >> al.residual(al.layer_norm() >> mlp)

    def run(sub: Any, x: Any) -> Any:
        places = sub.positions(jnp.arange(x.shape[-1]))
        x = sub.tokens(x)
        x = (x + jnp.broadcast_to(places, x.shape)).astype(s.dtype)
        return sub.tokens(sub.norm(sub.blocks(x)), attend=True)

    return al.wire(
        run,
        tokens=al.embedding(s.vocab, s.width),
        positions=al.embedding(s.tokens[1], s.width),
        blocks=al.repeat(block, s.blocks, stacked=False),
        norm=al.layer_norm(),
    )


def conv_norm(features: int, size: int, strides: int = 1) -> al.Layer:
    conv = al.conv(features, size, strides, use_bias=False)
    return conv >> al.batch_norm(momentum=0.9)


def resnet(s: Sizes) -> al.Layer:
    layers: list[Any] = [conv_norm(s.stages[0], 3), jax.nn.relu]
    for stage, features in enumerate(s.stages):
        for changes in (stage > 0, False):
            strides = 2 if changes else 1
            body = conv_norm(features, 3, strides) >> jax.nn.relu
            shortcut = conv_norm(features, 1, strides) if changes else al.identity
            block = al.residual(body >> conv_norm(features, 3), shortcut=shortcut)
            layers += [block, jax.nn.relu]
    return al.serial(*layers, al.global_avg_pool(), al.dense(10))


def lstm_lm(s: Sizes) -> al.Layer:
    lstms = al.lstm(s.width) >> al.lstm(s.width)
    return al.embedding(s.vocab, s.width) >> lstms >> al.dense(s.vocab)


def mlp(s: Sizes) -> al.Layer:
    hidden = al.dense(s.hidden) >> jax.nn.relu >> al.dense(s.hidden) >> jax.nn.relu
    return hidden >> al.dense(10)


MODELS = {"gpt": gpt, "gpt2": gpt2, "resnet": resnet, "lstm_lm": lstm_lm, "mlp": mlp}
UNITS = ("attention", "batch_norm", "conv", "dense", "embedding", "layer_norm", "lstm")


def trainee(name: str, s: Sizes, x: Any) -> tuple[Trainee, list[Unit]]:
    """The model of that name, and its units; no param is zero, or one could miss it."""
    model = MODELS[name](s)
    params, state = model.init(jax.random.key(0), x)
    draws = np.random.default_rng(1)

    def shifted(leaf: Any) -> Any:
        return leaf + 0.02 * draws.standard_normal(leaf.shape).astype(np.float32)

    def predict(params: Any, state: Any, x: Any) -> tuple[Any, Any]:
        return model.apply(params, state, x, train=True)

    params = jax.tree.map(shifted, params)
    kinds = [(layer.kind, path) for path, layer in al.layers(model)]
    units = [(kind, _at(params, path)) for kind, path in kinds if kind in UNITS]
    return Trainee(params, state, predict), units


def _at(params: Any, path: str) -> Any:
    for step in path.split("/"):
        params = params[step]
    return params
