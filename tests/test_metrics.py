"""Metrics: equal to scikit-learn's, whole or merged, with masks and on several devices."""

import math
import os
import subprocess
import sys
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import axonlike as al

M = al.metrics
N, CLASSES = 300, 5
rng = np.random.default_rng(0)
LOGITS = rng.normal(size=(N, CLASSES)).astype(np.float32)
LABELS = rng.integers(0, CLASSES, N)
SCORES = np.round(rng.normal(size=N), 1).astype(np.float32)  # with ties
YES = rng.integers(0, 2, N)
TARGETS = rng.normal(loc=50.0, size=(N, 3)).astype(np.float32)
GUESSES = (TARGETS + 0.3 * rng.normal(size=(N, 3))).astype(np.float32)
MASK = rng.random(N) < 0.7
CHOSEN = LOGITS.argmax(-1)


def by_class(name, average):
    def theirs(sk, keep):
        function = getattr(sk, f"{name}_score")
        options = {"average": average, "labels": range(CLASSES), "zero_division": 0}
        return function(LABELS[keep], CHOSEN[keep], **options)

    return theirs


def of_yes(name):
    def theirs(sk, keep):
        return getattr(sk, f"{name}_score")(YES[keep], SCORES[keep] > 0)

    return theirs


# what is measured, and what scikit-learn says of the same
CASES = {
    "accuracy": (
        M.accuracy(),
        (LOGITS, LABELS),
        lambda sk, keep: sk.accuracy_score(LABELS[keep], CHOSEN[keep]),
    ),
    "accuracy of yes": (
        M.accuracy(threshold=0.5),
        (SCORES, YES),
        lambda sk, keep: sk.accuracy_score(YES[keep], SCORES[keep] > 0.5),
    ),
    "top_k": (
        M.top_k(2),
        (LOGITS, LABELS),
        lambda sk, keep: sk.top_k_accuracy_score(LABELS[keep], LOGITS[keep], k=2),
    ),
    "confusion_matrix": (
        M.confusion_matrix(CLASSES),
        (LOGITS, LABELS),
        lambda sk, keep: sk.confusion_matrix(LABELS[keep], CHOSEN[keep]),
    ),
    "auroc": (
        M.auroc(),
        (SCORES, YES),
        lambda sk, keep: sk.roc_auc_score(YES[keep], SCORES[keep]),
    ),
    "mean_squared_error": (
        M.mean_squared_error(),
        (GUESSES, TARGETS),
        lambda sk, keep: sk.mean_squared_error(TARGETS[keep], GUESSES[keep]),
    ),
    "root_mean_squared_error": (
        M.root_mean_squared_error(),
        (GUESSES[:, 0], TARGETS[:, 0]),
        lambda sk, keep: sk.root_mean_squared_error(TARGETS[keep, 0], GUESSES[keep, 0]),
    ),
    "mean_absolute_error": (
        M.mean_absolute_error(),
        (GUESSES, TARGETS),
        lambda sk, keep: sk.mean_absolute_error(TARGETS[keep], GUESSES[keep]),
    ),
    "r2": (
        M.r2(),
        (GUESSES, TARGETS),
        lambda sk, keep: sk.r2_score(TARGETS[keep], GUESSES[keep]),
    ),
    "r2 of one": (
        M.r2(),
        (GUESSES[:, 1], TARGETS[:, 1]),
        lambda sk, keep: sk.r2_score(TARGETS[keep, 1], GUESSES[keep, 1]),
    ),
    "perplexity": (
        M.perplexity(),
        (LOGITS, LABELS),
        lambda sk, keep: math.exp(
            sk.log_loss(LABELS[keep], softmax(LOGITS[keep]), labels=range(CLASSES))
        ),
    ),
    "precision of each": (
        M.precision(CLASSES, average="none"),
        (LOGITS, LABELS),
        by_class("precision", None),
    ),
} | {
    f"{name} {average}": (
        getattr(M, name)(CLASSES, average=average),
        (LOGITS, LABELS),
        by_class(name, average),
    )
    for name in ("precision", "recall", "f1")
    for average in ("macro", "micro")
} | {
    f"{name} of yes": (getattr(M, name)(), (SCORES, YES), of_yes(name))
    for name in ("precision", "recall", "f1")
}  # fmt: skip


