"""One table of every public layer and combinator; every law over every row."""

import jax
import jax.numpy as jnp
import pytest

import axonlike as al
from axonlike.spec import as_spec
from axonlike.testing import _sized, _sizes, check_layer

D = al.dense(3)
MIXES = {"mixes_examples": True}

LENGTHS = {"x": al.spec("b t 2"), "lengths": al.spec("b", int)}


def gated(sub, x):
    return sub.value(x) * jax.nn.sigmoid(sub.gate(x))


def shifted(sub, x):
    return x + jnp.broadcast_to(sub.shift().astype(x.dtype), x.shape)


def tied_head(sub, ids):
    return sub.emb(sub.f(sub.emb(ids)), attend=True)


def positive_first(x):
    return x[0, 0] > 0


def which(x):
    return (x[0, 0] > 0).astype(jnp.int32)


def two(x, y):
    return x + y


def noisy():
    return al.residual(al.dense(4) >> al.dropout(0.5))


# public name: rows of (layer, spec, what check_layer has to know)
TABLE = {
    "adapter": [(al.adapter(D, 2, alpha=3), "b 4", {})],
    "adaptive_avg_pool": [(al.adaptive_avg_pool(3), "b 5 4 2", {})],
    "adaptive_lp_pool": [(al.adaptive_lp_pool((2, None), norm=3), "b 5 w 2", {})],
    "adaptive_max_pool": [(al.adaptive_max_pool((2, None)), "b 5 w 2", {})],
    "add": [(al.add(D, D), "b 4", {}), (D + al.dense(3), "b 4", {})],
    "alpha_dropout": [(al.alpha_dropout(0.5), "b 4", {})],
    "attention": [
        (al.attention(2), "b t 4", {}),
        (al.attention(2, causal=True), "b t 4", {}),
        (
            al.attention(4, num_kv_heads=2, head_dim=2, rotary=al.rotary()),
            {"query": al.spec("b t 4"), "keys_values": al.spec("b s 3")},
            {},
        ),
        (
            al.attention(
                3,
                causal=True,
                sliding_window=2,
                alibi=True,
                normalize_qk=True,
                soft_cap=2.0,
                dropout_rate=0.5,
            ),
            "b t 6",
            {},
        ),
        (al.attention(2, causal=True, cache_length=5), "2 3 4", {}),
    ],
    "avg_pool": [(al.avg_pool(2), "b 4 4 2", {})],
    "batch_norm": [
        (al.batch_norm(), "b 3", {}),
        (al.batch_norm(), ("b t 3", al.spec("b t", bool)), {}),
        (al.batch_norm(axis=(1, 2), use_running_average=True), "b 2 3", {}),
    ],
    "between": [
        (al.between(al.serial(a=D, b=jnp.tanh, c=al.dense(2)), "a", "c"), "b 3", {})
    ],
    "bias": [(al.bias(), "b t 4", {}), (al.bias((-1, 1)), "b 3 4", {})],
    "bidirectional": [
        (al.bidirectional(al.gru(3)), "b t 2", {}),
        (al.bidirectional(al.rnn(3), merge_fn=jnp.add), LENGTHS, {}),
    ],
    "bilinear": [(al.bilinear(3), ("b 4", "b 2"), {})],
    "blur_pool": [(al.blur_pool(), "b 5 4 2", {})],
    "branch": [
        (D & al.dense(2), "b 4", {}),
        (al.branch(p=D, q=al.dense(2)), "b 4", {}),
    ],
    "class_token": [(al.class_token(2), "b t 4", {})],
    "concatenate": [(D | al.identity, "b 4", {})],
    "cond": [(al.cond(positive_first, D, al.dense(3)), "b 4", MIXES)],
    "conv": [
        (al.conv(3, 3), "b 6 2", {}),
        (al.conv(3, (3, 3), strides=2, padding="VALID"), "b 7 7 2", {}),
        (al.conv(2, (2, 2, 2)), "b 3 3 3 1", {}),
        (al.conv(4, 2, feature_group_count=2), "b 4 3 4", {}),
    ],
    "conv_local": [(al.conv_local(3, 2, 2, padding="VALID"), "b 4 3 2", {})],
    "conv_transpose": [
        (al.conv_transpose(3, 3, 2), "b 3 2 2", {}),
        (al.conv_transpose(4, (3,), feature_group_count=2), "b t 2", {}),
    ],
    "conv_lstm": [(al.conv_lstm(2, 2), "b t 3 2", {})],
    "conv_lstm_cell": [(al.conv_lstm_cell(2, 3), (("b 3 2", "b 3 2"), "b 3 1"), {})],
    "dense": [
        (D, "b 4", {}),
        (al.dense(3, use_bias=False), "b t 4", {}),
        (al.dense((3, 2), axis=(1, -1)), "b 4 t 2", {}),
    ],
    "depthwise_conv": [
        (al.depthwise_conv(3, 2, padding="CIRCULAR"), "b 4 3 2", {}),
        (al.depthwise_conv((2, 3)), "b h w 2", {}),
    ],
    "drop_path": [(al.drop_path(0.5), "b 4", {"sizes": [{"b": 9}, {"b": 8}]})],
    "dropout": [(al.dropout(0.5), "b 4", {})],
    "einsum": [
        (al.einsum("...d,dhk->...hk", {"h": 2, "k": 3}), "b t 4", {}),
        (al.einsum("bne,ned->bdn", {"d": 3}), "b 2 4", {}),
    ],
    "embedding": [
        (al.embedding(7, 3), al.spec("b t", int), {}),
        (al.wire(tied_head, emb=al.embedding(7, 3), f=D), al.spec("b t", int), {}),
    ],
    "ensemble": [(al.ensemble(noisy(), 3), "b 4", {})],
    "feature_alpha_dropout": [(al.feature_alpha_dropout(0.5), "b t 4", {})],
    "filter_response_norm": [
        (al.filter_response_norm(), "b t 3", {}),
        (al.filter_response_norm(learn_epsilon=True), "b 2 2 3", {}),
    ],
    "flatten": [(al.flatten(), "b 3 2", {})],
    "frozen": [(al.frozen(D), "b 4", {"gradients": ("inputs",)})],
    "gaussian_dropout": [(al.gaussian_dropout(0.5), "b 4", {})],
    "gaussian_noise": [(al.gaussian_noise(0.5), "b 4", {})],
    "geglu": [(al.geglu(3), "b 4", {})],
    "global_avg_pool": [(al.global_avg_pool(), "b 4 4 2", {})],
    "global_lp_pool": [(al.global_lp_pool(), "b h w 2", {})],
    "global_max_pool": [(al.global_max_pool(), "b 4 4 2", {})],
    "glu": [(al.glu(3), "b 4", {}), (al.glu(3, jnp.tanh, use_bias=False), "b t 4", {})],
    "group_norm": [
        (al.group_norm(2), "b 3 4", {}),
        (al.group_norm(group_size=2), ("b t 4", al.spec("b t", bool)), {}),
    ],
    "gru": [
        (al.gru(3), "b t 2", {}),
        (al.gru(3, use_recurrent_bias=True), "b t 2", {}),
    ],
    "gru_cell": [
        (al.gru_cell(3), ("b 3", "b 2"), {}),
        (al.gru_cell(3, reset_after=False), ("b 3", "b 2"), {}),
    ],
    "identity": [(al.identity, "b 4", {})],
    "input": [(al.input("b 4") >> D, "b 4", {})],
    "instance_norm": [(al.instance_norm(), "b t 3", {})],
    "kv_cache": [(al.kv_cache(3), ("1 2 3 2", "1 2 3 2"), {})],
    "layer_norm": [
        (al.layer_norm(), "b 4", {}),
        (al.layer_norm(reduction_axes=(1, 2), feature_axes=(1, 2)), "b 3 4", {}),
    ],
    "learned_positions": [
        (al.learned_positions(9), "b t 3", {}),
        (al.learned_positions(9, keeps_position=True), "b t 2 3", {}),
    ],
    "lift": [(al.lift(jax.nn.gelu), "b 4", {}), (al.lift(two), ("b 4", "b 4"), {})],
    "low_rank": [(al.low_rank(5, 2), "b 4", {})],
    "lp_pool": [(al.lp_pool(2, 1, norm=3), "b 4 4 2", {})],
    "lstm": [
        (al.lstm(3), "b t 2", {}),
        (al.lstm(3, reverse=True), "b t 2", {}),
        (al.lstm(3, use_recurrent_bias=True), "b t 2", {}),
    ],
    "lstm_cell": [
        (al.lstm_cell(3), (("b 3", "b 3"), "b 2"), {}),
        (al.lstm_cell(3, peephole=True), (("b 3", "b 3"), "b 2"), {}),
    ],
    "max_pool": [(al.max_pool(2), "b 4 4 2", {})],
    "maxout": [(al.maxout(3, 3), "b 4", {})],
    "mgu": [(al.mgu(3), "b t 2", {})],
    "mgu_cell": [(al.mgu_cell(3), ("b 3", "b 2"), {})],
    "min_pool": [(al.min_pool(2), "b 4 4 2", {})],
    "mixed": [(al.mixed(D), "b 4", {})],
    "multiply": [(D * (al.dense(3) >> jax.nn.sigmoid), "b 4", {})],
    "on_item": [(al.on_item(0, D), ("b 4", "b 2"), {})],
    "pad": [
        (al.pad(((1, 2), 0)), "b 3 h 2", {}),
        (al.pad(1, "reflect"), "b 3 4 2", {}),
    ],
    "parallel": [(D @ al.dense(2), ("b 4", "b 5"), {})],
    "parameter": [(al.wire(shifted, shift=al.parameter((4,))), "b 4", {})],
    "patch_embedding": [
        (al.patch_embedding(3, 2), "b 4 6 2", {}),
        (al.patch_embedding(3, (2,), flatten=False), "b 2*t 2", {}),
    ],
    "pixel_shuffle": [(al.pixel_shuffle(2), "b h w 8", {})],
    "pixel_unshuffle": [(al.pixel_unshuffle((2, 3)), "b 2*h 6 2", {})],
    "pick": [(al.pick(1), ("b 4", "b 5"), {})],
    "prelu": [(al.prelu(), "b 4", {}), (al.prelu(-1), "b t 4", {})],
    "projection": [(al.projection(), ("b 3", "b 4"), {})],
    "remat": [(al.remat(noisy()), "b 4", {})],
    "repeat": [
        (al.repeat(noisy(), 3), "b 4", {}),
        (al.repeat(noisy(), 3, stacked=False), "b 4", {}),
        (al.repeat(noisy(), 3, tied=True), "b 4", {}),
        (al.repeat(noisy(), 3, remat=True, unroll=3), "b 4", {}),
    ],
    "reshape": [(al.reshape(2, -1), "b 6", {})],
    "resize": [
        (al.resize(scale=2), "b h w 2", {}),
        (al.resize((5, 2), method="bilinear"), "b 3 4 2", {}),
        (al.resize(5, method="cubic", align_corners=True), "b 3 4 2", {}),
    ],
    "residual": [(al.residual(D, shortcut=al.dense(3)), "b 4", {})],
    "rms_norm": [
        (al.rms_norm(), "b 4", {}),
        (al.rms_norm(scale_offset=1.0, use_bias=True), "b t 4", {}),
    ],
    "rotary": [
        (al.rotary(), "b t 2 4", {}),
        (al.rotary(fraction=0.5, interleaved=True), "b t 4", {}),
    ],
    "scale": [(al.scale(), "b t 4", {}), (al.scale(()), "b 4", {})],
    "rnn": [(al.rnn(3), "b t 2", {})],
    "rnn_cell": [(al.rnn_cell(3, residual=True), ("b 3", "b 2"), {})],
    "scan": [
        (al.scan(al.lstm_cell(3), return_carry=True), "b t 2", {}),
        (al.scan(al.gru_cell(3), reverse=True, return_sequence=False), LENGTHS, {}),
    ],
    "separable_conv": [(al.separable_conv(3, 3, 2), "b 5 4 2", {})],
    "serial": [(D >> jax.nn.gelu >> al.dense(2), "b 4", {})],
    "shared": [(al.shared(D), ("b 4", "b 4"), {})],
    "sinusoidal_positions": [
        (al.sinusoidal_positions(), "b t 3", {}),
        (al.sinusoidal_positions(keeps_position=True), "b t 2 4", {}),
    ],
    "spatial_dropout": [(al.spatial_dropout(0.5), "b h w 4", {})],
    "spectral_norm": [(al.spectral_norm(D), "b 4", {"gradients": ("inputs",)})],
    "squeeze_excite": [(al.squeeze_excite(2), "b h w 4", {})],
    "swiglu": [(al.swiglu(3), "b 4", {})],
    "switch": [(al.switch(which, D, al.dense(3)), "b 4", MIXES)],
    "tie": [
        (
            al.tie(
                al.serial(p=al.dense(5, use_bias=False), q=al.dense(4, use_bias=False)),
                {"q/kernel": "p/kernel"},
                transpose=True,
            ),
            "b 4",
            {},
        )
    ],
    "transpose": [(al.transpose(2, 1), "b 3 2", {})],
    "vmap": [(al.vmap(D, in_axes=1), "b t 4", {"mixes_examples": True})],
    "weight_norm": [
        (al.weight_norm(D), "b 4", {}),
        (al.weight_norm(al.repeat(al.dense(4), 2) >> D, feature_axes=None), "b 4", {}),
    ],
    "wire": [(al.wire(gated, value=D, gate=al.dense(3)), "b 4", {})],
}
ROWS = [  # the first of each name in every run, the others nightly
    pytest.param(
        *row,
        id=f"{name}-{i}" if i else name,
        marks=[pytest.mark.slow] if i else [],
    )
    for name, rows in TABLE.items()
    for i, row in enumerate(rows)
]


