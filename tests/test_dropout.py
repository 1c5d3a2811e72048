"""Dropout and noise: frequencies, moments, keys, cost when off, errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import axonlike as al
from axonlike.layers.chance import bits_for, kept

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


@pytest.mark.parametrize("rate", [1e-6, 0.003, 0.05, 0.1, 0.25, 1 / 3, 0.5, 0.9, 0.999])
def test_so_many_bits_are_drawn_as_give_the_rate(rate):
    width, threshold = bits_for(rate)
    error = abs(threshold / 2**width - rate)
    assert error <= 2.0 ** -(width + 1)
    assert error <= 1e-3 * rate
    assert error <= 1e-4 * (1 - rate)
    assert width == {0.25: 8, 0.5: 8, 1e-6: 32, 0.999: 32, 0.003: 32}.get(rate, 16)


@pytest.mark.parametrize("rate", [1e-12, 1 - 1e-12])
def test_extreme_rates_are_no_error(rate):
    x = jnp.ones((3, 5))
    assert np.isfinite(_train(al.dropout(rate), x)).all()


@pytest.mark.parametrize("rate", [0.004, 0.1, 0.75])
def test_draws_are_as_frequent_as_the_rate_at_every_place(rate):
    keys = jax.random.split(KEY, 40_000)
    drops = ~np.asarray(jax.jit(jax.vmap(lambda k: kept(k, rate, (2, 5))))(keys))
    allowed = 5 * (rate * (1 - rate) / len(keys)) ** 0.5
    assert np.all(np.abs(drops.mean(0) - rate) < allowed)
    apart = drops.reshape(len(keys), -1) - rate
    shared = apart.T @ apart / len(keys) / (rate * (1 - rate))
    np.testing.assert_allclose(shared, np.eye(10), atol=0.04 if rate > 0.05 else 0.4)


@pytest.mark.parametrize("shape", [(), (1,), (7,), (3, 1), (2, 3, 5), (0, 4), (4, 0)])
def test_every_shape_can_be_drawn(shape):
    for rate in (0.001, 0.1, 0.5):
        assert _train(al.dropout(rate), jnp.ones(shape)).shape == shape


def test_draws_of_copies_and_in_a_compiled_scan_are_those_of_one():
    keys = jax.random.split(KEY, 3)
    one = [kept(key, 0.1, (4, 6)) for key in keys]
    many = jax.jit(jax.vmap(lambda key: kept(key, 0.1, (4, 6))))(keys)
    _, steps = jax.lax.scan(lambda c, key: (c, kept(key, 0.1, (4, 6))), 0, keys)
    np.testing.assert_array_equal(many, jnp.stack(one))
    np.testing.assert_array_equal(steps, jnp.stack(one))


def test_what_is_kept_in_bfloat16_is_scaled_in_float32():
    x = jnp.asarray(np.linspace(1, 2, 1000), jnp.bfloat16)
    y = _train(al.dropout(0.1), x)
    exact = (x.astype(jnp.float32) / 0.9).astype(jnp.bfloat16)
    assert bool(jnp.all((y == 0) | (y == exact)))


FAMILY = {
    "dropout": al.dropout,
    "spatial": al.spatial_dropout,
    "drop_path": al.drop_path,
    "alpha": al.alpha_dropout,
    "feature_alpha": al.feature_alpha_dropout,
    "noise": al.gaussian_noise,
    "gaussian": al.gaussian_dropout,
}


@pytest.mark.parametrize("name", sorted(FAMILY))
def test_all_are_the_identity_in_inference_and_when_off(name):
    x = jnp.ones((2, 3, 4))
    layer = FAMILY[name](0.3)
    assert not jax.make_jaxpr(lambda x: layer.predict({}, {}, x))(x).eqns
    off = FAMILY[name](0.0)
    y, _ = off.apply({}, {}, x, train=True)
    np.testing.assert_array_equal(y, x)


@pytest.mark.parametrize("name", sorted(FAMILY))
def test_all_want_a_key_in_training_and_keep_the_dtype(name):
    layer, x = FAMILY[name](0.3), jnp.ones((2, 3, 4), jnp.bfloat16)
    with pytest.raises(ValueError, match="expected a key in training, got None"):
        layer.apply({}, {}, x, train=True)
    assert _train(layer, x).dtype == jnp.bfloat16


@pytest.mark.parametrize("name", sorted(set(FAMILY) - {"alpha", "feature_alpha"}))
def test_the_expectation_is_the_input(name):
    x = jnp.full((200, 5, 200), 3.0)
    y = np.asarray(_train(FAMILY[name](0.2), x))
    draws = {"drop_path": 200, "spatial": 200 * 200}.get(name, x.size)
    assert abs(y.mean() - 3) < 5 * 3 * (0.2 / 0.8 / draws) ** 0.5


def test_spatial_dropout_drops_whole_channels_of_each_example():
    y = np.asarray(_train(al.spatial_dropout(0.4), jnp.ones((50, 3, 4, 60))))
    np.testing.assert_array_equal(y, np.broadcast_to(y[:, :1, :1], y.shape))
    once = y[:, 0, 0]
    assert abs((once == 0).mean() - 0.4) < 5 * (0.24 / once.size) ** 0.5
    assert not (once == once[:1]).all()


@pytest.mark.parametrize("scaled", [True, False])
def test_drop_path_drops_whole_examples(scaled):
    layer = al.drop_path(0.4, scale_by_keep=scaled)
    y = np.asarray(_train(layer, jnp.ones((4000, 2, 3))))
    np.testing.assert_array_equal(y, np.broadcast_to(y[:, :1, :1], y.shape))
    once = y[:, 0, 0]
    assert abs((once == 0).mean() - 0.4) < 5 * (0.24 / once.size) ** 0.5
    np.testing.assert_allclose(once[once > 0], 1 / 0.6 if scaled else 1, rtol=1e-6)


@pytest.mark.parametrize("rate", [0.05, 0.5])
def test_alpha_dropout_keeps_mean_and_variance(rate):
    x = jnp.asarray(np.random.default_rng(0).standard_normal((400, 1000)), jnp.float32)
    y = np.asarray(_train(al.alpha_dropout(rate), x))
    assert abs(y.mean()) < 0.01
    assert abs(y.var() - 1) < 0.02


@pytest.mark.parametrize("rate", [0.1, 0.6])
def test_alpha_dropout_is_the_formula_of_torch(rate):
    x = np.random.default_rng(0).standard_normal((20, 30)).astype(np.float32)
    low = -1.0507009873554805 * 1.6732632423543772
    scale = 1 / np.sqrt((1 - rate) * (1 + rate * low**2))
    y = np.asarray(_train(al.alpha_dropout(rate), x))
    lost = np.abs(y - scale * (low - rate * low)) < 1e-5
    np.testing.assert_allclose(
        y[~lost], scale * (x - rate * low)[~lost], rtol=1e-5, atol=1e-6
    )
    assert 0 < lost.mean() < 1


def test_feature_alpha_dropout_loses_whole_channels():
    x = np.random.default_rng(0).standard_normal((40, 6, 50)).astype(np.float32)
    y = np.asarray(_train(al.feature_alpha_dropout(0.3), x))
    lost = (y == y[:, :1]).all(1)
    assert abs(lost.mean() - 0.3) < 5 * (0.21 / lost.size) ** 0.5
    assert len(np.unique(y[:, 0][lost])) == 1
    assert not (y[:, :1] == y).all(1)[~lost].any()


def test_gaussian_noise_and_dropout_have_their_standard_deviations():
    x = jnp.full((300, 400), 2.0)
    added = np.asarray(_train(al.gaussian_noise(0.5), x)) - 2
    factor = np.asarray(_train(al.gaussian_dropout(0.2), x)) / 2 - 1
    assert abs(added.std() - 0.5) < 0.005
    assert abs(factor.std() - 0.5) < 0.005


def test_an_array_may_stay_spread_over_devices():
    devices = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("d",))
    spread = jax.sharding.NamedSharding(devices, jax.sharding.PartitionSpec("d", None))
    x = jax.device_put(jnp.ones((4, 6)), spread)
    y = jax.jit(lambda x: _train(al.dropout(0.1), x))(x)
    np.testing.assert_array_equal(y, _train(al.dropout(0.1), jnp.ones((4, 6))))


ERRORS = {
    "key": (
        lambda: al.dropout(0.5).apply({}, {}, jnp.ones(3), train=True),
        "dropout: expected a key in training, got None. Pass apply(..., "
        "key=jax.random.key(seed), train=True).",
    ),
    "dims": (
        lambda: al.dropout(0.5, broadcast_dims=(1.0,)),
        "dropout: broadcast_dims must be a tuple of ints, got (1.0,).",
    ),
    "one dim": (
        lambda: al.dropout(0.5, broadcast_dims=1),
        "dropout: broadcast_dims must be a tuple of ints, got 1.",
    ),
    "axes": (
        lambda: al.dropout(0.5, broadcast_dims=(2,)).output_spec((3, 4)),
        "dropout: expected an array with the axes (2,), got float32[3, 4]. Check "
        "broadcast_dims=.",
    ),
    "stddev": (
        lambda: al.gaussian_noise(-1.0),
        "gaussian_noise: stddev must be a number from 0 on, got -1.0.",
    ),
    "channels": (
        lambda: al.spatial_dropout(0.5).output_spec((3,)),
        "spatial_dropout: expected (batch, *spatial, channels), got float32[3]. Add "
        "the axes that are missing.",
    ),
    "examples": (
        lambda: al.drop_path(0.5).output_spec(jnp.ones(())),
        "drop_path: expected (batch, ...), got float32[]. Add a batch axis.",
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
    with pytest.raises(ValueError, match=r"expected|must") as error:
        build()
    assert str(error.value) == message
