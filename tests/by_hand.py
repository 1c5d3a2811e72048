"""The models of `zoo` as one writes them without combinators: a function for each."""

import jax
import jax.numpy as jnp
from jax import lax
from zoo import _distance, _first_token, _is_positive, _mean, _which

import axonlike as al


def one(layer, p, x, s=None):
    """A layer by itself, which is no combinator."""
    return layer.predict(p, s or {}, x)


def mlp(p, s, x):
    x = jax.nn.relu(one(al.dense(128), p["dense"], one(al.flatten(), {}, x)))
    return one(al.dense(10), p["dense_1"], x)


def convnet(p, s, x):
    x = one(al.conv(8, 3), p["conv"], x)
    x = one(al.batch_norm(), p["batch_norm"], x, s["batch_norm"])
    x = one(al.max_pool(2), {}, jax.nn.relu(x))
    x = jax.nn.relu(one(al.conv(16, 3), p["conv_1"], x))
    return one(al.dense(10), p["dense"], one(al.flatten(), {}, x))


def resnet(p, s, x):
    def block(name, features, strides, x):
        q = p[name]
        shortcut = al.identity if strides == 1 else al.conv(features, 1, strides)
        across = one(shortcut, q.get("shortcut", {}), x)
        y = one(al.conv(features, 3, strides), q["conv"], x)
        y = one(al.batch_norm(), q["batch_norm"], y, s[name]["batch_norm"])
        return across + jax.nn.relu(y)

    x = one(al.conv(8, 3), p["stem"], x)
    x = block("block2", 16, 2, block("block1", 8, 1, x))
    return one(al.dense(10), p["head"], one(al.global_avg_pool(), {}, x))


def siamese(p, s, x):
    q = p["encoder"]
    y, z = (
        one(
            al.dense(16), q["dense_1"], jax.nn.relu(one(al.dense(32), q["dense"], each))
        )
        for each in x
    )
    return one(al.dense(1), p["head"], _distance(y, z))


def two_towers(p, s, x):
    q, r = p["towers"], p["heads"]
    user = jax.nn.relu(one(al.dense(16), q["user"]["dense"], x["user"]))
    item = one(al.embedding(50, 8), q["item"]["embedding"], x["item"])
    item = one(al.dense(16), q["item"]["dense"], item)
    y = jnp.concatenate([user, item], -1)
    rating, click = (
        one(al.dense(n), q, y) for n, q in ((1, r["rating"]), (2, r["click"]["dense"]))
    )
    return {"rating": rating, "click": jax.nn.softmax(click)}


def transformer_block(p, x):
    attention = al.attention(4, causal=True)
    x = x + one(attention, p["attn"], one(al.layer_norm(), p["layer_norm"], x))
    q = p["mlp"]
    y = one(al.dense(128), q["dense"], one(al.layer_norm(), q["layer_norm"], x))
    return x + one(al.dense(32), q["dense_1"], jax.nn.gelu(y))


def gpt(p, s, x):
    x = one(al.embedding(100, 32), p["embed"], x)
    x = one(al.learned_positions(16), p["positions"], x)
    blocks = p["blocks"]["*"]
    x, _ = lax.scan(lambda x, q: (transformer_block(q, x), None), x, blocks, length=6)
    x = one(al.layer_norm(), p["norm"], x)
    return one(al.dense(100, use_bias=False), p["head"], x)


def vit(p, s, x):
    x = one(al.patch_embedding(32, 4), p["patches"], x)
    x = one(al.class_token(), p["cls"], x)
    for i in range(3):
        x = transformer_block(p["blocks"][str(i)], x)
    return one(al.dense(10), p["head"], _first_token(x))


def unet(p, s, x):
    pool = al.max_pool(2)

    def double(name, features, x):
        for conv in ("conv", "conv_1"):
            x = jax.nn.relu(one(al.conv(features, 3), p[name][conv], x))
        return x

    a = double("down1", 8, x)
    b = double("down2", 16, one(pool, {}, a))
    c = double("middle", 32, one(pool, {}, b))
    up2 = one(al.conv_transpose(16, 2, 2), p["up2"], c)
    y = double("merge2", 16, jnp.concatenate([up2, b], -1))
    up1 = one(al.conv_transpose(8, 2, 2), p["up1"], y)
    y = double("merge1", 8, jnp.concatenate([up1, a], -1))
    return one(al.conv(2, 1), p["head"], y)


def lstm(p, s, x):
    q = p["encoder"]
    x = one(al.embedding(50, 8), p["embed"], x)
    there = one(al.lstm(16), q["forward"], x)
    back = jnp.flip(one(al.lstm(16), q["backward"], jnp.flip(x, 1)), 1)
    x = jnp.concatenate([there, back], -1)
    x = one(al.lstm(16, return_sequence=False), p["decoder"], x)
    return one(al.dense(3), p["head"], x)


def ensemble(p, s, x):
    def member(q):
        y = jnp.tanh(one(al.dense(16), q["dense"], x))
        return one(al.dense(3), q["dense_1"], y)

    return _mean(jax.vmap(member)(p["members"]["*"]))


def autoencoder(p, s, x):
    tied = {"kernel": jnp.transpose(p["code"]["kernel"])}
    frozen = lax.stop_gradient(p["encoder"])
    x = jax.nn.relu(one(al.dense(16), frozen["dense"], x))
    x = one(al.dense(4, use_bias=False), p["code"], x)
    x = one(al.dense(16, use_bias=False), tied, x)
    return one(al.dense(20), p["decoder"], x)


def experts(p, s, x):
    @jax.checkpoint
    def body(q, x):
        return jax.nn.gelu(one(al.dense(16), q["dense"], x))

    def expert(x):
        q = p["choice"]["serial"]
        y = jax.nn.gelu(one(al.dense(32), q["dense"], x))
        return one(al.dense(16), q["dense_1"], y)

    half = jax.tree.map(lambda w: w.astype(jnp.bfloat16), p["body"])
    x = body(half, x.astype(jnp.bfloat16))
    plain = p["choice"]["dense"]
    choices = [expert, lambda x: one(al.dense(16), plain, x), lambda x: x]
    x = lax.switch(_which(x), choices, x)
    first, second = p["out"]["dense"], p["out"]["dense_1"]
    return lax.cond(
        _is_positive(x),
        lambda x: one(al.dense(2), first, x),
        lambda x: one(al.dense(2), second, x),
        x,
    )
