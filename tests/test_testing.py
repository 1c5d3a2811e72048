"""`check_layer` finds layers that break the contract, each by the law that they break."""

import itertools

import jax
import jax.numpy as jnp
import pytest

import axonlike as al
from axonlike.testing import check_layer

COUNT = itertools.count()


def layer_of(apply, init=None, kind="broken"):
    def factory():
        return init, apply

    factory.__name__ = kind
    return al.layer(factory)()


def mixing(params, x):
    return x - x.mean(0, keepdims=True)


def unsteady(params, x):
    return x + next(COUNT)


def widening(params, x):
    return x.astype(jnp.float32)


def drawing_in_secret(params, x):
    return x * jax.random.uniform(jax.random.key(0), x.shape, x.dtype)


@jax.custom_vjp
def square(x):
    return x * x


square.defvjp(lambda x: (x * x, x), lambda x, g: (x * g,))  # half of the gradient


def wrong_gradient(params, x):
    return square(x)


def mutating(params, x):
    params["scale"] = params["scale"] * 2
    return x * jnp.broadcast_to(params["scale"].astype(x.dtype), x.shape)


def scale_init(key, x):
    return {"scale": jnp.ones((x.shape[-1],))}


def scaling(params, x):
    return x * jnp.broadcast_to(params["scale"].astype(x.dtype), x.shape)


@pytest.mark.parametrize(
    ("apply", "init"),
    [
        (mixing, None),
        (unsteady, None),
        (widening, None),
        (drawing_in_secret, None),
        (wrong_gradient, None),
        (mutating, scale_init),
    ],
    ids=lambda f: getattr(f, "__name__", "no params"),
)
def test_a_broken_layer_is_found(apply, init):
    with pytest.raises(AssertionError, match="broken"):
        check_layer(layer_of(apply, init), "b 4")


def test_a_sound_layer_of_the_same_kind_passes():
    check_layer(layer_of(scaling, scale_init), "b 4")


def test_mixing_examples_may_be_declared():
    check_layer(layer_of(mixing), "b 4", mixes_examples=True)
