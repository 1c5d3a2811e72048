"""The pictures of activation patching: effects by layer and position, and the lens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from pictures import FAINT, INK, RIGHT, STYLE, WRONG

LETTERS = "abcdefghijklmnop"


def draw_patches(file: Path, exact: Any, word: Any, shown: int, length: int) -> None:
    """Where one changed letter is kept, layer by layer."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9, 4.4), layout="constrained")
        axis = figure.subplots()
        image = effects(axis, exact[shown - 1], word, shown, length)
        axis.set_xlabel(
            "letters that the model reads; the red one was changed, at the blue one it "
            "has to be told"
        )
        bar = figure.colorbar(
            image, ax=axis, fraction=0.03, pad=0.02, ticks=[0, 0.5, 1]
        )
        bar.ax.set_yticklabels(["the wrong\nletter", "half", "the right\nletter"])
        bar.outline.set_visible(False)
        title = "Where the letter is kept: what is told after one activation is patched"
        figure.suptitle(title, x=0.01, ha="left", weight="bold")
        figure.savefig(file, dpi=150)


def effects(axis: Axes, values: Any, word: Any, shown: int, length: int) -> Any:
    """One grid of effects, a row for each layer; small ones are not written out."""
    layers, positions = values.shape
    image = axis.imshow(values, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for (row, column), value in np.ndenumerate(values):
        if abs(value) >= 0.05:
            color = "white" if value > 0.6 else INK
            axis.text(column, row, f"{value:.2f}".replace("0.", "."), color=color,
                      ha="center", va="center", size=8)  # fmt: skip
    cells(axis, layers, positions)
    axis.set_xticks(range(positions), [LETTERS[token] for token in word[:positions]])
    axis.get_xticklabels()[shown].set(color=WRONG, weight="bold")
    axis.get_xticklabels()[length + shown - 1].set(color=RIGHT, weight="bold")
    axis.set_yticks(range(layers), rows(layers))
    return image


def rows(layers: int) -> list[str]:
    """What the rows of effects are of."""
    return ["embedding", *(f"block {i}" for i in range(1, layers))]


def draw_attribution(
    file: Path, exact: Any, estimated: Any, word: Any, shown: int, length: int
) -> None:
    """Each patch as it was measured and as a gradient estimates it; one letter's grid."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(11, 4.4), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=(4, 6))
        low = min(exact.min(), estimated.min()) - 0.08
        high = max(exact.max(), estimated.max()) + 0.08
        left.plot([low, high], [low, high], color=FAINT, lw=1, zorder=0)
        colors = mpl.colormaps["viridis"](np.linspace(0, 0.92, exact.shape[1]))
        for layer, label in enumerate(rows(exact.shape[1])):
            left.scatter(exact[:, layer], estimated[:, layer], s=16, lw=0, alpha=0.8,
                         color=colors[layer], label=label)  # fmt: skip
        left.set(
            xlabel="effect measured by patching: 1 is the right letter",
            ylabel="effect estimated by the gradient",
            xlim=(low, high), ylim=(low, high), aspect="equal",
        )  # fmt: skip
        r = np.corrcoef(exact.ravel(), estimated.ravel())[0, 1]
        left.set_title(f"{exact.size} patches, r = {r:.2f}", loc="left", size=10)
        left.legend(frameon=False, fontsize=8, handletextpad=0.1)
        effects(right, estimated[shown - 1], word, shown, length)
        right.set_title("estimated effects for one letter", loc="left", size=10)
        right.set_xlabel("letters that are read; red: changed, blue: where it is told")
        title = (
            "Attribution patching: one backward pass in place of a run for each patch"
        )
        figure.suptitle(title, x=0.01, ha="left", weight="bold")
        figure.savefig(file, dpi=150)


def draw_lens(file: Path, chances: Any, word: Any, length: int, depth: Any) -> None:
    """What each block would say at each position, and how often that is right."""
    layers, positions, _ = chances.shape
    targets = word[1 : positions + 1]
    right = np.take_along_axis(chances, targets[None, :, None], 2)[..., 0]
    said = chances.argmax(-1)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9, 4.2), layout="constrained")
        grid, bars = figure.subplots(1, 2, width_ratios=(6, 1), sharey=True)
        image = grid.imshow(right, cmap="Blues", vmin=0, vmax=1, aspect="auto")
        for (row, column), token in np.ndenumerate(said):
            hit = token == targets[column]
            color = "white" if right[row, column] > 0.5 else INK
            grid.text(column, row, LETTERS[token], color=color if hit else WRONG,
                      ha="center", va="center", weight="bold" if hit else None)  # fmt: skip
        cells(grid, layers, positions)
        grid.set_xticks(
            range(positions), [LETTERS[token] for token in word[:positions]]
        )
        grid.set_yticks(range(layers), [f"block {i + 1}" for i in range(layers)])
        grid.axvline(length - 0.5, color=INK, lw=1, ls=":")
        grid.set_xlabel(
            "letters that the model reads; before the dotted line, nothing tells the next"
        )
        bars.barh(range(layers), 100 * depth, color=RIGHT, height=0.6)
        for row, share in enumerate(depth):
            bars.text(100 * share + 3, row, f"{share:.0%}", va="center", size=8)
        bars.set(xlim=(0, 135), xticks=[], xlabel="right on average")
        bars.spines[["left", "bottom"]].set_visible(False)
        bars.tick_params(which="both", length=0)
        scale = figure.colorbar(image, ax=bars, fraction=0.2, ticks=[0, 1])
        scale.set_label("chance of the next letter")
        scale.outline.set_visible(False)
        title = (
            "Logit lens: the likeliest next letter after every block, wrong ones in red"
        )
        figure.suptitle(title, x=0.01, ha="left", weight="bold")
        figure.savefig(file, dpi=150)


def cells(axis: Axes, rows: int, columns: int) -> None:
    """White lines between the cells of a grid, and no ticks."""
    axis.set_xticks(np.arange(columns + 1) - 0.5, minor=True)
    axis.set_yticks(np.arange(rows + 1) - 0.5, minor=True)
    axis.grid(which="minor", color="white", lw=1.5)
    axis.tick_params(which="both", length=0)
    axis.spines[:].set_visible(False)
