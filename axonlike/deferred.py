"""Deferred activations: expressions of what is inside a model, compiled to functions.

`model["blocks/3/attn"]` names an activation, `+`, `.mean()` and the like make expressions
of them, `.set(...)` and its like make edits, and `compile` makes a pure function that runs
what the expression needs and nothing else. Nothing here holds arrays of a model.
"""

from __future__ import annotations

import abc
import operator
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp

from axonlike import values
from axonlike.layer import OPERATORS, Layer
from axonlike.sites import resolve, spelled


class _Unfilled:
    """The type of `UNFILLED`, of which there is one."""

    __slots__ = ()

    def __reduce__(self) -> str:
        return "UNFILLED"


UNFILLED = _Unfilled()
"""That nothing is in the place of an activation that does not run."""


class Deferred(abc.ABC):
    """A value inside a run of a model: immutable, without arrays, not computed yet.

    Arithmetic, comparisons (but `==`), indexing and the methods of arrays make further
    ones. `==` compares two expressions, `.eq()` their values.

    Example:
        >>> import axonlike as al
        >>> model = al.serial(body=al.dense(8), head=al.dense(2))
        >>> model["body"][:, 0].mean() + 0.1 * model["head"].l2()
        (mean(body[:, 0]) + (0.1 * l2(head)))
    """

    __slots__ = ("__weakref__",)
    __array_ufunc__ = None
    __iter__ = None

    @property
    @abc.abstractmethod
    def parts(self) -> tuple[Any, ...]:
        """What the expression is made of, in order."""

    def _keep(self, **parts: Any) -> None:
        """Sets the parts, once; arrays and lists among them as they are now."""
        for name, value in parts.items():
            object.__setattr__(self, name, values.snapshot(value))

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(
            f"deferred: an expression does not change, so {name!r} cannot be set. "
            "Make another one."
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self.parts

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Deferred):
            return NotImplemented
        return type(self) is type(other) and token(self) == token(other)

    def __hash__(self) -> int:
        return hash(repr(self))

    def __bool__(self) -> bool:
        raise TypeError(
            "deferred: an expression has no truth value before it is evaluated. "
            "Use .eq() and .ne() to build comparisons, & and | to join them."
        )

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError(
            "deferred: an expression is no array. Write compile(expression)."
        )

    def __getitem__(self, index: Any) -> Deferred:
        return Op(operator.getitem, (self, index), {})

    def evaluate(
        self, params: Any, state: Any, x: Any, *, key: Any = None, **arguments: Any
    ) -> Any:
        """The value in one run of the model, at once.

        Args:
            params: of the model.
            state: of the model.
            x: its input.
            key: for layers that draw random numbers.
            arguments: what `arg`, `index` and `on` in the expression name.
        """
        compiled = cast(Any, OPERATORS["compile"](cast(Any, self)))
        return compiled(params, state, x, key=key, **arguments)

    # --- methods of arrays that make further expressions

    def l1(self) -> Deferred:
        """The sum of absolute values."""
        return Op(l1, (self,), {})

    def l2(self) -> Deferred:
        """The root of the sum of squares."""
        return Op(l2, (self,), {})

    def map(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Deferred:
        """`function(value, *args, **kwargs)`; among `edits`, the edit that puts it here."""
        return Mapped(function, (self, *args), kwargs)

    def eq(self, other: Any) -> Deferred:
        """Where the two are equal."""
        return Op(operator.eq, (self, other), {})

    def ne(self, other: Any) -> Deferred:
        """Where the two differ."""
        return Op(operator.ne, (self, other), {})

    def fill(self, value: Any) -> Deferred:
        """This activation, and a value in its place where it does not run.

        Inside the choices of `cond` and `switch` it may not.
        """
        node: Any = self
        if isinstance(node, Site):
            return Site(node.model, node.path, value)
        if base(node) is None:
            raise TypeError(
                f"fill: only an activation may not run, got {self!r}. "
                "Write model['path'].fill(0.0) first, and go on from there."
            )
        return Op(operator.getitem, (node.args[0].fill(value), node.args[1]), {})

    # --- edits

    def set(self, value: Any) -> Edit:
        """The edit that puts a value here, broadcast to what is there.

        Of what is run several times, a value with the axes that stand in front when it is
        read is one for each run.
        """
        return self._edited("set", value)

    def add(self, value: Any) -> Edit:
        """The edit that adds a value; as for `set`. A copy chosen twice gets both."""
        return self._edited("add", value)

    def scale(self, value: Any) -> Edit:
        """The edit that multiplies by a value; as for `set`."""
        return self._edited("scale", value)

    def project_out(self, direction: Any) -> Edit:
        """The edit that takes out the part along a direction of the last axis.

        A direction of zeros is an error; one that turns out to be zero only when a jitted
        program runs takes out nothing.
        """
        return self._edited("project_out", direction)

    def rotate(self, matrix: Any) -> Edit:
        """The edit that multiplies the last axis by a matrix."""
        return self._edited("rotate", matrix)

    def _edited(self, verb: str, value: Any) -> Edit:
        """An edit of this activation, or slice of one."""
        if base(self) is None:
            raise TypeError(
                f"{verb}: only an activation, or a slice of one, can be edited, got "
                f"{self!r}. Write model['path'].{verb}(...)."
            )
        return Edit(self, verb, values.snapshot(value))


class Site(Deferred):
    """An activation of a model by path; `model["path"]` and `site("path")` make it."""

    __slots__ = ("filled", "model", "path")
    model: Layer | None
    path: tuple[Any, ...]
    filled: Any

    def __init__(
        self, model: Layer | None, path: tuple[Any, ...], filled: Any = UNFILLED
    ) -> None:
        self._keep(model=model, path=path, filled=filled)

    @property
    def parts(self) -> tuple[Any, ...]:
        """Its model and path, and what is in its place where it does not run."""
        return self.model, self.path, self.filled

    def __repr__(self) -> str:
        text = "/".join(map(spelled, self.path))
        return (
            text if self.filled is UNFILLED else f"{text}.fill({_brief(self.filled)})"
        )


class Arg(Deferred):
    """An argument of the compiled function, by name."""

    __slots__ = ("name",)
    name: str

    def __init__(self, name: str) -> None:
        self._keep(name=_argument("arg", name))

    @property
    def parts(self) -> tuple[Any, ...]:
        """Its name."""
        return (self.name,)

    def __repr__(self) -> str:
        return f"${self.name}"


class On(Deferred):
    """The value of an expression in another run, whose input is an argument by name."""

    __slots__ = ("expression", "run")
    run: str
    expression: Deferred

    def __init__(self, run: str, expression: Deferred) -> None:
        if not isinstance(cast(Any, expression), Deferred):
            raise TypeError(
                f"on: expected an expression to read in that run, got {expression!r}. "
                "Write on('clean', model['path'])."
            )
        self._keep(run=_argument("on", run), expression=expression)

    @property
    def parts(self) -> tuple[Any, ...]:
        """Its run and expression."""
        return self.run, self.expression

    def __repr__(self) -> str:
        return f"on({self.run!r}, {self.expression!r})"


class Op(Deferred):
    """A function of expressions and of plain values."""

    __slots__ = ("args", "function", "kwargs")
    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def __init__(
        self,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
    ) -> None:
        if not callable(function):
            raise TypeError(
                f"deferred: expected a function of arrays, got {function!r}. "
                "Write defer(jnp.sin)(expression), or expression.map(jnp.sin)."
            )
        self._keep(function=function, args=args, kwargs=dict(kwargs))

    @property
    def parts(self) -> tuple[Any, ...]:
        """Its function and arguments."""
        return self.function, self.args, self.kwargs

    def __repr__(self) -> str:
        return _formula(self)


class Mapped(Op):
    """A function of one expression, as `.map` makes it; among edits, an edit."""

    __slots__ = ()


class Edit(NamedTuple):
    """A change of an activation during a run: a target and what is done to it."""

    target: Deferred
    verb: str
    value: Any

    def __repr__(self) -> str:
        return f"{self.target!r}.{self.verb}({_brief(self.value)})"


def base(expression: Deferred) -> tuple[Site, tuple[Any, ...]] | None:
    """The site that an expression is a slice of, and the indices; None if it is not."""
    indices: list[Any] = []
    node: Any = expression
    while isinstance(node, Op) and node.function is operator.getitem:
        indices.insert(0, node.args[1])
        node = node.args[0]
    return (node, tuple(indices)) if isinstance(node, Site) else None


def is_deferred(x: Any) -> bool:
    """Whether this is an expression."""
    return isinstance(x, Deferred)


def site(path: str, *index: Any) -> Deferred:
    """An activation by path, of a model that `compile` is told: `compile(..., model=m)`.

    Args:
        path: as for `model[path]`.
        index: of the activation, as in `model[path, ..., 3]`.

    Shapes:
        Those of the activation.

    Example:
        >>> import axonlike as al
        >>> al.site("conv1", ..., 37).mean()
        mean(conv1[..., 37])
    """
    return _located(None, (path, *index))


def arg(name: str) -> Deferred:
    """A value that the compiled function takes by keyword.

    Args:
        name: of the keyword.

    Shapes:
        As it is passed.

    Raises:
        ValueError: the compiled function has a parameter of that name anyway.

    Example:
        >>> import axonlike as al
        >>> al.site("conv1") * al.arg("weight")
        (conv1 * $weight)
    """
    return Arg(name)


def index(name: str) -> Deferred:
    """A number of a copy in a path, which the compiled function takes by keyword.

    As it is traced, a sweep over all copies is one compiled function and one `jax.vmap`.
    A number that is no copy's is an error; where it is known only when the program runs,
    what is read there or edited becomes NaN (of integers, the lowest).

    Args:
        name: of the keyword.

    Shapes:
        A scalar int.

    Example:
        >>> import axonlike as al
        >>> al.site("blocks", al.index("k"), "attn")
        blocks/$k/attn
    """
    return Arg(name)


def on(run: str, expression: Deferred) -> Deferred:
    """The value of an expression in another run of the model, in one program.

    Args:
        run: a name; the compiled function takes that run's input by this keyword.
        expression: read in that run, without edits.

    Shapes:
        Those of the expression.

    Example:
        >>> import axonlike as al
        >>> t = al.site("conv1")
        >>> t.set(al.on("clean", t))
        conv1.set(on('clean', conv1))
    """
    return On(run, expression)


def defer(function: Callable[..., Any]) -> Callable[..., Deferred]:
    """The function of expressions that a function of arrays is.

    Args:
        function: of arrays.

    Shapes:
        As the function's.

    Example:
        >>> import jax, axonlike as al
        >>> al.defer(jax.nn.relu)(al.site("conv1"))
        relu(conv1)
    """

    def deferred(*args: Any, **kwargs: Any) -> Deferred:
        return Op(function, args, kwargs)

    return deferred


def l1(value: Any) -> Any:
    """The sum of absolute values."""
    return sum(jnp.sum(jnp.abs(leaf)) for leaf in jax.tree.leaves(value))


def l2(value: Any) -> Any:
    """The root of the sum of squares."""
    total = sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(value))
    return jnp.sqrt(total)


