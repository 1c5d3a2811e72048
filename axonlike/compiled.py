"""Deferred activations compiled: a pure function that reads and edits one run."""

from __future__ import annotations

import operator
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from axonlike.deferred import Arg, Deferred, Edit, Mapped, On, Op, Site, base, token
from axonlike.errors import PathError, ShapeError
from axonlike.evaluation import evaluate
from axonlike.frame import Run
from axonlike.layer import OPERATORS, Layer
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
from axonlike.spec import show
from axonlike.taps import Taps

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
        if step.copies.mode != "unrolled":
            value = self._read(join(here, "*"), k + 1, axis + 1, take, env)
        else:
            numbers = range(step.copies.number)
            parts = [
                self._read(join(here, str(i)), k + 1, axis, take, env) for i in numbers
            ]
            if env is None:
                return None
            value = jax.tree.map(lambda *a: jnp.stack(a, axis), *parts)
        return None if env is None else _selected(value, axis, step, env)


def _selected(value: Any, axis: int, step: Step, env: _Env) -> Any:
    """The chosen copies along an axis."""
    chosen = step.chosen
    if chosen is None:
        return value
    if isinstance(chosen, Deferred):
        chosen = _numbers(step, env.value(chosen))
    index = (slice(None),) * axis + (chosen,)
    return jax.tree.map(operator.itemgetter(index), value)


def _numbers(step: Step, chosen: Any) -> Any:
    """Which copies are meant, from 0 on; an error where a plain number is none."""
    if isinstance(chosen, (int, np.integer)):
        chosen = within(int(cast(Any, chosen)), step.copies.number, step.site)
    found = jnp.asarray(chosen, jnp.int32)
    return jnp.where(found < 0, found + step.copies.number, found)


# --- values in a run


class _Env:
    """What expressions are evaluated with: arguments, and what runs have taken."""

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        self.arguments = arguments
        self.taken: Mapping[str, Any] = {}
        self.readers: Mapping[Site, dict[str, _Reader]] = {}
        self.runs: dict[str, _Env] = {}

    def value(self, node: Any) -> Any:
        """The value of an expression, or of a pytree of expressions."""
        if isinstance(node, Deferred):
            return self._value(node)
        if type(node) is dict:
            items = cast("dict[str, Any]", node).items()
            return {name: self.value(item) for name, item in items}
        if type(node) in (tuple, list):
            return type(node)(map(self.value, node))
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
                _check_index(*args)
            return node.function(*args, **kwargs)
        if isinstance(node, Site):
            found = self.readers[node]
            values = {p: r.value(self._taken(p, r), self) for p, r in found.items()}
            return values.popitem()[1] if _is_one(node, found) else values
        raise TypeError(f"deferred: expected an expression, got {node!r}.")

    def _taken(self, path: str, reader: _Reader) -> Mapping[str, Any]:
        missing = [site for site in reader.sites() if site not in self.taken]
        if missing:
            raise PathError(
                "activation", path, list(self.taken),
                "It was not reached: it comes later, or inside a choice that may not run.",
            )  # fmt: skip
        return self.taken


def _check_index(value: Any, index: Any) -> None:
    """Refuses a plain number out of range, which JAX would clamp to the last item."""
    shape = getattr(value, "shape", None)
    each = cast("tuple[Any, ...]", index if isinstance(index, tuple) else (index,))
    plain = tuple(slice(None) if isinstance(i, slice) else i for i in each)
    kinds = (int, np.integer, slice, type(None), type(Ellipsis))
    known = shape is not None and all(isinstance(i, kinds) for i in plain)
    if known and all(isinstance(n, int) for n in cast("tuple[Any, ...]", shape)):
        np.broadcast_to(np.zeros(()), cast("tuple[int, ...]", shape))[plain]


def _is_one(node: Site, found: Mapping[str, Any]) -> bool:
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
        if isinstance(leaf, Deferred):
            yield leaf
            if isinstance(leaf, Site):
                yield from (s for s in leaf.path if isinstance(s, Deferred))
            elif runs or not isinstance(leaf, On):
                yield from _nodes(list(leaf.parts), runs=runs)


