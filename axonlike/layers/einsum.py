"""Products of an input with a weight, or of two inputs, by the names of their axes."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from axonlike.errors import ShapeError
from axonlike.initializers import InitFunction, lecun_normal, zeros
from axonlike.layer import layer
from axonlike.layers.checks import array, at_least, is_int, positive, some
from axonlike.layers.linear import add_bias, affine_params
from axonlike.layers.product import DotGeneral, contract
from axonlike.spec import is_unknown, show
from axonlike.types import Array, Key, Params, to_dtype

_TERM = r"(?:[A-Za-z]*\.\.\.)?[A-Za-z]*"
_EQUATION = re.compile(rf"({_TERM}),([A-Za-z]*)->({_TERM})")


@layer
def einsum(
    equation: str,
    sizes: Mapping[str, int] | None = None,
    *,
    use_bias: bool = True,
    kernel_init: InitFunction = lecun_normal(),
    bias_init: InitFunction = zeros(),
    param_dtype: Any = jnp.float32,
    precision: Any = None,
    dot_general: DotGeneral | None = None,
    name: str | None = None,
) -> Any:
    """Input and kernel multiplied as an equation says, plus a bias.

    `"btd,dhk->bthk"` is `dense((h, k))`; `"bne,ned->bnd"` has a kernel of its own for
    each n. Letters of the kernel that stand in the input have its sizes; those that do
    not are made, with the sizes given. The bias has the output's axes that the kernel
    has.

    Args:
        equation: `"input,kernel->output"` as for `jnp.einsum`, a letter an axis; `...`
            in input and output stands for any axes that the kernel does not have.
        sizes: `{letter: size}` of the kernel's letters that the input does not have;
            None: there are none.
        use_bias: whether to add a bias.
        kernel_init: initializer of the kernel, as one of two axes: all that are summed
            over, all that are made. Letters in all three terms have each their own draw.
        bias_init: initializer of the bias.
        param_dtype: dtype in which params are stored; computation follows the input's.
        precision: of the product, as in `jax.lax.dot_general`.
        dot_general: called in place of `jax.lax.dot_general`.
        name: the layer's name among its siblings.

    Shapes:
        input: as the equation says, floating point.
        output: as the equation says, the input's dtype.
        kernel: as the equation says, LeCun normal.
        bias: the kernel's axes in the output, zeros; absent when `use_bias` is false.

    Raises:
        ValueError: the equation is not of this form, or `sizes` are not those of the
            kernel's own letters.
        ShapeError: the input has another rank, or is not floating point.

    Example:
        >>> import jax, axonlike as al
        >>> layer = al.einsum("...d,dhk->...hk", {"h": 4, "k": 8})
        >>> params, _ = layer.init(jax.random.key(0), al.spec("b t 32"))
        >>> params["kernel"].shape, params["bias"].shape
        ((32, 4, 8), (4, 8))
        >>> layer.output_spec(al.spec("b t 32")).shape
        (b, t, 4, 8)
    """
    terms = _terms(equation)
    own = dict(sizes or {})
    _check_sizes(terms, own)

    def init(key: Key, x: Any) -> Params:
        known = {**dict(zip(_labels(terms, x), x.shape, strict=True)), **own}
        _check_known(x, [known[label] for label in terms.kernel])
        kernel_key, bias_key = jax.random.split(key)
        kernel = _draw(terms, known, kernel_init, kernel_key, param_dtype)
        if not use_bias:
            return {"kernel": kernel}
        shape = tuple(known[label] for label in terms.out if label in terms.kernel)
        return {"kernel": kernel, "bias": bias_init(bias_key, shape, param_dtype)}

    def apply(params: Params, x: Any) -> Array:
        labels = _labels(terms, x)
        kernel = to_dtype(params["kernel"], x.dtype)
        out = _spread(terms.out, [n for n in labels if n not in terms.x])
        y = _contract(x, kernel, (labels, terms.kernel, out), precision, dot_general)
        if not use_bias:
            return y
        bias = to_dtype(params["bias"], y.dtype)
        places = [i for i, label in enumerate(out) if label in terms.kernel]
        return y + lax.broadcast_in_dim(bias, y.shape, places)

    return init, apply


class _Terms(NamedTuple):
    """The letters of input, kernel and output; `.` stands for three dots."""

    x: str
    kernel: str
    out: str


def _terms(equation: str) -> _Terms:
    """The equation's parts; refuses what is not one weight times one input."""
    form = "input,kernel->output with a letter for each axis, such as 'btd,dhk->bthk'"
    found = _EQUATION.fullmatch("".join(str(equation).split()))
    if found is None:
        raise ValueError(f"einsum: equation must be {form}, got {equation!r}.")
    terms = _Terms(*(term.replace("...", ".") for term in found.groups()))
    if any(len(set(term)) != len(term) for term in terms):
        text = "equation must name each axis of a term once"
        raise ValueError(f"einsum: {text}, got {equation!r}.")
    unused = [n for n in terms.kernel if n not in terms.x + terms.out]
    unmade = [n for n in terms.out if n not in terms.x + terms.kernel]
    if unused or unmade or ("." in terms.x and "." not in terms.out):
        text = (
            "equation must take every axis of the output from input or kernel, and use"
        )
        raise ValueError(f"einsum: {text} every axis of the kernel, got {equation!r}.")
    return terms


