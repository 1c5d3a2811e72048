"""Watching one metric: whether it is better than ever, and since when not."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from axonlike.spec import show
from axonlike.training.options import real

Mode = Literal["min", "max"]
VALIDATION = "validation_"


@dataclass
class Watch:
    """The best value of a metric so far, and how often it was not better since."""

    where: str
    metric: str | None
    mode: Mode
    min_delta: float = 0.0
    best: float | None = None
    waited: int = 0

    def __post_init__(self) -> None:
        if self.mode not in ("min", "max"):
            raise ValueError(
                f"{self.where}: mode must be 'min' or 'max', got {self.mode!r}."
            )
        if not (self.metric is None or isinstance(self.metric, str)):
            raise TypeError(
                f"{self.where}: expected the name of a metric, got {show(self.metric)}."
            )
        real(self.where, min_delta=self.min_delta, baseline=self.best)
        if self.min_delta < 0:
            raise ValueError(
                f"{self.where}: min_delta must not be negative, got {self.min_delta}."
            )

    def event(self, loop: Any) -> str:
        """When the metric is new: after each validation, or after each epoch."""
        validated = self.metric is None or self.metric.startswith(VALIDATION)
        return "validated" if validated and loop.validates else "epoch_completed"

    def improves(self, loop: Any) -> bool:
        """Whether the metric is better now than ever; its value is remembered."""
        value = loop.monitored(self.metric, self.where)
        if is_better(value, self.best, self.mode, self.min_delta):
            self.best, self.waited = value, 0
            return True
        self.waited += 1
        return False

    def get_state(self) -> dict[str, Any]:
        """What a resumed run has to know."""
        return {"best": self.best, "waited": self.waited}

    def set_state(self, state: Any) -> None:
        """Takes it."""
        self.best, self.waited = state["best"], state["waited"]


def is_better(value: float, best: float | None, mode: Mode, delta: float = 0.0) -> bool:
    """Whether a number is better than the best so far, by more than `delta`."""
    if math.isnan(value):
        return False
    if best is None:
        return True
    return value < best - delta if mode == "min" else value > best + delta
