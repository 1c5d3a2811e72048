"""Eight networks at once: an ensemble is one model, one training step, one compilation.

`al.ensemble` runs n copies of a layer, each with weights of its own, as one mapped
function. The example trains them on few handwritten digits. Run it with

    python examples/ensembles.py

It prints the accuracy of each network alone and of their mean, and how often the mean is
right where they agree and where they do not.
"""

from __future__ import annotations

import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import axonlike as al

MEMBERS = 8

network = al.dense(32) >> jax.nn.relu >> al.dense(32) >> jax.nn.relu >> al.dense(10)
model = al.ensemble(network, MEMBERS)


def loss(logits: Any, batch: Any) -> Any:
    """The sum over members: each is trained as if it were alone."""
    labels = jnp.broadcast_to(batch[1], logits.shape[:-1])
    each = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return each.sum(0)


def digits(examples: int) -> tuple[Any, Any]:
    """Images to learn from, and all others, from 0 to 1 in one row."""
    x, y = load_digits(return_X_y=True)
    x = (x / 16).astype(np.float32)
    a, b, c, d = train_test_split(x, y, train_size=examples, random_state=0, stratify=y)
    return (a, c), (b, d)


def main(steps: int = 600, examples: int = 200) -> dict[str, Any]:
    """Trains the ensemble and prints what it is worth."""
    start = time.perf_counter()
    known, (x, labels) = digits(examples)
    step = al.train_step(model, loss, optax.adam(3e-3))
    params, state = model.init(jax.random.key(0), al.spec("b 64"))
    batches = al.batches(known, 50, key=0)
    ts = al.fit(step, step.start(params, state), batches, steps=steps).state
    logits = np.asarray(model.predict(ts.params, ts.model_state, x))
    votes = logits.argmax(-1)
    chosen = np.asarray(jax.nn.softmax(logits)).mean(0).argmax(-1)
    agreed = (votes == votes[0]).all(0)
    found = {
        "members": (votes == labels).mean(1),
        "mean": (chosen == labels).mean(),
        "agreed": agreed.mean(),
        "right where they agree": (chosen == labels)[agreed].mean(),
        "right where they do not": (chosen == labels)[~agreed].mean(),
    }
    alone = found["members"]
    print(f"alone: {alone.mean():.1%} on average, {alone.max():.1%} the best")
    print(f"their mean: {found['mean']:.1%}")
    print(f"all agree on {found['agreed']:.0%} of the digits, and are right there on")
    print(f"{found['right where they agree']:.1%}; elsewhere their mean is right on")
    print(
        f"{found['right where they do not']:.1%}. {time.perf_counter() - start:.0f} s"
    )
    return found


if __name__ == "__main__":
    main()
