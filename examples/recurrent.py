"""The same model with one layer swapped: an LSTM, a GRU and a plain recurrence in a race.

Each reads the handwritten digits of scikit-learn row by row, from top to bottom, and says
at the end which digit it was. Run it with

    python examples/recurrent.py
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import axonlike as al

KINDS = {"lstm": al.lstm, "gru": al.gru, "rnn": al.rnn}


def network(recurrent: Callable[..., al.Layer]) -> al.Layer:
    """Rows of pixels to the logits of ten digits; what reads them is swapped here."""
    return recurrent(64) >> last >> al.dense(10)


def last(x: jax.Array) -> jax.Array:
    """The last time step."""
    return x[:, -1]


def loss(logits: Any, batch: Any) -> Any:
    """Cross-entropy."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch[1])


def digits() -> tuple[Any, Any]:
    """Images of 8 rows with 8 pixels and their labels: to learn from, and held out."""
    images, labels = load_digits(return_X_y=True)
    x = (images.reshape(-1, 8, 8) / 16).astype(np.float32)
    x, x_held, y, y_held = train_test_split(
        x, labels.astype(np.int32), test_size=360, stratify=labels, random_state=0
    )
    return (x, y), (x_held, y_held)


def main(epochs: int = 20) -> dict[str, float]:
    """Trains each kind; its accuracy on the digits held out."""
    data, held = digits()
    accuracies: dict[str, float] = {}
    for name, recurrent in KINDS.items():
        start = time.perf_counter()
        model = network(recurrent)
        step = al.train_step(
            model, loss, optax.adam(3e-3), metrics=al.metrics.accuracy()
        )
        params, state = model.init(jax.random.key(0), al.spec("b 8 8"))
        r = al.fit(
            step,
            step.start(params, state),
            al.batches(data, 64, key=0),
            epochs=epochs,
            validate=al.batches(held, 360),
            callbacks=[al.callbacks.early_stopping(patience=5)],
        )
        best = int(np.argmin(r.history["validation_loss"]))
        accuracies[name] = float(r.history["validation_accuracy"][best])
        print(
            f"{name:5} {al.count(params):7,} weights  held-out accuracy "
            f"{accuracies[name]:.2%}  {time.perf_counter() - start:.1f} seconds"
        )
    return accuracies


if __name__ == "__main__":
    main()
