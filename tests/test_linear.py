"""Dense: its formula, options, dtypes and errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from parity import close, normal, numpy, ours

import axonlike as al

KEY = jax.random.key(0)


@pytest.mark.parametrize("lead", [(), (5,), (2, 3), (0,), (2, 1, 3)])
def test_dense_is_x_times_kernel_plus_bias(lead):
    layer = al.dense(4, bias_init=al.initializers.normal(1.0))
    x = normal(0, *lead, 3)
    params, state = layer.init(KEY, x)
    assert state == {}
    assert params["kernel"].shape == (3, 4)
    assert params["bias"].shape == (4,)
    y = layer.predict(params, state, x)
    close(y, x @ np.asarray(params["kernel"]) + np.asarray(params["bias"]))


def test_gradients_are_those_of_the_formula():
    layer, x, weight = al.dense(4), normal(0, 5, 3), normal(1, 5, 4)
    params, _ = layer.init(KEY, x)
    _, grads, for_x, _ = ours(layer, params, x, weight)
    close(grads["kernel"], x.T @ weight)
    close(grads["bias"], weight.sum(0))
    close(for_x, weight @ np.asarray(params["kernel"]).T)


def test_bias_is_absent_when_not_used():
    params, _ = al.dense(4, use_bias=False).init(KEY, (None, 3))
    assert set(params) == {"kernel"}


def test_initial_values_follow_the_initializers():
    layer = al.dense(200, bias_init=al.initializers.constant(2.0))
    params, _ = layer.init(KEY, (None, 300))
    assert abs(float(jnp.std(params["kernel"])) - 300**-0.5) < 0.02 * 300**-0.5
    assert bool(jnp.all(params["bias"] == 2))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.complex64])
def test_computation_follows_the_input_and_params_stay_float32(dtype):
    layer, x = al.dense(4), jnp.ones((2, 3), dtype)
    params, _ = layer.init(KEY, x)
    assert params["kernel"].dtype == jnp.float32
    assert layer.predict(params, {}, x).dtype == dtype


def test_param_dtype_is_obeyed():
    layer = al.dense(4, param_dtype=jnp.bfloat16)
    params, _ = layer.init(KEY, (None, 3))
    assert {p.dtype for p in params.values()} == {jnp.dtype(jnp.bfloat16)}
    assert layer.predict(params, {}, jnp.ones((2, 3))).dtype == jnp.float32


def test_precision_reaches_the_product():
    layer = al.dense(4, precision=jax.lax.Precision.HIGHEST)
    params, _ = layer.init(KEY, (None, 3))
    text = str(jax.make_jaxpr(lambda x: layer.predict(params, {}, x))(jnp.ones((2, 3))))
    assert "Precision.HIGHEST" in text


def test_unknown_batch_stays_symbolic():
    spec = al.dense(4).output_spec(al.spec("b t 3"))
    assert str(spec.shape) == "(b, t, 4)"


@pytest.mark.parametrize("features", [0, -3, 2.0, True, "8", None])
def test_features_must_be_a_positive_int(features):
    with pytest.raises(ValueError, match="dense: features must be a positive int") as e:
        al.dense(features)
    assert str(e.value) == f"dense: features must be a positive int, got {features!r}."


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (
            jnp.ones(()),
            "dense: expected (..., n), got float32[]. Add an axis with x[..., None].",
        ),
        (
            jnp.ones((2, 3), jnp.int32),
            "dense: expected a floating-point (..., n), got int32[2, 3]. Convert it "
            "with "
            "x.astype(jnp.float32), or embed ids with embedding().",
        ),
        (
            (jnp.ones((2, 3)), jnp.ones((2, 3))),
            "dense: expected one array (..., n), got (float32[2, 3], float32[2, 3]). "
            "Pick one item: pick(0) or on_item(0, ...).",
        ),
    ],
)
def test_errors_word_for_word(x, message):
    with pytest.raises(al.ShapeError) as error:
        al.dense(4).init(KEY, x)
    assert str(error.value) == message


def test_integers_are_refused_by_apply_too():
    params, _ = al.dense(4).init(KEY, (None, 3))
    with pytest.raises(al.ShapeError, match="floating-point"):
        al.dense(4).predict(params, {}, jnp.ones((2, 3), jnp.int32))


@pytest.mark.parametrize("init", ["lecun_normal", "orthogonal", "zeros"])
def test_an_unknown_width_is_an_error_that_names_the_layer(init):
    layer = al.dense(4, kernel_init=getattr(al.initializers, init)())
    with pytest.raises(al.ShapeError, match="cannot depend on an unknown dim") as error:
        layer.init(KEY, al.spec("b n"))
    assert "in the model: dense(features=4" in "".join(error.value.__notes__)


def test_dense_agrees_with_torch():
    torch = pytest.importorskip("torch")
    layer, x, weight = al.dense(5), normal(0, 7, 3), normal(1, 7, 5)
    params, _ = layer.init(KEY, x)
    theirs = torch.nn.Linear(3, 5)
    with torch.no_grad():
        theirs.weight.copy_(torch.tensor(np.array(params["kernel"]).T))
        theirs.bias.copy_(torch.tensor(np.array(params["bias"])))
    tx = torch.tensor(x, requires_grad=True)
    ty = theirs(tx)
    (ty * torch.tensor(weight)).sum().backward()
    y, grads, for_x, _ = ours(layer, params, x, weight)
    close(y, numpy(ty))
    close(for_x, tx.grad)
    close(grads["kernel"], numpy(theirs.weight.grad).T)
    close(grads["bias"], theirs.bias.grad)


def test_another_dot_general_takes_the_place_of_lax():
    calls = []

    def rounded(a, b, axes, precision=None, **_):
        calls.append(axes)
        return jax.lax.dot_general(jnp.round(a), jnp.round(b), axes, precision)

    layer = al.dense(2, dot_general=rounded, use_bias=False)
    y = layer.predict({"kernel": jnp.full((3, 2), 1.4)}, {}, jnp.full((4, 3), 0.6))
    assert calls
    assert (y == 3).all()
