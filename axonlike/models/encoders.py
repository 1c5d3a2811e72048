"""Models that see all of a sequence at once: BERT, and PyTorch's encoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp

from axonlike.combinators.basic import identity, serial
from axonlike.combinators.lifted import repeat
from axonlike.combinators.wire import wire
from axonlike.io.mapping import mapping, split, tied
from axonlike.layer import layer
from axonlike.layers.attention import attention
from axonlike.layers.dropout import dropout
from axonlike.layers.embed import embedding
from axonlike.layers.linear import dense
from axonlike.layers.norm import layer_norm
from axonlike.layers.positions import learned_positions
from axonlike.layers.scale import bias
from axonlike.models.blocks import (
    Activation,
    activation,
    architecture,
    exact_gelu,
    first_token,
    full_mask,
    masked,
    mlp,
    num_labels,
    refuse,
    unknown,
    unpacked,
)
from axonlike.types import Array

Head = Literal["masked_lm", "pooler", "classifier"]


@layer
def bert(
    *,
    vocab_size: int = 30522,
    max_length: int = 512,
    num_types: int = 2,
    features: int = 768,
    hidden_features: int = 3072,
    num_layers: int = 12,
    num_heads: int = 12,
    activation: Activation = exact_gelu,
    epsilon: float = 1e-12,
    dropout_rate: float = 0.0,
    head: Head | None = None,
    num_labels: int = 2,
    stacked: bool = True,
    name: str | None = None,
) -> Any:
    """BERT: a vector for each token, of all tokens; or what a head makes of them.

    Args:
        vocab_size: how many tokens there are.
        max_length: how many positions there are.
        num_types: how many kinds of sentences there are.
        features: width.
        hidden_features: width inside of a block's MLP.
        num_layers: how many blocks.
        num_heads: heads of attention in each.
        activation: of the MLP, and of the head.
        epsilon: of the norms.
        dropout_rate: after the embedding, attention and the MLP, and of the weights of
            attention; training only.
        head: None: the vectors; "pooler": those, and one made of the first token;
            "masked_lm": logits of each token; "classifier": logits of `num_labels`.
        num_labels: of a classifier.
        stacked: whether the blocks are one scan over stacked params.

    Shapes:
        input: `ids`, `(batch, time)`, integers; alone or with `mask`, `(batch, time)`,
            true where there is a token, and `types`, `(batch, time)`, integers: a tuple
            in this order, or a dict.
        output: `(batch, time, features)`; "pooler": that and `(batch, features)`;
            "masked_lm": `(batch, time, vocab_size)`; "classifier": `(batch, num_labels)`.

    Raises:
        ValueError: a size is not a positive int, heads do not divide the width, or there
            is no such head.

    Example:
        >>> import axonlike as al
        >>> model = al.models.bert(
        ...     vocab_size=50, features=16, hidden_features=24, num_layers=1, num_heads=2,
        ...     head="masked_lm")
        >>> model.output_spec(al.spec("b 8", int)).shape
        (b, 8, 50)

    References:
        Devlin et al., "BERT: Pre-training of Deep Bidirectional Transformers for Language
        Understanding", NAACL 2019.
    """
    if head not in (None, "pooler", "masked_lm", "classifier"):
        raise ValueError(
            "bert: head must be None, 'pooler', 'masked_lm' or 'classifier', got "
            f"{head!r}."
        )
    attn = attention(num_heads, dropout_rate=dropout_rate)
    inner = mlp(hidden_features, features, activation)
    norm = layer_norm(epsilon=epsilon)
    block = masked(norm, attn, inner, dropout_rate, norm_first=False)
    heads: dict[str | None, dict[str, Any]] = {
        None: {},
        "masked_lm": {
            "transform": serial(dense=dense(features), act=activation, norm=norm),
            "bias": bias(),
        },
    }
    pooler = {"pooler": serial(dense=dense(features), act=jnp.tanh)}
    heads["pooler"] = pooler
    heads["classifier"] = {
        **pooler, "dropout": dropout(dropout_rate), "classifier": dense(num_labels)
    }  # fmt: skip
    runs = {None: encoded, "pooler": pooled, "masked_lm": unmasked}
    return wire(
        runs.get(head, classified),
        embed=embedding(vocab_size, features),
        positions=learned_positions(max_length),
        types=embedding(num_types, features),
        norm=norm,
        embed_dropout=dropout(dropout_rate),
        blocks=repeat(block, num_layers, stacked=stacked),
        **heads[head],
    )


def encoded(sub: Any, ids: Any, mask: Any = None, types: Any = None) -> Array:
    """A vector for each token."""
    ids, mask, types = unpacked("bert", ("ids", "mask", "types"), (ids, mask, types))
    types = jnp.zeros_like(ids) if types is None else types
    x = sub.positions(sub.embed(ids) + sub.types(types))
    return sub.blocks((sub.embed_dropout(sub.norm(x)), full_mask(x, mask)))[0]


def pooled(
    sub: Any, ids: Any, mask: Any = None, types: Any = None
) -> tuple[Array, Array]:
    """The same, and one vector made of the first token's."""
    x = encoded(sub, ids, mask, types)
    return x, sub.pooler(first_token(x))


