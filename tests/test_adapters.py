"""Adapters: LoRA around layers, its gradients, and merging it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import axonlike as al

KEY, OTHER = jax.random.key(0), jax.random.key(1)
TOKENS = jnp.arange(6).reshape(2, 3)


def gpt():
    block = al.residual(al.layer_norm() >> al.attention(2, causal=True))
    return al.serial(emb=al.embedding(11, 8), blocks=block**3, head=al.dense(11))


def filled(tree):
    """Adapters that change something: their second half starts at zero."""
    leaves, structure = jax.tree.flatten(tree)
    numbers = np.random.default_rng(0)
    return structure.unflatten(
        [jnp.asarray(0.3 * numbers.standard_normal(a.shape), a.dtype) for a in leaves]
    )


def test_lora_on_every_query_and_value_of_a_stack_is_one_call():
    model = gpt()
    params, state = model.init(KEY, TOKENS)
    tuned = al.lora(model, "blocks/*/attention/{query,value}", rank=2, alpha=3)
    more, kept, report = al.migrate(model, tuned, params, state, key=OTHER)
    assert report.dropped == []
    assert sorted(report.initialized) == [
        f"blocks/*/attention/{part}/lora/{half}/kernel"
        for part in ("query", "value")
        for half in ("down", "up")
    ]
    assert more["blocks"]["*"]["attention"]["query"]["lora"]["down"]["kernel"].shape == (
        3, 8, 2
    )  # fmt: skip
    y = tuned.predict(more, kept, TOKENS)
    assert jnp.array_equal(y, model.predict(params, state, TOKENS))

    mask = al.trainable(tuned, more)
    assert al.count(al.partition(more, "**/lora")[0]) == 3 * 2 * 2 * 16
    grads = jax.grad(lambda p: (tuned.predict(p, kept, TOKENS) ** 2).sum())(more)
    for path, free in al.paths(jax.tree.map(np.asarray, mask)):
        assert bool(free) == ("/lora/" in path)
    for path, grad in al.paths(grads):
        if "/lora/" not in path:
            assert not jnp.any(grad)
    up = grads["blocks"]["*"]["attention"]["query"]["lora"]["up"]["kernel"]
    assert jnp.any(up)
    assert eval(repr(tuned), {"al": al, "jax": jax}) == tuned


@pytest.mark.parametrize(
    ("layer", "x"),
    [
        (al.dense(6), jnp.ones((2, 5))),
        (al.embedding(7, 6), jnp.arange(4)),
        (al.conv(6, 3, strides=2), jnp.ones((2, 8, 8, 5))),
        (al.attention(2), jnp.arange(24.0).reshape(1, 4, 6) / 24),
        (al.repeat(al.dense(5), 3), jnp.ones((2, 5))),
        (al.repeat(al.dense(5), 2, stacked=False), jnp.ones((2, 5))),
    ],
    ids=lambda v: v.kind if isinstance(v, al.Layer) else "",
)
def test_merged_is_unmerged(layer, x):
    known = {each.kind for _, each in [("", layer), *al.layers(layer)]}
    where = al.kind(*(known & {"dense", "embedding", "conv", "projection"}))
    tuned = al.lora(layer, where, rank=2, alpha=5)
    params, state = tuned.init(KEY, x)
    params = filled(params)
    merged, plain = al.merge_lora(tuned, params)
    assert merged == layer
    y = tuned.predict(params, state, x)
    np.testing.assert_allclose(merged.predict(plain, state, x), y, rtol=1e-6, atol=2e-6)
    assert not jnp.allclose(layer.predict(layer.init(KEY, x)[0], state, x), y)


def test_other_params_can_stay_trainable():
    model = al.serial(body=al.dense(8), head=al.dense(2))
    tuned = al.lora(model, "body", rank=2, but="head")
    params, _ = tuned.init(KEY, (None, 4))
    mask = al.trainable(tuned, params)
    assert mask["head"] == {"bias": True, "kernel": True}
    assert mask["body"]["kernel"] is False


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda: al.lora(gpt(), "hed", rank=2), al.PathError, "Nearest: 'head'"),
        (
            lambda: al.lora(gpt(), "blocks/*/layer_norm", rank=2),
            ValueError,
            "no low-rank",
        ),
        (
            lambda: al.lora(gpt(), "head", rank=0),
            ValueError,
            "rank must be a positive int",
        ),
        (lambda: al.merge_lora(gpt(), {}), ValueError, "there is no adapter"),
        (
            lambda: al.adapter(al.conv(4, 3, feature_group_count=2), 2),
            ValueError,
            "conv in one group",
        ),
    ],
)
def test_what_cannot_be_adapted(make, error, text):
    with pytest.raises(error, match=text):
        make()


def test_a_selector_of_frozen_that_means_nothing():
    layer = al.frozen(al.dense(2), but="**/lora")
    params, state = layer.init(KEY, (None, 3))
    with pytest.raises(al.PathError, match="frozen: but"):
        layer.predict(params, state, jnp.ones((1, 3)))
    stack = al.frozen(al.dense(3) ** 2, but="1")
    params, state = stack.init(KEY, (None, 3))
    with pytest.raises(ValueError, match="an array is not divided"):
        stack.predict(params, state, jnp.ones((1, 3)))


# --- what review found


def test_lora_of_a_named_model_inside_another_and_twice():
    named = al.serial(a=al.dense(4), b=al.dense(4), name="net")
    params, state = named.init(KEY, (None, 4))
    tuned = al.lora(named, "a", rank=2)
    _, _, report = al.migrate(named, tuned, params, state, key=OTHER)
    assert len(report.kept) == 4
    twice = al.lora(tuned, "b", rank=2, but=al.kind("dense"))
    more, kept = twice.init(KEY, (None, 4))
    around = al.precision(twice, output=jnp.float32)
    plain, merged = al.merge_lora(around, more)
    x = jnp.ones((1, 4))
    y = around.predict(more, kept, x)
    np.testing.assert_allclose(plain.predict(merged, kept, x), y, rtol=1e-5)
    assert not any(layer.kind == "frozen" for _, layer in al.layers(plain, "**"))


def test_branches_have_the_dtype_of_their_layer():
    layer = al.embedding(7, 4, param_dtype=jnp.bfloat16)
    params, state = al.adapter(layer, 2).init(KEY, jnp.arange(3))
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(jnp.bfloat16)}
    assert (
        al.adapter(layer, 2).predict(params, state, jnp.arange(3)).dtype == jnp.bfloat16
    )


def test_what_cannot_be_merged_is_refused():
    tied_ = al.tie(
        al.serial(a=al.dense(4), b=al.dense(4)), {"b/kernel": "a/kernel"}
    )  # fmt: skip
    with pytest.raises(ValueError, match="'a' is tied"):
        al.lora(tied_, "a", rank=2)
    tuned = al.lora(al.serial(a=al.dense(4)), "a", rank=2)
    params, _ = al.serial(a=al.dense(4)).init(KEY, (None, 4))
    with pytest.raises(al.PathError, match="Migrate first"):
        al.merge_lora(tuned, params)
    with pytest.raises(ValueError, match="without a mask"):
        al.adapter(al.conv(4, 3, mask=np.ones((3, 3, 2, 4))), 2)
