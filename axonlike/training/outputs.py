"""Callbacks that write down how training went: CSV, TensorBoard, profiles."""

from __future__ import annotations

import csv as csv_files
import os
from pathlib import Path
from typing import Any

import jax

from axonlike.extras import optional
from axonlike.training.events import Callback, Handlers
from axonlike.training.options import whole


def csv(path: str | os.PathLike[str]) -> Callback:
    """Writes a row of numbers for every epoch.

    The columns are step, epoch, and by name the metrics that are single numbers. A run
    that is resumed goes on in the same file, after the rows up to its checkpoint.

    Args:
        path: of the file; one that is there is written over, except by a run that is
            resumed.

    Shapes:
        No arrays.

    Example:
        >>> import pathlib, tempfile, axonlike as al
        >>> file = pathlib.Path(tempfile.mkdtemp()) / "log.csv"
        >>> r = al.fit(
        ...     lambda state, x: (state, {"loss": x}), None, [3.0, 1.0], epochs=2,
        ...     callbacks=[al.callbacks.csv(file)])
        >>> print(file.read_text().strip())
        step,epoch,loss
        2,1,2.0
        4,2,2.0
    """
    file = Path(path)

    def bind(loop: Any) -> Handlers:
        rows: list[dict[str, Any]] = []

        def started(loop: Any) -> None:
            if loop.step and file.exists():
                rows.extend(r for r in _rows(file) if int(r["epoch"]) <= loop.epoch)
            file.parent.mkdir(parents=True, exist_ok=True)
            _write_rows(file, rows)

        def epoch_completed(loop: Any) -> None:
            single = {n: v for n, v in loop.metrics.items() if isinstance(v, float)}
            row = {"step": loop.step, "epoch": loop.epoch, **single}
            rows.append(row)
            if len(rows) > 1 and row.keys() <= _columns(rows[:-1]).keys():
                with file.open("a", newline="", encoding="utf-8") as opened:
                    _writer(opened, rows).writerow(row)
            else:
                _write_rows(file, rows)

        return Handlers({"started": started, "epoch_completed": epoch_completed})

    return bind


def _rows(file: Path) -> list[dict[str, Any]]:
    with file.open(newline="", encoding="utf-8") as opened:
        return list(csv_files.DictReader(opened))


def _write_rows(file: Path, rows: list[dict[str, Any]]) -> None:
    with file.open("w", newline="", encoding="utf-8") as opened:
        writer = _writer(opened, rows)
        if rows:
            writer.writeheader()
            writer.writerows(rows)


def _writer(opened: Any, rows: list[dict[str, Any]]) -> Any:
    return csv_files.DictWriter(opened, list(_columns(rows)), lineterminator="\n")


def _columns(rows: list[dict[str, Any]]) -> dict[str, None]:
    """The names of all rows, in the order in which they came."""
    return dict.fromkeys(name for row in rows for name in row)


def tensorboard(folder: str | os.PathLike[str], *, every: int = 100) -> Callback:
    """Writes all metrics that are single numbers, each at its step, for TensorBoard.

    Args:
        folder: of the event files.
        every: after so many steps, and after every epoch, what is new is written.

    Shapes:
        No arrays.

    Raises:
        ImportError: tensorboardX is not installed.
        ValueError: `every` is not positive.

    Example:
        >>> import tempfile, axonlike as al
        >>> writing = al.callbacks.tensorboard(tempfile.mkdtemp())  # doctest: +SKIP
        >>> r = al.fit(step, state, data, epochs=3, callbacks=[writing])  # doctest: +SKIP
    """
    every = whole("tensorboard", "every", every)
    writers: Any = optional("tensorboardX", "tensorboard")

    def bind(loop: Any) -> Handlers:
        board = _Board(writers.SummaryWriter(os.fspath(folder)), every)
        ends = dict.fromkeys(("halted", "completed", "failed"), board.end)
        return Handlers(
            {
                "started": board.started,
                "step_completed": board.step_completed,
                "epoch_completed": board.epoch_completed,
                **ends,
            }
        )

    return bind


class _Board:
    """What was written for TensorBoard in one run."""

    def __init__(self, writer: Any, every: int) -> None:
        self._writer, self._every = writer, every
        self._written: dict[str, int] = {}

    def started(self, loop: Any) -> None:
        """What an earlier run wrote is there."""
        self._written = {name: len(loop.history[name]) for name in loop.history}

    def step_completed(self, loop: Any) -> None:
        """Writes what has arrived, now and then."""
        if loop.step % self._every == 0:
            self._write(loop)

    def epoch_completed(self, loop: Any) -> None:
        """Writes everything."""
        loop.flush()
        self._write(loop)

    def end(self, loop: Any) -> None:
        """Writes what is left."""
        if loop.error is None:
            loop.flush()
        self._write(loop)
        self._writer.close()

    def _write(self, loop: Any) -> None:
        for name in loop.history:
            start = self._written.get(name, 0)
            steps, values = loop.history.tail(name, start)
            self._written[name] = start + len(steps)
            for step, value in zip(steps, values, strict=True):
                if isinstance(value, float):
                    self._writer.add_scalar(name, value, step)


def profile(
    folder: str | os.PathLike[str], *, start: int = 10, stop: int = 20
) -> Callback:
    """Has JAX profile some steps, for TensorBoard's or Perfetto's view of what runs when.

    Args:
        folder: where the profile is written.
        start: after so many steps of this run it begins; those before compile and warm up.
        stop: after so many it ends.

    Shapes:
        No arrays.

    Raises:
        ValueError: `stop` is not after `start`.

    Example:
        >>> import tempfile, axonlike as al
        >>> window = al.callbacks.profile(tempfile.mkdtemp(), start=5, stop=8)
        >>> r = al.fit(step, state, data, steps=10, callbacks=[window])  # doctest: +SKIP
    """
    start, stop = whole("profile", "start", start), whole("profile", "stop", stop)
    if stop <= start:
        raise ValueError(f"profile: stop must be after start={start}, got {stop}.")

    def bind(loop: Any) -> Handlers:
        steps, running = 0, False

        def step_completed(loop: Any) -> None:
            nonlocal steps, running
            steps += 1
            if steps == start:
                jax.block_until_ready(loop.state)
                jax.profiler.start_trace(os.fspath(folder))
                running = True
            elif steps == stop:
                end(loop)

        def end(loop: Any) -> None:
            nonlocal running
            if running:
                running = False
                jax.block_until_ready(loop.state)
                jax.profiler.stop_trace()

        ends = dict.fromkeys(("halted", "completed", "failed"), end)
        return Handlers({"step_completed": step_completed, **ends})

    return bind
