"""Flatten, reshape and transpose: values, symbolic sizes, errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import axonlike as al


@pytest.mark.parametrize(
    "shape", [(3,), (3, 4), (3, 4, 5), (0, 4, 5), (3, 0, 5), (1, 1)]
)
def test_flatten_keeps_the_first_axis(shape):
    x = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    y = al.flatten().predict({}, {}, x)
    n = int(np.prod(shape[1:]))
    np.testing.assert_array_equal(y, x.reshape(shape[0], n))


@pytest.mark.parametrize(
    ("shape", "sizes", "desired"),
    [
        ((2, 12), (3, 4), (2, 3, 4)),
        ((2, 12), (3, -1), (2, 3, 4)),
        ((2, 3, 4), (-1,), (2, 12)),
        ((2, 3, 4), (12,), (2, 12)),
        ((2, 3, 4), (-1, 2, 6), (2, 1, 2, 6)),
        ((0, 6), (2, -1), (0, 2, 3)),
        ((5, 1), (), (5,)),
        ((5,), (1, 1), (5, 1, 1)),
    ],
)
def test_reshape_leaves_the_batch_axis_out(shape, sizes, desired):
    x = np.arange(np.prod(shape)).reshape(shape)
    y = al.reshape(*sizes).predict({}, {}, jnp.asarray(x))
    np.testing.assert_array_equal(y, x.reshape(desired))
    assert al.reshape(*sizes).output_spec(shape).shape == desired


@pytest.mark.parametrize("axes", [(1,), (2, 1), (1, 2, 3), (3, 1, 2), (2, 3, 1)])
def test_transpose_permutes_all_axes_but_the_first(axes):
    x = np.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5)
    x = x.reshape(2, *x.shape[1 : len(axes)], -1)
    y = al.transpose(*axes).predict({}, {}, jnp.asarray(x))
    np.testing.assert_array_equal(y, x.transpose(0, *axes))


def test_layers_that_undo_each_other_are_the_identity():
    x = np.arange(2 * 3 * 4).reshape(2, 3, 4)
    model = al.transpose(2, 1) >> al.transpose(2, 1) >> al.flatten() >> al.reshape(3, 4)
    np.testing.assert_array_equal(model.predict({}, {}, jnp.asarray(x)), x)


@pytest.mark.parametrize(
    ("layer", "spec", "desired"),
    [
        (al.flatten(), "b 7 7 64", "(b, 3136)"),
        (al.flatten(), "b h 3", "(b, 3*h)"),
        (al.reshape(7, 7, -1), "b 3136", "(b, 7, 7, 64)"),
        (al.reshape(-1, 4), "b 8*t", "(b, 2*t, 4)"),
        (al.reshape(-1), "b t 4", "(b, 4*t)"),
        (al.transpose(3, 1, 2), "b h w 3", "(b, 3, h, w)"),
    ],
)
def test_unknown_sizes_stay_symbolic(layer, spec, desired):
    assert str(layer.output_spec(al.spec(spec)).shape) == desired


def test_any_dtype_passes():
    x = jnp.ones((2, 3, 4), jnp.int8)
    for layer in (al.flatten(), al.reshape(12), al.transpose(2, 1)):
        assert layer.predict({}, {}, x).dtype == jnp.int8


def test_gradients_go_back_to_their_places():
    weight = np.arange(24.0, dtype=np.float32).reshape(2, 4, 3)
    layer = al.transpose(2, 1)
    grads = jax.grad(lambda x: jnp.sum(layer.predict({}, {}, x) * weight))(
        jnp.ones((2, 3, 4))
    )
    np.testing.assert_array_equal(grads, weight.transpose(0, 2, 1))


def test_a_reshape_survives_its_text():
    layer = al.reshape(7, 7, -1)
    assert eval(repr(layer), {"al": al}) == layer
    assert eval(repr(al.transpose(2, 1)), {"al": al}) == al.transpose(2, 1)


ERRORS = {
    "flatten a scalar": (
        lambda: al.flatten().output_spec(jnp.ones(())),
        "flatten: expected (batch, ...), got float32[]. Add a batch axis with x[None].",
    ),
    "flatten a tuple": (
        lambda: al.flatten().output_spec((jnp.ones(2), jnp.ones(2))),
        "flatten: expected one array (batch, ...), got (float32[2], float32[2]). Pick "
        "one "
        "item: pick(0) or on_item(0, ...).",
    ),
    "two unknown sizes": (
        lambda: al.reshape(-1, -1),
        "reshape: only one size may be -1, got (-1, -1).",
    ),
    "a tuple of sizes": (
        lambda: al.reshape((7, 7)),
        "reshape: sizes must be positive ints or -1, got ((7, 7),). Leave the batch "
        "axis "
        "out: reshape(7, 7, 64).",
    ),
    "another number of elements": (
        lambda: al.reshape(7, 8).output_spec((None, 49)),
        "reshape: expected (batch, ...) with 56 elements an example, for sizes (7, 8), "
        "got float32[_0, 49]. The product of the sizes must be that of the input's.",
    ),
    "no multiple": (
        lambda: al.reshape(5, -1).output_spec((None, 49)),
        "reshape: expected (batch, ...) with a multiple of 5 elements an example, for "
        "sizes (5, -1), got float32[_0, 49]. The product of the sizes must be that of "
        "the "
        "input's.",
    ),
    "the batch axis": (
        lambda: al.transpose(0, 2, 1),
        "transpose: axes must be a permutation of 1, 2, ..., got (0, 2, 1). The batch "
        "axis "
        "0 stays first and is not named: transpose(2, 1).",
    ),
    "transpose of another rank": (
        lambda: al.transpose(2, 1).output_spec((None, 2)),
        "transpose: expected 3 axes, the batch and 2 more, got float32[_0, 2]. Name "
        "every "
        "axis but the first.",
    ),
}


@pytest.mark.parametrize("name", sorted(ERRORS))
def test_errors_word_for_word(name):
    build, message = ERRORS[name]
    with pytest.raises(ValueError, match=":") as error:
        build()
    assert str(error.value) == message
