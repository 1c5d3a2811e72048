"""Every default that peers disagree on is the one that docs/defaults.rst says."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import axonlike as al

KEY = jax.random.key(0)
PAGE = Path(__file__).parent.parent / "docs" / "defaults.rst"


def made(layer, *shape):
    return layer.init(KEY, shape)[0]


def test_dropout_takes_the_probability_of_zero():
    y, _ = al.dropout(0.1).apply({}, {}, jnp.ones(10_000), key=KEY, train=True)
    assert 0.08 < float(jnp.mean(y == 0)) < 0.12


def test_padding_of_a_convolution_is_same():
    assert al.conv(2, 3).output_spec((1, 7, 6, 1)).shape == (1, 7, 6, 2)


def test_images_are_batch_first_and_channels_last():
    params = made(al.conv(5, 3), 1, 7, 6, 4)
    assert params["kernel"].shape == (3, 3, 4, 5)
    assert al.global_avg_pool().output_spec((2, 7, 6, 4)).shape == (2, 4)


def test_strides_of_a_pooling_are_its_window():
    for pool in (al.max_pool(3), al.avg_pool(3)):
        assert pool.output_spec((1, 9, 9, 1)).shape == (1, 3, 3, 1)


def test_padding_of_a_mean_pooling_counts():
    y = al.avg_pool(2, padding=1).predict({}, {}, jnp.ones((1, 2, 2, 1)))
    np.testing.assert_allclose(y[0, :, :, 0], 0.25)


def test_weights_are_lecun_normal_truncated_and_biases_zero():
    for params in (made(al.dense(400), 100), made(al.conv(400, (2, 2)), 1, 5, 5, 25)):
        kernel = np.asarray(params["kernel"])
        np.testing.assert_allclose(kernel.std(), 0.1, rtol=0.02)
        assert np.abs(kernel).max() < 0.1 * 2 / 0.87  # cut at two deviations
        assert not params["bias"].any()


def test_an_embedding_deviates_by_the_root_of_its_width():
    table = al.embedding(1000, 64).init(KEY, al.spec("b", int))[0]["embedding"]
    np.testing.assert_allclose(np.asarray(table).std(), 1 / 8, rtol=0.02)


def test_params_are_float32_whatever_comes_in():
    with jax.enable_x64(True):
        for dtype in (jnp.bfloat16, jnp.float64):
            params, _ = al.dense(2).init(KEY, al.spec("b 3", dtype))
            assert params["kernel"].dtype == jnp.float32


def test_epsilon_of_the_norms():
    for norm in (al.layer_norm(), al.rms_norm(), al.group_norm(1), al.instance_norm()):
        assert norm.config["epsilon"] == 1e-6
    assert al.batch_norm().config["epsilon"] == 1e-5
    x = jnp.asarray([[1e-3, -1e-3]])
    y = al.layer_norm().predict(*al.layer_norm().init(KEY, x), x)
    np.testing.assert_allclose(y, x / np.sqrt(1e-6 + 1e-6), rtol=1e-5)


def test_an_rms_norm_has_no_bias():
    assert list(made(al.rms_norm(), 2, 4)) == ["scale"]


def test_a_group_norm_has_32_groups():
    x = jax.random.normal(KEY, (2, 64))
    ours = al.group_norm().predict(made(al.group_norm(), 2, 64), {}, x)
    theirs = al.group_norm(32).predict(made(al.group_norm(32), 2, 64), {}, x)
    assert jnp.array_equal(ours, theirs)
    with pytest.raises(al.ShapeError):
        al.group_norm().output_spec((2, 48))


def test_momentum_and_running_variance_of_a_batch_norm():
    layer, x = al.batch_norm(), jnp.asarray([[0.0], [2.0]])
    params, state = layer.init(KEY, x)
    _, state = layer.apply(params, state, x, train=True)
    np.testing.assert_allclose(state["mean"], 0.01 * 1, rtol=1e-5)
    np.testing.assert_allclose(state["var"], 0.99 * 1 + 0.01 * 1, rtol=1e-5)


def test_scales_start_at_one():
    for norm in (al.layer_norm(), al.rms_norm(), al.group_norm(2), al.batch_norm()):
        assert (made(norm, 2, 4)["scale"] == 1).all()


def test_the_forget_gate_of_an_lstm_starts_open():
    bias = np.split(np.asarray(made(al.lstm(4), 2, 3, 5)["bias"]), 4)
    assert [set(part.tolist()) for part in bias] == [{0.0}, {1.0}, {0.0}, {0.0}]


def test_the_reset_gate_of_a_gru_acts_after_the_product():
    params = made(al.gru(4), 2, 3, 5)
    assert "recurrent_bias" in params
    assert al.gru_cell(4).config["reset_after"] is True


def test_the_slope_of_a_prelu():
    layer, x = al.prelu(), jnp.asarray([-2.0, 2.0])
    y = layer.predict(*layer.init(KEY, x), x)
    np.testing.assert_allclose(y, [-0.5, 2.0])


def test_attention_has_biases():
    params = made(al.attention(2), 1, 3, 4)
    assert all("bias" in part for part in params.values())


def test_gelu_is_that_of_jax():
    layer = al.lift(jax.nn.gelu)
    y = layer.predict({}, {}, jnp.asarray(1.0))
    assert y == jax.nn.gelu(jnp.asarray(1.0), approximate=True)


def test_the_page_has_a_row_for_each_test():
    rows = re.findall(r"^   \* - ", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(rows) - 1 == 21
