"""Resizing, pixel shuffling and padding: PyTorch, JAX's own, formulas and errors."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from parity import close, normal, ours, reference

import axonlike as al

# input shape, options; what torch.nn.functional.interpolate takes
TORCH = {
    "nearest up": ((2, 3, 4, 2), {"scale": 2}, {"mode": "nearest-exact"}),
    "nearest whole": ((1, 3, 2, 2), {"scale": (3, 2)}, {"mode": "nearest"}),
    "nearest odd": ((2, 3, 4, 2), {"shape": (7, 9)}, {"mode": "nearest-exact"}),
    "nearest down": ((2, 9, 8, 2), {"shape": (3, 4)}, {"mode": "nearest-exact"}),
    "nearest both": ((2, 9, 4, 2), {"shape": (5, 8)}, {"mode": "nearest-exact"}),
    "nearest 1d": ((2, 5, 3), {"scale": 1.5}, {"mode": "nearest-exact"}),
    "nearest 3d": ((1, 2, 3, 2, 2), {"shape": (4, 2, 3)}, {"mode": "nearest-exact"}),
    "linear 1d": ((2, 5, 3), {"shape": 8, "method": "linear"}, {"mode": "linear"}),
    "linear 1d corners": (
        (2, 5, 3),
        {"shape": 8, "method": "linear", "align_corners": True},
        {"mode": "linear", "align_corners": True},
    ),
    "bilinear up": (
        (2, 3, 4, 2),
        {"scale": 2, "method": "bilinear"},
        {"mode": "bilinear"},
    ),
    "bilinear odd": (
        (2, 3, 4, 2),
        {"shape": (7, 5), "method": "bilinear"},
        {"mode": "bilinear"},
    ),
    "bilinear down": (
        (2, 9, 8, 2),
        {"shape": (4, 3), "method": "bilinear", "antialias": False},
        {"mode": "bilinear"},
    ),
    "bilinear corners": (
        (2, 3, 4, 2),
        {"shape": (7, 9), "method": "bilinear", "align_corners": True},
        {"mode": "bilinear", "align_corners": True},
    ),
    "bilinear corners down": (
        (2, 7, 9, 2),
        {
            "shape": (4, 1),
            "method": "bilinear",
            "align_corners": True,
            "antialias": False,
        },
        {"mode": "bilinear", "align_corners": True},
    ),
    "bilinear corners of one": (
        (2, 1, 2, 2),
        {"shape": (4, 3), "method": "bilinear", "align_corners": True},
        {"mode": "bilinear", "align_corners": True},
    ),
    "bilinear of one": (
        (1, 1, 1, 2),
        {"shape": (4, 3), "method": "bilinear"},
        {"mode": "bilinear"},
    ),
    "trilinear": (
        (1, 2, 3, 2, 2),
        {"shape": (4, 5, 3), "method": "trilinear"},
        {"mode": "trilinear"},
    ),
    "trilinear corners": (
        (1, 2, 3, 2, 2),
        {"shape": (4, 5, 3), "method": "trilinear", "align_corners": True},
        {"mode": "trilinear", "align_corners": True},
    ),
    "same size": (
        (2, 3, 4, 2),
        {"shape": (3, 4), "method": "bilinear"},
        {"mode": "bilinear"},
    ),
    "area down": (
        (2, 8, 6, 2),
        {"shape": (4, 2), "method": "area"},
        {"mode": "area"},
    ),
}


def _gradients(x, weight, function):
    """Output and gradient of a torch function of channels-first images."""
    import torch

    tx = torch.tensor(x, requires_grad=True)
    ty = function(tx.movedim(-1, 1)).movedim(1, -1)
    (ty * torch.tensor(weight)).sum().backward()
    return {"y": ty, "x": tx.grad}


def _agrees(case, layer, x, function):
    """Our output and gradient are those of the function."""
    weight = normal(1, *layer.output_spec(x.shape).shape)
    theirs = reference(f"image/{case}", lambda: _gradients(x, weight, function))
    y, _, for_x, _ = ours(layer, {}, x, weight)
    close(y, theirs["y"])
    close(for_x, theirs["x"])


@pytest.mark.parametrize("name", sorted(TORCH))
def test_resize_and_its_gradient_are_those_of_torch(name):
    shape, options, arguments = TORCH[name]
    layer, x = al.resize(**options), normal(0, *shape)
    size = tuple(layer.output_spec(shape).shape[1:-1])

    def interpolate(x):
        import torch

        return torch.nn.functional.interpolate(x, size, **arguments)

    _agrees(f"resize {name}", layer, x, interpolate)


METHODS = ("linear", "cubic", "cubic-pytorch", "lanczos3", "lanczos5", "area")


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_that_of_jax(method, antialias):
    x = normal(0, 2, 6, 5, 2)
    layer = al.resize((4, 9), method=method, antialias=antialias)
    close(
        layer.predict({}, {}, x), jax.image.resize(x, (2, 4, 9, 2), method, antialias)
    )


@pytest.mark.parametrize("new", [1, 2, 3, 4, 5, 6, 9, 12, 13, 18])
def test_nearest_is_that_of_jax_at_every_size(new):
    x = np.arange(2 * 6 * 3).reshape(2, 6, 3)
    y = al.resize(new).predict({}, {}, x)
    assert y.dtype == jnp.asarray(x).dtype
    np.testing.assert_array_equal(y, jax.image.resize(x, (2, new, 3), "nearest"))


def test_with_aligned_corners_lines_stay_lines():
    x = np.linspace(0.0, 3.0, 4, dtype=np.float32).reshape(1, 4, 1)
    layer = al.resize(10, method="linear", align_corners=True)
    close(layer.predict({}, {}, x)[0, :, 0], np.linspace(0.0, 3.0, 10))


def test_a_scale_is_rounded_down_and_unknown_sizes_stay():
    assert al.resize(scale=1.5).output_spec((1, 5, 4, 2)).shape == (1, 7, 6, 2)
    spec = al.resize(scale=(2, 0.5)).output_spec(al.spec("b h 2*w 3"))
    assert str(spec.shape) == "(b, 2*h, w, 3)"
    spec = al.resize((8, 9), method="bilinear").output_spec(al.spec("b 4 4 3"))
    assert str(spec.shape) == "(b, 8, 9, 3)"
    with pytest.raises(al.ShapeError, match=r"known sizes to multiply by 1\.5"):
        al.resize(scale=1.5).output_spec(al.spec("b h 3"))
    corners = al.resize(5, method="linear", align_corners=True)
    with pytest.raises(al.ShapeError, match="known spatial sizes"):
        corners.output_spec(al.spec("b h 3"))


SHUFFLES = [
    ((2, 3, 4, 8), 2),
    ((1, 2, 1, 9), 3),
    ((2, 1, 3, 12), 2),
    ((1, 1, 1, 16), 4),
    ((3, 2, 2, 5), 1),
]
DRAWN = np.random.default_rng(0)
SHUFFLES += [  # and 15 more: batch, height, width, channels out of 1 to 3, factors to 5
    pytest.param((*size[:3], size[3] * factor**2), factor, marks=pytest.mark.slow)
    for size, factor in zip(
        DRAWN.integers(1, 4, (15, 4)).tolist(), [2, 3, 4, 5, 1] * 3, strict=True
    )
]


@pytest.mark.parametrize(("shape", "factor"), SHUFFLES)
def test_pixel_shuffle_and_its_inverse_are_those_of_torch(shape, factor):
    def shuffle(x):
        import torch

        return torch.nn.functional.pixel_shuffle(x, factor)

    def unshuffle(x):
        import torch

        return torch.nn.functional.pixel_unshuffle(x, factor)

    x = normal(0, *shape)
    forward, back = al.pixel_shuffle(factor), al.pixel_unshuffle(factor)
    _agrees(f"shuffle {shape} {factor}", forward, x, shuffle)
    y = np.asarray(forward.predict({}, {}, x))
    _agrees(f"unshuffle {shape} {factor}", back, y, unshuffle)
    np.testing.assert_array_equal(back.predict({}, {}, y), x)


@pytest.mark.parametrize(
    ("shape", "factor"), [((2, 3, 6), 3), ((1, 2, 3, 2, 12), (1, 2, 3))]
)
def test_pixels_of_any_rank_come_back(shape, factor):
    x = np.arange(math.prod(shape)).reshape(shape)
    y = np.asarray(al.pixel_shuffle(factor).predict({}, {}, x))
    block = (factor,) * (x.ndim - 2) if isinstance(factor, int) else factor
    for batch, *place, channel in np.ndindex(y.shape):
        outer = [n // f for n, f in zip(place, block, strict=True)]
        inner = [n % f for n, f in zip(place, block, strict=True)]
        at = channel * math.prod(block) + np.ravel_multi_index(inner, block)
        assert y[(batch, *place, channel)] == x[(batch, *outer, at)]
    back = al.pixel_unshuffle(factor).predict({}, {}, y)
    np.testing.assert_array_equal(back, x)


PADS = {
    "constant": ((1, (0, 2)), {"mode": "constant"}),
    "value": (2, {"mode": "constant", "value": -1.5}),
    "edge": (((1, 2), 3), {"mode": "replicate"}),
    "reflect": (((1, 2), (2, 0)), {"mode": "reflect"}),
    "wrap": (((1, 3), (2, 0)), {"mode": "circular"}),
    "nothing": (0, {"mode": "constant"}),
}
MODES = {"constant": "constant", "replicate": "edge", "reflect": "reflect"}
MODES["circular"] = "wrap"
PADS |= {  # and 16 more, on inputs of 4 by 3
    f"{mode} {pads}": (pads, {"mode": mode})
    for mode in MODES
    for pads in [
        tuple(zip(*DRAWN.integers(0, 3, (2, 2)).tolist(), strict=True))
        for _ in range(4)
    ]
}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (" " in n)) for n in PADS]
)
def test_pad_and_its_gradient_are_those_of_torch(name):
    padding, arguments = PADS[name]
    mode = MODES[arguments["mode"]]
    layer = al.pad(padding, mode, arguments.get("value", 0.0))
    items = (padding,) * 2 if isinstance(padding, int) else padding
    pairs = [(p, p) if isinstance(p, int) else p for p in items]

    def padded(x):
        import torch

        flat = [n for pair in reversed(pairs) for n in pair]
        return torch.nn.functional.pad(x, flat, **arguments)

    _agrees(f"pad {name}", layer, normal(0, 2, 4, 3, 2), padded)


def test_pad_takes_any_dtype_and_mode():
    x = np.arange(6).reshape(1, 3, 2)
    y = al.pad(1, value=7).predict({}, {}, x)
    assert y.dtype == jnp.asarray(x).dtype
    np.testing.assert_array_equal(y[0, :, 0], [7, 0, 2, 4, 7])
    y = al.pad(((2, 1),), "symmetric").predict({}, {}, x)
    np.testing.assert_array_equal(y[0, :, 0], [2, 0, 0, 2, 4, 4])


@pytest.mark.parametrize("mode", ["wrap", "edge", "reflect", "symmetric"])
def test_padding_of_unknown_sizes_is_that_of_known_ones(mode):
    layer = al.pad(((2, 3), (1, 0)), mode)
    spec = al.spec("b n m 2", int)
    assert str(layer.output_spec(spec).shape) == "(b, n + 5, m + 1, 2)"
    struct = jax.ShapeDtypeStruct(spec.shape, spec.dtype)
    call = jax.export.export(jax.jit(lambda x: layer.predict({}, {}, x)))(struct).call
    for n, m in [(4, 2), (7, 5), (1, 1), (2, 3)]:
        x = np.arange(n * m * 2, dtype=np.int32).reshape(1, n, m, 2)
        y = np.pad(x, [(0, 0), (2, 3), (1, 0), (0, 0)], mode)
        np.testing.assert_array_equal(call(x), y)


def test_layers_run_on_an_empty_batch():
    x = jnp.ones((0, 4, 4, 4))
    assert al.resize(8).predict({}, {}, x).shape == (0, 8, 8, 4)
    assert al.resize(5, method="cubic").predict({}, {}, x).shape == (0, 5, 5, 4)
    assert al.pixel_shuffle(2).predict({}, {}, x).shape == (0, 8, 8, 1)
    assert al.pixel_unshuffle(2).predict({}, {}, x).shape == (0, 2, 2, 16)
    assert al.pad(1, "wrap").predict({}, {}, x).shape == (0, 6, 6, 4)


BAD_OPTIONS = {
    "value": (lambda: al.pad(1, value="x"), "pad: value must be a number, got 'x'."),
    "neither": (
        al.resize,
        "resize: expected either shape or scale, got shape=None, scale=None.",
    ),
    "both": (
        lambda: al.resize(3, scale=2),
        "resize: expected either shape or scale, got shape=3, scale=2.",
    ),
    "shape": (
        lambda: al.resize((3, 0)),
        "resize: shape must be a positive int or one for each spatial axis, got (3, 0).",
    ),
    "scale": (
        lambda: al.resize(scale=-1.0),
        "resize: scale must be a positive number or one for each spatial axis, got -1.0.",
    ),
    "method": (
        lambda: al.resize(3, method="bicubical"),
        "resize: method must be one of nearest, linear, bilinear, trilinear, triangle, "
        "cubic, bicubic, tricubic, cubic-pytorch, bicubic-pytorch, lanczos3, lanczos5, "
        "area, got 'bicubical'.",
    ),
    "corners": (
        lambda: al.resize(3, align_corners=True),
        "resize: align_corners must be false for method 'nearest', got True.",
    ),
    "factor": (
        lambda: al.pixel_shuffle(0),
        "pixel_shuffle: factor must be a positive int or one for each spatial axis, got "
        "0.",
    ),
    "padding": (
        lambda: al.pad(-1),
        "pad: padding must be an int from 0 on, or for each spatial axis such an int or "
        "a pair (low, high), got -1.",
    ),
    "mode": (
        lambda: al.pad(1, "circular"),
        "pad: mode must be one of constant, edge, reflect, symmetric, wrap, got "
        "'circular'.",
    ),
}


@pytest.mark.parametrize("name", sorted(BAD_OPTIONS))
def test_bad_options_word_for_word(name):
    make, message = BAD_OPTIONS[name]
    with pytest.raises(ValueError, match=message.split(":", maxsplit=1)[0]) as error:
        make()
    assert str(error.value) == message


BAD_INPUTS = {
    "rank": (
        al.resize((3, 3)),
        (2, 4, 3),
        "resize: expected (batch, n, n, channels), got float32[2, 4, 3]. Option "
        "(3, 3) is for 2 spatial axes.",
    ),
    "nothing left": (
        al.resize(scale=0.2),
        (2, 4, 3),
        "resize: expected at least one pixel, and one left, got float32[2, 4, 3]. Choose "
        "a larger shape or scale.",
    ),
    "channels": (
        al.pixel_shuffle(2),
        (2, 4, 4, 6),
        "pixel_shuffle: expected an axis that is a multiple of 4, got float32[2, 4, 4, "
        "6]. Pad it, or choose another factor.",
    ),
    "pixels": (
        al.pixel_unshuffle(2),
        (2, 5, 4, 1),
        "pixel_unshuffle: expected an axis that is a multiple of 2, got float32[2, 5, 4, "
        "1]. Pad it, or choose another factor.",
    ),
    "padding": (
        al.pad((1, 1)),
        (2, 5, 4),
        "pad: expected 2 spatial axes, as padding (1, 1) has items, got float32[2, 5, 4]."
        " Give one item for each spatial axis.",
    ),
}


@pytest.mark.parametrize("name", sorted(BAD_INPUTS))
def test_bad_inputs_word_for_word(name):
    layer, shape, message = BAD_INPUTS[name]
    with pytest.raises(al.ShapeError) as error:
        layer.init(jax.random.key(0), jnp.ones(shape))
    assert str(error.value) == message
