"""What a file holds beside what a model needs: every difference, with what may be meant."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import NamedTuple

import jax.numpy as jnp

from axonlike.errors import PathError
from axonlike.io.arrays import DTYPES, Entry
from axonlike.io.given import check_names
from axonlike.paths import join


class Wanted(NamedTuple):
    """An array that a model needs, and under which names a file holds its copies."""

    side: int
    """0 among params, 1 in state."""
    path: str
    dtype: str
    shape: tuple[int, ...]
    copies: int
    """The number of its leading axes that are copies."""
    names: list[str]

    def __str__(self) -> str:
        """What each of its copies is."""
        return f"{self.dtype}[{', '.join(map(str, self.shape[self.copies :]))}]"


class Report(NamedTuple):
    """What `load` did with every array, by the path that it has in files.

    `loaded` were read, those of `renamed` (`{ours: theirs}`) under another path. `missing`
    are not in the file and `mismatched` (`{path: why}`) are something else there, so they
    were initialized. `unused` are in the file only. `suggested` (`{theirs: ours}`) is what
    may be meant: pass it as `rename`.
    """

    loaded: list[str]
    renamed: dict[str, str]
    missing: list[str]
    mismatched: dict[str, str]
    unused: list[str]
    suggested: dict[str, str]

    def __str__(self) -> str:
        lines = [f"loaded {len(self.loaded)} arrays"]
        lines += [
            f"renamed {theirs} -> {ours}" for ours, theirs in self.renamed.items()
        ]
        lines += [f"missing {path}" for path in self.missing]
        lines += [f"mismatched {path}: {why}" for path, why in self.mismatched.items()]
        lines += [f"unused {path}" for path in self.unused]
        lines += [f"suggested: rename={self.suggested}"] if self.suggested else []
        return "\n".join(lines)


class Comparison(NamedTuple):
    """What of a file fits a model, the report, and every difference as a line."""

    fitting: dict[str, Entry]
    report: Report
    differences: list[str]

    def message(self, path: str) -> str:
        """The error that lists them all."""
        count = len(self.differences)
        rename = self.report.suggested
        hint = f"rename={rename!r}, or " if rename else ""
        return "\n".join([
            f"load: {path} does not hold what the model needs: {count} "
            f"difference{'s' if count > 1 else ''}.",
            *(f"  {line}" for line in self.differences),
            f"Pass {hint}strict=False to load what fits, or the model that was saved.",
        ])  # fmt: skip


def compared(
    wanted: list[Wanted],
    names: Mapping[str, str],
    entries: Mapping[str, Entry],
    cast: bool,
) -> Comparison:
    """Compares what is wanted with the arrays of a file.

    Args:
        wanted: by a model.
        names: `{ours: theirs}`, of every array in the file.
        entries: the arrays of the file.
        cast: whether another precision fits.
    """
    needed = {name: each for each in wanted for name in each.names}
    fitting: dict[str, Entry] = {}
    missing: list[str] = []
    wrong: dict[str, str] = {}
    for name, each in needed.items():
        if name not in names:
            missing.append(name)
            continue
        entry = entries[names[name]]
        if _fits(each, entry, cast):
            fitting[name] = entry
        else:
            wrong[name] = f"expected {each}, the file has {entry}"
    unused = [theirs for ours, theirs in names.items() if ours not in needed]
    others = {name: theirs for name, theirs in names.items() if name != theirs}
    renames = {name: theirs for name, theirs in others.items() if name in fitting}
    likely = _likely(missing, unused, needed, entries)
    suggested = _short({theirs: ours for ours, theirs in likely.items()})
    report = Report([*fitting], renames, missing, wrong, unused, suggested)
    lines = [_missing(name, needed[name], likely, unused) for name in missing]
    lines += [
        _wrong(name, why, needed, wrong, entries, names) for name, why in wrong.items()
    ]
    lines += [f"not in the model: {name} {entries[name]}" for name in unused]
    return Comparison(fitting, report, lines)


def _fits(wanted: Wanted, entry: Entry, cast: bool) -> bool:
    same = entry.dtype == wanted.dtype
    if cast and {entry.dtype, wanted.dtype} <= DTYPES.keys():
        both = DTYPES[entry.dtype], DTYPES[wanted.dtype]
        same = same or all(jnp.issubdtype(dtype, jnp.floating) for dtype in both)
    return same and entry.shape == wanted.shape[wanted.copies :]


def _likely(
    missing: list[str],
    unused: list[str],
    needed: Mapping[str, Wanted],
    entries: Mapping[str, Entry],
) -> dict[str, str]:
    """For what is missing, the array of the same shape and the most similar name."""
    left = list(unused)
    found: dict[str, str] = {}
    for name in missing:
        like = [other for other in left if _fits(needed[name], entries[other], False)]
        last = [other for other in like if _last(other) == _last(name)]
        close = get_close_matches(name, last or like, n=1, cutoff=0.5)
        if close:
            found[name] = close[0]
            left.remove(close[0])
    return found


def _last(path: str) -> str:
    return path.rpartition("/")[2]


def _short(pairs: Mapping[str, str]) -> dict[str, str]:
    """Renames of layers in place of those of all their arrays, where that says the same."""
    short: dict[str, str] = {}
    for theirs, ours in pairs.items():
        a, b = theirs.split("/"), ours.split("/")
        while len(a) > 1 and len(b) > 1 and a[-1] == b[-1]:
            a, b = a[:-1], b[:-1]
        if short.setdefault("/".join(a), "/".join(b)) != "/".join(b):
            return dict(pairs)
    return short


def _missing(
    name: str, wanted: Wanted, likely: Mapping[str, str], unused: list[str]
) -> str:
    line = f"missing: {name} {wanted}"
    if name in likely:
        return f"{line}. Is it {likely[name]!r} in the file?"
    close = get_close_matches(name, unused, n=1, cutoff=0.6)
    return f"{line}. Nearest in the file: {close[0]!r}." if close else line


def _wrong(
    name: str,
    why: str,
    needed: Mapping[str, Wanted],
    wrong: Mapping[str, str],
    entries: Mapping[str, Entry],
    names: Mapping[str, str],
) -> str:
    """One array that is something else, and another one that may be it."""
    entry, wanted = entries[names[name]], needed[name]
    what = "shape" if entry.dtype == wanted.dtype else "dtype"
    line = f"{what}: {name}: {why}"
    others = [
        other
        for other in wrong
        if other != name and _fits(wanted, entries[names[other]], False)
    ]
    close = get_close_matches(name, others, n=1, cutoff=0.0)
    return f"{line}. Is it swapped with {close[0]!r}?" if close else line


def renamed(
    entries: Mapping[str, Entry], rename: Mapping[str, str], wanted: list[Wanted]
) -> dict[str, str]:
    """`{ours: theirs}` of every array in a file, the longest rename of each applied.

    Raises:
        PathError: a rename means nothing in the file, or nothing in the model.
        ValueError: two arrays would have one name.
    """
    check_names("load: rename", [*rename, *rename.values()], "paths")
    ours = [name for each in wanted for name in each.names]
    rules = [(_pattern(theirs, here), theirs, here) for theirs, here in rename.items()]
    rules.sort(key=lambda rule: -len(rule[1]))
    used: dict[str, list[str]] = {theirs: [] for theirs in rename}
    names: dict[str, str] = {}
    for theirs in entries:
        name = theirs
        for rule, source, target in rules:
            hit = rule.fullmatch(theirs)
            if hit:
                name = _filled_in(target, hit)
                used[source].append(name)
                break
        if name in names:
            raise ValueError(
                f"load: rename: {names[name]!r} and {theirs!r} of the file would both be "
                f"{name!r}. Rename one of them."
            )
        names[name] = theirs
    for source, made in used.items():
        if not made:
            raise PathError("load: rename", source, _with_homes(entries), _ABOUT)
        if not {*made} & {*ours}:
            raise PathError("load: rename", rename[source], _with_homes(ours), _ABOUT)
    return names


def _with_homes(names: Iterable[str]) -> list[str]:
    """The layers that names are in, and the names."""
    every = list(names)
    return [*dict.fromkeys(name.rpartition("/")[0] for name in every), *every]


_ABOUT = "Write {path in the file: path in the model}."


def _pattern(theirs: str, ours: str) -> re.Pattern[str]:
    """What a rename means: the array or layer at a path, `*` being any step."""
    if theirs.count("*") != ours.count("*"):
        raise ValueError(
            f"load: rename: {theirs!r} and {ours!r} have not equally many '*'. "
            "Each stands for one step, in order."
        )
    steps = "([^/]+)".join(map(re.escape, theirs.split("*")))
    return re.compile(f"{steps}(?P<rest>/.*)?" if theirs else "(?P<rest>.*)")


def _filled_in(target: str, hit: re.Match[str]) -> str:
    """The target of a rename with what its stars stood for."""
    parts = target.split("*")
    steps = [hit.group(i + 1) for i in range(len(parts) - 1)]
    inside = "".join(a + b for a, b in zip(parts, [*steps, ""], strict=True))
    return join(inside, (hit.group("rest") or "").strip("/"))
