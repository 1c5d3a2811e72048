"""Deferred activations compiled: a pure function that reads and edits one run."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any, cast

import jax

from axonlike.changes import by_site
from axonlike.deferred import (
    UNFILLED,
    Arg,
    Deferred,
    Edit,
    Mapped,
    On,
    Site,
    base,
    ends,
    is_deferred,
    token,
)
from axonlike.evaluation import evaluate
from axonlike.frame import Run
from axonlike.layer import OPERATORS, Layer, as_layer
from axonlike.reading import Env, Reader, unmet
from axonlike.sites import (
    emitted,
    is_met,
    is_one,
    may_mean_more,
    places,
    points_of,
    resolve,
    spelled,
)
from axonlike.taps import Taps, is_mark

_MOST_COMPILED = 64
"""How many compilations a model remembers, so that equal ones are traced once."""


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
        env = Env(arguments)
        for run, plan in self._runs.items():
            env.runs[run] = Env(arguments)
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


# --- what it is made of


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


def _nodes(tree: Any, *, runs: bool = True) -> Iterator[Deferred]:
    """Every expression in a pytree, those inside of others too, of other runs or not."""
    for leaf in jax.tree.leaves(tree, is_leaf=is_deferred):
        if isinstance(leaf, slice):
            yield from _nodes(list(ends(leaf)), runs=runs)
        if isinstance(leaf, Deferred):
            yield leaf
            if runs or not isinstance(leaf, On):
                yield from _nodes(list(leaf.parts), runs=runs)


def _sites(tree: Any) -> list[Site]:
    """The activations in a pytree of expressions, those of other runs left out."""
    return [node for node in _nodes(tree, runs=False) if isinstance(node, Site)]


def _reads(here: list[Site], targets: list[Site], edits: Any) -> list[Site]:
    """The sites that are read, and not only edited."""
    left = list(here)
    for target, edit in zip(targets, edits, strict=True):
        for _ in range(1 + (edit.verb == "map")):
            at = next((i for i, site in enumerate(left) if site is target), None)
            if at is not None:
                del left[at]
    return left


# --- one run


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
        every = [
            *((site.path, found[site]) for site in found),
            *zip(paths, targets, strict=True),
        ]
        self.is_open = not run and any(may_mean_more(model, *each) for each in every)
        read = [t for each in found.values() for t in each.values()]
        points = points_of(read, [t for each in targets for t in each.values()])
        self.readers = {
            site: {path: Reader(target, points) for path, target in each.items()}
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
        self, params: Any, state: Any, x: Any, key: Any, train: bool, env: Env
    ) -> None:
        """Runs the model as far as it is read; what was taken goes into `env`."""
        if self.is_open:
            every = sites_of_run(self.model, params, state, x, key, train)
            whole = _Plan(self.model, self.asked, self.edits, every)
            whole.run(params, state, x, key, train, env)
            return
        env.readers = self.readers
        applied: set[int] = set()
        indexed = by_site(self.edits, self.places, env, applied)
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
        raise unmet("/".join(map(spelled, site.path)), run)


def sites_of_run(
    model: Layer, params: Any, state: Any, x: Any, key: Any, train: bool
) -> list[str]:
    """Every site of a run, what layers emit and further uses too: on shapes alone."""

    def run(params: Any, state: Any, x: Any) -> dict[str, Any]:
        taps = Taps(every=True)
        return evaluate(model, params, state, x, Run(key, train, taps=taps))[2]

    return [s for s in jax.eval_shape(run, params, state, x) if not is_mark(s)]


def _sites_of(readers: Iterable[Mapping[str, Reader]]) -> frozenset[str]:
    """Every site that readers read."""
    found = [reader.sites() for each in readers for reader in each.values()]
    return frozenset(site for sites in found for site in sites)


OPERATORS["compile"] = cast(Any, compile)
