"""Depthwise and separable convolution: PyTorch, NumPy, options and errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from parity import close, drawn, normal, ours, reference

import axonlike as al

KEY = jax.random.key(0)

# input shape, options; padding in numbers, so that PyTorch takes it
CONFIGS = {
    "1d": ((2, 7, 3), {"kernel_size": 3, "padding": 1}),
    "1d strided": ((2, 9, 3), {"kernel_size": 4, "strides": 3, "padding": 2}),
    "1d dilated": ((1, 9, 2), {"kernel_size": 3, "kernel_dilation": 2, "padding": 0}),
    "1d long": ((1, 40, 2), {"kernel_size": 31, "padding": 15}),
    "1d longer": ((1, 140, 2), {"kernel_size": 129, "padding": 3}),
    "1d of one": ((2, 1, 3), {"kernel_size": 3, "padding": 1}),
    "1d seventeen channels": ((2, 5, 17), {"kernel_size": 2, "padding": 0}),
    "2d": ((2, 5, 4, 3), {"kernel_size": 3, "padding": 1}),
    "2d one channel": ((2, 5, 4, 1), {"kernel_size": 3, "padding": 1}),
    "2d forty channels": ((1, 4, 3, 40), {"kernel_size": 2, "padding": 1}),
    "2d strided": ((2, 6, 5, 4), {"kernel_size": 3, "strides": 2, "padding": 1}),
    "2d uneven": (
        (2, 6, 5, 4),
        {"kernel_size": (3, 1), "strides": (1, 2), "padding": (1, 0)},
    ),
    "2d dilated": (
        (2, 7, 8, 3),
        {"kernel_size": (2, 3), "kernel_dilation": (3, 2), "padding": (0, 2)},
    ),
    "2d large": ((1, 7, 6, 4), {"kernel_size": 5, "padding": 2}),
    "2d pointwise": ((2, 3, 4, 5), {"kernel_size": 1, "padding": 0}),
    "2d twofold": (
        (2, 5, 4, 3),
        {"kernel_size": 3, "channel_multiplier": 2, "padding": 1},
    ),
    "2d threefold strided": (
        (2, 5, 6, 2),
        {"kernel_size": 2, "channel_multiplier": 3, "strides": 2, "padding": 0},
    ),
    "2d without bias": (
        (2, 5, 4, 3),
        {"kernel_size": 3, "padding": 1, "use_bias": False},
    ),
    "2d one example": ((1, 3, 3, 2), {"kernel_size": 3, "padding": 0}),
    "3d": ((1, 3, 4, 3, 2), {"kernel_size": 2, "padding": 1}),
    "3d twofold": (
        (1, 3, 2, 3, 2),
        {"kernel_size": 3, "channel_multiplier": 2, "padding": 1},
    ),
}


def _by_torch(params, x, weight, options):
    import torch

    width = params["kernel"].shape[-1]
    arrays = (x, params["kernel"], params.get("bias", np.zeros(width, np.float32)))
    tx, tk, tb = (torch.tensor(a, requires_grad=True) for a in arrays)
    function = getattr(torch.nn.functional, f"conv{x.ndim - 2}d")
    ty = function(
        tx.movedim(-1, 1),
        tk.movedim((-1, -2), (0, 1)),
        tb,
        options.get("strides", 1),
        options["padding"],
        options.get("kernel_dilation", 1),
        x.shape[-1],
    ).movedim(1, -1)
    (ty * torch.tensor(weight)).sum().backward()
    return {"y": ty, "x": tx.grad, "kernel": tk.grad, "bias": tb.grad}


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_depthwise_conv_and_its_gradients_are_those_of_torch(name):
    shape, options = CONFIGS[name]
    layer, x = al.depthwise_conv(**options), normal(0, *shape)
    params = drawn(jax.eval_shape(layer.init, KEY, x)[0])
    weight = normal(1, *layer.output_spec(shape).shape)
    theirs = reference(
        f"depthwise/{name}", lambda: _by_torch(params, x, weight, options)
    )
    y, grads, for_x, _ = ours(layer, params, x, weight)
    close(y, theirs["y"])
    close(for_x, theirs["x"])
    for param, gradient in grads.items():
        close(gradient, theirs[param])


def test_it_is_conv_with_a_group_a_channel():
    x, options = normal(0, 2, 6, 5, 4), {"strides": 2, "padding": "REFLECT"}
    layer = al.depthwise_conv(3, 2, **options)
    params = drawn(jax.eval_shape(layer.init, KEY, x)[0])
    grouped = al.conv(8, 3, feature_group_count=4, **options)
    close(layer.predict(params, {}, x), grouped.predict(params, {}, x))
    assert layer.predict(params, {}, x[:0]).shape == (0, 3, 3, 8)


def test_sizes_that_are_not_known_stay():
    spec = al.depthwise_conv(3, 2).output_spec(al.spec("b h w 4"))
    assert str(spec.shape) == "(b, h, w, 8)"


def test_bfloat16_sums_are_rounded_once():
    layer, x = al.depthwise_conv(5, use_bias=False), normal(0, 1, 9, 9, 2)
    params = drawn(jax.eval_shape(layer.init, KEY, x)[0])
    low, x = jax.tree.map(lambda a: jnp.asarray(a, jnp.bfloat16), (params, x))
    y = layer.predict(low, {}, x)
    assert y.dtype == jnp.bfloat16
    high = jax.tree.map(lambda a: a.astype(jnp.float32), (low, x))
    desired = layer.predict(high[0], {}, high[1]).astype(jnp.bfloat16)
    np.testing.assert_array_equal(y.astype("float32"), desired.astype("float32"))


def test_the_initial_variance_counts_one_channel():
    params, _ = al.depthwise_conv(5, 4).init(KEY, (None, 8, 8, 256))
    assert abs(float(jnp.var(params["kernel"])) * 25 - 1) < 0.03


SEPARABLE = {
    "1d": ((2, 7, 3), {"kernel_size": 3}),
    "2d strided": ((2, 6, 5, 3), {"kernel_size": (3, 2), "strides": 2}),
    "2d twofold": ((2, 4, 5, 2), {"kernel_size": 3, "channel_multiplier": 2}),
    "2d dilated": (
        (2, 7, 6, 2),
        {"kernel_size": 2, "kernel_dilation": 2, "padding": "VALID"},
    ),
    "3d without bias": ((1, 3, 2, 3, 2), {"kernel_size": 2, "use_bias": False}),
}


@pytest.mark.parametrize("name", sorted(SEPARABLE))
def test_separable_conv_is_one_conv_whose_kernel_is_a_product(name):
    shape, options = SEPARABLE[name]
    layer, x = al.separable_conv(4, **options), normal(0, *shape)
    params = drawn(jax.eval_shape(layer.init, KEY, x)[0])
    deep, flat = params["depthwise"]["kernel"], params["pointwise"]["kernel"]
    channels, width = shape[-1], deep.shape[-1]
    each = np.reshape(deep, (*deep.shape[:-2], channels, width // channels))
    last = np.reshape(flat, (channels, width // channels, 4))
    kernel = np.einsum("...cm,cmf->...cf", each, last)
    whole = {k: v for k, v in options.items() if k != "channel_multiplier"}
    joined = {"kernel": kernel}
    if "bias" in params["pointwise"]:
        joined["bias"] = params["pointwise"]["bias"]
    y = layer.predict(params, {}, x)
    close(y, al.conv(4, **whole).predict(joined, {}, x))


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(n, marks=[pytest.mark.slow] * (n not in ("1d", "2d strided")))
        for n in CONFIGS
    ],
)
def test_separable_conv_and_its_gradients_are_those_of_torch(name):
    shape, options = CONFIGS[name]
    layer, x = al.separable_conv(4, **options), normal(0, *shape)
    params = drawn(jax.eval_shape(layer.init, KEY, x)[0])
    weight = normal(1, *layer.output_spec(shape).shape)

    def answer():
        import torch

        deep = params["depthwise"]["kernel"]
        flat, bias = params["pointwise"]["kernel"], params["pointwise"].get("bias", [0])
        tx, td, tf, tb = (
            torch.tensor(np.asarray(a, np.float32), requires_grad=True)
            for a in (x, deep, flat, bias)
        )
        function = getattr(torch.nn.functional, f"conv{x.ndim - 2}d")
        between = function(
            tx.movedim(-1, 1),
            td.movedim((-1, -2), (0, 1)),
            None,
            options.get("strides", 1),
            options["padding"],
            options.get("kernel_dilation", 1),
            x.shape[-1],
        ).movedim(1, -1)
        ty = between @ tf.reshape(tf.shape[-2:]) + tb
        (ty * torch.tensor(weight)).sum().backward()
        return {"y": ty, "x": tx.grad, "deep": td.grad, "flat": tf.grad, "b": tb.grad}

    theirs = reference(f"depthwise/separable {name}", answer)
    y, grads, for_x, _ = ours(layer, params, x, weight)
    pointwise = grads["pointwise"]
    found = {"y": y, "x": for_x, "deep": grads["depthwise"]["kernel"]}
    for key, value in (found | {"flat": pointwise["kernel"]}).items():
        close(value, theirs[key])
    if "bias" in pointwise:
        close(pointwise["bias"], theirs["b"])


BAD = {
    "multiplier": (
        lambda: al.depthwise_conv(3, 0),
        "depthwise_conv: channel_multiplier must be a positive int, got 0.",
    ),
    "sizes": (
        lambda: al.depthwise_conv("3"),
        "depthwise_conv: kernel_size must be a positive int or one for each spatial "
        "axis, got '3'.",
    ),
    "separable multiplier": (
        lambda: al.separable_conv(3, 3, channel_multiplier=0.5),
        "separable_conv: channel_multiplier must be a positive int, got 0.5.",
    ),
    "separable agreement": (
        lambda: al.separable_conv(3, (3, 3), (2,)),
        "separable_conv: strides must have as many items as kernel_size (3, 3), got "
        "(2,).",
    ),
}


@pytest.mark.parametrize("name", sorted(BAD))
def test_bad_options_word_for_word(name):
    make, message = BAD[name]
    with pytest.raises(ValueError, match="_conv") as error:
        make()
    assert str(error.value) == message


def test_apply_refuses_other_channels_than_init_saw():
    layer = al.depthwise_conv(3, 2)
    params, _ = layer.init(KEY, (None, 8, 8, 3))
    with pytest.raises(al.ShapeError, match="params were made for that width"):
        layer.predict(params, {}, jnp.ones((1, 8, 8, 4)))
