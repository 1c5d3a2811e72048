"""The pair: what a layer is, what makes two of them one, what its functions receive."""

import copy
import dataclasses
import functools
import inspect
import pickle
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import axonlike as al

KEY = jax.random.key(0)
TRACED = []


@al.layer
def scale(start=1.0, *, note=None):
    def init(key, x):
        return {"scale": jnp.full(x.shape[-1:], start, jnp.float32)}

    def apply(params, x):
        TRACED.append(start)
        return x * jnp.broadcast_to(params["scale"], x.shape)

    return init, apply


@al.layer
def block(width, *, act=jax.nn.relu):
    return al.wire(hidden_then_out, hidden=al.dense(width), act=act, out=al.dense(2))


def hidden_then_out(sub, x):
    return sub.out(sub.act(sub.hidden(x)))


def halve(x):
    return x / 2


def mlp(width=4, act=jax.nn.relu):
    return al.dense(width) >> act >> al.dense(2)


def trees_equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


# --- init, apply, predict, output_spec


def test_a_layer_unpacks_as_the_pair_that_it_is():
    model, x = mlp(), jnp.ones((3, 5))
    init, apply = model
    params, state = init(KEY, x)
    trees_equal(params, model.init(KEY, x)[0])
    y, after = apply(params, state, x)
    assert y.shape == (3, 2)
    assert after == state == {}
    np.testing.assert_array_equal(y, model.predict(params, state, x))


def test_the_predicted_spec_is_the_real_one():
    model, x = mlp(), jnp.ones((3, 5), jnp.bfloat16)
    y = model.predict(*model.init(KEY, x), x)
    spec = model.output_spec(x)
    assert (spec.shape, spec.dtype) == (y.shape, y.dtype) == ((3, 2), jnp.bfloat16)


def test_the_input_state_and_params_are_not_touched():
    model = al.dense(3) >> al.batch_norm()
    x = jnp.ones((4, 2))
    params, state = model.init(KEY, x)
    before = copy.deepcopy((params, state))
    _, after = model.apply(params, state, x, train=True)
    trees_equal((params, state), before)
    assert np.any(after["batch_norm"]["mean"] != state["batch_norm"]["mean"])


def test_a_layer_cannot_be_changed():
    layer = al.dense(3)
    with pytest.raises(dataclasses.FrozenInstanceError):
        layer.kind = "conv"
    with pytest.raises(TypeError):
        layer.config["features"] = 4
    with pytest.raises(TypeError):
        mlp().children["dense"] = layer
    assert copy.copy(layer) is layer
    assert copy.deepcopy(layer) is layer


def test_kind_and_config_are_those_of_the_call():
    layer = scale(2.0, note="b")
    assert layer.kind == "scale"
    assert dict(layer.config) == {"start": 2.0, "note": "b"}
    assert dict(scale().config) == {"start": 1.0, "note": None}


def test_a_composite_has_a_kind_and_a_config_of_its_own():
    layer = block(6)
    assert layer.kind == "block"
    assert dict(layer.config) == {"width": 6, "act": jax.nn.relu}
    assert list(layer.children) == ["hidden", "act", "out"]
    params, _ = (al.dense(3) >> layer).init(KEY, (None, 5))
    assert sorted(params) == ["block", "dense"]
    assert sorted(params["block"]) == ["hidden", "out"]


def test_a_factory_may_return_a_function_or_a_layer_of_its_own():
    @al.layer
    def power(n):
        return lambda x: x**n

    @al.layer
    def clipped(low, high=None):
        return clipped(-low, low) if high is None else lambda x: jnp.clip(x, low, high)

    assert power(3).predict({}, {}, jnp.array(2.0)) == 8
    assert power(3).kind == "power"
    assert dict(clipped(1.0).config) == {"low": -1.0, "high": 1.0}
    assert clipped(1.0, name="c").name == "c"


def test_init_may_be_left_out():
    @al.layer
    def doubled():
        return None, lambda params, x: x + x

    assert doubled().init(KEY, (None, 3)) == ({}, {})
    assert doubled().predict({}, {}, jnp.array(2.0)) == 4


