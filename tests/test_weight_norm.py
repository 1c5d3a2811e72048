"""Weight norm and spectral norm: PyTorch, where what they add stands, wrappers inside."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from parity import close, drawn, normal, ours, reference, run

import axonlike as al

KEY = jax.random.key(0)
BODIES = {
    "dense": (al.dense(5), (3, 4)),
    "dense to one": (al.dense(1), (2, 3)),
    "conv": (al.conv(3, (2, 2), padding="VALID"), (2, 4, 5, 2)),
    "conv1d strided": (al.conv(4, 3, 2, padding="VALID"), (2, 9, 3)),
}


def _made(layer, shape, seed=0):
    """Drawn params, and what init makes of state."""
    params, state = layer.init(KEY, shape)
    return drawn(params, seed, 1.0), state


def _torch_layer(torch, name, params):
    """PyTorch's layer with these weights, its input channels first; and how to compare."""
    kernel = np.asarray(params["kernel"])
    if name.startswith("dense"):
        theirs, order = torch.nn.Linear(*kernel.shape), (1, 0)
    else:
        ndim, strides = kernel.ndim - 2, 2 if "strided" in name else 1
        conv = getattr(torch.nn, f"Conv{ndim}d")
        theirs = conv(*kernel.shape[-2:], kernel.shape[:-2], strides)
        order = (ndim + 1, ndim, *range(ndim))
    with torch.no_grad():
        theirs.weight.copy_(torch.tensor(kernel.transpose(order).copy()))
        theirs.bias.copy_(torch.tensor(np.array(params["bias"])))
    return theirs, order


def _first(x):
    return np.moveaxis(x, -1, 1).copy()


def _last(a):
    return np.moveaxis(np.asarray(a.detach()), 1, -1)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("name", sorted(BODIES))
def test_weight_norm_agrees_with_torch(name, seed):
    body, shape = BODIES[name]
    layer = al.weight_norm(body)
    params, _ = _made(layer, shape, seed)
    x = normal(seed, *shape)
    weight = normal(seed + 1, *body.output_spec(shape).shape)

    def compute():
        import torch
        from torch.nn.utils import parametrizations

        theirs, order = _torch_layer(torch, name, params)
        parametrizations.weight_norm(theirs)
        own = theirs.parametrizations.weight
        scale = np.array(params["kernel_scale"])
        with torch.no_grad():
            own.original0.copy_(torch.tensor(scale).reshape(own.original0.shape))
        tx = torch.tensor(_first(x), requires_grad=True)
        ty = theirs(tx)
        (ty * torch.tensor(_first(weight))).sum().backward()
        back = np.argsort(order)
        return {
            "y": _last(ty),
            "x": _last(tx.grad),
            "kernel": own.original1.grad.numpy().transpose(back),
            "kernel_scale": own.original0.grad.reshape(-1),
            "bias": theirs.bias.grad,
        }

    theirs = reference(f"weight_norm/length {name} {seed}", compute)
    y, grads, for_x, _ = ours(layer, params, x, weight)
    close(y, theirs["y"])
    close(for_x, theirs["x"])
    assert grads.keys() == params.keys()
    for key, grad in grads.items():
        close(grad, theirs[key])


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("name", sorted(BODIES))
def test_spectral_norm_agrees_with_torch_over_several_steps(name, seed):
    (body, shape), iterations = BODIES[name], 1 + seed % 3
    layer = al.spectral_norm(body, num_iterations=iterations)
    params, state = _made(layer, shape, seed)
    u, v = (normal(seed + i, *state[k].shape) for i, k in enumerate(sorted(state)))
    state = {"kernel_u": u / np.linalg.norm(u), "kernel_v": v / np.linalg.norm(v)}
    steps = [(normal(seed + i, *shape), i < 2) for i in range(3)]
    weight = normal(seed + 1, *body.output_spec(shape).shape)

    def compute():
        import torch
        from torch.nn.utils import parametrizations

        theirs, order = _torch_layer(torch, name, params)
        parametrizations.spectral_norm(theirs, n_power_iterations=iterations)
        own, found = theirs.parametrizations.weight, {}
        spectral = own[0]
        spatial = (*range(2, len(order)), 1) if len(order) > 2 else (1,)
        where = np.arange(own.original.numel() // len(own.original)).reshape(
            own.original.shape[1:]
        )
        rows = where.transpose([axis - 1 for axis in spatial]).reshape(-1)
        with torch.no_grad():
            spectral._u.copy_(torch.tensor(state["kernel_u"]))
            spectral._v[rows] = torch.tensor(state["kernel_v"])
        for i, (x, train) in enumerate(steps):
            theirs.train(train)
            theirs.zero_grad()
            tx = torch.tensor(_first(x), requires_grad=True)
            ty = theirs(tx)
            (ty * torch.tensor(_first(weight))).sum().backward()
            kernel = own.original.grad.numpy().transpose(np.argsort(order))
            found |= {f"y {i}": _last(ty), f"x {i}": _last(tx.grad)}
            found |= {f"kernel {i}": kernel.copy()}
        return {
            **found, "kernel_u": spectral._u, "kernel_v": spectral._v[rows]
        }  # fmt: skip

    theirs = reference(f"weight_norm/spectral {name} {seed}", compute)

    def loss(params, x, state, train):
        y, after = layer.apply(params, state, x, train=train)
        return jnp.sum(y * weight), (y, after)

    step = jax.jit(
        jax.value_and_grad(loss, (0, 1), has_aux=True), static_argnames="train"
    )
    for i, (x, train) in enumerate(steps):
        (_, (y, state)), (grads, for_x) = step(params, x, state, train)
        close(y, theirs[f"y {i}"])
        close(for_x, theirs[f"x {i}"])
        close(grads["kernel"], theirs[f"kernel {i}"], 2e-5)
    for key, array in state.items():
        close(array, theirs[key])


