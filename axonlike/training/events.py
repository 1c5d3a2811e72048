"""What happens in a training loop, and what is called when it does."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, cast

from axonlike.errors import PathError
from axonlike.spec import show
from axonlike.training.options import positive, whole_or_none

EVENTS = (
    "started",
    "epoch_started",
    "step_completed",
    "validated",
    "improved",
    "epoch_completed",
    "halted",
    "completed",
    "failed",
)
"""In the order in which they may happen; one of the last three ends every run."""

Handler = Callable[[Any], object]
"""Takes the loop; what it returns is not looked at."""


@dataclass(frozen=True)
class Handlers:
    """What a callback does in one run: what it returns when the run begins.

    Args:
        events: `{event: handler}`; a handler takes the loop, as for `al.when`.
        get_state: what a checkpoint keeps of it: a dict of arrays, numbers, strings and
            None, nested as it likes.
        set_state: takes that again when a run is resumed, before `started`.

    Shapes:
        No arrays.

    Example:
        >>> import axonlike as al
        >>> def counting(loop):
        ...     count = {"epochs": 0}
        ...     def epoch_completed(loop):
        ...         count["epochs"] += 1
        ...         if count["epochs"] == 2:
        ...             loop.halt("two epochs are enough")
        ...     events = {"epoch_completed": epoch_completed}
        ...     return al.callbacks.Handlers(events, lambda: count, count.update)
        >>> def step(state, batch):
        ...     return state + 1, {}
        >>> al.fit(step, 0, [None], epochs=9, callbacks=[counting]).state
        2
    """

    events: Mapping[str, Handler]
    get_state: Callable[[], Mapping[str, Any]] | None = None
    set_state: Callable[[Any], None] | None = None


class Callback(Protocol):
    """A function that is called at the start of a run, and says what it does in it."""

    def __call__(self, loop: Any, /) -> Handlers:
        """Is called once in every run."""
        ...


def when(
    event: str,
    function: Handler,
    *,
    every: int | None = None,
    seconds: float | None = None,
    first: bool = False,
    before: int | None = None,
    after: int | None = None,
    once: bool = False,
) -> Callback:
    """A callback of `fit` out of a function: it is called with the loop at an event.

    The events are `started`, `epoch_started`, `step_completed`, `validated`, `improved`,
    `epoch_completed`, and, one of them at the end, `halted`, `completed`, `failed`. The
    filters count how often the event has happened since training began, over resumes; if
    there are several, all of them must hold.

    Args:
        event: which one.
        function: takes the loop, which has `state`, `step`, `epoch`, `metrics`, `history`
            and `halt(reason)`.
        every: only each nth time.
        seconds: only when so many have passed since the last call, or since the start.
        first: only the first time.
        before: only up to the nth time, that one not included.
        after: only from the nth time on, that one not included.
        once: only one call, at the first time that all else holds.

    Shapes:
        No arrays.

    Raises:
        PathError: there is no such event.
        TypeError: `function` cannot be called.
        ValueError: a number is not positive.

    Example:
        >>> import optax, axonlike as al
        >>> report = al.when(
        ...     "step_completed", lambda loop: print(loop.step), every=2, before=5)
        >>> def step(count, batch):
        ...     return count + 1, {"loss": batch}
        >>> r = al.fit(step, 0, [0.5, 0.25, 0.125], epochs=2, callbacks=[report])
        2
        4
    """
    if event not in EVENTS:
        raise PathError("when", event, EVENTS)
    if not callable(function):
        raise TypeError(
            f"when: expected a function of the loop, got {type(function).__name__}."
        )
    every, before, after = (
        whole_or_none("when", name, value)
        for name, value in (("every", every), ("before", before), ("after", after))
    )
    positive("when", seconds=seconds)
    filters = Filters(every, seconds, first, before, after, once)

    def bind(loop: Any) -> Handlers:
        gate = Gate(filters, event, time.monotonic())
        handler = partial(_through, gate, function)
        return Handlers({event: handler}, gate.get_state, gate.set_state)

    return bind


@dataclass(frozen=True)
class Filters:
    """The conditions of `when`."""

    every: int | None = None
    seconds: float | None = None
    first: bool = False
    before: int | None = None
    after: int | None = None
    once: bool = False

    def hold(self, count: int) -> bool:
        """Whether those that count let the nth event through."""
        return (
            (self.every is None or count % self.every == 0)
            and (not self.first or count == 1)
            and (self.before is None or count < self.before)
            and (self.after is None or count > self.after)
        )


@dataclass
class Gate:
    """Filters in one run: when they last let something through."""

    filters: Filters
    event: str
    since: float
    passed: bool = False

    def opens(self, loop: Any) -> bool:
        """Whether the event that just happened is let through."""
        filters = self.filters
        if (self.passed and filters.once) or not filters.hold(loop.counts[self.event]):
            return False
        if filters.seconds is not None:
            now = time.monotonic()
            if now - self.since < filters.seconds:
                return False
            self.since = now
        self.passed = True
        return True

    def get_state(self) -> dict[str, Any]:
        """What a resumed run has to know."""
        return {"passed": self.passed}

    def set_state(self, state: Any) -> None:
        """Takes it."""
        self.passed = bool(state["passed"])


def _through(gate: Gate, function: Handler, loop: Any) -> None:
    if gate.opens(loop):
        function(loop)


def bound(callbacks: Sequence[Callback], loop: Any) -> dict[str, Handlers]:
    """What every callback does in a run, by a name under which it is saved."""
    if not isinstance(callbacks, (list, tuple)):
        what = f"{_name(callbacks)} alone" if callable(callbacks) else show(callbacks)
        raise TypeError(
            f"fit: expected a list of callbacks, got {what}. Write callbacks=[...]."
        )
    found: dict[str, Handlers] = {}
    for callback in callbacks:
        made = callback(loop) if callable(callback) else None
        if not isinstance(made, Handlers):
            raise TypeError(
                f"fit: {_name(callback)} is no callback. Make one of a function of the "
                "loop with al.when(event, function)."
            )
        unknown = [event for event in made.events if event not in EVENTS]
        if unknown:
            raise PathError(f"fit: {_name(callback)}", unknown[0], EVENTS)
        name, at = _name(callback), 0
        while (name if not at else f"{name}_{at}") in found:
            at += 1
        found[name if not at else f"{name}_{at}"] = made
    return found


def _name(callback: Any) -> str:
    """The factory that made a callback, as in `early_stopping.<locals>.bind`."""
    name = getattr(callback, "__qualname__", type(callback).__name__)
    return cast(str, name).partition(".")[0]
