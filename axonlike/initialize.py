"""Init: one abstract pass finds every leaf and its input, then each leaf makes its arrays.

The pass runs the model on shapes alone. What a leaf's `init` reads of its input's shape is
recorded, so that one compiled init serves every batch size and every equal layer.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from functools import partial, reduce
from typing import Any, NamedTuple, cast

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec, Sharding

from axonlike.blame import hide, located
from axonlike.errors import PathError, ShapeError
from axonlike.frame import Frame, path_words
from axonlike.paths import join
from axonlike.selector import choose, whole
from axonlike.signature import Signature
from axonlike.spec import is_unknown, show
from axonlike.types import Key, Params, PyTree, State
from axonlike.values import holds_arrays


class _Shape(tuple[Any, ...]):
    """A shape that remembers which of its sizes were read."""

    reads: set[int]

    def __new__(cls, sizes: tuple[Any, ...], reads: set[int]) -> _Shape:
        shape = super().__new__(cls, sizes)
        shape.reads = reads
        return shape

    def _all(self) -> tuple[Any, ...]:
        self.reads.update(range(len(self)))
        return tuple(cast("Iterator[Any]", tuple.__iter__(self)))

    def __getitem__(self, index: Any) -> Any:
        chosen = cast(Any, range(len(self))[index])
        self.reads.update([chosen] if isinstance(chosen, int) else chosen)
        return cast(Any, tuple.__getitem__(self, index))

    def __iter__(self) -> Iterator[Any]:
        return iter(self._all())

    def __reversed__(self) -> Iterator[Any]:
        return reversed(self._all())

    def __add__(self, other: Any) -> Any:
        return self._all() + tuple(other)

    def __radd__(self, other: Any) -> Any:
        return tuple(other) + self._all()

    def __mul__(self, times: Any) -> Any:
        return self._all() * times

    __rmul__ = __mul__

    def __eq__(self, other: object) -> bool:
        return self._all() == other

    def __ne__(self, other: object) -> bool:
        return self._all() != other

    def __lt__(self, other: Any) -> bool:
        return self._all() < other

    def __gt__(self, other: Any) -> bool:
        return self._all() > other

    def __hash__(self) -> int:
        return hash(self._all())

    def __contains__(self, size: object) -> bool:
        return size in self._all()

    def __repr__(self) -> str:
        return repr(self._all())

    def index(self, *args: Any) -> int:
        return self._all().index(*args)

    def count(self, value: Any) -> int:
        return self._all().count(value)


class Template:
    """What `init` receives for an input: shape and dtype, no values.

    A leaf's init runs once for all inputs that agree in what it reads here.
    """

    def __init__(self, spec: Any) -> None:
        self._spec = spec
        self.reads: set[int] = set()
        self.dtype = spec.dtype

    @property
    def shape(self) -> tuple[Any, ...]:
        """Sizes, ints or symbolic dims."""
        return _Shape(tuple(self._spec.shape), self.reads)

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return len(self._spec.shape)

    @property
    def size(self) -> Any:
        """The number of elements."""
        total = 1
        for n in self.shape:
            total = total * n
        return total

    def __repr__(self) -> str:
        return show(self._spec)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(
            f"init sees shape, dtype, ndim and size of its inputs, no values: got .{name}. "
            "Compute in apply what depends on values."
        )


class Leaf(NamedTuple):
    """One leaf that the pass reached: where it stands and how it makes its arrays."""

    layer: Any
    path: str
    keypath: str
    stack: tuple[int, ...]
    indices: tuple[int, ...]
    own: Plan
    """How it makes them by itself."""
    tied: frozenset[str] = frozenset()
    """The params that it does not make, because others serve in their place."""
    store: Any = None
    """The dtype of its floating-point params, where a wrapper says so."""
    added: tuple[Any, ...] = ()
    """What wrappers add to its arrays: `(key, params) -> (params, state)`, hashable."""

    @property
    def plan(self) -> Plan:
        """How its arrays are made, and what wrappers add to them."""
        return reduce(Plan.extended, self.added, self.own)

    @property
    def specs(self) -> Params:
        """Shapes and dtypes of the params that it makes, for one copy."""
        made = {k: v for k, v in self.plan.params.items() if k not in self.tied}
        return jax.tree.map(partial(_stored, dtype=self.store), made)

    def arrays(self, key: Key, shardings: Any = None) -> tuple[Params, State]:
        """Its params and state, all copies of them."""
        params, state = self.plan.arrays(self, key, shardings)
        made = {k: v for k, v in params.items() if k not in self.tied}
        return jax.tree.map(partial(_stored, dtype=self.store), made), state


class Plan(NamedTuple):
    """A leaf's init, traced: specs of its params and state, and the compiled functions."""

    function: Any
    params: Any
    state: Any
    reads: tuple[tuple[int, int, Any], ...]
    compiled: dict[Any, Any]

    def fits(self, specs: list[Any]) -> bool:
        """Whether an input has the sizes that this plan was traced for."""
        return all(specs[leaf].shape[axis] == size for leaf, axis, size in self.reads)

    def arrays(self, leaf: Leaf, key: Key, shardings: Any = None) -> tuple[Any, Any]:
        """Params and state of one leaf: one call of one compiled function."""
        axes, key = sum(n >= 0 for n in leaf.stack), _leaf_key(leaf, key)
        traced = isinstance(key, jax.core.Tracer)  # under jit a known key is traced too
        which = (axes, traced, _hashable(shardings))
        if which not in self.compiled:
            quick = not traced and jax.default_backend() == "cpu"
            self.compiled[which] = jax.jit(
                _mapped(self.function, axes),
                out_shardings=shardings,
                compiler_options=_QUICK if quick else None,
            )
        return self.compiled[which](key)

    def extended(self, more: Any) -> Plan:
        """The same with what `more` makes of the key and the params; made once."""

        def function(key: Key) -> tuple[Params, State]:
            params, state = self.function(key)
            new_params, new_state = more(key, params)
            return {**params, **new_params}, {**state, **new_state}

        if more not in self.compiled:
            key = jax.eval_shape(lambda: jax.random.key(0))
            params, state = jax.eval_shape(function, key)
            self.compiled[more] = self._replace(
                function=function, params=params, state=state, compiled={}
            )
        return self.compiled[more]


