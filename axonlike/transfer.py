"""What of a model's weights carries over to another model, and what it makes anew."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast

import jax

from axonlike import values
from axonlike.errors import PathError, ShapeError
from axonlike.evaluation import recorded
from axonlike.initialize import Leaf, Recorder, arrays_of, by_leaf, put
from axonlike.layer import Layer
from axonlike.params import paths
from axonlike.paths import join
from axonlike.spec import as_spec, show
from axonlike.spots import spots
from axonlike.types import Key, Params, PyTree, State

Trees = tuple[Params, State]
Own = Callable[[str], bool]
"""Whether the array at a path is one of those meant."""


class Migration(NamedTuple):
    """What `migrate` did with every array, by path.

    `kept` are the same arrays, `renamed` (`{new: old}`) the same under another path,
    `initialized` new ones, `dropped` those that the new model has no place for.
    `suggested` (`{new: old}`) are layers that were initialized though one of their shapes
    was dropped: pass them as `renames` if they are the same.

    Example:
        >>> import jax, axonlike as al
        >>> old, new = al.serial(a=al.dense(2)), al.serial(b=al.dense(2))
        >>> params, state = old.init(jax.random.key(0), (None, 3))
        >>> _, _, report = al.migrate(old, new, params, state, key=jax.random.key(1))
        >>> report.suggested
        {'b': 'a'}
    """

    kept: list[str]
    renamed: dict[str, str]
    initialized: list[str]
    dropped: list[str]
    suggested: dict[str, str]

    def __str__(self) -> str:
        lines = [f"kept {len(self.kept)} arrays"]
        lines += [f"renamed {old} -> {new}" for new, old in self.renamed.items()]
        lines += [f"initialized {path}" for path in self.initialized]
        lines += [f"dropped {path}" for path in self.dropped]
        lines += [
            f"suggested: renames={{{new!r}: {old!r}}}"
            for new, old in self.suggested.items()
        ]
        return "\n".join(lines)


class Change(NamedTuple):
    """One difference between two models: what stands at a path in each, or None."""

    path: str
    before: Layer | None
    after: Layer | None

    def __str__(self) -> str:
        before, after = (
            "nothing" if layer is None else layer.headline
            for layer in (self.before, self.after)
        )
        return f"{self.path or 'the model'}: {before} -> {after}"


def diff(before: Layer, after: Layer) -> list[Change]:
    """The paths at which two models differ, each layer compared without its children.

    Args:
        before: a model.
        after: another.

    Shapes:
        No arrays.

    Example:
        >>> import axonlike as al
        >>> a = al.serial(body=al.dense(8), head=al.dense(2))
        >>> b = al.serial(body=al.dense(9), head=al.dense(2))
        >>> print(*al.diff(a, b))
        body: dense(features=8) -> dense(features=9)
    """
    ours, theirs = _by_path(before), _by_path(after)
    found: list[Change] = []
    for path in dict.fromkeys([*ours, *theirs]):
        a, b = ours.get(path, []), theirs.get(path, [])
        for i in range(max(len(a), len(b))):
            pair = [side[i] if i < len(side) else None for side in (a, b)]
            if _own(pair[0]) != _own(pair[1]) or _reordered(*pair):
                found.append(Change(path, *pair))
    return found


def _by_path(model: Layer) -> dict[str, list[Layer]]:
    found: dict[str, list[Layer]] = {}
    for spot in spots(model):
        for path in spot.paths:
            found.setdefault(path, []).append(spot.layer)
    return found


def _own(layer: Layer | None) -> Any:
    """A layer as it is without its children; how many copies a repeat has is its own."""
    if layer is None:
        return None
    config = values.token(_without_layers(dict(layer.config)), id)
    return layer.factory, layer.partial, config


def _reordered(a: Layer | None, b: Layer | None) -> bool:
    """Whether two layers have the same children in another order."""
    if a is None or b is None or set(a.children) != set(b.children):
        return False
    return tuple(a.children) != tuple(b.children)


def _without_layers(value: Any) -> Any:
    """A config value with nothing where layers are."""
    if isinstance(value, Layer):
        return None
    if isinstance(value, dict):
        items = cast("dict[Any, Any]", value).items()
        return {key: _without_layers(item) for key, item in items}
    if type(value) in (tuple, list):
        return type(value)(map(_without_layers, value))
    return value


def migrate(
    before: Layer,
    after: Layer,
    params: Params,
    state: State,
    *,
    key: Key,
    renames: Mapping[str, str] | None = None,
    spec: PyTree = None,
) -> tuple[Params, State, Migration]:
    """Weights for a changed model: those of the old one where both have the same array.

    An array is kept where the new model has one of its path, shape and dtype; all else is
    initialized, as `after.init` would. The report says what became of every array.

    Args:
        before: the model that the params are of.
        after: the model that they shall be for.
        params: of `before`.
        state: of `before`.
        key: for new weights.
        renames: `{new path: old path}` of layers or arrays that were renamed.
        spec: of the input, as for `init`; None: that of the last `init` of `before` in
            this process.

    Shapes:
        As `after.init` makes them.

    Raises:
        PathError: a rename names nothing.
        ValueError: the spec is not known.

    Example:
        >>> import jax, axonlike as al
        >>> old = al.dense(8) >> al.dense(2)
        >>> params, state = old.init(jax.random.key(0), (None, 4))
        >>> new = al.dense(8) >> al.layer_norm() >> al.dense(2)
        >>> params, state, report = al.migrate(
        ...     old, new, params, state, key=jax.random.key(1))
        >>> sorted(report.initialized)
        ['layer_norm/bias', 'layer_norm/scale']
    """
    specs = spec_of("migrate", before, params, spec)
    recorder = recorded(after, specs)[1]
    _remember(after, specs)
    names = dict(renames or {})
    old = dict(paths(params)), dict(paths(state))
    _check_renames(names, recorder, [*old[0], *old[1]])
    report = Migration([], {}, [], [], {})
    used: set[str] = set()

    def known(kind: int, path: str, wanted: Any) -> Any:
        source = _renamed(path, names)
        array = old[kind].get(source)
        if array is None or show(array) != show(wanted):
            report.initialized.append(path)
            return None
        if source in used:
            raise ValueError(
                f"migrate: {source!r} would serve twice, for {path!r} too. "
                "An array has one place; tie the layers, or rename one of them away."
            )
        used.add(source)
        if source == path:
            report.kept.append(path)
        else:
            report.renamed[path] = source
        return array

    made = filled(recorder, known, key)
    report.dropped.extend(p for side in old for p in side if p not in used)
    report.suggested.update(_suggested(report, made, old))
    return *made, report


def _check_renames(names: Mapping[str, str], recorder: Recorder, old: Any) -> None:
    leaves = recorder.leaves.values()
    new = [path for leaf in leaves for side in arrays_of(leaf) for path, _ in side]
    for target, source in names.items():
        for path, known in ((target, new), (source, old)):
            if path and not any(_is_at(p, path) for p in known):
                homes = {p.rpartition("/")[0] for p in known}
                raise PathError("migrate: renames", path, [*sorted(homes), *known])


def _renamed(path: str, names: Mapping[str, str]) -> str:
    """The old path of an array: by the longest rename that means it."""
    for target in sorted(names, key=len, reverse=True):
        if not target or _is_at(path, target):
            rest = path[len(target) :].lstrip("/")
            return join(names[target], rest)
    return path


def _suggested(report: Migration, made: Trees, old: Any) -> dict[str, str]:
    """Layers made anew, and dropped ones with arrays of just their names and shapes."""
    gone = _homes(
        {p: a for side in old for p, a in side.items() if p in report.dropped}
    )
    every = {path: leaf for tree in made for path, leaf in paths(tree)}
    fresh = _homes({path: every[path] for path in report.initialized})
    found: dict[str, str] = {}
    for home, arrays in fresh.items():
        match = next((h for h, other in gone.items() if other == arrays), None)
        if match is not None and match != home:
            found[home] = match
            del gone[match]
    return found


def _homes(arrays: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """The arrays of each layer: names, shapes and dtypes."""
    found: dict[str, dict[str, str]] = {}
    for path, array in arrays.items():
        home, _, name = path.rpartition("/")
        found.setdefault(home, {})[name] = show(array)
    return found


def carried(
    verb: str,
    old: tuple[Layer, Params, State],
    after: Layer,
    gone: Own,
    fresh: Own,
    key: Key | None,
    spec: PyTree,
) -> tuple[Layer, Params, State]:
    """A rewritten model with its weights: those of before, but new ones where it is new.

    `gone` says of a path of before that it has none afterwards, `fresh` of one afterwards
    that it is new.
    """
    before, params, state = old
    kept = without(params, gone), without(state, gone)
    known = before.identity.memory.get("spec") if spec is None else as_spec(spec)
    if not _makes(after, fresh):
        if spec is not None:
            recorded(after, known)
        _remember(after, known)
        return after, *kept
    if key is None:
        raise ValueError(
            f"{verb}: the new layers have weights to make. "
            "Pass key=jax.random.key(seed)."
        )
    known = spec_of(verb, before, params, spec)
    _remember(after, known)
    arrays = dict(paths(kept[0])), dict(paths(kept[1]))
    used: set[tuple[int, str]] = set()

    def find(kind: int, path: str, wanted: Any) -> Any:
        array = arrays[kind].get(path)
        if array is None and not fresh(path):
            hint = "Pass the params and state that init of this model returned."
            raise PathError(verb, path, list(arrays[kind]), hint)
        if array is not None and tuple(array.shape) != tuple(wanted.shape):
            raise ShapeError(
                verb, f"{path!r} as for such an input, {show(wanted)}", show(array),
                "Replace that layer too: its input is another one now.",
            )  # fmt: skip
        used.add((kind, path))
        return array

    made = filled(recorded(after, known)[1], find, key)
    lost = [p for kind in (0, 1) for p in arrays[kind] if (kind, p) not in used]
    if lost:
        raise ValueError(
            f"{verb}: the new model has no place for {lost[0]!r}. "
            "Pass the params that init of this model returned."
        )
    return after, *made


def spec_of(verb: str, before: Layer, params: Params, spec: PyTree) -> PyTree:
    """The spec of a model's input: as given, or that of its last init in this process.

    In either case one that makes such params.
    """
    known = before.identity.memory.get("spec") if spec is None else as_spec(spec)
    if known is None:
        raise ValueError(
            f"{verb}: new weights depend on the shape of the model's input, which is not "
            "known here. Pass spec=, as for init: spec=al.spec('b 28 28 1')."
        )
    arrays = dict(paths(params))
    for leaf in recorded(before, known)[1].leaves.values():
        for path, wanted in arrays_of(leaf)[0]:
            array = arrays.get(path)
            if array is not None and tuple(array.shape) != tuple(wanted.shape):
                raise ShapeError(
                    verb, f"{path!r} as for the input {show(known)}, {show(wanted)}",
                    show(array), "Pass the spec= of the input that the params are for.",
                )  # fmt: skip
    return known


def _remember(model: Layer, spec: PyTree) -> None:
    if spec is not None:
        model.identity.memory["spec"] = spec


def without(tree: PyTree, gone: Own, path: str = "") -> Any:
    """A tree without some of its arrays, and without empty dicts."""
    kept: dict[str, Any] = {}
    for name, value in tree.items():
        below = join(path, str(name))
        if isinstance(value, dict):
            inner = without(value, gone, below)
            if inner:
                kept[name] = inner
        elif not gone(below):
            kept[name] = value
    return kept


def _makes(model: Layer, fresh: Own) -> bool:
    """Whether a layer where the model is new may have weights."""
    return any(
        spot.layer.init_function is not None
        for spot in spots(model)
        if any(fresh(join(path, "_")) for path in spot.paths)
    )


def filled(
    recorder: Recorder, known: Any, key: Key, places: Mapping[str, Any] | None = None
) -> Trees:
    """Params and state of every leaf: arrays that are known, and new ones.

    `places` are the shardings of new ones by path.
    """
    trees: tuple[Params, State] = ({}, {})
    rules = by_leaf(recorder, places or {})
    for leaf in recorder.leaves.values():
        made: Any = None
        for kind, specs in enumerate((leaf.specs, leaf.plan.state)):
            arrays: dict[str, Any] = {}
            for name, spec in specs.items():
                value = _known(leaf, name, spec, kind, known)
                if value is None:
                    if made is None:
                        made = leaf.arrays(key, rules.get(leaf.path))
                    value = made[kind][name]
                arrays[name] = value
            put(trees[kind], leaf.path, arrays)
    return trees


def _known(leaf: Leaf, name: str, spec: Any, kind: int, known: Any) -> Any:
    """One array of a leaf, which may be a tree of arrays, if it is known."""
    start = join(leaf.path, name)
    every = dict(arrays_of(leaf)[kind])
    found = {p: known(kind, p, every[p]) for p in every if _is_at(p, start)}
    if any(array is None for array in found.values()):
        return None
    structure = cast(Any, jax.tree.structure(spec))
    return jax.tree.unflatten(structure, list(found.values()))


def _is_at(path: str, start: str) -> bool:
    return path == start or path.startswith(f"{start}/")