def _sites(tree: Any) -> list[Site]:
    """The activations in a pytree of expressions, those of other runs left out."""
    return [node for node in _nodes(tree, runs=False) if isinstance(node, Site)]


def _is_deferred(x: Any) -> bool:
    return isinstance(x, Deferred)


# --- edits


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
    return _put(value, indices, lambda part: _part(edit, part, env, at, place))


def _part(edit: Edit, part: Any, env: _Env, at: Mapping[str, Any], place: Place) -> Any:
    if edit.verb == "map":
        op = cast(Op, edit.value)
        rest = map(env.value, op.args[1:])
        kwargs = {name: env.value(item) for name, item in op.kwargs.items()}
        return _fitted(edit, op.function(part, *rest, **kwargs), part)
    operand = env.value(edit.value)
    if edit.verb == "copy":  # one for each copy, along its leading axes
        chosen = sum((_along(axis, env, at) for axis in place.axes), ())

        def plus(here: Any, each: Any) -> Any:
            return here + each[chosen]

        return jax.tree.map(plus, part, operand)
    if edit.verb == "set":
        return _fitted(edit, operand, part)
    number = jnp.asarray(operand, part.dtype)
    if edit.verb == "add":
        return part + _fitted(edit, number, part)
    if edit.verb == "scale":
        return part * _fitted(edit, number, part)
    if edit.verb == "rotate":
        return _fitted(edit, part @ number, part)
    long = jnp.sqrt(jnp.sum(jnp.square(number), -1, keepdims=True))
    unit = _fitted(edit, number / jnp.broadcast_to(long, number.shape), part)
    along = jnp.sum(part * unit, -1, keepdims=True)
    return part - jnp.broadcast_to(along, part.shape) * unit


def _fitted(edit: Edit, new: Any, part: Any) -> Any:
    """A new value in the shape and dtype of what it replaces."""
    if isinstance(part, (tuple, list, dict)):
        return new
    new = jnp.asarray(new)
    try:
        return jnp.broadcast_to(new, part.shape).astype(part.dtype)
    except ValueError:
        raise ShapeError(
            "edit", f"what fits {edit.target!r}, {show(part)}", show(new),
            "Give a value that broadcasts to it.",
        ) from None  # fmt: skip


def _put(value: Any, indices: tuple[Any, ...], change: Callable[[Any], Any]) -> Any:
    """A value with a part of it changed."""
    if not indices:
        return change(value)
    first, *rest = indices
    if isinstance(value, (tuple, list)):
        items = list(cast("list[Any]", value))
        items[first] = _put(items[first], tuple(rest), change)
        return type(cast(Any, value))(items)
    if isinstance(value, dict):
        items = cast("dict[Any, Any]", value)
        return {**items, first: _put(items[first], tuple(rest), change)}
    _check_index(value, first)
    return value.at[first].set(_put(value[first], tuple(rest), change))


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
    made = Compiled(tree, tuple(map(_edit_of, edits)), model)
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
        nodes = list(_nodes([tree, *(list(edit) for edit in edits)]))
        self.model = _model_of(nodes, model)
        runs = {node.run: None for node in nodes if isinstance(node, On)}
        names = {node.name: None for node in nodes if isinstance(node, Arg)}
        self.arguments = (*names, *runs)
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


def _model_of(nodes: list[Any], model: Layer | None) -> Layer:
    models = {
        n.model: None for n in nodes if isinstance(n, Site) and n.model is not None
    }
    if model is not None:
        models[model] = None
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

    def run(
        self, params: Any, state: Any, x: Any, key: Any, train: bool, env: _Env
    ) -> None:
        """Runs the model as far as it is read; what was taken goes into `env`."""
        env.readers = self.readers
        sites = [
            site
            for each in self.readers.values()
            for reader in each.values()
            for site in reader.sites()
        ]
        applied: set[int] = set()
        indexed = _by_site(self.edits, self.places, env, applied)
        taps = Taps(
            reads=frozenset(sites),
            indexed=MappingProxyType(indexed),
            points=MappingProxyType(self.points),
            stop=True,
        )
        taken: dict[str, Any] = {}
        env.taken = taken
        if sites or self.edits:
            run = Run(key, train, taps=taps)
            evaluate(self.model, params, state, x, run, taken)
        for i, edit in enumerate(self.edits):
            if i not in applied:
                raise ValueError(
                    f"edits: {edit!r} has no effect: what is read does not need it, or "
                    "comes before it. Read something later, or leave it out."
                )


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
    for condition in place.conditions:
        here = _holds_at(condition, env, at)
        holds = here if holds is None else holds & here
    if holds is None:
        return _changed(edit, value, env, at, place)

    def changed(value: Any) -> Any:
        return _changed(edit, value, env, at, place)

    return cast(Any, jax.lax.cond(holds, changed, _same, value))


