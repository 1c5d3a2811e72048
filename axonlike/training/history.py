"""What was measured in training, and when."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import numpy as np

from axonlike.errors import PathError
from axonlike.extras import optional


class History(Mapping[str, Any]):
    """The numbers of a training run by name, each with the steps it was measured at.

    `history["loss"]` is an array of its values in order. What the step returned is there
    once a step, what was validated once a validation, as `validation_loss`. A metric that
    is several numbers is an array with one more axis.

    Example:
        >>> import axonlike as al
        >>> r = al.fit(lambda s, x: (s, {"loss": x}), None, [3.0, 1.0], epochs=2)
        >>> r.history["loss"], r.history.steps("loss")
        (array([3., 1., 3., 1.]), array([1, 2, 3, 4]))
    """

    def __init__(self) -> None:
        self._columns: dict[str, tuple[list[int], list[Any]]] = {}

    def record(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Adds what was measured after a step."""
        columns = self._columns
        for name, value in metrics.items():
            column = columns.get(name)
            if column is None:
                column = columns[name] = ([], [])
            column[0].append(step)
            column[1].append(value)

    def steps(self, name: str) -> Any:
        """The steps after which a metric was measured, in order."""
        return np.array(self._column(name)[0], np.int64)

    def since(self, name: str, step: int) -> list[tuple[int, Any]]:
        """The values of a metric that were measured after a step, each with its own."""
        steps, values = self._column(name)
        start = len(steps)
        while start and steps[start - 1] > step:
            start -= 1
        return list(zip(steps[start:], values[start:], strict=True))

    def tail(self, name: str, start: int) -> tuple[list[int], list[Any]]:
        """Steps and values of a metric but the first so many."""
        steps, values = self._column(name)
        return steps[start:], values[start:]

    def plot(self, names: Sequence[str] | None = None, path: Any = None) -> Any:
        """Draws the curves: one panel for each metric, with its validated values in it.

        Args:
            names: of metrics; None: all that are single numbers.
            path: of a file to write, PNG or SVG by its ending; None: none.

        Returns:
            A matplotlib `Figure`, which notebooks show.

        Raises:
            PathError: there is no such metric.
            ImportError: matplotlib is not installed.

        Example:
            >>> import axonlike as al
            >>> r = al.fit(lambda s, x: (s, {"loss": x}), None, [3.0, 1.0], epochs=2)
            >>> figure = r.history.plot()  # doctest: +SKIP
        """
        figures = optional("matplotlib.figure", "History.plot")
        chosen = [n for n in self if self[n].ndim == 1] if names is None else names
        panels = _panels([name for name in chosen if self._column(name)])
        size = (5.0 * max(len(panels), 1), 3.5)
        figure = figures.Figure(figsize=size, layout="constrained")
        for at, (title, lines) in enumerate(panels.items(), start=1):
            axes = figure.add_subplot(1, len(panels), at)
            for name in lines:
                _draw(axes, name, *self._columns[name])
            axes.set(title=title, xlabel="step")
            axes.grid(alpha=0.3)
            if len(lines) > 1:
                axes.legend()
        if path is not None:
            figure.savefig(path)
        return figure

    def get_state(self) -> dict[str, Any]:
        """All columns, as arrays."""
        return {
            name: {"steps": np.array(steps, np.int64), "values": np.array(values)}
            for name, (steps, values) in self._columns.items()
        }

    def set_state(self, state: Any) -> None:
        """Takes them again."""
        self._columns = {
            name: (
                cast("list[int]", np.asarray(column["steps"]).tolist()),
                _unstacked(np.asarray(column["values"])),
            )
            for name, column in state.items()
        }

    def _column(self, name: str) -> tuple[list[int], list[Any]]:
        if name not in self._columns:
            raise PathError("history", name, self._columns)
        return self._columns[name]

    def __getitem__(self, name: str) -> Any:
        return np.array(self._column(name)[1])

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns)

    def __len__(self) -> int:
        return len(self._columns)

    def __repr__(self) -> str:
        columns = (f"{n}: {len(v)}" for n, (_, v) in self._columns.items())
        return f"History({', '.join(columns)})"


def _unstacked(values: Any) -> list[Any]:
    """Python floats; arrays where each value is one."""
    return values.tolist() if values.ndim < 2 else list(values)


def _panels(names: Sequence[str]) -> dict[str, list[str]]:
    """Metrics that belong in one picture: a metric and the same, validated."""
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(name.removeprefix("validation_"), []).append(name)
    return found


def _draw(axes: Any, name: str, steps: list[int], values: list[float]) -> None:
    """One curve: many values as a pale line with its running mean, few with dots."""
    if len(values) < 200:
        axes.plot(steps, values, label=name, marker="." if len(values) < 60 else "")
        return
    (line,) = axes.plot(steps, values, alpha=0.25, linewidth=0.7)
    width = len(values) // 50
    mean = np.convolve(values, np.ones(width) / width, "valid")
    middle = steps[width // 2 : width // 2 + len(mean)]
    axes.plot(middle, mean, label=name, color=line.get_color())
