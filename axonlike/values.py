"""How the values in a layer's config are compared, hashed and written as source."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import sys
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

_PUBLIC = (
    "jax.nn",
    "jax.numpy",
    "jax.lax",
    "jax.random",
    "jax.nn.initializers",
    "jax.scipy.special",
    "jax.image",
    "jax",
    "axonlike",
)
_PLAIN = (type(None), bool, int, float, complex, str, bytes, type(Ellipsis))


def import_name(value: Any) -> str | None:
    """The dotted name under which this very object can be imported, if there is one."""
    qualname = getattr(value, "__qualname__", None) or getattr(value, "__name__", None)
    module = getattr(value, "__module__", None)
    if not isinstance(qualname, str) or not isinstance(module, str):
        return None
    private = module.startswith(("jax._src", "jaxlib", "axonlike"))
    for home in (*_PUBLIC, module) if private else (module,):
        if _resolves(home, qualname, value):
            return f"{home}.{qualname}"
    return None


def token(value: Any, name_of: Callable[[Any], Any]) -> Any:
    """A nested tuple that two values share exactly when they are equal in value and type.

    `name_of` stands in for what has no parts: by identity (`id`) to compare, by import
    name to hash alike in every process.
    """
    kind = type(value).__name__
    if isinstance(value, _PLAIN):
        return (kind, repr(value))
    if isinstance(value, (tuple, list)):
        return (kind, *(token(v, name_of) for v in value))
    if isinstance(value, (dict, Mapping)):
        items = (
            (str(k), token(k, name_of), token(v, name_of)) for k, v in value.items()
        )
        return (kind, *sorted(items, key=lambda item: item[0]))
    if isinstance(value, (set, frozenset)):
        return (kind, *sorted(map(repr, (token(v, name_of) for v in value))))
    if hasattr(type(value), "__axonlike_token__"):
        return type(value).__axonlike_token__(value, name_of)
    if isinstance(value, np.dtype):
        return (kind, value.name)
    if isinstance(value, (np.ndarray, np.generic)) or _is_jax_array(value):
        array = np.asarray(value)
        return (kind, array.dtype.name, array.shape, array.tobytes())
    if isinstance(value, functools.partial):
        parts = (value.func, value.args, value.keywords)
        return (kind, *(token(part, name_of) for part in parts))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = dataclasses.fields(value)
        parts = (token(getattr(value, f.name), name_of) for f in fields)
        return (kind, name_of(type(value)), *parts)
    return (kind, name_of(value))


def by_name(value: Any) -> Any:
    """Names that hold in every process where there is one, else the object's identity."""
    return import_name(value) or id(value)


def digest(tokens: Any) -> int:
    """A 64-bit hash of nested tuples, the same in every process."""
    data = hashlib.blake2b(repr(tokens).encode(), digest_size=8).digest()
    return int.from_bytes(data, "little", signed=True)


def source(value: Any) -> str:
    """Python source for a value: evaluates wherever every function in it has a name."""
    if isinstance(value, float) and repr(value) in ("nan", "inf", "-inf"):
        return f"float({repr(value)!r})"
    if type(value) is tuple:
        inner = ", ".join(map(source, value))
        return f"({inner},)" if len(value) == 1 else f"({inner})"
    if type(value) is list:
        return f"[{', '.join(map(source, value))}]"
    if type(value) is dict:
        items = (f"{source(k)}: {source(v)}" for k, v in value.items())
        return "{" + ", ".join(items) + "}"
    if isinstance(value, np.dtype):
        return f"jax.numpy.dtype({value.name!r})"
    if isinstance(value, functools.partial):
        keywords = (f"{k}={source(v)}" for k, v in value.keywords.items())
        inner = ", ".join([source(value.func), *map(source, value.args), *keywords])
        return f"functools.partial({inner})"
    if callable(value) and not hasattr(type(value), "__axonlike_token__"):
        return _function_source(value)
    return repr(value)


def public(name: str) -> str:
    """An import name as users write it: `al.dense`, and no `__main__`."""
    return name.replace("axonlike.", "al.", 1).removeprefix("__main__.")


def is_lambda(value: Any) -> bool:
    """Whether a value is a function that no other process could find."""
    parts = value.func if isinstance(value, functools.partial) else value
    return _is_function(parts) and import_name(parts) is None


def _is_function(value: Any) -> bool:
    return callable(value) and hasattr(value, "__qualname__")


def _function_source(value: Any) -> str:
    name = import_name(value)
    if name is not None:
        return public(name)
    code = getattr(value, "__code__", None)
    if code is None:
        return repr(value)
    file = code.co_filename.replace("\\", "/").rsplit("/", 1)[-1]
    return f"<{value.__name__.strip('<>')} {file}:{code.co_firstlineno}>"


def _resolves(home: str, qualname: str, value: Any) -> bool:
    found: Any = sys.modules.get(home)
    for part in qualname.split("."):
        found = getattr(found, part, None)
    return found is value


def _is_jax_array(value: Any) -> bool:
    jax = sys.modules.get("jax")
    return jax is not None and isinstance(value, jax.Array)
