"""Where a token stands: rotations, sinusoids, learned vectors, slopes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, cast

import jax.numpy as jnp
import numpy as np
from jax import lax

from axonlike.errors import ShapeError
from axonlike.initializers import InitFunction, normal
from axonlike.layer import layer
from axonlike.layers.checks import array, at_least, is_int, positive, wide, within
from axonlike.spec import is_unknown, show
from axonlike.types import Array, Key, Params, State, to_dtype

_TOKENS = "(batch, time, ..., features)"


@layer
def rotary(
    theta: float = 10_000.0,
    *,
    fraction: float = 1.0,
    interleaved: bool = False,
    frequencies: Callable[[Any], Any] | None = None,
    name: str | None = None,
) -> Any:
    """Rotary positions: pairs of features are turned, further the later a token stands.

    At position p, pair i of the `n` features that turn goes by the angle `p * theta **
    (-2 * i / n)`, so that the product of a query and a key depends on their distance
    alone. In halves (the default; GPT-NeoX, Llama as Hugging Face stores it) the pair is
    features i and `i + n / 2`; interleaved (the paper, GPT-J, Llama as Meta stores it) it
    is `2 * i` and `2 * i + 1`. Weights made for one are of no use with the other.

    Give it to `attention(..., rotary=rotary())`, which turns queries and keys by their
    positions; or call it in a `wire`. Positions may come with the input, as `(x,
    positions)` or `positions=`; without, the first token stands at 0.

    Args:
        theta: base of the angles; a longer context takes a larger one (scaling "by NTK":
            `theta * factor ** (n / (n - 2))`).
        fraction: of the features that turn, the first ones; the rest stays as it is.
        interleaved: whether pairs are neighbours.
        frequencies: changes the `n / 2` angles of one step, for longer contexts: a
            function of a NumPy array. `lambda f: f / 4` is linear interpolation; Llama 3's
            rule and YaRN's are such functions.
        name: the layer's name among its siblings.

    Shapes:
        input: `(batch, time, ..., head_dim)`, floating point; positions: `(time,)` or
            `(batch, time)`, numbers.
        output: the input's shape and dtype; turned in float32 at least.

    Raises:
        ValueError: `theta` or `fraction` is out of range.
        ShapeError: the input has less than 3 axes, the features that turn are odd or
            unknown, or positions do not fit.

    Example:
        >>> import jax.numpy as jnp, axonlike as al
        >>> x = jnp.ones((1, 3, 1, 2))
        >>> al.rotary().predict({}, {}, x)[0, 1, 0]      # cos 1 - sin 1, cos 1 + sin 1
        Array([-0.30116868,  1.3817732 ], dtype=float32)
        >>> layer = al.attention(2, num_kv_heads=1, causal=True, rotary=al.rotary(5e5))

    References:
        Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding", 2021.
    """
    theta = within(
        "rotary", "theta", theta, low=1e-30, high=math.inf, text="a positive number"
    )
    above = math.nextafter(1, 2)
    fraction = within(
        "rotary", "fraction", fraction, low=0, high=above, text="in [0, 1]"
    )

    def apply(params: Params, x: Any, positions: Any = None) -> Array:
        x, positions = _with_positions("rotary", x, positions, 3)
        turned = _turned(x.shape[-1], fraction, x)
        steps = theta ** (-np.arange(0, turned, 2) / max(turned, 1))
        if frequencies is not None:
            steps = np.asarray(frequencies(steps))
        dtype = wide(x.dtype)
        at = _placed(positions, 0, x, dtype)
        angles = _spread(at, steps, dtype)
        shape = (*angles.shape[:2], *(1,) * (x.ndim - 3), angles.shape[2])
        angles = jnp.reshape(angles, shape)
        rest = x[..., turned:]
        y = _rotate(x[..., :turned].astype(dtype), angles, interleaved).astype(x.dtype)
        return y if turned == x.shape[-1] else jnp.concatenate([y, rest], -1)

    return None, apply


@layer
def sinusoidal_positions(
    theta: float = 10_000.0, *, keeps_position: bool = False, name: str | None = None
) -> Any:
    """Adds sines and cosines of each token's position: no params, any length.

    `x[p, 2i] + sin(p / theta ** (2i / n))`, and the cosine of the same to `x[p, 2i + 1]`,
    as in the paper. Positions may come with the input, as `(x, positions)` or
    `positions=`; without, the first token stands at 0.

    Args:
        theta: base of the wavelengths.
        keeps_position: whether to count tokens, as state: `model.apply(...,
            options={"decode": True})` goes on from the count. See `attention`.
        name: the layer's name among its siblings.

    Shapes:
        input: `(batch, time, ..., features)`, floating point; positions: `(time,)` or
            `(batch, time)`, numbers.
        output: the input's shape and dtype.
        position: state, `()`, int32, zero; only where it is kept.

    Raises:
        ValueError: `theta` is not positive, or decoding without `keeps_position`.
        ShapeError: the input has less than 2 axes, or positions do not fit.

    Example:
        >>> import jax.numpy as jnp, axonlike as al
        >>> al.sinusoidal_positions().predict({}, {}, jnp.zeros((1, 2, 2)))
        Array([[[0.        , 1.        ], [0.8414..., 0.5403...]]], dtype=float32)

    References:
        Vaswani et al., "Attention Is All You Need", NIPS 2017.
    """
    theta = within(
        "sinusoidal_positions",
        "theta",
        theta,
        low=1e-30,
        high=math.inf,
        text="a positive number",
    )

    def added(params: Params, x: Any, positions: Any, start: Any) -> Array:
        dtype = wide(x.dtype)
        at = _placed(positions, start, x, dtype)
        shape = (*at.shape, x.shape[-1])
        column = lax.broadcasted_iota(np.int32, shape, 2)
        width = jnp.asarray(x.shape[-1], dtype)
        power = (column // 2 * 2).astype(dtype) / jnp.broadcast_to(width, shape)
        angles = jnp.broadcast_to(at[..., None], shape) * jnp.exp(
            power * -math.log(theta)
        )
        table = jnp.where(column % 2 == 0, jnp.sin(angles), jnp.cos(angles))
        return x + _across(table.astype(x.dtype), x)

    return _adder("sinusoidal_positions", None, added, None, keeps_position)


@layer
def learned_positions(
    max_length: int,
    *,
    embedding_init: InitFunction = normal(0.02),
    keeps_position: bool = False,
    param_dtype: Any = jnp.float32,
    name: str | None = None,
) -> Any:
    """Adds a learned vector for each token's position.

    Positions may come with the input, as `(x, positions)` or `positions=`; without, the
    first token stands at 0. One outside of `[0, max_length)` gives NaN and passes no
    gradient, as in `embedding`.

    Args:
        max_length: how many positions there are; positive.
        embedding_init: initializer of the vectors.
        keeps_position: whether to count tokens, as state: `model.apply(...,
            options={"decode": True})` goes on from the count. See `attention`.
        param_dtype: dtype in which the vectors are stored; computation follows the
            input's.
        name: the layer's name among its siblings.

    Shapes:
        input: `(batch, time, ..., features)`, floating point; positions: `(time,)` or
            `(batch, time)`, integers.
        output: the input's shape and dtype.
        embedding: `(max_length, features)`, normal with deviation 0.02 (GPT-2, BERT).
        position: state, `()`, int32, zero; only where it is kept.

    Raises:
        ValueError: `max_length` is not a positive int, or decoding without
            `keeps_position`.
        ShapeError: the input has less than 2 axes or is longer than `max_length`, or
            positions do not fit.

    Example:
        >>> import jax, axonlike as al
        >>> model = al.embedding(50, 8) >> al.learned_positions(32)
        >>> params, _ = model.init(jax.random.key(0), al.spec("b t", int))
        >>> params["learned_positions"]["embedding"].shape
        (32, 8)
    """
    positive("learned_positions", max_length=max_length)

    def init(key: Key, x: Any, positions: Any = None) -> Params:
        x, _ = _pair("learned_positions", x, positions)
        shape = (max_length, x.shape[-1])
        return {"embedding": embedding_init(key, shape, param_dtype)}

    def added(params: Params, x: Any, positions: Any, start: Any) -> Array:
        time = x.shape[1]
        if is_int(time) and time > max_length and positions is None:
            expected = f"at most max_length {max_length} tokens"
            hint = "Cut the input, or make the layer longer."
            raise ShapeError("learned_positions", expected, show(x), hint)
        table = to_dtype(jnp.asarray(params["embedding"]), x.dtype)
        at = _placed(positions, start, x, np.int32)
        rows = table.at[at].get(
            mode="fill", fill_value=jnp.nan, wrap_negative_indices=False
        )
        return x + _across(rows, x)

    return _adder("learned_positions", init, added, max_length, keeps_position)


def alibi_slopes(num_heads: int) -> np.ndarray[Any, Any]:
    """The slope of each head, steepest first: `2 ** (-8 * i / num_heads)`, i from 1.

    Where the heads are no power of two, those of the next lower one, then every other
    one of the next higher.
    """
    lower = 2 ** (num_heads.bit_length() - 1)
    slopes = [2.0 ** (-8 * i / lower) for i in range(1, lower + 1)]
    more = [2.0 ** (-4 * i / lower) for i in range(1, 2 * (num_heads - lower), 2)]
    return np.asarray(slopes + more)


def _adder(
    kind: str, init: Any, added: Any, longest: int | None, keeps_position: bool
) -> Any:
    """The pair of a layer that adds something by position; with state where it counts."""

    def apply(
        params: Params, x: Any, positions: Any = None, *, decode: bool = False
    ) -> Array:
        x, positions = _with_positions(kind, x, positions, 2)
        if decode and positions is None:
            raise ValueError(
                f"{kind}: decoding starts each call at position 0. "
                "Build it with keeps_position=True, or pass positions."
            )
        return added(params, x, positions, 0)

    def counting(
        params: Params,
        x: Any,
        positions: Any = None,
        *,
        state: State,
        decode: bool = False,
    ) -> tuple[Array, State]:
        x, positions = _with_positions(kind, x, positions, 2)
        start = jnp.asarray(state["position"])
        y = added(params, x, positions, start if decode else 0)
        after = start + jnp.asarray(x.shape[1], np.int32) if decode else start
        return y, {"position": after}

    def begin(key: Key, x: Any, positions: Any = None) -> tuple[Params, State]:
        params: Params = {} if init is None else init(key, x, positions)
        return params, {"position": jnp.zeros((), np.int32)}

    return (begin, counting) if keeps_position else (init, apply)


def _pair(kind: str, x: Any, positions: Any) -> tuple[Any, Any]:
    """The input, and positions where they came with it."""
    if isinstance(x, dict) and "x" in x:
        named = cast("dict[str, Any]", x)
        return named["x"], named.get("positions", positions)
    if isinstance(x, (tuple, list)) and positions is None:
        items = list(cast("list[Any]", x))
        if len(items) == 2:
            return items[0], items[1]
    return cast(Any, x), positions


def _with_positions(kind: str, x: Any, positions: Any, ndim: int) -> tuple[Any, Any]:
    """The same, looked at."""
    x, positions = _pair(kind, x, positions)
    at_least(kind, x, ndim + (ndim == 2), _TOKENS, "Add a batch axis with x[None].")
    if positions is None:
        return x, None
    array(kind, positions, "array of positions", floating=False)
    shape = positions.shape
    fits = positions.ndim in (1, 2) and shape[-1] == x.shape[1]
    if not fits or (positions.ndim == 2 and shape[0] not in (1, x.shape[0])):
        expected = f"positions of shape ({x.shape[1]},) or {tuple(x.shape[:2])}"
        hint = "One number for each token."
        raise ShapeError(kind, expected, show(positions), hint)
    return x, positions


def _placed(positions: Any, start: Any, x: Any, dtype: Any) -> Array:
    """The position of each token, `(1 or batch, time)`."""
    if positions is None:
        steps = lax.broadcasted_iota(np.int32, (1, x.shape[1]), 1)
        return (steps + start).astype(dtype)
    positions = jnp.asarray(positions).astype(dtype)
    return positions if positions.ndim == 2 else jnp.expand_dims(positions, 0)


def _turned(features: Any, fraction: float, x: Any) -> int:
    """How many of the features turn: an even number."""
    if is_unknown(features):
        hint = "Declare its size in the spec."
        raise ShapeError("rotary", f"{_TOKENS} of known features", show(x), hint)
    turned = int(features * fraction)
    if turned % 2:
        expected = f"an even number of features that turn, not {turned}"
        raise ShapeError(
            "rotary", expected, show(x), "Pairs are turned; see fraction=."
        )
    return turned


def _spread(at: Array, steps: Any, dtype: Any) -> Array:
    """Angles, `(1 or batch, time, pairs)`."""
    shape = (*at.shape, steps.shape[0])
    turns = jnp.asarray(steps, dtype)
    turns = jnp.broadcast_to(jnp.reshape(turns, (1, 1, shape[2])), shape)
    return jnp.broadcast_to(at[..., None], shape) * turns


def _rotate(x: Array, angles: Array, interleaved: bool) -> Array:
    """Pairs of features, each turned by its angle."""
    shape = (*x.shape[:-1], x.shape[-1] // 2)
    cos, sin = (jnp.broadcast_to(f(angles), shape) for f in (jnp.cos, jnp.sin))
    if interleaved:
        pairs = jnp.reshape(x, (*shape, 2))
        a, b = pairs[..., 0], pairs[..., 1]
        both = jnp.stack([a * cos - b * sin, b * cos + a * sin], -1)
        return jnp.reshape(both, x.shape)
    a, b = jnp.split(x, 2, -1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1)


def _across(table: Array, x: Array) -> Array:
    """Vectors by batch and time, at the rank of the input."""
    shape = (*table.shape[:2], *(1,) * (x.ndim - 3), table.shape[2])
    return jnp.broadcast_to(jnp.reshape(table, shape), x.shape)
