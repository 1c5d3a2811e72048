"""Deferred expressions and edits as JSON: what to read and change is data, like a model."""

from __future__ import annotations

import json
import operator
from collections.abc import Callable
from typing import Any, cast

import jax.numpy as jnp

from axonlike import values
from axonlike.deferred import (
    SIGNS,
    UNFILLED,
    Arg,
    Deferred,
    Edit,
    Mapped,
    On,
    Op,
    Site,
    ends,
    l1,
    l2,
)
from axonlike.io import allowed
from axonlike.io.architecture import encoded
from axonlike.io.atomic import write_text
from axonlike.io.given import check_layer, check_there, path_of
from axonlike.io.notes import loads
from axonlike.io.rebuild import Known, decoded
from axonlike.layer import Layer
from axonlike.sites import resolve
from axonlike.types import FilePath

Json = Any
_FORMAT = "axonlike expressions"
_VERBS = ("set", "add", "scale", "project_out", "rotate")


def save_expressions(path: FilePath, tree: Any) -> None:
    """Writes expressions and edits to a file of JSON: the experiment, without the model.

    Functions are their import names; arrays in expressions are in the file.

    Args:
        path: of the file, which is replaced.
        tree: expressions and edits, in tuples, lists and dicts.

    Shapes:
        No activations: an expression holds none.

    Raises:
        ValueError: a function has no import name, such as a lambda; the message has the
            formula that it stands in.

    Example:
        >>> import tempfile, axonlike as al
        >>> model = al.serial(body=al.dense(8), head=al.dense(2))
        >>> objective = model["body", ..., 3].mean() - 0.1 * model["head"].l2()
        >>> file = tempfile.mkdtemp() + "/objective.json"
        >>> al.save_expressions(file, objective)
        >>> al.load_expressions(file, model) == objective
        True
    """
    content = {"format": _FORMAT, "version": 1, "tree": _json(tree)}
    file = path_of("save_expressions", path)
    write_text(file, json.dumps(content, indent=1, allow_nan=False))


def load_expressions(
    path: FilePath, model: Layer | None = None, *, functions: allowed.Given = ()
) -> Any:
    """Reads expressions and edits from a file, without running any code.

    A file may name JAX's functions of arrays, those of `jax.numpy` and `jax.nn` for
    instance; of others, only those that are given.

    Args:
        path: of the file.
        model: whose activations these are; None: `compile(..., model=)` says it.
        functions: more functions that the file may name; a list, or a dict of them by
            the name that the file has.

    Shapes:
        No activations, as for `save_expressions`.

    Raises:
        ValueError: the file holds something else, or names a function that is not known.
        PathError: the model has no such activation.

    Example:
        >>> import tempfile, jax, axonlike as al
        >>> file = tempfile.mkdtemp() + "/edits.json"
        >>> al.save_expressions(file, [al.site("body").map(jax.nn.relu)])
        >>> al.load_expressions(file)
        [relu(body)]
    """
    file = path_of("load_expressions", path)
    if model is not None:
        check_layer("load_expressions", model)
    more = allowed.by_name("load_expressions", functions)
    known = Known({}, {**_OURS, **more}, _MAKERS)
    check_there(file)
    try:
        content = loads(file.read_bytes())
        if not isinstance(content, dict) or cast(Any, content).get("format") != _FORMAT:
            raise ValueError("these are no expressions")
        table = cast("dict[str, Any]", content)
        if table.get("version") != 1:
            raise ValueError("they are of another version. Update axonlike.")
        if "tree" not in table:
            raise ValueError("its 'tree' is missing")
        tree = decoded(table["tree"], known, "tree")
    except RecursionError:
        raise ValueError(f"load_expressions: {path}: it nests too deep") from None
    except ValueError as error:
        raise ValueError(f"load_expressions: {path}: {error}") from error
    return tree if model is None else _bound(tree, model)


# --- to JSON


