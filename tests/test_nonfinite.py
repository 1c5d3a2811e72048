"""Where values and gradients become NaN or infinite: every place of every build."""

import re
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import axonlike as al

KEY = jax.random.key(0)
X = jax.random.normal(KEY, (3, 4))
FORWARD_NAN, BACKWARD_NAN, FORWARD_INF, BACKWARD_INF = 1, 2, 3, 4


@jax.custom_vjp
def spoil(x, on):
    nan = jnp.where(on == FORWARD_NAN, jnp.nan, 0.0)
    inf = jnp.where(on == FORWARD_INF, jnp.inf, 0.0)
    return x + jnp.broadcast_to((nan + inf).astype(x.dtype), x.shape)


def spoil_forward(x, on):
    return spoil(x, on), on


def spoil_backward(on, g):
    nan = jnp.where(on == BACKWARD_NAN, jnp.nan, 0.0)
    inf = jnp.where(on == BACKWARD_INF, jnp.inf, 0.0)
    return g + jnp.broadcast_to((nan + inf).astype(g.dtype), g.shape), jnp.ones_like(on)


spoil.defvjp(spoil_forward, spoil_backward)


@al.layer
def switchable():
    """The identity, until its param says which pass it spoils."""

    def init(key, x):
        return {"on": jnp.zeros(())}

    def apply(params, x):
        return spoil(x, params["on"])

    return init, apply


def bad():
    return switchable()


def wired(sub, x):
    return sub.b(jnp.tanh(sub.a(x)) + x)


def mean(y):
    return jnp.mean(y, axis=0)


def is_even(x):
    return x.shape[0] % 2 == 0


def third(x):
    return 2


def summed(y):
    return y["left"] + y["right"]


MODEL = al.serial(
    first=bad(),
    stacked=al.repeat(al.dense(4) >> bad(), 4),
    unrolled=al.repeat(al.dense(4) >> bad(), 2, stacked=False),
    nested=al.repeat(al.serial(outer=bad(), inner=al.repeat(bad(), 2)), 2),
    remat=al.remat(al.dense(4) >> bad()),
    remats=al.repeat(bad() >> al.dense(4), 2, remat=True),
    residual=al.residual(al.layer_norm() >> bad()),
    added=al.add(left=bad(), right=al.dense(4) >> bad()),
    heads=al.branch(left=bad(), right=al.dense(4)),
    pair=al.parallel(left=al.dense(4), right=bad()),
    join=summed,
    wire=al.wire(wired, a=bad(), b=bad()),
    members=al.ensemble(al.dense(4) >> bad(), 3),
    mean=mean,
    cond=al.cond(is_even, al.dense(4), al.dense(4) >> bad()),
    switch=al.switch(third, al.dense(4), bad(), bad() >> al.dense(4)),
    mixed=al.mixed(al.dense(4) >> bad(), jnp.bfloat16, jnp.float32),
    frozen=al.frozen(al.dense(4) >> bad()),
    vmap=al.vmap(bad()),
    tied=al.repeat(al.dense(4) >> bad(), 3, tied=True),
    last=al.dense(4) >> bad(),
)
PARAMS, STATE = MODEL.init(KEY, X)
SHAPES = [(p, a.shape) for p, a in al.paths(PARAMS, MODEL) if p.endswith("on")]
SITES = [
    (path, index)
    for path, shape in SHAPES
    for index in np.ndindex(*shape)
    if not path.startswith("switch/switchable/")  # the choice that is not run
]


def spoiled(path, index, how):
    """The params with one place switched on."""
    array = al.select(PARAMS, path)[path].at[index].set(how)
    return put(PARAMS, path.split("/"), array)


def put(tree, steps, value):
    first, *rest = steps
    return {**tree, first: put(tree[first], rest, value) if rest else value}


def at(path, index):
    """The place's path, with the number of its copy."""
    numbers = iter(index)
    steps = [str(next(numbers)) if s == "*" else s for s in path.split("/")]
    return "/".join(steps[:-1])


