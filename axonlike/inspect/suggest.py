"""What may be meant where shapes do not fit: only what would make them fit."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator
from typing import Any

import jax

from axonlike.errors import ShapeError
from axonlike.layer import Layer
from axonlike.layers.conv import conv
from axonlike.layers.linear import dense
from axonlike.layers.shape import flatten, reshape, transpose
from axonlike.spec import Spec, show, spec

_ARRAY = re.compile(r"(?:(\w+) )?([a-z]+\d+)?\[([^\[\]]*)\]")


def suggestions(error: Exception, frame: Any) -> list[str]:
    """Layers that would make an input or a shortcut fit, as sentences; each was tried."""
    found: list[str] = []
    if isinstance(error, ShapeError):
        wanted, got = _arrays(error.expected), _arrays(error.got)
        if error.where == "residual" and wanted and got:
            step = frame.site.rpartition("/")[2]
            is_copy = step == "*" or step.isdigit()
            found += (_last if is_copy else _shortcuts)(wanted[0][1], got[0][1])
        elif error.where == "repeat" and wanted and got:
            found += _stem(frame.layer, wanted[0][1], got[0][1])
        elif error.where in ("add", "multiply") and len(got) > 1:
            found += _widths(got)
        elif error.where == "conv" and got:
            found += _images(error.expected, got[0][1])
        elif wanted and got:
            found += _before(wanted[0][1], got[0][1])
    else:
        found += [*_products(str(error), frame), *_sums(str(error))]
    return found[:2]


def _arrays(text: str) -> list[tuple[str, Spec]]:
    """The arrays that a message names, with the word in front of each."""
    found: list[tuple[str, Spec]] = []
    for name, dtype, dims in _ARRAY.findall(text):
        try:
            found.append((name, spec(dims.replace(", ", " "), dtype or "float32")))
        except (TypeError, ValueError):
            continue
    return found


def _fits(layer: Layer, given: Spec, wanted: Spec) -> bool:
    return _shape(layer, given) == tuple(wanted.shape)


def _matches(layer: Layer, given: Spec, wanted: Spec) -> bool:
    """The same, where a declared name is any size, the same wherever it stands."""
    shape = _shape(layer, given)
    pairs = set(zip(map(str, wanted.dims), map(str, shape), strict=False))
    fixed = all(dim == size or not dim.isdigit() for dim, size in pairs)
    return fixed and len(shape) == wanted.ndim and len(dict(pairs)) == len(pairs)


def _shape(layer: Layer, given: Spec) -> tuple[Any, ...]:
    try:
        return tuple(layer.output_spec(given).shape)
    except Exception:  # it does not fit, whatever the reason
        return ()


def _shortcuts(kept: Spec, y: Spec) -> list[str]:
    """Projections that make of the shortcut what the body makes."""
    width = y.dims[-1] if y.dims else None
    if not isinstance(width, int):
        return []
    candidates, pairs = [dense(width)], _known(kept, y)
    if pairs:
        strides = {-(-n // m) for n, m in pairs}
        if len(strides) == 1:
            candidates.append(conv(width, (1,) * len(pairs), strides=strides.pop()))
    return [
        f"a projection on the shortcut: residual(f, shortcut={layer.headline})."
        for layer in candidates
        if _fits(layer, kept, y)
    ]


def _last(kept: Spec, y: Spec) -> list[str]:
    """What returns to the shortcut's width, where copies have to keep it."""
    width = kept.dims[-1] if kept.dims else None
    layer = dense(width) if isinstance(width, int) else None
    fits = layer is not None and _fits(layer, y, kept)
    return [f"{layer.headline} at the end of f."] if layer and fits else []


def _stem(layer: Layer, given: Spec, y: Spec) -> list[str]:
    """What makes of the input what the copies return, if they take that."""
    width = y.dims[-1] if y.dims else None
    stem = dense(width) if isinstance(width, int) else None
    fits = stem is not None and _fits(stem, given, y) and _fits(layer, y, y)
    return [f"{stem.headline} before it."] if stem and fits else []


def _known(a: Spec, b: Spec) -> list[tuple[int, int]]:
    """The spatial sizes of two images, if they are known."""
    sizes = zip(a.dims[1:-1], b.dims[1:-1], strict=False)
    pairs = [(n, m) for n, m in sizes if isinstance(n, int) and isinstance(m, int)]
    return pairs if a.ndim == b.ndim == len(pairs) + 2 else []


def _widths(items: list[tuple[str, Spec]]) -> list[str]:
    """One width for what is added."""
    (_, first), *others = items
    found: list[str] = []
    for name, other in others:
        if first.dims and isinstance(first.dims[-1], int) and first != other:
            layer = dense(first.dims[-1])
            if _fits(layer, other, first):
                found.append(f"{layer.headline} after {name}.")
    return found


def _images(expected: str, got: Spec) -> list[str]:
    """Pixels of a flat image; the channel of one that has none."""
    axes = expected.count(",") - 1
    sizes = [n for n in got.dims[1:] if isinstance(n, int)]
    if len(sizes) == got.ndim - 1 == axes > 1:
        return [f"{reshape(*sizes, 1).headline} before it."]
    size = got.dims[-1] if got.ndim == 2 else None
    if axes != 2 or not isinstance(size, int):
        return []
    for channels in (1, 3):
        side = math.isqrt(size // channels)
        if side > 1 and side * side * channels == size:
            return [f"{reshape(side, side, channels).headline} before it."]
    return []


def _before(wanted: Spec, got: Spec) -> list[str]:
    """Layers that make what is wanted of what came."""
    sizes = [n for n in wanted.dims[1:] if isinstance(n, int)]
    shaped = [reshape(*sizes)] if sizes and len(sizes) == wanted.ndim - 1 else []
    for layer in (flatten(), *_transposes(got), *shaped):
        if _matches(layer, got, wanted):
            return [f"{layer.headline} before it."]
    return []


def _transposes(got: Spec) -> Iterator[Layer]:
    axes = range(1, got.ndim)
    for order in itertools.permutations(axes) if got.ndim <= 5 else ():
        if list(order) != list(axes):
            yield transpose(*order)


def _products(message: str, frame: Any) -> list[str]:
    """Layers after which a matrix product finds its sizes equal."""
    sizes = re.search(r"got \((\w+),\) and \((\w+),\)", message)
    last = [y for _, y in frame.trail] or list(frame.given)
    if sizes is None or not last or not hasattr(last[-1], "shape"):
        return []
    have, need = sizes.groups()
    given = jax.ShapeDtypeStruct(last[-1].shape, last[-1].dtype)
    if not given.shape or str(given.shape[-1]) != have:
        return []
    known = _arrays(show(given))
    for layer in (flatten(), *_transposes(known[0][1])) if known else ():
        shape = _shape(layer, known[0][1])
        if shape and str(shape[-1]) == need:
            return [f"{layer.headline} before the product."]
    return []


def _sums(message: str) -> list[str]:
    """One width for what plain code adds."""
    shapes = re.search(r"broadcasting: \(([^)]*)\), \(([^)]*)\)", message)
    found = _arrays(f"[{shapes[1]}] [{shapes[2]}]") if shapes else []
    if len(found) < 2:
        return []
    (_, first), (_, second) = found
    width = first.dims[-1] if first.dims else None
    if not isinstance(width, int) or not _fits(dense(width), second, first):
        return []
    return [f"{dense(width).headline} for what is ({shapes[2] if shapes else ''})."]
