"""Gradients of what is inside a model: for any activations, in one backward pass."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from functools import partial, reduce
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp

from axonlike.changes import check_no_path
from axonlike.compiled import NoEffectError, compile, sites_of_run
from axonlike.deferred import Arg, Deferred, Edit, Site, base, is_deferred
from axonlike.errors import ShapeError
from axonlike.layer import Layer
from axonlike.sites import is_one, may_mean_more, resolve
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
    plain = _parts(bound, expression, wrt, edits)
    leaves = jax.tree.leaves(wrt, is_leaf=is_deferred)
    paths = [cast(Any, base(leaf))[0].path for leaf in leaves]
    is_open = any(may_mean_more(bound, path, resolve(bound, path)) for path in paths)

    def function(params: Any, state: Any, x: Any, **arguments: Any) -> Any:
        sites, structure, read, with_added = plain
        if is_open:
            key, train = arguments.get("key"), arguments.get("train", False)
            run = sites_of_run(bound, params, state, x, key, train)
            sites, structure, read, with_added = _parts(
                bound, expression, wrt, edits, run
            )
        shapes = jax.eval_shape(lambda: read(params, state, x, **arguments))
        _check_specs(expression, shapes[0], sites, shapes[1:])
        zeros = jax.tree.map(_zeros, shapes[1:])

        def loss(zeros: Any) -> Any:
            extra = dict(zip(map(_name, range(len(sites))), zeros, strict=True))
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


class _Parts(NamedTuple):
    """What a gradient is made of, once it is known which activations it is for."""

    sites: list[Any]
    structure: Any
    read: Any
    with_added: Any


def _parts(
    model: Layer, expression: Any, wrt: Any, edits: list[Any], run: Iterable[str] = ()
) -> _Parts:
    each = partial(_by_path, model, run)
    sites, structure = cast(Any, jax.tree.flatten)(
        jax.tree.map(each, wrt, is_leaf=is_deferred), is_leaf=is_deferred
    )
    read = compile([expression, *(site.fill(0) for site in sites)], edits, model)
    added = [Edit(site, "add", Arg(_name(i))) for i, site in enumerate(sites)]
    return _Parts(sites, structure, read, compile(expression, [*edits, *added], model))


def _name(i: int) -> str:
    """The argument that is added to an activation."""
    return f"wrt {i}"


def _check(expression: Any, wrt: Any) -> None:
    if not isinstance(expression, Deferred):
        raise TypeError(
            f"value_and_grads: expected one expression, a scalar, got {expression!r}. "
            "Write model['path'].mean(), or defer(loss)(model['path'])."
        )
    for site in jax.tree.leaves(wrt, is_leaf=is_deferred):
        if not isinstance(site, Deferred) or base(site) is None:
            raise TypeError(
                "value_and_grads: wrt must be activations, or slices of them, got "
                f"{site!r}."
            )


def _by_path(model: Layer, run: Iterable[str], expression: Deferred) -> Any:
    """An activation as it is; of a glob that means several, each by its path."""
    site, indices = cast(Any, base(expression))
    found = resolve(model, site.path, run)
    if is_one(site.path, found):
        return expression
    check_no_path(expression, found)
    return {
        path: reduce(operator.getitem, indices, Site(model, target.chosen, site.filled))
        for path, target in found.items()
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


def _zeros(spec: Any) -> Any:
    return jnp.zeros(spec.shape, spec.dtype)
