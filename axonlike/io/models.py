"""Whole models in a folder: the architecture as JSON, and the weights beside it."""

from __future__ import annotations

import json
import math
import re
import secrets
import zlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, cast

import jax

from axonlike import values
from axonlike.io import allowed, shards
from axonlike.io.architecture import architecture
from axonlike.io.arrays import DTYPES, damaged, is_key
from axonlike.io.atomic import write_text
from axonlike.io.compare import compared
from axonlike.io.given import check_layer, path_of
from axonlike.io.notes import LONGEST, loads
from axonlike.io.rebuild import Known, rebuilt
from axonlike.io.weights import fetched, wanted_of, write
from axonlike.layer import Layer
from axonlike.params import paths
from axonlike.paths import join
from axonlike.transfer import diff
from axonlike.types import FilePath, Params, State

_FILE = "model.json"
_FORMAT = "axonlike model"
_WEIGHTS = r"weights-[0-9a-f]{8}\.safetensors"


def save_model(
    path: FilePath,
    model: Layer,
    params: Params,
    state: State | None = None,
    *,
    max_shard_bytes: int | None = None,
) -> None:
    """Writes a model with its weights to a folder.

    `model.json` is the architecture: kinds, options, names, children that were replaced,
    and functions by their import names. The arrays are in a safetensors file that it names.
    It is written last, so a folder holds one model or the other, whole.

    Args:
        path: of the folder, which is made if there is none.
        model: any layer.
        params: of the model.
        state: of the model; None: it has none.
        max_shard_bytes: as for `save`.

    Shapes:
        Any, as for `save`.

    Raises:
        ValueError: something in the model has no name to find it by, such as a lambda;
            the message has its path.
        TypeError: params or state are not dicts, tuples and lists of arrays.
        FileExistsError: the folder has a `model.json` of something else.

    Example:
        >>> import tempfile, jax, axonlike as al
        >>> model = al.dense(8) >> jax.nn.relu >> al.dense(2)
        >>> params, state = model.init(jax.random.key(0), (None, 3))
        >>> folder = tempfile.mkdtemp()
        >>> al.save_model(folder, model, params, state)
        >>> again, params, state = al.load_model(folder)
        >>> again == model
        True
    """
    folder = path_of("save_model", path)
    check_layer("save_model", model)
    if folder.is_file():
        raise FileExistsError(f"save_model: {folder} is a file. Pass a folder.")
    described = _checked(model)
    weights = f"weights-{secrets.token_hex(4)}.safetensors"
    content = {
        "format": _FORMAT,
        "version": 1,
        "written by": {"axonlike": _version(), "jax": jax.__version__},
        "weights": weights,
        "params": _skeleton(params, ""),
        "state": _skeleton(state or {}, ""),
        "model": described,
    }
    before = _weights_before(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write(folder / weights, params, state, "safetensors", max_shard_bytes)
    content["checksum"] = _checksum(content)
    write_text(folder / _FILE, json.dumps(content, indent=1))
    if before is not None:
        for file in shards.files(before):
            file.unlink(missing_ok=True)


def load_model(
    path: FilePath,
    *,
    kinds: allowed.Given = (),
    functions: allowed.Given = (),
) -> tuple[Layer, Params, State]:
    """A model with its weights out of a folder that `save_model` wrote.

    Nothing in the folder is run. It may name axonlike's layers, JAX's functions of arrays
    (`jax.nn`, `jax.numpy`, `jax.lax`, ...), and what is passed here; anything else is an
    error.

    Args:
        path: of the folder.
        kinds: factories of layers that are not axonlike's, in a list; or a dict of them
            by the name that the file has.
        functions: other functions, and classes of options; likewise.

    Shapes:
        As they were saved.

    Returns:
        `(model, params, state)`.

    Raises:
        ValueError: the folder is damaged, or names what is not known.
        FileNotFoundError: there is no such folder.

    Example:
        >>> import operator, tempfile, jax, axonlike as al
        >>> model = al.dense(2) >> operator.neg  # which is no function of JAX's
        >>> params, state = model.init(jax.random.key(0), (None, 3))
        >>> folder = tempfile.mkdtemp()
        >>> al.save_model(folder, model, params, state)
        >>> again, params, state = al.load_model(folder, functions=[operator.neg])
        >>> again == model
        True
    """
    file = path_of("load_model", path) / _FILE
    content = _content(file)
    trees = [_tree(file, content[side]) for side in ("params", "state")]
    if not all(isinstance(tree, dict) for tree in trees):
        raise damaged(file, "its params or state are no dict")
    known = Known(*(allowed.by_name("load_model", g) for g in (kinds, functions)))
    try:
        model = rebuilt(content["model"], known)
    except ValueError as error:
        raise ValueError(f"load_model: {file}: {error}") from error
    arrays = _weights(file.with_name(content["weights"]), trees)
    params, state = (_with(tree, arrays, side) for side, tree in enumerate(trees))
    return model, params, state


def _checked(model: Layer) -> Any:
    """The JSON of a model that comes back as that model."""
    described = architecture(model)
    everything = Known(_Importable(), _Importable())
    again = rebuilt(json.loads(json.dumps(described)), everything)
    if again != model:
        where = "; ".join(map(str, diff(model, again))) or "its options"
        raise ValueError(f"save_model: the file would hold another model. {where}.")
    return described


class _Importable(Mapping[str, Any]):
    """Everything by its import name: for what this process wrote itself."""

    def __getitem__(self, name: str) -> Any:
        return values.imported(name)

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0


def _content(file: Path) -> dict[str, Any]:
    """What is in `model.json`, checked for what it has to be."""
    if not file.is_file():
        raise FileNotFoundError(
            f"load_model: there is no {file}. Pass the folder that save_model wrote."
        )
    if file.stat().st_size > LONGEST:
        raise damaged(file, "it is too long")
    try:
        content: Any = loads(file.read_bytes())
        sums = content.pop("checksum"), _checksum(content)
        kind, number = content["format"], content["version"]
    except (
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        RecursionError,
    ) as error:
        raise damaged(file, "it is not readable") from error
    if sums[0] != sums[1]:
        raise damaged(file, "it is not what was written")
    if kind != _FORMAT or number != 1:
        raise ValueError(
            f"load_model: {file}: it is of another version. Update axonlike."
        )
    weights = content.get("weights")
    plain = isinstance(weights, str) and re.fullmatch(r"[\w-]+\.safetensors", weights)
    if not plain or not {"params", "state", "model"} <= content.keys():
        raise damaged(file, "something is missing in it")
    return content


def _weights(file: Path, trees: Any) -> dict[tuple[int, str], Any]:
    """The arrays of a folder, which have to be those that its model.json tells of."""
    needs = [(i, *item) for i, tree in enumerate(trees) for item in paths(tree)]
    entries = shards.read(file)
    counts = [_copies(path, leaf) for _, path, leaf in needs]
    if sum(counts) > len(entries):  # looked at first, for a count may be any number
        raise damaged(file, f"{sum(counts)} arrays should be in it, {len(entries)} are")
    wanted = list(wanted_of(needs))
    found = compared(wanted, {name: name for name in entries}, entries, cast=False)
    if found.differences:
        raise ValueError(found.message(str(file)))
    return fetched(wanted, found, {})


def _weights_before(folder: Path) -> Path | None:
    """The weights of a model that was saved here before.

    Raises:
        FileExistsError: what is there is something else.
    """
    file = folder / _FILE
    if file.exists() and f'"{_FORMAT}"'.encode() not in file.read_bytes():
        raise FileExistsError(
            f"save_model: {file} is there and no model of axonlike, so it is not replaced. "
            "Choose another folder."
        )
    with suppress(
        ValueError, OSError
    ):  # damaged: its weights cannot be known, and stay
        name = _content(file)["weights"]
        return folder / name if re.fullmatch(_WEIGHTS, name) else None
    return None


def _copies(path: str, leaf: Any) -> int:
    """How many arrays of a file are in this one."""
    stars = path.split("/").count("*")
    if stars > len(leaf.shape):
        raise ValueError(f"load_model: {path!r} has more steps '*' than axes of copies")
    return math.prod(leaf.shape[:stars])


# --- trees without their arrays


class _Leaf:
    """What stands for an array: its dtype and shape."""

    def __init__(self, dtype: str, shape: tuple[int, ...]) -> None:
        self.dtype, self.shape = dtype, shape


def _skeleton(tree: Any, at: str) -> Any:
    """A tree as JSON, with the dtype and shape of each array as text."""
    kind = cast(Any, type(tree))
    if tree is None:
        return None
    if isinstance(tree, dict) and all(map(_is_name, cast("dict[Any, Any]", tree))):
        items = cast("dict[str, Any]", tree).items()
        return {name: _skeleton(value, join(at, name)) for name, value in items}
    if kind in (tuple, list):
        items = enumerate(cast("list[Any]", tree))
        inner = [_skeleton(item, join(at, str(i))) for i, item in items]
        return {f"#{kind.__name__}": inner}
    leaf = cast(Any, tree)
    if not hasattr(leaf, "shape") or not hasattr(leaf, "dtype"):
        raise TypeError(
            f"save_model: {at or 'the tree'} is {kind.__name__}, which does not come back "
            "from a file. Use dicts whose keys are names, tuples, lists and arrays."
        )
    return f"{leaf.dtype}[{', '.join(map(str, leaf.shape))}]"


def _is_name(key: Any) -> bool:
    return isinstance(key, str) and not key.startswith("#")


def _tree(file: Path, json: Any) -> Any:
    """The tree of such JSON, leaves in place of arrays."""
    if isinstance(json, dict):
        table = cast("dict[str, Any]", json)
        for name, make in (("#tuple", tuple), ("#list", list)):
            if name in table and isinstance(table[name], list):
                return cast(Any, make(_tree(file, item) for item in table[name]))
        return {name: _tree(file, value) for name, value in table.items()}
    if json is None:
        return None
    text = json if isinstance(json, str) else ""
    hit = re.fullmatch(r"([a-z0-9_<>]+)\[(\d{1,18}(?:, \d{1,18})*)?\]", text)
    if hit is None or not (hit[1] in DTYPES or is_key(hit[1])):
        raise damaged(file, f"{json!r:.40} is no array")
    return _Leaf(hit[1], tuple(int(n) for n in (hit[2] or "").split(", ") if n))


def _with(tree: Any, arrays: Mapping[tuple[int, str], Any], side: int) -> Any:
    """A tree with the arrays in their places, its dicts in the order that they have."""
    places = {id(leaf): path for path, leaf in paths(tree)}

    def put(here: Any) -> Any:
        if isinstance(here, _Leaf):
            return arrays[side, places[id(here)]]
        return values.remade(put, here)

    return put(tree)


def _checksum(content: Any) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return f"{zlib.crc32(text.encode()):08x}"


def _version() -> str:
    try:
        return version("axonlike")
    except PackageNotFoundError:
        return "unknown"
