"""The loop: events, filters, data of every kind, what is measured, and what is shown."""

import io
import re
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import axonlike as al
from axonlike.training import logs as late
from axonlike.training import progress
from axonlike.training.events import EVENTS

X = np.linspace(-1, 1, 20, dtype=np.float32)[:, None]
Y = 3 * X + 1


@pytest.fixture(autouse=True)
def standard_promotion():
    """Optax mixes dtypes."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def count(state, batch):
    """A step without arrays: how many there were, and what each batch said."""
    return state + 1, {"loss": float(np.sum(batch))}


def regression(**options):
    model = al.dense(1)
    step = al.train_step(
        model, lambda y, batch: optax.l2_loss(y, batch[1]), optax.sgd(0.1), **options
    )
    return step, step.start(*model.init(jax.random.key(0), X))


class Recorder:
    """A callback that writes down every event with the step."""

    def __init__(self):
        self.seen = []

    def __call__(self, loop):
        def note(event):
            return lambda loop: self.seen.append((event, loop.step))

        return al.callbacks.Handlers({event: note(event) for event in EVENTS})

    def counts(self):
        names = [event for event, _ in self.seen]
        return {event: names.count(event) for event in EVENTS}


# --- events


def test_every_event_happens_as_often_as_it_should():
    recorder, losses = Recorder(), iter([3.0, 1.0, 2.0])
    al.fit(
        count, 0, [1.0] * 4, epochs=3, callbacks=[recorder],
        validate=lambda state: {"loss": next(losses)},
    )  # fmt: skip
    assert recorder.counts() == {
        "started": 1,
        "epoch_started": 3,
        "step_completed": 12,
        "validated": 3,
        "improved": 2,
        "epoch_completed": 3,
        "halted": 0,
        "completed": 1,
        "failed": 0,
    }
    order = [event for event, step in recorder.seen if step in (0, 4)]
    assert order == [
        "started", "epoch_started", "step_completed", "validated", "improved",
        "epoch_completed", "epoch_started",
    ]  # fmt: skip


def test_a_run_that_is_halted_says_so_and_why():
    recorder = Recorder()
    stop = al.when("step_completed", lambda loop: loop.halt("enough"), after=2)
    r = al.fit(count, 0, [1.0] * 4, epochs=3, callbacks=[recorder, stop])
    assert (r.state, r.halted) == (3, "enough")
    assert recorder.seen[-1] == ("halted", 3)
    counts = recorder.counts()
    assert (counts["halted"], counts["completed"], counts["failed"]) == (1, 0, 0)
    assert counts["epoch_completed"] == 0


def test_a_run_that_is_halted_before_it_starts_takes_no_step():
    stop = al.when("started", lambda loop: loop.halt("not today"))
    r = al.fit(count, 0, [1.0], epochs=3, callbacks=[stop])
    assert (r.state, r.halted, len(r.history)) == (0, "not today", 0)


def test_a_run_that_fails_says_so_and_where():
    def step(state, batch):
        if state == 5:
            raise ZeroDivisionError("five")
        return count(state, batch)

    recorder, errors = Recorder(), []
    keep = al.when("failed", lambda loop: errors.append(loop.error))
    with pytest.raises(ZeroDivisionError, match="five") as caught:
        al.fit(step, 0, [1.0] * 4, epochs=3, callbacks=[recorder, keep])
    assert errors == [caught.value]
    assert caught.value.__notes__ == ["in fit, epoch 2, after step 5"]
    counts = recorder.counts()
    assert (counts["halted"], counts["completed"], counts["failed"]) == (0, 0, 1)


def test_an_error_in_a_handler_is_an_error_of_the_run():
    def bad(loop):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        al.fit(count, 0, [1.0], epochs=1, callbacks=[al.when("epoch_completed", bad)])


def test_handlers_are_called_in_the_order_given():
    seen = []
    both = [
        al.when("step_completed", lambda loop, name=name: seen.append(name))
        for name in "ab"
    ]
    al.fit(count, 0, [1.0] * 2, epochs=1, callbacks=both)
    assert seen == ["a", "b", "a", "b"]


def test_a_handler_may_replace_the_state():
    def replace(loop):
        loop.state += 100

    r = al.fit(count, 0, [1.0] * 3, epochs=1, callbacks=[al.when("started", replace)])
    assert r.state == 103


def test_what_is_settled_happens_after_all_that_belongs_to_the_step():
    seen = []
    callbacks = [
        al.when("step_completed", lambda loop: loop.settled(lambda: seen.append("s"))),
        al.when("validated", lambda loop: seen.append("v")),
    ]
    al.fit(
        count, 0, [1.0] * 2, epochs=1, callbacks=callbacks, validate_every=1,
        validate=lambda state: {"loss": 0.0},
    )  # fmt: skip
    assert seen == ["v", "s", "v", "s"]


# --- filters


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({}, [1, 2, 3, 4, 5, 6]),
        ({"every": 2}, [2, 4, 6]),
        ({"first": True}, [1]),
        ({"before": 3}, [1, 2]),
        ({"after": 4}, [5, 6]),
        ({"once": True}, [1]),
        ({"once": True, "after": 2}, [3]),
        ({"every": 2, "after": 2, "before": 6}, [4]),
    ],
)
def test_filters(options, steps):
    seen = []
    report = al.when("step_completed", lambda loop: seen.append(loop.step), **options)
    al.fit(count, 0, [1.0] * 3, epochs=2, callbacks=[report])
    assert seen == steps


def test_seconds_pass_between_two_calls(monkeypatch):
    from axonlike.training import events

    now = [0.0]
    monkeypatch.setattr(events.time, "monotonic", lambda: now[0])

    def step(state, batch):
        now[0] += 1
        return count(state, batch)

    seen = []
    report = al.when("step_completed", lambda loop: seen.append(loop.step), seconds=3)
    al.fit(step, 0, [1.0] * 10, epochs=1, callbacks=[report])
    assert seen == [3, 6, 9]


def test_one_callback_serves_in_several_runs():
    seen = []
    once = al.when("step_completed", lambda loop: seen.append(loop.step), once=True)
    for _ in range(2):
        al.fit(count, 0, [1.0] * 3, epochs=1, callbacks=[once])
    assert seen == [1, 1]


# --- how long


def test_steps_and_epochs_end_training_whichever_comes_first():
    assert al.fit(count, 0, [1.0] * 4, steps=6).state == 6
    assert al.fit(count, 0, [1.0] * 4, steps=6, epochs=1).state == 4
    assert al.fit(count, 0, [1.0] * 4, steps=3, epochs=1).state == 3


def test_a_generator_lasts_for_one_epoch():
    assert al.fit(count, 0, (float(i) for i in range(5)), epochs=1).state == 5
    with pytest.raises(ValueError, match=r"no batches in epoch 2\. A generator ends"):
        al.fit(count, 0, (float(i) for i in range(5)), epochs=2)


def test_numbers_of_numpy_and_jax_are_numbers():
    data = al.batches((np.arange(6.0),), np.int64(2), key=np.int64(1))
    r = al.fit(
        lambda s, b: (s + 1, {}), 0, data, steps=jnp.int32(5), epochs=np.int64(2),
        validate=lambda state: {"loss": 1.0}, validate_every=np.int64(2),
        callbacks=[al.callbacks.early_stopping(
            patience=np.int64(9), restore_best=False)],
    )  # fmt: skip
    assert r.state == 5


# --- data


class Tensor:
    """As PyTorch's: no array, but it can be made one."""

    def __init__(self, array):
        self.array = array

    def __array__(self, dtype=None, copy=None):
        return self.array


