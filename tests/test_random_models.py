"""The laws of composition, over random models."""

import itertools
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import axonlike as al

WIDTH, BATCH = 4, 3
KEY = jax.random.key(0)
X = jax.random.normal(jax.random.key(1), (BATCH, WIDTH))
SPEC = al.spec(f"b {WIDTH}")


def mix(sub, x):
    return sub.first(x) + sub.second(sub.first(x))


def middle(y):
    return y.mean(0)


def leaves():
    return st.sampled_from(
        [
            al.dense(WIDTH),
            al.dense(WIDTH, use_bias=False),
            al.layer_norm(),
            al.dropout(0.5),
            al.batch_norm(momentum=0.5),
            al.lift(jnp.tanh),
            al.identity,
        ]
    )


def grown(inner):
    pairs = st.tuples(inner, inner)
    return st.one_of(
        st.lists(inner, min_size=1, max_size=3).map(lambda ls: al.serial(*ls)),
        pairs.map(lambda p: (p[0] & p[1]) >> al.add()),
        pairs.map(lambda p: (al.identity & al.identity) >> (p[0] @ p[1]) >> al.add()),
        pairs.map(lambda p: (p[0] | p[1]) >> al.dense(WIDTH)),
        pairs.map(lambda p: p[0] * p[1]),
        pairs.map(lambda p: al.wire(mix, first=p[0], second=p[1])),
        inner.map(al.residual),
        inner.map(al.remat),
        inner.map(al.frozen),
        inner.map(lambda f: al.repeat(f, 2)),
        inner.map(lambda f: al.repeat(f, 2, stacked=False)),
        inner.map(lambda f: al.repeat(f, 2, tied=True)),
        inner.map(lambda f: al.ensemble(f, 2) >> middle),
    )


def models(depth=4):
    found = leaves()
    for _ in range(depth - 1):
        found = st.one_of(leaves(), grown(found))
    return found


def paths(tree):
    flat = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(p, simple=True, separator="/"): x for p, x in flat}


def same(a, b):
    a, b = paths(a), paths(b)
    assert a.keys() == b.keys()
    for path, array in a.items():
        np.testing.assert_array_equal(array, b[path], err_msg=path)


def close(a, b, tolerance=1e-4):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance)


runs = itertools.count(1)


def run(model, params, state, **how):
    if next(runs) % 500 == 0:  # each compiled function holds memory maps, which run out
        jax.clear_caches()
    return model.apply(params, state, X, **how)


# --- 0: a table of any model adds up


@given(models())
def test_the_rows_of_a_table_add_up(model):
    params, state = jax.eval_shape(lambda: model.init(KEY, SPEC))
    table = al.summary(model, SPEC)
    assert table.total("params") == al.count(params)
    assert table.total("state") == al.count(state)
    for what in ("params", "flops", "activations", "kept"):
        assert sum(row[what] for row in table.rows) == table.total(what)
    assert al.explain(model, SPEC).startswith("  in the model: ")


# --- 1: a pipe is one pipe, however it was put together


@given(models(3), models(3), models(3))
def test_a_pipe_is_the_same_however_it_is_bracketed(a, b, c):
    left, right, flat = (a >> b) >> c, a >> (b >> c), al.serial(a, b, c)
    assert left == right == flat
    assert hash(left) == hash(right) == hash(flat)
    trees = [model.init(KEY, SPEC) for model in (left, right, flat)]
    same(trees[0], trees[1])
    same(trees[0], trees[2])
    outs = [run(m, *t)[0] for m, t in zip((left, right, flat), trees, strict=True)]
    same(outs[0], outs[1])
    same(outs[0], outs[2])


# --- 2: identity, and interchange


@given(models(3))
def test_identity_on_either_side_changes_no_params_and_no_values(model):
    pipe = al.serial(model)
    params, state = pipe.init(KEY, SPEC)
    before, _ = run(pipe, params, state)
    for other in (al.identity >> pipe, pipe >> al.identity):
        assume(not any("identity" in path for path in paths(params)))
        same(other.init(KEY, SPEC), (params, state))
        same(run(other, params, state)[0], before)


