"""How the values in a layer's config are compared, hashed and written as source."""

from __future__ import annotations

import dataclasses
import enum
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
    "axonlike.models",
)
_PLAIN = frozenset((type(None), bool, int, float, complex, str, bytes, type(Ellipsis)))
_BUILTIN = _PLAIN | {tuple, list, dict, set, frozenset, slice, range}


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

    `name_of` stands in for what has no parts, classes included: by identity (`id`) to
    compare, by import name to hash alike in every process. The order of a dict counts:
    a function can see it.
    """
    cls = cast(Any, type(value))
    kind = cls.__name__ if cls in _BUILTIN else name_of(cls)
    if cls in _PLAIN:
        return (kind, repr(value))
    if isinstance(value, enum.Enum):
        return (kind, repr(value))
    if hasattr(cls, "__axonlike_token__"):
        return value.__axonlike_token__(name_of)
    if isinstance(value, (tuple, list)):
        items = (token(v, name_of) for v in cast("list[Any]", value))
        return (kind, *items, *_attributes(value, name_of))
    if isinstance(value, Mapping):
        pairs = cast("Mapping[Any, Any]", value).items()
        items = ((token(k, name_of), token(v, name_of)) for k, v in pairs)
        return (kind, *items, *_attributes(value, name_of))
    if isinstance(value, (set, frozenset)):
        members = cast("set[Any]", value)
        return (kind, *sorted(repr(token(v, name_of)) for v in members))
    return (kind, *_parts(value, name_of))


def _attributes(value: Any, name_of: Callable[[Any], Any]) -> tuple[Any, ...]:
    """What a value of a class of the user's holds besides its items."""
    own = getattr(value, "__dict__", None)
    return (token(dict(own), name_of),) if own else ()


def _parts(value: Any, name_of: Callable[[Any], Any]) -> tuple[Any, ...]:
    """What tells one value from another of its type."""
    if isinstance(value, np.dtype):
        return (cast(Any, value).name,)
    if isinstance(value, (np.ndarray, np.generic)) or is_jax_array(value):
        array: Any = np.asarray(cast(Any, value))
        flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)  # bfloat16 too
        data = hashlib.blake2b(flat.data, digest_size=16)
        return (array.dtype.name, array.shape, data.digest())
    if isinstance(value, functools.partial):
        parts = (value.func, value.args, value.keywords)
        return tuple(token(part, name_of) for part in parts)
    if isinstance(value, types.MethodType):
        return (token(value.__self__, name_of), name_of(value.__func__))
    if isinstance(value, (slice, range)):
        bounds = cast(Any, value)
        return (bounds.start, bounds.stop, bounds.step)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [f.name for f in dataclasses.fields(value)]
        held = {n: getattr(value, n) for n in names} | getattr(value, "__dict__", {})
        return (token(held, name_of),)
    if _compares(value):
        return (value if name_of is id else repr(value),)
    return (name_of(value),)


def _compares(value: Any) -> bool:
    """Whether a value's class says itself what is equal, and hashes accordingly.

    Those of the standard library, of NumPy and of JAX do so by value; others might look
    at less than all there is.
    """
    cls = cast(Any, type(value))
    known = str(cls.__module__).split(".")[0] in (
        *sys.stdlib_module_names,
        "numpy",
        "jax",
    )
    overrides = cls.__eq__ is not object.__eq__ and cls.__hash__ is not object.__hash__
    return known and overrides and cls.__hash__ is not None and not _is_traced(value)


def snapshot(value: Any) -> Any:
    """The value as it is now: what could be changed in place is copied."""
    if isinstance(value, set):
        return cast(Any, value).copy()
    if isinstance(value, np.ndarray):
        return np.array(cast(Any, value))
    return remade(snapshot, value)


def remade(change: Callable[[Any], Any], value: Any) -> Any:
    """A list, tuple, named tuple or dict with other items; anything else as it is."""
    make = cast("Callable[..., Any]", type(value))
    if make is list or make is tuple:
        return make([change(item) for item in value])
    if isinstance(value, tuple) and hasattr(make, "_fields"):
        return make(*(change(item) for item in cast("tuple[Any, ...]", value)))
    if make is dict:
        return {k: change(v) for k, v in cast("dict[Any, Any]", value).items()}
    return cast(Any, value)


