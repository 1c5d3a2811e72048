"""Combinators over a time axis: `scan`, `bidirectional`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from axonlike.combinators.basic import wrapper
from axonlike.combinators.lifted import (
    copy_index,
    frozen,
    keep,
    mixed,
    pass_index,
    remat,
    same_spec,
    specs_equal,
)
from axonlike.combinators.recurrence import recurrence
from axonlike.combinators.sequences import (
    Sequences,
    by_time,
    last_step,
    sequences,
    unless,
    valid_steps,
    where,
    zero_unless,
)
from axonlike.errors import ShapeError
from axonlike.frame import Frame
from axonlike.layer import Layer, Node, as_layer, layer
from axonlike.leaf import first_step
from axonlike.names import given
from axonlike.spec import show
from axonlike.types import PyTree


@layer
def scan(
    cell: Any,
    *,
    axis: int = 1,
    reverse: bool = False,
    return_carry: bool = False,
    return_sequence: bool = True,
    unroll: int = 1,
    name: str | None = None,
) -> Any:
    """A recurrent cell over time.

    A cell is a layer that maps `(carry, x)` to `(carry, y)` and has an `initial_carry`;
    its `project`, if it has one, is computed for all steps at once, and the gradients of
    its `recur` are. Adds no level to paths.

    The input is a sequence. A dict with an `"x"` is the inputs by name, the others of
    which are optional: `{"x": x, "lengths": n}`, and `sub.rnn(x, lengths=n)` in a wire. A
    step that `lengths` or `mask` leaves out keeps the carry, whatever the padding holds;
    its output is zero. So the last carry is that of each example's last step, and
    `reverse` begins with it.

    An initial carry to learn is an `al.parameter` in a wire, given as `initial_carry`.

    Args:
        cell: such as `lstm_cell(64)`.
        axis: the time axis of the input and output, from 0 on; 0 where time is first.
        reverse: from the last step to the first; outputs stay at their places.
        return_carry: also return the last carry.
        return_sequence: the outputs of all steps, or only that of the last one.
        unroll: steps per iteration of the loop.

    Shapes:
        x: `(batch, time, ...)` for axis 1, or a pytree of those.
        initial_carry: as the cell's, `(batch, ...)`.
        lengths: `(batch,)`, integers: each example's number of steps.
        mask: `(batch, time)` for axis 1, bool: true at the steps that count.
        reset: `(batch, time)` for axis 1, bool: true at the steps before which the carry
            is put back to the initial one.
        output: `(batch, time, ...)`, or `(batch, ...)` without the sequence; with the
            carry a tuple `(output, carry)`.

    Raises:
        TypeError: the layer is not a cell, or an input has an unknown name.
        ShapeError: the input has no such axis, a step changes the carry's spec, or
            lengths or masks do not fit the sequence.

    Example:
        >>> import jax, jax.numpy as jnp, axonlike as al
        >>> rnn = al.scan(al.lstm_cell(8), return_sequence=False)
        >>> params, state = rnn.init(jax.random.key(0), al.spec("b t 4"))
        >>> batch = {"x": jnp.ones((2, 5, 4)), "lengths": jnp.array([5, 3])}
        >>> rnn.predict(params, state, batch).shape
        (2, 8)
    """
    if not isinstance(cell, Layer):
        return scan(
            as_layer(cell, "scan"),
            axis=axis,
            reverse=reverse,
            return_carry=return_carry,
            return_sequence=return_sequence,
            unroll=unroll,
        )
    has, once = _methods(cell)

    def run(frame: Frame, args: Any, kwargs: Any, method: str) -> PyTree:
        inputs = by_time(sequences("scan", args, kwargs), axis)
        valid, reset = valid_steps(inputs), inputs.reset
        xs = inputs.x if valid is None else zero_unless(valid, inputs.x)
        start = _start(frame, inputs.initial_carry, xs)
        if "project" in has:
            xs = frame.call("f", (xs,), {}, "project")
        elif frame.run.recorder is not None:
            first = frame.under()
            first.call("f", (start, jax.tree.map(first_step, xs)))
            frame.absorb(first)
        bulk = once and reset is None and _is_smooth(frame, start, xs)
        bulk = bulk and not frame.run.stepwise
        run_steps = _run_at_once if bulk else _run_each
        ys, last = run_steps(
            frame, has, start, xs, (valid, reset), reverse=reverse, unroll=unroll
        )
        if return_sequence:
            ys = jax.tree.map(partial(jnp.moveaxis, source=0, destination=axis), ys)
        else:
            ys = jax.tree.map(partial(last_step, valid=valid, reverse=reverse), ys)
        return (ys, last) if return_carry else ys

    return wrapper(cell, run)


def _run_each(
    frame: Frame, has: Any, start: Any, xs: Any, fixed: Any, **options: Any
) -> tuple[Any, Any]:
    """Every step through the door, with its state, keys, reads and edits."""
    length = jax.tree.leaves(xs)[0].shape[0]

    def step(carry: Any, each: Any) -> Any:
        (carry, state), (x, (valid, reset), index, number) = carry, each
        inner = frame.under(
            None, frame.params, state, index=index, axis=(number, length)
        )
        before = carry if reset is None else where(reset, start, carry)
        if "recur" in has:
            x = inner.call("f", (before, x), {}, "recur")
        after, y = inner.call("f", (before, x), {}, "step")
        same_spec("scan", carry, after, "the carry ")
        after, y = unless(valid, carry, after, y)
        return (after, inner.state), (y, inner.taken)

    each = (xs, fixed, pass_index(frame, length), copy_index(frame, length))
    (last, state), (ys, taken) = cast(Any, jax.lax.scan)(
        step, (start, frame.state), each, **options
    )
    keep(frame, state, taken)
    return ys, last


def _run_at_once(
    frame: Frame, has: Any, start: Any, xs: Any, fixed: Any, **options: Any
) -> tuple[Any, Any]:
    """The same for a cell that says which part of a step has the weights."""
    bare = _bare(frame)

    def call(params: Any, carry: Any, x: Any, method: str) -> Any:
        return bare.under(None, params).call("f", (carry, x), {}, method)

    def after(params: Any, carry: Any, z: Any, fixed: Any) -> Any:
        new, y = call(params, carry, z, "step")
        same_spec("scan", carry, new, "the carry ")
        return unless(fixed[0], carry, new, y)

    before = partial(call, method="recur")
    last, ys = recurrence(before, after, frame.params, start, xs, fixed, **options)
    return ys, last


def _bare(frame: Frame) -> Frame:
    """A frame that holds on to no array, for what JAX keeps: a rule of derivation."""
    run = frame.run._replace(key=None, taps=None)
    bare = Frame(frame.layer, run, {}, {}, frame.places, frame.site, frame.keypath)
    bare.given, bare.trail = jax.tree.map(_spec_of, (frame.given, frame.trail))
    return bare


def _spec_of(x: Any) -> Any:
    return jax.ShapeDtypeStruct(x.shape, x.dtype) if hasattr(x, "dtype") else x


def _is_smooth(frame: Frame, start: Any, xs: Any) -> bool:
    """Whether there are params, carry and sequence to take derivatives for."""
    leaves = jax.tree.leaves((frame.params, start, xs))
    smooth = all(jnp.issubdtype(a.dtype, jnp.inexact) for a in leaves)
    return smooth and frame.run.recorder is None


def _methods(cell: Layer) -> tuple[Mapping[str, Any], bool]:
    """What a cell can do, and whether the gradients of its `recur` may be put together.

    Wrappers that change no value can do what the cell can; `remat` is to save memory.
    """
    body, bulk = cell, True
    while body.transparent:
        if body.factory not in (remat, frozen, mixed):
            raise TypeError(
                f"scan: {cell.headline} is not a cell, though what it wraps may be one. "
                f"Write {cell.kind}(scan(...)) around the whole sequence."
            )
        bulk = bulk and body.factory is not remat
        body = body.children["f"]
    if "initial_carry" not in body.methods:
        raise TypeError(
            f"scan: {cell.headline} is not a cell: it has no initial_carry. "
            "Use a cell such as lstm_cell(64), or return al.Cell(...) from your factory."
        )
    return body.methods, bulk and _is_pure(body.methods)


def _is_pure(methods: Mapping[str, Any]) -> bool:
    """Whether nothing but params, carry and sequence goes into a step or out of it."""
    steps = [methods[name][1] for name in ("recur", "step") if name in methods]
    asked = frozenset[str]().union(*(sig.services for sig in steps))
    return "recur" in methods and not asked & {"state", "key", "emit"}


def _start(frame: Frame, carry: Any, xs: Any) -> Any:
    """The carry before the first step: the cell's own, or one of the same spec."""
    own = frame.call("f", (jax.tree.map(first_step, xs),), {}, "initial_carry")
    if carry is not None and not specs_equal(carry, own):
        raise ShapeError(
            "scan", f"initial_carry {show(own)}", show(carry),
            "Its batch and width are those of the sequence and the cell.",
        )  # fmt: skip
    return own if carry is None else carry


