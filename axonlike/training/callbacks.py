"""Callbacks of `fit`: `callbacks=[al.callbacks.early_stopping(patience=5)]`.

Each is a function that `fit` calls once at the start of a run, so one may serve in several
runs. They are called in the order in which they are given. Your own are made by `al.when`.
"""

from axonlike.training.events import Handlers
from axonlike.training.nonfinite import stop_on_nonfinite
from axonlike.training.outputs import csv, profile, tensorboard
from axonlike.training.rates import plateau
from axonlike.training.saving import checkpoint, swap_ema
from axonlike.training.stopping import early_stopping, time_limit

__all__ = [
    "Handlers",
    "checkpoint",
    "csv",
    "early_stopping",
    "plateau",
    "profile",
    "stop_on_nonfinite",
    "swap_ema",
    "tensorboard",
    "time_limit",
]
