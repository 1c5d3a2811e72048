"""Surgery: new models out of old ones, with the weights that they share carried over.

A model is a value, so nothing is changed in place: each function returns a new model, and
where weights are concerned new params and state, in which all arrays of what was not
touched are the very same arrays.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, cast

import jax

from axonlike.combinators.basic import serial
from axonlike.combinators.lifted import frozen
from axonlike.combinators.tying import tie, ties
from axonlike.errors import PathError
from axonlike.layer import Layer, as_layer
from axonlike.names import Place, walk
from axonlike.params import mapped, paths
from axonlike.selector import Item, Where, choose, spelled
from axonlike.spots import Chain, Spot, own_names, spots, translated
from axonlike.transfer import carried, without
from axonlike.tree import find_child, pinned, rebuilt
from axonlike.types import Key, Params, PyTree, State

Model = tuple[Layer, Params, State]


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
        body = layer.children["f"] if layer.factory is frozen else layer
        return frozen(body.named(None)).named(layer.name)

    chosen = outermost(chosen_spots("freeze", model, where))
    return rewritten(model, {spot.chain: change(spot.layer) for spot in chosen})


def trainable(model: Layer, params: PyTree) -> PyTree:
    """A mask of params: false for what is frozen in the model.

    For an optimizer that would move frozen weights all the same (weight decay does):
    `optax.partition({True: optimizer, False: optax.set_to_zero()}, mask)`.

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
    items = paths(params, model)
    found: set[str] = set()
    for spot in spots(model):
        if spot.layer.factory is frozen:
            own = [item for item in items if spot.owns(item[0])]
            found |= set(_stopped(spot, own))
    return found


def _stopped(spot: Spot, items: list[Item]) -> list[str]:
    """Those of a frozen layer's arrays that it stops."""
    but = spot.layer.config["but"]
    if but is None or not items:
        return [path for path, _ in items]
    start = len(spot.paths[0]) + 1 if spot.paths[0] else 0
    names = own_names(spot.layer, spot.places)
    inside = [(translated(path[start:], names), array) for path, array in items]
    free = choose("trainable", but, inside, list(spots(spot.layer)))
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
    new_ones = _own([*chosen, *_only_in(changed, model)])
    old = model, params, state
    return carried("replace", old, changed, _own(chosen), new_ones, key, spec)


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
    before = [spot.chain for spot in _piped("insert_after", model, where)]

    def longer(pipe: Spot, items: dict[Chain, Layer]) -> list[Layer]:
        own = _fresh_name(model, pipe, layer)
        pairs = [[item, own] if c in before else [item] for c, item in items.items()]
        return [item for pair in pairs for item in pair]

    changed = _repiped(model, before, longer)
    new_ones = _own(_only_in(changed, model))
    old = model, params, state
    return carried("insert_after", old, changed, _own([]), new_ones, key, spec)


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
    chosen = _piped("remove", model, where)
    gone = [spot.chain for spot in chosen]

    def shorter(pipe: Spot, items: dict[Chain, Layer]) -> list[Layer]:
        return [item for chain, item in items.items() if chain not in gone]

    changed = _untied(_repiped(model, gone, shorter))
    own = _own(chosen)
    return changed, without(params, own), without(state, own)


def _untied(model: Layer) -> Layer:
    """The model without ties of layers that are no longer there."""
    homes = {path for spot in spots(model) for path in spot.paths}
    changes: dict[Chain, Layer] = {}
    for target, source in ties(model):
        ends = [end.rpartition("/")[0] in homes for end in (target, source)]
        if ends == [True, False]:
            raise ValueError(
                f"remove: {target!r} is tied to {source!r} and stays. Remove both."
            )
    for spot in spots(model):
        if spot.layer.factory is tie:
            inner = {p for s in spots(spot.layer.children["f"]) for p in s.paths}
            pairs = spot.layer.config["pairs"].items()
            left = {t: s for t, s in pairs if t.rpartition("/")[0] in inner}
            if len(left) < len(pairs):
                changes[spot.chain] = _with_pairs(spot.layer, left)
    return rewritten(model, changes)


