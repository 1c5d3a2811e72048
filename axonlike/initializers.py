"""JAX's initializers as records: comparable, picklable, readable in a model's text.

The functions here are named as in `jax.nn.initializers`, and what they return calls the
function of that name there. Wherever a layer takes an initializer, any function
`(key, shape, dtype)` does as well.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import jax
import jax.numpy as jnp
import numpy as np

from axonlike import values
from axonlike.errors import ShapeError
from axonlike.types import Array, Key

InitFunction = Callable[..., Any]
Axes = int | Sequence[int]

__all__ = [
    "Initializer",
    "constant",
    "delta_orthogonal",
    "glorot_normal",
    "glorot_uniform",
    "he_normal",
    "he_uniform",
    "kaiming_normal",
    "kaiming_uniform",
    "lecun_normal",
    "lecun_uniform",
    "normal",
    "ones",
    "orthogonal",
    "truncated_normal",
    "uniform",
    "variance_scaling",
    "xavier_normal",
    "xavier_uniform",
    "zeros",
]


@dataclass(frozen=True, eq=False, repr=False)
class Initializer:
    """An initializer by name: the function of `jax.nn.initializers`, and its arguments.

    Two are equal when name and arguments are, value types included: `1`, `1.0` and
    `True` differ. Made by the functions of this module.

    Args:
        factory: the name in `jax.nn.initializers`.
        arguments: `(name, value)` pairs, those that are not the default.

    Shapes:
        result: the `shape` asked for, in `dtype`.

    Example:
        >>> import jax, axonlike as al
        >>> init = al.initializers.normal(0.1)
        >>> init
        al.initializers.normal(stddev=0.1)
        >>> init(jax.random.key(0), (2, 3)).shape
        (2, 3)
    """

    factory: str
    arguments: tuple[tuple[str, Any], ...] = ()

    def __call__(
        self, key: Key, shape: Sequence[int], dtype: Any = jnp.float32
    ) -> Array:
        """An array of this shape and dtype, drawn with the key."""
        if not all(isinstance(n, (int, np.integer)) for n in shape):
            raise ShapeError(
                self.factory,
                "known sizes",
                f"({', '.join(map(str, shape))})",
                "Params cannot depend on an unknown dim: declare its size in the spec.",
            )
        function: Any = getattr(jax.nn.initializers, self.factory)
        if self.factory not in ("zeros", "ones"):
            function = function(**dict(self.arguments))
        if "orthogonal" in self.factory and jnp.finfo(dtype).bits < 32:
            return function(key, tuple(shape), jnp.float32).astype(dtype)  # no half QR
        return function(key, tuple(shape), dtype)

    @property
    def draws(self) -> bool:
        """Whether it draws random numbers; if not, it needs no key of its own."""
        return self.factory not in ("zeros", "ones", "constant")

    def __axonlike_token__(self, name_of: Callable[[Any], Any]) -> Any:
        """What equal records share, for comparing a layer's config."""
        return ("Initializer", self.factory, values.token(self.arguments, name_of))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Initializer):
            return NotImplemented
        return self.__axonlike_token__(id) == other.__axonlike_token__(id)

    def __hash__(self) -> int:
        return hash(self.__axonlike_token__(id))

    def __repr__(self) -> str:
        inner = ", ".join(f"{k}={values.source(v)}" for k, v in self.arguments)
        return f"al.initializers.{self.factory}({inner})"


def _record(factory: Callable[..., Initializer], **arguments: Any) -> Initializer:
    """The record for a call of one of the functions below, defaults left out."""
    name = factory.__name__
    parameters = inspect.signature(factory).parameters
    chosen: list[tuple[str, Any]] = []
    for key, given in arguments.items():
        value = tuple(cast("list[Any]", given)) if isinstance(given, list) else given
        default = parameters[key].default
        if values.token(value, id) != values.token(default, id):
            chosen.append((key, value))
    return Initializer(name, tuple(chosen))


def zeros() -> Initializer:
    """All zeros.

    Shapes:
        result: any shape.

    Example:
        >>> import jax, axonlike as al
        >>> al.initializers.zeros()(jax.random.key(0), (2,))
        Array([0., 0.], dtype=float32)
    """
    return Initializer("zeros")


def ones() -> Initializer:
    """All ones.

    Shapes:
        result: any shape.

    Example:
        >>> import jax, axonlike as al
        >>> al.initializers.ones()(jax.random.key(0), (2,))
        Array([1., 1.], dtype=float32)
    """
    return Initializer("ones")


def constant(value: Any) -> Initializer:
    """The same value everywhere.

    Args:
        value: a number, or what broadcasts to the shape asked for.

    Shapes:
        result: any shape.

    Example:
        >>> import jax, axonlike as al
        >>> al.initializers.constant(0.5)(jax.random.key(0), (2,))
        Array([0.5, 0.5], dtype=float32)
    """
    return _record(constant, value=value)


