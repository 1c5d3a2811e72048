"""Initializers: JAX's own numbers, and the properties of a record."""

import inspect
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import axonlike as al

init = al.initializers
CALLS = {
    "constant": (init.constant(0.3), jax.nn.initializers.constant(0.3)),
    "delta_orthogonal": (
        init.delta_orthogonal(2.0),
        jax.nn.initializers.delta_orthogonal(2.0),
    ),
    "glorot_normal": (init.glorot_normal(), jax.nn.initializers.glorot_normal()),
    "glorot_uniform": (init.glorot_uniform(), jax.nn.initializers.glorot_uniform()),
    "he_normal": (
        init.he_normal(in_axis=-1),
        jax.nn.initializers.he_normal(in_axis=-1),
    ),
    "he_uniform": (init.he_uniform(), jax.nn.initializers.he_uniform()),
    "kaiming_normal": (init.kaiming_normal(), jax.nn.initializers.kaiming_normal()),
    "kaiming_uniform": (init.kaiming_uniform(), jax.nn.initializers.kaiming_uniform()),
    "lecun_normal": (init.lecun_normal(), jax.nn.initializers.lecun_normal()),
    "lecun_uniform": (init.lecun_uniform(), jax.nn.initializers.lecun_uniform()),
    "normal": (init.normal(2.0), jax.nn.initializers.normal(2.0)),
    "ones": (init.ones(), jax.nn.initializers.ones),
    "orthogonal": (init.orthogonal(), jax.nn.initializers.orthogonal()),
    "truncated_normal": (
        init.truncated_normal(lower=-1.0),
        jax.nn.initializers.truncated_normal(lower=-1.0),
    ),
    "uniform": (init.uniform(), jax.nn.initializers.uniform()),
    "variance_scaling": (
        init.variance_scaling(1.0, "fan_out", "uniform", out_axis=(0, 1)),
        jax.nn.initializers.variance_scaling(
            1.0, "fan_out", "uniform", out_axis=(0, 1)
        ),
    ),
    "xavier_normal": (init.xavier_normal(), jax.nn.initializers.xavier_normal()),
    "xavier_uniform": (init.xavier_uniform(), jax.nn.initializers.xavier_uniform()),
    "zeros": (init.zeros(), jax.nn.initializers.zeros),
}


@pytest.mark.parametrize("name", sorted(CALLS))
def test_the_numbers_are_those_of_jax(name):
    ours, theirs = CALLS[name]
    key, shape = jax.random.key(3), (3, 3, 2, 4)
    for dtype in (jnp.float32, jnp.bfloat16):
        if name == "delta_orthogonal" and dtype == jnp.bfloat16:
            continue  # a QR decomposition, which has no bfloat16
        if name == "orthogonal" and dtype == jnp.bfloat16:
            continue
        ours_, theirs_ = ours(key, shape, dtype), theirs(key, shape, dtype)
        assert ours_.dtype == dtype
        np.testing.assert_array_equal(ours_, theirs_)


def test_every_initializer_of_jax_is_here():
    theirs = {
        name
        for name in dir(jax.nn.initializers)
        if name.islower() and callable(getattr(jax.nn.initializers, name))
    }
    assert theirs <= set(CALLS)
    assert set(CALLS) | {"Initializer"} == set(init.__all__)


@pytest.mark.parametrize("name", sorted(set(CALLS) - {"zeros", "ones"}))
def test_arguments_and_defaults_are_those_of_jax(name):
    ours = inspect.signature(getattr(init, name)).parameters
    theirs = inspect.signature(getattr(jax.nn.initializers, name)).parameters
    ours = {k: p.default for k, p in ours.items()}
    theirs = {k: p.default for k, p in theirs.items() if k != "dtype"}
    assert ours == theirs


@pytest.mark.parametrize("name", sorted(CALLS))
def test_a_record_survives_pickle_and_repr(name):
    record = CALLS[name][0]
    assert pickle.loads(pickle.dumps(record)) == record
    assert eval(repr(record), {"al": al}) == record
    assert hash(eval(repr(record), {"al": al})) == hash(record)


def test_float32_is_the_default_dtype():
    assert init.normal()(jax.random.key(0), (2,)).dtype == jnp.float32


def test_repr_shows_what_differs_from_the_default():
    assert repr(init.he_normal()) == "al.initializers.he_normal()"
    assert repr(init.normal(0.5)) == "al.initializers.normal(stddev=0.5)"
    assert repr(init.normal(0.01)) == "al.initializers.normal()"
    assert repr(init.kaiming_normal()) == "al.initializers.he_normal()"


def test_equality_covers_value_types():
    assert init.constant(1) == init.constant(1)
    assert init.constant(1) != init.constant(1.0)
    assert init.constant(1) != init.constant(True)
    assert init.constant(0.0) != init.constant(-0.0)
    assert init.normal() != init.uniform()
    assert init.he_normal(in_axis=[0, 1]) == init.he_normal(in_axis=(0, 1))
    assert init.zeros() != jax.nn.initializers.zeros
    assert len({init.he_normal(), init.he_normal(), init.he_normal(-1)}) == 2


def test_layers_with_equal_initializers_are_equal():
    assert al.dense(3) == al.dense(3, kernel_init=init.lecun_normal())
    assert al.dense(3) != al.dense(3, kernel_init=init.lecun_uniform())


def test_a_record_cannot_be_changed():
    with pytest.raises(AttributeError):
        init.normal().factory = "ones"


def test_any_function_serves_as_initializer():
    layer = al.dense(2, kernel_init=lambda key, shape, dtype: jnp.full(shape, 7, dtype))
    params, _ = layer.init(jax.random.key(0), (None, 3))
    np.testing.assert_array_equal(params["kernel"], np.full((3, 2), 7.0))


def test_unknown_sizes_that_jax_cannot_draw_are_an_error_word_for_word():
    shape = (al.spec("n").shape[0], 4)
    with pytest.raises(al.ShapeError) as error:
        jax.eval_shape(lambda key: init.orthogonal()(key, shape), jax.random.key(0))
    assert str(error.value) == (
        "orthogonal: expected known sizes, got (n, 4). Params cannot depend on an "
        "unknown "
        "dim: declare its size in the spec."
    )
