"""Which sites of a model a path means, and where they are when the model runs.

A site's path has `*` where a repeat or an ensemble has copies. A step there may choose one
copy, a slice of them, all, or one that is known only when the model runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise
from typing import Any, NamedTuple, cast

import numpy as np

from axonlike.combinators.basic import shared
from axonlike.combinators.lifted import ensemble, repeat, vmap
from axonlike.combinators.over_time import scan
from axonlike.combinators.wire import wire
from axonlike.errors import PathError
from axonlike.layer import Layer
from axonlike.names import walk
from axonlike.paths import join, pattern
from axonlike.spots import spots

_MOST_POINTS = 4
"""Copies that run by themselves between scans; for more, one scan and then an index."""


class Copies(NamedTuple):
    """The copies of a repeat or an ensemble: how many, and how they are run."""

    number: int
    mode: str  # "scan", "vmap", or "unrolled"
    outer: int = 0  # axes in front of theirs, of what runs all of them several times


class Step(NamedTuple):
    """One `*` of a site: the copies' site, and which of them is meant."""

    site: str
    copies: Copies
    chosen: Any  # an int, a slice, None for all, or what is known only later


class Target(NamedTuple):
    """A site of a model: its path with `*` for each set of copies, and those steps."""

    path: str
    steps: tuple[Step, ...]

    @property
    def chosen(self) -> tuple[Any, ...]:
        """The path, with what is chosen in place of `*`."""
        left = {step.site: step.chosen for step in self.steps}
        names = self.path.split("/")
        here = ["/".join(names[: i + 1]) for i in range(len(names))]
        kept = [left.get(site) for site in here]
        return tuple(n if k is None else k for n, k in zip(names, kept, strict=True))


# --- which site a path means


def resolve(
    model: Layer, path: tuple[Any, ...], run: Iterable[str] = ()
) -> dict[str, Target]:
    """The sites that a path or glob means, by path; an error where there is none.

    `run` are the sites of a run: of layers that are used again, a glob means every use.
    """
    copies, known = _structure(model)
    text = "/".join(map(spelled, path))
    if any(isinstance(step, str) and not step for step in path):
        raise _unknown(text, known)
    wanted = _starred(path, copies)
    if _once(wanted.path) in known or _may_emit(model, _once(wanted.path)):
        return {wanted.path: wanted}
    chosen = {step.site: step.chosen for step in wanted.steps}
    found: dict[str, Target] = {}
    for site in _hits(wanted.path, known, run):
        target = _starred(tuple(site.split("/")), copies)
        steps = (
            s._replace(chosen=chosen.get(_once(s.site), s.chosen)) for s in target.steps
        )
        target = Target(site, tuple(steps))
        found["/".join(map(spelled, target.chosen))] = target
    if not found:
        raise _unknown(text, known)
    return found


def _unknown(path: str, known: list[str]) -> PathError:
    hint = "model.sites(spec) lists them."
    return PathError("activation", path, known, hint)


def _hits(text: str, known: list[str], run: Iterable[str]) -> list[str]:
    """The sites of layers that a glob means; the model's own ends if it names them."""
    if not any(c in text for c in "*{"):
        return []
    glob, own = pattern(text), set(known)
    again = [s for s in map(_plain, run) if "#" in s and _once(s) in own]
    return [
        site
        for site in dict.fromkeys([*known, *again])
        if glob.fullmatch(site) or glob.fullmatch(_once(site))
        if site not in ("input", "output") or site in text
    ]


def is_one(path: tuple[Any, ...], found: Mapping[str, Target]) -> bool:
    """Whether a path names one site: it is no glob, or one that only chooses copies."""
    names = next(iter(found.values())).path.split("/")
    same = all(a in ("*", b) for a, b in zip(names, path, strict=False))
    return len(found) == 1 and len(names) == len(path) and same


def may_mean_more(
    model: Layer, path: tuple[Any, ...], found: Mapping[str, Target]
) -> bool:
    """Whether a glob may mean further uses of a layer, of which a run has to tell."""
    if is_one(path, found):
        return False
    again = (s for s in spots(model) if s.layer.plain.factory in (shared, wire))
    homes = {f"{_plain(home)}/".lstrip("/") for s in again for home in s.paths}
    return any(t.path.startswith(home) for t in found.values() for home in homes)


