"""On one GPU: the layer race, and a step of training of GPT-2 small in bfloat16.

    nox -s bench -- gpu --out results        in under 8 minutes
    nox -s bench -- gpu --toy --out results  tiny, on any device: does it run?

Ours, Linen, NNX, Equinox, and JAX by hand. Model FLOP utilization is the FLOPs that the
model needs (forward and backward, nothing computed twice) over what the device could do
in that time; its peak is looked up by name, or given with --peak in TFLOP/s.
"""

import argparse
import datetime
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from end_to_end import OPTIMIZER, compare, count, losses
from layers import geometric_mean, race
from layers import table as layer_table
from models import TOY, Sizes, Trainee, batch, by_hand, libraries, ours, train_step
from peers import peers
from report import DOCS, circumstances, markdown, versions
from rows import ALL, Row
from timing import in_turn, medians

GPT2 = Sizes(
    blocks=12, width=768, heads=12, vocab=50304, tokens=(16, 1024), dtype=jnp.bfloat16
)
PEAKS = {  # dense bfloat16, TFLOP/s, from the makers' data sheets; the first that fits
    "H200": 989.0,
    "H100 PCIe": 756.0,
    "H100": 989.0,
    "A100": 312.0,
    "L40S": 362.0,
    "L4": 121.0,
}
WITHOUT = ("haiku", "torch")
"""Whose bfloat16 is another matter."""


def flops(s: Sizes, params: int) -> float:
    """Of one step: 6 for each token and weight, and 12 for each pair, head and size.

    As usual all pairs count, also those that a causal mask takes away, and the table of
    tokens counts once, as the head.
    """
    weights = params - s.tokens[1] * s.width
    tokens = s.tokens[0] * s.tokens[1]
    pairs = 12 * s.blocks * s.width * s.tokens[1]
    return tokens * (6.0 * weights + pairs)


def peak_of(device: str, asked: float | None) -> float | None:
    """TFLOP/s; None where the device is not known."""
    known = (peak for name, peak in PEAKS.items() if name in device)
    return asked or next(known, None)


def gpt2(s: Sizes, rounds: int, peak: float | None) -> dict[str, Any]:
    """Milliseconds a step, tokens a second and utilization of each library."""
    data = batch("gpt2", s)
    mine, units = ours.trainee("gpt2", s, data[0])
    all_: dict[str, Trainee] = {"axonlike": mine}
    for name, module in {**libraries(), "by hand": by_hand}.items():
        if name not in WITHOUT:
            all_[name] = module.trainee("gpt2", s, data[0], units)
    args = {
        n: (t.params, t.state, OPTIMIZER.init(t.params), data) for n, t in all_.items()
    }
    steps = {n: jax.jit(train_step(t, OPTIMIZER)) for n, t in all_.items()}
    values = {n: losses(steps[n], args[n]) for n in all_}
    compare("gpt2", all_, values, tolerance=2e-2)
    times = medians(
        in_turn({n: (lambda n=n: steps[n](*args[n])) for n in all_}, rounds)
    )
    work, tokens = flops(s, count(mine)), s.tokens[0] * s.tokens[1]
    return {
        "params": count(mine),
        "flops": work,
        "losses": values,
        "ms": {n: t * 1e3 for n, t in times.items()},
        "tokens_per_second": {n: tokens / t for n, t in times.items()},
        "utilization": {
            n: work / t / (peak * 1e12) if peak else None for n, t in times.items()
        },
    }


def small(row: Row) -> Row:
    """The row with every size but the last at most 8: what its peers fix is the last."""
    return replace(row, shape=(*(min(n, 8) for n in row.shape[:-1]), row.shape[-1]))


def layer_rows(rows: list[Row], rounds: int) -> list[dict[str, Any]]:
    """The race, without PyTorch."""
    modules = {name: m for name, m in peers().items() if name != "torch"}
    results: list[dict[str, Any]] = []
    for row in rows:
        results.append(race(row, modules, rounds))
        print(layer_table(results)[-1], flush=True)
        jax.clear_caches()
    return results


def page(result: dict[str, Any]) -> list[str]:
    """What is read rather than parsed."""
    model, rows = result["gpt2"], []
    for name, ms in model["ms"].items():
        used = model["utilization"][name]
        share = "-" if used is None else f"{100 * used:.1f} %"
        speed = f"{model['tokens_per_second'][name]:,.0f}"
        rows.append([name, f"{ms:.2f}", speed, share])
    head = ["step of GPT-2", "ms", "tokens a second", "model FLOP utilization"]
    gain, work = geometric_mean(result["layers"]), model["flops"] / 1e12
    return [
        f"# On {result['device']}",
        "",
        f"GPT-2, {model['params']:,} params, batch {result['tokens']}, bfloat16, Adam in",
        f"float32; {work:.3g} TFLOP a step, peak {result['peak']} TFLOP/s.",
        "",
        *markdown(head, rows),
        "",
        "The layer race, as in `layers.md`:",
        "",
        *layer_table(result["layers"]),
        "",
        f"Geometric mean: {gain:.2f} times as fast as the fastest peer of each row.",
        "",
        f"Measured {circumstances()}",
    ]


def measure(toy: bool, rounds: int, peak: float | None, rows: list[Row]) -> Any:
    """Everything, ready for JSON."""
    device = jax.devices()[0].device_kind
    sizes = replace(TOY, dtype=jnp.bfloat16) if toy else GPT2
    peak = peak_of(device, peak)
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "device": device,
        "versions": versions(),
        "peak": peak,
        "tokens": list(sizes.tokens),
        "gpt2": gpt2(sizes, rounds, peak),
        "layers": layer_rows([small(row) for row in rows] if toy else rows, rounds),
    }


def main(arguments: list[str] | None = None) -> None:
    """Measures, and writes `gpu.json` and `gpu.md`."""
    parser = argparse.ArgumentParser(description="The race on one GPU.")
    parser.add_argument("--toy", action="store_true", help="tiny sizes, any device")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--peak", type=float, help="TFLOP/s in bfloat16")
    parser.add_argument("--out", type=Path, default=DOCS)
    asked = parser.parse_args(arguments)
    if not asked.toy and jax.default_backend() != "gpu":
        parser.error("no GPU here: --toy runs anywhere")
    result = measure(asked.toy, asked.rounds, asked.peak, ALL)
    asked.out.mkdir(parents=True, exist_ok=True)
    (asked.out / "gpu.json").write_text(json.dumps(result, indent=1) + "\n")
    (asked.out / "gpu.md").write_text("\n".join([*page(result), ""]))
    print("\n".join(page(result)))


if __name__ == "__main__":
    main()
