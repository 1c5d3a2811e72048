"""Combinators that run a child inside a transformed function: `repeat`, `vmap`, `cond`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from operator import itemgetter
from typing import Any, cast

import jax
import jax.numpy as jnp

from axonlike.combinators.basic import identity, one_input, wrapper
from axonlike.errors import ShapeError
from axonlike.frame import Frame, check_state
from axonlike.layer import OPERATORS, Layer, Node, as_layer, layer
from axonlike.names import assign, closed, given, inside
from axonlike.paths import check_name
from axonlike.selector import choose, whole
from axonlike.spec import same, show
from axonlike.spots import own_names, spots, translated
from axonlike.taps import Stop, Unknown, is_mark, ran
from axonlike.types import Params, PyTree

Policy = Callable[..., bool] | bool | None


@layer
def repeat(
    f: Any,
    n: int,
    *,
    stacked: bool = True,
    unroll: int = 1,
    remat: Any = None,
    tied: bool = False,
    name: str | None = None,
) -> Any:
    """A layer n times, one after the other; the operator `f ** n`.

    Each copy has its own weights, equal bit for bit however they are stored: `stacked`
    keeps them with a leading axis at `*/...` and runs one `lax.scan` (compile time does not
    grow with n), otherwise they stand at `0/...`, `1/...`.

    Args:
        f: a layer whose output has the spec of its input.
        n: how many; 0 is the identity.
        stacked: one scan over stacked params, or a loop unrolled at trace time.
        unroll: copies per iteration of the scan.
        remat: True, or a policy of `jax.checkpoint_policies`: recompute each copy's
            activations in the backward pass.
        tied: one set of weights for all copies.

    Shapes:
        input, output: what `f` takes and returns.
        params: `(n, ...)` for each of `f`'s when stacked.

    Raises:
        ShapeError: `f` returns another spec than it takes.

    Example:
        >>> import jax, axonlike as al
        >>> blocks = al.repeat(al.residual(al.dense(8)), 4)
        >>> params, state = blocks.init(jax.random.key(0), (None, 8))
        >>> params["*"]["kernel"].shape
        (4, 8, 8)
    """
    if not isinstance(n, int) or isinstance(n, bool) or n < 0:
        raise ValueError(f"repeat: n must be an int from 0 on, got {n!r}.")
    if unroll < 1:
        raise ValueError(f"repeat: unroll must be a positive int, got {unroll!r}.")
    if n == 0:
        return identity
    if not isinstance(f, Layer):
        f = as_layer(f, "repeat")
        return repeat(f, n, stacked=stacked, unroll=unroll, remat=remat, tied=tied)

    def run(frame: Frame, args: Any, kwargs: Any, method: str) -> PyTree:
        x = args[0] if len(args) == 1 else args

        def once(frame: Frame, x: PyTree) -> PyTree:
            y = frame.call("f", (x,), kwargs)
            same_spec("repeat", x, y)
            return y

        if tied:
            return _tied(frame, x, n, once, stacked, unroll, remat)
        if not stacked:
            return _unrolled(frame, x, n, once, remat)
        return _stacked(frame, x, n, once, unroll, remat)

    if tied:
        return wrapper(f, run)
    names = frozenset(["*"] if stacked else map(str, range(n)))
    stem = "repeat" if f.stem == "serial" else f.stem
    return Node(run, {"f": f}, inside(f), stem=stem, names=names)


Once = Callable[..., Any]
"""`once(frame, x)`: one copy."""


def _stacked(
    frame: Frame, x: PyTree, n: int, once: Once, unroll: int, remat: Any
) -> PyTree:
    if frame.run.recorder is not None:
        return _recorded(frame, x, n, once)

    def body(x: PyTree, each: Any) -> Any:
        inner = frame.under("*", each[0], each[1], index=each[2], copy=each[3])
        y = inner.copy(partial(once, x=x))
        return y, (inner.state, inner.taken)

    arrays = frame.params.get("*", {}), frame.state.get("*", {})
    _check_stack(arrays, n)
    each = (*arrays, pass_index(frame, n), copy_index(frame, n))
    body = _remat(body, remat, in_scan=True)
    points = frame.run.taps.points.get(frame.site) if frame.run.taps else None
    if points:
        return _apart_from_points(frame, x, n, once, body, each, points)
    y, (state, taken) = jax.lax.scan(body, x, each, length=n, unroll=unroll)
    keep(frame, {"*": state}, taken)
    return y


def _recorded(frame: Frame, x: PyTree, n: int, once: Once) -> PyTree:
    """One copy for all, in init's pass; the one in which a run begins, and then one."""
    pending = frame.run.taps and frame.run.taps.pending
    y = frame.under("*", index=0, stack=n).copy(partial(once, x=x))
    if not pending:
        return y
    return frame.under("*", index=0, stack=n).copy(partial(once, x=y))


