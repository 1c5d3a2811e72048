"""What models of images are made of, besides convolution and pooling."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from axonlike.combinators.wire import wire
from axonlike.errors import ShapeError
from axonlike.initializers import InitFunction, lecun_normal, zeros
from axonlike.layer import layer
from axonlike.layers.checks import exactly, ints, is_int, positive, some, wide
from axonlike.layers.linear import add_bias, affine, affine_params
from axonlike.layers.product import DotGeneral, product
from axonlike.layers.windows import Sizes, axes_of, check_rank
from axonlike.spec import show
from axonlike.types import Array, Key, Params, to_dtype


@layer
def squeeze_excite(
    ratio: int = 16,
    *,
    activation: Callable[[Any], Any] = jax.nn.relu,
    gate: Callable[[Any], Any] = jax.nn.sigmoid,
    use_bias: bool = True,
    kernel_init: InitFunction = lecun_normal(),
    bias_init: InitFunction = zeros(),
    param_dtype: Any = jnp.float32,
    precision: Any = None,
    dot_general: DotGeneral | None = None,
    name: str | None = None,
) -> Any:
    """Each channel times a gate, computed from the means of all channels.

    `y = x * gate(expand(activation(reduce(mean(x)))))`, the mean over all positions in
    float32 at least.

    Args:
        ratio: the width between the two dense maps is `channels // ratio`.
        activation: between them.
        gate: after them.
        use_bias: whether the two maps add a bias.
        kernel_init: initializer of their kernels.
        bias_init: initializer of their biases.
        param_dtype: dtype in which params are stored; computation follows the input's.
        precision: of the matrix products, as in `jax.lax.dot_general`.
        dot_general: called in place of `jax.lax.dot_general`.
        name: the layer's name among its siblings.

    Shapes:
        input: `(batch, *spatial, channels)` with 1 to 3 spatial axes, floating point.
        output: the input's shape and dtype.
        reduce/kernel: `(channels, channels // ratio)`; reduce/bias: `(channels //
            ratio,)`.
        expand/kernel: `(channels // ratio, channels)`; expand/bias: `(channels,)`.

    Raises:
        ValueError: `ratio` is not a positive int.
        ShapeError: the input has another rank, or fewer channels than `ratio`.

    Example:
        >>> import jax, axonlike as al
        >>> layer = al.squeeze_excite(4)
        >>> params, _ = layer.init(jax.random.key(0), al.spec("b 7 7 32"))
        >>> params["reduce"]["kernel"].shape
        (32, 8)

    References:
        Hu, Shen and Sun, "Squeeze-and-Excitation Networks", CVPR 2018.
    """
    positive("squeeze_excite", ratio=ratio)

    def excite(sub: Any, x: Any) -> Array:
        check_rank("squeeze_excite", x, 1)
        spatial = tuple(range(1, x.ndim - 1))
        means = jnp.mean(x, spatial, dtype=wide(x.dtype)).astype(x.dtype)
        gates = gate(sub.expand(activation(sub.reduce(means, x)), x))
        return x * jnp.broadcast_to(jnp.expand_dims(gates, spatial), x.shape)

    def part(ratio: int) -> Any:
        return fraction(
            ratio,
            use_bias=use_bias,
            kernel_init=kernel_init,
            bias_init=bias_init,
            param_dtype=param_dtype,
            precision=precision,
            dot_general=dot_general,
        )

    return wire(excite, reduce=part(ratio), expand=part(1))


@layer
def fraction(
    ratio: int,
    *,
    use_bias: bool = True,
    kernel_init: InitFunction = lecun_normal(),
    bias_init: InitFunction = zeros(),
    param_dtype: Any = jnp.float32,
    precision: Any = None,
    dot_general: DotGeneral | None = None,
    name: str | None = None,
) -> Any:
    """An affine map as wide as a fraction of a second input.

    Args:
        ratio: the second input's width over the output's, rounded down.
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
        output: `(..., m // ratio)`, the dtype of `x`.
        kernel: `(n, m // ratio)`.
        bias: `(m // ratio,)`.
    """

    def init(key: Key, x: Any, like: Any) -> Params:
        width = like.shape[-1] // ratio
        if is_int(width) and width == 0:
            expected = f"(batch, *spatial, channels) with at least {ratio} channels"
            raise ShapeError(
                "squeeze_excite", expected, show(like), "Use a smaller ratio."
            )
        return affine_params(
            key,
            (x.shape[-1], width),
            use_bias=use_bias,
            kernel_init=kernel_init,
            bias_init=bias_init,
            dtype=param_dtype,
        )

    def apply(params: Params, x: Any, like: Any) -> Array:
        return affine(params, x, precision, dot_general)

    return init, apply


@layer
def patch_embedding(
    features: int,
    patch_size: Sizes,
    *,
    flatten: bool = True,
    use_bias: bool = True,
    kernel_init: InitFunction = lecun_normal(),
    bias_init: InitFunction = zeros(),
    param_dtype: Any = jnp.float32,
    precision: Any = None,
    dot_general: DotGeneral | None = None,
    name: str | None = None,
) -> Any:
    """An affine map of each patch of an image: a sequence of vectors.

    Equal to a convolution whose strides are its window, with that convolution's kernel.

    Args:
        features: length of a vector; positive.
        patch_size: one int for every spatial axis the input has, or 1 to 3 ints, one
            for each; divides the input's.
        flatten: whether the patches become one axis, row by row; otherwise they stay a
            grid.
        use_bias: whether to add a bias.
        kernel_init: initializer of the kernel.
        bias_init: initializer of the bias.
        param_dtype: dtype in which params are stored; computation follows the input's.
        precision: of the matrix product, as in `jax.lax.dot_general`.
        dot_general: called in place of `jax.lax.dot_general`.
        name: the layer's name among its siblings.

    Shapes:
        input: `(batch, *spatial, channels)`, floating point.
        output: `(batch, patches, features)`, or `(batch, *grid, features)`; the input's
            dtype.
        kernel: `(*patch_size, channels, features)`, LeCun normal.
        bias: `(features,)`, zeros; absent when `use_bias` is false.

    Raises:
        ValueError: an option is not a size.
        ShapeError: the input has another rank, or the patches do not divide it.

    Example:
        >>> import axonlike as al
        >>> al.patch_embedding(192, 16).output_spec(al.spec("b 224 224 3")).shape
        (b, 196, 192)
        >>> al.patch_embedding(8, 4).output_spec(al.spec("b 4*h 4*w 3")).shape
        (b, h*w, 8)

    References:
        Dosovitskiy et al., "An Image is Worth 16x16 Words", ICLR 2021.
    """
    positive("patch_embedding", features=features)
    ints("patch_embedding", "patch_size", patch_size)

    def init(key: Key, x: Any) -> Params:
        _grid(x, patch_size)
        some("patch_embedding", x)
        shape = (*axes_of(patch_size, x.ndim - 2), x.shape[-1], features)
        return affine_params(
            key,
            shape,
            use_bias=use_bias,
            kernel_init=kernel_init,
            bias_init=bias_init,
            dtype=param_dtype,
        )

    def apply(params: Params, x: Any) -> Array:
        grid = _grid(x, patch_size)
        patches = _patches(x, grid, axes_of(patch_size, x.ndim - 2))
        kernel = to_dtype(params["kernel"], x.dtype)
        flat = jnp.reshape(kernel, (patches.shape[-1], features))
        y = add_bias(params, product(patches, flat, precision, dot_general))
        return y if flatten else jnp.reshape(y, (x.shape[0], *grid, features))

    return init, apply


def _grid(x: Any, patch_size: Sizes) -> tuple[Any, ...]:
    """How many patches there are along each spatial axis."""
    check_rank("patch_embedding", x, patch_size)
    sizes = axes_of(patch_size, x.ndim - 2)
    pairs = list(zip(x.shape[1:-1], sizes, strict=True))
    if any(not is_int(n % size) or n % size != 0 for n, size in pairs):
        grid = ", ".join(f"{size}*n" for size in sizes)
        raise ShapeError(
            "patch_embedding",
            f"(batch, {grid}, channels)",
            show(x),
            "Pad or resize it; declare an unknown size as a multiple, '16*h'.",
        )
    return tuple(n // size for n, size in pairs)


def _patches(x: Any, grid: tuple[Any, ...], sizes: tuple[int, ...]) -> Array:
    """`(batch, patches, numbers of a patch)`.

    What lies together stays so: the last axis of a patch and the channels are moved as
    one, which took a third of the time on a CPU where there are 3 channels.
    """
    *first, (count, size) = zip(grid, sizes, strict=True)
    split = [*(n for pair in first for n in pair), count, size * x.shape[-1]]
    blocks = jnp.reshape(x, (x.shape[0], *split))
    axes = range(blocks.ndim)
    blocks = jnp.transpose(blocks, (0, *axes[1::2], *axes[2::2]))
    shape = (x.shape[0], math.prod(grid), math.prod(sizes) * x.shape[-1])
    return jnp.reshape(blocks, shape)


@layer
def class_token(
    num_tokens: int = 1,
    *,
    token_init: InitFunction = zeros(),
    param_dtype: Any = jnp.float32,
    name: str | None = None,
) -> Any:
    """Learned vectors put before a sequence, the same for each example.

    Args:
        num_tokens: how many; positive. More than one are known as registers.
        token_init: initializer of the vectors.
        param_dtype: dtype in which they are stored; computation follows the input's.
        name: the layer's name among its siblings.

    Shapes:
        input: `(batch, time, n)`, floating point.
        output: `(batch, num_tokens + time, n)`, the input's dtype.
        token: `(num_tokens, n)`, zeros.

    Raises:
        ValueError: `num_tokens` is not a positive int.
        ShapeError: the input has another rank, or is not floating point.

    Example:
        >>> import axonlike as al
        >>> model = al.patch_embedding(192, 16) >> al.class_token()
        >>> model.output_spec(al.spec("b 224 224 3")).shape
        (b, 197, 192)

    References:
        Dosovitskiy et al., "An Image is Worth 16x16 Words", ICLR 2021.
    """
    positive("class_token", num_tokens=num_tokens)

    def init(key: Key, x: Any) -> Params:
        _check_sequence(x)
        some("class_token", x)
        return {"token": token_init(key, (num_tokens, x.shape[-1]), param_dtype)}

    def apply(params: Params, x: Any) -> Array:
        _check_sequence(x)
        token = to_dtype(params["token"], x.dtype)[None]
        before = jnp.broadcast_to(token, (x.shape[0], num_tokens, x.shape[-1]))
        return jnp.concatenate([before, x], 1)

    return init, apply


def _check_sequence(x: Any) -> None:
    hint = "Use patch_embedding() before it, or reshape()."
    exactly("class_token", x, 3, "(batch, time, n)", hint)
