"""The graph that an ONNX file holds, while it is built."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from axonlike.extras import optional
from axonlike.io.onnx.sizes import Sizes
from axonlike.paths import join
from axonlike.spec import is_unknown


class Value(NamedTuple):
    """One array of the graph.

    `shape` is what is there: 1 along an axis over which the array has yet to be repeated.
    What is known has its `array`; it comes into the file, as an initializer, when a node
    takes it. `path` is that of a param.
    """

    name: str
    shape: tuple[Any, ...]
    dtype: Any
    array: Any = None
    path: str = ""

    @property
    def known(self) -> bool:
        """Whether it is a constant of the program, and no param."""
        return self.array is not None and not self.path


Input = Value | str | np.ndarray[Any, Any] | np.generic | None


class File(NamedTuple):
    """What all graphs of one file share."""

    onnx: ModuleType
    opset: int
    names: dict[str, int]
    arrays: dict[str, Any]
    constants: dict[Any, str]
    turned: dict[str, tuple[str, tuple[int, ...]]]
    """What was transposed, and how, by the name of the result."""
    led: dict[str, str]
    """What was given axes of 1 in front, by the name of the result."""


class Graph:
    """Nodes in order; a graph inside of a node sees the names of those around it."""

    def __init__(self, opset: int, root: Graph | None = None) -> None:
        self.nodes: list[Any] = []
        self.root: Graph = self if root is None else root
        self.scope = ""
        if root is None:
            onnx = optional("onnx", "export_onnx")
            self.file = File(onnx, opset, {}, {}, {}, {}, {})
            self.sizes = Sizes(self)
        else:
            self.file, self.sizes, self.scope = root.file, root.sizes, root.scope

    # --- nodes

    def node(self, op: str, *inputs: Input, **attributes: Any) -> str:
        """Adds a node with one output, and returns its name."""
        return self.nodes_of(op, 1, *inputs, **attributes)[0]

    def nodes_of(
        self, op: str, outputs: int, *inputs: Input, **attributes: Any
    ) -> list[str]:
        """Adds a node, and returns the names of its outputs."""
        name = self.unique(join(self.scope, op))
        names = [name, *(self.unique(f"{name}:{i}") for i in range(1, outputs))]
        refs = [self.ref(x) for x in inputs]
        make = self.file.onnx.helper.make_node
        self.nodes.append(make(op, refs, names, name, **attributes))
        return names

    def end(self, name: str, x: str) -> None:
        """Gives an array the name of an output."""
        make = self.file.onnx.helper.make_node
        self.nodes.append(make("Identity", [x], [name], name))

    def unique(self, name: str) -> str:
        """A name that nothing else has."""
        names = self.file.names
        count = names.get(name, 0)
        names[name] = count + 1
        return self.unique(f"{name}_{count}") if count else name

    def ref(self, x: Input) -> str:
        """The name of an input; what is known becomes an initializer."""
        if x is None or isinstance(x, str):
            return x or ""
        if not isinstance(x, Value):
            return self.constant(x)
        if x.name or x.array is None:
            return x.name
        if not x.path:
            return self.constant(np.asarray(x.array).astype(stored(x.dtype)))
        name = self.param(x.path, x.array)
        return self.cast(name, x.dtype, jnp.float32) if _is_half(x.dtype) else name

    def param(self, path: str, array: Any) -> str:
        """The initializer of an array with a name of its own."""
        key = ("param", path)
        if key not in self.file.constants:
            self.file.constants[key] = name = self.unique(path)
            self.file.arrays[name] = array
        return self.file.constants[key]

    def constant(self, array: Any) -> str:
        """An initializer for some numbers; equal ones are one."""
        array = np.asarray(array)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self.file.constants:
            self.file.constants[key] = name = self.unique("constant")
            self.file.arrays[name] = array
        return self.file.constants[key]

    # --- dtypes

    def type_of(self, dtype: Any) -> int:
        """ONNX's number for a dtype."""
        return self.file.onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))

    def cast(self, x: Input, before: Any, after: Any) -> str:
        """The array in another dtype."""
        if np.dtype(before) == np.dtype(after):
            return self.ref(x)
        return self.node("Cast", x, to=self.type_of(after))

    def in_precision(self, x: Value) -> Value:
        """The numbers rounded to those of bfloat16, where that is their dtype."""
        if not _is_half(x.dtype) or x.known:
            return x
        half = self.cast(x, jnp.float32, jnp.bfloat16)
        return Value(self.cast(half, jnp.bfloat16, jnp.float32), x.shape, x.dtype)

    # --- shapes

    def ints(self, sizes: Sequence[Any]) -> str:
        """Numbers as an array of int64; sizes that are not known are taken from inputs."""
        if not any(map(is_unknown, sizes)):
            return self.constant(np.array(sizes, np.int64))
        parts = [self._vector(n) for n in sizes]
        return self.node("Concat", *parts, axis=0) if len(parts) > 1 else parts[0]

    def _vector(self, size: Any) -> str:
        if is_unknown(size):
            return self.sizes.vector(size)
        return self.constant(np.array([size], np.int64))

    def counted(self, size: Any) -> str:
        """The numbers 0, 1, 2 and so on, as int64."""
        if not is_unknown(size):
            return self.constant(np.arange(size, dtype=np.int64))
        last = self.reshape(self.sizes.vector(size), (1,), ())
        return self.node("Range", np.int64(0), last, np.int64(1))

    def whole(self, x: Value, shape: Sequence[Any]) -> Value:
        """The array with every axis of full size."""
        shape = tuple(shape)
        if same_shape(x.shape, shape):
            return x
        if x.known and not any(map(is_unknown, shape)):
            array = np.broadcast_to(np.asarray(x.array), shape)
            return x._replace(name="", shape=shape, array=array)
        name = self.node("Expand", x, self.ints(shape))
        return Value(name, shape, x.dtype)

    def reshape(self, x: Input, before: Sequence[Any], after: Sequence[Any]) -> str:
        """The same numbers in another shape."""
        if same_shape(before, after):
            return self.ref(x)
        unknown = [axis for axis, n in enumerate(after) if is_unknown(n)]
        target: list[Any] = list(after)
        kept = [i for i in unknown if i < len(before) and _equal(before[i], after[i])]
        if 0 in after:
            return self.node("Reshape", x, self.ints(target), allowzero=1)
        for axis in kept:
            target[axis] = 0  # which means the input's own size
        rest = [axis for axis in unknown if axis not in kept]
        if len(rest) == 1:
            target[rest[0]] = -1
        name = self.node("Reshape", x, self.ints(target))
        more = len(after) - len(before)
        if more > 0 and same_shape(after, (*(1,) * more, *before)):
            self.file.led[name] = self.ref(x)
        return name

    def transpose(self, x: Input, axes: Sequence[int]) -> str:
        """The axes in another order; two orders in turn are one."""
        name, axes = self.ref(x), tuple(axes)
        source, before = self.file.turned.get(name, (name, tuple(range(len(axes)))))
        axes = tuple(before[axis] for axis in axes)
        if axes == tuple(range(len(axes))):
            return source
        turned = self.node("Transpose", source, perm=list(axes))
        self.file.turned[turned] = (source, axes)
        return turned

    # --- graphs in nodes

    def inner(self) -> Graph:
        """A graph for a node to hold."""
        graph = Graph(self.file.opset, self.root)
        graph.scope = self.scope
        return graph

    def info(self, name: str, dtype: Any, shape: Sequence[Any]) -> Any:
        """What a graph says about an input or output."""
        sizes = [size_text(n) for n in shape]
        make = self.file.onnx.helper.make_tensor_value_info
        return make(name, self.type_of(dtype), sizes)

    def closed(self, inputs: Sequence[Any], outputs: Sequence[Value]) -> Any:
        """This graph, as the attribute of a node."""
        infos: list[Any] = []
        for value in outputs:
            name = self.node("Identity", value)
            infos.append(self.info(name, stored(value.dtype), value.shape))
        make, name = self.file.onnx.helper.make_graph, self.unique("body")
        return make(self.nodes, name, list(inputs), infos)