def classified(sub: Any, ids: Any, mask: Any = None, types: Any = None) -> Array:
    """Logits of a sequence."""
    return sub.classifier(sub.dropout(pooled(sub, ids, mask, types)[1]))


def unmasked(sub: Any, ids: Any, mask: Any = None, types: Any = None) -> Array:
    """Logits of each token, by the embedding's weights."""
    x = sub.transform(encoded(sub, ids, mask, types))
    return sub.bias(sub.embed(x, attend=True))


BERT = mapping(
    {
        "bert.embeddings.word_embeddings": "embed",
        "bert.embeddings.position_embeddings": "positions",
        "bert.embeddings.token_type_embeddings": "types",
        "bert.embeddings.LayerNorm": "norm",
        "bert.encoder.layer.{n}.attention.self.query": "blocks/{n}/attn/query",
        "bert.encoder.layer.{n}.attention.self.key": "blocks/{n}/attn/key",
        "bert.encoder.layer.{n}.attention.self.value": "blocks/{n}/attn/value",
        "bert.encoder.layer.{n}.attention.output.dense": "blocks/{n}/attn/out",
        "bert.encoder.layer.{n}.attention.output.LayerNorm": "blocks/{n}/attn_norm",
        "bert.encoder.layer.{n}.intermediate.dense": "blocks/{n}/mlp/up",
        "bert.encoder.layer.{n}.output.dense": "blocks/{n}/mlp/down",
        "bert.encoder.layer.{n}.output.LayerNorm": "blocks/{n}/mlp_norm",
        "bert.pooler.dense": "pooler/dense",
        "cls.predictions.transform.dense": "transform/dense",
        "cls.predictions.transform.LayerNorm": "transform/norm",
        "cls.predictions.bias": "bias/bias",
        "cls.predictions.decoder.bias": tied("bias/bias"),
        "cls.predictions.decoder": tied("embed"),
        "classifier": "classifier",
    },
    prefix="bert.",
    ignore=("*.position_ids", "cls.seq_relationship.*"),
    older={"gamma": "weight", "beta": "bias"},
)


