"""Convolution: a formula in NumPy, PyTorch, options and errors."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from parity import close, drawn, normal, ours, reference, same_pads

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
    "1d replicate": ((2, 7, 3), {"kernel_size": 4, "padding": "REPLICATE"}),
    "1d input dilation": ((2, 5, 3), {"kernel_size": 4, "input_dilation": 3}),
    "2d same lower": ((2, 7, 8, 3), {"kernel_size": 4, "padding": "SAME_LOWER"}),
    "2d circular": ((2, 6, 5, 3), {"kernel_size": 3, "padding": "CIRCULAR"}),
    "2d circular strided": (
        (2, 6, 5, 3),
        {"kernel_size": (4, 3), "padding": "CIRCULAR", "strides": 2},
    ),
    "2d reflect dilated": (
        (2, 6, 7, 3),
        {"kernel_size": 3, "padding": "REFLECT", "kernel_dilation": (2, 1)},
    ),
    "2d input dilation": (
        (2, 4, 5, 3),
        {
            "kernel_size": 3,
            "input_dilation": (2, 3),
            "padding": ((2, 1), 2),
            "strides": 2,
        },
    ),
    "2d input dilation groups": (
        (2, 4, 5, 4),
        {"kernel_size": 3, "input_dilation": 2, "feature_group_count": 2},
    ),
    "2d pointwise strided": ((2, 6, 5, 3), {"kernel_size": 1, "strides": (2, 3)}),
    "2d pointwise padded": ((2, 6, 5, 3), {"kernel_size": 1, "padding": 1}),
    "2d patches": ((2, 6, 4, 3), {"kernel_size": (3, 2), "strides": (3, 2)}),
    "2d patches left out": (
        (2, 7, 5, 3),
        {"kernel_size": 2, "strides": 2, "padding": "VALID"},
    ),
    "2d depthwise strided dilated": (
        (2, 9, 8, 6),
        {
            "kernel_size": (2, 3),
            "strides": (2, 1),
            "kernel_dilation": (1, 2),
            "feature_group_count": 6,
        },
    ),
    "2d depthwise reflect": (
        (2, 6, 5, 4),
        {"kernel_size": 5, "padding": "REFLECT", "feature_group_count": 4},
    ),
    "1d depthwise of many taps": (
        (1, 140, 2),
        {"kernel_size": 130, "padding": "CAUSAL", "feature_group_count": 2},
    ),
    "2d groups of many channels": (
        (1, 5, 4, 40),
        {"kernel_size": 2, "feature_group_count": 2},
    ),
    "3d": ((1, 4, 5, 3, 2), {"kernel_size": (2, 3, 1)}),
    "3d strided groups": (
        (2, 5, 4, 3, 4),
        {"kernel_size": 3, "strides": 2, "feature_group_count": 4},
    ),
    "4d": ((1, 3, 2, 3, 2, 2), {"kernel_size": 2, "strides": (2, 1, 1, 1)}),
    "4d depthwise": ((1, 3, 2, 3, 2, 3), {"kernel_size": 2, "feature_group_count": 3}),
}
FEATURES = 12
MODES = {"CIRCULAR": "wrap", "REFLECT": "reflect", "REPLICATE": "edge"}


def _axes(value, ndim):
    return (value,) * ndim if isinstance(value, int) else tuple(value)


def _geometry(shape, options):
    """Kernel size, strides, dilation and padding of each spatial axis."""
    ndim = len(shape) - 2
    names = ("kernel_size", "strides", "kernel_dilation", "input_dilation")
    kernel, strides, dilation, holes = (_axes(options.get(n, 1), ndim) for n in names)
    extent = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
    sizes = [(n - 1) * h + 1 for n, h in zip(shape[1:-1], holes, strict=True)]
    padding = options.get("padding", "SAME")
    if padding in {"SAME", "SAME_LOWER"}:
        pads = list(map(same_pads, sizes, extent, strides))
        pads = pads if padding == "SAME" else [(high, low) for low, high in pads]
    elif padding == "VALID":
        pads = [(0, 0)] * ndim
    elif padding == "CAUSAL":
        pads = [(extent[0] - 1, 0)]
    elif padding in MODES:
        pads = [((n - 1) // 2, n // 2) for n in extent]
    else:
        pads = [_axes(p, 2) for p in _axes(padding, ndim)]
    return kernel, strides, dilation, pads


def _padded(x, shape, options):
    """The input with its holes and its padding, in float32 NumPy."""
    ndim = len(shape) - 2
    holes = _axes(options.get("input_dilation", 1), ndim)
    sizes = [(n - 1) * h + 1 for n, h in zip(shape[1:-1], holes, strict=True)]
    wide = np.zeros((shape[0], *sizes, shape[-1]), x.dtype)
    wide[(slice(None), *(slice(None, None, h) for h in holes))] = x
    mode = MODES.get(str(options.get("padding")), "constant")
    return np.pad(wide, [(0, 0), *_geometry(shape, options)[3], (0, 0)], mode)


def _formula(x, kernel, bias, shape, options):
    """The definition: for each output position, the kernel times what it lies on."""
    sizes, strides, dilation, _ = _geometry(shape, options)
    groups = options.get("feature_group_count", 1)
    x = _padded(x.astype(np.float64), shape, options)
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


def _by_torch(params, x, weight, shape, options):
    """Output and gradients; torch pads nothing and leaves no holes: that is done here."""
    import torch

    _, strides, dilation, _ = _geometry(shape, options)
    groups = options.get("feature_group_count", 1)
    leaves = [
        torch.tensor(np.ascontiguousarray(a), requires_grad=True)
        for a in (x, params["kernel"], params.get("bias", np.zeros(FEATURES, "f")))
    ]
    tx, tk, tb = leaves
    places = _padded(
        np.arange(x.size, dtype=np.float64).reshape(shape) + 1, shape, options
    )
    index = torch.tensor(places.astype(np.int64))
    flat = torch.cat([torch.zeros(1), tx.reshape(-1)])
    lies = flat[index].movedim(-1, 1)
    convolve = getattr(torch.nn.functional, f"conv{len(shape) - 2}d")
    ty = convolve(lies, tk.movedim((-1, -2), (0, 1)), tb, strides, 0, dilation, groups)
    ty = ty.movedim(1, -1)
    (ty * torch.tensor(weight)).sum().backward()
    return {"y": ty, "x": tx.grad, "kernel": tk.grad, "bias": tb.grad}


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_conv_is_the_formula_and_its_gradients_are_those_of_torch(name):
    shape, options = CONFIGS[name]
    layer = al.conv(FEATURES, **options)
    x, ndim = normal(0, *shape), len(shape) - 2
    params = drawn(jax.eval_shape(layer.init, KEY, x)[0])
    groups, sizes = options.get("feature_group_count", 1), options["kernel_size"]
    assert params["kernel"].shape == (
        *_axes(sizes, ndim),
        shape[-1] // groups,
        FEATURES,
    )
    bias = params.get("bias", np.zeros(FEATURES, np.float32))
    desired = _formula(x, params["kernel"], bias, shape, options)
    assert layer.output_spec(shape).shape == desired.shape
    assert layer.output_spec((None, *shape[1:])).shape[1:] == desired.shape[1:]
    weight = normal(1, *desired.shape)
    y, grads, for_x, _ = ours(layer, params, x, weight)
    close(y, desired)
    if ndim > 3 or not shape[0]:
        return
    theirs = reference(
        f"conv/{name}", lambda: _by_torch(params, x, weight, shape, options)
    )
    close(y, theirs["y"])
    close(for_x, theirs["x"])
    for param, gradient in grads.items():
        close(gradient, theirs[param])


@pytest.mark.parametrize("options", [{}, {"input_dilation": 3}, {"kernel_dilation": 2}])
def test_strides_over_unknown_sizes_export_with_their_gradients(options):
    layer = al.conv(2, 3, strides=2, **options)
    spec = al.spec("b n 2")
    params = drawn(layer.init(KEY, spec)[0])

    def loss(params, x):
        return jnp.sum(jnp.sin(layer.predict(params, {}, x)))

    step = jax.jit(jax.value_and_grad(loss, (0, 1)))
    struct = jax.ShapeDtypeStruct(spec.shape, spec.dtype)
    call = jax.export.export(step)(params, struct).call
    for size in (7, 8):
        x = normal(4, 3, size, 2)
        jax.tree.map(close, call(params, x), step(params, x))


@pytest.mark.parametrize(
    "layer",
    [
        al.conv(2, 4, padding="CIRCULAR"),
        al.conv(2, 3, padding="REFLECT"),
        al.conv(2, 4, padding="REPLICATE"),
        al.conv_transpose(2, 4, strides=2, padding="CIRCULAR"),
        al.blur_pool(),
    ],
    ids=lambda layer: f"{layer.kind} {layer.config['padding']}",
)
def test_paddings_by_values_of_unknown_sizes_are_those_of_known_ones(layer):
    spec = al.spec("b n 2")
    params = drawn(layer.init(KEY, spec)[0])
    struct = jax.ShapeDtypeStruct(spec.shape, spec.dtype)
    predict = jax.jit(lambda x: layer.predict(params, {}, x))
    call = jax.export.export(predict)(struct).call
    for size in (4, 7):
        x = normal(4, 3, size, 2)
        close(call(x), predict(x))


def test_same_padding_of_unknown_sizes_keeps_them():
    spec = al.conv(8, 3).output_spec(al.spec("b h w 2"))
    assert str(spec.shape) == "(b, h, w, 8)"
    spec = al.conv(8, 3, padding="VALID").output_spec(al.spec("b h w 2"))
    assert str(spec.shape[1]) in {"h - 2", "max(h - 2, 0)", "max(0, h - 2)"}
    spec = al.conv(8, 3, strides=2).output_spec(al.spec("b 2*h 2*w 2"))
    assert spec.ndim == 4


@pytest.mark.parametrize(
    ("padding", "kernel_size", "strides"),
    [("CIRCULAR", (4, 3), 2), ("REFLECT", (3, 4), (1, 2)), ("SAME", 2, 2)],
)
def test_paddings_and_masks_are_those_of_flax(padding, kernel_size, strides):
    x, weight = normal(0, 2, 6, 5, 3), normal(1, 2, 6, 5, 4)
    mask = np.tril(np.ones((*_axes(kernel_size, 2), 3, 4), np.float32))
    layer = al.conv(4, kernel_size, strides, padding=padding, mask=mask)
    params = drawn(jax.eval_shape(layer.init, KEY, x)[0])
    weight = normal(1, *layer.output_spec(x.shape).shape)

    def by_flax():
        from flax import linen

        sizes = _axes(kernel_size, 2)
        model = linen.Conv(4, sizes, strides, padding=padding, mask=mask)

        def loss(params, x):
            y = model.apply({"params": params}, x)
            return jnp.sum(y * weight), y

        with jax.numpy_rank_promotion("allow"):
            step = jax.jit(jax.grad(loss, (0, 1), has_aux=True))
            (for_params, for_x), y = step(params, x)
        return {"y": y, "x": for_x, **for_params}

    theirs = reference(f"conv/flax {padding} {kernel_size}", by_flax)
    y, grads, for_x, _ = ours(layer, params, x, weight)
    for found, desired in ((y, "y"), (for_x, "x")):
        close(found, theirs[desired])
    for param, gradient in grads.items():
        close(gradient, theirs[param])


def test_the_mask_must_have_the_shape_of_the_kernel():
    with pytest.raises(al.ShapeError) as error:
        al.conv(4, 3, mask=np.ones((3, 2, 4))).init(KEY, (None, 5, 3))
    assert str(error.value) == (
        "conv: expected a mask of shape (3, 3, 4), got float64[3, 2, 4]. Give it the "
        "shape of the kernel that it multiplies."
    )


def test_another_convolution_is_called_in_place_of_that_of_jax():
    seen = []

    def convolve(x, kernel, window_strides, padding, **options):
        seen.append((window_strides, padding, options["feature_group_count"]))
        return -jax.lax.conv_general_dilated(
            x, kernel, window_strides, padding, **options
        )

    x = normal(0, 2, 6, 5, 4)
    options = {"strides": 2, "feature_group_count": 2}
    layer = al.conv(4, 3, conv_general_dilated=convolve, **options)
    params = drawn(jax.eval_shape(layer.init, KEY, x)[0])
    params["bias"] = np.zeros(4, np.float32)
    seen.clear()
    y = layer.predict(params, {}, x)
    assert seen == [((2, 2), [(0, 1), (1, 1)], 2)]
    close(y, -al.conv(4, 3, **options).predict(params, {}, x))


GROUPED = {
    "depthwise": {"features": 4, "feature_group_count": 4},
    "depthwise, wide": {"features": 8, "feature_group_count": 4, "kernel_size": 4},
    "groups": {"features": 6, "feature_group_count": 2},
}


@pytest.mark.parametrize("name", GROUPED)
def test_every_derivative_of_groups_is_that_of_xla(name):
    options = {"kernel_size": (3, 2), "strides": (2, 1)} | GROUPED[name]
    layer, x = al.conv(use_bias=False, **options), normal(0, 2, 5, 4, 4)
    params = drawn(jax.eval_shape(layer.init, KEY, x)[0])

    def ours(kernel, x):
        return layer.predict({"kernel": kernel}, {}, x)

    def plain(kernel, x):
        groups = options["feature_group_count"]
        return jax.lax.conv_general_dilated(
            x,
            kernel,
            (2, 1),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=groups,
        )

    def several(function):
        def loss(kernel, x):
            return jnp.sum(jnp.tanh(function(kernel, x)))

        def both(kernel, x):
            grads = jax.grad(loss, (0, 1))
            tangents = (jnp.cos(kernel), jnp.sin(x))
            vmapped = jax.vmap(function, (None, 0))(kernel, jnp.stack([x, -x]))
            kernels = jax.vmap(function, (0, None))(jnp.stack([kernel, kernel * 2]), x)
            return (
                jax.jvp(grads, (kernel, x), tangents),
                jax.jvp(lambda x: function(kernel, x), (x,), tangents[1:]),
                jax.grad(loss, 0)(kernel, x),
                jax.grad(loss, 1)(kernel, x),
                vmapped,
                kernels,
            )

        return jax.jit(both)(params["kernel"], x)

    jax.tree.map(close, several(ours), several(plain))


def test_groups_do_not_see_one_another_even_where_there_is_no_number():
    layer, x = al.conv(4, 3, feature_group_count=4), normal(0, 2, 5, 4, 4)
    params = drawn(jax.eval_shape(layer.init, KEY, x)[0])
    y = layer.predict(params, {}, jnp.asarray(x).at[0, 0, 0, 1].set(jnp.nan))
    assert np.isnan(y[..., 1]).any()
    assert not np.isnan(y[..., np.array([0, 2, 3])]).any()


def test_groups_are_left_to_xla_where_it_is_no_cpu():
    layer, x = al.conv(4, 3, feature_group_count=4), jnp.ones((2, 5, 4, 4))
    params = drawn(jax.eval_shape(layer.init, KEY, x)[0])
    traced = jax.jit(layer.predict).trace(params, {}, x)
    cpu = traced.lower(lowering_platforms=("cpu",)).as_text()
    cuda = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert "stablehlo.convolution" not in cpu
    assert "feature_group_count = 4" in cuda
    assert "stablehlo.slice" not in cuda


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
        "conv: kernel_size must be a positive int or one for each spatial axis, got "
        "(3, 0).",
    ),
    "no axes": (
        (8, ()),
        {},
        "conv: kernel_size must be a positive int or one for each spatial axis, got ().",
    ),
    "strides": (
        (8, 3),
        {"strides": 1.5},
        "conv: strides must be a positive int or one for each spatial axis, got 1.5.",
    ),
    "agreement": (
        (8, (3, 3)),
        {"strides": (1, 1, 1)},
        "conv: strides must have as many items as kernel_size (3, 3), got (1, 1, 1).",
    ),
    "agreement of others": (
        (8, 3),
        {"strides": (1, 2), "kernel_dilation": (1,)},
        "conv: kernel_dilation must have as many items as strides (1, 2), got (1,).",
    ),
    "padding": (
        (8, 3),
        {"padding": "same"},
        "conv: padding must be one of SAME, SAME_LOWER, VALID, CAUSAL, CIRCULAR, REFLECT, "
        "REPLICATE, an int from 0 on, or for each spatial axis such an int or a pair "
        "(low, high), got 'same'.",
    ),
    "negative padding": (
        (8, 3),
        {"padding": -1},
        "conv: padding must be one of SAME, SAME_LOWER, VALID, CAUSAL, CIRCULAR, REFLECT, "
        "REPLICATE, an int from 0 on, or for each spatial axis such an int or a pair "
        "(low, high), got -1.",
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
        "Option (3, 3) is for 2 spatial axes.",
    ),
    "rank of strides": (
        al.conv(8, 3, strides=(2, 2)),
        (4, 28, 28),
        "conv: expected (batch, n, n, channels), got float32[4, 28, 28]. "
        "Option (2, 2) is for 2 spatial axes.",
    ),
    "rank of an int": (
        al.conv(8, 3),
        (4, 28),
        "conv: expected (batch, *spatial, channels) with 1 or more spatial axes, got "
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
