"""Specs: what stands for an array before there is one."""

import copy
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.export import symbolic_shape

import axonlike as al
from axonlike.spec import Spec, as_spec, show

KEY = jax.random.key(0)


def shapes(x):
    return jax.tree.map(lambda s: (tuple(map(str, s.shape)), s.dtype.name), as_spec(x))


@pytest.mark.parametrize(
    ("text", "shape"),
    [
        ("", ()),
        ("3", ("3",)),
        ("b 28 28 1", ("b", "28", "28", "1")),
        ("b t b", ("b", "t", "b")),
        ("b 4*h", ("b", "4*h")),
        ("t+1 2*t-1", ("t + 1", "2*t - 1")),
        ("_ 3 _", ("_0", "3", "_2")),
        ("  b   2 ", ("b", "2")),
    ],
)
def test_text_is_sizes_and_names(text, shape):
    assert tuple(map(str, al.spec(text).shape)) == shape
    assert al.spec(text).ndim == len(shape)


@pytest.mark.parametrize("text", ["b,3", "-1", "2 -1", "b )", "b 2.5", "*", "a/b"])
def test_other_text_is_refused(text):
    with pytest.raises(ValueError, match="is not sizes and names between blanks"):
        al.spec(text)


@pytest.mark.parametrize(
    ("dtype", "name"),
    [
        (jnp.bfloat16, "bfloat16"),
        (int, "int32"),
        (float, "float32"),
        (bool, "bool"),
        ("uint8", "uint8"),
        (np.int64, "int32"),
        (np.float64, "float32"),
    ],
)
def test_a_dtype_is_the_one_that_jax_gives(dtype, name):
    assert al.spec("b", dtype).dtype.name == name
    assert al.spec("b").dtype.name == "float32"


def test_with_x64_the_wide_dtypes_are_kept():
    with jax.enable_x64(True):
        assert al.spec("b", np.float64).dtype.name == "float64"
        assert al.spec("b", int).dtype.name == "int64"


def test_a_spec_is_a_value():
    spec = al.spec("b t 3", int, constraints=("t<=64",))
    for other in (copy.deepcopy(spec), pickle.loads(pickle.dumps(spec))):
        assert other == spec
        assert hash(other) == hash(spec)
    assert eval(repr(spec)) == spec
    assert repr(al.spec("b 3")) == "al.spec('b 3', 'float32')"
    assert spec != al.spec("b t 3", int)
    assert al.spec("b 3") != al.spec("c 3")
    assert isinstance(spec, Spec)


def test_what_stands_for_arrays():
    x = {
        "array": jnp.ones((2, 3), jnp.bfloat16),
        "numpy": np.ones((4,), np.float64),
        "struct": jax.ShapeDtypeStruct((5, 6), jnp.int8),
        "spec": al.spec("b 3"),
        "text": "b 7",
        "tuple": (None, 4),
        "scalars": [1, 2.0, True],
        "pair": (al.spec("b"), (2, 3)),
    }
    assert shapes(x) == {
        "array": (("2", "3"), "bfloat16"),
        "numpy": (("4",), "float32"),
        "struct": (("5", "6"), "int8"),
        "spec": (("b", "3"), "float32"),
        "text": (("b", "7"), "float32"),
        "tuple": (("_0", "4"), "float32"),
        "scalars": [((), "int32"), ((), "float32"), ((), "bool")],
        "pair": ((("b",), "float32"), (("2", "3"), "float32")),
    }


def test_a_tuple_of_ints_and_none_is_always_one_shape():
    assert shapes((2, 3)) == (("2", "3"), "float32")
    assert shapes((None,)) == (("_0",), "float32")
    assert shapes(((2,), (3,))) == ((("2",), "float32"), (("3",), "float32"))
    assert shapes([2, 3]) == [((), "int32"), ((), "int32")]


@pytest.mark.parametrize("x", [object(), {1, 2}, [object()], lambda x: x])
def test_other_things_are_refused(x):
    with pytest.raises(TypeError, match=r"input: expected an array, al\.spec"):
        as_spec(x)


def test_one_name_means_one_size_wherever_it_stands():
    a, b = as_spec((al.spec("b 3"), al.spec("4 b")))
    assert a.shape[0] == b.shape[1]
    assert al.spec("b").shape[0] == al.spec("b 3").shape[0]
    model = (al.identity @ al.identity) >> al.add()
    assert model.output_spec((al.spec("b 3"), al.spec("b 3"))).shape[1] == 3
    with pytest.raises(al.ShapeError, match="outputs of one shape"):
        model.output_spec((al.spec("b 3"), al.spec("c 3")))


def test_none_at_one_axis_is_one_size_in_all_inputs():
    model = (al.dense(3) @ al.dense(3)) >> al.add()
    assert model.output_spec(((None, 4), (None, 5))).shape[1] == 3


