"""Train a conv net on the handwritten digits that ship inside scikit-learn.

The model is one pipe; the training loop is plain JAX and optax. Run it with

    python3 run.py demo

and look at what it leaves in examples/output/: the weights as a safetensors file, the
whole model as files that run without axonlike (StableHLO) and without JAX (ONNX), the
curves of the training, and the digits that the model found hard.
"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pictures
import rich
from rich import progress
from rich.table import Table
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import axonlike as al

OUTPUT = Path(__file__).parent / "output"
BATCH = 64
EPOCH = 1437 // BATCH  # steps
INPUT = al.spec("b 8 8 1")


def network() -> al.Layer:
    """The whole model: 8 by 8 images of one channel to ten logits."""
    return (
        al.conv(32, (3, 3)) >> al.batch_norm(momentum=0.9) >> jax.nn.relu
        >> al.conv(32, (3, 3)) >> al.batch_norm(momentum=0.9) >> jax.nn.relu
        >> al.max_pool((2, 2))
        >> al.conv(64, (3, 3)) >> al.batch_norm(momentum=0.9) >> jax.nn.relu
        >> al.max_pool((2, 2)) >> al.flatten()
        >> al.dropout(0.3) >> al.dense(10, name="logits")
    )  # fmt: skip


class Data(NamedTuple):
    """Images `(n, 8, 8, 1)` from 0 to 1, and labels `(n,)`."""

    x: Any
    labels: Any


class Training(NamedTuple):
    """Everything that a training step changes."""

    params: Any
    state: Any
    opt_state: Any
    key: jax.Array


def split_digits(seed: int) -> tuple[Data, Data]:
    """1,437 digits to learn from and 360 held out, every class in proportion."""
    images, labels = load_digits(return_X_y=True)
    x = (images.reshape(-1, 8, 8, 1) / 16).astype(np.float32)
    labels = labels.astype(np.int32)
    x, x_held, labels, labels_held = train_test_split(
        x, labels, test_size=360, stratify=labels, random_state=seed
    )
    return Data(x, labels), Data(x_held, labels_held)


def batches(data: Data, steps: int, seed: int) -> Iterator[Data]:
    """So many full batches, the digits shuffled anew for every pass over them."""
    rng, order = np.random.default_rng(seed), np.zeros(0, int)
    for _ in range(steps):
        if len(order) < BATCH:
            order = rng.permutation(len(data.labels))
        rows, order = order[:BATCH], order[BATCH:]
        yield Data(data.x[rows], data.labels[rows])


def shift(key: jax.Array, x: jax.Array) -> jax.Array:
    """Moves every image by up to one pixel; what comes in at the border is paper."""
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    corners = jax.random.randint(key, (x.shape[0], 2), 0, 3)
    crop = functools.partial(jax.lax.dynamic_slice, slice_sizes=x.shape[1:])
    return jax.vmap(lambda image, at: crop(image, (at[0], at[1], 0)))(padded, corners)


def train_step(
    model: al.Layer, optimizer: optax.GradientTransformation
) -> Callable[[Training, Data], tuple[Training, jax.Array]]:
    """A step of training: one compiled function that reuses the memory it is given."""

    def loss(params: Any, state: Any, batch: Data, key: jax.Array) -> Any:
        shift_key, model_key = jax.random.split(key)
        x = shift(shift_key, batch.x)
        logits, state = model.apply(params, state, x, key=model_key, train=True)
        targets = optax.smooth_labels(jax.nn.one_hot(batch.labels, 10), 0.1)
        losses = optax.kl_divergence(jax.nn.log_softmax(logits), targets)
        return losses.mean(), state

    @functools.partial(jax.jit, donate_argnums=0)
    def step(training: Training, batch: Data) -> tuple[Training, jax.Array]:
        params, state, opt_state, key = training
        key, step_key = jax.random.split(key)
        value_and_grad = jax.value_and_grad(loss, has_aux=True)
        (value, state), grads = value_and_grad(params, state, batch, step_key)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        params = optax.apply_updates(params, updates)
        return Training(params, state, opt_state, key), value

    return step


def train(
    model: al.Layer, data: Data, held: Data, steps: int, seed: int
) -> tuple[Training, list[float], dict[int, float]]:
    """Where training ends, the loss at every step, and held-out accuracy by step."""
    key, init_key = jax.random.split(jax.random.key(seed))
    params, state = model.init(init_key, INPUT)
    schedule = optax.warmup_cosine_decay_schedule(0.0, 4e-3, steps // 4, steps)
    optimizer = optax.adamw(schedule, weight_decay=1e-3)
    training = Training(params, state, optimizer.init(params), key)
    step, predict = train_step(model, optimizer), jax.jit(model.predict)
    losses: list[Any] = []
    accuracies: dict[int, float] = {}
    with progress.Progress(*COLUMNS) as bar:
        task = bar.add_task("training", total=steps, loss=0.0, accuracy=0.0)
        for at, batch in enumerate(batches(data, steps, seed), start=1):
            training, value = step(training, batch)
            losses.append(value)
            bar.advance(task)
            if at % EPOCH == 0 or at == steps:
                logits = predict(training.params, training.state, held.x)
                accuracies[at] = float((logits.argmax(-1) == held.labels).mean())
                bar.update(task, loss=float(value), accuracy=accuracies[at])
    return training, [float(value) for value in losses], accuracies


COLUMNS = (
    progress.TextColumn("{task.description}"),
    progress.BarColumn(),
    progress.MofNCompleteColumn(),
    progress.TimeElapsedColumn(),
    progress.TextColumn("loss {task.fields[loss]:.4f}"),
    progress.TextColumn("held-out {task.fields[accuracy]:.2%}"),
)


def model_table(model: al.Layer, params: Any) -> Table:
    """One row a layer: its path, kind, output and number of parameters."""
    table = Table("path", "kind", "output", title=f"{count(params):,} parameters")
    table.add_column("parameters", justify="right")
    for at, (path, layer) in enumerate(al.layers(model)):
        shape = model[: at + 1].output_spec(INPUT).shape
        size = count(params.get(path))
        table.add_row(path, layer.kind, str(shape), f"{size:,}" if size else "")
    return table


def count(tree: Any) -> int:
    """The number of parameters in a tree."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


