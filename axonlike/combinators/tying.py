"""Tying: one array that serves as a param of several layers."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any, cast

import jax.numpy as jnp

from axonlike.combinators.basic import wrapper
from axonlike.errors import PathError
from axonlike.frame import Frame
from axonlike.layer import Layer, as_layer, layer
from axonlike.names import Place
from axonlike.paths import join
from axonlike.spots import own_names, spots, translated
from axonlike.types import Params, PyTree


@layer
def tie(
    f: Any,
    pairs: Mapping[str, str],
    *,
    transpose: bool | Collection[str] = False,
    name: str | None = None,
) -> Any:
    """A model in which params are other params: one array, its gradient the sum of uses.

    What is tied is in the params once, at the source's path; `init` makes nothing for the
    target, and the model puts the source's array there whenever it runs.

    Args:
        f: a model.
        pairs: `{target: source}`, paths of arrays in its params. Inside copies both
            contain the same `*`, or the tie stands around the copies' body.
        transpose: whether the target is the source with its axes reversed; or the
            targets that are.

    Shapes:
        As `f`'s; params without the targets.

    Raises:
        TypeError: pairs are no paths.
        ValueError: a target is tied twice, or is itself a source: no chains.
        PathError: no layer makes such an array.
        ShapeError: target and source have other shapes.

    Example:
        >>> import jax, axonlike as al
        >>> model = al.tie(
        ...     al.serial(emb=al.embedding(50, 8), head=al.dense(50, use_bias=False)),
        ...     {"head/kernel": "emb/embedding"}, transpose=True)
        >>> params, state = model.init(jax.random.key(0), al.spec("b t", int))
        >>> list(params), al.count(params)
        (['emb'], 400)

    References:
        Press and Wolf, "Using the Output Embedding to Improve Language Models", 2017.
    """
    if not isinstance(f, Layer):
        return tie(as_layer(f, "tie"), pairs, transpose=transpose)
    turned = _check(pairs, transpose)

    def run(frame: Frame, args: Any, kwargs: Any, method: str) -> PyTree:
        if frame.run.recorder is not None:
            ends = _ends(frame.layer, frame.places)
            y = frame.call("f", args, kwargs, method)
            for target, (here, source) in zip(pairs, ends, strict=True):
                frame.run.recorder.tie(frame, here, source, target in turned)
            return y
        inner = frame.under(None, view(frame, frame.params), frame.state, inline=True)
        y = inner.call("f", args, kwargs, method)
        frame.absorb(inner)
        return y

    def view(frame: Frame, params: Params) -> Params:
        if frame.run.recorder is not None:
            return params
        ends = _ends(frame.layer, frame.places)
        for target, (here, source) in zip(pairs, ends, strict=True):
            value = _read(params, source)
            value = _turned(value, source.count("*")) if target in turned else value
            params = _with(params, here.split("/"), value)
        return params

    return wrapper(f, run, view=view)


def ties(model: Layer) -> Iterator[tuple[str, str]]:
    """Every `(target, source)` in a model, as paths from its root."""
    return ((target, source) for target, source, _ in turned_ties(model))


def turned_ties(model: Layer) -> Iterator[tuple[str, str, bool]]:
    """The same, and whether the target is the source with its axes reversed."""
    for spot in spots(model):
        if spot.layer.factory is tie:
            pairs = spot.layer.config["pairs"]
            turned = _check(pairs, spot.layer.config["transpose"])
            ends = _ends(spot.layer, spot.places)
            for name, (target, source) in zip(pairs, ends, strict=True):
                for home in spot.paths:
                    yield join(home, target), join(home, source), name in turned


def _ends(layer: Layer, places: Mapping[str, Place]) -> list[tuple[str, str]]:
    """The pairs of a tie, as paths from it where it stands."""
    base = join(*layer.places["f"].path)
    names = {alone: here for here, alone in own_names(layer, places).items()}
    return [
        (translated(join(base, target), names), translated(join(base, source), names))
        for target, source in layer.config["pairs"].items()
    ]


def _check(pairs: Any, transpose: Any) -> Collection[str]:
    """The targets that are transposed, every option having been checked."""
    ends: dict[Any, Any] = dict(cast(Any, pairs)) if isinstance(pairs, Mapping) else {}
    paths = [*ends, *ends.values()]
    if not paths or not all(isinstance(path, str) and path for path in paths):
        raise TypeError(
            f"tie: expected {{target path: source path}}, got {pairs!r}. "
            "Write tie(model, {'head/kernel': 'emb/embedding'})."
        )
    both = sorted(ends.keys() & set(ends.values()))
    if both:
        raise ValueError(
            f"tie: {both[0]!r} is a target and a source. "
            "Tie everything to the one that is no target."
        )
    if isinstance(transpose, bool):
        return list(ends) if transpose else []
    targets = [transpose] if isinstance(transpose, str) else list(transpose)
    for target in targets:
        if target not in ends:
            raise PathError("tie: transpose", str(target), ends, "Or write True.")
    return targets


def _read(params: Any, path: str) -> Any:
    """The array at a path."""
    found: Any = params
    for step in path.split("/"):
        found = (
            cast("dict[str, Any]", found).get(step) if isinstance(found, dict) else None
        )
    if not hasattr(found, "ndim"):
        hint = "Pass the params that init returned."
        raise PathError("tie", path, (), hint)
    return found


def _turned(value: Any, copies: int) -> Any:
    """With the axes after those of copies reversed."""
    axes = range(value.ndim)
    return jnp.transpose(value, (*axes[:copies], *reversed(axes[copies:])))


def _with(tree: Any, steps: list[str], value: Any) -> dict[str, Any]:
    """The tree with an array where nothing is."""
    first, *rest = steps
    if not rest and first in tree:
        raise ValueError(
            f"tie: the params hold {first!r}, which is tied and has no array of its own. "
            "Take it out, or pass the params that init returned."
        )
    return {**tree, first: _with(tree.get(first, {}), rest, value) if rest else value}
