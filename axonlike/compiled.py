"""Deferred activations compiled: a pure function that reads and edits one run."""

from __future__ import annotations

import operator
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from axonlike.deferred import (
    UNFILLED,
    Arg,
    Deferred,
    Edit,
    Mapped,
    On,
    Op,
    Site,
    base,
    ends,
    token,
)
from axonlike.edits import (
    Axis,
    check_not_empty,
    edited,
    is_traced,
    nowhere_unless,
    of_one_copy,
    part_of,
    put,
    replaced,
)
from axonlike.errors import PathError
from axonlike.evaluation import evaluate
from axonlike.frame import Run
from axonlike.layer import OPERATORS, Layer, as_layer
from axonlike.paths import join
from axonlike.sites import (
    Condition,
    Place,
    Points,
    Step,
    Target,
    emitted,
    is_met,
    is_one,
    may_mean_more,
    places,
    points_of,
    resolve,
    segments,
    spelled,
    within,
)
from axonlike.taps import Taps, is_mark, ran

_MOST_COMPILED = 64
"""How many compilations a model remembers, so that equal ones are traced once."""


class _Reader:
    """How a target's value is put together from what a run has taken."""

    def __init__(self, target: Target, points: Points) -> None:
        self.target, self.points = target, points
        self.segments = segments(target)

    def sites(self) -> list[str]:
        """Every site that has to be read."""
        found: list[str] = []
        self._read("", 0, 0, found.append, None)
        return found

    def value(self, taken: Mapping[str, Any], env: _Env) -> Any:
        """The value, in which each step that means several copies has an axis."""
        return self._read("", 0, 0, taken.__getitem__, env)

    def _read(self, prefix: str, k: int, axis: int, take: Any, env: Any) -> Any:
        here = join(prefix, self.segments[k])
        if k == len(self.target.steps):
            return take(here)
        step = self.target.steps[k]
        chosen = step.chosen
        alone = isinstance(chosen, int) and (
            step.copies.mode == "unrolled" or chosen in self.points.get(here, ())
        )
        if alone:
            return self._read(join(here, str(chosen)), k + 1, axis, take, env)
        at = axis + step.copies.outer
        if step.copies.mode != "unrolled":
            value = self._read(join(here, "*"), k + 1, axis + 1, take, env)
        else:
            numbers = range(step.copies.number)
            parts = [
                self._read(join(here, str(i)), k + 1, axis, take, env) for i in numbers
            ]
            if env is None:
                return None
            value = jax.tree.map(lambda *a: jnp.stack(a, at), *parts)
        return None if env is None else _selected(value, at, step, env)


def _selected(value: Any, axis: int, step: Step, env: _Env) -> Any:
    """The chosen copies along an axis."""
    chosen = step.chosen
    if chosen is None:
        return value
    if isinstance(chosen, Deferred):
        chosen = _numbers(step, env.value(chosen))
    index = (slice(None),) * axis + (chosen,)
    return jax.tree.map(partial(part_of, index=index), value)


def _numbers(step: Step, chosen: Any) -> Any:
    """Which copies are meant, from 0 on; an error where a plain number is none.

    Of numbers that are known only when the program runs, one that is none becomes the
    number of copies, which is none either.
    """
    number, site = step.copies.number, step.site
    if isinstance(chosen, (int, np.integer)):
        chosen = within(int(cast(Any, chosen)), number, site)
    found = jnp.asarray(chosen)
    if not jnp.issubdtype(found.dtype, jnp.integer):
        raise TypeError(f"activation: copies of {site[:-2]!r} are chosen by integers.")
    if not is_traced(found):
        for each in np.asarray(found).ravel():
            within(int(each), number, site)
    found = found.astype(jnp.int32)
    found = jnp.where(found < 0, found + number, found)
    return jnp.where((found < 0) | (found >= number), number, found)


# --- values in a run


