"""What stands for an array before there is one: shapes with named dims, and a dtype."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax.export import SymbolicScope, symbolic_shape

from axonlike.types import PyTree

Dim = int | str


@dataclass(frozen=True)
class Spec:
    """A shape with named dims and a dtype; made by `spec`.

    Kept as text, so it pickles, copies and compares; `shape` turns the names into
    the symbolic dims of `jax.export`, all from one scope, so that equal names mean
    equal sizes wherever they appear.

    Example:
        >>> import axonlike as al
        >>> al.spec("b 8") == al.spec("b 8"), al.spec("b 8").dims
        (True, ('b', 8))
    """

    dims: tuple[Dim, ...]
    dtype: np.dtype[Any]
    constraints: tuple[str, ...] = ()

    @property
    def shape(self) -> tuple[Any, ...]:
        """Sizes, ints and symbolic dims where a name was given."""
        return symbolic(self.dims, self.constraints)

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return len(self.dims)

    def __repr__(self) -> str:
        dims = " ".join(map(str, self.dims))
        rest = "".join(f", {c!r}" for c in self.constraints)
        rest = f", constraints=({rest[2:]},)" if rest else ""
        return f"al.spec({dims!r}, {self.dtype.name!r}{rest})"


def spec(
    dims: str | tuple[int | None, ...],
    dtype: Any = jnp.float32,
    constraints: str | tuple[str, ...] = (),
) -> Spec:
    """A shape written as text, `"b 28 28 1"`, and a dtype.

    Args:
        dims: sizes and names between blanks; a name is an unknown size, the same
            wherever it appears, an expression such as `4*h` or `t+1` holds no blanks,
            and `_` is an unknown size of its own per axis; `""` is a scalar. Or a tuple
            of sizes and None, which means `_`.
        dtype: of the array; `int` and `float` mean JAX's default width.
        constraints: facts about the names, such as `("t<=64",)`, for layers that
            compare sizes; they hold for every spec passed in the same call.

    Shapes:
        No array is made. `.shape` holds ints and `jax.export` symbolic dims.

    Raises:
        ValueError: a dim is neither a size nor an expression over names, or a
            constraint is not a comparison of those.
        TypeError: `dims` is neither text nor a tuple of sizes, or arrays have no such
            dtype.

    Example:
        >>> import axonlike as al
        >>> al.spec("b 28 28 1").shape
        (b, 28, 28, 1)
        >>> al.dense(10).output_spec(al.spec("b 128")).shape
        (b, 10)
    """
    if not (isinstance(dims, str) or dims == () or _is_shape(dims)):
        raise TypeError(
            f"spec: expected text such as 'b 28 28 1', or a tuple of sizes and None, "
            f"got {show(dims)}."
        )
    parts = dims.split() if isinstance(dims, str) else dims
    parsed = tuple(_dim(part, axis) for axis, part in enumerate(parts))
    facts = (constraints,) if isinstance(constraints, str) else tuple(constraints)
    try:
        _scope(facts)
    except Exception as error:
        raise ValueError(
            f"spec: constraints {facts!r} are not facts about sizes, such as ('t<=64',)."
        ) from error
    found = Spec(parsed, canonical(dtype), facts)
    try:
        sizes = found.shape
    except Exception as error:
        raise _not_sizes(dims) from error
    if len(sizes) != len(parsed) or any(n < 0 for n in sizes if not is_unknown(n)):
        raise _not_sizes(dims)
    return found


def _not_sizes(dims: Any) -> ValueError:
    return ValueError(
        f"spec: {dims!r} is not sizes and names between blanks, such as 'b 28 1'."
    )


def canonical(dtype: Any) -> np.dtype[Any]:
    """The dtype that JAX gives an array declared so (float64 is float32 without x64)."""
    try:
        if jnp.issubdtype(dtype, jax.dtypes.extended):
            return dtype
        found = np.dtype(jax.dtypes.canonicalize_dtype(dtype))
    except TypeError:
        found = np.dtype(object)
    if found.kind in "OSUMm":
        raise TypeError(
            f"dtype: expected one that arrays have, got {dtype!r}. Write jnp.float32, int "
            "or 'bfloat16'."
        )
    return found


def as_spec(x: PyTree, where: str = "input") -> PyTree:
    """`jax.ShapeDtypeStruct`s for whatever stands for arrays, names sharing one scope.

    Takes arrays, `ShapeDtypeStruct`, `Spec`, text for `spec`, a tuple of ints and None
    (always one shape, in float32), Python scalars, and pytrees of those. None at an axis
    means an unknown size, one per axis number.
    """
    if _is_traced_shape(x):
        raise TypeError(
            f"{where}: expected al.spec(...), got {show(x)}: JAX transforms take a shape "
            "apart. Close over it: jax.jit(lambda key: model.init(key, (None, 784)))."
        )
    leaves, tree = cast(Any, jax.tree.flatten(x, is_leaf=is_spec))
    drafts = [_draft(leaf, where) for leaf in leaves]
    facts = {
        c for draft in drafts if isinstance(draft, Spec) for c in draft.constraints
    }
    scope = tuple(sorted(facts))
    return jax.tree.unflatten(tree, [_resolved(draft, scope) for draft in drafts])


def show(x: PyTree) -> str:
    """Shapes and dtypes for people: `float32[b, 8]`; containers as Python writes them."""
    if hasattr(x, "shape") and hasattr(x, "dtype"):
        return f"{x.dtype}[{', '.join(map(str, x.shape))}]"
    if isinstance(x, dict):
        items = cast("dict[Any, Any]", x).items()
        return "{" + ", ".join(f"{k}: {show(v)}" for k, v in items) + "}"
    if isinstance(x, (tuple, list)) and not _is_shape(cast(Any, x)):
        inner = ", ".join(map(show, cast("list[Any]", x)))
        return f"({inner})" if isinstance(x, tuple) else f"[{inner}]"
    return "None" if x is None else type(cast(Any, x)).__name__


def same(a: Any, b: Any) -> bool:
    """Whether two arrays or specs have one shape and dtype."""
    return tuple(a.shape) == tuple(b.shape) and a.dtype == b.dtype


def size_of(dim: Dim, sizes: Mapping[str, Any]) -> Any:
    """The size that an expression over names has, for these sizes of the names.

    The text was parsed by `jax.export` before: it holds names, numbers, `+ - *` and the
    four functions of its grammar, nothing else.
    """
    if not isinstance(dim, str):
        return dim
    text = dim.replace("^", "**")
    return eval(text, {"__builtins__": {}}, {**_DIM_FUNCTIONS, **sizes})


def names_of(dim: Dim) -> list[str]:
    """The names in an expression over sizes."""
    words = re.findall(r"[A-Za-z_]\w*", str(dim))
    return [word for word in words if word not in _DIM_FUNCTIONS]


_DIM_FUNCTIONS: dict[str, Callable[[Any, Any], Any]] = {
    "floordiv": operator.floordiv,
    "mod": operator.mod,
    "max": max,
    "min": min,
}


def is_unknown(dim: Any) -> bool:
    """Whether a size is not known: a symbolic dim."""
    return not isinstance(dim, (int, np.integer))


def symbolic(
    dims: tuple[Dim, ...], constraints: tuple[str, ...] = ()
) -> tuple[Any, ...]:
    """Sizes with the names replaced by symbolic dims of the scope of these constraints."""
    if all(isinstance(dim, int) for dim in dims):
        return dims
    text = ",".join(map(str, dims)) + ("," if len(dims) == 1 else "")
    return tuple(symbolic_shape(text, scope=_scope(constraints)))


@lru_cache(maxsize=256)
def _scope(constraints: tuple[str, ...]) -> SymbolicScope:
    return SymbolicScope(constraints)


def _dim(part: Dim | None, axis: int) -> Dim:
    if part is None or part in ("_", "None"):
        return f"_{axis}"
    if not isinstance(part, str):
        return int(part)
    return int(part) if re.fullmatch(r"\d+", part) else part


def _is_shape(x: object) -> bool:
    if type(x) is not tuple or not x:
        return False
    dims = cast("tuple[object, ...]", x)
    return all(d is None or _is_size(d) for d in dims)


def _is_size(value: object) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def _is_mistyped(x: object) -> bool:
    """Whether it is sizes mixed with names or None, in a form that is no shape."""
    if type(x) not in (tuple, list) or _is_shape(x):
        return False
    items = cast("list[object]", x)
    return any(map(_is_size, items)) and any(d is None or type(d) is str for d in items)


def _is_traced_shape(x: Any) -> bool:
    """Whether a JAX transform took a tuple of ints and None for a pytree of ints."""
    items = list(cast("tuple[Any, ...]", x)) if type(x) is tuple else []
    sizes = [n for n in items if n is not None]
    return bool(sizes) and all(
        isinstance(n, jax.core.Tracer)
        and n.shape == ()
        and n.weak_type
        and jnp.issubdtype(n.dtype, jnp.integer)
        for n in sizes
    )


def is_spec(x: object) -> bool:
    """Whether it stands for one array by its shape."""
    known = isinstance(x, (Spec, jax.ShapeDtypeStruct, str)) or _is_shape(x)
    return known or _is_mistyped(x)


def _draft(leaf: Any, where: str) -> Spec | jax.ShapeDtypeStruct:
    if isinstance(leaf, Spec):
        return leaf
    if isinstance(leaf, str):
        return spec(leaf)
    if _is_shape(leaf):
        return spec(leaf)
    if hasattr(leaf, "shape") and hasattr(leaf, "dtype"):
        return jax.ShapeDtypeStruct(leaf.shape, canonical(leaf.dtype))
    if isinstance(leaf, (bool, int, float, complex)):
        return jax.ShapeDtypeStruct((), canonical(type(leaf)))
    if _is_mistyped(leaf):
        raise TypeError(
            f"{where}: expected a shape, got {leaf!r}. Write al.spec('b 784'), or "
            "(None, 784) with a tuple of ints and None."
        )
    raise TypeError(
        f"{where}: expected an array, al.spec(...), jax.ShapeDtypeStruct or a shape, "
        f"got {type(leaf).__name__}. Write al.spec('b 784') for an unknown batch."
    )


def _resolved(
    draft: Spec | jax.ShapeDtypeStruct, constraints: tuple[str, ...]
) -> jax.ShapeDtypeStruct:
    if isinstance(draft, Spec):
        shape = symbolic(draft.dims, constraints)
        return jax.ShapeDtypeStruct(shape, canonical(draft.dtype))
    return draft