ANY = {
    "dense": (al.dense(5), (3, 4)),
    "conv": (al.conv(3, 3), (2, 4, 5, 2)),
    "pipe": (al.dense(4) >> jax.nn.relu >> al.dense(3), (2, 5)),
    "stacked": (al.repeat(al.residual(al.dense(4)), 3), (2, 4)),
    "unrolled": (al.repeat(al.residual(al.dense(4)), 3, stacked=False), (2, 4)),
    "tied": (al.repeat(al.dense(4), 3, tied=True), (2, 4)),
    "ensemble": (al.ensemble(al.dense(4), 3), (2, 4)),
    "vmap": (al.vmap(al.dense(4)), (2, 3, 5)),
    "attention": (al.attention(2), (2, 3, 4)),
    "shared": (al.shared(al.dense(3)), ((2, 4), (5, 4))),
}


def _inputs(shape, seed=0):
    """Arrays for a shape, or a tuple of shapes."""
    if isinstance(shape[0], int):
        return normal(seed, *shape)
    return tuple(normal(seed + i, *one) for i, one in enumerate(shape))


def _close_all(found, wanted):
    for a, b in zip(*map(jax.tree.leaves, (found, wanted)), strict=True):
        close(a, b)


@pytest.mark.parametrize("name", sorted(ANY))
def test_weight_norm_starts_as_the_layer_without_it(name):
    """The same function; the same weights at the same paths, with lengths beside."""
    body, shape = ANY[name]
    layer, x = al.weight_norm(body), _inputs(shape)
    params, state = layer.init(KEY, x)
    plain, _ = body.init(KEY, x)
    _close_all(run(layer, params, x, state), run(body, plain, x))
    found, wanted = dict(al.paths(params)), dict(al.paths(plain))
    kernels = {path for path in wanted if path.endswith("kernel")}
    assert found.keys() - wanted.keys() == {f"{path}_scale" for path in kernels}
    for path, array in wanted.items():
        np.testing.assert_array_equal(found[path], array)
    for path in kernels:
        lead = path.split("/").count("*")
        axes = tuple(range(lead, wanted[path].ndim - 1))
        square = np.square(np.asarray(wanted[path])).sum(axes)
        close(found[f"{path}_scale"], np.sqrt(square))


