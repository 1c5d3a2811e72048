"""What a file of a model computes, in either format, and what it is made from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax

from axonlike.evaluation import evaluate
from axonlike.frame import Run
from axonlike.io.arrays import check
from axonlike.io.given import check_layer, check_table, path_of
from axonlike.layer import Layer
from axonlike.params import paths
from axonlike.types import FilePath, Params, PyTree, State


def inference(
    model: Layer, options: Mapping[str, Any] | None, *, carry_state: bool
) -> Callable[[Params, State, PyTree], PyTree]:
    """`(params, state, x) -> y`; where state is carried `-> (y, new state)`."""
    run = Run(options=options or {})

    def predict(params: Params, state: State, x: PyTree) -> PyTree:
        y, after, _ = evaluate(model, params, state, x, run)
        return (y, after) if carry_state else y

    return predict


def check_given(
    verb: str, model: Any, trees: Mapping[str, Any], options: Any, path: FilePath
) -> Path:
    """The place of the file, if that, the model, its arrays and options can be meant.

    Args:
        verb: the function that they were passed to.
        model: a layer.
        trees: its params and state, by what they are called.
        options: static options for the layers.
        path: of the file.
    """
    check_layer(verb, model)
    for name, tree in trees.items():
        if not isinstance(tree, dict):
            raise TypeError(
                f"{verb}: {name}: expected a dict, got {type(tree).__name__}. Pass the "
                "params and state that init or apply returned."
            )
        for at, array in paths(tree):
            check(at, array, verb)
    check_table(f"{verb}: options", options, "{'decode': True}")
    target = path_of(verb, path)
    if target.is_dir():
        raise IsADirectoryError(f"{verb}: {target} is a folder. Name a file in it.")
    return target


def shape_of(array: Any) -> Any:
    """What stands for an array while a function is traced."""
    return jax.ShapeDtypeStruct(array.shape, array.dtype)
