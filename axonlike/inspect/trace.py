"""A model run on shapes alone, with every call of a layer to be found in the jaxpr.

A layer's call is one equation there, a jitted function. Equal layers on equal inputs are
traced once, so that twelve equal blocks take the time of one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax

from axonlike.evaluation import evaluate
from axonlike.frame import Frame, Run
from axonlike.inspect.probe import is_smooth, summed
from axonlike.types import PyTree

LAYER = "axonlike_layer"
"""The name of the jitted function that stands for a layer's call begins with it.

What follows says how many of its last outputs are its state.
"""


class Call(NamedTuple):
    """One evaluation of a model: what is passed to `apply`, as shapes."""

    model: Any
    params: PyTree
    state: PyTree
    x: PyTree
    train: bool = False

    def forward(self) -> Any:
        """The jaxpr of the output and the new state."""
        return self._traced(self._run)

    def linear(self) -> Any:
        """The jaxpr of what is kept for the derivative with respect to the params."""

        def kept(params: PyTree, rest: Any) -> Any:
            smooth, others = _parted(params)

            def run(smooth: list[Any]) -> Any:
                return self._run(others(smooth), rest)

            return cast(Any, jax).linearize(run, smooth)[1]

        return self._traced(kept)

    def peak(self) -> int:
        """Bytes that XLA sets aside for a call and its gradients, all told.

        It is compiled for that, which takes as long as compiling takes.
        """
        smooth, others = _parted(self.params)

        def loss(smooth: list[Any], rest: Any) -> Any:
            y, state = self._run(others(smooth), rest, plain=True)
            return summed(y), (y, state)

        step = cast(Any, jax.jit(jax.value_and_grad(loss, has_aux=True)))
        compiled = step.lower(smooth, (self.state, self.x, self._key())).compile()
        sizes = compiled.memory_analysis()
        if sizes is None:
            raise ValueError("total: this backend does not tell what memory it takes.")
        arrays = sizes.argument_size_in_bytes + sizes.output_size_in_bytes
        return arrays + sizes.temp_size_in_bytes - sizes.alias_size_in_bytes

    def _key(self) -> Any:
        return jax.eval_shape(lambda: jax.random.key(0)) if self.train else None

    def _traced(self, function: Callable[..., Any]) -> Any:
        return jax.make_jaxpr(function)(self.params, (self.state, self.x, self._key()))

    def _run(self, params: PyTree, rest: Any, *, plain: bool = False) -> Any:
        state, x, key = rest
        run = Run(key, self.train, around=None if plain else Around())
        return evaluate(self.model, params, state, x, run)[:2]


def _parted(params: PyTree) -> tuple[list[Any], Callable[[list[Any]], PyTree]]:
    """The params that have derivatives, and all of them from others in their place."""
    leaves, tree = cast(Any, jax.tree.flatten(params))
    smooth = list(map(is_smooth, leaves))

    def others(new: list[Any]) -> PyTree:
        items = iter(new)
        both = zip(leaves, smooth, strict=True)
        return tree.unflatten([next(items) if s else leaf for leaf, s in both])

    return [leaf for leaf, s in zip(leaves, smooth, strict=True) if s], others


class Around:
    """Runs each layer that has a name as one jitted function, traced once."""

    def __init__(self) -> None:
        self._made: dict[Any, tuple[Any, list[Any]]] = {}

    def __call__(
        self, frame: Frame, args: Any, kwargs: Any, method: str, name: str
    ) -> PyTree:
        """What the layer returns; its new state in the frame."""
        stretch = frame.run.taps is not None  # it reads inside, and stops there
        if not name or method != "apply" or stretch:
            return frame.layer.run(frame, args, kwargs, method)
        leaves, tree = cast(Any, jax.tree.flatten((args, dict(kwargs))))
        fixed = tuple(None if hasattr(x, "dtype") else x for x in leaves)
        where = (frame.layer.named(None), tuple(frame.places), tree, fixed)
        if where not in self._made:
            self._made[where] = _jitted(frame, tree, fixed)
        function, changed = self._made[where]
        arrays = [x for x in leaves if hasattr(x, "dtype")]
        given = (frame.run.key, frame.indices, frame.params, frame.state, arrays)
        y, state = function(*given)
        if any(changed):
            frame.state = state
        return y


def _jitted(frame: Frame, tree: Any, fixed: Any) -> tuple[Any, list[bool]]:
    """A layer as a function of arrays, and whether it changed its state."""
    layer, run, places = frame.layer, frame.run, frame.places
    changed: list[bool] = []

    def call(key: Any, indices: Any, params: Any, state: Any, arrays: Any) -> Any:
        items = iter(arrays)
        leaves = [next(items) if x is None else x for x in fixed]
        args, kwargs = tree.unflatten(leaves)
        inner = Frame(
            layer, run._replace(key=key), params, state, places, indices=indices
        )
        inner.given = frame.given
        y = layer.run(inner, args, kwargs, "apply")
        changed.append(inner.state is not state)
        return y, inner.state

    call.__name__ = f"{LAYER}{len(jax.tree.leaves(frame.state))}"
    return cast(Any, jax.jit(call)), changed
