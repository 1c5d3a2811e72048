"""The pictures of the demo: how training went, and which digits were hard."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK, RIGHT, WRONG, FAINT = "#333333", "#2166ac", "#c0392b", "#c8ccd0"
STYLE = {
    "font.size": 10,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}
ROWS, COLUMNS = 4, 10


def draw_curves(file: Path, history: Any) -> None:
    """The loss at every step, and the accuracy on the held-out digits as it went."""
    losses, held = history["loss"], "validation_accuracy"
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(8, 5.2), layout="constrained")
        top, bottom = figure.subplots(2, sharex=True, height_ratios=(3, 2))
        draw_losses(top, losses)
        draw_accuracies(bottom, history.steps(held), 100 * history[held])
        bottom.set(xlabel="training step", xlim=(0, len(losses) * 1.09))
        figure.suptitle(
            "Handwritten digits: training", x=0.01, ha="left", weight="bold"
        )
        figure.savefig(file, dpi=150)


def draw_losses(axis: Axes, losses: Any) -> None:
    """Every batch, and a running mean."""
    steps, width = np.arange(1, len(losses) + 1), min(22, len(losses))
    means = np.convolve(losses, np.ones(width) / width, mode="valid")
    axis.semilogy(steps, losses, color=FAINT, lw=0.8, label="one batch")
    axis.semilogy(
        steps[width - 1 :], means, color=RIGHT, lw=2, label=f"mean of {width}"
    )
    axis.annotate(
        f" {means[-1]:.3f}", (len(losses), means[-1]), color=RIGHT, va="center"
    )
    axis.yaxis.set_major_formatter("{x:g}")
    axis.set_ylabel("training loss (nats)")
    axis.legend(frameon=False)


def draw_accuracies(axis: Axes, steps: Any, values: Any) -> None:
    """Accuracy in percent, the last value written out."""
    axis.plot(steps, values, color=RIGHT, marker="o", ms=3)
    axis.annotate(
        f" {values[-1]:.1f} %", (steps[-1], values[-1]), color=RIGHT, va="center"
    )
    axis.set(ylabel="held-out accuracy (%)", ylim=(min(90, values[-1]) - 0.5, 100.5))
    axis.grid(axis="y", color=FAINT, lw=0.5)


def draw_digits(file: Path, x: Any, labels: Any, probabilities: Any) -> None:
    """Held-out digits with what the model says: mistakes first, then the least sure."""
    said, sure = probabilities.argmax(-1), probabilities.max(-1)
    order = np.lexsort((sure, said == labels))[: ROWS * COLUMNS]
    wrong = int((said != labels).sum())
    with mpl.rc_context(STYLE):
        figure = Figure(
            figsize=(COLUMNS * 1.1, ROWS * 1.72 + 0.7), layout="constrained"
        )
        grid = figure.subplots(2 * ROWS, COLUMNS, height_ratios=(7, 2) * ROWS)
        for at, i in enumerate(order):
            row, column = divmod(at, COLUMNS)
            above, below = grid[2 * row : 2 * row + 2, column]
            draw_digit(above, x[i, ..., 0], int(labels[i]), int(said[i]))
            draw_bars(below, probabilities[i], int(labels[i]))
        title = f"{wrong} of {len(labels)} held-out digits read wrongly"
        title += "; mistakes first, then the least sure"
        figure.suptitle(title, x=0.01, ha="left", weight="bold")
        figure.supxlabel(
            "bars: the probability of each class, blue the true one", size=9
        )
        figure.savefig(file, dpi=150)


def draw_digit(axis: Axes, image: Any, label: int, said: int) -> None:
    """One digit, what it was taken for, and what it is if that is wrong."""
    right = said == label
    image = np.pad(image, 1)
    axis.imshow(image, cmap="gray_r", vmin=0, vmax=1, interpolation="bicubic")
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set(
        visible=True, color=FAINT if right else WRONG, lw=1 if right else 2
    )
    text = f"{said}" if right else f"{said}, is {label}"
    axis.set_title(text, color=RIGHT if right else WRONG, weight="bold", pad=3)


def draw_bars(axis: Axes, probabilities: Any, label: int) -> None:
    """The probability of every class, the true one in blue; the highest in words."""
    said = int(probabilities.argmax())
    colors = [FAINT] * 10
    colors[said] = WRONG
    colors[label] = RIGHT
    axis.bar(range(10), probabilities, color=colors, width=0.85)
    axis.set(xticks=range(10), yticks=[], xlim=(-0.6, 9.6), ylim=(0, 1))
    axis.tick_params(length=0, labelsize=6, pad=1)
    axis.spines["left"].set_visible(False)
    side, align = (0.0, "left") if said > 4 else (9.4, "right")
    axis.text(side, 0.65, f"{probabilities[said]:.0%}", fontsize=8, ha=align)
