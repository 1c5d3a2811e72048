"""Models of images: ResNet and ViT."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Literal, cast

import jax

from axonlike.combinators.basic import identity, residual, serial
from axonlike.combinators.lifted import repeat
from axonlike.errors import ShapeError
from axonlike.io.mapping import mapping
from axonlike.layer import Layer, layer
from axonlike.layers.attention import attention
from axonlike.layers.batch_norm import batch_norm
from axonlike.layers.checks import is_int, positive
from axonlike.layers.conv import conv
from axonlike.layers.dropout import dropout
from axonlike.layers.linear import dense
from axonlike.layers.norm import layer_norm
from axonlike.layers.pool import max_pool
from axonlike.layers.pool_global import global_avg_pool
from axonlike.layers.positions import learned_positions
from axonlike.layers.vision import class_token, patch_embedding
from axonlike.models.blocks import (
    Activation,
    activation,
    architecture,
    exact_gelu,
    first_token,
    mlp,
    num_labels,
    pre_norm,
    refuse,
)
from axonlike.spec import is_unknown
from axonlike.types import Array

Block = Literal["basic", "bottleneck"]


@layer
def resnet(
    *,
    embedding_size: int = 64,
    widths: Sequence[int] = (256, 512, 1024, 2048),
    depths: Sequence[int] = (3, 4, 6, 3),
    block: Block = "bottleneck",
    activation: Activation = jax.nn.relu,
    downsample_in_first_stage: bool = False,
    downsample_in_bottleneck: bool = False,
    momentum: float = 0.9,
    num_labels: int | None = 1000,
    name: str | None = None,
) -> Any:
    """ResNet: the logits of an image.

    Args:
        embedding_size: channels of the first convolution.
        widths: channels of each stage.
        depths: blocks of each stage.
        block: "basic" for two convolutions of 3x3 in a block (ResNet-18, 34),
            "bottleneck" for 1x1, 3x3 and 1x1 (ResNet-50 and larger).
        activation: after each norm and each sum.
        downsample_in_first_stage: whether the first stage halves the image too.
        downsample_in_bottleneck: whether a bottleneck halves it in its first
            convolution, or in its second one.
        momentum: of the running statistics.
        num_labels: how many logits; None: the last stage's image of features.

    Shapes:
        input: `(batch, height, width, channels)`.
        output: `(batch, num_labels)`, or `(batch, height / 32, width / 32, widths[-1])`
            of four stages.

    Raises:
        ValueError: a size is not a positive int, there is no such block, or there are
            not as many widths as depths.

    Example:
        >>> import axonlike as al
        >>> model = al.models.resnet(
        ...     embedding_size=8, widths=(8, 16), depths=(1, 1), block="basic",
        ...     num_labels=3)
        >>> model.output_spec(al.spec("b 32 32 3")).shape
        (b, 3)

    References:
        He et al., "Deep Residual Learning for Image Recognition", CVPR 2016.
    """
    if block not in ("basic", "bottleneck"):
        raise ValueError(
            f"resnet: block must be 'basic' or 'bottleneck', got {block!r}."
        )
    for option, sizes in {"widths": widths, "depths": depths}.items():
        several = isinstance(sizes, (list, tuple))
        if not several or not all(is_int(n) and n > 0 for n in sizes):
            raise ValueError(
                f"resnet: {option} must be a list of positive ints, got {sizes!r}."
            )
    if len(widths) != len(depths) or not depths:
        raise ValueError(
            f"resnet: widths and depths need one number for each stage, got {widths} and "
            f"{depths}."
        )
    options = block, activation, downsample_in_bottleneck, momentum
    stages: dict[str, Any] = {}
    before = embedding_size
    for i, (width, depth) in enumerate(zip(widths, depths, strict=True)):
        stride = 2 if i or downsample_in_first_stage else 1
        blocks = _blocks(depth, before, width, stride, options)
        stages[f"stage_{i}"] = serial(**dict(blocks))
        before = width
    features = serial(
        conv_0=_conv(embedding_size, 7, 2),
        norm_0=batch_norm(momentum=momentum),
        act=activation,
        pool=max_pool(3, 2, padding=1),
        **stages,
    )
    if num_labels is None:
        return features
    return features >> serial(mean=global_avg_pool(), head=dense(num_labels))


def _blocks(
    depth: int, before: int, width: int, stride: int, options: tuple[Any, ...]
) -> Iterator[tuple[str, Any]]:
    """The blocks of a stage, the first of which may halve the image."""
    for j in range(depth):
        yield f"block_{j}", _block(before, width, stride, *options)
        before, stride = width, 1


def _block(
    before: int,
    width: int,
    stride: int,
    block: Block,
    activation: Activation,
    downsample_in_bottleneck: bool,
    momentum: float,
) -> Layer:
    """Convolutions, added to what came in, and an activation of the sum."""
    if block == "basic":
        shapes = [(width, 3, stride), (width, 3, 1)]
    else:
        first, second = (stride, 1) if downsample_in_bottleneck else (1, stride)
        shapes = [(width // 4, 1, first), (width // 4, 3, second), (width, 1, 1)]
    body: dict[str, Any] = {}
    for k, shape in enumerate(shapes):
        body |= {f"act_{k}": activation} if k else {}
        body |= {f"conv_{k}": _conv(*shape), f"norm_{k}": batch_norm(momentum=momentum)}
    shortcut: Layer = identity
    if before != width or stride != 1:
        shortcut = serial(
            conv=_conv(width, 1, stride), norm=batch_norm(momentum=momentum)
        )
    return serial(residual(serial(**body), shortcut=shortcut), activation)


def _conv(features: int, size: int, stride: int) -> Layer:
    return conv(features, (size, size), stride, padding=size // 2, use_bias=False)


_LAYER = "resnet.encoder.stages.{s}.layers.{b}"

RESNET = mapping(
    {
        "resnet.embedder.embedder.convolution": "conv_0",
        "resnet.embedder.embedder.normalization": "norm_0",
        f"{_LAYER}.layer.{{k}}.convolution": "stage_{s}/block_{b}/conv_{k}",
        f"{_LAYER}.layer.{{k}}.normalization": "stage_{s}/block_{b}/norm_{k}",
        f"{_LAYER}.shortcut.convolution": "stage_{s}/block_{b}/shortcut/conv",
        f"{_LAYER}.shortcut.normalization": "stage_{s}/block_{b}/shortcut/norm",
        "classifier.1": "head",
    },
    prefix="resnet.",
)


def resnet_options(config: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `resnet` that a config of transformers stands for."""
    refuse("resnet", config, {"hidden_act": "relu"})  # theirs is relu inside of blocks
    classifies = architecture(config) != "ResNetModel"
    return {
        "embedding_size": config.get("embedding_size", 64),
        "widths": tuple(config.get("hidden_sizes", (256, 512, 1024, 2048))),
        "depths": tuple(config.get("depths", (3, 4, 6, 3))),
        "block": config.get("layer_type", "bottleneck"),
        "downsample_in_first_stage": config.get("downsample_in_first_stage", False),
        "downsample_in_bottleneck": config.get("downsample_in_bottleneck", False),
        "num_labels": num_labels(config) if classifies else None,
    }