def test_every_factory_shows_and_takes_a_name():
    for factory in (scale, block, al.dense, al.serial, al.repeat):
        assert inspect.signature(factory).parameters["name"].default is None
    assert scale(name="s").name == "s"
    assert scale(2.0, name="s") == scale(2.0).named("s") != scale(2.0)
    assert scale.__doc__ is None
    assert al.dense.__name__ == "dense"


# --- equality, hash


def test_layers_made_alike_are_equal():
    assert mlp() == mlp()
    assert hash(mlp()) == hash(mlp())
    assert {mlp(): 1}[mlp()] == 1


@pytest.mark.parametrize(
    "other",
    [
        mlp(5),
        mlp(act=jax.nn.tanh),
        al.dense(4) >> jax.nn.relu >> al.dense(2, use_bias=False),
        al.dense(4) >> jax.nn.relu,
        al.dense(4) >> jax.nn.relu >> al.dense(2).named("head"),
        mlp().named("mlp"),
        al.serial(a=al.dense(4), b=jax.nn.relu, c=al.dense(2)),
        al.branch(al.dense(4), jax.nn.relu, al.dense(2)),
    ],
    ids=str,
)
def test_layers_that_differ_are_not_equal(other):
    assert mlp() != other


def test_the_types_of_values_count():
    layers = [scale(1), scale(1.0), scale(True), scale("1"), scale((1,)), scale([1])]
    assert len(set(layers)) == len(layers)
    assert scale(note={"a": 1}) != scale(note={"a": 1.0})
    assert scale(note={"a": 1, "b": 2}) != scale(note={"b": 2, "a": 1})
    assert scale(0.0) != scale(-0.0)
    assert scale(float("nan")) == scale(float("nan"))


def test_arrays_in_a_config_count_by_value():
    assert scale(note=np.arange(3)) == scale(note=np.arange(3))
    assert scale(note=np.arange(3)) != scale(note=np.arange(3.0))
    assert scale(note=np.arange(3)) != scale(note=np.arange(4))


def test_functions_count_by_identity():
    assert mlp(act=halve) == mlp(act=halve)
    one, two = (lambda x: x / 2 for _ in range(2))
    assert mlp(act=one) != mlp(act=two)
    assert mlp(act=functools.partial(jnp.sum, axis=-1, keepdims=True)) == mlp(
        act=functools.partial(jnp.sum, axis=-1, keepdims=True)
    )


def test_equality_leaves_foreigners_to_answer():
    assert al.dense(3).__eq__(3) is NotImplemented
    assert al.dense(3) != 3

    class Anything:
        def __eq__(self, other):
            return True

        __hash__ = None

    assert al.dense(3) == Anything()


def test_the_hash_is_computed_once():
    model = mlp()
    assert hash(model) == model.hash
    assert "hash" in {field.name for field in dataclasses.fields(model)}


def test_the_hash_is_the_same_in_every_process():
    code = (
        "import jax, axonlike as al\n"
        "print(hash(al.dense(4) >> jax.nn.relu >> al.residual(al.dense(4))))"
    )
    here = hash(al.dense(4) >> jax.nn.relu >> al.residual(al.dense(4)))
    there = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        capture_output=True,
        check=True,
        text=True,
    )
    assert int(there.stdout) == here


def module(start):
    """A module whose factory is defined again and again under one name."""
    made = types.ModuleType("user_module")
    made.al, made.jnp = al, jnp
    source = f"""
@al.layer
def shift():
    def init(key, x):
        return {{"shift": jnp.full(x.shape[-1:], {start})}}
    def apply(params, x):
        return x * {start} + jnp.broadcast_to(params["shift"], x.shape)
    return init, apply
"""
    exec(source, made.__dict__)
    return made


def test_a_factory_defined_again_makes_other_layers():
    x = jnp.ones((1, 2))
    old, new = module(1.0).shift(), module(2.0).shift()
    assert old != new
    for layer, start in ((old, 1.0), (new, 2.0), (old, 1.0)):
        model = al.serial(layer)
        params, state = model.init(KEY, x)
        np.testing.assert_array_equal(params["shift"]["shift"], [start, start])
        y, _ = jax.jit(model.apply)(params, state, x)
        np.testing.assert_array_equal(y, [[start * 2, start * 2]])


