"""The contract of a layer, checked in one call: for these layers and for your own."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from axonlike.evaluation import evaluate
from axonlike.frame import Run, Taps
from axonlike.layer import Layer
from axonlike.spec import as_spec, is_unknown, names_of, show, size_of
from axonlike.types import Key, Params, PyTree, State

__all__ = ["check_layer"]

# JAX's own annotations are partial: these are taken as untyped.
_jax = cast(Any, jax)
_tree = _jax.tree

Inputs = Callable[[np.random.Generator, PyTree], PyTree]
_TOLERANCE = {"float32": 1e-4, "complex64": 1e-4, "float64": 1e-9, "complex128": 1e-9}
_FAST_COMPILE = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
}


def check_layer(
    layer: Layer,
    spec: PyTree,
    *,
    mixes_examples: bool = False,
    draws_in_inference: bool = False,
    keeps_dtype: bool = True,
    gradients: Sequence[str] = ("params", "inputs"),
    inputs: Inputs | None = None,
    sizes: Sequence[Mapping[str, int]] | None = None,
) -> None:
    """Checks that a layer keeps the contract of layers: raises, or returns None.

    - init: the same key gives the same weights, whatever the unknown sizes are and
      whatever the input's dtype is; another key gives others, if any are drawn.
    - prediction: `output_spec` is the spec of what `apply` returns, at several sizes.
    - jit: equals eager.
    - examples: in inference, each example's output depends on that example alone.
    - gradients: reverse and forward ones equal finite differences, in float64.
    - randomness: the same key gives the same output; without a key nothing is drawn in
      inference, and nothing ever by a layer that does not ask for a key. What draws in
      training uses its key: another gives another output, none an error.
    - dtypes: bfloat16 in gives bfloat16 out, float64 in gives float64 out.
    - capture: no array that was made outside of `apply` is used in it.
    - purity: params, state and inputs stay as they were; NumPy arrays are inputs too.
    - state: comes out with the structure, shapes and dtypes it came in with.
    - taps: reads and edits that are not asked for leave nothing in the computation.

    Args:
        layer: any layer.
        spec: of its input, as for `init`; with named or unknown sizes (`"b 8"`) more is
            checked than at fixed ones.
        mixes_examples: whether the output for one example may depend on the others. One
            example is one step along the first axis of the first input, and along every
            axis of that name.
        draws_in_inference: whether it uses its key, if given one, in inference too.
        keeps_dtype: whether the output is in the dtype of floating-point inputs.
        gradients: which gradients are those of the function: "params", "inputs". Leave
            out what is stopped or replaced on purpose.
        inputs: `inputs(rng, spec)` makes input values, from a `numpy.random.Generator`
            and a pytree of `jax.ShapeDtypeStruct`; None for normal floats, and for
            integers and bools 0 or 1.
        sizes: values of the unknown sizes by name, for each run; None for two runs.

    Shapes:
        spec: whatever the layer takes, leaves with a shape and a dtype.

    Raises:
        AssertionError: the layer breaks the contract; says which layer and law, what was
            expected and what was found.

    Example:
        >>> import jax.numpy as jnp, axonlike as al
        >>> from axonlike.testing import check_layer
        >>> check_layer(al.dense(3), al.spec("b 4"))
        >>> check_layer(al.lift(lambda x: x - x.mean(0, keepdims=True)), "b 4")
        Traceback (most recent call last):
        AssertionError: <lambda ...>: examples: expected each example's output to ...
    """
    specs = as_spec(spec)
    given = _sizes(specs) if sizes is None else [dict(choice) for choice in sizes]
    make = inputs or _values
    xs = [make(np.random.default_rng(7), _sized(specs, choice)) for choice in given]
    subject = _Subject(
        layer, specs, given, _tree.map(jnp.asarray, xs), mixes_examples,
        draws_in_inference, keeps_dtype, tuple(gradients),
    )  # fmt: skip
    for law in _LAWS:
        try:
            law(subject)
        except Exception as error:
            raise AssertionError(_broken(layer, law.__name__, error)) from (
                error.__cause__ if isinstance(error, _BrokenError) else error
            )


class _BrokenError(Exception):
    """A law does not hold: what it expects, what was found."""


def _broken(layer: Layer, law: str, error: Exception) -> str:
    name = law.strip("_")
    if isinstance(error, _BrokenError):
        expected, got = error.args
        return f"{layer.headline}: {name}: expected {expected}, got {got}."
    got = f"{type(error).__name__}: {error}"
    return f"{layer.headline}: {name}: expected it to run, got {got}"


@dataclass
class _Subject:
    """A layer with everything that the laws run it on."""

    layer: Layer
    specs: PyTree
    sizes: list[dict[str, int]]
    xs: list[PyTree]
    mixes_examples: bool
    draws_in_inference: bool
    keeps_dtype: bool
    wrt: tuple[str, ...]
    params: Params = field(default_factory=dict[str, Any])
    state: State = field(default_factory=dict[str, Any])
    runs: list[Run] = field(default_factory=list[Run])
    eager: list[Any] = field(default_factory=list[Any])

    @property
    def x(self) -> PyTree:
        return self.xs[0]

    @property
    def key(self) -> Key | None:
        return _jax.random.key(1) if self.layer.uses_key else None

    def apply(self, run: Run, x: PyTree, params: Any = None, state: Any = None) -> Any:
        """`(y, state)` in a mode; own params and state where none are given."""
        params = self.params if params is None else params
        state = self.state if state is None else state
        call = partial(self.layer.apply, key=run.key, train=run.train)
        return call(params, state, x)

    def traced(self, run: Run) -> Any:
        """The jaxpr of `apply`, params, state, x and key being its arguments."""

        def function(params: Any, state: Any, x: Any, key: Any) -> Any:
            now = run._replace(key=key)
            return evaluate(self.layer, params, state, x, now)[:2]

        given = (self.params, self.state, self.x, run.key)
        return _jax.make_jaxpr(function)(*given)


# --- the laws


def _init(s: _Subject) -> None:
    key = _jax.random.key(0)
    s.params, s.state = s.layer.init(key, s.specs)
    made = (s.params, s.state)
    for sizes in s.sizes:
        again = s.layer.init(key, _sized(s.specs, sizes))
        _check_equal("the same weights from the same key", made, again)
    if s.keeps_dtype:
        half = s.layer.init(key, _tree.map(_half, _sized(s.specs, s.sizes[0])))
        _check_specs("params of the same dtypes from bfloat16", made, half)
    other = s.layer.init(_jax.random.key(1), s.specs)
    drawn = _draws(_jax.make_jaxpr(partial(_init_of, s))(key).jaxpr, _NUMBERS)
    if drawn and _same(made, other):
        raise _BrokenError("other weights from another key", "the same")
    shapes = _jax.eval_shape(partial(_init_of, s), key)
    _check_specs("the shapes that _jax.eval_shape(init) says", shapes, made)
    s.runs = [Run()]
    training = Run(s.key, train=True)
    if _text(s.traced(training)) != _text(s.traced(Run())):
        s.runs.append(training)
    s.eager = [s.apply(run, s.x) for run in s.runs]


def _prediction(s: _Subject) -> None:
    predicted = s.layer.output_spec(s.specs)
    for sizes, x in zip(s.sizes, s.xs, strict=True):
        at = f"output_spec's prediction at sizes {sizes}" if sizes else "output_spec's"
        wanted = _sized(predicted, sizes)
        _check_specs(at, wanted, s.layer.output_spec(_sized(s.specs, sizes)))
        for run in s.runs:
            _check_specs(at, wanted, _jax.eval_shape(partial(s.apply, run), x)[0])
    for y, _ in s.eager:
        wanted = _sized(predicted, s.sizes[0])
        _check_specs("output_spec's prediction", wanted, y)


def _init_of(s: _Subject, key: Key) -> Any:
    return s.layer.init(key, s.specs)


def _jit(s: _Subject) -> None:
    fast = _jax.jit(s.layer.apply, static_argnames="train")
    for run, eager in zip(s.runs, s.eager, strict=True):
        made = fast(s.params, s.state, s.x, key=run.key, train=run.train)
        _check_close("what apply returns without jit", eager, made)


def _examples(s: _Subject) -> None:
    leaves, tree = _tree.flatten(s.specs)
    if s.mixes_examples or not leaves or not leaves[0].shape:
        return
    axes = _axes(leaves, leaves[0].shape[0])
    outs = _tree.leaves(s.layer.output_spec(s.specs))
    out_axes = [axis or 0 for axis in _axes(outs, leaves[0].shape[0])]

    def one(*parts: Any) -> list[Any]:
        pairs = zip(parts, axes, strict=True)
        whole = [p if a is None else jnp.expand_dims(p, a) for p, a in pairs]
        y = s.layer.predict(s.params, s.state, _tree.unflatten(tree, whole))
        found = zip(_tree.leaves(y), out_axes, strict=True)
        return [jnp.take(part, 0, axis) for part, axis in found]

    arrays = _tree.leaves(s.x)
    batch = _jax.jit(_jax.vmap(one, tuple(axes), out_axes))(*arrays)
    wanted = "each example's output to depend on it alone (or mixes_examples=True)"
    _check_close(wanted, batch, _tree.leaves(s.apply(s.runs[0], s.x)[0]))
    pairs = list(zip(arrays, axes, strict=True))
    others = [a if axis is None else _others(a, axis) for a, axis in pairs]
    for run in s.runs if not s.layer.uses_key else s.runs[:1]:
        if run.train and s.state:
            continue
        found = [
            [
                jnp.take(part, 0, axis)
                for part, axis in zip(_tree.leaves(y), out_axes, strict=True)
            ]
            for y, _ in (s.apply(run, s.x), s.apply(run, _tree.unflatten(tree, others)))
        ]
        _check_equal(wanted, *found)


def _gradients(s: _Subject) -> None:
    with jax.enable_x64(True):
        x = _tree.map(_to(jnp.float64), s.x)
        whole = {"params": _tree.map(_to(jnp.float64), s.params), "inputs": x}
        leaves, tree = cast(Any, jax.tree_util.tree_flatten_with_path(whole))
        names = [_name(path) for path, _ in leaves]
        arrays = [leaf for _, leaf in leaves]
        chosen = [
            i
            for i, (name, a) in enumerate(zip(names, arrays, strict=True))
            if name.split("/")[0] in s.wrt and _is_float(a) and a.size
        ]
        for run in s.runs if chosen else []:

            def outputs(some: list[Any], run: Run = run) -> list[Any]:
                full = list(arrays)
                for i, array in zip(chosen, some, strict=True):
                    full[i] = array
                both = _tree.unflatten(tree, full)
                return _parts(s.apply(run, both["inputs"], both["params"])[0])

            found = _slopes(outputs, [arrays[i] for i in chosen])
            _check_slopes([names[i] for i in chosen], *found)


def _randomness(s: _Subject) -> None:
    for run, eager in zip(s.runs, s.eager, strict=True):
        if run.key is None and _draws(s.traced(run).jaxpr):
            kind = "training" if run.train else "inference"
            raise _BrokenError(
                f"no random numbers in {kind} without a key", "some drawn"
            )
        again = s.apply(run, s.x)
        _check_equal("the same output from the same inputs and key", eager, again)
        drawn = s.layer.uses_key and _draws(s.traced(run).jaxpr, _NUMBERS)
        if drawn and run.key is not None:
            _check_draws(s, run, eager)
    if s.layer.uses_key and not s.draws_in_inference:
        keyed = s.apply(Run(s.key), s.x)
        wanted = (
            "the same inference with and without a key (or draws_in_inference=True)"
        )
        _check_equal(wanted, s.eager[0], keyed)


def _check_draws(s: _Subject, run: Run, eager: Any) -> None:
    """What draws, draws with its key: another gives another output, none an error."""
    if _same(eager, s.apply(run._replace(key=_jax.random.key(6)), s.x)):
        raise _BrokenError("another output from another key", "the same")
    try:
        s.apply(run._replace(key=None), s.x)
    except Exception:
        return
    raise _BrokenError("an error in training without a key", "an output")


def _dtypes(s: _Subject) -> None:
    floats = any(map(_is_float, jax.tree.leaves(s.x)))
    for run, eager in zip(s.runs if floats else [], s.eager, strict=False):
        if s.keeps_dtype:
            _check_dtype(s, run, jnp.bfloat16)
        with jax.enable_x64(True):
            y = _check_dtype(s, run, jnp.float64)
            if run.key is None and s.keeps_dtype:
                single, double = _tree.map(_widest, (eager[0], y))
                _check_close("what float32 gives", single, double, 1e-3)


def _check_dtype(s: _Subject, run: Run, dtype: Any) -> PyTree:
    y, state = _jax.jit(partial(s.apply, run))(_tree.map(_to(dtype), s.x))
    _check_specs("the state's own dtypes", s.state, state)
    for leaf in _tree.leaves(y):
        if s.keeps_dtype and _is_float(leaf) and leaf.dtype != dtype:
            wanted = f"{np.dtype(dtype).name} out (or keeps_dtype=False)"
            raise _BrokenError(
                f"{np.dtype(dtype).name} in to give {wanted}", show(leaf)
            )
    return y


def _capture(s: _Subject) -> None:
    for run in s.runs:
        first, second = (list(_consts(s.traced(run))) for _ in range(2))
        for a, b in zip(first, second, strict=False):
            outside = isinstance(a, jax.Array) or np.shares_memory(
                np.asarray(a), np.asarray(b)
            )
            if (a.size > 1 or isinstance(a, jax.Array)) and outside:
                raise _BrokenError(
                    "no array from outside of apply (return it from init, or make it "
                    "in apply)",
                    show(a),
                )


def _purity(s: _Subject) -> None:
    for run, eager in zip(s.runs, s.eager, strict=True):
        given = (s.params, s.state, jax.tree.map(np.array, s.x))
        before = jax.tree.map(_itself, given)
        values = jax.tree.map(np.array, given)
        made = s.apply(run, given[2])
        _check_close("from NumPy arrays what other arrays give", eager, made)
        same = _tree.structure(given) == _tree.structure(before)
        kept = zip(*map(jax.tree.leaves, (given, before)), strict=False)
        if not same or not all(a is b for a, b in kept):
            raise _BrokenError(
                "params, state and inputs as they were", "others in them"
            )
        after = jax.tree.map(np.asarray, given)
        _check_equal("params, state and inputs as they were", values, after)


def _state(s: _Subject) -> None:
    for _, state in s.eager:
        _check_specs("state as it came in", s.state, state)


def _zeros_like(a: Any) -> Any:
    return jnp.zeros_like(a)


def _taps(s: _Subject) -> None:
    nowhere = frozenset(["nothing is called this"])
    for run in s.runs:
        with jax.checking_leaks():
            plain = _text(s.traced(run))
        edits: Any = {site: _zeros_like for site in nowhere}
        taps = Taps(reads=nowhere, edits=edits)
        if _text(s.traced(run._replace(taps=taps))) != plain:
            raise _BrokenError("one computation with and without unused taps", "two")


_LAWS = (
    _init, _prediction, _jit, _examples, _gradients, _randomness, _dtypes, _capture,
    _purity, _state, _taps,
)  # fmt: skip


# --- sizes and values


def _sizes(specs: PyTree) -> list[dict[str, int]]:
    """Two choices for the unknown sizes: small ones, all different."""
    shapes = [leaf.shape for leaf in _tree.leaves(specs)]
    dims = [str(dim) for shape in shapes for dim in shape if is_unknown(dim)]
    names = list(dict.fromkeys(name for dim in dims for name in names_of(dim)))
    if not names:
        return [{}]
    rest = names[1:]
    return [
        {names[0]: first, **{name: first + 4 + 2 * i for i, name in enumerate(rest)}}
        for first in (2, 3)
    ]


def _sized(specs: PyTree, sizes: Mapping[str, int]) -> PyTree:
    """Specs with numbers for unknown sizes."""

    def one(spec: Any) -> Any:
        shape = tuple(_known_size(dim, sizes) for dim in spec.shape)
        return jax.ShapeDtypeStruct(shape, spec.dtype)

    return _tree.map(one, specs)


def _known_size(dim: Any, sizes: Mapping[str, int]) -> int:
    """The value of a symbolic dim, from its text: JAX documents no other way."""
    return int(size_of(str(dim), sizes) if is_unknown(dim) else dim)


def _values(rng: np.random.Generator, specs: PyTree) -> PyTree:
    def one(spec: Any) -> Any:
        if jnp.issubdtype(spec.dtype, jnp.inexact):
            values = cast(Any, rng.standard_normal(spec.shape))
        else:
            values = cast(Any, rng.integers(0, 2, spec.shape))
        return np.asarray(values).astype(spec.dtype)

    return _tree.map(one, specs)


def _axes(specs: list[Any], dim: Any) -> list[int | None]:
    """Which axis of each array runs over the examples."""
    if not is_unknown(dim):
        return [0 if spec.shape else None for spec in specs]
    shapes = [list(spec.shape) for spec in specs]
    return [shape.index(dim) if dim in shape else None for shape in shapes]


def _itself(leaf: Any) -> Any:
    return leaf


def _half(spec: Any) -> Any:
    dtype = jnp.bfloat16 if _is_float(spec) else spec.dtype
    return jax.ShapeDtypeStruct(spec.shape, dtype)


def _widest(array: Any) -> Any:
    """In 64 bits: whole numbers too, whose width JAX lets depend on that of floats."""
    if _is_float(array):
        return jnp.asarray(array, jnp.float64)
    integer = jnp.issubdtype(array.dtype, jnp.integer)
    return jnp.asarray(array, jnp.int64) if integer else array


def _others(array: Any, axis: int) -> Any:
    """The first example as it is, the others exchanged for what they are not."""
    first = jnp.take(array, jnp.array([0]), axis)
    rest = jnp.take(array, jnp.arange(array.shape[axis])[:0:-1], axis)
    if _is_float(array):
        rest = rest + jnp.ones((), rest.dtype)
    return jnp.concatenate([first, rest], axis)


def _same(a: PyTree, b: PyTree) -> bool:
    pairs = zip(*map(_tree.leaves, (a, b)), strict=True)
    return all(bool(jnp.array_equal(x, y)) for x, y in pairs)


def _is_float(array: Any) -> bool:
    return bool(jnp.issubdtype(array.dtype, jnp.floating))


def _to(dtype: Any) -> Callable[[Any], Any]:
    def cast_(array: Any) -> Any:
        return jnp.asarray(array, dtype) if _is_float(array) else array

    return cast_


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


# --- slopes: one number an array, of a random sum of the outputs


def _parts(y: PyTree) -> list[Any]:
    """The real numbers in an output, as arrays."""
    arrays = [jnp.asarray(a) for a in _tree.leaves(y)]
    split = [a for a in arrays if jnp.issubdtype(a.dtype, jnp.complexfloating)]
    reals = [a for a in arrays if _is_float(a)]
    return reals + [part for a in split for part in (jnp.real(a), jnp.imag(a))]


def _slopes(outputs: Callable[[list[Any]], list[Any]], at: list[Any]) -> Any:
    """Along a random direction of each array: differences, reverse, forward or None."""
    rng = np.random.default_rng(11)
    ways = [jnp.asarray(rng.standard_normal(a.shape)) for a in at]
    weights = [
        jnp.asarray(rng.standard_normal(y.shape)) for y in _jax.eval_shape(outputs, at)
    ]
    forward = "custom_vjp" not in _text(_jax.make_jaxpr(outputs)(at))
    step, rows = 1e-6, jnp.eye(len(at))

    def value(arrays: list[Any]) -> Any:
        pairs = zip(weights, outputs(arrays), strict=True)
        return sum((jnp.sum(w * y) for w, y in pairs), jnp.zeros(()))

    def moved(row: Any) -> Any:
        return value(
            [a + row[i] * w for i, (a, w) in enumerate(zip(at, ways, strict=True))]
        )

    def along(row: Any) -> Any:
        return _jax.jvp(value, (at,), ([row[i] * w for i, w in enumerate(ways)],))[1]

    def all_three() -> Any:
        ups, downs = (_jax.lax.map(moved, sign * step * rows) for sign in (1, -1))
        back = [jnp.sum(g * w) for g, w in zip(_jax.grad(value)(at), ways, strict=True)]
        ahead = _jax.lax.map(along, rows) if forward else None
        return (ups - downs) / (2 * step), jnp.stack(back), ahead

    return _jax.jit(all_three, compiler_options=_FAST_COMPILE)()


def _check_slopes(names: list[str], wanted: Any, reverse: Any, forward: Any) -> None:
    for mode, found in (("reverse", reverse), ("forward", forward)):
        for name, a, b in zip(
            names, wanted, found if found is not None else wanted, strict=True
        ):
            if not abs(a - b) <= 1e-4 * max(abs(a), abs(b)) + 1e-6:
                raise _BrokenError(
                    f"the {mode} gradient of {name} to be the finite difference "
                    f"{float(a):.6g} (or leave it out of gradients=)",
                    f"{float(b):.6g}",
                )


# --- comparisons


def _check_specs(what: str, wanted: PyTree, got: PyTree) -> None:
    ours, theirs = _tree.leaves(wanted), _tree.leaves(got)
    alike = _tree.structure(wanted) == _tree.structure(got)
    if not alike or list(map(show, ours)) != list(map(show, theirs)):
        raise _BrokenError(f"{what}, {show(wanted)}", show(got))


def _check_equal(what: str, wanted: PyTree, got: PyTree) -> None:
    _check_close(what, wanted, got, 0.0)


def _check_close(
    what: str, wanted: PyTree, got: PyTree, tolerance: float | None = None
) -> None:
    """Values equal but for rounding, measured by the largest value of the array."""
    _check_specs(what, wanted, got)
    for ours, theirs in zip(*map(_tree.leaves, (wanted, got)), strict=True):
        a, b = np.asarray(ours), np.asarray(theirs)
        inexact = jnp.issubdtype(a.dtype, jnp.inexact)
        usual = _TOLERANCE.get(a.dtype.name, 5e-2) if inexact else 0.0
        if not _near(a, b, usual if tolerance is None else tolerance):
            off = "" if not inexact else f", up to {_distance(a, b).max():.3g} apart"
            raise _BrokenError(what, f"other values in {show(a)}{off}")


def _near(a: Any, b: Any, tolerance: float) -> bool:
    if not tolerance or not a.size:
        return np.array_equal(
            a, b, equal_nan=bool(jnp.issubdtype(a.dtype, jnp.inexact))
        )
    scale = max(1e-2, float(np.max(np.nan_to_num(np.abs(a), posinf=0.0))))
    return bool(np.all(_distance(a, b) <= tolerance * scale))


def _distance(a: Any, b: Any) -> Any:
    """How far apart, elementwise; equal infinities are not, nor two NaNs."""
    wide = np.complex128 if a.dtype.kind == "c" else np.float64
    a, b = a.astype(wide), b.astype(wide)
    with np.errstate(invalid="ignore"):
        return np.abs(np.where((a == b) | (np.isnan(a) & np.isnan(b)), 0, a - b))


# --- jaxprs


def _text(jaxpr: Any) -> str:
    """The text of a jaxpr, without addresses in memory."""
    return re.sub(r"0x[0-9a-f]+", "", str(jaxpr))


def _below(jaxpr: Any) -> Iterator[Any]:
    """The jaxprs inside a jaxpr's equations, closed or not."""
    for equation in jaxpr.eqns:
        for value in equation.params.values():
            for item in cast(
                "Iterable[Any]", value if isinstance(value, (tuple, list)) else [value]
            ):
                if hasattr(item, "eqns"):
                    yield item


def _draws(
    jaxpr: Any, words: tuple[str, ...] = ("random_", "threefry", "rng_")
) -> bool:
    """Whether a computation handles keys, or with other words draws numbers from them."""
    if any(equation.primitive.name.startswith(words) for equation in jaxpr.eqns):
        return True
    below = (getattr(inner, "jaxpr", inner) for inner in _below(jaxpr))
    return any(_draws(inner, words) for inner in below)


_NUMBERS = ("random_bits", "random_gamma", "rng_")


def _consts(jaxpr: Any) -> Iterator[Any]:
    """Every array that a computation brings along, in a fixed order."""
    yield from getattr(jaxpr, "consts", ())
    for inner in _below(getattr(jaxpr, "jaxpr", jaxpr)):
        yield from _consts(inner)
