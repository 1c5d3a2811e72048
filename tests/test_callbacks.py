"""Callbacks: each does what it says, when it says it."""

import csv
import os

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import axonlike as al

X = np.linspace(-1, 1, 16, dtype=np.float32)[:, None]
Y = 3 * X + 1


@pytest.fixture(autouse=True)
def standard_promotion():
    """Optax mixes dtypes."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def said(values):
    """Validation that says these losses, one after another."""
    losses = iter(values)
    return lambda state: {"loss": next(losses)}


def count(state, batch):
    return state + 1, {"loss": float(state)}


def run(callback, values, **options):
    return al.fit(
        count, 0, [None], epochs=len(values), validate=said(values),
        callbacks=[callback], **options,
    )  # fmt: skip


# --- early stopping


def test_it_stops_after_patience_and_ends_with_the_best_state():
    r = run(al.callbacks.early_stopping(patience=2), [3.0, 1.0, 2.0, 1.0, 0.0])
    assert r.state == 2
    assert r.halted == (
        "early_stopping: validation_loss was no better than 1 for 2 validations"
    )
    assert len(r.history["validation_loss"]) == 4


def test_what_had_stopped_stops_at_once_when_it_is_resumed(tmp_path):
    def again(values):
        return al.fit(
            lambda state, batch: (state + 1, {"loss": 0.0}), np.int32(0), [None],
            epochs=9, validate=said(values), resume=tmp_path, callbacks=[
                al.callbacks.early_stopping(patience=2, restore_best=False),
                al.callbacks.checkpoint(tmp_path)],
        )  # fmt: skip

    first, second = again([1.0, 2.0, 3.0]), again([])
    assert (int(first.state), int(second.state)) == (3, 3)
    assert first.halted == second.halted


@pytest.mark.parametrize(
    ("options", "values", "steps"),
    [
        ({"restore_best": False}, [3.0, 1.0, 2.0, 2.0, 2.0, 9.0], 4),
        ({"min_delta": 0.5}, [3.0, 2.8, 2.6, 0.0], 3),
        ({"min_delta": 0.5}, [3.0, 2.8, 2.4, 2.2, 2.1, 0.0], 5),
        ({"mode": "max"}, [1.0, 2.0, 1.0, 1.5, 9.0], 4),
        ({"baseline": 0.5}, [3.0, 1.0, 0.1], 2),
        ({"metric": "loss", "mode": "max"}, [0.0, 0.0, 0.0], 3),
        ({"metric": "validation_loss"}, [1.0, float("nan"), float("nan"), 0.0], 3),
    ],
)
def test_what_counts_as_an_improvement(options, values, steps):
    stopping = al.callbacks.early_stopping(
        **{"patience": 2, "restore_best": False} | options
    )
    r = run(stopping, values)
    assert r.state == steps
    assert (r.halted is None) == (steps == len(values))


def test_the_best_state_survives_that_its_buffers_are_given_away():
    step = al.train_step(
        al.dense(1), lambda y, batch: optax.l2_loss(y, batch[1]), optax.sgd(0.3)
    )
    ts = step.start(*step.model.init(jax.random.key(0), X))
    kept = []
    keep = al.when(
        "improved", lambda loop: kept.append(np.array(loop.state.params["kernel"]))
    )
    r = al.fit(
        step, ts, [(X, Y)], epochs=9, validate=said([3.0, 1.0, 2.0, 2.0, 2.0, 2.0]),
        callbacks=[keep, al.callbacks.early_stopping(patience=3)],
    )  # fmt: skip
    assert int(r.state.step) == 2
    assert np.array_equal(r.state.params["kernel"], kept[-1])


def test_without_a_halt_the_best_state_is_the_end_too():
    r = run(al.callbacks.early_stopping(patience=5), [3.0, 1.0, 2.0])
    assert (r.state, r.halted) == (2, None)


# --- checkpoints


def test_the_best_is_there_after_each_improvement(tmp_path):
    pytest.importorskip("orbax.checkpoint")
    seen = []
    look = al.when(
        "epoch_started",
        lambda loop: seen.append([p.name for p in tmp_path.glob("best-*")]),
    )
    saving = al.callbacks.checkpoint(tmp_path, best=True, keep=1)
    r = al.fit(
        count, 0, [None], epochs=4, validate=said([3.0, 1.0, 2.0, 0.5]),
        callbacks=[saving, look],
    )  # fmt: skip
    assert seen == [[], ["best-00000001"], ["best-00000002"], ["best-00000002"]]
    assert sorted(os.listdir(tmp_path)) == ["best-00000004", "step-00000004"]
    assert al.load_checkpoint(tmp_path, 0, best=True) == r.state == 4


def test_checkpoints_by_steps_and_by_seconds(tmp_path):
    pytest.importorskip("orbax.checkpoint")
    by_steps = al.callbacks.checkpoint(tmp_path / "steps", every=2, keep=9)
    by_seconds = al.callbacks.checkpoint(tmp_path / "seconds", seconds=1000)
    al.fit(count, 0, [None] * 5, epochs=1, callbacks=[by_steps, by_seconds])
    assert [name[-1] for name in sorted(os.listdir(tmp_path / "steps"))] == list("245")
    assert os.listdir(tmp_path / "seconds") == ["step-00000005"]


# --- learning rate


@pytest.mark.parametrize(
    "around",
    [
        lambda optimizer: optimizer,
        lambda optimizer: optax.chain(optax.clip(1.0), optimizer),
        lambda optimizer: optax.partition(
            {"a": optimizer, "b": optax.set_to_zero()}, {"w": "a", "v": "b"}
        ),
    ],
)
def test_the_learning_rate_is_read_and_written_wherever_it_stands(around):
    optimizer = around(optax.inject_hyperparams(optax.sgd)(learning_rate=0.5))
    params = {"w": jnp.ones(2), "v": jnp.ones(2)}
    state = optimizer.init(params)
    assert al.learning_rate(state) == 0.5
    changed = al.with_learning_rate(state, 0.25)
    assert al.learning_rate(state) == 0.5
    updates, _ = optimizer.update(jax.tree.map(jnp.ones_like, params), changed)
    assert updates["w"].tolist() == [-0.25, -0.25]
    assert jax.tree.map(jnp.result_type, changed) == jax.tree.map(
        jnp.result_type, state
    )


def test_a_rate_that_is_not_there_or_not_ours_to_write_is_told():
    with pytest.raises(ValueError, match=r"expected one learning rate .* got 0"):
        al.learning_rate(optax.sgd(0.1).init({"w": jnp.ones(2)}))
    schedule = optax.linear_schedule(1.0, 0.0, 10)
    state = optax.inject_hyperparams(optax.sgd)(learning_rate=schedule).init({})
    assert al.learning_rate(state) == 1.0
    with pytest.raises(ValueError, match="a schedule sets the learning rate"):
        al.with_learning_rate(state, 0.5)


def test_a_learning_rate_is_one_number():
    state = optax.inject_hyperparams(optax.sgd)(learning_rate=0.5).init({})
    with pytest.raises(al.ShapeError) as caught:
        al.with_learning_rate(state, jnp.ones(3))
    assert str(caught.value) == (
        "with_learning_rate: expected float32[], got float32[3]. "
        "Write one of the shape that there is."
    )


def test_a_plateau_lowers_the_rate_without_compiling_anything():
    optimizer = optax.inject_hyperparams(optax.sgd)(learning_rate=0.5)
    step = al.train_step(
        al.dense(1), lambda y, batch: optax.l2_loss(y, batch[1]), optimizer
    )
    ts = step.start(*step.model.init(jax.random.key(0), X))
    ts, _ = step(ts, (X, Y))
    rates = []
    look = al.when(
        "epoch_completed", lambda loop: rates.append(al.learning_rate(loop.state))
    )
    plateau = al.callbacks.plateau(factor=0.5, patience=2, lowest=0.2)
    losses = [3.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    with al.ledger() as compiled:
        al.fit(
            step, ts, [(X, Y)], epochs=8, validate=said(losses),
            callbacks=[plateau, look],
        )  # fmt: skip
    assert rates == pytest.approx([0.5, 0.5, 0.5, 0.25, 0.25, 0.2, 0.2, 0.2])
    assert not [event for event in compiled.events if event.function == "_step"]


# --- the average of the params


def test_the_average_is_validated_and_is_what_training_ends_with():
    step = al.train_step(
        al.dense(1),
        lambda y, batch: optax.l2_loss(y, batch[1]),
        optax.sgd(0.3),
        ema=0.5,
    )
    ts = step.start(*step.model.init(jax.random.key(0), X))
    seen, raw = [], []
    keep = al.when(
        "epoch_completed",
        lambda loop: raw.append(jax.tree.map(np.array, loop.state[1::4])),
    )

    def validate(state):
        seen.append(jax.tree.map(np.array, state.params))
        return {"loss": 0.0}

    r = al.fit(
        step, ts, [(X, Y)], epochs=2, validate=validate,
        callbacks=[al.callbacks.swap_ema(), keep],
    )  # fmt: skip
    params, ema = raw[-1]
    assert np.array_equal(seen[-1]["kernel"], ema["kernel"])
    assert np.array_equal(r.state.params["kernel"], ema["kernel"])
    assert np.array_equal(r.state.ema["kernel"], params["kernel"])
    assert not np.array_equal(ema["kernel"], params["kernel"])
    with pytest.raises(TypeError, match="swap_ema: the state has no moving average"):
        al.fit(count, 0, [None], epochs=1, callbacks=[al.callbacks.swap_ema()])


# --- what is written


def test_csv_has_a_row_for_each_epoch_and_columns_that_come_later(tmp_path):
    file = tmp_path / "logs" / "log.csv"
    al.fit(
        lambda s, b: (s, {"loss": b}), 0, [1.0, 3.0], epochs=3, validate_every=3,
        validate=lambda state: {"loss": 0.5}, callbacks=[al.callbacks.csv(file)],
    )  # fmt: skip
    with file.open(newline="") as opened:
        rows = list(csv.DictReader(opened))
    assert [row["step"] for row in rows] == ["2", "4", "6"]
    assert [row["validation_loss"] for row in rows] == ["", "0.5", "0.5"]


def test_csv_goes_on_where_the_checkpoint_was(tmp_path):
    pytest.importorskip("orbax.checkpoint")
    file = tmp_path / "log.csv"
    saving = al.callbacks.checkpoint(tmp_path, every=4, keep=9)

    def train(epochs):
        al.fit(
            count, 0, [None, None], epochs=epochs, resume=tmp_path,
            callbacks=[al.callbacks.csv(file), saving],
        )  # fmt: skip

    train(6)
    straight = file.read_text()
    for path in tmp_path.glob("step-*"):  # as if killed before these were written
        if path.name not in ("step-00000004", "step-00000008"):
            path.rename(tmp_path / f"gone-{path.name}")
    train(6)
    assert file.read_text() == straight


def test_tensorboard_has_every_number_at_its_step(tmp_path):
    pytest.importorskip("tensorboardX")
    al.fit(
        lambda s, b: (s, {"loss": b, "matrix": np.ones(2)}), 0, [1.0, 3.0, 5.0],
        epochs=2, callbacks=[al.callbacks.tensorboard(tmp_path, every=2)],
    )  # fmt: skip
    assert scalars(tmp_path) == {"loss": [(s + 1, [1, 3, 5][s % 3]) for s in range(6)]}


def scalars(folder):
    """The numbers of an event file: records of TFRecord, each a message of protobuf."""
    import struct

    from tensorboardX.proto import event_pb2

    (file,) = folder.glob("events.*")
    content, found = file.read_bytes(), {}
    while content:
        (length,) = struct.unpack("<Q", content[:8])
        event = event_pb2.Event.FromString(content[12 : 12 + length])
        content = content[16 + length :]
        for value in event.summary.value:
            found.setdefault(value.tag, []).append((event.step, value.simple_value))
    return found


def test_a_window_of_steps_is_profiled(tmp_path, monkeypatch):
    calls, at = [], []
    monkeypatch.setattr(
        jax.profiler, "start_trace", lambda folder: calls.append(("start", at[-1]))
    )
    monkeypatch.setattr(
        jax.profiler, "stop_trace", lambda: calls.append(("stop", at[-1]))
    )
    note = al.when("step_completed", lambda loop: at.append(loop.step))
    window = al.callbacks.profile(tmp_path, start=2, stop=4)
    al.fit(count, 0, [None] * 6, epochs=1, callbacks=[note, window])
    assert calls == [("start", 2), ("stop", 4)]
    del calls[:]
    al.fit(count, 0, [None] * 3, epochs=1, callbacks=[note, window])
    assert calls == [("start", 2), ("stop", 3)]


@pytest.mark.slow
def test_a_profile_is_written(tmp_path):
    step = al.train_step(
        al.dense(1), lambda y, batch: optax.l2_loss(y, batch[1]), optax.sgd(0.3)
    )
    ts = step.start(*step.model.init(jax.random.key(0), X))
    window = al.callbacks.profile(tmp_path, start=2, stop=4)
    al.fit(step, ts, [(X, Y)], epochs=6, callbacks=[window])
    assert list(tmp_path.rglob("*.xplane.pb"))


# --- time, and numbers that are none


def test_time_runs_out_after_the_step_under_way(monkeypatch):
    from axonlike.training import stopping

    now = [0.0]
    monkeypatch.setattr(stopping.time, "monotonic", lambda: now[0])

    def step(state, batch):
        now[0] += 1
        return count(state, batch)

    limit = al.callbacks.time_limit(2.5)
    r = al.fit(step, 0, [None] * 9, epochs=1, callbacks=[limit])
    assert (r.state, r.halted) == (3, "time_limit: 2.5 s have passed")


def breaking(where):
    """A model that takes the root of what may be negative, or of zero."""
    body = al.dense(4, use_bias=False)
    model = al.serial(body=body, root=jnp.sqrt, head=al.dense(1))
    params = {
        "body": {"kernel": jnp.ones((1, 4))},
        "head": {"kernel": jnp.ones((4, 1)), "bias": jnp.zeros(1)},
    }
    step = al.train_step(
        model, lambda y, batch: optax.l2_loss(y, batch[1]), optax.sgd(1e-3)
    )
    x = np.ones((40, 2, 1), np.float32)
    x[33] = where
    return step, step.start(params, {}), [(each, each * 0 + 2) for each in x]


@pytest.mark.parametrize(
    ("where", "text"),
    [
        (
            -1.0,
            "stop_on_nonfinite: loss is nan at step 34; the state of step 33 is finite; "
            "the next step has forward: nan in the output of root",
        ),
        (
            0.0,
            "stop_on_nonfinite: loss is nan at step 35; the state of step 33 is finite; "
            "the next step has backward: ",
        ),
    ],
)
def test_what_is_not_finite_is_found_with_its_path_and_step(where, text):
    step, ts, data = breaking(where)
    watch = al.callbacks.stop_on_nonfinite(every=5)
    r = al.fit(step, ts, data, epochs=1, callbacks=[watch])
    assert r.halted.startswith(text)
    assert "root" in r.halted
    assert int(r.state.step) == 33
    reference, ts, data = breaking(where)
    for batch in data[:33]:
        ts, _ = reference(ts, batch)
    assert jax.tree.all(jax.tree.map(np.array_equal, r.state.params, ts.params))


def test_a_number_that_no_step_returns_cannot_be_watched():
    watch = al.callbacks.stop_on_nonfinite("los")
    with pytest.raises(al.PathError, match=r"stop_on_nonfinite: .*Nearest: 'loss'"):
        al.fit(count, 0, [None], epochs=1, callbacks=[watch])


def test_several_numbers_cannot_be_watched():
    watch, several = al.callbacks.stop_on_nonfinite(), {"loss": np.ones(2)}
    with pytest.raises(TypeError) as caught:
        al.fit(lambda s, b: (s, several), 0, [None], epochs=1, callbacks=[watch])
    assert str(caught.value) == (
        "stop_on_nonfinite: expected 'loss' to be one number, got float64[2]. "
        "Choose another metric."
    )


def test_finite_training_is_left_alone():
    step, ts, data = breaking(1.0)
    watch = al.callbacks.stop_on_nonfinite(every=5)
    r = al.fit(step, ts, data, epochs=1, callbacks=[watch])
    assert r.halted is None
    assert len(r.history["loss"]) == 40


# --- errors


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: al.callbacks.early_stopping(patience=0),
            "early_stopping: patience must be a positive int, got 0.",
        ),
        (
            lambda: al.callbacks.early_stopping(patience="a"),
            "early_stopping: patience must be a positive int, got 'a'.",
        ),
        (
            lambda: al.callbacks.plateau(patience=2.5),
            "plateau: patience must be a positive int, got 2.5.",
        ),
        (
            lambda: al.callbacks.time_limit("a"),
            "time_limit: seconds must be positive, got 'a'.",
        ),
        (
            lambda: al.callbacks.profile("x", start=jnp.zeros(3)),
            "profile: start must be a positive int, got float32[3].",
        ),
        (
            lambda: al.callbacks.early_stopping(mode="least"),
            "early_stopping: mode must be 'min' or 'max', got 'least'.",
        ),
        (
            lambda: al.callbacks.early_stopping(min_delta=-1),
            "early_stopping: min_delta must not be negative, got -1.",
        ),
        (
            lambda: al.callbacks.plateau(factor=1.5),
            "plateau: factor must be below 1, got 1.5.",
        ),
        (
            lambda: al.callbacks.profile("x", start=5, stop=5),
            "profile: stop must be after start=5, got 5.",
        ),
        (
            lambda: al.callbacks.time_limit(-1),
            "time_limit: seconds must be positive, got -1.",
        ),
        (
            lambda: al.callbacks.checkpoint("x", keep=0),
            "checkpoint: keep must be a positive int, got 0.",
        ),
        (
            lambda: al.callbacks.stop_on_nonfinite(every=0),
            "stop_on_nonfinite: every must be a positive int, got 0.",
        ),
        (
            lambda: al.callbacks.tensorboard("x", every=0),
            "tensorboard: every must be a positive int, got 0.",
        ),
    ],
)
def test_options_out_of_range_are_told_at_once(make, message):
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        make()
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: al.callbacks.early_stopping(3),
            "early_stopping: expected the name of a metric, got int.",
        ),
        (
            lambda: al.callbacks.early_stopping(baseline="low"),
            "early_stopping: baseline must be a number, got 'low'.",
        ),
        (
            lambda: al.callbacks.plateau(lowest="low"),
            "plateau: lowest must be a number, got 'low'.",
        ),
        (
            lambda: al.callbacks.checkpoint("x", best=3),
            "checkpoint: expected the name of a metric, got int.",
        ),
        (
            lambda: al.with_learning_rate({}, "low"),
            "with_learning_rate: value must be a number, got 'low'.",
        ),
    ],
)
def test_options_of_another_kind_are_told_at_once(make, message):
    with pytest.raises(TypeError) as caught:
        make()
    assert str(caught.value) == message


def test_a_metric_that_there_is_not_is_told():
    with pytest.raises(al.PathError) as caught:
        run(al.callbacks.early_stopping("validation_los"), [1.0])
    assert str(caught.value) == (
        "early_stopping: nothing is called 'validation_los'. "
        "Nearest: 'validation_loss'."
    )