# What init runs, it runs once: on CPU this halves the time to compile random numbers.
_QUICK = {"xla_backend_optimization_level": 1}


def _stored(x: Any, dtype: Any) -> Any:
    """An array or a spec in a dtype, if it is floating point."""
    if dtype is None or not jnp.issubdtype(x.dtype, jnp.floating):
        return x
    return x.astype(dtype) if hasattr(x, "astype") else x.update(dtype=dtype)


def _leaf_key(leaf: Leaf, key: Key) -> Key:
    """Root, path, indices folded; an axis in front for each that means all copies.

    Apart from the leaf's own function, so it is compiled once for all leaves.
    """
    numbers, indices, axes = list(path_words("init", leaf.keypath)), [*leaf.indices], 0
    for count in leaf.stack:
        if count < 0:
            numbers.append(indices.pop(0))
            continue
        key = _spread(_fold(key, numbers, axes), count, axes)
        numbers, axes = [], axes + 1
    return _fold(key, numbers, axes)


def _fold(key: Key, numbers: list[int], axes: int) -> Key:
    """Padded to one length, so that one compiled function folds any number of them."""
    for start in range(0, len(numbers), 8):
        few = numbers[start : start + 8]
        data = np.array(few + [0] * (8 - len(few)), np.uint32)
        key = _fold_all(key, data, np.uint32(len(few)), axes)
    return key


def _fold_each(key: Key, data: Any, count: Any, axes: int) -> Key:
    def one(key: Key) -> Key:
        def step(i: Any, key: Key) -> Key:
            return jax.random.fold_in(key, data[i])

        return cast(Any, jax.lax.fori_loop(np.uint32(0), count, step, key))

    return _over(one, axes)(key)


def _spread_each(key: Key, count: int, axes: int) -> Key:
    """A key for each copy, along a new last axis of keys."""
    copies = jnp.arange(count, dtype=jnp.uint32)

    def one(key: Key) -> Key:
        return jax.vmap(partial(jax.random.fold_in, key))(copies)

    return _over(one, axes)(key)