def iteration(path, how):
    """What is mapped or run again with one set of weights: the first in its pass."""
    last = how in (BACKWARD_NAN, BACKWARD_INF)
    if path.startswith(("vmap", "tied")):
        return (2 if last else 0,)
    return ()


def test_there_are_thirty_sites_and_more():
    assert len(SITES) >= 30


@pytest.mark.parametrize("how", [FORWARD_NAN, BACKWARD_NAN, FORWARD_INF, BACKWARD_INF])
@pytest.mark.parametrize(("path", "index"), SITES)
def test_a_number_that_is_not_finite_is_located(path, index, how):
    """JAX's jax_debug_nans names a primitive, and no layer, under every library."""
    report = al.locate_nonfinite(MODEL, spoiled(path, index, how), STATE, X)
    forward = how in (FORWARD_NAN, FORWARD_INF)
    found = report.forward if forward else report.backward
    assert found == report.first
    assert found.direction == ("forward" if forward else "backward")
    assert found.path == at(path, index)
    assert found.iteration == iteration(path, how)
    assert found.what == ("nan" if how in (FORWARD_NAN, BACKWARD_NAN) else "inf")
    assert found.layer == "switchable()"
    assert bool(report)
    assert forward or report.forward is None


def test_nothing_is_found_where_all_is_finite():
    report = al.locate_nonfinite(MODEL, PARAMS, STATE, X)
    assert not report
    assert (report.forward, report.backward, report.params) == (None, None, ())
    assert str(report).splitlines()[0] == "all values and gradients are finite"


def test_the_guard_says_the_same():
    block = al.dense(4) >> al.cond(is_even, al.dense(4), bad())
    model = al.serial(blocks=al.repeat(block, 3), last=bad())
    params, state = model.init(KEY, X)
    guard = jax.jit(al.nonfinite_guard(model))
    path = "blocks/*/cond/switchable/on"
    for how in (FORWARD_NAN, BACKWARD_INF):
        wrong = put(params, path.split("/"), jnp.zeros(3).at[1].set(how))
        ours = guard(wrong, state, X).report
        assert ours.first.path == "blocks/1/cond/switchable"
        assert str(ours) == str(al.locate_nonfinite(model, wrong, state, X))
    assert not guard(params, state, X).report
    assert str(guard(params, state, X).report) == "all values and gradients are finite"


# --- recurrences: the step


@al.layer
def running_sum():
    """Adds up what it sees; NaN where a sum passes 50."""

    def init(key, carry, x):
        return {"scale": jnp.ones(x.shape[-1:])}

    def apply(params, carry, x):
        y = carry + x * jnp.broadcast_to(params["scale"], x.shape)
        y = jnp.where(y > 50, jnp.log(-y), y)
        return y, y

    return al.Cell(init, apply, jnp.zeros_like)


def test_the_step_of_a_recurrence_is_told():
    model = al.serial(rnn=al.scan(running_sum()), head=al.dense(2))
    x = jnp.ones((2, 9, 3)).at[1, 5, 2].set(60.0)
    params, state = model.init(KEY, x)
    found = al.locate_nonfinite(model, params, state, x).forward
    assert (found.path, found.iteration, found.what) == ("rnn", (5,), "nan")
    assert str(found) == (
        "forward: nan in the output of rnn at iteration 5: running_sum()"
    )


@al.layer
def summed_roots():
    """Adds up roots: NaN of a number below 0, an infinite gradient at 0."""

    def init(key, carry, x):
        return {"scale": jnp.ones(x.shape[-1:])}

    def apply(params, carry, x):
        y = jnp.sqrt(x * jnp.broadcast_to(params["scale"], x.shape))
        return carry + y, y

    return al.Cell(init, apply, jnp.zeros_like)


