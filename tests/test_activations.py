"""Deferred activations: what may not run, what is not there, what does not fit."""

import copy
import os
import pickle
import re
import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import axonlike as al

KEY = jax.random.key(0)
X = jnp.asarray(np.random.default_rng(0).standard_normal((2, 8)), jnp.float32)


def close(a, b, **how):
    np.testing.assert_allclose(a, b, **({"rtol": 1e-5, "atol": 1e-6} | how))


def stack(n=6, **how):
    block = al.residual(al.layer_norm() >> al.dense(8).named("mlp"))
    return al.serial(
        inp=al.dense(8), blocks=al.repeat(block, n, **how), head=al.dense(2)
    )


def made(model, x=X):
    return model.init(KEY, x)


# --- copies of a repeat


@pytest.mark.parametrize("stacked", [True, False])
def test_what_a_copy_returns_is_a_site(stacked):
    model = stack(stacked=stacked)
    params, state = made(model)
    inp, mlp, stream = al.compile(
        (model["inp"], model["blocks/*/mlp"], model["blocks/*"])
    )(params, state, X)
    sums = inp[None] + jnp.cumsum(mlp, 0)
    close(stream, sums)
    close(model["blocks/2"].evaluate(params, state, X), sums[2])
    close(model["blocks"].evaluate(params, state, X), stream[-1])
    edit = model["blocks/3"].set(model["inp"])
    found = al.compile(model["blocks/3/mlp"] - model["blocks"], edits=[edit])
    close(found(params, state, X), mlp[3] - (inp + later(model, params, state, inp)))


def later(model, params, state, x):
    """What blocks 4 and 5 add to an input."""
    y = al.between(model, "blocks/3", "blocks").predict(params, state, x)
    return y - x


@pytest.mark.parametrize("stacked", [True, False])
def test_passes_of_a_tied_repeat_are_an_axis_in_front(stacked):
    model = al.repeat(al.dense(8).named("d"), 3, tied=True, stacked=stacked)
    params, state = made(model)
    every = model["d"].evaluate(params, state, X)
    assert every.shape == (3, 2, 8)
    close(every[-1], model.predict(params, state, X))


def test_a_run_ends_inside_of_remat_ensembles_and_vmap():
    def refuse(x):
        raise AssertionError("not to be run")

    body = al.serial(a=al.dense(8), b=al.lift(refuse))
    for model, path, x in [
        (al.remat(body), "a", X),
        (al.ensemble(body, 2), "*/a", X),
        (al.vmap(body), "a", X[None]),
        (al.repeat(body, 2, stacked=False, remat=True), "0/a", X),
    ]:
        whole = al.serial(a=al.dense(8), b=al.lift(lambda x: x))
        params, state = {
            "remat": al.remat(whole), "ensemble": al.ensemble(whole, 2),
            "vmap": al.vmap(whole), "repeat": al.repeat(whole, 2, stacked=False),
        }[model.kind].init(KEY, x)  # fmt: skip
        assert model[path].evaluate(params, state, x).shape[-1] == 8
        late = al.compile(model[path], edits=[model[path.replace("a", "b")].scale(0.0)])
        with pytest.raises(ValueError, match="has no effect"):
            late(params, state, x)


# --- choices that may not run


def is_positive(x):
    return x[0, 0] > 0


def choice():
    f = al.serial(a=al.dense(3), b=al.dense(2))
    return al.serial(c=al.cond(is_positive, f.named("f"), al.dense(2, name="g")))


def test_what_may_not_run_is_read_with_a_fill():
    model = choice()
    params, state = made(model, X)
    ran, skipped = model["c/f/a"].fill(jnp.nan), model["c/g"].fill(7.0)
    read = jax.jit(al.compile({"a": ran, "g": skipped, "sum": ran[..., 0].sum()}))
    for x in (X.at[0, 0].set(1.0), X.at[0, 0].set(-1.0)):
        found = read(params, state, x)
        f, g = (model.part(f"c/{name}").predict(params, state, x) for name in "fg")
        a = model.part("c/f/a").predict(params, state, x)
        if is_positive(x):
            close(found["a"], a)
            assert (found["g"] == 7).all()
            close(found["sum"], a[:, 0].sum(), rtol=1e-4)
        else:
            assert jnp.isnan(found["a"]).all()
            close(found["g"], g)
            assert jnp.isnan(found["sum"])
        assert f.shape == g.shape
    assert repr(ran) == "c/f/a.fill(nan)"
    assert ran != model["c/f/a"]
    assert ran == choice()["c/f/a"].fill(jnp.nan)
    assert repr(model["c/g", ..., 0].fill(0)) == "c/g.fill(0)[..., 0]"