def _apart_from_points(
    frame: Frame, x: PyTree, n: int, once: Once, body: Any, each: Any, points: Any
) -> PyTree:
    """Some copies by themselves, to be read or edited, and scans over those between.

    A scan runs over indices, not over slices of params, which would be copied.
    """
    states: list[Any] = []
    done = 0

    def nth(i: Any) -> Any:
        static = isinstance(i, int)
        take = jax.lax.index_in_dim if static else jax.lax.dynamic_index_in_dim

        def one(a: Any) -> Any:
            return cast(Any, take(a, i, 0, keepdims=False))

        return jax.tree.map(one, each)

    def span(x: PyTree, start: int, stop: int) -> PyTree:
        indices = jnp.arange(start, stop, dtype=jnp.uint32)
        y, (state, _) = jax.lax.scan(lambda x, i: body(x, nth(i)), x, indices)
        states.append(state)
        return y

    def point(x: PyTree, i: int) -> PyTree:
        params, state, index, _ = nth(i)
        inner = frame.under(str(i), params, state, index=index, copy=i, inline=True)
        y, state, _ = inner.outcome(partial(inner.copy, partial(once, x=x)))
        states.append(jax.tree.map(partial(jnp.expand_dims, axis=0), state))
        return y

    for i in [*points, n]:
        if frame.is_read or isinstance(x, Unknown):  # copies that do not run
            states.append(jax.tree.map(itemgetter(slice(done, i)), each[1]))
        elif i > done:
            x = span(x, done, i)
        done = i
        if i < n and not frame.is_read:
            x, done = point(x, i), i + 1
    keep(frame, {"*": jax.tree.map(_joined, *states)}, {})
    return x


def _joined(*parts: Any) -> Any:
    return jnp.concatenate(parts)


def _stacked_up(*parts: Any) -> Any:
    return jnp.stack(parts)


def _unrolled(frame: Frame, x: PyTree, n: int, once: Once, remat: Any) -> PyTree:
    states = dict(frame.state)
    for i in range(n):
        step = str(i)
        with jax.named_scope(step):
            x, state, taken = _isolated(
                frame, x, once, remat, step,
                frame.params.get(step, {}), frame.state.get(step, {}), i, n,
            )  # fmt: skip
        states[step] = state
        frame.taken.update(taken)
        if frame.is_read:
            break
    keep(frame, states, {})
    return x


def _isolated(
    frame: Frame,
    x: Any,
    once: Once,
    remat: Any,
    step: str | None,
    params: Any,
    state: Any,
    i: int,
    n: int,
) -> Any:
    """One copy, its params and state arguments of what may be rematerialized."""

    def body(params: Any, state: Any, x: Any) -> Any:
        own, run = step is not None, partial(once, x=x)
        inner = frame.under(
            step, params, state, index=i, stack=-1 if own else None, copy=i,
            inline=own and not remat, ends=own, axis=None if own else (i, n),
        )  # fmt: skip
        return inner.outcome(partial(inner.copy, run) if own else partial(run, inner))

    if frame.run.recorder is not None:
        return body(params, state, x)
    return _remat(body, remat)(params, state, x)


def _tied(
    frame: Frame, x: PyTree, n: int, once: Once, stacked: bool, unroll: int, remat: Any
) -> PyTree:
    if frame.run.recorder is not None:
        return once(frame.under(), x)
    if not stacked:
        reads: list[Mapping[str, Any]] = []
        for i in range(n):
            x, state, taken = _isolated(
                frame, x, once, remat, None, frame.params, frame.state, i, n
            )
            frame.state = state
            reads.append(taken)
        keep(frame, frame.state, jax.tree.map(_stacked_up, *reads))
        return x

    def body(carry: Any, each: Any) -> Any:
        inner = frame.under(
            None, frame.params, carry[1], index=each[0], axis=(each[1], n)
        )
        y = once(inner, carry[0])
        return (y, inner.state), inner.taken

    (y, state), taken = jax.lax.scan(
        _remat(body, remat, in_scan=True), (x, frame.state),
        (pass_index(frame, n), copy_index(frame, n)), length=n, unroll=unroll,
    )  # fmt: skip
    keep(frame, state, taken)
    return y


