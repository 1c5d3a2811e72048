"""Twelve small models of every build, for what shows models: tables, texts, pictures."""

import jax
import jax.numpy as jnp
import numpy as np

import axonlike as al


def mlp():
    """A pipe, and nothing else."""
    model = al.flatten() >> al.dense(128) >> jax.nn.relu >> al.dense(10)
    return model, al.spec("b 28 28 1")


def convnet():
    """State, and layers without params."""
    stage = al.conv(8, 3) >> al.batch_norm() >> jax.nn.relu >> al.max_pool(2)
    head = al.flatten() >> al.dropout(0.5) >> al.dense(10)
    return stage >> al.conv(16, 3) >> jax.nn.relu >> head, al.spec("b 16 16 3")


def resnet():
    """Residuals, one of them with a projection; named blocks."""

    def block(features, strides):
        f = al.conv(features, 3, strides) >> al.batch_norm() >> jax.nn.relu
        if strides == 1:
            return al.residual(f)
        return al.residual(f, shortcut=al.conv(features, 1, strides))

    model = al.serial(
        stem=al.conv(8, 3),
        block1=block(8, 1),
        block2=block(16, 2),
        pool=al.global_avg_pool(),
        head=al.dense(10),
    )
    return model, al.spec("b 16 16 3")


def siamese():
    """One set of weights for two inputs."""
    encoder = al.dense(32) >> jax.nn.relu >> al.dense(16)
    model = al.serial(encoder=al.shared(encoder), distance=_distance, head=al.dense(1))
    return model, (al.spec("b 20"), al.spec("b 20"))


def _distance(a, b):
    return jnp.abs(a - b)


def two_towers():
    """Two inputs by name, two outputs by name."""
    towers = al.parallel(
        user=al.dense(16) >> jax.nn.relu,
        item=al.embedding(50, 8) >> al.dense(16),
    )
    heads = al.branch(rating=al.dense(1), click=al.dense(2) >> jax.nn.softmax)
    model = al.serial(towers=towers, joined=al.concatenate(), heads=heads)
    return model, {"user": al.spec("b 12"), "item": al.spec("b", int)}


def transformer_block():
    """Pre-norm attention and MLP."""
    attn = al.layer_norm() >> al.attention(4, causal=True, name="attn")
    mlp = al.layer_norm() >> al.dense(128) >> jax.nn.gelu >> al.dense(32)
    return al.residual(attn) >> al.residual(mlp.named("mlp"))


def gpt():
    """A stacked repeat: one scan."""
    model = al.serial(
        embed=al.embedding(100, 32),
        positions=al.learned_positions(16),
        blocks=al.repeat(transformer_block(), 6),
        norm=al.layer_norm(),
        head=al.dense(100, use_bias=False),
    )
    return model, al.spec("b 16", int)


def vit():
    """An unrolled repeat."""
    model = al.serial(
        patches=al.patch_embedding(32, 4),
        cls=al.class_token(),
        blocks=al.repeat(transformer_block(), 3, stacked=False),
        pool=al.lift(_first_token),
        head=al.dense(10),
    )
    return model, al.spec("b 16 16 3")


def _first_token(x):
    return x[:, 0]


def unet():
    """A wire with skip connections."""

    def double(features):
        return (
            al.conv(features, 3) >> jax.nn.relu >> al.conv(features, 3) >> jax.nn.relu
        )

    model = al.wire(
        _unet,
        down1=double(8),
        down2=double(16),
        middle=double(32),
        up2=al.conv_transpose(16, 2, 2),
        merge2=double(16),
        up1=al.conv_transpose(8, 2, 2),
        merge1=double(8),
        pool=al.max_pool(2),
        head=al.conv(2, 1),
    )
    return model, al.spec("b 16 16 1")


def _unet(sub, x):
    a = sub.down1(x)
    b = sub.down2(sub.pool(a))
    c = sub.middle(sub.pool(b))
    y = sub.merge2(jnp.concatenate([sub.up2(c), b], -1))
    y = sub.merge1(jnp.concatenate([sub.up1(y), a], -1))
    return sub.head(y)


def lstm():
    """Recurrent layers over time, in both directions."""
    model = al.serial(
        embed=al.embedding(50, 8),
        encoder=al.bidirectional(al.lstm(16)),
        decoder=al.lstm(16, return_sequence=False),
        head=al.dense(3),
    )
    return model, al.spec("b t", int)


def ensemble():
    """Members side by side, and what becomes of their answers."""
    member = al.dense(16) >> jax.nn.tanh >> al.dense(3)
    model = al.serial(members=al.ensemble(member, 5), mean=_mean)
    return model, al.spec("b 4")


def _mean(y):
    return jnp.mean(y, axis=0)


