"""Checkpoints: whole or not at all, never loaded when they are not, and exact resume."""

import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jobs import training

import axonlike as al
from axonlike.training import checkpoint
from axonlike.training.checkpoint import TornCheckpoint

pytest.importorskip("orbax.checkpoint")

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def standard_promotion():
    """Optax mixes dtypes."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def state():
    params = {
        "blocks": {"*": {"kernel": jnp.arange(6.0).reshape(2, 3)}},
        "half": jnp.ones(2, jnp.bfloat16),
        "eighth": jnp.ones(2, jnp.float8_e4m3fn),
        "none at all": jnp.zeros((0, 3)),
        "yes": jnp.array([True, False]),
        "a/b%2F.c": jnp.int32(4),
    }
    return {
        "params": params,
        "opt": optax.adamw(1e-3).init({"w": jnp.ones(3)}),
        "key": jax.random.key(3),
        "rbg": jax.random.key(1, impl="rbg"),
        "old key": jax.random.PRNGKey(0),
        "numpy": np.arange(3),
        "count": 3,
        "rate": 0.1,
        "nothing": None,
    }


def raw(x):
    return np.asarray(jax.random.key_data(x) if checkpoint.is_key(x) else x)


def same(a, b):
    """Byte for byte, types and dtypes included."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert type(x) is type(y)
        if hasattr(x, "dtype"):
            assert x.dtype == y.dtype
        assert raw(x).tobytes() == raw(y).tobytes()
    return True


# --- what is written is what is read


def test_a_state_comes_back_byte_for_byte(tmp_path):
    saved = state()
    path = al.save_checkpoint(tmp_path, 5, saved)
    assert path == tmp_path / "step-00000005"
    assert same(al.load_checkpoint(tmp_path, state()), saved)
    assert same(al.load_checkpoint(path, state()), saved)


def test_without_a_state_arrays_come_in_dicts_by_name(tmp_path):
    saved = state()
    al.save_checkpoint(tmp_path, 5, saved)
    tree = al.load_checkpoint(tmp_path)
    assert tree["params"].keys() == saved["params"].keys()
    assert tree["params"]["half"].dtype == jnp.bfloat16
    assert tree["opt"]["0"]["mu"]["w"].shape == (3,)
    assert (tree["count"], tree["nothing"]) == (3, None)


