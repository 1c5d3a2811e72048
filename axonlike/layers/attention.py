"""Multi-head attention."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from axonlike.combinators.wire import wire
from axonlike.initializers import InitFunction, lecun_normal, zeros
from axonlike.layer import layer
from axonlike.layers.attention_heads import Heads
from axonlike.layers.attention_inputs import read
from axonlike.layers.attention_scores import Rules
from axonlike.layers.checks import positive, within
from axonlike.layers.dropout import dropout
from axonlike.layers.kv_cache import kv_cache
from axonlike.layers.linear import DotGeneral, affine, affine_params
from axonlike.layers.norm import layer_norm
from axonlike.types import Array, Key, Params

_SIZES = (
    "num_kv_heads",
    "head_dim",
    "value_dim",
    "qkv_features",
    "out_features",
    "sliding_window",
    "cache_length",
)


@layer
def attention(
    num_heads: int,
    *,
    num_kv_heads: int | None = None,
    head_dim: int | None = None,
    value_dim: int | None = None,
    qkv_features: int | None = None,
    out_features: int | None = None,
    causal: bool = False,
    sliding_window: int | None = None,
    rotary: Any = None,
    alibi: bool = False,
    normalize_qk: Any = False,
    soft_cap: float | None = None,
    scale: float | None = None,
    dropout_rate: float = 0.0,
    broadcast_dropout: bool = False,
    cache_length: int | None = None,
    cache_dtype: Any = None,
    implementation: str | None = None,
    use_bias: bool = True,
    use_out_bias: bool | None = None,
    kernel_init: InitFunction = lecun_normal(),
    bias_init: InitFunction = zeros(),
    out_kernel_init: InitFunction | None = None,
    out_bias_init: InitFunction | None = None,
    param_dtype: Any = jnp.float32,
    precision: Any = None,
    dot_general: DotGeneral | None = None,
    name: str | None = None,
) -> Any:
    """Multi-head dot-product attention, of a sequence to itself or to another.

    Each head computes `softmax(q @ k.T * scale) @ v`, the softmax in float32 at least.
    Self-attention takes the sequence alone, cross-attention `(query, keys_values)`, a
    mask is the third of these; all inputs go by name in a dict, or inside a `wire`
    (`sub.attn(x, mask=m)`). To the logits come, in this order: the scale, the cap, slopes
    and biases, then what is not allowed is taken out. A query that may attend to nothing
    gets the mean of all values that it could see without the mask.

    Causal or not, position i of the query stands at position i of the keys. With a
    sliding window of 3, position 5 attends to 3, 4 and 5 where causal (as in Mistral:
    itself is one of them), and else to 3, 4, 5, 6 and 7.

    Decoding token by token: with `cache_length`, a call with `options={"decode": True}`
    goes on from the keys and values of earlier calls, which are kept as state: a prompt
    in one call, then a token in each, computes what one call with all tokens does. Mask,
    bias and lengths are then those of the whole cache. See `kv_cache` for what it holds,
    and what becomes of too many tokens. Cross-attention needs none.

    The weights of all heads can be read and edited as the site `weights`; nothing holds
    them where nothing looks.

    Args:
        num_heads: how many heads; positive.
        num_kv_heads: how many heads of keys and values, each shared by neighbouring heads
            of the query; divides `num_heads`; None: as many.
        head_dim: features of a head; None: the width over `num_heads`.
        value_dim: features of a head's values; None: `head_dim`.
        qkv_features: or width of the query, for all heads together; a multiple of
            `num_heads`; None: the input's width.
        out_features: width of the output; None: the query's width.
        causal: whether position i attends to none after i.
        sliding_window: how many positions, itself included, a query sees on a side; None:
            all. What a query past the end of its lengths gathers is not defined.
        rotary: `rotary(...)`, or another layer of `(x, positions)`, through which queries
            and keys go; None: no positions.
        alibi: whether each head's logits fall with distance, at a slope of its own.
        normalize_qk: whether queries and keys are normalized, before they are turned:
            True for `layer_norm(use_bias=False)` over a head's features, or the layer.
        soft_cap: logits become `soft_cap * tanh(logits / soft_cap)`; None: they stay.
        scale: of the logits; None: `1 / sqrt(head_dim)`.
        dropout_rate: probability of setting an attention weight to zero in training.
        broadcast_dropout: whether all examples and heads share one draw.
        cache_length: how many tokens can be decoded in all; None: no cache.
        cache_dtype: of cached keys and values; None: `param_dtype`.
        implementation: None: plain matrix products, long sequences in blocks where much
            is masked. "xla" or "cudnn": that one of `jax.nn.dot_product_attention`, which
            has no site `weights`, cap, dropout or `value_dim`.
        use_bias: whether the projections add a bias.
        use_out_bias: whether the last one does; None: as `use_bias` says.
        kernel_init: initializer of their kernels.
        bias_init: initializer of their biases.
        out_kernel_init: of the last one's kernel; None: `kernel_init`.
        out_bias_init: of the last one's bias; None: `bias_init`.
        param_dtype: dtype in which params are stored; computation follows the input's.
        precision: of all products, as in `jax.lax.dot_general`.
        dot_general: called in place of `jax.lax.dot_general` by the projections.
        name: the layer's name among its siblings.

    Shapes:
        query: `(batch, time, n)`, floating point.
        keys_values: `(batch, source, m)`, or a pair of those, keys and values; absent:
            the query.
        mask: bool, true where a query may attend: `(time, source)`, `(batch, time,
            source)` or `(batch, num_heads, time, source)`, any of them 1 to broadcast.
        bias: added to the logits, of the shapes that a mask may have.
        lengths: `(batch,)`, integers: how many keys of each example there are.
        positions: `(time,)` or `(batch, time)`: where the tokens stand, for `rotary`.
        output: `(batch, time, out_features)`, the query's dtype.
        query/kernel: `(n, num_heads * head_dim)`; query/bias: its last axis.
        key/kernel: `(m, num_kv_heads * head_dim)`; key/bias: its last axis.
        value/kernel: `(m, num_kv_heads * value_dim)`; value/bias: its last axis.
        out/kernel: `(num_heads * value_dim, out_features)`; out/bias: its last axis.
        query_norm, key_norm: the params of `normalize_qk`.
        cache/key, cache/value, cache/position: state, as in `kv_cache`.

    Raises:
        ValueError: a size is not a positive int, heads do not divide, a number is out of
            range, options exclude each other, or causal self-attention without a cache
            is to decode.
        ShapeError: an input has another rank, batches differ, the heads do not divide
            the width, or a mask, bias or length does not fit.

    Example:
        >>> import jax, jax.numpy as jnp, axonlike as al
        >>> layer = al.attention(4, causal=True)
        >>> params, state = layer.init(jax.random.key(0), al.spec("b t 32"))
        >>> params["query"]["kernel"].shape
        (32, 32)
        >>> layer.predict(params, state, jnp.ones((2, 5, 32))).shape
        (2, 5, 32)
        >>> llama = al.attention(
        ...     4, num_kv_heads=2, causal=True, rotary=al.rotary(), cache_length=64,
        ...     use_bias=False)
        >>> params, state = llama.init(jax.random.key(0), al.spec("2 t 32"))
        >>> y, state = llama.apply(
        ...     params, state, jnp.ones((2, 5, 32)), options={"decode": True})
        >>> state["cache"]["key"].shape, int(state["cache"]["position"])
        ((2, 2, 64, 8), 5)

    References:
        Vaswani et al., "Attention Is All You Need", NIPS 2017.
        Ainslie et al., "GQA: Training Generalized Multi-Query Transformer Models", EMNLP
        2023. Press et al., "Train Short, Test Long", ICLR 2022 (ALiBi). Jiang et al.,
        "Mistral 7B", 2023 (windows). Dehghani et al., "Scaling Vision Transformers to 22
        Billion Parameters", ICML 2023 (normalized queries and keys).
    """
    counts = (num_kv_heads, head_dim, value_dim, qkv_features, out_features)
    sizes = dict(zip(_SIZES, (*counts, sliding_window, cache_length), strict=True))
    given = {key: size for key, size in sizes.items() if size is not None}
    positive("attention", num_heads=num_heads, **given)
    dropout_rate = within(
        "attention", "dropout_rate", dropout_rate, low=0, high=1, text="in [0, 1)"
    )
    groups = num_kv_heads or num_heads
    _check_groups(num_heads, groups, qkv_features, head_dim)
    taken = {"soft_cap": soft_cap, "value_dim": value_dim, "dropout_rate": dropout_rate}
    _check_implementation(implementation, taken)
    _check_cache(cache_length, causal)
    rules = Rules(
        causal=causal,
        window=sliding_window,
        alibi=alibi,
        soft_cap=_number("soft_cap", soft_cap),
        scale=_number("scale", scale),
        precision=precision,
    )
    head = qkv_features // num_heads if qkv_features else head_dim
    norm = layer_norm(use_bias=False) if normalize_qk is True else normalize_qk
    stored = param_dtype if cache_dtype is None else cache_dtype
    axes = (0, 1) if broadcast_dropout else ()
    extra = {
        "query_norm": norm or None,
        "key_norm": norm or None,
        "rotary": rotary,
        "cache": cache_length and kv_cache(cache_length, cache_dtype=stored),
        "dropout": dropout(dropout_rate, broadcast_dims=axes) if dropout_rate else None,
    }
    children = {name: child for name, child in extra.items() if child is not None}
    heads = Heads(num_heads, groups, head, rules, implementation, frozenset(children))

    def attend(
        sub: Any,
        query: Any,
        keys_values: Any = None,
        mask: Any = None,
        bias: Any = None,
        lengths: Any = None,
        positions: Any = None,
        *,
        emit: Callable[[str, Any], Any],
        decode: bool = False,
    ) -> Array:
        inputs = read(query, keys_values, mask, bias, lengths, positions)
        return sub.out(heads.attend(sub, inputs, emit, decode), inputs.query)

    def project(features: int | None, **own: Any) -> Any:
        options: dict[str, Any] = {
            "use_bias": use_bias,
            "kernel_init": kernel_init,
            "bias_init": bias_init,
            **{name: option for name, option in own.items() if option is not None},
        }
        return projection(
            features,
            param_dtype=param_dtype,
            precision=precision,
            dot_general=dot_general,
            **options,
        )

    value = value_dim or head
    last = project(
        out_features,
        use_bias=use_out_bias,
        kernel_init=out_kernel_init,
        bias_init=out_bias_init,
    )
    return wire(
        attend,
        query=project(head and num_heads * head),
        key=project(head and groups * head),
        value=project(value and groups * value),
        **children,
        out=last,
    )


@layer
def projection(
    features: int | None = None,
    *,
    use_bias: bool = True,
    kernel_init: InitFunction = lecun_normal(),
    bias_init: InitFunction = zeros(),
    param_dtype: Any = jnp.float32,
    precision: Any = None,
    dot_general: DotGeneral | None = None,
    name: str | None = None,
) -> Any:
    """An affine map that is as wide as a second input where no width is given.

    Args:
        features: size of the output's last axis; None: that of `like`.
        use_bias: whether to add a bias.
        kernel_init: initializer of the kernel.
        bias_init: initializer of the bias.
        param_dtype: dtype in which params are stored.
        precision: of the matrix product.
        dot_general: called in place of `jax.lax.dot_general`.
        name: the layer's name among its siblings.

    Shapes:
        x: `(..., n)`, floating point.
        like: `(..., m)`; only its width is looked at.
        output: `(..., features)`, the dtype of `x`.
        kernel: `(n, features)`, LeCun normal.
        bias: `(features,)`, zeros; absent when `use_bias` is false.

    Raises:
        ValueError: `features` is not a positive int.

    Example:
        >>> import axonlike as al
        >>> al.projection().output_spec((al.spec("b 4"), al.spec("b 6"))).shape
        (b, 6)
    """
    if features is not None:
        positive("projection", features=features)

    def init(key: Key, x: Any, like: Any) -> Params:
        shape = (x.shape[-1], features or like.shape[-1])
        return affine_params(
            key,
            shape,
            use_bias=use_bias,
            kernel_init=kernel_init,
            bias_init=bias_init,
            dtype=param_dtype,
        )

    def apply(params: Params, x: Any, like: Any) -> Array:
        return affine(params, x, precision, dot_general)

    return init, apply


def _check_groups(
    num_heads: int, groups: int, qkv_features: int | None, head_dim: int | None
) -> None:
    if num_heads % groups:
        raise ValueError(
            f"attention: num_kv_heads must divide num_heads {num_heads}, got {groups}."
        )
    if qkv_features is not None and head_dim is not None:
        raise ValueError(
            "attention: head_dim and qkv_features say the same thing, got "
            f"{head_dim} and {qkv_features}. Give one of them."
        )
    if qkv_features is not None and qkv_features % num_heads:
        raise ValueError(
            f"attention: qkv_features must be a multiple of num_heads {num_heads}, "
            f"got {qkv_features}."
        )


def _check_implementation(implementation: str | None, options: dict[str, Any]) -> None:
    """Refuses another implementation, and what JAX's do not know."""
    if implementation not in (None, "xla", "cudnn"):
        raise ValueError(
            "attention: implementation must be None, 'xla' or 'cudnn', got "
            f"{implementation!r}."
        )
    found = [name for name, value in options.items() if value]
    if implementation is not None and found:
        raise ValueError(
            f"attention: {found[0]} needs implementation=None, got {implementation!r}."
        )


def _check_cache(cache_length: int | None, causal: bool) -> None:
    if cache_length is not None and not causal:
        raise ValueError(
            "attention: cache_length needs causal=True, got False. Without it, earlier "
            "tokens would have to change when later ones come."
        )


def _number(option: str, value: Any) -> float | None:
    if value is None:
        return None
    return within(
        "attention", option, value, low=1e-30, high=1e30, text="a positive number"
    )
