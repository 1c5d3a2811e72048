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
    places,
    points_of,
    resolve,
    segments,
    within,
)
from axonlike.taps import Taps, ran

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
                return part_of(*args)
            return node.function(*args, **kwargs)
        if isinstance(node, Site):
            found = self.readers[node]
            values = {path: self._read(node, path, r) for path, r in found.items()}
            return values.popitem()[1] if is_one(node, found) else values
        raise TypeError(f"deferred: expected an expression, got {node!r}.")

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
        hint = "The run did not come to it: nothing calls it there."
        return PathError("activation", path, self.known(), hint)

    def _ran(self, site: str) -> Any:
        """Where a site ran: as the value there, of booleans."""
        everywhere = jax.tree.map(partial(jnp.ones_like, dtype=bool), self.taken[site])
        return self.taken.get(ran(site), everywhere)


def is_one(node: Site, found: Mapping[str, Any]) -> bool:
    """Whether a path means one site: its globs only choose copies."""
    plain = "/".join("*" if not isinstance(s, str) else s for s in node.path)
    return (
        len(found) == 1
        and not any(c in plain.replace("*", "") for c in "{}")
        and ("**" not in plain)
    )


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
    axes = sum(_has_axis(axis, env) for axis in place.axes) + at.get("", 0)
    if edit.verb == "copy" and at.get(""):
        raise ValueError(
            f"value_and_grads: {edit.target!r} is inside of a vmap, a scan or a tied "
            "repeat, which runs it several times. Take the gradient for what goes in or "
            "comes out of that."
        )
    indices = of_one_copy(repr(edit.target), value, indices, axes)
    check_not_empty(repr(edit.target), value, indices)
    return put(value, indices, lambda part: _part(edit, part, env, at, place))


def _part(edit: Edit, part: Any, env: _Env, at: Mapping[str, Any], place: Place) -> Any:
    name = repr(edit.target)
    if edit.verb == "map":
        op = cast(Op, edit.value)
        rest = map(env.value, op.args[1:])
        kwargs = {name: env.value(item) for name, item in op.kwargs.items()}
        return replaced(name, part, op.function(part, *rest, **kwargs))
    operand = env.value(edit.value)
    if edit.verb == "copy":  # one for each copy, along its leading axes
        chosen = sum((_along(axis, env, at) for axis in place.axes), ())
        operand = jax.tree.map(operator.itemgetter(chosen), operand)
        return jax.tree.map(jnp.add, part, operand)
    return edited(edit.verb, name, part, operand)


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
        self, model: Layer, reads: list[Site], edits: tuple[Edit, ...]
    ) -> None:
        self.model, self.edits = model, edits
        found = {site: resolve(model, site.path) for site in reads}
        targets = [
            list(resolve(model, cast(Any, base(edit.target))[0].path).values())
            for edit in edits
        ]
        read = [t for each in found.values() for t in each.values()]
        points = points_of(read, [t for each in targets for t in each])
        self.readers = {
            site: {path: _Reader(target, points) for path, target in each.items()}
            for site, each in found.items()
        }
        self.places = [[p for t in each for p in places(t, points)] for each in targets]
        self.points = {site: tuple(sorted(numbers)) for site, numbers in points.items()}
        self.reads = _sites_of(self.readers.values())
        self.filled = _sites_of(
            each for site, each in self.readers.items() if site.filled is not UNFILLED
        )

    def run(
        self, params: Any, state: Any, x: Any, key: Any, train: bool, env: _Env
    ) -> None:
        """Runs the model as far as it is read; what was taken goes into `env`."""
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
            env.known = partial(_known, self.model, x)
            env.running = True
            evaluate(self.model, params, state, x, Run(key, train, taps=taps), taken)
            env.running = False
        for i, edit in enumerate(self.edits):
            if i not in applied:
                raise NoEffectError(
                    i, f"edits: {edit!r} has no effect: what is read does not need it, or "
                    "comes before it. Read something later, or leave it out.",
                )  # fmt: skip


def _known(model: Layer, x: Any) -> list[str]:
    """Every site of a model, what its layers emit and second uses too."""
    return list(
        model.sites(jax.eval_shape(lambda: jax.tree.map(cast(Any, jnp.asarray), x)))
    )


def _sites_of(readers: Iterable[Mapping[str, _Reader]]) -> frozenset[str]:
    """Every site that readers read."""
    found = [reader.sites() for each in readers for reader in each.values()]
    return frozenset(site for sites in found for site in sites)


def _by_site(
    edits: tuple[Edit, ...], places: list[list[Place]], env: _Env, applied: set[int]
) -> dict[str, tuple[Any, ...]]:
    """What is done at each site, in the order of the edits."""
    found: dict[str, tuple[Any, ...]] = {}
    for i, (edit, each) in enumerate(zip(edits, places, strict=True)):
        for place in each:

            def apply(
                value: Any,
                at: Mapping[str, Any],
                i: int = i,
                edit: Edit = edit,
                place: Place = place,
            ) -> Any:
                applied.add(i)
                return _conditional(edit, value, env, at, place)

            found[place.site] = (*found.get(place.site, ()), apply)
    return found


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


def _along(axis: Condition, env: _Env, at: Mapping[str, Any]) -> tuple[Any, ...]:
    """Where this copy is along the axis of the chosen ones; one alone has no axis."""
    if axis.chosen is None:
        return (_copy(axis, at),)
    numbers = _numbers(axis.step, env.value(axis.chosen))
    return (jnp.argmax(numbers == _copy(axis, at)),) if numbers.ndim else ()


def _has_axis(axis: Condition, env: _Env) -> bool:
    """Whether what is chosen is read with an axis in front: several, not a number."""
    plain = axis.chosen is None or isinstance(axis.chosen, tuple)
    return plain or jnp.ndim(env.value(axis.chosen)) > 0


def _copy(condition: Condition, at: Mapping[str, Any]) -> Any:
    """The number of this copy."""
    copy = condition.copy
    return jnp.asarray(copy if isinstance(copy, int) else at[copy], jnp.int32)


OPERATORS["compile"] = cast(Any, compile)
