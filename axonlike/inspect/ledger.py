"""What JAX traces and compiles while one looks, and why."""

from __future__ import annotations

import logging
import re
import threading
from collections import Counter
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, cast

import jax
import jax.monitoring

from axonlike.inspect.cache_misses import AGAIN, Reason, is_of_jax, read

_TRACE = "/jax/core/compile/jaxpr_trace_duration"
_LOWER = "/jax/core/compile/jaxpr_to_mlir_module_duration"
_COMPILE = "/jax/core/compile/backend_compile_duration"
_LOGGER = "jax._src.interpreters.partial_eval"
_NO_TRACE = "no new trace: another transformation, sharding, device or compiler option"
_LOOPS = ("scan", "while", "cond")
"""Operations that run functions; what JAX explains then are those."""


class Event(NamedTuple):
    """One trace or one compilation of a function."""

    stage: str
    """"trace" or "compile"."""
    function: str
    where: str
    """File and line that called it."""
    seconds: float
    why: str


class Ledger:
    """What one thread traces and compiles in a `with`; `ledger` and `max_compiles` make it.

    `traces` and `compiles` are numbers, `events` everything in order, `str` a report.
    JAX's own operations, where they run outside of `jax.jit`, are `operations`, apart.
    """

    def __init__(self, limit: int | None = None) -> None:
        self.limit = limit
        self.events: list[Event] = []
        self.operations: list[Event] = []
        self._counts: Counter[Any] = Counter()
        self._homes: dict[Any, Any] = {}
        self._kept: list[Any] = []
        self._explaining: AbstractContextManager[Any] | None = None

    @property
    def traces(self) -> int:
        """How many times a function was traced."""
        return sum(event.stage == "trace" for event in self.events)

    @property
    def compiles(self) -> int:
        """How many times a function was compiled."""
        return sum(event.stage == "compile" for event in self.events)

    @property
    def seconds(self) -> float:
        """How long all of it took, operations included."""
        return sum(event.seconds for event in (*self.events, *self.operations))

    def __enter__(self) -> Ledger:
        if self._explaining is not None:
            raise RuntimeError("ledger: it is open already. Make one for each with.")
        values = cast("Mapping[str, Any]", jax.config.values)
        _listen(self, quiet=not values.get("jax_explain_cache_misses"))
        self._explaining = jax.explain_cache_misses(True)
        self._explaining.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        if self._explaining is not None:
            self._explaining.__exit__(None, None, None)
            self._explaining = None
        _leave(self)
        self._homes.clear()
        self._kept.clear()

    def record(self, event: Event, reason: Reason | None) -> None:
        """Takes an event down; an error when a function was compiled too often."""
        self.events.append(event)
        if event.stage != "compile":
            return
        home = self._home(event, reason)
        self._counts[home] += 1
        if self.limit is not None and self._counts[home] > self.limit:
            raise RuntimeError(_too_many(event, self._counts[home], self.limit))

    def _home(self, event: Event, reason: Reason | None) -> Any:
        """What compilations are counted by: the function, or the line that makes it."""
        if reason is None:
            return event.function
        self._kept.append(reason.function)  # so that its id stays its own
        home = self._homes.get(id(reason.function), id(reason.function))
        if reason.why == AGAIN:
            home = self._homes.get(reason.where, home)
        self._homes[id(reason.function)] = self._homes[reason.where] = home
        return home

    def __str__(self) -> str:
        head = f"{self._counted()}, {self.seconds:.2f} s"
        return "\n".join([head, *_lines(self.events), *self._rest()])

    def _rest(self) -> list[str]:
        """One line for the operations outside of `jax.jit`."""
        compiled = [event for event in self.operations if event.stage == "compile"]
        if not compiled:
            return []
        names = Counter(event.function for event in compiled)
        listed = ", ".join(f"{name} {n} x" for name, n in names.most_common())
        seconds = sum(event.seconds for event in self.operations)
        return [f"outside of jit: {listed}  {seconds:.2f} s"]

    def __repr__(self) -> str:
        return f"<ledger: {self._counted()}>"

    def _counted(self) -> str:
        return f"{_number(self.traces, 'trace')}, {_number(self.compiles, 'compile')}"


def ledger() -> Ledger:
    """A context manager that takes down every trace and compilation, and why.

    It says which argument is not as it was before: which of its axes, its dtype, or the
    value of a static one. `l.compiles` and `l.traces` are how many there were, `l.events`
    which, `str(l)` a report. JAX's operations outside of `jax.jit` are counted apart, in
    `l.operations`. Like JAX's own contexts it sees its own thread. Several may be open;
    nothing stays behind.

    Shapes:
        No arrays.

    Example:
        >>> import jax, jax.numpy as jnp, axonlike as al
        >>> double = jax.jit(lambda x: x * 2)
        >>> with al.ledger() as l:
        ...     y = double(jnp.ones((3, 4)))
        ...     y = double(jnp.ones((3, 4)))
        ...     y = double(jnp.ones((3, 5)))
        >>> l.traces, l.compiles
        (2, 2)
        >>> l.events[-1].why
        'x: float32[3, 4] -> float32[3, 5] (axis 1)'
    """
    return Ledger()


