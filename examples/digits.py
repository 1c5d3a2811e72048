"""Train a conv net on the handwritten digits that ship inside scikit-learn.

The model is one pipe, a training step one pure function, the loop `al.fit`. Run it with

    python3 run.py demo

and look at what it leaves in examples/output/: the weights as a safetensors file, the
whole model as files that run without axonlike (StableHLO) and without JAX (ONNX), the
curves of the training, and the digits that the model found hard.
"""

from __future__ import annotations

import functools
import os
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pictures
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import axonlike as al

OUTPUT = Path(__file__).parent / "output"
BATCH, EPOCHS = 64, 40
INPUT = al.spec("b 8 8 1")


@al.layer
def shift() -> Any:
    """In training, moves every image by up to one pixel; what comes in is paper."""

    def apply(params: Any, x: jax.Array, *, key: jax.Array, train: bool) -> jax.Array:
        if not train:
            return x
        padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        corners = jax.random.randint(key, (x.shape[0], 2), 0, 3)
        crop = functools.partial(jax.lax.dynamic_slice, slice_sizes=x.shape[1:])
        return jax.vmap(lambda image, at: crop(image, (at[0], at[1], 0)))(
            padded, corners
        )

    return None, apply


def network() -> al.Layer:
    """The whole model: 8 by 8 images of one channel to ten logits."""
    return (
        shift()
        >> al.conv(32, (3, 3)) >> al.batch_norm(momentum=0.9) >> jax.nn.relu
        >> al.conv(32, (3, 3)) >> al.batch_norm(momentum=0.9) >> jax.nn.relu
        >> al.max_pool((2, 2))
        >> al.conv(64, (3, 3)) >> al.batch_norm(momentum=0.9) >> jax.nn.relu
        >> al.max_pool((2, 2)) >> al.flatten()
        >> al.dropout(0.3) >> al.dense(10, name="logits")
    )  # fmt: skip


def split_digits(seed: int) -> tuple[tuple[Any, Any], tuple[Any, Any]]:
    """Images from 0 to 1 and labels: 1,437 to learn from, 360 held out, all classes."""
    images, labels = load_digits(return_X_y=True)
    x = (images.reshape(-1, 8, 8, 1) / 16).astype(np.float32)
    x, x_held, labels, labels_held = train_test_split(
        x, labels.astype(np.int32), test_size=360, stratify=labels, random_state=seed
    )
    return (x, labels), (x_held, labels_held)


def loss(logits: jax.Array, batch: tuple[jax.Array, jax.Array]) -> jax.Array:
    """How far the logits of each image are from its label, a little softened."""
    targets = optax.smooth_labels(jax.nn.one_hot(batch[1], 10), 0.1)
    return optax.kl_divergence(jax.nn.log_softmax(logits), targets)


def train(model: al.Layer, data: Any, held: Any, steps: int | None, seed: int) -> Any:
    """Where training ends, with the history of losses and of held-out accuracy."""
    batches = al.batches(data, BATCH, key=seed, drop_last=True)
    steps = steps or EPOCHS * len(batches)
    schedule = optax.warmup_cosine_decay_schedule(0.0, 4e-3, steps // 4, steps)
    optimizer = optax.adamw(schedule, weight_decay=1e-3)
    step = al.train_step(model, loss, optimizer, metrics=al.metrics.accuracy())
    init_key, key = jax.random.split(jax.random.key(seed))
    params, state = model.init(init_key, INPUT)
    held = al.batches(held, len(held[1]))
    ts = step.start(params, state, key=key)
    return al.fit(step, ts, batches, steps=steps, validate=held)


RUN = """to run the model, for any number of images x, float32[n, 8, 8, 1] from 0 to 1:
  with JAX alone (pip install jax flatbuffers):
    from pathlib import Path
    from jax import export
    logits = export.deserialize(bytearray(Path({0!r}).read_bytes())).call(x)
  with onnxruntime alone (pip install onnxruntime):
    import onnxruntime
    logits, = onnxruntime.InferenceSession({1!r}).run(None, {{"input": x}})"""


def export(model: al.Layer, params: Any, state: Any, output: Path) -> None:
    """Writes the files that need no axonlike, and says how to run them."""
    for write, name in ((al.export, "stablehlo"), (al.export_onnx, "onnx")):
        write(model, params, state, INPUT, output / f"digits.{name}")
    files = (output / f"digits.{name}" for name in ("stablehlo", "onnx"))
    print(RUN.format(*map(str, files)))


def main(steps: int | None = None, seed: int = 0, output: Path = OUTPUT) -> float:
    """Trains, exports and draws; the accuracy on the digits held out."""
    start = time.perf_counter()
    output.mkdir(parents=True, exist_ok=True)
    model, (data, held) = network(), split_digits(seed)
    print(f"{len(data[1])} digits to learn from, {len(held[1])} held out")
    print(al.summary(model, INPUT))
    trained = train(model, data, held, steps, seed)
    params, state = trained.state.params, trained.state.model_state

    predict, (x, labels) = jax.jit(model.predict), held
    logits = predict(params, state, x)
    file = output / "digits.safetensors"
    al.save(file, params, state)
    again = predict(*al.load(file, model, INPUT), x)
    if not np.array_equal(logits, again):
        raise RuntimeError("the weights that were read back predict something else")

    pictures.draw_curves(output / "curves.png", trained.history)
    probabilities = np.asarray(jax.nn.softmax(logits))
    pictures.draw_digits(output / "digits.png", x, labels, probabilities)
    right = int((logits.argmax(-1) == labels).sum())
    accuracy = right / len(labels)
    print(f"held-out accuracy {accuracy:.2%} ({right} of {len(labels)})")
    print("weights written and read back: the predictions are identical")
    export(model, params, state, output)
    print(f"pictures and weights: {os.path.relpath(output)}")
    print(f"{time.perf_counter() - start:.1f} seconds")
    return accuracy


if __name__ == "__main__":
    main()