def spelled(step: Any) -> str:
    """A step of a path as one writes it: a name, a number or a slice of copies."""
    if not isinstance(step, slice):
        return str(step)
    part = cast(Any, step)
    shown = (part.start, part.stop, part.step)[: 2 + (part.step is not None)]
    return ":".join("" if end is None else str(end) for end in shown)


def _once(path: str) -> str:
    """The path of a layer's first use: of `enc#1/dense`, `enc/dense`."""
    return "/".join(step.partition("#")[0] for step in path.split("/"))


def _structure(model: Layer) -> tuple[dict[str, Copies], list[str]]:
    """The copies by site, and every site, with `*` for copies however they are run."""
    known = {"input": None, "output": None}
    found: dict[str, Copies] = {}
    outer = _outer(model)
    for path, layer in [("", model), *walk(model, model.places, "", every=True)]:
        plain = _plain(path)
        if plain:
            known[plain] = None
        if layer.indexed:
            known[join(plain, "*")] = None
            lifted = layer.plain
            stacked = lifted.factory is not repeat or lifted.config["stacked"]
            mode = "vmap" if lifted.factory is ensemble else "scan"
            found[join(plain, "*")] = Copies(
                lifted.config["n"],
                mode if stacked else "unrolled",
                outer[join(plain, "*")],
            )
    return found, list(known)


def _outer(model: Layer) -> dict[str, int]:
    """How many axes stand in front of those of copies, from `vmap` and the like."""
    axes: dict[tuple[str, ...], int] = {}
    found: dict[str, int] = {}
    for spot in spots(model):
        layer, above = spot.layer.plain, axes.get(spot.chain[:-1], 0)
        tied = layer.factory is repeat and layer.config["tied"]
        axes[spot.chain] = above + (tied or layer.factory in (scan, vmap))
        if spot.layer.indexed:
            found |= {join(_plain(home), "*"): above for home in spot.paths}
    return found


def _starred(path: tuple[Any, ...], copies: Mapping[str, Copies]) -> Target:
    """The path with `*` at each set of copies, and what is chosen there."""
    site, steps = "", list[Step]()
    for step in path:
        star = join(site, "*")
        each = copies.get(_once(star))
        if each is not None and _chooses(step):
            steps.append(Step(star, each, _choice(step, star, each)))
            site = star
        elif isinstance(step, str):
            site = join(site, step)
        else:
            raise PathError(
                "activation", "/".join(map(str, path)), list(copies),
                f"{site!r} has no copies to choose from.",
            )  # fmt: skip
    return Target(site, tuple(steps))


def _chooses(step: Any) -> bool:
    if not isinstance(step, str):
        return True
    ends = step.split(":")
    numbers = all(end == "" or end.removeprefix("-").isdigit() for end in ends)
    return step == "*" or (step != "" and numbers)


def _choice(step: Any, star: str, copies: Copies) -> Any:
    """An int within range, a slice of some, an expression, or None for all."""
    if isinstance(step, str):
        if step == "*":
            return None
        ends = [int(end) if end else None for end in step.split(":")]
        chosen: Any = slice(*ends[:3]) if len(ends) > 1 else ends[0]
        wrong = len(ends) > 3
    else:
        chosen, wrong = step, False
    if isinstance(chosen, slice):
        part = cast(Any, chosen)
        ends = (part.start, part.stop, part.step)
        if not all(end is None or isinstance(end, (int, np.integer)) for end in ends):
            raise TypeError(
                f"activation: a slice of copies of {star[:-2]!r} has to be known when it "
                "is written. Write blocks/*/... and slice its value."
            )
        if wrong or part.step == 0 or not range(copies.number)[part]:
            raise _not_there(star, step, copies.number)
    elif isinstance(chosen, (int, np.integer)):
        return within(int(cast(Any, chosen)), copies.number, star)
    return cast(Any, chosen)


def within(copy: int, number: int, star: str) -> int:
    """The number of a copy from 0 on; an error where there is none."""
    if not -number <= copy < number:
        raise _not_there(star, copy, number)
    return copy % number


def _not_there(star: str, step: Any, number: int) -> PathError:
    text = f"{star[:-1]}{step}"
    known = [f"{star[:-1]}{i}" for i in range(number)]
    return PathError("activation", text, known, f"There are {number} copies.")


def is_met(sites: Iterable[str], run: Iterable[str]) -> bool:
    """Whether a run comes to one of several sites."""
    return not set(map(_plain, run)).isdisjoint(map(_plain, sites))


