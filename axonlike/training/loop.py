"""The training loop: any step over any batches, with events."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from axonlike.errors import PathError
from axonlike.spec import show
from axonlike.training.batch import count_of
from axonlike.training.events import EVENTS, Handler, Handlers
from axonlike.training.feed import Feed
from axonlike.training.history import History
from axonlike.training.logs import Logs, check, is_logs, number, single
from axonlike.training.merged import Merged
from axonlike.training.progress import REFRESH, display
from axonlike.training.watch import VALIDATION, Mode, Watch
from axonlike.types import PyTree

Step = Callable[[Any, Any], tuple[Any, Mapping[str, Any]]]
MONITORED = (f"{VALIDATION}loss", "loss")
"""What is looked at where nothing is said: the first of these that is measured."""


@dataclass(frozen=True)
class Plan:
    """How long a run is, and what is measured on the way."""

    epochs: int | None
    total: int | None
    validate: Callable[[Any], Mapping[str, Any]] | None
    validate_every: int | None
    monitor: str | None
    mode: Mode
    verbose: int | None


class Loop:
    """A run of training as handlers see it.

    A handler may read all of it, replace `state`, and call `halt` and `settled`.

    Args:
        state: what the step takes and returns. The next step gives its arrays away: copy
            what is to be kept.
        step: how many steps have been done, over resumes.
        epoch: how many epochs have been completed, over resumes.
        epochs: how many there shall be; None: as many as the steps take.
        total: how many steps there shall be at most; None: as many as the epochs have.
        expected: how many steps there will be, as far as is known.
        batch: the last one.
        history: all numbers that have arrived.
        latest: the newest number of each name that has arrived; waits for nothing.
        counts: how often each event has happened, over resumes.
        halted: why training is about to end, or None.
        take_step: the step, `(state, batch) -> (state, logs)`.
        view: makes of the state what is validated; the state itself, by default.
        validates: whether there is validation.
        error: what was raised, at `failed`.
    """

    def __init__(self, run: Step, state: PyTree, feed: Feed, plan: Plan) -> None:
        self.state, self.batch = state, None
        self.step = self.epoch = 0
        self.epochs, self.total = plan.epochs, plan.total
        self.expected = _expected(plan, len(feed))
        self.history = History()
        self.latest: dict[str, Any] = {}
        self.counts: Counter[str] = Counter()
        self.halted: str | None = None
        self.error: BaseException | None = None
        self.view: Callable[[Any], Any] = _as_it_is
        self.validates = plan.validate is not None
        self.take_step, self._feed, self._plan = run, feed, plan
        self._used, self._epoch_began = 0, 0
        self._weights: list[Any] = []  # how many examples each step of this epoch had
        self._position: str | None = None
        self._merged = Merged(run)
        self._watch = Watch("fit: monitor", plan.monitor, plan.mode)
        self._validated_at = -1
        self._logs = Logs(self._measured)
        self._settled: list[Callable[[], None]] = []
        self._handlers: dict[str, Handlers] = {}
        self._events: dict[str, list[Handler]] = {event: [] for event in EVENTS}
        self._display = display(plan.verbose)

    # --- for handlers

    @property
    def metrics(self) -> dict[str, Any]:
        """Numbers of this epoch: means over its examples, and what was validated last.

        A step counts for as many examples as its batch has. What `train_step` measures is
        that of all of them together. Reading this waits for the last step.
        """
        self._logs.flush()
        means: dict[str, Any] = {}
        for name, value in self.latest.items():
            if not name.startswith(VALIDATION) and isinstance(value, float):
                means[name] = self._mean(name)
        last = {k: v for k, v in self.latest.items() if k.startswith(VALIDATION)}
        return {**means, **self._merged.values(), **last}

    def _mean(self, name: str) -> float:
        """The mean of a metric in this epoch, over examples."""
        began = self._epoch_began
        found = self.history.since(name, began)
        weights = [float(self._weights[step - began - 1]) for step, _ in found]
        total = math.fsum(weights)
        pairs = zip(weights, found, strict=True)
        whole = math.fsum(weight * value for weight, (_, value) in pairs)
        return whole / total if total else math.nan

    def monitored(self, name: str | None, where: str) -> float:
        """The value of a metric; None: `validation_loss`, or else `loss`."""
        metrics = self.metrics
        if name is None:
            name = next((n for n in MONITORED if n in metrics), MONITORED[0])
        if name not in metrics:
            raise PathError(where, name, metrics)
        return single(where, name, metrics[name])

    def halt(self, reason: str) -> None:
        """Ends training when all that belongs to this step is done."""
        self.halted = reason

    def settled(self, function: Callable[[], None]) -> None:
        """Calls a function when all that belongs to this step is done."""
        self._settled.append(function)

    def flush(self) -> None:
        """Waits for the last step: all numbers are in the history then."""
        self._logs.flush()

    # --- what a checkpoint holds

    def attach(self, handlers: Mapping[str, Handlers]) -> None:
        """Has handlers called at their events, in this order."""
        self._handlers = dict(handlers)
        for each in handlers.values():
            for event, handler in each.events.items():
                self._events[event].append(handler)

    def get_state(self) -> dict[str, Any]:
        """All that a resumed run has to know."""
        self._logs.flush()
        asked = {name: each.get_state for name, each in self._handlers.items()}
        return {
            "state": self.state,
            "history": self.history.get_state(),
            "metrics": self._merged.get_state(),
            "callbacks": {name: ask() for name, ask in asked.items() if ask},
            "loop": {
                "step": self.step,
                "epoch": self.epoch,
                "used": self._used,
                "epoch_began": self._epoch_began,
                "weights": np.array(self._weights, np.float64),
                "validated_at": self._validated_at,
                "watch": self._watch.get_state(),
                "position": self._feed.position(),
                "latest": dict(self.latest),
                "counts": dict(self.counts),
            },
        }

    def set_state(self, state: PyTree, saved: Mapping[str, Any]) -> None:
        """Goes on from there."""
        own = saved["loop"]
        self.state = state
        self.step, self.epoch, self._used = own["step"], own["epoch"], own["used"]
        self._epoch_began, self._validated_at = own["epoch_began"], own["validated_at"]
        self._weights = np.asarray(own.get("weights", np.ones(self._used))).tolist()
        self._watch.set_state(own["watch"])
        self._position = own["position"]
        self.latest, self.counts = dict(own.get("latest", {})), Counter(own["counts"])
        self.history.set_state(saved.get("history", {}))
        self._merged.set_state(saved.get("metrics", {}))
        for name, state_of in saved.get("callbacks", {}).items():
            take = self._handlers[name].set_state if name in self._handlers else None
            if take is not None:
                take(state_of)

    # --- the loop

    def run(self) -> None:
        """All of it, from where it is."""
        try:
            self._display.start(self)
            self._fire("started")
            self._settle()
            while not self._ended():
                self._one_epoch()
            self._close()
        except BaseException as error:
            self._failed(error)
            raise
        finally:
            self._display.close(self)

    def _one_epoch(self) -> None:
        """The rest of an epoch; it ends early where training does."""
        batches = self._feed.open(self.epoch, self._used, self._position)
        self._position = None
        if not self._used:
            self._epoch_began, self._weights = self.step, []
            self._merged.clear()
            self._fire("epoch_started")
            self._settle()
        if self._ended() or not self._steps(batches):
            return
        if not self._used:
            raise ValueError(
                f"fit: the data has no batches in epoch {self.epoch + 1}. A generator "
                "ends after one pass: pass a list, al.batches or a loader."
            )
        self.epoch, self._used = self.epoch + 1, 0
        self._epoch_completed()
        self._settle()

    def _steps(self, batches: Any) -> bool:
        """Steps until the epoch or training ends; whether it was the epoch."""
        run, take, push = self.take_step, self._feed.take, self._logs.push
        on_step, clock = self._events["step_completed"], time.monotonic
        every, visible, due = self._plan.validate_every, self._display.visible, 0.0
        merge, counts = self._merged.add if self._merged else None, self.counts
        weigh = self._weights.append
        for each in batches:
            self.batch = batch = take(each)
            result = run(self.state, batch)
            if not self._used:
                check(result)
            self.state, logs = result
            self.step += 1
            self._used += 1
            weigh(count_of(batch))
            push(self.step, logs)
            if merge is not None:
                merge(logs)
            counts["step_completed"] += 1
            for handler in on_step:
                handler(self)
            if visible and clock() >= due:
                self._logs.poll()
                self._display.tick(self)
                due = clock() + REFRESH
            if every is not None and not self.step % every:
                self._validate()
            if self._settled:
                self._settle()
            if self.halted is not None or self.step == self.total:
                return False
        return True

    def _epoch_completed(self) -> None:
        if self._plan.validate is not None and self._plan.validate_every is None:
            self._validate()
        elif self._plan.validate is None:
            self._improved()
        if self.expected is None and self.epochs is not None:
            self.expected = self.step // self.epoch * self.epochs
        self._display.epoch(self)
        self._fire("epoch_completed")

    def _validate(self) -> None:
        validate: Any = self._plan.validate
        found = validate(self.view(self.state))
        if not is_logs(found):
            raise TypeError(
                "fit: expected validate to return a dict of numbers by name, got "
                f"{show(found)}. Return {{'loss': loss}}."
            )
        measured = {
            name if name.startswith(VALIDATION) else VALIDATION + name: number(name, v)
            for name, v in found.items()
        }
        self._logs.flush()
        self._measured(self.step, measured)
        self._validated_at = self.step
        self._fire("validated")
        self._improved()

    def _improved(self) -> None:
        """Tells it where the metric that is monitored is better than ever."""
        self._logs.flush()
        found = (self.latest.get(name) for name in MONITORED)
        if self._plan.monitor is None and not any(isinstance(n, float) for n in found):
            return
        if self._watch.improves(self):
            self._fire("improved")

    def _close(self) -> None:
        late = self._plan.validate is not None and self._validated_at != self.step
        if self.halted is None and late and self.step:
            self._validate()
        self._fire("completed" if self.halted is None else "halted")
        self._settle()
        self._logs.flush()
        jax.block_until_ready(self.state)

    def _failed(self, error: BaseException) -> None:
        self.error = error
        error.add_note(f"in fit, epoch {self.epoch + 1}, after step {self.step}")
        self._fire("failed")

    def _ended(self) -> bool:
        steps_done = self.total is not None and self.step >= self.total
        epochs_done = self.epochs is not None and self.epoch >= self.epochs
        return self.halted is not None or steps_done or epochs_done

    def _fire(self, event: str) -> None:
        self.counts[event] += 1
        for handler in self._events[event]:
            handler(self)

    def _settle(self) -> None:
        while self._settled:
            self._settled.pop(0)()

    def _measured(self, step: int, metrics: dict[str, Any]) -> None:
        self.history.record(step, metrics)
        self.latest.update(metrics)
        if self._display.visible:
            self._display.measured(metrics)


def _expected(plan: Plan, batches: int) -> int | None:
    """How many steps there will be, where that is known from the start."""
    known = [plan.total] if plan.total is not None else []
    if plan.epochs is not None and batches:
        known.append(plan.epochs * batches)
    return min(known, default=None)


def _as_it_is(state: Any) -> Any:
    return state