def holds_arrays(value: Any) -> bool:
    """Whether a config value is an array, or holds one that can be seen."""
    if isinstance(value, (tuple, list)):
        return any(map(holds_arrays, cast("list[Any]", value)))
    if isinstance(value, Mapping):
        return any(map(holds_arrays, cast("Mapping[Any, Any]", value).values()))
    if isinstance(value, functools.partial):
        return holds_arrays([value.args, value.keywords])
    return hasattr(value, "shape") and hasattr(value, "dtype")


def by_name(value: Any) -> Any:
    """Where a function says that it was defined, in every process; else its identity.

    Good for hashes alone: what is defined again hashes alike, and is not equal.
    """
    name = f"{getattr(value, '__module__', None)}.{getattr(value, '__qualname__', '<')}"
    return id(value) if "<" in name else name


class Identity:
    """What equal values share: one object, so that comparing them takes no time.

    `memory` is for what was found out about them; it is gone when they are.
    """

    __slots__ = ("__weakref__", "memory")

    def __init__(self) -> None:
        self.memory: dict[Any, Any] = {}


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
    if type(value) is tuple:
        inner = ", ".join(map(source, cast("list[Any]", value)))
        return f"({inner},)" if len(cast("list[Any]", value)) == 1 else f"({inner})"
    if type(value) is list:
        return f"[{', '.join(map(source, cast('list[Any]', value)))}]"
    if type(value) is dict:
        pairs = cast("dict[Any, Any]", value).items()
        return "{" + ", ".join(f"{source(k)}: {source(v)}" for k, v in pairs) + "}"
    if isinstance(value, functools.partial):
        keywords = (f"{k}={source(v)}" for k, v in value.keywords.items())
        inner = ", ".join([source(value.func), *map(source, value.args), *keywords])
        return f"functools.partial({inner})"
    if hasattr(cast(Any, type(value)), "__axonlike_token__"):
        return repr(value)
    if callable(value):
        return _function_source(value)
    return _value_source(value)


def _value_source(value: Any) -> str:
    """Source for what is neither a container nor a function."""
    if isinstance(value, float) and repr(value) in ("nan", "inf", "-inf"):
        return f"float({repr(value)!r})"
    if isinstance(value, np.dtype):
        return f"jax.numpy.dtype({cast(Any, value).name!r})"
    if isinstance(value, enum.Enum):
        return f"{_class_source(type(value))}.{value.name}"
    if isinstance(value, np.ndarray) or is_jax_array(value):
        home = "numpy" if isinstance(value, np.ndarray) else "jax.numpy"
        array: Any = np.asarray(cast(Any, value))
        return f"{home}.array({array.tolist()!r}, dtype={array.dtype.name!r})"
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = [f.name for f in dataclasses.fields(value) if f.init]
        inner = ", ".join(f"{name}={source(getattr(value, name))}" for name in fields)
        return f"{_class_source(type(value))}({inner})"
    return repr(value)


def _class_source(cls: type) -> str:
    return public(import_name(cls) or cls.__qualname__)


def public(name: str) -> str:
    """An import name as users write it: `al.dense`, and no `__main__`."""
    for home, shown in (
        ("axonlike.", "al."), ("__main__.", ""), ("builtins.", ""),
        ("_operator.", "operator."),
    ):  # fmt: skip
        if name.startswith(home):
            return shown + name.removeprefix(home)
    return name


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


def is_jax_array(value: Any) -> bool:
    """Whether a value is an array of JAX's whose numbers can be looked at."""
    jax = sys.modules.get("jax")
    if jax is None or not isinstance(value, jax.Array) or _is_traced(value):
        return False
    return not jax.numpy.issubdtype(value.dtype, jax.dtypes.extended)


def _is_traced(value: Any) -> bool:
    jax = sys.modules.get("jax")
    return jax is not None and isinstance(value, jax.core.Tracer)


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
    if isinstance(value, (tuple, list, dict)):
        return remade(picklable, value)
    if type(value) is functools.partial:
        words = {k: picklable(v) for k, v in value.keywords.items()}
        return Partial(picklable(value.func), picklable(value.args), words)
    if callable(value) and not hasattr(cast(Any, type(value)), "__axonlike_token__"):
        name = import_name(value)
        return value if name is None else ByName(name)
    return value