@layer
def ensemble(f: Any, n: int, *, name: str | None = None) -> Any:
    """Copies of a layer with their own weights, all on one input, by `jax.vmap`.

    Args:
        f: a layer.
        n: how many.

    Shapes:
        input: what `f` takes.
        output: `(n, ...)` of what `f` returns.
        params: `(n, ...)` for each of `f`'s, at `*/...`.

    Raises:
        ValueError: n is not a positive int.

    Example:
        >>> import axonlike as al
        >>> al.ensemble(al.dense(3), 5).output_spec(al.spec("b 4")).shape
        (5, b, 3)

    References:
        Lakshminarayanan et al., "Simple and Scalable Predictive Uncertainty Estimation
        using Deep Ensembles", NIPS 2017.
    """
    if not isinstance(n, int) or isinstance(n, bool) or n < 1:
        raise ValueError(f"ensemble: n must be a positive int, got {n!r}.")
    if not isinstance(f, Layer):
        return ensemble(as_layer(f, "ensemble"), n)

    def run(frame: Frame, args: Any, kwargs: Any, method: str) -> PyTree:
        def member(params: Any, state: Any, index: Any, copy: Any = None) -> Any:
            inner = frame.under(
                "*", params, state, index=index, stack=n, copy=copy, ends=True
            )

            def run(inner: Frame) -> PyTree:
                return inner.call("f", args, kwargs, method)

            return inner.outcome(partial(inner.copy, run))

        if frame.run.recorder is not None:
            return jax.vmap(partial(_nth_member, member))(jnp.zeros(n))
        params, state = frame.params.get("*", {}), frame.state.get("*", {})
        _check_stack((params, state), n)
        y, state, taken = jax.vmap(member, axis_size=n)(
            params, state, pass_index(frame, n), copy_index(frame, n)
        )
        keep(frame, {"*": state}, taken)
        return y

    stem = "ensemble" if f.stem == "serial" else f.stem
    return Node(run, {"f": f}, inside(f), stem=stem, names=frozenset(["*"]))


def _nth_member(member: Callable[..., Any], _: Any) -> Any:
    return member({}, {}, 0)[0]


@layer
def vmap(f: Any, in_axes: Any = 0, *, name: str | None = None) -> Any:
    """A layer mapped over an axis that it does not know about: one set of weights.

    Args:
        f: a layer.
        in_axes: as in `jax.vmap`, for the one input.

    Shapes:
        input: what `f` takes with one more axis, at `in_axes`.
        output: what `f` returns with one more axis in front.

    Raises:
        ValueError: the layer's state changes, which would differ along the axis.

    Example:
        >>> import axonlike as al
        >>> frames = al.vmap(al.conv(8, 3) >> al.global_avg_pool())
        >>> frames.output_spec(al.spec("b t 16 16 3")).shape
        (b, t, 8)
    """
    if not isinstance(f, Layer):
        return vmap(as_layer(f, "vmap"), in_axes)

    def run(frame: Frame, args: Any, kwargs: Any, method: str) -> PyTree:
        x = one_input(args, {}, "vmap")
        size = _mapped_size(x, in_axes)
        unchanged: list[bool] = []

        def one(x: Any, index: Any, number: Any) -> Any:
            inner = frame.under(
                None, frame.params, frame.state, index=index, ends=True,
                axis=(number, size),
            )  # fmt: skip
            y, state, taken = inner.outcome(
                partial(inner.call, "f", (x,), kwargs, method)
            )
            unchanged.append(_recording(frame) or _is(state, frame.state))
            return y, taken

        y, taken = jax.vmap(one, in_axes=(in_axes, 0, 0))(
            x, pass_index(frame, size), copy_index(frame, size)
        )
        if not all(unchanged):
            raise ValueError(
                "vmap: the layer's state changes, and would differ along the mapped axis. "
                "Use ensemble for a state each, or a layer that takes the extra axis."
            )
        keep(frame, frame.state, taken)
        return y

    return wrapper(f, run)