# --- apply is one function for equal layers


def test_apply_of_equal_layers_is_traced_once():
    x = jnp.ones((2, 3))
    make = lambda: scale(7.0) >> al.dense(2)  # noqa: E731
    params, state = make().init(KEY, x)
    TRACED.clear()
    for _ in range(3):
        jax.jit(make().apply)(params, state, x)
    assert TRACED == [7.0]
    jax.jit((scale(8.0) >> al.dense(2)).apply)(params, state, x)
    assert TRACED == [7.0, 8.0]
    assert make().apply == make().apply != al.dense(2).apply
    assert hash(make().apply) == hash(make().apply)


def test_train_and_options_are_static():
    x = jnp.ones((2, 3))
    model = scale(9.0) >> al.dropout(0.5)
    params, state = model.init(KEY, x)
    apply = jax.jit(model.apply, static_argnames="train")
    TRACED.clear()
    for _ in range(2):
        apply(params, state, x, key=KEY, train=True)
        apply(params, state, x, key=KEY, train=False)
    assert TRACED == [9.0, 9.0]


def test_grad_and_vmap_take_apply_as_it_is():
    model, x = mlp(), jnp.ones((3, 5))
    params, state = model.init(KEY, x)
    grads = jax.grad(lambda p: model.apply(p, state, x)[0].sum())(params)
    assert jax.tree.structure(grads) == jax.tree.structure(params)
    each = jax.vmap(model.predict, (None, None, 0))(params, state, x)
    np.testing.assert_allclose(each, model.predict(params, state, x), rtol=1e-6)


# --- text, pickle

MODELS = [
    mlp(),
    block(3),
    block(3, act=halve),
    scale(2.0, name="s"),
    al.identity,
    al.serial(),
    al.serial(a=al.dense(3), b=jnp.sin),
    al.branch(mean=al.dense(2), scale=al.dense(1) >> jnp.exp),
    al.dense(3) @ al.dense(4) >> al.concatenate(axis=0),
    al.residual(al.dense(8) >> jax.nn.gelu, shortcut=al.dense(8)) ** 3,
    al.repeat(al.dense(8), 3, stacked=False, tied=True).named("loop"),
    al.wire(hidden_then_out, hidden=al.dense(3), act=jnp.tanh, out=al.dense(3)),
    al.scan(al.lstm_cell(4), reverse=True) >> al.bidirectional(al.gru(3)),
    al.ensemble(al.dense(3, kernel_init=al.initializers.normal(0.1)), 2),
    al.mixed(al.dense(3), compute=jnp.bfloat16) >> al.frozen(al.dense(3)),
    al.cond(jnp.any, al.dense(3), al.dense(3)),
    al.switch(jnp.argmax, a=al.dense(3), b=al.identity),
    al.remat(al.vmap(al.conv(3, (2, 2), padding=((0, 1), 1)))),
    al.shared(al.dense(2)) >> al.pick(1) >> al.on_item(0, jnp.sin),
    al.input("b 784") >> al.dense(2),
    mlp().part("dense_1"),
    mlp()[1:],
    al.dense(2) >> functools.partial(jnp.sum, axis=0),
    al.lift(jnp.sum, name="total"),
    scale(float("nan"), note=[None, (1,), {"a": float("inf")}]),
]


@pytest.mark.parametrize("model", MODELS, ids=repr)
def test_repr_is_the_source_of_an_equal_model(model):
    made = evaluated(model)
    assert made == model
    assert hash(made) == hash(model)


def evaluated(model):
    """What the repr makes where everything in it is imported."""
    return eval(repr(model), {__name__: sys.modules[__name__], **globals()})


