"""A model as JSON: kinds, configs, names, and children that were put there afterwards.

Values that JSON does not have are objects with a `"$"` that says what they are. Functions
are their import names.
"""

from __future__ import annotations

import base64
import dataclasses
import enum
import functools
import math
import types
from collections.abc import Callable, Mapping
from typing import Any, cast

import numpy as np

from axonlike import values
from axonlike.initializers import Initializer
from axonlike.io.arrays import DTYPES
from axonlike.layer import Layer
from axonlike.selector import Selector
from axonlike.spec import Spec
from axonlike.spots import spots

Json = Any


def architecture(model: Layer) -> Json:
    """The JSON of a model.

    Raises:
        ValueError: something in it has no name to find it by; the message has its path.
    """
    for spot in spots(model):
        _check(spot.paths[0], spot.layer)
    return _layer(model)


def _check(path: str, layer: Layer) -> None:
    """Refuses what cannot be written, with the path of the layer that has it."""
    where = f"save_model: {path or 'the model'}"
    if values.import_name(layer.factory) is None:
        raise ValueError(
            f"{where}: the kind {layer.kind!r} is defined inside of a function, so there "
            "is no name to find it by. Define it at the top of a module."
        )
    for option, value in layer.config.items():
        try:
            encoded(value, _nothing)
        except ValueError as error:
            raise ValueError(f"{where}: {option}: {error}") from None


def _nothing(layer: Layer) -> Json:
    return None


def _layer(layer: Layer) -> Json:
    found: dict[str, Any] = {"$": "layer", "kind": values.import_name(layer.factory)}
    if layer.name is not None:
        found["name"] = layer.name
    if layer.partial:
        found["partial"] = True
    found["config"] = {k: encoded(v, _layer) for k, v in layer.config.items()}
    if layer.replaced:
        inner = {slot: _layer(layer.children[slot]) for slot in sorted(layer.replaced)}
        found["children"] = inner
    return found


def encoded(value: Any, layer: Callable[[Layer], Json]) -> Json:
    """A config value as JSON; `layer` makes that of a layer in it."""
    make = _BY_TYPE.get(cast(Any, type(value)))
    if make is not None:
        return make(value, functools.partial(encoded, layer=layer))
    if isinstance(value, Layer):
        return layer(value)
    if isinstance(value, enum.Enum):
        return {"$": "enum", "class": _name(type(value)), "name": value.name}
    if isinstance(value, np.dtype):
        return {"$": "dtype", "name": cast(Any, value).name}
    if isinstance(value, (np.ndarray, np.generic)) or values.is_jax_array(value):
        return _array(value)
    named = callable(value) and values.import_name(value) is not None
    fields = None if named else _fields(value)
    if fields is not None:
        inner = {k: encoded(v, layer) for k, v in fields.items()}
        return {"$": "record", "class": _name(type(value)), "fields": inner}
    if callable(value):
        return {"$": "function", "name": _name(value)}
    raise ValueError(
        f"{type(value).__name__} is nothing that JSON can say. "
        "Use numbers, text, tuples, dicts, arrays, or functions with an import name."
    )


Next = Callable[[Any], Json]


def _float(value: float, more: Next) -> Json:
    return value if math.isfinite(value) else {"$": "float", "value": repr(value)}


def _complex(value: complex, more: Next) -> Json:
    return {"$": "complex", "items": [more(value.real), more(value.imag)]}


def _dict(value: dict[Any, Any], more: Next) -> Json:
    if all(type(k) is str for k in value) and "$" not in value:
        return {k: more(v) for k, v in value.items()}
    return {"$": "dict", "items": [[more(k), more(v)] for k, v in value.items()]}


def _several(name: str) -> Callable[[Any, Next], Json]:
    def several(value: Any, more: Next) -> Json:
        items = sorted(value, key=repr) if "set" in name else value
        return {"$": name, "items": [more(item) for item in items]}

    return several


def _bounds(name: str) -> Callable[[Any, Next], Json]:
    def bounds(value: Any, more: Next) -> Json:
        return {
            "$": name,
            "items": [more(value.start), more(value.stop), more(value.step)],
        }

    return bounds


def _partial(value: Any, more: Next) -> Json:
    words = {k: more(v) for k, v in value.keywords.items()}
    args = [more(v) for v in value.args]
    return {
        "$": "partial",
        "function": more(value.func),
        "args": args,
        "keywords": words,
    }


def _initializer(value: Initializer, more: Next) -> Json:
    arguments = {k: more(v) for k, v in value.arguments}
    return {"$": "initializer", "name": value.factory, "arguments": arguments}


def _selector(value: Selector, more: Next) -> Json:
    parts = [more(part) for part in value.parts]
    return {"$": "selector", "operation": value.operation, "parts": parts}


def _spec(value: Spec, more: Next) -> Json:
    dims, facts = list(value.dims), list(value.constraints)
    return {"$": "spec", "dims": dims, "dtype": value.dtype.name, "constraints": facts}


def _bytes(value: bytes, more: Next) -> Json:
    return {"$": "bytes", "base64": base64.b64encode(value).decode()}


def _plain(value: Any, more: Next) -> Json:
    return value


_BY_TYPE: dict[Any, Callable[[Any, Next], Json]] = {
    **dict.fromkeys((type(None), bool, int, str), _plain),
    float: _float,
    complex: _complex,
    bytes: _bytes,
    type(Ellipsis): lambda value, more: {"$": "ellipsis"},
    list: lambda value, more: [more(item) for item in value],
    dict: _dict,
    types.MappingProxyType: _dict,
    **{cls: _several(cls.__name__) for cls in (tuple, set, frozenset)},
    **{cls: _bounds(cls.__name__) for cls in (slice, range)},
    functools.partial: _partial,
    Initializer: _initializer,
    Selector: _selector,
    Spec: _spec,
}  # fmt: skip


def _array(value: Any) -> Json:
    array = np.asarray(value)
    if array.dtype.name not in DTYPES:
        raise ValueError(f"an array of {array.dtype} is nothing that JSON can say.")
    home = "numpy" if isinstance(value, np.ndarray) else "jax"
    return {
        "$": "array",
        "home": "scalar" if isinstance(value, np.generic) else home,
        "dtype": array.dtype.name,
        "shape": list(array.shape),
        "base64": base64.b64encode(np.ascontiguousarray(array).tobytes()).decode(),
    }


def _fields(value: Any) -> Mapping[str, Any] | None:
    """The fields of a named tuple or a dataclass."""
    if hasattr(value, "_fields") and hasattr(value, "_asdict"):
        return value._asdict()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            f.name: getattr(value, f.name) for f in dataclasses.fields(value) if f.init
        }
    return None


def _name(value: Any) -> str:
    """The import name of a function or class."""
    name = values.import_name(value)
    if name is None:
        shown = values.source(value)
        raise ValueError(
            f"{shown} has no name to find it by. Define it with def at the top of a module."
        )
    return name
