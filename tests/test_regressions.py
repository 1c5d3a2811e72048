"""Bugs that were found and mended, each by the smallest thing that showed it."""

import enum
import functools
import operator
import pickle
from fractions import Fraction
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import axonlike as al
from axonlike.testing import check_layer
from axonlike.tree import rebuilt

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
    with pytest.raises(TypeError, match="bidirectional: expected a pair of carries"):
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


# --- layers as values


class Pair(NamedTuple):
    a: float
    b: object = None


class Color(enum.Enum):
    RED = 1


@al.layer
def holding(value=None, **more):
    def apply(params, x):
        return x

    return None, apply


@al.layer
def joining(parts):
    def apply(params, x):
        return jnp.stack([x * v for v in parts.values()])

    return None, apply


def test_the_order_of_a_dict_counts():
    one, other = joining({"p": 1.0, "q": 2.0}), joining({"q": 2.0, "p": 1.0})
    assert one != other
    found = [jax.jit(layer.apply)({}, {}, 1.0)[0].tolist() for layer in (one, other)]
    assert found == [[1.0, 2.0], [2.0, 1.0]]
    assert holding(p=1, q=2) != holding(q=2, p=1)


def test_a_class_that_was_defined_again_is_another():
    def made():
        return type("Sizes", (tuple,), {})

    one, other = made(), made()
    assert holding(one((1,))) == holding(one((1,)))
    assert holding(one((1,))) != holding(other((1,)))


@pytest.mark.parametrize(
    "value",
    [
        slice(0, 3), range(3), Fraction(1, 3), Pair(1.0, jax.nn.relu), Color.RED,
        jax.lax.Precision.HIGH, operator.neg, abs, np.arange(3), jnp.ones((2, 1)),
        functools.partial(jax.nn.gelu, approximate=False), {"a": [1, (2, None)]},
    ],
)  # fmt: skip
def test_a_value_is_equal_to_what_its_repr_and_its_pickle_make(value):
    layer = holding(value)
    assert layer == holding(value)
    assert pickle.loads(pickle.dumps(layer)) == layer
    home = {"al": al, "jax": jax, "functools": functools, "operator": operator}
    home |= {"numpy": np, __name__: __import__(__name__), "Fraction": Fraction}
    if not isinstance(value, Pair):  # whose own repr names no module
        assert eval(repr(layer), home) == layer


def test_what_a_layer_was_made_of_may_change_afterwards():
    sizes, table = [1, 2], np.ones(2)
    layer, same = holding([sizes, table]), holding([[1, 2], np.ones(2)])
    sizes.append(3)
    table[:] = 5
    assert layer == same
    assert layer == eval(repr(layer), {"numpy": np, __name__: __import__(__name__)})


def test_a_config_may_hold_keys_and_traced_values():
    assert holding(KEY) == holding(KEY)

    def function(t):
        model = al.serial(functools.partial(jnp.multiply, t))
        return model.predict({}, {}, jnp.ones(2))

    assert jax.jit(function)(2.0).tolist() == [2.0, 2.0]
    with jax.checking_leaks():
        assert (
            jax.jit(lambda t: al.lift(lambda x: x * t).predict({}, {}, 1.0))(2.0) == 2
        )


def test_a_name_by_position_is_a_name():
    @al.layer
    def mine(features, name=None):
        return None, lambda params, x: x

    assert mine(3, "head").name == "head"


def test_a_method_and_its_function_are_told_apart():
    class Scale:
        def by(self, x):
            return x + 1

    assert al.lift(Scale.by).signature.inputs == ("self", "x")
    assert al.lift(Scale().by).predict({}, {}, jnp.ones(2)).tolist() == [2, 2]


def test_a_lifted_function_has_no_options():
    def scaled(x, *, scale=1.0):
        return x * scale

    model = al.serial(scaled)
    with pytest.raises(al.PathError, match="options: nothing is called 'scale'"):
        model.apply({}, {}, jnp.ones(2), options={"scale": 100.0})


