"""Deferred activations: reading, arithmetic, edits, gradients, in every combinator."""

import gc
import operator
import weakref
from collections import OrderedDict

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads

import axonlike as al
from axonlike.sites import Copies

KEY = jax.random.key(0)
X = jnp.asarray(np.random.default_rng(0).standard_normal((2, 8)), jnp.float32)


def block():
    mlp = (al.dense(8) >> jax.nn.relu >> al.dense(8)).named("mlp")
    return al.residual(al.layer_norm() >> mlp)


def stack(n=6, **how):
    return al.serial(
        inp=al.dense(8), blocks=al.repeat(block(), n, **how), head=al.dense(2)
    )


def made(model, x=X):
    return model.init(KEY, x)


def close(a, b, **how):
    np.testing.assert_allclose(a, b, **({"rtol": 1e-5, "atol": 1e-6} | how))


def dense(params, x):
    y = x @ params["kernel"]
    return y + jnp.broadcast_to(params["bias"], y.shape)


def positive(x):
    return x[0, 0] > 0


def squares(tree):
    return sum(jnp.sum(jnp.square(a)) for a in jax.tree.leaves(tree))


def lengths(jaxpr):
    """The lengths of all scans in a jaxpr, in order."""
    found = []
    for equation in jaxpr.eqns:
        if equation.primitive.name == "scan":
            found.append(equation.params["length"])
    return found


# --- reading


def test_an_activation_is_read_by_name():
    model = al.serial(c1=al.dense(4), act=al.lift(jax.nn.relu), c2=al.dense(3))
    params, state = made(model)
    c1 = dense(params["c1"], X)
    c2 = dense(params["c2"], jax.nn.relu(c1))
    close(al.compile(model["c1"])(params, state, X), c1)
    close(model["c2"].evaluate(params, state, X), c2)
    close(model["c2", ..., 1].evaluate(params, state, X), c2[..., 1])
    both = al.compile({"a": model["c1"], "b": [model["output"], model["input"]]})
    found = both(params, state, X)
    close(found["a"], c1)
    close(found["b"][0], c2)
    close(found["b"][1], X)


def test_only_what_is_needed_runs():
    model = al.serial(
        c1=al.conv(4, 3), c2=al.conv(4, 3), flat=al.flatten(), head=al.dense(2)
    )
    params, state = model.init(KEY, (1, 8, 8, 1))
    read = al.compile(model["c1"])
    larger = jnp.ones((1, 16, 16, 1))  # which the head would refuse
    assert read(params, state, larger).shape == (1, 16, 16, 4)
    with pytest.raises(TypeError, match="dot_general"):
        model.predict(params, state, larger)
    text = str(jax.make_jaxpr(read)(params, state, larger))
    assert text.count("conv_general_dilated[") == 1
    assert "dot_general" not in text


@pytest.mark.parametrize("stacked", [True, False])
@pytest.mark.parametrize("i", [*range(6), -1, -6])
def test_one_copy_of_a_repeat(stacked, i):
    model = stack(stacked=stacked)
    params, state = made(model)
    apart = params if not stacked else al.unstack(params, "blocks")
    h = al.submodel(stack(stacked=False), apart, state, "inp")[0].predict(
        params["inp"], {}, X
    )
    for k in range(i % 6 + 1):
        own = apart["blocks"][str(k)]
        normed = al.layer_norm().predict(own["layer_norm"], {}, h)
        out = (al.dense(8) >> jax.nn.relu >> al.dense(8)).predict(
            own["mlp"], {}, normed
        )
        h = h + out
    read = al.compile(model[f"blocks/{i}/mlp"])
    close(read(params, state, X), out)
    if stacked:
        jaxpr = jax.make_jaxpr(read)(params, state, X).jaxpr
        assert lengths(jaxpr) == [i % 6] * (i % 6 > 0)


