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


def in_turn(
    runs: dict[str, Callable[[], Any]], rounds: int = 15
) -> dict[str, list[float]]:
    """Seconds of each in every round, in turn so that a slow spell hits all of them.

    Every other round goes backwards: what runs after what does not matter.
    """
    for run in runs.values():
        jax.block_until_ready(run())
    times: dict[str, list[float]] = {name: [] for name in runs}
    for i in range(rounds):
        for name in list(runs)[:: 1 if i % 2 else -1]:
            times[name].append(seconds(runs[name]))
    return times


def interleaved(
    runs: dict[str, Callable[[], Any]], rounds: int = 15
) -> dict[str, float]:
    """Median seconds of each."""
    return medians(in_turn(runs, rounds))


def paired(
    runs: dict[str, Callable[[], Any]], ours: str, rounds: int = 15
) -> dict[str, float]:
    """Median over rounds of our time over theirs, within the same round."""
    times = in_turn(runs, rounds)
    return {name: ratio(times, ours, name) for name in runs if name != ours}


def medians(times: dict[str, list[float]]) -> dict[str, float]:
    """The median of each."""
    return {name: statistics.median(each) for name, each in times.items()}


def ratio(times: dict[str, list[float]], ours: str, theirs: str) -> float:
    """Median over rounds of our time over theirs."""
    pairs = zip(times[ours], times[theirs], strict=True)
    return statistics.median(a / b for a, b in pairs)