def _same(value: Any) -> Any:
    return value


def _holds_at(condition: Condition, env: _Env, at: Mapping[str, Any]) -> Any:
    """Whether this copy is one of those chosen."""
    numbers = jnp.atleast_1d(_numbers(condition.step, env.value(condition.chosen)))
    return jnp.any(numbers == _copy(condition, at))


def _along(axis: Condition, env: _Env, at: Mapping[str, Any]) -> tuple[Any, ...]:
    """Where this copy is along the axis of the chosen ones; one alone has no axis."""
    if axis.chosen is None:
        return (_copy(axis, at),)
    numbers = _numbers(axis.step, env.value(axis.chosen))
    return (jnp.argmax(numbers == _copy(axis, at)),) if numbers.ndim else ()


def _copy(condition: Condition, at: Mapping[str, Any]) -> Any:
    """The number of this copy."""
    copy = condition.copy
    return jnp.asarray(copy if isinstance(copy, int) else at[copy], jnp.int32)


def _zeros(spec: Any) -> Any:
    return jnp.zeros(spec.shape, spec.dtype)


def value_and_grads(
    expression: Deferred,
    *,
    wrt: Any,
    edits: Iterable[Any] = (),
    model: Layer | None = None,
) -> Callable[..., Any]:
    """A pure function of an expression's value and its gradients for activations.

    All gradients come from one backward pass. They are those for what the sites hold after
    `edits`.

    Args:
        expression: a scalar.
        wrt: a pytree of activations.
        edits: as for `compile`.
        model: as for `compile`.

    Shapes:
        gradients: those of the activations.

    Raises:
        PathError: a path means no activation.
        ValueError: an activation does not matter to the expression.
        TypeError: `wrt` has something else than activations, or slices of them.

    Example:
        >>> import jax, jax.numpy as jnp, axonlike as al
        >>> model = al.serial(body=al.dense(8), head=al.dense(1))
        >>> params, state = model.init(jax.random.key(0), (None, 4))
        >>> function = al.value_and_grads(model["output"].sum(), wrt=[model["body"]])
        >>> value, (gradient,) = function(params, state, jnp.ones((3, 4)))
        >>> gradient.shape
        (3, 8)
    """
    sites, structure = cast(
        Any, jax.tree.flatten(wrt, is_leaf=lambda x: isinstance(x, Deferred))
    )
    for site in sites:
        if not isinstance(site, Deferred) or base(site) is None:
            raise TypeError(
                "value_and_grads: wrt must be activations, or slices of them, got "
                f"{site!r}."
            )
    edits = list(edits)
    read = compile([expression, *sites], edits, model)
    names = [f"wrt {i}" for i in range(len(sites))]
    added = [
        Edit(site, "copy", Arg(name)) for site, name in zip(sites, names, strict=True)
    ]
    with_added = compile(expression, [*edits, *added], read.model)

    def function(params: Any, state: Any, x: Any, **arguments: Any) -> Any:
        shapes = jax.eval_shape(lambda: read(params, state, x, **arguments))
        zeros = jax.tree.map(_zeros, shapes[1:])

        def loss(zeros: Any) -> Any:
            extra = dict(zip(names, zeros, strict=True))
            return with_added(params, state, x, **arguments, **extra)

        value, grads = jax.value_and_grad(loss)(zeros)
        return value, jax.tree.unflatten(structure, grads)

    return function


OPERATORS["compile"] = cast(Any, compile)
