"""Find where a small transformer keeps a token: patching, attribution, logit lens.

It learns to copy: a word of five to eight different letters is repeated, and each letter
of the second time has to be told from what came before. How long the word is, the model has
to find out: it looks for the letter that it sees, and takes the one that followed.

Then one letter of the word is changed, and activations of the run with the right letter are
put into the run with the wrong one, for every layer and position, in one compiled function.
The picture shows where the letter is kept, and in which layer it moves. Run it with

    python examples/activation_patching.py

and look at the pictures in examples/output/.
"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import patching_pictures as pictures

import axonlike as al

OUTPUT = Path(__file__).parent / "output"
LETTERS, LONGEST, LAYERS, WIDTH = 16, 8, 4, 64
POSITIONS = 2 * LONGEST - 1
SOURCES, SHOWN = range(1, LONGEST), 3  # letters that are changed, and one to draw


def network() -> al.Layer:
    """A causal transformer that tells the next letter."""
    attend = (al.layer_norm() >> al.attention(4, causal=True)).named("attention")
    think = al.layer_norm() >> al.dense(2 * WIDTH) >> jax.nn.gelu >> al.dense(WIDTH)
    block = al.residual(attend) >> al.residual(think.named("mlp"))
    return al.serial(
        embed=al.embedding(LETTERS, WIDTH) >> al.learned_positions(POSITIONS),
        blocks=block**LAYERS,
        norm=al.layer_norm(),
        head=al.dense(LETTERS),
    )


def prompts(key: jax.Array, lengths: Any) -> tuple[jax.Array, jax.Array]:
    """Repeated words of such lengths; and of each alphabet a letter that is not in it."""
    order = jax.random.uniform(key, (len(lengths), LETTERS)).argsort(1)
    places = jnp.arange(POSITIONS + 1) % lengths[:, None]
    return jnp.take_along_axis(order, places, 1), order[:, -1]


def train(model: al.Layer, steps: int, seed: int) -> tuple[Any, Any, jax.Array]:
    """Params, state and the loss at every step: one scan, fresh prompts at each step."""
    start, draw = jax.random.split(jax.random.key(seed))
    params, state = model.init(start, al.spec("b t", int))
    schedule = optax.warmup_cosine_decay_schedule(0.0, 3e-3, max(1, steps // 10), steps)
    optimizer = optax.adam(schedule)

    def loss(params: Any, key: jax.Array) -> jax.Array:
        draw, key = jax.random.split(key)
        lengths = jax.random.randint(draw, (64,), 5, LONGEST + 1)
        text, _ = prompts(key, lengths)
        logits = model.predict(params, state, text[:, :-1])
        each = optax.softmax_cross_entropy_with_integer_labels(logits, text[:, 1:])
        return each.mean(where=jnp.arange(POSITIONS) >= lengths[:, None])

    def step(carry: Any, key: jax.Array) -> Any:
        params, opt_state = carry
        value, grads = jax.value_and_grad(loss)(params, key)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), value

    carry = (params, optimizer.init(params))
    run = jax.jit(functools.partial(jax.lax.scan, step))
    (params, _), losses = run(carry, jax.random.split(draw, steps))
    return params, state, losses


def preference(logits: Any, at: Any, right: Any, wrong: Any) -> Any:
    """How much more the right letter is expected than the wrong one, in nats."""
    there = logits[:, at]
    rows = jnp.arange(there.shape[0])
    return jnp.mean(there[rows, right] - there[rows, wrong])


def metric(model: al.Layer) -> Any:
    """`preference` in a run of the model, its arguments those of the compiled function."""
    return al.defer(preference)(
        model["output"], al.arg("at"), al.arg("right"), al.arg("wrong")
    )


def patch_sweep(model: al.Layer) -> Callable[..., jax.Array]:
    """The metric after each single patch: `(1 + layers, positions)`, compiled once.

    The first row is that of the embedding, the others are those of the blocks.
    """
    embedded, stream = model["embed"], model["blocks", al.index("layer")]

    def patched(site: Any) -> Any:
        part = site[:, al.arg("position")]
        return al.compile(metric(model), edits=[part.set(al.on("clean", part))])

    first, later = patched(embedded), patched(stream)
    layers, positions = jnp.arange(LAYERS), jnp.arange(POSITIONS)

    def sweep(params: Any, state: Any, x: Any, **more: Any) -> jax.Array:
        def row(position: Any) -> jax.Array:
            return first(params, state, x, position=position, **more)

        def cell(layer: Any, position: Any) -> jax.Array:
            return later(params, state, x, layer=layer, position=position, **more)

        grid = jax.vmap(jax.vmap(cell, (None, 0)), (0, None))(layers, positions)
        return jnp.concatenate([jax.vmap(row)(positions)[None], grid])

    return jax.jit(sweep)


def attribution(model: al.Layer) -> Callable[..., jax.Array]:
    """What a gradient says of every patch: two runs and one backward pass."""
    sites = [model["embed"], model["blocks/*"]]
    slope = al.value_and_grads(metric(model), wrt=sites)
    read = al.compile(sites)

    def estimate(
        params: Any, state: Any, x: Any, *, clean: Any, **arguments: Any
    ) -> jax.Array:
        _, grads = slope(params, state, x, **arguments)
        right, wrong = read(params, state, clean), read(params, state, x)
        effects = jax.tree.map(lambda a, b, g: (a - b) * g, right, wrong, grads)
        first, later = (jnp.sum(each, (-3, -1)) for each in effects)
        return jnp.concatenate([first[None], later])

    return jax.jit(estimate)


def logit_lens(model: al.Layer) -> Callable[..., jax.Array]:
    """The logits of the stream after every block: `(layers, batch, time, letters)`."""
    read = al.compile(model["blocks/*"])
    unembed = al.between(model, "blocks", "output").predict

    def lens(params: Any, state: Any, x: Any) -> jax.Array:
        stream = read(params, state, x)
        return jax.vmap(unembed, (None, None, 0))(params, state, stream)

    return jax.jit(lens)


def changed(text: jax.Array, others: jax.Array, source: int) -> dict[str, Any]:
    """Texts with one letter of the word wrong, and what the metric is to know.

    It asks where the letter before has come up again, and this one has to be told.
    """
    return {
        "x": text[:, :-1].at[:, source].set(others), "clean": text[:, :-1],
        "at": LONGEST + source - 1, "right": text[:, source], "wrong": others,
    }  # fmt: skip


def patches(model: al.Layer, params: Any, state: Any, texts: Any) -> tuple[Any, Any]:
    """Effects of all patches, measured and estimated, by changed letter.

    0 is the run with the wrong letter, 1 the one with the right letter.
    """
    sweep, estimate = patch_sweep(model), attribution(model)
    value = jax.jit(al.compile(metric(model)))
    exact, estimated = [], []
    for source in SOURCES:
        case = changed(*texts, source)
        x, clean = case.pop("x"), case.pop("clean")
        low, high = (value(params, state, each, **case) for each in (x, clean))
        measured = sweep(params, state, x, clean=clean, **case)
        exact.append((measured - low) / (high - low))
        slope = estimate(params, state, x, clean=clean, **case)
        estimated.append(slope / (high - low))
    if sweep._cache_size() != 1:
        raise RuntimeError("the sweep was compiled more than once")
    return np.asarray(exact), np.asarray(estimated)


def main(
    steps: int | None = None, seed: int = 0, output: Path = OUTPUT
) -> dict[str, Any]:
    """Trains, sweeps and draws; the numbers behind the pictures."""
    start = time.perf_counter()
    output.mkdir(parents=True, exist_ok=True)
    model = network()
    params, state, losses = train(model, steps or 1000, seed)
    texts = prompts(jax.random.key(seed + 1), jnp.full(256, LONGEST))
    x, targets = texts[0][:, :-1], texts[0][:, LONGEST + 1 :]
    logits = jax.jit(model.predict)(params, state, x)[:, LONGEST:]
    accuracy = float((logits.argmax(-1) == targets).mean())
    print(f"trained: loss {float(losses[-1]):.4f}, {accuracy:.1%} of letters copied")

    few = tuple(each[:16] for each in texts)
    exact, estimated = patches(model, params, state, few)
    correlation = float(np.corrcoef(exact.ravel(), estimated.ravel())[0, 1])
    print(f"{exact.size} patches by {len(exact)} calls of one compiled function")
    print(f"attribution patching against patching: r = {correlation:.2f}")

    lens = logit_lens(model)(params, state, x)
    if not np.allclose(lens[-1, :, LONGEST:], logits, atol=1e-4):
        raise RuntimeError("the lens at the last block is not the model's output")
    depth = np.asarray((lens[:, :, LONGEST:].argmax(-1) == targets).mean((1, 2)))
    print("letters right, by block: " + ", ".join(f"{share:.0%}" for share in depth))

    word = np.asarray(texts[0][0])
    pictures.draw_patches(output / "patching.png", exact, word, SHOWN, LONGEST)
    pictures.draw_attribution(
        output / "attribution.png", exact, estimated, word, SHOWN, LONGEST
    )
    chances = np.asarray(jax.nn.softmax(lens[:, 0]))
    pictures.draw_lens(output / "lens.png", chances, word, LONGEST, depth)
    print(f"pictures: {os.path.relpath(output)}")
    print(f"{time.perf_counter() - start:.1f} seconds")
    return {
        "accuracy": accuracy, "exact": exact, "estimated": estimated,
        "correlation": correlation, "lens": depth,
    }  # fmt: skip


if __name__ == "__main__":
    main()