def uniform(scale: float = 0.01) -> Initializer:
    """Uniform on `[0, scale)`.

    Args:
        scale: upper bound.

    Shapes:
        result: any shape.

    Example:
        >>> import jax, axonlike as al
        >>> bool((al.initializers.uniform(2.0)(jax.random.key(0), (9,)) < 2).all())
        True
    """
    return _record(uniform, scale=scale)


def normal(stddev: float = 0.01) -> Initializer:
    """Normal with mean 0.

    Args:
        stddev: standard deviation.

    Shapes:
        result: any shape.

    Example:
        >>> import jax, axonlike as al
        >>> al.initializers.normal(1.0)(jax.random.key(0), (3, 2)).shape
        (3, 2)
    """
    return _record(normal, stddev=stddev)


def truncated_normal(
    stddev: float = 0.01, lower: float = -2.0, upper: float = 2.0
) -> Initializer:
    """Normal with mean 0, drawn again outside of `[lower, upper]` standard deviations.

    Args:
        stddev: standard deviation before truncation.
        lower: bound, in standard deviations.
        upper: bound, in standard deviations.

    Shapes:
        result: any shape.

    Example:
        >>> import jax, axonlike as al
        >>> init = al.initializers.truncated_normal(1.0)
        >>> bool((abs(init(jax.random.key(0), (9,))) <= 2).all())
        True
    """
    return _record(truncated_normal, stddev=stddev, lower=lower, upper=upper)


def variance_scaling(
    scale: float,
    mode: Literal["fan_in", "fan_out", "fan_avg", "fan_geo_avg"],
    distribution: Literal["truncated_normal", "normal", "uniform"],
    *,
    in_axis: Axes = -2,
    out_axis: Axes = -1,
    batch_axis: Axes = (),
) -> Initializer:
    """Variance `scale / n`, where n counts a kernel's inputs, outputs or their mean.

    Args:
        scale: positive factor.
        mode: what n counts.
        distribution: shape of the distribution.
        in_axis: axis or axes of inputs.
        out_axis: axis or axes of outputs.
        batch_axis: axis or axes that count as neither.

    Shapes:
        result: two or more axes; those not named multiply both counts.

    Example:
        >>> import jax, axonlike as al
        >>> init = al.initializers.variance_scaling(1.0, "fan_in", "normal")
        >>> init(jax.random.key(0), (3, 2)).shape
        (3, 2)
    """
    return _record(
        variance_scaling,
        scale=scale,
        mode=mode,
        distribution=distribution,
        in_axis=in_axis,
        out_axis=out_axis,
        batch_axis=batch_axis,
    )


def glorot_uniform(
    in_axis: Axes = -2, out_axis: Axes = -1, batch_axis: Axes = ()
) -> Initializer:
    """Uniform with variance `2 / (inputs + outputs)`.

    Args:
        in_axis: axis or axes of inputs.
        out_axis: axis or axes of outputs.
        batch_axis: axis or axes that count as neither.

    Shapes:
        result: two or more axes; those not named multiply both counts.

    Example:
        >>> import jax, axonlike as al
        >>> al.initializers.glorot_uniform()(jax.random.key(0), (3, 2)).shape
        (3, 2)

    References:
        Glorot and Bengio, "Understanding the difficulty of training deep feedforward
        neural networks", AISTATS 2010.
    """
    return _record(
        glorot_uniform, in_axis=in_axis, out_axis=out_axis, batch_axis=batch_axis
    )


def glorot_normal(
    in_axis: Axes = -2, out_axis: Axes = -1, batch_axis: Axes = ()
) -> Initializer:
    """Truncated normal with variance `2 / (inputs + outputs)`.

    Args:
        in_axis: axis or axes of inputs.
        out_axis: axis or axes of outputs.
        batch_axis: axis or axes that count as neither.

    Shapes:
        result: two or more axes; those not named multiply both counts.

    Example:
        >>> import jax, axonlike as al
        >>> al.initializers.glorot_normal()(jax.random.key(0), (3, 2)).shape
        (3, 2)

    References:
        Glorot and Bengio, "Understanding the difficulty of training deep feedforward
        neural networks", AISTATS 2010.
    """
    return _record(
        glorot_normal, in_axis=in_axis, out_axis=out_axis, batch_axis=batch_axis
    )


def lecun_uniform(
    in_axis: Axes = -2, out_axis: Axes = -1, batch_axis: Axes = ()
) -> Initializer:
    """Uniform with variance `1 / inputs`.

    Args:
        in_axis: axis or axes of inputs.
        out_axis: axis or axes of outputs.
        batch_axis: axis or axes that count as neither.

    Shapes:
        result: two or more axes; those not named multiply both counts.

    Example:
        >>> import jax, axonlike as al
        >>> al.initializers.lecun_uniform()(jax.random.key(0), (3, 2)).shape
        (3, 2)

    References:
        LeCun et al., "Efficient BackProp", 1998.
    """
    return _record(
        lecun_uniform, in_axis=in_axis, out_axis=out_axis, batch_axis=batch_axis
    )