def test_lifting_a_layer_names_it():
    assert al.lift(al.identity, name="x") == al.identity.named("x")
    assert eval(repr(al.identity.named("x"))) == al.identity.named("x")


def test_the_right_one_of_two_equal_children_is_replaced():
    def both(sub, x):
        return sub.a(x) + sub.b(x)

    one = al.dense(3)
    changed = rebuilt(al.wire(both, a=one, b=one), {"b": al.dense(9)})
    assert [c.config["features"] for c in changed.children.values()] == [3, 9]


def test_predict_under_jit_is_traced_once():
    traces = []

    def counting(x):
        traces.append(x)
        return x

    model = al.dense(2) >> counting
    params, state = model.init(KEY, (None, 3))
    traces.clear()
    for _ in range(3):
        jax.jit(model.predict)(params, state, jnp.ones((1, 3)))
    assert len(traces) == 1


# --- inputs


def test_numpy_is_taken_as_jax_takes_it():
    model = al.input("b 2", jnp.float32) >> al.dense(3)
    params, state = model.init(KEY, np.ones((1, 2)))
    eager = model.predict(params, state, np.ones((1, 2)))
    assert eager.dtype == jax.jit(model.predict)(params, state, np.ones((1, 2))).dtype
    ids = al.input("b", int) >> al.embedding(5, 2)
    params, state = ids.init(KEY, np.array([1, 2]))
    assert ids.predict(params, state, np.array([1, 2])).shape == (2, 2)


def test_inputs_by_name_reach_init_as_they_do_by_position():
    @al.layer
    def pair():
        def init(key, q, kv=None):
            return {"k": jnp.ones((q if kv is None else kv).shape[-1:])}

        def apply(params, q, memory):
            return q

        return init, apply

    for x in ((("2 3"), ("2 7")), {"q": "2 3", "memory": "2 7"}):
        assert pair().init(KEY, x)[0]["k"].shape == (7,)


def test_data_sets_no_option():
    def scaled(sub, q, k, *, scale=1.0):
        return q * scale

    with pytest.raises(TypeError, match="unknown input 'scale'"):
        al.wire(scaled).predict({}, {}, {"q": 2.0, "k": 1.0, "scale": 5.0})


def test_computed_sizes_are_enforced():
    pair = al.input(("2*b 4", "b 3"))
    assert pair.output_spec(("4 4", "2 3"))[0].shape == (4, 4)
    with pytest.raises(al.ShapeError, match="with b = 2"):
        pair.output_spec(("3 4", "2 3"))


@pytest.mark.parametrize("spec", [(None, 3), jax.ShapeDtypeStruct((2, 3), jnp.float32)])
def test_an_input_is_declared_like_any_spec(spec):
    assert al.input(spec).output_spec((2, 3)).shape == (2, 3)
    with pytest.raises(TypeError, match="input: expected text"):
        al.input(784)


@pytest.mark.parametrize("x", [("b", 784), [None, 784], [("b", 3)]])
def test_a_shape_that_is_none_is_told(x):
    with pytest.raises(TypeError, match="expected a shape"):
        al.dense(3).init(KEY, x)


def test_sizes_may_be_of_numpy():
    assert al.dense(2).output_spec((None, np.prod((2, 3)))).shape[1:] == (2,)
    assert al.spec((np.int64(3), None)).dims == (3, "_1")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("b 3", "flot32"), "dtype: expected one that arrays have"),
        (("b 3", str), "dtype: expected one that arrays have"),
        (("t 3", float, ("t<<64",)), "constraints"),
    ],
)
def test_what_no_spec_can_be_is_told(arguments, message):
    with pytest.raises((TypeError, ValueError), match=message):
        al.spec(*arguments)


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        (lambda: al.dense(4, kernel_init=al.initializers.he_normal), "was not called"),
        (
            lambda: al.dense(4, bias_init=jax.nn.initializers.he_normal),
            "was not called",
        ),
        (lambda: al.dense(4, kernel_init="he"), "expected an initializer, got str"),
    ],
)
def test_an_initializer_that_is_none_is_told(factory, message):
    with pytest.raises(TypeError, match=message):
        factory()


