"""The table of primitives: for each what becomes of it in a graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

Rule = Callable[..., Any]
"""`rule(graph, equation, *inputs)`: the name of its output, a `Value`, or several."""


class Entry(NamedTuple):
    """What is done for a primitive.

    `lazy`: it takes arrays that have yet to be repeated along some axes, and says what
    it made by a `Value`. `exact`: it only moves or chooses numbers, so that nothing has
    to be rounded. `inline`: it runs other programs, by the `Converter`, its first argument.
    """

    rule: Rule
    lazy: bool = False
    exact: bool = False
    inline: bool = False


class NoCounterpartError(Exception):
    """Why a primitive, with these parameters, cannot be written as ONNX."""


TABLE: dict[str, Entry] = {}


def rule(
    *primitives: str, lazy: bool = False, exact: bool = False, inline: bool = False
) -> Callable[[Rule], Rule]:
    """Enters a function into the table, for primitives by name."""

    def enter(function: Rule) -> Rule:
        for name in primitives:
            TABLE[name] = Entry(function, lazy, exact, inline)
        return function

    return enter
