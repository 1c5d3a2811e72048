"""Bugs that were found and mended, each by the smallest thing that showed it."""

import jax
import jax.numpy as jnp
import pytest

import axonlike as al

KEY = jax.random.key(0)


def test_a_missing_bias_is_not_ignored():
    params = {"kernel": jnp.ones((2, 3))}
    with pytest.raises(al.PathError, match="nothing is called 'bias'"):
        al.dense(3).predict(params, {}, jnp.ones((1, 2)))


@pytest.mark.parametrize("layer", [al.dense(3), al.scan(al.gru_cell(3)), al.lstm(3)])
def test_an_array_that_a_leaf_does_not_have_is_not_ignored(layer):
    x = jnp.ones((1, 4, 2))
    params, state = layer.init(KEY, x)
    with pytest.raises(ValueError, match="it has no 'scale'"):
        layer.predict({**params, "scale": jnp.ones(3)}, state, x)


def test_params_that_would_only_broadcast_are_refused():
    params = {"kernel": jnp.ones((2, 1))}
    with pytest.raises(al.ShapeError, match=r"expected kernel float32\[2, 3\]"):
        al.dense(3, use_bias=False).predict(params, {}, jnp.ones((1, 2)))


@pytest.mark.parametrize("layer", [al.lstm(3), al.gru(3), al.bidirectional(al.gru(3))])
def test_a_sequence_of_no_steps(layer):
    params, state = layer.init(KEY, al.spec("b t 4"))
    y = layer.predict(params, state, jnp.ones((2, 0, 4)))
    assert y.shape[:2] == (2, 0)


@pytest.mark.parametrize("sizes", [(5, 6), (5,)])
def test_a_strided_same_convolution_of_an_unknown_size(sizes):
    layer = al.conv(3, 3, strides=2)
    unknown = al.spec(" ".join(["b", "h w"[: 2 * len(sizes) - 1], "4"]))
    params, state = layer.init(KEY, unknown)
    function = jax.jit(lambda x: layer.predict(params, state, x))
    spec = jax.ShapeDtypeStruct(unknown.shape, unknown.dtype)
    x = jax.random.normal(KEY, (2, *sizes, 4))
    found = jax.export.export(function)(spec).call(x)
    assert found.shape == layer.output_spec(x).shape == (2, *(3 for _ in sizes), 3)
    assert jnp.allclose(found, function(x))


def test_a_policy_of_jax_is_written_by_its_name():
    model = al.remat(al.dense(3), policy=jax.checkpoint_policies.dots_saveable)
    assert "policy=jax.checkpoint_policies.dots_saveable" in repr(model)
    assert eval(repr(model), {"al": al, "jax": jax}) == model


def test_the_same_method_of_the_same_object_is_the_same_function():
    class Scale:
        def by(self, x):
            return 2 * x

    one, other = Scale(), Scale()
    assert al.lift(one.by) == al.lift(one.by)
    assert al.lift(one.by) != al.lift(other.by)


def test_a_spec_of_a_tuple_has_a_dtype():
    assert al.spec((None, 3), jnp.int8) == al.spec("_ 3", jnp.int8)
    with pytest.raises(TypeError, match="expected text"):
        al.spec([3, 4])


def test_init_inside_a_trace_with_a_key_from_outside():
    model = al.repeat(al.dense(3), 2)
    inside = jax.jit(lambda: model.init(KEY, al.spec("b 3"))[0])()
    outside, _ = model.init(KEY, al.spec("b 3"))
    assert jax.tree.all(jax.tree.map(jnp.allclose, inside, outside))
    assert jax.eval_shape(lambda: model.init(KEY, al.spec("b 3"))[0])["*"].keys()


@pytest.mark.parametrize("path", ["blocks/*/dense", "blocks/1/dense"])
@pytest.mark.parametrize("stacked", [True, False])
def test_a_part_inside_copies_says_what_to_take(path, stacked):
    body = al.dense(3) >> jnp.tanh
    model = al.serial(blocks=al.repeat(body, 2, stacked=stacked))
    with pytest.raises(ValueError, match="Take 'blocks' instead"):
        model.part(path)


def test_a_part_that_a_list_does_not_have_is_named():
    def first(sub, x):
        return sub.k[0](x)

    with pytest.raises(al.PathError, match="Nearest: 'k/0'"):
        al.wire(first, k=[al.dense(2)]).part("k/5")


@al.layer
def counter():
    """Counts its training steps; holds an empty dict too, as a cache may be."""

    def init(key, x):
        return {}, {"n": jnp.zeros(()), "cache": {}}

    def apply(params, x, *, state, train):
        return x, {**state, "n": state["n"] + 1.0} if train else state

    return init, apply


@al.layer
def noise():
    def apply(params, x, *, key):
        return x + jax.random.normal(key, x.shape)

    return None, apply