def _mapped_size(x: PyTree, in_axes: Any) -> Any:
    sizes: list[Any] = []

    def see(axis: Any, part: Any) -> Any:
        if axis is not None:
            leaves = jax.tree.leaves(part)
            if not all(-leaf.ndim <= axis < leaf.ndim for leaf in leaves):
                raise ShapeError(
                    "vmap", f"an axis {axis}", show(part), "Check in_axes=."
                )
            sizes.extend(leaf.shape[axis] for leaf in leaves)
        return axis

    jax.tree.map(see, in_axes, x, is_leaf=lambda a: a is None)
    if not sizes:
        raise ShapeError(
            "vmap", "an input with the mapped axis", show(x), "Check in_axes=."
        )
    return sizes[0]


@layer
def remat(f: Any, policy: Any = None, *, name: str | None = None) -> Any:
    """A layer whose activations are computed again in the backward pass, to save memory.

    Args:
        f: a layer.
        policy: of `jax.checkpoint_policies`, what to keep; None keeps only the input.

    Shapes:
        As `f`'s.

    Example:
        >>> import jax, axonlike as al
        >>> al.remat(al.dense(8) >> jax.nn.gelu).output_spec(al.spec("b 4")).shape
        (b, 8)

    References:
        Chen et al., "Training Deep Nets with Sublinear Memory Cost", 2016.
    """
    if not isinstance(f, Layer):
        return remat(as_layer(f, "remat"), policy)

    def run(frame: Frame, args: Any, kwargs: Any, method: str) -> PyTree:
        if frame.run.recorder is not None:
            return frame.call("f", args, kwargs, method)

        arrays, others = _apart((args, dict(kwargs)))

        def body(params: Any, state: Any, arrays: Any) -> Any:
            inner = frame.under(None, params, state, ends=True)
            args, kwargs = others(arrays)
            return inner.outcome(partial(inner.call, "f", args, kwargs, method))

        y, state, taken = _remat(body, policy or True)(
            frame.params, frame.state, arrays
        )
        keep(frame, state, taken)
        return y

    return wrapper(f, run)


@layer
def cond(predicate: Any, f: Any, g: Any, *, name: str | None = None) -> Any:
    """One of two layers, chosen at run time: `f` where the predicate holds, else `g`.

    Args:
        predicate: a function or layer of the input that returns one bool.
        f: runs where it is true.
        g: runs where it is false.

    Shapes:
        input: what all three take.
        output: the one spec of `f` and `g`.

    Raises:
        ShapeError: `f` and `g` return different specs, or the predicate is not a scalar.

    Example:
        >>> import jax.numpy as jnp, axonlike as al
        >>> model = al.cond(lambda x: jnp.sum(x) > 0, jnp.negative, al.identity)
        >>> model.predict({}, {}, jnp.ones(2))
        Array([-1., -1.], dtype=float32)
    """
    if not all(isinstance(item, Layer) for item in (predicate, f, g)):
        return cond(
            as_layer(predicate, "cond"), as_layer(f, "cond"), as_layer(g, "cond")
        )
    return _choice("cond", predicate.named("predicate"), [f, g], {})


@layer
def switch(index: Any, *layers: Any, name: str | None = None, **named: Any) -> Any:
    """One of several layers, chosen at run time by number.

    Args:
        index: a function or layer of the input that returns one int; out of range, the
            nearest layer runs (as in `jax.lax.switch`).
        layers: the choices.
        named: or by keyword.

    Shapes:
        input: what the index and every choice take.
        output: the one spec of all choices.

    Raises:
        ShapeError: the choices return different specs, or the index is not a scalar.

    Example:
        >>> import jax.numpy as jnp, axonlike as al
        >>> model = al.switch(lambda x: 1, al.identity, jnp.negative)
        >>> model.predict({}, {}, jnp.ones(2))
        Array([-1., -1.], dtype=float32)
    """
    if not layers and not named:
        raise TypeError(
            "switch: expected at least one layer, got none. "
            "Write switch(index, dense(8), dense(8))."
        )
    if layers and named:
        raise TypeError(
            "switch: children are named by keyword or not at all, got both."
        )
    items = (index, *layers, *named.values())
    if not all(isinstance(item, Layer) for item in items):
        keys: dict[str, Any] = {
            k: as_layer(c, "switch").named(None) for k, c in named.items()
        }
        rest = [as_layer(item, "switch") for item in layers]
        return switch(as_layer(index, "switch"), *rest, **keys)
    return _choice("switch", index.named("index"), list(layers), named)


