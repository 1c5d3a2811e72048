"""The rules of a mapping: whose names stand for what."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

_FIELD = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True)
class Split:
    """One of theirs that is several of ours."""

    ours: tuple[str, ...]
    axis: int


@dataclass(frozen=True)
class Fuse:
    """Several of theirs that are one of ours."""

    theirs: tuple[str, ...]
    axis: int
    sizes: tuple[int, ...] | None


@dataclass(frozen=True)
class Tied:
    """One of theirs that is the same as another one, so that files may do without it."""

    ours: str
    transpose: bool


class Rule(NamedTuple):
    """Templates of names on both sides."""

    theirs: tuple[str, ...]
    ours: tuple[str, ...]
    axis: int | None = None
    sizes: tuple[int, ...] | None = None
    tied: bool = False
    transpose: bool = False

    def __str__(self) -> str:
        return " + ".join(map(repr, self.theirs))


def rule_of(theirs: Any, ours: Any) -> Rule:
    """A rule as it stands in a mapping.

    Raises:
        TypeError: one side is neither a name nor what `split`, `fuse` or `tied` make.
        ValueError: a field is on one side only.
    """
    left = theirs if isinstance(theirs, Fuse) else Fuse((theirs,), 0, None)
    right = ours if isinstance(ours, (Split, Tied)) else Split((ours,), 0)
    if isinstance(right, Tied):
        rule = Rule(left.theirs, (right.ours,), tied=True, transpose=right.transpose)
    else:
        joint = {s.axis for s in (theirs, ours) if isinstance(s, (Fuse, Split))}
        if len(joint) > 1:
            raise ValueError(
                f"mapping: fuse and split of one rule need one axis, got {sorted(joint)}."
            )
        axis = joint.pop() if joint else None
        rule = Rule(left.theirs, right.ours, axis, left.sizes)
    wrong = [name for name in (*rule.theirs, *rule.ours) if not isinstance(name, str)]
    if wrong:
        raise TypeError(
            "mapping: expected {name of theirs: path of ours}, names being str or made "
            f"by fuse, split and tied, got {type(wrong[0]).__name__}."
        )
    _check_fields(rule)
    return rule


def _check_fields(rule: Rule) -> None:
    """Every template of a rule has the same fields."""
    names = (*rule.theirs, *rule.ours)
    fields = [frozenset(map(str, _FIELD.findall(name))) for name in names]
    if len(set(fields)) > 1:
        every = sorted({name for each in fields for name in each})
        found = ", ".join(f"{{{name}}}" for name in every)
        raise ValueError(
            f"mapping: {rule}: every name of a rule needs the same fields, {found}. "
            "Copies have one number on both sides: 'h.{n}.mlp': 'blocks/{n}/mlp'."
        )


@lru_cache(maxsize=4096)
def regex(template: str) -> re.Pattern[str]:
    """What a template means, with its fields as groups."""
    parts = _FIELD.split(template)
    seen: set[str] = set()
    out = ""
    for i, part in enumerate(parts):
        if i % 2 == 0:
            out += re.escape(part)
        else:
            out += f"(?P={part})" if part in seen else f"(?P<{part}>[^/]+)"
            seen.add(part)
    return re.compile(out)


def filled_in(template: str, fields: Mapping[str, str]) -> str:
    """A template with its fields as they are."""
    return _FIELD.sub(lambda hit: fields[hit[1]], template)