def softmax(x):
    e = np.exp(x.astype(np.float64))
    return e / e.sum(-1, keepdims=True)


def of_parts(metric, data, mask):
    """The state of three parts that are merged, from the right."""
    bounds = [0, 50, 200, N]
    states = [
        metric.update(*(a[i:j] for a in data), mask[i:j]) for i, j in pairwise(bounds)
    ]
    return metric.merge(states[0], metric.merge(states[1], states[2]))


SECOND = {  # of one kind with another case: nightly
    "accuracy of yes",
    "r2 of one",
    "precision macro",
    "recall macro",
    "recall micro",
    "f1 micro",
    "precision of yes",
    "recall of yes",
}


def in_turn(name):
    marks = [pytest.mark.slow] if name in SECOND else []
    return pytest.param(name, marks=marks)


@pytest.mark.parametrize("name", list(map(in_turn, CASES)))
def test_values_are_those_of_scikit_learn_whole_or_merged(name):
    sk = pytest.importorskip("sklearn.metrics")
    metric, data, theirs = CASES[name]

    @jax.jit
    def values(data, mask):
        whole, parts = metric.update(*data, mask), of_parts(metric, data, mask)
        nothing = metric.update(*data, jnp.zeros(N, bool))
        states = (
            whole,
            parts,
            metric.merge(nothing, whole),
            metric.merge(whole, nothing),
        )
        return [metric.compute(state) for state in states]

    for mask in (np.ones(N, bool), MASK):
        for found in values(data, mask):
            np.testing.assert_allclose(found, theirs(sk, mask), rtol=2e-6)


@pytest.mark.parametrize("name", ["auroc"])
def test_without_a_mask_everything_counts(name):
    metric, data, _ = CASES[name]
    state, same = metric.update(*data), metric.update(*data, np.ones(N, bool))
    jax.tree.map(np.testing.assert_array_equal, state, same)


def test_merging_is_pure_and_runs_under_jit():
    metric, data, _ = CASES["r2"]
    a, b = metric.update(*data), metric.update(*(x[:50] for x in data))
    before = jax.tree.map(np.asarray, a)
    merged = jax.jit(metric.merge)(a, b)
    jax.tree.map(np.testing.assert_array_equal, a, before)
    np.testing.assert_allclose(merged["weight"], [N + 50] * 3)