# --- names


def test_a_slice_keeps_the_shortcuts_of_the_whole():
    def block():
        return al.residual(al.serial(al.dense(2)), shortcut=al.dense(2))

    model, x = block() >> block(), jnp.ones((1, 2))
    params, state = model.init(KEY, x)
    h = model[:1].predict(params, state, x)
    wanted = model.predict(params, state, x)
    assert jnp.array_equal(model[1:].predict(params, state, h), wanted)


def test_the_choice_of_a_cond_shares_its_name_with_nothing():
    inner = al.residual(al.dense(2, name="predicate"))
    with pytest.raises(ValueError, match="'predicate' is taken"):
        al.cond(lambda x: jnp.sum(x) > 0, inner, al.dense(2))


def test_an_array_and_a_layer_of_one_name_are_told():
    @al.layer
    def odd():
        def init(key, x):
            return {"shortcut": jnp.ones(x.shape[-1:])}

        return init, lambda params, x: x

    with pytest.raises(ValueError, match="both an array and a layer"):
        al.residual(odd(), shortcut=al.dense(2)).init(KEY, (None, 2))


def test_a_cell_with_state_and_without_a_projection():
    @al.layer
    def cell():
        def init(key, carry, x):
            return {}, {"n": jnp.zeros(())}

        def apply(params, carry, x, *, state):
            return carry + x, (carry, {"n": state["n"] + 1})

        def step(params, carry, x, *, state):
            (carry, (y, state)) = apply(params, carry, x, state=state)
            return (carry, y), state

        return al.Cell(init, step, lambda x: jnp.zeros(x.shape, x.dtype))

    model = al.scan(cell())
    params, state = model.init(KEY, al.spec("2 5 3"))
    _, after = model.apply(params, state, jnp.ones((2, 5, 3)))
    assert jax.tree.leaves(after) == [5.0]


@pytest.mark.parametrize("around", [jax.checkpoint, jax.jit])
def test_state_does_not_leave_a_transformation_in_silence(around):
    def inside(sub, x):
        return around(sub.f)(x)

    model = al.wire(inside, f=counter())
    params, state = model.init(KEY, jnp.ones(2))
    assert model.predict(params, state, jnp.ones(2)).shape == (2,)
    with pytest.raises(ValueError, match="changes its state inside of a JAX"):
        model.apply(params, state, jnp.ones(2), train=True)


def test_children_may_be_branches_of_a_cond_by_hand():
    def either(sub, x):
        return jax.lax.cond(x.sum() > 0, sub.f, sub.g, x)

    model = al.wire(either, f=al.dense(2), g=al.dense(2))
    params, state = model.init(KEY, (3, 2))
    assert model.predict(params, state, jnp.ones((3, 2))).shape == (3, 2)


# --- layers


def test_a_causal_row_that_may_attend_to_nothing_sees_nothing_later():
    layer = al.attention(2, causal=True)
    x = jax.random.normal(KEY, (1, 5, 4))
    params, state = layer.init(KEY, x)
    mask = jnp.ones((1, 5, 5), bool).at[0, 0].set(False)
    y, z = (
        layer.predict(params, state, (v, v, mask)) for v in (x, x.at[:, 4].add(1.0))
    )
    assert jnp.array_equal(y[:, :4], z[:, :4])
    named = {"query": x, "keys_values": x, "mask": mask}
    assert jnp.array_equal(layer.predict(params, state, named), y)


def test_statistics_move_whatever_params_are_in():
    layer = al.batch_norm(param_dtype=jnp.bfloat16)
    params, state = layer.init(KEY, al.spec("b 3"))
    assert {a.dtype for a in state.values()} == {jnp.dtype("float32")}
    assert {a.dtype for a in params.values()} == {jnp.dtype("bfloat16")}


@pytest.mark.parametrize("factory", [al.lstm, al.gru])
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_recurrent_params_in_half_precision(factory, dtype):
    params, _ = factory(3, param_dtype=dtype).init(KEY, al.spec("2 4 3"))
    assert {a.dtype for a in params.values()} == {jnp.dtype(dtype)}


