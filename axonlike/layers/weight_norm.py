"""Wrappers that normalize a layer's weights: weight norm, spectral norm.

What they add (`kernel_scale`, say) stands beside the weight that it belongs to; the layer
inside sees the normalized weight in the place of the stored one.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from jax import lax

from axonlike.combinators.basic import wrapper
from axonlike.errors import PathError
from axonlike.frame import Frame
from axonlike.initialize import put
from axonlike.layer import Layer, as_layer, layer
from axonlike.layers.checks import epsilon_of, positive, wide
from axonlike.layers.normalize import Axes, axes_of, check_axes
from axonlike.selector import Where, choose, whole
from axonlike.spots import spots
from axonlike.types import Array, Key, Params, PyTree, State

_START = 15
"""Power iterations before the first step, as in PyTorch."""


@layer
def weight_norm(
    f: Any,
    where: Where = "**/kernel",
    *,
    epsilon: float = 1e-12,
    use_scale: bool = True,
    feature_axes: Axes | None = -1,
    name: str | None = None,
) -> Any:
    """A layer whose weights are learned as a direction and a length.

    The weight is `scale * kernel / length(kernel)` with one length for each output. At
    first the scale is the kernel's length, so that the layer computes what it would
    without; the optimizer then moves length and direction apart. Adds no level to paths.

    Args:
        f: a layer.
        where: a selector of params, by their paths in `f`.
        epsilon: added to the square of the length.
        use_scale: False: the length is 1, and not learned.
        feature_axes: the axes with a length each; None: one length for all.

    Shapes:
        As `f`'s.
        kernel_scale: for each kernel, beside it: `(features,)`, its lengths; absent when
            `use_scale` is false. The others likewise, by name.

    Raises:
        ValueError: `epsilon` is out of range, or axes are not ints.
        PathError: `where` means no param.

    Example:
        >>> import jax, axonlike as al
        >>> model = al.weight_norm(al.dense(8)) >> al.dense(2)
        >>> params, state = model.init(jax.random.key(0), (None, 4))
        >>> sorted(params["dense"])
        ['bias', 'kernel', 'kernel_scale']

    References:
        Salimans and Kingma, "Weight Normalization", NIPS 2016.
    """
    epsilon = epsilon_of("weight_norm", epsilon)
    kept = (
        None
        if feature_axes is None
        else check_axes("weight_norm", "feature_axes", feature_axes)
    )
    if not isinstance(f, Layer):
        return weight_norm(
            as_layer(f, "weight_norm"), where, epsilon=epsilon,
            use_scale=use_scale, feature_axes=feature_axes,
        )  # fmt: skip

    def run(frame: Frame, args: Any, kwargs: Any, method: str) -> PyTree:
        if frame.run.recorder is not None:
            more = partial(_Lengths, axes=kept, epsilon=epsilon) if use_scale else None
            return _recorded(frame, where, args, kwargs, method, more)
        params, lengths = _apart(
            _arrays(frame.params), ("_scale",) if use_scale else ()
        )
        for path, weight in _chosen(frame, where, params).items():
            scale = [_found(frame, lengths, f"{path}_scale")] if use_scale else []
            change = partial(_scaled, axes=kept, epsilon=epsilon)
            params[path] = _each_copy(change, path)(weight, *scale)
        inner = frame.under(None, _nested(params), frame.state)
        y = inner.call("f", args, kwargs, method)
        frame.absorb(inner)
        return y

    return wrapper(f, run)


@layer
def spectral_norm(
    f: Any,
    where: Where = "**/kernel",
    *,
    num_iterations: int = 1,
    epsilon: float = 1e-12,
    name: str | None = None,
) -> Any:
    """A layer whose weights are divided by their largest singular value.

    Of the weight as a matrix, inputs by outputs; estimated by power iteration, whose
    vectors are state: they move in training, and start after 15 iterations. Gradients go
    through the division, not through the iteration. Adds no level to paths.

    Args:
        f: a layer.
        where: a selector of params, by their paths in `f`.
        num_iterations: power iterations in a training step.
        epsilon: the least length that a vector, or singular value, is divided by.

    Shapes:
        As `f`'s.
        kernel_u: state, for each kernel: `(features,)`, of length 1. The others likewise.
        kernel_v: state: `(size / features,)`, of length 1.

    Raises:
        ValueError: `num_iterations` is not a positive int, or `epsilon` is out of range.
        PathError: `where` means no param.

    Example:
        >>> import jax, axonlike as al
        >>> model = al.spectral_norm(al.dense(8))
        >>> params, state = model.init(jax.random.key(0), (None, 4))
        >>> sorted(state), state["kernel_u"].shape
        (['kernel_u', 'kernel_v'], (8,))

    References:
        Miyato et al., "Spectral Normalization for Generative Adversarial Networks",
        ICLR 2018.
    """
    positive("spectral_norm", num_iterations=num_iterations)
    epsilon = epsilon_of("spectral_norm", epsilon)
    if not isinstance(f, Layer):
        return spectral_norm(
            as_layer(f, "spectral_norm"), where,
            num_iterations=num_iterations, epsilon=epsilon,
        )  # fmt: skip

    def run(frame: Frame, args: Any, kwargs: Any, method: str) -> PyTree:
        if frame.run.recorder is not None:
            more = partial(_Vectors, epsilon=epsilon)
            return _recorded(frame, where, args, kwargs, method, more)
        params, state = _arrays(frame.params), _arrays(frame.state)
        state, vectors = _apart(state, ("_u", "_v"), params)
        times = num_iterations if frame.run.train else 0
        for path, weight in _chosen(frame, where, params).items():
            own = [_found(frame, vectors, path + end) for end in ("_u", "_v")]
            change = partial(_divided, times=times, epsilon=epsilon)
            params[path], u, v = _each_copy(change, path)(weight, *own)
            vectors |= {f"{path}_u": u, f"{path}_v": v}
        inner = frame.under(None, _nested(params), _nested(state))
        before = inner.state
        y = inner.call("f", args, kwargs, method)
        changed = times or inner.state is not before
        after = _nested({**_arrays(inner.state), **vectors}) if changed else frame.state
        inner.state = after
        frame.absorb(inner)
        return y

    return wrapper(f, run)


class _Lengths(NamedTuple):
    """What init adds for a weight: the lengths that it has."""

    name: str
    axes: tuple[int, ...] | None
    epsilon: float

    def __call__(self, key: Key, params: Params) -> tuple[Params, State]:
        weight = params[self.name]
        length = 1 / _shrink(weight, self.axes, self.epsilon)
        kept = _kept(weight, self.axes)
        shape = tuple(weight.shape[axis] for axis in kept)
        return {
            f"{self.name}_scale": jnp.reshape(length, shape).astype(weight.dtype)
        }, {}


def _kept(weight: Any, axes: tuple[int, ...] | None) -> tuple[int, ...]:
    return () if axes is None else axes_of("weight_norm", "feature_axes", axes, weight)


def _shrink(weight: Array, axes: tuple[int, ...] | None, epsilon: float) -> Array:
    """One over the lengths, at the rank of the weight."""
    kept = _kept(weight, axes)
    others = tuple(axis for axis in range(weight.ndim) if axis not in kept)
    square = jnp.square(weight.astype(wide(weight.dtype)))
    return lax.rsqrt(jnp.sum(square, others, keepdims=True) + epsilon)


def _scaled(
    weight: Array, *scale: Array, axes: tuple[int, ...] | None, epsilon: float
) -> Array:
    """The weight at its learned lengths, or at length 1."""
    factor = _shrink(weight, axes, epsilon)
    for lengths in scale:
        factor = factor * jnp.reshape(lengths, factor.shape).astype(factor.dtype)
    return (weight.astype(factor.dtype) * factor).astype(weight.dtype)


class _Vectors(NamedTuple):
    """What init adds for a weight: vectors near its first singular ones."""

    name: str
    epsilon: float

    def __call__(self, key: Key, params: Params) -> tuple[Params, State]:
        matrix = _matrix(params[self.name])
        word = zlib.crc32(self.name.encode())
        u_key, v_key = jax.random.split(jax.random.fold_in(key, word))
        u = jax.random.normal(u_key, matrix.shape[1:], matrix.dtype)
        v = jax.random.normal(v_key, matrix.shape[:1], matrix.dtype)
        u, v = (_unit(x, self.epsilon) for x in (u, v))
        u, v = _iterated(matrix, u, v, _START, self.epsilon)
        return {}, {f"{self.name}_u": u, f"{self.name}_v": v}


def _matrix(weight: Array) -> Array:
    """Inputs by outputs, in the dtype of statistics."""
    wider = weight.astype(wide(weight.dtype))
    width = weight.shape[-1] if weight.ndim else 1
    return jnp.reshape(wider, (weight.size // width if width else 0, width))


def _unit(x: Array, epsilon: float) -> Array:
    return x / jnp.maximum(jnp.sqrt(jnp.sum(jnp.square(x))), epsilon)


def _iterated(
    matrix: Array, u: Array, v: Array, times: int, epsilon: float
) -> tuple[Array, Array]:
    """Both vectors after some power iterations."""

    def step(_: Any, vectors: tuple[Array, Array]) -> tuple[Array, Array]:
        u = _unit(_product(vectors[1], matrix), epsilon)
        return u, _unit(_product(matrix, u), epsilon)

    return cast("tuple[Array, Array]", lax.fori_loop(0, times, step, (u, v)))


def _product(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b, precision=lax.Precision.HIGHEST)


def _divided(
    weight: Array, u: Array, v: Array, *, times: int, epsilon: float
) -> tuple[Array, Array, Array]:
    """The weight over its largest singular value, and the vectors that tell it."""
    matrix = _matrix(weight)
    fixed = lax.stop_gradient((matrix, u.astype(matrix.dtype), v.astype(matrix.dtype)))
    u_now, v_now = _iterated(*fixed, times, epsilon) if times else fixed[1:]
    largest = _product(v_now, _product(matrix, u_now))
    divided = weight.astype(matrix.dtype) / jnp.maximum(largest, epsilon)
    after = (u_now.astype(u.dtype), v_now.astype(v.dtype)) if times else (u, v)
    return divided.astype(weight.dtype), *after


# --- what they share: weights and what stands beside them, by path


def _recorded(
    frame: Frame, where: Where, args: Any, kwargs: Any, method: str, more: Any
) -> PyTree:
    """Init's pass: notes for each chosen weight what is to be made beside it."""
    recorder = frame.run.recorder
    mark = recorder.mark()
    y = frame.call("f", args, kwargs, method)
    reached = recorder.since(mark, frame)
    specs = {path: spec for path, (_, spec) in reached.items()}
    for path in _chosen(frame, where, specs):
        if more is not None:
            recorder.extend(reached[path][0].path, more(path.rpartition("/")[2]))
    return y