@pytest.mark.parametrize("name", sorted(set(ANY) - {"vmap"}))
def test_spectral_norm_divides_by_the_largest_singular_value(name):
    body, shape = ANY[name]
    layer, x = al.spectral_norm(body, num_iterations=50), _inputs(shape)
    params, state = layer.init(KEY, x)
    plain, _ = body.init(KEY, x)
    y, after = jax.jit(layer.apply, static_argnames="train")(
        params, state, x, train=True
    )
    assert jax.tree.structure(after) == jax.tree.structure(state)

    def divided(path, kernel):
        lead = path.split("/").count("*")
        flat = kernel.reshape(*kernel.shape[:lead], -1, kernel.shape[-1])
        largest = np.linalg.svd(flat, compute_uv=False)[..., 0]
        return kernel / largest.reshape(*largest.shape, *(1,) * (kernel.ndim - lead))

    for path, array in al.paths(plain):
        np.testing.assert_array_equal(dict(al.paths(params))[path], array)
    normed = jax.tree_util.tree_map_with_path(
        lambda keys, a: (
            divided(
                jax.tree_util.keystr(keys, simple=True, separator="/"), np.asarray(a)
            )
            if keys[-1].key == "kernel"
            else a
        ),
        plain,
    )
    for a, b in zip(*map(jax.tree.leaves, (y, run(body, normed, x))), strict=True):
        close(a, b, 1e-3)


def test_singular_vectors_move_in_training_only():
    layer = al.spectral_norm(al.dense(4) >> al.dense(3))
    x = normal(0, 2, 5)
    params, state = layer.init(KEY, x)
    other = drawn(params, 3)
    _, after = layer.apply(other, state, x)
    for (path, a), (_, b) in zip(al.paths(state), al.paths(after), strict=True):
        np.testing.assert_array_equal(a, b, path)
    _, after = layer.apply(other, state, x, train=True)
    for (path, a), (_, b) in zip(al.paths(state), al.paths(after), strict=True):
        assert not np.array_equal(a, b), path


def test_state_of_the_body_moves_beside_the_vectors():
    layer = al.spectral_norm(al.dense(4) >> al.batch_norm(momentum=0.5))
    params, state = layer.init(KEY, (None, 3))
    assert sorted(path for path, _ in al.paths(state)) == [
        "batch_norm/mean", "batch_norm/var", "dense/kernel_u", "dense/kernel_v",
    ]  # fmt: skip
    _, after = layer.apply(params, state, normal(0, 5, 3), train=True)
    assert jax.tree.structure(after) == jax.tree.structure(state)
    for (path, a), (_, b) in zip(al.paths(state), al.paths(after), strict=True):
        assert not np.array_equal(a, b), path


@pytest.mark.parametrize("wrap", [al.weight_norm, al.spectral_norm])
def test_a_train_step_around_copies_and_checkpoints(wrap):
    """Outside of a stack, and inside, and with what is computed again: all the same."""
    body = al.residual(al.dense(4) >> jnp.tanh)
    models = [
        wrap(al.repeat(body, 3)),
        al.repeat(wrap(body), 3),
        al.remat(wrap(al.repeat(body, 3, remat=True))),
    ]
    x, found = normal(0, 6, 4), []
    optimizer = optax.sgd(0.1)
    for model in models:
        params, state = model.init(KEY, x)

        def step(params, state, model=model):
            def loss(params):
                y, after = model.apply(params, state, x, train=True)
                return jnp.mean(jnp.square(y - 1)), after

            grads, after = jax.grad(loss, has_aux=True)(params)
            updates, _ = optimizer.update(grads, optimizer.init(params))
            return optax.apply_updates(params, updates), after

        step = jax.jit(step)
        for _ in range(3):
            params, state = step(params, state)
        found.append((params, state))
    for other in found[1:]:
        assert jax.tree.structure(other) == jax.tree.structure(found[0])
        _close_all(other, found[0])


