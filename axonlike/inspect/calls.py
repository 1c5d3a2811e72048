"""Every call of a layer as one equation of a jaxpr, by a name that tells which it is."""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import jax

from axonlike.frame import Frame
from axonlike.paths import join
from axonlike.types import PyTree

MARK = "axonlike_call_"
"""What the name of the jitted function that stands for a call begins with."""


class Entry(NamedTuple):
    """One call of a layer."""

    path: str
    """With `*` for copies, and the same for every use."""
    key: tuple[Any, ...]
    name: str
    layer: Any
    specs: list[str]
    """The shapes of what it returns."""
    is_copy: bool
    """Whether it is one of several copies, and not the first."""


class Calls:
    """Runs each layer as one jitted function whose name tells which it is."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self._above: list[tuple[str, str]] = [("", "")]

    def __call__(
        self, frame: Frame, args: Any, kwargs: Any, method: str, name: str
    ) -> PyTree:
        """What the layer returns; its new state in the frame."""
        stretch = frame.run.taps is not None  # it reads inside, and stops there
        if method != "apply" or stretch:
            return frame.layer.run(frame, args, kwargs, method)
        leaves, tree = cast(Any, jax.tree.flatten((args, dict(kwargs))))
        number, changed = len(self.entries), [False]
        self.entries.append(self._entry(frame, name))

        def call(params: Any, state: Any, arrays: Any) -> Any:
            items = iter(arrays)
            given = [next(items) if hasattr(x, "dtype") else x for x in leaves]
            args, kwargs = tree.unflatten(given)
            below = Frame(
                frame.layer, frame.run, params, state, frame.places, frame.site,
                frame.keypath, frame.indices,
            )  # fmt: skip
            below.given = frame.given
            self._above.append((frame.site, self.entries[number].key[0]))
            y = frame.layer.run(below, args, kwargs, "apply")
            self._above.pop()
            changed[0] = below.state is not state
            self.entries[number] = self.entries[number]._replace(specs=texts(y))
            return y, below.state

        call.__name__ = f"{MARK}{number}"
        arrays = [x for x in leaves if hasattr(x, "dtype")]
        y, state = cast(Any, jax.jit(call))(frame.params, frame.state, arrays)
        if changed[0]:
            frame.state = state
        return y

    def _entry(self, frame: Frame, name: str) -> Entry:
        steps = [step.partition("#")[0] for step in frame.site.split("/")]
        is_copy = any(step.isdigit() and step != "0" for step in steps)
        site, use = self._above[-1]
        rest = starred(frame.site[len(site) :].strip("/"))
        if frame.params:  # which its uses share
            rest = rest.partition("#")[0]
        key = (join(use, rest), len(self._above), id(frame.places), frame.layer.kind)
        return Entry(starred("/".join(steps)), key, name, frame.layer, [], is_copy)


def starred(path: str) -> str:
    """The path with `*` for the number of a copy."""
    return "/".join("*" if step.isdigit() else step for step in path.split("/"))


def texts(specs: PyTree) -> list[str]:
    """The shape of each array."""
    leaves = jax.tree.leaves(specs)
    return [shape_text(x if hasattr(x, "shape") else jax.typeof(x)) for x in leaves]


def shape_text(spec: Any) -> str:
    """A shape as `al.spec` takes it; the dtype where it is not float32."""
    dims = " ".join(map(str, spec.shape)) or "scalar"
    return dims if str(spec.dtype) == "float32" else f"{spec.dtype} {dims}"
