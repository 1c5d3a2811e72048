"""The layers inside a model: listing them, taking parts, pinning names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any, cast

from axonlike.errors import PathError
from axonlike.frame import Frame
from axonlike.layer import OPERATORS, Layer, Node, layer
from axonlike.names import Place, closed, inside, name_taken, settle, walk
from axonlike.selector import Where, choose
from axonlike.spots import spots
from axonlike.text import arguments
from axonlike.types import PyTree
from axonlike.values import remade


def layers(model: Layer, where: Where = None) -> list[tuple[str, Layer]]:
    """Every `(path, layer)` inside a model, in model order.

    Args:
        model: any layer.
        where: a path, a glob (`*` one step, `**` any depth, `{a,b}`), a predicate on
            `(path, layer)`, `kind("dense")`, or several of those; the model itself is
            at "". None for all inside.

    Raises:
        PathError: `where` matches nothing.

    Shapes:
        No arrays: params are listed by `jax.tree_util`.

    Example:
        >>> import jax, axonlike as al
        >>> model = al.dense(4) >> jax.nn.relu >> al.residual(al.dense(4))
        >>> [path for path, layer in al.layers(model, "dense*")]
        ['dense', 'dense_1', 'dense_1']
    """
    if where is None:
        return list(walk(model, model.places, ""))
    every = list(spots(model))
    items = [(path, spot.layer) for spot in every for path in spot.paths]
    chosen = choose("layers", where, items, every)
    return [item for item, copies in zip(items, chosen, strict=True) if copies]


def pinned(layer: Layer, place: Place) -> Layer:
    """A child that keeps its name, or those of its children, wherever it goes."""
    if place.path:
        return layer.named(place.path[0])
    swaps = {
        slot: pinned(child, place.below[slot])
        for slot, child in layer.children.items()
        if slot in place.below
    }
    return cast(Layer, rebuilt(layer, swaps))


def rebuilt(
    layer: Layer, swaps: Mapping[str, Layer], *, strict: bool = True
) -> Layer | None:
    """The same layer with other children in place of some.

    Children that were arguments of the factory are so again; those that the factory made
    itself are replaced in the record. None, unless strict, where names would collide.
    """
    if all(layer.children[slot] is new for slot, new in swaps.items()):
        return layer
    pending = dict(layer.children)  # all of them: one layer may stand at several slots

    def swap(value: Any) -> Any:
        if isinstance(value, Layer):
            slot = next((s for s, c in pending.items() if _is_of(c, value)), None)
            if slot is None:
                return value
            del pending[slot]
            return swaps.get(slot, value)
        return remade(swap, value)

    args, kwargs = map(swap, arguments(layer))
    try:
        made = layer.factory(*args, **kwargs)
    except ValueError as error:
        if strict or not hasattr(error, "name_taken"):
            raise
        return None
    made = replace(made, name=layer.name, partial=layer.partial)
    wanted = {**layer.children, **swaps}
    inner = {
        slot: child
        for slot, child in wanted.items()
        if slot in made.children and not _is_of(made.children[slot], child)
    }
    return _with_inner(made, inner) if inner else made


def _is_of(child: Layer, given: Layer) -> bool:
    """Whether a child is what was given to a factory, which may have named it."""
    return child is given or child == given.named(child.name)


def _with_inner(layer: Layer, inner: Mapping[str, Layer]) -> Layer:
    """A layer whose record holds other children than its factory made."""
    names = {slot: layer.children[slot].name for slot in inner}
    new = {slot: child.named(names[slot]) for slot, child in inner.items()}
    children = {**layer.children, **new}
    places = settle({s: _placed(layer.places[s], c) for s, c in children.items()})
    found = [name for place in places.values() for name in _firsts(place)]
    twice = [name for name in found if found.count(name) > 1]
    if twice:
        raise name_taken(
            f"two layers in {layer.headline} are called {twice[0]!r}. Rename one."
        )
    return replace(
        layer,
        children=MappingProxyType(children),
        places=places,
        names=layer.names if layer.indexed else closed(places),
        replaced=layer.replaced | new.keys(),
    )


def _firsts(place: Place) -> list[str]:
    """The names that a child has in its parent's namespace."""
    if place.path:
        return [place.path[0]]
    return [name for below in place.below.values() for name in _firsts(below)]


def _placed(place: Place, child: Layer) -> Place:
    """The place of another child in its stead."""
    return place._replace(below=child.places) if place.path else inside(child)["f"]


@layer
def part(model: Layer, path: str) -> Node:
    """What `Layer.part` returns: one child, run on the whole model's params and state."""
    if not isinstance(path, str):
        raise TypeError(
            f"part: expected a path, got {type(path).__name__}. "
            "Write model.part('decoder'), or model[0] for a layer by number."
        )
    found = find_child(model, model.places, tuple(path.split("/")))
    if found is None:
        known = list(walk(model, model.places, ""))
        for whole, copied in [("", model), *known]:
            if copied.indexed and path.startswith(f"{whole}/" if whole else ""):
                raise ValueError(
                    f"part: {path!r} is inside copies, which run together only. "
                    f"Take {whole or 'the model'!r} instead."
                )
        raise PathError("part", path, [place for place, _ in known])
    child, place = found

    def run(frame: Frame, args: Any, kwargs: Any, method: str) -> PyTree:
        return frame.call("f", args, kwargs, method)

    return Node(run, {"f": child}, {"f": place}, partial=True)


def find_child(
    layer: Layer, places: Mapping[str, Place], steps: tuple[str, ...]
) -> tuple[Layer, Place] | None:
    """The child that the steps lead to, and its place seen from here."""
    for slot, child in layer.children.items():
        place = places[slot]
        n = len(place.path)
        if place.path != steps[:n] or layer.indexed:
            continue
        if n and len(steps) == n:
            return child, place
        below = find_child(child, place.below, steps[n:])
        if below is not None:
            leaf, inner = below
            return leaf, inner._replace(path=(*place.path, *inner.path))
    return None


OPERATORS.update(part=part, pinned=pinned, rebuilt=cast(Any, rebuilt))