@layer
def vit(
    *,
    patch_size: int = 16,
    features: int = 768,
    hidden_features: int = 3072,
    num_layers: int = 12,
    num_heads: int = 12,
    activation: Activation = exact_gelu,
    epsilon: float = 1e-12,
    use_qkv_bias: bool = True,
    num_patches: int = 196,
    num_labels: int | None = 1000,
    dropout_rate: float = 0.0,
    stacked: bool = True,
    name: str | None = None,
) -> Any:
    """Vision transformer: the logits of an image.

    Args:
        patch_size: pixels along each side of a patch.
        features: width.
        hidden_features: width inside of a block's MLP.
        num_layers: how many blocks.
        num_heads: heads of attention in each.
        activation: of the MLP.
        epsilon: of the norms.
        use_qkv_bias: whether queries, keys and values have biases.
        num_patches: how many patches an image has.
        num_labels: how many logits; None: a vector for each patch instead, that of the
            class token first.
        dropout_rate: after the positions, attention and the MLP, and of the weights of
            attention; training only.
        stacked: whether the blocks are one scan over stacked params.

    Shapes:
        input: `(batch, height, width, channels)`.
        output: `(batch, num_labels)`, or `(batch, 1 + num_patches, features)`.

    Raises:
        ValueError: a size is not a positive int, or heads do not divide the width.

    Example:
        >>> import axonlike as al
        >>> model = al.models.vit(
        ...     patch_size=8, features=16, num_layers=1, num_heads=2, num_patches=4,
        ...     num_labels=3)
        >>> model.output_spec(al.spec("b 16 16 3")).shape
        (b, 3)

    References:
        Dosovitskiy et al., "An Image is Worth 16x16 Words", ICLR 2021.
    """
    positive("vit", num_patches=num_patches)
    attn = attention(
        num_heads, dropout_rate=dropout_rate, use_bias=use_qkv_bias, use_out_bias=True
    )
    norm = layer_norm(epsilon=epsilon)
    inner = mlp(hidden_features, features, activation)
    block = pre_norm(norm, attn, inner, dropout_rate)
    encoder = serial(
        patches=patch_embedding(features, patch_size),
        checked=partial(exactly, count=num_patches),
        class_token=class_token(),
        positions=learned_positions(num_patches + 1),
        dropout=dropout(dropout_rate),
        blocks=repeat(block, num_layers, stacked=stacked),
        norm=norm,
    )
    if num_labels is None:
        return encoder
    return encoder >> serial(first=first_token, head=dense(num_labels))


