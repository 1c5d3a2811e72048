"""Batch norm: running statistics over steps, masks, axes, devices, frozen statistics."""

import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from parity import channels_first, channels_last, close, drawn, normal, reference

import axonlike as al

KEY = jax.random.key(0)


def _params(layer, shape, seed=0):
    """Drawn params, and the state that init makes."""
    params, state = jax.eval_shape(layer.init, KEY, jnp.zeros(shape))
    ones = {"mean": jnp.zeros, "var": jnp.ones}
    return drawn(params, seed), {k: ones[k](s.shape) for k, s in state.items()}


def _trained(layer, params, state, batches, masks=None):
    """Output, gradients and state of each step, and inference after the last."""
    found = {}

    def loss(params, state, x, weight, mask, train):
        given = x if mask is None else (x, mask)
        y, after = layer.apply(params, state, given, train=train)
        return jnp.sum(y * weight), (y, after)

    step = jax.jit(
        jax.value_and_grad(loss, (0, 2), has_aux=True), static_argnames="train"
    )
    for i, (x, weight) in enumerate(batches):
        train, mask = i < len(batches) - 1, None if masks is None else masks[i]
        (_, (y, state)), (grads, for_x) = step(params, state, x, weight, mask, train)
        found |= {f"y {i}": y, f"x {i}": for_x}
        found |= {f"{k} {i}": g for k, g in grads.items()}
    return {**found, **state}


def _batches(shape, seed):
    """Three training steps and one in inference."""
    return [
        (normal(10 * seed + i, *shape) * 2 + i, normal(10 * seed + 5 + i, *shape))
        for i in range(4)
    ]


def _torch(options, params, batches):
    import torch

    x = batches[0][0]
    kind = {2: "BatchNorm1d", 3: "BatchNorm1d", 4: "BatchNorm2d", 5: "BatchNorm3d"}
    theirs = getattr(torch.nn, kind[x.ndim])(
        x.shape[-1], options["epsilon"], 1 - options["momentum"], affine=False
    )
    along, count, found = (1, -1, *(1,) * (x.ndim - 2)), x.size // x.shape[-1], {}
    for i, (x, weight) in enumerate(batches):
        theirs.train(i < len(batches) - 1)
        if i == len(batches) - 1:  # theirs moved towards the sum over count - 1
            start = options["momentum"] ** i
            biased = (theirs.running_var - start) * (count - 1) / count + start
            theirs.running_var.copy_(biased)
        tx = torch.tensor(channels_first(x).copy(), requires_grad=True)
        tp = {
            k: torch.tensor(np.array(p), requires_grad=True) for k, p in params.items()
        }
        ty = theirs(tx)
        ty = ty * tp["scale"].reshape(along) if "scale" in tp else ty
        ty = ty + tp["bias"].reshape(along) if "bias" in tp else ty
        (ty * torch.tensor(channels_first(weight).copy())).sum().backward()
        found |= {f"y {i}": channels_last(ty), f"x {i}": channels_last(tx.grad)}
        found |= {f"{k} {i}": p.grad for k, p in tp.items()}
    return {**found, "mean": theirs.running_mean, "var": theirs.running_var}


@pytest.mark.parametrize("seed", range(20))
def test_steps_and_inference_agree_with_torch(seed):
    rng = np.random.default_rng(seed)
    shape = tuple(int(n) for n in rng.integers(1, 5, int(rng.integers(2, 6))))
    shape = (shape[0] + 3, *shape[1:])
    options = {
        "momentum": float(rng.choice([0.5, 0.9, 0.99])),
        "epsilon": float(rng.choice([1e-5, 1e-3])),
        "use_scale": bool(rng.integers(2)),
        "use_bias": bool(rng.integers(2)),
    }
    layer, batches = al.batch_norm(**options), _batches(shape, seed)
    params, state = _params(layer, shape, seed)
    theirs = reference(
        f"batch_norm/torch {seed}", lambda: _torch(options, params, batches)
    )
    found = _trained(layer, params, state, batches)
    assert found.keys() == theirs.keys()
    for name, array in found.items():
        close(array, theirs[name])


def _flax(options, params, state, batches, masks):
    import flax.linen as nn

    module, found = nn.BatchNorm(use_fast_variance=False, **options), {}

    def loss(params, state, x, weight, mask, train):
        variables = {"params": params, "batch_stats": state}
        y, after = module.apply(
            variables,
            x,
            mask=mask,
            use_running_average=not train,
            mutable=["batch_stats"],
        )
        return jnp.sum(y * weight), (y, after["batch_stats"])

    step = jax.jit(
        jax.value_and_grad(loss, (0, 2), has_aux=True), static_argnames="train"
    )
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        for i, (x, weight) in enumerate(batches):
            train = i < len(batches) - 1
            (_, (y, state)), (grads, for_x) = step(
                params, state, x, weight, masks[i], train
            )
            found |= {f"y {i}": y, f"x {i}": for_x}
            found |= {f"{k} {i}": g for k, g in grads.items()}
    return {**found, **state}


