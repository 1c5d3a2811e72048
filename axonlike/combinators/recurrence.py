"""A recurrence as one `lax.scan` whose derivative is taken for all steps at once.

A step is two functions: `before(params, carry, x) -> z`, the products with weights, and
`after(params, carry, z, fixed) -> (carry, y)`, which goes element by element. Plain
differentiation of a scan over both adds up the weights' gradient step by step, and
computes and stores in the loop all that the backward pass needs. Here only carries and
`z` are stored, `after` is linearized for all steps in parallel, and the weights' part of
the tangent is one product over `(time, batch)`. What is left in the loop of the tangent,
and in that of its transpose, is what the steps really owe to each other: the carry.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp

from axonlike.types import PyTree

_jvp = cast(Any, jax).jvp
_linearize = cast(Any, jax).linearize


def recurrence(
    before: Callable[..., Any],
    after: Callable[..., Any],
    params: PyTree,
    carry: PyTree,
    xs: PyTree,
    fixed: PyTree,
    *,
    reverse: bool = False,
    unroll: int = 1,
) -> tuple[PyTree, PyTree]:
    """The last carry and the outputs of all steps, time first.

    Params, carry and `xs` are floating point; `fixed` is not, a mask for instance. It has
    the values and derivatives, of any order and mode, of the same steps in `lax.scan`.
    """
    loop = partial(cast(Any, jax.lax.scan), reverse=reverse, unroll=unroll)

    def step(carry: Any, each: Any, params: Any) -> Any:
        x, now = each
        return after(params, carry, before(params, carry, x), now)

    @jax.custom_jvp
    def run(params: Any, carry: Any, xs: Any, fixed: Any) -> Any:
        return loop(partial(step, params=params), carry, (xs, fixed))

    def tangents(primals: Any, given: Any) -> Any:
        params, _, xs, fixed = primals
        of_params, of_carry, of_xs, _ = given
        out, carries, zs = _kept(loop, before, after, *primals)
        everywhere = partial(_at, before, carries)
        _, of_zs = _jvp(everywhere, (params, xs), (of_params, of_xs))

        def linear(carry: Any, z: Any, now: Any) -> Any:
            return _linearize(partial(_now, after, now), params, carry, z)[1]

        def step(of_carry: Any, each: Any) -> Any:
            linear_here, carry, x, of_z = each
            here = partial(_of_carry, before, params, x)
            _, more = _jvp(here, (carry,), (of_carry,))
            of_z = jax.tree.map(jnp.add, of_z, more)
            return linear_here(of_params, of_carry, of_z)

        steps = (jax.vmap(linear)(carries, zs, fixed), carries, xs, of_zs)
        return out, loop(step, of_carry, steps)

    run.defjvp(tangents)
    return run(params, carry, xs, fixed)


def _kept(
    loop: Any, before: Any, after: Any, params: Any, carry: Any, xs: Any, fixed: Any
) -> Any:
    """The result, and the carry and `z` of every step."""

    def step(carry: Any, each: Any) -> Any:
        x, now = each
        z = before(params, carry, x)
        new, y = after(params, carry, z, now)
        return new, (y, carry, z)

    last, (ys, carries, zs) = loop(step, carry, (xs, fixed))
    return (last, ys), carries, zs


def _now(after: Any, now: Any, params: Any, carry: Any, z: Any) -> Any:
    return after(params, carry, z, now)


def _at(before: Any, carry: Any, params: Any, x: Any) -> Any:
    return before(params, carry, x)


def _of_carry(before: Any, params: Any, x: Any, carry: Any) -> Any:
    return before(params, carry, x)