def exactly(x: Array, *, count: int) -> Array:
    """The patches of an image, as many as there are positions.

    Raises:
        ShapeError: there are more or fewer.
    """
    if not is_unknown(x.shape[1]) and x.shape[1] != count:
        hint = "Resize it, or build the model with num_patches=."
        raise ShapeError("vit", f"an image of {count} patches", str(x.shape[1]), hint)
    return x


VIT = mapping(
    {
        "vit.embeddings.cls_token": "class_token/token",
        "vit.embeddings.patch_embeddings.projection": "patches",
        "vit.embeddings.position_embeddings": "positions/embedding",
        "vit.encoder.layer.{n}.layernorm_before": "blocks/{n}/attn_norm",
        "vit.encoder.layer.{n}.attention.attention.query": "blocks/{n}/attn/query",
        "vit.encoder.layer.{n}.attention.attention.key": "blocks/{n}/attn/key",
        "vit.encoder.layer.{n}.attention.attention.value": "blocks/{n}/attn/value",
        "vit.encoder.layer.{n}.attention.output.dense": "blocks/{n}/attn/out",
        "vit.encoder.layer.{n}.layernorm_after": "blocks/{n}/mlp_norm",
        "vit.encoder.layer.{n}.intermediate.dense": "blocks/{n}/mlp/up",
        "vit.encoder.layer.{n}.output.dense": "blocks/{n}/mlp/down",
        "vit.layernorm": "norm",
        "classifier": "head",
    },
    prefix="vit.",
    ignore=("*pooler.dense.*",),
    conventions={"learned_positions": {"": ("embedding", "1 time n -> time n")}},
)


def image_size(config: Mapping[str, Any]) -> tuple[int, int]:
    """The height and width of a config's images: one number says both."""
    size = config.get("image_size", 224)
    sides: list[Any] = [size, size]
    if isinstance(size, (list, tuple)):
        sides = list(cast("list[Any]", size))
    if len(sides) != 2 or not all(map(is_int, sides)):
        raise TypeError(f"image_size should be one number or two, got {size!r}")
    return sides[0], sides[1]


def vit_options(config: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `vit` that a config of transformers stands for."""
    (height, width), patch = image_size(config), config.get("patch_size", 16)
    classifies = architecture(config) != "ViTModel"
    return {
        "patch_size": patch,
        "features": config.get("hidden_size", 768),
        "hidden_features": config.get("intermediate_size", 3072),
        "num_layers": config.get("num_hidden_layers", 12),
        "num_heads": config.get("num_attention_heads", 12),
        "activation": activation("vit", config.get("hidden_act", "gelu")),
        "epsilon": config.get("layer_norm_eps", 1e-12),
        "use_qkv_bias": config.get("qkv_bias", True),
        "num_patches": (height // patch) * (width // patch),
        "num_labels": num_labels(config) if classifies else None,
    }
