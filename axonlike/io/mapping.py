"""Weights of other libraries, both ways, from one declaration of names."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple, cast

import jax

from axonlike.evaluation import check_key, recorded
from axonlike.initialize import Recorder, arrays_of, shardings_of
from axonlike.io import safetensors, shards
from axonlike.io.arrays import Entry, check
from axonlike.io.carry import check_copies, check_ties, getter, items, lacks, read
from axonlike.io.conventions import Convention, changes
from axonlike.io.differences import (
    Difference,
    check_dtype,
    differences,
    missing,
    refuse,
    unnamed,
    unused,
)
from axonlike.io.given import (
    check_flags,
    check_layer,
    check_names,
    check_table,
    path_of,
)
from axonlike.io.links import AnyLink
from axonlike.io.resolve import modules_of, resolve
from axonlike.io.rules import Fuse, Rule, Split, Tied, rule_of
from axonlike.io.tensors import PICKLES, Files, tensors
from axonlike.layer import Layer
from axonlike.layers.checks import is_int
from axonlike.params import paths
from axonlike.spec import as_spec
from axonlike.transfer import filled
from axonlike.types import Key, Params, PyTree, State

_FORMAT = {"format": "pt"}
"""What transformers wants to find in the metadata of a file."""
_FILE = "model.safetensors"


class _Compared(NamedTuple):
    """Files beside a model, and all in which they differ."""

    recorder: Recorder
    entries: dict[str, Entry]
    links: list[AnyLink]
    differences: list[Difference]


class WeightMapping:
    """Which tensors of another library are which arrays of a model; made by `mapping`.

    Example:
        >>> import numpy as np, axonlike as al
        >>> names = al.mapping({"fc": "dense"})
        >>> files = {"fc.weight": np.ones((2, 3), np.float32),
        ...          "fc.bias": np.ones(2, np.float32)}
        >>> params, state = names.load(files, al.serial(al.dense(2)), al.spec("b 3"))
        >>> params["dense"]["kernel"].shape
        (3, 2)
    """

    def __init__(
        self,
        rules: Sequence[Rule],
        prefix: str,
        ignore: Sequence[str],
        changed: Mapping[str, Convention],
        older: Mapping[str, str],
        bare: bool = False,
    ) -> None:
        self._rules, self._prefix, self._bare = tuple(rules), prefix, bare
        self._ignore, self._changed = tuple(ignore), dict(changed)
        self._older = dict(older)

    def load(
        self,
        files: Files,
        model: Layer,
        spec: PyTree,
        *,
        dtype: Any = None,
        strict: bool = True,
        key: Key | None = None,
        shardings: Mapping[str, Any] | None = None,
    ) -> tuple[Params, State]:
        """Params and state for a model, out of files in which they have other names.

        Names, shapes and dtypes are compared before anything is read. What the files
        have no place for, such as a cache, is as `init` makes it. One tensor after the
        other is read, so that there is never more in memory than the result and one of
        them.

        Args:
            files: a safetensors file, the index of several, a folder that holds
                `model.safetensors` or its index, a list of files, or a dict of arrays by
                name (a `state_dict`).
            model: what the arrays are for.
            spec: of its input, as for `init`.
            dtype: of floating-point arrays: "file" for whatever the files have, or one
                to convert to; None: they have to be as `init` would make them.
            strict: whether the files must have exactly what the model has. If not, what
                they lack is initialized, and what they have besides is left out; shapes
                and dtypes must still agree.
            key: for what is initialized.
            shardings: as for `init`: each array goes to its devices when it is read.

        Returns:
            `(params, state)`, as `init` would.

        Raises:
            ValueError: files and model differ: everything that does is listed; or a file
                is damaged, or a pickle.
        """
        check_key(key, optional=True)
        check_flags("mapping", strict=strict)
        recorder, entries, links, found = self._compared(files, model, spec, dtype)
        places = shardings_of(recorder, shardings)
        refuse([each for each in found if strict or each.wrong])
        present = [link for link in links if all(n in entries for n in link.theirs)]
        check_copies(present)
        arrays = read(present, entries, dtype, places)
        check_ties(present, entries, arrays)

        def known(side: int, path: str, wanted: Any) -> Any:
            return arrays.get((side, path))

        if key is None and lacks(recorder, arrays):
            raise TypeError(
                "mapping: the files lack some of the model's arrays, which are then "
                "initialized. Pass key=."
            )
        seed = jax.random.key(0) if key is None else key
        return filled(recorder, known, seed, places)

    def check(
        self,
        files: Files,
        model: Layer,
        spec: PyTree,
        *,
        dtype: Any = None,
        strict: bool = True,
    ) -> list[str]:
        """Compares names, shapes and dtypes; no weights are read.

        Args:
            files: as for `load`.
            model: what the arrays are for.
            spec: of its input, as for `init`.
            dtype: as for `load`.
            strict: whether a difference is an error.

        Returns:
            Every difference, a line each; none where `load` would do.

        Raises:
            ValueError: files and model differ, unless `strict` is false.
        """
        check_flags("mapping", strict=strict)
        found = self._compared(files, model, spec, dtype).differences
        if strict:
            refuse(found)
        return [each.text for each in found]

    def save(
        self,
        path: str | os.PathLike[str],
        model: Layer,
        params: Params,
        state: State,
        *,
        like: Files | None = None,
        max_shard_bytes: int | None = None,
    ) -> None:
        """Writes params and state under the names that `load` reads them from.

        What was loaded and is saved again has the same bytes, tensor by tensor. Batch
        norm's count of batches, which a model here does not keep, is written as 0, and
        two biases that were added as their sum and zeros, unless `like` has them.

        Args:
            path: of a safetensors file; or of a folder, for `model.safetensors` in it.
            model: what the arrays are of.
            params: as `load` or `init` made them.
            state: likewise.
            like: files, as for `load`, from which to take what the model does not hold:
                counts, tensors that the mapping ignores; and two biases, where the model
                still has their sum. Tied tensors are written if they are there. Any
                other tensor that the model has no place for is an error.
            max_shard_bytes: most bytes in one file; more become several files and an
                index. None: one file.

        Raises:
            ValueError: an array has no place in the mapping, or the model needs one that
                is not in params or state.
        """
        target = path_of("mapping", path)
        check_layer("mapping", model)
        entries = {} if like is None else self._tensors(like)
        every = paths(params), paths(state)
        for item in [*every[0], *every[1]]:
            check(*item)
        modules = modules_of(model, *every)
        links, bare = resolve(list(self._named(entries)), modules, self._changed)
        found = [unnamed(slot, layer) for slot, layer in bare]
        found += missing(model, [path for side in every for path, _ in side])
        refuse(found, "save", "the mapping and the model")
        refuse(unused(links, self._weights(entries)), "save", "like= and the model")
        every_item = items(links, getter(*every), entries)
        target = target if target.suffix == ".safetensors" else _in_folder(target)
        if max_shard_bytes is None:
            safetensors.write(target, every_item, {}, _FORMAT)
        else:
            shards.write(target, every_item, {}, max_shard_bytes)

    def without_prefix(self) -> WeightMapping:
        """The same, writing names without the prefix: those of a model without a head."""
        options = self._prefix, self._ignore, self._changed, self._older
        return WeightMapping(self._rules, *options, bare=True)

    def _tensors(self, files: Files) -> dict[str, Entry]:
        """The tensors of files, by the names that they have today."""
        found: dict[str, Entry] = {}
        for name, entry in tensors(files).items():
            home, dot, last = name.rpartition(".")
            now = f"{home}{dot}{self._older.get(last, last)}"
            if now in found:
                raise ValueError(f"mapping: the files have {now!r} under two names.")
            found[now] = entry
        return found

    def _weights(self, found: Mapping[str, Entry]) -> dict[str, Entry]:
        """The tensors of files that are not ignored."""
        return {
            name: entry
            for name, entry in found.items()
            if not any(fnmatchcase(name, glob) for glob in self._ignore)
        }

    def _named(self, entries: Mapping[str, Entry]) -> Iterator[Rule]:
        """The rules, without the prefix where no name in the files has it."""
        start = self._prefix
        bare = self._bare
        if entries:
            bare = not any(name.startswith(start) for name in entries)
        for rule in self._rules:
            theirs = tuple(n.removeprefix(start) if bare else n for n in rule.theirs)
            yield rule._replace(theirs=theirs)

    def _compared(
        self, files: Files, model: Layer, spec: PyTree, dtype: Any
    ) -> _Compared:
        """Files beside what a model needs; no weights are read."""
        check_layer("mapping", model)
        check_dtype(dtype)
        entries = self._weights(self._tensors(files))
        recorder = recorded(model, as_spec(spec))[1]
        sides: tuple[list[Any], list[Any]] = ([], [])
        for leaf in recorder.leaves.values():
            for side, arrays in zip(sides, arrays_of(leaf), strict=True):
                side.extend(arrays)
        modules = modules_of(model, *sides)
        links, bare = resolve(list(self._named(entries)), modules, self._changed)
        found = [unnamed(slot, layer) for slot, layer in bare]
        for link in links:
            found += differences(link, entries, dtype)
        found += unused(links, entries)
        return _Compared(recorder, entries, links, sorted(found))


def mapping(
    rules: Mapping[Any, Any],
    *,
    prefix: str = "",
    ignore: Sequence[str] = (),
    conventions: Mapping[str, Mapping[str, Any]] | None = None,
    older: Mapping[str, str] | None = None,
) -> WeightMapping:
    """Names of another library's weights, and of ours: to load them, and to save them.

    Made of `{theirs: ours}`. A layer's path stands for all of its arrays: how PyTorch
    names them, and in which order it has their axes, is known for each kind of layer.
    `"fc": "head"` is `fc.weight`, transposed, for `head/kernel`, and `fc.bias` for
    `head/bias`. A `*` in their name is where the tensor's own name goes, if not behind a
    dot at the end. The path of one array stands for that array.

    `{n}` is any name, or part of one, the same on both sides: copies count from 0,
    stacked or not.

    Args:
        rules: `{name of theirs: path of ours}`; also by `split`, `fuse` and `tied`.
        prefix: what names of theirs begin with in some files, and not in others.
        ignore: globs of names of theirs that are no weights: `"*.position_ids"`.
        conventions: `{kind of layer: {their tensor: our array}}`, for other kinds, or to
            be used instead; `("kernel", "out in -> in out")` also says how axes lie.
        older: `{then: now}`, what tensors of modules were called in older files:
            `{"gamma": "weight", "beta": "bias"}`. They are saved as they are called now.

    Returns:
        What has `load(files, model, spec)`, `save(path, model, params, state)` and
        `check(files, model, spec)`.

    Shapes:
        Theirs as PyTorch has them: `(out, in)` for `dense`, `(out, in, *kernel)` for
        `conv`; ours as the layers say.

    Raises:
        TypeError: a rule is not made of names.
        ValueError: a field is on one side only, or axes have no names.

    Example:
        >>> import jax, jax.numpy as jnp, numpy as np, axonlike as al
        >>> model = al.serial(blocks=al.dense(4) ** 2, head=al.dense(2))
        >>> names = al.mapping({"layers.{n}": "blocks/{n}", "fc": "head"})
        >>> state_dict = {
        ...     "layers.0.weight": np.ones((4, 4), np.float32),
        ...     "layers.0.bias": np.zeros(4, np.float32),
        ...     "layers.1.weight": np.ones((4, 4), np.float32),
        ...     "layers.1.bias": np.zeros(4, np.float32),
        ...     "fc.weight": np.ones((2, 4), np.float32),
        ...     "fc.bias": np.zeros(2, np.float32)}
        >>> params, state = names.load(state_dict, model, al.spec("b 4"))
        >>> params["blocks"]["*"]["kernel"].shape, params["head"]["kernel"].shape
        ((2, 4, 4), (4, 2))
    """
    given: Any = rules
    if not isinstance(given, Mapping):
        raise TypeError(
            f"mapping: expected a dict, {{name of theirs: path of ours}}, got "
            f"{type(given).__name__}."
        )
    made = [rule_of(theirs, ours) for theirs, ours in rules.items()]
    globs = (ignore,) if isinstance(ignore, str) else ignore
    globs = _names("mapping: ignore", "globs", globs) if globs else ()
    check_names("mapping: prefix", [prefix], "letters")
    check_table("mapping: conventions", conventions, "{kind of layer: {theirs: ours}}")
    check_table("mapping: older", older, "{then: now}")
    then = older or {}
    check_names("mapping: older", [*then, *then.values()], "names")
    return WeightMapping(made, prefix, globs, changes(conventions or {}), then)


def split(ours: Sequence[str], *, axis: int) -> Split:
    """One of theirs that is several of ours, side by side along an axis.

    Args:
        ours: paths of layers, or of arrays, in the order of the parts.
        axis: of their tensor. A bias, which has one axis, is split along that.

    Shapes:
        Their size along the axis is the sum of ours.

    Raises:
        TypeError: these are no paths.

    Example:
        >>> import axonlike as al
        >>> parts = [f"blocks/{{n}}/attn/{part}" for part in ("query", "key", "value")]
        >>> names = al.mapping({"h.{n}.attn.qkv": al.split(parts, axis=0)})
    """
    return Split(_names("split", "paths of ours", ours), _axis("split", axis))


def fuse(
    theirs: Sequence[str], *, axis: int, sizes: Sequence[int] | None = None
) -> Fuse:
    """Several of theirs that are one of ours, side by side along an axis.

    Args:
        theirs: names of modules, or of tensors, in the order of the parts.
        axis: of their tensors. Biases, which have one axis, are joined along that.
        sizes: of the parts, or their proportions; None: all alike.

    Shapes:
        Our size along the axis is the sum of theirs.

    Raises:
        TypeError: these are no names.
        ValueError: sizes are not positive, or not as many.

    Example:
        >>> import axonlike as al
        >>> names = al.mapping({
        ...     al.fuse(["mlp.{n}.up", "mlp.{n}.gate"], axis=0): "blocks/{n}/swiglu"})
    """
    names = _names("fuse", "names of theirs", theirs)
    if sizes is None:
        return Fuse(names, _axis("fuse", axis), None)
    parts: list[Any] = list(sizes) if isinstance(sizes, (list, tuple)) else []
    if len(parts) != len(names) or not all(is_int(n) and n > 0 for n in parts):
        raise ValueError(
            f"fuse: expected {len(names)} positive sizes, one for each name, got {sizes!r}."
        )
    return Fuse(names, _axis("fuse", axis), tuple(parts))


def tied(ours: str, *, transpose: bool = False) -> Tied:
    """One of theirs that is the same as another, so that most files do without it.

    A file that has it has to have the same numbers in it; it is not written. What is tied
    in the model, by `tie`, needs no such word.

    Args:
        ours: path of the layer, or array, that has these numbers here.
        transpose: whether their tensor has its axes in reverse order.

    Shapes:
        As the other tensor's, or reversed.

    Raises:
        TypeError: this is no path.

    Example:
        >>> import axonlike as al
        >>> names = al.mapping({"wte": "embed", "lm_head": al.tied("embed")})
    """
    check_flags("tied", transpose=transpose)
    return Tied(_names("tied", "a path of ours", [ours])[0], transpose)


def _in_folder(path: Path) -> Path:
    """The file in a folder, whose path is not that of a file of another format."""
    if path.is_file() or path.suffix in (".json", ".npz", ".orbax", *PICKLES):
        raise ValueError(
            f"mapping: save: {str(path)!r} is no folder. Call it .safetensors."
        )
    return path / _FILE


def _names(verb: str, what: str, names: Any) -> tuple[str, ...]:
    several = isinstance(names, (list, tuple))
    found: tuple[Any, ...] = tuple(cast("list[Any]", names)) if several else ()
    if not found or not all(isinstance(name, str) for name in found):
        raise TypeError(f"{verb}: expected {what}, got {names!r}.")
    return found


def _axis(verb: str, axis: Any) -> int:
    if not is_int(axis):
        raise TypeError(f"{verb}: axis must be an int, got {axis!r}.")
    return axis