def _with_pairs(layer: Layer, pairs: dict[str, str]) -> Layer:
    """A tie of fewer pairs; its body where none is left."""
    body = layer.children["f"]
    if not pairs:
        return body.named(layer.name or body.name)
    turned = layer.config["transpose"]
    if not isinstance(turned, bool):
        turned = [target for target in turned if target in pairs]
    return tie(body, pairs, transpose=turned).named(layer.name)


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
    lent = [t for t, _ in ties(model) if t.startswith(f"{path}/")]
    if lent:
        raise ValueError(
            f"submodel: {lent[0]!r} is tied to another layer's array, which would be "
            "missing. Take the layer that holds both."
        )
    steps = path.split("/")
    digit = next((i for i, step in enumerate(steps) if step.isdigit()), None)
    head = "/".join(steps[:digit])
    if "*" in steps:
        raise PathError(
            "submodel", path, (), "Copies run together: take one, by number."
        )
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
    number = model.plain.config["n"]
    if int(step) >= number:
        raise PathError("submodel", path, (), f"There are {number} copies.")
    body = (
        serial(model.children["f"])
        if model.children["f"].name
        else (model.children["f"])
    )
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


def chosen_spots(verb: str, model: Layer, where: Where) -> list[Spot]:
    """The layers that a selector means."""
    every = list(spots(model))
    items: list[Item] = [(path, spot.layer) for spot in every for path in spot.paths]
    marks = iter(choose(verb, where, items, every))
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


def _own(chosen: list[Spot]) -> Callable[[str], bool]:
    """Whether an array is one of some layers' own."""
    return lambda path: any(spot.owns(path) for spot in chosen)


def _only_in(model: Layer, other: Layer) -> list[Spot]:
    """The layers of a model at paths that another has not."""
    known = {path for spot in spots(other) for path in spot.paths}
    return [spot for spot in spots(model) if not known.issuperset(spot.paths)]


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
    """Of wrappers at one path the body; of other nested ones the outermost.

    A body that a layer made for itself (the cell of a gru) is none of the user's.
    """
    bodies: dict[Any, Spot] = {}
    for spot in found:  # a body comes after its wrapper
        where = spot.paths, spot.others
        known = bodies.get(where)
        if known is None or known.layer.transparent:
            bodies[where] = spot
    return outermost(
        [spot for spot in found if any(spot is s for s in bodies.values())]
    )


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
    made = rebuilt(layer, swaps, strict=False)
    if made is not None and _named(made.places) == _named(places):
        return made
    fixed = {slot: pinned(child, places[slot]) for slot, child in whole.items()}
    return cast(Layer, rebuilt(layer, fixed))


def _named(places: Mapping[str, Place]) -> list[Any]:
    """The names that children have, in order."""
    return [place.path or _named(place.below) for place in places.values()]


def _piped(verb: str, model: Layer, where: Where) -> list[Spot]:
    """What a selector means, each layer standing in a pipe."""
    chosen = outermost(chosen_spots(verb, model, where))
    every = {spot.chain: spot.layer for spot in spots(model)}
    for spot in chosen:
        pipe = every[spot.chain[:-1]]
        if not spot.chain or pipe.kind != "serial":
            home = "the model" if not spot.chain else repr(spot.paths[0])
            around = "" if not spot.chain else f", but in {pipe.headline}"
            raise ValueError(
                f"{verb}: {home} does not stand in a pipe{around}. Write the pipe anew, "
                "and migrate(...) to keep the weights."
            )
    return chosen


def _repiped(
    model: Layer,
    chains: list[Chain],
    change: Callable[[Spot, dict[Chain, Layer]], list[Layer]],
) -> Layer:
    """The model with other layers in the pipes in which some of its layers stand."""
    changes: dict[Chain, Layer] = {}
    for pipe in list(spots(model)):
        if pipe.chain not in {chain[:-1] for chain in chains}:
            continue
        items = {
            (*pipe.chain, slot): pinned(child, pipe.places[slot])
            for slot, child in pipe.layer.children.items()
        }
        made = pipe.layer.factory(*change(pipe, items)).named(pipe.layer.name)
        changes[pipe.chain] = dataclasses.replace(made, partial=pipe.layer.partial)
    return rewritten(model, changes)


def _fresh_name(model: Layer, pipe: Spot, layer: Layer) -> Layer:
    """A layer under a name that nothing beside it has."""
    if layer.name is not None:
        return layer
    home = pipe.paths[0]
    start = len(home) + 1 if home else 0
    used = {p[start:].partition("/")[0] for s in spots(model) for p in s.paths
            if p.startswith(f"{home}/" if home else "")}  # fmt: skip
    name, count = layer.stem, 0
    while name in used:
        count += 1
        name = f"{layer.stem}_{count}"
    return layer.named(name)