# --- how expressions are made, compared and written


def _located(model: Layer | None, parts: tuple[Any, ...]) -> Deferred:
    """`("blocks", k, "attn", ..., 3)`: a path up to the last name, then an index."""
    if not parts or not isinstance(parts[0], str):
        raise TypeError(
            f"activation: expected a path first, got {parts!r}. "
            "Write model['blocks/3', ..., 5], or model[0] for a layer by number."
        )
    length = 1
    for at, part in enumerate(parts[1:], 1):
        if isinstance(part, str) or (isinstance(part, Arg) and length == at):
            length = at + 1
    steps: list[Any] = []
    for part in parts[:length]:
        steps += part.split("/") if isinstance(part, str) else [part]
    if model is not None:
        resolve(model, tuple(steps))  # which says what is wrong with the path
    found: Deferred = Site(model, tuple(steps))
    rest = parts[length:]
    return found[rest[0] if len(rest) == 1 else rest] if rest else found


_TAKEN = ("key", "params", "self", "state", "train", "x")


def _argument(what: str, name: Any) -> str:
    """A name for an argument of the compiled function that is not one of its own."""
    if not isinstance(name, str) or not name:
        raise TypeError(f"{what}: expected a name, a non-empty str, got {name!r}.")
    if name in _TAKEN:
        raise ValueError(
            f"{what}: the compiled function has a parameter {name!r} of its own. "
            "Choose another name."
        )
    return name