def test_arguments_before_a_positional_one_stand_without_their_names():
    @al.layer
    def gathered(count, sizes=(1,), *layers, extra=None):
        return al.serial(*layers)

    layer = gathered(2, (1,), al.dense(3), extra=1)
    assert repr(layer) == "gathered(2, (1,), al.dense(features=3), extra=1)"
    assert eval(repr(layer), {"al": al, "gathered": gathered}) == layer
    assert repr(gathered(2, extra=1)) == "gathered(count=2, extra=1)"
    assert repr(al.on_item(0, jnp.sin)) == "al.on_item(0, jax.numpy.sin)"


def test_what_cannot_be_imported_is_shown_with_its_file_and_line():
    here = inspect.currentframe().f_lineno
    assert repr(mlp(act=lambda x: x)) == (
        f"al.serial(al.dense(features=4), <lambda test_layer.py:{here + 1}>, "
        "al.dense(features=2))"
    )


@pytest.mark.parametrize("model", MODELS, ids=repr)
def test_a_model_survives_pickle(model):
    made = pickle.loads(pickle.dumps(model))
    assert made == model
    assert hash(made) == hash(model)


def test_a_pickled_model_works_in_another_process():
    model = al.dense(4) >> jax.nn.relu >> al.residual(al.dense(4))
    code = (
        "import pickle, sys, jax\n"
        "model = pickle.loads(sys.stdin.buffer.read())\n"
        "params, state = model.init(jax.random.key(0), (None, 3))\n"
        "print(float(sum(leaf.sum() for leaf in jax.tree.leaves(params))))"
    )
    found = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        input=pickle.dumps(model),
        capture_output=True,
        check=True,
    )
    params, _ = model.init(KEY, (None, 3))
    total = float(sum(leaf.sum() for leaf in jax.tree.leaves(params)))
    assert float(found.stdout) == pytest.approx(total, rel=1e-6)


def test_pickle_refuses_a_lambda_with_its_path():
    model = al.serial(body=al.dense(3) >> (lambda x: x + 1), head=al.dense(2))
    with pytest.raises(pickle.PicklingError) as caught:
        pickle.dumps(model)
    assert str(caught.value).startswith("body/fn: <lambda test_layer.py:")
    assert str(caught.value).endswith("Define it with def at the top of a module.")


def test_pickle_refuses_a_local_factory():
    @al.layer
    def local():
        return None, lambda params, x: x

    with pytest.raises(pickle.PicklingError, match=r"^local: <local test_layer\.py:"):
        pickle.dumps(al.dense(3) >> local())


def test_str_folds_runs_of_equal_layers():
    model = al.serial(*[al.dense(8)] * 12, al.dense(2).named("head"))
    assert str(model) == (
        "serial(...)\n"
        "  dense .. dense_11: 12 x dense(features=8)\n"
        "  head: dense(features=2)"
    )


# --- inputs


def inputs_of(apply):
    """What a layer with this apply received, by the names of its parameters."""

    @al.layer
    def seen():
        return None, apply

    return seen()


def test_one_input_arrives_whole():
    one = inputs_of(lambda params, x: x)
    for x in (jnp.ones(2), (jnp.ones(2), jnp.zeros(1)), {"a": jnp.ones(2)}):
        trees_equal(one.predict({}, {}, x), x)
    optional = inputs_of(lambda params, x, mask=None: (x, mask is None))
    assert optional.predict({}, {}, (1, 2)) == ((1, 2), True)


def test_two_required_inputs_are_unpacked_by_position_or_name():
    two = inputs_of(lambda params, a, b, c=None: {"a": a, "b": b, "c": c})
    assert two.predict({}, {}, (1, 2)) == {"a": 1, "b": 2, "c": None}
    assert two.predict({}, {}, [1, 2, 3]) == {"a": 1, "b": 2, "c": 3}
    assert two.predict({}, {}, {"b": 2, "a": 1}) == {"a": 1, "b": 2, "c": None}
    with pytest.raises(TypeError, match=r"expected 2 to 3 inputs \(a, b, c\), got 1"):
        two.predict({}, {}, (1,))
    with pytest.raises(TypeError, match=r"unknown input 'd'. Known: 'a', 'b', 'c'"):
        two.predict({}, {}, {"a": 1, "b": 2, "d": 3})