# --- both directions


@layer
def bidirectional(
    f: Any,
    b: Any = None,
    *,
    axis: int = 1,
    merge_fn: Callable[[Any, Any], Any] | None = None,
    return_sequence: bool = True,
    name: str | None = None,
) -> Any:
    """A layer over time and another over reversed time, their outputs joined.

    The input is a sequence, or inputs by name as `scan` takes them, with a pair of carries,
    one for each direction. Padding stays padding: the second layer begins with each
    example's last step. Outputs of both directions stand at the step that they are of.

    Args:
        f: a layer over sequences, such as `lstm(64)`; at path `forward`.
        b: the one that sees time reversed, at path `backward`; None for one like `f`,
            with its own weights.
        axis: the time axis.
        merge_fn: of the two outputs, `jnp.add` for instance; None joins their last axes.
        return_sequence: the outputs of all steps, or the last one of each direction.

    Shapes:
        x: `(batch, time, ...)`, and the other inputs of `scan`.
        output: `(batch, time, f's width + b's width)`; `(batch, ...)` without the
            sequence; `(output, (f's carry, b's carry))` if the layers return carries.

    Raises:
        TypeError: an input has an unknown name.
        ShapeError: a direction returns something else than one array over time, or only
            one of them a carry.

    Example:
        >>> import axonlike as al
        >>> al.bidirectional(al.gru(8)).output_spec(al.spec("b t 4")).shape
        (b, t, 16)

    References:
        Schuster and Paliwal, "Bidirectional recurrent neural networks", IEEE 1997.
    """
    if not isinstance(f, Layer) or not isinstance(b, Layer) or f.name or b.name:
        first = as_layer(f, "bidirectional").named(None)
        second = first if b is None else as_layer(b, "bidirectional").named(None)
        return bidirectional(
            first,
            second,
            axis=axis,
            merge_fn=merge_fn,
            return_sequence=return_sequence,
        )

    def run(frame: Frame, args: Any, kwargs: Any, method: str) -> PyTree:
        inputs = sequences("bidirectional", args, kwargs)
        carries = _pair(inputs.initial_carry)
        y, carry = _side(frame, "forward", inputs, carries[0], axis)
        padded = inputs.lengths is not None or inputs.mask is not None
        valid = valid_steps(by_time(inputs, axis)) if padded else None
        back = _flipped(inputs, valid, axis)
        z, other = _side(frame, "backward", back, carries[1], axis)
        if return_sequence:
            z = jnp.flip(z, axis)
        else:
            flipped = None if valid is None else jnp.flip(valid, 0)
            y = last_step(jnp.moveaxis(y, axis, 0), valid=valid, reverse=False)
            z = last_step(jnp.moveaxis(z, axis, 0), valid=flipped, reverse=False)
        joined = jnp.concatenate([y, z], -1) if merge_fn is None else merge_fn(y, z)
        return joined if carry is None else (joined, (carry, other))

    children = {"forward": f, "backward": b}
    places = {slot: given(slot, child) for slot, child in children.items()}
    return Node(run, children, places)


