"""A layer: the record that is a pair `(init, apply)`, and the decorator that makes one."""

from __future__ import annotations

import functools
import inspect
import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import MappingProxyType
from typing import Any, NamedTuple, ParamSpec, cast

from axonlike import initializers, text, values
from axonlike.blame import here, hide
from axonlike.errors import PathError, nearest
from axonlike.evaluation import Apply, Predict, check_key, recorded, sites
from axonlike.frame import Frame
from axonlike.initialize import materialize
from axonlike.leaf import run_function, run_leaf
from axonlike.names import Places, closed
from axonlike.paths import check_name
from axonlike.signature import NOTHING, Signature, read
from axonlike.spec import as_spec, show
from axonlike.types import Key, Params, PyTree, State

P = ParamSpec("P")
View = Callable[[Frame, Params], Params]
RunFunction = Callable[[Frame, tuple[Any, ...], Mapping[str, Any], str], Any]


class Cell(NamedTuple):
    """What the factory of a recurrent cell returns: one step, for `scan` to run over time.

    Args:
        init: `init(key, carry, x)`, the params, from one step's inputs.
        apply: `apply(params, carry, x)`, one step: the next carry and the output.
        initial_carry: `initial_carry(x)`, the carry before the first step `x`.
        project: `project(params, xs)`, if given, makes what `apply` receives as `x` out of
            the layer's input; `scan` calls it once for all steps.
        recur: `recur(params, carry, x)`, if given, makes what `apply` receives as `x` out
            of the carry and what `project` made: the step's products with weights, so that
            `apply` goes element by element. `scan` then takes the gradients of these
            weights for all steps at once, with `carry` and `x` of `(time, batch, ...)`.

    Shapes:
        carry: any pytree of `(batch, ...)`, the same before and after a step.
        x: `(batch, ...)`, one step.

    Example:
        >>> import jax, jax.numpy as jnp, axonlike as al
        >>> @al.layer
        ... def summing():
        ...     def apply(params, carry, x):
        ...         return carry + x, carry + x
        ...     return al.Cell(None, apply, lambda x: jnp.zeros(x.shape, x.dtype))
        >>> al.scan(summing()).predict({}, {}, jnp.ones((1, 3, 1)))[0, :, 0]
        Array([1., 2., 3.], dtype=float32)
    """

    init: Callable[..., Any] | None
    apply: Callable[..., Any]
    initial_carry: Callable[..., Any]
    project: Callable[..., Any] | None = None
    recur: Callable[..., Any] | None = None


class Node(NamedTuple):
    """What the factory of a combinator returns: children, and how to run them.

    `transparent` says that its body (slot "f") adds no level of its own; `stem` is what
    an automatic name is made of; `names` the steps of its params where they are not those
    of `places`, one index step lower; `view(frame, params)` the params as its body has
    them, where those are others.
    """

    run: RunFunction
    children: Mapping[str, Layer]
    places: Places
    transparent: bool = False
    stem: str | None = None
    names: frozenset[str] | None = None
    signature: Signature | None = None
    partial: bool = False
    view: View | None = None


