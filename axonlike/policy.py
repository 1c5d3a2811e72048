"""Precision: in which dtypes a model's params are kept, and its layers computed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp

from axonlike.combinators.lifted import mixed
from axonlike.layer import Layer
from axonlike.paths import join
from axonlike.selector import Where
from axonlike.spec import as_spec
from axonlike.spots import spots, translated
from axonlike.surgery import chosen_spots, outermost, rewritten
from axonlike.types import PyTree


def precision(
    model: Layer,
    *,
    params: Any = None,
    compute: Any = None,
    output: Any = None,
    where: Where = None,
) -> Layer:
    """The model with `mixed` around it, or around what a selector means.

    Norms and softmax compute in float32 at least whatever the input is, so a policy of
    bfloat16 lowers the products and leaves those.

    Args:
        model: any layer.
        params: dtype in which `init` makes the params; None leaves it to the layers.
        compute: dtype in which layers compute; None leaves it to the input.
        output: dtype of the output; None leaves it as computed.
        where: a selector of layers; None for the whole model.

    Shapes:
        As the model's; integers keep their dtype.

    Raises:
        PathError: the selector means nothing.
        TypeError: a dtype is not floating point.

    Example:
        >>> import jax, jax.numpy as jnp, axonlike as al
        >>> model = al.precision(
        ...     al.dense(8) >> jax.nn.relu >> al.dense(2),
        ...     params=jnp.float32, compute=jnp.bfloat16, output=jnp.float32)
        >>> model.output_spec((None, 4)).dtype
        dtype('float32')

    References:
        Micikevicius et al., "Mixed Precision Training", ICLR 2018.
    """

    def change(layer: Layer) -> Layer:
        plain = layer.named(None)
        return mixed(plain, compute, output, params=params).named(layer.name)

    if where is None:
        return change(model)
    chosen = outermost(chosen_spots("precision", model, where))
    return rewritten(model, {spot.chain: change(spot.layer) for spot in chosen})


class Cast(NamedTuple):
    """One conversion between floating-point dtypes in a model, as `casts` lists them.

    Args:
        path: of the layer or array.
        before: dtype of what is converted.
        after: dtype of what it becomes.
        shape: of the array.

    Shapes:
        No arrays.

    Example:
        >>> import axonlike as al
        >>> print(al.Cast("dense/kernel", "float32", "bfloat16", (4, 8)))
        dense/kernel: float32[4, 8] -> bfloat16
    """

    path: str
    before: str
    after: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        shape = ", ".join(map(str, self.shape))
        return f"{self.path or 'the model'}: {self.before}[{shape}] -> {self.after}"


def casts(model: Layer, x: PyTree, *, train: bool = False) -> list[Cast]:
    """Every conversion between floating-point dtypes that a model makes, with its path.

    Args:
        model: any layer.
        x: what stands for the input, as for `init`, with known sizes.
        train: whether to look at a training step's forward pass.

    Shapes:
        No arrays are made.

    Example:
        >>> import jax, jax.numpy as jnp, axonlike as al
        >>> model = al.precision(al.serial(a=al.dense(8)), compute=jnp.bfloat16)
        >>> print(*al.casts(model, (1, 4)), sep="; ")
        a/bias: float32[8] -> bfloat16; a/kernel: float32[4, 8] -> bfloat16; ...
    """
    specs = as_spec(x)
    key = jax.eval_shape(lambda: jax.random.key(0))
    params, state = jax.eval_shape(lambda: model.init(jax.random.key(0), specs))

    def run(params: Any, state: Any, x: Any, key: Any) -> Any:
        return model.apply(params, state, x, key=key, train=train)

    jaxpr = jax.make_jaxpr(run)(params, state, specs, key)
    homes = (path for spot in spots(model) for path in spot.paths)
    names = {_plain(path): path for path in homes}
    found = _casts(cast(Any, jaxpr).jaxpr, "")
    return [each._replace(path=translated(_plain(each.path), names)) for each in found]


def _plain(path: str) -> str:
    """A path without steps for copies, and without names of transformations."""
    steps = path.split("/")
    return "/".join(step for step in steps if step != "*" and not step.endswith(")"))


def _casts(jaxpr: Any, path: str) -> Iterator[Cast]:
    """Those of a jaxpr and of all that it calls."""
    for equation in jaxpr.eqns:
        here = join(path, str(equation.source_info.name_stack))
        if equation.primitive.name == "convert_element_type":
            source, target = equation.invars[0].aval, equation.outvars[0].aval
            floats = jnp.issubdtype(source.dtype, jnp.floating)
            floats = floats and jnp.issubdtype(target.dtype, jnp.floating)
            if floats and source.dtype != target.dtype:
                shape = tuple(source.shape)
                yield Cast(here, str(source.dtype), str(target.dtype), shape)
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=_is_jaxpr):
            if _is_jaxpr(inner):
                yield from _casts(getattr(inner, "jaxpr", inner), here)


def _is_jaxpr(value: Any) -> bool:
    return hasattr(value, "eqns") or hasattr(value, "jaxpr")
