"""Surgery: new models out of old ones, with the weights that they share carried over.

A model is a value, so nothing is changed in place: each function returns a new model, and
where weights are concerned new params and state, in which all arrays of what was not
touched are the very same arrays.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax

from axonlike.combinators.lifted import frozen
from axonlike.combinators.tying import ties
from axonlike.errors import PathError
from axonlike.layer import Layer, as_layer
from axonlike.names import Place, closed, walk
from axonlike.params import mapped, paths
from axonlike.paths import join
from axonlike.selector import Item, Where, choose, spelled
from axonlike.transfer import carried, without
from axonlike.tree import find_child, pinned, rebuilt
from axonlike.types import Key, Params, PyTree, State

Model = tuple[Layer, Params, State]
Chain = tuple[str, ...]
"""The slots that lead from the root to a layer."""


class Spot(NamedTuple):
    """One layer in a model: how it is reached, and under which paths it runs."""

    chain: Chain
    paths: tuple[str, ...]
    layer: Layer
    place: Place | None


def find(model: Layer, where: Where) -> Layer:
    """The one layer that a selector means.

    Args:
        model: any layer.
        where: a path, a glob, a predicate on `(path, layer)`, `kind("dense")`, or several.

    Shapes:
        No arrays.

    Raises:
        PathError: the selector means nothing.
        ValueError: it means several layers; `layers` lists them.

    Example:
        >>> import axonlike as al
        >>> model = al.serial(body=al.dense(8), head=al.dense(2))
        >>> al.find(model, "head")
        al.dense(features=2, name='head')
    """
    return _one("find", model, where).layer


def freeze(model: Layer, where: Where) -> Layer:
    """The model with `frozen` around what a selector means; freezing twice adds up.

    Args:
        model: any layer.
        where: a selector of layers, as for `layers`.

    Shapes:
        As the model's.

    Raises:
        PathError: the selector means nothing.
        ValueError: it means some copies of a repeat, which share one layer.

    Example:
        >>> import axonlike as al
        >>> model = al.serial(body=al.dense(8), head=al.dense(2))
        >>> al.freeze(al.freeze(model, "body"), "head").children["body"]
        al.frozen(al.dense(features=8), name='body')
    """

    def change(layer: Layer) -> Layer:
        if layer.factory is frozen:
            return layer
        return frozen(layer.named(None)).named(layer.name)

    chosen = outermost(chosen_spots("freeze", model, where))
    return rewritten(model, {spot.chain: change(spot.layer) for spot in chosen})


def trainable(model: Layer, params: PyTree) -> PyTree:
    """A mask of params: false for what is frozen in the model.

    What `optax.masked` or `optax.transforms.freeze` takes, so that weight decay does not
    move frozen weights.

    Args:
        model: what the params are of.
        params: as `init` made them.

    Shapes:
        The structure of the params, Python bools.

    Raises:
        TypeError: params are not a dict.

    Example:
        >>> import jax, axonlike as al
        >>> model = al.serial(body=al.frozen(al.dense(8)), head=al.dense(2))
        >>> params, state = model.init(jax.random.key(0), (None, 4))
        >>> al.trainable(model, params)["body"]
        {'bias': False, 'kernel': False}
    """
    still = _frozen_paths(model, params)
    tied: dict[str, list[str]] = {}
    for target, source in ties(model):
        tied.setdefault(source, []).append(target)

    def free(path: str, _: Any) -> bool:
        return not all(each in still for each in [path, *tied.get(path, [])])

    return mapped(free, params)


def _frozen_paths(model: Layer, params: PyTree) -> set[str]:
    """The paths of all arrays that a `frozen` stops the gradient of."""
    found: set[str] = set()
    items = paths(params, model)
    for spot in spots(model):
        if spot.layer.factory is not frozen:
            continue
        for home in spot.paths:
            start = f"{home}/" if home else ""
            inside = [(p[len(start) :], a) for p, a in items if p.startswith(start)]
            found |= {f"{start}{p}" for p in _stopped(spot, inside)}
    return found


def _stopped(spot: Spot, items: list[Item]) -> list[str]:
    but = spot.layer.config["but"]
    if but is None:
        return [path for path, _ in items]
    layers = list(walk(spot.layer, spot.layer.places, "", every=True))
    free = choose("trainable", but, items, layers)
    return [path for (path, _), copies in zip(items, free, strict=True) if not copies]


def replace(
    model: Layer,
    params: Params,
    state: State,
    where: Where,
    new: Any,
    *,
    key: Key | None = None,
    spec: PyTree = None,
) -> Model:
    """The model with another layer at a place, which keeps its name.

    Args:
        model: any layer.
        params: of the model.
        state: of the model.
        where: a selector of layers; where wrappers stand at one path, the innermost.
        new: a layer or function.
        key: for the new weights.
        spec: of the model's input, as for `init`, from which the new layer's input
            follows. None: that of the model's last `init` in this process.

    Shapes:
        As the models'; arrays of layers that are in both are the same ones.

    Raises:
        PathError: the selector means nothing.
        ValueError: new weights are needed, and `key` or `spec` is missing.
        ShapeError: the new layer does not fit between its neighbors.

    Example:
        >>> import jax, axonlike as al
        >>> model = al.serial(body=al.dense(8), head=al.dense(2))
        >>> params, state = model.init(jax.random.key(0), (None, 4))
        >>> model, params, state = al.replace(
        ...     model, params, state, "head", al.dense(5), key=jax.random.key(1))
        >>> params["head"]["kernel"].shape
        (8, 5)
    """
    layer = as_layer(new, "replace").named(None)
    chosen = innermost(chosen_spots("replace", model, where))
    changes = {spot.chain: layer.named(spot.layer.name) for spot in chosen}
    changed = rewritten(model, changes)
    fresh = [path for spot in chosen for path in spot.paths]
    return carried(model, changed, params, state, fresh, key, spec)


def insert_after(
    model: Layer,
    params: Params,
    state: State,
    where: Where,
    new: Any,
    *,
    key: Key | None = None,
    spec: PyTree = None,
) -> Model:
    """The model with a layer put into a pipe, after another; all others keep their names.

    Args:
        model: any layer.
        params: of the model.
        state: of the model.
        where: a selector of layers in pipes.
        new: a layer or function; named by `name=`, or by its kind as usual.
        key: for the new weights.
        spec: as for `replace`.

    Shapes:
        As the models'; arrays of layers that are in both are the same ones.

    Raises:
        PathError: the selector means nothing.
        ValueError: what it means does not stand in a pipe, or `key` or `spec` is missing.

    Example:
        >>> import jax, axonlike as al
        >>> model = al.dense(8) >> al.dense(2)
        >>> params, state = model.init(jax.random.key(0), (None, 4))
        >>> model, params, state = al.insert_after(
        ...     model, params, state, "dense", jax.nn.relu)
        >>> list(model.children)
        ['dense', 'relu', 'dense_1']
    """
    layer = as_layer(new, "insert_after")

    def change(slot: str, chosen: bool) -> list[Layer | None]:
        return [None, layer] if chosen else [None]

    changed, fresh = _repiped("insert_after", model, where, change)
    return carried(model, changed, params, state, fresh, key, spec)


def remove(model: Layer, params: Params, state: State, where: Where) -> Model:
    """The model without some layers of its pipes; all others keep their names.

    Args:
        model: any layer.
        params: of the model.
        state: of the model.
        where: a selector of layers in pipes.

    Shapes:
        As the model's; params and state without theirs.

    Raises:
        PathError: the selector means nothing.
        ValueError: what it means does not stand in a pipe.

    Example:
        >>> import jax, axonlike as al
        >>> model = al.dense(8) >> jax.nn.relu >> al.dense(2)
        >>> params, state = model.init(jax.random.key(0), (None, 4))
        >>> model, params, state = al.remove(model, params, state, "dense")
        >>> list(model.children), list(params)
        (['relu', 'dense_1'], ['dense_1'])
    """

    def change(slot: str, chosen: bool) -> list[Layer | None]:
        return [] if chosen else [None]

    changed, _ = _repiped("remove", model, where, change)
    gone = [
        p
        for spot in outermost(chosen_spots("remove", model, where))
        for p in spot.paths
    ]
    kept = without(params, gone), without(state, gone)
    for target, source in ties(changed):
        if source not in dict(paths(kept[0])):
            raise ValueError(
                f"remove: {source!r} is also {target!r}, which stays. "
                "Remove both, or untie them first."
            )
    return changed, *kept


def submodel(model: Layer, params: Params, state: State, path: str) -> Model:
    """One layer of a model with its own params and state, as a model of its own.

    Args:
        model: any layer.
        params: of the model.
        state: of the model.
        path: of the layer; a step of digits takes one copy of a repeat.

    Shapes:
        Those in the trees; what the layer has none of becomes `{}`.

    Raises:
        PathError: there is no such layer.

    Example:
        >>> import jax, jax.numpy as jnp, axonlike as al
        >>> model = al.serial(encoder=al.dense(2), decoder=al.dense(5))
        >>> params, state = model.init(jax.random.key(0), (None, 5))
        >>> encoder, params, state = al.submodel(model, params, state, "encoder")
        >>> encoder.predict(params, state, jnp.ones((1, 5))).shape
        (1, 2)
    """
    steps = path.split("/")
    digit = next((i for i, step in enumerate(steps) if step.isdigit()), None)
    head = "/".join(steps[:digit])
    if head:
        found = find_child(model, model.places, tuple(head.split("/")))
        if found is None:
            known = [p for p, _ in walk(model, model.places, "")]
            raise PathError("submodel", path, known)
        model = found[0].named(None)
        params, state = (_below(tree, head) for tree in (params, state))
    if digit is None:
        return model, params, state
    model, params, state = _copy(model, params, state, steps[digit], path)
    rest = "/".join(steps[digit + 1 :])
    return submodel(model, params, state, rest) if rest else (model, params, state)


def _below(tree: PyTree, path: str) -> Any:
    """The dict at a path; an empty one where there is none."""
    for step in path.split("/"):
        tree = tree.get(step, {})
    return tree


def _copy(model: Layer, params: Params, state: State, step: str, path: str) -> Model:
    """One copy of a repeat or an ensemble, with its own arrays."""
    while model.transparent and not model.indexed:
        model = model.children["f"]
    if not model.indexed:
        raise PathError("submodel", path, (), f"{model.headline} has no copies.")
    body = model.children["f"].named(None)
    trees = [
        jax.tree.map(partial(_at, int(step)), tree["*"])
        if "*" in tree
        else tree.get(step, {})
        for tree in (params, state)
    ]
    return body, trees[0], trees[1]


def _at(index: int, array: Any) -> Any:
    return array[index]


# --- how a model is rewritten


def spots(
    layer: Layer,
    place: Place | None = None,
    prefixes: tuple[str, ...] = ("",),
    chain: Chain = (),
) -> Iterator[Spot]:
    """Every layer in a model, the root first."""
    yield Spot(chain, prefixes, layer, place)
    names = (
        sorted(layer.names or (), key=lambda s: (len(s), s)) if layer.indexed else [""]
    )
    places = layer.places if place is None else place.below
    for slot, child in layer.children.items():
        below = tuple(
            join(prefix, name, *places[slot].path)
            for prefix in prefixes
            for name in names
        )
        yield from spots(child, places[slot], below, (*chain, slot))


def chosen_spots(verb: str, model: Layer, where: Where) -> list[Spot]:
    """The layers that a selector means."""
    every = list(spots(model))
    items: list[Item] = [(path, spot.layer) for spot in every for path in spot.paths]
    marks = iter(choose(verb, where, items, items))
    chosen: list[Spot] = []
    for spot in every:
        each = [bool(next(marks)) for _ in spot.paths]
        if any(each) and not all(each):
            raise ValueError(
                f"{verb}: {spelled(where)!r} means some copies of {spot.layer.headline}, "
                "which are one layer. Choose all of them with '*'."
            )
        if any(each):
            chosen.append(spot)
    return chosen


def _one(verb: str, model: Layer, where: Where) -> Spot:
    chosen = innermost(chosen_spots(verb, model, where))
    if len(chosen) > 1:
        names = [spot.paths[0] for spot in chosen]
        raise ValueError(
            f"{verb}: {spelled(where)!r} means {len(names)} layers, {names[0]!r} and "
            f"{names[1]!r} among them. Choose one, or list them with layers()."
        )
    return chosen[0]


def outermost(found: list[Spot]) -> list[Spot]:
    """Without those inside of others."""
    chains = {spot.chain for spot in found}
    return [
        spot
        for spot in found
        if not any(spot.chain[:n] in chains for n in range(len(spot.chain)))
    ]


def innermost(found: list[Spot]) -> list[Spot]:
    """Of layers at one path the innermost; of other nested ones the outermost."""
    deepest = {spot.paths: spot for spot in found}  # a body comes after its wrapper
    return outermost([spot for spot in found if deepest[spot.paths] is spot])


def rewritten(
    layer: Layer,
    changes: Mapping[Chain, Layer],
    chain: Chain = (),
    place: Place | None = None,
) -> Layer:
    """A model with other layers at some places; every place keeps its name."""
    if chain in changes:
        return changes[chain]
    places = layer.places if place is None else place.below
    swaps: dict[str, Layer] = {}
    for slot, child in layer.children.items():
        new = rewritten(child, changes, (*chain, slot), places[slot])
        if new is not child:
            swaps[slot] = new
    if not swaps:
        return layer
    whole = {**layer.children, **swaps}
    names = [pinned(child, places[slot]) for slot, child in whole.items()]
    fixed = rebuilt(layer, dict(zip(whole, names, strict=True)))
    try:
        made = rebuilt(layer, swaps)
    except ValueError:  # two automatic names are one now
        return fixed
    return made if _named(made.places) == _named(places) else fixed


def _named(places: Mapping[str, Place]) -> list[Any]:
    """The names that children have, in order."""
    return [place.path or _named(place.below) for place in places.values()]


def _repiped(
    verb: str,
    model: Layer,
    where: Where,
    change: Callable[[str, bool], list[Layer | None]],
) -> tuple[Layer, list[str]]:
    """The model with other layers in its pipes; `change` says what a slot becomes.

    Its None is the layer that is there. Returns the paths of what is new as well.
    """
    every = {spot.chain: spot for spot in spots(model)}
    chosen = outermost(chosen_spots(verb, model, where))
    changes: dict[Chain, Layer] = {}
    fresh: list[str] = []
    for parent in dict.fromkeys(spot.chain[:-1] for spot in chosen):
        pipe, marked = (
            every[parent],
            [s.chain[-1] for s in chosen if s.chain[:-1] == parent],
        )
        if pipe.layer.kind != "serial" or not all(s.chain for s in chosen):
            raise ValueError(
                f"{verb}: {chosen[0].paths[0] or 'the model'!r} does not stand in a pipe, "
                f"but in {pipe.layer.headline}. Use replace(...) there."
            )
        new: list[Layer] = []
        for slot, child in pipe.layer.children.items():
            here = pinned(child, pipe.layer.places[slot])
            new += [here if x is None else x for x in change(slot, slot in marked)]
        made = pipe.layer.factory(*new).named(pipe.layer.name)
        changes[parent] = made
        known = set(_firsts(pipe.layer.places))
        fresh += [
            join(path, name)
            for path in pipe.paths
            for name in _firsts(made.places)
            if name not in known
        ]
    return rewritten(model, changes), fresh


def _firsts(places: Mapping[str, Place]) -> list[str]:
    """The first steps of a namespace."""
    return sorted(closed(places) or ())
