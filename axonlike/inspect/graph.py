"""A model as boxes and arrows: which layer's output goes into which, read off its jaxpr.

Every layer's call is one equation of the jaxpr. What comes out of one carries its mark
through whatever plain code there is to the next.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, cast

import jax

from axonlike.combinators.lifted import ensemble, repeat
from axonlike.evaluation import evaluate, recorded
from axonlike.frame import Run
from axonlike.inspect.boxes import Cluster, Edge, Graph, Node
from axonlike.inspect.calls import MARK, Calls, Entry, shape_text, starred, texts
from axonlike.inspect.costs import inner
from axonlike.inspect.gather import arrays, tied
from axonlike.paths import join
from axonlike.spec import as_spec
from axonlike.types import PyTree

_MERGES = {
    "residual": "+", "add": "+", "multiply": "x", "concatenate": "concatenate",
    "cond": "cond", "switch": "switch",
}  # fmt: skip
_WRAPPERS = ("ensemble", "frozen", "mixed", "remat", "repeat", "shared", "tie", "vmap")
_LONGEST = 40


def graph(model: Any, spec: PyTree, depth: int | None = None) -> Graph:
    """The graph of a model for an input, down to a depth of paths."""
    specs = as_spec(spec)
    y, recorder = recorded(model, specs)
    made, calls = arrays(recorder, None), Calls()

    def run(params: PyTree, state: PyTree, x: PyTree) -> Any:
        return evaluate(model, params, state, x, Run(around=calls))[0]

    jaxpr = jax.make_jaxpr(run)(made.params, made.state, specs).jaxpr
    ends = cast(Any, jax.tree_util.tree_flatten_with_path(specs)[0])
    pairs = [(starred(target), source) for target, source in tied(model)]
    return _Builder(calls.entries, depth, pairs).build(jaxpr, ends, texts(y))


Origins = dict[tuple[str, int], str | None]
"""Where a value comes from: boxes, which of their outputs, its shape if it is another."""


class _Builder:
    def __init__(
        self, entries: list[Entry], depth: int | None, ties: list[tuple[str, str]]
    ) -> None:
        self.entries, self.depth, self.ties = entries, depth, ties
        self.root = Cluster("cluster_0", "", "")
        self.edges: dict[Edge, None] = {}
        self.nodes: dict[str, Node] = {}
        self._items: dict[Any, Node | Cluster] = {}
        self._done: dict[Any, tuple[tuple[Any, ...], list[Origins]]] = {}
        self._keys: dict[tuple[Any, ...], Any] = {}
        self._above: list[Entry] = []

    def build(self, jaxpr: Any, inputs: Any, outputs: list[str]) -> Graph:
        """The graph of a whole model."""
        first = len(jaxpr.invars) - len(inputs)
        origins: list[Origins] = [{} for _ in jaxpr.invars]
        for i, (keys, spec) in enumerate(inputs):
            name = jax.tree_util.keystr(keys, simple=True, separator="/")
            title = f"input/{name}" if name else "input"
            node = self._node(title, "input", title, self.root, [shape_text(spec)])
            origins[first + i] = {(node.id, 0): None}
        made = self._run(jaxpr, origins, self.root)
        end = self._node("output", "output", "output", self.root, [])
        end.detail = ", ".join(outputs)
        self._connect(made, end)
        self._tidy(self.root)
        self._mark_ties()
        return Graph(self.root, list(self.edges))

    def _run(self, jaxpr: Any, given: list[Origins], into: Cluster) -> list[Origins]:
        """Where the outputs come from, for inputs from there."""
        known = {id(v): o for v, o in zip(jaxpr.invars, given, strict=True)}
        for equation in jaxpr.eqns:
            origins = [known.get(id(v), {}) for v in equation.invars]
            name = str(equation.params.get("name", ""))
            if name.startswith(MARK):
                entry = self.entries[int(name[len(MARK) :])]
                made = self._call(entry, equation, origins, into)
            else:
                made = self._plain(equation, origins, into)
            known.update(
                (id(v), o) for v, o in zip(equation.outvars, made, strict=True)
            )
        return [known.get(id(v), {}) for v in jaxpr.outvars]

    def _plain(
        self, equation: Any, given: list[Origins], into: Cluster
    ) -> list[Origins]:
        """Code that is no layer's: what comes out is from all that goes in."""
        merged = _merged(given)
        results: list[list[Origins]] = []
        for jaxpr in inner(equation):
            extra = len(given) - len(jaxpr.invars)  # a choice's index stands in front
            some = given[extra:] if extra >= 0 else [merged] * len(jaxpr.invars)
            results.append(self._run(jaxpr, some, into))
        results = [made for made in results if len(made) == len(equation.outvars)]
        if not results:
            return [merged] * len(equation.outvars)
        index = given[0] if equation.primitive.name == "cond" else {}
        columns = zip(*results, strict=True)
        return [_merged([*column, index]) for column in columns]

    def _call(
        self, entry: Entry, equation: Any, given: list[Origins], into: Cluster
    ) -> list[Origins]:
        shapes = tuple(str(v.aval) for v in equation.invars)
        done = self._done.get(entry.key)
        if entry.is_copy and done is not None:
            return done[1]
        same = self._equal_sibling(entry, shapes)
        item = None if same is None else self._item(same)
        if item is not None:
            item.copies += 1
            self._done[entry.key] = self._done[same]
            return self._done[same][1]
        self._above.append(entry)
        made = self._drawn(entry, equation, given, into)
        self._above.pop()
        self._done[entry.key] = (shapes, made)
        self._keys[(entry.key[0], entry.key[1], entry.key[3])] = entry.key
        return made

    def _drawn(
        self, entry: Entry, equation: Any, given: list[Origins], into: Cluster
    ) -> list[Origins]:
        number = len(entry.specs)
        extra = len(equation.outvars) - number
        if entry.layer.kind == "identity" and entry.layer.function is not None:
            return [_merged(given)] * number + [{}] * extra
        if self._is_box(entry):
            node = self._box(entry, into)
            self._connect(given, node)
            return [_origin(node, i) for i in range(number)] + [{}] * extra
        body = next(iter(inner(equation)))
        made = self._run(body, given, self._cluster(entry, into))
        made = made[:number]
        if entry.layer.kind in _MERGES:
            made = self._merge(entry, made, given, into)
        made = [_as(o, spec) for o, spec in zip(made, entry.specs, strict=True)]
        return made + [{}] * extra

    def _merge(
        self, entry: Entry, made: list[Origins], given: list[Origins], into: Cluster
    ) -> list[Origins]:
        """A box for where paths come together; none where there is only one."""
        sources = _merged(made) or _merged(given)
        if len(sources) < 2:
            return made
        cluster = self._items.get((*entry.key, "cluster"), into)
        key = (*entry.key, "merge")
        if key not in self._items:
            title = _MERGES[entry.layer.kind]
            place = cast(Cluster, cluster)
            self._items[key] = self._node(
                entry.path, "merge", title, place, entry.specs
            )
        node = cast(Node, self._items[key])
        self._connect(made, node)
        return [_origin(node, i) for i in range(len(made))]

    # --- boxes

    def _is_box(self, entry: Entry) -> bool:
        """Whether a layer is one box: a leaf, one of the catalogue, or too deep."""
        made_of = entry.layer.factory.__module__
        closed = made_of.startswith("axonlike.layers")
        closed = closed or entry.layer.kind in ("scan", "between")
        level = len([step for step in entry.path.split("/") if step not in ("", "*")])
        deep = self.depth is not None and level >= self.depth and bool(entry.name)
        return not entry.layer.children or closed or deep

    def _box(self, entry: Entry, into: Cluster) -> Node:
        if entry.key not in self._items:
            step = entry.path.rpartition("/")[2]
            layer = entry.layer
            title = step if step not in ("", "*") else layer.kind
            node = self._node(entry.path, "layer", title, into, entry.specs)
            node.detail = _detail(title, layer)
            self._items[entry.key] = node
        return cast(Node, self._items[entry.key])

    def _node(
        self, path: str, role: str, title: str, into: Cluster, specs: list[str]
    ) -> Node:
        node = Node(f"n{len(self.nodes)}", path, role, title, "", specs)
        self.nodes[node.id] = node
        into.items.append(node)
        return node

    def _cluster(self, entry: Entry, into: Cluster) -> Cluster:
        """The cluster that the layers below go into."""
        key, kind = (*entry.key, "cluster"), entry.layer.kind
        if key in self._items:
            return cast(Cluster, self._items[key])
        above = self._above[-2].layer.kind if len(self._above) > 1 else ""
        lifted = entry.layer.plain
        copies = lifted.config["n"] if lifted.factory in (repeat, ensemble) else 1
        if not entry.name and copies == 1 and not (kind in _WRAPPERS and above):
            return into
        if lifted.factory is repeat and lifted.config["tied"]:
            kind = "tied repeat"
        if not entry.name and above in _WRAPPERS and into is not self.root:
            into.title = f"{into.title.rstrip(')')}, {kind})"
            if "(" not in into.title:
                into.title = into.title.replace(", ", " (")
            into.copies *= copies
            return into
        step = entry.path.rpartition("/")[2] if entry.name else kind
        shown = "" if kind in ("serial", "wire", "repeat", step) else f" ({kind})"
        number = sum(isinstance(item, Cluster) for item in self._items.values()) + 1
        cluster = Cluster(f"cluster_{number}", entry.path, step + shown, copies)
        into.items.append(cluster)
        self._items[key] = cluster
        return cluster

    def _equal_sibling(self, entry: Entry, shapes: tuple[str, ...]) -> Any:
        """The key of the first of a run of equal siblings that this one is part of."""
        if not entry.name or not self._above or self._above[-1].layer.kind != "serial":
            return None
        run = _run_of(self._above[-1].layer, entry.name)
        above = entry.path.removesuffix(entry.name)
        if len({self._ties_below(f"{above}{name}/") for name in run}) > 1:
            return None  # each is drawn, with what it is tied to
        home = entry.key[0].rpartition("/")[0]
        for i, name in enumerate(run[: run.index(entry.name)] if run else ()):
            key = self._keys.get((join(home, name), entry.key[1], entry.key[3]))
            if len(run) - i > 2 and key in self._done and self._done[key][0] == shapes:
                return key
        return None

    def _item(self, key: Any) -> Node | Cluster | None:
        """The box or frame that was drawn for a call."""
        return self._items.get(key) or self._items.get((*key, "cluster"))

    def _ties_below(self, home: str) -> frozenset[tuple[str, str]]:
        """What is tied in a layer, as seen from it."""
        return frozenset(
            (target.removeprefix(home), starred(source).removeprefix(home))
            for target, source in self.ties
            if target.startswith(home)
        )

    def _mark_ties(self) -> None:
        """A line in the box of each array that is another layer's."""
        boxes = [node for node in self.nodes.values() if node.role == "layer"]
        notes: dict[Node, list[str]] = {}
        for target, source in self.ties:
            around = [n for n in boxes if not n.path or target.startswith(f"{n.path}/")]
            for node in sorted(around, key=lambda n: len(n.path))[-1:]:
                array = target[len(node.path) :].strip("/")
                notes.setdefault(node, []).append(f"{array} tied to {source}")
        for node, lines in notes.items():
            more = [f"and {len(lines) - 2} more"] if len(lines) > 2 else []
            node.detail = "\n".join([*filter(None, [node.detail]), *lines[:2], *more])

    # --- arrows

    def _connect(self, given: Iterable[Origins], node: Node) -> None:
        for (source, i), shape in _merged(given).items():
            specs = self.nodes[source].specs
            own = specs[i] if i < len(specs) else ""
            self.edges[Edge(source, node.id, own if shape is None else shape)] = None

    def _tidy(self, cluster: Cluster) -> None:
        """One layer in a frame of its own path needs no frame."""
        for i, item in enumerate(cluster.items):
            if isinstance(item, Node):
                continue
            self._tidy(item)
            only = item.items[0] if len(item.items) == 1 else None
            if isinstance(only, Node) and only.path == item.path:
                kinds = item.title.removeprefix(only.title).strip(" ()")
                more = f"({kinds})" if kinds else ""
                only.detail = f"{only.detail} {more}".strip()
                only.copies *= item.copies
                cluster.items[i] = only


