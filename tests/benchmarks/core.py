"""What the core costs: init, dispatch, tracing, import; side by side with the peers.

    nox -s bench -- core

Each figure is a median over interleaved runs in one process, and a ratio to a peer or to
hand-written JAX in that same process; absolute times depend on the machine.
"""

import functools
import importlib.util
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from timing import seconds

import axonlike as al

PAGE = Path(__file__).parents[2] / "docs" / "benchmarks" / "core.md"
CACHED = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
BLOCKS, WIDTH, HEADS, VOCAB, LENGTH = 32, 256, 8, 512, 64


def gpt(
    blocks: int = BLOCKS, width: int = WIDTH, vocab: int = VOCAB, **how: Any
) -> al.Layer:
    """A decoder-only transformer as a pipe."""
    mlp = al.dense(4 * width) >> jax.nn.gelu >> al.dense(width)
    attend = al.residual(al.layer_norm() >> al.attention(HEADS, causal=True))
    block = attend >> al.residual(al.layer_norm() >> mlp)
    return al.serial(
        embed=al.embedding(vocab, width),
        blocks=al.repeat(block, blocks, **how),
        norm=al.layer_norm(),
        head=al.dense(vocab),
    )


def linen_gpt() -> Callable[[], Any]:
    """The same in Flax Linen: a function that initializes it."""
    import flax.linen as nn

    class Block(nn.Module):
        @nn.compact
        def __call__(self, x):
            mask = nn.make_causal_mask(x[..., 0])
            x = x + nn.MultiHeadDotProductAttention(HEADS)(nn.LayerNorm()(x), mask=mask)
            h = nn.Dense(4 * WIDTH)(nn.LayerNorm()(x))
            return x + nn.Dense(WIDTH)(nn.gelu(h))

    class GPT(nn.Module):
        @nn.compact
        def __call__(self, tokens):
            x = nn.Embed(VOCAB, WIDTH)(tokens)
            for _ in range(BLOCKS):
                x = Block()(x)
            return nn.Dense(VOCAB)(nn.LayerNorm()(x))

    tokens = jnp.zeros((1, LENGTH), jnp.int32)
    return lambda: GPT().init(jax.random.key(0), tokens)


