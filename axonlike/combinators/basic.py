"""Combinators that need nothing but calls of their children."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, cast

import jax
import jax.numpy as jnp

from axonlike.errors import ShapeError
from axonlike.frame import Frame
from axonlike.layer import OPERATORS, Layer, Node, as_layer, layer, lift
from axonlike.names import Place, Places, assign, given, inside, settle
from axonlike.paths import check_name
from axonlike.spec import same, show
from axonlike.types import PyTree

Call = Callable[[Any], Any]
Rule = Callable[[dict[str, Call], Any], Any]


def _identity(x: PyTree) -> PyTree:
    """The input as it is: what residuals add to, and branches pass on."""
    return x


def several(
    factory: Any,
    layers: tuple[Any, ...],
    named: Mapping[str, Any],
    rule: Rule,
    *reserved: str,
) -> Any:
    """A combinator over any number of children; `rule` gets them as calls by slot.

    Children are layers here: functions are lifted, and given names moved to where the
    factory keeps them, by calling the factory again.
    """
    kind = factory.__name__
    if layers and named:
        raise TypeError(
            f"{kind}: children are named by keyword or not at all, got {len(layers)} "
            f"without a name and {sorted(named)}. Name them all, or use name=."
        )
    if not all(isinstance(item, Layer) for item in layers):
        return factory(*(as_layer(item, kind) for item in layers))
    if not all(isinstance(c, Layer) and c.name is None for c in named.values()):
        return factory(**{k: as_layer(c, kind).named(None) for k, c in named.items()})
    children: Mapping[str, Layer]
    if named:
        for name in named:
            check_name(name, ("name", *reserved))
        children, places = named, {k: given(k, c) for k, c in named.items()}
    else:
        children, places = assign(list(layers), splice=kind == "serial")

    def run(frame: Frame, args: Any, kwargs: Any, method: str) -> PyTree:
        calls = {slot: _call(frame, slot) for slot in frame.layer.children}
        return rule(calls, one_input(args, kwargs, kind))

    return Node(run, children, places)


def wrapper(
    f: Layer,
    run: Callable[[Frame, tuple[Any, ...], Mapping[str, Any], str], Any],
    extra: Mapping[str, Layer] | None = None,
    view: Callable[[Frame, Any], Any] | None = None,
) -> Node:
    """A combinator around one body that adds no level: its paths are the body's."""
    children = {"f": f}
    places: Places = inside(f)
    for name, child in (extra or {}).items():
        children[name] = child
        stem = name if child.name is None else None
        places[name] = Place((child.name or name,), child.places, stem)
    return Node(run, children, settle(places), transparent=True, stem=f.stem, view=view)


def _call(frame: Frame, slot: str) -> Call:
    def call(x: PyTree) -> PyTree:
        return frame.call(slot, (x,))

    return call


def one_input(args: tuple[Any, ...], kwargs: Mapping[str, Any], kind: str) -> PyTree:
    """The inputs as the one pytree that most combinators take."""
    if len(args) == 1 and not kwargs:
        return args[0]
    if args and kwargs:
        raise TypeError(
            f"{kind}: expected one input, got {len(args)} and {sorted(kwargs)}."
        )
    return dict(kwargs) if kwargs else args


@layer
def serial(*layers: Any, name: str | None = None, **named: Any) -> Any:
    """Layers one after the other: `x -> h(g(f(x)))`; the operator `>>`.

    Unnamed serials inside flatten, so how a pipe was put together leaves no trace.
    `serial()` is the identity.

    Args:
        layers: layers or functions, named automatically: kind, kind_1, ...
        named: or all of them by keyword.

    Shapes:
        input: what the first layer takes.
        output: what the last one returns.

    Raises:
        TypeError: an argument is not a layer, or positional and named ones are mixed.
        ValueError: two layers have one name.

    Example:
        >>> import jax, axonlike as al
        >>> model = al.dense(8) >> (jax.nn.relu >> al.dense(2))
        >>> model == al.serial(al.dense(8), jax.nn.relu, al.dense(2))
        True
        >>> list(model.children)
        ['dense', 'relu', 'dense_1']
    """
    if named and not layers:
        return serial(*(as_layer(c, "serial").named(_key(k)) for k, c in named.items()))
    items = [as_layer(item, "serial") for item in layers]
    if any(item.factory is serial and item.name is None for item in items):
        return serial(*(inner for item in items for inner in _flat(item)))

    def rule(calls: dict[str, Call], x: PyTree) -> PyTree:
        for call in calls.values():
            x = call(x)
        return x

    return several(serial, layers, named, rule)


def _key(name: str) -> str:
    return check_name(name, ("name", "layers"))


