"""`scan` and `bidirectional`: lengths, masks, carries, state, keys, derivatives, errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from parity import close, drawn, normal, run

import axonlike as al

KEY = jax.random.key(0)
LENGTHS = np.array([5, 3, 1, 0])


def rnn(kind="gru", **options):
    return getattr(al, kind)(3, **options)


def params_of(layer, x):
    return drawn(layer.init(KEY, x)[0])


@al.layer
def summing(decay=0.5):
    """A cell without `project` and `recur`: `h = decay * h + x`."""

    def apply(params, carry, x):
        carry = decay * carry + x
        return carry, carry

    return al.Cell(None, apply, lambda x: jnp.zeros(x.shape, x.dtype))


# --- lengths and masks


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_lengths_run_each_example_by_itself(kind, reverse):
    layer = rnn(kind, return_carry=True, reverse=reverse)
    x = normal(0, 4, 5, 2)
    params = params_of(layer, x)
    y, carry = run(layer, params, {"x": x, "lengths": LENGTHS})
    for i, n in enumerate(LENGTHS[:3]):
        one, last = run(layer, params, x[i : i + 1, :n])
        close(y[i, :n], one[0])
        jax.tree.map(lambda a, b, i=i: close(a[i], b[0]), carry, last)
    outside = np.arange(5) >= LENGTHS[:, None]
    assert not np.asarray(y)[outside].any()
    assert not any(np.asarray(c)[3].any() for c in jax.tree.leaves(carry))


def test_a_mask_leaves_steps_out():
    layer, x = rnn(return_carry=True), normal(0, 1, 4, 2)
    params = params_of(layer, x)
    mask = np.array([[True, False, True, True]])
    y, carry = run(layer, params, {"x": x, "mask": mask})
    short, last = run(layer, params, x[:, mask[0]])
    close(y[:, mask[0]], short)
    close(carry, last)
    assert not np.asarray(y)[:, 1].any()
    both = run(layer, params, {"x": x, "mask": mask, "lengths": np.array([2])})[1]
    close(both, run(layer, params, x[:, :1])[1])


@pytest.mark.parametrize("reverse", [False, True])
def test_padding_may_hold_anything(reverse):
    layer, x = rnn(reverse=reverse), normal(0, 4, 5, 2)
    params = params_of(layer, x)
    holes = np.where((np.arange(5) >= LENGTHS[:, None])[..., None], np.nan, x)

    def loss(params, x):
        return jnp.sum(jnp.sin(layer.predict(params, {}, {"x": x, "lengths": LENGTHS})))

    step = jax.jit(jax.value_and_grad(loss, (0, 1)))
    jax.tree.map(close, step(params, holes.astype(np.float32)), step(params, x))


def test_lengths_of_integers_of_few_bits():
    layer, x = al.scan(summing()), np.ones((1, 300, 1), np.float32)
    y = run(layer, {}, {"x": x, "lengths": np.array([100], np.int8)})
    assert np.flatnonzero(np.asarray(y)[0, :, 0]).tolist() == list(range(100))


def test_reset_starts_anew():
    layer, x = rnn(return_carry=True), normal(0, 1, 5, 2)
    params = params_of(layer, x)
    reset = np.array([[False, False, True, False, False]])
    y, carry = run(layer, params, {"x": x, "reset": reset})
    close(y[:, :2], run(layer, params, x[:, :2])[0])
    second, last = run(layer, params, x[:, 2:])
    close(y[:, 2:], second)
    close(carry, last)


# --- the last output, carries, axes


@pytest.mark.parametrize("reverse", [False, True])
def test_the_last_output_is_that_of_each_example(reverse):
    x = normal(0, 4, 5, 2)
    layer = rnn(reverse=reverse, return_sequence=False)
    params = params_of(layer, x)
    _, last = run(rnn(reverse=reverse, return_carry=True), params, x)
    close(run(layer, params, x), last)
    inputs = {"x": x, "lengths": LENGTHS}
    _, last = run(rnn(reverse=reverse, return_carry=True), params, inputs)
    close(run(layer, params, inputs), last)
    assert run(layer, params, x[:, :0]).shape == (4, 3)


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_a_carry_continues_where_it_stopped(kind):
    layer, x = rnn(kind, return_carry=True), normal(0, 3, 6, 2)
    params = params_of(layer, x)
    whole, last = run(layer, params, x)
    first, carry = run(layer, params, x[:, :4])
    second, end = run(layer, params, {"x": x[:, 4:], "initial_carry": carry})
    close(whole, np.concatenate([first, second], 1))
    jax.tree.map(close, end, last)

    def resume(sub, x, carry):
        return sub.rnn(x, initial_carry=carry)

    model = al.wire(resume, rnn=layer)
    jax.tree.map(close, run(model, {"rnn": params}, (x[:, 4:], carry)), (second, end))


def test_inputs_by_name_go_through_a_pipe():
    model = al.on_item("x", al.embedding(7, 2)) >> rnn() >> al.dense(1)
    x, lengths = np.array([[1, 2, 3], [4, 5, 6]]), np.array([3, 1])
    inputs = {"x": x, "lengths": lengths}
    params, state = model.init(KEY, inputs)
    y = run(model, params, inputs, state)
    bare = al.embedding(7, 2) >> rnn() >> al.dense(1)
    close(y[1:, :1], run(bare, params, x[1:, :1], state))


def test_an_initial_carry_is_learned_by_a_parameter():
    def begun(sub, x):
        start = jnp.broadcast_to(sub.start(), (x.shape[0], 3))
        return sub.rnn(x, initial_carry=start)

    model = al.wire(begun, rnn=rnn(), start=al.parameter((1, 3)))
    x = normal(0, 2, 4, 2)
    params, _ = model.init(KEY, x)
    grads = jax.jit(jax.grad(lambda p: jnp.sum(model.predict(p, {}, x))))(params)
    assert grads["start"]["value"].any()


def test_time_may_stand_first():
    x = normal(0, 5, 4, 2)
    params = params_of(rnn(), x)
    inputs = {"x": x, "lengths": LENGTHS}
    first = al.scan(al.gru_cell(3), axis=0)
    y = run(first, params, inputs)
    second = run(rnn(), params, {**inputs, "x": x.swapaxes(0, 1)})
    close(y, np.swapaxes(second, 0, 1))
    mask = np.arange(5)[:, None] < LENGTHS
    close(run(first, params, {"x": x, "mask": mask}), y)


# --- both directions


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_a_bidirectional_layer_reverses(kind):
    model, x = al.bidirectional(rnn(kind)), normal(0, 2, 5, 4)
    params = params_of(model, x)
    y = run(model, params, x)
    close(y[..., :3], run(rnn(kind), params["forward"], x))
    back = rnn(kind, reverse=True)
    close(y[..., 3:], run(back, params["backward"], x))
    assert not np.allclose(y[..., 3:], run(rnn(kind), params["backward"], x))


def test_directions_meet_at_the_same_step_of_each_example():
    model, x = al.bidirectional(rnn(return_carry=True)), normal(0, 4, 5, 2)
    params = params_of(model, x)
    h, g = normal(1, 4, 3), normal(2, 4, 3)
    inputs = {"x": x, "lengths": LENGTHS, "initial_carry": (h, g)}
    y, (there, back) = run(model, params, inputs)
    for i, n in enumerate(LENGTHS[:3]):
        for side, carry, start, at in (
            ("forward", there, h, slice(0, 3)),
            ("backward", back, g, slice(3, 6)),
        ):
            one = rnn(reverse=side == "backward", return_carry=True)
            part = {"x": x[i : i + 1, :n], "initial_carry": start[i : i + 1]}
            z, last = run(one, params[side], part)
            close(y[i, :n, at], z[0])
            close(carry[i], last[0])


def test_directions_are_merged_as_asked():
    x = normal(0, 2, 5, 4)
    plain, merged = (
        al.bidirectional(rnn(), merge_fn=merge) for merge in (None, jnp.multiply)
    )
    params = params_of(plain, x)
    y = np.asarray(run(plain, params, x))
    close(run(merged, params, x), y[..., :3] * y[..., 3:])
    last = al.bidirectional(rnn(), return_sequence=False)
    inputs = {"x": x, "lengths": np.array([5, 2])}
    y, z = run(plain, params, inputs), run(last, params, inputs)
    close(z[:, :3], [y[0, 4, :3], y[1, 1, :3]])
    close(z[:, 3:], y[:, 0, 3:])


# --- any cell: derivatives, state, keys


def test_a_cell_without_parts_has_the_same_inputs():
    layer, x = al.scan(summing(), return_carry=True), np.ones((2, 4, 1), np.float32)
    y, carry = run(layer, {}, {"x": x, "lengths": np.array([4, 2])})
    close(y[..., 0], [[1, 1.5, 1.75, 1.875], [1, 1.5, 0, 0]])
    close(carry[:, 0], [1.875, 1.5])


def plain(cell, params, x):
    """The same steps in `lax.scan`, differentiated by JAX alone."""

    def step(carry, x):
        return cell.predict(params, {}, (carry, x))

    start = cell.methods["initial_carry"][0](x[:, 0])
    return jnp.swapaxes(jax.lax.scan(step, start, jnp.swapaxes(x, 0, 1))[1], 0, 1)


@pytest.mark.parametrize("around", ["grad", "jvp", "hessian", "vmap"])
def test_derivatives_are_those_of_a_plain_scan(around):
    cell, x = al.lstm_cell(2, peephole=True), normal(0, 2, 3, 2)
    layer = al.scan(cell)
    params = params_of(layer, x)
    kinds = {
        "grad": lambda f: jax.grad(f, (0, 1))(params, x),
        "jvp": lambda f: jax.jvp(f, (params, x), (params, x)),
        "hessian": lambda f: jax.jvp(jax.grad(f), (params, x), (params, x)),
        "vmap": lambda f: jax.vmap(jax.grad(f), (None, 0))(params, jnp.stack([x, -x])),
    }

    def loss(run):
        return lambda params, x: jnp.sum(jnp.sin(run(params, x)))

    ours = loss(lambda params, x: layer.predict(params, {}, x))
    theirs = loss(lambda params, x: plain(cell, params, x))
    derive = jax.jit(lambda: (kinds[around](ours), kinds[around](theirs)))
    jax.tree.map(close, *derive())


@pytest.mark.parametrize(
    "wrap", [al.remat, al.frozen, lambda f: al.mixed(f, jnp.float32)]
)
def test_wrapped_cells_compute_the_same(wrap):
    x = normal(0, 2, 3, 2)
    bare, wrapped = al.scan(al.gru_cell(3)), al.scan(wrap(al.gru_cell(3)))
    params = params_of(bare, x)

    def gradients(layer):
        def loss(params, x):
            return jnp.sum(jnp.sin(layer.predict(params, {}, x)))

        return jax.jit(jax.value_and_grad(loss, (0, 1)))(params, x)

    (y, (grads, for_x)), (z, (others, for_z)) = gradients(bare), gradients(wrapped)
    close(y, z)
    close(for_x, for_z)
    if wrap is al.frozen:
        assert not any(g.any() for g in jax.tree.leaves(others))
    else:
        jax.tree.map(close, grads, others)


@al.layer
def dropping():
    """A cell that drops from its carry, and counts its steps."""

    def init(key, carry, x):
        return {}, {"steps": jnp.zeros((), jnp.int32)}

    def apply(params, carry, x, *, state, key, train):
        kept = jnp.ones(carry.shape, bool)
        if train:
            kept = jax.random.bernoulli(key, 0.5, carry.shape)
        carry = jnp.where(kept, carry, jnp.zeros_like(carry)) + x
        return (carry, carry), {"steps": state["steps"] + 1}

    return al.Cell(init, apply, lambda x: jnp.zeros(x.shape, x.dtype))


def test_cells_have_state_and_draw_anew_each_step():
    layer, x = al.scan(dropping()), jnp.ones((1, 64, 32))
    params, state = layer.init(KEY, x)
    y, after = layer.apply(params, state, x, key=KEY, train=True)
    assert jax.tree.leaves(after) == [64]
    zeroed = np.asarray(y)[0, 1:] == 1.0
    assert 0.4 < zeroed.mean() < 0.6
    assert len({row.tobytes() for row in zeroed}) == 63


def test_layers_are_stacked_and_repeated():
    x = normal(0, 2, 4, 3)
    model = al.residual(rnn()) ** 2 >> al.residual(rnn(reverse=True))
    params = params_of(model, x)
    y = jnp.asarray(x)
    for i in range(2):
        own = jax.tree.map(lambda a, i=i: a[i], params["gru"]["*"])
        y = y + run(rnn(), own, y)
    y = y + run(rnn(reverse=True), params["gru_1"], y)
    close(run(model, params, x), y)


# --- errors


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"length": [2, 2]}, "scan: unknown input 'length'. Nearest: 'lengths'."),
        ({"lengths": [2, 2, 2]}, r"expected lengths of integer \[2\], got int32\[3\]"),
        (
            {"lengths": [2.0, 2.0]},
            r"expected lengths of integer \[2\], got float32\[2\]",
        ),
        ({"mask": [True, True]}, r"expected mask of bool \[2, 3\], got bool\[2\]"),
        ({"initial_carry": [[1.0] * 4] * 2}, r"initial_carry float32\[2, 3\]"),
    ],
    ids=str,
)
def test_inputs_that_do_not_fit_are_told(inputs, message):
    x = jnp.ones((2, 3, 2))
    given = {name: jnp.asarray(value) for name, value in inputs.items()}
    with pytest.raises((TypeError, al.ShapeError), match=message):
        rnn().init(KEY, {"x": x, **given})


def test_a_direction_without_time_is_told():
    with pytest.raises(al.ShapeError, match="one array over time from forward"):
        al.bidirectional(rnn(return_sequence=False)).init(KEY, (2, 5, 4))


def test_both_directions_begin_anew_at_a_reset():
    layer = al.bidirectional(al.rnn(3))
    x = np.random.default_rng(0).standard_normal((1, 6, 2)).astype(np.float32)
    params, _ = layer.init(jax.random.key(0), x)
    reset = np.array([[False, False, True, False, True, False]])
    y = layer.predict(params, {}, {"x": x, "reset": reset})
    apart = [
        layer.predict(params, {}, part) for part in (x[:, :2], x[:, 2:4], x[:, 4:])
    ]
    np.testing.assert_allclose(y, np.concatenate(apart, 1), rtol=1e-5, atol=1e-6)