@pytest.mark.parametrize(
    "kind",
    [
        lambda x, y: (x, y),
        lambda x, y: [x, y],
        lambda x, y: (jnp.asarray(x), jnp.asarray(y)),
        lambda x, y: [Tensor(x), Tensor(y)],
    ],
)
def test_batches_of_any_kind_are_the_same_to_a_step(kind):
    step, ts = regression()
    data = [kind(X[:10], Y[:10]), kind(X[10:], Y[10:])]
    r = al.fit(step, ts, data, epochs=3)
    reference, ts = regression()
    for _ in range(3):
        for part in (slice(10), slice(10, None)):
            ts, _ = reference(ts, (X[part], Y[part]))
    assert jax.tree.all(jax.tree.map(np.array_equal, r.state.params, ts.params))


def test_batches_may_be_dicts_and_named_tuples():
    from collections import UserDict, namedtuple

    Pair = namedtuple("Pair", ["x", "y"])
    seen = []

    def step(state, batch):
        seen.append(batch)
        return state, {}

    al.fit(step, 0, [UserDict(x=X), Pair(X, [Y])], epochs=1)
    assert type(seen[0]) is dict
    assert type(seen[1]) is Pair
    assert type(seen[1].y) is tuple
    assert np.array_equal(seen[1].y[0], Y)


