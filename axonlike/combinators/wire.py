"""The primitive combinator: ordinary Python over named children."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

from axonlike.errors import PathError, nearest
from axonlike.frame import Frame, trace_now
from axonlike.layer import Layer, Node, as_layer, layer
from axonlike.names import Place, Places, given
from axonlike.paths import check_name
from axonlike.signature import read
from axonlike.types import Params, PyTree


class Child:
    """A child as a wire's function sees it: called like a function; `params` to read."""

    __slots__ = ("__weakref__", "_frame", "_slot")

    def __init__(self, frame: Frame, slot: str) -> None:
        self._frame, self._slot = frame, slot

    def __call__(self, *args: Any, **kwargs: Any) -> PyTree:
        """Runs the child: its inputs, and options by name."""
        return self._frame.call(self._slot, args, kwargs)

    @property
    def params(self) -> Params:
        """The child's params, for tied weights."""
        return self._frame.child_params(self._slot)


class Group:
    """A list or dict of children: by index or key."""

    __slots__ = ("_frame", "_keys", "_name")

    def __init__(self, frame: Frame, name: str, keys: list[str]) -> None:
        self._frame, self._name, self._keys = frame, name, keys

    def __getitem__(self, key: int | str) -> Child:
        within = isinstance(key, int) and -len(self._keys) <= key < len(self._keys)
        chosen = self._keys[cast(int, key)] if within else key
        if chosen not in self._keys:
            raise PathError(f"wire: {self._name}", str(key), self._keys)
        return Child(self._frame, f"{self._name}/{chosen}")

    def __call__(self, *args: Any, **kwargs: Any) -> PyTree:
        """Raises: a list or dict of layers is not one of them."""
        raise TypeError(
            f"wire: {self._name} is several layers. Call one of them: "
            f"sub.{self._name}[{next(iter(self._keys))}](x)."
        )

    def __iter__(self) -> Iterator[Child]:
        return (Child(self._frame, f"{self._name}/{key}") for key in self._keys)

    def __len__(self) -> int:
        return len(self._keys)


class Sub:
    """What a wire's function receives first: its children as attributes."""

    __slots__ = ("_frame",)

    def __init__(self, frame: Frame) -> None:
        self._frame = frame

    def __getattr__(self, name: str) -> Any:
        children = self._frame.layer.children
        if name in children:
            return Child(self._frame, name)
        keys = [
            slot[len(name) + 1 :] for slot in children if slot.startswith(name + "/")
        ]
        if keys:
            return Group(self._frame, name, keys)
        known = {slot.split("/")[0] for slot in children}
        raise AttributeError(
            f"wire: no child is called {name!r}. {nearest(name, sorted(known))}"
        )


@layer
def wire(fn: Callable[..., Any], **children: Any) -> Any:
    """Layers wired by ordinary Python: `fn(sub, x)`, where `sub.name(x)` runs a child.

    A child called twice shares its weights and draws new random numbers; one not called
    keeps its state. A child may be a list or dict of layers: `sub.convs[0](x)`, at path
    `convs/0`. `sub.emb.params` reads weights.

    JAX's transformations work on a child (`jax.vmap(sub.f)`), as long as it changes no
    state; one that draws random numbers draws the same ones each time. `vmap`, `scan`,
    `repeat` and `remat` around the layer keep state and keys right.

    Args:
        fn: `fn(sub, *inputs)`; like a layer's `apply` it may ask for `key`, `train`,
            `emit` and static options by keyword-only parameter.
        children: layers or functions by name.

    Shapes:
        As `fn` makes them.

    Raises:
        TypeError: a child is not a layer, or `fn` asks for `state`, which only leaves have.
        ValueError: a name cannot be a step of a path.

    Example:
        >>> import jax, jax.numpy as jnp, axonlike as al
        >>> def gated(sub, x):
        ...     return sub.value(x) * jax.nn.sigmoid(sub.gate(x))
        >>> model = al.wire(gated, value=al.dense(3), gate=al.dense(3))
        >>> params, state = model.init(jax.random.key(0), (None, 4))
        >>> sorted(params)
        ['gate', 'value']
    """
    if isinstance(fn, Layer):
        raise TypeError(
            f"wire: expected a function fn(sub, x) first, got {fn.headline}. "
            "Name the layer as a child, and call it there: sub.name(x)."
        )
    if any(_unsettled(child) for child in children.values()):
        return wire(fn, **{name: _settled(name, c) for name, c in children.items()})
    sig = read(fn, 1)
    if "state" in sig.services:
        raise TypeError(
            "wire: fn asks for state, but a wire has none of its own. "
            "Keep it in a child: a layer whose apply takes state."
        )
    found, places = _children(children)

    def run(
        frame: Frame, args: tuple[Any, ...], kwargs: Mapping[str, Any], method: str
    ) -> PyTree:
        args, kwargs = sig.unpack(args, kwargs, frame.layer.kind)
        frame.trace = trace_now()
        if not sig.services and not sig.options:
            return fn(Sub(frame), *args, **kwargs)
        return fn(Sub(frame), *args, **frame.services(sig, kwargs))

    return Node(run, found, places, signature=sig)


def _children(children: Mapping[str, Any]) -> tuple[dict[str, Layer], Places]:
    found: dict[str, Layer] = {}
    places: Places = {}
    for name, child in children.items():
        check_name(name, ("fn", "name"))
        if isinstance(child, Layer):
            found[name], places[name] = child, given(name, child)
            continue
        for key, item in _items(child):
            slot = f"{name}/{key}"
            found[slot], places[slot] = item, Place((name, key), item.places)
    return found, places


def _items(group: Any) -> list[tuple[str, Layer]]:
    if isinstance(group, dict):
        named = cast("dict[str, Layer]", group)
        return [(check_name(k), v) for k, v in named.items()]
    return [(str(i), item) for i, item in enumerate(cast("list[Layer]", group))]


def _unsettled(child: Any) -> bool:
    if isinstance(child, dict):
        return any(map(_unsettled, cast("dict[str, Any]", child).values()))
    if isinstance(child, (list, tuple)):
        return any(map(_unsettled, cast("list[Any]", child)))
    return not isinstance(child, Layer) or child.name is not None


def _settled(name: str, child: Any) -> Any:
    """A child, or list or dict of children, as layers that leave their names to us."""
    if isinstance(child, dict):
        items = cast("dict[str, Any]", child).items()
        return {key: _settled(f"{name}/{key}", item) for key, item in items}
    if isinstance(child, (list, tuple)):
        items = cast("list[Any]", child)
        return [_settled(f"{name}/{i}", item) for i, item in enumerate(items)]
    return as_layer(child, f"wire: {name}").named(None)