def haiku_gpt() -> Callable[[], Any]:
    """The same in Haiku."""
    import haiku as hk

    def forward(tokens):
        x = hk.Embed(VOCAB, WIDTH)(tokens)
        mask = jnp.tril(jnp.ones((LENGTH, LENGTH)))[None, None]
        init = hk.initializers.VarianceScaling(1.0)
        for _ in range(BLOCKS):
            h = hk.LayerNorm(-1, True, True)(x)
            heads = hk.MultiHeadAttention(HEADS, WIDTH // HEADS, w_init=init)
            x = x + heads(h, h, h, mask)
            h = hk.Linear(4 * WIDTH)(hk.LayerNorm(-1, True, True)(x))
            x = x + hk.Linear(WIDTH)(jax.nn.gelu(h))
        return hk.Linear(VOCAB)(hk.LayerNorm(-1, True, True)(x))

    tokens = jnp.zeros((1, LENGTH), jnp.int32)
    return lambda: hk.transform(forward).init(jax.random.key(0), tokens)


def nnx_gpt() -> Callable[[], Any]:
    """The same in Flax NNX, whose constructor is its init."""
    from flax import nnx

    class Block(nnx.Module):
        def __init__(self, rngs):
            self.norm1, self.norm2 = (
                nnx.LayerNorm(WIDTH, rngs=rngs),
                nnx.LayerNorm(WIDTH, rngs=rngs),
            )
            self.attn = nnx.MultiHeadAttention(HEADS, WIDTH, decode=False, rngs=rngs)
            self.up = nnx.Linear(WIDTH, 4 * WIDTH, rngs=rngs)
            self.down = nnx.Linear(4 * WIDTH, WIDTH, rngs=rngs)

    class GPT(nnx.Module):
        def __init__(self, rngs):
            self.embed = nnx.Embed(VOCAB, WIDTH, rngs=rngs)
            self.blocks = nnx.List([Block(rngs) for _ in range(BLOCKS)])
            self.norm = nnx.LayerNorm(WIDTH, rngs=rngs)
            self.head = nnx.Linear(WIDTH, VOCAB, rngs=rngs)

    return lambda: nnx.state(GPT(nnx.Rngs(0)))


def our_gpt() -> Callable[[], Any]:
    """The same here, unrolled."""
    tokens = al.spec(f"b {LENGTH}", int)
    return lambda: gpt(stacked=False).init(jax.random.key(0), tokens)


INITS = {"axonlike": our_gpt, "linen": linen_gpt, "haiku": haiku_gpt, "nnx": nnx_gpt}


def first_and_again(which: str) -> tuple[float, float]:
    """First and second init, in a process of its own (the first one compiles)."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[2]); import core; "
        "from timing import seconds; "
        "run = core.INITS[sys.argv[1]](); print(seconds(run), seconds(run))"
    )
    here = str(Path(__file__).parent)
    out = subprocess.run(
        [sys.executable, "-c", code, which, here],
        check=True, capture_output=True, text=True,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
    ).stdout  # fmt: skip
    first, again = map(float, out.split())
    return first, again


def init_rows(rounds: int = 3) -> list[tuple[str, str, str]]:
    """Init of a 32-block GPT, in turn with the peers."""
    have = [n for n in INITS if n == "axonlike" or _installed(n)]
    runs = {name: list[tuple[float, float]]() for name in have}
    for _ in range(rounds):
        for name in have:
            runs[name].append(first_and_again(name))
    first = {n: statistics.median(f for f, _ in r) for n, r in runs.items()}
    again = {n: statistics.median(a for _, a in r) for n, r in runs.items()}
    rows = [
        (f"init of a {BLOCKS}-block GPT (d={WIDTH}), first",
         f"{first['axonlike']:.2f} s", ""),
        ("the same, again", f"{again['axonlike']:.2f} s",
         f"{again['axonlike'] / first['axonlike']:.2f}x its first"),
    ]  # fmt: skip
    return rows + [
        (
            f"first, {n}",
            f"{first[n]:.2f} s",
            f"ours is {first['axonlike'] / first[n]:.2f}x",
        )
        for n in have[1:]
    ]


def _installed(name: str) -> bool:
    module = {"linen": "flax", "nnx": "flax", "haiku": "haiku"}[name]
    return importlib.util.find_spec(module) is not None


def shapes_row() -> tuple[str, str, str]:
    """A 1e9-parameter model as shapes."""
    model = gpt(blocks=36, width=1536, vocab=50304)
    start = time.perf_counter()
    params, _ = jax.eval_shape(model.init, jax.random.key(0), al.spec("b 1024", int))
    took = time.perf_counter() - start
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    return (f"a model of {count / 1e9:.2f}e9 params as shapes", f"{took:.2f} s", "")


def depth_row() -> tuple[str, str, str]:
    """Nested serials: time per level at 64 levels against 16."""

    def trace(depth: int) -> float:
        model = al.dense(4)
        for _ in range(depth):
            model = al.serial(model, name="level")
        params, state = model.init(jax.random.key(0), (None, 4))
        start = time.perf_counter()
        jax.make_jaxpr(model.apply)(params, state, jnp.ones((1, 4)))
        return time.perf_counter() - start

    trace(2)
    pairs = [(trace(16), trace(64)) for _ in range(15)]
    short, long = (statistics.median(p[i] for p in pairs) for i in (0, 1))
    return (
        "tracing 64-deep nesting",
        f"{long * 1e3:.1f} ms",
        f"{long / short:.1f}x 16-deep",
    )


def step_rows(layers: int = 64, width: int = 8) -> list[tuple[str, str, str]]:
    """A jitted Adam step over small layers, and its tracing, against raw dicts."""
    model = al.serial(*(al.dense(width) for _ in range(layers)))
    params, _ = model.init(jax.random.key(0), (None, width))
    names, optimizer = list(model.children), optax.adam(1e-3)
    opt_state, x = optimizer.init(params), jnp.ones((2, width))

    def by_hand(params: Any, x: Any) -> Any:
        for name in names:
            x = x @ params[name]["kernel"]
            x = x + jnp.broadcast_to(params[name]["bias"], x.shape)
        return x

    def stepper(forward: Callable[[Any, Any], Any]) -> Callable[..., Any]:
        def step(params: Any, opt_state: Any, x: Any) -> Any:
            def loss(p: Any) -> Any:
                return jnp.mean(forward(p, x) ** 2)

            value, grads = jax.value_and_grad(loss)(params)
            updates, opt_state = optimizer.update(grads, opt_state, params)
            return optax.apply_updates(params, updates), opt_state, value

        return step

    def predict(params: Any, x: Any) -> Any:
        return model.predict(params, {}, x)

    ours, raw = stepper(predict), stepper(by_hand)
    args = (params, opt_state, x)
    return [
        _paired(
            "a jitted Adam step over 64 small layers",
            *(_calls(f, args) for f in (ours, raw)),
        ),
        _paired("tracing that step", *(_traces(f, args) for f in (ours, raw))),
        _paired(
            "tracing its forward pass alone",
            _traces(predict, (params, x)),
            _traces(by_hand, (params, x)),
        ),
    ]


def _calls(step: Callable[..., Any], args: Any) -> Callable[[], Any]:
    jitted = jax.jit(step)

    def run() -> Any:
        out = None
        for _ in range(50):
            out = jitted(*args)
        return out

    return run


def _traces(function: Callable[..., Any], args: Any) -> Callable[[], Any]:
    def run() -> None:
        jax.jit(functools.partial(function)).trace(*args)

    return run


def _paired(what: str, ours: Any, raw: Any, rounds: int = 21) -> tuple[str, str, str]:
    seconds(ours), seconds(raw)
    pairs = [(seconds(ours), seconds(raw)) for _ in range(rounds)]
    ratio = statistics.median(a / b for a, b in pairs)
    mine = statistics.median(a for a, _ in pairs)
    return (what, f"{mine * 1e3:.2f} ms", f"{ratio:.3f}x raw dicts")


def import_row(rounds: int = 11) -> tuple[str, str, str]:
    """`import axonlike` on top of `import jax`, in fresh processes with bytecode cached."""
    code = (
        "import jax, time; t = time.perf_counter(); import axonlike; "
        "print(time.perf_counter() - t)"
    )
    times = [
        float(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True,
                             text=True, env=CACHED).stdout)
        for _ in range(rounds)
    ]  # fmt: skip
    return (
        "import axonlike over import jax",
        f"{statistics.median(times) * 1e3:.1f} ms",
        "",
    )


def main() -> None:
    """Measures everything, prints it, and writes the page."""
    rows = [*init_rows(), shapes_row(), depth_row(), *step_rows(), import_row()]
    lines = [
        "# What the core costs",
        "",
        f"Written by `tests/benchmarks/core.py` with jax {jax.__version__} on "
        f"{os.cpu_count()} CPU cores: medians, interleaved, ratios within one run.",
        "",
        "| what | time | against |",
        "|---|---|---|",
        *(f"| {what} | {took} | {against} |" for what, took, against in rows),
        "",
    ]
    PAGE.parent.mkdir(parents=True, exist_ok=True)
    PAGE.write_text("\n".join(lines))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
