"""Minibatches of arrays in memory: shuffled anew in each epoch, and resumable."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping
from numbers import Integral
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from axonlike.spec import show
from axonlike.training.batch import as_arrays, marked, rows_of
from axonlike.training.options import whole
from axonlike.types import PyTree


class Batches:
    """Minibatches of arrays, one epoch an iteration; made by `batches`."""

    def __init__(self, arrays: PyTree, batch_size: int, seed: Any, drop: bool) -> None:
        self.arrays, self.batch_size, self.drop_last = arrays, batch_size, drop
        self.rows = rows_of(arrays)
        self._seed = seed
        self._position = (-1, len(self))

    def __len__(self) -> int:
        """How many batches an epoch has."""
        whole, rest = divmod(self.rows, self.batch_size)
        return whole if self.drop_last or not rest else whole + 1

    def __iter__(self) -> Iterator[Any]:
        """The batches of the next epoch; after `set_state`, those that are left of one."""
        epoch, step = self._position
        if not self._resumed or step >= len(self):
            epoch, step = epoch + 1, 0
        self._resumed = False
        self._position = (epoch, step)
        return self._batches(epoch, step)

    _resumed = False

    def _batches(self, epoch: int, start: int) -> Iterator[Any]:
        order = self._order(epoch)
        short = not self.drop_last and self.rows % self.batch_size > 0
        for step in range(start, len(self)):
            first = step * self.batch_size
            chosen = order[first : first + self.batch_size]
            batch = jax.tree.map(operator.itemgetter(chosen), self.arrays)
            self._position = (epoch, step + 1)
            yield marked(batch, self.batch_size) if short else batch

    def _order(self, epoch: int) -> Any:
        """Which row comes when."""
        if self._seed is None:
            return np.arange(self.rows)
        generator = np.random.Generator(np.random.Philox([*self._seed, epoch]))
        return generator.permutation(self.rows)

    def get_state(self) -> dict[str, Any]:
        """Where the iteration stands, as plain numbers: seed, epoch, step.

        `step` batches of the epoch have been taken out.
        """
        epoch, step = self._position
        if epoch < 0:
            epoch, step = 0, 0
        return {"seed": self._seed, "epoch": epoch, "step": step}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Goes on from there: the next iteration is what is left of that epoch."""
        try:
            seed, epoch, step = (state[name] for name in ("seed", "epoch", "step"))
            words = None if seed is None else [int(word) for word in seed]
            position = int(epoch), int(step)
        except (KeyError, TypeError, ValueError):
            raise ValueError(
                f"batches: expected a state with seed, epoch and step, got {show(state)}. "
                "Pass what get_state() returned."
            ) from None
        self._seed, self._position, self._resumed = words, position, True


def batches(
    arrays: PyTree, batch_size: int, *, key: Any = None, drop_last: bool = False
) -> Batches:
    """Minibatches of arrays that are in memory.

    Each iteration is one epoch, in an order of its own. The position is plain data:
    `get_state()` returns it, and after `set_state(state)` the next iteration is what was
    left of that epoch.

    A last batch that is shorter is a batch of fewer rows. All batches of such data know
    the full size, so that a training step fills them up and is compiled once.

    Args:
        arrays: `(inputs, targets, ...)`, a dict with `"inputs"`, or any pytree of arrays.
        batch_size: rows of a batch; positive.
        key: from `jax.random.key`, or an int: shuffles. None: in order.
        drop_last: whether to leave out a last batch that is shorter.

    Shapes:
        arrays: `(n, ...)` each.
        batches: `(batch_size, ...)` each; NumPy arrays.

    Raises:
        ValueError: `batch_size` is not positive, or there is no whole batch.
        ShapeError: the arrays have other numbers of rows.
        TypeError: `key` is none.

    Example:
        >>> import numpy as np, axonlike as al
        >>> data = al.batches((np.arange(5), np.arange(5) ** 2), 2)
        >>> [(x.tolist(), y.tolist()) for x, y in data]
        [([0, 1], [0, 1]), ([2, 3], [4, 9]), ([4], [16])]
        >>> shuffled = al.batches((np.arange(6),), 3, key=0)
        >>> (first,) = next(iter(shuffled))
        >>> shuffled.get_state()
        {'seed': [0], 'epoch': 0, 'step': 1}
    """
    batch_size = whole("batches", "batch_size", batch_size)
    data = jax.tree.map(np.asarray, as_arrays(arrays))
    made = Batches(data, batch_size, _words(key), drop_last)
    if not len(made):
        raise ValueError(
            f"batches: expected at least {batch_size} rows, got {made.rows}. "
            "Lower batch_size, or leave drop_last out."
        )
    return made


def _words(key: Any) -> list[int] | None:
    """A key as plain numbers."""
    if key is None:
        return None
    if isinstance(key, Integral) and not isinstance(key, bool) and int(key) >= 0:
        return [int(key)]
    dtype: Any = getattr(key, "dtype", None)
    if dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key):
        key = jax.random.key_data(cast(Any, key))
    words: Any = np.asarray(key)
    if words.ndim == 1 and words.dtype == np.uint32:
        return [int(word) for word in words]
    raise TypeError(
        "batches: key must be one of jax.random.key(seed), or an int from 0 on, got "
        f"{show(cast(Any, key))}."
    )
