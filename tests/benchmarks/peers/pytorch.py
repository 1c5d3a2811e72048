"""PyTorch, eager as most run it on a CPU: a further column, outside of the ratio.

Its arrays are channels first, so these are what it is given. Its gru has one bias more
than ours, and its attention returns no weights (`need_weights=False`, its fast way).
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from rows import RATE
from torch import nn


def attend(module: Any, x: Any) -> Any:
    return module(x, x, x, need_weights=False)[0]


def first(module: Any, x: Any) -> Any:
    return module(x)[0]


def attention() -> Any:
    return nn.MultiheadAttention(256, 8, batch_first=True)


LAYERS: dict[str, Callable[[], Any]] = {
    "layer_norm": lambda: nn.LayerNorm(256, eps=1e-6),
    "rms_norm": lambda: nn.RMSNorm(256, eps=1e-6),
    "batch_norm": lambda: nn.BatchNorm2d(64, momentum=0.1),
    "group_norm": lambda: nn.GroupNorm(8, 64, eps=1e-6),
    "dense": lambda: nn.Linear(256, 1024),
    "mlp": lambda: nn.Sequential(
        nn.Linear(256, 1024), nn.GELU("tanh"), nn.Linear(1024, 256)
    ),
    "conv 3x3": lambda: nn.Conv2d(64, 64, 3, padding=1),
    "conv strided": lambda: nn.Sequential(
        nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(64, 64, 3, 2)
    ),
    "conv depthwise": lambda: nn.Conv2d(64, 64, 3, padding=1, groups=64),
    "conv transposed": lambda: nn.ConvTranspose2d(64, 32, 3, 2, 0),
    "conv1d": lambda: nn.Conv1d(128, 128, 3, padding=1),
    "max_pool 2x2": lambda: nn.MaxPool2d(2),
    "max_pool 3x3": lambda: nn.MaxPool2d(3, 2),
    "avg_pool 2x2": lambda: nn.AvgPool2d(2),
    "dropout": lambda: nn.Dropout(RATE),
    "lstm": lambda: nn.LSTM(64, 128, batch_first=True),
    "gru": lambda: nn.GRU(64, 128, batch_first=True),
    "attention": attention,
    "attention 512": attention,
    "attention 2048": attention,
    "embedding": lambda: nn.Embedding(10_000, 256),
}
CALLS = {"lstm": first, "gru": first}
CALLS |= dict.fromkeys(("attention", "attention 512", "attention 2048"), attend)
CHANNELS_FIRST = ("conv", "max_pool", "avg_pool", "group_norm", "batch_norm")


def run(row: Any, x: Any, weight: Any) -> Callable[[], Any]:
    """A call that computes the gradients; with its own weights, like shapes."""
    module = LAYERS[row.name]()
    call = CALLS.get(row.name, lambda module, x: module(x))
    here, factor = _tensor(row, x), _tensor(row, weight)
    asked = list(module.parameters())
    if row.ids is None:
        asked.append(here.requires_grad_())

    def gradients() -> Any:
        y = call(module, here)
        if row.name == "conv transposed":  # SAME: what hangs over is cut off
            y = y[..., : factor.shape[-2], : factor.shape[-1]]
        return torch.autograd.grad((y * factor).sum(), asked)

    return gradients


def _tensor(row: Any, x: Any) -> Any:
    x = np.asarray(x)
    if row.name.startswith(CHANNELS_FIRST):
        x = np.ascontiguousarray(np.moveaxis(x, -1, 1))
    return torch.tensor(x)