ROOTS = al.scan(summed_roots())
MAPPED = al.vmap(al.vmap(al.remat(al.lift(jnp.sqrt))))
BACK = al.scan(summed_roots(), reverse=True)
# layer: (it, where the forward pass is spoilt first, where the backward pass)
IN_SCANS = {
    "scan": (ROOTS, ("rnn", (5,)), ("rnn", (5,))),
    "remat": (al.remat(ROOTS), ("rnn", (5,)), ("rnn", (5,))),
    "reverse": (BACK, ("rnn", (5,)), ("rnn", (5,))),
    # the other one sees it as the fourth of nine steps
    "both": (al.bidirectional(ROOTS), ("rnn/forward", (5,)), ("rnn/backward", (3,))),
    "copies": (
        al.repeat(ROOTS >> jnp.asarray, 2),
        ("rnn/0/summed_roots", (5,)),
        ("rnn/1/summed_roots", (5,)),
    ),
    "members": (al.ensemble(ROOTS, 2), ("rnn/0", (5,)), ("rnn/1", (5,))),
    "vmap": (MAPPED, ("rnn", (1, 5)), ("rnn", (1, 5))),
}


@pytest.mark.parametrize("name", IN_SCANS)
def test_the_step_is_told_of_both_passes(name):
    layer, forward, backward = IN_SCANS[name]
    model, x = al.serial(rnn=layer), jnp.ones((2, 9, 3))
    params, state = model.init(KEY, x)
    for value, wanted, what in ((-1.0, forward, "nan"), (0.0, backward, "inf")):
        spoilt = x.at[1, 5, 2].set(value)
        found = al.locate_nonfinite(model, params, state, spoilt).first
        assert (found.path, found.iteration, found.what) == (*wanted, what)
        assert found.direction == ("forward" if what == "nan" else "backward")


def test_the_step_inside_of_a_layer_of_the_catalogue():
    model = al.serial(embed=al.dense(3), rnn=al.rnn(4), head=al.dense(2))
    x = jnp.ones((2, 7, 3))
    params, state = model.init(KEY, x)
    spoilt = jax.tree.map(lambda a: a.at[(0,) * a.ndim].set(jnp.inf), params["rnn"])
    report = al.locate_nonfinite(model, {**params, "rnn": spoilt}, state, x)
    assert report.forward.path == "rnn"
    assert all(path.startswith("rnn/") for path in report.params)
    assert report.params


def test_the_example_of_a_mapped_layer_is_told():
    def log(x):
        return jnp.log(x)

    model = al.serial(rows=al.vmap(log), head=al.dense(2))
    x = jnp.ones((4, 3)).at[2, 1].set(-1.0)
    params, state = model.init(KEY, x)
    found = al.locate_nonfinite(model, params, state, x).forward
    assert (found.path, found.iteration) == ("rows", (2,))


# --- code that is no layer's


def test_the_code_of_a_wire_is_told_from_its_layers():
    def divide(sub, x):
        return sub.b(sub.a(x) / jnp.zeros((), x.dtype))

    model = al.serial(w=al.wire(divide, a=al.identity, b=al.dense(2)))
    params, state = model.init(KEY, X)
    found = al.locate_nonfinite(model, params, state, X).forward
    assert (found.path, found.what) == ("w", "inf")
    assert found.where == "its own code before b, by the code"


def test_what_a_residual_adds_up_may_overflow():
    model = al.serial(block=al.residual(al.lift(jnp.asarray, "same")), out=jnp.tanh)
    params, state = model.init(KEY, X)
    found = al.locate_nonfinite(model, params, state, jnp.full((2, 4), 3e38)).forward
    assert (found.path, found.what) == ("block", "inf")


def test_the_input_is_told():
    x = X.at[0, 0].set(jnp.nan)
    found = al.locate_nonfinite(MODEL, PARAMS, STATE, x).forward
    assert (found.path, found.what) == ("input", "nan")


def test_the_loss_is_told():
    model = al.serial(head=al.dense(1, kernel_init=al.initializers.zeros()))
    params, state = model.init(KEY, X)
    report = al.locate_nonfinite(model, params, state, X, loss=jnp.sqrt)
    assert report.forward is None
    assert (report.backward.path, report.backward.what) == ("loss", "inf")
    assert str(report.backward) == "backward: inf in the gradient of loss"


