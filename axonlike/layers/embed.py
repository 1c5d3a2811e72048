"""Tables of vectors."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from axonlike.errors import ShapeError
from axonlike.initializers import InitFunction, variance_scaling
from axonlike.layer import layer
from axonlike.layers.checks import array, positive
from axonlike.spec import show
from axonlike.types import Array, Key, Params


@layer
def embedding(
    num_embeddings: int,
    features: int,
    *,
    embedding_init: InitFunction = variance_scaling(
        1.0, "fan_in", "normal", out_axis=0
    ),
    param_dtype: Any = jnp.float32,
    name: str | None = None,
) -> Any:
    """A vector for each of `num_embeddings` ids: `y = embedding[x]`.

    An id outside of `[0, num_embeddings)`, negative ones included, gives NaN and passes
    no gradient: JAX cannot raise for a value inside `jit`, and clamping would hide it.

    Args:
        num_embeddings: how many ids there are; positive.
        features: length of a vector; positive.
        embedding_init: initializer of the table.
        param_dtype: dtype in which the table is stored.
        name: the layer's name among its siblings.

    Shapes:
        input: `(...)`, integers.
        output: `(..., features)`, the table's dtype.
        embedding: `(num_embeddings, features)`, normal with variance `1 / features`.

    Raises:
        ValueError: a size is not a positive int.
        ShapeError: the input is not an array of integers.

    Example:
        >>> import jax, jax.numpy as jnp, axonlike as al
        >>> layer = al.embedding(10, 4)
        >>> params, state = layer.init(jax.random.key(0), al.spec("b t", int))
        >>> layer.predict(params, state, jnp.array([[1, 2, 3]])).shape
        (1, 3, 4)
    """
    positive("embedding", num_embeddings=num_embeddings, features=features)

    def init(key: Key, x: Any) -> Params:
        _check(x)
        shape = (num_embeddings, features)
        return {"embedding": embedding_init(key, shape, param_dtype)}

    def apply(params: Params, x: Any) -> Array:
        _check(x)
        table = jnp.asarray(params["embedding"])
        return table.at[x].get(
            mode="fill", fill_value=jnp.nan, wrap_negative_indices=False
        )

    def _check(x: Any) -> None:
        array("embedding", x, "array of integer ids", floating=False)
        if not jnp.issubdtype(x.dtype, jnp.integer):
            hint = "Convert it with x.astype(jnp.int32), or use dense() for vectors."
            raise ShapeError("embedding", "an array of integer ids", show(x), hint)

    return init, apply
