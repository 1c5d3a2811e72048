"""axonlike: layers as pure (init, apply) pairs of functions, composed by combinators."""

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
    bidirectional,
    cond,
    ensemble,
    frozen,
    mixed,
    remat,
    repeat,
    scan,
    switch,
    vmap,
)
from axonlike.combinators.wire import wire
from axonlike.errors import PathError, ShapeError
from axonlike.layer import Cell, Layer, layer, lift
from axonlike.spec import Spec, spec
from axonlike.tree import layers
