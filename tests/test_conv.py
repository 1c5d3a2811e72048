"""Convolution: a formula in NumPy, PyTorch, options and errors."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from parity import channels_first, channels_last, close, normal, ours, run, same_pads

import axonlike as al

KEY = jax.random.key(0)

# input shape, options
CONFIGS = {
    "1d": ((2, 9, 3), {"kernel_size": 3}),
    "1d even kernel": ((2, 9, 3), {"kernel_size": (4,), "padding": "VALID"}),
    "1d same strided": ((1, 11, 2), {"kernel_size": 4, "strides": 3}),
    "1d causal": ((2, 8, 3), {"kernel_size": 3, "padding": "CAUSAL"}),
    "1d causal dilated": (
        (2, 9, 3),
        {"kernel_size": 3, "padding": "CAUSAL", "kernel_dilation": 2},
    ),
    "1d causal strided": (
        (2, 9, 3),
        {"kernel_size": 2, "padding": "CAUSAL", "strides": 2},
    ),
    "1d of one": ((3, 1, 2), {"kernel_size": 5}),
    "2d": ((2, 7, 5, 3), {"kernel_size": 3}),
    "2d valid": ((1, 7, 5, 3), {"kernel_size": (2, 3), "padding": "VALID"}),
    "2d same strided": ((2, 7, 8, 3), {"kernel_size": 3, "strides": (2, 3)}),
    "2d same strided even": ((2, 8, 6, 3), {"kernel_size": (3, 2), "strides": 2}),
    "2d dilated": ((2, 9, 8, 2), {"kernel_size": 3, "kernel_dilation": (2, 3)}),
    "2d dilated strided": (
        (2, 9, 8, 2),
        {"kernel_size": (3, 2), "kernel_dilation": 2, "strides": 2},
    ),
    "2d int padding": ((2, 6, 5, 3), {"kernel_size": 3, "padding": 2}),
    "2d padding for each axis": (
        (2, 6, 5, 3),
        {"kernel_size": (3, 3), "padding": (0, (2, 1))},
    ),
    "2d groups": ((2, 6, 5, 4), {"kernel_size": 3, "feature_group_count": 2}),
    "2d depthwise": ((2, 6, 5, 3), {"kernel_size": 3, "feature_group_count": 3}),
    "2d pointwise": ((2, 6, 5, 3), {"kernel_size": 1}),
    "2d without bias": ((2, 6, 5, 3), {"kernel_size": 3, "use_bias": False}),
    "2d stride past the kernel": ((2, 9, 9, 2), {"kernel_size": 2, "strides": 4}),
    "2d empty batch": ((0, 6, 5, 3), {"kernel_size": 3}),
    "3d": ((1, 4, 5, 3, 2), {"kernel_size": (2, 3, 1)}),
    "3d strided groups": (
        (2, 5, 4, 3, 4),
        {"kernel_size": 3, "strides": 2, "feature_group_count": 4},
    ),
}
FEATURES = 12


def _axes(value, ndim):
    return (value,) * ndim if isinstance(value, int) else tuple(value)


def _geometry(shape, options):
    """Kernel size, strides, dilation and padding of each spatial axis."""
    ndim = len(shape) - 2
    names = ("kernel_size", "strides", "kernel_dilation")
    kernel, strides, dilation = (_axes(options.get(n, 1), ndim) for n in names)
    extent = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
    padding = options.get("padding", "SAME")
    if padding == "SAME":
        pads = list(map(same_pads, shape[1:-1], extent, strides))
    elif padding == "VALID":
        pads = [(0, 0)] * ndim
    elif padding == "CAUSAL":
        pads = [(extent[0] - 1, 0)]
    else:
        pads = [_axes(p, 2) for p in _axes(padding, ndim)]
    return kernel, strides, dilation, pads


def _formula(x, kernel, bias, shape, options):
    """The definition: for each output position, the kernel times what it lies on."""
    sizes, strides, dilation, pads = _geometry(shape, options)
    groups = options.get("feature_group_count", 1)
    x = np.pad(x.astype(np.float64), [(0, 0), *pads, (0, 0)])
    extent = [(k - 1) * d + 1 for k, d in zip(sizes, dilation, strict=True)]
    counts = [
        (n - e) // s + 1 for n, e, s in zip(x.shape[1:-1], extent, strides, strict=True)
    ]
    y = np.zeros((x.shape[0], *counts, kernel.shape[-1]))
    each, out = kernel.shape[-2], kernel.shape[-1] // groups
    for tap in itertools.product(*map(range, sizes)):
        here = tuple(
            slice(t * d, t * d + (c - 1) * s + 1, s)
            for t, d, c, s in zip(tap, dilation, counts, strides, strict=True)
        )
        for g in range(groups):
            lies_on = x[(slice(None), *here, slice(g * each, (g + 1) * each))]
            w = kernel[(*tap, slice(None), slice(g * out, (g + 1) * out))]
            y[..., g * out : (g + 1) * out] += lies_on @ w
    return y + bias


def _built(name):
    shape, options = CONFIGS[name]
    layer = al.conv(FEATURES, bias_init=al.initializers.normal(1.0), **options)
    x = normal(0, *shape)
    params, state = layer.init(KEY, x)
    assert state == {}
    return layer, params, x, shape, options


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_conv_is_the_formula(name):
    layer, params, x, shape, options = _built(name)
    groups = options.get("feature_group_count", 1)
    kernel = np.asarray(params["kernel"])
    sizes = _axes(options["kernel_size"], len(shape) - 2)
    assert kernel.shape == (*sizes, shape[-1] // groups, FEATURES)
    bias = np.asarray(params.get("bias", 0.0))
    y = run(layer, params, x)
    close(y, _formula(x, kernel, bias, shape, options))


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_the_predicted_spec_is_right_with_symbolic_sizes(name):
    shape, options = CONFIGS[name]
    spec = al.conv(FEATURES, **options).output_spec((None, *shape[1:]))
    y = al.conv(FEATURES, **options).output_spec(shape)
    assert tuple(spec.shape[1:]) == tuple(y.shape[1:])


def test_same_padding_of_unknown_sizes_keeps_them():
    spec = al.conv(8, 3).output_spec(al.spec("b h w 2"))
    assert str(spec.shape) == "(b, h, w, 8)"
    spec = al.conv(8, 3, padding="VALID").output_spec(al.spec("b h w 2"))
    assert str(spec.shape[1]) in {"h - 2", "max(h - 2, 0)", "max(0, h - 2)"}
    spec = al.conv(8, 3, strides=2).output_spec(al.spec("b 2*h 2*w 2"))
    assert spec.ndim == 4


@pytest.mark.parametrize("name", sorted(set(CONFIGS) - {"2d empty batch"}))
def test_conv_and_its_gradients_agree_with_torch(name):
    torch = pytest.importorskip("torch")
    layer, params, x, shape, options = _built(name)
    _, strides, dilation, pads = _geometry(shape, options)
    ndim, groups = len(shape) - 2, options.get("feature_group_count", 1)
    kernel = np.moveaxis(np.array(params["kernel"]), (-1, -2), (0, 1)).copy()
    tk = torch.tensor(kernel, requires_grad=True)
    tb = None
    if "bias" in params:
        tb = torch.tensor(np.array(params["bias"]), requires_grad=True)
    tx = torch.tensor(channels_first(x).copy(), requires_grad=True)
    flat = [n for pair in reversed(pads) for n in pair]
    convolve = getattr(torch.nn.functional, f"conv{ndim}d")
    padded = torch.nn.functional.pad(tx, flat)
    ty = convolve(padded, tk, tb, strides, 0, dilation, groups)
    weight = normal(1, *channels_last(ty).shape)
    (ty * torch.tensor(channels_first(weight).copy())).sum().backward()
    y, grads, for_x, _ = ours(layer, params, x, weight)
    close(y, channels_last(ty))
    close(for_x, channels_last(tx.grad))
    close(np.moveaxis(np.asarray(grads["kernel"]), (-1, -2), (0, 1)), tk.grad)
    if tb is not None:
        close(grads["bias"], tb.grad)


def test_causal_outputs_do_not_see_later_inputs():
    layer = al.conv(2, 3, padding="CAUSAL", kernel_dilation=2)
    x = jnp.asarray(normal(0, 1, 10, 2))
    params, _ = layer.init(KEY, x)
    seen = jax.jit(jax.jacobian(lambda x: layer.predict(params, {}, x)))(x)
    for t in range(10):
        assert not np.any(seen[:, t, :, :, t + 1 :])
        assert np.any(seen[:, t, :, :, t])


def test_bfloat16_stays_and_params_are_float32():
    layer = al.conv(4, 3)
    x = jnp.ones((2, 5, 5, 3), jnp.bfloat16)
    params, _ = layer.init(KEY, x)
    assert params["kernel"].dtype == jnp.float32
    assert layer.predict(params, {}, x).dtype == jnp.bfloat16


def test_initial_variance_counts_the_whole_window():
    params, _ = al.conv(256, 3).init(KEY, (None, 8, 8, 64))
    assert abs(float(jnp.var(params["kernel"])) * 9 * 64 - 1) < 0.02


BAD_OPTIONS = {
    "features": ((0, 3), {}, "conv: features must be a positive int, got 0."),
    "kernel_size": (
        (8, (3, 0)),
        {},
        "conv: kernel_size must be a positive int or 1 to 3 of them, got (3, 0).",
    ),
    "four axes": (
        (8, (1, 1, 1, 1)),
        {},
        "conv: kernel_size must be a positive int or 1 to 3 of them, got (1, 1, 1, 1).",
    ),
    "strides": (
        (8, 3),
        {"strides": 1.5},
        "conv: strides must be a positive int or 1 to 3 of them, got 1.5.",
    ),
    "agreement": (
        (8, (3, 3)),
        {"strides": (1, 1, 1)},
        "conv: strides must have as many items as kernel_size (3, 3), got (1, 1, 1).",
    ),
    "padding": (
        (8, 3),
        {"padding": "same"},
        "conv: padding must be one of SAME, VALID, CAUSAL, an int from 0 on, or for "
        "each "
        "spatial axis such an int or a pair (low, high), got 'same'.",
    ),
    "negative padding": (
        (8, 3),
        {"padding": -1},
        "conv: padding must be one of SAME, VALID, CAUSAL, an int from 0 on, or for "
        "each "
        "spatial axis such an int or a pair (low, high), got -1.",
    ),
    "groups": (
        (8, 3),
        {"feature_group_count": 3},
        "conv: features must be a multiple of feature_group_count 3, got 8.",
    ),
}


@pytest.mark.parametrize("name", sorted(BAD_OPTIONS))
def test_bad_options_word_for_word(name):
    args, options, message = BAD_OPTIONS[name]
    with pytest.raises(ValueError, match="conv") as error:
        al.conv(*args, **options)
    assert str(error.value) == message


BAD_INPUTS = {
    "rank": (
        al.conv(8, (3, 3)),
        (4, 28, 28),
        "conv: expected (batch, n, n, channels), got float32[4, 28, 28]. "
        "The window (3, 3) slides over 2 spatial axes.",
    ),
    "rank of an int": (
        al.conv(8, 3),
        (4, 28),
        "conv: expected (batch, *spatial, channels) with 1 to 3 spatial axes, got "
        "float32[4, 28]. Add an axis of size 1 with x[..., None] where channels are "
        "missing.",
    ),
    "groups": (
        al.conv(8, 3, feature_group_count=4),
        (1, 8, 8, 6),
        "conv: expected (batch, *spatial, channels) with channels a multiple of 4, got "
        "float32[1, 8, 8, 6]. Choose a feature_group_count that divides them.",
    ),
    "window": (
        al.conv(8, 5, padding="VALID"),
        (1, 4, 9, 1),
        "conv: expected spatial axes of at least 5 after padding, got float32[1, 4, 9, "
        "1]."
        " Use a smaller window, or padding='SAME'.",
    ),
    "causal": (
        al.conv(8, 3, padding="CAUSAL"),
        (1, 4, 9, 1),
        "conv: expected (batch, time, channels), got float32[1, 4, 9, 1]. CAUSAL "
        "padding "
        "is for one axis of time.",
    ),
    "padding": (
        al.conv(8, 3, padding=(1, 1)),
        (1, 9, 1),
        "conv: expected 2 spatial axes, as padding (1, 1) has items, got "
        "float32[1, 9, 1]. Give one item for each spatial axis.",
    ),
}


@pytest.mark.parametrize("name", sorted(BAD_INPUTS))
def test_bad_inputs_word_for_word(name):
    layer, shape, message = BAD_INPUTS[name]
    with pytest.raises(al.ShapeError) as error:
        layer.init(KEY, jnp.ones(shape))
    assert str(error.value) == message


def test_apply_refuses_other_channels_than_init_saw():
    layer = al.conv(8, 3)
    params, _ = layer.init(KEY, (None, 8, 8, 3))
    with pytest.raises(al.ShapeError, match="params were made for that width"):
        layer.predict(params, {}, jnp.ones((1, 8, 8, 4)))
