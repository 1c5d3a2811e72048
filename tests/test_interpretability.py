"""What one does with activations: sweeps, ablation, attribution; unused, no cost."""

import operator
import sys
from functools import reduce
from pathlib import Path

import by_hand
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import zoo
from jax import lax

import axonlike as al

sys.path.insert(0, str(Path(__file__).parent / "benchmarks"))

KEY = jax.random.key(0)
X = jnp.asarray(np.random.default_rng(0).standard_normal((2, 4)), jnp.float32)


def close(a, b, **how):
    np.testing.assert_allclose(a, b, **({"rtol": 1e-5, "atol": 1e-6} | how))


# --- unused, it costs nothing: the text of the jaxpr is that of what one writes by hand


@al.layer
def lin():
    def init(key, x):
        return {"w": jax.random.normal(key, (x.shape[-1], x.shape[-1]))}

    def apply(params, x):
        return jnp.dot(x, params["w"])

    return init, apply


@al.layer
def summing():
    def init(key, carry, x):
        return {"w": jax.random.normal(key, (x.shape[-1], x.shape[-1]))}

    def apply(params, carry, x):
        y = carry + jnp.dot(x, params["w"])
        return y, y

    return al.Cell(init, apply, lambda x: jnp.zeros(x.shape, x.dtype))


def of(p, name, x):
    return jnp.dot(x, p[name]["w"])


def over_time(p, x):
    def step(carry, x):
        y = carry + jnp.dot(x, p["w"])
        return y, y

    xs = jnp.moveaxis(x, 1, 0)
    first = xs[0]
    start = jnp.zeros(first.shape, x.dtype)
    return jnp.moveaxis(lax.scan(step, start, xs)[1], 0, 1)


def stacked(p, x):
    return lax.scan(lambda x, q: (jnp.dot(x, q["w"]), None), x, p["*"], length=3)[0]


def half(p, x):
    w = p["w"].astype(jnp.bfloat16)
    return jnp.dot(x.astype(jnp.bfloat16), w).astype(jnp.float32)


def positive(x):
    return jnp.sum(x) > 0


def number(x):
    return jnp.argmax(x[0])