def _json(node: Any) -> Json:
    if isinstance(node, Site):
        filled = {} if node.filled is UNFILLED else {"fill": _json(node.filled)}
        return {"$": "site", "path": [_json(step) for step in node.path], **filled}
    if isinstance(node, Arg):
        return {"$": "arg", "name": node.name}
    if isinstance(node, On):
        return {"$": "on", "run": node.run, "expression": _json(node.expression)}
    if isinstance(node, Op):
        return _call(node)
    if isinstance(node, Edit):
        target, value = _json(node.target), _json(node.value)
        return {"$": "edit", "target": target, "verb": node.verb, "value": value}
    return _container(node)


def _call(node: Op) -> Json:
    name = values.import_name(node.function)
    if name is None:
        raise ValueError(
            f"save_expressions: {node!r}: {values.source(node.function)} has no name to "
            "find it by. Define it with def at the top of a module."
        )
    return {
        "$": "map" if isinstance(node, Mapped) else "call",
        "function": name,
        "args": [_json(item) for item in node.args],
        "keywords": {key: _json(item) for key, item in node.kwargs.items()},
    }


def _container(node: Any) -> Json:
    """What holds expressions, and what holds none: as in the file of a model."""
    if type(node) is list:
        return [_json(item) for item in cast("list[Any]", node)]
    if type(node) is tuple:
        items = cast("tuple[Any, ...]", node)
        return {"$": "tuple", "items": [_json(item) for item in items]}
    if type(node) is slice:
        return {"$": "slice", "items": [_json(end) for end in ends(node)]}
    if type(node) is dict:
        pairs = cast("dict[Any, Any]", node).items()
        return {"$": "dict", "items": [[_json(k), _json(v)] for k, v in pairs]}
    try:
        return encoded(node, _refuse)
    except ValueError as error:
        raise ValueError(f"save_expressions: {error}") from None


def _refuse(layer: Layer) -> Json:
    raise ValueError(
        f"{layer.headline} is a layer, and no value. Save models with save_model."
    )


# --- from JSON


_OURS = allowed.by_name(
    "load_expressions",
    [*SIGNS, operator.getitem, operator.neg, operator.invert, abs, l1, l2, jnp.astype],
)


def _site(f: Any) -> Site:
    path = tuple(f.list("path"))
    if not path or not all(isinstance(s, (str, int, slice, Arg)) for s in path):
        raise ValueError("expected the steps of a path")
    return Site(None, path, f.value("fill") if "fill" in f.table else UNFILLED)


def _arg(f: Any) -> Arg:
    return Arg(f.text("name"))


def _on(f: Any) -> On:
    return On(f.text("run"), _expression(f.value("expression")))


def _made(cls: type[Op]) -> Any:
    def make(f: Any) -> Op:
        function = allowed.function(f.text("function"), f.known.functions)
        args = tuple(f.list("args"))
        if cls is Mapped:
            _expression(args[0] if args else None)
        return cls(function, args, f.dict("keywords"))

    return make


def _edit(f: Any) -> Edit:
    verb, target = f.text("verb"), _expression(f.value("target"))
    if verb not in _VERBS:
        raise ValueError(f"there is no edit {verb!r:.40}")
    return getattr(target, verb)(f.value("value"))


def _expression(value: Any) -> Deferred:
    if not isinstance(value, Deferred):
        raise ValueError("expected an expression")
    return value


_MAKERS: dict[str, Callable[[Any], Any]] = {
    "site": _site,
    "arg": _arg,
    "on": _on,
    "call": _made(Op),
    "map": _made(Mapped),
    "edit": _edit,
}


def _bound(node: Any, model: Layer) -> Any:
    """The same of a model, which has to have those activations."""
    if isinstance(node, Site):
        resolve(model, node.path)
        return Site(model, node.path, _bound(node.filled, model))
    if isinstance(node, On):
        return On(node.run, _bound(node.expression, model))
    if isinstance(node, Op):
        args, kwargs = _bound((node.args, node.kwargs), model)
        return type(node)(node.function, args, kwargs)
    if isinstance(node, Edit):
        return Edit(_bound(node.target, model), node.verb, _bound(node.value, model))
    if type(node) in (list, tuple):
        return type(node)(_bound(item, model) for item in node)
    if type(node) is slice:
        return slice(*(_bound(end, model) for end in ends(node)))
    if type(node) is dict:
        pairs = cast("dict[Any, Any]", node).items()
        return {key: _bound(value, model) for key, value in pairs}
    return node
