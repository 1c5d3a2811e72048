"""Precision: dtypes of params, products, norms and softmax; the audit of casts."""

import jax
import jax.numpy as jnp
import pytest

import axonlike as al

KEY = jax.random.key(0)
TOKENS = jnp.arange(6).reshape(2, 3)
BF16, F32 = jnp.bfloat16, jnp.float32


def gpt(**how):
    block = al.residual(al.layer_norm() >> al.attention(2, causal=True)) >> al.residual(
        al.rms_norm() >> al.dense(16) >> jax.nn.gelu >> al.dense(8)
    )
    return al.serial(
        emb=al.embedding(11, 8),
        blocks=al.repeat(block, 2, **how),
        norm=al.layer_norm(),
        head=al.dense(11),
    )


def equations(jaxpr, outer=""):
    for equation in jaxpr.eqns:
        scope = f"{outer}/{equation.source_info.name_stack}"
        yield scope, equation
        for value in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda v: hasattr(v, "jaxpr")
        ):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from equations(inner, scope)


@pytest.mark.parametrize("stacked", [True, False])
def test_a_policy_of_bfloat16_lowers_products_and_leaves_norms_and_softmax(stacked):
    model = al.precision(gpt(stacked=stacked), params=F32, compute=BF16, output=F32)
    params, state = model.init(KEY, TOKENS)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(F32)}
    assert model.predict(params, state, TOKENS).dtype == F32

    def loss(params):
        return (model.predict(params, state, TOKENS) ** 2).sum()

    sums, products = [], []
    jaxpr = jax.make_jaxpr(jax.value_and_grad(loss))(params).jaxpr
    for scope, equation in equations(jaxpr):
        dtypes = {str(v.aval.dtype) for v in equation.invars}
        if equation.primitive.name == "dot_general":
            products.append(dtypes)
        inside = "norm" in scope or "attention" in scope
        if equation.primitive.name in ("reduce_sum", "reduce_max", "exp") and inside:
            forward = "transpose" not in scope
            sums += [dtypes] if forward else []
    assert products
    assert all("float32" not in dtypes for dtypes in products)
    assert sums
    assert all(dtypes == {"float32"} for dtypes in sums)


def test_params_are_stored_as_the_policy_says():
    model = al.precision(gpt(), params=BF16)
    params, state = model.init(KEY, TOKENS)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(BF16)}
    shapes, _ = jax.eval_shape(lambda: model.init(KEY, al.spec("b t", int)))
    assert jax.tree.map(lambda a: a.dtype, shapes) == jax.tree.map(
        lambda a: a.dtype, params
    )
    plain, _ = gpt().init(KEY, TOKENS)
    rounded = jax.tree.map(lambda a: a.astype(BF16), plain)
    assert jax.tree.all(jax.tree.map(jnp.array_equal, params, rounded))
    assert model.predict(params, state, TOKENS).dtype == BF16


def test_a_part_of_a_model_has_its_own_policy():
    model = al.precision(gpt(), compute=BF16, output=F32, where="blocks")
    params, state = model.init(KEY, TOKENS)
    found = {cast.path.split("/")[0] for cast in al.casts(model, TOKENS)}
    assert found == {"blocks"}
    assert model.predict(params, state, TOKENS).dtype == F32
    assert eval(repr(model), {"al": al, "jax": jax}) == model
    with pytest.raises(al.PathError):
        al.precision(gpt(), compute=BF16, where="block")


def test_integers_keep_their_dtype():
    seen = []

    def look(x):
        seen.append(x.dtype)
        return x

    al.precision(al.lift(look), compute=BF16).output_spec(al.spec("b", int))
    assert seen == [jnp.int32]


def test_the_audit_lists_every_cast_with_its_path():
    model = al.precision(al.serial(a=al.dense(8), b=al.layer_norm()), compute=BF16)
    rows = [str(cast) for cast in al.casts(model, (3, 4))]
    assert "a/kernel: float32[4, 8] -> bfloat16" in rows
    assert any(row.startswith("b: bfloat16[3, 8] -> float32") for row in rows)
    assert al.casts(gpt(), TOKENS) == []
    stacked = al.precision(gpt(), compute=BF16)
    arrays = {path for path, _ in al.paths(stacked.init(KEY, TOKENS)[0])}
    assert arrays <= {cast.path for cast in al.casts(stacked, TOKENS)}
    mapped = al.precision(al.serial(v=al.vmap(al.layer_norm())), compute=BF16)
    assert {cast.path for cast in al.casts(mapped, (2, 3, 4))} == {
        "",
        "v",
        "v/scale",
        "v/bias",
    }


def test_a_dtype_is_floating():
    with pytest.raises(TypeError, match="expected a floating-point dtype"):
        al.precision(gpt(), params=jnp.int32)


def test_complex_is_no_precision():
    with pytest.raises(TypeError, match="expected a floating-point dtype"):
        al.precision(gpt(), compute=jnp.complex64)