_fold_all = cast(Any, jax.jit(_fold_each, static_argnames="axes"))
_spread = cast(Any, jax.jit(_spread_each, static_argnames=("count", "axes")))


def _over(function: Any, axes: int) -> Any:
    return jax.vmap(_over(function, axes - 1)) if axes else function


def _mapped(function: Any, axes: int) -> Any:
    """A leaf's init over arrays of keys.

    `lax.map` rather than `vmap`: each copy is computed by the same code as a single one,
    so that stacked and unrolled weights are equal to the bit.
    """
    return cast(
        Any, partial(jax.lax.map, _mapped(function, axes - 1)) if axes else function
    )


_recent: OrderedDict[Any, None] = OrderedDict()
_recent_lock = threading.Lock()
_MOST_RECENT = 4096


def remember(layer: Any) -> None:
    """Keeps a layer for a while: what was traced for it is found again by an equal one.

    Not one that holds arrays, which would be kept too; and not while JAX looks for leaks.
    """
    if jax.config.values.get("jax_check_tracer_leaks") or holds_arrays(layer.config):
        return
    with _recent_lock:
        _recent[layer] = None
        _recent.move_to_end(layer)
        if len(_recent) > _MOST_RECENT:
            _recent.popitem(last=False)


def plan_of(layer: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Plan:
    """The traced init of a leaf for inputs like these arrays."""
    return plan_for(layer, *jax.tree.map(_struct, (args, dict(kwargs))))


def plan_for(layer: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Plan:
    """The traced init of a leaf for such inputs, made once for equal leaves."""
    specs, tree = cast(Any, jax.tree.flatten((args, dict(kwargs))))
    ranks = tuple((len(s.shape), str(s.dtype)) for s in specs)
    where = ("plans", tree, ranks, bool(jax.config.jax_enable_x64))  # type: ignore[attr-defined]
    plain = layer.named(None)
    known: list[Plan] = plain.identity.memory.setdefault(where, [])
    for plan in known:
        if plan.fits(specs):
            return plan
    remember(plain)
    plan = _trace(layer, specs, tree)
    known.append(plan)
    return plan


def _trace(layer: Any, specs: list[Any], tree: Any) -> Plan:
    templates = [Template(spec) for spec in specs]
    args, kwargs = jax.tree.unflatten(tree, templates)

    kind, init, sig = layer.kind, layer.init_function, layer.signature

    def function(key: Key) -> tuple[Any, Any]:
        return _params_and_state(kind, sig, init(key, *args, **kwargs))

    try:
        made = jax.eval_shape(function, jax.eval_shape(lambda: jax.random.key(0)))
    except Exception as error:
        _check_readable(layer, templates, specs, error)
        raise
    params, state = made
    for name, array in _named(params) + _named(state):
        _check_known(layer, name, array)
    reads = tuple(
        (leaf, axis, specs[leaf].shape[axis])
        for leaf, template in enumerate(templates)
        for axis in sorted(template.reads)
    )
    return Plan(function, params, state, reads, {})


def _params_and_state(kind: str, sig: Signature, made: Any) -> tuple[Params, State]:
    if "state" in sig.services:
        if not (isinstance(made, tuple) and len(cast("tuple[Any, ...]", made)) == 2):
            raise TypeError(
                f"{kind}: apply takes state, so init must return (params, state), "
                f"got {show(made)}."
            )
        params, state = cast("tuple[Any, Any]", made)
    else:
        params, state = made, dict[str, Any]()
    for what, tree in (("params", params), ("state", state)):
        if not isinstance(tree, dict):
            raise TypeError(
                f"{kind}: init must return a dict of {what}, got {show(tree)}."
            )
    return jax.tree.map(_strong, (params, state))


def _strong(x: Any) -> Any:
    """An array of its own dtype: a weak one would make the second step compile again."""
    if jnp.issubdtype(jnp.result_type(x), jax.dtypes.extended):
        return x
    return jax.lax.convert_element_type(x, jnp.result_type(x))


def _check_readable(
    layer: Any, templates: list[Template], specs: list[Any], error: Exception
) -> None:
    """An init that fails after reading an unknown size fails because of it.

    Unless it has found something else wrong with the shape, and said so.
    """
    if isinstance(error, ShapeError) and error.where == layer.kind:
        return
    for template, spec in zip(templates, specs, strict=True):
        if any(is_unknown(spec.shape[axis]) for axis in template.reads):
            raise ShapeError(
                layer.kind,
                "known sizes where init reads them",
                show(spec),
                "Params cannot depend on an unknown dim: declare its size in the spec.",
            ) from error


def _check_known(layer: Any, name: str, array: Any) -> None:
    if any(is_unknown(dim) for dim in array.shape):
        raise ShapeError(
            layer.kind,
            f"known sizes for {name!r}",
            show(array),
            "Params cannot depend on an unknown dim: declare its size in the spec.",
        )


def _named(tree: Any) -> list[tuple[str, Any]]:
    found = cast(Any, jax.tree_util.tree_flatten_with_path(tree)[0])
    return [(jax.tree_util.keystr(p, simple=True, separator="/"), x) for p, x in found]


Outputs = list[tuple[str, PyTree]]


class Recorder:
    """What the abstract pass finds: every leaf by path, in the order it is reached.

    And the spec of what each layer returned, by path.
    """

    def __init__(self) -> None:
        self.leaves: dict[str, Leaf] = {}
        self.reached: set[str] = set()
        self.outputs: dict[str, PyTree] = {}
        self.sources: set[tuple[str, str]] = set()
        self._memo: dict[Any, tuple[list[Leaf], list[str], Outputs, Any]] = {}
        self._log: list[Leaf] = []
        self._seen: list[str] = []
        self._made: Outputs = []

    def visit(self, frame: Frame, args: Any, kwargs: Any, method: str) -> PyTree:
        """Runs a layer on shapes; an equal layer on equal shapes is not run again."""
        path = param_path(frame.site)
        self._reach(path)
        where = _memo_key(frame, args, kwargs, method)
        if where is not None and where in self._memo:
            return self._replay(frame, *self._memo[where])
        start, seen, made = len(self._log), len(self._seen), len(self._made)
        y = frame.layer.run(frame, args, kwargs, method)
        self._make(frame.site, jax.tree.map(_known, y))
        if where is not None and _plain(y):
            leaves = [_below(leaf, frame) for leaf in self._log[start:]]
            paths = [p[len(path) :].lstrip("/") for p in self._seen[seen:]]
            at = len(frame.site)
            specs = [(site[at:], spec) for site, spec in self._made[made:]]
            self._memo[where] = (leaves, paths, specs, jax.tree.map(_struct, y))
        return y

    def leaf(self, frame: Frame, args: Any, kwargs: Any) -> None:
        """Gives a leaf's frame placeholders for what its init will make."""
        layer = frame.layer
        plan = plan_of(layer, args, kwargs)
        indices = tuple(
            i for i, n in zip(frame.indices, frame.stack, strict=True) if n < 0
        )
        self._add(
            Leaf(layer, param_path(frame.site), param_path(frame.keypath), frame.stack,
                 indices, plan, store=frame.run.store)
        )  # fmt: skip
        frame.params = jax.tree.map(partial(_seen, frame.run.cast), plan.params)
        frame.state = jax.tree.map(_zeros, plan.state)

    def params_below(self, frame: Frame) -> Params:
        """Placeholders for the params of a child that was already reached."""
        path = param_path(frame.site)
        found: dict[str, Any] = {}
        for leaf in self.leaves.values():
            if leaf.path == path or leaf.path.startswith(f"{path}/" if path else ""):
                steps = leaf.path[len(path) :].strip("/")
                copies = tuple(n for n in leaf.stack[len(frame.stack) :] if n >= 0)
                see = partial(_seen, frame.run.cast, copies=copies)
                put(found, steps, jax.tree.map(see, leaf.plan.params))
        if path not in self.reached:
            raise ValueError(
                f"params of {path!r} were read before it was called, so their shapes are "
                "not known. Call it first."
            )
        return found

    def tie(self, frame: Frame, target: str, source: str, turned: bool) -> None:
        """Notes that one param of a leaf is another one's, which is not made twice."""
        site = param_path(frame.site)
        (leaf, name), (other, name_of_other) = (
            self._param(site, path) for path in (target, source)
        )
        ours, theirs = (
            spec.plan.params[key]
            for spec, key in ((leaf, name), (other, name_of_other))
        )
        chained = name_of_other in other.tied or (leaf.path, name) in self.sources
        if name in leaf.tied or chained:
            raise ValueError(
                f"tie: {target!r} or {source!r} is part of another tie. "
                "Tie everything to the one that is no target, in one tie(...)."
            )
        self.sources.add((other.path, name_of_other))
        shape = tuple(reversed(theirs.shape)) if turned else tuple(theirs.shape)
        if tuple(ours.shape) != shape or leaf.stack != other.stack:
            raise ShapeError(
                "tie",
                f"{target!r} like {source!r}{' transposed' if turned else ''}, {shape}",
                show(ours),
                "Both need one shape"
                + (", or transpose=True." if shape[::-1] == tuple(ours.shape) else "."),
            )
        self._change(leaf._replace(tied=leaf.tied | {name}))

    def forget(self) -> None:
        """From here on, equal layers are run again."""
        self._memo.clear()

    def mark(self) -> int:
        """A point in the pass, for `since`."""
        return len(self._log)

    def since(self, mark: int, frame: Frame) -> dict[str, tuple[Leaf, Any]]:
        """The params that leaves below a frame make by themselves, reached since a mark.

        By path from the frame: the leaf, and the spec of all copies.
        """
        found: dict[str, tuple[Leaf, Any]] = {}
        for leaf in self._log[mark:]:
            home = leaf.path[len(param_path(frame.site)) :].strip("/")
            copies = tuple(n for n in leaf.stack[len(frame.stack) :] if n >= 0)
            for name, spec in _named(leaf.own.params):
                whole = jax.ShapeDtypeStruct((*copies, *spec.shape), spec.dtype)
                found[f"{home}/{name}".strip("/")] = leaf, whole
        return found

    def extend(self, path: str, more: Any) -> None:
        """Notes what a wrapper adds to the arrays of a leaf."""
        leaf = self.leaves[path]
        added = leaf.added if more in leaf.added else (*leaf.added, more)
        self._change(leaf._replace(added=added))

    def _change(self, new: Leaf) -> None:
        self.leaves[new.path] = new
        self._log[:] = [new if each.path == new.path else each for each in self._log]

    def _param(self, site: str, path: str) -> tuple[Leaf, str]:
        """The leaf that makes the param at a path below a site, and the param's name."""
        home, _, name = path.rpartition("/")
        leaf = self.leaves.get(f"{site}/{home}".strip("/"))
        if leaf is None or name not in leaf.plan.params:
            known = [
                f"{each.path[len(site) :]}/{name}".strip("/")
                for each in self.leaves.values()
                for name in each.plan.params
            ]
            raise PathError("tie", path, known)
        return leaf, name

    def _make(self, site: str, spec: PyTree) -> None:
        """Notes an output: of several uses the first, of several layers the outermost."""
        self._made.append((site, spec))
        if "#" not in site or param_path(site) not in self.outputs:
            self.outputs[param_path(site)] = spec

    def _reach(self, path: str) -> None:
        self._seen.append(path)
        self.reached.add(path)

    def _add(self, leaf: Leaf) -> None:
        self._log.append(leaf)
        old = self.leaves.setdefault(leaf.path, leaf)
        if old is leaf or old.own is leaf.own:
            return
        ours, theirs = _named(old.own.params), _named(leaf.own.params)
        if [(n, a.shape) for n, a in ours] != [(n, a.shape) for n, a in theirs]:
            raise ShapeError(
                leaf.layer.kind,
                f"the params of its first use, {show(old.own.params)}",
                show(leaf.own.params),
                "A layer called twice has one set of weights: give it equal widths.",
            )

    def _replay(
        self, frame: Frame, leaves: list[Leaf], paths: list[str], made: Outputs, y: Any
    ) -> Any:
        site, keypath = param_path(frame.site), param_path(frame.keypath)
        for path in paths:
            self._reach(f"{site}/{path}".strip("/"))
        for rest, spec in made:
            between = "/" if frame.site and rest and rest[0] not in "/#" else ""
            self._make(f"{frame.site}{between}{rest}".removeprefix("/"), spec)
        for leaf in leaves:
            self._add(
                leaf._replace(
                    path=f"{site}/{leaf.path}".strip("/"),
                    keypath=f"{keypath}/{leaf.keypath}".strip("/"),
                    stack=(*frame.stack, *leaf.stack),
                    indices=(*_unrolled(frame), *leaf.indices),
                )
            )
        return jax.tree.map(_zeros, y)


def _unrolled(frame: Frame) -> tuple[int, ...]:
    pairs = zip(frame.indices, frame.stack, strict=True)
    return tuple(i for i, n in pairs if n < 0)


def _below(leaf: Leaf, frame: Frame) -> Leaf:
    """A leaf as seen from a frame: paths and indices from there on."""
    site, keypath = param_path(frame.site), param_path(frame.keypath)
    return leaf._replace(
        path=leaf.path[len(site) :].strip("/"),
        keypath=leaf.keypath[len(keypath) :].strip("/"),
        stack=leaf.stack[len(frame.stack) :],
        indices=leaf.indices[len(_unrolled(frame)) :],
    )


def param_path(site: str) -> str:
    """The path of a site's params: uses (`#1`) share them."""
    if "#" not in site:
        return site
    return "/".join(step.split("#")[0] for step in site.split("/")).strip("/")


def run_abstract(layer: Any, run: Any, specs: PyTree) -> tuple[PyTree, Recorder]:
    """The output spec of a model and what its init has to make."""
    recorder: Recorder = run.recorder

    def function(x: PyTree) -> PyTree:
        frame = Frame(layer, run, {}, {}, layer.places)
        try:
            return frame.evaluate((x,), {})
        except Exception as error:
            raise hide(error) from error.__cause__

    return jax.eval_shape(function, specs), recorder


def materialize(
    recorder: Recorder, key: Key, shardings: Mapping[str, Any] | None
) -> tuple[Params, State]:
    """The arrays of every leaf, in nested dicts by path."""
    rules = by_leaf(recorder, shardings_of(recorder, shardings))
    params: Params = {}
    state: State = {}
    for leaf in recorder.leaves.values():
        if not leaf.plan.params and not leaf.plan.state:
            continue
        try:
            made, kept = leaf.arrays(key, rules.get(leaf.path))
        except Exception as error:
            raise located(error, leaf.path, leaf.layer) from error.__cause__
        put(params, leaf.path, made)
        put(state, leaf.path, kept)
    return params, state


def put(tree: dict[str, Any], path: str, value: dict[str, Any]) -> None:
    """Merges a dict into a nested dict at a path; an empty one leaves no trace."""
    if not value:
        return
    for step in path.split("/") if path else ():
        tree = tree.setdefault(step, {})
        if not isinstance(tree, dict):
            raise _taken(path, step)
    for name, array in value.items():
        if name in tree:
            raise _taken(path, name)
        tree[name] = array


def _taken(path: str, name: str) -> ValueError:
    return ValueError(
        f"name: {name!r} in {path or 'the model'!r} is both an array and a layer, or two "
        "of them. Rename the layer with name=."
    )


def by_leaf(recorder: Recorder, found: Mapping[str, Any]) -> dict[str, Any]:
    """For each leaf, the shardings of its params and state; unmatched arrays keep None.

    `found` has them by path, as `shardings_of` does.
    """
    if not found:
        return {}

    def rule(leaf: Leaf, path: Any, _: Any) -> Any:
        return found.get(_array_path(leaf.path, path))

    trees: dict[str, Any] = {}
    for leaf in recorder.leaves.values():
        both = (leaf.plan.params, leaf.plan.state)
        trees[leaf.path] = jax.tree_util.tree_map_with_path(partial(rule, leaf), both)
    return {k: v for k, v in trees.items() if jax.tree.leaves(v)}


_SHARDINGS = "a dict, {selector: PartitionSpec or Sharding}"


def shardings_of(recorder: Recorder, rules: Mapping[Any, Any] | None) -> dict[str, Any]:
    """The sharding of each array that a rule means, by its path."""
    leaves = recorder.leaves.values()
    items = [item for leaf in leaves for side in arrays_of(leaf) for item in side]
    found: dict[str, Any] = {}
    given: Any = {} if rules is None else rules
    if not isinstance(given, Mapping):
        raise TypeError(
            f"shardings: expected {_SHARDINGS}, got {type(given).__name__}."
        )
    for selector, sharding in cast("Mapping[Any, Any]", given).items():
        if not isinstance(sharding, (Sharding, PartitionSpec)):
            got = f"{type(sharding).__name__} for {selector!r}"
            raise TypeError(f"shardings: expected {_SHARDINGS}, got {got}.")
        chosen = choose("shardings", selector, items, None)
        for (path, spec), copies in zip(items, chosen, strict=True):
            if whole(copies, "shardings", path, spec):
                found.setdefault(path, sharding)
    return found


def arrays_of(leaf: Leaf) -> tuple[list[tuple[str, Any]], list[tuple[str, Any]]]:
    """The path and spec of every param and of all state of a leaf, copies included."""
    copies = tuple(n for n in leaf.stack if n >= 0)

    def listed(specs: Any) -> list[tuple[str, Any]]:
        return [
            (join(leaf.path, name), jax.ShapeDtypeStruct((*copies, *s.shape), s.dtype))
            for name, s in _named(specs)
        ]

    return listed(leaf.specs), listed(leaf.plan.state)


def _array_path(path: str, keys: Any) -> str:
    name = jax.tree_util.keystr(keys[1:], simple=True, separator="/")
    return f"{path}/{name}".strip("/")


def _hashable(shardings: Any) -> Any:
    if shardings is None:
        return None
    leaves, tree = cast(Any, jax.tree.flatten(shardings))
    return tuple(leaves), tree


def _memo_key(frame: Frame, args: Any, kwargs: Any, method: str) -> Any:
    """What the run of a layer on shapes depends on; None where that cannot be said."""
    leaves, tree = cast(Any, jax.tree.flatten((args, dict(kwargs))))
    if frame.layer.places is not frame.places and frame.layer.places != frame.places:
        return None
    if not all(hasattr(leaf, "shape") and hasattr(leaf, "dtype") for leaf in leaves):
        return None
    avals = tuple(jax.typeof(leaf) for leaf in leaves)
    run = frame.run
    if run.taps is not None:  # a run from one site to another
        return None
    return (frame.layer.named(None), method, tree, avals, run.cast, run.store)


def _plain(y: Any) -> bool:
    """Whether zeros of the same spec can stand for a value."""
    return all(
        isinstance(leaf, jax.Array)
        and not getattr(jax.typeof(leaf), "weak_type", False)
        and not jnp.issubdtype(leaf.dtype, jax.dtypes.extended)
        for leaf in jax.tree.leaves(y)
    )


def _struct(x: Any) -> Any:
    if hasattr(x, "shape") and hasattr(x, "dtype"):
        return jax.ShapeDtypeStruct(x.shape, x.dtype)
    array = np.asarray(x)
    return jax.ShapeDtypeStruct(array.shape, array.dtype)


def _known(x: Any) -> Any:
    return _struct(x) if hasattr(x, "dtype") else x


def _seen(cast: Any, spec: Any, copies: tuple[int, ...] = ()) -> Any:
    """A placeholder for a param as a layer sees it: in the dtype of `mixed`."""
    floating = jnp.issubdtype(spec.dtype, jnp.floating)
    dtype = cast if cast is not None and floating else spec.dtype
    return _zeros(jax.ShapeDtypeStruct((*copies, *spec.shape), dtype))


def _zeros(spec: Any) -> Any:
    if jnp.issubdtype(spec.dtype, jax.dtypes.extended):
        return (
            jax.random.split(jax.random.key(0), spec.shape)
            if spec.shape
            else (jax.random.key(0))
        )
    return jax.lax.full(spec.shape, 0, spec.dtype)
