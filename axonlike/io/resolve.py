"""What the rules of a mapping mean for a model: which of its arrays is which tensor."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, cast

import numpy as np

from axonlike.combinators.tying import turned_ties
from axonlike.errors import nearest
from axonlike.io.arrays import DTYPES
from axonlike.io.axes import SAME
from axonlike.io.conventions import (
    BIASES,
    CONVENTIONS,
    COUNT,
    Convention,
    Tensor,
    convention,
    flat,
)
from axonlike.io.links import AnyLink, Biases, Count, Link, Slot
from axonlike.io.rules import Rule, filled_in, regex
from axonlike.paths import join
from axonlike.selector import at
from axonlike.spots import spots


class Module(NamedTuple):
    """A layer of a model, one copy of it, with its arrays by name."""

    path: str
    layer: Any
    slots: Mapping[str, Slot]


Arrays = Sequence[tuple[str, Any]]
"""Paths with arrays or their specs; stacked copies in one, at `*`."""


def modules_of(model: Any, params: Arrays, state: Arrays) -> list[Module]:
    """Every layer with arrays of its own, stacked ones once for each copy."""
    layers = {
        path: spot.layer
        for spot in spots(model)
        if spot.layer.init_function is not None
        for path in spot.paths
    }
    homes: dict[str, dict[str, Slot]] = {}
    for side, arrays in enumerate((params, state)):
        for path, spec in arrays:
            home = _home(path, layers)
            name = path[len(home) :].lstrip("/")
            homes.setdefault(home, {})[name] = _slot(layers.get(home), side, path, spec)
    _add_ties(model, homes, layers)
    return [
        Module(
            at(home, index),
            layers.get(home),
            {k: s.copy(index) for k, s in own.items()},
        )
        for home, own in homes.items()
        for index in np.ndindex(*_copies(own))
    ]


def _home(path: str, layers: Mapping[str, Any]) -> str:
    """The path of the layer that an array is of."""
    home = path.rpartition("/")[0]
    while home and home not in layers:
        home = home.rpartition("/")[0]
    return home


def _slot(layer: Any, side: int, path: str, spec: Any) -> Slot:
    """An array of a layer; of its copies, none yet."""
    count = path.split("/").count("*")
    copies, shape = tuple(spec.shape[:count]), tuple(spec.shape[count:])
    dtype = np.dtype(spec.dtype) if str(spec.dtype) in DTYPES else np.dtype(object)
    return Slot(side, path, copies, (), shape, dtype, _flat(layer, path, shape))


def _flat(layer: Any, path: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    return flat(layer, path.rpartition("/")[2], shape)


def _copies(own: Mapping[str, Slot]) -> tuple[int, ...]:
    return next(iter(own.values())).copies


def _add_ties(
    model: Any, homes: dict[str, dict[str, Slot]], layers: Mapping[str, Any]
) -> None:
    """Gives layers the arrays that they have of others."""
    every = {slot.stored: slot for own in homes.values() for slot in own.values()}
    for target, source, turned in turned_ties(model):
        home, _, name = target.rpartition("/")
        if source not in every:
            continue
        slot = every[source]
        shape = tuple(reversed(slot.shape)) if turned else slot.shape
        own = slot._replace(
            shape=shape,
            flat=_flat(layers.get(home), target, shape),
            tied=True,
            turned=turned,
        )
        homes.setdefault(home, {})[name] = own


class Found(NamedTuple):
    """What rules mean for a model: links, and the arrays that none of them reaches."""

    links: list[AnyLink]
    bare: list[tuple[Slot, Any]]


def resolve(
    rules: list[Rule], modules: list[Module], changed: Mapping[str, Convention]
) -> Found:
    """The links between a model's arrays and tensors.

    What a rule says of one array goes before what another one says of its layer.

    Raises:
        ValueError: two rules are for one array, or parts do not fit each other.
    """
    places = {module.path: module for module in modules}
    arrays = {
        join(module.path, name): (module, name)
        for module in modules
        for name in module.slots
    }
    exact: list[AnyLink] = []
    broad: list[AnyLink] = []
    for rule in rules:
        pattern = regex(rule.ours[0])
        for path in arrays:
            hit = pattern.fullmatch(path)
            if hit:
                exact.append(_of_arrays(rule, hit.groupdict(), arrays, changed))
        for path in places:
            hit = pattern.fullmatch(path)
            if hit:
                broad += _of_layers(rule, hit.groupdict(), places, changed)
    taken = _claimed(exact, {})
    broad = [
        link for link in broad if not link.ours or not _paths(link) <= taken.keys()
    ]
    taken = _claimed(broad, taken)
    bare = [
        (slot, module.layer)
        for module in modules
        for name, slot in module.slots.items()
        if (slot.side, slot.path) not in taken
        and not slot.tied
        and _is_theirs(module, name, slot, changed)
    ]
    return Found([*exact, *broad], bare)


Claims = dict[tuple[int, str], str]


def _claimed(links: list[AnyLink], before: Claims) -> Claims:
    """Which tensor each array is of, none being of two."""
    taken = dict(before)
    for link in links:
        own = set[tuple[int, str]]() if link.optional else _paths(link)
        for key in own & taken.keys():
            both = sorted({taken[key], link.theirs[0]})
            raise ValueError(
                f"mapping: {key[1]!r} would be of {both[0]!r} and of {both[-1]!r}. "
                "Take one of the rules out, or write tied(...)."
            )
        taken |= dict.fromkeys(own, link.theirs[0])
    return taken


def _paths(link: AnyLink) -> set[tuple[int, str]]:
    return {(slot.side, slot.path) for slot in link.ours}


def _is_theirs(module: Module, name: str, slot: Slot, changed: Any) -> bool:
    """Whether a file has to have an array: params, and the statistics of a norm."""
    if slot.side == 0 or module.layer is None:
        return True
    known = changed.get(module.layer.kind) or CONVENTIONS.get(module.layer.kind, {})
    return any(tensor.ours == name for tensor in known.values())


def _of_arrays(
    rule: Rule,
    fields: Mapping[str, str],
    arrays: Mapping[str, tuple[Module, str]],
    changed: Mapping[str, Convention],
) -> Link:
    """The link of a rule that names single arrays."""
    slots: list[Slot] = []
    how = SAME
    for template in rule.ours:
        path = filled_in(template, fields)
        if path not in arrays:
            raise _no_part(rule, path, arrays)
        module, name = arrays[path]
        slots.append(module.slots[name])
        tensors = convention(module.layer, changed).values()
        how = next((t.axes for t in tensors if t.ours == name), SAME)
    theirs = tuple(filled_in(name, fields) for name in rule.theirs)
    return _link(rule, theirs, slots, Tensor("", how))


def _of_layers(
    rule: Rule,
    fields: Mapping[str, str],
    places: Mapping[str, Module],
    changed: Mapping[str, Convention],
) -> Iterator[AnyLink]:
    """The links of a rule that names layers: one for each tensor of their kind."""
    own: list[Module] = []
    for template in rule.ours:
        path = filled_in(template, fields)
        if path not in places:
            raise _no_part(rule, path, places)
        own.append(places[path])
    bases = [filled_in(name, fields) for name in rule.theirs]
    known = convention(own[0].layer, changed)
    merged = BIASES[1] in known and _merges(own[0])
    for name, tensor in known.items():
        theirs = tuple(_tensor_name(base, name) for base in bases)
        if name in BIASES and merged:
            if name == BIASES[0]:
                yield _biases(bases[0], own[0])
        elif name == COUNT:
            yield Count(theirs)
        elif all(tensor.ours in module.slots for module in own):
            slots = [module.slots[tensor.ours] for module in own]
            yield _link(rule, theirs, slots, tensor)


def _merges(module: Module) -> bool:
    """Whether a recurrent layer has less than PyTorch's two biases."""
    bias, recurrent = (module.slots.get(n) for n in ("bias", "recurrent_bias"))
    if bias is None:
        return False
    return recurrent is None or recurrent.shape != bias.shape


