"""Trains a little, with everything that a checkpoint has to hold; killed by its tests.

Dropout and batch norm (keys and state), an average of the params, a learning rate that is
lowered, metrics that are merged, early stopping, shuffled data: what comes of it is
written to result.npz.
"""

import argparse
import functools
import os
import signal
import warnings
from pathlib import Path

import jax
import numpy as np
import optax

import axonlike as al
from axonlike.training import checkpoint


@functools.cache
def make_step():
    """Compiled once in a process."""
    model = al.dense(8) >> al.batch_norm() >> al.dropout(0.3) >> al.dense(1)
    return al.train_step(
        model,
        lambda y, batch: optax.sigmoid_binary_cross_entropy(y, batch[1]),
        optax.inject_hyperparams(optax.adam)(learning_rate=0.05),
        ema=0.9,
        metrics=al.metrics.accuracy(threshold=0.0),
    )


def train(folder, steps, feed=None, callbacks=()):
    """Trains, or goes on, and returns everything that came of it as arrays."""
    x = np.random.default_rng(0).normal(size=(30, 4)).astype(np.float32)
    y = (x.sum(-1, keepdims=True) > 0).astype(np.int32)
    step = make_step()
    params = step.model.init(jax.random.key(0), al.spec("b 4"))
    r = al.fit(
        step,
        step.start(*params, key=jax.random.key(1)),
        al.batches((x, y), 4, key=7) if feed is None else feed(x, y),
        steps=steps,
        validate=[(x, y)],
        validate_every=6,
        callbacks=[
            al.callbacks.plateau(patience=1, factor=0.5),
            al.callbacks.early_stopping(patience=100),
            al.callbacks.checkpoint(folder / "checkpoints", every=3, best=True),
            *callbacks,
        ],
        resume=folder / "checkpoints",
    )
    return everything(r)


def everything(r):
    """The state and the history, as arrays by name."""
    arrays = {
        name: jax.random.key_data(leaf) if checkpoint.is_key(leaf) else leaf
        for name, leaf in checkpoint.flat(r.state)
        if leaf is not None
    }
    for name in r.history:
        arrays[f"history {name}"] = r.history[name]
        arrays[f"steps {name}"] = r.history.steps(name)
    return {name: np.asarray(array) for name, array in arrays.items()}


def die_in_the_middle(count):
    """The process is killed while it writes its nth checkpoint."""
    inner, written = checkpoint.checksums, []

    def checksums(path):
        if path.name.startswith(checkpoint.WRITING):
            written.append(path)
        if len(written) == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return inner(path)

    checkpoint.checksums = checksums


def main():
    """One process."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--die-writing", type=int, default=0)
    args = parser.parse_args()
    if args.die_writing:
        die_in_the_middle(args.die_writing)

    def tell(loop):
        print("first step", flush=True)

    first = al.when("step_completed", tell, once=True)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        arrays = train(args.folder, 24, callbacks=[first])
    np.savez(args.folder / "result.npz", **arrays)
    print(*(warning.message for warning in caught), sep="\n")


if __name__ == "__main__":
    main()