def test_a_loader_may_fill_one_buffer_again_and_again():
    buffer = np.zeros((300, 300), np.float32)

    def batches():
        for value in range(12):
            buffer[:] = value
            yield buffer

    @jax.jit
    def step(total, x):
        busy = jnp.sum(x @ x @ x) * 0
        return total + busy + x[-1, -1], {"loss": x[0, 0]}

    r = al.fit(step, jnp.zeros(()), batches(), epochs=1)
    assert float(r.state) == sum(range(12))
    assert r.history["loss"].tolist() == list(range(12))


def test_batches_of_al_batches_are_shuffled_anew_in_every_epoch():
    seen = []

    def step(state, batch):
        seen.extend(batch[0].tolist())
        return state, {}

    al.fit(step, 0, al.batches((np.arange(6),), 3, key=0), epochs=2)
    assert sorted(seen[:6]) == sorted(seen[6:]) == list(range(6))
    assert seen[:6] != seen[6:]


def test_grain_feeds_it():
    grain = pytest.importorskip("grain")
    data = grain.MapDataset.source(np.arange(8.0)).seed(1).shuffle().batch(2)
    r = al.fit(count, 0, data.to_iter_dataset(), epochs=2)
    assert r.state == 8
    assert r.history["loss"][:4].sum() == sum(range(8))


def test_pytorch_feeds_it():
    torch = pytest.importorskip("torch")
    step, ts = regression()
    pairs = torch.utils.data.TensorDataset(torch.tensor(X), torch.tensor(Y))
    loader = torch.utils.data.DataLoader(pairs, batch_size=10)
    r = al.fit(step, ts, loader, epochs=2)
    reference, ts = regression()
    again = al.fit(reference, ts, al.batches((X, Y), 10), epochs=2)
    same = jax.tree.map(np.array_equal, r.state.params, again.state.params)
    assert jax.tree.all(same)


# --- numbers


def test_numbers_are_fetched_late_and_in_groups():
    class Number:
        asked = 0
        most = 0

        def __array__(self, dtype=None, copy=None):
            Number.asked += 1
            return np.array(1.0)

        def is_ready(self):
            raise AssertionError("nobody looks")

    fetched = []

    def step(state, batch):
        Number.most = max(Number.most, state - Number.asked)
        fetched.append(Number.asked)
        return state + 1, {"loss": Number()}

    r = al.fit(step, 0, [1.0] * 40, epochs=1, verbose=0)
    assert fetched[: late.AHEAD] == [0] * late.AHEAD
    assert set(fetched) == {0, 8, 16, 24}
    assert Number.most < late.AHEAD
    assert len(r.history["loss"]) == 40


