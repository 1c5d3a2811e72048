"""How a leaf's own function is run: its params, its inputs, what it asks for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import jax

from axonlike.errors import PathError
from axonlike.frame import Frame, check_state
from axonlike.signature import read
from axonlike.spec import show
from axonlike.types import PyTree


def run_leaf(
    frame: Frame, args: tuple[Any, ...], kwargs: Mapping[str, Any], method: str
) -> PyTree:
    """Runs a leaf's `apply`, or another function of a cell, on its params."""
    function, sig = frame.layer.methods[method]
    args, kwargs = sig.unpack(args, kwargs, frame.layer.kind)
    if method == "initial_carry":
        return function(*args)
    if frame.run.recorder is not None:
        _placeholders(frame, args, kwargs, method)
    services = frame.services(sig, kwargs)
    try:
        y = function(frame.params, *args, **services)
    except KeyError as error:
        raise _missing(frame, error) from error
    if "state" not in sig.services:
        return y
    if not (isinstance(y, tuple) and len(cast("tuple[Any, ...]", y)) == 2):
        raise TypeError(
            f"{frame.layer.kind}: apply takes state, so it must return (y, new_state), "
            f"got {show(y)}."
        )
    y, after = cast("tuple[Any, Any]", y)
    frame.state = check_state(frame.state, after, frame.layer.kind)
    return y


def run_function(
    frame: Frame, args: tuple[Any, ...], kwargs: Mapping[str, Any], method: str
) -> PyTree:
    """Runs a lifted function: inputs only."""
    function, sig = frame.layer.methods["apply"]
    args, kwargs = sig.unpack(args, kwargs, frame.layer.kind)
    return function(*args, **kwargs)


def _placeholders(frame: Frame, args: Any, kwargs: Any, method: str) -> None:
    """In the abstract pass: what the leaf's init would make for these inputs."""
    if method == "project":
        x = jax.tree.map(_first, args[0])
        carry = frame.layer.methods["initial_carry"][0](x)
        args = (carry, x)
    if method == "step":
        frame.params = frame.run.recorder.params_below(frame)
        return
    sig = read(frame.layer.init_function, 1)
    if not sig.variadic:
        args = args[: len(sig.inputs)]
    if not sig.open:
        kwargs = {k: v for k, v in kwargs.items() if k in sig.inputs}
    frame.run.recorder.leaf(frame, args, kwargs)


def _first(xs: Any) -> Any:
    return xs[0]


def _missing(frame: Frame, error: KeyError) -> Exception:
    """The error of a leaf whose arrays are not there; any other as it is."""
    name = error.args[0] if error.args else None
    in_params, in_state = name in frame.params, name in frame.state
    if not isinstance(name, str) or (in_params and in_state):
        return error
    if in_params or in_state:
        here, there = ("params", "state") if in_state else ("state", "params")
        hint = f"It is among the {there}: write apply(params, state, x)."
        tree = frame.params if in_state else frame.state
        return PathError(f"{here} of {frame.layer.kind}", name, tree, hint)
    where, tree = "params", frame.params
    if "state" in frame.layer.signature.services:
        empty = bool(frame.params) and not frame.state
        where, tree = ("state", {}) if empty else ("params or state", tree)
        tree = {**tree, **frame.state}
    hint = "Pass the params and state that init returned."
    return PathError(f"{where} of {frame.layer.kind}", name, tree, hint)