def test_the_length_of_the_stored_kernel_does_not_matter():
    layer = al.weight_norm(al.dense(3))
    params, x = _made(layer, (2, 4))[0], normal(0, 2, 4)
    longer = {**params, "kernel": params["kernel"] * 7}
    close(run(layer, longer, x), run(layer, params, x))


@pytest.mark.parametrize(
    ("axes", "others"), [(-1, (0, 1, 2)), (None, (0, 1, 2, 3)), ((2, 3), (0, 1))]
)
def test_lengths_are_over_the_other_axes(axes, others):
    layer = al.weight_norm(al.conv(3, 3, use_bias=False), feature_axes=axes)
    params, _ = _made(layer, (1, 5, 5, 2))
    kernel, x = params["kernel"], normal(0, 1, 5, 5, 2)
    length = np.sqrt(np.square(kernel).sum(others, keepdims=True))
    assert params["kernel_scale"].size == length.size
    weight = kernel / length * params["kernel_scale"].reshape(length.shape)
    plain = al.conv(3, 3, use_bias=False)
    close(run(layer, params, x), run(plain, {"kernel": weight}, x))


def test_without_a_scale_the_length_is_one():
    layer, plain = al.weight_norm(al.dense(3), use_scale=False), al.dense(3)
    params, x = _made(layer, (2, 4))[0], normal(0, 2, 4)
    assert sorted(params) == ["bias", "kernel"]
    unit = params["kernel"] / np.linalg.norm(params["kernel"], axis=0)
    close(run(layer, params, x), run(plain, {**params, "kernel": unit}, x))


def test_a_selector_says_which_params():
    body = al.dense(4) >> al.dense(3)
    for where, added in (
        ("dense_1", ["dense_1/bias_scale", "dense_1/kernel_scale"]),
        ("**/bias", ["dense/bias_scale", "dense_1/bias_scale"]),
        (al.kind("dense") - "dense" - "**/bias", ["dense_1/kernel_scale"]),
    ):
        params, _ = al.weight_norm(body, where).init(KEY, (None, 2))
        paths = [path for path, _ in al.paths(params)]
        assert sorted(path for path in paths if path.endswith("_scale")) == added


def test_layers_beside_it_are_not_touched():
    """A wrapper without a name shares a namespace with its neighbours."""
    inner = al.weight_norm(al.dense(4) >> al.dense(4))
    model = al.dense(4) >> al.residual(inner, shortcut=al.dense(4)) >> al.dense(2)
    params, state = model.init(KEY, (None, 3))
    paths = [path for path, _ in al.paths(params) if path.endswith("_scale")]
    assert paths == ["dense_1/kernel_scale", "dense_2/kernel_scale"]
    assert run(model, params, normal(0, 2, 3), state).shape == (2, 2)


def test_equal_layers_with_and_without_it_keep_their_own_arrays():
    """What init's pass remembers of one does not serve for the other."""
    body = al.dense(4) >> al.dense(4)
    model = al.serial(a=body, b=al.weight_norm(body), c=body, d=al.weight_norm(body))
    params, _ = model.init(KEY, (None, 4))
    counts = {name: len(dict(al.paths(params[name]))) for name in params}
    assert counts == {"a": 4, "b": 6, "c": 4, "d": 6}


def test_a_second_use_has_the_same_weights():
    def twice(sub, x, z):
        return sub.f(x) + jnp.sum(sub.f(z), 0, keepdims=True)

    for wrap in (al.weight_norm, al.spectral_norm):
        model = al.wire(twice, f=wrap(al.dense(3)))
        x = (normal(0, 1, 4), normal(1, 5, 4))
        params, state = model.init(KEY, x)
        y, after = model.apply(params, state, x, train=True)
        assert y.shape == (1, 3)
        assert jax.tree.structure(after) == jax.tree.structure(state)


