"""Fair timings: everything in one process, in turn, medians."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax


def seconds(run: Callable[[], Any]) -> float:
    """Wall time of one call, its arrays computed."""
    start = time.perf_counter()
    jax.block_until_ready(run())
    return time.perf_counter() - start


def interleaved(
    runs: dict[str, Callable[[], Any]], rounds: int = 15
) -> dict[str, float]:
    """Median seconds of each, called in turn so that a slow spell hits all of them.

    Every other round goes backwards: what runs after what does not matter.
    """
    for run in runs.values():
        jax.block_until_ready(run())
    times: dict[str, list[float]] = {name: [] for name in runs}
    for i in range(rounds):
        for name in list(runs)[:: 1 if i % 2 else -1]:
            times[name].append(seconds(runs[name]))
    return {name: statistics.median(each) for name, each in times.items()}


def paired(
    runs: dict[str, Callable[[], Any]], ours: str, rounds: int = 15
) -> dict[str, float]:
    """Median over rounds of our time over theirs, within the same round."""
    for run in runs.values():
        jax.block_until_ready(run())
    ratios: dict[str, list[float]] = {name: [] for name in runs if name != ours}
    for i in range(rounds):
        now = {name: seconds(runs[name]) for name in list(runs)[:: 1 if i % 2 else -1]}
        for name, each in ratios.items():
            each.append(now[ours] / now[name])
    return {name: statistics.median(each) for name, each in ratios.items()}