@dataclass(frozen=True, eq=False, repr=False)
class Layer:
    """A pure pair of functions, `init` and `apply`, and what they were made from.

    Made by calling a factory (`dense(10)`); never mutated. Two layers are equal when
    their factory, config (types included), children and names are. A layer carries no
    arrays: `init` returns params and state, `apply` takes them.

    Example:
        >>> import jax, jax.numpy as jnp, axonlike as al
        >>> model = al.dense(8) >> jax.nn.relu >> al.dense(2)
        >>> params, state = model.init(jax.random.key(0), al.spec("b 4"))
        >>> y, state = model.apply(params, state, jnp.ones((3, 4)))
        >>> y.shape
        (3, 2)
    """

    kind: str
    config: Mapping[str, Any]
    children: Mapping[str, Layer]
    name: str | None
    source: tuple[str, int]
    factory: Callable[..., Any]
    run: RunFunction
    places: Places
    transparent: bool
    stem: str
    names: frozenset[str] | None
    signature: Signature
    init_function: Callable[..., Any] | None
    methods: Mapping[str, tuple[Callable[..., Any], Signature]]
    partial: bool = False
    indexed: bool = False
    view: View | None = None
    replaced: frozenset[str] = frozenset()
    made_of: Layer | None = None
    identity: Any = field(init=False)
    hash: int = field(init=False)
    options: frozenset[str] = field(init=False)
    uses_key: bool = field(init=False)

    __array_ufunc__ = None

    def __post_init__(self) -> None:
        set_ = object.__setattr__
        below = self.children.values()
        set_(self, "identity", values.interned(identity_(self, id, _own_identity)))
        names = identity_(self, values.by_name, hash)
        set_(self, "hash", values.digest(names))
        sigs = [sig for _, sig in self.methods.values()] or [self.signature]
        lifted = self.run is run_function  # which receives inputs only
        options = frozenset(o for sig in sigs for o in sig.options if not lifted)
        set_(self, "options", options.union(*(c.options for c in below)))
        keyed = any("key" in sig.services for sig in sigs)
        set_(self, "uses_key", keyed or any(c.uses_key for c in below))

    # --- the pair

    def init(
        self, key: Key, x: PyTree, shardings: Mapping[str, Any] | None = None
    ) -> tuple[Params, State]:
        """Makes params and state for inputs like `x`.

        Args:
            key: from `jax.random.key`. Each layer's key depends on it and on the layer's
                path, on nothing else.
            x: what stands for the input: arrays, `al.spec("b 28 28 1")`,
                `jax.ShapeDtypeStruct`, a tuple of ints and None (one shape), or a pytree
                of those. Values are not looked at.
            shardings: `{selector: PartitionSpec or Sharding}` for arrays by path.

        Returns:
            `(params, state)`: nested dicts of arrays by name.

        Raises:
            ShapeError: shapes do not fit, or a param would depend on an unknown size.
            PathError: a selector of `shardings` means no array.

        Example:
            >>> import jax, axonlike as al
            >>> params, state = al.dense(2).init(jax.random.key(0), (None, 3))
            >>> params["kernel"].shape
            (3, 2)
        """
        check_key(key)
        try:
            specs = as_spec(x)
            recorder = recorded(self, specs)[1]
            self.identity.memory["spec"] = (
                specs  # for surgery, which makes more weights
            )
            return materialize(recorder, key, shardings)
        except Exception as error:
            raise hide(error) from error.__cause__

    @cached_property
    def apply(self) -> Apply:
        """The pure function `(params, state, x, *, key, train, options) -> (y, state)`."""
        return Apply(self)

    @cached_property
    def predict(self) -> Predict:
        """The pure function `(params, state, x) -> y`: `apply` in inference.

        Example:
            >>> import jax, jax.numpy as jnp, axonlike as al
            >>> model = al.dense(2)
            >>> params, state = model.init(jax.random.key(0), (None, 3))
            >>> model.predict(params, state, jnp.zeros((5, 3))).shape
            (5, 2)
        """
        return Predict(self)

    def output_spec(self, x: PyTree) -> PyTree:
        """The shapes and dtypes that `apply` would return; nothing is computed.

        Args:
            x: as for `init`.

        Returns:
            A pytree of `jax.ShapeDtypeStruct`; named sizes stay symbolic.

        Example:
            >>> import axonlike as al
            >>> (al.flatten() >> al.dense(10)).output_spec(al.spec("b 28 28 1")).shape
            (b, 10)
        """
        try:
            return recorded(self, as_spec(x))[0]
        except Exception as error:
            raise hide(error) from error.__cause__

    def __iter__(self) -> Iterator[Any]:
        return iter((self.init, self.apply))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Raises: a layer is a pair of functions, not one."""
        raise TypeError(
            f"{self.headline}: a layer is not called like a function. Use "
            "predict(params, state, x) or apply(params, state, x)."
        )

    # --- the record

    @property
    def plain(self) -> Layer:
        """This layer or, of a composite, the one that its factory returned."""
        return self.made_of or self

    def named(self, name: str | None) -> Layer:
        """The same layer under another name; None for an automatic one.

        Args:
            name: one step of a path: no `/ * { } #`, not only digits.

        Raises:
            ValueError: the name cannot be a step of a path.

        Example:
            >>> import axonlike as al
            >>> list((al.dense(8) >> al.dense(2).named("head")).children)
            ['dense', 'head']
        """
        if name == self.name:
            return self
        return replace(self, name=None if name is None else check_name(name))

    def with_children(self, children: Mapping[str, Any]) -> Layer:
        """The same layer with others in place of some of its children.

        Args:
            children: `{slot: layer}`, the slots being those of `children`.

        Raises:
            PathError: there is no such child.

        Example:
            >>> import axonlike as al
            >>> layer = al.attention(2).with_children({"out": al.identity})
            >>> layer.children["out"] == al.identity
            True
        """
        unknown = [slot for slot in children if slot not in self.children]
        if unknown:
            raise PathError("with_children", unknown[0], self.children)
        new = {
            slot: item.named(item.name or self.children[slot].name)
            for slot, child in children.items()
            for item in [as_layer(child, "with_children")]
        }
        return OPERATORS["rebuilt"](self, new)

    def part(self, path: str) -> Layer:
        """The child at a path, run on the whole model's params and state.

        Same paths, so the same params, state and keys: a decoder alone, a generator alone.

        Args:
            path: names joined by `/`, as in the params.

        Raises:
            PathError: there is no such child.
            ValueError: it is inside the copies of a repeat or ensemble.

        Example:
            >>> import jax, jax.numpy as jnp, axonlike as al
            >>> model = al.serial(encoder=al.dense(2), decoder=al.dense(5))
            >>> params, state = model.init(jax.random.key(0), (None, 5))
            >>> model.part("decoder").predict(params, state, jnp.ones((1, 2))).shape
            (1, 5)
        """
        return OPERATORS["part"](self, path)

    def sites(self, x: PyTree) -> dict[str, Any]:
        """The shape and dtype of every activation that can be read, by its path.

        Args:
            x: what stands for the input, as for `init`.

        Returns:
            Specs by path; copies are a leading axis, at a step `*` of the path.

        Example:
            >>> import axonlike as al
            >>> model = al.serial(body=al.dense(8), head=al.dense(2))
            >>> list(model.sites(al.spec("b 4")))
            ['body', 'head', 'input', 'output']
        """
        return sites(self, x)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, str):
            index = (index,)
        if isinstance(index, tuple):
            return cast(Any, OPERATORS["deferred"])(self, cast(Any, index))
        if self.kind != "serial":
            raise TypeError(
                f"{self.headline}: only a serial has an order to index. "
                "Use .children[name] or .part(path)."
            )
        slots, pinned = list(self.children), OPERATORS["pinned"]
        if hasattr(index, "__index__") and not isinstance(index, bool):
            if not -len(slots) <= operator.index(cast(int, index)) < len(slots):
                raise IndexError(
                    f"index: expected one of {len(slots)} layers, got {index}. "
                    f"They are {', '.join(slots)}."
                )
            slot = slots[operator.index(cast(int, index))]
            return pinned(self.children[slot], self.places[slot])
        if not isinstance(index, slice):
            raise TypeError(
                f"index: expected an int or a slice, got {type(index).__name__}. "
                "Use .children[name] or .part(path) for a name."
            )
        chosen = [pinned(self.children[s], self.places[s]) for s in slots[index]]
        return replace(self.factory(*chosen), partial=True, name=self.name)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Layer):
            return NotImplemented
        if self is other:
            return True
        return self.identity is other.identity

    def __hash__(self) -> int:
        return self.hash

    def __copy__(self) -> Layer:
        return self

    def __deepcopy__(self, memo: Any) -> Layer:
        return self

    def __reduce__(self) -> Any:
        text.check_importable(self)
        call = values.picklable((self.factory, *text.arguments(self)))
        inner = {slot: self.children[slot] for slot in sorted(self.replaced)}
        return remake, (*call, self.name, self.partial, inner)

    def __axonlike_token__(self, name_of: Callable[[Any], Any]) -> Any:
        return self.identity if name_of is id else self.hash

    # --- text

    @property
    def headline(self) -> str:
        """One line for errors, the kind with what was configured."""
        return text.headline(self)

    @property
    def function(self) -> Callable[..., Any] | None:
        """The plain function that was lifted, if this layer is one."""
        return self.config["function"] if self.factory is lift else None

    def __repr__(self) -> str:
        sliced = self.partial and self.kind == "serial"
        inner = text.replaced(self)
        return text.source(self, with_name=True) + ("[:]" if sliced else "") + inner

    def __str__(self) -> str:
        return "\n".join(text.lines(self))

    def _repr_html_(self) -> str:
        return text.as_html(self)

    # --- operators

    def __rshift__(self, other: Any) -> Layer:
        return _combine("serial", self, other, left=True, right=True)

    def __rrshift__(self, other: Any) -> Layer:
        return _combine("serial", other, self, left=True, right=True)

    def __and__(self, other: Any) -> Layer:
        return _combine("branch", self, other, left=True)

    def __rand__(self, other: Any) -> Layer:
        return _combine("branch", other, self, left=True)

    def __matmul__(self, other: Any) -> Layer:
        return _combine("parallel", self, other, left=True)

    def __rmatmul__(self, other: Any) -> Layer:
        return _combine("parallel", other, self, left=True)

    def __add__(self, other: Any) -> Layer:
        return _combine("add", self, other, left=True)

    def __radd__(self, other: Any) -> Layer:
        return _combine("add", other, self, left=True)

    def __mul__(self, other: Any) -> Layer:
        return _combine("multiply", self, other, left=True)

    def __rmul__(self, other: Any) -> Layer:
        return _combine("multiply", other, self, left=True)

    def __or__(self, other: Any) -> Layer:
        return _combine("concatenate", self, other, left=True)

    def __ror__(self, other: Any) -> Layer:
        return _combine("concatenate", other, self, left=True)

    def __pow__(self, n: int) -> Layer:
        return OPERATORS["repeat"](self, n)


# --- the decorator


def layer(function: Callable[P, Any]) -> Callable[P, Layer]:
    """Makes a layer factory of a function that returns `(init, apply)`, or a layer.

    The function's arguments become the layer's `config`, its name the `kind`. Every
    factory takes `name=` as well; for a type checker to know it, spell it out:
    `def scale(start=1.0, *, name: str | None = None)`.

    `init(key, *inputs)` returns a dict of arrays and may be None; `apply(params, *inputs)`
    returns the output. Either sees inputs as pytrees; a tuple or dict is unpacked when
    `apply` has two or more required inputs. Further
    services are asked for by keyword-only parameter:

    - `state`: then `init` returns `(params, state)` and `apply` `(y, new_state)`;
    - `key`: a key of this layer's own, None when the caller gave none;
    - `train`: a bool; `emit`: `emit(name, value)` makes a site to read;
    - any other name: a static option that the caller may set.

    A function that returns a layer (often a `wire`) makes a composite.

    Args:
        function: the factory's body.

    Shapes:
        init: `x` has `.shape`, `.dtype`, `.ndim` and `.size`, and no values.

    Raises:
        TypeError: the function returns none of these.

    Example:
        >>> import jax, jax.numpy as jnp, axonlike as al
        >>> @al.layer
        ... def scale(start=1.0):
        ...     def init(key, x):
        ...         return {"scale": jnp.full(x.shape[-1:], start)}
        ...     def apply(params, x):
        ...         return x * jnp.broadcast_to(params["scale"], x.shape)
        ...     return init, apply
        >>> model = al.dense(3) >> scale(2.0)
        >>> params, state = model.init(jax.random.key(0), (None, 4))
        >>> params["scale"]["scale"]
        Array([2., 2., 2.], dtype=float32)
    """
    if not inspect.isfunction(function):
        raise TypeError(
            f"layer: expected a function, got {type(function).__name__}. "
            "Decorate a def that returns (init, apply)."
        )
    kind = function.__name__ if function.__name__.isidentifier() else "fn"
    code = function.__code__
    named = "name" in code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]

    @functools.wraps(function)
    def factory(*args: Any, **kwargs: Any) -> Layer:
        name = kwargs.pop("name", None)
        signature = text.signature_of(factory)
        bound = _bind(kind, signature, args, kwargs)
        given = bound.arguments.pop("name", None)
        name = given if name is None else name
        config = {k: values.snapshot(v) for k, v in bound.arguments.items()}
        bound.arguments.update(config)
        for option, value in config.items():
            if option == "init" or option.endswith("_init"):
                initializers.check(kind, option, value)
        try:
            made: Any = function(*bound.args, **bound.kwargs)
        except Exception as error:
            raise hide(error) from error.__cause__
        if isinstance(made, Layer) and made.factory is factory:
            return made if name is None else made.named(name)
        name = None if name is None else check_name(name, signature.parameters)
        return _build(kind, factory, config, made, name)

    factory.__axonlike_factory__ = kind  # type: ignore[attr-defined]
    factory.__axonlike_body__ = function  # type: ignore[attr-defined]
    if not named:
        _add_name(factory, inspect.signature(function))
    return cast("Callable[P, Layer]", factory)


def _add_name(factory: Any, signature: inspect.Signature) -> None:
    """Shows `name=` in help and signatures of factories that do not spell it out."""
    parameters = list(signature.parameters.values())
    name = inspect.Parameter("name", inspect.Parameter.KEYWORD_ONLY, default=None)
    last = parameters[-1].kind if parameters else None
    at = len(parameters) - (last is inspect.Parameter.VAR_KEYWORD)
    parameters.insert(at, name)
    factory.__signature__ = signature.replace(parameters=parameters)


def _bind(
    kind: str, signature: inspect.Signature, args: Any, kwargs: Any
) -> inspect.BoundArguments:
    try:
        bound = signature.bind(*args, **kwargs)
    except TypeError as error:
        known = [name for name in signature.parameters if name != "name"]
        unknown = [name for name in kwargs if name not in known]
        hint = f" {nearest(unknown[0], [*known, 'name'])}" if unknown else ""
        raise TypeError(f"{kind}: {error}.{hint}") from None
    bound.apply_defaults()
    return bound


def _build(
    kind: str, factory: Any, config: dict[str, Any], made: Any, name: str | None
) -> Layer:
    common: dict[str, Any] = {
        "kind": kind,
        "factory": factory,
        "config": MappingProxyType(config),
        "name": name,
        "source": here(3),
    }
    if isinstance(made, Node):
        return Layer(
            **common,
            children=MappingProxyType(dict(made.children)),
            run=made.run,
            places=made.places,
            transparent=made.transparent,
            stem=made.stem or kind,
            names=made.names if made.names is not None else closed(made.places),
            signature=made.signature or NOTHING,
            init_function=None,
            methods=MappingProxyType({}),
            partial=made.partial,
            indexed=made.names is not None,
            view=made.view,
        )
    if isinstance(made, Layer):
        if made.view is not None:  # others know a tie, frozen or mixed by its factory
            made = OPERATORS["serial"](made)
        fields = {"transparent": False, "stem": kind, "partial": False}
        return replace(made, **common, **fields, made_of=made.plain)
    pair = isinstance(made, tuple) and len(cast("tuple[Any, ...]", made)) == 2
    if pair or isinstance(made, Cell):
        return _leaf(common, cast(Any, made))
    if callable(cast(Any, made)):
        return replace(lift(cast(Any, made)), **common, stem=kind)
    raise TypeError(
        f"{kind}: expected the factory to return (init, apply) or a layer, "
        f"got {show(cast(Any, made))}. End it with 'return init, apply'."
    )


def _leaf(common: dict[str, Any], made: Any) -> Layer:
    cell = made if isinstance(made, Cell) else Cell(made[0], made[1], _no_carry)
    if not callable(cell.apply) or not (cell.init is None or callable(cell.init)):
        raise TypeError(
            f"{common['kind']}: expected functions (init, apply), got "
            f"({type(cell.init).__name__}, {type(cell.apply).__name__}). "
            "End the factory with 'return init, apply'."
        )
    step = read(cell.apply, 1)
    methods: dict[str, tuple[Callable[..., Any], Signature]] = {
        "apply": (_whole_step(cell), step)
    }
    if isinstance(made, Cell):
        methods["step"] = (cell.apply, step)
        methods["initial_carry"] = (cell.initial_carry, read(cell.initial_carry, 0))
        if cell.project is not None:
            methods["project"] = (cell.project, read(cell.project, 1))
        if cell.recur is not None:
            methods["recur"] = (cell.recur, read(cell.recur, 1))
    return Layer(
        **common,
        children=MappingProxyType({}),
        run=run_leaf,
        places={},
        transparent=False,
        stem=common["kind"],
        names=None,
        signature=step,
        init_function=cell.init or _no_params,
        methods=MappingProxyType(methods),
    )


def _whole_step(cell: Cell) -> Callable[..., Any]:
    if cell.project is None and cell.recur is None:
        return cell.apply

    def apply(params: Params, carry: PyTree, x: PyTree, **services: Any) -> Any:
        if cell.project is not None:
            x = cell.project(params, x)
        if cell.recur is not None:
            x = cell.recur(params, carry, x)
        return cell.apply(params, carry, x, **services)

    return apply


def _no_carry(x: PyTree) -> PyTree:
    return None


def _no_params(key: Key, *inputs: Any, **named: Any) -> Params:
    return {}


def lift(function: Callable[..., Any], name: str | None = None) -> Layer:
    """A layer without parameters out of any function of arrays.

    Combinators lift functions by themselves; this is for a function that needs a name, or
    that starts a pipe with another function.

    Args:
        function: takes the inputs, positionally, and returns the output.
        name: of the layer.

    Shapes:
        As the function's.

    Raises:
        TypeError: the function is a layer factory that was not called.

    Example:
        >>> import jax, axonlike as al
        >>> list((al.lift(jax.nn.relu, name="act") >> jax.nn.tanh).children)
        ['act', 'tanh']
    """
    if not callable(function):
        raise TypeError(f"lift: expected a function, got {show(cast(Any, function))}.")
    made = function if isinstance(function, Layer) else _lift(function)
    return made if name is None else made.named(name)


def _lift(function: Callable[..., Any]) -> Layer:
    sig = read(function, 0, plain=True)
    return Layer(
        kind=_kind_of(function),
        config=MappingProxyType({"function": function}),
        children=MappingProxyType({}),
        name=None,
        source=here(3),
        factory=lift,
        run=run_function,
        places={},
        transparent=False,
        stem=_kind_of(function),
        names=frozenset(),
        signature=sig,
        init_function=None,
        methods=MappingProxyType({"apply": (function, sig)}),
    )


def as_layer(value: Any, where: str) -> Layer:
    """A layer as it is, a function lifted; anything else is an error that says so."""
    if isinstance(value, Layer):
        return value
    kind = getattr(value, "__axonlike_factory__", None)
    if kind is not None:
        raise TypeError(
            f"{where}: got the factory {kind}, not a layer. Call it: write {kind}()."
        )
    if callable(value):
        return lift(value)
    hint = "Call a factory such as dense(10), or pass a function such as jax.nn.relu."
    if isinstance(value, (list, tuple)):
        hint = f"Spread it: {where}(*layers)."
    raise TypeError(
        f"{where}: expected a layer or a function, got {type(cast(Any, value)).__name__}. "
        + hint
    )


def _kind_of(function: Any) -> str:
    inner = function
    while isinstance(inner, functools.partial):
        inner = inner.func
    name = getattr(inner, "__name__", type(inner).__name__)
    return name if name.isidentifier() else "fn"


def _own_identity(layer: Layer) -> Any:
    return layer.identity


def identity_(layer: Layer, name_of: Any, child_of: Any) -> Any:
    """What two equal layers share: factory, config, children, names."""
    return (
        name_of(layer.factory),
        layer.name,
        layer.partial,
        values.token(dict(layer.config), name_of),
        tuple((slot, child_of(child)) for slot, child in layer.children.items()),
    )


def remake(
    factory: Any, args: Any, kwargs: Any, name: str | None, partial: bool, inner: Any
) -> Layer:
    """A layer out of what pickle and files keep of it; `inner` are replaced children."""
    made = factory(*args, **kwargs).named(name)
    made = replace(made, partial=True) if partial else made
    return made.with_children(inner) if inner else made


# --- operators


OPERATORS: dict[str, Callable[..., Layer]] = {}
"""The combinators behind the operators, entered by the module that defines them."""


def _combine(
    kind: str, a: Any, b: Any, *, left: bool = False, right: bool = False
) -> Layer:
    where = {"serial": ">>", "branch": "&", "parallel": "@", "add": "+"}
    where |= {"multiply": "*", "concatenate": "|"}
    operands: list[Any] = []
    for value, flat in ((a, left), (b, right)):
        item = as_layer(value, where[kind])
        operands += _operands(item, kind) if flat else [item]
    return OPERATORS[kind](*operands)


def _operands(layer: Layer, kind: str) -> list[Layer]:
    """The operands of an unnamed combinator of this kind that was made by operators."""
    plain = (
        layer.kind == kind and layer.factory is OPERATORS[kind] and layer.name is None
    )
    if not plain or not all(
        text.is_default(layer, k, v) for k, v in layer.config.items() if k != "layers"
    ):
        return [layer]
    return list(layer.config["layers"])