@pytest.mark.parametrize(("layer", "spec", "options"), ROWS)
def test_every_layer_keeps_the_contract(layer, spec, options):
    check_layer(layer, spec, **options)


def test_the_table_is_complete():
    factories = {
        name
        for name in al.__all__
        if hasattr(getattr(al, name), "__axonlike_factory__")
        or isinstance(getattr(al, name), al.Layer)
    }
    assert factories | {"lift"} == set(TABLE)


@pytest.mark.parametrize(("layer", "spec", "options"), ROWS)
def test_every_layer_is_equal_to_what_its_repr_makes(layer, spec, options):
    names = {"al": al, "jax": jax, __name__: __import__(__name__)}
    assert eval(repr(layer), names) == layer


KEYED = [  # the others make params only; nightly
    row if row.values[0].uses_key else pytest.param(*row.values, marks=pytest.mark.slow)
    for row in ROWS
]


@pytest.mark.parametrize(("layer", "spec", "options"), KEYED)
def test_no_layer_uses_a_key_twice(layer, spec, options):
    specs = as_spec(spec)
    x = _sized(specs, _sizes(specs)[0])
    x = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), x)
    with jax.debug_key_reuse(True):
        params, state = layer.init(jax.random.key(0), spec)
        key = jax.random.key(1)
        jax.make_jaxpr(lambda k: layer.apply(params, state, x, key=k, train=True))(key)
