"""Bias, scale and PReLU: PyTorch, defaults, axes and errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from by_torch import COUNT, agrees, drawn_options
from parity import normal

import axonlike as al

KEY = jax.random.key(0)
AXES = (-1, 0, 1, (), (-1,), (1, -1), (-1, 1), (0, 1, 2))
SHAPES = ((2, 3, 4), (1, 1, 1), (3, 1, 2), (1, 5, 2))


def _shaped(param, x, axis):
    """The param with size 1 along all other axes."""
    axes = {i % x.ndim for i in (axis if isinstance(axis, tuple) else (axis,))}
    return param.reshape([n if i in axes else 1 for i, n in enumerate(x.shape)])


@pytest.mark.parametrize("kind", ["bias", "scale"])
@pytest.mark.parametrize("seed", range(COUNT))
def test_bias_and_scale_agree_with_torch(kind, seed):
    choice = drawn_options(seed, axis=AXES, shape=SHAPES)
    axis, shape = choice["axis"], choice["shape"]

    def define(p, x):
        param = _shaped(p[kind], x, axis)
        return x + param if kind == "bias" else x * param

    agrees(
        f"scale/{kind} {seed}", getattr(al, kind)(axis), [normal(seed, *shape)], define
    )


@pytest.mark.parametrize("seed", range(COUNT))
def test_prelu_agrees_with_torch(seed):
    choice = drawn_options(
        seed, shared=(True, False), shape=(*SHAPES, (0, 3, 2), (4, 3))
    )
    axis = () if choice["shared"] else 1
    x = normal(seed, *choice["shape"])
    x[..., 0] = np.where(x[..., 0] > 1, 0, x[..., 0])  # at zero too

    def define(p, x):
        import torch

        return torch.nn.functional.prelu(x, p["negative_slope"].reshape(-1))

    agrees(f"scale/prelu {seed}", al.prelu(axis), [x], define)


@pytest.mark.parametrize(
    ("layer", "name", "value"),
    [
        (al.bias(), "bias", 0.0),
        (al.scale(), "scale", 1.0),
        (al.prelu(), "negative_slope", 0.25),
    ],
)
def test_initial_values(layer, name, value):
    params, state = layer.init(KEY, (None, 3))
    assert (set(params), state) == ({name}, {})
    np.testing.assert_array_equal(params[name], np.full(params[name].shape, value))
    assert params[name].dtype == jnp.float32


def test_axes_stand_in_the_order_of_the_input():
    params, _ = al.bias((-1, 1)).init(KEY, (None, 3, None, 5))
    assert params["bias"].shape == (3, 5)
    params, _ = al.prelu(-1).init(KEY, (None, 3))
    assert params["negative_slope"].shape == (3,)


@pytest.mark.parametrize("layer", [al.bias(), al.scale(), al.prelu(-1)])
def test_computation_follows_the_input(layer):
    x = jnp.ones((2, 3), jnp.bfloat16)
    params, _ = layer.init(KEY, x)
    assert {p.dtype for p in params.values()} == {jnp.dtype(jnp.float32)}
    assert layer.predict(params, {}, x).dtype == jnp.bfloat16


@pytest.mark.parametrize("kind", ["bias", "scale", "prelu"])
def test_errors_word_for_word(kind):
    make = getattr(al, kind)
    with pytest.raises(ValueError, match=kind) as error:
        make((1, 1))
    message = f"{kind}: axis must be an int or several different ones, got (1, 1)."
    assert str(error.value) == message
    with pytest.raises(al.ShapeError) as error:
        make(2).init(KEY, (4, 5))
    assert str(error.value) == (
        f"{kind}: expected an array with axis 2, got float32[4, 5]. Check axis=."
    )
    with pytest.raises(al.ShapeError, match="floating-point array with axis -1"):
        make(-1).init(KEY, jnp.ones((2, 3), jnp.int32))
    with pytest.raises(al.ShapeError, match="cannot depend on an unknown dim"):
        make(-1).init(KEY, al.spec("b n"))
    with pytest.raises(al.ShapeError, match="at least 1"):
        make(-1).init(KEY, jnp.ones((2, 0)))


def test_the_slope_of_infinity_has_a_gradient():
    layer, params = al.prelu(), {"negative_slope": jnp.float32(0.25)}

    def total(params, x):
        return jnp.sum(layer.predict(params, {}, x))

    x = jnp.array([jnp.inf, -2.0])
    assert jax.grad(total)(params, x)["negative_slope"] == -2
