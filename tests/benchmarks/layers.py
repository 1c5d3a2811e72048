"""The layer race: forward and backward of each layer, ours against the peers.

    nox -s bench -- layers --rows "conv*,lstm" --rounds 15

Every library computes the same row with the same weights in one process, in turn; what
is timed is, jitted, the output and the gradient of one weighting of it, for params and
input. A peer whose gradients are not ours is not a comparison, and stops the race.
"""

import argparse
import fnmatch
import math
import statistics
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from peers import MODULES, Contender, ours, peers
from report import DOCS, circumstances, markdown, plot, write
from rows import ALL, RATE, Row
from timing import in_turn, medians, ratio

TOLERANCE = {"cpu": 2e-4}
"""Of the largest number: sums in another order. On a GPU products keep fewer digits."""
Result = dict[str, Any]
Run = Callable[[], Any]


def step(one: Contender, row: Row) -> Callable[..., Any]:
    """Output, and gradients for params and input (params alone for ids), jitted.

    The weighting is an input: the gradient of a linear layer would else be a constant.
    The output is asked for too: else XLA may sum a cheap one up without ever writing it
    down, which it cannot inside of a model.
    """

    def loss(params: Any, x: Any, weight: Any, key: Any) -> Any:
        y, state = one.forward(params, x, key)
        return jnp.sum(y * weight), (state, y)

    wanted = 0 if row.ids is not None else (0, 1)
    return jax.jit(jax.value_and_grad(loss, wanted, has_aux=True))


def race(row: Row, modules: dict[str, Any], rounds: int) -> Result:
    """Median milliseconds of each library, and ours over the fastest JAX peer's."""
    x, key = row.input(), jax.random.key(2)
    mine = ours(row)
    y, _ = jax.eval_shape(mine.forward, mine.params, x, key)
    weight = np.random.default_rng(3).standard_normal(y.shape).astype(np.float32)
    runs = {"axonlike": ready(mine, row, x, weight, key)}
    expected = runs["axonlike"]()
    for name, module in modules.items():
        if name == "torch":
            continue
        one = module.contender(row, mine.params, x)
        if one is not None:
            runs[name] = ready(one, row, x, weight, key)
            compare(row, name, one, runs[name](), expected)
    times = in_turn(runs, rounds)
    if "torch" in modules:  # on its own: its threads spin for a while after a call
        run = modules["torch"].run(row, x, weight)
        times |= in_turn({"torch": run}, rounds)
    return summary(row.name, times)


def ready(one: Contender, row: Row, x: Any, weight: Any, key: Any) -> Run:
    """A call without arguments, everything laid out beforehand."""
    call = step(one, row)
    x, weight = (jax.block_until_ready(jnp.array(one.into(a))) for a in (x, weight))
    return lambda: call(one.params, x, weight, key)


def compare(row: Row, name: str, one: Contender, got: Any, expected: Any) -> None:
    """Raises unless value and gradients are ours; draws of dropout are their own."""
    (value, _), grads = got
    (our_value, _), our_grads = expected
    if row.random:
        return _compare_rate(name, one.back(grads[1]), our_grads[1])
    for_params, for_x = grads, None
    if row.ids is None:
        for_params, for_x = grads
        _close(f"{row.name}: {name}: input", one.back(for_x), our_grads[1])
        our_grads = our_grads[0]
    none = one.load(jax.tree.map(jnp.zeros_like, our_grads))
    loaded = jax.tree.map(jnp.subtract, one.load(our_grads), none)
    for_params, loaded = map(jax.tree.leaves, (for_params, loaded))
    scale = max((float(jnp.max(jnp.abs(leaf))) for leaf in loaded), default=0.0)
    for a, b in zip(for_params, loaded, strict=True):
        _close(f"{row.name}: {name}: params", a, b, scale)
    _close(f"{row.name}: {name}: value", value, our_value, float(jnp.abs(value)) + 1e3)
    return None


def _close(what: str, a: Any, b: Any, scale: float = 0.0) -> None:
    scale = max(scale, float(jnp.max(jnp.abs(b), initial=1e-3)))
    error = float(jnp.max(jnp.abs(a - b), initial=0.0)) / scale
    if not error < TOLERANCE.get(jax.default_backend(), 2e-2):
        raise ValueError(f"{what}: expected our numbers, got an error of {error:.1e}.")