class _Env:
    """What expressions are evaluated with: arguments, and what runs have taken."""

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        self.arguments = arguments
        self.taken: Mapping[str, Any] = {}
        self.readers: Mapping[Site, dict[str, _Reader]] = {}
        self.runs: dict[str, _Env] = {}
        self.running = False
        self.known: Callable[[], Iterable[str]] = tuple

    def value(self, node: Any) -> Any:
        """The value of an expression, or of a pytree of expressions."""
        if isinstance(node, Deferred):
            return self._value(node)
        if type(node) is dict:
            items = cast("dict[str, Any]", node).items()
            return {name: self.value(item) for name, item in items}
        if type(node) in (tuple, list):
            return type(node)(map(self.value, node))
        if isinstance(node, slice):
            return slice(*map(self.value, ends(node)))
        return jax.tree.map(self._leaf, node, is_leaf=_is_deferred)

    def _leaf(self, node: Any) -> Any:
        return self._value(node) if isinstance(node, Deferred) else node

    def _value(self, node: Deferred) -> Any:
        if isinstance(node, Arg):
            return self.arguments[node.name]
        if isinstance(node, On):
            return self.runs[node.run].value(node.expression)
        if isinstance(node, Op):
            args = list(map(self.value, node.args))
            kwargs = {name: self.value(item) for name, item in node.kwargs.items()}
            if node.function is operator.getitem:
                return self._part(node, *args)
            return node.function(*args, **kwargs)
        if isinstance(node, Site):
            found = self.readers[node]
            values = {path: self._read(node, path, r) for path, r in found.items()}
            targets = {path: r.target for path, r in found.items()}
            return values.popitem()[1] if is_one(node.path, targets) else values
        raise TypeError(f"deferred: expected an expression, got {node!r}.")

    def _part(self, node: Op, value: Any, index: Any) -> Any:
        """A part of a value; of what a glob means, that of each, or one by its path."""
        site, indices = base(node) or (None, ())
        if site is not None and not any(isinstance(i, str) for i in indices):
            found = {path: r.target for path, r in self.readers[site].items()}
            if not is_one(site.path, found):
                return {path: part_of(each, index) for path, each in value.items()}
        return part_of(value, index)

    def _read(self, node: Site, path: str, reader: _Reader) -> Any:
        """What a site holds; where it did not run, what is to be in its place."""
        sites = reader.sites()
        if not all(site in self.taken for site in sites):
            raise self._missing(path)
        value = reader.value(self.taken, self)
        if not any(ran(site) in self.taken for site in sites):
            return value
        if node.filled is UNFILLED:
            raise ValueError(
                f"activation: {path!r} may not run. Say what is read where it does not, "
                "in every place: .fill(0.0)."
            )
        marks = {site: self._ran(site) for site in sites}
        new = edited("set", path, value, self.value(node.filled))
        return jax.tree.map(jnp.where, reader.value(marks, self), value, new)

    def _missing(self, path: str) -> Exception:
        """The error of an activation that is not there, or not yet."""
        if self.running:
            return ValueError(
                f"edits: {path!r} is needed before the run comes to it. An edit takes what "
                "comes before its target and its copies. Write .map(function) for the "
                "target's own value, on('name', ...) for that of another run."
            )
        return _unmet(path, self.known())

    def _ran(self, site: str) -> Any:
        """Where a site ran: as the value there, of booleans."""
        everywhere = jax.tree.map(partial(jnp.ones_like, dtype=bool), self.taken[site])
        return self.taken.get(ran(site), everywhere)


def _nodes(tree: Any, *, runs: bool = True) -> Iterator[Deferred]:
    """Every expression in a pytree, those inside of others too, of other runs or not."""
    for leaf in jax.tree.leaves(tree, is_leaf=_is_deferred):
        if isinstance(leaf, slice):
            yield from _nodes(list(ends(leaf)), runs=runs)
        if isinstance(leaf, Deferred):
            yield leaf
            if runs or not isinstance(leaf, On):
                yield from _nodes(list(leaf.parts), runs=runs)


