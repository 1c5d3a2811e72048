"""What `fit` costs: against a bare loop over the same batches, on a jitted step by hand.

    nox -s bench -- loop

Two models: a thin perceptron of 64 layers, where the device has next to nothing to do, and
the conv net of the digits. Every run starts anew and takes the same steps; rounds are
interleaved, and a ratio is of two runs in one round.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from report import circumstances, markdown, write
from timing import in_turn, medians, ratio

import axonlike as al


class Case(NamedTuple):
    """A model, its loss, and batches."""

    model: al.Layer
    loss: Callable[[Any, Any], Any]
    batches: list[Any]


def thin(steps: int, depth: int = 64) -> Case:
    """Many small layers."""
    layers = [al.dense(16) >> jax.nn.relu for _ in range(depth)]
    x = np.random.default_rng(0).normal(size=(steps, 32, 16)).astype(np.float32)

    def loss(y: Any, batch: Any) -> Any:
        return jnp.mean((y - batch[1]) ** 2)

    return Case(al.serial(*layers) >> al.dense(1), loss, [(b, b[:, :1]) for b in x])


def digits(steps: int) -> Case:
    """The demo's net on images like the digits."""
    conv = al.conv(32, (3, 3)) >> al.batch_norm() >> jax.nn.relu
    wide = al.conv(64, (3, 3)) >> al.batch_norm() >> jax.nn.relu
    body = conv >> conv >> al.max_pool((2, 2)) >> wide >> al.max_pool((2, 2))
    x = np.random.default_rng(0).normal(size=(steps, 64, 8, 8, 1)).astype(np.float32)
    labels = np.arange(64, dtype=np.int32) % 10

    def loss(y: Any, batch: Any) -> Any:
        return optax.softmax_cross_entropy_with_integer_labels(y, batch[1]).mean()

    return Case(body >> al.flatten() >> al.dense(10), loss, [(b, labels) for b in x])


def by_hand(case: Case) -> tuple[Any, Callable[[], Any]]:
    """A step as one writes it, and what it starts with."""
    optimizer = optax.sgd(1e-3)

    def loss(params: Any, state: Any, batch: Any) -> Any:
        y, state = case.model.apply(params, state, batch[0], train=True)
        return case.loss(y, batch), state

    @partial(jax.jit, donate_argnums=0)
    def step(carry: Any, batch: Any) -> Any:
        params, state, opt_state = carry
        grad = jax.value_and_grad(loss, has_aux=True)
        (value, state), grads = grad(params, state, batch)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), state, opt_state), {"loss": value}

    params, state = case.model.init(jax.random.key(0), case.batches[0][0])

    def start() -> Any:
        return jax.tree.map(jnp.copy, (params, state, optimizer.init(params)))

    return step, start


def measure(name: str, case: Case, rounds: int) -> list[list[str]]:
    """Rows of the table."""
    step, start = by_hand(case)
    ours = al.train_step(case.model, case.loss, optax.sgd(1e-3))
    params, state = case.model.init(jax.random.key(0), case.batches[0][0])

    def bare(step: Any, start: Any) -> Any:
        carry, losses = start(), []
        for batch in case.batches:
            carry, logs = step(carry, batch)
            losses.append(logs["loss"])
        return carry, [float(loss) for loss in losses]

    def fitted(step: Any, start: Any) -> Any:
        return al.fit(step, start(), case.batches, epochs=1, verbose=0).state

    steps = {
        "step by hand": (step, start),
        "train_step": (ours, partial(ours.start, params, state)),
    }
    runs = {
        f"{loop}, {kind}": partial(run, *steps[kind])
        for kind in steps
        for loop, run in (("bare loop", bare), ("fit", fitted))
    }
    times = in_turn(runs, rounds)
    each = medians(times)
    return [
        [
            name,
            run,
            f"{each[run] / len(case.batches) * 1e6:.0f} us",
            f"{ratio(times, run, run.replace('fit', 'bare loop')):.3f}",
        ]
        for run in runs
    ]


def alone(steps: int = 4000, rounds: int = 7) -> float:
    """Seconds of CPU that fit takes for a step which does nothing, at the best."""
    batch = np.ones((64, 8, 8, 1), np.float32), np.zeros(64, np.int32)
    data, logs, times = [batch] * steps, {"loss": 1.0}, []
    for _ in range(rounds):
        start = time.process_time()
        al.fit(lambda state, batch: (state, logs), 0, data, epochs=1, verbose=0)
        times.append(time.process_time() - start)
    return min(times) / steps


def main(arguments: list[str] | None = None) -> None:
    """Measures, prints, and writes the page."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=81)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--dry", action="store_true", help="write no page")
    args = parser.parse_args(arguments)
    rows = [
        *measure("perceptron, 64 thin layers", thin(args.steps), args.rounds),
        *measure("conv net of the digits", digits(args.steps // 10), args.rounds),
    ]
    lines = [
        "# What the training loop costs",
        "",
        "Written by `tests/benchmarks/loop.py`: " + circumstances(),
        f"Medians of {args.rounds} interleaved rounds; a ratio is of runs in one round. "
        "All read every loss; each is set against the bare loop of the same step.",
        "",
        *markdown(["model", "loop", "a step", "against bare"], rows),
        "",
        f"By itself, for a step that does nothing, fit takes {alone() * 1e6:.1f} us of CPU "
        "time (best of 7), of which a part is the copy of the batch.",
    ]
    print("\n".join(lines))
    if not args.dry:
        write("loop.md", lines)


if __name__ == "__main__":
    main()