@pytest.mark.parametrize("axis", [-1, (1, -1)])
@pytest.mark.parametrize("shape", [(6, 3), (4, 3, 2), (3, 2, 4, 2)])
def test_masks_and_axes_agree_with_flax(shape, axis):
    if len(shape) == 2 and axis != -1:
        shape = (6, 3, 4)
    layer, batches = al.batch_norm(momentum=0.7, axis=axis), _batches(shape, 3)
    params, state = _params(layer, shape)
    masks = [np.random.default_rng(i).random(shape) < 0.7 for i in range(4)]
    for mask in masks:
        mask[:2] = True  # something counts everywhere
    options = {"momentum": 0.7, "axis": axis}
    theirs = reference(
        f"batch_norm/masked {shape} {axis}",
        lambda: _flax(options, params, state, batches, masks),
    )
    found = _trained(layer, params, state, batches, masks)
    assert found.keys() == theirs.keys()
    for name, array in found.items():
        close(array, theirs[name])


def test_the_running_variance_is_of_the_batch_divided_by_its_size():
    """Flax's and Keras's convention; PyTorch divides by one less."""
    layer = al.batch_norm(momentum=0.0)
    params, state = _params(layer, (4, 1))
    x = np.array([[0.0], [0.0], [2.0], [2.0]], np.float32)
    _, state = layer.apply(params, state, x, train=True)
    np.testing.assert_array_equal(state["var"], [1.0])


def test_defaults_that_libraries_disagree_on():
    """momentum is the fraction that is kept, 0.99; epsilon is 1e-5."""
    layer = al.batch_norm(use_scale=False, use_bias=False)
    _, state = _params(layer, (4, 1))
    x = np.array([[0.0], [0.0], [200.0], [200.0]], np.float32)
    _, state = layer.apply({}, state, x, train=True)
    close(state["mean"], [1.0])
    close(
        layer.predict({}, {"mean": np.zeros(1), "var": np.zeros(1)}, x), x / 1e-5**0.5
    )


def test_momentum_0_keeps_the_last_batch_and_1_keeps_everything():
    x = normal(0, 8, 2)
    for momentum, desired in ((0, x.mean(0)), (1, np.zeros(2))):
        layer = al.batch_norm(momentum=momentum)
        params, state = _params(layer, x.shape)
        close(layer.apply(params, state, x, train=True)[1]["mean"], desired)


def test_running_statistics_of_a_large_mean_lose_no_digits():
    layer, x = al.batch_norm(momentum=0.0), normal(0, 256, 4) * 0.1 + 1000.0
    params, state = _params(layer, x.shape)
    _, state = layer.apply(params, state, x, train=True)
    wide = x.astype(np.float64)
    close(state["mean"], wide.mean(0), 1e-7)
    close(state["var"], wide.var(0))


def test_inference_holds_no_batch_statistics():
    layer = al.batch_norm()
    params, state = _params(layer, (8, 4))
    text = str(jax.make_jaxpr(layer.predict)(params, state, jnp.ones((8, 4))))
    assert "reduce_sum" not in text


def test_frozen_statistics_stay_and_are_used_in_training():
    frozen, usual = al.batch_norm(use_running_average=True), al.batch_norm()
    params, state = _params(usual, (5, 3))
    state = {"mean": state["mean"] + 1, "var": state["var"] * 2}
    x = normal(0, 5, 3)
    y, after = frozen.apply(params, state, x, train=True)
    np.testing.assert_array_equal(y, usual.predict(params, state, x))
    for name, array in after.items():
        np.testing.assert_array_equal(array, state[name])


def test_the_batchs_own_statistics_can_be_used_in_inference():
    own, usual = al.batch_norm(use_running_average=False), al.batch_norm()
    params, state = _params(usual, (5, 3))
    x = normal(0, 5, 3)
    y, after = own.apply(params, state, x)
    np.testing.assert_array_equal(y, usual.apply(params, state, x, train=True)[0])
    np.testing.assert_array_equal(after["mean"], state["mean"])


def test_a_batch_of_which_nothing_counts_moves_no_statistics():
    layer = al.batch_norm()
    params, state = _params(layer, (5, 3))
    step = jax.jit(lambda mask: layer.apply(params, state, (x, mask), train=True)[1])
    x = normal(0, 5, 3) + 1
    none, some = np.zeros(5, bool), np.arange(5) < 2
    for name, array in step(none).items():
        np.testing.assert_array_equal(array, state[name])
    assert not np.array_equal(step(some)["mean"], state["mean"])