def test_a_loss_that_alone_is_not_finite_is_told():
    def entropy(y, target):  # of the target: nan, and no gradient
        return jnp.mean(y**2) + jnp.sum(target * jnp.log(target))

    model, target = al.dense(1), jnp.zeros(2)
    params, state = model.init(KEY, X)
    reports = [
        al.locate_nonfinite(model, params, state, X, target, loss=entropy),
        al.nonfinite_guard(model, entropy)(params, state, X, target).report,
    ]
    assert list(map(bool, reports)) == [True, True]
    assert {str(report) for report in reports} == {"forward: nan in the value of loss"}
    assert {report.first.path for report in reports} == {"loss"}


def test_state_that_is_not_finite_is_listed():
    model = al.serial(norm=al.batch_norm(), head=al.dense(1))
    params, state = model.init(KEY, X)
    state["norm"]["var"] = state["norm"]["var"].at[0].set(jnp.inf)
    x = jax.random.normal(KEY, (4, X.shape[-1]))
    report = al.nonfinite_guard(model)(params, state, x, train=True).report
    assert report
    assert report.first is None
    assert report.state == ("norm/var",)
    assert str(report).splitlines()[1] == "not finite in the state: norm/var"


def test_params_that_are_not_finite_are_listed():
    path = "stacked/*/dense/bias"
    array = al.select(PARAMS, path)[path].at[2].set(jnp.inf)
    params = put(PARAMS, path.split("/"), array)
    params = put(params, ["last", "switchable", "on"], jnp.float32(jnp.nan))
    report = al.locate_nonfinite(MODEL, params, STATE, X)
    assert report.params == ("last/switchable/on", "stacked/*/dense/bias")
    assert report.forward.path == "stacked/2/dense"


def test_a_gradient_of_params_alone_is_located():
    @jax.custom_vjp
    def scaled(x, w):
        return x * w

    scaled.defvjp(lambda x, w: (x * w, w), lambda w, g: (g * w, jnp.nan * w))

    @al.layer
    def leaf():
        def init(key, x):
            return {"w": jnp.ones(())}

        def apply(params, x):
            return scaled(x, jnp.broadcast_to(params["w"], x.shape))

        return init, apply

    model = al.serial(blocks=al.repeat(al.dense(4) >> leaf(), 3), head=al.dense(2))
    params, state = model.init(KEY, X)
    found = al.locate_nonfinite(model, params, state, X).backward
    assert (found.path, found.where) == ("blocks/2/leaf", "the gradient of w")


# --- what is silent


def test_params_with_zero_gradient_are_listed_and_frozen_ones_are_not():
    def detached(x):
        return jax.lax.stop_gradient(x)

    model = al.serial(
        frozen=al.frozen(al.dense(4)),
        blocks=al.repeat(al.dense(4), 2),
        stop=detached,
        head=al.dense(2),
    )
    params, state = model.init(KEY, X)
    report = al.locate_nonfinite(model, params, state, X)
    assert report.zero_gradients == (
        "blocks/0/bias", "blocks/1/bias", "blocks/0/kernel", "blocks/1/kernel",
    )  # fmt: skip
    assert "zero gradient: blocks/0/bias, " in str(report)


def test_dead_units_are_listed():
    model = al.serial(
        body=al.dense(6), relu=jax.nn.relu, blocks=al.repeat(al.dense(6), 2)
    )
    params, state = model.init(KEY, X)
    params["body"]["bias"] = params["body"]["bias"].at[jnp.array([1, 4])].set(-1e6)
    params["blocks"]["*"]["kernel"] = params["blocks"]["*"]["kernel"].at[1, :, 3].set(0)
    report = al.locate_nonfinite(model, params, state, X)
    assert report.dead_units["relu"] == tuple(
        np.flatnonzero((jax.nn.relu(model.part("body").predict(params, state, X)) == 0)
        .all(0)).tolist()
    )  # fmt: skip
    assert {1, 4} <= set(report.dead_units["relu"])
    assert report.dead_units["blocks/1"] == (3,)
    assert re.search(r"always zero: relu \(\d units\)", str(report))


