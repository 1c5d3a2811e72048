"""Norms: formulas, PyTorch and Flax, masks, axes, large means, derivatives, errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from parity import (
    channels_first,
    channels_last,
    close,
    drawn,
    normal,
    ours,
    reference,
    run,
)

import axonlike as al

KEY = jax.random.key(0)
KINDS = {
    "batch_norm": al.batch_norm(),
    "filter_response_norm": al.filter_response_norm(learn_epsilon=True),
    "group_norm": al.group_norm(2),
    "instance_norm": al.instance_norm(),
    "layer_norm": al.layer_norm(),
    "rms_norm": al.rms_norm(use_bias=True),
}
EPSILON = {"batch_norm": 1e-5}
POSITIONS = ("filter_response_norm", "instance_norm")
SHAPES = [(5, 6), (3, 4, 6), (2, 3, 5, 6), (2, 3, 2, 2, 6), (1, 1, 6)]


def _standardized(x, axes, epsilon, mask=None):
    where = np.broadcast_to(True if mask is None else mask, x.shape)
    mean = x.mean(axes, keepdims=True, where=where)
    var = np.square(x - mean).mean(axes, keepdims=True, where=where)
    return (x - mean) / np.sqrt(var + epsilon)


def _formula(kind, x, params):
    """What the norm is by definition, in float64, in training."""
    x, epsilon = x.astype(np.float64), EPSILON.get(kind, 1e-6)
    positions = tuple(range(1, x.ndim - 1))
    if kind == "batch_norm":
        y = _standardized(x, (0, *positions), epsilon)
    elif kind == "layer_norm":
        y = _standardized(x, -1, epsilon)
    elif kind == "instance_norm":
        y = _standardized(x, positions, epsilon)
    elif kind == "group_norm":
        grouped = x.reshape(*x.shape[:-1], 2, x.shape[-1] // 2)
        y = _standardized(grouped, (*positions, x.ndim), epsilon).reshape(x.shape)
    else:
        axes = -1 if kind == "rms_norm" else positions
        more = np.abs(np.asarray(params.get("epsilon", 0.0)))
        y = x / np.sqrt(np.square(x).mean(axes, keepdims=True) + epsilon + more)
    y = y * np.asarray(params.get("scale", 1.0)) + np.asarray(params.get("bias", 0.0))
    return np.maximum(y, params["threshold"]) if "threshold" in params else y


def _made(kind, shape, seed=0):
    """A norm with drawn params and state, for inputs of a shape."""
    layer = KINDS[kind]
    params, state = jax.eval_shape(layer.init, KEY, jnp.zeros(shape))
    return layer, drawn(params, seed, 1.0), jax.tree.map(jnp.ones_like, state)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_norms_are_their_formulas(kind, shape):
    if kind in POSITIONS and len(shape) == 2:
        return
    layer, params, state = _made(kind, shape)
    assert {p.shape for p in params.values()} == {(shape[-1],)}
    x = normal(0, *shape) * 3 + 1
    close(run(layer, params, x, state, train=True), _formula(kind, x, params))


OFTEN = ("batch_norm", "layer_norm")  # the two ways in which the derivative is written


@pytest.mark.parametrize(
    "kind",
    [k if k in OFTEN else pytest.param(k, marks=pytest.mark.slow) for k in KINDS],
)
def test_derivatives_equal_finite_differences(kind):
    """Forward and reverse, of both orders."""
    layer, *others = _made(kind, (3, 2, 4))
    arrays = (*others, normal(0, 3, 2, 4), normal(1, 3, 2, 4))
    with jax.enable_x64(True):
        *others, x, weight = jax.tree.map(lambda a: np.asarray(a, np.float64), arrays)

        def loss(params, x):
            y, after = layer.apply(params, others[1], x, train=True)
            return jnp.sum(y * weight) + sum(map(jnp.sum, jax.tree.leaves(after)))

        check_grads(jax.jit(loss), (others[0], x), order=2, atol=1e-5, rtol=1e-5)


def _plain(kind, params, x, mask):
    """A norm as JAX derives it, with `where=` for the mask."""
    parts = (2, 5, 2, 3) if kind == "group_norm" else x.shape
    axes = (1, 3) if kind == "group_norm" else 2
    a, where = jnp.reshape(x, parts), jnp.reshape(mask, parts)
    if kind != "rms_norm":
        a = a - jnp.mean(a, axes, keepdims=True, where=where)
    var = jnp.mean(jnp.square(a), axes, keepdims=True, where=where)
    y = jnp.reshape(a / jnp.sqrt(var + 1e-3), x.shape)
    y = y * jnp.broadcast_to(params.get("scale", jnp.ones(6)), x.shape)
    return y + jnp.broadcast_to(params.get("bias", jnp.zeros(6)), x.shape)


@pytest.mark.parametrize(
    "options", [{}, {"use_bias": False}, {"use_scale": False}], ids=str
)
@pytest.mark.parametrize("kind", ["group_norm", "layer_norm", "rms_norm"])
def test_the_derivative_is_that_of_the_plain_formula(kind, options):
    """Also where a mask leaves numbers out, and a bias or a scale is absent."""
    args = (2,) if kind == "group_norm" else ()
    layer = getattr(al, kind)(*args, epsilon=1e-3, **options)
    params, x = drawn(layer.init(KEY, (2, 5, 6))[0]), normal(1, 2, 5, 6)
    mask = jnp.asarray(np.random.default_rng(0).random((2, 5, 6)) < 0.7)

    def both(params, x):
        y = layer.predict(params, {}, (x, mask))
        wanted = _plain(kind, params, x, mask)
        return jnp.sum(jnp.sin(y)), jnp.sum(jnp.sin(wanted))

    found, wanted = jax.jit(jax.jacrev(both, (0, 1)))(params, x)
    for a, b in zip(*map(jax.tree.leaves, (found, wanted)), strict=True):
        close(a, b, 2e-5)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_large_mean_loses_no_digits(kind):
    """E[x^2] - E[x]^2 would be wrong by 100 % here, a mean in float32 by 3e-5."""
    shape = (16, 8, 32)
    layer, params, state = _made(kind, shape)
    x = normal(0, *shape) + 1000.0
    y = run(layer, params, x, state, train=True)
    close(y, _formula(kind, x, params))


@pytest.mark.parametrize("number", [3e7, 1e8, 1e12, 1e20])
def test_large_numbers_that_are_all_equal_are_not_spread(number):
    x = number * (1 + np.random.default_rng(0).random((4, 1)))
    x = jnp.asarray(np.broadcast_to(x, (4, 100)), jnp.float32)
    layer = al.layer_norm(use_bias=False, use_scale=False)
    rounding = np.finfo(np.float32).eps * np.max(x) / 1e-3  # of a mean, over epsilon
    assert np.all(np.abs(layer.predict({}, {}, x)) <= rounding)


def test_one_huge_number_loses_no_digits():
    x = normal(0, 4, 4096)
    x[:, 0] = 1e4
    layer, params, _ = _made("layer_norm", x.shape)
    close(run(layer, params, x), _formula("layer_norm", x, params))


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_params_are_absent_when_not_used(kind):
    factory = getattr(al, kind)
    args = (2,) if kind == "group_norm" else ()
    no_more = {"use_threshold": False} if kind == "filter_response_norm" else {}
    x = normal(0, 4, 3, 6)
    layer = factory(*args, use_scale=False, use_bias=False, **no_more)
    params, state = layer.init(KEY, x)
    assert params == {}
    close(run(layer, {}, x, state, train=True), _formula(kind, x, {}))
    for used, unused in (("bias", "scale"), ("scale", "bias")):
        options = {f"use_{used}": True, f"use_{unused}": False}
        params, _ = factory(*args, **options, **no_more).init(KEY, x)
        assert set(params) == {used}


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_initially_scale_is_one_and_bias_zero(kind):
    params, _ = KINDS[kind].init(KEY, (None, 3, 6))
    assert bool(jnp.all(params["scale"] == 1))
    assert bool(jnp.all(params["bias"] == 0))


def test_defaults_that_libraries_disagree_on():
    """Epsilon is Flax's, not PyTorch's 1e-5; a scale of 1 is added by an option."""
    small = np.full((1, 2), 1e-3, np.float32) * np.array([[1.0, -1.0]], np.float32)
    for kind, epsilon in (("layer_norm", 1e-6), ("rms_norm", 1e-6)):
        layer = getattr(al, kind)()
        y = layer.predict(layer.init(KEY, small)[0], {}, small)
        close(y, small / np.sqrt(np.square(small).mean() + epsilon))
    assert set(al.rms_norm().init(KEY, small)[0]) == {"scale"}
    gemma = al.rms_norm(scale_offset=1.0, scale_init=al.initializers.zeros())
    params, _ = gemma.init(KEY, small)
    np.testing.assert_array_equal(params["scale"], np.zeros(2))
    close(gemma.predict(params, {}, small), small / np.sqrt(1e-6 + 1e-6))
    default, many = al.group_norm(), al.spec("b 3 64")
    assert default.output_spec(many).shape == al.group_norm(32).output_spec(many).shape
    with pytest.raises(al.ShapeError, match="a multiple of 32"):
        default.output_spec(al.spec("b 3 48"))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_small_dtypes_come_out_but_statistics_are_float32(kind, dtype):
    layer, params, state = _made(kind, (64, 3, 8))
    x = jnp.asarray(normal(0, 64, 3, 8) * 4 + 100, dtype)
    assert {p.dtype for p in jax.tree.leaves(layer.init(KEY, x))} == {
        jnp.dtype("float32")
    }
    y, after = layer.apply(params, state, x, train=True)
    assert y.dtype == dtype
    desired = layer.apply(params, state, x.astype(jnp.float32), train=True)
    unit = float(jnp.finfo(dtype).eps)  # statistics in 16 bits would be off by more
    y = y.astype(jnp.float32)
    np.testing.assert_allclose(y, desired[0], rtol=unit, atol=1e-5)
    for name, array in after.items():
        np.testing.assert_array_equal(array, desired[1][name])


def test_unknown_sizes_stay_symbolic():
    for layer in KINDS.values():
        assert str(layer.output_spec(al.spec("b h w 6")).shape) == "(b, h, w, 6)"


# --- PyTorch


def _drawn_case(kind, seed):
    """A shape and options: batches of one, single positions, all epsilons.

    At least 4 numbers share a mean: of fewer the gradient is a difference of nearly
    equal numbers, in which float32 keeps few digits, whoever computes it.
    """
    rng = np.random.default_rng(100 * seed + sorted(KINDS).index(kind))
    ndim = int(rng.integers(3 if kind in POSITIONS else 2, 5))
    shape = [int(n) for n in rng.integers(1, 6, ndim)]
    shape[1 if kind in POSITIONS else -1] += 3
    options = {"epsilon": float(rng.choice([1e-6, 1e-5, 1e-3]))}
    if kind == "group_norm":
        options["num_groups"] = int(rng.integers(1, 4))
        shape[-1] *= options["num_groups"]
    options["use_scale"], options["use_bias"] = map(bool, rng.integers(0, 2, 2))
    return tuple(shape), options


def _torch(kind, x, weight, params, options):
    """Output and gradients by PyTorch, channels first where it has them so."""
    import torch

    functional, epsilon = torch.nn.functional, options["epsilon"]
    first = kind not in ("layer_norm", "rms_norm")
    along = (1, -1, *(1,) * (x.ndim - 2)) if first else (-1,)
    tx = torch.tensor(channels_first(x).copy() if first else x, requires_grad=True)
    tp = {k: torch.tensor(np.array(p), requires_grad=True) for k, p in params.items()}
    if kind == "layer_norm":
        ty = functional.layer_norm(tx, x.shape[-1:], eps=epsilon)
    elif kind == "rms_norm":
        ty = functional.rms_norm(tx, x.shape[-1:], eps=epsilon)
    elif kind == "group_norm":
        ty = functional.group_norm(tx, options["num_groups"], eps=epsilon)
    elif kind == "instance_norm":
        ty = functional.instance_norm(tx, eps=epsilon)
    else:
        ty = tx * torch.rsqrt((tx * tx).mean(tuple(range(2, x.ndim)), True) + epsilon)
    ty = ty * tp["scale"].reshape(along) if "scale" in tp else ty
    ty = ty + tp["bias"].reshape(along) if "bias" in tp else ty
    if "threshold" in tp:
        ty = torch.maximum(ty, tp["threshold"].reshape(along))
    tw = torch.tensor(channels_first(weight).copy() if first else weight)
    (ty * tw).sum().backward()
    last = channels_last if first else (lambda a: a)
    return {"y": last(ty), "x": last(tx.grad), **{k: p.grad for k, p in tp.items()}}


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"batch_norm"}))
def test_norms_agree_with_torch(kind, seed):
    shape, options = _drawn_case(kind, seed)
    layer = getattr(al, kind)(**options)
    params = drawn(jax.eval_shape(layer.init, KEY, jnp.ones(shape))[0], seed)
    x, weight = normal(seed, *shape) * 2 + 1, normal(seed + 1, *shape)
    theirs = reference(
        f"norm/{kind} {seed}", lambda: _torch(kind, x, weight, params, options)
    )
    y, grads, for_x, _ = ours(layer, params, x, weight)
    close(y, theirs["y"])
    close(for_x, theirs["x"])
    for name, grad in grads.items():
        close(grad, theirs[name])


def test_several_axes_are_torchs_normalized_shape():
    layer = al.layer_norm(reduction_axes=(-2, -1), feature_axes=(1, 2))
    shape = (3, 4, 5)
    params = drawn(layer.init(KEY, shape)[0])
    assert params["scale"].shape == (4, 5)
    x, weight = normal(0, *shape), normal(1, *shape)

    def compute():
        import torch

        tx = torch.tensor(x, requires_grad=True)
        scale, bias = (torch.tensor(np.array(params[k])) for k in ("scale", "bias"))
        ty = torch.nn.functional.layer_norm(tx, (4, 5), scale, bias, 1e-6)
        (ty * torch.tensor(weight)).sum().backward()
        return {"y": ty, "x": tx.grad}

    theirs = reference("norm/normalized shape", compute)
    y, _, for_x, _ = ours(layer, params, x, weight)
    close(y, theirs["y"])
    close(for_x, theirs["x"])


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_an_empty_batch_in_inference_stays_empty(kind):
    layer, params, state = _made(kind, (2, 3, 4))
    assert layer.predict(params, state, jnp.ones((0, 3, 4))).shape == (0, 3, 4)


# --- Flax: masks and axes

MASKED = {
    "layer_norm": (
        "LayerNorm",
        [{}, {"reduction_axes": (1, 2), "feature_axes": (1, 2)}],
    ),
    "rms_norm": ("RMSNorm", [{}, {"reduction_axes": (1, 2), "feature_axes": 1}]),
    "group_norm": ("GroupNorm", [{"num_groups": 2}, {"group_size": 2}]),
    "instance_norm": ("InstanceNorm", [{}, {"feature_axes": (1, 2)}]),
}
SIZES = ((3, 4, 4), (2, 3, 2, 4), (1, 4, 2, 6), (2, 5, 6))


def _flax(name, options, x, weight, params, mask):
    """Output and gradients by Flax."""
    import flax.linen as nn

    options = {"num_groups": None, **options} if "group_size" in options else options
    module = getattr(nn, name)(use_fast_variance=False, **options)

    def loss(params, x):
        y = module.apply({"params": params}, x, mask=mask)
        return jnp.sum(y * weight), y

    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        (_, y), (for_params, for_x) = jax.value_and_grad(loss, (0, 1), has_aux=True)(
            params, x
        )
    return {"y": y, "x": for_x, **for_params}


@pytest.mark.parametrize("how", range(2))
@pytest.mark.parametrize("shape", SIZES)
@pytest.mark.parametrize("kind", sorted(MASKED))
def test_masks_and_axes_agree_with_flax(kind, shape, how):
    name, choices = MASKED[kind]
    options = choices[how]
    if kind == "instance_norm" and how == 1 and len(shape) == 3:
        shape = (2, 3, 2, 4)
    layer = getattr(al, kind)(
        **options, **({"use_bias": False} if kind == "rms_norm" else {})
    )
    params = drawn(layer.init(KEY, shape)[0])
    x, weight = normal(0, *shape) * 2 + 1, normal(1, *shape)
    mask = np.random.default_rng(how).random(shape) < 0.8
    mask[:, :2] = mask[..., :2] = True  # something counts everywhere
    case = f"norm/{kind} masked {shape} {how}"
    theirs = reference(case, lambda: _flax(name, options, x, weight, params, mask))

    def masked(sub, x):
        return sub.norm(x, mask=jnp.asarray(mask))

    model = al.wire(masked, norm=layer)
    y, grads, for_x, _ = ours(model, {"norm": params}, x, weight)
    close(y, theirs["y"])
    close(for_x, theirs["x"])
    for key, grad in grads["norm"].items():
        close(grad, theirs[key])


@pytest.mark.parametrize("kind", ["batch_norm", "group_norm", "instance_norm"])
def test_what_a_mask_leaves_out_changes_nothing_else(kind):
    """Padding: other examples and positions come out as they would without it."""
    layer, params, state = _made(kind, (2, 5, 4))
    x, mask = normal(0, 2, 5, 4), np.arange(5)[None] < np.array([[5], [3]])
    padded = np.where(mask[:, :, None], x, 1e6).astype(np.float32)
    step = jax.jit(lambda x: layer.apply(params, state, (x, mask), train=True))
    (a, after), (b, after_padded) = step(x), step(padded)
    np.testing.assert_array_equal(a[mask], b[mask])
    for name, array in after.items():
        np.testing.assert_array_equal(array, after_padded[name])
    if kind != "batch_norm":
        alone = run(layer, params, x[1:, :3])
        close(a[1:, :3], alone)


@pytest.mark.parametrize("kind", ["batch_norm", "group_norm", "layer_norm", "rms_norm"])
def test_a_mask_that_leaves_out_everything_gives_finite_numbers(kind):
    layer, params, state = _made(kind, (2, 3, 4))
    mask = np.zeros((2, 3), bool)

    def loss(params, x):
        return jnp.sum(layer.apply(params, state, (x, mask), train=True)[0])

    grads = jax.jit(jax.grad(loss, (0, 1)))(params, normal(0, 2, 3, 4))
    assert all(bool(jnp.all(jnp.isfinite(g))) for g in jax.tree.leaves(grads))


ERRORS = {
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
    "group size": (
        lambda: al.group_norm(group_size=1.5),
        "group_norm: group_size must be a positive int, got 1.5.",
    ),
    "both": (
        lambda: al.group_norm(4, group_size=2),
        "group_norm: num_groups and group_size say the same, got 4 and 2. Give one of "
        "them.",
    ),
    "axes": (
        lambda: al.layer_norm(reduction_axes=(1, 1)),
        "layer_norm: reduction_axes must be an int or several different ones, got "
        "(1, 1).",
    ),
    "offset": (
        lambda: al.rms_norm(scale_offset=1.0, use_scale=False),
        "rms_norm: scale_offset must be 0 without a scale, got 1.0.",
    ),
    "missing axes": (
        lambda: al.layer_norm(feature_axes=3).output_spec((None, 6)),
        "layer_norm: expected axes (3,), got float32[_0, 6]. Check feature_axes=.",
    ),
    "one axis twice": (
        lambda: al.layer_norm(feature_axes=(1, -1)).output_spec((None, 6)),
        "layer_norm: expected axes (1, -1), got float32[_0, 6]. Check feature_axes=.",
    ),
    "groups of another axis": (
        lambda: al.group_norm(2, reduction_axes=1).output_spec((None, 3, 6)),
        "group_norm: expected reduction_axes with the last axis, got (1,). Groups are "
        "of the last axis; batch_norm takes means without it.",
    ),
    "channels": (
        lambda: al.group_norm(4).output_spec((None, 6)),
        "group_norm: expected (batch, ..., channels) with channels a multiple of 4, "
        "got float32[_0, 6]. Choose a num_groups that divides the channels.",
    ),
    "channels of a group": (
        lambda: al.group_norm(group_size=4).output_spec((None, 6)),
        "group_norm: expected (batch, ..., channels) with channels a multiple of 4, "
        "got float32[_0, 6]. Choose a group_size that divides the channels.",
    ),
    "positions": (
        lambda: al.instance_norm().output_spec((None, 6)),
        "instance_norm: expected (batch, ..., channels) with positions, got "
        "float32[_0, 6]. Add a batch axis with x[None].",
    ),
    "scalar": (
        lambda: al.layer_norm().output_spec(jnp.ones(())),
        "layer_norm: expected (..., n), got float32[]. Add an axis with x[..., None].",
    ),
    "dtype": (
        lambda: al.rms_norm().output_spec(al.spec("b 3", int)),
        "rms_norm: expected a floating-point (..., n), got int32[b, 3]. Convert it "
        "with x.astype(jnp.float32), or embed ids with embedding().",
    ),
    "mask": (
        lambda: al.layer_norm().output_spec(((4, 3), al.spec("4 2", bool))),
        "layer_norm: expected a bool mask of the first axes of float32[4, 3], got "
        "bool[4, 2]. It is true where a number counts; sizes may be 1.",
    ),
    "mask of floats": (
        lambda: al.layer_norm().output_spec(((4, 3), (4, 1))),
        "layer_norm: expected a bool mask of the first axes of float32[4, 3], got "
        "float32[4, 1]. It is true where a number counts; sizes may be 1.",
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
    params, state = layer.init(KEY, (None, 2, 1))
    with pytest.raises(al.ShapeError, match="params were made for that width"):
        layer.predict(params, state, jnp.ones((2, 2, 8)))