def _biases(base: str, module: Module) -> Biases:
    theirs = tuple(_tensor_name(base, name) for name in BIASES)
    ours = [module.slots[n] for n in ("bias", "recurrent_bias") if n in module.slots]
    return Biases(theirs, tuple(ours))


def _tensor_name(base: str, name: str) -> str:
    """The name of a module's tensor; `*` says where it goes, the end being usual."""
    if "*" in base:
        return base.replace("*", name)
    return f"{base}.{name}" if base else name


def _link(
    rule: Rule, theirs: tuple[str, ...], slots: list[Slot], tensor: Tensor
) -> Link:
    tied = rule.tied or slots[0].tied
    how = tensor.axes
    if rule.transpose:
        how = how.reversed(len(slots[0].flat))
    if rule.axis is None:
        return Link(theirs, tuple(slots), how, optional=tied, written=not tied)
    shapes = [how.shape(slot.flat) for slot in slots]
    axis = _axis(rule, len(shapes[0]))
    sizes = _sizes(rule, sum(shape[axis] for shape in shapes), len(theirs))
    return Link(theirs, tuple(slots), how, axis, sizes)


def _axis(rule: Rule, ndim: int) -> int:
    """The axis from the front: one past the end is that of a matrix, and here the last."""
    axis = cast(int, rule.axis)
    return min(axis, ndim - 1) if axis >= 0 else max(axis + ndim, 0)


def _sizes(rule: Rule, total: int, count: int) -> tuple[int, ...]:
    """How long each tensor is along the axis: as told in proportion, or all alike."""
    parts = rule.sizes or (1,) * count
    if total % sum(parts):
        raise ValueError(
            f"mapping: {rule}: {total} cannot be cut in proportion {parts}. "
            "Pass the sizes= of the tensors that are fused."
        )
    return tuple(total // sum(parts) * part for part in parts)


def _no_part(rule: Rule, path: str, known: Mapping[str, Any]) -> ValueError:
    return ValueError(
        f"mapping: {rule} is split into {path!r} too, which the model has not. "
        + nearest(path, known)
    )