def _sites(tree: Any) -> list[Site]:
    """The activations in a pytree of expressions, those of other runs left out."""
    return [node for node in _nodes(tree, runs=False) if isinstance(node, Site)]


def _is_deferred(x: Any) -> bool:
    return isinstance(x, Deferred)


# --- edits


def _edits_of(edits: Any) -> tuple[Edit, ...]:
    if isinstance(edits, (Edit, Deferred)) or not isinstance(edits, Iterable):
        raise TypeError(f"edits: expected a list, got {edits!r}. Write edits=[...].")
    return tuple(map(_edit_of, cast("Iterable[Any]", edits)))


def _edit_of(item: Any) -> Edit:
    """An edit as it was made by `.set(...)` and its like, or by `.map(...)`."""
    if isinstance(item, Edit):
        return item
    target = item.args[0] if isinstance(item, Mapped) else None
    if isinstance(target, Deferred) and base(target) is not None:
        return Edit(target, "map", item)
    raise TypeError(
        f"edits: expected model['path'].set(...), .add, .scale, .map and the like, "
        f"got {item!r}."
    )


def _changed(
    edit: Edit, value: Any, env: _Env, at: Mapping[str, Any], place: Place
) -> Any:
    """What an edit makes of the value at its target."""
    indices = env.value(cast(Any, base(edit.target))[1])
    axes = _axes(place, env, at)
    indices = of_one_copy(repr(edit.target), value, indices, len(axes))
    check_not_empty(repr(edit.target), value, indices)
    return put(value, indices, lambda part: _part(edit, part, env, axes))


def _part(edit: Edit, part: Any, env: _Env, axes: list[Axis]) -> Any:
    name = repr(edit.target)
    if edit.verb == "map":
        op = cast(Op, edit.value)
        rest = map(env.value, op.args[1:])
        kwargs = {name: env.value(item) for name, item in op.kwargs.items()}
        return replaced(name, part, op.function(part, *rest, **kwargs))
    operand = env.value(edit.value)
    return edited(edit.verb, name, part, operand, axes)


# --- the compiled function


def compile(
    tree: Any, edits: Iterable[Any] = (), model: Layer | None = None
) -> Compiled:
    """A pure function that evaluates expressions in one run of their model.

    It runs what the expressions need and nothing later: a scan over blocks ends at the
    last block that is read. Equal compilations are equal functions: `jax.jit` traces once.

    Args:
        tree: an expression, or a pytree of them.
        edits: what to change on the way, in the order of this list where two meet.
        model: whose activations these are, where the expressions do not say.

    Shapes:
        Those of the activations; a `*` for copies is an axis in front.

    Raises:
        PathError: a path means no activation.
        ValueError: the model is not known, or there are several.
        TypeError: an edit is none.

    Example:
        >>> import jax, jax.numpy as jnp, axonlike as al
        >>> model = al.serial(body=al.dense(8) >> jax.nn.relu, head=al.dense(2))
        >>> params, state = model.init(jax.random.key(0), (None, 4))
        >>> read = jax.jit(al.compile(model["body"].mean()))
        >>> read(params, state, jnp.ones((3, 4))).shape
        ()
        >>> without = al.compile(model["output"], edits=[model["body"].scale(0.0)])
        >>> bool((without(params, state, jnp.ones((3, 4))) == 0).all())
        True
    """
    made = Compiled(tree, _edits_of(edits), model)
    known = made.model.identity.memory.setdefault("compiled", OrderedDict())
    found = known.setdefault(made, made)
    known.move_to_end(found)
    while len(known) > _MOST_COMPILED:
        known.popitem(last=False)
    return found