RUN = """to run the model, for any number of images x, float32[n, 8, 8, 1] from 0 to 1:
  with JAX alone:
    from pathlib import Path
    from jax import export
    logits = export.deserialize(bytearray(Path({0!r}).read_bytes())).call(x)
  with onnxruntime alone:
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
    print(f"{len(data.labels)} digits to learn from, {len(held.labels)} held out")
    shapes, _ = jax.eval_shape(model.init, jax.random.key(seed), INPUT)
    rich.print(model_table(model, shapes))
    training, losses, accuracies = train(model, data, held, steps or 40 * EPOCH, seed)
    params, state = training.params, training.state

    predict = jax.jit(model.predict)
    logits = predict(params, state, held.x)
    file = output / "digits.safetensors"
    al.save(file, params, state)
    again = predict(*al.load(file, model, INPUT), held.x)
    if not np.array_equal(logits, again):
        raise RuntimeError("the weights that were read back predict something else")

    pictures.draw_curves(output / "curves.png", losses, accuracies)
    probabilities = np.asarray(jax.nn.softmax(logits))
    pictures.draw_digits(output / "digits.png", held.x, held.labels, probabilities)
    right = int((logits.argmax(-1) == held.labels).sum())
    accuracy = right / len(held.labels)
    print(f"held-out accuracy {accuracy:.2%} ({right} of {len(held.labels)})")
    print("weights written and read back: the predictions are identical")
    export(model, params, state, output)
    print(f"pictures and weights: {os.path.relpath(output)}")
    print(f"{time.perf_counter() - start:.1f} seconds")
    return accuracy


if __name__ == "__main__":
    main()