def test_any_number_of_inputs_is_unpacked():
    many = inputs_of(lambda params, *xs: len(xs))
    assert many.predict({}, {}, (1, 2, 3)) == 3
    assert many.predict({}, {}, 1) == 1


def test_a_lifted_function_receives_inputs_alone():
    def keyed(x, *, key=None, train="mine"):
        return x if key is None and train == "mine" else -x

    model = al.dense(2) >> keyed
    params, state = model.init(KEY, (None, 3))
    x = jnp.ones((1, 3))
    y, _ = model.apply(params, state, x, key=KEY, train=True)
    np.testing.assert_array_equal(y, model.predict(params, state, x))


def test_a_function_of_a_tuple_gets_its_tuple():
    model = (al.identity & al.identity) >> jnp.concatenate
    assert model.predict({}, {}, jnp.ones((2, 3))).shape == (4, 3)
    model = (al.identity & al.identity) >> jnp.subtract
    assert not model.predict({}, {}, jnp.ones((2, 3))).any()


def test_init_receives_inputs_as_apply_does():
    @al.layer
    def bilinear(features):
        def init(key, a, b):
            return {"kernel": jnp.ones((a.shape[-1], b.shape[-1], features))}

        def apply(params, a, b):
            return jnp.einsum("bi,bj,ijf->bf", a, b, params["kernel"])

        return init, apply

    layer = bilinear(4)
    for x in (((None, 2), (None, 3)), {"b": (None, 3), "a": (None, 2)}):
        params, state = layer.init(KEY, x)
        assert params["kernel"].shape == (2, 3, 4)
    y = layer.predict(params, state, (jnp.ones((5, 2)), jnp.ones((5, 3))))
    np.testing.assert_array_equal(y, np.full((5, 4), 6.0))


def test_init_sees_shape_and_dtype_and_no_values():
    seen = {}

    @al.layer
    def looking():
        def init(key, x):
            seen.update(shape=tuple(x.shape), dtype=x.dtype, ndim=x.ndim, size=x.size)
            seen["repr"], seen["array"] = repr(x), isinstance(x, jax.Array)
            return {}

        return init, lambda params, x: x

    looking().init(KEY, jnp.ones((2, 3), jnp.bfloat16))
    assert seen == {
        "shape": (2, 3),
        "dtype": jnp.bfloat16,
        "ndim": 2,
        "size": 6,
        "repr": "bfloat16[2, 3]",
        "array": False,
    }


# --- services and options


def test_a_layer_gets_the_services_that_it_asks_for():
    seen = []

    @al.layer
    def asking():
        def apply(params, x, *, train, key, emit):
            seen.append((train, key is None, emit("twice", x + x).shape))
            return x

        return None, apply

    layer, x = asking(), jnp.ones(3)
    layer.predict({}, {}, x)
    layer.apply({}, {}, x, key=KEY, train=True)
    assert seen == [(False, True, (3,)), (True, False, (3,))]


def test_positional_parameters_are_inputs_whatever_their_names():
    layer = inputs_of(lambda params, key, train: key - train)
    y = layer.apply({}, {}, (jnp.array(3.0), jnp.array(1.0)), key=KEY, train=True)[0]
    assert y == 2


def test_a_layer_with_state_returns_it():
    @al.layer
    def counted():
        def init(key, x):
            return {"bias": jnp.zeros(())}, {"count": jnp.zeros((), jnp.int32)}

        def apply(params, x, *, state, train):
            count = state["count"] + 1 if train else state["count"]
            return x + params["bias"], {"count": count}

        return init, apply

    model = al.serial(first=counted(), act=jnp.sin, second=counted())
    params, state = model.init(KEY, jnp.array(1.0))
    assert state == {"first": {"count": 0}, "second": {"count": 0}}
    for _ in range(3):
        _, state = model.apply(params, state, jnp.array(1.0), train=True)
    _, state = model.apply(params, state, jnp.array(1.0))
    assert state == {"first": {"count": 3}, "second": {"count": 3}}


