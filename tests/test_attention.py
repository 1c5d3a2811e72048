"""Attention: a formula in NumPy, PyTorch, masks, dropout, sizes, errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from parity import close, normal, numpy, run

import axonlike as al

KEY = jax.random.key(0)
BIASED = {"bias_init": al.initializers.normal(1.0)}


def _softmax(x):
    x = np.exp(x - x.max(-1, keepdims=True))
    return x / x.sum(-1, keepdims=True)


def _formula(params, query, source, heads, mask=None):
    """The definition, head by head, in float64."""

    def project(name, x):
        part = params[name]
        return x.astype(np.float64) @ np.asarray(part["kernel"]) + np.asarray(
            part.get("bias", 0.0)
        )

    q, k, v = project("query", query), project("key", source), project("value", source)
    width = q.shape[-1] // heads
    out = np.zeros_like(q)
    for h in range(heads):
        here = slice(h * width, (h + 1) * width)
        logits = q[..., here] @ np.swapaxes(k[..., here], 1, 2) / np.sqrt(width)
        if mask is not None:
            logits = np.where(mask if mask.ndim < 4 else mask[:, h], logits, -np.inf)
        out[..., here] = _softmax(logits) @ v[..., here]
    return project("out", out)


CONFIGS = {
    "one head": ((2, 5, 6), None, {"num_heads": 1}),
    "heads": ((2, 5, 6), None, {"num_heads": 3}),
    "one position": ((2, 1, 6), None, {"num_heads": 2}),
    "cross": ((2, 5, 6), (2, 7, 6), {"num_heads": 2}),
    "cross of other width": ((2, 3, 6), (2, 4, 5), {"num_heads": 2}),
    "sizes": (
        (1, 4, 6),
        (1, 3, 2),
        {"num_heads": 2, "qkv_features": 8, "out_features": 3},
    ),
    "without bias": ((2, 5, 6), None, {"num_heads": 2, "use_bias": False}),
    "causal": ((2, 5, 6), None, {"num_heads": 2, "causal": True}),
    "causal cross": ((2, 5, 6), (2, 7, 6), {"num_heads": 2, "causal": True}),
    "empty batch": ((0, 5, 6), None, {"num_heads": 2}),
}


def _built(name):
    shape, source, options = CONFIGS[name]
    layer = al.attention(**options, **BIASED)
    query = normal(0, *shape)
    keys_values = query if source is None else normal(1, *source)
    x = query if source is None else (query, keys_values)
    params, state = layer.init(KEY, x)
    assert state == {}
    return layer, params, x, query, keys_values


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_attention_is_the_formula(name):
    layer, params, x, query, source = _built(name)
    options = CONFIGS[name][2]
    mask = None
    if options.get("causal"):
        mask = np.tril(np.ones((query.shape[1], source.shape[1]), bool))
    desired = _formula(params, query, source, options["num_heads"], mask)
    close(run(layer, params, x), desired)
    assert set(params) == {"query", "key", "value", "out"}
    qkv = options.get("qkv_features", query.shape[-1])
    assert params["key"]["kernel"].shape == (source.shape[-1], qkv)
    assert params["out"]["kernel"].shape == (
        qkv,
        options.get("out_features", query.shape[-1]),
    )


MASKS = {
    "(time, source)": (4, 5),
    "(1, source)": (1, 5),
    "(batch, time, source)": (2, 4, 5),
    "(batch, 1, source)": (2, 1, 5),
    "(batch, heads, time, source)": (2, 3, 4, 5),
    "(batch, 1, 1, source)": (2, 1, 1, 5),
}


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("name", sorted(MASKS))
def test_masks_broadcast(name, causal):
    mask = np.random.default_rng(3).random(MASKS[name]) < 0.6
    mask[..., 0] = True
    query, source = normal(0, 2, 4, 6), normal(1, 2, 5, 6)
    layer = al.attention(3, causal=causal, **BIASED)
    params, _ = layer.init(KEY, (query, source, mask))
    y = run(layer, params, (query, source, jnp.asarray(mask)))
    full = {2: (None, None), 3: (slice(None), None), 4: ()}[mask.ndim]
    full = np.broadcast_to(mask[full], (2, 3, 4, 5))
    if causal:
        full = full & np.tril(np.ones((4, 5), bool))
    close(y, _formula(params, query, source, 3, full))


def test_a_mask_reaches_the_layer_inside_a_wire_and_by_name():
    query, mask = normal(0, 2, 4, 6), np.tril(np.ones((4, 4), bool))
    causal = al.attention(2, causal=True)
    params, _ = causal.init(KEY, query)
    desired = run(causal, params, query)

    def masked(sub, x):
        return sub.attn(x, mask=jnp.asarray(mask))

    model = al.wire(masked, attn=al.attention(2))
    close(run(model, {"attn": params}, query), desired)
    close(run(al.attention(2), params, (query, query, jnp.asarray(mask))), desired)
    close(run(al.attention(2), params, (query, None, jnp.asarray(mask))), desired)


def test_a_query_that_may_attend_to_nothing_gets_the_mean_and_no_nan():
    x, mask = normal(0, 1, 3, 4), jnp.zeros((3, 3), bool)
    layer = al.attention(2)
    params, _ = layer.init(KEY, x)

    def loss(params, x):
        return layer.predict(params, {}, (x, x, mask)).sum()

    value, grads = jax.jit(jax.value_and_grad(loss, (0, 1)))(params, x)
    assert np.isfinite(value)
    assert all(bool(jnp.all(jnp.isfinite(g))) for g in jax.tree.leaves(grads))
    v = x @ np.asarray(params["value"]["kernel"]) + np.asarray(params["value"]["bias"])
    mean = np.broadcast_to(v.mean(1, keepdims=True), v.shape)
    desired = mean @ np.asarray(params["out"]["kernel"])
    close(layer.predict(params, {}, (x, x, mask)), desired)


def test_causal_outputs_do_not_see_later_inputs():
    layer, x = al.attention(2, causal=True), jnp.asarray(normal(0, 1, 6, 4))
    params, _ = layer.init(KEY, x)
    seen = jax.jit(jax.jacobian(lambda x: layer.predict(params, {}, x)))(x)
    for t in range(6):
        assert not np.any(seen[0, t, :, 0, t + 1 :])
        assert np.all(np.any(seen[0, t, :, 0, : t + 1], axis=(0, 2)))


def test_gradients_equal_finite_differences():
    layer = al.attention(2, causal=True)
    query, source = normal(0, 1, 3, 4), normal(1, 1, 3, 4)
    params, _ = layer.init(KEY, (query, source))
    with jax.enable_x64(True):
        args = jax.tree.map(
            lambda a: np.asarray(a, np.float64), (params, query, source)
        )

        def loss(params, query, source):
            return jnp.sum(jnp.sin(layer.predict(params, {}, (query, source))))

        check_grads(jax.jit(loss), args, order=1, atol=1e-5, rtol=1e-5)


def test_dropout_acts_on_the_weights_in_training_only():
    layer, x = al.attention(2, dropout_rate=0.5), normal(0, 4, 8, 6)
    params, _ = layer.init(KEY, x)
    assert set(params) == {"query", "key", "value", "out"}
    quiet = al.attention(2).predict(params, {}, x)
    np.testing.assert_array_equal(layer.predict(params, {}, x), quiet)
    keys = jax.random.split(KEY, 200)
    step = jax.vmap(lambda key: layer.apply(params, {}, x, key=key, train=True)[0])
    drawn = np.asarray(jax.jit(step)(keys))
    assert not np.allclose(drawn[0], drawn[1])
    close(drawn.mean(0), quiet, 0.25)
    with pytest.raises(ValueError, match="dropout: expected a key in training"):
        layer.apply(params, {}, x, train=True)


def test_a_model_without_dropout_needs_no_key():
    layer, x = al.attention(2), normal(0, 1, 3, 4)
    params, _ = layer.init(KEY, x)
    layer.apply(params, {}, x, train=True)


def test_bfloat16_stays_and_the_softmax_is_float32():
    layer, x = al.attention(2), jnp.asarray(normal(0, 2, 5, 8), jnp.bfloat16)
    params, _ = layer.init(KEY, x)
    assert params["out"]["kernel"].dtype == jnp.float32
    assert layer.predict(params, {}, x).dtype == jnp.bfloat16
    text = str(jax.make_jaxpr(lambda x: layer.predict(params, {}, x))(x))
    assert "f32[2,2,5,5] = exp" in text
    assert "bf16[2,2,5,5] = exp" not in text


def test_unknown_sizes_stay_symbolic():
    layer = al.attention(2, causal=True)
    assert str(layer.output_spec(al.spec("b t 8")).shape) == "(b, t, 8)"
    spec = layer.output_spec(
        (al.spec("b t 8"), al.spec("b s 6"), al.spec("b 1 s", bool))
    )
    assert str(spec.shape) == "(b, t, 8)"


ERRORS = {
    "heads": (
        lambda: al.attention(0),
        "attention: num_heads must be a positive int, got 0.",
    ),
    "sizes": (
        lambda: al.attention(2, out_features=-1),
        "attention: out_features must be a positive int, got -1.",
    ),
    "rate": (
        lambda: al.attention(2, dropout_rate=1),
        "attention: dropout_rate must be in [0, 1), got 1.",
    ),
    "multiple": (
        lambda: al.attention(3, qkv_features=8),
        "attention: qkv_features must be a multiple of num_heads 3, got 8.",
    ),
    "width": (
        lambda: al.attention(3).output_spec((None, 5, 8)),
        "attention: expected (batch, time, features) with features a multiple of "
        "num_heads 3, got float32[_0, 5, 8]. Or give qkv_features=.",
    ),
    "rank": (
        lambda: al.attention(2).output_spec((None, 8)),
        "attention: expected (batch, time, features), got float32[_0, 8]. Add an axis "
        "of "
        "size 1 where one is missing.",
    ),
    "batches": (
        lambda: al.attention(2).output_spec((jnp.ones((1, 3, 4)), jnp.ones((2, 3, 4)))),
        "attention: expected query and keys_values of one batch, got float32[1, 3, 4] "
        "and "
        "float32[2, 3, 4]. Repeat the smaller one with jnp.broadcast_to.",
    ),
    "mask": (
        lambda: al.attention(2).output_spec(
            (jnp.ones((1, 3, 4)), None, jnp.ones((3, 4), bool))
        ),
        "attention: expected a bool mask that broadcasts to (1, 2, 3, 3), got bool[3, "
        "4]. "
        "True means may attend: (time, source), (batch, time, source) or all four.",
    ),
    "mask dtype": (
        lambda: al.attention(2).output_spec(
            (jnp.ones((1, 3, 4)), None, jnp.ones((3, 3)))
        ),
        "attention: expected a bool mask that broadcasts to (1, 2, 3, 3), got "
        "float32[3, 3]. True means may attend: (time, source), (batch, time, source) "
        "or "
        "all four.",
    ),
    "inputs": (
        lambda: al.attention(2).output_spec((jnp.ones((1, 3, 4)),) * 4),
        "attention: expected (query, keys_values, mask), the last two optional, got "
        "(float32[1, 3, 4], float32[1, 3, 4], float32[1, 3, 4], float32[1, 3, 4]). "
        "Pass 1 "
        "to 3 inputs.",
    ),
}


@pytest.mark.parametrize("name", sorted(ERRORS))
def test_errors_word_for_word(name):
    build, message = ERRORS[name]
    with pytest.raises(ValueError, match="attention") as error:
        build()
    assert str(error.value) == message


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("time", "source", "width"), [(5, 5, 6), (4, 7, 3), (1, 1, 6)])
def test_attention_and_its_gradients_agree_with_torch(time, source, width, causal):
    torch = pytest.importorskip("torch")
    query, keys_values = normal(0, 2, time, 6), normal(1, 2, source, width)
    weight = normal(2, 2, time, 6)
    layer = al.attention(3, causal=causal, **BIASED)
    params, _ = layer.init(KEY, (query, keys_values))
    theirs = torch.nn.MultiheadAttention(6, 3, batch_first=True, kdim=width, vdim=width)
    parts = ["query", "key", "value"]
    with torch.no_grad():
        kernels = [torch.tensor(np.array(params[p]["kernel"]).T.copy()) for p in parts]
        if width == 6:
            theirs.in_proj_weight.copy_(torch.cat(kernels))
        else:
            theirs.q_proj_weight.copy_(kernels[0])
            theirs.k_proj_weight.copy_(kernels[1])
            theirs.v_proj_weight.copy_(kernels[2])
        biases = [torch.tensor(np.array(params[p]["bias"])) for p in parts]
        theirs.in_proj_bias.copy_(torch.cat(biases))
        theirs.out_proj.weight.copy_(torch.tensor(np.array(params["out"]["kernel"]).T))
        theirs.out_proj.bias.copy_(torch.tensor(np.array(params["out"]["bias"])))
    tq = torch.tensor(query, requires_grad=True)
    ts = torch.tensor(keys_values, requires_grad=True)
    later = torch.ones(time, source, dtype=torch.bool).triu(1) if causal else None
    ty = theirs(tq, ts, ts, attn_mask=later, need_weights=False)[0]
    (ty * torch.tensor(weight)).sum().backward()

    def loss(params, query, keys_values):
        y = layer.predict(params, {}, (query, keys_values))
        return jnp.sum(y * weight), y

    step = jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))
    (_, y), (grads, for_query, for_source) = step(params, query, keys_values)
    close(y, numpy(ty))
    close(for_query, tq.grad)
    close(for_source, ts.grad)
    close(np.asarray(grads["out"]["kernel"]).T, theirs.out_proj.weight.grad)
    biases = np.concatenate([grads[p]["bias"] for p in parts])
    close(biases, theirs.in_proj_bias.grad)
    if width == 6:
        kernels = np.concatenate([np.asarray(grads[p]["kernel"]).T for p in parts])
        close(kernels, theirs.in_proj_weight.grad)
    else:
        close(np.asarray(grads["key"]["kernel"]).T, theirs.k_proj_weight.grad)