def autoencoder():
    """Tied weights, and a part that is frozen."""
    pipe = al.serial(
        encoder=al.frozen(al.dense(16) >> jax.nn.relu),
        code=al.dense(4, use_bias=False),
        expand=al.dense(16, use_bias=False),
        decoder=al.dense(20),
    )
    return al.tie(pipe, {"expand/kernel": "code/kernel"}, transpose=True), al.spec(
        "b 20"
    )


def experts():
    """Low precision, rematerialization and a choice at run time."""
    expert = al.dense(32) >> jax.nn.gelu >> al.dense(16)
    model = al.serial(
        body=al.mixed(al.remat(al.dense(16) >> jax.nn.gelu), jnp.bfloat16),
        choice=al.switch(_which, expert, al.dense(16), al.identity),
        out=al.cond(_is_positive, al.dense(2), al.dense(2)),
    )
    return model, al.spec("b 16")


def _which(x):
    return jnp.argmax(jnp.sum(x[:, :3], axis=0)).astype(jnp.int32)


def _is_positive(x):
    return x[0, 0] > 0


MODELS = {
    build.__name__: build
    for build in (
        mlp,
        convnet,
        resnet,
        siamese,
        two_towers,
        gpt,
        vit,
        unet,
        lstm,
        ensemble,
        autoencoder,
        experts,
    )
}
"""By name, a function that builds the model and the spec of its input."""


# --- the models that `al.models` builds

SMALL = {"features": 16, "num_layers": 2, "num_heads": 2}
TEXT = al.spec("b t", int, ("t<=9",))


def gpt2():
    """Tokens in, one projection for queries, keys and values."""
    return al.models.gpt2(vocab_size=11, max_length=9, **SMALL), TEXT


def llama():
    """Rotary positions, grouped heads, a tied embedding."""
    how = {"vocab_size": 11, "hidden_features": 24, "num_kv_heads": 1, "tied": True}
    return al.models.llama(**how, **SMALL), TEXT


def bert():
    """Tokens and a mask in, a class out."""
    how = {"vocab_size": 11, "max_length": 9, "hidden_features": 24}
    model = al.models.bert(head="classifier", **how, **SMALL)
    return model, (TEXT, al.spec("b t", bool, ("t<=9",)))


def small_vit():
    """Images of nine patches."""
    how = {"patch_size": 2, "hidden_features": 24, "num_patches": 9, "num_labels": 3}
    return al.models.vit(**how, **SMALL), al.spec("b 6 6 3")


def small_resnet():
    """Images, in two stages."""
    how = {"embedding_size": 4, "widths": (4, 8), "depths": (1, 2), "num_labels": 3}
    return al.models.resnet(**how), al.spec("b 16 16 3")


def transformer_encoder():
    """Vectors of any number."""
    how = {"features": 16, "hidden_features": 24}
    return al.models.transformer_encoder(2, 2, **how), al.spec("b t 16")


def stacked_lstm():
    """Over time, in both directions."""
    return al.models.stacked_lstm(8, 2, bidirectional=True), al.spec("b t 4")


def stacked_gru():
    """Over time."""
    return al.models.stacked_gru(8, 2), al.spec("b t 4")


def writer():
    """Text, token by token: attention that keeps what it has seen, in stacked copies."""
    how = {"num_heads": 2, "causal": True, "rotary": al.rotary(), "cache_length": 6}
    block = al.residual(al.attention(**how))
    model = al.serial(emb=al.embedding(7, 4), blocks=block**2, head=al.dense(7))
    return model, al.spec("2 t", int, ("t<=6",))


FAMILIES = {
    "bert": bert,
    "gpt2": gpt2,
    "llama": llama,
    "resnet": small_resnet,
    "stacked_gru": stacked_gru,
    "stacked_lstm": stacked_lstm,
    "transformer_encoder": transformer_encoder,
    "vit": small_vit,
}
"""By name in `al.models`, a function that builds the model, small, and its spec."""


def drawn(model, spec):
    """Params and state without `init`, most of whose time is compilation.

    Numbers that are not the zeros and ones of new weights; what has to be positive is.
    """
    shapes = jax.eval_shape(lambda key: model.init(key, spec), jax.random.key(0))
    return jax.tree_util.tree_map_with_path(_drawn, shapes)


def _drawn(keys, like):
    if not jnp.issubdtype(like.dtype, jnp.floating):
        return jnp.zeros(like.shape, like.dtype)
    name = jax.tree_util.keystr(keys[-1:], simple=True)
    numbers = np.random.default_rng(like.size).uniform(-0.5, 0.5, like.shape)
    numbers = numbers + (name in ("scale", "var"))
    return jnp.asarray(np.asarray(numbers, np.float32), like.dtype)