def lecun_normal(
    in_axis: Axes = -2, out_axis: Axes = -1, batch_axis: Axes = ()
) -> Initializer:
    """Truncated normal with variance `1 / inputs`.

    Args:
        in_axis: axis or axes of inputs.
        out_axis: axis or axes of outputs.
        batch_axis: axis or axes that count as neither.

    Shapes:
        result: two or more axes; those not named multiply both counts.

    Example:
        >>> import jax, axonlike as al
        >>> al.initializers.lecun_normal()(jax.random.key(0), (3, 2)).shape
        (3, 2)

    References:
        LeCun et al., "Efficient BackProp", 1998.
    """
    return _record(
        lecun_normal, in_axis=in_axis, out_axis=out_axis, batch_axis=batch_axis
    )


def he_uniform(
    in_axis: Axes = -2, out_axis: Axes = -1, batch_axis: Axes = ()
) -> Initializer:
    """Uniform with variance `2 / inputs`.

    Args:
        in_axis: axis or axes of inputs.
        out_axis: axis or axes of outputs.
        batch_axis: axis or axes that count as neither.

    Shapes:
        result: two or more axes; those not named multiply both counts.

    Example:
        >>> import jax, axonlike as al
        >>> al.initializers.he_uniform()(jax.random.key(0), (3, 2)).shape
        (3, 2)

    References:
        He et al., "Delving Deep into Rectifiers", ICCV 2015.
    """
    return _record(
        he_uniform, in_axis=in_axis, out_axis=out_axis, batch_axis=batch_axis
    )


def he_normal(
    in_axis: Axes = -2, out_axis: Axes = -1, batch_axis: Axes = ()
) -> Initializer:
    """Truncated normal with variance `2 / inputs`.

    Args:
        in_axis: axis or axes of inputs.
        out_axis: axis or axes of outputs.
        batch_axis: axis or axes that count as neither.

    Shapes:
        result: two or more axes; those not named multiply both counts.

    Example:
        >>> import jax, axonlike as al
        >>> al.initializers.he_normal()(jax.random.key(0), (3, 2)).shape
        (3, 2)

    References:
        He et al., "Delving Deep into Rectifiers", ICCV 2015.
    """
    return _record(he_normal, in_axis=in_axis, out_axis=out_axis, batch_axis=batch_axis)


def orthogonal(scale: float = 1.0, column_axis: int = -1) -> Initializer:
    """A matrix with orthonormal columns or rows, times `scale`.

    Args:
        scale: factor.
        column_axis: the axis of columns.

    Shapes:
        result: two or more axes; all but `column_axis` count as one.

    Example:
        >>> import jax, axonlike as al
        >>> al.initializers.orthogonal()(jax.random.key(0), (3, 3)).shape
        (3, 3)

    References:
        Saxe et al., "Exact solutions to the nonlinear dynamics of learning in deep
        linear neural networks", ICLR 2014.
    """
    return _record(orthogonal, scale=scale, column_axis=column_axis)


def delta_orthogonal(scale: float = 1.0, column_axis: int = -1) -> Initializer:
    """A convolution kernel that is an orthogonal matrix at its centre, 0 elsewhere.

    Args:
        scale: factor.
        column_axis: the axis of columns.

    Shapes:
        result: `(*kernel_size, in, out)` of 3 to 5 axes, with `in <= out`.

    Example:
        >>> import jax, axonlike as al
        >>> al.initializers.delta_orthogonal()(jax.random.key(0), (3, 3, 2, 4)).shape
        (3, 3, 2, 4)

    References:
        Xiao et al., "Dynamical Isometry and a Mean Field Theory of CNNs", ICML 2018.
    """
    return _record(delta_orthogonal, scale=scale, column_axis=column_axis)


xavier_uniform = glorot_uniform
xavier_normal = glorot_normal
kaiming_uniform = he_uniform
kaiming_normal = he_normal


def check(kind: str, name: str, value: Any) -> None:
    """Refuses what is no initializer, or is a factory of one that was not called."""
    if value is None:
        return
    if not callable(value):
        raise TypeError(
            f"{kind}: {name}: expected an initializer, got {type(value).__name__}. "
            "Write al.initializers.he_normal(), or a function (key, shape, dtype)."
        )
    for home, shown in ((globals(), "al"), (vars(jax.nn.initializers), "jax.nn")):
        made = shown == "jax.nn" and getattr(value, "__name__", "") in ("zeros", "ones")
        names = [n for n in __all__[1:] if home.get(n) is value and not made]
        if names:
            raise TypeError(
                f"{kind}: {name}: {names[0]} was not called. "
                f"Write {shown}.initializers.{names[0]}()."
            )
