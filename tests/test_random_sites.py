"""Every site of random models: read alone as in a full run; edits that change nothing."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from test_random_models import KEY, SPEC, X, models

import axonlike as al
from axonlike.evaluation import evaluate
from axonlike.frame import Run
from axonlike.taps import Taps

HOW = {"key": jax.random.key(2), "train": True}
TOLERANCE = {"rtol": 1e-4, "atol": 1e-4}


def run_all(model, params, state):
    """The value at every site, in one run with nothing left out."""
    run = Run(HOW["key"], train=True, taps=Taps(every=True))
    return evaluate(model, params, state, X, run)[2]


def close(a, b, what):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, **TOLERANCE, err_msg=what)


def tame(tree):
    """Whether rounding does not matter: no values beyond reason."""
    leaves = jax.tree.leaves(tree)
    return all(jnp.isfinite(a).all() and jnp.abs(a).max() < 1e4 for a in leaves)


runs = itertools.count(1)


def checked(model):
    params, state = model.init(KEY, SPEC)
    if next(runs) % 100 == 0:  # compiled functions hold memory maps, which run out
        jax.clear_caches()
    return params, state


def together(functions, params, state, **more):
    """What each of several compiled functions returns, by one program: compiled once."""

    @jax.jit
    def run(params, state, x):
        same = {name: x for name in more}
        return {
            name: function(
                params, state, x, **HOW, **(same if function.arguments else {})
            )
            for name, function in functions.items()
        }

    return run(params, state, X)


def check_reads(model):
    params, state = checked(model)
    whole = run_all(model, params, state)
    assume(tame(whole))
    specs = model.sites(X)
    assert specs.keys() == whole.keys()
    reads = {path: al.compile(model[path]) for path in specs}
    for path, value in together(reads, params, state).items():
        shapes = jax.tree.map(jnp.shape, (value, specs[path]))
        assert shapes[0] == shapes[1], path
        close(value, whole[path], path)


def check_unchanged(model, edits):
    params, state = checked(model)
    plain, _ = model.apply(params, state, X, **HOW)
    assume(tame(run_all(model, params, state)))
    edited = {repr(edit): al.compile(model["output"], [edit]) for edit in edits(model)}
    for edit, found in together(edited, params, state, same=True).items():
        close(found, plain, edit)


def idle(model):
    for path in model.sites(X):
        site = model[path]
        yield from (site.add(0.0), site.scale(1), site.map(lambda v: v))


def own(model):
    """What a site holds in another run on the same input is put there.

    Of all copies of a site, and of the last alone; repeats and ensembles have two here.
    """
    for path in model.sites(X):
        last = "/".join("1" if step == "*" else step for step in path.split("/"))
        for each in dict.fromkeys([path, last]):
            yield model[each].set(al.on("same", model[each]))


@settings(max_examples=6)
@given(models(3))
def test_every_site_is_read_alone_as_in_a_full_run(model):
    check_reads(model)


@settings(max_examples=6)
@given(models(3))
def test_an_edit_that_changes_nothing_changes_nothing(model):
    check_unchanged(model, idle)


@settings(max_examples=6)
@given(models(3))
def test_a_sites_own_value_put_there_changes_nothing(model):
    check_unchanged(model, own)


@pytest.mark.slow
@given(models())
def test_every_site_of_deep_models_is_read(model):
    check_reads(model)


@pytest.mark.slow
@given(models())
def test_no_edit_of_deep_models_that_changes_nothing_changes_anything(model):
    check_unchanged(model, idle)
    check_unchanged(model, own)