def _flat(item: Layer) -> list[Layer]:
    """The items of an unnamed serial, those of unnamed serials inside it included."""
    plain = item.factory is serial and item.name is None
    return list(item.config["layers"]) if plain else [item]


@layer
def branch(*layers: Any, name: str | None = None, **named: Any) -> Any:
    """One input to several layers: `x -> (f(x), g(x))`; the operator `&`.

    Args:
        layers: layers or functions; the output is a tuple.
        named: or by keyword; the output is a dict.

    Shapes:
        input: what every child takes.
        output: a tuple or dict with an output for each child.

    Raises:
        TypeError: an argument is not a layer, or positional and named ones are mixed.

    Example:
        >>> import axonlike as al
        >>> heads = al.branch(mean=al.dense(2), scale=al.dense(1))
        >>> {k: v.shape for k, v in heads.output_spec(al.spec("b 8")).items()}
        {'mean': (b, 2), 'scale': (b, 1)}
    """

    def rule(calls: dict[str, Call], x: PyTree) -> PyTree:
        outputs = {slot: call(x) for slot, call in calls.items()}
        return outputs if named else tuple(outputs.values())

    return several(branch, layers, named, rule)


@layer
def parallel(*layers: Any, name: str | None = None, **named: Any) -> Any:
    """Each layer on its own input: `(x1, x2) -> (f(x1), g(x2))`; the operator `@`.

    Args:
        layers: layers or functions, for a tuple of as many inputs.
        named: or by keyword, for a dict with these keys.

    Shapes:
        input: a tuple or dict with an input for each child.
        output: a tuple or dict with an output for each child.

    Raises:
        ShapeError: the input has other items than there are children.

    Example:
        >>> import axonlike as al
        >>> towers = al.dense(2) @ al.dense(3)
        >>> [y.shape for y in towers.output_spec((al.spec("b 4"), al.spec("b 5")))]
        [(b, 2), (b, 3)]
    """

    def rule(calls: dict[str, Call], x: PyTree) -> PyTree:
        inputs = _matched(x, list(calls), bool(named))
        outputs = {slot: call(inputs[slot]) for slot, call in calls.items()}
        return outputs if named else tuple(outputs.values())

    return several(parallel, layers, named, rule)


def _matched(x: PyTree, slots: list[str], named: bool) -> dict[str, Any]:
    if named:
        if not isinstance(x, dict) or set(cast("dict[str, Any]", x)) != set(slots):
            got = (
                sorted(map(str, cast("dict[str, Any]", x)))
                if isinstance(x, dict)
                else show(x)
            )
            raise ShapeError(
                "parallel", f"a dict with {sorted(slots)}", str(got),
                "Give each named child its input.",
            )  # fmt: skip
        return cast("dict[str, Any]", x)
    items = list(cast("tuple[Any, ...]", x)) if isinstance(x, (tuple, list)) else None
    if items is None or len(items) != len(slots):
        got = f"{len(items)} inputs" if items is not None else show(x)
        raise ShapeError(
            "parallel", f"a tuple of {len(slots)} inputs", got,
            "Give each child its input, or use branch for one input to all.",
        )  # fmt: skip
    return dict(zip(slots, items, strict=True))


@layer
def add(*layers: Any, name: str | None = None, **named: Any) -> Any:
    """The sum of what several layers make of one input: `x -> f(x) + g(x)`; `+`.

    Args:
        layers: layers or functions; none of them: the sum of an incoming tuple or dict.
        named: or by keyword.

    Shapes:
        input: what every child takes.
        output: the one shape of all children's outputs.

    Raises:
        ShapeError: the outputs differ in shape or dtype.

    Example:
        >>> import axonlike as al
        >>> (al.dense(3) + al.dense(3)).output_spec(al.spec("b 4")).shape
        (b, 3)
    """
    return several(add, layers, named, _merging("add", jnp.add))


@layer
def multiply(*layers: Any, name: str | None = None, **named: Any) -> Any:
    """The product of what several layers make of one input: gates; the operator `*`.

    Args:
        layers: layers or functions; none of them: the product of an incoming tuple or dict.
        named: or by keyword.

    Shapes:
        input: what every child takes.
        output: the one shape of all children's outputs.

    Raises:
        ShapeError: the outputs differ in shape or dtype.

    Example:
        >>> import jax, axonlike as al
        >>> gate = al.dense(3) >> jax.nn.sigmoid
        >>> (al.dense(3) * gate).output_spec(al.spec("b 4")).shape
        (b, 3)
    """
    return several(multiply, layers, named, _merging("multiply", jnp.multiply))


