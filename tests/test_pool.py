"""Pooling: formulas in NumPy, PyTorch, ties, NaN, both formulations, errors."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from parity import close, normal, ours, run, same_pads

import axonlike as al

# input shape, window, strides, padding
CONFIGS = {
    "1d": ((2, 9, 3), 2, None, "VALID"),
    "1d same": ((2, 9, 3), (4,), 3, "SAME"),
    "2d": ((2, 8, 6, 3), 2, None, "VALID"),
    "2d with a rest": ((2, 9, 7, 3), 2, None, "VALID"),
    "2d overlapping": ((2, 9, 7, 3), 3, 2, "VALID"),
    "2d same": ((2, 9, 7, 3), 3, 2, "SAME"),
    "2d same, not overlapping": ((2, 9, 7, 3), (3, 2), None, "SAME"),
    "2d stride 1": ((1, 5, 6, 2), (3, 2), 1, "SAME"),
    "2d int padding": ((2, 7, 6, 3), 3, 2, 1),
    "2d padding for each axis": ((2, 7, 6, 3), (3, 4), (2, 1), (1, (0, 2))),
    "2d stride past the window": ((2, 9, 9, 2), 2, 3, "VALID"),
    "2d whole": ((2, 4, 5, 3), (4, 5), None, "VALID"),
    "2d of one": ((1, 1, 1, 3), 2, None, "SAME"),
    "2d empty batch": ((0, 4, 4, 3), 2, None, "VALID"),
    "3d": ((2, 4, 6, 5, 2), (2, 3, 2), None, "VALID"),
    "3d same": ((1, 4, 3, 5, 2), 3, 2, "SAME"),
    "large window": ((1, 40, 20, 2), (20, 3), (4, 2), "SAME"),
}


def _axes(value, ndim):
    return (value,) * ndim if isinstance(value, int) else tuple(value)


def _geometry(name):
    shape, window, strides, padding = CONFIGS[name]
    ndim = len(shape) - 2
    window = _axes(window, ndim)
    strides = window if strides is None else _axes(strides, ndim)
    if padding == "SAME":
        pads = list(map(same_pads, shape[1:-1], window, strides))
    elif padding == "VALID":
        pads = [(0, 0)] * ndim
    else:
        pads = [_axes(p, 2) for p in _axes(padding, ndim)]
    return window, strides, pads


def _windows(x, name, fill):
    """All windows: `(batch, *positions, channels, taps in row-major order)`."""
    window, strides, pads = _geometry(name)
    x = np.pad(x, [(0, 0), *pads, (0, 0)], constant_values=fill)
    counts = [
        (n - w) // s + 1 for n, w, s in zip(x.shape[1:-1], window, strides, strict=True)
    ]
    taps = [
        x[
            (
                slice(None),
                *(
                    slice(t, t + (c - 1) * s + 1, s)
                    for t, c, s in zip(tap, counts, strides, strict=True)
                ),
            )
        ]
        for tap in itertools.product(*map(range, window))
    ]
    return np.stack(taps, -1)


def _layer(kind, name, **options):
    _, window, strides, padding = CONFIGS[name]
    return kind(window, strides, padding, **options)


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_max_pool_is_the_maximum_of_each_window(name):
    x = normal(0, *CONFIGS[name][0])
    y = run(_layer(al.max_pool, name), {}, x)
    np.testing.assert_array_equal(y, _windows(x, name, -np.inf).max(-1))


@pytest.mark.parametrize("include", [True, False])
@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_avg_pool_is_the_mean_of_each_window(name, include):
    x = normal(0, *CONFIGS[name][0])
    y = run(_layer(al.avg_pool, name, count_include_pad=include), {}, x)
    windows = _windows(x.astype(np.float64), name, 0.0 if include else np.nan)
    close(y, windows.mean(-1) if include else np.nanmean(windows, -1))


def _first_winner(x, name, weight):
    """The gradient by definition: to the first maximum of each window, row by row."""
    window, strides, pads = _geometry(name)
    grads = np.zeros(
        [n + sum(p) for n, p in zip(x.shape, [(0, 0), *pads, (0, 0)], strict=True)]
    )
    winners = _windows(x, name, -np.inf).argmax(-1)
    for place in np.ndindex(winners.shape):
        tap = np.unravel_index(winners[place], window)
        spot = [p * s + t for p, s, t in zip(place[1:-1], strides, tap, strict=True)]
        grads[(place[0], *spot, place[-1])] += weight[place]
    keep = tuple(
        slice(low, low + n) for (low, _), n in zip(pads, x.shape[1:-1], strict=True)
    )
    return grads[(slice(None), *keep)]


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_the_first_of_equal_maxima_gets_the_gradient(name):
    x = np.round(normal(0, *CONFIGS[name][0]))  # full of ties
    layer = _layer(al.max_pool, name)
    weight = normal(1, *layer.output_spec(x).shape)
    _, _, for_x, _ = ours(layer, {}, x, weight)
    close(for_x, _first_winner(x, name, weight))


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_the_gradient_of_a_mean_is_spread_evenly(name):
    x = normal(0, *CONFIGS[name][0])
    layer = _layer(al.avg_pool, name)
    weight = normal(1, *layer.output_spec(x).shape)
    _, _, for_x, _ = ours(layer, {}, x, weight)
    window, strides, pads = _geometry(name)
    padded = np.zeros(
        [n + sum(p) for n, p in zip(x.shape, [(0, 0), *pads, (0, 0)], strict=True)]
    )
    for place in np.ndindex(weight.shape):
        spot = (
            slice(p * s, p * s + w)
            for p, s, w in zip(place[1:-1], strides, window, strict=True)
        )
        padded[(place[0], *spot, place[-1])] += weight[place] / np.prod(window)
    keep = (
        slice(low, low + n) for (low, _), n in zip(pads, x.shape[1:-1], strict=True)
    )
    close(for_x, padded[(slice(None), *keep)])


@pytest.mark.parametrize("kind", [al.max_pool, al.avg_pool])
@pytest.mark.parametrize("name", ["1d same", "2d", "2d same", "2d stride 1"])
def test_unknown_sizes_give_the_same_numbers(kind, name):
    shape = CONFIGS[name][0]
    x, layer = normal(0, *shape), _layer(kind, name)
    dims = " ".join(["b", "h", "w"][: len(shape) - 1])
    facts = tuple(f"{d}>=4" for d in dims.split()[1:])
    spec = al.spec(f"{dims} {shape[-1]}", constraints=facts)
    struct = jax.ShapeDtypeStruct(spec.shape, spec.dtype)
    exported = jax.export.export(jax.jit(lambda x: layer.predict({}, {}, x)))(struct)
    close(exported.call(x), run(layer, {}, x))


def test_a_nan_in_a_window_is_its_maximum():
    x = normal(0, 1, 6, 6, 1)
    x[0, 1, 1, 0] = x[0, 4, 2, 0] = np.nan
    for layer in (al.max_pool(2), al.max_pool(3, 1, "SAME")):
        y = np.asarray(layer.predict({}, {}, x))
        desired = al.max_pool(2) == layer
        for place in np.ndindex(y.shape):
            i, j = place[1:3]
            low = (2 * i, 2 * j) if desired else (max(i - 1, 0), max(j - 1, 0))
            high = (2 * i + 2, 2 * j + 2) if desired else (i + 2, j + 2)
            window = x[0, low[0] : high[0], low[1] : high[1], 0]
            assert np.isnan(y[place]) == np.isnan(window).any()


def test_padding_never_wins_against_small_numbers():
    x = jnp.full((1, 3, 3, 1), -1e30)
    assert bool(jnp.all(al.max_pool(3, 1, "SAME").predict({}, {}, x) == -1e30))


@pytest.mark.parametrize("dtype", [jnp.int32, jnp.uint8, jnp.bool_, jnp.bfloat16])
def test_max_pool_takes_any_dtype(dtype):
    x = (np.arange(36).reshape(1, 6, 6, 1) % 7 - 0).astype(np.int32)
    y = al.max_pool(3, 1, "SAME").predict({}, {}, jnp.asarray(x).astype(dtype))
    desired = al.max_pool(3, 1, "SAME").predict({}, {}, jnp.asarray(x, jnp.float32))
    assert y.dtype == dtype
    np.testing.assert_array_equal(
        np.asarray(y, np.float32), np.asarray(desired.astype(dtype), np.float32)
    )


def test_bfloat16_means_are_rounded_once():
    x = jnp.asarray(normal(0, 1, 15, 15, 1), jnp.bfloat16)
    y = al.avg_pool(15).predict({}, {}, x)
    assert y.dtype == jnp.bfloat16
    assert y.ravel()[0] == jnp.mean(x.astype(jnp.float32)).astype(jnp.bfloat16)


@pytest.mark.parametrize(
    "shape", [(2, 7, 3), (2, 4, 5, 3), (2, 3, 4, 2, 3), (0, 4, 4, 2)]
)
@pytest.mark.parametrize("keepdims", [False, True])
def test_global_pools_reduce_all_positions(shape, keepdims):
    x, axes = normal(0, *shape), tuple(range(1, len(shape) - 1))
    y = al.global_avg_pool(keepdims=keepdims).predict({}, {}, x)
    close(y, x.mean(axes, keepdims=keepdims))
    y = al.global_max_pool(keepdims=keepdims).predict({}, {}, x)
    np.testing.assert_array_equal(y, x.max(axes, keepdims=keepdims))


def test_global_max_pool_gives_the_gradient_to_the_first_maximum():
    x = np.zeros((1, 2, 2, 1), np.float32)
    x[0, 0, 1, 0] = x[0, 1, 0, 0] = 5
    grads = jax.grad(lambda x: al.global_max_pool().predict({}, {}, x).sum())(x)
    np.testing.assert_array_equal(grads[0, :, :, 0], [[0, 1], [0, 0]])


def test_global_max_pool_survives_infinities_and_integers():
    x = np.full((1, 2, 2, 1), -np.inf, np.float32)
    assert al.global_max_pool().predict({}, {}, x)[0, 0] == -np.inf
    y = al.global_max_pool().predict({}, {}, np.full((1, 2, 2, 1), -3, np.int8))
    assert (y.dtype, int(y[0, 0])) == (jnp.int8, -3)


def test_unknown_sizes_vanish_in_global_pools():
    for layer in (al.global_avg_pool(), al.global_max_pool()):
        assert str(layer.output_spec(al.spec("b h w 3")).shape) == "(b, 3)"
        exported = jax.export.export(jax.jit(lambda x, m=layer: m.predict({}, {}, x)))
        spec = al.spec("b h w 3")
        call = exported(jax.ShapeDtypeStruct(spec.shape, spec.dtype)).call
        x = normal(0, 2, 3, 4, 3)
        close(call(x), run(layer, {}, x))


ERRORS = {
    "window": (
        lambda: al.max_pool(0),
        "max_pool: window must be a positive int or one for each spatial axis, got 0.",
    ),
    "strides": (
        lambda: al.avg_pool(2, (1, -1)),
        "avg_pool: strides must be a positive int or one for each spatial axis, "
        "got (1, -1).",
    ),
    "agreement": (
        lambda: al.max_pool((2, 2), (1, 1, 1)),
        "max_pool: strides must have as many items as window (2, 2), got (1, 1, 1).",
    ),
    "padding": (
        lambda: al.max_pool(2, padding="CAUSAL"),
        "max_pool: padding must be one of SAME, VALID, an int from 0 on, or for each "
        "spatial axis such an int or a pair (low, high), got 'CAUSAL'.",
    ),
    "strides of a blur": (
        lambda: al.blur_pool(3, 0),
        "blur_pool: strides must be a positive int or one for each spatial axis, got 0.",
    ),
    "agreement of a blur": (
        lambda: al.blur_pool(3, (2, 2), (1,)),
        "blur_pool: padding must have as many items as strides (2, 2), got (1,).",
    ),
    "rank": (
        lambda: al.max_pool((2, 2)).output_spec((None, 8, 3)),
        "max_pool: expected (batch, n, n, channels), got float32[_0, 8, 3]. Option "
        "(2, 2) is for 2 spatial axes.",
    ),
    "size": (
        lambda: al.avg_pool(9).output_spec((None, 8, 8, 3)),
        "avg_pool: expected spatial axes of at least 9 after padding, got "
        "float32[_0, 8, 8, 3]. Use a smaller window, or padding='SAME'.",
    ),
    "dtype": (
        lambda: al.avg_pool(2).output_spec(al.spec("b 8 8 3", int)),
        "avg_pool: expected a floating-point (batch, *spatial, channels) with 1 or more "
        "spatial axes, got int32[b, 8, 8, 3]. Convert it with x.astype(jnp.float32), "
        "or "
        "embed ids with embedding().",
    ),
    "no positions": (
        lambda: al.global_max_pool().output_spec((2, 0, 3)),
        "global_max_pool: expected spatial axes of at least 1, got float32[2, 0, 3]. "
        "There is nothing to slide over.",
    ),
    "global rank": (
        lambda: al.global_avg_pool().output_spec((2, 3)),
        "global_avg_pool: expected (batch, *spatial, channels) with 1 or more spatial "
        "axes, "
        "got float32[2, 3]. Add an axis of size 1 with x[..., None] where channels are "
        "missing.",
    ),
}


def test_means_in_float64_lose_no_digits_to_their_counts():
    x = np.arange(5.0).reshape(1, 5, 1) / 7
    with jax.enable_x64(True):
        y = al.avg_pool(3, 2, 1, count_include_pad=False).predict(
            {}, {}, jnp.asarray(x)
        )
    means = [x[0, :2].mean(), x[0, 1:4].mean(), x[0, 3:].mean()]
    np.testing.assert_allclose(y[0, :, 0], means, rtol=1e-15)


@pytest.mark.parametrize("name", sorted(ERRORS))
def test_errors_word_for_word(name):
    build, message = ERRORS[name]
    with pytest.raises(ValueError, match="pool") as error:
        build()
    assert str(error.value) == message
