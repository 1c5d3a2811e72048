"""Language models that go from left to right: GPT-2 and Llama."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any, cast

import jax
import numpy as np

from axonlike.combinators.basic import serial
from axonlike.combinators.lifted import repeat
from axonlike.combinators.tying import tie
from axonlike.io.mapping import fuse, mapping, split, tied
from axonlike.layer import Layer, layer
from axonlike.layers.attention import attention
from axonlike.layers.dropout import dropout
from axonlike.layers.embed import embedding
from axonlike.layers.gated import swiglu
from axonlike.layers.linear import dense
from axonlike.layers.norm import layer_norm, rms_norm
from axonlike.layers.positions import learned_positions, rotary
from axonlike.models.blocks import (
    Activation,
    activation,
    architecture,
    mlp,
    pre_norm,
    refuse,
)


def _with_head(model: Layer, vocab_size: int, *, tied: bool) -> Layer:
    """A model and the logits of each token, by weights of their own or the embedding's."""
    whole = model >> serial(head=dense(vocab_size, use_bias=False))
    pairs = {"head/kernel": "embed/embedding"}
    return tie(whole, pairs, transpose=True) if tied else whole


@layer
def gpt2(
    *,
    vocab_size: int = 50257,
    max_length: int = 1024,
    features: int = 768,
    num_layers: int = 12,
    num_heads: int = 12,
    hidden_features: int | None = None,
    activation: Activation = jax.nn.gelu,
    epsilon: float = 1e-5,
    dropout_rate: float = 0.0,
    cache_length: int | None = None,
    head: bool = True,
    stacked: bool = True,
    name: str | None = None,
) -> Any:
    """GPT-2: the logits of each token's next one.

    Args:
        vocab_size: how many tokens there are.
        max_length: how many positions there are.
        features: width.
        num_layers: how many blocks.
        num_heads: heads of attention in each.
        hidden_features: width inside of a block's MLP; None: four times the width.
        activation: of the MLP.
        epsilon: of the norms.
        dropout_rate: after the embedding, attention and the MLP, and of the weights of
            attention; training only.
        cache_length: how many tokens can be decoded one by one, as `generate` does;
            None: no cache.
        head: whether there are logits, by the embedding's weights; or a vector for each
            token.
        stacked: whether the blocks are one scan over stacked params.

    Shapes:
        input: `(batch, time)`, token ids. No token sees those after it, so texts of
            different lengths are filled up at their ends, with any id.
        output: `(batch, time, vocab_size)`, or `(batch, time, features)`.

    Raises:
        ValueError: a size is not a positive int, or heads do not divide the width.

    Example:
        >>> import axonlike as al
        >>> model = al.models.gpt2(
        ...     vocab_size=50, features=16, num_layers=2, num_heads=2)
        >>> model.output_spec(al.spec("b t", int, constraints=["t<=1024"])).shape
        (b, t, 50)

    References:
        Radford et al., "Language Models are Unsupervised Multitask Learners", 2019.
    """
    attn = attention(
        num_heads,
        causal=True,
        dropout_rate=dropout_rate,
        cache_length=cache_length,
    )
    hidden = 4 * features if hidden_features is None else hidden_features
    inner = mlp(hidden, features, activation)
    block = pre_norm(layer_norm(epsilon=epsilon), attn, inner, dropout_rate)
    counts = cache_length is not None
    model = serial(
        embed=embedding(vocab_size, features),
        positions=learned_positions(max_length, keeps_position=counts),
        dropout=dropout(dropout_rate),
        blocks=repeat(block, num_layers, stacked=stacked),
        norm=layer_norm(epsilon=epsilon),
    )
    return _with_head(model, vocab_size, tied=True) if head else model


_AS_IT_IS = {"weight": "kernel", "bias": "bias"}

