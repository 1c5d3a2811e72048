"""States that are kept while training goes on."""

from __future__ import annotations

from typing import Any

import jax

from axonlike.training.state import owned
from axonlike.types import PyTree


def copied(state: PyTree) -> PyTree:
    """A state with its arrays in buffers that no step gives away; all else as it is."""
    return jax.tree.map(_copy, state)


def _copy(x: Any) -> Any:
    return owned(x) if isinstance(x, jax.Array) else x
