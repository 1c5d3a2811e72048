"""The rows of a table of a model: a tree of its layers, and what each one has by itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from axonlike.names import Place
from axonlike.paths import join
from axonlike.spec import show
from axonlike.spots import Chain, spots

SUMMED = ("params", "bytes", "trainable", "frozen", "state", "state_bytes",
          "flops", "activations", "kept")  # fmt: skip


@dataclass
class Row:
    """One layer, all its copies: what it has by itself, without the layers in it."""

    path: str
    layer: Any
    kinds: list[str]
    copies: int
    paths: list[str]
    spec: Any = None
    siblings: list[str] = field(default_factory=list[str])
    tied_to: list[str] = field(default_factory=list[str])
    connected_to: list[str] = field(default_factory=list[str])
    sums: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SUMMED, 0))
    below: list[Row] = field(default_factory=list["Row"])

    @property
    def kind(self) -> str:
        """The layer's kind, and around what it is wrapped at this path."""
        plain = [kind for kind in self.kinds if kind != "serial"] or self.kinds[:1]
        return "(".join(plain) + ")" * (len(plain) - 1)

    @property
    def name(self) -> str:
        """The step of the path that is this row's own."""
        return self.path.rpartition("/")[2]


class _Home(NamedTuple):
    """Where a layer's row is, and what the paths of layers in it begin with."""

    layer: Any
    places: Mapping[str, Place]
    row: Row
    prefix: str
    copies: int


def tree(model: Any) -> Row:
    """A row for each path of a model, the root's first, with those below it.

    A layer that adds no level to paths shares the row of the one around it. The copies of
    a repeat share theirs.
    """
    homes: dict[Chain, _Home] = {}
    for spot in spots(model):
        if not spot.chain:
            row = Row("", model, [model.kind], 1, [""])
            homes[()] = _Home(model, spot.places, row, "", 1)
            continue
        parent = homes[spot.chain[:-1]]
        above = parent.layer
        step, n = ("*", above.plain.config["n"]) if above.indexed else ("", 1)
        prefix, copies = join(parent.prefix, step), parent.copies * n
        path = parent.places[spot.chain[-1]].path
        if path:
            prefix = join(prefix, *path)
            row = Row(prefix, spot.layer, [spot.layer.kind], copies, list(spot.paths))
            parent.row.below.append(row)
        else:
            row = parent.row
            if parent.layer.kind != "serial" and spot.chain[-1] == "f":
                row.kinds.append(spot.layer.kind)
            row.paths += spot.paths
            row.copies = copies
        homes[spot.chain] = _Home(spot.layer, spot.places, row, prefix, copies)
    return homes[()].row


def each(row: Row) -> Iterator[Row]:
    """A row and all those below it, in order."""
    yield row
    for below in row.below:
        yield from each(below)


class Finder:
    """Which row a path means: of an array, or as the scopes of a jaxpr spell it."""

    def __init__(self, root: Row) -> None:
        rows = list(each(root))
        self.by_path = {path: row for row in rows for path in row.paths}
        self.by_scope = {_scoped(path): row for path, row in self.by_path.items()}
        self._above = {
            "/".join(steps[:n])
            for steps in (path.split("/") for path in self.by_scope)
            for n in range(1, len(steps) + 1)
        }

    def of_array(self, path: str) -> Row:
        """The row of the layer that has an array."""
        return _nearest(self.by_path, path)

    def of_scope(self, scope: str) -> Row:
        """The row of the innermost layer around an equation.

        Scopes that are no layers' are passed over: `jax.named_scope` in a layer's code.
        """
        path = ""
        for step in scope.split("/"):
            longer = join(path, step)
            path = longer if longer in self._above else path
        return _nearest(self.by_scope, path)


def _scoped(path: str) -> str:
    return "/".join(step for step in path.split("/") if step != "*")


def _nearest(rows: Mapping[str, Row], path: str) -> Row:
    while path and path not in rows:
        path = path.rpartition("/")[0]
    return rows[path]


# --- folding


def folded(row: Row) -> Row:
    """The same with runs of more than two equal siblings as one row."""
    runs: list[list[Row]] = []
    for below in map(folded, row.below):
        if runs and _alike(runs[-1][0], below):
            runs[-1].append(below)
        else:
            runs.append([below])
    kept = [r for run in runs for r in ([_joined(run)] if len(run) > 2 else run)]
    return replace(row, below=kept)


def _alike(a: Row, b: Row) -> bool:
    """Whether one row says all there is to say of both, and of what is in them."""
    same = a.layer.named(None) == b.layer.named(None)
    same = same and show(a.spec) == show(b.spec) and _chained(a, b)
    return same and _costs_alike(a, b)


def _costs_alike(a: Row, b: Row) -> bool:
    same = all(a.sums[what] == b.sums[what] for what in ("params", "frozen", "flops"))
    same = same and len(a.below) == len(b.below) and not (a.tied_to or b.tied_to)
    return same and all(map(_costs_alike, a.below, b.below))


def _chained(a: Row, b: Row) -> bool:
    """Whether neither comes from elsewhere than the pipe or both from one place."""
    return a.connected_to == b.connected_to or not b.connected_to


def _joined(run: list[Row]) -> Row:
    first = run[0]
    sums = {what: sum(row.sums[what] for row in run) for what in first.sums}
    below = [_joined(list(same)) for same in zip(*(r.below for r in run), strict=True)]
    return replace(
        first, copies=sum(row.copies for row in run), sums=sums, below=below,
        siblings=[row.path for row in run],
    )  # fmt: skip


def cut(row: Row, depth: int) -> Row:
    """The same down to a depth; what is deeper is part of the row above it."""
    if depth > 0:
        return replace(row, below=[cut(below, depth - 1) for below in row.below])
    sums = {what: sum(r.sums[what] for r in each(row)) for what in row.sums}
    return replace(row, sums=sums, below=[])
