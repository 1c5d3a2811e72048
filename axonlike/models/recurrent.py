"""PyTorch's recurrent modules: several layers, one or two directions."""

from __future__ import annotations

from typing import Any

from axonlike.combinators.basic import serial
from axonlike.combinators.over_time import bidirectional
from axonlike.io.mapping import mapping
from axonlike.layer import Layer, layer
from axonlike.layers.checks import positive
from axonlike.layers.dropout import dropout
from axonlike.layers.recurrent import gru, lstm


@layer
def stacked_lstm(
    features: int,
    num_layers: int = 1,
    *,
    bidirectional: bool = False,
    use_bias: bool = True,
    dropout_rate: float = 0.0,
    name: str | None = None,
) -> Any:
    """PyTorch's `nn.LSTM`, of sequences with the batch first: all outputs of the last.

    Args:
        features: width of each direction of each layer; positive.
        num_layers: how many layers; positive.
        bidirectional: whether each layer goes both ways.
        use_bias: whether there are biases, two in each gate as in PyTorch.
        dropout_rate: between layers; training only.

    Shapes:
        input: `(batch, time, n)`.
        output: `(batch, time, features)`, twice as wide if it goes both ways.

    Raises:
        ValueError: a size is not a positive int.

    Example:
        >>> import axonlike as al
        >>> model = al.models.stacked_lstm(8, 2, bidirectional=True)
        >>> model.output_spec(al.spec("b t 4")).shape
        (b, t, 16)

    References:
        Hochreiter and Schmidhuber, "Long Short-Term Memory", 1997.
    """
    positive("stacked_lstm", features=features, num_layers=num_layers)
    one = lstm(features, use_bias=use_bias, use_recurrent_bias=use_bias)
    return _stacked(one, num_layers, bidirectional, dropout_rate)


@layer
def stacked_gru(
    features: int,
    num_layers: int = 1,
    *,
    bidirectional: bool = False,
    use_bias: bool = True,
    dropout_rate: float = 0.0,
    name: str | None = None,
) -> Any:
    """PyTorch's `nn.GRU`, of sequences with the batch first: all outputs of the last.

    Args:
        features: width of each direction of each layer; positive.
        num_layers: how many layers; positive.
        bidirectional: whether each layer goes both ways.
        use_bias: whether there are biases, two in each gate as in PyTorch.
        dropout_rate: between layers; training only.

    Shapes:
        input: `(batch, time, n)`.
        output: `(batch, time, features)`, twice as wide if it goes both ways.

    Raises:
        ValueError: a size is not a positive int.

    Example:
        >>> import axonlike as al
        >>> model = al.models.stacked_gru(8, 2)
        >>> model.output_spec(al.spec("b t 4")).shape
        (b, t, 8)

    References:
        Cho et al., "Learning Phrase Representations using RNN Encoder-Decoder for
        Statistical Machine Translation", EMNLP 2014.
    """
    positive("stacked_gru", features=features, num_layers=num_layers)
    one = gru(features, use_bias=use_bias, use_recurrent_bias=use_bias)
    return _stacked(one, num_layers, bidirectional, dropout_rate)


def _stacked(one: Layer, num_layers: int, both: bool, dropout_rate: float) -> Layer:
    """Layers with dropout between them; those of one direction stand at `forward` too."""
    layers: dict[str, Any] = {}
    for i in range(num_layers):
        if i:
            layers[f"dropout_{i}"] = dropout(dropout_rate)
        layers[f"layer_{i}"] = bidirectional(one) if both else serial(forward=one)
    return serial(**layers)


RECURRENT = mapping(
    {"*_l{n}": "layer_{n}/forward", "*_l{n}_reverse": "layer_{n}/backward"}
)
