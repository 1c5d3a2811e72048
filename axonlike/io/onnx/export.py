"""`export_onnx`: a model as an ONNX file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

import jax

from axonlike.extras import optional
from axonlike.io.given import check_flags
from axonlike.io.inference import check_given, inference, shape_of
from axonlike.io.onnx.check import Case, check_file, compare, is_to_run
from axonlike.io.onnx.convert import Converter, is_plain
from axonlike.io.onnx.graph import Graph, Value, stored
from axonlike.io.onnx.marks import Marks
from axonlike.io.onnx.nodes import NODES
from axonlike.io.onnx.write import is_large, moved_to, write_to
from axonlike.layer import Layer
from axonlike.paths import join
from axonlike.spec import Spec, as_spec, is_spec
from axonlike.types import FilePath, Params, PyTree, State

_OLDEST, _NEWEST = 18, 25


def export_onnx(
    model: Layer,
    params: Params,
    state: State,
    spec: PyTree,
    path: FilePath,
    *,
    options: Mapping[str, Any] = MappingProxyType({}),
    opset: int = 23,
    external_data: bool | None = None,
    carry_state: bool = False,
    check: bool | None = None,
    tolerance: float | None = None,
) -> Path:
    """Writes a model's inference as an ONNX file, which runs without JAX.

    Named sizes stay open: they are the file's symbolic dimensions. Weights and statistics
    are its initializers, named by their paths; the copies of a stacked repeat stand under
    their own, `blocks/0/...`. An input that is one array is called `input`, one in a
    pytree `input/x`; outputs are called `output` alike. Numbers in bfloat16 are, but for
    weights, float32 that are rounded at every step: few runtimes take or compute them.

    With the state carried, for a loop that goes on from call to call, each of its arrays
    is an input, `state/blocks/*/attention/cache/key`, and an output, `new_state/...`.

    The file is held to ONNX's own checker and, where onnxruntime is installed, to the
    model's outputs for two choices of open sizes. Nothing stands at `path` before.

    Args:
        model: what is exported: its `predict`.
        params: as `init` or training made them.
        state: likewise.
        spec: of the input, as for `init`; `al.spec("b t", int)` names open sizes.
        path: of the file, say `model.onnx`.
        options: static options for the layers that declare them.
        opset: the version of ONNX's operators, from 18 on. Attention is one node from 23
            on, and several before.
        external_data: whether the arrays stand in a file beside, `model.onnx.data`, of
            which a runtime can map parts; None: if they are too many for one file, 2 GB.
        carry_state: whether state goes in and comes out, as the keys and values of a
            model that writes text do; or else it is part of the file, and every call
            starts from it.
        check: whether to compare with onnxruntime; None: if it is installed.
        tolerance: how far outputs may differ, as a fraction of the largest number where
            that is above 1; None: 64 steps of the output's dtype, 7.6e-6 in float32.

    Returns:
        The path of the file.

    Shapes:
        Those of the spec; one file takes all sizes that it allows.

    Raises:
        ImportError: onnx is not installed; or onnxruntime, which `check=True` needs.
        ValueError: ONNX has no counterpart of a primitive; it is named, with the path of
            the layer that it is in. Or the opset is not known, a size cannot be told from
            the inputs, or what onnxruntime computes is something else.
        TypeError: params or state are not dicts of arrays, or this is no layer.

    Example:
        >>> import pathlib, tempfile
        >>> import jax, axonlike as al
        >>> model = al.dense(8) >> jax.nn.relu >> al.dense(2)
        >>> params, state = model.init(jax.random.key(0), al.spec("b 4"))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder, "model.onnx")
        ...     path = al.export_onnx(model, params, state, al.spec("b 4"), path)
        ...     path.stat().st_size < 2000
        True

    References:
        https://onnx.ai/onnx/operators
    """
    trees = {"params": params, "state": state}
    target = check_given("export_onnx", model, trees, options, path)
    flags = {"carry_state": carry_state, "check": check, "external_data": external_data}
    check_flags("export_onnx", **{k: v for k, v in flags.items() if v is not None})
    known = optional("onnx", "export_onnx").defs.onnx_opset_version()
    _check_numbers(opset, min(known, _NEWEST), tolerance)
    runs, specs, marks = is_to_run(check), as_spec(spec), Marks(opset, NODES)
    named = _named("input", specs)
    carried = _named("state", state) if carry_state else []
    traced = inference(marks.marked(model), options, carry_state=carry_state)
    shapes = jax.tree.map(shape_of, (params, state))
    program, made = cast(Any, jax.make_jaxpr)(traced, return_shape=True)(*shapes, specs)
    g, weights = Graph(opset), _weights(params, {} if carry_state else state)
    infos, taken = _inputs(g, named)
    more, states = _inputs(g, carried)
    results = _results(g, made, carry_state=carry_state)
    values = Converter(marks).run(g, program, [*weights, *states, *taken])
    outputs = _outputs(g, results, values)
    beside = is_large(g) if external_data is None else external_data
    with moved_to(target, beside=beside) as draft:
        write_to(draft, g, [*infos, *more], outputs, beside=beside)
        check_file(draft)
        if runs:
            function = inference(model, options, carry_state=carry_state)
            names = [name for name, _ in named]
            case = Case(function, (params, state), specs, _facts(spec), dict(carried))
            compare(draft, names, case, tolerance)
    return target


def _check_numbers(opset: Any, newest: int, tolerance: Any) -> None:
    if type(opset) is not int or not _OLDEST <= opset <= newest:
        raise ValueError(
            f"export_onnx: opset must be from {_OLDEST} to {newest}, got {opset!r}."
        )
    number = isinstance(tolerance, (int, float)) and tolerance >= 0
    if tolerance is not None and not number:
        raise ValueError(
            f"export_onnx: tolerance must be a number from 0 on, got {tolerance!r}."
        )


def _facts(spec: PyTree) -> list[str]:
    """The constraints on open sizes."""
    leaves = jax.tree.leaves(spec, is_leaf=is_spec)
    return [c for leaf in leaves if isinstance(leaf, Spec) for c in leaf.constraints]


def _by_path(tree: PyTree) -> list[tuple[str, Any]]:
    """Every leaf with its path, in JAX's order."""
    leaves = cast(Any, jax.tree_util.tree_leaves_with_path(tree))
    name = partial(jax.tree_util.keystr, simple=True, separator="/")
    return [(name(steps), leaf) for steps, leaf in leaves]