def bert_options(config: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `bert` that a config of transformers stands for."""
    refuse("bert", config, {
        "position_embedding_type": "absolute", "is_decoder": False,
        "add_cross_attention": False, "tie_word_embeddings": True,
    })  # fmt: skip
    return {
        "vocab_size": config.get("vocab_size", 30522),
        "max_length": config.get("max_position_embeddings", 512),
        "num_types": config.get("type_vocab_size", 2),
        "features": config.get("hidden_size", 768),
        "hidden_features": config.get("intermediate_size", 3072),
        "num_layers": config.get("num_hidden_layers", 12),
        "num_heads": config.get("num_attention_heads", 12),
        "activation": activation("bert", config.get("hidden_act", "gelu")),
        "epsilon": config.get("layer_norm_eps", 1e-12),
        "head": _bert_head(config),
        "num_labels": num_labels(config),
    }


def _bert_head(config: Mapping[str, Any]) -> str:
    heads = {
        "BertModel": "pooler",
        "BertForMaskedLM": "masked_lm",
        "BertForSequenceClassification": "classifier",
    }
    name = architecture(config) or "BertModel"
    if name not in heads:
        raise unknown("bert", "architectures", name, f"one of {', '.join(heads)}")
    return heads[name]


@layer
def transformer_encoder(
    num_heads: int,
    num_layers: int,
    *,
    features: int,
    hidden_features: int = 2048,
    activation: Activation = jax.nn.relu,
    norm_first: bool = False,
    use_norm: bool = False,
    epsilon: float = 1e-5,
    use_bias: bool = True,
    dropout_rate: float = 0.0,
    stacked: bool = True,
    name: str | None = None,
) -> Any:
    """PyTorch's `nn.TransformerEncoder`, of sequences with the batch first.

    Args:
        num_heads: heads of attention in each block.
        num_layers: how many blocks.
        features: width.
        hidden_features: width inside of a block's MLP.
        activation: of the MLP.
        norm_first: whether norms stand before attention and the MLP, or after the sums.
        use_norm: whether there is one more norm at the end.
        epsilon: of the norms.
        use_bias: whether layers and norms have biases.
        dropout_rate: after attention and the MLP, and of the weights of attention;
            training only. PyTorch has one inside of the MLP too.
        stacked: whether the blocks are one scan over stacked params.

    Shapes:
        input: `(batch, time, features)`; alone or with a mask, `(batch, time)`, true
            where there is something (in PyTorch's `src_key_padding_mask` nothing).
        output: `(batch, time, features)`.

    Raises:
        ValueError: a size is not a positive int, or heads do not divide the width.

    Example:
        >>> import axonlike as al
        >>> model = al.models.transformer_encoder(2, 1, features=16, hidden_features=24)
        >>> model.output_spec(al.spec("b t 16")).shape
        (b, t, 16)

    References:
        Vaswani et al., "Attention Is All You Need", NIPS 2017.
    """
    norm = layer_norm(epsilon=epsilon, use_bias=use_bias)
    attn = attention(num_heads, dropout_rate=dropout_rate, use_bias=use_bias)
    inner = mlp(hidden_features, features, activation, use_bias)
    block = masked(norm, attn, inner, dropout_rate, norm_first=norm_first)
    blocks = repeat(block, num_layers, stacked=stacked)
    return wire(sequenced, blocks=blocks, norm=norm if use_norm else identity)


def sequenced(sub: Any, x: Any, mask: Any = None) -> Array:
    """All blocks, and the norm at the end if there is one."""
    x, mask = unpacked("transformer_encoder", ("x", "mask"), (x, mask))
    return sub.norm(sub.blocks((x, full_mask(x, mask)))[0])


_QKV = ("query", "key", "value")

TRANSFORMER_ENCODER = mapping(
    {
        "layers.{n}.self_attn.in_proj_weight": split(
            [f"blocks/{{n}}/attn/{part}/kernel" for part in _QKV], axis=0
        ),
        "layers.{n}.self_attn.in_proj_bias": split(
            [f"blocks/{{n}}/attn/{part}/bias" for part in _QKV], axis=0
        ),
        "layers.{n}.self_attn.out_proj": "blocks/{n}/attn/out",
        "layers.{n}.linear1": "blocks/{n}/mlp/up",
        "layers.{n}.linear2": "blocks/{n}/mlp/down",
        "layers.{n}.norm1": "blocks/{n}/attn_norm",
        "layers.{n}.norm2": "blocks/{n}/mlp_norm",
        "norm": "norm",
    }
)
