"""Callbacks that end training."""

from __future__ import annotations

import time
from typing import Any

from axonlike.training.checkpoint import unnamed
from axonlike.training.events import Callback, Handlers
from axonlike.training.kept import copied
from axonlike.training.options import positive, whole
from axonlike.training.watch import Mode, Watch


def early_stopping(
    metric: str | None = None,
    *,
    patience: int = 3,
    min_delta: float = 0.0,
    mode: Mode = "min",
    baseline: float | None = None,
    restore_best: bool = True,
) -> Callback:
    """Ends training when a metric gets no better.

    A metric of validation is looked at after each validation, any other after each epoch.

    Args:
        metric: its name; None: `validation_loss`, without validation `loss`.
        patience: ends after so many times in a row without an improvement.
        min_delta: by more than so much a value has to be better to be an improvement.
        mode: whether the metric should be `"min"` or `"max"`.
        baseline: counts as the best value before the first one.
        restore_best: whether training ends with the state that had the best value; a copy
            of it is kept.

    Shapes:
        No arrays.

    Raises:
        ValueError: an option is out of range.

    Example:
        >>> import axonlike as al
        >>> losses = iter([3.0, 1.0, 2.0, 2.0, 2.0, 2.0])
        >>> r = al.fit(
        ...     lambda count, _: (count + 1, {"loss": next(losses)}), 0, [None], epochs=6,
        ...     callbacks=[al.callbacks.early_stopping(patience=2)])
        >>> r.state, r.halted
        (2, 'early_stopping: loss was no better than 1 for 2 epochs')
    """
    patience = whole("early_stopping", "patience", patience)
    Watch("early_stopping", metric, mode, min_delta, baseline)

    def bind(loop: Any) -> Handlers:
        watch = Watch("early_stopping", metric, mode, min_delta, baseline)
        stopping = _EarlyStopping(loop, watch, patience, restore_best)
        return stopping.handlers()

    return bind


class _EarlyStopping:
    """Early stopping in one run."""

    def __init__(self, loop: Any, watch: Watch, patience: int, restore: bool) -> None:
        self._loop, self._watch = loop, watch
        self._patience, self._restore = patience, restore
        self._best: Any = None

    def handlers(self) -> Handlers:
        events = {
            "started": self._started,
            self._watch.event(self._loop): self._measured,
            "completed": self._ended,
            "halted": self._ended,
        }
        return Handlers(events, self._get_state, self._set_state)

    def _started(self, loop: Any) -> None:
        if self._watch.waited >= self._patience:  # it had ended before it was resumed
            self._halt(loop)

    def _measured(self, loop: Any) -> None:
        if self._watch.improves(loop):
            self._best = copied(loop.state) if self._restore else None
        elif self._watch.waited >= self._patience:
            self._halt(loop)

    def _halt(self, loop: Any) -> None:
        watch = self._watch
        name = watch.metric or ("validation_loss" if loop.validates else "loss")
        times = "validations" if watch.event(loop) == "validated" else "epochs"
        best = "" if watch.best is None else f" than {watch.best:.6g}"
        loop.halt(
            f"early_stopping: {name} was no better{best} for {watch.waited} {times}"
        )

    def _ended(self, loop: Any) -> None:
        if self._best is not None:
            loop.state, self._best = self._best, None

    def _get_state(self) -> dict[str, Any]:
        return {**self._watch.get_state(), "state": self._best}

    def _set_state(self, state: Any) -> None:
        self._watch.set_state(state)
        if state.get("state") is not None:
            self._best = unnamed(state["state"], self._loop.state, "early_stopping")


def time_limit(seconds: float) -> Callback:
    """Ends training when it has taken so long, after the step that is under way.

    Args:
        seconds: since the start of this run; a resumed one has as many again.

    Shapes:
        No arrays.

    Raises:
        ValueError: `seconds` is not positive.

    Example:
        >>> import axonlike as al
        >>> r = al.fit(
        ...     lambda count, _: (count + 1, {}), 0, [None], epochs=10**9,
        ...     callbacks=[al.callbacks.time_limit(0.01)])
        >>> r.halted
        'time_limit: 0.01 s have passed'
    """
    positive("time_limit", seconds=seconds)

    def bind(loop: Any) -> Handlers:
        end = time.monotonic() + seconds

        def check(loop: Any) -> None:
            if time.monotonic() >= end:
                loop.halt(f"time_limit: {seconds:g} s have passed")

        return Handlers({"step_completed": check})

    return bind