def _weights(params: Params, state: State) -> list[Value]:
    """Params and state by path, told apart where one path is in both."""
    ours, others = _by_path(params), _by_path(state)
    taken = {path for path, _ in ours}
    every = ours + [(f"state/{p}" if p in taken else p, a) for p, a in others]
    return [Value("", a.shape, a.dtype, a, path) for path, a in every]


def _named(first: str, tree: PyTree) -> list[tuple[str, Any]]:
    """The arrays of an input or output by what they are called."""
    return [(join(first, path), leaf) for path, leaf in _by_path(tree)]


def _results(g: Graph, made: Any, *, carry_state: bool) -> list[tuple[str, Any]]:
    """The outputs by what they are called, which nothing else may be."""
    parts = zip(("output", "new_state"), made if carry_state else [made], strict=False)
    found = [each for first, tree in parts for each in _named(first, tree)]
    g.file.names.update((name, 1) for name, _ in found)
    return found


def _inputs(
    g: Graph, named: Sequence[tuple[str, Any]]
) -> tuple[list[Any], list[Value]]:
    """The graph's inputs, and the values that they are."""
    infos: list[Any] = []
    values: list[Value] = []
    for name, spec in named:
        if not is_plain(spec):
            raise TypeError(
                f"export_onnx: {name}: ONNX runtimes compute with no {spec.dtype}. Pass "
                "real numbers."
            )
        infos.append(g.info(g.unique(name), stored(spec.dtype), spec.shape))
        g.sizes.learn(name, spec.shape)
        values.append(g.in_precision(Value(name, spec.shape, spec.dtype)))
    return infos, values


def _outputs(
    g: Graph, named: Sequence[tuple[str, Any]], values: Sequence[Value]
) -> list[Any]:
    """The graph's outputs, each made by a node of its name."""
    infos: list[Any] = []
    for (name, spec), value in zip(named, values, strict=True):
        g.end(name, g.ref(g.whole(value, spec.shape)))
        infos.append(g.info(name, stored(spec.dtype), spec.shape))
    return infos
