"""The recipes that write a part of training themselves run, and show what they claim."""

import importlib
from pathlib import Path

import jax
import numpy as np
import pytest
from test_examples import compiled

import axonlike as al

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture
def example(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield importlib.import_module


def test_one_step_on_a_task_differentiates_as_a_function(example):
    maml = example("maml")
    params, _ = maml.model.init(jax.random.key(0), (None, 1))
    tasks = maml.sines(np.random.default_rng(0), 2)
    grads = jax.jit(jax.grad(maml.error_after), static_argnums=2)(params, tasks, 1)
    bias, step = params["dense_2"]["bias"], 1e-2

    def moved(by):
        changed = {**params, "dense_2": {**params["dense_2"], "bias": bias + by}}
        return maml.error_after(changed, tasks, 1)

    slope = (moved(step) - moved(-step)) / (2 * step)
    np.testing.assert_allclose(grads["dense_2"]["bias"][0], slope, rtol=1e-3)


@pytest.mark.slow
def test_meta_training_learns_to_learn_in_a_step(example, capsys):
    with al.ledger() as ledger:
        errors = example("maml").main(steps=2000)
    assert compiled(ledger, "step") == 2  # one of each way to train
    assert errors["meta-trained"][1] < 0.5 * errors["meta-trained"][0]
    assert errors["meta-trained"][1] < 0.5 * errors["all at once"][1]
    assert "meta-trained:" in capsys.readouterr().out


def test_the_mean_of_an_ensemble_is_better_than_its_members(example, capsys):
    pytest.importorskip("sklearn")
    with al.ledger() as ledger:
        found = example("ensembles").main(steps=200)
    assert compiled(ledger) == 1
    assert len(found["members"]) == 8
    assert found["mean"] > found["members"].mean()
    assert found["right where they agree"] > found["right where they do not"]
    assert "their mean" in capsys.readouterr().out


@pytest.mark.slow
def test_a_frozen_trunk_learns_from_few(example, capsys):
    pytest.importorskip("sklearn")
    with al.ledger() as ledger:
        found = example("transfer").main()
    assert compiled(ledger) == 3  # the trunk, the new head, all from scratch
    assert found["frozen trunk"] > found["from scratch"] + 0.03
    assert "195 of 13379 weights trained on 30 images" in capsys.readouterr().out
