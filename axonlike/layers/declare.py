"""Layers that only declare something: an input's spec, a parameter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp

from axonlike.errors import ShapeError
from axonlike.initializers import Initializer, zeros
from axonlike.layer import layer
from axonlike.layers.checks import is_int
from axonlike.spec import Spec, canonical, is_spec, is_unknown, names_of, show, size_of
from axonlike.spec import spec as parse
from axonlike.types import Array, Key, Params, PyTree


@layer
def input(spec: PyTree, dtype: Any = None, *, name: str | None = None) -> Any:
    """The identity that enforces a declared input, as the first layer of a pipe.

    A name stands for one size within one call; sizes must be equal.

    Args:
        spec: text as for `spec`, a tuple of ints and None, a `Spec` or a
            `jax.ShapeDtypeStruct`; or a tuple, list or dict of those for several inputs.
        dtype: of the input; None takes any (a `Spec` in `spec` brings its own).

    Shapes:
        input, output: as declared.

    Raises:
        ShapeError: the input has other axes, sizes, dtype or structure.
        TypeError: what is declared is no shape.

    Example:
        >>> import axonlike as al
        >>> model = al.input("b 784") >> al.dense(10)
        >>> model.output_spec((None, 784)).shape
        (_0, 10)
        >>> model.output_spec((None, 28, 28))
        Traceback (most recent call last):
        axonlike.errors.ShapeError: input: expected [b, 784], got float32[_0, 28, 28]. ...
    """
    specs, tree = cast(Any, jax.tree.flatten(spec, is_leaf=is_spec))
    leaves = [_declared(item, dtype) for item in specs]

    def apply(params: Params, x: PyTree) -> PyTree:
        if cast(Any, jax.tree.structure(x)) != tree:
            wanted = jax.tree.unflatten(
                tree, [_text(leaf[0], leaf[1]) for leaf in leaves]
            )
            raise ShapeError("input", str(wanted), show(x), "Pass what was declared.")
        sizes: dict[str, Any] = {}
        pairs = list(zip(leaves, jax.tree.leaves(x), strict=True))
        for leaf, array in [*pairs, *pairs]:  # again, once every name is bound
            _enforce(leaf[0], leaf[1], array, sizes)
        return x

    return None, apply


Declared = tuple[tuple[Any, ...], Any]


def _declared(spec: Any, dtype: Any) -> Declared:
    """Sizes and dtype; a `Spec` or a `jax.ShapeDtypeStruct` brings its own dtype."""
    if isinstance(spec, Spec):
        return spec.dims, spec.dtype
    if isinstance(spec, jax.ShapeDtypeStruct):
        return tuple(n if is_int(n) else str(n) for n in spec.shape), spec.dtype
    if not (isinstance(spec, str) or is_spec(spec)):
        raise TypeError(
            f"input: expected text such as 'b 784', al.spec(...) or a tuple of ints and "
            f"None, got {type(spec).__name__}. Several go in a tuple, list or dict."
        )
    return parse(spec).dims, None if dtype is None else canonical(dtype)


def _text(dims: tuple[Any, ...], dtype: Any) -> str:
    return f"{'' if dtype is None else dtype}[{', '.join(map(str, dims))}]"


def _enforce(
    dims: tuple[Any, ...], dtype: Any, x: Array, sizes: dict[str, Any]
) -> None:
    """One array against its declaration; `sizes` binds the names of this call."""
    fits = x.ndim == len(dims) and (dtype is None or x.dtype == dtype)
    for dim, size in zip(dims, x.shape, strict=False):
        if isinstance(dim, int):
            fits = fits and not is_unknown(size) and size == dim
        elif dim.isidentifier() and not dim.startswith("_"):
            fits = fits and sizes.setdefault(dim, size) == size
    for dim, size in zip(dims, x.shape, strict=False):
        computed = not isinstance(dim, int) and not dim.isidentifier()
        if fits and computed and all(name in sizes for name in names_of(dim)):
            fits = size_of(dim, sizes) == size
    if not fits:
        bound = ", ".join(
            f"{k} = {v}"
            for k, v in sizes.items()
            if any(k in names_of(dim) for dim in dims) and str(v) != k
        )
        hint = "Reshape it, or declare what comes in."
        raise ShapeError(
            "input",
            _text(dims, dtype) + (f" with {bound}" if bound else ""),
            show(x),
            hint,
        )


@layer
def parameter(
    shape: tuple[int, ...],
    init: Callable[..., Array] | Initializer = zeros(),
    *,
    param_dtype: Any = jnp.float32,
    name: str | None = None,
) -> Any:
    """An array to learn, without an input: a child of a `wire`, read as `sub.name()`.

    Args:
        shape: of the array.
        init: `(key, shape, dtype) -> array`.
        param_dtype: of the array.

    Shapes:
        output: `shape`, in `param_dtype`.
        value: the same, the one param.

    Raises:
        ValueError: the shape is not a tuple of sizes.

    Example:
        >>> import jax, jax.numpy as jnp, axonlike as al
        >>> def shifted(sub, x):
        ...     return x + jnp.broadcast_to(sub.shift(), x.shape)
        >>> model = al.wire(shifted, shift=al.parameter((3,)))
        >>> params, state = model.init(jax.random.key(0), (None, 3))
        >>> params["shift"]["value"]
        Array([0., 0., 0.], dtype=float32)
    """
    if not isinstance(shape, (tuple, list)) or not all(
        isinstance(n, int) and n >= 0 for n in shape
    ):
        raise ValueError(f"parameter: shape must be a tuple of sizes, got {shape!r}.")

    def make(key: Key) -> Params:
        return {"value": init(key, tuple(shape), param_dtype)}

    def apply(params: Params) -> Array:
        return params["value"]

    return make, apply
