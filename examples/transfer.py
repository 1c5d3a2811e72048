"""Transfer: a network that reads digits learns from thirty images to count their holes.

A convolutional trunk is trained with a head for ten digits. Then the head is replaced and
the trunk frozen: its weights get no gradients, take no room in the optimizer and stay as
they are, bit for bit. Run it with

    python examples/transfer.py

It prints how often the holes are counted right (0 has one, 8 has two, 7 has none), and
the same for a network trained on those thirty images alone.
"""

from __future__ import annotations

import time
from typing import Any

import jax
import numpy as np
import optax
from sklearn.datasets import load_digits

import axonlike as al

FEW = 3  # images of each digit whose holes are told
HOLES = np.array([1, 0, 0, 0, 0, 0, 1, 0, 2, 1])

trunk = (
    al.conv(16, 3) >> jax.nn.relu >> al.max_pool(2)
    >> al.conv(32, 3) >> jax.nn.relu >> al.max_pool(2)
    >> al.flatten() >> al.dense(64) >> jax.nn.relu >> al.layer_norm()
)  # fmt: skip
network = al.serial(trunk=trunk, head=al.dense(10))
METRICS = [al.metrics.accuracy()]


def loss(logits: Any, batch: Any) -> Any:
    """The cross entropy of each example."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch[1])


def digits() -> tuple[Any, Any, Any]:
    """Digits to read; a few other images with their holes; the rest of those."""
    x, y = load_digits(return_X_y=True)
    x = (x / 16).astype(np.float32).reshape(-1, 8, 8, 1)
    old, new = np.split(np.arange(len(y)), [900])
    few = np.concatenate([new[y[new] == digit][:FEW] for digit in range(10)])
    rest = np.setdiff1d(new, few)
    return (x[old], y[old]), (x[few], HOLES[y[few]]), (x[rest], HOLES[y[rest]])


def trained(model: Any, params: Any, state: Any, data: Any, steps: int) -> Any:
    """The state of training after so many steps."""
    step = al.train_step(model, loss, optax.adamw(3e-3, weight_decay=0.01))
    batches = al.batches(data, min(64, len(data[0])), key=0)
    return al.fit(step, step.start(params, state), batches, steps=steps).state


def accuracy(model: Any, ts: Any, data: Any) -> float:
    """On data that was not trained on."""
    batches = al.batches(data, 256)
    scores = al.evaluate(model, ts.params, ts.model_state, batches, metrics=METRICS)
    return scores["accuracy"]


def main(steps: int = 300) -> dict[str, float]:
    """Trains on the digits, then on the holes of a few, both ways."""
    start = time.perf_counter()
    old, few, rest = digits()
    params, state = network.init(jax.random.key(0), old[0])
    ts = trained(network, params, state, old, steps)
    model, params, state = al.replace(
        network, ts.params, ts.model_state, "head", al.dense(3), key=jax.random.key(1)
    )
    model = al.freeze(model, "trunk")
    moved = trained(model, params, state, few, steps)
    for kept, before in zip(
        jax.tree.leaves(moved.params["trunk"]),
        jax.tree.leaves(params["trunk"]),
        strict=True,
    ):
        np.testing.assert_array_equal(kept, before)
    fresh = al.serial(trunk=trunk, head=al.dense(3))
    alone = trained(fresh, *fresh.init(jax.random.key(2), few[0]), few, steps)
    found = {
        "frozen trunk": accuracy(model, moved, rest),
        "from scratch": accuracy(fresh, alone, rest),
    }
    sizes = al.count(moved.params), al.count(moved.opt_state[0].mu)
    print(f"{sizes[1]} of {sizes[0]} weights trained on {len(few[0])} images")
    for name, value in found.items():
        print(f"{name}: {value:.1%} of {len(rest[0])} images")
    print(f"{time.perf_counter() - start:.0f} s")
    return found


if __name__ == "__main__":
    main()
