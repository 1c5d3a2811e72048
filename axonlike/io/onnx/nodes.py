"""What layers become that ONNX has a node for.

Normalization, pooling, recurrence, attention; `marks.py` finds them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from axonlike.io.onnx.graph import Graph, Value
from axonlike.io.onnx.marks import Made, Node, Weights
from axonlike.layers.attention import attention
from axonlike.layers.batch_norm import batch_norm
from axonlike.layers.norm import layer_norm
from axonlike.layers.pool import avg_pool, max_pool
from axonlike.layers.pooled import Window, windows_of
from axonlike.layers.positions import rotary
from axonlike.layers.recurrent import gru, lstm, rnn
from axonlike.spec import is_unknown


def _is_single(inputs: Sequence[Any], low: int, high: int = 99) -> bool:
    """Whether the input is one array of float32, of so many axes."""
    x, *others = inputs
    return not others and low <= len(x.shape) <= high and x.dtype == jnp.float32


# --- normalization


def _fits_batch_norm(config: Any, inputs: Sequence[Any]) -> bool:
    return (
        _is_single(inputs, 2)
        and config["axis"] in (-1, len(inputs[0].shape) - 1)
        and config["use_running_average"] is not False
    )


def _batch_norm(g: Graph, made: Made) -> list[str]:
    (x,), weights = made.inputs, made.weights
    size, last = x.shape[-1], len(x.shape) - 1
    scale = weights.get("scale", np.ones(size, np.float32))
    bias = weights.get("bias", np.zeros(size, np.float32))
    first = g.transpose(x, (0, last, *range(1, last)))
    y = g.node(
        "BatchNormalization", first, scale, bias, weights["mean"], weights["var"],
        epsilon=float(made.config["epsilon"]),
    )  # fmt: skip
    return [g.transpose(y, (0, *range(2, last + 1), 1))]


def _fits_layer_norm(config: Any, inputs: Sequence[Any]) -> bool:
    axes = config["reduction_axes"], config["feature_axes"]
    return _is_single(inputs, 1) and axes == (-1, -1) and bool(config["use_scale"])


def _layer_norm(g: Graph, made: Made) -> list[str]:
    weights, epsilon = made.weights, float(made.config["epsilon"])
    given = made.inputs[0], weights["scale"], weights.get("bias")
    given = given if given[2] is not None else given[:2]
    return [g.node("LayerNormalization", *given, axis=-1, epsilon=epsilon)]


# --- pooling


def _windows(config: Any, x: Any, kind: str) -> list[Window]:
    strides = config["window"] if config["strides"] is None else config["strides"]
    return windows_of(
        kind,
        jax.ShapeDtypeStruct(x.shape, x.dtype),
        config["window"],
        strides,
        config["padding"],
        config["window_dilation"],
        ceil_mode=config["ceil_mode"],
    )


def _fits_pool(config: Any, inputs: Sequence[Any], most: int = 99) -> bool:
    """Up to three spatial axes; padding that is known, and less than a window."""
    if not _is_single(inputs, 3, 5):
        return False
    windows = _windows(config, inputs[0], "pool")
    pads = [n for one in windows for n in one.pads]
    return not any(map(is_unknown, pads)) and all(
        0 <= n < min(one.size, most) for one in windows for n in one.pads
    )


def _fits_avg_pool(config: Any, inputs: Sequence[Any]) -> bool:
    dilated = config["window_dilation"] not in (1, (1,), (1, 1), (1, 1, 1))
    return not dilated and _fits_pool(config, inputs, 1)


def _pool(op: str) -> Callable[[Graph, Made], list[str]]:
    def build(g: Graph, made: Made) -> list[str]:
        (x,) = made.inputs
        last, windows = len(x.shape) - 1, _windows(made.config, x, "pool")
        options: dict[str, Any] = {
            "kernel_shape": [one.size for one in windows],
            "strides": [one.stride for one in windows],
        }
        if op == "MaxPool":
            pads = [one.pads for one in windows]
            options["pads"] = [low for low, _ in pads] + [high for _, high in pads]
            options["dilations"] = [one.dilation for one in windows]
        first = g.transpose(x, (0, last, *range(1, last)))
        y = g.node(op, first, **options)
        return [g.transpose(y, (0, *range(2, last + 1), 1))]

    return build


# --- recurrence

_GATES = {"LSTM": (0, 3, 1, 2), "GRU": (1, 0, 2), "RNN": (0,)}
"""Where each of ONNX's gates is among ours."""


def _fits_recurrent(config: Any, inputs: Sequence[Any]) -> bool:
    gate = config.get("gate_fn", jax.nn.sigmoid)
    plain = gate is jax.nn.sigmoid and config["activation_fn"] is jnp.tanh
    unlike = any(config.get(k) for k in ("peephole", "residual", "dot_general"))
    return _is_single(inputs, 3, 3) and plain and not unlike