def test_what_is_measured_in_an_epoch_is_that_of_all_its_examples():
    step = al.train_step(
        al.dense(1),
        lambda y, batch: optax.sigmoid_binary_cross_entropy(y, batch[1]),
        optax.sgd(0.0),
        metrics={
            "right": al.metrics.accuracy(threshold=0.0),
            "area": al.metrics.auroc(),
        },
    )
    labels = (np.arange(20) % 3 == 0).astype(np.int32)[:, None]
    params = step.model.init(jax.random.key(0), X)
    seen = []
    look = al.when("epoch_completed", lambda loop: seen.append(dict(loop.metrics)))
    data = al.batches((X, labels), 8, key=0)
    al.fit(step, step.start(*params), data, epochs=2, callbacks=[look])
    whole = step.evaluate(step.start(*params), al.batches((X, labels), 20))
    assert len(seen) == 2
    for each in seen:
        assert each["right"] == pytest.approx(whole["right"], abs=1e-6)
        assert each["area"] == pytest.approx(whole["area"], abs=1e-6)
        assert each["loss"] == pytest.approx(whole["loss"], rel=1e-6)


def test_short_batches_count_for_what_they_have():
    def step(state, batch):
        return state + 1, {"loss": batch["x"].mean()}

    x, seen = np.arange(7.0), []
    look = al.when("epoch_completed", lambda loop: seen.append(loop.metrics["loss"]))
    masked = al.batches({"x": x, "mask": x > 1}, 4)
    nested = [([{"x": x[:4]}], 0), ([{"x": x[4:]}], 0)]
    al.fit(step, 0, al.batches({"x": x}, 4), epochs=2, callbacks=[look])
    al.fit(step, 0, [{"x": jnp.asarray(x)}], epochs=1, callbacks=[look])
    al.fit(lambda s, b: step(s, b[0][0]), 0, nested, epochs=1, callbacks=[look])
    assert seen == pytest.approx([3.0] * 4)
    al.fit(step, 0, masked, epochs=1, callbacks=[look])
    assert seen[-1] == pytest.approx((2 * 1.5 + 3 * 5.0) / 5)


def test_numbers_that_are_arrays_are_kept_as_arrays(tmp_path):
    def step(state, batch):
        return state, {"loss": batch, "matrix": np.ones((2, 2)) * batch}

    file = tmp_path / "log.csv"
    r = al.fit(step, 0, [1.0, 2.0], epochs=1, callbacks=[al.callbacks.csv(file)])
    assert r.history["matrix"].shape == (2, 2, 2)
    assert file.read_text() == "step,epoch,loss\n2,1,1.5\n"


def test_validation_is_named_and_kept_at_its_steps():
    step, ts = regression()
    r = al.fit(
        step, ts, al.batches((X, Y), 5), steps=6, validate=al.batches((X, Y), 20),
        validate_every=4,
    )  # fmt: skip
    assert list(r.history) == ["loss", "validation_loss"]
    assert r.history.steps("validation_loss").tolist() == [4, 6]
    expected = step.evaluate(r.state, [(X, Y)])["loss"]
    assert r.history["validation_loss"][-1] == pytest.approx(expected, rel=1e-6)


def test_latest_does_not_wait_and_metrics_do():
    seen = []

    def look(loop):
        seen.append((len(loop.latest), loop.metrics["loss"], loop.latest["loss"]))

    al.fit(count, 0, [1.0, 3.0], epochs=1, callbacks=[al.when("step_completed", look)])
    assert seen == [(0, 1.0, 1.0), (1, 2.0, 3.0)]


def test_improvements_are_of_what_is_monitored():
    values = iter([1.0, 3.0, 2.0, 4.0])
    recorder = Recorder()
    al.fit(
        count, 0, [1.0], epochs=4, callbacks=[recorder], monitor="validation_score",
        mode="max", validate=lambda state: {"score": next(values)},
    )  # fmt: skip
    improved = [step for event, step in recorder.seen if event == "improved"]
    assert improved == [1, 2, 4]