# --- the guard


def loss(y, target):
    return (y - target) ** 2


def test_dead_units_are_those_of_all_examples_that_are_mapped():
    model = al.vmap(al.serial(dense=al.dense(3), relu=jax.nn.relu))
    params, state = model.init(KEY, X)
    params["dense"]["bias"] = jnp.array([-1e9, 0.0, 1e9])
    x = jnp.concatenate([X, -X])
    assert al.locate_nonfinite(model, params, state, x).dead_units == {"relu": (0,)}
    assert al.locate_nonfinite(model, params, state, x[:0]).dead_units == {}


def test_a_model_may_be_a_function_and_nothing_else():
    report = al.locate_nonfinite(jnp.sqrt, {}, {}, -X)
    assert str(report.forward) == (
        "forward: nan in the output of the model itself: jax.numpy.sqrt"
    )
    for door in (lambda m: al.locate_nonfinite(m, {}, {}, X), al.nonfinite_guard):
        with pytest.raises(TypeError, match="expected a layer or a function, got int"):
            door(3)


def test_the_guard_returns_what_hand_written_code_does():
    model = al.dense(8) >> al.batch_norm() >> al.dropout(0.5) >> al.dense(4)
    params, state = model.init(KEY, X)

    @jax.jit
    def plain(params, state, x, target):
        def objective(params):
            y, after = model.apply(params, state, x, key=KEY, train=True)
            return jnp.mean(loss(y, target)), (y, after)

        return jax.value_and_grad(objective, has_aux=True)(params)

    guard = jax.jit(al.nonfinite_guard(model, loss), static_argnames="train")
    out = guard(params, state, X, X, key=KEY, train=True)
    (value, (y, after)), grads = plain(params, state, X, X)
    expected = (value, grads, y, after)
    for ours, theirs in zip(
        jax.tree.leaves(tuple(out[:4])), jax.tree.leaves(expected), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)


def test_the_guard_looks_at_nothing_but_the_ends_while_all_is_finite():
    """Its program outside of the choice is the plain one and one number of each array."""
    guarded = jax.make_jaxpr(al.nonfinite_guard(MODEL))(PARAMS, STATE, X)
    names = [eqn.primitive.name for eqn in guarded.jaxpr.eqns]
    assert names.count("cond") == 1 + sum(
        eqn.primitive.name == "cond"
        for eqn in jax.make_jaxpr(jax.value_and_grad(total))(PARAMS).jaxpr.eqns
    )
    ends = [*jax.tree.leaves((PARAMS, STATE)), X, X]
    assert names.count("reduce_max") <= len(ends)


def total(params):
    return MODEL.predict(params, STATE, X).sum()


def test_off_it_costs_nothing():
    model = al.serial(blocks=al.repeat(al.dense(4) >> jnp.tanh, 2), head=al.dense(2))
    params, state = model.init(KEY, X)
    before = str(jax.make_jaxpr(model.apply)(params, state, X))
    al.locate_nonfinite(model, params, state, X)
    jax.clear_caches()
    assert str(jax.make_jaxpr(model.apply)(params, state, X)) == before
    assert "custom_vjp" not in before  # which a probe is


def test_the_guard_works_in_a_loop_of_steps():
    model = al.dense(4)
    params, state = model.init(KEY, X)
    guard = al.nonfinite_guard(model, loss)
    optimizer = optax.sgd(1e30)

    def step(params, _):
        out = guard(params, state, X, X)
        moved = jax.tree.map(lambda p, g: p - 1e30 * g, params, out.grads)
        return moved, out.report

    params, reports = jax.jit(lambda p: jax.lax.scan(step, p, None, length=4))(params)
    each = [jax.tree.map(lambda a, i=i: a[i], reports) for i in range(4)]
    assert [bool(report) for report in each] == [False, True, True, True]
    assert each[1].first is not None
    assert bool(reports)
    assert optimizer


