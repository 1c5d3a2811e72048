"""Embedding: rows of the table, gradients, ids out of range, errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from by_torch import COUNT, LEADS, agrees, drawn_options
from parity import close, normal

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


@pytest.mark.parametrize("seed", range(COUNT))
def test_embedding_agrees_with_torch(seed):
    choice = drawn_options(seed, lead=LEADS, num=(1, 3, 9), features=(1, 4))
    lead, num = choice["lead"], choice["num"]
    ids = np.random.default_rng(seed).integers(0, num, lead).astype(np.int32)

    def define(p, ids):
        import torch

        return torch.nn.functional.embedding(ids, p["embedding"])

    layer = al.embedding(num, choice["features"])
    agrees(f"embed/embedding {seed}", layer, [ids], define)


def tied(sub, ids):
    return sub.emb(jnp.tanh(sub.emb(ids)), attend=True)


@pytest.mark.parametrize("seed", range(COUNT))
def test_a_tied_head_agrees_with_torch(seed):
    choice = drawn_options(seed, lead=LEADS, num=(1, 3, 9), features=(1, 4))
    lead, num = choice["lead"], choice["num"]
    ids = np.random.default_rng(seed).integers(0, num, lead).astype(np.int32)

    def define(p, ids):
        import torch

        table = p["emb"]["embedding"]
        return torch.tanh(torch.nn.functional.embedding(ids, table)) @ table.T

    model = al.wire(tied, emb=al.embedding(num, choice["features"]))
    agrees(f"embed/tied {seed}", model, [ids], define)


def test_attending_is_the_product_with_every_row():
    h, table = normal(0, 2, 4, 3), normal(1, 5, 3)
    model = al.wire(lambda sub, h: sub.emb(h, attend=True), emb=LAYER)
    params, _ = model.init(KEY, h)
    assert params["emb"]["embedding"].shape == (5, 3)
    close(model.predict({"emb": {"embedding": table}}, {}, h), h @ table.T)


def test_gradients_of_both_uses_of_a_tied_table_add_up():
    ids, table, weight = jnp.array([[1, 4, 1]]), normal(0, 5, 3), normal(1, 1, 3, 5)
    model = al.wire(tied, emb=LAYER)

    def both(first, second):
        return jnp.sum((jnp.tanh(first[ids]) @ second.T) * weight)

    def loss(table):
        return jnp.sum(model.predict({"emb": {"embedding": table}}, {}, ids) * weight)

    first, second = jax.grad(both, (0, 1))(table, table)
    assert np.any(first)
    assert np.any(second)
    close(jax.grad(loss)(table), first + second)


def test_attending_is_what_tie_does_in_a_pipe():
    ids, table = jnp.array([[1, 4, 1]]), normal(0, 5, 3)
    pipe = al.tie(
        al.serial(emb=LAYER, act=jnp.tanh, head=al.dense(5, use_bias=False)),
        {"head/kernel": "emb/embedding"},
        transpose=True,
    )
    wired = al.wire(tied, emb=LAYER)
    params = {"emb": {"embedding": table}}
    assert jax.tree.map(jnp.shape, pipe.init(KEY, ids)[0]) == {
        "emb": {"embedding": (5, 3)}
    }
    close(pipe.predict(params, {}, ids), wired.predict(params, {}, ids))


def test_attending_follows_the_input_and_takes_another_dot_general():
    calls = []

    def counted(*args, **options):
        calls.append(options["precision"])
        return jax.lax.dot_general(*args, **options)

    precision = jax.lax.Precision.HIGHEST
    layer = al.embedding(5, 3, precision=precision, dot_general=counted)
    model = al.wire(lambda sub, h: sub.emb(h, attend=True), emb=layer)
    h = jnp.ones((2, 3), jnp.bfloat16)
    params, _ = model.init(KEY, h)
    assert params["emb"]["embedding"].dtype == jnp.float32
    assert model.predict(params, {}, h).dtype == jnp.bfloat16
    assert precision in calls


@pytest.mark.parametrize(
    ("h", "message"),
    [
        (
            jnp.ones((2, 4)),
            "embedding: expected (..., 3), got float32[2, 4]. The params were made for "
            "that width.",
        ),
        (
            jnp.ones((2, 3), jnp.int32),
            "embedding: expected a floating-point (..., 3), got int32[2, 3]. Convert it "
            "with x.astype(jnp.float32), or embed ids with embedding().",
        ),
    ],
)
def test_what_cannot_attend_word_for_word(h, message):
    model = al.wire(lambda sub, h: sub.emb(h, attend=True), emb=LAYER)
    with pytest.raises(al.ShapeError) as error:
        model.init(KEY, h)
    assert str(error.value) == message
