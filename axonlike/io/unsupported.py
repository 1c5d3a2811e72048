"""Which layer cannot be exported: found by exporting one operation after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, cast

import jax
from jax import export as jax_export
from jax.extend import core

from axonlike.paths import join


def blamed(
    run: Callable[..., Any],
    args: tuple[Any, ...],
    platforms: tuple[str, ...],
    error: Exception,
) -> Exception:
    """The error of an export with the path of the layer that it is about.

    Args:
        run: what was exported.
        args: specs of its inputs.
        platforms: what it was exported for.
        error: what was raised.
    """
    try:
        program: Any = jax.make_jaxpr(run)(*args)
        found = _first(program.jaxpr, "", args, platforms)
    except Exception:  # the search is a service: its own failure is not the user's
        found = None
    path, what, why = found or ("the model", "something in it", error)
    return ValueError(
        f"export: {path}: {what} cannot be exported for {', '.join(platforms)} and inputs "
        f"{', '.join(_shape(x) for x in jax.tree.leaves(args))}: {_line(why)} "
        "Give the sizes it is about as numbers in the spec, or other platforms."
    )


def _first(
    jaxpr: Any, path: str, args: Any, platforms: tuple[str, ...]
) -> tuple[str, str, Exception] | None:
    """The first operation that cannot be exported, as far in as it can be told."""
    for eqn in jaxpr.eqns:
        error = _error(jaxpr, eqn, args, platforms)
        if error is None:
            continue
        here = join(path, str(eqn.source_info.name_stack))
        inner = (_first(sub, here, args, platforms) for sub in _inside(eqn))
        deeper = next((found for found in inner if found is not None), None)
        return deeper or (here or "the model", eqn.primitive.name, error)
    return None


def _error(jaxpr: Any, eqn: Any, args: Any, platforms: Any) -> Exception | None:
    """What happens when this operation alone is exported."""
    inputs = [v for v in eqn.invars if not isinstance(v, core.Literal)]
    outputs = [v for v in eqn.outvars if type(v).__name__ != "DropVar"]
    single = jaxpr.replace(
        constvars=[],
        invars=inputs,
        outvars=outputs,
        eqns=[eqn],
        effects=eqn.effects,
        debug_info=jaxpr.debug_info.with_unknown_names(),
    )
    function = cast(Any, core.jaxpr_as_fun)(core.ClosedJaxpr(single, []))

    def run(sizes: Any, *values: Any) -> Any:  # `sizes` has the names of all sizes
        return function(*values)

    specs = [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in inputs]
    try:
        jax_export.export(jax.jit(run), platforms=platforms)(args, *specs).serialize()
    except Exception as error:
        return error
    return None


def _inside(eqn: Any) -> Iterator[Any]:
    """The programs in an operation: a loop's body, the branches of a choice."""
    for value in eqn.params.values():
        several = (
            cast("list[Any]", value) if isinstance(value, (tuple, list)) else [value]
        )
        for each in several:
            inner = getattr(each, "jaxpr", each)
            if hasattr(inner, "eqns"):
                yield inner


def _shape(spec: Any) -> str:
    return f"{spec.dtype}[{', '.join(map(str, spec.shape))}]"


def _line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0].rstrip('.') if text else ''}."