def test_choices_in_choices_and_in_copies():
    inner = al.cond(is_positive, al.dense(8, name="f"), al.dense(8, name="g"))
    outer = al.switch(
        lambda x: 1, al.identity, inner.named("in"), al.dense(8, name="h")
    )
    model = al.serial(blocks=al.repeat(outer.named("s"), 3))
    params, state = made(model)
    f, g = (model[f"blocks/*/s/in/{name}"].fill(-1.0) for name in "fg")
    h = model["blocks/*/s/h"].fill(5.0)
    found = al.compile((f, g, h, model["blocks/*/s"]))(params, state, X)
    assert (found[2] == 5).all()
    x = X
    for i in range(3):
        positive = is_positive(x)
        x = found[3][i]
        close(found[0 if positive else 1][i], x)
        assert (found[1 if positive else 0][i] == -1).all()
    one = model["blocks/1/s/in/f"].fill(-1.0).evaluate(params, state, X)
    close(one, found[0][1])


def test_edits_and_gradients_where_it_may_not_run():
    model = choice()
    params, state = made(model, X)
    edited = al.compile(model["output"], edits=[model["c/f/a"].scale(0.0)])
    grads = al.value_and_grads(
        model["output"].sum(), wrt=[model["c/f/a"], model["c/g"]]
    )
    yes, no = X.at[0, 0].set(1.0), X.at[0, 0].set(-1.0)
    close(edited(params, state, no), model.predict(params, state, no))
    close(edited(params, state, yes), jnp.zeros((2, 2)))
    for x in (yes, no):
        _, (a, g) = grads(params, state, x)
        kernel = params["c"]["f"]["b"]["kernel"]
        ran = float(is_positive(x))
        close(a, jnp.broadcast_to(kernel.sum(1), (2, 3)) * ran)
        close(g, jnp.ones((2, 2)) * (1 - ran))


def test_without_a_fill_it_is_an_error():
    model = choice()
    params, state = made(model)
    with pytest.raises(
        ValueError, match=r"cond: cannot read 'c/f/a', .*\.fill\(0\.0\)"
    ):
        model["c/f/a"].evaluate(params, state, X)
    both = al.compile((model["c/g"], model["c/g"].fill(0.0)))
    with pytest.raises(ValueError, match=r"'c/g' may not run.* in every place"):
        both(params, state, X)
    with pytest.raises(TypeError, match="fill: only an activation may not run"):
        model["c"].mean().fill(0.0)
    with pytest.raises(al.ShapeError, match=r"edit: expected what fits c/g"):
        model["c/g"].fill(jnp.ones(5)).evaluate(params, state, X)


# --- what is not there


def test_a_traced_number_of_no_copy_gives_nan_and_never_a_neighbour():
    model = stack()
    params, state = made(model)
    site = model["blocks", al.index("k"), "mlp"]
    every = model["blocks/*/mlp"].evaluate(params, state, X)
    read = jax.jit(al.compile(site))
    edited = jax.jit(al.compile(model["output"], edits=[site.set(0.0)]))
    plain = model.predict(params, state, X)
    for k in (-7, -6, 0, 5, 6, 99):
        value = read(params, state, X, k=jnp.asarray(k))
        out = edited(params, state, X, k=jnp.asarray(k))
        if -6 <= k < 6:
            close(value, every[k])
            assert jnp.isfinite(out).all()
            assert not jnp.allclose(out, plain)
        else:
            assert jnp.isnan(value).all()
            assert jnp.isnan(out).all()
    for k in (6, -7, np.int32(6), jnp.asarray(6), np.array([0, 6])):
        with pytest.raises(al.PathError, match="There are 6 copies"):
            site.evaluate(params, state, X, k=k)
    with pytest.raises(TypeError, match="copies of 'blocks' are chosen by integers"):
        site.evaluate(params, state, X, k=0.5)