def test_options_are_passed_down_by_name():
    @al.layer
    def cut():
        def apply(params, x, *, steps=3, decode=False):
            return x[:steps] if decode else x

        return None, apply

    model = al.serial(body=cut() >> jnp.sin, tail=cut())
    x = jnp.ones(5)
    assert model.options == {"steps", "decode"}
    assert model.predict({}, {}, x).shape == (5,)
    assert model.apply({}, {}, x, options={"decode": True})[0].shape == (3,)
    both = {"decode": True, "steps": 2}
    assert model.apply({}, {}, x, options=both)[0].shape == (2,)
    with pytest.raises(al.PathError, match=r"is called 'decod'\. Nearest: 'decode'"):
        model.apply({}, {}, x, options={"decod": True})


# --- lifting


def test_a_function_is_a_layer_without_params():
    model = al.serial(jax.nn.relu, jnp.sin, lambda x: x + 1, lambda x: x * 2)
    assert list(model.children) == ["relu", "sin", "fn", "fn_1"]
    assert model.init(KEY, (None, 3)) == ({}, {})
    x = jnp.array([-1.0, 2.0])
    np.testing.assert_allclose(
        model.predict({}, {}, x), (jnp.sin(jax.nn.relu(x)) + 1) * 2, rtol=1e-6
    )


def test_a_callable_object_and_a_partial_are_functions():
    class Power:
        def __call__(self, x):
            return x**2

    model = al.serial(Power(), functools.partial(jnp.sum, axis=-1))
    assert list(model.children) == ["Power", "sum"]
    assert model.predict({}, {}, jnp.full((2, 3), 2.0)).tolist() == [12, 12]


def test_functions_stand_on_either_side_of_an_operator():
    for model in (jnp.sin >> al.dense(2), al.dense(2) >> jnp.sin):
        assert sorted(model.children) == ["dense", "sin"]
    assert sorted((jnp.sin & al.dense(2)).children) == ["dense", "sin"]
    with pytest.raises(TypeError, match="unsupported operand"):
        jnp.sin >> jnp.cos


def test_an_array_is_no_layer_on_either_side():
    for combine in (lambda a, b: a + b, lambda a, b: a * b, lambda a, b: a @ b):
        for array in (np.ones(3), jnp.ones(3)):
            with pytest.raises(TypeError, match="expected a layer or a function"):
                combine(array, al.dense(3))
            with pytest.raises(TypeError, match="expected a layer or a function"):
                combine(al.dense(3), array)


# --- named, part, slices


def test_named_gives_another_layer():
    layer = al.dense(3)
    assert layer.named("head").name == "head"
    assert layer.named("head").named(None) == layer
    assert layer.named(None) is layer
    assert layer.name is None
    model = al.dense(3) >> layer.named("dense_1") >> al.dense(3) >> al.dense(3)
    assert list(model.children) == ["dense", "dense_1", "dense_2", "dense_3"]


def test_explicit_names_are_skipped_in_counting():
    model = al.serial(
        al.dense(3), al.dense(3), al.dense(3, name="dense"), al.dense(3, name="dense_2")
    )
    assert list(model.children) == ["dense_1", "dense_3", "dense", "dense_2"]


def test_a_part_runs_on_the_whole_params():
    model = al.serial(
        encoder=al.dense(3) >> al.batch_norm() >> jax.nn.relu,
        decoder=al.dense(8) >> al.dropout(0.5),
    )
    x = jnp.arange(8.0).reshape(2, 4)
    params, state = model.init(KEY, x)
    encode, decode = model.part("encoder"), model.part("decoder")
    z, between = encode.apply(params, state, x, key=KEY, train=True)
    y, after = decode.apply(params, between, z, key=KEY, train=True)
    trees_equal((y, after), model.apply(params, state, x, key=KEY, train=True))
    inner = model.part("encoder/dense")
    assert inner.predict(params, state, x).shape == (2, 3)
    assert decode == evaluated(decode)