class Compiled:
    """A pure function `(params, state, x, *, key=None, train=False, **arguments)`.

    Made by `compile`. `arguments` are the names that it takes by keyword.
    """

    def __init__(self, tree: Any, edits: tuple[Edit, ...], model: Layer | None) -> None:
        self.tree, self.edits = tree, edits
        _check_tree(tree)
        nodes = list(_nodes([tree, *(list(edit) for edit in edits)]))
        self.model = _model_of(nodes, model)
        runs = {node.run: None for node in nodes if isinstance(node, On)}
        names = {node.name: None for node in nodes if isinstance(node, Arg)}
        self.arguments = (*names, *runs)
        _check_arguments(names, runs)
        here = _sites([tree, *(list(edit) for edit in edits)])
        targets = [cast(Site, cast(Any, base(edit.target))[0]) for edit in edits]
        self._main = _Plan(self.model, _reads(here, targets, edits), edits)
        self._runs = {
            run: _Plan(
                self.model,
                [
                    site
                    for node in nodes
                    if isinstance(node, On) and node.run == run
                    for site in _sites(node.expression)
                ],
                (),
            )
            for run in runs
        }

    def __call__(
        self,
        params: Any,
        state: Any,
        x: Any,
        *,
        key: Any = None,
        train: bool = False,
        **arguments: Any,
    ) -> Any:
        """Evaluates the expressions in one run.

        Args:
            params: of the model.
            state: of the model.
            x: its input.
            key: for layers that draw random numbers.
            train: whether to run as in training.
            arguments: what `arg`, `index` and `on` name.

        Returns:
            The tree, with values in place of expressions.
        """
        wrong = set(arguments) ^ set(self.arguments)
        if wrong:
            raise TypeError(
                f"compile: expected the arguments {sorted(self.arguments)}, got "
                f"{sorted(arguments)}."
            )
        env = _Env(arguments)
        for run, plan in self._runs.items():
            env.runs[run] = _Env(arguments)
            env.runs[run].runs = env.runs
            plan.run(params, state, arguments[run], key, train, env.runs[run])
        self._main.run(params, state, x, key, train, env)
        return env.value(self.tree)

    @property
    def _token(self) -> Any:
        return token((self.tree, list(map(tuple, self.edits)))), self.model.identity

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Compiled):
            return NotImplemented
        return self._token == other._token

    def __hash__(self) -> int:
        return hash((repr(self.tree), self.model.hash))

    def __repr__(self) -> str:
        edits = f", edits={list(self.edits)!r}" if self.edits else ""
        return f"compile({self.tree!r}{edits})"


def _check_tree(tree: Any) -> None:
    """Refuses an edit where a value is expected."""
    found = jax.tree.leaves(tree, is_leaf=lambda node: isinstance(node, Edit))
    for node in found:
        if isinstance(node, Edit):
            raise TypeError(
                f"compile: {node!r} is an edit, and nothing to read. "
                "Write compile(expression, edits=[...])."
            )


def _check_arguments(names: Iterable[str], runs: Iterable[str]) -> None:
    both = sorted({*names} & {*runs})
    if both:
        raise ValueError(
            f"compile: {both[0]!r} is the input of a run and an argument. "
            "Rename one of them."
        )


def _model_of(nodes: list[Any], model: Layer | None) -> Layer:
    models = {
        n.model: None for n in nodes if isinstance(n, Site) and n.model is not None
    }
    if model is not None:
        models[as_layer(model, "compile")] = None
    if len(models) != 1:
        got = "no model" if not models else f"{len(models)} models"
        raise ValueError(
            f"compile: expected expressions of one model, got {got}. "
            "Write model['path'], or pass model=."
        )
    return next(iter(models))


def _reads(here: list[Site], targets: list[Site], edits: Any) -> list[Site]:
    """The sites that are read, and not only edited."""
    left = list(here)
    for target, edit in zip(targets, edits, strict=True):
        for _ in range(1 + (edit.verb == "map")):
            at = next((i for i, site in enumerate(left) if site is target), None)
            if at is not None:
                del left[at]
    return left


class NoEffectError(ValueError):
    """An edit that changes nothing that is read; `number` is its place in the list."""

    def __init__(self, number: int, text: str) -> None:
        super().__init__(text)
        self.number = number


