"""Auxiliary losses: what layers emit, and regularizers of params, chosen by path."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from numbers import Real
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np

from axonlike.errors import PathError
from axonlike.evaluation import evaluate
from axonlike.frame import Run
from axonlike.layer import Layer
from axonlike.params import paths, select
from axonlike.paths import pattern
from axonlike.selector import spelled
from axonlike.sites import emitted
from axonlike.spec import show
from axonlike.taps import Taps
from axonlike.training.batch import over
from axonlike.training.each import WholeBatchError
from axonlike.types import Array, Params, PyTree, State

Aux = Mapping[Any, float | Callable[[Any], Any]]


class Extra(NamedTuple):
    """What is read of a run for auxiliary losses, and the params that count for some."""

    taps: Taps | None = None
    weights: Mapping[str, Any] = {}
    sites: Mapping[str, list[str]] = {}
    arrays: Mapping[str, list[Array]] = {}

    def values(self, taken: Mapping[str, Any], rows: Array | None) -> dict[str, Array]:
        """The losses by glob, each with its weight."""
        found: dict[str, Array] = {}
        for glob, weight in self.weights.items():
            if glob in self.sites:
                terms = [
                    _of_emitted(site, leaf, weight, rows)
                    for site in self.sites[glob]
                    for leaf in jax.tree.leaves(taken[site])
                ]
            else:
                terms = [_of_param(array, weight) for array in self.arrays[glob]]
            found[glob] = _sum(terms)
        return found


def check_aux(aux: Any) -> None:
    """Refuses what is no weight or function by selector."""
    if aux is not None and not isinstance(aux, Mapping):
        raise TypeError(f"aux: expected a dict, got {show(aux)}. Write {{glob: 0.01}}.")
    for where, weight in cast("Aux", aux or {}).items():
        if not callable(weight) and not is_weight(weight):
            raise TypeError(
                f"aux: expected a weight or a function for {spelled(where)!r}, "
                f"got {show(weight)}. Write {{glob: 0.01}}."
            )


def is_weight(value: Any) -> bool:
    """Whether a loss can be multiplied by it, and is one number still."""
    return isinstance(value, (Real, jax.Array, np.ndarray)) and not np.ndim(
        cast(Any, value)
    )


def auxiliary(
    model: Layer, aux: Aux | None, params: Params, state: State, x: PyTree, run: Run
) -> Extra:
    """What the globs mean in this model, on this input; one that means nothing raises."""
    if not aux:
        return Extra()
    known = _emitted_sites(model, params, state, x, run)
    sites: dict[str, list[str]] = {}
    arrays: dict[str, list[Array]] = {}
    for where in aux:
        name = spelled(where)
        glob = pattern(where) if isinstance(where, str) else None
        hits = [site for site in known if glob is not None and glob.fullmatch(site)]
        found = _arrays(model, params, where, known, bool(hits))
        if hits and found:
            raise ValueError(
                f"aux: {name!r} means {hits[0]!r}, which a layer emits, and params. "
                "Write a glob for one of them."
            )
        if hits:
            sites[name] = hits
        else:
            arrays[name] = found
    reads = frozenset(site for each in sites.values() for site in each)
    weights = {spelled(where): weight for where, weight in aux.items()}
    return Extra(Taps(reads=reads) if reads else None, weights, sites, arrays)


def _emitted_sites(
    model: Layer, params: Params, state: State, x: PyTree, run: Run
) -> list[str]:
    """Every site at which a layer emits something in such a run."""
    every = run._replace(taps=Taps(every=True))
    taken = jax.eval_shape(lambda: evaluate(model, params, state, x, every)[2])
    return emitted(model, taken)


def _arrays(
    model: Layer, params: Params, where: Any, emitted: list[str], optional: bool
) -> list[Array]:
    """The arrays that a selector means, a tied one once."""
    try:
        chosen = select(params, where, model)
    except PathError:
        if optional:
            return []
        known = [*emitted, *(path for path, _ in paths(params, model))]
        hint = "An auxiliary loss is of what a layer emits, or of params."
        raise PathError("aux", spelled(where), known, hint) from None
    return list({id(array): array for array in chosen.values()}.values())


def _of_emitted(site: str, value: Any, weight: Any, rows: Array | None) -> Array:
    """The loss of an emitted value: the sum over copies, the mean over what is in one."""
    copies = site.count("*")
    if rows is not None:
        _check_rows(site, value.shape[copies:], weight, rows)
    if callable(weight):
        function = cast("Callable[[Any], Any]", weight)
        for _ in range(copies):
            function = jax.vmap(function)
        return jnp.sum(function(value))
    axes, mask = tuple(range(copies, value.ndim)), None
    if rows is not None:
        mask = over(rows, value.shape[copies:], "aux")
        mask = jnp.broadcast_to(jnp.expand_dims(mask, range(copies)), value.shape)
    means = jnp.mean(value, axes, where=mask) if axes else value
    return jnp.sum(means) * jnp.asarray(weight, value.dtype)


def _check_rows(site: str, shape: tuple[int, ...], weight: Any, rows: Array) -> None:
    """Refuses what is not told for each example, where not all of these count."""
    if callable(weight) or shape[:1] != rows.shape:
        raise WholeBatchError(
            f"aux: what {site!r} emits is taken of a whole batch, and this one is filled "
            "up. Emit one number for each example and give it a weight, or leave "
            "batch_size out, so that short batches are run as they are."
        )


def _of_param(array: Array, weight: Any) -> Array:
    """The loss of a param: the sum of its squares, or what a function makes of it."""
    if callable(weight):
        return jnp.sum(cast(Any, weight)(array))
    return jnp.sum(jnp.square(array)) * jnp.asarray(weight, array.dtype)


def _sum(terms: list[Array]) -> Array:
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total
