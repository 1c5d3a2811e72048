"""FLOPs of every layer of the catalogue and every combinator, against closed forms."""

import jax
import jax.numpy as jnp
import pytest

import axonlike as al


def dense(rows, n, features):
    """A product of matrices, and a bias."""
    return 2 * rows * n * features + rows * features


def conv(positions, taps, n, features):
    """So many positions, at each a sum over taps and channels; and a bias."""
    return 2 * positions * taps * n * features + positions * features


def recurrent(gates, rest, *, steps=1, n=16, units=32, batch=8):
    """Steps of two products, with `rest` operations for each unit."""
    return steps * batch * (2 * (n + units) * gates * units + rest * units)


def attention(batch, time, width, heads):
    scores = batch * heads * time * time
    projections = 4 * dense(batch * time, width, width)
    products = 2 * 2 * batch * time * time * width
    softmax = 3 * scores  # less the largest, exponential, sum
    return (
        projections + products + softmax + 2 * batch * time * width
    )  # scaled, divided


IMAGE = 8 * 16 * 16  # positions of "8 16 16 c"
INT = al.spec("8 5", int)

# layer: (the layer, its input, operations)
TABLE = {
    # windows of 4 by 4: their sums, two scalings
    "adaptive_avg_pool": (al.adaptive_avg_pool(4), "8 16 16 3", 384 * (15 + 2)),
    "adaptive_lp_pool": (al.adaptive_lp_pool(4), "8 16 16 3", 6144 + 384 * (15 + 1)),
    "adaptive_max_pool": (al.adaptive_max_pool(4), "8 16 16 3", 0),
    "alpha_dropout": (al.alpha_dropout(0.5), "8 64", 0),
    "attention": (al.attention(4), "8 32 64", attention(8, 32, 64, 4)),
    "avg_pool": (al.avg_pool(2), "8 16 16 3", 1536 * (3 + 1)),
    # less the mean, times the scale, plus the bias
    "batch_norm": (al.batch_norm(), "8 16 16 32", 3 * IMAGE * 32),
    "bias": (al.bias(), "8 64", 8 * 64),
    "bilinear": (
        al.bilinear(16),
        ("8 32", "8 24"),
        2 * 8 * 32 * 24 * 16 + 2 * 8 * 24 * 16 + 8 * 16,
    ),
    # three taps along one axis of 16 and 2 of padding, and then along the other
    "blur_pool": (al.blur_pool(), "8 16 16 4", 8 * 4 * (8 * 18 + 8 * 8) * 5),
    "class_token": (al.class_token(), "8 16 32", 0),
    "conv": (al.conv(16, 3), "8 16 16 4", conv(IMAGE, 9, 4, 16)),
    "conv_local": (
        al.conv_local(16, 3, padding="VALID"),
        "8 10 10 4",
        conv(8 * 8 * 8, 9, 4, 16),
    ),
    "conv_lstm": (
        al.conv_lstm(8, 3),
        "2 5 8 8 4",
        5 * 2 * 64 * (2 * 9 * (4 + 8) * 4 * 8 + 17 * 8),
    ),
    "conv_lstm_cell": (
        al.conv_lstm_cell(8, 3),
        (("2 8 8 8", "2 8 8 8"), "2 8 8 4"),
        2 * 64 * (2 * 9 * (4 + 8) * 4 * 8 + 17 * 8),
    ),
    # each input reaches four outputs
    "conv_transpose": (
        al.conv_transpose(16, 2, 2),
        "8 8 8 4",
        2 * 8 * 64 * 4 * 4 * 16 + IMAGE * 16,
    ),
    "dense": (al.dense(64), "8 32", dense(8, 32, 64)),
    "depthwise_conv": (al.depthwise_conv(3), "8 16 16 4", conv(IMAGE * 4, 9, 1, 1)),
    "drop_path": (al.drop_path(0.5), "8 64", 0),
    "dropout": (al.dropout(0.5), "8 64", 0),
    "einsum": (
        al.einsum("...d,dhk->...hk", {"h": 4, "k": 8}),
        "8 5 32",
        dense(40, 32, 32),
    ),
    "embedding": (al.embedding(100, 32), INT, 0),
    "feature_alpha_dropout": (al.feature_alpha_dropout(0.5), "8 5 64", 0),
    # squares, their mean, scaled, plus the bias
    "filter_response_norm": (
        al.filter_response_norm(),
        "8 16 16 32",
        4 * IMAGE * 32,
    ),
    "flatten": (al.flatten(), "8 4 4", 0),
    "gaussian_dropout": (al.gaussian_dropout(0.5), "8 64", 0),
    "gaussian_noise": (al.gaussian_noise(0.5), "8 64", 0),
    "geglu": (al.geglu(64), "8 32", dense(8, 32, 128) + 8 * 64 * (9 + 1)),
    "global_avg_pool": (al.global_avg_pool(), "8 16 16 4", IMAGE * 4),
    "global_lp_pool": (al.global_lp_pool(), "8 16 16 4", 2 * IMAGE * 4 + 32),
    # the largest is found by comparing, and taken out by a sum
    "global_max_pool": (al.global_max_pool(), "8 16 16 4", IMAGE * 4 - 32),
    "glu": (al.glu(64), "8 32", dense(8, 32, 128) + 8 * 64 * 2),
    "group_norm": (al.group_norm(4), "8 16 16 32", 9 * IMAGE * 32),
    "gru": (al.gru(32), "8 10 16", recurrent(3, 15, steps=10)),
    "gru_cell": (al.gru_cell(32), ("8 32", "8 16"), recurrent(3, 15)),
    "instance_norm": (al.instance_norm(), "8 16 16 32", 9 * IMAGE * 32),
    "kv_cache": (al.kv_cache(8), ("2 4 3 2", "2 4 3 2"), 0),
    # the mean, for the variance again; squares, their mean; scaled twice, plus the bias
    "layer_norm": (al.layer_norm(), "8 128", 9 * 8 * 128),
    "learned_positions": (al.learned_positions(16), "8 16 32", 8 * 16 * 32),
    "low_rank": (al.low_rank(64, 4), "8 32", 2 * 8 * 32 * 4 + dense(8, 4, 64)),
    "lp_pool": (al.lp_pool(2), "8 16 16 3", 6144 + 1536 * (3 + 1)),
    "lstm": (al.lstm(32), "8 10 16", recurrent(4, 17, steps=10)),
    "lstm_cell": (al.lstm_cell(32), (("8 32", "8 32"), "8 16"), recurrent(4, 17)),
    "max_pool": (al.max_pool(2), "8 16 16 3", 0),
    "maxout": (al.maxout(16, 4), "8 32", dense(8, 32, 64)),
    "mgu": (al.mgu(32), "8 10 16", recurrent(2, 12, steps=10)),
    "mgu_cell": (al.mgu_cell(32), ("8 32", "8 16"), recurrent(2, 12)),
    "min_pool": (al.min_pool(2), "8 16 16 3", 0),
    "pad": (al.pad(1), "8 4 4 2", 0),
    "patch_embedding": (al.patch_embedding(32, 4), "8 16 16 3", dense(128, 48, 32)),
    "pixel_shuffle": (al.pixel_shuffle(2), "8 4 4 8", 0),
    "pixel_unshuffle": (al.pixel_unshuffle(2), "8 4 4 8", 0),
    "prelu": (al.prelu(), "8 64", 8 * 64),
    "projection": (al.projection(), ("8 32", "8 64"), dense(8, 32, 64)),
    "reshape": (al.reshape(4, 4), "8 16", 0),
    # a product along one axis, then along the other
    "resize": (
        al.resize(scale=2, method="bilinear"),
        "8 4 4 8",
        2 * 8 * 8 * (8 * 4 * 4 + 8 * 8 * 4),
    ),
    "rms_norm": (al.rms_norm(), "8 128", 4 * 8 * 128),
    "rnn": (al.rnn(32), "8 10 16", recurrent(1, 3, steps=10)),
    "rnn_cell": (al.rnn_cell(32), ("8 32", "8 16"), recurrent(1, 3)),
    # two products and a sum; an angle, its sine and cosine for each pair
    "rotary": (al.rotary(), "8 16 4 32", 3 * 8 * 16 * 4 * 32 + 3 * 16 * 16),
    "scale": (al.scale(), "8 64", 8 * 64),
    "separable_conv": (
        al.separable_conv(16, 3),
        "8 16 16 4",
        2 * IMAGE * 9 * 4 + dense(IMAGE, 4, 16),
    ),
    # six operations for each entry of the table
    "sinusoidal_positions": (
        al.sinusoidal_positions(),
        "8 16 32",
        8 * 16 * 32 + 6 * 16 * 32,
    ),
    "spatial_dropout": (al.spatial_dropout(0.5), "8 4 4 8", 0),
    # the largest singular value, and the kernel divided by it
    "spectral_norm": (
        al.spectral_norm(al.dense(64)),
        "8 32",
        dense(8, 32, 64) + 3 * 32 * 64 + 2 * 32,
    ),
    "squeeze_excite": (
        al.squeeze_excite(4),
        "8 8 8 32",
        2 * 8 * 64 * 32 + dense(8, 32, 8) + dense(8, 8, 32) + 8 * 32,
    ),
    "swiglu": (al.swiglu(64), "8 32", dense(8, 32, 128) + 8 * 64 * 3),
    "transpose": (al.transpose(2, 1), "8 3 4", 0),
    # squares of the kernel, their sums, scaled
    "weight_norm": (
        al.weight_norm(al.dense(64)),
        "8 32",
        dense(8, 32, 64) + 3 * 32 * 64 + 2 * 64,
    ),
}


