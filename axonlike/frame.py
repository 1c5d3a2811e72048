"""The door: the one place through which a combinator reaches a child.

A `Frame` is one evaluation of one layer. `Frame.call` slices params and state by name,
hands on keys by path, opens a profiler scope, records new state, applies edits and reads,
and adds path, layer and trail to an error. `Frame.under` is the same for code that runs
a child inside a transformed function (`scan`, `vmap`, `checkpoint`): what such a frame
gathers leaves it as values, so that nothing outlives the transformation.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from functools import lru_cache
from types import MappingProxyType
from typing import Any, NamedTuple, cast

import jax

from axonlike.blame import blame
from axonlike.errors import ShapeError, nearest
from axonlike.names import Place, closed
from axonlike.paths import check_name, join
from axonlike.signature import SPECIAL, Signature
from axonlike.spec import same, show
from axonlike.taps import Start, Stop, Taps
from axonlike.types import Key, Params, PyTree, State

_NO_KWARGS: Mapping[str, Any] = {}


class Run(NamedTuple):
    """What all frames of one evaluation share."""

    key: Key | None = None
    train: bool = False
    options: Mapping[str, Any] = MappingProxyType({})
    taps: Taps | None = None
    recorder: Any = None
    cast: Any = None
    """The dtype in which params are seen here, for init's pass, which has none yet."""
    store: Any = None
    """The dtype in which init makes params here; None: the layer's own."""
    around: Any = None
    """What runs a layer in place of itself: `around(frame, args, kwargs, method, name)`."""
    numbered: bool = False
    """Whether every pass of a lifted layer knows its number, drawing keys or not."""
    stepwise: bool = False
    """Whether every step of a recurrence goes through the door."""


