"""Embedding: rows of the table, gradients, ids out of range, errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from parity import close, normal, numpy

import axonlike as al

KEY = jax.random.key(0)
LAYER = al.embedding(5, 3)


@pytest.mark.parametrize("ids", [2, [0, 4], [[1, 1, 2], [4, 0, 3]], np.zeros((0, 2))])
@pytest.mark.parametrize("dtype", [np.int32, np.uint8])
def test_an_id_gives_its_row(ids, dtype):
    ids = np.asarray(ids, dtype)
    params, state = LAYER.init(KEY, ids)
    assert (set(params), state) == ({"embedding"}, {})
    y = LAYER.predict(params, state, ids)
    np.testing.assert_array_equal(y, np.asarray(params["embedding"])[ids.astype(int)])


def test_gradients_add_up_over_equal_ids():
    ids, weight = jnp.array([1, 1, 4]), normal(0, 3, 3)
    params, _ = LAYER.init(KEY, ids)

    def loss(params):
        return jnp.sum(LAYER.predict(params, {}, ids) * weight)

    grads = jax.grad(loss)(params)["embedding"]
    desired = np.zeros((5, 3))
    np.add.at(desired, [1, 1, 4], weight)
    close(grads, desired)


@pytest.mark.parametrize("bad", [-1, 5, 1000])
def test_ids_out_of_range_give_nan_and_no_gradient(bad):
    ids = jnp.array([bad, 2])
    params, _ = LAYER.init(KEY, ids)
    y = jax.jit(LAYER.predict)(params, {}, ids)
    assert bool(jnp.all(jnp.isnan(y[0])))
    np.testing.assert_array_equal(y[1], params["embedding"][2])
    grads = jax.grad(lambda p: LAYER.predict(p, {}, ids).sum())(params)["embedding"]
    np.testing.assert_array_equal(grads, np.eye(5)[2][:, None] * np.ones(3))


def test_initial_variance_is_1_over_features():
    params, _ = al.embedding(3000, 16).init(KEY, al.spec("b", int))
    assert abs(float(jnp.var(params["embedding"])) * 16 - 1) < 0.02


def test_the_output_has_the_dtype_of_the_table():
    layer = al.embedding(5, 3, param_dtype=jnp.bfloat16)
    assert layer.output_spec(al.spec("b t", int)).dtype == jnp.bfloat16
    assert LAYER.output_spec(al.spec("b t", int)).dtype == jnp.float32
    assert str(LAYER.output_spec(al.spec("b t", int)).shape) == "(b, t, 3)"


@pytest.mark.parametrize("name", ["num_embeddings", "features"])
def test_sizes_must_be_positive_ints(name):
    sizes = {"num_embeddings": 5, "features": 3, name: -1}
    with pytest.raises(
        ValueError, match=f"embedding: {name} must be a positive int"
    ) as e:
        al.embedding(**sizes)
    assert str(e.value) == f"embedding: {name} must be a positive int, got -1."


def test_floats_are_refused_word_for_word():
    with pytest.raises(al.ShapeError) as error:
        LAYER.init(KEY, (None, 3))
    assert str(error.value) == (
        "embedding: expected an array of integer ids, got float32[_0, 3]. Convert it "
        "with "
        "x.astype(jnp.int32), or use dense() for vectors."
    )


def test_embedding_agrees_with_torch():
    torch = pytest.importorskip("torch")
    ids, weight = np.array([[1, 1, 2], [4, 0, 3]]), normal(0, 2, 3, 3)
    params, _ = LAYER.init(KEY, ids)
    table = torch.tensor(np.array(params["embedding"]), requires_grad=True)
    ty = torch.nn.functional.embedding(torch.tensor(ids), table)
    (ty * torch.tensor(weight)).sum().backward()

    def loss(params):
        y = LAYER.predict(params, {}, ids)
        return jnp.sum(y * weight), y

    (_, y), grads = jax.value_and_grad(loss, has_aux=True)(params)
    close(y, numpy(ty))
    close(grads["embedding"], table.grad)
