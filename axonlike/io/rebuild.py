"""A model out of its JSON. Names are looked up in `allowed`; nothing else is called."""

from __future__ import annotations

import base64
import functools
import math
from collections.abc import Callable, Mapping
from types import MappingProxyType, SimpleNamespace
from typing import Any, NamedTuple, cast

import jax.numpy as jnp
import numpy as np

from axonlike import initializers, text
from axonlike.initializers import Initializer
from axonlike.io import allowed
from axonlike.io.arrays import DTYPES
from axonlike.layer import Layer, remake
from axonlike.selector import Selector
from axonlike.spec import Spec, spec

Json = Any
_MOST_COPIES = 100_000


class Known(NamedTuple):
    """What the user lets a file name, by that name, and what makes more kinds of values."""

    kinds: Mapping[str, Any]
    functions: Mapping[str, Any]
    makers: Mapping[str, Callable[[Any], Any]] = MappingProxyType({})


def rebuilt(json: Json, known: Known) -> Layer:
    """The model that a file describes.

    Raises:
        ValueError: it describes none; the message says where.
    """
    try:
        found = decoded(json, known, "model")
    except RecursionError:
        raise ValueError("model: it nests too deep") from None
    if not isinstance(found, Layer):
        raise ValueError(f"model: expected a layer, got {type(found).__name__}")
    return found


def decoded(json: Json, known: Known, at: str) -> Any:
    """The value that JSON describes; `at` is where it stands, for errors."""
    if isinstance(json, list):
        items = enumerate(cast("list[Any]", json))
        return [decoded(item, known, f"{at}/{i}") for i, item in items]
    if not isinstance(json, dict):
        return json
    table = cast("dict[str, Any]", json)
    if "$" not in table:
        return {k: decoded(v, known, f"{at}/{k}") for k, v in table.items()}
    what = table["$"]
    more = known.makers
    make = (_MAKERS.get(what) or more.get(what)) if isinstance(what, str) else None
    if make is None:
        raise ValueError(f"{at}: {what!r:.40} is nothing that is known")
    fields = _Fields(table, known, at)
    try:
        return make(fields)
    except _PlacedError:
        raise
    except Exception as error:  # what a file says may be refused by anything
        raise _PlacedError(f"{at}: {_short(error)}") from error


class _PlacedError(ValueError):
    """An error that says where in the JSON it is."""


def _short(error: Exception) -> str:
    text = f"{error}".strip() or type(error).__name__
    return (
        text
        if isinstance(error, (ValueError, TypeError))
        else (f"{type(error).__name__}: {text}")
    )


class _Fields:
    """The fields of one object, asked for by name and type."""

    def __init__(self, table: Mapping[str, Any], known: Known, at: str) -> None:
        self.table, self.known, self.at = table, known, at

    def text(self, name: str) -> str:
        """A field that is text."""
        return self._typed(name, str)

    def list(self, name: str) -> list[Any]:
        """A field that is a list, its items decoded."""
        return decoded(self._typed(name, list), self.known, f"{self.at}/{name}")

    def dict(self, name: str) -> dict[str, Any]:
        """A field that is an object, its values decoded."""
        table = self._typed(name, dict)
        items = table.items()
        return {k: decoded(v, self.known, f"{self.at}/{name}/{k}") for k, v in items}

    def value(self, name: str) -> Any:
        """Any field, decoded."""
        return decoded(self.table[name], self.known, f"{self.at}/{name}")

    def _typed(self, name: str, cls: type) -> Any:
        found = self.table.get(name)
        if not isinstance(found, cls):
            raise ValueError(f"expected {name!r} to be a {cls.__name__}")
        return found


def _layer(f: _Fields) -> Layer:
    factory = allowed.kind(f.text("kind"), f.known.kinds)
    config = f.dict("config")
    name, partial = f.table.get("name"), f.table.get("partial", False)
    if not (name is None or isinstance(name, str)) or not isinstance(partial, bool):
        raise ValueError(
            "expected a 'name' that is text, and a 'partial' that is a bool"
        )
    inner = f.dict("children") if "children" in f.table else {}
    _check_config(factory, config)
    made = SimpleNamespace(factory=factory, config=config)
    layer = remake(factory, *text.arguments(made), name, partial, inner)
    if not isinstance(layer, Layer):
        raise ValueError(f"{f.text('kind')} made no layer")
    return layer


