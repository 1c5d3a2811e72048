"""How PyTorch stores what each kind of layer has: names, and the order of axes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple, cast

from axonlike.io.axes import SAME, Axes, axes
from axonlike.io.given import check_table

Shape = tuple[int, ...]


class Tensor(NamedTuple):
    """What one tensor of theirs is among the arrays of a layer."""

    ours: str
    axes: Axes = SAME


Convention = Mapping[str, Tensor]
"""The tensors of a layer of some kind, by their names in PyTorch's module."""

COUNT = "num_batches_tracked"
"""A number that PyTorch's batch norm keeps, and ours does not: written as zero."""
BIASES = ("bias_ih", "bias_hh")
"""The two biases of a recurrent layer, which are one of ours unless it has both."""

_BIAS = {"bias": Tensor("bias")}
_MATRIX = axes("out in -> in out")
_DENSE = {"weight": Tensor("kernel", _MATRIX), **_BIAS}
_CONV = {"weight": Tensor("kernel", axes("out in ... -> ... in out")), **_BIAS}
_NORM = {"weight": Tensor("scale"), **_BIAS}
_STATISTICS = {"running_mean": Tensor("mean"), "running_var": Tensor("var")}
_TABLE = {"weight": Tensor("embedding")}
_RECURRENT = {
    "weight_ih": Tensor("kernel", _MATRIX),
    "weight_hh": Tensor("recurrent_kernel", _MATRIX),
    "bias_ih": Tensor("bias"),
    "bias_hh": Tensor("recurrent_bias"),
}
_TRANSPOSED = axes("in out ... -> ... out in")
_UNTRANSPOSED = Axes(("in", "out", "..."), ("...", "in", "out"), flip=True)

CONVENTIONS: dict[str, Convention] = {
    "batch_norm": {**_NORM, **_STATISTICS, COUNT: Tensor("")},
    "bilinear": {"weight": Tensor("kernel", axes("out a b -> a b out")), **_BIAS},
    "class_token": {"token": Tensor("token", axes("1 tokens n -> tokens n"))},
    "conv": _CONV,
    "dense": _DENSE,
    "depthwise_conv": _CONV,
    "embedding": _TABLE,
    "fraction": _DENSE,
    "geglu": _DENSE,
    "glu": _DENSE,
    "group_norm": _NORM,
    "gru_cell": _RECURRENT,
    "instance_norm": _NORM,
    "layer_norm": _NORM,
    "learned_positions": _TABLE,
    "lstm_cell": _RECURRENT,
    "patch_embedding": _CONV,
    "prelu": {"weight": Tensor("negative_slope")},
    "projection": _DENSE,
    "rms_norm": _NORM,
    "rnn_cell": _RECURRENT,
    "swiglu": _DENSE,
}


def convention(layer: Any, changed: Mapping[str, Convention]) -> Convention:
    """The tensors of a layer; none where its kind has no convention.

    Raises:
        ValueError: PyTorch has no such layer, because of an option.
    """
    if layer is None:
        return {}
    if layer.kind in changed:
        return changed[layer.kind]
    options = layer.config
    if layer.kind == "conv_transpose":
        grouped = options["feature_group_count"] > 1
        if grouped and not options["transpose_kernel"]:
            raise _no_such(layer, "feature_group_count", "transpose_kernel=True")
        how = _TRANSPOSED if options["transpose_kernel"] else _UNTRANSPOSED
        return {"weight": Tensor("kernel", how), **_BIAS}
    if layer.kind == "gru_cell" and not options["reset_after"]:
        raise _no_such(layer, "reset_after=False", "reset_after=True")
    return CONVENTIONS.get(layer.kind, {})


def _no_such(layer: Any, option: str, instead: str) -> ValueError:
    return ValueError(
        f"mapping: {layer.headline} has no counterpart in PyTorch, because of {option}. "
        f"Build it with {instead}."
    )


def changes(given: Mapping[str, Mapping[str, Any]]) -> dict[str, Convention]:
    """Conventions as a user writes them: `{kind: {theirs: ours or (ours, axes)}}`."""
    found: dict[str, Convention] = {}
    for kind, tensors in given.items():
        check_table(f"mapping: conventions of {kind!r}", tensors, "{theirs: ours}")
        found[kind] = {
            theirs: Tensor(ours) if isinstance(ours, str) else _axed(kind, ours)
            for theirs, ours in tensors.items()
        }
    return found


def _axed(kind: str, pair: Any) -> Tensor:
    items = cast("tuple[Any, ...]", pair if isinstance(pair, tuple) else ())
    if len(items) != 2 or not all(isinstance(item, str) for item in items):
        raise TypeError(
            f"mapping: conventions of {kind!r}: expected the name of our array, or that "
            f"and its axes, got {pair!r}. Write ('kernel', 'out in -> in out')."
        )
    return Tensor(items[0], axes(items[1]))


def flat(layer: Any, name: str, shape: Shape) -> Shape:
    """The shape of an array where PyTorch has more axes or fewer.

    Several that `dense` sums over, or makes, are one there; one slope of `prelu` has one.
    """
    if layer is not None and layer.kind == "prelu" and shape == ():
        return (1,)
    if layer is None or layer.kind != "dense" or name not in ("kernel", "bias"):
        return shape
    features = layer.config["features"]
    made = 1 if isinstance(features, int) else len(features)
    rest = (math.prod(shape[: len(shape) - made]),) if name == "kernel" else ()
    return (*rest, math.prod(shape[len(shape) - made :]))
