"""Training that breaks down: the step at which it did, and where in the model."""

from __future__ import annotations

import math
from typing import Any

from axonlike.training.events import Callback, Handlers
from axonlike.training.kept import copied
from axonlike.training.watch import positive
from axonlike.types import PyTree


def stop_on_nonfinite(metric: str = "loss", *, every: int = 20) -> Callback:
    """Ends training when the loss is no finite number, and says where that came from.

    The state before that step is what training ends with. To find it, a copy of the state
    and the batches since are kept, and the steps taken once more. For a step of
    `train_step` the first layer with such a number is named.

    Args:
        metric: the number that should be finite, at every step.
        every: after so many steps a newer copy of the state is kept.

    Shapes:
        No arrays.

    Raises:
        ValueError: `every` is not positive.

    Example:
        >>> import axonlike as al
        >>> def step(x, batch):
        ...     return x * batch, {"loss": x * batch}
        >>> r = al.fit(
        ...     step, 1.0, [2.0, 3.0, float("inf"), 2.0], epochs=1,
        ...     callbacks=[al.callbacks.stop_on_nonfinite()])
        >>> r.state, r.halted
        (6.0, 'stop_on_nonfinite: loss is inf at step 3')
    """
    positive("stop_on_nonfinite", every=every)

    def bind(loop: Any) -> Handlers:
        watcher = _Watcher(metric, every)
        return Handlers(
            {
                "started": watcher.keep,
                "step_completed": watcher.step,
                "epoch_completed": watcher.look,
            }
        )

    return bind


class _Watcher:
    """The states and batches of one run that may have to be gone through again."""

    def __init__(self, metric: str, every: int) -> None:
        self._metric, self._every = metric, every
        self._states: list[tuple[int, PyTree]] = []
        self._batches: list[Any] = []
        self._first = self._seen = 0

    def keep(self, loop: Any) -> None:
        """A copy of the state; the one before stays until this is known to be good."""
        self._states.append((loop.step, copied(loop.state)))
        if len(self._states) == 1:
            self._first = loop.step
            steps = loop.history.get(self._metric)
            self._seen = 0 if steps is None else len(steps)

    def step(self, loop: Any) -> None:
        """One more step has been started."""
        self._batches.append(loop.batch)
        if not math.isfinite(loop.latest.get(self._metric, 0.0)) or (
            loop.step == loop.total
        ):
            self.look(loop)
        elif loop.step - self._states[-1][0] >= self._every:
            self._forget(loop)
            self.keep(loop)

    def look(self, loop: Any) -> None:
        """Ends training if any number so far is not finite."""
        loop.flush()
        if loop.halted is not None or self._metric not in loop.history:
            return
        steps, values = loop.history.tail(self._metric, self._seen)
        self._seen += len(steps)
        for step, value in zip(steps, values, strict=True):
            if not math.isfinite(value):
                self._halt(loop, step, value)
                return

    def _forget(self, loop: Any) -> None:
        """Lets go of what comes before the newest copy that is known to be good."""
        arrived = loop.history.steps(self._metric)
        known = arrived[-1] if len(arrived) else self._first
        good = [state for state in self._states if state[0] <= known]
        if good:
            self._states = self._states[self._states.index(good[-1]) :]
            del self._batches[: self._states[0][0] - self._first]
            self._first = self._states[0][0]

    def _halt(self, loop: Any, step: int, value: float) -> None:
        """Goes through the steps again, up to the one that broke."""
        start, state = [each for each in self._states if each[0] < step][-1]
        before = self._batches[start - self._first : step - 1 - self._first]
        for batch in before:
            state, _ = loop.take_step(state, batch)
        culprit = self._batches[step - 1 - self._first]
        where = located(loop.take_step, state, culprit)
        loop.state = state
        loop.halt(
            f"stop_on_nonfinite: {self._metric} is {value:g} at step {step}{where}"
        )


def located(step: Any, state: PyTree, batch: Any) -> str:
    """Where in the model of a training step such numbers come up first."""
    return ""
