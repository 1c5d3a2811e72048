"""Model-agnostic meta-learning: weights from which one gradient step learns a new sine.

A task is a sine of some amplitude and phase, seen at ten points. `al.grad_fn` is a pure
function, so a step of learning is one too, and what has to be good after that step is
differentiated through it. Run it with

    python examples/maml.py

It prints the error on sines never seen before, after 0 to 5 steps on ten points of each:
from weights that were meta-trained, and from weights trained on all sines at once.
"""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import axonlike as al

TASKS, SHOTS, RATE = 25, 10, 0.01

model = al.dense(40) >> jax.nn.relu >> al.dense(40) >> jax.nn.relu >> al.dense(1)


def error(predictions: Any, batch: Any) -> Any:
    """The squared error of each point."""
    return jnp.square(predictions - batch[1])


loss = al.loss_fn(model, error)
gradient = al.grad_fn(model, error)


def sines(random: np.random.Generator, tasks: int) -> Any:
    """Points of several sines: ten to learn from, ten to be tested on."""
    x = random.uniform(-5, 5, (tasks, 2 * SHOTS, 1))
    amplitude = random.uniform(0.1, 5, (tasks, 1, 1))
    y = amplitude * np.sin(x + random.uniform(0, np.pi, (tasks, 1, 1)))
    points = x.astype(np.float32), y.astype(np.float32)
    return jax.tree.map(lambda a: (a[:, :SHOTS], a[:, SHOTS:]), points)


def learned(params: Any, points: Any, steps: int = 1) -> Any:
    """The params after some steps of gradient descent: a pure function of them."""
    for _ in range(steps):
        _, grads = gradient(params, {}, points)
        params = jax.tree.map(lambda p, g: p - RATE * g, params, grads)
    return params


def tested(params: Any, task: Any, steps: int) -> Any:
    """The error on a task's other points, after some steps on the first ones."""
    (x, new_x), (y, new_y) = task
    value, _ = loss(learned(params, (x, y), steps), {}, (new_x, new_y))
    return value


@partial(jax.jit, static_argnames="steps")
def error_after(params: Any, tasks: Any, steps: int) -> Any:
    """The mean over tasks."""
    return jax.vmap(tested, (None, 0, None))(params, tasks, steps).mean()


def trained(inner: int, steps: int) -> Any:
    """Weights that are best after `inner` steps on a task."""
    optimizer, random = optax.adam(1e-3), np.random.default_rng(0)
    params, _ = model.init(jax.random.key(0), al.spec("b 1"))

    @partial(jax.jit, donate_argnums=(0, 1))
    def step(params: Any, opt_state: Any, tasks: Any) -> Any:
        grads = jax.grad(error_after)(params, tasks, inner)
        updates, opt_state = optimizer.update(grads, opt_state)
        return optax.apply_updates(params, updates), opt_state

    opt_state = optimizer.init(params)
    for _ in range(steps):
        params, opt_state = step(params, opt_state, sines(random, TASKS))
    return params


def main(steps: int = 6000) -> dict[str, list[float]]:
    """Trains both ways and prints their errors on new tasks."""
    start, new = time.perf_counter(), sines(np.random.default_rng(1), 500)
    errors: dict[str, list[float]] = {}
    for name, inner in (("meta-trained", 1), ("all at once", 0)):
        params = trained(inner, steps)
        errors[name] = [float(error_after(params, new, n)) for n in range(6)]
        print(f"{name:>12}: " + "  ".join(f"{e:6.3f}" for e in errors[name]))
    print(f"{time.perf_counter() - start:.0f} s")
    return errors


if __name__ == "__main__":
    main()