def _arrays(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Arrays by path."""
    found = cast(Any, jax.tree_util.tree_flatten_with_path(tree)[0])
    return {jax.tree_util.keystr(p, simple=True, separator="/"): a for p, a in found}


def _nested(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Nested dicts of arrays by path."""
    tree: dict[str, Any] = {}
    for path, array in arrays.items():
        home, _, name = path.rpartition("/")
        put(tree, home, {name: array})
    return tree


def _apart(
    arrays: dict[str, Any],
    ends: tuple[str, ...],
    weights: Mapping[str, Any] | None = None,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What is the layer's own, and what a wrapper added beside a weight."""
    weights = arrays if weights is None else weights
    added = {
        path: array
        for path, array in arrays.items()
        if any(path.endswith(e) and path.removesuffix(e) in weights for e in ends)
    }
    return {k: a for k, a in arrays.items() if k not in added}, added


def _chosen(frame: Frame, where: Where, arrays: dict[str, Any]) -> dict[str, Any]:
    """The weights that a selector means, by path."""
    verb = f"{frame.layer.kind}: where"
    layers = list(spots(frame.layer, frame.places))
    found = choose(verb, where, list(arrays.items()), layers)
    return {
        path: array
        for (path, array), copies in zip(arrays.items(), found, strict=True)
        if whole(copies, verb, path, array)
    }


def _found(frame: Frame, arrays: Mapping[str, Any], path: str) -> Any:
    """What was added beside a weight."""
    if path not in arrays:
        hint = "Pass the params and state that init returned."
        raise PathError(frame.layer.kind, path, list(arrays), hint)
    return arrays[path]


def _each_copy(change: Callable[..., Any], path: str) -> Callable[..., Any]:
    """A change of one weight, of every copy where they are stacked."""
    for step in path.split("/"):
        change = jax.vmap(change) if step == "*" else change
    return change