ONE = dense(8, 32, 32)
SUM = 8 * 32


def layer():
    return al.dense(32)


def is_positive(x):
    return x[0, 0] > 0


def first(x):
    return 0


def twice(sub, x):
    return sub.f(sub.f(x))


def shifted(sub, x):
    return x + jnp.broadcast_to(sub.shift(), x.shape)


PIPE = al.serial(a=layer(), b=layer(), c=layer())

# combinator: around layers of ONE operations each
COMBINED = {
    "adapter": (al.adapter(layer(), 4), "8 32", ONE + 2 * 2 * 8 * 32 * 4 + SUM),
    "add": (al.add(layer(), layer()), "8 32", 2 * ONE + SUM),
    "between": (al.between(PIPE, "a", "c"), "8 32", 2 * ONE),
    "bidirectional": (
        al.bidirectional(al.rnn(32)),
        "8 10 16",
        2 * recurrent(1, 3, steps=10),
    ),
    "branch": (al.branch(layer(), layer()), "8 32", 2 * ONE),
    "concatenate": (al.concatenate(layer(), layer()), "8 32", 2 * ONE),
    "cond": (al.cond(is_positive, layer() >> layer(), layer()), "8 32", 2 * ONE),
    "ensemble": (al.ensemble(layer(), 3), "8 32", 3 * ONE),
    "frozen": (al.frozen(layer()), "8 32", ONE),
    "input": (al.input("b 32") >> layer(), "8 32", ONE),
    "mixed": (al.mixed(layer(), jnp.bfloat16), "8 32", ONE),
    "multiply": (al.multiply(layer(), layer()), "8 32", 2 * ONE + SUM),
    "on_item": (al.on_item(1, layer()), ("8 32", "8 32"), ONE),
    "parallel": (al.parallel(layer(), layer()), ("8 32", "8 32"), 2 * ONE),
    "parameter": (al.wire(shifted, shift=al.parameter((32,))), "8 32", SUM),
    "pick": (al.pick(1) >> layer(), ("8 32", "8 32"), ONE),
    "remat": (al.remat(layer()), "8 32", ONE),
    "repeat": (al.repeat(layer(), 5), "8 32", 5 * ONE),
    "repeat, tied": (al.repeat(layer(), 5, tied=True), "8 32", 5 * ONE),
    "repeat, two at once": (al.repeat(layer(), 4, unroll=2), "8 32", 4 * ONE),
    "repeat, recomputed": (al.repeat(layer(), 4, remat=True), "8 32", 4 * ONE),
    "repeat, unrolled": (al.repeat(layer(), 4, stacked=False), "8 32", 4 * ONE),
    "residual": (al.residual(layer()), "8 32", ONE + SUM),
    "scan": (al.scan(al.rnn_cell(32)), "8 10 16", recurrent(1, 3, steps=10)),
    "serial": (PIPE, "8 32", 3 * ONE),
    "shared": (al.shared(layer()), ("8 32", "8 32"), 2 * ONE),
    "switch": (al.switch(first, layer(), layer() >> layer()), "8 32", 2 * ONE),
    "tie": (al.tie(PIPE, {"b/kernel": "a/kernel"}), "8 32", 3 * ONE),
    "vmap": (al.vmap(layer(), in_axes=1), "8 4 32", 4 * ONE),
    "wire": (al.wire(twice, f=layer()), "8 32", 2 * ONE),
}


