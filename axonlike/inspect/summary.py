"""A table of a model: shapes, params and costs of every layer, from shapes alone."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import jax

from axonlike.errors import PathError
from axonlike.evaluation import check_train, recorded
from axonlike.inspect import gather, table
from axonlike.inspect.rows import SUMMED, Finder, Row, cut, each, folded, tree
from axonlike.inspect.trace import Call
from axonlike.layer import as_layer
from axonlike.spec import as_spec, show
from axonlike.types import PyTree

COSTS = ("flops", "activations", "kept")


class Summary:
    """A table of a model; made by `summary`, shown by `print` and in notebooks.

    `rows` is a list of dicts, one for each layer: `path`, `kind`, `n` (how many copies the
    numbers are for), `output` and `spec` (what it returns), `params` and `bytes`,
    `trainable` and `frozen` (params that are), `state` and `state_bytes`, `tied_to`,
    `connected_to` (where the inputs of all its uses come from, unless it is the row
    before), `flops`, `activations` (bytes that it returns), `kept` (bytes kept for the
    backward pass), `share`, `siblings` (the paths of a folded row), `depth`.

    Example:
        >>> import axonlike as al
        >>> s = al.summary(al.dense(2), al.spec("b 3"))
        >>> s.rows[0]["params"], s.total("bytes")
        (8, 32)
    """

    def __init__(
        self,
        rows: list[dict[str, Any]],
        totals: dict[str, int],
        notes: dict[str, str],
        columns: Sequence[str] | None,
        peak: Callable[[], int] | None,
    ) -> None:
        self.rows, self.totals, self.notes = rows, totals, notes
        self._columns, self._peak = columns, peak

    def total(self, what: str) -> int:
        """A sum over all rows.

        Args:
            what: `params`, `bytes` (of params), `trainable`, `frozen`, `state`,
                `state_bytes`, `flops`, `activations`, `kept`, `optimizer` (bytes); or
                `peak`, the bytes that a training call and its gradients take, arrays and
                all: XLA is asked, which compiles the model.

        Raises:
            PathError: there is no such total.
        """
        if what == "peak" and self._peak is not None and "peak" not in self.totals:
            self.totals["peak"] = self._peak()
        if what not in list(self.totals):
            known = [*self.totals, *(["peak"] if self._peak else [])]
            raise PathError("total", what, known, self.notes.get(str(what), ""))
        return self.totals[what]

    def text(self, width: int | None = None, *, totals: bool = True) -> str:
        """The table as plain text.

        Args:
            width: how many characters there are in a line; None: as many as in the
                terminal.
            totals: whether they stand below.

        Raises:
            ValueError: the width is not a positive int.
        """
        width = shutil.get_terminal_size().columns if width is None else width
        if not gather.is_count(width):
            raise ValueError(f"text: width must be a positive int, got {width!r}.")
        below = self._total_lines(width) if totals else []
        return table.as_text(self.rows, below, self._columns, width)

    def markdown(self) -> str:
        """The table in Markdown, with full paths."""
        return table.as_markdown(self.rows, self._total_items(), self._columns)

    def html(self) -> str:
        """The table in HTML."""
        return table.as_html(self.rows, self._total_items(), self._columns)

    def as_dict(self) -> dict[str, Any]:
        """The table as values that JSON has; `spec` is left out, `output` says the same."""
        rows = [{k: v for k, v in row.items() if k != "spec"} for row in self.rows]
        return {"rows": rows, "totals": dict(self.totals), "notes": self._said()}

    def _total_items(self) -> list[tuple[str, str]]:
        """Totals and notes, by name, as text."""
        t = self.totals
        items = [("params", f"{t['params']:,} ({table.size(t['bytes']) or '0 B'})")]
        items += [("trainable", f"{t['trainable']:,}"), ("frozen", f"{t['frozen']:,}")]
        size = table.size(t["state_bytes"]) or "0 B"
        items.append(("state", f"{t['state']:,} ({size})" if t["state"] else "0"))
        if "optimizer" in t:
            items.append(("optimizer", table.size(t["optimizer"]) or "0 B"))
        if "flops" in t:
            items.append(("flops", table.scaled(t["flops"]) or "0"))
            found = [name for name in (*COSTS[1:], "peak") if name in t]
            items += [(name, table.size(t[name]) or "0 B") for name in found]
        return items + [("note", note) for note in self._said()]

    def _said(self) -> list[str]:
        """The notes, each once."""
        return list(dict.fromkeys(self.notes.values()))

    def _total_lines(self, width: int) -> list[str]:
        items = (f"{name:<13}{value}" for name, value in self._total_items())
        return [line for item in items for line in table.wrapped(item, width, 13)]

    def __str__(self) -> str:
        return self.text()

    def __repr__(self) -> str:
        return f"<Summary: {len(self.rows)} rows, {self.totals['params']:,} params>"

    def _repr_html_(self) -> str:
        return self.html()

    def __rich_console__(self, console: Any, options: Any) -> Any:
        width = options.max_width
        below = self._total_lines(width)
        yield table.as_rich(self.rows, below, self._columns, width)


def summary(
    model: Any,
    spec: PyTree,
    params: PyTree = None,
    *,
    columns: Sequence[str] | None = None,
    depth: int | None = None,
    sizes: Mapping[str, int] | None = None,
    share: str = "params",
    optimizer: Any = None,
    train: bool = False,
) -> Summary:
    """A table of a model's layers: shapes, params and what they cost, from shapes alone.

    A row has what its layer has by itself, without the layers in it, so that every column
    adds up to its total. All copies of a repeat are one row, and so are more than two
    equal siblings: `x n`, the numbers for all of them. With `depth`, a row has what is
    deeper too.

    FLOPs are those of one call: two for a product and a sum, one for other arithmetic.
    They are read off the jaxpr, where a scan over n copies is n times its body. Of a
    choice at run time the most expensive layer counts.

    Args:
        model: any layer, or a function.
        spec: what stands for the input, as for `init`.
        params: arrays or their shapes, where they are not what `init` makes: in another
            dtype, for instance.
        columns: which, in which order: `path`, `kind`, `output`, `params`, `bytes`,
            `trainable`, `state`, `tied_to`, `connected_to`, `flops`, `activations` (bytes
            that a layer returns), `kept` (bytes kept for the backward pass), `share`.
            None: those in which something stands, as far as they fit.
        depth: how many levels of layers are rows; None: all.
        sizes: `{name: size}` for named dims of the spec, at which costs are counted; a
            name without one is 1, so that an unknown batch means one example.
        share: the column of numbers of which `share` shows each row's part.
        optimizer: an optax optimizer, for the memory that it takes for params that are
            trained; frozen ones have none, as in `train_step`.
        train: whether `flops` and `activations` are those of a call in training; `kept` is
            that always.

    Shapes:
        Any. Nothing is allocated, and nothing is run.

    Returns:
        A `Summary`: `print` it; `rows` is a list of dicts, `total("flops")` a sum.

    Raises:
        PathError: there is no such column or size, or `params` are not the model's.
        ShapeError: shapes do not fit, as from `init`; or those of `params` do not.
        TypeError: the model is no layer, the optimizer is none, columns or sizes are not
            several, train is no bool.
        ValueError: a size or the depth is not a positive int; there are no columns.

    Example:
        >>> import jax, axonlike as al
        >>> model = al.dense(128) >> jax.nn.relu >> al.dense(10)
        >>> s = al.summary(model, al.spec("b 784"), columns=["path", "output", "params"])
        >>> print(s.text(totals=False))
        path     output           params
        -------  ---------------  -------
        dense    float32[b, 128]  100,480
        relu     float32[b, 128]
        dense_1  float32[b, 10]     1,290
        >>> s.total("params"), s.total("flops")
        (101770, 203402)
    """
    model = as_layer(model, "summary")
    _check(columns, share, depth)
    specs = as_spec(spec)
    at = gather.sizes_of(specs, sizes or {})
    recorder = recorded(model, specs)[1]
    root = tree(model)
    finder = Finder(root)
    gather.outputs(finder, recorder)
    made = gather.arrays(recorder, params)
    gather.count_arrays(finder, model, made)
    call, notes = _counted(
        finder, root, Call(model, *made, specs, check_train(train)), at
    )
    totals = {what: sum(row.sums[what] for row in each(root)) for what in SUMMED}
    totals = {what: n for what, n in totals.items() if what not in notes}
    if optimizer is not None:
        totals["optimizer"] = gather.memory(optimizer, model, made)
    found = folded(root) if depth is None else cut(folded(root), depth)
    rows = _entries(found, totals.get(share, 0), share)
    peak = None if call is None else call._replace(train=True).peak
    return Summary(rows, totals, notes, columns, peak)


def _check(columns: Sequence[str] | None, share: str, depth: int | None) -> None:
    if columns is not None and not isinstance(cast(Any, columns), (list, tuple)):
        raise TypeError(
            f"summary: columns: expected a list, got {columns!r}. Write ['path', ...]."
        )
    if columns is not None and not columns:
        raise ValueError("summary: columns: expected at least one name, got none.")
    for name in columns or ():
        if name not in list(table.COLUMNS):
            raise PathError("summary: columns", name, table.COLUMNS)
    if share not in SUMMED:
        raise PathError("summary: share", share, SUMMED)
    if depth is not None and not gather.is_count(depth):
        raise ValueError(f"summary: depth must be a positive int, got {depth!r}.")


def _counted(
    finder: Finder, root: Row, call: Call, at: gather.Sizes
) -> tuple[Call | None, dict[str, str]]:
    """Costs put into the rows: the call that was counted, and notes, why some are not.

    A model that fits unknown sizes may not fit 1: then there are no costs. One that has
    no derivative keeps nothing for it.
    """
    notes: dict[str, str] = {}
    try:
        call = call._replace(x=jax.tree.map(at.of, call.x))
        gather.count_costs(finder, root, call)
    except Exception as error:
        if not at.assumed:
            raise
        given = ", ".join(f"{name!r}: ..." for name in at.assumed)
        why = f"No costs at {at}: {_first_line(error)} Give sizes={{{given}}}."
        return None, dict.fromkeys((*COSTS, "peak"), why)
    try:
        gather.count_kept(finder, call)
    except Exception as error:
        notes["kept"] = f"Nothing is known of what is kept: {_first_line(error)}"
    if at.names:
        notes["sizes"] = f"flops and bytes of layers are for {at}."
    if any({"cond", "switch"} & set(row.kinds) for row in each(root)):
        notes["choice"] = "of each choice the most expensive layer counts."
    return call, notes


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _entries(root: Row, whole: int, share: str) -> list[dict[str, Any]]:
    """The rows as dicts; the root's where it is more than a pipe."""
    own = root.kind != "serial" or any(root.sums.values()) or not root.below
    found: list[dict[str, Any]] = []
    for row, above, depth in _nested(root, None, 0):
        if row is root and not own:
            continue
        found.append(_entry(row, above, depth - (not own), whole, share))
    return found


def _nested(row: Row, above: Row | None, depth: int) -> Any:
    yield row, above, depth
    for below in row.below:
        yield from _nested(below, row, depth + 1)


def _entry(
    row: Row, above: Row | None, depth: int, whole: int, share: str
) -> dict[str, Any]:
    return {
        "path": row.path,
        "kind": row.kind,
        "n": row.copies,
        "output": "" if row.spec is None else show(row.spec),
        "spec": row.spec,
        **row.sums,
        "tied_to": list(row.tied_to),
        "connected_to": list(row.connected_to),
        "share": row.sums[share] / whole if whole else 0.0,
        "siblings": list(row.siblings),
        "depth": depth,
        "label": _label(row, above),
        "home": above.path if above else "",
    }


def _label(row: Row, above: Row | None) -> str:
    """The step of the path that is the row's own, and how many there are of it."""
    start = len(above.path) + 1 if above and above.path else 0
    label = row.path[start:] if above else f"({row.layer.kind})"
    last = row.siblings[-1].rpartition("/")[2] if row.siblings else label
    if not label.endswith(last):
        label += f" .. {last}"
    more = row.copies != (above.copies if above else 1)
    return f"{label} x {row.copies}" if more else label
