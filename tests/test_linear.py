"""Dense and low rank: formulas, PyTorch, options, dtypes and errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from by_torch import COUNT, LEADS, agrees, drawn_options
from jax.ad_checkpoint import print_saved_residuals
from parity import close, normal, ours

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


def _dense_by_torch(axes):
    def define(p, x):
        import torch

        y = torch.tensordot(x, p["kernel"], (axes, tuple(range(len(axes)))))
        return y + p["bias"] if "bias" in p else y

    return define


@pytest.mark.parametrize("seed", range(COUNT))
def test_dense_agrees_with_torch(seed):
    choice = drawn_options(
        seed, lead=LEADS, n=(1, 2, 5), features=(1, 3, 4), use_bias=(True, False)
    )
    lead, n = choice.pop("lead"), choice.pop("n")
    x = normal(seed, *lead, n)
    agrees(f"linear/dense {seed}", al.dense(**choice), [x], _dense_by_torch((-1,)))


@pytest.mark.parametrize("seed", range(COUNT))
def test_dense_over_several_axes_agrees_with_torch(seed):
    axes = ((-1,), (0,), (1, 2), (-1, 0), (-2, -1), (3, 1), (0, 1, 2), (1, 2, 3))
    choice = drawn_options(
        seed,
        axis=axes,
        features=((1,), (4,), (2, 3), (3, 1, 2)),
        use_bias=(True, False),
        shape=((2, 3, 4, 5), (0, 3, 1, 2), (1, 1, 2, 3)),
    )
    shape = choice.pop("shape")
    if any(shape[i] == 0 for i in choice["axis"]):
        shape = (2, 3, 1, 2)
    order = tuple(sorted(i % 4 for i in choice["axis"]))
    layer = al.dense(**choice)
    agrees(
        f"linear/general {seed}", layer, [normal(seed, *shape)], _dense_by_torch(order)
    )


def test_dense_of_several_axes_is_dense_in_another_shape():
    x = normal(0, 4, 2, 3)
    params, _ = al.dense((5, 2), axis=(1, 2)).init(KEY, x)
    flat, _ = al.dense(10).init(KEY, x.reshape(4, 6))
    np.testing.assert_array_equal(params["kernel"].reshape(6, 10), flat["kernel"])
    y = al.dense((5, 2), axis=(1, 2)).predict(params, {}, x)
    close(y.reshape(4, 10), al.dense(10).predict(flat, {}, x.reshape(4, 6)))


def test_initial_variance_counts_all_axes_that_are_summed():
    params, _ = al.dense((8, 25), axis=(1, 2)).init(KEY, (None, 10, 30))
    assert abs(float(jnp.std(params["kernel"])) * 300**0.5 - 1) < 0.02
    init = al.initializers.glorot_normal()
    params, _ = al.dense((8, 25), axis=(1, 2), kernel_init=init).init(
        KEY, (None, 10, 30)
    )
    assert abs(float(jnp.std(params["kernel"])) * 250**0.5 - 1) < 0.02


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"features": ()},
            "dense: features must be a positive int or a tuple of them, got ().",
        ),
        (
            {"features": (3, 0)},
            "dense: features must be a positive int or a tuple of them, got (3, 0).",
        ),
        (
            {"features": 3, "axis": (1, 1)},
            "dense: axis must be an int or several different ones, got (1, 1).",
        ),
        (
            {"features": 3, "axis": 1.5},
            "dense: axis must be an int or several different ones, got 1.5.",
        ),
    ],
)
def test_bad_options_word_for_word(options, message):
    with pytest.raises(ValueError, match="dense") as error:
        al.dense(**options)
    assert str(error.value) == message


def test_an_axis_that_is_not_there_word_for_word():
    with pytest.raises(al.ShapeError) as error:
        al.dense(3, axis=(1, 2)).init(KEY, (4, 5))
    assert str(error.value) == (
        "dense: expected an array with axes (1, 2), got float32[4, 5]. Check axis=."
    )
    with pytest.raises(al.ShapeError, match="an array with axes"):  # the same one twice
        al.dense(3, axis=(1, -1)).init(KEY, (4, 5))


@pytest.mark.parametrize("shape", [(2, 3, 4), (0, 3, 4), (2, 1, 2, 3)])
def test_gradients_of_sequences_are_those_of_the_plain_product(shape):
    x, kernel = normal(0, *shape), normal(1, shape[-1], 5)
    weight = normal(2, *shape[:-1], 5)
    layer = al.dense(5, use_bias=False)

    def ours(x, kernel):
        return jnp.tanh(layer.predict({"kernel": kernel}, {}, x)) * weight

    def plain(x, kernel):
        return jnp.tanh(x @ kernel) * weight

    for argnums in (0, 1, (0, 1)):
        found = jax.jit(jax.grad(lambda *a: ours(*a).sum(), argnums))(x, kernel)
        wanted = jax.jit(jax.grad(lambda *a: plain(*a).sum(), argnums))(x, kernel)
        jax.tree.map(close, found, wanted)
    tangents = (normal(3, *shape), normal(4, shape[-1], 5))
    for a, b in zip(
        jax.jvp(ours, (x, kernel), tangents),
        jax.jvp(plain, (x, kernel), tangents),
        strict=True,
    ):
        close(a, b)


def test_second_derivatives_of_sequences_are_those_of_the_plain_product():
    x, kernel, layer = normal(0, 2, 2, 3), normal(1, 3, 2), al.dense(2, use_bias=False)

    def ours(x, kernel):
        return jnp.sum(jnp.tanh(layer.predict({"kernel": kernel}, {}, x)))

    def plain(x, kernel):
        return jnp.sum(jnp.tanh(x @ kernel))

    found, wanted = (jax.jit(jax.hessian(f, (0, 1)))(x, kernel) for f in (ours, plain))
    jax.tree.map(close, found, wanted)


def test_what_is_kept_for_the_gradient_is_the_input_itself(capsys):
    model, x = al.dense(2) & al.dense(3), jnp.ones((2, 5, 4))
    params, _ = model.init(KEY, x)

    def loss(params, x):
        return sum(jnp.sum(y) for y in model.predict(params, {}, x))

    print_saved_residuals(loss, params, x)
    kept = [line for line in capsys.readouterr().out.splitlines() if "from" in line]
    assert sum(line.startswith("f32[2,5,4]") for line in kept) == 1
    assert not any(line.startswith("f32[10,4]") for line in kept)


@pytest.mark.parametrize("seed", range(COUNT))
def test_low_rank_agrees_with_torch(seed):
    choice = drawn_options(
        seed,
        lead=LEADS,
        n=(1, 5),
        features=(1, 4),
        rank=(1, 2, 3),
        use_bias=(True, False),
    )
    lead, n = choice.pop("lead"), choice.pop("n")

    def define(p, x):
        y = x @ p["down"]["kernel"] @ p["up"]["kernel"]
        return y + p["up"]["bias"] if "bias" in p["up"] else y

    agrees(
        f"linear/low_rank {seed}",
        al.low_rank(**choice),
        [normal(seed, *lead, n)],
        define,
    )


@pytest.mark.parametrize("name", ["features", "rank"])
def test_sizes_of_low_rank_must_be_positive_ints(name):
    with pytest.raises(
        ValueError, match=f"low_rank: {name} must be a positive int"
    ) as e:
        al.low_rank(**{"features": 3, "rank": 2, name: 0})
    assert str(e.value) == f"low_rank: {name} must be a positive int, got 0."


def test_another_dot_general_takes_the_place_of_lax():
    calls = []

    def rounded(a, b, axes, precision=None, **_):
        calls.append(axes)
        return jax.lax.dot_general(jnp.round(a), jnp.round(b), axes, precision)

    layer = al.dense(2, dot_general=rounded, use_bias=False)
    y = layer.predict({"kernel": jnp.full((3, 2), 1.4)}, {}, jnp.full((4, 3), 0.6))
    assert calls
    assert (y == 3).all()
