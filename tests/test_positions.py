"""Positions: formulas in NumPy, what they promise, and errors."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from parity import close, drawn, normal, ours, run

import axonlike as al
from axonlike.layers.positions import alibi_slopes

KEY = jax.random.key(0)


def turned(x, positions, theta=10_000.0, fraction=1.0, interleaved=False, steps=None):
    """Pair by pair, as complex numbers in float64."""
    x = x.astype(np.float64)
    n = int(x.shape[-1] * fraction)
    steps = theta ** (-np.arange(0, n, 2) / max(n, 1)) if steps is None else steps
    y = x.copy()
    for i in range(n // 2):
        a, b = (2 * i, 2 * i + 1) if interleaved else (i, i + n // 2)
        angle = np.asarray(positions, np.float64) * steps[i]
        angle = angle.reshape(angle.shape + (1,) * (x.ndim - 3))
        pair = (x[..., a] + 1j * x[..., b]) * np.exp(1j * angle)
        y[..., a], y[..., b] = pair.real, pair.imag
    return y


def llama3(steps, factor=8.0, low=1.0, high=4.0, length=64):
    """Llama 3's frequencies: long waves slower, short ones as they are."""
    wave = 2 * np.pi / steps
    smooth = np.clip((length / wave - low) / (high - low), 0, 1)
    return (1 - smooth) * steps / factor + smooth * steps


ROTARY = [
    ((2, 5, 3, 8), {}),
    ((1, 1, 2, 4), {}),
    ((2, 7, 6), {}),
    ((0, 3, 2, 4), {}),
    ((2, 4, 2, 2, 4), {}),
    ((2, 5, 3, 8), {"interleaved": True}),
    ((1, 9, 1, 2), {"interleaved": True, "theta": 100.0}),
    ((2, 5, 3, 8), {"fraction": 0.5}),
    ((2, 5, 3, 8), {"fraction": 0.25, "interleaved": True}),
    ((2, 5, 3, 8), {"fraction": 0.0}),
    ((1, 40, 2, 16), {"theta": 500_000.0}),
]


@pytest.mark.parametrize(("shape", "options"), ROTARY)
def test_rotary_is_the_formula(shape, options):
    x, weight = normal(0, *shape), normal(1, *shape)
    y, _, for_x, _ = ours(al.rotary(**options), {}, x, weight)
    steps = np.arange(shape[1])
    close(y, turned(x, steps, **options))
    close(for_x, turned(weight, -steps, **options))  # back by the same angle


@pytest.mark.parametrize("interleaved", [False, True])
def test_rotary_at_positions_that_come_with_the_input(interleaved):
    x = normal(0, 2, 4, 3, 6)
    layer = al.rotary(interleaved=interleaved)
    for positions in (np.array([7, 0, 3, 100]), np.array([[0, 1, 2, 3], [5, 5, 0, 9]])):
        want = turned(x, positions, interleaved=interleaved)
        close(run(layer, {}, (x, positions)), want)
        close(run(layer, {}, {"x": x, "positions": positions}), want)


def test_rotary_with_frequencies_for_longer_contexts():
    x, n = normal(0, 1, 30, 2, 16), 16
    steps = 10_000.0 ** (-np.arange(0, n, 2) / n)
    want = turned(x, np.arange(30), steps=llama3(steps))
    close(run(al.rotary(frequencies=llama3), {}, x), want)
    linear = al.rotary(frequencies=lambda f: f / 4)
    close(run(linear, {}, x), turned(x, np.arange(30) / 4))


def test_rotary_products_depend_on_the_distance_alone():
    q, k = normal(0, 1, 1, 1, 8), normal(1, 1, 1, 1, 8)
    layer = al.rotary()

    def product(i, j):
        a, b = (layer.predict({}, {}, (x, jnp.array([p]))) for x, p in ((q, i), (k, j)))
        return float(jnp.sum(a * b))

    assert product(5, 2) == pytest.approx(product(105, 102), abs=1e-4)
    assert product(5, 2) != pytest.approx(product(5, 3), abs=1e-3)


def test_bfloat16_is_turned_in_float32():
    x = jnp.asarray(normal(0, 1, 300, 1, 4), jnp.bfloat16)
    y = al.rotary().predict({}, {}, x)
    assert y.dtype == jnp.bfloat16
    close(
        y.astype(jnp.float32), turned(np.asarray(x, np.float32), np.arange(300)), 0.01
    )