def test_a_second_look_compiles_nothing():
    model = al.serial(body=al.dense(3), act=jnp.tanh)
    params, state = model.init(KEY, X)
    other = jax.tree.map(lambda a: a * 2, params)
    al.locate_nonfinite(model, params, state, X)
    with al.max_compiles(0):
        al.locate_nonfinite(model, other, state, X)


def test_integers_and_keys_are_left_alone():
    model = al.serial(emb=al.embedding(5, 4), drop=al.dropout(0.5), head=al.dense(2))
    ids = jnp.array([[0, 1], [2, 3]])
    params, state = model.init(KEY, ids)
    params["emb"]["embedding"] = params["emb"]["embedding"].at[3].set(jnp.nan)
    report = al.locate_nonfinite(model, params, state, ids, key=KEY, train=True)
    assert report.forward.path == "emb"
    assert report.params == ("emb/embedding",)


def test_a_model_that_returns_no_numbers_to_derive():
    model = al.serial(body=al.dense(4), pick=lambda x: jnp.argmax(x, -1))
    params, state = model.init(KEY, X)
    params["body"]["bias"] = params["body"]["bias"].at[0].set(jnp.inf)
    assert al.locate_nonfinite(model, params, state, X).forward.path == "body"


def test_low_precision_overflows_at_its_cast():
    model = al.serial(big=al.scale(), half=al.mixed(al.dense(4), jnp.float16))
    params, state = model.init(KEY, X)
    found = al.locate_nonfinite(model, params, state, X * 1e6).forward
    assert (found.path, found.what) == ("half", "inf")


def test_a_report_can_be_printed_inside_of_jit():
    model = al.dense(2)
    params, state = model.init(KEY, X)

    def look(params):
        return repr(al.nonfinite_guard(model)(params, state, X).report)

    seen = []
    jax.make_jaxpr(lambda p: seen.append(look(p)) or 0)(params)
    assert seen == ["<report of what is not finite>"]
    report = al.locate_nonfinite(model, params, state, X)
    assert repr(report) == "<all values and gradients are finite>"
    shape = jax.eval_shape(lambda: report)
    assert str(shape) == "report of what is not finite"


def test_options_that_only_seem_equal_are_told_apart():
    @al.layer
    def switchable():
        def init(key, x):
            return {}

        def apply(params, x, *, flag=0):
            return x / 0 if flag is True else x

        return init, apply

    found = [
        bool(al.locate_nonfinite(switchable(), {}, {}, X, options={"flag": flag}))
        for flag in (1, True)
    ]
    assert found == [False, True]


def test_train_is_known_before_it_is_traced():
    model = al.dense(2) >> al.dropout(0.5)
    params, state = model.init(KEY, X)
    guard = jax.jit(al.nonfinite_guard(model))
    with pytest.raises(TypeError, match="train: expected a Python bool, got a traced"):
        guard(params, state, X, key=KEY, train=True)
    with pytest.raises(TypeError, match="train: expected a Python bool, got str"):
        al.locate_nonfinite(model, params, state, X, train="yes")


@pytest.mark.parametrize("options", [3, None, ["flag"]])
def test_options_are_a_mapping(options):
    for door in (al.locate_nonfinite, al.nonfinite_guard(MODEL)):
        given = (MODEL, PARAMS) if door is al.locate_nonfinite else (PARAMS,)
        with pytest.raises(TypeError, match=r"options: expected \{name: value\}, got"):
            door(*given, STATE, X, options=options)
    with pytest.raises(al.PathError, match="options: nothing is called 3"):
        al.locate_nonfinite(MODEL, PARAMS, STATE, X, options={3: 1, "a": 2})


