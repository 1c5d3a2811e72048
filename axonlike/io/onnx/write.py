"""The file itself: a finished graph and its arrays, inside or beside."""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from axonlike.io.onnx.graph import Graph

_MOST_INSIDE = 1_900_000_000
"""Bytes of arrays in one file; a message of protobuf holds less than 2 GiB."""
_SMALL, _ALIGNED = 1024, 4096


def is_large(g: Graph) -> bool:
    """Whether the arrays are too many for one file."""
    return sum(map(_size, g.file.arrays.values())) > _MOST_INSIDE


@contextmanager
def moved_to(path: Path, *, beside: bool) -> Generator[Path]:
    """A place to write to; what is there takes the place of `path` when all went well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    room = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        draft = room / path.name
        yield draft
        if beside:
            _data(draft).replace(_data(path))
        draft.replace(path)
    finally:
        shutil.rmtree(room, ignore_errors=True)


def write_to(
    path: Path, g: Graph, inputs: list[Any], outputs: list[Any], *, beside: bool
) -> None:
    """Writes the file, and the one beside it where there is to be one."""
    used = _needed(g, {item.name for item in outputs})
    arrays = {name: array for name, array in g.file.arrays.items() if name in used}
    places = dict(_places(arrays)) if beside else {}
    if beside:
        with _data(path).open("xb") as file:
            for name, offset in places.items():
                file.seek(offset)
                file.write(_bytes(arrays[name]))
    with path.open("xb") as file:
        tensors = _tensors(g, arrays, places, _data(path).name)
        file.write(_message(g, inputs, outputs, tensors).SerializeToString())


def _message(
    g: Graph, inputs: list[Any], outputs: list[Any], tensors: Iterable[Any]
) -> Any:
    make = g.file.onnx.helper
    graph = make.make_graph(g.nodes, "model", inputs, outputs, list(tensors))
    opsets = [make.make_opsetid("", g.file.opset)]
    return make.make_model(
        graph,
        opset_imports=opsets,
        ir_version=make.find_min_ir_version_for(opsets),
        producer_name="axonlike",
    )


# --- arrays


def _tensors(
    g: Graph, arrays: Mapping[str, Any], places: Mapping[str, int], beside: str
) -> Iterator[Any]:
    """What the file says of each array: its numbers, or where they are."""
    onnx = g.file.onnx
    for name, array in arrays.items():
        if name not in places:
            yield onnx.numpy_helper.from_array(np.asarray(array), name)
            continue
        kind = g.type_of(array.dtype)
        tensor = onnx.TensorProto(name=name, data_type=kind, dims=array.shape)
        tensor.data_location = onnx.TensorProto.EXTERNAL
        where = {"location": beside, "offset": places[name], "length": _size(array)}
        for key, value in where.items():
            tensor.external_data.add(key=key, value=str(value))
        yield tensor


def _places(arrays: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    """Where each of the larger arrays begins in the file beside."""
    at = 0
    for name, array in arrays.items():
        if _size(array) >= _SMALL:
            yield name, at
            at += -(-_size(array) // _ALIGNED) * _ALIGNED


def _data(path: Path) -> Path:
    """The file of arrays beside a model's file."""
    return path.with_name(f"{path.name}.data")


def _size(array: Any) -> int:
    return math.prod(array.shape) * np.dtype(array.dtype).itemsize


def _bytes(array: Any) -> Any:
    """The numbers in a row, as a file of little-endian numbers has them."""
    host = np.ascontiguousarray(np.asarray(array))
    return host.reshape(-1).view(np.uint8).data


# --- nodes


def _needed(g: Graph, used: set[str]) -> set[str]:
    """The names that outputs depend on; nodes that nothing needs are taken out."""
    kept: list[Any] = []
    for node in reversed(g.nodes):
        if used.intersection(node.output):
            kept.append(node)
            used.update(_names_in(node))
    g.nodes[:] = kept[::-1]
    return used


def _names_in(node: Any) -> Iterator[str]:
    """What a node takes, and what the graphs in it do."""
    yield from node.input
    for attribute in node.attribute:
        for each in attribute.g.node:
            yield from _names_in(each)
