"""Callbacks that keep states: checkpoints, and the average of the params."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import jax

from axonlike.extras import optional
from axonlike.training.checkpoint import prune, write
from axonlike.training.events import Callback, Handlers
from axonlike.training.options import positive, whole, whole_or_none
from axonlike.training.state import averages
from axonlike.training.watch import Mode, Watch
from axonlike.types import to_dtype


def checkpoint(
    folder: str | os.PathLike[str],
    *,
    every: int | None = None,
    seconds: float | None = None,
    keep: int = 3,
    best: bool | str = False,
    mode: Mode = "min",
) -> Callback:
    """Writes checkpoints, from which `fit(..., resume=folder)` goes on to the same end.

    A checkpoint holds the state, all that was measured, where the data is, and what the
    callbacks know. It is there whole or not at all, whenever the process ends. One is
    written when training ends, too.

    Args:
        folder: where they are, `step-00000100` and so on; made if it is not there.
        every: so many steps.
        seconds: when so many have passed since the last. Without `every` and `seconds`:
            at the end of every epoch.
        keep: so many of the newest stay.
        best: whether the best one is kept besides, as `best-00000100`: True by
            `validation_loss` (without validation `loss`), or by the metric of this name.
        mode: whether that metric should be `"min"` or `"max"`.

    Shapes:
        As the state's.

    Raises:
        ValueError: an option is out of range.
        ImportError: orbax-checkpoint is not installed.

    Example:
        >>> import os, tempfile, axonlike as al
        >>> def step(count, batch):
        ...     return count + 1, {"loss": 1 / (count + 1)}
        >>> folder = tempfile.mkdtemp()
        >>> saving = al.callbacks.checkpoint(folder, keep=2)
        >>> r = al.fit(step, 0, [None] * 5, epochs=3, callbacks=[saving])
        >>> sorted(os.listdir(folder))
        ['step-00000010', 'step-00000015']
        >>> r = al.fit(step, 0, [None] * 5, epochs=4, resume=folder)
        >>> r.state, len(r.history["loss"])
        (20, 20)
    """
    every = whole_or_none("checkpoint", "every", every)
    keep = whole("checkpoint", "keep", keep)
    positive("checkpoint", seconds=seconds)
    place = Path(folder)
    optional("orbax.checkpoint", "checkpoint")
    metric = None if best in (True, False) else best
    Watch("checkpoint", metric, mode)

    def bind(loop: Any) -> Handlers:
        rolling = _Rolling(place, every, seconds, keep)
        events = rolling.events()
        if best is False:
            return Handlers(events)
        watch = Watch("checkpoint", metric, mode)
        finest = _Best(place, watch)
        event = watch.event(loop)
        there = events.get(event)
        events[event] = finest.measured if there is None else _both(finest, there)
        return Handlers(events, watch.get_state, watch.set_state)

    return bind


class _Rolling:
    """The newest checkpoints of one run."""

    def __init__(
        self, folder: Path, every: int | None, seconds: float | None, keep: int
    ) -> None:
        self._folder, self._keep = folder, keep
        self._every, self._seconds = every, seconds
        self._written, self._then = -1, time.monotonic()

    def events(self) -> dict[str, Any]:
        """What it does when."""
        always = {"halted": self._end, "completed": self._end}
        if self._every is None and self._seconds is None:
            return {
                "step_completed": self._last,
                "epoch_completed": self._due,
                **always,
            }
        return {"step_completed": self._step, **always}

    def _step(self, loop: Any) -> None:
        late = self._seconds and time.monotonic() - self._then >= self._seconds
        if late or (self._every and loop.step % self._every == 0):
            self._due(loop)
        else:
            self._last(loop)

    def _last(self, loop: Any) -> None:
        if loop.step == loop.total:  # before what is done only because training ends
            self._due(loop)

    def _due(self, loop: Any) -> None:
        loop.settled(lambda: self._write(loop))

    def _end(self, loop: Any) -> None:
        if self._written != loop.step:
            self._write(loop)

    def _write(self, loop: Any) -> None:
        write(self._folder, f"step-{loop.step:08}", loop.get_state())
        prune(self._folder, "step", self._keep)
        self._written, self._then = loop.step, time.monotonic()


class _Best:
    """The best checkpoint of one run."""

    def __init__(self, folder: Path, watch: Watch) -> None:
        self._folder, self._watch = folder, watch

    def measured(self, loop: Any) -> None:
        """Asks for one where the metric is better than ever."""
        if self._watch.improves(loop):
            loop.settled(lambda: self._write(loop))

    def _write(self, loop: Any) -> None:
        write(self._folder, f"best-{loop.step:08}", loop.get_state())
        prune(self._folder, "best", 1)


def _both(best: _Best, other: Any) -> Any:
    def measured(loop: Any) -> None:
        best.measured(loop)
        other(loop)

    return measured


def swap_ema() -> Callback:
    """Validates with the moving average of the params, and ends training with it.

    For a step of `train_step(..., ema=decay)`. Training itself goes on with the params as
    they are; when it has ended they change places with their average.

    Shapes:
        As the params'.

    Raises:
        TypeError: the state has no average.

    Example:
        >>> import jax, jax.numpy as jnp, optax, axonlike as al
        >>> x = jnp.ones((4, 1))
        >>> step = al.train_step(
        ...     al.dense(1), lambda y, batch: y**2, optax.sgd(0.1), ema=0.5)
        >>> ts = step.start(*step.model.init(jax.random.key(0), x))
        >>> r = al.fit(step, ts, [(x,)], epochs=3, callbacks=[al.callbacks.swap_ema()])
        >>> bool(abs(r.state.ema["kernel"])[0, 0] < abs(r.state.params["kernel"])[0, 0])
        True
    """

    def bind(loop: Any) -> Handlers:
        if getattr(loop.state, "ema", None) is None:
            raise TypeError(
                "swap_ema: the state has no moving average of the params. "
                "Make the step with al.train_step(..., ema=0.999)."
            )
        loop.view = _swapped

        def end(loop: Any) -> None:
            loop.settled(lambda: _swap(loop))

        return Handlers({"completed": end, "halted": end})

    return bind


def _swapped(state: Any) -> Any:
    params = jax.tree.map(_alike, state.ema, state.params)
    return state._replace(params=params, ema=averages(state.params))


def _alike(average: Any, param: Any) -> Any:
    return to_dtype(average, param.dtype)


def _swap(loop: Any) -> None:
    loop.state = _swapped(loop.state)