def test_without_validation_it_is_the_loss_of_training():
    recorder = Recorder()
    al.fit(count, 0, [1.0], epochs=3, callbacks=[recorder])
    assert recorder.counts()["improved"] == 1
    recorder = Recorder()
    al.fit(lambda s, b: (s, {}), 0, [1.0], epochs=3, callbacks=[recorder])
    assert recorder.counts()["improved"] == 0


def test_a_loss_that_is_several_numbers_improves_nothing():
    recorder, several = Recorder(), {"loss": np.ones(3)}
    r = al.fit(lambda s, b: (s, several), 0, [1.0], epochs=2, callbacks=[recorder])
    assert r.history["loss"].shape == (2, 3)
    assert recorder.counts()["improved"] == 0


def test_not_a_number_is_no_improvement():
    values = iter([float("nan"), 1.0, float("nan")])
    recorder = Recorder()
    al.fit(
        count, 0, [1.0], epochs=3, callbacks=[recorder],
        validate=lambda state: {"loss": next(values)},
    )  # fmt: skip
    assert recorder.counts()["improved"] == 1


def test_the_history_draws_itself(tmp_path):
    pytest.importorskip("matplotlib")
    r = al.fit(count, 0, [1.0] * 300, epochs=2, validate=lambda state: {"loss": 2.0})
    figure = r.history.plot(path=tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    (axes,) = figure.axes
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == ["loss", "validation_loss"]
    with pytest.raises(al.PathError, match=r"'los'\. Nearest: 'loss'"):
        r.history.plot(["los"])


# --- one program


def test_a_run_compiles_one_step():
    step, ts = regression(metrics=[])
    data = al.batches((X, Y), 8, key=0)
    with al.ledger() as first:
        r = al.fit(step, ts, data, epochs=1)
    assert first.compiles
    with al.max_compiles(0):
        al.fit(step, r.state, data, epochs=2)


def test_a_step_costs_microseconds_of_its_own():
    """A twentieth of a step of a thin perceptron, at most; measured: 4 us."""
    data, times = [np.ones((8, 8), np.float32)] * 2000, []
    for _ in range(3):
        start = time.process_time()
        al.fit(lambda state, batch: (state, {"loss": 1.0}), 0, data, epochs=1)
        times.append(time.process_time() - start)
    assert min(times) / len(data) < 20e-6


# --- what is shown


def screen(monkeypatch, width=80):
    console = pytest.importorskip("rich.console")
    text = io.StringIO()
    made = console.Console(file=text, force_terminal=True, width=width)
    monkeypatch.setattr(console, "Console", lambda **_: made)
    return text


def test_a_terminal_shows_a_bar_with_rate_time_left_and_numbers(monkeypatch):
    text = screen(monkeypatch)
    monkeypatch.setattr(progress, "REFRESH", 0.0)
    monkeypatch.setattr("axonlike.training.loop.REFRESH", 0.0)
    al.fit(
        count, 0, [2.0] * 50, epochs=2, verbose=1,
        validate=lambda state: {"loss": 0.25},
    )  # fmt: skip
    assert "epoch 1/2" in plain(text)
    bar, numbers = plain(text).strip().splitlines()[-2:]
    assert re.fullmatch(r"epoch 2/2 \S+ 100/100 [\d.]+ steps/s, 0 s left", bar.strip())
    assert numbers.strip() == "loss 2  validation_loss 0.25"


def plain(text):
    """What is on a screen, without colors."""
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text.getvalue())


