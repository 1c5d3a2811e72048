"""The errors that are ours; each derives from the builtin that a caller would expect."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class ShapeError(ValueError):
    """Shapes, dtypes or the structure of inputs do not fit.

    Args:
        where: the layer's kind; the door that called the layer adds its path.
        expected: what the layer takes.
        got: what it received; shapes and dtypes, never values.
        hint: one thing to do, a sentence.

    Example:
        >>> import axonlike as al
        >>> print(al.ShapeError("dense", "(..., n)", "()", "Add an axis."))
        dense: expected (..., n), got (). Add an axis.
    """

    def __init__(self, where: str, expected: str, got: str, hint: str = "") -> None:
        super().__init__(f"{where}: expected {expected}, got {got}. {hint}".rstrip())
        self.where, self.expected, self.got = where, expected, got

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), str(self))


class PathError(KeyError):
    """A name, path or pattern that matches nothing.

    Example:
        >>> import axonlike as al
        >>> print(al.PathError("edit", "blocks/0/atn", ["blocks/0/attn"]))
        edit: nothing is called 'blocks/0/atn'. Nearest: 'blocks/0/attn'.
    """

    def __init__(
        self, where: str, got: str, known: Iterable[str] = (), hint: str = ""
    ) -> None:
        self.where, self.got = where, got
        message = f"{where}: nothing is called {got!r}. {nearest(got, known)} {hint}"
        super().__init__(message.rstrip())

    def __str__(self) -> str:
        return str(self.args[0])

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), str(self))


def nearest(got: str, known: Iterable[str]) -> str:
    """A sentence with the names most like `got`, or with all there are."""
    names = list(dict.fromkeys(known))
    close = get_close_matches(str(got), names, n=3, cutoff=0.6)
    if close:
        return f"Nearest: {', '.join(map(repr, close))}."
    if not names:
        return "There are no names here."
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return f"Known: {', '.join(map(repr, names[:8]))}{more}."


def _rebuild(cls: type[Exception], message: str) -> Exception:
    error = cls.__new__(cls)
    Exception.__init__(error, message)
    return error