@given(models(2), models(2), models(2), models(2))
def test_pipes_in_parallel_are_a_pipe_of_parallels(f, g, h, k):
    names = {"f": f, "g": g, "h": h, "k": k}
    f, g, h, k = (al.serial(layer, name=name) for name, layer in names.items())
    across = al.parallel(f, g) >> al.parallel(h, k)
    along = al.parallel((f >> h).named("one"), (g >> k).named("two"))
    params, state = along.init(KEY, (SPEC, SPEC))

    def pick(tree):
        one, two = tree.get("one", {}), tree.get("two", {})
        rows = {
            "parallel": {"f": one.get("f"), "g": two.get("g")},
            "parallel_1": {"h": one.get("h"), "k": two.get("k")},
        }
        kept = {n: {a: b for a, b in row.items() if b} for n, row in rows.items()}
        return {n: row for n, row in kept.items() if row}

    a, _ = along.apply(params, state, (X, 2 * X))
    b, _ = across.apply(pick(params), pick(state), (X, 2 * X))
    same(a, b)


# --- 3: predicted is real; jit is eager; vmap is the batch


@given(models())
def test_the_predicted_spec_is_the_real_one(model):
    params, state = model.init(KEY, SPEC)
    y, after = run(model, params, state)
    spec = model.output_spec(X)
    assert (spec.shape, spec.dtype) == (y.shape, y.dtype)
    assert model.output_spec(SPEC).shape[1:] == y.shape[1:]
    assert jax.tree.structure(after) == jax.tree.structure(state)


@given(models())
def test_jit_equals_eager_in_training_too(model):
    params, state = model.init(KEY, SPEC)
    how = {"key": jax.random.key(2), "train": True}
    jitted = jax.jit(model.apply, static_argnames="train")
    close(run(model, params, state, **how), jitted(params, state, X, **how))


@given(models())
def test_vmap_over_the_batch_is_the_batch_in_inference(model):
    params, state = model.init(KEY, SPEC)

    def one(x):
        return model.predict(params, state, x[None])[0]

    close(jax.vmap(one)(X), model.predict(params, state, X))


# --- 4: keys and paths


@given(models(3), models(2), st.integers(0, 19))
def test_editing_a_sibling_changes_no_leaf_that_keeps_its_path(model, new, place):
    kept = model.named("kept")
    others = [al.dense(WIDTH, name=f"d{i}") for i in range(3)]
    order = [*others[: place % 4], kept, *others[place % 4 :]]
    edited = list(order)
    if place < 8:
        edited.insert(place % 5, new.named("new"))
    elif place < 14:
        edited = edited[::-1]
    else:
        edited.remove(others[place % 3])
    before, after = (paths(al.serial(*ls).init(KEY, SPEC)) for ls in (order, edited))
    shared = before.keys() & after.keys()
    assert any(path.split("/")[1].startswith("d") for path in shared)
    for path in shared:
        np.testing.assert_array_equal(before[path], after[path], err_msg=path)


@given(models(3))
def test_stacked_unrolled_and_ensembled_weights_are_equal_to_the_bit(model):
    stacked, loose, several = (
        al.serial(blocks=layer).init(KEY, SPEC)
        for layer in (
            al.repeat(model, 3),
            al.repeat(model, 3, stacked=False),
            al.ensemble(model, 3),
        )
    )
    same(stacked, several)
    for path, array in paths(stacked).items():
        for i in range(3):
            here = path.replace("blocks/*", f"blocks/{i}", 1)
            np.testing.assert_array_equal(array[i], paths(loose)[here], err_msg=here)


@given(models(3))
def test_stacked_and_unrolled_compute_the_same_in_training(model):
    stacked, loose = al.repeat(model, 2), al.repeat(model, 2, stacked=False)
    params, state = stacked.init(KEY, SPEC)
    how = {"key": jax.random.key(2), "train": True}

    def loss(layer):
        def function(params, state):
            y, after = run(layer, params, state, **how)
            return jnp.sum(y**2), after

        return jax.value_and_grad(function, has_aux=True)

    (a, state_a), grads_a = loss(stacked)(params, state)
    (b, state_b), grads_b = loss(loose)(*loose.init(KEY, SPEC))
    assume(np.isfinite(a) and abs(a) < 1e6)
    close(a, b, 1e-3)
    for one, many in ((state_a, state_b), (grads_a, grads_b)):
        for path, array in paths(one).items():
            for i in range(2):
                here = path.replace("*", str(i), 1)
                scale = 1 + np.abs(array).max()
                diff = np.abs(array[i] - paths(many)[here]).max()
                assert diff <= 1e-3 * scale, here


@given(models(3), models(3))
def test_wrapping_changes_no_path_and_no_weight(first, body):
    plain = first >> al.dense(WIDTH) >> body
    before = plain.init(KEY, SPEC)
    for wrap in (al.remat, al.frozen, al.residual, lambda f: al.mixed(f, jnp.float32)):
        same((first >> al.dense(WIDTH) >> wrap(body)).init(KEY, SPEC), before)
        same((first >> wrap(al.dense(WIDTH)) >> body).init(KEY, SPEC), before)