def _pair(carries: Any) -> tuple[Any, Any]:
    """One carry for each direction."""
    if carries is None:
        return None, None
    if isinstance(carries, (tuple, list)) and len(cast("list[Any]", carries)) == 2:
        return tuple(cast("list[Any]", carries))
    raise TypeError(
        f"bidirectional: expected a pair of carries as initial_carry, got {show(carries)}. "
        "Give one for each direction."
    )


def _flipped(inputs: Sequences, valid: Any, axis: int) -> Sequences:
    """Inputs in reversed time, padding first.

    A sequence that begins anew at a step ends there for the way back: the carry is new
    before the step in front of it.
    """
    flip, rows = partial(jnp.flip, axis=axis), partial(jnp.flip, axis=1 if axis else 0)
    if valid is not None:
        valid = rows(jnp.moveaxis(valid, 0, 1) if axis else valid)
    reset = inputs.reset
    if reset is not None:
        at = 1 if axis else 0
        ends = jnp.roll(reset, -1, at)
        last = jax.lax.broadcasted_iota(np.int32, reset.shape, at)
        reset = rows(ends & (last < reset.shape[at] - 1))
    return Sequences(jax.tree.map(flip, inputs.x), None, None, valid, reset)


def _side(
    frame: Frame, slot: str, inputs: Sequences, carry: Any, axis: int
) -> tuple[Any, Any]:
    """One direction's output and, if the layer returns it, carry."""
    named = inputs._replace(x=None, initial_carry=carry)._asdict()
    more = {name: value for name, value in named.items() if value is not None}
    y, last = _output(frame.call(slot, (inputs.x,), more))
    time = jax.tree.leaves(inputs.x)[0].shape[axis]
    if not hasattr(y, "ndim") or y.ndim <= axis or y.shape[axis] != time:
        raise ShapeError(
            "bidirectional", f"one array over time from {slot}", show(y),
            "Use layers that return sequences.",
        )  # fmt: skip
    return y, last


def _output(made: Any) -> tuple[Any, Any]:
    """An output and the carry that may come with it."""
    pair = isinstance(made, tuple) and len(cast("tuple[Any, ...]", made)) == 2
    return cast("tuple[Any, Any]", made if pair else (made, None))
