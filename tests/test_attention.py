"""Attention: a formula in NumPy, PyTorch, masks, dropout, sizes, errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from parity import close, drawn, normal, ours, reference, run

import axonlike as al
from axonlike.evaluation import evaluate
from axonlike.frame import Run
from axonlike.layers.positions import alibi_slopes
from axonlike.taps import Taps

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


def test_inputs_together_and_apart_are_one_call():
    layer, x = al.attention(2), normal(0, 2, 3, 4)
    mask = np.tril(np.ones((3, 3), bool))
    params, state = layer.init(jax.random.key(0), x)
    wanted = layer.predict(params, state, {"query": x, "mask": mask})

    def called(first, **more):
        model = al.wire(lambda sub, x: sub.attn(first, **more), attn=layer)
        return model.predict({"attn": params}, state, x)

    close(called({"query": x}, mask=mask), wanted)
    close(called((x, None), mask=mask), wanted)
    close(called((x, None, None), mask=mask), wanted)
    for first in ({"query": x, "mask": mask}, (x, None, mask)):
        with pytest.raises(al.ShapeError, match="expected mask once"):
            called(first, mask=mask)


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
    "groups": (
        lambda: al.attention(4, num_kv_heads=3),
        "attention: num_kv_heads must divide num_heads 4, got 3.",
    ),
    "head_dim twice": (
        lambda: al.attention(2, head_dim=4, qkv_features=8),
        "attention: head_dim and qkv_features say the same thing, got 4 and 8. "
        "Give one of them.",
    ),
    "implementation": (
        lambda: al.attention(2, implementation="flash"),
        "attention: implementation must be None, 'xla' or 'cudnn', got 'flash'.",
    ),
    "implementation with a cap": (
        lambda: al.attention(2, implementation="xla", soft_cap=3.0),
        "attention: soft_cap needs implementation=None, got 'xla'.",
    ),
    "cap": (
        lambda: al.attention(2, soft_cap=-1),
        "attention: soft_cap must be a positive number, got -1.",
    ),
    "lengths": (
        lambda: al.attention(2).output_spec(
            {"query": jnp.ones((1, 3, 4)), "lengths": jnp.ones((2,), int)}
        ),
        "attention: expected integer lengths of shape (1,), got int32[2]. "
        "Give the number of keys of each example.",
    ),
    "bias": (
        lambda: al.attention(2).output_spec(
            {"query": jnp.ones((1, 3, 4)), "bias": jnp.ones((3, 2))}
        ),
        "attention: expected a bias that broadcasts to (1, 2, 3, 3), got "
        "float32[3, 2]. It has the axes (time, source), (batch, time, source) or all "
        "four.",
    ),
    "names": (
        lambda: al.attention(2).output_spec({"x": jnp.ones((1, 3, 4))}),
        "attention: expected a dict with 'query', and any of 'keys_values', 'mask', "
        "'bias', 'lengths', 'positions', got {x: float32[1, 3, 4]}. Rename its "
        "items.",
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


# --- options: all of them against PyTorch's function, and long ones in blocks

B, T, D = 2, 5, 12


def _torch_attention(params, inputs, heads, options):
    """Our inputs through `F.scaled_dot_product_attention`: tensors in, a tensor out."""
    import torch
    from torch.nn import functional as F  # noqa: N812

    groups = options.get("num_kv_heads") or heads
    keys, values = inputs.get("keys", inputs["query"]), inputs.get("values")
    values = keys if values is None else values
    parts = []
    for name, x, n in (
        ("query", inputs["query"], heads),
        ("key", keys, groups),
        ("value", values, groups),
    ):
        kernel, bias = params[name]["kernel"], params[name].get("bias")
        y = F.linear(x, kernel.T, bias)
        parts.append(y.unflatten(-1, (n, y.shape[-1] // n)).transpose(1, 2))
    q, k, v = parts
    if options.get("normalize_qk"):
        scales = (params[f"{part}_norm"]["scale"] for part in ("query", "key"))
        q, k = (
            F.layer_norm(x, x.shape[-1:], scale, eps=1e-6)
            for x, scale in zip((q, k), scales, strict=True)
        )
    time, source = q.shape[2], k.shape[2]
    distance = torch.arange(time)[:, None] - torch.arange(source)[None]
    seen = torch.ones(q.shape[0], heads, time, source, dtype=torch.bool)
    if options.get("causal"):
        seen = seen & (distance >= 0)
    if "sliding_window" in options:
        far = distance if options.get("causal") else distance.abs()
        seen = seen & (far < options["sliding_window"])
    if "mask" in inputs:
        mask = inputs["mask"]
        seen = seen & (mask[:, None] if mask.ndim == 3 else mask)
    if "lengths" in inputs:
        seen = seen & (torch.arange(source) < inputs["lengths"][:, None, None, None])
    extra = torch.zeros(seen.shape)
    if "bias" in inputs:
        bias = inputs["bias"]
        extra = extra + (bias[:, None] if bias.ndim == 3 else bias)
    if options.get("alibi"):
        slopes = torch.tensor(alibi_slopes(heads), dtype=torch.float32)
        extra = extra - slopes[:, None, None] * distance.abs()
    y = F.scaled_dot_product_attention(
        q,
        k,
        v,
        attn_mask=extra.masked_fill(~seen, -float("inf")),
        scale=options.get("scale"),
        enable_gqa=groups != heads,
    )
    out = params["out"]
    return F.linear(y.transpose(1, 2).flatten(2), out["kernel"].T, out.get("bias"))


def _mask(seed, *shape):
    mask = np.random.default_rng(seed).random(shape) < 0.6
    mask[..., 0] = True
    return mask


LENGTHS = np.array([3, 6])
OPTIONS = {
    "heads": (3, {}, {}),
    "shared keys": (4, {"num_kv_heads": 2}, {}),
    "one key": (4, {"num_kv_heads": 1, "causal": True}, {}),
    "head_dim": (2, {"head_dim": 5}, {}),
    "head_dim, shared keys": (4, {"head_dim": 3, "num_kv_heads": 2}, {}),
    "value_dim": (2, {"value_dim": 4}, {}),
    "value_dim, shared keys": (4, {"value_dim": 2, "num_kv_heads": 2}, {}),
    "sizes": (2, {"qkv_features": 8, "out_features": 3}, {}),
    "window": (3, {"causal": True, "sliding_window": 2}, {}),
    "window of one": (3, {"causal": True, "sliding_window": 1}, {}),
    "window to both sides": (3, {"sliding_window": 2}, {}),
    "alibi": (3, {"alibi": True, "causal": True}, {}),
    "alibi to both sides": (4, {"alibi": True}, {}),
    "scale": (2, {"scale": 0.3}, {}),
    "normalize_qk": (2, {"normalize_qk": True}, {}),
    "no bias": (2, {"use_bias": False}, {}),
    "bias of the first three": (2, {"use_out_bias": False}, {}),
    "mask": (2, {}, {"mask": _mask(4, B, T, T)}),
    "mask for each head": (2, {"causal": True}, {"mask": _mask(5, B, 2, T, T)}),
    "bias": (2, {}, {"bias": normal(6, T, T)}),
    "bias for each head": (3, {"causal": True}, {"bias": normal(7, 1, 3, T, T)}),
    "bias for each example": (2, {}, {"bias": normal(8, B, 1, T)}),
    "cross": (2, {}, {"keys": normal(9, B, 7, 6)}),
    "cross, values apart": (
        4,
        {"num_kv_heads": 2},
        {"keys": normal(9, B, 7, 6), "values": normal(10, B, 7, 4)},
    ),
    "lengths": (2, {}, {"keys": normal(9, B, 7, 6), "lengths": LENGTHS}),
    "all at once": (
        4,
        {
            "num_kv_heads": 2,
            "causal": True,
            "sliding_window": 3,
            "alibi": True,
            "normalize_qk": True,
            "use_out_bias": False,
        },
        {"bias": normal(7, 1, 4, 1, T), "lengths": LENGTHS},
    ),
    "one token": (2, {"causal": True}, {"query": normal(0, 1, 1, D)}),
    "batch of one": (2, {"num_kv_heads": 1}, {"query": normal(0, 1, 3, D)}),
    "empty batch": (2, {"num_kv_heads": 1}, {"query": normal(0, 0, 3, D)}),
}


def _drawn_case(name):
    heads, options, more = OPTIONS[name]
    inputs = {"query": normal(0, B, T, D), **more}
    named = {k: v for k, v in inputs.items() if k not in ("keys", "values")}
    if "keys" in inputs:
        named["keys_values"] = (inputs["keys"], inputs.get("values", inputs["keys"]))
    layer = al.attention(heads, **options)
    params, _ = layer.init(KEY, named)
    return layer, drawn(params), inputs, named


def _by_torch(name, params, inputs, weight):
    import torch

    heads, options, _ = OPTIONS[name]
    theirs = jax.tree.map(lambda a: torch.tensor(a, requires_grad=True), params)
    tensors = {k: torch.tensor(v) for k, v in inputs.items()}
    wrt = [k for k in ("query", "keys", "values", "bias") if k in tensors]
    for k in wrt:
        tensors[k].requires_grad_()
    y = _torch_attention(theirs, tensors, heads, options)
    (y * torch.tensor(weight)).sum().backward()
    grads = {path: leaf.grad for path, leaf in al.paths(theirs)}
    return {"y": y, **{k: tensors[k].grad for k in wrt}, **grads}


@pytest.mark.parametrize("name", sorted(OPTIONS))
def test_every_option_and_its_gradients_agree_with_torch(name):
    layer, params, inputs, named = _drawn_case(name)
    weight = normal(3, *layer.output_spec(named).shape)
    want = reference(
        f"attention/{name}", lambda: _by_torch(name, params, inputs, weight)
    )
    wrt = {k: v for k, v in inputs.items() if v.dtype == np.float32}
    rest = {k: v for k, v in inputs.items() if k not in wrt}

    def loss(params, wrt):
        given = {**wrt, **rest}
        keys = given.pop("keys", None)
        values = given.pop("values", keys)
        if keys is not None:
            given["keys_values"] = (keys, values)
        y = layer.predict(params, {}, given)
        return jnp.sum(y * weight), y

    step = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))
    (_, y), (grads, for_inputs) = step(params, wrt)
    close(y, want["y"])
    for k, grad in for_inputs.items():
        close(grad, want[k])
    paths = dict(al.paths(grads))  # a key's bias has none: the softmax does not see it
    largest = max(float(np.max(np.abs(g), initial=0)) for g in paths.values())
    for path, grad in paths.items():
        np.testing.assert_allclose(
            grad, want[path], rtol=1e-5, atol=1e-5 * largest, err_msg=path
        )


@pytest.mark.parametrize(
    "options",
    [
        {"causal": True},
        {"causal": True, "sliding_window": 40},
        {"sliding_window": 50, "alibi": True},
        {"causal": True, "num_kv_heads": 1, "soft_cap": 3.0},
    ],
    ids=str,
)
def test_blocks_of_a_long_sequence_are_the_whole(options):
    x, weight = normal(0, 1, 300, 8), normal(1, 1, 300, 8)
    bias, mask = normal(2, 300, 300), _mask(3, 1, 1, 300)
    layer = al.attention(2, **options)
    params = drawn(layer.init(KEY, x)[0])

    def loss(params, x, looks):
        inputs = {"query": x, "bias": bias, "mask": mask}
        reads = frozenset(["weights"]) if looks else frozenset()
        y, _, found = evaluate(layer, params, {}, inputs, Run(taps=Taps(reads)))
        return jnp.sum(y * weight), (y, found)

    step = jax.jit(
        jax.value_and_grad(loss, (0, 1), has_aux=True), static_argnames="looks"
    )
    (_, (y, found)), grads = step(params, x, looks=False)
    (_, (whole, weights)), desired = step(params, x, looks=True)
    assert found == {}
    assert weights["weights"].shape == (1, 2, 300, 300)
    close(weights["weights"].sum(-1), np.ones((1, 2, 300)))
    close(y, whole)
    for (path, grad), (_, want) in zip(
        al.paths(grads[0]), al.paths(desired[0]), strict=True
    ):
        np.testing.assert_allclose(
            grad, want, atol=2e-5 * max(1, np.abs(want).max()), err_msg=path
        )
    close(grads[1], desired[1], 2e-5)


def test_blocks_compute_less_than_the_whole():
    def flops(**options):
        layer = al.attention(1, qkv_features=8, **options)
        params, _ = layer.init(KEY, (1, 1024, 8))
        step = jax.jit(layer.predict).lower(params, {}, jnp.ones((1, 1024, 8)))
        return step.compile().cost_analysis()["flops"]

    assert flops(causal=True) < 0.65 * flops()
    assert flops(causal=True, sliding_window=128) < 0.35 * flops()


def test_the_weights_can_be_edited():
    layer, x = al.attention(2), normal(0, 1, 3, 4)
    params = drawn(layer.init(KEY, x)[0])
    taps = Taps(edits={"weights": lambda w: jnp.full_like(w, 1 / 3)})
    y = evaluate(layer, params, {}, x, Run(taps=taps))[0]
    shut = run(layer, params, {"query": x, "mask": np.zeros((3, 3), bool)})
    close(y, shut)  # the mean of all values


@pytest.mark.parametrize("cap", [0.5, 5.0])
def test_the_cap_is_the_formula(cap):
    layer, x = al.attention(1, soft_cap=cap, use_bias=False), normal(0, 2, 4, 6)
    params = drawn(layer.init(KEY, x)[0])
    q, k, v = (x @ params[part]["kernel"] for part in ("query", "key", "value"))
    logits = cap * np.tanh(q @ np.swapaxes(k, 1, 2) / np.sqrt(6) / cap)
    close(run(layer, params, x), _softmax(logits) @ v @ params["out"]["kernel"])


def test_rotary_turns_queries_and_keys():
    layer, x = al.attention(2, rotary=al.rotary(), use_bias=False), normal(0, 2, 4, 8)
    params = drawn(layer.init(KEY, x)[0])
    assert set(params) == {"query", "key", "value", "out"}
    q, k, v = (
        np.reshape(x @ params[part]["kernel"], (2, 4, 2, 4))
        for part in ("query", "key", "value")
    )
    q, k = (np.asarray(al.rotary().predict({}, {}, y)) for y in (q, k))
    weights = _softmax(np.einsum("bthd,bshd->bhts", q, k) / 2)
    y = np.einsum("bhts,bshd->bthd", weights, v).reshape(2, 4, 8)
    close(run(layer, params, x), y @ params["out"]["kernel"])
    later = {"query": x, "positions": np.arange(4) + 100}
    close(run(layer, params, later), run(layer, params, x), 1e-4)


JAX_NN = {
    "plain": ({}, {}),
    "causal window": ({"causal": True, "sliding_window": 2}, {}),
    "shared keys, scale": ({"num_kv_heads": 2, "scale": 0.3}, {}),
    "alibi": ({"alibi": True, "causal": True}, {"bias": normal(3, 5, 5)}),
    "mask, lengths": ({}, {"mask": _mask(1, 2, 1, 5), "lengths": np.array([3, 5])}),
}


@pytest.mark.parametrize("name", sorted(JAX_NN))
def test_the_implementation_of_jax_gives_the_same(name):
    options, more = JAX_NN[name]
    x = {"query": normal(0, 2, 5, 8), **more}
    plain = al.attention(4, **options)
    params = drawn(plain.init(KEY, x)[0])
    theirs = al.attention(4, implementation="xla", **options)
    close(run(theirs, params, x), run(plain, params, x))


def test_jvp_and_second_derivatives():
    layer = al.attention(1, causal=True, use_bias=False)
    x = jnp.asarray(normal(0, 1, 3, 2))
    params = drawn(layer.init(KEY, x)[0])
    with jax.enable_x64(True):
        args = jax.tree.map(lambda a: np.asarray(a, np.float64), (params, x))

        def loss(params, x):
            return jnp.sum(jnp.sin(layer.predict(params, {}, x)))

        check_grads(jax.jit(loss), args, order=2, atol=1e-4, rtol=1e-4)


def test_broadcast_dropout_drops_the_same_for_all():
    layer = al.attention(2, dropout_rate=0.5, broadcast_dropout=True)
    x = jnp.broadcast_to(normal(0, 1, 6, 4), (3, 6, 4))
    params = drawn(layer.init(KEY, x)[0])
    y, _ = layer.apply(params, {}, x, key=KEY, train=True)
    close(y[0], y[2])
    other = al.attention(2, dropout_rate=0.5)
    y, _ = other.apply(params, {}, x, key=KEY, train=True)
    assert not np.allclose(y[0], y[2], atol=1e-3)


MULTIHEAD = [(5, 5, 6), (4, 7, 3), (1, 1, 6), (6, 2, 4)]


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("time", "source", "width"), MULTIHEAD)
def test_the_layer_of_torch_agrees(time, source, width, causal):
    query, keys_values = normal(0, 2, time, 6), normal(1, 2, source, width)
    weight = normal(2, 2, time, 6)
    layer = al.attention(3, causal=causal)
    params = drawn(layer.init(KEY, (query, keys_values))[0])
    parts = ["query", "key", "value"]

    def compute():
        import torch

        theirs = torch.nn.MultiheadAttention(
            6, 3, batch_first=True, kdim=width, vdim=width
        )
        with torch.no_grad():
            kernels = [torch.tensor(params[p]["kernel"].T.copy()) for p in parts]
            if width == 6:
                theirs.in_proj_weight.copy_(torch.cat(kernels))
            else:
                for p, kernel in zip("qkv", kernels, strict=True):
                    getattr(theirs, f"{p}_proj_weight").copy_(kernel)
            biases = [torch.tensor(params[p]["bias"]) for p in parts]
            theirs.in_proj_bias.copy_(torch.cat(biases))
            theirs.out_proj.weight.copy_(torch.tensor(params["out"]["kernel"].T))
            theirs.out_proj.bias.copy_(torch.tensor(params["out"]["bias"]))
        q = torch.tensor(query, requires_grad=True)
        s = torch.tensor(keys_values, requires_grad=True)
        later = torch.ones(time, source, dtype=torch.bool).triu(1) if causal else None
        y = theirs(q, s, s, attn_mask=later, need_weights=False)[0]
        (y * torch.tensor(weight)).sum().backward()
        if width == 6:
            kernels = theirs.in_proj_weight.grad.chunk(3)
        else:
            kernels = [getattr(theirs, f"{p}_proj_weight").grad for p in "qkv"]
        found = {p: kernel.T for p, kernel in zip(parts, kernels, strict=True)}
        rest = {"y": y, "for_query": q.grad, "for_source": s.grad}
        return {**found, **rest, "out": theirs.out_proj.weight.grad.T}

    want = reference(f"attention/layer {time} {source} {width} {causal}", compute)
    y, grads, (for_query, for_source), _ = ours(
        layer, params, (query, keys_values), weight
    )
    close(y, want["y"])
    close(for_query, want["for_query"], 2e-5)
    close(for_source, want["for_source"], 2e-5)
    for part in (*parts, "out"):
        close(grads[part]["kernel"], want[part], 2e-5)


@pytest.mark.parametrize("normalized", [False, True])
def test_the_layer_of_flax_agrees(normalized):
    query, source, weight = normal(0, 2, 4, 6), normal(1, 2, 5, 3), normal(2, 2, 4, 6)
    mask = _mask(3, 2, 1, 4, 5)
    layer = al.attention(2, normalize_qk=normalized)
    params = drawn(layer.init(KEY, (query, source))[0])

    def compute():
        import flax.linen as nn

        theirs = nn.MultiHeadDotProductAttention(2, normalize_qk=normalized)
        split = {
            part: {
                "kernel": params[part]["kernel"].reshape(-1, 2, 3),
                "bias": params[part]["bias"].reshape(2, 3),
            }
            for part in ("query", "key", "value")
        }
        out = params["out"]
        split["out"] = {"kernel": out["kernel"].reshape(2, 3, 6), "bias": out["bias"]}
        if normalized:
            split["query_ln"], split["key_ln"] = (
                params["query_norm"],
                params["key_norm"],
            )

        def loss(query, source):
            y = theirs.apply({"params": split}, query, source, mask=mask)
            return jnp.sum(y * weight), y

        (_, y), grads = jax.value_and_grad(loss, (0, 1), has_aux=True)(query, source)
        return {"y": y, "query": grads[0], "source": grads[1]}

    want = reference(f"attention/flax {normalized}", compute)
    y, _, (for_query, for_source, _), _ = ours_of_floats(
        layer, params, (query, source, mask), weight
    )
    close(y, want["y"])
    close(for_query, want["query"], 2e-5)
    close(for_source, want["source"], 2e-5)


def ours_of_floats(layer, params, inputs, weight):
    """`ours`, where the mask is a constant."""
    query, source, mask = inputs

    def masked(sub, query, source):
        return sub.attn(query, source, mask=jnp.asarray(mask))

    model = al.wire(masked, attn=layer)
    y, grads, given, state = ours(model, {"attn": params}, (query, source), weight)
    return y, grads, (*given, None), state
