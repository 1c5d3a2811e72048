"""Every layer of a model: how it is reached, under which paths, and what is its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from axonlike.names import Place, closed
from axonlike.paths import join

Chain = tuple[str, ...]
"""The slots that lead from the root to a layer."""


class Spot(NamedTuple):
    """One layer in a model.

    It runs under `paths`, one for each copy, where `places` are those of its children. A
    layer that adds no level shares its path with others: of what stands there, `others`
    are the first steps that are not its own.
    """

    chain: Chain
    paths: tuple[str, ...]
    layer: Any
    places: Mapping[str, Place]
    others: frozenset[str] = frozenset()

    def owns(self, path: str) -> bool:
        """Whether the array at a path belongs to this layer or to one in it."""
        return any(self._below(home, path) for home in self.paths)

    def _below(self, home: str, path: str) -> bool:
        if home and not path.startswith(f"{home}/"):
            return False
        rest = path[len(home) + 1 :] if home else path
        return rest.partition("/")[0] not in self.others


def spots(model: Any, places: Mapping[str, Place] | None = None) -> Iterator[Spot]:
    """Every layer of a model, the root first, each before those in it.

    `places` are those that a parent gave its children, where the model is one of them.
    """
    yield from _spots(
        Spot((), ("",), model, model.places if places is None else places)
    )


def own_names(layer: Any, places: Mapping[str, Place]) -> dict[str, str]:
    """Where a layer by itself has what stands at a path here: `{here: by itself}`.

    A pipe that a layer is part of may number the names of the layer's children anew.
    """
    pairs = zip(spots(layer, places), spots(layer), strict=True)
    return {
        here: alone
        for seen, plain in pairs
        for here, alone in zip(seen.paths, plain.paths, strict=True)
    }


def translated(path: str, names: Mapping[str, str]) -> str:
    """The path of an array or layer, its home's name being another one."""
    home, rest = path, ""
    while home and home not in names:
        home, _, step = home.rpartition("/")
        rest = join(step, rest)
    return join(names.get(home, home), rest)


def _spots(spot: Spot) -> Iterator[Spot]:
    yield spot
    steps = [""]
    if spot.layer.indexed:
        steps = sorted(spot.layer.names, key=lambda step: (len(step), step))
    for slot, child in spot.layer.children.items():
        place = spot.places[slot]
        paths = tuple(
            join(home, step, *place.path) for home in spot.paths for step in steps
        )
        others = frozenset[str]() if place.path else _others(spot, slot)
        yield from _spots(Spot((*spot.chain, slot), paths, child, place.below, others))


def _others(spot: Spot, slot: str) -> frozenset[str]:
    """What stands beside a child that adds no level."""
    siblings = {s: place for s, place in spot.places.items() if s != slot}
    beside = closed(siblings) or frozenset()
    return beside if spot.layer.indexed else beside | spot.others
