"""The layers inside a model: listing them, taking parts, pinning names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from axonlike.errors import PathError
from axonlike.frame import Frame
from axonlike.layer import OPERATORS, Layer, Node, layer
from axonlike.names import Place, closed, inside, walk
from axonlike.selector import Where, choose
from axonlike.text import arguments
from axonlike.types import PyTree
from axonlike.values import remade


def layers(model: Layer, where: Where = None) -> list[tuple[str, Layer]]:
    """Every `(path, layer)` inside a model, in model order.

    Args:
        model: any layer.
        where: a path, a glob (`*` one step, `**` any depth, `{a,b}`), a predicate on
            `(path, layer)`, `kind("dense")`, or several of those; None for all.

    Raises:
        PathError: `where` matches nothing.

    Shapes:
        No arrays: params are listed by `jax.tree_util`.

    Example:
        >>> import jax, axonlike as al
        >>> model = al.serial(al.dense(4), jax.nn.relu, head=al.dense(2).named(None))
        Traceback (most recent call last):
        TypeError: serial: children are named by keyword or not at all, got 2 without ...
        >>> model = al.dense(4) >> jax.nn.relu >> al.residual(al.dense(4))
        >>> [path for path, layer in al.layers(model, "dense*")]
        ['dense', 'dense_1', 'dense_1']
    """
    found = list(walk(model, model.places, ""))
    if where is None:
        return found
    chosen = choose("layers", where, found, found)
    return [item for item, copies in zip(found, chosen, strict=True) if copies]


def pinned(layer: Layer, place: Place) -> Layer:
    """A child that keeps its name, or those of its children, wherever it goes."""
    if place.path:
        return layer.named(place.path[0])
    swaps = {
        slot: pinned(child, place.below[slot])
        for slot, child in layer.children.items()
        if slot in place.below
    }
    return rebuilt(layer, swaps)


def rebuilt(layer: Layer, swaps: Mapping[str, Layer]) -> Layer:
    """The same layer with other children in place of some.

    Children that were arguments of the factory are so again; those that the factory made
    itself are replaced in the record.
    """
    if all(layer.children[slot] is new for slot, new in swaps.items()):
        return layer
    pending = dict(layer.children)  # all of them: one layer may stand at several slots

    def swap(value: Any) -> Any:
        if isinstance(value, Layer):
            slot = next((s for s, c in pending.items() if c is value), None)
            if slot is None:
                return value
            del pending[slot]
            return swaps.get(slot, value)
        return remade(swap, value)

    args, kwargs = map(swap, arguments(layer))
    made = layer
    if swaps.keys() - pending.keys():
        made = layer.factory(*args, **kwargs).named(layer.name)
    inner = {slot: layer.children[slot] for slot in layer.replaced}
    inner |= {slot: new for slot, new in swaps.items() if slot in pending}
    return _with_inner(made, inner) if inner else made


def _with_inner(layer: Layer, inner: Mapping[str, Layer]) -> Layer:
    """A layer whose record holds other children than its factory made."""
    children = {**layer.children, **{s: c.named(None) for s, c in inner.items()}}
    places = {s: _placed(layer.places[s], child) for s, child in children.items()}
    return replace(
        layer,
        children=MappingProxyType(children),
        places=places,
        names=layer.names if layer.indexed else closed(places),
        replaced=layer.replaced | inner.keys(),
    )


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


OPERATORS.update(part=part, pinned=pinned, rebuilt=rebuilt)