@pytest.mark.parametrize("stacked", [True, False])
def test_all_copies_are_an_axis_in_front(stacked):
    model = stack(stacked=stacked)
    params, state = made(model)
    many = [model[f"blocks/{i}/mlp"] for i in range(6)]
    paths = ["blocks/*/mlp", "blocks/1:5:2/mlp", "blocks/-2:/mlp"]
    late = al.compile(model["blocks", al.index("k"), "mlp"])
    alone = [al.compile(t) for t in [*map(model.__getitem__, paths), *many]]

    @jax.jit
    def run(params, state, x, k):
        found = [f(params, state, x) for f in alone]
        return found, late(params, state, x, k=k), al.compile(many)(params, state, x)

    (every, odd, last, *singles), one, together = run(params, state, X, 3)
    close(every, jnp.stack(singles))
    close(odd, every[1:5:2])
    close(last, every[-2:])
    close(one, every[3])
    close(jnp.stack(together), every)


def test_copies_within_copies():
    inner = al.repeat(al.residual(al.dense(8).named("d")), 3)
    model = al.serial(outer=al.repeat(al.serial(inner=inner, last=al.dense(8)), 4))
    params, state = made(model)
    paths = [f"outer/{i}/inner/{j}/d" for i in "*2" for j in "*1"]
    two = [model["outer/2/inner/1/d"], model["outer/0/inner/2/d"]]
    reads = [al.compile(t) for t in [*map(model.__getitem__, paths), two]]
    found = jax.jit(lambda *args: [f(*args) for f in reads])(params, state, X)
    every, second, third, one, (a, b) = found
    assert every.shape == (4, 3, 2, 8)
    close(second, every[:, 1])
    close(third, every[2])
    close(one, every[2, 1])
    close(a, every[2, 1])
    close(b, every[0, 2])


def test_a_glob_over_other_names_is_a_dict():
    model = al.serial(a=al.dense(3), b=al.dense(4), c=al.dense(5))
    params, state = made(model)
    found = model["{a,c}"].evaluate(params, state, X)
    assert {path: value.shape for path, value in found.items()} == {
        "a": (2, 3), "c": (2, 5)
    }  # fmt: skip


def test_memory_of_one_block_of_24():
    wide = al.residual(al.layer_norm() >> al.dense(256).named("d"))
    model = al.serial(blocks=al.repeat(wide, 24), head=al.dense(8))
    x = jnp.ones((1024, 256))
    params, state = model.init(KEY, x)
    read = al.compile(model["blocks/12/d"])

    def temporary(function):
        compiled = jax.jit(function).lower(params, state, x).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporary(read) <= 1.1 * temporary(model.predict)


