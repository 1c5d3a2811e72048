"""What a model compiles to is what one would write by hand: the same text of StableHLO.

Each model stands beside the function that does the same in plain `jnp` and `lax` on the
same nested dict of params. Both are lowered, as `apply` and inside a whole optax train
step, and the texts compared line by line.
"""

import difflib
import hashlib
import re
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax
from jax.custom_derivatives import SymbolicZero

import axonlike as al
from axonlike.combinators.recurrence import recurrence
from axonlike.layers.gates import multiplier
from axonlike.layers.normalize import Over, normalized
from axonlike.layers.product import product

KEY = jax.random.key(0)


# --- the texts


def stablehlo(function, *args):
    """The lowered module without locations and under one name."""
    lowered = jax.jit(function).lower(*args)
    return re.sub(r"^module @\w+", "module @main", lowered.as_text())


def assert_same_text(ours, by_hand):
    if ours == by_hand:
        return
    lines = difflib.unified_diff(
        by_hand.splitlines(), ours.splitlines(), "by hand", "axonlike", lineterm=""
    )
    pytest.fail("\n".join(["other StableHLO than by hand:", *lines]), pytrace=False)


# --- what is written by hand


def matmul(x, kernel):
    return x @ kernel if x.ndim == 2 else _cached(x, kernel)


@partial(jax.jit, inline=True)
def _flat(x, kernel):
    """As one matrix: so a CPU is twice as fast at the gradient for the kernel."""

    def flat(x, kernel):
        y = x.reshape(-1, x.shape[-1]) @ kernel
        return y.reshape(*x.shape[:-1], -1)

    @partial(jax.checkpoint, prevent_cse=False)
    def either(x, kernel):
        return lax.platform_dependent(x, kernel, cpu=flat, default=jnp.matmul)

    return either(x, kernel)


@jax.custom_jvp
def _matmul(x, kernel):
    return x @ kernel


@partial(_matmul.defjvp, symbolic_zeros=True)
def _matmul_jvp(primals, tangents):
    (x, kernel), (dx, dkernel) = primals, tangents
    y, by_x = x @ kernel, None if isinstance(dx, SymbolicZero) else dx @ kernel
    by_kernel = _flat(x, dkernel)
    return y, by_kernel if by_x is None else by_x + by_kernel


_cached = jax.jit(_matmul, inline=True)


def affine(p, x):
    y = matmul(x, p["kernel"])
    return y + jnp.broadcast_to(p["bias"], y.shape)