def sinusoids(positions, n, theta=10_000.0):
    table = np.zeros((*np.shape(positions), n))
    for i in range(n):
        angle = np.asarray(positions) / theta ** (2 * (i // 2) / n)
        table[..., i] = np.sin(angle) if i % 2 == 0 else np.cos(angle)
    return table


@pytest.mark.parametrize("shape", [(2, 5, 8), (1, 1, 3), (2, 70, 5), (1, 4, 2, 6)])
def test_sinusoids_are_the_paper(shape):
    x = normal(0, *shape)
    table = sinusoids(np.arange(shape[1]), shape[-1])
    table = table.reshape(1, shape[1], *(1,) * (len(shape) - 3), shape[-1])
    close(run(al.sinusoidal_positions(), {}, x), x + table)
    at = np.array([[3] * shape[1]])
    table = sinusoids(at, shape[-1]).reshape(
        1, shape[1], *(1,) * (len(shape) - 3), shape[-1]
    )
    close(run(al.sinusoidal_positions(), {}, (x, at)), x + table)


def test_learned_positions_are_rows_of_a_table():
    layer, x, weight = al.learned_positions(7), normal(0, 2, 4, 3), normal(1, 2, 4, 3)
    params, state = layer.init(KEY, x)
    assert state == {}
    params = drawn(params)
    y, grads, for_x, _ = ours(layer, params, x, weight)
    close(y, x + np.asarray(params["embedding"])[:4])
    close(for_x, weight)
    want = np.concatenate([weight.sum(0), np.zeros((3, 3))])
    close(grads["embedding"], want)
    at = np.array([6, 0, 0, 2])
    close(run(layer, params, (x, at)), x + np.asarray(params["embedding"])[at])


def test_a_learned_position_that_is_not_there_is_nan():
    layer, x = al.learned_positions(3), jnp.zeros((1, 2, 2))
    params, _ = layer.init(KEY, x)
    y = layer.predict(params, {}, (x, jnp.array([-1, 3])))
    assert np.all(np.isnan(y))
    y = layer.predict(params, {}, (x, jnp.array([0, 2])))
    assert np.all(np.isfinite(y))


def test_slopes_are_the_papers():
    np.testing.assert_allclose(alibi_slopes(8), [2.0**-i for i in range(1, 9)])
    np.testing.assert_allclose(alibi_slopes(1), [2.0**-8])

    def reference(n):  # recursive, as it was published
        if math.log2(n).is_integer():
            start = 2 ** (-(2 ** -(math.log2(n) - 3)))
            return [start * start**i for i in range(n)]
        lower = 2 ** math.floor(math.log2(n))
        return reference(lower) + reference(2 * lower)[0::2][: n - lower]

    for n in range(1, 40):
        np.testing.assert_allclose(alibi_slopes(n), reference(n))


def test_unknown_lengths_stay_symbolic():
    spec = al.spec("b t 8")
    for layer in (al.rotary(), al.sinusoidal_positions(), al.learned_positions(9)):
        assert str(layer.output_spec(spec).shape) == "(b, t, 8)"
    assert str(al.sinusoidal_positions().output_spec(al.spec("b t n")).shape) == (
        "(b, t, n)"
    )


ERRORS = {
    "theta": (
        lambda: al.rotary(0),
        "rotary: theta must be a positive number, got 0.",
    ),
    "fraction": (
        lambda: al.rotary(fraction=1.5),
        "rotary: fraction must be in [0, 1], got 1.5.",
    ),
    "odd": (
        lambda: al.rotary().output_spec((1, 2, 3)),
        "rotary: expected an even number of features that turn, not 3, got "
        "float32[1, 2, 3]. Pairs are turned; see fraction=.",
    ),
    "unknown": (
        lambda: al.rotary().output_spec(al.spec("b t n")),
        "rotary: expected (batch, time, ..., features) of known features, got "
        "float32[b, t, n]. Declare its size in the spec.",
    ),
    "rank": (
        lambda: al.sinusoidal_positions().output_spec((2, 3)),
        "sinusoidal_positions: expected (batch, time, ..., features), got "
        "float32[2, 3]. Add a batch axis with x[None].",
    ),
    "positions": (
        lambda: al.rotary().output_spec((jnp.ones((1, 3, 4)), jnp.arange(2))),
        "rotary: expected positions of shape (3,) or (1, 3), got int32[2]. "
        "One number for each token.",
    ),
    "length": (
        lambda: al.learned_positions(2).output_spec((1, 3, 4)),
        "learned_positions: expected at most max_length 2 tokens, got "
        "float32[1, 3, 4]. Cut the input, or make the layer longer.",
    ),
    "max_length": (
        lambda: al.learned_positions(0),
        "learned_positions: max_length must be a positive int, got 0.",
    ),
}


@pytest.mark.parametrize("name", sorted(ERRORS))
def test_errors_word_for_word(name):
    build, message = ERRORS[name]
    with pytest.raises(ValueError, match=r"rotary|positions") as error:
        build()
    assert str(error.value) == message
