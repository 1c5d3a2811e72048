"""How a leaf's own function is run: its params, its inputs, what it asks for."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp

from axonlike.blame import explain
from axonlike.errors import PathError, ShapeError, nearest
from axonlike.frame import Frame, check_state
from axonlike.initialize import plan_of
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
    unfit = [] if frame.run.recorder else _unfit(frame, args, kwargs, method)
    services = frame.services(sig, kwargs)
    try:
        y = function(frame.params, *args, **services)
    except KeyError as error:
        raise _missing(frame, error) from error
    except Exception as error:
        explain(
            error, [f"{n}: {has}, where init makes {made}" for n, has, made in unfit]
        )
        raise
    if unfit:
        raise ShapeError(
            frame.layer.kind,
            ", ".join(f"{name} {made}" for name, _, made in unfit),
            ", ".join(f"{name} {has}" for name, has, _ in unfit),
            "Pass the params that init made for such an input.",
        )
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
    if method in ("step", "recur"):
        frame.params = frame.run.recorder.params_below(frame)
        return
    frame.run.recorder.leaf(frame, *_init_inputs(frame.layer, args, kwargs, method))


def _init_inputs(layer: Any, args: Any, kwargs: Any, method: str) -> tuple[Any, Any]:
    """What init receives of the inputs of `apply` or of `project`."""
    if method == "project":
        start = layer.methods["initial_carry"][0]
        x = jax.eval_shape(partial(jax.tree.map, first_step), args[0])
        args = (jax.eval_shape(start, x), x)
    sig, names = read(layer.init_function, 1), layer.signature.inputs
    inputs = dict(zip(names, args, strict=False)) | dict(kwargs)
    for name in names[len(args) :]:  # by position, as they stand in apply
        if name not in inputs:
            break
        args = (*args, inputs[name])
    rest = {k: v for k, v in kwargs.items() if k not in names[: len(args)]}
    if not sig.variadic:
        args = args[: len(sig.inputs)]
    if not sig.open:
        rest = {k: v for k, v in rest.items() if k in sig.inputs[len(args) :]}
    return args, rest


def first_step(xs: Any) -> Any:
    """One step of a sequence, time first; of an empty one, zeros like it."""
    return xs[0] if xs.shape[0] != 0 else jnp.zeros(xs.shape[1:], xs.dtype)


def _unfit(
    frame: Frame, args: Any, kwargs: Any, method: str
) -> list[tuple[str, str, str]]:
    """Params of other shapes than init makes for these inputs; other names are an error.

    The names are looked at first: what is missing or ignored would not show. Shapes that
    do not fit make most layers fail by themselves, and then explain why. The shapes of
    state are its own: a cache may be longer than the input.
    """
    if _partial_step(frame.layer.methods, method):
        return []  # what it receives is not what init does; what ran before was looked at
    given = (frame.params, frame.state, args, kwargs)
    leaves, tree = cast(Any, jax.tree.flatten(given))
    known = "fits", tree, tuple(map(_shape, leaves))
    memory = frame.layer.identity.memory
    if known in memory:
        return []
    try:
        inputs = _init_inputs(frame.layer, args, kwargs, method)
        plan = plan_of(frame.layer, *inputs)
    except Exception:
        return []  # init refuses such inputs: apply says what is wrong with them
    _check_names(frame, "params", frame.params, plan.params)
    _check_names(frame, "state", frame.state, plan.state)
    pairs = [(name, frame.params[name], made) for name, made in plan.params.items()]
    found = [pair for pair in pairs if _shapes(pair[1]) != _shapes(pair[2])]
    if not found:
        memory[known] = True
    return [(name, show(ours), show(made)) for name, ours, made in found]


def _partial_step(methods: Mapping[str, Any], method: str) -> bool:
    """Whether a function of a cell receives what another one made of the input."""
    before = {"recur": ("project",), "step": ("project", "recur")}.get(method, ())
    return any(name in methods for name in before)


def _check_names(frame: Frame, what: str, ours: Any, made: Any) -> None:
    """The arrays of a leaf are those that its init makes: none missing, none ignored."""
    for name in sorted(made.keys() - ours.keys()):
        raise _missing(frame, KeyError(name))
    for name in sorted(map(str, ours.keys() - made.keys())):
        raise ValueError(
            f"{what} of {frame.layer.kind}: it has no {name!r}. "
            f"{nearest(name, sorted(made))} "
            f"Take it out, or pass the {what} that init returned."
        )


def _shapes(tree: Any) -> Any:
    return jax.tree.map(_shape, tree)


def _shape(leaf: Any) -> Any:
    return getattr(leaf, "shape", ())


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
