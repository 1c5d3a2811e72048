"""A step of training of whole models, ours against the peers.

    nox -s bench -- end_to_end --models gpt,mlp --rounds 15

Every library trains the same model from the same weights with Adam, in one process, in
turn: times of a step, ratios within rounds, and what it takes to trace and compile it.
Counts of params and losses after some steps must be the same.
"""

import argparse
from typing import Any

import jax
import numpy as np
import optax
from models import TOY, Sizes, Trainee, batch, libraries, ours, train_step
from report import circumstances, markdown, write
from timing import in_turn, medians, ratio, seconds

OPTIMIZER = optax.adam(1e-3)
TITLES = {
    "gpt": "GPT, 8 blocks, d=256, batch 16x64",
    "resnet": "ResNet-18, 32x32 images, batch 16",
    "lstm_lm": "LSTM language model, 2 x 256, batch 16x64",
    "mlp": "MLP, 784-512-512-10, batch 128",
}
Result = dict[str, Any]


def race(name: str, sizes: Sizes, rounds: int, compiles: int) -> Result:
    """Step and compile times of one model in every library."""
    data = batch(name, sizes)
    mine, units = ours.trainee(name, sizes, data[0])
    all_: dict[str, Trainee] = {"axonlike": mine}
    for library, module in libraries().items():
        all_[library] = module.trainee(name, sizes, data[0], units)
    args = {
        n: (t.params, t.state, OPTIMIZER.init(t.params), data) for n, t in all_.items()
    }
    steps = {n: jax.jit(train_step(t, OPTIMIZER)) for n, t in all_.items()}
    compare(name, all_, {n: losses(steps[n], args[n]) for n in all_})
    times = in_turn({n: (lambda n=n: steps[n](*args[n])) for n in all_}, rounds)
    compiling = compile_times(all_, args, compiles)
    return {
        "model": TITLES[name],
        "params": count(mine),
        "ms": {n: t * 1e3 for n, t in medians(times).items()},
        "ratio": against_fastest(times),
        "compile": medians(compiling),
        "compile_ratio": against_fastest(compiling),
    }


def losses(step: Any, args: Any, steps: int = 3) -> list[float]:
    """Of the first steps."""
    params, state, opt_state, data = args
    values: list[float] = []
    for _ in range(steps):
        params, state, opt_state, value = step(params, state, opt_state, data)
        values.append(float(value))
    return values


def count(one: Trainee) -> int:
    """How many numbers are learned."""
    return sum(leaf.size for leaf in jax.tree.leaves(one.params))


def compare(
    name: str, all_: dict[str, Trainee], values: dict[str, Any], tolerance: float = 2e-3
) -> None:
    """Raises unless everybody trains the same model."""
    for library, one in all_.items():
        if count(one) != count(all_["axonlike"]):
            raise ValueError(f"{name}: {library}: {count(one)} params.")
        actual, desired = values[library], values["axonlike"]
        np.testing.assert_allclose(actual, desired, tolerance, err_msg=library)


def compile_times(all_: dict[str, Trainee], args: Any, rounds: int) -> dict[str, Any]:
    """Seconds from Python to an executable, anew in every round."""
    times: dict[str, list[float]] = {name: [] for name in all_}
    for i in range(rounds):
        for name in list(all_)[:: 1 if i % 2 else -1]:
            jax.clear_caches()
            jitted = jax.jit(train_step(all_[name], OPTIMIZER))
            compiled = seconds(lambda f=jitted, n=name: f.lower(*args[n]).compile())
            times[name].append(compiled)
    return times


def against_fastest(times: dict[str, list[float]]) -> tuple[str, float]:
    """The fastest peer, and our time over its, within rounds."""
    peers = {name: t for name, t in medians(times).items() if name != "axonlike"}
    if not peers:
        return "", float("nan")
    fastest = min(peers, key=peers.__getitem__)
    return fastest, ratio(times, "axonlike", fastest)


def table(results: list[Result], what: str, unit: str) -> list[str]:
    """One table of times; `what` is "ms" or "compile"."""
    columns = list(results[0][what])
    key = "ratio" if what == "ms" else "compile_ratio"
    rows = [
        [
            r["model"],
            *(f"{r[what][n]:.2f}" for n in columns),
            r[key][0],
            f"{r[key][1]:.3f}",
        ]
        for r in results
    ]
    return markdown([unit, *columns, "fastest", "ours / fastest"], rows)


def page(results: list[Result]) -> list[str]:
    """What `docs/benchmarks/end_to_end.md` says."""
    params = ", ".join(f"{r['params']:,} in the {r['model']}" for r in results)
    return [
        "# Whole models",
        "",
        "A step of training with Adam, float32: the same model with the same weights in",
        "each library, in one process, in turn. The losses of the first steps are equal,",
        "and so are the counts of params. Medians; the last column is the median over",
        "rounds of our time over that of the fastest other library.",
        "`nox -s bench -- end_to_end` writes this page.",
        "",
        *table(results, "ms", "step, ms"),
        "",
        "From the Python function to an executable (trace, lower, compile):",
        "",
        *table(results, "compile", "compile, s"),
        "",
        f"Params: {params}.",
        "",
        f"Measured {circumstances()}",
    ]


def options() -> argparse.Namespace:
    """What was asked for on the command line."""
    parser = argparse.ArgumentParser(description="Training steps of whole models.")
    parser.add_argument("--models", default=",".join(TITLES))
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--compiles", type=int, default=3, help="rounds of compiling")
    parser.add_argument("--toy", action="store_true", help="tiny sizes, no page")
    return parser.parse_args()


def main() -> None:
    """Measures, prints, and writes the page if it was all of them at full size."""
    asked, results = options(), list[Result]()
    for name in asked.models.split(","):
        sizes = TOY if asked.toy else Sizes()
        results.append(race(name, sizes, asked.rounds, asked.compiles))
        print(
            table(results, "ms", "")[-1], table(results, "compile", "")[-1], flush=True
        )
    if asked.toy:
        return
    print("\n".join(page(results)))
    if len(results) == len(TITLES):
        write("end_to_end.md", page(results))


if __name__ == "__main__":
    main()
