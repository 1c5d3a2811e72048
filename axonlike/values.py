"""How the values in a layer's config are compared, hashed and written as source."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib
import importlib.util
import inspect
import sys
import threading
import types
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast
from weakref import WeakValueDictionary

import numpy as np

_PUBLIC = (
    "jax.nn",
    "jax.numpy",
    "jax.lax",
    "jax.random",
    "jax.nn.initializers",
    "jax.scipy.special",
    "jax.image",
    "jax.checkpoint_policies",
    "jax",
    "axonlike",
)
_PLAIN = (type(None), bool, int, float, complex, str, bytes, type(Ellipsis))


def import_name(value: Any) -> str | None:
    """The dotted name under which this very object can be imported, if there is one."""
    qualname = getattr(value, "__qualname__", None) or getattr(value, "__name__", None)
    module = getattr(value, "__module__", None)
    if not isinstance(qualname, str) or not isinstance(module, str):
        return _attribute("jax.checkpoint_policies", value)
    private = module.startswith(("jax._src", "jaxlib", "axonlike"))
    for home in (*_PUBLIC, module) if private else (module,):
        if _resolves(home, qualname, value):
            return f"{home}.{qualname}"
    return None


def _attribute(home: str, value: Any) -> str | None:
    """The name of an object that does not know its own, where it is found in `home`."""
    names: dict[str, Any] = getattr(_namespace(home), "__dict__", {})
    found = (f"{home}.{name}" for name, held in names.items() if held is value)
    return next(found, None)


def _namespace(home: str) -> Any:
    """A module, or what a module keeps its public names in."""
    module, _, name = home.rpartition(".")
    return sys.modules.get(home) or getattr(sys.modules.get(module), name, None)


def token(value: Any, name_of: Callable[[Any], Any]) -> Any:
    """A nested tuple that two values share exactly when they are equal in value and type.

    `name_of` stands in for what has no parts: by identity (`id`) to compare, by import
    name to hash alike in every process.
    """
    kind = type(value).__name__
    if isinstance(value, _PLAIN):
        return (kind, repr(value))
    if isinstance(value, (tuple, list)):
        return (kind, *(token(v, name_of) for v in cast("list[Any]", value)))
    if isinstance(value, Mapping):
        pairs = cast("Mapping[Any, Any]", value).items()
        items = [(str(k), token(k, name_of), token(v, name_of)) for k, v in pairs]
        return (kind, *sorted(items, key=lambda item: item[0]))
    if isinstance(value, (set, frozenset)):
        members = cast("set[Any]", value)
        return (kind, *sorted(repr(token(v, name_of)) for v in members))
    if hasattr(cast(Any, type(value)), "__axonlike_token__"):
        return value.__axonlike_token__(name_of)
    return (kind, *_parts(value, name_of))


def _parts(value: Any, name_of: Callable[[Any], Any]) -> tuple[Any, ...]:
    """What tells one value from another of its type."""
    if isinstance(value, np.dtype):
        return (cast(Any, value).name,)
    if isinstance(value, (np.ndarray, np.generic)) or _is_jax_array(value):
        array: Any = np.asarray(cast(Any, value))
        return (array.dtype.name, array.shape, array.tobytes())
    if isinstance(value, functools.partial):
        parts = (value.func, value.args, value.keywords)
        return tuple(token(part, name_of) for part in parts)
    if isinstance(value, types.MethodType):
        return (token(value.__self__, name_of), name_of(value.__func__))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = dataclasses.fields(value)
        parts = (token(getattr(value, f.name), name_of) for f in fields)
        return (name_of(type(value)), *parts)
    return (name_of(value),)


def by_name(value: Any) -> Any:
    """Where a function says that it was defined, in every process; else its identity.

    Good for hashes alone: what is defined again hashes alike, and is not equal.
    """
    name = f"{getattr(value, '__module__', None)}.{getattr(value, '__qualname__', '<')}"
    return id(value) if "<" in name else name


class Identity:
    """What equal values share: one object, so that comparing them takes no time."""

    __slots__ = ("__weakref__",)


_identities: WeakValueDictionary[Any, Identity] = WeakValueDictionary()
_identities_lock = threading.Lock()


def interned(tokens: Any) -> Identity:
    """The identity of these tokens, for as long as something has it.

    Tokens that hold identities of their own stay shallow: models nest, comparisons do not.
    """
    with _identities_lock:
        found = _identities.get(tokens)
        if found is None:
            found = _identities[tokens] = Identity()
        return found


def digest(tokens: Any) -> int:
    """A 64-bit hash of nested tuples, the same in every process."""
    data = hashlib.blake2b(repr(tokens).encode(), digest_size=8).digest()
    return int.from_bytes(data, "little", signed=True)


def source(value: Any) -> str:
    """Python source for a value: evaluates wherever every function in it has a name."""
    if isinstance(value, float) and repr(value) in ("nan", "inf", "-inf"):
        return f"float({repr(value)!r})"
    if type(value) is tuple:
        inner = ", ".join(map(source, cast("list[Any]", value)))
        return f"({inner},)" if len(cast("list[Any]", value)) == 1 else f"({inner})"
    if type(value) is list:
        return f"[{', '.join(map(source, cast('list[Any]', value)))}]"
    if type(value) is dict:
        items = (
            f"{source(k)}: {source(v)}"
            for k, v in cast("dict[Any, Any]", value).items()
        )
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
    code = getattr(inspect.unwrap(value), "__code__", None)
    if code is None:
        return repr(value)
    file = code.co_filename.replace("\\", "/").rsplit("/", 1)[-1]
    return f"<{value.__name__.strip('<>')} {file}:{code.co_firstlineno}>"


def _resolves(home: str, qualname: str, value: Any) -> bool:
    found: Any = _namespace(home)
    for part in qualname.split("."):
        found = getattr(found, part, None)
    return found is value


def _is_jax_array(value: Any) -> bool:
    jax = sys.modules.get("jax")
    return jax is not None and isinstance(value, jax.Array)


class ByName:
    """A function on its way through pickle: found again by its import name.

    Pickle itself looks where a function says that it was defined, which for many of
    JAX's is not where it can be found.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def __reduce__(self) -> tuple[Any, ...]:
        return imported, (self.name,)


class Partial(NamedTuple):
    """A `functools.partial` on its way through pickle."""

    func: Any
    args: Any
    keywords: Any

    def __reduce__(self) -> tuple[Any, ...]:
        return _partial, tuple(self)


def _partial(func: Any, args: Any, keywords: Any) -> Any:
    return functools.partial(func, *args, **keywords)


def imported(name: str) -> Any:
    """The object with an import name."""
    module, _, rest = name.rpartition(".")
    while module not in sys.modules and importlib.util.find_spec(module) is None:
        module, _, more = module.rpartition(".")
        rest = f"{more}.{rest}"
    found: Any = importlib.import_module(module)
    for part in rest.split("."):
        found = getattr(found, part)
    return found


def picklable(value: Any) -> Any:
    """A config value with its functions by name."""
    if isinstance(value, (tuple, list)):
        return type(cast(Any, value))(map(picklable, cast("list[Any]", value)))
    if isinstance(value, dict):
        return {k: picklable(v) for k, v in cast("dict[Any, Any]", value).items()}
    if isinstance(value, functools.partial):
        words = {k: picklable(v) for k, v in value.keywords.items()}
        return Partial(picklable(value.func), picklable(value.args), words)
    if callable(value) and not hasattr(cast(Any, type(value)), "__axonlike_token__"):
        name = import_name(value)
        return value if name is None else ByName(name)
    return value