def test_a_traced_item_that_is_not_there_gives_nan():
    model = stack(1)
    params, state = made(model)
    j = al.arg("j")
    read = jax.jit(al.compile(model["inp"][:, j]))
    edited = jax.jit(al.compile(model["output"], edits=[model["inp"][:, j].set(0.0)]))
    inp = model["inp"].evaluate(params, state, X)
    for item in (-8, 0, 7):
        close(read(params, state, X, j=jnp.asarray(item)), inp[:, item])
        assert jnp.isfinite(edited(params, state, X, j=jnp.asarray(item))).all()
    for item in (-9, 8):
        assert jnp.isnan(read(params, state, X, j=jnp.asarray(item))).all()
        assert jnp.isnan(edited(params, state, X, j=jnp.asarray(item))).all()
        with pytest.raises(IndexError, match="out of bounds"):
            al.compile(model["inp"][:, j])(params, state, X, j=jnp.asarray(item))
    ids = al.serial(e=al.lift(lambda x: x.argmax(-1)), t=al.embedding(8, 3))
    params, state = ids.init(KEY, X)
    late = jax.jit(al.compile(ids["e"][j]))
    assert late(params, state, X, j=jnp.asarray(2)) == jnp.iinfo(jnp.int32).min


def test_expressions_in_slices_are_arguments():
    model = stack(1)
    params, state = made(model)
    part = model["inp"][:, al.arg("start") : al.arg("stop")]
    assert repr(part) == "inp[:, $start:$stop]"
    assert part == stack(1)["inp"][:, al.arg("start") : al.arg("stop")]
    assert part != model["inp"][:, al.arg("start") : 3]
    inp = model["inp"].evaluate(params, state, X)
    close(part.evaluate(params, state, X, start=2, stop=5), inp[:, 2:5])
    edit = model["inp"][:, : al.arg("stop")].set(0.0)
    found = al.compile(model["inp"], edits=[edit])(params, state, X, stop=3)
    close(found, inp.at[:, :3].set(0))
    with pytest.raises(
        TypeError, match="a slice of copies of 'blocks' has to be known"
    ):
        model["blocks", slice(al.arg("start"), None), "mlp"]


# --- what does not fit


def pair(x):
    return {"a": x, "n": jnp.arange(3)}


def test_edits_of_pytrees_are_edits_of_their_arrays():
    model = al.serial(inp=al.dense(8), pair=al.lift(pair), id=al.lift(lambda x: x))
    params, state = made(model)
    a = model["inp"].evaluate(params, state, X)

    def after(edit):
        return al.compile(model["output"], edits=[edit])(params, state, X)

    site = model["pair"]
    doubled = after(site.scale(2))
    close(doubled["a"], 2 * a)
    assert list(doubled["n"]) == [0, 2, 4]
    each = after(site.add({"a": 0.5, "n": 1}))
    close(each["a"], a + 0.5)
    assert list(each["n"]) == [1, 2, 3]
    close(after(site["a"][:, 0].set(0.0))["a"], a.at[:, 0].set(0))
    for wrong in (
        site.set({"a": 0.0}), site.add((1, 2)), site.map(lambda value: value["a"]),
        site.set({"a": jnp.zeros(3), "n": 0}),
    ):  # fmt: skip
        with pytest.raises(al.ShapeError, match="edit: expected what fits pair"):
            after(wrong)


def test_what_a_dtype_cannot_hold_is_refused():
    model = al.serial(e=al.lift(lambda x: x.argmax(-1)), t=al.embedding(8, 3))
    params, state = made(model)
    ids = model["e"]

    def after(edit):
        return al.compile(model["e"], edits=[edit])(params, state, X)

    assert (after(ids.add(1)) == ids.evaluate(params, state, X) + 1).all()
    for edit in (ids.add(0.5), ids.scale(0.5), ids.set(0.5), ids.map(jnp.sin)):
        with pytest.raises(
            TypeError, match=r"edit: e is int32\[2\], and .* cannot hold"
        ):
            after(edit)
    for edit in (ids.rotate(1), ids.project_out(1)):
        with pytest.raises(al.ShapeError, match="floats with a last axis at e"):
            after(edit)
    half = al.mixed(stack(1), jnp.bfloat16)
    params, state = made(half)
    found = al.compile(half["inp"], edits=[half["inp"].set(np.float32(0.5))])
    assert found(params, state, X).dtype == jnp.bfloat16


@pytest.mark.parametrize("name", ["x", "key", "params", "state", "train", "self"])
def test_names_of_the_functions_own_parameters_are_refused(name):
    for make in (al.arg, al.index, lambda n: al.on(n, al.site("a"))):
        with pytest.raises(ValueError, match=f"a parameter '{name}' of its own"):
            make(name)


def test_names_have_one_meaning():
    with pytest.raises(TypeError, match="arg: expected a name"):
        al.arg(3)
    t = stack(1)["inp"]
    with pytest.raises(
        ValueError, match="'clean' is the input of a run and an argument"
    ):
        al.compile(t, edits=[t.set(al.on("clean", t) + al.arg("clean"))])