def _run_of(layer: Any, name: str) -> list[str]:
    """The names of the equal siblings in a row that one of them stands in."""
    run: list[str] = []
    last: Any = None
    for slot, child in layer.children.items():
        path = layer.places[slot].path
        plain = child.named(None)
        if not path or plain != last:
            if name in run:
                break
            run = []
        if path:
            run.append("/".join(path))
        last = plain if path else None
    return run if name in run else []


def _origin(node: Node, i: int) -> Origins:
    return {(node.id, i): None}


def _as(origins: Origins, spec: str) -> Origins:
    """What comes from one box, with the shape that it has further out."""
    return dict.fromkeys(origins, spec) if len(origins) == 1 else origins


def _merged(several: Iterable[Origins]) -> Origins:
    found: Origins = {}
    for each in several:
        found.update(each)
    return found


def _detail(title: str, layer: Any) -> str:
    """What the title does not say: the kind, and what was configured."""
    plain = re.fullmatch(rf"{re.escape(layer.kind)}(_\d+)?", title) is not None
    if layer.function is not None:
        return "" if plain else layer.kind
    options = layer.headline[len(layer.kind) + 1 : -1]
    if plain or not options:
        return _cut(options, _LONGEST) if plain else layer.kind
    return f"{layer.kind}({_cut(options, _LONGEST - len(layer.kind))})"


def _cut(options: str, longest: int) -> str:
    """As many whole options as there is room for."""
    options = re.sub(r"\s+", " ", options)
    if len(options) <= longest:
        return options
    kept = options[:longest].rpartition(", ")[0]
    return f"{kept}, ..." if kept else "..."
