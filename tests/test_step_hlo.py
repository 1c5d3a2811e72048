"""A training step compiles to what one writes by hand: the same text of StableHLO."""

import re
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax
from test_hlo import affine, assert_same_text, dropped, key_at

import axonlike as al

OPTIMIZER = optax.adamw(1e-3)


@pytest.fixture(autouse=True)
def as_optax_needs(strict):
    with jax.numpy_dtype_promotion("standard"):
        yield


def text(lowered):
    return re.sub(r"^module @\w+", "module @main", lowered.as_text())


def loss(y, batch):
    return optax.softmax_cross_entropy_with_integer_labels(y, batch[1])


def mean_loss(y, batch):
    return loss(y, batch).mean()


def network(p, x):
    """The model by hand."""
    return affine(p["head"], jax.nn.relu(affine(p["body"], x)))


def value_and_grad(p, x, labels, function=network):
    def total(p):
        return jnp.mean(loss(function(p, x), (x, labels)))

    return jax.value_and_grad(total)(p)


def updated(ts, grads):
    updates, opt_state = OPTIMIZER.update(grads, ts.opt_state, ts.params)
    params = optax.apply_updates(ts.params, updates)
    return ts._replace(step=ts.step + 1, params=params, opt_state=opt_state)


def plain(ts, batch):
    value, grads = value_and_grad(ts.params, *batch)
    return updated(ts, grads), {"loss": value}


def accumulated(ts, batch):
    """Four parts, one after another."""
    parts = jax.tree.map(lambda a: a.reshape(4, -1, *a.shape[1:]), batch)

    def one(total, part):
        return jax.tree.map(jnp.add, total, value_and_grad(ts.params, *part)), None

    zeros = jax.tree.map(jnp.zeros_like, (jnp.float32(0), ts.params))
    total, _ = lax.scan(one, zeros, parts)
    value, grads = jax.tree.map(lambda a: a / 4, total)
    return updated(ts, grads), {"loss": value}


def mixed(ts, batch):
    """Params in float32, the network in bfloat16, its output in float32."""

    def low(p, x):
        p = jax.tree.map(lambda a: a.astype(jnp.bfloat16), p)
        return network(p, x.astype(jnp.bfloat16)).astype(jnp.float32)

    value, grads = value_and_grad(ts.params, *batch, function=low)
    return updated(ts, grads), {"loss": value}


def head_only(ts, batch):
    """The gradient of the head alone, which alone is in the optimizer's state."""
    x, labels = batch
    head, body = {"head": ts.params["head"]}, ts.params["body"]
    value, grads = value_and_grad(
        head, x, labels, lambda head, x: network({"body": body, **head}, x)
    )
    updates, opt_state = OPTIMIZER.update(grads, ts.opt_state, head)
    head = optax.apply_updates(head, updates)
    params = {"body": body, **head}
    return (
        ts._replace(step=ts.step + 1, params=params, opt_state=opt_state),
        {"loss": value},
    )


def scaled(ts, batch):
    """The loss times 1024, its gradient divided again."""

    def total(p):
        value = jnp.mean(loss(network(p, batch[0]), batch))
        return value * jnp.float32(1024), value

    (_, value), grads = jax.value_and_grad(total, has_aux=True)(ts.params)
    grads = jax.tree.map(lambda g: g / jnp.float32(1024), grads)
    return updated(ts, grads), {"loss": value}


def noisy(ts, batch):
    """With dropout, whose key is the step's own."""
    key = jax.random.fold_in(ts.key, ts.step)

    def drop(p, x):
        y = jax.nn.relu(affine(p["body"], x))
        return affine(p["head"], dropped(key_at(key, "dropout"), y, 0.1))

    value, grads = value_and_grad(ts.params, *batch, function=drop)
    return updated(ts, grads), {"loss": value}


def weighted(ts, batch, rows):
    """The mean over the rows that count."""

    def total(p):
        each = loss(network(p, batch[0]), batch)
        count = jnp.sum(rows.astype(jnp.float32))
        kept = jnp.where(rows, each, jnp.float32(0))
        return jnp.sum(kept) / jnp.maximum(count, jnp.float32(1))

    value, grads = jax.value_and_grad(total)(ts.params)
    return updated(ts, grads), {"loss": value}


class Case(NamedTuple):
    by_hand: Any
    options: Any = None
    key: Any = None
    between: Any = ()


CASES = {
    "plain": Case(plain),
    "accumulated": Case(accumulated, {"accumulate": 4}),
    "mixed": Case(mixed, {"precision": jnp.bfloat16}),
    "part": Case(head_only, {"where": "head"}),
    "scaled": Case(scaled, {"loss_scale": 1024.0}),
    "noisy": Case(noisy, key=jax.random.key(1), between=(al.dropout(0.1),)),
}
BATCH = np.ones((8, 4), np.float32), np.zeros(8, np.int32)


def pipe(*between, body=None):
    body = body or al.dense(16)
    return al.serial(
        body.named("body"), jax.nn.relu, *between, al.dense(3, name="head")
    )


def started(step, key=None):
    params, state = step.model.init(jax.random.key(0), (None, 4))
    return step.start(params, state, key=key)


@pytest.mark.parametrize("loss", [loss, mean_loss])
@pytest.mark.parametrize("name", CASES)
def test_the_step_is_what_one_writes_by_hand(name, loss):
    case = CASES[name]
    step = al.train_step(pipe(*case.between), loss, OPTIMIZER, **case.options or {})
    ts = started(step, case.key)
    by_hand = jax.jit(case.by_hand, donate_argnums=0).lower(ts, BATCH)
    assert_same_text(text(step.lower(ts, BATCH)), text(by_hand))


def test_frozen_layers_have_no_gradient_and_no_place_in_the_optimizer():
    model = pipe(body=al.frozen(al.dense(16)))
    step = al.train_step(model, loss, OPTIMIZER)
    ts = started(step)
    by_hand = jax.jit(head_only, donate_argnums=0).lower(ts, BATCH)
    assert_same_text(text(step.lower(ts, BATCH)), text(by_hand))


def test_a_step_of_known_batch_size_has_a_mask_of_rows():
    step = al.train_step(pipe(), loss, OPTIMIZER, batch_size=8)
    ts = started(step)
    by_hand = jax.jit(weighted, donate_argnums=0).lower(ts, BATCH, np.ones(8, bool))
    assert_same_text(text(step.lower(ts, BATCH)), text(by_hand))


def test_six_lines_with_grad_fn_are_the_same_step():
    model = pipe()
    gradient = al.grad_fn(model, loss)

    @partial(jax.jit, donate_argnums=0)
    def by_hand(ts, batch):
        (value, out), grads = gradient(ts.params, ts.model_state, batch)
        updates, opt_state = OPTIMIZER.update(grads, ts.opt_state, ts.params)
        params = optax.apply_updates(ts.params, updates)
        ts = ts._replace(step=ts.step + 1, params=params, opt_state=opt_state)
        return ts._replace(model_state=out.state), {"loss": value}

    step = al.train_step(model, loss, OPTIMIZER)
    ts = started(step)
    assert_same_text(text(step.lower(ts, BATCH)), text(by_hand.lower(ts, BATCH)))


def test_one_needless_operation_is_seen():
    step = al.train_step(pipe(jnp.negative), loss, OPTIMIZER)
    ts = started(step)
    by_hand = jax.jit(plain, donate_argnums=0).lower(ts, BATCH)
    with pytest.raises(pytest.fail.Exception, match=r"stablehlo\.negate"):
        assert_same_text(text(step.lower(ts, BATCH)), text(by_hand))
