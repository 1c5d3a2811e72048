"""A character language model of Python's own standard library.

A small GPT learns to write Python, from the source files that every Python brings along,
and is compared with what counting can do: a model of the last three characters. Run it with

    python examples/characters.py

End it at any moment, with Ctrl-C or kill -9, and run it again: it goes on from its last
checkpoint in examples/output/characters/ and ends where it would have ended anyway.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import axonlike as al

OUTPUT = Path(__file__).parent / "output" / "characters"
WIDTH, DEPTH, CONTEXT, BATCH = 128, 4, 128, 16
STEPS = 1000
SKIPPED = {"test", "tests", "idlelib", "lib2to3", "site-packages", "encodings"}


class Text(NamedTuple):
    """Text as numbers, each the place of a character in the alphabet."""

    alphabet: str
    train: np.ndarray[Any, Any]
    held: np.ndarray[Any, Any]


def standard_library(size: int) -> Text:
    """So many characters to learn from, and of other files a fortieth, held out."""
    files = sorted(sources(Path(sysconfig.get_path("stdlib"))))
    np.random.default_rng(0).shuffle(files)
    train = read([file for at, file in enumerate(files) if at % 10], size)
    held = read(files[::10], size // 40)
    found, counts = np.unique(list(train), return_counts=True)
    alphabet = "\N{REPLACEMENT CHARACTER}" + "".join(found[counts > 20])
    return Text(alphabet, encode(alphabet, train), encode(alphabet, held))


def sources(root: Path) -> Iterator[Path]:
    """Every source file below a folder, but those in folders that are skipped."""
    for folder, below, names in os.walk(root):
        below[:] = set(below) - SKIPPED
        yield from (Path(folder, name) for name in names if name.endswith(".py"))


def read(files: list[Path], size: int) -> str:
    """The first so many characters of some files."""
    text = ""
    for file in files:
        if len(text) < size:
            text += file.read_text(encoding="utf-8", errors="replace")
    return text[:size]


def encode(alphabet: str, text: str) -> np.ndarray[Any, Any]:
    """Characters as numbers; 0 for those that the alphabet has not."""
    numbers = {character: at for at, character in enumerate(alphabet)}
    return np.array([numbers.get(c, 0) for c in text], np.int32)


def windows(text: np.ndarray[Any, Any], context: int) -> tuple[Any, Any]:
    """Pieces of the text, and the same one character later."""
    count = (len(text) - 1) // context
    x = text[: count * context].reshape(count, context)
    return x, text[1 : count * context + 1].reshape(count, context)


# --- counting


def ngram_loss(text: Text, order: int) -> float:
    """Nats a held-out character costs a model that counts what follows `order` others.

    Counts of long contexts are mixed with those of shorter ones, as Witten and Bell did:
    a context counts for less the more different characters were seen to follow it.
    """
    size = len(text.alphabet)
    chance = np.full(len(text.held) - order, 1 / size)
    for length in range(order + 1):
        context, after = _contexts(text.train, length, length, size)
        total, kinds, pair = _counts(context, after, size)
        context, after = _contexts(text.held, length, order, size)
        seen = _look_up(pair, context * size + after)
        total, kinds = _look_up(total, context), _look_up(kinds, context)
        mixed = (seen + kinds * chance) / np.maximum(total + kinds, 1)
        chance = np.where(total > 0, mixed, chance)
    return float(-np.log(chance).mean())


def _contexts(text: Any, length: int, start: int, size: int) -> tuple[Any, Any]:
    """The `length` characters before each, as one number, and the character."""
    after = text[start:].astype(np.int64)
    context = np.zeros(len(after), np.int64)
    for back in range(length, 0, -1):
        context = context * size + text[start - back : len(text) - back]
    return context, after


def _counts(context: Any, after: Any, size: int) -> tuple[Any, Any, Any]:
    """How often a context was seen, with how many characters, and each with how many."""
    pairs, seen = np.unique(context * size + after, return_counts=True)
    contexts, first, kinds = np.unique(
        pairs // size, return_index=True, return_counts=True
    )
    return (contexts, np.add.reduceat(seen, first)), (contexts, kinds), (pairs, seen)


def _look_up(table: tuple[Any, Any], keys: Any) -> Any:
    """The counts of some keys; 0 for those that are not there."""
    known, counts = table
    at = np.minimum(np.searchsorted(known, keys), len(known) - 1)
    return np.where(known[at] == keys, counts[at], 0)


# --- learning


def network(characters: int, width: int, depth: int) -> al.Layer:
    """A GPT: its blocks are one compiled loop over stacked weights."""
    attend = al.attention(4, causal=True, rotary=al.rotary(), use_bias=False)
    think = al.dense(4 * width) >> jax.nn.gelu >> al.dense(width)
    block = al.residual(al.layer_norm() >> attend) >> al.residual(
        al.layer_norm() >> think
    )
    return al.serial(
        embed=al.embedding(characters, width),
        blocks=al.repeat(block, depth),
        norm=al.layer_norm(),
        head=al.dense(characters),
    )


def loss(logits: Any, batch: Any) -> Any:
    """Nats each character costs."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch[1])


def sample(
    model: al.Layer, state: Any, text: Text, prompt: str, length: int, context: int
) -> str:
    """What the model goes on to write."""

    @jax.jit
    def next_character(window: Any, last: Any, key: Any) -> Any:
        logits = model.predict(state.params, state.model_state, window[None])
        return jax.random.categorical(key, logits[0, last] / 0.8)

    written = list(encode(text.alphabet, prompt))
    for at in range(length):
        last = written[-context:]
        window = np.zeros(context, np.int32)
        window[: len(last)] = last
        key = jax.random.fold_in(jax.random.key(1), at)
        written.append(int(next_character(window, len(last) - 1, key)))
    return "".join(text.alphabet[number] for number in written)


def main(
    steps: int = STEPS,
    *,
    size: int = 4_000_000,
    width: int = WIDTH,
    depth: int = DEPTH,
    context: int = CONTEXT,
    output: Path = OUTPUT,
    fresh: bool = False,
) -> tuple[float, float]:
    """Trains, or goes on; the held-out losses of the model and of counting, in nats."""
    start = time.perf_counter()
    if fresh and output.exists():
        shutil.rmtree(output)
    text = standard_library(size)
    counted = ngram_loss(text, order=3)
    print(f"{len(text.train):,} characters to learn from, {len(text.held):,} held out")

    model = network(len(text.alphabet), width, depth)
    schedule = optax.warmup_cosine_decay_schedule(0.0, 4e-3, steps // 10, steps)
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(schedule, b2=0.98)
    )
    step = al.train_step(model, loss, optimizer)
    params, state = model.init(jax.random.key(0), al.spec("b t", jnp.int32))
    print(f"{al.count(params):,} weights")
    held = al.batches(windows(text.held, context), BATCH, drop_last=True)
    r = al.fit(
        step,
        step.start(params, state),
        al.batches(windows(text.train, context), BATCH, key=0, drop_last=True),
        steps=steps,
        validate=held,
        validate_every=max(steps // 5, 1),
        callbacks=[al.callbacks.checkpoint(output, seconds=20, every=steps // 5 or 1)],
        resume=output,
    )
    learned = float(r.history["validation_loss"][-1])
    print(sample(model, r.state, text, "def ", 400, context))
    print(f"held-out loss of counting with three characters: {counted:.4f} nats")
    print(f"held-out loss of the model: {learned:.4f} nats")
    print(f"{time.perf_counter() - start:.0f} seconds")
    return learned, counted


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--fresh", action="store_true", help="start anew")
    main(**vars(parser.parse_args()))
