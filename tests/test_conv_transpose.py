"""Transposed convolution: JAX's own, PyTorch, Flax, options and errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from parity import close, drawn, normal, ours, reference

import axonlike as al

KEY = jax.random.key(0)
FEATURES = 6

# input shape, options
CONFIGS = {
    "1d": ((2, 5, 3), {"kernel_size": 3}),
    "1d strided": ((2, 5, 3), {"kernel_size": 4, "strides": 3}),
    "1d valid": ((2, 5, 3), {"kernel_size": 5, "strides": 2, "padding": "VALID"}),
    "1d wide stride": ((2, 4, 3), {"kernel_size": 2, "strides": 5}),
    "1d wide stride valid": (
        (2, 4, 3),
        {"kernel_size": 2, "strides": 3, "padding": "VALID"},
    ),
    "1d many phases": ((1, 3, 2), {"kernel_size": 20, "strides": 17}),
    "1d dilated": ((2, 5, 3), {"kernel_size": 3, "strides": 2, "kernel_dilation": 3}),
    "1d dilated by the stride": (
        (2, 5, 3),
        {"kernel_size": 3, "strides": 2, "kernel_dilation": 2},
    ),
    "1d dilated by a part": (
        (2, 5, 3),
        {"kernel_size": 4, "strides": 4, "kernel_dilation": 6},
    ),
    "1d of one": ((3, 1, 2), {"kernel_size": 5, "strides": 2}),
    "2d": ((2, 4, 3, 3), {"kernel_size": 3, "strides": 2}),
    "2d even": ((2, 4, 3, 3), {"kernel_size": (4, 2), "strides": (2, 1)}),
    "2d tiles": ((2, 4, 3, 3), {"kernel_size": (2, 3), "strides": (2, 3)}),
    "2d explicit": (
        (2, 4, 3, 3),
        {"kernel_size": 3, "strides": 2, "padding": (1, (2, 0))},
    ),
    "2d one number": ((2, 4, 3, 3), {"kernel_size": 3, "strides": 3, "padding": 2}),
    "2d flipped": (
        (2, 4, 3, 3),
        {"kernel_size": 3, "strides": 2, "transpose_kernel": True},
    ),
    "2d flipped valid": (
        (1, 4, 3, 3),
        {
            "kernel_size": (2, 4),
            "strides": (3, 2),
            "transpose_kernel": True,
            "padding": "VALID",
        },
    ),
    "2d flipped dilated": (
        (2, 4, 3, 3),
        {
            "kernel_size": 3,
            "strides": 2,
            "transpose_kernel": True,
            "kernel_dilation": (1, 3),
        },
    ),
    "2d without strides": ((2, 4, 3, 3), {"kernel_size": (3, 2), "padding": "VALID"}),
    "2d without bias": (
        (2, 4, 3, 3),
        {"kernel_size": 3, "strides": 2, "use_bias": False},
    ),
    "2d empty batch": ((0, 4, 3, 3), {"kernel_size": 3, "strides": 2}),
    "3d": ((1, 3, 2, 2, 2), {"kernel_size": 3, "strides": (2, 1, 2)}),
}


def _axes(value, ndim):
    return (value,) * ndim if isinstance(value, int) else tuple(value)


def _built(shape, options):
    layer, x = al.conv_transpose(FEATURES, **options), normal(0, *shape)
    params = drawn(jax.eval_shape(layer.init, KEY, x)[0])
    return layer, params, x


def _by_jax(shape, options):
    """The same by `lax.conv_transpose`: output and gradients."""
    ndim = len(shape) - 2
    letters = "abc"[:ndim]
    padding = options.get("padding", "SAME")
    if not isinstance(padding, str):
        padding = [_axes(p, 2) for p in _axes(padding, ndim)]

    def apply(params, x):
        y = jax.lax.conv_transpose(
            x,
            params["kernel"],
            _axes(options.get("strides", 1), ndim),
            padding,
            rhs_dilation=_axes(options.get("kernel_dilation", 1), ndim),
            dimension_numbers=(f"N{letters}C", f"{letters}IO", f"N{letters}C"),
            transpose_kernel=options.get("transpose_kernel", False),
        )
        bias = params.get("bias", np.zeros(FEATURES, np.float32))
        return y + jnp.broadcast_to(bias, y.shape)

    return apply


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_conv_transpose_and_its_gradients_are_those_of_jax(name):
    shape, options = CONFIGS[name]
    layer, params, x = _built(shape, options)
    theirs = _by_jax(shape, options)
    expected = jax.eval_shape(theirs, params, x)
    assert layer.output_spec(shape).shape == expected.shape
    assert layer.output_spec((None, *shape[1:])).shape[1:] == expected.shape[1:]
    weight = normal(1, *expected.shape)

    def loss(params, x):
        y = theirs(params, x)
        return jnp.sum(y * weight), y

    (grads, for_x), y = jax.jit(jax.grad(loss, (0, 1), has_aux=True))(params, x)
    found = ours(layer, params, x, weight)
    jax.tree.map(close, found[:3], (y, grads, for_x))


# input shape, then what PyTorch calls it
TORCH = {
    "1d": ((2, 5, 4), {"kernel_size": 3, "stride": 2, "padding": 1}),
    "1d output padding": (
        (2, 5, 4),
        {"kernel_size": 5, "stride": 3, "padding": 2, "output_padding": 1},
    ),
    "2d": (
        (2, 4, 3, 4),
        {"kernel_size": 3, "stride": 2, "padding": 1, "output_padding": 1},
    ),
    "2d groups": (
        (2, 4, 3, 4),
        {"kernel_size": 4, "stride": 2, "padding": 1, "groups": 2},
    ),
    "2d dilated": ((2, 4, 3, 4), {"kernel_size": 3, "stride": 2, "dilation": 2}),
    "2d depthwise": (
        (1, 4, 3, 2),
        {"kernel_size": 3, "stride": 2, "padding": 1, "groups": 2},
    ),
    "3d": ((1, 2, 3, 2, 4), {"kernel_size": 2, "stride": 2}),
}


def _by_torch(params, x, weight, options):
    import torch

    arrays = (x, params["kernel"], params["bias"])
    tx, tk, tb = (torch.tensor(a, requires_grad=True) for a in arrays)
    function = getattr(torch.nn.functional, f"conv_transpose{x.ndim - 2}d")
    kernel = tk.movedim((-1, -2), (0, 1))
    extra = {k: v for k, v in options.items() if k != "kernel_size"}
    ty = function(tx.movedim(-1, 1), kernel, tb, **extra).movedim(1, -1)
    (ty * torch.tensor(weight)).sum().backward()
    return {"y": ty, "x": tx.grad, "kernel": tk.grad, "bias": tb.grad}


@pytest.mark.parametrize("name", sorted(TORCH))
def test_the_options_of_torch_can_be_said(name):
    shape, options = TORCH[name]
    dilation = options.get("dilation", 1)
    around = dilation * (options["kernel_size"] - 1) - options.get("padding", 0)
    pair = (around, around + options.get("output_padding", 0))
    layer, params, x = _built(
        shape,
        {
            "kernel_size": options["kernel_size"],
            "strides": options["stride"],
            "padding": (pair,) * (len(shape) - 2),
            "kernel_dilation": dilation,
            "feature_group_count": options.get("groups", 1),
            "transpose_kernel": True,
        },
    )
    weight = normal(1, *layer.output_spec(shape).shape)
    theirs = reference(
        f"conv_transpose/{name}", lambda: _by_torch(params, x, weight, options)
    )
    y, grads, for_x, _ = ours(layer, params, x, weight)
    close(y, theirs["y"])
    close(for_x, theirs["x"])
    close(grads["kernel"], theirs["kernel"])
    close(grads["bias"], theirs["bias"])


@pytest.mark.parametrize("transpose_kernel", [False, True])
@pytest.mark.parametrize(
    ("kernel_size", "strides"), [((3, 2), (2, 3)), ((7, 4), (1, 2)), ((6, 5), (3, 2))]
)
def test_circular_is_that_of_flax(kernel_size, strides, transpose_kernel):
    options = {"padding": "CIRCULAR", "transpose_kernel": transpose_kernel}
    layer, params, x = _built(
        (2, 4, 3, 2), {"kernel_size": kernel_size, "strides": strides, **options}
    )
    weight = normal(1, *layer.output_spec(x.shape).shape)

    def by_flax():
        from flax import linen

        model = linen.ConvTranspose(FEATURES, kernel_size, strides, **options)

        def loss(params, x):
            y = model.apply({"params": params}, x)
            return jnp.sum(y * weight), y

        with jax.numpy_rank_promotion("allow"):
            step = jax.jit(jax.grad(loss, (0, 1), has_aux=True))
            (grads, for_x), y = step(params, x)
        return {"y": y, "x": for_x, **grads}

    case = f"conv_transpose/flax {kernel_size} {strides} {transpose_kernel}"
    theirs = reference(case, by_flax)
    y, grads, for_x, _ = ours(layer, params, x, weight)
    close(y, theirs["y"])
    close(for_x, theirs["x"])
    close(grads["kernel"], theirs["kernel"])


@pytest.mark.parametrize("groups", [1, 2])
def test_with_transpose_kernel_it_is_the_gradient_of_conv(groups):
    options = {"strides": 2, "feature_group_count": groups, "use_bias": False}
    forward = al.conv(6, 3, **options)
    back = al.conv_transpose(4, 3, transpose_kernel=True, **options)
    x, y = normal(0, 2, 8, 6, 4), normal(1, 2, 4, 3, 6)
    params = drawn(jax.eval_shape(forward.init, KEY, x)[0])
    found = back.predict({"kernel": params["kernel"]}, {}, y)
    desired = jax.vjp(lambda x: forward.predict(params, {}, x), x)[1](y)[0]
    assert (
        jax.eval_shape(back.init, KEY, y)[0] == jax.eval_shape(forward.init, KEY, x)[0]
    )
    close(found, desired)


def test_sizes_that_are_not_known_stay():
    spec = al.conv_transpose(3, 4, 2).output_spec(al.spec("b h w 2"))
    assert str(spec.shape) == "(b, 2*h, 2*w, 3)"
    spec = al.conv_transpose(3, 2, 2).output_spec(al.spec("b h 2"))
    assert str(spec.shape) == "(b, 2*h, 3)"


def test_the_initial_variance_counts_what_is_summed_however_it_is_stored():
    for flipped in (False, True):
        layer = al.conv_transpose(16, 3, transpose_kernel=flipped)
        params, _ = layer.init(KEY, (None, 8, 8, 256))
        assert abs(float(jnp.var(params["kernel"])) * 9 * 256 - 1) < 0.02


def test_holes_are_left_to_xla_where_it_is_no_cpu():
    layer, params, x = _built((2, 4, 3, 3), {"kernel_size": 3, "strides": 2})
    traced = jax.jit(layer.predict).trace(params, {}, x)
    cpu = traced.lower(lowering_platforms=("cpu",)).as_text()
    cuda = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert "lhs_dilate = [2, 2]" not in cpu
    assert "lhs_dilate = [2, 2]" in cuda


def test_the_mask_multiplies_the_kernel_as_it_is_stored():
    mask = np.zeros((2, 4, 3), np.float32)
    mask[0] = 1
    options = {"strides": 1, "transpose_kernel": True, "use_bias": False}
    layer = al.conv_transpose(4, 2, mask=mask, **options)
    x = normal(0, 2, 5, 3)
    params = drawn(jax.eval_shape(layer.init, KEY, x)[0])
    plain = al.conv_transpose(4, 2, **options)
    masked = {"kernel": params["kernel"] * mask}
    close(layer.predict(params, {}, x), plain.predict(masked, {}, x))
    with pytest.raises(al.ShapeError) as error:
        al.conv_transpose(4, 2, mask=mask).init(KEY, x)
    assert str(error.value) == (
        "conv_transpose: expected a mask of shape (2, 3, 4), got float32[2, 4, 3]. Give "
        "it the shape of the kernel that it multiplies."
    )


def test_bfloat16_stays_and_params_are_float32():
    layer = al.conv_transpose(4, 3, 2)
    x = jnp.ones((2, 5, 5, 3), jnp.bfloat16)
    params, _ = layer.init(KEY, x)
    assert params["kernel"].dtype == jnp.float32
    assert layer.predict(params, {}, x).dtype == jnp.bfloat16


BAD_OPTIONS = {
    "features": ((0, 3), {}, "features must be a positive int, got 0."),
    "kernel_size": (
        (8, (3, 0)),
        {},
        "kernel_size must be a positive int or one for each spatial axis, got (3, 0).",
    ),
    "agreement": (
        (8, (3, 3)),
        {"strides": (1, 1, 1)},
        "strides must have as many items as kernel_size (3, 3), got (1, 1, 1).",
    ),
    "padding": (
        (8, 3),
        {"padding": "CAUSAL"},
        "padding must be one of SAME, VALID, CIRCULAR, an int from 0 on, or for each "
        "spatial axis such an int or a pair (low, high), got 'CAUSAL'.",
    ),
    "groups": (
        (8, 3),
        {"feature_group_count": 3},
        "features must be a multiple of feature_group_count 3, got 8.",
    ),
}


@pytest.mark.parametrize("name", sorted(BAD_OPTIONS))
def test_bad_options_word_for_word(name):
    args, options, message = BAD_OPTIONS[name]
    with pytest.raises(ValueError, match="conv_transpose") as error:
        al.conv_transpose(*args, **options)
    assert str(error.value) == f"conv_transpose: {message}"


BAD_INPUTS = {
    "rank": (
        al.conv_transpose(8, (3, 3)),
        (4, 28, 28),
        "expected (batch, n, n, channels), got float32[4, 28, 28]. "
        "Option (3, 3) is for 2 spatial axes.",
    ),
    "groups": (
        al.conv_transpose(8, 3, feature_group_count=4),
        (1, 8, 8, 6),
        "expected (batch, *spatial, channels) with channels a multiple of 4, got "
        "float32[1, 8, 8, 6]. Choose a feature_group_count that divides them.",
    ),
    "no positions": (
        al.conv_transpose(8, 3, strides=2, padding="VALID"),
        (1, 0, 2),
        "expected spatial axes of at least 1, got float32[1, 0, 2]. "
        "There is nothing to slide over.",
    ),
    "nothing to wrap": (
        al.conv_transpose(8, 3, padding="CIRCULAR"),
        (1, 0, 2),
        "expected spatial axes of at least 1, got float32[1, 0, 2]. "
        "There is nothing to slide over.",
    ),
    "window": (
        al.conv_transpose(8, 5, padding=0),
        (1, 4, 9, 1),
        "expected spatial axes of at least 5 after padding, got float32[1, 4, 9, 1]. "
        "Use a smaller window, or padding='SAME'.",
    ),
}


@pytest.mark.parametrize("name", sorted(BAD_INPUTS))
def test_bad_inputs_word_for_word(name):
    layer, shape, message = BAD_INPUTS[name]
    with pytest.raises(al.ShapeError) as error:
        layer.init(KEY, jnp.ones(shape))
    assert str(error.value) == f"conv_transpose: {message}"


def test_apply_refuses_other_channels_than_init_saw():
    layer = al.conv_transpose(8, 3, transpose_kernel=True)
    params, _ = layer.init(KEY, (None, 8, 8, 3))
    with pytest.raises(al.ShapeError, match="params were made for that width"):
        layer.predict(params, {}, jnp.ones((1, 8, 8, 4)))