@layer
def concatenate(
    *layers: Any, axis: int = -1, name: str | None = None, **named: Any
) -> Any:
    """The outputs of several layers of one input, joined along an axis; the operator `|`.

    Args:
        layers: layers or functions; none of them: joins an incoming tuple or dict.
        axis: along which to join.
        named: or by keyword.

    Shapes:
        input: what every child takes.
        output: the children's outputs, which agree but for `axis`.

    Raises:
        ShapeError: the outputs differ elsewhere than at `axis`.

    Example:
        >>> import axonlike as al
        >>> (al.dense(3) | al.identity).output_spec(al.spec("b 4")).shape
        (b, 7)
    """
    if not isinstance(axis, int):
        raise TypeError(f"concatenate: axis must be an int, got {axis!r}.")

    def join(items: dict[str, Any]) -> Any:
        arrays = list(items.values())
        first = arrays[0]
        for other in arrays[1:]:
            if not _fits(first, other, axis):
                raise ShapeError(
                    "concatenate", f"shapes and dtypes equal but at axis {axis}",
                    _listed(items), "Reshape or project the branches first.",
                )  # fmt: skip
        return jnp.concatenate(arrays, axis)

    def again(*items: Any, **keys: Any) -> Layer:
        return concatenate(*items, axis=axis, **keys)

    again.__name__ = "concatenate"
    return several(again, layers, named, _merged("concatenate", join), "axis")


def _fits(a: Any, b: Any, axis: int) -> bool:
    if a.ndim != b.ndim or a.dtype != b.dtype or not -a.ndim <= axis < a.ndim:
        return False
    at = axis % a.ndim
    return all(
        m == n for i, (m, n) in enumerate(zip(a.shape, b.shape, strict=True)) if i != at
    )


def _merging(kind: str, operation: Callable[[Any, Any], Any]) -> Rule:
    """A rule that reduces equal outputs by a binary operation."""

    def reduce(items: dict[str, Any]) -> Any:
        first, *others = items.values()
        if not all(same(first, other) for other in others):
            raise ShapeError(
                kind, "outputs of one shape and dtype", _listed(items),
                "Project the branches to equal widths.",
            )  # fmt: skip
        return functools.reduce(operation, items.values())

    return _merged(kind, reduce)


def _merged(kind: str, merge: Callable[[dict[str, Any]], Any]) -> Rule:
    """A rule over the children's outputs, or without children over the input's items."""

    def rule(calls: dict[str, Call], x: PyTree) -> PyTree:
        if calls:
            return merge({slot: call(x) for slot, call in calls.items()})
        if isinstance(x, dict) and x:
            return merge(cast("dict[str, Any]", x))
        if isinstance(x, (tuple, list)) and x:
            items = cast("list[Any]", x)
            return merge({str(i): item for i, item in enumerate(items)})
        raise ShapeError(kind, "a tuple or dict to merge", show(x), "Give it layers.")

    return rule


def _listed(items: Mapping[str, Any]) -> str:
    return ", ".join(f"{slot} {show(y)}" for slot, y in items.items())


def _lifted(factory: Any, f: Any, *args: Any, **kwargs: Any) -> Layer | None:
    """The same call with the body lifted, where it was a plain function."""
    if isinstance(f, Layer):
        return None
    return factory(as_layer(f, factory.__name__), *args, **kwargs)


def forward(frame: Frame, args: Any, kwargs: Any, method: str) -> PyTree:
    """Runs the body as it is."""
    return frame.call("f", args, kwargs, method)


_identity.__name__ = "identity"
_identity.__axonlike_source__ = "al.identity"  # type: ignore[attr-defined]
identity = lift(_identity)
"""The layer that returns its input: `residual`'s shortcut, and a branch that passes on."""


@layer
def residual(f: Any, shortcut: Any = identity, *, name: str | None = None) -> Any:
    """A layer around a shortcut: `x -> shortcut(x) + f(x)`.

    Adds no level to paths; a shortcut with params stands at `shortcut/`.

    Args:
        f: a layer or function.
        shortcut: what is added to its output; a projection where the width changes.

    Shapes:
        input: what `f` and `shortcut` take.
        output: what both return.

    Raises:
        ShapeError: `f` and the shortcut return different shapes or dtypes.

    Example:
        >>> import jax, axonlike as al
        >>> block = al.residual(al.layer_norm() >> al.dense(8) >> jax.nn.gelu)
        >>> block.output_spec(al.spec("b 8")).shape
        (b, 8)

    References:
        He et al., "Deep Residual Learning for Image Recognition", CVPR 2016.
    """
    if not isinstance(f, Layer) or not isinstance(shortcut, Layer):
        return residual(
            as_layer(f, "residual"), as_layer(shortcut, "residual: shortcut")
        )
    plain = shortcut.named(None) == identity

    def run(frame: Frame, args: Any, kwargs: Any, method: str) -> PyTree:
        if method != "apply":
            return frame.call("f", args, kwargs, method)
        if plain:
            kept = one_input(args, kwargs, "residual")
        else:
            kept = frame.call("shortcut", args, kwargs)
        y = frame.call("f", args, kwargs)
        return jax.tree.map(_sum, kept, y)

    def _sum(kept: Any, y: Any) -> Any:
        if not same(kept, y):
            raise ShapeError(
                "residual", f"{show(kept)} from f, as from the shortcut", show(y),
                "Give it a shortcut that projects: residual(f, shortcut=dense(...)).",
            )  # fmt: skip
        return kept + y

    return wrapper(f, run, {} if plain else {"shortcut": shortcut})


