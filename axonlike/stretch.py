"""A stretch of a model as a layer: from one activation inside of it to another."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

from axonlike.combinators.basic import one_input
from axonlike.combinators.lifted import cond, ensemble, repeat, switch, vmap
from axonlike.combinators.over_time import scan
from axonlike.frame import Frame
from axonlike.layer import Layer, Node, as_layer, layer
from axonlike.names import inside
from axonlike.paths import join
from axonlike.sites import Points, Target, places, points_of, resolve
from axonlike.spots import spots
from axonlike.taps import Start, Stop, Taps, Unknown
from axonlike.types import PyTree


@layer
def between(model: Any, a: str, b: str, *, name: str | None = None) -> Any:
    """What a model makes of its activation `a` up to its activation `b`, as a layer.

    It takes what `a` holds, returns what `b` holds, and runs what comes after `a` up to
    `b`, on the params and state of the whole model, with the same keys: the rest of a
    classifier behind a hidden layer, the unembedding that a logit lens puts on every block.

    Args:
        model: any layer.
        a: path of the activation to begin with; `"input"`: the model's input.
        b: path of the activation to end with; `"output"`: the model's output.

    Shapes:
        input: those of `a`.
        output: those of `b`.

    Raises:
        PathError: a path means no activation.
        ValueError: a path means several; `b` does not come after `a`; what comes after `a`
            needs more than `a`, as in a residual; `a` is inside of what runs as one.

    Example:
        >>> import jax, jax.numpy as jnp, axonlike as al
        >>> model = al.serial(embed=al.dense(8), blocks=al.dense(8) ** 4, head=al.dense(2))
        >>> params, state = model.init(jax.random.key(0), (None, 3))
        >>> stream = model["blocks/*"].evaluate(params, state, jnp.ones((1, 3)))
        >>> unembed = al.between(model, "blocks", "output").predict
        >>> lens = jax.vmap(unembed, (None, None, 0))
        >>> stream.shape, lens(params, state, stream).shape
        ((4, 1, 8), (4, 1, 2))
    """
    if not isinstance(model, Layer) or model.name is not None:
        return between(as_layer(model, "between").named(None), a, b)
    if a == b:
        raise ValueError(f"between: nothing lies between {a!r} and itself.")
    start, end = _one(model, a, "input"), _one(model, b, "output")
    if start is not None:
        _check_open(model, start)

    def run(frame: Frame, args: Any, kwargs: Any, method: str) -> PyTree:
        begin, stop, points = _ends(start, end, frame)
        begins = (
            None if begin is None else Start(begin, one_input(args, kwargs, "between"))
        )
        inner = frame.under(None, inline=True)
        inner.taken, inner.open, inner.before = {}, True, frozenset()
        inner.run = frame.run._replace(
            taps=Taps(
                reads=frozenset(() if stop is None else [stop]),
                points=MappingProxyType(points),
                stop=stop is not None,
                start=begins,
            )
        )
        if begins is not None:
            args, kwargs = (Unknown(begins.site),), {}
        try:
            y = inner.call("f", args, kwargs)
        except Stop:
            (y,) = inner.taken.values()
        else:
            if stop is not None or isinstance(y, Unknown):
                raise ValueError(f"between: {b!r} does not come after {a!r}.")
        finally:
            frame.state = inner.state
        return y

    return Node(run, {"f": model}, inside(model), partial=True)


def _one(model: Layer, path: str, own: str) -> Target | None:
    """The one activation at a path; None for the model's own input or output."""
    if not isinstance(path, str):
        raise TypeError(f"between: expected a path, got {path!r}. Write 'blocks/3'.")
    if path == own and own not in (model.names or ()):
        return None
    found = list(resolve(model, tuple(path.split("/"))).values())
    if len(found) > 1 or not all(isinstance(s.chosen, int) for s in found[0].steps):
        raise ValueError(
            f"between: {path!r} means several activations. Choose one: copies by number."
        )
    return found[0]


def _ends(
    start: Target | None, end: Target | None, frame: Frame
) -> tuple[str | None, str | None, dict[str, tuple[int, ...]]]:
    """The sites of both ends in a run, and the copies that run by themselves there.

    Init's pass runs one copy for all of a stack.
    """
    ends = [target for target in (start, end) if target is not None]
    points = {} if frame.run.recorder is not None else points_of([], ends)
    first, last = (
        None if target is None else join(frame.site, _site(target, points))
        for target in (start, end)
    )
    alone = {join(frame.site, k): tuple(sorted(found)) for k, found in points.items()}
    return first, last, alone


def _site(target: Target, points: Points) -> str:
    return next(places(target, points)).site


def _check_open(model: Layer, start: Target) -> None:
    """Refuses to begin where a value is not the whole of what goes on."""
    site = "/".join(step.partition("#")[0] for step in _site(start, {}).split("/"))
    every = list(spots(model))
    if site == "output" and not any(site in spot.paths for spot in every):
        raise ValueError(
            "between: nothing comes after 'output', which the whole model returns. "
            "Begin at an activation inside of it, or at 'input'."
        )
    closed = [
        spot.layer.kind
        for spot in every
        if spot.layer.plain.factory in _AS_ONE or _is_tied(spot.layer.plain)
        if spot.owns(site) and site not in spot.paths
    ]
    if not any(site in spot.paths for spot in every):
        closed.append("layer that emits it")
    if closed:
        raise ValueError(
            f"between: {start.path!r} is inside of a {closed[0]}, which runs as one. "
            f"Begin before or after the {closed[0]}."
        )


def _is_tied(layer: Layer) -> bool:
    return layer.factory is repeat and layer.config["tied"]


_AS_ONE = (cond, ensemble, scan, switch, vmap)