def test_a_part_inside_a_wrapper_and_a_wire_is_found():
    model = al.serial(
        body=al.wire(hidden_then_out, hidden=al.dense(3), act=jnp.sin, out=al.dense(4)),
        rest=al.residual(al.dense(4) >> jnp.sin),
    )
    params, state = model.init(KEY, (None, 5))
    part = model.part("body/hidden")
    assert part.predict(params, state, jnp.ones((1, 5))).shape == (1, 3)
    part = model.part("rest/dense")
    assert part.predict(params, state, jnp.ones((1, 4))).shape == (1, 4)
    with pytest.raises(al.PathError, match="Nearest: 'body/hidden'"):
        model.part("body/hiden")


def test_a_slice_keeps_the_names_of_the_whole():
    model = al.dense(4) >> jax.nn.relu >> al.dense(3) >> jnp.sin >> al.dense(2)
    x = jnp.ones((1, 5))
    params, state = model.init(KEY, x)
    first, rest = model[:2], model[2:]
    assert list(rest.children) == ["dense_1", "sin", "dense_2"]
    z = first.predict(params, state, x)
    np.testing.assert_array_equal(
        rest.predict(params, state, z), model.predict(params, state, x)
    )
    own, _ = rest.init(KEY, z)
    trees_equal(own, {name: params[name] for name in ("dense_1", "dense_2")})


def test_an_item_is_a_layer_with_its_name_pinned():
    model = al.dense(4) >> jax.nn.relu >> al.dense(3)
    assert model[0] == al.dense(4).named("dense")
    assert model[-1] == al.dense(3).named("dense_1")
    assert model[-1] >> model[0] == al.serial(dense_1=al.dense(3), dense=al.dense(4))
    with pytest.raises(IndexError):
        model[3]
    with pytest.raises(TypeError, match="only a serial has an order to index"):
        al.dense(3)[0]


def test_a_slice_drops_the_same_units_as_the_whole():
    model = al.dense(4) >> al.dropout(0.5) >> al.dropout(0.5)
    x = jnp.ones((4, 5))
    params, state = model.init(KEY, x)
    whole, _ = model.apply(params, state, x, key=KEY, train=True)
    z, _ = model[:2].apply(params, state, x, key=KEY, train=True)
    z, _ = model[2:].apply(params, state, z, key=KEY, train=True)
    np.testing.assert_array_equal(z, whole)


# --- al.layers


def tree():
    attn = al.wire(hidden_then_out, hidden=al.dense(8), act=jnp.sin, out=al.dense(8))
    body = al.residual(al.layer_norm() >> attn.named("attn"))
    return al.serial(
        stem=al.dense(8),
        blocks=al.repeat(body, 2, stacked=False),
        tail=al.branch(mean=al.dense(1), rest=al.serial(al.dense(2), jnp.sin)),
    )


def test_layers_lists_all_in_model_order():
    paths = [path for path, _ in al.layers(tree())]
    assert paths == [
        "stem",
        "blocks",
        "blocks/0",
        "blocks/0/layer_norm",
        "blocks/0/attn",
        "blocks/0/attn/hidden",
        "blocks/0/attn/act",
        "blocks/0/attn/out",
        "blocks/1",
        "blocks/1/layer_norm",
        "blocks/1/attn",
        "blocks/1/attn/hidden",
        "blocks/1/attn/act",
        "blocks/1/attn/out",
        "tail",
        "tail/mean",
        "tail/rest",
        "tail/rest/dense",
        "tail/rest/sin",
    ]


@pytest.mark.parametrize(
    ("where", "count"),
    [
        ("stem", 1),
        ("tail/*", 2),
        ("**/attn", 2),
        ("blocks/{0,1}/attn/*", 6),
        (lambda path, layer: layer.kind == "dense", 7),
        (["stem", "**/sin", lambda path, layer: path == "stem"], 2),
    ],
)
def test_layers_are_chosen_by_path_glob_or_predicate(where, count):
    found = al.layers(tree(), where)
    assert len(found) == count
    assert all(isinstance(layer, al.Layer) for _, layer in found)


def test_a_selector_that_finds_nothing_is_an_error():
    for where in ("stam", "tail/*/*/*", lambda path, layer: False, ["stem", "nope"]):
        with pytest.raises(al.PathError):
            al.layers(tree(), where)
    with pytest.raises(al.PathError, match=r"Nearest: 'stem'"):
        al.layers(tree(), "stam")
