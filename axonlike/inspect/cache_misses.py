"""Why JAX traces a function: its own explanation of a cache miss, in a few words.

JAX says under `jax_explain_cache_misses` what differs from a call that it has seen, as
text. Which call is closest, and what differs of its shapes, dtypes and static values, is
looked up where JAX stands when it says so; where that is not to be had, there is the text.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

from axonlike.spec import show

FIRST = "first call"
AGAIN = "a new function, made again at this line: make it once, outside of the loop"
_UNSAID = "other static arguments, or another nesting of the arguments"
_CHANGE = re.compile(r"^\s*\* at (.+?), now (.+?) and before (.+)$")
_SETTING = re.compile(r"^\s*\* (\w+) differs: now (.+) and before (.+)$")
_LONGEST = 60
_MOST_LISTED = 4


class Reason(NamedTuple):
    """Why a function is traced, and where it was called."""

    why: str
    where: str
    function: Any
    """The function itself, or what JAX says of it."""
    name: str


def read(text: str) -> Reason | None:
    """The reason in what JAX logs; None where the text is about something else."""
    lines = text.splitlines()
    head = re.match(r"TRACING CACHE MISS at (.*?)(?::\d+)? \(", lines[0])
    if head is None or len(lines) < 2:
        return None
    known = _where_jax_stands("explain")
    function = known.get("fun", lines[-1 if "never seen" in lines[1] else 1].strip())
    if "never seen function" in lines[1]:
        why = AGAIN if "same line" in text else FIRST
        return Reason(why, head[1], function, _called(lines[2], function))
    settings = [f"{m[1]}: {m[3]} -> {m[2]}" for m in map(_SETTING.match, lines) if m]
    changes = settings or _closest(known) or _told(lines[3:], function)
    more = len(changes) - _MOST_LISTED
    listed = [*changes[:_MOST_LISTED], *([f"{more} more"] if more > 0 else [])]
    return Reason("; ".join(listed), head[1], function, _called(lines[1], function))


def _called(line: str, function: Any) -> str:
    """What JAX calls a function; of methods and other callables it says <unknown> here."""
    name = re.sub(r"^ *(for )?| (id=\d+|defined at .*)", "", line)
    if name != "<unknown>":
        return name
    return getattr(function, "__name__", "<unnamed function>")


# --- what JAX tells


def _told(lines: list[str], function: Any) -> list[str]:
    """What differs, as JAX's text has it."""
    changes = [_change(line, function) for line in lines]
    found = [change for change in changes if change]
    text = " ".join(line.strip() for line in lines)
    return found or [_UNSAID if not text or "unavailable" in text else text]


def _change(line: str, function: Any) -> str | None:
    found = _CHANGE.match(line)
    if found is None:
        return None
    at, now, old = found.groups()
    name, old = _argument(at, function), re.sub(r"https://\S+$", "", old)
    static = re.search(r"Static\(val=(.*)\)$", now)
    before = re.search(r"Static\(val=(.*)\), so ", old)
    if static and before:
        return f"{name}: {_cut(before[1])} -> {_cut(static[1])} (static)"
    keys = re.search(r"symmetric difference of key sets: \{(.*)\}", old)
    if keys is not None:
        return f"{name}: with and without {keys[1]}"
    text = f"{name}: {old.rpartition(', so ')[0] or old} -> {now}"
    text = text.replace("with pytree metadata", "with")
    return re.sub(r"<class '(.*?)'>", r"\1", text)


def _argument(at: str, function: Any) -> str:
    """An argument by name: of `input path [0][1]['w']`, `x['w']`."""
    path = re.match(r"input path \[([01])\]\[(?:(\d+)|'(\w+)')\](.*)$", at)
    if path is None:
        return "arguments" if at.startswith("input path") else at
    _, number, keyword, rest = path.groups()
    return (keyword or _name(function, int(number))) + rest


def _name(function: Any, number: int) -> str:
    """The name of an argument by its number."""
    try:
        names = list(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        names = []
    return names[number] if number < len(names) else f"argument {number}"


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."


# --- where JAX stands when it tells


def is_of_jax() -> bool:
    """Whether what is compiled right now is a function of JAX's own, called by itself."""
    function = _where_jax_stands("cache_miss").get("fun")
    return str(getattr(function, "__module__", "")).startswith("jax.")


def _where_jax_stands(name: str) -> dict[str, Any]:
    """What a function of JAX above us has at hand; empty where there is none."""
    frame = sys._getframe()  # pyright: ignore[reportPrivateUsage]
    while frame is not None and frame.f_code.co_name != name:
        frame = frame.f_back
    return {} if frame is None else dict(frame.f_locals)


def _closest(known: dict[str, Any]) -> list[str]:
    """What differs from the closest call with arguments nested alike, if there is one."""
    try:
        now, names = known["in_avals"], known["debug_info"].arg_names
        before = [key[1][0] for key in known["keys"]]
        alike = [old for old in before if old.tree == now.tree]
        found = [
            [*_statics(now, old, known.get("fun")), *_arrays(now.vals, old.vals, names)]
            for old in alike
        ]
    except (KeyError, IndexError, TypeError, ValueError, AttributeError):
        return []
    return min(filter(None, found), key=len, default=list[str]())


def _arrays(now: Any, old: Any, names: Any) -> Iterator[str]:
    for name, after, before in zip(names, now, old, strict=False):
        if after != before:
            difference = _difference(before, after)
            yield f"{name}: {show(before)} -> {show(after)} ({difference})"


def _difference(old: Any, now: Any) -> str:
    """Which dim or dtype is another one."""
    if old.dtype != now.dtype:
        return "dtype"
    if old.ndim != now.ndim:
        return "number of axes"
    if old.shape == now.shape:
        weak = getattr(old, "weak_type", 0) != getattr(now, "weak_type", 0)
        return "weak type: a Python number or an array" if weak else "sharding"
    pairs = enumerate(zip(old.shape, now.shape, strict=True))
    axes = [str(i) for i, (m, n) in pairs if m != n]
    return f"ax{'is' if len(axes) == 1 else 'es'} {', '.join(axes)}"


def _statics(now: Any, old: Any, function: Any) -> Iterator[str]:
    """The static arguments that are others; jax 0.10 has them in the tree instead."""
    before = dict(_found(old))
    for at, value in _found(now):
        was = before.get(at, value)
        if type(value) is not type(was) or value != was:
            name = _argument(f"input path {at}", function)
            yield f"{name}: {_cut(repr(was))} -> {_cut(repr(value))} (static)"


def _found(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """The static arguments in JAX's tree of arguments, by where they stand."""
    if type(node).__name__ == "FTStatic":
        yield path, node.val
    elif hasattr(node, "elts"):
        for i, item in enumerate(node.elts):
            yield from _found(item, f"{path}[{i}]")
    elif hasattr(node, "keys") and hasattr(node, "_vals"):
        for key, item in zip(node.keys, node._vals, strict=True):
            yield from _found(item, f"{path}[{key!r}]")