class _Plan:
    """What one run of a model reads and edits."""

    def __init__(
        self,
        model: Layer,
        reads: list[Site],
        edits: tuple[Edit, ...],
        run: Iterable[str] = (),
    ) -> None:
        self.model, self.asked, self.edits = model, reads, edits
        found = {site: resolve(model, site.path, run) for site in reads}
        paths = [cast(Any, base(edit.target))[0].path for edit in edits]
        targets = [resolve(model, path, run) for path in paths]
        every = {site.path: None for site in reads} | dict.fromkeys(paths)
        self.is_open = not run and any(may_mean_more(model, path) for path in every)
        read = [t for each in found.values() for t in each.values()]
        points = points_of(read, [t for each in targets for t in each.values()])
        self.readers = {
            site: {path: _Reader(target, points) for path, target in each.items()}
            for site, each in found.items()
        }
        self.places = [
            {
                "" if is_one(path, each) else name: list(places(target, points))
                for name, target in each.items()
            }
            for path, each in zip(paths, targets, strict=True)
        ]
        self.points = {site: tuple(sorted(numbers)) for site, numbers in points.items()}
        self.reads = _sites_of(self.readers.values())
        self.filled = _sites_of(
            each for site, each in self.readers.items() if site.filled is not UNFILLED
        )

    def run(
        self, params: Any, state: Any, x: Any, key: Any, train: bool, env: _Env
    ) -> None:
        """Runs the model as far as it is read; what was taken goes into `env`."""
        if self.is_open:
            every = sites_of_run(self.model, params, state, x, key, train)
            whole = _Plan(self.model, self.asked, self.edits, every)
            whole.run(params, state, x, key, train, env)
            return
        env.readers = self.readers
        applied: set[int] = set()
        indexed = _by_site(self.edits, self.places, env, applied)
        taps = Taps(
            reads=self.reads,
            indexed=MappingProxyType(indexed),
            points=MappingProxyType(self.points),
            stop=True,
            filled=self.filled,
        )
        taken: dict[str, Any] = {}
        env.taken = taken
        if self.reads or self.edits:
            env.known = partial(sites_of_run, self.model, params, state, x, key, train)
            env.running = True
            evaluate(self.model, params, state, x, Run(key, train, taps=taps), taken)
            env.running = False
        for i, edit in enumerate(self.edits):
            if i not in applied:
                self._check_met(i, env.known)
                raise NoEffectError(
                    i, f"edits: {edit!r} has no effect: what is read does not need it, or "
                    "comes before it. Read something later, or leave it out.",
                )  # fmt: skip

    def _check_met(self, i: int, known: Callable[[], Iterable[str]]) -> None:
        """Refuses to edit what no run comes to: what nothing emits, a use too many."""
        sites = [place.site for each in self.places[i].values() for place in each]
        certain = not emitted(self.model, sites) and not any("#" in s for s in sites)
        if certain or is_met(sites, run := known()):
            return
        site, _ = cast(Any, base(self.edits[i].target))
        raise _unmet("/".join(map(spelled, site.path)), run)


def _unmet(path: str, run: Iterable[str]) -> PathError:
    hint = "The run did not come to it: nothing calls it there."
    return PathError("activation", path, run, hint)


def sites_of_run(
    model: Layer, params: Any, state: Any, x: Any, key: Any, train: bool
) -> list[str]:
    """Every site of a run, what layers emit and further uses too: on shapes alone."""

    def run(params: Any, state: Any, x: Any) -> dict[str, Any]:
        taps = Taps(every=True)
        return evaluate(model, params, state, x, Run(key, train, taps=taps))[2]

    return [s for s in jax.eval_shape(run, params, state, x) if not is_mark(s)]


def _sites_of(readers: Iterable[Mapping[str, _Reader]]) -> frozenset[str]:
    """Every site that readers read."""
    found = [reader.sites() for each in readers for reader in each.values()]
    return frozenset(site for sites in found for site in sites)


