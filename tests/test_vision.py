"""Squeeze-excite, patch embedding, class token: PyTorch, options and errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from by_torch import COUNT, agrees, drawn_options
from parity import close, drawn, normal, run

import axonlike as al

KEY = jax.random.key(0)


@pytest.mark.parametrize("seed", range(COUNT))
def test_squeeze_excite_agrees_with_torch(seed):
    choice = drawn_options(
        seed,
        shape=((2, 3, 6), (1, 4, 3, 6), (3, 2, 2, 2, 6), (0, 2, 2, 6), (2, 1, 1, 6)),
        ratio=(1, 2, 4, 6),
        use_bias=(True, False),
        activation=(jax.nn.relu, jnp.tanh),
    )
    x = normal(seed, *choice.pop("shape"))
    tanh = choice["activation"] is jnp.tanh

    def define(p, x):
        import torch

        def affine(p, x):
            return x @ p["kernel"] + p.get("bias", 0.0)

        spatial = tuple(range(1, x.ndim - 1))
        hidden = affine(p["reduce"], x.mean(spatial, keepdim=True))
        hidden = torch.tanh(hidden) if tanh else torch.relu(hidden)
        return x * torch.sigmoid(affine(p["expand"], hidden))

    agrees(f"vision/squeeze_excite {seed}", al.squeeze_excite(**choice), [x], define)


def test_squeeze_excite_is_named_and_shaped_as_told():
    params, state = al.squeeze_excite(5).init(KEY, (None, 7, 7, 32))
    assert state == {}
    assert jax.tree.map(jnp.shape, params) == {
        "reduce": {"kernel": (32, 6), "bias": (6,)},
        "expand": {"kernel": (6, 32), "bias": (32,)},
    }


def test_the_mean_of_half_precision_is_taken_in_float32():
    x = jnp.full((1, 64, 64, 2), 1001, jnp.float16)  # their sum is beyond float16
    layer = al.squeeze_excite(1, activation=lambda x: x / 1000, gate=lambda x: x)
    params = {
        "reduce": {"kernel": jnp.eye(2), "bias": jnp.zeros(2)},
        "expand": {"kernel": jnp.eye(2), "bias": jnp.zeros(2)},
    }
    y = layer.predict(params, {}, x)
    assert y.dtype == jnp.float16
    np.testing.assert_allclose(y[0, 0, 0], 1001 * 1.001, rtol=2e-3)


@pytest.mark.parametrize("seed", range(COUNT))
def test_patch_embedding_agrees_with_torch(seed):
    choice = drawn_options(
        seed,
        sizes=(((3,), (2,)), ((2,), (3,)), ((2, 2), (3, 2)), ((1, 3), (2, 4)),
               ((2, 2), (1, 1)), ((1, 2, 1), (2, 1, 3)), ((2, 1, 2), (2, 2, 2))),
        batch=(1, 2, 0),
        channels=(1, 3),
        features=(1, 4),
        flatten=(True, False),
        use_bias=(True, False),
    )  # fmt: skip
    (grid, patch), batch, channels = (
        choice.pop(name) for name in ("sizes", "batch", "channels")
    )
    spatial = [n * size for n, size in zip(grid, patch, strict=True)]
    x, flatten = normal(seed, batch, *spatial, channels), choice["flatten"]

    def define(p, x):
        import torch

        convolve = getattr(torch.nn.functional, f"conv{len(patch)}d")
        kernel = p["kernel"].movedim((-1, -2), (0, 1))
        y = convolve(x.movedim(-1, 1), kernel, p.get("bias"), stride=patch).movedim(
            1, -1
        )
        return y.flatten(1, -2) if flatten else y

    layer = al.patch_embedding(patch_size=patch, **choice)
    agrees(f"vision/patch_embedding {seed}", layer, [x], define)


@pytest.mark.parametrize("patch", [2, (2, 3), (6, 1)])
def test_patch_embedding_is_a_convolution_with_its_kernel(patch):
    layer = al.patch_embedding(5, patch, flatten=False)
    conv, x = al.conv(5, patch, patch, padding="VALID"), normal(0, 2, 6, 12, 3)
    params, _ = layer.init(KEY, x)
    same, _ = conv.init(KEY, x)
    jax.tree.map(np.testing.assert_array_equal, params, same)
    close(run(layer, params, x), run(conv, params, x))


def test_patches_stand_row_by_row():
    x = jnp.arange(16.0).reshape(1, 4, 4, 1)
    kernel = jnp.zeros((2, 2, 1, 1)).at[0, 0].set(1.0)
    layer = al.patch_embedding(1, 2, use_bias=False)
    y = layer.predict({"kernel": kernel}, {}, x)
    np.testing.assert_array_equal(y[0, :, 0], [0, 2, 8, 10])


@pytest.mark.parametrize("seed", range(COUNT))
def test_class_token_agrees_with_torch(seed):
    choice = drawn_options(
        seed, batch=(1, 2, 0), time=(1, 4, 0), n=(1, 3), num_tokens=(1, 2, 4)
    )
    tokens = choice["num_tokens"]
    x = normal(seed, choice["batch"], choice["time"], choice["n"])

    def define(p, x):
        import torch

        return torch.cat([p["token"].expand(x.shape[0], -1, -1), x], 1)

    agrees(f"vision/class_token {seed}", al.class_token(tokens), [x], define)


def test_the_class_token_starts_at_zero_or_as_told():
    params, _ = al.class_token().init(KEY, (None, 4, 3))
    np.testing.assert_array_equal(params["token"], np.zeros((1, 3)))
    init = al.initializers.normal(0.02)
    params, _ = al.class_token(2, token_init=init).init(KEY, (None, 4, 3))
    assert params["token"].shape == (2, 3)
    assert float(jnp.abs(params["token"]).min()) > 0


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (al.squeeze_excite(2), (2, 3, 3, 4)),
        (al.patch_embedding(3, 1), (2, 3, 3, 4)),
        (al.class_token(), (2, 3, 4)),
    ],
)
def test_computation_follows_the_input(layer, shape):
    x = jnp.ones(shape, jnp.bfloat16)
    params, _ = layer.init(KEY, x)
    assert {p.dtype for p in jax.tree.leaves(params)} == {jnp.dtype(jnp.float32)}
    assert layer.predict(params, {}, x).dtype == jnp.bfloat16


def test_a_vision_transformer_is_a_pipe():
    block = al.residual(al.layer_norm() >> al.swiglu(8) >> al.dense(6))
    model = al.patch_embedding(6, 4) >> al.class_token() >> al.repeat(block, 2)
    model = model >> (lambda x: x[:, 0]) >> al.dense(10)
    params, state = model.init(KEY, al.spec("b 8 8 3"))
    x = normal(0, 2, 8, 8, 3)
    assert model.predict(drawn(params), state, x).shape == (2, 10)


BAD = {
    "ratio": (
        lambda: al.squeeze_excite(0),
        "squeeze_excite: ratio must be a positive int, got 0.",
    ),
    "channels": (
        lambda: al.squeeze_excite(8).init(KEY, (1, 4, 4, 6)),
        "squeeze_excite: expected (batch, *spatial, channels) with at least 8 channels, "
        "got float32[1, 4, 4, 6]. Use a smaller ratio.",
    ),
    "rank": (
        lambda: al.squeeze_excite(2).init(KEY, (4, 6)),
        "squeeze_excite: expected (batch, *spatial, channels) with 1 to 3 spatial axes, "
        "got float32[4, 6]. Add an axis of size 1 with x[..., None] where channels are "
        "missing.",
    ),
    "patch": (
        lambda: al.patch_embedding(8, (2, 0)),
        "patch_embedding: patch_size must be a positive int or 1 to 3 of them, got "
        "(2, 0).",
    ),
    "divides": (
        lambda: al.patch_embedding(8, 4).init(KEY, (1, 8, 9, 3)),
        "patch_embedding: expected (batch, 4*n, 4*n, channels), got float32[1, 8, 9, 3]. "
        "Pad or resize it; declare an unknown size as a multiple, '16*h'.",
    ),
    "unknown": (
        lambda: al.patch_embedding(8, 4).init(KEY, al.spec("b h 8 3")),
        "patch_embedding: expected (batch, 4*n, 4*n, channels), got float32[b, h, 8, 3]. "
        "Pad or resize it; declare an unknown size as a multiple, '16*h'.",
    ),
    "tokens": (
        lambda: al.class_token(0),
        "class_token: num_tokens must be a positive int, got 0.",
    ),
    "sequence": (
        lambda: al.class_token().init(KEY, (2, 4, 4, 3)),
        "class_token: expected (batch, time, n), got float32[2, 4, 4, 3]. Use "
        "patch_embedding() before it, or reshape().",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_errors_word_for_word(name):
    call, message = BAD[name]
    with pytest.raises(ValueError, match=":") as error:
        call()
    assert str(error.value) == message