def emitted(model: Layer, sites: Iterable[str]) -> list[str]:
    """Those of a run's sites that are no layer's output: what layers emit."""
    known = set(_structure(model)[1])
    return [site for site in sites if _plain(_once(site)) not in known]


def _plain(path: str) -> str:
    """A path with `*` for copies however they are run."""
    return "/".join("*" if step.isdigit() else step for step in path.split("/"))


def _may_emit(model: Layer, path: str) -> bool:
    """Whether a path may be what a layer emits, which is known when it runs."""
    home = path.rpartition("/")[0]
    for place, layer in [("", model), *walk(model, model.places, "", every=True)]:
        plain = _plain(place)
        sigs = [sig for _, sig in layer.methods.values()] or [layer.signature]
        if plain == home and any("emit" in sig.services for sig in sigs):
            return True
    return False


# --- what a run reads and edits


class Condition(NamedTuple):
    """That a copy is one of those chosen: a number, or `at[star]` when it runs."""

    copy: Any  # an int, or the site with `*` by which a frame knows its copy
    chosen: Any
    step: Step


class Place(NamedTuple):
    """One concrete site of a target, and when an edit of the target applies there."""

    site: str
    conditions: tuple[Condition, ...]
    axes: tuple[Condition, ...]
    """Which copy this is at each step that may mean several, and which those are."""


Points = dict[str, set[int]]


def segments(target: Target) -> list[str]:
    """The path between its `*` steps, one more than there are of those."""
    ends = [0, *(len(step.site) for step in target.steps)]
    inner = [target.path[start : end - 1].strip("/") for start, end in pairwise(ends)]
    return [*inner, target.path[ends[-1] :].strip("/")]


def is_late(chosen: Any) -> bool:
    """Whether a choice of copies is known only when the model runs."""
    return not (chosen is None or isinstance(chosen, (int, slice)))


def points_of(reads: Iterable[Target], edits: Iterable[Target]) -> Points:
    """The copies that run by themselves, by the site of their repeat."""
    several = {s.site for t in reads for s in t.steps if not isinstance(s.chosen, int)}
    targets = [*reads, *edits]
    numbers: dict[str, set[int]] = {}
    for step in (s for t in targets for s in t.steps if isinstance(s.chosen, int)):
        numbers.setdefault(step.site, set()).add(step.chosen)
    several |= {star for star, found in numbers.items() if len(found) > _MOST_POINTS}
    points: Points = {}
    for target in targets:
        here = ""
        for segment, step in zip(segments(target), target.steps, strict=False):
            here = join(here, segment)
            alone = isinstance(step.chosen, int) and step.site not in several
            if alone and step.copies.mode == "scan":
                points.setdefault(here, set()).add(step.chosen)
            alone = alone and step.copies.mode != "vmap"
            here = join(here, str(step.chosen) if alone else "*")
    return points


def places(target: Target, points: Points) -> Iterator[Place]:
    """Every concrete site at which a target's layers run."""
    parts = segments(target)

    def go(prefix: str, k: int, place: Place) -> Iterator[Place]:
        here = join(prefix, parts[k])
        if k == len(target.steps):
            yield place._replace(site=here)
            return
        step = target.steps[k]
        alone = points.get(here, set())
        if step.copies.mode == "unrolled":
            alone = set(range(step.copies.number))
        for i in sorted(alone):
            if _possible(step, i):
                yield from go(join(here, str(i)), k + 1, _with(place, step, i))
        done = isinstance(step.chosen, int) and step.chosen in alone
        if step.copies.mode != "unrolled" and not done:
            star = join(here, "*")
            yield from go(star, k + 1, _with(place, step, star))

    yield from go("", 0, Place("", (), ()))


def _possible(step: Step, i: int) -> bool:
    if isinstance(step.chosen, slice):
        return i in range(step.copies.number)[step.chosen]
    return not isinstance(step.chosen, int) or step.chosen == i


def _with(place: Place, step: Step, copy: Any) -> Place:
    """A place one step on: what has to hold there, and which copy it is."""
    static = isinstance(copy, int) and not is_late(step.chosen)
    chosen = step.chosen
    if isinstance(chosen, slice):
        chosen = tuple(range(step.copies.number)[chosen])
    here = Condition(copy, chosen, step)
    more = () if static or chosen is None else (here,)
    axes = place.axes if isinstance(chosen, int) else (*place.axes, here)
    return place._replace(conditions=(*place.conditions, *more), axes=axes)
