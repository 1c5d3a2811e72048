"""Gradients of what is inside a model: for any activations, in one backward pass."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from functools import partial, reduce
from typing import Any, cast

import jax
import jax.numpy as jnp

from axonlike.compiled import NoEffectError, compile, is_one
from axonlike.deferred import Arg, Deferred, Edit, Site, base
from axonlike.errors import ShapeError
from axonlike.layer import Layer
from axonlike.sites import resolve
from axonlike.spec import show


def value_and_grads(
    expression: Deferred,
    *,
    wrt: Any,
    edits: Iterable[Any] = (),
    model: Layer | None = None,
) -> Callable[..., Any]:
    """A pure function of an expression's value and its gradients for activations.

    All gradients come from one backward pass. They are those for what the sites hold after
    `edits`.

    Args:
        expression: a scalar.
        wrt: a pytree of activations.
        edits: as for `compile`.
        model: as for `compile`.

    Shapes:
        gradients: those of the activations.

    Raises:
        PathError: a path means no activation.
        ValueError: an activation does not matter to the expression.
        TypeError: `wrt` has something else than activations, or slices of them.

    Example:
        >>> import jax, jax.numpy as jnp, axonlike as al
        >>> model = al.serial(body=al.dense(8), head=al.dense(1))
        >>> params, state = model.init(jax.random.key(0), (None, 4))
        >>> function = al.value_and_grads(model["output"].sum(), wrt=[model["body"]])
        >>> value, (gradient,) = function(params, state, jnp.ones((3, 4)))
        >>> gradient.shape
        (3, 8)
    """
    _check(expression, wrt)
    edits = list(edits)
    bound = compile([expression, wrt], edits, model).model
    each = partial(_by_path, bound)
    sites, structure = cast(Any, jax.tree.flatten)(
        jax.tree.map(each, wrt, is_leaf=_is_deferred), is_leaf=_is_deferred
    )
    read = compile([expression, *(site.fill(0) for site in sites)], edits, bound)
    names = [f"wrt {i}" for i in range(len(sites))]
    added = [
        Edit(site, "copy", Arg(name)) for site, name in zip(sites, names, strict=True)
    ]
    with_added = compile(expression, [*edits, *added], bound)

    def function(params: Any, state: Any, x: Any, **arguments: Any) -> Any:
        shapes = jax.eval_shape(lambda: read(params, state, x, **arguments))
        _check_specs(expression, shapes[0], sites, shapes[1:])
        zeros = jax.tree.map(_zeros, shapes[1:])

        def loss(zeros: Any) -> Any:
            extra = dict(zip(names, zeros, strict=True))
            return with_added(params, state, x, **arguments, **extra)

        try:
            value, grads = jax.value_and_grad(loss)(zeros)
        except NoEffectError as error:
            if error.number < len(edits):
                raise
            raise ValueError(
                f"value_and_grads: {expression!r} does not need "
                f"{sites[error.number - len(edits)]!r}, so it has no gradient for that. "
                "Leave it out of wrt."
            ) from None
        return value, jax.tree.unflatten(structure, grads)

    return function


def _check(expression: Any, wrt: Any) -> None:
    if not isinstance(expression, Deferred):
        raise TypeError(
            f"value_and_grads: expected one expression, a scalar, got {expression!r}. "
            "Write model['path'].mean(), or defer(loss)(model['path'])."
        )
    for site in jax.tree.leaves(wrt, is_leaf=_is_deferred):
        if not isinstance(site, Deferred) or base(site) is None:
            raise TypeError(
                "value_and_grads: wrt must be activations, or slices of them, got "
                f"{site!r}."
            )


def _by_path(model: Layer, expression: Deferred) -> Any:
    """An activation as it is; of a glob that means several, each by its path."""
    site, indices = cast(Any, base(expression))
    found = resolve(model, site.path)
    if is_one(site, found):
        return expression
    return {
        path: reduce(
            operator.getitem, indices, Site(model, tuple(path.split("/")), site.filled)
        )
        for path in found
    }


def _check_specs(expression: Any, value: Any, sites: list[Any], specs: Any) -> None:
    """Refuses what has no gradient: a value that is no scalar, activations of integers."""
    if getattr(value, "shape", None) != ():
        raise ShapeError(
            "value_and_grads", f"a scalar from {expression!r}", show(value),
            "Write .mean() or .sum().",
        )  # fmt: skip
    for site, spec in zip(sites, specs, strict=True):
        if not all(jnp.issubdtype(a.dtype, jnp.inexact) for a in jax.tree.leaves(spec)):
            raise TypeError(
                f"value_and_grads: {site!r} is {show(spec)}, and integers have no "
                "gradient. Leave it out of wrt."
            )


def _is_deferred(x: Any) -> bool:
    return isinstance(x, Deferred)


def _zeros(spec: Any) -> Any:
    return jnp.zeros(spec.shape, spec.dtype)
