"""Where each child's params live: the names below one layer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from axonlike.paths import check_name, join


def name_taken(message: str) -> ValueError:
    """The error of two layers that want one name, to be told from others."""
    error = ValueError(f"name: {message}")
    error.name_taken = True  # type: ignore[attr-defined]
    return error


class Place(NamedTuple):
    """Where one child lives in its parent's namespace.

    `path` is the steps that lead to it; none for a child that adds no level, whose own
    names (`below`) then stand in the parent's namespace. `stem` is the kind that an
    automatic name is made of, None where the name was given. `steps` is what stands in
    the namespace instead of the names below, where those are one index step lower.
    """

    path: tuple[str, ...]
    below: Mapping[str, Place]
    stem: str | None = None
    steps: frozenset[str] | None = None


Places = dict[str, Place]


def given(name: str, child: Any) -> Place:
    """The place of a child named by its parent."""
    return Place((name,), child.places)


def inside(child: Any) -> Places:
    """The places of a wrapper's body: no level for an unnamed one."""
    if child.name is None:
        steps = child.names if child.indexed else None
        return {"f": Place((), child.places, steps=steps)}
    return {"f": Place((child.name,), child.places)}


def closed(places: Mapping[str, Place]) -> frozenset[str] | None:
    """Every first step of a namespace; None where a leaf's arrays may stand in it too."""
    found: set[str] = set()
    for place in places.values():
        if place.path:
            found.add(place.path[0])
            continue
        below = place.steps or (closed(place.below) if place.below else None)
        if below is None:
            return None
        found |= below
    return frozenset(found)


def assign(layers: list[Any], *, splice: bool) -> tuple[dict[str, Any], Places]:
    """Names for unnamed children in order: kind, then kind_1, kind_2, past given names.

    A transparent wrapper without a name puts its body's names here, as the body itself
    would; `splice` says that an unnamed serial inside one does so too.
    """
    drafts = [_draft(layer, splice) for layer in layers]
    fixed = [name for draft in drafts for name in _fixed(draft)]
    twice = [name for name in fixed if fixed.count(name) > 1]
    if twice:
        pairs = zip(layers, drafts, strict=True)
        both = [item.headline for item, draft in pairs if twice[0] in _fixed(draft)]
        raise name_taken(
            f"two layers are called {twice[0]!r}: {', '.join(both)}. Rename one, "
            "or write shared(...) or wire(...) to share its weights."
        )
    fresh = _Fresh(fixed)
    children: dict[str, Any] = {}
    places: Places = {}
    for layer, draft in zip(layers, drafts, strict=True):
        place = _settle(draft, fresh)
        slot = place.path[0] if place.path else fresh.slot(layer.kind, children)
        children[slot], places[slot] = layer, place
    return children, places


def settle(places: Places) -> Places:
    """Places in which no two children want one name: automatic ones give way."""
    fresh = _Fresh([name for place in places.values() for name in _fixed(place)])
    return {slot: _settle(place, fresh) for slot, place in places.items()}


def _draft(layer: Any, splice: bool) -> Place:
    if layer.name is not None:
        check_name(layer.name)
        return Place((layer.name,), layer.places)
    if layer.transparent and _spliceable(layer, splice):
        return Place((), layer.places)
    return Place(("?",), layer.places, layer.stem)


def _spliceable(layer: Any, splice: bool) -> bool:
    """Whether a wrapper's body has names of its own to put in the parent's namespace."""
    body = layer.children["f"]
    if body.name is not None:
        return True
    if body.transparent:
        return _spliceable(body, splice)
    return splice and body.kind == "serial"


def _fixed(place: Place) -> list[str]:
    if place.path:
        return [] if place.stem else [place.path[0]]
    return [name for below in place.below.values() for name in _fixed(below)]


def _settle(place: Place, fresh: _Fresh) -> Place:
    if not place.path:
        below = {slot: _settle(p, fresh) for slot, p in place.below.items()}
        return place._replace(below=below)
    if place.stem is None:
        return place
    return Place((fresh(place.stem),), place.below, place.stem)


class _Fresh:
    """Counts automatic names: kind, kind_1, ..., skipping the given ones."""

    def __init__(self, fixed: list[str]) -> None:
        self.used, self.counts = set(fixed), dict[str, int]()

    def __call__(self, stem: str) -> str:
        while True:
            count = self.counts.get(stem, 0)
            self.counts[stem] = count + 1
            name = f"{stem}_{count}" if count else stem
            if name not in self.used:
                return name

    def slot(self, stem: str, children: Mapping[str, Any]) -> str:
        """A key for a child that adds no level: no path, only a place in the record."""
        count, name = 0, stem
        while name in children or name in self.used:
            count += 1
            name = f"{stem}_{count}"
        return name


def walk(
    layer: Any, places: Mapping[str, Place], path: str, *, every: bool = False
) -> Iterator[tuple[str, Any]]:
    """Every `(path, layer)` below a layer; one that adds no level only as a body.

    Or, with `every`, also bodies at the root and of serials that add none.
    """
    steps = sorted(layer.names) if layer.indexed else [""]
    for step in sorted(steps, key=lambda s: (len(s), s)):
        for slot, child in layer.children.items():
            place = places[slot]
            below = join(path, step, *place.path)
            body = child.kind != "serial" and (layer.transparent or bool(step))
            if every or place.path or (below and body):
                yield below, child
            yield from walk(child, place.below, below, every=every)