def max_compiles(n: int) -> Ledger:
    """A context manager in which no function may be compiled more than n times.

    The compilation that is one too many raises, where it happens. A function that is made
    anew at a line that made one before counts as the same one. A gradient outside of
    `jax.jit` is two compilations, forward and backward. Otherwise as `ledger`.

    Args:
        n: how often each function may be compiled; 0: not at all.

    Shapes:
        No arrays.

    Raises:
        RuntimeError: in the `with`, a function was compiled too often; it says why.
        ValueError: n is not an int from 0 on.

    Example:
        >>> import jax, jax.numpy as jnp, axonlike as al
        >>> double = jax.jit(lambda x: x * 2)
        >>> with al.max_compiles(1):
        ...     for size in (2, 3):
        ...         y = double(jnp.ones(size))
        Traceback (most recent call last):
        RuntimeError: max_compiles: <lambda> was compiled 2 times, at most 1 allowed.
        ...
    """
    if not isinstance(n, int) or isinstance(n, bool) or n < 0:
        raise ValueError(f"max_compiles: n must be an int from 0 on, got {n!r}.")
    return Ledger(n)


def _too_many(event: Event, count: int, limit: int) -> str:
    often = "once" if count == 1 else f"{count} times"
    return (
        f"max_compiles: {event.function} was compiled {often}, at most {limit} allowed.\n"
        f"  {event.where or '?'}: {event.why}\n"
        "Give it arguments of the same shapes, dtypes and static values; pad what varies."
    )


def _lines(events: list[Event]) -> list[str]:
    """A line for each trace with the compilation that it was for, or for either alone."""
    lines: list[str] = []
    last: Event | None = None
    for event in events:
        if last is not None and last[1:3] == event[1:3] and event.why == last.why:
            lines[-1] = _line(event, last.seconds)
            last = None
        else:
            lines.append(_line(event))
            last = event if event.stage == "trace" else None
    return lines


def _line(event: Event, traced: float = 0.0) -> str:
    trace = event.seconds if event.stage == "trace" else traced
    compiled = event.seconds if event.stage == "compile" else 0.0
    place = f"  ({event.where})" if event.where else ""
    times = f"trace {trace:.3f} s, compile {compiled:.3f} s"
    return f"  {event.function}: {times}: {event.why}{place}"


def _number(n: int, what: str) -> str:
    return f"{n} {what}{'' if n == 1 else 's'}"


# --- how JAX is listened to, as long as a ledger is open


class _Thread(threading.local):
    """What one thread has open, and what it has just been told."""

    def __init__(self) -> None:
        self.ledgers: list[Ledger] = []
        self.quiet = True
        self.said: list[Reason] = []
        self.reasons: dict[str, Reason] = {}
        self.operations: set[str] = set()
        self.lowering = 0.0


_thread = _Thread()
_lock = threading.Lock()
_open: list[Ledger] = []


def _listen(ledger: Ledger, *, quiet: bool) -> None:
    if not _thread.ledgers:
        _thread.quiet, _thread.said = quiet, []
        _thread.reasons, _thread.operations = {}, set()
    _thread.ledgers.append(ledger)
    with _lock:
        _open.append(ledger)
        if len(_open) == 1:
            logging.getLogger(_LOGGER).addFilter(_explained)
            jax.monitoring.register_event_duration_secs_listener(_happened)


def _leave(ledger: Ledger) -> None:
    if ledger in _thread.ledgers:
        _thread.ledgers.remove(ledger)
    with _lock:
        if ledger in _open:
            _open.remove(ledger)
            if not _open:
                logging.getLogger(_LOGGER).removeFilter(_explained)
                jax.monitoring.unregister_event_duration_listener(_happened)


def _explained(record: logging.LogRecord) -> bool:
    """Takes what JAX explains; whether it is to be logged as well."""
    if not _thread.ledgers:
        return True
    reason = read(record.getMessage())
    if reason is None:
        return True
    _thread.said.append(reason)
    return not _thread.quiet


def _happened(event: str, duration_secs: float, **kwargs: Any) -> None:
    """Takes what JAX has done."""
    if not _thread.ledgers:
        return
    function = re.sub(r"^\w+\((.*)\)$", r"\1", str(kwargs.get("fun_name", "?")))
    if event == _TRACE:
        _traced(function, duration_secs)
    elif event == _LOWER:
        _thread.lowering += duration_secs
    elif event == _COMPILE:
        _compiled(function, duration_secs + _thread.lowering)
        _thread.lowering = 0.0


def _traced(function: str, seconds: float) -> None:
    reason = _claimed(function)
    if reason is None:
        _thread.operations.add(function)
        _take(Event("trace", function, "", seconds, ""), None, apart=True)
        return
    _thread.operations.discard(function)
    _thread.reasons[function] = reason
    _take(Event("trace", function, reason.where, seconds, reason.why), reason)


def _claimed(function: str) -> Reason | None:
    """What was explained of a function, before what it calls; operations have nothing."""
    for reason in _thread.said:
        if reason.name == function or function in _LOOPS:
            _thread.said = []
            return reason
    return None


def _compiled(function: str, seconds: float) -> None:
    claimed = _claimed(function)  # of a gradient there is no trace to be told of
    reason = claimed or _thread.reasons.get(function)
    apart = reason is None and (function in _thread.operations or is_of_jax())
    why = _NO_TRACE if reason is None else reason.why
    if reason is not None:  # what is compiled once more was not traced for that
        _thread.reasons[function] = reason._replace(why=_NO_TRACE)
    where = "" if reason is None else reason.where
    _take(Event("compile", function, where, seconds, why), reason, apart=apart)


def _take(event: Event, reason: Reason | None, *, apart: bool = False) -> None:
    for ledger in list(_thread.ledgers):
        if apart:
            ledger.operations.append(event)
        else:
            ledger.record(event, reason)
