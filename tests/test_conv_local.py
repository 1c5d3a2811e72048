"""Locally connected layers: Flax, a convolution with equal kernels, errors."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from parity import close, drawn, normal, ours, reference

import axonlike as al

KEY = jax.random.key(0)

# input shape, options
CONFIGS = {
    "1d": ((2, 5, 3), {"kernel_size": (3,)}),
    "1d valid": ((2, 6, 3), {"kernel_size": (4,), "padding": "VALID"}),
    "1d strided": ((1, 7, 2), {"kernel_size": (3,), "strides": 2}),
    "1d causal dilated": (
        (2, 6, 2),
        {"kernel_size": (2,), "padding": "CAUSAL", "kernel_dilation": 3},
    ),
    "1d of one": ((3, 1, 2), {"kernel_size": (3,)}),
    "1d circular": ((2, 5, 2), {"kernel_size": (4,), "padding": "CIRCULAR"}),
    "1d reflect": ((2, 5, 2), {"kernel_size": (3,), "padding": "REFLECT"}),
    "1d holes": (
        (2, 4, 2),
        {"kernel_size": (3,), "input_dilation": 2, "padding": ((1, 2),)},
    ),
    "2d": ((2, 4, 3, 2), {"kernel_size": (3, 2)}),
    "2d even": ((2, 4, 3, 2), {"kernel_size": (2, 2), "padding": "VALID"}),
    "2d strided": ((2, 5, 4, 2), {"kernel_size": (3, 3), "strides": (2, 3)}),
    "2d dilated": ((1, 5, 4, 2), {"kernel_size": (2, 2), "kernel_dilation": (2, 1)}),
    "2d explicit": ((2, 3, 4, 2), {"kernel_size": (3, 2), "padding": ((0, 2), (1, 0))}),
    "2d one number": ((2, 3, 4, 2), {"kernel_size": (3, 2), "padding": 1}),
    "2d pointwise": ((2, 3, 4, 2), {"kernel_size": (1, 1)}),
    "2d one position": ((2, 3, 3, 2), {"kernel_size": (3, 3), "padding": "VALID"}),
    "2d without bias": ((2, 3, 3, 2), {"kernel_size": (2, 2), "use_bias": False}),
    "2d one example": ((1, 3, 3, 2), {"kernel_size": (2, 2), "strides": 2}),
    "2d circular": ((2, 3, 4, 2), {"kernel_size": (3, 3), "padding": "CIRCULAR"}),
    "2d one channel": ((2, 4, 4, 1), {"kernel_size": (3, 3), "strides": 2}),
}


def _by_flax(options, params, x, weight):
    """Flax keeps windows flat, the channels before the taps."""
    from flax import linen

    model = linen.ConvLocal(4, **options)
    taps = len(options["kernel_size"])

    def theirs(params):
        kernel = params["kernel"]
        flat = jnp.moveaxis(kernel, -2, -2 - taps)
        shape = (*kernel.shape[:taps], -1, kernel.shape[-1])
        return {**params, "kernel": jnp.reshape(flat, shape)}

    def loss(params, x):
        y = model.apply({"params": theirs(params)}, x)
        return jnp.sum(y * weight), y

    with jax.numpy_rank_promotion("allow"):
        step = jax.jit(jax.grad(loss, (0, 1), has_aux=True))
        (grads, for_x), y = step(params, x)
    return {"y": y, "x": for_x, **grads}


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_conv_local_and_its_gradients_are_those_of_flax(name):
    shape, options = CONFIGS[name]
    layer, x = al.conv_local(4, **options), normal(0, *shape)
    params = drawn(jax.eval_shape(layer.init, KEY, x)[0])
    weight = normal(1, *layer.output_spec(shape).shape)
    theirs = reference(
        f"conv_local/{name}", lambda: _by_flax(options, params, x, weight)
    )
    y, grads, for_x, _ = ours(layer, params, x, weight)
    close(y, theirs["y"])
    close(for_x, theirs["x"])
    for param, gradient in grads.items():
        close(gradient, theirs[param])


def test_with_one_kernel_everywhere_it_is_conv():
    options = {"strides": 2, "kernel_dilation": (1, 2), "use_bias": False}
    x, kernel = normal(0, 2, 5, 7, 3), normal(1, 3, 2, 3, 4)
    local = al.conv_local(4, (3, 2), **options)
    shape = jax.eval_shape(local.init, KEY, x)[0]["kernel"].shape
    everywhere = {"kernel": np.broadcast_to(kernel, shape)}
    y = local.predict(everywhere, {}, x)
    close(y, al.conv(4, (3, 2), **options).predict({"kernel": kernel}, {}, x))


def test_it_runs_on_an_empty_batch():
    layer = al.conv_local(4, 3)
    params, _ = layer.init(KEY, (None, 3, 2, 2))
    assert layer.predict(params, {}, jnp.ones((0, 3, 2, 2))).shape == (0, 3, 2, 4)


def test_each_position_has_its_own_weights_of_the_variance_of_a_conv():
    params, _ = al.conv_local(16, 3).init(KEY, (None, 5, 4, 32))
    kernel = params["kernel"]
    assert kernel.shape == (5, 4, 3, 3, 32, 16)
    assert abs(float(jnp.var(kernel)) * 9 * 32 - 1) < 0.02
    for a, b in itertools.combinations(np.reshape(kernel, (20, -1)), 2):
        assert abs(np.corrcoef(a, b)[0, 1]) < 0.1
    assert math.prod(params["bias"].shape) == 5 * 4 * 16


def test_bfloat16_stays_and_params_are_float32():
    layer = al.conv_local(4, 2)
    x = jnp.ones((2, 3, 3, 3), jnp.bfloat16)
    params, _ = layer.init(KEY, x)
    assert params["kernel"].dtype == jnp.float32
    assert layer.predict(params, {}, x).dtype == jnp.bfloat16


def test_the_spatial_sizes_stay():
    layer = al.conv_local(4, 3)
    params, _ = layer.init(KEY, (None, 4, 4, 2))
    with pytest.raises(al.ShapeError) as error:
        layer.predict(params, {}, jnp.ones((1, 5, 4, 2)))
    assert str(error.value) == (
        "conv_local: expected spatial sizes that give (4, 4) positions, got "
        "float32[1, 5, 4, 2]. The params were made for those positions."
    )
    with pytest.raises(al.ShapeError, match="params were made for that width"):
        layer.predict(params, {}, jnp.ones((1, 4, 4, 3)))


def test_bad_options_word_for_word():
    with pytest.raises(ValueError, match="conv_local") as error:
        al.conv_local(8, 3, padding="FULL")
    assert str(error.value) == (
        "conv_local: padding must be one of SAME, SAME_LOWER, VALID, CAUSAL, CIRCULAR, "
        "REFLECT, REPLICATE, an int from 0 on, or for each spatial axis such an int or "
        "a pair (low, high), got 'FULL'."
    )
    with pytest.raises(ValueError, match="conv_local") as error:
        al.conv_local(0, 3)
    assert str(error.value) == "conv_local: features must be a positive int, got 0."