def _by_site(
    edits: tuple[Edit, ...],
    places: list[dict[str, list[Place]]],
    env: _Env,
    applied: set[int],
) -> dict[str, tuple[Any, ...]]:
    """What is done at each site, in the order of the edits; of a glob, by path."""
    found: dict[str, tuple[Any, ...]] = {}
    for i, (edit, each) in enumerate(zip(edits, places, strict=True)):
        for path, its in each.items():
            own = _at_path(edit, path, list(each))
            for place in its:

                def apply(
                    value: Any,
                    at: Mapping[str, Any],
                    i: int = i,
                    edit: Edit = own,
                    place: Place = place,
                ) -> Any:
                    applied.add(i)
                    return _conditional(edit, value, env, at, place)

                found[place.site] = (*found.get(place.site, ()), apply)
    return found


def _at_path(edit: Edit, path: str, every: list[str]) -> Edit:
    """The edit of one activation out of those that a glob means."""
    if not path or edit.verb == "map":
        return edit
    return edit._replace(value=Op(_own_or_same, (edit.value, path, every), {}))


def _own_or_same(value: Any, path: str, every: list[str]) -> Any:
    """What is for one path, of a dict by path as a glob is read; else the same for all."""
    if type(value) is not dict or sorted(cast("dict[str, Any]", value)) != sorted(
        every
    ):
        return cast(Any, value)
    return cast("dict[str, Any]", value)[path]


def _conditional(
    edit: Edit, value: Any, env: _Env, at: Mapping[str, Any], place: Place
) -> Any:
    """The edited value, where this copy is one of those that the edit is for."""
    holds: Any = None
    known: Any = None
    for condition in place.conditions:
        here, there = _holds_at(condition, env, at)
        holds = here if holds is None else holds & here
        known = there if known is None else known & there
    if holds is None:
        return _changed(edit, value, env, at, place)

    def changed(value: Any) -> Any:
        return nowhere_unless(known, _changed(edit, value, env, at, place))

    return cast(Any, jax.lax.cond(holds | ~known, changed, _same, value))


def _same(value: Any) -> Any:
    return value


def _holds_at(
    condition: Condition, env: _Env, at: Mapping[str, Any]
) -> tuple[Any, Any]:
    """Whether this copy is one of those chosen, and whether those are copies at all."""
    numbers = jnp.atleast_1d(_numbers(condition.step, env.value(condition.chosen)))
    chosen = jnp.any(numbers == _copy(condition, at))
    return chosen, jnp.all(numbers < condition.step.copies.number)


def _axes(place: Place, env: _Env, at: Mapping[str, Any]) -> list[Axis]:
    """The axes that stand in front of what is read, the outermost first.

    Those of chosen copies, and of the passes of what runs a layer several times.
    """
    found = [(_depth(site), 1, Axis(number, n)) for site, number, n in at.get("", ())]
    for axis in place.axes:
        for along in _along(axis, env, at):
            found.append((_depth(axis.step.site), 0, along))
    return [axis for *_, axis in sorted(found, key=operator.itemgetter(0, 1))]


def _depth(site: str) -> int:
    return len(site.split("/")) if site else 0


def _along(axis: Condition, env: _Env, at: Mapping[str, Any]) -> list[Axis]:
    """Where this copy is along the axis of the chosen ones; one alone has no axis."""
    if axis.chosen is None:
        return [Axis(_copy(axis, at), axis.step.copies.number)]
    numbers = _numbers(axis.step, env.value(axis.chosen))
    if not numbers.ndim:
        return []
    return [Axis(jnp.argmax(numbers == _copy(axis, at)), numbers.shape[0])]


def _copy(condition: Condition, at: Mapping[str, Any]) -> Any:
    """The number of this copy."""
    copy = condition.copy
    return jnp.asarray(copy if isinstance(copy, int) else at[copy], jnp.int32)


OPERATORS["compile"] = cast(Any, compile)