def _compare_rate(name: str, theirs: Any, ours: Any) -> None:
    """As many zeros, and the rest where both keep it the same."""
    for grads in (theirs, ours):
        dropped = float(jnp.mean(grads == 0))
        if abs(dropped - RATE) > 0.01:
            raise ValueError(f"dropout: {name}: expected {RATE}, dropped {dropped}.")
    both = (theirs != 0) & (ours != 0)
    _close(f"dropout: {name}", jnp.where(both, theirs, 0), jnp.where(both, ours, 0))


def summary(name: str, times: dict[str, list[float]]) -> Result:
    """One row of the table."""
    median = medians(times)
    rivals = {n: t for n, t in median.items() if n not in ("axonlike", "torch")}
    fastest = min(rivals, key=rivals.__getitem__, default="")
    return {
        "row": name,
        "ms": {n: t * 1e3 for n, t in median.items()},
        "fastest": fastest,
        "ratio": ratio(times, "axonlike", fastest) if rivals else 1.0,
    }


def geometric_mean(results: list[Result]) -> float:
    """Of our speed-up over the fastest peer of each row."""
    return math.exp(-statistics.fmean(math.log(r["ratio"]) for r in results))


def table(results: list[Result]) -> list[str]:
    """Ours first; a dash where a library has no such layer, or another arithmetic."""
    columns = ["axonlike", *(n for n in MODULES if any(n in r["ms"] for r in results))]
    rows: list[list[str]] = []
    for r in results:
        ms = [f"{r['ms'][n]:.2f}" if n in r["ms"] else "-" for n in columns]
        rows.append([r["row"], *ms, r["fastest"], f"{r['ratio']:.2f}"])
    return markdown(["layer, ms", *columns, "fastest", "ours / fastest"], rows)


def page(results: list[Result]) -> list[str]:
    """What `docs/benchmarks/layers.md` says."""
    gain = geometric_mean(results)
    return [
        "# The layer race",
        "",
        "Forward and backward of each layer, its output and the gradient of one weighting",
        "of it for params and input, float32, jitted: ours, and the same arithmetic with",
        "the same weights in other libraries, in one process, in turn. Medians in",
        "milliseconds; the last column is the median over rounds of our time over the",
        "fastest JAX peer's. Sizes are in `tests/benchmarks/rows.py`;",
        "`nox -s bench -- layers` writes this page.",
        "",
        "![their time over ours, by layer](layers.svg)",
        "",
        *table(results),
        "",
        f"Geometric mean: {gain:.2f} times as fast as the fastest JAX peer of each row.",
        "",
        "NNX is split once and merged inside `jax.jit`, Equinox is vmapped over the batch",
        "and partitioned outside of it, with channels first as it has them. Haiku's GRU",
        "resets before the product and NNX's has one bias less: another arithmetic, no",
        "comparison. Draws of dropout differ; how many it drops does not. PyTorch runs",
        "eagerly, on its own, and is not in the ratio.",
        "",
        f"Measured {circumstances()}",
    ]


def options(arguments: list[str] | None = None) -> argparse.Namespace:
    """What was asked for on the command line."""
    parser = argparse.ArgumentParser(description="The layer race.")
    parser.add_argument("--rows", default="*", help="patterns, separated by commas")
    parser.add_argument("--rounds", type=int, default=15)
    return parser.parse_args(arguments)


def chosen(patterns: str) -> list[Row]:
    """The rows that match a pattern."""
    wanted = patterns.split(",")
    return [r for r in ALL if any(fnmatch.fnmatch(r.name, p) for p in wanted)]


def main() -> None:
    """Races the rows, prints them as they come, writes the page if it was all of them."""
    asked = options()
    modules, results = peers(), list[Result]()
    for row in chosen(asked.rows):
        results.append(race(row, modules, asked.rounds))
        print(table(results)[-1], flush=True)
    print("\n".join(["", *table(results)]))
    print(f"\ngeometric mean: {geometric_mean(results):.2f} times the fastest peer")
    if len(results) == len(ALL):
        write("layers.md", page(results))
        plot(results, DOCS / "layers.svg")


if __name__ == "__main__":
    main()