class Frame:
    """One evaluation of one layer; it never outlives its call."""

    __slots__ = (
        "at",
        "before",
        "given",
        "indices",
        "keypath",
        "layer",
        "open",
        "params",
        "places",
        "run",
        "site",
        "stack",
        "state",
        "taken",
        "trace",
        "trail",
        "uses",
    )  # fmt: skip

    def __init__(
        self,
        layer: Any,
        run: Run,
        params: Params,
        state: State,
        places: Mapping[str, Place],
        site: str = "",
        keypath: str = "",
        indices: tuple[Any, ...] = (),
        stack: tuple[int, ...] = (),
        taken: dict[str, Any] | None = None,
    ) -> None:
        self.layer, self.run, self.params, self.state = layer, run, params, state
        self.places, self.site, self.keypath = places, site, keypath
        self.indices, self.stack = indices, stack
        self.taken: dict[str, Any] = {} if taken is None else taken
        self.uses: dict[str, int] = {}
        self.trail: list[tuple[str, PyTree]] = []
        self.given: tuple[Any, ...] = ()
        self.trace: Any = None
        self.at: Mapping[str, Any] = _NO_KWARGS
        self.open = True
        self.before: frozenset[str] = frozenset()

    def call(
        self,
        slot: str,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any] = _NO_KWARGS,
        method: str = "apply",
        *,
        use: int | None = None,
    ) -> PyTree:
        """Runs a child: the door.

        How often a child with a name was called before is counted here; a wrapper that
        runs its body several times says by `use` which time this is.
        """
        frame, name = self._enter(slot, method, use)
        start = self.run.taps.pending if self.run.taps and method == "apply" else None
        if start is not None and not self._leads_to(start, slot, frame.site, name):
            return start.at(frame.site if name else "")
        before = frame.state
        try:
            if not name:
                y = frame.evaluate(args, kwargs, method, self, name)
            else:
                with jax.named_scope(name):
                    y = frame.evaluate(args, kwargs, method, self, name)
                    if self.run.taps is not None and method == "apply":
                        y = self.run.taps.visit(frame.site, y, self)
        except Stop:
            self._take_state(slot, before, frame.state)
            raise
        self._take_state(slot, before, frame.state)
        if method == "apply":
            self.trail.append((name, y))
        return y

    def evaluate(
        self,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any] = _NO_KWARGS,
        method: str = "apply",
        parent: Frame | None = None,
        name: str = "",
    ) -> PyTree:
        """Runs this frame's layer, adding where it stands to any error."""
        self.given = (*args, dict(kwargs)) if kwargs else args
        try:
            recorder = self.run.recorder
            if recorder is not None:
                return recorder.visit(self, args, kwargs, method)
            if name or parent is None:
                self._check_names(self.layer.names, self.layer)
            if self.run.around is not None:
                return self.run.around(self, args, kwargs, method, name)
            return self.layer.run(self, args, kwargs, method)
        except Exception as error:
            blame(error, self, parent, name)
            raise

    def under(
        self,
        step: str | None = None,
        params: Params | None = None,
        state: State | None = None,
        *,
        index: Any = None,
        stack: int | None = None,
        copy: Any = None,
        inline: bool = False,
        ends: bool = False,
        axis: tuple[Any, int] | None = None,
    ) -> Frame:
        """This frame one index step lower, or inside a transformed function.

        `index` tells this pass from the others to the keys of layers below; `stack` says,
        for init, how many copies of each param this pass stands for (-1: one of several,
        told apart by `index`); `copy` which copy this is, for edits. `inline` says that no
        transformation lies between: what is read there is read here. `ends`, that the
        transformed function ends early where all has been read: see `outcome`. `axis`
        is the number of this pass and how many there are: reads get an axis in front.
        """
        site = self.site
        if step is not None:
            site = f"{site}/{step}" if site else step
        indices, stacked = self.indices, self.stack
        if self.run.recorder is None:
            indices = indices if index is None else (*indices, index)
        elif stack is not None:
            indices, stacked = (*indices, index), (*stacked, stack)
        frame = Frame(
            self.layer, self.run,
            self.params if params is None else params,
            self.state if state is None else state,
            self.places, site, self.keypath, indices, stacked,
        )  # fmt: skip
        frame.given, frame.trail = self.given, list(self.trail)
        frame.at = self.at if copy is None else {**self.at, join(self.site, "*"): copy}
        if axis is not None and axis[0] is not None:  # passes have no path of their own
            frame.at = {**frame.at, "": (*frame.at.get("", ()), (self.site, *axis))}
        frame.open = (inline or ends) and self.open
        frame.before = self.before if inline else self.before.union(self.taken)
        if inline:
            frame.taken = self.taken
        if step is not None and self.run.recorder is None:
            frame._check_names(closed(self.places), self.layer)
        return frame

    def absorb(self, frame: Frame) -> None:
        """Takes over the state and the reads of an `under` frame of the same trace."""
        self.state = frame.state
        self.taken.update(frame.taken)

    def outcome(
        self, run: Callable[[], PyTree]
    ) -> tuple[PyTree, State, dict[str, Any]]:
        """What leaves a transformed function: output, state and reads.

        The output is None where all has been read before it was there.
        """
        try:
            y = run()
        except Stop:
            y = None
        return y, self.state, self.taken

    @property
    def is_read(self) -> bool:
        """Whether the run ends here, all that was asked for having been read."""
        taps = self.run.taps
        if taps is None or not taps.stop or not self.open:
            return False
        return all(site in self.taken or site in self.before for site in taps.reads)

    def copy(self, run: Callable[[Frame], PyTree]) -> PyTree:
        """What one of several copies returns, this frame's own site.

        Before the copy in which a run begins, nothing is run.
        """
        taps = self.run.taps
        if taps is None:
            return run(self)
        if taps.pending is not None and not taps.pending.below(self.site):
            return taps.pending.at(self.site)
        return taps.visit(self.site, run(self), self)

    def child_params(self, slot: str) -> Params:
        """The params of a child, to read (tied weights); as it has them in wrappers."""
        frame = self._enter(slot, "params")[0]
        if self.run.recorder is not None:
            frame.params = self.run.recorder.params_below(frame)
        while frame.layer.view is not None:
            params = frame.layer.view(frame, frame.params)
            frame = frame.under(None, params, inline=True)._enter("f", "params")[0]
        return frame.params

    def key(self) -> Key | None:
        """A fresh key for this layer: root key, path, then the indices; None without."""
        if self.run.key is None:
            return None
        key = fold_path(self.run.key, "apply", self.keypath)
        for index in self.indices:
            key = jax.random.fold_in(key, index)
        return key

    def emit(self, name: str, value: PyTree) -> PyTree:
        """A site of its own below this layer; costs nothing unless something reads it."""
        if self.run.taps is None:
            return value
        site = join(self.site, check_name(name))
        return self.run.taps.visit(site, value, self)

    def services(self, sig: Signature, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """The keyword arguments that a function asks for."""
        if not sig.services and not sig.options:
            return dict(kwargs)
        found = dict(kwargs)
        for name in sig.options:
            if name not in found and name in self.run.options:
                found[name] = self.run.options[name]
        missing = sorted(sig.needed - found.keys())
        if missing:
            near = get_close_matches(missing[0], SPECIAL, 1, 0.65)
            hint = f" Or was {near[0]!r} meant?" if near else ""
            raise TypeError(
                f"{self.layer.kind}: option {missing[0]!r} was not given. "
                f"Pass options={{{missing[0]!r}: ...}} to apply.{hint}"
            )
        if "state" in sig.services:
            found["state"] = self.state
        if "train" in sig.services:
            found["train"] = self.run.train
        if "key" in sig.services:
            found["key"] = self.key()
        if "emit" in sig.services:
            found["emit"] = self.emit
        return found

    def _enter(
        self, slot: str, method: str, use: int | None = None
    ) -> tuple[Frame, str]:
        """The child's frame and the name under which it runs."""
        child, place = self.layer.children[slot], self.places[slot]
        path = place.path
        if not path:
            frame = Frame(
                child, self.run, self._own(slot, self.params), self._own(slot, self.state),
                place.below, _again(self.site, use), _again(self.keypath, use),
                self.indices, self.stack, self.taken,
            )  # fmt: skip
            frame.at, frame.open, frame.before = self.at, self.open, self.before
            return frame, ""
        name = step = path[0] if len(path) == 1 else "/".join(path)
        count = self._use(slot, method)
        if count:
            step = f"{name}#{count}"
        frame = Frame(
            child, self.run, _get(self.params, path), _get(self.state, path), place.below,
            f"{self.site}/{step}" if self.site else step,
            f"{self.keypath}/{step}" if self.keypath else step,
            self.indices, self.stack, self.taken,
        )  # fmt: skip
        frame.at, frame.open, frame.before = self.at, self.open, self.before
        return frame, name

    def _own(self, slot: str, tree: dict[str, Any]) -> dict[str, Any]:
        """What of params or state is for a child without a level: not its siblings'."""
        if len(self.places) == 1 or not tree:
            return tree
        others = {s: place for s, place in self.places.items() if s != slot}
        taken = tree.keys() & (closed(others) or ())
        return {k: v for k, v in tree.items() if k not in taken} if taken else tree

    def _leads_to(self, start: Start, slot: str, site: str, name: str) -> bool:
        """Whether a run that begins further down has to go through a child."""
        below = start.below(
            site, uses=bool(name) and _is_shared(self.layer.children[slot])
        )
        if name or not below:
            return bool(below)
        first = below.partition("/")[0].partition("#")[0]
        steps = closed({slot: self.places[slot]})
        if steps is None:  # a leaf, or what has one that adds no level
            return bool(self.places[slot].below)
        return first in steps or (first.isdigit() and "*" in steps)

    def _take_state(self, slot: str, before: State, after: State) -> None:
        """The new state of a child, if it has changed."""
        if after is before:
            return
        self._check_trace(slot)
        path = self.places[slot].path
        new = after if path else {**self.state, **after}
        self.state = _put(self.state, path, new)

    def _use(self, slot: str, method: str) -> int:
        """How often this child was called before: shares weights, not randomness."""
        if method not in ("apply", "step"):
            return 0
        use = self.uses.get(slot, 0)
        self.uses[slot] = use + 1
        return use

    def _check_trace(self, slot: str) -> None:
        """Refuses new state from inside a transformation that this code put around it."""
        if self.trace is None or self.run.recorder or self.trace == trace_now():
            return
        raise ValueError(
            f"{self.layer.kind}: {slot!r} changes its state inside of a JAX "
            "transformation, which the state cannot leave. Put remat, repeat, scan or "
            "ensemble around the layer instead."
        )

    def _check_names(self, names: frozenset[str] | None, layer: Any) -> None:
        """Params and state for no layer are a mistake: a stale or foreign tree."""
        if names is None or layer.partial:
            return
        for what, tree in (("params", self.params), ("state", self.state)):
            if tree.keys() <= names:
                continue
            extra = sorted(map(str, tree.keys() - names))
            raise ValueError(
                f"{what}: no layer is called {extra[0]!r}. "
                f"{nearest(extra[0], sorted(names))} "
                f"Take it out, or pass the {what} that init returned."
            )


def _again(path: str, use: int | None) -> str:
    """The path of one of several runs of a body: `f`, `f#1`; inside of `f#1`, `f#1.0`."""
    if use is None:
        return path
    if "#" in path.rpartition("/")[2]:
        return f"{path}.{use}"
    return f"{path}#{use}" if use else path


def _is_shared(layer: Any) -> bool:
    """Whether a layer runs its body several times, which its site does not tell."""
    while layer.transparent and layer.plain.kind != "shared":
        layer = layer.children["f"]
    return layer.plain.kind == "shared"


def check_state(before: State, after: Any, kind: str) -> State:
    """The new state of a layer: exactly the structure, shapes and dtypes it came with."""
    if not isinstance(after, dict):
        raise TypeError(
            f"{kind}: apply takes state, so it must return (y, new_state) with a dict, "
            f"got {type(after).__name__}."
        )
    old = cast(Any, jax.tree.flatten(before))
    new = cast(Any, jax.tree.flatten(after))
    if old[1] != new[1] or not all(map(same, old[0], new[0])):
        raise ShapeError(
            kind,
            f"new state {show(before)}",
            show(after),
            "Return the state with the structure, shapes and dtypes it came with.",
        )
    return cast("State", after)


def trace_now() -> Any:
    """Which transformation is being traced, to be compared."""
    from jax.extend import core  # 10 ms that a model without a wire does not need

    return cast(Any, core).get_opaque_trace_state(convention="axonlike")


@lru_cache(maxsize=65536)
def path_words(purpose: str, path: str) -> tuple[int, int]:
    """A 64-bit hash of a purpose ("init" or "apply") and a path, as two words."""
    data = hashlib.blake2b(f"{purpose}:{path}".encode(), digest_size=8).digest()
    return int.from_bytes(data[:4], "big"), int.from_bytes(data[4:], "big")


def fold_path(key: Key, purpose: str, path: str) -> Key:
    """The key of one layer: the root key folded with the hash of its path."""
    high, low = path_words(purpose, path)
    return jax.random.fold_in(jax.random.fold_in(key, high), low)


def _get(tree: Mapping[str, Any], path: tuple[str, ...]) -> Any:
    for step in path:
        found = tree.get(step)
        if found is None:
            return {}
        if not isinstance(found, dict):
            raise TypeError(
                f"params or state: expected a dict at {step!r}, "
                f"got {show(found)}. Pass the trees that init returned."
            )
        tree = cast("dict[str, Any]", found)
    return tree


def _put(tree: Mapping[str, Any], path: tuple[str, ...], value: Any) -> dict[str, Any]:
    if not path:
        return value
    first, *rest = path
    below = _put(tree.get(first, {}), tuple(rest), value)
    return {**tree, first: below}