def _choice(
    kind: str, chooser: Layer, layers: list[Layer], named: Mapping[str, Layer]
) -> Node:
    for name in named:
        check_name(name, ("index", "name"))
    first = cast(str, chooser.name)
    items = [*layers, *(c.named(k) for k, c in named.items())]
    children, places = assign(items, splice=False)
    if first in children or first in (closed(places) or ()):
        raise ValueError(f"{kind}: {first!r} is taken by the choice. Rename the layer.")
    children[first], places[first] = chooser, given(first, chooser)
    slots = [slot for slot in children if slot != first]

    def run(frame: Frame, args: Any, kwargs: Any, method: str) -> PyTree:
        chosen = jnp.asarray(frame.call(first, args, kwargs))
        if chosen.shape != ():
            raise ShapeError(kind, f"a scalar from {first}", show(chosen), "Reduce it.")
        specs: dict[str, Any] = {}
        choices = [_branch(frame, slot, kwargs, kind, specs) for slot in slots]
        reads = _read_inside(frame, choices, args, kind)
        branches = [partial(_with_fills, choice, reads) for choice in choices]
        if kind == "cond":
            out = cast(Any, jax.lax.cond(chosen, *branches, frame.state, args))
        else:
            out = cast(Any, jax.lax.switch(chosen, branches, frame.state, args))
        y, state, taken = out
        keep(frame, state, taken)
        return y

    return Node(run, children, places)


Choice = Callable[[Any, Any], tuple[Any, Any, dict[str, Any]]]


def _branch(
    frame: Frame, slot: str, kwargs: Any, kind: str, specs: dict[str, Any]
) -> Choice:
    def go(state: Any, args: Any) -> Any:
        inner = frame.under(None, frame.params, state)
        y = inner.call(slot, args, kwargs)
        specs[slot] = jax.tree.map(jax.typeof, y)
        _equal_outputs(kind, specs)
        return y, state if _recording(frame) else inner.state, inner.taken

    return go


def _read_inside(
    frame: Frame, choices: list[Choice], args: Any, kind: str
) -> dict[str, Any]:
    """Specs of what is read inside of the choices, which needs something in its place."""
    taps = frame.run.taps
    asked = frozenset[str]() if taps is None else taps.reads - taps.filled
    if not frame.run.numbered and (taps is None or not taps.reads):
        return {}
    found: dict[str, Any] = {}
    for choice in choices:
        found |= jax.eval_shape(choice, frame.state, args)[2]
    for site in found.keys() & asked:
        raise ValueError(
            f"{kind}: cannot read {site!r}, which may not run. Say what is read where it "
            f"does not, .fill(0.0), or read the output of the {kind}."
        )
    return found


def _with_fills(choice: Choice, reads: Mapping[str, Any], state: Any, args: Any) -> Any:
    """A choice with zeros for what is read in the others, and which of all were run."""
    y, after, taken = choice(state, args)
    inside = {site: taken[site] for site in taken.keys() & reads.keys()}
    marks = {
        ran(site): jax.tree.map(_as_bool(site in inside), spec)
        for site, spec in reads.items()
        if ran(site) not in reads and not is_mark(site)
    }
    others = {site: jax.tree.map(_no, spec) for site, spec in reads.items()}
    return y, after, others | marks | inside


def _as_bool(value: bool) -> Callable[[Any], Any]:
    return lambda spec: jnp.full(spec.shape, value)


def _no(spec: Any) -> Any:
    return jnp.zeros(spec.shape, spec.dtype)


def _equal_outputs(kind: str, specs: Mapping[str, Any]) -> None:
    (first, a), *others = specs.items()
    for slot, b in others:
        if not specs_equal(a, b):
            raise ShapeError(
                kind, "choices that return one spec",
                f"{first} {show(a)}, {slot} {show(b)}", "Project them to one width.",
            )  # fmt: skip