def _check_config(factory: Any, config: Mapping[str, Any]) -> None:
    """Refuses options that there are none of, and copies without end."""
    known = text.signature_of(factory).parameters
    unknown = [name for name in config if name not in known or name == "name"]
    if unknown:
        raise ValueError(
            f"{factory.__name__} has no option {unknown[0]!r:.40} here. "
            "Update axonlike, or the module that has it."
        )
    counts = [config.get("num_layers"), *_items(config.get("depths"))]
    counts += [config.get("n")] if config.get("stacked") is False else []
    for count in counts:
        if type(count) is int and count > _MOST_COPIES:
            raise ValueError(f"{count} copies are more than {_MOST_COPIES}")


def _items(value: Any) -> list[Any]:
    several = isinstance(value, (list, tuple, range))
    return list(cast("list[Any]", value)) if several else [value]


def _range(f: _Fields) -> range:
    found = range(*f.list("items"))
    if found[_MOST_COPIES:]:
        raise ValueError(f"a range of more than {_MOST_COPIES} numbers")
    return found


def _initializer(f: _Fields) -> Initializer:
    name = f.text("name")
    if name not in initializers.__all__ or name == "Initializer":
        raise ValueError(f"there is no initializer {name!r:.40}")
    return Initializer(name, tuple(f.dict("arguments").items()))


def _selector(f: _Fields) -> Selector:
    operation = f.text("operation")
    if operation not in ("kind", "|", "&", "-"):
        raise ValueError(f"selectors have no operation {operation!r:.40}")
    return Selector(operation, tuple(f.list("parts")))


def _spec(f: _Fields) -> Spec:
    dims, facts = f.list("dims"), f.list("constraints")
    if not all(type(dim) is int or _is_dim(dim) for dim in dims):
        raise ValueError("expected sizes and names")
    return spec(" ".join(map(str, dims)), f.text("dtype"), tuple(facts))


def _is_dim(dim: Any) -> bool:
    return isinstance(dim, str) and 0 < len(dim) < 200 and " " not in dim


def _array(f: _Fields) -> Any:
    dtype, shape = DTYPES[f.text("dtype")], tuple(f.list("shape"))
    data = base64.b64decode(f.text("base64"), validate=True)
    if not all(type(n) is int and n >= 0 for n in shape):
        raise ValueError("expected a shape")
    if len(data) != math.prod(shape) * dtype.itemsize:
        raise ValueError("an array has more or fewer bytes than its shape")
    array = np.frombuffer(data, dtype).reshape(shape).copy()
    home = f.text("home")
    if home == "jax":
        return jnp.array(array)
    return array[()] if home == "scalar" else array


def _partial(f: _Fields) -> Any:
    function = f.value("function")
    if not callable(function):
        raise ValueError("expected a function")
    return functools.partial(function, *f.list("args"), **f.dict("keywords"))


def _record(f: _Fields) -> Any:
    cls = allowed.record(f.text("class"), f.known.functions)
    return cls(**f.dict("fields"))


def _enum(f: _Fields) -> Any:
    return allowed.member(f.text("name"), f.text("class"), f.known.functions)


def _of(cls: Callable[..., Any], *, apart: bool = False) -> Callable[[_Fields], Any]:
    def make(f: _Fields) -> Any:
        items = f.list("items")
        return cls(*items) if apart else cls(items)

    return make


def _float(f: _Fields) -> float:
    if f.text("value") not in ("nan", "inf", "-inf"):
        raise ValueError("expected nan, inf or -inf")
    return float(f.text("value"))


_MAKERS: dict[str, Callable[[_Fields], Any]] = {
    "layer": _layer,
    "initializer": _initializer,
    "selector": _selector,
    "spec": _spec,
    "array": _array,
    "partial": _partial,
    "record": _record,
    "enum": _enum,
    "function": lambda f: allowed.function(f.text("name"), f.known.functions),
    "dtype": lambda f: DTYPES[f.text("name")],
    "float": _float,
    "bytes": lambda f: base64.b64decode(f.text("base64"), validate=True),
    "ellipsis": lambda f: ...,
    "dict": _of(dict),
    "tuple": _of(tuple),
    "set": _of(set),
    "frozenset": _of(frozenset),
    "complex": _of(complex, apart=True),
    "slice": _of(slice, apart=True),
    "range": _range,
}