def _check_sizes(terms: _Terms, sizes: Mapping[str, Any]) -> None:
    """Refuses sizes that are not exactly those of the kernel's own letters."""
    own = [label for label in terms.kernel if label not in terms.x]
    if set(own) != set(sizes) or not all(is_int(n) and n > 0 for n in sizes.values()):
        names = ", ".join(own) if own else "no letter, for the input has all"
        raise ValueError(
            f"einsum: sizes must give a positive int for {names}, got {dict(sizes)}."
        )


def _labels(terms: _Terms, x: Any) -> tuple[str, ...]:
    """A label for each axis of the input; refuses another rank."""
    expected = "array with the axes " + " ".join(terms.x.replace(".", "*"))
    array("einsum", x, expected)
    extra = x.ndim - len(terms.x.replace(".", ""))
    if extra < 0 or (extra and "." not in terms.x):
        raise ShapeError("einsum", f"an {expected}", show(x), "Check the equation.")
    return _spread(terms.x, [f".{i}" for i in range(extra)])


def _spread(term: str, dots: Sequence[str]) -> tuple[str, ...]:
    """The labels of a term, those of the three dots in their place."""
    head, _, tail = term.partition(".")
    return (*head, *dots, *tail) if "." in term else tuple(term)


def _check_known(x: Any, sizes: Sequence[Any]) -> None:
    if any(is_unknown(n) or n == 0 for n in sizes):
        hint = "Params cannot depend on an unknown dim: declare its size in the spec."
        expected = "sizes from 1 on where the kernel has an axis"
        raise ShapeError("einsum", expected, show(x), hint)


def _draw(
    terms: _Terms, sizes: Mapping[str, int], init: InitFunction, key: Key, dtype: Any
) -> Array:
    """The kernel, as (summed, made), once for each step along letters that stay."""
    kernel = terms.kernel
    stay = [n for n in kernel if n in terms.x and n in terms.out]
    summed = [n for n in kernel if n in terms.x and n not in terms.out]
    made = [n for n in kernel if n not in terms.x]
    flat = tuple(math.prod(sizes[n] for n in names) for names in (summed, made))

    def one(key: Key) -> Array:
        return init(key, flat, dtype)

    if stay:
        keys = jax.random.split(key, math.prod(sizes[n] for n in stay))
        drawn = jax.vmap(one)(keys)
    else:
        drawn = one(key)
    order = [*stay, *summed, *made]
    drawn = jnp.reshape(drawn, [sizes[n] for n in order])
    return jnp.transpose(drawn, [order.index(n) for n in kernel])


