"""Batches of any iterable, epoch after epoch, from where training stopped."""

from __future__ import annotations

import base64
import json
import warnings
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any, cast

import jax
import numpy as np

from axonlike.training.data import Batches

Data = Iterable[Any]


class Feed:
    """The batches of one epoch at a time, and where in it training is.

    Data, or an iterator over it, that has `get_state` and `set_state`, as grain's have,
    is put where it was; of any other as many batches are passed over as were used.
    """

    def __init__(self, data: Data) -> None:
        self._data: Any = data
        self._iterator: Any = None
        self.take = _as_it_is if isinstance(data, Batches) else own

    def open(self, epoch: int, used: int, position: str | None) -> Iterator[Any]:
        """The batches of an epoch that have not been used."""
        if position is not None and hasattr(self._data, "set_state"):
            self._data.set_state(_decoded(position))
            done = used and used == len(self)
            self._iterator = iter(() if done else self._data)
            return self._iterator
        iterator = self._iterator = iter(self._data)
        if used and position is not None and hasattr(iterator, "set_state"):
            iterator.set_state(_decoded(position))
        elif used and sum(1 for _ in islice(iterator, used)) < used:
            raise ValueError(
                f"fit: expected at least {used} batches in epoch {epoch + 1}, which were "
                "used before training stopped. Resume with the same data."
            )
        return iterator

    def position(self) -> str | None:
        """Where the data is, as text; None where it cannot say."""
        for source in (self._iterator, self._data):
            if hasattr(source, "get_state"):
                return _encoded(source.get_state())
        shuffler = _shuffler(self._data)
        if shuffler is not None:
            text = (
                f"fit: the order that a {shuffler} makes is not in a checkpoint: what is "
                "resumed from it sees the data in another order, some of it twice. Use "
                "al.batches or grain for a resume that is exact."
            )
            warnings.warn(text, stacklevel=2)
        return None

    def __len__(self) -> int:
        """How many batches an epoch has; 0 where that is not known."""
        try:
            return len(self._data)
        except TypeError:
            return 0


def own(batch: Any) -> Any:
    """The batch as tuples and dicts of arrays that nobody else writes to.

    A step runs while the next batch is fetched, on the very memory of a NumPy array that
    it was given; a loader that fills one buffer again and again would change it there.
    """
    kind = cast(Any, type(batch))  # the usual ones first: it is done at every step
    if kind is np.ndarray:
        return batch.copy()
    if kind is tuple or kind is list:
        return tuple([own(item) for item in batch])
    if kind is dict:
        return {name: own(item) for name, item in batch.items()}
    if isinstance(batch, jax.Array):
        return batch
    if isinstance(batch, Mapping):
        return own(dict(cast("Mapping[str, Any]", batch)))
    if isinstance(batch, (tuple, list)):
        items = [own(item) for item in cast("list[Any]", batch)]
        return kind(*items) if hasattr(kind, "_fields") else tuple(items)
    return np.asarray(batch).copy() if hasattr(batch, "__array__") else batch


def _as_it_is(batch: Any) -> Any:
    return batch


_IN_ORDER = {
    "NoneType",
    "BatchSampler",  # in the order of its own sampler
    "SequentialSampler",
    "_InfiniteConstantSampler",  # of data that PyTorch iterates over
    "list",
    "tuple",
}


def _shuffler(data: Any) -> str | None:
    """What makes the order of a loader of PyTorch; None where that is the data's own."""
    batches = getattr(data, "batch_sampler", None)
    rows = (getattr(each, "sampler", None) for each in (data, batches))
    names = (type(sampler).__name__ for sampler in (*rows, batches))
    return next((name for name in names if name not in _IN_ORDER), None)


def _encoded(state: Any) -> str:
    if isinstance(state, bytes):
        return json.dumps({"bytes": base64.b64encode(state).decode()})
    try:
        return json.dumps({"value": state})
    except TypeError as error:
        raise TypeError(
            f"fit: the data's get_state() is nothing that a checkpoint can hold: {error}. "
            "Return numbers, strings, lists and dicts of them, or bytes."
        ) from None


def _decoded(text: str) -> Any:
    found = json.loads(text)
    return base64.b64decode(found["bytes"]) if "bytes" in found else found["value"]
