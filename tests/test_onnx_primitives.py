"""Every primitive that is written as ONNX, run by onnxruntime against JAX."""

import re
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import axonlike as al
from axonlike.io.onnx.check import difference, runner
from axonlike.io.onnx.convert import FAMILIES
from axonlike.io.onnx.table import TABLE
from axonlike.spec import as_spec, size_of

pytest.importorskip("onnxruntime")

SIZES = {"b": 2, "t": 3, "s": 4, "h": 2}, {"b": 5, "t": 1, "s": 2, "h": 3}
UNIT = {"low": -0.9, "high": 0.9}
POSITIVE = {"low": 0.3, "high": 3.0}
LARGE = {"low": 1.1, "high": 3.0}
WHOLE = {"low": -6, "high": 7}

SHARDED = NamedSharding(
    Mesh(np.array(jax.devices()[:1]), ("data",)), PartitionSpec("data")
)
IMAGE = ("NHWC", "HWIO", "NHWC")


def conv(x, kernel, strides=(1, 1), padding="SAME", **how):
    return lax.conv_general_dilated(
        x, kernel, strides, padding, dimension_numbers=IMAGE, **how
    )


def window(x, start, op, size, step, pads, base=1, dilation=1):
    each = (1, size, size, 1), (1, step, step, 1)
    holes = {"base_dilation": (1, base, base, 1)} if base > 1 else {}
    apart = {"window_dilation": (1, dilation, dilation, 1)} if dilation > 1 else {}
    pads = ((0, 0), pads, pads, (0, 0))
    return lax.reduce_window(x, start, op, *each, pads, **holes, **apart)


def take(x, i, mode):
    return x.at[i].get(mode=mode)


def put(x, i, y, how, mode):
    return getattr(x.at[i], how)(y, mode=mode)


@jax.custom_vjp
def own_gradient(x):
    return jnp.sin(x) * 2


own_gradient.defvjp(lambda x: (own_gradient(x), None), lambda _, g: (g,))


def looped(x, n):
    return lax.fori_loop(0, n, lambda i, y: y * 0.5 + i.astype(y.dtype), x)


def doubled(x):
    return lax.while_loop(lambda y: jnp.sum(y) < 40, lambda y: y * 2 + 1, x)


def flipped(x):
    def step(each):
        return ~each[0], each[1] + 1

    return lax.while_loop(lambda each: each[1] < 2 + jnp.sum(x), step, (x, 0))


def nested(x):
    def step(carry, each):
        inner = lax.while_loop(lambda y: jnp.sum(y) < 5, lambda y: y * 2 + 1, each)
        return carry + inner, lax.cond(inner[0] > 2, jnp.sin, jnp.cos, carry)

    return lax.scan(step, x[0], x)


def scanned(x, reverse):
    def step(carry, each):
        carry = carry * 0.5 + each
        return carry, (carry, each - carry)

    return lax.scan(
        step, jnp.zeros(x.shape[:1]), jnp.swapaxes(x, 0, 1), reverse=reverse
    )


def counted(x):
    return lax.scan(lambda c, _: (c + 1, c * 2), x, None, length=3, reverse=True)


def switched(x, i):
    return lax.switch(i, [jnp.sin, jnp.cos, lambda x: x * x], x)


def stacked(*arrays):
    stack = getattr(lax, "stack", None) or jnp.stack
    return stack(arrays, axis=1)


def whole(x):
    return x.astype(jnp.int32)


def sized(x):
    return jnp.ones(x.shape) * lax.convert_element_type(x.shape[0] * 2 + 1, jnp.float32)


def f8(x):
    return lax.reduce_precision(x, 8, 7)


INT, BOOL, BYTE, WORD = "int32", "bool", "uint8", "uint32"
ONE, TWO = ["b 3"], ["b 3", "b 3"]
INTS, TRUTHS = [("b 3", INT)], [("b 3", BOOL)]


def case(function, *specs, **how):
    return function, [s if isinstance(s, tuple) else (s, "float32") for s in specs], how