TWO = {"a": lin(), "b": lin()}
CASES = {
    "serial": (al.serial(**TWO), X, lambda p, x: of(p, "b", of(p, "a", x))),
    "branch": (al.branch(**TWO), X, lambda p, x: {n: of(p, n, x) for n in "ab"}),
    "parallel": (
        al.parallel(lin(name="a"), lin(name="b")), (X, X),
        lambda p, x: (of(p, "a", x[0]), of(p, "b", x[1])),
    ),
    "add": (al.add(**TWO), X, lambda p, x: of(p, "a", x) + of(p, "b", x)),
    "multiply": (al.multiply(**TWO), X, lambda p, x: of(p, "a", x) * of(p, "b", x)),
    "concatenate": (
        al.concatenate(**TWO), X,
        lambda p, x: jnp.concatenate([of(p, "a", x), of(p, "b", x)], -1),
    ),
    "residual": (al.residual(lin()), X, lambda p, x: x + jnp.dot(x, p["w"])),
    "shared": (
        al.shared(lin()), (X, X), lambda p, x: tuple(jnp.dot(each, p["w"]) for each in x)
    ),
    "wire": (
        al.wire(lambda sub, x: sub.b(sub.a(sub.a(x))), **TWO), X,
        lambda p, x: of(p, "b", of(p, "a", of(p, "a", x))),
    ),
    "repeat": (al.repeat(lin(), 3), X, stacked),
    "repeat unrolled": (
        al.repeat(lin(), 3, stacked=False), X,
        lambda p, x: reduce(lambda x, i: of(p, str(i), x), range(3), x),
    ),
    "repeat tied": (
        al.repeat(lin(), 3, tied=True), X,
        lambda p, x: lax.scan(
            lambda x, _: (jnp.dot(x, p["w"]), None), x, None, length=3)[0],
    ),
    "scan": (al.scan(summing()), X[None], over_time),
    "bidirectional": (
        al.bidirectional(al.scan(summing())), X[None],
        lambda p, x: jnp.concatenate([
            over_time(p["forward"], x),
            jnp.flip(over_time(p["backward"], jnp.flip(x, 1)), 1),
        ], -1),
    ),
    "ensemble": (
        al.ensemble(lin(), 3), X,
        lambda p, x: jax.vmap(lambda q: jnp.dot(x, q["w"]))(p["*"]),
    ),
    "vmap": (
        al.vmap(lin()), X[None],
        lambda p, x: jax.vmap(lambda x: jnp.dot(x, p["w"]))(x),
    ),
    "remat": (
        al.remat(lin()), X,
        jax.checkpoint(lambda p, x: jnp.dot(x, p["w"])),
    ),
    "frozen": (al.frozen(lin()), X, lambda p, x: jnp.dot(x, lax.stop_gradient(p["w"]))),
    "mixed": (
        al.mixed(lin(), jnp.bfloat16, jnp.float32), X,
        half,
    ),
    "cond": (
        al.cond(positive, lin(name="f"), lin(name="g")), X,
        lambda p, x: lax.cond(
            positive(x), lambda x: of(p, "f", x), lambda x: of(p, "g", x), x),
    ),
    "switch": (
        al.switch(number, lin(name="f"), lin(name="g")), X,
        lambda p, x: lax.switch(
            number(x), [lambda x: of(p, "f", x), lambda x: of(p, "g", x)], x),
    ),
    "tie": (
        al.tie(al.serial(**TWO), {"b/w": "a/w"}), X,
        lambda p, x: of(p, "a", of(p, "a", x)),
    ),
    "on_item": (
        al.on_item(1, lin()), (X, X), lambda p, x: (x[0], jnp.dot(x[1], p["w"]))
    ),
    "pick": (al.pick(1) >> lin(), (X, X), lambda p, x: of(p, "lin", x[1])),
    "between": (
        al.between(al.serial(a=lin(), b=lin(), c=lin()), "a", "b"), X,
        lambda p, x: of(p, "b", x),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_unused_the_jaxpr_is_that_of_what_one_writes_by_hand(name):
    model, x, written = CASES[name]
    params, state = model.init(KEY, x)

    def apply(params, x):
        return model.predict(params, state, x)

    ours, theirs = (str(jax.make_jaxpr(f)(params, x)) for f in (apply, written))
    assert ours == theirs


def test_every_combinator_is_among_them():
    made = {name: getattr(getattr(al, name), "__module__", "") for name in al.__all__}
    home = "axonlike.combinators"
    combinators = {name for name, module in made.items() if module.startswith(home)}
    assert combinators | {"between"} == {case.partition(" ")[0] for case in CASES}


@pytest.mark.parametrize("name", zoo.MODELS)
def test_whole_models_are_what_their_layers_make_by_hand(name):
    model, spec = zoo.MODELS[name]()
    x = jax.tree.map(sized, spec)
    params, state = jax.eval_shape(lambda: model.init(KEY, x))
    written = getattr(by_hand, name)
    ours, theirs = (
        str(jax.make_jaxpr(f)(params, state, x)) for f in (model.predict, written)
    )
    assert ours == theirs


def sized(spec):
    """A batch of 2; 9 of what is open besides."""
    sizes = [n if isinstance(n, int) else 9 for n in spec.shape[1:]]
    return jax.ShapeDtypeStruct((2, *sizes), spec.dtype)


# --- sweeps


def blocks(n, width, *, bias=True):
    dense = al.dense(width, use_bias=bias)
    norm = [al.layer_norm()] if bias else []
    body = al.serial(*norm, dense, *([jax.nn.relu] if bias else [])).named("mlp")
    return al.serial(
        blocks=al.repeat(al.residual(body), n), head=al.dense(2, use_bias=bias)
    )


def swept(layers, positions, width, batch):
    """A sweep of patches as one `vmap`, and one jitted call for each patch."""
    model = blocks(layers, width)
    x = jax.random.normal(KEY, (batch, positions, width))
    params, state = model.init(KEY, x)
    site = model["blocks", al.index("k"), "mlp"][:, al.arg("j")]
    value = model["output"].mean()
    patched = al.compile(value, edits=[site.set(al.arg("v"))])

    def one(k, j, v):
        return patched(params, state, x, k=k, j=j, v=v)

    single, v = jax.jit(one), jnp.ones((batch, width))
    grid = jax.jit(jax.vmap(jax.vmap(one, (None, 0, None)), (0, None, None)))
    ks, js = jnp.arange(layers), jnp.arange(positions)

    def loop():
        return jnp.stack([jnp.stack([single(k, j, v) for j in js]) for k in ks])

    return grid, single, (lambda: grid(ks, js, v)), loop


def test_a_sweep_is_the_loop_and_each_is_compiled_once():
    grid, single, sweep, loop = swept(12, 16, 8, 1)
    close(sweep(), loop(), rtol=1e-4)
    assert grid._cache_size() == single._cache_size() == 1


@pytest.mark.slow
def test_a_sweep_is_five_times_as_fast_as_its_calls():
    """12 layers by 16 positions, so narrow that a call costs more than its arithmetic.

    The arithmetic is the same either way: in a wide net it is all there is, and the bound
    that holds at any width is that of the next test.
    """
    from timing import paired

    _, _, sweep, loop = swept(12, 16, 8, 1)
    ratio = paired({"sweep": sweep, "loop": loop}, "sweep", rounds=5)["loop"]
    assert ratio < 1 / 5


def test_a_sweep_computes_what_as_many_runs_without_patches_do():
    grid, model = swept(12, 16, 32, 1)[0], blocks(12, 32)
    x = jax.random.normal(KEY, (12 * 16, 16, 32))
    params, state = model.init(KEY, x)
    arrays = jnp.arange(12), jnp.arange(16), jnp.ones((1, 32))
    sweep, plain = grid.lower(*arrays), jax.jit(model.predict).lower(params, state, x)
    one, other = (p.compile().cost_analysis()["flops"] for p in (sweep, plain))
    assert one < 1.1 * other


# --- ablation


def test_mlps_taken_out_or_put_to_their_means():
    model = al.serial(embed=al.dense(4), rest=blocks(3, 4))
    params, state = model.init(KEY, X)
    embed, mlps = al.compile((model["embed"], model["rest/blocks/*/mlp"]))(
        params, state, X
    )
    head = model.part("rest/head")
    out, every = model["output"], model["rest/blocks/*/mlp"]
    zero = al.compile(out, edits=[every.scale(0.0)])(params, state, X)
    close(zero, head.predict(params, state, embed))
    means = [mlps[i].mean(0) for i in range(3)]
    at = [model[f"rest/blocks/{i}/mlp"].set(mean) for i, mean in enumerate(means)]
    mean = al.compile(out, edits=at)(params, state, X)
    sums = embed + jnp.broadcast_to(sum(means), embed.shape)
    close(mean, head.predict(params, state, sums))


# --- every site of whole models


def random_like(spec):
    shape = tuple(n if isinstance(n, int) else 2 for n in spec.shape)
    if jnp.issubdtype(spec.dtype, jnp.integer):
        return jax.random.randint(KEY, shape, 0, 10)
    return jax.random.normal(KEY, shape, spec.dtype)


IN_CI = ("siamese", "experts", "gpt")
SLOW = [pytest.param(n, marks=pytest.mark.slow) for n in zoo.MODELS if n not in IN_CI]


@pytest.mark.parametrize("name", [*IN_CI, *SLOW])
def test_a_models_own_values_put_at_all_of_its_sites_change_nothing(name):
    model, spec = zoo.MODELS[name]()
    x = jax.tree.map(random_like, spec)
    params, state = model.init(KEY, x)
    found = [model[path] for path in model.sites(x)]
    edits = [site.set(al.on("same", site.fill(0))) for site in found]
    edited = al.compile(model["output"], edits=edits)

    @jax.jit
    def run(params, state, x):
        return edited(params, state, x, same=x), model.predict(params, state, x)

    for a, b in zip(*map(jax.tree.leaves, run(params, state, x)), strict=True):
        assert jnp.abs(a - b).max() <= 1e-6 * max(1, jnp.abs(b).max())


# --- attribution patching


def estimates(model, sites, metric, params, state, clean, broken):
    """`(clean - broken) . gradient` in the broken run, for each site."""
    read = al.compile(sites)
    right, wrong = read(params, state, clean), read(params, state, broken)
    _, grads = al.value_and_grads(metric, wrt=sites)(params, state, broken)
    return [jnp.sum((a - b) * g) for a, b, g in zip(right, wrong, grads, strict=True)]


def effects(sites, metric, params, state, clean, broken):
    """What each patch alone changes."""
    before = al.compile(metric)(params, state, broken)
    patched = [al.compile(metric, [s.set(al.on("clean", s))]) for s in sites]
    return [f(params, state, broken, clean=clean) - before for f in patched]


def test_attribution_patching_is_exact_in_a_linear_net():
    model = blocks(4, 4, bias=False)
    params, state = model.init(KEY, X)
    sites = [model[f"blocks/{i}/mlp"] for i in range(4)]
    metric, broken = model["output"][:, 0].sum(), jnp.flip(X, 0) * 2
    arguments = metric, params, state, X, broken
    close(estimates(model, sites, *arguments), effects(sites, *arguments), rtol=1e-3)


def digits_net(seed):
    """The digits, a net of two convs and two denses trained on them, its accuracy."""
    datasets = pytest.importorskip("sklearn.datasets")
    images, labels = datasets.load_digits(return_X_y=True)
    x = jnp.asarray(images.reshape(-1, 8, 8, 1) / 16, jnp.float32)
    labels = jnp.asarray(labels, jnp.int32)
    relu = jax.nn.relu
    model = al.serial(
        c1=al.conv(8, 3) >> relu, c2=al.conv(16, 3, strides=2) >> relu,
        flat=al.flatten(), d1=al.dense(32) >> relu, logits=al.dense(10),
    )  # fmt: skip
    params, state = model.init(jax.random.key(seed), x[:1])
    optimizer = optax.adam(3e-3)

    def step(carry, rows):
        def loss(params):
            logits = model.predict(params, state, x[rows])
            return optax.softmax_cross_entropy_with_integer_labels(
                logits, labels[rows]
            ).mean()

        params, opt_state = carry
        updates, opt_state = optimizer.update(jax.grad(loss)(params), opt_state)
        return (optax.apply_updates(params, updates), opt_state), None

    rows = jax.random.randint(jax.random.key(seed + 1), (400, 64), 0, 1437)
    carry = (params, optimizer.init(params))
    (params, _), _ = jax.jit(lambda c, r: lax.scan(step, c, r))(carry, rows)
    said = jax.jit(model.predict)(params, state, x[1437:]).argmax(-1)
    return model, params, state, x[1437:], labels[1437:], (said == labels[1437:]).mean()


def test_attribution_patching_goes_with_patching_in_a_trained_net():
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        model, params, state, x, labels, accuracy = digits_net(0)
    assert accuracy > 0.9
    pairs = [(int(jnp.argmax(labels == k)), int(jnp.argmax(labels == (k + 3) % 10)))
             for k in range(10)]  # fmt: skip
    clean, broken = (x[jnp.array(side)] for side in zip(*pairs, strict=True))
    right = np.array([int(labels[i]) for i, _ in pairs])
    c2 = model["c2"]
    rows = jnp.arange(10)
    metric = model["output"][rows, right].sum()
    patch = c2[..., al.arg("channel")].set(al.on("clean", c2[..., al.arg("channel")]))
    logit = al.compile(model["output"][rows, right])
    patched = al.compile(model["output"][rows, right], edits=[patch])

    @jax.jit
    def both(params, state):
        def one(channel):
            return patched(params, state, broken, clean=clean, channel=channel)

        exact = jax.vmap(one)(jnp.arange(16)) - logit(params, state, broken)[None]
        _, slope = al.value_and_grads(metric, wrt=c2)(params, state, broken)
        read = al.compile(c2)
        difference = read(params, state, clean) - read(params, state, broken)
        return exact, jnp.einsum("bhwc,bhwc->cb", difference, slope)

    exact, estimate = both(params, state)
    r = np.corrcoef(np.ravel(exact), np.ravel(estimate))[0, 1]
    assert r > 0.5


# --- expressions are values


def test_operands_stay_as_they_were():
    model = blocks(2, 4)
    a, b = model["blocks"], model["head"]
    before = repr(a), hash(a), repr(b), hash(b)
    for sign in (operator.sub, operator.mul, operator.add):
        sign(a, b), sign(2, a)
    a.set(b), a.mean(), a[0]
    assert (repr(a), hash(a), repr(b), hash(b)) == before
    with pytest.raises(AttributeError):
        a.other = 1


def test_one_objective_for_three_models_traces_none_of_them_again():
    objective = al.site("head").map(seen).mean()
    made = [blocks(n, 4) for n in (1, 2, 3)]
    trees = [model.init(KEY, X) for model in made]
    del TRACED[:]
    for _ in range(2):
        for model, (params, state) in zip(made, trees, strict=True):
            jax.jit(al.compile(objective, model=model))(params, state, X)
    assert len(TRACED) == 3


TRACED = []


def seen(value):
    TRACED.append(1)
    return value