def test_an_empty_batch_in_training_word_for_word():
    layer = al.batch_norm()
    with pytest.raises(al.ShapeError) as error:
        layer.apply(*_params(layer, (1, 3)), jnp.ones((0, 3)), train=True)
    assert str(error.value) == (
        "batch_norm: expected (batch, ..., channels) with examples, got float32[0, 3]. "
        "Statistics of an empty batch are not defined: skip it in training."
    )


BAD = {
    "momentum": (
        lambda: al.batch_norm(momentum=1.5),
        "batch_norm: momentum must be in [0, 1], got 1.5.",
    ),
    "axis": (
        lambda: al.batch_norm(axis=()),
        "batch_norm: axis must be an int or several different ones, got ().",
    ),
    "batch axis": (
        lambda: al.batch_norm().output_spec((6,)),
        "batch_norm: expected (batch, ..., channels), got float32[6]. Add a batch axis "
        "with x[None].",
    ),
}


@pytest.mark.parametrize("name", sorted(BAD))
def test_errors_word_for_word(name):
    build, message = BAD[name]
    with pytest.raises(ValueError, match="batch_norm") as error:
        build()
    assert str(error.value) == message


# --- devices


@pytest.mark.parametrize("masked", [False, True])
def test_statistics_over_a_mapped_axis_are_those_of_the_whole_batch(masked):
    whole, each = al.batch_norm(), al.batch_norm(axis_name="devices")
    shape = (8, 3, 2)
    params, state = _params(whole, shape)
    x, weight = normal(0, *shape) + 5, normal(1, *shape)
    mask = np.random.default_rng(0).random(shape[:2]) < (0.6 if masked else 1.1)

    def loss(params, x):
        y, after = whole.apply(params, state, (x, mask), train=True)
        return jnp.sum(y * weight), after

    def loss_in_parts(params, x):
        def one(x, mask):
            return each.apply(params, state, (x, mask), train=True)

        parts = (4, 2, *shape[1:])
        run = jax.vmap(one, axis_name="devices", out_axes=(0, None))
        y, after = run(x.reshape(parts), mask.reshape(parts[:3]))
        return jnp.sum(y.reshape(shape) * weight), after

    results = [
        jax.jit(jax.value_and_grad(f, (0, 1), has_aux=True))(params, x)
        for f in (loss, loss_in_parts)
    ]
    for a, b in zip(*map(jax.tree.leaves, results), strict=True):
        close(a, b)


DEVICES = """
    import os
    os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
    os.environ["JAX_PLATFORMS"] = "cpu"
    import jax, jax.numpy as jnp, numpy as np
    from jax.sharding import PartitionSpec as P
    import axonlike as al

    auto = (jax.sharding.AxisType.Auto,) * 2
    mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=auto)
    x = jax.random.normal(jax.random.key(0), (16, 3, 4)) + 5
    mask = jax.random.uniform(jax.random.key(1), (16, 3)) < 0.7
    weight = jax.random.normal(jax.random.key(2), x.shape)
    params, state = al.batch_norm().init(jax.random.key(0), x)

    def loss(layer, params, x, mask, weight):
        y, after = layer.apply(params, state, (x, mask), train=True)
        return jnp.sum(y * weight), after

    def of_devices(layer, params, x, mask, weight):
        value, after = loss(layer, params, x, mask, weight)
        return jax.lax.psum(value, ("a", "b")), after

    def over(names):
        layer = al.batch_norm(axis_name=names)
        rows = P(("a", "b"))
        function = lambda *args: of_devices(layer, *args)
        return jax.shard_map(
            function, mesh=mesh, in_specs=(P(), rows, rows, rows), out_specs=(P(), P())
        )

    def step(function):
        return jax.jit(jax.value_and_grad(function, (0, 1), has_aux=True))

    wanted = step(lambda *a: loss(al.batch_norm(), *a))(params, x, mask, weight)
    found = step(over(("a", "b")))(params, x, mask, weight)
    for a, b in zip(jax.tree.leaves(wanted), jax.tree.leaves(found), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5)
    print(jax.device_count(), "devices agree")
"""


def test_statistics_over_devices_are_those_of_the_whole_batch():
    code = textwrap.dedent(DEVICES)
    made = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert made.stdout == "8 devices agree\n", made.stderr


def test_a_mask_that_does_not_fit_is_refused_in_inference_too():
    layer, x = al.batch_norm(), jnp.ones((2, 3))
    params, state = layer.init(jax.random.key(0), x)
    with pytest.raises(al.ShapeError, match="a bool mask of the first axes"):
        layer.predict(params, state, (x, jnp.ones(7, bool)))