GPT2 = mapping(
    {
        "transformer.wte": "embed",
        "transformer.wpe": "positions",
        "transformer.h.{n}.ln_1": "blocks/{n}/attn_norm",
        "transformer.h.{n}.attn.c_attn": split(
            [f"blocks/{{n}}/attn/{name}" for name in ("query", "key", "value")], axis=-1
        ),
        "transformer.h.{n}.attn.c_proj": "blocks/{n}/attn/out",
        "transformer.h.{n}.ln_2": "blocks/{n}/mlp_norm",
        "transformer.h.{n}.mlp.c_fc": "blocks/{n}/mlp/up",
        "transformer.h.{n}.mlp.c_proj": "blocks/{n}/mlp/down",
        "transformer.ln_f": "norm",
        "lm_head": tied("embed"),
    },
    prefix="transformer.",
    ignore=("*.attn.bias", "*.attn.masked_bias"),
    conventions={"dense": _AS_IT_IS, "projection": _AS_IT_IS},  # a Conv1D's (in, out)
)


def gpt2_options(config: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `gpt2` that a config of transformers stands for."""
    refuse("gpt2", config, {
        "scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False,
        "add_cross_attention": False, "tie_word_embeddings": True,
    })  # fmt: skip
    return {
        "vocab_size": config.get("vocab_size", 50257),
        "max_length": config.get("n_positions", 1024),
        "features": config.get("n_embd", 768),
        "num_layers": config.get("n_layer", 12),
        "num_heads": config.get("n_head", 12),
        "hidden_features": config.get("n_inner"),
        "activation": activation("gpt2", config.get("activation_function", "gelu_new")),
        "epsilon": config.get("layer_norm_epsilon", 1e-5),
        "head": architecture(config) != "GPT2Model",
    }


@layer
def llama(
    *,
    vocab_size: int = 32000,
    features: int = 4096,
    hidden_features: int = 11008,
    num_layers: int = 32,
    num_heads: int = 32,
    num_kv_heads: int | None = None,
    head_dim: int | None = None,
    theta: float = 10_000.0,
    scaling: Mapping[str, Any] | None = None,
    epsilon: float = 1e-6,
    use_attention_bias: bool = False,
    use_mlp_bias: bool = False,
    tied: bool = False,
    dropout_rate: float = 0.0,
    cache_length: int | None = None,
    head: bool = True,
    stacked: bool = True,
    name: str | None = None,
) -> Any:
    """Llama: the logits of each token's next one.

    Args:
        vocab_size: how many tokens there are.
        features: width.
        hidden_features: width inside of a block's MLP.
        num_layers: how many blocks.
        num_heads: heads of attention in each.
        num_kv_heads: heads of keys and values; None: as many.
        head_dim: features of a head; None: the width over `num_heads`.
        theta: base of the rotary positions.
        scaling: what becomes of their angles in longer contexts, as configs of
            transformers say it: `{"rope_type": "linear", "factor": 2.0}`, or "llama3".
        epsilon: of the norms.
        use_attention_bias: whether attention's projections have biases.
        use_mlp_bias: whether the MLP's have.
        tied: whether the last layer's weights are the embedding's.
        dropout_rate: after attention and the MLP, and of the weights of attention;
            training only.
        cache_length: how many tokens can be decoded one by one, as `generate` does;
            None: no cache.
        head: whether there are logits; or a vector for each token.
        stacked: whether the blocks are one scan over stacked params.

    Shapes:
        input: `(batch, time)`, token ids. No token sees those after it, so texts of
            different lengths are filled up at their ends, with any id.
        output: `(batch, time, vocab_size)`, or `(batch, time, features)`.

    Raises:
        ValueError: a size is not a positive int, heads do not divide, or there is no
            such scaling.

    Example:
        >>> import axonlike as al
        >>> model = al.models.llama(
        ...     vocab_size=50, features=16, hidden_features=24, num_layers=2, num_heads=4,
        ...     num_kv_heads=2)
        >>> model.output_spec(al.spec("b t", int)).shape
        (b, t, 50)

    References:
        Touvron et al., "LLaMA: Open and Efficient Foundation Language Models", 2023.
        Grattafiori et al., "The Llama 3 Herd of Models", 2024.
    """
    attn = attention(
        num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        causal=True,
        rotary=rotary(theta, frequencies=_frequencies(scaling or {})),
        dropout_rate=dropout_rate,
        cache_length=cache_length,
        use_bias=use_attention_bias,
    )
    inner = serial(
        gated=swiglu(hidden_features, use_bias=use_mlp_bias),
        down=dense(features, use_bias=use_mlp_bias),
    )
    block = pre_norm(rms_norm(epsilon=epsilon), attn, inner, dropout_rate)
    model = serial(
        embed=embedding(vocab_size, features),
        blocks=repeat(block, num_layers, stacked=stacked),
        norm=rms_norm(epsilon=epsilon),
    )
    return _with_head(model, vocab_size, tied=tied) if head else model


LLAMA = mapping(
    {
        "model.embed_tokens": "embed",
        "model.layers.{n}.input_layernorm": "blocks/{n}/attn_norm",
        "model.layers.{n}.self_attn.q_proj": "blocks/{n}/attn/query",
        "model.layers.{n}.self_attn.k_proj": "blocks/{n}/attn/key",
        "model.layers.{n}.self_attn.v_proj": "blocks/{n}/attn/value",
        "model.layers.{n}.self_attn.o_proj": "blocks/{n}/attn/out",
        "model.layers.{n}.post_attention_layernorm": "blocks/{n}/mlp_norm",
        fuse(
            ["model.layers.{n}.mlp.up_proj", "model.layers.{n}.mlp.gate_proj"], axis=0
        ): "blocks/{n}/mlp/gated",
        "model.layers.{n}.mlp.down_proj": "blocks/{n}/mlp/down",
        "model.norm": "norm",
        "lm_head": "head",
    },
    prefix="model.",
    ignore=("*.rotary_emb.inv_freq",),
)


def llama_options(config: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `llama` that a config of transformers stands for."""
    refuse("llama", config, {"hidden_act": "silu", "partial_rotary_factor": 1.0})
    rope: Any = config.get("rope_parameters") or config.get("rope_scaling") or {}
    scaled = _frequencies(rope) is not None
    refuse("llama", rope, {"partial_rotary_factor": 1.0})
    return {
        "vocab_size": config.get("vocab_size", 32000),
        "features": config.get("hidden_size", 4096),
        "hidden_features": config.get("intermediate_size", 11008),
        "num_layers": config.get("num_hidden_layers", 32),
        "num_heads": config.get("num_attention_heads", 32),
        "num_kv_heads": config.get("num_key_value_heads"),
        "head_dim": config.get("head_dim"),
        "theta": rope.get("rope_theta", config.get("rope_theta", 10_000.0)),
        "scaling": rope if scaled else None,
        "epsilon": config.get("rms_norm_eps", 1e-6),
        "use_attention_bias": config.get("attention_bias", False),
        "use_mlp_bias": config.get("mlp_bias", False),
        "tied": config.get("tie_word_embeddings", False),
        "head": architecture(config) != "LlamaModel",
    }


def _frequencies(rope: Any) -> Any:
    """The function of the angles of rotary positions that a scaling stands for."""
    if not isinstance(rope, Mapping):
        raise ValueError(
            f"llama: scaling: expected a dict with a 'rope_type', got {rope!r}."
        )
    rope = cast("Mapping[str, Any]", rope)
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return None
    if kind not in _SCALINGS:
        raise ValueError(
            f"llama: scaling: rope_type should be default, linear or llama3, got {kind!r}."
        )
    function, options = _SCALINGS[kind]
    lacking = [name for name in options.values() if name not in rope]
    if lacking:
        raise ValueError(
            f"llama: scaling: {kind} needs {lacking[0]!r}, got {dict(rope)}."
        )
    return partial(function, **{ours: rope[name] for ours, name in options.items()})


def slower(frequencies: Any, *, factor: float) -> Any:
    """Angles of rotary positions for a context that is longer by a factor."""
    return frequencies / factor


def llama3_frequencies(
    frequencies: Any, *, factor: float, low: float, high: float, length: int
) -> Any:
    """The rule of Llama 3.1: short waves stay, long ones are stretched by the factor.

    Between `length / high` and `length / low` tokens a wave is stretched in part.
    """
    waves = 2 * math.pi / frequencies
    part = np.clip((length / waves - low) / (high - low), 0, 1)
    return frequencies * (part + (1 - part) / factor)


_SCALINGS: dict[str, tuple[Any, dict[str, str]]] = {
    "linear": (slower, {"factor": "factor"}),
    "llama3": (
        llama3_frequencies,
        {
            "factor": "factor",
            "low": "low_freq_factor",
            "high": "high_freq_factor",
            "length": "original_max_position_embeddings",
        },
    ),
}
"""The function of each scaling, and what configs call its arguments."""