@pytest.mark.parametrize("name", ["r2", "auroc"])
def test_states_of_several_devices_are_one(name):
    metric, data, _ = CASES[name]
    parts = [np.reshape(a, (4, N // 4, *a.shape[1:])) for a in data]

    def each(*part):
        return metric.across(metric.update(*part), "device")

    states = jax.vmap(each, axis_name="device")(*parts)
    whole = metric.compute(metric.update(*data))
    for i in range(4):
        state = jax.tree.map(lambda a, i=i: a[i], states)
        np.testing.assert_allclose(metric.compute(state), whole, rtol=1e-6)


DEVICES = """
import jax, jax.numpy as jnp, numpy as np, optax, axonlike as al
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P

rng = np.random.default_rng(0)
x, y = rng.normal(size=(8, 4)).astype("f"), rng.integers(0, 3, 8)
loss = lambda y, b: optax.softmax_cross_entropy_with_integer_labels(y, b[1])
model = al.dense(3)
step = al.train_step(model, loss, optax.sgd(0.1), metrics=al.metrics.accuracy())
mesh = Mesh(np.array(jax.devices()), ("batch",))
found = []
for spec in (P("batch"), P()):
    sharding = NamedSharding(mesh, spec)
    ts = step.start(*model.init(jax.random.key(0), x))
    ts = jax.device_put(ts, NamedSharding(mesh, P()))
    ts, logs = step(ts, jax.device_put((x, y), sharding))
    found.append([float(logs["loss"]), float(logs["accuracy"])])
assert len(jax.devices()) == 4
np.testing.assert_allclose(*found, rtol=1e-6)

def each(x, y):
    metric = al.metrics.accuracy()
    state = metric.across(metric.update(x @ np.ones((4, 3), "f"), y), "batch")
    return metric.compute(state)[None]

mapped = jax.shard_map(each, mesh=mesh, in_specs=P("batch"), out_specs=P("batch"))
whole = al.metrics.accuracy()
whole = whole.compute(whole.update(x @ np.ones((4, 3), "f"), y))
np.testing.assert_allclose(mapped(x, y), [whole] * 4, rtol=1e-6)
"""


def test_a_step_and_its_metrics_on_four_devices():
    environment = {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "4"}
    done = subprocess.run(
        [sys.executable, "-c", DEVICES],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_tokens_have_masks_of_sequences_or_of_their_own():
    logits = rng.normal(size=(4, 6, 3)).astype(np.float32)
    labels = rng.integers(0, 3, (4, 6))
    right = logits.argmax(-1) == labels
    metric = M.accuracy()
    for mask in (rng.random((4, 6)) < 0.5, np.array([True, False, True, True])):
        found = metric.compute(metric.update(logits, labels, mask))
        np.testing.assert_allclose(found, right[mask].mean(), rtol=1e-6)


def test_means_of_millions_keep_their_digits():
    metric = M.mean(lambda y, targets: y, "value")
    state = metric.update(jnp.ones(1000), jnp.ones(1000))
    merge = jax.jit(
        lambda s: jax.lax.fori_loop(0, 20, lambda _, s: metric.merge(s, s), s)
    )
    many = merge(state)  # a thousand million
    half = metric.merge(
        many, jax.tree.map(lambda a: 0 * a, many) | {"weight": many["weight"]}
    )
    np.testing.assert_allclose(metric.compute(half), 0.5, rtol=1e-6)


def test_nothing_seen_is_not_a_number():
    for metric, data in (
        (M.accuracy(), (LOGITS, LABELS)),
        (M.auroc(), (SCORES, YES)),
        (M.r2(), (GUESSES, TARGETS)),
    ):
        assert np.isnan(metric.compute(metric.update(*data, np.zeros(N, bool))))


def test_what_does_not_count_may_be_no_number():
    nan, keep = float("nan"), jnp.array([True, True, False])
    y, targets = jnp.array([1.0, 2.0, nan]), jnp.array([1.0, 2.5, 0.0])
    for metric in (M.r2(), M.mean_squared_error()):
        expected = metric.compute(metric.update(y[:2], targets[:2]))
        for pair in ((y, targets), (targets, y)):
            found = metric.compute(metric.update(*pair, keep))
            assert bool(jnp.isfinite(found))
        assert metric.compute(metric.update(y, targets, keep)) == expected


def test_targets_that_are_all_the_same_are_explained_or_not():
    metric, same = M.r2(), jnp.ones(3)
    for guess in (same, same + 1):
        expected = pytest.importorskip("sklearn.metrics").r2_score(same, guess)
        assert float(metric.compute(metric.update(guess, same))) == expected


def test_another_number_of_classes_is_told():
    with pytest.raises(al.ShapeError) as caught:
        M.f1(2).update(jnp.eye(4), jnp.arange(4))
    assert str(caught.value) == (
        "f1: expected predictions (..., 2), got float32[4, 4]. "
        "num_classes is the size of their last axis."
    )
    with pytest.raises(ValueError, match="num_classes must be a positive int, got 0"):
        M.precision(0)


def test_lists_are_arrays():
    for metric, y, targets in (
        (M.accuracy(), [[1.0, 2.0], [2.0, 1.0]], [1, 1]),
        (M.mean_squared_error(), [1.0, 2.0], [0.0, 0.0]),
    ):
        given = metric.compute(metric.update(y, targets, [True, True]))
        assert given == metric.compute(metric.update(np.array(y), np.array(targets)))


def test_a_label_that_is_no_class_has_no_perplexity():
    metric, y = M.perplexity(), jnp.zeros((2, 3))
    state = metric.update(y, jnp.array([-1, 2]))
    assert np.isnan(metric.compute(state))
    state = metric.update(y, jnp.array([-1, 2]), jnp.array([False, True]))
    np.testing.assert_allclose(metric.compute(state), 3, rtol=1e-6)


def test_a_score_that_is_no_number_has_no_area():
    metric, scores = M.auroc(), np.array([np.nan, -1.0, 0.0])
    labels = np.array([1, 0, 1])
    assert np.isnan(metric.compute(metric.update(scores, labels)))
    kept = metric.update(scores, labels, np.array([False, True, True]))
    assert metric.compute(kept) == 1


def test_metrics_alone_count_the_elements_of_a_mask():
    model, x = al.dense(3), rng.normal(size=(6, 5, 4)).astype(np.float32)
    params, state = model.init(jax.random.key(0), x)
    targets, mask = rng.integers(0, 3, (6, 5)), rng.random((6, 5)) < 0.5
    data = al.batches({"inputs": x, "targets": targets, "mask": mask}, 4)
    found = al.evaluate(model, params, state, data, metrics=M.accuracy())
    right = model.predict(params, state, x).argmax(-1) == targets
    np.testing.assert_allclose(found["accuracy"], right[mask].mean(), rtol=1e-6)


def test_equal_metrics_are_one_object():
    assert M.accuracy() is M.accuracy()
    assert M.top_k(2) is not M.top_k(3)


def test_options_may_be_arrays_of_one_number():
    y, targets = np.array([[3.0, 2.0, 1.0]]), np.array([1])
    for metric, of_jax in (
        (M.top_k(2), M.top_k(jnp.int32(2))),
        (M.f1(3), M.f1(targets.max() + jnp.int32(2))),
    ):
        found = of_jax.compute(of_jax.update(y, targets))
        assert found == metric.compute(metric.update(y, targets))
    with pytest.raises(ValueError, match=r"k must be a positive int, got int64\[2\]"):
        M.top_k(np.arange(2))


MISTAKES = {
    "shape": (
        lambda: M.mean_squared_error().update(np.ones((4, 1)), np.ones(4)),
        al.ShapeError,
        "mean_squared_error: expected targets [4, 1] for predictions float64[4, 1], "
        "got float64[4]. Reshape one of them.",
    ),
    "logits": (
        lambda: M.accuracy().update(np.ones((4, 3)), np.ones((4, 3))),
        al.ShapeError,
        "accuracy: expected targets [4] for predictions float64[4, 3], "
        "got float64[4, 3]. Reshape one of them.",
    ),
    "mask": (
        lambda: M.accuracy().update(LOGITS, LABELS, np.ones(7, bool)),
        al.ShapeError,
        "accuracy: expected a mask of the first axes of [300], got bool[7]. "
        "Give it one truth value for each example, or for each element.",
    ),
    "k": (
        lambda: M.top_k(0),
        ValueError,
        "top_k: k must be a positive int, got 0.",
    ),
    "classes": (
        lambda: M.confusion_matrix(2.0),
        ValueError,
        "confusion_matrix: num_classes must be a positive int, got 2.0.",
    ),
    "text": (
        lambda: M.accuracy().update("a", "b"),
        TypeError,
        "accuracy: expected arrays of numbers, got str.",
    ),
    "one number": (
        lambda: M.top_k(2).update(1.0, 1),
        al.ShapeError,
        "top_k: expected predictions (..., classes), got float64[].",
    ),
    "a mean of means": (
        lambda: M.mean(lambda y, t: jnp.mean(y - t), "off").update(
            np.ones(3, "f"), np.ones(3, "f")
        ),
        al.ShapeError,
        "off: expected one number for each example, got float32[]. "
        "Return the numbers, and not their mean.",
    ),
    "threshold": (
        lambda: M.recall(threshold="a"),
        TypeError,
        "recall: threshold must be a number, got 'a'.",
    ),
    "no function": (
        lambda: M.mean(3),
        TypeError,
        "mean: expected a function of (predictions, targets), got int.",
    ),
    "average": (
        lambda: M.f1(3, average="weighted"),
        ValueError,
        "f1: average must be 'macro', 'micro' or 'none', got 'weighted'.",
    ),
    "output": (
        lambda: M.accuracy().on("kind").update({"kin": LOGITS}, LABELS),
        al.PathError,
        "metric: nothing is called 'kind'. Nearest: 'kin'. "
        "It is read where outputs are a dict.",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_told(name):
    run, kind, message = MISTAKES[name]
    with pytest.raises(kind) as caught:
        run()
    assert str(caught.value) == message
