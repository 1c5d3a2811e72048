"""How far training is: a bar in a terminal, a line for every epoch, or nothing."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any

from axonlike.extras import optional

REFRESH = 0.2
"""Seconds between two pictures of the bar."""

KEEP = 0.9
"""How much of the past a smoothed number keeps from one value to the next."""


class Silent:
    """Shows nothing; what `verbose=0` is, and `verbose=1` where nobody looks."""

    visible = False

    def start(self, loop: Any) -> None:
        """Before the first step."""

    def measured(self, metrics: Mapping[str, Any]) -> None:
        """Metrics of one more step have arrived."""

    def tick(self, loop: Any) -> None:
        """Some time has passed."""

    def epoch(self, loop: Any) -> None:
        """An epoch has ended."""

    def close(self, loop: Any) -> None:
        """The run has ended."""


class Lines(Silent):
    """One line for every epoch: what `verbose=2` is."""

    def __init__(self) -> None:
        self._began = time.monotonic()

    def epoch(self, loop: Any) -> None:
        """Writes the line."""
        now = time.monotonic()
        head = f"epoch {loop.epoch}{_of(loop.epochs)}  step {loop.step}"
        sys.stdout.write(f"{head}  {now - self._began:.1f} s  {line(loop.metrics)}\n")
        sys.stdout.flush()
        self._began = now


class Bar(Silent):
    """A bar with rate, time left and smoothed metrics: what `verbose=1` is.

    Drawn a few times a second at most, from metrics that have arrived by then.
    """

    visible = True

    def __init__(self, console: Any) -> None:
        progress: Any = optional("rich.progress", "fit")
        live: Any = optional("rich.live", "fit")
        self._bar = progress.Progress(
            progress.TextColumn("{task.description}"),
            progress.BarColumn(20),
            progress.MofNCompleteColumn(),
            progress.TextColumn("{task.fields[rate]}"),
        )
        self._metrics = ""
        self._live = live.Live(
            console=console, auto_refresh=False, get_renderable=self._picture
        )
        self._task = self._bar.add_task("", total=None, rate="")
        self._smooth: dict[str, Smooth] = {}
        self._rate = Smooth()
        self._last: tuple[int, float | None] = 0, None

    def _picture(self) -> Any:
        """The bar, and below it the metrics, as many as there is room for."""
        console: Any = optional("rich.console", "fit")
        text: Any = optional("rich.text", "fit")
        below = text.Text(self._metrics, no_wrap=True, overflow="ellipsis")
        return console.Group(self._bar.get_renderable(), below)

    def start(self, loop: Any) -> None:
        """Draws it for the first time."""
        self._last = loop.step, None
        self._live.start()
        self.tick(loop)

    def measured(self, metrics: Mapping[str, Any]) -> None:
        """Smooths them."""
        for name, value in metrics.items():
            if not isinstance(value, float):
                continue
            if name not in self._smooth:
                self._smooth[name] = Smooth()
            self._smooth[name].add(value)

    def tick(self, loop: Any) -> None:
        """Draws it anew."""
        now, (step, then) = time.monotonic(), self._last
        if loop.step > step:
            if then is not None and now > then:  # the first step compiles: left out
                self._rate.add((loop.step - step) / (now - then))
            self._last = loop.step, now
        shown = {name: smooth.value for name, smooth in self._smooth.items()}
        shown |= {k: v for k, v in loop.latest.items() if k.startswith("validation_")}
        self._bar.update(
            self._task,
            description=f"epoch {min(loop.epoch + 1, loop.epochs or loop.epoch + 1)}"
            f"{_of(loop.epochs)}",
            completed=loop.step,
            total=loop.expected,
            rate=self._speed(loop),
        )
        self._metrics = line(shown)
        self._live.refresh()

    def close(self, loop: Any) -> None:
        """Draws it for the last time."""
        self.tick(loop)
        self._live.stop()

    def _speed(self, loop: Any) -> str:
        rate = self._rate.value
        if not rate:
            return ""
        speed = f"{rate:.1f} steps/s" if rate >= 1 else f"{1 / rate:.1f} s/step"
        if loop.expected is None:
            return speed
        left = max(loop.expected - loop.step, 0) / rate
        return f"{speed}, {duration(left)} left"


class Smooth:
    """An exponential mean, unbiased from its first value on."""

    def __init__(self) -> None:
        self._sum = self._weight = 0.0

    def add(self, value: float) -> None:
        """One more value."""
        self._sum = KEEP * self._sum + (1 - KEEP) * value
        self._weight = KEEP * self._weight + (1 - KEEP)

    @property
    def value(self) -> float:
        """The mean; zero before the first value."""
        return self._sum / self._weight if self._weight else 0.0


def display(verbose: int | None) -> Silent:
    """What shows how far a run is; None: a bar where there is a terminal to draw it in."""
    if verbose not in (None, 0, 1, 2):
        raise ValueError(f"fit: verbose must be 0, 1, 2 or None, got {verbose!r}.")
    if verbose == 0:
        return Silent()
    if verbose == 2:
        return Lines()
    try:
        console: Any = optional("rich.console", "fit(verbose=1)")
    except ImportError:
        if verbose is None:
            return Silent()
        raise
    screen = console.Console(stderr=True)
    return Bar(screen) if screen.is_terminal or screen.is_jupyter else Silent()


def line(metrics: Mapping[str, Any]) -> str:
    """Metrics in a line, those that are single numbers."""
    single = {n: v for n, v in metrics.items() if isinstance(v, float)}
    return "  ".join(f"{name} {value:.4g}" for name, value in single.items())


def duration(seconds: float) -> str:
    """Seconds as one says them: `8 s`, `3:05`, `2:03:05`."""
    whole = round(seconds)
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    if hours:
        return f"{hours}:{minutes:02}:{rest:02}"
    return f"{minutes}:{rest:02}" if minutes else f"{rest} s"


def _of(total: int | None) -> str:
    return "" if total is None else f"/{total}"