@layer
def frozen(f: Any, *, but: Any = None, name: str | None = None) -> Any:
    """A layer whose params get no gradient.

    The gradient with respect to its params is zero, that with respect to its input is
    not touched. An optimizer may still move them (weight decay does).

    Args:
        f: a layer.
        but: a selector of params, by their paths in `f`, that are not frozen: `"**/bias"`.

    Shapes:
        As `f`'s.

    Raises:
        PathError: `but` means no param.

    Example:
        >>> import jax, jax.numpy as jnp, axonlike as al
        >>> model = al.frozen(al.dense(2))
        >>> params, state = model.init(jax.random.key(0), (None, 3))
        >>> loss = lambda params: model.predict(params, state, jnp.ones((1, 3))).sum()
        >>> float(jax.grad(loss)(params)["bias"][0])
        0.0
    """
    if not isinstance(f, Layer):
        return frozen(as_layer(f, "frozen"), but=but)

    def view(frame: Frame, params: Params) -> Params:
        return _stopped(frame, params, but)

    def run(frame: Frame, args: Any, kwargs: Any, method: str) -> PyTree:
        inner = frame.under(None, view(frame, frame.params), frame.state, inline=True)
        y = inner.call("f", args, kwargs, method)
        frame.absorb(inner)
        return y

    return wrapper(f, run, view=view)


def _stopped(frame: Frame, params: Params, but: Any) -> Any:
    """Params that pass on no gradient, but for those that are chosen."""
    stop = jax.lax.stop_gradient
    if but is None or frame.run.recorder is not None:
        return stop(params)
    found, tree = cast(Any, jax.tree_util.tree_flatten_with_path(params))
    names = own_names(frame.layer, frame.places)
    items = [
        (
            translated(jax.tree_util.keystr(keys, simple=True, separator="/"), names),
            leaf,
        )
        for keys, leaf in found
    ]
    free = choose("frozen: but", but, items, list(spots(frame.layer)))
    return tree.unflatten(
        leaf if copies and whole(copies, "frozen: but", path, leaf) else stop(leaf)
        for (path, leaf), copies in zip(items, free, strict=True)
    )


def _is_floating(dtype: Any) -> bool:
    """Whether it is the dtype of floats; what is none is not."""
    try:
        return bool(jnp.issubdtype(dtype, jnp.floating))
    except TypeError:
        return False


@layer
def mixed(
    f: Any,
    compute: Any = None,
    output: Any = None,
    *,
    params: Any = None,
    name: str | None = None,
) -> Any:
    """A layer computed in another dtype: params and inputs are cast, integers are not.

    Args:
        f: a layer.
        compute: dtype of the computation; None leaves it to the input.
        output: dtype of the output; None leaves it as computed.
        params: dtype in which `init` makes the params; None leaves it to the layers.

    Shapes:
        As `f`'s; floating-point outputs in `output`.

    Raises:
        TypeError: a dtype is not floating point.

    Example:
        >>> import jax.numpy as jnp, axonlike as al
        >>> al.mixed(al.dense(2), jnp.bfloat16).output_spec((None, 3)).dtype
        dtype(bfloat16)

    References:
        Micikevicius et al., "Mixed Precision Training", ICLR 2018.
    """
    for dtype in (compute, output, params):
        if dtype is not None and not _is_floating(dtype):
            name = getattr(dtype, "__name__", dtype)
            raise TypeError(
                f"mixed: expected a floating-point dtype, got {name}. "
                "Write jnp.bfloat16, or leave it out."
            )
    if not isinstance(f, Layer):
        return mixed(as_layer(f, "mixed"), compute, output, params=params)

    def run(frame: Frame, args: Any, kwargs: Any, method: str) -> PyTree:
        lowered = _cast_params(frame.params, compute)
        inner = frame.under(None, lowered, frame.state, inline=True)
        if _recording(frame):
            old = inner.run
            inner.run = old._replace(
                cast=compute or old.cast or params, store=params or old.store
            )
        args, kwargs = _cast((args, dict(kwargs)), compute)
        y = inner.call("f", args, kwargs, method)
        frame.absorb(inner)
        return _cast(y, output)

    def view(frame: Frame, params: Params) -> Params:
        return _cast_params(params, compute)

    return wrapper(f, run, view=view)


