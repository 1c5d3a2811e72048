"""What a layer's function asks for, read once from its parameters."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast

from axonlike.errors import nearest

SPECIAL = ("state", "key", "train", "emit")
_POSITIONAL = (
    inspect.Parameter.POSITIONAL_ONLY,
    inspect.Parameter.POSITIONAL_OR_KEYWORD,
)


class Signature(NamedTuple):
    """Inputs (positional), services (`state`, `key`, `train`, `emit`) and options."""

    inputs: tuple[str, ...]
    required: int
    variadic: bool
    services: frozenset[str]
    options: frozenset[str]
    needed: frozenset[str]
    open: bool = False

    @property
    def spreads(self) -> bool:
        """Whether one tuple or dict is unpacked into the inputs."""
        return self.required >= 2 or self.variadic

    def unpack(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any], where: str
    ) -> Any:
        """The call's inputs: one pytree is unpacked exactly when `spreads` says so."""
        if not kwargs and len(args) == 1 and self.spreads:
            (x,) = args
            if isinstance(x, (tuple, list)):
                args = tuple(cast("list[Any]", x))
            elif isinstance(x, dict):
                args, kwargs = (), cast("dict[str, Any]", x)
                self._check_inputs(kwargs, where)
        if kwargs or not self.variadic:
            self._check(args, kwargs, where)
        return args, kwargs

    def _check_inputs(self, named: Mapping[str, Any], where: str) -> None:
        """Data is for inputs alone: it sets no option."""
        for name in named:
            if name not in self.inputs and not self.open:
                raise TypeError(
                    f"{where}: unknown input {name!r}. {nearest(name, self.inputs)}"
                )

    def _check(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any], where: str
    ) -> None:
        """The arity in words: `inspect` knows it, Python's own message names no input."""
        names = self.inputs
        if len(args) > len(names) and not self.variadic:
            raise TypeError(
                f"{where}: expected {self._wanted()}, got {_count(len(args))}. "
                "Pass one value for each input."
            )
        given = {*names[: len(args)], *kwargs}
        missing = [n for n in names[: self.required] if n not in given]
        if missing:
            got = f"inputs {sorted(kwargs)}" if kwargs else _count(len(args))
            raise TypeError(
                f"{where}: expected {self._wanted()}, got {got}. "
                f"Pass {', '.join(missing)} as well."
            )
        for name in kwargs:
            if name not in names and name not in self.options and not self.open:
                known = [*names, *sorted(self.options)]
                raise TypeError(
                    f"{where}: unknown input {name!r}. {nearest(name, known)}"
                )

    def _wanted(self) -> str:
        count = len(self.inputs)
        names = f" ({', '.join(self.inputs)})" if count else ""
        if self.required < count:
            return f"{self.required} to {count} inputs{names}"
        return f"{_count(count)}{names}"


def _count(inputs: int) -> str:
    return "1 input" if inputs == 1 else f"{inputs} inputs"


NOTHING = Signature((), 0, False, frozenset(), frozenset(), frozenset())
ONE_INPUT = Signature(("x",), 1, False, frozenset(), frozenset(), frozenset())


def read(function: Callable[..., Any], skip: int, *, plain: bool = False) -> Signature:
    """The signature of a function whose first `skip` parameters are not inputs.

    With `plain`, a function of the outside world: it receives inputs only.
    """
    code = getattr(function, "__code__", None)
    special = any(hasattr(function, n) for n in ("__wrapped__", "__signature__"))
    if code is None or special or inspect.ismethod(function):
        return _read(function, skip, plain)
    defaults = getattr(function, "__defaults__", None) or ()
    keyword = tuple(sorted(getattr(function, "__kwdefaults__", None) or ()))
    where = (code, len(defaults), keyword, skip, plain)
    if where not in _known:
        if len(_known) >= _MOST_KNOWN:
            _known.clear()
        _known[where] = _read(function, skip, plain)
    return _known[where]


# By code, which is the same for every function made by one `def`. The functions
# themselves are not kept: they may hold on to arrays.
_known: dict[Any, Signature] = {}
_MOST_KNOWN = 4096


def _read(function: Callable[..., Any], skip: int, plain: bool) -> Signature:
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return ONE_INPUT
    positional = [p for p in parameters if p.kind in _POSITIONAL][skip:]
    keyword = [p for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY]
    empty = inspect.Parameter.empty
    names = frozenset(p.name for p in keyword)
    return Signature(
        inputs=tuple(p.name for p in positional),
        required=sum(p.default is empty for p in positional),
        variadic=any(p.kind is inspect.Parameter.VAR_POSITIONAL for p in parameters),
        services=frozenset() if plain else names & frozenset(SPECIAL),
        options=names if plain else names - frozenset(SPECIAL),
        needed=frozenset(p.name for p in keyword if p.default is empty)
        - frozenset(SPECIAL),
        open=any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters),
    )
