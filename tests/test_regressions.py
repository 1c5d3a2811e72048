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