def _recurrent(op: str) -> Callable[[Graph, Made], list[str]]:
    gates = _GATES[op]

    def build(g: Graph, made: Made) -> list[str]:
        (x,), weights, config = made.inputs, made.weights, made.config
        features = config["features"]
        given = [g.transpose(x, (1, 0, 2))]
        given += [
            _by_gate(g, weights[k], gates) for k in ("kernel", "recurrent_kernel")
        ]
        if {"bias", "recurrent_bias"} & weights.keys():
            given.append(_biases(g, weights, gates, features))
        more = {}
        if op == "GRU":
            more = {"linear_before_reset": int(config["reset_after"])}
        direction = "reverse" if config["reverse"] else "forward"
        carries = 2 if op == "LSTM" else 1
        every, *last = g.nodes_of(
            op, 1 + carries, *given,
            hidden_size=features, direction=direction, **more,
        )  # fmt: skip
        last = [g.node("Squeeze", name, np.array([0])) for name in last]
        y = last[0]
        if config["return_sequence"]:
            y = g.transpose(g.node("Squeeze", every, np.array([1])), (1, 0, 2))
        return [y, *last] if config["return_carry"] else [y]

    return build


def _by_gate(g: Graph, kernel: Value, gates: Sequence[int]) -> str:
    """A kernel's gates one below the other, in ONNX's order, and an axis of 1."""
    rows = g.transpose(kernel, (1, 0))
    return g.node("Unsqueeze", _ordered(g, rows, gates), np.array([0]))


def _ordered(g: Graph, rows: Any, gates: Sequence[int]) -> str:
    if len(gates) == 1:
        return g.ref(rows)
    parts = g.nodes_of("Split", len(gates), rows, axis=0, num_outputs=len(gates))
    return g.node("Concat", *(parts[i] for i in gates), axis=0)


def _biases(g: Graph, weights: Weights, gates: Sequence[int], features: int) -> str:
    """The bias of the input and that of the carry; zeros for gates that have none."""
    parts: list[Any] = []
    for name in ("bias", "recurrent_bias"):
        own = weights.get(name)
        count = 0 if own is None else own.shape[-1] // features
        if count < len(gates):
            parts.append(np.zeros((len(gates) - count) * features, np.float32))
        if own is not None:
            parts.append(_ordered(g, own, gates) if count == len(gates) else own)
    return g.node("Unsqueeze", g.node("Concat", *parts, axis=0), np.array([0]))


# --- attention

_ABSENT = "sliding_window", "alibi", "dot_general", "implementation"


def _fits_attention(config: Any, inputs: Sequence[Any]) -> bool:
    """Plain attention of a sequence to itself; to another, if it is not causal."""
    floats = all(x.dtype == jnp.float32 and len(x.shape) == 3 for x in inputs)
    many = 1 if config["causal"] else 2
    turned = config["rotary"]
    known = turned is None or getattr(turned, "factory", None) is rotary
    known = known and not any(map(config.get, _ABSENT))
    return floats and known and len(inputs) <= many


def _attention(g: Graph, made: Made) -> list[str]:
    config, weights = made.config, made.weights
    query, source = made.inputs[0], made.inputs[-1]
    options: dict[str, Any] = {
        "q_num_heads": config["num_heads"],
        "kv_num_heads": config["num_kv_heads"] or config["num_heads"],
        "is_causal": int(config["causal"]),
    }
    if config["scale"] is not None:
        options["scale"] = float(config["scale"])
    if config["soft_cap"] is not None:
        options["softcap"] = float(config["soft_cap"])
    q, k, v = (
        _affine(g, x, weights[name])
        for x, name in ((query, "query"), (source, "key"), (source, "value"))
    )
    q = _placed(g, made, q, "query", options["q_num_heads"])
    k = _placed(g, made, k, "key", options["kv_num_heads"])
    return [_affine(g, g.node("Attention", q, k, v, **options), weights["out"])]


def _placed(g: Graph, made: Made, name: str, kind: str, heads: int) -> str:
    """Queries or keys as the layer's own children change them, head by head."""
    steps = [f"{kind}_norm"] if made.config["normalize_qk"] else []
    steps += ["rotary"] if made.config["rotary"] is not None else []
    if not steps:
        return name
    x, width = made.inputs[0 if kind == "query" else -1], made.weights[kind]["kernel"]
    flat = *x.shape[:2], width.shape[-1]
    split = *x.shape[:2], heads, width.shape[-1] // heads
    value = Value(g.reshape(name, flat, split), split, x.dtype)
    for step in steps:
        count = [_positions(g, x.shape[1])] if step == "rotary" else []
        value = made.part(step, value, *count)
    return g.reshape(value, split, flat)


def _positions(g: Graph, size: Any) -> Value:
    name = g.cast(g.counted(size), np.int64, np.int32)
    return Value(name, (size,), np.dtype(np.int32))


def _affine(g: Graph, x: Any, weights: Weights) -> str:
    y = g.node("MatMul", x, weights["kernel"])
    return g.node("Add", y, weights["bias"]) if "bias" in weights else y


NODES: dict[Any, Node] = {
    attention: Node(_fits_attention, _attention, 23),
    avg_pool: Node(_fits_avg_pool, _pool("AveragePool")),
    batch_norm: Node(_fits_batch_norm, _batch_norm),
    gru: Node(_fits_recurrent, _recurrent("GRU")),
    layer_norm: Node(_fits_layer_norm, _layer_norm),
    lstm: Node(_fits_recurrent, _recurrent("LSTM")),
    max_pool: Node(_fits_pool, _pool("MaxPool")),
    rnn: Node(_fits_recurrent, _recurrent("RNN")),
}