def test_both_at_once_and_in_another_dtype():
    model = al.weight_norm(al.spectral_norm(al.dense(3)))
    x = normal(0, 2, 4)
    params, state = model.init(KEY, x)
    assert sorted(params) == ["bias", "kernel", "kernel_scale"]
    assert sorted(state) == ["kernel_u", "kernel_v"]
    close(run(model, params, x, state), run(al.spectral_norm(al.dense(3)), {
        k: params[k] for k in ("bias", "kernel")
    }, x, state))  # fmt: skip
    half = al.mixed(model, jnp.bfloat16)
    params, state = half.init(KEY, x)
    y, after = half.apply(params, state, x, train=True)
    assert y.dtype == jnp.bfloat16
    assert {a.dtype for a in jax.tree.leaves((params, after))} == {np.dtype("float32")}
    close(y.astype(jnp.float32), run(model, params, x, state), 2e-2)


def test_a_kernel_of_zeros_gives_finite_numbers():
    for wrap in (al.weight_norm, al.spectral_norm):
        layer = wrap(al.dense(3, kernel_init=al.initializers.zeros()))
        x = normal(0, 2, 4)
        params, state = layer.init(KEY, x)
        _, grads, for_x, after = ours(layer, params, x, 1.0, state, train=True)
        for array in jax.tree.leaves((grads, for_x, after)):
            assert bool(jnp.all(jnp.isfinite(array)))


def test_lengths_are_made_where_shardings_say():
    shardings = {"kernel_scale": jax.sharding.SingleDeviceSharding(jax.devices()[0])}
    params, _ = al.weight_norm(al.dense(3)).init(KEY, (None, 4), shardings)
    assert params["kernel_scale"].shape == (3,)


def test_a_model_can_be_printed_compared_and_made_again():
    model = al.weight_norm(al.dense(3), "kernel", feature_axes=None) >> al.dense(2)
    assert eval(repr(model), {"al": al}) == model
    assert [path for path, _ in al.layers(model)] == ["dense", "dense", "dense_1"]


def test_a_name_is_a_level_as_in_any_wrapper():
    params, _ = al.weight_norm(al.dense(3, name="head")).init(KEY, (None, 4))
    assert sorted(params["head"]) == ["bias", "kernel", "kernel_scale"]


ERRORS = {
    "where": (
        lambda: al.weight_norm(al.dense(3), "weight").init(KEY, (None, 4)),
        "weight_norm: where: nothing is called 'weight'. Known: 'bias', 'kernel'.",
    ),
    "scale": (
        lambda: al.weight_norm(al.dense(3)).predict(
            {"kernel": jnp.ones((4, 3)), "bias": jnp.ones(3)}, {}, jnp.ones((1, 4))
        ),
        "weight_norm: nothing is called 'kernel_scale'. There are no names here. Pass "
        "the params and state that init returned.",
    ),
    "vectors": (
        lambda: al.spectral_norm(al.dense(3)).predict(
            {"kernel": jnp.ones((4, 3)), "bias": jnp.ones(3)}, {}, jnp.ones((1, 4))
        ),
        "spectral_norm: nothing is called 'kernel_u'. There are no names here. Pass "
        "the params and state that init returned.",
    ),
    "iterations": (
        lambda: al.spectral_norm(al.dense(3), num_iterations=0),
        "spectral_norm: num_iterations must be a positive int, got 0.",
    ),
    "epsilon": (
        lambda: al.weight_norm(al.dense(3), epsilon=-1),
        "weight_norm: epsilon must be a number from 0 on, got -1.",
    ),
}


@pytest.mark.parametrize("name", sorted(ERRORS))
def test_errors_word_for_word(name):
    build, message = ERRORS[name]
    with pytest.raises((ValueError, al.PathError), match="_norm") as error:
        build()
    assert str(error.value) == message