def token(node: Any) -> Any:
    """A value that two equal expressions have in common."""
    if isinstance(node, Deferred):
        return type(node).__name__, token(node.parts)
    if isinstance(node, (tuple, list)):
        items = cast("list[Any]", node)
        return type(items).__name__, tuple(map(token, items))
    if isinstance(node, dict):
        pairs = cast("dict[Any, Any]", node).items()
        return "dict", tuple((key, token(value)) for key, value in pairs)
    if isinstance(node, Layer):
        return node.identity
    if isinstance(node, slice):
        return "slice", tuple(map(token, ends(node)))
    return values.token(node, id)


def ends(part: Any) -> tuple[Any, Any, Any]:
    """Start, stop and step of a slice, which may be expressions."""
    return part.start, part.stop, part.step


SIGNS: dict[Callable[..., Any], str] = {
    operator.add: "+", operator.sub: "-", operator.mul: "*", operator.truediv: "/",
    operator.floordiv: "//", operator.mod: "%", operator.pow: "**",
    operator.matmul: "@", operator.lt: "<", operator.le: "<=", operator.gt: ">",
    operator.ge: ">=", operator.eq: "==", operator.ne: "!=", operator.and_: "&",
    operator.or_: "|",
}  # fmt: skip


_UNARY = {operator.neg: "-", operator.invert: "~"}