def test_what_is_no_array_is_told_by_the_name_of_the_argument():
    with pytest.raises(
        TypeError, match="locate_nonfinite: x: expected arrays, got str"
    ):
        al.locate_nonfinite(MODEL, PARAMS, STATE, "images")
    with pytest.raises(TypeError, match="args: expected arrays, got "):
        al.locate_nonfinite(MODEL, PARAMS, STATE, X, al.spec("b 4"), loss=loss)
    for wrong in (("images",), (X, "targets")):
        name = ("x", "args")[len(wrong) - 1]
        with pytest.raises(
            TypeError, match=f"nonfinite_guard: {name}: expected arrays"
        ):
            al.nonfinite_guard(MODEL, loss)(PARAMS, STATE, *wrong)
    with pytest.raises(TypeError, match="loss: expected one array, got str"):
        al.locate_nonfinite(al.identity, {}, {}, X, loss=lambda y: "mse")


def test_a_loss_is_a_function():
    with pytest.raises(TypeError, match="loss: expected a function of the predictions"):
        al.nonfinite_guard(MODEL, loss="mse")
    with pytest.raises(TypeError, match="loss: expected a function of the predictions"):
        al.locate_nonfinite(MODEL, PARAMS, STATE, X, loss=3)


@pytest.mark.parametrize(("found", "got"), [(None, "None"), ({"a": 1.0}, "{a: float}")])
def test_a_loss_is_one_array(found, got):
    model = al.dense(2)
    params, state = model.init(KEY, X)
    with pytest.raises(TypeError, match=re.escape(f"expected one array, got {got}.")):
        al.locate_nonfinite(model, params, state, X, loss=lambda y: found)


def test_a_loss_is_floating_point():
    with pytest.raises(TypeError, match="loss: expected floating-point numbers, got"):
        al.locate_nonfinite(al.identity, {}, {}, X, loss=lambda y: y > 0)


def test_debug_nans_does_not_get_in_the_way():
    model = al.serial(body=al.dense(4), log=jnp.log)
    params, state = model.init(KEY, X)
    with jax.debug_nans(True):
        report = al.locate_nonfinite(model, params, state, X)
    assert report.forward.path == "log"


# --- what the guard costs


def gpt_step(guarded):
    """A training step of a small GPT, with the guard or without."""
    width = 128
    attn = al.layer_norm() >> al.attention(4, causal=True)
    mlp = al.layer_norm() >> al.dense(4 * width) >> jax.nn.gelu >> al.dense(width)
    model = al.serial(
        emb=al.embedding(256, width),
        blocks=al.repeat(al.residual(attn) >> al.residual(mlp), 3, stacked=False),
        head=al.dense(256),
    )
    ids = jax.random.randint(KEY, (8, 64), 0, 256)
    params, state = model.init(KEY, ids)

    def cross_entropy(y, ids):
        return optax.softmax_cross_entropy_with_integer_labels(y, ids)

    def plain(params):
        def objective(params):
            y, after = model.apply(params, state, ids)
            return jnp.mean(cross_entropy(y, ids)), after

        (value, _), grads = jax.value_and_grad(objective, has_aux=True)(params)
        return value, grads, 0

    def watched(params):
        out = al.nonfinite_guard(model, cross_entropy)(params, state, ids, ids)
        return out.value, out.grads, out.report

    def step(params, opt_state):
        value, grads, report = (watched if guarded else plain)(params)
        updates, opt_state = optimizer.update(grads, opt_state)
        return optax.apply_updates(params, updates), opt_state, value, report

    with jax.numpy_dtype_promotion("standard"):
        optimizer = optax.adam(1e-3)
        compiled = jax.jit(step).lower(params, optimizer.init(params)).compile()
    return lambda: compiled(params, optimizer.init(params))


@pytest.mark.slow
def test_a_guarded_training_step_takes_less_than_a_tenth_more():
    """Processor time, in turn, so that what else the machine does matters little."""
    runs = {guarded: gpt_step(guarded) for guarded in (False, True)}
    times = {guarded: [] for guarded in runs}
    for i in range(40):
        for guarded in (False, True)[:: 1 if i % 2 else -1]:
            start = time.process_time()
            jax.block_until_ready(runs[guarded]())
            times[guarded].append(time.process_time() - start)
    assert statistics.median(times[True]) < 1.1 * statistics.median(times[False])