@layer
def shared(f: Any, *, name: str | None = None) -> Any:
    """One layer, one set of weights, on every input: `(x1, x2) -> (f(x1), f(x2))`.

    Args:
        f: a layer or function.

    Shapes:
        input: a tuple or dict of what `f` takes.
        output: a tuple or dict of what `f` returns.

    Raises:
        ShapeError: the input is not a tuple or dict.

    Example:
        >>> import jax, axonlike as al
        >>> siamese = al.shared(al.dense(3))
        >>> params, state = siamese.init(jax.random.key(0), ((None, 4), (None, 4)))
        >>> params["kernel"].shape
        (4, 3)

    References:
        Bromley et al., "Signature Verification using a Siamese Time Delay Neural
        Network", NIPS 1993.
    """
    if not isinstance(f, Layer):
        return _lifted(shared, f)

    def run(frame: Frame, args: Any, kwargs: Any, method: str) -> PyTree:
        x = one_input(args, kwargs, "shared")
        if isinstance(x, dict):
            items = cast("dict[str, Any]", x).items()
            return {
                key: frame.call("f", (item,), use=i)
                for i, (key, item) in enumerate(items)
            }
        if not isinstance(x, (tuple, list)):
            raise ShapeError(
                "shared", "a tuple or dict", show(x), "Pass several inputs."
            )
        listed = enumerate(cast("list[Any]", x))
        return tuple(frame.call("f", (item,), use=i) for i, item in listed)

    return wrapper(f, run)


@layer
def on_item(i: int | str, f: Any, *, name: str | None = None) -> Any:
    """A layer on one item of a tuple or dict; the other items pass.

    Args:
        i: position or key.
        f: a layer or function.

    Shapes:
        input: a tuple or dict; item `i` is what `f` takes.
        output: the same with `f`'s output at `i`.

    Raises:
        ShapeError: the input has no such item.

    Example:
        >>> import axonlike as al
        >>> first = al.on_item(0, al.dense(3))
        >>> [y.shape for y in first.output_spec((al.spec("b 4"), al.spec("b 5")))]
        [(b, 3), (b, 5)]
    """
    if not isinstance(f, Layer):
        return on_item(i, as_layer(f, "on_item"))

    def run(frame: Frame, args: Any, kwargs: Any, method: str) -> PyTree:
        x = one_input(args, kwargs, "on_item")
        y = frame.call("f", (_item("on_item", x, i),))
        if isinstance(x, dict):
            return {**cast("dict[Any, Any]", x), i: y}
        items = list(cast("tuple[Any, ...]", x))
        items[cast(int, i)] = y
        return tuple(items)

    return wrapper(f, run)


@layer
def pick(i: int | str, *, name: str | None = None) -> Any:
    """One item of an incoming tuple or dict.

    Args:
        i: position or key.

    Shapes:
        input: a tuple or dict.
        output: its item `i`.

    Raises:
        ShapeError: the input has no such item.

    Example:
        >>> import axonlike as al
        >>> al.pick(1).output_spec((al.spec("b 4"), al.spec("b 5"))).shape
        (b, 5)
    """

    def apply(params: Any, x: PyTree) -> PyTree:
        return _item("pick", x, i)

    return None, apply


def _item(kind: str, x: PyTree, i: int | str) -> PyTree:
    try:
        if isinstance(x, dict) == isinstance(i, str) and isinstance(
            x, (dict, tuple, list)
        ):
            return cast(Any, x)[i]
    except (KeyError, IndexError):
        pass
    wanted = f"a dict with {i!r}" if isinstance(i, str) else f"a tuple with item {i}"
    raise ShapeError(kind, wanted, show(x), "Check what comes in.")


OPERATORS.update(
    serial=serial,
    branch=branch,
    parallel=parallel,
    add=add,
    multiply=multiply,
    concatenate=concatenate,
)