CASES = {
    "parallel": (al.parallel(a=al.dense(3), b=al.dense(4)), {"a": X, "b": X}, "b"),
    "branch": (al.branch(a=al.dense(3), b=al.dense(4)), X, "a"),
    "add": (al.add(al.dense(3), al.dense(3)), X, "dense_1"),
    "residual": (al.serial(r=al.residual(al.dense(8).named("f"))), X, "r/f"),
    "wire": (al.wire(lambda sub, x: sub.f(sub.f(x)), f=al.dense(8)), X, "f#1"),
    "shared": (al.shared(al.dense(3).named("f")), (X, X), "f#1"),
    "remat": (al.remat(al.serial(a=al.dense(3), b=al.dense(2))), X, "a"),
    "mixed": (al.mixed(al.serial(a=al.dense(3), b=al.dense(2)), jnp.bfloat16), X, "a"),
    "frozen": (al.frozen(al.serial(a=al.dense(3), b=al.dense(2))), X, "a"),
    "ensemble": (al.ensemble(al.serial(a=al.dense(3), b=al.dense(2)), 5), X, "*/a"),
    "vmap": (al.vmap(al.serial(a=al.dense(3), b=al.dense(2))), X[None], "a"),
    "scan": (al.serial(r=al.lstm(4), d=al.dense(2)), X[None], "r"),
    "cond": (
        al.serial(a=al.dense(8), c=al.cond(positive, al.dense(2), al.dense(2))),
        X,
        "c",
    ),
    "tie": (
        al.tie(al.serial(a=al.dense(8), b=al.dense(8)), {"b/kernel": "a/kernel"}), X, "a"
    ),
    "emitted": (al.serial(a=al.attention(2), b=al.dense(2)), X[None], "a/weights"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_every_combinator_is_read_edited_and_differentiated(name):
    model, x, path = CASES[name]
    params, state = made(model, x)
    t, out = model[path], model["output"]
    loss = al.defer(squares)(out)
    again = al.compile(out, edits=[t.map(lambda v: v)])
    without = al.compile(out, edits=[t.scale(0.0)])
    moved = al.compile(loss, edits=[t.add(al.arg("by"))])
    slope = al.value_and_grads(loss, wrt=t)

    @jax.jit
    def run(params, state, x):
        value = al.compile(t)(params, state, x)
        outs = model.predict(params, state, x), again(params, state, x)
        zeros = jnp.zeros_like(value)
        grads = jax.grad(lambda by: moved(params, state, x, by=by))(zeros)
        both = grads, slope(params, state, x)[1]
        return value, outs, without(params, state, x), both

    value, (plain, same), other, grads = run(params, state, x)
    assert value.shape == model.sites(x)[path].shape
    jax.tree.map(close, same, plain)
    changed = jax.tree.map(lambda a, b: bool(jnp.any(a != b)), other, plain)
    assert any(jax.tree.leaves(changed))
    close(*grads)
    assert jnp.any(grads[0] != 0)


def test_inside_a_choice_nothing_is_read_but_its_output():
    choice = al.cond(
        lambda x: x[0, 0] > 0, al.dense(2, name="f"), al.dense(2, name="g")
    )
    model = al.serial(c=choice, d=al.dense(2))
    params, state = made(model)
    with pytest.raises(ValueError, match="cond: cannot read 'c/f', which may not run"):
        model["c/f"].evaluate(params, state, X)


def test_state_and_dropout_are_those_of_the_whole_model():
    model = al.serial(
        a=al.dense(8), bn=al.batch_norm(), drop=al.dropout(0.5), b=al.dense(2)
    )
    params, state = made(model)
    read = al.compile([model["drop"], model["output"]])
    drop, out = read(params, state, X, key=KEY, train=True)
    whole, _ = model.apply(params, state, X, key=KEY, train=True)
    close(out, whole)
    alone = al.compile(model["drop"])(params, state, X, key=KEY, train=True)
    assert jnp.array_equal(alone, drop)


# --- expressions


SIGNS = [operator.add, operator.sub, operator.mul, operator.truediv]
PARTS = [
    lambda v: v,
    lambda v: v[:1],
    lambda v: v[..., ::-1],
    lambda v: v.transpose()[0, 1],
]
ONE = [
    operator.neg, abs, lambda v: abs(v) ** 1.5, lambda v: 1.25**v,
    lambda v: v.mean() if hasattr(v, "mean") else v,
    lambda v: v.max() if hasattr(v, "max") else v,
]  # fmt: skip


def expressions():
    leaves = st.one_of(
        st.tuples(st.sampled_from(PARTS), st.sampled_from("abc")),
        st.floats(0.5, 2).map(lambda v: round(v, 3)), st.just(np.float32(1.5)),
    )  # fmt: skip

    def grow(inner):
        return st.one_of(
            st.tuples(st.sampled_from(SIGNS), inner, inner),
            st.tuples(st.sampled_from(ONE), inner),
        )

    return st.recursive(leaves, grow, max_leaves=6)


def built(tree, leaf):
    """An expression or its value: the same Python either way."""
    if isinstance(tree, str):
        return leaf[tree]
    if not isinstance(tree, tuple):
        return tree
    head, *rest = tree
    return head(*(built(part, leaf) for part in rest))


@settings(max_examples=30)
@given(expressions())
def test_arithmetic_is_that_of_numpy(tree):
    model = al.serial(a=al.dense(3), b=al.dense(3))
    params, state = made(model)
    a, b = map(np.asarray, al.compile((model["a"], model["b"]))(params, state, X))
    c = np.asarray([[1.0, -2.0, 0.5], [0.25, 3.0, -1.0]], np.float32)
    with np.errstate(all="ignore"):
        expected = built(tree, {"a": a, "b": b, "c": c})
        wide = [array.astype(np.float64) for array in (a, b, c)]
        exact = built(tree, dict(zip("abc", wide, strict=True)))
    assume(np.allclose(expected, exact, rtol=1e-5))  # or rounding decides
    with jax.numpy_rank_promotion("allow"):
        deferred = built(tree, {"a": model["a"], "b": model["b"], "c": c})
        found = al.compile(deferred, model=model)(params, state, X)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_an_expression_is_a_value():
    model = stack()
    a, b = model["inp"], model["head"]
    one = 0.5 * a[:, 0].mean() - b.l2() ** 2
    two = 0.5 * model["inp"][:, 0].mean() - model["head"].l2() ** 2
    assert one == two
    assert hash(one) == hash(two)
    assert one != 0.25 * a[:, 0].mean() - b.l2() ** 2
    assert (a == stack(5)["inp"]) is False
    assert repr(one) == "((0.5 * mean(inp[:, 0])) - (l2(head) ** 2))"
    assert repr(a < b) == "(inp < head)"
    assert repr(a.eq(b)) == "(inp == head)"
    with pytest.raises(TypeError, match="no truth value"):
        bool(a < b)
    with pytest.raises(TypeError, match="not iterable"):
        list(a)


def test_equal_compilations_are_traced_once():
    model = stack()
    params, state = made(model)
    traced = []

    def see(value):
        traced.append(1)
        return value

    def make():
        return jax.jit(
            al.compile(model["inp"].map(see) + 1, edits=[model["inp"].add(1.0)])
        )

    make()(params, state, X)
    gc.collect()
    make()(params, state, X)
    assert len(traced) == 1
    assert al.compile(model["inp"]) != al.compile(model["head"])


def test_a_site_without_a_model_is_bound_when_compiled():
    objective = al.site("inp", ..., 2).mean()
    for n in (2, 3, 4):
        model = stack(n)
        params, state = made(model)
        found = al.compile(objective, model=model)(params, state, X)
        close(found, model["inp", ..., 2].mean().evaluate(params, state, X))
    with pytest.raises(ValueError, match="got no model"):
        al.compile(objective)
    with pytest.raises(ValueError, match="got 2 models"):
        al.compile(stack(2)["inp"] + stack(3)["inp"])


def test_a_model_that_is_gone_leaves_nothing():
    model = al.serial(only=al.dense(7), here=al.lift(lambda x: x))
    compiled = weakref.ref(al.compile(model["only"]))
    gc.collect()
    assert compiled() is al.compile(model["only"])
    del model
    gc.collect()
    assert compiled() is None


def test_functions_are_deferred():
    model = stack()
    params, state = made(model)
    both = al.defer(jnp.maximum)(model["inp"], 0.0).sum()
    close(both.evaluate(params, state, X), jnp.maximum(
        model["inp"].evaluate(params, state, X), 0).sum())  # fmt: skip
    scaled = model["inp"] * al.arg("weight")
    close(
        scaled.evaluate(params, state, X, weight=2.0),
        2 * model["inp"].evaluate(params, state, X),
    )
    with pytest.raises(
        TypeError, match=r"expected the arguments \['weight'\], got \[\]"
    ):
        scaled.evaluate(params, state, X)


def test_under_jit_grad_and_vmap():
    model = stack(3)
    params, state = made(model)
    function = al.compile(model["blocks/1/mlp"].l2())

    def of(x):
        return function(params, state, x[None])

    slope = jax.jit(jax.grad(of))
    rows = jax.jit(jax.vmap(jax.grad(of)))(X)
    close(rows, jnp.stack([slope(x) for x in X]), rtol=1e-4)
    check_grads(jax.jit(of), (X[0],), 2, atol=0.1, rtol=0.1)


# --- edits


def test_what_each_edit_does():
    model = al.serial(a=al.dense(4), b=al.dense(3))
    params, state = made(model)
    a = model["a"].evaluate(params, state, X)
    v = jnp.asarray([1.0, 2.0, 0.0, -1.0])
    q, _ = jnp.linalg.qr(jnp.arange(16.0).reshape(4, 4) + jnp.eye(4))
    for edit, expected in [
        (model["a"].set(1.0), jnp.ones((2, 4))),
        (model["a"].set(v), jnp.broadcast_to(v, (2, 4))),
        (model["a"].add(2.0), a + 2),
        (model["a"].scale(-1.0), -a),
        (model["a"].map(jnp.tanh), jnp.tanh(a)),
        (model["a"][:, 3].set(0.0), a.at[:, 3].set(0)),
        (model["a", ..., 1].scale(3.0), a.at[..., 1].multiply(3)),
        (model["a"].rotate(q), a @ q),
        (model["a"].project_out(v), a - jnp.outer(a @ v / (v @ v), v)),
        (model["a"].set(model["input"][:, :4] * 2), 2 * X[:, :4]),
    ]:
        found = al.compile(model["output"], edits=[edit])(params, state, X)
        close(found, dense(params["b"], expected), rtol=1e-4, atol=1e-5)
    twice = [model["a"].add(1.0), model["a"].scale(2.0)]
    found = al.compile(model["a"], edits=twice)(params, state, X)
    close(found, 2 * (a + 1))


@pytest.mark.parametrize("stacked", [True, False])
def test_edits_of_copies(stacked):
    model = stack(stacked=stacked)
    params, state = made(model)
    out = model["output"]

    def without(*paths):
        return al.compile(out, edits=[model[path].scale(0.0) for path in paths])

    ones = [f"blocks/{i}/mlp" for i in range(6)]
    edits = [model["blocks/2/mlp"].add(1.0), model["blocks/*/mlp"].scale(0.0)]
    functions = {
        "all": without("blocks/*/mlp"), "each": without(*ones),
        "some": without("blocks/1:3/mlp"), "two": without(*ones[1:3]),
        "both": without("blocks/*/mlp/relu", ones[2]),
        "mixed": al.compile(out, edits=edits), "inp": al.compile(model["inp"]),
        **{str(i): without(ones[i]) for i in (0, 3, 5)},
    }  # fmt: skip
    late = without(("blocks", al.index("k"), "mlp"))

    @jax.jit
    def run(params, state, x):
        found = {name: f(params, state, x) for name, f in functions.items()}
        rows = jax.vmap(lambda k: late(params, state, x, k=k))(jnp.array([0, 3, 5]))
        return found, rows, model.predict(params, state, x)

    found, rows, plain = run(params, state, X)
    none = dense(params["head"], found["inp"])
    for name in ("all", "each", "mixed"):
        close(found[name], none)
    for row, i in zip(rows, "035", strict=True):
        close(row, found[i])
        assert not jnp.allclose(row, plain)
    close(found["some"], found["two"])
    assert not jnp.allclose(found["both"], plain)


def test_identity_edits_change_nothing_at_any_site():
    for model in (stack(3), stack(3, stacked=False)):
        params, state = made(model)
        edits = [model[path].map(lambda value: value) for path in model.sites(X)]
        edited = [al.compile(model["output"], edits=[edit]) for edit in edits]
        every = [*edited, model.predict]
        *found, plain = jax.jit(lambda *a, e=every: [f(*a) for f in e])(
            params, state, X
        )
        for value in found:
            close(value, plain)


def test_a_patch_from_another_run():
    model = stack()
    params, state = made(model)
    other = -X
    site = model["blocks"]
    patched = al.compile(model["output"], edits=[site.set(al.on("clean", site))])
    found = patched(params, state, X, clean=other)
    close(found, model.predict(params, state, other))
    deep = model["blocks/2/mlp"]
    once = al.compile(model["output"], edits=[deep.set(al.on("clean", deep))])
    value = deep.evaluate(params, state, other)
    twice = al.compile(model["output"], edits=[deep.set(al.arg("value"))])
    close(once(params, state, X, clean=other), twice(params, state, X, value=value))


def test_100_patches_are_one_compilation():
    model = stack(2)
    params, state = made(model)
    function = jax.jit(
        al.compile(model["output"], edits=[model["inp"].set(al.arg("v"))])
    )
    for i in range(100):
        function(params, state, X, v=jnp.full((2, 8), float(i)))
    assert function._cache_size() == 1


def test_a_sweep_is_one_vmap():
    model = stack()
    params, state = made(model)
    site = model["blocks", al.index("k"), "mlp"][:, al.arg("j")]
    patched = al.compile(model["output"], edits=[site.set(0.0)])

    def one(k, j):
        return patched(params, state, X, k=k, j=j)

    rows, columns = jnp.arange(6), jnp.arange(8)
    grid = jax.jit(jax.vmap(jax.vmap(one, (None, 0)), (0, None)))(rows, columns)
    assert grid.shape == (6, 8, 2, 2)
    for k in (0, 5):
        for j in (1, 7):
            edit = model[f"blocks/{k}/mlp"][:, j].set(0.0)
            single = al.compile(model["output"], edits=[edit])(params, state, X)
            close(grid[k, j], single)


def test_one_activation_in_two_runs():
    model = stack()
    params, state = made(model)
    t = model["blocks/2/mlp"]
    runs = {"other": -X}
    difference = al.compile(t - al.on("other", t))(params, state, X, **runs)
    other = t.evaluate(params, state, -X)
    close(difference, t.evaluate(params, state, X) - other)
    patched = al.compile(t, edits=[t.set(al.on("other", t))])
    close(patched(params, state, X, **runs), other)
    nested = al.compile(al.on("first", al.on("other", t)))
    close(nested(params, state, X, first=X, **runs), other)


def test_copies_counted_from_the_end():
    for stacked in (True, False):
        model = stack(stacked=stacked)
        params, state = made(model)
        every = model["blocks/*/mlp"].evaluate(params, state, X)
        k = al.index("k")
        close(model["blocks", -2, "mlp"].evaluate(params, state, X), every[4])
        close(model["blocks", k, "mlp"].evaluate(params, state, X, k=-2), every[4])
        edit, late = (model["blocks", i, "mlp"].scale(0.0) for i in (4, k))
        wanted = al.compile(model["output"], edits=[edit])(params, state, X)
        found = al.compile(model["output"], edits=[late])(params, state, X, k=-2)
        close(found, wanted)
        with pytest.raises(al.PathError, match="There are 6 copies"):
            al.compile(model["output"], edits=[late])(params, state, X, k=6)


def test_one_member_of_an_ensemble_is_edited():
    model = al.ensemble(al.serial(a=al.dense(3), b=al.dense(2)), 3)
    params, state = made(model)
    plain = model.predict(params, state, X)
    edit = model["1/a"].scale(0.0)
    found = jax.jit(al.compile(model["output"], edits=[edit]))(params, state, X)
    every = jax.jit(al.compile(model["output"], edits=[model["*/a"].scale(0.0)]))
    close(found[1], every(params, state, X)[1])
    close(found[jnp.array([0, 2])], plain[jnp.array([0, 2])])
    wrt = [model["*/a"], model["1/a"]]
    slope = jax.jit(al.value_and_grads(model["output"].sum(), wrt=wrt))
    grads = slope(params, state, X)[1]
    kernels = params["*"]["b"]["kernel"]
    close(grads[0], jnp.broadcast_to(kernels.sum(-1)[:, None], (3, 2, 3)))
    close(grads[1], grads[0][1])


def test_any_pytree_of_expressions():
    model = stack(1)
    params, state = made(model)
    tree = OrderedDict(b=Copies(model["inp"].sum(), "scan"), a=None)
    found = al.compile(tree)(params, state, X)
    assert type(found) is OrderedDict
    assert type(found["b"]) is Copies
    close(found["b"].number, model["inp"].sum().evaluate(params, state, X))


def test_a_direction_of_each_example_is_projected_out():
    model = stack(1)
    params, state = made(model)
    value = model["inp"].evaluate(params, state, X)
    along = model["inp"].project_out(X)
    left = al.compile(model["inp"], edits=[along])(params, state, X)
    close((left * X).sum(-1), jnp.zeros(2), atol=1e-5)
    for i in range(2):
        one = al.compile(model["inp"], edits=[model["inp"].project_out(X[i])])
        close(left[i], one(params, state, X)[i])
    assert not jnp.allclose(left, value)


# --- gradients of activations


@pytest.mark.parametrize("stacked", [True, False])
def test_gradients_of_activations(stacked):
    model = stack(stacked=stacked)
    params, state = made(model)
    objective = (model["output"] ** 2).sum()
    function = al.value_and_grads(
        objective, wrt={"all": model["blocks/*/mlp"], "one": model["blocks/2/mlp"],
                        "head": model["head"]},
    )  # fmt: skip
    value, grads = jax.jit(function)(params, state, X)
    close(value, objective.evaluate(params, state, X))
    head = model["head"].evaluate(params, state, X)
    close(grads["head"], 2 * head)
    close(grads["all"][2], grads["one"], rtol=1e-4)

    def suffix(out):
        h = al.compile(model["blocks"])(params, state, X)
        own = al.compile(model["blocks/5/mlp"])(params, state, X)
        return (dense(params["head"], h - own + out) ** 2).sum()

    own = model["blocks/5/mlp"].evaluate(params, state, X)
    close(grads["all"][5], jax.jit(jax.grad(suffix))(own), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("stacked", [True, False])
def test_gradients_of_some_copies(stacked):
    model = stack(stacked=stacked)
    params, state = made(model)

    def slope(*path):
        return al.value_and_grads(model["output"].sum(), wrt=model[path])

    slices = {"*": np.s_[:], "1:3": np.s_[1:3], "-2:": np.s_[-2:], "::-2": np.s_[::-2]}
    some = {step: slope(f"blocks/{step}/mlp") for step in slices}
    late = slope("blocks", al.index("k"), "mlp")

    @jax.jit
    def run(params, state, x, k):
        found = {step: f(params, state, x)[1] for step, f in some.items()}
        rows = jax.vmap(lambda k: late(params, state, x, k=k)[1])(k)
        return found, rows, late(params, state, x, k=k[:2])[1]

    found, rows, both = run(params, state, X, jnp.array([4, 1, -1]))
    every = found["*"]
    for step, part in slices.items():
        close(found[step], every[part])
    close(rows, every[jnp.array([4, 1, -1])])
    close(both, every[jnp.array([4, 1])])
    close(late(params, state, X, k=3)[1], every[3])


def test_gradients_under_edits():
    model = stack(1)
    params, state = made(model)
    inp, head = model["inp"], model["head"]
    plain = al.value_and_grads(head.sum(), wrt=inp)(params, state, X)
    edits = (edit for edit in [head.scale(2.0)])
    later = al.value_and_grads(head.sum(), wrt=inp, edits=edits)(params, state, X)
    jax.tree.map(lambda a, b: close(2 * a, b), plain, later)
    with pytest.raises(TypeError, match="wrt must be activations"):
        al.value_and_grads(head.sum(), wrt=[inp * 2])


def test_all_gradients_come_from_one_backward_pass():
    model = stack()
    params, state = made(model)
    function = al.value_and_grads(model["output"].sum(), wrt=[model["blocks/*/mlp"]])
    jaxpr = jax.make_jaxpr(function)(params, state, X).jaxpr
    scans = [e for e in jaxpr.eqns if e.primitive.name == "scan"]
    assert sum(e.params["reverse"] for e in scans) == 1


def test_direct_paths_add_up_in_a_linear_net():
    linear = al.residual(al.dense(8, use_bias=False).named("d"))
    model = al.serial(blocks=al.repeat(linear, 3), head=al.dense(2, use_bias=False))
    params, state = made(model)
    clean, broken = X, X * 0.0
    total = model.predict(params, state, clean) - model.predict(params, state, broken)
    frozen = [
        model[f"blocks/{i}/d"].set(al.on("broken", model[f"blocks/{i}/d"]))
        for i in range(3)
    ]
    direct = al.compile(model["output"], edits=frozen)(
        params, state, clean, broken=broken
    )
    effects = direct - model.predict(params, state, broken)
    for i in range(3):
        own = model[f"blocks/{i}/d"]
        edits = [e for j, e in enumerate(frozen) if j > i]
        edits = [own.set(al.on("clean", own)), *edits]
        only = al.compile(model["output"], edits=edits)
        runs = {"clean": clean, "broken": broken}
        known = {name: runs[name] for name in only.arguments}
        effects = effects + only(params, state, broken, **known)
        effects = effects - model.predict(params, state, broken)
    close(effects, total, rtol=1e-4, atol=1e-5)


# --- mistakes


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("bloks/3/mlp", "Nearest: 'blocks/*/mlp'"),
        ("blocks/3/mpl", "Nearest: 'blocks/*/mlp'"),
        ("blocks/6/mlp", "There are 6 copies"),
        ("blocks/-7/mlp", "There are 6 copies"),
        ("blocks/4:2/mlp", "There are 6 copies"),
        ("blocks/6:/mlp", "There are 6 copies"),
        ("blocks/::0/mlp", "There are 6 copies"),
        ("blocks/1:2:3:4/mlp", "There are 6 copies"),
        ("blocks//mlp", "Nearest: 'blocks/*/mlp'"),
        ("nothing*", "nothing is called"),
        ("inp/*/dense", "nothing is called"),
    ],
)
def test_a_site_that_is_not_there_is_an_error_at_once(path, text):
    with pytest.raises(al.PathError) as caught:
        stack()[path]
    assert text in str(caught.value)


def test_a_number_out_of_range_is_an_error():
    model = stack(1)
    params, state = made(model)
    with pytest.raises(al.PathError, match="There are 1 copies"):
        model["blocks", 1, "mlp"]
    with pytest.raises(IndexError, match="index 8 is out of bounds"):
        model["inp", ..., 8].evaluate(params, state, X)
    edit = model["inp"][:, -9].set(0.0)
    with pytest.raises(IndexError, match="index -9 is out of bounds"):
        al.compile(model["output"], edits=[edit])(params, state, X)


def test_an_edit_that_cannot_matter_is_an_error():
    model = stack()
    params, state = made(model)
    for read, edit in [
        (model["inp"], model["head"].set(0.0)),
        (model["blocks/1/mlp"], model["blocks/3/mlp"].set(0.0)),
    ]:
        with pytest.raises(ValueError, match="has no effect"):
            al.compile(read, edits=[edit])(params, state, X)


def test_an_edit_has_to_fit():
    model = stack()
    params, state = made(model)
    wrong = al.compile(model["output"], edits=[model["inp"].set(jnp.ones(3))])
    with pytest.raises(al.ShapeError, match=r"edit: expected what fits inp"):
        wrong(params, state, X)
    with pytest.raises(TypeError, match="only an activation, or a slice of one"):
        (model["inp"] + 1).set(0.0)
    with pytest.raises(TypeError, match="edits: expected"):
        al.compile(model["output"], edits=[model["inp"] + 1])


def test_an_error_leaves_nothing_behind():
    model = stack()
    params, state = made(model)

    def fail(value):
        raise RuntimeError("mine")

    bad = al.compile(model["output"], edits=[model["inp"].map(fail)])
    with pytest.raises(RuntimeError, match="mine"):
        bad(params, state, X)
    close(model["output"].evaluate(params, state, X), model.predict(params, state, X))