def convolve(p, x, stride=1):
    if p["kernel"].shape[:2] == (1, 1):  # every stride-th position, one by one
        y = x[:, ::stride, ::stride] @ jnp.reshape(p["kernel"], p["kernel"].shape[2:])
        return y + jnp.broadcast_to(p["bias"], y.shape)
    y = lax.conv_general_dilated(
        x,
        p["kernel"],
        (stride, stride),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return y + jnp.broadcast_to(p["bias"], y.shape)


def halved(x):
    """Max pooling 2 x 2: blocks as axes of their own, the first maximum wins."""
    b, h, w, c = x.shape
    x = jnp.reshape(x, (b, h // 2, 2, w // 2, 2, c))
    first, *rest = (
        lax.squeeze(
            lax.slice(x, (0, 0, i, 0, j, 0), (b, h // 2, i + 1, w // 2, j + 1, c)),
            (2, 4),
        )
        for i in range(2)
        for j in range(2)
    )
    for item in rest:
        keep = (first >= item) | (first != first)  # noqa: PLR0124 (a NaN passes on)
        first = jnp.where(keep, first, item)
    return first


def along_last(p, x):
    """The arrays of a norm at the rank of its input."""
    return {
        k: jnp.reshape(a, (*(1,) * (x.ndim - 1), x.shape[-1])) for k, a in p.items()
    }


def layer_normed(p, x):
    """With the derivative that the norms share, which is tested on its own."""
    q, over = along_last(p, x), Over((x.ndim - 1,))
    return normalized(x, q["scale"], q["bias"], None, over, 1e-6, True)[0]


def attended(p, x, heads):
    """The largest logit is a constant, and the quotient is taken last."""
    batch, time, width = x.shape
    q, k, v = (
        jnp.reshape(affine(p[part], x), (batch, time, heads, width // heads))
        for part in ("query", "key", "value")
    )
    q, k, v = (jnp.swapaxes(each, 1, 2) for each in (q, k, v))
    logits = jnp.matmul(
        q * (width // heads) ** -0.5,
        jnp.swapaxes(k, 2, 3),
        preferred_element_type=np.float32,
    )
    shape = (1, 1, time, time)
    rows, columns = (lax.broadcasted_iota(np.int32, shape, axis) for axis in (2, 3))
    seen = jnp.broadcast_to(rows - columns >= 0, logits.shape)
    lowest = jnp.asarray(jnp.finfo(jnp.float32).min, jnp.float32)
    logits = jnp.where(seen, logits, lowest)
    most = lax.stop_gradient(jnp.max(logits, -1, keepdims=True))
    grown = jnp.exp(logits - jnp.broadcast_to(most, logits.shape))
    total = jnp.sum(grown, -1, keepdims=True)
    y = jnp.matmul(grown, v, preferred_element_type=np.float32)
    y = jnp.swapaxes(y / jnp.broadcast_to(total, y.shape), 1, 2)
    return affine(p["out"], jnp.reshape(y, x.shape))


def transformer_block(p, x, heads=2):
    x = x + attended(p["attention"], layer_normed(p["layer_norm"], x), heads)
    y = affine(p["dense"], layer_normed(p["layer_norm_1"], x))
    return x + affine(p["dense_1"], jax.nn.gelu(y))


def batch_normed(p, s, x, train, momentum=0.9):
    q, running = along_last(p, x), along_last(s, x)
    if train:
        over = Over(tuple(range(x.ndim - 1)))
        y, mean, var = normalized(x, q["scale"], q["bias"], None, over, 1e-5, True)
        moved = {}
        for name, measured in (("mean", mean), ("var", var)):
            own = jnp.reshape(measured, s[name].shape)
            moved[name] = momentum * s[name] + (1 - momentum) * own
        return y, moved
    factor = lax.rsqrt(running["var"] + 1e-5) * q["scale"]
    return (x - running["mean"]) * factor + q["bias"], s


def key_at(key, path):
    """The documented rule: the root key folded with the two words of a 64-bit hash."""
    data = hashlib.blake2b(f"apply:{path}".encode(), digest_size=8).digest()
    for word in (data[:4], data[4:]):
        key = jax.random.fold_in(key, int.from_bytes(word, "big"))
    return key


def dropped(key, x, rate):
    """Dropout: 16 random bits for each number, two numbers a word."""
    *front, size = x.shape
    words = jax.random.bits(key, (*front, (size + 1) // 2), jnp.uint32)
    pairs = (*words.shape, 2)
    words = lax.broadcast_in_dim(words, pairs, tuple(range(x.ndim)))
    shifts = lax.broadcasted_iota(jnp.uint32, pairs, x.ndim) * jnp.uint32(16)
    bits = jnp.reshape((words >> shifts) & jnp.uint32(65535), x.shape)
    keep = bits >= jnp.uint32(round(rate * 65536))
    return jnp.where(keep, x * (1 / (1 - rate)), jnp.zeros((), x.dtype))


# --- ten models, by the library and by hand


class Case(NamedTuple):
    model: Any
    by_hand: Any
    x: Any
    loss: Any
    optimizer: Any


def squares(y):
    return sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(y))


def mlp():
    model = al.dense(32) >> jax.nn.relu >> al.dense(32) >> jax.nn.tanh >> al.dense(10)

    def by_hand(p, s, x, *, key=None, train=False):
        x = jax.nn.relu(affine(p["dense"], x))
        x = jax.nn.tanh(affine(p["dense_1"], x))
        return affine(p["dense_2"], x), s

    return Case(model, by_hand, (8, 20), squares, optax.adam(1e-3))


def conv_net():
    model = al.conv(8, 3) >> jax.nn.relu >> al.max_pool(2)
    model = model >> al.conv(16, 3, strides=2) >> jax.nn.relu >> al.max_pool(2)
    model = model >> al.flatten() >> al.dense(10)

    def by_hand(p, s, x, *, key=None, train=False):
        x = halved(jax.nn.relu(convolve(p["conv"], x)))
        x = halved(jax.nn.relu(convolve(p["conv_1"], x, stride=2)))
        return affine(p["dense"], jnp.reshape(x, (x.shape[0], -1))), s

    return Case(model, by_hand, (4, 16, 16, 1), squares, optax.adam(1e-3))


def residual_net():
    def block(features, stride=1):
        body = al.conv(features, 3, strides=stride) >> jax.nn.relu
        projection = al.identity if stride == 1 else al.conv(features, 1, strides=2)
        return al.residual(body >> al.conv(features, 3), projection)

    model = al.serial(
        stem=al.conv(8, 3),
        same=block(8).named(None),
        half=block(16, 2),
        pool=al.global_avg_pool(),
        head=al.dense(10),
    )

    def by_hand(p, s, x, *, key=None, train=False):
        x = convolve(p["stem"], x)
        q = p["same"]
        x = x + convolve(q["conv_1"], jax.nn.relu(convolve(q["conv"], x)))
        q = p["half"]
        kept = convolve(q["shortcut"], x, 2)
        x = kept + convolve(q["conv_1"], jax.nn.relu(convolve(q["conv"], x, 2)))
        return affine(p["head"], jnp.mean(x, (1, 2))), s

    return Case(model, by_hand, (4, 8, 8, 3), squares, optax.adam(1e-3))


def gpt(stacked):
    mixer = al.layer_norm() >> al.attention(2, causal=True)
    mlp = al.layer_norm() >> al.dense(32) >> jax.nn.gelu >> al.dense(8)
    block = al.residual(mixer) >> al.residual(mlp)

    def embed(sub, x):
        y = sub.tokens(x)
        places = sub.places()
        return y + jnp.broadcast_to(places, y.shape)

    def tied(sub, x):
        y = sub.norm(sub.blocks(sub.embed(x)))
        return y @ sub.embed.params["tokens"]["embedding"].T

    model = al.wire(
        tied,
        embed=al.wire(embed, tokens=al.embedding(11, 8), places=al.parameter((6, 8))),
        blocks=al.repeat(block, 3, stacked=stacked),
        norm=al.layer_norm(),
    )

    def blocks(p, x):
        if stacked:
            return lax.scan(lambda x, p: (transformer_block(p, x), None), x, p["*"])[0]
        for i in range(3):
            x = transformer_block(p[str(i)], x)
        return x

    def by_hand(p, s, x, *, key=None, train=False):
        table = p["embed"]["tokens"]["embedding"]
        y = table.at[x].get(
            mode="fill", fill_value=jnp.nan, wrap_negative_indices=False
        )
        y = y + jnp.broadcast_to(p["embed"]["places"]["value"], y.shape)
        y = layer_normed(p["norm"], blocks(p["blocks"], y))
        return y @ table.T, s

    x = jnp.zeros((2, 6), jnp.int32)
    return Case(model, by_hand, x, squares, optax.adam(1e-3))


def lstm():
    def last(x):
        return x[:, -1]

    model = al.lstm(16) >> last >> al.dense(3)

    multiply = multiplier(None, None)

    def before(q, carry, x):
        parts = jnp.split(multiply(carry[0], q["recurrent_kernel"]), 4, -1)
        return tuple(a + b for a, b in zip(x, parts, strict=True))

    def after(q, carry, z, fixed):
        i, f, g, o = z
        c = jax.nn.sigmoid(f) * carry[1] + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
        return (h, c), h

    def by_hand(p, s, x, *, key=None, train=False):
        q, xs = p["lstm"], jnp.moveaxis(x, 1, 0)
        start = tuple(jnp.zeros((x.shape[0], 16), x.dtype) for _ in "hc")
        y = product(xs, q["kernel"], None)
        y = y + jnp.broadcast_to(q["bias"], y.shape)
        xs = tuple(jnp.split(y, 4, -1))
        _, ys = recurrence(before, after, q, start, xs, None)
        return affine(p["dense"], jnp.moveaxis(ys, 0, 1)[:, -1]), s

    return Case(model, by_hand, (4, 7, 5), squares, optax.adam(1e-3))


def siamese():
    def distance(a, b):
        return jnp.sum(jnp.square(a - b), -1)

    model = al.shared(al.dense(16) >> jax.nn.relu >> al.dense(4)) >> distance

    def tower(p, x):
        return affine(p["dense_1"], jax.nn.relu(affine(p["dense"], x)))

    def by_hand(p, s, x, *, key=None, train=False):
        return distance(*(tower(p, each) for each in x)), s

    return Case(model, by_hand, ((5, 6), (5, 6)), squares, optax.sgd(0.1))


def two_and_two():
    model = (
        al.parallel(image=al.dense(8), text=al.dense(4))
        >> al.concatenate()
        >> jax.nn.relu
        >> al.branch(kind=al.dense(3), box=al.dense(4))
    )

    def by_hand(p, s, x, *, key=None, train=False):
        q = p["parallel"]
        towers = [affine(q["image"], x["image"]), affine(q["text"], x["text"])]
        y = jax.nn.relu(jnp.concatenate(towers, -1))
        q = p["branch"]
        return {"kind": affine(q["kind"], y), "box": affine(q["box"], y)}, s

    x = {"image": (5, 6), "text": (5, 7)}
    return Case(model, by_hand, x, squares, optax.sgd(0.1, momentum=0.9))


def batch_norm():
    model = al.conv(8, 3) >> al.batch_norm(momentum=0.9) >> jax.nn.relu
    model = model >> al.global_avg_pool() >> al.dense(5)
    model = model >> al.batch_norm(momentum=0.9)

    def by_hand(p, s, x, *, key=None, train=False):
        x, first = batch_normed(
            p["batch_norm"], s["batch_norm"], convolve(p["conv"], x), train
        )
        x = affine(p["dense"], jnp.mean(jax.nn.relu(x), (1, 2)))
        x, second = batch_normed(p["batch_norm_1"], s["batch_norm_1"], x, train)
        return x, {"batch_norm": first, "batch_norm_1": second}

    return Case(model, by_hand, (4, 6, 6, 2), squares, optax.adam(1e-3))


def dropout():
    block = al.residual(al.dense(16) >> jax.nn.relu >> al.dropout(0.1))
    model = al.dense(16) >> al.dropout(0.2) >> al.dropout(0.3)
    model = model >> al.repeat(block, 3).named("blocks") >> al.dense(4)

    def by_hand(p, s, x, *, key=None, train=False):
        def block(x, each):
            p, index = each
            y = jax.nn.relu(affine(p["dense"], x))
            if train:
                own = jax.random.fold_in(key_at(key, "blocks/dropout"), index)
                y = dropped(own, y, 0.1)
            return x + y, None

        x = affine(p["dense"], x)
        if train:
            x = dropped(key_at(key, "dropout"), x, 0.2)
            x = dropped(key_at(key, "dropout_1"), x, 0.3)
        index = jnp.arange(3, dtype=jnp.uint32) if train else None
        x = lax.scan(block, x, (p["blocks"]["*"], index))[0]
        return affine(p["dense_1"], x), s

    return Case(model, by_hand, (8, 12), squares, optax.sgd(0.1))


CASES = {
    "mlp": mlp,
    "conv_net": conv_net,
    "residual_net": residual_net,
    "gpt_unrolled": lambda: gpt(stacked=False),
    "gpt_stacked": lambda: gpt(stacked=True),
    "lstm": lstm,
    "siamese": siamese,
    "two_inputs_two_outputs": two_and_two,
    "batch_norm": batch_norm,
    "dropout": dropout,
}


def made(name):
    """A case with its params and state, as shapes: nothing is computed here."""
    case = CASES[name]()
    x = as_arrays(case.x)
    params, state = jax.eval_shape(case.model.init, KEY, x)
    return case._replace(x=x), params, state


def as_arrays(x):
    """Zeros where a shape stands, in a pytree."""

    def is_shape(x):
        return isinstance(x, tuple) and isinstance(x[0], int)

    return jax.tree.map(
        lambda x: jnp.zeros(x) if is_shape(x) else x, x, is_leaf=is_shape
    )


def train_step(apply, case):
    """What a user writes around `apply`: the same lines whoever made it."""

    def step(params, state, opt_state, x, key):
        def loss(params):
            y, after = apply(params, state, x, key=key, train=True)
            return case.loss(y), after

        (value, after), grads = jax.value_and_grad(loss, has_aux=True)(params)
        updates, opt_state = case.optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), after, opt_state, value

    return step


@pytest.mark.parametrize("name", CASES)
def test_inference_is_what_one_writes_by_hand(name):
    case, params, state = made(name)
    args = (params, state, case.x)
    assert_same_text(stablehlo(case.model.apply, *args), stablehlo(case.by_hand, *args))


@pytest.mark.parametrize("name", CASES)
def test_a_train_step_is_what_one_writes_by_hand(name):
    case, params, state = made(name)
    with jax.numpy_dtype_promotion("standard"):  # optax's own updates need it
        opt_state = jax.eval_shape(case.optimizer.init, params)
        args = (params, state, opt_state, case.x, KEY)
        ours = stablehlo(train_step(case.model.apply, case), *args)
        by_hand = stablehlo(train_step(case.by_hand, case), *args)
    assert_same_text(ours, by_hand)


def test_one_needless_operation_is_seen_and_shown():
    case, params, state = made("mlp")
    model = case.model >> jnp.negative
    args = (params, state, case.x)
    ours, by_hand = stablehlo(model.apply, *args), stablehlo(case.by_hand, *args)
    with pytest.raises(pytest.fail.Exception) as failed:
        assert_same_text(ours, by_hand)
    added = [line for line in str(failed.value).splitlines() if line.startswith("+ ")]
    assert any("stablehlo.negate" in line for line in added)