def test_names_stay_symbolic_through_a_model():
    model = al.conv(8, 3) >> al.max_pool(2) >> al.flatten() >> al.dense(10)
    y = model.output_spec(al.spec("b 28 28 1"))
    assert str(y.shape) == "(b, 10)"
    y = (al.embedding(7, 8) >> al.lstm(5)).output_spec(al.spec("b t", int))
    assert str(y.shape) == "(b, t, 5)"
    y = al.concatenate(al.identity, al.dense(3)).output_spec(al.spec("b 2*t 4"))
    assert str(y.shape) == "(b, 2*t, 7)"


def test_an_array_gives_the_spec_of_its_output():
    y = al.dense(3).output_spec(np.ones((2, 5), np.float16))
    assert (y.shape, y.dtype) == ((2, 3), jnp.float16)


def test_constraints_let_layers_compare_sizes():
    @al.layer
    def positions(longest):
        def init(key, x):
            return {"table": jnp.zeros((longest, x.shape[-1]))}

        def apply(params, x):
            table = jax.lax.slice_in_dim(params["table"], 0, x.shape[1])
            return x + jnp.broadcast_to(table, x.shape)

        return init, apply

    model = al.dense(8) >> positions(64)
    with pytest.raises(Exception, match=r"inconclusive") as caught:
        model.output_spec(al.spec("b t 4"))
    assert "in positions" in caught.value.__notes__[0]
    spec = al.spec("b t 4", constraints=("t<=64",))
    assert str(model.output_spec(spec).shape) == "(b, t, 8)"
    params, _ = model.init(KEY, spec)
    assert params["positions"]["table"].shape == (64, 8)


def test_constraints_hold_for_all_specs_of_a_call():
    model = (al.identity @ al.identity) >> al.concatenate(axis=1)
    x = (al.spec("b t 4", constraints=("t<=64",)), al.spec("b u 4"))
    assert str(model.output_spec(x).shape) == "(b, u + t, 4)"


def test_symbolic_dims_of_jax_itself_serve():
    b, t = symbolic_shape("b, t")
    y = al.dense(3).output_spec(jax.ShapeDtypeStruct((b, t, 4), jnp.float32))
    assert y.shape == (b, t, 3)


# --- declared inputs


def test_a_declared_input_is_the_identity():
    layer, x = al.input("b 784"), jnp.ones((2, 784))
    assert layer.init(KEY, x) == ({}, {})
    assert layer.predict({}, {}, x) is x
    assert not jax.make_jaxpr(lambda x: layer.predict({}, {}, x))(x).eqns


@pytest.mark.parametrize(
    ("declared", "shape", "fits"),
    [
        ("b 784", (3, 784), True),
        ("b 784", (3, 785), False),
        ("b 784", (784,), False),
        ("b 784", (3, 784, 1), False),
        ("b b", (3, 3), True),
        ("b b", (3, 4), False),
        ("_ _", (3, 4), True),
        ("", (), True),
        ("", (1,), False),
    ],
)
def test_a_declared_size_is_enforced(declared, shape, fits):
    layer, x = al.input(declared), jnp.ones(shape)
    if fits:
        assert layer.predict({}, {}, x).shape == shape
        return
    for call in (layer.output_spec, lambda x: layer.predict({}, {}, x)):
        with pytest.raises(al.ShapeError, match=r"^input: expected \["):
            call(x)


def test_a_declared_size_is_no_unknown_one():
    with pytest.raises(
        al.ShapeError, match=r"expected \[b, 784\], got float32\[b, n\]"
    ):
        al.input("b 784").output_spec(al.spec("b n"))


def test_a_declared_dtype_is_enforced():
    layer = al.input("b t", int)
    assert layer.output_spec(al.spec("b t", int)).dtype == jnp.int32
    with pytest.raises(al.ShapeError, match=r"expected int32\[b, t\], got float32"):
        layer.output_spec(al.spec("b t"))
    assert al.input("b").output_spec(al.spec("b", bool)).dtype == bool


def test_several_declared_inputs_share_their_names():
    layer = al.input({"a": "b 3", "b": "b 4"})
    x = {"a": jnp.ones((2, 3)), "b": jnp.ones((2, 4))}
    assert layer.predict({}, {}, x) == x
    with pytest.raises(al.ShapeError, match="with b = 2, got float32"):
        layer.predict({}, {}, {**x, "b": jnp.ones((5, 4))})
    with pytest.raises(al.ShapeError, match="Pass what was declared"):
        layer.predict({}, {}, {"a": x["a"]})


# --- as people read it


def test_shapes_for_people():
    assert show(jnp.ones((2, 3))) == "float32[2, 3]"
    assert show(as_spec(al.spec("b 8", int))) == "int32[b, 8]"
    assert show((jnp.ones(2), {"a": jnp.ones(())})) == "(float32[2], {a: float32[]})"
    assert show([np.ones(1, np.int8)]) == "[int8[1]]"
    assert show(None) == "None"
    assert show("text") == "str"
    assert show(KEY) == "key<fry>[]"