def test_a_bar_has_room_for_itself_however_many_numbers_there_are(monkeypatch):
    text = screen(monkeypatch, width=60)
    many = {f"a long name {i}": 0.125 for i in range(9)}
    al.fit(lambda s, b: (s, many), 0, [1.0] * 4, epochs=2, verbose=1)
    bar, numbers = plain(text).strip().splitlines()[-2:]
    assert re.search(r"^epoch 2/2 .* 8/8 .* left$", bar.strip())
    assert re.search(r"^a long name 0 0.125  a long name 1 .*\u2026$", numbers.strip())


def test_the_first_step_which_compiles_is_not_in_the_rate(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])

    def step(state, batch):
        now[0] += 1 if state else 99
        return state + 1, {}

    text = screen(monkeypatch)
    al.fit(step, 0, [1.0] * 9, epochs=1, verbose=1)
    assert " 9/9 1.0 steps/s, 0 s left" in plain(text)
    assert "99" not in plain(text)


def test_nothing_is_shown_where_there_is_no_terminal(capsys):
    for verbose in (None, 0, 1):
        al.fit(count, 0, [2.0] * 5, epochs=2, verbose=verbose)
    assert capsys.readouterr() == ("", "")


def test_two_is_a_line_for_each_epoch(capsys):
    al.fit(count, 0, [2.0, 4.0], epochs=2, verbose=2)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert re.fullmatch(r"epoch 2/2  step 4  \d+\.\d s  loss 3", lines[1])


def test_zero_is_silent_in_a_terminal_too(monkeypatch):
    text = screen(monkeypatch)
    al.fit(count, 0, [2.0] * 5, epochs=1, verbose=0)
    assert not text.getvalue()


def test_without_rich_only_a_bar_that_was_asked_for_is_an_error(monkeypatch):
    def missing(module, what):
        raise ImportError(f"{what}: rich")

    monkeypatch.setattr(progress, "optional", missing)
    assert al.fit(count, 0, [2.0], epochs=1).state == 1
    with pytest.raises(ImportError, match="fit"):
        al.fit(count, 0, [2.0], epochs=1, verbose=1)


def test_smoothing_is_unbiased():
    smooth = progress.Smooth()
    for value in (4.0, 4.0, 4.0):
        smooth.add(value)
        assert smooth.value == pytest.approx(4.0)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59, "59 s"), (185, "3:05"), (7385, "2:03:05")]
)
def test_durations(seconds, text):
    assert progress.duration(seconds) == text


# --- errors


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({}, ValueError, "fit: how long? Pass epochs=, or steps=, or both."),
        ({"epochs": 0}, ValueError, "fit: epochs must be a positive int, got 0."),
        ({"steps": 2.5}, ValueError, "fit: steps must be a positive int, got 2.5."),
        (
            {"epochs": 1, "mode": "most"},
            ValueError,
            "fit: monitor: mode must be 'min' or 'max', got 'most'.",
        ),
        (
            {"epochs": 1, "verbose": 3},
            ValueError,
            "fit: verbose must be 0, 1, 2 or None, got 3.",
        ),
        (
            {"epochs": 1, "monitor": "los"},
            al.PathError,
            "fit: monitor: nothing is called 'los'. Nearest: 'loss'.",
        ),
        (
            {"epochs": 1, "callbacks": [print]},
            TypeError,
            "fit: print is no callback. Make one of a function of the loop with "
            "al.when(event, function).",
        ),
        (
            {"epochs": 1, "validate": 3},
            TypeError,
            "fit: expected validate to be batches, or a function of the state, got int. "
            "Pass al.batches(arrays, batch_size).",
        ),
        (
            {"epochs": 1, "validate": (X, Y)},
            TypeError,
            "fit: validate: expected data to be an iterable of batches, got "
            "(float32[20, 1], float32[20, 1]), which is one. Write [batch], or "
            "al.batches(arrays, batch_size).",
        ),
        (
            {"epochs": 1, "validate_every": 3},
            ValueError,
            "fit: validate_every says when, and validate= is not given.",
        ),
        (
            {"epochs": 1, "validate": [1.0]},
            TypeError,
            "fit: only a step of al.train_step knows how to evaluate batches. "
            "Pass validate=function, which takes the state and returns numbers by name.",
        ),
    ],
)
def test_what_is_wrong_with_the_options_is_told(options, error, message, capsys):
    with pytest.raises(error) as caught:
        al.fit(count, 0, [1.0], **options)
    assert str(caught.value) == message


