"""Pooling against PyTorch: outputs and gradients, sizes drawn at random."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from parity import channels_first, channels_last, close, normal, ours, reference

import axonlike as al

COUNT = 22


def seeds(numbers):
    """All in the nightly session, the first ones in every run."""
    marks = {True: pytest.mark.slow, False: ()}
    return [pytest.param(n, marks=marks[i >= 8]) for i, n in enumerate(numbers)]


def _drawn(seed):
    """A geometry that PyTorch has too: one padding for both sides, half a window."""
    draw = np.random.default_rng(seed)
    ndim = 1 + seed % 3
    window = tuple(int(n) for n in draw.integers(1, 4, ndim))
    strides = tuple(int(n) for n in draw.integers(1, 4, ndim))
    pads = tuple(int(draw.integers(0, n // 2 + 1)) for n in window)
    gaps = tuple(int(n) for n in draw.integers(1, 3, ndim))
    sizes = [
        int(draw.integers(0, 5)) + (n - 1) * d + 1
        for n, d in zip(window, gaps, strict=True)
    ]
    batch = (1, 2, 0)[seed % 7 % 3] if seed % 5 == 0 else 2
    return (batch, *sizes, 2), window, strides, pads, gaps, bool(draw.integers(2))


def _theirs(call, x, weight_seed):
    """Output and gradient of a function of a tensor, channels last."""
    import torch

    tx = torch.tensor(channels_first(x).copy(), requires_grad=True)
    ty = call(torch.nn.functional, tx)
    weight = normal(weight_seed, *channels_last(ty).shape)
    (ty * torch.tensor(channels_first(weight).copy())).sum().backward()
    return {"y": channels_last(ty), "for_x": channels_last(tx.grad)}


def _compare(case, layer, x, call):
    desired = reference(f"pool/{case}", lambda: _theirs(call, x, 1))
    weight = normal(1, *desired["y"].shape)
    y, _, for_x, _ = ours(layer, {}, x, weight)
    close(y, desired["y"])
    close(for_x, desired["for_x"])


@pytest.mark.parametrize("seed", seeds(range(COUNT)))
def test_max_pool(seed):
    shape, window, strides, pads, gaps, ceil = _drawn(seed)
    x = np.round(normal(seed, *shape))  # full of ties
    layer = al.max_pool(window, strides, pads, window_dilation=gaps, ceil_mode=ceil)

    def call(functional, tx):
        pool = getattr(functional, f"max_pool{len(window)}d")
        return pool(tx, window, strides, pads, gaps, ceil)

    _compare(f"max {seed}", layer, x, call)


@pytest.mark.parametrize("seed", seeds(range(COUNT)))
def test_avg_pool(seed):
    shape, window, strides, pads, _, ceil = _drawn(seed)
    include = bool(seed % 2)
    layer = al.avg_pool(
        window, strides, pads, ceil_mode=ceil, count_include_pad=include
    )

    def call(functional, tx):
        pool = getattr(functional, f"avg_pool{len(window)}d")
        return pool(tx, window, strides, pads, ceil, include)

    _compare(f"avg {seed}", layer, normal(seed, *shape), call)


@pytest.mark.parametrize("seed", seeds([n for n in range(33) if n % 3 < 2]))
def test_lp_pool(seed):
    shape, window, strides, _, _, _ = _drawn(seed)
    norm = (1, 2, 3, 2.5)[seed % 4]
    x = np.abs(normal(seed, *shape)) + 0.1  # PyTorch takes no absolute value
    layer = al.lp_pool(window, strides, norm=norm)

    def call(functional, tx):
        pool = getattr(functional, f"lp_pool{len(window)}d")
        window_ = window if len(window) > 1 else window[0]
        strides_ = strides if len(window) > 1 else strides[0]
        return pool(tx, norm, window_, strides_)

    _compare(f"lp {seed}", layer, x, call)


def _adaptive(seed):
    draw = np.random.default_rng(100 + seed)
    ndim = 1 + seed % 3
    sizes = tuple(int(n) for n in draw.integers(1, 8, ndim))
    asked = tuple(int(n) for n in draw.integers(1, 6, ndim))
    return (1 + seed % 2, *sizes, 2), asked


@pytest.mark.parametrize("seed", seeds(range(COUNT)))
@pytest.mark.parametrize("kind", ["avg", "max"])
def test_adaptive_pools(kind, seed):
    shape, asked = _adaptive(seed)
    x = normal(seed, *shape)
    x = np.round(x) if kind == "max" else x
    layer = {"avg": al.adaptive_avg_pool, "max": al.adaptive_max_pool}[kind](asked)

    def call(functional, tx):
        return getattr(functional, f"adaptive_{kind}_pool{len(asked)}d")(tx, asked)

    _compare(f"adaptive {kind} {seed}", layer, x, call)


@pytest.mark.parametrize("seed", seeds(range(COUNT)))
def test_blur_pool(seed):
    draw = np.random.default_rng(200 + seed)
    size, strides = int(draw.integers(1, 6)), int(draw.integers(1, 4))
    shape = (1 + seed % 2, *(int(n) for n in draw.integers(5, 9, 2)), 2)
    mode = ["reflect", "circular", "replicate"][seed % 3]

    def call(functional, tx):
        import torch

        taps = torch.tensor(np.poly1d([1, 1]).c, dtype=torch.float32)
        row = torch.ones(1)
        for _ in range(size - 1):
            row = torch.tensor(np.convolve(row.numpy(), taps.numpy()))
        kernel = torch.outer(row, row) / row.sum() ** 2
        low, high = (size - 1) // 2, size // 2
        padded = functional.pad(tx, (low, high, low, high), mode)
        many = kernel.expand(2, 1, size, size)
        return functional.conv2d(padded, many, stride=strides, groups=2)

    layer = al.blur_pool(size, strides, mode.upper())
    _compare(f"blur {seed}", layer, normal(seed, *shape), call)


@pytest.mark.parametrize("kind", ["max", "min"])
def test_min_pool_is_max_pool_of_the_negative(kind):
    x = np.round(normal(0, 2, 7, 6, 3))
    options = {"window_dilation": (1, 2), "ceil_mode": True}
    low = al.min_pool((3, 2), 2, 1, **options)
    high = al.max_pool((3, 2), 2, 1, **options)
    weight = normal(1, *high.output_spec(x).shape)
    y, _, for_x, _ = ours(low, {}, x, weight)
    z, _, for_z, _ = ours(high, {}, -x, weight)
    np.testing.assert_array_equal(y, -np.asarray(z))
    np.testing.assert_array_equal(for_x, for_z)


@pytest.mark.parametrize("norm", [1, 2, 3])
def test_norms_are_of_absolute_values_and_have_gradients_at_zero(norm):
    x = normal(0, 2, 6, 4, 3)
    x[0, :2] = 0
    y, _, for_x, _ = ours(al.lp_pool(2, norm=norm), {}, x, np.ones((2, 3, 2, 3), "f"))
    blocks = np.abs(x.reshape(2, 3, 2, 2, 2, 3)) ** norm
    close(y, blocks.sum((2, 4)) ** (1 / norm))
    assert np.isfinite(for_x).all()
    whole = al.global_lp_pool(norm=norm).predict({}, {}, x)
    close(whole, (np.abs(x) ** norm).sum((1, 2)) ** (1 / norm))
    close(al.adaptive_lp_pool(1, norm=norm).predict({}, {}, x)[:, 0, 0], whole)


def test_a_mask_leaves_out_what_was_padded():
    x = normal(0, 3, 5, 4)
    lengths = np.array([3, 5, 0])
    mask = np.arange(5) < lengths[:, None]
    rows = [(al.global_max_pool(), lambda v: v.max(0))]
    rows += [(al.global_avg_pool(), lambda v: v.mean(0))]
    rows += [(al.global_lp_pool(), lambda v: np.sqrt((v * v).sum(0)))]
    for layer, formula in rows:
        y = jax.jit(lambda x, m, f=layer: f.predict({}, {}, (x, m)))(x, mask)
        close(y[0], formula(x[0, :3]))
        close(y[1], formula(x[1]))
        np.testing.assert_array_equal(y[2], np.zeros(4))
        loss = jax.grad(lambda x, f=layer: f.predict({}, {}, (x, mask)).sum())
        grads = np.asarray(loss(jnp.asarray(x)))
        assert np.isfinite(grads).all()
        assert not grads[~mask].any()


def test_a_mask_must_fit():
    with pytest.raises(al.ShapeError, match="expected a bool mask") as error:
        al.global_max_pool().predict({}, {}, (np.ones((2, 3, 4)), np.ones((2, 4))))
    assert "It is true where a position counts" in str(error.value)


@pytest.mark.parametrize(
    "layer",
    [
        al.max_pool(2),
        al.max_pool(3, 2, ceil_mode=True),
        al.max_pool(2, window_dilation=2),
        al.min_pool(3, 1, "SAME"),
        al.avg_pool(3, 2, 1, ceil_mode=True, count_include_pad=False),
        al.lp_pool(2),
        al.blur_pool(3),
        al.blur_pool(4, 2, "SAME"),
    ],
    ids=str,
)
def test_unknown_sizes_give_the_same_numbers(layer):
    spec = al.spec("b h w 2", constraints=("h>=5", "w>=5"))
    struct = jax.ShapeDtypeStruct(spec.shape, spec.dtype)
    call = jax.export.export(jax.jit(lambda x: layer.predict({}, {}, x)))(struct).call
    for shape in [(2, 5, 8, 2), (1, 7, 6, 2)]:
        x = normal(0, *shape)
        close(call(x), layer.predict({}, {}, x))


def test_four_spatial_axes():
    x = normal(0, 1, 4, 4, 4, 4, 2)
    y = x.reshape(1, 2, 2, 2, 2, 2, 2, 2, 2, 2)
    np.testing.assert_array_equal(
        al.max_pool(2).predict({}, {}, x), y.max((2, 4, 6, 8))
    )
    close(al.avg_pool(2).predict({}, {}, x), y.mean((2, 4, 6, 8)))


ERRORS = {
    "norm": (
        lambda: al.lp_pool(2, norm=0.5),
        "lp_pool: norm must be a number from 1 on, got 0.5.",
    ),
    "output_size": (
        lambda: al.adaptive_avg_pool((2, 0)),
        "adaptive_avg_pool: output_size must be a positive int or for each spatial "
        "axis one or None, got (2, 0).",
    ),
    "unknown": (
        lambda: al.adaptive_max_pool(2).output_spec(al.spec("b h 3")),
        "adaptive_max_pool: expected (batch, *spatial, channels) with spatial axes of "
        "a known size from 1, got float32[b, h, 3]. Where all positions are pooled, "
        "use a global pool.",
    ),
    "nothing starts": (
        lambda: al.max_pool(5, 2, ceil_mode=True).output_spec((1, 2, 3)),
        "max_pool: expected spatial axes of at least 5 after padding, got "
        "float32[1, 2, 3]. Use a smaller window, or padding='SAME'.",
    ),
}


@pytest.mark.parametrize("name", sorted(ERRORS))
def test_errors_word_for_word(name):
    build, message = ERRORS[name]
    with pytest.raises(ValueError, match=r"must|expected") as error:
        build()
    assert str(error.value) == message
