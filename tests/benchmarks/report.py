"""What the benchmarks write: a table in Markdown, a picture, and where it was measured."""

import datetime
import importlib.metadata
import importlib.util
import os
import platform
from pathlib import Path
from typing import Any

import jax

DOCS = Path(__file__).parents[2] / "docs" / "benchmarks"
LIBRARIES = ("jax", "flax", "dm-haiku", "equinox", "optax", "torch")
COLOURS = {
    "linen": "tab:blue",
    "nnx": "tab:cyan",
    "haiku": "tab:orange",
    "equinox": "tab:green",
}


def versions() -> dict[str, str]:
    """Of the libraries that are installed."""
    found: dict[str, str] = {}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def circumstances() -> str:
    """When, on what, how busy (our own share is 1 or 2), with what: one sentence."""
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    device = jax.devices()[0].device_kind
    where = f"{os.cpu_count()} CPU cores" if device == "cpu" else device
    with_ = ", ".join(f"{name} {version}" for name, version in versions().items())
    python, load = platform.python_version(), os.getloadavg()[1]
    return f"{today}, {where}, load average {load:.1f}, Python {python}, {with_}."


def markdown(head: list[str], rows: list[list[str]]) -> list[str]:
    """The lines of a table."""
    lines = [head, ["---"] * len(head), *rows]
    return [f"| {' | '.join(cells)} |" for cells in lines]


def write(name: str, lines: list[str]) -> None:
    """A page of `docs/benchmarks`."""
    DOCS.mkdir(parents=True, exist_ok=True)
    (DOCS / name).write_text("\n".join([*lines, ""]))


def plot(results: list[dict[str, Any]], path: Path) -> None:
    """A bar for each row, how many times faster than its fastest peer; a dot a peer."""
    if importlib.util.find_spec("matplotlib") is None:
        print("no picture: matplotlib is not installed")
        return
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "axonlike"  # the same file from the same numbers
    mpl.rcParams["svg.fonttype"] = "none"  # letters, not their outlines
    from matplotlib import pyplot as plt

    rows = sorted(results, key=lambda r: -r["ratio"])
    figure, axes = plt.subplots(figsize=(7.5, 1.4 + 0.26 * len(rows)))
    places, gains = range(len(rows)), [1 / r["ratio"] for r in rows]
    shades = ["#7fb77e" if gain >= 1 else "#d9826f" for gain in gains]
    axes.barh(places, [g - 1 for g in gains], left=1, color=shades, height=0.62)
    for name, colour in COLOURS.items():
        dots = [(_gain(r, name), i) for i, r in enumerate(rows) if name in r["ms"]]
        axes.scatter(*zip(*dots, strict=True), s=14, color=colour, label=name, zorder=3)
    for i, gain in enumerate(gains):
        axes.text(
            0.995, i, f"{gain:.2f}x", **_RIGHT, transform=axes.get_yaxis_transform()
        )
    _decorate(axes, rows)
    figure.savefig(path, metadata={"Date": None}, bbox_inches="tight")
    plt.close(figure)


_RIGHT: dict[str, Any] = {"ha": "right", "va": "center", "fontsize": 8}


def _gain(result: dict[str, Any], name: str) -> float:
    return result["ms"][name] / result["ms"]["axonlike"]


def _decorate(axes: Any, rows: list[dict[str, Any]]) -> None:
    """Logarithmic, 1 being as fast as ours; the legend above, outside of the bars."""
    from matplotlib.ticker import NullFormatter, ScalarFormatter

    most = max(_gain(r, name) for r in rows for name in COLOURS if name in r["ms"])
    axes.set_xscale("log")
    axes.set_xlim(0.6, most * 2.2)
    axes.set_xticks([t for t in (0.7, 1, 1.5, 2, 3, 5, 10, 20, 50) if t < most * 1.2])
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.minorticks_off()
    axes.set_yticks(range(len(rows)), [r["row"] for r in rows], fontsize=9)
    axes.set_ylim(-0.7, len(rows) - 0.3)
    axes.axvline(1, color="black", linewidth=1)
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel("their time / ours (bar: the fastest of them)")
    axes.legend(ncols=4, loc="lower left", bbox_to_anchor=(0, 1), frameon=False)