def test_what_is_wrong_with_the_rest_is_told():
    with pytest.raises(TypeError) as caught:
        al.fit(None, 0, [1.0], epochs=1)
    assert str(caught.value) == (
        "fit: expected a step (state, batch) -> (state, logs), got None. "
        "Make one with al.train_step(model, loss, optimizer)."
    )
    with pytest.raises(TypeError) as caught:
        al.fit(count, 0, 3, epochs=1)
    assert str(caught.value) == (
        "fit: expected data to be an iterable of batches, got int. "
        "Pass al.batches(arrays, batch_size), a list, or a loader."
    )
    for batch, shown in (((X, Y), "(float32[20, 1], float32[20, 1])"), ("x", "str")):
        with pytest.raises(TypeError) as caught:
            al.fit(count, 0, batch, epochs=1)
        assert str(caught.value) == (
            f"fit: expected data to be an iterable of batches, got {shown}, which is "
            "one. Write [batch], or al.batches(arrays, batch_size)."
        )
    with pytest.raises(TypeError) as caught:
        al.fit(count, 0, [1.0], epochs=1, callbacks=al.callbacks.time_limit(9))
    assert str(caught.value) == (
        "fit: expected a list of callbacks, got time_limit alone. "
        "Write callbacks=[...]."
    )
    with pytest.raises(TypeError) as caught:
        al.fit(lambda s, b: (s, b), 0, [1.0], epochs=1)
    assert str(caught.value) == (
        "fit: expected a step to return (state, logs), logs being a dict of numbers by "
        "name, got float for the logs. Return state, {'loss': loss}."
    )
    for result, shown in ((0, "int"), ((0, {1: 2.0}), "{1: float} for the logs")):
        with pytest.raises(TypeError) as caught:
            al.fit(lambda s, b, r=result: r, 0, [1.0], epochs=1)
        assert f"by name, got {shown}. Return state" in str(caught.value)
    with pytest.raises(TypeError) as caught:
        al.fit(count, 0, [1.0], epochs=1, validate=lambda state: 1.0)
    assert str(caught.value) == (
        "fit: expected validate to return a dict of numbers by name, got float. "
        "Return {'loss': loss}."
    )
    with pytest.raises(TypeError) as caught:
        al.fit(lambda s, b: (s, {}), 0, [1.0], epochs=1, monitor="validation_rows",
               validate=lambda state: {"rows": np.ones(3)})  # fmt: skip
    assert str(caught.value) == (
        "fit: monitor: expected 'validation_rows' to be one number, got float64[3]. "
        "Choose another metric."
    )
    with pytest.raises(TypeError) as caught:
        al.fit(lambda s, b: (s, {"loss": "low"}), 0, [1.0], epochs=1)
    assert str(caught.value) == (
        "fit: expected metrics to be numbers, got str for 'loss'. "
        "Leave it out of the logs."
    )


def test_a_handler_that_is_no_function_is_told():
    with pytest.raises(TypeError) as caught:
        al.when("started", 3)
    assert str(caught.value) == "when: expected a function of the loop, got int."


def test_an_event_that_there_is_not_is_told():
    with pytest.raises(al.PathError) as caught:
        al.when("step_complete", print)
    assert str(caught.value) == (
        "when: nothing is called 'step_complete'. "
        "Nearest: 'step_completed', 'epoch_completed', 'completed'."
    )
    with pytest.raises(
        ValueError, match=re.escape("when: every must be a positive int")
    ):
        al.when("step_completed", print, every=0)