def test_a_gradient_for_what_does_not_matter_is_told():
    model = stack()
    params, state = made(model)
    function = al.value_and_grads(model["inp"].sum(), wrt=[model["inp"], model["head"]])
    text = (
        "value_and_grads: sum(inp) does not need head, so it has no gradient for that. "
        "Leave it out of wrt."
    )
    with pytest.raises(ValueError, match=re.escape(text)):
        function(params, state, X)


# --- on several devices

SHARDED = """
import jax, numpy as np, axonlike as al
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P

mesh = Mesh(np.array(jax.devices()).reshape(2, 2), ("data", "model"))
block = al.residual(al.layer_norm() >> al.dense(8).named("mlp"))
model = al.serial(inp=al.dense(8), blocks=al.repeat(block, 4), head=al.dense(2))
key, x = jax.random.key(0), jax.random.normal(jax.random.key(1), (4, 8))
plain, state = model.init(key, x)
with jax.set_mesh(mesh):
    columns = {"**/kernel": NamedSharding(mesh, P(None, "model"))}
    rows = {"blocks/**/kernel": NamedSharding(mesh, P(None, None, "model"))}
    params, _ = model.init(key, x, {**columns, **rows})
    y = jax.device_put(x, NamedSharding(mesh, P("data")))
    assert len(params["blocks"]["*"]["mlp"]["kernel"].sharding.device_set) == 4
    t, k = model["blocks/2/mlp"], model["blocks", al.index("k"), "mlp"]
    out = model["output"]

    def everything(params, x):
        patched = al.compile(out, edits=[t.set(al.on("other", t))])
        late = al.compile(out, edits=[k.scale(0.0)])
        grads = al.value_and_grads(out.sum(), wrt=[t, model["blocks/*/mlp"]])
        return (
            al.compile((t, model["blocks/*"]))(params, state, x),
            patched(params, state, x, other=-x),
            late(params, state, x, k=1),
            grads(params, state, x),
            al.between(model, "blocks/1", "head").predict(params, state, x),
        )

    ours = jax.jit(everything)(params, y)
    theirs = jax.jit(everything)(plain, x)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
"""


