"""Training that breaks down: the step at which it did, and where in the model."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

from axonlike.errors import PathError
from axonlike.inspect.nonfinite import locate_nonfinite
from axonlike.training.batch import as_arrays, inputs_of
from axonlike.training.events import Callback, Handlers
from axonlike.training.kept import copied
from axonlike.training.logs import single
from axonlike.training.loss import losses_of, prepared
from axonlike.training.options import whole
from axonlike.training.step import TrainStep
from axonlike.types import PyTree


def stop_on_nonfinite(metric: str = "loss", *, every: int = 20) -> Callback:
    """Ends training when the loss is no finite number, and says where that came from.

    Training ends with the last state that is finite. To find it, a copy of the state and
    the batches since are kept, and the steps taken once more. For a step of `train_step`
    the first layer with such a number is named, as `al.locate_nonfinite` finds it.

    Args:
        metric: the number that should be finite, at every step.
        every: after so many steps a newer copy of the state is kept.

    Shapes:
        No arrays.

    Raises:
        ValueError: `every` is not positive.
        PathError: no step returns such a number.
        TypeError: it is several numbers.

    Example:
        >>> import axonlike as al
        >>> def step(x, batch):
        ...     return x * batch, {"loss": x * batch}
        >>> r = al.fit(
        ...     step, 1.0, [2.0, 3.0, float("inf"), 2.0], epochs=1,
        ...     callbacks=[al.callbacks.stop_on_nonfinite()])
        >>> r.state, r.halted
        (6.0, 'stop_on_nonfinite: loss is inf at step 3; the state of step 2 is finite')
    """
    every = whole("stop_on_nonfinite", "every", every)

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
        latest = loop.latest.get(self._metric, 0.0)
        if not self._finite(latest) or loop.step == loop.total:
            self.look(loop)
        elif loop.step - self._states[-1][0] >= self._every:
            self._forget(loop)
            self.keep(loop)

    def look(self, loop: Any) -> None:
        """Ends training if any number so far is not finite."""
        loop.flush()
        if loop.halted is not None:
            return
        if self._metric not in loop.history:
            raise PathError("stop_on_nonfinite", self._metric, loop.history)
        steps, values = loop.history.tail(self._metric, self._seen)
        self._seen += len(steps)
        for step, value in zip(steps, values, strict=True):
            if not self._finite(value):
                self._halt(loop, step, value)
                return

    def _finite(self, value: Any) -> bool:
        return math.isfinite(single("stop_on_nonfinite", self._metric, value))

    def _forget(self, loop: Any) -> None:
        """Lets go of what comes before the newest copy that is known to be good."""
        if self._metric not in loop.history:
            return
        arrived = loop.history.steps(self._metric)[-1]  # of a state that came before
        good = [state for state in self._states if state[0] < arrived]
        if good:
            self._states = self._states[self._states.index(good[-1]) :]
            del self._batches[: self._states[0][0] - self._first]
            self._first = self._states[0][0]

    def _halt(self, loop: Any, step: int, value: float) -> None:
        """Goes through the steps again, up to the one that broke."""
        before = [each for each in self._states if each[0] < step and finite(each[1])]
        start, state = before[-1]
        batches = self._batches[start - self._first : step - self._first]
        run, at = loop.take_step, start
        for batch in batches[:-1]:
            after, _ = run(copied(state), batch)
            if not finite(after):  # the loss will show it one step later
                break
            state, at = after, at + 1
        where = located(run, state, batches[at - start])
        loop.state = state
        loop.halt(
            f"stop_on_nonfinite: {self._metric} is {value:g} at step {step}; "
            f"the state of step {at} is finite{where}"
        )


def finite(state: PyTree) -> bool:
    """Whether all params of a state are finite; of any other state, all its numbers."""
    tree = getattr(state, "params", state)
    numbers = [x for x in jax.tree.leaves(tree) if _is_floating(x)]
    return all(bool(jnp.all(jnp.isfinite(x))) for x in numbers)


def located(step: Any, state: Any, batch: Any) -> str:
    """Where in the model of a step of `train_step` such numbers come up first."""
    if not isinstance(step, TrainStep):
        return ""
    batch = as_arrays(batch)
    key = None
    if state.key is not None and step.model.uses_key:
        key = jax.random.fold_in(state.key, state.step)
    report = locate_nonfinite(
        prepared(step.model, step.options["precision"], None),
        state.params, state.model_state, inputs_of(batch), batch,
        loss=_summed(step), key=key, train=True,
    )  # fmt: skip
    if report.first is None:
        return "; model and gradients are finite in the next step, its update is not"
    return f"; the next step has {report.first}"


def _summed(step: TrainStep) -> Any:
    """The loss of a step, its weighted terms as one number."""
    terms = losses_of(step.loss, step.options["weights"])

    def loss(predictions: Any, batch: Any) -> Any:
        total = jnp.zeros(())
        for term in terms:
            y = predictions if term.output is None else predictions[term.output]
            value = jnp.mean(term.function(y, batch)).astype(total.dtype)
            total = total + value * (1.0 if term.weight is None else term.weight)
        return total

    return loss


def _is_floating(x: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(x), jnp.inexact)