def is_bool(dtype: Any) -> bool:
    """Whether numbers of a dtype are true or false."""
    return np.dtype(dtype).kind == "b"


def stored(dtype: Any) -> Any:
    """The dtype in which numbers are held in the graph.

    Few runtimes compute in bfloat16: its numbers are float32 that were rounded.
    """
    return np.dtype(np.float32) if _is_half(dtype) else np.dtype(dtype)


def _is_half(dtype: Any) -> bool:
    return dtype == jnp.bfloat16


def size_text(size: Any) -> Any:
    """A size as it stands in the file: a number, or a name."""
    return str(size) if is_unknown(size) else int(size)


def _equal(a: Any, b: Any) -> bool:
    return size_text(a) == size_text(b)


def same_shape(a: Sequence[Any], b: Sequence[Any]) -> bool:
    """Whether two shapes are one; unknown sizes are told apart by what they are."""
    return len(a) == len(b) and all(map(_equal, a, b))


def is_one(size: Any) -> bool:
    """Whether a size is known to be 1."""
    return not is_unknown(size) and size == 1


def joined(*shapes: Sequence[Any]) -> tuple[Any, ...]:
    """The shape of what goes element by element over arrays of these shapes."""
    rank = max(map(len, shapes))
    padded = [(*(1,) * (rank - len(shape)), *shape) for shape in shapes]
    columns = zip(*padded, strict=True)
    return tuple(next((n for n in sizes if not is_one(n)), 1) for sizes in columns)