def _cast_params(params: Any, dtype: Any) -> Any:
    """Params in another dtype; each cast bears the path of its array in profiles."""
    if dtype is None:
        return params

    def one(keys: Any, leaf: Any) -> Any:
        with jax.named_scope(jax.tree_util.keystr(keys, simple=True, separator="/")):
            return _cast(leaf, dtype)

    return jax.tree_util.tree_map_with_path(one, params)


def _cast(tree: PyTree, dtype: Any) -> PyTree:
    if dtype is None:
        return tree

    def one(x: Any) -> Any:
        floating = hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jnp.floating)
        return x.astype(dtype) if floating and x.dtype != dtype else x

    return jax.tree.map(one, tree)


# --- what they share


def pass_index(frame: Frame, n: Any) -> Any:
    """Numbers to tell the passes apart, if a key below would be folded with them."""
    run = frame.run
    drawn = run.key is not None and frame.layer.uses_key
    if run.recorder is not None or not (drawn or run.numbered):
        return None
    return jnp.arange(n, dtype=jnp.uint32)


def copy_index(frame: Frame, n: int) -> Any:
    """Numbers to tell copies apart, if edits below are for some of them only."""
    taps = frame.run.taps
    return jnp.arange(n, dtype=jnp.uint32) if taps and taps.indexed else None


def _recording(frame: Frame) -> bool:
    """Whether this is init's pass over shapes, in which state is made, not changed."""
    return frame.run.recorder is not None


def _remat(function: Any, policy: Any, *, in_scan: bool = False) -> Any:
    if policy is None or policy is False:
        return function
    chosen = None if policy is True else policy
    return cast(Any, jax.checkpoint(function, policy=chosen, prevent_cse=not in_scan))


def _apart(tree: PyTree) -> tuple[list[Any], Callable[[list[Any]], Any]]:
    """The arrays of a tree, and how to put it together with others in their place.

    What is no array (a flag, None) stays out of what JAX transforms.
    """
    leaves, structure = cast(Any, jax.tree.flatten(tree))
    where = [i for i, leaf in enumerate(leaves) if hasattr(leaf, "dtype")]

    def together(arrays: list[Any]) -> Any:
        new = dict(zip(where, arrays, strict=True))
        return structure.unflatten([new.get(i, x) for i, x in enumerate(leaves)])

    return [leaves[i] for i in where], together


def keep(frame: Frame, state: dict[str, Any], taken: Mapping[str, Any]) -> None:
    """New state and reads that came out of a transformed function."""
    frame.taken.update(taken)
    if not _recording(frame):  # in which state is made, not changed
        kept = {k: v for k, v in state.items() if k in frame.state or v != {}}
        if kept or frame.state:
            frame.state = check_state(frame.state, kept, frame.layer.kind)
    if frame.is_read:
        raise Stop


def _is(after: Any, before: Any) -> bool:
    pairs = zip(jax.tree.leaves(after), jax.tree.leaves(before), strict=True)
    return all(a is b for a, b in pairs)


def _check_stack(trees: Any, n: int) -> None:
    for leaf in jax.tree.leaves(trees):
        if leaf.ndim == 0 or leaf.shape[0] != n:
            raise ShapeError(
                "stacked params", f"a leading axis of {n}", show(leaf),
                "Pass the trees that init returned.",
            )  # fmt: skip


def specs_equal(a: PyTree, b: PyTree) -> bool:
    """Whether two trees have one structure, and their leaves one shape and dtype."""
    ours = cast(Any, jax.tree.flatten(a))
    theirs = cast(Any, jax.tree.flatten(b))
    return ours[1] == theirs[1] and all(map(_same_leaf, ours[0], theirs[0]))


def _same_leaf(a: Any, b: Any) -> bool:
    if not (hasattr(a, "shape") and hasattr(b, "shape")):
        return type(a) is type(b)
    return same(a, b)


def same_spec(kind: str, before: PyTree, after: PyTree, what: str = "") -> None:
    """Refuses what does not come out as it came in."""
    if not isinstance(before, Unknown) and not specs_equal(before, after):
        raise ShapeError(
            kind, f"{what}{show(before)} out, as it came in", show(after),
            "What is run again on its own output must keep its shape and dtype.",
        )  # fmt: skip


OPERATORS["repeat"] = repeat
