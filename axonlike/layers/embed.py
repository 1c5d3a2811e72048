"""Tables of vectors."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from axonlike.errors import ShapeError
from axonlike.initializers import InitFunction, variance_scaling
from axonlike.layer import layer
from axonlike.layers.checks import array, at_least, last_axis, positive
from axonlike.layers.product import DotGeneral, contract
from axonlike.spec import show
from axonlike.types import Array, Key, Params, to_dtype


@layer
def embedding(
    num_embeddings: int,
    features: int,
    *,
    embedding_init: InitFunction = variance_scaling(
        1.0, "fan_in", "normal", out_axis=0
    ),
    param_dtype: Any = jnp.float32,
    precision: Any = None,
    dot_general: DotGeneral | None = None,
    name: str | None = None,
) -> Any:
    """A vector for each of `num_embeddings` ids: `y = embedding[x]`.

    An id outside of `[0, num_embeddings)`, negative ones included, gives NaN and passes
    no gradient: JAX cannot raise for a value inside `jit`, and clamping would hide it.

    In a `wire`, `sub.emb(h, attend=True)` is the product of vectors with every row,
    `h @ embedding.T`: an output head tied to the input's embedding. A pipe ties a `dense`
    head instead, with `tie(..., transpose=True)`.

    Args:
        num_embeddings: how many ids there are; positive.
        features: length of a vector; positive.
        embedding_init: initializer of the table.
        param_dtype: dtype in which the table is stored.
        precision: of the product when attending, as in `jax.lax.dot_general`.
        dot_general: called in place of `jax.lax.dot_general` when attending.
        name: the layer's name among its siblings.

    Shapes:
        input: `(...)`, integers; when attending `(..., features)`, floating point.
        output: `(..., features)`, the table's dtype; when attending `(...,
            num_embeddings)`, the input's dtype.
        embedding: `(num_embeddings, features)`, normal with variance `1 / features`.

    Raises:
        ValueError: a size is not a positive int.
        ShapeError: the input is not an array of integers, or when attending not one of
            vectors of this length.

    Example:
        >>> import jax, jax.numpy as jnp, axonlike as al
        >>> layer = al.embedding(10, 4)
        >>> params, state = layer.init(jax.random.key(0), al.spec("b t", int))
        >>> layer.predict(params, state, jnp.array([[1, 2, 3]])).shape
        (1, 3, 4)
        >>> def language_model(sub, ids):
        ...     return sub.emb(sub.body(sub.emb(ids)), attend=True)
        >>> model = al.wire(language_model, emb=al.embedding(10, 4), body=al.dense(4))
        >>> model.output_spec(al.spec("b t", int)).shape
        (b, t, 10)
    """
    positive("embedding", num_embeddings=num_embeddings, features=features)

    def init(key: Key, x: Any, attend: bool = False) -> Params:
        _check(x, attend)
        shape = (num_embeddings, features)
        return {"embedding": embedding_init(key, shape, param_dtype)}

    def apply(params: Params, x: Any, *, attend: bool = False) -> Array:
        _check(x, attend)
        table = jnp.asarray(params["embedding"])
        if not attend:
            return table.at[x].get(
                mode="fill", fill_value=jnp.nan, wrap_negative_indices=False
            )
        axes = (((x.ndim - 1,), (1,)), ((), ()))
        return contract(x, to_dtype(table, x.dtype), axes, precision, dot_general)

    def _check(x: Any, attend: bool) -> None:
        if attend:
            at_least("embedding", x, 1, f"(..., {features})", "Attend with vectors.")
            last_axis("embedding", x, features)
            return
        array("embedding", x, "array of integer ids", floating=False)
        if not jnp.issubdtype(x.dtype, jnp.integer):
            hint = "Convert it with x.astype(jnp.int32), or use dense() for vectors."
            raise ShapeError("embedding", "an array of integer ids", show(x), hint)

    return init, apply