def _formula(op: Op) -> str:
    if op.function in SIGNS:
        return f"({_brief(op.args[0])} {SIGNS[op.function]} {_brief(op.args[1])})"
    if op.function is operator.getitem:
        return f"{_brief(op.args[0])}[{_index(op.args[1])}]"
    inside = [
        *map(_brief, op.args),
        *(f"{k}={_brief(v)}" for k, v in op.kwargs.items()),
    ]
    name = _UNARY.get(op.function) or _name(op.function)
    return f"{name}({', '.join(inside)})"


def _name(function: Any) -> str:
    return getattr(function, "__name__", type(function).__name__)


def _index(value: Any) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(_index, cast("tuple[Any, ...]", value)))
    if isinstance(value, slice):
        return spelled(value)
    return "..." if value is Ellipsis else _brief(value)


def _brief(value: Any) -> str:
    if hasattr(value, "shape") and hasattr(value, "dtype") and value.ndim:
        return f"{value.dtype}{list(value.shape)}"
    return repr(value)


def _binary(function: Callable[..., Any], *, swapped: bool = False) -> Any:
    def method(self: Deferred, other: Any) -> Deferred:
        return Op(function, (other, self) if swapped else (self, other), {})

    return method


def _unary(function: Callable[..., Any]) -> Any:
    def method(self: Deferred, *args: Any, **kwargs: Any) -> Deferred:
        return Op(function, (self, *args), kwargs)

    return method


for _function, _sign in SIGNS.items():
    if _sign not in ("==", "!="):
        _verb = _function.__name__.strip("_")
        setattr(Deferred, f"__{_verb}__", _binary(_function))
        if _sign not in ("<", "<=", ">", ">="):
            setattr(Deferred, f"__r{_verb}__", _binary(_function, swapped=True))
Deferred.__neg__ = _unary(operator.neg)  # type: ignore[attr-defined]
Deferred.__abs__ = _unary(abs)  # type: ignore[attr-defined]
Deferred.__invert__ = _unary(operator.invert)  # type: ignore[attr-defined]
for _method in (
    "mean", "sum", "max", "min", "std", "var", "prod", "argmax", "argmin", "any", "all",
    "reshape", "transpose", "squeeze", "clip", "astype", "dot", "cumsum", "sort",
    "argsort", "take", "ravel",
):  # fmt: skip
    setattr(Deferred, _method, _unary(getattr(jnp, _method)))
OPERATORS["deferred"] = cast(Any, _located)
