"""Text, one token after the other."""

from __future__ import annotations

from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from axonlike.errors import ShapeError
from axonlike.io.given import check_layer
from axonlike.layer import Layer
from axonlike.layers.checks import positive
from axonlike.layers.kv_cache import kv_cache
from axonlike.layers.positions import learned_positions
from axonlike.params import paths
from axonlike.spec import show
from axonlike.tree import layers
from axonlike.types import Array, Key, Params, State


def generate(
    model: Layer,
    params: Params,
    state: State,
    tokens: Array,
    steps: int,
    *,
    lengths: Array | None = None,
    temperature: float = 0.0,
    key: Key | None = None,
) -> Array:
    """What a language model writes after a prompt: one token in each step.

    The prompt goes through the model once; each token after it alone, since keys and
    values of those before are kept in the model's caches. A pure function, which
    `jax.jit` compiles with `steps` static.

    Args:
        model: of token ids, whose attention has a cache: `gpt2(cache_length=64)`.
        params: as `init` made them.
        state: as `init` made it, with empty caches; or as `apply` did, to go on.
        tokens: the prompt.
        steps: how many tokens to write; positive.
        lengths: how long each prompt is, where some are shorter; they are filled up at
            their ends, with any id, and text is written in place of that. None: all are
            as long as `tokens`. What the shortest one has goes through the model at once,
            the rest token by token; inside of `jit`, which does not tell, all of it.
        temperature: 0 for the most likely token, else by chance: logits are divided by
            it.
        key: for chance.

    Shapes:
        tokens: `(batch, time)`, integers; `init` saw the same batch.
        lengths: `(batch,)`, integers from 1 to `time`.
        output: `(batch, time + steps)`, int32 if the prompt is of less; a prompt that is
            shorter by 3 gets `steps + 3` tokens.

    Raises:
        ValueError: the model has no head, or no cache, or a smaller one than is needed,
            or fewer positions; or there is a temperature without a key.
        ShapeError: the prompt is no batch of tokens, or empty, or lengths are not those
            of its prompts.

    Example:
        >>> import jax, jax.numpy as jnp, axonlike as al
        >>> model = al.models.gpt2(
        ...     vocab_size=50, features=16, num_layers=1, num_heads=2, cache_length=8)
        >>> prompt = jnp.array([[1, 2, 3]])
        >>> params, state = model.init(jax.random.key(0), prompt)
        >>> al.models.generate(model, params, state, prompt, 5).shape
        (1, 8)
    """
    if _is_scalar(temperature):
        temperature = float(temperature)
    _check(model, state, tokens, steps, temperature, key)
    start = tokens.shape[1] if lengths is None else _shortest(tokens, lengths)
    tokens = jnp.asarray(tokens)
    if tokens.dtype.itemsize < 4:  # few ids fit into less
        tokens = tokens.astype(jnp.int32)
    count = tokens.shape[1] - start + steps
    keys = jax.random.split(jax.random.key(0) if key is None else key, count)
    rest = jnp.pad(tokens[:, start:], ((0, 0), (0, steps))).T
    ends = jnp.asarray(tokens.shape[1] if lengths is None else lengths, jnp.int32)
    given = jnp.arange(start, start + count)[:, None] < ends.reshape(1, -1)

    def chosen(logits: Array, key: Key) -> Array:
        last = logits[:, -1]
        if not temperature:
            return jnp.argmax(last, -1).astype(tokens.dtype)
        drawn = jax.random.categorical(key, last / temperature)
        return drawn.astype(tokens.dtype)

    def decoded(state: State, tokens: Array, at: Any) -> tuple[State, Array]:
        key, own, is_own = at
        logits, state = model.apply(params, state, tokens, options={"decode": True})
        return state, jnp.where(is_own, own, chosen(logits, key))

    def step(carry: Any, at: Any) -> tuple[Any, Array]:
        state, token = decoded(carry[0], carry[1][:, None], at)
        return (state, token), token

    first = decoded(state, tokens[:, :start], (keys[0], rest[0], given[0]))
    _, more = jax.lax.scan(step, first, (keys[1:], rest[1:], given[1:]))
    written = jnp.concatenate([first[1][None], more])
    return jnp.concatenate([tokens[:, :start], written.T], 1)


def _shortest(tokens: Any, lengths: Any) -> int:
    """How many tokens all prompts have; inside of `jit`, which does not tell, one."""
    traced = isinstance(lengths, Tracer)
    known = cast(Any, lengths if traced else np.asarray(lengths))
    if not jnp.issubdtype(known.dtype, np.integer) or known.shape != tokens.shape[:1]:
        expected = f"lengths of {tokens.shape[0]} prompts, (batch,), integers"
        raise ShapeError("generate", expected, show(known))
    if traced:
        return 1
    if not (known.min() >= 1 and known.max() <= tokens.shape[1]):
        raise ValueError(
            f"generate: lengths must be from 1 to {tokens.shape[1]}, the time of tokens."
        )
    return int(known.min())


def _is_scalar(x: Any) -> bool:
    """Whether this is a number that JAX holds, and knows."""
    return isinstance(x, jax.Array) and not isinstance(x, Tracer) and x.ndim == 0


def _check(
    model: Layer, state: State, tokens: Any, steps: int, temperature: float, key: Any
) -> None:
    check_layer("generate", model)
    if model.config.get("head", True) is False:
        raise ValueError(
            "generate: the model has no head, so it has no logits. Build it with head=True."
        )
    positive("generate", steps=steps)
    ids = getattr(tokens, "ndim", 0) == 2 and jnp.issubdtype(tokens.dtype, np.integer)
    if not ids or tokens.shape[1] < 1:
        hint = "Pass at least one token: tokens[None] for one sequence."
        raise ShapeError("generate", "token ids, (batch, time)", show(tokens), hint)
    number = isinstance(temperature, (int, float, np.number))
    if not number or not temperature >= 0 or (temperature and key is None):
        raise ValueError(
            f"generate: temperature must be 0, or positive with a key, got {temperature!r} "
            f"and {'no key' if key is None else 'a key'}."
        )
    needed = _kept(state) + tokens.shape[1] + steps - 1
    every = [each for _, each in layers(model)]
    tables = [each for each in every if each.factory is learned_positions]
    longest = min((each.config["max_length"] for each in tables), default=needed)
    if longest < needed:
        raise ValueError(
            f"generate: {needed} tokens have positions, and the model has {longest}. "
            "Write fewer."
        )
    found = [each for each in every if each.factory is kv_cache]
    room = min((cache.config["length"] for cache in found), default=0)
    if room < needed:
        raise ValueError(
            f"generate: {needed} tokens need to be kept, and the model keeps {room}. "
            f"Build it with cache_length={needed}."
        )


def _kept(state: State) -> int:
    """How many tokens the caches hold already; 0 inside of `jit`, which does not tell."""
    found = [x for path, x in paths(state) if path.endswith("/position")]
    known = [np.asarray(x) for x in found if not isinstance(x, Tracer) and x.size]
    return max((int(x.max()) for x in known), default=0)
