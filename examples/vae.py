"""A variational autoencoder of handwritten digits: it learns to draw new ones.

The code of a digit is drawn at random by a layer of its own, which also emits how much it
tells (the divergence from a normal distribution); `aux=` adds that to the loss. Run it with

    python examples/vae.py

and look at examples/output/vae.png: digits in the first row, what comes back of them in the
second, and below digits that nobody has written.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure
from sklearn.datasets import load_digits

import axonlike as al

OUTPUT = Path(__file__).parent / "output"
CODE = 8


@al.layer
def draw() -> Any:
    """Mean and logarithm of a variance to a number drawn from there; the mean at rest."""

    def apply(params: Any, x: Any, *, key: Any, train: bool, emit: Any) -> Any:
        mean, log_variance = jnp.split(x, 2, axis=-1)
        told = 0.5 * (jnp.exp(log_variance) + mean**2 - 1 - log_variance)
        emit("nats", told.sum(-1).mean())
        if not train:
            return mean
        noise = jax.random.normal(key, mean.shape, mean.dtype)
        return mean + jnp.exp(0.5 * log_variance) * noise

    return None, apply


def network() -> al.Layer:
    """8 by 8 pixels to a code of a few numbers and back."""
    encoder = al.dense(128) >> jax.nn.gelu >> al.dense(2 * CODE)
    decoder = al.dense(128) >> jax.nn.gelu >> al.dense(64)
    return al.serial(encoder=encoder, draw=draw(), decoder=decoder)


def loss(logits: Any, batch: Any) -> Any:
    """Nats that the pixels of each digit cost, given its code."""
    return optax.sigmoid_binary_cross_entropy(logits, batch[0]).sum(-1)


def digits() -> tuple[Any, Any]:
    """Pixels from 0 to 1: to learn from, and held out."""
    pixels = (load_digits().data / 16).astype(np.float32)
    return pixels[:1500], pixels[1500:]


def picture(model: al.Layer, state: Any, held: Any) -> Figure:
    """Digits, what comes back of them, and new ones, row by row."""
    some = held[:12]
    again = jax.nn.sigmoid(model.predict(state.params, state.model_state, some))
    codes = jax.random.normal(jax.random.key(2), (24, CODE))
    decoder = model.part("decoder")
    new = jax.nn.sigmoid(decoder.predict(state.params, state.model_state, codes))
    images = np.concatenate([some, again, new]).reshape(4, 12, 8, 8)
    apart = np.pad(images, ((0, 0), (0, 0), (1, 1), (1, 1)))
    figure = Figure(figsize=(9.6, 3.0), layout="constrained")
    axes = figure.add_subplot(frame_on=False, xticks=[])
    axes.imshow(apart.swapaxes(1, 2).reshape(40, 120), cmap="gray_r", vmin=0, vmax=1)
    axes.set_yticks([4.5, 14.5, 29.5], ["held out", "reconstructed", "new"])
    axes.tick_params(length=0)
    return figure


def main(epochs: int = 100, output: Path = OUTPUT) -> float:
    """Trains and draws; nats that the pixels of a held-out digit cost, given its code."""
    start = time.perf_counter()
    output.mkdir(parents=True, exist_ok=True)
    data, held = digits()
    model = network()
    step = al.train_step(model, loss, optax.adam(2e-3), aux={"draw/nats": 1.0})
    params, state = model.init(jax.random.key(0), al.spec("b 64"))
    r = al.fit(
        step,
        step.start(params, state, key=jax.random.key(1)),
        al.batches((data,), 50, key=0),
        epochs=epochs,
        validate=al.batches((held,), len(held)),
    )
    for name in r.history:
        first, final = r.history[name][[0, -1]]
        print(f"{name}: {first:.2f} at first, {final:.2f} in the end")
    picture(model, r.state, held).savefig(output / "vae.png", dpi=120)
    print(f"picture: {output / 'vae.png'}, {time.perf_counter() - start:.1f} seconds")
    return float(r.history["validation_loss"][-1])


if __name__ == "__main__":
    main()
