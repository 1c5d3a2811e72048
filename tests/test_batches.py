"""Minibatches in memory, and what runs over them without training."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import axonlike as al

KEY = jax.random.key(0)
ROWS = np.arange(23)
rng = np.random.default_rng(0)
X = rng.normal(size=(23, 4)).astype(np.float32)
LABELS = rng.integers(0, 3, 23)


def rows_of(data):
    return [batch[0].tolist() for batch in data]


def flat(batches):
    return [row for batch in batches for row in batch]


# --- batches


def test_without_a_key_rows_come_in_order_every_time():
    data = al.batches((ROWS,), 10)
    assert rows_of(data) == [ROWS[:10].tolist(), ROWS[10:20].tolist(), [20, 21, 22]]
    assert rows_of(data) == rows_of(data)
    assert len(data) == 3


@pytest.mark.parametrize("key", [7, KEY, jax.random.PRNGKey(1)])
def test_every_epoch_has_every_row_once_in_an_order_of_its_own(key):
    data = al.batches((ROWS, ROWS * 2), 5, key=key)
    first, second = rows_of(data), rows_of(data)
    assert sorted(flat(first)) == sorted(flat(second)) == ROWS.tolist()
    assert first != second
    assert rows_of(al.batches((ROWS,), 5, key=key)) == first
    assert all((y == 2 * x).all() for x, y in data)


def test_a_short_last_batch_can_be_left_out():
    data = al.batches((ROWS,), 10, drop_last=True)
    assert [len(batch) for batch in rows_of(data)] == [10, 10]
    assert len(data) == 2


def test_a_position_is_plain_data_from_which_iteration_goes_on():
    data = al.batches((ROWS,), 4, key=3)
    whole = [rows_of(data) for _ in range(3)]
    data = al.batches((ROWS,), 4, key=3)
    rows_of(data)
    iterator = iter(data)
    seen = [next(iterator)[0].tolist() for _ in range(2)]
    saved = json.loads(json.dumps(data.get_state()))
    assert saved == {"seed": [3], "epoch": 1, "step": 2}
    other = al.batches((ROWS,), 4, key=99)
    other.set_state(saved)
    assert seen + rows_of(other) == whole[1]
    assert rows_of(other) == whole[2]


def test_a_position_at_the_end_of_an_epoch_is_the_start_of_the_next():
    data = al.batches((ROWS,), 4, key=3)
    whole = [rows_of(data) for _ in range(2)]
    data = al.batches((ROWS,), 4, key=3)
    rows_of(data)
    other = al.batches((ROWS,), 4)
    other.set_state(data.get_state())
    assert rows_of(other) == whole[1]


def test_what_was_left_of_an_epoch_is_not_resumed_unasked():
    data = al.batches((ROWS,), 4)
    for _ in data:
        break
    assert flat(rows_of(data)) == ROWS.tolist()


def test_a_dict_stays_one_and_a_batch_owns_its_memory():
    arrays = {"inputs": X.copy(), "targets": jnp.asarray(LABELS)}
    batch = next(iter(al.batches(arrays, 23)))
    assert sorted(batch) == ["inputs", "targets"]
    arrays["inputs"][:] = 0
    np.testing.assert_array_equal(batch["inputs"], X)


def test_batches_are_tuples_and_pytrees_as_others_are():
    (a, b), *_ = al.batches((X, LABELS), 10)
    doubled = jax.jit(lambda batch: jax.tree.map(lambda x: 2 * x, batch))
    batch = next(iter(al.batches((X, LABELS), 10)))
    assert isinstance(batch, tuple)
    np.testing.assert_array_equal(doubled(batch)[1], 2 * b)
    batch = next(iter(al.batches({"inputs": X}, 10)))
    assert isinstance(batch, dict)
    np.testing.assert_array_equal(doubled(batch)["inputs"], 2 * a)


MISTAKES = {
    "rows": (
        lambda: al.batches((X, LABELS[:5]), 4),
        al.ShapeError,
        "batch: expected arrays with one first axis, of examples, got "
        "(float32[23, 4], int64[5]). Give each array a row for each example.",
    ),
    "size": (
        lambda: al.batches((X,), 0),
        ValueError,
        "batches: batch_size must be a positive int, got 0.",
    ),
    "none": (
        lambda: al.batches((X,), 50, drop_last=True),
        ValueError,
        "batches: expected at least 50 rows, got 23. "
        "Lower batch_size, or leave drop_last out.",
    ),
    "key": (
        lambda: al.batches((X,), 4, key=0.5),
        TypeError,
        "batches: key must be one of jax.random.key(seed), or an int from 0 on, got "
        "float.",
    ),
    "position": (
        lambda: al.batches((X,), 4).set_state({"epoch": 1}),
        ValueError,
        "batches: expected a state with seed, epoch and step, got {epoch: int}. "
        "Pass what get_state() returned.",
    ),
    "one batch": (
        lambda: al.evaluate(MODEL, PARAMS, STATE, (X, LABELS), loss=loss),
        TypeError,
        "evaluate: expected data to be an iterable of batches, got "
        "(float32[23, 4], int64[23]), which is one. Write [batch], or "
        "al.batches(arrays, batch_size).",
    ),
    "no model": (
        lambda: al.predict_batches(jnp.tanh, {}, {}, []),
        TypeError,
        "predict_batches: expected a layer, the model, got PjitFunction.",
    ),
    "size of a batch": (
        lambda: al.predict_batches(MODEL, PARAMS, STATE, [], batch_size=0),
        ValueError,
        "predict_batches: batch_size must be a positive int, got 0.",
    ),
    "evaluate nothing": (
        lambda: al.evaluate(al.dense(3), {}, {}, []),
        ValueError,
        "evaluate: nothing to measure. Pass loss=, metrics= or both.",
    ),
    "no batches": (
        lambda: al.evaluate(al.dense(3), {}, {}, [], metrics=al.metrics.accuracy()),
        ValueError,
        "evaluate: expected batches, got none. An iterator is used up once.",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_told(name):
    run, kind, message = MISTAKES[name]
    with pytest.raises(kind) as caught:
        run()
    assert str(caught.value) == message


# --- evaluation


def loss(y, batch):
    with jax.numpy_dtype_promotion("standard"):
        return optax.softmax_cross_entropy_with_integer_labels(y, batch[1])


def mean_loss(y, batch):
    return loss(y, batch).mean()


MODEL = al.dense(8) >> al.batch_norm() >> al.dropout(0.5) >> al.dense(3)
PARAMS, STATE = MODEL.init(KEY, X)
METRICS = [al.metrics.accuracy(), al.metrics.auroc(), al.metrics.confusion_matrix(3)]


def yes(metric):
    """A metric of whether it is class 0."""

    def update(y, targets, mask=None):
        return metric.update(y[:, 0], targets == 0, mask)

    return metric._replace(update=update)


@pytest.mark.parametrize("loss", [loss, mean_loss])
def test_the_scores_of_batches_are_those_of_the_whole(loss):
    metrics = [METRICS[0], yes(METRICS[1]), METRICS[2]]
    y = MODEL.predict(PARAMS, STATE, X)
    wanted = {"loss": mean_loss(y, (X, LABELS))} | {
        m.name: m.compute(m.update(y, LABELS)) for m in metrics
    }
    data = al.batches((X, LABELS), 10)
    scores = al.evaluate(MODEL, PARAMS, STATE, data, loss=loss, metrics=metrics)
    assert list(scores) == ["loss", "accuracy", "auroc", "confusion_matrix"]
    for name, value in wanted.items():
        np.testing.assert_allclose(scores[name], value, rtol=1e-6)
    assert isinstance(scores["loss"], float)


def test_evaluation_is_compiled_once_for_all_epochs_and_sizes():
    data = al.batches((X, LABELS), 10)

    def run():
        metrics = al.metrics.accuracy()
        al.evaluate(MODEL, PARAMS, STATE, data, loss=loss, metrics=metrics)
        list(al.predict_batches(MODEL, PARAMS, STATE, data))

    run()
    with al.ledger() as again:
        run()
    assert again.compiles == 0


def test_a_step_evaluates_what_it_trains_and_leaves_it():
    step = al.train_step(
        MODEL, loss, optax.sgd(0.1), metrics=METRICS[0], aux={"**/kernel": 1.0}
    )
    ts = step.start(PARAMS, STATE, key=KEY)
    data = al.batches((X, LABELS), 10)
    scores = step.evaluate(ts, data)
    same = al.evaluate(MODEL, PARAMS, STATE, data, loss=loss, metrics=METRICS[0])
    assert scores == same
    jax.tree.map(np.testing.assert_array_equal, ts.model_state, STATE)


@pytest.mark.parametrize("batch_size", [None, 10])
def test_predictions_have_a_row_for_each_that_came_in(batch_size):
    batches = [(X[:10], LABELS[:10]), (X[10:20],), {"inputs": X[20:]}]
    found = list(
        al.predict_batches(MODEL, PARAMS, STATE, batches, batch_size=batch_size)
    )
    assert [len(y) for y in found] == [10, 10, 3]
    whole = MODEL.predict(PARAMS, STATE, X)
    np.testing.assert_allclose(np.concatenate(found), whole, atol=1e-6)


def test_inputs_alone_are_a_batch_to_predict():
    found = list(al.predict_batches(MODEL, PARAMS, STATE, al.batches(X, 23)))
    np.testing.assert_allclose(found[0], MODEL.predict(PARAMS, STATE, X), atol=1e-6)