# --- 6: nothing is mutated, nothing is lost


@given(models())
def test_a_model_is_what_its_repr_makes(model):
    text = repr(model)
    names = {"al": al, "jax": jax, __name__: __import__(__name__)}
    assert eval(text, names) == model


@given(models())
def test_nothing_is_mutated(model):
    params, state = model.init(KEY, SPEC)
    before = jax.tree.map(np.array, (params, state))
    structure = jax.tree.structure((params, state))
    run(model, params, state, key=jax.random.key(2), train=True)
    assert jax.tree.structure((params, state)) == structure
    same((params, state), before)


def test_a_child_called_twice_draws_two_masks():
    def twice(sub, x):
        return sub.drop(x), sub.drop(x)

    model = al.wire(twice, drop=al.dropout(0.5))
    (a, b), _ = model.apply({}, {}, jnp.ones((8, 8)), key=KEY, train=True)
    assert not (a == b).all()


def test_nested_second_uses_all_draw_their_own_masks():
    def twice(sub, x):
        return jnp.stack([sub.inner(x), sub.inner(x)])

    model = al.wire(twice, inner=al.wire(twice, inner=al.dropout(0.5)))
    y, _ = model.apply({}, {}, jnp.ones((32,)), key=KEY, train=True)
    assert len({tuple(np.array(row)) for row in y.reshape(4, 32)}) == 4


def test_a_second_use_of_what_is_shared_draws_its_own_masks():
    def twice(sub, x):
        return jnp.stack([*sub.inner((x, x)), *sub.inner((x, x))])

    model = al.wire(twice, inner=al.shared(al.dropout(0.5)))
    y, _ = model.apply({}, {}, jnp.ones((32,)), key=KEY, train=True)
    assert len({tuple(np.array(row)) for row in y}) == 4


@pytest.mark.parametrize("stacked", [True, False])
def test_every_pass_of_a_repeat_in_a_repeat_draws_its_own_mask(stacked):
    model = al.repeat(al.repeat(al.dropout(0.5), 2, stacked=stacked), 2)
    y, _ = model.apply({}, {}, jnp.ones(4096), key=KEY, train=True)
    kept = np.mean(np.array(y) != 0)
    assert 0.8 / 16 < kept < 1.2 / 16


def test_a_wire_that_skips_a_child_returns_its_state_unchanged():
    def maybe(sub, x, *, skip=False):
        return x if skip else sub.norm(x)

    model = al.wire(maybe, norm=al.batch_norm())
    params, state = model.init(KEY, SPEC)
    _, kept = run(model, params, state, train=True, options={"skip": True})
    _, moved = run(model, params, state, train=True)
    same(kept, state)
    assert not (moved["norm"]["mean"] == state["norm"]["mean"]).all()


@pytest.mark.usefixtures("leaks_unchecked")
def test_ten_threads_build_and_init_models_at_once():
    def build(width):
        block = al.residual(al.dense(WIDTH) >> al.dropout(0.1) >> al.batch_norm())
        model = al.repeat(block, 2, name="blocks") >> al.dense(width)
        return model.init(KEY, SPEC)

    wanted = {width: build(width) for width in range(20, 30)}
    found = {}
    threads = [
        threading.Thread(target=lambda w=w: found.update({w: build(w)}))
        for w in range(20, 30)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found.keys() == wanted.keys()
    for width, trees in found.items():
        same(trees, wanted[width])


@pytest.mark.parametrize("operator", ["&", "@", "+", "*", "|"])
def test_operators_flatten_an_unnamed_left_operand_of_their_kind(operator):
    layers = {"a": al.dense(4), "b": al.dense(4), "c": al.dense(4)}
    flat = eval(f"a {operator} b {operator} c", layers)
    nested = eval(f"a {operator} (b {operator} c)", layers)
    named = eval(f"(a {operator} b).named('n') {operator} c", layers)
    assert [len(model.children) for model in (flat, nested, named)] == [3, 2, 2]


@pytest.mark.parametrize("inner", [True, False])
@pytest.mark.parametrize("outer", [True, False])
def test_a_repeat_of_a_repeat_of_an_unnamed_body_runs_on_its_own_params(inner, outer):
    body = al.repeat(al.dense(WIDTH) >> jnp.tanh, 2, stacked=inner)
    model = al.repeat(al.repeat(body, 2, stacked=outer), 2)
    params, state = model.init(KEY, SPEC)
    assert run(model, params, state)[0].shape == X.shape