def _contract(
    x: Any,
    kernel: Array,
    labels: tuple[Sequence[str], Sequence[str], Sequence[str]],
    precision: Any,
    dot_general: DotGeneral | None,
) -> Array:
    """One `dot_general`, its axes then put in the output's order."""
    of_x, of_kernel, out = labels
    alone = [n for n in of_x if n not in out and n not in of_kernel]
    if alone:
        x = jnp.sum(x, tuple(of_x.index(n) for n in alone), dtype=x.dtype)
        of_x = [n for n in of_x if n not in alone]
    both = [n for n in of_x if n in of_kernel]
    stay, summed = ([n for n in both if (n in out) is kept] for kept in (True, False))
    axes = [
        (tuple(map(of_x.index, names)), tuple(map(of_kernel.index, names)))
        for names in (summed, stay)
    ]
    y = contract(x, kernel, tuple(axes), precision, dot_general)
    rest = [n for n in (*of_x, *of_kernel) if n not in both]
    made = [*stay, *rest]
    return jnp.transpose(y, [made.index(n) for n in out])


@layer
def bilinear(
    features: int,
    *,
    use_bias: bool = True,
    kernel_init: InitFunction = lecun_normal(),
    bias_init: InitFunction = zeros(),
    param_dtype: Any = jnp.float32,
    precision: Any = None,
    name: str | None = None,
) -> Any:
    """A form in two inputs for each output: `z[k] = x @ kernel[:, :, k] @ y + bias[k]`.

    Args:
        features: size of the output's last axis; positive.
        use_bias: whether to add a bias.
        kernel_init: initializer of the kernel, as one of shape `(n * m, features)`.
        bias_init: initializer of the bias.
        param_dtype: dtype in which params are stored; computation follows the input's.
        precision: of the products, as in `jnp.einsum`.
        name: the layer's name among its siblings.

    Shapes:
        x: `(..., n)`, floating point.
        y: `(..., m)`, the other axes those of `x`.
        output: `(..., features)`, the dtype of `x`.
        kernel: `(n, m, features)`, LeCun normal, for which `n * m` are inputs.
        bias: `(features,)`, zeros; absent when `use_bias` is false.

    Raises:
        ValueError: `features` is not a positive int.
        ShapeError: an input is a scalar or not floating point, or they differ in more
            than the last axis.

    Example:
        >>> import jax, jax.numpy as jnp, axonlike as al
        >>> layer = al.bilinear(2)
        >>> x, y = jnp.ones((5, 3)), jnp.ones((5, 4))
        >>> params, state = layer.init(jax.random.key(0), (x, y))
        >>> layer.predict(params, state, (x, y)).shape
        (5, 2)
        >>> model = (al.dense(8) & al.dense(8)) >> al.bilinear(2)
        >>> model.output_spec(al.spec("b 3")).shape
        (b, 2)
    """
    positive("bilinear", features=features)

    def init(key: Key, x: Any, y: Any) -> Params:
        _check_pair(x, y)
        some("bilinear", x)
        some("bilinear", y)
        params = affine_params(
            key,
            (x.shape[-1] * y.shape[-1], features),
            use_bias=use_bias,
            kernel_init=kernel_init,
            bias_init=bias_init,
            dtype=param_dtype,
        )
        shape = (x.shape[-1], y.shape[-1], features)
        return {**params, "kernel": params["kernel"].reshape(shape)}

    def apply(params: Params, x: Any, y: Any) -> Array:
        _check_pair(x, y)
        y, kernel = to_dtype(y, x.dtype), to_dtype(params["kernel"], x.dtype)
        z = jnp.einsum("...i,ijk,...j->...k", x, kernel, y, precision=precision)
        return add_bias(params, z)

    return init, apply


def _check_pair(x: Any, y: Any) -> None:
    for each in (x, y):
        at_least("bilinear", each, 1, "(..., n)", "Add an axis with x[..., None].")
    if x.shape[:-1] != y.shape[:-1]:
        hint = "Repeat the smaller one with jnp.broadcast_to."
        expected = "x and y that differ in the last axis only"
        raise ShapeError("bilinear", expected, f"{show(x)} and {show(y)}", hint)
