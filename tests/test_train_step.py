"""The training step: what it trains, with which losses, on batches of which size."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import axonlike as al
from axonlike.training.batch import padded

KEY = jax.random.key(0)
ADAMW = optax.adamw(1e-2, weight_decay=0.1)
rng = np.random.default_rng(0)
X = rng.normal(size=(24, 4)).astype(np.float32)
LABELS = ((X[:, 0] > 0).astype(np.int32) + (X[:, 1] > 0)).astype(np.int32)
BATCH = X, LABELS


@pytest.fixture(autouse=True)
def as_optax_needs(strict):
    with jax.numpy_dtype_promotion("standard"):
        yield


def loss(y, batch):
    return optax.softmax_cross_entropy_with_integer_labels(y, batch[1])


def mean_loss(y, batch):
    return loss(y, batch).mean()


def network(*between):
    return al.serial(
        al.dense(8, name="body"), jax.nn.relu, *between, al.dense(3, name="head")
    )


def started(model, *args, key=None, **options):
    step = al.train_step(model, *(args or (loss, ADAMW)), **options)
    params, state = model.init(KEY, (None, 4))
    return step, step.start(params, state, key=key)


def taken(step, ts, data):
    for batch in data:
        ts, logs = step(ts, batch)
    return ts, logs


def assert_close(a, b, atol=1e-6):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=atol), a, b)


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def message_of(kind, run, *args):
    """What an error says."""
    try:
        run(*args)
    except kind as error:
        return str(error)
    return pytest.fail(f"no {kind.__name__}")


# --- the state


def test_a_step_is_what_optax_does_by_hand():
    model = network(al.batch_norm(), al.dropout(0.1))
    step, ts = started(model, key=KEY)
    params, state = model.init(KEY, (None, 4))
    opt_state = ADAMW.init(params)

    @jax.jit
    def by_hand(params, state, opt_state, key):
        def total(params):
            y, after = model.apply(params, state, X, key=key, train=True)
            return loss(y, BATCH).mean(), after

        (value, after), grads = jax.value_and_grad(total, has_aux=True)(params)
        updates, opt_state = ADAMW.update(grads, opt_state, params)
        return value, optax.apply_updates(params, updates), after, opt_state

    for i in range(3):
        key = jax.random.fold_in(KEY, i)
        value, params, state, opt_state = by_hand(params, state, opt_state, key)
        ts, logs = step(ts, BATCH)
        np.testing.assert_allclose(logs["loss"], value, rtol=1e-5)
    assert_close((ts.params, ts.model_state), (params, state), 1e-5)
    assert_close(ts.opt_state, opt_state, 1e-5)
    assert int(ts.step) == 3


def test_a_state_has_the_fields_that_are_promised():
    _, ts = started(network(), key=KEY)
    names = ("step", "params", "model_state", "opt_state", "key", "ema", "loss_scale")
    assert ts._fields == names
    assert (ts.ema, ts.loss_scale) == (None, None)
    assert ts.step.dtype == jnp.int32


def test_a_step_gives_away_its_state_and_nothing_that_is_the_callers():
    model = network()
    params, state = model.init(KEY, (None, 4))
    step = al.train_step(model, loss, ADAMW, ema=0.9)
    first = step.start(params, state, key=KEY)
    step(first, BATCH)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(first.params))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves((params, KEY)))
    assert np.isfinite(params["head"]["kernel"]).all()


def test_a_state_starts_from_shapes_alone():
    model = network()
    params, state = jax.eval_shape(lambda: model.init(KEY, (None, 4)))
    step = al.train_step(model, loss, ADAMW)
    ts = jax.eval_shape(step.start, params, state, key=KEY)
    assert ts.opt_state[0].mu["head"]["kernel"].shape == (8, 3)
    assert "dot_general" in step.lower(ts, BATCH).as_text()


def test_steps_without_a_key_need_one_only_for_what_draws():
    step, ts = started(network(al.dropout(0.5)))
    with pytest.raises(ValueError, match="key"):
        step(ts, BATCH)


def test_each_step_has_a_key_of_its_own():
    step, ts = started(network(al.dropout(0.5)), loss, optax.sgd(0.0), key=KEY)
    losses = []
    for _ in range(3):
        ts, logs = step(ts, BATCH)
        losses.append(float(logs["loss"]))
    assert len(set(losses)) == 3
    assert ts.key == KEY


# --- compiled once


def slow(*case):
    return pytest.param(*case, marks=pytest.mark.slow)


USES = {
    "plain": {},
    "metrics": {"metrics": al.metrics.accuracy()},
    "accumulated": {"accumulate": 2},
    "dynamic": {"precision": jnp.bfloat16, "loss_scale": "dynamic"},
    "part": {"where": "head", "ema": 0.9},
    "aux": {"aux": {"**/kernel": 1e-3}, "remat": True},
}


@pytest.mark.parametrize(
    "name", ["metrics", "accumulated", *map(slow, ("plain", "dynamic", "part", "aux"))]
)
def test_nothing_is_compiled_after_the_first_step(name):
    step, ts = started(network(al.batch_norm()), key=KEY, **USES[name])
    data = al.batches(BATCH, 10, key=1)  # 10, 10 and 4 rows
    with al.ledger() as first:
        ts, _ = step(ts, next(iter(data)))
    with al.ledger() as after:
        ts, logs = taken(step, ts, [*data, *data])
    assert first.compiles >= 1
    assert after.compiles == 0
    assert np.isfinite(float(logs["loss"]))


def test_injected_hyperparameters_do_not_compile_anew():
    optimizer = optax.inject_hyperparams(optax.adam)(learning_rate=0.1)
    step, ts = started(network(), loss, optimizer)
    ts, _ = step(ts, BATCH)
    with al.ledger() as after:
        step(ts, BATCH)
    assert after.compiles == 0


# --- short batches


@pytest.mark.parametrize(("loss", "accumulate"), [(loss, 2), (mean_loss, 1)])
def test_a_short_batch_trains_as_if_it_were_not_filled_up(loss, accumulate):
    options = {"metrics": al.metrics.f1(3), "aux": {"**/kernel": 1e-2}}
    step, ts = started(network(), loss, ADAMW, **options)
    options |= {"batch_size": 12, "accumulate": accumulate}
    filled, other = started(network(), loss, ADAMW, **options)
    for part in (slice(12), slice(12, 16)):
        ts, logs = step(ts, (X[part], LABELS[part]))
        other, same = filled(other, (X[part], LABELS[part]))
        assert_close(dict(logs), dict(same))
    assert_close(ts.params, other.params)


def test_rows_that_fill_up_a_batch_do_not_enter_a_batch_norm():
    model = network(al.batch_norm(momentum=0.5))
    step, ts = started(model)
    filled, other = started(model, batch_size=24)
    part = X[:7], LABELS[:7]
    assert_close(step(ts, part)[0].model_state, filled(other, part)[0].model_state)


def test_a_last_batch_of_batches_is_filled_up():
    step, ts = started(network())
    data = list(al.batches(BATCH, 10))
    assert [len(x) for x, _ in data] == [10, 10, 4]
    plain, other = started(network())
    ts, logs = taken(step, ts, data)
    other, same = taken(plain, other, [tuple(batch) for batch in data])
    np.testing.assert_allclose(logs["loss"], same["loss"], rtol=1e-6)
    assert_close(ts.params, other.params)


def test_losses_of_a_sequence_are_masked_by_the_batch():
    model = al.dense(3)
    mask = rng.random((4, 6)) < 0.5
    x = rng.normal(size=(4, 6, 4)).astype(np.float32)
    labels = rng.integers(0, 3, (4, 6))
    batch = {"inputs": x, "targets": labels, "mask": mask}

    def each(y, batch):
        return optax.softmax_cross_entropy_with_integer_labels(y, batch["targets"])

    metrics = al.metrics.accuracy()
    step, ts = started(model, each, ADAMW, metrics=metrics, batch_size=6, accumulate=2)
    y = model.predict(*model.init(KEY, (None, 4)), x)
    ts, logs = step(ts, batch)
    np.testing.assert_allclose(logs["loss"], each(y, batch)[mask].mean(), rtol=1e-6)
    right = (np.argmax(y, -1) == labels)[mask]
    np.testing.assert_allclose(logs["accuracy"], right.mean(), rtol=1e-6)


def test_a_loss_that_is_no_mean_cannot_be_filled_up():
    step, ts = started(network(), lambda y, b: loss(y, b).sum(), ADAMW, batch_size=8)
    said = message_of(ValueError, step, ts, (X[:5], LABELS[:5]))
    assert said == (
        "loss: one number for a batch, and not the mean over its examples, so a batch "
        "that is filled up has none. Return one number for each example, or leave "
        "batch_size out, so that short batches are run as they are."
    )


def weighed(values, weights):
    return jnp.sum(values * weights) / jnp.maximum(jnp.sum(weights), 1e-6)


def entropy(y, labels):
    return optax.softmax_cross_entropy_with_integer_labels(y, jnp.maximum(labels, 0))


NO_MEANS = {
    "mask": lambda y, b: weighed(entropy(y, b["label"]), b["kept"]),
    "weights": lambda y, b: weighed(entropy(y, b["label"]), b["weight"]),
    "pad 0": lambda y, b: weighed(entropy(y, b["label"]), b["label"] != 0),
    "ignore -1": lambda y, b: weighed(entropy(y, b["label"]), b["label"] != -1),
    "ignore -100": lambda y, b: weighed(entropy(y, b["label"]), b["label"] > -100),
    "classes": lambda y, b: weighed(
        entropy(y, b["label"]), jnp.array([1.0, 1.0, 5.0])[b["label"]]
    ),
    "root": lambda y, b: jnp.sqrt(jnp.mean(entropy(y, b["label"]))),
}


@pytest.mark.parametrize(
    "case",
    [
        "mask",
        "ignore -1",
        "classes",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("weights", "pad 0", "ignore -100", "root")
        ),
    ],
)
def test_a_loss_that_leaves_something_out_is_no_mean(case):
    labels = rng.integers(0, 3, (10, 6))
    labels[::3, :4] = {"ignore -1": -1, "ignore -100": -100}.get(case, 0)
    batch = {
        "inputs": rng.normal(size=(10, 6, 4)).astype(np.float32),
        "label": labels,
        "kept": rng.random((10, 6)) < np.linspace(0.2, 1, 10)[:, None],
        "weight": rng.random((10, 6)).astype(np.float32),
    }
    step, ts = started(al.dense(3), NO_MEANS[case], optax.sgd(0.0))
    y = step.model.predict(ts.params, ts.model_state, batch["inputs"])
    for part, first in zip(al.batches(batch, 4), (0, 4, 8), strict=True):
        ts, logs = step(ts, part)
        whole = NO_MEANS[case](y[first : first + 4], part)
        np.testing.assert_allclose(logs["loss"], whole, rtol=1e-5)


@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16])
def test_a_mean_over_examples_is_filled_up(dtype):
    def mean(y, batch):
        return jnp.mean(entropy(y.astype(dtype), batch[1]))

    step, ts = started(network(), mean, ADAMW, batch_size=10)
    assert step(ts, (X[:5], LABELS[:5]))[1]["loss"] > 0


def test_what_is_of_a_whole_batch_cannot_be_filled_up():
    model = al.serial(router=routed(3))
    aux = {"router/balance": 1.0}
    step, ts = started(model, loss, ADAMW, aux=aux, batch_size=10)
    assert message_of(ValueError, step, ts, (X[:6], LABELS[:6])) == (
        "aux: what 'router/balance' emits is taken of a whole batch, and this one is "
        "filled up. Emit one number for each example and give it a weight, or leave "
        "batch_size out, so that short batches are run as they are."
    )


@pytest.mark.parametrize("case", ["loss", "aux"])
def test_batches_that_cannot_be_filled_up_are_run_as_they_are(case):
    function = loss if case == "aux" else lambda y, b: loss(y, b).sum()
    aux = {"router/balance": 1.0} if case == "aux" else None
    step, ts = started(al.serial(router=routed(3)), function, ADAMW, aux=aux)
    other = started(al.serial(router=routed(3)), function, ADAMW, aux=aux)[1]
    for batch in al.batches(BATCH, 10):
        ts, logs = step(ts, batch)
        other, same = step(other, tuple(batch))
        np.testing.assert_array_equal(logs["loss"], same["loss"])
    assert_same(ts.params, other.params)
    step.evaluate(ts, al.batches(BATCH, 10))


def test_a_batch_larger_than_its_size_is_refused():
    step, ts = started(network(), batch_size=8)
    assert message_of(al.ShapeError, step, ts, BATCH) == (
        "batch: expected 1 to 8 rows, got 24. batch_size is the size of the largest batch."
    )


def test_rows_are_filled_up_with_rows_that_are_there():
    batch, rows = padded((np.arange(3.0),), 5)
    assert batch[0].tolist() == [0, 1, 2, 0, 1]
    assert rows.tolist() == [True, True, True, False, False]


# --- accumulation


@pytest.mark.parametrize("loss", [loss, mean_loss])
def test_a_batch_in_parts_is_the_whole_batch(loss):
    options = {"metrics": [al.metrics.accuracy(), al.metrics.confusion_matrix(3)]}
    whole, ts = started(network(), loss, optax.sgd(0.5), **options)
    parts, other = started(network(), loss, optax.sgd(0.5), accumulate=4, **options)
    for _ in range(3):
        ts, logs = whole(ts, BATCH)
        other, same = parts(other, BATCH)
        assert_close(dict(logs), dict(same))
    assert_close(ts.params, other.params)


@pytest.mark.parametrize("order", ["ab", slow("ba")])
def test_losses_of_a_batch_in_parts_count_for_what_they_have(order):
    """One is of the elements of a mask, one of all examples: each by its own weight."""
    losses = {
        "a": lambda y, b: entropy(y, b["targets"]),
        "b": lambda y, b: jnp.mean(jnp.square(y)),
    }
    model = al.branch(a=al.dense(3), b=al.serial(routed(2)))
    batch = {
        "inputs": rng.normal(size=(8, 6, 4)).astype(np.float32),
        "targets": rng.integers(0, 3, (8, 6)),
        "mask": rng.random((8, 6)) < np.linspace(0.1, 0.9, 8)[:, None],
    }
    parts = [jax.tree.map(lambda x, s=s: x[s], batch) for s in (slice(3), slice(3, 8))]
    args = {name: losses[name] for name in order}, optax.sgd(0.5)
    options = {"aux": {"b/routed/balance": 0.1, "a/kernel": 0.1}, "weights": {"a": 2.0}}
    found = []
    for accumulate in (1, 4):
        step, ts = started(model, *args, accumulate=accumulate, **options)
        ts, logs = step(ts, batch)
        scores = step.evaluate(ts, [batch]), step.evaluate(ts, parts)
        assert_close(*scores)
        found.append((dict(logs), ts.params, scores[0]))
    assert_close(*found)


def test_a_batch_that_does_not_divide_is_told():
    step, ts = started(network(), accumulate=5)
    assert message_of(ValueError, step, ts, BATCH) == (
        "accumulate: expected a batch that divides into 5 equal parts, got 24 rows. "
        "Pass another batch size, or batch_size= to train_step, which fills the batch up."
    )


def test_batch_norm_sees_one_part_at_a_time():
    model = network(al.batch_norm(momentum=0.0))
    step, ts = started(model, accumulate=2)
    before = X[12:] @ np.asarray(ts.params["body"]["kernel"])
    ts, _ = step(ts, BATCH)
    mean = np.maximum(before, 0).mean(0)  # of the last part
    np.testing.assert_allclose(ts.model_state["batch_norm"]["mean"], mean, atol=1e-6)


# --- a part of the params


def frozen_body():
    return al.freeze(network(), "body"), {}


def chosen_head():
    return network(), {"where": "head"}


@pytest.mark.parametrize("make", [frozen_body, slow(chosen_head)])
def test_what_is_not_trained_stays_bit_for_bit(make):
    model, options = make()
    step, ts = started(model, **options)
    params, _ = model.init(KEY, (None, 4))
    assert list(ts.opt_state[0].mu) == ["head"]
    for _ in range(100):
        ts, _ = step(ts, BATCH)
    assert_same(ts.params["body"], params["body"])
    assert np.abs(ts.params["head"]["kernel"] - params["head"]["kernel"]).max() > 0.1


def test_what_is_not_trained_has_no_gradient():
    step, ts = started(network(), where="head")
    whole, other = started(network())
    products = [
        s.lower(t, BATCH).as_text().count("dot_general")
        for s, t in ((step, ts), (whole, other))
    ]
    assert products == [3, 5]


def test_where_and_frozen_are_both_heard():
    model = al.freeze(network(al.dense(8, name="middle")), "middle")
    _, ts = started(model, where={"middle", "head"})
    assert list(ts.opt_state[0].mu) == ["head"]


def test_nothing_left_to_train_is_an_error():
    model = al.freeze(network(), "head")
    said = message_of(ValueError, lambda: started(model, where="head"))
    assert said == (
        "train_step: no params are left to train. "
        "Unfreeze a layer, or choose others by where=."
    )


def test_where_that_means_nothing_is_an_error():
    said = message_of(al.PathError, lambda: started(network(), where="hed"))
    assert said.startswith("partition: nothing is called 'hed'. Known: 'body/kernel'")


def test_one_copy_of_a_stack_cannot_be_trained_alone():
    model = al.repeat(al.dense(4), 3).named("blocks") >> al.dense(3)
    with pytest.raises(ValueError, match="unstack"):
        started(model, where="blocks/1")


def test_tied_params_are_trained_once():
    model = al.tie(
        al.serial(a=al.dense(4, use_bias=False), b=al.dense(4, use_bias=False)),
        {"b/kernel": "a/kernel"},
    )
    step, ts = started(model, loss, ADAMW, where="b", aux={"**/kernel": 1.0})
    kernel = np.asarray(ts.params["a"]["kernel"])
    ts, logs = step(ts, BATCH)
    np.testing.assert_allclose(logs["**/kernel"], (kernel**2).sum(), rtol=1e-6)
    assert list(ts.params) == ["a"]


# --- losses


def two_heads():
    heads = al.branch(kind=al.dense(3), size=al.dense(1))
    return al.dense(8, name="body") >> jax.nn.relu >> heads.named("heads")


def test_losses_by_output_are_weighted():
    def size(y, batch):
        return optax.l2_loss(y[:, 0], batch["size"])

    def kind(y, batch):
        return optax.softmax_cross_entropy_with_integer_labels(y, batch["kind"])

    batch = {"inputs": X, "kind": LABELS, "size": X[:, 0]}
    losses = {"kind": kind, "size": size}
    model = two_heads()
    step, ts = started(model, losses, ADAMW, weights={"size": 0.25})
    y = model.predict(ts.params, ts.model_state, X)
    terms = kind(y["kind"], batch).mean(), size(y["size"], batch).mean()
    _, logs = step(ts, batch)
    assert list(logs) == ["loss", "loss/kind", "loss/size"]
    np.testing.assert_allclose(logs["loss"], terms[0] + 0.25 * terms[1], rtol=1e-6)
    np.testing.assert_allclose((logs["loss/kind"], logs["loss/size"]), terms, rtol=1e-6)


def test_metrics_are_of_one_output():
    losses = {"kind": lambda y, b: loss(y, (b[0], b[1]["kind"]))}
    metrics = al.metrics.accuracy().on("kind")
    step, ts = started(two_heads(), losses, ADAMW, metrics=metrics)
    y = two_heads().predict(ts.params, ts.model_state, X)["kind"]
    _, logs = step(ts, (X, {"kind": LABELS}))
    right = (np.argmax(y, -1) == LABELS).mean()
    np.testing.assert_allclose(logs["kind/accuracy"], right, rtol=1e-6)


WRONG = {
    "no such output": (
        {"kin": mean_loss},
        {},
        al.PathError,
        "loss: nothing is called 'kin'. Nearest: 'kind'. Losses by name are for a model "
        "whose output is a dict.",
    ),
    "no such weight": (
        {"kind": mean_loss},
        {"weights": {"kin": 1.0}},
        al.PathError,
        "loss: weights: nothing is called 'kin'. Nearest: 'kind'.",
    ),
    "weights of one": (
        mean_loss,
        {"weights": {"kind": 1.0}},
        ValueError,
        "loss: weights are for several losses, got one. "
        "Write loss={output: function}, or multiply in the loss.",
    ),
    "no function": (
        "mse",
        {},
        TypeError,
        "loss: expected a function of (predictions, batch), got str. "
        "Write lambda y, batch: optax.l2_loss(y, batch[1]).",
    ),
    "integers": (
        lambda y, batch: batch[1],
        {},
        al.ShapeError,
        "loss: expected floating-point numbers, got int32[24]. Return the loss itself.",
    ),
    "no loss": (
        {},
        {},
        ValueError,
        "loss: expected at least one, got {}. Write {output: function}.",
    ),
    "no such glob": (
        lambda y, batch: y["kind"].mean(),
        {"aux": {"body/kernal": 1.0}},
        al.PathError,
        "aux: nothing is called 'body/kernal'. Nearest: 'body/kernel', 'body/bias'. "
        "An auxiliary loss is of what a layer emits, or of params.",
    ),
    "no weight": (
        lambda y, batch: y["kind"].mean(),
        {"aux": {"body/kernel": "l2"}},
        TypeError,
        "aux: expected a weight or a function for 'body/kernel', got str. "
        "Write {glob: 0.01}.",
    ),
    "accumulate": (
        mean_loss,
        {"accumulate": 0},
        ValueError,
        "accumulate: the number of parts must be a positive int, got 0.",
    ),
    "batch_size": (
        mean_loss,
        {"batch_size": True},
        ValueError,
        "train_step: batch_size must be a positive int, got True.",
    ),
    "a weight": (
        mean_loss,
        {"aux": {"body/kernel": np.ones(2)}},
        TypeError,
        "aux: expected a weight or a function for 'body/kernel', got float64[2]. "
        "Write {glob: 0.01}.",
    ),
    "no metric": (
        mean_loss,
        {"metrics": {"right": np.equal}},
        TypeError,
        "metrics: expected a metric of al.metrics for 'right', got ufunc. "
        "Write al.metrics.mean(function) for a function.",
    ),
    "name of a loss": (
        mean_loss,
        {"metrics": {"loss": al.metrics.accuracy()}},
        ValueError,
        "metrics: 'loss' is the name of a loss. Choose another name.",
    ),
    "name of a term": (
        lambda y, batch: y["kind"].mean(),
        {
            "metrics": {"body/kernel": al.metrics.mean(lambda y, t: y["size"])},
            "aux": {"body/kernel": 1.0},
        },
        ValueError,
        "metrics: 'body/kernel' is in the logs already. Choose another name.",
    ),
    "scale": (
        mean_loss,
        {"loss_scale": "dinamic"},
        ValueError,
        "train_step: loss_scale must be a positive number or 'dynamic', got 'dinamic'.",
    ),
    "ema": (
        mean_loss,
        {"ema": 1.5},
        ValueError,
        "train_step: ema must be in [0, 1), got 1.5.",
    ),
    "aux": (
        mean_loss,
        {"aux": ["body/kernel"]},
        TypeError,
        "aux: expected a dict, got [str]. Write {glob: 0.01}.",
    ),
    "remat": (
        mean_loss,
        {"remat": "yes"},
        TypeError,
        "remat: expected True or a policy, got str. "
        "Write jax.checkpoint_policies.dots_saveable.",
    ),
    "loss of None": (
        lambda y, batch: None,
        {},
        al.ShapeError,
        "loss: expected floating-point numbers, got None. Return the loss itself.",
    ),
    "two losses": (
        lambda y, batch: (y["kind"].mean(), 1.0),
        {},
        al.ShapeError,
        "loss: expected floating-point numbers, got (float32[], float). "
        "Return the loss itself.",
    ),
    "weights": (
        {"kind": mean_loss},
        {"weights": {"kind": "0.1"}},
        TypeError,
        "loss: expected a number as the weight of 'kind', got str.",
    ),
    "weights of no names": (
        {"kind": mean_loss},
        {"weights": ["kind"]},
        TypeError,
        "loss: expected weights to be a dict, got [str]. Write {output: 0.1}.",
    ),
    "precision": (
        mean_loss,
        {"precision": "bfloat17"},
        TypeError,
        "mixed: expected a floating-point dtype, got bfloat17. "
        "Write jnp.bfloat16, or leave it out.",
    ),
    "no name": (
        mean_loss,
        {"metrics": {1: al.metrics.accuracy()}},
        TypeError,
        "metrics: expected names that are text, got 1.",
    ),
    "a metric's name": (
        mean_loss,
        {"metrics": "accuracy"},
        TypeError,
        "metrics: expected a metric of al.metrics for '', got str. "
        "Write al.metrics.mean(function) for a function.",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_mistake_is_told(name):
    function, options, kind, message = WRONG[name]

    def run():
        step, ts = started(two_heads(), function, ADAMW, **options)
        step(ts, BATCH)

    assert message_of(kind, run) == message


BATCHES = {
    "one item": (
        (X,),
        "batch: expected a tuple (inputs, targets, ...), got 1 items. "
        "Write (x, y), or a dict with inputs and targets.",
    ),
    "no inputs": (
        {"x": X, "targets": LABELS},
        "batch: expected a dict with 'inputs', got ['targets', 'x']. "
        'Write {"inputs": x, "targets": y}, or a tuple (x, y).',
    ),
}


@pytest.mark.parametrize("name", BATCHES)
def test_a_batch_that_is_none_is_told(name):
    batch, message = BATCHES[name]
    metrics = al.metrics.accuracy()
    step, ts = started(network(), lambda y, b: y.mean(), ADAMW, metrics=metrics)
    assert message_of(ValueError, step, ts, batch) == message


def test_an_empty_batch_and_no_state_of_training_are_told():
    step, ts = started(network())
    assert message_of(al.ShapeError, step, ts, (X[:0], LABELS[:0])) == (
        "loss: expected at least one number, got float32[0]. Leave empty batches out."
    )
    assert message_of(TypeError, step, ts.params, BATCH) == (
        "train_step: expected a TrainState, got dict. "
        "Begin with ts = step.start(params, state, key=key)."
    )


def test_a_state_that_is_used_up_is_told():
    step, ts = started(network())
    step(ts, BATCH)
    assert message_of(ValueError, step, ts, BATCH) == (
        "train_step: this state was given away to a step before. Go on with what that "
        "returned: ts, logs = step(ts, batch)."
    )


def test_neither_a_model_nor_an_optimizer_is_told():
    with pytest.raises(TypeError, match="train_step: expected a layer, the model, got"):
        al.train_step(jnp.tanh, loss, ADAMW)
    with pytest.raises(TypeError, match="expected an optimizer of optax, got function"):
        al.train_step(network(), loss, optax.adam)


def test_loaders_of_lists_and_of_other_arrays_are_batches():
    class Tensor:
        def __init__(self, array):
            self.array = array

        def __array__(self, dtype=None, copy=None):
            return self.array

    step, ts = started(network())
    _, logs = step(ts, [Tensor(X), Tensor(LABELS)])
    _, ts = started(network())
    np.testing.assert_array_equal(logs["loss"], step(ts, BATCH)[1]["loss"])


# --- auxiliary losses


@al.layer
def routed(features):
    """A dense layer that says how even its outputs are, in all and for each example."""

    def apply(params, x, *, emit):
        y = x @ params["kernel"]
        emit("balance", jnp.mean(jnp.square(y)))
        emit("each", jnp.sum(jnp.square(y), -1))
        return y

    def init(key, x):
        return {"kernel": jax.random.normal(key, (x.shape[-1], features))}

    return init, apply


def of_each_copy(model, x=X):
    """What the three copies emit, by reading them."""
    params, state = model.init(KEY, (None, 4))
    values = []
    for i in range(3):
        sub, p, s = al.submodel(model, params, state, f"blocks/{i}")
        y = x @ p["routed"]["kernel"]
        values.append((np.mean(y**2), np.sum(y**2, -1)))
        x = sub.predict(p, s, x)
    return values


@pytest.mark.parametrize("stacked", [True, slow(False)])
def test_what_layers_emit_is_added_over_all_copies(stacked):
    body = al.serial(routed(4), jnp.tanh)
    model = al.repeat(body, 3, stacked=stacked).named("blocks") >> al.dense(3)
    aux = {"blocks/*/routed/balance": 0.5, "blocks/*/routed/each": 0.25}
    step, ts = started(model, mean_loss, ADAMW, aux=aux)
    params, state = model.init(KEY, (None, 4))
    plain = mean_loss(model.predict(params, state, X), BATCH)
    emitted = of_each_copy(model)
    _, logs = step(ts, BATCH)
    balance = 0.5 * sum(each[0] for each in emitted)
    per_example = 0.25 * sum(each[1].mean() for each in emitted)
    np.testing.assert_allclose(logs["blocks/*/routed/balance"], balance, rtol=1e-5)
    np.testing.assert_allclose(logs["blocks/*/routed/each"], per_example, rtol=1e-5)
    total = plain + balance + per_example
    np.testing.assert_allclose(logs["loss"], total, rtol=1e-5)


def test_emitted_numbers_of_each_example_know_which_rows_count():
    model = al.serial(router=routed(3))
    aux = {"router/each": 1.0}
    step, ts = started(model, loss, ADAMW, aux=aux, batch_size=10)
    params, state = model.init(KEY, (None, 4))
    y = model.predict(params, state, X[:6])
    _, logs = step(ts, (X[:6], LABELS[:6]))
    wanted = np.sum(np.square(y), -1).mean()
    np.testing.assert_allclose(logs["router/each"], wanted, rtol=1e-6)


def test_a_function_of_params_is_a_regularizer():
    aux = {"*/kernel": lambda kernel: 0.1 * jnp.abs(kernel), al.kind("dense"): 0.01}
    step, ts = started(network(), mean_loss, optax.sgd(1.0), aux=aux)
    before, plain = ts.params, started(network(), mean_loss, optax.sgd(1.0))
    params = jax.tree.map(np.asarray, before)
    ts, logs = step(ts, BATCH)
    other, _ = plain[0](plain[1], BATCH)
    lasso = sum(0.1 * np.abs(params[n]["kernel"]).sum() for n in ("body", "head"))
    ridge = sum(0.01 * np.sum(a**2) for a in jax.tree.leaves(params))
    np.testing.assert_allclose(logs["*/kernel"], lasso, rtol=1e-5)
    np.testing.assert_allclose(logs["kind('dense')"], ridge, rtol=1e-5)
    kernel = params["head"]["kernel"]
    pulled = other.params["head"]["kernel"] - 0.1 * np.sign(kernel) - 0.02 * kernel
    np.testing.assert_allclose(ts.params["head"]["kernel"], pulled, atol=1e-6)


def test_a_glob_for_params_and_for_what_is_emitted_is_refused():
    model = al.serial(router=routed(3))
    step, ts = started(model, mean_loss, ADAMW, aux={"router/*": 1.0})
    assert message_of(ValueError, step, ts, BATCH) == (
        "aux: 'router/*' means 'router/balance', which a layer emits, and params. "
        "Write a glob for one of them."
    )


# --- precision


def test_a_dynamic_scale_skips_a_step_that_is_not_finite():
    step, ts = started(network(al.batch_norm()), loss_scale="dynamic", ema=0.5)
    ts, logs = step(ts, BATCH)
    assert float(logs["loss_scale"]) == 2.0**15
    kept = jax.tree.map(np.asarray, ts._replace(step=0, loss_scale=None, key=None))
    ts, logs = step(ts, (np.where(X > 2, np.inf, X).astype(np.float32), LABELS))
    after = ts._replace(step=0, loss_scale=None, key=None)
    assert_same(after, kept)
    assert float(logs["loss_scale"]) == 2.0**14
    assert int(ts.step) == 2


def test_a_dynamic_scale_grows_after_many_finite_steps():
    step, ts = started(network(), loss_scale="dynamic")
    nearly = ts.loss_scale._replace(finite_steps=jnp.asarray(1999, jnp.int32))
    ts, logs = step(ts._replace(loss_scale=nearly), BATCH)
    assert float(logs["loss_scale"]) == 2.0**16
    assert int(ts.loss_scale.finite_steps) == 0


def test_a_scale_changes_no_gradient():
    step, ts = started(network(), loss_scale="dynamic")
    plain, other = started(network())
    assert_close(step(ts, BATCH)[0].params, plain(other, BATCH)[0].params)


def test_16_bits_train_with_params_in_32():
    step, ts = started(
        network(), loss, optax.adam(0.1), precision=jnp.bfloat16, loss_scale="dynamic"
    )
    for _ in range(60):
        ts, logs = step(ts, BATCH)
    assert ts.params["head"]["kernel"].dtype == jnp.float32
    assert logs["loss"].dtype == jnp.float32
    assert float(logs["loss"]) < 0.5


# --- more


def test_a_moving_average_follows_the_params():
    step, ts = started(network(), ema=0.75)
    average = jax.tree.map(np.asarray, ts.params)
    for _ in range(3):
        ts, _ = step(ts, BATCH)
        average = jax.tree.map(lambda a, b: 0.75 * a + 0.25 * b, average, ts.params)
    assert_close(ts.ema, average)


def test_the_average_of_params_in_16_bits_is_in_32():
    """In bfloat16 a change of a thousandth of 1 would be lost."""
    model = al.dense(1, use_bias=False)
    step = al.train_step(model, lambda y, b: -y[:, 0], optax.sgd(1.0), ema=0.999)
    ts = step.start({"kernel": jnp.ones((1, 1), jnp.bfloat16)}, {})
    for _ in range(5):
        ts, _ = step(ts, (jnp.ones((2, 1), jnp.bfloat16),))
    assert (ts.params["kernel"].dtype, ts.ema["kernel"].dtype) == (jnp.bfloat16, "f4")
    wanted = 1.0
    for param in range(2, 7):
        wanted += 0.001 * (param - wanted)
    np.testing.assert_allclose(ts.ema["kernel"], wanted, rtol=1e-5)
    swap = al.callbacks.swap_ema()
    r = al.fit(
        step, ts, [(jnp.ones((2, 1), jnp.bfloat16),)], epochs=1, callbacks=[swap]
    )
    assert r.state.params["kernel"].dtype == jnp.bfloat16
    assert r.state.ema["kernel"].item() == 7


@pytest.mark.slow
def test_remat_trains_alike():
    step, ts = started(network(), remat=jax.checkpoint_policies.dots_saveable)
    plain, other = started(network())
    assert_close(step(ts, BATCH)[0].params, plain(other, BATCH)[0].params)


def test_optimizers_that_look_at_the_loss_get_it():
    optimizer = optax.chain(
        optax.sgd(0.5), optax.contrib.reduce_on_plateau(patience=1, factor=0.5)
    )
    step, ts = started(network(), lambda y, b: jnp.float32(1) + 0 * y.sum(), optimizer)
    for _ in range(5):
        ts, _ = step(ts, BATCH)
    assert float(ts.opt_state[-1].scale) < 1


def test_optimizers_that_search_along_a_line_can():
    def error(y, batch):
        return jnp.square(y - batch[1])

    step = al.train_step(al.dense(1), error, optax.lbfgs(), where="kernel")
    ts = step.start({"kernel": jnp.zeros((4, 1)), "bias": jnp.zeros(1)}, {})
    kernel = np.array([[1.0], [-2.0], [0.5], [0.0]], np.float32)
    for _ in range(8):
        ts, _ = step(ts, (X, X @ kernel))
    np.testing.assert_allclose(ts.params["kernel"], kernel, atol=1e-4)


def test_integers_among_the_params_are_left_as_they_are():
    @al.layer
    def table():
        def init(key, x):
            return {"codes": jnp.arange(4), "scale": jnp.ones(())}

        def apply(params, x):
            return x * params["scale"] + params["codes"].astype(x.dtype)[None]

        return init, apply

    step, ts = started(table() >> al.dense(3))
    after, _ = step(ts, BATCH)
    assert after.params["table"]["codes"].tolist() == [0, 1, 2, 3]
    assert after.params["table"]["scale"] != 1


def test_a_step_is_a_function_inside_of_jit_and_scan():
    step, ts = started(network(), key=KEY)

    @jax.jit
    def several(ts):
        return jax.lax.scan(lambda ts, _: step(ts, BATCH), ts, None, length=5)

    after, logs = several(ts)
    _, ts = started(network(), key=KEY)
    for _ in range(5):
        ts, last = step(ts, BATCH)
    assert_close(after.params, ts.params)
    np.testing.assert_allclose(logs["loss"][-1], last["loss"], rtol=1e-6)


MODELS = {
    "scan": lambda: al.lstm(6) >> (lambda y: y[:, -1]) >> al.dense(3),
    "ensemble": lambda: al.ensemble(al.dense(3), 2) >> (lambda y: y.mean(0)),
    "stacked": lambda: al.repeat(al.dense(4) >> al.dropout(0.1), 2) >> al.dense(3),
    "shared": lambda: al.shared(al.dense(3)) >> jnp.add,
    "mixed": lambda: al.mixed(al.dense(4), jnp.bfloat16, jnp.float32) >> al.dense(3),
    "switch": lambda: al.switch(
        lambda x: (x.sum() > 0).astype(int), *[al.dense(3)] * 2
    ),
}
INPUTS = {"scan": np.stack([X] * 3, 1), "shared": (X, X)}


@pytest.mark.parametrize(
    "name", ["stacked", *map(slow, ("ensemble", "scan", "shared", "mixed", "switch"))]
)
def test_every_combinator_trains(name):
    model, x = MODELS[name](), INPUTS.get(name, X)
    step = al.train_step(model, loss, optax.adam(0.1), accumulate=2)
    ts = step.start(*model.init(KEY, x), key=KEY)
    losses = []
    for _ in range(15):
        ts, logs = step(ts, (x, LABELS))
        losses.append(float(logs["loss"]))
    assert losses[-1] < losses[0]
