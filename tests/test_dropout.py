"""Dropout: frequencies, scale, keys, cost when off, errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import axonlike as al

KEY = jax.random.key(0)


def _train(layer, x, key=KEY):
    return layer.apply({}, {}, x, key=key, train=True)[0]


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_a_fraction_is_zero_and_the_rest_scaled_up(rate):
    x = jnp.full((300, 400), 3.0)
    y = np.asarray(_train(al.dropout(rate), x))
    assert abs((y == 0).mean() - rate) < 5 * (rate * (1 - rate) / y.size) ** 0.5
    np.testing.assert_allclose(y[y != 0], 3 / (1 - rate), rtol=1e-6)
    assert abs(y.mean() - 3) < 0.05


def test_gradients_pass_where_the_input_passed():
    x = jnp.full((50,), 2.0)
    y, grads = jax.value_and_grad(lambda x: _train(al.dropout(0.4), x).sum())(x)
    out = _train(al.dropout(0.4), x)
    np.testing.assert_allclose(grads, out / 2, rtol=1e-6)
    np.testing.assert_allclose(y, out.sum(), rtol=1e-6)


@pytest.mark.parametrize("rate", [0, 0.0, 0.7])
def test_nothing_is_computed_when_off(rate):
    layer, x = al.dropout(rate), jnp.ones((3, 2))
    assert not jax.make_jaxpr(lambda x: layer.predict({}, {}, x))(x).eqns
    if rate == 0:
        train = jax.make_jaxpr(
            lambda x, key: layer.apply({}, {}, x, key=key, train=True)[0]
        )
        assert not train(x, KEY).eqns


def test_the_same_key_gives_the_same_mask_and_another_key_another():
    layer, x = al.dropout(0.5), jnp.ones(64)
    np.testing.assert_array_equal(_train(layer, x), _train(layer, x))
    assert bool(jnp.any(_train(layer, x) != _train(layer, x, jax.random.key(1))))


def test_two_dropouts_of_one_model_draw_two_masks():
    first = al.dropout(0.5, name="first")
    both = al.branch(first, al.dropout(0.5, name="second"))
    a, b = _train(both, jnp.ones(64))
    assert bool(jnp.any(a != b))


@pytest.mark.parametrize(
    ("axes", "shape"), [((1, 2), (4, 1, 1, 50)), ((-1,), (4, 5, 6, 1))]
)
def test_broadcast_dims_share_one_draw(axes, shape):
    y = np.asarray(
        _train(al.dropout(0.5, broadcast_dims=axes), jnp.ones((4, 5, 6, 50)))
    )
    once = y[tuple(slice(0, 1) if n == 1 else slice(None) for n in shape)]
    np.testing.assert_array_equal(y, np.broadcast_to(once, y.shape))
    assert 0 < (once == 0).mean() < 1


def test_dtype_stays():
    assert _train(al.dropout(0.5), jnp.ones(8, jnp.bfloat16)).dtype == jnp.bfloat16


def test_unknown_sizes_work_in_training():
    layer = al.dropout(0.5)
    spec = al.spec("b 3")
    step = jax.jit(lambda x: layer.apply({}, {}, x, key=KEY, train=True)[0])
    call = jax.export.export(step)(jax.ShapeDtypeStruct(spec.shape, spec.dtype)).call
    assert set(np.unique(call(np.ones((40, 3), np.float32)))) == {0.0, 2.0}


@pytest.mark.parametrize("rate", [1.5, 1, 1.0, -0.1, float("nan"), "0.5", True, None])
def test_rate_must_be_a_probability_below_1(rate):
    with pytest.raises(ValueError, match="dropout: rate") as error:
        al.dropout(rate)
    assert str(error.value) == f"dropout: rate must be in [0, 1), got {rate!r}."


ERRORS = {
    "key": (
        lambda: al.dropout(0.5).apply({}, {}, jnp.ones(3), train=True),
        "dropout: expected a key in training, got None. Pass apply(..., "
        "key=jax.random.key(seed), train=True).",
    ),
    "dims": (
        lambda: al.dropout(0.5, broadcast_dims=(1.0,)),
        "dropout: broadcast_dims must be ints, got (1.0,).",
    ),
    "axes": (
        lambda: al.dropout(0.5, broadcast_dims=(2,)).output_spec((3, 4)),
        "dropout: expected an array with the axes (2,), got float32[3, 4]. Check "
        "broadcast_dims=.",
    ),
    "dtype": (
        lambda: al.dropout(0.5).output_spec(al.spec("b", int)),
        "dropout: expected a floating-point array, got int32[b]. Convert it with "
        "x.astype(jnp.float32), or embed ids with embedding().",
    ),
}


@pytest.mark.parametrize("name", sorted(ERRORS))
def test_errors_word_for_word(name):
    build, message = ERRORS[name]
    with pytest.raises(ValueError, match="dropout") as error:
        build()
    assert str(error.value) == message
