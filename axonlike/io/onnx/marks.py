"""Layers that ONNX has a node for, as calls by themselves in what is traced.

Where such a call comes back with the shapes it was traced with, it becomes the layer's
node; where it does not, as under `vmap`, and for options that the node does not have, it
is converted like everything else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple, cast

import jax

from axonlike.io.onnx.graph import Graph, Value, same_shape
from axonlike.layer import Layer
from axonlike.paths import join

Weights = dict[str, Any]


class Made(NamedTuple):
    """What a layer's node is made from."""

    config: Any
    weights: Weights
    """Params and state as values of the graph, in their nested dicts."""
    inputs: list[Value]
    part: Callable[..., Value]
    """`part(name, x, ...)`: what one of its children makes of values."""


class Node(NamedTuple):
    """How a kind of layer becomes a node.

    `fits(config, inputs)` says whether the node can do what the layer does; a call with
    options for the layer is none.
    """

    fits: Callable[[Any, Sequence[Any]], bool]
    build: Callable[[Graph, Made], list[str]]
    opset: int = 18


class Mark(NamedTuple):
    """A call that stands for a layer."""

    node: Node
    layer: Layer
    tree: Any
    specs: list[Any]


class Marks:
    """The calls by name, for one model."""

    def __init__(self, opset: int, nodes: Mapping[Any, Node]) -> None:
        self.opset, self.nodes = opset, nodes
        self.calls: dict[str, Mark] = {}

    def marked(self, layer: Layer) -> Layer:
        """The same model, layers that have a node being calls by themselves."""
        children = {slot: self.marked(child) for slot, child in layer.children.items()}
        node = self.nodes.get(layer.factory)
        run = layer.run
        if node is not None and node.opset <= self.opset:
            run = self._call(layer, node)
        return replace(layer, children=MappingProxyType(children), run=run)

    def _call(self, layer: Layer, node: Node) -> Any:
        def run(frame: Any, args: Any, kwargs: Any, method: str) -> Any:
            inputs = _arrays(args)
            plain = method == "apply" and not kwargs and bool(inputs)
            plain = plain and layer.options.isdisjoint(frame.run.options)
            if not plain or not node.fits(layer.config, inputs):
                return layer.run(frame, args, kwargs, method)

            def inside(params: Any, state: Any, args: Any) -> Any:
                inner = frame.under(None, params, state, inline=True)
                return layer.run(inner, args, {}, method)

            given = frame.params, frame.state, args
            leaves, tree = cast(Any, jax.tree.flatten(given))
            inside.__name__ = name = f"onnx_{layer.kind}_{len(self.calls)}"
            self.calls[name] = Mark(node, layer, tree, leaves)
            return cast(Any, jax.jit(inside))(*given)

        return run

    def convert(
        self, c: Any, g: Graph, eqn: Any, inputs: Sequence[Value]
    ) -> list[Value] | None:
        """The layer's node, if this equation is the call of one as it was traced.

        `c` is the `Converter`, for what is written out after all.
        """
        mark = self.calls.get(eqn.params.get("name", ""))
        if mark is None or len(mark.specs) != len(eqn.invars):
            return None
        avals = [v.aval for v in eqn.invars]
        if not all(
            same_shape(a.shape, b.shape) and a.dtype == b.dtype
            for a, b in zip(avals, mark.specs, strict=True)
        ):
            return None
        whole = [g.whole(v, a.shape) for v, a in zip(inputs, avals, strict=True)]
        params, state, args = jax.tree.unflatten(mark.tree, whole)
        part = partial(_part, c, g, mark.layer, (params, state))
        given = Made(mark.layer.config, {**params, **state}, _arrays(args), part)
        names = mark.node.build(g, given)
        outs = [v.aval for v in eqn.outvars]
        pairs = zip(names, outs, strict=True)
        return [Value(name, aval.shape, aval.dtype) for name, aval in pairs]


def _part(
    c: Any, g: Graph, layer: Layer, trees: Any, name: str, x: Value, *more: Value
) -> Value:
    """What a child of a layer makes of values, written out."""
    own = [tree.get(name, {}) for tree in trees]
    given = *own, (x, *more) if more else x
    leaves, tree = cast(Any, jax.tree.flatten(given, is_leaf=_is_array))
    specs = [jax.ShapeDtypeStruct(v.shape, v.dtype) for v in leaves]
    child = c.marks.marked(layer.children[name])

    def run(*leaves: Any) -> Any:
        return child.predict(*jax.tree.unflatten(tree, leaves))

    program, around = cast(Any, jax.make_jaxpr)(run)(*specs), g.scope
    g.scope = join(around, name)
    (made,) = c.run(g, program, leaves)
    g.scope = around
    return g.whole(made, program.out_avals[0].shape)


def _arrays(args: Sequence[Any]) -> list[Any]:
    """The inputs, if they are arrays in a row; else none."""
    if len(args) == 1 and isinstance(args[0], tuple) and not _is_array(args[0]):
        args = cast("tuple[Any, ...]", args[0])
    return list(args) if all(map(_is_array, args)) else []


def _is_array(x: Any) -> bool:
    return hasattr(x, "shape") and hasattr(x, "dtype")
