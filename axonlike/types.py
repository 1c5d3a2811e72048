"""Names for the pytrees that pass between functions."""

from __future__ import annotations

import os
from typing import Any

import jax

Array = jax.Array
Key = jax.Array
"""A key made by `jax.random.key` (or the older `jax.random.PRNGKey`)."""
PyTree = Any
FilePath = str | os.PathLike[str]
Params = dict[str, Any]
"""Nested dicts of arrays, one level a name."""
State = dict[str, Any]
"""Nested dicts of arrays with the same names: what training changes without gradients."""


def to_dtype(x: Array, dtype: Any) -> Array:
    """An array in a dtype; itself, without a call into JAX, where it has it already."""
    return x if x.dtype == dtype else x.astype(dtype)
