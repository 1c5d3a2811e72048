"""Norms: formulas in NumPy, PyTorch, running statistics, large means, errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from parity import channels_first, channels_last, close, normal, numpy, ours, run

import axonlike as al

KEY = jax.random.key(0)
DRAWN = {
    "scale_init": al.initializers.normal(1.0),
    "bias_init": al.initializers.normal(1.0),
}
KINDS = {
    "batch_norm": al.batch_norm(**DRAWN),
    "layer_norm": al.layer_norm(**DRAWN),
    "group_norm": al.group_norm(2, **DRAWN),
    "rms_norm": al.rms_norm(scale_init=DRAWN["scale_init"]),
}
SHAPES = [(5, 6), (3, 4, 6), (2, 3, 5, 6), (2, 3, 2, 2, 6), (1, 1, 6)]


def _standardized(x, axes, epsilon):
    x = x.astype(np.float64)
    centred = x - x.mean(axes, keepdims=True)
    return centred / np.sqrt(x.var(axes, keepdims=True) + epsilon)


def _formula(kind, x, params):
    """What the norm is by definition, in float64, in training."""
    if kind == "batch_norm":
        y = _standardized(x, tuple(range(x.ndim - 1)), 1e-5)
    elif kind == "layer_norm":
        y = _standardized(x, -1, 1e-6)
    elif kind == "group_norm":
        grouped = x.reshape(*x.shape[:-1], 2, x.shape[-1] // 2)
        axes = (*range(1, x.ndim - 1), x.ndim)
        y = _standardized(grouped, axes, 1e-6).reshape(x.shape)
    else:
        wide = x.astype(np.float64)
        y = wide / np.sqrt(np.square(wide).mean(-1, keepdims=True) + 1e-6)
    return y * np.asarray(params.get("scale", 1.0)) + np.asarray(
        params.get("bias", 0.0)
    )


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_norms_are_their_formulas(kind, shape):
    layer, x = KINDS[kind], normal(0, *shape) * 3 + 1
    params, state = layer.init(KEY, x)
    assert {p.shape for p in params.values()} == {(shape[-1],)}
    y = run(layer, params, x, state, train=True)
    close(y, _formula(kind, x, params))


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_gradients_equal_finite_differences(kind):
    layer, x = KINDS[kind], normal(0, 3, 2, 4)
    params, state = layer.init(KEY, x)
    weight = normal(1, 3, 2, 4)
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda a: np.asarray(a, np.float64), (params, x, weight))

        def loss(params, x):
            y = layer.apply(params, state, x, train=True)[0]
            return jnp.sum(y * wide[2])

        check_grads(jax.jit(loss), wide[:2], order=2, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_large_mean_loses_no_more_digits_than_it_must(kind):
    """E[x^2] - E[x]^2 would be wrong by 100 % here."""
    layer = KINDS[kind]
    x = normal(0, 64, 32) + 1000.0
    params, state = layer.init(KEY, x)
    y = run(layer, params, x, state, train=True)
    close(y, _formula(kind, x, params), 1e-3)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_params_are_absent_when_not_used(kind):
    factory = getattr(al, kind)
    args = (2,) if kind == "group_norm" else ()
    options = {} if kind == "rms_norm" else {"use_bias": False}
    x = normal(0, 4, 6)
    layer = factory(*args, use_scale=False, **options)
    params, state = layer.init(KEY, x)
    assert params == {}
    y = run(layer, params, x, state, train=True)
    close(y, _formula(kind, x, {}))
    if kind != "rms_norm":
        params, _ = factory(*args, use_scale=False).init(KEY, x)
        assert set(params) == {"bias"}
        params, _ = factory(*args, use_bias=False).init(KEY, x)
        assert set(params) == {"scale"}


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_initially_scale_is_one_and_bias_zero(kind):
    params, _ = getattr(al, kind)(*((2,) if kind == "group_norm" else ())).init(
        KEY, (None, 6)
    )
    assert bool(jnp.all(params["scale"] == 1))
    assert bool(jnp.all(params.get("bias", jnp.zeros(1)) == 0))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_small_dtypes_come_out_but_statistics_are_float32(kind, dtype):
    layer = KINDS[kind]
    x = jnp.asarray(normal(0, 64, 8) * 4 + 100, dtype)
    params, state = layer.init(KEY, x)
    assert {p.dtype for p in jax.tree.leaves((params, state))} == {jnp.dtype("float32")}
    y, after = layer.apply(params, state, x, train=True)
    assert y.dtype == dtype
    desired = layer.apply(params, state, x.astype(jnp.float32), train=True)
    np.testing.assert_array_equal(y, desired[0].astype(dtype))
    assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, state)
    for name, array in after.items():
        np.testing.assert_array_equal(array, desired[1][name])


def test_running_statistics_move_towards_those_of_the_batches():
    layer = al.batch_norm(momentum=0.7)
    params, state = layer.init(KEY, (None, 3, 2))
    mean, var = np.zeros(2), np.ones(2)
    for step in range(5):
        x = normal(step, 4, 3, 2) * 2 + 1
        _, state = layer.apply(params, state, x, train=True)
        mean = 0.7 * mean + 0.3 * x.astype(np.float64).mean((0, 1))
        var = 0.7 * var + 0.3 * x.astype(np.float64).var((0, 1))
    close(state["mean"], mean)
    close(state["var"], var)
    x = normal(9, 4, 3, 2)
    y, after = layer.apply(params, state, x)
    close(y, (x - mean) / np.sqrt(var + 1e-5))
    np.testing.assert_array_equal(after["mean"], state["mean"])
    np.testing.assert_array_equal(after["var"], state["var"])


def test_momentum_0_keeps_the_last_batch_and_1_keeps_everything():
    x = normal(0, 8, 2)
    for momentum, desired in ((0, x.mean(0)), (1, np.zeros(2))):
        layer = al.batch_norm(momentum=momentum)
        params, state = layer.init(KEY, x)
        close(layer.apply(params, state, x, train=True)[1]["mean"], desired)


def test_inference_holds_no_batch_statistics():
    layer = al.batch_norm()
    params, state = layer.init(KEY, (None, 4))
    text = str(
        jax.make_jaxpr(lambda x: layer.predict(params, state, x))(jnp.ones((8, 4)))
    )
    assert "reduce_sum" not in text


def test_unknown_sizes_stay_symbolic():
    for layer in KINDS.values():
        assert str(layer.output_spec(al.spec("b h w 6")).shape) == "(b, h, w, 6)"


@pytest.mark.parametrize("shape", [(7, 6), (3, 4, 6), (2, 5, 3, 6)])
def test_batch_norm_agrees_with_torch_over_several_steps(shape):
    torch = pytest.importorskip("torch")
    layer = al.batch_norm(momentum=0.9, **DRAWN)
    params, state = layer.init(KEY, shape)
    kind = {2: "BatchNorm1d", 3: "BatchNorm1d", 4: "BatchNorm2d"}[len(shape)]
    theirs = getattr(torch.nn, kind)(shape[-1], momentum=0.1)
    with torch.no_grad():
        theirs.weight.copy_(torch.tensor(np.array(params["scale"])))
        theirs.bias.copy_(torch.tensor(np.array(params["bias"])))
    running_var = np.ones(shape[-1])
    for step in range(3):
        x, weight = normal(step, *shape) * 2 + 3, normal(10 + step, *shape)
        tx = torch.tensor(channels_first(x).copy(), requires_grad=True)
        theirs.zero_grad()
        ty = theirs(tx)
        (ty * torch.tensor(channels_first(weight).copy())).sum().backward()
        y, grads, for_x, state = ours(layer, params, x, weight, state, train=True)
        close(y, channels_last(ty))
        close(for_x, channels_last(tx.grad), 1e-4)
        close(grads["scale"], theirs.weight.grad)
        close(grads["bias"], theirs.bias.grad)
        count = x.size // shape[-1]
        change = (numpy(theirs.running_var) - 0.9 * running_var) * (count - 1) / count
        running_var = numpy(theirs.running_var).copy()
        desired = change if step == 0 else None
        if desired is not None:
            close(np.asarray(state["var"]) - 0.9, desired)
    close(state["mean"], theirs.running_mean)
    theirs.eval()
    with torch.no_grad():
        theirs.running_var.copy_(torch.tensor(np.array(state["var"])))
    x, weight = normal(20, *shape), normal(21, *shape)
    tx = torch.tensor(channels_first(x).copy(), requires_grad=True)
    ty = theirs(tx)
    (ty * torch.tensor(channels_first(weight).copy())).sum().backward()
    y, _, for_x, _ = ours(layer, params, x, weight, state)
    close(y, channels_last(ty))
    close(for_x, channels_last(tx.grad))


@pytest.mark.parametrize("shape", [(5, 7), (2, 3, 6), (1, 1, 1, 8)])
@pytest.mark.parametrize("kind", ["layer_norm", "rms_norm"])
def test_layer_and_rms_norm_agree_with_torch(kind, shape):
    torch = pytest.importorskip("torch")
    layer, n = KINDS[kind], shape[-1]
    x, weight = normal(0, *shape) * 2 + 3, normal(1, *shape)
    params, _ = layer.init(KEY, x)
    tx = torch.tensor(x, requires_grad=True)
    tp = {k: torch.tensor(np.array(p), requires_grad=True) for k, p in params.items()}
    functional = torch.nn.functional
    if kind == "layer_norm":
        ty = functional.layer_norm(tx, (n,), tp["scale"], tp["bias"], 1e-6)
    else:
        ty = functional.rms_norm(tx, (n,), tp["scale"], 1e-6)
    (ty * torch.tensor(weight)).sum().backward()
    y, grads, for_x, _ = ours(layer, params, x, weight)
    close(y, ty.detach())
    close(for_x, tx.grad)
    for name, tensor in tp.items():
        close(grads[name], tensor.grad)


@pytest.mark.parametrize("groups", [1, 2, 3, 6])
@pytest.mark.parametrize("shape", [(4, 24), (2, 5, 6), (2, 3, 5, 6)])
def test_group_norm_agrees_with_torch(groups, shape):
    torch = pytest.importorskip("torch")
    layer = al.group_norm(groups, epsilon=1e-5, **DRAWN)
    x, weight = normal(0, *shape) * 2 + 3, normal(1, *shape)
    params, _ = layer.init(KEY, x)
    tx = torch.tensor(channels_first(x).copy(), requires_grad=True)
    tp = {k: torch.tensor(np.array(p), requires_grad=True) for k, p in params.items()}
    ty = torch.nn.functional.group_norm(tx, groups, tp["scale"], tp["bias"], 1e-5)
    (ty * torch.tensor(channels_first(weight).copy())).sum().backward()
    y, grads, for_x, _ = ours(layer, params, x, weight)
    close(y, channels_last(ty))
    close(for_x, channels_last(tx.grad), 3e-5)
    for name, tensor in tp.items():
        close(grads[name], tensor.grad)


ERRORS = {
    "momentum": (
        lambda: al.batch_norm(momentum=1.5),
        "batch_norm: momentum must be in [0, 1], got 1.5.",
    ),
    "epsilon": (
        lambda: al.layer_norm(epsilon=-1e-5),
        "layer_norm: epsilon must be a number from 0 on, got -1e-05.",
    ),
    "epsilon is a number": (
        lambda: al.rms_norm(epsilon="1"),
        "rms_norm: epsilon must be a number from 0 on, got '1'.",
    ),
    "groups": (
        lambda: al.group_norm(0),
        "group_norm: num_groups must be a positive int, got 0.",
    ),
    "batch axis": (
        lambda: al.batch_norm().output_spec((6,)),
        "batch_norm: expected (batch, ..., channels), got float32[6]. Add a batch axis "
        "with x[None].",
    ),
    "channels": (
        lambda: al.group_norm(4).output_spec((None, 6)),
        "group_norm: expected (batch, ..., channels) with channels a multiple of 4, "
        "got "
        "float32[_0, 6]. Choose a num_groups that divides the channels.",
    ),
    "scalar": (
        lambda: al.layer_norm().output_spec(jnp.ones(())),
        "layer_norm: expected (..., n), got float32[]. Add an axis with x[..., None].",
    ),
    "dtype": (
        lambda: al.rms_norm().output_spec(al.spec("b 3", int)),
        "rms_norm: expected a floating-point (..., n), got int32[b, 3]. Convert it "
        "with "
        "x.astype(jnp.float32), or embed ids with embedding().",
    ),
    "empty batch": (
        lambda: al.batch_norm().apply(
            {"scale": jnp.ones(3), "bias": jnp.ones(3)},
            {"mean": jnp.zeros(3), "var": jnp.ones(3)},
            jnp.ones((0, 3)),
            train=True,
        ),
        "batch_norm: expected (batch, ..., channels) with examples, got float32[0, 3]. "
        "Statistics of an empty batch are not defined: skip it in training.",
    ),
}


@pytest.mark.parametrize("name", sorted(ERRORS))
def test_errors_word_for_word(name):
    build, message = ERRORS[name]
    with pytest.raises(ValueError, match="_norm") as error:
        build()
    assert str(error.value) == message


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_params_of_width_1_do_not_spread_over_other_widths(kind):
    layer = KINDS[kind] if kind != "group_norm" else al.group_norm(1)
    params, state = layer.init(KEY, (None, 1))
    with pytest.raises(al.ShapeError, match="params were made for that width"):
        layer.predict(params, state, jnp.ones((2, 8)))