WRAPPERS = {
    "plain": lambda f: f,
    "frozen": al.frozen,
    "mixed": lambda f: al.mixed(f, jnp.float32),
    "remat": al.remat,
    "repeat": lambda f: al.repeat(f, 2),
    "residual": al.residual,
    "tied": lambda f: al.repeat(f, 2, tied=True),
    "unrolled": lambda f: al.repeat(f, 2, stacked=False),
}


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
@pytest.mark.parametrize(
    "body", [al.batch_norm(), al.dense(4), al.dense(4) >> counter()]
)
def test_a_shortcut_beside_a_body_without_a_level(wrap, body):
    model = al.residual(
        wrap(body), shortcut=al.dense(4) >> al.batch_norm() >> counter()
    )
    x = jax.random.normal(KEY, (8, 4))
    params, state = model.init(KEY, x)
    _, after = model.apply(params, state, x, train=True)
    assert jax.tree.structure(after) == jax.tree.structure(state)
    for old, new in zip(jax.tree.leaves(state), jax.tree.leaves(after), strict=True):
        assert not jnp.array_equal(old, new)


def keys_used(model, x):
    y, _ = model.apply({}, {}, x, key=KEY)
    return [tuple(a.tolist()) for a in jax.tree.leaves(y)]


def test_every_use_of_a_layer_that_is_shared_within_shared_draws_its_own():
    z = jnp.zeros(2)
    nested = al.shared(al.shared(al.shared(noise())))
    x = (((z, z), (z, z)), ((z, z), (z, z)))
    assert len(set(keys_used(nested, x))) == 8


def test_every_use_of_a_shared_layer_that_is_called_twice_draws_its_own():
    def twice(sub, x):
        return sub.f((x, x)), sub.f((x, x))

    z = jnp.zeros(2)
    bare = keys_used(al.wire(twice, f=al.shared(noise())), z)
    assert len(set(bare)) == 4
    for wrap in (al.remat, al.frozen, lambda f: al.mixed(f, jnp.float32)):
        assert keys_used(al.wire(twice, f=wrap(al.shared(noise()))), z) == bare
        assert keys_used(al.wire(twice, f=al.shared(wrap(noise()))), z) == bare


@pytest.mark.parametrize(
    "wrap", [al.residual, al.shared, al.vmap, lambda f: al.repeat(f, 2, tied=True)]
)
def test_what_would_not_run_each_step_is_no_cell(wrap):
    with pytest.raises(TypeError, match="is not a cell, though what it wraps"):
        al.scan(wrap(al.lstm_cell(4)))


@al.layer
def switchable():
    def apply(params, x, mask=None, *, flip=False):
        x = x if mask is None else x * mask
        return -x if flip else x

    return None, apply


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_keyword_inputs_and_options_reach_through_wrappers(wrap):
    def masked(sub, x, m):
        return sub.f(x, mask=m, flip=True)

    x, m = jnp.ones(3), jnp.zeros(3)
    model = al.wire(masked, f=wrap(switchable()))
    if wrap is al.residual:  # which has one input to add to
        with pytest.raises(TypeError, match="expected one input"):
            model.predict({}, {}, (x, m))
        return
    assert jnp.all(model.predict({}, {}, (x, m)) == 0)
    assert jnp.all(jax.jit(model.predict)({}, {}, (x, m)) == 0)


def test_keyword_inputs_that_a_bidirectional_cannot_use_are_refused():
    def carried(sub, x, carry):
        return sub.f(x, initial_carry=carry)

    model = al.wire(carried, f=al.bidirectional(al.gru(3)))
    with pytest.raises(TypeError, match="bidirectional: expected one input"):
        model.init(KEY, (al.spec("2 3 4"), al.spec("2 3")))


@al.layer
def product():
    def init(key, x):
        return {"k": jnp.ones((x.shape[-1], 5))}

    def apply(params, x):
        return x @ params["k"]

    return init, apply


def test_a_mixed_model_is_predicted_in_its_dtype():
    def tied(sub, ids):
        return sub.emb(ids) @ sub.emb.params["embedding"].T

    x, ids = al.spec("2 4"), al.spec("2 3", int)
    half = al.spec("2 4", jnp.bfloat16)
    for model, spec in (
        (al.mixed(product(), jnp.bfloat16), x),
        (al.mixed(al.wire(tied, emb=al.embedding(7, 4)), jnp.bfloat16), ids),
        (al.repeat(al.mixed(al.residual(al.dense(4)), jnp.bfloat16), 2), half),
    ):
        params, state = model.init(KEY, spec)
        y = model.predict(params, state, jnp.zeros(spec.shape, spec.dtype))
        assert model.output_spec(spec).dtype == y.dtype == jnp.bfloat16


def test_the_params_of_copies_are_read_with_their_axis():
    def read(sub, x):
        sub.b(x)
        return sub.b.params["*"]["kernel"]

    model = al.wire(read, b=al.repeat(al.dense(4), 3))
    params, state = model.init(KEY, al.spec("b 4"))
    assert model.output_spec(al.spec("b 4")).shape == (3, 4, 4)
    assert model.predict(params, state, jnp.ones((1, 4))).shape == (3, 4, 4)


def test_the_params_of_a_child_that_has_none_are_an_empty_dict():
    def read(sub, x):
        y = sub.r(x)
        assert sub.r.params == {}
        return y

    model = al.wire(read, r=jnp.tanh)
    assert model.init(KEY, al.spec("b 4")) == ({}, {})