def spec_of(x):
    return jax.tree.map(
        lambda item: al.spec(item) if isinstance(item, str) else item, x
    )


@pytest.mark.parametrize("name", TABLE)
def test_flops_are_within_one_percent_of_the_closed_form(name):
    layer, x, wanted = TABLE[name]
    found = al.summary(layer, spec_of(x)).total("flops")
    assert found == pytest.approx(wanted, rel=0.01)


@pytest.mark.parametrize("name", COMBINED)
def test_flops_are_found_inside_of_every_combinator(name):
    model, x, wanted = COMBINED[name]
    assert al.summary(model, spec_of(x)).total("flops") == wanted


@pytest.mark.parametrize(
    ("function", "wanted"),
    [(jnp.sum, 4 * 8 - 1), (lambda x: jnp.sum(x, 0), 3 * 8), (jnp.prod, 4 * 8 - 1)],
)
def test_of_a_reduction_the_first_number_of_each_sum_costs_nothing(function, wanted):
    assert al.summary(al.lift(function), "4 8").total("flops") == wanted


def test_the_tables_have_every_public_layer():
    """One that is new has to be put into a table, wherever it is defined."""
    public = [n for n in al.__all__ if hasattr(getattr(al, n), "__axonlike_factory__")]
    assert set(public) == {name.partition(",")[0] for name in (*TABLE, *COMBINED)}
