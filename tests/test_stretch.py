"""A stretch of a model as a layer: from one activation to another."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import axonlike as al

KEY = jax.random.key(0)
X = jnp.asarray(np.random.default_rng(0).standard_normal((2, 8)), jnp.float32)


def close(a, b):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def block():
    mlp = (al.dense(8) >> jax.nn.relu >> al.dense(8)).named("mlp")
    return al.residual(al.layer_norm() >> mlp)


def stack(**how):
    return al.serial(
        inp=al.dense(8), blocks=al.repeat(block(), 6, **how), head=al.dense(2)
    )


def joined(model, a, b, x=X):
    """`b` out of `a`, which is read first, and `b` read in one run."""
    params, state = model.init(KEY, x)
    one, two = al.compile((model[a], model[b]))(params, state, x)
    return al.between(model, a, b).predict(params, state, one), two


WAYS = {"stacked": {}, "unrolled": {"stacked": False}, "remat": {"remat": True}}


@pytest.mark.parametrize("how", WAYS)
def test_what_lies_between_gives_the_one_out_of_the_other(how):
    model = stack(**WAYS[how])
    for a, b in [
        ("inp", "head"),
        ("input", "blocks/2/mlp"),
        ("blocks", "output"),
        ("blocks/2", "blocks/4/mlp"),
        ("blocks/-1", "output"),
        ("blocks/0/layer_norm", "blocks/0/mlp/relu"),
        ("input", "output"),
    ]:
        close(*joined(model, a, b))


def test_nothing_else_is_run():
    model = stack()
    params, state = model.init(KEY, X)
    stretch = al.between(model, "blocks/1", "blocks/4")
    text = str(jax.make_jaxpr(stretch.predict)(params, state, X))
    assert text.count("scan[") == 1
    assert "length=2" in text  # copies 2 and 3, and then 4
    wide = al.between(model, "inp", "blocks/2")
    alone = {"blocks": params["blocks"]}
    close(wide.predict(alone, {}, X), wide.predict(params, state, X))


MODELS = {
    "remat": al.remat(al.serial(a=al.dense(8), b=al.dense(8), c=al.dense(2))),
    "frozen": al.frozen(al.serial(a=al.dense(8), b=al.dense(8), c=al.dense(2))),
    "mixed": al.mixed(
        al.serial(a=al.dense(8), b=al.dense(8), c=al.dense(2)), jnp.float32
    ),
    "tie": al.tie(
        al.serial(a=al.dense(8), b=al.dense(8), c=al.dense(2)), {"b/kernel": "a/kernel"}
    ),
    "wire": al.wire(
        lambda sub, x: sub.c(sub.b(sub.b(sub.a(x)))), a=al.dense(8), b=al.dense(8),
        c=al.dense(2),
    ),
    "named": al.serial(a=al.dense(8), b=al.dense(8), c=al.dense(2), name="net"),
    "nested": al.serial(
        a=al.dense(8), rest=al.serial(b=al.residual(al.dense(8)), c=al.dense(2))
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_every_combinator_lets_a_run_begin_inside(name):
    model = MODELS[name]
    deep = "rest/" if name == "nested" else ""
    close(*joined(model, "a", f"{deep}c"))
    close(*joined(model, f"{deep}b", f"{deep}c"))
    if name == "wire":
        close(*joined(model, "b#1", "c"))


def test_a_logit_lens_is_one_vmap():
    model = stack()
    params, state = model.init(KEY, X)
    stream = model["blocks/*"].evaluate(params, state, X)
    unembed = al.between(model, "blocks", "output").predict
    lens = jax.vmap(unembed, (None, None, 0))(params, state, stream)
    assert lens.shape == (6, 2, 2)
    close(lens[-1], model.predict(params, state, X))
    close(stream[-1], model["blocks"].evaluate(params, state, X))


def test_it_is_a_layer():
    model = stack()
    stretch = al.between(model, "blocks/1", "head")
    params, state = stretch.init(KEY, al.spec("b 8"))
    assert list(params) == ["blocks", "head"]
    whole, _ = model.init(KEY, X)
    for path, array in al.paths(params):
        np.testing.assert_array_equal(array, al.select(whole, path)[path])
    assert stretch.output_spec(al.spec("b 8")).shape[1:] == (2,)
    assert stretch == al.between(stack(), "blocks/1", "head")
    assert eval(repr(stretch), {"al": al, "jax": jax}) == stretch
    pipe = stretch >> al.dense(3)
    params, state = pipe.init(KEY, (None, 8))
    assert list(params["between"]) == ["blocks", "head"]
    assert pipe.predict(params, state, X).shape == (2, 3)
    late = al.between(stack(stacked=False), "blocks/4/mlp/relu", "blocks/5/mlp")
    with pytest.raises(ValueError, match="what comes before 'blocks/4/mlp/relu'"):
        late.init(KEY, (None, 8))


def test_state_and_dropout_are_those_of_the_model():
    model = al.serial(
        a=al.dense(8), bn=al.batch_norm(momentum=0.5), drop=al.dropout(0.5),
        b=al.dense(2), last=al.batch_norm(),
    )  # fmt: skip
    params, state = model.init(KEY, X)
    how = {"key": KEY, "train": True}
    read = al.compile((model["a"], model["b"]))(params, state, X, **how)
    y, after = al.between(model, "a", "b").apply(params, state, read[0], **how)
    close(y, read[1])
    _, whole = model.apply(params, state, X, **how)
    close(after["bn"]["mean"], whole["bn"]["mean"])
    np.testing.assert_array_equal(after["last"]["mean"], state["last"]["mean"])
    deep = al.serial(blocks=al.repeat(al.dense(8) >> al.batch_norm(momentum=0.5), 4))
    params, state = deep.init(KEY, X)
    x = deep["blocks/0"].evaluate(params, state, X)
    _, after = al.between(deep, "blocks/0", "blocks/2").apply(
        params, state, x, train=True
    )
    moved = (after["blocks"]["*"]["batch_norm"]["var"] != 1).any(1)
    assert list(map(bool, moved)) == [False, True, True, False]


def test_gradients_go_through():
    model = MODELS["remat"]
    params, state = model.init(KEY, X)
    stretch = al.between(model, "a", "c")
    a = model["a"].evaluate(params, state, X)
    function = al.value_and_grads(model["c"].sum(), wrt=model["a"])
    wanted = function(params, state, X)[1]
    close(jax.grad(lambda a: stretch.predict(params, state, a).sum())(a), wanted)


def halves(x):
    return x[:, :4]


@pytest.mark.parametrize(
    ("model", "a", "b", "text"),
    [
        (stack(), "inp", "inp", "nothing lies between 'inp' and itself"),
        (stack(), "blocks/*", "head", "'blocks/\\*' means several activations"),
        (stack(), "{inp,head}", "output", "means several activations"),
        (stack(), "head", "inp", "'inp' does not come after 'head'"),
        (stack(), "blocks/3", "blocks/1", "'blocks/1' does not come after 'blocks/3'"),
        (stack(), "output", "inp", "nothing comes after 'output', which the whole model"),
        (stack(), "inp", "input", "'input' does not come after 'inp'"),
        (stack(), "blocks/3/mlp", "head", "what comes before 'blocks/3/mlp' is needed"),
        (al.serial(v=al.vmap(al.dense(8).named("d"))), "v/d", "v", "inside of a vmap"),
        (al.ensemble(al.dense(8).named("d"), 2), "1/d", "output", "inside of a ensem"),
        (al.serial(a=al.attention(2)), "a/weights", "a", "inside of a layer that emits"),
        (
            al.serial(t=al.repeat(al.dense(8).named("d"), 2, tied=True)),
            "t/d", "t", "inside of a repeat",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_is_told(model, a, b, text):
    params, state = stack().init(KEY, X)

    def run():
        return al.between(model, a, b).predict(params, state, X)

    with pytest.raises(ValueError, match=text):
        run()


def test_an_unknown_path_is_told_at_once():
    with pytest.raises(al.PathError, match="Nearest: 'blocks/"):
        al.between(stack(), "blocks/2/mpl", "head")
    with pytest.raises(TypeError, match="expected a path"):
        al.between(stack(), 3, "head")