def test_a_rate_of_numpy_widens_nothing():
    x = jnp.ones((4,), jnp.bfloat16)
    layer = al.dropout(np.float64(0.5))
    assert layer.apply({}, {}, x, key=KEY, train=True)[0].dtype == jnp.bfloat16


@pytest.mark.parametrize("layer", [al.layer_norm(), al.batch_norm(), al.lstm(3)])
def test_statistics_of_complex_numbers_are_refused(layer):
    with pytest.raises(al.ShapeError, match="floating-point"):
        layer.init(KEY, al.spec("2 3 4", jnp.complex64))


def test_max_pooling_in_a_dtype_without_infinity():
    x = jnp.array([[[1], [0], [1], [1]]], jnp.float8_e4m3fn)
    y = al.max_pool(2, 1, "SAME").predict({}, {}, x)
    assert not jnp.isnan(y.astype(jnp.float32)).any()


@pytest.mark.parametrize("layer", [al.dense(3), al.conv(3, 3)])
def test_an_input_without_features_is_told(layer):
    with pytest.raises(al.ShapeError, match="a last axis of at least 1"):
        layer.init(KEY, al.spec("2 4 0"))


def test_a_carry_of_another_width_is_told():
    def carried(sub, x, carry):
        return sub.rnn(x, initial_carry=carry)

    model = al.wire(carried, rnn=al.gru(3))
    with pytest.raises(al.ShapeError, match="initial_carry"):
        model.init(KEY, (al.spec("2 5 4"), al.spec("2 4")))


# --- check_layer


def test_sound_layers_that_were_refused():
    check_layer(al.lift(lambda x: jnp.argmax(x, -1)), "b 8")
    check_layer(al.lift(jnp.log), "b 4", gradients=())
    check_layer(al.lift(lambda x: jnp.abs(jnp.fft.rfft(x))), "b 4", keeps_dtype=False)


def broken(init, apply):
    return al.layer(lambda: (init, apply))()


def same_mask(params, x, *, key, train):
    if not train:
        return x
    return x * jax.random.bernoulli(jax.random.key(0), 0.5, x.shape).astype(x.dtype)


def no_key_needed(params, x, *, key, train):
    drawn = x if key is None else jax.random.normal(key, x.shape, x.dtype)
    return x + drawn if train else x


def leaking(params, x):
    return x + 1e-5 * x.mean(0, keepdims=True)


def as_input(key, x):
    return {"w": jax.random.normal(key, x.shape[-1:], x.dtype)}


def same_weights(key, x):
    return {"w": jax.random.normal(jax.random.key(0), x.shape[-1:])}


def weighted(params, x):
    return x * jnp.broadcast_to(params["w"].astype(x.dtype), x.shape)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (broken(None, same_mask), "another output from another key"),
        (broken(None, no_key_needed), "an error in training without a key"),
        (broken(None, leaking), "depend on it alone"),
        (broken(as_input, weighted), "the same dtypes from bfloat16"),
        (broken(same_weights, weighted), "other weights from another key"),
    ],
)
def test_broken_layers_that_passed(layer, message):
    with pytest.raises(AssertionError, match=message):
        check_layer(layer, "b 4")


def test_a_list_of_layers_is_to_be_spread():
    with pytest.raises(TypeError, match=r"Spread it: serial\(\*layers\)"):
        al.serial([al.dense(2), al.dense(3)])


def test_a_state_may_be_larger_than_the_input():
    @al.layer
    def cache():
        def init(key, x):
            return {}, {"kept": jnp.zeros(x.shape), "at": jnp.zeros((), jnp.int32)}

        def apply(params, x, *, state):
            at = state["at"]
            kept = jax.lax.dynamic_update_slice(state["kept"], x, (0, at))
            return kept.sum(1), {"kept": kept, "at": at + x.shape[1]}

        return init, apply

    params, state = cache().init(KEY, (2, 8))
    for _ in range(3):
        y, state = cache().apply(params, state, jnp.ones((2, 2)))
    assert y.tolist() == [6.0, 6.0]