def test_arrays_are_put_where_those_expected_are(tmp_path):
    mesh = jax.make_mesh((1,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    where = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x"))
    like = {"w": jax.device_put(jnp.zeros(4), where)}
    al.save_checkpoint(tmp_path, 1, {"w": jnp.ones(4)})
    assert al.load_checkpoint(tmp_path, like)["w"].sharding == where


def test_the_newest_is_loaded_and_older_ones_go(tmp_path):
    for step in (9, 10, 100):
        al.save_checkpoint(tmp_path, step, {"w": jnp.full(2, float(step))}, keep=2)
    assert sorted(os.listdir(tmp_path)) == ["step-00000010", "step-00000100"]
    assert al.load_checkpoint(tmp_path)["w"].tolist() == [100, 100]


def test_one_may_be_written_again(tmp_path):
    for value in (1.0, 2.0):
        al.save_checkpoint(tmp_path, 7, {"w": jnp.full(2, value)})
    assert al.load_checkpoint(tmp_path)["w"].tolist() == [2, 2]
    assert os.listdir(tmp_path) == ["step-00000007"]


# --- what is not whole


def two(folder):
    for step in (1, 2):
        al.save_checkpoint(folder, step, {"w": jnp.arange(100.0) + step})
    return folder / "step-00000002"


def files(path):
    return sorted(file for file in path.rglob("*") if file.is_file())


def test_any_file_that_is_changed_cut_or_missing_is_noticed(tmp_path):
    newest = two(tmp_path)
    for file in files(newest):
        content = file.read_bytes()
        middle = len(content) // 2
        flipped = bytes([content[middle] ^ 1]) if content else b"x"
        bad = [content[:middle] + flipped + content[middle + 1 :], None]
        for damage in [*bad, content[:middle]] if content else bad:
            file.unlink() if damage is None else file.write_bytes(damage)
            with pytest.warns(TornCheckpoint, match="step-00000002 is not whole"):
                loaded = al.load_checkpoint(tmp_path)
            assert loaded["w"][0] == 1, file
            file.write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert al.load_checkpoint(tmp_path)["w"][0] == 2


def test_the_warning_names_it_and_what_is_wrong(tmp_path):
    newest = two(tmp_path)
    (newest / "manifest.json").write_text("{}")
    with pytest.warns(TornCheckpoint) as caught:
        al.load_checkpoint(tmp_path)
    assert str(caught[0].message) == (
        f"checkpoint {newest} is not whole and was passed over: "
        "manifest.json is not what was written."
    )


def test_one_that_was_not_finished_is_named_and_cleared_away(tmp_path):
    two(tmp_path)
    torn = tmp_path / ".writing-step-00000003"
    torn.mkdir()
    (torn / "arrays").mkdir()
    with pytest.warns(TornCheckpoint, match=r"\.writing-step-00000003 .* not finished"):
        assert al.load_checkpoint(tmp_path)["w"][0] == 2
    al.save_checkpoint(tmp_path, 4, {"w": jnp.ones(1)})
    assert not torn.exists()


def test_none_at_all_is_an_error_that_says_so(tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        al.load_checkpoint(tmp_path / "nowhere")
    assert str(caught.value) == (
        f"load_checkpoint: {tmp_path / 'nowhere'} has no checkpoint that is whole."
    )


def test_a_single_one_that_is_damaged_is_an_error(tmp_path):
    newest = two(tmp_path)
    files(newest)[0].unlink()
    with pytest.raises(ValueError, match="is missing"):
        al.load_checkpoint(newest)


# --- other models


def test_another_shape_is_told_by_path_without_values(tmp_path):
    path = al.save_checkpoint(tmp_path, 1, {"dense": {"kernel": jnp.ones((4, 8))}})
    with pytest.raises(al.ShapeError) as caught:
        al.load_checkpoint(tmp_path, {"dense": {"kernel": jnp.ones((4, 9))}})
    assert str(caught.value) == (
        f"checkpoint {path}: dense/kernel: expected float32[4, 9], got float32[4, 8]. "
        "If the model has changed, load without a state and use al.migrate."
    )
    with pytest.raises(al.PathError) as caught:
        al.load_checkpoint(tmp_path, {"dense": {"kernels": jnp.ones((4, 8))}})
    assert str(caught.value) == (
        f"checkpoint {path}: nothing is called 'dense/kernels'. Nearest: 'dense/kernel'. "
        "If the model has changed, load without a state and use al.migrate."
    )


def test_an_old_checkpoint_of_a_changed_model_goes_through_migrate(tmp_path):
    def loss(y, batch):
        return optax.l2_loss(y, batch[1])

    old = al.serial(body=al.dense(8), head=al.dense(2))
    x, y = jnp.ones((4, 3)), jnp.ones((4, 2))
    step = al.train_step(old, loss, optax.adam(0.1))
    ts = step.start(*old.init(jax.random.key(0), x))
    saving = al.callbacks.checkpoint(tmp_path)
    r = al.fit(step, ts, [(x, y)], epochs=3, callbacks=[saving])

    saved = al.load_checkpoint(tmp_path)
    new = al.serial(body=al.dense(8), norm=al.layer_norm(), head=al.dense(2))
    params, state, report = al.migrate(
        old, new, saved["params"], saved.get("model_state", {}), key=jax.random.key(1)
    )
    assert sorted(report.initialized) == ["norm/bias", "norm/scale"]
    assert np.array_equal(params["body"]["kernel"], r.state.params["body"]["kernel"])
    step = al.train_step(new, loss, optax.adam(0.1))
    again = al.fit(step, step.start(params, state), [(x, y)], epochs=1)
    assert np.isfinite(again.history["loss"][0])


# --- exact resume


def equal(a, b):
    """The same names in the same order, the same bytes."""
    assert list(a) == list(b)
    for name in a:
        assert (a[name].dtype, a[name].shape) == (b[name].dtype, b[name].shape), name
        assert a[name].tobytes() == b[name].tobytes(), name
    return True


@pytest.mark.parametrize("steps", [17])
def test_a_part_and_then_the_rest_is_the_whole(tmp_path, straight, steps):
    training.train(tmp_path, steps)
    assert equal(training.train(tmp_path, 24), straight)


def test_training_that_is_over_does_nothing_more(tmp_path, straight):
    assert equal(training.train(tmp_path, 24), straight)
    assert equal(training.train(tmp_path, 24), straight)


def test_training_that_went_further_than_is_asked_for_does_nothing(tmp_path):
    training.train(tmp_path, 9)
    assert int(training.train(tmp_path, 6)["step"]) == 9


def test_one_checkpoint_may_be_gone_on_from(tmp_path):
    def run(**options):
        return al.fit(lambda s, b: (s + b, {"loss": 1.0}), 0, [1, 2, 3], **options)

    run(steps=4, callbacks=[al.callbacks.checkpoint(tmp_path, every=2)])
    r = run(steps=5, resume=tmp_path / "step-00000002")
    assert (r.state, r.history.steps("loss").tolist()) == (9, [1, 2, 3, 4, 5])


def test_what_cannot_be_gone_on_from_is_told(tmp_path):
    path = al.save_checkpoint(tmp_path, np.int64(3), 7)
    assert path.name == "step-00000003"
    with pytest.raises(ValueError, match="has a state, and not where training was"):
        al.fit(lambda s, b: (s, {}), 0, [None], epochs=1, resume=tmp_path)
    with pytest.raises(ValueError, match="expected resume to be a folder of checkpo"):
        al.fit(lambda s, b: (s, {}), 0, [None], epochs=1, resume=path / "manifest.json")


@pytest.mark.parametrize(("step", "keep"), [(-1, None), ("7", None), (1.5, 1), (1, 0)])
def test_a_checkpoint_that_could_not_be_found_again_is_refused(tmp_path, step, keep):
    with pytest.raises(ValueError, match=r"save_checkpoint: (step|keep) must be"):
        al.save_checkpoint(tmp_path, step, {"x": np.ones(2)}, keep=keep)
    assert not list(tmp_path.iterdir())


def test_what_is_no_array_is_told_by_path_and_nothing_is_written(tmp_path):
    with pytest.raises(TypeError) as caught:
        al.save_checkpoint(tmp_path / "new", 1, {"a": {"f": print}})
    assert str(caught.value) == (
        "checkpoint: expected an array, a number or text for 'state/a/f', got "
        "builtin_function_or_method. Leave it out of the state."
    )
    assert not (tmp_path / "new").exists()


def test_an_order_that_cannot_be_found_again_is_told(tmp_path):
    class RandomSampler:
        pass

    class Loader(list):
        sampler = RandomSampler()

    saving = al.callbacks.checkpoint(tmp_path)
    with pytest.warns(UserWarning, match="the order that a RandomSampler makes is not"):
        al.fit(lambda s, b: (s, {}), 0, Loader([1, 2]), epochs=1, callbacks=[saving])


@pytest.mark.parametrize("sampled", ["stream", "in order", "shuffled", "by a list"])
def test_the_order_of_a_loader_is_told_where_it_is_shuffled(tmp_path, sampled):
    data = pytest.importorskip("torch.utils.data")

    class Stream(data.IterableDataset):
        def __iter__(self):
            return iter([1, 2])

    numbers = [1, 2]
    shuffled = data.BatchSampler(data.RandomSampler(numbers), 1, False)
    loader = {
        "stream": lambda: data.DataLoader(Stream()),
        "in order": lambda: data.DataLoader(numbers),
        "shuffled": lambda: data.DataLoader(numbers, batch_sampler=shuffled),
        "by a list": lambda: data.DataLoader(numbers, batch_sampler=[[0], [1]]),
    }[sampled]()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        saving = al.callbacks.checkpoint(tmp_path)
        al.fit(lambda s, b: (s, {}), 0, loader, epochs=1, callbacks=[saving])
    told = [w for w in caught if "fit: the order that a" in str(w.message)]
    assert bool(told) == (sampled == "shuffled")


def test_other_metrics_than_before_are_told(tmp_path):
    def step(state, batch):
        return state, {"loss": 1.0}

    saving = al.callbacks.checkpoint(tmp_path / "checkpoints", every=1)
    training.train(tmp_path, 2)
    ts = training.make_step().start(
        *training.make_step().model.init(jax.random.key(0), al.spec("b 4")),
        key=jax.random.key(1),
    )
    with pytest.raises(al.PathError, match="Resume with the metrics that there were"):
        al.fit(
            step, ts, [1.0], epochs=2, callbacks=[saving],
            resume=tmp_path / "checkpoints",
        )  # fmt: skip


def grain_feed(x, y):
    grain = pytest.importorskip("grain")
    pairs = [(x[i], y[i]) for i in range(len(x))]
    return grain.MapDataset.source(pairs).seed(3).shuffle().batch(4).to_iter_dataset()


def list_feed(x, y):
    return [(x[i : i + 4], y[i : i + 4]) for i in range(0, 28, 4)]


def generator_feed(x, y):
    return iter(list_feed(x, y) * 4)


@pytest.mark.parametrize("feed", [grain_feed, list_feed, generator_feed])
def test_the_position_in_any_data_is_found_again(tmp_path, feed):
    expected = training.train(tmp_path / "whole", 16, feed)
    training.train(tmp_path / "parts", 9, feed)
    assert equal(training.train(tmp_path / "parts", 16, feed), expected)


def test_grain_is_put_where_it_was_and_not_run_through(tmp_path):
    taken = []

    def feed(x, y):
        grain = pytest.importorskip("grain")
        source = grain.MapDataset.source(list(range(28)))
        pairs = source.map(lambda i: taken.append(i) or (x[i], y[i]))
        return pairs.batch(4).to_iter_dataset(grain.ReadOptions(num_threads=0))

    training.train(tmp_path, 5, feed)
    del taken[:]
    training.train(tmp_path, 7, feed)
    assert taken[0] >= 20


def test_less_data_than_before_is_an_error(tmp_path):
    training.train(tmp_path, 5, list_feed)
    with pytest.raises(ValueError, match="at least 5 batches in epoch 1, which were"):
        training.train(tmp_path, 6, lambda x, y: list_feed(x, y)[:3])


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """What comes of 24 steps without a break."""
    with jax.numpy_dtype_promotion("standard"):
        return training.train(tmp_path_factory.mktemp("straight"), 24)


def job(folder, *options):
    """A process that trains."""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, str(ROOT / "tests/jobs/training.py"), str(folder), *options],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def ended(process):
    """What a process printed."""
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return out


def killed(process, seconds=None):
    """Waits until a process is killed; by this one, so long after its first step."""
    if seconds is not None:
        assert process.stdout.readline() == "first step\n"
        time.sleep(seconds)
        process.send_signal(signal.SIGKILL)
    process.communicate(timeout=300)
    return process.returncode == -signal.SIGKILL


def killed_on_its_way(folder, seconds):
    """Starts training and kills it; sooner, if it was over by then."""
    folder.mkdir()
    if not killed(job(folder), seconds):
        shutil.rmtree(folder)
        killed_on_its_way(folder, seconds / 2)


def result(folder):
    with np.load(folder / "result.npz") as arrays:
        return dict(arrays)


def test_killed_at_some_moment_and_in_a_checkpoint_it_ends_the_same(tmp_path, straight):
    assert killed(job(tmp_path), seconds=0.3)
    assert killed(job(tmp_path, "--die-writing", "2"))
    (torn,) = tmp_path.glob("checkpoints/.writing-*")
    out = ended(job(tmp_path))
    assert f"checkpoint {torn} is not whole and was passed over: it was not" in out
    assert equal(result(tmp_path), straight)


@pytest.mark.slow
def test_killed_twenty_times_it_ends_the_same(tmp_path, straight):
    """Each time at another moment, among them those in which a checkpoint is written."""
    for at, seconds in enumerate(np.random.default_rng(0).uniform(0, 1.0, 17)):
        folder = tmp_path / str(at)
        killed_on_its_way(folder, seconds)
        ended(job(folder))
        assert equal(result(folder), straight)
    for count in (1, 4, 7):
        folder = tmp_path / f"writing {count}"
        folder.mkdir()
        assert killed(job(folder, "--die-writing", str(count)))
        ended(job(folder))
        assert equal(result(folder), straight)


@pytest.mark.slow
def test_killed_again_and_again_it_ends_the_same(tmp_path, straight):
    for seconds in np.random.default_rng(1).uniform(0, 0.3, 6):
        process = job(tmp_path)
        if process.stdout.readline() == "first step\n":
            time.sleep(seconds)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    ended(job(tmp_path))
    assert equal(result(tmp_path), straight)
