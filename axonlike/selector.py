"""Selectors: which layers of a model, or which arrays of a tree, are meant.

A path or a glob means what stands there: the layer, or all arrays of that layer. An array
that holds the copies of a stacked `repeat` stands at `blocks/*/...` for all of them, and
each copy at `blocks/3/...`; so what is chosen of an array is a set of its copies.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache, reduce
from itertools import product
from typing import Any, cast

from axonlike.errors import PathError
from axonlike.paths import pattern
from axonlike.spots import Spot

Item = tuple[str, Any]
"""A path, and the array or layer that stands there."""
Copies = frozenset[tuple[int, ...]]
"""Which copies of a stacked array; one that is not stacked has the copy `()`."""
_NONE: Copies = frozenset()
_COMBINE: dict[str, Callable[[Copies, Copies], Copies]] = {
    "|": operator.or_,
    "&": operator.and_,
    "-": operator.sub,
}
Where = Any
"""A path, a glob, a predicate on `(path, what stands there)`, a `Selector`, or several."""


@dataclass(frozen=True)
class Selector:
    """A union, intersection or difference of selectors, or all layers of a kind.

    Made by `where` and `kind`; `|`, `&` and `-` combine it with any selector.

    Example:
        >>> import axonlike as al
        >>> model = al.serial(body=al.dense(8) >> al.dense(8), head=al.dense(2))
        >>> chosen = al.kind("dense") - "head"
        >>> [path for path, _ in al.layers(model, chosen)]
        ['body/dense', 'body/dense_1']
    """

    operation: str
    parts: tuple[Any, ...]

    def __or__(self, other: Where) -> Selector:
        return Selector("|", (self, other))

    def __ror__(self, other: Where) -> Selector:
        return Selector("|", (other, self))

    def __and__(self, other: Where) -> Selector:
        return Selector("&", (self, other))

    def __rand__(self, other: Where) -> Selector:
        return Selector("&", (other, self))

    def __sub__(self, other: Where) -> Selector:
        return Selector("-", (self, other))

    def __repr__(self) -> str:
        if self.operation == "kind":
            return f"al.kind({', '.join(map(repr, self.parts))})"
        first, *rest = self.parts
        text = f"al.where({first!r})"
        return "".join([text, *(f" {self.operation} al.where({p!r})" for p in rest)])

    def __rsub__(self, other: Where) -> Selector:
        return Selector("-", (other, self))


def where(*selectors: Where) -> Selector:
    """A selector of everything that one of several means.

    Args:
        selectors: paths, globs (`*` one step, `**` any depth, `{a,b}` either),
            predicates on `(path, array or layer)`, selectors.

    Shapes:
        No arrays.

    Raises:
        TypeError: there is none.

    Example:
        >>> import axonlike as al
        >>> params = {"a": {"kernel": 1.0, "bias": 0.0}, "b": {"kernel": 2.0}}
        >>> list(al.select(params, al.where("**/kernel") - "b"))
        ['a/kernel']
    """
    if not selectors:
        raise TypeError(
            "where: expected selectors, got none. Write where('**/kernel')."
        )
    return Selector("|", selectors)


def kind(*names: str) -> Selector:
    """A selector of the layers of a kind, and of their arrays.

    Args:
        names: kinds, each the name of a factory: `"dense"`.

    Shapes:
        No arrays; functions of params need `model=` to know the kinds.

    Raises:
        TypeError: a name is no str.

    Example:
        >>> import axonlike as al
        >>> model = al.dense(8) >> al.layer_norm() >> al.dense(2)
        >>> [path for path, _ in al.layers(model, al.kind("layer_norm"))]
        ['layer_norm']
    """
    wrong = [name for name in names if not isinstance(name, str)]
    if wrong or not names:
        got = type(wrong[0]).__name__ if wrong else "nothing"
        raise TypeError(
            f"kind: expected names of kinds, got {got}. Write kind('dense')."
        )
    return Selector("kind", names)


def choose(
    verb: str, selector: Where, items: Sequence[Item], layers: Sequence[Spot] | None
) -> list[Copies]:
    """The chosen copies of each item; every single selector has to mean something.

    `layers` are the model's, to know the kinds of arrays by; None where there is no model.
    """
    if isinstance(selector, Selector) and selector.operation == "kind":
        return _some(verb, selector, _of_kind(verb, selector, items, layers), items)
    if isinstance(selector, Selector):
        parts = [choose(verb, part, items, layers) for part in selector.parts]
        combine = _COMBINE[selector.operation]
        chosen = [reduce(combine, each) for each in zip(*parts, strict=True)]
        return _some(verb, selector, chosen, items)
    if isinstance(selector, str):
        return _some(verb, selector, [_copies(selector, *i) for i in items], items)
    if _is_predicate(selector):
        chosen = [_all(*item) if selector(*item) else _NONE for item in items]
        return _some(verb, selector, chosen, items)
    return choose(verb, Selector("|", _several(verb, selector)), items, layers)


def spelled(selector: Where) -> str:
    """A selector as one would write it."""
    if isinstance(selector, Selector) and selector.operation == "kind":
        return f"kind({', '.join(map(repr, selector.parts))})"
    if isinstance(selector, Selector):
        return f" {selector.operation} ".join(map(spelled, selector.parts))
    return selector if isinstance(selector, str) else _name(selector)


def _name(selector: Any) -> str:
    return getattr(selector, "__name__", type(selector).__name__)


def _is_predicate(selector: Any) -> bool:
    """Whether it is a function, and neither a layer nor what makes one."""
    made = hasattr(selector, "children") or hasattr(selector, "__axonlike_factory__")
    return callable(selector) and not made


def _several(verb: str, selector: Any) -> tuple[Any, ...]:
    no_list = isinstance(selector, bytes) or hasattr(selector, "children")
    if isinstance(selector, Iterable) and not no_list:
        parts = tuple(cast("Iterable[Any]", selector))
        if parts:
            return parts
    raise TypeError(
        f"{verb}: expected a path, a glob, a predicate on (path, value), kind(...) or "
        f"several of those, got {selector!r}."
    )


def _some(
    verb: str, selector: Where, chosen: list[Any], items: Sequence[Item]
) -> list[Copies]:
    """What was chosen, if it is anything."""
    if any(chosen):
        return chosen
    known = [path for path, _ in items]
    starred = re.sub(r"(?<![^/])-?\d+(?![^/])", "*", spelled(selector))
    if starred != selector and starred in known:
        raise ValueError(
            f"{verb}: {selector!r} is one of several copies, which are one layer. "
            f"Choose {starred!r}, all of them."
        )
    raise PathError(verb, spelled(selector), known)


def _of_kind(
    verb: str, selector: Selector, items: Sequence[Item], layers: Sequence[Spot] | None
) -> list[Copies]:
    """Layers of the kinds, or the arrays that stand at or below such layers."""
    if layers is None:
        raise TypeError(
            f"{verb}: only a model knows kinds, got {spelled(selector)} without one. "
            "Pass model=."
        )
    kinds = selector.parts
    known = [spot.layer.kind for spot in layers]
    unknown = [name for name in kinds if name not in known]
    if unknown:
        raise PathError(verb, unknown[0], known)
    homes = [spot for spot in layers if spot.layer.kind in kinds]

    def means(path: str, value: Any) -> bool:
        if hasattr(value, "children"):
            return value.kind in kinds
        return any(spot.owns(path) for spot in homes)

    return [_all(*item) if means(*item) else _NONE for item in items]


def _copies(glob: str, path: str, value: Any) -> Copies:
    """The copies of an array that a glob means; a layer has one."""
    arrays = not hasattr(value, "children")
    if glob == "":  # the root: the model itself, or all of its arrays
        return _all(path, value) if arrays or not path else _NONE
    test = _test(glob, arrays)
    if path and test(path):
        return _all(path, value)
    stacked = "*" in path.split("/") and hasattr(value, "shape")
    if not stacked or not re.search(r"(?:^|[/{,])\d", glob):
        return _NONE
    return frozenset(i for i in _all(path, value) if test(at(path, i)))


@lru_cache(maxsize=1024)
def _test(glob: str, below: bool) -> Callable[[str], Any]:
    if not below:
        return pattern(glob).fullmatch
    return re.compile(f"(?:{pattern(glob).pattern})(?:/.*)?").fullmatch


def _all(path: str, value: Any) -> Copies:
    """Every copy that stands at a path: one for each index along its `*` steps."""
    count = path.split("/").count("*")
    if not count or not hasattr(value, "shape"):
        return frozenset([()])
    return frozenset(product(*map(range, value.shape[:count])))


def at(path: str, indices: tuple[int, ...]) -> str:
    """The path of one copy: its indices in place of the `*` steps."""
    left = list(indices)
    steps = [str(left.pop(0)) if s == "*" else s for s in path.split("/")]
    return "/".join(steps)


def is_whole(copies: Copies, path: str, value: Any) -> bool:
    """Whether all copies of an array are chosen."""
    return len(copies) == len(_all(path, value))


def whole(copies: Copies, verb: str, path: str, value: Any) -> bool:
    """Whether an array is chosen; an error where only some of its copies are."""
    if copies and not is_whole(copies, path, value):
        home = path[: (path + "/").index("*/")].rstrip("/")
        raise ValueError(
            f"{verb}: means some of the copies that are stacked in {path!r}, and an "
            f"array is not divided. Write unstack(params, {home!r}) first."
        )
    return bool(copies)
