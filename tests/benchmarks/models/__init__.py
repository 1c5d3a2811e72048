"""Whole models, the same in every library, to train side by side.

Each model is written once, over a library's layers (`use`): `use.dense(x, 10)` makes or
finds the next dense layer and applies it. Our own are pipes, in `ours.py`. Weights are
copied unit by unit, in the order of use.
"""

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

LIBRARIES = {"linen": "flax", "nnx": "flax", "haiku": "haiku", "equinox": "equinox"}


@dataclass(frozen=True)
class Sizes:
    """Of all models."""

    blocks: int = 8
    width: int = 256
    heads: int = 8
    vocab: int = 512
    tokens: tuple[int, int] = (16, 64)
    stages: tuple[int, ...] = (64, 128, 256, 512)
    images: tuple[int, int] = (16, 32)
    hidden: int = 512
    examples: tuple[int, int] = (128, 784)
    dtype: Any = jnp.float32
    """Of the computation; params are float32."""


TOY = Sizes(1, 16, 2, 11, (2, 5), (4, 8), (2, 8), 8, (3, 6))


def gpt(use: Any, x: Any, s: Sizes) -> Any:
    """A decoder-only transformer, pre-norm, without positions."""
    x = use.embedding(x, s.vocab, s.width)
    for _ in range(s.blocks):
        x = x + use.attention(use.layer_norm(x), s.heads)
        h = jax.nn.gelu(use.dense(use.layer_norm(x), 4 * s.width))
        x = x + use.dense(h, s.width)
    return use.dense(use.layer_norm(x), s.vocab)


def gpt2(use: Any, x: Any, s: Sizes) -> Any:
    """GPT-2: learned positions, and a head that is the table of tokens."""
    places = jnp.arange(x.shape[-1])
    x, attend = use.tied(x, s.vocab, s.width)
    x = (x + use.embedding(places, s.tokens[1], s.width)).astype(s.dtype)
    for _ in range(s.blocks):
        x = x + use.attention(use.layer_norm(x), s.heads)
        h = jax.nn.gelu(use.dense(use.layer_norm(x), 4 * s.width))
        x = x + use.dense(h, s.width)
    return attend(use.layer_norm(x))


def resnet(use: Any, x: Any, s: Sizes) -> Any:
    """ResNet-18 for small images: two blocks a stage, no pooling at the start."""

    def conv_norm(x: Any, features: int, size: int, strides: int = 1) -> Any:
        return use.batch_norm(use.conv(x, features, size, strides))

    x = jax.nn.relu(conv_norm(x, s.stages[0], 3))
    for stage, features in enumerate(s.stages):
        for changes in (stage > 0, False):
            strides = 2 if changes else 1
            y = conv_norm(jax.nn.relu(conv_norm(x, features, 3, strides)), features, 3)
            x = conv_norm(x, features, 1, strides) if changes else x
            x = jax.nn.relu(x + y)
    return use.dense(use.mean(x), 10)


def lstm_lm(use: Any, x: Any, s: Sizes) -> Any:
    """Two LSTMs over embedded tokens."""
    x = use.embedding(x, s.vocab, s.width)
    return use.dense(use.lstm(use.lstm(x, s.width), s.width), s.vocab)


def mlp(use: Any, x: Any, s: Sizes) -> Any:
    """Two hidden layers."""
    for _ in range(2):
        x = jax.nn.relu(use.dense(x, s.hidden))
    return use.dense(x, 10)


MODELS = {"gpt": gpt, "gpt2": gpt2, "resnet": resnet, "lstm_lm": lstm_lm, "mlp": mlp}


Unit = tuple[str, Any]
"""Kind and params of one of our layers."""


class Trainee(NamedTuple):
    """Params and state of one library, and its `predict(params, state, inputs)`.

    `predict` trains: it gives logits and the new state.
    """

    params: Any
    state: Any
    predict: Callable[[Any, Any, Any], tuple[Any, Any]]


class Units:
    """Layers in the order of use: made in a first pass, taken again in later ones."""

    def __init__(self, made: list[Any] | None = None) -> None:
        self.made: list[Any] = []
        self.left = None if made is None else iter(made)

    def next(self, make: Callable[[], Any]) -> Any:
        """The next one."""
        if self.left is not None:
            return next(self.left)
        self.made.append(make())
        return self.made[-1]


def libraries() -> dict[str, Any]:
    """The modules here whose libraries are installed."""
    have = [n for n, lib in LIBRARIES.items() if importlib.util.find_spec(lib)]
    return {name: importlib.import_module(f"models.{name}") for name in have}


def batch(name: str, s: Sizes) -> tuple[Any, Any]:
    """Inputs and labels, the same in every run."""
    draws = np.random.default_rng(0)
    if name in ("gpt", "gpt2", "lstm_lm"):
        x, labels = draws.integers(0, s.vocab, (2, *s.tokens))
        return jnp.asarray(x, jnp.int32), jnp.asarray(labels, jnp.int32)
    count, side = s.images
    shape = s.examples if name == "mlp" else (count, side, side, 3)
    x = jnp.asarray(draws.standard_normal(shape), jnp.float32)
    return x, jnp.asarray(draws.integers(0, 10, shape[0]), jnp.int32)


def loss_of(one: Trainee) -> Callable[..., Any]:
    """Mean cross entropy, and the new state."""

    def loss(params: Any, state: Any, batch: Any) -> Any:
        logits, state = one.predict(params, state, batch[0])
        logits = logits.astype(jnp.float32)
        each = optax.softmax_cross_entropy_with_integer_labels(logits, batch[1])
        return jnp.mean(each), state

    return loss


def train_step(one: Trainee, optimizer: Any) -> Callable[..., Any]:
    """A step of training, as one writes it by hand."""
    loss = jax.value_and_grad(loss_of(one), has_aux=True)

    def step(params: Any, state: Any, opt_state: Any, batch: Any) -> Any:
        (value, state), grads = loss(params, state, batch)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), state, opt_state, value

    return step