def test_params_that_are_spread_over_devices():
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    run = subprocess.run(
        [sys.executable, "-c", SHARDED], env={**os.environ, **flags},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr


# --- layers of one's own around copies


@al.layer
def tower(depth, stacked=True):
    return al.repeat(al.residual(al.dense(4, name="d")), depth, stacked=stacked)


@al.layer
def members(depth):
    return al.ensemble(al.dense(4, name="d"), depth)


@pytest.mark.parametrize("made", [tower(3), tower(3, stacked=False), members(3)])
def test_copies_in_a_factory_of_ones_own(made):
    model = al.serial(body=made)
    plain = al.serial(body=made.plain)
    x = jnp.arange(8.0).reshape(2, 4) / 8
    params, state = model.init(jax.random.key(0), x)
    read, same = (
        jax.jit(al.compile([m["body/*/d"], m["body/-1/d"]])) for m in (model, plain)
    )
    every, last = read(params, state, x)
    assert every.shape == (3, 2, 4)
    assert jnp.array_equal(every[-1], last)
    assert jnp.array_equal(every, same(params, state, x)[0])
    assert al.summary(model, x).total("params") == 3 * 20
    assert "3" in al.diagram(model, x).mermaid
    assert al.submodel(model, params, state, "body/1")[1]["d"]["kernel"].shape == (4, 4)


def test_a_choice_in_a_factory_of_ones_own_runs_as_one():
    @al.layer
    def choice():
        return al.cond(lambda x: x.sum() > 0, al.dense(4, name="f"), al.identity)

    with pytest.raises(ValueError, match=r"'c/f' is inside of a choice, which runs as"):
        al.between(al.serial(c=choice(), head=al.dense(2)), "c/f", "output")


# --- expressions are values


def test_an_expression_does_not_change():
    model = al.serial(a=al.dense(8))
    params, state = made(model)
    array = np.ones((1, 8), np.float32)
    edit, product = model["a"].set(array), model["a"] * array
    first = jax.jit(al.compile(product, edits=[edit]))(params, state, X)
    array *= 5
    again = jax.jit(al.compile(model["a"], edits=[model["a"].set(array)]))
    close(first, 1.0)
    close(again(params, state, X), 5.0)
    close(al.compile(product, edits=[edit])(params, state, X), 1.0)
    with pytest.raises(AttributeError, match="'path' cannot be set"):
        model["a"].path = ("b",)


def test_an_expression_is_pickled_and_copied():
    model = al.serial(a=al.dense(8))
    for read in [model["a"].mean() + al.arg("w"), al.on("c", model["a"].fill(0.0))]:
        assert pickle.loads(pickle.dumps(read)) == read
        assert copy.deepcopy(read) == read
    read = pickle.loads(pickle.dumps(al.compile(model["a"])))
    params, state = made(model)
    close(read(params, state, X), model.predict(params, state, X))


def test_gradients_for_a_glob_are_by_path():
    model = stack()
    params, state = made(model)
    loss = (model["output"] ** 2).sum()
    both = al.value_and_grads(loss, wrt=model["{inp,blocks/*}"][:, 0])
    every = al.value_and_grads(loss, wrt=[model["inp"], model["blocks/*"]])
    found = both(params, state, X)[1]
    inp, blocks = every(params, state, X)[1]
    close(found["inp"], inp[:, 0])
    close(found["blocks/*"], blocks[:, 0])


@pytest.mark.parametrize("stacked", [True, False])
def test_a_slice_of_several_copies_is_edited_as_it_is_read(stacked):
    model = stack(3, stacked=stacked)
    params, state = made(model)
    mlp = model["blocks/*/mlp"]
    cases = [
        (mlp[:, 1], np.s_[1]),
        (mlp[..., 2], np.s_[..., 2]),
        (mlp[:][:, :, 3:], np.s_[:, 3:]),
    ]
    for part, at in cases:
        read = al.compile(mlp, edits=[part.set(0.0)])(params, state, X)
        one = [model[f"blocks/{i}/mlp"][at].set(0.0) for i in range(3)]
        close(read, al.compile(mlp, edits=one)(params, state, X))
        close(al.compile(part, edits=[part.set(0.0)])(params, state, X), 0.0)


MISTAKES = {
    "empty slice": (
        lambda m: al.compile(m["output"], edits=[m["inp"][:, 9:].set(0.0)]),
        ValueError,
        "edit: there is nothing at inp[:, 9:], of float32[2, 8]. "
        "Choose a slice that is not empty.",
    ),
    "slice of copies": (
        lambda m: al.compile(m["output"], edits=[m["blocks/*"][0].set(0.0)]),
        ValueError,
        "edit: blocks/*[0] slices the axis of copies, which stands in front. Choose "
        "copies in the path, as in blocks/1:3, and write `:` or `...` for them, "
        "and for what vmap maps over.",
    ),
    "own value": (
        lambda m: al.compile(m["output"], edits=[m["inp"].set(m["inp"] * 2)]),
        ValueError,
        "edits: 'inp' is needed before the run comes to it. An edit takes what comes "
        "before its target and its copies. Write .map(function) for the target's own "
        "value, on('name', ...) for that of another run.",
    ),
    "edit to read": (
        lambda m: al.compile(m["inp"].set(0.0)),
        TypeError,
        "compile: inp.set(0.0) is an edit, and nothing to read. "
        "Write compile(expression, edits=[...]).",
    ),
    "one edit": (
        lambda m: al.compile(m["output"], edits=m["inp"].set(0.0)),
        TypeError,
        "edits: expected a list, got inp.set(0.0). Write edits=[...].",
    ),
    "other run of a number": (
        lambda m: al.on("clean", 3.0),
        TypeError,
        "on: expected an expression to read in that run, got 3.0. "
        "Write on('clean', model['path']).",
    ),
    "no function": (
        lambda m: m["inp"].map(None),
        TypeError,
        "deferred: expected a function of arrays, got None. "
        "Write defer(jnp.sin)(expression), or expression.map(jnp.sin).",
    ),
    "no value": (
        lambda m: al.compile(m["output"], edits=[m["inp"].set({1})]),
        TypeError,
        "edit: inp is float32[2, 8], and set got {1}. Give a number or an array.",
    ),
    "no matrix": (
        lambda m: al.compile(m["output"], edits=[m["inp"].rotate(jnp.eye(3))]),
        al.ShapeError,
        "edit: expected a matrix [8, 8] to rotate inp, got float32[3, 3]. "
        "It multiplies the last axis from the right.",
    ),
    "no scalar": (
        lambda m: al.value_and_grads(m["head"], wrt=m["inp"]),
        al.ShapeError,
        "value_and_grads: expected a scalar from head, got float32[2, 2]. "
        "Write .mean() or .sum().",
    ),
    "no direction": (
        lambda m: al.compile(m["output"], edits=[m["inp"].project_out(jnp.zeros(8))]),
        ValueError,
        "edit: project_out got a direction that is zero at inp, along which there is "
        "nothing to take out. Give a direction, or leave the edit out.",
    ),
    "no part": (
        lambda m: al.compile(m["inp"][0, 0, 0]),
        IndexError,
        "inp[0, 0, 0]: there is no such part of float32[2, 8]: too many indices for "
        "array: array is 2-dimensional, but 3 were indexed. Choose another.",
    ),
    "no part to edit": (
        lambda m: al.compile(m["output"], edits=[m["inp"][0.5].set(0.0)]),
        IndexError,
        "inp[0.5]: there is no such part of float32[2, 8]: Indexer must have integer or "
        "boolean type, got indexer with type float64. Choose another.",
    ),
    "not by that path": (
        lambda m: al.compile(m["{inp,head}"]["hed"]),
        al.PathError,
        "{inp,head}['hed']: nothing is called 'hed'. Nearest: 'head'.",
    ),
    "one of a glob": (
        lambda m: al.compile(m["output"], edits=[m["{inp,head}"]["head"].scale(0.0)]),
        ValueError,
        "activation: {inp,head}['head'] is read, but not changed. Write model['head'].",
    ),
    "gradient of one of a glob": (
        lambda m: al.value_and_grads(m["head"].sum(), wrt=m["{inp,head}"]["head"]),
        ValueError,
        "activation: {inp,head}['head'] is read, but not changed. Write model['head'].",
    ),
    "not for every path": (
        lambda m: al.compile(m["output"], edits=[m["{inp,head}"].set({"head": 1.0})]),
        ValueError,
        "edit: expected a value for each of ['head', 'inp'], got ['head']. Give all, or "
        "write an edit for each path.",
    ),
    "no such direction": (
        lambda m: al.compile(m["output"], edits=[m["inp"].project_out(1.0)]),
        al.ShapeError,
        "edit: expected a direction [8] to project out of inp, got float32[]. "
        "It is one of the last axis.",
    ),
    "no matrix for each": (
        lambda m: al.compile(m["output"], edits=[m["inp"].rotate(jnp.ones((3, 8, 8)))]),
        al.ShapeError,
        "edit: expected a matrix [8, 8] to rotate inp, float32[2, 8], got "
        "float32[3, 8, 8]. Give one for all, or one for each in the axes in front.",
    ),
    "not of all copies": (
        lambda m: al.compile(
            m["output"], edits=[m["blocks/*/mlp"].set(jnp.ones((5, 2, 8)))]
        ),
        al.ShapeError,
        "edit: expected what fits blocks/*/mlp, float32[2, 8], or float32[6, 2, 8] for "
        "all of them, got float32[5, 2, 8]. Give one of the two.",
    ),
    "no copy": (
        lambda m: m["blocks/6/mlp"],
        al.PathError,
        "activation: nothing is called 'blocks/6'. "
        "Nearest: 'blocks/5', 'blocks/4', 'blocks/3'. There are 6 copies.",
    ),
    "empty step": (
        lambda m: m["inp/"],
        al.PathError,
        "activation: nothing is called 'inp/'. Nearest: 'inp', 'input'. "
        "model.sites(spec) lists them.",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_says_what_to_do(name):
    make, error, text = MISTAKES[name]
    model = stack()
    params, state = jax.eval_shape(lambda: made(model))
    with pytest.raises(error) as caught:
        jax.eval_shape(make(model), params, state, X)
    assert str(caught.value).partition("\n")[0] == text


def test_what_a_function_raises_has_the_formula():
    model = stack(1)
    params, state = made(model)
    with pytest.raises(TypeError) as caught:
        (2 * (model["{inp,head}"] + 1)).evaluate(params, state, X)
    assert caught.value.__notes__[0] == "in the expression ({inp,head} + 1)"


@pytest.mark.parametrize("stacked", [True, False])
def test_copies_inside_of_vmap(stacked):
    blocks = al.repeat(al.residual(al.dense(8, name="mlp")), 6, stacked=stacked)
    model = al.serial(v=al.vmap(blocks), head=al.dense(2))
    params, state = made(model)
    late = model["v", al.index("k"), "mlp"]
    tree = [model["v/*/mlp"], late, model["v/1:3/mlp"], model["v/-1/mlp"]]
    every, one, some, last = al.compile(tree)(params, state, X, k=1)
    assert every.shape == (2, 6, 8)
    close(one, every[:, 1])
    close(some, every[:, 1:3])
    close(last, every[:, -1])
    close(model["v/4/mlp"].evaluate(params, state, X), every[:, 4])
    edit = model["v/*/mlp"][..., 0].set(0.0)
    assert not al.compile(model["v/*/mlp"], edits=[edit])(params, state, X)[
        ..., 0
    ].any()


@al.layer
def summing():
    def init(key, carry, x):
        return {"w": jax.random.normal(key, (x.shape[-1], x.shape[-1]))}

    def apply(params, carry, x, *, emit):
        h = emit("h", jnp.tanh(carry + x @ params["w"]))
        return h, h

    return al.Cell(init, apply, lambda x: jnp.zeros(x.shape, x.dtype))


def unit():
    return al.dense(8, name="d")


SEVERAL = {
    "vmap": (al.vmap(unit()), X, "v/d", (2, 8)),
    "vmap of vmap": (al.vmap(al.vmap(unit())), X[None], "v/d", (1, 2, 8)),
    "tied": (al.repeat(unit(), 3, tied=True), X, "v/d", (3, 2, 8)),
    "tied, unrolled": (
        al.repeat(unit(), 3, tied=True, stacked=False), X, "v/d", (3, 2, 8)
    ),
    "scan": (al.scan(summing()), X[None], "v/h", (2, 1, 8)),
    "ensemble": (al.ensemble(unit(), 3), X, "v/*/d", (3, 2, 8)),
    "repeat": (al.repeat(unit(), 3), X, "v/*/d", (3, 2, 8)),
    "some": (al.repeat(unit(), 5), X, "v/1:4/d", (3, 2, 8)),
    "repeat of vmap of repeat": (
        al.repeat(al.vmap(al.repeat(unit(), 2, name="r")), 3), X, "v/*/r/*/d",
        (3, 2, 2, 8),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SEVERAL)
def test_what_is_read_of_several_runs_is_put_back_and_has_gradients(name):
    layer, x, path, shape = SEVERAL[name]
    model = al.serial(v=layer, act=al.lift(jnp.tanh), head=al.dense(2))
    params, state = made(model, x)
    t, loss = model[path], model["output"].sum()
    step = jax.random.normal(KEY, shape)
    patched = al.compile([model["output"], t], edits=[t.set(al.on("other", t))])
    moved = al.compile(loss, edits=[t.add(al.arg("by"))])
    slope = al.value_and_grads(loss, wrt=t)

    @jax.jit
    def run(params, state, x):
        other = -2 * x
        values = patched(params, state, x, other=other)
        wanted = al.compile([model["output"], t])(params, state, other)
        by = step * jnp.float32(1e-2)
        up, down = (moved(params, state, x, by=by) for by in (by, -by))
        return values, wanted, slope(params, state, x)[1], (up - down) / 2e-2

    values, wanted, grads, along = run(params, state, x)
    jax.tree.map(close, values, wanted)
    assert grads.shape == values[1].shape == shape
    close(jnp.sum(grads * step), along, rtol=5e-3, atol=5e-3)


@pytest.mark.parametrize("stacked", [True, False])
def test_one_value_for_each_copy_may_be_of_numpy(stacked):
    model = stack(stacked=stacked)
    params, state = made(model)
    values, t = np.arange(96, dtype=np.float32).reshape(6, 2, 8), model["blocks/*/mlp"]
    some = model["blocks/1:3/mlp"].set(al.arg("some"))
    put = al.compile(t, edits=[t.set(values), some])(params, state, X, some=values[:2])
    close(put, values[[0, 0, 1, 3, 4, 5]])


def test_copies_are_chosen_by_any_row_of_numbers():
    model = stack(3)
    params, state = made(model)
    rows = [2, 0], np.array([2, 0]), jnp.array([2, 0])
    read = al.compile(
        [model["blocks/*/mlp"], *(model["blocks", k, "mlp"] for k in rows)]
    )
    every, *found = read(params, state, X)
    for value in found:
        close(value, every[jnp.array([2, 0])])


@pytest.mark.parametrize("stacked", [True, False])
def test_copies_that_are_chosen_twice_or_are_none(stacked):
    model = stack(stacked=stacked)
    params, state = made(model)
    t, late = model["blocks/*/mlp"], model["blocks", al.index("k"), "mlp"]
    loss, rows = model["output"].sum(), jnp.array([4, 1, 4])
    every = jax.jit(al.value_and_grads(loss, wrt=t))(params, state, X)[1]
    slope = jax.jit(al.value_and_grads(loss, wrt=late))
    close(slope(params, state, X, k=rows)[1], every[rows])
    for k in (jnp.array([2, 6]), jnp.asarray(-7)):
        value, grads = slope(params, state, X, k=k)
        assert jnp.isnan(value)
        assert jnp.isnan(grads).all()
    by = jnp.arange(48.0).reshape(3, 2, 8)
    moved = al.compile(model["blocks/4/mlp"], edits=[late.add(by), t.scale(0.0)])
    close(moved(params, state, X, k=rows), 0.0)
    plain = model["blocks/1/mlp"].evaluate(params, state, X)
    moved = al.compile(model["blocks/1/mlp"], edits=[late.add(by)])
    close(moved(params, state, X, k=jnp.array([1, 3, 1])), plain + by[0] + by[2])
    with pytest.raises(al.ShapeError, match=r"a row of them, got int32\[1, 3\]"):
        moved(params, state, X, k=rows[None])


def test_a_slice_of_what_vmap_runs_is_told_how_to_write_it():
    model = al.serial(v=al.vmap(unit()), head=al.dense(2))
    params, state = made(model)
    sliced = al.compile(model["output"], edits=[model["v/d"][0].set(0.0)])
    with pytest.raises(ValueError, match="slices the axis of copies"):
        sliced(params, state, X)


@pytest.mark.parametrize("stacked", [True, False])
def test_a_glob_means_every_use_of_a_layer(stacked):
    body = al.residual(al.dense(8, name="d"))
    enc = al.serial(blocks=al.repeat(body, 2, stacked=stacked), out=al.dense(8))
    model = al.serial(
        both=al.shared(enc.named("enc")), minus=al.lift(lambda p: p[0] - p[1]),
        head=al.dense(2),
    )  # fmt: skip
    x = (X, -2 * X)
    params, state = made(model, x)
    first, second = "both/enc/out", "both/enc#1/out"
    deep = "both/enc#1/blocks/1/d"
    tree = [model["**/out"], model[first], model[second], model["both/enc/blocks/1/*"]]
    found, a, b, inner = al.compile([*tree])(params, state, x)
    assert sorted(found) == [second, first]
    close(found[first], a)
    close(found[second], b)
    assert sorted(inner) == [deep, deep.replace("#1", "")]
    close(inner[deep], model[deep].evaluate(params, state, x))
    close(al.compile(model["**/out"][:, 3])(params, state, x)[second], b[:, 3])
    t = model["**/out"]
    none = al.compile(model["minus"], edits=[t.scale(0.0)])(params, state, x)
    close(none, 0.0)
    swapped = al.compile(model["minus"], edits=[t.set(al.on("other", t))])
    close(swapped(params, state, x, other=x[::-1]), b - a)
    _, grads = al.value_and_grads(model["minus"].sum(), wrt=t)(params, state, x)
    close(grads[first], 1.0)
    close(grads[second], -1.0)


def test_globs_leave_out_the_models_own_ends():
    model = al.serial(a=al.dense(8), b=al.serial(c=al.dense(8)))
    params, state = made(model)
    names = {"*": ["a", "b"], "{input,a}": ["a", "input"], "*/c": ["b/c"]}
    for glob, found in names.items():
        assert sorted(model[glob].evaluate(params, state, X)) == found


def test_a_zero_that_is_known_late_takes_out_nothing():
    model = stack(1)
    params, state = made(model)
    t = model["inp"]
    left = jax.jit(al.compile(t, edits=[t.project_out(al.arg("v"))]))
    plain = t.evaluate(params, state, X)
    close(left(params, state, X, v=jnp.zeros(8)), plain)
    rows = jnp.zeros((2, 8)).at[1, 0].set(3.0)
    close(left(params, state, X, v=rows), plain.at[1, 0].set(0.0))


def test_what_no_layer_emits_is_told_with_what_is_near():
    model = al.serial(a=al.attention(2), head=al.dense(2))
    x = jnp.ones((1, 3, 8))
    params, state = jax.eval_shape(lambda: made(model, x))
    out, wrong = model["output"], model["a/wieghts"]
    for function in (
        al.compile(wrong), al.compile(out, edits=[wrong.scale(0.0)]),
        al.value_and_grads(out.sum(), wrt=wrong),
        al.compile(out, edits=[model["a"].set(al.on("other", wrong))]),
    ):  # fmt: skip
        more = {"other": x} if "other" in repr(function) else {}
        with pytest.raises(al.PathError, match="Nearest: 'a/weights'"):
            jax.eval_shape(partial(function, **more), params, state, x)
