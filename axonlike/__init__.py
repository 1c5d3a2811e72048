"""Layers as pure `(init, apply)` pairs of functions, composed by combinators, on JAX.

    import axonlike as al

    model = al.dense(128) >> jax.nn.relu >> al.dense(10)
    params, state = model.init(jax.random.key(0), al.spec("b 784"))
    y, state = model.apply(params, state, x)

Where things are: `layer.py` is the pair and the decorator, `frame.py` the door through
which a combinator reaches a child, `combinators/` what composes, `layers/` the catalogue,
`initializers.py` JAX's initializers by name, `testing.py` the contract of a layer.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from axonlike import initializers
from axonlike.combinators.basic import (
    add,
    branch,
    concatenate,
    identity,
    multiply,
    on_item,
    parallel,
    pick,
    residual,
    serial,
    shared,
)
from axonlike.combinators.lifted import (
    cond,
    ensemble,
    frozen,
    mixed,
    remat,
    repeat,
    switch,
    vmap,
)
from axonlike.combinators.over_time import bidirectional, scan
from axonlike.combinators.tying import tie
from axonlike.combinators.wire import wire
from axonlike.compiled import compile
from axonlike.deferred import arg, defer, index, on, site
from axonlike.errors import PathError, ShapeError
from axonlike.gradients import value_and_grads
from axonlike.layer import Cell, Layer, layer, lift
from axonlike.layers.declare import input, parameter
from axonlike.params import (
    count,
    labels,
    merge,
    nbytes,
    partition,
    paths,
    select,
    stack,
    unstack,
)
from axonlike.selector import kind, where
from axonlike.spec import Spec, spec
from axonlike.tree import layers

if TYPE_CHECKING:  # these are imported on first use: see below
    from axonlike import models, testing
    from axonlike.adapters import adapter, lora, merge_lora
    from axonlike.inspect.diagram import diagram
    from axonlike.inspect.explain import explain
    from axonlike.inspect.ledger import ledger, max_compiles
    from axonlike.inspect.nonfinite import locate_nonfinite, nonfinite_guard
    from axonlike.inspect.summary import summary
    from axonlike.io.expressions import load_expressions, save_expressions
    from axonlike.io.mapping import fuse, mapping, split, tied
    from axonlike.io.models import load_model, save_model
    from axonlike.io.onnx.export import export_onnx
    from axonlike.io.stablehlo import export
    from axonlike.io.weights import load, save
    from axonlike.layers.alpha_dropout import alpha_dropout, feature_alpha_dropout
    from axonlike.layers.attention import attention, projection
    from axonlike.layers.batch_norm import batch_norm
    from axonlike.layers.cells import lstm_cell, rnn_cell
    from axonlike.layers.conv import conv
    from axonlike.layers.conv_local import conv_local
    from axonlike.layers.conv_lstm import conv_lstm, conv_lstm_cell
    from axonlike.layers.conv_transpose import conv_transpose
    from axonlike.layers.depthwise import depthwise_conv, separable_conv
    from axonlike.layers.dropout import drop_path, dropout, spatial_dropout
    from axonlike.layers.einsum import bilinear, einsum
    from axonlike.layers.embed import embedding
    from axonlike.layers.gated import geglu, glu, maxout, swiglu
    from axonlike.layers.group_norm import (
        filter_response_norm,
        group_norm,
        instance_norm,
    )
    from axonlike.layers.gru_cells import gru_cell, mgu_cell
    from axonlike.layers.image import pad, pixel_shuffle, pixel_unshuffle, resize
    from axonlike.layers.kv_cache import kv_cache
    from axonlike.layers.linear import dense, low_rank
    from axonlike.layers.noise import gaussian_dropout, gaussian_noise
    from axonlike.layers.norm import layer_norm, rms_norm
    from axonlike.layers.pool import avg_pool, blur_pool, lp_pool, max_pool, min_pool
    from axonlike.layers.pool_adaptive import (
        adaptive_avg_pool,
        adaptive_lp_pool,
        adaptive_max_pool,
    )
    from axonlike.layers.pool_global import (
        global_avg_pool,
        global_lp_pool,
        global_max_pool,
    )
    from axonlike.layers.positions import (
        learned_positions,
        rotary,
        sinusoidal_positions,
    )
    from axonlike.layers.recurrent import gru, lstm, mgu, rnn
    from axonlike.layers.scale import bias, prelu, scale
    from axonlike.layers.shape import flatten, reshape, transpose
    from axonlike.layers.vision import class_token, patch_embedding, squeeze_excite
    from axonlike.layers.weight_norm import spectral_norm, weight_norm
    from axonlike.policy import Cast, casts, precision
    from axonlike.stretch import between
    from axonlike.surgery import (
        find,
        freeze,
        insert_after,
        remove,
        replace,
        submodel,
        trainable,
    )
    from axonlike.training import callbacks, metrics
    from axonlike.training.checkpoint import load_checkpoint, save_checkpoint
    from axonlike.training.data import batches
    from axonlike.training.evaluation import evaluate, predict_batches
    from axonlike.training.events import when
    from axonlike.training.fit import fit
    from axonlike.training.gradients import grad_fn
    from axonlike.training.loss import loss_fn
    from axonlike.training.rates import learning_rate, with_learning_rate
    from axonlike.training.state import TrainState
    from axonlike.training.step import train_step
    from axonlike.transfer import diff, migrate

__all__ = [
    # the pair
    "Cell",
    "Layer",
    "layer",
    "lift",
    # specs
    "Spec",
    "input",
    "spec",
    # combinators
    "add",
    "branch",
    "concatenate",
    "identity",
    "multiply",
    "on_item",
    "parallel",
    "pick",
    "residual",
    "serial",
    "shared",
    "wire",
    # combinators that run a child inside a transformed function
    "adapter",
    "bidirectional",
    "cond",
    "ensemble",
    "frozen",
    "mixed",
    "remat",
    "repeat",
    "scan",
    "switch",
    "tie",
    "vmap",
    # layers
    "adaptive_avg_pool",
    "adaptive_lp_pool",
    "adaptive_max_pool",
    "alpha_dropout",
    "attention",
    "avg_pool",
    "batch_norm",
    "bias",
    "bilinear",
    "blur_pool",
    "class_token",
    "conv",
    "conv_local",
    "conv_lstm",
    "conv_lstm_cell",
    "conv_transpose",
    "dense",
    "depthwise_conv",
    "drop_path",
    "dropout",
    "einsum",
    "embedding",
    "feature_alpha_dropout",
    "filter_response_norm",
    "flatten",
    "gaussian_dropout",
    "gaussian_noise",
    "geglu",
    "global_avg_pool",
    "global_lp_pool",
    "global_max_pool",
    "glu",
    "group_norm",
    "gru",
    "gru_cell",
    "initializers",
    "instance_norm",
    "kv_cache",
    "layer_norm",
    "learned_positions",
    "low_rank",
    "lp_pool",
    "lstm",
    "lstm_cell",
    "max_pool",
    "maxout",
    "mgu",
    "mgu_cell",
    "min_pool",
    "pad",
    "parameter",
    "patch_embedding",
    "pixel_shuffle",
    "pixel_unshuffle",
    "prelu",
    "projection",
    "reshape",
    "resize",
    "rms_norm",
    "rnn",
    "rnn_cell",
    "rotary",
    "scale",
    "separable_conv",
    "sinusoidal_positions",
    "spatial_dropout",
    "spectral_norm",
    "squeeze_excite",
    "swiglu",
    "transpose",
    "weight_norm",
    # the layers inside a model, and the contract of one
    "layers",
    "testing",
    # params by path
    "count",
    "kind",
    "labels",
    "merge",
    "nbytes",
    "partition",
    "paths",
    "select",
    "stack",
    "unstack",
    "where",
    # new models out of old ones, with their weights
    "Cast",
    "casts",
    "diff",
    "find",
    "freeze",
    "insert_after",
    "lora",
    "merge_lora",
    "migrate",
    "precision",
    "remove",
    "replace",
    "submodel",
    "trainable",
    # activations: read, edited, differentiated
    "arg",
    "between",
    "compile",
    "defer",
    "index",
    "on",
    "site",
    "value_and_grads",
    # training
    "TrainState",
    "batches",
    "callbacks",
    "evaluate",
    "fit",
    "grad_fn",
    "learning_rate",
    "load_checkpoint",
    "loss_fn",
    "metrics",
    "predict_batches",
    "save_checkpoint",
    "train_step",
    "when",
    "with_learning_rate",
    # models looked at, and what went wrong
    "diagram",
    "explain",
    "ledger",
    "locate_nonfinite",
    "max_compiles",
    "nonfinite_guard",
    "summary",
    # files
    "export",
    "export_onnx",
    "fuse",
    "load",
    "load_expressions",
    "load_model",
    "mapping",
    "save",
    "save_expressions",
    "save_model",
    "split",
    "tied",
    # models to start from
    "models",
    # errors
    "PathError",
    "ShapeError",
]

# The catalogue, and what works on models that there are, is imported when first asked
# for. (`layers` is a function: the folder of that name has been imported before it.)
_ON_FIRST_USE = {
    "adapters": ("adapter", "lora", "merge_lora"),
    "inspect.explain": ("explain",),
    "inspect.diagram": ("diagram",),
    "inspect.ledger": ("ledger", "max_compiles"),
    "inspect.nonfinite": ("locate_nonfinite", "nonfinite_guard"),
    "inspect.summary": ("summary",),
    "io.expressions": ("load_expressions", "save_expressions"),
    "io.mapping": ("fuse", "mapping", "split", "tied"),
    "io.models": ("load_model", "save_model"),
    "io.onnx.export": ("export_onnx",),
    "io.stablehlo": ("export",),
    "io.weights": ("load", "save"),
    "layers.alpha_dropout": ("alpha_dropout", "feature_alpha_dropout"),
    "layers.attention": ("attention", "projection"),
    "layers.batch_norm": ("batch_norm",),
    "layers.cells": ("lstm_cell", "rnn_cell"),
    "layers.conv": ("conv",),
    "layers.conv_local": ("conv_local",),
    "layers.conv_lstm": ("conv_lstm", "conv_lstm_cell"),
    "layers.conv_transpose": ("conv_transpose",),
    "layers.depthwise": ("depthwise_conv", "separable_conv"),
    "layers.dropout": ("drop_path", "dropout", "spatial_dropout"),
    "layers.einsum": ("bilinear", "einsum"),
    "layers.embed": ("embedding",),
    "layers.gated": ("geglu", "glu", "maxout", "swiglu"),
    "layers.group_norm": ("filter_response_norm", "group_norm", "instance_norm"),
    "layers.gru_cells": ("gru_cell", "mgu_cell"),
    "layers.image": ("pad", "pixel_shuffle", "pixel_unshuffle", "resize"),
    "layers.kv_cache": ("kv_cache",),
    "layers.linear": ("dense", "low_rank"),
    "layers.noise": ("gaussian_dropout", "gaussian_noise"),
    "layers.norm": ("layer_norm", "rms_norm"),
    "layers.pool": ("avg_pool", "blur_pool", "lp_pool", "max_pool", "min_pool"),
    "layers.pool_adaptive": (
        "adaptive_avg_pool",
        "adaptive_lp_pool",
        "adaptive_max_pool",
    ),
    "layers.pool_global": ("global_avg_pool", "global_lp_pool", "global_max_pool"),
    "layers.positions": ("learned_positions", "rotary", "sinusoidal_positions"),
    "layers.recurrent": ("gru", "lstm", "mgu", "rnn"),
    "layers.scale": ("bias", "prelu", "scale"),
    "layers.shape": ("flatten", "reshape", "transpose"),
    "layers.vision": ("class_token", "patch_embedding", "squeeze_excite"),
    "layers.weight_norm": ("spectral_norm", "weight_norm"),
    "models": (),
    "policy": ("Cast", "casts", "precision"),
    "stretch": ("between",),
    "surgery": (
        "find",
        "freeze",
        "insert_after",
        "remove",
        "replace",
        "submodel",
        "trainable",
    ),
    "testing": (),
    "training.callbacks": (),
    "training.checkpoint": ("load_checkpoint", "save_checkpoint"),
    "training.data": ("batches",),
    "training.evaluation": ("evaluate", "predict_batches"),
    "training.events": ("when",),
    "training.fit": ("fit",),
    "training.gradients": ("grad_fn",),
    "training.loss": ("loss_fn",),
    "training.metrics": (),
    "training.rates": ("learning_rate", "with_learning_rate"),
    "training.state": ("TrainState",),
    "training.step": ("train_step",),
    "transfer": ("diff", "migrate"),
}


def __getattr__(name: str) -> Any:
    for module, names in _ON_FIRST_USE.items():
        if name in (names or (module.rpartition(".")[2],)):
            found = import_module(f"axonlike.{module}")
            globals()[name] = getattr(found, name) if names else found
            return globals()[name]
    raise AttributeError(f"module 'axonlike' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