# primitive: rows of (function, specs, how numbers are drawn)
CASES = {
    "abs": [case(jnp.abs, *ONE), case(lax.abs, *INTS)],
    "acos": [case(jnp.arccos, *ONE, **UNIT)],
    "acosh": [case(jnp.arccosh, *ONE, **LARGE)],
    "add": [
        case(lax.add, *TWO),
        case(lax.add, ("b 3", BYTE), ("b 3", BYTE), low=0, high=250),
        case(lax.add, ("b 3", "bfloat16"), ("b 3", "bfloat16")),
        case(lax.add, ("b 3", "float16"), ("b 3", "float16")),
        case(lambda x: x + jnp.zeros((1, *x.shape[1:])), *ONE),
    ],
    "add_any": [case(lambda x: jax.vjp(lambda y: (y, y * 2), x)[1]((x, x))[0], *ONE)],
    "and": [
        case(lax.bitwise_and, *TRUTHS, *TRUTHS),
        case(lax.bitwise_and, *INTS, *INTS),
    ],
    "argmax": [
        case(partial(jnp.argmax, axis=1), "b 5 2"),
        case(partial(jnp.argmax, axis=0), ("b 5", INT)),
    ],
    "argmin": [case(partial(jnp.argmin, axis=-1), "b 5 2")],
    "asin": [case(jnp.arcsin, *ONE, **UNIT)],
    "asinh": [case(jnp.arcsinh, *ONE)],
    "atan": [case(jnp.arctan, *ONE)],
    "atan2": [
        case(jnp.arctan2, *TWO),
        case(lambda x: jnp.arctan2(jnp.floor(x), jnp.floor(x[::-1])), "4 9"),
    ],
    "atanh": [case(jnp.arctanh, *ONE, **UNIT)],
    "broadcast_in_dim": [
        case(lambda x: jnp.broadcast_to(x[:, None], (x.shape[0], 4, 3)), *ONE),
        case(lambda x: lax.broadcast_in_dim(x, (2, *x.shape, 1), (1, 2)), *ONE),
    ],
    "cbrt": [case(jnp.cbrt, *ONE)],
    "ceil": [case(jnp.ceil, *ONE)],
    "remat2": [case(jax.checkpoint(lambda x: jnp.sin(x) * x), *ONE)],
    "clamp": [case(lambda x: lax.clamp(-0.2, x, 0.4), *ONE)],
    "concatenate": [
        case(lambda x, y: jnp.concatenate([x, y, x], 1), "b 3", "b 2"),
        case(lambda x, y: jnp.concatenate([x, y], 0), *TRUTHS, *TRUTHS),
    ],
    "cond": [
        case(lambda x: lax.cond(x[0, 0] > 0, jnp.sin, jnp.cos, x), *ONE),
        case(switched, *ONE, ("", INT), low=0, high=3),
        case(lambda x: lax.cond(x[0] > 0, lambda: x[1] * 2, lambda: x[2]), "3"),
    ],
    "conv_general_dilated": [
        case(conv, "b 5 6 2", "3 2 2 4"),
        case(partial(conv, strides=(2, 1), padding="VALID"), "b 7 6 2", "3 2 2 4"),
        case(partial(conv, feature_group_count=2), "b 5 4 4", "2 2 2 6"),
        case(partial(conv, rhs_dilation=(2, 1)), "b 7 4 2", "3 2 2 3"),
        case(partial(conv, padding=((-1, 2), (0, -2))), "b 7 6 2", "3 2 2 3"),
        case(
            partial(conv, lhs_dilation=(2, 3), padding=((2, 1), (0, 2))),
            "b 4 3 2",
            "3 4 2 3",
        ),
        case(
            partial(
                conv,
                lhs_dilation=(2, 2),
                padding=((1, 1), (1, 2)),
                feature_group_count=2,
            ),
            "b 4 3 4",
            "3 3 2 4",
        ),
        case(
            partial(conv, lhs_dilation=(2, 2), padding=((0, 3), (1, 2))),
            "b 4 3 2",
            "3 3 2 3",
        ),
        case(lambda x, k: lax.conv(x, k, (2,), "SAME"), "b 3 7", "4 3 2"),
        case(conv, ("b 5 6 2", "float16"), ("3 2 2 4", "float16")),
    ],
    "convert_element_type": [
        case(whole, *ONE, low=-9, high=9),
        case(lambda x: x.astype(jnp.float32) / 2, *INTS),
        case(lambda x: x.astype(bool), *INTS, low=0, high=2),
        case(lambda x: x.astype(jnp.bfloat16).astype(jnp.float32), *ONE),
        case(lambda x: x.astype(jnp.float16), *ONE),
        case(lambda x: x.astype(jnp.uint8), *TRUTHS),
    ],
    "copy": [case(lambda x: jnp.array(x, copy=True), *ONE)],
    "cos": [case(jnp.cos, *ONE)],
    "cosh": [case(jnp.cosh, *ONE)],
    "cumlogsumexp": [case(partial(lax.cumlogsumexp, axis=1), "b 5 2")],
    "cummax": [
        case(partial(lax.cummax, axis=1), "b 5 2"),
        case(partial(lax.cummax, axis=1, reverse=True), ("b 5", INT)),
    ],
    "cummin": [case(partial(lax.cummin, axis=0), "5 b")],
    "cumprod": [case(partial(lax.cumprod, axis=1), "b 5 2")],
    "cumsum": [
        case(partial(lax.cumsum, axis=1), "b 5 2"),
        case(partial(lax.cumsum, axis=1, reverse=True), ("b 5", INT)),
    ],
    "custom_jvp_call": [case(jax.nn.relu, *ONE)],
    "custom_vjp_call": [case(own_gradient, *ONE)],
    "dim_as_value": [case(sized, *ONE)],
    "div": [
        case(lax.div, *TWO, **POSITIVE),
        case(lax.div, *INTS, ("b 3", INT), low=1, high=9),
        case(lambda x: lax.div(x, jnp.full(x.shape, 3, x.dtype)), *INTS, **WHOLE),
    ],
    "dot_general": [
        case(lambda x, y: x @ y, "b 3", "3 4"),
        case(lambda x, y: x @ y, "b 5 3", "3 4"),
        case(lambda x, y: x @ y, "b h 5 3", "b h 3 4"),
        case(partial(jnp.einsum, "bij,kj->bik"), "b 2 3", "4 3"),
        case(partial(jnp.einsum, "bhid,bjhd->bhij"), "b 2 t 3", "b s 2 3"),
        case(partial(jnp.einsum, "bijc,ijcd->bd"), "b 2 3 2", "2 3 2 5"),
        case(partial(jnp.einsum, "ib,ib->b"), "3 b", "3 b"),
        case(partial(jnp.einsum, "i,j->ij"), "b", "3"),
        case(partial(jnp.einsum, "i,i->"), "b", "b"),
        case(partial(jnp.einsum, "gbij,gjkl->gbikl"), "2 b 3 4", "2 4 5 2"),
        case(lambda x, y: x @ y, ("b 3", INT), ("3 4", INT)),
        case(
            partial(lax.dot, preferred_element_type=jnp.int32),
            ("b 3", "int8"),
            ("3 4", "int8"),
            **WHOLE,
        ),
        case(lambda x, y: x @ y, ("b 3", "bfloat16"), ("3 4", "bfloat16")),
        case(
            partial(lax.dot, preferred_element_type=jnp.float32),
            ("b 3", "float16"),
            ("3 4", "float16"),
        ),
    ],
    "dynamic_slice": [
        case(
            lambda x, i: lax.dynamic_slice(x, (i, i + 2), (2, 3)),
            "4 6",
            ("", INT),
            low=-1,
            high=5,
        ),
        case(
            lambda x, i: lax.dynamic_index_in_dim(x, i, 1),
            "b 6",
            ("", INT),
            low=0,
            high=9,
        ),
    ],
    "dynamic_update_slice": [
        case(
            lambda x, y, i: lax.dynamic_update_slice(x, y, (0, i)),
            "b 6",
            "b 2",
            ("", INT),
            low=0,
            high=7,
        ),
        case(
            lambda x, i: lax.dynamic_update_slice(x, ~x[:, :2], (0, i)),
            ("b 5", BOOL),
            ("", INT),
            low=0,
            high=7,
        ),
    ],
    "eq": [case(lax.eq, *INTS, *INTS, low=0, high=2), case(lax.eq, *TRUTHS, *TRUTHS)],
    "erf": [case(lax.erf, *ONE)],
    "erfc": [case(lax.erfc, *ONE)],
    "exp": [case(jnp.exp, *ONE), case(jnp.exp, ("b 3", "bfloat16"))],
    "exp2": [case(jnp.exp2, *ONE)],
    "expm1": [case(lambda x: jnp.expm1(x * 1e-4) * 1e4, *ONE), case(jnp.expm1, *ONE)],
    "floor": [case(jnp.floor, *ONE)],
    "gather": [
        case(lambda x: x[1:, :2], "b 3 2"),
        case(lambda x: x[:, 3:0:-1], "b 5"),
        case(lambda x: x[: x.shape[0] // 2, ::2], "2*b 5"),
        case(lambda x, i: x[i], "7 3", ("b t", INT), low=-7, high=7),
        case(partial(take, mode="fill"), "7 3", ("b t", INT), low=-9, high=12),
        case(partial(take, mode="clip"), "7 3", ("b t", INT), low=-9, high=12),
        case(partial(take, mode="fill"), ("7 3", INT), ("b", INT), low=-9, high=12),
        case(partial(take, mode="fill"), ("7", BOOL), ("b", INT), low=-9, high=12),
        case(partial(take, mode="fill"), ("7 3", BYTE), ("b", INT), low=0, high=12),
        case(lambda x, i: x[:, i], "b 5 3", ("t", INT), low=0, high=5),
        case(lambda x, i: x[i, :, i], "4 3 5", ("b", INT), low=0, high=4),
        case(
            lambda x, i: jnp.take_along_axis(x, i, 1),
            "b 5",
            ("b 3", INT),
            low=0,
            high=5,
        ),
        case(lambda x: x[:, jnp.array([2, 0, 1]), ::2], "b 3 4"),
        case(
            jax.vmap(lambda x, i: lax.dynamic_slice(x, (i, 0), (2, 3))),
            "b 5 4",
            ("b", INT),
            low=0,
            high=7,
        ),
        case(
            jax.vmap(lambda x, i: lax.dynamic_slice(x, (i,), (2,)), (None, 0)),
            "5",
            ("b", INT),
            low=0,
            high=7,
        ),
    ],
    "ge": [case(lax.ge, *TWO), case(lax.ge, *TRUTHS, *TRUTHS)],
    "gt": [
        case(lax.gt, *TWO),
        case(lax.gt, ("b 3", BYTE), ("b 3", BYTE), low=0, high=9),
    ],
    "integer_pow": [
        case(lambda x, n=n: x**n, *ONE, **POSITIVE) for n in (-2, -1, 3, 5)
    ],
    "iota": [
        case(lambda x: x + jnp.arange(x.shape[0], dtype=x.dtype)[:, None], *ONE),
        case(lambda x: x + lax.broadcasted_iota(x.dtype, x.shape, 1), *ONE),
    ],
    "is_finite": [case(lambda x: jnp.isfinite(jnp.log(x)), *ONE)],
    "jit": [case(jax.jit(lambda x: jnp.sin(x) + 1), *ONE)],
    "le": [case(lax.le, *TWO)],
    "log": [case(jnp.log, *ONE, **POSITIVE)],
    "log1p": [
        case(lambda x: jnp.log1p(x * 1e-4) * 1e4, *ONE),
        case(jnp.log1p, *ONE, low=-0.9, high=9.0),
    ],
    "logistic": [case(jax.nn.sigmoid, *ONE)],
    "lt": [case(lax.lt, *TWO), case(lax.lt, *INTS, *INTS)],
    "max": [
        case(lax.max, *TWO),
        case(lax.max, *TRUTHS, *TRUTHS),
        case(lambda x: jnp.maximum(jnp.log(x), 0.1), *ONE),
    ],
    "min": [case(lax.min, *INTS, *INTS), case(lax.min, *TRUTHS, *TRUTHS)],
    "mul": [case(lax.mul, *TWO)],
    "name": [case(lambda x: checkpoint_name(x, "here") * 2, *ONE)],
    "ne": [
        case(lax.ne, *INTS, *INTS, low=0, high=2),
        case(lambda x: lax.ne(x, x), *ONE),
    ],
    "neg": [case(lax.neg, *ONE), case(lax.neg, *INTS)],
    "not": [case(lax.bitwise_not, *TRUTHS), case(lax.bitwise_not, *INTS)],
    "optimization_barrier": [case(lambda x, y: lax.optimization_barrier((x, y)), *TWO)],
    "or": [case(lax.bitwise_or, *TRUTHS, *TRUTHS), case(lax.bitwise_or, *INTS, *INTS)],
    "pad": [
        case(lambda x: lax.pad(x, 1.5, ((0, 0, 0), (2, 1, 0))), *ONE),
        case(lambda x: lax.pad(x, 0.5, ((1, 0, 0), (1, 2, 2), (-1, 1, 1))), "b 3 4"),
        case(lambda x: jnp.pad(x, ((0, x.shape[0]), (0, 0))), *ONE),
        case(lambda x: jnp.pad(x, ((0, 0), (1, 1))), *INTS),
    ],
    "platform_index": [
        case(
            lambda x: (
                lax.platform_dependent(x, cpu=lambda x: x + 0, default=jnp.negative)
                ** 2
            ),
            *ONE,
        )
    ],
    "pow": [case(lax.pow, *TWO, **POSITIVE), case(lambda x: x**0.37, *ONE, **POSITIVE)],
    "reduce_and": [case(partial(jnp.all, axis=1), *TRUTHS)],
    "reduce_max": [
        case(partial(jnp.max, axis=1), "b 3 4"),
        case(jnp.max, *INTS),
        case(partial(jnp.max, axis=1), ("b 3", BYTE), low=0, high=250),
    ],
    "reduce_min": [case(partial(jnp.min, axis=(0, 2)), "b 3 4")],
    "reduce_or": [case(partial(jnp.any, axis=0), *TRUTHS)],
    "reduce_precision": [
        case(f8, *ONE),
        case(lambda x: lax.reduce_precision(x, 5, 10), *ONE),
        case(lambda x: lax.reduce_precision(x, 8, 23), *ONE),
    ],
    "reduce_prod": [case(partial(jnp.prod, axis=1), "b 3 4")],
    "reduce_sum": [
        case(partial(jnp.sum, axis=(0, 2)), "b 3 4"),
        case(jnp.sum, "b 3"),
        case(partial(jnp.sum, axis=1), *INTS),
        case(partial(jnp.sum, axis=1), ("b 9", "bfloat16")),
    ],
    "reduce_window_max": [
        case(
            partial(window, start=-jnp.inf, op=lax.max, size=3, step=2, pads=(1, 1)),
            "b 6 6 2",
        ),
        case(
            partial(
                window,
                start=-jnp.inf,
                op=lax.max,
                size=2,
                step=1,
                pads=(0, 1),
                dilation=2,
            ),
            "b 6 6 2",
        ),
        case(
            lambda x: lax.reduce_window(x, -jnp.inf, lax.max, (1, 3), (1, 1), "SAME"),
            "b 6",
        ),
        case(
            lambda x: lax.reduce_window(
                x, np.int32(-(2**31)), lax.max, (1, 3), (1, 2), "VALID"
            ),
            ("b 6", INT),
        ),
    ],
    "reduce_window_min": [
        case(
            partial(window, start=jnp.inf, op=lax.min, size=3, step=2, pads=(1, 1)),
            "b 6 6 2",
        )
    ],
    "reduce_window_sum": [
        case(
            partial(window, start=0.0, op=lax.add, size=3, step=2, pads=(1, 1)),
            "b 6 6 2",
        ),
        case(
            partial(
                window,
                start=0.0,
                op=lax.add,
                size=2,
                step=1,
                pads=(0, 1),
                base=2,
                dilation=2,
            ),
            "b 4 4 2",
        ),
    ],
    "rem": [
        case(lax.rem, *INTS, ("b 3", INT), low=1, high=9),
        case(lambda x: lax.rem(x, jnp.full(x.shape, 0.7)), *ONE),
        case(lambda x: lax.rem(x, jnp.full(x.shape, 4, x.dtype)), *INTS, **WHOLE),
    ],
    "reshape": [
        case(lambda x: x.reshape(x.shape[0], -1), "b 3 4"),
        case(lambda x: x.reshape(-1, 4), "b t 4"),
        case(lambda x: x.reshape(x.shape[0], x.shape[1], 2, 2), "b t 4"),
        case(lambda x: x.reshape(x.shape[1], -1), "b t 4"),
        case(lambda x: x.reshape(x.shape[1] * 2, x.shape[0], 2), "b t 4"),
        case(lambda x: jnp.zeros((x.shape[0], 2)).reshape(-1), *ONE),
    ],
    "rev": [case(lambda x: lax.rev(x, (0, 2)), "b 3 4")],
    "round": [
        case(lambda x: jnp.round(x * 2) / 2, *ONE),
        case(lambda x: lax.round(jnp.floor(x) + 0.5), *ONE),
        case(
            lambda x: lax.round(jnp.floor(x) + 0.5, lax.RoundingMethod.TO_NEAREST_EVEN),
            *ONE,
        ),
    ],
    "rsqrt": [case(lax.rsqrt, *ONE, **POSITIVE)],
    "scan": [
        case(partial(scanned, reverse=False), "b 5"),
        case(partial(scanned, reverse=True), "b t"),
        case(counted, *ONE),
        case(nested, *ONE, low=1.0, high=2.0),
        case(partial(looped, n=3), *ONE),
    ],
    "scatter": [
        case(
            partial(put, how="set", mode="drop"),
            "7 3",
            ("4", INT),
            "4 3",
            low=-9,
            high=12,
            distinct=True,
        ),
        case(lambda x: x.at[:, 1].set(0.0), *ONE),
        case(lambda x, i: x.at[i].set(True), ("7", BOOL), ("b", INT), low=0, high=7),
    ],
    "scatter-add": [
        case(
            partial(put, how="add", mode="drop"),
            "7 3",
            ("b", INT),
            "b 3",
            low=-9,
            high=12,
        ),
        case(
            partial(put, how="add", mode="clip"),
            "7 3",
            ("b", INT),
            "b 3",
            low=0,
            high=12,
        ),
        case(
            lambda x, i, y: x.at[:, i].add(y), "b 5", ("t", INT), "b t", low=0, high=5
        ),
        case(lambda x, i: x.at[i, i].add(1), ("7 6", INT), ("b", INT), low=0, high=9),
    ],
    **{
        f"scatter-{how}": [
            case(
                partial(put, how=how, mode="drop"),
                "7 3",
                ("b", INT),
                "b 3",
                low=0,
                high=9,
            )
        ]
        for how in ("max", "min", "mul")
    },
    "select_n": [
        case(jnp.where, *TRUTHS, *TWO),
        case(jnp.where, *TRUTHS, *TRUTHS, *TRUTHS),
        case(lax.select_n, *INTS, *TWO, "b 3", low=0, high=3),
        case(lambda x: jnp.where(x > 0, x, 0.1), *ONE),
    ],
    "sharding_constraint": [
        case(lambda x: lax.with_sharding_constraint(x, SHARDED) * 2, *ONE)
    ],
    "shift_left": [
        case(lambda x: x << 3, *INTS, **WHOLE),
        case(lambda x: x << 5, ("b 3", BYTE), low=0, high=250),
    ],
    "shift_right_arithmetic": [case(lambda x: x >> 2, *INTS, low=-90, high=90)],
    "shift_right_logical": [
        case(lax.shift_right_logical, ("b 3", WORD), ("b 3", WORD), low=0, high=9)
    ],
    "sign": [case(jnp.sign, *ONE), case(jnp.sign, *INTS)],
    "sin": [case(jnp.sin, *ONE)],
    "sinh": [case(jnp.sinh, *ONE)],
    "slice": [
        case(lambda x: lax.slice(x, (0, 1, 0), (x.shape[0], 3, 2)), "b 3 2"),
        case(lambda x: lax.slice(x, (0, 1), (x.shape[0] // 2, 5), (1, 2)), "2*b 5"),
        case(lambda x: lax.slice(x, (0,), (-(-x.shape[0] // 2),)), "b"),
        case(lambda x: lax.slice(x, (0,), (jax.core.max_dim(x.shape[0] - 2, 1),)), "b"),
    ],
    "sort": [
        case(partial(jnp.sort, axis=1), "b 5"),
        case(partial(jnp.argsort, axis=0), "b 5"),
        case(partial(jnp.argsort, axis=1), ("b 9", INT), low=0, high=3),
    ],
    "split": [case(lambda x: jnp.split(x, [1, 3], 1), "b 4 2")],
    "sqrt": [case(jnp.sqrt, *ONE, **POSITIVE)],
    "square": [case(jnp.square, *ONE), case(jnp.square, *INTS)],
    "squeeze": [case(lambda x: jnp.squeeze(x, (1, 3)), "b 1 3 1")],
    "stack": [case(stacked, *TWO)],
    "stop_gradient": [case(lambda x: lax.stop_gradient(x) * 2, *ONE)],
    "sub": [
        case(lax.sub, *TWO),
        case(lax.sub, ("b 3", WORD), ("b 3", WORD), low=0, high=9),
    ],
    "tan": [case(jnp.tan, *ONE, **UNIT)],
    "tanh": [case(jnp.tanh, *ONE)],
    "tile": [case(lambda x: jnp.tile(x, (1, 3)), *ONE)],
    "top_k": [
        case(lambda x: lax.top_k(x, 2), "b 5"),
        case(lambda x: lax.top_k(x, 2), ("b 5", INT)),
    ],
    "transpose": [case(lambda x: jnp.transpose(x, (2, 0, 1)), "b 3 4")],
    "while": [
        case(doubled, *ONE, low=1.0, high=2.0),
        case(jax.vmap(doubled), *ONE, low=1.0, high=2.0),
        case(jax.vmap(flipped), *TRUTHS),
    ],
    "xor": [
        case(lax.bitwise_xor, *TRUTHS, *TRUTHS),
        case(lax.bitwise_xor, *INTS, *INTS),
    ],
}


def numbers(spec, seed, low=-2.0, high=2.0, distinct=False):
    draw = np.random.default_rng(seed)
    shape, dtype = spec.shape, spec.dtype
    if dtype == np.bool_:
        return draw.random(shape) < 0.6
    if not jnp.issubdtype(dtype, jnp.integer):
        return np.asarray(draw.uniform(low, high, shape), np.float32).astype(dtype)
    if distinct:
        return draw.permutation(np.arange(int(low), int(high)))[: shape[0]].astype(
            dtype
        )
    return draw.integers(int(low), int(high), shape).astype(dtype)


def primitives(jaxpr):
    for eqn in jaxpr.eqns:
        yield eqn.primitive.name
        for value in eqn.params.values():
            for each in value if isinstance(value, (tuple, list)) else [value]:
                inner = getattr(each, "jaxpr", each)
                if hasattr(inner, "eqns"):
                    yield from primitives(inner)


@pytest.mark.parametrize("name", CASES)
def test_a_primitive_is_what_jax_computes(name, tmp_path):
    """All rows of one in one file, and compiled once."""
    functions = [function for function, _, _ in CASES[name]]
    spec = [tuple(al.spec(*each) for each in specs) for _, specs, _ in CASES[name]]
    for function, xs in zip(functions, spec, strict=True):
        assert name in primitives(jax.make_jaxpr(function)(*as_spec(xs)).jaxpr)

    def every(inputs):
        return [f(*xs) for f, xs in zip(functions, inputs, strict=True)]

    path = tmp_path / "model.onnx"
    al.export_onnx(al.lift(every), {}, {}, spec, path, check=False)
    inputs = [arrays(name, spec, *each) for each in enumerate(SIZES)]
    wanted = jax.jit(lambda both: [every(each) for each in both])(inputs)
    run = runner(path)
    for each, ys in zip(inputs, wanted, strict=True):
        made = run(dict(named(each)))
        for ours, (at, theirs) in zip(jax.tree.leaves(ys), made.items(), strict=True):
            assert ours.shape == theirs.shape, at
            assert difference(ours, theirs) <= tolerance(ours.dtype), at


def arrays(name, spec, seed, sizes):
    return [
        [numbers(at(s, sizes), seed + i, **how) for i, s in enumerate(xs)]
        for (_, _, how), xs in zip(CASES[name], spec, strict=True)
    ]


def named(inputs):
    for row, xs in enumerate(inputs):
        for i, x in enumerate(xs):
            yield f"input/{row}/{i}", x


def at(spec, sizes):
    shape = tuple(size_of(dim, sizes) for dim in spec.dims)
    return jax.ShapeDtypeStruct(shape, spec.dtype)


def tolerance(dtype):
    floats = jnp.issubdtype(dtype, jnp.floating)
    return 2 * float(jnp.finfo(dtype).eps) if floats and dtype != jnp.float32 else 2e-6


def test_the_tests_are_of_all_primitives_in_the_table():
    assert FAMILIES
    assert set(CASES) == set(TABLE)


def test_the_page_lists_the_table():
    page = Path(__file__).parent.parent / "docs" / "onnx.rst"
    text = page.read_text(encoding="utf-8")
    listed = re.search(r"\.\. primitives\n(.*)\.\. end of", text, re.DOTALL).group(1)
    assert re.split(r",\s+", listed.strip()) == sorted(TABLE)
